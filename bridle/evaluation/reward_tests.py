"""How often a reward model is right on held-out pairs, with two rules of thumb beside it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridle.core.records import Completion, Prompt
from bridle.rewards.learned import LearnedReward

PAIR_METRICS = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longest", "shortest")
AnswerPair = tuple[Prompt, Completion, Completion]  # a prompt with its better and its worse answer


def pair_accuracy(reader: LearnedReward, pairs: Sequence[AnswerPair], say: Callable[[str], object]) -> dict[str, Any]:
    """Share of pairs whose better answer scores higher, interval by bootstrap over prompts, with two rules of thumb beside it."""
    fits = within_context(reader, pairs)
    if len(fits) < len(pairs):
        say(f"{len(pairs) - len(fits)} of {len(pairs)} held-out pairs are longer than the context and left out")
    if not fits:
        say("there is no held-out pair to test the reward model on; import more comparisons")
        return dict.fromkeys(PAIR_METRICS) | {"heldout_pairs": 0}
    asked = {answer.id: (p, answer) for p, c, r in fits for answer in (c, r)}  # an answer is in several pairs
    found = reader([p for p, _ in asked.values()], [answer for _, answer in asked.values()])
    score = dict(zip(asked, (float(s or 0) for s in found), strict=True))
    right = np.array([score[c.id] > score[r.id] for _, c, r in fits], dtype=float)
    longer = np.sign([len(c.text) - len(r.text) for _, c, r in fits])
    low, high = cluster_interval(right, [p.id for p, _, _ in fits])
    return {
        "pair_accuracy": float(right.mean()),
        "pair_accuracy_low": low,
        "pair_accuracy_high": high,
        "heldout_pairs": len(fits),
        "longest": float((longer > 0).mean() + (longer == 0).mean() / 2),
        "shortest": float((longer < 0).mean() + (longer == 0).mean() / 2),
    }


def within_context(reader: LearnedReward, pairs: Sequence[AnswerPair]) -> list[AnswerPair]:
    """Pairs that the reward model's context holds."""
    limit, asked = reader.model.module.config.max_positions, [p for p, _, _ in pairs]
    prompts, better = reader.ids(asked, [b for _, b, _ in pairs])
    _, worse = reader.ids(asked, [w for _, _, w in pairs])
    lengths = [len(p) + max(len(b), len(w)) for p, b, w in zip(prompts, better, worse, strict=True)]
    return [pair for pair, length in zip(pairs, lengths, strict=True) if length <= limit]


def cluster_interval(right: np.ndarray, groups: Sequence[str], resamples: int = 1000) -> tuple[float, float]:
    """95% percentile bootstrap of a share whose outcomes come in groups: whole prompts are drawn, not pairs."""
    names, index = np.unique(np.array(groups), return_inverse=True)
    hits, sizes = np.bincount(index, right), np.bincount(index)
    draws = np.random.default_rng(0).integers(0, len(names), (resamples, len(names)))
    shares = hits[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)
