"""Chains of critique and revision (`bridle revise`), read by a person, and what a person would have had in their last answer's place.

    find_chains(store)                                    # a page of them, the newest first
    chain_record(store, 17)                               # one whole: the first answer, each step, corrections
    correct_chain(store, 17, "A better one.", by="anna")  # an answer of its own, to be imitated in place of the model's

A chain is known by the number of its first answer's row. A correction is an answer to the chain's own prompt with the source
"corrected:RUN" and its writer as author; none is changed or deleted, and the last one counts. It goes with its chain where that is taken
down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Completion
from bridle.feedback.store import tables
from bridle.feedback.store.reading import excluded, not_excluded
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import append_audit

FIRST, ASKED, LAST, CORRECTED = ("answered", "benign"), ("critique", "revision"), ("revised", "kept"), "corrected"
PAGE_CHAINS, BEGINNING = 50, 240
LONGEST_CORRECTION = 50_000  # characters

prompt, completion = tables.prompt.c, tables.completion.c


class NothingNew(DataError):
    """A correction that corrects nothing."""


@dataclass(frozen=True)
class ChainRow:
    """A chain in a list, with beginnings of its texts; `last` is the correction where there is one."""

    number: int
    prompt: str
    first: str
    last: str
    corrected: bool


@dataclass(frozen=True)
class ChainStep:
    """One round: by which principle, the critique, and the revision where one was written."""

    round: int
    principle: str
    critique: str = ""
    revision: str | None = None


@dataclass(frozen=True)
class Correction:
    author: str
    text: str
    at: str


@dataclass(frozen=True)
class ChainRecord:
    """`last` is the model's own last answer; "" where none was whole. `run` is the beginning of its run's key. `gone`: it was taken
    down."""

    number: int
    run: str
    prompt_id: str
    messages: Sequence[dict[str, str]]
    first: str
    steps: Sequence[ChainStep]
    last: str
    corrections: Sequence[Correction]
    gone: bool

    @property
    def stands(self) -> str:
        """The answer that is imitated."""
        return self.corrections[-1].text if self.corrections else self.last


def from_runs(*names: str) -> sa.ColumnElement[bool]:
    """Answers of these parts of any run: "revised:1f0c…"."""
    return sa.or_(*(completion.source.startswith(f"{name}:") for name in names))


def written_by_people() -> sa.ColumnElement[bool]:
    """By nobody who is left out."""
    return completion.author.not_in(excluded("labeler"))


def find_chains(store: Store, *, before: int | None = None, limit: int = PAGE_CHAINS) -> list[ChainRow]:
    """Up to so many chains, the newest first; those `before` the chain of a number."""
    where = [
        from_runs(*FIRST),
        not_excluded(tables.completion),
        *([completion.id < before] if before is not None else []),
    ]
    cut = sa.func.substr(completion.text, 1, BEGINNING).label("text")
    columns = (completion.id, completion.prompt_sha256, completion.source, cut)
    query = sa.select(*columns, prompt.messages).join_from(tables.completion, tables.prompt)
    with store.reading() as connection:
        rows = connection.execute(query.where(*where).order_by(completion.id.desc()).limit(limit)).all()
        later = sa.select(*columns).where(
            completion.prompt_sha256.in_([row.prompt_sha256 for row in rows]),
            from_runs(*LAST, CORRECTED),
            written_by_people(),
        )
        ends = {(row.prompt_sha256, row.source): row.text for row in connection.execute(later.order_by(completion.id))}
    found = []
    for row in rows:
        run = row.source.partition(":")[2]
        own = [ends.get((row.prompt_sha256, f"{name}:{run}")) for name in (CORRECTED, *LAST)]
        last = next((text for text in own if text is not None), row.text)
        found.append(ChainRow(row.id, row.messages[-1]["content"][:BEGINNING], row.text, last, own[0] is not None))
    return found


def chain_record(store: Store, number: int) -> ChainRecord | None:
    """Everything of a chain; None where there is none of this number."""
    with store.reading() as connection:
        query = sa.select(tables.completion, prompt.messages).join_from(tables.completion, tables.prompt)
        first = connection.execute(query.where(completion.id == number, from_runs(*FIRST))).one_or_none()
        if first is None:
            return None
        run = first.source.partition(":")[2]
        steps = rounds_of_chain(connection, run, first.prompt_sha256, first.content_sha256)
        sources = [f"{name}:{run}" for name in (*LAST, CORRECTED)]
        later = sa.select(completion.source, completion.author, completion.text, completion.created_at)
        of_chain = (
            completion.prompt_sha256 == first.prompt_sha256,
            completion.source.in_(sources),
            written_by_people(),
        )
        ends = connection.execute(later.where(*of_chain).order_by(completion.id)).all()
    corrections = [Correction(row.author, row.text, row.created_at) for row in ends if row.source == sources[-1]]
    last = next((row.text for row in ends if row.source != sources[-1]), "")
    gone = not first.text or not all(message["content"] for message in first.messages)
    parts = (number, run, first.prompt_sha256, first.messages, first.text, steps, last, corrections)
    return ChainRecord(*parts, gone=gone)


def rounds_of_chain(connection: sa.Connection, run: str, of: str, answer: str) -> list[ChainStep]:
    """The rounds of the chain that begins with this answer to this prompt. Where the same answer met the same principle again, the first of
    these rounds stands for both: what was asked was the same."""
    note = prompt.meta["chain"]
    query = sa.select(note, completion.source, completion.text).join_from(tables.completion, tables.prompt)
    asked = completion.source.in_([f"{name}:{run}" for name in ASKED])
    mine = (note["of"].as_string() == of, note["answer"].as_string() == answer)
    rounds: dict[
        tuple[int, str], dict[str, Any]
    ] = {}  # a benign answer is criticised by each principle, all in round 0
    for noted, source, text in connection.execute(query.where(asked, *mine).order_by(completion.id)):
        rounds.setdefault((noted["round"], noted["principle"]), {})[source.partition(":")[0]] = text
    return [ChainStep(*of, **rounds[of]) for of in sorted(rounds, key=lambda of: of[0])]


def correct_chain(store: Store, number: int, text: str, *, by: str) -> None:
    """Keep a person's answer in place of the model's last one. Raises DataError where it is empty, too long, or may not be kept, and
    NothingNew where it is what stands there."""
    text = text.replace("\r\n", "\n").strip()
    with store.transaction() as one:
        record = chain_record(one, number)
        if record is None or record.gone:
            raise DataError(
                "this chain was taken down, or is none, so its last answer cannot be corrected; look at another one"
            )
        if not text or "\0" in text or len(text) > LONGEST_CORRECTION:
            raise DataError(
                f"a correction has {len(text):,} characters; it must have 1 to {LONGEST_CORRECTION:,}, and no NUL among them"
            )
        if text in {record.stands.strip(), *(each.text for each in record.corrections if each.author == by)}:
            raise DataError(
                "this is the answer as it stands, or as you wrote it before; change it, or leave it as it is"
            )
        written = Completion(record.prompt_id, text, sampling={"corrects": number})
        if not one.add_completions([written], source=f"{CORRECTED}:{record.run}", author=by):
            raise DataError("this answer was taken down, so it cannot be kept; write another one")
        with one.writing() as connection:
            append_audit(connection, by, "correction", written.id, {"chain": number, "run": record.run})
