"""Ranks and workers on a Ray cluster: what each rank is told, what is refused, and what becomes of a run that loses some of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import UsageError
from bridle.launch import ray as launcher
from bridle.launch.ray import imported_ray, own_look, rank_environments, require_alike
from bridle.launch.torchrun import ranks
from bridle.recipe.services import ScaleSection
from tests.tiny_project import done, metrics, started

TOKEN = "0123456789abcdef" * 4


def test_each_rank_is_told_which_it_is() -> None:
    told = rank_environments(["10.0.0.1", "10.0.0.1", "10.0.0.2"], 29400)
    assert [(rank["RANK"], rank["LOCAL_WORLD_SIZE"]) for rank in told] == [("0", "2"), ("1", "2"), ("2", "1")]
    for rank in told:
        assert (rank["MASTER_ADDR"], rank["MASTER_PORT"], rank["WORLD_SIZE"]) == ("10.0.0.1", "29400", "3")
        assert rank["LOCAL_RANK"] == "0", "Ray shows a rank no card but its own"


def test_nodes_that_differ_are_refused(tmp_path: Path) -> None:
    """Another project, none, another version: by name, before anything begins."""
    (tmp_path / "bridle.toml").write_text("seed = 1\n")
    own = own_look(str(tmp_path), str(tmp_path))
    require_alike([{"node": "10.0.0.2", **own}], own)
    for name, other in {"Python": "3.13.0", "torch": "2.0", f"the project in {tmp_path}": ""}.items():
        with pytest.raises(
            UsageError, match=f"{name} is {other or 'missing'} on node 10.0.0.2 and .* here; give all nodes"
        ):
            require_alike([{"node": "10.0.0.2", **own, name: other}], own)
    assert own_look(str(tmp_path / "elsewhere"), str(tmp_path))[f"the project in {tmp_path / 'elsewhere'}"] == ""


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'bridle\[ray\]'"):
        imported_ray()


def test_ray_and_torchrun_are_not_both_to_start_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(launcher.ADDRESS, raising=False)
    with pytest.raises(UsageError, match="leave torchrun out"), ranks(ScaleSection(launcher="ray"), tmp_path):
        pass


# ------------------------------------------------------------------------------------------ two nodes on this machine


class Nodes:
    """A cluster of two nodes, each with so many CPUs, that listen on 127.0.0.1."""

    def __init__(self, cpus: int) -> None:
        from ray.cluster_utils import Cluster

        kept = {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": 100 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args={**kept, "include_dashboard": False})
        self.second = self.cluster.add_node(**kept)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**own, "RAY_USAGE_STATS_ENABLED": "0"}.items():
            environment.setenv(name, value)
        found = Nodes(2)
        yield found
        found.cluster.shutdown()


def wait_for(found: Callable[[], Any], running: subprocess.Popen[str]) -> Any:
    """What is found, once there is something, while a command runs."""
    end = time.monotonic() + 300
    while not (there := found()):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return there


def processes(named: str, **environment: str) -> list[int]:
    """Those whose command says `named`, with all that in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            held = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if named in command and all(f"{name}={value}" in held for name, value in environment.items()):
            found.append(int(folder.name))
    return found


@pytest.mark.timeout(900)
def test_two_trainers_and_two_workers_lose_one_of_each(nodes: Nodes, finished_demo: Path, tmp_path: Path) -> None:
    """PPO by two ranks and two rollout workers on two nodes. A worker that is lost costs its share, a rank a new start after the last
    checkpoint: the run is that of one process left alone. More ranks than CPUs are refused."""
    both, one = (Path(shutil.copytree(finished_demo, tmp_path / name)) for name in ("both", "one"))
    words = ["train", "ppo", "--set", "ppo.steps=14", "--project"]
    on_ray = {"launcher": "ray", "address": nodes.cluster.address, "workers": 2}
    scale = [word for name, value in on_ray.items() for word in ("--set", f"scale.{name}={value}")]
    many = started(*words, one, *scale, "--set", "scale.workers=9")
    running = started(*words, both, *scale, "--set", "rollout.workers=2")
    saved = both / "runs/ppo-0002/checkpoints"
    wait_for(lambda: (saved / "step-000002").is_dir(), running)
    os.kill(wait_for(lambda: processes("ray::Holder"), running)[0], signal.SIGKILL)
    wait_for(lambda: (saved / "step-000005").is_dir(), running)
    os.kill(wait_for(lambda: processes(str(both), RANK="1"), running)[0], signal.SIGKILL)
    said, complaints = running.communicate(timeout=300)
    assert running.returncode == 0, complaints
    assert "is gone; its share is answered by the 1 of 2 workers that are left" in complaints, complaints
    assert "rank 1, on 127.0.0.1, was killed (SIGKILL); all ranks start again" in complaints, complaints
    assert "resuming after step" in complaints and "steps" in said
    _, refused = many.communicate(timeout=300)
    assert many.returncode == 2 and "9 ranks need as many CPUs, and the Ray cluster has 4; set scale.workers" in refused
    shared = json.loads((both / "runs/ppo-0002/session.json").read_text())["workers"]
    answered = {name for name in shared if name.startswith("rollout worker ")}  # eight prompts are one worker's part
    assert set(shared) == {"rank 0", "rank 1", *answered} and answered
    assert all(shared[name]["parts"]["answer"]["tokens"] > 0 for name in answered)
    done(*words, one)
    found, expected = (metrics(folder / "runs/ppo-0002") for folder in (both, one))
    assert len(found) == len(expected) == 14
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-4)
