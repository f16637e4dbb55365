"""Which tokens a folder names (bos, eos, pad and others), from where transformers takes them.

    tokenizer_config.json       where it has no `added_tokens_decoder`, special_tokens_map.json stands above it
    the tokenizer's class       some have names of their own for what no file names, as GPT-2's

Tokens that a file adds to those of tokenizer.json are refused: transformers would read texts by them. A pad token alone stands in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bridle.core.errors import ModelError, brief_repr
from bridle.models.contents import MAP
from bridle.models.sizes import read_object

SETTINGS = "tokenizer_config.json"
END_OF_TEXT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
OF_CLASSES: dict[str, Mapping[str, str]] = {  # transformers 5.23, of causal language models
    "GPT2Tokenizer": END_OF_TEXT,
    "GPTNeoXTokenizer": END_OF_TEXT,
    "CohereTokenizer": {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "XGLMTokenizer": {"bos_token": "<s>", "eos_token": "</s>"},
}
CLASSES = {  # of a family, where no file names one
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "codegen", "opt", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma3n_text"), "GemmaTokenizer"),
    "xglm": "XGLMTokenizer",
}


def named_tokens(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json with the names that transformers would add. ModelError where the folder adds tokens to the tokenizer's."""
    config, model = read_object(folder / SETTINGS), read_object(folder / "config.json")
    apart = "added_tokens_decoder" not in config
    found = {**config, **(read_object(folder / MAP) if apart else {})}
    refuse_more_tokens(folder, tokenizer, found, apart)
    kind = found.get("tokenizer_class") or model.get("tokenizer_class") or CLASSES.get(str(model.get("model_type")))
    usual = OF_CLASSES.get(str(kind).removesuffix("Fast"), {})
    return {**{name: token for name, token in usual.items() if tokenizer.token_to_id(token) is not None}, **found}


def refuse_more_tokens(folder: Path, tokenizer: Tokenizer, config: Mapping[str, Any], apart: bool) -> None:
    listed = read_object(folder / "added_tokens.json") if apart else config.get("added_tokens_decoder")
    tokens: list[object] = [] if not isinstance(listed, dict) else list(listed) if apart else list(listed.values())
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name)
        tokens += more if isinstance(more, list) else []
    pad, *texts = [one.get("content") if isinstance(one, dict) else one for one in (config.get("pad_token"), *tokens)]
    lacking = [text for text in texts if isinstance(text, str) and text != pad and tokenizer.token_to_id(text) is None]
    if lacking:
        raise ModelError(
            f"the files in {folder} add the token {brief_repr(lacking[0])}, which its tokenizer.json does not have; load the tokenizer "
            "with transformers' AutoTokenizer, save it there with save_pretrained, and see that the model has an embedding for it"
        )
