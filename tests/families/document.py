"""The tables of docs/models.md, from the tables of the tests: what was walked, what is refused, family by family, what adapters save."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bridle.core.errors import UnsupportedModel
from bridle.models.decoder import DecoderConfig
from tests.families.lora_memory import lora_memory, memory
from tests.families.table import REFUSED, WALKED, Family
from tests.models.files.test_kinds import KINDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def runs_natively(family: Family) -> bool:
    try:
        DecoderConfig.from_huggingface(family.configuration().to_dict())
    except UnsupportedModel:
        return False
    return True


def walked() -> Iterator[str]:
    yield "| model | `model_type` | run by | in `make test` too |"
    yield "|---|---|---|---|"
    for name, family in WALKED.items():
        native = "bridle's own decoder" if runs_natively(family) else "transformers"
        title = f"{name} ({family.note})" if family.note else name
        yield f"| {title} | `{family.model_type}` | {native} | {', '.join(stage.removeprefix('train ') for stage in family.quick)} |"


def refused_families() -> Iterator[str]:
    yield "| `model_type` | words of the refusal |"
    yield "|---|---|"
    for family, words in REFUSED.values():
        yield f"| `{family.model_type}` | {words} |"


def refused_kinds() -> Iterator[str]:
    yield "| what | words of the refusal |"
    yield "|---|---|"
    for kind, (_, _, words) in KINDS.items():
        yield f"| {kind} | {words} |"


def with_tables(text: str) -> str:
    """The document with its tables as the tests have them; each stands after a comment that names it."""
    for table in (walked, refused_families, refused_kinds, lora_memory, memory):
        rows = "\n".join(table())
        text = re.sub(
            rf"(<!-- {table.__name__} -->\n)\n(\|.*\n)*\n*", lambda found, r=rows: f"{found[1]}\n{r}\n\n", text
        )
    return text
