"""The words of pages by language: languages/LANG/*.toml, each key under its file's name ("label.skip"). A test holds them equal.

What errors say is English where it is raised; languages/errors.LANG.toml has it in another language, by the English sentence with a name
where it differs ("there is no file {path}"). A test finds each error that a page can show there.
"""

import re
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


@cache
def error_sentences(language: str) -> list[tuple[re.Pattern[str], str]]:
    """What errors say in English, each with the same in this language; what has most words of its own first."""
    file = FOLDER / f"errors.{language}.toml"
    known = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    ordered = sorted(known, key=lambda english: -len(re.sub(r"{\w+}", "", english)))
    return [(error_pattern(english), known[english]) for english in ordered]


def error_pattern(english: str) -> re.Pattern[str]:
    """What differs ends where the words after it begin, and is not looked for again (`?>`): a long text takes no long time."""
    start, *rest = re.split(r"{(\w+)}", english)
    parts = [f"(?P<{name}>.*?){re.escape(words)}" for name, words in zip(rest[::2], rest[1::2], strict=True)]
    return re.compile(re.escape(start) + "".join(f"(?>{part})" for part in parts[:-1]) + "".join(parts[-1:]), re.DOTALL)


def in_words(language: str, sentence: str) -> str:
    """An error's sentence in a page's language. What differs in it stays as it is, but where it is one itself. English without a
    translation."""
    for pattern, text in error_sentences(language):
        if found := pattern.fullmatch(sentence):
            return text.format_map({name: in_words(language, part) for name, part in found.groupdict().items()})
    return sentence


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
