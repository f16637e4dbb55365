"""10,000 comparisons, both orders, by an endpoint that answers in 50 ms, in a process of its own: how near to the ideal a run of calls
comes.

    python benchmarks/judging.py [--comparisons 10000] [--concurrency 16] [--latency 0.05] [--out judging.json]

The ideal is calls × latency / concurrency: 62.5 s for 20,000 calls at 16. The bound is 1.2 times that. The endpoint (asyncio, a few
lines, no framework) notes how many calls it got and how many at once; the measured process plans, asks, keeps each reply on the disk and
reads it. Then the same run again, from the cache. Beside the ratio stand the CPU seconds of the judge's process: what a call costs it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bridle.core.records import Prompt
from bridle.recipe.services import JudgeSection
from bridle.rewards.judge.cache import ReplyCache
from bridle.rewards.judge.endpoint import Endpoint
from bridle.rewards.judge.judge import Candidates, Judge
from bridle.rewards.judge.questions import Rubric
from bridle.rewards.judge.rulings import JUDGED

BOUND = 1.2
BODY = json.dumps(
    {
        "choices": [
            {
                "message": {"role": "assistant", "content": "A"},
                "finish_reason": "stop",
                "logprobs": {
                    "content": [
                        {
                            "token": "A",
                            "logprob": -0.3,
                            "top_logprobs": [{"token": "A", "logprob": -0.3}, {"token": "B", "logprob": -1.4}],
                        }
                    ]
                },
            }
        ],
        "usage": {"prompt_tokens": 400, "completion_tokens": 1},
    }
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


def serve(latency: float, pipe: Connection) -> None:
    counts = {"calls": 0, "at_once": 0, "most_at_once": 0}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                (length,) = [
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                ]
                await reader.readexactly(length)
                counts["calls"] += 1
                counts["at_once"] += 1
                counts["most_at_once"] = max(counts["most_at_once"], counts["at_once"])
                await asyncio.sleep(latency)
                counts["at_once"] -= 1
                writer.write(ANSWER)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        async with server:
            while not pipe.poll():
                await asyncio.sleep(0.1)
        pipe.send(counts)

    asyncio.run(run())


def measure(comparisons: int, concurrency: int, latency: float) -> dict[str, float]:
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=serve, args=(latency, there), daemon=True)
    process.start()
    section = JudgeSection(endpoint=f"http://127.0.0.1:{here.recv()}/v1", model="judge", concurrency=concurrency)
    filler = "It rains in the north, and the wind comes from the west. " * 8
    items = [
        Candidates(Prompt.from_text(f"Question {n}: {filler}"), [f"One. {filler}", f"Other. {filler}"])
        for n in range(comparisons)
    ]
    found: dict[str, float] = {"comparisons": comparisons, "ideal": 2 * comparisons * latency / concurrency}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("seconds", "again_seconds"):
            with ReplyCache(Path(folder) / "cache.jsonl") as cache:
                judge = Judge(Endpoint(section, cache).ask, Rubric(), "judge")
                began, cpu = time.monotonic(), time.process_time()
                opinions = judge.judge(items)
                found[name] = time.monotonic() - began
                found[f"{name}_of_cpu"] = time.process_time() - cpu
            assert all(opinion.kind == JUDGED for opinion in opinions), {opinion.kind for opinion in opinions}
    here.send("end")
    found |= here.recv()
    process.join(10)
    return {**found, "ratio": found["seconds"] / found["ideal"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds (default: 0.05)")
    parser.add_argument("--out", type=Path, help="where the numbers go, as JSON")
    args = parser.parse_args()
    found = measure(args.comparisons, args.concurrency, args.latency)
    for name, value in found.items():
        print(f"{name:<24} {value:.4g}")
    print(
        f"{'holds' if found['ratio'] <= BOUND else 'does not hold'}: {found['ratio']:.3f} times the ideal, at most {BOUND}"
    )
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["ratio"] <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
