"""Reinforcement learning by regressing relative rewards: two answers to a prompt, and the change of their log-odds is fitted
to the difference of their rewards (REBEL: Gao 2024, arxiv.org/abs/2404.16767).

Each step: 1. answer each prompt twice  2. score the answers  3. differences of reward  4. improve the policy
5. share the new weights, log and save.
There is no critic, no clip and no advantage: a step solved exactly turns π into π exp(η r) / Z. With β = 0 that is all that holds the
policy: t steps lead towards π_ref exp(t η r) / Z and go on for ever. With β > 0 an answer's KL (k1) is part of its reward, as in
the authors' code for summaries; then the steps come to rest at π_ref exp(r/β) / Z, PPO's and RLOO's optimum. Where no pair's net rewards
differ the policy is the solution, and no step is taken.
Left out on purpose: second answers from another policy or from data (the authors' μ).
Shapes: B answers of a step (two to each of P prompts), T predictions, M answers of a part of a minibatch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.compute.optimizer import backward
from bridle.compute.steps import Means, Metrics, Steps
from bridle.core.records import Prompt, Reward
from bridle.core.timeline import timed
from bridle.generation import rollout as online
from bridle.maths.advantages import flat_groups
from bridle.maths.losses import rebel
from bridle.models.policy import Policy
from bridle.recipe.online import REBELSection

PAIR = 2  # answers to a prompt


def train(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: REBELSection,
    session: online.RolloutSession,
) -> Metrics:
    """Train `policy` in place."""
    asking = online.Asking(
        "rebel", prompts, config.prompts_per_step, PAIR, config.temperature, config.missing_stop_penalty,
        cut=online.reading_cut(config, PAIR), whole=True,
    )  # fmt: skip
    steps = Steps.of_policy(policy.module, config, config.steps, session)
    for rollout in online.rollouts(steps, policy, reward, asking, session):  # 1. answer each prompt twice  2. score
        # 3. differences of reward, the KL in it
        with steps.save_on_error(rollout.step):
            reread, kl_B, gaps = online.reread(rollout, policy, reference, config, PAIR, session.device)
        reward_B = rollout.reward_B - config.kl_coef * steps.kl_factor * kl_B
        gap_P, flat_P = reward_B.view(-1, PAIR).diff(dim=1), flat_groups(rollout.reward_B, PAIR)
        # 4. improve the policy
        updates = improve_by_pairs(policy, steps, reread, reward_B, config)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        compared = {"reward_gap": float(gap_P.abs().mean()), "without_variance": float(flat_P.float().mean())}
        metrics = {**online.rollout_metrics(rollout, kl_B, session), **compared, **updates, **gaps}
        online.end_step(steps, rollout, metrics, config.kl_coef, not flat_P.all())
    return {"steps": steps.done, **steps.metrics}


@timed("improve")
def improve_by_pairs(
    policy: Policy, steps: Steps, rollout: online.Rollout, reward_B: Tensor, config: REBELSection
) -> Metrics:
    """`epochs` passes over the pairs, `minibatches` optimiser steps each, cut into parts that change nothing.
    Each rank takes its share of a minibatch's pairs. A pair of equal net rewards counts: it is to keep its log-odds."""
    means, flat_P = Means(), flat_groups(reward_B, PAIR).cpu()
    pairs_P, weight_B = torch.arange(len(flat_P)), torch.ones_like(reward_B) * rollout.importance
    for mini_P2 in online.minibatches(pairs_P, PAIR, config, steps.session.seed, "rebel-minibatches", rollout.step):
        if not means.updates and flat_P[mini_P2[:, 0] // PAIR].all():
            continue  # nothing has moved, so there is no error but the rounding of another cut into batches
        count = torch.tensor(len(mini_P2), device=steps.session.device.torch)
        for part in online.read_parts(policy, rollout, mini_P2, config, steps.session.device, together=True):
            logp_P2, old_logp_P2 = part.logp_MT.sum(1).view(-1, PAIR), part.old_logp_MT.sum(1).view(-1, PAIR)
            reward_P2, weight_P = reward_B[part.rows].view(-1, PAIR), weight_B[part.rows].view(-1, PAIR).prod(1)
            loss, metrics = rebel(logp_P2, old_logp_P2, reward_P2, eta=config.eta, count=count, weight_P=weight_P)
            backward(loss)
            means.add(metrics)
        means.updated(online.scheduled_update(steps, rollout, config, means.updates))
    steps.grad_norm = means.grad_norm
    return {"loss": 0.0, **means.result()}
