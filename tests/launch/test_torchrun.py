"""Ranks that share a training: what is refused before they meet, and what happens to them afterwards."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bridle.compute import parallel
from bridle.compute.optimizer import AdamW, Muon, require_divisible
from bridle.core.errors import ProjectError, RecipeError, UsageError
from bridle.launch.torchrun import LOOPBACK, join_group, lost_words, ranks
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.services import ScaleSection
from bridle.stages import audit
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work
from tests.tiny_project import PLAYGROUND, bridle, complaint, done, metrics, settings
from tests.traces import complete, nested

ROOT = Path(__file__).parents[2]
CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:2300"
LATE = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:119] Timed out waiting 4000ms for recv operation"
)


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As the first of two processes that torchrun started on this machine."""
    given = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "x",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_begins_nothing() -> None:
    for scale in (None, ScaleSection(), ScaleSection(shard=True)):
        with ranks(scale, ROOT):
            assert parallel.world_size() == 1


def test_torchrun_is_for_training_alone(of_two: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done("init", tmp_path / "p")
    said = complaint(bridle("evaluate", "sft", "--project", tmp_path / "p"))
    assert "ranks share `bridle train` alone, and torchrun started 2 processes" in said


def test_as_many_as_the_recipe_says(of_two: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UsageError, match="scale.workers = 3, and torchrun started 2"),
        ranks(ScaleSection(workers=3), ROOT),
    ):
        pass


def test_only_train_starts_ranks(tmp_path: Path) -> None:
    done("init", tmp_path / "p", "--set", "scale.workers=2", "--set", 'data.source="playground"')
    work = Work(Project.find(tmp_path / "p"), Progress(len))
    with pytest.raises(UsageError, match="scale.workers = 2, and only `bridle train` starts ranks"):
        METHODS["sft"].train(work)


def test_a_port_that_is_taken(of_two: pytest.MonkeyPatch) -> None:
    of_two.setenv("WORLD_SIZE", "1")
    of_two.setenv("LOCAL_WORLD_SIZE", "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        of_two.setenv("MASTER_PORT", str(port))
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} is taken by another program; name another port"):
            join_group(ScaleSection(patience=5), 1)


def test_between_machines_the_network_is_named(of_two: pytest.MonkeyPatch) -> None:
    """Within one they listen on loopback alone, where nobody said otherwise."""
    of_two.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(UsageError, match="name the network between them"):
        join_group(ScaleSection(), 2)
    met = dict[str, str]()
    of_two.setenv("LOCAL_WORLD_SIZE", "2")
    of_two.setattr(torch.distributed, "init_process_group", lambda *_, **__: met.update(parallel_environment()))
    join_group(ScaleSection(), 2)
    assert met == {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
    of_two.setenv("GLOO_SOCKET_IFNAME", "eth7")
    join_group(ScaleSection(), 2)
    assert met["GLOO_SOCKET_IFNAME"] == "eth7"


def parallel_environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name.endswith("_SOCKET_IFNAME")}


def test_what_differs_between_ranks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"the version of bridle": "1", "the hash of this run's data": "aa"}
    monkeypatch.setattr(parallel, "gathered", lambda mine: [mine, mine, {**mine, "the hash of this run's data": "bb"}])
    with pytest.raises(ProjectError, match="the hash of this run's data is bb on rank 2 and aa on rank 0"):
        parallel.require_same(same)
    monkeypatch.setattr(parallel, "gathered", lambda mine: [mine, mine])
    parallel.require_same(same)


def test_who_speaks_when_ranks_lose_each_other() -> None:
    assert lost_words(RuntimeError("an index is out of range"), 0, 2, 4) is None
    assert "another rank of 2 has ended" in (lost_words(RuntimeError(CLOSED), 0, 2, 4) or "")
    assert lost_words(RuntimeError(CLOSED), 1, 2, 4) == "", "the first says it"
    assert "rank 1 of 2 waited 4 s" in (lost_words(RuntimeError(LATE), 1, 2, 4) or ""), "it may be the first that hangs"


def test_small_gradients_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, each once; one that is too large by itself, and types apart."""
    monkeypatch.setattr(parallel, "BUCKET", 100)
    sizes = [10, 10, 40, 5, 5, 20]
    gradients = [torch.full((size,), number, dtype=torch.float32) for number, size in enumerate(sizes)]
    gradients.append(torch.zeros(2, dtype=torch.float64))
    found = [[len(gradient) for gradient in bucket] for bucket in parallel.in_buckets(gradients)]
    assert found == [[10, 10], [40], [5, 5], [20], [2]]
    assert [g.data_ptr() for bucket in parallel.in_buckets(gradients) for g in bucket] == [
        g.data_ptr() for g in gradients
    ]


def test_muon_needs_whole_matrices() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    require_divisible([AdamW([weight], 0.1)], offloaded=False)
    with pytest.raises(RecipeError, match="muon orthogonalises whole ones"):
        require_divisible([AdamW([weight], 0.1), Muon([weight], 0.1)], offloaded=False)
    with pytest.raises(RecipeError, match="offload_optimizer"):
        require_divisible([AdamW([weight], 0.1)], offloaded=True)


# ------------------------------------------------------------------------------------------------- two real ranks

SMALL = {
    "data.pretrain_tokens": 10_000,
    "pretrain.batch_size": 8,
    "sft.epochs": 1,
    "sft.batch_size": 4,
    "sft.optimizer": "adamw",
}


@pytest.fixture(scope="module")
def with_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "project"
    done("init", folder, *settings({**PLAYGROUND, **SMALL}))
    done("train", "pretrain", "--project", folder)
    return folder


def two_ranks(folder: Path, scenario: str, *words: str) -> tuple[str, str, str]:
    """Exit statuses, and what each of two ranks said."""
    command = [sys.executable, "-m", "tests.launch.forked", str(folder), scenario, *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = [(folder / f"said-{rank}").read_text() for rank in (0, 1)]
    return ended.stdout.strip(), said[0], said[1]


def untimed_lines(project: Path) -> list[dict[str, object]]:
    return metrics(project / "runs/sft-0001")


@pytest.mark.slow
@pytest.mark.parametrize("ways", ["divided, then one process", "data-parallel, then divided"])
def test_a_run_is_resumed_on_other_ranks(with_base: Path, tmp_path: Path, ways: str) -> None:
    """It logs what a run by one process does. Only the first rank writes and speaks."""
    both, one = (Path(shutil.copytree(with_base, tmp_path / name)) for name in ("both", "one"))
    words, shard = ["train", "sft", "--project", str(both)], ["--set", "scale.shard=true"]
    begun = [*words, *shard] if ways.startswith("divided") else words
    status, _, other = two_ranks(tmp_path, "killed", *begun)
    assert status == "9 1" and not other
    run = both / "runs/sft-0001"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    if ways.endswith("one process"):
        resumed = bridle(*words).stderr
    else:
        status, resumed, other = two_ranks(tmp_path, "healthy", *words, *shard)
        assert status == "0 0" and not other and not (run / "lock").exists() and "answer_tokens" in resumed
    assert "resuming after step 4" in resumed
    done("train", "sft", "--project", one)
    assert len(untimed_lines(both)) == len(untimed_lines(one)) > 3
    for line, expected in zip(untimed_lines(both), untimed_lines(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
    assert [path.name for path in (both / "runs").glob("sft-*")] == ["sft-0001"]
    assert (both / "models/sft/model.safetensors").is_file()


@pytest.mark.slow
def test_ranks_with_other_data_or_without_the_model(with_base: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        shutil.copytree(with_base, tmp_path / f"project-{rank}")
    recipe = tmp_path / "project-1/bridle.toml"
    recipe.write_text(re.sub(r"(?m)^demonstrations = .*$", "demonstrations = 48", recipe.read_text()))
    words = ["train", "sft", "--project", str(tmp_path / "project-RANK")]
    _, first, _ = two_ranks(tmp_path, "healthy", *words)
    assert re.search(r"bridle: the hash of this run's data is \w+ on rank 1 and \w+ on rank 0", first), first
    assert not list((tmp_path / "project-0/runs").glob("sft-*")), "nothing was begun"
    shutil.rmtree(tmp_path / "project-1/models")
    _, first, other = two_ranks(tmp_path, "healthy", *words)
    assert re.search(r"bridle: rank 1, on \S+: there is no model at", other), other
    assert "another rank of 2 has ended" in first and not list((tmp_path / "project-0/runs").glob("sft-*"))


@pytest.mark.slow
def test_a_rank_that_hangs_is_shown(with_base: Path, tmp_path: Path) -> None:
    project = shutil.copytree(with_base, tmp_path / "project")
    _, first, other = two_ranks(
        tmp_path, "hanging", "train", "sft", "--project", str(project), "--set", "scale.patience=4"
    )
    assert "bridle: rank 0 of 2 waited 4 s (scale.patience) for another, which hangs or is gone" in first, first
    assert "fall_asleep" in other, "its stack tells where it stood"
    assert not (project / "runs/sft-0001/result.json").exists()


@pytest.mark.slow
def test_the_time_of_each_rank_is_seen(with_base: Path, tmp_path: Path) -> None:
    """In the run, in the trace and in the report; the second one leaves nothing by itself, and two sessions add up."""
    project = Path(shutil.copytree(with_base, tmp_path / "project"))
    words = ["train", "sft", "--project", str(project)]
    assert two_ranks(tmp_path, "killed", *words)[0] == "9 1"
    run = project / "runs/sft-0001"
    before = json.loads((run / "session.json").read_text())["workers"]
    status, first, other = two_ranks(tmp_path, "healthy", *words, "--profile")
    assert status == "0 0" and not other and "share of time, bridle train" in first
    session, trace = (json.loads((run / f"{name}.json").read_text()) for name in ("session", "profile"))
    assert list(session["workers"]) == ["rank 0", "rank 1"] and not (project / "profile.json").exists()
    for name, worker in session["workers"].items():
        parts = worker["parts"]
        assert parts["optimizer/sync"]["calls"] == parts["optimizer/wait"]["calls"] == parts["optimizer"]["calls"]
        assert parts["wait"]["calls"] > before[name]["parts"]["wait"]["calls"] > 0
        assert parts["forward"]["tokens"] > before[name]["parts"]["forward"]["tokens"] > 0
        assert worker["seconds"] > before[name]["seconds"]
    result = json.loads((run / "result.json").read_text())
    learnt = sum(worker["parts"]["forward"]["tokens"] for worker in session["workers"].values())
    assert result["answer_tokens"] == learnt, "what the kill undid was never noted"
    found = complete(trace)
    assert nested(found) and len({event["pid"] for event in found if event["name"] == "forward"}) == 2
    processes = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert processes == ["bridle train", "rank 1"]
    done("report", "sft-0001", "--project", project)
    assert "by who shared it" in (page := (run / "report.html").read_text()) and "rank 1" in page


@pytest.mark.slow
def test_the_first_rank_audits_while_weights_are_divided(
    finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads other weights into its engine than the others do, and all begin the next step alike; what it rolls back to all have."""
    monkeypatch.setattr(audit, "FEWEST_PAIRS", 10)
    monkeypatch.setattr(audit, "PROMPTS", 8)
    both, one = (Path(shutil.copytree(finished_demo, tmp_path / name)) for name in ("both", "one"))
    often = {
        "guard.audit_every": 0.001,
        "guard.audit_size": 2,
        "guard.audit_share": 1.0,
        "ppo.kl_coef": 0.0,
        "ppo.kl_target": 0.0,
    }
    words = [word for name, value in often.items() for word in ("--set", f"{name}={value}")]
    command = ["train", "ppo", *words, "--project"]
    status, first, other = two_ranks(tmp_path, "audited", *command, str(both), "--set", "scale.shard=true")
    assert status == "0 0" and not other, first + other
    done(*command, one)
    found, expected = (metrics(folder / "runs/ppo-0002") for folder in (both, one))
    assert len(found) == len(expected) == 5
    for line, other_line in zip(found, expected, strict=True):
        assert line == pytest.approx(other_line, rel=1e-3, abs=1e-4)
    rolled = [
        json.loads((folder / "runs/ppo-0002/result.json").read_text()).get("rolled_back_to") for folder in (both, one)
    ]
    assert rolled[0] == rolled[1]
