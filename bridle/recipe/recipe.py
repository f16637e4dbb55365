"""The recipe: every setting of a run, validated and frozen. `bridle.toml` holds it, each run keeps the one it ran with.

An unknown key is an error that names the nearest one; no setting is changed behind the user's back. An error says where the value came
from: a file's path, `--set`, or the function that was called.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from bridle.core.errors import RecipeError, brief_repr
from bridle.core.files import read_toml, reading_fault
from bridle.core.records import content_hash
from bridle.recipe.base import Section, TrainerSection, name_of_function
from bridle.recipe.constitution import ConstitutionSection
from bridle.recipe.data import DataSection, LoRASection, ModelSection, SamplingSection, WorldSection
from bridle.recipe.offline import DPOSection, KTOSection, ORPOSection, PretrainSection, RewardSection, SFTSection
from bridle.recipe.online import (
    GRPOSection,
    PPOSection,
    REBELSection,
    RejectionSection,
    RewardSource,
    RLOOSection,
    RolloutSection,
)
from bridle.recipe.services import JudgeSection, LabelSection, LoopSection, ScaleSection, ServeSection
from bridle.recipe.watching import GuardSection, TrackSection

# A run's key holds a hash of its settings. Three kinds stay out of it, so that the key of a run made earlier is found again.
NAMES_OF_MODELS = ("start", "reference")  # what they name is among the run's parents, by content hash
WITHOUT_EFFECT = ("checkpoint_activations", "offload_optimizer")  # on any number: a run may be resumed with another
MOST_PROBLEMS = 5  # of one recipe that are told
# Methods whose section has another name.
CALLED = {"best-of-n": "rejection", "sl-cai": "constitution"}
# Newer than some runs: in the hash only where they differ from their default. The first are every trainer's.
ADDED_TO_TRAINERS = ("schedule", "warmup", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "micro_tokens")
ADDED_TO_CHECKED = ("heldout_answers", "filter_answers", "min_right", "max_right")
ADDED_TO_GUARD = (
    "stop_cut_off", "audits", "audit_every", "audit_size", "audit_share", "audit_sure", "keep_audited", "on_audit", "on_refusals",
    "max_refusals_rise", "on_repeats", "max_repeats_rise", "on_sameness", "min_distinct_share", "on_length", "max_length_ratio",
    "on_entropy", "min_entropy_share", "on_disagreement", "max_disagreement_ratio", "on_kl", "max_kl",
)  # fmt: skip
ADDED_LATER = {
    "reward_source": ("check", "expected", "unparsed", "check_seconds", "allow_execution", "unsafe_execution"),
    "model": ("template_date", "template_kwargs", "fold_system", "frozen_precision"),
    "reward": (*ADDED_TO_TRAINERS, "tasks", "style_control", "bootstrap"),
    **dict.fromkeys(("pretrain", "sft", "rebel"), ADDED_TO_TRAINERS),
    "grpo": (*ADDED_TO_TRAINERS, *ADDED_TO_CHECKED, "surrogate", "normalise"),
    "rloo": (*ADDED_TO_TRAINERS, *ADDED_TO_CHECKED),
    "rejection": (*ADDED_TO_TRAINERS, "heldout_answers"),
    "data": ("imitate", "reliability", "sources", "mixture"),
    "dpo": (*ADDED_TO_TRAINERS, "gamma"),
    "ppo": (*ADDED_TO_TRAINERS, "scored_by", "normalise_returns"),
    **dict.fromkeys(("kto", "orpo", "constitution"), ("micro_tokens",)),
    "guard": ("max_answer_gap", "changed_models", "other_arithmetic", *ADDED_TO_GUARD),
}


class Recipe(Section):
    """All sections; each default is the playground's."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """random seed"""
    world: WorldSection = Field(default_factory=WorldSection)
    model: ModelSection = Field(default_factory=ModelSection)
    lora: LoRASection = Field(default_factory=LoRASection)
    data: DataSection = Field(default_factory=DataSection)
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    pretrain: PretrainSection = Field(default_factory=PretrainSection)
    sft: SFTSection = Field(default_factory=SFTSection)
    reward: RewardSection = Field(default_factory=RewardSection)
    ppo: PPOSection = Field(default_factory=PPOSection)
    dpo: DPOSection = Field(default_factory=DPOSection)
    kto: KTOSection = Field(default_factory=KTOSection)
    orpo: ORPOSection = Field(default_factory=ORPOSection)
    grpo: GRPOSection = Field(default_factory=GRPOSection)
    rloo: RLOOSection = Field(default_factory=RLOOSection)
    rebel: REBELSection = Field(default_factory=REBELSection)
    rejection: RejectionSection = Field(default_factory=RejectionSection)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    constitution: ConstitutionSection = Field(default_factory=ConstitutionSection)
    guard: GuardSection = Field(default_factory=GuardSection)
    track: TrackSection = Field(default_factory=TrackSection)
    label: LabelSection = Field(default_factory=LabelSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    loop: LoopSection = Field(default_factory=LoopSection)
    serve: ServeSection = Field(default_factory=ServeSection)
    scale: ScaleSection = Field(default_factory=ScaleSection)
    reward_source: list[RewardSource] = Field(default_factory=list, max_length=100)

    @model_validator(mode="after")
    def sources_have_names_of_their_own(self) -> Recipe:
        names = [source.name for source in self.reward_source]
        if len(set(names)) < len(names):
            raise ValueError(f"reward sources are called {', '.join(names)}; give each a name of its own")
        return self

    @model_validator(mode="after")
    def what_needs_an_adapter_has_one(self) -> Recipe:
        if self.model.frozen_precision == "nf4" and not self.lora.on:
            raise ValueError(
                "model.frozen_precision = 'nf4' holds a base in four bits a number, on which an adapter alone can learn, and lora.r is 0; "
                "set lora.r, 16 is usual, or frozen_precision to 'bfloat16'"
            )
        if self.rollout.endpoint and not self.lora.on:
            raise ValueError(
                "rollout.endpoint is handed an adapter before each rollout, and lora.r is 0; set lora.r, 16 is usual, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def answers_have_one_source(self) -> Recipe:
        rollout = self.rollout
        if rollout.staleness and not rollout.workers:
            raise ValueError(
                f"rollout.staleness = {rollout.staleness} needs others that answer while the policy learns, and rollout.workers is 0; set "
                "rollout.workers, or staleness to 0"
            )
        if rollout.workers and rollout.endpoint:
            raise ValueError(
                f"rollout.workers = {rollout.workers} and rollout.endpoint would both answer; leave one of them out"
            )
        if rollout.workers and self.model.frozen_precision == "nf4":
            raise ValueError(
                f"rollout.workers = {rollout.workers} are sent the weights, and model.frozen_precision = 'nf4' holds them in a form that "
                "one process alone can read; set it to 'bfloat16', or rollout.workers to 0"
            )
        return self

    def hash_of(self, *sections: str) -> str:
        """Content hash of the seed and some sections: what a stage depends on, and no more. With a trainer's goes the adapter, if any."""
        whole, adapts = self.model_dump(mode="json"), self.lora.on and any(map(takes_adapter, sections))
        names, own = (*sections, "lora") if adapts else sections, dict(self)
        found = {name: hashed(name, whole[name]) for name in names}
        for name in names:
            if isinstance(own[name], TrainerSection) and own[name].brought:
                found[name]["brought"] = {kind: name_of_function(one) for kind, one in own[name].brought.items()}
        return content_hash([self.seed, found])

    def with_settings(self, settings: Mapping[str, Any], source: str = "--set") -> Recipe:
        """A copy with dotted keys replaced: {"ppo.kl_coef": 0.2}. The values are validated like a file's; `source` is what an error
        says they came from."""
        raw = self.model_dump(mode="json")
        for dotted, value in settings.items():
            put(raw, dotted, value, source)
        return parse(raw, source)


def hashed(name: str, section: Any) -> Any:
    """A dumped section without the settings that stay out of the hash."""
    if not isinstance(section, dict):  # the list of reward sources
        return [stated_source(source) for source in section]
    fields = sections()[name].model_fields
    defaults = {key: fields[key].get_default(call_default_factory=True) for key in ADDED_LATER.get(name, ())}
    return {
        key: value
        for key, value in section.items()
        if key not in (*NAMES_OF_MODELS, *WITHOUT_EFFECT) and not (key in defaults and value == defaults[key])
    }


def takes_adapter(name: str) -> bool:
    """Whether a section is of a trainer that begins from weights, which it may leave as they are."""
    return name != "pretrain" and issubclass(sections().get(name, Section), TrainerSection)


def require_adamw(recipe: Recipe, name: str) -> None:
    """RecipeError where the section of a trainer that trains an adapter has another optimiser: Muon's rates are of whole matrices."""
    section = dict(recipe)[name]
    if isinstance(section, TrainerSection) and section.optimizer != "adamw":
        raise RecipeError(
            f"{name}.optimizer = {section.optimizer!r} is for whole matrices, and an adapter is trained by adamw; set {name}.optimizer = "
            f"'adamw', and {name}.learning_rate to one of an adapter's, from 1e-4 to 1e-3"
        )


def stated_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped source of reward without the newer settings that it leaves at their default."""
    newer = {name: RewardSource.model_fields[name].default for name in ADDED_LATER["reward_source"]}
    return {key: value for key, value in source.items() if key not in newer or value != newer[key]}


def trained_names() -> list[str]:
    """What `bridle train` trains, as the sections stand: the names that the table of methods has, for those who must not load it."""
    trained = [name for name, section in sections().items() if issubclass(section, TrainerSection)]
    called = {section: method for method, section in CALLED.items()}
    return [called.get(name, name) for name in trained]


def load_recipe(path: Path) -> Recipe:
    try:
        raw = read_toml(path)
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}; `bridle init DIR` makes a project with one") from error
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    return parse(raw, str(path))


def parse(raw: Mapping[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        # Of a setting that is a number or "auto" pydantic tells of both, and of the number alone would do.
        problems = [p for p in error.errors(include_url=False) if p["loc"][-1:] != ("literal['auto']",)]
        more = f"; and {len(problems) - MOST_PROBLEMS:,} more" if len(problems) > MOST_PROBLEMS else ""
        raise RecipeError("; ".join(explain(dict(p), source) for p in problems[:MOST_PROBLEMS]) + more) from error


def recipe_as_written(path: Path) -> Recipe | None:
    """What a finished run's recipe says, valid now or not, to be shown and never to be run; None where no section of it can be read."""
    try:
        raw = read_toml(path)
    except (OSError, ValueError):
        return None
    read = {
        name: section.model_construct(**raw[name])
        for name, section in sections().items()
        if isinstance(raw.get(name), dict)
    }
    seed = {"seed": raw["seed"]} if "seed" in raw else {}
    return Recipe.model_construct(None, **read, **seed) if read else None


def explain(problem: Mapping[str, Any], source: str) -> str:
    """One sentence for one of pydantic's problems."""
    where: Sequence[Any] = problem["loc"]
    or_auto = str(where[-1:]).endswith("float',)")  # what pydantic calls the number's side of such a setting
    where = where[:-1] if or_auto else where
    dotted = ".".join(str(part) for part in where)
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown setting {brief_repr(dotted)}; {setting_hint(where)}"
    if problem["type"] == "missing":
        return f"{source}: {dotted} is missing, and it has no default"
    if problem["type"] == "model_type":
        return f"{source}: {dotted} = {brief_repr(problem['input'])} is invalid: must be a section of settings"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":  # settings that do not go together
        return f"{source}: {f'[{dotted}]' if dotted else 'the recipe'} is invalid: {message}"
    message = re.sub(r"^(Input|String) should ", "must ", message)
    return f"{source}: {dotted} = {brief_repr(problem['input'])} is invalid: {message}{', or auto' if or_auto else ''}"


def hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def setting_hint(where: Sequence[Any]) -> str:
    """Where an unknown name may have been meant to stand: in another section, or misspelt in this one, or in any where none is named."""
    name, here = str(where[-1])[:100], known_keys(where[:-1])
    if found := in_sections(name):
        return f"{'it belongs to a section' if len(where) == 1 else 'other sections have it'}: {found}"
    anywhere = {key for section in sections().values() for key in section.model_fields} if len(where) == 1 else ()
    near = difflib.get_close_matches(name, [*here, *sorted(anywhere)], 1)
    return f"did you mean {in_sections(near[0])}?" if near and near[0] not in here else hint(name, here)


def in_sections(name: str) -> str:
    """A setting with each section that has it: "ppo.kl_coef, grpo.kl_coef"; empty where none has."""
    return ", ".join(f"{section}.{name}" for section, model in sections().items() if name in model.model_fields)


def known_keys(where: Sequence[Any]) -> list[str]:
    fields = Recipe.model_fields
    for part in where:
        if isinstance(part, int):  # a place in the list of reward sources
            continue
        section = RewardSource if part == "reward_source" else fields[str(part)].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        fields = section.model_fields
    return list(fields)


def put(raw: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    *path, last = dotted.split(".")
    for part in path:
        found = raw.get(part)
        if isinstance(found, list):
            raise RecipeError(f"{source}: {part} is a list; give all of it, as in {part}='[{{name = \"a\", …}}]'")
        if not isinstance(found, dict):
            meant = f"its section is {CALLED[part]!r}" if part in CALLED else hint(part[:100], list(raw))
            raise RecipeError(f"{source}: unknown section {brief_repr(part)} in {brief_repr(dotted)}; {meant}")
        raw = found
    try:
        json.dumps([dotted, value], ensure_ascii=False, skipkeys=True, default=lambda _: None).encode()
    except UnicodeEncodeError as error:  # a path's byte, as Python hands it on
        raise RecipeError(
            f"{source}: {brief_repr(dotted)} = {brief_repr(value)} is invalid: must be UTF-8, as recipes are kept"
        ) from error
    except (ValueError, RecursionError):
        pass  # too large, or nested too deep, to be looked at: no setting takes such a value, and `parse` says so
    section = {} if path else raw.get(last)  # a setting that is a table is given whole
    raw[last] = {**section, **value} if isinstance(section, dict) and isinstance(value, dict) else value


def parse_setting(text: str) -> tuple[str, Any]:
    """`ppo.kl_coef=0.2` → ("ppo.kl_coef", 0.2); the value is read as TOML, or as plain text where that fails."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise RecipeError(f"--set takes section.key=value, got {brief_repr(text)}")
    try:
        return key, one_value(value)
    except tomllib.TOMLDecodeError as error:
        if len(value.splitlines()) > 1:
            raise RecipeError(
                f"--set takes one setting, and the value of {brief_repr(key)} goes on in another line, got {brief_repr(value)}; give "
                '--set once for each setting, and a text with a line end in it in quotes, as "a\\nb"'
            ) from error
        return key, value
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"--set: the value of {brief_repr(key)} cannot be read: {reading_fault(error)}") from error


def one_value(text: str) -> Any:
    """A TOML value; TOMLDecodeError where the text is none, or more than one: another key, or a comment, would be left out."""
    found = tomllib.loads(f"value = [{text}]")  # a comment would hide the bracket
    if list(found) != ["value"] or len(found["value"]) != 1 or text.endswith(","):
        raise tomllib.TOMLDecodeError("not one value")
    return found["value"][0]


def sections() -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found[name] = field.annotation
    return found
