"""Floor 8: reward models as stages: trained from the comparisons in force, centred on SFT's answers, tested on what was held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bridle.core.recipe import Recipe
from bridle.core.records import Completion, Pair, Prompt
from bridle.core.timeline import timed
from bridle.evaluation.answers import answer_all
from bridle.feedback.rankings import pairs_of
from bridle.models.decoder import DecoderConfig, Trunk, initialise
from bridle.models.device import Device
from bridle.models.policy import Policy, RewardModel, load_policy, save_reward_model
from bridle.models.randomness import derived_seed, generator
from bridle.models.scorer import Scorer, init_head, scorer_from
from bridle.rewards.learned import LearnedReward, task_scores
from bridle.sources import STUDY
from bridle.stages import (
    CLEAR_GAP,
    PAIR_FIGURES,
    Work,
    coin,
    done_before,
    encode_groups,
    member_names,
    parent_policy,
    require_model,
    stage_key,
    training_snapshot,
    within_context,
)
from bridle.training import reward

TITLES = {
    "reward": "Training the reward model on the comparisons",
    "reward-slim": "Training a slim reward model beside it",
    "reward-shuffled": "Control: a slim reward model on shuffled labels",
}


def train_reward(work: Work, reuse: bool = False) -> dict[str, Any]:
    """The full reward model from SFT's weights, as many members as the recipe wants, and maybe a slim one from nothing."""
    names = [*member_names(work.recipe), *(["reward-slim"] if work.recipe.reward.slim else [])]
    begun = [runs[-1] for name in names[1:] if (runs := work.project.runs(name))]
    going_on = any(not (run / "result.json").exists() for run in begun)  # stopped in a later one: those before are done
    result, *others = [train_scorer(work, name, reuse or going_on) for name in names]
    if work.recipe.reward.slim:
        result["slim"] = others.pop()
    if others:
        result["member_accuracies"] = [member["pair_accuracy"] for member in (result, *others)]
    return result


def train_shuffled(work: Work, reuse: bool = False) -> dict[str, Any]:
    """The control: the slim one again, each prompt's rankings turned round or not by a coin, so nothing can be learnt.

    The held-out pairs are turned round by coins too: whatever direction the noise taught it, it must be right on half of
    them, unless the order of a pair betrays which answer was chosen.
    """
    return train_scorer(work, "reward-shuffled", reuse)


def train_scorer(work: Work, stage: str, reuse: bool) -> dict[str, Any]:
    """One reward model: a member from SFT's weights or another model's, "reward-slim" and "reward-shuffled" from nothing."""
    recipe, section = work.recipe, work.recipe.reward
    sft_hash = require_model(work.project, "sft", "train sft")
    snapshot = training_snapshot(work)
    parents = {"sft": sft_hash, "snapshot": snapshot.id, "stage": stage}
    member = stage in member_names(recipe)
    if member and section.path:
        parents["base"] = load_policy(work.project.folder / section.path, work.device.torch).origin
    # How many members there are, and how RL combines them, changes none of them.
    alone = recipe.with_settings({"reward.members": 1, "reward.combine": "mean", "reward.uncertainty": 0.0})
    key = stage_key(alone, ("model", "reward", "data", "sampling"), parents)
    if (before := done_before(work, stage, key, reuse, stage)) is not None:
        return before
    with work.start(stage, TITLES.get(stage, f"Another for the ensemble: {stage}"), key, parents) as run:
        pairs = work.sources.store.snapshot_pairs(snapshot.id, ties=section.ties == "half")
        policy = parent_policy(work, "sft")
        model, epochs, rate, seed = new_scorer(work, stage, policy)
        if model.template.hash != policy.template.hash:
            pairs = [as_text(pair) for pair in pairs]
        groups = encode_groups(
            work, model, pairs, stage == "reward-shuffled", section.margin, rankings=section.loss == "ranking"
        )
        reference_prompts(work, policy, enforce=True)  # what the scores will be centred on is looked at before training
        result = {"snapshot": snapshot.id, "judgements": len(snapshot.judgement_ids), "pairs": len(pairs)}
        result |= reward.train(model, groups, section, epochs, rate, work.device, run, seed)
        return run.finish({**result, **finish_reward(work, model, policy, stage)})


def new_scorer(work: Work, stage: str, policy: Policy) -> tuple[RewardModel, int, float, int]:
    """A reward model before its training, with its epochs, its learning rate, and the seed of its order.

    The members of an ensemble learn the same pairs and differ in the head that they begin with and in the order.
    """
    recipe, section = work.recipe, work.recipe.reward
    if stage not in member_names(recipe):
        epochs = section.slim_epochs if stage == "reward-slim" else 1
        model = RewardModel(slim_scorer(recipe, policy, work.device), policy.template, "new")
        return model, epochs, section.slim_learning_rate, recipe.seed
    base = load_policy(work.project.folder / section.path, work.device.torch) if section.path else policy
    first = stage == "reward"
    head = generator(recipe.seed, "head" if first else f"head/{stage}")
    seed = recipe.seed if first else derived_seed(recipe.seed, f"order/{stage}", 0)
    model = RewardModel(scorer_from(base.module, head), base.template, "new")
    return model, section.epochs, section.learning_rate, seed


def as_text(pair: Pair) -> Pair:
    """The pair for a tokenizer that did not write it."""
    return replace(pair, chosen=replace(pair.chosen, token_ids=()), rejected=replace(pair.rejected, token_ids=()))


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
    scorer, draws = Scorer(Trunk(config)), generator(recipe.seed, "slim-weights")
    initialise(scorer, config.layers, draws)
    init_head(scorer, draws)
    return scorer.to(device.torch)


def reference_prompts(work: Work, policy: Policy, enforce: bool) -> list[Prompt]:
    """Training prompts whose fresh answers give the scores their centre and scale."""
    prompts, tokens = work.sources.train_prompts()[:256], work.recipe.sampling.max_new_tokens
    return within_context(work, policy, prompts, tokens, enforce=enforce)


def finish_reward(work: Work, model: RewardModel, policy: Policy, name: str) -> dict[str, Any]:
    """Centre and scale on fresh answers of the reference policy, fit its chances, save, and test on held-out comparisons."""
    recipe = work.recipe
    reader = LearnedReward(model, work.device, same_tokens=model.template.hash == policy.template.hash)
    prompts = reference_prompts(work, policy, enforce=False)
    answered = answer_all(
        policy, work.engine, prompts, recipe.sampling.max_new_tokens, derived_seed(recipe.seed, "centre", 0)
    )
    ids = reader.ids(answered.prompts, answered.completions)
    with timed("score"):
        scores = task_scores(model, *ids, work.device)
    reward.calibrate(model, scores, [p + a for p, a in zip(ids[0][:4], ids[1][:4], strict=True)])
    chances = fit_chances(work, reader, name == "reward-shuffled")
    saved = save_reward_model(work.project.model(name), model)
    work.sources.store.add_model_version(name, kind="reward", weights_sha256=saved, parent=policy.origin)
    parameters = sum(p.numel() for p in model.module.parameters())
    return {
        **pair_figures(work, reader, name == "reward-shuffled"),
        **chances,
        "parameters": parameters,
        "centre": model.tasks[0].centre,
        "scale": model.tasks[0].scale,
        "model": saved,
    }


@timed("chances")
def fit_chances(work: Work, reader: LearnedReward, shuffle_labels: bool) -> dict[str, float | None]:
    """The temperature by what people said of held-out answers, and the calibration error before and after."""
    study = STUDY if work.sources.playground else None
    judged = work.sources.store.judgements(study=study, split="heldout")
    pairs = [pair for item, judgement in judged for pair in pairs_of(item, judgement)]
    pairs = pairs if reader.same_tokens else [as_text(pair) for pair in pairs]
    groups = encode_groups(work, reader.model, pairs, shuffle_labels, heldout=True)
    return reward.fit_chances(reader.model, groups, work.device)[reader.model.tasks[0].name]


@timed("test")
def pair_figures(work: Work, reader: LearnedReward, shuffle_labels: bool) -> dict[str, Any]:
    """Accuracy on held-out pairs: against gold (clear pairs) on the playground, against people everywhere."""
    pairs: list[tuple[Prompt, Completion, Completion]] = []
    by_gold: list[tuple[Prompt, Completion, Completion]] = []
    study = STUDY if work.sources.playground else None
    for item, judgement in work.sources.store.judgements(study=study, split="heldout"):
        (best, *_), *others = judgement.ranking  # what tied with the best was not beaten by it
        pairs += [(item.prompt, item.completions[best], item.completions[slot]) for group in others for slot in group]
        order = range(len(item.completions))
        if work.sources.playground:
            scores = work.sources.gold_scores([item.prompt] * len(order), item.completions, "evaluation")
            for a in range(len(order)):
                for b in range(len(order)):
                    if scores[a].points - scores[b].points > CLEAR_GAP:
                        by_gold.append((item.prompt, item.completions[a], item.completions[b]))
    if shuffle_labels:
        pairs, by_gold = (
            [(p, b, a) if coin(work.recipe.seed, p) else (p, a, b) for p, a, b in some] for some in (pairs, by_gold)
        )
    people = pair_accuracy(work, reader, pairs)
    figures = {"people_" + name: value for name, value in people.items()}
    return {**figures, **(pair_accuracy(work, reader, by_gold) if work.sources.playground else people)}


def pair_accuracy(
    work: Work, reader: LearnedReward, pairs: Sequence[tuple[Prompt, Completion, Completion]]
) -> dict[str, Any]:
    """Share of pairs whose better answer scores higher, interval by bootstrap over prompts, with two rules of thumb beside it."""
    fits = within(reader, pairs)
    if len(fits) < len(pairs):
        work.progress.say(
            f"{len(pairs) - len(fits)} of {len(pairs)} held-out pairs are longer than the context and left out"
        )
    if not fits:
        work.progress.say("there is no held-out pair to test the reward model on; import more comparisons")
        return dict.fromkeys(PAIR_FIGURES) | {"heldout_pairs": 0}
    asked = {answer.id: (p, answer) for p, c, r in fits for answer in (c, r)}  # an answer is in several pairs
    found = reader([p for p, _ in asked.values()], [answer for _, answer in asked.values()])
    score = dict(zip(asked, (float(s or 0) for s in found), strict=True))
    right = np.array([score[c.id] > score[r.id] for _, c, r in fits], dtype=float)
    longer = np.sign([len(c.text) - len(r.text) for _, c, r in fits])
    low, high = cluster_interval(right, [p.id for p, _, _ in fits])
    return {
        "pair_accuracy": float(right.mean()),
        "pair_accuracy_low": low,
        "pair_accuracy_high": high,
        "heldout_pairs": len(fits),
        "longest": float((longer > 0).mean() + (longer == 0).mean() / 2),
        "shortest": float((longer < 0).mean() + (longer == 0).mean() / 2),
    }


def within(
    reader: LearnedReward, pairs: Sequence[tuple[Prompt, Completion, Completion]]
) -> list[tuple[Prompt, Completion, Completion]]:
    """Pairs that the context holds."""
    limit, asked = reader.model.module.config.max_positions, [p for p, _, _ in pairs]
    prompts, better = reader.ids(asked, [b for _, b, _ in pairs])
    _, worse = reader.ids(asked, [w for _, _, w in pairs])
    lengths = [len(p) + max(len(b), len(w)) for p, b, w in zip(prompts, better, worse, strict=True)]
    return [pair for pair, length in zip(pairs, lengths, strict=True) if length <= limit]


def cluster_interval(right: np.ndarray, groups: Sequence[str], resamples: int = 1000) -> tuple[float, float]:
    """95% percentile bootstrap of a share whose outcomes come in groups: whole prompts are drawn, not pairs."""
    names, index = np.unique(np.array(groups), return_inverse=True)
    hits, sizes = np.bincount(index, right), np.bincount(index)
    draws = np.random.default_rng(0).integers(0, len(names), (resamples, len(names)))
    shares = hits[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)
