"""Tiny tokenizers and chat templates of the kinds that models come with, and what transformers makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from unittest.mock import patch

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bridle.core.records import Message
from bridle.models.template import Template, with_stops
from tests.models.tiny import TEXTS

WORDS = [
    *TEXTS,
    "the first line\n\nthe second line\n\n\nthe third < > | _ / [ ] yes no INST im_start end s unk 0123456789",
] * 3
GPT4 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # as Qwen3: the last answer has a place for thoughts
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% endfor %}"
)
NAMED = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if m.role == 'assistant' else '') + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
SPACELESS = MISTRAL.replace("' ' + ", "").replace("[INST] ", "[INST]")  # as Mistral's of late


def with_tokens(tokenizer: Tokenizer, special: list[str], tags: list[str]) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    return tokenizer


def byte_level(special: list[str], tags: list[str]) -> Tokenizer:
    """As Qwen's, Llama 3's and gpt-oss's: every byte, line ends joined."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return with_tokens(tokenizer, special, tags)


def spaced(kind: str, special: list[str], tags: list[str]) -> Tokenizer:
    """SentencePiece's way: a space is a sign. `legacy`: as Llama 2's, a sign before every text, bytes for what is unknown; else one
    by Metaspace's scheme, with an unknown token."""
    known = ["<unk>", "<s>", "</s>"]
    if kind == "legacy":
        known += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=kind == "legacy"))
    sign = pre_tokenizers.Metaspace(prepend_scheme="always" if kind == "legacy" else kind)  # type: ignore[arg-type]
    tokenizer.pre_tokenizer, tokenizer.decoder = sign, decoders.Metaspace(prepend_scheme=sign.prepend_scheme)
    trainer = trainers.BpeTrainer(vocab_size=260 + 2 * len(known), special_tokens=known, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    if kind == "legacy":
        tokenizer = Tokenizer(tokenizer.model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
    return with_tokens(tokenizer, ["<unk>", "<s>", "</s>", *special], tags)


def unigram(special: list[str], tags: list[str]) -> Tokenizer:
    """As T5's or Gemma's by SentencePiece: control tokens are pieces of the vocabulary, too."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return with_tokens(tokenizer, special, tags)


def word_pieces(special: list[str], tags: list[str]) -> Tokenizer:
    """As BERT's: white space is lost, what is unknown is [UNK]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=["[UNK]", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    return with_tokens(tokenizer, special, tags)


@dataclass(frozen=True)
class Family:
    template: Template
    closing: str

    def transformers_ids(self, messages: list[Message], **options: Any) -> list[int]:
        return transformers_ids(self.template, messages, **options)


def transformers_ids(template: Template, messages: Sequence[Message], **options: Any) -> list[int]:
    """What transformers makes of the messages on the template's day and with its variables."""
    return list(transformed(template, messages, tokenize=True, return_dict=False, **options))


def transformers_text(template: Template, messages: Sequence[Message]) -> str:
    return str(transformed(template, messages, tokenize=False))


def transformed(template: Template, messages: Sequence[Message], **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    class Day(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Day":
            return cls.fromisoformat(template.settings.template_date)

    tokens = {"bos_token": template.bos_token, "eos_token": template.eos_token, "pad_token": template.pad_token}
    names = {name: token for name, token in {**tokens, **template.tokens}.items() if token}
    reader = PreTrainedTokenizerFast(tokenizer_object=template.tokenizer, chat_template=template.source, **names)
    rows = [{"role": message.role, "content": message.content} for message in messages]
    with patch.object(chat_template_utils, "datetime", Day):
        return reader.apply_chat_template(rows, **{**template.settings.template_kwargs, **options})


QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
INST = ["[INST]", "[/INST]"]
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
KINDS: dict[str, tuple[Any, str, str, str, str]] = {  # tokenizer, template, bos, eos, what closes a turn
    "qwen": (lambda: byte_level(QWEN, TAGS), CHATML, "", "<|endoftext|>", "<|im_end|>"),
    "qwen3": (lambda: byte_level(QWEN, TAGS), THINKING, "", "<|im_end|>", "<|im_end|>"),
    "harmony": (
        lambda: byte_level(["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|endoftext|>"], []),
        HARMONY, "", "<|endoftext|>", "<|return|>",
    ),
    "llama3": (lambda: byte_level([*HEADERS, "<|end_of_text|>"], []), LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "llama2": (lambda: spaced("legacy", [], []), LLAMA2, "<s>", "</s>", "</s>"),
    "llama2-first": (lambda: spaced("first", [], []), LLAMA2, "<s>", "</s>", "</s>"),
    "always": (lambda: spaced("always", [], []), MISTRAL, "<s>", "</s>", "</s>"),
    "gemma": (lambda: spaced("never", ["<start_of_turn>", "<end_of_turn>"], []), GEMMA, "<s>", "</s>", "<end_of_turn>"),
    "gemma-lines": (  # as Gemma's own: line ends and several spaces are added tokens, and no special ones
        lambda: spaced("never", ["<start_of_turn>", "<end_of_turn>"], ["\n", "\n\n", "▁▁"]),
        GEMMA, "<s>", "</s>", "<end_of_turn>",
    ),
    "plain-markers": (lambda: byte_level(QWEN[:1], QWEN[1:]), CHATML, "", "<|endoftext|>", "<|im_end|>"),
    "mistral": (lambda: spaced("first", INST, []), MISTRAL, "<s>", "</s>", "</s>"),
    "mistral-spaceless": (lambda: spaced("first", INST, []), SPACELESS, "<s>", "</s>", "</s>"),
    "unigram": (lambda: unigram(INST, []), SPACELESS, "<s>", "</s>", "</s>"),
    "word-pieces": (lambda: word_pieces([], []), NAMED, "", "</s>", "</s>"),
}  # fmt: skip
FAMILIES = list(KINDS)


@cache
def family(name: str) -> Family:
    build, source, bos, eos, closing = KINDS[name]
    tokenizer = build()
    return Family(
        with_stops(Template(tokenizer, source, bos, eos, "", frozenset({tokenizer.token_to_id(eos)}))), closing
    )
