"""Which scripts a text is written in: what can honestly be said of its language by looking at its letters alone.

Latin may be English or Vietnamese, Han may be Chinese or a Japanese title; Japanese text is mostly Kana or "Han + Kana".
"""

import re
from collections.abc import Iterable
from functools import cache

LOOKED_AT = 500  # characters of each text
SHARE = 0.2  # of the letters: what is less than this, such as a name in another script, is not told

RANGES = {
    "Latin": "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "Kana": "\u3041-\u3096\u30a1-\u30fa\u30fc\uff66-\uff9f",
    "Hangul": "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "Hebrew": "\u05d0-\u05ea",
    "Devanagari": "\u0900-\u0963\u0970-\u097f",
    "Bengali": "\u0980-\u09e3",
    "Tamil": "\u0b80-\u0bd7",
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e4e",
}
RUNS = re.compile("|".join(f"(?P<{name}>[{signs}]+)" for name, signs in RANGES.items()) + r"|(?P<other>[^\W\d_])")


@cache
def ascii_bytes() -> bytes:
    return bytes(range(128))


@cache
def not_latin() -> bytes:
    """All bytes but the letters of ASCII."""
    return bytes(byte for byte in range(256) if byte > 127 or not chr(byte).isalpha())


def scripts_of(texts: Iterable[str]) -> str:
    """The scripts of at least a fifth of the letters, such as "Latin" or "Han + Latin"; "no letters" where there are none."""
    text = "\n".join(text[:LOOKED_AT] for text in texts).encode()
    letters = {"Latin": len(text.translate(None, not_latin()))}
    for run in RUNS.finditer(text.translate(None, ascii_bytes()).decode()):
        name = run.lastgroup or "other"
        letters[name] = letters.get(name, 0) + run.end() - run.start()
    least = SHARE * sum(letters.values())
    return " + ".join(sorted(name for name, count in letters.items() if count and count >= least)) or "no letters"
