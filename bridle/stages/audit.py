"""Audits of a run that learns from its own answers: fresh ones against the reference's, judged by people or simulated ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridle.compute.checkpoint import load_tensors, save_tensors, trained_state
from bridle.compute.parallel import copy_from_first, from_first, process_rank
from bridle.compute.randomness import derived_seed, shuffled
from bridle.core.errors import DataError, RecipeError
from bridle.core.files import finite_or_none, remove_folder, saving, write_json
from bridle.core.records import Completion, Prompt, Reward
from bridle.core.timeline import timed
from bridle.evaluation.answers import Answered, answer_all, kl_of
from bridle.feedback.people.listing import listed_items
from bridle.feedback.rankings import pairs_of
from bridle.feedback.store.reading import taken_down
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import find_study, set_study
from bridle.generation.rollout import fault_of, one_each
from bridle.guard.stopping import fit_scale_and_noise
from bridle.guard.watch import RULES, Comparisons, OnlineWatch, Panel, question_and_answer
from bridle.maths.statistics import mean_and_se
from bridle.models.lora.low_rank import become, same_function
from bridle.models.policy import Policy
from bridle.project.kept import read_parents
from bridle.project.run import Run
from bridle.recipe.base import TrainerSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RLOOSection
from bridle.recipe.watching import GuardSection
from bridle.stages.data import PlaygroundData
from bridle.stages.turns import MOST_ITEMS, take_turns, without_server
from bridle.stages.workspace import Work

PROMPTS = 128  # that every audit answers anew
FEWEST_PAIRS = 100  # held-out comparisons by which a point of the reward is known as log-odds
ROWS = 6  # answers to look at
WATCH_FILE, AUDITED = "watch.json", "audited"
ACTIONS = ("raise beta", "stop", "roll back")
ACTING = ("audits", "audit_every", "audit_size", "audit_share", "audit_sure", "keep_audited", "on_audit")


def guard_identity(limits: GuardSection) -> dict[str, str]:
    """What may change a run's model of the guard's settings, where they are not the usual ones."""
    own, usual = limits.model_dump(mode="json"), GuardSection().model_dump(mode="json")
    acts = [name for name, action in limits.actions.items() if action in ACTIONS]
    acting = [f"on_{name}" for name in acts] + [rule.limit for rule in RULES if rule.name in acts]
    other = {name: own[name] for name in dict.fromkeys((*ACTING, *acting)) if own[name] != usual[name]}
    return {"guard": json.dumps(other)} if other else {}


def without_acting(limits: GuardSection) -> GuardSection:
    """The same rules, of which none acts and nobody is asked."""
    quiet = {f"on_{name}": "warn" for name, action in limits.actions.items() if action in ACTIONS}
    return limits.model_copy(update={**quiet, "audits": "off"})


def check_raisable(limits: GuardSection, config: TrainerSection, method: str) -> None:
    """Refuse a rule that would raise a KL weight where there is none: it is 0, or the method has no such weight."""
    wants = next((name for name, action in limits.actions.items() if action == "raise beta"), None)
    beta = config.kl_coef if isinstance(config, PPOSection | GRPOSection | RLOOSection | REBELSection) else None
    if wants and not beta:
        why = "has no KL weight" if beta is None else "has a KL weight of 0"
        raise RecipeError(
            f"guard.on_{wants} = 'raise beta', but {method} {why}, which cannot be raised; choose another action"
        )


def watch_over(
    work: Work, run: Run, models: tuple[Policy, Policy], reward: Reward, prompts: Sequence[Prompt]
) -> OnlineWatch:
    """The watch over a run of a policy and its reference (`models`), which audits answers to these prompts, if there are any. A run that is
    to end by a rule of its own is only looked at."""
    if run.until is not None:
        run.limits = without_acting(run.limits)
    return OnlineWatch(run.limits, auditor_of(work, run, models, reward, prompts) if prompts else None)


def auditor_of(
    work: Work, run: Run, models: tuple[Policy, Policy], reward: Reward, prompts: Sequence[Prompt]
) -> StoreAuditor | None:
    """Who audits a run that a learnt reward scores. None where nobody is to, or too little is known to go by, which is said."""
    limits, data = run.limits, work.data
    if process_rank():
        return None  # the first rank asks, and says what to do
    simulated = limits.audits == "simulated" or (limits.audits == "auto" and isinstance(data, PlaygroundData))
    if "off" in (limits.audits, limits.on_audit) or not (simulated or limits.audits == "people"):
        return None
    if simulated and not isinstance(data, PlaygroundData):
        raise RecipeError(
            "guard.audits = 'simulated', but simulated people know the playground alone, and this project's data was imported; set it to "
            "'people' or 'off'"
        )
    if "audit_calibration" not in run.noted:
        run.note(audit_calibration=calibrated(work, reward))
    noted = read_parents(run.folder)["audit_calibration"]
    if noted.get("fault"):
        run.progress.say(f"no audits: {noted['fault']}")
        return None
    if noted["pairs"] < FEWEST_PAIRS:
        run.progress.say(
            f"no audits: what a point of the reward means is learnt from {FEWEST_PAIRS} held-out comparisons at least whose answers it "
            f"scores apart, and there are {noted['pairs']}"
        )
        return None
    drawn = shuffled(len(prompts), work.recipe.seed, "audit-prompts")[:PROMPTS].tolist()
    begins_as_it = same_function(*(model.module for model in models))
    budget = int(limits.audit_share * noted["read"] / 2)
    panel = [prompts[at] for at in drawn]
    return StoreAuditor(
        work, run, *models, reward, panel, noted["scale"], noted["noise"], budget, simulated, begins_as_it
    )


@timed("audit")
def calibrated(work: Work, reward: Reward) -> dict[str, Any]:
    """What a point of the reward means on the held-out comparisons that there are, how many judgements slip, and the answers read for the
    reward model. Noted as the run begins: comparisons that come meanwhile, its own audits' among them, change none of it. `fault`: the
    reward failed on these answers, which ends the run only if it fails on the run's own."""
    judged = work.store.judgements(study=work.data.study, split="heldout")
    pairs = [(item.prompt, pair) for item, judgement in judged for pair in pairs_of(item, judgement)]
    each = {answer.id: (prompt, answer) for prompt, pair in pairs for answer in (pair.chosen, pair.rejected)}
    try:
        score = dict(zip(each, scores_or_nan(reward, list(each.values())), strict=True))
    except DataError as error:
        return {"scale": 0.0, "noise": 0.0, "pairs": len(pairs), "read": 0, "fault": str(error)}
    gaps = np.array([score[pair.chosen.id] - score[pair.rejected.id] for _, pair in pairs])
    gaps = gaps[np.isfinite(gaps)]
    scale, noise = fit_scale_and_noise(gaps) if gaps.any() else (0.0, 0.0)
    read = sum(len(item.completions) for item, _ in work.store.judgements(study=work.data.study, split="train"))
    return {"scale": scale, "noise": noise, "pairs": int(np.count_nonzero(gaps)), "read": read}


def scores_or_nan(reward: Reward, answers: Sequence[tuple[Prompt, Completion]]) -> list[float]:
    """What the reward says of each, nan where it cannot judge; DataError where it fails, for whatever reason: it may be anybody's."""
    if not answers:
        return []
    try:
        found = one_each(reward([prompt for prompt, _ in answers], [one for _, one in answers]), len(answers))
        return [math.nan if fault_of(score) is not None else float(score) for score in found]
    except Exception as error:
        raise DataError(f"the reward failed on answers beside the run's own: {error}") from error


def roll_back(watch: OnlineWatch, policy: Policy) -> dict[str, Any]:
    """Where audits say so, make the policy what it was at the best of them; what of it stands in the result."""
    step = from_first(lambda: watch.rolls_back_to)
    if step is None:
        return {}
    if isinstance(watch.auditor, StoreAuditor):
        watch.auditor.roll_back(step)
    policy.step = step
    copy_from_first(policy.module)
    return {"rolled_back_to": step}


def open_comparisons(
    work: Work, study: str, pairs: Sequence[Sequence[Completion]], simulated: bool, source: str = "audit"
) -> list[str]:
    """Have two answers to each of these prompts compared in a study of their own, and give its items: at once by simulated people, or by
    those who will come. Opened again nothing is asked twice. Of a pair whose text was taken down, which the store takes from nobody
    again, the item is ""."""
    seed, data = work.recipe.seed, work.data
    with work.store.transaction() as store:
        with store.reading() as connection:
            gone = taken_down(connection)
        there = [n for n, pair in enumerate(pairs) if gone.isdisjoint([pair[0].prompt_id, *(one.id for one in pair)])]
        store.add_completions([answer for n in there for answer in pairs[n]], source=source)
        ids = dict(zip(there, store.add_items([pairs[n] for n in there], study=study), strict=True))
        if find_study(store, study) is None:  # later its owner's settings stand
            set_study(store, study, {"overlap": 1, "gold_rate": 0, "seed": str(seed)})
    if simulated and isinstance(data, PlaygroundData):
        with without_server(data.store, data.world.spec.labelers, study) as turn:
            take_turns(data, turn, study)
    return [ids.get(n, "") for n in range(len(pairs))]


def outcomes_of(store: Store, study: str, items: Sequence[str]) -> dict[str, float | None]:
    """Of each item the share by which its first answer was preferred, None where it still waits for somebody; one that will never be
    judged, as it was excluded, is left out."""
    if not items:
        return {}
    won = dict[str, list[float]]()
    for item, judgement in store.judgements(study=study):
        places = {slot: place for place, group in enumerate(judgement.ranking) for slot in group}
        won.setdefault(item.id, []).append(0.5 + 0.5 * float(np.sign(places[1] - places[0])))
    still = {row["item"] for row in listed_items(store, study, limit=MOST_ITEMS, state="open")}
    still &= {item.id for item in store.unjudged_items(study)}  # of which none is excluded
    return {name: float(np.mean(won[name])) if name in won else None for name in items if name in won or name in still}


@contextmanager
def audited_weights(run: Run) -> Iterator[None]:
    """Inside lie the weights to roll back to. They go when the run is finished, and not before: one that is killed as it saves its model
    rolls back again."""
    try:
        yield
    finally:
        if (run.folder / "result.json").exists() and (run.folder / AUDITED).exists():
            remove_folder(run.folder / AUDITED)


@dataclass
class StoreAuditor:
    """An `Auditor` of `guard/watch.py`: each run's comparisons are a study of its own in the project's store, the policy's answer in the
    first slot, and people see them blind as any others. `scale` turns the reward's points into log-odds."""

    work: Work
    run: Run
    policy: Policy
    reference: Policy
    reward: Reward
    prompts: list[Prompt]
    scale: float
    noise: float
    comparisons: int
    simulated: bool
    from_reference: bool
    _references: tuple[list[Completion], list[float]] | None = None
    _latest: tuple[list[Completion], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def study(self) -> str:
        return f"audit-{self.run.folder.name}"

    @property
    def folder(self) -> Path:
        return self.run.folder / AUDITED

    def references(self) -> tuple[list[Completion], list[float]]:
        """The reference's answers with their scores; the same each time."""
        if self._references is None:
            self._references = self.answer(self.reference, "reference", 0)
        return self._references

    def answer(self, model: Policy, whose: str, step: int) -> tuple[list[Completion], list[float]]:
        seed = derived_seed(self.work.recipe.seed, f"audit-{whose}", step)
        answered = answer_all(model, self.work.engine, self.prompts, self.work.recipe.sampling.max_new_tokens, seed)
        return answered.completions, scores_or_nan(
            self.reward, list(zip(answered.prompts, answered.completions, strict=True))
        )

    @timed("audit")
    def beginning(self) -> list[dict[str, str]]:
        return self.rows(self.references()[0])

    def rows(self, completions: Sequence[Completion]) -> list[dict[str, str]]:
        few = zip(self.prompts[:ROWS], completions[:ROWS], strict=True)
        return [question_and_answer(prompt.text, one.text) for prompt, one in few]

    @timed("audit")
    def look(self, step: int) -> Panel:
        theirs = np.asarray(self.references()[1])
        self._latest = completions, scores = self.answer(self.policy, self.run.stage, step)
        kl, kl_se = kl_of(Answered(self.prompts, completions), self.policy, self.reference, self.work.device)
        gain = (np.asarray(scores) - theirs)[np.isfinite(np.asarray(scores) - theirs)]
        mean, error = mean_and_se(gain) if gain.size > 1 else (0.0, 0.0)
        return Panel(self.scale * mean, self.scale * error, kl, kl_se, self.rows(completions))

    @timed("audit")
    def ask(self, step: int, count: int) -> Comparisons:
        seed = self.work.recipe.seed
        (ours, our_scores), (theirs, their_scores) = self._latest, self.references()
        order = shuffled(len(self.prompts), seed, f"audit-{self.run.stage}", step).tolist()
        stated = {at: self.scale * (our_scores[at] - their_scores[at]) for at in order}
        with self.work.store.reading() as connection:
            gone = taken_down(connection)  # which the store takes from nobody again
        named = [
            (prompt.id, *(one.id for one in pair)) for prompt, *pair in zip(self.prompts, ours, theirs, strict=True)
        ]
        known = [at for at in order if np.isfinite(stated[at]) and gone.isdisjoint(named[at])]
        chosen = known[:count]
        different = [at for at in chosen if ours[at].stripped != theirs[at].stripped]
        pairs = [[ours[at], theirs[at]] for at in different]
        ids = dict(zip(different, open_comparisons(self.work, self.study, pairs, self.simulated), strict=True))
        return Comparisons([stated[at] for at in chosen], [ids.get(at, "") for at in chosen])

    def outcomes(self, items: Sequence[str]) -> dict[str, float | None]:
        return outcomes_of(self.work.store, self.study, items)

    @timed("audit")
    def keep(self, step: int) -> None:
        with saving(self.folder):
            self.folder.mkdir(exist_ok=True)
            weights = trained_state(self.policy.module)
            save_tensors(
                {name: tensor.cpu().clone().contiguous() for name, tensor in weights.items()}, self.place(step)
            )

    def forget(self, step: int) -> None:
        self.place(step).unlink(missing_ok=True)

    def place(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.safetensors"

    def roll_back(self, step: int) -> None:
        """Make the policy what it was after that step; 0: the reference, as which it began."""
        if step == 0:
            become(self.policy.module, self.reference.module)
        else:
            self.policy.module.load_state_dict(
                load_tensors(self.place(step)), strict=False
            )  # what is frozen is not in it
        self.policy.step = step

    def report(self, found: Mapping[str, Any]) -> None:
        write_json(self.run.folder / WATCH_FILE, finite_or_none(found))
