"""What a person's judgements weigh in training."""

import numpy as np

from bridle.feedback.quality.consensus import Consensus, consensus, widening
from bridle.feedback.quality.skill import Skills, noisy_bradley_terry
from bridle.feedback.quality.votes import Floats, Votes, read_votes
from bridle.feedback.store.labels import labels_by_criterion
from bridle.feedback.store.store import Store

USUAL, BEFORE = 0.75, 10.0  # a skill before anything is known of somebody, and the votes that this counts as


def skills_of(votes: Votes, found: Consensus) -> Skills:
    """The noisy Bradley-Terry fit of every vote whose unit others judged too, or that has gold, against what all others say."""
    return noisy_bradley_terry(votes, found.logit_V, found.shared_V, widening(votes, found))


def weights_of(votes: Votes, skills: Skills) -> Floats:
    """Log-odds of the skills [W], none below 0, over their mean a judgement: the judgements weigh 1 on average.

    The log-odds are what a vote of such a person adds to those of the truth (Nitzan and Paroush 1982). Few votes say little of a skill:
    it is drawn to the usual one, which counts as BEFORE votes. Where nobody is better than a coin nothing tells people apart, and all
    weigh 1.
    """
    skill_W = (skills.votes_W * skills.skill_W + BEFORE * USUAL) / (skills.votes_W + BEFORE)
    odds_W = np.maximum(0.0, np.log(skill_W / (1 - skill_W)))
    mean = float(odds_W[votes.person_J].mean()) if len(votes.person_J) else 0.0
    return np.asarray(odds_W / mean) if mean > 0 else np.ones_like(odds_W)


def reliability_weights(votes: Votes) -> dict[str, float]:
    """What each person's judgements weigh, by handle; whoever shares no item with others, and judged no gold, weighs as a skill of .75."""
    weights_W = weights_of(votes, skills_of(votes, consensus(votes)))
    return dict(zip(votes.people, weights_W.tolist(), strict=True))


def stored_weights(store: Store, study: str | None = None) -> dict[str, float]:
    """The same of the labelers of a study (None: of all): by what they judged on the whole, whatever it is used for. Nothing where nobody
    did."""
    judged = "comparisons" in labels_by_criterion(store, study, None).get(None, {})
    return reliability_weights(read_votes(store, study)) if judged else {}
