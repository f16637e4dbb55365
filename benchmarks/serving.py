"""`bridle serve` and `transformers serve` under one load: python benchmarks/serving.py [--quick]

A crowd of 1, 4, 16 and 50 clients, each answer over a connection of its own, asks for streamed answers of 64 tokens to prompts of 32,
greedily, so that both sides write equally long ones. A case's figure is the seconds of 1,000 tokens, from the first request to the last
answer's end; beside it stand the seconds until each answer's first token, and what 1,000 tokens took of the server's processor, which says
as much where others use the machine too. Each server is a process of its own with a thread for the model on each core but one, as `bridle
serve` does by itself; this process is the load, whose share of a core is kept in the notes. Memory is the server's largest resident set, as
Linux tells it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness import MODELS, Contestant, Stage, Trial, main, own_seconds
from texts import ANSWER, PROMPT, prompts

REQUESTS = {1: 2, 4: 2, 16: 1, 50: 1}  # of each client, by how many there are
FEW = {1: 2, 4: 2}  # for who answers one after the other, as fast to many as to few
MODEL = "l5"
THREADS = max(1, (os.cpu_count() or 2) - 1)
PATIENCE = 300  # seconds until a server is there, and until an answer is
TICKS = os.sysconf("SC_CLK_TCK")
WROTE, COUNTED = re.compile(rb'"content":"[^"]'), re.compile(rb'"completion_tokens":(\d+)')


async def answer(port: int, body: bytes) -> tuple[int, float]:
    """One streamed answer over a new connection: its tokens, and the seconds to its first one."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    sent, first = b"", 0.0
    while part := await reader.read(2**16):
        sent += part
        if not first and WROTE.search(sent):
            first = time.perf_counter() - began
    writer.close()
    if not (found := COUNTED.findall(sent)):
        raise RuntimeError(f"an answer broke off: {sent[-500:]!r}")
    return int(found[-1]), first


async def crowd(port: int, model: str, clients: int, requests: int) -> list[tuple[int, float]]:
    texts = iter(prompts(clients * requests))

    async def client() -> list[tuple[int, float]]:
        found = []
        for _ in range(requests):
            message = {"role": "user", "content": next(texts)}
            asked = {"model": model, "messages": [message], "max_tokens": ANSWER, "temperature": 0, "stream": True,
                     "stream_options": {"include_usage": True}}  # fmt: skip
            found.append(await answer(port, json.dumps(asked).encode()))
        return found

    return [one for found in await asyncio.gather(*(client() for _ in range(clients))) for one in found]


@contextmanager
def serving(command: Sequence[str], port: int) -> Iterator[int]:
    """A server while the block runs; its process."""
    threads = str(THREADS)
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "BRIDLE_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+b") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=folder)
        try:
            last = time.monotonic() + PATIENCE
            while not healthy(port):
                if process.poll() is not None or time.monotonic() > last:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read().decode()[-500:]}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.kill()
            process.wait()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as found:
            return found.status == 200
    except OSError:
        return False


def seconds_of(pid: int) -> float:
    """Of a processor, that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def load(trial: Trial, command: Sequence[str], model: str, crowds: Mapping[int, int] = REQUESTS) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving([*command, "--port", str(port)], port) as pid:
        asyncio.run(crowd(port, model, 2, 1))  # warms up
        for _ in range(trial.steps):
            for clients, requests in crowds.items():
                began, own, its = time.perf_counter(), own_seconds(), seconds_of(pid)
                found = asyncio.run(crowd(port, model, clients, requests))
                wall = time.perf_counter() - began
                tokens, case = sum(count for count, _ in found), cases(clients)
                used, its = own_seconds() - own, seconds_of(pid) - its
                trial.took(case, 1000 * wall / tokens)
                trial.took(f"{case}, processor", 1000 * its / tokens)
                for _, first in found:
                    trial.took(f"{case}, first token", first)
                trial.notes[case] = {"tokens": tokens, "load": round(used / wall, 2), "server": round(its / wall, 2)}
        status = Path(f"/proc/{pid}/status").read_text()
        trial.notes["server_mb"] = round(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 2**10)


def cases(clients: int) -> str:
    return f"{clients} client{'s' * (clients > 1)}"


def bridle(trial: Trial, precision: str) -> None:
    settings = ["--set", f"serve.threads={THREADS}", "--set", f"model.precision={precision}"]
    load(trial, [sys.executable, "-m", "bridle.cli", "serve", str(MODELS / MODEL), *settings], MODEL)


def transformers(trial: Trial, flags: Sequence[str], crowds: Mapping[int, int] = REQUESTS) -> None:
    started = "import sys; from transformers.cli.transformers import app; app(sys.argv[1:])"
    folder = str(MODELS / MODEL)
    load(trial, [sys.executable, "-c", started, "serve", folder, "--device", "cpu", *flags], folder, crowds)


# Its cache would take all memory that there is; this share of it holds many times what the load needs.
BATCHED = ("--continuous-batching", "--cb-max-memory-percent", "0.05")

if __name__ == "__main__":
    main(
        Stage(
            "serving",
            f"chat answers of {ANSWER} tokens to prompts of {PROMPT}, streamed, greedy, 5.5M parameters",
            [
                Contestant("bridle", partial(bridle, precision="auto")),
                Contestant("bridle float32", partial(bridle, precision="float32")),
                Contestant("batched", partial(transformers, flags=BATCHED), "serving"),
                Contestant("batched bf16", partial(transformers, flags=[*BATCHED, "--dtype", "bfloat16"]), "serving"),
                Contestant("one by one", partial(transformers, flags=[], crowds=FEW), "serving"),
            ],
            steps=1,
            rounds=2,
            quick_steps=1,
            models=(MODEL,),
            tokens={cases(clients): 1000 for clients in REQUESTS},
        )
    )
