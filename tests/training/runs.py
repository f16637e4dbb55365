"""What the trainers' tests share: a run in a folder of its own that says nothing, the plainest device, a taste to learn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bridle.compute.device import Device
from bridle.compute.steps import Session
from bridle.core.files import read_json
from bridle.guard.health import Health
from bridle.models.batches import Group
from bridle.project.metrics import read_metrics
from bridle.project.progress import Progress
from bridle.project.run import Run, Signal
from bridle.recipe.watching import GuardSection
from tests.models.tiny import CPU, random_ids, template

DEVICE = Device(CPU, torch.float32, 1, "test")
STOP = template().eos_id


def run_in(folder: Path, stage: str = "test", limits: GuardSection | None = None) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    limits = limits or GuardSection()
    progress = Progress(write=lambda text: None, live=False)
    return Run(stage, folder, "key", 1, False, progress, limits=limits, watch=Health(limits))


def session(run: Run, seed: int = 0) -> Session:
    return Session(run, DEVICE, seed)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, Tensor], module: nn.Module) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The logged lines without the seconds, which nobody can repeat."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_metrics(folder)]


def saved_state(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run says of how it is steered, and of how good it is."""
    state = read_json(sorted(folder.glob("checkpoints/step-*"))[-1] / "state.json")
    return {name: state[name] for name in ("step", "values", "selection_score")}


class Killed(BaseException):
    """As if the process were gone: nothing in bridle may catch it."""


@contextmanager
def dying_at(line: int) -> Iterator[None]:
    """A run dies once it has logged so many lines, before that step is saved."""
    plain, count = Run.log, 0

    def deadly(
        run: Run, step: int, total: int, metrics: Mapping[str, float | int | str], signal: Signal | None = None
    ) -> None:
        nonlocal count
        plain(run, step, total, metrics, signal)
        count += 1
        if count == line:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "log", deadly)
        yield


def groups(count: int, seed: int, coins: torch.Generator | None = None) -> list[Group]:
    """Four answers of three of 40 tokens; each token has a worth, the same in all groups, and the sum of them decides.
    With `coins` the order of half the groups is turned round."""
    worth = torch.randn(50, generator=torch.Generator().manual_seed(99))
    prompts = random_ids(count, 2, 6, seed)
    answers = [[10 + i % 40 for i in ids] for ids in random_ids(4 * count, 3, 3, seed + 1)]
    made = []
    for g in range(count):
        own = answers[4 * g : 4 * g + 4]
        order = sorted(range(4), key=lambda i: -float(worth[own[i]].sum()))
        if coins is not None and torch.rand((), generator=coins) < 0.5:
            order.reverse()
        pairs = [(order[a], order[b], 1 / 6) for a in range(4) for b in range(a + 1, 4)]
        made.append(Group(prompts[g], [[*ids, STOP] for ids in own], pairs))
    return made
