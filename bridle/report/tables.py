"""Tables of what the report shows beside training: critique and revision, round by round and principle by principle, and what imitating the
revised answers cost; the flywheel's turns with what was decided and why, and what was served."""

from collections.abc import Mapping, Sequence
from typing import Any

from bridle.feedback.serving.promotion import Promotion
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


# ------------------------------------------------------------------------------------------------------------ flywheel

TURN = [
    page.Column("turn"),
    page.Column("users", "share of their comparisons that what was promoted last won of what was served before it"),
    page.Column("of", "comparisons by users"),
    page.Column("learnt from", "judgements, where the reward model was trained again"),
    page.Column("accuracy", "of the reward model on held-out pairs"),
    page.Column(
        "win rate", "share of comparisons with what was served that the candidate won, by those who decide; ties ½"
    ),
    page.Column("compared", "until it was decided"),
    page.Column("decision"),
]
DECISIONS = {
    "better": "better",
    "worse": "refused: worse",
    "not_better": "kept back: not shown to be better",
    "out_of_bounds": "refused: out of bounds",
}
ON_SUITE = [
    page.Column("turn"),
    page.Column("check"),
    page.Column("served", "answers of what was served that passed"),
    page.Column("candidate", "answers of the candidate that passed"),
    page.Column("of", "answers of each"),
]
BOARD = [
    page.Column("version"),
    page.Column("weights"),
    page.Column("strength", "log-odds of being preferred to the version that all are measured against", 2),
    page.Column("low", "of the 95% interval, from resampled prompts", 2),
    page.Column("high", decimals=2),
    page.Column("preferred", "probability of being preferred to it"),
    page.Column("comparisons"),
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
    if fell := [line for number, steps in sorted(turns.items()) for line in suite_cells(number, steps)]:
        how = "Checks of the regression suite that a candidate passed less often than what was served, the worst first; some do by chance."
        found.append(page.Table("What got worse on the suite", ON_SUITE, fell, how))
    if steps:
        found.append(
            page.Table("What was served", STEPS_SERVED, steps, "Every promotion and rollback, the oldest first.")
        )
    return found


def turn_cells(number: int, steps: Mapping[str, Mapping[str, Any]]) -> list[page.Cell]:
    """A step that was not reached is an empty cell."""
    verdict = steps.get("gate", {}).get("verdict") or {}
    votes = steps.get("watch", {}).get("votes") or {}
    learnt = steps.get("refresh", {})
    return [
        number,
        votes.get("rate"),
        votes.get("n") or None,
        learnt.get("judgements"),
        learnt.get("pair_accuracy"),
        verdict.get("rate"),
        verdict.get("n"),
        decision_in(steps, verdict),
    ]


def leaderboard_tables(boards: Mapping[str, Mapping[str, Any]]) -> list[page.Table]:
    """One by those who decide, one by users."""
    found = []
    for title, board in boards.items():
        names = ("strength", "low", "high", "preferred", "comparisons")
        rows: list[list[page.Cell]] = [
            [row["name"], row["version"], *(row[name] for name in names)] for row in board["ranked"]
        ]
        sources = ", ".join(f"{page.show(count)} of {name}" for name, count in board["sources"].items())
        words = f"Bradley-Terry, measured against {board['reference']}; comparisons: {sources}."
        words += f" Not connected with these, and not ranked: {', '.join(board['apart'])}." if board["apart"] else ""
        found.append(page.Table(f"Leaderboard of versions, by {title}", BOARD, rows, words))
    return found


def suite_cells(number: int, steps: Mapping[str, Mapping[str, Any]]) -> list[list[page.Cell]]:
    on_suite = steps.get("gate", {}).get("suite", {})
    return [
        [number, one["name"], one["served"], one["candidate"], on_suite["answers"]] for one in on_suite.get("worse", ())
    ]


def decision_in(steps: Mapping[str, Mapping[str, Any]], verdict: Mapping[str, Any]) -> str:
    if "rolled back" in steps.get("watch", {}).get("decision", ""):
        return "what was promoted last was taken back"
    if (share := steps.get("promote", {}).get("share")) is not None:
        return "served to all" if share == 1 else f"served to {share:.0%} of the users"
    broken = ", ".join(words.partition(" ")[0] for words in verdict.get("broken", ()))
    found = DECISIONS.get(verdict.get("decision", ""), "none that differs" if "gate" in steps else "under way")
    return f"{found} ({broken})" if broken else found


def what_was_done(step: Promotion) -> str:
    if step.action == "promote":
        share = float(step.details["share"])
        return "served to all" if share == 1 else f"served to {share:.0%} of the users"
    return "taken back"
