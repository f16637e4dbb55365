"""The recipe: every setting of a run, validated and frozen. `bridle.toml` holds it, each run keeps the one it ran with.

An unknown key is an error that names the nearest one; no setting is changed behind the user's back.
`python -m bridle.core.recipe` prints docs/recipe.md.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bridle.core.errors import RecipeError
from bridle.core.records import content_hash

# Strict: "12" is not taken for 12, nor true for 1. A setting is never rewritten behind the user's back.
SETTLED = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class Section(BaseModel):
    model_config = SETTLED


class WorldSection(Section):
    """The playground: a small language with a known gold rubric."""

    file: str = Field(
        default="", description="data file of another world of the same form; empty: the one that comes with bridle"
    )


class ModelSection(Section):
    """The base model: one of yours, or a small one made from nothing by `train pretrain`."""

    path: str = Field(
        default="",
        description="folder of a Hugging Face language model to start from; empty: pretrain one",
    )
    vocab_size: int = Field(
        default=2048, ge=259, description="entries of the byte-level tokenizer, special tokens included"
    )
    hidden_size: int = Field(default=160, ge=16, description="width")
    intermediate_size: int = Field(default=448, ge=16, description="width of the feed-forward layers")
    layers: int = Field(default=4, ge=1, description="depth")
    heads: int = Field(default=5, ge=1, description="query heads")
    kv_heads: int = Field(
        default=5, ge=1, description="key and value heads; fewer than heads shares them (a smaller cache)"
    )
    max_positions: int = Field(default=512, ge=32, description="longest context in tokens")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of matrix products; auto: bfloat16 where the processor is fast at it"
    )
    kernels: Literal["auto", "compiled", "plain", "torch"] = Field(
        default="auto",
        description="what stands between the products; compiled (on a CPU): by a C compiler at the first use; plain: PyTorch's own; "
        "torch: a training step's layers by torch.compile, for long runs on a GPU",
    )


class DataSection(Section):
    """Where prompts, demonstrations and text come from, and how many are used."""

    source: Literal["playground", "store"] = Field(
        default="store", description="playground: made by the world; store: what was imported"
    )
    train_prompts: int = Field(default=1000, ge=1, description="prompts to answer and compare, and to train on")
    heldout_prompts: int = Field(default=512, ge=1, description="prompts of every evaluation; never trained on")
    probe_prompts: int = Field(
        default=200,
        ge=1,
        description="playground: harmful prompts and border prompts added to every evaluation, of each",
    )
    compared_heldout: int = Field(default=250, ge=1, description="held-out prompts whose answers test the reward model")
    demonstrations: int = Field(default=3000, ge=1, description="answers to imitate in SFT")
    pretrain_tokens: int = Field(
        default=1_400_000,
        ge=1000,
        description="tokens of pretraining text (the playground writes as many; a store's text is repeated)",
    )
    heldout_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of imported prompts that is held out, by hash"
    )
    drop_limit: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="training does not begin where a larger share of its rows cannot be used; 1: it always does",
    )


class SamplingSection(Section):
    """How answers are drawn for people to compare."""

    answers: int = Field(default=4, ge=2, description="answers to each prompt")
    temperature: float = Field(default=1.0, gt=0, description="1: the model's own distribution")
    top_p: float = Field(
        default=0.95, gt=0, le=1, description="nucleus: the likeliest tokens that together hold this mass"
    )
    top_k: int = Field(default=0, ge=0, description="keep so many of the likeliest tokens; 0: all")
    max_new_tokens: int = Field(default=72, ge=1, description="longest answer, in all stages")


# Whose reward a policy practises for.
ScoredBy = Literal["reward", "verifier"]
SCORED_BY = (
    "reward: the reward model, from SFT's weights; verifier: whether the answer is right, on prompts that have one"
)


class TrainerSection(BaseModel):
    """What every trainer has. Not a `Section`, so that inheritance of ours stays one deep."""

    model_config = SETTLED

    batch_size: int = Field(default=16, ge=1, description="sequences (reward: prompts) in one optimiser step")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the matrices of models trained from nothing"
    )
    clip_norm: float = Field(default=1.0, gt=0, description="gradients longer than this are shortened to it")
    checkpoint_every: int = Field(default=200, ge=1, description="optimiser steps between checkpoints")


class PretrainSection(TrainerSection):
    """Next-token prediction on plain text."""

    batch_size: int = Field(
        default=8,
        ge=1,
        description="rows in one optimiser step; many small steps teach a small model more than few large ones",
    )
    length: int = Field(default=128, ge=8, description="tokens in a row")
    learning_rate: float = Field(default=0.03, gt=0, description="peak rate")
    optimizer: Literal["adamw", "muon"] = Field(
        default="muon", description="muon needs less than half of AdamW's tokens here"
    )


class SFTSection(TrainerSection):
    """Imitate demonstrations: next-token prediction on the answers alone."""

    learning_rate: float = Field(
        default=0.01, gt=0, description="peak rate; for a model of yours with adamw: 1e-5 to 1e-4"
    )
    optimizer: Literal["adamw", "muon"] = Field(default="muon", description="adamw for models of a billion parameters")
    epochs: int = Field(default=2, ge=1, description="passes over the demonstrations")
    micro_batch: int = Field(
        default=0,
        ge=0,
        description="demonstrations in one forward and backward (0: all of a step); it changes memory and speed alone",
    )


class RewardSection(TrainerSection):
    """A reward model from comparisons."""

    batch_size: int = Field(
        default=8, ge=1, description="prompts in one optimiser step, each with all its answers and pairs"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="peak rate")
    micro_batch: int = Field(
        default=0,
        ge=0,
        description="prompts in one forward and backward (0: all of a step); it changes memory and speed alone",
    )
    epochs: int = Field(default=1, ge=1, description="passes over the comparisons; more than one overfits them")
    path: str = Field(
        default="", description="folder of a language model to begin from, of any family and tokenizer; empty: SFT's"
    )
    loss: Literal["pairs", "ranking"] = Field(
        default="pairs", description="pairs: Bradley-Terry; ranking: Plackett-Luce on whole rankings"
    )
    ties: Literal["drop", "half"] = Field(
        default="drop",
        description="answers ranked as equal: left out, or a pair that is to come out even (pairs alone)",
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        description="by how much the better answer should win, times the strength of the preference where it has one (pairs alone)",
    )
    members: int = Field(
        default=1, ge=1, description="reward models trained, one after another; more than one: an ensemble"
    )
    combine: Literal["mean", "min", "uwo"] = Field(
        default="mean", description="what an ensemble says: its mean, its least, or mean - uncertainty × variance"
    )
    uncertainty: float = Field(
        default=0.1, ge=0, description="λ of uwo: what disagreement costs (Coste 2023: .1 in PPO)"
    )
    score_size: float = Field(default=0.001, ge=0, description="weight of the pull of scores towards zero")
    slim: bool = Field(default=True, description="train a small one from nothing beside the full one")
    slim_hidden_size: int = Field(default=96, ge=16, description="width of the slim one")
    slim_layers: int = Field(default=2, ge=1, description="depth of the slim one")
    slim_epochs: int = Field(default=2, ge=1, description="passes for the slim one, which starts from nothing")
    slim_learning_rate: float = Field(default=1.5e-3, gt=0, description="peak rate of the slim one")

    @model_validator(mode="after")
    def ties_and_margins_are_for_pairs(self) -> RewardSection:
        if self.loss == "ranking" and (self.margin or self.ties == "half"):
            raise ValueError("loss = 'ranking' takes ties as they are and no margin; set ties = 'drop' and margin = 0")
        return self


class PPOSection(TrainerSection):
    """Reinforcement learning against the reward model, held by a KL penalty to the frozen reference."""

    steps: int = Field(default=12, ge=1, description="rollout steps")
    prompts_per_step: int = Field(default=96, ge=1, description="prompts answered, one answer each, in a step")
    epochs: int = Field(default=2, ge=1, description="passes over a step's answers")
    minibatches: int = Field(default=2, ge=1, description="optimiser steps in a pass")
    batch_size: int = Field(
        default=32,
        ge=1,
        description="sequences of similar length in one forward and backward; it changes memory and speed alone",
    )
    learning_rate: float = Field(default=5e-4, ge=0, description="the policy's; a billion parameters: about 1e-6")
    critic_learning_rate: float = Field(default=1e-3, ge=0, description="the critic's")
    kl_coef: float = Field(default=0.12, ge=0, description="β, the weight of the per-token KL penalty, at the start")
    kl_target: float = Field(default=1.5, ge=0, description="nats per answer that β is steered to; 0: β stays fixed")
    kl_gain: float = Field(default=0.1, ge=0, le=1, description="β changes by at most this share after each step")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount")
    lam: float = Field(default=0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    clip: float = Field(default=0.2, gt=0, description="ε: how far the probability ratio may move the loss")
    value_clip: float = Field(default=0.5, gt=0, description="the same for the critic, in units of the reward")
    temperature: float = Field(
        default=1.0, gt=0, description="of the rollouts; log-probs are taken at the same temperature"
    )
    missing_stop_penalty: float = Field(
        default=1.0, ge=0, description="taken from the reward of an answer that was cut off"
    )
    shared_trunk: bool = Field(
        default=False,
        description="policy and critic are two heads of one network: less memory, and each moves the other",
    )
    value_coef: float = Field(
        default=1.0,
        gt=0,
        description="weight of the critic's loss; it matters where the trunk is shared (0.1 is usual there)",
    )
    critic_warmup: int = Field(default=0, ge=0, description="first rollout steps in which the critic alone learns")
    early_stop_kl: float = Field(
        default=0.0,
        ge=0,
        description="a minibatch whose approx_kl is above it ends the updates of its rollout step; 0: never",
    )
    pretrain_coef: float = Field(
        default=0.0,
        ge=0,
        description="weight of a next-token loss on demonstrations mixed into each policy step (0: none)",
    )
    checkpoint_every: int = Field(default=5, ge=1, description="rollout steps between checkpoints")


class DPOSection(TrainerSection):
    """Direct preference optimisation: from comparisons to a policy, without a reward model."""

    batch_size: int = Field(
        default=16, ge=1, description="prompts in one optimiser step, each with all its answers and pairs"
    )
    learning_rate: float = Field(default=5e-4, ge=0, description="peak rate; a billion parameters: about 5e-7")
    micro_batch: int = Field(
        default=0,
        ge=0,
        description="prompts in one forward and backward (0: all of a step); it changes memory and speed alone",
    )
    epochs: int = Field(default=1, ge=1, description="passes over the comparisons")
    beta: float = Field(default=0.3, gt=0, description="β: how tightly the reference holds; larger is tighter")
    loss: Literal["dpo", "ipo"] = Field(default="dpo", description="ipo pulls to a finite margin of 1/(2β) nats")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="cDPO: the share of comparisons that is taken to be wrong (dpo alone)"
    )
    observe_every: int = Field(
        default=15, ge=1, description="optimiser steps between measurements of the KL on answers of its own"
    )
    sft: float = Field(
        default=0.0,
        ge=0,
        description="weight of a next-token loss on the chosen answers, against their becoming unlikely",
    )
    online_rounds: int = Field(
        default=0,
        ge=0,
        description="0: on the comparisons of the store; n: so many times on fresh answers that a reward ranks",
    )
    online_prompts: int = Field(default=48, ge=1, description="online: prompts answered in a round")
    online_answers: int = Field(
        default=4, ge=2, description="online: answers to each prompt; every two that differ are a pair"
    )
    online_reference: Literal["start", "round"] = Field(
        default="start", description="online: the reference is SFT, or the policy as each round began"
    )
    scored_by: ScoredBy = Field(default="reward", description=f"online: {SCORED_BY}")
    missing_stop_penalty: float = Field(
        default=1.0, ge=0, description="online: taken from the reward of an answer that was cut off"
    )

    @model_validator(mode="after")
    def smoothing_is_for_dpo(self) -> DPOSection:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing belongs to loss = 'dpo'; IPO has none, set it to 0")
        return self


class GRPOSection(TrainerSection):
    """Reinforcement learning on answers that can be checked: many answers to a prompt, the better ones reinforced."""

    scored_by: ScoredBy = Field(default="verifier", description=SCORED_BY)
    steps: int = Field(default=24, ge=1, description="rollout steps")
    prompts_per_step: int = Field(default=16, ge=1, description="prompts in a step")
    group_size: int = Field(default=8, ge=2, description="answers to each prompt")
    epochs: int = Field(default=1, ge=1, description="passes over a step's answers")
    minibatches: int = Field(default=2, ge=1, description="optimiser steps in a pass")
    batch_size: int = Field(
        default=32, ge=1, description="sequences in one forward and backward; it changes memory and speed alone"
    )
    learning_rate: float = Field(default=5e-4, ge=0, description="a billion parameters: about 1e-6")
    kl_coef: float = Field(default=0.02, ge=0, description="β, the weight of the k3 loss against the reference")
    clip: float = Field(default=0.2, gt=0, description="ε: how far the probability ratio may fall")
    clip_high: float = Field(default=0.2, gt=0, description="how far it may rise (DAPO: .28)")
    length_power: float = Field(
        default=0.0, ge=0, le=1, description="0: mean over all tokens of a step; 1: mean over answers of their means"
    )
    std_power: float = Field(
        default=1.0, ge=0, le=1, description="1: advantages in deviations of the group (GRPO); 0: in rewards (Dr. GRPO)"
    )
    temperature: float = Field(default=1.0, gt=0, description="of the rollouts")
    missing_stop_penalty: float = Field(
        default=0.0, ge=0, description="taken from the reward of an answer that was cut off; a verifier's is 0 already"
    )
    checkpoint_every: int = Field(default=5, ge=1, description="rollout steps between checkpoints")
    branch_problems: int = Field(
        default=1000, ge=0, description="playground: worked problems that the arithmetic branch learns from before"
    )
    branch_demonstrations: int = Field(
        default=500, ge=0, description="playground: answers to problems by people of uneven skill, learnt with them"
    )


class RLOOSection(TrainerSection):
    """Reinforcement learning with several answers to a prompt, each measured against the mean of the others."""

    scored_by: ScoredBy = Field(default="reward", description=SCORED_BY)
    steps: int = Field(default=16, ge=1, description="rollout steps")
    prompts_per_step: int = Field(default=24, ge=1, description="prompts in a step")
    group_size: int = Field(default=4, ge=2, description="answers to each prompt")
    epochs: int = Field(default=1, ge=1, description="passes over a step's answers")
    minibatches: int = Field(default=1, ge=1, description="optimiser steps in a pass")
    batch_size: int = Field(
        default=32, ge=1, description="sequences in one forward and backward; it changes memory and speed alone"
    )
    learning_rate: float = Field(default=1e-3, ge=0, description="a billion parameters: about 1e-6")
    kl_coef: float = Field(default=0.1, ge=0, description="β, the weight of an answer's KL in its reward")
    clip: float = Field(
        default=0.2, gt=0, description="ε: how far an answer's ratio may move; with one optimiser step a pass it is 1"
    )
    temperature: float = Field(default=1.0, gt=0, description="of the rollouts")
    missing_stop_penalty: float = Field(
        default=1.0, ge=0, description="taken from the reward of an answer that was cut off"
    )
    checkpoint_every: int = Field(default=5, ge=1, description="rollout steps between checkpoints")


class REBELSection(TrainerSection):
    """Reinforcement learning as regression: two answers to a prompt, log-odds that follow the difference of their rewards."""

    scored_by: ScoredBy = Field(default="reward", description=SCORED_BY)
    steps: int = Field(default=12, ge=1, description="rollout steps")
    prompts_per_step: int = Field(default=48, ge=1, description="prompts in a step, two answers each")
    epochs: int = Field(default=2, ge=1, description="passes over a step's pairs")
    minibatches: int = Field(default=2, ge=1, description="optimiser steps in a pass")
    batch_size: int = Field(
        default=32, ge=1, description="sequences in one forward and backward; it changes memory and speed alone"
    )
    learning_rate: float = Field(default=5e-4, ge=0, description="a billion parameters: about 1e-6")
    eta: float = Field(
        default=1.0, gt=0, description="η: a step solved exactly multiplies the policy by exp(η × reward)"
    )
    kl_coef: float = Field(
        default=0.1, ge=0, description="β, the weight of an answer's KL in its reward; 0: η alone holds"
    )
    temperature: float = Field(default=1.0, gt=0, description="of the rollouts")
    missing_stop_penalty: float = Field(
        default=1.0, ge=0, description="taken from the reward of an answer that was cut off"
    )
    checkpoint_every: int = Field(default=5, ge=1, description="rollout steps between checkpoints")


class RejectionSection(TrainerSection):
    """Expert iteration: answer each prompt several times, keep the best, imitate it, and again."""

    scored_by: ScoredBy = Field(default="reward", description=SCORED_BY)
    rounds: int = Field(default=3, ge=1, description="times to answer afresh and imitate")
    prompts_per_round: int = Field(default=320, ge=1, description="prompts answered in a round")
    answers: int = Field(default=4, ge=1, description="n: answers to each prompt")
    keep: Literal["best", "threshold", "shortest"] = Field(
        default="best",
        description="of each prompt: best: the best answer; threshold: all that reach it; shortest: the shortest that does",
    )
    threshold: float = Field(
        default=0.5, description="the least reward that is kept (a right answer has 1, a wrong one 0)"
    )
    batch_size: int = Field(default=16, ge=1, description="kept answers in one optimiser step")
    epochs: int = Field(default=1, ge=1, description="passes over the kept answers of a round")
    learning_rate: float = Field(default=4e-4, ge=0, description="a billion parameters: about 1e-5")
    temperature: float = Field(default=1.0, gt=0, description="of the answers to choose from")
    checkpoint_every: int = Field(default=1, ge=1, description="rounds between checkpoints")

    @model_validator(mode="after")
    def a_wrong_answer_is_no_example(self) -> RejectionSection:
        if self.scored_by == "verifier" and self.keep == "best":
            raise ValueError(
                "keep = 'best' would imitate a wrong answer where none is right; with scored_by = 'verifier' set it to "
                "'shortest' or 'threshold'"
            )
        return self


class GuardSection(Section):
    """What watches over a run: when it warns, when it stops, which checkpoints stay. No part of a run's identity."""

    dead_steps: int = Field(
        default=10, ge=0, description="stop after so many logged steps in a row that can teach nothing; 0: never"
    )
    max_unscored: float = Field(
        default=0.5, ge=0, le=1, description="stop where a larger share of a step's answers has no usable reward"
    )
    max_cut_off: float = Field(default=0.5, ge=0, le=1, description="warn where a larger share of answers is cut off")
    max_flat_groups: float = Field(
        default=0.9, ge=0, le=1, description="warn where the rewards are all equal in a larger share of the groups"
    )
    max_logprob_gap: float = Field(
        default=0.05, ge=0, description="warn where engine and training pass differ by more nats a token"
    )
    min_entropy: float = Field(default=0.01, ge=0, description="warn where the policy has fewer nats a token left")
    max_chosen_fall: float = Field(
        default=10.0, ge=0, description="warn where DPO makes chosen answers less likely by more nats each"
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="newest checkpoints of a run that stay; the best one stays besides"
    )


class RewardSource(Section):
    """One of several sources of reward, of which RL gets the weighted sum; none: the project's reward model alone."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="what it is called in the log")
    kind: Literal["learned", "verifier"] = Field(
        description="learned: a reward model; verifier: 1 for an answer that is checked and right, else 0"
    )
    path: str = Field(default="", description="learned: the reward model's folder; empty: the project's own")
    task: str = Field(default="", description="learned: which of its tasks; empty: its first")
    weight: float = Field(default=1.0, description="of its score in the sum; below 0: a cost")

    @model_validator(mode="after")
    def verifiers_have_no_model(self) -> RewardSource:
        if self.kind == "verifier" and (self.path or self.task):
            raise ValueError("kind = 'verifier' has neither path nor task; leave them out, or set kind = 'learned'")
        return self


class Recipe(Section):
    """All sections; each default is the playground's."""

    seed: int = Field(default=0, ge=0, description="every random number follows from it")
    world: WorldSection = Field(default_factory=WorldSection)
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    pretrain: PretrainSection = Field(default_factory=PretrainSection)
    sft: SFTSection = Field(default_factory=SFTSection)
    reward: RewardSection = Field(default_factory=RewardSection)
    ppo: PPOSection = Field(default_factory=PPOSection)
    dpo: DPOSection = Field(default_factory=DPOSection)
    grpo: GRPOSection = Field(default_factory=GRPOSection)
    rloo: RLOOSection = Field(default_factory=RLOOSection)
    rebel: REBELSection = Field(default_factory=REBELSection)
    rejection: RejectionSection = Field(default_factory=RejectionSection)
    guard: GuardSection = Field(default_factory=GuardSection)
    reward_source: list[RewardSource] = Field(default_factory=list)

    @model_validator(mode="after")
    def sources_have_names_of_their_own(self) -> Recipe:
        names = [source.name for source in self.reward_source]
        if len(set(names)) < len(names):
            raise ValueError(f"reward sources are called {', '.join(names)}; give each a name of its own")
        return self

    def hash_of(self, *sections: str) -> str:
        """Content hash of the seed and some sections: what a stage depends on, and no more."""
        whole = self.model_dump(mode="json")
        return content_hash([self.seed, {name: whole[name] for name in sections}])

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys replaced: {"ppo.kl_coef": 0.2}. The values are validated like a file's."""
        raw = self.model_dump(mode="json")
        for dotted, value in settings.items():
            put(raw, dotted, value)
        return parse(raw, "--set")


def load_recipe(path: Path) -> Recipe:
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}; `bridle init DIR` makes a project with one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    return parse(raw, str(path))


def parse(raw: Mapping[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError("; ".join(explain(dict(e), source) for e in error.errors())) from error


def explain(problem: Mapping[str, Any], source: str) -> str:
    """One sentence for one of pydantic's problems."""
    where: Sequence[Any] = problem["loc"]
    dotted = ".".join(str(part) for part in where)
    if problem["type"] == "extra_forbidden":
        known = known_keys(where[:-1])
        near = difflib.get_close_matches(str(where[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{source}: unknown setting {dotted!r}; {hint}"
    if isinstance(problem["input"], dict):  # settings that do not go together
        place = f"[{dotted}]" if dotted else "the recipe"
        return f"{source}: {place} will not do: {problem['msg'].removeprefix('Value error, ')}"
    return f"{source}: {dotted} = {problem['input']!r} will not do: {problem['msg'].lower()}"


def known_keys(where: Sequence[Any]) -> list[str]:
    fields = Recipe.model_fields
    for part in where:
        if isinstance(part, int):  # a place in the list of reward sources
            continue
        section = RewardSource if part == "reward_source" else fields[str(part)].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        fields = section.model_fields
    return list(fields)


def put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        found = raw.get(part)
        if isinstance(found, list):
            raise RecipeError(f"--set: {part} is a list; give all of it, as in {part}='[{{name = \"a\", …}}]'")
        if not isinstance(found, dict):
            near = difflib.get_close_matches(part, list(raw), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(raw)}"
            raise RecipeError(f"--set: unknown section {part!r} in {dotted!r}; {hint}")
        raw = found
    raw[last] = value


def parse_setting(text: str) -> tuple[str, Any]:
    """`ppo.kl_coef=0.2` → ("ppo.kl_coef", 0.2); the value is read as TOML, or as plain text where that fails."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set takes section.key=value, got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def to_toml(recipe: Recipe) -> str:
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def starter(recipe: Recipe) -> str:
    """A `bridle.toml` with every setting and its meaning beside it."""
    lines = ["# bridle's recipe. Every setting with its value; docs/recipe.md tells more.", f"seed = {recipe.seed}", ""]
    values = recipe.model_dump(mode="json")
    for name, section in sections().items():
        lines += [f"[{name}]  # {first_line(section)}"]
        for key, field in section.model_fields.items():
            lines.append(f"{tomli_w.dumps({key: values[name][key]}).strip()}  # {field.description}")
        lines.append("")
    lines.append(f"# [[reward_source]], as many as there are: {first_line(RewardSource)}")
    lines += [f"#   {key}: {field.description}" for key, field in RewardSource.model_fields.items()]
    lines += [f"\n[[reward_source]]\n{tomli_w.dumps(source).strip()}" for source in values["reward_source"]] + [""]
    return "\n".join(lines)


def sections() -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found[name] = field.annotation
    return found


def first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().split("\n")[0]


def reference() -> str:
    """docs/recipe.md."""
    lines = [
        "# The recipe",
        "",
        "Generated by `python -m bridle.core.recipe`; do not edit. `bridle.toml` in a project's folder holds these",
        "settings, `--set section.key=value` replaces one for a single command, and every run keeps the recipe that it",
        "ran with.",
        "",
        "`seed` (default 0): every random number follows from it.",
    ]
    defaults = Recipe().model_dump(mode="json")
    for name, section in sections().items():
        lines += ["", f"## [{name}]", "", first_line(section), "", "| setting | default | meaning |", "|---|---|---|"]
        for key, field in section.model_fields.items():
            lines.append(f"| `{name}.{key}` | `{defaults[name][key]!r}` | {field.description} |")
    lines += ["", "## [[reward_source]]", "", first_line(RewardSource), "", "| setting | meaning |", "|---|---|"]
    lines += [f"| `{key}` | {field.description} |" for key, field in RewardSource.model_fields.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
