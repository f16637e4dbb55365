"""What the report knows of each stage, in one table: a row a stage, in the order of the loop.

A stage without a row (an evaluation, a run under a name of its own) is shown among the times, by its name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.core.errors import RecipeError
from bridle.recipe.recipe import Recipe, load_recipe, recipe_as_written
from bridle.report.drawings import Curve, Series
from bridle.report.metrics import of_runs
from bridle.report.page import words
from bridle.stages.methods import METHODS

BEST_OF = re.compile(r"best-of-\d+")  # stages that choose among SFT's answers


@dataclass(frozen=True, slots=True)
class Lines:
    """Which of the logged metrics are drawn, over what, in what unit."""

    x_label: str
    y_label: str
    names: tuple[str, ...]


LOSS = Lines("optimiser step", "loss in nats", ("loss",))
ANSWERS = Lines("rollout step, training prompts", "sd, points, nats", ("reward", "gold", "kl", "entropy"))
CHECKED = Lines("rollout step, training prompts", "share of answers", ("accuracy", "worked", "without_variance"))
REWARDED = Lines("optimiser step", "implicit reward", ("good_reward", "bad_reward"))
LIKELY = Lines("optimiser step", "log-prob, nats", ("chosen_logp", "rejected_logp"))
MOVED = Lines("optimiser step", "change of log-prob, nats", ("chosen_moved", "rejected_moved"))
KEPT = Lines("round, training prompts", "reward", ("reward", "kept_reward"))


@dataclass(frozen=True, slots=True)
class StageRow:
    """`metrics` of the result are shown, and `lines` of the log drawn. `model` is the language model that it leaves, and `label` what that
    one is called. `bridled`: its KL is held. `asks`: for how many answers a step of it asks. `within`: where it is shown, if not alone."""

    name: str
    title: str
    metrics: tuple[str, ...] = ()
    lines: Lines = LOSS
    model: str = ""
    label: str = ""
    bridled: bool = True
    asks: Callable[[Recipe], int] | None = None
    within: str = ""


ROWS = {row.name: row for row in (
    StageRow("pretrain", "Pretraining", ("tokens", "documents", "parameters", "loss_average"), model="base", label="base"),
    StageRow("sft", "Imitating demonstrations (SFT)", ("demonstrations", "answer_tokens", "loss_average"), model="sft", label="SFT"),
    StageRow("sample", "Sampling answers", ("prompts", "answers", "items")),
    StageRow("label", "People compare", ("judgements", "agreement_with_gold")),
    StageRow("judge", "A model compares", ("items", "comparisons", "judged", "agreement_with_gold", "agreement_easy_harm")),
    StageRow(
        "reward", "The reward model",
        ("judgements", "pairs", "pair_accuracy", "people_pair_accuracy", "longest", "shortest", "slim_accuracy"),
    ),
    StageRow("reward-slim", "The slim reward model", within="reward"),
    StageRow(
        "people", "Control: people in the model's place",
        ("judgements", "pairs", "agreement_with_gold", "agreement_easy_harm", "pair_accuracy"),
    ),
    StageRow(
        "ppo", "PPO with the KL bridle", ("steps", "reward", "kl", "beta", "entropy", "value_explained", "logprob_gap"),
        ANSWERS, "ppo", "PPO", asks=lambda recipe: recipe.ppo.prompts_per_step,
    ),
    StageRow(
        "unbridled", "PPO without its bridle", ("steps", "reward", "kl", "entropy"),
        ANSWERS, "unbridled", "PPO unbridled", bridled=False, asks=lambda recipe: recipe.ppo.prompts_per_step,
    ),
    StageRow(
        "dpo", "DPO: preferred answers made more likely",
        ("steps", "rounds", "pairs", "loss", "accuracy", "chosen_moved", "rejected_moved", "kl"),
        MOVED, "dpo", "DPO", asks=lambda recipe: recipe.dpo.online_prompts * recipe.dpo.online_answers,
    ),
    StageRow(
        "kto", "KTO: good answers made more likely, bad ones less",
        ("steps", "loss", "good_reward", "bad_reward", "kl_estimate", "kl"), REWARDED, "kto", "KTO",
    ),
    StageRow(
        "orpo", "ORPO: preferred answers imitated, away from the others",
        ("steps", "pairs", "loss", "accuracy", "sft_loss", "odds_loss"), LIKELY, "orpo", "ORPO",
    ),
    StageRow("arithmetic", "The arithmetic branch", ("demonstrations", "loss_average")),
    StageRow(
        "grpo", "GRPO: answers in groups",
        ("steps", "reward", "kl", "accuracy_before", "accuracy_after", "worked_before", "worked_after", "without_variance"),
        CHECKED, "grpo", "GRPO", asks=lambda recipe: recipe.grpo.prompts_per_step * recipe.grpo.group_size,
    ),
    StageRow(
        "rloo", "RLOO: answers against their neighbours",
        ("steps", "reward", "kl", "entropy", "without_variance", "logprob_gap"),
        ANSWERS, "rloo", "RLOO", asks=lambda recipe: recipe.rloo.prompts_per_step * recipe.rloo.group_size,
    ),
    StageRow(
        "rebel", "REBEL: rewards as a regression",
        ("steps", "reward", "reward_gap", "kl", "entropy", "without_variance"),
        ANSWERS, "rebel", "REBEL", asks=lambda recipe: recipe.rebel.prompts_per_step * 2,
    ),
    StageRow(
        "best-of-n", "Imitating its own best answers", ("rounds", "reward", "kept", "kept_reward", "kl", "entropy"),
        KEPT, "best-of-n", "imitated best of n",
        asks=lambda recipe: recipe.rejection.prompts_per_round * recipe.rejection.answers,
    ),
    StageRow(
        "critic", "A critic is taught",
        ("demonstrations", "loss_average", "harm_recall", "false_alarms", "exact", "preference_easy_harm", "harm_before", "harm_after"),
    ),
    StageRow("revise", "Critique and revision by a constitution", ("answers", "kept")),
    StageRow(
        "sl-cai", "Imitating its own revised answers (SL-CAI)", ("revised", "benign", "loss_average"), model="sl-cai", label="SL-CAI",
    ),
    StageRow(
        "sl-cai-alone", "SL-CAI without benign answers", ("revised", "benign", "loss_average"),
        model="sl-cai-alone", label="SL-CAI alone",
    ),
    StageRow("best-of-4", "Best of n", ("prompts", "gold", "proxy", "kl")),
    StageRow("reward-shuffled", "Control: shuffled labels", ("pairs", "pair_accuracy")),
)}  # fmt: skip

# A method without a row of its own is shown by its title, and by what every loop over its own answers logs.
METRICS = ("steps", "reward", "kl", "entropy")
STAGES = ROWS | {
    name: StageRow(name, method.title, METRICS, ANSWERS, name, name.upper())
    for name, method in METHODS.items()
    if name not in ROWS
}

# What is evaluated and compared, by model; those that nothing held come last.
MODELS = {row.model: row for row in sorted(STAGES.values(), key=lambda row: not row.bridled) if row.model}


def place_of(stage: str) -> tuple[int, str]:
    """The stages in the order of the loop, evaluations after them."""
    names = [*STAGES, *(f"evaluate-{model}" for model in MODELS)]
    return (names.index(stage) if stage in names else len(names), stage)


def label_of(model: str) -> str:
    return MODELS[model].label if model in MODELS else model


def row_of(stage: str) -> StageRow | None:
    """Its row, whatever n of best of n it is."""
    return STAGES["best-of-4"] if BEST_OF.fullmatch(stage) else STAGES.get(stage)


def run_recipe(folder: Path) -> Recipe | None:
    """The recipe that a run had, also where an earlier version took settings that are refused now; None where it is lost."""
    try:
        return load_recipe(folder / "recipe.toml")
    except RecipeError:
        return recipe_as_written(folder / "recipe.toml")


def is_bridled(row: StageRow, folder: Path) -> bool:
    """Whether the run's own recipe held its KL, for PPO; the row's word where that recipe is lost."""
    recipe = run_recipe(folder)
    return row.bridled if recipe is None else recipe.ppo.kl_coef > 0


def title_of(stage: str, folder: Path | None = None) -> str:
    """`folder`: of the run; PPO whose β was 0 had no bridle."""
    if (row := row_of(stage)) is not None:
        free = stage == "ppo" and folder is not None and not is_bridled(row, folder)
        return STAGES["unbridled"].title if free else row.title
    verb, _, model = stage.partition("-")
    titles = {"evaluate": f"Evaluating {model}", "verify": f"Checking answers of {model}"}
    return titles.get(verb, stage) if model else stage


def words_of(row: StageRow, result: Mapping[str, Any], recipe: Recipe | None) -> str:
    """For a newcomer: what it did, by what it was set to and what came of it."""
    return (
        "Its recipe cannot be read any more."
        if recipe is None
        else " ".join(words(row.name, {"result": result, "recipe": recipe, "title": row.title}))
    )


def stage_curve(row: StageRow, metrics: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The row's lines over the logged steps; None where nothing of them was logged."""
    names = [name for name in row.lines.names if any(name in m for m in metrics)]
    steps = [m["step"] for m in metrics]
    lines = [Series(of_runs()[name].label, steps, [m.get(name) for m in metrics]) for name in names]
    return Curve(row.lines.x_label, row.lines.y_label, lines) if lines else None
