"""A judge that runs here: any model that bridle runs. Where the verdict is a word, the probabilities of the words are read and nothing is
sampled, so that an answer cannot be read for the verdict; a ranking, or a verdict after reasons, is written by the engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from bridle.compute.device import Device
from bridle.core.errors import ModelError
from bridle.core.records import Prompt
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.batches import by_length, make_batch, sequence_logprobs
from bridle.models.encoding import encode_prompts
from bridle.models.policy import Policy
from bridle.models.template import Template
from bridle.rewards.judge.questions import Question
from bridle.rewards.judge.rulings import Reply

ROWS = 8  # questions in a batch: they are long


@dataclass(frozen=True)
class WordIds:
    """Ids of a question, and of each word that may answer it."""

    asked: list[int]
    words: Mapping[str, list[int]]

    @property
    def longest(self) -> int:
        return len(self.asked) + max(map(len, self.words.values()), default=0)


class LocalModel:
    """Asks a model of ours. The engine that writes is its own: a trainer's holds other weights."""

    def __init__(self, policy: Policy, device: Device, max_tokens: int = 512, temperature: float = 0.0) -> None:
        self.policy, self.device = policy, device
        self.sampling = Sampling(max_tokens, temperature)
        self.engine = Engine(device.precision, batch_size=ROWS)

    def ask(self, questions: Sequence[Question], progress: Callable[[int], None] | None = None) -> list[Reply]:
        """A reply to each question; what does not fit into the model's context is too long, and what its template cannot write
        unreadable."""
        template, limit, replies = self.policy.template, self.policy.module.config.max_positions, dict[int, Reply]()
        prompts = encode_prompts(template, [Prompt(question.messages) for question in questions])
        weighed, written = dict[int, WordIds](), list[int]()
        for i, (question, (prompt, fault)) in enumerate(zip(questions, prompts, strict=True)):
            by_word = bool(question.words) and not question.reasons
            found = word_ids(template, prompt, question.words if by_word else ()) if not fault else WordIds([], {})
            room = found.longest if by_word else len(found.asked) + self.sampling.max_new_tokens
            if fault or room > limit:
                replies[i] = Reply(fault="unreadable" if fault else "too_long")
            elif by_word:
                weighed[i] = found
            else:
                written.append(i)
        if progress is not None and replies:
            progress(len(replies))
        numbers = list(weighed)
        for rows in by_length([weighed[i].longest for i in numbers], ROWS):
            chosen = [numbers[row] for row in rows]
            each = word_probabilities(self.policy, [weighed[i] for i in chosen], self.device)
            replies |= {i: Reply(probabilities=one) for i, one in zip(chosen, each, strict=True)}
            if progress is not None:
                progress(len(rows))
        if written:
            self.engine.load(self.policy)
            asked = [prompts[i][0] for i in written]
            completions = answer_prompts(self.engine, self.policy, asked, self.sampling, seed=0, progress=progress)
            replies |= {
                i: Reply(c.text, finish_reason=c.finish_reason.value) for i, c in zip(written, completions, strict=True)
            }
        return [replies[i] for i in range(len(questions))]


def word_ids(template: Template, prompt: Prompt, words: Sequence[str]) -> WordIds:
    """The end of the turn counts where one word begins with another's tokens; else not, for a model that would say more has still
    chosen."""
    prompt = template.before_answers(prompt, words)
    ids = template.completion_ids([prompt] * len(words), words)
    cut = [row[:-1] for row in ids]
    apart = all(a != b[: len(a)] for i, a in enumerate(cut) for j, b in enumerate(cut) if i != j)
    rows = cut if apart and all(cut) else ids
    return WordIds(template.prompt_ids([prompt])[0], dict(zip(words, rows, strict=True)))


@torch.no_grad()
def word_probabilities(policy: Policy, questions: Sequence[WordIds], device: Device) -> list[dict[str, float]]:
    """Of each question the probability of every word as the answer, among them all: softmax over words of Σ log π(its tokens)."""
    asked = [question.asked for question in questions for _ in question.words]
    answers = [row for question in questions for row in question.words.values()]
    batch = make_batch(asked, answers, policy.template.pad_id, device.torch)
    with device.autocast():
        logp_N = sequence_logprobs(policy.module, batch).sum(1).float().cpu()
    if not bool(torch.isfinite(logp_N).all()):
        raise ModelError("the judge's log-probs are not finite; take another model, or model.precision = 'float32'")
    each = logp_N.split([len(question.words) for question in questions])
    return [
        dict(zip(one.words, logp.softmax(0).tolist(), strict=True)) for one, logp in zip(questions, each, strict=True)
    ]
