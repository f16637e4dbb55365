"""The second world of full size: everything works on it, it shares nothing with the default one, and is about as hard."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from bridle.core.files import read_toml
from bridle.core.records import FinishReason
from bridle.playground.gold import Gold, author_table
from bridle.playground.grammar import Grammar, split_sentences
from bridle.playground.labelers import agreement, rank
from bridle.playground.spec import DEFAULT_WORLD, FAMILIES, QUALITIES, Family
from bridle.playground.world import World
from tests.playground.conftest import HARBOUR

FAIR = {"noise": 0.0, "side_bias": 0.0, "flattery_bias": 0.0, "length_bias": 0.0, "topics": {}}


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_works_on_it(harbour: World, family: Family) -> None:
    gold, rng = Gold(harbour), random.Random(0)
    fair = harbour.spec.labelers[0].model_copy(update=FAIR)
    rankings, scores, points = [], [], Counter[str]()
    for held_out in (False, True):
        for _ in range(60):
            prompt = harbour.prompt(rng, family, held_out)
            texts = [harbour.answer(rng, prompt, quality) for quality in QUALITIES]
            marks = [gold.score(prompt, text, FinishReason.STOP, "test") for text in texts]
            assert not any(mark.flags["unparsable"] or mark.flags["other_turns"] for mark in marks), texts
            rankings.append(rank(fair, rng, prompt, texts, marks, (2, 0, 1), seen=0))
            scores.append(marks)
            points += Counter({quality: 8 + mark.points for quality, mark in zip(QUALITIES, marks, strict=True)})
    assert agreement(rankings, scores) == 1.0
    assert points["good"] > points["mid"] > points["bad"]
    assert len(harbour.held_out_prompts(200, seed=0, family=family)) == 200


def test_worked_solutions_are_right(harbour: World) -> None:
    gold, rng, problems = Gold(harbour), random.Random(0), set()
    for _ in range(200):
        prompt = harbour.prompt(rng, "math")
        text = harbour.worked_solution(rng, prompt)
        score = gold.score(prompt, text, FinishReason.STOP, "test")
        assert score.flags["correct"] and score.points > 3.5, text  # no step is wrong
        problems.add(prompt.meta["problem"])
    assert problems == set(harbour.spec.math.problems)


def test_its_held_out_prompts_never_occur_in_training(harbour: World) -> None:
    rng = random.Random(0)
    held_out = {prompt.text for seed in (0, 1, 1_000_000) for prompt in harbour.held_out_prompts(1024, seed=seed)}
    assert len(held_out) >= 1500
    assert not held_out & {harbour.prompt(rng).text for _ in range(10_000)}
    turn = r"\w+ says: (?:\w+ asked this: )?"
    lines = {re.sub(turn, "", line) for _ in range(2_000) for line in harbour.document(rng).split("\n")}
    assert any(harbour.prompt(random.Random(seed)).text in lines for seed in range(1000))  # so the turns were taken off
    assert not held_out & lines


def test_it_shares_no_word_with_the_default_world() -> None:
    """No name, thing, template or sentence of the one file stands in the other."""
    ours, others = (read_toml(path) for path in (DEFAULT_WORLD, HARBOUR))
    assert not set(texts_of(ours)) & set(texts_of(others))


def texts_of(file: Mapping[str, Any]) -> Iterator[str]:
    """All that a world says: the texts among its values, and where keys are such."""
    yield from (*file["border"], *file["harm"]["complying"], *file["joke"]["wishes"], *file["poem"]["topics"])
    waiting: list[Any] = [file]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | Mapping):
            waiting += value.values() if isinstance(value, Mapping) else value


def test_it_shares_no_sentence_with_the_default_world(world: World, harbour: World) -> None:
    ours, others = (spoken(each) for each in (world, harbour))
    assert not ours & others
    for sentences, of_the_other in ((ours, harbour), (others, world)):
        grammar = Grammar(of_the_other.spec)
        assert not [sentence for sentence in sentences if grammar.look_up(sentence)]


def spoken(world: World) -> set[str]:
    """Sentences of prompts and of answers."""
    rng = random.Random(0)
    dialogues = [world.demonstration(rng) for _ in range(3000)]
    return {sentence for prompt, text in dialogues for sentence in split_sentences(f"{prompt.text} {text}")}


def test_it_is_about_as_hard_as_the_default_world(world: World, harbour: World) -> None:
    assert harbour.spec.rubric == world.spec.rubric
    ours, others = (author_table(each, Gold(each), random.Random(0), 300) for each in (world, harbour))
    assert others.demonstrations == pytest.approx(ours.demonstrations, abs=0.3)
    for family in FAMILIES:
        assert others.means[family]["good"] == pytest.approx(ours.means[family]["good"], abs=0.3)
        assert others.means[family]["bad"] == pytest.approx(ours.means[family]["bad"], abs=0.5)
    # Where nobody likes flattery or length, no reward model is out-run by them.
    liking = [(labeler.flattery_bias, labeler.length_bias) for labeler in harbour.spec.labelers]
    assert all(flattery >= 0.5 and length >= 0.2 for flattery, length in liking)
