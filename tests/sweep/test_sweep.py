"""Settings over the same seeds: what they share is done once, what is finished is not done again, and a run is what it would be alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import Interrupted, TrainingStopped
from bridle.maths.statistics import student_quantile
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.documents import to_toml
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work
from bridle.sweep import sweep as module
from bridle.sweep.chain import chain_to, run_stage
from bridle.sweep.grid import read_words, setting_name
from bridle.sweep.sweep import Remaining, Sweep, plan_sweep, run_sweep, with_whole_paths
from bridle.sweep.table import paired, sweep_lines, table_of
from tests.test_own_model import FEW, write_mine
from tests.tiny_project import PLAYGROUND, bridle, complaint, done, preferences, result, settings, weights

TINY = PLAYGROUND | {
    "data.pretrain_tokens": 4000, "data.train_prompts": 10, "data.heldout_prompts": 10, "data.compared_heldout": 5,
    "data.probe_prompts": 2, "data.demonstrations": 16, "ppo.steps": 2, "model.layers": 1, "sampling.max_new_tokens": 12,
    "guard.audits": "off", "seed": 3,
}  # fmt: skip
GRID = "ppo.kl_coef=0.05,0.3"
SILENT = Progress(write=lambda text: None, live=False)


def recipe_in(folder: Path, values: dict[str, Any] = TINY) -> Path:
    place = folder / "tiny.toml"
    place.write_text(to_toml(Recipe().with_settings(values)))
    return place


def planned(
    out: Path, *words: str, method: str | None = None, metric: str | None = None, seeds: int = 2, **changed: Any
) -> Sweep:
    recipe = Recipe().with_settings({**TINY, **{key.replace("__", "."): value for key, value in changed.items()}})
    return plan_sweep(recipe, read_words(words)[1], method, metric, seeds, out, None)


def finished(out: Path) -> dict[str, int]:
    """Each finished run with the time at which it was."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.glob("seed-*/*/runs/*/result.json")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], dict[str, set[str]]]]:
    """A sweep of two settings over two seeds through the command line: its folder, what it printed, and the sections of the recipe that
    were hashed while each stage ran."""
    folder, hashed, stage = tmp_path_factory.mktemp("swept"), dict[str, set[str]](), [""]
    hash_of = Recipe.hash_of

    def noting(recipe: Recipe, *sections: str) -> str:
        hashed.setdefault(stage[0], set()).update(sections)
        return hash_of(recipe, *sections)

    def run(work: Work, name: str, taught: bool) -> dict[str, Any]:
        stage[0] = name
        return run_stage(work, name, taught)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "hash_of", noting)
        patch.setattr(module, "run_stage", run)
        words = ["--seeds", "2", "--out", folder / "out", "--json", "--set", 'track.to=["tensorboard"]']
        found = json.loads(done("sweep", recipe_in(folder), GRID, *words))
    yield folder / "out", found, hashed


@pytest.fixture
def out(swept: tuple[Path, dict[str, Any], dict[str, set[str]]], tmp_path: Path) -> Path:
    """A copy, to be changed."""
    recipe_in(tmp_path)
    return Path(shutil.copytree(swept[0], tmp_path / "out", symlinks=True))


# ------------------------------------------------------------------------------------------------------- what is asked


def test_words_are_a_recipe_and_a_grid() -> None:
    place, grid = read_words(["a.toml", "ppo.kl_coef=0.05,0.1", "dpo.loss=dpo,ipo"])
    assert place == Path("a.toml")
    assert [setting_name(one) for one in grid] == [
        "ppo.kl_coef=0.05,dpo.loss=dpo", "ppo.kl_coef=0.05,dpo.loss=ipo", "ppo.kl_coef=0.1,dpo.loss=dpo",
        "ppo.kl_coef=0.1,dpo.loss=ipo",
    ]  # fmt: skip
    assert read_words(['reward.tasks=["a", "b"],["c"]'])[1] == [{"reward.tasks": ["a", "b"]}, {"reward.tasks": ["c"]}]
    assert read_words(["reward.slim=true,false"])[1] == [{"reward.slim": True}, {"reward.slim": False}]
    assert read_words([]) == (None, [{}])


@pytest.mark.parametrize(
    ("words", "complained"),
    [
        (["ppo.kl_coeff=0.1,0.2"], "sweep: unknown setting 'ppo.kl_coeff'; did you mean 'kl_coef'?"),
        (["ppo.steps=4,six"], "sweep: ppo.steps = 'six' is invalid: must be a valid integer"),
        (["ppo.kl_coef=0.1,0.0"], "kl_target = 1.5 steers β by products"),
        (["ppo.steps=4,8,4"], "ppo.steps is given the value 4 twice; give each value once"),
        (["ppo.steps=4", "ppo.steps=8"], "ppo.steps is given twice"),
        (["seed=1,2"], "--seeds says how many"),
        (["b.toml", "ppo.steps=4"], "a sweep has one recipe, and "),
        (["ppo.steps=4", "dpo.beta=0.1"], "these are settings of ppo and dpo; name the method"),
        (["data.probe_prompts=4,8"], "what is swept is in no method's section; name the method"),
        (["rloo.steps=1,2", "--method", "ppo"], "rloo.steps is read by none of pretrain, sft, sample, label, reward, ppo, "),
        (["ppo.steps=1,2", "--method", "poo"], "'poo' is not a method"),
        (["ppo.start=ppo,sft"], "ppo begins from, or is held to, a model that is made from its own"),
        (["ppo.scored_by=reward,verifier"], "these settings are not measured by the same thing"),
        (["ppo.steps=1,2", "--set", "data.source=store"], "no project is here whose data could be used"),
        (
            ["reward.epochs=1,2", "--method", "ppo", "--metric", "proxy"],
            "proxy is the score by the project's reward model, which reward.epochs makes another for each setting",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complained: str
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = bridle("sweep", recipe_in(tmp_path), *words)
    assert failed.exit_code == 2 and complained in complaint(failed)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("method", "changed", "stages"),
    [
        ("pretrain", {}, "pretrain"),
        ("sft", {}, "pretrain sft evaluate-sft"),
        ("reward", {}, "pretrain sft sample label reward"),
        ("dpo", {}, "pretrain sft sample label dpo evaluate-dpo"),
        ("dpo", {"dpo__online_rounds": 2}, "pretrain sft sample label reward dpo evaluate-dpo"),
        ("rloo", {"rloo__start": "dpo"}, "pretrain sft sample label dpo reward rloo evaluate-rloo"),
        ("rloo", {"rloo__scored_by": "nothing", "rloo__reference": "teacher"}, "pretrain sft rloo evaluate-rloo"),
        ("grpo", {}, "pretrain grpo evaluate-grpo"),
        ("sl-cai", {}, "pretrain sft revise sl-cai evaluate-sl-cai"),
        ("ppo", {"model__path": "mine"}, "sft sample label reward ppo evaluate-ppo"),
        ("ppo", {"data__source": "store"}, "pretrain sft reward ppo evaluate-ppo"),
    ],
)
def test_a_chain_is_what_a_method_needs(method: str, changed: dict[str, Any], stages: str) -> None:
    recipe = Recipe().with_settings({**TINY, **{key.replace("__", "."): value for key, value in changed.items()}})
    assert chain_to([recipe], method, "gold") == tuple(stages.split())


def test_stages_before_the_one_that_reads_a_setting_are_shared() -> None:
    def parts(*words: str, method: str | None = None) -> list[tuple[str, str, str, tuple[int, ...]]]:
        plan = planned(Path("out"), *words, method=method)
        return [(part.name, part.origin, " ".join(part.stages), part.settings) for part in plan.parts]

    assert parts("ppo.steps=4,8") == [
        ("up-to-reward", "", "pretrain sft sample label reward", (0, 1)),
        ("ppo.steps=4", "up-to-reward", "ppo evaluate-ppo", (0,)),
        ("ppo.steps=8", "up-to-reward", "ppo evaluate-ppo", (1,)),
    ]
    assert parts("dpo.beta=0.1,0.3", "sft.epochs=1,2", method="dpo") == [
        ("up-to-pretrain", "", "pretrain", (0, 1, 2, 3)),
        ("up-to-label,sft.epochs=1", "up-to-pretrain", "sft sample label", (0, 2)),
        ("dpo.beta=0.1,sft.epochs=1", "up-to-label,sft.epochs=1", "dpo evaluate-dpo", (0,)),
        ("dpo.beta=0.3,sft.epochs=1", "up-to-label,sft.epochs=1", "dpo evaluate-dpo", (2,)),
        ("up-to-label,sft.epochs=2", "up-to-pretrain", "sft sample label", (1, 3)),
        ("dpo.beta=0.1,sft.epochs=2", "up-to-label,sft.epochs=2", "dpo evaluate-dpo", (1,)),
        ("dpo.beta=0.3,sft.epochs=2", "up-to-label,sft.epochs=2", "dpo evaluate-dpo", (3,)),
    ]
    alone = ("pretrain sft sample label dpo evaluate-dpo", (0,))
    assert parts("data.probe_prompts=4,8", method="dpo")[0] == ("data.probe_prompts=4", "", *alone)
    assert parts(method="dpo") == [("as-it-is", "", *alone)]


def test_what_decides_a_run_is_among_what_its_stage_is_known_to_read(
    swept: tuple[Path, dict[str, Any], dict[str, set[str]]],
) -> None:
    hashed, plan = swept[2], planned(Path("out"), GRID)
    assert hashed.keys() - {""} == set(plan.chain)
    assert all(hashed[stage] <= plan.reads[stage] for stage in plan.chain), hashed


def test_files_that_a_recipe_names_are_found_from_elsewhere(tmp_path: Path) -> None:
    for name in ("world.toml", "scores"):
        (tmp_path / name).mkdir()
    source = {"name": "a", "kind": "learned", "path": "scores"}
    recipe = Recipe().with_settings({"world.file": "world.toml", "judge.model": "critic", "reward_source": [source]})
    whole = with_whole_paths(recipe, tmp_path)
    assert (whole.world.file, whole.reward_source[0].path) == (str(tmp_path / "world.toml"), str(tmp_path / "scores"))
    assert whole.judge.model == "critic" and whole.reward.path == ""


# ------------------------------------------------------------------------------------------------------ what comes of it


def test_each_run_is_what_it_would_be_alone(
    swept: tuple[Path, dict[str, Any], dict[str, set[str]]], tmp_path: Path
) -> None:
    """Another setting was trained, and answered, before it: nothing of that is in its data or its parents."""
    one = swept[0] / "seed-4/ppo.kl_coef=0.3"
    recipe = Recipe().with_settings({**TINY, "seed": 4, "ppo.kl_coef": 0.3})
    work = Work(Project.create(tmp_path / "alone", recipe), SILENT, threads=1)
    for name in planned(tmp_path, GRID).chain:
        run_stage(work, name, True)
    work.close()
    assert weights(one, "ppo") == weights(tmp_path / "alone", "ppo")
    for run in ("reward-0001", "ppo-0001", "evaluate-ppo-0001"):
        assert result(one / "runs" / run) == result(tmp_path / "alone/runs" / run)


def test_what_settings_share_is_done_once_and_takes_no_more_room(
    swept: tuple[Path, dict[str, Any], dict[str, set[str]]],
) -> None:
    seed = swept[0] / "seed-3"
    assert sorted(p.name for p in seed.iterdir()) == ["ppo.kl_coef=0.05", "ppo.kl_coef=0.3", "up-to-reward"]
    for name in ("models/sft/model.safetensors", "runs/reward-0001/result.json"):
        places = [
            (seed / part / name).stat().st_ino for part in ("up-to-reward", "ppo.kl_coef=0.05", "ppo.kl_coef=0.3")
        ]
        assert len(set(places)) == 1
    assert not (seed / "up-to-reward/runs/ppo-0001").exists()
    assert (seed / "ppo.kl_coef=0.3/runs/ppo-0001/tensorboard").is_dir()  # trackers, named by --set


def test_the_table_has_means_every_seed_and_paired_intervals(
    swept: tuple[Path, dict[str, Any], dict[str, set[str]]],
) -> None:
    out, found, _ = swept
    golds = [
        [json.loads((out / f"seed-{s}/{p}/runs/evaluate-ppo-0001/result.json").read_text())["gold"] for s in (3, 4)]
        for p in ("ppo.kl_coef=0.05", "ppo.kl_coef=0.3")
    ]
    first, second = found["settings"]
    assert [first["values"], second["values"]] == golds and found["seeds"] == [3, 4] and found["metric"] == "gold"
    assert first["mean"] == pytest.approx(sum(golds[0]) / 2) and first["difference"] is None
    apart = [b - a for a, b in zip(*golds, strict=True)]
    half = student_quantile(0.95, 1) * abs(apart[0] - apart[1]) / 2
    assert second["difference"] == pytest.approx(
        {"value": sum(apart) / 2, "low": sum(apart) / 2 - half, "high": sum(apart) / 2 + half, "n": 2}
    )
    assert json.loads((out / "sweep.json").read_text()) == found
    header, *rows = list(sweep_lines(found))[1:4]
    assert header.split() == ["mean", "difference", "seed", "3", "seed", "4"]
    assert [row.split()[0] for row in rows] == ["ppo.kl_coef=0.05", "ppo.kl_coef=0.3"]


def test_run_again_nothing_is_run_and_more_of_it_runs_what_is_missing(out: Path, tmp_path: Path) -> None:
    before = finished(out)
    table = done("sweep", tmp_path / "tiny.toml", GRID, "--seeds", "2", "--out", out)
    assert finished(out) == before and "ppo.kl_coef=0.3 " in table
    planned_lines = done("sweep", tmp_path / "tiny.toml", f"{GRID},0.5", "--seeds", "2", "--out", out, "--dry-run")
    assert "3 settings × 2 seeds (3 to 4), compared by gold: 22 runs, 4 of them to do" in planned_lines
    assert "; 42 if nothing were shared" in planned_lines and finished(out) == before
    assert "ppo.kl_coef=0.5: ppo, evaluate-ppo, on a copy of up-to-reward" in planned_lines
    done("sweep", tmp_path / "tiny.toml", f"{GRID},0.5", "--seeds", "2", "--out", out)
    now = finished(out)
    assert {name: at for name, at in now.items() if name in before} == before
    own = {name for name in now.keys() - before.keys() if "/ppo-" in name or "/evaluate-" in name}
    assert own == {
        f"seed-{s}/ppo.kl_coef=0.5/runs/{run}-0001/result.json" for s in (3, 4) for run in ("ppo", "evaluate-ppo")
    }


def test_a_sweep_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path / "out", GRID, seeds=1)

    def stopping(work: Work, name: str, taught: bool) -> dict[str, Any]:
        if work.recipe.ppo.kl_coef == 0.3:
            raise Interrupted("stopped")
        return run_stage(work, name, taught)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_stage", stopping)
        with pytest.raises(Interrupted):
            run_sweep(plan, SILENT)
    before = finished(plan.out)
    lines = list[str]()
    found = run_sweep(plan, Progress(write=lines.append, live=False))
    assert {name: at for name, at in finished(plan.out).items() if name in before} == before
    assert not any("Pretraining" in line for line in lines) and any("PPO" in line for line in lines)
    assert [one["difference"] and one["difference"]["low"] for one in found["settings"]] == [None, None]
    assert any(line.startswith("One seed: ") for line in sweep_lines(found))


def test_a_folder_of_another_recipe_is_left_alone(out: Path, tmp_path: Path) -> None:
    before = finished(out)
    failed = bridle("sweep", tmp_path / "tiny.toml", GRID, "--seeds", "2", "--out", out, "--set", "ppo.steps=3")
    assert failed.exit_code == 2 and "is of a sweep with another recipe; give --out another folder" in complaint(failed)
    assert finished(out) == before


def test_a_metric_that_was_not_measured_is_refused_with_the_nearest(out: Path, tmp_path: Path) -> None:
    words = ["sweep", tmp_path / "tiny.toml", GRID, "--seeds", "2", "--out", out]
    failed = bridle(*words, "--metric", "golds")
    assert failed.exit_code == 2 and "measured no 'golds'; did you mean 'gold'?" in complaint(failed)
    found = json.loads(done(*words, "--metric", "gold_by_family.math", "--json"))
    assert found["metric"] == "gold_by_family.math" and None not in found["settings"][0]["values"]


def test_a_run_that_can_learn_nothing_costs_its_setting_that_seed_alone(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(out / "seed-4/ppo.kl_coef=0.3")

    def stopped(work: Work, name: str, taught: bool) -> dict[str, Any]:
        if work.project.folder.parent.name == "seed-4" and work.recipe.ppo.kl_coef == 0.3:
            raise TrainingStopped("no reward is finite")
        return run_stage(work, name, taught)

    monkeypatch.setattr(module, "run_stage", stopped)
    found = json.loads(done("sweep", tmp_path / "tiny.toml", GRID, "--seeds", "2", "--out", out, "--json"))
    second = found["settings"][1]
    assert second["values"][1] is None and second["values"][0] == second["mean"] and second["difference"]["n"] == 1
    assert found["failed"] == [{"seed": 4, "setting": {"ppo.kl_coef": 0.3}, "why": "no reward is finite"}]
    assert "Left out: ppo.kl_coef=0.3, seed 4: no reward is finite" in list(sweep_lines(found))


def test_a_setting_that_changes_nothing_is_said() -> None:
    table = table_of([{"a.b": 1}, {"a.b": 2}, {"a.b": 3}], [0, 1], [[1.0, 2.0], [1.0, 2.0], [1.0, 2.5]], "gold")
    found = {**table, "method": "ppo", "failed": [], "out": "out"}
    assert [line for line in sweep_lines(found) if "to the bit" in line] == [
        "a.b=2: to the bit the first setting's, so nothing that was done reads what is swept."
    ]


def test_differences_are_of_the_seeds_that_both_have() -> None:
    assert paired([3.0, None, 5.0], [1.0, 2.0, None]) == {"value": 2.0, "low": None, "high": None, "n": 1}
    assert paired([None], [1.0]) is None


def test_what_is_left_is_expected_to_take_as_long_as_its_like_took(tmp_path: Path) -> None:
    plan = planned(tmp_path / "out", GRID)
    left, (shared, first, second) = Remaining(plan), plan.parts
    assert left.after(3, shared, "pretrain") == 0.0  # nobody knows yet
    left.note(3, shared, "pretrain", {"seconds": 10.0})
    left.note(3, first, "ppo", {"seconds": 20.0})
    others = 9 * 2 - 2 - 4  # stages of neither name, each as long as both on the mean
    assert left.after(3, second, "ppo") == pytest.approx(10.0 + 2 * 20.0 + others * 15.0)
    assert left.after(3, second, "evaluate-ppo") == pytest.approx(10.0 + 3 * 20.0 + (others - 1) * 15.0)


# --------------------------------------------------------------------------------------------- a project of the user's


def test_a_users_project_is_swept_with_its_data_and_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model was taken as the base when the project was made; where it lay nothing need be any more."""
    mine, project = write_mine(tmp_path / "mine"), tmp_path / "p"
    done("init", project, "--model", mine, *settings(FEW))
    done("import", preferences(tmp_path / "pairs.jsonl", 24), "--project", project)
    shutil.rmtree(mine)
    monkeypatch.chdir(project)
    planned_lines = done("sweep", "dpo.beta=0.1,0.5", "--seeds", "2", "--dry-run").splitlines()
    assert planned_lines[1:2] == ["  up-to-reward: reward, shared by 2 settings"]  # its SFT is the model itself
    found = json.loads(done("sweep", "dpo.beta=0.1,0.5", "--seeds", "2", "--out", tmp_path / "out", "--json"))
    assert found["metric"] == "proxy" and all(None not in one["values"] for one in found["settings"])
    assert sorted(p.name for p in (tmp_path / "out/seed-0/dpo.beta=0.5/runs").iterdir() if p.name[0] != ".") == [
        "dpo-0001", "evaluate-dpo-0001", "reward-0001",
    ]  # fmt: skip
    assert (tmp_path / "out/seed-0/dpo.beta=0.5/models/sft").is_symlink()
    assert not (project / "runs").exists() or not list((project / "runs").glob("*/result.json"))


def test_a_project_without_data_is_told_so(tmp_path: Path) -> None:
    done("init", tmp_path / "p")
    failed = bridle("sweep", "dpo.beta=0.1,0.5", "--project", tmp_path / "p", "--out", tmp_path / "out")
    assert failed.exit_code == 1 and "store.sqlite is not there yet; `bridle import FILE` brings" in complaint(failed)
    assert not (tmp_path / "out").exists() and not (tmp_path / "p/store.sqlite").exists()


def test_data_that_came_later_is_not_the_sweeps(tmp_path: Path) -> None:
    """A seed that begins after an import learns from what the others learnt from."""
    mine, project = write_mine(tmp_path / "mine"), tmp_path / "p"
    done("init", project, "--model", mine, *settings(FEW))
    done("import", preferences(tmp_path / "pairs.jsonl", 24), "--project", project)
    words = ["sweep", "--method", "dpo", "--project", project, "--out", tmp_path / "out"]
    done(*words, "--seeds", "1")
    done("import", preferences(tmp_path / "more.jsonl", 40), "--project", project)
    done(*words, "--seeds", "2")
    kept = [result(tmp_path / f"out/seed-{seed}/as-it-is/runs/dpo-0001")["snapshot"] for seed in (0, 1)]
    assert kept[0] == kept[1]
