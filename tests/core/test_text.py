"""What others wrote reaches a person as text: nothing in it is obeyed, it is one line where one is ours, and its length is bounded."""

import io
import json
from pathlib import Path

import pytest

from bridle.core.errors import BridleError, DataError
from bridle.core.files import read_json, write_json
from bridle.core.text import LONGEST_LINE, VisibleStream, beginning_of, json_text, one_line, telling_line, visible

SIGNS = {
    "\x1b": "␛", "\0": "␀", "\x07": "␇", "\b": "␈", "\r": "␍", "\x0b": "␋", "\x7f": "␡", "\x85": "\\u0085",
    "\x9b": "\\u009b", "\u2028": "\\u2028", "\u2029": "\\u2029", "\u202a": "\\u202a", "\u202e": "\\u202e",
    "\u2066": "\\u2066", "\u2069": "\\u2069", "\ufeff": "\\ufeff", "\ud800": "\\ud800",
    "\U000e0041": "\\U000e0041",
}  # fmt: skip
EVERY = "".join(SIGNS)
# Joiners and marks of scripts, wide and narrow spaces, emoji, signs that no font has yet.
LEFT_AS_IT_IS = "naïve שלום\u200f नि\u200dक خانه\u200cها 損失\u3000 4\u202f322 👩\u200d👧 \U000323b0 é ␛ \\u202e"


@pytest.mark.parametrize("sign", SIGNS, ids=ascii)
def test_a_sign_that_would_be_obeyed_is_shown(sign: str) -> None:
    assert visible(f"a{sign}b") == one_line(f"a{sign}b") == f"a{SIGNS[sign]}b"


def test_what_every_script_needs_stays() -> None:
    assert visible(LEFT_AS_IT_IS) == one_line(LEFT_AS_IT_IS) == LEFT_AS_IT_IS
    assert visible("a\n\tb") == "a\n\tb" and one_line("a\n\tb\n") == "a␊␉b␊"


@pytest.mark.parametrize(
    "long",
    ["x" * 10**6, "\u202e" * 10**6, f"setting {'y' * 10**6!r} is unknown"],
    ids=["letters", "overrides", "sentence"],
)
def test_a_long_line_has_its_beginning_its_length_and_its_end(long: str) -> None:
    line = one_line(f"bridle.toml: {long}; mend it there")
    assert len(line) <= LONGEST_LINE and line.startswith("bridle.toml: ") and line.endswith("; mend it there")
    assert f"… ({len(long) + 28:,} characters, the middle left out) …" in line
    assert one_line(line) == line, "twice is as good as once"
    assert len(one_line(long, 120)) <= 120 and "1,000,0" in one_line(long, 120)


def test_a_long_text_says_how_much_of_it_is_shown() -> None:
    found = beginning_of("ab" * 500_000, 4_000)
    assert found == "ab" * 2_000 + "… (1,000,000 characters, the first 4,000 shown)"
    assert beginning_of(found, 4_000) == found and beginning_of("short", 4_000) == "short"


def test_json_on_disk_is_read_as_it_was_and_obeyed_by_nothing(tmp_path: Path) -> None:
    said = {f"key {EVERY}": [f"a{EVERY}\n", LEFT_AS_IT_IS, 1.5, None]}
    write_json(tmp_path / "data.json", said)
    written = (tmp_path / "data.json").read_text("utf-8")
    assert read_json(tmp_path / "data.json") == said == json.loads(json_text(said))
    assert visible(written) == written and "損失" in written
    assert "\n" not in json_text(said)


def test_an_error_is_one_line_and_keeps_what_was_said() -> None:
    error = DataError(f"no field {EVERY}\nbridle: all is well {'x' * 10**6}")
    assert visible(str(error)) == str(error) and "\n" not in str(error) and len(str(error)) <= LONGEST_LINE
    assert EVERY in error.args[0]
    again = str(BridleError(f"again: {error}"))
    assert again == f"again: {error}" and again.startswith("again: no field ␛␀"), "quoted, it is not cut again"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_a_stream_shows_what_it_is_given_in_any_encoding(encoding: str) -> None:
    below = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    stream = VisibleStream(below)
    text = f"{EVERY}\n\r  3/7 損失"
    assert stream.write(text) == len(text)
    stream.flush()
    below.seek(0)
    written = below.read()
    assert visible(written.replace("\r", "")) == written.replace("\r", "") and written.count("\n") == 1
    assert ("␛" if encoding == "utf-8" else "\\u241b") in written and not stream.isatty()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Error in field 'x':\n    TypeError: expected int, got 'a'\nmore", "Error in field 'x': TypeError: expected int, got 'a'"),
        ("Error(s) in loading state_dict for X:\n\tsize mismatch for a", "Error(s) in loading state_dict for X: size mismatch for a"),
        *(("one\ntwo", "one"), ("only:\n", "only:"), ("", "")),
    ],
)  # fmt: skip
def test_of_several_lines_the_one_that_says_what_is_wrong_is_told(said: str, told: str) -> None:
    assert telling_line(said) == told
