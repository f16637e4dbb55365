"""Settings of the world, the base model, the data and how answers are sampled."""

from typing import Literal

from pydantic import Field

from bridle.recipe.base import Section


class WorldSection(Section):
    """The playground: a small language with a known gold rubric."""

    file: str = ""
    """data file of another world of the same form; empty: the one that comes with bridle"""


class ModelSection(Section):
    """The base model: one of yours, or a small one trained from scratch by `train pretrain`."""

    path: str = ""
    """folder of a Hugging Face language model to start from; empty: pretrain one"""
    vocab_size: int = Field(default=2048, ge=259)
    """entries of the byte-level tokenizer, special tokens included"""
    hidden_size: int = Field(default=160, ge=16)
    """width"""
    intermediate_size: int = Field(default=448, ge=16)
    """width of the feed-forward layers"""
    layers: int = Field(default=4, ge=1)
    """depth"""
    heads: int = Field(default=5, ge=1)
    """query heads"""
    kv_heads: int = Field(default=5, ge=1)
    """key and value heads; fewer than heads shares them (a smaller cache)"""
    max_positions: int = Field(default=512, ge=32)
    """longest context in tokens"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of matrix products; auto: bfloat16 where the processor is fast at it"""
    kernels: Literal["auto", "compiled", "plain", "torch"] = "auto"
    """everything between the matrix products; compiled (on a CPU): by a C compiler at the first use; plain: PyTorch's
    own; torch: a training step's layers by torch.compile, for long runs on a GPU"""


class DataSection(Section):
    """Where prompts, demonstrations and text come from, and how many are used."""

    source: Literal["playground", "store"] = "store"
    """playground: made by the world; store: what was imported"""
    train_prompts: int = Field(default=1000, ge=1)
    """prompts to answer and compare, and to train on"""
    heldout_prompts: int = Field(default=512, ge=1)
    """prompts of every evaluation; never trained on"""
    probe_prompts: int = Field(default=200, ge=1)
    """playground: how many harmful prompts, and how many border prompts, are added to every evaluation"""
    compared_heldout: int = Field(default=250, ge=1)
    """held-out prompts whose answers test the reward model"""
    demonstrations: int = Field(default=3000, ge=1)
    """answers to imitate in SFT"""
    pretrain_tokens: int = Field(default=1_400_000, ge=1000)
    """tokens of pretraining text (the playground writes as many; a store's text is repeated)"""
    heldout_share: float = Field(default=0.1, gt=0, lt=1)
    """share of imported prompts that is held out, by hash"""
    drop_limit: float = Field(default=0.5, ge=0, le=1)
    """training is refused where a larger share of its rows cannot be used; 1: never"""


class SamplingSection(Section):
    """How answers are drawn for people to compare."""

    answers: int = Field(default=4, ge=2)
    """answers to each prompt"""
    temperature: float = Field(default=1.0, gt=0)
    """1: the model's own distribution"""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """nucleus: draw from the most likely tokens that together hold this probability"""
    top_k: int = Field(default=0, ge=0)
    """draw from so many of the most likely tokens; 0: all"""
    max_new_tokens: int = Field(default=72, ge=1)
    """longest answer, in all stages"""
