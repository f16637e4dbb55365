"""The curve through a reward model's accuracies, and what votes tell."""

import numpy as np
import pytest

from bridle.evaluation.learning_curve import forecast, vote_information


def test_a_power_law_is_carried_on() -> None:
    counts = np.array([50, 100, 200, 400, 800])
    true = lambda n: 0.9 - 0.8 * n**-0.5  # noqa: E731
    found = forecast(counts, true(counts), np.full(5, 0.002), [1600, 6400])
    for one in found:
        assert abs(one.accuracy - true(one.count)) < 0.005 and one.low < true(one.count) < one.high


def test_the_forecast_holds_on_noisy_curves() -> None:
    """Of twice the judgements, by points whose errors are those of 400 held-out pairs."""
    rng, off, within = np.random.default_rng(0), [], 0
    for _ in range(200):
        ceiling, gap, rate = rng.uniform(0.75, 0.97), rng.uniform(0.3, 1.5), rng.uniform(0.3, 0.6)
        true = lambda n: ceiling - gap * n**-rate  # noqa: B023, E731
        counts = np.array([100, 100, 100, 200, 200, 400, 400, 800])
        (one,) = forecast(counts, true(counts) + rng.normal(0, 0.01, 8), np.full(8, 0.01), [1600])
        off.append(abs(one.accuracy - true(1600)))
        within += one.low <= true(1600) <= one.high
    assert np.mean(off) < 0.012 and within > 170


def test_more_judgements_never_harm_and_no_accuracy_passes_one() -> None:
    found = forecast([100, 200, 400], [0.8, 0.79, 0.81], [0.01] * 3, [400, 800, 10**6])
    assert found[0].accuracy <= found[1].accuracy <= found[2].accuracy <= 1
    assert forecast([100, 200], [0.98, 1.0], [0.01] * 2, [10**9])[0].high <= 1


@pytest.mark.parametrize(("counts", "errors"), [([5, 5], [0.1, 0.1]), ([5, 9], [0.1, 0.0]), ([0, 9], [0.1, 0.1])])
def test_what_gives_no_curve_is_refused(counts: list[int], errors: list[float]) -> None:
    with pytest.raises(ValueError, match="a curve needs two counts"):
        forecast(counts, [0.5, 0.6], errors, [10])


def test_votes_tell_ever_less() -> None:
    """By counting: three votes at .8, and 1 - H(.8) for one."""
    assert vote_information(0.8, 1) == pytest.approx(1 + 0.8 * np.log2(0.8) + 0.2 * np.log2(0.2))
    chances = {k: (0.8**k * 0.2 ** (3 - k), 0.2**k * 0.8 ** (3 - k)) for k in range(4)}
    ways = (1, 3, 3, 1)
    told = sum(
        ways[k] * p / 2 * np.log2(p / ((chances[k][0] + chances[k][1]) / 2)) for k in range(4) for p in chances[k]
    )
    assert vote_information(0.8, 3) == pytest.approx(told)
    steps = np.diff([vote_information(0.8, votes) for votes in range(6)])
    assert (np.diff(steps) <= 1e-12).all() and steps[-1] > 0
    assert vote_information(0.5, 9) == pytest.approx(0) and vote_information(1.0, 1) == pytest.approx(1)
