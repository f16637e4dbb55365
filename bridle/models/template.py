"""Messages ↔ token ids: the only place where text meets a tokenizer.

A prompt is rendered by the model's own chat template and ends where the assistant is to speak. A completion's ids are
the suffix that the template would have appended: encoded apart, joined as ids, ending in a stop token. Text that a
model wrote is never encoded again: its ids were kept.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from bridle.core.errors import DataError, ModelError, brief_repr
from bridle.core.records import Encoded, Message, Prompt, content_hash
from bridle.core.timeline import timed
from bridle.models.rendering import RENDERER, compiled_template
from bridle.models.sizes import read_object

LONGEST_TEMPLATE = 10**6  # characters; those of models in use have some thousand
PAD, END, START = "<|pad|>", "<|end|>", "<|doc|>"

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
class Template:
    """A tokenizer with its chat template. `stop_ids` end an answer; `pad_id` fills batches and is none of them."""

    tokenizer: Tokenizer
    source: str
    bos_token: str
    eos_token: str
    pad_token: str
    stop_ids: frozenset[int]

    @property
    def pad_id(self) -> int:
        """The pad token's id; where there is none, or it is a stop token too, another special token's.

        Masks come from lengths and never ask, but transformers scores a sequence at its last id that is not the pad.
        """
        named = self.tokenizer.token_to_id(self.pad_token) if self.pad_token else None
        choices = [*([] if named is None else [named]), *sorted(special_ids(self.tokenizer)), *range(self.eos_id + 2)]
        return next(i for i in choices if i not in self.stop_ids)

    @property
    def eos_id(self) -> int:
        return id_of(self.tokenizer, self.eos_token)

    @property
    def bos_ids(self) -> list[int]:
        """The token that opens a page, or none."""
        return [id_of(self.tokenizer, self.bos_token)] if self.bos_token else []

    @property
    def stop_setting(self) -> int | list[int]:
        """The stop tokens as Hugging Face's files name them: one number, or several in order."""
        stops = sorted(self.stop_ids)
        return stops[0] if len(stops) == 1 else stops

    @cached_property
    def hash(self) -> str:
        return content_hash([self.source, self.bos_token, self.eos_token, self.tokenizer.to_str()])

    def render(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """The messages as one text. ModelError: the template refuses them or fails; RunawayTemplate: it passes a limit."""
        variables = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "add_generation_prompt": answer_next,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }
        if self.source == PLAIN_TEMPLATE:  # ours
            return compiled_template(self.source).render(variables)
        return RENDERER.render(self.source, variables)

    def encoded(self, prompt: Prompt) -> Encoded | None:
        """What travels with the prompt, where this template wrote it."""
        return prompt.encoded if prompt.encoded is not None and prompt.encoded.template == self.hash else None

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt, up to and including the cue for the assistant's turn: as it travels, else rendered now."""
        known = self.encoded(prompt)
        return self.render(prompt.messages, answer_next=True) if known is None else known.text

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Ids of each prompt, up to and including the cue for the assistant's turn: those that travel with it, where this
        template wrote them, else written now."""
        known = [self.encoded(prompt) for prompt in prompts]
        new = [prompt for prompt, encoded in zip(prompts, known, strict=True) if encoded is None]
        fresh = iter(self.rendered_ids([self.prompt_text(prompt) for prompt in new]))
        return [next(fresh) if encoded is None else list(encoded.ids) for encoded in known]

    def encode(self, prompts: Sequence[Prompt], rendered: Sequence[str]) -> list[Prompt]:
        """The prompts with their text, as `prompt_text` gave it, and its ids: tokenised here, once, for all that follows."""
        found = zip(prompts, rendered, self.rendered_ids(rendered), strict=True)
        return [replace(prompt, encoded=Encoded(self.hash, text, tuple(ids))) for prompt, text, ids in found]

    def rendered_ids(self, rendered: Sequence[str]) -> list[list[int]]:
        """Ids of prompts that are rendered already."""
        ids = [e.ids for e in self.tokenizer.encode_batch(list(rendered), add_special_tokens=False)]
        if self.bos_token and any(row[:2] == self.bos_ids * 2 for row in ids):
            raise ModelError(f"the chat template writes {self.bos_token!r} twice; remove one of them")
        return ids

    def answer_text(self, prompt: Prompt, text: str) -> str:
        """What the template appends to a prompt for this answer; one that changes the prompt itself is refused."""
        head = self.prompt_text(prompt)
        whole = self.render([*prompt.messages, Message("assistant", text)], answer_next=False)
        if not whole.startswith(head):
            raise ModelError(
                "the chat template is not prefix-preserving: rendering an answer changes the prompt before it, "
                f"near {whole[:40]!r}; bridle needs a template that only appends"
            )
        return whole[len(head) :]

    def completion_ids(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[int]]:
        """Ids that the template appends for each text, up to and including the first stop token."""
        return self.answer_ids([self.answer_text(prompt, text) for prompt, text in zip(prompts, texts, strict=True)])

    def answer_ids(self, suffixes: Sequence[str]) -> list[list[int]]:
        """Ids of what `answer_text` gave, up to and including the first stop token."""
        encoded = self.tokenizer.encode_batch(list(suffixes), add_special_tokens=False)
        return [self._through_stop(e.ids) for e in encoded]

    def document_ids(self, documents: Sequence[str]) -> list[list[int]]:
        """Plain pages for pretraining: start, text, end."""
        encoded = self.tokenizer.encode_batch(list(documents), add_special_tokens=False)
        return [[*self.bos_ids, *e.ids, self.eos_id] for e in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [text.strip() for text in self.tokenizer.decode_batch([list(r) for r in rows], skip_special_tokens=True)]

    def _through_stop(self, ids: list[int]) -> list[int]:
        for index, token in enumerate(ids):
            if token in self.stop_ids:
                return ids[: index + 1]
        return [*ids, self.eos_id]

    def save(self, folder: Path, max_positions: int) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
        pad = self.pad_id if self.pad_id in special_ids(self.tokenizer) else None
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token or None,
            "eos_token": self.eos_token,
            "pad_token": None if pad is None else self.tokenizer.id_to_token(pad),
            "chat_template": self.source,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_positions,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), "utf-8")
        (folder / "chat_template.jinja").write_text(self.source, "utf-8")
        generation: dict[str, Any] = {"eos_token_id": self.stop_setting, "pad_token_id": self.pad_id}
        if self.bos_token:
            generation["bos_token_id"] = self.bos_ids[0]
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), "utf-8")


def load_template(folder: Path) -> Template:
    """Read tokenizer, chat template and stop tokens of a Hugging Face folder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json; save the model with its fast tokenizer beside it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = read_object(folder / "tokenizer_config.json")
    generation = read_object(folder / "generation_config.json")
    model = read_object(folder / "config.json")
    eos, bos, pad = (token_text(config, name, folder) for name in ("eos_token", "bos_token", "pad_token"))
    stop_ids = set(token_ids(generation, folder / "generation_config.json"))
    stop_ids = stop_ids or set(token_ids(model, folder / "config.json"))
    if not eos and stop_ids:
        eos = tokenizer.id_to_token(min(stop_ids)) or ""
    if eos and tokenizer.token_to_id(eos) is None:
        raise ModelError(
            f"{folder} names the stop token {eos!r}, which its tokenizer does not have; correct eos_token in tokenizer_config.json"
        )
    if not eos:
        raise ModelError(f"{folder} names no stop token; set eos_token in tokenizer_config.json")
    stop_ids.add(id_of(tokenizer, eos))
    template = Template(tokenizer, template_source(folder, config), bos, eos, pad, frozenset(stop_ids))
    try:
        return with_turn_end(template)
    except ModelError as error:
        raise type(error)(f"{folder}: {error}") from error


def template_source(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template of a folder: a file of its own, or in tokenizer_config.json; the plain one where it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > LONGEST_TEMPLATE:
            raise ModelError(
                f"{path} has {path.stat().st_size:,} bytes, and a chat template has {LONGEST_TEMPLATE:,} at most"
            )
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not UTF-8: {error}") from error
    source = config.get("chat_template") or PLAIN_TEMPLATE
    if isinstance(source, list):  # several named templates: the one called default
        named = [t for t in source if isinstance(t, dict) and t.get("name") == "default"]
        source = named[0].get("template") if named else PLAIN_TEMPLATE
    if not isinstance(source, str) or len(source) > LONGEST_TEMPLATE:
        raise ModelError(
            f"{folder / 'tokenizer_config.json'} must hold its chat_template as text of {LONGEST_TEMPLATE:,} characters at most, got "
            f"{brief_repr(source)}"
        )
    return source


def with_turn_end(template: Template) -> Template:
    """Add the special token that closes an assistant's turn (Qwen's <|im_end|>, say) to the stop tokens."""
    ids = template.tokenizer.encode(template.answer_text(Prompt.from_text("?"), "!"), add_special_tokens=False).ids
    special = special_ids(template.tokenizer)
    closing = next((i for i in ids if i in special), None)
    if closing is None:
        refuse_spelt_marker(template)
        closing = template.eos_id
    return replace(template, stop_ids=template.stop_ids | {closing})


def refuse_spelt_marker(template: Template) -> None:
    """A template of another tokenizer closes a turn with a marker that this one only spells: nothing would end an answer."""
    tail = template.answer_text(Prompt.from_text("?"), "!").rpartition("!")[2].strip()
    if re.fullmatch(r"<[^<>\s]+>", tail) and template.tokenizer.token_to_id(tail) is None:
        raise ModelError(
            f"the chat template closes an answer with {tail!r}, which the tokenizer beside it does not have as a token; "
            "take the template and the tokenizer of one model"
        )


def special_ids(tokenizer: Tokenizer) -> set[int]:
    return {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def id_of(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ModelError(
            f"the tokenizer has no token {token!r}, which tokenizer_config.json names; correct the name there"
        )
    return found


@timed("tokenizer")
def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Template:
    """A byte-level BPE tokenizer (any language, any byte) with the plain template. `vocab_size` counts all tokens."""
    if vocab_size < 256 + 3:
        raise DataError(f"a byte-level vocabulary needs at least {256 + 3} entries, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True) for t in (PAD, END, START)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Template(tokenizer, PLAIN_TEMPLATE, START, END, PAD, frozenset({id_of(tokenizer, END)}))


def token_text(config: Mapping[str, Any], name: str, folder: Path) -> str:
    """tokenizer_config.json names a token as text or as an object with its `content`; empty where it names none."""
    raw = config.get(name)
    text = raw.get("content") if isinstance(raw, dict) else raw
    if raw is not None and not isinstance(text, str):
        raise ModelError(f"{folder / 'tokenizer_config.json'} must name its {name} as text, got {brief_repr(raw)}")
    return text or ""


def token_ids(config: Mapping[str, Any], path: Path) -> list[int]:
    """The stop tokens of a Hugging Face file: one number, a list of them, or none."""
    raw = config.get("eos_token_id")
    found = [] if raw is None else raw if isinstance(raw, list) else [raw]
    if wrong := [i for i in found if type(i) is not int or not 0 <= i < 2**31]:
        raise ModelError(
            f"{path} names the stop token {brief_repr(wrong[0])}, where eos_token_id takes the number of a token, or a list of them"
        )
    return found
