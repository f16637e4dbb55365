"""Kill the labelling app's server under load: python -m experiments.label_kills STORE [--kills 20] [--people 20] [--seed 0]

STORE is a file to be made. Each person saves a draft of a task and then answers it, without a pause, by the API; at a random moment the
server gets SIGKILL, and another one is begun on the same store. A person then asks for their task, must find the draft that was last
acknowledged where the task is the same, and sends again, under the same key, the answer that nobody acknowledged. In the end whatever was
acknowledged must be in the store, once, and nobody may have been given what somebody else was.

Covered: the death of the server. Not covered: a power cut.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from labelling import STUDY, Connection, filled, free_port, server

from bridle.feedback.store import tables
from bridle.feedback.store.store import Store

AT = f"/api/studies/{STUDY}"


@dataclass
class Person:
    number: int
    header: str
    item: str | None = None  # that they hold, as far as they know
    count: int = 0
    draft: int = 0  # of this task, the last one that was acknowledged
    sent_draft: int = 0
    acknowledged: list[str] = field(default_factory=list)
    drafts_lost: int = 0
    errors: list[str] = field(default_factory=list)

    async def work(self, port: int) -> None:
        connection = Connection(port, self.header)
        try:
            await self.come_back(connection)
            while self.item is not None:
                await self.save(connection)
                await self.answer(connection)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the server was killed
        finally:
            connection.close()

    async def ask(self, connection: Connection, method: str, path: str, body: object = None) -> Any:
        sent = b"" if body is None else json.dumps(body).encode()
        status, content = await connection.ask(method, AT + path, sent)
        if status >= 400:
            self.errors.append(f"{status} {content!r}")
            await asyncio.sleep(0.05)
            return {}
        return json.loads(content) if content else {}

    async def come_back(self, connection: Connection) -> None:
        """What they sent last may have been stored: then it is sent again, and nothing comes of it but the next task."""
        task = (await self.ask(connection, "POST", "/next")).get("task")
        if task is not None and task["item"] == self.item:
            kept = (task["draft"] or {}).get("rationale", "0")
            self.drafts_lost += int(kept) < self.draft
        elif self.item is not None:
            await self.answer(connection)
        else:
            self.item = task and task["item"]

    async def save(self, connection: Connection) -> None:
        self.sent_draft += 1
        number = self.sent_draft
        if not await self.ask(connection, "PUT", f"/items/{self.item}/draft", {"draft": {"rationale": str(number)}}):
            self.draft = number

    async def answer(self, connection: Connection) -> None:
        said = {"item": self.item, "key": f"{self.number}.{self.count}", "verdict": 2}
        found = await self.ask(connection, "POST", "/answers", said)
        if "judgements" in found:
            self.acknowledged += found["judgements"]
            self.item = found["task"] and found["task"]["item"]
            self.count, self.draft, self.sent_draft = self.count + 1, 0, 0


async def until_killed(people: list[Person], port: int, pid: int, seconds: float) -> None:
    working = [asyncio.create_task(person.work(port)) for person in people]
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*working)


def faults(target: str, people: list[Person]) -> dict[str, Any]:
    judgement, asked = tables.judgement.c, tables.assignment.c
    acknowledged = [key for person in people for key in person.acknowledged]
    with Store.open(target) as store, store.reading() as connection:
        stored = set(connection.execute(select(judgement.sha256)).scalars())
        each = select(judgement.labeler).group_by(judgement.item_sha256, judgement.labeler).having(func.count() > 1)
        given = select(asked.item_id).group_by(asked.item_id).having(func.count() > 1)
        return {
            "acknowledged": len(acknowledged),
            "lost": len(set(acknowledged) - stored),
            "stored_twice": len(connection.execute(each).all()),
            "given_twice": len(connection.execute(given).all()),
            "drafts_lost": sum(person.drafts_lost for person in people),
            "errors": sorted({error for person in people for error in person.errors}),
            "integrity": connection.exec_driver_sql("PRAGMA integrity_check").scalar(),
        }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    headers = filled(options.store, 500 + 400 * options.kills, options.people, "api")
    people = [Person(number, header) for number, header in enumerate(headers)]
    rng = random.Random(options.seed)
    for _ in range(options.kills):
        port = free_port()
        with server(options.store, port) as pid:
            asyncio.run(until_killed(people, port, pid, rng.uniform(0.2, 2.0)))
    found = {"kills": options.kills, "people": options.people, **faults(options.store, people)}
    print(json.dumps(found))
    wrong = [found[name] for name in ("lost", "stored_twice", "given_twice", "drafts_lost", "errors")]
    return int(any(wrong) or found["integrity"] != "ok" or not found["acknowledged"])


if __name__ == "__main__":
    sys.exit(main())
