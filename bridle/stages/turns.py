"""Simulated people take turns at a study: whose turn it is, and what each answers."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bridle.core.records import LabelerKind, content_hash
from bridle.feedback.people.at_work import study_progress
from bridle.feedback.people.listing import listed_items
from bridle.feedback.rankings import Item
from bridle.feedback.store.assignment import next_tasks
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import study_named
from bridle.labelling.answering import answer_task
from bridle.labelling.answers import Answer
from bridle.playground.labelers import Labeler, rank
from bridle.stages.data import STUDY, PlaygroundData

SITTING = 40  # items that a simulated labeler judges before a rest
LANG, MOST_ITEMS = "en", 10**7
Turn = Callable[[str, Mapping[str, Any] | None], tuple[str, Sequence[str]] | None]
"""A person's answer, or None where they begin; what they are asked next: an item, and its answers as they see them."""


def take_turns(data: PlaygroundData, turn: Turn, of_study: str = STUDY) -> None:
    """Whose turn it is, and what each says, follows from the seed and from how many were answered before, however long anything takes."""
    store, seed, people = data.store, data.recipe.seed, data.world.spec.labelers
    listed = listed_items(store, of_study, state="open", limit=MOST_ITEMS)
    if all(row["gold"] is not None for row in listed):
        return  # whose place is never taken
    items = {item.id: item for item in store.items(study=of_study)}
    states = study_progress(store, of_study)[1]
    done = {labeler.name: states.get(labeler.name, {}).get("done", 0) for labeler in people}
    tasks = {labeler.name: turn(labeler.name, None) for labeler in people}
    while busy := [labeler for labeler in people if tasks[labeler.name] is not None]:
        labeler = random.Random(f"{seed}/turn/{sum(done.values())}").choice(busy)
        assert (task := tasks[labeler.name]) is not None
        answer = simulated(data, labeler, items[task[0]], task[1], done[labeler.name])
        tasks[labeler.name] = turn(labeler.name, answer)
        done[labeler.name] += 1


def simulated(
    data: PlaygroundData, labeler: Labeler, item: Item, answers: Sequence[str], judged: int
) -> dict[str, Any]:
    """What one of them answers who sees these answers in this order, having judged so many items."""
    draws = random.Random(f"{data.recipe.seed}/labels/{item.id}/{labeler.name}")
    texts = [text.strip() for text in answers]
    slot_of = {completion.text: completion for completion in item.completions}
    scores = data.score([item.prompt] * len(texts), [slot_of[text] for text in answers], "labelers")
    ranking = rank(labeler, draws, item.prompt, texts, scores, range(len(texts)), judged % SITTING)
    answer: dict[str, Any] = {"item": item.id, "key": content_hash([item.id, labeler.name])[:40]}
    place = {position: number for number, group in enumerate(ranking, 1) for position in group}
    if len(texts) == 2:
        return answer | {"verdict": 0 if len(ranking) == 1 else 2 * (place[0] - place[1])}
    return answer | {"places": [place[position] for position in range(len(texts))]}


@contextmanager
def without_server(store: Store, people: Sequence[Labeler], of_study: str = STUDY) -> Iterator[Turn]:
    """All of it is one transaction."""
    with store.transaction() as one:

        def turn(labeler: str, answer: Mapping[str, Any] | None) -> tuple[str, Sequence[str]] | None:
            if answer is None:
                (asked,) = next_tasks(one, of_study, labeler, kind=LabelerKind.SIMULATED, lang=LANG) or (None,)
            else:
                given = Answer.model_validate(answer)
                asked = answer_task(one, study, labeler, given, lang=LANG, kind=LabelerKind.SIMULATED).task
            if asked is None:
                return None
            return asked.item.id, [asked.item.completions[slot].text for slot in asked.display_order]

        with one.reading() as connection:
            study = study_named(connection, of_study, LANG)
        yield turn
