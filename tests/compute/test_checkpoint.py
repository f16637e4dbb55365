"""Checkpoints: exact, strict, and the one before where the newest is damaged."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bridle.compute.checkpoint import (
    KEEP,
    TrainingState,
    described,
    restore_checkpoint,
    save_checkpoint,
    selection_score_of,
    steps_of,
)
from bridle.compute.optimizer import OPTIMIZERS
from bridle.core.errors import BridleError, CheckpointError, TrainingStopped
from bridle.core.records import content_hash
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


def test_a_metric_that_is_not_known_damages_no_checkpoint(tmp_path: Path) -> None:
    """Nor makes its notes what is no JSON: a standard error of one prompt is nan."""
    save_checkpoint(tmp_path, 1, fresh("adamw"), {"metrics": {"kl": 0.5, "kl_se": math.nan}}, "key")
    (notes,) = tmp_path.glob("*/state.json")
    assert json.loads(notes.read_text(), parse_constant=pytest.fail)["values"]["metrics"]["kl_se"] is None
    assert restore_checkpoint(tmp_path, fresh("adamw"), "key", silent) == (1, {"metrics": {"kl": 0.5, "kl_se": None}})


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


def test_what_a_kill_left_of_checkpoints_is_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fresh("adamw")
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state, {}, "key")
    (tmp_path / "step-000002").rename(tmp_path / ".step-000002.4711.old")
    (tmp_path / ".step-000003.0123abcd.new").mkdir()
    assert restore_checkpoint(tmp_path, fresh("adamw", seed=5), "key", silent)[0] == 2

    def killed(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bridle.core.files.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 3, state, {}, "key")
    assert [path.name for path in steps_of(tmp_path)] == ["step-000002", "step-000003"], "no half of the one that goes"
    assert restore_checkpoint(tmp_path, fresh("adamw", seed=5), "key", silent)[0] == 3
    assert len(list(tmp_path.iterdir())) == 2


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


def edited_notes(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text().replace('"beta": 2.0', '"beta": 3.0'))


def other_step(path: Path) -> None:
    note(path, step=7)


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path / "state.safetensors")
    write_safetensors(path / "state.safetensors", dict(list(tensors.items())[1:]))


def another_dtype(path: Path) -> None:
    tensors = load_file(path / "state.safetensors")
    write_safetensors(path / "state.safetensors", {n: t.view(torch.int32) for n, t in tensors.items()})


@pytest.mark.parametrize(
    "damage",
    [
        cut_tensors, flip_a_bit, drop_tensors, cut_notes, other_notes, empty_notes, edited_notes, other_step,
        without_a_tensor, another_dtype,
    ],
)  # fmt: skip
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
    """Tensors of one's own with their right manifest, as another version of the code might have left them."""
    write_safetensors(folder / "state.safetensors", tensors)
    note(folder, tensors={name: described(tensor) for name, tensor in tensors.items()})


def note(folder: Path, **changed: Any) -> None:
    """Change state.json as someone would who knows how its hash is made."""
    notes = {**json.loads((folder / "state.json").read_text()), **changed}
    notes["sha256"] = content_hash({name: value for name, value in notes.items() if name != "sha256"})
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
    change(folder, {n: t for n, t in tensors.items() if not n.startswith("optimizer.0.")})
    with pytest.raises(CheckpointError, match="lacks the moments"):
        restore_checkpoint(tmp_path / "moved", fresh("adamw"), "recipe", silent)


# ---------------------------------------------------------------------------------------- which stay, and the manifest


@pytest.mark.parametrize(
    ("selection_scores", "keep", "left"),
    [
        ([1.0, 3.0, 2.0, 2.5, 0.0], 2, [2, 4, 5]),  # the second is the best
        ([1.0, 1.5, 2.0, 2.5, 3.0], 2, [4, 5]),  # the best is among the newest
        ([5.0, 5.0, 1.0, 1.0, 1.0], 1, [2, 5]),  # of equals the newer
        ([5.0, 1.0, 1.0, 1.0, 1.0], 4, [1, 2, 3, 4, 5]),
        ([None, float("nan"), float("-inf"), None, None], 2, [4, 5]),  # nothing to choose by
        ([None, -2.0, None, None, -3.0], 1, [2, 5]),
    ],
)
def test_the_newest_few_and_the_best_stay(
    selection_scores: list[float | None], keep: int, left: list[int], tmp_path: Path
) -> None:
    state = fresh("adamw")
    for step, score in enumerate(selection_scores, 1):
        save_checkpoint(tmp_path, step, state, {}, "key", keep=keep, selection_score=score)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:06d}" for step in left]


def test_the_best_is_the_last_way_back(tmp_path: Path) -> None:
    state, kept = fresh("adamw"), {}
    for step, score in enumerate([9.0, 1.0, 2.0, 3.0], 1):
        work(state, range(step, step + 1))
        save_checkpoint(tmp_path, step, state, {}, "key", selection_score=score)
        kept[step] = weights(state)
    for step in (3, 4):
        flip_a_bit(tmp_path / f"step-{step:06d}")
    other, said = fresh("adamw", seed=5), list[str]()
    assert restore_checkpoint(tmp_path, other, "key", said.append)[0] == 1
    assert equal(weights(other), kept[1]) and len(said) == 3


def test_a_millionth_step_is_newer_than_the_one_before(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, fresh("adamw"), {}, "key", keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1000000"]


def test_the_manifest_names_every_tensor(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    notes = json.loads((tmp_path / "step-000001" / "state.json").read_text())
    tensors = load_file(tmp_path / "step-000001" / "state.safetensors")
    assert notes["tensors"].keys() == tensors.keys() and notes["step"] == 1 and notes["recipe_hash"] == "key"
    assert {"bridle", "torch"} <= notes["versions"].keys()
    line = notes["tensors"]["policy.model.norm.weight"]
    data = tensors["policy.model.norm.weight"].numpy().tobytes()
    assert line == {"shape": [32], "dtype": "float32", "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool, torch.int64])
def test_tensors_of_every_kind_have_a_hash_of_their_own(dtype: torch.dtype) -> None:
    some = [torch.zeros(3, 2), torch.ones(3, 2), torch.ones(2, 3), torch.ones(()), torch.ones(6)[::2], torch.ones(0)]
    assert len({json.dumps(described(t.to(dtype))) for t in some}) == len(some)


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    path = tmp_path / "step-000001" / "state.safetensors"
    tensors = load_file(path)
    tensors["critic.model.norm.weight"][3] += 1
    write_safetensors(path, tensors)
    said: list[str] = []
    restore_checkpoint(tmp_path, fresh("adamw"), "key", said.append)
    assert "its tensor critic.model.norm.weight is not the one that was saved" in said[0]


def test_a_checkpoint_of_another_form_is_refused_by_name(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    note(tmp_path / "step-000001", form=99, versions={"bridle": "9.1"})
    with pytest.raises(CheckpointError) as caught:
        restore_checkpoint(tmp_path, fresh("adamw"), "key", silent)
    words = str(caught.value)
    assert (
        "step-000001 was written by bridle 9.1 in form 99 of checkpoints, and this version reads forms 2 and 3" in words
    )
    assert f"finish the run with the version that began it, or remove {tmp_path.parent} to start anew" in words
    assert one_sentence(words)


def test_the_selection_score_stands_in_the_notes(tmp_path: Path) -> None:
    for step, score in enumerate([1.5, float("nan"), None], 1):
        save_checkpoint(tmp_path, step, fresh("adamw"), {}, "key", keep=3, selection_score=score)
    found = [json.loads((path / "state.json").read_text()) for path in sorted(tmp_path.iterdir())]
    assert [notes["selection_score"] for notes in found] == [1.5, None, None]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    state = fresh("adamw")
    with torch.no_grad():
        state.modules["critic"].model.norm.weight[0] = torch.inf
    with pytest.raises(TrainingStopped, match=r"critic\.model\.norm\.weight is not finite after step 2") as caught:
        save_checkpoint(tmp_path, 2, state, {}, "key")
    assert one_sentence(str(caught.value))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_health_is_part_of_the_state(tmp_path: Path) -> None:
    state = fresh("adamw")
    state.health = {"held": {"dead reward": 4}, "warned": {"dead reward": "…"}}
    save_checkpoint(tmp_path, 1, state, {}, "key")
    other = fresh("adamw")
    other.health = mine = {"held": {}, "warned": {}}
    restore_checkpoint(tmp_path, other, "key", silent)
    assert mine == state.health, "written into the run's own"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (
            {"beta": 0.1, "figures": {"kl": 2.0}},
            {"beta": 0.1, "metrics": {"kl": 2.0}},
        ),  # what learns from its own answers
        ({"last": {"loss": 0.6}}, {"metrics": {"loss": 0.6}}),  # DPO
        ({"last_losses": [1.0, 3.0]}, {"last_losses": [1.0, 3.0], "metrics": {"loss": 2.0}}),  # SFT
        ({"loss_average": 0.5}, {"loss_average": 0.5, "metrics": {"loss": 0.5}}),  # pretraining, the reward model
    ],
)
def test_a_checkpoint_of_an_earlier_version_is_read(
    values: dict[str, Any], found: dict[str, Any], tmp_path: Path
) -> None:
    """It said the same in other words: merit for the selection score, said for warned, and the last metrics by several names."""
    save_steps(tmp_path, 1)
    folder = tmp_path / "step-000001"
    notes = json.loads((folder / "state.json").read_text())
    notes |= {"form": 2, "merit": 0.25, "values": values, "health": {"held": {"a": 1}, "said": {"a": "b"}}}
    del notes["selection_score"], notes["sha256"]
    (folder / "state.json").write_text(json.dumps(notes))
    note(folder)
    state = fresh("adamw")
    assert restore_checkpoint(tmp_path, state, "key", silent) == (1, found)
    assert state.health == {"held": {"a": 1}, "warned": {"a": "b"}}
    assert selection_score_of(folder) == 0.25


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("[" * 100_000, "nest too deep"),
        ("[]", "state.json is damaged"),
        ('{"form": "3", "sha256": ""}', "needs form as int"),
        ({"values": 3}, "its state.json needs values as dict"),
        ({"step": "two"}, "needs step as int"),
        ({"tensors": []}, "needs tensors as dict"),
        ({"tensors": {}}, "its manifest and its tensors differ"),
        ({"selection_score": "high"}, None),
    ],
)
def test_notes_of_another_kind_damage_one_checkpoint_alone(changed: Any, words: str | None, tmp_path: Path) -> None:
    """Though their hash is right: whoever wrote them meant harm, or had another version."""
    state, told = fresh("adamw"), list[str]()
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state, {}, "key", selection_score=0.0)
    path = tmp_path / "step-000002/state.json"
    if isinstance(changed, dict):
        notes = {**json.loads(path.read_text()), **changed}
        notes.pop("sha256")
        changed = json.dumps({**notes, "sha256": content_hash(notes)})
    path.write_text(changed)
    step, _ = restore_checkpoint(tmp_path, state, "key", told.append)
    assert math.isfinite(selection_score_of(tmp_path / "step-000001"))
    if words is None:
        assert step == 2 and selection_score_of(path.parent) == -math.inf
    else:
        assert step == 1 and words in told[0] and told[0].startswith("checkpoint step-000002 is damaged (")
