"""The gradient of an optimiser step does not depend on how the step was cut up: into micro-batches, in which order, with how much
padding, packed or not, on one rank or on three. In float64, to 1e-9.

Padding is on the right alone in training; the engine, which pads on the left, is held to the training pass in
tests/generation/test_engine.py, and by PPO's first ratio in `checks.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.compute import parallel
from bridle.generation import rollout
from bridle.models import batches, imitation
from bridle.models.batches import Batch, PackedAnswers
from bridle.models.decoder import Trunk
from bridle.recipe.services import ScaleSection
from bridle.training import ppo
from tests.exact.curves import TRAINERS, WAYS, curves
from tests.exact.steps import CUT, FEW, SHARED, STEPS, Step, tiny

ROOT = Path(__file__).parents[2]


@cache
def whole(name: str) -> Step:
    """The step with all rows in one forward and backward, by one process."""
    return {**STEPS, **FEW}[name](0)


@pytest.fixture(autouse=True)
def known(request: pytest.FixtureRequest) -> None:
    """What is kept for all tests is found before a test changes anything."""
    case = getattr(request.node, "callspec", None)
    whole(case.params.get("name", "sft") if case else "sft")


def alike(found: Step, name: str, logs: bool = True) -> None:
    expected = whole(name)
    assert len(found.gradients) == len(expected.gradients) > 0
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        assert any(float(gradient.abs().max()) > 1e-3 for gradient in theirs), "the test needs a gradient"
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert len(found.metrics) == (len(expected.metrics) if logs else 0)
    for line, other in zip(found.metrics, expected.metrics, strict=logs):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", STEPS)
def test_micro_batches(name: str, size: int) -> None:
    alike(STEPS[name](size), name)


@pytest.mark.parametrize("name", [*STEPS, "pretrain", "best of n"])
def test_micro_batches_by_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass with a gradient reads more, padding counted, but of a row that has more by itself."""
    read = list[tuple[int, int]]()
    forward = Trunk.forward

    def watched(trunk: Trunk, ids_BT: Tensor, *more: Any) -> Tensor:
        read.extend([(ids_BT.shape[0], ids_BT.numel())] * torch.is_grad_enabled())
        return forward(trunk, ids_BT, *more)

    monkeypatch.setattr(Trunk, "forward", watched)
    monkeypatch.setitem(CUT, "micro_tokens", 30)
    alike({**STEPS, **FEW}[name](0), name)
    together = 2 if name == "rebel" else 1  # rows of one pair, where its answers do not share one
    assert all(rows <= together or places <= 30 for rows, places in read)
    assert len(read) > 1


@pytest.mark.parametrize("name", STEPS)
def test_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows from the last to the first, in micro-batches of two; which rows are of one step stays."""
    fresh, drawn, cut = batches.length_batches, rollout.minibatches, batches.micro_batches
    monkeypatch.setattr(batches, "length_batches", lambda *given: [rows[::-1] for rows in fresh(*given)])
    monkeypatch.setattr(ppo, "micro_batches", lambda *given: [part.flip(0) for part in cut(*given)][::-1])
    monkeypatch.setattr(rollout, "minibatches", lambda *given: (rows.flip(0) for rows in drawn(*given)))
    alike(STEPS[name](2), name)


@pytest.mark.parametrize("name", STEPS)
def test_padding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More columns on the right, full of a token that means something, in every batch and every part of one."""
    make = batches.make_batch

    def wide(*given: Any) -> Batch:
        batch = make(*given)
        return replace(batch, ids_BW=F.pad(batch.ids_BW, (0, 5), value=7))

    for module in (batches, imitation, rollout):
        monkeypatch.setattr(module, "make_batch", wide)
    monkeypatch.setattr(
        Batch, "rows",
        lambda batch, i: Batch(batch.ids_BW[i], batch.prompt_lengths_B[i], batch.lengths_B[i], batch.prompt_B[i]),
    )  # fmt: skip
    alike(STEPS[name](2), name)


@pytest.mark.parametrize("name", STEPS)
def test_packing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt read once for all its answers, or once for each."""
    used = []
    pack_answers = batches.pack_answers

    def watched(batch: Batch) -> PackedAnswers | None:
        packed = pack_answers(batch)
        used.append(packed is not None)
        return packed

    monkeypatch.setattr(batches, "pack_answers", watched)
    alike(STEPS[name](0), name)
    assert any(used), "the packed path was not taken"
    monkeypatch.setattr(batches, "pack_answers", lambda batch: None)
    alike(STEPS[name](0), name)


def test_a_mean_of_means_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where each micro-batch divides by its own tokens."""
    plain = imitation.next_token
    monkeypatch.setattr(imitation, "next_token", lambda logp_N, tokens: plain(logp_N, tokens=3 * len(logp_N)))
    with pytest.raises(AssertionError):
        alike(STEPS["sft"](4), "sft")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.exact.ranks", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks, names in SHARED.items() for name in names])
def test_ranks(name: str, ranks: int, shared: Path) -> None:
    """Real processes with gloo. Each finds the gradient of one process, and the first logs its figures."""
    for rank in range(ranks):
        found = torch.load(shared / f"rank-{rank}-of-{ranks}.pt", weights_only=False)
        alike(Step(**found[name]), name, logs=not rank)


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return curves(tmp_path_factory.mktemp("alone"), ScaleSection())


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("way", WAYS)
def test_ranks_learn_as_one_process_does(way: str, trainer: str, by_itself: dict[str, Any], shared: Path) -> None:
    """Three steps in float32: losses, gradient norms and all else that is logged to 1e-5, weights to 2e-5, though sums are taken in
    another order; both ranks end with the same bits."""
    lines, weights, _ = by_itself[trainer]
    (found, ours, divided), (none, theirs, _) = (
        torch.load(shared / f"{way}-{rank}.pt", weights_only=False)[trainer] for rank in (0, 1)
    )
    assert divided == [way == "shard"] * len(weights)
    assert len(lines) == len(found) > 1 and not none, "the first rank alone logs"
    for line, expected in zip(found, lines, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for one, mine, other in zip(weights, ours, theirs, strict=True):
        for key, tensor in one.items():
            torch.testing.assert_close(mine[key], tensor, rtol=0, atol=2e-5)
            assert torch.equal(mine[key], other[key]), key
        assert mine.keys() == one.keys()


# ------------------------------------------------------------------------------------------------- small parts


def test_one_process_needs_no_group() -> None:
    given, module = torch.tensor([3, 4]), torch.nn.Linear(2, 1)
    assert parallel.all_ranks_sum(given) is given and (parallel.process_rank(), parallel.world_size()) == (0, 1)
    assert parallel.my_share([5, 6, 7]) == [5, 6, 7] and parallel.all_ranks_metrics({"a": 1.0}) == {"a": 1.0}
    parallel.sum_gradients([module])
    assert module.weight.grad is None


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares_cover_all_rows_once(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: ranks)
    lists: list[Sequence[int]] = []
    tensors: list[Tensor] = []
    for rank in range(ranks):
        monkeypatch.setattr(parallel, "process_rank", lambda rank=rank: rank)
        lists.append(parallel.my_share(list(range(5))))
        tensors.append(parallel.my_share(torch.arange(5)))
    assert sorted(i for rows in lists for i in rows) == list(range(5))
    assert [rows.tolist() for rows in tensors] == lists


def parts_of(count: int) -> Callable[[int], list[Sequence[int]]]:
    return lambda size: batches.Cut(size).parts(list(range(count)), [], tiny().module.model)


def test_parts() -> None:
    assert parts_of(5)(2) == [[0, 1], [2, 3], [4]] and parts_of(5)(0) == [[0, 1, 2, 3, 4]]
    batch, trunk = batches.make_batch([[5]] * 3, [[6]] * 3, 0), tiny().module.model
    assert parts_of(0)(0) == parts_of(0)(3) == []
    assert batches.micro_batches(torch.arange(0), batch, trunk, batches.Cut(2)) == []
