"""Tiny reward models as others save them: a sequence classifier of transformers with a tokenizer of its own."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.families.table import WALKED
from tests.models.families import family

TOKENS = 500  # as many as the largest of the tiny tokenizers
PADS = {"own": "<|extra_pad|>", "end": None, "none": ""}


def spoken(kind: str, pad: str) -> Any:
    """A tokenizer as transformers keeps it; `pad`: one of its own, the end of a text, or none."""
    template = family(kind).template
    named = {
        name: text for name, text in (("bos_token", template.bos_token), ("eos_token", template.eos_token)) if text
    }
    found = PreTrainedTokenizerFast(tokenizer_object=template.tokenizer, chat_template=template.source, **named)
    if pad != "none":
        found.pad_token = PADS[pad] or template.eos_token
    return found


def classifier(folder: Path, model: str = "llama", kind: str = "llama3", pad: str = "end", **changes: Any) -> Path:
    """A random classifier of one logit with a tokenizer, as transformers saves them."""
    tokenizer = spoken(kind, pad)
    settings = {**WALKED[model].settings, "vocab_size": TOKENS, "pad_token_id": tokenizer.pad_token_id, "num_labels": 1}
    config = AutoConfig.for_model(WALKED[model].model_type, **{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
