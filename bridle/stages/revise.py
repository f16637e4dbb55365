"""Critique and revision by a constitution: a model criticises its own answers, rewrites them, and what came of it is kept whole.

    answer ── critique by a principle ── revision ── critique by another ── revision ── …

Each step is a completion in the store, with the weights that wrote it, under the prompt that was asked: its turns are the dialogue so far,
its meta says of which prompt it is, in which round, by which principle (`chain`). A step that is there is not asked again, so a run that
was ended goes on where it was. What comes of it: answers to imitate (source "revised"), pairs of revised and first answer, judged by the
critic by the criterion "constitution".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from bridle.compute.randomness import derived_seed
from bridle.core.errors import NoUsableRows
from bridle.core.files import finite_or_none, write_text
from bridle.core.records import Completion, FinishReason, Judgement, LabelerKind, Prompt, content_hash
from bridle.core.text import json_text
from bridle.core.timeline import timed
from bridle.feedback.people.chains import CORRECTED
from bridle.feedback.store.reading import taken_down
from bridle.generation.sampling import Sampling
from bridle.models.encoding import Chosen, notes_of
from bridle.models.policy import Policy
from bridle.project.kept import read_parents
from bridle.project.progress import count_through
from bridle.project.run import Run
from bridle.rewards.constitution.constitution import Constitution, Principle
from bridle.rewards.constitution.dialogues import (
    VERDICTS,
    Step,
    critique_prompt,
    draw_principle,
    read_verdict,
    revise_once,
)
from bridle.stages.adapters import adapter_parents
from bridle.stages.critic import CRITIC, ask_model, project_constitution, train_critic
from bridle.stages.observe import probe_metrics
from bridle.stages.sft import imitate_demonstrations
from bridle.stages.workspace import Method, Variant, Work, done_before, require_model, stage_key

CHAIN = "chain"  # the split of prompts that are asked on the way: no prompt to train on
ANSWERED, CRITIQUE, REVISION, REVISED, BENIGN, KEPT = "answered", "critique", "revision", "revised", "benign", "kept"
CRITERION = STUDY_OF_PAIRS = "constitution"
CHUNK = 64  # answers that are revised, and stored, together
TRIED = 4  # times as many answers to benign prompts are asked for, at most, as are to be kept


@dataclass
class Chain:
    """One answer on its way: as it was first, and each step."""

    prompt: Prompt
    first: Completion
    steps: list[Step] = field(default_factory=list)

    @property
    def answer(self) -> str:
        return self.steps[-1].answer if self.steps else self.first.stripped

    @property
    def revised(self) -> bool:
        return self.answer != self.first.stripped

    def noted(self, number: int, principle: Principle) -> Prompt:
        """The prompt with what the prompts that are asked on the way carry along."""
        note = {"of": self.prompt.id, "answer": self.first.id, "round": number + 1, "principle": principle.name}
        return replace(self.prompt, meta={CHAIN: note})


@dataclass
class Replies:
    """Asks a model, and keeps what it replied; what the store holds of a run is not asked again."""

    work: Work
    policy: Policy
    run_key: str
    seed: int
    known: dict[tuple[str, str], Completion] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for source in (ANSWERED, CRITIQUE, REVISION, BENIGN):
            rows = self.work.store.completions(source=self.name(source), weight_stamp=self.policy.stamp)
            self.known |= {(source, prompt.id): one for prompt, one in rows}

    def name(self, source: str) -> str:
        """The source of this run's completions: the same text, by the same weights, of another run is a row of its own."""
        return source_of(source, self.run_key)

    def ask(self, prompts: Sequence[Prompt], source: str, temperature: float) -> list[Completion | None]:
        wanted = [prompt for prompt in dict.fromkeys(prompts) if (source, prompt.id) not in self.known]
        sampling = Sampling(self.work.recipe.sampling.max_new_tokens, temperature)
        found = [one for one in ask_model(self.work, self.policy, wanted, sampling, self.seed) if one is not None]
        asked = {prompt.id: prompt for prompt in wanted}
        with timed("store"), self.work.store.transaction() as one:
            if source in (CRITIQUE, REVISION):
                one.add_prompts([asked[reply.prompt_id] for reply in found], split=CHAIN, source=source)
            one.add_completions(found, source=self.name(source))
        self.known |= {(source, reply.prompt_id): reply for reply in found}
        return [self.known.get((source, prompt.id)) for prompt in prompts]

    def texts(self, prompts: Sequence[Prompt], source: str, temperature: float) -> list[str | None]:
        """The same as text; none of a revision that was cut off."""
        found = self.ask(prompts, source, temperature)
        return [None if one is None or (source == REVISION and not ended(one)) else one.text for one in found]


def source_of(source: str, run_key: str) -> str:
    return f"{source}:{run_key[:12]}"


def revise(work: Work, reuse: bool = False) -> dict[str, Any]:
    """Answer the prompts, and criticise and revise the answers, for `constitution.rounds` rounds."""
    recipe, section = work.recipe, work.recipe.constitution
    start = section.start or "sft"
    with work.alone("revise"):
        ours, model = project_constitution(work), section.model or start
        if not section.model and work.data.own_constitution() is not None:
            train_critic(work, reuse=True)
            model = CRITIC
        prompts = still_there(work, work.data.red_team(section.prompts))
        parents = {"start": require_model(work, start), "critic": require_model(work, model)}
        folders = {"folders": {"start": f"models/{start}", "critic": f"models/{model}"}}
        parents |= {"constitution": ours.hash, "data": content_hash([prompt.id for prompt in prompts])}
        asked = [section.rounds, section.temperature, section.benign, TRIED]
        key = content_hash([stage_key(recipe, ("model", "sampling"), parents), asked])
        if (before := done_before(work, "revise", key, reuse)) is not None:
            return before
        with work.start(
            "revise", f"{model} criticises and revises answers of {start}", key, {**parents, **folders}
        ) as run:
            answering = Replies(
                work, work.read_policy(work.project.model(start)), key, derived_seed(recipe.seed, "revise", 0)
            )
            critic = work.read_policy(work.project.model(model))
            replies = Replies(work, critic, key, derived_seed(recipe.seed, "revise", 1))
            chains = first_answers(answering, prompts)
            run_rounds(work, run, replies, chains, ours)
            kept = keep_answers(work, chains, key, critic.stamp)
            benign = keep_benign(run, answering, replies, round(section.benign * len(chains)), ours)
            keep_pairs(work, chains, critic.stamp, ours)
            write_chains(run, chains)
            reported = {
                "answers": len(chains),
                "kept": kept,
                **benign,
                "by_round": round_metrics(work, chains, section.rounds),
            }
            return run.finish({**reported, "by_principle": principle_metrics(chains)})


def first_answers(answering: Replies, prompts: Sequence[Prompt]) -> list[Chain]:
    """An answer of the model to each prompt."""
    wanted, chains = answering.work.fitting(answering.policy, prompts), list[Chain]()
    report = count_through(len(wanted), answering.work.progress)
    for first in range(0, len(wanted), CHUNK):
        asked = wanted[first : first + CHUNK]
        pairs = zip(asked, answering.ask(asked, ANSWERED, 1.0), strict=True)
        chains += [Chain(prompt, answer) for prompt, answer in pairs if answer is not None]
        report(len(asked))
    return chains


def still_there(work: Work, prompts: Sequence[Prompt]) -> Chosen[Prompt]:
    """Without what was taken down, which data that is drawn anew may bring again."""
    with work.store.reading() as connection:
        gone = taken_down(connection)
    return Chosen([prompt for prompt in prompts if prompt.id not in gone], *notes_of(prompts))


def run_rounds(work: Work, run: Run, replies: Replies, chains: Sequence[Chain], ours: Constitution) -> None:
    """All rounds of one chunk of answers, then those of the next."""
    rounds = work.recipe.constitution.rounds
    report = count_through(len(chains) * rounds, work.progress)
    for first in range(0, len(chains), CHUNK):
        chunk = chains[first : first + CHUNK]
        for number in range(rounds):
            run.stop_if_asked(f"revise stopped after {first} of {len(chains)} answers")
            revise_chunk(replies, chunk, number, ours)
            report(len(chunk))


def revise_chunk(replies: Replies, chunk: Sequence[Chain], number: int, ours: Constitution) -> None:
    """One round of each of these answers, by a principle that is drawn for it."""
    recipe, limit = replies.work.recipe, replies.policy.module.config.max_positions
    principles = [draw_principle(ours, chain.prompt, number, recipe.seed) for chain in chunk]
    prompts = [chain.noted(number, principle) for chain, principle in zip(chunk, principles, strict=True)]
    criticise = partial(replies.texts, source=CRITIQUE, temperature=0.0)
    rewrite = partial(replies.texts, source=REVISION, temperature=recipe.constitution.temperature)
    steps = revise_once(ours, prompts, [chain.answer for chain in chunk], principles, criticise, rewrite)
    if all(step.verdict == "not_asked" for step in steps):
        raise NoUsableRows(
            f"none of {len(steps)} critiques leaves room for {recipe.sampling.max_new_tokens} new tokens in the context of {limit}; lower "
            "sampling.max_new_tokens, or name shorter principles in constitution.file"
        )
    for chain, step in zip(chunk, steps, strict=True):
        chain.steps.append(step)


def ended(reply: Completion | None) -> bool:
    """Whether it came, and was not cut off."""
    return reply is not None and reply.finish_reason is not FinishReason.LENGTH


# ---------------------------------------------------------------------------------------------------- what is kept of it


def keep_answers(work: Work, chains: Sequence[Chain], key: str, stamp: str) -> int:
    """The last answer of each chain, to its own prompt, but for one that was cut off and never revised; how many."""
    whole = [chain for chain in chains if chain.answer and (chain.revised or ended(chain.first))]
    found = [Completion(c.prompt.id, c.answer, weight_stamp=stamp, sampling={"rounds": len(c.steps)}) for c in whole]
    work.store.add_completions(found, source=source_of(REVISED, key))
    return len(found)


def keep_benign(run: Run, answering: Replies, replies: Replies, wanted: int, ours: Constitution) -> dict[str, int]:
    """Own answers to benign prompts that are imitated beside the revised ones, so that the model does not learn to refuse whatever it is
    asked: those in which the critic finds no fault by any principle, for their faults would be imitated too. How many were asked for, and
    are kept."""
    work, kept, asked = answering.work, list[Completion](), 0
    prompts = still_there(work, work.data.benign(TRIED * wanted))
    report = count_through(wanted, work.progress)
    while len(kept) < wanted and asked < len(prompts):
        run.stop_if_asked(f"revise stopped after {asked} answers to benign prompts")
        chunk = work.fitting(answering.policy, prompts[asked : asked + CHUNK], enforce=False)
        asked += CHUNK
        answers = zip(chunk, answering.ask(chunk, BENIGN, 1.0), strict=True)
        left = [Chain(prompt, answer) for prompt, answer in answers if answer is not None and ended(answer)]
        for principle in ours.principles:
            criticised = [critique_prompt(chain.noted(-1, principle), chain.answer, principle) for chain in left]
            critiques = zip(left, replies.texts(criticised, CRITIQUE, 0.0), strict=True)
            left = [chain for chain, critique in critiques if read_verdict(ours, critique) == "nothing"]
        kept += [chain.first for chain in left][: wanted - len(kept)]
        report(len(left))
    work.store.add_completions(kept, source=source_of(KEPT, answering.run_key))
    return {"benign_answers": min(asked, len(prompts)), "benign_kept": len(kept)}


def keep_pairs(work: Work, chains: Sequence[Chain], stamp: str, ours: Constitution) -> None:
    """An item of each answer that was revised and its first form, which the critic judges worse."""
    for first in range(0, len(chains), CHUNK):
        changed = [chain for chain in chains[first : first + CHUNK] if chain.revised]
        groups = [[chain.first, Completion(chain.prompt.id, chain.answer, weight_stamp=stamp)] for chain in changed]
        judge, client = f"critic {stamp[:12]}", {"model": stamp, "constitution": ours.hash}
        with work.store.transaction() as one:
            with one.reading() as connection:
                gone = taken_down(connection)  # what has such a text was not stored
            there = [group for group in groups if gone.isdisjoint(answer.id for answer in group)]
            items = one.add_items(there, study=STUDY_OF_PAIRS)
            one.add_judgements(
                Judgement(item, judge, LabelerKind.AI, ((1,), (0,)), None, criterion=CRITERION, client=client)
                for item in items
            )


def write_chains(run: Run, chains: Sequence[Chain]) -> None:
    """Every chain on a line, for those who read: chains.jsonl."""
    lines = []
    for chain in chains:
        steps = [
            {"principle": s.principle, "verdict": s.verdict, "critique": s.critique, "answer": s.answer}
            for s in chain.steps
        ]
        lines.append({"id": chain.prompt.id, "prompt": chain.prompt.text, "answer": chain.first.text, "steps": steps})
    write_text(run.folder / "chains.jsonl", "".join(json_text(finite_or_none(line)) + "\n" for line in lines))


# ------------------------------------------------------------------------------------------------------------ SL-CAI


def train_revised(work: Work, method: Method, variant: Variant) -> dict[str, Any]:
    """Imitate what the last `bridle revise` left: the revised answers, those that a person corrected as corrected, and some of its own to
    benign prompts."""
    variant.only(method, "name", "title", "settings")
    recipe, name = method.recipe(work, variant), variant.name
    section = recipe.constitution
    start, folder = section.start or "sft", work.project.finished_folder("revise")
    if folder is None:
        raise NoUsableRows("no answers were revised yet, so there are none to imitate; `bridle revise` makes them")
    run_key = read_parents(folder)["key"]
    parents = {"start": require_model(work, start), "revised": run_key}
    parents |= adapter_parents(work, work.project.model(start))
    if corrected := corrections_of(work, run_key):
        parents["corrections"] = content_hash(sorted([name, text] for name, (_, text) in corrected.items()))
    key = stage_key(recipe, ("model", "constitution"), parents)
    if (before := done_before(work, name, key, variant.reuse, name)) is not None:
        return before
    with work.start(name, variant.title, key, {**parents, "folders": {"start": f"models/{start}"}}, recipe) as run:
        revised = work.store.completions(source=source_of(REVISED, run_key), split="train")
        kept = work.store.completions(source=source_of(KEPT, run_key), split="train")
        wanted = min(len(kept), round(section.benign * len(revised)))
        notes = [f"{len(revised):,} revised answers", f"{wanted:,} of its own to benign prompts (constitution.benign)"]
        imitated = {prompt.id: (prompt, one.text) for prompt, one in [*revised, *kept[:wanted]]} | corrected
        notes += [f"{len(corrected):,} as people corrected them"] if corrected else []
        rows = Chosen(list(imitated.values()), *notes)
        result = imitate_demonstrations(work, run, name, rows, section, start)
        return run.finish({**result, "revised": len(revised), "benign": wanted, "corrected": len(corrected)})


def corrections_of(work: Work, run_key: str) -> dict[str, tuple[Prompt, str]]:
    """What people wrote in place of a run's last answers (`feedback/people/chains.py`): of each prompt the last one."""
    rows = work.store.completions(source=source_of(CORRECTED, run_key), split="train")
    return {prompt.id: (prompt, one.text) for prompt, one in rows}


# ----------------------------------------------------------------------------------------------------------- measuring


def round_metrics(work: Work, chains: Sequence[Chain], rounds: int) -> list[dict[str, Any]]:
    """A row for each round, the first for the answers as they were: what the critic found in that round, and where the true quality is
    known the mean of it, and the shares that comply and that refuse."""
    rows = []
    for number in range(rounds + 1):
        row: dict[str, Any] = {"round": number}
        if number:
            found = Counter(chain.steps[number - 1].verdict for chain in chains)
            row["faults"] = found["fault"] / max(1, len(chains) - found["not_asked"])
            row |= {str(name): found[name] for name in VERDICTS}
        answers = [chain.steps[number - 1].answer if number else chain.first.stripped for chain in chains]
        rows.append({**row, **known_metrics(work, [chain.prompt for chain in chains], answers)})
    return rows


def known_metrics(work: Work, prompts: Sequence[Prompt], answers: Sequence[str]) -> dict[str, float]:
    completions = [
        Completion(p.id, text, finish_reason=FinishReason.IMPORTED) for p, text in zip(prompts, answers, strict=True)
    ]
    scores = work.data.score(prompts, completions, "revise")
    if not scores:
        return {}
    families = [prompt.meta["family"] for prompt in prompts]
    refused = float(np.mean([score.flags["refused"] > 0 for score in scores]))
    return {
        "gold": float(np.mean([score.points for score in scores])),
        "refuses": refused,
        **probe_metrics(scores, families),
    }


def principle_metrics(chains: Sequence[Chain]) -> dict[str, dict[str, Any]]:
    """Of each principle how often it was drawn, in which share it found a fault, and which share of the answers it changed."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for chain in chains:
        before = chain.first.stripped
        for step in chain.steps:
            found.setdefault(step.principle, []).append((step.verdict, step.answer != before))
            before = step.answer
    return {
        name: {
            "drawn": len(rows),
            "faults": sum(verdict == "fault" for verdict, _ in rows) / len(rows),
            "changed": sum(changed for _, changed in rows) / len(rows),
        }
        for name, rows in sorted(found.items())
    }


def revised_lines(found: Mapping[str, Any]) -> list[str]:
    """For the terminal: a row a round, and a row a principle."""
    known = [
        name for name in ("faults", "gold", "complies", "refuses") if any(name in row for row in found["by_round"])
    ]
    lines = [
        f"{found['answers']:,} answers revised, {found['kept']:,} kept to imitate",
        f"{'round':<14}" + "".join(f"{n:>10}" for n in known),
    ]
    for row in found["by_round"]:
        lines.append(
            f"{row['round']:<14}" + "".join(f"{'' if row.get(n) is None else format(row[n], '.2f'):>10}" for n in known)
        )
    lines.append(f"{'principle':<20}{'drawn':>8}{'faults':>8}{'changed':>8}")
    for name, row in found["by_principle"].items():
        lines.append(f"{name:<20}{row['drawn']:>8}{row['faults']:>8.2f}{row['changed']:>8.2f}")
    return lines
