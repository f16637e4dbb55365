"""What is swept: `ppo.kl_coef=0.05,0.1 ppo.steps=6,12` as settings, every combination of the values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bridle.core.errors import UsageError, brief_repr
from bridle.core.records import content_hash
from bridle.project.names import is_name
from bridle.recipe.recipe import CALLED, parse_setting, trained_names

Setting = Mapping[str, Any]  # values by dotted key; empty: the recipe as it is


def read_words(words: Sequence[str]) -> tuple[Path | None, list[Setting]]:
    """The recipe's file, where one was named, and the settings in the order of the words, the last key's values next to one another."""
    recipes = [word for word in words if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(
            f"a sweep has one recipe, and {', '.join(map(brief_repr, recipes))} were named; what is swept is given as "
            "section.key=a,b,c"
        )
    values = dict[str, list[Any]]()
    for word in words:
        if "=" in word:
            key, found = values_in(word)
            if key in values:
                raise UsageError(f"{key} is given twice; give it once, with all its values")
            values[key] = found
    combined: list[Setting] = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]
    return Path(recipes[0]) if recipes else None, combined


def values_in(word: str) -> tuple[str, list[Any]]:
    """`ppo.kl_coef=0.05,0.1` → ("ppo.kl_coef", [0.05, 0.1]): each as `--set` takes it; a comma in brackets or quotes parts nothing."""
    key, _, text = word.partition("=")
    if key.strip() == "seed":
        raise UsageError("the seeds of a sweep are the recipe's seed and those after it; --seeds says how many")
    try:
        found = parse_setting(f"{key}=[{text}]")[1]
    except UsageError:
        found = None
    if not isinstance(found, list):  # plain words, which are no TOML
        found = [parse_setting(f"{key}={part}")[1] for part in text.split(",")]
    twice = [value for number, value in enumerate(found) if value in found[:number]]
    if twice:
        raise UsageError(f"{key.strip()} is given the value {brief_repr(twice[0])} twice; give each value once")
    return key.strip(), found


def section_in(key: str) -> str:
    return key.partition(".")[0]


def swept_method(settings: Sequence[Setting]) -> str:
    """The method whose section is swept; UsageError where that is none, or several."""
    called = {section: method for method, section in CALLED.items()}
    sections = dict.fromkeys(section_in(key) for setting in settings for key in setting)
    found = [name for section in sections if (name := called.get(section, section)) in trained_names()]
    if len(found) != 1:
        why = f"these are settings of {' and '.join(found)}" if found else "what is swept is in no method's section"
        raise UsageError(f"{why}; name the method that the sweep ends with: --method ppo")
    return found[0]


def setting_name(setting: Setting) -> str:
    """As it is written in tables and, where it may name one, as a folder."""
    return ",".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in setting.items())


def folder_name(what: str, setting: Setting) -> str:
    """`what`: the last stage that is done there, of a part that settings share; empty: a setting's own."""
    name = setting_name(setting) or ("" if what else "as-it-is")
    whole = ",".join(filter(None, [what, name]))
    return whole if is_name(whole) else ",".join(filter(None, [what, content_hash(dict(setting))[:16]]))
