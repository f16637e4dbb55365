"""Models by name, from a hub on this machine: what comes, what is pinned, and a sentence for each thing that goes wrong."""

import errno
import json
import socket
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import ModelError
from bridle.models.files import hub as hubs
from bridle.models.files.hub import Named, check_pinned, fetch, named
from bridle.models.policy import save_policy
from tests.models.files.fake_hub import COMMIT, FakeHub, serving
from tests.models.tiny import one_sentence, policy
from tests.tiny_project import bridle, complaint, done

EXTRA = {
    "LICENSE": b"Mine.", "README.md": b"# Me", "pytorch_model.bin": b"pickle", "modeling_mine.py": b"import os",
    "onnx/model.onnx": b"0", "original/model.safetensors": b"0", "model.fp16.safetensors": b"0",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mine") / "model"
    save_policy(place, policy())
    return place


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    found = FakeHub.of_folder("them/tiny-1.0", folder)
    found.files |= EXTRA
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(found):
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        yield found


def quiet(sentence: str) -> None:
    pass


def fault(wanted: str) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(named(wanted) or Named("none"), quiet)
    assert one_sentence(str(caught.value)), caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Qwen/Qwen3-0.6B", Named("Qwen/Qwen3-0.6B")),
        ("a/b@main", Named("a/b", "main")),
        ("a/b@refs/pr/1", Named("a/b", "refs/pr/1")),
        ("modelscope:Qwen/Qwen3-0.6B@v1", Named("Qwen/Qwen3-0.6B", "v1", True)),
        *(
            (text, None)
            for text in ("./a/b", "/a/b", "../a", "~/a", "a", "a/b/c", "a/b@", "a/b@x y", "a b/c", "a/b\n", "a/b@x@y")
        ),
    ],
)
def test_a_name_is_told_from_a_path(text: str, found: Named | None) -> None:
    assert named(text) == found


# --------------------------------------------------------------------------------------------------------- what comes


def test_what_bridle_reads_comes_and_nothing_else(hub: FakeHub, folder: Path) -> None:
    found = fetch(Named(hub.name), quiet)
    needed = {path.name for path in folder.iterdir()} | {"LICENSE"}
    assert set(found.files) == needed == set(hub.sent())
    assert (found.hub, found.revision, found.asked, found.name) == (hub.address, COMMIT, "main", hub.name)
    assert all((Path(found.folder) / name).read_bytes() == hub.files[name] for name in needed)
    before = len(hub.sent())
    assert fetch(Named(hub.name, COMMIT), quiet).files == found.files and len(hub.sent()) == before, "the cache has it"


def test_weights_in_parts_come_whatever_they_are_called(hub: FakeHub) -> None:
    weights = hub.files.pop("model.safetensors")
    hub.files |= {
        "part_a.safetensors": weights,
        "model.safetensors.index.json": b'{"weight_map": {"x": "part_a.safetensors"}}',
    }
    assert {"part_a.safetensors", "model.safetensors.index.json"} <= set(fetch(Named(hub.name), quiet).files)


def test_where_the_hub_is_silent_the_cache_speaks(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    first = fetch(Named(hub.name), quiet)
    told: list[str] = []
    hub.refuse = (503, "")
    assert fetch(Named(hub.name), told.append) == first and "is taken from the client's cache" in told[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert fetch(Named(hub.name), quiet) == first and len(hub.asked) == asked, "offline nobody is asked"


# ------------------------------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ((401, "RepoNotFound"), "there is no model them/tiny-1.0 at"),
        ((404, "RepoNotFound"), "there is no model them/tiny-1.0 at"),
        ((404, ""), "there is no model them/tiny-1.0 at"),
        ((401, "GatedRepo"), "accept its terms at {}/them/tiny-1.0, and log in with `hf auth login`"),
        ((403, "GatedRepo"), "does not give them/tiny-1.0 to you (403): accept its terms"),
        ((403, ""), "does not give them/tiny-1.0 to you (403): accept its terms"),
        ((503, ""), "(HTTP 503); on a machine that reaches it run `hf download them/tiny-1.0 --local-dir tiny-1.0`"),
    ],
)
def test_a_hub_that_refuses(refuse: tuple[int, str], words: str, hub: FakeHub) -> None:
    hub.refuse = refuse
    assert words.format(hub.address) in fault(hub.name)
    assert not hub.sent() and len(hub.asked) == 1, "asked once"


def test_a_revision_that_is_not_there(hub: FakeHub) -> None:
    assert fault(f"{hub.name}@v9").startswith(f"{hub.name} has no revision 'v9' at {hub.address}")


def test_a_name_that_no_hub_has(hub: FakeHub) -> None:
    assert "cannot be the name of a model" in fault("them/a--b")


def test_where_no_hub_answers_the_way_on_is_said(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        told = fault(f"{hub.name}@v1")
        assert "does not answer for them/tiny-1.0@v1 (Conn" in told
        assert "run `hf download them/tiny-1.0 --revision v1 --local-dir tiny-1.0`, and name that folder here" in told
        silent.listen()  # accepts, and says nothing
        monkeypatch.setattr(hubs, "PATIENCE", 0.2)
        assert "does not answer for them/tiny-1.0 (" in fault(hub.name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, and the cache has no copy" in fault(hub.name)


def test_a_file_that_is_not_the_announced_one(hub: FakeHub) -> None:
    hub.wrong["model.safetensors"] = hub.files["model.safetensors"][:-1] + b"x"
    assert fault(hub.name).startswith("model.safetensors of them/tiny-1.0 is not the file that http://127.0.0.1")


def test_a_disk_that_is_full(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    assert "the disk is full" in fault(hub.name) and "set HF_HOME" in fault(hub.name)


def test_a_model_of_pickles_alone(hub: FakeHub) -> None:
    del hub.files["model.safetensors"], hub.files["model.fp16.safetensors"]
    assert (
        "holds no safetensors, which bridle reads alone, but onnx/model.onnx, pytorch_model.bin" in fault(hub.name)
        and not hub.sent()
    )


# ----------------------------------------------------------------------------------------------------- the other hub


def test_modelscopes_client_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    told = fault("modelscope:them/tiny@v1")
    assert "pip install 'bridle[modelscope]'" in told
    assert "`modelscope download --model them/tiny --revision v1 --local_dir tiny`" in told


def test_modelscopes_client_downloads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        if name == "them/gone":
            raise RuntimeError("no such\nmodel")
        return str(folder)

    client = types.ModuleType("modelscope")
    client.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", client)
    found = fetch(Named("them/tiny", modelscope=True), quiet)
    assert asked == [("them/tiny", {"allow_patterns": hubs.WANTED})]
    assert (found.hub, found.revision) == ("modelscope.cn", "master") and "model.safetensors" in found.files
    assert "modelscope.cn does not answer for them/gone@v2 (RuntimeError: no such model)" in fault(
        "modelscope:them/gone@v2"
    )
    assert asked[-1][1]["revision"] == "v2"


# --------------------------------------------------------------------------------------------- in a project, and later


def test_a_project_begins_by_name_and_holds_to_what_came(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    told = done("init", tmp_path / "p", "--model", f"{hub.name}@main")
    assert f"{hub.name} at revision {COMMIT[:12]} from {hub.address}; hub.json has the hashes" in told
    pins = json.loads((tmp_path / "p/hub.json").read_text())
    assert pins["revision"] == COMMIT and (tmp_path / "p/models/base/config.json").is_file()
    source = Path(pins["folder"])
    check_pinned(tmp_path / "p/hub.json", source)
    check_pinned(tmp_path / "p/hub.json", folder)  # another model, named since
    blob = (source / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    found = bridle("train", "pretrain", "--project", tmp_path / "p")
    told = complaint(found)
    assert "model.safetensors, of them/tiny-1.0 at revision 0123456789ab, is not the file that was downloaded" in told
    assert f"`hf download them/tiny-1.0 --revision {COMMIT} --local-dir tiny-1.0` brings it again" in told
    blob.unlink()
    assert "is not there any more" in complaint(bridle("train", "pretrain", "--project", tmp_path / "p"))


def test_a_cache_that_is_named_by_a_relative_path(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As HF_HOME=cache does: the project, which may lie elsewhere, finds the model again."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "cache")
    found = fetch(Named(hub.name), quiet)
    assert Path(found.folder).is_absolute() and Path(found.folder).is_relative_to(tmp_path / "cache")


def test_a_folder_of_that_name_comes_first(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "them").mkdir()
    (tmp_path / hub.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    told = done("init", "p", "--model", hub.name)
    assert f"{hub.name} is a folder here, which comes before a model of that name on a hub" in told
    assert not hub.asked and not (tmp_path / "p/hub.json").exists()


def test_what_cannot_be_had_makes_no_project(hub: FakeHub, tmp_path: Path) -> None:
    hub.refuse = (404, "RepoNotFound")
    found = bridle("init", tmp_path / "p", "--model", hub.name)
    assert found.exit_code == 1 and "there is no model them/tiny-1.0" in complaint(found)
    asked = len(hub.asked)
    found = bridle("init", tmp_path / "p", "--model", hub.name, "--set", "ppo.steps=0")
    assert found.exit_code == 2 and len(hub.asked) == asked, "nothing is downloaded for a recipe that is wrong"
    assert not (tmp_path / "p").exists()
