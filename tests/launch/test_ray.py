"""Ranks and workers on a Ray cluster: what each rank is told, what is refused, and what becomes of a run that loses some of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridle.core.errors import TrainingStopped, UsageError
from bridle.launch import ray as launcher
from bridle.launch.ray import (
    RankProcess,
    begin_rank,
    cluster,
    imported_ray,
    own_look,
    passed_on,
    rank_environments,
    require_alike,
)
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


def test_each_rank_sees_the_card_that_ray_gave_it() -> None:
    """Were the cards of this process named to all, each would take the first of them. Hidden ones stay hidden."""
    own = {"PATH": "/bin", "GLOO_SOCKET_IFNAME": "eth1"}
    assert passed_on({**own, "CUDA_VISIBLE_DEVICES": "0,1"}) == {"GLOO_SOCKET_IFNAME": "eth1"}
    assert passed_on({**own, "CUDA_VISIBLE_DEVICES": ""}) == {"GLOO_SOCKET_IFNAME": "eth1", "CUDA_VISIBLE_DEVICES": ""}


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


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before Ray is asked, which would try again for minutes. A stand-in: what Ray knows of tokens it reads as it is imported."""
    unasked = SimpleNamespace(
        exceptions=SimpleNamespace(RayError=OSError), init=lambda **_: pytest.fail("Ray was asked")
    )
    monkeypatch.setattr(launcher, "imported_ray", lambda: unasked)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    there = ScaleSection(launcher="ray", address=f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match=f"scale.address = '127.0.0.1:{port}' is not a Ray cluster"), cluster(there, 0):
        pass


def test_an_address_without_ray_is_refused() -> None:
    with pytest.raises(ValueError, match="set launcher = 'ray', or leave it out"):
        ScaleSection(address="auto")


def test_a_rank_hears_ctrl_c_though_ray_blocks_it() -> None:
    says = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        command = [sys.executable, "-c", says]
        found = [subprocess.check_output(command, preexec_fn=begin) for begin in (None, begin_rank)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert found == [b"True\n", b"False\n"]


def test_what_is_shown_ends_with_a_line_until_the_rank_has_ended() -> None:
    rank = RankProcess()
    rank.process = subprocess.Popen(["sleep", "60"])
    rank.written[0] += "一行\n半".encode()[:-1]
    assert rank.poll() == ("一行\n".encode(), b"", None)
    rank.process.kill()
    rank.process.wait()
    assert rank.poll() == ("半".encode()[:-1], b"", -signal.SIGKILL)


@pytest.mark.parametrize(("saves", "attempts"), [((0, 0, 0, 0), 3), ((0, 0, 1, 1, 1), 4)])
def test_restarts_count_anew_from_a_further_checkpoint(
    saves: tuple[int, ...], attempts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`saves`: the newest checkpoint before the first attempt, and after each. Two restarts, of a run that loses a rank each time."""
    begun, saved = list[int](), iter(saves)
    monkeypatch.setattr(
        launcher, "cluster", lambda *_: nullcontext(SimpleNamespace(exceptions=SimpleNamespace(RayError=OSError)))
    )
    monkeypatch.setattr(launcher, "reserve_places", lambda *_: nullcontext([]))
    monkeypatch.setattr(launcher, "last_saved", lambda _: next(saved))
    monkeypatch.setattr(launcher, "run_ranks", lambda *_: (begun.append(1), (1, "rank 1 was killed"))[1])
    with pytest.raises(TrainingStopped, match="started again 2 times since the last checkpoint"):
        launcher.start_on_ray(ScaleSection(launcher="ray", restarts=2), tmp_path)
    assert len(begun) == attempts


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
