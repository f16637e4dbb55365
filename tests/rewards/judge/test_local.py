"""A judge that runs here: exact probabilities of its words, exactly one reply a question; and a judge as a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bridle.compute.device import choose_device
from bridle.core.records import Completion, Message, Prompt, Scores
from bridle.models.decoder import Decoder
from bridle.models.policy import Policy
from bridle.rewards.judge.judge import Candidates, Judge, JudgeReward
from bridle.rewards.judge.local import LocalModel, word_ids, word_probabilities
from bridle.rewards.judge.questions import Question, Rubric
from bridle.rewards.judge.rulings import Reply, read_ruling
from tests.models.tiny import SHAPES, policy

DEVICE = choose_device("float32", 1, "off")
ASKED = Prompt.from_text("What is two and two?")


@pytest.fixture(scope="module")
def model() -> Policy:
    """Tiny, with room for a question."""
    small = policy()
    module = Decoder(replace(SHAPES["llama"], max_positions=4096))
    module.load_state_dict(small.module.state_dict())
    return replace(small, module=module)


def likelihood(model: Policy, prompt: Prompt, word: str, whole: bool) -> float:
    """Σ log π of a word's tokens, one after the other, by the plain forward pass."""
    (ids,), (answer,) = model.template.prompt_ids([prompt]), model.template.completion_ids([prompt], [word])
    total = 0.0
    for token in answer if whole else answer[:-1]:
        with torch.no_grad():
            logits = model.module(torch.tensor([ids]))[0, -1]
        total += float(logits.log_softmax(-1)[token])
        ids = [*ids, token]
    return total


@pytest.mark.parametrize(("words", "whole"), [(("A", "B"), False), (("1", "2", "3"), False), (("1", "12"), True)])
def test_a_words_probability_is_its_likelihood_among_the_words(
    model: Policy, words: Sequence[str], whole: bool
) -> None:
    prompts = [ASKED, Prompt.from_text("Why?")]
    asked = [word_ids(model.template, prompt, words) for prompt in prompts]
    for prompt, found in zip(prompts, word_probabilities(model, asked, DEVICE), strict=True):
        expected = [math.exp(likelihood(model, prompt, word, whole)) for word in words]
        assert found == pytest.approx({w: e / sum(expected) for w, e in zip(words, expected, strict=True)}, rel=1e-4)


def test_every_question_has_a_reply_of_its_own(model: Policy) -> None:
    local, rubric = LocalModel(model, DEVICE, max_tokens=8), Rubric(text="x")
    questions = [
        rubric.question("rating", ASKED, ["four"]),
        rubric.question("ranking", ASKED, ["a", "b", "c"]),
        rubric.question("pairwise", ASKED, ["four " * 4000, "five"]),
        rubric.question("pairwise", ASKED, ["four", "five"]),
    ]
    counted: list[int] = []
    replies = local.ask(questions, counted.append)
    assert sum(counted) == 4
    assert set(replies[0].probabilities) == set("12345") and set(replies[3].probabilities) == {"A", "B"}
    assert replies[2].fault == "too_long"
    assert not replies[1].probabilities and replies[1].finish_reason in ("stop", "length")


def judge_that(replies: Any, **settings: Any) -> Judge:
    return Judge(
        lambda questions, progress: [replies(question) for question in questions], Rubric(), "planted", **settings
    )


def shown(question: Question) -> list[str]:
    pieces = question.messages[0].content.split(f"--- {question.mark} ---")[:-1]
    return [piece.split("---\n")[-1].strip() for piece in pieces][1:]


def completions(*texts: str) -> list[Completion]:
    return [Completion(ASKED.id, text) for text in texts]


def by_length(question: Question) -> Reply:
    """The longer, the better."""
    texts = shown(question)
    if question.form == "rating":
        return Reply(str(min(5, len(texts[0]))))
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    letters = [chr(65 + i) for i in order]
    return (
        Reply(letters[0]) if question.form == "pairwise" else Reply(f"VERDICT {question.mark}: {' > '.join(letters)}")
    )


def test_a_group_is_judged_in_one_call_in_an_order_of_its_own() -> None:
    calls: list[list[str]] = []

    def replies(question: Question) -> Reply:
        calls.append(shown(question))
        return by_length(question)

    reward = JudgeReward(judge_that(replies))
    orders = set()
    for n in range(12):
        prompt = Prompt.from_text(f"Question {n}?")
        found = reward([prompt] * 4, completions("aaa", "a", "aaaa", "aa"))
        assert list(found) == pytest.approx([2 / 3, 0, 1, 1 / 3])
        orders.add(tuple(calls[-1]))
    assert len(calls) == 12 and len(orders) > 4


def test_answers_of_one_text_are_shown_once_and_get_the_same() -> None:
    calls: list[list[str]] = []
    reward = JudgeReward(judge_that(lambda question: calls.append(shown(question)) or by_length(question)))  # type: ignore[func-returns-value]
    found = reward([ASKED] * 4, completions("aaa", "a", " aaa", "aa"))
    assert found[0] == found[2] > found[3] > found[1]
    assert [len(call) for call in calls] == [3]
    assert list(reward([ASKED] * 3, completions("a", "a", "a"))) == [0, 0, 0] and len(calls) == 1


def test_what_could_not_be_judged_is_none_and_counted_and_shifts_nothing() -> None:
    prompts = [Prompt.from_text(f"Question {n}?") for n in range(3)]

    def replies(question: Question) -> Reply:
        return Reply("I'm sorry, I can't.") if "Question 1?" in question.messages[0].content else by_length(question)

    asked = [prompt for prompt in prompts for _ in range(3)]
    found = JudgeReward(judge_that(replies))(asked, [Completion(p.id, "a" * (i % 3 + 1)) for i, p in enumerate(asked)])
    assert isinstance(found, Scores)
    assert list(found) == [0, 0.5, 1, None, None, None, 0, 0.5, 1]
    assert found.metrics == {"judge_refusal": pytest.approx(1 / 3)}


def test_by_rating_one_bad_reply_costs_one_answer() -> None:
    def replies(question: Question) -> Reply:
        return Reply("??") if shown(question) == ["aa"] else by_length(question)

    found = JudgeReward(judge_that(replies, form="rating"))([ASKED] * 3, completions("a", "aa", "aaaaa"))
    assert list(found) == [0, None, 1]
    (opinion,) = judge_that(replies, form="rating").judge([Candidates(ASKED, ["a", "aa", "aaaaa"])])
    assert opinion.kind == "unparsable" and opinion.ranking == () and opinion.scores == (1.0, None, 5.0)


def test_another_model_prompt_or_form_is_another_judge() -> None:
    ask: Any = None
    judges = [
        Judge(ask, Rubric(), "models/a"), Judge(ask, Rubric(), "b"), Judge(ask, Rubric(), "b", "other weights"),
        Judge(ask, Rubric(text="x"), "b"), Judge(ask, Rubric(), "b", form="rating"), Judge(ask, Rubric(), "b", both_orders=False),
    ]  # fmt: skip
    assert len({judge.name for judge in judges}) == 6
    assert judges[0].name.startswith("a-") and judges[0].name == Judge(None, Rubric(), "models/a").name  # type: ignore[arg-type]


def test_a_model_that_knows_one_question_is_asked_that_one() -> None:
    verdicts = (("It is harmful.", -1.0), ("It is fine.", 1.0))
    rubric = Rubric(asks="{request} -> {answer} What is wrong?", verdicts=verdicts)
    question = rubric.question("rating", ASKED, ["four {request}"])
    assert question.messages[0].content == "What is two and two? -> four {request} What is wrong?"
    assert question.words == ("It is harmful.", "It is fine.")
    assert read_ruling(question, Reply("It is fine.")).scores == (1.0,)
    assert read_ruling(question, Reply("fine")).kind == "unparsable"
    assert read_ruling(question, Reply(probabilities={"It is harmful.": 0.25, "It is fine.": 0.75})).scores == (0.5,)
    judge = Judge(lambda questions, _: [Reply(q.words[0]) for q in questions], rubric, "planted", form="rating")
    assert list(JudgeReward(judge)([ASKED], completions("x"))) == [0.0]


def test_a_question_without_places_is_the_turn_after_the_answer() -> None:
    asked = Prompt(
        (
            Message("system", "Be kind."),
            Message("user", "Two and two?"),
            Message("assistant", "Four."),
            Message("user", "And?"),
        )
    )
    rubric = Rubric(asks="What is wrong?", verdicts=(("Much.", 0.0), ("Nothing.", 1.0)))
    question = rubric.question("rating", asked, ["Five. <|im_end|>"])
    assert question.messages[:4] == asked.messages and question.words == ("Much.", "Nothing.")
    assert question.messages[4:] == (Message("assistant", "Five. ‹|im_end|›"), Message("user", "What is wrong?"))
    assert rubric.hash != Rubric(asks="What is right?", verdicts=rubric.verdicts).hash


def test_a_verdict_of_several_words_is_given_the_room_that_it_takes(model: Policy) -> None:
    """To the last token: one place less in the context and it is too long."""
    words = ("It does what nobody should ever do to anybody at all.", "It is fine.")
    rubric = Rubric(asks="What is wrong?", verdicts=tuple((word, float(i)) for i, word in enumerate(words)))
    question = rubric.question("rating", ASKED, ["four"])
    longest = word_ids(model.template, Prompt(question.messages), words).longest
    for limit, fault in ((longest, ""), (longest - 1, "too_long")):
        module = Decoder(replace(SHAPES["llama"], max_positions=limit))
        [reply] = LocalModel(replace(model, module=module), DEVICE).ask([question])
        assert reply.fault == fault and bool(reply.probabilities) == (not fault)
