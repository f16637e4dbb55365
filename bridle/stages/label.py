"""Simulated people compare the sampled answers."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

from bridle.core.errors import DataError, NoUsableRows, UsageError
from bridle.core.outbound import connected
from bridle.core.records import LabelerKind
from bridle.core.timeline import timed
from bridle.feedback.people.accounts import change_account, create_account, find_account, issue, moment
from bridle.feedback.people.listing import listed_items
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import describe_items, set_gold, set_study
from bridle.playground.gold import CLEAR_GAP
from bridle.playground.labelers import Labeler
from bridle.stages.data import STUDY, PlaygroundData, StoreData
from bridle.stages.observe import agreement_with_gold
from bridle.stages.turns import MOST_ITEMS, Turn, take_turns, without_server
from bridle.stages.workspace import Work, done_before, require_model, stage_key


def label_simulated(work: Work, reuse: bool = False, through_http: bool = False) -> dict[str, Any]:
    """Simulated people rank the open items, by the API of a server of its own, or with the same tasks and records in this process; on the
    playground their agreement with gold is known."""
    data = work.data
    if isinstance(data, StoreData):
        raise UsageError(
            "simulated people know the playground alone, and this project's data was imported; import comparisons of your own with "
            "`bridle import FILE`"
        )
    with work.alone("label"):
        parents = {"sft": require_model(work, "sft"), "world": data.world_hash}
        unpriced = work.recipe.with_settings({"label.piece_price": 0.0, "label.hour_price": 0.0})
        key = stage_key(unpriced, ("world", "sampling", "data", "label"), parents)
        if (before := done_before(work, "label", key, reuse)) is not None:
            return before
        if not work.store.items(study=STUDY):
            raise NoUsableRows(f"{work.project.store} holds no answers to compare; `bridle sample` draws some")
        with work.start("label", "Simulated people compare the answers", key, parents) as run:
            with timed("label"):
                prepare_study(data)
                with (through_api if through_http else without_server)(work.store, data.world.spec.labelers) as turn:
                    take_turns(data, turn)
            with timed("store"):
                judged = work.store.judgements(study=STUDY)
            yardstick = {} if (found := data.yardstick()) is None else {"yardstick": asdict(found)}
            return run.finish({"judgements": len(judged), **agreement_with_gold(judged, data.score), **yardstick})


# ------------------------------------------------------------------------------------------------- who is asked what


def prepare_study(data: PlaygroundData) -> None:
    """Open the study. Of the items that nobody has judged some are to be judged by several people (`label.overlap`), of some the right
    ranking is given (`label.gold_share`): which, their hashes decide."""
    store, section, seed = data.store, data.recipe.label, data.recipe.seed
    several = []
    for item in store.unjudged_items(STUDY):
        draws = random.Random(f"{seed}/overlap/{item.id}")
        if draws.random() < section.overlap_share:
            several.append(item.id)
        if draws.random() < section.gold_share:
            scores = data.score([item.prompt] * len(item.completions), item.completions, "labelers")
            with suppress(DataError):  # of the random sample, which stays as it was drawn
                set_gold(store, item.id, gold_ranking([score.points for score in scores]), by="world")
    known = [row["gold"] is not None for row in listed_items(store, STUDY, limit=MOST_ITEMS)]
    share = sum(known) / len(known)
    set_study(store, STUDY, {"overlap": 1, "gold_rate": share, "seed": str(seed)})
    if section.overlap > 1:
        describe_items(store, several, need=min(section.overlap, len(data.world.spec.labelers)))


def gold_ranking(points: Sequence[float]) -> list[list[int]]:
    """Slots by their points, the best first; those that are not clearly below the best of a group tie with it."""
    groups: list[list[int]] = []
    for slot in sorted(range(len(points)), key=lambda slot: -points[slot]):
        if not groups or points[groups[-1][0]] - points[slot] > CLEAR_GAP:
            groups.append([])
        groups[-1].append(slot)
    return groups


# ------------------------------------------------------------------------------------------------ how they are asked


@contextmanager
def through_api(store: Store, people: Sequence[Labeler]) -> Iterator[Turn]:
    """With a server on the loopback, and an account for each of them that is open meanwhile."""
    from bridle.labelling.serving import serving

    with serving(store) as address, ExitStack() as stack:
        ask = {}
        for labeler in people:
            token = stack.enter_context(simulated_account(store, labeler.name))
            ask[labeler.name] = stack.enter_context(connected(address, token))

        def turn(labeler: str, answer: Mapping[str, Any] | None) -> tuple[str, Sequence[str]] | None:
            path = f"/api/studies/{STUDY}/{'next' if answer is None else 'answers'}"
            task = ask[labeler]("POST", path, answer)["task"]
            return None if task is None else (task["item"], task["answers"])

        yield turn


@contextmanager
def simulated_account(store: Store, name: str) -> Iterator[str]:
    """Its token. The account is closed afterwards."""
    if find_account(store, name) is None:
        create_account(store, name, "annotator", kind=LabelerKind.SIMULATED)
    else:
        change_account(store, name, by=name, disabled_at=None)
    try:
        yield issue(store, "token", labeler=name, seconds=24 * 3600.0)
    finally:
        change_account(store, name, by=name, disabled_at=moment(0))
