"""A judge that runs here: any model that bridle runs. Where the verdict is a word, the probabilities of the words are read and nothing is
sampled, so that an answer cannot be read for the verdict; a ranking, or a verdict after reasons, is written by the engine."""

from collections.abc import Callable, Sequence

import torch

from bridle.compute.device import Device
from bridle.core.errors import ModelError
from bridle.core.records import Prompt
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.batches import by_length, make_batch, sequence_logprobs
from bridle.models.encoding import encode_prompts
from bridle.models.policy import Policy
from bridle.rewards.judge.questions import Question
from bridle.rewards.judge.rulings import Reply

ROWS = 8  # questions in a batch: they are long


class LocalModel:
    """Asks a model of ours. The engine that writes is its own: a trainer's holds other weights."""

    def __init__(self, policy: Policy, device: Device, max_tokens: int = 512, temperature: float = 0.0) -> None:
        self.policy, self.device = policy, device
        self.sampling = Sampling(max_tokens, temperature)
        self.engine = Engine(device.precision, batch_size=ROWS)

    def ask(self, questions: Sequence[Question], progress: Callable[[int], None] | None = None) -> list[Reply]:
        """A reply to each question; what does not fit into the model's context is too long, and what its template cannot write
        unreadable."""
        limit, replies = self.policy.module.config.max_positions, dict[int, Reply]()
        prompts = encode_prompts(self.policy.template, [Prompt(question.messages) for question in questions])
        by_word, written = list[int](), list[int]()
        for i, (question, (prompt, fault)) in enumerate(zip(questions, prompts, strict=True)):
            weighed = bool(question.words) and not question.reasons
            room = (
                0
                if fault
                else len(self.policy.template.prompt_ids([prompt])[0])
                + (8 if weighed else self.sampling.max_new_tokens)
            )
            if fault or room > limit:
                replies[i] = Reply(fault="unreadable" if fault else "too_long")
            else:
                (by_word if weighed else written).append(i)
        if progress is not None and replies:
            progress(len(replies))
        lengths = [len(questions[i].messages[0].content) for i in by_word]
        for rows in by_length(lengths, ROWS):
            chosen = [by_word[row] for row in rows]
            found = word_probabilities(
                self.policy, [prompts[i][0] for i in chosen], [questions[i].words for i in chosen], self.device
            )
            replies |= {i: Reply(probabilities=each) for i, each in zip(chosen, found, strict=True)}
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


@torch.no_grad()
def word_probabilities(
    policy: Policy, prompts: Sequence[Prompt], words: Sequence[Sequence[str]], device: Device
) -> list[dict[str, float]]:
    """Of each prompt the probability of every word as the answer, among them all: softmax over words of Σ log π(its tokens). The end of
    the turn counts where one word begins with another's tokens; else not, for a model that would say more has still chosen."""
    template, asked, answers, owners = policy.template, list[list[int]](), list[list[int]](), list[tuple[int, str]]()
    for number, (prompt, choices) in enumerate(zip(prompts, words, strict=True)):
        prompt = template.before_answers(prompt, choices)
        ids = template.completion_ids([prompt] * len(choices), choices)
        cut = [row[:-1] for row in ids]
        apart = all(a != b[: len(a)] for i, a in enumerate(cut) for j, b in enumerate(cut) if i != j)
        answers += cut if apart and all(cut) else ids
        asked += template.prompt_ids([prompt]) * len(choices)
        owners += [(number, word) for word in choices]
    batch = make_batch(asked, answers, template.pad_id, device.torch)
    with device.autocast():
        logp_N = sequence_logprobs(policy.module, batch).sum(1).float().cpu()
    if not bool(torch.isfinite(logp_N).all()):
        raise ModelError("the judge's log-probs are not finite; take another model, or model.precision = 'float32'")
    found: list[dict[str, float]] = [{} for _ in prompts]
    for (number, word), logp in zip(owners, logp_N.tolist(), strict=True):
        found[number][word] = logp
    return [dict(zip(row, torch.tensor(list(row.values())).softmax(0).tolist(), strict=True)) for row in found]
