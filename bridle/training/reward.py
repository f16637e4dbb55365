"""A reward model from judgements: the better answer should score higher (Ouyang 2022, eq. 1).

Each step takes prompts with all their answers; every pair of a prompt is in the same batch and weighs 1 / pairs, for pairs
of one ranking are correlated and would be learnt by heart if they came one by one (Ouyang 2022, §3.5).
A group of answers may hold comparisons (with sureness and margin), whole rankings and ratings, each for one of the model's
tasks: helpful, harmless, toxic or not. Every answer is read once, whatever was said of it, and each task is a row of the head.
The score is the head's number at the last token of the answer. Afterwards it is centred and scaled once, on answers of the
reference policy, and never again: then a KL weight keeps its meaning. A temperature from held-out judgements makes it a chance.
An ensemble is several of these, trained one after another with other seeds of head and order.
Shapes: B answers of a batch, C tasks, P pairs, R rankings, N ratings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations

import numpy as np
import torch
from torch import Tensor

from bridle.core.errors import DataError, NoUsableRows
from bridle.core.recipe import RewardSection
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.maths.losses import Stats, bradley_terry, classification, plackett_luce, rating, score_size
from bridle.maths.statistics import ece, fit_temperature
from bridle.models.batches import Compared, Group, Ranked, Rated, group_batch, length_plan, parts
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.optimizer import OPTIMIZERS, finite, peak_rates, take_step, warm_then_linear
from bridle.models.parallel import all_ranks_figures, all_ranks_sum, my_share
from bridle.models.policy import RewardModel, Task, probe_scores
from bridle.rewards.learned import task_scores

FEW = 20  # judgements: fewer than this in a half fit no temperature


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
    """Train `model` in place; its scores are still raw afterwards (see `calibrate` and `fit_chances`)."""
    usable = [group for group in groups if group.pairs or group.rankings or group.ratings]
    check_judgements(model, usable)
    module, pad_id = model.module, model.template.pad_id
    optimizers = OPTIMIZERS[config.optimizer](module, learning_rate)
    peaks = peak_rates(optimizers)
    state = TrainingState({"scorer": module}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    run.rewind(done)
    loss_average: float | None = values.get("loss_average")
    measure_ratings(model, usable)
    plan = length_plan([group.length for group in usable], config.batch_size, epochs, seed, "reward")
    for step in range(done, len(plan)):
        # 1. prompts with all their answers
        mine = my_share(plan[step])
        weight = judged_weight([usable[i] for i in mine])
        count = all_ranks_sum(torch.tensor(weight, dtype=torch.float64, device=device.torch)).float()
        answers = all_ranks_sum(torch.tensor(sum(len(usable[i].answers) for i in mine), device=device.torch))
        # 2. score every answer once, compare within prompts
        sums: dict[str, float] = {}
        for part in parts(mine, config.micro_batch):
            chosen = [usable[i] for i in part]
            with timed("forward"):
                with device.autocast():
                    scores_BC = module.batch_scores(group_batch(chosen, pad_id, device.torch))
                loss, stats = judged_loss(scores_BC, chosen, model.tasks, count=count)
            with timed("backward"):
                finite(loss + config.score_size * score_size(scores_BC, count=answers * len(model.tasks))).backward()
            for name, value in stats.items():  # already parts of the step's mean
                sums[name] = sums.get(name, 0.0) + float(value)
        # 3. improve
        share = warm_then_linear(step, len(plan))
        with timed("optimizer"):
            norm = take_step(module, optimizers, peaks, share, config.clip_norm)
        # 4. log and save
        figures = all_ranks_figures(sums)
        loss_average = figures["loss"] if loss_average is None else 0.95 * loss_average + 0.05 * figures["loss"]
        run.log(step, len(plan), {**figures, "grad_norm": norm})
        if run.due(step + 1, config.checkpoint_every, len(plan)):
            save_checkpoint(
                run.checkpoints,
                step + 1,
                state,
                {"loss_average": loss_average},
                run.key,
                keep=run.keep,
                merit=-loss_average,
            )
            run.saved(step + 1, len(plan))
    pairs, rankings, ratings = placed(usable)
    counts = {"pairs": len(pairs), "rankings": len(rankings), "ratings": len(ratings)}
    return {"steps": len(plan), "prompts": len(usable), **{name: n for name, n in counts.items() if n}}


# ---------------------------------------------------------------------------------------------------------- the loss


def judged_weight(groups: Sequence[Group]) -> float:
    """The weight of all judgements together, which a mean over them divides by."""
    return sum((judged.weight for kind in placed(groups) for _, judged in kind), 0.0)


def placed(
    groups: Sequence[Group],
) -> tuple[list[tuple[int, Compared]], list[tuple[int, Ranked]], list[tuple[int, Rated]]]:
    """All pairs, rankings and ratings, each with the place of its group's first answer in the flat list of answers."""
    starts = list(accumulate((len(group.answers) for group in groups), initial=0))[:-1]
    located = list(zip(starts, groups, strict=True))
    return (
        [(start, Compared(*pair)) for start, group in located for pair in group.pairs],
        [(start, ranking) for start, group in located for ranking in group.rankings],
        [(start, rated) for start, group in located for rated in group.ratings],
    )


def judged_loss(
    scores_BC: Tensor, groups: Sequence[Group], tasks: Sequence[Task], *, count: Tensor | float
) -> tuple[Tensor, Stats]:
    """Comparisons by Bradley-Terry, rankings by Plackett-Luce, ratings by squares, classes by cross entropy; over `count`.

    `count` is the weight of all judgements of the whole step. Stats: the loss, and the `accuracy` of the pairs, over `count` too.
    """
    row_of = {task.name: row for row, task in enumerate(tasks)}
    pairs, rankings, ratings = placed(groups)
    stats: Stats = {}
    losses = []
    if pairs:
        loss, stats = pair_loss(scores_BC, pairs, row_of, count)
        losses.append(loss)
    if rankings:
        losses.append(ranking_loss(scores_BC, rankings, row_of, count))
    if ratings:
        losses.append(rating_loss(scores_BC, ratings, row_of, tasks, count))
    total = torch.stack(losses).sum()
    return total, {**stats, "loss": total.detach()}


def pair_loss(
    scores_BC: Tensor, pairs: Sequence[tuple[int, Compared]], row_of: Mapping[str, int], count: Tensor | float
) -> tuple[Tensor, Stats]:
    device = scores_BC.device
    better_P, worse_P, row_P = torch.tensor(
        [[start + p.better, start + p.worse, row_of[p.task]] for start, p in pairs], device=device
    ).unbind(1)
    numbers = [[p.weight, p.target, p.margin] for _, p in pairs]
    weight_P, target_P, margin_P = torch.tensor(numbers, dtype=scores_BC.dtype, device=device).unbind(1)
    chosen_P, rejected_P = scores_BC[better_P, row_P], scores_BC[worse_P, row_P]
    return bradley_terry(chosen_P, rejected_P, weight_P, count=count, target_P=target_P, margin_P=margin_P)


def ranking_loss(
    scores_BC: Tensor, rankings: Sequence[tuple[int, Ranked]], row_of: Mapping[str, int], count: Tensor | float
) -> Tensor:
    device = scores_BC.device
    width = max(len(r.ranks) for _, r in rankings)
    rank_RK = torch.tensor([[*r.ranks, *[-1] * (width - len(r.ranks))] for _, r in rankings], device=device)
    place_RK = torch.tensor([[start] for start, _ in rankings], device=device) + torch.arange(width, device=device)
    row_R1 = torch.tensor([[row_of[r.task]] for _, r in rankings], device=device)
    weight_R = torch.tensor([r.weight for _, r in rankings], dtype=scores_BC.dtype, device=device)
    scores_RK = scores_BC[place_RK.clamp(max=len(scores_BC) - 1), row_R1]  # what lies beyond a short row is not read
    return plackett_luce(scores_RK, rank_RK, weight_R, count=count)[0]


def rating_loss(
    scores_BC: Tensor,
    ratings: Sequence[tuple[int, Rated]],
    row_of: Mapping[str, int],
    tasks: Sequence[Task],
    count: Tensor | float,
) -> Tensor:
    """Ratings are learnt in deviations from their mean, so that a rate of learning suits any scale; classes as they are."""
    device, losses = scores_BC.device, []
    for kind, loss_of in (("score", rating), ("binary", classification)):
        ours = [(start + r.answer, tasks[row_of[r.task]], r) for start, r in ratings]
        ours = [(place, task, r) for place, task, r in ours if task.kind == kind]
        place_N = torch.tensor([place for place, _, _ in ours], dtype=torch.long, device=device)
        row_N = torch.tensor([row_of[task.name] for _, task, _ in ours], dtype=torch.long, device=device)
        numbers = [[(r.value - task.rating_mean) / task.rating_sd, r.weight] for _, task, r in ours]
        value_N, weight_N = torch.tensor(numbers, dtype=scores_BC.dtype, device=device).view(-1, 2).unbind(1)
        losses.append(loss_of(scores_BC[place_N, row_N], value_N, weight_N, count=count)[0])
    return torch.stack(losses).sum()


def pairs_of_ratings(ratings: Sequence[Rated], margin: float = 0.0) -> list[Compared]:
    """The comparisons that one prompt's ratings by one task imply, each to be won by `margin` times the gap; they weigh 1 together."""
    ordered = sorted(ratings, key=lambda rated: -rated.value)
    told = [(a, b) for a, b in combinations(ordered, 2) if a.value > b.value]
    return [
        Compared(a.answer, b.answer, 1 / len(told), margin=margin * (a.value - b.value), task=a.task) for a, b in told
    ]


# -------------------------------------------------------------------------------------- what is wrong before it starts


def check_judgements(model: RewardModel, groups: Sequence[Group]) -> None:
    """Raise DataError, before any step, for what cannot be learnt or would be learnt wrong."""
    pairs, rankings, ratings = placed(groups)
    if not pairs and not rankings and not ratings:
        raise NoUsableRows(
            "a reward model needs pairs of a better and a worse answer, rankings or ratings, got none; collect or "
            "import comparisons"
        )
    for name in {judged.task for kind in (pairs, rankings, ratings) for _, judged in kind}:
        model.row(name)
    for group in groups:
        named = {i for pair in group.pairs for i in pair[:2]} | {rated.answer for rated in group.ratings}
        if not named <= set(range(len(group.answers))) or any(
            len(r.ranks) != len(group.answers) for r in group.rankings
        ):
            raise DataError(
                f"a prompt has {len(group.answers)} answers, but its judgements are of answers {sorted(named)} and of "
                f"{[len(r.ranks) for r in group.rankings]} at a time; number the answers from 0, and rank all of them"
            )
    numbers = [(p.weight, p.margin, p.target) for _, p in pairs] + [(r.weight, r.value, 0.0) for _, r in ratings]
    numbers += [(r.weight, 0.0, 0.0) for _, r in rankings]
    for weight, value, target in numbers:
        if not (0 < weight < math.inf and math.isfinite(value) and 0 <= target <= 1):
            raise DataError(
                f"a judgement has weight {weight}, margin or value {value} and target {target}; it needs a weight above 0, "
                "finite numbers, and a target from 0 to 1"
            )
    for task in model.tasks:
        values = {rated.value for _, rated in ratings if rated.task == task.name}
        if task.kind == "binary" and values and not values <= {0, 1}:
            raise DataError(
                f"task {task.name!r} is binary, but answers were rated {sorted(values)[:3]}; it takes 0 and 1"
            )
        if len(values) == 1:
            raise DataError(
                f"all ratings of task {task.name!r} are {values.pop():g}, so there is nothing to tell apart; it needs "
                + ("answers of both classes" if task.kind == "binary" else "at least two different ratings")
            )


def measure_ratings(model: RewardModel, groups: Sequence[Group]) -> None:
    """Keep mean and deviation of each task's ratings, so that its scores can be read in their units."""
    for task in model.tasks:
        values = [rated.value for _, rated in placed(groups)[2] if rated.task == task.name]
        if values and task.kind == "score":
            task.rating_mean, task.rating_sd = float(np.mean(values)), float(np.std(values))


# ------------------------------------------------------------------------------------- what its numbers mean afterwards


def calibrate(model: RewardModel, reference_scores: Tensor, probes: Sequence[list[int]]) -> None:
    """Centre and scale on the reference's answers ([N], or [N, C] for several tasks), and keep a few sequences with
    their scores to check on loading."""
    scores_NC = reference_scores.reshape(-1, len(model.tasks))
    if len(scores_NC) < 2 or not bool(torch.isfinite(scores_NC).all()):
        raise NoUsableRows(
            f"centring a reward model needs at least two finite scores, got {reference_scores[:5].tolist()}"
        )
    for task, scores_N in zip(model.tasks, scores_NC.unbind(1), strict=True):
        task.centre, task.scale = float(scores_N.mean()), max(float(scores_N.std()), 1e-6)
    device = model.module.score.weight.device
    model.probes = [{"ids": list(ids), "scores": probe_scores(model.module, ids, device)} for ids in probes]


def fit_chances(model: RewardModel, groups: Sequence[Group], device: Device) -> dict[str, dict[str, float | None]]:
    """Each task's temperature, on held-out judgements, and how far its chances are from what happened, before and after.

    A pair says P(better beats worse) = σ(gap / T), a class P(1) = σ(s / T). Every other group fits T, the rest
    tell the expected calibration error, so it is not measured on what was fitted. With fewer than `FEW` judgements in
    a half T stays 1 and the error unknown (None).
    """
    prompts = [group.prompt for group in groups for _ in group.answers]
    answers = [answer for group in groups for answer in group.answers]
    scores_BC = task_scores(model, prompts, answers, device) if groups else torch.zeros(0, len(model.tasks))
    found: dict[str, dict[str, float | None]] = {}
    pairs, _, ratings = placed(groups)
    half_of = {start: i % 2 for i, start in enumerate(accumulate((len(g.answers) for g in groups), initial=0))}
    for row, task in enumerate(model.tasks):
        score = scores_BC[:, row].tolist()
        judged: list[tuple[int, float, float, float]] = []  # half, gap, how sure that it is above 0, weight
        if task.kind == "binary":
            judged += [(half_of[s], score[s + r.answer], r.value, r.weight) for s, r in ratings if r.task == task.name]
        else:
            named = [(s, p) for s, p in pairs if p.task == task.name]
            judged += [(half_of[s], score[s + p.better] - score[s + p.worse], p.target, p.weight) for s, p in named]
        fitted, kept = ([row[1:] for row in judged if row[0] == half] for half in (0, 1))
        figures: dict[str, float | None] = {"temperature": 1.0, "ece_before": None, "ece_after": None}
        if min(len(fitted), len(kept)) >= FEW:
            both = [(sign * gap, w * share) for gap, p, w in fitted for sign, share in ((1, p), (-1, 1 - p)) if share]
            task.temperature = fit_temperature([gap for gap, _ in both], [weight for _, weight in both])
            figures = {"temperature": task.temperature, "ece_before": error_of(kept, 1.0)}
            figures["ece_after"] = error_of(kept, task.temperature)
        found[task.name] = figures
    return found


def error_of(judged: Sequence[tuple[float, float, float]], temperature: float) -> float:
    """Expected calibration error of how sure the likelier side is, over (gap, sureness, weight); ties tell nothing."""
    clear = np.array([(gap, sure) for gap, sure, _ in judged if sure != 0.5])
    sureness = 1 / (1 + np.exp(-np.abs(clear[:, 0]) / temperature))
    return ece(sureness, (clear[:, 0] > 0) == (clear[:, 1] > 0.5))
