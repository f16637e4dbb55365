"""The consensus against enumeration of every truth; its optimum; nobody is measured against oneself."""

import itertools

import numpy as np
import pytest

from bridle.feedback.quality.consensus import Consensus, consensus, log_likelihoods, widening
from bridle.feedback.quality.votes import FIRST, SECOND, TIE, UNKNOWN, Subject, Vote, Votes, votes_of

RANKINGS = {FIRST: ((0,), (1,)), TIE: ((0, 1),), SECOND: ((1,), (0,))}


def some_votes(seed: int = 0, items: int = 6, people: int = 4, gold: bool = False, ties: bool = True) -> Votes:
    """Votes of people of several skills on items, some missing; the first of which has gold where asked for."""
    rng = np.random.default_rng(seed)
    rows, choices = [], [FIRST, TIE, SECOND] if ties else [FIRST, SECOND]
    for item in range(items):
        truth = rng.choice(choices, p=[0.4, 0.2, 0.4] if ties else [0.5, 0.5])
        for person in range(people):
            if rng.random() < 0.8:
                said = truth if rng.random() < 0.9 - 0.1 * person else rng.choice(choices)
                rows.append(Vote(f"{item}", f"{person}", RANKINGS[said]))
    return votes_of(rows, {"0": Subject(gold=RANKINGS[SECOND])} if gold else None)


def log_posterior(votes: Votes, skill_W: np.ndarray, reversal: float, tie: float) -> float:
    """By the definition: summed over every truth of each unit that several judged or that has gold, with the votes added."""
    prior = {FIRST: (1 - tie) / 2, TIE: tie, SECOND: (1 - tie) / 2}
    whole = float((3 * np.log(skill_W) + np.log(1 - skill_W)).sum()) + np.log(reversal * (1 - reversal))
    whole += np.log(tie * (1 - tie))
    for unit, gold in enumerate(votes.gold_U):
        said = [(w, y) for w, y, u in zip(votes.person_V, votes.verdict_V, votes.unit_V, strict=True) if u == unit]
        if len(said) < 2 and gold == UNKNOWN:
            continue
        total = 0.0
        for truth in (FIRST, TIE, SECOND):
            chance = prior[truth] * (gold in (UNKNOWN, truth))
            for w, y in said:
                wrong = 1 - skill_W[w]
                if y == truth:
                    chance *= skill_W[w]
                elif truth == TIE:
                    chance *= wrong / 2
                else:
                    chance *= wrong * ((1 - reversal) if y == TIE else reversal)
            total += chance
        whole += np.log(total)
    return whole


@pytest.mark.parametrize("gold", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_vanishes_at_the_fit(seed: int, gold: bool) -> None:
    votes = some_votes(seed, items=20, gold=gold)
    found = consensus(votes)
    assert found.converged
    point = np.array([*found.skill_W, found.reversal, found.tie])

    def value(at: np.ndarray) -> float:
        return log_posterior(votes, at[:-2], at[-2], at[-1])

    for n in range(len(point)):
        step = np.zeros_like(point)
        step[n] = 1e-5
        slope = (value(point + step) - value(point - step)) / 2e-5
        assert abs(slope * point[n] * (1 - point[n])) < 1e-4, n


def test_posteriors_are_those_of_all_truths_together() -> None:
    votes = some_votes(1, items=4)
    found = consensus(votes)
    table_WYZ = log_likelihoods(found.skill_W, found.reversal)
    prior = np.log([(1 - found.tie) / 2, found.tie, (1 - found.tie) / 2])
    marginal = np.zeros((len(votes.units), 3))
    for truths in itertools.product(range(3), repeat=len(votes.units)):
        log_chance = sum(prior[z] for z in truths)
        for w, u, y in zip(votes.person_V, votes.unit_V, votes.verdict_V, strict=True):
            log_chance += table_WYZ[w, y, truths[u]]
        for u, z in enumerate(truths):
            marginal[u, z] += np.exp(log_chance)
    assert np.allclose(found.truth_UZ, marginal / marginal.sum(1, keepdims=True), atol=1e-12)
    assert np.allclose(np.exp(table_WYZ).sum(1), 1)


def test_what_the_others_say_leaves_ones_own_vote_out() -> None:
    votes = some_votes(2, items=5)
    found = consensus(votes)
    table_WYZ = log_likelihoods(found.skill_W, found.reversal)
    prior = np.log([(1 - found.tie) / 2, found.tie, (1 - found.tie) / 2])
    for v, unit in enumerate(votes.unit_V):
        others = [i for i in np.flatnonzero(votes.unit_V == unit) if i != v]
        logs = prior + sum(table_WYZ[votes.person_V[i], votes.verdict_V[i]] for i in others)
        assert np.allclose(found.others_VZ[v], np.exp(logs) / np.exp(logs).sum())


def test_gold_is_the_truth_whatever_people_say() -> None:
    votes = votes_of(
        [Vote("a", name, RANKINGS[FIRST]) for name in ("ada", "bo", "cleo")], {"a": Subject(gold=RANKINGS[SECOND])}
    )
    found = consensus(votes)
    assert found.truth_UZ.tolist() == [[0, 0, 1]] and (found.skill_W < 0.75).all() and found.shared_V.all()
    assert (found.logit_V < -20).all()


def test_a_vote_alone_on_its_unit_says_nothing_of_its_giver() -> None:
    votes = votes_of(
        [Vote("a", "ada", RANKINGS[FIRST]), *(Vote("b", name, RANKINGS[SECOND]) for name in ("ada", "bo"))]
    )
    found = consensus(votes)
    assert found.shared_V.tolist() == [False, True, True]
    alone = consensus(votes_of([Vote("b", name, RANKINGS[SECOND]) for name in ("ada", "bo")]))
    assert np.allclose(found.skill_W, alone.skill_W)
    assert found.truth_UZ[0, FIRST] == pytest.approx(found.skill_W[0])  # as right as its giver is


def test_slots_are_but_names() -> None:
    """Turning every unit round turns the posteriors round, and nothing else."""
    votes = some_votes(3, items=12)
    turned = Votes(**{**votes.__dict__, "verdict_V": 2 - votes.verdict_V})
    one, other = consensus(votes), consensus(turned)
    assert np.allclose(one.skill_W, other.skill_W) and np.allclose(one.truth_UZ, other.truth_UZ[:, ::-1])


def test_the_widening_is_that_of_the_whole_information() -> None:
    votes = some_votes(4, items=60, ties=False)
    found = consensus(votes)
    logit = np.log(found.skill_W / (1 - found.skill_W))

    def value(at: np.ndarray) -> float:
        skill_W = 1 / (1 + np.exp(-at))
        # Without ties there is one way to be wrong, and the terms of ρ and τ are constants.
        return log_posterior(votes, skill_W, 1 - 1e-12, 1e-12)

    size, h = len(logit), 1e-3
    steps = np.eye(size) * h
    hessian = np.array(
        [
            [
                (value(logit + a + b) - value(logit + a - b) - value(logit - a + b) + value(logit - a - b))
                / (4 * h * h)
                for b in steps
            ]
            for a in steps
        ]
    )
    expected = np.sqrt(-np.diag(hessian) * np.diag(np.linalg.inv(-hessian)))
    assert np.allclose(widening(votes, found), expected, rtol=1e-3)
    assert (expected > 1.01).all()


def test_two_people_alone_leave_open_who_is_right() -> None:
    rng = np.random.default_rng(0)
    rows = [
        Vote(f"{n}", name, RANKINGS[FIRST if rng.random() < p else SECOND])
        for n in range(200)
        for name, p in (("ada", 0.9), ("bo", 0.7))
    ]
    votes = votes_of(rows)
    assert (widening(votes, consensus(votes)) > 2).all()


def test_a_fit_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.feedback.quality.consensus.STEPS", 1)
    votes = some_votes(0)
    found: Consensus = consensus(votes)
    assert not found.converged and np.isnan(widening(votes, found)).all()
