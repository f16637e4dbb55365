"""An answer's text as its tokens come is what the template makes of all of them, and never shows half a character."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bridle.core.records import FinishReason, Prompt
from bridle.generation.batch import Drawn
from bridle.models.template import Template
from bridle.serve.text import AnswerText, Spelling, first_stop, unready
from tests.models.families import FAMILIES, family
from tests.models.tiny import template

TEXTS = (
    "The cat had a day.",
    "  two spaces, and\n\na line\n",
    "请多喝水，早点睡觉。",
    "a 🐈‍⬛ and é, ñ and 中文 mixed",
    "Yes.",
    "1. one\n2. two",
)


def drawn(tokens: Sequence[int], ended: bool) -> list[Drawn]:
    last = FinishReason.STOP if ended else FinishReason.LENGTH
    return [Drawn(n, token, -1.0, (), None if n < len(tokens) - 1 else last, -1.0) for n, token in enumerate(tokens)]


def pieces(
    template: Template, tokens: Sequence[int], stops: Sequence[str] = (), ended: bool = True, top: int | None = None
) -> list[str]:
    text, found = AnswerText(Spelling(template), template.frame, stops, top), []
    for one in drawn(tokens, ended):
        found.append(text.add(one)[0])
        if text.finish_reason is not None:
            break
    return found


def answer_ids(template: Template, text: str) -> list[int]:
    return template.completion_ids([template.before_written(Prompt.from_text("?"))], [text])[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_make_the_text_that_the_template_makes(name: str) -> None:
    one = family(name).template
    for text in TEXTS:
        ids = answer_ids(one, text)
        assert "".join(pieces(one, ids)) == one.decode(ids)


def test_whatever_tokens_a_model_draws(seed: int = 0) -> None:
    one, draws = template(), random.Random(seed)
    for _ in range(60):
        ids = [draws.randrange(3, 300) for _ in range(draws.randrange(1, 30))]
        assert "".join(pieces(one, [*ids, one.eos_id])) == one.decode([*ids, one.eos_id])


def test_a_character_of_several_tokens_comes_whole() -> None:
    one = template()
    ids = answer_ids(one, "你好，世界🐈")
    assert len(ids) > 18, "each byte is a token"
    found = pieces(one, ids)
    assert [piece for piece in found if piece] == list("你好，世界🐈")
    for cut in range(1, len(ids)):  # nor does an answer that is cut off end with a part of one
        assert "你好，世界🐈".startswith("".join(pieces(one, ids[:cut], ended=False)))


def test_a_stop_string_is_found_wherever_tokens_begin_and_end() -> None:
    one, draws = template(), random.Random(1)
    for text in TEXTS[:4]:
        ids = answer_ids(one, text)
        whole = one.decode(ids)
        for _ in range(40):
            start = draws.randrange(len(whole))
            stops = [whole[start : start + draws.randrange(1, 6)], whole[start + 1 : start + 3] or "x", "nowhere"]
            found = pieces(one, ids, stops)
            at = first_stop(whole, stops)
            assert at is not None and "".join(found) == whole[:at]


def test_no_part_of_a_stop_string_is_sent_before_it_is_known() -> None:
    one = template()
    found = pieces(one, answer_ids(one, "ab END ab"), [" END"])
    assert "".join(found) == "ab" and not any(" " in piece or "E" in piece for piece in found)
    assert "".join(pieces(one, answer_ids(one, "ab EN"), [" END"])) == "ab EN"


def test_which_stop_string_comes_first() -> None:
    assert first_stop("xabcd", ["bc", "abcd"]) == 2  # it was whole a character earlier
    assert first_stop("xabcd", ["abc", "bc"]) == 1
    assert first_stop("xabcd", ["q"]) is None
    assert unready("say EN", "", ["END"]) == 2 and unready("say", "\n", ["END"]) == 0 and unready("a\n", "\n", []) == 1


def test_tokens_are_told_with_their_bytes_and_places() -> None:
    one = template()
    text = AnswerText(Spelling(one), one.frame, (), top=0)
    ids = answer_ids(one, "a 中 b")
    tokens = [token for each in drawn(ids, ended=True) for token in text.add(each)[1]]
    assert len(tokens) == len(ids) - 1 == text.counted
    assert b"".join(token.bytes for token in tokens).decode() == " a 中 b"
    assert [token.text for token in tokens if len(token.bytes) == 1 and token.bytes[0] > 127][0] == "bytes:\\xe4"
    whole = one.decode(ids)
    for token in tokens[1:]:
        if not token.text.startswith("bytes:"):
            assert whole[token.offset :].startswith(token.text)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_bytes_of_a_byte_are_that_byte(name: str) -> None:
    one = family(name).template
    spelling = Spelling(one)
    for token in one.tokenizer.encode("a 中", add_special_tokens=False).ids:
        raw = spelling.token_bytes(token)
        assert raw and all(0 <= byte < 256 for byte in raw)
