"""Reward models as stages: trained from the comparisons in force, centred on SFT's answers, tested on what was held out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bridle.compute.device import Device
from bridle.compute.parallel import from_first
from bridle.compute.randomness import derived_seed, generator
from bridle.compute.steps import Session
from bridle.core.records import Completion, Pair, Prompt, Ranking, content_hash
from bridle.core.timeline import timed
from bridle.evaluation.reward_tests import AnswerPair, pair_accuracy, rating_metrics
from bridle.feedback.quality.style import Taste, fit_taste, without_taste
from bridle.feedback.rankings import Item, counted_pairs
from bridle.feedback.store.labels import (
    Lesson,
    labels_for,
    ratings_in_force,
    snapshot_ratings,
)
from bridle.feedback.store.store import LearntFrom
from bridle.feedback.store.versions import weightless
from bridle.models.batches import REWARD, Group
from bridle.models.decoder import DecoderConfig, Trunk, initialise
from bridle.models.encoding import Chosen, DataReport, encode_pairs, encode_rankings, encode_ratings
from bridle.models.policy import Policy, RewardModel, Task, load_policy, save_reward_model
from bridle.models.scorer import Scorer, init_head, scorer_from
from bridle.models.sizes import require_memory
from bridle.playground.gold import CLEAR_GAP
from bridle.recipe.recipe import Recipe
from bridle.rewards.learned import LearnedReward, task_scores
from bridle.stages.adapters import adapter_parents, learner_of
from bridle.stages.preferences import judged_pairs, rating_snapshot, training_snapshot
from bridle.stages.rewards import member_names
from bridle.stages.workspace import Method, Variant, Work, done_before, require_model, stage_key
from bridle.training import reward

CENTRED_ON = 256  # prompts whose answers a reward model is centred and scaled on
SLIM, SHUFFLED = "reward-slim", "reward-shuffled"
TITLES = {
    "reward": "Training the reward model on the comparisons",
    SLIM: "Training a slim reward model (smaller, from random weights) to compare with",
    SHUFFLED: "A check: the slim reward model on shuffled comparisons, from which it must learn nothing",
}


def train_reward(work: Work, method: Method, variant: Variant) -> dict[str, Any]:
    """The full reward model, as many members as the recipe wants, and maybe a slim one."""
    variant.only(method)
    result = train_members(work, variant.reuse)
    return result | ({"slim": slim} if (slim := train_slim(work, variant.reuse)) else {})


def train_members(work: Work, reuse: bool = False) -> dict[str, Any]:
    """The full reward model from SFT's weights, as many members as the recipe wants."""
    names = member_names(work.recipe)
    result, *others = [train_scorer(work, name, reuse or begun_later(work, name)) for name in names]
    if others:
        result["member_accuracies"] = [member.get("pair_accuracy") for member in (result, *others)]
    return result


def train_slim(work: Work, reuse: bool = False) -> dict[str, Any]:
    """The slim one from nothing; nothing where the recipe wants none."""
    return train_scorer(work, SLIM, reuse) if work.recipe.reward.slim else {}


def begun_later(work: Work, name: str) -> bool:
    """Whether one that is trained after this one was begun and stopped: this one is done, then."""
    names = [*member_names(work.recipe), *([SLIM] if work.recipe.reward.slim else [])]
    begun = [runs[-1] for later in names[names.index(name) + 1 :] if (runs := work.project.runs(later))]
    return any(not (run / "result.json").exists() for run in begun)


def train_shuffled(work: Work, reuse: bool = False) -> dict[str, Any]:
    """The control: the slim one again, each prompt's rankings turned round or not by a coin, so nothing can be learnt.

    The held-out pairs are turned round by coins too: whatever direction the noise taught it, it must be right on half of
    them, unless the order of a pair betrays which answer was chosen.
    """
    return train_scorer(work, SHUFFLED, reuse)


def lessons_of(work: Work) -> list[Lesson]:
    """A lesson for each task of the recipe; DataError, before any run, where the store has nothing for one."""
    lessons, store = list[Lesson](), work.store
    for task in work.recipe.reward.tasks:
        labels = labels_for(store, None if task == REWARD else task, work.data.study)
        compared = labels.kind == "comparisons"
        snapshot = training_snapshot(work, labels.criterion) if compared else rating_snapshot(work, labels)
        lessons.append(Lesson(task, labels, snapshot, task if task != REWARD else ""))
    return lessons


def train_scorer(work: Work, stage: str, reuse: bool) -> dict[str, Any]:
    """One reward model: a member from SFT's weights or another model's, "reward-slim" and "reward-shuffled" from nothing."""
    with work.alone(stage):
        recipe, section = work.recipe, work.recipe.reward
        sft_hash, lessons = require_model(work, "sft"), lessons_of(work)
        snapshots = {".".join(filter(None, ("snapshot", one.by))): one.snapshot.id for one in lessons}
        taste, parents = taste_of(work), {"sft": sft_hash, **snapshots, "stage": stage}
        parents |= {} if taste is None else {"style": content_hash(list(taste.weights.items()))}
        if stage in member_names(recipe) and section.path:
            parents["base"] = load_policy(work.project.folder / section.path, work.device.torch, work.verify).origin
        if stage in member_names(recipe):
            parents |= adapter_parents(work, reward_start(work))
        resampled = section.bootstrap and stage in member_names(recipe)[1:]
        key = stage_key(as_member(recipe, resampled), ("model", "reward", "data", "sampling"), parents)
        if (before := done_before(work, stage, key, reuse, stage)) is not None:
            return before
        noted = {**parents, **({"folders": {"base": section.path}} if "base" in parents else {})}
        with work.start(
            stage, TITLES.get(stage, f"Training another reward model, for the ensemble: {stage}"), key, noted
        ) as run:
            policy = work.load_policy("sft", frozen=recipe.lora.on)
            model, epochs, rate, seed = new_scorer(work, stage, policy, lessons)
            turned = turned_by(work, stage)
            encoded = [encoded_lesson(work, one, model, policy, turned, taste) for one in lessons]
            groups = [group for found in encoded for group in work.usable(found)]
            groups = bootstrapped(groups, recipe.seed, stage) if resampled else groups
            # What the scores will be centred on is looked at before training.
            reference_prompts(work, policy, enforce=True)
            result: dict[str, Any] = dict(snapshots)
            for one in lessons:
                if nobodies := weightless(work.store, one.snapshot):
                    result["weightless"] = {**result.get("weightless", {}), **nobodies}
            result |= {} if taste is None else {"style": dict(taste.weights), "style_se": dict(taste.errors)}
            result["judgements"] = sum(len(one.snapshot.judgement_ids) for one in lessons)
            result |= reward.train(model, groups, section, epochs, rate, Session(run, work.device, seed))
            return run.finish({**result, **finish_reward(work, model, policy, stage, lessons)})


def as_member(recipe: Recipe, resampled: bool) -> Recipe:
    """The recipe of one reward model: how many others there are, and how RL combines them, changes none of them."""
    alone = {"reward.members": 2 if resampled else 1, "reward.bootstrap": resampled}
    return recipe.with_settings({**alone, "reward.combine": "mean", "reward.uncertainty": 0.0})


def bootstrapped(groups: Sequence[Group], seed: int, stage: str) -> list[Group]:
    """As many prompts, drawn with replacement, each with all that was said of its answers, which is not independent (Efron 1979)."""
    by_prompt: dict[tuple[int, ...], list[Group]] = {}
    for group in groups:
        by_prompt.setdefault(tuple(group.prompt), []).append(group)
    judged, count = list(by_prompt.values()), len(by_prompt)
    draws = torch.randint(count, (count,), generator=generator(seed, f"bootstrap/{stage}"))
    return [group for number in draws.tolist() for group in judged[number]]


def taste_of(work: Work) -> Taste | None:
    """The labelers' taste for what the recipe wants to keep out of the score; DataError where too little is known of it."""
    names = work.recipe.reward.style_control
    return fit_taste(work.store, names, work.data.study) if names else None


def encoded_lesson(
    work: Work,
    lesson: Lesson,
    model: RewardModel,
    policy: Policy,
    turned: Callable[[Prompt], bool] | None,
    taste: Taste | None,
) -> tuple[list[Group], DataReport]:
    """What a lesson's judgements say, as pairs, whole rankings or ratings."""
    section, template, task, snapshot = work.recipe.reward, model.template, lesson.task, lesson.snapshot
    foreign, limit, what = template.hash != policy.template.hash, model.module.config.max_positions, lesson.what
    if lesson.labels.kind != "comparisons":
        rated = snapshot_ratings(work.store, snapshot.id)
        notes = [lesson.labels.note] if lesson.labels.note else []
        return encode_ratings(template, Chosen(rated, *notes), limit, task, what)
    if section.loss == "ranking":
        rankings = work.store.snapshot_rankings(snapshot.id)
        rankings = [ranking_as_text(ranking) for ranking in rankings] if foreign else rankings
        what = what.replace("comparisons", "rankings")
        return encode_rankings(template, rankings, limit, turned=turned, what=what, task=task)
    pairs = judged_pairs(work, snapshot, ties=section.ties == "half")
    if taste is not None and not lesson.by:
        pairs = Chosen(without_taste(work.store, pairs, taste), *pairs.notes)
    pairs = Chosen(map(pair_as_text, pairs), *pairs.notes) if foreign else pairs
    return encode_pairs(template, pairs, limit, margin=section.margin, turned=turned, what=what, task=task)


def turned_by(work: Work, stage: str) -> Callable[[Prompt], bool] | None:
    """For the control a coin: heads or tails for a prompt, always the same."""
    if stage != SHUFFLED:
        return None
    return lambda prompt: derived_seed(work.recipe.seed, f"coin/{prompt.id}", 0) % 2 == 1


def new_scorer(
    work: Work, stage: str, policy: Policy, lessons: Sequence[Lesson]
) -> tuple[RewardModel, int, float, int]:
    """A reward model before its training, with its epochs, its learning rate, and the seed of its order.

    The members of an ensemble differ in the head that they begin with and in the order; in the pairs too where the recipe wants that.
    """
    recipe, section = work.recipe, work.recipe.reward
    tasks = [Task(one.task, "binary" if one.labels.kind == "vote" else "score") for one in lessons]
    if stage not in member_names(recipe):
        epochs = section.slim_epochs if stage == SLIM else 1
        scorer, source = slim_scorer(recipe, policy, work.device), policy.source.of_tokenizer()
        model = RewardModel(scorer, policy.template, "new", tasks, source=source)
        return model, epochs, section.slim_learning_rate, recipe.seed
    base = work.read_policy(work.project.folder / section.path, frozen=recipe.lora.on) if section.path else policy
    first = stage == "reward"
    head = generator(recipe.seed, "head" if first else f"head/{stage}")
    seed = recipe.seed if first else derived_seed(recipe.seed, f"order/{stage}", 0)
    learns = learner_of(work, base, reward_start(work))
    scorer = scorer_from(learns.module, head, len(tasks))
    model = RewardModel(
        scorer, base.template, "new", tasks, source=base.source, adapter=learns.adapter, rounded=learns.rounded
    )
    return model, section.epochs, section.learning_rate, seed


def reward_start(work: Work) -> Path:
    """The folder of the model that a reward model begins as, but for its head."""
    path = work.recipe.reward.path
    return work.project.folder / path if path else work.project.model("sft")


def pair_as_text(pair: Pair) -> Pair:
    """The pair for a tokenizer that did not write it."""
    return replace(pair, chosen=replace(pair.chosen, token_ids=()), rejected=replace(pair.rejected, token_ids=()))


def ranking_as_text(ranking: Ranking) -> Ranking:
    return replace(ranking, answers=tuple(replace(answer, token_ids=()) for answer in ranking.answers))


def slim_scorer(recipe: Recipe, policy: Policy, device: Device) -> Scorer:
    """A narrower, shallower native scorer with new weights, its heads as wide as the policy's if that is native too."""
    full, width = policy.module.config, recipe.reward.slim_hidden_size
    head_size, rope_theta = (full.head_size, full.rope_theta) if isinstance(full, DecoderConfig) else (32, 10_000.0)
    heads = max(1, width // head_size)
    config = DecoderConfig(
        family="qwen3",
        vocab_size=full.vocab_size,
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 32) * 32,
        layers=recipe.reward.slim_layers,
        heads=heads,
        kv_heads=heads,
        head_size=head_size,
        max_positions=full.max_positions,
        rope_theta=rope_theta,
    )
    require_memory(config.bytes, "the slim reward model of the recipe's [reward]")
    scorer, draws = Scorer(Trunk(config), len(recipe.reward.tasks)), generator(recipe.seed, "slim-weights")
    initialise(scorer, config.layers, draws)
    init_head(scorer, draws)
    return scorer.to(device.torch)


def reference_prompts(work: Work, policy: Policy, enforce: bool) -> list[Prompt]:
    """Training prompts whose fresh answers give the scores their centre and scale."""
    few = work.data.few_train_prompts(CENTRED_ON, "to centre and scale the scores")
    return work.fitting(policy, few, enforce=enforce)


def finish_reward(
    work: Work, model: RewardModel, policy: Policy, name: str, lessons: Sequence[Lesson]
) -> dict[str, Any]:
    """Centre and scale on fresh answers of the reference policy, fit its temperatures, save, and test on held-out judgements. Metrics of
    the first task stand by themselves, those of the others under `tasks`."""
    reader = LearnedReward(model, work.device, same_tokens=model.template.hash == policy.template.hash)
    answered = work.answer(policy, reference_prompts(work, policy, enforce=False), "centre")
    ids = reader.ids(answered.prompts, answered.completions)
    with timed("score"):
        scores = task_scores(model, *ids, work.device)
    reward.set_centre_and_scale(model, scores, [p + a for p, a in zip(ids[0][:4], ids[1][:4], strict=True)])
    turned = turned_by(work, name)
    calibration = fit_temperatures_of(work, reader, lessons, turned)
    learnt = LearntFrom({one.task: one.snapshot.id for one in lessons})
    place = work.project.model(name)
    saved = from_first(
        lambda: save_reward_model(place, model, lambda new: work.register(new, "reward", policy.origin, learnt))
    )
    found = {}
    for lesson, task in zip(lessons, model.tasks, strict=True):
        tested = heldout_metrics(work, reader.by(task.name), lesson, turned)
        found[task.name] = {**tested, **calibration[task.name], "centre": task.centre, "scale": task.scale}
    first = found.pop(model.tasks[0].name)
    parameters = sum(p.numel() for p in model.module.parameters())
    return {**first, **({"tasks": found} if found else {}), "parameters": parameters, "model": saved}


@timed("calibration")
def fit_temperatures_of(
    work: Work, reader: LearnedReward, lessons: Sequence[Lesson], turned: Callable[[Prompt], bool] | None
) -> dict[str, dict[str, float | None]]:
    """The temperature of each task by what people said of held-out answers, and the calibration error before and after."""
    groups, template, limit = list[Group](), reader.model.template, reader.model.module.config.max_positions
    for lesson in lessons:
        labels, what = lesson.labels, f"held-out {lesson.what}"
        if labels.kind != "comparisons":
            rated = ratings_in_force(work.store, labels, "heldout")
            groups += work.usable(encode_ratings(template, rated, limit, lesson.task, what), enforce=False)
            continue
        judged = work.store.judgements(study=work.data.study, split="heldout", criterion=labels.criterion)
        pairs = counted_pairs(judged, work.recipe.reward.ties == "half")
        pairs = pairs if reader.same_tokens else [pair_as_text(pair) for pair in pairs]
        encoded = encode_pairs(template, pairs, limit, turned=turned, what=what, task=lesson.task)
        groups += work.usable(encoded, enforce=False)
    return reward.fit_temperatures(reader.model, groups, work.device)


@timed("test")
def heldout_metrics(
    work: Work, reader: LearnedReward, lesson: Lesson, turned: Callable[[Prompt], bool] | None
) -> dict[str, Any]:
    """Accuracy on held-out pairs, against gold (clear pairs) where it is known, against people everywhere; or on held-out ratings."""
    if lesson.labels.kind != "comparisons":
        return rating_metrics(reader, ratings_in_force(work.store, lesson.labels, "heldout"), work.progress.say)
    criterion = lesson.labels.criterion
    gold_known = work.data.knows_gold and criterion is None
    by_people, by_gold = (turned_round(pairs, turned) for pairs in heldout_pairs(work, criterion))
    known = dict[str, float]()  # both tests ask about the same answers
    people = pair_accuracy(reader, by_people, work.progress.say, known)
    metrics = {f"people_{name}": value for name, value in people.items()}
    gold = pair_accuracy(reader, by_gold, work.progress.say, known) if gold_known else people
    return {**metrics, **gold}


def heldout_pairs(work: Work, criterion: str | None = None) -> tuple[list[AnswerPair], list[AnswerPair]]:
    """Held-out answers by people, the best of each judgement against the others, and by gold, where it is known (of the whole) and clear;
    of an item that several judged each pair of gold's once."""
    by_people: list[AnswerPair] = []
    items = dict[str, Item]()
    for item, judgement in work.store.judgements(study=work.data.study, split="heldout", criterion=criterion):
        (best, *_), *others = judgement.ranking  # what tied with the best was not beaten by it
        by_people += [
            (item.prompt, item.completions[best], item.completions[slot]) for group in others for slot in group
        ]
        items |= {item.id: item} if criterion is None else {}
    return by_people, [pair for item in items.values() for pair in clear_pairs(work, item.prompt, item.completions)]


def clear_pairs(work: Work, prompt: Prompt, completions: Sequence[Completion]) -> list[AnswerPair]:
    """Every two answers of which gold clearly prefers one, where gold is known."""
    scores = work.data.score([prompt] * len(completions), completions, "evaluation")
    return [
        (prompt, better, worse)
        for better, high in zip(completions, scores, strict=False)
        for worse, low in zip(completions, scores, strict=False)
        if high.points - low.points > CLEAR_GAP
    ]


def turned_round(pairs: list[AnswerPair], turned: Callable[[Prompt], bool] | None) -> list[AnswerPair]:
    if turned is None:
        return pairs
    return [(p, worse, better) if turned(p) else (p, better, worse) for p, better, worse in pairs]
