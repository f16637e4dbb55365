"""Bradley-Terry and Plackett-Luce against choix and evalica: our loss has no slope at the scores that they find.

Scores are not compared: each stops by a norm of its own, and they differ in the third digit.
"""

import choix
import evalica
import numpy as np
import torch

from bridle.maths.losses import bradley_terry, plackett_luce

ITEMS = 6


def some_pairs(seed: int, count: int = 400) -> np.ndarray:
    """(winner, loser) [count, 2] by a Bradley-Terry model of planted scores."""
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 1, ITEMS)
    pairs = np.array([rng.choice(ITEMS, 2, replace=False) for _ in range(count)])
    wins = rng.random(count) < 1 / (1 + np.exp(score[pairs[:, 1]] - score[pairs[:, 0]]))
    return np.where(wins[:, None], pairs, pairs[:, ::-1])


def slope(scores: np.ndarray, pairs: np.ndarray, target: np.ndarray | float = 1.0) -> float:
    """The largest slope of the loss a comparison."""
    at = torch.tensor(np.asarray(scores, dtype=np.float64), requires_grad=True)
    target_P = torch.as_tensor(np.broadcast_to(target, len(pairs)).copy())
    loss, _ = bradley_terry(
        at[pairs[:, 0]], at[pairs[:, 1]], torch.ones(len(pairs)), count=len(pairs), target_P=target_P
    )
    loss.backward()
    assert at.grad is not None
    return float(at.grad.abs().max())


def test_bradley_terry_has_no_slope_where_choix_ends() -> None:
    for seed in range(3):
        pairs = some_pairs(seed)
        found = choix.ilsr_pairwise(ITEMS, pairs.tolist(), alpha=0, max_iter=1000, tol=1e-12)
        assert slope(found, pairs) < 1e-9
        assert slope(found + np.eye(ITEMS)[0] / 100, pairs) > 1e-4


def test_bradley_terry_with_ties_has_no_slope_where_evalica_ends() -> None:
    pairs = some_pairs(3)
    tied = np.random.default_rng(0).random(len(pairs)) < 0.2
    winners = [evalica.Winner.Draw if tie else evalica.Winner.X for tie in tied]
    # A tie is half a win for either: a target of one half, which weighs as much as a plain comparison.
    found = evalica.bradley_terry(
        pairs[:, 0].tolist(),
        pairs[:, 1].tolist(),
        winners,
        win_weight=1.0,
        tie_weight=0.5,
        tolerance=1e-12,
        limit=10_000,
    )
    scores = np.log(found.scores.loc[range(ITEMS)].to_numpy())
    assert slope(scores, pairs, np.where(tied, 0.5, 1.0)) < 1e-6


def test_plackett_luce_has_no_slope_where_choix_ends() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(0, 1, ITEMS)
    rankings = [np.argsort(-(score + rng.gumbel(size=ITEMS))) for _ in range(200)]
    found = choix.ilsr_rankings(ITEMS, [tuple(map(int, one)) for one in rankings], alpha=0, max_iter=1000, tol=1e-12)
    at = torch.tensor(found, requires_grad=True)
    order = torch.tensor(np.array(rankings))
    rank_RK = torch.arange(ITEMS).expand(len(rankings), ITEMS)
    loss, _ = plackett_luce(at[order], rank_RK, torch.ones(len(rankings)), count=len(rankings))
    loss.backward()
    assert at.grad is not None and float(at.grad.abs().max()) < 1e-9
