"""Stores that hold a little of everything, drawn at random; and what a store holds, to be compared."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from bridle.core.records import Completion, FinishReason, Judgement, LabelerKind, Message, Prompt, Rating, content_hash
from bridle.feedback.exporting.whole import WHAT_WAS_SAID, store_rows_out
from bridle.feedback.store import tables
from bridle.feedback.store.ratings import add_documents, add_imported_file, add_ratings, add_solutions
from bridle.feedback.store.store import LearntFrom, Store

WORDS = ("Ja!", "Nein.", "因为", "=1+1", "'quoted'", "a,b\nc", "\u2028", "  ", "🐈", "<|x|>", "-2", "@home", "")


class Drawn:
    """A store filled from a seed."""

    def __init__(self, store: Store, seed: int, prompts: int = 4) -> None:
        self.store, self.random = store, random.Random(seed)
        self.prompts = [self.prompt(n) for n in range(prompts)]
        store.add_prompts(self.prompts, split=None, source="world", held_out_share=0.3)
        self.groups = [
            [self.answer(prompt, n) for n in range(self.random.choice((2, 2, 3, 4)))] for prompt in self.prompts
        ]
        for group in self.groups:
            store.add_completions(
                group, source=self.random.choice(("sample", "import")), author=self.random.choice((None, "ann"))
            )
        store.add_completions([replace(self.groups[0][0], weight_stamp="other+1")], source="sample")
        self.items = store.add_items(self.groups, study=self.random.choice(("first", "import")))
        self.judgements = [self.judgement(n) for n in range(3 * prompts)]
        store.add_judgements(self.judgements)
        self.extras()

    def text(self, n: int) -> str:
        return " ".join([f"{n}", *self.random.choices(WORDS, k=self.random.randrange(4))])

    def prompt(self, n: int) -> Prompt:
        turns = [
            Message("user", "Hi " + self.text(n)),
            Message("assistant", self.text(n)),
            Message("user", self.text(n)),
        ]
        meta = {"lang": "de", "n": [n, 0.1], "deep": {"x": None}} if n % 2 else {}
        return Prompt(tuple(turns[self.random.choice((0, 2)) :]), meta)

    def answer(self, prompt: Prompt, n: int) -> Completion:
        if self.random.random() < 0.5:
            return Completion(prompt.id, self.text(n))
        ids = tuple(self.random.randrange(500) for _ in range(3))
        logprobs = tuple(-self.random.random() for _ in ids)
        how = {"temperature": 1.0, "seed": n}
        return Completion(prompt.id, self.text(n), ids, logprobs, FinishReason.STOP, "sft+0", how)

    def judgement(self, n: int) -> Judgement:
        place = self.random.randrange(len(self.items))
        slots = list(range(len(self.groups[place])))
        self.random.shuffle(slots)
        cut = self.random.randrange(1, len(slots) + 1)
        ranking = (tuple(sorted(slots[:cut])), tuple(sorted(slots[cut:])))[: 1 + (cut < len(slots))]
        who = self.random.choice(("ann", "ben", "cyd"))
        return Judgement(
            self.items[place], who, LabelerKind.PERSON if who == "ann" else LabelerKind.AI, ranking, None if n % 3 else tuple(slots),
            "study", f"key {n}", seconds=self.random.choice((None, 1.25)), outcome="both_bad" if len(ranking) == 1 and n % 2 else "",
            criterion=self.random.choice((None, None, "harmless")), strength=self.random.choice((None, 2)),
            margin=self.random.choice((None, 0.5)), weight=self.random.choice((1.0, 2.0)), confidence=0.25,
            rationale=self.text(n) if n % 2 else "", lang="en", marks=("late",) if n % 4 == 0 else (), wall_seconds=3.5,
            client={"viewport": [1, 2.5]} if n % 5 == 0 else {},
        )  # fmt: skip

    def extras(self) -> None:
        store, first = self.store, self.judgements[0]
        store.correct(replace(first, submission_key="again"), supersedes=first.id)
        answer, person = self.groups[0][0], LabelerKind.PERSON
        add_ratings(store, [
            Rating(answer, "ann", person, "vote", 1), Rating(answer, "ann", person, "score", 3.5, criterion="clear"),
            Rating(answer, "ann", person, "steps", None, (("one", 1.0), ("two", -1.0))),
            Rating(answer, "ann", person, "flag", None, criterion="private", source="study", note="a name", judgement_id=first.id),
        ])  # fmt: skip
        add_solutions(store, [(self.prompts[0], "42")])
        add_documents(store, ["Cats sleep. " + self.text(1)])
        snapshots = [
            store.take_snapshot(split=self.split()),
            store.take_snapshot(split=self.split(), reliability={"ann": 0.5}),
        ]
        store.add_model_version("sft", kind="sft", weights_sha256="a" * 64, learnt=LearntFrom({"": snapshots[0].id}))
        store.add_model_version("reward", kind="reward", weights_sha256="b" * 64, parent="a" * 64)
        add_imported_file(store, "c" * 64, "rows.jsonl", {"rows": 1})
        store.exclude("judgement", self.judgements[1].id, reason="a slip — 错", by="me")
        when = {"created_at": "2026-01-02T03:04:05.678+00:00"}
        guideline = {"study": "first", "version": 1, "lang": "en", "markdown": "# Be kind"}
        numbers = self.numbers()
        rows: list[tuple[sa.Table, dict[str, Any]]] = [
            (tables.study, {"name": "first", "state": "open", "settings": {"overlap": 2}}),
            (tables.guideline, {"sha256": content_hash(list(guideline.values())), **guideline}),
            (tables.adjudication, {"item_sha256": first.item_id, "judgement_sha256": first.id, "adjudicated_by": "ann"}),
            (tables.account, {"labeler": "ann", "role": "owner", "password_hash": "argon", "profile": {"speaks": ["de"]}}),
            (tables.credential, {"sha256": "d" * 64, "labeler": "ann", "kind": "token", "scopes": []}),
            (tables.assignment, {"item_id": numbers[0], "labeler": "ann", "display_order": [1, 0], "state": "open"}
             | {"lease_until": when["created_at"]}),
        ]  # fmt: skip
        with store.writing() as connection:
            for table, row in rows:
                connection.execute(sa.insert(table), [row | when])
            (assignment,) = connection.execute(sa.select(tables.assignment.c.id)).scalars()
            draft = {"assignment_id": assignment, "body": {"note": "half"}, "saved_at": when["created_at"]}
            connection.execute(sa.insert(tables.draft), [draft])
            score = {"completion_id": numbers[1], "weights_sha256": "b" * 64, "task": "helpful", "score": 0.25}
            connection.execute(sa.insert(tables.completion_score), [score])
            connection.execute(
                sa.update(tables.item).values(gold=[[0], [1]], need=3, priority=0.5, topic="cats", acquisition="gold")
            )
            learnt = {"snapshot_sha256": snapshots[0].id, "shaped_by": ["b" * 64]}
            connection.execute(
                sa.update(tables.model_version).where(tables.model_version.c.name == "reward").values(learnt)
            )

    def split(self) -> str:
        with self.store.reading() as connection:
            query = sa.select(tables.prompt.c.split).select_from(tables.prompt).join(tables.item).join(tables.judgement)
            query = query.where(
                tables.judgement.c.criterion.is_(None), tables.judgement.c.sha256.not_in([self.judgements[0].id])
            )
            return str(connection.execute(query).scalars().first())

    def numbers(self) -> tuple[int, int]:
        with self.store.reading() as connection:
            return tuple(
                connection.execute(sa.select(table.c.id)).scalars().first() or 0
                for table in (tables.item, tables.completion)
            )  # type: ignore[return-value]


def content(store: Store, wanted: Sequence[sa.Table] = WHAT_WAS_SAID) -> list[str]:
    """Every row of these tables."""
    with store.reading() as connection:
        return [json.dumps(row, sort_keys=True) for row in store_rows_out(connection, wanted)]
