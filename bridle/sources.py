"""Floor 8: where a project's prompts, texts and demonstrations come from: the playground's world, or what was imported.

The stages ask here and need not know which it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt, Reward, content_hash
from bridle.core.runlog import Progress, Project
from bridle.core.timeline import timed
from bridle.feedback.imports import DEMONSTRATION
from bridle.feedback.store import Store
from bridle.models.template import Template
from bridle.playground.gold import Gold, GoldScore
from bridle.playground.labelers import rank
from bridle.playground.spec import Family
from bridle.playground.world import World
from bridle.rewards.verifiers import GSM8K, number_verifier, sentence_pattern, stated_number

TRAIN, HELDOUT, PROBE, SAMPLE = "prompts", "heldout", "probe", "sample"
STUDY = "comparisons"
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}  # as the plain template writes them
SITTING = 40  # items that a simulated labeler judges before a rest
PROBED: tuple[Family, ...] = ("harm", "border")

T = TypeVar("T")


@dataclass
class Sources:
    """A project's store, and on the playground its world and gold, opened when first asked for."""

    project: Project
    progress: Progress
    _store: Store | None = field(default=None, init=False)

    @property
    def playground(self) -> bool:
        return self.project.recipe.data.source == "playground"

    @cached_property
    def world(self) -> World:
        path = self.project.recipe.world.file
        return World.load(self.project.folder / Path(path) if path else None)

    @property
    def world_hash(self) -> str:
        """Content hash of the world's data file; empty where there is no world."""
        return content_hash(self.world.spec.model_dump(mode="json")) if self.playground else ""

    @cached_property
    def gold(self) -> Gold:
        return Gold(self.world)

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store.open(self.project.store)
        return self._store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    # ------------------------------------------------------------------ filling the store of a playground project

    def fill_playground(self) -> None:
        """Prompts and demonstrations of the world, once; the same for the same seed and world."""
        recipe, world, store = self.project.recipe, self.world, self.store
        if store.prompts(source=PROBE, limit=1):
            return
        rng = random.Random(f"{recipe.seed}/prompts")
        heldout = world.held_out_prompts(recipe.data.heldout_prompts, seed=recipe.seed)
        probes = [
            p for family in PROBED for p in world.held_out_prompts(recipe.data.probe_prompts, recipe.seed + 1, family)
        ]
        store.add_prompts(distinct(world, rng, recipe.data.train_prompts), split="train", source=TRAIN)
        shown = [world.demonstration(rng) for _ in range(recipe.data.demonstrations)]
        store.add_prompts([prompt for prompt, _ in shown], split="train", source=DEMONSTRATION)
        store.add_completions([Completion(p.id, text) for p, text in shown], source=DEMONSTRATION, author="world")
        store.add_prompts(heldout, split="heldout", source=HELDOUT)
        store.add_prompts(probes, split="heldout", source=PROBE)

    # ------------------------------------------------------------------------------------------ what stages need

    @timed("data")
    def documents(self, template: Template | None, count_tokens: int) -> list[str]:
        """Text for pretraining. The playground writes as much as is asked for; a store gives its training dialogues."""
        if not self.playground:
            return self.dialogues(template)
        rng = random.Random(f"{self.project.recipe.seed}/documents")
        documents: list[str] = []
        characters = 0
        while characters < count_tokens * 4:  # a token is 3 to 4 characters here; what is too much is left unread
            documents.append(self.world.document(rng))
            characters += len(documents[-1])
        return documents

    def dialogues(self, template: Template | None) -> list[str]:
        """Every training prompt with each of its answers, as plain turns."""
        texts = []
        for prompt, completion in self.store.completions(split="train"):
            if completion.weight_stamp:
                continue  # a model's own answer is nothing to learn language from
            turns = [f"{SPEAKERS[m.role]}: {m.content}" for m in prompt.messages]
            texts.append("\n".join([*turns, f"Assistant: {completion.text}"]))
        if not texts:
            raise NoUsableRows(f"{self.project.store} holds no text to learn from; `bridle import FILE` brings some")
        return texts

    @timed("data")
    def train_prompts(self) -> list[Prompt]:
        """Prompts to answer and to train on."""
        limit = self.project.recipe.data.train_prompts
        if self.playground:
            self.fill_playground()
            return self.store.prompts(source=TRAIN, limit=limit)
        return require(self.store.prompts(split="train", limit=limit), "training prompts", self.project)

    @timed("data")
    def heldout_prompts(self) -> list[Prompt]:
        """Prompts of every evaluation, in the natural mix."""
        limit = self.project.recipe.data.heldout_prompts
        if self.playground:
            self.fill_playground()
            return self.store.prompts(source=HELDOUT, limit=limit)
        return require(self.store.prompts(split="heldout", limit=limit), "held-out prompts", self.project)

    @timed("data")
    def probe_prompts(self) -> list[Prompt]:
        """Playground: harmful and border prompts beyond those of the natural mix."""
        return self.store.prompts(source=PROBE) if self.playground else []

    @timed("data")
    def demonstrations(self) -> list[tuple[Prompt, str]]:
        """Answers to imitate: written ones where there are any, else the answers that people preferred."""
        if self.playground:
            self.fill_playground()
        limit = self.project.recipe.data.demonstrations
        written = [(p, c.text) for p, c in self.store.completions(source=DEMONSTRATION, split="train")]
        if written:
            return written[:limit]
        chosen: dict[str, tuple[Prompt, str]] = {}
        for item, judgement in self.store.judgements(split="train"):
            best = item.completions[judgement.ranking[0][0]]
            chosen.setdefault(best.id, (item.prompt, best.text))
        return require(list(chosen.values())[:limit], "demonstrations or preferred answers", self.project)

    @timed("data")
    def arithmetic_examples(self) -> list[tuple[Prompt, str]]:
        """Playground: word problems with worked answers, then some with answers of uneven skill."""
        recipe, world = self.project.recipe, self.world
        rng = random.Random(f"{recipe.seed}/arithmetic")
        problems = [world.prompt(rng, "math") for _ in range(recipe.grpo.branch_problems)]
        worked = [(prompt, world.worked_solution(rng, prompt)) for prompt in problems]
        uneven = [world.demonstration(rng, "math") for _ in range(recipe.grpo.branch_demonstrations)]
        if not worked + uneven:
            raise NoUsableRows("the arithmetic branch needs examples; raise grpo.branch_problems")
        return worked + uneven

    @timed("data")
    def checkable(self) -> tuple[list[Prompt], list[Prompt], Reward]:
        """Prompts to train on, held-out ones, and what checks an answer.

        On the playground word problems of its own making; elsewhere imported prompts with a written answer that ends in
        "#### number", as GSM8K's do.
        """
        data = self.project.recipe.data
        if self.playground:
            world, seed = self.world, self.project.recipe.seed
            rng = random.Random(f"{seed}/grpo-prompts")
            drawn = {p.id: p for p in (world.prompt(rng, "math") for _ in range(data.train_prompts))}
            heldout = world.held_out_prompts(data.heldout_prompts, seed + 2, "math")
            verifier = number_verifier(
                lambda prompt: prompt.meta.get("answer"), sentence_pattern(world.spec.math.answer)
            )
            return list(drawn.values()), heldout, verifier
        solutions: dict[str, object] = {}
        splits: dict[str, list[Prompt]] = {"train": [], "heldout": []}
        for split, found in splits.items():
            for prompt, completion in self.store.completions(source=DEMONSTRATION, split=split):
                number = stated_number(completion.text, GSM8K)
                if number is not None and prompt.id not in solutions:
                    solutions[prompt.id] = number
                    found.append(prompt)
        if not splits["train"] or not splits["heldout"]:
            raise NoUsableRows(
                f"{self.project.store} holds no prompts whose answers can be checked; import rows {{prompt, completion}} "
                'whose completion ends in "#### number"'
            )
        verifier = number_verifier(lambda prompt: solutions.get(prompt.id), GSM8K)
        return splits["train"][: data.train_prompts], splits["heldout"][: data.heldout_prompts], verifier

    # ------------------------------------------------------------------------------------------ gold and labelers

    @timed("gold")
    def gold_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], purpose: str
    ) -> list[GoldScore]:
        pairs = zip(prompts, completions, strict=True)
        return [self.gold.score(p, c.text, c.finish_reason, purpose) for p, c in pairs]

    @timed("label")
    def simulate_labels(self) -> int:
        """Simulated people rank every open item of the study, blind and in random order; returns their number."""
        labelers = self.world.spec.labelers
        rng = random.Random(f"{self.project.recipe.seed}/labels")
        seen = dict.fromkeys((labeler.name for labeler in labelers), 0)
        judgements = []
        for item in self.store.unjudged_items(STUDY):
            labeler = rng.choice(labelers)
            order = list(range(len(item.completions)))
            rng.shuffle(order)
            scores = self.gold_scores([item.prompt] * len(order), item.completions, "labelers")
            texts = [c.text for c in item.completions]
            ranking = rank(labeler, rng, item.prompt, texts, scores, order, seen[labeler.name] % SITTING)
            seen[labeler.name] += 1
            judgements.append(
                Judgement(
                    item_id=item.id,
                    labeler=labeler.name,
                    labeler_kind=LabelerKind.SIMULATED,
                    ranking=ranking,
                    display_order=tuple(order),
                    submission_key=f"{item.id}/{labeler.name}",
                )
            )
        return self.store.add_judgements(judgements)


def distinct(world: World, rng: random.Random, count: int) -> list[Prompt]:
    """`count` training prompts of distinct texts."""
    found: dict[str, Prompt] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        prompt = world.prompt(rng)
        found.setdefault(prompt.id, prompt)
    if len(found) < count:
        raise NoUsableRows(
            f"the world gave {len(found)} distinct training prompts where {count} were asked for; ask for fewer"
        )
    return list(found.values())


def require(found: list[T], what: str, project: Project) -> list[T]:
    if not found:
        raise NoUsableRows(
            f"{project.store} holds no {what}; `bridle import FILE` brings some, see `bridle import --help`"
        )
    return found
