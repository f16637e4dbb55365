"""The steps of a run: where to begin, what to log, when to save and to stop. Every trainer's loop runs over one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bridle.compute.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.compute.device import Device
from bridle.compute.optimizer import (
    Share,
    clipped_step,
    offload_moments,
    optimizers_of,
    peak_rates,
    require_divisible,
    schedule_of,
    set_rate,
    warm_then_linear,
)
from bridle.compute.parallel import all_ranks_metrics, from_first, gathered, process_rank, require_same, world_size
from bridle.compute.recomputing import recompute_layers
from bridle.compute.sharding import divide, in_plain_form, make_whole
from bridle.core.timeline import timed
from bridle.project.run import Run, Signal
from bridle.recipe.base import TrainerSection

Metrics = dict[str, float]
AVERAGED = 20  # steps that the metrics at the end of a loop over pairs or votes are running means over


@dataclass(frozen=True)
class Session:
    """What every loop gets besides models, data and settings. `seed` decides every random number. `release`: what becomes of a reference
    once its log-probs are known, and it is not asked again."""

    run: Run
    device: Device
    seed: int
    release: Callable[[Any], object] = field(default=lambda reference: None, kw_only=True)

    @property
    def usual_schedule(self) -> Share:
        """Of the learning rate, where the recipe says auto."""
        return warm_then_linear


class Steps:
    """Restores the newest checkpoint; iterating gives the steps that are left.

    `values` is what steers the run besides weights (β, running means); it lies in every checkpoint, with the last step's metrics.
    `done` counts the steps that were taken, before and after the restoring.
    """

    def __init__(
        self,
        session: Session,
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        total: int,
        every: int,
        config: TrainerSection | None = None,
    ) -> None:
        self.session, self.run, self.optimizers = session, session.run, optimizers
        self.total, self.every = total, every
        watched = {} if self.run.watch is None else self.run.watch.state
        self.state = TrainingState(modules, optimizers, watched)
        self.spare_memory()
        self.peaks, usual = peak_rates(optimizers), session.usual_schedule
        self.schedule = usual if config is None else schedule_of(config, usual)
        self.done, restored = restore_checkpoint(self.run.checkpoints, self.state, self.run.key, self.run.progress.say)
        self.run.rewind(self.done)
        self.metrics: Metrics = restored.pop("metrics", {})  # a run with no step left returns those of its last
        self.signals = [Signal(**signal) for signal in restored.pop("signals", [])]  # for what may end the run
        self.values: dict[str, Any] = restored
        if self.run.watch is not None and self.done:
            for sentence in self.run.watch.resume():
                self.run.progress.say(sentence)
            self.run.ended = self.run.watch.ended
        self.ask_whether_to_end()
        require_same({"the step of the last good checkpoint": self.done})
        self.kl_factor = 1.0
        """by which the KL weight is to be multiplied: above 1 where a rule of the guard has raised it"""
        self.follow_first(lambda: False)
        self.selection_score: float | None = None
        self.grad_norm: float | None = None  # of the last step; None where no optimiser step was taken

    def spare_memory(self) -> None:
        """As the recipe's [model] and [scale] want it, before there is anything to restore."""
        wanted, modules = self.run.model, list(self.state.modules.values())
        for module in modules:
            recompute_layers(module, wanted.checkpoint_activations)
        offload_moments(self.optimizers, wanted.offload_optimizer)
        if wanted.offload_optimizer and self.session.device.torch.type == "cpu":
            self.run.progress.say("model.offload_optimizer changes nothing here: the weights lie in the same memory")
        self.divided = self.run.scale.shard and world_size() > 1
        if self.divided:
            require_divisible(self.optimizers, wanted.offload_optimizer)
            with timed("set up"):
                divide(modules, self.optimizers)

    @classmethod
    def of_policy(cls, policy: nn.Module, config: TrainerSection, total: int, session: Session) -> Steps:
        """The steps of a loop that moves a policy alone, by the recipe's optimiser."""
        optimizers = optimizers_of(policy, config, config.learning_rate)
        return cls(session, {"policy": policy}, optimizers, total, config.checkpoint_every, config)

    def __iter__(self) -> Iterator[int]:
        from_first(lambda: self.run.stop_if_needed(self.done, self.total))  # asked for while data and models were read
        for step in range(self.done, self.total):
            if self.run.ended is not None:
                break
            yield step
        for module in self.state.modules.values():
            make_whole(module)

    def follow_first(self, look: Callable[[], bool]) -> bool:
        """Have the first rank look at the step, and every rank do as it finds; what it answers."""

        def found() -> tuple[bool, str | None, float]:
            answer, watch = look(), self.run.watch
            return answer, self.run.ended, 1.0 if watch is None else watch.kl_factor

        answer, self.run.ended, self.kl_factor = from_first(found)
        return answer

    def ask_whether_to_end(self) -> None:
        if self.run.until is not None and self.signals and self.run.ended is None:
            self.run.ended = self.run.until.reached(self.signals)

    def scheduled_step(self, update: int, clip_norm: float, per_step: int = 1) -> float:
        """`clipped_step` at the schedule's share of the peak rates; the gradient norm. `update` counts the run's optimiser steps from 0,
        of which a step of the loop has room for `per_step`: those that are left out count too, so that the rate follows from where it is
        in the run alone, resumed or not."""
        set_rate(self.optimizers, self.peaks, self.schedule(update, self.total * per_step))
        return clipped_step(list(self.state.modules.values()), self.optimizers, clip_norm)

    def save_on_error(self, step: int) -> AbstractContextManager[None]:
        """Save the steps before this one if what is inside fails (a reward function of the user's, say). Weights that are divided are not:
        it may be one rank alone that fails, and it has but a piece of them."""
        return nullcontext() if self.divided else self.run.saving_on_error(step, lambda: self.save(step))

    def end(
        self,
        step: int,
        metrics: Metrics,
        selection_score: float,
        signal: Signal,
        log: Mapping[str, float] | None = None,
    ) -> None:
        """Log the step, save when it is due, stop when that is asked for or needed.

        `metrics` are kept for the result; `log` is what is logged where that differs, and an empty one logs nothing. The checkpoint of
        the greatest `selection_score` stays besides the newest.
        """
        self.metrics, self.selection_score, self.done = metrics, selection_score, step + 1
        evaluated = self.evaluated(step + 1)
        self.metrics = {**metrics, **evaluated}
        if self.run.until is not None:
            self.signals.append(replace(signal, answers=None))
            self.ask_whether_to_end()
        logged = {**(metrics if log is None else log), **evaluated}

        def look() -> bool:
            if logged:
                self.run.log(step, self.total, logged, signal)
            self.run.end_step(step + 1, self.total)
            return self.run.due(step + 1, self.every, self.total)

        asked = [] if signal.answers is None else list(self.state.modules.values())  # by an audit, if any is due
        with in_plain_form(*asked):
            due = self.follow_first(look)
        if due:
            self.save(step + 1)
            self.run.meet(gathered(self.run.workers(f"rank {process_rank()}")))
            self.run.saved(step + 1)
        from_first(lambda: self.run.stop_if_needed(step + 1, self.total))

    def evaluated(self, done: int) -> Metrics:
        """What the evaluation of whoever calls measures after so many steps, where it is due."""
        if self.run.evaluate is None:
            return {}
        with self.save_on_error(done), timed("observe"):
            return dict(self.run.evaluate(done, self.total))

    def save(self, done: int) -> None:
        values = {**self.values, "metrics": self.metrics}
        if self.signals:
            values["signals"] = [asdict(signal) for signal in self.signals]
        save_checkpoint(
            self.run.checkpoints, done, self.state, values, self.run.key,
            keep=self.run.keep, selection_score=self.selection_score,
        )  # fmt: skip


def running_means(before: Mapping[str, float], now: Mapping[str, float]) -> Metrics:
    """Over about AVERAGED steps, for the metrics at the end: one batch alone is noise. What a step lacks stays as it was."""
    weight = 1 / AVERAGED
    return {**before, **{name: (1 - weight) * before.get(name, value) + weight * value for name, value in now.items()}}


def end_averaged_step(
    steps: Steps, step: int, metrics: Metrics, observe: Callable[[], Mapping[str, float]] | None, every: int
) -> None:
    """Log and save a step whose metrics the result holds as running means; the lower their loss, the better. `observe` measures the
    policy besides, after every so many steps, for the log alone."""
    means, norm = running_means(steps.metrics, metrics), metrics["grad_norm"]
    if observe is not None and (step + 1) % every == 0:
        with timed("observe"):
            metrics = {**metrics, **observe()}
    steps.end(step, means, -means["loss"], Signal(grad_norm=norm), log=metrics)


@dataclass(frozen=True)
class Part:
    """Some answers of a minibatch in the training pass: their rows in the step's batch, log π of their tokens with its gradient and as
    it was sampled, both [M, T] and zero off the mask. `tokens`: those of the whole minibatch on all ranks."""

    rows: Tensor
    logp_MT: Tensor
    old_logp_MT: Tensor
    tokens: Tensor


def logprob_gaps(logp_MT: Tensor, old_logp_MT: Tensor, tokens: Tensor | int, answers: int) -> Metrics:
    """How far two readings of the same answers by the same weights, zero off the mask, are apart, in nats: Σ |log π - log π_old| /
    `tokens`, and of whole answers Σ |Σ_t (log π - log π_old)| / `answers`. What differs is precision alone, but it adds up."""
    off_MT = logp_MT.detach() - old_logp_MT
    per_token, per_answer = off_MT.abs().sum() / tokens, off_MT.sum(1).abs().sum() / answers
    return {"logprob_gap": float(per_token), "answer_gap": float(per_answer)}


class Means:
    """Means over a step's updates. A loss's metrics are parts of one update's mean: they add up over its micro-batches."""

    def __init__(self) -> None:
        self.sums: Metrics = {}
        self.norms, self.updates, self.skipped = 0.0, 0, 0
        # Engine against training pass, while nothing has moved; of whole answers a sum over so many of them.
        self.gaps, self.answers = {"logprob_gap": 0.0, "answer_gap": 0.0}, 0

    def add(self, metrics: Mapping[str, Any], part: Part | None = None) -> None:
        """A loss's metrics; of the first minibatch also the gaps between the log-probs of `part`."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        if part is not None and self.updates == 0:
            for name, gap in logprob_gaps(part.logp_MT, part.old_logp_MT, part.tokens, answers=1).items():
                self.gaps[name] += gap
            self.answers += len(part.rows)

    def updated(self, norm: float) -> None:
        """An optimiser step was taken, with this gradient norm."""
        self.norms, self.updates = self.norms + norm, self.updates + 1

    def skip(self) -> None:
        """A minibatch was read, and its optimiser step not taken."""
        self.skipped += 1

    def totals(self) -> Metrics:
        """Sums over all ranks: the means of a step with one update."""
        return all_ranks_metrics(self.sums)

    @property
    def grad_norm(self) -> float | None:
        """Mean over the optimiser steps taken; None where all were skipped."""
        return None if self.skipped and not self.updates else self.norms / max(1, self.updates)

    def result(self) -> Metrics:
        """Means over the minibatches that were read, on all ranks; the gradient norm is over the steps taken, and absent where all
        were skipped."""
        sums = all_ranks_metrics({**self.gaps, "answers": self.answers, **self.sums})
        gaps = {
            "logprob_gap": sums.pop("logprob_gap"),
            "answer_gap": sums.pop("answer_gap") / max(1, sums.pop("answers")),
        }
        count = max(1, self.updates + self.skipped)
        means = {name: total / count for name, total in sums.items()}
        norm = {} if self.grad_norm is None else {"grad_norm": self.grad_norm}
        return {**means, **norm, **gaps}
