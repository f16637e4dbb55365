"""The experiments on noisy labels and on rankings: their worlds are what they say, and run small they come out as they must."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from experiments.harness import judged


def script(name: str) -> ModuleType:
    """A script as a module: `experiments/` is no package."""
    path = Path(__file__).parents[2] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def noise() -> ModuleType:
    return script("noise")


@pytest.fixture(scope="module")
def rankings() -> ModuleType:
    return script("rankings")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_person_prefers_by_the_gap_and_slips_as_often_as_was_said(noise: ModuleType) -> None:
    gold = torch.full((4,), 0.5, dtype=torch.float64)
    drawn = noise.draw(gold, 40_000, 0.25, generator())
    slips = (drawn.clean_P != drawn.slipped_P).double().mean()
    assert float(slips) == pytest.approx(0.25, abs=0.01)
    gap = drawn.difference_PD @ gold
    near = (gap > 0.9) & (gap < 1.1)
    assert float((drawn.clean_P[near] > 0).double().mean()) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)
    assert float(gap.var()) == pytest.approx(2 * 4 * 0.25, rel=0.05)


def test_a_linear_reward_model_finds_the_gold_that_made_its_labels(noise: ModuleType) -> None:
    gold = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    drawn = noise.draw(gold, 30_000, 0.0, generator())
    assert noise.learn(drawn.difference_PD, drawn.clean_P).tolist() == pytest.approx(gold.tolist(), abs=0.05)
    assert noise.right(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])) == pytest.approx(2 / 3)
    assert noise.right(torch.zeros(3), torch.tensor([1.0, -1.0, 1.0])) == 0.5, "a tie is half right"


def test_rankings_are_drawn_by_plackett_luce(rankings: ModuleType) -> None:
    """The first is chosen with probability ∝ exp(gold): compared on the draws' own answers."""
    gold = torch.tensor([1.0, 0.0], dtype=torch.float64)
    answers = rankings.rank_answers(gold, 40_000, 3, generator())
    expected = (answers @ gold).softmax(1)[:, 0]  # the chance of the one that came first, given the three
    other = (answers @ gold).softmax(1).square().sum(1)  # its mean, for E[p of the chosen] = Σ p²
    assert float(expected.mean()) == pytest.approx(float(other.mean()), abs=0.005)
    assert rankings.differences(answers).shape == (40_000, 3, 2)
    assert torch.equal(rankings.differences(answers)[:, 0], answers[:, 0] - answers[:, 1])


def test_both_losses_are_one_for_rankings_of_two(rankings: ModuleType) -> None:
    gold, draws = rankings.world(0)
    answers = rankings.rank_answers(gold, 200, 2, draws)
    pairs, whole = (rankings.learn(answers, whole) for whole in (False, True))
    torch.testing.assert_close(pairs, whole, rtol=0, atol=1e-5)


def test_accuracy_follows_from_the_angle(rankings: ModuleType) -> None:
    gold, other = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double()
    assert rankings.accuracy(other, gold) == pytest.approx(0.75) and rankings.accuracy(3 * gold, gold) == 1.0
    answers = torch.randn(20_000, 2, 2, generator=generator(), dtype=torch.float64)
    gap = rankings.differences(answers)[:, 0]
    assert float(((gap @ other > 0) == (gap @ gold > 0)).double().mean()) == pytest.approx(0.75, abs=0.01)


def test_pairs_apart_take_more_steps(rankings: ModuleType) -> None:
    gold, draws = rankings.world(0)
    answers = rankings.rank_answers(gold, 16, 4, draws)
    together, apart = (rankings.in_minibatches(answers, apart, 1, generator()) for apart in (False, True))
    assert float(together.abs().max()) < 0.021 < float(apart.abs().max()), "2 steps of .01 against 12"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seeds"), [("noise", 5), ("rankings", 8)])
def test_fewer_seeds_come_out_as_they_must(name: str, seeds: int) -> None:
    experiment = replace(script(name).EXPERIMENT, seeds=range(seeds))
    result = judged(experiment, [experiment.measure(seed) for seed in experiment.seeds])
    assert result["verdict"] == "holds", [one for one in result["claims"] + result["controls"] if not one["holds"]]
