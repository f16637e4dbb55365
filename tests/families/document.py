"""The tables of docs/models.md and docs/python.md, from those of the tests: what was walked, called and refused, family by family, what
adapters save."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from bridle.core.errors import UnsupportedModel
from bridle.models.decoder import DecoderConfig
from bridle.stages.methods import METHODS
from tests.families.lora_memory import lora_memory, memory
from tests.families.table import REFUSED, WALKED, Family
from tests.families.test_lora_walk import ADAPTED, ALL
from tests.families.test_matrix import CELLS, FAMILIES, TUNED, Cell
from tests.families.test_walk import STAGES
from tests.models.files.test_kinds import KINDS

DOCS = Path(__file__).parents[2] / "docs"


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


def ways() -> Iterator[str]:
    yield "| way to train | as a stage, all weights | as a stage, by an adapter | from Python, both |"
    yield "|---|---|---|---|"
    for what, cell in CELLS.items():
        of_its_own, command = variant(cell), f"train {cell.method}"
        whole = "all of the table above" if command in STAGES and not of_its_own else ", ".join(FAMILIES)
        more = [name for name in ADAPTED if name not in FAMILIES and command in ALL and not of_its_own]
        called = f"`bridle.{cell.call.__name__}`: {', '.join(FAMILIES)}" if cell.call else ""
        stage = " ".join([f"`{command}`", *of_its_own])
        yield f"| {what} ({stage}) | {whole} | {', '.join((*FAMILIES, *more))} | {called} |"


def variant(cell: Cell) -> list[str]:
    """The settings that make a way another than its method's usual one."""
    named = {key: value for key, value in cell.settings.items() if key in ("loss", "online_rounds", "scored_by")}
    return [f"`{METHODS[cell.method].section}.{key} = {json.dumps(value)}`" for key, value in named.items()]


def calls() -> Iterator[str]:
    yield "| call | ways to train | families | tuned |"
    yield "|---|---|---|---|"
    for call in dict.fromkeys(cell.call for cell in CELLS.values() if cell.call):
        named = ", ".join(what for what, cell in CELLS.items() if cell.call == call)
        yield f"| `bridle.{call.__name__}` | {named} | {', '.join(FAMILIES)} | {', '.join(TUNED)} |"


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


DOCUMENTS = {"models.md": (walked, ways, refused_families, refused_kinds, lora_memory, memory), "python.md": (calls,)}


def with_tables(document: str, text: str) -> str:
    """The document with its tables as the tests have them; each stands after a comment that names it."""
    for table in DOCUMENTS[document]:
        rows = "\n".join(table())
        text = re.sub(
            rf"(<!-- {table.__name__} -->\n)\n(\|.*\n)*\n*", lambda found, r=rows: f"{found[1]}\n{r}\n\n", text
        )
    return text
