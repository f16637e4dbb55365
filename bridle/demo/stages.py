"""The demo's stages in order, with the settings of `--quick` and of the unbridled run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bridle.stages.best_of import evaluate_best_of
from bridle.stages.evaluate import evaluate
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.reward import train_shuffled
from bridle.stages.sample import sample
from bridle.stages.workspace import Work

# PPO as it should not be done: no KL penalty, a higher rate, more and smaller steps.
UNBRIDLED = {"kl_coef": 0.0, "kl_target": 0.0, "learning_rate": 8e-4}

# `demo --quick`: every stage, and no more of each than shows that it works.
QUICK = {
    "data.pretrain_tokens": 300_000, "data.train_prompts": 240, "data.heldout_prompts": 128, "data.probe_prompts": 40,
    "data.compared_heldout": 60, "data.demonstrations": 800, "ppo.steps": 4, "ppo.prompts_per_step": 48,
    "dpo.observe_every": 10, "grpo.steps": 4, "grpo.prompts_per_step": 12, "grpo.branch_problems": 400,
    "grpo.branch_demonstrations": 200,
}  # fmt: skip


def train_unbridled(work: Work) -> dict[str, Any]:
    """Near twice as many rollout steps as the recipe's PPO, of two thirds of its prompts."""
    title = "PPO without its bridle: the same, and nothing that holds it"
    ppo = work.recipe.ppo
    longer = {"steps": -(-22 * ppo.steps // 12), "prompts_per_step": max(1, 2 * ppo.prompts_per_step // 3)}
    return METHODS["ppo"].train(work, name="unbridled", title=title, settings={**UNBRIDLED, **longer}, reuse=True)


@dataclass(frozen=True)
class DemoStage:
    """`seconds` weigh the time left. `after`: once that one is done, a second process may do this one, and no stage that
    the first process does may need it."""

    name: str
    seconds: float
    run: Callable[[Work], dict[str, Any]]
    after: str = ""


STAGES = [
    DemoStage("pretrain", 140, lambda work: METHODS["pretrain"].train(work, reuse=True)),
    DemoStage("sft", 40, lambda work: METHODS["sft"].train(work, reuse=True)),
    DemoStage("sample", 24, lambda work: sample(work, reuse=True)),
    DemoStage("label", 1, lambda work: label_simulated(work, reuse=True)),
    DemoStage("reward", 45, lambda work: METHODS["reward"].train(work, reuse=True)),
    DemoStage("ppo", 50, lambda work: METHODS["ppo"].train(work, reuse=True)),
    DemoStage("unbridled", 72, train_unbridled, after="reward"),
    DemoStage("dpo", 28, lambda work: METHODS["dpo"].train(work, reuse=True), after="label"),
    DemoStage("grpo", 50, lambda work: METHODS["grpo"].train(work, reuse=True), after="pretrain"),
    DemoStage("best_of_4", 10, lambda work: evaluate_best_of(work, 4, reuse=True)),
    DemoStage("evaluate-base", 7, lambda work: evaluate(work, "base", reuse=True)),
    DemoStage("evaluate-sft", 5, lambda work: evaluate(work, "sft", reuse=True)),
    DemoStage("evaluate-ppo", 8, lambda work: evaluate(work, "ppo", reuse=True)),
    DemoStage("evaluate-dpo", 7, lambda work: evaluate(work, "dpo", reuse=True), after="reward"),
    DemoStage("evaluate-unbridled", 9, lambda work: evaluate(work, "unbridled", reuse=True), after="reward"),
    DemoStage("reward-shuffled", 10, lambda work: train_shuffled(work, reuse=True), after="label"),
]
