"""Rewards looked at before anything learns from them: what that of RL pays for answers that nobody should be paid for, and how often a
reward model is right on comparisons, of a file or those held out."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridle.core.files import finite_or_none, write_text
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.core.text import json_text
from bridle.evaluation.benchmark import ComparedRow, benchmark_metrics, comparisons_in
from bridle.feedback.quality.votes import topic_in
from bridle.guard.probes import Ordinary, Probe, best_paid, build_probes, ordinary_pay, pay_of, random_edits
from bridle.models.policy import Policy
from bridle.rewards.classifier import Classifier
from bridle.rewards.learned import LearnedReward
from bridle.stages.reward import heldout_pairs
from bridle.stages.rewards import (
    is_own,
    load_scores,
    others_reward,
    require_reward_at,
    reward_parents,
    training_reward,
)
from bridle.stages.workspace import Work, done_before, require_model, stage_key

PROMPTS = 256
ANSWERS = 2  # ordinary ones to each prompt
LISTED = 5  # of the best-paid nonsense


def probe_reward(work: Work, by: str = "reward", search: int = 0, reuse: bool = False) -> dict[str, Any]:
    """Feed ordinary answers of SFT to held-out prompts, and probes made of them, to what RL learns from: the recipe's reward sources, the
    project's reward model, or its verifier. The result has what each kind is paid, `faults` in words, and the `best` of `search` random
    edits; probes.jsonl in the run's folder has every text with its score."""
    stage, recipe = "reward-probe", work.recipe
    with work.alone(stage):
        checkable = work.data.checkable() if by == "verifier" else None
        parents: dict[str, Any] = {
            "sft": require_model(work, "sft"),
            "by": by,
            "search": search,
            "world": work.data.world_hash,
        }
        parents |= {} if checkable else reward_parents(work)
        key = stage_key(recipe, ("model", "data", "sampling"), parents)
        if (before := done_before(work, stage, key, reuse)) is not None:
            return before
        with work.start(stage, f"Probing what the {by} pays for", key, parents) as run:
            policy = work.read_policy(work.project.model("sft"))
            asked = checkable.heldout if checkable else work.data.heldout_prompts()
            prompts = work.fitting(policy, asked[:PROMPTS])
            reward = checkable.verifier if checkable else training_reward(work, policy)
            answered = [work.answer(policy, prompts, stage, number).completions for number in range(ANSWERS)]
            ordinary_PK = list(zip(*[reward(prompts, completions) for completions in answered], strict=True))
            ordinary, texts = (
                ordinary_pay(ordinary_PK),
                [[one.text for one in row] for row in zip(*answered, strict=True)],
            )
            probes = build_probes(prompts, texts, work.data.good_answers(prompts))
            scores = paid(work, policy, reward, prompts, probes)
            result = by_kind(probes, scores, ordinary)
            if search:
                edits = random_edits(texts, search, random.Random(f"{recipe.seed}/{stage}"))
                found = paid(work, policy, reward, prompts, edits)
                best = best_paid(edits, found, ordinary, LISTED)
                result["best"] = [{**one, "prompt": prompts[one.pop("place")].text} for one in best]
                probes, scores = probes + edits, scores + found
            lines = [
                {"kind": probe.kind, "prompt": prompts[probe.place].text, "answer": probe.text, "score": score}
                for probe, score in zip(probes, scores, strict=True)
            ]
            write_text(run.folder / "probes.jsonl", "".join(json_text(finite_or_none(line)) + "\n" for line in lines))
            return run.finish(
                {"prompts": len(prompts), "ordinary_mean": ordinary.mean, "ordinary_sd": ordinary.sd, **result}
            )


def by_kind(probes: Sequence[Probe], scores: Sequence[float | None], ordinary: Ordinary) -> dict[str, Any]:
    kinds, faults = dict[str, Any](), list[str]()
    for kind in dict.fromkeys(probe.kind for probe in probes):
        rows = [i for i, probe in enumerate(probes) if probe.kind == kind]
        pay = pay_of(kind, [probes[i].place for i in rows], [scores[i] for i in rows], ordinary)
        if pay is None:
            faults.append(f"{kind}: the reward could judge none of {len(rows)} answers")
            continue
        kinds[kind] = {name: value for name, value in asdict(pay).items() if name != "kind"}
        faults += [pay.fault] if pay.fault else []
    return {"kinds": kinds, "faults": faults}


def paid(
    work: Work, policy: Policy, reward: Reward, prompts: Sequence[Prompt], probes: Sequence[Probe]
) -> list[float | None]:
    """What each probe is paid, as if the policy had written it: in its tokens, and cut off where it may write no more."""
    asked = [prompts[probe.place] for probe in probes]
    limit, completions = work.recipe.sampling.max_new_tokens, []
    for prompt, probe, ids in zip(
        asked, probes, policy.template.completion_ids(asked, [p.text for p in probes]), strict=True
    ):
        ids = ids[:-1] if probe.cut_off else ids
        cut_off = probe.cut_off or len(ids) > limit
        text = policy.template.decode(ids[:limit]) if len(ids) > limit else probe.text
        reason = FinishReason.LENGTH if cut_off else FinishReason.STOP
        completions.append(Completion(prompt.id, text, tuple(ids[:limit]), finish_reason=reason))
    return list(reward(asked, completions))


# ------------------------------------------------------------------------------------------------- on comparisons


def benchmark_reward(work: Work, named: str, file: Path | None) -> dict[str, Any]:
    """By a reward model of the project, by its name, or by the path of one, of somebody else's too."""
    folder = Path(named)
    if folder.name == named:
        folder = work.project.model(named)
        require_model(work, named, scores=True)
    else:
        require_reward_at(folder, f"--model {named}")
    rows = heldout_comparisons(work) if file is None else comparisons_in(file)
    if is_own(folder):
        require_model(work, "sft")
        reader: LearnedReward | Classifier = load_scores(work, folder, work.read_policy(work.project.model("sft")))
    else:
        reader = others_reward(work, folder)
    return {"model": named, **benchmark_metrics(reader, rows)}


def heldout_comparisons(work: Work) -> list[ComparedRow]:
    return [ComparedRow(p, (better, worse), 1, topic_in(p.meta) or "") for p, better, worse in heldout_pairs(work)[0]]


def benchmark_lines(found: Mapping[str, Any]) -> list[str]:
    """For the terminal."""

    def line(name: str, one: Mapping[str, Any]) -> str:
        return f"{name}: {one['accuracy']:.3f} ({one['accuracy_low']:.3f} to {one['accuracy_high']:.3f}) of {one['scored']:,}"

    lines = [line("right", found), f"longest {found['longest']:.3f}, shortest {found['shortest']:.3f}"]
    lines += [f"left out, for they cannot be scored: {found['unscored']:,}"] if found["unscored"] else []
    lines += [f"  {line(name, one)}" for name, one in found.get("subsets", {}).items()]
    if found["temperature"] is None:
        return [*lines, "too few comparisons to say what its scores mean"]
    return [
        *lines,
        f"temperature {found['temperature']:.3g}: an answer that scores so much more is better at odds of e to 1; calibration error "
        f"{found['ece_before']:.3f} -> {found['ece_after']:.3f}",
    ]
