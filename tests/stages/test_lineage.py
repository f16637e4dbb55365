"""What a model came from and whether the project still holds it: by folders that stand for models, and through the command line."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import Interrupted, ModelError
from bridle.core.files import whole_folder, write_json
from bridle.feedback.importing.importer import import_file
from bridle.feedback.store.store import Store
from bridle.maths.statistics import mean_and_se
from bridle.models.contents import folder_hash
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run, Until
from bridle.recipe.recipe import Recipe
from bridle.report.project import frontier
from bridle.report.runs import Runs
from bridle.report.verdict import verdict_of
from bridle.stages.data import PlaygroundData
from bridle.stages.evaluate import compare, evaluate, read_answers
from bridle.stages.lineage import Lineage, keep_reference
from bridle.stages.methods import METHODS
from bridle.stages.rewards import TAKEN, reward_parents
from bridle.stages.workspace import Work, done_before, stage_key
from tests.tiny_project import bridle, done, preferences, result

AGAIN = ("--set", "sft.learning_rate=0.02")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, Recipe())


def put(project: Project, name: str, content: str) -> str:
    """A folder that stands for a model; its content hash."""
    with whole_folder(project.model(name)) as new:
        (new / "config.json").write_text(content)
        (new / "model.safetensors").write_text(content)
    return folder_hash(project.model(name))


def finished(project: Project, stage: str, noted: Mapping[str, Any], left: str | None = None) -> Path:
    run = project.folder / "runs" / f"{stage}-{len(project.runs(stage)) + 1:04d}"
    write_json(run / "parents.json", {"stage": stage, "key": "", **noted})
    write_json(run / "result.json", {"seconds": 1.0} if left is None else {"model": left})
    return run


def trained(project: Project, stage: str, content: str, **noted: Any) -> str:
    name = "base" if stage == "pretrain" else stage
    left = put(project, name, content)
    finished(project, stage, noted, left)
    return left


def stale(project: Project, *names: str) -> list[str]:
    """What is said of each model that is: up to the way out."""
    lineage = Lineage(project)
    return [sentence.partition(" than ")[0] for sentence in lineage.stale(project.model(name) for name in names)]


@pytest.fixture
def chain(project: Project) -> Project:
    base = trained(project, "pretrain", "base")
    sft = trained(project, "sft", "sft", base=base)
    reward = trained(project, "reward", "reward", sft=sft, snapshot="s")
    trained(project, "ppo", "ppo", sft=sft, reward=reward)
    return project


def test_what_nothing_was_done_to_since_is_not_stale(chain: Project) -> None:
    assert stale(chain, "base", "sft", "reward", "ppo", "missing") == []


def test_the_nearest_that_is_stale_is_named_a_line_for_each_model(chain: Project) -> None:
    base = trained(chain, "pretrain", "another base")
    assert stale(chain, "ppo") == stale(chain, "sft", "ppo", "reward") == ["sft descends from another base"]
    sft = trained(chain, "sft", "another sft", base=base)
    assert stale(chain, "ppo", "sft") == ["ppo descends from another sft"]
    assert stale(chain, "ppo", "reward") == ["ppo descends from another sft", "reward descends from another sft"]
    reward = trained(chain, "reward", "another reward", sft=sft)
    assert stale(chain, "ppo", "reward") == ["ppo descends from another sft and another reward"]
    trained(chain, "ppo", "another ppo", sft=sft, reward=reward)
    assert stale(chain, "ppo", "reward", "sft") == []


def test_the_run_that_made_what_is_there_counts_and_not_the_last(chain: Project) -> None:
    trained(chain, "sft", "another sft", base=folder_hash(chain.model("base")))
    put(chain, "sft", "sft")  # the first one, put back by hand
    assert stale(chain, "ppo", "reward") == []


def test_a_model_that_no_run_made_and_a_parent_that_is_gone_are_no_alarm(chain: Project) -> None:
    put(chain, "ppo", "put there by hand")
    shutil.rmtree(chain.model("base"))
    assert stale(chain, "ppo", "sft") == []
    put(chain, "sft", "put there by hand")
    assert stale(chain, "ppo", "sft", "reward") == ["reward descends from another sft"]


def test_a_model_trained_further_under_its_own_name_descends_from_what_it_was(chain: Project) -> None:
    first = folder_hash(chain.model("ppo"))
    trained(chain, "ppo", "further", start=first, folders={"start": "models/ppo"})
    assert stale(chain, "ppo") == []
    trained(chain, "sft", "another sft", base=folder_hash(chain.model("base")))
    assert stale(chain, "ppo") == ["ppo descends from another sft"]


def test_a_run_that_changed_nothing_does_not_hide_what_made_the_model(chain: Project) -> None:
    sft = folder_hash(chain.model("sft"))
    trained(chain, "rloo", "sft", sft=sft)  # learning rate 0: the same content
    trained(chain, "pretrain", "another base")
    assert stale(chain, "sft", "rloo") == ["sft descends from another base"]


def test_every_kind_of_parent_is_looked_at(chain: Project) -> None:
    sft, reward = (folder_hash(chain.model(name)) for name in ("sft", "reward"))
    member, judge = put(chain, "reward-member-2", "member"), put(chain, "judge", "judge")
    noted = {
        "start": sft, "reference": folder_hash(chain.model("ppo")), "critic": reward, "reward-member-2": member,
        "reward_source": [{"name": "judge", "path": "models/judge"}], "judge": judge,
        "folders": {"start": "models/sft", "reference": "models/ppo"},
    }  # fmt: skip
    trained(chain, "grpo", "grpo", **noted)
    assert stale(chain, "grpo") == []
    for name in ("sft", "ppo", "reward", "reward-member-2", "judge"):
        content = (chain.model(name) / "config.json").read_text()
        put(chain, name, "another")
        assert f"another {name}" in stale(chain, "grpo")[0]
        put(chain, name, content)
    trained(chain, "reward-slim", "slim", sft=sft, base="of a folder that an earlier version did not note")
    assert stale(chain, "reward-slim") == []


def test_runs_of_earlier_versions_noted_no_names(chain: Project) -> None:
    first = folder_hash(chain.model("ppo"))
    trained(chain, "dpo", "dpo", start=first)
    trained(chain, "rloo", "rloo", start="of a model that no run made")
    reference = Lineage(chain).reference("dpo")
    assert reference is not None and (reference.name, reference.hash) == ("ppo", first)
    assert stale(chain, "dpo", "rloo") == []
    put(chain, "ppo", "another")
    assert stale(chain, "dpo", "rloo") == ["dpo descends from another ppo"]


def test_a_damaged_run_tells_nothing(chain: Project) -> None:
    (chain.runs("ppo")[0] / "parents.json").write_text("{")
    put(chain, "sft", "another")
    assert stale(chain, "ppo") == []


def test_runs_whose_metrics_are_of_other_models_are_named(chain: Project) -> None:
    sft, ppo, reward = (folder_hash(chain.model(name)) for name in ("sft", "ppo", "reward"))
    runs = [
        finished(chain, "evaluate-ppo", {"model": ppo, "name": "ppo", "sft": sft, "reward": reward}),
        finished(chain, "evaluate-sft", {"model": sft, "name": "sft", "sft": sft, "reward": reward}),
        finished(chain, "best-of-4", {"sft": sft, "reward": reward}),
        finished(chain, "sample", {"sft": sft}),
        chain.runs("sft")[0],
        chain.runs("ppo")[0],
    ]
    assert Lineage(chain).outdated(runs) == []
    put(chain, "sft", "another")
    replaced, outdated = Lineage(chain).outdated(runs)  # what was measured of PPO is still so
    assert replaced.startswith("models/sft is another model than sft-0001 left")
    assert outdated.startswith("evaluate-sft-0001, best-of-4-0001: made with another sft than the project holds now")
    put(chain, "sft", "sft")
    put(chain, "reward", "another")
    (outdated,) = Lineage(chain).outdated(runs)
    assert outdated.startswith("evaluate-ppo-0001, evaluate-sft-0001, best-of-4-0001: made with another reward than")


# ------------------------------------------------------------------------------------------- the reference that is kept


def test_a_reference_is_kept_once_by_hash_and_stays_when_the_model_is_replaced(chain: Project) -> None:
    sft = folder_hash(chain.model("sft"))
    keep_reference(chain, "sft")
    keep_reference(chain, "sft")
    kept = chain.reference(sft)
    assert [path.name for path in kept.parent.iterdir()] == [sft]
    for file in chain.model("sft").iterdir():
        file.write_text("another")  # in place, as `cp` writes
    assert folder_hash(kept) == sft != folder_hash(chain.model("sft"))
    reference = Lineage(chain).reference("ppo")
    assert reference is not None and (reference.name, reference.hash, reference.folder) == ("sft", sft, kept)
    (sentence,) = Lineage(chain).stale([chain.model("ppo")])
    assert f"references/{sft[:16]}…" in sentence


def test_a_kept_reference_of_another_content_is_not_taken_and_is_kept_anew(chain: Project) -> None:
    sft = folder_hash(chain.model("sft"))
    keep_reference(chain, "sft")
    put(chain, "sft", "another")
    assert "references/" in Lineage(chain).stale([chain.model("ppo")])[0]
    (chain.reference(sft) / "config.json").write_text("damaged")
    assert "references/" not in Lineage(chain).stale([chain.model("ppo")])[0], "it is no way back"
    reference = Lineage(chain).reference("ppo")
    assert reference is not None and reference.folder is None
    put(chain, "sft", "sft")
    reference = Lineage(chain).reference("ppo")  # a project of before has it there alone
    assert reference is not None and reference.folder == chain.model("sft")
    keep_reference(chain, "sft")
    assert folder_hash(chain.reference(sft)) == sft


def test_a_reference_that_is_replaced_while_it_is_kept_is_told_of(
    chain: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def replaced(source: Path, target: Path) -> None:
        put(chain, "sft", "another")
        copy(source, target)

    monkeypatch.setattr("bridle.stages.lineage.shutil.copyfile", replaced)
    with pytest.raises(
        ModelError, match="sft was replaced while it was copied to .*references/.*; run the same command"
    ):
        keep_reference(chain, "sft")
    assert not list((chain.folder / "references").iterdir())


def test_what_has_no_reference_of_its_own_is_measured_against_sft(chain: Project) -> None:
    sft = folder_hash(chain.model("sft"))
    put(chain, "mine", "put there by hand")
    for name in ("sft", "mine"):
        reference = Lineage(chain).reference(name)
        assert reference is not None and (reference.name, reference.hash) == ("sft", sft)
    assert Lineage(chain).reference("base") is None
    shutil.rmtree(chain.model("sft"))
    assert Lineage(chain).reference("mine") is None


def test_a_reward_source_never_takes_the_key_of_another_parent(project: Project) -> None:
    """Each of them, and no other: what is called neither keeps the key that it had."""
    put(project, "judge", "judge")
    put(project, "reward", "reward")
    for name in ("judge", "reward"):
        (project.model(name) / "bridle_reward.json").write_text("{}")
    judge, own = (folder_hash(project.model(name)) for name in ("judge", "reward"))
    names = ["sft", "start", "reference", "data", "world", "source", "key", "stage", "prompts", "reward", "helpful"]
    sources = [{"name": name, "kind": "learned", "path": "models/judge"} for name in names]
    recipe = Recipe().with_settings({"reward_source": [*sources, {"name": "own", "kind": "learned"}]})
    work = Work(Project(project.folder, recipe), Progress(lambda _: None))
    parents = reward_parents(work)
    work.close()
    assert parents.pop("reward") == own and parents.pop("reward_source")
    assert parents == {**{f"reward_source.{name}": judge for name in names[:-1]}, "helpful": judge}
    places = Lineage(project).places({"stage": "ppo", "reward_source": sources, **parents})
    assert set(places) == set(parents) and set(places.values()) == {project.model("judge")}


def test_every_key_that_a_run_of_practice_notes_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = set[str]()

    def begin(work: Work, stage: str, title: str, key: str, parents: dict[str, Any], recipe: Recipe) -> None:
        run = Run.begin(work.project, stage, key, parents, work.progress)
        run.record_device(1, "cpu")
        noted.update(read(run.folder / "parents.json"))
        raise Interrupted("seen")

    monkeypatch.setattr(Work, "start", begin)
    practised = {"ppo.start": "other", "ppo.reference": "sft", "ppo.pretrain_coef": 1.0, "reward.members": 2}
    judged = [{"name": "helpful", "kind": "learned", "path": "models/reward"}, {"name": "own", "kind": "learned"}]
    for folder, chosen in (
        ("imported", {**practised, "data.train_prompts": 4, "reward_source": judged}),
        ("imported", {"ppo.reference": "other"}),
        ("playground", {"data.source": "playground", "ppo.scored_by": "verifier", "ppo.start": "sft"}),
    ):
        project = Project(tmp_path / folder, Recipe().with_settings({"data.source": "store", **chosen}))
        for name in ("sft", "other", "reward", "reward-member-2"):
            put(project, name, json.dumps({"called": name}))
            if name.startswith("reward"):
                (project.model(name) / "bridle_reward.json").write_text("{}")
        with Store.open(project.store) as store:
            import_file(store, preferences(tmp_path / "rows.jsonl"))
        work = Work(project, Progress(lambda _: None, live=False))
        with pytest.raises(Interrupted, match="seen"):
            METHODS["ppo"].train(work, until=Until("at once", lambda signals: None))
        work.close()
    own = {"helpful", "reward", "reward-member-2"}  # a source's own name, and names that are looked up besides
    assert noted - own <= TAKEN and {"prompts", "demonstrations", "until", "critic", "ensemble", "data"} <= noted


def test_a_result_that_is_taken_as_it_is_warns_as_its_run_would(chain: Project) -> None:
    sft = folder_hash(chain.model("sft"))
    finished(chain, "sample", {"sft": sft, "key": "k"})
    for said in ([], ["sft descends from another base"]):
        lines = list[str]()
        work = Work(chain, Progress(lines.append, live=False))
        for _ in range(2):
            assert done_before(work, "sample", "k", True) is not None
        assert [line.strip().partition(" than ")[0] for line in lines] == said
        assert done_before(work, "sample", "another", True) is None
        put(chain, "base", "another")


# ----------------------------------------------------------------------------------------------- through the command line


@pytest.fixture
def demo(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "demo"))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_fresh_demo_gives_no_warning_and_its_keys_are_what_they_were(demo: Path) -> None:
    assert bridle("evaluate", "ppo", "sft", "--project", demo).stderr == "loading PyTorch …\n"
    assert '<ul class="warnings">' not in (demo / "report.html").read_text()
    project = Project.find(demo)
    ppo, evaluation = (read(demo / "runs" / run / "parents.json") for run in ("ppo-0001", "evaluate-ppo-0001"))
    sft, reward = (folder_hash(project.model(name)) for name in ("sft", "reward"))
    parents = {"sft": sft, "reward": reward, "source": "learned"}
    assert ppo["key"] == stage_key(project.recipe, ("model", "ppo", "data", "sampling"), parents)
    parents = {"model": folder_hash(project.model("ppo")), "name": "ppo", "world": evaluation["world"], "sft": sft}
    sections = ("model", "data", "sampling", "world")
    assert evaluation["key"] == stage_key(project.recipe, sections, {**parents, "reward": reward})
    kept = {path.name for path in (demo / "references").iterdir()}  # PPO and DPO are held to SFT, GRPO to its branch
    assert kept == {sft, folder_hash(project.model("arithmetic"))}


def test_sft_trained_anew_is_noticed_everywhere_and_the_kl_stays(demo: Path) -> None:
    before = result(demo / "runs/evaluate-ppo-0001")
    sft = folder_hash(demo / "models/sft")
    done("train", "sft", *AGAIN, "--project", demo)

    lines = list[str]()
    work = Work(Project.find(demo), Progress(lines.append, live=False))
    compare(work, "ppo", "sft", "gold")  # the kept answers, which are of another SFT
    work.close()
    assert sum("evaluate-sft-0001: made with another sft" in line for line in lines) == 1
    assert sum("ppo descends from another sft" in line for line in lines) == 1

    evaluated = bridle("evaluate", "ppo", "sft", "--project", demo)
    assert evaluated.stderr.count("ppo descends from another sft") == 1
    after = result(demo / "runs/evaluate-ppo-0002")
    assert (after["kl"], after["kl_se"]) == (before["kl"], before["kl_se"]) and after["kl"] > 0
    assert before["kl_reference"] == after["kl_reference"] == {"name": "sft", "hash": sft}
    own = result(demo / "runs/evaluate-sft-0002")
    assert own["kl"] == 0 and own["kl_reference"] == {"name": "sft", "hash": folder_hash(demo / "models/sft")}
    again = bridle("evaluate", "ppo", "--project", demo)  # taken as it is, and still said
    assert "ppo descends from another sft" in again.stderr and not (demo / "runs/evaluate-ppo-0003").exists()

    reported = bridle("report", "--project", demo)
    page = (demo / "report.html").read_text()
    for name in ("ppo", "dpo", "reward"):
        assert f"{name} descends from another sft" in page and f"{name} descends from another sft" in reported.stderr
    assert f"PPO from sft {sft[:8]}" in page  # what each KL was measured from, for it is not one for all
    one = bridle("report", "ppo-0001", "--project", demo)
    assert "ppo descends from another sft" in one.stderr
    assert "ppo descends from another sft" in (demo / "runs/ppo-0001/report.html").read_text()

    scored = bridle("train", "ppo", "--set", "ppo.steps=1", "--project", demo)  # by a reward model of the other SFT
    assert scored.exit_code == 0 and "reward descends from another sft" in scored.stderr
    assert "ppo descends" not in bridle("evaluate", "ppo", "--project", demo).stderr


def test_without_its_reference_the_kl_is_left_out_and_why_is_said(demo: Path) -> None:
    done("train", "sft", *AGAIN, "--project", demo)
    kept = demo / "references" / read(demo / "runs/ppo-0001/parents.json")["sft"]
    shutil.move(kept, demo / "elsewhere")
    lost = bridle("evaluate", "ppo", "--json", "--project", demo)
    assert "the KL of ppo is left out: sft" in lost.stderr and "kl" not in json.loads(lost.stdout)["ppo"]
    runs = Runs.of(Project.find(demo))
    drawn = frontier(runs, verdict_of(runs, "gold"))
    assert drawn is None or "PPO" not in [line[0].name for line in drawn.lines]  # no KL, no place on the axis
    shutil.move(demo / "elsewhere", kept)
    found = bridle("evaluate", "ppo", "--json", "--project", demo)  # put back, it counts again
    assert "left out" not in found.stderr
    assert json.loads(found.stdout)["ppo"]["kl"] == result(demo / "runs/evaluate-ppo-0001")["kl"]


def test_against_a_reference_with_other_tokens_the_kl_is_left_out_and_why_is_said(demo: Path) -> None:
    template = shutil.copytree(demo / "models/sft", demo / "models/mine") / "chat_template.jinja"
    template.write_text(template.read_text() + "{# of another family #}")
    found = bridle("evaluate", "mine", "--json", "--project", demo)
    assert "the KL of mine is left out: sft, which it is measured against, has another tokenizer" in found.stderr
    figures = json.loads(found.stdout)["mine"]
    assert not {"kl", "kl_se", "kl_reference"} & set(figures) and "proxy" in figures
    assert read(demo / "runs/evaluate-mine-0001/parents.json")["reference"] is None


def test_the_standard_errors_of_an_evaluation_are_by_prompt(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(Project.find(demo), Progress(lambda _: None, live=False))
    prompts = work.data.heldout_prompts()[:4]
    for asked in (prompts * 3, prompts[:1]):
        monkeypatch.setattr(PlaygroundData, "heldout_prompts", lambda data, asked=asked: asked)
        shutil.rmtree(demo / "runs/evaluate-ppo-0001", ignore_errors=True)
        found = evaluate(work, "ppo")
        lines = read_answers(work, "ppo")
        for score in ("proxy", "gold"):
            error = mean_and_se([line[score] for line in lines], [line["id"] for line in lines])[1]
            assert found[f"{score}_se"] == pytest.approx(error, rel=1e-3, nan_ok=True)
    work.close()
    known = json.loads((demo / "runs/evaluate-ppo-0001/result.json").read_text(), parse_constant=pytest.fail)
    errors = {name: value for name, value in known.items() if name.endswith("_se")}
    assert set(errors) == {"length_se", "gold_se", "proxy_se", "kl_se"} and not any(errors.values())


def test_answers_of_equal_text_tie_whatever_their_scores(demo: Path) -> None:
    work, scores = Work(Project.find(demo), Progress(lambda _: None, live=False)), {"ppo": 1.0, "sft": 0.0}
    for name, score in scores.items():
        lines = [{"id": f"{i}", "answer": name if i == 3 else "the same", "gold": score} for i in range(4)]
        path = demo / f"runs/evaluate-{name}-0001/answers.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare(work, "ppo", "sft", "gold")["rate"] == 0.625
    work.close()


def test_a_model_is_measured_against_what_it_was_held_to(demo: Path) -> None:
    done("train", "dpo", "--set", "dpo.start=ppo", "--set", "dpo.epochs=1", "--project", demo)
    ppo = folder_hash(demo / "models/ppo")
    shutil.rmtree(demo / "models/ppo")
    found = json.loads(done("evaluate", "dpo", "--json", "--project", demo))["dpo"]
    assert found["kl_reference"] == {"name": "ppo", "hash": ppo} and found["kl"] != 0
    noted = read(demo / "runs/dpo-0002/parents.json")
    assert noted["start"] == ppo and noted["folders"]["start"] == "models/ppo"
