"""What a project's stages take of imported rows: all of them, or as many as the recipe says, drawn by the seed, and said."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.importing.keeping import DEMONSTRATION
from bridle.feedback.store.ratings import add_documents, add_solutions
from bridle.feedback.store.store import Store
from bridle.models.encoding import encode_demonstrations, encode_pairs, notes_of, prompts_that_fit
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages import preferences, pretrain, reward
from bridle.stages.data import PlaygroundData, StoreData, practice_parents
from bridle.stages.methods import METHODS
from bridle.stages.preferences import judged_pairs, training_snapshot
from bridle.stages.workspace import Work
from tests.feedback.conftest import new_store
from tests.models.tiny import policy as tiny_policy
from tests.models.tiny import template
from tests.tiny_project import PLAYGROUND, SHAPE

Row = tuple[str, str]
Opened = Callable[..., StoreData]

WRITTEN = [(f"Question {i}?", f"Answer {i}.") for i in range(60)]


def fill(store: Store, rows: Sequence[Row], split: str = "train") -> None:
    shown = [(Prompt.from_text(asked), text) for asked, text in rows]
    store.add_prompts([prompt for prompt, _ in shown], split=split, source=DEMONSTRATION)
    store.add_completions([Completion(prompt.id, text) for prompt, text in shown], source=DEMONSTRATION)


def judge(
    store: Store, asked: str, texts: Sequence[str], ranking: tuple[tuple[int, ...], ...], who: str = "ann"
) -> None:
    prompt = Prompt.from_text(asked)
    answers = [Completion(prompt.id, text) for text in texts]
    store.add_prompts([prompt], split="train", source="import")
    store.add_completions(answers, source="import")
    [item] = store.add_items([answers], study="import")
    store.add_judgements([Judgement(item, who, LabelerKind.IMPORTED, ranking, None, "import", f"{item}/{who}")])


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """The data of one store under these settings of [data] and this seed."""

    def with_settings(seed: int = 0, **settings: object) -> StoreData:
        recipe = Recipe().with_settings({"seed": seed, **{f"data.{key}": value for key, value in settings.items()}})
        return StoreData(Project(tmp_path, recipe), lambda: store)

    with new_store(tmp_path / "store.sqlite") as store:
        yield with_settings


def asked(rows: Sequence[Prompt]) -> list[str]:
    return [prompt.text for prompt in rows]


# ------------------------------------------------------------------------------------------------------- all, or drawn


def test_all_rows_are_used_where_the_recipe_says_nothing(opened: Opened) -> None:
    data, rows = opened(), [(f"Question {i}?", "Yes.") for i in range(5000)]
    fill(data.store, rows[:3100])
    fill(data.store, rows[3100:], "heldout")
    found: list[Sequence[object]] = [
        data.train_prompts(),
        data.demonstrations(),
        data.heldout_prompts(),
        data.compared_heldout(),
    ]
    assert [len(each) for each in found] == [3100, 3100, 1900, 1900]
    assert [notes_of(each) for each in found] == [(), ("3,100 written, 0 preferred",), (), ()]


def test_a_number_draws_by_the_seed_keeps_the_order_and_says_so(opened: Opened) -> None:
    data = opened(train_prompts=20, demonstrations=10)
    fill(data.store, WRITTEN)
    every, found, shown = asked([Prompt.from_text(q) for q, _ in WRITTEN]), data.train_prompts(), data.demonstrations()
    assert found.notes == ("20 of 60 used (data.train_prompts)",)
    assert shown.notes == ("10 of 60 used (data.demonstrations)", "10 written, 0 preferred")
    for few in (asked(found), asked([prompt for prompt, _ in shown])):
        assert few != every[: len(few)] and few == sorted(few, key=every.index)
        assert max(map(every.index, few)) > 40  # not from the beginning
    assert asked(data.train_prompts()) == asked(found) and data.demonstrations() == shown
    other = opened(train_prompts=20, seed=1).train_prompts()
    assert len(other) == 20 and set(asked(other)) != set(asked(found))
    fewer = opened(train_prompts=5).train_prompts()
    assert set(asked(fewer)) < set(asked(found))


def test_which_rows_are_drawn_does_not_hang_on_the_order_of_import(tmp_path: Path) -> None:
    drawn = []
    for number in range(2):
        rows = random.Random(number).sample(WRITTEN, len(WRITTEN))
        with new_store(tmp_path / f"{number}.sqlite") as store:
            fill(store, rows)
            recipe = Recipe().with_settings({"data.train_prompts": 20, "data.demonstrations": 20})
            data = StoreData(Project(tmp_path, recipe), lambda store=store: store)  # type: ignore[misc]
            drawn.append((set(asked(data.train_prompts())), {text for _, text in data.demonstrations()}))
    assert drawn[0] == drawn[1]


def test_held_out_prompts_that_are_compared_are_among_those_that_are_evaluated(opened: Opened) -> None:
    data = opened(heldout_prompts=20, compared_heldout=5)
    fill(data.store, WRITTEN, "heldout")
    evaluated, compared = data.heldout_prompts(), data.compared_heldout()
    assert set(asked(compared)) < set(asked(evaluated))
    assert evaluated.notes == ("20 of 60 used (data.heldout_prompts)",)
    assert compared.notes == ("5 of 60 used (data.compared_heldout)",)
    assert opened(heldout_prompts=3).compared_heldout().notes == ("3 of 60 used (data.heldout_prompts)",)


def test_what_is_measured_on_few_prompts_draws_them_and_says_so(opened: Opened) -> None:
    data = opened()
    fill(data.store, WRITTEN)
    few = data.few_train_prompts(12, "to measure the KL")
    assert few.notes == ("12 of 60 used (to measure the KL)",) and asked(few) != [q for q, _ in WRITTEN[:12]]


@pytest.mark.parametrize("measure", ["to centre and scale the scores", "to measure the KL"])
def test_what_was_left_out_before_is_said_where_few_would_do(measure: str, tmp_path: Path) -> None:
    """Training a reward model, and DPO: the recipe's number is the smaller one."""
    recipe, lines = Recipe().with_settings({"data.train_prompts": 10, "sampling.max_new_tokens": 4}), list[str]()
    work = Work(Project(tmp_path, recipe), Progress(lines.append, live=False), threads=1)
    try:
        fill(work.store, WRITTEN)
        if measure == "to measure the KL":
            preferences.observer(work, tiny_policy(), None)
        else:
            reward.reference_prompts(work, tiny_policy(), enforce=True)
        few = work.data.few_train_prompts(6, measure)
    finally:
        work.close()
    assert "prompts: 10 of 60 used (data.train_prompts); all 10 can be used as they are" in "".join(lines)
    assert notes_of(few) == ("10 of 60 used (data.train_prompts)", f"6 of 10 used ({measure})")


def test_the_playground_says_what_it_leaves_out_and_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the numbers that its store was filled with everything is used, in its order, and a run's parents are what they were."""
    monkeypatch.setattr("bridle.stages.data.TOKENIZER_TEXTS", 3)
    with Store.open(tmp_path / "store.sqlite") as store:

        def opened(**fewer: int) -> PlaygroundData:
            settings = {**PLAYGROUND, "data.compared_heldout": 24, **{f"data.{key}": n for key, n in fewer.items()}}
            return PlaygroundData(Project(tmp_path, Recipe().with_settings(settings)), lambda: store)

        whole, few = opened(), opened(train_prompts=10, heldout_prompts=10, compared_heldout=4, demonstrations=10)
        every: list[Sequence[object]] = [
            whole.train_prompts(), whole.heldout_prompts(), whole.compared_heldout(), whole.demonstrations()
        ]  # fmt: skip
        assert [len(rows) for rows in every] == [24, 24, 24, 60] and not any(notes_of(rows) for rows in every)
        assert practice_parents(whole.train_prompts(), whole.demonstrations()) == {}
        found = [few.train_prompts(), few.heldout_prompts(), few.demonstrations()]
        caps = (
            "10 of 24 used (data.train_prompts)",
            "10 of 24 used (data.heldout_prompts)",
            "10 of 60 used (data.demonstrations)",
        )
        for rows, there, cap in zip(found, (every[0], every[1], every[3]), caps, strict=True):
            assert notes_of(rows) == (cap,) and len(rows) == 10 and list(rows) != list(there[:10])
            assert list(rows) == [row for row in there if row in rows]
        assert few.compared_heldout() == found[1][:4]
        assert notes_of(few.compared_heldout()) == (caps[1], "4 of 10 used (data.compared_heldout)")
        assert notes_of(few.few_train_prompts(6, "to see")) == (caps[0], "6 of 10 used (to see)")
        assert set(practice_parents(found[0], found[2])) == {"prompts", "demonstrations"}
        texts = whole.tokenizer_texts(["a", "b", "c", "d"])
        assert texts == ["a", "b", "c"] and notes_of(texts) == ("3 of 4 used (to learn the tokenizer)",)


def test_prompts_to_be_checked_are_drawn_and_counted(opened: Opened) -> None:
    data = opened(train_prompts=10, heldout_prompts=4)
    sums = [(f"What is {i} + 1?", f"It is\n#### {i + 1}") for i in range(40)]
    fill(data.store, [*sums[:30], *WRITTEN[:10]])
    fill(data.store, sums[30:], "heldout")
    checkable = data.checkable()
    assert notes_of(checkable.train) == (
        "30 of 40 used (those with a number to check against)",
        "10 of 30 used (data.train_prompts)",
    )
    assert notes_of(checkable.heldout) == ("4 of 10 used (data.heldout_prompts)",)
    assert asked(checkable.train) != [q for q, _ in sums[:10]] and len(checkable.train) == 10
    assert set(checkable.verifier(checkable.train, [Completion(p.id, "#### 0") for p in checkable.train])) == {0.0}


def test_imported_solutions_and_texts_are_used(opened: Opened) -> None:
    data = opened()
    sums = [Prompt.from_text(f"What is {i} + 1?") for i in range(4)]
    data.store.add_prompts(sums[:3], split="train", source="import")
    data.store.add_prompts(sums[3:], split="heldout", source="import")
    solved = ["1", "so \\boxed{2}", "it depends", "#### 4"]
    add_solutions(data.store, zip(sums, solved, strict=True))
    add_documents(data.store, ["Cats sleep."])
    checkable = data.checkable()
    assert asked(checkable.train) == ["What is 0 + 1?", "What is 1 + 1?"] and asked(checkable.heldout) == [
        "What is 3 + 1?"
    ]
    assert notes_of(checkable.train) == ("2 of 3 used (those with a number to check against)",)
    answers = [Completion(prompt.id, text) for prompt, text in zip(checkable.train, ("#### 1", "#### 3"), strict=True)]
    assert checkable.verifier(checkable.train, answers) == [1.0, 0.0]
    assert data.documents(10) == ["Cats sleep."] and data.store.completions() == []


def test_the_line_before_training_says_how_many_of_how_many(opened: Opened) -> None:
    data = opened(train_prompts=20, demonstrations=40)
    fill(data.store, WRITTEN)
    _, report = encode_demonstrations(template(), data.demonstrations(), 200)
    told = (
        "demonstrations: 40 of 60 used (data.demonstrations); 40 written, 0 preferred; all 40 can be used as they are"
    )
    assert report.lines() == [told]
    assert report.as_dict()["notes"] == ["40 of 60 used (data.demonstrations)", "40 written, 0 preferred"]
    _, report = prompts_that_fit(template(), data.train_prompts(), 8, 200)
    assert report.lines() == ["prompts: 20 of 60 used (data.train_prompts); all 20 can be used as they are"]


def test_the_tokenizer_is_learnt_from_drawn_texts_and_a_run_knows_which(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened()
    fill(data.store, WRITTEN)
    whole = data.text_parents()
    assert data.tokenizer_texts(data.dialogues()) == data.dialogues() and set(whole) == {"texts"}
    monkeypatch.setattr("bridle.stages.data.TOKENIZER_TEXTS", 12)
    few = data.tokenizer_texts(data.dialogues())
    assert few.notes == ("12 of 60 used (to learn the tokenizer)",) and few != data.dialogues()[:12]
    assert set(data.text_parents()) == {"texts", "tokenizer"} and data.text_parents()["texts"] == whole["texts"]


def test_pretraining_says_how_much_of_the_text_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SHAPE, "model.vocab_size": 260, "data.pretrain_tokens": 1000, "pretrain.length": 8}
    lines: list[str] = []
    work = Work(Project(tmp_path, Recipe().with_settings(settings)), Progress(lines.append, live=False), threads=1)
    monkeypatch.setattr(pretrain.pretrain, "train", lambda *args: {"steps": 0})
    monkeypatch.setattr("bridle.stages.data.TOKENIZER_TEXTS", 12)
    try:
        fill(work.store, WRITTEN)
        METHODS["pretrain"].train(work)
    finally:
        work.close()
    said = "".join(lines)
    assert "texts: 12 of 60 used (to learn the tokenizer)" in said
    assert "tokens: 1,000 of " in said and "used (data.pretrain_tokens)" in said


# --------------------------------------------------------------------------------------------- whom the model imitates


@pytest.fixture
def mixed(opened: Opened) -> Opened:
    """One demonstration; 12 judgements, of which one prefers that very answer and one prefers none; an answer preferred twice."""
    store = opened().store
    fill(store, [("Question 3?", "Good 3.")])
    for i in range(10):
        judge(store, f"Question {i}?", [f"Bad {i}.", f"Good {i}."], ((1,), (0,)))
    judge(store, "Question 4?", ["Bad 4.", "Good 4."], ((1,), (0,)), who="bob")
    judge(store, "Question 20?", ["One.", "Two."], ((0, 1),))
    return opened


def test_a_demonstration_does_not_silence_the_preferences(mixed: Opened) -> None:
    found = mixed().demonstrations()
    assert found.notes == ("1 written, 9 preferred",)
    assert [text for _, text in found] == ["Good 3.", *(f"Good {i}." for i in range(10) if i != 3)]
    assert [prompt.text for prompt, _ in found][:2] == ["Question 3?", "Question 0?"]


def test_who_is_imitated_is_a_setting(mixed: Opened) -> None:
    written, preferred = (mixed(imitate=kind).demonstrations() for kind in ("written", "preferred"))
    assert written.notes == ("1 written, 0 preferred",) and [text for _, text in written] == ["Good 3."]
    assert preferred.notes == ("0 written, 10 preferred",)
    assert [text for _, text in preferred] == [f"Good {i}." for i in range(10)]


def test_a_good_answer_was_written_or_else_preferred(mixed: Opened) -> None:
    asked = [Prompt.from_text(f"Question {i}?") for i in (3, 4, 20, 99)]
    assert mixed().good_answers(asked) == ["Good 3.", "Good 4.", None, None]


def test_the_mix_is_drawn_as_a_whole_and_counted(mixed: Opened) -> None:
    few = mixed(demonstrations=6)
    assert few.demonstrations().notes[0] == "6 of 10 used (data.demonstrations)"
    counts = [mixed(demonstrations=6, seed=seed).demonstrations().notes[1] for seed in range(6)]
    assert set(counts) == {"0 written, 6 preferred", "1 written, 5 preferred"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"imitate": "written"},
            "holds no demonstrations (data.imitate = 'written'); `bridle import FILE` brings some",
        ),
        ({"imitate": "preferred"}, "holds no preferred answers (data.imitate = 'preferred'); `bridle import FILE`"),
        ({}, "holds no demonstrations or preferred answers; `bridle import FILE` brings some"),
    ],
)
def test_where_there_is_none_of_what_is_to_be_imitated_the_sentence_says_so(
    settings: dict[str, str], words: str, opened: Opened
) -> None:
    data = opened(**settings)
    if settings.get("imitate") == "written":
        judge(data.store, "Q?", ["No.", "Yes."], ((1,), (0,)))
    elif settings:
        fill(data.store, WRITTEN[:2])
    with pytest.raises(NoUsableRows) as caught:
        data.demonstrations()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_judgements_that_give_no_pair_are_counted(tmp_path: Path) -> None:
    work = Work(Project(tmp_path, Recipe()), Progress(lambda text: None, live=False))
    try:
        judge(work.store, "A?", ["No.", "Yes."], ((1,), (0,)))
        assert judged_pairs(work, training_snapshot(work)).notes == ()
        judge(work.store, "B?", ["No.", "Yes."], ((0, 1),))
        snapshot = training_snapshot(work)
        pairs = judged_pairs(work, snapshot)
        assert pairs.notes == ("1 of 2 used (judgements that tell answers apart)",)
        lines = encode_pairs(template(), pairs, 200)[1].lines()
        assert lines == ["comparisons: 1 of 2 used (judgements that tell answers apart); all 1 can be used as they are"]
        assert judged_pairs(work, snapshot, ties=True).notes == ()
    finally:
        work.close()


def test_a_run_that_practises_knows_the_rows_that_it_was_given(mixed: Opened) -> None:
    whole, few, other = mixed(), mixed(train_prompts=4), mixed(train_prompts=4, seed=1)
    assert practice_parents(whole.train_prompts(), []) == {}  # as runs made earlier noted it
    drawn = [practice_parents(data.train_prompts(), [])["prompts"] for data in (few, other)]
    assert len(set(drawn)) == 2
    imitated = [
        practice_parents([], data.demonstrations())["demonstrations"] for data in (whole, mixed(imitate="written"))
    ]
    assert len(set(imitated)) == 2
