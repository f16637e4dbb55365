"""The process that checks what could hang: a task a line on standard input, a verdict a line on standard output.

`began` is written when the imports are done, so that a limit of time counts nothing but the check.
"""

import json
import re
import resource
import sys
from collections.abc import Callable
from typing import Any

from bridle.core.files import strict_json

MEMORY = 2 * 2**30  # bytes of address space
FENCED = re.compile(r"\A\s*```(?:json)?[ \t]*\n(.*)\n```\s*\Z", re.DOTALL)
LONG_NUMBER = re.compile(r"\d{401}")
POWER = re.compile(r"\^\s*\{?\s*-?\s*(\d+)")
WORDS = re.compile(r"[A-Za-z]{2,}")
# Words and commands that a final answer may have though its solution has none: notation, and no work to be done (\\int, \\sum, "or").
NOTATION = frozenset(
    """
    frac dfrac tfrac sqrt pi cdot times left right sin cos tan cot sec csc ln log exp infty alpha beta theta mathrm boxed displaystyle
    """.split()
)


def matches(expected: Any, text: str) -> bool:
    """The whole text is what the regular expression describes."""
    return re.fullmatch(expected, text.strip()) is not None


def follows(expected: Any, text: str) -> bool:
    """The text is JSON, be it in a fence of its own, and follows the schema; references to elsewhere are not followed."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    found = FENCED.match(text)
    try:
        value = strict_json(found[1] if found else text)
    except ValueError:
        return False
    return validator_for(expected)(expected, registry=Registry()).is_valid(value)


def is_schema(expected: Any, text: str) -> bool:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(expected).check_schema(expected)
    except SchemaError:
        return False
    return True


def equals(expected: Any, text: str) -> bool:
    """Two expressions are the same by algebra. The answer may hold no word or command that asks for work, but those of the solution."""
    from math_verify import verify

    if LONG_NUMBER.search(text) or any(len(power) > 3 or int(power) > 400 for power in POWER.findall(text)):
        return False
    if set(WORDS.findall(text)) - NOTATION - set(WORDS.findall(expected)):
        return False
    one, other = expression(expected), expression(text)
    return one is not None and other is not None and bool(verify(one, other, timeout_seconds=None))


def is_expression(expected: Any, text: str) -> bool:
    return expression(expected) is not None


def expression(text: str) -> Any:
    from math_verify import LatexExtractionConfig, parse

    plain = text.strip().removeprefix("$").removesuffix("$")
    found = parse(f"${plain}$", [LatexExtractionConfig()], "no_fallback", "first_match", parsing_timeout=None)
    return found[0] if found and not isinstance(found[0], str) else None


CHECKS: dict[str, Callable[[Any, str], bool]] = {
    "pattern": matches,
    "schema": follows,
    "is_schema": is_schema,
    "symbolic": equals,
    "is_expression": is_expression,
}


def import_for(kind: str) -> None:
    """Read what a check needs, before its time runs."""
    if kind in ("schema", "is_schema"):
        import jsonschema  # noqa: F401
    elif kind in ("symbolic", "is_expression"):
        import math_verify  # noqa: F401


def serve_checks() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is not a verdict
    for line in sys.stdin:
        task = json.loads(line)
        import_for(task["kind"])
        out.write("began\n")
        out.flush()
        try:
            met = CHECKS[task["kind"]](task["expected"], task["text"])
        except Exception:  # an answer can drive a library anywhere; then it did not meet the check
            met = False
        out.write("met\n" if met else "missed\n")
        out.flush()


if __name__ == "__main__":
    serve_checks()
