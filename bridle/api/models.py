"""Language models and reward models as Python objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from bridle.api.inputs import Text, as_prompts
from bridle.api.objects import folder_of
from bridle.compute.device import Device, choose_device
from bridle.compute.shapes import Shape
from bridle.core.errors import DataError, UsageError
from bridle.core.records import Completion, content_hash
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.contents import lasting_hash
from bridle.models.encoding import DataReport
from bridle.models.files.agreement import outside_note
from bridle.models.files.chat_template import settings_of, stored_settings
from bridle.models.files.export import export_policy, export_reward_model, place_to_save
from bridle.models.files.kinds import is_adapter
from bridle.models.files.source import DTYPES
from bridle.models.lora.adapter import base_weights
from bridle.models.lora.low_rank import merged_copy
from bridle.models.lora.merging import base_of
from bridle.models.lora.policies import load_adapted, save_adapter
from bridle.models.policy import (
    Policy,
    RewardModel,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
    with_exact_base,
)
from bridle.models.sizes import config_shape
from bridle.project.progress import Progress
from bridle.recipe.data import DataSection, FrozenPrecision, SamplingSection
from bridle.recipe.recipe import Recipe
from bridle.rewards.classifier import OWN_UNITS, Classifier, load_classifier
from bridle.rewards.learned import LearnedReward

Result = dict[str, Any]
Rows = TypeVar("Rows")

NEW_TOKENS = SamplingSection().max_new_tokens


@dataclass
class Model:
    """A language model that can be asked, trained and saved. `policy.module` is the network."""

    policy: Policy
    device: Device
    brought: bool = False  # it was somebody's work before it came: settings that are not given are by its size

    def answer(
        self, prompts: Sequence[Text], *, max_new_tokens: int = NEW_TOKENS, temperature: float = 1.0, top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:  # fmt: skip
        """One answer to each prompt; at temperature 0 always the most likely tokens."""
        engine = new_engine(self.device)
        engine.load(self.policy)
        settings = Sampling(max_new_tokens, temperature, top_p)
        return [c.text for c in answer_prompts(engine, self.policy, as_prompts(prompts), settings, seed=seed)]

    @property
    def limit(self) -> int:
        """The longest context, in tokens."""
        return int(self.policy.module.config.max_positions)

    @property
    def parameters(self) -> int:
        """How many weights it has, without those of an adapter."""
        return sum(weight.numel() for weight in base_weights(self.policy.module).values())

    @property
    def shape(self) -> Shape:
        """What decides its memory."""
        return config_shape(self.policy.module.config.to_huggingface(), Path(self.policy.source.place), self.parameters)

    def copy(self) -> Model:
        return Model(replace(self.policy, module=deepcopy(self.policy.module)), self.device, self.brought)

    def merge(self) -> None:
        """Make the adapter a part of the weights: from then on all of them are trained, or a new adapter. Without one nothing changes."""
        policy = self.policy
        if policy.adapter is not None:
            whole = with_exact_base(policy).module
            policy.module, policy.adapter, policy.rounded = merged_copy(whole).to(self.device.torch), None, False
            policy.origin, policy.step = content_hash([policy.stamp, "merged"]), policy.step + 1

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter alone into a new folder, in peft's form. UsageError where there is none, or something lies there."""
        save_adapter(Path(folder), self.policy)

    def save(self, folder: str | Path) -> str:
        """Write a Hugging Face folder in float32, which `load` and transformers read; its content hash."""
        return save_policy(place_to_save(folder), self.policy)

    def export(self, folder: str | Path, *, dtype: str = "") -> Result:
        """Write a Hugging Face folder for others, in "float32", "bfloat16" or "float16", by default each tensor as it came; its content
        hash, and what the logits lose (`largest`, `mean`, over `tokens` of a probe). What is to be trained further is saved instead."""
        return asdict(export_policy(Path(folder), self.policy, dtype))


@dataclass
class ScoreModel:
    """A reward model: called with prompts and answers it gives numbers, in standard deviations of the answers it was centred on. One of
    somebody else's gives its head's own numbers; None where it cannot read an answer."""

    model: RewardModel | Classifier
    device: Device
    metrics: Result

    def __call__(self, prompts: Sequence[Text], answers: Sequence[str]) -> list[float | None]:
        asked = as_prompts(prompts)
        if len(asked) != len(answers):
            raise DataError(f"a reward model scores one answer to each prompt, got {len(asked)} and {len(answers)}")
        written = [Completion(p.id, answer) for p, answer in zip(asked, answers, strict=True)]
        return self.reader(same_tokens=False)(asked, written)

    def reader(self, same_tokens: bool) -> LearnedReward | Classifier:
        """What trainers call."""
        if isinstance(self.model, Classifier):
            return self.model
        return LearnedReward(self.model, self.device, same_tokens)

    @property
    def own(self) -> RewardModel:
        """UsageError where it is somebody else's."""
        if isinstance(self.model, Classifier):
            raise UsageError(
                "a reward model of somebody else's is not written anew; copy its folder, or call save_pretrained of model and tokenizer"
            )
        return self.model

    def save(self, folder: str | Path) -> str:
        """Write the folder that `load_reward` reads; its content hash."""
        return save_reward_model(place_to_save(folder), self.own)

    def export(self, folder: str | Path, *, dtype: str = "") -> Result:
        """As `Model.export`; the loss is in scores."""
        return asdict(export_reward_model(Path(folder), self.own, dtype))


def load(
    model: str | Path | object, tokenizer: object = None, *, adapter: str | Path | None = None, precision: str = "auto",
    template: Mapping[str, Any] | None = None, frozen_precision: str = "float32",
) -> Model:  # fmt: skip
    """A model from a Hugging Face folder or a GGUF file, or from two objects of transformers: a causal language model and its tokenizer,
    which are read as the folder that they would be saved as, and never changed.

    `adapter`: another folder, of an adapter in peft's form, which trainers then train further; a folder that is an adapter itself is
    loaded on the base that it names. It stays with the threads that PyTorch has at this moment. `template`: how its chat template is
    used, by the recipe's names ({"template_kwargs": {"enable_thinking": False}}); else as it was saved with. `frozen_precision`:
    "bfloat16" holds the matrices in two bytes a number, "nf4" those of the layers in half a byte: for a reference, and for what learns by
    adapters alone (docs/models.md).
    """
    if adapter is None and isinstance(model, str | Path) and is_adapter(Path(model)):
        model, adapter = base_of(Path(model)), model
    with folder_of(model, tokenizer) as place:
        chosen = {**asdict(stored_settings(place)), **(template or {})}
        recipe = Recipe().with_settings({f"model.{name}": value for name, value in chosen.items()}, "template")
        device, settings, held = chosen_device(precision), settings_of(recipe.model), held_in(frozen_precision)
        policy = load_policy(place, device.torch, lasting_hash, settings, held)
        if policy.rounded and not (isinstance(model, str | Path) and Path(model).is_dir()):
            raise UsageError(
                f"the weights have more digits than {held}, and no folder of theirs is left to save them exactly from; save the model as "
                "a folder and load that, or leave frozen_precision out"
            )
    for note in [] if isinstance(model, str | Path) else given_notes(policy):
        quiet().say(note)
    return Model(policy if adapter is None else load_adapted(Path(adapter), policy), device, brought=True)


def given_notes(policy: Policy) -> list[str]:
    """What is worth knowing of a model that was given as an object."""
    came = sorted({name for name in policy.source.dtypes.values() if name in DTYPES} - {"F32"})
    notes = (
        [f"its weights came in {' and '.join(came)}: they are trained in float32, and exported as they came"]
        if came
        else []
    )
    if outside := outside_note(policy):
        notes.append(f"{outside}; before it is loaded, model.resize_token_embeddings(len(tokenizer)) gives them one")
    return notes


def load_reward(
    model: str | Path | object, tokenizer: object = None, *, precision: str = "auto", frozen_precision: str = "float32"
) -> ScoreModel:
    """A reward model from the folder that a `ScoreModel` saved, or that `bridle train reward` left; or one of somebody else's, a sequence
    classifier of transformers with one logit, from its folder or as two objects, which are never changed; it scores as transformers.
    `frozen_precision`: "bfloat16" holds the matrices of one of bridle's own in two bytes a number, "nf4" those of its layers in half a
    byte; PPO's critic begins as a copy of one only under an adapter."""
    held = held_in(frozen_precision)
    with folder_of(model, tokenizer, scores=True) as place:
        device = chosen_device(precision)
        if (place / "bridle_reward.json").is_file():
            return ScoreModel(load_reward_model(place, device.torch, lasting_hash, held=held), device, {})
        if held != "float32":
            raise UsageError("a reward model of somebody else's is held in float32; leave frozen_precision out")
        found = ScoreModel(load_classifier(place, device, lasting_hash), device, {})
    quiet().say(f"a reward model of somebody else's: {OWN_UNITS}")
    return found


def held_in(frozen_precision: str) -> FrozenPrecision:
    """RecipeError where it is none. In four bits an adapter alone learns, which is asked for later."""
    return (
        Recipe().with_settings({"model.frozen_precision": frozen_precision, "lora.r": 1}, "load").model.frozen_precision
    )


def chosen_device(precision: str) -> Device:
    return choose_device(precision, threads=torch.get_num_threads())


def quiet() -> Progress:
    """Says what must be said, and not how far it is."""
    return Progress(live=False, every=math.inf)


def new_engine(device: Device) -> Engine:
    return Engine(device.precision, batch_size=256)


def usable(found: tuple[list[Rows], DataReport], of: str = "") -> list[Rows]:
    """The rows that can be used; says what became of the others, and refuses data of which too little can be used. `of`: what they are
    for, where it is not training."""
    rows, report = found
    report.what = f"{of} {report.what}".lstrip()
    for line in report.lines():
        quiet().say(line)
    report.check(DataSection().drop_limit)
    return rows
