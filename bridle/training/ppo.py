"""Proximal policy optimisation against a reward, held by a KL penalty to the reference (Schulman 2017; Ziegler 2019; Ouyang 2022).

Each step: 1. answer prompts  2. score the answers  3. estimate advantages  4. improve policy and critic a little  5. share the
new weights with the engine, steer β, log and save.
The critic is a network of its own that begins as the reward model, or a second head on the policy's trunk. The KL penalty is
part of the reward of every token; policy and reference are read alike for it, so that it is exactly 0 where they are equal. The ratio
is to the log-probs of the distribution that was sampled from; where other weights have answered (`rollout.staleness`), to those of the
policy that learns, and each token's advantage is weighed by `maths.importance`.
Rewards, returns and advantages are in the reward's units; the critic predicts in standard deviations of the returns so far.
Left out on purpose: whitening of rewards (it moves the KL penalty's meaning), an entropy bonus (the KL penalty keeps variety).
docs/ppo.md lists every detail with its source.
Shapes: B answers of a step, T predictions (see models/batches.py), M answers of a minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from bridle.compute.device import Device
from bridle.compute.optimizer import backward, optimizers_of
from bridle.compute.parallel import all_ranks_sum, my_share
from bridle.compute.randomness import shuffled
from bridle.compute.sharding import lockstep
from bridle.compute.steps import Means, Metrics, Part, Steps
from bridle.core.errors import NoUsableRows
from bridle.core.records import Prompt, Reward
from bridle.core.timeline import note_tokens, timed
from bridle.generation.rollout import (
    Asking,
    Rollout,
    RolloutSession,
    end_step,
    finite_logprobs,
    rollout_metrics,
    rollouts,
)
from bridle.maths.advantages import gae, place_at_end, whiten
from bridle.maths.kl import KLControl, k1, k3, mean_k2
from bridle.maths.losses import LossMetrics, clipped_policy, clipped_value
from bridle.maths.returns import ReturnScale
from bridle.maths.statistics import mean_and_se
from bridle.models.batches import Batch, Cut, answer_states, micro_batches, sequence_logprobs, spread
from bridle.models.imitation import Example, imitate
from bridle.models.policy import Policy
from bridle.models.scorer import Scorer
from bridle.recipe.online import PPOSection

# Demonstrations in a policy step with `pretrain_coef` (Ouyang 2022, eq. 2, with SFT's data in place of pretraining's).
DEMONSTRATIONS = 16


def train(
    actors: Actors,
    reward: Reward,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Example],
    config: PPOSection,
    session: RolloutSession,
) -> Metrics:
    """Train the policy and the critic in place."""
    policy, own = actors.policy, actors.critics_own
    if bool(config.pretrain_coef) != bool(demonstrations):
        raise NoUsableRows(
            f"pretrain_coef = {config.pretrain_coef:g} weighs demonstrations that are mixed in, got {len(demonstrations)}; give some "
            "with a pretrain_coef above 0, or neither"
        )
    cut = Cut(config.batch_size, config.micro_tokens)
    asking = Asking(
        "ppo", prompts, config.prompts_per_step, 1, config.temperature, config.missing_stop_penalty, cut=cut
    )
    optimizers = optimizers_of(policy.module, config, config.learning_rate)
    optimizers += optimizers_of(own, config, config.critic_learning_rate)
    modules = {"policy": policy.module, "critic": own}
    steps = Steps(session, modules, optimizers, config.steps, config.checkpoint_every, config)
    beta, scale = steps.values.get("beta", config.kl_coef), first_scale(steps, config)
    # β is in units of the reward: what is large or small for it is known from where it began.
    floor, ceiling = min(1e-6, 0.01 * config.kl_coef), max(10.0, 100 * config.kl_coef)
    if config.kl_target:  # a checkpoint of before there was such a floor may hold less
        beta = min(max(beta, floor), ceiling)
    control = KLControl(beta, config.kl_target or None, config.kl_gain, floor, ceiling)
    for rollout in rollouts(steps, policy, reward, asking, session):  # 1. answer prompts  2. score the answers
        # 3. estimate advantages
        beta = control.beta * steps.kl_factor
        with steps.save_on_error(rollout.step):  # of a reference without finite log-probs, say
            estimates = estimate(rollout, actors, beta, config, session.device, scale)
        # 4. improve policy and critic a little
        updates = improve_actors(actors, steps, rollout, estimates, demonstrations, config)
        # 5. share the new weights (a new stamp), steer β, log and save
        policy.step += 1
        answered = rollout_metrics(rollout, estimates.kl_BT.sum(1), session)
        metrics = {
            "proxy": float(rollout.score_B.mean()),
            **answered,
            **estimates.metrics,
            "beta": beta,
            **updates,
        }
        control = control.after(estimates.kl)
        steps.values["beta"] = control.beta
        if scale is not None:
            scale = estimates.scale
            steps.values["returns"] = asdict(scale)
        frozen = rollout.step < config.critic_warmup
        end_step(steps, rollout, metrics, config.kl_coef, frozen=frozen)
    return {"steps": steps.done, **steps.metrics}


@dataclass(frozen=True)
class Actors:
    """The policy that learns, the frozen reference that holds it, the critic that says what to expect."""

    policy: Policy
    reference: Policy
    critic: Scorer

    @property
    def shared_trunk(self) -> bool:
        return self.critic.model is self.policy.module.model

    @property
    def critics_own(self) -> nn.Module:
        """What is the critic's alone: all of it, or the head where its trunk is the policy's."""
        return self.critic.score if self.shared_trunk else self.critic


# ------------------------------------------------------------------------------------------------ 3. estimate advantages


def first_scale(steps: Steps, config: PPOSection) -> ReturnScale | None:
    """The scale of the returns so far; None where the critic predicts in units of the reward: by its setting, or because the run was
    begun when there was no other way, and the critic in its checkpoint does."""
    if config.normalise_returns == "none" or (steps.done and "returns" not in steps.values):
        return None
    return ReturnScale(**steps.values.get("returns", {}))


@dataclass(frozen=True)
class Estimates:
    """Of a step's answers, in units of the reward but for the whitened advantages; `scale` is what the critic predicts in."""

    adv_BT: Tensor
    returns_BT: Tensor
    values_BT: Tensor
    kl_BT: Tensor
    metrics: Metrics
    scale: ReturnScale

    @property
    def kl(self) -> float:
        """An answer's mean KL to the reference, in nats."""
        return mean_and_se(self.kl_BT.sum(1).cpu().numpy())[0]


@timed("advantages")
@torch.no_grad()
def estimate(
    rollout: Rollout, actors: Actors, beta: float, config: PPOSection, device: Device, before: ReturnScale | None = None
) -> Estimates:
    """KL to the reference, the critic's values, advantages and returns. The critic predicts in the scale `before` with this step's own
    returns in it, or, without one, in units of the reward."""
    batch, mask_BT = rollout.batch, rollout.mask_BT
    old_BT, reference_BT, values_BT = (torch.zeros_like(rollout.old_logp_BT) for _ in range(3))
    cut, trunk = Cut(config.batch_size, config.micro_tokens), actors.policy.module.model
    mine = my_share(micro_batches(torch.arange(len(batch)), batch, trunk, cut))
    for part in lockstep(mine, actors.policy.module, actors.critics_own):
        rows = batch.rows(part.to(device.torch))
        width = rows.ids_BW.shape[1] - 1
        with timed("reference"), device.autocast():
            reference_MT = sequence_logprobs(actors.reference.module, rows, config.temperature)
            reference_BT[part, :width] = reference_MT.to(reference_BT)
        with device.autocast():
            old_MT, values_MT = logprobs_and_values(actors, rows, config.temperature)
        old_BT[part, :width], values_BT[part, :width] = old_MT.to(old_BT), values_MT.to(values_BT)
    old_BT, reference_BT, values_BT = map(all_ranks_sum, (old_BT, reference_BT, values_BT))  # each rank has read some
    kl_BT = k1(finite_logprobs(old_BT, "policy"), finite_logprobs(reference_BT), mask_BT)
    rewards_BT = place_at_end(rollout.reward_B, mask_BT) - beta * kl_BT
    # From what was paid alone: no critic has a part in its own scale.
    paid_N = gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma=config.gamma, lam=1.0)[1][mask_BT]
    scale = ReturnScale() if before is None else before.after(paid_N)
    values_BT = torch.where(mask_BT, scale.in_rewards(values_BT), 0.0)
    adv_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam)
    if paid_N.amax() == paid_N.amin():  # every action was paid alike: what is left of advantages is the critic's error
        adv_BT = torch.zeros_like(adv_BT)
    returns_N, errors_N = returns_BT[mask_BT] / scale.deviation, (returns_BT - values_BT)[mask_BT] / scale.deviation
    left_over = errors_N.var(correction=0) / returns_N.var(correction=0).clamp(1e-8)
    metrics = {
        "kl_k3": float(k3(old_BT, reference_BT, mask_BT).sum(1).mean()),
        "value_explained": 1.0 - float(left_over),
    }
    adv_BT = whiten(adv_BT / scale.deviation, mask_BT) * rollout.importance
    return Estimates(adv_BT, returns_BT, values_BT, kl_BT, metrics, scale)


# ----------------------------------------------------------------------------------------------------------- 4. improve


@timed("improve")
def improve_actors(
    actors: Actors,
    steps: Steps,
    rollout: Rollout,
    estimates: Estimates,
    demonstrations: Sequence[Example],
    config: PPOSection,
) -> Metrics:
    """`epochs` passes of `minibatches` optimiser steps each, cut into micro-batches that change nothing but the memory.

    Each rank takes its share of a minibatch's rows; tokens are counted on all ranks. A minibatch that finds the policy further
    than `early_stop_kl` from the one that answered takes no step, and is the last.
    """
    policy, device, means = actors.policy, steps.session.device, Means()
    cut = Cut(config.batch_size, config.micro_tokens)
    for epoch in range(config.epochs):
        number = rollout.step * config.epochs + epoch
        order_B = shuffled(len(rollout.batch), steps.session.seed, "ppo-minibatches", number)
        for index, mini_M in enumerate(order_B.chunk(config.minibatches)):
            update = number * config.minibatches + index
            mine_M = my_share(mini_M)
            tokens, approx_kl = all_ranks_sum(rollout.mask_BT[mine_M].sum()), torch.zeros((), device=device.torch)
            parts = micro_batches(mine_M, rollout.batch, policy.module.model, cut)
            for rows in lockstep(parts, policy.module, actors.critics_own):
                part, values_MT = read_part(actors, rollout, rows, tokens, config.temperature, device)
                loss, metrics = actors_loss(part, values_MT, rollout, estimates, config)
                backward(loss)
                if config.early_stop_kl:
                    mask_MT = rollout.mask_BT[rows, : part.logp_MT.shape[1]]
                    approx_kl += mean_k2(part.logp_MT.detach(), part.old_logp_MT, mask_MT, tokens)
                means.add(metrics, part)
            if config.early_stop_kl and float(all_ranks_sum(approx_kl)) > config.early_stop_kl:
                for optimizer in steps.optimizers:
                    optimizer.zero_grad()  # this minibatch's gradient is not taken
                means.skip()
                steps.grad_norm = means.grad_norm
                return {**means.result(), "updates": means.updates}
            if rollout.step < config.critic_warmup or not estimates.adv_BT.any():
                policy.module.zero_grad()  # without a gradient its optimiser does nothing, not even count
            elif config.pretrain_coef:
                picked = shuffled(len(demonstrations), steps.session.seed, "ppo-demonstrations", update)[
                    :DEMONSTRATIONS
                ]
                chosen, within = [demonstrations[i] for i in picked.tolist()], Cut(tokens=config.micro_tokens)
                imitate(policy, chosen, device, within, weight=config.pretrain_coef)
            means.updated(steps.scheduled_step(update, config.clip_norm, config.epochs * config.minibatches))
    steps.grad_norm = means.grad_norm
    return {**means.result(), **({"updates": means.updates} if config.early_stop_kl else {})}


@timed("forward")
def read_part(
    actors: Actors, rollout: Rollout, rows: Tensor, tokens: Tensor, temperature: float, device: Device
) -> tuple[Part, Tensor]:
    """Some answers in the training pass, and the critic's value before each of their tokens, [M, T]."""
    micro = rollout.batch.rows(rows.to(device.torch))
    with device.autocast():
        logp_MT, values_MT = logprobs_and_values(actors, micro, temperature)
    return Part(rows, logp_MT, rollout.old_logp_BT[rows, : logp_MT.shape[1]], tokens), values_MT


def logprobs_and_values(actors: Actors, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """log π of the answers' tokens and V before each, both [B, T]. A shared trunk is run once."""
    policy, critic = actors.policy, actors.critic
    if not actors.shared_trunk:
        return sequence_logprobs(policy.module, batch, temperature), critic.batch_values(batch)
    states_ND, mask_BT = answer_states(policy.module, batch), batch.mask_BT
    note_tokens(len(states_ND))
    logp_N = policy.module.logprobs(states_ND, batch.ids_BW[:, 1:][mask_BT], temperature)
    return spread(logp_N, mask_BT), spread(critic.of_states(states_ND), mask_BT)


def actors_loss(
    part: Part, values_MT: Tensor, rollout: Rollout, estimates: Estimates, config: PPOSection
) -> tuple[Tensor, LossMetrics]:
    """The policy's clipped loss and `value_coef` times the critic's, which is in the critic's own units."""
    here, tokens = (part.rows, slice(values_MT.shape[1])), part.tokens
    old_MT, returns_MT = (estimates.scale.normalised(x[here]) for x in (estimates.values_BT, estimates.returns_BT))
    mask_MT = rollout.mask_BT[here]
    policy_loss, policy_metrics = clipped_policy(
        part.logp_MT, part.old_logp_MT, estimates.adv_BT[here], mask_MT, clip=config.clip, tokens=tokens
    )
    value_loss, value_metrics = clipped_value(
        values_MT, old_MT, returns_MT, mask_MT, clip=config.value_clip, tokens=tokens
    )
    return policy_loss + config.value_coef * value_loss, {**policy_metrics, **value_metrics}
