"""What a model folder says of its dialogues: its chat template, the tokens that it names, and how the template is used.

    additional_chat_templates/default.jinja, chat_template.jinja     the template in a file of its own, the first that is there
    tokenizer_config.json                                            as text, or several by name, of which `default` is taken
    chat_template.json                                               as processors of transformers 4 keep it
    bridle_template.json                                             the settings that it is used with, where they are not the usual ones

Templates by other names (tool_use, rag) are for tools and documents, which bridle does not bring.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bridle.core.errors import ModelError, brief_repr
from bridle.models.sizes import read_object
from bridle.recipe.base import USUAL_DAY
from bridle.recipe.data import ModelSection

LONGEST_TEMPLATE = 10**6  # characters; those of models in use have some thousand
OWN_FILES = (Path("additional_chat_templates", "default.jinja"), Path("chat_template.jinja"))
SETTINGS = "bridle_template.json"

# Plain "Name: text" turns, so that a model pretrained on such pages can be asked before it was ever taught. Line ends
# stand inside expressions: one that follows a block would be trimmed.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '\n' }}Assistant: {{ message.content }}{{ eos_token }}"
    "{% elif message.role == 'system' %}{{ '' if loop.first else '\n' }}System: {{ message.content }}"
    "{% else %}{{ '' if loop.first else '\n' }}Human: {{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n' }}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class TemplateSettings:
    """How a chat template is used where it leaves a choice, by the recipe's names: `template_date`, the day that `strftime_now` gives it;
    `template_kwargs`, variables of its own, as enable_thinking; `fold_system`: system messages are written at the head of the user's turn
    that follows."""

    template_date: str = USUAL_DAY
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    fold_system: bool = False

    def chosen(self, source: str) -> dict[str, Any]:
        """Those that are not the usual ones and change what this template may write."""
        usual = asdict(TemplateSettings())
        found = {name: value for name, value in asdict(self).items() if value != usual[name]}
        if "strftime_now" not in source:
            found.pop("template_date", None)
        return found

    def save(self, folder: Path, source: str) -> None:
        if found := self.chosen(source):
            (folder / SETTINGS).write_text(json.dumps(found, indent=2, ensure_ascii=False), "utf-8")
        else:
            (folder / SETTINGS).unlink(missing_ok=True)  # of the folder that the files were copied from


def settings_of(section: ModelSection) -> TemplateSettings:
    """How a recipe has its models' chat templates used."""
    return TemplateSettings(section.template_date, section.template_kwargs, section.fold_system)


def stored_settings(folder: Path) -> TemplateSettings:
    """Those that the folder was saved with; ModelError where its file is none that bridle wrote."""
    raw = read_object(folder / SETTINGS)
    with suppress(TypeError, ValueError):
        return settings_of(ModelSection(**{**asdict(TemplateSettings()), **raw}))
    raise ModelError(
        f"{folder / SETTINGS} must hold template_date, template_kwargs and fold_system as a recipe's [model] has them, got "
        f"{brief_repr(raw)}; correct it, or take it away"
    )


def template_source(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template of a folder with this tokenizer_config.json; the plain one where it has none."""
    return stored_source(folder, config) or PLAIN_TEMPLATE


def stored_source(folder: Path, config: Mapping[str, Any]) -> str:
    """The same; empty where it has none."""
    for path in (folder / name for name in OWN_FILES):
        if path.is_file():
            return template_file(path)
    for name, found in (
        ("tokenizer_config.json", config.get("chat_template")),
        ("chat_template.json", read_object(folder / "chat_template.json").get("chat_template")),
    ):
        if found:
            return default_template(found, folder / name)
    if others := sorted(path.stem for path in (folder / "additional_chat_templates").glob("*.jinja")):
        raise ModelError(no_default(folder / "additional_chat_templates", others))
    return ""


def template_file(path: Path) -> str:
    if path.stat().st_size > LONGEST_TEMPLATE:
        raise ModelError(
            f"{path} has {path.stat().st_size:,} bytes, and a chat template has {LONGEST_TEMPLATE:,} at most"
        )
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8: {error}") from error


def default_template(found: object, path: Path) -> str:
    """The template in a JSON file: text, or the one called default of several, a list of names with theirs or an object."""
    named = found
    if isinstance(found, list) and all(isinstance(one, dict) for one in found):
        named = {str(one.get("name")): one.get("template") for one in found}
    if isinstance(named, dict) and all(isinstance(one, str) for one in named.values()):
        if "default" not in named:
            raise ModelError(no_default(path, sorted(named)))
        named = named["default"]
    if not isinstance(named, str) or len(named) > LONGEST_TEMPLATE:
        raise ModelError(
            f"{path} must hold its chat_template as text of {LONGEST_TEMPLATE:,} characters at most, got {brief_repr(found)}"
        )
    return named


def no_default(path: Path, names: list[str]) -> str:
    return (
        f"{path} holds chat templates called {brief_repr(', '.join(names))} and none called default; write the one to use to "
        "chat_template.jinja beside it"
    )


def token_text(config: Mapping[str, Any], name: str, folder: Path) -> str:
    """tokenizer_config.json names a token as text or as an object with its `content`; empty where it names none."""
    raw = config.get(name)
    text = raw.get("content") if isinstance(raw, dict) else raw
    if raw is not None and not isinstance(text, str):
        raise ModelError(f"{folder / 'tokenizer_config.json'} must name its {name} as text, got {brief_repr(raw)}")
    return text or ""


def other_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """What else tokenizer_config.json names that a template may write: unk_token, image_token and so on, as transformers passes them."""
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    for specific in (config.get("extra_special_tokens"), config.get("model_specific_special_tokens")):
        named |= specific if isinstance(specific, dict) else {}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    read_apart = ("bos_token", "eos_token", "pad_token")
    return {name: text for name, text in texts.items() if name not in read_apart and isinstance(text, str) and text}


def token_ids(config: Mapping[str, Any], path: Path) -> list[int]:
    """The stop tokens of a Hugging Face file: one number, a list of them, or none."""
    raw = config.get("eos_token_id")
    found = [] if raw is None else raw if isinstance(raw, list) else [raw]
    if wrong := [i for i in found if type(i) is not int or not 0 <= i < 2**31]:
        raise ModelError(
            f"{path} names the stop token {brief_repr(wrong[0])}, where eos_token_id takes the number of a token, or a list of them"
        )
    return found


def id_of(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ModelError(
            f"the tokenizer has no token {token!r}, which tokenizer_config.json names; correct the name there"
        )
    return found
