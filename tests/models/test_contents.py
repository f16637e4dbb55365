"""Which files of a model folder are loaded: the hash knows those and no others, and none leads out of the folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bridle
from bridle.core.errors import ModelError
from bridle.core.files import file_hash
from bridle.models.contents import (
    DIGITS,
    INDEX,
    WEIGHTS,
    earlier_hash,
    folder_hash,
    lasting_hash,
    loaded_files,
    weight_files,
)
from bridle.models.policy import load_policy, save_policy
from tests.models.tiny import CPU, one_sentence, policy, write_foreign, write_safetensors

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_policy(tmp_path / "model", policy())
    return tmp_path / "model"


@pytest.fixture
def parted(model: Path) -> Path:
    return in_parts(model, *PARTS)


def in_parts(folder: Path, first: str, second: str) -> Path:
    """The same model with its weights in two files."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    (folder / WEIGHTS).unlink()
    parts = {first: names[:7], second: names[7:]}
    for file, held in parts.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_safetensors(folder / file, {name: tensors[name] for name in held})
    write_index(folder, {name: file for file, held in parts.items() for name in held})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_map(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return found


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


def test_the_hash_is_of_every_file_that_is_loaded_and_of_no_other(parted: Path) -> None:
    (parted / "bridle_reward.json").write_text("{}")
    before = folder_hash(parted)
    assert before.startswith("v2-") and len(before) == DIGITS
    loaded = loaded_files(parted)
    texts = (
        "config.json generation_config.json tokenizer.json tokenizer_config.json chat_template.jinja bridle_reward.json"
    )
    assert set(loaded) == {*texts.split(), INDEX, *PARTS}
    for name in (
        "README.md",
        "optimizer.pt",
        "modeling_mine.py",
        "adapter_model.safetensors",
    ):
        (parted / name).write_text("not loaded")
        assert folder_hash(parted) == before
    for name in loaded:
        kept = (parted / name).read_bytes()
        append(parted / name)
        assert folder_hash(parted) != before, name
        (parted / name).write_bytes(kept)
    assert folder_hash(parted) == before
    for name, other in (PARTS, PARTS[::-1]):  # the same bytes under each other's names
        (parted / name).rename(parted / f"{other}.new")
    for name in PARTS:
        (parted / f"{name}.new").rename(parted / name)
    assert folder_hash(parted) != before
    (parted / PARTS[0]).rename(parted / "other.safetensors")
    assert folder_hash(parted) != before


def test_weights_in_a_folder_of_their_own_are_read_and_hashed(model: Path) -> None:
    expected = load_file(model / WEIGHTS)
    in_parts(model, "a/1.safetensors", "b/2.safetensors")
    before = folder_hash(model)
    weights = load_policy(model, CPU).module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.items())
    append(model / "b/2.safetensors")
    assert folder_hash(model) != before


def test_one_file_of_weights_is_taken_before_an_index_as_transformers_takes_it(model: Path) -> None:
    before = folder_hash(model)
    write_index(model, {"x": "../elsewhere.safetensors"})
    assert weight_files(model) == [model / WEIGHTS] and folder_hash(model) == before
    load_policy(model, CPU)


@pytest.mark.parametrize(
    "name",
    ["../model-2.safetensors", "../../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors",
     "x\n.safetensors", "x\0.safetensors", "weights.bin", "", "../model/" + PARTS[1]],
)  # fmt: skip
def test_an_index_that_names_what_is_not_in_its_folder_is_refused(name: str, parted: Path) -> None:
    for outside in ("model-2.safetensors", "x.safetensors"):
        shutil.copy(parted / PARTS[1], parted.parent / outside)
    write_index(parted, {key: name if file == PARTS[1] else file for key, file in read_map(parted).items()})
    for read in (weight_files, folder_hash, lambda folder: load_policy(folder, CPU)):
        with pytest.raises(ModelError, match="which is not a .safetensors file in its folder") as caught:
            read(parted)
        assert one_sentence(str(caught.value)) and "\0" not in str(caught.value)


def shard_gone(folder: Path) -> None:
    (folder / PARTS[1]).unlink()


def unlisted(folder: Path) -> None:
    write_index(folder, {key: file for key, file in read_map(folder).items() if key != "lm_head.weight"})


def listed_elsewhere(folder: Path) -> None:
    write_index(folder, {**read_map(folder), "lm_head.weight": PARTS[1]})


def in_both(folder: Path) -> None:
    tensors = load_file(folder / PARTS[1])
    write_safetensors(folder / PARTS[1], {**tensors, "lm_head.weight": torch.zeros(300, 32)})


def no_map(value: Any) -> Callable[[Path], None]:
    return lambda folder: write_index(folder, value)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shard_gone, f"lacks {PARTS[1]}"), (unlisted, f"lm_head.weight: {INDEX} does not list it"),
        (listed_elsewhere, "lm_head.weight: "), (in_both, f"lm_head.weight: {INDEX} does not list it"),
        (no_map(None), "has no weight_map"), (no_map({}), "has no weight_map"), (no_map([1]), "has no weight_map"),
        (no_map({"a": 3}), "has no weight_map"), (no_map({"a": ["b"]}), "has no weight_map"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_told(damage: Callable[[Path], None], told: str, parted: Path) -> None:
    damage(parted)
    with pytest.raises(ModelError) as caught:
        load_policy(parted, CPU)
    assert told in str(caught.value) and one_sentence(str(caught.value))


def test_a_cache_of_links_is_read_and_hashed_by_what_the_links_lead_to(parted: Path, tmp_path: Path) -> None:
    """As Hugging Face keeps what it fetched: snapshots/REVISION/FILE leads to blobs/HASH."""
    snapshot, blobs = tmp_path / "cache/snapshots/1", tmp_path / "cache/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(parted.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert load_policy(snapshot, CPU).origin == folder_hash(snapshot) == folder_hash(parted)
    append(Path(os.path.realpath(snapshot / PARTS[1])))
    assert folder_hash(snapshot) != folder_hash(parted)


def test_the_rule_before_is_kept_for_what_it_named(tmp_path: Path) -> None:
    """The figure is what the version before this rule gave these files."""
    texts = (
        "config tokenizer tokenizer_config generation_config bridle_reward special_tokens_map model.safetensors.index"
    )
    for name in (
        *(f"{text}.json" for text in texts.split()),
        "chat_template.jinja",
        "adapter_model.safetensors",
        WEIGHTS,
        "README.md",
    ):
        (tmp_path / name).write_text(name)
    earlier = "f288003e3c26189814560b49ddbcf84105420ae2485639a4ce185d1705d25cbe"
    assert earlier_hash(tmp_path) == earlier_hash(tmp_path, {WEIGHTS: file_hash(tmp_path / WEIGHTS)}) == earlier


def test_calls_from_python_keep_the_name_that_earlier_versions_gave(model: Path) -> None:
    """Where it says as much: else a run would take another model for its own."""
    assert bridle.load(model).policy.origin == lasting_hash(model) == earlier_hash(model) != folder_hash(model)
    in_parts(model, *PARTS)
    assert bridle.load(model).policy.origin == lasting_hash(model) == folder_hash(model) != earlier_hash(model)


CODE = "import pathlib\npathlib.Path('{}').write_text('ran')\n"


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_code_in_a_folder_is_never_run(shape: str, tmp_path: Path) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    if shape == "gpt2":
        write_foreign(folder, shape)
    else:
        save_policy(folder, policy(shape))
    for name in ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(ran))
    classes = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine"}
    for name, more in (
        ("config.json", classes),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_mine.Mine", None]}),
    ):
        raw = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**raw, "auto_map": more}))
    load_policy(folder, CPU)
    assert not ran.exists()


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (
            "adapter_config.json",
            {"base_model_name_or_path": "/elsewhere"},
            "an adapter beside it (adapter_config.json)",
        ),
        (
            "config.json",
            {"transformers_weights": "other.safetensors"},
            "says that the weights are in 'other.safetensors'",
        ),
        ("config.json", {"attn_implementation": "mallory/kernel"}, "wants code from the hub"),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "says that another file stands in its place"),
    ],
)
def test_a_folder_that_names_weights_or_code_elsewhere_is_refused(
    file: str, content: dict[str, str], told: str, shape: str, tmp_path: Path
) -> None:
    if shape == "gpt2":
        write_foreign(tmp_path, shape)
    else:
        save_policy(tmp_path / "model", policy(shape))
    folder = tmp_path if shape == "gpt2" else tmp_path / "model"
    raw = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**raw, **content}))
    with pytest.raises(ModelError) as caught:
        load_policy(folder, CPU)
    assert told in str(caught.value) and one_sentence(str(caught.value))
