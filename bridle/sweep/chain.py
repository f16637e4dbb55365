"""The stages that end with a method and its evaluation, what of the recipe each reads, and which of them settings have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridle.core.errors import UsageError
from bridle.recipe.recipe import Recipe
from bridle.stages.data import BRANCH
from bridle.stages.evaluate import evaluate
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.revise import revise
from bridle.stages.reward import train_members
from bridle.stages.sample import sample
from bridle.stages.workspace import Work
from bridle.sweep.grid import Setting, folder_name, section_in

EVALUATE = "evaluate-"
ALWAYS = ("world", "model", "data")  # sections that every stage reads, besides:
READS = {
    "pretrain": ("pretrain",),
    "sft": ("sft", "lora"),
    "sample": ("sampling",),
    "label": ("label", "sampling"),
    "reward": ("reward", "lora", "sampling"),
    "revise": ("constitution", "sampling"),
    "sl-cai": ("constitution", "lora", "sampling"),
    "dpo": ("dpo", "lora", "sampling"),
    "kto": ("kto", "lora", "sampling"),
    "orpo": ("orpo", "lora", "sampling"),
}
# Of a method that learns from its own answers, besides its own.
PRACTISED = ("lora", "sampling", "guard", "reward_source", "judge")
BRANCHED = ("sft", "grpo")  # of the branch that answers which can be checked are practised from
MADE_BY = {"base": "pretrain", BRANCH: "pretrain"}
BEFORE: Mapping[str, tuple[str, ...]] = {
    "pretrain": (),
    "sft": ("pretrain",),
    "sample": ("sft",),
    "label": ("sample",),
    "reward": ("sft",),
    "revise": ("sft",),
    "sl-cai": ("revise",),
}
OTHERS: Mapping[str, Callable[[Work], dict[str, Any]]] = {
    "sample": lambda work: sample(work, reuse=True),
    "label": lambda work: label_simulated(work, reuse=True),
    "reward": lambda work: train_members(work, reuse=True),
    "revise": lambda work: revise(work, reuse=True),
}


@dataclass(frozen=True)
class SweepPart:
    """Stages that some settings, by their numbers, have in common, in a project that begins as a copy of another part's."""

    name: str
    origin: str  # that other part's; empty: it begins new
    stages: tuple[str, ...]
    settings: tuple[int, ...]
    last: bool  # nothing comes after it


def default_metric(recipes: Sequence[Recipe], method: str) -> str:
    """What a sweep that ends with a method goes by. UsageError where nothing measures it on prompts that were held out, or settings are
    measured by different things."""
    if method in ("pretrain", "reward"):
        return {"pretrain": "loss_average", "reward": "pair_accuracy"}[method]
    kinds = {(checked_by_program(recipe, method), recipe.data.source) for recipe in recipes}
    if len(kinds) > 1:
        raise UsageError("these settings are not measured by the same thing; name what to compare by: --metric NAME")
    ((checked, source),) = kinds
    if checked:
        return "accuracy_after"
    if source == "playground":
        return "gold"
    if method == "sft":
        raise UsageError(
            "nothing measures sft on held-out prompts of imported data by a yardstick that all settings share; name what to compare by: "
            "--metric loss_average (its training loss), or sweep a method after it with --method"
        )
    return "proxy"


def practises(recipe: Recipe, method: str) -> bool:
    """Whether it learns from its own answers, by what scores them."""
    return method not in READS or (method == "dpo" and recipe.dpo.online_rounds > 0)


def checked_by_program(recipe: Recipe, method: str) -> bool:
    return practises(recipe, method) and dict(recipe)[METHODS[method].section].scored_by == "verifier"


def chain_to(recipes: Sequence[Recipe], method: str, metric: str) -> tuple[str, ...]:
    """The stages that any of the recipes needs, in their order, the method's and its evaluation last. A language model is evaluated; the
    metrics of a base and of a reward model are those of its own run."""
    last = method if method in ("pretrain", "reward") else f"{EVALUATE}{method}"
    return tuple(dict.fromkeys(before_and(last, recipes, metric, ())))


def before_and(name: str, recipes: Sequence[Recipe], metric: str, below: tuple[str, ...]) -> Iterator[str]:
    if name in below:
        raise UsageError(
            f"{name} begins from, or is held to, a model that is made from its own; name another as its start or its reference"
        )
    for earlier in dict.fromkeys(stage for recipe in recipes for stage in needed(name, recipe, metric)):
        yield from before_and(earlier, recipes, metric, (*below, name))
    if name != "pretrain" or not recipes[0].model.path:  # the user's is the base by itself
        yield name


def needed(name: str, recipe: Recipe, metric: str) -> list[str]:
    """The stages that one reads from directly."""
    if name.startswith(EVALUATE):
        return [*(["reward"] if metric == "proxy" else []), name.removeprefix(EVALUATE)]
    people = ["label"] if recipe.data.source == "playground" else []  # elsewhere the store holds what people said
    if name in BEFORE:
        return [*BEFORE[name], *(people if name == "reward" else [])]
    config, own = dict(recipe)[METHODS[name].section], practises(recipe, name)
    usual = BRANCH if checked_by_program(recipe, name) and people else "sft"
    held_to = dict(config).get("reference")  # ORPO has none
    models = dict.fromkeys((config.start or usual, held_to or config.start or usual))
    found = [made for model in models if (made := MADE_BY.get(model, model)) in METHODS]
    learned = [source for source in recipe.reward_source if source.kind == "learned" and not source.path]
    if own and config.scored_by == "reward" and (learned or not recipe.reward_source):
        found.append("reward")
    return [*found, *([] if own else people)]


def brought_models(recipes: Sequence[Recipe], chain: Sequence[str]) -> list[str]:
    """Models of the project that a stage names and none makes; with a model of the user's its base too."""
    configs = [
        dict(recipe)[METHODS[name].section].model_dump() for recipe in recipes for name in chain if name in METHODS
    ]
    named = {config.get(role) for config in configs for role in ("start", "reference")}
    return sorted(named - {"", None, *MADE_BY, *METHODS}) + (["base"] if recipes[0].model.path else [])


def read_by(recipes: Sequence[Recipe], name: str) -> set[str]:
    """The sections of the recipe that a stage reads."""
    if name.startswith(EVALUATE):
        return {*ALWAYS, "sampling"}
    found = {*ALWAYS, *READS.get(name, ())}
    for recipe in recipes if name in METHODS else ():
        if practises(recipe, name):
            section = METHODS[name].section
            branched = checked_by_program(recipe, name) or dict(recipe)[section].start == BRANCH
            found |= {section, *PRACTISED, *(BRANCHED if branched else ())}
    return found


def sweep_parts(reads: Mapping[str, set[str]], chain: Sequence[str], settings: Sequence[Setting]) -> list[SweepPart]:
    """The projects of one seed, each after the one that it begins from: stages are done once for all settings that differ in nothing that
    they, or those before them, read, by the sections that each `reads`."""
    parts = list[SweepPart]()

    def values(number: int, end: int) -> dict[str, Any]:
        """What a setting says to the stages before `end`."""
        read = {section for name in chain[:end] for section in reads[name]}
        return {key: value for key, value in settings[number].items() if section_in(key) in read}

    def split(group: Sequence[int], origin: str, begin: int) -> None:
        first, end = group[0], begin
        while end < len(chain) and all(values(one, end + 1) == values(first, end + 1) for one in group):
            end += 1
        last = end == len(chain)
        if end > begin:
            name = folder_name("" if last else f"up-to-{chain[end - 1]}", values(first, end))
            parts.append(SweepPart(name, origin, tuple(chain[begin:end]), tuple(group), last))
            origin = name
        if not last:
            for one in grouped(group, lambda number: values(number, end + 1)):
                split(one, origin, end)

    split(range(len(settings)), "", 0)
    return parts


def grouped(numbers: Sequence[int], by: Callable[[int], Any]) -> list[list[int]]:
    """Those that are alike together, in the order of the first of each."""
    groups = list[list[int]]()
    for number in numbers:
        group = next((found for found in groups if by(found[0]) == by(number)), None)
        groups.append([number]) if group is None else group.append(number)
    return groups


def require_read(reads: Mapping[str, set[str]], settings: Sequence[Setting]) -> None:
    """UsageError for a setting that no stage reads: all its values would give the same."""
    read = {section for found in reads.values() for section in found}
    for key in dict.fromkeys(key for setting in settings for key in setting):
        if section_in(key) not in read:
            raise UsageError(
                f"{key} is read by none of {', '.join(reads)}, so all its values would give the same; sweep a setting of "
                f"[{'], ['.join(sorted(read))}], or end with another method by --method"
            )


def run_stage(work: Work, name: str, taught: bool) -> dict[str, Any]:
    """Do a stage, or take what is finished. `taught`: SFT is trained also where the user's model answers already."""
    if name.startswith(EVALUATE):
        return evaluate(work, name.removeprefix(EVALUATE), reuse=True)
    if name == "sft" and work.recipe.model.path and not taught:
        work.find_base()
        if work.project.shares_base(work.project.model("sft")):
            return {}
    if name in OTHERS:
        return OTHERS[name](work)
    return METHODS[name].train(work, reuse=True)
