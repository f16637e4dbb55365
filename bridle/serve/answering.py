"""A request's answers, from its rows in the batch to texts."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.generation.batch import AnswerRow
from bridle.generation.sampling import Sampling
from bridle.models.template import AnswerFrame
from bridle.serve.metrics import ServeMetrics
from bridle.serve.replies import FinishedAnswer, Json
from bridle.serve.scheduler import Answers, Scheduler, ServedModel
from bridle.serve.text import AnswerText, Piece, WrittenToken


@dataclass(frozen=True)
class GenerationRequest:
    """What is to be drawn: `drawn` answers to each of the prompts' ids, of which `answers` are told. `top`: likely tokens beside each of
    the answer's; None: no log-probs. `frame`: what stands round an answer. `first`: the number of the first sample."""

    served: ServedModel
    prompts: Sequence[tuple[int, ...]]
    sampling: Sampling
    seed: int
    frame: AnswerFrame
    answers: int = 1
    drawn: int = 1
    top: int | None = None
    stops: tuple[str, ...] = ()
    first: int = 0

    @property
    def with_tokens(self) -> bool:
        return self.top is not None

    def rows(self) -> list[AnswerRow]:
        """Prompt by prompt. The same seed draws the same answers to a prompt, alone or among others."""
        numbers = range(self.first, self.first + self.drawn)
        top = max(1, self.top) if self.top is not None else 0  # with none the model's own log-probs are not looked at
        return [AnswerRow(ids, self.sampling, self.seed, number, top) for ids in self.prompts for number in numbers]


class Writing:
    """Answers that are being written. Whoever began it closes it in the end."""

    def __init__(self, asked: GenerationRequest, scheduler: Scheduler, metrics: ServeMetrics) -> None:
        self.asked, self.metrics, self.began = asked, metrics, time.perf_counter()
        self.answers: Answers = scheduler.submit(asked.served, asked.rows())
        spelling = asked.served.spelling
        self.texts = [AnswerText(spelling, asked.frame, asked.stops, asked.top) for _ in self.answers.rows]

    async def pieces(self) -> AsyncIterator[Piece]:
        """As they come, of all answers. Raises RequestProblem where the model fails."""
        first = True
        async for place, drawn in self.answers.drawn():
            if first:
                self.metrics.first_token.observe(time.perf_counter() - self.began)
                first = False
            text = self.texts[place]
            ready, tokens = text.add(drawn)
            if text.finish_reason is not None:
                self.answers.end(place)
            if ready or tokens or text.finish_reason is not None:
                yield Piece(place, ready, tokens, text.finish_reason)

    async def whole(self) -> list[FinishedAnswer]:
        """All of them, when they are done."""
        texts = [""] * len(self.texts)
        tokens: list[list[WrittenToken]] = [[] for _ in self.texts]
        async for piece in self.pieces():
            texts[piece.index] += piece.text
            tokens[piece.index] += piece.tokens
        reasons = [text.finish_reason or "length" for text in self.texts]
        return [FinishedAnswer(*parts) for parts in zip(texts, tokens, reasons, strict=True)]

    @property
    def usage(self) -> Json:
        """All that was read and drawn, whether it is told or not; the token that ends a turn is not counted."""
        read, drawn = sum(map(len, self.asked.prompts)), sum(text.counted for text in self.texts)
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}

    def close(self) -> None:
        self.answers.close()
        usage = self.usage
        self.metrics.prompt_tokens.inc(usage["prompt_tokens"])
        self.metrics.completion_tokens.inc(usage["completion_tokens"])
        self.metrics.whole.observe(time.perf_counter() - self.began)


def best_of(
    reward: Reward, writing: Writing, prompts: Sequence[Prompt], written: Sequence[FinishedAnswer]
) -> list[FinishedAnswer]:
    """Of the answers to each prompt those that the reward model scores highest, the best first; one that it cannot score comes last."""
    asked = writing.asked
    of_row = [prompt for prompt in prompts for _ in range(asked.drawn)]
    completions = [
        Completion(prompt.id, answer.text, () if asked.stops else tuple(text.drawn), (), why_ended(text))
        for prompt, answer, text in zip(of_row, written, writing.texts, strict=True)
    ]
    scores = [float("-inf") if score is None else score for score in reward(of_row, completions)]
    chosen: list[FinishedAnswer] = []
    for first in range(0, len(written), asked.drawn):
        places = sorted(range(first, first + asked.drawn), key=lambda place: -scores[place])
        chosen += [written[place] for place in places[: asked.answers]]
    return chosen


def why_ended(text: AnswerText) -> FinishReason:
    return FinishReason.LENGTH if text.finish_reason == "length" else FinishReason.STOP
