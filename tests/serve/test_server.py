"""Who is let in, how much they may ask, and what becomes of answers when somebody leaves, the model fails or is swapped, at the end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bridle.core.errors import DataError, ModelError, NotFinite, UsageError
from bridle.core.records import Completion, Prompt
from bridle.feedback.people.accounts import create_account, issue
from bridle.feedback.store.store import Store
from bridle.serve.gate import Keys
from bridle.serve.scheduler import ServedModel
from bridle.serve.serving import require_guard
from bridle.site.listening import Place
from tests.feedback.conftest import new_store
from tests.models.tiny import policy
from tests.serving_app import Paused, Server, break_later, error_of, served, until

FAR = Place("0.0.0.0")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(max_waiting=2, max_requests=6) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path / "store.sqlite") as store:
        yield store


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# ----------------------------------------------------------------------------------------------------------- keys


def test_on_the_loopback_any_key_is_good_until_one_is_made(store: Store) -> None:
    keys = Keys(store)
    with served(keys=keys) as server:
        assert server.http.get("/v1/models").status_code == 200
        assert server.http.get("/v1/models", headers=bearer("sk-anything")).status_code == 200
        key = keys.create("laptop")
        assert server.http.get("/v1/models", headers=bearer(key)).status_code == 200
        assert error_of(server.http.get("/v1/models"), 401)["code"] == "invalid_api_key"
        error_of(server.http.get("/metrics"), 401)
        # without a key nothing is read of what is sent
        error_of(server.http.post(CHAT, content=b"{", headers={"content-type": "application/json"}), 401)
        assert server.http.get("/health").status_code == 200
        keys.revoke("laptop")
        assert server.http.get("/v1/models").status_code == 200


def test_elsewhere_a_key_is_needed_and_the_store_has_its_hash_alone(store: Store, tmp_path: Path) -> None:
    keys = Keys(store)
    with pytest.raises(UsageError, match="bridle keys create"):
        require_guard(FAR, len(keys.all()))
    with pytest.raises(UsageError):
        require_guard(Place(proxies=["127.0.0.1"]), 0)  # a proxy on this machine lets others in
    require_guard(Place(), 0)
    key, other = keys.create("laptop"), keys.create("手机")
    require_guard(FAR, len(keys.all()))
    assert len(key) == 43 and key.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for name in ("laptop", "", "a\nb", "x" * 101):
        with pytest.raises(DataError):
            keys.create(name)
    with served(keys=keys, place=FAR) as server:
        assert server.http.get("/v1/models", headers=bearer(key)).status_code == 200
        keys.revoke("laptop")
        error_of(server.http.get("/v1/models", headers=bearer(key)), 401)
        assert server.http.get("/v1/models", headers=bearer(other)).status_code == 200
        keys.revoke("手机")
        error_of(server.http.get("/v1/models"), 401)  # the last one's end opens nothing
        create_account(store, "nightly", "service")  # nor does what opens the labelling app
        error_of(
            server.http.get("/v1/models", headers=bearer(issue(store, "token", labeler="nightly", seconds=60))), 401
        )
    with pytest.raises(DataError, match="there is no key called 'laptop'"):
        keys.revoke("laptop")


def test_a_key_does_not_open_the_labelling_app(store: Store) -> None:
    from starlette.testclient import TestClient

    from bridle.site.app import create_site

    with TestClient(create_site(store, [])) as client:
        assert client.get("/me", headers=bearer(Keys(store).create("laptop"))).status_code == 401


# ------------------------------------------------------------------------------------------------- hosts and pages


def test_a_page_of_another_site_gets_nothing(server: Server) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"):
        assert error_of(server.http.get("/v1/models", headers={"host": host}), 403)["code"] == "unknown_host"
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert server.http.get("/v1/models", headers={"host": host}).status_code == 200
    foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    error_of(server.http.post(CHAT, json=server.asked(), headers=foreign), 403)
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in server.http.options(CHAT, headers=asked).headers


def test_names_and_pages_that_are_listed_are_let_in() -> None:
    with served(hosts=["model.example"], origins=["https://chat.example"]) as server:
        assert server.http.get("/v1/models", headers={"host": "model.example:443"}).status_code == 200
        page = {"origin": "https://chat.example", "sec-fetch-site": "cross-site"}
        answer = server.http.post(CHAT, json=server.asked(max_tokens=2), headers=page)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://chat.example"
        asked = {
            **page,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        assert server.http.options(CHAT, headers=asked).status_code == 200
        other = {"origin": "https://chat.example.evil.example", "sec-fetch-site": "cross-site"}
        error_of(server.http.post(CHAT, json=server.asked(max_tokens=2), headers=other), 403)


# --------------------------------------------------------------------------------------------------------- limits


def test_too_much_at_once_is_refused_until_there_is_room(server: Server) -> None:
    with Paused(server.model) as paused, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.events, server.asked(n=2, max_tokens=4)) for _ in range(5)]
        until(lambda: server.scheduler.under_way == 10)  # 8 at work, 2 wait
        answer = server.http.post(CHAT, json=server.asked())
        assert error_of(answer, 429)["type"] == "rate_limit_error" and int(answer.headers["retry-after"]) > 0
        assert server.http.get("/v1/models").status_code == 200  # which cost nothing
        paused.let(1000)
        assert all(one.result()[-1] == "[DONE]" for one in waiting)
    until(lambda: server.scheduler.under_way == 0)
    assert server.http.post(CHAT, json=server.asked()).status_code == 200


def test_one_key_does_not_take_all_places(store: Store) -> None:
    keys = Keys(store)
    one, other, third = (keys.create(name) for name in ("one", "other", "third"))
    with served(keys=keys, max_requests_per_key=1, max_requests=2) as server, Paused(server.model) as paused:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(
                httpx2.post, f"{server.url}{CHAT}", json=server.asked(), headers=bearer(one), timeout=30
            )
            until(lambda: server.scheduler.under_way == 1)
            assert (
                error_of(server.http.post(CHAT, json=server.asked(), headers=bearer(one)), 429)["code"]
                == "rate_limit_exceeded"
            )
            second = pool.submit(
                httpx2.post, f"{server.url}{CHAT}", json=server.asked(), headers=bearer(other), timeout=30
            )
            until(lambda: server.scheduler.under_way == 2)
            answer = server.http.post(CHAT, json=server.asked(), headers=bearer(third))
            assert "in all" in error_of(answer, 429)["message"]
            paused.let(1000)
            assert first.result().status_code == second.result().status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with served(body_seconds=0.3) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            slow.sendall(head.encode())
            answer = b""
            while not answer.endswith(b"}}"):
                answer += slow.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 408") and b"did not come in time" in answer
        chunks = (b" " * 2**19 for _ in range(3))  # without a length, too large
        error_of(server.http.post(CHAT, content=chunks, headers={"content-type": "application/json"}), 413)


# ------------------------------------------------------------------------------------------------- leaving, failing


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_takes_the_answer_along(server: Server, stream: bool) -> None:
    with Paused(server.model) as paused:
        paused.let(3)
        with httpx2.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(1) as pool:
            if stream:
                with client.stream("POST", CHAT, json=server.asked(max_tokens=80, stream=True)) as answer:
                    lines = answer.iter_lines()
                    assert next(lines).startswith("data:")
                    until(lambda: server.scheduler.under_way == 1)
            else:
                asking = pool.submit(client.post, CHAT, json=server.asked(max_tokens=80), timeout=0.2)
                assert isinstance(asking.exception(), httpx2.TimeoutException)
        until(lambda: server.scheduler.under_way == 0)
        paused.let(2)
        until(lambda: not server.model.rows and not server.model.batch.unfinished)


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    break_later(server, monkeypatch)
    *chunks, last = server.events(server.asked(max_tokens=50, n=2))
    assert len(chunks) > 3 and last.keys() == {"error"} and "secret" not in json.dumps(last)
    assert last["error"]["type"] == "server_error"
    # the server has a new batch, and is as it was
    assert server.events(server.asked(max_tokens=3))[-1] == "[DONE]"


def test_a_failure_is_no_traceback(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("secret words of the machine")

    monkeypatch.setattr(server.model.batch, "step", fail)
    error = error_of(server.http.post(CHAT, json=server.asked()), 500)
    assert "secret" not in error["message"] and error["type"] == "server_error"
    assert server.http.post(CHAT, json=server.asked()).status_code == 200


def test_a_batch_that_cannot_let_a_row_go_is_given_up_and_the_server_is_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        raise RuntimeError("secret words of the machine")

    with Paused(server.model) as paused, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(server.model.batch, "cancel", fail)
        staying = pool.submit(server.events, server.asked(max_tokens=20))
        until(lambda: server.scheduler.under_way == 1)
        with httpx2.Client(base_url=server.url, timeout=30) as client:
            with client.stream("POST", CHAT, json=server.asked(max_tokens=80, stream=True)):
                until(lambda: server.scheduler.under_way == 2)
        until(lambda: server.scheduler.under_way == 1)
        paused.let(1000)
        assert staying.result()[-1]["error"]["type"] == "server_error"
    assert server.http.post(CHAT, json=server.asked()).status_code == 200


def test_where_nobody_is_left_to_write_who_waits_is_told_and_the_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise MemoryError("no room for a batch")

    with served() as server:
        ended = list[BaseException]()
        monkeypatch.setattr(server.scheduler, "on_failure", ended.append)
        monkeypatch.setattr(server.model.batch, "step", fail)
        monkeypatch.setattr(server.model.engine, "batch", fail)
        error_of(server.http.post(CHAT, json=server.asked()), 500)
        until(lambda: bool(ended))
        assert isinstance(ended[0], MemoryError) and not server.scheduler.thread.is_alive()
        error_of(server.http.post(CHAT, json=server.asked()), 503)
        assert server.http.get("/health").status_code == 503


def test_rows_that_are_no_numbers_fail_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, step = server.model.batch, server.model.batch.step
    broken: list[int] = []

    def break_the_first() -> Any:
        found = step()
        if not broken and len(batch.unfinished) == 2:
            broken.append(min(batch.unfinished))
            batch.cancel(broken[0])
            raise NotFinite("weights give logits that are not finite", tuple(broken))
        return found

    with Paused(server.model) as paused, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(paused, "step", break_the_first)
        first = pool.submit(server.events, server.asked(max_tokens=20))
        until(lambda: server.scheduler.under_way == 1)
        second = pool.submit(server.events, server.asked(max_tokens=20))
        until(lambda: server.scheduler.under_way == 2)
        paused.let(1000)
        assert "not finite" in first.result()[-1]["error"]["message"] and second.result()[-1] == "[DONE]"


def test_a_prompt_that_the_template_refuses_is_a_bad_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, messages: object, *, answer_next: bool) -> str:
        raise ModelError("the chat template could not render 1 messages: roles must alternate")

    monkeypatch.setattr(type(server.model.policy.template), "render", refuse)
    assert "roles must alternate" in server.refused(400, **server.asked())["message"]


# ------------------------------------------------------------------------------------------- loading and the end


def test_while_the_model_is_loaded_and_at_the_end_it_says_so() -> None:
    loaded = threading.Event()

    def load() -> ServedModel:
        loaded.wait(30)
        raise ModelError("the weights are not there")

    with served(load=load) as server:
        answer = server.http.post(CHAT, json=server.asked())
        assert "being loaded" in error_of(answer, 503)["message"] and "retry-after" in answer.headers
        assert server.http.get("/health").status_code == 503 and server.http.get("/health").json() == {
            "status": "loading"
        }
        loaded.set()


def test_answers_have_time_to_end_and_are_told_when_they_have_none() -> None:
    for let, last in ((1000, "[DONE]"), (4, None)):
        with served() as server, ThreadPoolExecutor(1) as pool:
            paused = Paused(server.model)
            with paused:
                asking = pool.submit(server.events, server.asked(max_tokens=40))
                until(lambda server=server: server.scheduler.under_way == 1)
                ending = threading.Timer(0.3, paused.let, [let])
                server.scheduler.loop.call_soon_threadsafe(server.scheduler.drain, 5.0 if last else 0.2)
                until(lambda server=server: server.scheduler.draining)
                error_of(server.http.post(CHAT, json=server.asked()), 503)
                assert server.http.get("/health").json()["status"] == "draining"
                ending.start()
                found = asking.result()
        if last:
            assert found[-1] == last
        else:
            assert "is being stopped" in found[-1]["error"]["message"]


# -------------------------------------------------------------------------------------------------- best of several


def test_the_best_of_several_is_picked_and_all_are_counted() -> None:
    seen: list[str] = []

    def longest_has_most(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        assert all(prompt.text == "hello" for prompt in prompts)
        seen[:] = [completion.text for completion in completions]
        return [None, 1.0, 3.0, 2.0]

    with served(reward=longest_has_most) as server:
        reply = server.openai.chat.completions.create(**server.asked(n=2, extra_body={"best_of": 4}))
        assert [choice.message.content for choice in reply.choices] == [seen[2], seen[3]]
        assert reply.usage is not None and reply.usage.completion_tokens == 4 * 16
        assert [choice.index for choice in reply.choices] == [0, 1]
        found = server.openai.completions.create(model="tiny", prompt="hello", best_of=4, max_tokens=4)
        assert found.choices[0].text == seen[2]
        assert server.refused(400, **server.asked(best_of=2, stream=True))["param"] == "best_of"


def test_a_base_model_continues_texts_and_does_not_chat() -> None:
    with served(no_chat="tiny is a base model without a chat template, so it cannot be chatted with") as server:
        assert "base model" in server.refused(400, **server.asked())["message"]
        assert server.openai.completions.create(model="tiny", prompt="My", seed=0, max_tokens=3).choices[0].text


# ---------------------------------------------------------------------------------------------------------- swap


def test_a_swap_fails_no_request_and_mixes_no_answer() -> None:
    first, second = policy("llama", 0), policy("llama", 1)
    with served(first, batch=16) as server:
        alone: dict[str, set[str]] = {}
        for one in (first, second):
            if one is second:
                server.scheduler.swap(second)
            replies = [
                server.openai.chat.completions.create(**server.asked(seed=seed, max_tokens=16)) for seed in range(5)
            ]
            alone[str(replies[0].system_fingerprint)] = {str(reply.choices[0].message.content) for reply in replies}
        server.scheduler.swap(first)
        assert len(alone) == 2 and not set.intersection(*alone.values())
        found: list[list[Any]] = []

        def ask(number: int) -> None:
            found.append(server.events(server.asked(seed=number % 5, max_tokens=16)))

        with ThreadPoolExecutor(100) as pool:
            asking = [pool.submit(ask, number) for number in range(50)]
            until(lambda: server.scheduler.under_way > 5)
            server.scheduler.swap(second)
            asking += [pool.submit(ask, number) for number in range(25)]
            until(lambda: bool(server.model.rows))
            server.scheduler.swap(first)
            asking += [pool.submit(ask, number) for number in range(25)]
            assert all(one.exception() is None for one in asking)
        by_model: dict[str, int] = dict.fromkeys(alone, 0)
        for *chunks, done in found:
            assert done == "[DONE]"
            (fingerprint,) = {chunk["system_fingerprint"] for chunk in chunks}
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            assert text in alone[fingerprint]
            by_model[fingerprint] += 1
        assert len(found) == 100 and min(by_model.values()) > 0
        until(lambda: not server.scheduler.active)
