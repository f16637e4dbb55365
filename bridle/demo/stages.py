"""The demo's stages in order, with the settings of `--quick`, and the unbridled run with what ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bridle.project.run import Signal, Until
from bridle.report.page import show
from bridle.stages.best_of import evaluate_best_of
from bridle.stages.evaluate import evaluate
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.reward import train_members, train_shuffled, train_slim
from bridle.stages.sample import sample
from bridle.stages.workspace import Work

# PPO with β alone changed, run on until what it was run for can be seen.
UNBRIDLED = {"kl_coef": 0.0, "kl_target": 0.0}
MOST_STEPS = 40  # where the recipe's PPO has 12 or more, in proportion where it has fewer
FAR = 30.0  # nats an answer
SMOOTH = 3  # steps in a running mean of gold: one step's prompts are few

# `demo --quick`: every stage, and no more of each than shows that it works.
QUICK = {
    "data.pretrain_tokens": 300_000, "data.train_prompts": 240, "data.heldout_prompts": 128, "data.probe_prompts": 40,
    "data.compared_heldout": 60, "data.demonstrations": 800, "ppo.steps": 4, "ppo.prompts_per_step": 48,
    "dpo.observe_every": 10, "grpo.steps": 4, "grpo.prompts_per_step": 12, "grpo.branch_problems": 400,
    "grpo.branch_demonstrations": 200, "constitution.critic_answers": 400, "constitution.prompts": 100,
}  # fmt: skip


def most_steps(work: Work) -> int:
    return min(MOST_STEPS, -(-MOST_STEPS * work.recipe.ppo.steps // 12))


def train_unbridled(work: Work) -> dict[str, Any]:
    """The recipe's PPO without its KL penalty and without the guard, run on until the first of three ends."""
    steps = most_steps(work)
    until = over_the_cliff(steps, evaluate(work, "sft", reuse=True).get("gold"))
    settings, title = {**UNBRIDLED, "steps": steps}, f"PPO without its bridle: β is 0, all else as before. {until.rule}"
    return METHODS["ppo"].train(work, name="unbridled", title=title, settings=settings, reuse=True, until=until)


def train_guarded(work: Work) -> dict[str, Any]:
    """The same run, with the guard alone to stop it."""
    settings = {**UNBRIDLED, "steps": most_steps(work)}
    title = "PPO without its bridle, and the guard beside it: it stops the run, and goes back to the best checkpoint"
    return METHODS["ppo"].train(work, name="guarded", title=title, settings=settings, reuse=True)


def over_the_cliff(steps: int, sft: float | None) -> Until:
    """The end of a run that nothing holds: gold of SFT's answers to held-out prompts is `sft`, where it is known."""
    # The rule is part of the run's key, so no sign in it may change: a minus stays as Python writes it.
    known = "" if sft is None else f" or until gold has fallen below SFT's {sft:.2f} (mean of {SMOOTH} steps)"

    def reached(signals: Sequence[Signal]) -> str | None:
        gold = smooth([signal.gold for signal in signals if signal.gold is not None])
        if sft is not None and gold and gold[-1] < sft < max(gold):
            return f"gold had fallen below SFT's {show(sft, 2)} (mean of {SMOOTH} steps)"
        if (signals[-1].kl or 0.0) >= FAR:
            return f"its KL had reached {FAR:g} nats"
        return f"its {steps} steps were done" if len(signals) >= steps else None

    return Until(f"It runs for at most {steps} steps, until its KL is {FAR:g} nats{known}", reached)


def smooth(values: Sequence[float]) -> list[float]:
    """Running means over SMOOTH steps; nothing of fewer."""
    return [sum(values[i : i + SMOOTH]) / SMOOTH for i in range(len(values) - SMOOTH + 1)]


@dataclass(frozen=True)
class DemoStage:
    """`seconds` weigh the time left. `after`: once that one is done, a second process may do this one, and no stage that
    the first process does may need it. The last one needs none of those that the second process does: either may do it."""

    name: str
    seconds: float
    run: Callable[[Work], dict[str, Any]]
    after: str = ""


# The longest way to the end is what the unbridled run needs, the run, and its evaluation: the first process does that and no more.
STAGES = [
    DemoStage("pretrain", 140, lambda work: METHODS["pretrain"].train(work, reuse=True)),
    DemoStage("sft", 34, lambda work: METHODS["sft"].train(work, reuse=True)),
    DemoStage("sample", 10, lambda work: sample(work, reuse=True)),
    DemoStage("label", 1, lambda work: label_simulated(work, reuse=True)),
    DemoStage("reward", 18, lambda work: train_members(work, reuse=True)),
    DemoStage("evaluate-sft", 3, lambda work: evaluate(work, "sft", reuse=True)),
    DemoStage("grpo", 40, lambda work: METHODS["grpo"].train(work, reuse=True), after="pretrain"),
    DemoStage("reward-slim", 6, lambda work: train_slim(work, reuse=True), after="label"),
    DemoStage("reward-shuffled", 6, lambda work: train_shuffled(work, reuse=True), after="label"),
    DemoStage("dpo", 24, lambda work: METHODS["dpo"].train(work, reuse=True), after="label"),
    DemoStage("ppo", 30, lambda work: METHODS["ppo"].train(work, reuse=True), after="reward"),
    DemoStage("unbridled", 65, train_unbridled),
    DemoStage("best_of_4", 7, lambda work: evaluate_best_of(work, 4, reuse=True), after="reward"),
    DemoStage("evaluate-ppo", 7, lambda work: evaluate(work, "ppo", reuse=True), after="reward"),
    DemoStage("evaluate-dpo", 6, lambda work: evaluate(work, "dpo", reuse=True), after="reward"),
    DemoStage("evaluate-unbridled", 7, lambda work: evaluate(work, "unbridled", reuse=True)),
    DemoStage("evaluate-base", 4, lambda work: evaluate(work, "base", reuse=True), after="reward"),
]
