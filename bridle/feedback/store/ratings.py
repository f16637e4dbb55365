"""What is known of single answers and prompts: votes and scores, solutions to check answers against; and plain texts."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from bridle.core.records import Completion, Prompt, Rating, content_hash
from bridle.feedback.store import tables
from bridle.feedback.store.reading import PAGE, SOURCES, Source, equal, excluded, not_excluded, rating_stands
from bridle.feedback.store.rows import prompt_of, rating_of, rating_values
from bridle.feedback.store.store import Store, add_free_texts, add_labelers, completion_keys, insert_new, lookup


def add_ratings(store: Store, ratings: Sequence[Rating]) -> int:
    """Add votes and scores that are new; returns their number. Their answers must be in the store (else DataError)."""
    if not ratings:
        return 0
    with store.writing() as connection:
        keys = completion_keys(connection, [rating.completion for rating in ratings])
        add_labelers(connection, ratings)
        add_free_texts(connection, [rating.note for rating in ratings])
        rows = [rating_values(one, keys[one.completion.id, one.completion.weight_stamp]) for one in ratings]
        # What is there is looked up and not left to the conflict: SQLite's trigger against replacing rows would refuse it.
        known = {key for (key,) in lookup(connection, tables.rating.c.sha256, {row["sha256"] for row in rows})}
        new = {row["sha256"]: row for row in rows if row["sha256"] not in known}
        return insert_new(connection, tables.rating, list(new.values()))


def ratings(
    store: Store,
    *,
    kind: str | None = None,
    criterion: str | None = None,
    split: str | None = None,
    sources: Collection[Source] = SOURCES,
) -> list[tuple[Prompt, Rating]]:
    """Votes, scores, labelled steps and flags with their prompts, in the order in which they came, from these sources; nothing that was
    excluded."""
    wanted: dict[ColumnElement[Any], object] = {tables.rating.c.kind: kind, tables.rating.c.criterion: criterion}
    with store.reading() as connection:
        chosen = [tables.rating.c.source.in_(sources), *equal(wanted | {tables.prompt.c.split: split})]
        return list(each_rating(connection, chosen))


def each_rating(connection: Connection, where: Sequence[ColumnElement[bool]]) -> Iterator[tuple[Prompt, Rating]]:
    """The same one after another; conditions on rating, completion and prompt."""
    where = [
        *where,
        rating_stands(),
        not_excluded(tables.completion),
        tables.rating.c.labeler.not_in(excluded("labeler")),
    ]
    return rated_where(connection, where)


def rated_where(connection: Connection, where: Sequence[ColumnElement[bool]]) -> Iterator[tuple[Prompt, Rating]]:
    """Ratings by conditions on rating, completion and prompt alone, what was excluded too."""
    rating, completion, prompt, text = tables.rating.c, tables.completion, tables.prompt, tables.free_text
    stated: list[ColumnElement[Any]] = [
        rating.labeler,
        rating.kind,
        rating.criterion,
        rating.value,
        rating.steps,
        rating.weight,
    ]
    stated += [rating.source.label("rating_source"), rating.lang.label("rating_lang"), text.c.body.label("words")]
    stated += [rating.judgement_sha256, tables.labeler.c.kind.label("labeler_kind")]
    query = select(completion, prompt.c.messages, prompt.c.meta, *stated)
    query = query.select_from(tables.rating).join(completion).join(prompt).join(tables.labeler).order_by(rating.id)
    query = query.outerjoin(text, text.c.sha256 == rating.note)
    for row in connection.execute(query.where(*where).execution_options(yield_per=PAGE)):
        yield prompt_of(row), rating_of(row)


def add_solutions(store: Store, solved: Iterable[tuple[Prompt, str]]) -> int:
    """Add what prompts' answers are checked against; returns how many were new. A prompt may have several. The prompts must be there."""
    rows = [{"sha256": content_hash([p.id, text]), "prompt_sha256": p.id, "text": text} for p, text in solved]
    with store.writing() as connection:
        return insert_new(connection, tables.solution, rows)


def solutions(store: Store, *, split: str | None = None) -> list[tuple[Prompt, str]]:
    """Prompts with their solutions, in the order in which these came."""
    query = select(tables.prompt, tables.solution.c.text).join(tables.solution).order_by(tables.solution.c.id)
    query = query.where(*equal({tables.prompt.c.split: split}), tables.solution.c.sha256.not_in(excluded("text")))
    query = query.where(tables.prompt.c.sha256.not_in(excluded("prompt")))
    with store.reading() as connection:
        return [(prompt_of(row), row.text) for row in connection.execute(query)]


def add_documents(store: Store, texts: Iterable[str]) -> int:
    """Add texts to learn language from; returns how many were new."""
    rows = [{"sha256": content_hash(text), "text": text} for text in texts]
    with store.writing() as connection:
        return insert_new(connection, tables.document, rows)


def documents(store: Store) -> list[str]:
    table = tables.document.c
    query = select(table.text).where(table.sha256.not_in(excluded("text"))).order_by(table.id)
    with store.reading() as connection:
        return list(connection.execute(query).scalars())


def add_imported_file(store: Store, sha256: str, name: str, report: dict[str, Any]) -> None:
    """Note what was read of a file, under the hash of its bytes and of how it was read."""
    row = {"sha256": sha256, "name": name, "report": report}
    with store.writing() as connection:
        insert_new(connection, tables.imported_file, [row])


def imported_file(store: Store, sha256: str) -> tuple[str, str, dict[str, Any]] | None:
    """The name, time and report of a file that was imported; None where it was not."""
    table = tables.imported_file.c
    query = select(table.name, table.created_at, table.report).where(table.sha256 == sha256)
    with store.reading() as connection:
        found = connection.execute(query).one_or_none()
    return None if found is None else (found.name, found.created_at, found.report)


def imported_reports(store: Store) -> list[dict[str, Any]]:
    """What was kept of each file that was imported, the newest first."""
    table = tables.imported_file.c
    with store.reading() as connection:
        return list(connection.execute(select(table.report).order_by(table.id.desc())).scalars())


def add_model_scores(
    store: Store, completions: Sequence[Completion], weights_sha256: str, task: str, scores: Sequence[float]
) -> int:
    """Keep what a reward model makes of answers by one of its tasks, as log-odds; returns how many were new. The answers must be there."""
    with store.writing() as connection:
        keys = completion_keys(connection, completions)
        score_by_row = {keys[c.id, c.weight_stamp]: score for c, score in zip(completions, scores, strict=True)}
        of_model = {"weights_sha256": weights_sha256, "task": task}
        rows = [{"completion_id": row, "score": score, **of_model} for row, score in score_by_row.items()]
        return insert_new(connection, tables.completion_score, rows)
