"""The plan of one method, what is said of it, and what is refused by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridle.compute.plan.memory import UNSAID_ROWS, Need, Parts, Range, total
from bridle.compute.plan.traffic import Moved, moved_in_step, sent
from bridle.compute.shapes import GIB, Card, Shape
from bridle.core.errors import ModelError, RecipeError
from bridle.project.progress import clock
from bridle.recipe.recipe import CALLED, Recipe


@dataclass(frozen=True)
class StagePlan:
    """What one method needs. `phases`: parts by name, in bytes on each card; `tokens` are read and written, `operations` made, in all;
    `moved` is what each card sends to others in one of the `steps`, by what it is."""

    method: str
    phases: Mapping[str, Parts]
    tokens: Range
    operations: Range
    rows_known: bool
    moved: Mapping[str, Moved]
    steps: float

    @property
    def peak(self) -> Range:
        sums = [total(parts) for parts in self.phases.values()]
        return Range(*(max(numbers) for numbers in zip(*sums, strict=True)))

    @property
    def fullest(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=lambda name: total(self.phases[name]).expected)


def plan_stage(method: str, recipe: Recipe, shape: Shape, card: Card, gpus: int = 1, tokens: int = 0) -> StagePlan:
    """The plan of a method, by its name or that of its section. `gpus` share the rows of a step (compute/parallel.py), and with
    `scale.shard` the weights that learn; `tokens`: of the longest row, prompt and answer; 0: unknown."""
    need = Need(CALLED.get(method, method), recipe, shape, card, gpus)
    if need.ranks > 1:
        require_pieces(method, need)
    lengths = need.lengths(tokens)
    read = [need.tokens_in_all(rows) for rows in lengths]
    return StagePlan(
        method, need.phases(*lengths[1:]), Range(*(sum(one.values()) for one in read)),
        Range(*(need.operations(one, rows) for one, rows in zip(read, lengths, strict=True))), need.rows_known,
        moved_in_step(need, lengths), need.steps_in_all(lengths[1]),
    )  # fmt: skip


def require_pieces(method: str, need: Need) -> None:
    """RecipeError for what compute/optimizer.py: require_divisible refuses."""
    if need.section.optimizer == "muon" or need.recipe.model.offload_optimizer:
        wrong = "the optimiser is muon, which needs whole matrices"
        if need.recipe.model.offload_optimizer:
            wrong = "model.offload_optimizer moves whole moments"
        raise RecipeError(
            f"{method} cannot divide its weights as scale.shard = true has it, for {wrong}; set {need.name}.optimizer to 'adamw' and "
            "model.offload_optimizer to false, or scale.shard to false"
        )


# ------------------------------------------------------------------------------------------------ what is said of it


def fit_verdict(peak: Range, card: Card) -> str:
    if peak.high <= card.bytes:
        return "fits"
    if peak.expected <= card.bytes:
        return "should fit"
    return "may not fit" if peak.low <= card.bytes else "does not fit"


def plan_found(plan: StagePlan, card: Card, gpus: int, bandwidth: float = 0.0) -> dict[str, Any]:
    """A plan as JSON has it: memory in GiB, what is moved in 10⁹ bytes a step. `bandwidth`: bytes a second that a card sends to the
    others, 0: unknown."""
    parts = {
        name: [size / GIB for size in part]
        for name, part in plan.phases[plan.fullest].items()
        if part.high >= GIB / 1000
    }
    seconds = [count / (card.rate * gpus) for count in plan.operations] if card.rate else None
    return {
        "method": plan.method,
        "verdict": fit_verdict(plan.peak, card),
        "card": card.bytes / GIB,
        "peak": [size / GIB for size in plan.peak],
        "phase": plan.fullest,
        "parts": parts,
        "phases": {name: [size / GIB for size in total(held)] for name, held in plan.phases.items()},
        "tokens": list(plan.tokens),
        "operations": list(plan.operations),
        "seconds": seconds,
        "rows_known": plan.rows_known,
        "moved": {
            name: {"calls": one.calls, "gigabytes": [size / 1e9 for size in one.bytes]}
            for name, one in plan.moved.items()
        },
        "steps": plan.steps,
        "seconds_moving": [plan.steps * size / bandwidth for size in sent(plan.moved)] if bandwidth else None,
    }


def planned_lines(plans: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For the terminal."""
    for plan in plans:
        low, expected, high = plan["peak"]
        yield (
            f"{plan['method']}: {plan['verdict']}: {expected:.1f} GiB expected, {low:.1f} to {high:.1f}, of {plan['card']:.1f} GiB; "
            f"the peak is where it {plan['phase']}"
        )
        for name, (least, usual, most) in plan["parts"].items():
            span = "" if least == most else f"   {least:.2f} to {most:.2f}"
            yield f"  {name:<34} {usual:8.2f}{span}"
        of = "" if plan["rows_known"] else f" for {UNSAID_ROWS:,} rows, for the recipe leaves their number open"
        yield f"  {plan['tokens'][1]:,.2g} tokens, {plan['operations'][1]:.2g} operations{of}; {time_text(plan['seconds'])}"
        yield from moved_lines(plan)


def moved_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What is moved between cards, where there are several."""
    if not plan["moved"]:
        return
    in_all = sum(one["gigabytes"][1] for one in plan["moved"].values())
    seconds = plan["seconds_moving"]
    time = (
        "time unknown (--bandwidth says what a card sends a second)"
        if seconds is None
        else f"{clock(seconds[1])} in all"
    )
    yield f"  each card sends {in_all:,.3g} GB a step, and receives as much; {plan['steps']:,.0f} steps, {time}"
    for name, one in plan["moved"].items():
        yield f"    {name:<32} {one['gigabytes'][1]:10.3g} GB {one['calls']:10,.0f} calls"


def time_text(seconds: Sequence[float] | None) -> str:
    if seconds is None:
        return "time unknown until measured (--tflops says what the card reaches)"
    low, expected, high = map(clock, seconds)
    return f"{expected} of computing, {low} to {high}; answers take longer than their operations"


def require_card(plan: StagePlan, card: Card) -> None:
    """ModelError where even the least that a method needs is more than there is: before its first step."""
    if plan.peak.low > card.bytes:
        raise ModelError(
            f"{plan.method} needs at least {plan.peak.low / GIB:,.1f} GiB of memory, and this machine has {card.bytes / GIB:,.1f} GiB for "
            "it; set lora.r = 16, or take a smaller model or a larger card (`bridle plan` lists every part)"
        )
