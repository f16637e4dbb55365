"""The playground's critic: a copy of SFT learns from dialogues to say what is wrong with an answer, and to write a better one.

Nothing else changes by it: neither the base model nor its data. How well it was learnt is measured on SFT's own answers to held-out
prompts, by gold; no setting follows from that.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridle.compute.randomness import derived_seed
from bridle.core.errors import NoUsableRows, UsageError
from bridle.core.records import Completion, Prompt, content_hash
from bridle.core.timeline import timed
from bridle.evaluation.answers import Answered
from bridle.generation.engine import answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.encoding import prompts_that_fit
from bridle.models.policy import Policy
from bridle.playground.critiques import Critic
from bridle.playground.gold import CLEAR_GAP, EASY_GAP
from bridle.rewards.constitution.constitution import (
    Constitution,
    constitution_of,
    load_constitution,
    shipped_constitution,
)
from bridle.rewards.constitution.dialogues import critique_prompt, revise_once, revision_prompt
from bridle.rewards.judge.local import LocalModel
from bridle.rewards.judge.questions import Rubric
from bridle.rewards.judge.rulings import read_ruling
from bridle.stages.adapters import adapter_parents
from bridle.stages.data import PlaygroundData, StoreData
from bridle.stages.sft import imitate_demonstrations
from bridle.stages.workspace import Work, done_before, require_model, stage_key

CRITIC = "critic"


def project_constitution(work: Work) -> Constitution:
    """The recipe's file; else the one that the data brings; else the one that comes with bridle."""
    section = work.recipe.constitution
    if section.file:
        return load_constitution(work.project.folder / section.file)
    if (tables := work.data.own_constitution()) is not None:
        return constitution_of(tables, "of the world")
    return load_constitution(shipped_constitution(section.language))


def ask_model(
    work: Work, policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, seed: int
) -> list[Completion | None]:
    """A reply to each prompt; None where it leaves no room for one, or the chat template refuses it."""
    limit = policy.module.config.max_positions
    kept, _ = prompts_that_fit(policy.template, prompts, sampling.max_new_tokens, limit)
    known = {prompt.id: prompt for prompt in kept}
    there = [(number, known[prompt.id]) for number, prompt in enumerate(prompts) if prompt.id in known]
    found: list[Completion | None] = [None] * len(prompts)
    if there:
        work.engine.load(policy)
        samples = [int(prompt.id[:12], 16) for _, prompt in there]  # the same reply whatever else is asked
        replies = answer_prompts(
            work.engine, policy, [prompt for _, prompt in there], sampling, seed=seed, samples=samples
        )
        for (number, _), reply in zip(there, replies, strict=True):
            found[number] = reply
    return found


# ------------------------------------------------------------------------------------------------------------ teaching


def train_critic(work: Work, reuse: bool = False) -> dict[str, Any]:
    """Teach a copy of SFT, called critic, and measure it."""
    data, recipe = work.data, work.recipe
    if isinstance(data, StoreData):
        raise UsageError(
            "only the playground's world writes critiques to learn from; name a model of this project in constitution.model"
        )
    with work.alone(CRITIC):
        critic, count = data.critic, recipe.constitution.critic_answers
        parents = {"sft": require_model(work, "sft"), "world": data.world_hash}
        parents |= adapter_parents(work, work.project.model("sft"))
        taught = [content_hash(critic.spec.model_dump(mode="json")), count]
        key = content_hash([stage_key(recipe, ("model", "sft"), parents), taught])
        if (before := done_before(work, CRITIC, key, reuse, CRITIC)) is not None:
            return before
        title = "A copy of SFT learns to say what is wrong with an answer, and to write a better one"
        with work.start(CRITIC, title, key, parents) as run:
            config = recipe.sft.model_copy(update={"epochs": 1})
            ours = constitution_of(critic.tables(), "of the world")  # whatever file is revised by
            demonstrations = written_dialogues(critic, ours, count, random.Random(f"{recipe.seed}/critic"))
            result = imitate_demonstrations(work, run, CRITIC, demonstrations, config, start="sft")
            metrics = measure_critic(work, data, ours)
            return run.finish({**result, **metrics})


@timed("data")
def written_dialogues(critic: Critic, ours: Constitution, count: int, rng: random.Random) -> list[tuple[Prompt, str]]:
    """Of each answer a critique by one of the principles, and where it finds a fault a better answer."""
    found = []
    for _ in range(count):
        prompt, answer = critic.answer(rng)
        principle = rng.choice(ours.principles)
        fault = critic.fault(prompt, answer, principle.name)
        asked, words = critique_prompt(prompt, answer, principle), critic.words(fault)
        found.append((asked, words))
        if fault is not None:
            found.append((revision_prompt(asked, words, principle), critic.better(rng, prompt)))
    return found


# ----------------------------------------------------------------------------------------------------------- measuring


@timed("measure")
def measure_critic(work: Work, data: PlaygroundData, ours: Constitution) -> dict[str, Any]:
    """On two answers of SFT to each held-out prompt: are its verdicts right, do its grades prefer what gold prefers, and are its revisions
    better?"""
    sft, policy = work.read_policy(work.project.model("sft")), work.read_policy(work.project.model(CRITIC))
    prompts = work.fitting(sft, [*data.heldout_prompts(), *data.probe_prompts()], "held-out prompts", enforce=False)
    both, verdicts, worth = grade_both(work, policy, [work.answer(sft, prompts, CRITIC, number) for number in range(2)])
    gold = [[score.points for score in data.score(answered.prompts, answered.completions, CRITIC)] for answered in both]
    pairs = [pair for answered in both for pair in answer_texts(answered)]
    true = [data.critic.fault(prompt, text, data.critic.spec.grading) for prompt, text in pairs]
    harm = data.critic.words("harm")
    alarms = [(fault == "harm", verdict == harm) for fault, verdict in zip(true, verdicts, strict=True)]
    right = [data.critic.words(fault) == verdict for fault, verdict in zip(true, verdicts, strict=True)]
    measured = {
        "answers": len(pairs),
        "exact": share_or_none(right),
        "most_common": max(true.count(fault) for fault in set(true)) / len(true),
        "harm_recall": share_or_none([alarm for harmful, alarm in alarms if harmful]),
        "false_alarms": share_or_none([alarm for harmful, alarm in alarms if not harmful]),
        **preferences(both[0].prompts, np.array(worth), np.array(gold)),
    }
    return {**measured, **measure_revisions(work, policy, both[0], gold[0], ours)}


def answer_texts(answered: Answered) -> list[tuple[Prompt, str]]:
    return [(prompt, one.stripped) for prompt, one in zip(answered.prompts, answered.completions, strict=True)]


def grade_both(
    work: Work, policy: Policy, both: Sequence[Answered]
) -> tuple[list[Answered], list[str], list[list[float]]]:
    """Of two answers to each prompt the likeliest verdicts, one after the other, and the expected grades [2][P], as a judge has them;
    without the prompts of which a critique does not fit into the model's context."""
    assert isinstance(work.data, PlaygroundData)
    rubric = Rubric(asks=work.data.critic.question(), verdicts=tuple(work.data.critic.grades().items()))
    asked = [[rubric.question("rating", prompt, [text]) for prompt, text in answer_texts(one)] for one in both]
    local = LocalModel(policy, work.device)
    replies = [local.ask(questions) for questions in asked]
    fit = [i for i in range(len(asked[0])) if not any(each[i].fault for each in replies)]
    if not fit:
        limit = policy.module.config.max_positions
        raise NoUsableRows(
            f"no critique fits into the model's context of {limit}; raise model.max_positions before pretraining"
        )
    verdicts, worth = list[str](), list[list[float]]()
    for questions, each in zip(asked, replies, strict=True):
        verdicts += [max(each[i].probabilities, key=each[i].probabilities.__getitem__) for i in fit]
        worth.append([read_ruling(questions[i], each[i]).scores[0] for i in fit])
    kept = [Answered([one.prompts[i] for i in fit], [one.completions[i] for i in fit]) for one in both]
    return kept, verdicts, worth


def preferences(prompts: Sequence[Prompt], worth_2P: np.ndarray, gold_2P: np.ndarray) -> dict[str, Any]:
    """How often the answer of the higher grade is that of more gold: of all pairs that gold clearly tells apart, and of the easy ones of
    harmful prompts."""
    gap_P, agrees_P = gold_2P[0] - gold_2P[1], (worth_2P[0] - worth_2P[1]) * (gold_2P[0] - gold_2P[1]) > 0
    about_harm = np.array([prompt.meta["family"] == "harm" for prompt in prompts])
    clear, easy = np.abs(gap_P) > CLEAR_GAP, about_harm & (np.abs(gap_P) > EASY_GAP)
    found = {"preference": share_or_none(agrees_P[clear]), "preference_easy_harm": share_or_none(agrees_P[easy])}
    return {**found, "easy_harm_pairs": int(easy.sum())}


def measure_revisions(
    work: Work, policy: Policy, answered: Answered, gold: Sequence[float], ours: Constitution
) -> dict[str, Any]:
    """Mean gold of answers before and after one critique and revision by the grading principle: to harmful prompts, and to others."""
    assert isinstance(work.data, PlaygroundData)
    principle, prompts = ours.principle(work.data.critic.spec.grading), answered.prompts
    sampling = Sampling(work.recipe.sampling.max_new_tokens, 0.0)

    def ask(asked: Sequence[Prompt]) -> list[str | None]:
        replies = ask_model(work, policy, asked, sampling, derived_seed(work.recipe.seed, CRITIC, 0))
        return [None if reply is None else reply.text for reply in replies]

    steps = revise_once(
        ours, prompts, [one.stripped for one in answered.completions], [principle] * len(prompts), ask, ask
    )
    scores = work.data.score(
        prompts, [Completion(p.id, step.answer) for p, step in zip(prompts, steps, strict=True)], CRITIC
    )
    found = {}
    for name, wanted in (("harm", True), ("benign", False)):
        rows = [i for i, prompt in enumerate(prompts) if (prompt.meta["family"] == "harm") is wanted]
        found[f"{name}_before"] = float(np.mean([gold[i] for i in rows])) if rows else None
        found[f"{name}_after"] = float(np.mean([scores[i].points for i in rows])) if rows else None
    return found


def share_or_none(found: Sequence[bool] | np.ndarray) -> float | None:
    """None of nothing."""
    return float(np.mean(found)) if len(found) else None
