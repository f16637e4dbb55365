"""Settings of critique and revision by a constitution, and of what learns from it."""

from __future__ import annotations

from pydantic import Field

from bridle.recipe import base
from bridle.recipe.base import LONGEST, TrainerSection


class ConstitutionSection(TrainerSection):
    """Critique and revision by written principles (`bridle revise`), and imitating what came of it (`bridle train sl-cai`)."""

    file: base.PathText = ""
    """TOML file of principles; empty: on the playground its world's, elsewhere the one that comes with bridle"""
    language: str = Field(default="en", pattern="^[a-z]{2,8}$")
    """language of the one that comes with bridle: en or zh"""
    model: str = ""
    """name of the project's model that criticises and revises; empty: on the playground `critic`, which is taught first, else the one
    whose answers are revised"""
    start: str = ""
    """name of the project's model whose answers are revised, and that sl-cai starts from; empty: sft"""
    prompts: int = Field(default=600, ge=1, le=base.WIDEST)
    """prompts whose answers are revised, at most (playground: red-team prompts that its world writes)"""
    rounds: int = Field(default=4, ge=1, le=100)
    """critiques of an answer, each by a principle drawn at random, and revisions"""
    temperature: float = Field(default=0.7, ge=0)
    """of revisions; critiques are always the most likely ones"""
    benign: float = Field(default=1.0, ge=0, le=100)
    """own answers to benign prompts, without fault by the critic, that sl-cai imitates for each revised answer; 0: none, and it refuses
    more than it should"""
    critic_answers: int = Field(default=3000, ge=1, le=LONGEST)
    """playground: answers whose critique and revision `critic` is taught"""
    learning_rate: base.PeakRate = Field(
        default=0.006, description="peak learning rate of sl-cai; for a model of yours with adamw: 1e-5 to 1e-4"
    )
    optimizer: base.Optimizer = Field(default="muon", description="adamw for models of a billion parameters")
    epochs: base.Epochs = Field(default=1, description="passes over the revised answers")
    micro_batch: base.MicroBatch = 0
