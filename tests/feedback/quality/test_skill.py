"""The noisy Bradley-Terry fit: gradient and Hessian by central differences, its optimum, sides, ties, what has no interval."""

import numpy as np
import pytest

from bridle.feedback.quality.skill import Evidence, evidence, fit, log_posterior, noisy_bradley_terry
from bridle.feedback.quality.votes import FIRST, SECOND, TIE, Vote, Votes, votes_of


def planted(
    gamma: float, q: float, nu: float, count: int = 4000, seed: int = 0, sides: bool = True
) -> tuple[Votes, np.ndarray]:
    """Votes of one person drawn from the model, and the log-odds that the first answer of each is better."""
    rng = np.random.default_rng(seed)
    logit, rows = rng.normal(0, 3, count), []
    for n in range(count):
        first_left = rng.random() < 0.5
        d = logit[n] if first_left else -logit[n]
        p = gamma / (1 + np.exp(-d)) + (1 - gamma) / (1 + np.exp(-q))
        root = np.sqrt(p * (1 - p))
        said = rng.choice([FIRST, TIE, SECOND], p=np.array([p, nu * root, 1 - p]) / (1 + nu * root))
        said = said if first_left else SECOND - said
        ranking = {FIRST: ((0,), (1,)), TIE: ((0, 1),), SECOND: ((1,), (0,))}[int(said)]
        rows.append(Vote(f"{n:05}", "ada", ranking, ((0, 1) if first_left else (1, 0)) if sides else None))
    return votes_of(rows), logit


def mixed(seed: int = 0) -> Evidence:
    """Evidence of three people, with and without sides, ties and weights."""
    rng = np.random.default_rng(seed)
    rows = [
        Vote(
            f"{n:03}",
            f"{rng.integers(3)}",
            [((0,), (1,)), ((0, 1),), ((1,), (0,))][rng.integers(3)],
            [(0, 1), (1, 0), None][rng.integers(3)],
        )
        for n in range(60)
    ]
    rows += [Vote(f"r{n}", f"{n % 3}", ((2,), (0, 1)), (1, 2, 0)) for n in range(6)]
    votes = votes_of(rows)
    return evidence(votes, rng.normal(0, 2, len(votes.unit_V)), np.ones(len(votes.unit_V), dtype=bool))


def test_the_gradient_and_the_hessian_by_central_differences() -> None:
    rows, h = mixed(), 1e-5
    theta = np.random.default_rng(1).normal(0, 1, (3, 3))
    _, gradient, hessian = log_posterior(rows, theta)
    for n in range(3):
        step = np.zeros(3)
        step[n] = h
        (up, gradient_up, _), (down, gradient_down, _) = (
            log_posterior(rows, theta + step),
            log_posterior(rows, theta - step),
        )
        assert np.allclose(gradient[:, n], (up - down) / (2 * h), atol=1e-6)
        assert np.allclose(hessian[:, :, n], (gradient_up - gradient_down) / (2 * h), atol=1e-5)


def test_the_fit_is_the_optimum() -> None:
    rows = mixed(2)
    theta, converged, hessian = fit(rows)
    value, gradient, _ = log_posterior(rows, theta)
    assert converged.all() and np.abs(gradient).max() < 1e-4 and (np.linalg.eigvalsh(hessian) < 0).all()
    rng = np.random.default_rng(0)
    for scale in (0.01, 0.3, 2.0):
        for _ in range(30):
            assert (log_posterior(rows, theta + rng.normal(0, scale, theta.shape))[0] < value).all()


@pytest.mark.parametrize(("gamma", "q", "nu"), [(0.8, 0.0, 0.0), (0.4, 2.5, 0.0), (0.7, -1.0, 0.5), (-0.6, 0.0, 0.2)])
def test_planted_skill_and_side_are_found(gamma: float, q: float, nu: float) -> None:
    votes, logit = planted(gamma, q, nu)
    found = noisy_bradley_terry(votes, logit)
    left = gamma / 2 + (1 - gamma) / (1 + np.exp(-q))
    for estimate, truth in ((found.skill[0], (1 + gamma) / 2), (found.left[0], left)):
        assert estimate.value is not None and estimate.low is not None and estimate.high is not None
        assert abs(estimate.value - truth) < estimate.high - estimate.low < 0.08  # four standard errors


def test_without_sides_there_is_a_skill_and_no_side() -> None:
    votes, logit = planted(0.8, 0.0, 0.3, sides=False)
    found = noisy_bradley_terry(votes, logit)
    assert found.skill[0].value == pytest.approx(0.9, abs=0.03) and found.skill[0].low is not None
    assert found.left[0].value is None and "side" in found.left[0].why


def test_who_can_be_measured_by_nothing_has_no_skill() -> None:
    votes, logit = planted(0.8, 0.0, 0.3, count=5)
    found = noisy_bradley_terry(votes, logit, np.zeros(5, dtype=bool))
    assert found.skill[0].value is None and "nobody else judged the same" in found.skill[0].why
    assert found.skill_W[0] == pytest.approx(0.75)


def test_a_fit_that_did_not_converge_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.feedback.quality.skill.STEPS", 1)
    votes, logit = planted(0.8, 2.0, 0.3)
    found = noisy_bradley_terry(votes, logit)
    assert found.skill[0].low is None and "did not converge" in found.skill[0].why


@pytest.mark.parametrize("sure", [30.0, 0.0])
def test_few_votes_and_certain_ones_keep_within_bounds(sure: float) -> None:
    votes, _ = planted(1.0, 0.0, 0.0, count=3)
    found = noisy_bradley_terry(votes, np.where(votes.verdict_V == FIRST, sure, -sure))
    low, value, high = found.skill[0].low, found.skill[0].value, found.skill[0].high
    assert low is not None and value is not None and high is not None and 0 < low < value < high < 1


def test_the_probabilities_are_davidsons_of_a_noisy_bradley_terry_model() -> None:
    """Each vote's log-likelihood by the definition, in the terms of its papers: γ, q and ν."""
    gamma, q, nu, d = 0.6, 0.8, 0.4, 1.3
    left = gamma / (1 + np.exp(-d)) + (1 - gamma) / (1 + np.exp(-q))
    strengths = np.array([left, nu * np.sqrt(left * (1 - left)), 1 - left])
    b = (1 - gamma) / (1 + np.exp(-q))
    a = gamma + b
    theta = np.array([[np.log(a / (1 - a)), np.log(b / (1 - b)), np.log(nu)]])
    empty = evidence(votes_of([Vote("a", "ada", ((0,), (1,)), (0, 1))]), np.array([d]), np.zeros(1, dtype=bool))
    added = log_posterior(empty, theta)[0][0]
    for verdict, ranking in ((FIRST, ((0,), (1,))), (TIE, ((0, 1),)), (SECOND, ((1,), (0,)))):
        for order in ((0, 1), (1, 0)):
            ranked = ranking if order == (0, 1) else ranking[::-1]
            logit = np.array([d if order == (0, 1) else -d])
            rows = evidence(votes_of([Vote("a", "ada", ranked, order)]), logit, np.ones(1, dtype=bool))
            expected = np.log(strengths[verdict] / strengths.sum())
            assert log_posterior(rows, theta)[0][0] - added == pytest.approx(expected, abs=1e-12)


def test_standard_errors_are_those_of_the_inverse_hessian() -> None:
    """Of both numbers, their slopes by central differences; uncertain log-odds, so that a and b are not fitted apart."""
    votes, logit = planted(0.5, 1.0, 0.3, count=300)
    logit = logit / 5
    theta, _, hessian = fit(evidence(votes, logit, np.ones(300, dtype=bool)))
    covariance = np.linalg.inv(-hessian[0])

    def numbers(at: np.ndarray) -> np.ndarray:
        a, b = 1 / (1 + np.exp(-at[:2]))
        return np.array([(1 + a - b) / 2, (a + b) / 2])

    slopes = np.array([(numbers(theta[0] + step) - numbers(theta[0] - step)) / 2e-5 for step in np.eye(3) * 1e-5])
    expected = np.sqrt(np.diag(slopes.T @ covariance @ slopes))
    found = noisy_bradley_terry(votes, logit)
    for estimate, error, share in (
        (found.skill[0], expected[0], numbers(theta[0])[0]),
        (found.left[0], expected[1], numbers(theta[0])[1]),
    ):
        assert estimate.low is not None and estimate.high is not None
        ends = np.log(np.array([estimate.low, estimate.high]) / (1 - np.array([estimate.low, estimate.high])))
        assert (ends[1] - ends[0]) / 2 / 1.96 * share * (1 - share) == pytest.approx(error, rel=1e-3)
    assert found.error_W[0] == pytest.approx(expected[0], rel=1e-6)
