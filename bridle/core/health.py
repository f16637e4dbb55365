"""Whether a run can still learn, told from the figures of each logged step: it warns early, once, and stops what cannot.

A *sign* is something in a step's figures that ought not to be there. It warns when it has held for some logged steps in a
row, and what nothing can be learnt from ends the run after `guard.dead_steps` of them. `Run.log` looks, so a trainer need
only log its figures under the names below. What a sign needs and a trainer does not log is no sign.
What has held how long, and what was said, is state: it lies in the checkpoint and steers a resumed run as it would have.
Not here: losses and gradients that are not finite (`models/optimizer.py` stops before the step), rewards that are not
numbers (`rewards/rollout.py`), rows that cannot be used (`models/fitting.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridle.core.recipe import GuardSection

Figures = Mapping[str, Any]
EARLY = 3  # logged steps in a row before what may be chance is worth a warning


@dataclass(frozen=True)
class Sign:
    """`holds` looks at a step's figures; `says` is the sentence: what is wrong, and what to change."""

    name: str
    holds: Callable[[Figures, GuardSection], bool]
    says: Callable[[Figures], str]
    patience: int = EARLY
    deadly: bool = False


SIGNS = (
    Sign(
        "first ratio",
        lambda f, limits: f.get("logprob_gap", 0.0) > limits.max_logprob_gap,
        lambda f: (
            f"the engine's log-probs differ from the training pass by {f['logprob_gap']:.3f} nats a token on average, "
            "so the first ratio is not 1; set model.precision to float32 if this stays"
        ),
        patience=1,
    ),
    Sign(
        "unscored",
        lambda f, limits: f.get("unscored", 0) > 0,
        lambda f: (
            f"{f['unscored']} answers of a step had no usable reward and were left out ({kinds(f)}); look at the reward source"
        ),
        patience=1,
    ),
    Sign(
        "cut off",
        lambda f, limits: f.get("cut_off", 0.0) > limits.max_cut_off,
        lambda f: (
            f"{f['cut_off']:.0%} of the answers are cut off before they end; raise sampling.max_new_tokens, or show SFT "
            "more answers that end"
        ),
    ),
    Sign(
        "flat groups",
        lambda f, limits: limits.max_flat_groups < f.get("without_variance", 0.0) < 1.0,
        lambda f: (
            f"in {f['without_variance']:.0%} of the groups all answers got the same reward, and nothing is learnt from them; "
            "take prompts of middling difficulty, or more answers to each"
        ),
    ),
    Sign(
        "dead reward",
        lambda f, limits: 1.0 in (f.get("without_variance"), f.get("without_pairs")) or f.get("score_sd") == 0.0,
        lambda f: (
            "all answers that were compared got the same reward, so there is nothing to learn; read some answers, then "
            "look at the reward source, take easier or harder prompts, or raise sampling.max_new_tokens"
        ),
        deadly=True,
    ),
    Sign(
        "no gradient",
        lambda f, limits: f.get("grad_norm") == 0.0 and "warming" not in f,
        lambda f: (
            "the gradient is zero, so nothing is learnt; look at data.json in the run's folder for what the rows have in "
            "common, or at the reward source"
        ),
        deadly=True,
    ),
    Sign(
        "entropy collapse",
        lambda f, limits: f.get("entropy", float("inf")) < limits.min_entropy,
        lambda f: (
            f"the policy has {f['entropy']:.4f} nats a token left and gives nearly the same answer every time (entropy "
            "collapse); lower the learning rate, or hold it tighter to the reference (a larger KL weight)"
        ),
    ),
    Sign(
        "displacement",
        lambda f, limits: f.get("chosen_moved", 0.0) < -limits.max_chosen_fall,
        lambda f: (
            f"the chosen answers have become less likely by {-f['chosen_moved']:.1f} nats each, and the rejected ones by more; "
            "look at fresh answers, and raise dpo.beta or lower dpo.learning_rate"
        ),
    ),
)


def kinds(figures: Figures) -> str:
    """ "2 None, 1 nan": why rewards could not be used, as `rewards/rollout.py` counts them."""
    found = [f"{n} {k.removeprefix('unscored_')}" for k, n in figures.items() if k.startswith("unscored_")]
    return ", ".join(found) or "not a number"


@dataclass
class Health:
    """`state` maps a sign to the logged steps in a row that it has held for, and `said` to its sentence once warned of."""

    limits: GuardSection = field(default_factory=GuardSection)
    state: dict[str, dict[str, Any]] = field(default_factory=lambda: {"held": {}, "said": {}})

    def look(self, figures: Figures) -> tuple[list[str], str | None]:
        """(new warnings, why the run must stop or None). Call it once for each logged step."""
        held, said = self.state["held"], self.state["said"]
        warnings, stop = [], None
        for sign in SIGNS:
            if not sign.holds(figures, self.limits):
                held.pop(sign.name, None)
                continue
            held[sign.name] = held.get(sign.name, 0) + 1
            if held[sign.name] >= sign.patience and sign.name not in said:
                said[sign.name] = sign.says(figures)
                warnings.append(said[sign.name])
            if sign.deadly and stop is None and 0 < self.limits.dead_steps <= held[sign.name]:
                stop = f"for {held[sign.name]} logged steps in a row {sign.says(figures)}"
        return warnings, stop
