"""Policies from comparisons and votes, without a reward model: DPO and family, ORPO, KTO, and online DPO in rounds."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from bridle.compute.steps import Session
from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import Pair, content_hash
from bridle.evaluation.answers import kl_of
from bridle.feedback.quality.reliability import stored_weights
from bridle.feedback.serving.weights import serving_weights
from bridle.feedback.store.labels import (
    Labels,
    Lesson,
    answers_of_snapshot,
    labels_by_criterion,
    part_of_snapshot,
    snapshot_ratings,
    take_rating_snapshot,
)
from bridle.feedback.store.reading import SERVING, SOURCES, Snapshot, Source
from bridle.feedback.store.store import LearntFrom
from bridle.feedback.store.versions import weightless
from bridle.models.batches import Group
from bridle.models.encoding import Chosen, encode_pairs, encode_ratings
from bridle.models.policy import Policy
from bridle.recipe.offline import NO_REFERENCE
from bridle.stages.data import MixedKind, mixed, used_note
from bridle.stages.practice import load_pair, model_parents, practise
from bridle.stages.workspace import Method, Variant, Work, done_before, stage_key
from bridle.training import dpo

OBSERVED = 128  # prompts that DPO's KL is measured on as it goes


def training_snapshot(work: Work, criterion: str | None = None) -> Snapshot:
    """The comparisons of training prompts that are in force now, on the whole or by a criterion, kept under a hash with what they weigh."""
    try:
        whole = work.store.take_snapshot(
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
    return mixed_snapshot(work, whole, "comparisons")


def rating_snapshot(work: Work, labels: Labels, sources: Collection[Source] = SOURCES) -> Snapshot:
    """The same of votes or scores."""
    whole = take_rating_snapshot(work.store, labels, reliability=reliability_of(work), sources=sources)
    return mixed_snapshot(work, whole, "ratings")


def mixed_snapshot(work: Work, whole: Snapshot, kind: MixedKind) -> Snapshot:
    """Of a snapshot what the recipe's mixture takes of each file; all of it where it says nothing."""
    if kind not in work.recipe.data.mixture:
        return whole
    answers = answers_of_snapshot(work.store, whole)
    kept = mixed(work.data, kind, list(answers), list(answers), answers.__getitem__)
    work.progress.say(f"{kind}: {kept.notes[0]}")
    return part_of_snapshot(work.store, whole, kept, kept.notes[0])


def lesson_of_comparisons(work: Work) -> Lesson:
    """All that is compared on the whole, as one lesson."""
    return Lesson("", Labels("comparisons", None), training_snapshot(work))


def lessons_for_kto(work: Work, wanted: str) -> list[Lesson]:
    """The comparisons and the votes on the whole, both or the one kind that is `wanted`, as far as there are any. Thumbs of users of a
    served model are not among the votes, whatever sources the recipe names: they like to be flattered."""
    sources, lessons = work.recipe.data.sources, list[Lesson]()
    others_than_users = [source for source in sources if source != SERVING]
    found = labels_by_criterion(work.store, work.data.study, sources=sources)
    if wanted != "votes" and "comparisons" in found.get(None, {}):
        lessons.append(lesson_of_comparisons(work))
    rated = labels_by_criterion(work.store, work.data.study, sources=others_than_users)
    if wanted != "comparisons" and "vote" in rated.get(None, {}):
        votes = Labels("vote", None)
        lessons.append(Lesson("votes", votes, rating_snapshot(work, votes, others_than_users)))
    if not lessons:
        what = "comparisons and no votes" if wanted == "all" else wanted
        others = ", ".join(sorted(name for name in found if name is not None))
        only = f", only by {others}" if others else ""
        raise NoUsableRows(
            f"{work.project.store} holds no {what} on the whole to learn from{only}; `bridle import FILE` brings some, on the playground "
            "`bridle sample` and `bridle label --simulate` make comparisons"
        )
    return lessons


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
    if method.recipe(work, variant).dpo.online_rounds:
        title = "Online DPO: its own answers, ranked by a reward"
        online = Method(method.name, method.section, title, practise, dpo.train_online)
        return practise(work, online, replace(variant, title=title))
    return train_offline(work, method, variant)


def train_offline(work: Work, method: Method, variant: Variant) -> dict[str, Any]:
    """On what was said of answers that are there: DPO and ORPO on comparisons, KTO on votes too."""
    variant.only(method, "name", "title", "settings")  # who scores is for methods that answer
    recipe, name = method.recipe(work, variant), variant.name
    config = dict(recipe)[method.section]
    start = config.start or "sft"
    held_to = start if config.loss in NO_REFERENCE else config.reference or start
    lessons = lessons_for_kto(work, config.labels) if config.loss == "kto" else [lesson_of_comparisons(work)]
    snapshots = {".".join(filter(None, ("snapshot", one.task))): one.snapshot.id for one in lessons}
    parents = {**model_parents(work, name, (start, held_to), "sft" if start == "sft" else "start"), **snapshots}
    key = stage_key(recipe, ("model", method.section, "data", "sampling"), parents)
    if (before := done_before(work, name, key, variant.reuse, name)) is not None:
        return before
    noted = {**parents, "folders": {"start": f"models/{start}", "reference": f"models/{held_to}"}}
    with work.start(name, variant.title, key, noted, recipe) as run:
        policy, reference = load_pair(work, name, start, None if config.loss in NO_REFERENCE else held_to)
        parent = policy.origin
        policy.origin = content_hash([parent, key])  # two runs from the same weights must not share stamps
        groups = encoded_answers(work, policy, lessons)
        session = Session(run, work.device, recipe.seed)
        read_again = None if reference is None else (lambda: reference)
        if reference is not None and (policy.adapter is None or held_to != start):  # its weights are its own
            session, read_again = replace(session, release=free_weights), kept_reader(work, reference)
        observe = observer(work, policy, read_again) if config.observe_every else None
        cache = work.project.folder / "cache"
        result = method.loop(policy, reference, groups, config, session, cache, observe)
        learnt = LearntFrom({one.task: one.snapshot.id for one in lessons})
        saved = work.keep_policy(name, method.section, policy, parent, learnt)
        found = sum((Counter(weightless(work.store, one.snapshot)) for one in lessons), start=Counter[str]())
        nobodies = {"weightless": dict(found)} if found else {}
        observed = {} if observe is None else observe()
        return run.finish({**snapshots, **nobodies, **result, **observed, "model": saved})


def encoded_answers(work: Work, policy: Policy, lessons: Sequence[Lesson]) -> list[Group]:
    """What the lessons say, with the ids of the answers: comparisons by prompt, votes by answer."""
    groups, template, limit = list[Group](), policy.template, policy.module.config.max_positions
    for one in lessons:
        if one.labels.kind == "comparisons":
            groups += work.usable(encode_pairs(template, judged_pairs(work, one.snapshot), limit))
        else:
            rated = snapshot_ratings(work.store, one.snapshot.id)
            groups += work.usable(encode_ratings(template, rated, limit, one.task, one.what))
    return groups


def free_weights(reference: Policy) -> None:
    """Free the memory of a reference's weights: the policy trains without it."""
    reference.module.to("meta")


def kept_reader(work: Work, reference: Policy) -> Callable[[], Policy]:
    """Reads the reference again from where it is kept, whatever becomes of the model itself."""
    folder, content = work.project.reference(reference.origin), reference.origin
    return lambda: work.read_policy(folder, content, frozen=True)


def observer(work: Work, policy: Policy, read_again: Callable[[], Policy] | None) -> Callable[[], dict[str, float]]:
    """Fresh answers to a few training prompts, measured: their KL from the reference in nats per answer, which DPO itself never looks
    at, and what is known of them besides."""
    prompts = work.fitting(policy, work.data.few_train_prompts(OBSERVED, "to measure the KL"))

    def measure() -> dict[str, float]:
        answered = work.answer(policy, prompts, "dpo-observe", policy.step)
        metrics = work.data.observe(answered.prompts, answered.completions)
        if read_again is not None:
            kl, error = kl_of(answered, policy, read_again(), work.device)
            metrics = {"kl": kl, "kl_se": error, **metrics}
        return metrics

    return measure
