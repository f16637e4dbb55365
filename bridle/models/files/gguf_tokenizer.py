"""The tokenizer, chat template and stop tokens of a GGUF file, as the files of a Hugging Face folder.

Two kinds of vocabulary: byte-level BPE, whose metadata name the rule that cuts texts before merging, and SentencePiece's BPE, whose
scores say the order of merges. Sources: llama.cpp's llama-vocab.cpp for the rules by their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bridle.core.errors import ModelError, UnsupportedModel, brief_repr

PREFIX = "tokenizer."
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (  # as LLAMA3, but a digit at a time
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What cuts a text before bytes are merged, by tokenizer.ggml.pre: a regular expression, or "digits": each digit apart, the rest as GPT-2.
SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), ""),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
    "tekken": TEKKEN,
}  # fmt: skip
WHOLE_FIRST = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "tekken",
)  # a word that is a token is one, whatever the merges
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type
KNOWN = {
    *(f"ggml.{key}" for key in ("model", "pre", "tokens", "scores", "token_type", "merges", "token_type_count")),
    *(f"ggml.{key}" for key in ("add_bos_token", "add_eos_token", "add_space_prefix", "add_sep_token")),
}
NEUTRAL = {"ggml.remove_extra_whitespaces": (False,), "ggml.added_tokens": ([],), "ggml.precompiled_charsmap": ([], "")}


def tokenizer_files(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Texts by the names of their files."""
    fields = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    for key, value in fields.items():
        harmless = key in KNOWN or key.endswith("_token_id") or key.startswith(("chat_template", "huggingface"))
        if not harmless and value not in NEUTRAL.get(key, ()):
            raise UnsupportedModel(
                f"{path} says {PREFIX}{key} = {brief_repr(value)}, which bridle cannot honour; name the folder that the file was made from"
            )
    try:
        return files_of(path, fields)
    except (ModelError, OSError):
        raise
    except (
        Exception
    ) as error:  # lists of other lengths or types, merges of no tokens: tokenizers raises a bare Exception
        raise ModelError(f"{path} holds no tokenizer that can be built: {error}; fetch or convert it again") from error


def files_of(path: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    tokens: Sequence[str] = fields["ggml.tokens"]

    def token(name: str) -> int | None:
        i = fields.get(f"ggml.{name}_token_id")
        if i is not None and not 0 <= i < len(tokens):
            raise ModelError(
                f"{path} names token {i} as {PREFIX}ggml.{name}_token_id, where it has {len(tokens)} tokens"
            )
        return i

    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    special = {name: token(key) for name, key in names.items()}
    stops = dict.fromkeys(i for name in ("eos", "eot", "eom") if (i := token(name)) is not None)
    config: dict[str, Any] = {name: None if i is None else tokens[i] for name, i in special.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {key: fields[f"ggml.{key}"] for key in ("add_bos_token", "add_eos_token") if f"ggml.{key}" in fields}
    ends: dict[str, Any] = {"eos_token_id": [*stops] if len(stops) > 1 else next(iter(stops), None)}
    ends |= {f"{name}_token_id": i for name in ("bos", "pad") if (i := special[f"{name}_token"]) is not None}
    files = {
        "tokenizer.json": build_tokenizer(path, fields, tokens).to_str(),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
        "generation_config.json": json.dumps(ends, indent=2),
    }
    if isinstance(template := fields.get("chat_template"), str):
        files["chat_template.jinja"] = template
    return files


def build_tokenizer(path: Path, fields: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    kind, rule = fields.get("ggml.model"), fields.get("ggml.pre")
    if kind == "gpt2" and rule in SPLITS:
        tokenizer = byte_level(fields, tokens, rule)
    elif kind == "gpt2":
        raise UnsupportedModel(
            f"{path} cuts texts by the rule {brief_repr(rule)} (tokenizer.ggml.pre), and bridle knows {', '.join(SPLITS)}; name the folder "
            "that the file was made from"
        )
    elif kind == "llama":
        tokenizer = sentence_piece(fields, tokens)
    else:
        raise UnsupportedModel(
            f"{path} has a vocabulary of the kind {brief_repr(kind)} (tokenizer.ggml.model), and bridle reads 'gpt2' and 'llama'; name the "
            "folder that the file was made from"
        )
    types = fields.get("ggml.token_type", [])
    special = [token for token, type_ in zip(tokens, types, strict=False) if type_ in (CONTROL, UNKNOWN)]
    defined = [token for token, type_ in zip(tokens, types, strict=False) if type_ == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in defined])
    return tokenizer


def byte_level(fields: Mapping[str, Any], tokens: Sequence[str], rule: str) -> Tokenizer:
    """As GPT-2's: a token is written in letters that stand for bytes."""
    merges = [(left, right) for left, right in (merge.split(" ") for merge in fields["ggml.merges"])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule in WHOLE_FIRST))
    split = SPLITS[rule]
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("", "digits"))]
    if split == "digits":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif split:
        steps.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece(fields: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    """As Llama 2's: a space is a sign, one stands before a text, and what is in no token is written in bytes."""
    scores, types = fields["ggml.scores"], fields["ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = next((token for token, type_ in zip(tokens, types, strict=True) if type_ == UNKNOWN), None)
    merges = merges_by_score(vocabulary, dict(zip(tokens, scores, strict=True)))
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in types)
    tokenizer, prefix = Tokenizer(model), fields.get("ggml.add_space_prefix", True)
    signs = [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(signs)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def merges_by_score(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way in which two tokens are a third, those of better scores first."""
    found = [
        (-scores[token], vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
        for token in vocabulary
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [(left, right) for _, _, _, left, right in sorted(found)]
