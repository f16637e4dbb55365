"""Rows into the store: prompts with their split, answers, items with judgements, votes and scores, solutions, texts.

Prompts go to the store's prompts, split by hash; demonstrations are answers with the source "demonstration", which SFT imitates; what
was compared is an item of a study ("import", where none is named) with a judgement for each verdict. Nothing of a row is kept twice: the
same verdict of the same person (or of nobody in particular) on the same answers is one judgement, from whichever file it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridle.core.records import Completion, Judgement, LabelerKind, Rating, content_hash
from bridle.feedback.importing.forms.imported import ImportedRow, ImportedVerdict
from bridle.feedback.rankings import item_id
from bridle.feedback.store import tables
from bridle.feedback.store.ratings import add_documents, add_ratings, add_solutions
from bridle.feedback.store.reviews import opposed_judgements
from bridle.feedback.store.rows import pair_key
from bridle.feedback.store.store import Store, lookup

STUDY = LABELER = SOURCE = "import"
DEMONSTRATION = "demonstration"


@dataclass
class Stored:
    """Of what rows hold, how much the store did not have and how much it had; and how many of the new judgements are opposite to one
    that was there."""

    new: int = 0
    known: int = 0
    disagreements: int = 0

    def add(self, new: int, given: int, disagreements: int = 0) -> None:
        self.new += new
        self.known += given - new
        self.disagreements += disagreements


def store_rows(store: Store, rows: Sequence[ImportedRow], held_out_share: float, study: str = STUDY) -> Stored:
    """Write rows in the order that each needs of the other."""
    found = Stored()
    kinds = [row.kinds for row in rows]
    alone = [row for row, kind in zip(rows, kinds, strict=True) if kind == ["prompt"]]
    # Prompts that stand alone come first, so that they are counted as new where an answered row of the batch has them too.
    found.add(_add_prompts(store, alone, held_out_share), len(alone))
    _add_prompts(store, [row for row in rows if not row.document], held_out_share)
    written = [Completion(row.prompt.id, row.answers[0]) for row in rows if row.imitate]
    found.add(store.add_completions(written, source=DEMONSTRATION), len(written))
    texts = [row.document for row in rows if row.document]
    found.add(add_documents(store, texts), len(texts))
    checked = [row for row, kind in zip(rows, kinds, strict=True) if kind == ["checkable"]]
    found.add(add_solutions(store, [(row.prompt, row.solutions[0]) for row in checked]), len(checked))
    add_solutions(store, [(row.prompt, text) for row in rows for text in row.solutions])
    stated = [row for row in rows if row.verdicts or row.opinions or row.to_judge]
    answers = [completions_of(row) for row in stated]
    store.add_completions([answer for each in answers for answer in each], source=SOURCE)
    ratings = [rating for row, each in zip(stated, answers, strict=True) for rating in _ratings(row, each)]
    found.add(add_ratings(store, ratings), len(ratings))
    compared = [pair for pair in zip(stated, answers, strict=True) if pair[0].verdicts]
    judgements = _store_items(store, compared, study)
    to_judge = [pair for pair in zip(stated, answers, strict=True) if pair[0].to_judge]
    found.add(_add_items(store, to_judge, study), len(to_judge))
    opposed = opposed_judgements(store, judgements)
    found.add(store.add_judgements(judgements), len(judgements), opposed)
    return found


def _add_prompts(store: Store, rows: Sequence[ImportedRow], held_out_share: float) -> int:
    prompts = [row.prompt for row in rows]
    return store.add_prompts(prompts, split=None, source=SOURCE, held_out_share=held_out_share)


def completions_of(row: ImportedRow) -> list[Completion]:
    return [Completion(row.prompt.id, text) for text in row.answers]


def _ratings(row: ImportedRow, answers: Sequence[Completion]) -> Iterator[Rating]:
    kind = LabelerKind.IMPORTED
    for stated in row.opinions:
        yield Rating(
            answers[stated.answer],
            stated.annotator or LABELER,
            kind,
            stated.kind,
            stated.value,
            stated.steps,
            stated.criterion,
            stated.weight,
        )


def _store_items(store: Store, rows: Sequence[tuple[ImportedRow, list[Completion]]], study: str) -> list[Judgement]:
    """Add what was compared; returns what was said of it."""
    groups = [by_hash(answers) for _, answers in rows]
    items = store.add_items([list(group.values()) for group in groups], study=study)
    judgements = []
    for item, group, (row, answers) in zip(items, groups, rows, strict=True):
        slots = [list(group).index(answer.id) for answer in answers]
        judgements += [judgement_of_verdict(stated, item, slots) for stated in row.verdicts]
    return judgements


def _add_items(store: Store, rows: Sequence[tuple[ImportedRow, list[Completion]]], study: str) -> int:
    """Add what is to be compared; returns how many were new."""
    groups = [list(by_hash(answers).values()) for _, answers in rows]
    ids = {item_id(group, study) for group in groups}
    with store.writing() as connection:
        known = {key for (key,) in lookup(connection, tables.item.c.sha256, ids)}
        store.add_items(groups, study=study)
    return len(ids - known)


def by_hash(answers: Sequence[Completion]) -> dict[str, Completion]:
    """Slots by hash, so that the slot does not tell which was chosen, and every vote on the same answers meets at one item."""
    return {answer.id: answer for answer in sorted(answers, key=lambda one: one.id)}


def judgement_of_verdict(stated: ImportedVerdict, item: str, slots: Sequence[int]) -> Judgement:
    """The verdict in the item's slots. Its key is what it says and who says it: said again it adds nothing."""
    seen: set[int] = set()
    ranking = []
    for group in stated.ranking:  # of answers of the same text the best place counts
        places = sorted({slots[place] for place in group} - seen)
        seen.update(places)
        ranking += [tuple(places)] if places else []
    plain = (
        len(ranking) == 2 and all(len(group) == 1 for group in ranking) and not (stated.annotator or stated.criterion)
    )
    words = [ranking, stated.outcome, stated.annotator, stated.criterion]
    return Judgement(
        item_id=item,
        labeler=stated.annotator or LABELER,
        labeler_kind=LabelerKind.IMPORTED,
        ranking=tuple(ranking),
        display_order=None,
        source="import",
        submission_key=pair_key(item, ranking[0][0]) if plain else content_hash([item, *words]),
        outcome=stated.outcome,
        criterion=stated.criterion,
        strength=stated.strength,
        margin=stated.margin,
        weight=stated.weight,
        confidence=stated.confidence,
    )
