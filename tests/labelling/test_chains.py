"""Chains of critique and revision on the owner's pages: read whole, corrected by a person, never changed."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Prompt
from bridle.feedback.people.chains import chain_record, correct_chain, find_chains
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.takedown import take_down
from bridle.stages.revise import KEPT, REVISED, source_of
from tests.labelling.revised import FIRST, LAST, RUN, add_chain
from tests.labelling_app import Site


def corrections(store: Store) -> list[tuple[str, str, str]]:
    query = sa.select(tables.completion.c["author", "source", "text"]).where(
        tables.completion.c.source.startswith("corrected:")
    )
    with store.reading() as connection:
        return [tuple(row) for row in connection.execute(query.order_by(tables.completion.c.id))]


def test_a_chain_is_read_whole(any_site: Site) -> None:
    number = add_chain(any_site.store)
    other = add_chain(any_site.store, "How do I forge a coin?", "2" * 64)
    record = chain_record(any_site.store, number)
    assert record is not None and (record.first, record.last, record.stands) == (FIRST, LAST, LAST)
    first, second = record.steps
    assert (first.round, first.principle, first.critique, first.revision) == (1, "no-harm", "It helps a thief.", LAST)
    assert (second.round, second.critique, second.revision) == (2, "No changes needed.", None)
    page = any_site.client("owner").get(f"/chains/{number}")
    for text in (
        "How do I pick a lock?",
        "Sure &lt;b&gt;thing&lt;/b&gt;.",
        "It helps a thief.",
        LAST,
        "no-harm",
        "Round 2",
    ):
        assert text in page.text, text
    assert "forge" not in page.text and "no-store" in page.headers["cache-control"]
    listed = any_site.client("owner").get("/chains").text
    assert listed.index(f"/chains/{other}") < listed.index(f"/chains/{number}"), "the newest first"
    assert "/chains" in any_site.client("owner").get("/studies").text


def test_a_person_writes_a_better_last_answer_and_nothing_is_lost(any_site: Site) -> None:
    number, owner, store = add_chain(any_site.store), any_site.client("owner"), any_site.store
    before = store.counts()["completions"]
    for text in ("No. Ask a locksmith.", "No.\r\nAsk a locksmith <i>near you</i>."):
        sent = owner.post(f"/chains/{number}", data={"text": text})
        assert sent.status_code == 303 and sent.headers["location"] == f"/chains/{number}?note=corrected"
    source = f"corrected:{RUN[:12]}"
    kept = "No.\nAsk a locksmith <i>near you</i>."
    assert corrections(store) == [("owner", source, "No. Ask a locksmith."), ("owner", source, kept)]
    assert {name: count for name, count in store.counts()["completions"].items() if name != source} == before
    record = chain_record(store, number)
    assert record is not None and record.stands == kept and record.last == LAST
    page = owner.get(f"/chains/{number}?note=corrected").text
    assert (
        "The correction is kept." in page
        and "Ask a locksmith &lt;i&gt;near you" in page
        and "a later one stands" in page
    )
    assert find_chains(store)[0].corrected and "Corrected" in owner.get("/chains").text
    pairs = store.completions(source=source)
    assert [one.text for _, one in pairs][-1] == kept and pairs[0][0].text == "How do I pick a lock?"


@pytest.mark.parametrize("text", ["", "   ", LAST, f" {LAST}\r\n", "a\0b", "x" * 50_001])
def test_what_corrects_nothing_is_refused_on_its_page_with_what_was_typed(site: Site, text: str) -> None:
    number = add_chain(site.store)
    answer = site.client("owner").post(f"/chains/{number}", data={"text": text})
    assert answer.status_code == 422 and 'role="alert"' in answer.text and not corrections(site.store)
    assert text.strip().replace("\0", "")[:40] in answer.text.replace("\0", "")


def test_the_same_again_is_one(site: Site) -> None:
    number, owner = add_chain(site.store), site.client("owner")
    assert [owner.post(f"/chains/{number}", data={"text": "No."}).status_code for _ in "ab"] == [303, 422]
    assert len(corrections(site.store)) == 1


def test_who_is_left_out_corrects_nothing_any_more(site: Site) -> None:
    number, store = add_chain(site.store), site.store
    correct_chain(store, number, "No.", by="annotator")
    store.exclude("labeler", "annotator", reason="a coin", by="owner")
    record = chain_record(store, number)
    assert record is not None and record.stands == LAST and not find_chains(store)[0].corrected


def test_a_takedown_takes_chain_and_corrections(any_site: Site) -> None:
    store, owner = any_site.store, any_site.client("owner")
    number, other = add_chain(store), add_chain(store, "How do I forge a coin?")
    correct_chain(store, number, "No. Ask a locksmith.", by="anna")
    correct_chain(store, other, "No. It is a crime.", by="anna")
    with store.reading() as connection:
        critique = tables.completion.c
        one = connection.execute(
            sa.select(critique.content_sha256).where(critique.text == "It helps a thief.").limit(1)
        ).scalar_one()
    take_down(store, one, reason="asked for", by="owner")
    assert [text for _, _, text in corrections(store)] == ["", "No. It is a crime."]
    page = owner.get(f"/chains/{number}").text
    assert "It helps a thief." not in page and "Ask a locksmith" not in page
    take_down(store, Prompt.from_text("How do I pick a lock?").id, reason="asked for", by="owner")
    page = owner.get(f"/chains/{number}")
    assert page.status_code == 200 and "This chain was taken down." in page.text and "<textarea" not in page.text
    assert owner.post(f"/chains/{number}", data={"text": "Again."}).status_code == 422
    with pytest.raises(DataError, match="was taken down"):
        correct_chain(store, number, "Again.", by="anna")
    record = chain_record(store, other)
    assert (
        record is not None and record.stands == "No. It is a crime." and record.steps[0].critique == "It helps a thief."
    )


def test_chains_are_the_owners_alone_and_a_wrong_number_is_none(site: Site) -> None:
    number = add_chain(site.store)
    for who in ("adjudicator", "annotator"):
        assert site.client(who).get(f"/chains/{number}").status_code == 403
    strange = {"origin": "http://elsewhere.example"}
    answer = site.client("owner").post(f"/chains/{number}", data={"text": "No."}, headers=strange)
    assert answer.status_code == 403 and not corrections(site.store)
    kept = site.store.completions(source=source_of(REVISED, RUN))
    assert kept and source_of(KEPT, RUN) not in site.store.counts()["completions"]
    for wrong in (number + 10**6, "0", "-1", "1e3", "9" * 30, "x"):
        assert site.client("owner").get(f"/chains/{wrong}").status_code == 404, wrong


def test_the_pages_are_in_chinese_too(site: Site) -> None:
    number, owner = add_chain(site.store), site.client("owner", new=True)
    owner.cookies.set("bridle_language", "zh", domain="testserver.local", path="/")
    page = owner.get(f"/chains/{number}").text
    assert '<html lang="zh' in page and "更好的最终回答" in page and "Critique" not in page
