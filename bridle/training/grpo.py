"""Many answers to a prompt, the better ones reinforced: GRPO (Shao 2024, DeepSeekMath) and RLOO (Ahmadian 2024).

Each step: 1. answer each prompt several times  2. score the answers  3. compare within groups  4. improve the policy
5. share the new weights, log and save.
There is no critic: an answer's advantage is its reward beside those of the same prompt. A group whose answers all got the same reward
says nothing; it is left out of the update and counted.
GRPO measures in deviations of the group, weighs tokens, and its KL term is a loss (k3), whose gradient is that of the forward
KL(π_ref‖π): see `maths.losses.grpo`. RLOO measures against the mean of the other answers, takes a whole answer for one action,
and has the KL (k1) in the reward, so its optimum is π_ref exp(r/β) / Z.
Left out on purpose: asking on until enough groups differ (DAPO's dynamic sampling), a decaying rate (a run here is some twenty steps).
Shapes: B answers of a step, T predictions, M answers of a minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.recipe import GRPOSection, RLOOSection
from bridle.core.records import Prompt, Reward
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.maths.advantages import group_relative, leave_one_out
from bridle.maths.kl import k1
from bridle.maths.losses import grpo, rloo, token_weights
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


def whole_groups(config: GRPOSection | RLOOSection) -> int:
    """Groups in one forward pass."""
    return max(1, config.batch_size // config.group_size)


def rows_of(groups_G: Tensor, size: int) -> Tensor:
    return (groups_G[:, None] * size + torch.arange(size)).flatten()


@timed("advantages")
def compare(rollout: Rollout, kl_B: Tensor, config: GRPOSection | RLOOSection) -> Tensor:
    """Each answer's advantage beside the others to its prompt, [B]. RLOO's reward has the KL in it; GRPO's loss does."""
    if isinstance(config, RLOOSection):
        return leave_one_out(rollout.reward_B - config.kl_coef * kl_B, config.group_size)
    return group_relative(rollout.reward_B, config.group_size, std_power=config.std_power)


@timed("improve")
def improve(
    policy: Policy,
    optimizers: Sequence[torch.optim.Optimizer],
    rollout: Rollout,
    reference_BT: Tensor,
    adv_B: Tensor,
    config: GRPOSection | RLOOSection,
    device: Device,
    seed: int,
    step: int,
) -> dict[str, float]:
    """`epochs` passes over the groups that tell something, `minibatches` optimiser steps each. A group stays together:
    its prompt is read once, and by one rank: each takes its share of a minibatch's groups, and tokens are counted on all."""
    useful_G = adv_B.view(-1, config.group_size).abs().amax(1).nonzero()[:, 0].cpu()
    lengths_B = rollout.mask_BT.sum(1)
    sums: dict[str, float] = {"logprob_gap": 0.0}
    updates, norms = 0, 0.0
    for epoch in range(config.epochs):
        order_G = useful_G[shuffled(len(useful_G), seed, "grpo-minibatches", step * config.epochs + epoch)]
        for mini_G in order_G.chunk(config.minibatches) if len(order_G) else []:
            mine_G = my_share(mini_G)
            mine_M = rows_of(mine_G, config.group_size)
            if isinstance(config, RLOOSection):  # a whole answer is one action
                weight_B, count = torch.ones_like(lengths_B), torch.tensor(len(mine_M), device=lengths_B.device)
            else:  # every token is one
                weight_B, count = token_weights(lengths_B, config.length_power, mine_M)
            count, tokens = all_ranks_sum(count).to(adv_B.dtype), all_ranks_sum(lengths_B[mine_M].sum())
            for part in mine_G.split(whole_groups(config)) if len(mine_G) else []:
                rows = rows_of(part, config.group_size)
                micro = rollout.batch.rows(rows.to(device.torch))
                width = micro.ids_BW.shape[1] - 1
                mask_MT, old_MT = rollout.mask_BT[rows, :width], rollout.old_logp_BT[rows, :width]
                with timed("forward"), device.autocast():
                    logp_MT = sequence_logprobs(policy.module, micro, config.temperature)
                if isinstance(config, RLOOSection):
                    loss, stats = rloo(logp_MT.sum(1), old_MT.sum(1), adv_B[rows], clip=config.clip, count=count)
                else:
                    loss, stats = grpo(
                        logp_MT, old_MT, reference_BT[rows, :width], adv_B[rows], weight_B[rows], mask_MT,
                        clip=config.clip, clip_high=config.clip_high, kl_coef=config.kl_coef, count=count,
                    )  # fmt: skip
                with timed("backward"):
                    finite(loss).backward()
                if updates == 0:  # nothing has moved yet: what differs is precision alone
                    gap_MT = torch.where(mask_MT, (logp_MT.detach() - old_MT).abs(), 0.0)
                    sums["logprob_gap"] += float(gap_MT.sum() / tokens)
                for name, value in stats.items():  # already parts of the minibatch's mean
                    sums[name] = sums.get(name, 0.0) + float(value)
            with timed("optimizer"):
                norms += clipped_step([policy.module], optimizers, config.clip_norm)
            updates += 1
    sums = all_ranks_figures(sums)
    first_gap = sums.pop("logprob_gap")
    means = {name: total / max(1, updates) for name, total in sums.items()}
    return means | {"grad_norm": norms / max(1, updates), "logprob_gap": first_gap}


def train(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: GRPOSection | RLOOSection,
    max_new_tokens: int,
    engine: Engine,
    device: Device,
    run: Run,
    seed: int,
    observe: Observe | None = None,
) -> dict[str, float]:
    """Train `policy` in place, by GRPO or by RLOO as `config` is of the one or the other. `observe` looks at each step's
    answers for the log and steers nothing."""
    name = "rloo" if isinstance(config, RLOOSection) else "grpo"
    if not prompts:
        raise NoUsableRows(f"{name.upper()} needs prompts to answer, got none; import or make some")
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
        # 1. answer each prompt several times  2. score the answers
        asked = take_prompts(prompts, step, config.prompts_per_step, seed, f"{name}-prompts")
        with run.keeping(step, partial(save, step)):
            rollout = roll_out(
                policy, engine, reward, asked, sampling, device, derived_seed(seed, f"{name}-rollout", step),
                missing_stop_penalty=config.missing_stop_penalty, group_size=config.group_size,
                max_unscored=run.health.limits.max_unscored,
            )  # fmt: skip
        # 3. compare within groups
        together = whole_groups(config) * config.group_size
        reference_BT = reference_logprobs(rollout, reference, config.temperature, together, device)
        kl_B = k1(rollout.old_logp_BT, reference_BT, rollout.mask_BT).sum(1)
        kl, kl_se = mean_and_se(kl_B.cpu().numpy())
        adv_B = compare(rollout, kl_B, config)
        spread_G = adv_B.view(-1, config.group_size).abs().amax(1)
        # 4. improve the policy
        updates = improve(policy, optimizers, rollout, reference_BT, adv_B, config, device, seed, step)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        figures = {
            "reward": float(rollout.reward_B.mean()),
            "without_variance": float((spread_G == 0).float().mean()),
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
