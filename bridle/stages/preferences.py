"""Policies from comparisons, without a reward model: DPO and family, and online DPO in rounds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bridle.compute.steps import Session
from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import Pair, content_hash
from bridle.evaluation.answers import kl_of
from bridle.feedback.quality.reliability import stored_weights
from bridle.feedback.serving.weights import serving_weights
from bridle.feedback.store.labels import Labels, take_rating_snapshot
from bridle.feedback.store.reading import SERVING, Snapshot
from bridle.feedback.store.store import LearntFrom
from bridle.feedback.store.versions import weightless
from bridle.models.encoding import Chosen, encode_pairs
from bridle.models.policy import Policy
from bridle.stages.data import used_note
from bridle.stages.practice import load_pair, model_parents, practise
from bridle.stages.workspace import Method, Variant, Work, done_before, stage_key
from bridle.training import dpo

OBSERVED = 128  # prompts that DPO's KL is measured on as it goes
NO_REFERENCE = ("simpo",)  # losses that are held by none


def training_snapshot(work: Work, criterion: str | None = None) -> Snapshot:
    """The comparisons of training prompts that are in force now, on the whole or by a criterion, kept under a hash with what they weigh."""
    try:
        return work.store.take_snapshot(
            study=work.data.study,
            criterion=criterion,
            reliability=reliability_of(work),
            sources=work.recipe.data.sources,
            weights=serving_weights(work.store) if SERVING in work.recipe.data.sources else None,
        )
    except DataError as error:
        raise NoUsableRows(
            f"{work.project.store} holds no comparisons to learn from; `bridle import FILE` brings some, "
            "on the playground `bridle sample` and `bridle label --simulate` make them"
        ) from error


def rating_snapshot(work: Work, labels: Labels) -> Snapshot:
    """The same of votes or scores."""
    return take_rating_snapshot(work.store, labels, reliability=reliability_of(work))


def reliability_of(work: Work) -> dict[str, float]:
    """What the judgements of each labeler weigh, where the recipe wants that."""
    return stored_weights(work.store, work.data.study) if work.recipe.data.reliability == "weights" else {}


def judged_pairs(work: Work, snapshot: Snapshot, ties: bool = False) -> Chosen[Pair]:
    """The pairs of a snapshot, with a note where some judgements give none: they call all answers equal, or these have the same text."""
    pairs = work.store.snapshot_pairs(snapshot.id, ties)
    count, there = len({name for pair in pairs for name in pair.judgement_ids}), len(snapshot.judgement_ids)
    nobodies = weightless(work.store, snapshot)
    weighing = there - sum(nobodies.values())
    names = f"judgements that weigh anything; those of {', '.join(nobodies)} are no better than a coin"
    notes = [*used_note(weighing, there, names), *used_note(count, weighing, "judgements that tell answers apart")]
    return Chosen(pairs, *notes)


def train_dpo(work: Work, method: Method, variant: Variant) -> dict[str, Any]:
    """On the same comparisons as the reward model, or online on fresh answers that a reward ranks."""
    recipe, name = method.recipe(work, variant), variant.name
    if recipe.dpo.online_rounds:
        title = "Online DPO: its own answers, ranked by a reward"
        online = Method(method.name, method.section, title, practise, dpo.train_online)
        return practise(work, online, replace(variant, title=title))
    variant.only(method, "name", "title", "settings")  # who scores is for the online kind
    start = recipe.dpo.start or "sft"
    held_to = recipe.dpo.reference or start
    snapshot = training_snapshot(work)
    parents = model_parents(work, name, (start, held_to), "sft" if start == "sft" else "start")
    parents["snapshot"] = snapshot.id
    key = stage_key(recipe, ("model", "dpo", "data", "sampling"), parents)
    if (before := done_before(work, name, key, variant.reuse, name)) is not None:
        return before
    noted = {**parents, "folders": {"start": f"models/{start}", "reference": f"models/{held_to}"}}
    with work.start(name, variant.title, key, noted, recipe) as run:
        policy, reference = load_pair(work, name, start, None if recipe.dpo.loss in NO_REFERENCE else held_to)
        parent = policy.origin
        policy.origin = content_hash([parent, key])  # two runs from the same weights must not share stamps
        pairs = judged_pairs(work, snapshot)
        groups = work.usable(encode_pairs(policy.template, pairs, policy.module.config.max_positions))
        observe = observer(work, policy, reference)
        session = Session(run, work.device, recipe.seed)
        cache = work.project.folder / "cache"
        result = dpo.train(policy, reference, groups, recipe.dpo, session, cache, observe)
        saved = work.keep_policy(name, "dpo", policy, parent, LearntFrom({"": snapshot.id}))
        nobodies = {"weightless": found} if (found := weightless(work.store, snapshot)) else {}
        return run.finish({"snapshot": snapshot.id, **nobodies, **result, **observe(), "model": saved})


def observer(work: Work, policy: Policy, reference: Policy | None) -> Callable[[], dict[str, float]]:
    """Fresh answers to a few training prompts, measured: their KL from the reference in nats per answer, which DPO itself never looks
    at, and what is known of them besides."""
    prompts = work.fitting(policy, work.data.few_train_prompts(OBSERVED, "to measure the KL"))

    def measure() -> dict[str, float]:
        answered = work.answer(policy, prompts, "dpo-observe", policy.step)
        metrics = work.data.observe(answered.prompts, answered.completions)
        if reference is not None:
            kl, error = kl_of(answered, policy, reference, work.device)
            metrics = {"kl": kl, "kl_se": error, **metrics}
        return metrics

    return measure
