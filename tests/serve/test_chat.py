"""The chat's server: what is kept of whom, blind comparisons, votes, and models that are swapped or met by a share of the users."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
import torch

from bridle.core.errors import StoreError
from bridle.feedback.serving.answers import Arm, find_answer
from bridle.feedback.serving.comparisons import find_pair
from bridle.feedback.serving.consent import find_user
from bridle.feedback.serving.weights import serving_weights
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.generation.batch import BatchLimits
from bridle.generation.engine import Engine
from bridle.recipe.services import ServeSection
from bridle.serve import openai
from bridle.serve.chat.pairing import ChosenArms, choose_pair, pair_propensities
from bridle.serve.gate import Keys
from bridle.serve.scheduler import Roster, ServedModel
from bridle.site.listening import Place
from tests.feedback.conftest import new_store, postgresql_store
from tests.models.tiny import policy
from tests.serving_app import HELLO, Paused, Server, error_of, served, until

CONVERSATION = str(uuid.UUID(int=7))
TURN = {"messages": HELLO, "conversation": CONVERSATION, "regenerate": False}
KEPT = (tables.prompt, tables.completion, tables.served, tables.comparison, tables.judgement, tables.reaction)


class SameSeed:
    """In the place of `random` where a request brings no seed: so small a model may say a NUL, which no store keeps."""

    @staticmethod
    def getrandbits(bits: int) -> int:
        return 11


@pytest.fixture(scope="module", autouse=True)
def same_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai, "random", SameSeed)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with new_store(tmp_path_factory.mktemp("chat") / "store.sqlite") as store:
        yield store


@contextmanager
def comparing(store: Store) -> Iterator[Server]:
    with served(keys=Keys(store), max_tokens=6, compare_share=1.0, user_rate=1000) as server:
        yield server


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with comparing(store) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request: pytest.FixtureRequest, server: Server, store: Store) -> Iterator[tuple[Server, Store]]:
    """On both databases; PostgreSQL where BRIDLE_TEST_POSTGRES names one."""
    if request.param == "sqlite":
        yield server, store
        return
    for other in postgresql_store():
        with comparing(other) as on_other:
            yield on_other, other


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path / "store.sqlite") as store:
        yield store


@contextmanager
def browser(server: Server, token: str = "") -> Iterator[httpx2.Client]:
    cookies = {"bridle_user": token or f"{random.getrandbits(256):043x}"[-43:]}
    with httpx2.Client(base_url=server.url, timeout=30, cookies=cookies) as client:
        yield client


def agree(client: httpx2.Client, **named: str) -> str:
    text = client.get("/v1/consent", params=named).json()["text"]["sha256"]
    answer = client.post("/v1/consent", json={"answer": "agreed", "text": text, **named})
    assert answer.status_code == 200, answer.text
    return str(text)


def events(client: httpx2.Client, body: Any = TURN, path: str = "/chat/turn") -> list[Any]:
    with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        sent = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert sent[-1] == "[DONE]", sent[-1]
    return [json.loads(one) for one in sent[:-1]]


def turn(text: str) -> dict[str, Any]:
    """One that no other test asks: what a user asked who was forgotten is never kept again."""
    return {**TURN, "messages": [{"role": "user", "content": text}]}


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def say(client: httpx2.Client, about: str, kind: str, key: str = "k1", **more: Any) -> httpx2.Response:
    name = "comparison_id" if kind == "preference" else "completion_id"
    return client.post("/v1/feedback", json={name: about, "kind": kind, "idempotency_key": key, **more})


def counts(store: Store) -> list[int]:
    with store.reading() as connection:
        return [connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in KEPT]


def another(seed: int, title: str = "", name: str = "tiny") -> ServedModel:
    return ServedModel(name, policy("llama", seed), Engine(torch.float32), BatchLimits(rows=8), title=title)


# ---------------------------------------------------------------------------------------------- the whole of it


def test_from_consent_to_a_vote_in_the_store(both: tuple[Server, Store]) -> None:
    server, store = both
    with browser(server) as client:
        state = client.get("/chat/state", params={"lang": "zh"}).json()
        assert state["model"] == "tiny" and len(state["reasons"]) == 5 and state["flags"]
        assert state["consent"]["asked"] is False and state["consent"]["text"]["lang"] == "zh"
        agree(client)
        assert client.get("/chat/state").json()["consent"]["answer"] == "agreed"
        first, *chunks, last = events(client, turn("Why?"))
        about = first["bridle"]
        assert about["kind"] == "comparison" and about["comparison"].startswith("cmp-") and len(about["ids"]) == 2
        assert len(last["bridle"]["html"]) == 2 and last["bridle"]["kept"] is True
        assert {chunk["system_fingerprint"] for chunk in chunks} == {None} and len(
            {chunk["id"] for chunk in chunks}
        ) == 1
        user = find_user(store, client.cookies["bridle_user"])
        assert user is not None
        pair = find_pair(store, user, about["comparison"])
        assert [pair.first.id, pair.second.id] == about["ids"]
        assert [pair.first.completion.text, pair.second.completion.text] == [text_of(chunks, 0), text_of(chunks, 1)]
        for side, answer in enumerate((pair.first, pair.second)):
            assert answer.choice.place == side and answer.choice.conversation == CONVERSATION
            assert answer.completion.weight_stamp == server.model.policy.stamp and answer.sum_logprob is not None
            assert answer.completion.sampling["sample"] == side
        # blind until the vote; sent again it is the same; with another key it is closed
        voted = say(client, about["comparison"], "preference", "v1", value="second", text="It says more.")
        assert voted.json() == {"kept": True, "new": True, "models": {"first": "tiny", "second": "tiny"}}
        again = say(client, about["comparison"], "preference", "v1", value="second", text="It says more.")
        assert again.json() == voted.json() | {"new": False}
        assert error_of(say(client, about["comparison"], "preference", "v2", value="first"), 409)["code"] == "closed"
        error_of(say(client, about["comparison"], "preference", "v1", value="tie"), 409)
        [judgement] = [one for _, one in store.judgements(study="serving") if one.labeler == user]
        assert judgement.ranking == ((pair.display_order[1],), (pair.display_order[0],)) and judgement.marks == ()
        assert serving_weights(store)[judgement.id] == pytest.approx(1.0)
        # of one answer
        assert say(client, about["ids"][0], "vote", "r1", value=0, reason="correctness").json() == {
            "kept": True,
            "new": True,
        }
        assert say(client, about["ids"][0], "vote", "r1", value=0, reason="correctness").json()["new"] is False
        for kind, more in (
            ("comment", {"text": "Short."}),
            ("demonstration", {"text": "Hi!"}),
            ("flag", {"reason": "untrue"}),
        ):
            assert say(client, about["ids"][1], kind, f"key {kind}", **more).status_code == 200
        with browser(server) as other:
            agree(other)
            for known, kind, more in (
                (about["ids"][0], "vote", {"value": 1}),
                (about["comparison"], "preference", {"value": "tie"}),
            ):
                assert error_of(say(other, known, kind, "o1", **more), 404)["code"] == "unknown_id"
        # and gone again
        left = client.post("/v1/forget", json={})
        assert left.json() == {"forgotten": True} and 'bridle_user=""' in left.headers["set-cookie"]
        assert find_user(store, client.cookies.get("bridle_user") or "x" * 43) is None
        assert not [one for _, one in store.judgements(study="serving") if one.labeler == user]


def test_nothing_is_kept_without_consent(server: Server, store: Store) -> None:
    before = counts(store)
    with browser(server) as client:
        first, *_, last = events(client)
        assert first["bridle"]["kind"] == "answer" and first["bridle"]["comparison"] is None
        assert last["bridle"]["kept"] is False
        assert error_of(say(client, first["bridle"]["ids"][0], "vote", value=1), 409)["code"] == "no_consent"
        assert client.post("/v1/consent", json={"answer": "refused", "text": None}).status_code == 200
        assert client.get("/v1/consent").json()["answer"] == "refused" and client.get("/v1/consent").json()["asked"]
        error_of(client.post("/v1/consent", json={"answer": "agreed", "text": "0" * 64}), 409)
        assert find_user(store, client.cookies["bridle_user"]) is None
        agree(client)
        assert client.get("/v1/consent").json()["answer"] == "agreed"
        client.post("/v1/consent", json={"answer": "refused", "text": None})
        assert events(client)[-1]["bridle"]["kept"] is False
    assert counts(store) == before


def test_programs_name_their_users(server: Server, store: Store) -> None:
    key = Keys(store).create("program")
    body = {
        "model": "tiny",
        "messages": turn("How?")["messages"],
        "max_tokens": 4,
        "seed": 1,
    }  # other answers may hold a NUL
    try:
        with httpx2.Client(base_url=server.url, timeout=30, headers={"authorization": f"Bearer {key}"}) as client:
            assert error_of(client.post("/v1/comparisons", json=body), 400)["param"] == "user"
            unknown = client.post("/v1/comparisons", json={**body, "user": "anna"}).json()
            assert unknown["bridle"]["kept"] is False and [one["index"] for one in unknown["choices"]] == [0, 1]
            agree(client, user="anna")
            told = client.post("/v1/comparisons", json={**body, "user": "anna"}).json()
            assert told["bridle"]["kept"] is True and told["system_fingerprint"] is None
            *_, last = events(client, {**body, "user": "anna", "stream": True}, "/v1/comparisons")
            assert last["bridle"] == {"kept": True}
            voted = say(client, told["bridle"]["comparison"], "preference", value="both_bad", user="anna")
            assert voted.json()["models"] == {"first": "tiny", "second": "tiny"}
            error_of(say(client, told["bridle"]["ids"][0], "vote", value=1, user="berta"), 409)
            one = client.post("/v1/chat/completions", json={**body, "user": "anna"}).json()
            assert say(client, one["id"], "vote", "x", value=1, user="anna").json()["new"] is True
            assert client.post("/v1/forget", json={"user": "anna"}).json() == {"forgotten": True}
            assert client.get("/v1/consent", params={"user": "anna"}).json()["asked"] is False
    finally:
        Keys(store).revoke("program")


# ------------------------------------------------------------------------------------------------- who may do it


def test_what_belongs_to_users_needs_one(server: Server, small: Store) -> None:
    body = {"completion_id": "x", "kind": "vote", "value": 1, "idempotency_key": "a"}
    for path in ("/v1/feedback", "/v1/comparisons", "/v1/forget", "/v1/consent", "/chat/turn"):
        assert error_of(server.http.post(path, json=body), 401)["code"] == "no_session"
        error_of(server.http.post(path, json=body, headers={"authorization": "Bearer any"}), 401)
        error_of(server.http.post(path, json=body, headers={"cookie": "bridle_user=short"}), 401)
    with browser(server) as client:
        foreign = {"sec-fetch-site": "cross-site"}
        error_of(client.post("/chat/turn", json=TURN, headers=foreign), 403)
        error_of(client.post("/chat/turn", content=json.dumps(TURN), headers={"content-type": "text/plain"}), 415)
        error_of(client.post("/chat/turn", json=TURN, headers={"host": "evil.example"}), 403)
        error_of(client.post("/chat/turn", json={**TURN, "conversation": "x"}), 400)
        last = {**TURN, "messages": [{"role": "assistant", "content": "Hello."}]}
        for lang, words in (("zh", "messages 必须以用户的话结尾"), ("xx", "messages must end with what the user says")):
            error = error_of(client.post("/chat/turn", json=last, params={"lang": lang}), 400)
            assert error["message"] == words and error["param"] == "messages"
        left = client.post("/v1/consent", json={"answer": "refused"}).headers["set-cookie"]
        assert "HttpOnly" in left and "SameSite=strict" in left and "Path=/" in left and "Secure" not in left
    keys = Keys(small)
    with served(keys=keys, place=Place("0.0.0.0"), user_rate=1, origins=["https://chat.example"]) as far:
        with browser(far) as client:
            assert error_of(client.post("/chat/turn", json=TURN), 403)["code"] == "no_chat"
            error_of(client.get("/v1/consent"), 401)
        with httpx2.Client(base_url=far.url, headers={"authorization": f"Bearer {keys.create('a')}"}) as client:
            assert client.get("/v1/consent", params={"user": "anna"}).status_code == 200
            assert int(client.get("/v1/consent", params={"user": "anna"}).headers["retry-after"]) > 0
            assert client.get("/v1/consent", params={"user": "berta"}).status_code == 200
    with (
        served(public_chat=True, place=Place("0.0.0.0"), origins=["https://chat.example"]) as far,
        browser(far) as client,
    ):
        assert client.get("/chat/state").json()["consent"] == {"asked": False, "answer": None, "text": None}
        listed = {"origin": "https://chat.example", "sec-fetch-site": "same-site"}
        error_of(client.post("/chat/turn", json=TURN, headers=listed), 403)  # it may ask, and not in a user's name


def test_a_store_that_fails_breaks_no_answer(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(keys=Keys(small), max_tokens=4, compare_share=1.0) as server, browser(server) as client:
        agree(client)

        def fail(*_: object) -> Any:
            raise StoreError("the disk is full")

        monkeypatch.setattr("bridle.serve.chat.keeping.keep_answer", fail)
        first, *_, last = events(client)
        assert first["bridle"]["kind"] == "comparison" and last["bridle"]["kept"] is False and last["bridle"]["html"]
        monkeypatch.setattr("bridle.serve.chat.feedback.agreeing_user", fail)
        error = error_of(say(client, first["bridle"]["comparison"], "preference", value="tie"), 503)
        assert "disk" not in error["message"]
        metrics = server.http.get("/metrics").text
        assert "bridle_store_failures_total 2.0" in metrics
    assert counts(small)[2:] == [0, 0, 0, 0]


# ---------------------------------------------------------------------------------- early votes, swaps, candidates


def test_a_vote_before_the_end_waits_for_it(server: Server, store: Store) -> None:
    keeper = server.app.state.desk.keeper
    with browser(server) as client, ThreadPoolExecutor(2) as pool:
        agree(client)
        with Paused(server.model) as paused:
            asking = pool.submit(events, client, turn("When?"))
            until(lambda: server.scheduler.under_way == 2)
            [about] = [one for _, one in keeper.unended if one.startswith("cmp-")]
            voting = pool.submit(say, client, about, "preference", value="tie")
            until(lambda: bool(keeper.unended[client.cookies["bridle_user"], about]._waiters))
            paused.let(1000)
            assert voting.result().json()["new"] is True and asking.result()
        user = str(find_user(store, client.cookies["bridle_user"]))
        [marks] = [one.marks for _, one in store.judgements(study="serving") if one.labeler == user]
        assert marks == ("early",) and not keeper.unended


def test_a_swap_in_the_middle_mixes_no_stream(server: Server) -> None:
    first, second = server.model, another(1)
    with browser(server) as client, ThreadPoolExecutor(8) as pool, Paused(first) as paused:
        before = [pool.submit(events, client) for _ in range(3)]
        until(lambda: server.scheduler.under_way == 3)
        server.scheduler.roster = Roster(second)
        after = [pool.submit(events, client) for _ in range(3)]
        until(lambda: server.scheduler.under_way == 6)
        server.scheduler.roster = Roster(first)
        paused.let(1000)
        for streams, model in ((before, first), (after, second)):
            for stream in streams:
                assert {one["system_fingerprint"] for one in stream.result()} == {model.fingerprint}


def test_a_share_of_the_users_meets_a_candidate(server: Server, store: Store) -> None:
    current, candidate = server.model, another(1, "turn-0001")
    server.scheduler.roster = Roster(current, candidate, 0.5)
    try:
        tokens = [f"{number:043d}" for number in range(200)]
        own = Counter(server.scheduler.roster.own_arm(token) for token in tokens)
        assert own["candidate"] == pytest.approx(100, abs=25)
        met = [token for token in tokens if server.scheduler.roster.own_arm(token) == "candidate"]
        wider = Roster(current, candidate, 0.8)
        assert all(wider.own_arm(token) == "candidate" for token in met)
        for token in tokens[:4]:
            with browser(server, token) as client:
                expected = candidate if token in met else current
                assert {chunk["system_fingerprint"] for chunk in events(client)} == {expected.fingerprint}
        health = server.http.get("/health").json()
        assert health["candidate"]["stamp"] == candidate.policy.stamp and health["candidate"]["share"] == 0.5
        assert re.search(
            r'bridle_model_share{arm="candidate",model="turn-0001",.*} 0.5', server.http.get("/metrics").text
        )
        with browser(server, met[0]) as client:
            agree(client)
            user = str(find_user(store, met[0]))
            found = set()
            for _ in range(6):
                about = events(client, turn("Where?"))[0]["bridle"]
                pair = find_pair(store, user, about["comparison"])
                arms = pair.first.choice.arm, pair.second.choice.arm
                stamps = {"current": current.policy.stamp, "candidate": candidate.policy.stamp}
                assert [stamps[arm] for arm in arms] == [
                    one.completion.weight_stamp for one in (pair.first, pair.second)
                ]
                found.add(arms)
                voted = say(client, about["comparison"], "preference", about["comparison"][:9], value="tie").json()
                names = {"current": "tiny", "candidate": "turn-0001"}
                assert voted["models"] == {"first": names[arms[0]], "second": names[arms[1]]}
            assert ("candidate", "candidate") in found and find_answer(store, user, pair.first.id)
    finally:
        server.scheduler.roster = Roster(current)


def test_pairs_are_drawn_as_often_as_their_propensity() -> None:
    shares: dict[Arm, float] = {"current": 0.7, "candidate": 0.3, "previous": 0.0}
    settings = ServeSection(compare_other_share=0.3, compare_random_share=0.2)
    expected, rng = pair_propensities(shares, settings), random.Random(0)
    assert sum(expected.values()) == pytest.approx(1)
    drawn = list[ChosenArms]()
    for _ in range(8_000):
        own: Arm = "candidate" if rng.random() < 0.3 else "current"
        drawn.append(choose_pair(own, shares, settings, rng))
    found = Counter((min(one.arms), max(one.arms)) for one in drawn)
    assert found.keys() == expected.keys() and ("candidate", "previous") not in found
    for pair, probability in expected.items():
        assert found[pair] / len(drawn) == pytest.approx(probability, abs=0.02)
    assert all(one.propensity == expected[min(one.arms), max(one.arms)] for one in drawn)
    assert sum(one.acquisition == "random" for one in drawn) / len(drawn) == pytest.approx(0.2, abs=0.02)
    sides = Counter(one.arms for one in drawn if set(one.arms) == {"candidate", "current"})
    assert min(sides.values()) / sum(sides.values()) == pytest.approx(0.5, abs=0.06)
    assert choose_pair("current", {"current": 1.0}, settings, rng).propensity == pytest.approx(1)
