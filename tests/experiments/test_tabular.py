"""The enumerated world: what is told to be exact is, and a run does not depend on those beside it."""

from __future__ import annotations

import pytest
import torch

from bridle.maths.kl import KLControl
from experiments import tabular
from experiments.tabular import (
    ANSWER_OF,
    IDS_AL,
    MASK_AL,
    PLACES,
    STOP,
    TOKENS,
    Practice,
    answer_logp,
    beta_for,
    compare,
    kl_between,
    label,
    learn_reward,
    make_world,
    mean_and_sd,
    optimum,
    pair_accuracy,
    practise,
    sample,
    scores,
)


def test_every_answer_is_there_once_and_holds_all_probability() -> None:
    assert len(IDS_AL) == sum(5**length for length in range(PLACES + 1)) == len(set(map(tuple, IDS_AL.tolist())))
    world = make_world([0, 1])
    assert answer_logp(world.reference_RSV).logsumexp(1).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert (ANSWER_OF[(IDS_AL * TOKENS ** torch.arange(PLACES)).sum(1)] == torch.arange(len(IDS_AL))).all()
    assert (IDS_AL[:, 0] == STOP).sum() == 1 and MASK_AL.sum(1).min() == 1, "the empty answer is one stop"


def test_gold_by_hand() -> None:
    points = tabular.gold_points(generator := torch.Generator().manual_seed(3))
    best, good, sweet, bad, lead = torch.randperm(5, generator=torch.Generator().manual_seed(3)).tolist()
    assert generator is not None

    def of(*symbols: int) -> float:
        ids = [*symbols, *[STOP] * (PLACES - len(symbols))]
        return float(points[(IDS_AL == torch.tensor(ids)).all(1).nonzero()[0, 0]])

    assert of() == 0 and of(best) == 1 and of(best, best) == 2
    assert of(best, best, best) == pytest.approx(2 - 0.9 - 0.6), "one too many, and a run of three"
    assert of(lead, best) == pytest.approx(1.8) and of(good, bad) == pytest.approx(0.7 - 0.5)
    assert of(sweet, best, sweet) == pytest.approx(1 + 0.6 - 0.8)
    assert of(*[good, best] * 3) == pytest.approx(0.7 - 2 * 0.5 + 2 - 0.9 - 1), "cut off"


def test_what_is_sampled_follows_the_table() -> None:
    world = make_world([0])
    answer_B = sample(world.reference_RSV, 40_000, world.draws)[0]
    expected = answer_logp(world.reference_RSV).exp()[0]
    share = torch.bincount(answer_B, minlength=len(expected)).double() / 40_000
    assert float((share - expected).abs().max()) < 0.01
    assert float(world.gold.points_RA[0][answer_B].mean()) == pytest.approx(float(world.mean_sd_R[0][0]), abs=0.03)
    some = answer_logp(world.reference_RSV, answer_B[None, :50])
    torch.testing.assert_close(some, answer_logp(world.reference_RSV)[:, answer_B[:50]])


def test_the_optimum_is_one_and_its_beta_is_found() -> None:
    world = make_world([0, 1])
    reference, reward = answer_logp(world.reference_RSV), world.gold.points_RA
    beta = beta_for(reference, reward, 2.0)
    best = optimum(reference, reward, beta)
    assert kl_between(best, reference).tolist() == pytest.approx([2, 2], abs=1e-6)
    highest = beta * (reference + reward / beta[:, None]).logsumexp(1)
    reached = mean_and_sd(best, reward)[0] - beta * kl_between(best, reference)
    torch.testing.assert_close(reached, highest)


def test_a_run_is_the_same_alone_and_among_others() -> None:
    def tables(seeds: list[int]) -> torch.Tensor:
        world = make_world(seeds)
        reward = learn_reward(world, label(world, world.reference_RSV, 300, 0.25, "labels"))
        controls = [KLControl(0.1, 2.0) for _ in seeds]
        return practise(world, scores(reward), controls, Practice(6, 16, 2, 0.05), lambda *state: None)

    torch.testing.assert_close(tables([5])[0], tables([4, 5])[1], rtol=0, atol=1e-12)


def test_labels_follow_gold_and_every_call_is_counted() -> None:
    world = make_world([0])
    labels = label(world, world.reference_RSV, 3000, 0.25, "labels")
    gap = world.gold.points_RA[0][labels.first_RP[0]] - world.gold.points_RA[0][labels.second_RP[0]]
    expected = 0.25 + 0.5 * gap.sigmoid()
    assert float((labels.won_RP[0].double() - expected).mean()) == pytest.approx(0, abs=0.03)
    assert world.gold.calls == {"labels": 6000}
    compare(world, labels.first_RP[:, :10], labels.second_RP[:, :10], 0.0, "audit")
    assert world.gold.calls == {"labels": 6000, "audit": 20}
    reward = learn_reward(world, labels)
    assert mean_and_sd(answer_logp(world.reference_RSV), reward)[1].tolist() == pytest.approx([1.0])
    assert 0.6 < float(pair_accuracy(reward, label(world, world.reference_RSV, 3000, 0.0, "evaluation"))[0]) < 0.8
