"""People label at once, against `bridle label` as it runs: python benchmarks/labelling.py [--people 200] [--think 5] [--seconds 60]

A submit is an answer that is committed and the reply with the next task. Each person is a connection that is kept, with a session's cookie
or a token, who answers and thinks (`--think` seconds on the mean, evenly spread from half to one and a half), on pairs of answers of some
500 characters at overlap one. `--route page`: POST /label/STUDY, which returns the next task as a piece of the page, `api`: POST
/api/studies/STUDY/answers. The load comes from a process of its own, whose CPU is counted apart; a reader in another one exports the
study's preferences again and again, once a second, from a snapshot. `--rising 5,10,20,40,80` finds where it saturates, without thinking.
`--postgresql URL`, of an empty database, has two servers share it, each for half of the people. `--label-studio PYTHON` measures Label
Studio, of that environment (requirements-label-studio.txt), before and after, in the same way: its annotation is posted, then its next task
asked for.

Afterwards: what was acknowledged and is not in the store (lost), and the items that were given to two people (twice).
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

STUDY = "benchmark"
TICKS = os.sysconf("SC_CLK_TCK")
ROUTES = ("page", "api")


# ------------------------------------------------------------------------------------- the load: a process of its own


class Connection:
    """HTTP/1.1 that is kept open, by hand: a client library would take more time than the server."""

    def __init__(self, port: int, header: str) -> None:
        self.port, self.header = port, header
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json", again: bool = True
    ) -> tuple[int, bytes]:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        assert self.reader is not None
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n{self.header}\r\naccept: application/json\r\n"
        )
        self.writer.write(f"{head}content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        try:
            raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            self.close()  # the server closed a connection that was idle: as a browser, once more on a new one
            if not again:
                raise
            return await self.ask(method, path, body, kind, again=False)
        lines = raw.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await self.reader.readline(), 16):
                parts.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readline()
            content = b"".join(parts)
        else:
            content = await self.reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), content

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


def bridle_asks(route: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How a person asks for their first task, and answers one; both return the status, the next item, and what was acknowledged."""

    async def first(connection: Connection) -> tuple[int, Any, list[str]]:
        status, content = await connection.ask("POST", f"/api/studies/{STUDY}/next")
        return status, content and (json.loads(content).get("task") or {}).get("item"), []

    async def answer(connection: Connection, item: str, key: str) -> tuple[int, Any, list[str]]:
        if route == "page":
            body = f"item={item}&key={key}&verdict=-2&active_seconds=3.5".encode()
            status, content = await connection.ask("POST", f"/label/{STUDY}", body, "application/x-www-form-urlencoded")
            found = json.loads(content)
            return status, found.get("item"), found.get("judgements", [])
        body = f'{{"item":"{item}","key":"{key}","verdict":-2,"active_seconds":3.5}}'.encode()
        status, content = await connection.ask("POST", f"/api/studies/{STUDY}/answers", body)
        found = json.loads(content)
        return status, (found.get("task") or {}).get("item"), found.get("judgements", [])

    return first, answer


def studio_asks(project: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    result = [{"from_name": "better", "to_name": "text", "type": "choices", "value": {"choices": ["A"]}}]

    async def first(connection: Connection) -> tuple[int, Any, list[str]]:
        status, content = await connection.ask("GET", f"/api/projects/{project}/next")
        return status, json.loads(content)["id"] if status == 200 else None, []

    async def answer(connection: Connection, item: int, key: str) -> tuple[int, Any, list[str]]:
        body = json.dumps({"result": result, "lead_time": 3.5}).encode()
        status, content = await connection.ask("POST", f"/api/tasks/{item}/annotations/", body)
        if status != 201:
            return status, item, []
        stored = [str(json.loads(content)["id"])]
        status, following, _ = await first(connection)
        return (201 if status == 404 else status), following, stored  # 404: nothing is left

    return first, answer


async def person(
    number: int,
    connection: Connection,
    asks: tuple[Callable[..., Any], Callable[..., Any]],
    load: Mapping[str, Any],
    seen: Any,
) -> None:
    first, answer = asks
    draws = random.Random(number)
    await asyncio.sleep(draws.random() * load["think"])
    begun = time.monotonic()
    try:
        status, item, _ = await first(connection)
        seen["first"].append(time.monotonic() - begun)
        count = 0
        while item is not None and time.monotonic() < load["until"]:
            seen["given"].append((item, number))
            await asyncio.sleep(load["think"] * draws.uniform(0.5, 1.5))
            begun = time.monotonic()
            if begun > load["until"]:
                break
            status, following, stored = await answer(connection, item, f"{load['run']}.{number}.{count}")
            taken = time.monotonic() - begun
            count += 1
            if stored:
                seen["taken"].append(taken)
                seen["stored"] += stored
            if status >= 400:
                seen["errors"].append(status)
                await asyncio.sleep(0.05)
            item = following
    except (OSError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
        seen["errors"].append(type(error).__name__)
    finally:
        connection.close()


async def generate(load: Mapping[str, Any]) -> dict[str, Any]:
    asks = studio_asks(load["project"]) if load["route"] == "studio" else bridle_asks(load["route"])
    seen: dict[str, list[Any]] = {name: [] for name in ("first", "taken", "given", "stored", "errors")}
    people = [
        person(number, Connection(load["ports"][number % len(load["ports"])], header), asks, load, seen)
        for number, header in enumerate(load["headers"])
    ]
    load = dict(load)
    begun = time.monotonic()
    await asyncio.gather(*people)
    return {**seen, "wall": time.monotonic() - begun, "cpu": sum(os.times()[:2])}


def in_generator(load: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Begin the load's process, and wait for what it saw."""
    command = [sys.executable, __file__, "--generate"]
    done = subprocess.run(
        command, input=json.dumps({**load, "seconds": seconds}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ------------------------------------------------------------------------------------------------------------ bridle


def filled(target: str, items: int, people: int, route: str) -> list[str]:
    """A study, and a header for each person that shows who they are."""
    from bridle.core.records import Completion, Prompt
    from bridle.feedback.people.accounts import create_account, find_account, issue
    from bridle.feedback.store.store import Store
    from bridle.feedback.store.studies import publish_guideline, set_study

    with Store.open(target) as store, store.transaction() as one:
        if not store.items(study=STUDY):
            prompts = [
                Prompt.from_text(f"Question {number}? " + "Please answer in full. " * 5) for number in range(items)
            ]
            pairs = [
                [Completion(p.id, f"Answer {slot}. " + "It is so because it is so. " * 18) for slot in range(2)]
                for p in prompts
            ]
            one.add_prompts(prompts, split="train", source="test")
            one.add_completions([answer for pair in pairs for answer in pair], source="test")
            one.add_items(pairs, study=STUDY)
            set_study(one, STUDY, {"overlap": 1, "gold_rate": 0})
            publish_guideline(one, STUDY, {"en": "Prefer what is *true*, then what is *kind*.\n\n" * 20})
        headers = []
        for number in range(people):
            if find_account(one, f"person{number}") is None:
                create_account(one, f"person{number}", "annotator")
            kind = "session" if route == "page" else "token"
            secret = issue(one, kind, labeler=f"person{number}", seconds=24 * 3600)
            headers.append(f"cookie: bridle_session={secret}" if route == "page" else f"authorization: Bearer {secret}")
    return headers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def server(target: str, port: int) -> Iterator[int]:
    """Its process; the same call as `bridle label`."""
    code = "import sys; from bridle.labelling.serving import serve_app; from bridle.site.listening import Place; "
    code += "serve_app(sys.argv[1], Place(port=int(sys.argv[2])), lambda line: None)"
    process = subprocess.Popen([sys.executable, "-c", code, target, str(port)])
    try:
        last = time.monotonic() + 60
        while not listens(port):
            if process.poll() is not None or time.monotonic() > last:
                raise RuntimeError(f"the server does not run: {process.poll()}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def reader(target: str, every: float) -> Iterator[None]:
    """A process that exports the study again and again, from one state of the store each time."""
    process = subprocess.Popen([sys.executable, __file__, "--export", target, str(every)])
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError("the reader ended")
    finally:
        process.kill()
        process.wait()


def export_again_and_again(target: str, every: float) -> None:
    from bridle.core.errors import DataError
    from bridle.feedback.exporting.exporter import export_file
    from bridle.feedback.exporting.formats import Wanted
    from bridle.feedback.store.store import Store

    with Store.open(target) as store, tempfile.TemporaryDirectory() as folder:
        while True:
            with suppress(DataError):  # there is nothing to export yet
                export_file(store, Path(folder) / "rows.jsonl", wanted=Wanted(study=STUDY), by="reader", force=True)
            time.sleep(every)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def quantiles(taken: Sequence[float]) -> dict[str, float]:
    taken = sorted(taken) or [float("nan")]
    return {f"p{q}": round(1000 * taken[min(len(taken) - 1, int(q / 100 * len(taken)))], 1) for q in (50, 95, 99)}


def summary(found: Mapping[str, Any], people: int, lost: int) -> dict[str, Any]:
    holders: dict[Any, set[int]] = {}
    for item, who in found["given"]:
        holders.setdefault(item, set()).add(who)
    return {
        "people": people,
        "submits": len(found["taken"]),
        "submits_per_second": round(len(found["taken"]) / found["wall"], 1),
        **quantiles(found["taken"]),
        "errors": len(found["errors"]),
        "kinds_of_errors": dict(Counter(map(str, found["errors"]))),
        "given_twice": sum(len(who) > 1 for who in holders.values()),
        "lost": lost,
        "generator_cpu": round(found["cpu"] / found["wall"], 2),
    }


def measure(
    target: str, route: str, people: int, think: float, seconds: float, servers: int, read: bool = True
) -> dict[str, Any]:
    from bridle.feedback.store.store import Store

    items = int(people * 2 + (people / think if think else 600) * seconds * 1.5)
    headers = filled(target, items, people, route)
    with ExitStack() as stack:
        ports = [free_port() for _ in range(servers)]
        pids = [stack.enter_context(server(target, port)) for port in ports]
        if read:
            stack.enter_context(reader(target, 1.0))
        time.sleep(1.0)
        before = [cpu_of(pid) for pid in pids]
        load = {"route": route, "ports": ports, "headers": headers, "think": think, "run": str(time.time_ns())}
        found = in_generator(load, seconds)
        cpu = sum(cpu_of(pid) for pid in pids) - sum(before)
    with Store.open(target) as store:
        kept = {judgement.id for _, judgement in store.judgements(study=STUDY)}
    lost = len(set(found["stored"]) - kept)
    own = {"server_cpu": round(cpu / found["wall"], 2), "ms_of_server": round(1000 * cpu / len(found["taken"]), 2)}
    return {"route": route, "think": think, **summary(found, people, lost), **own}


def measure_studio(python: str, people: int, think: float, seconds: float) -> dict[str, Any]:
    """Its server is its users' own: `label-studio start`, on its SQLite."""
    port = free_port()
    items = int(people * 2 + (people / think if think else 30) * seconds * 1.5)
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(Path(__file__).with_name("studio.py")), folder, str(port), str(people), str(items)]
        peer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert peer.stdout is not None and peer.stdin is not None
        try:
            ready = json.loads(next(line for line in peer.stdout if line.startswith("{")))
            before = cpu_of(ready["pid"])
            load = {"route": "studio", "ports": [port], "think": think, "run": "1"}
            found = in_generator(load | {name: ready[name] for name in ("headers", "project")}, seconds)
            cpu = cpu_of(ready["pid"]) - before
        finally:
            peer.stdin.close()
            peer.wait()
    own = {
        "server_cpu": round(cpu / found["wall"], 2),
        "ms_of_server": round(1000 * cpu / max(1, len(found["taken"])), 2),
    }
    return {"route": "label studio", "think": think, **summary(found, people, 0), **own}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--think", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--route", choices=ROUTES, action="append")
    parser.add_argument("--rising", default="")
    parser.add_argument("--postgresql", default="")
    parser.add_argument("--no-reader", action="store_true")
    parser.add_argument("--label-studio", default="", help="the Python of its environment")
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        export_again_and_again(options.export[0], float(options.export[1]))
    if options.generate:
        load = json.load(sys.stdin)
        load["until"] = time.monotonic() + load["seconds"]
        print(json.dumps(asyncio.run(generate(load))))
        return 0

    counts = [int(one) for one in options.rising.split(",") if one] or [options.people]
    think = 0.0 if options.rising else options.think
    for people in counts:
        report(measure_studio, options.label_studio, people, think, options.seconds)
        for route in options.route or ROUTES:
            with tempfile.TemporaryDirectory() as folder:
                target, servers = (options.postgresql, 2) if options.postgresql else (f"{folder}/store.sqlite", 1)
                report(measure, target, route, people, think, options.seconds, servers, not options.no_reader)
        report(measure_studio, options.label_studio, people, think, options.seconds)
    return 0


def report(call: Callable[..., dict[str, Any]], target: str, *rest: Any) -> None:
    if target:
        print(json.dumps(call(target, *rest)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
