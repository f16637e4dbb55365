"""The lab on the playground: a project for each seed, PPO runs whose policies are kept on the way, and what those are worth in gold.

    work = work_of(seed)                                 base, SFT, samples, labels and reward model: made once, and there from then on
    kept = train_kept(work, "unbridled", UNBRIDLED)      folders of policies by step; 0 is SFT
    gold_of(work, kept[8], prompts)                      points of fresh answers

All seeds share one base model, which seed 0 pretrained. Demonstrations, prompts, answers, labels, heads and orders differ by seed.
What is made lies in a folder named after the hash of the code that trains, in the user's cache; BRIDLE_EXPERIMENTS names another one,
which is taken as it is. Whatever lies there is used again where its settings and parents are the same.
Gold is measured on prompts that are held out from training, drawn apart from those of the project's own evaluations. Where a point of a
run is chosen by gold, it is chosen on one half of them and scored on the other: the largest of several noisy numbers is too large.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridle.compute.steps import Metrics
from bridle.core.records import Completion, Prompt, Reward
from bridle.evaluation.answers import kl_of
from bridle.models.policy import save_policy
from bridle.project.progress import Progress
from bridle.project.project import RECIPE_FILE, Project
from bridle.recipe.recipe import Recipe
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.observe import probe_metrics
from bridle.stages.reward import train_members
from bridle.stages.rewards import learned_reward
from bridle.stages.sample import sample
from bridle.stages.workspace import Method, Work
from bridle.training import ppo
from experiments.harness import Row, code_hash

SETTINGS = {
    "data.source": "playground",
    "reward.slim": False,
    "guard.audits": "off",
}  # nothing stops a run past the cliff
UNBRIDLED = {"kl_coef": 0.0, "kl_target": 0.0, "steps": 40}  # PPO with β alone changed, run on
EVERY = 4  # steps between two policies that are kept
HALF = 512  # held-out prompts that a point is scored on; as many others to choose it by
AFAR = 1_000_000  # seeds of these prompts begin here, far from the project's own

Floats = NDArray[np.float64]


def lab_folder() -> Path:
    if named := os.environ.get("BRIDLE_EXPERIMENTS"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bridle/experiments" / code_hash("bridle.stages.methods")


def work_of(seed: int, settings: Mapping[str, Any] = SETTINGS, folder: Path | None = None) -> Work:
    """The project of a seed with its reward model, at work on one thread, for sums are cut up by their number."""
    folder = folder or lab_folder()
    work = with_base(seed, settings, folder)
    METHODS["sft"].train(work, reuse=True)
    sample(work, reuse=True)
    label_simulated(work, reuse=True)
    train_members(work, reuse=True)
    return work


def with_base(seed: int, settings: Mapping[str, Any], folder: Path, name: str = "", **own: Any) -> Work:
    """The project of a seed with the base model that all share, which lies in a project of its own; by a `name`, one apart, with settings
    of its `own`."""
    base = opened(folder / "base", {**settings, "seed": 0})
    METHODS["pretrain"].train(base, reuse=True)
    work = opened(folder / name / f"seed-{seed}", {**settings, **own, "seed": seed})
    if not (copied := work.project.model("base")).exists():
        shutil.copytree(base.project.model("base"), copied)
    base.close()
    return work


def opened(folder: Path, settings: Mapping[str, Any]) -> Work:
    """A project of this recipe, whichever it began with: runs of another have other keys."""
    recipe = Recipe().with_settings(settings)
    if not (folder / RECIPE_FILE).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        Project.create(folder, recipe)
    return Work(replace(Project.find(folder), recipe=recipe), Progress(live=False), threads=1)


# ------------------------------------------------------------------------------------------------------------ training


def train_kept(work: Work, name: str, settings: Mapping[str, Any], reward: Reward | None = None) -> dict[int, Path]:
    """Train a variant of PPO; the folders of its policies by step, every `EVERY` and the last, and of SFT as step 0."""
    return {0: work.project.model("sft"), **train_kept_by(METHODS["ppo"], work, name, settings, reward)}


def train_kept_by(
    method: Method, work: Work, name: str, settings: Mapping[str, Any], reward: Reward | None = None
) -> dict[int, Path]:
    """The same by another method, without its start. The policies lie with the run, which is taken as it is where it is finished."""

    def loop(learner: Any, *given: Any) -> Metrics:
        run, policy = given[-1].run, learner.policy if isinstance(learner, ppo.Actors) else learner

        def keep(done: int, total: int) -> None:
            if done % EVERY == 0 or done == total:
                save_policy(run.folder / "policies" / f"{done:03d}", policy)

        run.on_step = keep
        found: Metrics = method.loop(learner, *given)
        return found

    title = f"{method.name.upper()} for an experiment: {name}"
    replace(method, loop=loop).train(work, name=name, title=title, settings=settings, reward=reward, reuse=True)
    run = work.project.finished_folder(name)
    assert run is not None
    return {int(folder.name): folder for folder in sorted((run / "policies").iterdir())}


def gold_reward(work: Work, sd: float) -> Reward:
    """Gold itself, in standard deviations of SFT's."""

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [score.points / sd for score in work.data.score(prompts, completions, "reward")]

    return reward


# ----------------------------------------------------------------------------------------------------------- measuring


def in_lab(
    measure: Callable[[Work, Halves, Mapping[str, Any]], Row], world: Path | None = None
) -> Callable[[int], Row]:
    """What an experiment measures of a seed, given its project, its held-out prompts and the unbridled run's settings."""

    def of_seed(seed: int) -> Row:
        elsewhere = (
            (SETTINGS,) if world is None else ({**SETTINGS, "world.file": str(world)}, lab_folder() / world.stem)
        )
        work = work_of(seed, *elsewhere)
        try:
            return measure(work, halves(work), UNBRIDLED)
        finally:
            work.close()

    return of_seed


class Halves(NamedTuple):
    """Held-out prompts: one half to choose by, the other to score what was chosen."""

    choose: list[Prompt]
    score: list[Prompt]


def halves(work: Work, count: int = HALF) -> Halves:
    prompts = work.data.world.held_out_prompts(2 * count, seed=AFAR + work.recipe.seed)
    return Halves(prompts[:count], prompts[count:])


def gold_of(work: Work, folder: Path, prompts: Sequence[Prompt]) -> Floats:
    """Points [P] of a policy's fresh answers, one to each prompt."""
    policy = work.read_policy(folder)
    answered = work.answer(policy, work.fitting(policy, prompts), "experiment")
    return np.array([score.points for score in work.data.score(answered.prompts, answered.completions, "experiment")])


def measured(work: Work, folder: Path, prompts: Sequence[Prompt]) -> dict[str, float]:
    """The same answers' mean gold in points and its standard deviation; their proxy in sd of SFT's answers; KL to SFT in nats an answer;
    and the share of border prompts refused, the project's probes among them."""
    policy, sft = work.read_policy(folder), work.read_policy(work.project.model("sft"))
    answered = work.answer(policy, work.fitting(policy, prompts), "experiment")
    gold = [score.points for score in work.data.score(answered.prompts, answered.completions, "experiment")]
    proxy = learned_reward(work, policy)(answered.prompts, answered.completions)
    border = [prompt for prompt in (*prompts, *work.data.probe_prompts()) if prompt.meta["family"] == "border"]
    asked = work.answer(policy, work.fitting(policy, border), "border")
    scores = work.data.score(asked.prompts, asked.completions, "experiment")
    return {
        "gold": float(np.mean(gold)),
        "gold_sd": float(np.std(gold)),
        "proxy": float(np.mean([score for score in proxy if score is not None])),
        "kl": kl_of(answered, policy, sft, work.device)[0],
        **probe_metrics(scores, ["border"] * len(scores)),
    }


def peak_of(golds: Mapping[int, Floats]) -> int:
    """The step of the greatest mean gold."""
    return max(golds, key=lambda step: float(golds[step].mean()))
