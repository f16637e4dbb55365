"""What users asked, as prompts to train on: of those who agree now, without personal data, each once, drawn by a lottery over authors."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Prompt
from bridle.feedback.serving.answers import SERVED
from bridle.feedback.serving.consent import is_newest_text
from bridle.feedback.serving.personal import personal_data
from bridle.feedback.store import tables
from bridle.feedback.store.nearness import split_key
from bridle.feedback.store.reading import excluded
from bridle.feedback.store.rows import prompt_of
from bridle.feedback.store.store import Store, split_of
from bridle.feedback.upkeep.audit import append_audit
from bridle.feedback.upkeep.takedown import renew_checksum

TRAIN = "train"
LONGEST_TURN = 20_000  # characters that are looked through for personal data


@dataclass(frozen=True)
class DrawnPrompts:
    """The prompts that were drawn, by how many authors, and why others were left out: "email" and the like, "held out", "nearly there
    already", "too long to look through", "not drawn this time"."""

    prompts: list[Prompt] = field(default_factory=list)
    authors: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


def draw_prompts(store: Store, most: int, seed: int, *, by: str, held_out_share: float = 0.1) -> DrawnPrompts:
    """Move up to `most` of the prompts that users asked into the split "train", where they keep the source "serving".

    Each is drawn by first drawing its author, all authors that have prompts left being as probable: who asks much owns no more of the data.
    Never drawn: what a prompt's hash holds out (`split_of`), what nearly equals a prompt that is there, and what holds personal data.
    """
    if most < 1:
        raise DataError(f"{most} prompts were to be drawn, but it must be at least 1")
    left, table = Counter[str](), tables.prompt
    with store.writing() as connection:
        by_author = prompts_by_author(connection, held_out_share, left)
        rng, drawn = random.Random(seed), list[tuple[int, str, Prompt]]()
        for of_author in by_author.values():
            rng.shuffle(of_author)
        while by_author and len(drawn) < most:
            author = rng.choice(list(by_author))
            number, prompt = by_author[author].pop()
            drawn.append((number, author, prompt))
            if not by_author[author]:
                del by_author[author]
        for number, _, _ in drawn:
            connection.execute(sa.update(table).where(table.c.id == number).values(split=TRAIN))
            renew_checksum(connection, table, number)
        if rest := sum(map(len, by_author.values())):
            left["not drawn this time"] = rest
        if drawn:
            details = {"drawn": len(drawn), "seed": seed, "left_out": dict(left)}
            append_audit(connection, by, "draw_prompts", TRAIN, details)
    return DrawnPrompts([prompt for *_, prompt in drawn], len({author for _, author, _ in drawn}), dict(left))


def drawn_before(store: Store, by: str) -> dict[str, Any] | None:
    """What was drawn under this name, as the account has it; None where nothing was."""
    table = tables.audit.c
    query = sa.select(table.details).where(table.action == "draw_prompts", table.actor == by)
    with store.reading() as connection:
        found = connection.execute(query).scalar()
    return None if found is None else dict(found)


def prompts_by_author(
    connection: sa.Connection, held_out_share: float, left: Counter[str]
) -> dict[str, list[tuple[int, Prompt]]]:
    """Prompts that may be drawn, with the numbers of their rows, by author: of several who agree and asked the same the first."""
    there = sa.select(tables.prompt.c.nearness).where(tables.prompt.c.split != SERVED)
    near = set(connection.execute(there).scalars())
    found = defaultdict[str, list[tuple[int, Prompt]]](list)
    for row in connection.execute(asked_by_consenting()).all():
        prompt = prompt_of(row)
        if any(len(turn.content) > LONGEST_TURN for turn in prompt.messages):
            left["too long to look through"] += 1
            continue
        kinds = dict.fromkeys(kind for turn in prompt.messages for kind in personal_data(turn.content))
        if kinds:
            left.update(kinds.keys())
        elif split_of(split_key(prompt), held_out_share) != TRAIN:
            left["held out"] += 1
        elif row.nearness in near:
            left["nearly there already"] += 1
        else:
            near.add(row.nearness)
            found[row.author].append((row.id, prompt))
    return dict(sorted(found.items()))


def asked_by_consenting() -> sa.Select[Any]:
    """Prompts of the split "served" that somebody asked who agrees now, each with the first of those users, the first that came first."""
    served, consent, user = tables.served.c, tables.consent.c, tables.served_user.c
    newest = sa.select(sa.func.max(consent.id)).group_by(consent.labeler)
    agreed = sa.select(consent.labeler).join(tables.guideline).where(consent.id.in_(newest), is_newest_text())
    agreed = agreed.join(tables.served_user, user.labeler == consent.labeler)
    agreed = agreed.where(consent.answer == "agreed", user.sha256.is_not(None))
    first = sa.select(tables.completion.c.prompt_sha256, sa.func.min(served.id).label("first"))
    first = first.join_from(tables.served, tables.completion)
    first = first.where(served.labeler.in_(agreed), served.labeler.not_in(excluded("labeler")))
    first_of = first.group_by(tables.completion.c.prompt_sha256).subquery()
    query = sa.select(tables.prompt, served.labeler.label("author"))
    query = query.join(first_of, first_of.c.prompt_sha256 == tables.prompt.c.sha256)
    query = query.join(tables.served, served.id == first_of.c.first)
    query = query.where(tables.prompt.c.split == SERVED, tables.prompt.c.sha256.not_in(excluded("prompt")))
    return query.order_by(tables.prompt.c.id)
