"""What a judge's verdicts are worth: order, length, its own family, and agreement with gold and with people. Pure functions of
comparisons.

Each comparison is of two answers of one item. Where a share is of comparisons, those of one item are not independent: intervals are by
item (`proportion`). What the judge could not tell is left out of every share, and counted by its kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from bridle.maths.statistics import Proportion, mean_and_se, proportion
from bridle.rewards.judge.rulings import JUDGED, Assessment, abstention_counts

EVEN = 1e-9


@dataclass(frozen=True)
class JudgedPair:
    """Two answers of an item. `verdict`: the share by which the judge prefers the first of them, ½ a tie, None where it abstained;
    `calls`: the same of each call with the place in which the first was shown (0 or 1). `truths`: the same of who else judged them, by
    name."""

    item: str
    kind: str
    verdict: float | None
    calls: tuple[tuple[int, float], ...] = ()
    lengths: tuple[int, int] = (0, 0)  # characters
    own: tuple[bool, bool] = (False, False)  # of the judge's family
    truths: Mapping[str, float] = field(default_factory=dict)


def pairs_of_opinion(
    item: str,
    opinion: Assessment,
    texts: Sequence[str],
    own: Sequence[bool],
    truths: Mapping[str, Mapping[tuple[int, int], float]],
) -> list[JudgedPair]:
    """Each two answers of different text of an item. `truths`: by name, for slots (a, b) the share by which a is preferred."""
    found = []
    for a, b in combinations(range(len(texts)), 2):
        if texts[a].strip() == texts[b].strip():
            continue
        sides = [
            (call.order.index(a), call.by_answer()[a])
            for call in opinion.calls
            if len(texts) == 2 == len(call.order) and call.ruling.kind == JUDGED
        ]
        known = {name: by_slots[a, b] for name, by_slots in truths.items() if (a, b) in by_slots}
        lengths = (len(texts[a].strip()), len(texts[b].strip()))
        found.append(
            JudgedPair(
                item, opinion.kind, preferred_share(opinion, a, b), tuple(sides), lengths, (own[a], own[b]), known
            )
        )
    return found


def preferred_share(opinion: Assessment, a: int, b: int) -> float | None:
    """The share by which an opinion prefers answer a to b; of two side by side the scores are probabilities already. None where it has
    none."""
    first, second = opinion.scores[a], opinion.scores[b]
    if opinion.kind != JUDGED or first is None or second is None:
        return None
    if len(opinion.scores) == 2 and abs(first + second - 1) < EVEN:
        return first
    return 0.5 if abs(first - second) < EVEN else float(first > second)


def sided(share: float) -> float:
    """1, ½ or 0."""
    return 0.5 if abs(share - 0.5) < EVEN else float(share > 0.5)


def judge_report(pairs: Sequence[JudgedPair]) -> dict[str, Any]:
    """All that is known of a judge from these comparisons; None where nothing is."""
    judged = [pair for pair in pairs if pair.verdict is not None]
    both = [pair for pair in pairs if len(pair.calls) == 2]
    by_order = [(pair.item, sided(share if place == 0 else 1 - share)) for pair in pairs for place, share in pair.calls]
    apart = [pair for pair in judged if pair.lengths[0] != pair.lengths[1] and sided(pair.verdict or 0.0) != 0.5]
    report: dict[str, Any] = {
        "comparisons": len(pairs),
        "judged": len(judged),
        "ties": sum(sided(pair.verdict or 0.0) == 0.5 for pair in judged),
        "abstained": abstention_counts(pair.kind for pair in pairs if pair.verdict is None),
        "prefers_first_shown": share_of_items(by_order),
        "swap_consistency": share_of_items([(pair.item, float(same_side(pair))) for pair in both]),
        "prefers_longer": share_of_items([(pair.item, longer(pair, pair.verdict or 0.0)) for pair in apart]),
        "self_preference": self_preference(judged),
    }
    names = sorted({name for pair in pairs for name in pair.truths})
    return report | {f"against_{name}": agreement_with(pairs, name) for name in names}


def same_side(pair: JudgedPair) -> bool:
    return sided(pair.calls[0][1]) == sided(pair.calls[1][1])


def longer(pair: JudgedPair, share: float) -> float:
    """Whether this prefers the longer of the two."""
    return sided(share) if pair.lengths[0] > pair.lengths[1] else 1 - sided(share)


def agreement_with(pairs: Sequence[JudgedPair], name: str) -> dict[str, Any]:
    """Where both decided: how often they agree, and Cohen's kappa, whose interval is over items. Accuracy by the place in which the first
    was shown counts each call; `both_right`: in both orders. What they prefer of two lengths, side by side."""
    known = [
        (pair, sided(pair.truths[name])) for pair in pairs if name in pair.truths and sided(pair.truths[name]) != 0.5
    ]
    decided = [(pair, truth) for pair, truth in known if pair.verdict is not None and sided(pair.verdict) != 0.5]
    both = [(pair, truth) for pair, truth in known if len(pair.calls) == 2]
    right = [(pair.item, float(sided(pair.verdict or 0.0) == truth)) for pair, truth in decided]
    orders = [[float(sided(dict(pair.calls)[place]) == truth) for pair, truth in both] for place in (0, 1)]
    accuracy = share_of_items(right)
    found: dict[str, Any] = {"comparisons": len(known), "decided": len(decided), "accuracy": accuracy}
    if accuracy is not None:
        found["kappa"] = kappa_of(accuracy)
        apart = [(pair, truth) for pair, truth in decided if pair.lengths[0] != pair.lengths[1]]
        found["prefers_longer"] = share_of_items([(pair.item, longer(pair, truth)) for pair, truth in apart])
    if both:
        found |= {
            "accuracy_first_order": float(np.mean(orders[0])),
            "accuracy_other_order": float(np.mean(orders[1])),
            "accuracy_of_calls": float(np.mean(orders)),
            "both_right": float(np.mean(np.prod(orders, axis=0))),
        }
    return found


def self_preference(judged: Sequence[JudgedPair]) -> dict[str, Any] | None:
    """Of comparisons of an answer of the judge's own family with another's: how often it takes its own, and by how much more than each of
    those who know: 0 where it is no more partial than they."""
    mixed = [pair for pair in judged if pair.own[0] != pair.own[1] and pair.verdict is not None]
    if not mixed:
        return None

    def takes_own(pair: JudgedPair, share: float) -> float:
        return sided(share) if pair.own[0] else 1 - sided(share)

    own = [(pair.item, takes_own(pair, pair.verdict or 0.0)) for pair in mixed]
    found: dict[str, Any] = {"comparisons": len(mixed), "takes_own": share_of_items(own)}
    for name in sorted({name for pair in mixed for name in pair.truths}):
        there = [pair for pair in mixed if name in pair.truths]
        gaps = [takes_own(pair, pair.verdict or 0.0) - takes_own(pair, pair.truths[name]) for pair in there]
        mean, error = mean_and_se(gaps, [pair.item for pair in there])
        found[f"beyond_{name}"] = {
            "value": mean,
            "low": mean - 1.96 * error,
            "high": mean + 1.96 * error,
            "n": len(there),
        }
    return found


def share_of_items(values: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
    """A share with its interval by item; None where there is nothing."""
    return as_interval(proportion([value for _, value in values], [item for item, _ in values])) if values else None


def as_interval(found: Proportion) -> dict[str, Any]:
    return {"value": found.rate, "low": found.low, "high": found.high, "n": found.n}


def kappa_of(agreement: Mapping[str, Any]) -> dict[str, Any]:
    """Cohen's kappa, (p_o − p_e) / (1 − p_e) (Cohen 1960), of two who each prefer one of two answers: which of them stands first means
    nothing, so chance agrees half of the time, and it is 2 p_o − 1, with the interval of p_o."""
    return {"n": agreement["n"], **{name: 2 * agreement[name] - 1 for name in ("value", "low", "high")}}
