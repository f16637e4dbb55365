"""A next round: the policy's own answers are compared, and the reward model is tested by what came since it was made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridle.core.records import Completion, Judgement, LabelerKind
from bridle.feedback.store.store import Store
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.data import STUDY
from bridle.stages.rewards import load_scores
from bridle.stages.stale import first_said
from bridle.stages.workspace import Work
from tests.tiny_project import bridle, complaint, done, result

Prefer = Callable[[float, float, int], bool]


@pytest.fixture
def demo(finished_demo: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(finished_demo, tmp_path / "demo"))
    shutil.rmtree(folder / "models/reward")
    done("train", "reward", "--project", folder, "--set", "reward.learning_rate=0.002", "--set", "reward.slim=false")
    return folder  # nothing has been judged since its reward model was made, where audits were since the first


def compare(demo: Path, prefer: Prefer) -> int:
    """Somebody compares made-up answers to the training prompts, by the scores of the reward model and a number; how many."""
    work = Work(Project.find(demo), Progress(live=False))
    try:
        prompts = work.data.train_prompts()
        pairs = [
            [Completion(p.id, f"{word} {p.id[:4]} {n}") for word in ("yes, it is", "no")]
            for p in prompts
            for n in range(12)
        ]
        asked = [p for p in prompts for _ in range(12)]
        reader = load_scores(work, work.project.model("reward"), work.read_policy(work.project.model("sft")))
        scores = [reader.raw(asked, [pair[side] for pair in pairs]).tolist() for side in (0, 1)]
        work.store.add_completions([one for pair in pairs for one in pair], source="made")
        items = work.store.add_items(pairs, study="fresh")
        ranked = [
            ((0,), (1,)) if prefer(a, b, n) else ((1,), (0,)) for n, (a, b) in enumerate(zip(*scores, strict=True))
        ]
        given = [Judgement(i, "Anna", LabelerKind.PERSON, r, None) for i, r in zip(items, ranked, strict=True)]
        work.store.add_judgements(given)
        return len(given)
    finally:
        work.close()


def found(demo: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(done("reward", "stale", "--project", demo, "--json"))
    return said


def test_what_people_say_now_is_tested_against_what_the_model_states(demo: Path) -> None:
    assert "no judgement that prefers one answer has come since" in complaint(
        bridle("reward", "stale", "--project", demo)
    )
    count = compare(demo, lambda a, b, n: a < b)
    stale = found(demo)
    assert stale["judgements"] == count and stale["measured"] < 0.05 and stale["stated"] >= 0.5
    learnt = result(demo / "runs/reward-0002")["judgements"]
    assert stale["learnt_from"] == learnt
    text = done("reward", "stale", "--project", demo)
    assert stale["stale"] is ("begin a refresh with" in text)
    if stale["stated"] > 0.6:  # else the model states nothing that could be wrong
        assert stale["stale"] and stale["labels"] >= 100 and stale["where"][0]["lost"] > 0


def test_a_model_that_is_right_as_often_as_it_states_is_not_stale(demo: Path) -> None:
    compare(demo, lambda a, b, n: a > b)
    fresh = found(demo)
    assert not fresh["stale"] and fresh["labels"] == 0 and fresh["measured"] > 0.95
    assert "no sign that it is stale" in done("reward", "stale", "--project", demo)


def test_a_ranking_says_of_two_pairs_what_it_says_and_what_is_said_again_says_nothing(demo: Path) -> None:
    """Which pairs are looked at does not hang on who won: the best two of four are nearly as good as each other, the best and the worst
    never."""
    work = Work(Project.find(demo), Progress(live=False))
    try:
        answers = [[Completion(p.id, f"{p.id[:4]} {n}") for n in range(4)] for p in work.data.train_prompts()[:2]]
        work.store.add_completions([one for four in answers for one in four], source="made")
        items = work.store.add_items(answers, study="fresh")
        ranked = [((3,), (0,), (2,), (1,)), ((0, 1), (2,), (3,))]  # in the second the first two tie
        given = [
            Judgement(item, labeler, LabelerKind.PERSON, ranking, None)
            for labeler in ("Anna", "Bo")
            for item, ranking in zip(items, ranked, strict=True)
        ]
        work.store.add_judgements(given)
        judged = list(work.store.judgements(study="fresh"))
        pairs = [(pair.chosen.text, pair.rejected.text) for pair in first_said(judged)]
    finally:
        work.close()
    (a, b), expected = (four[0].text[:4] for four in answers), [("a 0", "a 1"), ("a 3", "a 2"), ("b 2", "b 3")]
    assert sorted(pairs) == sorted(
        tuple(one.replace("a ", f"{a} ").replace("b ", f"{b} ") for one in two) for two in expected
    )
    stale = found(demo)
    assert stale["since"] == 4 and stale["judgements"] == 3


def test_a_round_of_another_models_answers(demo: Path) -> None:
    with Store.open(demo / "store.sqlite") as store:
        before = len(store.items(study=STUDY))
    done("sample", "--model", "ppo", "--prompts", "6", "--project", demo)
    run = result(demo / "runs/sample-ppo-0001")
    assert run["answers"] == 4 * run["prompts"] and run["prompts"] == 6 + 3
    with Store.open(demo / "store.sqlite") as store:
        items = store.items(study=STUDY)
        assert len(items) == before + run["items"]
    done("sample", "--model", "base", "--prompts", "6", "--project", demo)
    with Store.open(demo / "store.sqlite") as store:
        others = store.items(study=STUDY)[before + run["items"] :]
    asked = [{one.prompt.id for one in those} for those in (items[before:], others)]
    assert all(asked) and asked[0] != asked[1], "another model is asked other prompts"
    done("label", "--simulate", "--project", demo)
    with Store.open(demo / "store.sqlite") as store:
        judged = {item.id for item, _ in store.judgements(study=STUDY)}
    assert {one.id for one in items[before:]} & judged, "the new round is judged"
    done("train", "reward", "--project", demo, "--set", "reward.epochs=1", "--set", "reward.slim=false")
    assert result(demo / "runs/reward-0003")["judgements"] > result(demo / "runs/reward-0002")["judgements"]
    assert "there is no model" in complaint(bridle("sample", "--model", "nobody", "--project", demo))
