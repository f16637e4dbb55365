"""What more judgements would buy: reward models on parts of those there are, a curve through what they reach, and where, by whom and at
what price a further judgement tells most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from bridle.compute.randomness import derived_seed
from bridle.compute.steps import Session
from bridle.core.errors import NoUsableRows
from bridle.core.files import write_json
from bridle.core.records import content_hash
from bridle.evaluation.label_plan import (
    Judged,
    people_of_plan,
    price_for,
    prices_of,
    topics_of,
    votes_of_plan,
)
from bridle.evaluation.learning_curve import forecast
from bridle.evaluation.reward_tests import AnswerPair, pair_accuracy
from bridle.feedback.quality.style import without_taste
from bridle.feedback.quality.summary import quality_of
from bridle.feedback.quality.votes import read_votes, topic_in
from bridle.feedback.store.labels import Lesson
from bridle.maths.statistics import win_rate
from bridle.models.encoding import encode_pairs
from bridle.project.kept import LABEL_PLAN_FILE
from bridle.rewards.learned import LearnedReward
from bridle.stages.reward import heldout_pairs, lessons_of, new_scorer, pair_as_text, taste_of
from bridle.stages.workspace import Work, done_before, require_model, stage_key
from bridle.training import reward

# Models of an eighth of the judgements, a quarter, …; equal parts do not overlap. All of them are learnt twice, in two orders, for a
# forecast begins at what they reach, and one run is off by as much as a doubling brings.
PARTS = {8: 4, 4: 4, 2: 2, 1: 2}
FEWEST = 80  # judgements that a curve needs
FURTHER = (1.5, 2.0, 4.0)  # times the judgements there are, that is forecast


def plan_labels(work: Work) -> dict[str, Any]:
    """The learning curve of the reward model on the judgements in force, and what it says of more."""
    lesson = next((one for one in lessons_of(work) if one.labels.kind == "comparisons"), None)
    if lesson is None:
        raise NoUsableRows("none of reward.tasks learns from comparisons, which a plan is for; name one that does")
    snapshot = lesson.snapshot
    judged = work.store.snapshot_judgements(snapshot.id)
    if len(judged) < FEWEST:
        raise NoUsableRows(
            f"a learning curve needs at least {FEWEST} judgements, got {len(judged)}; collect more first"
        )
    if (items := len({item.id for item, _ in judged})) < max(PARTS):
        raise NoUsableRows(
            f"a learning curve needs judgements of at least {max(PARTS)} items, got {items}; have more items judged first"
        )
    tested = tested_on(work, lesson)
    none_held_out = NoUsableRows(
        f"{work.project.store} holds no held-out comparisons to measure a reward model on; import or label some of held-out prompts"
    )
    if not tested:
        raise none_held_out
    points = [
        learn_from_part(work, lesson, judged, tested, parts, number)
        for parts, most in PARTS.items()
        for number in range(most)
    ]
    whole, count = points[-PARTS[1] :], len(judged)
    if whole[-1]["pair_accuracy"] is None:  # of equal texts, or too long
        raise none_held_out
    errors = [max((p["pair_accuracy_high"] - p["pair_accuracy_low"]) / 3.92, 0.002) for p in points]
    counts, accuracies = [p["judgements"] for p in points], [p["pair_accuracy"] for p in points]
    quality = quality_of(read_votes(work.store, work.data.study))
    prices = prices_of(work.recipe.label, quality)
    wanted = [round(count * times) for times in FURTHER]
    hundred, *curve = [
        asdict(one) | {"price": price_for(one.count - count, prices)}
        for one in forecast(counts, accuracies, errors, [count + 100, *wanted])
    ]
    found = {
        "snapshot": snapshot.id,
        "judgements": count,
        "accuracy": fmean(point["pair_accuracy"] for point in whole),
        "measured": [{"judgements": n, "accuracy": accuracy} for n, accuracy in zip(counts, accuracies, strict=True)],
        "forecast": curve,
        "with_100_more": hundred,
        "price_of_one": prices,
        "unjudged_items": len(work.store.unjudged_items(work.data.study)) if work.data.study else 0,
        "topics": topics_of(whole[-1]["topics"], judged),
        "people": people_of_plan(quality, work.recipe.label),
        "votes": votes_of_plan(quality),
    }
    write_json(work.project.folder / LABEL_PLAN_FILE, found | {"study": work.data.study})
    return found


def learn_from_part(
    work: Work, lesson: Lesson, judged: Sequence[Judged], tested: Sequence[AnswerPair], parts: int, number: int
) -> dict[str, Any]:
    """A reward model on one of so many equal parts of the judged items, measured on held-out comparisons and not kept; its run is."""
    stage, recipe, snapshot = f"plan-{parts}-{number + 1}", work.recipe, lesson.snapshot
    members = sorted({item.id for item, _ in judged}, key=lambda item: derived_seed(recipe.seed, f"plan/{item}", 0))
    chosen = set(members[number % parts :: parts])
    ids = {one.id for item, one in judged if item.id in chosen}
    heldout = content_hash([[prompt.id, better.id, worse.id] for prompt, better, worse in tested])
    parents = {"sft": require_model(work, "sft"), "snapshot": snapshot.id, "heldout": heldout, "stage": stage}
    if (taste := taste_of(work)) is not None:
        parents["style"] = content_hash(list(taste.weights.items()))
    key = stage_key(recipe, ("model", "reward", "data", "sampling"), parents)
    with work.alone(stage):
        if (before := done_before(work, stage, key, True)) is not None:
            return before
        with work.start(
            stage, f"Training a reward model on {len(ids):,} of {len(judged):,} judgements", key, parents
        ) as run:
            policy = work.load_policy("sft", frozen=recipe.lora.on)
            model, epochs, rate, seed = new_scorer(work, "reward", policy, [lesson])
            template, limit, section = model.template, model.module.config.max_positions, recipe.reward
            pairs = work.store.snapshot_pairs(snapshot.id, section.ties == "half")
            pairs = [pair for pair in pairs if ids.issuperset(pair.judgement_ids)]
            if taste is not None and not lesson.by:
                pairs = without_taste(work.store, pairs, taste)
            if template.hash != policy.template.hash:
                pairs = [pair_as_text(pair) for pair in pairs]
            groups = work.usable(encode_pairs(template, pairs, limit, margin=section.margin, task=lesson.task))
            metrics = reward.train(model, groups, section, epochs, rate, Session(run, work.device, seed + number))
            reader = LearnedReward(
                model, work.device, same_tokens=template.hash == policy.template.hash, task=lesson.task
            )
            return run.finish({"judgements": len(ids), **metrics, **measured(work, reader, tested)})


def tested_on(work: Work, lesson: Lesson) -> list[AnswerPair]:
    """Held-out pairs, by gold where it is known, else by people."""
    criterion = lesson.labels.criterion
    by_people, by_gold = heldout_pairs(work, criterion)
    return by_gold if work.data.knows_gold and criterion is None else by_people


def measured(work: Work, reader: LearnedReward, pairs: Sequence[AnswerPair]) -> dict[str, Any]:
    """Accuracy on held-out pairs, and by topic."""
    scores = dict[str, float]()
    found = pair_accuracy(reader, pairs, work.progress.say, scores)
    by_topic: dict[str, list[tuple[str, str, str]]] = {}
    for prompt, better, worse in pairs:
        if better.id in scores and worse.id in scores:
            by_topic.setdefault(topic_in(prompt.meta), []).append((prompt.id, better.id, worse.id))
    topics = {}
    for topic, rows in by_topic.items():
        prompts, better_ids, worse_ids = zip(*rows, strict=True)
        right = win_rate([scores[b] for b in better_ids], [scores[w] for w in worse_ids], prompts)
        topics[topic] = {"pairs": len(rows), "accuracy": right.rate, "low": right.low, "high": right.high}
    return {**found, "topics": topics}
