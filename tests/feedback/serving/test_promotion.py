"""What is served follows from the account alone, whatever was promoted and taken back in which order, and nothing is done twice."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import select

from bridle.core.errors import DataError
from bridle.feedback.serving.promotion import Served, promote, promotion_steps, replayed, served_now, withdraw
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import audit_faults

MODELS = [letter * 64 for letter in "abcd"]


def with_models(store: Store) -> None:
    for number, content in enumerate(MODELS):
        store.add_model_version(f"ppo-{number}", kind="ppo", weights_sha256=content)
    store.add_model_version("reward", kind="reward", weights_sha256="f" * 64)


def statuses(store: Store) -> dict[str, str]:
    table = tables.model_version.c
    with store.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(select(table.weights_sha256, table.status))}


def test_a_promotion_and_a_rollback(any_store: Store) -> None:
    store, (a, b, *_) = any_store, MODELS
    with_models(store)
    assert served_now(store) == Served()
    assert promote(store, a, by="ann", details={"why": "the first"}) == Served(a)
    assert promote(store, b, by="ann", share=0.1) == Served(a, b, 0.1)
    assert statuses(store) | {"f" * 64: ""} == {
        a: "serving",
        b: "candidate",
        MODELS[2]: "candidate",
        MODELS[3]: "candidate",
        "f" * 64: "",
    }
    assert promote(store, b, by="loop") == Served(b, before=(a,))
    assert statuses(store)[a] == "retired" and statuses(store)[b] == "serving"
    assert withdraw(store, by="loop", details={"votes": 300}) == Served(a)
    assert statuses(store)[a] == "serving" and statuses(store)[b] == "retired"
    steps = promotion_steps(store)
    assert [(step.action, step.content, step.by) for step in steps] == [
        ("promote", a, "ann"), ("promote", b, "ann"), ("promote", b, "loop"), ("roll_back", b, "loop"),
    ]  # fmt: skip
    assert steps[0].details == {"why": "the first", "share": 1.0, "instead_of": None} and steps[3].details == {
        "votes": 300
    }
    with pytest.raises(DataError, match="nothing was served before aaaaaaaaaaaaaaa…"):
        withdraw(store, by="ann")
    with store.reading() as connection:
        assert not list(audit_faults(connection))


@pytest.mark.parametrize("seed", range(20))
def test_any_history_is_replayed_and_its_statuses_are_those_of_a_plain_account(store: Store, seed: int) -> None:
    with_models(store)
    rng = random.Random(seed)
    line: list[str] = []  # what was served, the newest last
    met: str | None = None
    for _ in range(30):
        model = rng.choice(MODELS)
        step = rng.choice(("whole", "share", "back"))
        try:
            if step == "whole":
                promote(store, model, by="x")
                if line[-1:] != [model]:
                    line, met = [*line, model], None
            elif step == "share":
                promote(store, model, by="x", share=0.25)
                met = model
            else:
                withdraw(store, by="x")
                line, met = (line, None) if met else (line[:-1], None)
        except DataError:
            assert (step == "share" and line[-1:] in ([], [model])) or (step == "back" and not met and len(line) < 2)
        now = served_now(store)
        assert (now.content, now.candidate, list(now.before)) == (line[-1] if line else None, met, line[:-1])
        assert now == replayed(promotion_steps(store))
        for content, status in statuses(store).items():
            if content in (step.content for step in promotion_steps(store)):
                assert status == now.status(content)


@pytest.mark.parametrize(
    ("content", "share", "words"),
    [
        ("e" * 64, 1.0, "eeeeeeeeeeeeeee… is not registered"),
        ("f" * 64, 1.0, "a reward model, which answers nobody"),
        (MODELS[0], 0.0, "over 0 and at most 1, got 0"),
        (MODELS[0], 1.5, "over 0 and at most 1, got 1.5"),
        (MODELS[0], float("nan"), "over 0 and at most 1, got nan"),
        (MODELS[0], 0.1, "nothing is served yet"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_noted(
    store: Store, content: str, share: float, words: str
) -> None:
    with_models(store)
    with pytest.raises(DataError, match=words):
        promote(store, content, by="ann", share=share)
    assert promotion_steps(store) == []


def test_a_step_is_done_once_and_what_is_gone_is_not_taken_back_again(store: Store) -> None:
    with_models(store)
    a, b, c, _ = MODELS
    for _ in range(3):
        promote(store, a, by="loop")
    for _ in range(3):
        promote(store, b, by="loop", share=0.1)
    assert len(promotion_steps(store)) == 2
    withdraw(store, by="loop", of=b)
    promote(store, c, by="loop", share=0.5)
    assert withdraw(store, by="loop", of=b) == Served(a, c, 0.5), "another is met now"
    assert len(promotion_steps(store)) == 4
    with pytest.raises(DataError, match="it is served already"):
        promote(store, a, by="loop", share=0.5)
