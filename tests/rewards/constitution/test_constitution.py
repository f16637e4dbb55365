"""The constitution as a file, and critique and revision as turns of a dialogue; whoever answers is handed in."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bridle.core.errors import DataError, RecipeError
from bridle.core.records import Message, Prompt
from bridle.rewards.constitution.constitution import (
    Constitution,
    constitution_of,
    load_constitution,
    shipped_constitution,
)
from bridle.rewards.constitution.dialogues import (
    critique_prompt,
    draw_principle,
    read_verdict,
    revise_once,
    revision_prompt,
)

EXAMPLE = {"request": "r", "answer": "a", "critique": "c", "revision": "v"}
KIND = {"name": "kind", "about": "harmless", "critique": "Is it kind?", "revision": "Be kind.", "examples": [EXAMPLE]}
TRUE = {"name": "true", "about": "honest", "critique": "Is it true?", "revision": "Be true."}
TABLES = {"name": "Ours", "language": "en", "nothing": "All is well.", "principles": [KIND, TRUE]}
PROMPT = Prompt((Message("system", "Be brief."), Message("user", "Why?")), {"family": "help"})


@pytest.fixture
def ours() -> Constitution:
    return constitution_of(TABLES, "ours.toml")


def test_the_shipped_ones_say_the_same_in_both_languages() -> None:
    english, chinese = (load_constitution(shipped_constitution(language)) for language in ("en", "zh"))
    assert [(one.name, one.about) for one in english.principles] == [
        (one.name, one.about) for one in chinese.principles
    ]
    assert {one.about for one in english.principles} == {"helpful", "honest", "harmless"}
    for one in (english, chinese):
        # what to reply where nothing is wrong stands in each request, and in the examples that show it
        assert all(one.nothing in principle.critique for principle in one.principles)
        shown = [example.critique for principle in one.principles for example in principle.examples]
        assert {read_verdict(one, critique) for critique in shown} == {"fault", "nothing"}
    assert english.hash != chinese.hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nothing": None}, "it lacks nothing; add it"),
        ({"principles": []}, "principles Tuple should have at least 1 item"),
        ({"principle": []}, "it has an unknown key principle; remove it"),
        ({"principles": [KIND, KIND]}, "two principles are called 'kind'; give each a name of its own"),
        ({"principles": [{**KIND, "critique": "  "}]}, "principles.0.critique String should have at least 1 character"),
        ({"principles": [{**KIND, "examples": [{"request": "r"}]}]}, "it lacks principles.0.examples.0.answer"),
    ],
)
def test_what_is_no_constitution_is_refused_in_a_sentence(change: dict[str, object], words: str) -> None:
    tables = {key: value for key, value in (TABLES | change).items() if value is not None}
    with pytest.raises(DataError, match=r"^the constitution ours\.toml is invalid: ") as found:
        constitution_of(tables, "ours.toml")
    assert words in str(found.value)


def test_a_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_constitution(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(DataError, match="is not valid TOML"):
        load_constitution(tmp_path / "bad.toml")
    with pytest.raises(RecipeError, match="no constitution in 'fr', it has them in en, zh"):
        shipped_constitution("fr")


def test_the_turns_of_critique_and_revision(ours: Constitution) -> None:
    kind, true = ours.principles
    asked = critique_prompt(PROMPT, "So.", kind)
    turns = [(message.role, message.content) for message in asked.messages]
    assert turns[0] == ("system", "Be brief.")
    assert turns[1:7] == [
        ("user", "r"), ("assistant", "a"), ("user", "Is it kind?"), ("assistant", "c"), ("user", "Be kind."), ("assistant", "v"),
    ]  # fmt: skip
    assert turns[7:] == [("user", "Why?"), ("assistant", "So."), ("user", "Is it kind?")]
    after = revision_prompt(asked, "It is rude.", kind)
    assert (
        after.messages[:-2] == asked.messages
        and after.text == "Be kind."
        and after.messages[-2].content == "It is rude."
    )
    assert len(critique_prompt(PROMPT, "So.", true).messages) == 4 and asked.meta == PROMPT.meta


def test_a_principle_is_drawn_by_seed_prompt_and_round(ours: Constitution) -> None:
    prompts = [Prompt.from_text(f"question {number}") for number in range(400)]
    drawn = [draw_principle(ours, prompt, 0, 7).name for prompt in prompts]
    assert drawn == [draw_principle(ours, prompt, 0, 7).name for prompt in reversed(prompts)][::-1]
    assert 0.4 < drawn.count("kind") / 400 < 0.6
    for other in (
        [draw_principle(ours, p, 1, 7).name for p in prompts],
        [draw_principle(ours, p, 0, 8).name for p in prompts],
    ):
        assert 0.4 < sum(a == b for a, b in zip(drawn, other, strict=True)) / 400 < 0.6


@pytest.mark.parametrize(
    ("critique", "verdict"),
    [
        ("All is well.", "nothing"), ("  all is\nWELL", "nothing"), ('"All is well."', "nothing"), ("**All is well.** Truly.", "nothing"),
        ("It is rude. Else all is well.", "fault"), ("It is rude.", "fault"), ("All", "fault"),
        ("", "unreadable"), (" ...\n", "unreadable"), (None, "not_asked"),
    ],
)  # fmt: skip
def test_a_verdict_is_read(critique: str | None, verdict: str, ours: Constitution) -> None:
    assert read_verdict(ours, critique) == verdict


def test_a_round_revises_what_is_faulty_and_leaves_the_rest(ours: Constitution) -> None:
    """One by one: a fault, none, no reply to the critique, none to the revision, an empty revision, and what cannot be asked."""
    critiques = {
        "rude": "It is rude.",
        "fine": "All is well.",
        "odd": "",
        "stuck": "It is rude.",
        "mute": "It is rude.",
        "long": None,
    }
    revised = {"rude": " Dear friend. ", "stuck": None, "mute": " "}
    rewritten: list[str] = []

    def criticise(asked: Sequence[Prompt]) -> list[str | None]:
        return [critiques[prompt.messages[-2].content] for prompt in asked]

    def rewrite(asked: Sequence[Prompt]) -> list[str | None]:
        rewritten.extend(prompt.messages[-4].content for prompt in asked)
        return [revised[prompt.messages[-4].content] for prompt in asked]

    answers = list(critiques)
    prompts = [Prompt.from_text(f"question {answer}") for answer in answers]
    steps = revise_once(ours, prompts, answers, [ours.principles[0]] * len(answers), criticise, rewrite)
    assert [step.answer for step in steps] == ["Dear friend.", "fine", "odd", "stuck", "mute", "long"]
    assert [step.verdict for step in steps] == ["fault", "nothing", "unreadable", "fault", "fault", "not_asked"]
    assert [step.revision for step in steps] == [" Dear friend. ", None, None, None, " ", None]
    assert rewritten == ["rude", "stuck", "mute"], "what is well is not revised"
    assert revise_once(ours, [], [], [], criticise, rewrite) == []
