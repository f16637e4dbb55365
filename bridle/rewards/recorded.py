"""What the answers to imported prompts are checked against: solutions as their rows state them, and checks in columns of their own.

A solution is a text: a number or a worked answer that ends in one, or `{"check": KIND, "expected": …}`, as the importer writes the columns
`constraints`, `json_schema`, `answer_pattern`, `tests` and `verse`. All that a prompt's row asks for has to be met.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bridle.core.errors import DataError, RecipeError, brief_repr
from bridle.core.records import Prompt
from bridle.recipe.online import RewardSource
from bridle.rewards.sandbox.kinds import Sandbox
from bridle.rewards.verifiers import GSM8K, Check, all_of, check_of, number_is, solution_number

TEXTUAL = ("answer", "exact", "choice", "symbolic")  # kinds that a plain solution can be checked by


def check_in(text: str) -> tuple[str, Any] | None:
    """The kind and what is expected, of a solution that is a check; None of a plain one."""
    if not text.startswith('{"check":'):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (found["check"], found["expected"]) if found.keys() == {"check", "expected"} else None


def sandbox_of(source: RewardSource | None) -> Sandbox:
    if source is None:
        return Sandbox()
    return Sandbox(source.allow_execution, source.unsafe_execution, source.check_seconds)


def fixed_check(source: RewardSource) -> Check:
    """The check of a source that expects the same of every answer."""
    try:
        return check_of(source.check, source.expected, sandbox_of(source))
    except DataError as error:
        raise RecipeError(f"the reward source {source.name!r} cannot check: {error}") from error


def own_check(prompt: Prompt, solutions: Sequence[str], kind: str, sandbox: Sandbox) -> Check | None:
    """The check of one prompt by what its rows state; None where they state nothing of this kind. An empty kind takes what there is."""
    marked = [found for text in solutions if (found := check_in(text)) is not None]
    plain = [text for text in solutions if check_in(text) is None]
    try:
        if kind:
            column = "constraints" if kind == "constraint_share" else kind
            own = [check_of(kind, expected, sandbox) for found, expected in marked if found == column]
            if plain and kind in TEXTUAL:
                own.append(check_of(kind, plain[0], sandbox))
        else:
            own = [check_of(found, expected, sandbox) for found, expected in marked]
            own += [number_is(number, GSM8K) for text in plain if (number := solution_number(text)) is not None][:1]
    except DataError as error:
        raise DataError(f"the prompt {brief_repr(prompt.text, 60)} cannot be checked: {error}") from error
    return None if not own else own[0] if len(own) == 1 else all_of(own)


def own_checks(
    solved: Mapping[str, tuple[Prompt, Sequence[str]]], source: RewardSource | None, sandbox: Sandbox
) -> dict[str, Check]:
    """The checks of the prompts that have one, by prompt id. Raises DataError for the first that no answer could meet."""
    kind = source.check if source is not None else ""
    found = {name: own_check(prompt, texts, kind, sandbox) for name, (prompt, texts) in solved.items()}
    return {name: check for name, check in found.items() if check is not None}
