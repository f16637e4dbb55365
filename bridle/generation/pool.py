"""Answers by workers, processes of their own with the engine in each: on the same machine or elsewhere, at once or while the policy learns.

Weights are sent once a stamp and are those of one moment, whatever learns meanwhile: their bytes go into a file in the memory of this
machine, which its workers map and which goes with this process, and by the call itself to a worker that cannot read it. After the first
time only what learns is sent. What arrived is hashed there and compared. Rollouts are made one after another, oldest first; all workers
change their weights between two of them and never within, so all tokens of an answer have one stamp. Prompts are handed out in parts that
grow smaller, so that no worker waits long for the others; that of a lost worker goes to another. In float32 an answer does not depend on
who gives it.
Left out on purpose: new workers in place of lost ones; changing weights within an answer.
"""

from __future__ import annotations

import copy
import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from bridle.compute.device import Device, choose_as
from bridle.compute.parallel import from_first, process_rank
from bridle.compute.sharding import in_plain_form
from bridle.compute.workers import Start, Worker
from bridle.core.errors import StaleWeights, TrainingStopped, WorkerLost
from bridle.core.records import Completion, Prompt
from bridle.core.timeline import Parts, hand_in, note_tokens, stage, timed
from bridle.generation.engine import Answer, Engine, as_completions
from bridle.generation.sampling import Sampling
from bridle.models.foreign import LanguageModel
from bridle.models.policy import Policy

SHARED_MEMORY = Path("/dev/shm")
FEWEST = 16  # prompts of a part, or all that are left


@dataclass(frozen=True)
class SentWeights:
    """Weights on their way, as they were when they were written: name, type and shape of each tensor whose bytes, `size` together, lie in
    the file one behind another. `module`: the network without its weights, and what ends an answer, where a worker has none yet."""

    stamp: str
    tensors: list[tuple[str, torch.dtype, tuple[int, ...]]]
    path: Path
    size: int
    hash: str
    module: tuple[LanguageModel, frozenset[int]] | None


class PoolEngine:
    """What a trainer asks in place of its own engine: `load` after every change of the policy, `begin` an answer to each prompt."""

    def __init__(self, start: Start, make: Callable[[], Any], workers: int, say: Callable[[str], object]) -> None:
        """On the first rank; the others have no workers, and get its answers. `make` makes what a worker holds: an `Answerer`."""
        self.workers = start(make, workers) if process_rank() == 0 else []
        self.say, self.lost_lines = say, list[str]()
        self.names = {worker: f"rollout worker {number}" for number, worker in enumerate(self.workers, 1)}
        self.spent = list[tuple[str, Parts]]()  # what workers did of a rollout, by their own marks
        self.started, self.stamp = len(self.workers), ""
        self.written: tuple[SentWeights, IO[bytes]] | None = None  # the last
        self.files = ExitStack()  # those written, of which all but what is on its way are closed
        self.held = ""  # the stamp of the weights that all workers have
        self.rollouts = ThreadPoolExecutor(1)

    def load(self, policy: Policy) -> None:
        """Write the policy's present weights, unless they were."""
        if self.stamp == policy.stamp:
            return
        with in_plain_form(policy.module):  # every rank takes part
            if self.started:
                self.written = write_for_workers(policy, whole=self.written is None)
                self.files.enter_context(self.written[1])
        self.stamp = policy.stamp

    def begin(
        self, prompts: Sequence[Sequence[int]], settings: Sampling, *, stamp: str, seed: int,
        samples: Sequence[int] | None = None,
    ) -> Callable[[], list[Answer]]:  # fmt: skip
        """Have prompts (token ids) answered by the weights that were loaded last, after what was begun before; what is given back waits
        for the answers. TrainingStopped there where no worker is left, or one holds other weights than were sent."""
        if self.stamp != stamp:
            raise StaleWeights(
                f"the workers were handed weights {self.stamp or 'none'} where {stamp} was expected; load the policy again"
            )
        numbers = range(len(prompts)) if samples is None else samples
        asked = Prompts(prompts, numbers, settings, stamp, seed)
        found = self.rollouts.submit(self.roll_out_by, self.written, asked) if self.written else None

        def answers() -> list[Answer]:
            assert found is not None, "the first rank asks the workers"
            try:
                return found.result()
            finally:
                while self.lost_lines:
                    self.say(self.lost_lines.pop(0))
                while self.spent:
                    hand_in(*self.spent.pop(0))

        return answers

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: Sampling, *, stamp: str, seed: int,
        samples: Sequence[int] | None = None, progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """As `Engine.generate`."""
        answers = self.begin(prompts, settings, stamp=stamp, seed=seed, samples=samples)()
        if progress is not None:
            progress(len(answers))
        return answers

    def close(self) -> None:
        """End the workers, in the middle of what they do."""
        for worker in [*self.workers]:
            worker.end()
        self.rollouts.shutdown(wait=True, cancel_futures=True)
        self.files.close()

    # -------------------------------------------------------------------------------- in a thread that the workers have

    def roll_out_by(self, written: tuple[SentWeights, IO[bytes]], asked: Prompts) -> list[Answer]:
        if self.held != asked.stamp:
            self.distribute(*written)
        answers = dict[int, Answer]()
        again, first = list[range](), 0
        free, busy = [*self.workers], dict[Future[Any], tuple[Worker, range]]()
        while len(answers) < len(asked.ids):
            while free and (again or first < len(asked.ids)):
                if again:
                    rows = again.pop()
                else:
                    rows = range(first, first + part_size(len(asked.ids) - first, len(self.workers)))
                    first = rows.stop
                worker = free.pop(0)
                busy[worker.submit("answer", asked.part(rows))] = worker, rows
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                worker, rows = busy.pop(future)
                try:
                    found, parts = future.result()
                    answers |= dict(zip(rows, found, strict=True))
                    self.spent.append((self.names[worker], parts))
                    free.append(worker)
                except WorkerLost as lost:
                    again.append(rows)
                    self.lose(worker, lost)
            self.require_workers()
        return [answers[i] for i in range(len(asked.ids))]

    def distribute(self, weights: SentWeights, file: IO[bytes]) -> None:
        """Have every worker take these weights, and compare what it got."""
        taken = [(worker, worker.submit("take", weights)) for worker in self.workers]
        for worker, future in taken:
            try:
                if (received := future.result()) != weights.hash:  # it has no such file, or another
                    file.seek(0)
                    received = worker.submit("take", weights, file.read()).result()
            except WorkerLost as lost:
                self.lose(worker, lost)
                continue
            if received != weights.hash:
                raise TrainingStopped(
                    f"the weights that {worker.place} received are not those that were sent (hash {received[:12]} where "
                    f"{weights.hash[:12]} was expected), so its answers would be another policy's; look at its memory and network, "
                    "and run the same command to resume"
                )
        self.require_workers()
        self.held = weights.stamp
        file.close()

    def lose(self, worker: Worker, lost: WorkerLost) -> None:
        """Do without a worker from now on."""
        self.workers = [other for other in self.workers if other is not worker]
        worker.end()
        self.lost_lines.append(
            f"{lost}; its share is answered by the {len(self.workers)} of {self.started} workers that are left"
        )

    def require_workers(self) -> None:
        if not self.workers:
            raise TrainingStopped(
                f"none of {self.started} rollout workers is left, all having ended in the middle of their work, as where memory is short; "
                "the steps before are saved, and the same command resumes with new ones"
            )


@dataclass(frozen=True)
class Prompts:
    """What is to be answered: token ids, the number of each draw, and how to draw."""

    ids: Sequence[Sequence[int]]
    samples: Sequence[int]
    settings: Sampling
    stamp: str
    seed: int

    def part(self, rows: range) -> Prompts:
        return Prompts(
            [self.ids[i] for i in rows], [self.samples[i] for i in rows], self.settings, self.stamp, self.seed
        )


def part_size(left: int, workers: int) -> int:
    """How many of the prompts that are left the next worker gets: half of an even share, so that the last parts are small (guided
    self-scheduling, Polychronopoulos 1987); all, where there is one worker."""
    return left if workers == 1 else min(left, max(FEWEST, -(-left // (2 * workers))))


# --------------------------------------------------------------------------------------------------- weights as bytes


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All that a module computes with; a weight that two of its parts share is there once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def as_bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def write_for_workers(policy: Policy, whole: bool) -> tuple[SentWeights, IO[bytes]]:
    """Write a policy's weights for workers: all of them, or those that learn."""
    found = tensors_of(policy.module)
    sent = {name: tensor for name, tensor in found.items() if whole or tensor.requires_grad}
    size, digest = sum(tensor.nbytes for tensor in sent.values()), hashlib.sha256()
    fits = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > size
    file = tempfile.TemporaryFile(dir=SHARED_MEMORY if fits else None)
    for tensor in sent.values():
        part = as_bytes(tensor)
        file.write(part)
        digest.update(part)
    file.flush()
    path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")  # it has no name by which it could be left behind
    listed = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent.items()]
    module = (without_weights(policy.module), policy.template.stop_ids) if whole else None
    return SentWeights(policy.stamp, listed, path, size, digest.hexdigest(), module), file


def without_weights(module: LanguageModel) -> LanguageModel:
    """A copy of a network in which every weight is empty; those that are shared stay shared."""
    empty: dict[int, Any] = {}
    for tensor in tensors_of(module).values():
        hollow = tensor.detach().new_empty(0, device="cpu")
        empty[id(tensor)] = (
            nn.Parameter(hollow, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else hollow
        )
    return copy.deepcopy(module, empty)


def fill_tensors(module: nn.Module, weights: SentWeights, data: bytearray | mmap.mmap, device: torch.device) -> None:
    """Give a module's tensors the values that lie in `data`."""
    own, start = tensors_of(module), 0
    for name, dtype, shape in weights.tensors:
        size = torch.Size(shape).numel() * dtype.itemsize
        flat = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=start).clone() if size else torch.empty(0)
        own[name].data, start = flat.view(dtype).view(shape).to(device), start + size


# ----------------------------------------------------------------------------------------------------- in a worker


@dataclass
class Answerer:
    """What a worker holds: the engine, as the trainer's own would be, and a copy of the weights."""

    arithmetic: Mapping[str, str]
    threads: int
    batch_size: int
    module: LanguageModel | None = None
    stops: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        self.device = choose_as(self.arithmetic, self.threads)
        self.engine = Engine(self.device.precision, self.batch_size)

    def take(self, weights: SentWeights, data: bytes | None = None) -> str:
        """The hash of what came of the weights; nothing where there is no such file here, and no `data`. Other weights are not kept."""
        if data is not None:
            return self.take_bytes(weights, bytearray(data))
        if not weights.size or not weights.path.is_file() or weights.path.stat().st_size != weights.size:
            return ""
        with weights.path.open("rb") as file:
            return self.take_bytes(weights, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    @torch.no_grad()
    def take_bytes(self, weights: SentWeights, data: bytearray | mmap.mmap) -> str:
        found = hashlib.sha256(data).hexdigest()
        if found == weights.hash:
            if weights.module is not None:
                self.module, self.stops = weights.module
            assert self.module is not None
            fill_tensors(self.module, weights, data, self.device.torch)
            self.engine.take(self.module, weights.stamp, self.stops)
        return found

    def answer(self, asked: Prompts) -> tuple[list[Answer], Parts]:
        """The answers, and what making them took."""
        with stage("rollout") as node, timed("answer"):
            answers = self.engine.generate(
                asked.ids, asked.settings, stamp=asked.stamp, seed=asked.seed, samples=asked.samples
            )
            note_tokens(sum(len(answer.token_ids) for answer in answers))
        return answers, node.parts()


def answerer_like(device: Device, workers: int, batch_size: int, ahead: bool) -> Callable[[], Answerer]:
    """Makes what each of so many workers holds, computing as `device` does; they share its threads, with the trainer where they answer
    `ahead` of it."""
    threads = max(1, device.threads // (workers + ahead))
    return partial(Answerer, device.arithmetic, threads, batch_size)


def begin_answers(
    pool: PoolEngine, policy: Policy, prompts: Sequence[Prompt], settings: Sampling, seed: int
) -> Callable[[], list[Completion]]:
    """As `answer_prompts`, by workers and from now on; what is given back waits for the answers. The first rank asks, all have them."""
    stamp, template = policy.stamp, policy.template
    answers = pool.begin(template.prompt_ids(prompts), settings, stamp=stamp, seed=seed)
    return lambda: as_completions(from_first(answers), prompts, template, stamp, settings, seed)
