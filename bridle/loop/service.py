"""The flywheel as a service, `bridle loop --every SECONDS`: a turn, a wait, and on, until it is ended.

One at a time: it holds the loop while it runs, also while it waits. What ends it, ends it between two steps of a turn, or in a training run
behind its next checkpoint; the next one takes the turn up there. A turn that waits for people is tried again after the next wait; where
nothing came since a turn that served nothing new, no other begins: it would try the same candidate again.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NoReturn

from bridle.core.errors import WaitingForLabels
from bridle.feedback.serving.promotion import served_now
from bridle.loop.turn import BY, LAST, known_by_now, run_turn, turn_under_way
from bridle.stages.workspace import Work


def keep_turning(
    work: Work, every: float, report: Callable[[Mapping[str, Any]], None], before: Callable[[], None]
) -> NoReturn:
    """Turn after turn, so many seconds apart, for ever; `report` is given what came of each, `before` is called before one begins.
    ProjectError where another process is at the loop; what else goes wrong in a turn ends it too."""
    with work.alone(BY):
        while True:
            before()
            report(tried_turn(work))
            time.sleep(every)


def tried_turn(work: Work) -> dict[str, Any]:
    """The state after the next turn: its number, and what came of it in a sentence."""
    number, waits = turn_under_way(work).number, True
    if not is_due(work):
        state = "nothing came since the turn before, which served nothing new"
    else:
        try:
            state, waits = run_turn(work)["steps"][LAST]["decision"], False
        except WaitingForLabels as waiting:
            state = f"waits: {waiting}"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": at, "turn": number, "waits": waits, "state": state, "served": asdict(served_now(work.store))}


def is_due(work: Work) -> bool:
    """Whether a turn is under way, or there is anything that the turn before did not know."""
    turn = turn_under_way(work)
    return bool(turn.done) or turn.before is None or turn.before.get("known") != known_by_now(work)
