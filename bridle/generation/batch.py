"""Continuous batching over one set of packed weights: rows are admitted, stepped and cancelled one by one, each with settings of its own.

A step takes in what waits and fits, runs its prompts through the model (equal ones once), and draws a token of every row. Random
numbers are counted by (seed, sample, position, try): in float32 an answer is the same ids alone or among others, early or late.

Memory: at most `rows` answers are under way; (rows) × (longest prompt + most new tokens) stays within `cache_tokens`, or one row is
alone; the cache grows as rows do, is copied for that (so it is there twice for a moment), and goes when the batch is empty.
A step reads `prefill_tokens` tokens of prompts at most, padding counted. The native decoder reads a longer prompt in parts over
several steps, its keys and values held twice until it is read; the fallback reads it whole, beside no other prompt.

Shapes: B rows, T new tokens, U distinct prompts, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from typing import Any

import torch
from torch import Tensor

from bridle.core.errors import DataError, NotFinite
from bridle.core.records import FinishReason
from bridle.generation.fallback import Fallback
from bridle.generation.native import PackedDecoder
from bridle.generation.sampling import Sampling, as_signed, draw, uniforms

KEEP_SHARE = 0.75  # finished rows leave once fewer than this share is still going: each time the cache is copied
NOT_ASKED: tuple[float, tuple[tuple[int, float], ...]] = math.nan, ()  # no likely tokens
UNIFORMS = 256  # random numbers made at once for a row


@dataclass(frozen=True)
class AnswerRow:
    """One answer that is asked for. (seed, sample, position) number its draws; `stops` end it beside the template's."""

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    sample: int = 0
    top_logprobs: int = 0
    stops: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token of the answer `id`. `logprob`: natural, under the distribution that was sampled from, as temperature, top-p and top-k
    made it. `top`: the tokens that the model itself holds most likely here, most likely first, with their natural log-probs under the
    softmax of its logits: the whole vocabulary at temperature 1, whatever the row's settings; `own_logprob` is that of the token itself,
    where `top` is asked for. `finish_reason`: None, it goes on."""

    id: int
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None
    own_logprob: float = math.nan


@dataclass(frozen=True)
class BatchLimits:
    """What a batch holds and takes in."""

    rows: int = 64  # answers under way
    prefill_tokens: int = 512  # of prompts, read in one step, padding counted
    cache_tokens: int = 2**17  # rows × the tokens of the longest, prompt and answer; a row alone may pass it
    refill_below: float = 1.0  # rows come in once fewer than this share of `rows` is taken
    groups: int = (
        4  # of rows that came together and cannot join others, as the fallback's cannot: each costs a step of its own
    )


@dataclass(eq=False, slots=True)
class Answering:
    """A row on its way: tokens drawn so far of at most `new`, what ends it, and the random numbers of its next ones."""

    id: int
    row: AnswerRow
    new: int
    stops: frozenset[int]
    live: bool = True  # neither finished nor cancelled
    drawn: int = 0
    numbers: Iterator[float] = field(default_factory=lambda: iter(()))


@dataclass
class Load:
    """How many rows there are, the longest prompt of them, and the most new tokens."""

    rows: int = 0
    prompt: int = 0
    new: int = 0

    def add(self, row: AnswerRow) -> None:
        self.rows, self.prompt = self.rows + 1, max(self.prompt, len(row.prompt))
        self.new = max(self.new, row.sampling.max_new_tokens)

    def has_room(self, row: AnswerRow, limits: BatchLimits) -> bool:
        tokens = max(self.prompt, len(row.prompt)) + max(self.new, row.sampling.max_new_tokens)
        return not self.rows or self.rows < limits.rows and (self.rows + 1) * tokens <= limits.cache_tokens


@dataclass
class Rows:
    """Rows under way: whose they are, where the cache of each lies in the decoding, and the token drawn last.

    There may be more rows than answers: they keep the others company (`least_rows`), and nobody asks for theirs.
    """

    decoding: Any  # a Decoding or FallbackDecoding, as the packed weights make it
    answers: list[Answering]
    place_B: Tensor
    tokens_B: Tensor
    alike: bool = field(init=False)  # all draw from distributions of the same settings
    asking: bool = field(init=False)  # somebody wants the most likely tokens

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Again, where other rows have come in."""
        self.alike = len({distribution_of(answer.row.sampling) for answer in self.answers}) <= 1
        self.asking = any(answer.row.top_logprobs for answer in self.answers)

    @property
    def live(self) -> list[int]:
        return [row for row, answer in enumerate(self.answers) if answer.live]


@dataclass
class Reading:
    """A long prompt that is read in parts, and those who wait for an answer to it."""

    answers: list[Answering]
    decoding: Any
    read: int = 0


class RowBatch:
    """Answers by the weights that it was made with, and by no others. For one thread."""

    def __init__(self, packed: PackedDecoder | Fallback, stops: frozenset[int], limits: BatchLimits) -> None:
        self.packed, self.stops, self.limits = packed, stops, limits
        self.queue: deque[Answering] = deque()
        self.reading: Reading | None = None
        self.groups: list[Rows] = []  # one at most where rows can join others
        self.unfinished: dict[int, Answering] = {}
        self.ids = count()
        self.found: list[Drawn] = []  # in this step; after a failure what the next step returns besides
        self.broken: list[int] = []

    @property
    def stamp(self) -> str:
        return self.packed.stamp

    @property
    def running(self) -> int:
        return sum(len(group.live) for group in self.groups)

    @property
    def waiting(self) -> int:
        return len(self.unfinished) - self.running

    def admit(self, row: AnswerRow) -> int:
        """Its id. It waits until there is room. DataError where it cannot be answered."""
        self.require_answerable(row)
        stops = self.stops | row.stops if row.stops else self.stops
        answer = Answering(next(self.ids), row, row.sampling.max_new_tokens, stops)
        self.unfinished[answer.id] = answer
        self.queue.append(answer)
        return answer.id

    def require_answerable(self, row: AnswerRow) -> None:
        """DataError for a prompt that is empty, too long, or of tokens that the model does not have."""
        prompt, new, vocabulary = row.prompt, row.sampling.max_new_tokens, self.packed.vocabulary
        if not prompt:
            raise DataError("a prompt without a single token cannot be answered")
        if len(prompt) + new > self.packed.max_positions:
            raise DataError(
                f"a prompt of {len(prompt)} tokens and {new} new ones do not fit the model's context "
                f"of {self.packed.max_positions}; shorten the prompt or lower max_new_tokens"
            )
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise DataError(f"a prompt has the token {wrong}, where the model has those from 0 to {vocabulary - 1}")
        if not 0 <= row.top_logprobs <= vocabulary:
            raise DataError(
                f"top_logprobs must be within 0 and the {vocabulary} tokens there are, got {row.top_logprobs}"
            )

    def cancel(self, id: int) -> None:
        """Nobody wants this answer any more: its row is free for the next. Ids that are unknown or finished are fine."""
        if (answer := self.unfinished.pop(id, None)) is None:
            return
        answer.live = False
        if answer in self.queue:
            self.queue.remove(answer)
        if self.reading is not None and not any(a.live for a in self.reading.answers):
            self.reading = None
        self.groups = [group for group in self.groups if group.live]

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Read what waits and fits, then draw a token of every row: the tokens in the order in which they were drawn, two of a row
        that has just come in.

        NotFinite where logits are not numbers: the rows concerned (`ids`) have left, all others go on, and what was drawn
        of them comes with the next step.
        """
        if self.reading is not None or self.may_take():
            self.place(self.read())
        else:
            self.groups = [self.without_finished(group) for group in self.groups]
        for i, group in enumerate(self.groups):
            if group.decoding.full(group.live):
                self.groups[i] = group = self.gather([group])
            self.draw(group, group.decoding.step(group.tokens_B))
        self.groups = [group for group in self.groups if any(answer.live for answer in group.answers)]
        if self.broken:
            raise self.failure()
        found, self.found = self.found, []
        return found

    # ------------------------------------------------------------------------------------------------ rows come in

    def load(self) -> Load:
        """Of the rows that are under way."""
        load = Load()
        for group in self.groups:
            for row in group.live:
                load.add(group.answers[row].row)
        return load

    def may_take(self) -> bool:
        """Whether what waits longest may be read now."""
        if not self.queue:
            return False
        if not self.groups:
            return True
        if not self.packed.joins and len(self.groups) >= self.limits.groups:
            return False
        load = self.load()
        return load.rows < self.limits.refill_below * self.limits.rows and load.has_room(self.queue[0].row, self.limits)

    def take(self) -> list[Answering]:
        """Those that wait longest, as many as have room and can be read in a step; one at least."""
        load, taken = self.load(), list[Answering]()
        distinct: set[tuple[int, ...]] = set()
        longest = 0
        while self.queue and load.has_room(row := self.queue[0].row, self.limits):
            longest = max(longest, len(row.prompt))
            tokens = max(len(distinct) + 1, self.packed.least_rows) * longest
            if distinct and row.prompt not in distinct and tokens > self.limits.prefill_tokens:
                break
            distinct.add(row.prompt)
            load.add(row)
            taken.append(self.queue.popleft())
        return taken

    def read(self) -> Rows | None:
        """Run prompts through the model and draw the first token of each answer; None where a long one is not read to its end."""
        bound = self.limits.prefill_tokens
        if self.reading is None:
            taken = self.take()
            # Of transformers' caches not all take a prompt in pieces.
            if isinstance(self.packed, Fallback) or len(taken[0].row.prompt) <= bound:
                return self.begin(taken)
            self.reading = Reading(taken, self.packed.begin(len(taken[0].row.prompt)))
        reading = self.reading
        prompt = reading.answers[0].row.prompt
        ids_BT = torch.tensor([prompt[reading.read : reading.read + bound]], device=self.packed.device)
        logits_BV = reading.decoding.read(ids_BT)
        reading.read += ids_BT.shape[1]
        if reading.read < len(prompt):
            return None
        self.reading = None
        wanted = [answer for answer in reading.answers if answer.live]
        return self.first_tokens(reading.decoding, logits_BV, wanted, [0] * len(wanted))

    def begin(self, answers: list[Answering]) -> Rows:
        """Read prompts whole, equal ones once."""
        distinct: dict[tuple[int, ...], int] = {}
        places = [distinct.setdefault(answer.row.prompt, len(distinct)) for answer in answers]
        company = [answers[-1].row.prompt] * (self.packed.least_rows - len(distinct))
        decoding, logits_UV = self.packed.prefill([*distinct, *company])
        return self.first_tokens(decoding, logits_UV, answers, places)

    def first_tokens(self, decoding: Any, logits_UV: Tensor, answers: list[Answering], places: list[int]) -> Rows:
        finite_U = torch.isfinite(logits_UV).all(1).tolist()
        for answer, place in zip(answers, places, strict=True):
            if not finite_U[place]:
                self.fail(answer)
        place_B = torch.tensor(places, device=self.packed.device)
        self.number(answers)
        rows = Rows(decoding, answers, place_B, torch.zeros_like(place_B))
        self.draw(rows, logits_UV[place_B])
        return rows

    def place(self, fresh: Rows | None) -> None:
        """Put fresh rows beside those that are under way."""
        if fresh is None or not fresh.live:
            return
        if not (self.groups and self.packed.joins):
            self.groups.append(self.gather([fresh]))
        elif not self.join(self.groups[0], fresh):
            self.groups = [self.gather([self.groups[0], fresh])]

    def join(self, rows: Rows, fresh: Rows) -> bool:
        """Put fresh rows in the place of finished ones. False if the cache cannot take them."""
        live, free = fresh.live, [row for row, answer in enumerate(rows.answers) if not answer.live]
        taken = torch.tensor(live, device=rows.place_B.device)
        places = torch.tensor(free[: len(live)], device=taken.device)
        if len(live) > len(free) or not rows.decoding.join(fresh.decoding, fresh.place_B[taken], places):
            return False
        for row, place in zip(live, free, strict=False):
            rows.answers[place] = fresh.answers[row]
        rows.tokens_B[places] = fresh.tokens_B[taken]
        rows.look()
        return True

    def without_finished(self, rows: Rows) -> Rows:
        """The same, or a copy once too many are finished."""
        return self.gather([rows]) if len(rows.live) < KEEP_SHARE * len(rows.answers) else rows

    def gather(self, parts: Sequence[Rows]) -> Rows:
        """What is live of all parts, which is something, side by side."""
        chosen = [(part, live) for part in parts if (live := part.live)]
        answers = [part.answers[row] for part, live in chosen for row in live]
        last = chosen[-1][1]
        last += last[-1:] * (self.packed.least_rows - len(answers))
        taken = [(part, torch.tensor(live, device=part.place_B.device)) for part, live in chosen]
        tokens_B = torch.cat([part.tokens_B[rows] for part, rows in taken])
        return Rows(
            self.packed.gather([(part.decoding, part.place_B[rows]) for part, rows in taken]),
            answers,
            torch.arange(len(tokens_B), device=tokens_B.device),
            tokens_B,
        )

    # ------------------------------------------------------------------------------------------------ tokens come out

    def draw(self, rows: Rows, logits_BV: Tensor) -> None:
        """Draw every row's next token, and report it where the answer is not finished."""
        answers = rows.answers
        numbers = [next(answer.numbers) for answer in answers]
        numbers += numbers[-1:] * (len(logits_BV) - len(numbers))  # company draws as the last row does
        uniform_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device)
        if rows.alike:
            rows.tokens_B, logprobs_B = draw(logits_BV, answers[0].row.sampling, uniform_B)
        else:
            rows.tokens_B, logprobs_B = draw_each(logits_BV, answers, uniform_B)
        tops = most_likely(logits_BV, answers, rows.tokens_B) if rows.asking else {}
        for i, (answer, token, logprob) in enumerate(
            zip(answers, rows.tokens_B.tolist(), logprobs_B.tolist(), strict=False)
        ):
            if not answer.live:
                continue
            if math.isnan(logprob):
                self.fail(answer)
                continue
            answer.drawn += 1
            finish_reason = None
            if token in answer.stops:
                finish_reason = FinishReason.STOP
            elif answer.drawn == answer.new:
                finish_reason = FinishReason.LENGTH
            own_logprob, top = tops.get(i, NOT_ASKED)
            self.found.append(Drawn(answer.id, token, logprob, top, finish_reason, own_logprob))
            if finish_reason is not None:
                answer.live = False
                del self.unfinished[answer.id]

    def number(self, answers: Sequence[Answering]) -> None:
        """Random numbers for fresh rows: the first of all at once."""
        if not answers:
            return
        position_T = torch.arange(min(UNIFORMS, max(answer.new for answer in answers)))
        seeds_B1 = torch.tensor([[as_signed(answer.row.seed)] for answer in answers])
        samples_B1 = torch.tensor([[as_signed(answer.row.sample)] for answer in answers])
        first = uniforms(seeds_B1, samples_B1, position_T).tolist()
        for answer, numbers in zip(answers, first, strict=True):
            answer.numbers = draw_numbers(answer.row, numbers)

    # ------------------------------------------------------------------------------------------------ what fails

    def fail(self, answer: Answering) -> None:
        """Its logits are not numbers."""
        if answer.live:
            answer.live = False
            del self.unfinished[answer.id]
            self.broken.append(answer.id)

    def failure(self) -> NotFinite:
        """Of the rows that failed in this step."""
        ids, self.broken = tuple(self.broken), []
        return NotFinite(
            f"weights {self.stamp} give logits that are not finite; go back to a checkpoint before they broke", ids
        )


def draw_numbers(row: AnswerRow, first: list[float]) -> Iterator[float]:
    """A row's random numbers, of which the first are known. Where it is finished it goes on beside others, with its last one."""
    new = row.sampling.max_new_tokens
    numbers, position = first[:new], 0
    while True:
        yield from numbers
        position += len(numbers)
        if position == new:
            break
        position_T = torch.arange(position, min(position + UNIFORMS, new))
        numbers = uniforms(row.seed, torch.tensor(as_signed(row.sample)), position_T).tolist()
    yield from repeat(numbers[-1])


def draw_each(logits_BV: Tensor, answers: Sequence[Answering], uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probs, [B] each, of rows of several settings: those of equal temperature, top-p and top-k are drawn
    together, and those that are finished or company get any token."""
    settings = {distribution_of(answer.row.sampling) for answer in answers}
    tokens_B, logprobs_B = torch.zeros(len(uniform_B), dtype=torch.int64, device=uniform_B.device), uniform_B.clone()
    for distribution in settings:
        same = [i for i, a in enumerate(answers) if a.live and distribution_of(a.row.sampling) == distribution]
        if same:
            rows = torch.tensor(same, device=uniform_B.device)
            tokens, logprobs = draw(logits_BV[rows], answers[same[0]].row.sampling, uniform_B[rows])
            tokens_B[rows], logprobs_B[rows] = tokens, logprobs.to(logprobs_B.dtype)
    return tokens_B, logprobs_B


def distribution_of(sampling: Sampling) -> tuple[float, float, int]:
    return sampling.temperature, sampling.top_p, sampling.top_k


def most_likely(
    logits_BV: Tensor, answers: Sequence[Answering], tokens_B: Tensor
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """By row, the model's own log-prob of the token that was drawn, and its most likely tokens with theirs, where they are asked for."""
    asking = [i for i, answer in enumerate(answers) if answer.live and answer.row.top_logprobs]
    if not asking:
        return {}
    rows = torch.tensor(asking, device=logits_BV.device)
    logits_BV = logits_BV[rows]
    logprobs_BV = (logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()).log_softmax(1)
    own = logprobs_BV.gather(1, tokens_B[rows][:, None])[:, 0].tolist()
    best = logprobs_BV.topk(max(answers[i].row.top_logprobs for i in asking))
    found = zip(asking, own, best.indices.tolist(), best.values.tolist(), strict=True)
    return {
        i: (logprob, tuple(zip(tokens, logprobs, strict=True))[: answers[i].row.top_logprobs])
        for i, logprob, tokens, logprobs in found
    }
