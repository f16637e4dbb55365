"""Settings of what watches over a run."""

from typing import Literal

from pydantic import Field

from bridle.recipe.base import LONGEST, Section


class GuardSection(Section):
    """What watches over a run: when it warns, when it stops, which checkpoints are kept. No part of a run's identity."""

    dead_steps: int = Field(default=10, ge=0, le=LONGEST)
    """stop after so many logged steps in a row from which nothing can be learnt; 0: never"""
    max_unscored: float = Field(default=0.5, ge=0, le=1)
    """stop where a larger share of a step's answers has no usable reward"""
    max_cut_off: float = Field(default=0.5, ge=0, le=1)
    """warn where a larger share of answers is cut off"""
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
    keep_checkpoints: int = Field(default=2, ge=1, le=LONGEST)
    """newest checkpoints of a run that are kept; the best one is kept too"""
    changed_models: Literal["refuse", "register"] = "refuse"
    """a folder in models/ whose files are not those that were registered; register: take it as it is now"""
    other_arithmetic: bool = False
    """resume a run where its kernels, its precision or its device cannot be had; the weights become others than they would have"""
