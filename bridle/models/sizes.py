"""What a model's folder says in numbers, looked at before anything is built from it.

The JSON files of a folder are somebody's text: an epsilon may be NaN, a width a million times what the weights have. Shapes stand in the
headers of the safetensors files, which cost nothing to read, so sizes are compared with them first, and with this machine's memory.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bridle.compute.shapes import Shape, machine_memory, public_shape
from bridle.core.errors import ModelError, brief_repr
from bridle.core.files import reading_fault, without_repeats
from bridle.core.forms import NUMBER, Fields, form_fault
from bridle.recipe.data import ModelSection

Shapes = Mapping[str, Sequence[int]]  # of tensors, by name

DEEPEST = 50  # levels of a folder's JSON: those in use have some five
LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}
POSITIONS = {
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "sliding_window", "max_window_layers",
    "original_max_position_embeddings",
}  # fmt: skip
COUNTS = LAYERS | (POSITIONS - {"max_window_layers"}) | {
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "n_embd", "n_head",
    "n_inner", "num_labels",
}  # fmt: skip
# What config.json calls the numbers of the recipe's [model], by family.
SHAPE = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "layers": tuple(sorted(LAYERS)),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
}
EPSILONS = {"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon"}
ABOVE_ZERO = {"rope_theta", "rotary_emb_base", "rope_local_base_freq"}
TOKENS = {"bos_token_id", "pad_token_id"}  # eos_token_id may be several: models/template.py reads it
# What families scale their embeddings, attention and logits by: each network applies what its own family has.
SCALING = re.compile(
    r"soft_?cap|(?<!dim_)multiplier|logits?_scal|scale_emb|scale_depth|embed(ding)?s?_scale|query_pre_attn_scalar"
)
FACTORS = ("factor?", "low_freq_factor?", "high_freq_factor?")
ROPE = {"rope_type?": (str, None), "type?": (str, None), **dict.fromkeys(FACTORS, NUMBER)}
SWITCHES = ("tie_word_embeddings?", "attention_bias?", "mlp_bias?", "use_sliding_window?", "multi_query?")
SCALES = (
    "final_logit_softcapping?",
    "attn_logit_softcapping?",
    "logit_scale?",
    "logits_scaling?",
    "lm_head_multiplier?",
)
CONFIG: Fields = {  # what is read of config.json, but for the numbers above
    "model_type?": str, "architectures?": ([str], dict, None), "hidden_act?": (str, None), "attn_implementation?": (str, None),
    **dict.fromkeys(SWITCHES, (bool, None)), **dict.fromkeys(SCALES, NUMBER), "sliding_window?": (int, None),
    "rope_parameters?": (ROPE, None), "rope_scaling?": (ROPE, None), "quantization_config?": (dict, None),
}  # fmt: skip
MOST_POSITIONS = 10**9
SMALL = 10**6  # a number that asks for little, whatever it counts


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file. ModelError: no JSON, a key twice, NaN, or nested too deep."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"), object_pairs_hook=without_repeats, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {reading_fault(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(found).__name__}")
    if depth_of(found) > DEEPEST:
        raise ModelError(f"{path} nests its values more than {DEEPEST} levels deep, as no model's file does")
    return found


def constant(name: str) -> float:
    """Infinity stands in the files of some families, NaN in those of none."""
    if name == "NaN":
        raise ValueError("it holds NaN where a number is needed")
    return float(name)


def depth_of(value: object) -> int:
    """Levels of objects and lists, without recursion."""
    depth, level = 0, [value]
    while level := [
        inner
        for one in level
        if isinstance(one, dict | list)
        for inner in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
    return depth


def numbers_of(raw: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON object but objects and lists that hold something, with its key; a list's values have that of the list."""
    if isinstance(raw, Mapping) and raw:
        for key, value in raw.items():
            yield from numbers_of(value, key)
    elif isinstance(raw, list) and raw:
        for value in raw:
            yield from numbers_of(value, name)
    else:
        yield name, raw


def shape_of(raw: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a model's shape by the names of the recipe's [model], of those that its config.json says or implies."""
    numbers = {
        name: value for name, value in reversed(list(numbers_of(raw))) if type(value) is int
    }  # the first of each counts
    found = {ours: numbers[name] for ours, names in SHAPE.items() for name in reversed(names) if name in numbers}
    if "heads" in found:
        found.setdefault("kv_heads", 1 if raw.get("multi_query") is True else found["heads"])
    if "hidden_size" in found:
        found.setdefault("intermediate_size", 4 * found["hidden_size"])
    return found


NEEDED = ("vocab_size", "hidden_size", "layers", "heads")  # of these, whatever the family
UNTIED = ("llama", "mistral", "qwen2", "qwen3")  # where config.json says nothing of it


def config_shape(raw: Mapping[str, Any], place: Path, counted: int = 0) -> Shape:
    """What decides a network's memory, by its config.json. `counted`: its weights, where they were counted."""
    found = shape_of(raw)
    if missing := [name for name in NEEDED if name not in found]:
        raise ModelError(
            f"{place} does not say {', '.join(SHAPE[name][0] for name in missing)}, without which no memory can be planned; give the "
            "folder of a language model"
        )
    named = dict(reversed(list(numbers_of(raw))))
    head_size = named.get("head_dim") or found["hidden_size"] // found["heads"]
    context = max((value for name, value in named.items() if name in POSITIONS and type(value) is int), default=2048)
    tied = bool(named.get("tie_word_embeddings", raw.get("model_type") not in UNTIED))
    return Shape(**found, head_size=head_size, tied=tied, max_positions=context, counted=counted)


def planned_shape(section: ModelSection, *places: Path) -> Shape:
    """The shape of a recipe's [model] without a weight read: of the first of these folders that has a config.json, where it names a
    model, or of the public one that is called so. ModelError where there is neither."""
    for place in places if section.path else ():
        if raw := read_object(place / "config.json"):
            require_numbers(raw, place / "config.json")
            stored = {} if raw.get("model_type") in UNTIED else stored_shapes(sorted(place.glob("*.safetensors")))
            return config_shape(raw, place / "config.json", elements_of(stored))
    if section.path:
        return public_shape(section.path)
    sizes = section.model_dump(include=set(SHAPE) | {"max_positions"})
    return Shape(**sizes, head_size=section.hidden_size // section.heads)


def scalings_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Scalings and caps that config.json asks for, by name: those whose value changes anything."""
    found = {name: value for name, value in raw.items() if SCALING.search(name) and isinstance(value, int | float)}
    return {name: value for name, value in found.items() if value is True or value not in (0, 1)}


def require_numbers(raw: Mapping[str, Any], path: Path) -> None:
    """ModelError where a setting of config.json is none that a network can have, whatever the weights are."""
    if fault := form_fault(raw, CONFIG):
        raise ModelError(f"{path} holds a value of the wrong type or size: {fault}")
    switched_off = {"sliding_window"} if raw.get("use_sliding_window") is False else set()  # Qwen2-MoE then says 0
    for name, value in numbers_of(raw):
        number = type(value) in (int, float)
        needed = ""
        if name in COUNTS and value is not None and not (type(value) is int and value >= (name not in switched_off)):
            needed = "a whole number of at least 1"
        elif name in POSITIONS and number and value > MOST_POSITIONS:
            needed = f"{MOST_POSITIONS} at most"
        elif name in EPSILONS and value is not None and not (number and 0 <= value < 1):
            needed = "a number from 0 up to 1"
        elif name in ABOVE_ZERO and value is not None and not (number and 0 < value <= sys.float_info.max):
            needed = "a finite number above 0"
        elif name in TOKENS and value is not None and not (type(value) is int and -1 <= value < 2**31):
            needed = "the number of a token"
        if needed:
            raise ModelError(
                f"{path} holds a value of the wrong type or size: {name} = {brief_repr(value)}, where {needed} is needed"
            )
    vocab_size = raw.get("vocab_size")
    for name in TOKENS & set(raw):
        if isinstance(raw[name], list | dict):
            raise ModelError(
                f"{path} holds a value of the wrong type or size: {name} = {brief_repr(raw[name])}, where the number of a token is needed"
            )
        if isinstance(vocab_size, int) and raw[name] is not None and raw[name] >= vocab_size:
            raise ModelError(f"{path} names token {raw[name]} as its {name}, where vocab_size is {vocab_size}")


def require_size(raw: Mapping[str, Any], stored: Shapes, path: Path) -> None:
    """ModelError where config.json counts more than the weights could have, whatever the family: before a network is made of it."""
    elements = max(SMALL, elements_of(stored))
    for name, value in numbers_of(raw):
        if type(value) is not int or name in POSITIONS or name in ABOVE_ZERO:
            continue
        if name in LAYERS and value > len(stored):
            raise ModelError(
                f"{path} asks for {name} = {value}, where the weights are {len(stored)} tensors; they are not of one model"
            )
        if abs(value) > elements:
            raise ModelError(
                f"{path} says {name} = {brief_repr(value)}, where the weights have {elements_of(stored):,} numbers in all; they are not of "
                "one model"
            )


def stored_shapes(paths: Sequence[Path]) -> dict[str, list[int]]:
    """Shapes of all tensors by the headers of safetensors files. The library refuses a header that is longer than its file, or than 100
    MB, and tensors that overlap or end outside of it."""
    found: dict[str, list[int]] = {}
    for path in paths:
        try:
            with safe_open(path, "numpy") as file:
                found |= {name: file.get_slice(name).get_shape() for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read (truncated or corrupted?): {error}") from error
    return found


def elements_of(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def require_fit(expected: Shapes, stored: Shapes, folder: Path) -> None:
    """ModelError that names the tensors where the weights stored are not those that the network needs."""
    extra = (name for name in set(stored) - set(expected) if not name.endswith("rotary_emb.inv_freq"))
    require_names(set(expected) - set(stored), extra, folder)
    for name, shape in expected.items():
        if list(shape) != list(stored[name]):
            raise ModelError(
                f"{name} in {folder} has shape {list(stored[name])} where config.json asks for {list(shape)}"
            )


def require_names(missing: Iterable[str], unknown: Iterable[str], folder: Path, family: str = "") -> None:
    """ModelError that counts the tensors which the network needs and the files lack, and those that it does not have."""
    counted = {"missing": sorted(missing), "unknown": sorted(unknown)}
    parts = [f"{len(names)} {kind} (such as {names[:2]})" for kind, names in counted.items() if names]
    if parts:
        of = f" of model_type {family!r}" if family else ""
        raise ModelError(
            f"the weights in {folder} do not fit its config.json{of}: {', '.join(parts)}; correct the settings, or save the model whole "
            "with transformers"
        )


def require_memory(needed: int, what: str) -> None:
    """ModelError where this machine's memory cannot hold so many bytes."""
    there = machine_memory()
    if needed > there:
        raise ModelError(
            f"{what} needs {needed / 2**30:,.1f} GiB of memory, and this machine has {there / 2**30:,.1f} GiB; take a smaller one"
        )
