"""Group relative policy optimisation: many answers to a prompt, the better ones reinforced (GRPO: Shao 2024, DeepSeekMath).

Each step: 1. answer each prompt several times  2. score the answers  3. compare within groups  4. improve the policy
5. share the new weights, log and save.
There is no critic: an answer's advantage is its reward beside those of the same prompt, in standard deviations of the group. A group
whose answers all got the same reward says nothing; it is left out of the update and counted.
Every token is an action, and the KL term is a loss (k3), whose gradient is that of the forward KL(π_ref‖π): see `maths.losses.grpo`.
Left out on purpose: asking on until enough groups differ (DAPO's dynamic sampling).
Shapes: B answers of a step, G groups of K answers, T predictions, M answers of a part of a minibatch.
"""

from collections.abc import Sequence

from torch import Tensor

from bridle.compute.optimizer import backward
from bridle.compute.parallel import all_ranks_sum, my_share
from bridle.compute.steps import Means, Metrics, Steps
from bridle.core.records import Prompt, Reward
from bridle.core.timeline import timed
from bridle.generation import rollout as online
from bridle.maths.advantages import flat_groups, group_relative, normalised_each
from bridle.maths.kl import k1
from bridle.maths.losses import grpo, token_weights
from bridle.models.policy import Policy
from bridle.recipe.online import GRPOSection


def train(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: GRPOSection,
    session: online.RolloutSession,
) -> Metrics:
    """Train `policy` in place."""
    size, temperature = config.group_size, config.temperature
    cut, penalty = online.reading_cut(config, size), config.missing_stop_penalty
    asking = online.Asking("grpo", prompts, config.prompts_per_step, size, temperature, penalty, cut=cut)
    steps = Steps.of_policy(policy.module, config, config.steps, session)
    for rollout in online.rollouts(steps, policy, reward, asking, session):  # 1. answer each prompt  2. score
        # 3. compare within groups
        with steps.save_on_error(rollout.step):
            reference_BT = online.reference_logprobs(rollout, reference, temperature, cut, session.device)
        with timed("advantages"):
            adv_B = advantages(rollout, config)
        # 4. improve the policy
        updates = improve_by_groups(policy, steps, rollout, reference_BT, adv_B, config)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        kl_B = k1(rollout.old_logp_BT, reference_BT, rollout.mask_BT).sum(1)
        flat_G = flat_groups(rollout.reward_B, size)
        compared = {"without_variance": float(flat_G.float().mean())}
        metrics = {**online.rollout_metrics(rollout, kl_B, session), **compared, **updates}
        online.end_step(steps, rollout, metrics, config.kl_coef, bool(adv_B.any()))
    return {"steps": steps.done, **steps.metrics}


def advantages(rollout: online.Rollout, config: GRPOSection) -> Tensor:
    """[B]: of the reward, or of each of its sources by itself, the missing-stop penalty as one more."""
    if config.normalise == "sum" or len(rollout.parts) < 2:
        return group_relative(rollout.reward_B, config.group_size, std_power=config.std_power)
    parts = [*rollout.parts, (1.0, rollout.reward_B - rollout.score_B)]
    return normalised_each(parts, config.group_size, config.std_power)


@timed("improve")
def improve_by_groups(
    policy: Policy, steps: Steps, rollout: online.Rollout, reference_BT: Tensor, adv_B: Tensor, config: GRPOSection
) -> Metrics:
    """`epochs` passes over the groups that say something, `minibatches` optimiser steps each. Each rank takes its share of a
    minibatch's groups, and tokens are counted on all."""
    means, size, lengths_B = Means(), config.group_size, rollout.mask_BT.sum(1)
    useful_G = adv_B.view(-1, size).any(1).nonzero()[:, 0].cpu()
    for mini_GK in online.minibatches(useful_G, size, config, steps.session.seed, "grpo-minibatches", rollout.step):
        weight_B, mine = token_weights(lengths_B, config.length_power, my_share(mini_GK).flatten())
        count = all_ranks_sum(mine).to(adv_B.dtype)
        weight_BT = weight_B[:, None] * rollout.importance
        for part in online.read_parts(policy, rollout, mini_GK, config, steps.session.device):
            rows, here = part.rows, (part.rows, slice(part.logp_MT.shape[1]))
            loss, metrics = grpo(
                part.logp_MT, part.old_logp_MT, reference_BT[here], adv_B[rows], weight_BT[here], rollout.mask_BT[here],
                clip=config.clip, clip_high=config.clip_high, kl_coef=config.kl_coef * steps.kl_factor, count=count,
                surrogate=config.surrogate,
            )  # fmt: skip
            backward(loss)
            means.add(metrics, part)
        means.updated(online.scheduled_update(steps, rollout, config, means.updates))
    steps.grad_norm = means.grad_norm
    return means.result()
