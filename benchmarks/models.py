"""Random Qwen2-shaped models, and reward models, which bridle and transformers both read: python benchmarks/models.py [NAME …]

m1, m5 and m25 have 1.3, 5.5 and 25.7 million parameters; NAME-reward is a reward model on the same trunk. l5 is m5 in Llama's shape, whose
tokenizer `transformers serve` takes as it is. q05 and q15, of Qwen2.5's 0.5B and 1.5B, are made by name alone, for `gpu.py`. They lie in
made/.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from harness import MODELS
from texts import SPECIAL, WORDS
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from bridle.compute.randomness import generator
from bridle.models.decoder import Decoder, DecoderConfig, initialise
from bridle.models.policy import Policy, RewardModel, save_policy, save_reward_model
from bridle.models.scorer import scorer_from
from bridle.models.template import Template

# hidden size, layers, query heads, key heads, intermediate size
SHAPES = {"m1": (128, 4, 4, 2, 384), "m5": (256, 6, 4, 2, 704), "m25": (512, 8, 8, 4, 1408), "l5": (256, 6, 4, 2, 704)}
SHAPES_OF_CARDS = {"q05": (896, 24, 14, 2, 4864), "q15": (1536, 28, 12, 2, 8960)}
CONTENTS = "{% for message in messages %}{{ message.content }} {% endfor %}"


def template() -> Template:
    """A token a word; the chat template adds none."""
    pad, end, unknown = SPECIAL
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(pad, special=True), AddedToken(end, special=True)])
    return Template(tokenizer, CONTENTS, "", end, pad, frozenset({vocabulary[end]}))


def config(name: str) -> DecoderConfig:
    hidden, layers, heads, kv_heads, intermediate = {**SHAPES, **SHAPES_OF_CARDS}[name]
    family = "llama" if name.startswith("l") else "qwen2"
    return DecoderConfig(
        family, len(SPECIAL) + WORDS, hidden, intermediate, layers, heads, kv_heads, hidden // heads, max_positions=1024,
        tie_embeddings=True, qkv_bias=family == "qwen2",
    )  # fmt: skip


def policy(name: str) -> Policy:
    module = Decoder(config(name))
    initialise(module, module.config.layers, generator(0, name))
    for key, parameter in module.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return Policy(module, template(), name)


def make(names: Sequence[str]) -> None:
    for name in names:
        made = policy(name)
        save_policy(MODELS / name, made)
        scorer = scorer_from(made.module, generator(0, f"{name}-head"))
        save_reward_model(MODELS / f"{name}-reward", RewardModel(scorer, made.template, name))
        count = sum(p.numel() for p in made.module.parameters())
        print(f"{MODELS / name}: {count / 1e6:.1f} million parameters")


if __name__ == "__main__":
    make(sorted({name.removesuffix("-reward") for name in sys.argv[1:]}) or list(SHAPES))
