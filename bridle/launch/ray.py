"""Ranks on a Ray cluster (Moritz 2018, arxiv.org/abs/1712.05889): Ray finds each a place, and runs there what was given here.

What Ray starts is one process a rank, with the environment that torchrun would give it; no handle of Ray's goes further than this
file. This process watches over them: it shows what the first one writes, and where a rank or its node is lost it ends the others and
starts all again, which resume after the last checkpoint as the same command always does. Ray's own restarts are off, for they end when
who owns them dies.
Left out on purpose: nodes that come and go while the number of ranks changes.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from bridle.compute.workers import Worker
from bridle.core.errors import TrainingStopped, UsageError, WorkerLost
from bridle.core.processes import python_environment, python_module
from bridle.launch.processes import methods_of
from bridle.project.progress import Progress
from bridle.recipe.services import ScaleSection

ADDRESS = "BRIDLE_RAY_ADDRESS"  # in a rank's environment: of the cluster that it runs on
PASSED_ON = (
    "BRIDLE_",
    "GLOO_",
    "HF_",
    "NCCL_",
    "OMP_",
    "PG",
    "RAY_AUTH_",
    "TORCH_",
)  # to every rank
LOOK_EVERY = 0.2  # seconds
FOR_A_PLACE = 60.0  # seconds that ranks wait for CPUs and cards which others use
FOR_AN_ANSWER = 10.0  # seconds that a cluster has to let this process connect
LAST_WORDS = 30.0  # seconds in which the other ranks end by themselves when one has ended
SETTINGS = {"include_dashboard": False, "namespace": "bridle", "log_to_driver": False, "configure_logging": False}


def start_on_ray(scale: ScaleSection, folder: Path, workers: int = 0) -> NoReturn:
    """Run this very command on the cluster, `scale.workers` times, and end with it; `workers` more will be wanted by the first of them."""
    with cluster(scale, workers) as ray:
        try:
            left, reached = scale.restarts, last_saved(folder)
            while True:
                with reserve_places(ray, scale.workers) as actors:
                    code, lost = run_ranks(ray, actors, folder)
                if not lost:
                    sys.exit(code)
                if (further := last_saved(folder)) > reached:
                    left, reached = scale.restarts, further
                if not left:
                    break
                Progress().say(
                    f"{lost}; all ranks start again after the last checkpoint, as they may {left} times more before the next one"
                )
                left -= 1
        except ray.exceptions.RayError as error:
            raise TrainingStopped(
                f"the Ray cluster failed ({str(error).splitlines()[0]}); what was saved is kept, and the same command resumes"
            ) from error
    raise TrainingStopped(
        f"{lost}, and ranks were started again {scale.restarts} times since the last checkpoint (scale.restarts); look at what ends them, "
        "as a node short of memory; the same command resumes after the last checkpoint"
    )


def last_saved(folder: Path) -> float:
    """When the newest checkpoint of the project's runs was made; 0 where there is none."""
    found = folder.glob("runs/*/checkpoints/step-*")
    return max((place.stat().st_mtime for place in found if place.exists()), default=0.0)


# ------------------------------------------------------------------------------------------------------- the cluster


def imported_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UsageError(
            "scale.launcher = 'ray' needs Ray, which is not installed; pip install 'bridle[ray]'"
        ) from None
    return ray


@contextmanager
def cluster(scale: ScaleSection, workers: int) -> Iterator[Any]:
    """Ray, joined to the cluster that `scale.address` names, or to one of this machine alone, which ends with this process: it listens on
    127.0.0.1, and its ports want a token that only its own processes know."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
    if not scale.address:
        os.environ.update(
            {
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
            }
        )
    ray, on_term = imported_ray(), signal.getsignal(signal.SIGTERM)
    try:
        if scale.address:
            require_listening(scale.address)
            ray.init(address=scale.address, logging_level="ERROR", **SETTINGS)
        else:
            places = max(os.cpu_count() or 1, scale.workers + workers)
            ray.init(address="local", num_cpus=places, logging_level="ERROR", **SETTINGS)
    except (OSError, OverflowError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(
            f"scale.address = {scale.address!r} is not a Ray cluster that lets this process in ({str(error).splitlines()[0]}); start one "
            "with `ray start --head` and name its address and token, or leave it empty for one of this machine alone"
        ) from error
    signal.signal(signal.SIGTERM, on_term)  # Ray has put one of its own there, which asks no rank to save
    try:
        yield ray
    finally:
        ray.shutdown()


def require_listening(address: str) -> None:
    """OSError where nothing listens at host:port: Ray would try again for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=FOR_AN_ANSWER).close()


@contextmanager
def reserve_places(ray: Any, count: int) -> Iterator[list[Any]]:
    """An actor for each rank, with a CPU, and a card where the cluster has any, of its own. UsageError where there are not so many."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    there = ray.cluster_resources()
    cards = bool(there.get("GPU")) and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    for name, what in [("CPU", "CPUs"), *([("GPU", "cards")] if cards else [])]:
        if there.get(name, 0) < count:
            raise UsageError(
                f"{count} ranks need as many {what}, and the Ray cluster has {there.get(name, 0):g}; set scale.workers lower, add nodes"
                + (", or hide the cards with CUDA_VISIBLE_DEVICES= to train on processors" if name == "GPU" else "")
            )
    group = placement_group([{"CPU": 1, "GPU": 1} if cards else {"CPU": 1}] * count, strategy="PACK")
    try:
        if not group.wait(FOR_A_PLACE):
            raise UsageError(
                f"the Ray cluster has CPUs and cards for {count} ranks, but others use them, and none came free within {FOR_A_PLACE:g} s; "
                "run the same command again later, or set scale.workers lower"
            )
        kind = ray.remote(RankProcess)
        yield [
            kind.options(
                num_cpus=1, num_gpus=int(cards), max_concurrency=2, max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            ).remote()
            for number in range(count)
        ]  # fmt: skip
    finally:
        remove_placement_group(group)  # and with it what runs there


# ------------------------------------------------------------------------------------------------------ one attempt


def run_ranks(ray: Any, actors: Sequence[Any], folder: Path) -> tuple[int, str]:
    """Start a rank with each actor and wait for all. The exit status, and what was lost, if anything that is not this command's own was."""
    try:
        looks = ray.get([actor.look.remote(str(folder), os.getcwd()) for actor in actors])
        require_alike(looks, own_look(str(folder), os.getcwd()))
        here = ray.util.get_node_ip_address()
        order = sorted(
            range(len(actors)), key=lambda i: (looks[i]["node"] != here, looks[i]["node"])
        )  # those of a node in a row
        actors, nodes = [actors[i] for i in order], [looks[i]["node"] for i in order]
        port = ray.get(actors[0].free_port.remote())
        for actor, environment in zip(actors, rank_environments(nodes, port), strict=True):
            environment |= {**passed_on(os.environ), ADDRESS: ray.get_runtime_context().gcs_address}
            ray.get(actor.start.remote([*sys.argv[1:]], environment, os.getcwd()))
    except ray.exceptions.RayActorError as error:
        if "creation task" in str(error):  # it would fail again
            raise UsageError(
                f"a node cannot run bridle ({str(error).splitlines()[-1].strip()}); give all nodes one folder and one installation"
            ) from error
        return 1, f"a place for a rank was lost before it began ({str(error).splitlines()[0]})"
    return watch_ranks(ray, actors, nodes)


def watch_ranks(ray: Any, actors: Sequence[Any], nodes: Sequence[str]) -> tuple[int, str]:
    """Show what they write until all have ended. When one has, the others may say what they have to; then they are killed."""
    codes: list[int | None] = [None] * len(actors)
    lost, ends = "", float("inf")
    while None in codes:
        with interrupting(actors):
            time.sleep(LOOK_EVERY)
            for rank, actor in enumerate(actors):
                if codes[rank] is not None:
                    continue
                try:
                    written, complaints, codes[rank] = ray.get(actor.poll.remote())
                except ray.exceptions.RayActorError:
                    codes[rank] = 1
                    lost = lost or f"rank {rank} and its node, {nodes[rank]}, are gone"
                    continue
                write_on(written, sys.stdout if rank == 0 else None)
                write_on(complaints, sys.stderr)
                if (code := codes[rank]) is not None and code < 0 and ends > time.monotonic():
                    lost = lost or f"rank {rank}, on {nodes[rank]}, was killed ({signal.Signals(-code).name})"
        if any(codes) or lost:
            ends = min(ends, time.monotonic() + LAST_WORDS)
        if time.monotonic() > ends:
            for rank, actor in enumerate(actors):
                if codes[rank] is None:
                    ray.kill(actor)
                    codes[rank] = -signal.SIGKILL
    failed = [code for code in codes if code]
    return (0 if not failed else max(failed) if max(failed) > 0 else 128 - min(failed)), lost


@contextmanager
def interrupting(actors: Sequence[Any]) -> Iterator[None]:
    """Ctrl-C here is Ctrl-C to every rank, which saves and ends."""
    try:
        yield
    except KeyboardInterrupt:
        for actor in actors:
            actor.interrupt.remote()


def write_on(written: bytes, stream: IO[str] | None) -> None:
    if written and stream is not None:
        stream.write(written.decode("utf-8", "replace"))
        stream.flush()


def rank_environments(nodes: Sequence[str], port: int) -> list[dict[str, str]]:
    """What tells each rank which one it is, as torchrun would; `nodes`: the address of each rank's. Ray shows a rank no card but its own,
    so LOCAL_RANK, by which a rank takes its card, is 0 for all."""
    shared = {"WORLD_SIZE": str(len(nodes)), "LOCAL_RANK": "0", "MASTER_ADDR": nodes[0], "MASTER_PORT": str(port)}
    return [
        {**shared, "RANK": str(rank), "LOCAL_WORLD_SIZE": str(nodes.count(node))} for rank, node in enumerate(nodes)
    ]


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What of this process's environment every rank gets. Which card a rank sees Ray says; but cards that are hidden here stay hidden."""
    passed = {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}
    hidden = environment.get("CUDA_VISIBLE_DEVICES") == ""
    return {**passed, "CUDA_VISIBLE_DEVICES": ""} if hidden else passed


def require_alike(looks: Sequence[Mapping[str, str]], own: Mapping[str, str]) -> None:
    """UsageError where a node has another project, or other versions, than this process."""
    for look in looks:
        for name, value in own.items():
            if look[name] != value:
                raise UsageError(
                    f"{name} is {look[name] or 'missing'} on node {look['node']} and {value or 'missing'} here; give all nodes "
                    "one folder and one installation"
                )


def own_look(folder: str, place: str) -> dict[str, str]:
    """What has to be alike on all nodes."""
    settings = Path(folder) / "bridle.toml"
    return {
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("bridle", "torch")},
        "the working folder": place if Path(place).is_dir() else "",
        f"the project in {folder}": hashlib.sha256(settings.read_bytes()).hexdigest()[:12]
        if settings.is_file()
        else "",
    }


# --------------------------------------------------------------------------------------------------------- on a node


class RankProcess:
    """An actor that holds one rank's process, which ends with it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.begun, self.readers = threading.Event(), list[threading.Thread]()
        self.written = [bytearray(), bytearray()]  # to standard output and standard error, since the last look

    def look(self, folder: str, place: str) -> dict[str, str]:
        return {"node": imported_ray().util.get_node_ip_address(), **own_look(folder, place)}

    def free_port(self) -> int:
        with socket.socket() as found:
            found.bind((imported_ray().util.get_node_ip_address(), 0))
            return int(found.getsockname()[1])

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], place: str) -> None:
        threading.Thread(target=self.run, args=[arguments, environment, place], daemon=True).start()
        self.begun.wait()

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], place: str) -> None:
        """In a thread that lives as long as the process: when the thread that began it ends, a process ends too (prctl(2))."""
        own = {**python_environment(), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [*python_module("bridle.cli"), *arguments], env=own, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, preexec_fn=begin_rank,
        )  # fmt: skip
        for stream, kept in zip((self.process.stdout, self.process.stderr), self.written, strict=True):
            self.readers.append(threading.Thread(target=drain, args=[stream, kept], daemon=True))
            self.readers[-1].start()
        self.begun.set()
        self.process.wait()

    def poll(self) -> tuple[bytes, bytes, int | None]:
        """What it wrote since the last look, and its exit status once it has one and all is read."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            for reader in self.readers:
                reader.join(LOOK_EVERY)  # a process that it left behind may hold its streams open
        found = []
        for kept in self.written:
            whole = (
                len(kept) if code is not None else kept.rfind(b"\n") + 1
            )  # lines, in which no character is cut in two
            found.append(bytes(kept[:whole]))
            del kept[: len(found[-1])]
        return found[0], found[1], code

    def interrupt(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def begin_rank() -> None:
    """In a rank before its program: it hears Ctrl-C, which Ray blocks in all that it starts, and ends with its parent."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def drain(stream: IO[bytes], kept: bytearray) -> None:
    while some := os.read(stream.fileno(), 65_536):
        kept.extend(some)


# ------------------------------------------------------------------------------------------- workers of the first rank


class Holder:
    """An actor that holds an object."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.methods = methods_of(make())

    def place(self) -> str:
        return f"process {os.getpid()} on node {imported_ray().util.get_node_ip_address()}"

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        return self.methods[method](*arguments)


class RayWorker:
    """`Worker` by an actor."""

    def __init__(self, ray: Any, actor: Any, place: str) -> None:
        self.ray, self.actor, self.place = ray, actor, place

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        answer: Future[Any] = Future()

        def pass_on(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, self.ray.exceptions.RayActorError):
                answer.set_exception(WorkerLost(f"{self.place} is gone"))
            elif error is not None:
                answer.set_exception(error.cause if isinstance(error, self.ray.exceptions.RayTaskError) else error)
            else:
                answer.set_result(done.result())

        self.actor.call.remote(method, arguments).future().add_done_callback(pass_on)
        return answer

    def end(self) -> None:
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(self.actor)


def ray_workers(make: Callable[[], Any], count: int) -> list[Worker]:
    """So many workers on the cluster that this rank runs on, wherever a CPU is free, and a card where this process has one."""
    import torch

    ray = imported_ray()
    if not ray.is_initialized():
        ray.init(address=os.environ[ADDRESS], logging_level="ERROR", **SETTINGS)
    needed = {"CPU": 1, **({"GPU": 1} if torch.cuda.is_available() else {})}
    late = time.monotonic() + FOR_A_PLACE  # what an earlier rank had comes free when Ray has noticed that it is gone
    while short := [name for name in needed if ray.available_resources().get(name, 0) < count]:
        if time.monotonic() > late:
            raise UsageError(
                f"{count} workers need as many {short[0]}s, and fewer are free on the Ray cluster; set rollout.workers "
                "or scale.reward_workers lower, or add nodes"
            )
        time.sleep(LOOK_EVERY)
    kind = ray.remote(Holder).options(num_cpus=1, num_gpus=needed.get("GPU", 0), max_restarts=0)
    actors = [kind.remote(make) for _ in range(count)]
    try:
        return [RayWorker(ray, actor, ray.get(actor.place.remote())) for actor in actors]
    except ray.exceptions.RayActorError as error:
        raise WorkerLost(
            f"a worker on the Ray cluster ended as it began ({str(error).splitlines()[0]}); set rollout.workers or "
            "scale.reward_workers lower"
        ) from error
