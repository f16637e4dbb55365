"""The flywheel's verb."""

import click

from bridle.cli.options import Options, loading, opened_work, print_found, shared_options


@click.command()
@click.option("--turns", type=click.IntRange(min=1), default=1, help="How many turns of the wheel (default: 1).")
@click.option(
    "--crowd",
    type=click.IntRange(min=0),
    default=0,
    help="Playground: simulated users who come before each turn, two answers each.",
)
@shared_options()
def loop(options: Options, turns: int, crowd: int) -> None:
    """Learn from what users say, train a candidate, and serve it only with proof. A turn that was ended goes on where it was; status 3:
    it waits for people."""
    with loading():
        from bridle.loop.crowd import visit
        from bridle.loop.turn import run_turn, turn_lines, turn_under_way

    with opened_work(options) as work:
        for _ in range(turns):
            if crowd and not (under_way := turn_under_way(work)).done:
                visit(work, crowd, f"turn-{under_way.number}")
            found = run_turn(work)
            print_found(options, found, turn_lines(work, found))
