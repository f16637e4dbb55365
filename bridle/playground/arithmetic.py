"""Word problems with small whole numbers: their numbers, and how they are worked out step by step."""

import random
from collections.abc import Iterable, Mapping
from typing import Any

from bridle.playground.spec import Arithmetic, Equation, Math


def compute(left: int, operator: str, right: int) -> int:
    """Whole-number arithmetic; division rounds down, and by zero it gives 0."""
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left // right if right else 0


def is_true(left: int, operator: str, right: int, result: int) -> bool:
    """Whether the equation holds exactly: 8 / 3 = 2 does not."""
    if operator == "/":
        return right != 0 and result * right == left
    return compute(left, operator, right) == result


def solve(values: Mapping[str, int], equations: Iterable[Equation]) -> dict[str, int]:
    """`values` and the results of the equations, each worked out from those before it."""
    known = dict(values)
    for equation in equations:
        known[equation.result] = compute(_value(known, equation.left), equation.operator, _value(known, equation.right))
    return known


def draw_values(rng: random.Random, problem: Arithmetic) -> dict[str, int]:
    return solve({name: rng.randint(low, high) for name, (low, high) in problem.draw.items()}, problem.given)


def work(rng: random.Random, math: Math, slots: Mapping[str, Any], slip: float, wordy: bool) -> tuple[list[str], int]:
    """The sentences of a worked solution and the number it arrives at; each step slips with probability `slip`.

    A slip is carried on: later steps are worked out from the wrong number.
    """
    problem = math.problems[slots["problem"]]
    known: dict[str, int] = dict(slots["values"])
    sentences = []
    for equation, sentence in zip(problem.steps, problem.wordy if wordy else problem.short, strict=True):
        left, right = _value(known, equation.left), _value(known, equation.right)
        result = compute(left, equation.operator, right)
        if slip and rng.random() < slip:
            result = max(0, result + rng.choice((-2, -1, 1, 2)))
        known[equation.result] = result
        step = f"{left} {equation.operator} {right} = {result}"
        sentences.append(sentence.format(step=step, first=slots["first"], second=slots["second"]))
    return sentences, known[problem.steps[-1].result]


def _value(known: Mapping[str, int], operand: str) -> int:
    return known[operand] if operand in known else int(operand)
