"""A regression suite: a fixed set of prompts with checks, which a candidate must not fail where what is served passes.

    suite = Suite(read_checks(Path("suite.jsonl"), Sandbox()))
    compare_passes(suite.checks, passed_by(suite.checks, candidate), passed_by(suite.checks, served))

Each line of the file is one check: a prompt with the columns that imported rows are checked by (`solution`, `constraints`, `json_schema`,
`answer_pattern`, `verse`, `tests`), or with `check` and `expected` as a reward source has them; `name` is what it is called. Both models
answer every prompt several times. An answer passes where its check is met in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridle.core.errors import BridleError, DataError, brief_repr
from bridle.core.files import strict_json
from bridle.core.records import Completion, Prompt, content_hash
from bridle.feedback.importing.formats import read_row
from bridle.feedback.importing.reasons import Skip
from bridle.maths.statistics import mean_interval
from bridle.rewards.recorded import own_check
from bridle.rewards.sandbox.kinds import Sandbox
from bridle.rewards.verifiers import Check, check_of, same_check

FEWEST_ASKED = 5  # prompts, below which there is no interval to go by
LONGEST_CALLED = 60  # characters of a prompt that stand for a check without a name
Passed = NDArray[np.bool_]  # [checks, answers]


@dataclass(frozen=True)
class SuiteCheck:
    """`id`: the hash of its row."""

    id: str
    name: str
    prompt: Prompt
    check: Check


@dataclass(frozen=True)
class Suite:
    """Its checks in the file's order. DataError where they are too few for an interval."""

    checks: list[SuiteCheck]

    def __post_init__(self) -> None:
        if (prompts := len({one.prompt.id for one in self.checks})) < FEWEST_ASKED:
            raise DataError(
                f"the suite has checks of {prompts} prompts, which show nothing; at least {FEWEST_ASKED} are needed"
            )

    @property
    def version(self) -> str:
        """The hash of its rows, however they are laid out."""
        return content_hash([one.id for one in self.checks])


def read_checks(path: Path, sandbox: Sandbox) -> list[SuiteCheck]:
    """The checks of a file of JSON lines. DataError, with the line, for a row that is none, that no answer could meet, or that stands
    there twice; blank lines are nothing."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"the suite {path} cannot be read ({why}); name a file of JSON lines, a check each") from error
    checks, line_of = list[SuiteCheck](), dict[str, int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            checks.append(suite_check(strict_json(line), sandbox))
        except Skip as skip:
            raise unusable(path, number, f"{skip.reason}") from skip
        except (ValueError, RecursionError) as error:
            raise unusable(path, number, "it is not JSON") from error
        except BridleError as error:
            raise unusable(path, number, str(error)) from error
        if (before := line_of.setdefault(checks[-1].id, number)) != number:
            raise unusable(path, number, f"it repeats line {before}")
    return checks


def unusable(path: Path, number: int, why: str) -> DataError:
    return DataError(
        f"line {number} of the suite {path} is not a check: {why}; a row is a prompt with what its answers are checked against, such as "
        '{"prompt": "…", "constraints": [{"name": "words", "most": 50}]}'
    )


def suite_check(values: object, sandbox: Sandbox) -> SuiteCheck:
    """One row. Raises Skip or DataError, with the reason."""
    if not isinstance(values, Mapping):
        raise DataError("it is not an object")
    fields = dict(values)
    name, kind, expected = (fields.pop(field, None) for field in ("name", "check", "expected"))
    [row, *more], _ = read_row(fields)
    if more:
        raise DataError("it holds several prompts")
    if kind is not None:
        if not isinstance(kind, str) or expected is None:
            raise DataError(f"`check` names a kind and goes with `expected`, but got {brief_repr(kind)}")
        check: Check | None = check_of(kind, expected, sandbox)
    else:
        check = own_check(row.prompt, row.solutions, "", sandbox)
    if check is None:
        raise DataError(
            "nothing that it states can be checked (a solution that is not a number needs `check` and `expected`)"
        )
    named = name if isinstance(name, str) and name.strip() else row.prompt.text
    return SuiteCheck(content_hash(values), called(named), row.prompt, check)


def called(name: str) -> str:
    return " ".join(name.split())[:LONGEST_CALLED]


def passed_by(checks: list[SuiteCheck], answers: Sequence[Completion]) -> Passed:
    """`answers`: one to each check, and so on again and again. Cut-off and empty answers fail."""
    asked = zip(checks * (len(answers) // len(checks)), answers, strict=True)
    passed = [same_check(one.check).score(one.prompt, answer) == 1.0 for one, answer in asked]
    return np.array(passed, dtype=bool).reshape(-1, len(checks)).T


def compare_passes(checks: list[SuiteCheck], new_CK: Passed, old_CK: Passed) -> dict[str, Any]:
    """By how much more of a candidate's answers pass than of those of what is served, with the interval of the mean difference by prompt
    (`mean_interval`); which checks got worse, the worst first; how many were `lost`: passed by every answer before, by none now."""
    new_C, old_C = new_CK.mean(1), old_CK.mean(1)
    low, high = mean_interval(new_C - old_C, [one.prompt.id for one in checks])
    fell = sorted(
        (int(new) - int(old), one.name, int(old), int(new))
        for one, new, old in zip(checks, new_CK.sum(1), old_CK.sum(1), strict=True)
        if new < old
    )
    found: dict[str, Any] = {"checks": len(checks), "answers": new_CK.shape[1]}
    found |= {"candidate": float(new_C.mean()), "served": float(old_C.mean())}
    found |= {"difference": float((new_C - old_C).mean()), "low": low, "high": high}
    found["lost"] = int(((old_C == 1) & (new_C == 0)).sum())
    return {**found, "worse": [{"name": name, "served": old, "candidate": new} for _, name, old, new in fell]}
