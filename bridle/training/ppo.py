"""Proximal policy optimisation against a reward, held by a KL penalty to the reference (Schulman 2017; Ziegler 2019; Ouyang 2022).

Each step: 1. answer prompts  2. score the answers  3. estimate advantages  4. improve policy and critic a little  5. share the
new weights with the engine, steer β, log and save.
The critic is a network of its own that begins as the reward model, or a second head on the policy's trunk. The KL penalty is
part of the reward of every token and uses the log-probs of the distribution that was sampled from; so does the first ratio.
Left out on purpose: whitening of rewards (it moves the KL penalty's meaning), an entropy bonus (the KL penalty keeps variety),
a decaying learning rate (a run here is a few dozen steps). docs/ppo.md lists every detail with its source.
Shapes: B answers of a step, T predictions (see models/batches.py), M answers of a minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bridle.core.errors import NoUsableRows
from bridle.core.recipe import PPOSection
from bridle.core.records import Prompt, Reward
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.maths.advantages import gae, place_at_end, whiten
from bridle.maths.kl import KLControl, k1, k3
from bridle.maths.losses import clipped_policy, clipped_value
from bridle.maths.statistics import mean_and_se
from bridle.models.batches import Batch, answer_states, micro_batches, sequence_logprobs, spread
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.imitation import imitate
from bridle.models.optimizer import OPTIMIZERS, clipped_step, finite
from bridle.models.parallel import all_ranks_figures, all_ranks_sum, my_share
from bridle.models.policy import Policy
from bridle.models.randomness import derived_seed, shuffled
from bridle.models.scorer import Scorer
from bridle.rewards.rollout import Observe, Rollout, answer_figures, observed, roll_out, take_prompts

# Demonstrations in a policy step with `pretrain_coef` (Ouyang 2022, eq. 2, with SFT's data in place of pretraining's).
DEMONSTRATIONS = 16


def own_part(policy: Policy, critic: Scorer) -> nn.Module:
    """What is the critic's alone: all of it, or the head where its trunk is the policy's."""
    return critic.score if critic.model is policy.module.model else critic


def logprobs_and_values(policy: Policy, critic: Scorer, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """log π of the answers' tokens and V before each, both [B, T]. A shared trunk is run once."""
    if critic.model is not policy.module.model:
        return sequence_logprobs(policy.module, batch, temperature), critic.batch_values(batch)
    states_ND, mask_BT = answer_states(policy.module.model, batch), batch.mask_BT
    logp_N = policy.module.logprobs(states_ND, batch.ids_BW[:, 1:][mask_BT], temperature)
    return spread(logp_N, mask_BT), spread(critic.of_states(states_ND), mask_BT)


@dataclass(frozen=True)
class Estimates:
    adv_BT: Tensor
    returns_BT: Tensor
    values_BT: Tensor
    kl_BT: Tensor
    figures: dict[str, float]


@timed("advantages")
@torch.no_grad()
def estimate(
    rollout: Rollout, reference: Policy, critic: Scorer, beta: float, config: PPOSection, device: Device
) -> Estimates:
    """KL to the reference, the critic's values, advantages and returns."""
    batch, mask_BT = rollout.batch, rollout.mask_BT
    reference_BT, values_BT = torch.zeros_like(rollout.old_logp_BT), torch.zeros_like(rollout.old_logp_BT)
    for part in micro_batches(torch.arange(len(batch)), batch.lengths_B, config.batch_size):
        rows = batch.rows(part.to(device.torch))
        width = rows.ids_BW.shape[1] - 1
        with device.autocast():
            reference_BT[part, :width] = sequence_logprobs(reference.module, rows, config.temperature).to(reference_BT)
            values_BT[part, :width] = critic.batch_values(rows).to(values_BT)
    values_BT = torch.where(mask_BT, values_BT, 0.0)
    kl_BT = k1(rollout.old_logp_BT, reference_BT, mask_BT)
    rewards_BT = place_at_end(rollout.reward_B, mask_BT) - beta * kl_BT
    adv_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam)
    left_over = (returns_BT - values_BT)[mask_BT].var(correction=0) / returns_BT[mask_BT].var(correction=0).clamp(1e-8)
    kl, kl_se = mean_and_se(kl_BT.sum(1).cpu().numpy())
    figures = {
        "proxy": float(rollout.score_B.mean()),
        "reward": float(rollout.reward_B.mean()),
        "kl": kl,
        "kl_se": kl_se,
        "kl_k3": float(k3(rollout.old_logp_BT, reference_BT, mask_BT).sum(1).mean()),
        "entropy": -float(rollout.old_logp_BT[mask_BT].mean()),  # nats a token, from the sampled ones
        "value_explained": 1.0 - float(left_over),
    }
    return Estimates(whiten(adv_BT, mask_BT), returns_BT, values_BT, kl_BT, figures)


@timed("improve")
def improve(
    policy: Policy,
    critic: Scorer,
    optimizers: Sequence[torch.optim.Optimizer],
    rollout: Rollout,
    estimates: Estimates,
    demonstrations: Sequence[tuple[list[int], list[int]]],
    config: PPOSection,
    device: Device,
    seed: int,
    step: int,
) -> dict[str, float]:
    """`epochs` passes of `minibatches` optimiser steps each, cut into micro-batches that change nothing but the memory.

    Each rank takes its share of a minibatch's rows; tokens are counted on all ranks. A minibatch that finds the policy further
    than `early_stop_kl` from the one that answered takes no step, and is the last.
    """
    sums: dict[str, float] = {"logprob_gap": 0.0}
    updates, read, norms = 0, 0, 0.0
    for epoch in range(config.epochs):
        number = step * config.epochs + epoch
        for index, mini_M in enumerate(
            shuffled(len(rollout.batch), seed, "ppo-minibatches", number).chunk(config.minibatches)
        ):
            mine_M = my_share(mini_M)
            tokens, approx_kl = all_ranks_sum(rollout.mask_BT[mine_M].sum()), torch.zeros((), device=device.torch)
            for rows in micro_batches(mine_M, rollout.batch.lengths_B, config.batch_size):
                micro = rollout.batch.rows(rows.to(device.torch))
                width = micro.ids_BW.shape[1] - 1
                mask_MT = rollout.mask_BT[rows, :width]
                old_MT = rollout.old_logp_BT[rows, :width]
                with timed("forward"), device.autocast():
                    logp_MT, values_MT = logprobs_and_values(policy, critic, micro, config.temperature)
                policy_loss, policy_stats = clipped_policy(
                    logp_MT, old_MT, estimates.adv_BT[rows, :width], mask_MT, clip=config.clip, tokens=tokens
                )
                value_loss, value_stats = clipped_value(
                    values_MT, estimates.values_BT[rows, :width], estimates.returns_BT[rows, :width], mask_MT,
                    clip=config.value_clip, tokens=tokens,
                )  # fmt: skip
                with timed("backward"):
                    finite(policy_loss + config.value_coef * value_loss).backward()
                if epoch == 0 and index == 0:  # nothing has moved yet: what differs is precision alone
                    gap = torch.where(mask_MT, (logp_MT.detach() - old_MT).abs(), 0.0).sum() / tokens
                    sums["logprob_gap"] += float(gap)
                approx_kl += policy_stats["approx_kl"]
                for name, value in {**policy_stats, **value_stats}.items():  # already parts of the minibatch's mean
                    sums[name] = sums.get(name, 0.0) + float(value)
            read += 1
            if config.early_stop_kl and float(all_ranks_sum(approx_kl)) > config.early_stop_kl:
                for optimizer in optimizers:
                    optimizer.zero_grad()  # this minibatch's gradient is not taken
                return means(sums, norms, updates, read) | {"updates": updates}
            if step < config.critic_warmup:
                policy.module.zero_grad()  # without a gradient its optimiser does nothing, not even count
            elif config.pretrain_coef and demonstrations:
                update = number * config.minibatches + index
                picked = shuffled(len(demonstrations), seed, "ppo-demonstrations", update)[:DEMONSTRATIONS].tolist()
                imitate(policy, [demonstrations[i] for i in picked], device, weight=config.pretrain_coef)
            with timed("optimizer"):
                norms += clipped_step([policy.module, own_part(policy, critic)], optimizers, config.clip_norm)
            updates += 1
    told = {"updates": updates} if config.early_stop_kl else {}
    return means(sums, norms, updates, read) | told


def means(sums: Mapping[str, float], norms: float, updates: int, read: int) -> dict[str, float]:
    """Over the minibatches that were read, by all ranks; the gradient's norm over those that took a step, the gap of the first."""
    whole = all_ranks_figures(sums)
    gap = whole.pop("logprob_gap")
    norm = {"grad_norm": norms / updates} if updates else {}
    return {name: total / read for name, total in whole.items()} | norm | {"logprob_gap": gap}


def train(
    policy: Policy,
    reference: Policy,
    critic: Scorer,
    reward: Reward,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[tuple[list[int], list[int]]],
    config: PPOSection,
    max_new_tokens: int,
    engine: Engine,
    device: Device,
    run: Run,
    seed: int,
    observe: Observe | None = None,
) -> dict[str, float]:
    """Train `policy` and `critic` in place. `observe` looks at each step's answers for the log and steers nothing."""
    if not prompts:
        raise NoUsableRows("PPO needs prompts to answer, got none; import some or sample them")
    sampling = Sampling(max_new_tokens, config.temperature)
    optimizers = OPTIMIZERS[config.optimizer](policy.module, config.learning_rate)
    optimizers += OPTIMIZERS[config.optimizer](own_part(policy, critic), config.critic_learning_rate)
    control = KLControl(config.kl_coef, config.kl_target or None, config.kl_gain)
    state = TrainingState({"policy": policy.module, "critic": own_part(policy, critic)}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    control = KLControl(values.get("beta", control.beta), control.target, control.gain)
    policy.step += done
    run.rewind(done)
    figures: dict[str, float] = values.get("figures", {})  # a run with no step left returns those of its last

    def save(done: int) -> None:
        values, merit = {"beta": control.beta, "figures": figures}, figures["reward"] - config.kl_coef * figures["kl"]
        save_checkpoint(run.checkpoints, done, state, values, run.key, keep=run.keep, merit=merit)

    for step in range(done, config.steps):
        with timed("pack"):
            engine.load(policy)
        # 1. answer prompts  2. score the answers
        asked = take_prompts(prompts, step, config.prompts_per_step, seed, "ppo-prompts")
        with run.keeping(step, partial(save, step)):
            rollout = roll_out(
                policy, engine, reward, asked, sampling, device, derived_seed(seed, "ppo-rollout", step),
                missing_stop_penalty=config.missing_stop_penalty, max_unscored=run.health.limits.max_unscored,
            )  # fmt: skip
        # 3. estimate advantages
        estimates = estimate(rollout, reference, critic, control.beta, config, device)
        # 4. improve policy and critic a little
        updates = improve(policy, critic, optimizers, rollout, estimates, demonstrations, config, device, seed, step)
        # 5. share the new weights (a new stamp), steer β, log and save
        policy.step += 1
        figures = {
            **estimates.figures,
            **(
                {"warming": 1.0} if step < config.critic_warmup else {}
            ),  # a policy without a gradient is none the worse
            "beta": control.beta,
            **updates,
            **answer_figures(rollout),
            **observed(observe, rollout),
        }
        control = control.after(estimates.figures["kl"])
        run.log(step, config.steps, figures)
        if run.due(step + 1, config.checkpoint_every, config.steps):
            save(step + 1)
            run.saved(step + 1, config.steps)
    return {"steps": config.steps, **figures}
