"""The page that goes with a dataset on a hub: what it holds, how it was collected, what is not known of it. Its words: card.md.jinja."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

import bridle
from bridle.core.text import one_line
from bridle.feedback.exporting.exporter import ExportReport
from bridle.feedback.quality.agreement import agreement_of
from bridle.feedback.quality.votes import read_votes
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store

KINDS = {"person": "people", "ai": "models", "simulated": "simulated people", "imported": "givers of imported files"}


def dataset_card(store: Store, report: ExportReport, name: str, licence: str = "unknown") -> str:
    """README.md of a dataset repository, with the header that a hub reads."""
    from jinja2 import Environment

    judgement = tables.judgement.c
    kinds = select(tables.labeler.c.kind, func.count()).join(tables.judgement).group_by(tables.labeler.c.kind)
    orders = select(func.count(judgement.display_order), func.count()).select_from(tables.judgement)
    with store.reading() as connection:
        languages = counted_by(connection, tables.prompt.c.lang)
        sources = counted_by(connection, judgement.source)
        givers = {KINDS[kind]: count for kind, count in connection.execute(kinds)}
        blind, judged = connection.execute(orders).one()
    template = Environment(trim_blocks=True).from_string(Path(__file__).with_name("card.md.jinja").read_text("utf-8"))
    found = {
        "languages": languages,
        "sources": sources,
        "givers": givers,
        "blind": blind,
        "judged": judged,
        "counts": listed_counts,
        "agreement": agreement_of(read_votes(store)),
    }
    found |= {"name": name, "licence": one_line(licence), "file": Path(report.path).name, "version": bridle.__version__}
    return template.render(found, report=report)


def counted_by(connection: Connection, column: ColumnElement[Any]) -> dict[str, int]:
    query = select(column, func.count()).where(column.is_not(None)).group_by(column).order_by(func.count().desc())
    return {one_line(value): count for value, count in connection.execute(query)}


def listed_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())
