"""An adapter as a folder in peft's form: adapter_config.json, adapter_model.safetensors. Ours are read by peft, and peft's here.

    models/ppo/adapter/adapter_config.json         r, lora_alpha, target_modules, …, and where the base lay
    models/ppo/adapter/adapter_model.safetensors   base_model.model.….lora_A.weight, ….lora_B.weight, and what learnt whole; in its header
                                                   the content hash of the base

A setting of peft's that bridle's adapters do not have is refused by its name, for what it changes would be left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bridle.compute.checkpoint import load_tensors, save_tensors
from bridle.core.errors import ModelError, UnsupportedModel, brief_repr
from bridle.models.decoder import Decoder
from bridle.models.foreign import Foreign, ForeignTrunk, LanguageModel
from bridle.models.lora.adapter import Adapter, Network, attach, learning_tensors
from bridle.models.lora.low_rank import is_linear, low_rank_of, without_adapter
from bridle.models.scorer import Scorer
from bridle.models.sizes import read_object
from bridle.recipe.data import LoRASection

ADAPTER_FOLDER = "adapter"  # in that of the whole model
ADAPTER_FILES = CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings that are read, and those that change nothing of what the adapter computes.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "modules_to_save", "base_model_name_or_path"}
WITHOUT_EFFECT = {
    "auto_mapping", "fan_in_fan_out", "inference_mode", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "ensure_weight_tying",
}  # fmt: skip
OTHERS_KEEP_BASE = (True, False, "gaussian", "orthogonal", "eva")  # other ways to begin change the base's weights


def write_adapter(folder: Path, module: nn.Module, adapter: Adapter) -> None:
    """Write the adapter of a network into an empty folder."""
    learns, config = learning_tensors(module), adapter.config
    adapted = [name for name, part in module.named_modules() if low_rank_of(part) is not None]
    whole = [*config.modules_to_save, *(["score"] if isinstance(module, Scorer) else [])]
    first, tied = module.get_submodule(adapted[0]), tied_weight(module, learns)
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if isinstance(module, Scorer) else "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": config.r,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.rslora,
        "bias": "none",
        "fan_in_fan_out": not isinstance(first, nn.Linear),
        "target_modules": config.target_modules or target_names(module, adapted),
        "modules_to_save": [huggingface_name(module, name) for name in whole] or None,
        "ensure_weight_tying": tied is not None,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2), "utf-8")
    tensors = {peft_name(module, name): weight.detach().cpu().contiguous() for name, weight in learns.items()}
    if tied is not None:
        tensors[head_name(module)] = tied.detach().cpu().clone()  # under both names, as peft has them
    save_tensors(tensors, folder / WEIGHTS, {"base": adapter.base_hash})


def target_names(module: nn.Module, adapted: list[str]) -> list[str]:
    """The ends of these names where nothing else that is linear is called so, else the whole names."""
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    meant = [name for name, part in module.named_modules() if is_linear(part) and name.rpartition(".")[2] in ends]
    return ends if meant == adapted else sorted(huggingface_name(module, name) for name in adapted)


def tied_weight(module: nn.Module, learns: Mapping[str, nn.Parameter]) -> nn.Parameter | None:
    """The weight that learns whole and is both the embeddings and the head, if there is one: by itself peft would train two of it."""
    if isinstance(module, Decoder | Foreign) and "lm_head.weight" not in dict(module.named_parameters()):
        return next((weight for weight in learns.values() if weight is module.output_weight()), None)
    return None


def head_name(module: nn.Module) -> str:
    return peft_name(module, "lm_head.weight")


def huggingface_names(module: nn.Module) -> dict[str, str]:
    """How parts of a network are called here, and in Hugging Face's."""
    if isinstance(module, Foreign):
        return {"model.inner": module.config.trunk_name, "lm_head": module.config.head_name}
    if isinstance(module, Scorer) and isinstance(module.model, ForeignTrunk):
        return {"model.inner": module.model.config.trunk_name}
    return {}


def huggingface_name(module: nn.Module, name: str) -> str:
    for ours, theirs in huggingface_names(module).items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def peft_name(module: nn.Module, name: str) -> str:
    part, _, matrix = name.rpartition(".lora.")
    return PREFIX + huggingface_name(module, f"{part}.lora_{matrix}.weight" if part else name)


# ------------------------------------------------------------------------------------------------------------- reading


def read_settings(folder: Path) -> tuple[LoRASection, str]:
    """An adapter's settings, and what it calls its base. UnsupportedModel where it is of another kind, by the setting that makes it so."""
    path = folder / CONFIG
    raw = read_object(path)
    if raw.get("peft_type") != "LORA":
        raise UnsupportedModel(
            f"{path} is of an adapter of kind {brief_repr(raw.get('peft_type'))}, and bridle reads LORA alone; merge it"
        )
    for key, value in sorted(raw.items()):
        if key == "init_lora_weights":
            usual = value in OTHERS_KEEP_BASE
        else:
            usual = key in READ | WITHOUT_EFFECT or value in (None, False, [], {}, "none", 0)
        if not usual:
            raise UnsupportedModel(
                f"{path} says {key} = {brief_repr(value)}, which bridle's adapters do not have; merge it into its base with peft "
                "(merge_and_unload), and name that folder"
            )
    names = raw.get("target_modules")
    try:
        config = LoRASection(
            r=raw.get("r", 0),
            alpha=float(raw.get("lora_alpha", 0)),
            rslora=raw.get("use_rslora", False),
            target_modules=sorted(names) if isinstance(names, list) else [],
            modules_to_save=sorted(raw.get("modules_to_save") or []),
        )
        if config.r < 1:
            raise ValueError("r")
    except (ValidationError, TypeError, ValueError) as error:
        raise ModelError(f"{path} needs r and lora_alpha above 0, and names of modules as lists of texts") from error
    return config, str(raw.get("base_model_name_or_path") or "")


def read_adapter(folder: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """An adapter's settings and its numbers by peft's names. ModelError where they cannot be read."""
    config, base = read_settings(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (
            f" but {WEIGHTS[:-11]}bin, pickles, which may run code" if (folder / "adapter_model.bin").is_file() else ""
        )
        raise ModelError(f"{folder} has no {WEIGHTS}{pickled}; save the adapter again with peft")
    try:
        with safe_open(path, "pt") as file:
            noted = file.metadata() or {}
        tensors = load_tensors(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read (truncated or corrupted?): {error}") from error
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise ModelError(f"{broken[0]} in {path} holds numbers that are NaN or infinite; save the adapter again")
    for name, tensor in tensors.items():  # before room is made for as much as the settings ask for
        if ".lora_A." in name and len(tensor) != config.r:
            raise ModelError(
                f"{name} in {path} is of rank {len(tensor)}, where {CONFIG} says r = {config.r}; they are not of one adapter"
            )
    if not config.target_modules:  # a regular expression of peft's: the tensors say what it met
        found = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors if ".lora_" in name}
        config = config.model_copy(update={"target_modules": sorted(found)})
    return Adapter(config, base, noted.get("base", "")), tensors


def scorer_on_base(module: LanguageModel, adapter: Adapter | None, model: Path, tasks: int) -> Scorer:
    """A reward model's adapter and head on the base weights of a policy and its adapter. ModelError where that was trained on another
    base, or has no adapter."""
    folder = model / ADAPTER_FOLDER
    own, tensors = read_adapter(folder) if folder.is_dir() else (None, {})
    if own is None or adapter is None or own.base_hash != adapter.base_hash:
        raise ModelError(
            f"{model} was not left with an adapter on the base of the policy, so they cannot share it; train it with lora.r above 0 from "
            "the model that the policy starts from, or set lora.shared_trunk = false"
        )
    head = tensors.pop(f"{PREFIX}score.weight", torch.empty(0))
    if list(head.shape) != [tasks, module.config.hidden_size]:
        raise ModelError(
            f"{folder} has no score.weight with a row for each of {tasks} tasks, so it is not a reward model's"
        )
    whole = [name for name in own.config.modules_to_save if name != "score"]
    config = own.config.model_copy(update={"modules_to_save": whole})
    trunk = attach_saved(without_adapter(module), replace(own, config=config), tensors, folder).model
    scorer = Scorer(trunk, tasks)
    scorer.score.load_state_dict({"weight": head.float()})
    return scorer


def attach_saved(module: Network, adapter: Adapter, tensors: Mapping[str, Tensor], where: Path) -> Network:
    """A base network with an adapter that was read, to be trained further or merged."""
    places = {theirs: ours for ours, theirs in huggingface_names(module).items()}

    def our_name(name: str) -> str:
        for prefix, ours in places.items():
            if name == prefix or name.startswith(f"{prefix}."):
                return ours + name.removeprefix(prefix)
        return name

    renamed = {}
    for name, tensor in tensors.items():
        part, _, matrix = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        renamed[our_name(f"{part}.lora.{matrix}" if part else name.removeprefix(PREFIX))] = tensor.float()
    config = adapter.config
    targets = [our_name(name) for name in config.target_modules]
    whole = [our_name(name) for name in config.modules_to_save]
    ours, tied = config.model_copy(update={"target_modules": targets, "modules_to_save": whole}), None
    if "lm_head.weight" not in dict(module.named_parameters()):
        tied = renamed.pop("lm_head.weight", None)
    found = attach(module, ours, renamed, str(where))
    weight = tied_weight(found, learning_tensors(found))
    if weight is not None and (tied is None or not torch.equal(tied, weight.detach().cpu())):
        raise UnsupportedModel(
            f"the adapter {where} trained the embeddings apart from the head that is tied to them, which bridle does not; merge it into "
            "its base with peft (merge_and_unload), and name that folder"
        )
    return found
