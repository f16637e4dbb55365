r"""The final answer that a text states, read strictly, and the quantity that it is.

An answer is stated in one of four forms: `#### 12` in the last line, `\boxed{12}`, `<answer>12</answer>`, or a sentence of its own
("The answer is 12.", "答案是12。"). A number that merely occurs is none. Every statement counts: where two differ, nothing was decided.
What a statement holds must be one quantity and nothing else: "71 or 72" is none.
Left out on purpose: rounding (decimals are exact), words for numbers, units that are converted ("1 km" is not "1000 m").
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 400  # of a number, and the largest exponent: a longer one is slow, and nobody meant it
LONGEST_ANSWER = 2_000  # characters of a final answer that are looked at

MARKED = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
TAGGED = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
SENTENCE = re.compile(
    r"(?:^|(?<=[.!?。！？:：*])[ \t]*)[*_]*(?:(?:so|thus|hence|therefore|所以|因此),?，?[ \t]*)?"
    r"(?:(?:the )?(?:final )?answer(?: is\b:?|:)|(?:最终)?答案(?:是|为|：|:))[ \t*_]*([^\n]*?)(?=[.!?](?:\s|\Z)|[。！？\n]|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
BOX = r"\boxed"

WIDE = dict(zip(map(ord, "０１２３４５６７８９．－−＋％／，＄￥"), "0123456789.--+%/,$¥", strict=True))
CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yuan"}
LATEX = (  # as quantities are set; the rest is left, and no quantity comes of it
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\[,;:! ]|~"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\s*\{?\\circ\}?"), "°"),
    (re.compile(r"\\([%$])"), r"\1"),
)
DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)"  # a comma groups three digits, or it is none of ours
DECIMAL = rf"(?:{DIGITS}(?:\.\d+)?|\.\d+)"
WORD = r"[A-Za-z]+"  # Chinese measure words follow their number without a blank: 12个苹果
QUANTITY = re.compile(
    rf"(?P<sign>[-+])?\s?(?P<currency>[$€£¥])?\s?(?:(?P<whole>\d+)\s+(?P<part>\d+/\d+)|(?P<number>{DECIMAL})"
    rf"(?:[eE](?P<exponent>[-+]?\d+)|/(?P<under>{DIGITS}))?)\s*"
    rf"(?P<unit>%|[㐀-鿿]{{1,8}}|°?(?:{WORD}(?:[ /·]{{1,2}}{WORD}){{0,3}}(?:\^?[23])?)?)",
    re.ASCII,
)
# After a number they make another quantity of it, or none.
NO_UNITS = frozenset(
    """
    or and to not but minus plus times over than more less about at least most half e x
    hundred thousand million billion trillion dozen score hundreds thousands millions billions trillions dozens k bn
    """.split()
)
CHINESE_SCALES = tuple("十百千万億亿兆或和到至半多不")


@dataclass(frozen=True)
class Quantity:
    number: Fraction
    unit: str = ""

    def same(self, other: "Quantity") -> bool:
        """Equal numbers, in the same unit where both name one."""
        return self.number == other.number and (self.unit == other.unit or not (self.unit and other.unit))


def final_answer(text: str) -> str | None:
    """The one answer that a text states, as it is written; None where it states none, or several that differ."""
    stated = stated_answers(text)
    if not stated or any(len(answer) > LONGEST_ANSWER for answer in stated):
        return None
    return stated[-1] if len(meanings(stated)) == 1 and stated[-1] else None


def answers_differ(text: str) -> bool:
    """Whether a text states several answers, so that it has not decided."""
    return len(meanings([answer for answer in stated_answers(text) if answer])) > 1


def stated_answers(text: str) -> list[str]:
    """All that a text states, as it is written; empty where a statement holds nothing."""
    stated = list(statements(text))
    sentences = dict.fromkeys(found[1].strip(" \t*_") for found in SENTENCE.finditer(text))
    # One that goes on in words ("The answer is easy to see.") says nothing where another form does.
    return stated + [words for words in sentences if not stated or quantity_of(words)]


def meanings(stated: Iterable[str]) -> set[object]:
    """The quantities that they are, or their words; each once."""
    return {
        (quantity.number, quantity.unit) if (quantity := quantity_of(one)) else one for one in dict.fromkeys(stated)
    }


def statements(text: str) -> Iterator[str]:
    """What every marked statement of an answer holds; empty where it holds nothing, or is not closed."""
    marks = list(MARKED.finditer(text))
    yield from (mark[1].strip() for mark in marks)
    if marks and text[marks[-1].end() :].strip():
        yield ""  # the text goes on: it did not end in its answer
    yield from boxes(text)
    if (opened := len(re.findall("<answer>", text, re.IGNORECASE))) != len(tagged := TAGGED.findall(text)):
        yield from [""] * opened
    yield from (inside.strip() for inside in tagged)


def boxes(text: str) -> Iterator[str]:
    r"""What stands in each \boxed{…}, its braces balanced; empty for one that is not closed, or holds another."""
    for piece in text.split(BOX)[1:]:
        depth, end = 0, -1
        for place, sign in enumerate(piece[: LONGEST_ANSWER + 2]):
            depth += (sign == "{") - (sign == "}")
            if depth <= 0:
                end = place
                break
        yield piece[1:end].strip() if end > 0 and piece[0] == "{" else ""


def quantity_of(text: str) -> Quantity | None:
    r"""The quantity that a text is: "1,234.5", "-3/4", "1 1/2", "\frac{1}{2}", "50%" (one half), "$5", "12 apples"; None for any other.

    "1,2", "71 or 72", "about 5", "2 thousand" and "2+1" are none. A unit is a few words after the number, not a word that changes it.
    """
    plain = text[:LONGEST_ANSWER].translate(WIDE).strip()
    for pattern, written in LATEX:
        plain = pattern.sub(written, plain)
    plain = plain.strip(" *_")
    if len(plain) > 1 and plain[0] == plain[-1] == "$":
        plain = plain[1:-1]
    plain = plain.removeprefix(r"\(").removesuffix(r"\)").removesuffix(".").strip()
    found = QUANTITY.fullmatch(plain.replace("²", "^2").replace("³", "^3"))
    if found is None or len(plain) > LONGEST_ANSWER or sum(sign.isdigit() for sign in plain) > MOST_DIGITS:
        return None
    number, unit = _number(found), _unit(found)
    return None if number is None or unit is None else Quantity(number, unit)


def _number(found: re.Match[str]) -> Fraction | None:
    parts = found.groupdict()
    exponent = int(parts["exponent"] or 0)
    if abs(exponent) > MOST_DIGITS:
        return None
    try:
        if parts["whole"]:
            size = int(parts["whole"]) + Fraction(parts["part"])
        else:
            size = Fraction(parts["number"].replace(",", "")) * Fraction(10) ** exponent
            size /= int((parts["under"] or "1").replace(",", ""))
    except ZeroDivisionError:
        return None
    size = size / 100 if parts["unit"].lower() in ("%", "percent") else size
    return -size if parts["sign"] == "-" else size


def _unit(found: re.Match[str]) -> str | None:
    """One spelling of the unit; empty for none, None where the words are no unit."""
    words = found["unit"].lower()
    if words in ("", "%", "percent"):
        return CURRENCIES.get(found["currency"] or "", "")
    if NO_UNITS.intersection(re.split(r"[^\w]+", words)) or any(sign in words for sign in CHINESE_SCALES):
        return None
    unit = " ".join(word.removesuffix("s") if len(word) > 3 and word.isalpha() else word for word in words.split())
    return unit if not found["currency"] or CURRENCIES[found["currency"]] == unit else None
