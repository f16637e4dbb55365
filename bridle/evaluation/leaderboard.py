"""A leaderboard of versions: how strong each is, from every comparison of an answer of one with an answer of another that the store knows.

    board = leaderboard(version_comparisons(store), reference="1f3c…")

Bradley and Terry (1952): version i is preferred to j with probability σ(θ_i − θ_j), a tie is half a win of either. Intervals come from
resampling prompts, since comparisons of one prompt are alike. Those who decide and users are fitted apart: users like to be flattered.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridle.core.records import LabelerKind
from bridle.feedback.serving.outcomes import vote_outcomes
from bridle.feedback.serving.turns import steps_taken
from bridle.feedback.store.reading import SERVING
from bridle.feedback.store.store import Store
from bridle.feedback.store.versions import model_versions

PRIOR = 2.0  # standard deviation of θ, so that a version that won everything is finite
RESAMPLES = 1000
USERS = "users' votes"
STEPS = {"gate": "gate", "watch": "audits"}  # of a turn, and what its comparisons are called
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class VersionComparison:
    """Two versions by the first 16 letters of their hashes; `preferred`: the share by which the first was, ½ for a tie."""

    source: str
    prompt: str
    first: str
    second: str
    preferred: float


def version_comparisons(store: Store) -> list[VersionComparison]:
    """What gates and audits went by, what people and judges said in studies of two versions' answers, and users' votes; of an answer with
    one of the same version nothing."""
    known = {one.hash[:16] for one in model_versions(store) if one.kind != "reward"}
    found = [*of_turns(store), *of_studies(store), *of_users(store)]
    return [one for one in found if one.first != one.second and {one.first, one.second} <= known]


def of_turns(store: Store) -> Iterator[VersionComparison]:
    for _, step, outcome in steps_taken(store):
        for prompt, share in outcome.get("shares", ()):
            yield VersionComparison(STEPS[step], prompt, outcome["version"][:16], outcome["against"][:16], share)


def of_studies(store: Store) -> Iterator[VersionComparison]:
    """Judgements of two answers in the store, but for those that a turn went by."""
    counted = {f"{kind}-turn-{turn}" for turn, _, _ in steps_taken(store) for kind in ("gate", "audit")}
    studies = [study for study in store.counts()["items"] if study not in {*counted, SERVING}]
    for item, judgement in (row for study in studies for row in store.judgements(study=study)):
        if len(item.completions) == 2 and judgement.ranking:
            first, second = (version_of(one.weight_stamp) for one in item.completions)
            won = 0.5 if len(judgement.ranking) == 1 else float(judgement.ranking[0] == (0,))
            source = "judges in studies" if judgement.labeler_kind is LabelerKind.AI else "people in studies"
            yield VersionComparison(source, item.prompt.id[:16], first, second, won)


def of_users(store: Store) -> Iterator[VersionComparison]:
    for one in vote_outcomes(store):
        yield VersionComparison(USERS, one.prompt[:16], version_of(one.first), version_of(one.second), one.preferred)


def version_of(stamp: str) -> str:
    """The version of weights that were registered; of weights in the midst of training none."""
    content, _, updates = stamp.partition("+")
    return content if updates == "0" else ""


# --------------------------------------------------------------------------------------------------------------- fit


def strengths(wins_VV: Floats) -> Floats:
    """θ [..., V] by Newton's method, no step longer than 1, on Σ w_ij log(1 + exp(θ_j − θ_i)) + Σ θ² / 2 prior², of wins [..., V, V]: w_ij
    times i was preferred to j."""
    games_VV, theta = wins_VV + np.swapaxes(wins_VV, -1, -2), np.zeros(wins_VV.shape[:-1])
    diagonal = np.eye(wins_VV.shape[-1])
    for _ in range(100):
        p_VV = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))
        slope = (wins_VV - games_VV * p_VV).sum(-1) - theta / PRIOR**2
        curve_VV = games_VV * p_VV * (1 - p_VV)
        hessian_VV = diagonal * (curve_VV.sum(-1) + 1 / PRIOR**2)[..., None] - curve_VV
        step = np.clip(np.linalg.solve(hessian_VV, slope[..., None])[..., 0], -1, 1)
        theta = theta + step
        if np.abs(step).max() < 1e-9:
            break
    return theta


def reachable_versions(comparisons: Sequence[VersionComparison], start: str) -> set[str]:
    """The versions that a chain of comparisons leads to from this one."""
    found, waiting = {start}, [start]
    while waiting:
        at = waiting.pop()
        near = {two for one in comparisons for two in (one.first, one.second) if at in (one.first, one.second)}
        waiting += near - found
        found |= near
    return found


def leaderboard(comparisons: Sequence[VersionComparison], reference: str, seed: int = 0) -> dict[str, Any]:
    """The versions that are connected with the reference, the strongest first: θ above the reference's with its 95% interval (percentiles
    of fits to resampled prompts), the probability of being preferred to it, and comparisons. `apart`: those that no chain leads to."""
    ranked = sorted(reachable_versions(comparisons, reference))
    inside = [one for one in comparisons if one.first in ranked]
    apart = sorted({name for one in comparisons for name in (one.first, one.second)} - set(ranked))
    place, size = {name: at for at, name in enumerate(ranked)}, len(ranked)
    prompts = {name: at for at, name in enumerate(dict.fromkeys(one.prompt for one in inside))}
    prompt_N = np.array([prompts[one.prompt] for one in inside], dtype=np.intp)
    cells_N = np.array(
        [[place[one.first] * size + place[one.second], place[one.second] * size + place[one.first]] for one in inside]
    )
    won_N = np.array([[one.preferred, 1 - one.preferred] for one in inside])

    def wins(weight_P: Floats) -> Floats:
        weights = won_N * weight_P[prompt_N][:, None]
        return np.bincount(cells_N.ravel(), weights.ravel(), size * size).astype(float).reshape(size, size)

    if not inside:
        return {"sources": {}, "prompts": 0, "ranked": [], "apart": apart}
    rng, drawn = np.random.default_rng(seed), np.full(len(prompts), 1 / len(prompts))
    times_RP = rng.multinomial(len(prompts), drawn, RESAMPLES)  # how often each prompt is in a resample
    fits = strengths(np.array([wins(np.ones(len(prompts))), *map(wins, times_RP)]))
    fits -= fits[:, [place[reference]]]
    low, high = np.percentile(fits[1:], [2.5, 97.5], axis=0).tolist()
    asked = Counter(name for one in inside for name in (one.first, one.second))
    rows: list[dict[str, Any]] = []
    for at in np.argsort(-fits[0], kind="stable").tolist():
        theta, name = float(fits[0][at]), ranked[at]
        row = {"version": name, "strength": theta, "low": low[at], "high": high[at]}
        rows.append({**row, "preferred": 1 / (1 + math.exp(-theta)), "comparisons": asked[name]})
    sources = dict(Counter(one.source for one in inside))
    return {"sources": sources, "prompts": len(prompts), "ranked": rows, "apart": apart}


# ------------------------------------------------------------------------------------------------------------ by whom


def leaderboards(store: Store, served: str | None) -> dict[str, dict[str, Any]]:
    """By those who decide, and by users. The reference is what is served, else the version that was compared most."""
    comparisons, names = version_comparisons(store), {one.hash[:16]: one.name for one in model_versions(store)}
    found = dict[str, dict[str, Any]]()
    for title, users in (("those who decide", False), ("users", True)):
        chosen = [one for one in comparisons if (one.source == USERS) == users]
        counts = Counter(name for one in chosen for name in (one.first, one.second))
        if not chosen:
            continue
        usual = min(counts, key=lambda name: (-counts[name], name))
        reference = served[:16] if served is not None and served[:16] in counts else usual
        board = leaderboard(chosen, reference)
        rows = [{"name": names[row["version"]], **row} for row in board["ranked"]]
        apart = [names[name] for name in board["apart"]]
        found[title] = {**board, "reference": names[reference], "ranked": rows, "apart": apart}
    return found


def leaderboard_lines(boards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For the terminal."""
    lines = list[str]()
    for title, board in boards.items():
        sources = ", ".join(f"{count:,} of {name}" for name, count in board["sources"].items())
        lines.append(
            f"by {title}: comparisons {sources}; {board['prompts']:,} prompts; measured against {board['reference']}"
        )
        lines.append(f"  {'version':<24} {'strength':>8}  {'95%':<16}  preferred  comparisons")
        for row in board["ranked"]:
            interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
            name = f"{row['name']} {row['version'][:11]}"
            lines.append(
                f"  {name:<24} {row['strength']:>+8.2f}  {interval:<16}  {row['preferred']:>9.3f}  {row['comparisons']:>11,}"
            )
        if board["apart"]:
            lines.append(f"  not connected with these, and not ranked: {', '.join(board['apart'])}")
    return lines or ["no answer of one version was compared with one of another yet"]
