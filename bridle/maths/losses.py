"""Losses: tensors and numbers in, `(loss, metrics)` out. Nothing here knows of models, files or settings.

Each loss is a sum divided by a count that the caller supplies: the count of the whole optimiser step on all ranks. The
gradient is then the same however the step is cut into micro-batches.
Shapes: B sequences, T tokens, N selected tokens, V vocabulary, P pairs, K answers to a prompt.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.maths.kl import k3, mean_k2

LossMetrics = dict[str, Tensor]


def next_token(logp_N: Tensor, *, tokens: Tensor | int) -> tuple[Tensor, LossMetrics]:
    """Cross entropy in nats: -Σ log p(target) / tokens. Pretraining and SFT differ in which tokens are selected."""
    loss = -logp_N.sum() / tokens
    return loss, {"loss": loss.detach()}


def clipped_policy(
    logp_BT: Tensor, old_logp_BT: Tensor, adv_BT: Tensor, mask_BT: Tensor, *, clip: float, tokens: Tensor | int
) -> tuple[Tensor, LossMetrics]:
    """PPO's clipped surrogate, eq. 7 of arxiv.org/abs/1707.06347: -Σ min(r A, clip(r, 1-ε, 1+ε) A) / tokens.

    r = π(a|s) / π_old(a|s). `tokens` counts the masked tokens of the whole optimiser step on every rank.
    LossMetrics: `clip_fraction` of tokens whose ratio left the interval, `approx_kl` = Σ ½ (log r)² / tokens (Schulman's k2).
    """
    log_ratio_BT = torch.where(mask_BT, logp_BT - old_logp_BT, 0.0)  # where, not a product: 0 times nan is nan
    loss_BT, clipped_BT = _surrogate(log_ratio_BT, adv_BT, clip, clip)
    loss = torch.where(mask_BT, loss_BT, 0.0).sum() / tokens
    with torch.no_grad():
        clipped = (clipped_BT & mask_BT).sum() / tokens
        approx_kl = mean_k2(logp_BT, old_logp_BT, mask_BT, tokens)
    return loss, {"policy_loss": loss.detach(), "clip_fraction": clipped, "approx_kl": approx_kl}


def _surrogate(log_ratio_BT: Tensor, adv_BT: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1-low, 1+high) A) of each token, and whether its ratio was clipped; adv [B, T] or [B, 1]."""
    ratio_BT = log_ratio_BT.exp()
    kept_BT = ratio_BT.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio_BT * adv_BT, kept_BT * adv_BT), kept_BT != ratio_BT


def clipped_value(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float, tokens: Tensor | int
) -> tuple[Tensor, LossMetrics]:
    """Σ ½ max((v - R)², (v_clip - R)²) / tokens; v_clip stays within ±clip of the rollout's value (Schulman's code).

    Clipping keeps the critic from leaping after one batch of noisy returns; `clip` is in units of the values.
    """
    held_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    error_BT = torch.where(mask_BT, values_BT - returns_BT, 0.0)  # before squaring: a square's gradient at nan is nan
    held_error_BT = torch.where(mask_BT, held_BT - returns_BT, 0.0)
    loss = 0.5 * torch.maximum(error_BT.square(), held_error_BT.square()).sum() / tokens
    return loss, {"value_loss": loss.detach()}


def bradley_terry(
    chosen_P: Tensor,
    rejected_P: Tensor,
    weight_P: Tensor,
    *,
    count: Tensor | float,
    target_P: Tensor | float = 1.0,
    margin_P: Tensor | float = 0.0,
) -> tuple[Tensor, LossMetrics]:
    """-Σ w [p log σ(g - m) + (1 - p) log σ(m - g)] / count with g = s_chosen - s_rejected (Ouyang 2022, eq. 1,
    arxiv.org/abs/2203.02155).

    With w = 1 / pairs of the prompt's ranking and `count` the prompts of the step, every prompt weighs the same however
    many of its answers were ranked. p is how sure it is that the first is better: 1 for a plain choice, ½ for a tie. m is the
    margin by which it should win (Touvron 2023, eq. 2, arxiv.org/abs/2307.09288). LossMetrics: `accuracy`, weighted like the loss,
    the more likely answer being the right one; a tie, of people or of the scores, counts half.
    """
    gap_P = chosen_P - rejected_P
    loss_P = target_P * F.softplus(margin_P - gap_P) + (1 - target_P) * F.softplus(gap_P - margin_P)
    loss = (weight_P * loss_P).sum() / count
    lean_P = torch.as_tensor(target_P, device=gap_P.device) - 0.5
    ties_count_half_P = 0.5 + 0.5 * torch.sign(gap_P.detach() * lean_P)
    accuracy = (weight_P * ties_count_half_P).sum() / count
    return loss, {"loss": loss.detach(), "accuracy": accuracy.detach()}


def plackett_luce(
    scores_RK: Tensor, rank_RK: Tensor, weight_R: Tensor, *, count: Tensor | float
) -> tuple[Tensor, LossMetrics]:
    """-Σ w Σ_k log (exp s_k / Σ_{j not above k} exp s_j) / count: whole rankings at once (Plackett 1975; Luce 1959).

    Rows are rankings, `rank` 0 for the best, equal for ties, -1 where a row has fewer answers. Two answers: Bradley-Terry.
    Of a tied group each is chosen from all that are not above it (Breslow 1974); a last tied group says nothing.
    """
    there_RK = rank_RK >= 0
    not_above_RKK = there_RK[:, None, :] & (rank_RK[:, None, :] >= rank_RK[:, :, None])
    above_some_RK = there_RK & (rank_RK < rank_RK.amax(1, keepdim=True))
    others_RKK = torch.where(not_above_RKK, scores_RK[:, None, :], float("-inf"))
    others_RKK = torch.where(above_some_RK[:, :, None], others_RKK, 0.0)  # a row of -inf alone has a gradient of nan
    loss_RK = torch.where(above_some_RK, others_RKK.logsumexp(2) - scores_RK, 0.0)
    loss = (weight_R * loss_RK.sum(1)).sum() / count
    return loss, {"loss": loss.detach()}


def rating(
    scores_N: Tensor, values_N: Tensor, weight_N: Tensor, *, count: Tensor | float
) -> tuple[Tensor, LossMetrics]:
    """Σ w (s - v)² / count: a score that is to be the number that people gave."""
    loss = (weight_N * (scores_N - values_N).square()).sum() / count
    return loss, {"loss": loss.detach()}


def classification(
    logits_N: Tensor, classes_N: Tensor, weight_N: Tensor, *, count: Tensor | float
) -> tuple[Tensor, LossMetrics]:
    """-Σ w [y log σ(z) + (1 - y) log σ(-z)] / count, y in [0, 1]: two classes, such as toxic or not (a y between is unsure)."""
    loss_N = classes_N * F.softplus(-logits_N) + (1 - classes_N) * F.softplus(logits_N)
    loss = (weight_N * loss_N).sum() / count
    return loss, {"loss": loss.detach()}


def score_size(scores_B: Tensor, *, count: Tensor | float) -> Tensor:
    """Σ s² / count: pairs leave a score's level free, and a light pull to zero keeps it from drifting."""
    return scores_B.square().sum() / count


def dpo(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, weight_P: Tensor, *,
    beta: float, smoothing: float = 0.0, count: Tensor | float,
) -> tuple[Tensor, LossMetrics]:  # fmt: skip
    """-Σ w [(1-ε) log σ(βh) + ε log σ(-βh)] / count, eq. 7 of Rafailov 2023 (arxiv.org/abs/2305.18290).

    h = (log π - log π_ref of the chosen answer) - (the same of the rejected one), each the *sum* over the answer's tokens,
    the stop token included. ε > 0 is cDPO (Mitchell 2023): a share ε of the labels is taken to be wrong. Where policy and
    reference are equal the loss is log 2.
    LossMetrics: `accuracy` of the implicit rewards, `margin` = Σ w βh / count, both weighted like the loss.
    """
    gap_P = (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)
    loss_P = (1 - smoothing) * F.softplus(-beta * gap_P) + smoothing * F.softplus(beta * gap_P)
    loss = (weight_P * loss_P).sum() / count
    return loss, {"loss": loss.detach(), **_preferred(gap_P, weight_P, beta, count)}


def ipo(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, weight_P: Tensor, *,
    beta: float, count: Tensor | float,
) -> tuple[Tensor, LossMetrics]:  # fmt: skip
    """Σ w (h - 1/(2β))² / count, eq. 17 of Azar 2023 (arxiv.org/abs/2310.12036), h as in `dpo`.

    It pulls h to a finite 1/(2β), where DPO never has enough. Normalisation: h is of *sums* over the answer's tokens, as in
    the paper. TRL's version divides each sum by the answer's length: give it means instead, and h is nats per token.
    """
    gap_P = (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)
    loss = (weight_P * (gap_P - 1 / (2 * beta)).square()).sum() / count
    return loss, {"loss": loss.detach(), **_preferred(gap_P, weight_P, beta, count)}


def simpo(
    chosen_mean_P: Tensor,
    rejected_mean_P: Tensor,
    weight_P: Tensor,
    *,
    beta: float,
    margin: float,
    count: Tensor | float,
) -> tuple[Tensor, LossMetrics]:
    """-Σ w log σ(β (m_c - m_r) - γ) / count, eq. 6 of Meng 2024 (arxiv.org/abs/2405.14734).

    m is the *mean* log-prob of an answer's tokens, the stop token included; there is no reference. γ is `margin`.
    """
    gap_P = chosen_mean_P - rejected_mean_P
    loss = (weight_P * F.softplus(margin - beta * gap_P)).sum() / count
    return loss, {"loss": loss.detach(), **_preferred(gap_P, weight_P, beta, count)}


def orpo(
    chosen_mean_P: Tensor, rejected_mean_P: Tensor, weight_P: Tensor, *, odds_weight: float, count: Tensor | float
) -> tuple[Tensor, LossMetrics]:
    """Σ w [-m_c - λ log σ(log odds_c - log odds_r)] / count, eq. 6 and 7 of Hong 2024 (arxiv.org/abs/2403.07691): imitating the chosen
    answer, and a penalty on the rejected one; there is no reference.

    m is the *mean* log-prob of an answer's tokens, the stop token included, odds = p/(1 - p) with p = exp m; λ is `odds_weight`.
    LossMetrics: `sft_loss` and `odds_loss`, the two parts before λ; `accuracy`; `margin`, the log of the odds ratio, in nats.
    """
    gap_P = _log_odds(chosen_mean_P) - _log_odds(rejected_mean_P)
    imitation = -(weight_P * chosen_mean_P).sum() / count
    penalty = (weight_P * F.softplus(-gap_P)).sum() / count
    loss = imitation + odds_weight * penalty
    parts = {"loss": loss.detach(), "sft_loss": imitation.detach(), "odds_loss": penalty.detach()}
    return loss, {**parts, **_preferred(gap_P, weight_P, 1.0, count)}


def _log_odds(logp_P: Tensor) -> Tensor:
    """log p/(1 - p) of log p ≤ 0. By expm1, for 1 - exp loses all digits where p is nearly 1; a p that rounds to 1 counts as the
    largest number below it, of which value and gradient are finite."""
    below_P = logp_P.clamp(max=-torch.finfo(logp_P.dtype).eps)
    return below_P - (-torch.expm1(below_P)).log()


def kto(
    logp_N: Tensor,
    reference_logp_N: Tensor,
    wanted_N: Tensor,
    baseline: Tensor | float,
    *,
    beta: float,
    wanted_weight: float = 1.0,
    unwanted_weight: float = 1.0,
    weight_N: Tensor | float = 1.0,
    count: Tensor | float,
) -> tuple[Tensor, LossMetrics]:
    """Σ w [p λ_D σ(z - βh) + (1 - p) λ_U σ(βh - z)] / count, eq. 8 of Ethayarajh 2024 (arxiv.org/abs/2402.01306): no pairs, answers that
    are good or not.

    h = log π - log π_ref of an answer. p is `wanted`: True or 1 for a good one, False or 0 for a bad one, between where it is not sure;
    λ_D and λ_U are `wanted_weight` and `unwanted_weight`. z is β times an estimate of KL(π‖π_ref), at least 0 and without a gradient:
    `kto_baseline`.
    """
    wanted_N = wanted_N.to(logp_N.dtype)
    above_N = beta * (logp_N - reference_logp_N) - baseline
    good_N = wanted_weight * wanted_N * torch.sigmoid(-above_N)
    bad_N = unwanted_weight * (1 - wanted_N) * torch.sigmoid(above_N)
    loss = (weight_N * (good_N + bad_N)).sum() / count
    return loss, {"loss": loss.detach()}


def kto_baseline(mismatched_B: Tensor, reference_mismatched_B: Tensor, *, beta: float) -> Tensor:
    """z of `kto`: β max(0, mean(log π - log π_ref)) over answers paired with *other* prompts (Ethayarajh 2024, §4.1)."""
    return beta * (mismatched_B - reference_mismatched_B).mean().clamp(min=0).detach()


def kto_unwanted_weight(good: float, bad: float, wanted_weight: float) -> float:
    """λ_U of `kto`: the number nearest to 1 for which λ_D n_D : λ_U n_U lies between 1 : 1 and 4 : 3 (Ethayarajh 2024), λ_D being
    `wanted_weight`, n_D and n_U what good and bad answers weigh."""
    even = wanted_weight * good / bad
    return min(max(1.0, 0.75 * even), even)


def rebel(
    logp_P2: Tensor,
    old_logp_P2: Tensor,
    reward_P2: Tensor,
    *,
    eta: float,
    count: Tensor | float,
    weight_P: Tensor | float = 1.0,
) -> tuple[Tensor, LossMetrics]:
    """Σ w [((log π - log π_old)(y) - (log π - log π_old)(y')) / η - (r(y) - r(y'))]² / count: two answers to a prompt, and the
    change of their log-odds is regressed on the difference of their rewards (Gao 2024, eq. 9, arxiv.org/abs/2404.16767).

    log π of whole answers (sums), [P, 2]. Solved exactly, each step multiplies π by exp(η r): it has no clip and no critic. w is 1, or the
    product of both answers' importance weights, where others than π_old answered.
    """
    moved_P2 = logp_P2 - old_logp_P2
    error_P = (moved_P2[:, 0] - moved_P2[:, 1]) / eta - (reward_P2[:, 0] - reward_P2[:, 1])
    loss = (weight_P * error_P.square()).sum() / count
    return loss, {"loss": loss.detach()}


def _preferred(gap_P: Tensor, weight_P: Tensor, beta: float, count: Tensor | float) -> LossMetrics:
    with torch.no_grad():
        ties_count_half_P = 0.5 + 0.5 * gap_P.sign()
        return {
            "accuracy": (weight_P * ties_count_half_P).sum() / count,
            "margin": beta * (weight_P * gap_P).sum() / count,
        }


def grpo(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    adv_B: Tensor,
    weight_B: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    clip_high: float,
    kl_coef: float,
    count: Tensor | float,
    surrogate: Literal["clip", "sequence", "cispo"] = "clip",
) -> tuple[Tensor, LossMetrics]:
    """Σ_i w_i Σ_t [-min(r A_i, clip(r, 1-ε, 1+ε_high) A_i) + β r̄ k3_t] / count (Shao 2024, eq. 3, arxiv.org/abs/2402.03300).

    k3 = exp(-ρ) - 1 + ρ with ρ = log π - log π_ref, differentiated as a loss: on the policy's own tokens its gradient is that of
    the *forward* KL(π_ref‖π), not of KL(π‖π_ref) that PPO's penalty holds. From the second optimiser step on the tokens are
    those of π_old, so each weighs r̄, the ratio r without a gradient; on fresh tokens it is 1, and the loss is Shao's. `weight_B` and
    `count` say how tokens are averaged (`token_weights`); ε_high above ε is DAPO's clip-higher (arxiv.org/abs/2503.14476).

    `weight_B` may be [B, T]: each token's w times its importance weight, where other weights answered (`maths.importance`).

    `surrogate` "sequence" is GSPO (Zheng 2025, eq. 5 and 7, arxiv.org/abs/2507.18071): all tokens of an answer have one ratio, the
    geometric mean of theirs, and are clipped together; its mean over answers is that of weights 1/L. "cispo" (MiniMax 2025, eq. 4 and 5,
    arxiv.org/abs/2506.13585): -min(r, 1+ε_high) A log π with no gradient through the ratio, so no token is left out.
    """
    log_ratio_BT = torch.where(mask_BT, logp_BT - old_logp_BT, 0.0)
    if surrogate == "sequence":
        mean_B1 = log_ratio_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
        policy_BT, clipped_BT = _surrogate(mean_B1.expand_as(log_ratio_BT), adv_B[:, None], clip, clip_high)
    elif surrogate == "cispo":
        ratio_BT = log_ratio_BT.detach().exp()
        clipped_BT = ratio_BT > 1 + clip_high
        policy_BT = -ratio_BT.clamp(max=1 + clip_high) * adv_B[:, None] * torch.where(mask_BT, logp_BT, 0.0)
    else:
        policy_BT, clipped_BT = _surrogate(log_ratio_BT, adv_B[:, None], clip, clip_high)
    weight_B1 = weight_B[:, None] if weight_B.ndim == 1 else weight_B
    k3_BT = log_ratio_BT.detach().exp() * k3(logp_BT, reference_logp_BT, mask_BT)
    policy_loss = torch.where(mask_BT, weight_B1 * policy_BT, 0.0).sum() / count
    kl_loss = torch.where(mask_BT, weight_B1 * k3_BT, 0.0).sum() / count
    with torch.no_grad():
        clipped = torch.where(mask_BT, weight_B1 * clipped_BT, 0.0).sum() / count
    metrics = {"policy_loss": policy_loss.detach(), "kl_loss": kl_loss.detach(), "clip_fraction": clipped}
    return policy_loss + kl_coef * kl_loss, metrics


def rloo(
    logp_B: Tensor, old_logp_B: Tensor, adv_B: Tensor, *, clip: float, count: Tensor | int
) -> tuple[Tensor, LossMetrics]:
    """-Σ min(r A, clip(r, 1-ε, 1+ε) A) / count with r of whole answers: an answer is one action (Ahmadian 2024, eq. 6,
    arxiv.org/abs/2402.14740).

    log π is the *sum* over an answer's tokens. On the policy's own fresh answers r is 1 and this is REINFORCE; the clip
    matters from the second optimiser step on the same answers. LossMetrics as `clipped_policy`'s, of answers in place of tokens.
    """
    whole_B1 = torch.ones_like(logp_B, dtype=torch.bool)[:, None]
    return clipped_policy(logp_B[:, None], old_logp_B[:, None], adv_B[:, None], whole_B1, clip=clip, tokens=count)


def token_weights(lengths_B: Tensor, length_power: float, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(w_B, count) for a mean over the tokens of some rows: w_i = L_i^-p and count = Σ w_i L_i over those rows.

    p = 0 is the mean over all tokens of the step (DAPO: a long answer weighs more), p = 1 the mean over answers of each
    answer's mean (GRPO as published: a long wrong answer's tokens are punished less). The count is in float64: those of several
    parts of a step add up to the step's own.
    """
    weight_B = lengths_B.float() ** -length_power
    return weight_B, (weight_B * lengths_B)[rows].sum(dtype=torch.float64)
