"""Settings of the trainers that learn from data: pretraining, SFT, the reward model, DPO, KTO, ORPO."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bridle.recipe import base
from bridle.recipe.base import TrainerSection


class PretrainSection(TrainerSection):
    """Next-token prediction on plain text."""

    batch_size: base.BatchSize = Field(
        default=8,
        description="rows in one optimiser step; many small steps teach a small model more than few large ones",
    )
    length: int = Field(default=128, ge=8, le=base.WIDEST)
    """tokens in a row"""
    learning_rate: base.PeakRate = 0.03
    optimizer: base.Optimizer = Field(default="muon", description="muon needs less than half of AdamW's tokens here")


class SFTSection(TrainerSection):
    """Imitate demonstrations: next-token prediction on the answers alone."""

    learning_rate: base.PeakRate = Field(
        default=0.01, description="peak learning rate; for a model of yours with adamw: 1e-5 to 1e-4"
    )
    optimizer: base.Optimizer = Field(default="muon", description="adamw for models of a billion parameters")
    epochs: base.Epochs = Field(default=2, description="passes over the demonstrations")
    micro_batch: base.MicroBatch = 0


Task = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]


class RewardSection(TrainerSection):
    """A reward model from comparisons."""

    batch_size: base.ComparedBatch = 8
    learning_rate: base.PeakRate = 5e-4
    micro_batch: base.MicroBatch = 0
    epochs: base.Epochs = Field(default=1, description="passes over the comparisons; more than one overfits them")
    path: base.PathText = ""
    """folder of a language model to start from, of any family and tokenizer; empty: SFT's"""
    loss: Literal["pairs", "ranking"] = "pairs"
    """pairs: Bradley-Terry; ranking: Plackett-Luce on whole rankings"""
    ties: Literal["drop", "half"] = "drop"
    """answers ranked as equal: left out, or a pair whose target probability is one half (pairs only)"""
    margin: float = Field(default=0.0, ge=0)
    """by how much the better answer should win, times the strength of the preference where it has one (pairs only)"""
    tasks: list[Task] = Field(default=["reward"], min_length=1, max_length=100)
    """what it judges by, a row of the head each: reward is which answer is better on the whole, any other name a criterion of the store's
    comparisons, or else of its votes (a classifier) or scores; RL learns from the first, where no reward source names another"""
    style_control: list[str] = Field(default_factory=list, max_length=100)
    """features of an answer, length or flattery, whose appeal to the labelers beyond quality is fitted on items of known ranking and kept
    out of the score (pairs only)"""
    members: int = Field(default=1, ge=1, le=1000)
    """reward models trained, one after another; more than one: an ensemble"""
    bootstrap: bool = False
    """members after the first learn from as many prompts drawn with replacement, each with all that was said of its answers: they
    then differ also by what they saw"""
    combine: Literal["mean", "min", "uwo"] = "mean"
    """score of an ensemble: mean, minimum, or mean - uncertainty × variance"""
    uncertainty: float = Field(default=0.1, ge=0)
    """λ of uwo: what disagreement costs (Coste 2023: .1 in PPO)"""
    score_size: float = Field(default=0.001, ge=0)
    """weight of the squared scores in the loss, which keeps them near zero"""
    slim: bool = True
    """train a small one from scratch too"""
    slim_hidden_size: int = Field(default=96, ge=16, le=base.WIDEST)
    """width of the slim one"""
    slim_layers: int = Field(default=2, ge=1, le=base.WIDEST)
    """depth of the slim one"""
    slim_epochs: base.Epochs = Field(default=2, description="passes for the slim one, which starts from scratch")
    slim_learning_rate: base.PeakRate = Field(default=1.5e-3, description="peak learning rate of the slim one")

    @model_validator(mode="after")
    def ties_margins_and_ensembles_go_together(self) -> RewardSection:
        if self.loss == "ranking" and (self.margin or self.ties == "half" or self.style_control):
            raise ValueError(
                "loss = 'ranking' takes ties as they are, no margin and no style_control; set ties = 'drop', margin = 0 and "
                "style_control = []"
            )
        if self.style_control and "reward" not in self.tasks:
            raise ValueError(
                f"style_control is of which answer is better on the whole, and tasks = {self.tasks} has no 'reward'; add it, or set "
                "style_control = []"
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {self.tasks} names one twice; name each once")
        if self.members == 1 and self.bootstrap:
            raise ValueError("bootstrap = true needs an ensemble, and members is 1; raise it, or set bootstrap = false")
        if self.members == 1 and self.combine != "mean":
            raise ValueError(
                f"combine = {self.combine!r} needs an ensemble, and members is 1; raise it, or set combine = 'mean'"
            )
        return self


NO_REFERENCE = ("simpo", "orpo")  # losses that are held by none
GAMMA = 0.5  # Meng 2024 takes .3 to 1.6, at β 2 to 2.5


class DPOSection(TrainerSection):
    """Direct preference optimisation: from comparisons to a policy, without a reward model."""

    start: base.Start = ""
    reference: base.Reference = Field(
        default="", description="name of the project's model as the reference; empty: the one it starts from"
    )
    batch_size: base.ComparedBatch = 16
    learning_rate: base.PolicyRate = Field(
        default=5e-4, description="peak learning rate; for a billion parameters about 5e-7"
    )
    micro_batch: base.MicroBatch = 0
    epochs: base.Epochs = Field(default=1, description="passes over the comparisons")
    beta: float = Field(default=0.3, gt=0)
    """β: how strongly the policy is held to the reference, larger is closer; simpo: scale of the mean log-probs,
    usually 2 to 2.5"""
    loss: Literal["dpo", "ipo", "simpo"] = "dpo"
    """ipo: regresses to a finite margin of 1/(2β) nats; simpo: mean log-probs per token, a target margin and no
    reference"""
    gamma: float = Field(default=GAMMA, ge=0)
    """γ: target margin of β × the mean log-probs per token, usually .3 to 1.6 (simpo only)"""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """cDPO: the share of comparisons that is assumed to be wrong (dpo only)"""
    observe_every: int = Field(default=15, ge=0, le=base.LONGEST)
    """optimiser steps between measurements of the KL on the policy's own answers; 0: none, which spares the memory of answering"""
    sft: float = Field(default=0.0, ge=0)
    """weight of a next-token loss on the chosen answers, which keeps them likely"""
    online_rounds: int = Field(default=0, ge=0, le=base.LONGEST)
    """0: on the comparisons of the store; n: so many rounds on fresh answers that a reward ranks"""
    online_prompts: int = Field(default=48, ge=1, le=base.WIDEST)
    """online: prompts answered in a round"""
    online_answers: int = Field(default=4, ge=2, le=base.WIDEST)
    """online: answers to each prompt; every two that differ are a pair"""
    online_reference: Literal["start", "round"] = "start"
    """online: start: the reference stays; round: it is the policy as each round began"""
    scored_by: base.ScoredBy = Field(
        default="reward",
        description="online: reward: the reward model ranks the answers; verifier: whether they are right does",
    )
    missing_stop_penalty: base.MissingStopPenalty = Field(
        default=1.0, description="online: subtracted from the reward of an answer that was cut off"
    )

    @model_validator(mode="after")
    def each_loss_has_settings_of_its_own(self) -> DPOSection:
        if self.loss != "dpo" and self.label_smoothing:
            raise ValueError(f"label_smoothing belongs to loss = 'dpo'; {self.loss} has none, set it to 0")
        if self.loss != "simpo" and self.gamma != GAMMA:
            raise ValueError(
                f"gamma belongs to loss = 'simpo'; {self.loss} has none, leave it at {GAMMA}, or set loss = 'simpo'"
            )
        if self.loss == "simpo" and (self.reference or self.online_reference == "round"):
            raise ValueError("loss = 'simpo' has no reference; set reference = '' and online_reference = 'start'")
        return self


class KTOSection(TrainerSection):
    """Kahneman-Tversky optimisation: a policy from answers that are good or bad, each by itself."""

    loss: ClassVar[Literal["kto"]] = "kto"  # by which loops and stages know it; not a setting
    start: base.Start = ""
    reference: base.Reference = Field(
        default="", description="name of the project's model as the reference; empty: the one it starts from"
    )
    labels: Literal["all", "comparisons", "votes"] = "all"
    """what it learns from: votes on single answers; comparisons, each a good answer and a bad one; all: whatever the store has of both"""
    batch_size: base.BatchSize = Field(
        default=16,
        description="prompts in one optimiser step, each with all its compared answers; an answer with votes counts as one; at least 2",
    )
    learning_rate: base.PolicyRate = Field(
        default=5e-4, description="peak learning rate; for a billion parameters about 5e-6"
    )
    micro_batch: base.MicroBatch = 0
    epochs: base.Epochs = Field(default=1, description="passes over the answers")
    beta: float = Field(default=0.3, gt=0)
    """β: how strongly the policy is held to the reference, larger is closer"""
    desirable_weight: float = Field(default=1.0, gt=0)
    """λ_D: weight of the good answers"""
    undesirable_weight: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """λ_U: weight of the bad answers; auto: the number nearest to 1 with which the good ones together weigh as much as the bad ones, or
    up to a third more"""
    observe_every: int = Field(default=15, ge=0, le=base.LONGEST)
    """optimiser steps between measurements of the KL on the policy's own answers; 0: none, which spares the memory of answering"""

    @model_validator(mode="after")
    def others_are_in_the_batch(self) -> KTOSection:
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size = {self.batch_size} leaves KTO's reference point, a mean over the batch, to one prompt; take 2 at least"
            )
        return self


class ORPOSection(TrainerSection):
    """Odds-ratio preference optimisation: imitating the preferred answers, away from the others; without a reference."""

    loss: ClassVar[Literal["orpo"]] = "orpo"  # not a setting
    start: base.Start = ""
    batch_size: base.ComparedBatch = 16
    learning_rate: base.PolicyRate = Field(
        default=5e-4, description="peak learning rate; for a billion parameters about 5e-6"
    )
    micro_batch: base.MicroBatch = 0
    epochs: base.Epochs = Field(default=1, description="passes over the comparisons")
    odds_weight: float = Field(default=0.1, ge=0)
    """λ: weight of the odds ratio beside the imitation, usually .1 to .25; 0: nothing but imitation of the preferred answers"""
    observe_every: int = Field(default=15, ge=0, le=base.LONGEST)
    """optimiser steps between looks at the policy's own answers; 0: none, which spares the memory of answering"""

    @model_validator(mode="before")
    @classmethod
    def it_has_no_reference(cls, given: Any) -> Any:
        if isinstance(given, dict) and "reference" in given:
            raise ValueError("ORPO has no reference; leave reference out, or train by dpo or kto")
        return given
