"""Policies and reward models as folders: Hugging Face's layout in, the same layout out, identity by content hash.

The native decoder takes the shapes that it knows; transformers runs every other causal language model (`foreign.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bridle.compute.checkpoint import save_tensors
from bridle.core.errors import ModelError, UnsupportedModel
from bridle.core.files import file_hash, whole_folder
from bridle.core.records import content_hash
from bridle.core.timeline import timed
from bridle.models import foreign
from bridle.models.batches import REWARD
from bridle.models.decoder import Decoder, DecoderConfig, Trunk
from bridle.models.foreign import LanguageModel
from bridle.models.scorer import Scorer
from bridle.models.template import Template, load_template, read_object


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
class Task:
    """One row of a reward model's head: what it judges, and how its raw number s becomes one with a meaning.

    Centre and scale are the mean and deviation over answers of the reference policy, measured once and frozen, so that
    a KL weight means the same whatever the head's level. The temperature is fitted on held-out judgements.
    """

    name: str = REWARD
    kind: Literal["score", "binary"] = "score"
    centre: float = 0.0
    scale: float = 1.0
    temperature: float = 1.0
    rating_mean: float = 0.0  # of the ratings that it was trained on, if there were any
    rating_sd: float = 1.0

    def reward(self, raw: Tensor) -> Tensor:
        """In deviations of the reference's answers: (s - centre) / scale."""
        return (raw - self.centre) / self.scale

    def probability(self, raw: Tensor) -> Tensor:
        """P(it beats the reference's typical answer) = σ((s - centre) / T); of a binary task P(class 1) = σ(s / T)."""
        return ((raw if self.kind == "binary" else raw - self.centre) / self.temperature).sigmoid()

    def rating(self, raw: Tensor) -> Tensor:
        """In the units of the ratings that it was trained on."""
        return self.rating_mean + self.rating_sd * raw


@dataclass
class RewardModel:
    """A scorer, its template, and a task for each row of its head, which names it and gives its numbers a meaning.

    `probes` are token ids with the raw scores of every row, checked on loading.
    """

    module: Scorer
    template: Template
    origin: str
    tasks: list[Task] = field(default_factory=lambda: [Task()])
    probes: list[dict[str, Any]] = field(default_factory=list)

    def row(self, task: str) -> int:
        """The head's row of a task; the first where none is named."""
        names = [known.name for known in self.tasks]
        if task and task not in names:
            raise ModelError(f"this reward model has no task {task!r}; it judges by {', '.join(names)}")
        return names.index(task) if task else 0


@timed("load")
def load_policy(folder: Path, device: torch.device) -> Policy:
    raw = read_config(folder)
    require_head(folder, raw)
    config = native_config(folder, raw)
    module: LanguageModel
    if config is None:
        weight_files(folder)  # transformers would go on to look for files of other kinds
        module = foreign.load_foreign(folder, raw, device)
    else:
        module = Decoder(config)
        tensors = read_tensors(folder)
        if config.tie_embeddings:
            tensors.pop("lm_head.weight", None)  # some writers store the tied matrix twice
        load_strictly(module, tensors, folder)
    return Policy(module.to(device), fitting_template(folder, module.config), folder_hash(folder))


@timed("load")
def load_reward_model(folder: Path, device: torch.device) -> RewardModel:
    """Strict: a missing head or a probe that scores otherwise than when saved is refused."""
    raw = read_config(folder)
    tasks, probes = read_tasks(folder)
    config, tensors = native_config(folder, raw), read_tensors(folder)
    if config is None:
        head = tensors.get("score.weight")
        if head is None or len(head) != len(tasks):
            raise ModelError(
                f"{folder} has no score.weight with a row for each of {len(tasks)} tasks, so it is not a reward model"
            )
        module = Scorer(foreign.load_foreign_trunk(folder, raw, device, head.shape[1]), len(tasks))
        module.score.load_state_dict({"weight": head})
    else:
        module = Scorer(Trunk(config), len(tasks))
        load_strictly(module, tensors, folder)
    module.to(device)
    model = RewardModel(module, fitting_template(folder, module.config), folder_hash(folder), tasks, probes)
    check_probes(model, folder)
    return model


def read_tasks(folder: Path) -> tuple[list[Task], list[dict[str, Any]]]:
    """The tasks and the probes of `bridle_reward.json`."""
    notes = read_object(folder / "bridle_reward.json")
    try:
        tasks = [Task(**task) for task in notes["tasks"]]
        probes = [{"ids": list(probe["ids"]), "scores": list(probe["scores"])} for probe in notes["probes"]]
    except (KeyError, TypeError):
        tasks, probes = [], []
    if not tasks or any(len(probe["scores"]) != len(tasks) for probe in probes):
        raise ModelError(
            f"{folder} has no bridle_reward.json with tasks (centre, scale, temperature) and probes, so its scores have no "
            "meaning; train it with `bridle train reward`"
        )
    return tasks, probes


def fitting_template(folder: Path, config: DecoderConfig | foreign.ForeignConfig) -> Template:
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
        scores = probe_scores(model.module, probe["ids"], device)
        for task, found, saved in zip(model.tasks, scores, probe["scores"], strict=True):
            if abs(found - saved) > 1e-3 * max(1.0, abs(saved)):
                raise ModelError(
                    f"the reward model in {folder} scores a saved probe {found:.4f} where {saved:.4f} was saved (task "
                    f"{task.name!r}); its weights or head are not the ones that were trained"
                )


@torch.no_grad()
def probe_scores(module: Scorer, ids: Sequence[int], device: torch.device) -> list[float]:
    """Every row's raw score of one sequence."""
    ids_1T = torch.tensor([ids], device=device)
    found: list[float] = module.task_scores(ids_1T, torch.tensor([len(ids)], device=device))[0].tolist()
    return found


@timed("save")
def save_policy(folder: Path, policy: Policy) -> str:
    """Write the whole folder at once and return its content hash."""
    raw = policy.module.config.to_huggingface()
    with whole_folder(folder) as new:
        write_model(new, policy.module, raw, policy.template)
    return folder_hash(folder)


@timed("save")
def save_reward_model(folder: Path, model: RewardModel) -> str:
    raw = model.module.config.to_huggingface()
    if isinstance(model.module.model, foreign.ForeignTrunk):
        name = foreign.scorer_architecture(raw["model_type"])
    else:
        name = raw["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
    raw |= {"architectures": [name]} if name else {}
    binary = all(task.kind == "binary" for task in model.tasks)
    raw |= {
        "num_labels": len(model.tasks),
        "id2label": {str(row): task.name for row, task in enumerate(model.tasks)},
        "label2id": {task.name: row for row, task in enumerate(model.tasks)},
        "problem_type": "multi_label_classification" if binary else "regression",
    }
    notes = {"tasks": [asdict(task) for task in model.tasks], "probes": model.probes}
    with whole_folder(folder) as new:
        write_model(new, model.module, raw, model.template)
        (new / "bridle_reward.json").write_text(json.dumps(notes, indent=2), "utf-8")
    return folder_hash(folder)


def write_model(folder: Path, module: LanguageModel | Scorer, raw: dict[str, Any], template: Template) -> None:
    raw |= {"eos_token_id": template.stop_setting, "pad_token_id": template.pad_id, "dtype": "float32"}
    if template.bos_token:
        raw["bos_token_id"] = template.bos_ids[0]
    (folder / "config.json").write_text(json.dumps(raw, indent=2), "utf-8")
    template.save(folder, module.config.max_positions)
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    if isinstance(module.model, foreign.ForeignTrunk):
        tensors = foreign.huggingface_tensors(module.model, tensors)
    save_tensors({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")


def read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(
            f"no model folder at {folder}; name one with config.json, model.safetensors and tokenizer.json"
        )
    raw = read_object(folder / "config.json")
    if not raw and (adapter := read_object(folder / "adapter_config.json")):
        raise ModelError(
            f"{folder} is a LoRA adapter of {adapter.get('base_model_name_or_path')!r} and not a whole model; merge the two "
            "(peft: merge_and_unload, then save_pretrained with the tokenizer) and name that folder"
        )
    if not raw:
        raise ModelError(f"{folder} has no config.json, so it is not a Hugging Face model folder")
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
    index = read_object(folder / "model.safetensors.index.json")
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


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
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
    others = [folder / "chat_template.jinja", *sorted(folder.glob("*.safetensors"))]
    files = [folder / f"{name}.json" for name in names] + others
    return content_hash([[f.name, file_hash(f)] for f in files if f.is_file()])
