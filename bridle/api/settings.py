"""The settings that each call takes: those of its sections of the recipe, by keyword. What they are called, mean and are by default is read
there, for whoever calls as for `help`.
"""

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from textwrap import fill, indent
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import torch

from bridle.core.errors import RecipeError, UsageError, described_value
from bridle.recipe.by_size import settings_by_size
from bridle.recipe.documents import meaning_of
from bridle.recipe.recipe import WITHOUT_EFFECT, hint, sections, takes_adapter
from bridle.stages.methods import METHODS

F = TypeVar("F", bound=Callable[..., object])

# Settings that mean something to the stages of a project and nothing here, by section; those of every section under "".
STAGES_ONLY = {
    "": "start reference scored_by heldout_answers filter_answers min_right max_right".split(),
    "reward": """
        path members bootstrap combine uncertainty ties loss tasks style_control
        slim slim_hidden_size slim_layers slim_epochs slim_learning_rate
    """.split(),
    "dpo": ["observe_every"],
    "kto": ["observe_every", "labels"],
    "orpo": ["observe_every"],
    "grpo": "branch_problems branch_demonstrations".split(),
    "model": ["path", "frozen_precision"],  # of load, for it is decided as weights are read
    "lora": ["continued", "shared_trunk"],  # what a model has; and models in memory share what they are on
}
# Settings of [dpo] that `online_dpo` has alone.
ONLINE = frozenset("online_rounds online_prompts online_answers online_reference missing_stop_penalty".split())
INDENT, WIDTH = "    ", 100


@dataclass(frozen=True)
class Call:
    """A call by its method, and which settings it takes: those of the method's section, and of `more`, but for some; those of [lora] as
    lora_r and so on, where it may train an adapter."""

    method: str
    more: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()

    @property
    def section(self) -> str:
        return METHODS[self.method].section

    @cached_property
    def settings(self) -> dict[str, str]:
        """The name of each setting in the recipe, by its name here."""
        taken = dict.fromkeys((self.section, *self.more), "") | (
            {"lora": "lora_"} if takes_adapter(self.section) else {}
        )
        return {
            f"{prefix}{key}": f"{name}.{key}"
            for name, prefix in taken.items()
            for key in sections()[name].model_fields
            if key not in {*STAGES_ONLY[""], *STAGES_ONLY.get(name, ()), *self.without}
        } | {key: f"model.{key}" for key in WITHOUT_EFFECT}

    def dotted(self, given: Mapping[str, object]) -> dict[str, object]:
        """Settings that were given, by their names in the recipe; one that the call does not take is an error that names the nearest."""
        for key in given:
            if key not in self.settings:
                names = "] or [".join((self.section, *self.more))
                raise RecipeError(f"{key!r} is not a setting of [{names}]; {hint(key, list(self.settings))}")
        return {self.settings[key]: value for key, value in given.items()}


CALLS = {
    "pretrain": Call("pretrain", more=("model",)),
    "sft": Call("sft"),
    "reward_model": Call("reward"),
    "dpo": Call("dpo", without=ONLINE),
    "online_dpo": Call("dpo"),
    "best_of_n": Call("best-of-n"),
    **{name: Call(name) for name in ("kto", "orpo", "ppo", "grpo", "rloo", "rebel")},
}


# Settings that may be objects of the caller's, and how they are called; what says more of the named ones has no meaning beside those.
BROUGHT = {
    "optimizer": ("optimizer(parameters, lr=…), as torch.optim.SGD is", "weight_decay adam_beta1 adam_beta2 adam_epsilon".split()),
    "schedule": ("schedule(step, steps), the share of the peak rate", ["warmup"]),
}  # fmt: skip


def own_objects(settings: Mapping[str, object]) -> tuple[dict[str, object], dict[str, Callable[..., Any]]]:
    """A call's settings, and what of them are its own objects. UsageError where one is made for other weights, or where a setting stands
    beside it that it would not heed."""
    brought = dict[str, Callable[..., Any]]()
    for key, value in settings.items():
        if key not in BROUGHT or isinstance(value, str):
            continue
        how, idle = BROUGHT[key]
        if not callable(value) or isinstance(value, torch.optim.Optimizer):
            raise UsageError(
                f"{key} is one of the recipe's names, or what is called as {how}, and {described_value(value)} is neither; an optimiser "
                "or a schedule that was made already belongs to other weights: give its class, or a function that makes it"
            )
        if idle_ones := [name for name in idle if name in settings]:
            raise UsageError(
                f"{idle_ones[0]} belongs to what is named, and {key} is an object of yours; set it there, and leave {idle_ones[0]} out"
            )
        brought[key] = value
    return {key: value for key, value in settings.items() if key not in brought}, brought


# ------------------------------------------------------------------------------------------- what `help` says of them


class BySize:
    """In a signature: a default that follows from the size of a model that was brought, and what it is for one that was made here."""

    def __init__(self, otherwise: object) -> None:
        self.otherwise = otherwise

    def __repr__(self) -> str:
        return f"<by the model's size, or {self.otherwise!r}>"


def with_settings(function: F) -> F:
    """The function itself, with each setting that it takes by keyword in its signature, and in its docstring with type, default and
    meaning."""
    call, plain = CALLS[function.__name__], inspect.signature(function)
    own = [one for one in plain.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    by_size = settings_by_size(10**9, 2048) if "model" in plain.parameters else {}
    where = "] and [".join((call.section, *call.more))
    lines, added = [f"Settings of [{where}], by keyword:"], list[inspect.Parameter]()
    fields = {
        key: (sections()[name], field)
        for key, dotted in call.settings.items()
        for name, _, field in [dotted.partition(".")]
    }
    own_first = sorted(fields, key=lambda key: fields[key][1] not in fields[key][0].__annotations__)
    for key in own_first:
        if key in plain.parameters:
            continue
        section, name = fields[key]
        field = section.model_fields[name]
        usual: object = field.get_default(call_default_factory=True)
        default = BySize(usual) if call.settings[key] in by_size else usual
        kind = plain_type(field.annotation)
        added.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
        words = meaning_of(field) + (f"; or your own, called as {BROUGHT[key][0]}" if key in BROUGHT else "")
        meaning = indent(fill(words, WIDTH, break_on_hyphens=False), INDENT * 2)
        lines += [f"{INDENT}{key}: {type_text(kind)} = {default!r}", meaning]
    function.__signature__ = plain.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    function.__doc__ = f"{inspect.getdoc(function)}\n\n" + "\n".join(lines)
    return function


def plain_type(annotation: Any) -> Any:
    """An annotation without bounds and descriptions."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain_type(inner[0])
    if origin is Union or origin is types.UnionType:
        return reduce(or_, map(plain_type, inner))
    if origin in (list, dict):
        return origin[tuple(map(plain_type, inner))]
    return annotation


def type_text(kind: Any) -> str:
    if get_origin(kind) is Union:
        return " | ".join(map(type_text, get_args(kind)))
    return inspect.formatannotation(kind).replace("typing.", "")
