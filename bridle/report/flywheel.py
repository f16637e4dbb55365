"""What the report shows of the flywheel: every turn with what was decided and why, and what is served."""

from collections.abc import Mapping, Sequence
from typing import Any

from bridle.feedback.serving.promotion import Promotion
from bridle.report import page

TURN = [
    page.Column("turn"),
    page.Column("users", "comparisons by users of what was promoted last with what was served before it"),
    page.Column("reward model", "whether it was trained again, and why"),
    page.Column("candidate", "what was trained, from what"),
    page.Column(
        "win rate", "share of comparisons with what was served that the candidate won, by those who decide; ties ½"
    ),
    page.Column("comparisons", "asked until it was decided"),
    page.Column("decision", "what came of it"),
]
STEPS_SERVED = [page.Column("when"), page.Column("version"), page.Column("what"), page.Column("by"), page.Column("why")]


def flywheel_tables(
    rows: Sequence[tuple[int, str, Mapping[str, Any]]], served: Sequence[Promotion], names: Mapping[str, str]
) -> list[page.Table]:
    """`rows`: each step of each turn; `served`: promotions and rollbacks; `names` of versions by their hash. Nothing where no turn was
    taken, nor anything promoted."""
    turns: dict[int, dict[str, Mapping[str, Any]]] = {}
    for number, step, outcome in rows:
        turns.setdefault(number, {})[step] = outcome
    lines: list[list[page.Cell]] = [turn_cells(number, steps) for number, steps in sorted(turns.items())]
    steps: list[list[page.Cell]] = [
        [
            one.at[:19].replace("T", " "),
            names.get(one.content, one.content[:12]),
            what_was_done(one),
            one.by,
            one.details.get("why", ""),
        ]
        for one in served
    ]
    found = list[page.Table]()
    if lines:
        how = "Users' votes alone decide nothing: an alarm among them calls an audit. A candidate is served only with proof."
        found.append(page.Table("Turns of the flywheel", TURN, lines, how))
    if steps:
        found.append(
            page.Table("What was served", STEPS_SERVED, steps, "Every promotion and rollback, the oldest first.")
        )
    return found


def turn_cells(number: int, steps: Mapping[str, Mapping[str, Any]]) -> list[page.Cell]:
    """A step that was not reached is an empty cell."""
    verdict = steps.get("gate", {}).get("verdict") or {}
    votes = steps.get("watch", {}).get("votes") or {}
    last = next((steps[name]["decision"] for name in ("promote", "gate", "train") if name in steps), "under way")
    return [
        number,
        f"{votes['rate']:.2f} of {votes['n']:,}" if votes.get("n") else "",
        steps.get("refresh", {}).get("decision", ""),
        steps.get("train", {}).get("decision", ""),
        verdict.get("rate"),
        verdict.get("n"),
        last,
    ]


def what_was_done(step: Promotion) -> str:
    if step.action == "promote":
        share = float(step.details["share"])
        return "served to all" if share == 1 else f"served to {share:.0%} of the users"
    return "taken back"
