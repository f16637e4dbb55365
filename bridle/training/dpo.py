"""Direct preference optimisation: from comparisons to a policy with no reward model between (Rafailov 2023).

Each step takes prompts with all their answers, reads every answer once, and compares within prompts: 1. a batch of prompts
2. log-probs of every answer 3. compare, improve 4. log and save.
The implicit reward of an answer is β (log π - log π_ref), sums over its tokens. The frozen reference's log-probs are computed once
and kept by content hash. Both answers of a pair may become less likely, as long as the rejected one falls faster: so
their log-probs are logged apart, and the KL that answers really have is measured by sampling (`observe`).
Left out on purpose: a reference that follows the policy, length normalisation (IPO's docstring says how).
Shapes: B answers of a batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.files import whole_folder
from bridle.core.recipe import DPOSection
from bridle.core.records import content_hash
from bridle.core.runlog import Run
from bridle.maths.losses import Stats, dpo, ipo
from bridle.models.batches import (
    Batch,
    Group,
    by_length,
    group_batch,
    index_pairs,
    length_plan,
    sequence_logprobs,
)
from bridle.models.checkpoint import TrainingState, load_tensors, restore_checkpoint, save_checkpoint, save_tensors
from bridle.models.device import Device
from bridle.models.optimizer import OPTIMIZERS, finite, peak_rates, take_step, warm_then_linear
from bridle.models.policy import Policy

CACHE_FILE = "logprobs.safetensors"


def answer_logprobs(policy: Policy, batch: Batch, device: Device) -> Tensor:
    """log π of each whole answer, [B]: the sum over its tokens, the stop token included."""
    with device.autocast():
        return sequence_logprobs(policy.module, batch).sum(1)


@torch.no_grad()
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
    found: list[Tensor] = [torch.empty(0)] * len(groups)
    for chosen in by_length([group.length for group in groups], 16):
        batch = group_batch([groups[i] for i in chosen], reference.template.pad_id, device.torch)
        logp_B = answer_logprobs(reference, batch, device).float().cpu()
        for i, logp in zip(chosen, logp_B.split([sizes[i] for i in chosen]), strict=True):
            found[i] = logp
    logp_N = torch.cat(found)
    with whole_folder(folder) as new:
        save_tensors({"logp": logp_N}, new / CACHE_FILE)
    return list(logp_N.to(device.torch).split(sizes))


def preference_loss(
    logp_B: Tensor, reference_B: Tensor, pairs: tuple[Tensor, Tensor, Tensor], config: DPOSection
) -> tuple[Tensor, Stats]:
    better_P, worse_P, weight_P = pairs
    sides = logp_B[better_P], logp_B[worse_P], reference_B[better_P], reference_B[worse_P]
    count = weight_P.sum()
    if config.loss == "ipo":
        return ipo(*sides, weight_P, beta=config.beta, count=count)
    return dpo(*sides, weight_P, beta=config.beta, smoothing=config.label_smoothing, count=count)


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
    module, pad_id = policy.module, policy.template.pad_id
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
        batch = group_batch(chosen, pad_id, device.torch)
        pairs = index_pairs(chosen, device.torch)
        reference_B = torch.cat([reference_of[i] for i in plan[step]])
        # 2. log-probs of every answer, read once
        logp_B = answer_logprobs(policy, batch, device)
        # 3. compare, improve
        loss, stats = preference_loss(logp_B, reference_B, pairs, config)
        finite(loss).backward()
        share = warm_then_linear(step, len(plan))
        norm = take_step(module, optimizers, peaks, share, config.clip_norm)
        policy.step += 1
        # 4. log and save
        better_P, worse_P, _ = pairs
        figures = {name: float(value) for name, value in stats.items()}
        figures |= {
            "chosen_logp": float(logp_B[better_P].detach().mean()),
            "rejected_logp": float(logp_B[worse_P].detach().mean()),
            "chosen_moved": float((logp_B - reference_B)[better_P].detach().mean()),
            "rejected_moved": float((logp_B - reference_B)[worse_P].detach().mean()),
            "grad_norm": norm,
        }
        last = smoothed(last, figures)
        if observe is not None and (step + 1) % config.observe_every == 0:
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
