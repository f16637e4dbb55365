"""How users' comparisons ended, by the weights and arms that stood on either side: for win rates of what is served."""

from dataclasses import dataclass

import sqlalchemy as sa

from bridle.feedback.store import tables
from bridle.feedback.store.reading import SERVING, in_force
from bridle.feedback.store.store import Store


@dataclass(frozen=True)
class Outcome:
    """One vote in force, on a `prompt` by its id. `first` and `second` are the weights' stamps of the answers displayed there;
    `preferred`: 1 where the first was, 0 where the second, ½ where neither. `at_random`: its arms were drawn uniformly, so that a mean
    over such votes has no bias."""

    user: str
    prompt: str
    first: str
    second: str
    arms: tuple[str, str]
    preferred: float
    propensity: float
    at_random: bool


def vote_outcomes(store: Store) -> list[Outcome]:
    """Those that weigh anything, in the order in which they came: as each answer was served, whoever else had the same words from another
    model (an item is named by words alone)."""
    judgement, comparison = tables.judgement.c, tables.comparison.c
    one, other = (tables.served.alias(name).c for name in ("one", "other"))
    left, right = (tables.completion.alias(name).c for name in ("left", "right"))
    columns = [
        comparison.public_id,
        one.arm,
        other.arm,
        left.weight_stamp,
        right.weight_stamp,
        one.propensity,
        one.acquisition,
        left.prompt_sha256,
    ]
    pairs = sa.select(*columns).select_from(tables.comparison)
    pairs = pairs.join(one.id.table, one.public_id == comparison.first).join(
        left.id.table, left.id == one.completion_id
    )
    pairs = pairs.join(other.id.table, other.public_id == comparison.second)
    pairs = pairs.join(right.id.table, right.id == other.completion_id)
    votes = sa.select(judgement.labeler, judgement.outcome, judgement.display_order, judgement.client)
    votes = votes.where(in_force(), judgement.source == SERVING, sa.func.coalesce(judgement.weight, 1) > 0)
    with store.reading() as connection:
        served = {row[0]: row[1:] for row in connection.execute(pairs)}
        rows = connection.execute(votes.order_by(judgement.id)).all()
    found = []
    for user, outcome, order, client in rows:
        if (pair := served.get((client or {}).get("comparison", ""))) is not None:
            *arms, first, second, propensity, acquisition, prompt = pair
            preferred = float(int(outcome) == order[0]) if outcome.isdigit() else 0.5
            found.append(
                Outcome(user, prompt, first, second, (arms[0], arms[1]), preferred, propensity, acquisition == "random")
            )
    return found
