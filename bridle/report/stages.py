"""What the report knows of each stage, in one table: a row a stage, in the order of the loop.

A stage without a row (an evaluation, a run under a name of its own) is shown among the times, by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridle.report.drawings import Curve, Series
from bridle.stages.methods import METHODS


@dataclass(frozen=True, slots=True)
class Lines:
    """Which of the logged metrics are drawn, over what, in what unit."""

    x_label: str
    y_label: str
    names: tuple[str, ...]


LOSS = Lines("optimiser step", "loss in nats", ("loss",))
ANSWERS = Lines("rollout step", "nats, or share of answers", ("kl", "entropy", "unparsable", "distinct"))
CHECKED = Lines("rollout step", "share of answers", ("accuracy", "worked", "without_variance"))
MOVED = Lines("optimiser step", "change of log-prob, nats", ("chosen_moved", "rejected_moved"))
KEPT = Lines("round", "reward", ("reward", "kept_reward"))


@dataclass(frozen=True, slots=True)
class StageRow:
    """`words` are for a newcomer, or make them of the result; empty: the stage is shown within another. `model` is the language model
    that it leaves, and `label` what stands over that one's answers. `bridled`: its KL is held."""

    name: str
    title: str
    words: str | Callable[[Mapping[str, Any]], str]
    metrics: tuple[str, ...] = ()  # of the result
    lines: Lines = LOSS
    model: str = ""
    label: str = ""
    bridled: bool = True


def reward_words(result: Mapping[str, Any]) -> str:
    slim = " A slim one, a quarter of its size, learns beside it from nothing." if "slim" in result else ""
    tested = "Both are" if slim else "It is"
    return (
        f"A second network learns to score answers so that the preferred one scores higher.{slim} {tested} tested on answers to "
        "prompts that were held out."
    )


def dpo_words(result: Mapping[str, Any]) -> str:
    against = "measured against the model it is held to" if "kl" in result else "by the mean of its tokens' log-probs"
    return (
        "The same comparisons again, and no reward model: the preferred answer of each pair is made more likely than the other, "
        f"{against}. Fewer parts, and no practice of its own."
    )


ROWS = {row.name: row for row in (
    StageRow(
        "pretrain", "Pretraining",
        "A network with random weights reads plain pages, forum threads and sums, and learns to guess the next word piece. "
        "It ends up writing in the world's language, with answers as good and as bad as those it read.",
        ("tokens", "documents", "parameters", "loss"), model="base", label="base",
    ),
    StageRow(
        "sft", "Imitating demonstrations (SFT)",
        "Demonstrations by people of uneven skill: the model imitates their answers. It now answers instead of rambling, "
        "and takes over their faults too.",
        ("demonstrations", "answer_tokens", "loss"), model="sft", label="before: SFT",
    ),
    StageRow(
        "sample", "Sampling answers",
        "The model answers each prompt several times. These answers are what people will compare.",
        ("prompts", "answers", "items"),
    ),
    StageRow(
        "label", "People compare",
        "People rank the answers to a prompt, blind and in random order. Here they are simulated: they err, tire, prefer the answer "
        "that was shown first, and like to be flattered. How often they agree with the true quality is known.",
        ("judgements", "agreement_with_gold"),
    ),
    StageRow(
        "reward", "The reward model", reward_words,
        ("judgements", "pairs", "pair_accuracy", "people_pair_accuracy", "longest", "shortest"),
    ),
    StageRow("reward-slim", "The slim reward model", ""),
    StageRow(
        "ppo", "PPO with the KL bridle",
        "The model answers prompts, the reward model scores the answers, and what scored better than expected becomes more likely. "
        "A penalty on the distance from where it started (the KL bridle) is steered to a small target.",
        ("steps", "reward", "kl", "beta", "entropy", "value_explained", "logprob_gap"), ANSWERS, "ppo", "after: PPO",
    ),
    StageRow(
        "unbridled", "PPO without its bridle",
        "The same without the bridle, and for longer. The score that it is trained on keeps rising; what people really want "
        "rises, turns, and falls: the model has found what the reward model gets wrong.",
        ("steps", "reward", "kl", "entropy"), ANSWERS, "unbridled", "past the cliff: unbridled", bridled=False,
    ),
    StageRow(
        "dpo", "DPO: no reward model",
        dpo_words,
        ("steps", "pairs", "loss", "accuracy", "chosen_moved", "rejected_moved", "kl"), MOVED, "dpo", "after: DPO",
    ),
    StageRow(
        "arithmetic", "The arithmetic branch",
        "A branch of the base model reads worked word problems and answers of uneven skill: what it needs before practice "
        "can help.",
        ("demonstrations", "loss"),
    ),
    StageRow(
        "grpo", "GRPO on answers that can be checked",
        "Where an answer can be checked nobody has to judge it. The branch answers each problem many times; right answers become "
        "more likely, wrong ones less likely. Nothing here can be outwitted, so nothing falls off a cliff.",
        ("steps", "accuracy_before", "accuracy_after", "worked_before", "worked_after", "without_variance"), CHECKED,
        "grpo", "after: GRPO",
    ),
    StageRow(
        "rloo", "RLOO: answers against their neighbours",
        "The model answers each prompt several times. What scored better than the mean of the other answers to it becomes more "
        "likely, so no second network has to guess what was to be expected.",
        ("steps", "reward", "kl", "entropy", "without_variance", "logprob_gap"), ANSWERS, "rloo", "after: RLOO",
    ),
    StageRow(
        "rebel", "REBEL: rewards as a regression",
        "The model answers each prompt twice. How much more likely one answer has become than the other is fitted to how much "
        "better it scored, by least squares.",
        ("steps", "reward", "reward_gap", "kl", "entropy", "without_variance"), ANSWERS, "rebel", "after: REBEL",
    ),
    StageRow(
        "best-of-n", "Imitating its own best answers",
        "The model answers each prompt several times, keeps the answers that score best, imitates them, and begins again.",
        ("rounds", "reward", "kept", "kept_reward", "kl", "entropy"), KEPT, "best-of-n", "after: best of n",
    ),
    StageRow(
        "best-of-4", "Best of four", "Nothing is trained: SFT answers four times, and the reward model picks one.",
        ("prompts", "gold", "proxy", "kl"),
    ),
    StageRow(
        "reward-shuffled", "Control: shuffled labels",
        "A control: the same training on rankings turned round by a coin. It must learn nothing.",
        ("pairs", "pair_accuracy"),
    ),
)}  # fmt: skip

# A method without a row of its own is shown by its title, and by what every loop over its own answers logs.
METRICS = ("steps", "reward", "kl", "entropy")
STAGES = ROWS | {
    name: StageRow(name, method.title, f"{method.title}.", METRICS, ANSWERS, name, f"after: {name}")
    for name, method in METHODS.items()
    if name not in ROWS
}

# What is evaluated and compared, by model; those that nothing held come last.
MODELS = {row.model: row for row in sorted(STAGES.values(), key=lambda row: not row.bridled) if row.model}


def place_of(stage: str) -> tuple[int, str]:
    """The stages in the order of the loop, evaluations after them."""
    names = [*STAGES, *(f"evaluate-{model}" for model in MODELS)]
    return (names.index(stage) if stage in names else len(names), stage)


def title_of(stage: str) -> str:
    if stage in STAGES:
        return STAGES[stage].title
    model = stage.removeprefix("evaluate-")
    return f"Evaluating {model}" if model != stage else stage


def words_of(row: StageRow, result: Mapping[str, Any]) -> str:
    return row.words if isinstance(row.words, str) else row.words(result)


def stage_curve(row: StageRow, metrics: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The row's lines over the logged steps; None where nothing of them was logged."""
    names = [name for name in row.lines.names if metrics and name in metrics[-1]]
    steps = [m["step"] for m in metrics]
    lines = [Series(name.replace("_", " "), steps, [m.get(name) for m in metrics]) for name in names]
    return Curve(row.lines.x_label, row.lines.y_label, lines) if lines else None
