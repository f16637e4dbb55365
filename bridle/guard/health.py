"""Whether a run can still learn, judged at each logged step: it warns early, once, and stops what cannot.

A *sign* is something that ought not to be there. It warns when it has held for some logged steps in a row, and what nothing can be
learnt from ends the run after `guard.dead_steps` of them. A warning may rest on any logged metric; a metric that a trainer does not
log is never one. What ends a run rests on the `Signal` that the trainer hands over, never on a metric's name.
What has held for how long, and what was warned of, is state: it lies in the checkpoint and steers a resumed run as it would have.
Not here: losses and gradients that are not finite (`compute/optimizer.py` stops before the step), rewards that are not
numbers (`generation/rollout.py`), rows that cannot be used (`models/encoding.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridle.project.run import Signal
from bridle.recipe.watching import GuardSection

Metrics = Mapping[str, Any]
EARLY = 3  # logged steps in a row before what may be chance is worth a warning


@dataclass(frozen=True)
class Sign:
    """`holds` looks at a logged step: its metrics, which may cause a warning, and its signal, by which a run may be stopped. `template`
    is what is wrong, and what to change, with the metrics by name (and `fallen` and `kinds`, see `sentence`)."""

    name: str
    holds: Callable[[Metrics, Signal, GuardSection], bool]
    template: str
    patience: int = EARLY
    deadly: bool = False


SIGNS = (
    Sign(
        "first ratio",
        lambda metrics, signal, limits: (
            metrics.get("logprob_gap", 0.0) > limits.max_logprob_gap and not metrics.get("staleness")
        ),
        "the engine's log-probs differ from the training pass by {logprob_gap:.3f} nats a token on average, "
        "so the first ratio is not 1; set model.precision to float32 if this stays",
        patience=1,
    ),
    Sign(
        "whole answers",
        lambda metrics, signal, limits: metrics.get("answer_gap", 0.0) > limits.max_answer_gap,
        "the engine's log-probs of whole answers differ from the training pass's by {answer_gap:.2f} nats on average, so what "
        "is trained is not quite what was sampled; set model.precision to float32, or lower sampling.max_new_tokens",
        patience=1,
    ),
    Sign(
        "unscored",
        lambda metrics, signal, limits: metrics.get("unscored", 0) > 0,
        "{unscored} answers of a step had no usable reward and were left out ({kinds}); look at the reward source",
        patience=1,
    ),
    Sign(
        "cut off",
        lambda metrics, signal, limits: metrics.get("cut_off", 0.0) > limits.max_cut_off,
        "{cut_off:.0%} of the answers are cut off before they end; raise sampling.max_new_tokens, or show SFT "
        "more answers that end",
    ),
    Sign(
        "flat groups",
        lambda metrics, signal, limits: metrics.get("without_variance", 0.0) > limits.max_flat_groups,
        "in {without_variance:.0%} of the groups all answers got the same reward, and nothing is learnt from them; "
        "take prompts of middling difficulty, or more answers to each",
    ),
    Sign(
        "dead reward",
        lambda metrics, signal, limits: not signal.comparable,
        "all answers that were compared got the same reward, so there is nothing to learn; read some answers, then "
        "look at the reward source, take easier or harder prompts, or raise sampling.max_new_tokens",
        deadly=True,
    ),
    Sign(
        "no gradient",
        lambda metrics, signal, limits: signal.grad_norm == 0.0 and not signal.frozen,
        "the gradient is zero, so nothing is learnt; look at data.json in the run's folder for what the rows have in "
        "common, or at the reward source",
        deadly=True,
    ),
    Sign(
        "entropy collapse",
        lambda metrics, signal, limits: metrics.get("entropy", float("inf")) < limits.min_entropy,
        "the policy has {entropy:.4f} nats a token left and gives nearly the same answer every time (entropy "
        "collapse); lower the learning rate, or hold it tighter to the reference (a larger KL weight)",
    ),
    Sign(
        "displacement",
        lambda metrics, signal, limits: metrics.get("chosen_moved", 0.0) < -limits.max_chosen_fall,
        "the chosen answers have become less likely by {fallen:.1f} nats each, and the rejected ones by more; "
        "look at fresh answers, and raise dpo.beta or lower dpo.learning_rate",
    ),
    Sign(
        "never ends",
        lambda metrics, signal, limits: signal.answers is not None and signal.answers.cut_off > limits.stop_cut_off,
        "nearly all answers are cut off before they end, so what is learnt is their beginnings; raise sampling.max_new_tokens, raise the "
        "method's missing_stop_penalty, or show SFT more answers that end",
        deadly=True,
    ),
)


def sentence(sign: Sign, metrics: Metrics) -> str:
    """The sign in words. `kinds`: "2 None, 1 nan", why rewards could not be used, as `generation/rollout.py` counts them."""
    found = [f"{n} {k.removeprefix('unscored_')}" for k, n in metrics.items() if k.startswith("unscored_")]
    words = {"kinds": ", ".join(found) or "not a number", "fallen": -metrics.get("chosen_moved", 0.0)}
    return sign.template.format_map({**metrics, **words})


@dataclass
class Health:
    """`state` maps a sign to the logged steps in a row that it has held for, and `warned` to its sentence once warned of."""

    limits: GuardSection = field(default_factory=GuardSection)
    state: dict[str, dict[str, Any]] = field(default_factory=lambda: {"held": {}, "warned": {}})

    ended: str | None = None  # it stops what cannot learn, and ends nothing else
    waits: str | None = None
    kl_factor: float = 1.0

    def resume(self) -> list[str]:
        return []  # nothing was waited for

    def warnings(self) -> dict[str, str]:
        return dict(self.state["warned"])

    def look(self, metrics: Metrics, signal: Signal) -> tuple[list[str], str | None]:
        """(new warnings, why the run must stop or None). Call it once for each logged step."""
        held, warned = self.state["held"], self.state["warned"]
        warnings, stop = [], None
        for sign in SIGNS:
            if not sign.holds(metrics, signal, self.limits):
                held.pop(sign.name, None)
                continue
            held[sign.name] = held.get(sign.name, 0) + 1
            if held[sign.name] >= sign.patience and sign.name not in warned:
                warned[sign.name] = sentence(sign, metrics)
                warnings.append(warned[sign.name])
            if sign.deadly and stop is None and 0 < self.limits.dead_steps <= held[sign.name]:
                stop = f"for {held[sign.name]} logged steps in a row {sentence(sign, metrics)}"
        return warnings, stop
