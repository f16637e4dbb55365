"""What users said of two versions that were shown side by side: a reason to look closer, never a decision."""

from bridle.feedback.serving.outcomes import vote_outcomes
from bridle.feedback.store.store import Store


def live_votes(store: Store, new: str, old: str) -> list[float]:
    """Users' comparisons of an answer of one version with one of another, by the hashes of their weights, in the order in which they came:
    1 where the newer one's was preferred, 0, one half where neither was. One of each user and prompt: a later one supersedes."""
    wins = []
    for one in vote_outcomes(store):
        sides = [stamp.partition("+")[0] for stamp in (one.first, one.second)]
        if sides == [new[:16], old[:16]]:
            wins.append(one.preferred)
        elif sides == [old[:16], new[:16]]:
            wins.append(1 - one.preferred)
    return wins
