"""A reward model from judgements: the better answer should score higher (Ouyang 2022, eq. 1).

Each step takes prompts with all their answers; every pair of a prompt is in the same batch and weighs 1 / pairs, for pairs
of one ranking are correlated and would be memorised if they came one by one (Ouyang 2022, §3.5).
A group of answers may hold comparisons (with confidence and margin), whole rankings and ratings, each for one of the model's
tasks: helpful, harmless, toxic or not. Every answer is read once, whatever was said of it, and each task is a row of the head.
The score is the head's number at the last token of the answer. Afterwards it is centred and scaled once, on answers of the
reference policy, and never again: then a KL weight keeps its meaning. A temperature from held-out judgements makes it a probability.
An ensemble is several of these, trained one after another with other seeds of head and order.
Shapes: B answers of a batch, C tasks, P pairs, R rankings, N ratings.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from bridle.compute.device import Device
from bridle.compute.optimizer import backward, optimizers_of
from bridle.compute.parallel import all_ranks_sum, my_share
from bridle.compute.sharding import lockstep
from bridle.compute.steps import Means, Metrics, Session, Steps
from bridle.core.errors import DataError, NoUsableRows
from bridle.core.timeline import note_tokens, timed
from bridle.maths.losses import LossMetrics, bradley_terry, classification, plackett_luce, rating, score_size
from bridle.maths.statistics import ece, fit_temperature
from bridle.models.batches import Compared, Cut, Group, Ranked, Rated, group_batch, length_plan, row_sizes
from bridle.models.policy import RewardModel, Task, probe_scores
from bridle.project.run import Signal
from bridle.recipe.offline import RewardSection
from bridle.rewards.learned import task_scores

LEAST, MOST = 1e-30, 1e30  # of a weight, or a size: sums over a step stay within float32
FEW = 20  # judgements: fewer than this in a half fit no temperature


def train(
    model: RewardModel,
    groups: Sequence[Group],
    config: RewardSection,
    epochs: int,
    learning_rate: float,
    session: Session,
) -> Metrics:
    """Train `model` in place; its scores are still raw afterwards (see `set_centre_and_scale` and `fit_temperatures`)."""
    usable = [group for group in groups if group.pairs or group.rankings or group.ratings]
    check_judgements(model, usable)
    measure_ratings(model, usable)
    plan = length_plan([group.length for group in usable], config.batch_size, epochs, session.seed, "reward")
    optimizers = optimizers_of(model.module, config, learning_rate)
    steps = Steps(session, {"scorer": model.module}, optimizers, len(plan), config.checkpoint_every, config)
    average: float | None = steps.values.get("loss_average")
    for step in steps:
        # 1. prompts with all their answers
        chosen = [usable[i] for i in plan[step]]
        # 2. score every answer once, compare within prompts
        metrics = judge(model, chosen, config, session.device)
        # 3. improve
        norm = steps.scheduled_step(step, config.clip_norm)
        # 4. log and save
        average = metrics["loss"] if average is None else 0.95 * average + 0.05 * metrics["loss"]
        steps.values["loss_average"] = average
        steps.end(step, {**metrics, "grad_norm": norm}, -average, Signal(grad_norm=norm))
    pairs, rankings, ratings = flatten(usable)
    counts = {"pairs": len(pairs), "rankings": len(rankings), "ratings": len(ratings)}
    evaluated = {name: value for name, value in steps.metrics.items() if name.startswith("eval_")}
    stated = {name: count for name, count in counts.items() if count}
    return {"steps": len(plan), "prompts": len(usable), **stated, **evaluated}


def judge(model: RewardModel, groups: Sequence[Group], config: RewardSection, device: Device) -> Metrics:
    """Add the gradient of the loss on a step's groups; the step's metrics. Each rank takes its share of the groups, as much
    of it at once as the settings say; judgements and answers are counted on all ranks."""
    mine, means = my_share(list(range(len(groups)))), Means()
    weight = judged_weight([groups[i] for i in mine])
    count = all_ranks_sum(torch.tensor(weight, dtype=torch.float64, device=device.torch)).float()
    answers = all_ranks_sum(torch.tensor(sum(len(groups[i].answers) for i in mine), device=device.torch))
    cut, sizes = Cut(config.micro_batch, config.micro_tokens), row_sizes((one.prompt, one.answers) for one in groups)
    for part in lockstep(cut.parts(mine, sizes, model.module.model), model.module):
        chosen = [groups[i] for i in part]
        with timed("forward"):
            note_tokens(sum(len(answer) for group in chosen for answer in group.answers))
            with device.autocast():
                scores_BC = model.module.batch_scores(group_batch(chosen, model.template.pad_id, device.torch))
            loss, metrics = judged_loss(scores_BC, chosen, model.tasks, count=count)
        backward(loss + config.score_size * score_size(scores_BC, count=answers * len(model.tasks)))
        means.add(metrics)
    return means.totals()


# ---------------------------------------------------------------------------------------------------------- the loss


def judged_weight(groups: Sequence[Group]) -> float:
    """The weight of all judgements together, which a mean over them divides by."""
    return sum((judged.weight for kind in flatten(groups) for _, judged in kind), 0.0)


def flatten(
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
) -> tuple[Tensor, LossMetrics]:
    """Comparisons by Bradley-Terry, rankings by Plackett-Luce, ratings by squares, classes by cross entropy; over `count`.

    `count` is the weight of all judgements of the whole step. LossMetrics: the loss, and the `accuracy` of the pairs, over `count` too.
    """
    row_of = {task.name: row for row, task in enumerate(tasks)}
    pairs, rankings, ratings = flatten(groups)
    metrics: LossMetrics = {}
    losses = []
    if pairs:
        loss, metrics = pair_loss(scores_BC, pairs, row_of, count)
        losses.append(loss)
    if rankings:
        losses.append(ranking_loss(scores_BC, rankings, row_of, count))
    if ratings:
        losses.append(rating_loss(scores_BC, ratings, tasks, count))
    total = torch.stack(losses).sum()
    return total, {**metrics, "loss": total.detach()}


def pair_loss(
    scores_BC: Tensor, pairs: Sequence[tuple[int, Compared]], row_of: Mapping[str, int], count: Tensor | float
) -> tuple[Tensor, LossMetrics]:
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
    scores_BC: Tensor, ratings: Sequence[tuple[int, Rated]], tasks: Sequence[Task], count: Tensor | float
) -> Tensor:
    """Ratings are learnt in standard deviations from their mean, so that a rate of learning suits any scale; classes as they are."""
    device, losses = scores_BC.device, []
    for kind, loss_of in (("score", rating), ("binary", classification)):
        rows = {task.name: row for row, task in enumerate(tasks) if task.kind == kind}
        ours = [(start + r.answer, rows[r.task], r) for start, r in ratings if r.task in rows]
        place_N = torch.tensor([place for place, _, _ in ours], dtype=torch.long, device=device)
        row_N = torch.tensor([row for _, row, _ in ours], dtype=torch.long, device=device)
        numbers = [[(r.value - tasks[row].rating_mean) / tasks[row].rating_sd, r.weight] for _, row, r in ours]
        value_N, weight_N = torch.tensor(numbers, dtype=scores_BC.dtype, device=device).view(-1, 2).unbind(1)
        losses.append(loss_of(scores_BC[place_N, row_N], value_N, weight_N, count=count)[0])
    return torch.stack(losses).sum()


# -------------------------------------------------------------------------------------- what is wrong before it starts


def check_judgements(model: RewardModel, groups: Sequence[Group]) -> None:
    """Raise DataError, before any step, for what cannot be learnt or would be learnt wrong."""
    pairs, rankings, ratings = flatten(groups)
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
        if not (LEAST < weight < MOST and abs(value) < MOST and 0 <= target <= 1):
            raise DataError(
                f"a judgement has weight {weight}, margin or value {value} and target {target}; it needs a weight above 0, "
                f"finite numbers from {LEAST:g} to {MOST:g}, and a target from 0 to 1"
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
    """Keep mean and standard deviation of each task's ratings by their weights, so that its scores can be read in their units."""
    for task in model.tasks:
        rated = [(one.value, one.weight) for _, one in flatten(groups)[2] if one.task == task.name]
        if rated and task.kind == "score":
            value, weight = np.array(rated).T
            task.rating_mean = float(np.average(value, weights=weight))
            task.rating_sd = math.sqrt(np.average((value - task.rating_mean) ** 2, weights=weight))


# ------------------------------------------------------------------------------------- what its numbers mean afterwards


def set_centre_and_scale(model: RewardModel, reference_scores: Tensor, probes: Sequence[list[int]]) -> None:
    """Centre and scale on the reference's answers ([N], or [N, C] for several tasks), and keep a few sequences with
    their scores to check on loading. Scores that are all equal have no scale of their own: 1."""
    scores_NC = reference_scores.reshape(-1, len(model.tasks))
    if len(scores_NC) < 2 or not bool(torch.isfinite(scores_NC).all()):
        raise NoUsableRows(
            f"centring a reward model needs at least two finite scores, got {reference_scores[:5].tolist()}"
        )
    for task, scores_N in zip(model.tasks, scores_NC.unbind(1), strict=True):
        differ = bool(scores_N.amax() > scores_N.amin())  # of equal ones the deviation is rounding, not always 0
        task.centre, task.scale = float(scores_N.mean()), max(float(scores_N.std()), 1e-6) if differ else 1.0
    device = model.module.score.weight.device
    model.probes = [{"ids": list(ids), "scores": probe_scores(model.module, ids, device)} for ids in probes]


def fit_temperatures(model: RewardModel, groups: Sequence[Group], device: Device) -> dict[str, dict[str, float | None]]:
    """Each task's temperature, on held-out judgements, and how far its probabilities are from what happened, before and after.

    A pair says P(better beats worse) = σ(gap / T), a class P(1) = σ(s / T). Every other group fits T, the rest
    tell the expected calibration error, so it is not measured on what was fitted. With fewer than `FEW` judgements in
    a half T stays 1 and the error unknown (None).
    """
    prompts = [group.prompt for group in groups for _ in group.answers]
    answers = [answer for group in groups for answer in group.answers]
    scores_BC = task_scores(model, prompts, answers, device) if groups else torch.zeros(0, len(model.tasks))
    found: dict[str, dict[str, float | None]] = {}
    pairs, _, ratings = flatten(groups)
    half_of = {start: i % 2 for i, start in enumerate(accumulate((len(g.answers) for g in groups), initial=0))}
    for row, task in enumerate(model.tasks):
        score = scores_BC[:, row].tolist()
        judged: list[tuple[int, float, float, float]] = []  # half, gap, confidence that it is above 0, weight
        if task.kind == "binary":
            judged += [(half_of[s], score[s + r.answer], r.value, r.weight) for s, r in ratings if r.task == task.name]
        else:
            named = [(s, p) for s, p in pairs if p.task == task.name]
            judged += [(half_of[s], score[s + p.better] - score[s + p.worse], p.target, p.weight) for s, p in named]
        fitted, kept = ([row[1:] for row in judged if row[0] == half] for half in (0, 1))
        metrics: dict[str, float | None] = {"temperature": 1.0, "ece_before": None, "ece_after": None}
        if min(len(fitted), len(kept)) >= FEW:
            both = [(sign * gap, w * share) for gap, p, w in fitted for sign, share in ((1, p), (-1, 1 - p)) if share]
            task.temperature = fit_temperature([gap for gap, _ in both], [weight for _, weight in both])
            metrics = {"temperature": task.temperature, "ece_before": error_of(kept, 1.0)}
            metrics["ece_after"] = error_of(kept, task.temperature)
        found[task.name] = metrics
    return found


def error_of(judged: Sequence[tuple[float, float, float]], temperature: float) -> float:
    """Expected calibration error of the probability of the side that scores higher, over (gap, confidence, weight)."""
    gap, confidence, weight = np.array(judged).T
    predicted = 1 / (1 + np.exp(-np.abs(gap) / temperature))
    return ece(predicted, 0.5 + np.sign(gap) * (confidence - 0.5), weight)
