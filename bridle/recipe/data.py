"""Settings of the world, the base model, the data and how answers are sampled."""

import math
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bridle.core.errors import brief_repr
from bridle.recipe.base import LONGEST, USUAL_DAY, WIDEST, PathText, Section

FrozenPrecision = Literal["float32", "bfloat16", "nf4"]

# What bridle itself gives every chat template.
GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception")


def as_day(given: Any) -> Any:
    """A day as ISO text; a date of TOML's own is one too."""
    return given.isoformat() if type(given) is date else given


class WorldSection(Section):
    """The playground: a small language with a known gold rubric."""

    file: PathText = ""
    """data file of another world of the same form; empty: the one that comes with bridle"""


class ModelSection(Section):
    """The base model: one of yours, or a small one trained from scratch by `train pretrain`."""

    path: PathText = ""
    """folder of a Hugging Face language model to start from, taken as the base when first needed; empty: pretrain one"""
    vocab_size: int = Field(default=2048, ge=259, le=WIDEST)
    """entries of the byte-level tokenizer, special tokens included"""
    hidden_size: int = Field(default=160, ge=16, le=WIDEST)
    """width"""
    intermediate_size: int = Field(default=448, ge=16, le=WIDEST)
    """width of the feed-forward layers"""
    layers: int = Field(default=4, ge=1, le=WIDEST)
    """depth"""
    heads: int = Field(default=5, ge=1, le=WIDEST)
    """query heads"""
    kv_heads: int = Field(default=5, ge=1, le=WIDEST)
    """key and value heads; fewer than heads shares them (a smaller cache)"""
    max_positions: int = Field(default=512, ge=32, le=WIDEST)
    """longest context in tokens"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of matrix products; auto: bfloat16 where the processor is fast at it"""
    template_date: Annotated[str, BeforeValidator(as_day)] = USUAL_DAY
    """the day, as 2026-11-29, that a chat template gets where it asks for today (strftime_now), for prompts must not change overnight;
    `init --model` writes the day of the project"""
    template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=100)
    """variables of the chat template by name, as {enable_thinking = false}; what each does stands in the template"""
    fold_system: bool = False
    """write system messages at the head of the user's turn after them, for chat templates that refuse them or leave them out"""
    kernels: Literal["auto", "compiled", "plain", "torch"] = "auto"
    """everything between the matrix products; compiled (on a CPU): by a C compiler at the first use; plain: PyTorch's
    own; torch: a training step's layers by torch.compile, for long runs on a GPU"""
    frozen_precision: FrozenPrecision = "float32"
    """in which the matrices lie in memory that nothing trains: of a reference, the base under an adapter, a reward model that scores;
    bfloat16: two bytes a number in place of four; nf4: those of the layers in half a byte, under adapters alone, by bitsandbytes
    (docs/models.md)"""

    checkpoint_activations: bool = False
    """run each layer again in the backward pass, so that until then it keeps its input alone: the same gradients for a fraction of
    the memory and a forward pass more"""

    offload_optimizer: bool = False
    """keep AdamW's moments in the processor's memory while the weights lie on a card: the same numbers for 8 bytes a weight less there, and
    a slower update"""

    @model_validator(mode="after")
    def four_bits_are_not_compiled(self) -> "ModelSection":
        if self.frozen_precision == "nf4" and self.kernels == "torch":
            raise ValueError(
                "kernels = 'torch' compiles no matrices in four bits; set it to 'auto', or frozen_precision to 'bfloat16'"
            )
        return self

    @field_validator("template_date")
    @classmethod
    def is_a_day(cls, given: str) -> str:
        if given != date.fromisoformat(given).isoformat():
            raise ValueError("must be a day as 2026-11-29")
        return given

    @field_validator("template_kwargs")
    @classmethod
    def are_variables(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            if not name.isidentifier() or name in GIVEN:
                raise ValueError(
                    f"a chat template takes no variable {brief_repr(name)} of yours; name one that it asks for"
                )
            texts = isinstance(value, list) and all(type(one) is str for one in value)
            if not texts and (
                type(value) not in (bool, int, float, str) or value in (math.inf, -math.inf) or value != value
            ):
                raise ValueError(
                    f"{name} must be true or false, a finite number, a text or a list of texts, got {brief_repr(value)}"
                )
        return given


ModuleName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]


class LoRASection(Section):
    """Adapters (LoRA): two thin matrices beside each linear layer are trained in place of all weights, by every trainer but pretraining."""

    r: int = Field(default=0, ge=0, le=WIDEST)
    """rank of the adapter, 16 is usual; 0: none, all weights are trained"""
    alpha: float = Field(default=32.0, gt=0)
    """α: what the adapter adds is scaled by α / r; the same at every rank, so that the best learning rate hardly depends on r (Schulman
    2025, LoRA Without Regret)"""
    rslora: bool = False
    """scale by α / √r instead (Kalajdzievski 2023, arxiv.org/abs/2312.03732)"""
    target_modules: list[ModuleName] = Field(default_factory=list, max_length=1000)
    """linear layers that get one, by the end of their names, as q_proj; empty: all of attention and MLP"""
    modules_to_save: list[ModuleName] = Field(default_factory=list, max_length=1000)
    """what is trained whole besides, by the end of its name, as lm_head; a reward model's head always is"""
    continued: bool = False
    """train the adapter further that the model which training starts from was left with, by its own r and the rest, and hold it to what it
    was then; false: a new one on the whole of that model"""

    shared_trunk: bool = False
    """where a policy practises, reward models that were trained by adapters on the same base, and PPO's critic, are adapters on the
    policy's base weights, which then lie in memory once for all of them"""

    @property
    def on(self) -> bool:
        return self.r > 0 or self.continued

    @property
    def scale(self) -> float:
        """s of s B A x."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @model_validator(mode="after")
    def an_adapter_has_a_rank(self) -> "LoRASection":
        if not self.on and (self.target_modules or self.modules_to_save or self.rslora or self.shared_trunk):
            raise ValueError(
                "r = 0 is without an adapter, which the other settings are of; set r, 16 is usual, or leave them out"
            )
        if self.shared_trunk and self.modules_to_save:
            raise ValueError(
                "shared_trunk = true shares weights that nothing moves; leave modules_to_save empty, or set it to false"
            )
        return self


# How many of each the playground makes where the recipe says 0, for it could go on for ever.
PLAYGROUND_SIZES = {"train_prompts": 1000, "heldout_prompts": 512, "compared_heldout": 250, "demonstrations": 3000}


Shares = Annotated[dict[PathText, Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=1000)]


class DataSection(Section):
    """Where prompts, demonstrations and text come from, and how many are used: of more, as many as the number says, drawn by the seed."""

    source: Literal["playground", "store"] = "store"
    """playground: made by the world; store: what was imported"""
    train_prompts: int = Field(default=0, ge=0, le=LONGEST)
    """prompts to answer and compare, and to train on; 0: all that were imported (playground: 1000)"""
    heldout_prompts: int = Field(default=0, ge=0, le=LONGEST)
    """prompts of every evaluation, never trained on; 0: all that were imported (playground: 512)"""
    probe_prompts: int = Field(default=200, ge=1, le=WIDEST)
    """playground: how many harmful prompts, and how many border prompts, are added to every evaluation"""
    compared_heldout: int = Field(default=0, ge=0, le=LONGEST)
    """held-out prompts that `sample` answers, to test the reward model on; 0: all of heldout_prompts (playground: 250)"""
    demonstrations: int = Field(default=0, ge=0, le=LONGEST)
    """answers to imitate in SFT; 0: all that were imported (playground: 3000)"""
    imitate: Literal["both", "written", "preferred"] = "both"
    """what these are of imported data: written: demonstrations; preferred: the best answer of each judgement; both: each
    answer once"""
    pretrain_tokens: int = Field(default=1_400_000, ge=1000, le=10**12)
    """tokens of pretraining text (the playground writes as many; a store's text is repeated)"""
    heldout_share: float = Field(default=0.1, gt=0, lt=1)
    """share of imported prompts that is held out, by hash"""
    reliability: Literal["weights", "none"] = "weights"
    """weights: wherever judgements are learnt from they weigh by how reliable their giver is, where several people judged the same; who
    judged nothing that others did weighs as usual; none: all weigh the same"""
    sources: list[Literal["import", "serving", "study"]] = Field(
        default=["import", "study"], min_length=1, max_length=3
    )
    """whose comparisons the reward model, DPO, KTO and ORPO learn from; with serving also those of users of a served model, on prompts of
    theirs that were drawn for training, each by its weight (docs/flywheel.md)"""
    mixture: dict[Literal["texts", "demonstrations", "comparisons", "ratings"], Shares] = Field(default_factory=dict)
    """of each kind of rows to learn from, imported files with their weights, as {demonstrations = {"ours.jsonl" = 3, "theirs.jsonl" = 1}}:
    of each file its share by weight, until one has no more; "": what stands in none of them (docs/data.md)"""
    drop_limit: float = Field(default=0.5, ge=0, le=1)
    """training is refused where a larger share of its rows cannot be used; 1: never"""

    @model_validator(mode="before")
    @classmethod
    def the_playground_makes_so_many(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("source") != "playground":
            return given
        unsaid = [key for key in PLAYGROUND_SIZES if key not in given or (type(given[key]) is int and given[key] == 0)]
        return {**given, **{key: PLAYGROUND_SIZES[key] for key in unsaid}}

    @model_validator(mode="after")
    def the_playground_writes_all_of_it(self) -> "DataSection":
        if self.source != "playground":
            return self
        if self.imitate != "both":
            raise ValueError(
                f"imitate = {self.imitate!r} is for imported data; the playground writes its demonstrations, leave it at 'both'"
            )
        if self.mixture:
            raise ValueError("mixture is of imported files; the playground writes its own rows, leave it out")
        most = {**dict.fromkeys(PLAYGROUND_SIZES, WIDEST), "pretrain_tokens": LONGEST}
        for name, count in self.model_dump(include=set(most)).items():
            if count > most[name]:
                raise ValueError(f"{name} = {count} is more than the playground writes, which is {most[name]} at most")
        return self


class SamplingSection(Section):
    """How answers are drawn for people to compare."""

    answers: int = Field(default=4, ge=2, le=WIDEST)
    """answers to each prompt"""
    temperature: float = Field(default=1.0, ge=1e-6)
    """1: the model's own distribution"""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """nucleus: draw from the most likely tokens that together hold this probability"""
    top_k: int = Field(default=0, ge=0, le=LONGEST)
    """draw from so many of the most likely tokens; 0: all"""
    max_new_tokens: int = Field(default=72, ge=1, le=WIDEST)
    """longest answer, in all stages"""
