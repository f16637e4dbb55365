"""Settings of the trainers that learn from their own answers, and of what rewards them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bridle.recipe import base
from bridle.recipe.base import Section, TrainerSection


class RolloutSection(Section):
    """Where the answers come from that a policy learns from, if not from bridle's own engine: a server on the same machine."""

    endpoint: Annotated[str, Field(max_length=1000, pattern=r"^(https?://[^\s@?#]+)?$")] = ""
    """address of a server of vLLM's kind that runs the model and takes adapters, such as http://127.0.0.1:8000/v1; empty: none"""
    sleeps: bool = True
    """the server is woken for each rollout and sleeps while the policy learns, for the two share a card; false: it has one of its own"""
    concurrency: int = Field(default=64, ge=1, le=1000)
    """answers that it is asked for at once"""
    timeout: float = Field(default=600.0, gt=0, le=3600)
    """seconds until an answer, or its waking, is given up, and the run stops"""
    max_logprob_gap: float = Field(default=0.1, gt=0)
    """nats a token, on the average of a rollout, by which its log-probs may differ from the trainer's own; beyond it the run stops"""
    workers: int = Field(default=0, ge=0, le=4096)
    """processes of their own that answer, each with a copy of the weights; 0: what trains answers too"""
    staleness: int = Field(default=0, ge=0, le=16)
    """steps by which the weights that answer may be behind those that learn from it; 1: the next step is answered while this one learns"""
    importance_cap: float = Field(default=2.0, ge=1)
    """how much more an answer's token, drawn by other weights (staleness, endpoint), may count than one of the policy's own"""


class PPOSection(TrainerSection):
    """Reinforcement learning against the reward model, held by a KL penalty to the frozen reference."""

    start: base.Start = ""
    reference: base.Reference = ""
    scored_by: base.ScoredBy = "reward"
    steps: base.Steps = 12
    prompts_per_step: base.PromptsPerStep = Field(default=96, description="prompts in a step, one answer each")
    epochs: base.Epochs = 2
    minibatches: base.Minibatches = 2
    batch_size: base.RolloutBatch = 32
    learning_rate: base.PolicyRate = Field(
        default=5e-4, description="learning rate of the policy; for a billion parameters about 1e-6"
    )
    critic_learning_rate: base.PolicyRate = Field(default=1e-3, description="learning rate of the critic")
    kl_coef: base.KLCoef = Field(default=0.12, description="β, the weight of the per-token KL penalty, at the start")
    kl_target: float = Field(default=1.5, ge=0)
    """nats per answer that β is steered towards, for which kl_coef must be above 0; 0: β stays fixed"""
    kl_gain: float = Field(default=0.1, ge=0, le=1)
    """β changes by at most this share after each step"""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """discount"""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation"""
    clip: base.Clip = 0.2
    value_clip: base.Clip = Field(
        default=0.5, description="the same for the critic, in standard deviations of the returns"
    )
    normalise_returns: Literal["running", "none"] = "running"
    """running: the critic learns returns less their running mean, in their running standard deviations; none: in units of the reward, and
    value_clip is too"""
    temperature: base.Temperature = 1.0
    missing_stop_penalty: base.MissingStopPenalty = 1.0
    shared_trunk: bool = False
    """policy and critic are two heads of one network: less memory, and each moves the other"""
    value_coef: float = Field(default=1.0, gt=0)
    """weight of the critic's loss; it matters where the trunk is shared (0.1 is usual there)"""
    critic_warmup: int = Field(default=0, ge=0, le=base.LONGEST)
    """first rollout steps, in which only the critic learns"""
    early_stop_kl: float = Field(default=0.0, ge=0)
    """a minibatch whose approx_kl is above it ends the updates of its rollout step; 0: never"""
    pretrain_coef: float = Field(default=0.0, ge=0)
    """weight of a next-token loss on demonstrations mixed into each policy step (0: none)"""
    checkpoint_every: base.RolloutCheckpoints = 5

    @property
    def steered(self) -> bool:
        """Whether β moves; the recipes of earlier versions may hold a target that cannot move it."""
        return min(self.kl_target, self.kl_coef, self.kl_gain) > 0

    @model_validator(mode="after")
    def a_target_steers(self) -> PPOSection:
        if self.kl_target and not self.steered:
            raise ValueError(
                f"kl_target = {self.kl_target:g} steers β by products, which cannot move kl_coef = {self.kl_coef:g} with kl_gain = "
                f"{self.kl_gain:g}; set kl_target = 0 to leave β fixed, or raise those two above 0"
            )
        if self.early_stop_kl and self.epochs * self.minibatches == 1:
            raise ValueError(
                f"early_stop_kl = {self.early_stop_kl:g} can stop nothing where a step has one minibatch and one epoch; set it to 0, or "
                "raise epochs or minibatches"
            )
        return self


class GRPOSection(TrainerSection):
    """Reinforcement learning on answers that can be checked: many answers to a prompt, the better ones reinforced."""

    start: base.Start = ""
    reference: base.Reference = ""
    scored_by: base.ScoredBy = "verifier"
    steps: base.Steps = 24
    prompts_per_step: base.PromptsPerStep = 16
    group_size: base.GroupSize = 8
    epochs: base.Epochs = 1
    minibatches: base.Minibatches = 2
    batch_size: base.RolloutBatch = 32
    learning_rate: base.PolicyRate = 5e-4
    kl_coef: base.KLCoef = Field(default=0.02, description="β, the weight of the k3 loss against the reference")
    clip: base.Clip = Field(default=0.2, description="ε: how far the probability ratio may fall")
    clip_high: base.Clip = Field(default=0.2, description="how far it may rise (DAPO: .28)")
    length_power: float = Field(default=0.0, ge=0, le=1)
    """0: mean over all tokens of a step; 1: mean over answers of their means"""
    std_power: float = Field(default=1.0, ge=0, le=1)
    """1: advantages in standard deviations of the group (GRPO); 0: in rewards (Dr. GRPO)"""
    temperature: base.Temperature = 1.0
    missing_stop_penalty: base.MissingStopPenalty = Field(
        default=0.0,
        description="subtracted from the reward of an answer that was cut off; a verifier gives it 0 already",
    )
    checkpoint_every: base.RolloutCheckpoints = 5
    surrogate: Literal["clip", "sequence", "cispo"] = "clip"
    """clip: PPO's, by token; sequence: one ratio for each answer (GSPO, with length_power = 1, clip = 3e-4, clip_high = 4e-4); cispo: the
    ratio is a weight, bounded by clip_high alone, and no token is left out"""
    normalise: Literal["sum", "each"] = "sum"
    """of several reward sources: sum: advantages of their sum; each: of each by itself, then added by weight (GDPO)"""
    heldout_answers: base.HeldoutAnswers = 1
    filter_answers: base.FilterAnswers = 15
    min_right: base.MinRight = 0.0
    max_right: base.MaxRight = 1.0
    branch_problems: int = Field(default=1000, ge=0, le=base.WIDEST)
    """playground: worked problems that the arithmetic branch of SFT is trained on"""
    branch_demonstrations: int = Field(default=500, ge=0, le=base.WIDEST)
    """playground: answers to problems by authors of uneven skill, which it learns from as well"""

    @model_validator(mode="after")
    def a_step_can_be_held(self) -> GRPOSection:
        base.refuse_too_many(self.prompts_per_step, self.group_size)
        base.refuse_empty_range(self.min_right, self.max_right)
        return self


class RLOOSection(TrainerSection):
    """Reinforcement learning with several answers to a prompt, each measured against the mean of the others."""

    start: base.Start = ""
    reference: base.Reference = ""
    scored_by: Literal["reward", "verifier", "nothing"] = "reward"
    """reward: the reward model scores; verifier: 1 for a right answer, else 0, on prompts that have a solution; nothing: every answer
    has 0, so that the KL alone teaches, towards a reference that is the teacher (docs/distillation.md)"""
    steps: base.Steps = 16
    prompts_per_step: base.PromptsPerStep = 24
    group_size: base.GroupSize = 4
    epochs: base.Epochs = 1
    minibatches: base.Minibatches = 1
    batch_size: base.RolloutBatch = 32
    learning_rate: base.PolicyRate = 1e-3
    kl_coef: base.KLCoef = 0.1
    clip: base.Clip = Field(
        default=0.2, description="ε: how far an answer's ratio may move; with one optimiser step a pass it is 1"
    )
    temperature: base.Temperature = 1.0
    missing_stop_penalty: base.MissingStopPenalty = 1.0
    checkpoint_every: base.RolloutCheckpoints = 5

    heldout_answers: base.HeldoutAnswers = 1
    filter_answers: base.FilterAnswers = 15
    min_right: base.MinRight = 0.0
    max_right: base.MaxRight = 1.0

    @model_validator(mode="after")
    def a_step_can_be_held(self) -> RLOOSection:
        base.refuse_too_many(self.prompts_per_step, self.group_size)
        base.refuse_empty_range(self.min_right, self.max_right)
        return self


class REBELSection(TrainerSection):
    """Reinforcement learning as regression: two answers to a prompt, log-odds that follow the difference of their rewards."""

    start: base.Start = ""
    reference: base.Reference = ""
    scored_by: base.ScoredBy = "reward"
    steps: base.Steps = 12
    prompts_per_step: base.PromptsPerStep = Field(default=48, description="prompts in a step, two answers each")
    epochs: base.Epochs = Field(default=2, description="passes over a step's pairs")
    minibatches: base.Minibatches = 2
    batch_size: base.RolloutBatch = 32
    learning_rate: base.PolicyRate = 5e-4
    eta: float = Field(default=1.0, gt=0)
    """η: a step solved exactly multiplies the policy by exp(η × reward)"""
    kl_coef: base.KLCoef = Field(
        default=0.1, description="β, the weight of an answer's KL in its reward; 0: only η holds the policy"
    )
    temperature: base.Temperature = 1.0
    missing_stop_penalty: base.MissingStopPenalty = 1.0
    checkpoint_every: base.RolloutCheckpoints = 5


THRESHOLD = 0.5  # a right answer has 1, a wrong one 0


class RejectionSection(TrainerSection):
    """Expert iteration: answer each prompt several times, keep the best, imitate it, and again."""

    start: base.Start = ""
    reference: base.Reference = ""
    scored_by: base.ScoredBy = "reward"
    rounds: int = Field(default=3, ge=1, le=base.LONGEST)
    """times to answer afresh and imitate"""
    prompts_per_round: int = Field(default=320, ge=1, le=base.WIDEST)
    """prompts answered in a round"""
    answers: int = Field(default=4, ge=1, le=base.WIDEST)
    """n: answers to each prompt"""
    keep: Literal["best", "threshold", "shortest", "best_right"] = "best"
    """of each prompt: best: the best answer; threshold: all that reach it; shortest: the shortest that does, lucky guesses left out;
    best_right: the best that does"""
    threshold: float = THRESHOLD
    """the smallest reward that is kept (a right answer has 1, a wrong one 0)"""
    heldout_answers: base.HeldoutAnswers = 1
    batch_size: base.BatchSize = Field(default=16, description="kept answers in one optimiser step")
    epochs: base.Epochs = Field(default=1, description="passes over the kept answers of a round")
    learning_rate: base.PolicyRate = Field(
        default=4e-4, description="learning rate; for a billion parameters about 1e-5"
    )
    temperature: base.Temperature = Field(default=1.0, description="of the answers to choose from")
    checkpoint_every: base.RolloutCheckpoints = Field(default=1, description="rounds between checkpoints")

    @model_validator(mode="after")
    def the_choice_is_what_it_says(self) -> RejectionSection:
        base.refuse_too_many(self.prompts_per_round, self.answers)
        if self.scored_by == "verifier" and self.keep == "best":
            raise ValueError(
                "keep = 'best' would imitate a wrong answer where none is right; with scored_by = 'verifier' set it to "
                "'shortest', 'threshold' or 'best_right'"
            )
        if self.keep == "best" and self.threshold != THRESHOLD:
            raise ValueError(
                f"threshold = {self.threshold:g} has no effect on keep = 'best'; set keep to 'threshold', 'shortest' or 'best_right', or "
                f"leave it at {THRESHOLD:g}"
            )
        return self


CheckKind = Literal[
    "",
    "answer",
    "exact",
    "choice",
    "verse",
    "tags",
    "constraints",
    "constraint_share",
    "pattern",
    "schema",
    "symbolic",
    "tests",
]


READ_CHECKS = ("", "answer", "choice", "symbolic")  # those that read a final answer, which they may fail to


class RewardSource(Section):
    """One of several sources of reward, of which RL gets the weighted sum; without any, the project's reward model scores alone."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """what it is called in the log"""
    kind: Literal["learned", "verifier", "judge"]
    """learned: a reward model; verifier: 1 for an answer that is checked and right, else 0; judge: the model of [judge], all answers to a
    prompt in one call"""
    path: base.PathText = ""
    """learned: the reward model's folder, of somebody else's too (docs/models.md); empty: the project's own"""
    task: str = ""
    """learned: which of its tasks; empty: its first"""
    weight: float = 1.0
    """of its score in the sum; below 0: a cost"""
    check: CheckKind = ""
    """verifier: how answers are checked (docs/verifiers.md); empty: by all that a prompt's own row states, be it a number alone"""
    expected: Any = ""
    """verifier: what every answer is checked against; empty: what the prompt's own row states"""
    unparsed: Literal["wrong", "judge"] = "wrong"
    """verifier: an answer that states nothing which the check could read is wrong, or read by the model of [judge], which is told the
    solution; one that was cut off is wrong and never judged"""
    check_seconds: float = Field(default=5.0, gt=0, le=3600)
    """verifier: longest time of one check that could hang, and of one run of a program"""
    allow_execution: bool = False
    """verifier: run answers as programs, apart from this machine, where check = 'tests'"""
    unsafe_execution: bool = False
    """verifier: run them also where they cannot be run apart: they can then read, write and send what you can"""

    @model_validator(mode="after")
    def verifiers_have_no_model(self) -> RewardSource:
        if self.kind != "learned" and (self.path or self.task):
            raise ValueError(f"kind = '{self.kind}' has neither path nor task; leave them out, or set kind = 'learned'")
        if self.kind != "verifier" and (self.check or self.expected != "" or self.allow_execution):
            raise ValueError(
                f"kind = '{self.kind}' checks nothing; leave check, expected and allow_execution out, or set kind = 'verifier'"
            )
        if self.expected != "" and not self.check:
            raise ValueError("expected says what is checked and not how; name a check, such as check = 'tags'")
        if self.unparsed == "judge" and (self.kind != "verifier" or self.check not in READ_CHECKS):
            raise ValueError(
                f"unparsed = 'judge' is for a verifier of final answers: check = {', '.join(map(repr, READ_CHECKS[1:]))}, or none; "
                f"kind = {self.kind!r} with check = {self.check!r} has nothing that it could fail to read"
            )
        if self.unsafe_execution and not self.allow_execution:
            raise ValueError(
                "unsafe_execution = true runs nothing by itself; set allow_execution = true where that is meant"
            )
        return self
