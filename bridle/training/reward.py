"""A reward model from comparisons: the better answer should score higher (Ouyang 2022, eq. 1).

Each step takes prompts with all their answers; every pair of a prompt is in the same batch and weighs 1 / pairs, for pairs
of one ranking are correlated and would be learnt by heart if they came one by one (Ouyang 2022, §3.5).
The score is the head's number at the last token of the answer. Afterwards it is centred and scaled once, on answers of the
reference policy, and never again: then a KL weight keeps its meaning.
Shapes: B answers of a batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.recipe import RewardSection
from bridle.core.runlog import Run
from bridle.maths.losses import bradley_terry, score_size
from bridle.models.batches import make_batch
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.optimizer import OPTIMIZERS, peak_rates, take_step, warm_then_linear
from bridle.models.policy import RewardModel
from bridle.models.randomness import shuffled


@dataclass(frozen=True)
class Group:
    """A prompt's ids, its answers' ids, and pairs (better, worse, weight) of indices into the answers."""

    prompt: list[int]
    answers: list[list[int]]
    pairs: list[tuple[int, int, float]]


def train(
    model: RewardModel,
    groups: Sequence[Group],
    config: RewardSection,
    epochs: int,
    learning_rate: float,
    device: Device,
    run: Run,
    seed: int,
) -> dict[str, float]:
    """Train `model` in place; its scores are still raw afterwards (see `calibrate`)."""
    if not any(group.pairs for group in groups):
        raise NoUsableRows(
            "a reward model needs pairs of a better and a worse answer, got none; collect or import comparisons"
        )
    module, pad_id = model.module, model.template.pad_id
    optimizers = OPTIMIZERS[config.optimizer](module, learning_rate)
    peaks = peak_rates(optimizers)
    state = TrainingState({"scorer": module}, optimizers)
    done, _ = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    run.rewind(done)
    usable = [group for group in groups if group.pairs]
    plan = [
        rows.tolist()
        for epoch in range(epochs)
        for rows in shuffled(len(usable), seed, "reward", epoch).split(config.batch_size)
    ]
    for step in range(done, len(plan)):
        # 1. prompts with all their answers
        chosen = [usable[i] for i in plan[step]]
        better_P, worse_P, weight_P = index_pairs(chosen, device.torch)
        prompts = [group.prompt for group in chosen for _ in group.answers]
        batch = make_batch(prompts, [a for group in chosen for a in group.answers], pad_id, device.torch)
        # 2. score every answer once, compare within prompts
        with device.autocast():
            scores_B = module.scores(batch.ids_BW, batch.lengths_B)
        loss, stats = bradley_terry(scores_B[better_P], scores_B[worse_P], weight_P, count=weight_P.sum())
        total = loss + config.score_size * score_size(scores_B, count=len(scores_B))
        # 3. improve
        total.backward()
        share = warm_then_linear(step, len(plan))
        norm = take_step(module, optimizers, peaks, share, config.clip_norm)
        # 4. log and save
        run.log(
            step,
            len(plan),
            {"loss": float(stats["loss"]), "accuracy": float(stats["accuracy"]), "grad_norm": norm},
        )
        if run.due(step + 1, config.checkpoint_every, len(plan)):
            save_checkpoint(run.checkpoints, step + 1, state, {}, run.key)
            run.saved(step + 1, len(plan))
    return {"steps": len(plan), "prompts": len(usable), "pairs": sum(len(g.pairs) for g in usable)}


def index_pairs(groups: Sequence[Group], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of all groups as indices into the flat list of answers, with their weights."""
    better, worse, weight, offset = [], [], [], 0
    for group in groups:
        for b, w, share in group.pairs:
            better.append(offset + b)
            worse.append(offset + w)
            weight.append(share)
        offset += len(group.answers)
    return (
        torch.tensor(better, device=device),
        torch.tensor(worse, device=device),
        torch.tensor(weight, dtype=torch.float32, device=device),
    )


def calibrate(model: RewardModel, reference_scores: Tensor, probes: Sequence[list[int]]) -> None:
    """Centre and scale on the reference's answers, and keep a few sequences with their scores to check on loading."""
    if len(reference_scores) < 2 or not bool(torch.isfinite(reference_scores).all()):
        raise NoUsableRows(
            f"centring a reward model needs at least two finite scores, got {reference_scores[:5].tolist()}"
        )
    model.centre = float(reference_scores.mean())
    model.scale = max(float(reference_scores.std()), 1e-6)
    device = model.module.score.weight.device
    model.probes = []
    for ids in probes:
        with torch.no_grad():
            score = model.module.scores(torch.tensor([ids], device=device), torch.tensor([len(ids)], device=device))
        model.probes.append({"ids": list(ids), "score": float(score)})
