"""Those who only hold connections, do not read, or ask without end, disturb nobody else."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bridle.serve import serving
from bridle.serve.gate import Keys
from bridle.serve.serving import DrainingServer, allow_files, server_of
from bridle.site import listening
from bridle.site.listening import listen
from tests.feedback.conftest import new_store
from tests.serving_app import HELLO, Paused, Server, error_of, served, until

CHAT = "/v1/chat/completions"
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALVES = (b"", HEAD.encode(), f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())  # of a request


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[DrainingServer]:
    """The servers of this test, whose connections can be counted."""
    found: list[DrainingServer] = []
    monkeypatch.setattr(serving, "server_of", lambda *given: found.append(server_of(*given)) or found[-1])
    return found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent does not disappear in the system's own buffers, which take megabytes."""

    def listen_narrowly(host: str, port: int) -> socket.socket:
        found = listen(host, port)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return found

    monkeypatch.setattr(listening, "listen", listen_narrowly)


@pytest.fixture
def many() -> int:
    """A thousand connections, both of whose ends are this process's, or as many as it may have."""
    allow_files(2_500)
    return int(min(1000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500) // 2))


def connect(server: Server, stack: ExitStack, sent: bytes, **options: int) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    found = stack.enter_context(socket.socket())
    for name, value in options.items():
        found.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    found.settimeout(20)
    found.connect((host, int(port)))
    found.sendall(sent)
    return found


def all_of(one: socket.socket) -> bytes:
    """What it is sent until it is closed."""
    parts = []
    try:
        while part := one.recv(2**20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


# ------------------------------------------------------------------------------------------ half-open connections


@pytest.mark.parametrize("half", HALVES, ids=["nothing", "head", "body"])
def test_a_thousand_half_open_connections_disturb_nobody(made: list[DrainingServer], many: int, half: bytes) -> None:
    """More than the server holds, and none has waited too long: those that have waited longest make room."""
    with served(connections=many - 10) as server, ExitStack() as stack, ThreadPoolExecutor(5) as pool:
        with Paused(server.model) as paused:
            paused.let(3)
            streaming = pool.submit(server.events, server.asked(max_tokens=60))
            until(lambda: server.scheduler.under_way == 1)
            for _ in range(many):
                connect(server, stack, half)
            until(
                lambda: (
                    len(held := made[0].server_state.connections) >= many - 10
                    and all(begun(one, half) for one in [*held])
                )
            )
            asking = [pool.submit(ask, server, {}) for _ in range(4)]  # each by a connection of its own
            until(lambda: server.scheduler.under_way == 5)
        assert streaming.result()[-1] == "[DONE]"
        assert [one.result().status_code for one in asking] == [200] * 4
        assert len(made[0].server_state.connections) <= many


def begun(connection: Any, half: bytes) -> bool:
    """Whether the server waits for the rest of a body, where that was sent."""
    return half != HALVES[2] or not connection.idle


def test_half_open_connections_are_dropped_in_time(made: list[DrainingServer], many: int) -> None:
    with served(connections=2 * many, head_seconds=0.5, body_seconds=0.5) as server, ExitStack() as stack:
        opened = [connect(server, stack, HALVES[number % len(HALVES)]) for number in range(many)]
        last = [all_of(one) for one in opened]
        assert {one.partition(b"\r\n")[0] for one in last} == {b"", b"HTTP/1.1 408 Request Timeout"}
        assert sum(map(bool, last)) == len(range(2, many, 3))
        until(lambda: not made[0].server_state.connections)
        assert httpx2.post(f"{server.url}{CHAT}", json=server.asked(), timeout=60).status_code == 200


# ----------------------------------------------------------------------------------------------- who does not read


def long_answer(server: Server, stack: ExitStack) -> socket.socket:
    """Megabytes are on their way to a reader with room for a few thousand bytes, who has read none."""
    asked = server.asked(n=16, max_tokens=80, stream=True, logprobs=True, top_logprobs=20)
    body = httpx2.Request("POST", server.url, json=asked).content
    head = f"{HEAD}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return connect(server, stack, head.encode() + body, SO_RCVBUF=4096)


def stuck(server: DrainingServer) -> bool:
    return any(getattr(one, "flow", None) and one.flow.write_paused for one in [*server.server_state.connections])


def test_who_reads_late_gets_all_and_delays_nobody(made: list[DrainingServer], narrow: None) -> None:
    with served() as server, ExitStack() as stack:
        late = long_answer(server, stack)
        until(lambda: stuck(made[0]))
        assert server.http.post(CHAT, json=server.asked()).status_code == 200
        assert stuck(made[0])
        assert b"data: [DONE]" in all_of(late)


def test_who_does_not_read_is_cut_off(made: list[DrainingServer], narrow: None) -> None:
    with served(send_seconds=0.3) as server, ExitStack() as stack:
        silent = long_answer(server, stack)
        until(lambda: stuck(made[0]))
        until(lambda: not made[0].server_state.connections and not server.scheduler.answers)
        assert b"data: [DONE]" not in all_of(silent)
        assert server.http.post(CHAT, json=server.asked()).status_code == 200


# ------------------------------------------------------------------------------------------------- who asks too much


def test_a_flood_from_one_key_is_refused_and_others_go_on(tmp_path: Path) -> None:
    with new_store(tmp_path / "store.sqlite") as store, ThreadPoolExecutor(1) as pool:
        keys = Keys(store)
        many, one = keys.create("many"), keys.create("one")
        with served(keys=keys, max_requests_per_key=4) as server, Paused(server.model) as paused:
            flooding = pool.submit(asyncio.run, flood(server, many, 100))
            until(lambda: server.scheduler.under_way == 4)
            header = {"authorization": f"Bearer {one}"}
            other = threading.Thread(target=lambda: found.append(ask(server, header)))
            found: list[Any] = []
            other.start()
            until(lambda: server.scheduler.under_way == 5)
            until(lambda: counted(server, 429) >= 96)
            paused.let(1000)
            other.join()
            answers = flooding.result()
    assert found[0].status_code == 200
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 96
    for answer in answers:
        if answer.status_code == 429:
            assert error_of(answer, 429)["code"] == "rate_limit_exceeded" and "retry-after" in answer.headers


def ask(server: Server, header: dict[str, str]) -> httpx2.Response:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 4}
    return httpx2.post(f"{server.url}{CHAT}", json=body, headers=header, timeout=60)


async def flood(server: Server, key: str, count: int) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(timeout=60) as client:
        asked = {"json": server.asked(), "headers": {"authorization": f"Bearer {key}"}}
        return await asyncio.gather(*(client.post(f"{server.url}{CHAT}", **asked) for _ in range(count)))


def counted(server: Server, status: int) -> float:
    counter = server.app.state.desk.metrics.requests
    return float(counter.labels(CHAT, str(status))._value.get()) + float(
        counter.labels("other", str(status))._value.get()
    )
