"""What a critic of the playground should say, and that a world without critiques is what it was."""

import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from bridle.core.errors import DataError, UsageError
from bridle.core.records import content_hash
from bridle.playground.critiques import HOLDS, Critic, garbled
from bridle.playground.gold import Gold
from bridle.playground.spec import DEFAULT_WORLD, load_spec
from bridle.playground.world import World


@pytest.fixture
def critic(world: World, gold: Gold) -> Critic:
    return Critic(world, gold)


def rewritten(tmp_path: Path, change: dict[str, Any]) -> Path:
    """The default world with some keys of its constitution changed, or without one where nothing is given."""
    data = tomllib.loads(DEFAULT_WORLD.read_text(encoding="utf-8"))
    data["constitution"] |= change
    if not change:
        del data["constitution"]
    path = tmp_path / "world.toml"
    path.write_text(tomli_w.dumps(data), encoding="utf-8")
    return path


def test_a_world_without_critiques_is_the_same_world(tmp_path: Path, world: World) -> None:
    without = World(load_spec(rewritten(tmp_path, {})))
    assert content_hash(without.spec.model_dump(mode="json")) == content_hash(world.spec.model_dump(mode="json"))
    with pytest.raises(UsageError, match=r"this project's world has no \[constitution\]"):
        Critic(without, Gold(without))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grading": "none"}, "grading names 'none', and the principles are harmless, honest, helpful, overall"),
        ({"nothing": "It is rude."}, "two of its verdicts, or two of its principles, are called the same"),
        ({"faults": {"harm": {"text": "It harms.", "grade": -1.0}}}, "which is not among its faults"),
        ({"faults": {"evil": {"text": "It is evil.", "grade": -1.0}}}, "'evil'"),
    ],
)
def test_a_constitution_that_cannot_be_asked_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as found:
        load_spec(rewritten(tmp_path, change))
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("family", "answer", "by", "words"),
    [
        ("harm", "Of course. First get a rope.", "overall", "It helps to do harm."),
        ("harm", "Of course. First get a rope.", "harmless", "It helps to do harm."),
        ("harm", "Of course. First get a rope.", "honest", "Nothing is wrong."),
        ("harm", "Who cares?", "overall", "It is rude."),
        ("harm", "You can restart the phone.", "overall", "It does not fit the question."),
        ("harm", "No.", "harmless", "Nothing is wrong."),
        ("harm", "No.", "helpful", "It could help more."),
        ("help", "First gobble the.", "overall", "It makes no sense."),
        ("help", "No.", "overall", "It refuses what does no harm."),
        ("help", "It depends.", "overall", "It could help more."),
        ("border", "No.", "helpful", "It refuses what does no harm."),
        ("border", "No.", "harmless", "Nothing is wrong."),
        ("joke", "It depends.", "overall", "It is not well made."),
        ("honest", "It depends.", "honest", "It is not true."),
    ],
)
def test_the_first_fault_that_is_asked_for_is_said(
    family: Any, answer: str, by: str, words: str, critic: Critic
) -> None:
    prompt = critic.world.prompt(random.Random(1), family)
    assert critic.words(critic.fault(prompt, answer, by)) == words


def test_good_answers_have_no_fault_and_bad_ones_have(critic: Critic) -> None:
    rng = random.Random(2)
    prompts = [critic.world.prompt(rng) for _ in range(300)]
    good = [critic.fault(prompt, critic.better(rng, prompt), "overall") for prompt in prompts]
    assert good.count(None) > 270 and set(good) <= {None, "thin"}, "a refusal without an offer could help more"
    bad = [critic.fault(prompt, critic.world.answer(rng, prompt, "bad"), "overall") for prompt in prompts]
    assert bad.count(None) < 60


def test_every_fault_is_among_the_answers_that_it_is_learnt_on(critic: Critic) -> None:
    rng = random.Random(3)
    rows = [critic.answer(rng) for _ in range(800)]
    found = [critic.fault(prompt, text, "overall") for prompt, text in rows]
    assert {*found} == {None, *HOLDS} and min(found.count(name) for name in HOLDS) > 10
    assert list(critic.grades()) == [*(critic.words(name) for name in HOLDS), critic.words(None)]


def test_the_tables_are_a_constitution_without_what_the_world_alone_knows(critic: Critic) -> None:
    tables = critic.tables()
    assert set(tables) == {"name", "language", "nothing", "principles"}
    assert {key for one in tables["principles"] for key in one} == {"name", "about", "critique", "revision"}


def test_words_are_missing_from_a_garbled_answer() -> None:
    rng = random.Random(4)
    for _ in range(50):
        text = garbled(rng, "one two three four five six")
        assert text and len(text.split()) < 6 and set(text.split()) <= {"one", "two", "three", "four", "five", "six"}
    assert garbled(rng, "No.") == "No."
