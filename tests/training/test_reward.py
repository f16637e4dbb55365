"""Reward models: pairs of a prompt together, a taste that can be learnt, one that cannot, and a scale that stays."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bridle.core.errors import NoUsableRows
from bridle.models.batches import Batch, Group, group_batch
from bridle.models.policy import RewardModel
from bridle.models.scorer import scorer_from
from bridle.project.metrics import read_metrics
from bridle.recipe.offline import RewardSection
from bridle.rewards.learned import task_scores
from bridle.training import reward
from tests.models.tiny import policy, template
from tests.training.runs import DEVICE, STOP, dying_at, groups, run_in, same, saved_state, session, weights

CONFIG = RewardSection(batch_size=4)


def fresh() -> RewardModel:
    return RewardModel(scorer_from(policy().module, torch.Generator().manual_seed(0)), template(), "new")


def accuracy(model: RewardModel, held_out: Sequence[Group]) -> float:
    right = []
    for group in held_out:
        scores = task_scores(model, [group.prompt] * len(group.answers), group.answers, DEVICE)[:, 0]
        right += [float(scores[better] > scores[worse]) for better, worse, _ in group.pairs]
    return sum(right) / len(right)


def test_all_pairs_of_a_prompt_are_in_one_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    batches: list[list[Group]] = []
    plain = group_batch

    def watch(chosen: Sequence[Group], pad_id: int, device: torch.device) -> Batch:
        batches.append(list(chosen))
        return plain(chosen, pad_id, device)

    monkeypatch.setattr(reward, "group_batch", watch)
    given = groups(10, seed=0)
    result = reward.train(fresh(), given, CONFIG, 2, 1e-3, session(run_in(tmp_path)))
    assert [sorted(map(len, batches[n : n + 3])) for n in (0, 3)] == [[2, 4, 4]] * 2
    for number in (0, 1):
        passed = [group.prompt for batch in batches[3 * number : 3 * number + 3] for group in batch]
        assert sorted(passed) == sorted(group.prompt for group in given)
    assert result == {"steps": 6, "prompts": 10, "pairs": 60}


def test_the_first_loss_weighs_each_prompt_once_however_many_pairs_it_has(tmp_path: Path) -> None:
    many, few = groups(1, seed=0)[0], Group([7, 8], [[20, STOP], [30, STOP]], [(1, 0, 1.0)])
    model = fresh()

    def loss(group: Group) -> torch.Tensor:
        scores = task_scores(model, [group.prompt] * len(group.answers), group.answers, DEVICE)[:, 0]
        gaps = torch.stack([scores[better] - scores[worse] for better, worse, _ in group.pairs])
        return -torch.nn.functional.logsigmoid(gaps).mean()

    expected = (loss(many) + loss(few)) / 2
    reward.train(model, [many, few], CONFIG, 1, 1e-3, session(run_in(tmp_path)))
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_taste_is_learnt_and_a_coin_is_not(tmp_path: Path) -> None:
    held_out = groups(60, seed=50)
    tasteful, shuffled = fresh(), fresh()
    reward.train(tasteful, groups(200, seed=0), CONFIG, 3, 3e-3, session(run_in(tmp_path / "taste")))
    coins = torch.Generator().manual_seed(1)
    reward.train(shuffled, groups(200, seed=0, coins=coins), CONFIG, 3, 3e-3, session(run_in(tmp_path / "coin")))
    found = {"taste": accuracy(tasteful, held_out), "coin": accuracy(shuffled, held_out)}
    assert found["taste"] > 0.75 and abs(found["coin"] - 0.5) < 0.13, found


def test_groups_without_a_pair_are_not_read_and_none_at_all_is_said(tmp_path: Path) -> None:
    empty, model = Group([5], [[1], [2]], []), fresh()
    before = weights(model.module)
    with pytest.raises(NoUsableRows, match="needs pairs"):
        reward.train(model, [empty], CONFIG, 1, 1e-3, session(run_in(tmp_path / "none")))
    assert same(before, model.module)
    result = reward.train(model, [empty, *groups(1, seed=0)], CONFIG, 1, 1e-3, session(run_in(tmp_path)))
    assert result["prompts"] == 1


def test_scores_are_centred_and_scaled_once_and_probed() -> None:
    model = fresh()
    reward.set_centre_and_scale(model, torch.tensor([1.0, 3.0, 5.0]), [[5, 6, STOP], [7, STOP]])
    assert model.tasks[0].centre == 3.0 and model.tasks[0].scale == 2.0
    expected = task_scores(model, [[5], [7]], [[6, STOP], [STOP]], DEVICE)[:, 0]
    assert [probe["ids"] for probe in model.probes] == [[5, 6, STOP], [7, STOP]]
    assert [probe["scores"][0] for probe in model.probes] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_scale_cannot_come_from_too_few_or_from_broken_scores(scores: list[float]) -> None:
    with pytest.raises(NoUsableRows, match="at least two finite scores"):
        reward.set_centre_and_scale(fresh(), torch.tensor(scores), [])


@pytest.mark.parametrize("score", [2.0, 0.3, 0.1])
def test_equal_scores_have_a_scale_of_one(score: float) -> None:
    """Neither 0, nor what rounding leaves of their deviation: a last digit would be as much as a good answer."""
    model = fresh()
    reward.set_centre_and_scale(model, torch.full((7,), score), [])
    assert model.tasks[0].scale == 1.0 and model.tasks[0].centre == pytest.approx(score)
    reward.set_centre_and_scale(model, torch.tensor([score, score, score + 1e-3]), [])
    assert model.tasks[0].scale == pytest.approx(1e-3 / 3**0.5, rel=1e-3)


def test_a_run_that_died_remembers_its_mean_loss(tmp_path: Path) -> None:
    given, config = groups(12, seed=0), RewardSection(batch_size=4, checkpoint_every=2)
    whole, resumed = fresh(), fresh()
    for model, folder in ((whole, "whole"), (resumed, "cut")):
        if folder == "cut":
            with dying_at(4):
                reward.train(fresh(), given, config, 2, 1e-3, session(run_in(tmp_path / folder)))
        reward.train(model, given, config, 2, 1e-3, session(run_in(tmp_path / folder)))
    assert same(weights(whole.module), resumed.module)
    assert saved_state(tmp_path / "cut") == saved_state(tmp_path / "whole")
    assert saved_state(tmp_path / "cut")["selection_score"] == -saved_state(tmp_path / "cut")["values"]["loss_average"]
