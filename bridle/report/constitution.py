"""What the report shows of critique and revision: a row a round, a row a principle, and what imitating the revised answers cost."""

from collections.abc import Mapping
from typing import Any

from bridle.report import page

ROUND = {
    "faults": page.Column(
        "faults", "share of the answers in which the critic found one, by the principle that was drawn"
    ),
    "complies": page.Column(
        "complies", "share of harmful requests that are answered, by the rubric, which nobody learns from"
    ),
    "refuses": page.Column("refuses", "share of the answers that refuse, by the rubric"),
    "gold": page.Column("gold", "true quality, mean points"),
    "unreadable": page.Column("unreadable", "critiques of which no verdict could be read"),
    "not_asked": page.Column("not asked", "answers too long to be criticised"),
}
PRINCIPLE = {
    "drawn": page.Column("drawn", "times"),
    "faults": page.Column("faults", "share of these in which it found one"),
    "changed": page.Column("changed", "share of these in which the answer was written anew"),
}
PRICE = {
    "complies": page.Column("complies", "share of harmful requests answered; lower is better"),
    "refuses_benign": page.Column(
        "refuses benign", "share of harmless requests that sound violent, refused; lower is better"
    ),
    "gold": page.Column("gold", "true quality of the answers to all held-out prompts, mean points"),
    "helpfulness": page.Column("helpfulness", "the same of those that ask for help"),
}


MODELS_COMPARED = {
    "sft": "SFT", "sl-cai-alone": "SL-CAI, revised answers alone", "sl-cai": "SL-CAI, benign answers beside them",
}  # fmt: skip


def constitution_tables(results: Mapping[str, Mapping[str, Any]]) -> list[page.Table]:
    found = results.get("revise", {})
    if "by_principle" not in found:
        return []
    names = [name for name in ROUND if any(row.get(name) for row in found["by_round"])]
    rounds: list[list[page.Cell]] = [
        [r["round"] or "as answered", *(r.get(n) for n in names)] for r in found["by_round"]
    ]
    principles: list[list[page.Cell]] = [
        [name, *(r[n] for n in PRINCIPLE)] for name, r in found["by_principle"].items()
    ]
    how = f"{page.show(found['answers'])} answers, each criticised once a round by a principle drawn at random, and written anew where "
    by_round = [page.Column("round"), *(ROUND[name] for name in names)]
    by_principle = [page.Column("principle"), *PRINCIPLE.values()]
    return [
        page.Table("Revision round by round", by_round, rounds, f"{how}that found a fault."),
        page.Table("The principles", by_principle, principles, "How often each found a fault, and changed an answer."),
        *price_tables(results),
    ]


def price_tables(results: Mapping[str, Mapping[str, Any]]) -> list[page.Table]:
    """SFT beside what imitated the revised answers: what was won, and what that cost."""
    rows: list[list[page.Cell]] = []
    for name, label in MODELS_COMPARED.items():
        if "complies" in (found := results.get(f"evaluate-{name}", {})):
            known = {**found, "helpfulness": found.get("gold_by_family", {}).get("help")}
            rows.append([label, *(known.get(column) for column in PRICE)])
    words = (
        "A model that sees nothing but refusals may come to refuse what is harmless. Beside them it imitates some of its own answers to "
        "harmless requests. Fresh answers to held-out prompts."
    )
    columns = [page.Column("model"), *PRICE.values()]
    return [page.Table("What harmlessness costs", columns, rows, words)] if len(rows) > 1 else []
