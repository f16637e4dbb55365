"""A model's folder, written as it came but for what training changed: settings, tokenizer, weights.

A model that was made from nothing gets settings of ours. One that came as a folder keeps its files byte for byte; a field is replaced
only where it would no longer be true, and a file that says the same is the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from bridle.compute.checkpoint import save_tensors
from bridle.core.errors import ModelError
from bridle.models import foreign
from bridle.models.contents import INDEX, WEIGHTS
from bridle.models.control import special_ids, unknown_ids
from bridle.models.decoder import ARCHITECTURES, DecoderConfig
from bridle.models.files.chat_template import token_ids
from bridle.models.files.source import CONFIG, DTYPES, EXTRA_TEMPLATES, SIDECAR, ModelSource
from bridle.models.foreign import ForeignConfig, LanguageModel
from bridle.models.lora.adapter import Adapter
from bridle.models.lora.low_rank import merged_tensors
from bridle.models.lora.peft_files import ADAPTER_FOLDER, write_adapter
from bridle.models.scorer import Scorer
from bridle.models.template import ASKED, PAD, Template

GENERATION, TOKENIZER_CONFIG, CHAT_TEMPLATE = "generation_config.json", "tokenizer_config.json", "chat_template.jinja"
DTYPE_KEYS = ("torch_dtype", "dtype")  # of transformers 4, of 5


class Saved(Protocol):
    """What a language model and a reward model have in common."""

    @property
    def module(self) -> LanguageModel | Scorer: ...
    @property
    def template(self) -> Template: ...
    @property
    def source(self) -> ModelSource: ...
    @property
    def adapter(self) -> Adapter | None: ...


@dataclass(frozen=True)
class SavedAs:
    """How weights are written: to be worked on, in float32, with what that replaced beside them; or to leave the project, each tensor in
    the type that it came in, or all in `dtype`."""

    exported: bool = False
    dtype: torch.dtype | None = None


WORKING = SavedAs()


def write_model(folder: Path, model: Saved, raw: dict[str, Any], form: SavedAs = WORKING, changed: bool = True) -> None:
    """Write a model into an empty folder; `raw`: its config.json but for tokens and type. `changed`: by training, so that what a reader
    needs to use it as it was trained is written too."""
    source, template = model.source, model.template
    for name, data in source.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if "tokenizer.json" not in source.files:
        template.save(folder, model.module.config.max_positions)
    elif changed and template.source not in templates_of(source):
        (folder / CHAT_TEMPLATE).write_text(template.source, "utf-8")
    if "tokenizer.json" in source.files:
        template.settings.save(folder, template.source)
    if CONFIG not in source.files:
        tokens = template.token_settings()
        raw |= {"eos_token_id": None, "pad_token_id": None, "dtype": "float32", **tokens}
        write_settings(folder / GENERATION, tokens)
    elif changed:
        name_stops(folder, raw, template)
    tensors = {name: tensor.detach().cpu() for name, tensor in merged_tensors(model.module)}
    if isinstance(model.module, Scorer):
        raw["pad_token_id"] = name_pad(folder, raw, template)
        raw["vocab_size"] = make_room(tensors, model.module, raw["pad_token_id"])
    tensors = named_tensors(model.module, tensors)
    came = came_in(tensors, source)
    raw |= dtype_settings(raw, source, form)
    write_settings(folder / CONFIG, raw, source.settings.get(CONFIG))
    write_weights(folder, {name: cast(name, t, form, came) for name, t in tensors.items()}, source)
    if not form.exported and model.adapter is not None:
        (folder / ADAPTER_FOLDER).mkdir()
        write_adapter(folder / ADAPTER_FOLDER, model.module, model.adapter)
    if not form.exported and (set(came.values()) - {"F32"} or dtypes_named(source) - {"float32"}):
        (folder / SIDECAR).write_text(
            json.dumps({"dtypes": came, "settings": dict(source.settings)}, indent=1), "utf-8"
        )


# ------------------------------------------------------------------------------------------------------ settings


def config_settings(module: LanguageModel | Scorer, source: ModelSource) -> dict[str, Any]:
    """config.json as it came, but for what the native network holds otherwise; of a model made from nothing, what its network needs."""
    config = module.config
    if CONFIG not in source.files:
        return config.to_huggingface()
    raw: dict[str, Any] = json.loads(source.files[CONFIG])
    if isinstance(config, DecoderConfig) and (known := DecoderConfig.from_huggingface(raw)) != config:
        usual = known.to_huggingface()
        raw |= {key: value for key, value in config.to_huggingface().items() if usual.get(key) != value}
    if isinstance(config, ForeignConfig) and config.raw.get("tie_word_embeddings") is False:
        raw["tie_word_embeddings"] = False  # the file held a head of its own, whatever config.json said
    return raw


def causal_architecture(config: DecoderConfig | ForeignConfig) -> str:
    """The class that transformers' AutoModelForCausalLM loads."""
    return (
        ARCHITECTURES[config.family] if isinstance(config, DecoderConfig) else foreign.architectures(config.family)[0]
    )


def scorer_architecture(config: DecoderConfig | ForeignConfig) -> str:
    """The class that AutoModelForSequenceClassification loads; of a family that has none, the trunk's, which AutoModel loads."""
    if isinstance(config, DecoderConfig):
        return ARCHITECTURES[config.family].replace("ForCausalLM", "ForSequenceClassification")
    _, scorer, trunk = foreign.architectures(config.family)
    return scorer or trunk


def write_settings(path: Path, value: Mapping[str, Any], came: str | None = None) -> None:
    """Write a JSON file: as it came, or as it lies there, where that says the same."""
    there = path.read_bytes() if path.is_file() else b""
    same = (text for text in ((came or "").encode(), there) if text and json.loads(text) == value)
    path.write_bytes(next(same, json.dumps(value, indent=2).encode()))


def dtype_settings(raw: Mapping[str, Any], source: ModelSource, form: SavedAs) -> dict[str, Any]:
    """What config.json says of the weights' type, under the names that it has for that."""
    came = json.loads(source.settings.get(CONFIG, "{}"))
    if form.exported and form.dtype is None:
        return {key: came[key] for key in DTYPE_KEYS if key in came}
    name = str(form.dtype or torch.float32).removeprefix("torch.")
    keys = [key for key in DTYPE_KEYS if key in raw] or (["dtype"] if form.exported else [])
    return dict.fromkeys(keys, name)


def dtypes_named(source: ModelSource) -> set[str]:
    came = json.loads(source.settings.get(CONFIG, "{}"))
    return {str(came[key]) for key in DTYPE_KEYS if came.get(key) is not None}


def name_stops(folder: Path, raw: dict[str, Any], template: Template) -> None:
    """Name every token that ends an answer where the settings name others: in generation_config.json, or where there is none in
    config.json, which transformers then reads."""
    path = folder / GENERATION
    named = json.loads(path.read_bytes()) if path.is_file() else raw
    if set(token_ids(named, path)) != template.stop_ids:
        named["eos_token_id"] = template.stop_setting
        if path.is_file():
            write_settings(path, named)


def templates_of(source: ModelSource) -> list[str]:
    """Every chat template of a folder, those with names of their own too: in settings, by name or in a list, and in files."""
    found: list[Any] = [
        source.files[name].decode("utf-8", "replace")
        for name in source.files
        if name == CHAT_TEMPLATE or name.startswith(f"{EXTRA_TEMPLATES}/")
    ]
    for name in (TOKENIZER_CONFIG, "chat_template.json"):
        held = json.loads(source.files.get(name, b"{}")).get("chat_template")
        named = held.values() if isinstance(held, dict) else held if isinstance(held, list) else [held]
        found += [one.get("template") if isinstance(one, dict) else one for one in named]
    return found


# ----------------------------------------------------------------------------------------------------------- pad


def name_pad(folder: Path, raw: Mapping[str, Any], template: Template) -> int:
    """The pad token of a reward model, which its files name after this: transformers scores a sequence at its last token that is not the
    pad, so it must be one that no text and no dialogue holds. Where the tokenizer has none it gets one."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added, pad = {}, scoring_pad(template, raw.get("pad_token_id"))
    if pad is None:
        name = next(n for n in (PAD, *(f"<|pad_{i}|>" for i in range(99))) if template.tokenizer.token_to_id(n) is None)
        if tokenizer.token_to_id(name) is None:
            tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
            tokenizer.save(str(folder / "tokenizer.json"))
        pad = tokenizer.get_vocab()[name]
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        added = {str(pad): {"content": name, **flags, "special": True}}
    for file in (TOKENIZER_CONFIG, "special_tokens_map.json"):
        if (path := folder / file).is_file():
            settings = json.loads(path.read_bytes())
            named = settings.get("pad_token")
            if (named.get("content") if isinstance(named, dict) else named) != tokenizer.id_to_token(pad):
                settings["pad_token"] = tokenizer.id_to_token(pad)
            if "added_tokens_decoder" in settings:
                settings["added_tokens_decoder"] |= added
            write_settings(path, settings)
    return pad


def scoring_pad(template: Template, named: object) -> int | None:
    """A token that is fit to pad what is scored: the tokenizer's own, the one that config.json has `named`, one that is called so, any
    that is special; never one that ends an answer, stands for text, or is written in a dialogue."""
    tokenizer, probe = template.tokenizer, template.turn_end.probe
    [answer] = template.completion_ids([ASKED], [probe])
    used = {*template.prompt_ids([ASKED])[0], *answer, *template.bos_ids, *template.stop_ids, *unknown_ids(tokenizer)}
    own = tokenizer.token_to_id(template.pad_token) if template.pad_token else None
    called = sorted(special_ids(tokenizer), key=lambda i: ("pad" not in str(tokenizer.id_to_token(i)).lower(), i))
    added = tokenizer.get_added_tokens_decoder().keys()
    return next((i for i in (own, named, *called) if i in added and i not in used), None)


def make_room(tensors: dict[str, Tensor], module: Scorer, token: int) -> int:
    """Rows of the embedding, which has one more for each token up to this: the mean of the others, and masked wherever it is read."""
    trunk = module.model
    embedding = trunk.inner.get_input_embeddings() if isinstance(trunk, foreign.ForeignTrunk) else trunk.embed_tokens
    name = next(name for name, parameter in module.named_parameters() if parameter is embedding.weight)
    if (more := token + 1 - len(tensors[name])) > 0:
        tensors[name] = torch.cat((tensors[name], tensors[name].mean(0, keepdim=True).expand(more, -1)))
    return len(tensors[name])


def without_token(template: Template, token: str) -> Template:
    """The template as it was before its tokenizer got this token, so that it is the one that wrote what is scored."""
    raw = json.loads(template.tokenizer.to_str())
    raw["added_tokens"] = [added for added in raw["added_tokens"] if added["content"] != token]
    return replace(template, tokenizer=Tokenizer.from_str(json.dumps(raw)), pad_token="")


# ------------------------------------------------------------------------------------------------------- weights


def named_tensors(module: LanguageModel | Scorer, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A module's tensors under the names that the family's files have."""
    if isinstance(module.model, foreign.ForeignTrunk):
        return foreign.huggingface_tensors(module.model, tensors)
    return tensors


def came_in(tensors: Mapping[str, Tensor], source: ModelSource) -> dict[str, str]:
    """The type in which each tensor of real numbers came, by its name in safetensors files; one that is new has the model's."""
    names = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    usual = Counter(name for name in source.dtypes.values() if name in DTYPES).most_common(1)
    model = next((names[name] for name in dtypes_named(source) if name in names), usual[0][0] if usual else "F32")
    return {name: source.dtypes.get(name, model) for name, t in tensors.items() if t.is_floating_point()}


def cast(name: str, tensor: Tensor, form: SavedAs, came: Mapping[str, str]) -> Tensor:
    """A tensor as it is written. ModelError where its type cannot hold its numbers."""
    if name not in came:
        return tensor.contiguous()
    dtype = torch.float32 if not form.exported else form.dtype or DTYPES.get(came[name], torch.float32)
    written = tensor.to(dtype).contiguous()
    if dtype == torch.float16 and not bool(written.isfinite().all()):
        raise ModelError(
            f"{name} holds {float(tensor.abs().max()):.3g}, and float16 ends at 65504; export in bfloat16 or float32 (--dtype)"
        )
    return written


def write_weights(folder: Path, tensors: Mapping[str, Tensor], source: ModelSource) -> None:
    """In as many files as they came, each with the notes in its header; a tensor that is new stands in the last one."""
    last = max(source.layout.values(), default=WEIGHTS)
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        files.setdefault(source.layout.get(name, last), {})[name] = tensor
    for file, held in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(held, folder / file, source.metadata.get(file, {}))
    if set(files) != {WEIGHTS}:
        index = json.loads(source.settings.get(INDEX, "{}"))
        known = index.get("weight_map", {})
        place = {name: number for number, name in enumerate(known)}
        order = sorted(tensors, key=lambda name: place.get(name, len(place)))
        size = sum(tensor.nbytes for tensor in tensors.values())
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        index["weight_map"] = {name: source.layout.get(name, last) for name in order}
        write_settings(folder / INDEX, index, source.settings.get(INDEX))
