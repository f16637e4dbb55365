"""Kinds of checks that need a process of their own: regular expressions, JSON schemas, symbolic equality, programs.

Each is a function of what is expected and of the sandbox; it raises DataError where no answer could meet what is expected.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridle.core.errors import DataError, RecipeError, brief_repr
from bridle.core.files import strict_json
from bridle.core.records import CANONICAL
from bridle.rewards.final_answers import answers_differ, final_answer, quantity_of
from bridle.rewards.sandbox.checker import Checker, require_package
from bridle.rewards.sandbox.programs import ProgramLimits, namespaces_fault, program_in, run_program

MOST_TESTS = 1_000
# Written after a program that is tested by calls: it knows the arguments, and never what is to come out.
CALLING = """

import json as _json, sys as _sys
_found = {name}(*_json.loads(_sys.stdin.read()))
_sys.stdout.write("\\n" + _json.dumps(_found) + "\\n")
"""


@dataclass
class Sandbox:
    """What runs checks that could hang, and whether answers may be run as programs."""

    allow_execution: bool = False
    unsafe_execution: bool = False
    seconds: float = 5.0
    checker: Checker = field(default_factory=Checker)

    def __post_init__(self) -> None:
        self.checker.seconds = self.seconds


def pattern_check(expected: Any, sandbox: Sandbox) -> Callable[[str], float]:
    """The whole text, white space at the ends apart, is what the regular expression describes."""
    try:
        re.compile(expected)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise DataError(f"{brief_repr(expected)} is not a regular expression: {error}") from error
    return lambda text: sandbox.checker.met("pattern", expected, text)


def schema_check(expected: Any, sandbox: Sandbox) -> Callable[[str], float]:
    """JSON that follows the schema. A schema that everything follows, or that refers to elsewhere, is refused."""
    if isinstance(expected, str):
        try:
            expected = strict_json(expected)
        except ValueError as error:
            raise DataError(f"the schema {brief_repr(expected)} is not JSON: {error}") from error
    if not isinstance(expected, dict) or not expected:
        raise DataError(
            f"a JSON schema is {brief_repr(expected)}; it must be an object that asks for something, such as {{'type': 'object'}}"
        )
    if elsewhere := [ref for ref in schema_references(expected) if not (isinstance(ref, str) and ref.startswith("#"))]:
        raise DataError(
            f"the schema refers to {brief_repr(elsewhere[0])}; it may refer to itself alone ('#/$defs/…'), for nothing is fetched"
        )
    require_package("jsonschema", "a check by JSON schema")
    if not sandbox.checker.met("is_schema", expected, ""):
        raise DataError(f"{brief_repr(expected)} is not a valid JSON schema")
    return lambda text: sandbox.checker.met("schema", expected, text)


def schema_references(schema_part: Any) -> list[Any]:
    found, waiting = [], [schema_part]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found += [part[key] for key in ("$ref", "$dynamicRef", "$recursiveRef") if isinstance(part.get(key), str)]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def symbolic_check(expected: Any, sandbox: Sandbox) -> Callable[[str], float | None]:
    """The final answer is the same expression by algebra; where the solution is a number, the same number and nothing to be worked out."""
    if isinstance(expected, bool) or not isinstance(expected, str | int | float) or not str(expected).strip():
        raise DataError(f"the expression {brief_repr(expected)} is invalid: must be a text such as 'x^2 + 1'")
    require_package("math_verify", "symbolic equality")
    wanted = final_answer(str(expected)) or str(expected)
    number = quantity_of(wanted)
    if number is None and not sandbox.checker.met("is_expression", wanted, ""):
        raise DataError(f"{brief_repr(expected)} cannot be read as an expression")

    def check(text: str) -> float | None:
        stated = final_answer(text)
        if stated is None:
            return 0.0 if answers_differ(text) else None
        if number is not None:
            return (found := quantity_of(stated)) is not None and found.same(number)
        return sandbox.checker.met("symbolic", wanted, stated)

    return check


def program_check(expected: Any, sandbox: Sandbox) -> Callable[[str], float]:
    """The answer's program passes every test: {input, output}, what it prints for what it reads, lines compared without blanks at their
    ends; or {call, arguments, result}, what its function gives, compared as JSON."""
    if not sandbox.allow_execution:
        raise RecipeError(
            "running answers as programs is off; set allow_execution = true in the [[reward_source]] where that is meant"
        )
    if not sandbox.unsafe_execution and (fault := namespaces_fault()):
        raise RecipeError(fault)
    cases = [test_case(one) for one in (expected if isinstance(expected, list) else [])]
    if not cases or len(cases) > MOST_TESTS:
        raise DataError(
            f"the tests of a program are {brief_repr(expected)}; there must be 1 to {MOST_TESTS}, in a list"
        )
    limits = ProgramLimits(sandbox.seconds)

    def check(text: str) -> float:
        program = program_in(text)
        return program is not None and all(passes(program, *case) for case in cases)

    def passes(program: str, call: str, given: str, wanted: str) -> bool:
        whole = program + CALLING.format(name=call) if call else program
        ran = run_program(whole, given, limits, apart=not sandbox.unsafe_execution)
        found = ran.output.decode("utf-8", "replace")
        return ran.ended == "done" and (canonical(found) if call else plain_output(found)) == wanted

    return check


def test_case(given: Any) -> tuple[str, str, str]:
    """The function that is called, or nothing; what the program reads; what is to come out, as it is compared."""
    keys = set(given) if isinstance(given, dict) else set()
    if (
        keys == {"input", "output"}
        and all(isinstance(part, str) for part in given.values())
        and given["output"].strip()
    ):
        return "", given["input"], plain_output(given["output"])
    named = (
        isinstance(given.get("call"), str) and given["call"].isidentifier()
        if keys == {"call", "arguments", "result"}
        else False
    )
    if named and isinstance(given["arguments"], list) and given["result"] is not None:
        return given["call"], CANONICAL.encode(given["arguments"]), CANONICAL.encode(given["result"])
    raise DataError(
        f"the test {brief_repr(given)} is invalid: must be {{input, output}}, two texts of which the second says something, or {{call, "
        "arguments, result}, a function's name, a list and a value"
    )


def plain_output(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def canonical(output: str) -> str:
    """The last line as JSON in one spelling, so that true is not 1; empty where it is none."""
    lines = output.strip().splitlines()
    try:
        return CANONICAL.encode(strict_json(lines[-1])) if lines else ""
    except ValueError:
        return ""


SANDBOXED: Mapping[str, Callable[[Any, Sandbox], Callable[[str], float | None]]] = {
    "pattern": pattern_check,
    "schema": schema_check,
    "symbolic": symbolic_check,
    "tests": program_check,
}
