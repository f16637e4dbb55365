"""Tokens that other files than tokenizer.json name are those that transformers takes, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import ModelError
from bridle.core.records import Message, Prompt
from bridle.models.contents import folder_hash, loaded_files
from bridle.models.template import load_template
from tests.models.families import CHATML, QWEN, byte_level

MAP = "special_tokens_map.json"
END = {"eos_token": "<|endoftext|>"}
FLAGS = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)


def write(folder: Path, config: dict[str, Any], others: dict[str, Any], family: str = "llama") -> Path:
    byte_level([*QWEN, "<s>", "<z>"], []).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHATML)
    for name, value in {"tokenizer_config.json": config, "config.json": {"model_type": family}, **others}.items():
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("config", "others", "family", "bos"),
    [
        ({}, {MAP: {"bos_token": "<s>", **END}}, "llama", "<s>"),
        ({"bos_token": "<z>", **END}, {MAP: {"bos_token": {"content": "<s>", **FLAGS}}}, "llama", "<s>"),
        ({"bos_token": "<z>", **END, "added_tokens_decoder": {}}, {MAP: {"bos_token": "<s>"}}, "llama", "<z>"),
        ({"model_max_length": 1024}, {}, "gpt2", "<|endoftext|>"),
        ({"tokenizer_class": "GPT2TokenizerFast"}, {}, "llama", "<|endoftext|>"),
        ({"tokenizer_class": "GPT2Tokenizer", "bos_token": None, **END}, {}, "gpt2", ""),
    ],
)
def test_the_names_are_those_that_transformers_takes(
    tmp_path: Path, config: dict[str, Any], others: dict[str, Any], family: str, bos: str
) -> None:
    from transformers import AutoTokenizer

    template = load_template(write(tmp_path, config, others, family))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (template.bos_token or None, template.eos_token) == (theirs.bos_token, theirs.eos_token)
    assert template.bos_token == bos
    asked = {"role": "user", "content": "What is it?"}
    rendered = theirs.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    assert template.prompt_text(Prompt((Message(**asked),))) == rendered


@pytest.mark.parametrize(
    ("config", "others"),
    [
        ({**END, "added_tokens_decoder": {"403": {"content": "<new>", "special": True, **FLAGS}}}, {}),
        (END, {"added_tokens.json": {"<new>": 403}}),
        ({**END, "additional_special_tokens": ["<new>"]}, {}),
        ({**END, "extra_special_tokens": ["<new>"]}, {}),
        (END, {MAP: {"additional_special_tokens": [{"content": "<new>", **FLAGS}]}}),
    ],
)
def test_a_token_that_the_tokenizer_lacks_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], others: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"add the token '<new>', which its tokenizer\.json does not have"):
        load_template(write(tmp_path, config, others))
    padding = json.loads(json.dumps({"config": config, "others": others}).replace("<new>", "[PAD]"))
    padding["config"]["pad_token"] = "[PAD]"  # it is no text: what transformers adds for it changes no prompt
    assert load_template(write(tmp_path, **padding)).named_pad is not None


def test_the_map_is_content_where_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, END, {MAP: {"bos_token": "<s>"}})
    assert MAP in loaded_files(folder)
    before = folder_hash(folder)
    (folder / MAP).write_text("{}")
    assert folder_hash(folder) != before
    (folder / "tokenizer_config.json").write_text(json.dumps({**END, "added_tokens_decoder": {}}))
    assert MAP not in loaded_files(folder)
