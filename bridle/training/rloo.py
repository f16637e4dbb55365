"""REINFORCE with a leave-one-out baseline: several answers to a prompt, each measured against the mean of the others
(RLOO: Ahmadian 2024, arxiv.org/abs/2402.14740).

Each step: 1. answer each prompt several times  2. score the answers  3. measure each against the others  4. improve the policy
5. share the new weights, log and save.
A whole answer is one action, and there is no critic. Its KL (k1) is part of its reward, so the optimum is π_ref exp(r/β) / Z, as for PPO
and REBEL. A group whose answers all have the same net reward says nothing and is left out of the update; what is counted is those of
equal reward, the KL apart, which teach nothing but the way back to the reference. Where nothing is scored the KL is all of the reward, and
its gradient that of KL(π‖π_ref): on-policy distillation, with the teacher as the reference (docs/distillation.md).
Left out on purpose: whitening of advantages over the step.
Shapes: B answers of a step in groups of K to a prompt, T predictions, M answers of a part of a minibatch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.compute.optimizer import backward
from bridle.compute.steps import Means, Metrics, Steps
from bridle.core.records import Prompt, Reward
from bridle.core.timeline import timed
from bridle.generation import rollout as online
from bridle.maths.advantages import flat_groups, leave_one_out
from bridle.maths.losses import rloo
from bridle.models.policy import Policy
from bridle.recipe.online import RLOOSection


def train(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: RLOOSection,
    session: online.RolloutSession,
) -> Metrics:
    """Train `policy` in place."""
    asking = online.Asking(
        "rloo", prompts, config.prompts_per_step, config.group_size, config.temperature, config.missing_stop_penalty,
        cut=online.reading_cut(config, config.group_size), whole=True,
    )  # fmt: skip
    steps = Steps.of_policy(policy.module, config, config.steps, session)
    for rollout in online.rollouts(steps, policy, reward, asking, session):  # 1. answer each prompt  2. score
        # 3. measure each against the others, the KL in its reward
        with steps.save_on_error(rollout.step):
            reread, kl_B, gaps = online.reread(rollout, policy, reference, config, config.group_size, session.device)
        adv_B = net_advantages(rollout, kl_B, config, steps.kl_factor)
        # 4. improve the policy
        updates = improve_by_answers(policy, steps, reread, adv_B * rollout.importance, config)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        scored = config.scored_by != "nothing"  # else the KL is all that can differ
        flat_G = flat_groups(rollout.reward_B if scored else adv_B, config.group_size)
        compared = {"without_variance": float(flat_G.float().mean())}
        metrics = {**online.rollout_metrics(rollout, kl_B, session), **updates, **gaps, **compared}
        online.end_step(steps, rollout, metrics, config.kl_coef, not flat_G.all(), scored=scored)
    return {"steps": steps.done, **steps.metrics}


@timed("advantages")
def net_advantages(rollout: online.Rollout, kl_B: Tensor, config: RLOOSection, kl_factor: float = 1.0) -> Tensor:
    """Each answer's reward less β (times `kl_factor`) times its KL, against the mean of the same for the others to its prompt, [B]."""
    return leave_one_out(rollout.reward_B - config.kl_coef * kl_factor * kl_B, config.group_size)


@timed("improve")
def improve_by_answers(
    policy: Policy, steps: Steps, rollout: online.Rollout, adv_B: Tensor, config: RLOOSection
) -> Metrics:
    """`epochs` passes over the groups that say something, `minibatches` optimiser steps each: REINFORCE at first, with a clip from the
    second step on the same answers. Ranks share a minibatch by groups."""
    means, device = Means(), steps.session.device
    useful_G = adv_B.view(-1, config.group_size).any(1).nonzero()[:, 0].cpu()
    passes = online.minibatches(
        useful_G, config.group_size, config, steps.session.seed, "grpo-minibatches", rollout.step
    )
    for mini_GK in passes:
        answers = torch.tensor(mini_GK.numel(), dtype=adv_B.dtype, device=device.torch)
        for part in online.read_parts(policy, rollout, mini_GK, config, device):
            # log π of a whole answer is the sum over its tokens
            logp_M, old_logp_M = part.logp_MT.sum(1), part.old_logp_MT.sum(1)
            loss, metrics = rloo(logp_M, old_logp_M, adv_B[part.rows], clip=config.clip, count=answers)
            backward(loss)
            means.add(metrics)
        means.updated(online.scheduled_update(steps, rollout, config, means.updates))
    steps.grad_norm = means.grad_norm
    nothing = dict.fromkeys(("policy_loss", "clip_fraction", "approx_kl"), 0.0)  # where every group is flat
    return {**nothing, **means.result()}
