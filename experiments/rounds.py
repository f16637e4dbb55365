"""E13 on the playground: a reward model goes stale under the policy that learns from it, is noticed, and is mended by a second round.

Along E3's run people rank answers of the policy as it then is, and the staleness test of `bridle reward stale` looks at what they say. The
reward model is trained again on old and new rankings, and PPO as the recipe has it goes on from the first round's peak. In the other arm
all these are answers of SFT: what more labels bring by themselves.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridle.core.records import Prompt
from bridle.evaluation.reward_tests import pair_accuracy
from bridle.project.project import Project
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.reward import clear_pairs, train_members
from bridle.stages.rewards import load_scores
from bridle.stages.sample import sample
from bridle.stages.stale import judge_staleness
from bridle.stages.workspace import Work
from experiments.harness import Claim, Experiment, Row
from experiments.playground import (
    AFAR,
    HALF,
    Floats,
    Halves,
    gold_of,
    in_lab,
    measured,
    peak_of,
    train_kept,
    train_kept_by,
)

STEPS = (8, 12, 16, 20)  # of the run, after which the test looks
WATCHED = 100  # training prompts of each, with as many held-out ones, four answers to each
ASKED = 150  # more of the last of them
REFRESHED = {
    "reward.epochs": 3
}  # passes over old and new comparisons: one is too little to unlearn what the first model believes
PROMPTS = 2048  # held out, that the peaks' gold is measured on
TURNED = 0.5  # points under its peak, where gold has turned
PEAK = "first-peak"
MADE = ("base", "sft", "sample", "label", "reward")  # before a project practises


def measure_in(work: Work, prompts: Halves, settings: Mapping[str, Any]) -> Row:
    first = train_kept(work, "unbridled", settings)
    sft, late, reward = first[0], first[STEPS[-1]], work.project.model("reward")
    golds = {step: gold_of(work, folder, prompts.choose) for step, folder in first.items()}
    peak = peak_of(golds)
    turned = next((step for step in sorted(golds) if step > peak and worse_by(TURNED, golds, step, peak)), max(golds))
    right = {
        "SFT's": accuracy(work, reward, sft, prompts.score),
        "its policy's": accuracy(work, reward, late, prompts.score),
    }
    row = {f"right on {whose}": share for whose, share in right.items()}
    row |= {"lost": right["SFT's"] - right["its policy's"], "step of the turn": float(turned)}
    scored = work.data.world.held_out_prompts(PROMPTS, seed=2 * AFAR + work.recipe.seed)
    row["first: peak"] = float(gold_of(work, first[peak], scored).mean())
    for name, folder in (("SFT", sft), ("late", late)):
        row[f"refusals, {name}"] = measured(work, folder, prompts.score)["refuses_benign"]
    for arm, answering in (("own", {step: first[step] for step in STEPS}), ("sft", dict.fromkeys(STEPS, sft))):
        found = second_round(work, arm, answering, (first[peak], late), prompts, scored)
        found["noticed"] = float(found.get("alarm", turned + 1) <= turned)
        row |= {f"{arm}: {name}": value for name, value in found.items()}
    won_back = row["own: right on its policy's"] - right["its policy's"]
    row |= {"mended over 0.8": won_back - 0.8 * row["lost"], "over the first": row["own: peak"] - row["first: peak"]}
    for name in ("peak", "right on its policy's"):
        row[f"{name}, over the other arm"] = row[f"own: {name}"] - row[f"sft: {name}"]
    return row


def second_round(
    work: Work,
    arm: str,
    answering: Mapping[int, Path],
    first: tuple[Path, Path],
    prompts: Halves,
    scored: Sequence[Prompt],
) -> dict[str, float]:
    """People compare, the reward model is trained again, and PPO goes on. `first`: the first round's policies, at its peak, where this one
    begins, and in its middle, on whose answers accuracy is measured."""
    again, (start, late) = with_settings(beside(work, arm), REFRESHED), first
    try:
        found = compare(again, answering)
        train_members(again)
        found["right on its policy's"] = accuracy(again, again.project.model("reward"), late, prompts.score)
        begun = {"start": named(again, PEAK, start), "reference": PEAK}
        kept = {0: start, **train_kept_by(METHODS["ppo"], again, "second", begun)}
        peak = peak_of({step: gold_of(again, folder, prompts.choose) for step, folder in kept.items()})
        found["step of the peak"] = float(peak)
        for name, step in (("peak", peak), ("end", max(kept))):
            found[name] = float(gold_of(again, kept[step], scored).mean())
        return found
    finally:
        again.close()


def worse_by(points: float, golds: Mapping[int, Floats], step: int, than: int) -> bool:
    return float(golds[step].mean()) < float(golds[than].mean()) - points


def accuracy(work: Work, reward: Path, answering: Path, prompts: Sequence[Prompt]) -> float:
    """Share of pairs that gold clearly tells apart, of two fresh answers of a policy, which a reward model orders as gold does."""
    policy = work.read_policy(answering)
    two = [work.answer(policy, work.fitting(policy, prompts), "experiment", number) for number in range(2)]
    pairs = [
        pair
        for prompt, *answers in zip(two[0].prompts, *(one.completions for one in two), strict=True)
        for pair in clear_pairs(work, prompt, answers)
    ]
    found = pair_accuracy(load_scores(work, reward, policy), pairs, lambda words: None)["pair_accuracy"]
    return float("nan") if found is None else float(found)


def beside(work: Work, arm: str) -> Work:
    """The project as it was before it practised, once more."""
    own = work.project.folder
    folder = own.with_name(f"{own.name}-{arm}")
    if not folder.exists():
        shutil.copytree(own, folder, ignore=made_later)
    return Work(replace(Project.find(folder), recipe=work.recipe), work.progress, threads=work.threads)


def with_settings(work: Work, settings: Mapping[str, Any]) -> Work:
    ours = replace(work.project, recipe=work.recipe.with_settings(dict(settings)))
    return Work(ours, work.progress, threads=work.threads)


def made_later(folder: str, names: Sequence[str]) -> list[str]:
    """Of a project's folder: the runs and models that came after the first reward model."""
    later = Path(folder).name in ("models", "runs")
    return [name for name in names if later and re.sub(r"-\d{4}$", "", name) not in MADE]


def compare(work: Work, answering: Mapping[int, Path]) -> dict[str, float]:
    """People rank answers of a policy after each of these steps, and more of the last: how many judgements there are, and the step by
    which the reward model is seen to be stale, if it is."""
    found = dict[str, float]()
    for step, folder in answering.items():
        sample(work, model=named(work, f"after-{step}", folder), most=WATCHED)
        label_simulated(work)
        if judge_staleness(work)["stale"]:
            found.setdefault("alarm", float(step))
    sample(work, model=named(work, "late", answering[max(answering)]), most=ASKED)
    label_simulated(work)
    return found | {"judgements": float(judge_staleness(work)["since"])}


def named(work: Work, name: str, folder: Path) -> str:
    """A policy under this name among the project's models."""
    if not (place := work.project.model(name)).exists():
        shutil.copytree(folder, place)
    return name


NAMES = {"own": "second round on the policy's answers", "sft": "as many comparisons of SFT's"}
EXPERIMENT = Experiment(
    name="E13",
    title="a stale reward model is noticed, and comparisons of the policy's own answers mend it",
    setting=f"Playground; the runs of E3 (β = 0). After steps {', '.join(map(str, STEPS))} simulated people rank four answers of the "
    f"policy to each of {WATCHED} training prompts and some held-out ones, and after the last to {ASKED} more; in the other arm as many "
    "fresh answers of SFT. The reward model is trained again on all that there is, in three passes, and PPO as the recipe has it goes on "
    f"from the first run's peak. Accuracy: of pairs that gold clearly tells apart, of two fresh answers to {HALF} held-out prompts; its "
    f"policy is that after step {STEPS[-1]}. Gold in points; a peak, the start among its places, is chosen by {HALF} prompts and scored by "
    f"{PROMPTS} others. Gold has turned where it lies {TURNED:g} points under its peak.",
    measure=in_lab(measure_in),
    seeds=(0, 1, 2, 5, 6),
    claims=[
        Claim("lost", "accuracy lost on its policy's answers", "mean", at_least=0.08),
        Claim("own: noticed", "seeds where staleness is noticed by the step at which gold has turned", "mean", at_least=0.7, yes_no=True),
        Claim("mended over 0.8", "accuracy won back less .8 of what was lost", "mean", at_least=0),
        Claim("over the first", "gold at the second round's peak less the first's", at_least=0),
        Claim("peak, over the other arm", "gold at the second round's peak less that with as many comparisons of SFT's", at_least=0),
        Claim("right on its policy's, over the other arm", "accuracy on its policy's answers less that of the other arm's"),
        Claim("right on SFT's", "accuracy on SFT's answers"),
        Claim("right on its policy's", "accuracy on its policy's"),
        Claim("first: peak", "gold at the first round's peak"),
        Claim("step of the turn", "step at which gold has turned"),
        Claim("refusals, SFT", "benign prompts refused by SFT"),
        Claim("refusals, late", f"benign prompts refused after step {STEPS[-1]}"),
        *(
            Claim(f"{arm}: {figure}", f"{meaning}: {words}")
            for figure, meaning in (
                ("alarm", "step of the alarm, where there is one"), ("judgements", "judgements since the first reward model"),
                ("peak", "gold at the peak"),
                ("step of the peak", "step of the peak"), ("end", "gold at the end"), ("right on its policy's", "accuracy on its policy's"),
            )
            for arm, words in NAMES.items()
        ),
    ],
    controls=[Claim("sft: noticed", "alarms on SFT's own answers, on which nothing has changed", "mean", at_most=0.2, yes_no=True)],
)  # fmt: skip
