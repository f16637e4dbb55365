"""The flywheel's verb."""

import json
from collections.abc import Mapping
from typing import Any

import click

from bridle.cli.options import Options, loading, opened_work, print_found, print_lines, shared_options
from bridle.core.errors import UsageError
from bridle.core.files import finite_or_none


@click.command()
@click.option("--turns", type=click.IntRange(min=1), help="How many turns of the wheel (default: 1).")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="As a service: a turn, so many seconds, and on, until it is ended; one that waits for people is tried again.",
)
@click.option(
    "--crowd",
    type=click.IntRange(min=0),
    default=0,
    help="Playground: simulated users who come before each turn, two answers each.",
)
@shared_options()
def loop(options: Options, turns: int | None, every: int | None, crowd: int) -> None:
    """Learn from what users say, train a candidate, and serve it only with proof. A turn that was ended goes on where it was; status 3:
    it waits for people."""
    if turns is not None and every is not None:
        raise UsageError("--every goes on until it is ended, so --turns says nothing beside it; leave one of them out")
    with loading():
        from bridle.loop.crowd import visit
        from bridle.loop.service import keep_turning
        from bridle.loop.turn import run_turn, turn_lines, turn_under_way

    with opened_work(options) as work:

        def users_come() -> None:
            if crowd and not (under_way := turn_under_way(work)).done:
                visit(work, crowd, f"turn-{under_way.number}")

        if every is not None:
            keep_turning(work, every, lambda state: print_state(options, state), users_come)
        for _ in range(turns or 1):
            users_come()
            found = run_turn(work)
            print_found(options, found, turn_lines(work, found))


def print_state(options: Options, state: Mapping[str, Any]) -> None:
    """One line a turn."""
    line = f"{state['at']} turn {state['turn']}: {state['state']}"
    print_lines([json.dumps(finite_or_none(state)) if options.as_json else line])
