"""How often a reward model is right on held-out pairs, with two rules of thumb beside it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridle.core.records import Completion, Prompt, Rating
from bridle.evaluation.answers import Answered, proxy_scores
from bridle.maths.statistics import proportion, win_rate
from bridle.rewards.learned import LearnedReward

PAIR_METRICS = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longest", "shortest")
AnswerPair = tuple[Prompt, Completion, Completion]  # a prompt with its better and its worse answer


def pair_accuracy(
    reader: LearnedReward,
    pairs: Sequence[AnswerPair],
    say: Callable[[str], object],
    known: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Share of pairs whose better answer scores higher, a tie counting half, interval by prompt, with two rules of thumb beside it.
    A pair of equal texts has no better answer and is left out. `known`: scores by answer, which are not asked for again; those that
    are asked for join them."""
    different = [(p, better, worse) for p, better, worse in pairs if better.stripped != worse.stripped]
    fits = within_context(reader, different)
    for left_out, why in (
        (len(pairs) - len(different), "of equal text"),
        (len(different) - len(fits), "longer than the context"),
    ):
        if left_out:
            say(f"{left_out} of {len(pairs)} held-out pairs are {why} and left out")
    if not fits:
        say("there is no held-out pair to test the reward model on; import more comparisons")
        return dict.fromkeys(PAIR_METRICS) | {"heldout_pairs": 0}
    score = {} if known is None else known
    new = {answer.id: (p, answer) for p, c, r in fits for answer in (c, r) if answer.id not in score}  # each once
    found = proxy_scores(Answered([p for p, _ in new.values()], [answer for _, answer in new.values()]), reader)
    score.update(zip(new, found, strict=True))
    right = win_rate([score[c.id] for _, c, _ in fits], [score[r.id] for _, _, r in fits], [p.id for p, _, _ in fits])
    longer = np.sign([len(c.stripped) - len(r.stripped) for _, c, r in fits])
    return {
        "pair_accuracy": right.rate,
        "pair_accuracy_low": right.low,
        "pair_accuracy_high": right.high,
        "heldout_pairs": len(fits),
        "longest": float((longer > 0).mean() + (longer == 0).mean() / 2),
        "shortest": float((longer < 0).mean() + (longer == 0).mean() / 2),
    }


def rating_metrics(
    reader: LearnedReward, rated: Sequence[tuple[Prompt, Rating]], say: Callable[[str], object]
) -> dict[str, Any]:
    """On held-out ratings: of classes the share that is predicted right, interval by prompt, beside the share of the larger class; of
    scores the correlation with what people gave."""
    answers, limit = [one.completion for _, one in rated], reader.model.module.config.max_positions
    lengths = map(len, map(list.__add__, *reader.ids([prompt for prompt, _ in rated], answers)))
    fits = [row for row, length in zip(rated, lengths, strict=True) if length <= limit]
    prompts, given = [prompt for prompt, _ in fits], np.array([one.value for _, one in fits], dtype=np.float64)
    if len(fits) < 2:
        say("there are no two held-out ratings to test the reward model on; import more")
        return {"heldout_ratings": len(fits)}
    found = proxy_scores(Answered(prompts, [one.completion for _, one in fits]), reader)
    task = reader.model.tasks[reader.row]
    if task.kind == "score":
        varies = np.ptp(given) > 0 and np.ptp(found) > 0
        return {"heldout_ratings": len(fits), "correlation": float(np.corrcoef(given, found)[0, 1]) if varies else None}
    first_class = np.array(found) * task.scale + task.centre > 0
    right = proportion(first_class == (given == 1), [prompt.id for prompt in prompts])
    named = {"class_accuracy": right.rate, "class_accuracy_low": right.low, "class_accuracy_high": right.high}
    return {"heldout_ratings": len(fits), **named, "larger_class": float(max(given.mean(), 1 - given.mean()))}


def within_context(reader: LearnedReward, pairs: Sequence[AnswerPair]) -> list[AnswerPair]:
    """Pairs that the reward model's context holds."""
    prompts = [p for p, _, _ in pairs]
    better, worse = reader.fits(prompts, [b for _, b, _ in pairs]), reader.fits(prompts, [w for _, _, w in pairs])
    return [pair for pair, *both in zip(pairs, better, worse, strict=True) if all(both)]
