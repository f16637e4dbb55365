"""Verbs of training: train, evaluate."""

from typing import Any

import click

from bridle.cli.options import Options, opened_work, print_metrics, shared_options
from bridle.core.timeline import timed


class MethodName(click.ParamType):  # type: ignore[type-arg]  # in newer versions of click alone it takes one
    """A name in the table METHODS, which loads torch: it is asked when a verb runs; help lists the names as the recipe has them."""

    name = "method"

    @property
    def choices(self) -> list[str]:
        from bridle.recipe.recipe import trained_names

        return trained_names()

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"{{{'|'.join(self.choices)}}}"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        with timed("import"):
            from bridle.stages.methods import METHODS

        if value not in METHODS:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, METHODS))}.", param, ctx)
        return value


@click.command()
@click.argument("method", type=MethodName())
@shared_options()
def train(options: Options, method: str) -> None:
    """Train a model by one of the methods. An unfinished run of the same recipe is resumed."""
    from bridle.stages.methods import METHODS

    with opened_work(options) as work:
        metrics = METHODS[method].train(work)
    print_metrics(options, metrics)


@click.command()
@click.argument("model_a", metavar="A")
@click.argument("model_b", metavar="[B]", required=False)
@click.option(
    "--by",
    type=click.Choice(["gold", "reward"]),
    help="Who judges A against B (default: gold on the playground, else reward).",
)
@shared_options()
def evaluate(options: Options, model_a: str, model_b: str | None, by: str | None) -> None:
    """Answer the held-out prompts with A (and B) and measure: win rate with interval, gold, KL, diversity."""
    with timed("import"):
        from bridle.stages.evaluate import compare
        from bridle.stages.evaluate import evaluate as evaluate_model

    with opened_work(options) as work:
        metrics: dict[str, Any] = {model_a: evaluate_model(work, model_a, reuse=True)}
        if model_b is not None:
            metrics[model_b] = evaluate_model(work, model_b, reuse=True)
            metrics["win_rate"] = compare(work, model_a, model_b, by or work.data.score_by)
    print_metrics(options, metrics)
