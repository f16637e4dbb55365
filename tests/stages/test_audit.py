"""Audits on a tiny demo: comparisons in the store, the way back, waiting for people, and a run that resumes as it would have gone on."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bridle.core.errors import DataError, RecipeError
from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.rankings import pairs_of
from bridle.feedback.store.assignment import next_task, submit
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import find_study, set_study
from bridle.feedback.upkeep.takedown import take_down
from bridle.guard.stopping import fit_scale_and_noise
from bridle.guard.watch import RULES, OnlineWatch
from bridle.project.kept import read_parents
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.offline import DPOSection
from bridle.recipe.online import PPOSection
from bridle.recipe.watching import GuardSection
from bridle.stages import audit
from bridle.stages.audit import StoreAuditor, check_raisable, guard_identity, without_acting
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work
from tests.tiny_project import bridle, done, result

OFTEN = {
    "guard.audit_every": 0.001,
    "guard.audit_size": 2,
    "guard.audit_share": 1.0,
    "ppo.kl_coef": 0.0,
    "ppo.kl_target": 0.0,
}
WORDS = [word for name, value in OFTEN.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture
def demo(finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(audit, "FEWEST_PAIRS", 10)
    monkeypatch.setattr(audit, "PROMPTS", 8)
    return Path(shutil.copytree(finished_demo, tmp_path / "demo"))


@pytest.fixture
def auditors(monkeypatch: pytest.MonkeyPatch) -> list[StoreAuditor]:
    """Who reported, the newest last."""
    seen: list[StoreAuditor] = []
    usual = StoreAuditor.report

    def report(self: StoreAuditor, found: Mapping[str, Any]) -> None:
        seen.append(self)
        usual(self, found)

    monkeypatch.setattr(StoreAuditor, "report", report)
    return seen


def watched(demo: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((demo / "runs" / run / "watch.json").read_text())
    return found


def test_an_audit_is_compared_in_a_study_of_its_own(demo: Path, auditors: list[StoreAuditor]) -> None:
    done("train", "ppo", "--project", demo, *WORDS)
    found = watched(demo, "ppo-0002")
    assert [one["step"] for one in found["audits"]] == sorted({one["step"] for one in found["audits"]})
    assert found["audits"] and all(one["compared"] == 2 for one in found["audits"])
    assert set(found["answers"]) >= {"start", "end"} and len(found["answers"]["start"]["rows"]) == audit.ROWS
    with Store.open(demo / "store.sqlite") as store:
        judged = store.judgements(study="audit-ppo-0002")
        own = store.judgements(study="comparisons")
        read = sum(len(item.completions) for item, _ in store.judgements(study="comparisons", split="train"))
    assert judged and not {item.id for item, _ in judged} & {item.id for item, _ in own}
    assert all(len(one.completions) == 2 and one.completions[0].weight_stamp for one, _ in judged)
    assert not (demo / "runs/ppo-0002/audited").exists()
    auditor = auditors[-1]
    assert auditor.from_reference and auditor.comparisons == read // 2
    gain = np.asarray(auditor._latest[1]) - np.asarray(auditor.references()[1])
    assert found["audits"][-1]["stated"] == pytest.approx(auditor.scale * gain.mean()) and auditor.scale != 1
    with Store.open(demo / "store.sqlite") as store:
        held_out = [pair for one in store.judgements(study="comparisons", split="heldout") for pair in pairs_of(*one)]
    scores = [auditor.reward([pair.prompt] * 2, [pair.chosen, pair.rejected]) for pair in held_out]
    scale, noise = fit_scale_and_noise([float(chosen or 0) - float(rejected or 0) for chosen, rejected in scores])
    assert (auditor.scale, auditor.noise) == pytest.approx((scale, noise))
    assert scale > 0.1 and noise < 0.45, (
        "the tiny model's numbers differ by processor, but it is no coin, which the last noise tried is for"
    )


def test_a_run_that_is_past_its_best_keeps_the_best(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, dict[str, torch.Tensor]] = {}
    usual = StoreAuditor.keep

    def keep(self: StoreAuditor, step: int) -> None:
        usual(self, step)
        kept[step] = {name: t.clone() for name, t in self.policy.module.state_dict().items()}

    monkeypatch.setattr(StoreAuditor, "keep", keep)
    monkeypatch.setattr(OnlineWatch, "rolls_back_to", property(lambda self: min(kept, default=None)))
    done("train", "ppo", "--project", demo, *WORDS)
    first, last = min(kept), max(kept)
    assert result(demo / "runs/ppo-0002")["rolled_back_to"] == first < last
    saved = load_file(demo / "models/ppo/model.safetensors")
    assert saved and all(torch.equal(tensor, kept[first][name]) for name, tensor in saved.items())
    assert any(not torch.equal(kept[last][name], tensor) for name, tensor in saved.items())


def test_a_run_that_dies_before_its_model_is_saved_rolls_back_again(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Work, *rest: Any) -> str:
        raise DataError("the disk went away")

    monkeypatch.setattr(OnlineWatch, "rolls_back_to", property(lambda self: self.own["audits"][0]["step"]))
    with monkeypatch.context() as patch:
        patch.setattr(Work, "keep_policy", die)
        assert "the disk went away" in bridle("train", "ppo", "--project", demo, *WORDS).stderr
    best = load_file(sorted((demo / "runs/ppo-0002/audited").iterdir())[0])
    done("train", "ppo", "--project", demo, *WORDS)
    saved = load_file(demo / "models/ppo/model.safetensors")
    assert saved and all(torch.equal(tensor, best[name]) for name, tensor in saved.items())
    assert not (demo / "runs/ppo-0002/audited").exists()


def test_lost_comparisons_end_the_run_where_it_began(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreAuditor, "outcomes", lambda self, items: dict.fromkeys(items, 0.0))
    monkeypatch.setattr(
        audit, "fit_scale_and_noise", lambda gaps: (1.0, 0.05)
    )  # a tiny model's own differ by processor
    monkeypatch.setattr(OnlineWatch, "rolls_back_to", 0)
    done("train", "ppo", "--project", demo, *WORDS, "--set", "guard.audit_sure=0.6", "--set", "guard.audit_size=6")
    found = result(demo / "runs/ppo-0002")
    began, ended = (load_file(demo / f"models/{name}/model.safetensors") for name in ("sft", "ppo"))
    assert found["rolled_back_to"] == 0 and all(torch.equal(ended[name], tensor) for name, tensor in began.items())
    assert "the guard (audit)" in found["ended"] and found["steps"] < 5 and "audit" in found["warnings"]
    assert watched(demo, "ppo-0002")["events"][0]["action"] == "roll back"


def test_a_policy_that_is_held_to_another_than_it_began_as_does_not_end_as_that(
    demo: Path, auditors: list[StoreAuditor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoreAuditor, "outcomes", lambda self, items: dict.fromkeys(items, 0.0))
    words = ["--set", "ppo.start=dpo", "--set", "ppo.reference=sft", "--set", "ppo.steps=2"]
    done("train", "ppo", "--project", demo, *WORDS, *words, "--set", "guard.audit_sure=0.51")
    found = watched(demo, "ppo-0002")
    assert not auditors[-1].from_reference
    assert found["best_step"] in [one["step"] for one in found["audits"]] and found["rolled_back_to"] in (None, 1)


def judge(demo: Path, study: str, count: int, outcome: Literal["", "cannot_judge"] = "") -> None:
    with Store.open(demo / "store.sqlite") as store:
        for _ in range(count):
            task = next_task(store, study, "Anna")
            assert task is not None
            said = Judgement(
                task.item.id,
                "Anna",
                LabelerKind.PERSON,
                () if outcome else ((0,), (1,)),
                task.display_order,
                outcome=outcome,
            )
            submit(store, study, [said])


def test_a_run_waits_for_people_and_goes_on(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS, "--set", "guard.audits=people", "--set", "ppo.steps=3"]
    first = bridle("train", "ppo", "--project", demo, *words)
    assert first.exit_code == 3 and "waits after step 2 of 3 for 2 comparisons of its audit" in first.stderr
    again = bridle("train", "ppo", "--project", demo, *words)
    assert again.exit_code == 3, "nobody has judged anything"
    judge(demo, "audit-ppo-0002", 1)
    with Store.open(demo / "store.sqlite") as store:
        set_study(store, "audit-ppo-0002", {"lease_seconds": 60})
    third = bridle("train", "ppo", "--project", demo, *words)
    assert third.exit_code == 3 and "for 1 comparisons" in third.stderr
    judge(demo, "audit-ppo-0002", 1)
    assert "after step 3 of 3" in bridle("train", "ppo", "--project", demo, *words).stderr
    with Store.open(demo / "store.sqlite") as store:
        found = find_study(store, "audit-ppo-0002")
    assert found is not None and found.settings.lease_seconds == 60, "its owner's settings"
    judge(demo, "audit-ppo-0002", 2)
    monkeypatch.setattr(audit, "calibrated", None)  # it was noted as the run began
    done("train", "ppo", "--project", demo, *words)
    assert [one["wins"] for one in watched(demo, "ppo-0002")["audits"]] == [2, 2]


def test_what_nobody_can_judge_or_may_is_not_waited_for(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS, "--set", "guard.audits=people", "--set", "ppo.steps=3", "--set", "guard.audit_size=8"]
    assert bridle("train", "ppo", "--project", demo, *words).exit_code == 3
    study = "audit-ppo-0002"
    with Store.open(demo / "store.sqlite") as store:
        first, second, third, *others = store.items(study=study)
        store.exclude("item", first.id, reason="a test", by="Anna")
        take_down(store, second.completions[1].id, reason="a test", by="Anna")
    gone = frozenset({third.completions[1].id})  # the store has no other answer with this text, and would take none
    monkeypatch.setattr(audit, "taken_down", lambda connection: gone)
    judge(demo, study, 1, "cannot_judge")
    waits = bridle("train", "ppo", "--project", demo, *words).stderr
    assert f"after step 2 of 3 for {len(others)} comparisons" in waits
    judge(demo, study, len(others))
    assert "after step 3 of 3" in bridle("train", "ppo", "--project", demo, *words).stderr
    with Store.open(demo / "store.sqlite") as store:
        asked = store.unjudged_items(study)
    assert asked and not gone & {one.id for item in asked for one in item.completions}, "it came back"


def test_a_run_that_was_stopped_resumes_with_the_audits_it_had(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(demo, tmp_path / "other"))
    done("train", "ppo", "--project", demo, *WORDS)
    usual = Run.log

    def stop(self: Run, step: int, *rest: Any) -> None:
        usual(self, step, *rest)
        self.stop_asked = self.stop_asked or step == 2

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        assert bridle("train", "ppo", "--project", other, *WORDS).exit_code == 130
    done("train", "ppo", "--project", other, *WORDS)
    assert watched(other, "ppo-0002") == watched(demo, "ppo-0002")
    assert result(other / "runs/ppo-0002")["model"] == result(demo / "runs/ppo-0002")["model"]


def test_what_may_act_is_part_of_what_a_run_is() -> None:
    usual = GuardSection()
    assert (
        guard_identity(usual)
        == {}
        == guard_identity(usual.model_copy(update={"max_refusals_rise": 0.9, "on_length": "warn"}))
    )
    assert guard_identity(usual.model_copy(update={"on_refusals": "stop"})) == {"guard": '{"on_refusals": "stop"}'}
    for rule in RULES:
        stops = usual.model_copy(update={f"on_{rule.name}": "stop"})
        other = stops.model_copy(update={rule.limit: dict(stops)[rule.limit] / 2})
        assert guard_identity(other) != guard_identity(stops), rule.limit
    assert {rule.name for rule in RULES} == usual.actions.keys() - {"audit"}
    assert guard_identity(usual.model_copy(update={"audits": "off"})) == {"guard": '{"audits": "off"}'}
    quiet = without_acting(usual.model_copy(update={"on_kl": "stop"}))
    assert (quiet.audits, quiet.on_audit, quiet.on_kl, quiet.on_length) == ("off", "warn", "warn", "note")


@pytest.mark.parametrize(
    ("config", "why"), [(DPOSection(), "has no KL weight"), (PPOSection(kl_coef=0.0, kl_target=0.0), "KL weight of 0")]
)
def test_a_kl_weight_that_is_not_there_cannot_be_raised(config: PPOSection | DPOSection, why: str) -> None:
    limits = GuardSection(on_kl="raise beta")
    check_raisable(limits, PPOSection(), "ppo")
    with pytest.raises(RecipeError, match=why):
        check_raisable(limits, config, "it")


def test_too_few_comparisons_to_know_what_a_point_means(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FEWEST_PAIRS", 10_000)
    done("train", "ppo", "--project", demo, *WORDS)
    assert not (demo / "runs/ppo-0002/watch.json").exists()
    assert np.isfinite(result(demo / "runs/ppo-0002")["kl"])


def test_a_reward_that_fails_beside_the_run_costs_the_audits_alone(demo: Path) -> None:
    """Somebody's own function may take a step's eight answers and no more; that is noted, and said again of the same run."""
    lines = list[str]()

    def reward(prompts: Any, completions: Any) -> list[float]:
        if len(completions) > 8:
            raise ValueError("eight at most")
        return [float(len(one.text)) for one in completions]

    work = Work(Project.find(demo), Progress(lines.append, live=False))
    try:
        METHODS["ppo"].train(work, name="mine", settings={"steps": 2}, reward=reward)
    finally:
        work.close()
    assert any("no audits: the reward failed on answers beside the run's own: eight at most" in line for line in lines)
    assert read_parents(demo / "runs/mine-0001")["audit_calibration"]["fault"]
    assert not (demo / "runs/mine-0001/watch.json").exists() and (demo / "models/mine").exists()
