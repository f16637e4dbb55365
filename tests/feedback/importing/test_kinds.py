"""Rows of the kinds that have been read for less than they say, or for the opposite: what is kept of each, or why it is skipped."""

from typing import Any

import pytest

from bridle.feedback.importing.formats import read_row
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.reasons import Note, Reason, Skip

Row = dict[str, Any]
ASK, GOOD, BAD = "Name a fish.", "Carp.", "A dog."
ASKED, ANSWERED = {"role": "user", "content": ASK}, {"role": "assistant", "content": GOOD}
ONE = {"prompt": ASK, "response": GOOD}
PAIR = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
TWO = {"prompt": ASK, "response_1": GOOD, "response_2": BAD}
LONG = "What is the colour of the sky?"


def becomes(row: Row) -> ImportedRow:
    (found,), _ = read_row(row)
    return found


def reason_of(row: Row) -> Reason:
    with pytest.raises(Skip) as skipped:
        read_row(row)
    return skipped.value.reason


SKIPPED: dict[Reason, list[Row]] = {
    Reason.UNREAD_ANSWER: [
        {"prompt": ASK, "gpt4_answer": GOOD},
        {"question": ASK, "best_answer": GOOD, "incorrect_answers": [BAD]},
        {"prompt": ASK, "text": GOOD},
        {"question": ASK, "human_answers": [GOOD], "chatgpt_answers": [BAD]},
        {"query": ASK, "pos": [GOOD], "neg": [BAD]},
        {"prompt": ASK, "code": "x"},
        {"prompt": ASK, "canonical_solution": "return 1", "test": "assert"},
        {"problem": ASK, "steps": ["a", "b"], "label": 1},
        {"question": ASK, "correct_answer": GOOD, "distractor1": BAD},
    ],
    Reason.UNREAD_VOTE: [
        {**ONE, name: value}
        for name, value in {
            "toxicity": 1,
            "grade": "F",
            "upvotes": 3,
            "dislikes": 4,
            "scores": {"helpful": 1},
            "ratings": [1, 5],
            "labels": [1, 0],
            "rewards": [0.1],
            "safety": "unsafe",
            "refusal": True,
            "outcome": 0,
            "result": "fail",
            "jailbroken": True,
            "evaluation": "bad",
            "assessment": "wrong",
            "is_useful": False,
            "user_rating": 1,
        }.items()
    ],
    Reason.UNREAD_TURN: [
        {"x": LONG, "chosen": "The sky is blue", "rejected": "The sky is green"},
        {"question": ASK, "A": "a", "B": "b", "C": "c", "answer": "C"},
        {**ONE, "history": ["a", "b", "c"]},
        *({**ONE, name: "Some text."} for name in ("preamble", "persona", "instructions", "document", "evidence")),
    ],
    Reason.NOT_TRAINED: [
        {"prompt": [ASKED], "completion": [{**ANSWERED, "weight": 0}]},
        {"messages": [ASKED, {**ANSWERED, "train": "false"}]},
        {"messages": [ASKED, {**ANSWERED, "train_on_turn": False}]},
        {**PAIR, "chosen": {**ANSWERED, "weight": 0}},
        {**ONE, "loss_weight": 0},
        {**PAIR, "train": False},
        {**ONE, "label": True, "is_train": "no"},
    ],
    Reason.UNREAD_WEIGHT: [
        {"messages": [ASKED, {**ANSWERED, "mask": 1}]},
        {"messages": [ASKED, {**ANSWERED, "weight": 0.5}]},
    ],
    Reason.UNCHECKED: [
        {"prompt": ASK, "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "en"}]},
        {"prompt": ASK, "instruction_id_list": ["punctuation:no_comma", "count:words_japanese"], "kwargs": [{}, {}]},
    ],
    Reason.DISCARDED: [
        {**ONE, "deleted": True},
        {**ONE, "status": "draft"},
        {**PAIR, "status": "discarded"},
        {**PAIR, "skip": "true"},
        {**ONE, "is_spam": 1},
        {**ONE, "keep": False},
        {
            "message_tree_id": "t",
            "tree_state": "aborted_low_grade",
            "prompt": {"role": "prompter", "text": ASK, "replies": [{"role": "assistant", "text": GOOD}]},
        },
    ],
    Reason.IMAGES: [
        {**ONE, "img": "a.png"},
        {**ONE, "image_paths": ["a.png"]},
        {**ONE, "pixel_values": [0.1]},
        {"prompt": "<image>\nWhat?", "response": GOOD},
        {"messages": [{"role": "user", "content": [{"image": "x"}, {"text": ASK}]}, ANSWERED]},
        {
            "contents": [
                {"role": "user", "parts": [{"inlineData": {"x": 1}}, {"text": ASK}]},
                {"role": "model", "parts": [{"text": GOOD}]},
            ]
        },
    ],
    Reason.TOOLS: [{"messages": [ASKED, {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]}],
    Reason.UNCLEAR_VERDICT: [
        {**TWO, "votes": {"a": 3, "b": 1}},
        {**TWO, "votes_1": 3, "votes_2": 1},
        {"prompt": ASK, "responses": [GOOD, BAD], "ranking": "B>A"},
        {"prompt": ASK, "responses": [GOOD, BAD], "best": 1},
        {**TWO, "preference_strength": -100},
    ],
    Reason.UNCLEAR_VOTE: [{**ONE, "label": {"value": 0}}],
    Reason.UNCLEAR_MARK: [{"prompt": ASK, "red_team": "maybe"}, {**ONE, "red_team": 2}],
    Reason.ONE_SIDE: [{**PAIR, "rejected": []}],
    Reason.WRONG_TYPE: [{"prompt": ASK, "reward_model": {"ground_truth": {"target": ["4"]}}}],
}


@pytest.mark.parametrize(("reason", "row"), [(reason, row) for reason, rows in SKIPPED.items() for row in rows])
def test_what_cannot_be_kept_whole_is_skipped_for_its_own_reason(reason: Reason, row: Row) -> None:
    assert reason_of(row) == reason


@pytest.mark.parametrize(
    ("field", "value", "vote", "criterion"),
    [
        ("is_bad", True, 0, None),
        ("is_harmful", 1, 0, "harmless"),
        ("unsafe", "false", 1, "harmless"),
        ("incorrect", 0, 1, None),
        ("rejected", True, 0, None),
        ("passed", False, 0, None),
        ("verified", "no", 0, None),
        ("label", "F", 0, None),
        ("label", "+", 1, None),
        ("toxic", True, 0, "harmless"),
        ("isSafe", False, 0, "harmless"),
    ],
)
def test_votes_in_every_spelling(field: str, value: Any, vote: int, criterion: str | None) -> None:
    found = becomes({**ONE, field: value})
    assert [(one.kind, one.value, one.criterion) for one in found.opinions] == [
        ("vote", vote, criterion)
    ] and not found.imitate


def test_a_warning_that_is_not_raised_is_no_vote() -> None:
    assert becomes({**ONE, "toxic": False, "flagged": 0}).imitate


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({**PAIR, "both_bad": True}, "both_bad"),
        ({**PAIR, "equal": True}, "tie"),
        ({**TWO, "both_good": 1}, "both_good"),
        ({**PAIR, "chosen_avg_rating": 4.0, "rejected_avg_rating": 4.0}, "tie"),
        ({**PAIR, "scores": {"chosen": 4, "rejected": 4}}, "tie"),
        ({"prompt": '["a?"]', "response_a": '["1"]', "response_b": '["2"]', "winner": "tie"}, "tie"),
        ({**TWO, "winner": "model_b"}, "preference"),
        ({"prompt": ASK, "winner": GOOD, "loser": BAD}, "preference"),
        ({"prompt": ASK, "good": GOOD, "bad": BAD}, "preference"),
        ({"prompt": {"messages": [ASKED]}, "chosen": GOOD, "rejected": BAD}, "preference"),
        ({**TWO, "pw": {"selected": "left"}}, "preference"),
        ({"prompt": ASK, "responses": '["a", "b"]', "scores": "[5, 3]"}, "ranking"),
        ({"row_idx": 0, "row": PAIR, "truncated_cells": []}, "preference"),
    ],
)
def test_comparisons_in_every_spelling(row: Row, kind: str) -> None:
    assert becomes(row).kinds == [kind]


def test_which_answer_is_the_better_one() -> None:
    assert becomes({**TWO, "winner": "model_b"}).verdicts[0].ranking == ((1,), (0,))
    arena = becomes({"prompt": '["a?"]', "response_a": '["1"]', "response_b": '["2"]', "winner": "model_b"})
    assert (arena.prompt.text, arena.answers, arena.verdicts[0].ranking) == ("a?", ("1", "2"), ((1,), (0,)))
    assert becomes({"prompt": ASK, "winner": GOOD, "loser": BAD}).answers == (GOOD, BAD)


def test_who_says_it_how_strongly_and_by_which_criterion() -> None:
    for field, value in [
        ("annotator_id", 7.0),
        ("annotator_id", "7.0"),
        ("annotator", {"id": 7}),
        ("created_by", "7"),
        ("annotators", ["7"]),
    ]:
        assert becomes({**PAIR, field: value}).verdicts[0].annotator == "7", field
    assert becomes({**PAIR, "annotators": 5}).verdicts[0].annotator == ""
    assert becomes({**PAIR, "margin": "slightly better"}).verdicts[0].strength == 1
    assert becomes({**PAIR, "preference_strength": 2}).verdicts[0].strength == 2
    assert becomes({**PAIR, "criterion": "helpfulness"}).verdicts[0].criterion == "helpfulness"
    assert becomes({**ONE, "rating": 4, "aspect": "honesty"}).opinions[0].criterion == "honesty"


@pytest.mark.parametrize(
    ("row", "solutions"),
    [
        (
            {"problem": ASK, "solution": "So 4", "messages": [ASKED, {"role": "assistant", "content": "So 4"}]},
            ("So 4",),
        ),
        ({"prompt": ASK, "reward_model": '{"style": "rule", "ground_truth": "4"}'}, ("4",)),
        ({"prompt": ASK, "solution": ["4", "four"]}, ("4", "four")),
        ({"messages": [ASKED], "ideal": "4"}, ("4",)),
        ({"prompt": ASK, "expected_output": "4"}, ("4",)),
    ],
)
def test_solutions_in_every_spelling(row: Row, solutions: tuple[str, ...]) -> None:
    found = becomes(row)
    assert (found.kinds, found.solutions) == (["checkable"], solutions)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({**ONE, "systemPrompt": "Be."}, ["Be.", ASK]),
        ({**ONE, "system": {"role": "system", "content": "Be."}}, ["Be.", ASK]),
        (
            {**ONE, "previous_messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            ["a", "b", ASK],
        ),
        ({"instruction": "Double it.", "input": 5, "output": "10"}, ["Double it.\n\n5"]),
        ({"Context": ASK, "Response": GOOD}, [ASK]),
        ({"inputs": ASK, "targets": GOOD}, [ASK]),
        ({"prompt": ASK, "label": "My cat is very bored."}, [ASK]),
        (
            {
                "systemInstruction": {"parts": [{"text": "Be."}]},
                "contents": [{"role": "user", "parts": [{"text": ASK}]}, {"role": "model", "parts": [{"text": GOOD}]}],
            },
            ["Be.", ASK],
        ),
    ],
)
def test_questions_with_all_that_belongs_to_them(row: Row, turns: list[str]) -> None:
    found = becomes(row)
    assert found.imitate and [turn.content for turn in found.prompt.messages] == turns


def test_an_implicit_prompt_is_not_cut_inside_a_turn() -> None:
    begun = "<|im_start|>user\nName a fish.<|im_end|>\n<|im_start|>assistant\n"
    found = becomes({"chosen": begun + "Carp.", "rejected": begun + "Dog."})
    assert (found.prompt.text, found.answers) == (begun.strip(), ("Carp.", "Dog."))


def test_a_list_in_json_as_an_answer_is_noted() -> None:
    assert Note.LIST_TEXT in read_row({**PAIR, "rejected": '["a", "b"]'})[1].notes


def argilla(values: Row, **fields: Any) -> Row:
    return {
        "fields": {"prompt": ASK, **fields},
        "responses": [{"values": values, "status": "submitted", "user_id": "u"}],
    }


def test_exports_keep_comments_apart_and_questions_by_their_criterion() -> None:
    slots = {"response1": GOOD, "response2": BAD}
    one, row = read_row(argilla({"rating": {"value": 4}, "comment": {"value": "nice one"}}, response=GOOD))
    assert one[0].opinions[0].value == 4 and row.unread() == ["comment"]
    two = becomes(argilla({"helpful": {"value": "response1"}, "harmless": {"value": "response2"}}, **slots))
    assert [(v.criterion, v.ranking[0]) for v in two.verdicts] == [("helpful", (0,)), ("harmless", (1,))]
    rated = becomes(
        argilla(
            {"generations-0-rating": {"value": 5}, "generations-1-rating": {"value": 2}},
            **{"generations-0": GOOD, "generations-1": BAD},
        )
    )
    assert [(one.answer, one.value) for one in rated.opinions] == [(0, 5), (1, 2)]
    results = [{"from_name": "pw", "value": {"selected": "right"}}, {"from_name": "why", "value": {"text": ["since"]}}]
    studio, row = read_row(
        {"data": {"prompt": ASK, "text1": GOOD, "text2": BAD}, "annotations": [{"completed_by": 2, "result": results}]}
    )
    assert studio[0].verdicts[0].ranking == ((1,), (0,)) and row.unread() == ["why"]


def chat(rating: int, **user: Any) -> Row:
    messages: Row = {"a": {"parentId": None, "role": "user", "content": ASK, **user}} | {
        name: {"parentId": "a", "role": "assistant", "content": text, "model": model}
        for name, text, model in [("b", GOOD, "m"), ("c", BAD, "n")]
    }
    data = {"rating": rating, "model_id": "m", "sibling_model_ids": ["n"]}
    snapshot = {"chat": {"chat": {"system": "Be.", "history": {"messages": messages}}}}
    return {"user_id": "u", "data": data, "meta": {"arena": True, "message_id": "b"}, "snapshot": snapshot}


def test_chats_with_ties_system_turns_and_files() -> None:
    assert becomes(chat(0)).kinds == ["tie"]
    assert [turn.content for turn in becomes(chat(1)).prompt.messages] == ["Be.", ASK]
    assert reason_of(chat(1, files=[{"type": "image"}])) == Reason.IMAGES


def test_labelled_steps_are_those_that_were_taken() -> None:
    steps = [
        {
            "completions": [{"text": "wrong", "rating": -1}],
            "human_completion": {"text": "right"},
            "chosen_completion": None,
        },
        {"completions": [{"text": "end", "rating": 1}], "human_completion": None, "chosen_completion": 0},
    ]
    found = becomes({"question": {"problem": ASK}, "label": {"steps": steps}, "generation": 3})
    assert found.opinions[0].steps == (("right", 1), ("end", 1))
    assert becomes({"prompt": ASK, "completions": ["a", "b"], "labels": ["+", "-"]}).opinions[0].steps == (
        ("a", 1),
        ("b", 0),
    )


def test_what_a_row_tells_of_itself_is_no_judgement_of_its_answer() -> None:
    described = {
        "label_source": "x",
        "quality_model": "gpt",
        "input_quality": "good",
        "response_length": 3,
        "reward_model": "rm",
        "train": True,
    }
    assert becomes({**ONE, **described}).imitate and becomes({**PAIR, "train": True}).kinds == ["preference"]
    assert becomes({"prompt": ASK, "category": "code", "target_language": "fr", "answer_type": "number"}).kinds == [
        "prompt"
    ]


@pytest.mark.parametrize("flag", ["preferred", "is_accepted", "chosen", "label"])
def test_flags_inside_a_list_of_answers_say_which_is_better(flag: str) -> None:
    found = becomes({"prompt": ASK, "responses": [{"text": BAD, flag: False}, {"text": GOOD, flag: 1}]})
    assert found.verdicts[0].ranking == ((1,), (0,)) and found.verdicts[0].margin is None


def test_scores_inside_the_sides_make_ties_and_margins() -> None:
    sides = {"chosen": {"response": GOOD, "score": 5}, "rejected": {"response": BAD, "score": 5}}
    assert becomes({"prompt": ASK, **sides}).kinds == ["tie"]
    assert becomes({"prompt": ASK, **sides, "rejected": {"text": BAD, "score": 2}}).verdicts[0].margin == 3


def test_verdicts_in_words_keep_their_strength() -> None:
    slots = {"prompt": ASK, "response_a": GOOD, "response_b": BAD}
    for words, place, strength in [
        ("A is slightly better", 0, 1),
        ("Response B is much better than Response A", 1, 3),
        ("B is better", 1, None),
    ]:
        verdict = becomes({**slots, "winner": words}).verdicts[0]
        assert (verdict.ranking[0], verdict.strength) == ((place,), strength), words
    assert becomes({**slots, "winner": "equally bad"}).kinds == ["both_bad"]
