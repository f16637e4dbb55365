"""The data that flows round the loop: frozen records with content hashes, the same on every floor.

    Prompt ──engine──▶ Completion ×K ──people──▶ Judgement ──rankings──▶ Pair ──▶ reward model ──▶ policy

A worked example:

    prompt = Prompt.from_text("My cat is bored. Any advice?", meta={"family": "help"})
    completion = Completion(prompt.id, "You can play with the cat every day.", token_ids=(311, 97, 1), ...)
    judgement = Judgement(item_id, labeler="sim-3", ranking=((2,), (0, 1), (3,)), display_order=(3, 0, 2, 1), ...)

`ranking` names canonical slots, best group first, ties inside a group: slot 2 won, 0 and 1 tied, 3 was last.
`display_order` tells which slot was shown first, second, …; it never changes what a ranking means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


class FinishReason(StrEnum):
    """Why a completion ended; set where it ended and never inferred from its tokens."""

    STOP = "stop"  # the model sampled a stop token, which belongs to the completion
    LENGTH = "length"  # the token limit was reached first
    IMPORTED = "imported"  # written elsewhere: by a person, or in a file


class LabelerKind(StrEnum):
    PERSON = "person"
    AI = "ai"
    SIMULATED = "simulated"
    IMPORTED = "imported"


UNDECIDED = ("cannot_judge", "skip")  # outcomes of a judgement without a ranking


class KeptEncoder(json.JSONEncoder):
    """Writes what `JSONEncoder` writes, without indentation, in half its time: the part in C is made once and not for each value."""

    @cached_property
    def in_c(self) -> Callable[[object, int], Iterable[str]]:
        make = json.encoder.c_make_encoder  # type: ignore[attr-defined]
        if make is None:  # a Python without it
            return lambda value, _: self.iterencode(value)
        text = json.encoder.encode_basestring_ascii if self.ensure_ascii else json.encoder.encode_basestring
        separators = self.key_separator, self.item_separator
        return make(None, self.default, text, None, *separators, self.sort_keys, self.skipkeys, self.allow_nan)  # type: ignore[no-any-return]

    def encode(self, o: object) -> str:
        return "".join(self.in_c(o, 0))


CANONICAL = KeptEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: object) -> str:
    """SHA-256 (hex) of a JSON-able value in canonical form: sorted keys, no spaces, UTF-8."""
    return hashlib.sha256(CANONICAL.encode(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as a chat template renders it up to the cue for the assistant, its token ids, and the hash of the template that wrote
    both: only for that one are they good."""

    template: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: messages that end with a user turn. `meta` and `encoded` ride along and are not part of the identity."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)
    encoded: Encoded | None = field(default=None, compare=False, hash=False, repr=False)

    @classmethod
    def from_text(cls, text: str, meta: Mapping[str, Any] | None = None) -> Prompt:
        return cls((Message("user", text),), meta or {})

    @cached_property
    def id(self) -> str:
        return content_hash([[m.role, m.content] for m in self.messages])

    @property
    def text(self) -> str:
        """The last user turn: what a reader wants to see."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Completion:
    """One answer. `token_ids` are what the model produced (stop token included) and are what is trained on.

    `sampled_logprobs` [len(token_ids)] are natural logs under the distribution that was sampled from.
    `weight_stamp` names the weights that wrote it; empty for text written elsewhere.
    """

    prompt_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    sampled_logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = FinishReason.IMPORTED
    weight_stamp: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    @cached_property
    def id(self) -> str:
        return content_hash([self.prompt_id, self.text, list(self.token_ids), self.finish_reason.value])

    @property
    def stripped(self) -> str:
        """The text without white space at its ends, which no reader sees: what tells answers apart."""
        return self.text.strip()


@dataclass(frozen=True)
class Judgement:
    """One person's answer about one item, in canonical slots. Never updated, never deleted.

    `outcome` tells what kind of tie a tie is, where that was said, and why there is no ranking where there is none. `criterion` is what
    was judged, such as "harmless"; None is which answer is better on the whole. `strength` is 0 (hardly better) to 3; `margin` and
    `confidence` are in their giver's units (a model's confidence is its probability of what it prefers); `weight` multiplies what the
    judgement counts. `seconds` are those of looking at it,
    `wall_seconds` all from when it was shown. `rationale` and `lang` are its giver's words and their language; `guideline` is the hash of
    what they were asked to go by; `marks` tell what was odd: "late" (after its lease), "unskilled" (by one who may not judge the topic).
    """

    item_id: str
    labeler: str
    labeler_kind: LabelerKind
    ranking: tuple[tuple[int, ...], ...]
    display_order: tuple[int, ...] | None  # None: imported without it, so it says nothing about side bias
    source: Literal["study", "serving", "import"] = "study"
    submission_key: str = ""
    seconds: float | None = None
    outcome: Literal["", "both_good", "both_bad", "cannot_judge", "skip"] = ""
    criterion: str | None = None
    strength: int | None = None
    margin: float | None = None
    weight: float = 1.0
    confidence: float | None = None
    rationale: str = ""
    lang: str | None = None
    guideline: str | None = None
    marks: tuple[str, ...] = ()
    wall_seconds: float | None = None
    client: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    @cached_property
    def id(self) -> str:
        ranking = [list(group) for group in self.ranking]
        order = None if self.display_order is None else list(self.display_order)
        verdict = [self.outcome, self.criterion] if self.outcome or self.criterion else []
        return content_hash([self.item_id, self.labeler, ranking, order, self.submission_key, *verdict])


@dataclass(frozen=True)
class Rating:
    """What one person said of one answer by itself: a vote (1 for it, 0 against it), a score in its giver's units, its steps, each with a
    label, or a flag, whose criterion names what is wrong with it. `judgement_id` names the judgement that it was given with."""

    completion: Completion
    labeler: str
    labeler_kind: LabelerKind
    kind: Literal["vote", "score", "steps", "flag"]
    value: float | None
    steps: tuple[tuple[str, float], ...] = ()
    criterion: str | None = None
    weight: float = 1.0
    source: Literal["study", "serving", "import"] = "import"
    lang: str | None = None
    note: str = ""
    judgement_id: str | None = None

    @cached_property
    def id(self) -> str:
        answer, steps = self.completion, [list(step) for step in self.steps]
        given_with = [self.judgement_id] if self.judgement_id else []
        value = self.value if self.value != 0 else abs(self.value)  # no database tells -0.0 from 0.0 for good
        stated = [
            answer.id,
            answer.weight_stamp,
            self.labeler,
            self.kind,
            self.criterion,
            value,
            steps,
            *given_with,
        ]
        return content_hash(stated)


@dataclass(frozen=True)
class Ranking:
    """One judgement of the answers to a prompt, whole: `ranks[i]` is the place of `answers[i]`, 0 for the best, equal for ties."""

    prompt: Prompt
    answers: tuple[Completion, ...]
    ranks: tuple[int, ...]
    judgement_id: str = ""
    weight: float = 1.0
    item_id: str = ""


@dataclass(frozen=True)
class Pair:
    """`chosen` was preferred to `rejected` for the same prompt.

    `group` is the prompt's id: all pairs of a group stay in one batch and one split. A judgement gives each of its pairs `weight`
    1/pairs, so a ranking of four counts as one judgement and not as six, times its own weight; what several people said of two answers
    is one pair of their weights together. `target` is the share of these that prefer `chosen`: ½ for a tie, which has no better side.
    `strength` is how much better the chosen answer is where that was given, in its giver's units, the mean over votes. `item_id` is the
    item that was judged, empty where there was none. `offset` is the log-odds that something else than quality, such as a taste that the
    labelers share, gives `chosen`.
    """

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    weight: float = 1.0
    judgement_ids: tuple[str, ...] = ()
    target: float = 1.0
    strength: float | None = None
    item_id: str = ""
    offset: float = 0.0

    @property
    def group(self) -> str:
        return self.prompt.id


@dataclass(frozen=True)
class Scores(Sequence[float | None]):
    """A score for each answer, None where there is none, and what the source reports of them for the log (an ensemble's disagreement,
    each source's mean). A reward may return one of these or a plain list."""

    values: Sequence[float | None]
    metrics: Mapping[str, float] = field(default_factory=dict)
    parts: Sequence[tuple[float, Sequence[float | None]]] = ()  # of a weighted sum each weight with its source's scores

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: Any) -> Any:
        return self.values[place]


Reward = Callable[[Sequence[Prompt], Sequence[Completion]], Sequence[float | None]]
"""Scores answers; None means "could not be judged": masked and counted, never taken for 0."""
