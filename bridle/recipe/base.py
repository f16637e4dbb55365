"""What the sections of the recipe share: how they are validated, and the settings that several of them have."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

# Strict: "12" is not taken for 12, nor true for 1. A setting is never rewritten behind the user's back.
SETTLED = ConfigDict(
    frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_max_length=4096, validate_default=True,
    use_attribute_docstrings=True,
)  # fmt: skip

# No number asks for more than any machine has. What takes time alone (steps, epochs, tokens) is bounded by LONGEST; what is held in
# memory at once (a batch, a step's prompts, the answers to one) by WIDEST. Whether a model's weights fit this machine is asked before
# they are made, in models/shapes.py.
LONGEST, WIDEST = 10**9, 10**6
MOST_ANSWERS = 10**7  # held at once

# Settings that several sections have: bounds and description stand here once, each section gives its default. Where a section means it
# more narrowly, it says so: `epochs: Epochs = Field(default=2, description="passes over the demonstrations")`.

# What a chat template is told in place of today where nothing else is chosen: the day that Llama 3.1's writes where it is told none.
USUAL_DAY = "2024-07-26"

# A place on the disk.
PathText = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]

# Models of the project.
Start = Annotated[
    str,
    Field(
        description="name of the project's model to start from; empty: sft (on the playground, where a verifier scores, its "
        "arithmetic branch)"
    ),
]
Reference = Annotated[
    str,
    Field(description="name of the project's model that the KL is measured against; empty: the one it starts from"),
]
ScoredBy = Annotated[
    Literal["reward", "verifier"],
    Field(
        description="reward: the reward model scores; verifier: 1 for a right answer, else 0, on prompts that have a solution"
    ),
]

# How much of the data, how often.
Steps = Annotated[int, Field(ge=1, le=LONGEST, description="rollout steps")]
PromptsPerStep = Annotated[int, Field(ge=1, le=WIDEST, description="prompts in a step")]
GroupSize = Annotated[int, Field(ge=2, le=WIDEST, description="answers to each prompt")]
Epochs = Annotated[int, Field(ge=1, le=LONGEST, description="passes over a step's answers")]
Minibatches = Annotated[int, Field(ge=1, le=LONGEST, description="optimiser steps in a pass")]
BatchSize = Annotated[int, Field(ge=1, le=WIDEST, description="sequences in one optimiser step")]
ComparedBatch = Annotated[
    int, Field(ge=1, le=WIDEST, description="prompts in one optimiser step, each with all its answers and pairs")
]
RolloutBatch = Annotated[
    int, Field(ge=1, le=WIDEST, description="sequences in one forward and backward pass; changes memory and speed only")
]
MicroBatch = Annotated[
    int,
    Field(
        ge=0,
        le=WIDEST,
        description="how many of batch_size go through one forward and backward pass (0: all); changes memory and speed only",
    ),
]
MicroTokens = Annotated[
    int,
    Field(
        ge=0,
        le=LONGEST,
        description="tokens in one forward and backward pass at most, prompts and padding counted (0: no bound); a row that has more goes "
        "alone; changes memory and speed only",
    ),
]
Temperature = Annotated[
    float, Field(ge=1e-6, description="of the rollouts; log-probs are taken at the same temperature")
]
MissingStopPenalty = Annotated[
    float, Field(ge=0, description="subtracted from the reward of an answer that was cut off")
]

HeldoutAnswers = Annotated[
    int,
    Field(
        ge=1,
        le=1000,
        description="answers to each held-out problem before and after; from 2 on pass@k is measured too, k being their number",
    ),
]
FilterAnswers = Annotated[
    int,
    Field(ge=1, le=1000, description="answers to each prompt by which min_right and max_right choose before the start"),
]
MinRight = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="verifier: prompts of which a smaller share of answers is right at the start are left out; 0: none",
    ),
]
MaxRight = Annotated[float, Field(ge=0, le=1, description="the same of a larger share; 1: none")]

# How the weights move.
PeakRate = Annotated[float, Field(gt=0, description="peak learning rate")]
PolicyRate = Annotated[float, Field(ge=0, description="learning rate; for a billion parameters about 1e-6")]
Optimizer = Annotated[
    Literal["adamw", "muon"], Field(description="muon: for the matrices of models trained from scratch")
]
ClipNorm = Annotated[float, Field(gt=0, description="gradients are clipped to this norm")]
Schedule = Annotated[
    Literal["auto", "linear", "cosine", "constant"],
    Field(
        description="of the rate over the run's optimiser steps; linear, cosine: to 0 from the warm-up on; constant: level after it; auto: "
        "up over 3%, level, straight to 0 over the last 70%; where a model learns from its own answers, constant from the start"
    ),
]
Warmup = Annotated[
    float,
    Field(
        ge=0, lt=1, description="share of the optimiser steps over which the rate rises (of a schedule that is named)"
    ),
]
WARMUP = 0.03
# Muon's matrices were always decayed, AdamW's never: what a recipe of before says nothing of stays as it was.
WeightDecay = Annotated[
    Annotated[float, Field(ge=0)] | Literal["auto"],
    Field(
        description="share that a matrix loses at each step, times the learning rate; norms, biases and embeddings lose none; auto: "
        "0.01 with muon, 0 with adamw"
    ),
]
AdamBeta = Annotated[float, Field(ge=0, lt=1)]
KLCoef = Annotated[float, Field(ge=0, description="β, the weight of an answer's KL in its reward")]
Clip = Annotated[float, Field(gt=0, description="ε: how far the probability ratio may move the loss")]
RolloutCheckpoints = Annotated[int, Field(ge=1, le=LONGEST, description="rollout steps between checkpoints")]


class Section(BaseModel):
    model_config = SETTLED


class TrainerSection(BaseModel):
    """What every trainer has. Not a `Section`, so that inheritance of ours stays one deep."""

    model_config = SETTLED

    batch_size: BatchSize = 16
    learning_rate: PeakRate = 1e-3
    optimizer: Optimizer = "adamw"
    clip_norm: ClipNorm = 1.0
    schedule: Schedule = "auto"
    warmup: Warmup = WARMUP
    weight_decay: WeightDecay = "auto"
    adam_beta1: AdamBeta = 0.9
    """β₁ of AdamW: how much of its running mean of gradients stays at each step"""
    adam_beta2: AdamBeta = 0.95
    """β₂ of AdamW: the same of their squares"""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """added to the root of the mean square that AdamW divides by"""
    micro_tokens: MicroTokens = 0
    checkpoint_every: int = Field(default=200, ge=1, le=LONGEST)
    """optimiser steps between checkpoints"""
    _brought: dict[str, Callable[..., Any]] = PrivateAttr(default_factory=dict)

    @property
    def brought(self) -> Mapping[str, Callable[..., Any]]:
        """By "optimizer" and "schedule" what a caller from Python brings in place of those that have names; no file can hold it."""
        return self._brought

    def bringing(self, brought: Mapping[str, Callable[..., Any]]) -> Self:
        found = self.model_copy()
        found._brought = dict(brought)
        return found

    @model_validator(mode="after")
    def a_warmup_is_of_a_schedule(self) -> "TrainerSection":
        if self.schedule == "auto" and self.warmup != WARMUP:
            raise ValueError(
                f"warmup = {self.warmup:g} has no effect on schedule = 'auto'; set schedule to 'linear', 'cosine' or 'constant', or leave "
                f"it at {WARMUP:g}"
            )
        return self


def name_of_function(function: Callable[..., Any]) -> str:
    """Where it is defined and what is fixed of it: what two sessions know it by."""
    if isinstance(function, partial):
        fixed = [*map(repr, function.args), *(f"{key}={value!r}" for key, value in sorted(function.keywords.items()))]
        return f"{name_of_function(function.func)}({', '.join(fixed)})"
    named = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def refuse_too_many(prompts: int, answers: int) -> None:
    """Prompts, each with so many answers, that no machine holds at once: ValueError, for a section's validator."""
    if prompts * answers > MOST_ANSWERS:
        raise ValueError(
            f"{prompts} prompts with {answers} answers each are more than {MOST_ANSWERS} answers at once; take fewer"
        )


def refuse_empty_range(least: float, most: float) -> None:
    """Bounds between which nothing lies: ValueError, for a section's validator."""
    if least > most:
        raise ValueError(
            f"min_right = {least:g} is above max_right = {most:g}, so no prompt is left; lower the first or raise the second"
        )
