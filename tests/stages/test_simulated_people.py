"""Simulated people label through the API what they would label in the process, to the judgement; whatever comes between."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bridle.core.records import Completion, Judgement, LabelerKind
from bridle.feedback.people.accounts import accounts
from bridle.feedback.people.listing import listed_items
from bridle.feedback.store.studies import mark_items
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.data import STUDY, PlaygroundData
from bridle.stages.label import prepare_study, take_turns, through_api, without_server
from tests.feedback.conftest import new_store

ITEMS = 36


def playground(folder: Path, slots: int = 3) -> PlaygroundData:
    """A store with answers to compare, some of the same text."""
    folder.mkdir()
    store = new_store(folder / "store.sqlite")
    recipe = Recipe().with_settings(
        {"data.train_prompts": ITEMS, "data.demonstrations": 1, "data.probe_prompts": 1, "data.heldout_prompts": 4}
    )
    data = PlaygroundData(Project(folder, recipe), lambda: store)
    rng, prompts = random.Random(5), data.train_prompts()
    groups = [
        [Completion(p.id, data.world.demonstration(rng)[1] if k else "Yes.") for k in range(slots)] for p in prompts
    ]
    groups[0] = groups[0][:2] * 2
    store.add_completions([answer for group in groups for answer in group], source="sample")
    mark_items(store, STUDY, store.add_items(groups, study=STUDY))
    return data


def labelled(data: PlaygroundData, through: Any) -> dict[str, Judgement]:
    prepare_study(data)
    with through(data.store, data.world.spec.labelers) as turn:
        take_turns(data, turn)
    return {one.id: one for _, one in data.store.judgements(study=STUDY)}


@pytest.mark.parametrize("slots", [2, 4])
def test_the_same_seed_gives_the_same_labels_both_ways(tmp_path: Path, slots: int) -> None:
    ways = {name: playground(tmp_path / name, slots) for name in ("without_server", "through_api")}
    direct = labelled(ways["without_server"], without_server)
    assert labelled(ways["through_api"], through_api) == direct
    assert {one.labeler_kind for one in direct.values()} == {LabelerKind.SIMULATED}
    assert all(one.display_order is not None for one in direct.values())
    store = ways["through_api"].store
    assert all(account.disabled_at is not None for account in accounts(store))  # nobody signs in as one of them
    count = len(direct)
    assert labelled(ways["through_api"], without_server).keys() == direct.keys(), (
        "there is nothing left, so nothing is said again"
    )
    listed = listed_items(store, STUDY, limit=1000)
    section, gold = ways["without_server"].recipe.label, sum(row["gold"] is not None for row in listed)
    judged = Counter(row["judged"] for row in listed if row["gold"] is None)
    assert set(judged) == {1, section.overlap} and sum(judged.values()) == ITEMS - gold
    expected = ITEMS * (1 + section.overlap_share * (section.overlap - 1))
    assert 0.7 * expected < count < 1.4 * expected
    assert len({one.labeler for one in direct.values()}) == len(ways["without_server"].world.spec.labelers)


def test_who_was_stopped_goes_on_as_if_not(tmp_path: Path) -> None:
    whole = labelled(playground(tmp_path / "whole"), through_api)
    data, count = playground(tmp_path / "stopped"), 0
    prepare_study(data)
    with pytest.raises(KeyboardInterrupt), through_api(data.store, data.world.spec.labelers) as turn:

        def some_turns(labeler: str, answer: Mapping[str, Any] | None) -> Any:
            nonlocal count
            if (count := count + 1) > 30:
                raise KeyboardInterrupt
            return turn(labeler, answer)

        take_turns(data, some_turns)
    assert 0 < len(data.store.judgements(study=STUDY)) < len(whole)
    assert labelled(data, through_api) == whole
