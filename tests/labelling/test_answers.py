"""What is answered by displayed positions, in canonical slots: for every order of display, and back to the same form."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridle.core.errors import DataError
from bridle.core.records import Completion, Prompt
from bridle.feedback.rankings import Item, check_judgement
from bridle.feedback.store.assignment import Asked
from bridle.labelling.answers import (
    FLAGS,
    Answer,
    Form,
    Unfinished,
    answer_of_form,
    fields_of,
    plain,
    stated,
    stored_key,
)

ITEM, KEY = "a" * 64, "key-1"


def asked(kind: str, order: tuple[int, ...]) -> Asked:
    prompt = Prompt.from_text("Why?")
    answers = tuple(Completion(prompt.id, f"text {slot}", weight_stamp="sft+0") for slot in range(len(order)))
    return Asked(1, Item(ITEM, prompt, answers, kind), "anna", order, "", "g" * 64, None)


def form(**fields: Any) -> dict[str, Any]:
    return {"item": ITEM, "key": KEY, **{name.replace("__", "."): value for name, value in fields.items()}}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("verdict", range(-3, 4))
def test_a_verdict_is_about_what_was_seen_where(verdict: int, order: tuple[int, int]) -> None:
    (judgement,) = stated(answer_of_form(form(verdict=str(verdict))), asked("pairwise", order), lang="en").judgements
    assert (judgement.display_order, judgement.submission_key, judgement.lang) == (order, stored_key("anna", KEY), "en")
    if verdict == 0:
        assert (judgement.ranking, judgement.outcome, judgement.strength) == (((0, 1),), "", None)
    else:
        winner = order[0] if verdict < 0 else order[1]  # to the left is what was shown first
        assert judgement.ranking == ((winner,), (1 - winner,))
        assert judgement.strength == abs(verdict)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize(("places", "groups"), [("231", "C>A>B"), ("112", "A=B>C"), ("222", "A=B=C"), ("919", "B>A=C")])
def test_places_are_of_what_was_seen_where(places: str, groups: str, order: tuple[int, ...]) -> None:
    fields = {f"place_{position}": place for position, place in enumerate(places)}
    (judgement,) = stated(answer_of_form(form(**fields)), asked("ranking", order), lang=None).judgements
    expected = tuple(tuple(sorted(order["ABC".index(one)] for one in group.split("="))) for group in groups.split(">"))
    assert judgement.ranking == expected


@pytest.mark.parametrize("kind", ["pairwise", "ranking", "rating", "demonstration"])
@pytest.mark.parametrize("verdict", ["cannot_judge", "skip"])
def test_nobody_has_to_judge(kind: str, verdict: str) -> None:
    order = {"pairwise": (1, 0), "ranking": (2, 0, 1), "rating": (0,), "demonstration": ()}[kind]
    said = stated(answer_of_form(form(verdict=verdict, written="x")), asked(kind, order), criteria=["own"], lang=None)
    (judgement,) = said.judgements
    assert (judgement.ranking, judgement.outcome, said.written) == ((), verdict, [])


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        ("pairwise", {}, "needs_verdict"),
        ("pairwise", {"rationale": "A is better", "criterion__own": "1"}, "needs_verdict"),
        ("pairwise", {"verdict": "2"}, "needs_criterion"),
        ("ranking", {}, "needs_places"),
        ("ranking", {"place_0": "1", "place_2": "2"}, "needs_places"),
        ("ranking", {"place_0": "1", "place_1": "2"}, "needs_places"),
        ("ranking", {"place_0": "1", "place_1": "2", "place_2": "1"}, "needs_criterion"),
        ("rating", {"rating__overall__0": "3", "rating__own__0": "3", "rating__overall__1": "2"}, "needs_rating"),
        ("rating", {"rating__overall__0": "3", "rating__overall__1": "3"}, "needs_rating"),
        ("demonstration", {"written": " \r\n "}, "needs_text"),
    ],
)
def test_what_is_missing_is_said(kind: str, fields: dict[str, str], key: str) -> None:
    order = {"pairwise": (1, 0), "ranking": (2, 0, 1), "rating": (1, 0), "demonstration": ()}[kind]
    with pytest.raises(Unfinished) as error:
        stated(answer_of_form(form(**fields)), asked(kind, order), criteria=["own"], lang=None)
    assert error.value.key == f"label.{key}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"verdict": "4"}, "verdict"),
        ({"verdict": "best"}, "verdict"),
        ({"verdict": "1", "flag__0": ["rude"]}, "flags"),
        ({"verdict": "1", "flag__7": ["harmful"]}, "position 7"),
        ({"verdict": "1", "edit__2": "x"}, "position 2"),
        ({"verdict": "1", "edit__left": "x"}, "edits"),
        ({"verdict": "1", "criterion__taste": "1"}, "'taste'"),
        ({"verdict": "1", "rating__taste__0": "1"}, "'taste'"),
        ({"verdict": "1", "rating__overall__0": "6"}, "ratings"),
        ({"verdict": "1", "rationale": "x" * 10_001}, "rationale"),
        ({"verdict": "1", "key": "a b"}, "key"),
        ({"verdict": "1", "item": "1"}, "item"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        stated(answer_of_form(form(**fields)), asked("pairwise", (1, 0)), lang=None)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_comparison_by_a_number_is_of_two() -> None:
    with pytest.raises(Unfinished):
        stated(answer_of_form(form(verdict="2")), asked("ranking", (2, 0, 1)), lang=None)
    with pytest.raises(DataError, match="two answers, but there are 3"):
        fields = form(place_0="1", place_1="1", place_2="1", criterion__own="2")
        stated(answer_of_form(fields), asked("ranking", (2, 0, 1)), criteria=["own"], lang=None)


def test_everything_of_one_answer() -> None:
    fields = form(
        verdict="both_bad",
        criterion__own="-1",
        flag__1=["untrue", "other", "untrue"],
        flag_note__1="no\r\nway",
        flag_note__0="hm",
        edit__0=" text 1\n",  # as it was
        edit__1=" better\r\n",
        rationale="because",
        checked_at="https://a.example/",
        active_seconds="12.5",
        submit="1",
    )
    said = stated(answer_of_form(fields), asked("pairwise", (1, 0)), criteria=["own"], lang="zh")
    whole, own = said.judgements
    assert (whole.outcome, whole.ranking, whole.rationale, whole.seconds) == ("both_bad", ((0, 1),), "because", 12.5)
    assert (own.criterion, own.ranking, own.strength, own.submission_key) == (
        "own",
        ((1,), (0,)),
        1,
        stored_key("anna", KEY, "own"),
    )
    assert whole.client["checked_at"] == "https://a.example/"
    assert whole.guideline == "g" * 64
    flags = [(one.completion.text, one.criterion, one.note, one.kind) for one in said.ratings]
    assert sorted(flags) == [
        ("text 0", "other", "no\nway", "flag"),
        ("text 0", "untrue", "no\nway", "flag"),
        ("text 1", "other", "hm", "flag"),
    ]
    assert {one.judgement_id for one in said.ratings} == {whole.id}
    assert [(slot, one.text, one.weight_stamp) for slot, one in said.written] == [(0, "better", "")]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_ratings_rank_what_they_rate(order: tuple[int, ...]) -> None:
    fields = form(rating__overall__0="2", rating__overall__1="5", rating__overall__2="2")
    said = stated(answer_of_form(fields), asked("rating", order), lang=None)
    assert said.judgements[0].ranking == ((order[1],), tuple(sorted((order[0], order[2]))))
    assert {one.completion.text: one.value for one in said.ratings} == {
        f"text {order[0]}": 2,
        f"text {order[1]}": 5,
        f"text {order[2]}": 2,
    }
    assert {one.criterion for one in said.ratings} == {None}


def test_characters_that_no_database_takes() -> None:
    fields = form(verdict="1", rationale="a\0b\ud800c", criterion__own="1")
    said = stated(answer_of_form(fields), asked("pairwise", (0, 1)), criteria=["own"], lang=None)
    assert said.judgements[0].rationale == "a\ufffdb\ufffdc" == plain("a\0b\ud800c")


VERDICTS = st.sampled_from(["-3", "-2", "-1", "0", "1", "2", "3", "both_good", "both_bad", "cannot_judge"])
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def filled_in(draw: st.DrawFn) -> tuple[Asked, Form]:
    """A task, and its form as somebody may fill it in."""
    kind = draw(st.sampled_from(["pairwise", "ranking", "rating", "demonstration"]))
    slots = {"pairwise": 2, "demonstration": 0}.get(kind) or draw(st.integers(1 if kind == "rating" else 3, 9))
    slots = 0 if kind == "demonstration" else slots
    fields: dict[str, Any] = form()
    place = st.integers(1, slots or 1)

    def compared(name: str, prefix: str) -> None:
        if kind == "pairwise":
            fields[name] = draw(VERDICTS)
        elif draw(st.booleans()):
            places = [draw(place) for _ in range(slots)]
            dense = sorted(set(places))
            fields.update({f"{prefix}place_{n}": str(dense.index(one) + 1) for n, one in enumerate(places)})
        else:
            fields[name] = draw(st.sampled_from(["both_good", "cannot_judge"]))

    if kind in ("pairwise", "ranking"):
        compared("verdict", "")
        compared("criterion.own.word", "criterion.own.word.")
    elif kind == "rating":
        rated = {f"rating.{name}.{n}" for name in ("overall", "own.word") for n in range(slots)}
        fields |= {name: str(draw(st.integers(1, 5))) for name in sorted(rated)}
    else:
        fields["written"] = draw(TEXTS).strip()
    for position in draw(st.sets(st.integers(0, slots - 1), max_size=3)) if slots else ():
        fields[f"flag.{position}"] = draw(st.lists(st.sampled_from(FLAGS), min_size=1, max_size=3, unique=True))
        fields |= {f"flag_note.{position}": draw(TEXTS)} if draw(st.booleans()) else {}
        fields[f"edit.{position}"] = draw(TEXTS).strip()
    fields |= {"rationale": draw(TEXTS)} if draw(st.booleans()) else {}
    return asked(kind, tuple(draw(st.permutations(range(slots))))), fields


@settings(max_examples=60, deadline=None)
@given(filled_in())
def test_what_was_said_comes_back_as_it_was_said(case: tuple[Asked, dict[str, Any]]) -> None:
    task, fields = case
    answer = answer_of_form(fields)
    said = stated(answer, task, criteria=["own.word"], lang="en")
    for judgement in said.judgements:
        check_judgement(judgement, len(task.display_order))
    texts = {one.id: one.text for _, one in said.written}
    again = answer_of_form(form() | fields_of(said.judgements, said.ratings, texts, task))
    assert again.digest == answer.digest
    assert Answer.model_validate_json(answer.model_dump_json()) == answer  # programs send the same as JSON


def test_an_answer_is_another_whatever_changes() -> None:
    base = form(verdict="1", active_seconds="1")
    digests = {
        answer_of_form(base | change).digest
        for change in ({}, {"verdict": "2"}, {"rationale": "x"}, {"flag.0": ["other"]}, {"edit.0": "y"})
    }
    assert len(digests) == 5
    assert answer_of_form(base | {"active_seconds": "9"}).digest == answer_of_form(base).digest
