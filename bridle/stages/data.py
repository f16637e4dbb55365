"""Where a project's prompts, texts and demonstrations come from: the playground's world, or what was imported.

Two classes with one interface; a stage asks its project's and need not know which it is. What only the playground knows, the true
quality of answers ("gold"), is empty for a store: no scores, no metrics.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from bridle.compute.randomness import drawn
from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, Prompt, content_hash
from bridle.core.timeline import timed
from bridle.feedback.importing.keeping import DEMONSTRATION
from bridle.feedback.importing.rereading import hashes_in_file
from bridle.feedback.store.ratings import documents
from bridle.feedback.store.ratings import solutions as imported_solutions
from bridle.feedback.store.store import Store
from bridle.models.encoding import Chosen, notes_of
from bridle.playground.critiques import Critic
from bridle.playground.gold import Gold, GoldScore, author_table
from bridle.playground.spec import Family, Quality
from bridle.playground.world import World
from bridle.project.project import Project
from bridle.recipe.online import RewardSource
from bridle.recipe.recipe import Recipe
from bridle.rewards.recorded import check_in, fixed_check, own_checks, sandbox_of
from bridle.rewards.verifiers import (
    GSM8K,
    Check,
    Verifier,
    check_of,
    number_verifier,
    same_check,
    sentence_pattern,
    stated_number,
)
from bridle.stages.observe import gold_metrics

TRAIN, HELDOUT, PROBE, SAMPLE = "prompts", "heldout", "probe", "sample"
RED_TEAM, BENIGN = "red-team", "benign"
STUDY = "comparisons"
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}  # as the plain template writes them
PROBED: tuple[Family, ...] = ("harm", "border")
TOKENIZER_TEXTS = 8000  # texts that the tokenizer is learnt from
BRANCH = "arithmetic"  # the model that the playground's word problems are practised from

T = TypeVar("T")
MixedKind = Literal["texts", "demonstrations", "comparisons", "ratings"]


@dataclass(frozen=True)
class Checkable:
    """Prompts whose answers can be checked, to train on and held out, and what checks them."""

    train: list[Prompt]
    heldout: list[Prompt]
    verifier: Verifier
    identity: Mapping[str, str] = field(
        default_factory=dict
    )  # of what is checked besides plain numbers, for a run's parents


@dataclass(frozen=True)
class Yardstick:
    """How long the playground's yardstick is: mean gold by family and author, and of demonstrations."""

    means: Mapping[Family, Mapping[Quality, float]]
    demonstrations: float


class StoreData:
    """What was imported into the project's store: all of it, but where the recipe gives a number, or a stage needs few. Of more rows those
    are drawn by the seed and keep their order."""

    study: str | None = None  # judgements of every study
    score_by: Literal["gold", "reward"] = "reward"  # who judges two models' answers, unless another is named
    score_name: Literal["gold", "proxy"] = "proxy"  # the score that kept answers carry
    world_hash = ""
    branch = ""
    knows_gold = False

    def __init__(self, project: Project, store: Callable[[], Store]) -> None:
        self.project, self.recipe, self._store = project, project.recipe, store

    @property
    def store(self) -> Store:
        return self._store()

    @timed("data")
    def documents(self, tokens: int) -> list[str]:
        """Text for pretraining: imported texts, and every training prompt with each of its answers, as plain turns."""
        return self.dialogues()

    def dialogues(self) -> list[str]:
        texts, answers = documents(self.store), dict[str, str]()
        for prompt, completion in self.store.completions(split="train"):
            if completion.weight_stamp:
                continue  # a model's own answer is nothing to learn language from
            turns = [f"{SPEAKERS[m.role]}: {m.content}" for m in prompt.messages]
            texts.append("\n".join([*turns, f"Assistant: {completion.text}"]))
            answers[texts[-1]] = completion.id
        rows = self.require(texts, "text to learn from")
        return mixed(self, "texts", rows, texts, lambda text: {answers.get(text) or content_hash(text)})

    def text_parents(self) -> dict[str, str]:
        """What identifies the text for pretraining besides the recipe, and the texts for the tokenizer where those are not all."""
        texts = self.dialogues()
        few = self.tokenizer_texts(texts)
        return {"texts": content_hash(texts), **({"tokenizer": content_hash(few)} if few.notes else {})}

    def tokenizer_texts(self, texts: list[str]) -> Chosen[str]:
        """Those of the texts that the tokenizer is learnt from."""
        return draw_rows(texts, texts, TOKENIZER_TEXTS, self.recipe.seed, "to learn the tokenizer")

    @timed("data")
    def train_prompts(self) -> Chosen[Prompt]:
        """Prompts to answer and to train on."""
        found = self.require(self.store.prompts(split="train"), "training prompts")
        return capped(found, ids_of(found), self.recipe, "train_prompts")

    @timed("data")
    def few_train_prompts(self, most: int, why: str) -> Chosen[Prompt]:
        """Those of them that are enough to measure something on; `why` says what."""
        found = self.train_prompts()
        return draw_rows(found, ids_of(found), most, self.recipe.seed, why)

    @timed("data")
    def heldout_prompts(self) -> Chosen[Prompt]:
        """Prompts of every evaluation."""
        return self.heldout("heldout_prompts")

    @timed("data")
    def compared_heldout(self) -> Chosen[Prompt]:
        """Those of them whose answers are compared."""
        return self.heldout("heldout_prompts", "compared_heldout")

    def heldout(self, *settings: str) -> Chosen[Prompt]:
        found = self.require(self.store.prompts(split="heldout"), "held-out prompts")
        return capped(found, ids_of(found), self.recipe, *settings)

    def probe_prompts(self) -> list[Prompt]:
        """Prompts that are added to an evaluation for what is rare in the natural mix."""
        return []

    @timed("data")
    def demonstrations(self) -> Chosen[tuple[Prompt, str]]:
        """Answers to imitate, each once: those that were written, then those that people preferred, as `data.imitate` wants."""
        kind, store = self.recipe.data.imitate, self.store
        written = {} if kind == "preferred" else by_content(written_answers(store))
        found = written if kind == "written" else {**written, **by_content(preferred_answers(store))}
        what = {
            "written": "demonstrations (data.imitate = 'written')",
            "preferred": "preferred answers (data.imitate = 'preferred')",
        }
        rows = self.require(list(found.values()), what.get(kind, "demonstrations or preferred answers"))
        most = self.recipe.data.demonstrations
        rows = mixed(self, "demonstrations", rows, list(found), lambda row: {Completion(row[0].id, row[1]).id}, most)
        used = capped(rows, names_of(rows), self.recipe, "demonstrations")
        count = sum(key in written for key in by_content(used))
        return Chosen(used, *used.notes, f"{count:,} written, {len(used) - count:,} preferred")

    def good_answers(self, prompts: Sequence[Prompt]) -> list[str | None]:
        """To each prompt an answer that is known to be good: one that was written, or that people preferred; None where there is none."""
        written = [(prompt, answer.text) for prompt, answer in self.store.completions(source=DEMONSTRATION)]
        known = {prompt.id: text for prompt, text in [*preferred_answers(self.store, None), *written]}
        return [known.get(prompt.id) for prompt in prompts]

    def verifier(self, source: RewardSource) -> Verifier:
        """What a reward source of the recipe checks answers by."""
        fixed = source.expected != ""
        return same_check(fixed_check(source), source.expected) if fixed else self.checkable(source).verifier

    @timed("data")
    def checkable(self, source: RewardSource | None = None, heldout_alone: bool = False) -> Checkable:
        """Imported prompts with something to check against, by the recipe's first verifier where none is given: a check in their own
        row, a solution that is a number, or a written answer that ends in "#### number", as GSM8K's do. `heldout_alone`: there need be
        none to train on."""
        source = own_source(self.recipe) if source is None else source
        sandbox, checks, parts, looked_at = sandbox_of(source), dict[str, Check](), list[Chosen[Prompt]](), 0
        kind = "" if source is None else source.check
        stated: dict[str, list[str]] = {}
        for split, setting in (("train", "train_prompts"), ("heldout", "heldout_prompts")):
            solved: dict[str, tuple[Prompt, list[str]]] = {}
            for prompt, text in imported_solutions(self.store, split=split):
                solved.setdefault(prompt.id, (prompt, []))[1].append(text)
                looked_at += 1
            for prompt, completion in self.store.completions(source=DEMONSTRATION, split=split):
                worked = kind in ("", "answer", "symbolic") and stated_number(completion.text, GSM8K) is not None
                solved.setdefault(prompt.id, (prompt, []))[1].extend([completion.text] if worked else [])
                looked_at += 1
            own = own_checks(solved, source, sandbox)
            found = [prompt for name, (prompt, _) in solved.items() if name in own]
            checks |= own
            stated |= {prompt.id: solved[prompt.id][1] for prompt in found}
            noted = used_note(len(found), len(solved), "those with a number to check against")
            parts.append(capped(Chosen(found, *noted), ids_of(found), self.recipe, setting))
        train, heldout = parts
        if not heldout or not (train or heldout_alone):
            lacking = "held-out " if train or heldout_alone else "training " if heldout else ""
            by = f" by check = {kind!r}" if kind else ""
            raise NoUsableRows(
                f"{self.project.store} holds no {lacking}prompts whose answers can be checked{by}: {looked_at:,} solutions and written "
                f"answers were looked at, and {len(checks):,} give a number or a check; import rows {{prompt, solution}}, {{prompt, "
                'completion} whose completion ends in "#### number", or {prompt, constraints}'
            )
        special = source is not None or any(check_in(text) for texts in stated.values() for text in texts)
        identity = {"checks": content_hash(stated)} if special else {}
        plain = {name: "\n".join(text for text in texts if not check_in(text)) for name, texts in stated.items()}
        verifier = Verifier(lambda prompt: checks.get(prompt.id), lambda prompt: plain[prompt.id])
        return Checkable(train, heldout, verifier, identity)

    def require(self, found: list[T], what: str) -> list[T]:
        if not found:
            raise NoUsableRows(
                f"{self.project.store} holds no {what}; `bridle import FILE` brings some, see `bridle import --help`"
            )
        return found

    # ----------------------------------------------------------------------------------- what nobody knows of a store

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion], purpose: str) -> list[GoldScore]:
        """The true quality of each answer where it is known, else nothing."""
        return []

    def observe(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], purpose: str = "log"
    ) -> dict[str, float]:
        """What is known of a step's answers besides their reward, for the log; it steers nothing."""
        return {}

    def shown_work(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        """Of answers that are checked, the share that shows its work, where that is known."""
        return {}

    def yardstick(self) -> Yardstick | None:
        return None

    # ------------------------------------------------------------------------------------------- critique and revision

    def own_constitution(self) -> dict[str, Any] | None:
        """The constitution that the data brings, in the form of its file."""
        return None

    def taught_grading(self) -> tuple[str, dict[str, float]] | None:
        """What the project's critic is asked of an answer, and its verdicts with their grades; None where it was taught none."""
        return None

    def red_team(self, most: int) -> Chosen[Prompt]:
        """Prompts whose answers are to be revised: those that are marked (`red_team` in their meta), or all where none is."""
        found = self.train_prompts()
        marked = [prompt for prompt in found if prompt.meta.get("red_team")]
        note = "those marked as red_team" if marked else "none is marked as red_team, so all are revised"
        rows = Chosen(marked or found, *notes_of(found), f"{len(marked or found):,} of {len(found):,} used ({note})")
        return draw_rows(rows, ids_of(rows), most, self.recipe.seed, "constitution.prompts")

    def benign(self, most: int) -> list[Prompt]:
        """Training prompts that are none of these."""
        found = self.train_prompts()
        rows = [prompt for prompt in found if not prompt.meta.get("red_team")]
        return drawn(rows, ids_of(rows), most, self.recipe.seed) if len(rows) < len(found) else []


class PlaygroundData:
    """The playground: its world writes prompts, texts and demonstrations, the same for the same seed and world, and its rubric knows
    what every answer is worth. Kept in the project's store when first asked for. Where the recipe says fewer later, those are drawn as
    an import's are; of what a stage needs few of the first will do, for the world draws them all alike."""

    study: str | None = STUDY
    score_by: Literal["gold", "reward"] = "gold"
    score_name: Literal["gold", "proxy"] = "gold"
    branch = BRANCH
    knows_gold = True

    def __init__(self, project: Project, store: Callable[[], Store]) -> None:
        self.project, self.recipe, self._store = project, project.recipe, store

    @cached_property
    def world(self) -> World:
        path = self.recipe.world.file
        return World.load(self.project.folder / Path(path) if path else None)

    @property
    def world_hash(self) -> str:
        """Content hash of the world's data file."""
        return content_hash(self.world.spec.model_dump(mode="json"))

    @cached_property
    def gold(self) -> Gold:
        return Gold(self.world)

    @property
    def store(self) -> Store:
        """The project's store, filled with the world's prompts and demonstrations."""
        store = self._store()
        if not store.prompts(source=PROBE, limit=1):
            self.fill(store)
        return store

    def fill(self, store: Store) -> None:
        data, seed, world = self.recipe.data, self.recipe.seed, self.world
        rng = random.Random(f"{seed}/prompts")
        heldout = world.held_out_prompts(data.heldout_prompts, seed=seed)
        probes = [p for family in PROBED for p in world.held_out_prompts(data.probe_prompts, seed + 1, family)]
        store.add_prompts(distinct(world, rng, data.train_prompts), split="train", source=TRAIN)
        demonstrations = [world.demonstration(rng) for _ in range(data.demonstrations)]
        store.add_prompts([prompt for prompt, _ in demonstrations], split="train", source=DEMONSTRATION)
        answers = [Completion(p.id, text) for p, text in demonstrations]
        store.add_completions(answers, source=DEMONSTRATION, author="world")
        store.add_prompts(heldout, split="heldout", source=HELDOUT)
        store.add_prompts(probes, split="heldout", source=PROBE)

    # ------------------------------------------------------------------------------------------ what stages need

    @timed("data")
    def documents(self, tokens: int) -> list[str]:
        rng = random.Random(f"{self.recipe.seed}/documents")
        documents: list[str] = []
        characters = 0
        while characters < tokens * 4:  # a token is 3 to 4 characters here; what is too much is left unread
            documents.append(self.world.document(rng))
            characters += len(documents[-1])
        return documents

    def text_parents(self) -> dict[str, str]:
        return {}

    def tokenizer_texts(self, texts: list[str]) -> Chosen[str]:
        return first_rows(texts, TOKENIZER_TEXTS, "to learn the tokenizer")

    @timed("data")
    def train_prompts(self) -> Chosen[Prompt]:
        found = self.store.prompts(source=TRAIN)
        return capped(found, ids_of(found), self.recipe, "train_prompts")

    def few_train_prompts(self, most: int, why: str) -> Chosen[Prompt]:
        return first_rows(self.train_prompts(), most, why)

    @timed("data")
    def heldout_prompts(self) -> Chosen[Prompt]:
        found = self.store.prompts(source=HELDOUT)
        return capped(found, ids_of(found), self.recipe, "heldout_prompts")

    def compared_heldout(self) -> Chosen[Prompt]:
        return first_rows(self.heldout_prompts(), self.recipe.data.compared_heldout, "data.compared_heldout")

    @timed("data")
    def probe_prompts(self) -> list[Prompt]:
        """Harmful and border prompts beyond those of the natural mix."""
        return self.store.prompts(source=PROBE)

    @timed("data")
    def demonstrations(self) -> Chosen[tuple[Prompt, str]]:
        found = written_answers(self.store)
        return capped(found, names_of(found), self.recipe, "demonstrations")

    @timed("data")
    def branch_demonstrations(self) -> list[tuple[Prompt, str]]:
        """What the branch learns from: word problems with worked answers, then some with answers of uneven skill."""
        section, world = self.recipe.grpo, self.world
        rng = random.Random(f"{self.recipe.seed}/arithmetic")
        problems = [world.prompt(rng, "math") for _ in range(section.branch_problems)]
        worked = [(prompt, world.worked_solution(rng, prompt)) for prompt in problems]
        uneven = [world.demonstration(rng, "math") for _ in range(section.branch_demonstrations)]
        if not worked + uneven:
            raise NoUsableRows("the arithmetic branch needs examples; raise grpo.branch_problems")
        return worked + uneven

    def good_answers(self, prompts: Sequence[Prompt]) -> list[str | None]:
        """What a good author answers to each."""
        return [self.world.answer(random.Random(prompt.id), prompt, "good") for prompt in prompts]

    def verifier(self, source: RewardSource) -> Verifier:
        """What a reward source of the recipe checks answers by: the problem's number, stated as the world states it, or in another way."""
        if source.expected != "":
            return same_check(fixed_check(source), source.expected)
        if not source.check:
            return self.checkable().verifier
        sandbox = sandbox_of(source)
        return Verifier(
            lambda p: check_of(source.check, p.meta["answer"], sandbox) if "answer" in p.meta else None,
            lambda p: str(p.meta["answer"]),
        )

    @timed("data")
    def checkable(self, source: RewardSource | None = None, heldout_alone: bool = False) -> Checkable:
        """Word problems of its own making."""
        data, world, seed = self.recipe.data, self.world, self.recipe.seed
        rng = random.Random(f"{seed}/grpo-prompts")
        drawn = {p.id: p for p in (world.prompt(rng, "math") for _ in range(data.train_prompts))}
        heldout = world.held_out_prompts(data.heldout_prompts, seed + 2, "math")
        pattern = sentence_pattern(world.spec.math.answer)
        return Checkable(list(drawn.values()), heldout, number_verifier(lambda p: p.meta.get("answer"), pattern))

    # ------------------------------------------------------------------------------------------ gold and labelers

    @timed("gold")
    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion], purpose: str) -> list[GoldScore]:
        pairs = zip(prompts, completions, strict=True)
        return [self.gold.score(p, c.text, c.finish_reason, purpose) for p, c in pairs]

    def observe(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], purpose: str = "log"
    ) -> dict[str, float]:
        return gold_metrics(self.score(prompts, completions, purpose), prompts)

    def shown_work(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        scores = self.score(prompts, completions, "log")
        return {"worked": float(np.mean([score.flags["worked"] > 0 for score in scores]))}

    def yardstick(self) -> Yardstick | None:
        """What keeps the yardstick honest: what each kind of author is worth."""
        table = author_table(self.world, self.gold, random.Random(self.recipe.seed), 200)
        return Yardstick(table.means, table.demonstrations)

    # ------------------------------------------------------------------------------------------- critique and revision

    @cached_property
    def critic(self) -> Critic:
        """What a critic should say of answers. UsageError where the world has no constitution."""
        return Critic(self.world, self.gold)

    def own_constitution(self) -> dict[str, Any] | None:
        return None if self.world.spec.constitution is None else self.critic.tables()

    def taught_grading(self) -> tuple[str, dict[str, float]] | None:
        return None if self.world.spec.constitution is None else (self.critic.question(), self.critic.grades())

    @timed("data")
    def red_team(self, most: int) -> Chosen[Prompt]:
        """Harmful prompts to train on, which the world writes, into the store."""
        rng = random.Random(f"{self.recipe.seed}/red-team")
        found = list({p.id: p for p in (self.world.prompt(rng, "harm") for _ in range(4 * most))}.values())[:most]
        self.store.add_prompts(found, split="train", source=RED_TEAM)
        return Chosen(found, f"{len(found):,} that its world writes (constitution.prompts)")

    def benign(self, most: int) -> list[Prompt]:
        rng = random.Random(f"{self.recipe.seed}/benign")
        families = [family for family in self.world.families if family != "harm"]
        weights = [self.world.spec.families[family].weight for family in families]
        drawn_families = rng.choices(families, weights, k=4 * most)
        found = list({p.id: p for p in (self.world.prompt(rng, family) for family in drawn_families)}.values())[:most]
        self.store.add_prompts(found, split="train", source=BENIGN)
        return found


def own_source(recipe: Recipe) -> RewardSource | None:
    """The recipe's first verifier that checks against what a prompt's own row states; None where there is none, or it names no check."""
    own = [source for source in recipe.reward_source if source.kind == "verifier" and source.expected == ""]
    return own[0] if own and (own[0].check or own[0].allow_execution) else None


def written_answers(store: Store) -> list[tuple[Prompt, str]]:
    """Demonstrations of the training split, as they were written."""
    return [(p, c.text) for p, c in store.completions(source=DEMONSTRATION, split="train")]


def preferred_answers(store: Store, split: str | None = "train") -> list[tuple[Prompt, str]]:
    """Of each judgement of a prompt of the split the best answer, of several the first; a judgement that calls all equal prefers none."""
    judged = [(item, one.ranking) for item, one in store.judgements(split=split) if len(one.ranking) > 1]
    return [(item.prompt, item.completions[ranking[0][0]].text) for item, ranking in judged]


def by_content(demonstrations: Sequence[tuple[Prompt, str]]) -> dict[str, tuple[Prompt, str]]:
    """Each once, by what names it."""
    return dict(zip(names_of(demonstrations), demonstrations, strict=True))


def names_of(demonstrations: Sequence[tuple[Prompt, str]]) -> list[str]:
    return [f"{prompt.id} {text}" for prompt, text in demonstrations]


def ids_of(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def capped(rows: list[T], names: Sequence[str], recipe: Recipe, *settings: str) -> Chosen[T]:
    """As many of the rows as the least of these settings of [data] allows (0: all), with a note where that is not all."""
    caps = [(most, setting) for setting in settings if (most := dict(recipe.data)[setting])]
    most, setting = min(caps, default=(len(rows), ""))
    return draw_rows(rows, names, most, recipe.seed, f"data.{setting}")


def draw_rows(rows: list[T], names: Sequence[str], most: int, seed: int, why: str) -> Chosen[T]:
    """`most` of the rows, by the seed. What was said of the rows before still holds of them, here and in `first_rows`."""
    return Chosen(drawn(rows, names, most, seed), *notes_of(rows), *used_note(most, len(rows), why))


def mixed(
    data: "StoreData | PlaygroundData", kind: MixedKind, rows: list[T], names: Sequence[str], held: Callable[[T], Collection[str]],
    most: int = 0,
) -> Chosen[T]:  # fmt: skip
    """Of the rows of a kind, `most` at most (0: all), from each file its share (data.mixture); all where the recipe says nothing. `held`:
    the hashes of what a row holds. It is of the first file that has all of it. Which ones: as `drawn` draws."""
    weights = data.recipe.data.mixture.get(kind, {})
    if not weights:
        return Chosen(rows, *notes_of(rows))
    folder = data.project.folder
    files = {p: hashes_in_file(data.store, p if p.startswith("hf://") else folder / p) for p in weights if p}
    of_row = [next((path for path, there in files.items() if there.issuperset(held(row))), "") for row in rows]
    places = {path: [i for i, one in enumerate(of_row) if one == path] for path in weights}
    if lacking := [path or "what stands in no file" for path, found in places.items() if not found]:
        raise NoUsableRows(
            f"data.mixture.{kind} names {lacking[0]}, which holds none of the {len(rows):,} {kind} of {data.project.store}; leave it out, "
            "or import rows of that kind"
        )
    taken, counts = set[int](), mixed_counts(list(map(len, places.values())), list(weights.values()), most or len(rows))
    for count, found in zip(counts, places.values(), strict=True):
        taken.update(drawn(found, [names[i] for i in found], count, data.recipe.seed))
    parts = [
        f"{n:,} of {len(there):,} from {p or 'others'}" for n, (p, there) in zip(counts, places.items(), strict=True)
    ]
    note = f"{len(taken):,} of {len(rows):,} used (data.mixture.{kind}: {', '.join(parts)})"
    return Chosen([rows[i] for i in sorted(taken)], *notes_of(rows), note)


def mixed_counts(sizes: Sequence[int], weights: Sequence[float], most: int) -> list[int]:
    """How many rows of each source, taken in turn by weight until one has no more or there are `most`."""
    taken = [0] * len(sizes)
    for _ in range(most):
        place = next_source(taken, weights)
        if taken[place] == sizes[place]:
            break
        taken[place] += 1
    return taken


def next_source(taken: Sequence[int], weights: Sequence[float]) -> int:
    """Whose turn it is, so that at every point each has given its share as nearly as whole rows allow."""
    return min(range(len(weights)), key=lambda i: (taken[i] + 1) / weights[i])


def first_rows(rows: list[T], most: int, why: str) -> Chosen[T]:
    return Chosen(rows[:most], *notes_of(rows), *used_note(most, len(rows), why))


def practice_parents(prompts: Sequence[Prompt], imitated: Sequence[tuple[Prompt, str]]) -> dict[str, str]:
    """What identifies the data of a run that practises besides the recipe: its prompts, and the answers that it imitates, each where
    something is to be said of which they are."""
    drawn_from = {"prompts": content_hash(ids_of(prompts))} if notes_of(prompts) else {}
    return drawn_from | ({"demonstrations": content_hash(names_of(imitated))} if notes_of(imitated) else {})


def used_note(count: int, found: int, why: str) -> tuple[str, ...]:
    """What is said where fewer are used than there are."""
    return (f"{count:,} of {found:,} used ({why})",) if count < found else ()


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
