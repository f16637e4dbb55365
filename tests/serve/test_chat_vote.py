"""A user of the real server in Chromium: what is promoted in a project answers, two answers come, one is picked, and the vote is in the
project's store with its sides, its arms and their propensity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, expect

from bridle.feedback.serving.comparisons import find_pair
from bridle.feedback.serving.outcomes import Outcome, vote_outcomes
from bridle.feedback.serving.promotion import promote
from bridle.feedback.store import tables
from bridle.serve import openai
from bridle.serve.gate import Keys
from bridle.stages.serve import Following
from bridle.stages.workspace import Work
from tests.labelling.browser.conftest import DESKTOP, chromium
from tests.serve.test_chat_browser import ask, last
from tests.serve.test_following import content_of, work
from tests.serving_app import served, until

__all__ = ["chromium", "work"]  # fixtures of this file's tests too

COMPARING = {"compare_share": 1.0, "compare_other_share": 0.75, "compare_random_share": 0.2, "max_tokens": 6}
# Of the pairs of what is served and what was before it: .8 of the comparisons are drawn by the first share, .2 uniformly on either side.
PROPENSITY = {
    ("current", "current"): 0.8 * 0.25 + 0.2 * 0.25,
    ("current", "previous"): 0.8 * 0.75 + 0.2 * 0.5,
    ("previous", "previous"): 0.2 * 0.25,
}
KEYS = {"1": 1.0, "2": 0.0, "3": 0.5}  # of the keyboard, and how far the first answer is preferred


class Seeded:
    """In the place of `random` where a request brings no seed: of another one so small a model may say a NUL, which no store keeps."""

    @staticmethod
    def getrandbits(bits: int) -> int:
        return 0


@dataclass
class Visitor:
    """Somebody at the chat page of a server that follows what the project promotes: `stamps` by arm."""

    page: Page
    work: Work
    stamps: dict[str, str]

    def votes(self) -> list[Outcome]:
        return vote_outcomes(self.work.store)


@pytest.fixture
def visitor(work: Work, chromium: Browser, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitor]:
    monkeypatch.setattr(openai, "random", Seeded)
    contents = {arm: content_of(work, name) for arm, name in (("previous", "one"), ("current", "two"))}
    for content in contents.values():
        promote(work.store, content, by="owner")
    following = Following(work, work.recipe)
    with served(load=following.load, keys=Keys(work.store), **COMPARING) as server:
        until(lambda: server.scheduler.roster is not None)
        following.look(server.scheduler, server.app.state.desk.metrics)
        context = chromium.new_context(viewport=DESKTOP, base_url=server.url)
        page, errors = context.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto("/chat")
        page.locator("body[data-ready]").wait_for()
        yield Visitor(page, work, {arm: f"{content[:16]}+0" for arm, content in contents.items()})
        context.close()
        assert not errors


def test_a_user_agrees_chats_compares_and_the_vote_is_in_the_store(visitor: Visitor) -> None:
    page, store = visitor.page, visitor.work.store
    ask(page, "Before anything is agreed.")
    assert not kept_answers(visitor)  # and nobody was asked to compare
    expect(page.locator(".comparison")).to_have_count(0)
    page.locator("#consent").get_by_role("button").first.click()
    expect(page.locator("#consent")).to_be_hidden()
    shown = list[list[str]]()
    for number, key in enumerate(KEYS):
        page.locator("#new").click()  # the tiny model's context is short
        ask(page, f"Question {number}: my cat is bored.")
        cards = page.locator(".comparison .card")
        expect(cards).to_have_count(2)
        expect(page.locator(".vote")).to_be_focused()
        assert not any(name in page.locator("#turns").inner_text() for name in ("one", "two")), "it is blind"
        shown.append([one.inner_text() for one in cards.locator(".text").all()])
        page.keyboard.press(key)
        expect(last(page)).to_contain_text("This one is by")
    votes, preferred = visitor.votes(), list(KEYS.values())
    assert [one.preferred for one in votes] == preferred
    for vote, (comparison, order), texts, wanted in zip(votes, compared(visitor), shown, preferred, strict=True):
        pair = find_pair(store, vote.user, comparison)
        sides = (pair.first, pair.second)
        assert [visitor.stamps[arm] for arm in vote.arms] == [vote.first, vote.second]
        assert [one.completion.weight_stamp for one in sides] == [vote.first, vote.second]
        assert [letters(one.completion.text) for one in sides] == [letters(text) for text in texts]
        first, second = sorted(vote.arms)
        assert vote.propensity == pytest.approx(PROPENSITY[first, second])
        [(item, given)] = [row for row in store.judgements(study="serving") if row[0].id == pair.item]
        assert given.source == "serving" and given.labeler == vote.user and given.display_order == order
        assert [item.completions[slot] for slot in order] == [one.completion for one in sides], "slots are canonical"
        left, right = order
        assert given.ranking == {1.0: ((left,), (right,)), 0.0: ((right,), (left,)), 0.5: ((0, 1),)}[wanted]


def letters(text: str) -> str:
    """Of a text what the page writes as it is: control characters it writes out."""
    return "".join(sign for sign in text if sign.isalnum())


def kept_answers(visitor: Visitor) -> int:
    with visitor.work.store.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(tables.served)).scalar_one())


def compared(visitor: Visitor) -> list[tuple[str, tuple[int, int]]]:
    """Of each comparison that was kept its public id, and which canonical slot stood where."""
    table = tables.comparison.c
    with visitor.work.store.reading() as connection:
        rows = connection.execute(sa.select(table.public_id, table.display_order).order_by(table.id)).all()
    return [(name, (order[0], order[1])) for name, order in rows]
