"""A reward model from comparisons: the better answer should score higher (Ouyang 2022, eq. 1).

Each step takes prompts with all their answers; every pair of a prompt is in the same batch and weighs 1 / pairs, for pairs
of one ranking are correlated and would be learnt by heart if they came one by one (Ouyang 2022, §3.5).
The score is the head's number at the last token of the answer. Afterwards it is centred and scaled once, on answers of the
reference policy, and never again: then a KL weight keeps its meaning.
Shapes: B answers of a batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.recipe import RewardSection
from bridle.core.runlog import Run
from bridle.maths.losses import bradley_terry, score_size
from bridle.models.batches import Group, group_batch, index_pairs, length_plan, pair_weight, parts
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.optimizer import OPTIMIZERS, peak_rates, take_step, warm_then_linear
from bridle.models.parallel import all_ranks_figures, all_ranks_sum, my_share
from bridle.models.policy import RewardModel


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
    plan = length_plan([group.length for group in usable], config.batch_size, epochs, seed, "reward")
    for step in range(done, len(plan)):
        # 1. prompts with all their answers
        mine = my_share(plan[step])
        weight = pair_weight([usable[i] for i in mine])
        count = all_ranks_sum(torch.tensor(weight, dtype=torch.float64, device=device.torch)).float()
        answers = all_ranks_sum(torch.tensor(sum(len(usable[i].answers) for i in mine), device=device.torch))
        # 2. score every answer once, compare within prompts
        sums: dict[str, float] = {}
        for part in parts(mine, config.micro_batch):
            chosen = [usable[i] for i in part]
            better_P, worse_P, weight_P = index_pairs(chosen, device.torch)
            with device.autocast():
                scores_B = module.batch_scores(group_batch(chosen, pad_id, device.torch))
            loss, stats = bradley_terry(scores_B[better_P], scores_B[worse_P], weight_P, count=count)
            (loss + config.score_size * score_size(scores_B, count=answers)).backward()
            for name, value in stats.items():  # already parts of the step's mean
                sums[name] = sums.get(name, 0.0) + float(value)
        # 3. improve
        share = warm_then_linear(step, len(plan))
        norm = take_step(module, optimizers, peaks, share, config.clip_norm)
        # 4. log and save
        run.log(step, len(plan), {**all_ranks_figures(sums), "grad_norm": norm})
        if run.due(step + 1, config.checkpoint_every, len(plan)):
            save_checkpoint(run.checkpoints, step + 1, state, {}, run.key)
            run.saved(step + 1, len(plan))
    return {"steps": len(plan), "prompts": len(usable), "pairs": sum(len(g.pairs) for g in usable)}


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
