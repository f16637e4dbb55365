"""A function of the user's own as a reward. It is called as it asks to be, which its parameters tell:

reward(prompts, answers)                  lists of the prompts as they were given and of the answers' texts
reward(prompts, answers, solution)        and those columns of the rows that it names, or all of them where it has **columns
reward(completions, **kwargs)             TRL's way, told by the name `completions`: by keyword, with `prompts`, `completion_ids` and
                                          columns; an answer to messages comes as messages
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError, UsageError, described_value
from bridle.core.files import file_hash
from bridle.core.records import Completion, Prompt, content_hash
from bridle.core.text import telling_line
from bridle.recipe.recipe import hint

Function = Callable[..., Any]
TRL = ("prompts", "completions", "completion_ids")  # what its functions are called with, columns apart
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class PromptRows:
    """What a function is shown of a prompt: the prompt as it was given, and the columns of its row, of which `names` are there."""

    given: Callable[[Prompt], Any]
    columns: Callable[[Prompt], Mapping[str, Any]]
    names: Sequence[str]


@dataclass(frozen=True)
class FunctionReward:
    """A function, and the columns that it is called with: `wanted`, by keyword. `keywords`: what of TRL's it is called with; none where
    it takes prompts and answers in this order. `hash`: of the file that it was read from, with its name."""

    function: Function
    rows: PromptRows
    wanted: Sequence[str]
    keywords: Sequence[str] = ()
    hash: str = ""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        found = self.ask(prompts, completions)
        try:
            return [None if score is None else float(score) for score in found]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"the reward function gave {described_value(found)} for {len(completions)} answers, where a list of one number "
                "for each is needed (None where it cannot judge)"
            ) from error

    def ask(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Any:
        given, rows = [self.rows.given(prompt) for prompt in prompts], [self.rows.columns(prompt) for prompt in prompts]
        columns = {name: [row.get(name) for row in rows] for name in self.wanted}
        if not self.keywords:
            return self.function(given, [c.text for c in completions], **columns)
        values = (given, list(map(as_asked, given, completions)), [list(c.token_ids) for c in completions])
        stated = {name: value for name, value in zip(TRL, values, strict=True) if name in self.keywords}
        return self.function(**stated, **columns)


def as_asked(prompt: Any, completion: Completion) -> Any:
    """An answer as TRL gives it: text to a text, a message to messages."""
    return completion.text if isinstance(prompt, str) else [{"role": "assistant", "content": completion.text}]


def function_reward(function: Function, rows: PromptRows, hashed: str = "") -> FunctionReward:
    """UsageError where the function needs what the rows do not have."""
    parameters, name = parameters_of(function), function_name(function)
    named = [one for one in parameters if parameters[one].kind in BY_NAME]
    every = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    keywords = [one for one in TRL if every or one in named] if "completions" in named else []
    taken = TRL if keywords else tuple(parameters)[:2]
    others = [one for one in named if one not in taken]
    needed = [one for one in others if parameters[one].default is inspect.Parameter.empty]
    if missing := [one for one in needed if one not in rows.names]:
        there = f"have {', '.join(rows.names)}" if rows.names else "have nothing"
        raise UsageError(
            f"the reward {name} takes {' and '.join(missing)}, and the rows {there} beside the prompt; give rows with such a column, or "
            "the parameter a default"
        )
    wanted = [one for one in rows.names if every or one in others]
    if clash := [one for one in wanted if one in taken]:
        raise UsageError(
            f"the rows have a column {clash[0]}, and by that name the reward {name} gets what is asked and answered; rename the column"
        )
    return FunctionReward(function, rows, wanted, keywords, hashed)


def parameters_of(function: Function) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # one in C, which says nothing of itself
        return {}


def function_name(function: Any) -> str:
    """A function's name, also of one that was partly called; of another object its class's."""
    inner: Any = function.func if isinstance(function, partial) else function
    return str(inner.__name__ if inspect.isroutine(inner) else type(inner).__name__)


def load_function(place: str) -> tuple[Function, str]:
    """The function that FILE.py:FUNCTION names, and a hash of the file with that name. The file is run, with its folder where Python
    looks for what it imports. UsageError where there is no such function."""
    file, _, name = place.rpartition(":")
    path = Path(file).expanduser().absolute()
    if not file or not name.isidentifier():
        raise UsageError(f"--reward takes FILE.py:FUNCTION, got {place!r}")
    if not path.is_file():
        raise UsageError(f"--reward: there is no file {path}")
    spec = spec_from_file_location(f"bridle_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--reward: {path} is not a Python file; its name must end with .py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it may do anything
        reason = telling_line(str(error))
        raise UsageError(f"--reward: {path} cannot be run: {type(error).__name__}: {reason}") from error
    functions = {key: value for key, value in module.__dict__.items() if inspect.isroutine(value) or key == name}
    if not callable(functions.get(name)):
        raise UsageError(f"--reward: {path} has no function {name!r}; {hint(name, list(functions))}")
    return functions[name], content_hash([file_hash(path), name])
