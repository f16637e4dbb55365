"""The table of forms in docs/data.md, from the examples; `python -m bridle.feedback.importing.forms.documents docs/data.md` writes it."""

import json
import sys
from pathlib import Path
from typing import Any

from bridle.feedback.importing.formats import Form, read_row
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.forms.plain import WORKED

EXAMPLES = Path(__file__).with_name("examples.json")
BEGIN, END = (
    "<!-- forms: written by `make docs` from bridle/feedback/importing/forms/examples.json -->",
    "<!-- end of forms -->",
)


def examples_of_forms() -> list[tuple[Form, dict[str, Any]]]:
    return [(Form(form), row) for form, row in json.loads(EXAMPLES.read_text("utf-8"))]


def what_it_becomes(example: ImportedRow) -> str:
    """One line: its kinds, and what else is kept of them."""
    stated = example.stated
    parts = [*example.kinds]
    parts += ["for it" if opinion.value else "against it" for opinion in example.opinions if opinion.kind == "vote"]
    parts += [f"by the criterion {name}" for name in dict.fromkeys(one.criterion for one in stated) if name]
    parts += [f"margin {verdict.margin:g}" for verdict in example.verdicts if verdict.margin is not None]
    parts += [f"strength {verdict.strength}" for verdict in example.verdicts if verdict.strength is not None]
    parts += [f"weight {one.weight:g}" for one in stated if one.weight != 1]
    parts += [f"said by {name}" for name in dict.fromkeys(one.annotator for one in stated) if name]
    worked = example.imitate and (example.solutions or WORKED.search(example.answers[0]))
    return ", ".join([*parts, *(["checkable too"] if worked else [])])


def table_of_forms() -> str:
    lines = ["| `--format` | a row | becomes |", "|---|---|---|"]
    for form, row in examples_of_forms():
        text = json.dumps(row, ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| `{form}` | `{text}` | {'; '.join(map(what_it_becomes, read_row(row)[0]))} |")
    return "\n".join(lines)


def with_table(document: str) -> str:
    """The document with the table between its marks written again."""
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table_of_forms()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text("utf-8")), "utf-8")
