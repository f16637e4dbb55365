"""Reinforcement learning by regressing relative rewards: two answers to a prompt, and the change of their log-odds is fitted
to the difference of their rewards (REBEL: Gao 2024, arxiv.org/abs/2404.16767).

Each step: 1. answer each prompt twice  2. score the answers  3. differences of reward  4. improve the policy
5. share the new weights, log and save.
There is no critic, no clip and no advantage: a step solved exactly turns π into π exp(η r) / Z. With β = 0 that is all that holds the
policy: t steps lead towards π_ref exp(t η r) / Z and go on for ever. With β > 0 an answer's KL (k1) is part of its reward, as in
the authors' code for summaries; then the steps come to rest at π_ref exp(r/β) / Z, PPO's and RLOO's optimum.
Left out on purpose: second answers from another policy or from data (the authors' μ), a decaying rate.
Shapes: B answers of a step (two to each of P prompts), T predictions, M answers of a minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.recipe import REBELSection
from bridle.core.records import Prompt, Reward
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.maths.kl import k1
from bridle.maths.losses import rebel
from bridle.maths.statistics import mean_and_se
from bridle.models.batches import sequence_logprobs
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.optimizer import OPTIMIZERS, clipped_step, finite
from bridle.models.parallel import all_ranks_figures, all_ranks_sum, my_share
from bridle.models.policy import Policy
from bridle.models.randomness import derived_seed, shuffled
from bridle.rewards.rollout import (
    Observe,
    Rollout,
    answer_figures,
    observed,
    reference_logprobs,
    roll_out,
    take_prompts,
)

PAIR = 2  # answers to a prompt


@timed("improve")
def improve(
    policy: Policy,
    optimizers: Sequence[torch.optim.Optimizer],
    rollout: Rollout,
    reward_B: Tensor,
    config: REBELSection,
    device: Device,
    seed: int,
    step: int,
) -> dict[str, float]:
    """`epochs` passes over the pairs, `minibatches` optimiser steps each, cut into micro-batches that change nothing.
    Each rank takes its share of a minibatch's pairs."""
    sums: dict[str, float] = {"logprob_gap": 0.0}
    updates, norms = 0, 0.0
    for epoch in range(config.epochs):
        order_P = shuffled(len(rollout.batch) // PAIR, seed, "rebel-minibatches", step * config.epochs + epoch)
        for mini_P in order_P.chunk(config.minibatches):
            mine_P = my_share(mini_P)
            count = all_ranks_sum(torch.tensor(len(mine_P), device=device.torch))
            for part in mine_P.split(max(1, config.batch_size // PAIR)) if len(mine_P) else []:
                rows = (part[:, None] * PAIR + torch.arange(PAIR)).flatten()
                micro = rollout.batch.rows(rows.to(device.torch))
                old_MT = rollout.old_logp_BT[rows, : micro.ids_BW.shape[1] - 1]
                with timed("forward"), device.autocast():
                    logp_MT = sequence_logprobs(policy.module, micro, config.temperature)
                loss, stats = rebel(
                    logp_MT.sum(1).view(-1, PAIR), old_MT.sum(1).view(-1, PAIR), reward_B[rows].view(-1, PAIR),
                    eta=config.eta, count=count,
                )  # fmt: skip
                with timed("backward"):
                    finite(loss).backward()
                if updates == 0:  # nothing has moved yet: what differs is precision alone
                    tokens = rollout.mask_BT.view(-1, PAIR, rollout.mask_BT.shape[1])[mini_P].sum()
                    sums["logprob_gap"] += float(
                        (logp_MT.detach() - old_MT).abs().sum() / tokens
                    )  # both are 0 off the mask
                for name, value in stats.items():  # already parts of the minibatch's mean
                    sums[name] = sums.get(name, 0.0) + float(value)
            with timed("optimizer"):
                norms += clipped_step([policy.module], optimizers, config.clip_norm)
            updates += 1
    sums = all_ranks_figures(sums)
    first_gap = sums.pop("logprob_gap")
    means = {name: total / updates for name, total in sums.items()}
    return means | {"grad_norm": norms / updates, "logprob_gap": first_gap}


def train(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: REBELSection,
    max_new_tokens: int,
    engine: Engine,
    device: Device,
    run: Run,
    seed: int,
    observe: Observe | None = None,
) -> dict[str, float]:
    """Train `policy` in place. `observe` looks at each step's answers for the log and steers nothing."""
    if not prompts:
        raise NoUsableRows("REBEL needs prompts to answer, got none; import or make some")
    sampling = Sampling(max_new_tokens, config.temperature)
    optimizers = OPTIMIZERS[config.optimizer](policy.module, config.learning_rate)
    state = TrainingState({"policy": policy.module}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    policy.step += done
    run.rewind(done)
    figures: dict[str, float] = values.get("figures", {})  # a run with no step left returns those of its last

    def save(done: int) -> None:
        merit = figures["reward"] - config.kl_coef * figures["kl"]
        save_checkpoint(run.checkpoints, done, state, {"figures": figures}, run.key, keep=run.keep, merit=merit)

    for step in range(done, config.steps):
        with timed("pack"):
            engine.load(policy)
        # 1. answer each prompt twice  2. score the answers
        asked = take_prompts(prompts, step, config.prompts_per_step, seed, "rebel-prompts")
        with run.keeping(step, partial(save, step)):
            rollout = roll_out(
                policy, engine, reward, asked, sampling, device, derived_seed(seed, "rebel-rollout", step),
                missing_stop_penalty=config.missing_stop_penalty, group_size=PAIR,
                max_unscored=run.health.limits.max_unscored,
            )  # fmt: skip
        # 3. differences of reward, the KL in it
        reference_BT = reference_logprobs(rollout, reference, config.temperature, config.batch_size, device)
        kl_B = k1(rollout.old_logp_BT, reference_BT, rollout.mask_BT).sum(1)
        reward_B = rollout.reward_B - config.kl_coef * kl_B
        gap_P = reward_B.view(-1, PAIR).diff(dim=1)
        # 4. improve the policy
        updates = improve(policy, optimizers, rollout, reward_B, config, device, seed, step)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        kl, kl_se = mean_and_se(kl_B.cpu().numpy())
        figures = {
            "reward": float(rollout.reward_B.mean()),
            "reward_gap": float(gap_P.abs().mean()),
            "without_variance": float((gap_P == 0).float().mean()),
            "kl": kl,
            "kl_se": kl_se,
            "entropy": -float(rollout.old_logp_BT[rollout.mask_BT].mean()),  # nats a token, from the sampled ones
            **updates,
            **answer_figures(rollout),
            **observed(observe, rollout),
        }
        run.log(step, config.steps, figures)
        if run.due(step + 1, config.checkpoint_every, config.steps):
            save(step + 1)
            run.saved(step + 1, config.steps)
    return {"steps": config.steps, **figures}
