"""Users' votes enter training where a recipe names them, by their weight; their prompts by a lottery; and who asks to be deleted is."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Judgement, LabelerKind, Prompt
from bridle.feedback.exporting.exporter import export_file
from bridle.feedback.exporting.formats import Wanted
from bridle.feedback.importing.importer import import_file
from bridle.feedback.serving.answers import Choice, find_answer, keep_answer
from bridle.feedback.serving.comparisons import Ballot, keep_pair, vote
from bridle.feedback.serving.consent import find_user, may_keep, set_consent
from bridle.feedback.serving.forgetting import forget_user
from bridle.feedback.serving.honesty import most_within, odd_users
from bridle.feedback.serving.outcomes import vote_outcomes
from bridle.feedback.serving.prompts import draw_prompts
from bridle.feedback.serving.reactions import Reaction, react
from bridle.feedback.serving.weights import serving_weights
from bridle.feedback.store import tables
from bridle.feedback.store.reading import SERVING, Source
from bridle.feedback.store.store import Store, split_of
from bridle.feedback.upkeep.backup import back_up, restore_file
from bridle.feedback.upkeep.verify import store_faults
from tests.feedback.exporting.random_store import content
from tests.feedback.sample import Sample
from tests.feedback.serving.users import agreeing, answer_to, serve, serve_pair
from tests.feedback.upkeep.test_takedown import bytes_of

BOTH = ("Because it is so.", "I do not know.")


def asked(n: int) -> Prompt:
    """The nth question that is not held out."""
    questions = (Prompt.from_text(f"Question {k} of a user?") for k in range(1000))
    return [one for one in questions if split_of(one.id, 0.1) == "train"][n]


def test_votes_enter_where_they_are_named_by_their_weight(any_store: Store, sample: Sample) -> None:
    store, ann = any_store, agreeing(any_store, "ann")
    item = sample.fill(store)[0]
    store.add_judgements([sample.judgement(item, "s")])
    usual, rare, over = (serve_pair(store, ann, asked(n), BOTH, share) for n, share in enumerate((0.5, 0.05, 0.5)))
    votes = [vote(store, ann, pair.id, Ballot("first", "k"), cap=2) for pair in (usual, rare, over)]
    ids = [one.id for one in votes if one is not None]
    assert serving_weights(store) == {ids[0]: 2.0, ids[1]: 5.0, ids[2]: 0.0}
    before = store.take_snapshot()
    everything: tuple[Source, ...] = ("import", "serving", "study")
    # On prompts that were not drawn for training nothing is learnt, whoever names them.
    assert store.take_snapshot(sources=everything).judgement_ids == before.judgement_ids
    assert len(draw_prompts(store, 9, 0, by="loop").prompts) == 3
    assert store.take_snapshot() == before and len(before.judgement_ids) == 1
    taken = store.take_snapshot(study="first", sources=everything, weights=serving_weights(store))
    assert dict(zip(taken.judgement_ids, taken.weights, strict=True)) == {
        **serving_weights(store),
        before.judgement_ids[0]: 1.0,
    }
    assert store.snapshot(taken.id).query["sources"] == "import serving study"
    assert sorted(
        pair.weight for pair in store.snapshot_pairs(taken.id) if pair.prompt.id in (asked(0).id, asked(1).id)
    ) == [2, 5]
    assert len(store.judgements(sources=[SERVING])) == 3 == len(store.judgements(study=SERVING))


def test_an_outcome_is_of_the_weights_that_were_served(any_store: Store) -> None:
    """Two models write the same two answers: the item is one, the outcomes are each model's own."""
    store, prompt = any_store, asked(0)
    for name, stamps, pick in (("ann", ("new+1", "old+1"), "first"), ("ben", ("old+1", "new+1"), "second")):
        user = agreeing(store, name)
        how = [Choice("candidate", 0.5, 0, "random"), Choice("current", 0.5, 1, "random")]
        sides = zip(BOTH, stamps, how, strict=True)
        kept = [keep_answer(store, user, prompt, answer_to(prompt, text, 1, stamp), one) for text, stamp, one in sides]
        pair = keep_pair(store, user, *(one.id for one in kept if one is not None))
        assert pair is not None and vote(store, user, pair.id, Ballot(pick, "k")) is not None  # type: ignore[arg-type]
    found = [(one.first, one.second, one.preferred, one.arms, one.at_random) for one in vote_outcomes(store)]
    arms = ("candidate", "current")
    assert found == [("new+1", "old+1", 1.0, arms, True), ("old+1", "new+1", 0.0, arms, True)]
    assert len(store.items(study=SERVING)) == 1


def test_users_to_look_at(store: Store) -> None:
    ann, bot = agreeing(store, "ann"), agreeing(store, "bot")
    for n in range(20):
        texts = (f"An answer {n}. " * 50, f"Another {n}. " * 50)
        pair = serve_pair(store, bot, Prompt.from_text(f"Question {n % 2}{'?' * n}"), texts)
        vote(store, bot, pair.id, Ballot("first", "k"))
        react(store, bot, pair.first.id, Reaction("comment", "k", text="Good bot."))
    vote(store, ann, serve_pair(store, ann, asked(1), BOTH).id, Ballot("first", "k"))
    assert [(one.labeler, one.what) for one in odd_users(store)] == [
        (bot, "nearly always first"), (bot, "faster than reading"), (bot, "bursts of votes"), (bot, "the same prompts again"),
        (bot, "the same comment again"),
    ]  # fmt: skip
    assert most_within([0, 100, 101, 159, 160.5, 300], 60) == 3


def test_prompts_are_drawn_by_author_without_personal_data(any_store: Store) -> None:
    store, heavy = any_store, agreeing(any_store, "heavy")
    light = [agreeing(store, f"light {n}") for n in range(3)]
    left = agreeing(store, "left")
    store.add_prompts([asked(40)], split="train", source="world")
    for n in range(30):
        serve(store, heavy, asked(n), "Yes.")
    for n, user in enumerate(light):
        serve(store, user, asked(30 + n), "Yes.")
        serve(store, user, Prompt.from_text(f"I am light{n}@example.org, call 13812345678"), "Hello.")
    serve(store, left, asked(33), "Yes.")
    set_consent(store, left, "refused")
    heldout = next(p for k in range(999) if split_of((p := Prompt.from_text(f"Held out {k}?")).id, 0.1) == "heldout")
    for prompt in (heldout, asked(40), Prompt.from_text(asked(40).text.upper() + "!!"), Prompt.from_text("x" * 20_001)):
        serve(store, heavy, prompt, "Yes.")
    drawn = draw_prompts(store, 8, 3, by="loop")
    assert len(drawn.prompts) == 8 == len({prompt.id for prompt in drawn.prompts})
    # All four authors are as probable until they have none left: the three who asked once are in, as good as surely.
    assert drawn.authors == 4 and {asked(30 + n) for n in range(3)} <= set(drawn.prompts)
    assert drawn.left_out == {
        "email": 3, "phone": 3, "held out": 1, "nearly there already": 1, "too long to look through": 1, "not drawn this time": 25,
    }  # fmt: skip
    assert set(store.prompts(split="train", source=SERVING)) == set(drawn.prompts)
    rest = draw_prompts(store, 100, 3, by="loop")
    assert len(rest.prompts) == 25 and asked(33) not in rest.prompts
    assert list(store_faults(store)) == []


def test_what_several_asked_may_be_drawn_while_one_of_them_agrees(any_store: Store) -> None:
    store, gone, ann = any_store, agreeing(any_store, "gone"), agreeing(any_store, "ann")
    for user in (gone, ann):
        serve(store, user, asked(0), "Yes.")
    set_consent(store, gone, "refused")
    assert draw_prompts(store, 9, 0, by="loop").prompts == [asked(0)]
    serve(store, agreeing(store, "ben"), asked(1), "Yes.")
    for user in (gone, ann):
        set_consent(store, user, "refused")
        forget_user(store, user, reason="asked", by="me")
    assert draw_prompts(store, 9, 0, by="loop").prompts == [asked(1)]


def test_who_asks_for_it_is_deleted(any_store: Store, tmp_path: Path) -> None:
    store, ann, ben = any_store, agreeing(any_store, "ann"), agreeing(any_store, "ben")
    secret, shared = Prompt.from_text("I am Ann Xylander, what now?"), asked(0)
    pair = serve_pair(store, ann, secret, ("Dear Xylander, wait.", "Xylander, go."))
    vote(store, ann, pair.id, Ballot("first", "k", words="Xylanders wait."))
    for user in (ann, ben):
        both = serve_pair(store, user, shared, BOTH)
        assert vote(store, user, both.id, Ballot("first", "k", words="Nice.")) is not None
    serve(store, ann, shared, "Only to Xylander.")
    react(store, ann, pair.first.id, Reaction("comment", "k", text="From Xylander."))
    react(store, ann, pair.first.id, Reaction("demonstration", "d", text="Xylander would write this."))
    assert len(draw_prompts(store, 9, 0, by="loop").prompts) == 2
    judged = store.take_snapshot(sources=[SERVING])
    store.add_model_version("dpo", kind="dpo", weights_sha256="d" * 64)
    with store.writing() as connection:
        connection.execute(sa.update(tables.model_version).values(snapshot_sha256=judged.id))
    # A backup and a whole export carry it all.
    back_up(store, tmp_path / "copy.jsonl")
    restore_file(tmp_path / "copy.jsonl", tmp_path / "other.sqlite", by="me")
    export_file(store, tmp_path / "whole.jsonl", "full")
    for path in ("other.sqlite", "third.sqlite"):
        with Store.open(tmp_path / path) as copy:
            if path == "third.sqlite":
                import_file(copy, tmp_path / "whole.jsonl")
            assert content(copy) == content(store) and list(store_faults(copy)) == []
            assert find_answer(copy, ann, pair.first.id) == pair.first
    export_file(store, tmp_path / "pairs.jsonl", "rankings", Wanted(study=SERVING))
    assert (tmp_path / "pairs.jsonl").read_text().count(ann) == 2
    with pytest.raises(DataError, match="nothing in the store to write"):
        export_file(store, tmp_path / "none.jsonl", "rankings")

    done = forget_user(store, ann, reason="asked to", by="me")
    assert done.blanked == {"prompt": 1, "completion": 4, "free_text": 2} and [name[:3] for name in done.models] == [
        "dpo"
    ]
    assert list(store_faults(store)) == [] and not may_keep(store, ann) and find_user(store, f"ann:{'0' * 32}") is None
    with pytest.raises(DataError, match="there is no"):
        find_answer(store, ann, pair.first.id)
    assert secret not in store.prompts() and shared in store.prompts()
    assert [one.labeler for _, one in store.judgements(study=SERVING)] == [ben]
    assert [one.rationale for _, one in store.judgements(study=SERVING)] == ["Nice."]
    assert len(store.snapshot(judged.id).judgement_ids) == 3
    assert all(row.conversation is None for row in whole(store) if row.labeler == ann)
    for name, form in (("after.jsonl", "rankings"), ("whole2.jsonl", "full")):
        export_file(store, tmp_path / name, form, Wanted(study=SERVING) if form == "rankings" else None)
        assert "Xylander" not in (tmp_path / name).read_text()
    assert ann not in (tmp_path / "after.jsonl").read_text()
    if (tmp_path / "store.sqlite").exists():
        assert b"Xylander" not in bytes_of(tmp_path / "store.sqlite")
    assert forget_user(store, ann, reason="again", by="me").blanked == {}
    with pytest.raises(DataError, match="no user"):
        forget_user(store, "user-0", reason="asked to", by="me")
    # The same words of somebody else are not kept again, as after any takedown.
    assert store.judgements(study=SERVING) != [] and ben != ann


def whole(store: Store) -> list[sa.Row[tuple[object, ...]]]:
    with store.reading() as connection:
        return list(connection.execute(sa.select(tables.served)))


def test_a_study_judgement_is_never_a_users(store: Store, sample: Sample) -> None:
    """What people judged in studies is fitted without users' votes, and the reverse."""
    items = sample.fill(store)
    ann = agreeing(store, "ann")
    vote(store, ann, serve_pair(store, ann, asked(1), BOTH).id, Ballot("first", "k"))
    store.add_judgements([Judgement(items[0], "eve", LabelerKind.PERSON, ((0,), (1, 2, 3)), None, submission_key="e")])
    from bridle.feedback.quality.votes import read_votes

    assert list(read_votes(store).people) == ["eve"] and list(read_votes(store, SERVING).people) == [ann]
