"""What a reward model learns besides pairs: several tasks, rankings, ratings, classes, ties and margins; and its chances."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bridle.core.errors import BridleError
from bridle.maths.losses import bradley_terry, classification, plackett_luce, rating
from bridle.models.batches import Compared, Group, Ranked, Rated, group_batch
from bridle.models.policy import RewardModel, Task
from bridle.models.scorer import scorer_from
from bridle.project.metrics import read_metrics
from bridle.recipe.offline import RewardSection
from bridle.rewards.learned import task_scores
from bridle.training import reward
from tests.models.tiny import one_sentence, policy, template
from tests.training.runs import DEVICE, STOP, groups, run_in, same, session, weights

CONFIG = RewardSection(batch_size=4)
TWO = [Task("good"), Task("toxic", "binary")]


def fresh(tasks: Sequence[Task] = (), shape: str = "llama") -> RewardModel:
    named = [replace(task) for task in tasks] or [Task()]
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(0), len(named))
    return RewardModel(scorer, template(), "new", named)


def learn(model: RewardModel, given: Sequence[Group], folder: Path, epochs: int = 3) -> RewardModel:
    reward.train(model, given, CONFIG, epochs, 3e-3, session(run_in(folder)))
    return model


def scores(model: RewardModel, given: Sequence[Group]) -> Tensor:
    """[B, C] of all answers."""
    prompts = [group.prompt for group in given for _ in group.answers]
    return task_scores(model, prompts, [answer for group in given for answer in group.answers], DEVICE)


def places(given: Sequence[Group]) -> Tensor:
    """Each answer's place among its prompt's four, 0 the best, [B]."""
    order = [[pair[0] for pair in group.pairs[:1]] + [pair[1] for pair in group.pairs[:3]] for group in given]
    return torch.tensor([[best.index(i) for i in range(4)] for best in order]).flatten()


def accuracy(found: Tensor, given: Sequence[Group], sign: float = 1.0) -> float:
    """Share of the groups' pairs that these scores [B] order as `groups` does, or the other way round."""
    starts = range(0, 4 * len(given), 4)
    right = [
        sign * (found[s + p[0]] - found[s + p[1]]) > 0 for s, g in zip(starts, given, strict=True) for p in g.pairs
    ]
    return float(torch.stack(right).float().mean())


# ------------------------------------------------------------------------------------------------- what can be learnt


def test_two_tasks_of_one_model_learn_opposite_tastes(tmp_path: Path) -> None:
    def both(group: Group) -> Group:
        liked = [Compared(*pair, task="kind") for pair in group.pairs]
        turned = [Compared(pair[1], pair[0], pair[2], task="curt") for pair in group.pairs]
        return replace(group, pairs=liked + turned)

    model = learn(fresh([Task("kind"), Task("curt")]), [both(g) for g in groups(150, seed=0)], tmp_path)
    held_out = groups(60, seed=50)
    found = scores(model, held_out)
    assert accuracy(found[:, 0], held_out) > 0.7 and accuracy(found[:, 1], held_out, -1.0) > 0.7
    assert model.row("curt") == 1 and model.row("") == 0


def test_whole_rankings_are_learnt(tmp_path: Path) -> None:
    def rank_answers(given: Sequence[Group]) -> list[Group]:
        rank = places(given).view(-1, 4).tolist()
        return [replace(g, pairs=[], rankings=[Ranked(tuple(r))]) for g, r in zip(given, rank, strict=True)]

    model = learn(fresh(), rank_answers(groups(200, seed=0)), tmp_path)
    held_out = groups(60, seed=50)
    assert accuracy(scores(model, held_out)[:, 0], held_out) > 0.75
    assert set(read_metrics(tmp_path)[0]) >= {"loss", "grad_norm"}


def test_ratings_and_classes_are_learnt_by_one_model(tmp_path: Path) -> None:
    """Ratings of 20, 40, 60 and 80 by place; the last two places are the class."""

    def rated(given: Sequence[Group]) -> list[Group]:
        rank = places(given).view(-1, 4).tolist()
        return [
            replace(
                group,
                pairs=[],
                ratings=[
                    *(Rated(i, 80.0 - 20 * place, task="good") for i, place in enumerate(row)),
                    *(Rated(i, float(place >= 2), task="toxic") for i, place in enumerate(row)),
                ],
            )
            for group, row in zip(given, rank, strict=True)
        ]

    held_out = groups(60, seed=50)
    model = learn(fresh(TWO), rated(groups(250, seed=0)), tmp_path, epochs=4)
    found, rank = scores(model, held_out), places(held_out)
    assert (model.tasks[0].rating_mean, model.tasks[0].rating_sd) == (50.0, pytest.approx(math.sqrt(500)))
    told = model.tasks[0].rating(found[:, 0])
    truth = 80.0 - 20 * rank
    assert float((told - truth).square().mean()) < 0.8 * 500, "closer than the mean of all ratings"
    chance = model.tasks[1].probability(found[:, 1])
    assert bool(((chance > 0) & (chance < 1)).all())
    assert float(((chance > 0.5) == (rank >= 2)).float().mean()) > 0.65


def test_a_margin_drives_scores_further_apart_and_ties_together(tmp_path: Path) -> None:
    given = groups(60, seed=0)
    wide = [replace(g, pairs=[Compared(*p, margin=3.0) for p in g.pairs]) for g in given]
    tied = [replace(g, pairs=[Compared(*p, target=0.5) for p in g.pairs]) for g in given]
    spread = {
        name: float(scores(learn(fresh(), some, tmp_path / name), given).view(-1, 4).std(1).mean())
        for name, some in (("plain", given), ("wide", wide), ("tied", tied))
    }
    assert spread["wide"] > 1.3 * spread["plain"] and spread["tied"] < 0.5 * spread["plain"], spread


# -------------------------------------------------------------------------------------------------------- the loss

MIXED = [
    Group([5], [[6, STOP], [7, STOP]], [Compared(1, 0, 0.5, 0.9, 0.3, "good")], [Ranked((1, 0), 2.0, "toxic")]),
    Group(
        [5, 8], [[6, STOP], [9, 7, STOP], [11, STOP]], [],
        [Ranked((0, -1, 1), 1.0, "good")], [Rated(2, 3.0, 0.25, "good"), Rated(1, 1.0, 4.0, "toxic")],
    ),
]  # fmt: skip


def test_the_loss_is_the_sum_of_what_each_judgement_says() -> None:
    torch.manual_seed(0)
    found, tasks = torch.randn(5, 2, dtype=torch.float64), [Task("good", rating_mean=2.0, rating_sd=4.0), TWO[1]]
    loss, stats = reward.judged_loss(found, MIXED, tasks, count=10)
    good, toxic = found.unbind(1)

    def one(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    parts = [
        bradley_terry(good[1:2], good[0:1], one(0.5), count=10, target_P=one(0.9), margin_P=one(0.3))[0],
        plackett_luce(toxic[None, :2], torch.tensor([[1, 0]]), one(2.0), count=10)[0],
        plackett_luce(good[None, 2:], torch.tensor([[0, -1, 1]]), one(1.0), count=10)[0],
        rating(good[4:], one((3.0 - 2.0) / 4.0), one(0.25), count=10)[0],
        classification(toxic[3:4], one(1.0), one(4.0), count=10)[0],
    ]
    assert float(loss) == pytest.approx(float(sum(parts)), abs=1e-6)
    assert float(stats["loss"]) == float(loss)
    assert reward.judged_weight(MIXED) == 0.5 + 2 + 1 + 0.25 + 4


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_the_scores_size_is_a_mean_over_answers_and_tasks(micro_batch: int) -> None:
    """Five answers and two tasks: what the setting adds to the gradient is that of ten squares' mean."""
    model, found = fresh(TWO), []
    for size in (0.0, 0.5):
        model.module.zero_grad()
        reward.judge(model, MIXED, RewardSection(score_size=size, micro_batch=micro_batch), DEVICE)
        found.append({name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None})
    model.module.zero_grad()
    batch = group_batch(MIXED, model.template.pad_id, DEVICE.torch)
    scores_BC = model.module.batch_scores(batch)
    assert scores_BC.shape == (5, 2)
    (0.5 * scores_BC.square().sum() / 10).backward()
    for name, parameter in model.module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[1][name] - found[0][name], parameter.grad, rtol=1e-3, atol=1e-5)
    row = model.module.score.weight.grad
    assert row is not None and bool((row.abs().amax(1) > 1e-3).all()), "both tasks' rows are pulled"


def test_judgements_pull_the_same_however_a_step_is_cut_up() -> None:
    torch.manual_seed(1)
    features, row = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)

    def gradient(parts: Sequence[tuple[int, int, slice]]) -> Tensor:
        head = row.clone().requires_grad_()
        for first, last, answers in parts:
            reward.judged_loss(features[answers] @ head, MIXED[first:last], TWO, count=7.75)[0].backward()
        assert head.grad is not None
        return head.grad

    whole, halves = gradient([(0, 2, slice(0, 5))]), gradient([(0, 1, slice(0, 2)), (1, 2, slice(2, 5))])
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-12)
    head = row.clone().requires_grad_()
    turned = torch.cat((features[2:], features[:2]))  # a short ranking stands last: nothing beyond the answers is read
    reward.judged_loss(turned @ head, MIXED[::-1], TWO, count=7.75)[0].backward()
    torch.testing.assert_close(head.grad, whole, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- bad judgements


def said(**what: object) -> Callable[[], list[Group]]:
    return lambda: [Group([5], [[6, STOP], [7, STOP]], **what)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (said(), "got none; collect or import comparisons"),
        (said(pairs=[Compared(0, 1, task="helpful")]), "has no task 'helpful'; it judges by good, toxic"),
        (said(rankings=[Ranked((0, 1))]), "has no task 'reward'"),
        (said(pairs=[Compared(0, 2, task="good")]), "has 2 answers, but its judgements are of answers [0, 2]"),
        (said(ratings=[Rated(-1, 1.0, task="good")]), "of answers [-1]"),
        (said(rankings=[Ranked((0, 1, 2), task="good")]), "[3] at a time"),
        (said(pairs=[Compared(0, 1, 0.0, task="good")]), "it needs a weight above 0"),
        (said(pairs=[Compared(0, 1, 1e38, task="good")]), "from 1e-30 to 1e+30"),
        (said(pairs=[Compared(0, 1, 1e-60, task="good")]), "from 1e-30 to 1e+30"),
        (said(pairs=[Compared(0, 1, 1.0, 1.5, task="good")]), "and a target from 0 to 1"),
        (said(pairs=[Compared(0, 1, margin=math.nan, task="good")]), "finite numbers"),
        (said(ratings=[Rated(0, math.inf, task="good")]), "finite numbers"),
        (said(ratings=[Rated(0, 4.0, task="good"), Rated(1, 4.0, task="good")]), "are 4, so there is nothing to tell apart"),
        (said(ratings=[Rated(0, 1.0, task="toxic"), Rated(1, 1.0, task="toxic")]), "it needs answers of both classes"),
        (said(ratings=[Rated(0, 1.0, task="toxic"), Rated(1, 0.5, task="toxic")]), "it takes 0 and 1"),
    ],
)  # fmt: skip
def test_bad_judgements_end_before_any_step_in_one_sentence(
    given: Callable[[], list[Group]], words: str, tmp_path: Path
) -> None:
    model = fresh(TWO)
    before = weights(model.module)
    with pytest.raises(BridleError) as caught:
        learn(model, given(), tmp_path)
    assert words in str(caught.value) and one_sentence(str(caught.value)), str(caught.value)
    assert same(before, model.module) and not read_metrics(tmp_path)


# ------------------------------------------------------------------------------------------- what its numbers mean


def coin_groups(count: int, model: RewardModel, temperature: float, seed: int) -> list[Group]:
    """Groups of two answers whose winner is drawn with P = σ(gap / temperature) of the model's own first row."""
    draws = torch.Generator().manual_seed(seed)
    made = [replace(g, answers=g.answers[:2], pairs=[Compared(0, 1)]) for g in groups(count, seed)]
    found = scores(model, made)[:, 0].view(-1, 2)
    lost = torch.rand(count, generator=draws) > ((found[:, 0] - found[:, 1]) / temperature).sigmoid()
    return [replace(g, pairs=[Compared(1, 0)]) if turn else g for g, turn in zip(made, lost.tolist(), strict=True)]


def test_a_temperature_makes_the_chances_true() -> None:
    model = fresh()
    with torch.no_grad():
        model.module.score.weight.mul_(4)
    spread = float(scores(model, groups(50, 3)).std())
    judged = coin_groups(600, model, temperature=spread, seed=3)
    found = reward.fit_temperatures(model, judged, DEVICE)["reward"]
    assert found["temperature"] == model.tasks[0].temperature == pytest.approx(spread, rel=0.3)
    assert found["ece_before"] > found["ece_after"] and found["ece_after"] < 0.1, found


def test_soft_labels_and_weights_are_measured_as_they_are() -> None:
    """People as sure as the model is are no error; judgements of almost no weight hardly count; equal scores favour nobody."""
    gaps = np.linspace(-2, 2, 101)
    sure = [(gap, 1 / (1 + math.exp(-gap)), 1.0) for gap in gaps.tolist()]
    assert reward.error_of(sure, 1.0) < 1e-9
    assert reward.error_of([*sure, *((gap, 0.0, 1e-9) for gap in gaps.tolist())], 1.0) < 1e-6
    assert reward.error_of([(0.0, 1.0, 1.0), (0.0, 0.5, 2.0), (0.0, 0.0, 1.0)], 1.0) == 0.0
    assert reward.error_of([(0.0, 1.0, 1.0)], 1.0) == 0.0


def test_a_soft_labeler_who_is_calibrated_has_no_error() -> None:
    model = fresh()
    with torch.no_grad():
        model.module.score.weight.mul_(4)
    made = [replace(g, answers=g.answers[:2], pairs=[]) for g in groups(100, 3)]
    raw = scores(model, made)[:, 0].view(-1, 2)
    chance = ((raw[:, 0] - raw[:, 1]) / 0.5).sigmoid().tolist()
    judged = [
        replace(g, pairs=[Compared(0, 1, 1 + i % 3, p)]) for i, (g, p) in enumerate(zip(made, chance, strict=True))
    ]
    found = reward.fit_temperatures(model, judged, DEVICE)["reward"]
    assert found["temperature"] == pytest.approx(0.5, rel=1e-2) and found["ece_after"] < 0.01 < found["ece_before"], (
        found
    )


def test_ratings_are_standardised_by_their_weights() -> None:
    values, weights = [1.0, 5.0], [3.0, 1.0]
    model = fresh(TWO)
    rated = [Rated(i, v, w, task="good") for i, (v, w) in enumerate(zip(values, weights, strict=True))]
    reward.measure_ratings(model, [replace(groups(1, 0)[0], pairs=[], ratings=rated)])
    assert model.tasks[0].rating_mean == pytest.approx(2.0) and model.tasks[0].rating_sd == pytest.approx(3**0.5)


def test_the_temperature_does_not_see_what_the_error_is_measured_on() -> None:
    model = fresh()
    judged = coin_groups(100, model, temperature=0.5, seed=3)
    first = reward.fit_temperatures(model, judged, DEVICE)["reward"]
    turned = [replace(g, pairs=[Compared(g.pairs[0][1], g.pairs[0][0])]) if i % 2 else g for i, g in enumerate(judged)]
    second = reward.fit_temperatures(model, turned, DEVICE)["reward"]
    assert first["temperature"] == second["temperature"]
    assert first["ece_before"] != second["ece_before"] and first["ece_after"] != second["ece_after"]


def test_too_few_judgements_fit_no_temperature() -> None:
    model = fresh()
    nothing = {"temperature": 1.0, "ece_before": None, "ece_after": None}
    assert reward.fit_temperatures(model, groups(3, seed=0), DEVICE) == {"reward": nothing}
    assert reward.fit_temperatures(model, [], DEVICE) == {"reward": nothing}


def test_each_task_has_a_temperature_of_its_own() -> None:
    """A classifier whose logits are ten times too large, and a score of which nothing is known."""
    model = fresh(TWO)
    given = [replace(g, pairs=[]) for g in groups(100, seed=4)]
    with torch.no_grad():
        model.module.score.weight[1].mul_(30)
    logits = scores(model, given)[:, 1]
    drawn = torch.rand(len(logits), generator=torch.Generator().manual_seed(0)) < (logits / 10).sigmoid()
    given = [
        replace(g, ratings=[Rated(a, float(drawn[4 * i + a]), task="toxic") for a in range(4)])
        for i, g in enumerate(given)
    ]
    found = reward.fit_temperatures(model, given, DEVICE)
    assert found["good"]["temperature"] == 1.0 and found["toxic"]["temperature"] == pytest.approx(10.0, rel=0.35)


def test_every_task_is_centred_and_probed() -> None:
    model = fresh(TWO)
    reward.set_centre_and_scale(model, torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]]), [[5, 6, STOP]])
    assert [(task.centre, task.scale) for task in model.tasks] == [(3.0, 2.0), (30.0, 20.0)]
    expected = task_scores(model, [[5]], [[6, STOP]], DEVICE)[0].tolist()
    assert model.probes == [{"ids": [5, 6, STOP], "scores": pytest.approx(expected, abs=1e-5)}]
    good, toxic = model.tasks
    raw = torch.tensor([3.0, 5.0])
    assert good.reward(raw).tolist() == [0.0, 1.0]
    good.temperature = toxic.temperature = 2.0
    assert good.probability(raw).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))]), "from the centre"
    assert toxic.probability(raw).tolist() == pytest.approx([1 / (1 + math.exp(-x / 2)) for x in (3, 5)]), "from nought"
