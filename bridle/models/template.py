"""Messages ↔ token ids: the only place where text meets a tokenizer.

A prompt is rendered by the model's own chat template and ends where the assistant is to speak. An answer's ids are what follows the
prompt's in the whole dialogue, rendered and encoded as one text, up to the token that ends the turn. Text that a model wrote
is never encoded again: its ids were kept. Only the template writes control tokens (`control.py`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from os.path import commonprefix
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from bridle.core.errors import ModelError, UnspeltToken
from bridle.core.records import Encoded, Message, Prompt, content_hash
from bridle.models.control import (
    PLACES,
    ControlTokens,
    filled,
    opening_of_a_thought,
    plain_added,
    refuse_lost_text,
    refuse_spelt_marker,
    require_within,
    special_ids,
    unknown_ids,
)
from bridle.models.files.chat_template import (
    PLAIN_TEMPLATE,
    TemplateSettings,
    id_of,
    other_tokens,
    stored_settings,
    template_source,
    token_ids,
    token_text,
)
from bridle.models.files.token_names import named_tokens
from bridle.models.rendering import RENDERER, folded, rendered
from bridle.models.sizes import read_object

PAD, END, START = "<|pad|>", "<|end|>", "<|doc|>"

# Answers that are tried to find out what a template writes round one, before the tokenizer's own vocabulary.
PROBES = ("yes", "good", "hello", "a", "1")
ASKED = Prompt((Message("user", "?"),))


@dataclass(frozen=True)
class TurnEnd:
    """What follows an answer, found with one, the `probe`, that the tokenizer can write: the text after it, and the token that ends the
    turn, or that is to be appended where the template writes none."""

    probe: str
    tail: str
    token: int


@dataclass(frozen=True)
class AnswerFrame:
    """What stands round an answer in its ids: first tokens that the template writes before it, up to an added one; then, as they are
    decoded, what else stands before it, and what between it and the end of the turn. `anchor` is an ordinary token."""

    first_ids: tuple[int, ...]
    before: str
    after: str
    anchor: int


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer's ids, the end of its turn the last. `apart`: the tokenizer would join the prompt's end with the answer's beginning, so
    they are not as in the whole text."""

    ids: list[int]
    apart: bool = False


@dataclass(frozen=True)
class Template:
    """A tokenizer with its chat template. `stop_ids` end an answer; `pad_id` fills batches and is none of them. `tokens`: what else the
    tokenizer names, as unk_token, for templates that write it."""

    tokenizer: Tokenizer
    source: str
    bos_token: str
    eos_token: str
    pad_token: str
    stop_ids: frozenset[int]
    outside: frozenset[int] = frozenset()  # added tokens that the model has no embedding for
    tokens: Mapping[str, str] = field(default_factory=dict)
    settings: TemplateSettings = TemplateSettings()

    @property
    def pad_id(self) -> int:
        """The pad token's id; where there is none, or it is a stop token too, another special token's.

        Masks come from lengths and never ask, but transformers scores a sequence at its last id that is not the pad.
        """
        named = self.tokenizer.token_to_id(self.pad_token) if self.pad_token else None
        choices = [*([] if named is None else [named]), *sorted(special_ids(self.tokenizer)), *range(self.eos_id + 2)]
        return next(i for i in choices if i not in self.stop_ids | self.outside)

    @property
    def named_pad(self) -> int | None:
        """The pad token as files name it: never one that is text."""
        return self.pad_id if self.pad_id in special_ids(self.tokenizer) else None

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
        more = [one for one in (self.settings.chosen(self.source), dict(self.tokens)) if one]
        return content_hash([self.source, self.bos_token, self.eos_token, self.tokenizer.to_str(), *more])

    def render(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """The messages as one text. ModelError: the template refuses them or fails; RunawayTemplate: it passes a limit."""
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        variables = {
            **{name: token for name, token in {**tokens, **self.tokens}.items() if token},
            **self.settings.template_kwargs,
            "messages": [{"role": message.role, "content": message.content} for message in self.written(messages)],
            **dict.fromkeys(("tools", "documents")),
            "add_generation_prompt": answer_next,
            "strftime_now": self.settings.template_date,
        }
        write = rendered if self.source == PLAIN_TEMPLATE else RENDERER.render  # ours needs no child
        return write(self.source, variables)

    def written(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages as the template gets them."""
        return folded(messages) if self.settings.fold_system else messages

    def encoded(self, prompt: Prompt) -> Encoded | None:
        """What travels with the prompt, where this template wrote it."""
        return prompt.encoded if prompt.encoded is not None and prompt.encoded.template == self.hash else None

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt, up to and including the cue for the assistant's turn: as it travels, else rendered now."""
        known = self.encoded(prompt)
        return self.render(prompt.messages, answer_next=True) if known is None else known.text

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Ids of each prompt, up to and including the cue for the assistant's turn: those that travel with it, where this
        template wrote them, else written now. UnspeltToken: one spells a special token that cannot be written as text."""
        known = [self.encoded(prompt) for prompt in prompts]
        new = [prompt for prompt, encoded in zip(prompts, known, strict=True) if encoded is None]
        fresh = iter(self.rendered_ids(new, [self.prompt_text(prompt) for prompt in new]))
        return [next(fresh) if encoded is None else list(encoded.ids) for encoded in known]

    def encode(self, prompts: Sequence[Prompt], rendered: Sequence[str]) -> list[Prompt]:
        """The prompts with their text, as `prompt_text` gave it, and its ids: tokenised here, once, for all that follows."""
        found = zip(prompts, rendered, self.rendered_ids(prompts, rendered), strict=True)
        return [replace(prompt, encoded=Encoded(self.hash, text, tuple(ids))) for prompt, text, ids in found]

    def rendered_ids(self, prompts: Sequence[Prompt], rendered: Sequence[str]) -> list[list[int]]:
        """Ids of prompts that are rendered already. OutsideEmbeddings: the model cannot read one of them."""
        spelt = [self.spells_control(prompt) for prompt in prompts]
        plain = iter(self.encodings([text for text, marks in zip(rendered, spelt, strict=True) if not marks]))
        ids = [
            self.control.encode_marked(self.marked(prompt.messages, text, answer_next=True)).ids
            if marks
            else next(plain).ids
            for prompt, text, marks in zip(prompts, rendered, spelt, strict=True)
        ]
        if self.bos_token and any(row[:2] == self.bos_ids * 2 for row in ids):
            raise ModelError(f"the chat template writes {self.bos_token!r} twice; remove one of them")
        require_within(self.tokenizer, chain.from_iterable(ids), self.outside)
        return ids

    def document_ids(self, documents: Sequence[str]) -> list[list[int]]:
        """Plain pages for pretraining: start, text, end."""
        rows = [[*self.bos_ids, *ids, self.eos_id] for ids in self.control.encode_text(documents)]
        require_within(self.tokenizer, chain.from_iterable(rows), self.outside)
        return rows

    # ------------------------------------------------------------------------------------- control tokens in content

    @cached_property
    def control(self) -> ControlTokens:
        """The control tokens: special, stop, and what else the template writes between turns."""
        ids = special_ids(self.tokenizer) | self.stop_ids | {self.turn_end.token}
        if others := plain_added(self.tokenizer):
            try:
                talk = self.render(
                    [*ASKED.messages, Message("assistant", self.turn_end.probe), *ASKED.messages], answer_next=True
                )
            except ModelError:  # one turn alone
                talk = self.prompt_text(ASKED)
            ids |= {i for i, token in others.items() if token in talk}
        return ControlTokens(self.tokenizer, ids)

    def spells_control(self, prompt: Prompt, answer: str = "") -> bool:
        """Whether a message or the answer holds the text of a control token."""
        return self.control.spelt_in([*(message.content for message in prompt.messages), answer])

    def marked(self, messages: Sequence[Message], rendered: str, *, answer_next: bool) -> str:
        """A rendered text, of which some content spells control tokens, with the template's own as their marks."""
        messages = self.written(messages)
        spelt = [n for n, message in enumerate(messages) if self.control.spelt_in([message.content])]
        standing = [
            replace(message, content=chr(PLACES + spelt.index(n))) if n in spelt else message
            for n, message in enumerate(messages)
        ]
        pattern = self.render(standing, answer_next=answer_next) if spelt else rendered
        if answer_next and not rendered.endswith(self.unkept_cue):
            pattern = pattern.removesuffix(self.unkept_cue)
        return filled(pattern, [messages[n].content for n in spelt], rendered, self.control)

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        return self.tokenizer.encode_batch(list(texts), add_special_tokens=False)

    # --------------------------------------------------------------------------------------------------- answers

    @cached_property
    def stop_texts(self) -> list[str]:
        """The special tokens that end an answer, as text."""
        found = (self.tokenizer.id_to_token(i) for i in self.stop_ids & special_ids(self.tokenizer))
        return sorted(token for token in found if token)

    def without_stop(self, answer: str) -> str:
        """An answer written elsewhere: one stop token at its end is as good as none."""
        text = answer.rstrip()
        return next((text.removesuffix(end) for end in self.stop_texts if text.endswith(end)), answer)

    def answer_text(self, prompt: Prompt, text: str) -> str:
        """What the template appends to a prompt for this answer; one that changes the prompt itself is refused."""
        return self.appended(self.prompt_text(prompt), prompt, text)

    def appended(self, head: str, prompt: Prompt, text: str) -> str:
        """The same after this `head`."""
        answer = self.without_stop(text)
        whole = self.render([*prompt.messages, Message("assistant", answer)], answer_next=False)
        if not whole.startswith(head):
            raise ModelError(
                "the chat template is not prefix-preserving: rendering an answer changes the prompt before it, "
                f"near {whole[len(commonprefix([head, whole])) :][:40]!r}; bridle needs a template that only appends"
            )
        return whole[len(head) :]

    @cached_property
    def unkept_cue(self) -> str:
        """What stands at the end of the cue and not before an answer that holds no thought, where the cue opens one: "<think>\\n", or
        a line end that is one token with what follows. Empty where every answer follows the whole cue."""
        answered = ([*ASKED.messages, Message("assistant", answer)] for answer in PROBES[:2])
        wholes = (self.render(messages, answer_next=False) for messages in answered)
        texts = [self.render(ASKED.messages, answer_next=True), *wholes]
        return opening_of_a_thought(texts, self.encodings(texts), ASKED.text)

    def before_written(self, prompt: Prompt) -> Prompt:
        """The prompt with as much of its cue as an answer without a thought follows."""
        text = self.prompt_text(prompt)
        kept = text.removesuffix(self.unkept_cue)
        return prompt if kept == text else self.encode([prompt], [kept])[0]

    def before_answers(self, prompt: Prompt, texts: Iterable[str]) -> Prompt:
        """The prompt as answers of these texts, written elsewhere, follow it: all of it, if they do."""
        whole = not self.unkept_cue or all(self.follows(prompt, text) for text in texts)
        return prompt if whole else self.before_written(prompt)

    def follows(self, prompt: Prompt, text: str) -> bool:
        """Whether the whole dialogue begins with the prompt's ids."""
        try:
            return not self.answers([prompt], [text], [self.answer_text(prompt, text)])[0].apart
        except ModelError:
            return False

    @property
    def asked_text(self) -> str:
        """A question as an answer to it follows: what the template writes round one is found with it."""
        return self.render(ASKED.messages, answer_next=True).removesuffix(self.unkept_cue)

    def completion_ids(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[int]]:
        """Ids that the template appends for each text, up to and including the token that ends the turn."""
        suffixes = [self.answer_text(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        return [answer.ids for answer in self.answers(prompts, texts, suffixes)]

    def answers(self, prompts: Sequence[Prompt], texts: Sequence[str], suffixes: Sequence[str]) -> list[WrittenAnswer]:
        """Answers to prompts, of which `answer_text` gave the suffixes: each dialogue is encoded as a whole. UnspeltToken: one spells a
        special token that cannot be written as text."""
        spelt = [
            self.spells_control(prompt, text)
            for prompt, text in zip(prompts, map(self.without_stop, texts), strict=True)
        ]
        heads, ids = [self.prompt_text(prompt) for prompt in prompts], self.prompt_ids(prompts)
        wholes = [head + suffix for head, suffix in zip(heads, suffixes, strict=True)]
        encoded = iter(self.encodings([whole for whole, marks in zip(wholes, spelt, strict=True) if not marks]))
        return [
            self.marked_answer(prompts[i], texts[i], wholes[i], ids[i])
            if spelt[i]
            else self.after_prompt(ids[i], next(encoded), wholes[i], len(heads[i]), self.turn_end.tail)
            for i in range(len(prompts))
        ]

    def marked_answer(self, prompt: Prompt, text: str, whole: str, prompt_ids: list[int]) -> WrittenAnswer:
        """An answer within a dialogue that spells control tokens."""
        messages = [*prompt.messages, Message("assistant", self.without_stop(text))]
        marked = self.marked(messages, whole, answer_next=False)
        head = self.marked(prompt.messages, self.prompt_text(prompt), answer_next=True)
        if not marked.startswith(head):
            raise UnspeltToken(
                "an answer that spells a special token changes what stands before it; leave the token out"
            )
        return self.after_prompt(
            prompt_ids, self.control.encode_marked(marked), marked, len(head), self.control.mark(self.turn_end.tail)
        )

    def after_prompt(
        self, prompt_ids: list[int], encoding: Encoding, whole: str, border: int, tail: str
    ) -> WrittenAnswer:
        """The ids of an answer after its prompt's: the rest of the whole text's, which has so many characters of the prompt, up to the
        end of the turn in its tail.

        A tokenizer may join the prompt's end with the answer's beginning (two line ends are one token, say). The model will be asked with
        the prompt's own ids, so what of that token belongs to the answer is then encoded apart, and what follows stays as it is."""
        first, ids, spans = len(prompt_ids), encoding.ids, encoding.offsets
        apart = ids[:first] != prompt_ids
        lead = list[int]()
        if apart:
            first = next((i for i, (start, _) in enumerate(spans) if start >= border), len(ids))
            between = whole[border : spans[first][0]] if first < len(ids) else whole[border:]
            lead = self.joining_ids(prompt_ids, between, ids, first)
        end = len(whole) - len(tail) if whole.endswith(tail) else border
        stops = self.stop_ids | {self.turn_end.token}
        last = next((i for i in range(first, len(ids)) if ids[i] in stops and spans[i][1] > end), None)
        rest = [*ids[first:], self.turn_end.token] if last is None else ids[first : last + 1]
        require_within(self.tokenizer, rest, self.outside)
        return WrittenAnswer([*lead, *rest], apart)

    def joining_ids(self, prompt_ids: list[int], text: str, ids: list[int], first: int) -> list[int]:
        """Ids for the `text` between a prompt's and those of the whole from the `first` on, so that all together decode as the whole's
        `ids` do, where that can be: some tokenizers begin every text with a space."""
        [written] = self.control.encode_text([text])
        whole = self.tokenizer.decode(ids, skip_special_tokens=False)
        for joining in ([], written, written[1:], *self.control.encoded_after_others(text)):
            if self.tokenizer.decode([*prompt_ids, *joining, *ids[first:]], skip_special_tokens=False) == whole:
                return joining
        return written

    @cached_property
    def turn_end(self) -> TurnEnd:
        """How the template ends an answer: with the first added or stop token after its text, which is never the unknown one; where
        it writes none, with that stop token which stands between turns, else the end of a text."""
        unknown = unknown_ids(self.tokenizer)
        marks = (special_ids(self.tokenizer) | plain_added(self.tokenizer).keys() | self.stop_ids) - unknown
        probe, tail = "", ""
        for probe in islice(self.writable(unknown), len(PROBES)):
            before, found, tail = self.appended(self.asked_text, ASKED, probe).rpartition(probe)
            if found and probe not in before:
                break
        if not probe:
            raise ModelError(
                "the tokenizer can write no answer at all without a token for what it does not know; take another tokenizer"
            )
        following = self.tokenizer.encode(tail, add_special_tokens=False).ids
        token = next((i for i in following if i in marks), None)
        if token is None:
            between = self.between_turns(probe)
            token = next((i for i in between if i in self.stop_ids - unknown), self.eos_id)
        return TurnEnd(probe, tail, token)

    def writable(self, unknown: set[int]) -> Iterator[str]:
        """Answers that the tokenizer can write without an unknown, special or stop token."""
        unfit = unknown | special_ids(self.tokenizer) | self.stop_ids
        entries = (self.tokenizer.decode([i]).strip() for i in range(self.tokenizer.get_vocab_size()))
        for text in chain(PROBES, entries):
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if ids and not unfit.intersection(ids):
                yield text

    def between_turns(self, answer: str) -> list[int]:
        """Ids of what the template writes between an answer and the next question; none where it refuses a second turn."""
        messages = [*ASKED.messages, Message("assistant", answer), *ASKED.messages]
        try:
            written = self.render(messages, answer_next=False)
        except ModelError:
            return []
        return self.tokenizer.encode(written.rpartition(answer)[2], add_special_tokens=False).ids

    # ------------------------------------------------------------------------------------------------- ids → text

    @cached_property
    def frame(self) -> AnswerFrame:
        """What stands round an answer in its ids, found with the probe of `turn_end`."""
        probe, tail = self.turn_end.probe, self.turn_end.tail
        suffix, [ids] = (
            self.appended(self.asked_text, ASKED, probe),
            self.completion_ids([self.before_written(ASKED)], [probe]),
        )
        added = self.tokenizer.get_added_tokens_decoder().keys()
        opening = suffix.removesuffix(probe + tail) if suffix.endswith(probe + tail) else ""
        openers = sum(i in added for i in self.tokenizer.encode(opening, add_special_tokens=False).ids)
        places = [0, *(place + 1 for place, i in enumerate(ids) if i in added)]
        first = ids[: places[openers]]
        anchor = self.tokenizer.encode(probe, add_special_tokens=False).ids[-1]
        frame = AnswerFrame(tuple(first), "", "", anchor)
        [written] = decoded(self.tokenizer, frame, [ids])
        before, found, after = written.partition(probe)
        return replace(frame, before=before, after=after) if found else frame

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, white space at its ends too, without what the template itself writes round it."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        frame, texts = self.frame, decoded(self.tokenizer, self.frame, rows)
        ended = [bool(row) and row[-1] in self.stop_ids for row in rows]
        bodies = [text.removeprefix(frame.before) for text in texts]
        return [text.removesuffix(frame.after) if end else text for text, end in zip(bodies, ended, strict=True)]

    def save(self, folder: Path, max_positions: int) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
        pad = self.named_pad
        config = {
            **self.tokens,
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
        self.settings.save(folder, self.source)
        (folder / "generation_config.json").write_text(json.dumps(self.token_settings(), indent=2), "utf-8")

    def token_settings(self) -> dict[str, Any]:
        """The special tokens as config.json and generation_config.json name them; no pad where the tokenizer has none but text."""
        pad = {} if self.named_pad is None else {"pad_token_id": self.named_pad}
        return {
            "eos_token_id": self.stop_setting,
            **pad,
            **({"bos_token_id": self.bos_ids[0]} if self.bos_token else {}),
        }


def load_template(folder: Path, settings: TemplateSettings | None = None) -> Template:
    """Read tokenizer, chat template and stop tokens of a Hugging Face folder. None: the settings that it was saved with."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json; save the model with its fast tokenizer beside it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = named_tokens(folder, tokenizer)
    generation = read_object(folder / "generation_config.json")
    model = read_object(folder / "config.json")
    eos, bos, pad = (token_text(config, name, folder) for name in ("eos_token", "bos_token", "pad_token"))
    named = token_ids(model, folder / "config.json")
    stop_ids = set(token_ids(generation, folder / "generation_config.json"))
    if not eos and (stop_ids or named):
        eos = tokenizer.id_to_token(min(stop_ids or named)) or ""
    if not (folder / "generation_config.json").is_file():  # transformers, too, generates by config.json then alone
        stop_ids = set(named)
    if eos and tokenizer.token_to_id(eos) is None:
        raise ModelError(
            f"{folder} names the stop token {eos!r}, which its tokenizer does not have; correct eos_token in tokenizer_config.json"
        )
    if not eos:
        raise ModelError(f"{folder} names no stop token; set eos_token in tokenizer_config.json")
    stop_ids.add(id_of(tokenizer, eos))
    source = template_source(folder, config)
    tokens = {name: token for name, token in other_tokens(config).items() if name in source}
    template = Template(
        tokenizer,
        source,
        bos,
        eos,
        pad,
        frozenset(stop_ids),
        tokens=tokens,
        settings=settings or stored_settings(folder),
    )
    try:
        return with_stops(template)
    except ModelError as error:
        raise type(error)(f"{folder}: {error}") from error


def with_stops(template: Template) -> Template:
    """Add the token that closes an assistant's turn (Qwen's <|im_end|>, say) to the stop tokens, and leave out the unknown one, which
    stands for text; ModelError where an answer would end before it began."""
    refuse_lost_text(PROBES[0], template.appended(template.asked_text, ASKED, PROBES[0]))
    refuse_spelt_marker(template.tokenizer, template.turn_end.tail)
    unknown = unknown_ids(template.tokenizer)
    if template.eos_id in unknown:
        raise ModelError(
            f"the stop token {template.eos_token!r} is what the tokenizer writes for characters that it does not know, so that they would "
            "end an answer; name another as eos_token in tokenizer_config.json"
        )
    stops = (template.stop_ids | {template.turn_end.token}) - unknown
    template = replace(template, stop_ids=stops)
    [ids] = template.completion_ids([template.before_written(ASKED)], [template.turn_end.probe])
    if early := [i for i in ids[:-1] if i in stops]:
        raise ModelError(
            f"the chat template writes the stop token {template.tokenizer.id_to_token(early[0])!r} before an answer, so that nothing would "
            "be left of one; take it out of eos_token_id in generation_config.json and config.json"
        )
    return template


def decoded(tokenizer: Tokenizer, frame: AnswerFrame, rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of answers' ids but for the frame's first. Each is decoded after an ordinary token, whose text is taken off again: at the
    beginning of a text some tokenizers lose a space."""
    count = len(frame.first_ids)
    bodies = [list(row[count:] if tuple(row[:count]) == frame.first_ids else row) for row in rows]
    anchor = str(tokenizer.decode([frame.anchor]))
    texts = tokenizer.decode_batch([[frame.anchor, *body] for body in bodies], skip_special_tokens=True)
    return [
        text.removeprefix(anchor) if text.startswith(anchor) else str(tokenizer.decode(body))
        for text, body in zip(texts, bodies, strict=True)
    ]
