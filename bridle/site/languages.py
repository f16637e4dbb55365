"""The words of pages by language: languages/LANG/*.toml, each key under its file's name ("label.skip"). A test holds them equal."""

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

FOLDER = Path(__file__).parent / "languages"
LANGUAGES = {"en": "English", "zh": "中文"}


@cache
def catalogue(language: str) -> MappingProxyType[str, str]:
    words: dict[str, str] = {}
    for file in sorted((FOLDER / language).glob("*.toml")):
        texts = tomllib.loads(file.read_text(encoding="utf-8"))
        words |= {f"{file.stem}.{key}": text for key, text in texts.items()}
    return MappingProxyType(words)


def translate(language: str, key: str, values: Mapping[str, object] = MappingProxyType({})) -> str:
    """A text with its values filled in. Where a number decides, `count` picks "key_one" for 1 if the catalogue has that."""
    words = catalogue(language)
    if values.get("count") == 1 and f"{key}_one" in words:
        key = f"{key}_one"
    return words[key].format_map(values)


def preferred(accept_language: str, wished: Iterable[str | None] = ()) -> str:
    """The first language that somebody wishes and there is; else the one of their browser, else English."""
    for wish in wished:
        if wish in LANGUAGES:
            return wish
    ranked = []
    for place, part in enumerate(accept_language[:1000].split(",")):
        tag, _, quality = part.strip().partition(";q=")
        try:
            ranked.append((-float(quality or 1), place, tag.strip().lower().partition("-")[0]))
        except ValueError:
            continue
    return next((tag for quality, _, tag in sorted(ranked) if tag in LANGUAGES and quality < 0), "en")
