"""What learners write before they write it right: for each lesson the functions, and a piece of the sentence that helps with each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ------------------------------------------------------------------------------------------------- 1: next-token loss


def not_shifted(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV, ids_T)


def shifted_backwards(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV[1:], ids_T[:-1])


def summed(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="sum")


def log_prob_itself(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return -F.cross_entropy(logits_TV[:-1], ids_T[1:])


def raw_logits(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return -logits_TV[:-1].gather(1, ids_T[1:, None]).mean()


def divided_by_all(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="sum") / len(ids_T)


def in_bits(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV[:-1], ids_T[1:]) / torch.log(torch.tensor(2.0))


def a_float(logits_TV: Tensor, ids_T: Tensor) -> float:
    return float(F.cross_entropy(logits_TV[:-1], ids_T[1:]))


def one_for_each_token(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="none")


def no_return(logits_TV: Tensor, ids_T: Tensor) -> None:
    F.cross_entropy(logits_TV[:-1], ids_T[1:])


# ------------------------------------------------------------------------------------------------- 2: which tokens count


def from_to(logp_BT: Tensor, first_B: Tensor, end_B: Tensor) -> Tensor:
    column_T = torch.arange(logp_BT.shape[1])
    return (column_T >= first_B[:, None]) & (column_T < end_B[:, None])


def mean_where(logp_BT: Tensor, counts_BT: Tensor) -> Tensor:
    return -torch.where(counts_BT, logp_BT, 0.0).sum() / counts_BT.sum()


def one_too_late(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return mean_where(logp_BT, from_to(logp_BT, prompt_B, prompt_B + answer_B))


def without_the_first(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return mean_where(logp_BT, from_to(logp_BT, prompt_B, prompt_B + answer_B - 1))


def without_the_stop(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return mean_where(logp_BT, from_to(logp_BT, prompt_B - 1, prompt_B + answer_B - 2))


def the_prompt_too(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return mean_where(logp_BT, from_to(logp_BT, 0 * prompt_B, prompt_B + answer_B - 1))


def the_padding_too(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return mean_where(logp_BT, from_to(logp_BT, prompt_B - 1, prompt_B + 99))


def likelihood(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return -mean_where(logp_BT, from_to(logp_BT, prompt_B - 1, prompt_B + answer_B - 1))


def mean_of_means(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    counts_BT = from_to(logp_BT, prompt_B - 1, prompt_B + answer_B - 1)
    return -(torch.where(counts_BT, logp_BT, 0.0).sum(1) / answer_B).mean()


def divided_by_columns(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return -torch.where(from_to(logp_BT, prompt_B - 1, prompt_B + answer_B - 1), logp_BT, 0.0).mean()


def detached(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    return mean_where(logp_BT.detach(), from_to(logp_BT, prompt_B - 1, prompt_B + answer_B - 1))


# ------------------------------------------------------------------------------------------------- 3: a reward model


def gaps(scores_RK: Tensor) -> Tensor:
    better, worse = torch.triu_indices(scores_RK.shape[1], scores_RK.shape[1], offset=1)
    return scores_RK[:, better] - scores_RK[:, worse]


def worse_less_better(scores_RK: Tensor) -> Tensor:
    return -F.logsigmoid(-gaps(scores_RK)).mean(1)


def without_logarithm(scores_RK: Tensor) -> Tensor:
    return -gaps(scores_RK).sigmoid().mean(1)


def summed_over_pairs(scores_RK: Tensor) -> Tensor:
    return -F.logsigmoid(gaps(scores_RK)).sum(1)


def neighbours(scores_RK: Tensor) -> Tensor:
    return -F.logsigmoid(scores_RK[:, :-1] - scores_RK[:, 1:]).mean(1)


def logarithm_of_sigmoid(scores_RK: Tensor) -> Tensor:
    return -gaps(scores_RK).sigmoid().log().mean(1)


def one_for_the_batch(scores_RK: Tensor) -> Tensor:
    return -F.logsigmoid(gaps(scores_RK)).mean()


# ------------------------------------------------------------------------------------------------- 4: policy gradient


def leave_one_out(reward_NK: Tensor) -> Tensor:
    K = reward_NK.shape[1]
    return (reward_NK - reward_NK.mean(1, keepdim=True)) * K / (K - 1)


def uphill(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    return (leave_one_out(reward_NK) * logp_NK).mean(1)


def own_reward_in_the_baseline(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    return -((reward_NK - reward_NK.mean(1, keepdim=True)) * logp_NK).mean(1)


def no_baseline(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    return -(reward_NK * logp_NK).mean(1)


def best_as_baseline(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    return -((reward_NK - reward_NK.amax(1, keepdim=True)) * logp_NK).mean(1)


def divided_by_deviation(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    return -(leave_one_out(reward_NK) / (reward_NK.std(1, keepdim=True) + 1e-4) * logp_NK).mean(1)


def sum_over_group(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    return -(leave_one_out(reward_NK) * logp_NK).sum(1)


# ------------------------------------------------------------------------------------------------- 5: PPO


def to_come(reward_BT: Tensor) -> Tensor:
    return reward_BT.flip(1).cumsum(1).flip(1)


def surrogate(ratio_BT: Tensor, advantage_BT: Tensor, clip: float) -> Tensor:
    return -torch.minimum(ratio_BT * advantage_BT, ratio_BT.clamp(1 - clip, 1 + clip) * advantage_BT).sum(1)


def advantages(old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float) -> Tensor:
    return to_come(score - beta * (old - reference)) - value


def penalty_turned_round(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    return surrogate((logp - old).exp(), advantages(reference, old, score, value, beta), clip)


def no_penalty(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    return surrogate((logp - old).exp(), advantages(old, old, score, value, beta), clip)


def penalty_with_gradient(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    return surrogate((logp - old).exp(), advantages(logp, reference, score, value, beta), clip)


def maximum(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    ratio, advantage = (logp - old).exp(), advantages(old, reference, score, value, beta)
    return -torch.maximum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum(1)


def clipped_alone(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    advantage = advantages(old, reference, score, value, beta)
    return -((logp - old).exp().clamp(1 - clip, 1 + clip) * advantage).sum(1)


def not_clipped(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    return surrogate((logp - old).exp(), advantages(old, reference, score, value, beta), 100.0)


def objective(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    return -surrogate((logp - old).exp(), advantages(old, reference, score, value, beta), clip)


def last_token_alone(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    return surrogate((logp - old).exp(), score - beta * (old - reference) - value, clip)


def ratio_to_the_reference(
    logp: Tensor, old: Tensor, reference: Tensor, score: Tensor, value: Tensor, beta: float, clip: float
) -> Tensor:
    return surrogate((logp - reference).exp(), advantages(old, reference, score, value, beta), clip)


# ------------------------------------------------------------------------------------------------- 6: DPO


def rejected_preferred(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    return -F.logsigmoid(-beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def no_reference(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * (chosen - rejected))


def references_swapped(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    return -F.logsigmoid(beta * ((chosen - ref_rejected) - (rejected - ref_chosen)))


def divided_by_beta(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(((chosen - ref_chosen) - (rejected - ref_rejected)) / beta)


def no_beta(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid((chosen - ref_chosen) - (rejected - ref_rejected))


def beta_outside(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    same = F.logsigmoid(torch.zeros(()))  # log 2 at the start, and the slope that it should have
    return -beta * F.logsigmoid((chosen - ref_chosen) - (rejected - ref_rejected)) - (1 - beta) * same


# ------------------------------------------------------------------------------------------------- 7: GRPO


def mean_of_the_batch(reward_GK: Tensor) -> Tensor:
    return (reward_GK - reward_GK.mean()) / (reward_GK.std() + 1e-4)


def nothing_added_to_std(reward_GK: Tensor) -> Tensor:
    return (reward_GK - reward_GK.mean(1, keepdim=True)) / reward_GK.std(1, keepdim=True)


def not_divided(reward_GK: Tensor) -> Tensor:
    return reward_GK - reward_GK.mean(1, keepdim=True)


def not_centred(reward_GK: Tensor) -> Tensor:
    return reward_GK / (reward_GK.std(1, keepdim=True) + 1e-4)


def mean_less_reward(reward_GK: Tensor) -> Tensor:
    return (reward_GK.mean(1, keepdim=True) - reward_GK) / (reward_GK.std(1, keepdim=True) + 1e-4)


def by_variance(reward_GK: Tensor) -> Tensor:
    return (reward_GK - reward_GK.mean(1, keepdim=True)) / (reward_GK.var(1, keepdim=True) + 1e-4)


# ------------------------------------------------------------------------------------------------- 8: best of n


def worst_of_n(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    order_A = score_A.argsort(descending=True)
    up_to_A = chance_A[order_A].cumsum(0)
    won_A = up_to_A**n - (up_to_A - chance_A[order_A]) ** n
    return torch.zeros_like(chance_A).scatter(0, order_A, won_A)


def left_in_order(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    up_to_A = chance_A[score_A.argsort()].cumsum(0)
    return up_to_A**n - (up_to_A - chance_A[score_A.argsort()]) ** n


def sharpened(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    return chance_A**n / (chance_A**n).sum()


def nothing_taken_off(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    order_A = score_A.argsort()
    return torch.zeros_like(chance_A).scatter(0, order_A, chance_A[order_A].cumsum(0) ** n)


def n_times_too_sure(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    """By one draw more than it was asked for, but for one."""
    order_A = score_A.argsort()
    up_to_A = chance_A[order_A].cumsum(0)
    power = n + (n > 1)
    return torch.zeros_like(chance_A).scatter(0, order_A, up_to_A**power - (up_to_A - chance_A[order_A]) ** power)


WRONG = {
    1: {
        not_shifted: "Row t speaks of token t + 1: shift one",
        shifted_backwards: "from the second on",
        summed: "take the mean, not the sum",
        log_prob_itself: "Is the sign right?",
        raw_logits: "log_softmax",
        divided_by_all: "divide by T − 1",
        in_bits: "Is the logarithm the natural one?",
        a_float: "returned a float",
        one_for_each_token: "shape [4], where [] is needed",
        no_return: "is its `return` missing?",
    },
    2: {
        one_too_late: "one column too late",
        without_the_first: "The first token of an answer does not count",
        without_the_stop: "never learn to stop",
        the_prompt_too: "Tokens of the prompt count",
        the_padding_too: "Padding counts",
        likelihood: "Is the sign right?",
        mean_of_means: "a mean of the rows' means",
        divided_by_columns: "divide by the number of tokens that count",
        detached: "nothing would be learnt",
    },
    3: {
        worse_less_better: "points away from the preferred answer",
        without_logarithm: "take the logarithm",
        summed_over_pairs: "not the sum",
        neighbours: "Only neighbours are compared",
        logarithm_of_sigmoid: "logsigmoid",
        one_for_the_batch: "shape [], where [1] is needed",
    },
    4: {
        uphill: "is the sign right?",
        own_reward_in_the_baseline: "Take the mean of the others",
        no_baseline: "its variance is",
        best_as_baseline: "the baseline is biased",
        divided_by_deviation: "the baseline is biased",
        sum_over_group: "2 times too long",
    },
    5: {
        penalty_turned_round: "Your penalty rewards leaving the reference",
        no_penalty: "β changes nothing",
        penalty_with_gradient: "not logp_BT, which carries a gradient",
        maximum: "min, not max",
        clipped_alone: "the clipped term alone forgets them",
        not_clipped: "Nothing is clipped",
        objective: "is the sign right?",
        last_token_alone: "Only the last token learns",
        ratio_to_the_reference: "Is the ratio that to old_BT",
    },
    6: {
        rejected_preferred: "points away from the preferred answer",
        no_reference: "own reference subtracted",
        references_swapped: "own reference subtracted",
        divided_by_beta: "You divide by β",
        no_beta: "β changes nothing",
        beta_outside: "the loss should be −log σ(.9)",
    },
    7: {
        mean_of_the_batch: "within each row",
        nothing_added_to_std: "that is 0/0",
        not_divided: "Dr. GRPO",
        not_centred: "subtract the group's mean",
        mean_less_reward: "is it reward less mean",
        by_variance: "other advantages: divide by the group's standard deviation",
    },
    8: {
        worst_of_n: "with the lowest score",
        left_in_order: "not sort them back",
        sharpened: "it is not the most likely answer that wins",
        nothing_taken_off: "is F(<s) taken off",
        n_times_too_sure: "Trying all 36 ways",
    },
}
