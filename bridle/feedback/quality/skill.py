"""A person's skill and side bias: a noisy Bradley-Terry model with ties, fitted on all votes of each person (people by themselves).

The model (Crowd-Kit's noisy Bradley-Terry; Chen 2013) says that w looks in a share γ of the votes, and goes by the side in the others:

    P(left) = γ_w σ(s_L − s_R) + (1 − γ_w) σ(q_w)

Where each prompt has two answers of its own nothing ties the scores s of different items together, so they are not fitted: the log-odds
s_L − s_R come from what all others say (`Consensus.logit_V`), or from a reward model in nats. Given them, γ and q are one-to-one with
a = P(left | the left one is better) and b = P(left | the right one is), for γ = a − b and σ(q) = b / (1 − γ). In these

    P(left) = b + (a − b) σ(s_L − s_R)

is linear, holds people who answer against the others too (a < b), and has one optimum. What follows from it:

    skill = (1 + a − b) / 2     chance of the right answer, the better one standing left as often as right
    left  = (a + b) / 2         chance of the left answer, the better one standing there as often as not

Where nobody knows the side, P(first) = ½ + (a − b) (σ(s_1 − s_2) − ½). Ties are Davidson's (1970): with p that probability and
r = sqrt(p (1 − p)), the three verdicts are as p : ν_w r : 1 − p, so a person ties most where both are equal. Four votes are added
for each person, three of them right, and one that is half a tie at p = ½: whoever has voted little stays near a newcomer's .75. Optimum
by Newton's method with the exact Hessian (Levenberg's damping), standard errors from its inverse.
"""

from dataclasses import dataclass

import numpy as np

from bridle.feedback.quality.agreement import Estimate
from bridle.feedback.quality.consensus import RIGHT, WRONG
from bridle.feedback.quality.votes import FIRST, SECOND, TIE, UNKNOWN, Floats, Ints, Votes

STEPS, TOLERANCE = 100, 1e-6  # of the gradient, in nats a vote
Z = 1.959963984540054
SPAN = 30.0  # of a parameter


@dataclass(frozen=True)
class Evidence:
    """Votes as the model reads them: P(y = FIRST) is `constant` + `along` (a − b) + `left` b, y as the person saw it."""

    person_V: Ints
    verdict_V: Ints  # FIRST is left, where the side is known
    constant_V: Floats
    along_V: Floats
    left_V: Floats
    weight_V: Floats
    people: int


@dataclass(frozen=True)
class Skills:
    """Of each person: skill and left as defined above, with their intervals, and the standard error of the skill (nan: no interval)."""

    skill: list[Estimate]
    left: list[Estimate]
    skill_W: Floats  # .75 where nothing is known
    error_W: Floats
    votes_W: Floats  # that speak of it


def noisy_bradley_terry(
    votes: Votes, logit_V: Floats, use_V: np.ndarray | None = None, wider_W: Floats | None = None
) -> Skills:
    """The fit of all votes, or of those to be used. `logit_V` are each vote's log-odds that its first answer is better than its second;
    `wider_W` widens the standard errors for what is not known of them (nan: no interval)."""
    use_V = np.ones(len(logit_V), dtype=bool) if use_V is None else use_V
    wider_W = np.ones(len(votes.people)) if wider_W is None else wider_W
    rows = evidence(votes, logit_V, use_V)
    votes_W = np.bincount(rows.person_V, rows.weight_V, rows.people).astype(np.float64)
    sides_W = np.bincount(rows.person_V, rows.left_V != 0, rows.people)
    theta_W3, converged_W, hessian_W33 = fit(rows)
    a_W, b_W = (1 / (1 + np.exp(-theta_W3[:, n])) for n in (0, 1))
    slopes = {"skill": (0.5, -0.5), "left": (0.5, 0.5)}
    values = {"skill": (1 + a_W - b_W) / 2, "left": (a_W + b_W) / 2}
    positive_W = np.linalg.eigvalsh(-hessian_W33)[:, 0] > 1e-9
    covariance_W33 = np.linalg.inv(np.where((positive_W & converged_W)[:, None, None], -hessian_W33, np.eye(3)))
    errors = {}
    for name, (of_a, of_b) in slopes.items():
        slope_W3 = np.stack([of_a * a_W * (1 - a_W), of_b * b_W * (1 - b_W), np.zeros_like(a_W)], axis=1)
        variance_W = np.einsum("wi,wij,wj->w", slope_W3, covariance_W33, slope_W3)
        errors[name] = np.where(converged_W & positive_W, np.sqrt(variance_W) * wider_W, np.nan)
    found = {}
    for name, why, seen_W in (
        ("skill", "nobody else judged the same, and none of it has gold", votes_W),
        ("left", "nobody knows what was shown on which side", np.minimum(sides_W, votes_W)),
    ):
        found[name] = [
            interval(value, error) if seen else Estimate(None, why=why)
            for value, error, seen in zip(values[name], errors[name], seen_W, strict=True)
        ]
    return Skills(found["skill"], found["left"], values["skill"], errors["skill"], votes_W)


def interval(share: float, error: float) -> Estimate:
    """±1.96 standard errors on the scale of log-odds, which keeps within 0 and 1."""
    if not np.isfinite(error):
        return Estimate(float(share), why="no interval, for the fit did not converge")
    centre, half = np.log(share / (1 - share)), Z * error / (share * (1 - share))
    low, high = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return Estimate(float(share), float(low), float(high))


def evidence(votes: Votes, logit_V: Floats, use_V: np.ndarray) -> Evidence:
    side_V, verdict_V = votes.first_left_V[use_V], votes.verdict_V[use_V]
    better_V = 1 / (1 + np.exp(-logit_V[use_V]))  # the first
    turned_V, known_V = side_V == 0, side_V != UNKNOWN
    return Evidence(
        votes.person_V[use_V],
        np.where(turned_V, SECOND - verdict_V, verdict_V),
        np.where(known_V, 0.0, 0.5),
        np.where(turned_V, 1 - better_V, np.where(known_V, better_V, better_V - 0.5)),
        np.where(known_V, 1.0, 0.0),
        votes.weight_V[use_V],
        len(votes.people),
    )


def fit(rows: Evidence) -> tuple[Floats, np.ndarray, Floats]:
    """(logit a, logit b, log ν) [W, 3], whether the optimum was found, and the Hessian there."""
    tied_W = np.bincount(rows.person_V, rows.verdict_V == TIE, rows.people)
    votes_W = np.bincount(rows.person_V, minlength=rows.people)
    start = np.log(RIGHT / WRONG)
    theta_W3 = np.tile([start, -start, 0.0], (rows.people, 1))
    theta_W3[:, 2] = np.log(2 * (tied_W + 0.5) / (votes_W - tied_W + 0.5))
    value_W, gradient_W3, hessian_W33 = log_posterior(rows, theta_W3)
    damping_W = np.full(rows.people, 1e-2)
    limit_W = TOLERANCE * np.maximum(1, votes_W)
    for _ in range(STEPS):
        if (np.abs(gradient_W3).max(1) <= limit_W).all():
            break
        # Away from the optimum the Hessian need not be negative definite; with enough damping the step goes uphill all the same.
        lowest_W = np.linalg.eigvalsh(-hessian_W33)[:, 0]
        damped_W33 = -hessian_W33 + (damping_W + np.maximum(0, -2 * lowest_W))[:, None, None] * np.eye(3)
        step_W3 = np.linalg.solve(damped_W33, gradient_W3[:, :, None])[:, :, 0]
        tried_W3 = np.clip(theta_W3 + np.clip(step_W3, -3, 3), -SPAN, SPAN)
        new_W, new_gradient_W3, new_hessian_W33 = log_posterior(rows, tried_W3)
        better_W = new_W >= value_W - 1e-12 * np.abs(value_W)
        theta_W3 = np.where(better_W[:, None], tried_W3, theta_W3)
        value_W = np.where(better_W, new_W, value_W)
        gradient_W3 = np.where(better_W[:, None], new_gradient_W3, gradient_W3)
        hessian_W33 = np.where(better_W[:, None, None], new_hessian_W33, hessian_W33)
        damping_W = np.where(better_W, damping_W / 10, damping_W * 10)
    return theta_W3, np.abs(gradient_W3).max(1) <= limit_W, hessian_W33


def log_posterior(rows: Evidence, theta_W3: Floats) -> tuple[Floats, Floats, Floats]:
    """Each person's log-posterior [W], its gradient [W, 3] and Hessian [W, 3, 3] in (logit a, logit b, log ν)."""
    a_W, b_W, nu_W = 1 / (1 + np.exp(-theta_W3[:, 0])), 1 / (1 + np.exp(-theta_W3[:, 1])), np.exp(theta_W3[:, 2])
    w, y, nu = rows.person_V, rows.verdict_V, nu_W[rows.person_V]
    by_a, by_b = rows.along_V, rows.left_V - rows.along_V  # dp/da, dp/db
    p = np.clip(rows.constant_V + by_a * a_W[w] + by_b * b_W[w], 1e-12, 1 - 1e-12)
    root = np.sqrt(p * (1 - p))
    whole, slope = 1 + nu * root, (1 - 2 * p) / (2 * root)  # slope: d root / dp
    first, second, tie = y == FIRST, y == SECOND, y == TIE
    hits, misses = first + tie / 2, second + tie / 2
    value = hits * np.log(p) + misses * np.log(1 - p) + tie * np.log(nu) - np.log(whole)
    d_p = hits / p - misses / (1 - p) - nu * slope / whole
    d_pp = -hits / p**2 - misses / (1 - p) ** 2 + nu * (whole / (4 * root**3) + nu * slope**2) / whole**2
    d_nu = tie - nu * root / whole
    d_nunu, d_pnu = -nu * root / whole**2, -nu * slope / whole**2

    def sums(of_V: Floats) -> Floats:
        return np.bincount(w, rows.weight_V * of_V, rows.people).astype(np.float64)

    to_a, to_b = a_W * (1 - a_W), b_W * (1 - b_W)  # da / d logit a
    g_a, g_b = sums(d_p * by_a) * to_a, sums(d_p * by_b) * to_b
    h_aa = sums(d_pp * by_a**2) * to_a**2 + g_a * (1 - 2 * a_W)
    h_bb = sums(d_pp * by_b**2) * to_b**2 + g_b * (1 - 2 * b_W)
    h_ab = sums(d_pp * by_a * by_b) * to_a * to_b
    h_an, h_bn = sums(d_pnu * by_a) * to_a, sums(d_pnu * by_b) * to_b
    # The votes added: half of them with the better one on the left, half on the right, and one that is half a tie at p = ½.
    right, wrong = RIGHT / 2, WRONG / 2
    shares = np.log(np.stack([a_W, 1 - a_W, b_W, 1 - b_W], axis=1)) @ [right, wrong, wrong, right]
    value_W = sums(value) + shares + theta_W3[:, 2] / 2 + np.log(2) / 2 - np.log(2 + nu_W)
    g_a, g_b = g_a + right - (right + wrong) * a_W, g_b + wrong - (right + wrong) * b_W
    g_n = sums(d_nu) + 0.5 - nu_W / (2 + nu_W)
    h_aa, h_bb = h_aa - (right + wrong) * to_a, h_bb - (right + wrong) * to_b
    h_nn = sums(d_nunu) - 2 * nu_W / (2 + nu_W) ** 2
    hessian = np.stack([h_aa, h_ab, h_an, h_ab, h_bb, h_bn, h_an, h_bn, h_nn], axis=1).reshape(-1, 3, 3)
    return value_W, np.stack([g_a, g_b, g_n], axis=1), hessian
