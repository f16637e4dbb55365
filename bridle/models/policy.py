"""Policies and reward models as folders: Hugging Face's layout in, the same layout out, identity by content hash.

The native decoder takes the shapes that it knows; transformers runs every other causal language model (`foreign.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bridle.core.errors import ModelError, UnsupportedModel
from bridle.core.files import file_hash, whole_folder
from bridle.core.records import content_hash
from bridle.models.checkpoint import save_tensors
from bridle.models.decoder import Decoder, DecoderConfig, Trunk
from bridle.models.foreign import (
    ForeignConfig,
    ForeignTrunk,
    LanguageModel,
    huggingface_tensors,
    load_foreign,
    load_foreign_trunk,
    scorer_architecture,
)
from bridle.models.scorer import Scorer
from bridle.models.template import Template, load_template, read_json


@dataclass
class Policy:
    """A language model with its template. `stamp` names the exact weights: the folder's hash and the steps since."""

    module: LanguageModel
    template: Template
    origin: str  # content hash of the folder it was loaded from, or a name for weights made from nothing
    step: int = 0

    @property
    def stamp(self) -> str:
        return f"{self.origin[:16]}+{self.step}"


@dataclass
class RewardModel:
    """A scorer, its template, and how its raw score becomes a number with a meaning: (raw - centre) / scale.

    Centre and scale are the mean and deviation over answers of the reference policy, measured once and frozen, so that
    a KL weight means the same whatever the head's level. `probes` are token ids with raw scores, checked on loading.
    """

    module: Scorer
    template: Template
    origin: str
    centre: float = 0.0
    scale: float = 1.0
    probes: list[dict[str, Any]] = field(default_factory=list)


def load_policy(folder: Path, device: torch.device) -> Policy:
    raw = read_config(folder)
    require_head(folder, raw)
    config = native_config(folder, raw)
    module: LanguageModel
    if config is None:
        weight_files(folder)  # transformers would go on to look for files of other kinds
        module = load_foreign(folder, raw, device)
    else:
        module = Decoder(config)
        tensors = read_tensors(folder)
        if config.tie_embeddings:
            tensors.pop("lm_head.weight", None)  # some writers store the tied matrix twice
        fill(module, tensors, folder)
    return Policy(module.to(device), fitting_template(folder, module.config), folder_hash(folder))


def load_reward_model(folder: Path, device: torch.device) -> RewardModel:
    """Strict: a missing head or a probe that scores otherwise than when saved is refused."""
    raw = read_config(folder)
    notes = read_json(folder / "bridle_reward.json")
    if not {"centre", "scale", "probes"} <= set(notes):
        raise ModelError(
            f"{folder} has no bridle_reward.json with centre, scale and probes, so its scores have no meaning; "
            "train it with `bridle train reward`"
        )
    config, tensors = native_config(folder, raw), read_tensors(folder)
    if config is None:
        head = tensors.get("score.weight")
        if head is None or len(head) != 1:
            raise ModelError(f"{folder} has no score.weight of one row, so it is no reward model")
        module = Scorer(load_foreign_trunk(folder, raw, device, head.shape[1]))
        module.score.load_state_dict({"weight": head})
    else:
        module = Scorer(Trunk(config))
        fill(module, tensors, folder)
    module.to(device)
    template = fitting_template(folder, module.config)
    model = RewardModel(module, template, folder_hash(folder), notes["centre"], notes["scale"], notes["probes"])
    check_probes(model, folder)
    return model


def fitting_template(folder: Path, config: DecoderConfig | ForeignConfig) -> Template:
    """The folder's template, once no token of it lies outside the model's embeddings."""
    template = load_template(folder)
    entries = template.tokenizer.get_vocab_size()
    if entries > config.vocab_size:
        raise ModelError(
            f"the tokenizer in {folder} has {entries} tokens where the model has embeddings for {config.vocab_size}; "
            "they are not of one model"
        )
    return template


def check_probes(model: RewardModel, folder: Path) -> None:
    device = model.module.score.weight.device
    for probe in model.probes:
        with torch.no_grad():
            ids = torch.tensor([probe["ids"]], device=device)
            score = float(model.module.scores(ids, torch.tensor([ids.shape[1]], device=device)))
        if abs(score - probe["score"]) > 1e-3 * max(1.0, abs(probe["score"])):
            raise ModelError(
                f"the reward model in {folder} scores a saved probe {score:.4f} where {probe['score']:.4f} was saved; "
                "its weights or head are not the ones that were trained"
            )


def save_policy(folder: Path, policy: Policy) -> str:
    """Write the whole folder at once and return its content hash."""
    raw = policy.module.config.to_huggingface()
    with whole_folder(folder) as new:
        write_model(new, policy.module, raw, policy.template)
    return folder_hash(folder)


def save_reward_model(folder: Path, model: RewardModel) -> str:
    raw = model.module.config.to_huggingface()
    if isinstance(model.module.model, ForeignTrunk):
        name = scorer_architecture(raw["model_type"])
    else:
        name = raw["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
    raw |= {"architectures": [name]} if name else {}
    raw |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    notes = {"centre": model.centre, "scale": model.scale, "temperature": 1.0, "probes": model.probes}
    with whole_folder(folder) as new:
        write_model(new, model.module, raw, model.template)
        (new / "bridle_reward.json").write_text(json.dumps(notes, indent=2), "utf-8")
    return folder_hash(folder)


def write_model(folder: Path, module: LanguageModel | Scorer, raw: dict[str, Any], template: Template) -> None:
    stops = sorted(template.stop_ids)
    raw |= {"eos_token_id": stops[0] if len(stops) == 1 else stops, "pad_token_id": template.pad_id, "dtype": "float32"}
    if template.bos_token:
        raw["bos_token_id"] = template.bos_ids[0]
    (folder / "config.json").write_text(json.dumps(raw, indent=2), "utf-8")
    template.save(folder, module.config.max_positions)
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    if isinstance(module.model, ForeignTrunk):
        tensors = huggingface_tensors(module.model, tensors)
    save_tensors({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")


def read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(
            f"no model folder at {folder}; name one with config.json, model.safetensors and tokenizer.json"
        )
    raw = read_json(folder / "config.json")
    if not raw and (adapter := read_json(folder / "adapter_config.json")):
        raise ModelError(
            f"{folder} is a LoRA adapter of {adapter.get('base_model_name_or_path')!r} and no whole model; merge the two "
            "(peft: merge_and_unload, then save_pretrained with the tokenizer) and name that folder"
        )
    if not raw:
        raise ModelError(f"{folder} has no config.json, so it is no Hugging Face model folder")
    return raw


def require_head(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuse what was saved as another kind of model: a reward model, or a trunk without its language model's head."""
    name = str((raw.get("architectures") or [""])[0])
    if "ForSequenceClassification" in name or "ForTokenClassification" in name:
        raise ModelError(f"{folder} holds a {name}, which scores text and writes none; name a causal language model")
    if name.endswith("Model") and not name.endswith("LMHeadModel") and not raw.get("tie_word_embeddings"):
        raise ModelError(
            f"{folder} holds a {name}, a trunk without a language model's head; save the model whole, with transformers' "
            "AutoModelForCausalLM"
        )


def native_config(folder: Path, raw: Mapping[str, Any]) -> DecoderConfig | None:
    """The native decoder's numbers; None for an architecture or a feature that it does not know."""
    try:
        return DecoderConfig.from_huggingface(raw)
    except UnsupportedModel:
        return None
    except KeyError as error:
        raise ModelError(
            f"{folder / 'config.json'} lacks {error}, which a {raw.get('model_type')} model needs"
        ) from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} holds a value of the wrong type: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    index = read_json(folder / "model.safetensors.index.json")
    paths = [folder / name for name in sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]]
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{folder} lacks {path.name}; bridle reads safetensors only")
    return paths


def read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read (truncated or corrupted?): {error}") from error
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load every tensor or say which one does not fit."""
    expected = module.state_dict()
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(name for name in set(tensors) - set(expected) if not name.endswith("rotary_emb.inv_freq"))
    if missing or extra:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: {len(missing)} missing (such as {missing[:2]}), "
            f"{len(extra)} unknown (such as {extra[:2]})"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise ModelError(
                f"{name} in {folder} has shape {list(tensors[name].shape)} "
                f"where config.json asks for {list(tensor.shape)}"
            )
    module.load_state_dict({name: tensors[name].float() for name in expected})


def folder_hash(folder: Path) -> str:
    """Content hash of what decides a model's answers: configuration, tokenizer, template, weights."""
    names = ["config", "tokenizer", "tokenizer_config", "generation_config", "bridle_reward"]
    files = [folder / f"{n}.json" for n in names] + [
        folder / "chat_template.jinja",
        *sorted(folder.glob("*.safetensors")),
    ]
    return content_hash([[f.name, file_hash(f)] for f in files if f.is_file()])
