"""Constraints that an instruction may set and a program can check: length, counts, words, case, language, form (after IFEval: Zhou 2023,
arxiv.org/abs/2311.07911; written anew, with Chinese in mind, where nothing separates words).

A constraint is a name and arguments, `{"name": "words", "least": 100}`, in a prompt's own column or in the recipe; one that takes none may
be its name alone, `"no_commas"`. A function of CONSTRAINTS is one constraint: a text and its arguments in, whether it is met out. Names and
arguments are validated when they are read. Signs that nobody sees (zero width) are taken out first, and what is counted has to hold a
letter or a digit, so that bare marks do not count for words, bullets or sections.
Not told apart by a program: languages of one script. Not covered: whether an answer is any good; a constraint rewards its letter.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model

from bridle.core.errors import DataError, brief_repr
from bridle.core.files import strict_json

MOST = 10**6  # what `most` is where nothing is said
Count = Annotated[int, Field(ge=0, le=MOST)]
Words = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"\S")]
WordList = Annotated[list[Words], Field(min_length=1, max_length=100)]

UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[\U00020000-\U0003ffff]")
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|\Z)|[。！？…]+[”’」』）]*|\n")
BULLET = re.compile(r"^[ \t]*(?:[-*+•·])[ \t]+(\S.*)$", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*(\d{1,4})[.)、．][ \t]*(\S.*)$", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+\S.*$", re.MULTILINE)
HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,2})(?![\s*])([^*\n]+?)(?<!\s)\1(?!\*)")
PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\]")
FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL)
RANGES = {
    "zh": "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "ko": "\uac00-\ud7af\u1100-\u11ff\u3130-\u318f",
    "ru": "\u0400-\u04ff",
    "ar": "\u0600-\u06ff\u0750-\u077f",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "he": "\u0590-\u05ff",
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "kana": "\u3040-\u30ff",
}
Language = Literal["zh", "ja", "ko", "ru", "ar", "hi", "th", "el", "he", "latin"]
LANGUAGE_SHARE = 0.9  # of the letters


def has_words(text: str) -> bool:
    return any(sign.isalnum() for sign in text)


def without_hidden(text: str) -> str:
    """The text without signs of no width, such as a zero-width space inside a forbidden word."""
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf")


def caseless(text: str) -> str:
    """As words are compared: without case, and wide letters as plain ones."""
    return unicodedata.normalize("NFKC", text).casefold()


def occurrences(text: str, word: str) -> int:
    """How often a word stands in a text, as a whole word; in scripts without blanks, how often at all."""
    plain = caseless(word)
    before = r"(?<!\w)" if plain[:1].isalnum() and not UNSPACED.match(plain[:1]) else ""
    after = r"(?!\w)" if plain[-1:].isalnum() and not UNSPACED.match(plain[-1:]) else ""
    return len(re.findall(before + re.escape(plain) + after, caseless(text)))


def pieces(parts: Iterable[str]) -> list[str]:
    return [part.strip() for part in parts if has_words(part)]


def paragraphs_of(text: str) -> list[str]:
    return pieces(re.split(r"\n[ \t]*\n|\n[ \t]*\*{3,}[ \t]*\n", text))


# ---------------------------------------------------------------------------------------------------------------- length


def count_words(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    """Words between blanks; in Chinese, Japanese and Thai each character is one, so blanks put between them change nothing."""
    unspaced = len(UNSPACED.findall(text))
    return least <= unspaced + len(pieces(UNSPACED.sub(" ", text).split())) <= most


def count_characters(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    """Characters, white space apart."""
    return least <= sum(not sign.isspace() for sign in text) <= most


def count_sentences(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    return least <= len(pieces(SENTENCE_END.split(text))) <= most


def count_paragraphs(text: str, *, least: Count = 0, most: Count = MOST, mark: str = "") -> bool:
    """Parts between blank lines, or lines of asterisks; with a mark between lines that are it."""
    parts = paragraphs_of(text)
    if mark.strip():
        parts = pieces(re.split(rf"^[ \t]*{re.escape(mark.strip())}[ \t]*$", text, flags=re.MULTILINE))
    return least <= len(parts) <= most


def count_lines(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    return least <= len(pieces(text.splitlines())) <= most


# ----------------------------------------------------------------------------------------------------------------- parts


def count_bullets(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    return least <= len(pieces(BULLET.findall(text))) <= most


def count_items(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    """Items 1, 2, 3, …: all that are there, in order."""
    items = [(int(number), item) for number, item in NUMBERED.findall(text) if has_words(item)]
    return [number for number, _ in items] == list(range(1, len(items) + 1)) and least <= len(items) <= most


def count_sections(text: str, *, least: Count = 0, most: Count = MOST, mark: str = "") -> bool:
    """Parts with words in them after each heading (`## Name`), or after each line that begins with a mark ("Section 1")."""
    heading = re.compile(rf"^{re.escape(mark)}[^\n]*$", re.MULTILINE | re.IGNORECASE) if mark.strip() else HEADING
    return least <= len(pieces(heading.split(text)[1:])) <= most


def count_highlights(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    """Words between asterisks, *so* or **so**."""
    return least <= len(pieces(inside for _, inside in HIGHLIGHT.findall(text))) <= most


def count_placeholders(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    """Words in square brackets: [name]. Each counts once."""
    return least <= len({caseless(inside) for inside in pieces(PLACEHOLDER.findall(text))}) <= most


def has_title(text: str, *, angular: bool = False) -> bool:
    """A first line <<so>> or # so, and a text after it; `angular`: <<so>> alone."""
    found = re.match(r"\s*(?:<<([^<>\n]+)>>|#[ \t]+(\S[^\n]*))[ \t]*\n(.+)", text, re.DOTALL)
    return found is not None and has_words(found[1] or ("" if angular else found[2])) and has_words(found[3])


def has_postscript(text: str, *, mark: Words = "P.S.") -> bool:
    """A last paragraph or line that begins with the mark, with words after it and a text before it."""
    before, found, after = text.rpartition("\n" + mark)
    return bool(found) and has_words(before) and has_words(after)


def gives_two_answers(text: str, *, mark: Words = "******") -> bool:
    """Two different answers with the mark between them, once."""
    parts = [part.strip() for part in text.split(mark)]
    return len(parts) == 2 and all(map(has_words, parts)) and caseless(parts[0]) != caseless(parts[1])


# ----------------------------------------------------------------------------------------------------------------- words


def has_keywords(text: str, *, words: WordList) -> bool:
    """All of these, each as a whole word, in any case."""
    return all(occurrences(text, word) for word in words)


def lacks_keywords(text: str, *, words: WordList) -> bool:
    """None of these as a whole word, in any case."""
    return not any(occurrences(text, word) for word in words)


def count_keyword(text: str, *, word: Words, least: Count = 0, most: Count = MOST) -> bool:
    return least <= occurrences(text, word) <= most


def count_letter(
    text: str, *, letter: Annotated[str, Field(min_length=1, max_length=1)], least: Count = 0, most: Count = MOST
) -> bool:
    """How often a letter, or another sign, stands in the text, in either case."""
    return least <= caseless(text).count(caseless(letter)) <= most


def count_capitals(text: str, *, least: Count = 0, most: Count = MOST) -> bool:
    """Words of capitals alone, of two letters or more."""
    return least <= len([word for word in re.findall(r"[^\W\d_]{2,}", text) if word.isupper()]) <= most


def begins_with(text: str, *, words: Words) -> bool:
    """With these words to the letter, and a text after them."""
    return text.lstrip().startswith(words.strip()) and has_words(text.strip()[len(words.strip()) :])


def closes_with(text: str, *, words: Words) -> bool:
    """With these words to the letter, nothing after them and a text before them."""
    return text.rstrip().endswith(words.strip()) and has_words(text.strip()[: -len(words.strip())])


def begins_paragraph(text: str, *, paragraph: Annotated[int, Field(ge=1, le=MOST)], word: Words) -> bool:
    """The paragraph of this number begins with this word, in any case."""
    found = paragraphs_of(text)
    return len(found) >= paragraph and bool(occurrences(found[paragraph - 1][: len(word) + 1].lstrip("\"'“*"), word))


def repeats_words(text: str, *, words: Words) -> bool:
    """These words to the letter first (a prompt that is to be repeated), then an answer."""
    return begins_with(text, words=words)


def is_one_of(text: str, *, choices: WordList) -> bool:
    """One of these and nothing else."""
    return text.strip() in [choice.strip() for choice in choices]


# ------------------------------------------------------------------------------------------------------ case, signs, form


def is_upper_case(text: str) -> bool:
    return text.isupper()


def is_lower_case(text: str) -> bool:
    return text.islower()


def lacks_commas(text: str) -> bool:
    return has_words(text) and not re.search("[,，、،﹐､]", text)


def is_quoted(text: str) -> bool:
    """All of it between double quotation marks, and none of them inside."""
    plain = text.strip()
    return (
        plain[:1] + plain[-1:] in ('""', "“”", "「」", "«»")
        and has_words(plain)
        and not re.search('["“”「」«»]', plain[1:-1])
    )


def is_json(text: str) -> bool:
    """An object or a list that is valid JSON and holds something, be it in a fence of its own."""
    found = FENCE.match(text.strip())
    try:
        value = strict_json(found[1] if found else text)
    except ValueError:
        return False
    return isinstance(value, dict | list) and bool(value)


def is_language(text: str, *, code: Language) -> bool:
    """Nine letters of ten are of the language's script. Japanese holds kana, and Chinese none; "latin" is any language written so."""
    letters = [sign for sign in text if sign.isalpha()]
    kana = len(re.findall(f"[{RANGES['kana']}]", "".join(letters)))
    script = RANGES["zh"] + RANGES["kana"] if code == "ja" else RANGES[code]
    inside = len(re.findall(f"[{script}]", "".join(letters)))
    if not letters or inside < LANGUAGE_SHARE * len(letters):
        return False
    return {"ja": 10 * kana >= len(letters), "zh": kana == 0}.get(code, True)


CONSTRAINTS: Mapping[str, Callable[..., bool]] = {
    "words": count_words,
    "characters": count_characters,
    "sentences": count_sentences,
    "paragraphs": count_paragraphs,
    "lines": count_lines,
    "bullets": count_bullets,
    "numbered": count_items,
    "sections": count_sections,
    "highlights": count_highlights,
    "placeholders": count_placeholders,
    "title": has_title,
    "postscript": has_postscript,
    "two_answers": gives_two_answers,
    "keywords": has_keywords,
    "no_keywords": lacks_keywords,
    "keyword_count": count_keyword,
    "letter_count": count_letter,
    "capital_words": count_capitals,
    "starts_with": begins_with,
    "ends_with": closes_with,
    "paragraph_start": begins_paragraph,
    "repeats": repeats_words,
    "one_of": is_one_of,
    "upper_case": is_upper_case,
    "lower_case": is_lower_case,
    "no_commas": lacks_commas,
    "quoted": is_quoted,
    "json": is_json,
    "language": is_language,
}
STRICT = ConfigDict(extra="forbid", strict=True)


def constraints_of(given: Any) -> list[Callable[[str], bool]]:
    """The constraints of a list, each as a function of an answer's text. Raises DataError for an unknown name, an argument that is missing,
    unknown or wrong, and bounds that nothing or everything meets."""
    if not isinstance(given, list) or not given:
        raise DataError(
            f"constraints are {brief_repr(given)}; they must be a list such as [{{'name': 'words', 'least': 100}}]"
        )
    return [constraint_of(one) for one in given]


def constraint_of(given: Any) -> Callable[[str], bool]:
    named = {"name": given} if isinstance(given, str) else given
    if (
        not isinstance(named, Mapping)
        or not isinstance(named.get("name"), str)
        or not all(isinstance(key, str) for key in named)
    ):
        raise DataError(
            f"a constraint is {brief_repr(given)}; it must be {{'name': …}} with its arguments, or a name alone"
        )
    name = named["name"]
    if name not in CONSTRAINTS:
        raise DataError(f"{brief_repr(name)} is not a constraint; there are {', '.join(CONSTRAINTS)}")
    met = CONSTRAINTS[name]
    arguments = validated(name, {key: value for key, value in named.items() if key != "name" and value is not None})
    return lambda text: met(without_hidden(text), **arguments)


def validated(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constraint, as its function's annotations want them."""
    taken = [one for one in signature(CONSTRAINTS[name]).parameters.values() if one.kind is Parameter.KEYWORD_ONLY]
    fields: dict[str, Any] = {
        one.name: (one.annotation, ... if one.default is Parameter.empty else one.default) for one in taken
    }
    try:
        found = create_model(name, __config__=STRICT, **fields).model_validate(dict(given)).model_dump()
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        takes = ", ".join(fields) or "no arguments"
        raise DataError(
            f"the constraint {name!r} has {place} = {brief_repr(problem['input'])}: {problem['msg'].lower()}; it takes {takes}"
            if problem["type"] != "missing"
            else f"the constraint {name!r} lacks {place}; it takes {takes}"
        ) from None
    least, most = found.get("least", 1), found.get("most", MOST)
    if least > most or (least == 0 and most == MOST):
        raise DataError(
            f"the constraint {name!r} has least = {least} and most = {most}, which {'nothing' if least > most else 'all'} would meet"
        )
    return found
