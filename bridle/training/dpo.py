"""Direct preference optimisation: from comparisons to a policy with no reward model between (Rafailov 2023).

Each step takes prompts with all their answers, reads every answer once, and compares within prompts: 1. a batch of prompts
2. log-probs of every answer 3. compare, improve 4. log and save.
The implicit reward of an answer is β (log π - log π_ref), sums over its tokens. The frozen reference's log-probs are computed once
and kept by content hash. Both answers of a pair may become less likely, as long as the rejected one falls faster: so
their log-probs are logged apart, and the KL that answers really have is measured by sampling (`observe`).
`train` learns from comparisons that people made, `train_online` from pairs of its own fresh answers that a reward ranks.
Left out on purpose: length normalisation (IPO's docstring says how).
Shapes: B answers of a batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.files import whole_folder
from bridle.core.recipe import DPOSection
from bridle.core.records import Prompt, Reward, content_hash
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.maths.losses import Stats, dpo, ipo
from bridle.maths.statistics import mean_and_se
from bridle.models.batches import (
    Batch,
    Compared,
    Group,
    by_length,
    group_batch,
    index_pairs,
    length_batches,
    length_plan,
    pair_weight,
    parts,
    sequence_logprobs,
)
from bridle.models.checkpoint import TrainingState, load_tensors, restore_checkpoint, save_checkpoint, save_tensors
from bridle.models.device import Device
from bridle.models.optimizer import OPTIMIZERS, clipped_step, finite, peak_rates, take_step, warm_then_linear
from bridle.models.parallel import all_ranks_figures, all_ranks_sum, my_share
from bridle.models.policy import Policy
from bridle.models.randomness import derived_seed
from bridle.rewards.rollout import Observe, Rollout, answer_figures, observed, roll_out, take_prompts

CACHE_FILE = "logprobs.safetensors"


def answer_logprobs(policy: Policy, batch: Batch, device: Device) -> Tensor:
    """log π of each whole answer, [B]: the sum over its tokens, the stop token included."""
    with device.autocast():
        return sequence_logprobs(policy.module, batch).sum(1)


@timed("reference")
@torch.no_grad()
def read_logprobs(policy: Policy, groups: Sequence[Group], device: Device) -> list[Tensor]:
    """log π of every answer, one tensor a group, on the CPU."""
    found: list[Tensor] = [torch.empty(0)] * len(groups)
    for chosen in by_length([group.length for group in groups], 16):
        batch = group_batch([groups[i] for i in chosen], policy.template.pad_id, device.torch)
        logp_B = answer_logprobs(policy, batch, device).float().cpu()
        for i, logp in zip(chosen, logp_B.split([len(groups[i].answers) for i in chosen]), strict=True):
            found[i] = logp
    return found


def reference_logprobs(
    reference: Policy, groups: Sequence[Group], device: Device, cache: Path, say: Callable[[str], None]
) -> list[Tensor]:
    """log π_ref of every answer, one tensor a group. Read from `cache` where this reference has read these ids before."""
    key = content_hash([reference.stamp, str(device.precision), [[group.prompt, group.answers] for group in groups]])
    sizes = [len(group.answers) for group in groups]
    folder = cache / f"reference-{key[:16]}"
    if (folder / CACHE_FILE).is_file():
        say("the reference's log-probs are known from an earlier run")
        return list(load_tensors(folder / CACHE_FILE)["logp"].to(device.torch).split(sizes))
    found = read_logprobs(reference, groups, device)
    logp_N = torch.cat(found)
    with whole_folder(folder) as new:
        save_tensors({"logp": logp_N}, new / CACHE_FILE)
    return list(logp_N.to(device.torch).split(sizes))


def preference_loss(
    logp_B: Tensor,
    reference_B: Tensor,
    length_B: Tensor,
    pairs: tuple[Tensor, Tensor, Tensor],
    config: DPOSection,
    count: Tensor,
) -> tuple[Tensor, Stats]:
    """DPO or IPO, and `config.sft` times the chosen answers' -log π for each of their tokens (Pang 2024, eq. 1,
    arxiv.org/abs/2404.19733), weighted like the pairs. `count` is the weight of the whole step's pairs on all ranks."""
    better_P, worse_P, weight_P = pairs
    sides = logp_B[better_P], logp_B[worse_P], reference_B[better_P], reference_B[worse_P]
    if config.loss == "ipo":
        loss, stats = ipo(*sides, weight_P, beta=config.beta, count=count)
    else:
        loss, stats = dpo(*sides, weight_P, beta=config.beta, smoothing=config.label_smoothing, count=count)
    if config.sft:
        imitation = -(weight_P * logp_B[better_P] / length_B[better_P]).sum() / count
        loss, stats = loss + config.sft * imitation, {**stats, "sft_loss": imitation.detach()}
    return loss, stats


def compare(
    policy: Policy, groups: Sequence[Group], reference_of: Sequence[Tensor], config: DPOSection, device: Device
) -> dict[str, float]:
    """Add the gradient of the loss on a step's groups, every answer read once; the figures of the step.

    Each rank takes its share of the groups, `micro_batch` at once; the pairs' weight is counted on all ranks.
    """
    mine = my_share(list(range(len(groups))))
    weight = pair_weight([groups[i] for i in mine])
    count = all_ranks_sum(torch.tensor(weight, dtype=torch.float64, device=device.torch)).float()
    pair_count = sum(len(group.pairs) for group in groups)
    sums: dict[str, float] = {}
    for part in parts(mine, config.micro_batch):
        chosen = [groups[i] for i in part]
        with timed("forward"):
            batch, pairs = group_batch(chosen, policy.template.pad_id, device.torch), index_pairs(chosen, device.torch)
            reference_B = torch.cat([reference_of[i] for i in part]).to(device.torch)
            logp_B = answer_logprobs(policy, batch, device)
            loss, stats = preference_loss(
                logp_B, reference_B, batch.lengths_B - batch.prompt_lengths_B, pairs, config, count
            )
        with timed("backward"):
            finite(loss).backward()
        for name, value in {**stats, **likelihoods(logp_B.detach(), reference_B, pairs, pair_count)}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return all_ranks_figures(sums)


def likelihoods(logp_B: Tensor, reference_B: Tensor, pairs: tuple[Tensor, Tensor, Tensor], count: int) -> Stats:
    """How likely chosen and rejected answers are and how far they moved, each a sum over these pairs / count."""
    better_P, worse_P, _ = pairs
    moved_B = logp_B - reference_B
    return {
        "chosen_logp": logp_B[better_P].sum() / count,
        "rejected_logp": logp_B[worse_P].sum() / count,
        "chosen_moved": moved_B[better_P].sum() / count,
        "rejected_moved": moved_B[worse_P].sum() / count,
    }


def train(
    policy: Policy,
    reference: Policy,
    groups: Sequence[Group],
    config: DPOSection,
    device: Device,
    run: Run,
    seed: int,
    cache: Path,
    observe: Callable[[], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Train `policy` in place. `observe` measures it now and then for the log (its KL, say) and steers nothing."""
    usable = [group for group in groups if group.pairs]
    if not usable:
        raise NoUsableRows("DPO needs pairs of a better and a worse answer, got none; collect or import comparisons")
    module = policy.module
    optimizers = OPTIMIZERS[config.optimizer](module, config.learning_rate)
    peaks = peak_rates(optimizers)
    state = TrainingState({"policy": module}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    policy.step += done
    run.rewind(done)
    reference_of = reference_logprobs(reference, usable, device, cache, run.progress.say)
    plan = length_plan([group.length for group in usable], config.batch_size, config.epochs, seed, "dpo")
    last: dict[str, float] = values.get("last", {})
    for step in range(done, len(plan)):
        # 1. prompts with all their answers
        chosen = [usable[i] for i in plan[step]]
        # 2. log-probs of every answer, read once  3. compare, improve
        figures = compare(policy, chosen, [reference_of[i] for i in plan[step]], config, device)
        share = warm_then_linear(step, len(plan))
        with timed("optimizer"):
            figures["grad_norm"] = take_step(module, optimizers, peaks, share, config.clip_norm)
        policy.step += 1
        # 4. log and save
        last = smoothed(last, figures)
        if observe is not None and (step + 1) % config.observe_every == 0:
            with timed("observe"):
                figures |= observe()
        run.log(step, len(plan), figures)
        if run.due(step + 1, config.checkpoint_every, len(plan)):
            save_checkpoint(
                run.checkpoints, step + 1, state, {"last": last}, run.key, keep=run.keep, merit=-last["loss"]
            )
            run.saved(step + 1, len(plan))
    return {"steps": len(plan), "prompts": len(usable), "pairs": sum(len(g.pairs) for g in usable), **last}


def smoothed(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Running means over about twenty steps, for the figures at the end: one batch alone is noise."""
    return {name: 0.95 * before.get(name, value) + 0.05 * value for name, value in now.items()}


# ------------------------------------------------------------------------------- online: on fresh answers, in rounds


def ranked(rollout: Rollout, prompt_ids: Sequence[list[int]], size: int) -> list[Group]:
    """A group for each prompt: its `size` answers, a pair for every two whose rewards differ, the pairs weighing 1 together."""
    rewards, groups = rollout.reward_B.tolist(), []
    for first in range(0, len(rewards), size):
        own = rewards[first : first + size]
        won = [(a, b) for a in range(size) for b in range(size) if own[a] > own[b]]
        answers = [list(c.token_ids) for c in rollout.completions[first : first + size]]
        groups.append(Group(prompt_ids[first], answers, [Compared(a, b, 1 / len(won)) for a, b in won]))
    return groups


@timed("improve")
def improve(
    policy: Policy,
    optimizers: list[torch.optim.Optimizer],
    groups: Sequence[Group],
    reference_of: Sequence[Tensor],
    config: DPOSection,
    device: Device,
    seed: int,
    number: int,
) -> dict[str, float]:
    """`epochs` passes over a round's pairs; means of the figures over its optimiser steps."""
    sums: dict[str, float] = {}
    steps, lengths = 0, [group.length for group in groups]
    for epoch in range(config.epochs if groups else 0):
        for rows in length_batches(lengths, config.batch_size, seed, "dpo-online", number * config.epochs + epoch):
            figures = compare(policy, [groups[i] for i in rows], [reference_of[i] for i in rows], config, device)
            with timed("optimizer"):
                figures["grad_norm"] = clipped_step([policy.module], optimizers, config.clip_norm)
            sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
            steps += 1
    return {name: total / steps for name, total in sums.items()}


def train_online(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: DPOSection,
    max_new_tokens: int,
    engine: Engine,
    device: Device,
    run: Run,
    seed: int,
    observe: Observe | None = None,
) -> dict[str, float]:
    """Train `policy` in place on pairs of its own fresh answers (Guo 2024, arxiv.org/abs/2402.04792; with few large rounds:
    iterative DPO, Xu 2023, arxiv.org/abs/2312.16682).

    Each round: 1. answer prompts  2. a reward ranks the answers  3. the reference's log-probs  4. compare, improve  5. share the
    new weights, log and save. The answer of higher reward is the chosen one: a label, not an amount. `observe` looks at each
    round's answers for the log and steers nothing.
    """
    if not prompts:
        raise NoUsableRows("online DPO needs prompts to answer, got none; import or make some")
    sampling = Sampling(max_new_tokens, 1.0)
    optimizers = OPTIMIZERS[config.optimizer](policy.module, config.learning_rate)
    state = TrainingState({"policy": policy.module}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    policy.step += done
    run.rewind(done)
    figures: dict[str, float] = values.get("figures", {})  # a run with no round left returns those of its last

    def save(done: int) -> None:
        merit = figures["reward"] - config.beta * figures["kl"]
        save_checkpoint(run.checkpoints, done, state, {"figures": figures}, run.key, keep=run.keep, merit=merit)

    for number in range(done, config.online_rounds):
        with timed("pack"):
            engine.load(policy)
        # 1. answer prompts  2. a reward ranks the answers
        asked = take_prompts(prompts, number, config.online_prompts, seed, "dpo-prompts")
        with run.keeping(number, partial(save, number)):
            rollout = roll_out(
                policy, engine, reward, asked, sampling, device, derived_seed(seed, "dpo-rollout", number),
                missing_stop_penalty=config.missing_stop_penalty, group_size=config.online_answers,
                max_unscored=run.health.limits.max_unscored,
            )  # fmt: skip
        with timed("rank"):
            groups = ranked(rollout, policy.template.prompt_ids(rollout.prompts), config.online_answers)
        # 3. the reference's log-probs
        started_from = read_logprobs(reference, groups, device)
        held_to = read_logprobs(policy, groups, device) if config.online_reference == "round" else started_from
        useful = [i for i, group in enumerate(groups) if group.pairs]
        # 4. compare, improve
        updates = improve(
            policy, optimizers, [groups[i] for i in useful], [held_to[i] for i in useful], config, device, seed, number
        )
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        kl, kl_se = mean_and_se((rollout.old_logp_BT.sum(1).cpu() - torch.cat(started_from)).numpy())
        figures = {
            "reward": float(rollout.reward_B.mean()),
            "without_pairs": 1 - len(useful) / len(groups),
            "kl": kl,
            "kl_se": kl_se,
            **updates,
            **answer_figures(rollout),
            **observed(observe, rollout),
        }
        run.log(number, config.online_rounds, figures)
        if run.due(number + 1, 1, config.online_rounds):
            save(number + 1)
            run.saved(number + 1, config.online_rounds)
    return {"rounds": config.online_rounds, **figures}
