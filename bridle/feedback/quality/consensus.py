"""What people agree on: one-coin Dawid-Skene over the three verdicts of a unit, by EM (Dawid and Skene 1979; Zhang 2014, one coin).

A unit's truth z is that its first answer is better, that they tie, or that its second is. A person w says z with probability p_w, and
what is wrong otherwise: of a truth with a winner the reverse with ρ, a tie with 1 − ρ; of a tie either with one half.

    P(z = tie) = τ, P(z = first) = P(z = second) = (1 − τ) / 2      for slots are but names
    E:  log T_uz = log P(z) + Σ_w log P(y_uw | z, p_w, ρ) + const   a unit with gold has its gold
    M:  p_w = (Σ_u T_u,y + 3) / (n_w + 4);  ρ, τ: shares of what is expected, one added to either side

The four votes added for each person, three of them right, are what a newcomer is taken for. Where nobody ever ties there are two verdicts.
Votes alone on their unit say nothing of their givers, and are left out of the fit. It finds the optimum next to the majority: where most
people are worse than a coin, the truth comes out upside down, and gold alone can tell.
"""

from dataclasses import dataclass

import numpy as np

from bridle.feedback.quality.votes import FIRST, SECOND, TIE, UNKNOWN, Floats, Ints, Votes

RIGHT, WRONG = 3.0, 1.0  # votes added for each person
STEPS, TOLERANCE = 1_000, 1e-7  # the largest change of a skill
MOST_PEOPLE, PAIRS = 2_000, 4_000_000  # whose information is a matrix, and of it what is summed at a time
SURE = 30.0  # log-odds of gold


@dataclass(frozen=True)
class Consensus:
    """Posteriors T_UZ of each unit's truth (FIRST, TIE, SECOND), and p_W of each person."""

    truth_UZ: Floats
    skill_W: Floats
    reversal: float  # ρ
    tie: float  # τ
    shared_V: np.ndarray  # whether something else than the vote itself is known of its unit
    others_VZ: Floats  # the unit's truth by all votes but this one: nobody is measured against oneself
    converged: bool

    @property
    def verdict_U(self) -> Ints:
        return np.asarray(self.truth_UZ.argmax(1), dtype=np.int64)

    @property
    def logit_V(self) -> Floats:
        """Log-odds, by all others, that the first answer is better than the second."""
        odds = np.log(self.others_VZ[:, FIRST] + 1e-300) - np.log(self.others_VZ[:, SECOND] + 1e-300)
        return np.asarray(np.clip(odds, -SURE, SURE), dtype=np.float64)


def consensus(votes: Votes) -> Consensus:
    """The consensus of all votes, each unit's truth and each person's skill, those of units with gold given by it."""
    ties = bool((votes.verdict_V == TIE).any() or (votes.gold_U == TIE).any())
    count_U = np.bincount(votes.unit_V, minlength=len(votes.units))
    known_U = votes.gold_U != UNKNOWN
    shared_V = known_U[votes.unit_V] | (count_U[votes.unit_V] > 1)
    gold_UZ = np.eye(3)[np.where(known_U, votes.gold_U, 0)]
    person, verdict, unit = votes.person_V[shared_V], votes.verdict_V[shared_V], votes.unit_V[shared_V]
    weight, counted_U = votes.weight_V[shared_V], np.bincount(unit, minlength=len(count_U)) > 0
    seen_W = np.bincount(person, weight, len(votes.people))
    skill_W, reversal, tie = (
        np.full(len(votes.people), RIGHT / (RIGHT + WRONG)),
        0.5 if ties else 1.0,
        0.1 if ties else 0.0,
    )
    converged = False
    for _ in range(STEPS):
        said_V = log_likelihoods(skill_W, reversal)[person, verdict]
        truth_UZ = np.where(known_U[:, None], gold_UZ, posterior(summed(said_V, unit, len(count_U)), tie))
        truth_V = truth_UZ[unit]
        right_V = truth_V[np.arange(len(unit)), verdict]
        new_W = (np.bincount(person, weight * right_V, len(skill_W)) + RIGHT) / (seen_W + RIGHT + WRONG)
        if ties:
            reversed_V = np.where(verdict == TIE, 0.0, truth_V[np.arange(len(unit)), SECOND - verdict])
            evaded_V = np.where(verdict == TIE, 1 - truth_V[:, TIE], 0.0)
            backwards, evaded = weight @ reversed_V + 1, weight @ evaded_V + 1
            reversal = float(backwards / (backwards + evaded))
            tie = float((truth_UZ[counted_U, TIE].sum() + 1) / (counted_U.sum() + 2))
        moved = np.abs(new_W - skill_W).max(initial=0)
        skill_W = new_W
        if moved < TOLERANCE:
            converged = True
            break
    said_V = log_likelihoods(skill_W, reversal)[votes.person_V, votes.verdict_V]
    all_UZ = summed(said_V, votes.unit_V, len(count_U))
    truth_UZ = np.where(known_U[:, None], gold_UZ, posterior(all_UZ, tie))
    others_VZ = posterior(all_UZ[votes.unit_V] - said_V, tie)
    others_VZ = np.where(known_U[votes.unit_V][:, None], gold_UZ[votes.unit_V], others_VZ)
    return Consensus(truth_UZ, skill_W, reversal, tie, shared_V, others_VZ, converged)


def widening(votes: Votes, found: Consensus) -> Floats:
    """By how much the standard error of each skill [W] grows as the others' skills are estimated too: sqrt(I_ww (I⁻¹)_ww), 1 or more.

    I is the observed information of the fit in the logits of the skills, that of the complete data less what is missing (Louis 1982):
    Σ_u n p (1 − p) − Σ_u Cov_u([z = y_w], [z = y_w']). Of two people without gold only their agreement is known, and not who is right:
    the prior alone holds them, and this is large. nan where the optimum is none. Above MOST_PEOPLE it is taken for 1.
    """
    people = len(votes.people)
    if people > MOST_PEOPLE:
        return np.ones(people)
    use_V = found.shared_V & (votes.gold_U[votes.unit_V] == UNKNOWN)
    order = np.flatnonzero(use_V)[np.argsort(votes.unit_V[use_V], kind="stable")]
    unit, person, verdict = votes.unit_V[order], votes.person_V[order], votes.verdict_V[order]
    said_V, weight = found.truth_UZ[unit, verdict], np.sqrt(votes.weight_V[order])
    seen_W = np.bincount(votes.person_V[found.shared_V], votes.weight_V[found.shared_V], people) + RIGHT + WRONG
    information_WW = np.diag(seen_W * found.skill_W * (1 - found.skill_W))
    count_V = np.bincount(unit, minlength=len(votes.units))[unit]
    for size in np.unique(count_V):
        every = np.flatnonzero(count_V == size).reshape(-1, size)
        for rows in np.array_split(every, -(-every.size * size // PAIRS)):
            same = verdict[rows][:, :, None] == verdict[rows][:, None, :]
            missing = said_V[rows][:, :, None] * (same - said_V[rows][:, None, :])
            missing = missing * weight[rows][:, :, None] * weight[rows][:, None, :]
            cell = person[rows][:, :, None] * people + person[rows][:, None, :]
            information_WW -= np.bincount(cell.ravel(), missing.ravel(), people**2).reshape(people, people)
    eigenvalue_W, vector_WW = np.linalg.eigh(information_WW)
    if eigenvalue_W[0] <= 0 or not found.converged:
        return np.full(people, np.nan)
    inverse_W = (vector_WW**2 / eigenvalue_W) @ np.ones(people)
    return np.asarray(np.sqrt(np.maximum(1.0, np.diag(information_WW) * inverse_W)))


def log_likelihoods(skill_W: Floats, reversal: float) -> Floats:
    """log P(y | z, w) as [W, Y, Z]."""
    wrong_W = 1 - skill_W
    table_WYZ = np.stack(
        [
            np.stack([skill_W, wrong_W / 2, wrong_W * reversal], axis=1),
            np.stack([wrong_W * (1 - reversal), skill_W, wrong_W * (1 - reversal)], axis=1),
            np.stack([wrong_W * reversal, wrong_W / 2, skill_W], axis=1),
        ],
        axis=1,
    )
    return np.asarray(np.log(np.maximum(table_WYZ, 1e-300)), dtype=np.float64)


def summed(said_VZ: Floats, unit_V: Ints, units: int) -> Floats:
    """Over the votes of each unit."""
    return np.stack([np.bincount(unit_V, said_Z, units).astype(np.float64) for said_Z in said_VZ.T], axis=1)


def posterior(log_UZ: Floats, tie: float) -> Floats:
    """Of summed log-likelihoods, with the prior."""
    prior = np.log(np.maximum([(1 - tie) / 2, tie, (1 - tie) / 2], 1e-300))
    log_UZ = log_UZ + prior
    share_UZ = np.exp(log_UZ - log_UZ.max(1, keepdims=True))
    return np.asarray(share_UZ / share_UZ.sum(1, keepdims=True), dtype=np.float64)
