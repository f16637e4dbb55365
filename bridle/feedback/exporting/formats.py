"""The forms that a store's data goes out in. Each is a stream of rows, and counts what of the data it cannot hold.

`preference`, `unpaired` and `prompts` are TRL's (huggingface.co/docs/trl/dataset_formats, conversational, with an explicit prompt). What a
judgement by one criterion says, and what is not in force, is in `full` alone (`whole.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Connection, Select, func, select

from bridle.core.records import Judgement, Message, Prompt
from bridle.feedback.exporting.tools import argilla_record, label_studio_task
from bridle.feedback.exporting.whole import store_rows_out
from bridle.feedback.exporting.writing import LINES, LISTS, TABLES, Columns
from bridle.feedback.rankings import Item, pairs_of
from bridle.feedback.store import tables
from bridle.feedback.store.ratings import each_rating
from bridle.feedback.store.reading import (
    PAGE,
    SERVING,
    SOURCES,
    each_judged,
    equal,
    excluded,
    in_force,
    in_study,
    judged_by,
    judged_in,
    not_blanked,
    snapshot_of,
)
from bridle.feedback.store.rows import Values, prompt_of


@dataclass(frozen=True)
class Wanted:
    """Which part of a store; None is all of it. Of a snapshot, what it holds, weighed as it says."""

    study: str | None = None
    split: str | None = None
    snapshot: str | None = None


OF_USERS = "judgements of users of a served model (--study serving has these alone)"
Left = Counter[str]  # what the form cannot hold, by words, and how much of it there is
Rows = Callable[[Connection, Wanted, Left], Iterator[Values]]


# ---------------------------------------------------------------------------------------------------- judgements


def judged_rows(connection: Connection, wanted: Wanted, by_item: bool = False) -> Iterator[tuple[Item, Judgement]]:
    """The judgements in force on the whole, or a snapshot's, with the weight that each has."""
    if wanted.snapshot is None:
        where = judged_in(wanted.study, wanted.split)
        yield from each_judged(connection, [in_force(), judged_by(None), *where], by_item)
        return
    where = in_study(wanted.study, wanted.split)
    snapshot_of(connection, wanted.snapshot)  # which refuses what is none, or was changed
    rows, judgement = tables.snapshot_row.c, tables.judgement.c
    members = select(rows.judgement_sha256).where(rows.snapshot_sha256 == wanted.snapshot)
    judged = each_judged(connection, [judgement.sha256.in_(members), not_blanked(), *where], by_item)
    while page := list(islice(judged, PAGE)):
        of_page = rows.judgement_sha256.in_([one.id for _, one in page])
        found = select(rows.judgement_sha256, rows.weight).where(rows.snapshot_sha256 == wanted.snapshot, of_page)
        weights = {key: weight for key, weight in connection.execute(found) if weight is not None}
        for item, one in page:
            yield item, replace(one, weight=one.weight * weights.get(one.id, 1.0))


def preference_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    """A row for each pair: of a ranking of four up to six, which weigh as much together as one judgement and keep its id. Where any
    judgement says by how much, every row has a margin, for trainers take no gaps: 0, which changes no loss, where none was said."""
    margins = states_margins(connection)
    for item, judgement in judged_rows(connection, wanted):
        whole = len(judgement.ranking) == 1
        name = judgement.outcome.replace("_", " ") or ("ties" if whole else "ties in a ranking")
        left[name] += sum(len(group) > 1 for group in judgement.ranking)
        left["judgements that weigh nothing"] += judgement.weight == 0
        for pair in pairs_of(item, judgement) if judgement.weight > 0 else ():
            row: Values = {"prompt": turns_of(item.prompt.messages), "chosen": answer_turn(pair.chosen.text)}
            row |= {"rejected": answer_turn(pair.rejected.text), "weight": pair.weight, "outcome": "chosen"}
            row |= {"judgement_id": judgement.id}
            if margins:
                left["margins that nobody said, written as 0"] += pair.strength is None
                row |= {"margin": float(pair.strength or 0)}
            yield row


def states_margins(connection: Connection) -> bool:
    table = tables.judgement.c
    return connection.execute(select(func.count(func.coalesce(table.margin, table.strength)))).scalar_one() > 0


def unpaired_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    """Votes on single answers; and of each judgement the best answers as good, the worst as bad, as TRL unpairs preferences, but of those
    that are both good or both bad all."""
    for prompt, rating in each_rating(connection, [*ratings_in(wanted), tables.rating.c.kind == "vote"]):
        yield unpaired(prompt, rating.completion.text, rating.value == 1)
    for item, judgement in judged_rows(connection, wanted):
        best, worst = judgement.ranking[0], judgement.ranking[-1]
        if len(judgement.ranking) == 1 and not judgement.outcome:
            left["ties"] += 1
            continue
        left["answers between the best and the worst"] += sum(map(len, judgement.ranking[1:-1]))
        if len(judgement.ranking) > 1 or judgement.outcome == "both_good":
            yield from (unpaired(item.prompt, item.completions[slot].text, True) for slot in best)
        if len(judgement.ranking) > 1 or judgement.outcome == "both_bad":
            yield from (unpaired(item.prompt, item.completions[slot].text, False) for slot in worst)


def unpaired(prompt: Prompt, text: str, label: bool) -> Values:
    return {"prompt": turns_of(prompt.messages), "completion": answer_turn(text), "label": label}


def ranking_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    """A row for each judgement: all answers, each with its place, 0 the best, equal ones tied."""
    for item, judgement in judged_rows(connection, wanted):
        places = {slot: rank for rank, group in enumerate(judgement.ranking) for slot in group}
        texts = [answer.text for answer in item.completions]
        left["whether a tie is both good or both bad"] += bool(judgement.outcome)
        row: Values = {"prompt": turns_of(item.prompt.messages), "completions": texts}
        row |= {"ranks": [places[slot] for slot in range(len(texts))], "weight": judgement.weight}
        yield row | {"annotator": judgement.labeler, "judgement_id": judgement.id}


# ------------------------------------------------------------------------------------------ prompts, single answers


def prompt_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    table = tables.prompt
    query = select(table).where(*equal({table.c.split: wanted.split}), table.c.sha256.not_in(excluded("prompt")))
    if wanted.study is not None:
        query = query.where(
            table.c.sha256.in_(select(tables.item.c.prompt_sha256).where(*in_study(wanted.study, None)))
        )
    for row in connection.execute(query.order_by(table.c.id).execution_options(yield_per=PAGE)):
        yield {"prompt": turns_of(prompt_of(row).messages)}


def rating_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    """Votes, scores, labelled steps and flags, each under the name by which `bridle import` reads it."""
    for prompt, rating in each_rating(connection, ratings_in(wanted)):
        row: Values = {"prompt": turns_of(prompt.messages), "annotator": rating.labeler}
        row |= {"criterion": rating.criterion} if rating.criterion else {}
        left["what a flag's giver noted"] += bool(rating.note)
        if rating.kind == "steps":
            left["weights of labelled steps"] += rating.weight != 1
            left["degrees of labelled steps"] += sum(label not in (0, 1) for _, label in rating.steps)
            labels = [label > 0 for _, label in rating.steps]
            yield row | {"completions": [text for text, _ in rating.steps], "labels": labels}
            continue
        named = {"vote": ("label", rating.value == 1), "score": ("score", rating.value), "flag": ("flagged", True)}
        name, value = named[rating.kind]
        yield row | {"weight": rating.weight, "completion": answer_turn(rating.completion.text), name: value}


def ratings_in(wanted: Wanted) -> list[Any]:
    """What users of a served model said of single answers is in study "serving" alone."""
    where: list[Any] = equal({tables.prompt.c.split: wanted.split})
    if wanted.study == SERVING:
        return [*where, tables.rating.c.source == SERVING]
    where.append(tables.rating.c.source.in_(SOURCES))
    if wanted.study is not None:
        slot = tables.item_completion
        named = select(slot.c.completion_id).join(tables.item).where(*in_study(wanted.study, None))
        where.append(tables.rating.c.completion_id.in_(named))
    return where


def whole_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    return store_rows_out(connection)


def argilla_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    return map(argilla_record, by_item(judged_rows(connection, wanted, by_item=True)))


def label_studio_rows(connection: Connection, wanted: Wanted, left: Left) -> Iterator[Values]:
    for item, judgements in by_item(judged_rows(connection, wanted, by_item=True)):
        if len(item.completions) == 2:
            yield label_studio_task((item, judgements))
        else:
            left["rankings of more than two answers"] += len(judgements)


def by_item(judged: Iterator[tuple[Item, Judgement]]) -> Iterator[tuple[Item, list[Judgement]]]:
    for _, several in groupby(judged, key=lambda pair: pair[0].id):
        found = list(several)
        yield found[0][0], [judgement for _, judgement in found]


def turns_of(messages: Sequence[Message]) -> list[Values]:
    return [{"role": turn.role, "content": turn.content} for turn in messages]


def answer_turn(text: str) -> list[Values]:
    return [{"role": "assistant", "content": text}]


# -------------------------------------------------------------------------------------------------------- the forms


@dataclass(frozen=True)
class ExportForm:
    """`holds` names what of OTHERS it has room for; `parts` which of study, split and snapshot it can be asked for."""

    rows: Rows
    columns: Columns
    endings: tuple[str, ...]
    holds: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("study", "split", "snapshot")


EXPORTS: Mapping[str, ExportForm] = {
    "preference": ExportForm(
        preference_rows, {"prompt": "messages", "chosen": "messages", "rejected": "messages", "weight": "number", "outcome": "text",
        "judgement_id": "text", "margin": "number"}, LINES + TABLES,
    ),
    "unpaired": ExportForm(unpaired_rows, {"prompt": "messages", "completion": "messages", "label": "flag"}, LINES + TABLES),
    "prompts": ExportForm(prompt_rows, {"prompt": "messages"}, LINES + TABLES, parts=("study", "split")),
    "rankings": ExportForm(
        ranking_rows, {"prompt": "messages", "completions": "texts", "ranks": "numbers", "weight": "number", "annotator": "text",
        "judgement_id": "text"}, LINES + TABLES, ("who judged",),
    ),
    "ratings": ExportForm(
        rating_rows, {"prompt": "messages", "completion": "messages", "label": "flag", "score": "number", "flagged": "flag",
        "completions": "texts", "labels": "flags", "criterion": "text", "weight": "number", "annotator": "text"}, LINES + TABLES,
        ("votes, scores, steps and flags", "who judged"), ("study", "split"),
    ),
    "full": ExportForm(whole_rows, {}, LINES, parts=()),
    "argilla": ExportForm(argilla_rows, {}, LISTS, ("who judged",)),
    "label-studio": ExportForm(label_studio_rows, {}, LISTS, ("who judged",)),
}  # fmt: skip


def others() -> dict[str, Select[int]]:
    """What a store holds beside the judgements in force on the whole, each with the query that counts it."""
    judgement = tables.judgement.c
    judged = select(func.count()).select_from(tables.judgement).join(tables.item)
    rows = {"who judged": tables.labeler, "votes, scores, steps and flags": tables.rating, "solutions": tables.solution}
    rows |= {"texts": tables.document, "reasons and notes": tables.free_text}
    written = select(func.count()).where(tables.completion.c.source == "demonstration")
    return {
        "judgements by one criterion": judged.where(in_force(), judgement.criterion.is_not(None)),
        "judgements not in force": judged.where(~in_force()),
        OF_USERS: judged.where(in_force(), judgement.source == SERVING),
        "orders of display": judged.where(judgement.display_order.is_not(None)),
        "demonstrations": written,
        **{name: select(func.count()).select_from(table) for name, table in rows.items()},
    }


def not_held(connection: Connection, form: str, study: str | None = None) -> Counter[str]:
    """What of `others` a store holds and the form, or the study that was asked for, does not."""
    wanted = {} if form == "full" else others()
    held = (*EXPORTS[form].holds, *([OF_USERS] if study == SERVING else []))
    return Counter({name: connection.execute(query).scalar_one() for name, query in wanted.items() if name not in held})
