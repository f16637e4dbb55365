"""RLAIF from end to end on a tiny playground: nobody is asked, the control lies apart, and the page says what came of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bridle.core.records import LabelerKind
from bridle.demo.recipes import RECIPES
from bridle.demo.rlaif import PEOPLE
from bridle.feedback.store.store import Store
from bridle.stages.data import STUDY
from bridle.stages.observe import agreement_with_gold
from tests.stages.test_methods import Quiet
from tests.tiny_project import PLAYGROUND, done, result, settings

TINY: dict[str, Any] = {
    **PLAYGROUND, "data.pretrain_tokens": 6_000, "data.train_prompts": 12, "data.heldout_prompts": 12, "data.probe_prompts": 4,
    "data.compared_heldout": 6, "data.demonstrations": 24, "model.max_positions": 192, "sampling.max_new_tokens": 12,
    "constitution.critic_answers": 16, "ppo.steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("rlaif") / "project"
    printed = done("demo", "--recipe", "rlaif", "--out", project, *settings(TINY))
    for words in (
        "and nobody was asked",
        "easy pairs about harm",
        "of held-out pairs right after",
        "prompts against SFT",
        "PPO: true",
    ):
        assert words in printed, words
    return project


def judgements_in(project: Path) -> dict[str, list[LabelerKind]]:
    """By item, who judged."""
    found: dict[str, list[LabelerKind]] = {}
    with Store.open(project / "store.sqlite") as store:
        for item, one in store.judgements(study=STUDY):
            found.setdefault(item.id, []).append(one.labeler_kind)
    return found


def test_a_model_judges_and_people_judge_the_same_answers_as_often_apart(walked: Path) -> None:
    by_model, by_people = judgements_in(walked), judgements_in(walked / PEOPLE)
    assert by_model and by_model.keys() == by_people.keys(), "an item is named by its answers"
    assert set(map(tuple, by_model.values())) == {(LabelerKind.AI,)}
    assert set(map(tuple, by_people.values())) == {(LabelerKind.SIMULATED,)}
    reward, people = result(walked / "runs/reward-0001"), result(walked / "runs/people-0001")
    assert reward["judgements"] == people["judgements"] and reward["snapshot"] != people["snapshot"]
    assert result(walked / PEOPLE / "runs/reward-0001")["pair_accuracy"] == people["pair_accuracy"]


def test_what_it_prints_is_what_was_measured(walked: Path) -> None:
    summary = json.loads((walked / "summary.json").read_text())
    stages = summary["stages"]
    assert list(stages) == [stage.name for stage in RECIPES["rlaif"]] and summary["recipe"] == "rlaif"
    win = stages["ppo-against-sft"]
    assert win["low"] <= win["rate"] <= win["high"] and all(one["sft"] != one["ppo"] for one in win["examples"])
    with Quiet(walked, {}) as work:
        judged = [(item, one) for item, one in work.store.judgements(study=STUDY) if one.ranking]
        again = agreement_with_gold(judged, work.data.score)
    assert again["clear_pairs"] > 0 and again.items() <= stages["judge"].items()
    page = (walked / "report.html").read_text()
    for words in ("judged by a model in people", "Control: people in the model", "taught by people in the model"):
        assert words in page, words


def test_what_is_finished_is_not_done_again(walked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.demo.recipes.write_project_report", lambda work: None)
    project = Path(shutil.copytree(walked, tmp_path / "project"))
    before = {path.name for path in (project / "runs").iterdir()}
    (project / PEOPLE / "models/sft/config.json").unlink()  # nothing there is asked for once its run is finished
    done("demo", "--recipe", "rlaif", "--out", project, *settings(TINY))
    assert {path.name for path in (project / "runs").iterdir()} == before
