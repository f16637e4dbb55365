"""Settings of what watches over a run, and of what its metrics go to."""

from typing import Literal

from pydantic import Field

from bridle.recipe.base import LONGEST, WIDEST, Section

Action = Literal["off", "note", "warn", "raise beta", "stop", "roll back"]


class GuardSection(Section):
    """What watches over a run: when it warns, when it stops, which checkpoints are kept. No part of a run's identity."""

    dead_steps: int = Field(default=10, ge=0, le=LONGEST)
    """stop after so many logged steps in a row from which nothing can be learnt; 0: never"""
    max_unscored: float = Field(default=0.5, ge=0, le=1)
    """stop where a larger share of a step's answers has no usable reward"""
    max_cut_off: float = Field(default=0.5, ge=0, le=1)
    """warn where a larger share of answers is cut off"""
    stop_cut_off: float = Field(default=0.95, ge=0, le=1)
    """stop after `dead_steps` logged steps in a row where a larger share of answers is cut off; 1: never"""
    max_flat_groups: float = Field(default=0.9, ge=0, le=1)
    """warn where the rewards are all equal in a larger share of the groups"""
    max_logprob_gap: float = Field(default=0.05, ge=0)
    """warn where the log-probs of engine and training pass differ by more nats per token"""
    max_answer_gap: float = Field(default=0.1, ge=0)
    """warn where they differ by more nats per answer"""
    min_entropy: float = Field(default=0.01, ge=0)
    """warn where the policy's entropy is lower, in nats per token"""
    max_chosen_fall: float = Field(default=10.0, ge=0)
    """warn where DPO makes the chosen answers less likely by more nats per answer"""
    audits: Literal["auto", "simulated", "people", "off"] = "auto"
    """who compares fresh answers with the reference's in between: simulated people, or people, for whom the run waits; auto: simulated
    ones on the playground, else nobody"""
    audit_every: float = Field(default=0.25, gt=0)
    """an audit each time the square root of the KL to the reference has grown by so much"""
    audit_size: int = Field(default=24, ge=1, le=WIDEST)
    """comparisons of an audit"""
    audit_share: float = Field(default=0.2, ge=0, le=1)
    """answers that audits may have read, as a share of those read for the reward model"""
    audit_sure: float = Field(default=0.95, gt=0.5, lt=1)
    """probability that an earlier checkpoint is better at which `on_audit` acts"""
    keep_audited: int = Field(default=8, ge=2, le=LONGEST)
    """audited checkpoints whose weights are kept to roll back to: the best, as far as is known"""
    on_audit: Action = "roll back"
    """where audits say that an earlier checkpoint is better: off, note it, warn, raise beta (once more by half), stop with the policy as it
    is, or stop and roll back to the best audited checkpoint"""
    on_refusals: Action = "warn"
    """where more answers refuse than at the first step, by `max_refusals_rise`; the actions are those of `on_audit`"""
    max_refusals_rise: float = Field(default=0.3, ge=0, le=1)
    """share of answers"""
    on_repeats: Action = "warn"
    """where answers repeat themselves more than at the first step, by `max_repeats_rise`"""
    max_repeats_rise: float = Field(default=0.2, ge=0, le=1)
    """longest repeat of tokens as a share of an answer"""
    on_sameness: Action = "warn"
    """where answers have fewer distinct pairs of tokens than at the first step, under `min_distinct_share` of them"""
    min_distinct_share: float = Field(default=0.5, ge=0, le=1)
    """share of the first step's distinct-2"""
    on_length: Action = "note"
    """where answers are longer or shorter than at the first step by a factor of `max_length_ratio`"""
    max_length_ratio: float = Field(default=2.5, gt=1)
    """times longer, or shorter"""
    on_entropy: Action = "note"
    """where entropy has fallen under `min_entropy_share` of the first step's"""
    min_entropy_share: float = Field(default=0.33, ge=0, le=1)
    """share of the first step's nats per token"""
    on_disagreement: Action = "note"
    """where the members of an ensemble disagree more than at the first step, by a factor of `max_disagreement_ratio`"""
    max_disagreement_ratio: float = Field(default=2.0, gt=1)
    """times the first step's standard deviation over members"""
    on_kl: Action = "warn"
    """where the KL to the reference is above `max_kl`"""
    max_kl: float = Field(default=25.0, gt=0)
    """nats per answer"""
    keep_checkpoints: int = Field(default=2, ge=1, le=LONGEST)
    """newest checkpoints of a run that are kept; the best one is kept too"""
    changed_models: Literal["refuse", "register"] = "refuse"
    """a folder in models/ whose files are not those that were registered; register: take it as it is now"""
    other_arithmetic: bool = False
    """resume a run where its kernels, its precision or its device cannot be had; the weights become others than they would have"""

    @property
    def actions(self) -> dict[str, Action]:
        """What is to be done, by the rule's name."""
        return {
            "audit": self.on_audit, "refusals": self.on_refusals, "repeats": self.on_repeats, "sameness": self.on_sameness,
            "length": self.on_length, "entropy": self.on_entropy, "disagreement": self.on_disagreement, "kl": self.on_kl,
        }  # fmt: skip


class TrackSection(Section):
    """What gets a run's metrics besides metrics.jsonl: numbers alone, no prompt and no answer. No part of a run's identity."""

    to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list, max_length=2)
    """tensorboard: into tensorboard/ of the run's folder; wandb: to Weights & Biases, by `wandb login`, or with WANDB_MODE=offline into
    wandb/ of the run's folder (docs/python.md)"""
    project: str = ""
    """wandb: the project there; empty: WANDB_PROJECT of the environment, else the name of this project's folder"""
