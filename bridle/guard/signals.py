"""Signals of over-optimisation that are numbers: KL, proxy, disagreement, slope of gains, entropy, drift, what was lost, dead groups.

Each is a pure function of tensors and numbers, with its definition, its unit and its paper beside it; docs/guard.md has the list. None
reads a logged metric, and none decides anything: what to do about a signal is a rule's to say. Those of texts stand in
`guard/texts.py`, the distance from what the reward model has learnt from in `guard/distance.py`.
A score that is None or not finite could not be judged: it is left out and counted. Log-probs, losses and lengths that are not finite are
a fault of the program that measured, and refused. `groups` name the prompt of each answer, as in `maths/statistics.py`.
Shapes: B answers, T predictions, V vocabulary, M members of an ensemble, C checkpoints, P prompts, D documents, G groups of K answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bridle.core.errors import DataError
from bridle.core.records import FinishReason
from bridle.maths.kl import k1
from bridle.maths.logprobs import row_slices
from bridle.maths.statistics import Floats, Groups, Proportion, mean_and_se, mean_interval, proportion

Scored = Sequence[float | None] | ArrayLike  # a score for each answer, None or nan where it could not be judged


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over `n` answers (documents, prompts) with its standard error, nan where one group is all there is; `left_out` could not be
    judged."""

    value: float
    se: float
    n: int
    left_out: int = 0


# ------------------------------------------------------------------------------------------ how far the policy has gone


def sequence_kl(logp_BT: Tensor, reference_logp_BT: Tensor, mask_BT: Tensor, groups: Groups = None) -> Measured:
    """KL(π‖π_ref) in nats an answer: the mean over π's own answers of Σ_t log π - log π_ref (k1: unbiased, may be negative)
    (Ziegler 2019, arxiv.org/abs/1909.08593, §2.2)."""
    return _answers_mean(k1(logp_BT, reference_logp_BT, mask_BT).double().sum(1), groups, "log-probs")


def vocabulary_kl(logits_BTV: Tensor, reference_logits_BTV: Tensor, mask_BT: Tensor, groups: Groups = None) -> Measured:
    """The same, exact in the next token: the mean over π's answers of Σ_t Σ_v π(v) (log π(v) - log π_ref(v)), in nats an answer.

    As unbiased as `sequence_kl`, never negative, and its variance is that of the prefixes alone (Amini 2025, arxiv.org/abs/2504.10637);
    it needs both models' logits, a slice of which is widened at a time.
    """

    def divergence(logp_NV: Tensor, reference_logp_NV: Tensor) -> Tensor:
        p_NV = logp_NV.exp()
        return torch.where(p_NV > 0, p_NV * (logp_NV - reference_logp_NV), 0.0).sum(1)

    kl_BT = _by_position(divergence, mask_BT, logits_BTV, reference_logits_BTV)
    return _answers_mean(kl_BT.sum(1), groups, "logits")


def sampled_entropy(sampled_logp_BT: Tensor, mask_BT: Tensor, groups: Groups = None) -> Measured:
    """-Σ log π / tokens, in nats a token, of the tokens that were sampled. It falls to 0 where every answer is the same
    (Cui 2025, arxiv.org/abs/2505.22617)."""
    entropy_BT = torch.where(mask_BT, -sampled_logp_BT.double(), 0.0)
    return _ratio(entropy_BT.sum(1), mask_BT.sum(1), groups, "log-probs")


def vocabulary_entropy(logits_BTV: Tensor, mask_BT: Tensor, groups: Groups = None) -> Measured:
    """The same, exact in the next token: mean over tokens of -Σ_v π(v) log π(v), in nats a token."""

    def entropy(logp_NV: Tensor) -> Tensor:
        return -torch.where(logp_NV > -math.inf, logp_NV.exp() * logp_NV, 0.0).sum(1)

    return _ratio(_by_position(entropy, mask_BT, logits_BTV).sum(1), mask_BT.sum(1), groups, "logits")


def length_drift(lengths_B: ArrayLike, reference_lengths: ArrayLike, groups: Groups = None) -> Measured:
    """(mean length - mean of the reference's) / standard deviation of the reference's lengths: in sd of SFT's answers. Lengths in tokens
    or characters. A policy learns length before it learns anything else (Singhal 2023, arxiv.org/abs/2310.03716)."""
    mean, error = mean_and_se(lengths_B, groups)
    usual, usual_error = mean_and_se(reference_lengths)
    spread = float(np.std(np.asarray(reference_lengths, dtype=np.float64)))
    if spread == 0:
        raise DataError("the reference's answers are all of one length, so there is no unit to measure drift in")
    return Measured((mean - usual) / spread, math.hypot(error, usual_error) / spread, np.size(lengths_B))


# ----------------------------------------------------------------------------------------------- what the rewards say


def proxy_reward(raw_B: Scored, centre: float = 0.0, scale: float = 1.0, groups: Groups = None) -> Measured:
    """Mean of (raw - centre) / scale: raw as it stands, or in sd of SFT's answers with the mean and standard deviation of the reward
    model's scores of those (`bridle_reward.json` has them), in which a KL weight means the same whatever the head's level."""
    if not (math.isfinite(centre) and math.isfinite(scale) and scale > 0):
        raise DataError(f"a proxy needs a finite centre and a scale above 0, got {centre} and {scale}")
    raw = _numbers(raw_B)
    kept = np.isfinite(raw)
    return _kept_mean((raw - centre) / scale, kept, groups)


def disagreement(scores_MB: Sequence[Scored], groups: Groups = None) -> Measured:
    """Mean over answers of the standard deviation over the members of an ensemble, in the units of their scores (Coste 2023,
    arxiv.org/abs/2310.02743; what `rewards/learned.py: Ensemble` logs). An answer that a member could not judge is left out."""
    scores = np.stack([_numbers(scores_B) for scores_B in scores_MB])
    kept_B = np.isfinite(scores).all(0)
    return _kept_mean(np.where(kept_B, scores, 0.0).std(0), kept_B, groups)


@dataclass(frozen=True, slots=True)
class Slope:
    """`value` from `low` to `high`, over so many checkpoints and prompts; None where the training reward did not move, which
    tells nothing. `left_out`: prompts that could not be judged."""

    value: float | None
    low: float | None
    high: float | None
    checkpoints: int
    prompts: int
    left_out: int = 0


def gain_slope(
    training_CP: Sequence[Scored], heldout_CP: Sequence[Scored], last: int = 3, *, level: float = 0.95
) -> Slope:
    """What a held-out reward model gains for each unit that the training one gains: the least-squares slope of the means over prompts of
    the second against those of the first, over the last so many checkpoints, oldest first. Both in sd of SFT's answers: 1 while gains
    are real, near 0 and below where they are of the training model's own making (Gao 2022, arxiv.org/abs/2210.10760; Bai 2022,
    arxiv.org/abs/2204.05862, §4.2, where train and test reward models part).

    The scores are of answers to fixed prompts, one column each. The interval is over prompts, for these checkpoints: with h the held-out
    scores, t the training ones, a dot for a mean over prompts and r the residuals of the fit, a prompt p moves the slope by
    Σ_c (t_c - t̄)(h_cp - h_c - slope (t_cp - t_c)) + r_c (t_cp - t_c), over Σ_c (t_c - t̄)², to first order.
    """
    training, heldout = (
        np.stack([_numbers(scores_P) for scores_P in rows[-last:]]) for rows in (training_CP, heldout_CP)
    )
    if training.shape != heldout.shape or len(training) < 2:
        raise DataError(
            f"a slope needs two checkpoints at least and scores of the same answers by both, got {training.shape} and {heldout.shape}"
        )
    kept_P = np.isfinite(training).all(0) & np.isfinite(heldout).all(0)
    training, heldout = training[:, kept_P], heldout[:, kept_P]
    checkpoints, prompts = training.shape
    left_out = int((~kept_P).sum())
    if not prompts:
        raise DataError(
            f"none of {left_out} prompts has a finite score by both models at each checkpoint; look at them"
        )
    step_C = training.mean(1) - training.mean()
    moved = float(step_C @ step_C)
    if moved <= 1e-18 * max(1.0, float(np.square(training).mean())):
        return Slope(None, None, None, checkpoints, prompts, left_out)
    slope = float(step_C @ heldout.mean(1)) / moved
    residual_C = heldout.mean(1) - heldout.mean() - slope * step_C
    training_P, heldout_P = training - training.mean(1)[:, None], heldout - heldout.mean(1)[:, None]
    influence_P = (step_C @ (heldout_P - slope * training_P) + residual_C @ training_P) / moved
    low, high = (None, None) if prompts == 1 else mean_interval(slope + influence_P, level=level)
    return Slope(slope, low, high, checkpoints, prompts, left_out)


# --------------------------------------------------------------------------------------------------- what was lost


def nats_lost(before_D: ArrayLike, after_D: ArrayLike, tokens_D: ArrayLike) -> Measured:
    """What tuning cost, in nats a token of held-out pretraining text: Σ (loss after - loss before) / Σ tokens, of documents whose loss is
    a sum over their tokens, each model's on the same ones. Above 0: it was forgotten (the "alignment tax" of Ouyang 2022,
    arxiv.org/abs/2203.02155, §4.2)."""
    before, after, tokens = (_finite(values, "losses") for values in (before_D, after_D, tokens_D))
    if not before.shape == after.shape == tokens.shape or tokens.min() < 0 or not tokens.sum():
        raise DataError(
            f"a document needs its loss before, its loss after and its tokens, 0 or more and not all 0, got {before.size}, "
            f"{after.size} and {tokens.size}"
        )
    return _ratio(torch.tensor(after - before), torch.tensor(tokens), None, "losses")


@dataclass(frozen=True, slots=True)
class Change:
    """Share right after - before, from `low` to `high`; `gained` and `lost` are the prompts of `n` that changed sides."""

    value: float
    low: float
    high: float
    gained: int
    lost: int
    n: int


def matches_lost(before_P: Sequence[bool], after_P: Sequence[bool], z: float = 1.959964) -> Change:
    """Exact match on checkable prompts, after - before: one answer of each model to each prompt, right or wrong. Interval for pairs:
    that of Wald with half an observation added to each of the four cells, which covers near 0 too (Agresti and Min 2005)."""
    before, after = np.asarray(before_P, dtype=bool), np.asarray(after_P, dtype=bool)
    if before.shape != after.shape or not before.size:
        raise DataError(
            f"exact match needs both models' answers to the same prompts, got {before.size} and {after.size}"
        )
    gained, lost, n = int((after & ~before).sum()), int((before & ~after).sum()), before.size
    middle = (gained - lost) / (n + 2)
    half = z * math.sqrt((gained + lost + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    return Change((gained - lost) / n, middle - half, middle + half, gained, lost, n)


# -------------------------------------------------------------------------------------------------------- dead ends


def share_cut_off(reasons_B: Sequence[FinishReason], groups: Groups = None) -> Proportion:
    """Share of answers that reached the token limit before they ended, with its interval."""
    return proportion([reason is FinishReason.LENGTH for reason in reasons_B], groups)


def share_without_variance(scores_GK: Sequence[Scored]) -> Proportion:
    """Share of groups whose answers all have one score: nothing is learnt from them (Yu 2025, arxiv.org/abs/2503.14476, §3.2).
    A group with an answer that could not be judged is left out, so the share's `n` counts the others."""
    groups = [scores for scores_K in scores_GK if np.isfinite(scores := _numbers(scores_K)).all()]
    if not groups:
        raise DataError(
            f"none of {len(scores_GK)} groups has a finite score for every answer; look at the reward source"
        )
    return proportion([float((scores == scores[0]).all()) for scores in groups])


# ----------------------------------------------------------------------------------------------------------- plumbing


def _by_position(measure: Callable[..., Tensor], mask_BT: Tensor, *logits_BTV: Tensor) -> Tensor:
    """`measure` of log-probs over the vocabulary at each position of the mask, [B, T] in float64, zero off it; a slice of them at a
    time."""
    rows_NV = [logits[mask_BT] for logits in logits_BTV]
    found_N = torch.zeros(len(rows_NV[0]), dtype=torch.float64)
    for some in row_slices(len(found_N), rows_NV[0].shape[-1]):
        found_N[some] = measure(*(rows[some].double().log_softmax(1) for rows in rows_NV)).cpu()
    return torch.zeros(mask_BT.shape, dtype=torch.float64).masked_scatter(mask_BT.cpu(), found_N)


def _answers_mean(values_B: Tensor, groups: Groups, what: str) -> Measured:
    return Measured(*mean_and_se(_finite(values_B.cpu().numpy(), what), groups), len(values_B))


def _ratio(sums_B: Tensor, counts_B: Tensor, groups: Groups, what: str) -> Measured:
    """Σ sums / Σ counts; the standard error is that of the mean of what each answer's sum differs from the ratio by, over mean count."""
    sums, counts = _finite(sums_B.cpu().numpy(), what), counts_B.cpu().numpy().astype(np.float64)
    if not counts.sum():
        raise DataError("there is no token to measure at: every answer is empty")
    ratio = float(sums.sum() / counts.sum())
    return Measured(ratio, mean_and_se(sums - ratio * counts, groups)[1] / float(counts.mean()), len(sums))


def _numbers(scores: Scored) -> Floats:
    """As numbers, nan for None."""
    found: Any = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else scores
    return np.array([math.nan if score is None else float(score) for score in found])


def _kept_mean(values: Floats, kept: Any, groups: Groups) -> Measured:
    """Over those that are kept; DataError where that is none."""
    if not kept.any():
        raise DataError(f"none of {values.size} answers has a finite score; look at the reward source")
    names = None if groups is None else [name for name, there in zip(groups, kept, strict=True) if there]
    return Measured(*mean_and_se(values[kept], names), int(kept.sum()), int((~kept).sum()))


def _finite(values: ArrayLike, what: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    bad = int((~np.isfinite(numbers)).sum())
    if bad or not numbers.size:
        found = f"those of {bad} of {numbers.size} are not" if numbers.size else "there are none"
        raise DataError(
            f"the {what} of all answers must be finite numbers, and {found}; look at the model that gave them"
        )
    return numbers
