"""How a lesson runs: it asks your function, says what is right, and stops at the first thing that is not, with a sentence."""

import argparse
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

torch.set_default_dtype(torch.float64)  # so that what is exact looks exact

Function = Callable[..., Tensor]


class Wrong(Exception):
    """What is wrong, and where to look."""


def need(holds: bool | Tensor, sentence: str) -> None:
    if not holds:
        raise Wrong(sentence)


def near(got: Tensor | float, right: Tensor | float, within: float = 1e-6) -> bool:
    return bool(((torch.as_tensor(got) - torch.as_tensor(right)).abs() <= within).all())


def ask(function: Function, *inputs: Any, shape: tuple[int, ...]) -> Tensor:
    """What your function answers, if it is a tensor of this shape that holds numbers. It may overwrite what it is given."""
    answer = function(*[each.clone() if isinstance(each, Tensor) else each for each in inputs])
    need(answer is not None, f"{function.__name__} returned None: is its `return` missing?")
    need(
        isinstance(answer, Tensor),
        f"{function.__name__} returned a {type(answer).__name__}; it should be a torch tensor.",
    )
    need(
        tuple(answer.shape) == shape,
        f"{function.__name__} returned a tensor of shape {list(answer.shape)}, where {list(shape)} is needed: over which of the "
        "axes should it sum, or take a mean?",
    )
    odd = answer[~answer.isfinite()]
    need(
        not len(odd),
        f"{function.__name__} returned {odd[:1].tolist()}, which is not a finite number: where is something divided by 0, or the "
        "logarithm of 0 taken?",
    )
    return answer


def slopes(function: Function, *inputs: Any, shape: tuple[int, ...] = ()) -> Tensor:
    """How the sum of your answers changes with each number of the first input: the gradient by it."""
    first = inputs[0].clone().requires_grad_()
    answer = ask(function, first, *inputs[1:], shape=shape)
    sentence = (
        f"What {function.__name__} returns does not change with its first input, so nothing would be learnt: keep to torch's own "
        "operations, without .item(), .detach(), .data or float()."
    )
    need(answer.requires_grad, sentence)
    (found,) = torch.autograd.grad(answer.sum(), first, allow_unused=True)
    need(found is not None, sentence)
    return found


def bars(values: Mapping[str, float], form: str = ".2f", most: float = 0.0) -> str:
    """One line each: a name, a number, and a bar as long as the number is large, of 30 signs at `most` (by default, the largest)."""
    most, widest = most or max(map(abs, values.values())), max(map(len, values))
    lines = [
        f"  {name:<{widest}} {format(value, form):>7}  {('█' if value > 0 else '░') * round(30 * abs(value) / (most or 1))}"
        for name, value in values.items()
    ]
    return "\n".join(lines)


def solution(lesson: str | Path, name: str) -> Function:
    path = Path(lesson).resolve()
    found: Function = runpy.run_path(str(path.parent / "solutions" / path.name))[name]
    return found


def run(
    function: Function, check: Callable[[Function, int], Iterator[str]], picture: Callable[[Function, int], str]
) -> None:
    """What `python docs/course/lesson_N.py` does. Ends the program: 0 where all is right, 1 where something is not."""
    lesson = Path(check.__code__.co_filename)
    parser = argparse.ArgumentParser(description=f"Checks {function.__name__} of {lesson.name} against an exact world.")
    parser.add_argument("--seed", type=int, default=0, help="another world; what is right in one is right in all")
    parser.add_argument("--solution", action="store_true", help=f"check solutions/{lesson.name} in place of yours")
    options = parser.parse_args()
    if options.solution:
        function = solution(lesson, function.__name__)
    try:
        for held in check(function, options.seed):
            print(f"  right: {held}")
        print("\n" + picture(function, options.seed))
        print(
            f"\nAll of it is right. The questions at the top of {lesson.name} have answers in solutions/{lesson.name}."
        )
    except NotImplementedError:
        line = function.__code__.co_firstlineno
        print(
            f"{function.__name__} is still to be filled in: {lesson.name}, line {line}. Write it in the place of `raise`."
        )
        sys.exit(1)
    except Wrong as wrong:
        print(f"  not yet: {wrong}")
        sys.exit(1)
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == function.__name__]
        if not own:
            raise
        print(f"  not yet: line {own[-1].lineno} of {lesson.name} stopped with {type(error).__name__}: {error}")
        sys.exit(1)
    sys.exit(0)
