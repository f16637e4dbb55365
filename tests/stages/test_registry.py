"""What a model folder held when it was registered: noticed when it changed, and read again only where it may have."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridle.core import files
from bridle.core.errors import ModelError, StoreError
from bridle.core.files import file_hash, read_json
from bridle.feedback.store.store import Store
from bridle.models.contents import earlier_hash, folder_hash
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages import registry
from bridle.stages.lineage import Lineage, keep_reference
from bridle.stages.registry import Registry, earlier_name
from bridle.stages.workspace import Work
from tests.models.tiny import policy as tiny_policy
from tests.tiny_project import PLAYGROUND, bridle, complaint, done, settings

TAKEN = ("--set", "guard.changed_models=register")


def put(folder: Path, content: str) -> str:
    """A folder that stands for a model; its content hash."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"called": content}))
    (folder / "model.safetensors").write_text(content)
    return folder_hash(folder)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    work = Work(Project(tmp_path, Recipe()), Progress(lambda _: None, live=False))
    yield work
    work.close()


def register_changes(work: Work) -> Work:
    recipe = work.recipe.with_settings({"guard.changed_models": "register"})
    return Work(Project(work.project.folder, recipe), work.progress)


def test_a_model_is_registered_when_it_is_first_used_and_refused_when_its_bytes_changed(work: Work) -> None:
    model = work.project.model("mine")
    first = put(model, "one")
    assert work.verify(model) == work.verify(model) == first
    assert work.store.model_hashes("mine") == {first}
    (model / "README.md").write_text("what is not loaded may change")
    assert work.verify(model) == first
    put(model, "two")
    for _ in range(2):
        with pytest.raises(
            ModelError, match=r"models/mine is not what .* \(config.json, model.safetensors changed\); put"
        ):
            work.verify(model)
    assert work.store.model_hashes("mine") == {first}
    put(model, "one")  # put back
    assert work.verify(model) == first
    second = put(model, "two")
    other = register_changes(work)
    assert other.verify(model) == second
    other.close()
    assert work.verify(model) == second and work.store.model_hashes("mine") == {first, second}
    put(model, "one")  # it was registered under this name once
    assert work.verify(model) == first


def test_a_model_that_is_trained_again_is_known_at_the_instant_that_it_takes_its_place(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a kill there leaves none that is refused, nor does another process meet one; one before leaves the old as it was."""
    model, plain, seen = work.project.model("sft"), files.put_in_place, list[str]()
    first = work.keep_policy("sft", "sft", tiny_policy(), None)

    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    def put_in_place(new: Path, path: Path) -> None:
        plain(new, path)
        seen.append(work.verify(path))

    monkeypatch.setattr(files, "put_in_place", killed)
    with pytest.raises(KeyboardInterrupt):
        work.keep_policy("sft", "sft", tiny_policy(seed=1), None)
    assert work.verify(model) == first
    monkeypatch.setattr(files, "put_in_place", put_in_place)
    second = work.keep_policy("sft", "sft", tiny_policy(seed=1), first)
    assert seen == [second] == [folder_hash(model)] and second != first
    assert work.store.model_hashes("sft") == {first, second}


def test_a_copy_of_a_registered_model_is_a_model_of_its_own(work: Work) -> None:
    """Though the store names each content once."""
    content = put(work.project.model("sft"), "one")
    work.register(work.project.model("sft"), "sft", None)
    put(work.project.model("mine"), "one")
    assert work.verify(work.project.model("mine")) == content
    put(work.project.model("mine"), "two")
    with pytest.raises(ModelError, match="models/mine is not what was registered"):
        work.verify(work.project.model("mine"))
    other = register_changes(work)
    other.verify(work.project.model("mine"))
    other.close()
    put(work.project.model("sft"), "three")
    put(work.project.model("mine"), "one")
    assert work.verify(work.project.model("mine")) == content  # it was registered under this name once
    shutil.copytree(work.project.model("mine"), work.project.model("sft"), dirs_exist_ok=True)
    assert work.verify(work.project.model("sft")) == content


@pytest.mark.parametrize("name", ["sft", "base"])
def test_what_is_registered_is_known_without_the_file_too(name: str, work: Work) -> None:
    """By the store, and by the run that left it."""
    content = put(work.project.model(name), "one")
    work.store.add_model_version("another", kind="sft", weights_sha256=content)
    run = work.project.folder / "runs" / ("pretrain-0001" if name == "base" else "sft-0001")
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"model": content}))
    put(work.project.model(name), "two")
    with pytest.raises(ModelError, match=f"models/{name} is not what was registered under that name; put"):
        work.verify(work.project.model(name))
    put(work.project.model(name), "one")
    assert work.verify(work.project.model(name)) == content


def test_a_file_is_read_again_only_where_its_size_or_a_time_of_it_differs(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_hash(path)

    monkeypatch.setattr(registry, "file_hash", counted)
    monkeypatch.setattr(registry, "SETTLED_NS", 0)
    model, elsewhere = work.project.model("sft"), work.project.folder.parent / "judge"
    put(model, "one")
    put(elsewhere, "judge")
    for folder, look in ((model, work.verify), (elsewhere, work.verify)):
        look(folder)
        assert sorted(read) == ["config.json", "model.safetensors"]
        read.clear()
        assert look(folder) == Registry(work.project).content(folder) == folder_hash(folder) and read == []
    assert Lineage(work.project).present(model) == folder_hash(model) and read == []
    keep_reference(work.project, "sft")
    assert len(read) == 0
    os.utime(model / "config.json")  # touched
    work.verify(model)
    assert read == ["config.json"]
    work.verify(model)
    assert read == ["config.json"]
    weights = model / "model.safetensors"
    before = weights.stat()
    weights.write_text("two")  # as many bytes
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # and the same time
    with pytest.raises(ModelError, match=r"models/sft is not what .* \(model.safetensors changed\)"):
        work.verify(model)


def test_what_changed_a_moment_ago_is_not_taken_for_settled(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change again within the same tick, and keep its times."""
    model = work.project.model("sft")
    put(model, "one")
    work.verify(model)
    kept = read_json(work.project.registered)["models/sft"]["files"]["model.safetensors"]
    assert kept["changed"] == kept["modified"] == 0
    monkeypatch.setattr(registry, "SETTLED_NS", 0)
    work.verify(model)
    kept = read_json(work.project.registered)["models/sft"]["files"]["model.safetensors"]
    assert kept["changed"] == (model / "model.safetensors").stat().st_ctime_ns


def test_a_model_elsewhere_is_what_it_is(work: Work, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-judge"
    for content in ("one", "two"):
        assert put(elsewhere, content) == work.verify(elsewhere)
    assert work.store.model_hashes(elsewhere.name) == set()


def test_what_an_earlier_version_called_a_model_it_is_called_still(work: Work) -> None:
    """By the store's word, or a run's; and what changed since then is refused by the rule of then."""
    sft, mine, ppo = (work.project.model(name) for name in ("sft", "mine", "ppo"))
    for folder in (sft, mine, ppo):
        put(folder, folder.name)
    earlier = {folder: earlier_hash(folder) for folder in (sft, mine, ppo)}
    work.store.add_model_version("sft", kind="sft", weights_sha256=earlier[sft])
    work.store.add_model_version("ppo", kind="ppo", weights_sha256=earlier[ppo])
    run = work.project.folder / "runs/evaluate-mine-0001"
    run.mkdir(parents=True)
    (run / "parents.json").write_text(json.dumps({"stage": "evaluate-mine", "key": "k", "model": earlier[mine]}))
    assert work.verify(sft) == earlier[sft] and work.verify(mine) == earlier[mine]
    assert Lineage(work.project).present(mine) == earlier[mine]
    put(ppo, "another")
    with pytest.raises(ModelError, match="models/ppo is not what was registered"):
        work.verify(ppo)
    put(ppo, "ppo")
    assert work.verify(ppo) == earlier[ppo]
    # From then on the present rule holds: what it covers, and the one before did not, is noticed.
    (sft / "model.safetensors").rename(sft / "part.safetensors")
    (sft / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "part.safetensors"}}))
    with pytest.raises(ModelError, match="models/sft is not what was registered"):
        work.verify(sft)
    new = put(work.project.model("new"), "new")
    assert work.verify(work.project.model("new")) == new != earlier_hash(work.project.model("new"))


# ----------------------------------------------------------------------------------------------- through the command line


@pytest.fixture
def demo(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "demo"))


def names(demo: Path) -> dict[str, object]:
    """The contents that are registered."""
    return {folder: entry["names"] for folder, entry in read_json(demo / "models.json").items()}


def flip(path: Path) -> None:
    """One bit of the last byte, as a disk or a stranger may."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_project_of_an_earlier_version_opens_without_alarm_and_its_runs_are_found(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(demo / "runs")
    shutil.rmtree(demo / "references")
    (demo / "models.json").unlink()
    with sqlite3.connect(demo / "store.sqlite") as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM model_version")
    with monkeypatch.context() as before:
        before.setattr(Registry, "name", lambda self, folder, entry, registered: earlier_name(folder, entry.files))
        done("evaluate", "ppo", "--project", demo)
        done("train", "rebel", "--project", demo)
    (demo / "models.json").unlink()
    noted = read_json(demo / "runs/evaluate-ppo-0001/parents.json")
    assert noted["model"] == earlier_hash(demo / "models/ppo") and noted["sft"] == earlier_hash(demo / "models/sft")
    kept = [path.name for path in (demo / "references").iterdir()]
    assert kept == [earlier_hash(demo / "models/sft")]

    again = bridle("evaluate", "ppo", "--project", demo)
    assert again.exit_code == 0 and again.stderr == "loading PyTorch …\n"
    (demo / "runs/rebel-0001/result.json").unlink()
    assert "resuming after step 2" in bridle("train", "rebel", "--project", demo).stderr
    assert {path.name for path in (demo / "runs").iterdir()} == {"evaluate-ppo-0001", "rebel-0001"}
    done("report", "--project", demo)
    assert '<ul class="warnings">' not in (demo / "report.html").read_text()
    flip(demo / "models/ppo/model.safetensors")
    assert "models/ppo is not what was registered" in complaint(bridle("evaluate", "ppo", "--project", demo))


def test_a_changed_model_is_refused_by_every_verb_that_uses_it(demo: Path) -> None:
    runs, before = sorted(demo.glob("runs/*")), names(demo)
    for name, verbs in {
        "sft": (
            "sample",
            "label --simulate",
            "train reward",
            "train ppo",
            "train dpo",
            "train best-of-n",
            "evaluate sft",
        ),
        "base": ("train sft", "train grpo", "evaluate base"),
        "reward": ("train ppo", "evaluate ppo", "evaluate ppo dpo --by reward"),
        "ppo": (
            "evaluate ppo",
            "evaluate sft ppo",
            "train dpo --set dpo.start=ppo",
            "train rloo --set rloo.reference=ppo",
        ),
    }.items():
        flip(demo / f"models/{name}/model.safetensors")
        for words in verbs:
            found = bridle(*words.split(), "--project", demo)
            assert found.exit_code == 1 and f"models/{name} is not what was registered" in complaint(found), words
        flip(demo / f"models/{name}/model.safetensors")
    assert sorted(demo.glob("runs/*")) == runs and names(demo) == before
    assert bridle("evaluate", "ppo", "--project", demo).exit_code == 0  # all is put back
    flip(demo / "models/ppo/model.safetensors")
    taken = bridle("evaluate", "ppo", *TAKEN, "--project", demo)
    assert taken.exit_code == 0 and (demo / "runs/evaluate-ppo-0002").exists()
    assert bridle("evaluate", "ppo", "--project", demo).exit_code == 0  # it is registered now


def test_a_run_does_not_resume_from_a_model_that_changed_since_it_began(demo: Path) -> None:
    run = demo / "runs/ppo-0001"
    (run / "result.json").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    flip(demo / "models/sft/model.safetensors")
    assert "models/sft is not what was" in complaint(bridle("train", "ppo", "--project", demo))
    assert "begun with another recipe or other parents" in complaint(bridle("train", "ppo", *TAKEN, "--project", demo))
    assert (run / "metrics.jsonl").read_bytes() == before
    flip(demo / "models/sft/model.safetensors")
    done("train", "ppo", "--project", demo)
    assert (run / "result.json").exists() and not (demo / "runs/ppo-0002").exists()


def test_a_model_that_is_a_link_is_read_and_not_written_through(demo: Path, tmp_path: Path) -> None:
    (demo / "models/sft").rename(tmp_path / "outside")
    (demo / "models/sft").symlink_to(tmp_path / "outside")
    before = folder_hash(tmp_path / "outside")
    assert bridle("evaluate", "sft", "--project", demo).exit_code == 0
    runs = sorted((demo / "runs").iterdir())
    told = complaint(bridle("train", "sft", "--set", "sft.learning_rate=0.02", "--project", demo))
    assert "models/sft is a link, which no model that is trained replaces; move it away" in told
    assert (demo / "models/sft").is_symlink() and folder_hash(tmp_path / "outside") == before
    assert sorted((demo / "runs").iterdir()) == runs, "refused before an hour of training, not after it"


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["removed", "emptied"])
def test_a_store_that_vanishes_in_mid_run_is_said_and_not_made_anew(
    lost: object, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(demo / "runs/sample-0001")
    store, kept = demo / "store.sqlite", demo / "kept.sqlite"
    with Store.open(store) as opened:
        counted = opened.counts()
    shutil.copy(store, kept)
    answering = Work.fitting

    def vanish(work: Work, *arguments: object, **named: object) -> object:
        if store.exists() and store.stat().st_size:
            lost(store)  # type: ignore[operator]
        return answering(work, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Work, "fitting", vanish)
        found = bridle("sample", "--project", demo)
    assert found.exit_code == 1 and "the store" in complaint(found) and "run the same command again" in complaint(found)
    assert "unexpected" not in found.stderr
    for words in ("sample", f"import {demo / 'rows.jsonl'}", "train ppo"):
        again = bridle(*words.split(), "--project", demo)
        assert again.exit_code == 1 and "store.sqlite is gone or empty" in complaint(again), again.stderr
    assert not store.exists() or store.stat().st_size == 0
    for name in ("store.sqlite-wal", "store.sqlite-shm"):
        (demo / name).unlink(missing_ok=True)
    shutil.copy(kept, store)
    done("sample", "--project", demo)
    with Store.open(store) as opened:
        assert opened.counts() == counted  # the same answers once more


def test_a_new_project_may_begin_without_a_store(tmp_path: Path) -> None:
    done("init", tmp_path / "p", *settings(PLAYGROUND))
    assert "bridle train pretrain" in complaint(bridle("train", "sft", "--project", tmp_path / "p"))
    with pytest.raises(StoreError):
        (tmp_path / "p/models.json").write_text('{"models/base": {"names": {"x": "x"}}}')
        Project.find(tmp_path / "p").require_store()
