"""What users said of two versions that were shown side by side: a reason to look closer, never a decision."""

from itertools import combinations

from bridle.core.records import Judgement
from bridle.feedback.store.store import Store

STUDY_OF_USERS = "serving"


def live_votes(store: Store, new: str, old: str) -> list[float]:
    """Users' comparisons of an answer of one version with one of another, by the hashes of their weights, in the order in which they came:
    1 where the newer one's was preferred, 0, one half where they were as good. One of each user and prompt: a later one supersedes."""
    wins = []
    for item, judgement in store.judgements(study=STUDY_OF_USERS):
        if judgement.weight <= 0:  # over its user's cap of a day
            continue
        for a, b in combinations(range(len(item.completions)), 2):
            stamps = [item.completions[slot].weight_stamp.partition("+")[0] for slot in (a, b)]
            if stamps == [new[:16], old[:16]]:
                wins.append(preferred_in(judgement, a, b))
            elif stamps == [old[:16], new[:16]]:
                wins.append(preferred_in(judgement, b, a))
    return wins


def preferred_in(judgement: Judgement, first: int, second: int) -> float:
    places = {slot: place for place, group in enumerate(judgement.ranking) for slot in group}
    return 0.5 if places[first] == places[second] else float(places[first] < places[second])
