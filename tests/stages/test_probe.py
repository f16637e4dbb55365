"""`bridle reward probe` on a tiny demo: by the reward model, by several sources, by the verifier; kept as a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bridle.core.records import Completion, Prompt
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.report.project import project_report
from bridle.stages import probe as probe_stage
from bridle.stages.workspace import Work
from tests.tiny_project import bridle, complaint, done, lines_of

KINDS = {
    "empty",
    "truncated",
    "two answers",
    "prompt copied",
    "repeated",
    "white space",
    "flattering",
    "refusing",
    "good",
}


@pytest.fixture
def demo(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "demo"))


def probed(demo: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("reward", "probe", "--project", demo, "--json", *words))
    return found


def test_the_reward_model_is_probed_and_what_it_pays_is_kept(demo: Path) -> None:
    found = probed(demo, "--search", "30")
    run = demo / "runs/reward-probe-0001"
    lines = lines_of(run / "probes.jsonl")
    assert set(found["kinds"]) == KINDS
    assert found["ordinary_sd"] > 0 and len(found["best"]) == probe_stage.LISTED
    assert [one["paid"] for one in found["best"]] == sorted((one["paid"] for one in found["best"]), reverse=True)
    assert sum(line["kind"] not in KINDS for line in lines) == 30
    assert {line["answer"] for line in lines if line["kind"] == "empty"} == {""}
    of_kind = [line["score"] for line in lines if line["kind"] == "refusing"]
    mean = sum(of_kind) / len(of_kind)
    assert found["kinds"]["refusing"]["mean"] == pytest.approx((mean - found["ordinary_mean"]) / found["ordinary_sd"])
    assert probed(demo, "--search", "30") == found and not (demo / "runs/reward-probe-0002").exists()
    table = done("reward", "probe", "--project", demo, "--search", "30")
    assert table.startswith("answers") and all(f"\n{kind} " in table for kind in KINDS)
    work = Work(Project.find(demo), Progress(live=False))
    (reported,) = [one for one in project_report(work).tables if one.title == "What the reward pays for"]
    work.close()
    assert {row[0]: row[3] for row in reported.rows} == {kind: pay["gain"] for kind, pay in found["kinds"].items()}
    assert all(fault in reported.words for fault in found["faults"][:2])


def test_the_verifier_pays_for_right_answers_alone(demo: Path) -> None:
    found = probed(demo, "--by", "verifier", "--set", "sampling.max_new_tokens=120")  # a worked solution must fit
    assert found["kinds"]["good"]["mean"] > 0.9 and "best" not in found
    assert not found["faults"] and found["kinds"]["empty"]["gain"] <= 0


def test_several_sources_are_probed_as_what_rl_would_learn_from(demo: Path) -> None:
    with (demo / "bridle.toml").open("a") as file:
        file.write(
            '\n[[reward_source]]\nname = "taste"\nkind = "learned"\n[[reward_source]]\nname = "against"\nkind = "learned"\nweight = -1.0\n'
        )
    found = probed(demo)
    assert (found["ordinary_sd"], found["faults"]) == (0.0, [])  # they cancel out
    assert all(pay["gain"] == 0 for pay in found["kinds"].values())


def test_a_reward_that_is_not_there_is_missed_before_anything_is_answered(demo: Path) -> None:
    shutil.rmtree(demo / "models/reward")
    refused = bridle("reward", "probe", "--project", demo)
    assert refused.exit_code == 1 and "make it with `bridle train reward`" in complaint(refused)
    assert bridle("reward", "probe", "--search", "-1").exit_code == 2


def test_probes_come_in_the_policys_tokens_and_no_longer_than_it_may_write(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(Project.find(demo), Progress(), threads=1)
    seen: dict[str, list[Completion]] = {"cut": [], "whole": []}

    def reward(prompts: list[Prompt], completions: list[Completion]) -> list[float]:
        for completion in completions:
            seen["whole" if completion.finish_reason == "stop" else "cut"].append(completion)
        return [float(len(completion.token_ids)) for completion in completions]

    monkeypatch.setattr(probe_stage, "training_reward", lambda work, policy: reward)
    found = probe_stage.probe_reward(work)
    template = work.read_policy(work.project.model("sft")).template
    limit = work.recipe.sampling.max_new_tokens
    work.close()
    stops = template.stop_ids
    assert all(c.token_ids[-1] in stops for c in seen["whole"]) and all(
        c.token_ids[-1] not in stops for c in seen["cut"]
    )
    assert max(len(c.token_ids) for answers in seen.values() for c in answers) == limit
    assert found["kinds"]["empty"]["mean"] < 0 and found["kinds"]["empty"]["above_median"] == 0
