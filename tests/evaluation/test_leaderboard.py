"""Strengths by Bradley and Terry against evalica; intervals that cover; what is connected; and which comparisons of a store count."""

from __future__ import annotations

from pathlib import Path

import evalica
import numpy as np
import pytest

from bridle.core.records import Completion, FinishReason, Judgement, LabelerKind, Prompt
from bridle.evaluation import leaderboard as board
from bridle.evaluation.leaderboard import (
    VersionComparison,
    leaderboard,
    leaderboard_lines,
    strengths,
    version_comparisons,
)
from bridle.feedback.serving.turns import keep_step
from bridle.feedback.store.store import Store

TRUE = np.array([0.0, 0.5, -0.7, 1.2])
NAMES = "abcd"


def some_comparisons(seed: int, prompts: int, of_each: int = 1) -> list[VersionComparison]:
    """Prompts whose comparisons lean one way together, so that they are alike."""
    rng, found = np.random.default_rng(seed), []
    for prompt in range(prompts):
        i, j = rng.choice(4, 2, replace=False)
        p = 1 / (1 + np.exp(TRUE[j] - TRUE[i]))
        lean = rng.random() < p
        for _ in range(of_each):
            won = lean if of_each > 1 and rng.random() < 0.8 else rng.random() < p
            found.append(VersionComparison("gate", str(prompt), NAMES[i], NAMES[j], float(won)))
    return found


def test_strengths_are_those_of_evalica_where_the_prior_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(4, 2, replace=False) for _ in range(500)])
    shares = rng.choice([0.0, 0.5, 1.0], 500, p=[0.3, 0.2, 0.5])
    wins = np.zeros((4, 4))
    np.add.at(wins, (pairs[:, 0], pairs[:, 1]), shares)
    np.add.at(wins, (pairs[:, 1], pairs[:, 0]), 1 - shares)
    winners = [{0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw, 1.0: evalica.Winner.X}[share] for share in shares]
    names = [[NAMES[at] for at in column] for column in pairs.T]
    scores = evalica.bradley_terry(*names, winners, tie_weight=0.5, tolerance=1e-12, limit=10_000).scores
    expected = np.log([scores[name] for name in NAMES])
    monkeypatch.setattr(board, "PRIOR", 1e4)
    found = strengths(wins)
    assert found - found[0] == pytest.approx(expected - expected[0], abs=1e-4)


def test_what_won_everything_is_finite() -> None:
    won = strengths(np.array([[0.0, 40.0], [0.0, 0.0]]))
    assert 3 < won[0] - won[1] < 10 and won.sum() == pytest.approx(0)


@pytest.mark.parametrize("of_each", [1, 5])
def test_intervals_cover_though_comparisons_of_a_prompt_are_alike(
    of_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "RESAMPLES", 100)
    inside = 0
    for seed in range(30):
        found = leaderboard(some_comparisons(seed, 240, of_each), "a")
        rows = {row["version"]: row for row in found["ranked"]}
        inside += sum(rows[name]["low"] <= TRUE[at] - TRUE[0] <= rows[name]["high"] for at, name in enumerate(NAMES))
    assert inside >= 0.88 * 120  # of which a quarter is the reference itself, which always holds


def test_the_strongest_is_first_and_what_is_not_connected_is_not_ranked() -> None:
    comparisons = [*some_comparisons(0, 600), VersionComparison("gate", "p", "x", "y", 1.0)]
    found = leaderboard(comparisons, "a")
    assert [row["version"] for row in found["ranked"]] == ["d", "b", "a", "c"] and found["apart"] == ["x", "y"]
    assert found["ranked"][2]["strength"] == found["ranked"][2]["low"] == 0 and found["ranked"][2]["preferred"] == 0.5
    assert sum(row["comparisons"] for row in found["ranked"]) == 1200 and found["sources"] == {"gate": 600}
    assert leaderboard(comparisons, "x")["apart"] == ["a", "b", "c", "d"]
    assert leaderboard(comparisons, "a") == found, "the same again"
    assert leaderboard([], "a")["ranked"] == []
    assert leaderboard_lines({}) == ["no answer of one version was compared with one of another yet"]
    lines = leaderboard_lines(
        {"users": {**found, "reference": "sft", "ranked": [{"name": "sft", **found["ranked"][2]}], "apart": ["x"]}}
    )
    assert lines[0] == "by users: comparisons 600 of gate; 600 prompts; measured against sft"
    assert lines[-1] == "  not connected with these, and not ranked: x"


def judged(
    store: Store, study: str, stamps: tuple[str, str], ranking: tuple[tuple[int, ...], ...], number: int
) -> None:
    prompt = Prompt.from_text(f"{study} {number}")
    store.add_prompts([prompt], split="train", source="test")
    answers = [
        Completion(prompt.id, f"{side} {number}", (), (), FinishReason.STOP, stamp, {})
        for side, stamp in zip("ab", stamps, strict=True)
    ]
    store.add_completions(answers, source="test")
    (item,) = store.add_items([answers], study=study)
    store.add_judgements([Judgement(item, "anna", LabelerKind.PERSON, ranking, (0, 1))])


def test_which_comparisons_of_a_store_count(tmp_path: Path) -> None:
    one, two, reward = ("1" * 64, "2" * 64, "3" * 64)
    with Store.open(tmp_path / "store.sqlite") as store:
        for name, kind, content in (("sft", "sft", one), ("ppo", "ppo", two), ("reward", "reward", reward)):
            store.add_model_version(name, kind=kind, weights_sha256=content)
        keep_step(store, 1, "gate", {"version": two, "against": one, "shares": [["p1", 1.0], ["p2", 0.5]]}, by="loop")
        keep_step(store, 2, "watch", {"version": two, "against": one, "shares": [["p3", 0.0]]}, by="loop")
        keep_step(store, 2, "gate", {"passed": False}, by="loop")  # as it was kept before, and where nothing differs
        judged(store, "gate-turn-1", (f"{two[:16]}+0", f"{one[:16]}+0"), ((0,), (1,)), 1)  # counted with the turn
        judged(store, "ppo-against-sft", (f"{two[:16]}+0", f"{one[:16]}+0"), ((1,), (0,)), 2)
        judged(store, "study", (f"{one[:16]}+0", f"{one[:16]}+0"), ((0,), (1,)), 3)  # one version
        judged(store, "study", (f"{one[:16]}+0", f"{two[:16]}+7"), ((0,), (1,)), 4)  # in the midst of training
        judged(store, "study", (f"{one[:16]}+0", f"{reward[:16]}+0"), ((0,), (1,)), 5)
        judged(store, "study", (f"{one[:16]}+0", "imported"), ((0,), (1,)), 6)
        found = [(each.source, each.first[0], each.preferred) for each in version_comparisons(store)]
        assert found == [("gate", "2", 1.0), ("gate", "2", 0.5), ("audits", "2", 0.0), ("people in studies", "2", 0.0)]
