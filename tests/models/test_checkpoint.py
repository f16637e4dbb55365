"""Checkpoints: exact, strict, and the one before where the newest is damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bridle.core.errors import BridleError, CheckpointError
from bridle.core.files import file_hash
from bridle.models.checkpoint import KEEP, TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.optimizer import OPTIMIZERS
from tests.models.tiny import one_sentence, policy, random_ids, write_safetensors


def fresh(optimizer: str, seed: int = 0, shapes: tuple[str, str] = ("qwen3", "llama")) -> TrainingState:
    modules = {"policy": policy(shapes[0], seed).module, "critic": policy(shapes[1], seed + 1).module}
    return TrainingState(modules, [o for module in modules.values() for o in OPTIMIZERS[optimizer](module, 0.01)])


def work(state: TrainingState, steps: range) -> None:
    for step in steps:
        ids = torch.tensor(random_ids(1, 12, 12, seed=step))
        for module in state.modules.values():
            nn.functional.cross_entropy(module(ids)[0, :-1], ids[0, 1:]).backward()
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": t.clone() for n, m in state.modules.items() for k, t in m.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def silent(text: str) -> None:
    pass


@pytest.mark.parametrize("shapes", [("qwen3", "llama"), ("gpt2", "gemma"), ("gemma2", "mixtral")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    optimizer: str, shapes: tuple[str, str], tmp_path: Path
) -> None:
    whole = fresh(optimizer, shapes=shapes)
    work(whole, range(5))

    state = fresh(optimizer, shapes=shapes)
    work(state, range(3))
    save_checkpoint(tmp_path, 3, state, {"beta": 0.1 + 0.2}, "key")
    resumed = fresh(optimizer, 7, shapes)  # other weights, no moments
    said: list[str] = []
    step, values = restore_checkpoint(tmp_path, resumed, "key", said.append)
    assert (step, values) == (3, {"beta": 0.1 + 0.2})
    assert equal(weights(resumed), weights(state))
    work(resumed, range(3, 5))
    assert equal(weights(resumed), weights(whole))
    assert said == [f"resuming after step 3 (restored: policy, critic, {len(state.optimizers)} optimisers, beta)"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_moments_matter(optimizer: str, tmp_path: Path) -> None:
    """The test above could not fail if a step did not depend on them."""
    state, forgetful = fresh(optimizer), fresh(optimizer)
    work(state, range(3))
    for name, module in forgetful.modules.items():
        module.load_state_dict(state.modules[name].state_dict())
    work(state, range(3, 4))
    work(forgetful, range(3, 4))
    assert not equal(weights(state), weights(forgetful))


def test_without_a_checkpoint_a_run_begins_at_nought(tmp_path: Path) -> None:
    said: list[str] = []
    assert restore_checkpoint(tmp_path / "none", fresh("adamw"), "key", said.append) == (0, {})
    assert said == []


def save_steps(folder: Path, *steps: int) -> dict[int, dict[str, torch.Tensor]]:
    state, kept = fresh("adamw"), {}
    for step in steps:
        work(state, range(step, step + 1))
        save_checkpoint(folder, step, state, {"beta": float(step)}, "key")
        kept[step] = weights(state)
    return kept


def test_the_newest_few_stay(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 9, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{s:06d}" for s in (1, 2, 9, 10)[-KEEP:]]


def cut_tensors(path: Path) -> None:
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    file = path / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


def drop_tensors(path: Path) -> None:
    (path / "state.safetensors").unlink()


def cut_notes(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text()[:20])


def other_notes(path: Path) -> None:
    (path / "state.json").write_text("[]")


def empty_notes(path: Path) -> None:
    (path / "state.json").write_text("{}")


@pytest.mark.parametrize("damage", [cut_tensors, flip_a_bit, drop_tensors, cut_notes, other_notes, empty_notes])
def test_a_damaged_newest_falls_back_to_the_one_before_with_a_word(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    kept = save_steps(tmp_path, 1, 2)
    damage(tmp_path / "step-000002")
    state, said = fresh("adamw", seed=5), list[str]()
    assert restore_checkpoint(tmp_path, state, "key", said.append) == (1, {"beta": 1.0})
    assert equal(weights(state), kept[1])
    assert "step-000002 is damaged" in said[0] and one_sentence(said[0])
    assert said[1].startswith("resuming after step 1")


def test_where_none_is_good_it_says_so(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        flip_a_bit(path)
    said: list[str] = []
    assert restore_checkpoint(tmp_path, fresh("adamw"), "key", said.append) == (0, {})
    assert said[-1] == "no good checkpoint is left; starting from the beginning"


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    with pytest.raises(CheckpointError, match="written under another recipe") as caught:
        restore_checkpoint(tmp_path, fresh("adamw"), "other key", silent)
    assert one_sentence(str(caught.value))


def change(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Tensors of one's own with their right hash, as another version of the code might have left them."""
    write_safetensors(folder / "state.safetensors", tensors)
    notes = json.loads((folder / "state.json").read_text())
    notes["sha256"] = file_hash(folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(notes))


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ("critic.model.norm.weight", "lacks 1 tensors of critic (such as model.norm.weight)"),
        ("policy.", "tensors of policy"),
        ("optimizer.1.", "lacks the moments of parameter 0 of optimiser 1"),
        ("optimizer.0.4.", "lacks the moments of parameter 4 of optimiser 0"),
    ],
)
def test_missing_tensors_are_refused(without: str, words: str, tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    tensors = load_file(tmp_path / "step-000001" / "state.safetensors")
    change(tmp_path / "step-000001", {n: t for n, t in tensors.items() if not n.startswith(without)})
    with pytest.raises(CheckpointError) as caught:
        restore_checkpoint(tmp_path, fresh("adamw"), "key", silent)
    assert words in str(caught.value) and one_sentence(str(caught.value))


@pytest.mark.parametrize("extra", ["guard.state", "policy.more", "optimizer.0.999.exp_avg", "optimizer.7.0.step"])
def test_tensors_without_a_place_are_refused(extra: str, tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    tensors = load_file(tmp_path / "step-000001" / "state.safetensors")
    change(tmp_path / "step-000001", {**tensors, extra: torch.zeros(2)})
    with pytest.raises(CheckpointError, match="has no place for") as caught:
        restore_checkpoint(tmp_path, fresh("adamw"), "key", silent)
    assert extra in str(caught.value)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    tensors = load_file(tmp_path / "step-000001" / "state.safetensors")
    change(tmp_path / "step-000001", {**tensors, "policy.model.norm.weight": torch.zeros(31)})
    with pytest.raises(CheckpointError, match=r"policy\.model\.norm\.weight in another shape"):
        restore_checkpoint(tmp_path, fresh("adamw"), "key", silent)


def test_a_checkpoint_that_fails_half_way_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = save_steps(tmp_path, 1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bridle.core.files.os.fsync", full)
    with pytest.raises(BridleError, match="no space left while saving"):
        save_checkpoint(tmp_path, 2, fresh("adamw"), {}, "key")
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    state = fresh("adamw", seed=5)
    restore_checkpoint(tmp_path, state, "key", silent)
    assert equal(weights(state), kept[1])


def test_a_run_that_had_not_stepped_yet_goes_on(tmp_path: Path) -> None:
    """Moments that never were are not missed; those of an optimiser that had stepped are."""
    save_checkpoint(tmp_path / "idle", 3, fresh("adamw"), {}, "recipe")
    assert restore_checkpoint(tmp_path / "idle", fresh("adamw"), "recipe", silent) == (3, {})
    moved = fresh("adamw")
    work(moved, range(2))
    save_checkpoint(tmp_path / "moved", 2, moved, {}, "recipe")
    folder = tmp_path / "moved" / "step-000002"
    tensors = load_file(folder / "state.safetensors")
    write_safetensors(
        folder / "state.safetensors", {n: t for n, t in tensors.items() if not n.startswith("optimizer.0.")}
    )
    notes = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**notes, "sha256": file_hash(folder / "state.safetensors")}))
    with pytest.raises(CheckpointError, match="lacks the moments"):
        restore_checkpoint(tmp_path / "moved", fresh("adamw"), "recipe", silent)
