"""Others' reward models as a reward: sequence classifiers of one logit, as TRL trains them, run whole by transformers' own module.

A dialogue is read as the model learnt it: written by the folder's own chat template, all of it, as `apply_chat_template` does. Where
there is none it is plain text: prompt, answer and the token that ends a text, one right behind the other, as TRL joins them; of a
tokenizer that tells two texts apart (it names cls_token and sep_token, as BERT's), the pair of both, as OpenAssistant does. The score is
the head's own number, in units of its own, taken where transformers takes it: at the last token that is not the pad.

Left out on purpose: heads of several labels, and code that comes with a model's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.compute.device import Device
from bridle.core.errors import DataError, OutsideEmbeddings, UnspeltToken, UnsupportedModel
from bridle.core.files import read_whole
from bridle.core.records import Completion, Message, Prompt
from bridle.core.timeline import timed
from bridle.models.batches import by_length, pad
from bridle.models.contents import HashFolder, folder_hash
from bridle.models.control import require_within
from bridle.models.files.chat_template import stored_source
from bridle.models.files.token_names import SETTINGS
from bridle.models.foreign import alike, classifier_network, context_of, require_classifier, text_tokenizer
from bridle.models.policy import read_config, stored_sizes, within_embeddings
from bridle.models.sizes import read_object
from bridle.models.template import Template, load_template

OWN_UNITS = (
    "its scores are its head's own numbers, in units of their own, neither centred nor scaled on answers of yours"
)
BATCH = 64
PROBE = 12  # tokens


class Read(NamedTuple):
    """A dialogue as ids; of a pair, `types` says of each id which of the two texts it is of."""

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()


class Classifier:
    """Called with prompts and answers it gives the head's number for each; None where a dialogue is longer than the `limit`, or spells a
    special token that cannot be written as text."""

    def __init__(
        self, network: Any, read: Callable[[Prompt, str], Read], limit: int, device: Device, origin: str
    ) -> None:
        self.network, self.read, self.limit, self.device, self.origin = network, read, limit, device, origin
        for part in network.modules():
            if isinstance(part, nn.Linear) and part.out_features == 1:
                part.register_forward_hook(in_full)

    def rows(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Read | None]:
        found = list[Read | None]()
        for prompt, completion in zip(prompts, completions, strict=True):
            try:
                row = self.read(prompt, completion.text)
            except (UnspeltToken, OutsideEmbeddings):
                row = Read(())
            found.append(row if 0 < len(row.ids) <= self.limit else None)
        return found

    def fits(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[bool]:
        """Whether each answer can be scored."""
        return [row is not None for row in self.rows(prompts, completions)]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        rows = self.rows(prompts, completions)
        distinct = [row for row in dict.fromkeys(rows) if row is not None]  # equal ones have the same digits
        known: dict[Read | None, float | None] = {**dict(zip(distinct, self.raw(distinct), strict=True)), None: None}
        return [known[row] for row in rows]

    @torch.no_grad()
    def raw(self, rows: Sequence[Read]) -> list[float]:
        """The head's number of each row. Padding stands on the right; without a pad token transformers reads one row at a time."""
        pad_id, out = self.network.config.pad_token_id, torch.zeros(len(rows))
        alone = pad_id is None or pad_id < 0
        for some in by_length([len(row.ids) for row in rows], 1 if alone else BATCH):
            ids_BT = pad([rows[i].ids for i in some], 0 if alone else pad_id, self.device.torch)
            lengths_B = torch.tensor([len(rows[i].ids) for i in some], device=self.device.torch)
            seen_BT = torch.arange(ids_BT.shape[1], device=self.device.torch) < lengths_B[:, None]
            types = [rows[i].types for i in some]
            typed = {"token_type_ids": pad(types, 0, self.device.torch)} if all(types) else {}
            with self.device.autocast():
                logits_B1: Tensor = self.network(input_ids=ids_BT, attention_mask=seen_BT.long(), **typed).logits
            out[some] = logits_B1[:, 0].float().cpu()
        return out.tolist()


def in_full(head: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    """The head's product again, in full precision: a score's last digits order answers."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        return F.linear(inputs[0].to(head.weight.dtype), head.weight, head.bias)


def inspect_classifier(folder: Path) -> None:
    """Refuse a folder by what can be told of it without its weights."""
    raw = read_config(folder)
    require_classifier(folder, raw)
    stored_sizes(folder, raw)


@timed("load")
def load_classifier(folder: Path, device: Device, hashed: HashFolder = folder_hash) -> Classifier:
    """A folder of transformers with a sequence classifier of one logit. Strict: a missing head, weights of other shapes, several labels
    and what scores otherwise among others than alone are refused."""
    return read_classifier(folder, device, hashed)


@read_whole
def read_classifier(folder: Path, device: Device, hashed: HashFolder) -> Classifier:
    raw = read_config(folder)
    require_classifier(folder, raw)
    network = classifier_network(folder, raw, device.torch, stored_sizes(folder, raw))
    network.config.use_cache = False  # nothing is decoded
    limit, embeddings = context_of(network.config.to_dict()), len(network.get_input_embeddings().weight)
    if stored_source(folder, read_object(folder / SETTINGS)):
        read = partial(dialogue_row, within_embeddings(load_template(folder), embeddings, folder))
    else:
        tokenizer = text_tokenizer(folder, embeddings)
        limit, read = min(limit, tokenizer.model_max_length), partial(text_row, tokenizer)
    found = Classifier(network, read, limit, device, hashed(folder))
    require_alone(found, embeddings, folder)
    return found


def dialogue_row(template: Template, prompt: Prompt, answer: str) -> Read:
    """The whole dialogue as the chat template writes it, to its end. UnspeltToken: it spells a control token that cannot be text."""
    messages = [*prompt.messages, Message("assistant", template.without_stop(answer))]
    text = template.render(messages, answer_next=False)
    if template.spells_control(prompt, messages[-1].content):
        ids = template.control.encode_marked(template.marked(messages, text, answer_next=False)).ids
    else:
        [ids] = [encoding.ids for encoding in template.encodings([text])]
    require_within(template.tokenizer, ids, template.outside)
    return Read(tuple(ids))


def text_row(tokenizer: Any, prompt: Prompt, answer: str) -> Read:
    """Prompt and answer as plain text, or as a pair. DataError where the prompt is more than the user's words."""
    if len(prompt.messages) > 1:
        raise DataError(
            f"the reward model has no chat template, so it reads prompts of one user turn, and one of {len(prompt.messages)} messages was "
            "given; write the template that it was trained with to chat_template.jinja in its folder"
        )
    end = tokenizer.eos_token or ""
    answer = answer.removesuffix(end)
    if any(token in prompt.text + answer for token in tokenizer.all_special_tokens):
        raise UnspeltToken("a text spells a special token of a tokenizer that would read it as one")
    if tokenizer.sep_token and tokenizer.cls_token:
        found = tokenizer(prompt.text, answer)
        return Read(tuple(found["input_ids"]), tuple(found.get("token_type_ids", ())))
    return Read(tuple(tokenizer(prompt.text + answer + end)["input_ids"]))


def require_alone(model: Classifier, tokens: int, folder: Path) -> None:
    """UnsupportedModel where a score depends on the padding that a longer row beside it brings."""
    long = Read(tuple((37 * place + 5) % tokens for place in range(min(PROBE, model.limit))))
    rows = [long, Read(long.ids[: len(long.ids) // 2 + 1])]
    alone = [score for row in rows for score in model.raw([row])]
    if not alike(torch.tensor(model.raw(rows)), torch.tensor(alone)):
        raise UnsupportedModel(
            f"the classifier in {folder} scores a row beside a longer one otherwise than alone; take another, or be rewarded by "
            "it in a function of your own"
        )
