"""What an import looks up in the store to report of: judgements that disagree, prompts that nearly equal one another."""

from collections.abc import Sequence

from sqlalchemy import func, select

from bridle.core.records import Judgement
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store, lookup


def opposed_judgements(store: Store, judgements: Sequence[Judgement]) -> int:
    """How many of these that are new say something else of an item than a judgement in the store, or one before them, by the same
    criterion."""
    table = tables.judgement.c
    columns = (table.sha256, table.criterion, table.ranking)
    with store.reading() as connection:
        rows = list(lookup(connection, table.item_sha256, {one.item_id for one in judgements}, *columns))
    known = {row[1] for row in rows}
    stated: dict[tuple[str, str | None], set[str]] = {}
    for item, _, criterion, known_ranking in rows:
        stated.setdefault((item, criterion), set()).add(str(known_ranking))
    count = 0
    for one in judgements:
        ranking = str([list(group) for group in one.ranking])
        before = stated.setdefault((one.item_id, one.criterion), set())
        count += one.id not in known and bool(before - {ranking})
        known.add(one.id)
        before.add(ranking)
    return count


def near_duplicates(store: Store) -> int:
    """How many held-out prompts equal a training prompt but for case, white space and punctuation."""
    held, train = tables.prompt.alias("held"), tables.prompt.alias("train")
    near = select(train.c.id).where(train.c.nearness == held.c.nearness, train.c.split == "train").exists()
    with store.reading() as connection:
        return connection.execute(
            select(func.count()).select_from(held).where(held.c.split == "heldout", near)
        ).scalar_one()
