"""Where a folder's chat template stands, and what of it is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import ModelError
from bridle.models.contents import folder_hash
from bridle.models.files.chat_template import other_tokens
from bridle.models.template import PLAIN_TEMPLATE, load_template
from tests.models.tiny import one_sentence, template

TAKEN, OTHER = PLAIN_TEMPLATE + "{# taken #}", PLAIN_TEMPLATE + "{# other #}"


def folder_with(folder: Path, files: dict[str, Any]) -> Path:
    """A model folder with these files of its chat template: text, or what an object's chat_template is."""
    template().save(folder, 96)
    (folder / "chat_template.jinja").unlink()
    (folder / "config.json").write_text("{}")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": None}))
    for name, held in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        before = config if name == "tokenizer_config.json" else {}
        written = json.dumps({**before, "chat_template": held}) if name.endswith(".json") else held
        (folder / name).write_text(written)
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": TAKEN},
        {"tokenizer_config.json": [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": TAKEN}]},
        {"tokenizer_config.json": {"tool_use": OTHER, "default": TAKEN}},
        {"tokenizer_config.json": OTHER, "chat_template.jinja": TAKEN},
        {"chat_template.jinja": TAKEN, "additional_chat_templates/tool_use.jinja": OTHER},
        {"chat_template.jinja": OTHER, "additional_chat_templates/default.jinja": TAKEN},
        {"chat_template.json": TAKEN},
        {"chat_template.json": OTHER, "tokenizer_config.json": TAKEN},
        {"chat_template.json": {"default": TAKEN, "rag": OTHER}},
    ],
)  # fmt: skip
def test_the_default_template_is_taken_wherever_it_stands(files: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_with(tmp_path, files)
    assert load_template(folder).source == TAKEN
    name = next(name for name, held in files.items() if "taken" in str(held))
    before = folder_hash(folder)
    (folder / name).write_text((folder / name).read_text().replace("taken", "changed"))
    assert folder_hash(folder) != before, "what is read is in the content hash"


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"tool_use": OTHER, "rag": OTHER}},
        {"tokenizer_config.json": [{"name": "tool_use", "template": OTHER}, {"name": "rag", "template": OTHER}]},
        {"additional_chat_templates/tool_use.jinja": OTHER, "additional_chat_templates/rag.jinja": OTHER},
    ],
)
def test_several_of_which_none_is_the_default_are_refused(files: dict[str, Any], tmp_path: Path) -> None:
    """None of them is taken for the plain one, which the model has never seen."""
    with pytest.raises(
        ModelError, match="called 'rag, tool_use' and none called default; write the one to use"
    ) as caught:
        load_template(folder_with(tmp_path, files))
    assert one_sentence(str(caught.value))


def test_a_folder_without_a_template_has_the_plain_one(tmp_path: Path) -> None:
    assert load_template(folder_with(tmp_path, {})).source == PLAIN_TEMPLATE


def test_named_tokens_are_those_that_transformers_passes() -> None:
    config = {
        "unk_token": "<unk>", "mask_token": {"content": "<mask>", "special": True}, "cls_token": None, "add_bos_token": True,
        "image_token": "<im>", "extra_special_tokens": {"audio": "<au>", "boi_token": {"content": "<boi>"}}, "bos_token": "<s>",
        "model_specific_special_tokens": {"eoi_token": "<eoi>"}, "name": "x",
    }  # fmt: skip
    found = {"unk_token": "<unk>", "mask_token": "<mask>", "image_token": "<im>"}
    assert other_tokens(config) == {**found, "audio": "<au>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    assert other_tokens({"extra_special_tokens": ["<a>"]}) == {}
