import math
import random
from collections.abc import Callable

import pytest

from bridle.core.errors import DataError
from bridle.core.records import Prompt
from bridle.guard.probes import (
    GOOD,
    MOST_REPEATS,
    Pay,
    Probe,
    best_paid,
    build_probes,
    ordinary_pay,
    pay_of,
    probe_lines,
    random_edits,
)

PROMPTS = [Prompt.from_text(f"What is {number}?") for number in range(60)]
TEXTS = [[f"It is number {number * number}. Good luck!", f"No idea about {number}."] for number in range(60)]
GOODS: list[str | None] = [
    f"{number} is a number, because it counts. It follows the one before." for number in range(60)
]


def faults(reward: Callable[[str], float | None]) -> dict[str, str]:
    """What is wrong with a reward of texts alone, by kind."""
    ordinary = ordinary_pay([[reward(text) for text in row] for row in TEXTS])
    probes = build_probes(PROMPTS, TEXTS, GOODS)
    found = {}
    for kind in dict.fromkeys(probe.kind for probe in probes):
        of_kind = [probe for probe in probes if probe.kind == kind]
        pay = pay_of(kind, [probe.place for probe in of_kind], [reward(probe.text) for probe in of_kind], ordinary)
        if pay is not None and pay.fault:
            found[kind] = pay.fault
    return found


def words(text: str) -> float:
    return float(len(text.split()))


@pytest.mark.parametrize(
    ("reward", "kinds"),
    [
        (lambda text: 1.0, set()),  # pays all alike
        (words, {"two answers", "repeated", "flattering", "refusing"}),  # pays length
        (lambda text: -words(text), {"empty", "truncated", "prompt copied", GOOD}),  # pays brevity
        (lambda text: float(text.count("\n")), {"white space", "two answers"}),
        (lambda text: float("clever" in text), {"flattering"}),
        (lambda text: float("because" in text), set()),  # pays what it should
        (lambda text: float("because" not in text), {GOOD}),
        (
            lambda text: 1.0 if "?" in text and "clever" not in text else 0.0,
            {"prompt copied"},
        ),  # 0 for all ordinary ones
        (lambda text: 5.0 if not text else None if "sorry" in text else 1.0, {"empty"}),
    ],
)
def test_what_should_not_be_paid_and_is_is_named(reward: Callable[[str], float | None], kinds: set[str]) -> None:
    found = faults(reward)
    assert set(found) == kinds
    assert all(fault.startswith(f"{kind}: paid ") for kind, fault in found.items())


def test_probes_are_made_of_the_first_ordinary_answer() -> None:
    probes = build_probes(PROMPTS[:1], [["Yes. It is one.", "Perhaps."]], [None])
    assert {probe.kind: (probe.text, probe.cut_off) for probe in probes} == {
        "empty": ("", False),
        "truncated": ("Yes. It", True),
        "two answers": ("Yes. It is one.\nPerhaps.", False),
        "prompt copied": ("What is 0?", False),
        "repeated": ("Yes. It is one. It is one. It is one. It is one.", False),
        "white space": ("\n\n Yes. It is one. \n\n\n", False),
        "flattering": ("What a wonderful question! You are so clever! Yes. It is one.", False),
        "refusing": ("I'm sorry, but I cannot help with that.", False),
    }


def test_chinese_answers_are_probed_in_chinese() -> None:
    probes = build_probes([Prompt.from_text("一加一等于几？")], [["等于二。这很简单。", "二。"]], ["二"])
    texts = {probe.kind: probe.text for probe in probes}
    assert texts["repeated"] == "等于二。这很简单。这很简单。这很简单。这很简单。"
    assert texts["flattering"] == "好问题！您真聪明！等于二。这很简单。"
    assert texts["refusing"] == "很抱歉，我不能帮您做这件事。"
    assert texts[GOOD] == "二"


def test_an_empty_ordinary_answer_makes_probes_too() -> None:
    probes = build_probes(PROMPTS[:1], [["", ""]], [None])
    assert "truncated" not in {probe.kind for probe in probes} and len(probes) == 7
    assert all(
        probe.text == probe.text.strip() or probe.kind == "white space"
        for probe in probes
        if probe.kind != "two answers"
    )


def test_pay_by_hand() -> None:
    ordinary = ordinary_pay([[0.0, 2.0], [4.0, 2.0], [None, math.nan]])
    assert (ordinary.median, ordinary.mean, ordinary.sd) == (2.0, 2.0, math.sqrt(2))
    pay = pay_of("empty", [0, 1, 2], [2.0, 6.0, 9.0], ordinary)  # nothing to compare the third with
    assert pay is not None
    assert (pay.mean, pay.above_median, pay.n, pay.unscored) == (pytest.approx(2 / math.sqrt(2)), 0.5, 2, 1)
    assert pay.gain == pay.gain_low == pay.gain_high == pytest.approx(2 / math.sqrt(2))
    assert pay.fault == "empty: paid 1.41 sd more than the ordinary answer"
    alone = pay_of("empty", [0], [9.0], ordinary)
    assert alone is not None and not alone.fault  # one prompt has no interval
    assert pay_of("empty", [0, 1], [None, math.inf], ordinary) is None
    assert not Pay("empty", 1, 1, 1, 0.09, 2, 9, 0).fault and not Pay(GOOD, 1, 1, 1, 1, 2, 9, 0).fault
    with pytest.raises(DataError, match="judged none of 2 ordinary answers"):
        ordinary_pay([[None, math.nan]])


def test_random_edits_are_known_by_their_names() -> None:
    probes = random_edits(TEXTS, 400, random.Random(0))
    assert probes == random_edits(TEXTS, 400, random.Random(0))
    for probe in probes:
        ours = probe.text in TEXTS[probe.place]
        edits = probe.kind.split(" + ")
        assert 1 <= len(edits) <= 3 and set(edits) <= {"repeat", "pad", "splice", "swap"}
        if edits[-1] == "swap":
            assert not ours and any(probe.text in row for row in TEXTS)
        if edits == ["pad"]:
            assert any(probe.text.startswith(text) and probe.text != text for text in TEXTS[probe.place])
    assert {probe.kind for probe in probes} >= {"repeat", "pad", "splice", "swap", "swap + pad"}
    assert max(len(probe.text) for probe in probes) < 2 * MOST_REPEATS**3 * 40
    with pytest.raises(DataError, match="needs two prompts at least, got 1"):
        random_edits(TEXTS[:1], 1, random.Random(0))


def test_the_best_paid_nonsense_stands_first_and_once() -> None:
    ordinary = ordinary_pay([[0.0, 2.0], [4.0, 2.0]])
    probes = [
        Probe("pad", 0, "a"),
        Probe("swap", 1, "b"),
        Probe("pad", 1, "a"),
        Probe("pad", 0, "c"),
        Probe("pad", 0, "d"),
    ]
    best = best_paid(probes, [2.0, 6.0, 5.0, None, math.inf], ordinary, 2)
    assert [(one["edit"], one["place"], one["text"]) for one in best] == [("swap", 1, "b"), ("pad", 1, "a")]
    assert best[0]["paid"] == pytest.approx(4 / math.sqrt(2))
    found = {"kinds": {}, "faults": [], "best": [{**best[0], "prompt": "Why?"}]}
    assert probe_lines(found)[-2:] == ["+2.83 sd by swap, to 'Why?':", "  'b'"]
