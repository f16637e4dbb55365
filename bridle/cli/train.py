"""Verbs of training: train, sweep, reward, evaluate."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from bridle.cli.completion import begun_with, language_model_names, swept_words
from bridle.cli.options import (
    Options,
    chosen_settings,
    loading,
    open_project,
    opened_work,
    print_found,
    print_metrics,
    profile_in,
    shared_options,
)
from bridle.core.errors import ProjectError, UsageError


class MethodName(click.ParamType):  # type: ignore[type-arg]  # in newer versions of click alone it takes one
    """A name in the table METHODS, which loads torch: it is asked when a verb runs; help lists the names as the recipe has them."""

    name = "method"

    @property
    def choices(self) -> list[str]:
        from bridle.recipe.recipe import trained_names

        return trained_names()

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"{{{'|'.join(self.choices)}}}"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return begun_with(incomplete, self.choices)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        with loading():
            from bridle.stages.methods import METHODS

        if value not in METHODS:
            raise UsageError(f"{value!r} is not a method; the methods are {', '.join(METHODS)}")
        return value


@click.command()
@click.argument("method", type=MethodName())
@click.option(
    "--task",
    "tasks",
    metavar="NAME",
    multiple=True,
    help="reward: what the model judges by (reward.tasks), a criterion of comparisons, votes or scores; may be given several times.",
)
@click.option(
    "--reward",
    "function",
    metavar="FILE.py:FUNCTION",
    help="Methods that answer prompts: score by a function of yours, reward(prompts, answers) or TRL's, in place of the recipe's sources. "
    "The file is run.",
)
@shared_options()
def train(options: Options, method: str, tasks: tuple[str, ...], function: str | None) -> None:
    """Train a model by one of the methods. An unfinished run of the same recipe is resumed."""
    if tasks and method != "reward":
        raise UsageError(f"--task is for `bridle train reward`; {method} learns from what that leaves")
    if tasks:
        options = replace(options, settings=(*options.settings, f"reward.tasks={json.dumps(tasks)}"))
    from bridle.recipe.recipe import sections
    from bridle.stages.methods import METHODS
    from bridle.stages.rewards import own_reward

    answering = [row.name for row in METHODS.values() if "scored_by" in sections()[row.section].model_fields]
    if function is not None and method not in answering:
        raise UsageError(f"--reward is for methods that answer prompts, {', '.join(answering)}, and {method} is not")
    with opened_work(options, shared=True) as work:
        if function is None:
            metrics = METHODS[method].train(work)
        else:
            own = own_reward(work, function)
            metrics = METHODS[method].train(work, reward=own, settings={"scored_by": "reward"})
    print_metrics(options, metrics)


@click.command()
@click.argument("words", metavar="[RECIPE] [SECTION.KEY=A,B,…]…", nargs=-1, shell_complete=swept_words)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    metavar="N",
    help="Seeds of each setting: the recipe's and those after it.",
)
@click.option(
    "--method", type=MethodName(), help="What the sweep ends with (default: the method whose section is swept)."
)
@click.option(
    "--metric",
    metavar="NAME",
    help="What is compared (default: gold on the playground, else proxy; accuracy_after by a verifier, pair_accuracy of a reward model).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("sweep"),
    show_default=True,
    help="Folder to make, with a project for each setting and seed; an unfinished sweep there is resumed.",
)
@click.option("--dry-run", is_flag=True, help="Show how many runs there are and what settings share; run nothing.")
@shared_options()
def sweep(
    options: Options,
    words: tuple[str, ...],
    seeds: int,
    method: str | None,
    metric: str | None,
    out: Path,
    dry_run: bool,
) -> None:
    """Train with every combination of settings on the same seeds, and compare: `bridle sweep ppo.kl_coef=0.05,0.1,0.2 --seeds 5`. RECIPE
    is a TOML file (default: the project's own). Stages that settings share are done once."""
    from bridle.project.progress import Progress
    from bridle.recipe.recipe import load_recipe
    from bridle.sweep.grid import read_words

    named, settings = read_words(words)
    try:
        source = open_project(options)
    except ProjectError:
        if named is None or options.project is not None:
            raise
        source = None  # a recipe of the playground needs none
    with loading():
        from bridle.sweep.sweep import outline, outline_lines, plan_sweep, run_sweep, with_whole_paths
        from bridle.sweep.table import sweep_lines

    if named is not None:
        recipe = with_whole_paths(load_recipe(named).with_settings(chosen_settings(options)), named.resolve().parent)
    else:
        assert source is not None
        recipe = with_whole_paths(source.recipe, source.folder)
    plan = plan_sweep(recipe, settings, method, metric, seeds, out, source)
    if dry_run:
        planned = outline(plan)
        print_found(options, planned, outline_lines(planned))
        return
    profile_in(plan.out)
    found = run_sweep(plan, Progress(), options.wait)
    print_found(options, found, sweep_lines(found))


@click.command()
@click.argument("recipe_file", metavar="[RECIPE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--stage",
    "stages",
    metavar="METHOD",
    multiple=True,
    help="What would be trained; may be given several times (default: every method).",
)
@click.option(
    "--gpus", type=click.IntRange(1, 10_000), metavar="N", help="Cards that share each step (default: scale.workers)."
)
@click.option("--card", metavar="24gb|80gb|GIB", help="Memory of each (default: this machine's).")
@click.option(
    "--tokens",
    type=click.IntRange(2, 10**9),
    metavar="N",
    help="Tokens of the longest row, prompt and answer (default: unknown, some 256 more than sampling.max_new_tokens).",
)
@click.option(
    "--tflops",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Million million operations a second that a card reaches: from them follows the time.",
)
@click.option(
    "--bandwidth",
    type=click.FloatRange(0, min_open=True),
    metavar="GB/S",
    help="1e9 bytes a second that a card sends to others: from them follows the time that moving takes.",
)
@shared_options("wait")
def plan(
    options: Options,
    recipe_file: Path | None,
    stages: tuple[str, ...],
    gpus: int | None,
    card: str | None,
    tokens: int | None,
    **rates: float | None,
) -> None:
    """Show what memory and arithmetic training would take, before anything is loaded. RECIPE is a TOML file (default: the project's)."""
    from bridle.compute.plan.stages import plan_found, plan_stage, planned_lines
    from bridle.compute.shapes import named_card
    from bridle.models.sizes import planned_shape
    from bridle.recipe.recipe import load_recipe, trained_names

    if recipe_file is None:
        project = open_project(options)
        recipe, folder = project.recipe, project.folder
    else:
        recipe, folder = load_recipe(recipe_file).with_settings(chosen_settings(options)), recipe_file.parent
    places = [folder / Path(recipe.model.path).expanduser(), *([] if recipe_file else [folder / "models" / "base"])]
    shape = planned_shape(recipe.model, *places)
    methods = stages or tuple(name for name in trained_names() if not (name == "pretrain" and recipe.model.path))
    if odd := [name for name in methods if name not in trained_names()]:
        raise UsageError(f"{odd[0]!r} is not a method; the methods are {', '.join(trained_names())}")
    if card is None:
        with loading():
            from bridle.compute.device import card_here

        device = card_here(recipe.model.precision)
    else:
        device = named_card(card, recipe.model.precision)
    device = replace(device, rate=1e12 * (rates["tflops"] or 0.0))
    ranks = gpus or recipe.scale.workers
    plans = [
        plan_found(
            plan_stage(name, recipe, shape, device, ranks, tokens or 0),
            device,
            ranks,
            1e9 * (rates["bandwidth"] or 0.0),
        )
        for name in methods
    ]
    print_found(options, {"plans": plans, "gpus": ranks}, planned_lines(plans))


@click.group()
def reward() -> None:
    """The reward that reinforcement learning would learn from."""


@reward.command()
@click.option(
    "--by",
    type=click.Choice(["reward", "verifier"]),
    default="reward",
    help="What rewards: the recipe's sources or the project's reward model (default), or the verifier.",
)
@click.option(
    "--search",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="Also try N random edits of ordinary answers.",
)
@shared_options()
def probe(options: Options, by: str, search: int) -> None:
    """Show what it pays for answers that nobody should be paid for: empty, cut off, padded, flattering and the like."""
    with loading():
        from bridle.guard.probes import probe_lines
        from bridle.stages.probe import probe_reward

    with opened_work(options) as work:
        metrics = probe_reward(work, by, search, reuse=True)
    print_found(options, metrics, probe_lines(metrics))


@reward.command()
@shared_options()
def stale(options: Options) -> None:
    """Test by the judgements since it was made whether the reward model still knows what people say."""
    with loading():
        from bridle.stages.stale import judge_staleness, stale_lines

    with opened_work(options) as work:
        found = judge_staleness(work)
    print_found(options, found, stale_lines(found))


@reward.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE]")
@click.option(
    "--model",
    default="reward",
    metavar="NAME",
    help="Which reward model: its name in models/ (default: reward), or a folder, of somebody else's too.",
)
@shared_options()
def test(options: Options, file: Path | None, model: str) -> None:
    """How often a reward model is right on the comparisons of FILE, in RewardBench's form or any that import knows (default: on those that
    the project holds out), and what its scores mean."""
    with loading():
        from bridle.stages.probe import benchmark_lines, benchmark_reward

    with opened_work(options) as work:
        found = benchmark_reward(work, model, file)
    print_found(options, found, benchmark_lines(found))


@click.command()
@click.argument("model_a", metavar="A", shell_complete=language_model_names)
@click.argument("model_b", metavar="[B]", required=False, shell_complete=language_model_names)
@click.option(
    "--by",
    type=click.Choice(["gold", "reward", "verifier", "judge", "people"]),
    help="Who judges A against B (default: gold on the playground, else reward); verifier: on held-out prompts whose answers can be "
    "checked; judge: that of [judge]; people: in a study of their own.",
)
@click.option(
    "--answers",
    type=click.IntRange(1, 1000),
    metavar="K",
    help="--by verifier: answers of each to each prompt (default 1); from 2 on pass@k is measured too. --suite: the same (default: "
    "loop.suite_answers).",
)
@click.option(
    "--suite",
    metavar="FILE",
    help="Ask a regression suite alone, and show by how much A passes more of it than B, and where it got worse.",
)
@shared_options()
def evaluate(
    options: Options, model_a: str, model_b: str | None, by: str | None, answers: int | None, suite: str | None
) -> None:
    """Answer the held-out prompts with A (and B) and measure: win rate with interval, gold, KL, diversity."""
    if suite is not None:
        evaluate_on_suite(options, model_a, model_b, by, answers, suite)
        return
    if answers is not None and by != "verifier":
        raise UsageError("--answers is for --by verifier and --suite; elsewhere each model answers a prompt once")
    if by is not None and model_b is None:
        raise UsageError(
            f"--by {by} compares two models, and {model_a} alone was named; name another, or leave --by out"
        )
    with loading():
        from bridle.stages.evaluate import compare, compare_right, require_comparison, verify_model
        from bridle.stages.evaluate import evaluate as evaluate_model

    metrics: dict[str, Any] = {}
    checked = by == "verifier"
    with opened_work(options) as work, ExitStack() as locks:
        try:
            if model_b is not None:
                require_comparison(work, model_a, model_b, by or work.data.score_by)
                for name in sorted(
                    {model_a, model_b}
                ):  # in one order everywhere, so that two that wait never wait for each other
                    locks.enter_context(work.alone(f"{'verify' if checked else 'evaluate'}-{name}"))
            for name in [model_a] if model_b is None else [model_a, model_b]:
                metrics[name] = (
                    verify_model(work, name, answers or 1, True) if checked else evaluate_model(work, name, True)
                )
            if model_b is not None and checked:
                metrics["win_rate"] = compare_right(work, model_a, model_b)
            elif model_b is not None:
                metrics["win_rate"] = compare(work, model_a, model_b, by or work.data.score_by)
        finally:
            if metrics:  # what was measured is shown, whatever ended the rest
                print_metrics(options, metrics)


def evaluate_on_suite(
    options: Options, model_a: str, model_b: str | None, by: str | None, answers: int | None, suite: str
) -> None:
    """The table of the gate's regression suite (`loop.suite`) for two models of the project."""
    if model_b is None or by is not None:
        named = f"{model_a} alone was named" if model_b is None else f"--by {by} judges otherwise"
        raise UsageError(f"--suite compares two models by checks, and {named}; say `bridle evaluate A B --suite FILE`")
    if answers == 1:
        raise UsageError("one answer to each prompt shows chance and no regression; --suite needs --answers 2 at least")
    with loading():
        from bridle.stages.evaluate import evaluate_suite, suite_lines

    with opened_work(options) as work:
        found = evaluate_suite(work, model_a, model_b, Path(suite), answers or work.recipe.loop.suite_answers)
    print_found(options, found, suite_lines(found, (model_a, model_b)))
