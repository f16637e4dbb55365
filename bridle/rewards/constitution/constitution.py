"""A constitution is a file that people read: principles, each with what is asked of a critic, and of whoever revises (Bai 2022,
arxiv.org/abs/2212.08073, §3).

    name = "Helpful, honest, harmless"
    language = "en"
    nothing = "No changes needed."            # the critique of an answer that is as it should be

    [[principles]]
    name = "no-harm"                          # in reports, and to choose it by
    about = "harmless"                        # any word; ours say helpful, honest or harmless
    critique = "Say in what ways …"           # asked after the answer
    revision = "Write the answer again …"     # asked after the critique

    [[principles.examples]]                   # shown before, as turns of their own; none is needed
    request = "…"
    answer = "…"
    critique = "…"
    revision = "…"

`en.toml` and `zh.toml` beside this file come with bridle. What is not checked: that a model understands what it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from bridle.core.errors import DataError, RecipeError, brief_repr
from bridle.core.files import read_toml
from bridle.core.records import content_hash

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]
Name = Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,60}$")]


class Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkedExample(Written):
    """How it is done, once."""

    request: Words
    answer: Words
    critique: Words
    revision: Words


class Principle(Written):
    name: Name
    about: Name
    critique: Words
    revision: Words
    examples: tuple[WorkedExample, ...] = ()


class Constitution(Written):
    name: Words
    language: Name
    nothing: Words
    principles: Annotated[tuple[Principle, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def principles_have_names_of_their_own(self) -> Constitution:
        names = [principle.name for principle in self.principles]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"two principles are called {twice!r}; give each a name of its own")
        return self

    @property
    def hash(self) -> str:
        """Of all that a model is asked by it."""
        return content_hash(self.model_dump(mode="json"))

    def principle(self, name: str) -> Principle:
        return next(one for one in self.principles if one.name == name)


def shipped_constitution(language: str) -> Path:
    """The one that comes with bridle. RecipeError where there is none in this language."""
    path = Path(__file__).with_name(f"{language}.toml")
    if not path.is_file():
        there = ", ".join(sorted(one.stem for one in path.parent.glob("*.toml")))
        raise RecipeError(
            f"bridle has no constitution in {language[:40]!r}, it has them in {there}; name a file of yours in constitution.file"
        )
    return path


def load_constitution(path: Path) -> Constitution:
    """The constitution of a TOML file. RecipeError: no such file. DataError: not a constitution."""
    try:
        found = read_toml(path)
    except OSError as error:
        raise RecipeError(
            f"the constitution {path} cannot be read ({error.strerror}); name a TOML file in constitution.file"
        ) from error
    except ValueError as error:
        raise DataError(f"the constitution {path} is not valid TOML ({error}); mend it there") from error
    return constitution_of(found, str(path))


def constitution_of(tables: Mapping[str, Any], source: str) -> Constitution:
    """The tables as a constitution; DataError, which names the `source`, where they are none."""
    try:
        return Constitution.model_validate(tables)
    except ValidationError as error:
        raise DataError(f"the constitution {source} is invalid: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = brief_repr(".".join(map(str, fault["loc"])))[1:-1]
    if fault["type"] == "missing":
        return f"it lacks {where}; add it"
    if fault["type"] == "extra_forbidden":
        return f"it has an unknown key {where}; remove it, or see bridle/rewards/constitution/en.toml for those that there are"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where} {message}, got {brief_repr(fault['input'], 60)}" if where else message
