"""Policies that learn from their own answers: PPO, GRPO, RLOO, REBEL, best of n and online DPO, all by one stage.

A policy begins from one model of the project and is held to another (`start`, `reference`); its answers are scored by the reward model,
or by a verifier on prompts whose answers can be checked.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bridle.compute.parallel import from_first
from bridle.core.errors import NoUsableRows, UsageError
from bridle.core.records import Completion, Prompt, Reward, content_hash
from bridle.feedback.store.store import LearntFrom
from bridle.generation.endpoint import EndpointEngine
from bridle.generation.engine import AnswerSource
from bridle.generation.pool import PoolEngine, answerer_like
from bridle.generation.rollout import Observe, RolloutSession
from bridle.maths.statistics import pass_at_k, proportion
from bridle.models.encoding import encode_demonstrations
from bridle.models.imitation import Example
from bridle.models.lora.adapter import branch
from bridle.models.policy import Policy
from bridle.project.kept import read_parents
from bridle.project.run import Run
from bridle.recipe.offline import DPOSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.recipe.recipe import Recipe
from bridle.rewards.functions import FunctionReward
from bridle.rewards.verifiers import same_check
from bridle.stages.adapters import adapter_parents, learner_of
from bridle.stages.audit import audited_weights, check_raisable, guard_identity, roll_back, watch_over
from bridle.stages.data import Checkable, practice_parents
from bridle.stages.lineage import Lineage, keep_reference
from bridle.stages.rewards import critic_parents, reward_parents, training_reward
from bridle.stages.sft import train_branch
from bridle.stages.workspace import Method, Variant, Work, done_before, require_model, stage_key
from bridle.training.ppo import Actors

NO_MODELS = ("source", "world", "data", "judge", "stand_in", "checks", "function")  # of what rewards a run
WEIGHED = ("ppo", "grpo", "rloo", "rebel")  # learn from what other weights have answered, weighed by how likely that is
PracticeSection = PPOSection | GRPOSection | RLOOSection | REBELSection | RejectionSection | DPOSection


def practise(work: Work, method: Method, variant: Variant) -> dict[str, Any]:
    """Train by a method that answers prompts and learns from how the answers score."""
    recipe, name = method.recipe(work, variant), variant.name
    config: PracticeSection = dict(recipe)[method.section]
    start, held_to = origins(work, config)
    branch = {}
    if start == work.data.branch:
        if held_to != start:
            require_model(work, held_to)  # missed before the branch is trained
        branch = {"branch": train_branch(work, reuse=True)}
    checked = config.scored_by == "verifier"
    parents = model_parents(work, name, (start, held_to), "sft" if start == "sft" and not checked else "start")
    checkable = work.data.checkable() if checked else None
    scored = config.scored_by != "nothing"
    identity = reward_identity(work, checkable, variant) if scored else {"source": "nothing"}
    parents |= identity
    if method.critic is not None:  # it begins as the reward model, whatever scores
        own = isinstance(variant.reward, FunctionReward)  # which scores without the reward model
        parents |= reward_parents(work) if checkable is None and not own else critic_parents(work)
    prompts = work.data.train_prompts() if checkable is None else checkable.train
    imitated = work.data.demonstrations() if method.critic is not None and recipe.ppo.pretrain_coef else []
    parents |= practice_parents(prompts if checkable is None else [], imitated)
    parents |= {} if variant.until is None else {"until": variant.until.rule}
    if variant.until is None:
        check_raisable(recipe.guard, config, method.name)
        parents |= guard_identity(recipe.guard)
    parents |= stale_settings(recipe, method)
    key = stage_key(recipe, ("model", method.section, "data", "sampling"), parents)
    if (before := done_before(work, name, key, variant.reuse, name)) is not None:
        return {**before, **branch}
    noted = {**parents, "folders": {"start": f"models/{start}", "reference": f"models/{held_to}"}}
    with work.start(name, variant.title, key, noted, recipe) as run, audited_weights(run):
        run.until = variant.until
        engine = rollout_engine(work)
        policy, reference = load_pair(work, name, start, held_to)
        assert reference is not None
        parent = policy.origin
        policy.origin = content_hash([parent, key])  # two runs from the same weights must not share stamps
        prompts, left_out = within_reach(work, policy, work.fitting(policy, prompts), checkable, config)
        reward = variant.reward or scoring(work, policy, config, checkable)
        observe = work.data.observe if checkable is None else checks(work, checkable)
        session = learning_session(work, run, engine, method, observe)
        heldout = [] if checkable is None else work.fitting(policy, checkable.heldout, "held-out prompts")
        measured = check_answers(work, policy, heldout, checkable, f"{method.section}-before", config)
        run.watch = watch = watch_over(
            work, run, (policy, reference), reward, prompts if scored and not checked else []
        )
        if method.critic is None:
            result = method.loop(policy, reference, reward, prompts, config, session)
        else:
            actors = Actors(policy, reference, method.critic(work, policy))
            result = method.loop(actors, reward, prompts, mixed_in(work, policy, imitated), config, session)
        back = roll_back(watch, policy)
        scored_by = [key for key in identity if key not in NO_MODELS and isinstance(identity[key], str)]
        learnt = LearntFrom(shaped_by=sorted({identity[key] for key in scored_by}))
        saved = work.keep_policy(name, method.section, policy, parent, learnt)
        if checkable is not None:
            measured |= check_answers(work, policy, heldout, checkable, f"{method.section}-after", config)
            result = {metric: value for metric, value in result.items() if metric not in ("accuracy", "worked")}
            measured["problems"] = len(heldout)
        return {**run.finish({**result, **measured, **left_out, **back, "model": saved}), **branch}


def stale_settings(recipe: Recipe, method: Method) -> dict[str, Any]:
    """What belongs in a run's key of answers by older weights: what is learnt from them is another thing. Who answers does not.
    UsageError for a method that does not weigh such answers."""
    rollout = recipe.rollout
    if not rollout.staleness:
        return {}
    if method.section not in WEIGHED:
        raise UsageError(
            f"rollout.staleness = {rollout.staleness} lets older weights answer, which {method.name} does not weigh; set it to 0, or "
            f"train by {', '.join(WEIGHED)}"
        )
    return {"rollout": f"staleness {rollout.staleness}, importance_cap {rollout.importance_cap:g}"}


def learning_session(
    work: Work, run: Run, engine: AnswerSource | PoolEngine, method: Method, observe: Observe
) -> RolloutSession:
    """What the loop gets besides; answers that other weights may have drawn are weighed."""
    rollout, tokens = work.recipe.rollout, work.recipe.sampling.max_new_tokens
    others = method.section in WEIGHED and bool(rollout.endpoint or rollout.staleness)
    cap = rollout.importance_cap if others else 0.0
    return RolloutSession(run, work.device, work.recipe.seed, engine, tokens, observe, rollout.staleness, cap)


def rollout_engine(work: Work) -> AnswerSource | PoolEngine:
    """What answers while a policy practises. A server sleeps from now on, before there is a model here; workers end with the work."""
    section, device = work.recipe.rollout, work.device
    if section.endpoint:
        return EndpointEngine(section, device)
    if not section.workers:
        return work.engine
    if work.start_workers is None:
        raise UsageError(
            f"rollout.workers = {section.workers}, and only `bridle train` starts workers; train by it, or set rollout.workers to 0 here"
        )
    make = answerer_like(device, section.workers, work.engine.batch_size, section.staleness > 0)
    pool = PoolEngine(work.start_workers, make, section.workers, work.progress.say)
    work.closing.callback(pool.close)
    return pool


def origins(work: Work, config: PracticeSection) -> tuple[str, str]:
    """Names of the models that a policy begins from and is held to."""
    usual = work.data.branch if config.scored_by == "verifier" and work.data.branch else "sft"
    start = config.start or usual
    return start, config.reference or start


def model_parents(work: Work, run: str, origins: tuple[str, str], first: str) -> dict[str, Any]:
    """The models that a policy begins from and is held to, by content hash. The start is noted as `first`: runs made before one could
    begin elsewhere noted SFT under its name, and are still the same runs."""
    start, reference = (
        require_model(work, name) if (kept := replaced(work, run, name)) is None else work.registry.content(kept)
        for name in origins
    )
    held_to = {"reference": reference} if origins[0] != origins[1] else {}
    return {first: start, **held_to, **adapter_parents(work, start_folder(work, run, origins[0]))}


def load_start(work: Work, run: str, start: str, held_to: str) -> Policy:
    """The policy that a run begins with. What it is held to is kept in references/, so that its KL can be measured against it whatever
    becomes of the model; so is a start whose place the run's own model will take."""
    policy = work.load_policy(start, replaced(work, run, start), frozen=work.recipe.lora.on)
    for name in dict.fromkeys((held_to, *([start] if start == run else []))):
        if replaced(work, run, name) is None:
            from_first(partial(keep_reference, work.project, name))
    return policy


def load_pair(work: Work, run: str, start: str, held_to: str | None) -> tuple[Policy, Policy | None]:
    """The policy that learns, and the one that it is held to, if any. Under an adapter the two share their base weights where they are the
    same model: then it is held to what it begins as, be that the base, or the base with the adapter that is trained further."""
    began = load_start(work, run, start, held_to or start)
    policy = learner_of(work, began, start_folder(work, run, start))
    if held_to is None:
        return policy, None
    if policy.adapter is None or held_to != start:
        return policy, work.load_reference(held_to, began, replaced(work, run, held_to))
    return (replace(policy, module=branch(policy.module)), policy) if work.recipe.lora.continued else (policy, began)


def start_folder(work: Work, run: str, start: str) -> Path:
    return replaced(work, run, start) or work.project.model(start)


def replaced(work: Work, run: str, name: str) -> Path | None:
    """Where the model of that name is kept as an unfinished run began with it, when the run's own model has taken its place already: it was
    killed before it could say that it is finished. Else None."""
    last = next(iter(work.project.runs(run)[-1:]), None)
    if name != run or last is None or (last / "result.json").exists() or not (last / "parents.json").exists():
        return None
    noted, lineage, folder = read_parents(last), Lineage(work.project), work.project.model(name)
    then = lineage.parents(noted).get(folder)
    if then is None or lineage.present(folder) != noted.get("leaves", ""):
        return None
    kept = work.project.reference(then)
    return kept if lineage.present(kept) == then else None


def reward_identity(work: Work, checkable: Checkable | None, variant: Variant) -> dict[str, Any]:
    """What rewards a run, by content hash, and the prompts whose answers can be checked."""
    parents: dict[str, Any] = {}
    if isinstance(variant.reward, FunctionReward):
        parents |= {"source": "function", "function": variant.reward.hash}
    elif variant.reward is not None:
        parents["source"] = variant.name
    elif checkable is None:
        parents |= {**reward_parents(work), "source": "learned"}
    else:
        parents |= {"source": "verifier", **(reward_parents(work) if work.recipe.reward_source else {})}
    if checkable is not None:
        asked = [[prompt.id for prompt in prompts] for prompts in (checkable.train, checkable.heldout)]
        parents |= {"world": work.data.world_hash, "data": content_hash(asked), **checkable.identity}
    return parents


def scoring(work: Work, policy: Policy, config: PracticeSection, checkable: Checkable | None) -> Reward:
    """What scores the answers, as the recipe has it."""
    if config.scored_by == "nothing":
        return same_check(lambda text: 0.0)
    if checkable is not None and not work.recipe.reward_source:
        return checkable.verifier
    return training_reward(work, policy)


def mixed_in(work: Work, policy: Policy, imitated: Sequence[tuple[Prompt, str]]) -> list[Example]:
    """Demonstrations that PPO imitates beside its own loss, where `ppo.pretrain_coef` wants some."""
    if not imitated:
        return []
    return work.usable(encode_demonstrations(policy.template, imitated, policy.module.config.max_positions))


def checks(work: Work, checkable: Checkable) -> Observe:
    """For the log: the share of right answers and, where that is known, of those that show their work."""

    def observe(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        right = [score for score in checkable.verifier(prompts, completions) if score is not None]
        return {"accuracy": float(np.mean(right)), **work.data.shown_work(prompts, completions)}

    return observe


def within_reach(
    work: Work, policy: Policy, prompts: list[Prompt], checkable: Checkable | None, config: PracticeSection
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of which the policy gets a share between the recipe's bounds right as it starts, and how many of the others are too hard
    and too easy: a group without a right answer, or without a wrong one, teaches nothing."""
    if (
        checkable is None
        or not isinstance(config, GRPOSection | RLOOSection)
        or (config.min_right, config.max_right) == (0, 1)
    ):
        return prompts, {}
    answered = [work.answer(policy, prompts, "filter", number).completions for number in range(config.filter_answers)]
    scores_PK = zip(*(checkable.verifier(prompts, completions) for completions in answered), strict=True)
    right = [float(np.mean([score for score in scores_K if score is not None] or [0.0])) for scores_K in scores_PK]
    kept = [
        prompt for prompt, share in zip(prompts, right, strict=True) if config.min_right <= share <= config.max_right
    ]
    hard, easy = sum(share < config.min_right for share in right), sum(share > config.max_right for share in right)
    work.progress.say(
        f"prompts: {len(kept):,} of {len(prompts):,} used; {hard:,} are too hard and {easy:,} too easy at the start"
    )
    if not kept:
        raise NoUsableRows(
            f"of {len(prompts):,} prompts none is answered right in a share of {config.min_right:g} to {config.max_right:g}: {hard:,} are "
            f"too hard and {easy:,} too easy; widen min_right and max_right, or begin from another model"
        )
    return kept, {"too_hard": hard, "too_easy": easy}


def check_answers(
    work: Work,
    policy: Policy,
    prompts: Sequence[Prompt],
    checkable: Checkable | None,
    purpose: str,
    config: PracticeSection,
) -> dict[str, float]:
    """`heldout_answers` sampled answers to each held-out problem: the share of right ones with its interval, from two on the share of
    problems with a right one (pass@k), and what `checks` reports besides; each name ends as `purpose` does ("before", "after")."""
    if checkable is None:
        return {}
    count = 1 if isinstance(config, PPOSection | REBELSection | DPOSection) else config.heldout_answers
    rounds = [work.answer(policy, prompts, purpose, number) for number in range(count)]
    answered, scores_KP = rounds[0], [checkable.verifier(one.prompts, one.completions) for one in rounds]
    judged = [
        (prompt.id, score)
        for one, scores_P in zip(rounds, scores_KP, strict=True)
        for prompt, score in zip(one.prompts, scores_P, strict=True)
        if score is not None
    ]
    right = proportion([score for _, score in judged], [name for name, _ in judged])
    metrics = {"accuracy": right.rate, "accuracy_low": right.low, "accuracy_high": right.high}
    if count > 1:
        whole = [
            [float(score >= 1) for score in scores_K]
            for scores_K in zip(*scores_KP, strict=True)
            if None not in scores_K
        ]
        metrics["pass_at_k"] = float(pass_at_k(whole, count).mean())
    metrics |= work.data.shown_work(answered.prompts, answered.completions)
    when = purpose.rpartition("-")[2]
    return {f"{name}_{when}": value for name, value in metrics.items()}
