"""A text taken down: blanked wherever its hash stands, kept out for good, gone from an SQLite file, and what was made of it named.

The rows and hashes stay, so that judgements, snapshots and counts mean what they meant; exclusions say what is out: `prompt`, `completion`,
and `text` for every hash that must not come back. Judgements and ratings are never touched: a rating that labels an answer's steps
repeats their words, and is named. Not reached: backups, exports, trained weights; pages of a PostgreSQL database until it is vacuumed;
blocks of a disk that no file uses any more.
"""

from __future__ import annotations

import html
import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Table, Text, cast, insert, or_, select, update

from bridle.core.errors import StoreError, UsageError
from bridle.feedback.importing.files.row import is_utf8
from bridle.feedback.importing.forms.fields import strings_in
from bridle.feedback.importing.report import without_excerpts
from bridle.feedback.store import tables
from bridle.feedback.store.checksums import UNCOVERED, checksum, checksum_of
from bridle.feedback.store.reading import items_with, taken_down
from bridle.feedback.store.rows import now
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import append_audit
from bridle.feedback.upkeep.hashes import blank_values, hash_column

TEXTS = (tables.prompt, tables.completion, tables.solution, tables.document, tables.free_text)
FEWEST = 8  # digits of a hash that name it; characters of a text that is looked for elsewhere
LONGEST = 10_000  # characters that are looked for in the store; SQLite compares a pattern of 50,000 bytes at most
TEXT_COLUMNS = {"prompt": "messages", "free_text": "body"}  # of the others "text"
LARGEST = 1 << 26  # bytes of a run's file that are read at once


@dataclass
class Takedown:
    """What was blanked, and what was made of it: models that learnt from it, models that may have, files of runs that hold it."""

    hash: str
    blanked: dict[str, int] = field(default_factory=dict)  # rows by table
    models: list[str] = field(default_factory=list)
    perhaps: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)  # ratings that repeat an answer's steps
    texts: list[str] = field(default_factory=list, repr=False)


# ------------------------------------------------------------------------------------------------------- finding


def find_text(store: Store, text: str, limit: int = 100) -> list[dict[str, str]]:
    """The prompts, answers, solutions, texts, reasons and notes that contain a text: each with its hash and how it begins."""
    if not text.strip():
        raise UsageError("an empty text stands everywhere; name some words of it")
    require_text(text, "the text")
    if len(text) > LONGEST:
        raise UsageError(
            f"a text of {len(text):,} characters is too long to look for; name {LONGEST:,} of them at most"
        )
    found = []
    with store.reading() as connection:
        for table in TEXTS:
            column = table.c[TEXT_COLUMNS.get(table.name, "text")]
            written = json.dumps(text, ensure_ascii=False)[1:-1] if table is tables.prompt else text
            where = cast(column, Text).contains(written, autoescape=True)
            key = table.c[hash_column(table.name)]
            for row in connection.execute(select(key, column).where(where).limit(limit)):
                words = " ".join(one["content"] for one in row[1]) if table is tables.prompt else row[1]
                found.append({"hash": row[0], "what": table.name, "text": words[:200]})
    return found[:limit]


def require_text(text: str, name: str) -> None:
    """UsageError where no store can hold it."""
    if "\0" in text or not is_utf8(text):
        raise UsageError(f"{name} holds a NUL or bytes that are no UTF-8, which no store holds; leave these out")


def whole_hash(connection: Connection, keys: Sequence[Column[str]], digits: str, way: str) -> str:
    """The one hash in these columns that begins with these digits. UsageError where there is none, or several; `way`: how to find it."""
    digits, found = digits.lower(), set[str]()
    if not FEWEST <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise UsageError(f"{digits[:80]!r} is not a hash of at least {FEWEST} hexadecimal digits; {way}")
    for key in keys:
        named = select(key).where(key.between(digits.ljust(64, "0"), digits.ljust(64, "f")))
        found |= set(connection.execute(named).scalars())
    if len(found) != 1:
        raise UsageError(f"{len(found)} hashes in the store begin with {digits} {sorted(found)[:5]}; {way}")
    return found.pop()


# ---------------------------------------------------------------------------------------------------- taking down


Sources = Mapping[str, Collection[str]]


def take_down(
    store: Store, digits: str, *, reason: str, by: str, runs: Path | None = None, made: Sources | None = None
) -> Takedown:
    """Take down the text of this hash, or of an unambiguous prefix; of a prompt its answers and solutions too.

    `runs`: a folder whose files are searched for it; `made`: of models, by the hash of their weights, the hashes of models and snapshots
    that their runs noted. Done again, it finishes what a reader of the file kept from being done. StoreError where one still does.
    """
    require_text(reason, "the reason")
    with store.writing() as connection:
        keys = [table.c[hash_column(table.name)] for table in TEXTS]
        key = whole_hash(connection, keys, digits, "`bridle store find TEXT` lists those of texts")
        done = Takedown(key)
        hashes = blank_texts(connection, [key], done, reason, by)
        name_models(connection, hashes, done, made or {})
        append_audit(connection, by, "takedown", key, {"reason": reason, "rows": done.blanked, "texts": len(hashes)})
    done.runs = [] if runs is None else list(files_that_hold(runs, done.texts))
    try:
        purge(store)
    except StoreError as error:  # the next call has no text any more to look for
        held = f" (remove these, which hold it: {', '.join(done.runs)})" if done.runs else ""
        raise StoreError(f"{error}{held}") from error
    return done


def take_down_too(connection: Connection, keys: Collection[str]) -> bool:
    """Blank what another store took down, once its exclusions came in; whether anything stood here. `purge` follows."""
    done = Takedown("")
    blank_texts(connection, keys, done, "taken down in a store that was imported", "bridle")
    if done.blanked:
        append_audit(connection, "bridle", "takedown", "import", {"rows": done.blanked, "texts": len(keys)})
    return bool(done.blanked)


def blank_texts(connection: Connection, keys: Collection[str], done: Takedown, reason: str, by: str) -> set[str]:
    """Blank the texts of these hashes, and of prompts what answers or solves them, and keep them out; the hashes of all."""
    keys = {*keys, *grown_from(connection, keys)}
    gone = {(table.name, one) for key in keys for table in TEXTS for one in hashes_of(connection, table, key)}
    hashes = {one for _, one in gone}
    for table in TEXTS:
        blank_rows(connection, table, hashes, done)
    blank_drafts(connection, hashes, done)
    blank_reports(connection)
    known = taken_down(connection)
    rows = [("text", one) for one in sorted(hashes - known)]
    rows += [(kind, one) for kind, one in sorted(gone) if kind in ("prompt", "completion") and one not in known]
    values = {"reason": reason, "excluded_by": by, "created_at": now()}
    if rows:
        connection.execute(insert(tables.exclusion), [{"target": t, "target_id": one, **values} for t, one in rows])
    return hashes


def hashes_of(connection: Connection, table: Table, key: str) -> set[str]:
    """The hashes of a table's rows that have this hash, or answer or solve the prompt of it."""
    column = table.c[hash_column(table.name)]
    where = [column == key, *([table.c.prompt_sha256 == key] if "prompt_sha256" in table.c else [])]
    return set(connection.execute(select(column).where(or_(*where))).scalars())


def grown_from(connection: Connection, keys: Collection[str]) -> set[str]:
    """All of the chains of critique and revision (`stages/revise.py`) that one of these texts is part of: what was asked on the way, and
    what came of it, a person's corrections with it, which may repeat it."""
    prompt, completion = tables.prompt.c, tables.completion.c
    on_the_way = prompt.split == "chain"
    came = or_(completion.source.startswith("revised:"), completion.source.startswith("corrected:"))
    asked = connection.execute(select(prompt.sha256, prompt.meta).where(on_the_way)).all()
    chains = {key: meta["chain"] for key, meta in asked if "chain" in meta}
    within = or_(came, completion.prompt_sha256.in_(select(prompt.sha256).where(on_the_way)))
    replied = select(completion.prompt_sha256).where(completion.content_sha256.in_(keys), within)
    named = {*keys, *connection.execute(replied).scalars()}
    begun = {note["of"] for key, note in chains.items() if named & {key, note["of"], note["answer"]}}
    own = select(completion.prompt_sha256).where(completion.content_sha256.in_(keys), came)
    begun |= set(connection.execute(own).scalars())  # of an answer that was never criticised too
    revised = connection.execute(select(completion.content_sha256).where(completion.prompt_sha256.in_(begun), came))
    return {key for key, note in chains.items() if note["of"] in begun} | set(revised.scalars())


def blank_rows(connection: Connection, table: Table, hashes: set[str], done: Takedown) -> None:
    for row in connection.execute(select(table).where(table.c[hash_column(table.name)].in_(hashes))).all():
        before = row._asdict()
        blank = blank_values(table.name, before)
        if blank == {name: before[name] for name in blank}:
            continue
        stood = before[TEXT_COLUMNS.get(table.name, "text")]
        done.texts += [one["content"] for one in stood] if table is tables.prompt else [stood]
        done.blanked[table.name] = done.blanked.get(table.name, 0) + 1
        connection.execute(update(table).where(table.c.id == row.id).values(blank))
        if "checksum" in table.c:
            renew_checksum(connection, table, row.id)


def renew_checksum(connection: Connection, table: Table, number: int) -> None:
    if connection.dialect.name == "sqlite":
        names = sorted(column.name for column in table.c if column.name not in UNCOVERED)
        query = f"SELECT {', '.join(names)} FROM {table.name} WHERE id = ?"
        found = checksum(connection.exec_driver_sql(query, (number,)).one())
    else:
        found = checksum_of(connection.execute(select(table).where(table.c.id == number)).one()._asdict())
    connection.execute(update(table).where(table.c.id == number).values(checksum=found))


def blank_drafts(connection: Connection, hashes: set[str], done: Takedown) -> None:
    """Drafts of answers about a text that is gone, and those that quote one."""
    draft, assignment = tables.draft, tables.assignment
    items = select(tables.item.c.id).where(tables.item.c.sha256.in_(items_with(hashes, hashes)))
    about = set(connection.execute(select(assignment.c.id).where(assignment.c.item_id.in_(items))).scalars())
    for number, body in connection.execute(select(draft.c.assignment_id, draft.c.body)).all():
        quotes = any(text in quoted for quoted in strings_in(body) for text in done.texts if len(text) >= FEWEST)
        if body and (number in about or quotes):
            done.blanked["draft"] = done.blanked.get("draft", 0) + 1
            connection.execute(update(draft).where(draft.c.assignment_id == number).values(body={}))


def blank_reports(connection: Connection) -> None:
    """Reports of imports quote rows of their files, perhaps of this text."""
    table = tables.imported_file
    for number, report in connection.execute(select(table.c.id, table.c.report)).all():
        if "first" in report:
            connection.execute(update(table).where(table.c.id == number).values(report=without_excerpts(report)))


def purge(store: Store) -> None:
    """Write an SQLite file anew, without what its free pages and its log still hold."""
    with store.reading() as connection:
        engine = connection.engine
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        try:
            raw.execute("VACUUM")
            (busy, *_) = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            busy = str(error)
    if busy:
        raise StoreError(
            "the text was taken down, but its bytes stay in the file and its log while another process is at work with them; end what "
            "uses the store, and run the same command again"
        )


# -------------------------------------------------------------------------------------------- what was made of it


def name_models(connection: Connection, hashes: set[str], done: Takedown, made: Sources, by: str | None = None) -> None:
    """Models whose snapshot has a judgement or a rating of these texts, or by this labeler, with all that descend from them; and those of
    which nothing says what they learnt from."""
    completion, judgement, rating = tables.completion.c, tables.judgement.c, tables.rating.c
    numbers = select(completion.id).where(completion.content_sha256.in_(hashes))
    of_item = judgement.item_sha256.in_(items_with(hashes, hashes))
    judged = select(judgement.sha256).where(or_(of_item, judgement.rationale.in_(hashes), judgement.labeler == by))
    rated = select(rating.sha256).where(
        or_(rating.completion_id.in_(numbers), rating.note.in_(hashes), rating.labeler == by)
    )
    of_judgements, of_ratings = tables.snapshot_row.c, tables.snapshot_rating.c
    found = select(of_judgements.snapshot_sha256).where(of_judgements.judgement_sha256.in_(judged))
    found_too = select(of_ratings.snapshot_sha256).where(of_ratings.rating_sha256.in_(rated))
    learnt, grown = set(connection.execute(found.union(found_too)).scalars()), -1
    models = connection.execute(select(tables.model_version).order_by(tables.model_version.c.id)).all()
    known = set(connection.execute(select(tables.snapshot.c.sha256)).scalars())
    sources = {
        row.weights_sha256: {row.parent, row.snapshot_sha256, *(row.shaped_by or ()), *made.get(row.weights_sha256, ())}
        for row in models
    }
    while grown < len(learnt):
        grown = len(learnt)
        learnt |= {model for model, of in sources.items() if of & learnt}
    named = {row.weights_sha256: f"{row.name} ({row.weights_sha256[:12]})" for row in models}
    done.models = [name for key, name in named.items() if key in learnt]
    done.perhaps = [name for key, name in named.items() if key not in learnt and not sources[key] & known]
    steps = select(rating.sha256).where(rating.completion_id.in_(numbers), rating.kind == "steps")
    done.steps = sorted(connection.execute(steps).scalars())


def files_that_hold(folder: Path, texts: Sequence[str]) -> Iterator[str]:
    """The files under a folder that hold one of these texts, as it is or as JSON or HTML write it."""
    texts = [text for text in texts if len(text) >= FEWEST]
    sought = {
        form.encode()
        for text in texts
        for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text))
    }
    longest = max(map(len, sought), default=0)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()) if sought else ():
        with open(path, "rb") as file:
            held = b""
            while part := file.read(LARGEST):
                held = held[-longest:] + part
                if any(one in held for one in sought):
                    yield str(path)
                    break
