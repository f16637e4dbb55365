"""What of the data can be used: prompts are cut, answers are not, and whatever is left out is counted with its reason."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, FinishReason, Message, Pair, Prompt, Ranking
from bridle.models.batches import Group
from bridle.models.encoding import (
    CONTROL,
    DROPPED,
    EMPTY,
    EVEN,
    HINTS,
    LEFT,
    LEFT_OUT,
    LONG,
    NO_ROOM,
    OLD_TURNS,
    OUTSIDE,
    REFUSED,
    REWRITTEN,
    SAME,
    DataReport,
    cut_prompt,
    encode_demonstrations,
    encode_pairs,
    encode_rankings,
    min_prompt_tokens,
    prompts_that_fit,
    render_answer,
    render_prompt,
)
from bridle.models.template import Template
from tests.models.tiny import one_sentence, template

HI = Prompt.from_text("Hi")
SYSTEM = Message("system", "Be brief.")
FIRST, REPLY = Message("user", "My cat is bored, and so am I, all day long."), Message("assistant", "Play.")
LAST = Message("user", "What else?")
UNSPEAKABLE = (
    "<|end|>\U00100000"  # a special token's text beside a character that marks such tokens: cannot be encoded as text
)
TALK = Prompt((SYSTEM, FIRST, REPLY, FIRST, REPLY, LAST))
STRICT = (  # as Llama 2's: turns must take turns, and there is no system
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
FORGETFUL = (  # as models that think: what was thought is left out of earlier turns, here the question itself
    "{% for m in messages %}{% if m.role == 'user' and not (loop.last or '?' in m.content) %}{{ 'x' }}{% else %}"
    "{{ m.content }}{% endif %}{% endfor %}"
)


Renderings = list[tuple[tuple[Message, ...], bool]]


def length(t: Template, *messages: Message) -> int:
    return len(t.prompt_ids([Prompt(messages)])[0])


def written(text: str, prompt: Prompt = HI) -> Completion:
    return Completion(prompt.id, text)


def sampled(text: str, ids: Sequence[int], prompt: Prompt = HI) -> Completion:
    return Completion(prompt.id, text, tuple(ids), (-1.0,) * len(ids), FinishReason.STOP, "stamp")


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> Renderings:
    """The messages of every call of `Template.render` from here on, each with its `answer_next`."""
    calls: Renderings = []
    render = Template.render

    def counted(self: Template, messages: Sequence[Message], *, answer_next: bool) -> str:
        calls.append((tuple(messages), answer_next))
        return render(self, messages, answer_next=answer_next)

    monkeypatch.setattr(Template, "render", counted)
    return calls


# ------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Yes", None), ("Yes<|end|>", None), (" Yes <|end|> ", None), ("", EMPTY), (" \n", EMPTY), ("<|end|>", EMPTY),
        ("Yes<|end|>No", None), ("<|doc|>Yes", None), ("<|pad|>", None),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_answer(text: str, fault: str | None) -> None:
    suffix, found = render_answer(template(), HI, text)
    assert found == fault and suffix == ("" if fault else template().answer_text(HI, text))


@pytest.mark.parametrize("text", ["Hi", "<|doc|>Hi", "Hi<|end|>", "a <|doc|> b"])
def test_nothing_is_wrong_with_a_prompt_of_any_text(text: str) -> None:
    for prompt in (Prompt.from_text(text), Prompt((Message("user", text), REPLY, LAST))):
        assert render_prompt(template(), prompt) == (template().prompt_text(prompt), None)


def test_a_template_that_refuses_a_row_costs_that_row_alone() -> None:
    strict = replace(template(), source=STRICT)
    shown = [(HI, "Yes"), (TALK, "Yes"), (Prompt.from_text("Bye"), "No")]
    kept, report = encode_demonstrations(strict, shown, 96)
    assert [strict.decode(answer) for _, answer in kept] == ["Yes", "No"] and report.dropped == {REFUSED: 1}


def test_a_prompt_that_changes_once_it_is_answered_costs_that_row_alone() -> None:
    forgetful = replace(template(), source=FORGETFUL)
    kept, report = encode_demonstrations(forgetful, [(HI, "Yes"), (Prompt.from_text("Hi?"), "Yes")], 96)
    assert len(kept) == 1 and report.dropped == {REWRITTEN: 1} and report.examples == {REWRITTEN: "Hi"}


# ------------------------------------------------------------------------------------------------------ cutting


def test_whole_old_turns_go_first_and_the_system_stays() -> None:
    t = template()
    whole, two, one = length(t, *TALK.messages), length(t, SYSTEM, FIRST, REPLY, LAST), length(t, SYSTEM, LAST)
    assert whole > two > one
    later, last = (SYSTEM, FIRST, REPLY, LAST), (SYSTEM, LAST)
    for room, messages in ((whole - 1, later), (two, later), (two - 1, last), (one, last)):
        assert cut_prompt(t, TALK, room) == (t.prompt_ids([Prompt(messages)])[0], OLD_TURNS)


@pytest.mark.parametrize("missing", [1, 3, 8])
def test_then_its_first_tokens_go_but_the_start_token_and_the_cue_stay(missing: int) -> None:
    t = template()
    whole = t.prompt_ids([Prompt((SYSTEM, LAST))])[0]
    ids, how = cut_prompt(t, TALK, len(whole) - missing)
    assert how == LEFT and len(ids) == len(whole) - missing
    assert ids == [whole[0], *whole[1 + missing :]] and whole[0] == t.bos_ids[0]
    cue = t.tokenizer.encode("\nAssistant:", add_special_tokens=False).ids
    least = min_prompt_tokens(t, TALK)
    assert least == 1 + len(cue) + 1
    assert cut_prompt(t, TALK, least)[0][2:] == cue


def test_a_template_that_wants_its_order_gets_it() -> None:
    strict = replace(template(), source=STRICT)
    talk = Prompt(TALK.messages[1:])
    room = length(strict, *talk.messages) - 1
    assert cut_prompt(strict, talk, room) == (strict.prompt_ids([Prompt(talk.messages[2:])])[0], OLD_TURNS)


# ------------------------------------------------------------------------------------------------ demonstrations


def test_what_fits_is_what_it_always_was() -> None:
    t, shown = template(), [(HI, "Yes"), (TALK, "No, not at all.")]
    kept, report = encode_demonstrations(t, shown, 200)
    prompts, answers = (
        t.prompt_ids([p for p, _ in shown]),
        t.completion_ids([p for p, _ in shown], [a for _, a in shown]),
    )
    assert kept == list(zip(prompts, answers, strict=True))
    assert report.as_dict() == {"rows": 2, "kept": 2, "cut": {}, "dropped": {}, "examples": {}}
    assert report.lines() == ["demonstrations: all 2 can be used as they are"]


@pytest.mark.parametrize("room", range(-3, 80, 4))
def test_an_answer_is_whole_or_the_row_is_left_out(room: int) -> None:
    t = template()
    answer = t.completion_ids([TALK], ["A long answer, which goes on."])[0]
    limit, least, whole = len(answer) + room, min_prompt_tokens(t, TALK), t.prompt_ids([TALK])[0]
    kept, report = encode_demonstrations(t, [(TALK, "A long answer, which goes on.")], limit)
    if room < least:
        assert not kept and report.dropped == {LONG: 1}
        return
    [(prompt, found)] = kept
    assert found == answer and len(prompt) + len(found) <= limit
    assert (prompt == whole) == (room >= len(whole)) == (not report.cut)


def test_every_row_is_counted_once_with_an_example() -> None:
    shown = [
        (HI, "Yes"), (HI, ""), (Prompt.from_text("Hi there"), " "), (HI, f"x{UNSPEAKABLE}"), (HI, "long " * 80),
        (Prompt.from_text("why? " * 60), "So."),
    ]  # fmt: skip
    kept, report = encode_demonstrations(template(), shown, 60)
    assert len(kept) == report.kept == 2 and report.rows == 6
    assert report.dropped == {EMPTY: 2, CONTROL: 1, LONG: 1} and report.cut == {LEFT: 1}
    assert report.examples[EMPTY] == "Hi" and report.examples[LEFT].startswith("why? why?")
    lines = report.lines()
    assert lines[0] == "demonstrations: 2 of 6 kept, 1 of them cut"
    assert lines[1].startswith("  1 cut: the prompt cut from the left, such as “why? ") and lines[1].endswith("…”")
    assert lines[2] == "  2 dropped: an empty answer, such as “Hi”" and len(lines) == 5


def test_a_demonstration_is_rendered_once_without_its_answer_and_once_with_it(renderings: Renderings) -> None:
    shown = [(Prompt.from_text(f"Question {i}"), f"Answer {i}") for i in range(10)]
    kept, report = encode_demonstrations(template(), shown, 96)
    assert len(kept) == report.kept == 10
    prompts = [(prompt.messages, True) for prompt, _ in shown]
    answers = [((*prompt.messages, Message("assistant", text)), False) for prompt, text in shown]
    assert renderings == [*prompts, *answers]


# --------------------------------------------------------------------------------------------------- comparisons


def compared(pairs: Sequence[Pair], limit: int = 96, t: Template | None = None) -> tuple[Group | None, DataReport]:
    """The group of one prompt's pairs, None where nothing is left of it."""
    groups, report = encode_pairs(t or template(), pairs, limit)
    assert len(groups) < 2 and report.rows == len(pairs)
    return (groups[0] if groups else None), report


def sides(group: Group) -> list[tuple[int, int]]:
    """(place of the chosen answer, of the rejected one) of each pair."""
    return [(pair.better, pair.worse) for pair in group.pairs]


def test_pairs_that_fit_are_kept_as_they_are() -> None:
    t = template()
    yes, no, own = written("Yes"), written("No"), sampled("Why", [40, 41, t.eos_id])
    found, report = compared([Pair(HI, yes, no), Pair(HI, own, no)])
    assert found is not None and found.prompt == t.prompt_ids([HI])[0]
    assert found.answers == [
        t.completion_ids([HI], ["Yes"])[0],
        t.completion_ids([HI], ["No"])[0],
        [40, 41, t.eos_id],
    ]
    assert sides(found) == [(0, 1), (2, 1)]
    assert report.kept == 2 and not report.cut


@pytest.mark.parametrize(
    ("chosen", "rejected", "fault"),
    [
        (written("Yes"), written("Yes "), SAME), (written("Yes"), written("Yes<|end|>"), SAME),
        (written(""), written("No"), EMPTY), (written("Yes"), written("<|end|>"), EMPTY),
        (written("Yes"), written("Yes<|end|> "), SAME), (written("Yes"), written("no " * 90), LONG),
        (sampled("a", [40, 1]), sampled("b", [40, 1]), SAME), (sampled("a", [40] * 95), written("b"), LONG),
    ],
)  # fmt: skip
def test_a_pair_that_says_nothing_is_dropped_and_counted(chosen: Completion, rejected: Completion, fault: str) -> None:
    t = replace(template(), source="{% for m in messages %}{{ m.content | trim }}{% endfor %}")
    found, report = compared([Pair(HI, chosen, rejected)], t=t)
    assert found is None and report.dropped == {fault: 1} and report.kept == 0


def test_a_model_that_ended_at_once_gave_an_answer_of_its_own() -> None:
    found, report = compared([Pair(HI, written("Yes"), sampled("", [template().eos_id]))])
    assert found is not None and report.kept == 1


def test_one_bad_answer_costs_its_own_pairs_alone() -> None:
    good, better, bad = written("Good"), written("Better"), written("bad " * 90)
    pairs = [Pair(HI, better, good), Pair(HI, better, bad), Pair(HI, good, bad)]
    found, report = compared(pairs)
    assert found is not None and sides(found) == [(0, 1)]
    assert found.answers == template().completion_ids([HI] * 2, ["Better", "Good"])
    assert report.dropped == {LONG: 2}


@pytest.mark.parametrize("room", range(8, 80, 6))
def test_the_shared_prompt_is_cut_once_and_what_differs_never(room: int) -> None:
    """The only difference of the two answers stands at their very end."""
    t = template()
    one, other = (written(f"The same words, and then: {end}", TALK) for end in ("yes", "no, never"))
    ids = t.completion_ids([TALK] * 2, [one.text, other.text])
    limit = max(map(len, ids)) + room
    found, report = compared([Pair(TALK, one, other)], limit)
    assert found is not None and found.answers == ids
    assert len(found.prompt) + max(map(len, ids)) <= limit
    assert report.cut.total() == (1 if room < length(t, *TALK.messages) else 0)


def test_a_prompt_that_cannot_be_used_takes_all_its_pairs_along() -> None:
    bad = Prompt.from_text(UNSPEAKABLE)
    found, report = compared([Pair(bad, written("a", bad), written("b", bad))] * 3)
    assert found is None and report.dropped == {CONTROL: 3}


def test_a_prompt_of_many_pairs_and_each_written_answer_are_rendered_once(renderings: Renderings) -> None:
    pairs = []
    for prompt in (Prompt.from_text(f"Question {i}") for i in range(10)):
        yes, no, own = written("Yes", prompt), written("No", prompt), sampled("Why", [40, 41, 1], prompt)
        pairs += [Pair(prompt, yes, no), Pair(prompt, yes, own), Pair(prompt, own, no)]
    groups, report = encode_pairs(template(), pairs, 96)
    assert len(groups) == 10 and report.kept == 30
    assert len(renderings) == len(set(renderings)) == 10 + 20
    assert sum(answer_next for _, answer_next in renderings) == 10


# ------------------------------------------------------------------------------------------------------ rankings


def ranked(*texts_and_ranks: tuple[str, int], judgement: str = "j") -> Ranking:
    answers = tuple(written(text) for text, _ in texts_and_ranks)
    return Ranking(HI, answers, tuple(rank for _, rank in texts_and_ranks), judgement)


def test_equal_texts_keep_their_places_in_a_ranking() -> None:
    """A > B > A′, where A′ says the same as A: three places, and no tie of A and A′."""
    t = template()
    groups, report = encode_rankings(t, [ranked(("Yes", 0), ("No", 1), ("Yes", 2))], 96)
    [group] = groups
    yes, no = t.completion_ids([HI] * 2, ["Yes", "No"])
    assert group.answers == [yes, no, yes] and report.kept == 1 and not group.pairs
    assert [(one.ranks, one.weight) for one in group.rankings] == [((0, 1, 2), 1.0)]
    [turned] = encode_rankings(t, [ranked(("Yes", 0), ("No", 1), ("Yes", 2))], 96, turned=lambda prompt: True)[0]
    assert turned.answers == group.answers and turned.rankings[0].ranks == (2, 1, 0)


def test_rankings_of_one_prompt_share_it() -> None:
    rankings = [ranked(("Yes", 0), ("No", 1), judgement="a"), ranked(("No", 0), ("Why", 0), ("Yes", 1), judgement="b")]
    [group] = encode_rankings(template(), rankings, 96)[0]
    assert len(group.answers) == 3 and [one.weight for one in group.rankings] == [1, 1], "two people on one item"
    apart = [replace(one, item_id=name) for one, name in zip(rankings, "ab", strict=True)]
    assert [one.weight for one in encode_rankings(template(), apart, 96)[0][0].rankings] == [0.5, 0.5]
    assert [one.ranks for one in group.rankings] == [(0, 1, -1), (1, 0, 0)], "-1: not in that ranking"


def test_a_ranking_that_says_nothing_is_dropped_and_counted() -> None:
    rankings = [
        ranked(("Yes", 0), ("No", 0)),  # all tie
        ranked(("Yes", 0), ("Yes", 1)),  # the same tokens
        ranked(("", 0), ("No", 1)),
        ranked(("Yes", 0), ("", 1), ("No", 2)),  # without the empty one it is a ranking still
    ]
    [group], report = encode_rankings(template(), rankings, 96)
    assert report.dropped == {EVEN: 1, SAME: 1, EMPTY: 1} and report.kept == 1
    assert [one.ranks for one in group.rankings] == [(0, 2)] and len(group.answers) == 2


# ------------------------------------------------------------------------------------------------ prompts, limits


def test_prompts_to_answer_are_whole_or_left_out() -> None:
    t = template()
    room = 96 - length(t, *TALK.messages)
    assert prompts_that_fit(t, [HI, TALK], new_tokens=room, limit=96)[0] == [HI, TALK]
    kept, report = prompts_that_fit(t, [HI, TALK, Prompt.from_text(UNSPEAKABLE)], new_tokens=room + 1, limit=96)
    assert kept == [HI] and report.dropped == {NO_ROOM: 1, CONTROL: 1}


def test_a_prompt_that_fits_carries_its_text_and_ids_and_is_never_rendered_again(renderings: Renderings) -> None:
    t = template()
    kept, _ = prompts_that_fit(t, [HI, TALK], new_tokens=1, limit=200)
    assert [answer_next for _, answer_next in renderings] == [True, True]
    ids, texts = t.prompt_ids(kept), [t.prompt_text(prompt) for prompt in kept]
    assert len(renderings) == 2
    assert ids == t.prompt_ids([HI, TALK]) and texts == [t.prompt_text(prompt) for prompt in (HI, TALK)]


def test_faults_of_prompts_are_counted_before_the_room_that_others_lack() -> None:
    _, report = prompts_that_fit(template(), [TALK, Prompt.from_text(UNSPEAKABLE)], new_tokens=96, limit=96)
    assert list(report.dropped) == list(report.examples) == [CONTROL, NO_ROOM]


@pytest.mark.parametrize(
    ("dropped", "limit", "refused"),
    [(5, 0.5, False), (6, 0.5, True), (1, 0.0, True), (9, 1.0, False), (0, 0.0, False)],
)
def test_over_a_share_of_dropped_rows_is_an_error(dropped: int, limit: float, refused: bool) -> None:
    report = DataReport("comparisons", 10)
    report.shorten(LEFT, HI, 10 - dropped)
    if dropped:
        report.drop(SAME, TALK, dropped)
    if not refused:
        report.check(limit)
        return
    with pytest.raises(NoUsableRows, match=f"{dropped} of 10 comparisons cannot be used") as caught:
        report.check(limit)
    told = str(caught.value)
    assert one_sentence(told) and f"{dropped} for {SAME}" in told and "“What else?”" in told
    assert HINTS[SAME] in told and f"data.drop_limit = {limit}" in told


def test_where_nothing_is_left_it_is_an_error_whatever_the_limit() -> None:
    t = template()
    _, report = prompts_that_fit(t, [HI, TALK, Prompt.from_text(UNSPEAKABLE)], new_tokens=95, limit=96)
    with pytest.raises(NoUsableRows) as caught:
        report.check(1.0)
    reason = str(caught.value)
    assert reason.startswith("none of 3 prompts leaves room for 95 new tokens in a context of 96 (2 for no room in the")
    assert f"1 for {CONTROL}; the first begins “Hi”); {HINTS[NO_ROOM]}" in reason and one_sentence(reason)
    _, report = encode_demonstrations(t, [(HI, ""), (TALK, " ")], 96)
    with pytest.raises(
        NoUsableRows, match="none of 2 demonstrations can be used .2 for an empty answer; the first begins “Hi”"
    ):
        report.check(1.0)
    DataReport("prompts", 0).check(0.0)  # nothing was asked for


def test_there_is_advice_for_every_reason() -> None:
    assert HINTS.keys() == {EMPTY, SAME, EVEN, LONG, NO_ROOM, CONTROL, OUTSIDE, REFUSED, LEFT_OUT, REWRITTEN, DROPPED}
