"""Policies and reward models as folders: Hugging Face's layout in, the same layout out, identity by content hash.

The native decoder takes the shapes that it knows; transformers runs every other causal language model (`foreign.py`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from bridle.core.errors import ModelError, UnsupportedModel, brief_repr
from bridle.core.files import read_whole, whole_folder
from bridle.core.timeline import timed
from bridle.models import foreign
from bridle.models.batches import REWARD
from bridle.models.contents import HashFolder, folder_hash, has_content, weight_files
from bridle.models.decoder import Decoder, DecoderConfig, Trunk
from bridle.models.files.chat_template import TemplateSettings
from bridle.models.files.kinds import require_language_model
from bridle.models.files.source import ModelSource, read_source
from bridle.models.files.weights import (
    EMBEDDINGS,
    HEAD,
    read_tensors,
    require_finite,
    require_full,
    require_unquantised,
    with_own_head,
)
from bridle.models.files.writing import (
    WORKING,
    SavedAs,
    causal_architecture,
    config_settings,
    scorer_architecture,
    without_token,
    write_model,
)
from bridle.models.foreign import LanguageModel
from bridle.models.lora.adapter import Adapter
from bridle.models.lora.four_bit import is_four_bit
from bridle.models.lora.frozen import is_narrow, narrow_matrices, with_matrices
from bridle.models.lora.peft_files import scorer_on_base
from bridle.models.scorer import Scorer
from bridle.models.sizes import (
    read_object,
    require_fit,
    require_memory,
    require_numbers,
    require_size,
    stored_shapes,
)
from bridle.models.template import ASKED, Template, load_template
from bridle.recipe.data import FrozenPrecision

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")  # as peft names them


@dataclass
class Policy:
    """A language model with its template. `stamp` names the exact weights: the folder's hash and the steps since."""

    module: LanguageModel
    template: Template
    origin: str  # content hash of the folder it was loaded from, or a name for weights made from nothing
    step: int = 0
    source: ModelSource = field(default_factory=ModelSource, repr=False)
    adapter: Adapter | None = None  # on base weights that do not move
    rounded: bool = False  # its matrices are held in fewer bits than its folder has

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

    def log_odds(self, raw: Tensor) -> Tensor:
        """(s - centre) / T; of a binary task s / T. The difference of two answers' is the log-odds that one beats the other."""
        return (raw if self.kind == "binary" else raw - self.centre) / self.temperature

    def probability(self, raw: Tensor) -> Tensor:
        """P(it beats the reference's typical answer) = σ((s - centre) / T); of a binary task P(class 1) = σ(s / T)."""
        return self.log_odds(raw).sigmoid()

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
    source: ModelSource = field(default_factory=ModelSource, repr=False)
    adapter: Adapter | None = None
    rounded: bool = False

    def row(self, task: str) -> int:
        """The head's row of a task; the first where none is named."""
        names = [known.name for known in self.tasks]
        if task and task not in names:
            raise ModelError(f"this reward model has no task {task!r}; it judges by {', '.join(names)}")
        return names.index(task) if task else 0


@timed("load")
def load_policy(
    folder: Path, device: torch.device, hashed: HashFolder = folder_hash, settings: TemplateSettings | None = None,
    held: FrozenPrecision = "float32",
) -> Policy:  # fmt: skip
    """`hashed` gives the folder's content hash, asked when all was read: a project knows it without reading all again. `settings` of the
    chat template; None: those that the folder was saved with. `held`: how its matrices are; in fewer bits an adapter alone can learn."""
    return read_policy(folder, device, hashed, settings, held)


@read_whole
def read_policy(
    folder: Path, device: torch.device, hashed: HashFolder, settings: TemplateSettings | None, held: FrozenPrecision
) -> Policy:
    raw, narrow = read_config(folder), held != "float32"
    require_head(folder, raw)
    config = native_config(folder, raw)
    module: LanguageModel
    if config is None:
        foreign.require_family(folder, raw)
        stored, template = stored_sizes(folder, raw), load_template(folder, settings)
        module = foreign.load_foreign(folder, raw, device, stored, narrow)
        template = within_embeddings(template, module.config.vocab_size, folder)
    else:
        require_native(config, folder, raw)
        template = within_embeddings(load_template(folder, settings), config.vocab_size, folder)
        tensors = read_tensors(folder)
        module = Decoder(with_own_head(config, tensors))
        load_strictly(module, tensors, folder)
    rounded = narrow and narrow_matrices(module, device, held)
    content = hashed(folder)
    source = replace(read_source(folder), content=content)
    return Policy(module.to(device), template, content, source=source, rounded=rounded)


@timed("load")
def load_reward_model(
    folder: Path, device: torch.device, hashed: HashFolder = folder_hash, settings: TemplateSettings | None = None,
    on_base_of: Policy | None = None, held: FrozenPrecision = "float32",
) -> RewardModel:  # fmt: skip
    """The same of a reward model. `on_base_of`: a policy with an adapter, on whose base weights that of the reward model is put."""
    return read_reward_model(folder, device, hashed, settings, on_base_of, held)


@read_whole
def read_reward_model(
    folder: Path, device: torch.device, hashed: HashFolder, settings: TemplateSettings | None, policy: Policy | None,
    held: FrozenPrecision,
) -> RewardModel:  # fmt: skip
    """Strict: a missing head or a probe that scores otherwise than when saved is refused."""
    raw, narrow = read_config(folder), held != "float32"
    tasks, probes = read_tasks(folder)
    config = native_config(folder, raw)
    if policy is not None:
        module = scorer_on_base(policy.module, policy.adapter, folder, len(tasks))
    elif config is None:
        foreign.require_family(folder, raw)
        stored = stored_sizes(folder, raw)
        head = stored.get("score.weight", [])
        if len(head) != 2 or head[0] != len(tasks):
            raise ModelError(
                f"{folder} has no score.weight with a row for each of {len(tasks)} tasks, so it is not a reward model"
            )
        module = Scorer(foreign.load_foreign_trunk(folder, raw, device, stored), len(tasks))
        head_tensors = {"weight": read_tensors(folder)["score.weight"].float()}
        require_finite([("score.weight", head_tensors["weight"])], folder)
        module.score.load_state_dict(head_tensors)
    else:
        require_native(config, folder, raw, len(tasks))
        module = Scorer(Trunk(config), len(tasks))
        load_strictly(module, read_tensors(folder), folder)
    if policy is not None or not narrow:
        module.to(device)
    require_probes(probes, module.config, folder)
    template = within_embeddings(load_template(folder, settings), module.config.vocab_size, folder)
    if added := read_object(folder / "bridle_reward.json").get("added_pad"):
        template = without_token(template, str(added))
    content = hashed(folder)
    model = RewardModel(module, template, content, tasks, probes, replace(read_source(folder), content=content))
    check_probes(model, folder, 1e-3 if policy is None or not policy.rounded else 1.0 if is_four_bit(module) else 0.1)
    if narrow and policy is None:
        model.rounded = narrow_matrices(module.model, device, held)
    module.to(device)
    return model


def read_tasks(folder: Path) -> tuple[list[Task], list[dict[str, Any]]]:
    """The tasks and the probes of `bridle_reward.json`."""
    path = folder / "bridle_reward.json"
    notes = read_object(path)
    try:
        tasks = [Task(**task) for task in notes["tasks"]]
        probes = [{"ids": list(probe["ids"]), "scores": list(probe["scores"])} for probe in notes["probes"]]
    except (KeyError, TypeError):
        tasks, probes = [], []
    for task in tasks:
        require_task(task, path)
    if not tasks or any(len(probe["scores"]) != len(tasks) for probe in probes):
        raise ModelError(
            f"{folder} has no bridle_reward.json with tasks (centre, scale, temperature) and probes, so its scores have no "
            "meaning; train it with `bridle train reward`"
        )
    return tasks, probes


def require_task(task: Task, path: Path) -> None:
    """ModelError where a task's numbers would make no score of a reward model's raw ones."""
    numbers: dict[str, Any] = {name: value for name, value in asdict(task).items() if name not in ("name", "kind")}
    divisors = ("scale", "temperature")
    for name, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value) or (name in divisors and value <= 0):
            needed = "a finite number above 0" if name in divisors else "a finite number"
            raise ModelError(
                f"{path} says {name} = {brief_repr(value)} of the task {brief_repr(task.name)}, where {needed} is needed"
            )
    if type(task.name) is not str or task.kind not in ("score", "binary"):
        raise ModelError(
            f"{path} names a task {brief_repr(task.name)} of kind {brief_repr(task.kind)}; a kind is 'score' or 'binary'"
        )


def require_probes(
    probes: Sequence[Mapping[str, Any]], config: DecoderConfig | foreign.ForeignConfig, folder: Path
) -> None:
    """ModelError where a probe's tokens are none that the model can read, or its scores no numbers."""
    for probe in probes:
        ids, scores = probe["ids"], probe["scores"]
        known = all(type(i) is int and 0 <= i < config.vocab_size for i in ids)
        if not (
            known
            and 0 < len(ids) <= config.max_positions
            and all(type(s) in (int, float) and math.isfinite(s) for s in scores)
        ):
            raise ModelError(
                f"{folder / 'bridle_reward.json'} holds a probe that the model cannot score: {brief_repr(dict(probe))}; train the reward "
                "model again"
            )


def stored_sizes(folder: Path, raw: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of the weights by their files' headers, once config.json asks for no more than they could be, and for full ones."""
    require_unquantised(folder, raw)
    stored = stored_shapes(weight_files(folder))
    require_size(raw, stored, folder / "config.json")
    return stored


def require_native(config: DecoderConfig, folder: Path, raw: Mapping[str, Any], tasks: int = 0) -> None:
    """ModelError where the native network (with a head for so many tasks) is not that of the weights, or too large for this machine:
    nothing was built yet, and the weights were not read."""
    stored = stored_sizes(folder, raw)
    require_full(weight_files(folder), folder)
    with torch.device("meta"):  # shapes without numbers
        module = Scorer(Trunk(config), tasks) if tasks else Decoder(config)
    expected = shapes_of(module.state_dict())
    if config.tie_embeddings and not tasks and HEAD in stored:  # stored twice, or another than the embeddings
        expected[HEAD] = expected[EMBEDDINGS]
    require_fit(expected, stored, folder)
    require_memory(config.bytes, f"the model in {folder}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def inspect_policy(folder: Path, settings: TemplateSettings | None = None) -> None:
    """Refuse a language model's folder by what can be told of it without its weights: before anything is made of it."""
    raw = read_config(folder)
    require_head(folder, raw)
    config = native_config(folder, raw)
    if config is None:
        foreign.require_family(folder, raw)
        stored_sizes(folder, raw)
    else:
        require_native(config, folder, raw)
    template = load_template(folder, settings)
    if config is not None:
        within_embeddings(template, config.vocab_size, folder)


def within_embeddings(template: Template, vocab_size: int, folder: Path) -> Template:
    """The folder's template, which refuses texts with added tokens that lie outside the model's embeddings (Gemma 3 1B has one, for
    images). ModelError where other tokens do, or where the chat template or the end of an answer needs one."""
    vocabulary = template.tokenizer.get_vocab().values()  # the numbers of its tokens may leave gaps
    outside = frozenset(i for i in vocabulary if i >= vocab_size)
    if outside - template.tokenizer.get_added_tokens_decoder().keys():
        raise ModelError(
            f"the tokenizer in {folder} has {1 + max(outside)} tokens where the model has embeddings for {vocab_size}; "
            "they are not of one model"
        )
    if max(template.stop_ids) >= vocab_size:
        raise ModelError(
            f"{folder} names the stop token {max(template.stop_ids)}, where the model has embeddings for {vocab_size}; correct "
            "eos_token_id in generation_config.json or config.json"
        )
    if not outside:
        return template
    template = replace(template, outside=outside)
    try:
        template.completion_ids([ASKED], [template.turn_end.probe])
    except ModelError as error:
        raise type(error)(f"{folder}: {error}") from error
    return template


def check_probes(model: RewardModel, folder: Path, tolerance: float = 1e-3) -> None:
    device = model.module.score.weight.device
    for probe in model.probes:
        scores = probe_scores(model.module, probe["ids"], device)
        for task, found, saved in zip(model.tasks, scores, probe["scores"], strict=True):
            if not abs(found - saved) <= tolerance * max(1.0, abs(saved)):  # NaN is within nothing
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


Held = TypeVar("Held", bound=Policy | RewardModel)


def with_exact_base(model: Held) -> Held:
    """The model as it is written, all of it in the processor's own memory: base matrices that are held in bfloat16 as their folder has
    them; those in four bits under an adapter as they were when it learnt, unpacked. ModelError where that folder is not there as it was,
    and has digits that memory has not."""
    if not is_narrow(model.module):
        return model
    exact, cpu, (place, content) = None, torch.device("cpu"), (model.source.place, model.source.content)
    if model.rounded and not (model.adapter is not None and is_four_bit(model.module)):
        scores = model.adapter is None and isinstance(model, RewardModel)
        if model.adapter is not None:
            place, content = model.adapter.base, model.adapter.base_hash
        folder = Path(place)
        if not has_content(folder, content):
            raise ModelError(
                f"{place} is not there any more with the content {content[:16]}…, whose weights memory holds in fewer bits, so they "
                "cannot be saved exactly; put it back and resume the run, or begin it anew with model.frozen_precision = 'float32'"
            )
        exact = (load_reward_model(folder, cpu) if scores else load_policy(folder, cpu)).module
    module: Any = with_matrices(model.module, exact)
    found = replace(model, module=module, rounded=False)
    if isinstance(found, RewardModel):
        found.probes = [{**probe, "scores": probe_scores(module, probe["ids"], cpu)} for probe in found.probes]
    return found


@timed("save")
def save_policy(folder: Path, policy: Policy, hashed: HashFolder = folder_hash, form: SavedAs = WORKING) -> str:
    """Write the whole folder at once and return its content hash, which `hashed` gives of the folder before it takes its place: a kill
    leaves no model there whose hash nobody knows."""
    policy = with_exact_base(policy)
    raw, changed = config_settings(policy.module, policy.source), policy.step > 0
    if changed and (name := causal_architecture(policy.module.config)) not in (raw.get("architectures") or []):
        raw["architectures"] = [name]
    with whole_folder(folder) as new:
        write_model(new, policy, raw, form, changed)
        content = hashed(new)
    return content


@timed("save")
def save_reward_model(folder: Path, model: RewardModel, hashed: HashFolder = folder_hash) -> str:
    """The same of a reward model."""
    with whole_folder(folder) as new:
        write_reward_model(new, model)
        content = hashed(new)
    return content


def write_reward_model(folder: Path, model: RewardModel, form: SavedAs = WORKING) -> None:
    """Write a reward model into an empty folder."""
    model = with_exact_base(model)
    binary = all(task.kind == "binary" for task in model.tasks)
    raw = config_settings(model.module, model.source) | {
        "architectures": [scorer_architecture(model.module.config)],
        "num_labels": len(model.tasks),
        "id2label": {str(row): task.name for row, task in enumerate(model.tasks)},
        "label2id": {task.name: row for row, task in enumerate(model.tasks)},
        "problem_type": "multi_label_classification" if binary else "regression",
    }
    write_model(folder, model, raw, form)
    write_notes(folder, model)


def write_notes(folder: Path, model: RewardModel) -> None:
    """What a reward model's numbers mean, beside its files."""
    pad = str(read_object(folder / "tokenizer_config.json").get("pad_token"))
    added = {"added_pad": pad} if model.template.tokenizer.token_to_id(pad) is None else {}
    notes = {"tasks": [asdict(task) for task in model.tasks], "probes": model.probes, **added}
    (folder / "bridle_reward.json").write_text(json.dumps(notes, indent=2), "utf-8")


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
    require_numbers(raw, folder / "config.json")
    refuse_what_lies_elsewhere(folder, raw)
    return raw


def refuse_what_lies_elsewhere(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuse a folder by whose files transformers would take weights or code that bridle does not: what it answers would be another's."""
    if found := [name for name in ADAPTERS if (folder / name).is_file()]:
        raise ModelError(
            f"{folder} holds a whole model and an adapter beside it ({found[0]}), which bridle would leave out; merge the two "
            f"(peft: merge_and_unload), or remove {' and '.join(found)}"
        )
    if "transformers_weights" in raw:
        raise ModelError(
            f"{folder / 'config.json'} says that the weights are in {str(raw['transformers_weights'])[:80]!r} (transformers_weights), and "
            "bridle reads model.safetensors; rename the file, and remove that line"
        )
    if "configuration_files" in raw:
        raise ModelError(
            f"{folder / 'config.json'} says that another file stands in its place for some versions of transformers "
            f"(configuration_files = {brief_repr(raw['configuration_files'])}); remove that line"
        )
    for key in ("attn_implementation", "experts_implementation"):
        if "/" in str(raw.get(key)):
            raise ModelError(
                f"{folder / 'config.json'} wants code from the hub ({key} = {str(raw[key])[:80]!r}), which bridle does not run; "
                "remove that line"
            )


def require_head(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuse what was saved as another kind of model: a reward model, an embedding model, or a trunk without its language model's head."""
    require_language_model(folder, raw)
    named = raw.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
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
        raise ModelError(f"{folder / 'config.json'} holds a value of the wrong type or size: {error}") from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load every tensor or say which one does not fit, or holds what is not a number."""
    expected = module.state_dict()
    require_fit(shapes_of(expected), shapes_of(tensors), folder)
    module.load_state_dict({name: tensors[name].float() for name in expected})
    require_finite(module.named_parameters(), folder)
