"""Nothing is kept of who has not agreed; what is kept is known to its user alone, counts once, and counts as its rules say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from bridle.core.errors import DataError, StoreError
from bridle.core.records import Prompt
from bridle.feedback.serving.answers import Choice, find_answer, keep_answer
from bridle.feedback.serving.comparisons import (
    Ballot,
    ask_for_demonstrations,
    demonstration_queue,
    find_pair,
    reveal,
    vote,
)
from bridle.feedback.serving.consent import (
    add_user,
    consent_text,
    consents,
    find_user,
    may_keep,
    must_ask,
    publish_consent,
    set_consent,
)
from bridle.feedback.serving.honesty import OVER_CAP
from bridle.feedback.serving.prompts import draw_prompts
from bridle.feedback.serving.reactions import Reaction, react
from bridle.feedback.store import tables
from bridle.feedback.store.labels import Labels, take_rating_snapshot
from bridle.feedback.store.ratings import ratings
from bridle.feedback.store.reading import SERVING
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.verify import store_faults
from tests.feedback.serving.users import agreeing, answer_to, serve, serve_pair

WHY = Prompt.from_text("Why is the sky blue?")


def rows(store: Store, table: sa.Table) -> list[Any]:
    with store.reading() as connection:
        return list(connection.execute(sa.select(table).order_by(*table.primary_key.columns)))


def test_nothing_is_kept_of_who_has_not_agreed(any_store: Store) -> None:
    store, token = any_store, "t" * 43
    with pytest.raises(DataError, match="22 or more"):
        add_user(store, "short")
    user = add_user(store, token)
    assert add_user(store, token) == user == find_user(store, token) and find_user(store, "u" * 43) is None
    with store.reading() as connection:
        assert all(token not in str(row) for row in connection.execute(sa.select(tables.served_user)))
    with pytest.raises(DataError, match="not the newest consent text"):
        set_consent(store, user, "agreed", text="0" * 64)  # nothing was published
    assert not may_keep(store, user) and not must_ask(store, user) and consent_text(store) is None

    assert (
        publish_consent(store, {"en": "One.", "zh": "一。"})
        == publish_consent(store, {"zh": "一。", "en": "One."})
        == 1
    )
    first = consent_text(store, "zh")
    assert first is not None and first.markdown == "一。" and must_ask(store, user)
    set_consent(store, user, "refused")
    assert not must_ask(store, user) and not may_keep(store, user)
    assert keep_answer(store, user, WHY, answer_to(WHY, "Rayleigh."), Choice("current", 1.0)) is None
    assert keep_answer(store, "nobody", WHY, answer_to(WHY, "Rayleigh."), Choice("current", 1.0)) is None
    kept = (tables.prompt, tables.completion, tables.served, tables.comparison, tables.judgement, tables.reaction)
    assert not any(rows(store, table) for table in kept)

    set_consent(store, user, "agreed", text=first.sha256)
    set_consent(store, user, "agreed", text=first.sha256)
    assert may_keep(store, user) and [one.answer for one in consents(store, user)] == ["refused", "agreed"]
    pair = serve_pair(store, user, WHY, ("Rayleigh.", "It is dyed."))
    set_consent(store, user, "refused")  # from here on nothing more
    before = [len(rows(store, table)) for table in kept]
    assert vote(store, user, pair.id, Ballot("first", "k")) is None
    assert react(store, user, pair.first.id, Reaction("comment", "k", text="Nice.")) is None
    assert keep_answer(store, user, WHY, answer_to(WHY, "Dust."), Choice("current", 1.0)) is None
    assert [len(rows(store, table)) for table in kept] == before

    set_consent(store, user, "agreed", text=first.sha256)
    assert publish_consent(store, {"en": "Two."}) == 2 and must_ask(store, user) and not may_keep(store, user)
    with pytest.raises(DataError, match="not the newest consent text"):
        set_consent(store, user, "agreed", text=first.sha256)
    for change in (sa.update(tables.consent).values(answer="agreed"), sa.delete(tables.consent)):
        with pytest.raises(StoreError, match="append-only"), store.writing() as connection:
            connection.execute(change)
    assert list(store_faults(store)) == []


def test_an_id_is_its_users_alone(any_store: Store) -> None:
    store, ann, ben = any_store, agreeing(any_store, "ann"), agreeing(any_store, "ben")
    how = Choice("candidate", 0.25, acquisition="random", conversation="c1")
    kept = keep_answer(store, ann, WHY, answer_to(WHY, "Rayleigh.", seed=3), how, public_id="chatcmpl-1")
    again = keep_answer(store, ann, WHY, answer_to(WHY, "Rayleigh.", seed=4), how)  # the same words of another draw
    assert kept is not None and again is not None and kept == find_answer(store, ann, "chatcmpl-1")
    assert (kept.choice, kept.completion.weight_stamp, kept.sampling, kept.sum_logprob) == (
        how,
        "ppo+9",
        {"seed": 3},
        -1.5,
    )
    assert again.sampling == {"seed": 4} and again.id.startswith("chatcmpl-") and again.id != kept.id
    with pytest.raises(DataError, match="another answer's already"):
        keep_answer(store, ben, WHY, answer_to(WHY, "Dust."), how, public_id="chatcmpl-1")
    pair = serve_pair(store, ann, WHY, ("Rayleigh.", "It is dyed."))
    messages = set()
    for known, never in (("chatcmpl-1", "chatcmpl-2"), (pair.id, "cmp-2")):
        for key in (known, never):
            for call in (
                lambda: find_answer(store, ben, key),  # noqa: B023
                lambda: find_pair(store, ben, key),  # noqa: B023
                lambda: vote(store, ben, key, Ballot("first", "k")),  # noqa: B023
                lambda: reveal(store, ben, key),  # noqa: B023
                lambda: react(store, ben, key, Reaction("vote", "k", value=1)),  # noqa: B023
            ):
                with pytest.raises(DataError) as error:
                    call()
                messages.add(str(error.value).replace(key, "ID"))
    assert messages == {"there is no 'ID' here; send an id that was given to you, while it is kept"}
    assert not rows(store, tables.judgement) and not rows(store, tables.reaction)
    assert store.prompts(split="train") == [] and store.prompts(split="served") == [WHY]
    for wrong in (replace(how, propensity=0.0), replace(how, propensity=1.5), replace(how, place=2)):
        with pytest.raises(DataError, match="cannot be how an answer was chosen"):
            keep_answer(store, ann, WHY, answer_to(WHY, "x"), wrong)
    with pytest.raises(DataError, match="NUL"):
        serve(store, ann, Prompt.from_text("a\0b"), "x")
    assert list(store_faults(store)) == []


def test_one_vote_counts_of_a_user_on_a_prompt(any_store: Store) -> None:
    store, ann = any_store, agreeing(any_store, "ann")
    pair = serve_pair(store, ann, WHY, ("Rayleigh.", "It is dyed."))
    mirrored = serve_pair(store, ann, WHY, ("It is dyed.", "Rayleigh."))
    assert mirrored.item == pair.item and mirrored.display_order == pair.display_order[::-1]
    one = vote(store, ann, pair.id, Ballot("second", "k", early=True, words=" Shorter. ", lang="en"))
    assert one is not None and (one.source, one.marks, one.rationale) == (SERVING, ("early",), "Shorter.")
    assert (
        one.ranking == ((pair.display_order[1],), (pair.display_order[0],)) and one.display_order == pair.display_order
    )
    assert vote(store, ann, pair.id, Ballot("second", "k")) == one and len(rows(store, tables.judgement)) == 1
    with pytest.raises(DataError, match="came with another vote"):
        vote(store, ann, pair.id, Ballot("first", "k"))
    other = serve_pair(store, ann, WHY, ("Dust.", "Water."))  # of the same prompt: it takes the first one's place
    bad = vote(store, ann, other.id, Ballot("both_bad", "k"), cap=2)
    assert bad is not None and bad.marks == () and [j.id for _, j in store.judgements(study=SERVING)] == [bad.id]
    assert [p.id for p in demonstration_queue(store)] == [WHY.id]
    assert len(ask_for_demonstrations(store, study="write")) == 1
    over = vote(store, ann, other.id, Ballot("first", "k2"), cap=2)
    assert over is not None and over.marks == (OVER_CAP,) and over.weight == 0 and demonstration_queue(store) == []
    assert reveal(store, ann, other.id).revealed and find_pair(store, ann, other.id).second.choice.arm == "current"
    with pytest.raises(DataError, match="closed, for its models were named"):
        vote(store, ann, other.id, Ballot("second", "k3"))
    assert vote(store, ann, other.id, Ballot("first", "k2")) == over  # the one that was sent before is still that one
    left: Any = "left"
    for ballot in (
        Ballot(left, "k"),
        Ballot("tie", ""),
        Ballot("tie", "k" * 65),
        Ballot("tie", "k", words="x" * 10_001),
    ):
        with pytest.raises(DataError):
            vote(store, ann, pair.id, ballot)
    assert store.judgements() == []  # in no study but its own
    assert list(store_faults(store)) == []


def test_thumbs_train_nothing_that_does_not_name_them(any_store: Store) -> None:
    store, ann = any_store, agreeing(any_store, "ann")
    kept = serve(store, ann, WHY, "Rayleigh.")
    up = Reaction("vote", "k1", value=1, reason="correctness", text="As my teacher said.")
    assert react(store, ann, kept.id, up, cap=3) is True and react(store, ann, kept.id, up, cap=3) is False
    with pytest.raises(DataError, match="came with something else"):
        react(store, ann, kept.id, replace(up, value=0))
    draw_prompts(store, 1, 0, by="loop", held_out_share=0.0)
    votes = Labels("vote", None)
    assert ratings(store) == [] and take_rating_snapshot(store, votes).judgement_ids == ()
    assert len(take_rating_snapshot(store, votes, sources=[SERVING]).judgement_ids) == 1
    assert react(store, ann, kept.id, Reaction("vote", "k2", value=0)) is True  # their mind has changed
    found = ratings(store, kind="vote", sources=[SERVING])
    assert [(rating.value, rating.weight) for _, rating in found] == [(0.0, 1.0)]
    assert react(store, ann, kept.id, Reaction("demonstration", "k3", text="It scatters blue light.")) is True
    assert react(store, ann, kept.id, Reaction("flag", "k4", reason="untrue"), cap=3) is True
    flagged = ratings(store, kind="flag", sources=[SERVING])
    assert [(rating.criterion, rating.weight) for _, rating in flagged] == [("untrue", 0.0)]
    assert [row.marks for row in rows(store, tables.reaction)] == [None, None, None, [OVER_CAP]]
    assert store.completions(source="demonstration") == []
    (own,) = store.completions(source="serving:demonstration")
    assert own[1].text == "It scatters blue light."
    for wrong in (
        Reaction("vote", "k"), Reaction("vote", "k", value=2), Reaction("vote", "k", value=1, reason="untrue"),  # type: ignore[arg-type]
        Reaction("comment", "k", text=" "), Reaction("comment", "k", text="x", value=1), Reaction("star", "k"),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(DataError):
            react(store, ann, kept.id, wrong)
    assert list(store_faults(store)) == []
