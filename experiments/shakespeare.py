"""E1: a language model learns to write, to answer, and to stop. On tinyshakespeare, letter by letter, by the calls of `import bridle`.

Pretrained on the first 90% of the text; its loss is in nats a letter, of the first 60,000 letters of the rest, each of which is predicted
from at least half a row before it. By Witten and Bell's interpolation, counts of the same 90% give 1.684 (four letters) and 1.562 (five).
Then SFT has it answer one speech with the next. Labels are what the loss asks a token to be predicted as, apart from what is read: those
of prompts must not matter, so SFT's gradient is taken again with other ones, and the model reads the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import bridle
from bridle.api.models import Model, new_engine
from bridle.core.records import FinishReason, Prompt
from bridle.evaluation.answers import answer_all
from bridle.maths.logprobs import linear_logprobs
from bridle.models.imitation import Example, imitate
from bridle.models.policy import Policy
from experiments.harness import Claim, Experiment, Row
from experiments.playground import lab_folder

LETTERS = {
    "vocab_size": 259
}  # bytes alone, each a letter, and three tokens that are none; the shape is the playground's
ROW = 256  # letters that are read at once
READ = 3_000_000  # letters, the text three times over
TOLD = 60_000  # letters of the last tenth that the loss is told of
SPEECH = 120  # letters of the longest speech that is a prompt or an answer
ROOM = 256  # letters that an answer has room for
IMITATED = {"epochs": 2}


def play() -> tuple[str, str]:
    """The text's first 90%, and the rest."""
    text = (Path(os.environ["BRIDLE_DATA"]) / "tinyshakespeare/input.txt").read_text("ascii")
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def dialogue(text: str) -> list[tuple[str, str]]:
    """Speeches and what is said to each, of those that are short; a line of it is the speaker's name."""
    speeches = [speech.strip() for speech in text.split("\n\n")]
    return [
        (said, answer)
        for said, answer in zip(speeches, speeches[1:], strict=False)
        if 0 < len(said) <= SPEECH and 0 < len(answer) <= SPEECH
    ]


@torch.no_grad()
def nats_a_letter(policy: Policy, text: str, row: int = ROW) -> float:
    """Mean of -log p of each letter, given those of its row before it: every letter's is taken once, where it has half a row or more
    before it, but for the first half row. Letters that fill no half row at the end are left out."""
    ids_N = torch.tensor(policy.template.document_ids([text])[0][:-1])
    total, letters = 0.0, 0
    for number, ids_RT in enumerate(ids_N.unfold(0, row + 1, row // 2).split(32)):
        hidden_RTD = policy.module.hidden(ids_RT[:, :-1])
        logp_N = linear_logprobs(hidden_RTD.flatten(0, 1), policy.module.output_weight(), ids_RT[:, 1:].flatten())
        logp_RT = logp_N.view(len(ids_RT), row)
        first = logp_RT[0, : row // 2] if number == 0 else logp_RT[0, :0]
        total -= float(first.sum() + logp_RT[:, row // 2 :].sum())
        letters += len(first) + logp_RT[:, row // 2 :].numel()
    return total / letters


def label_gradient(model: Model, examples: Sequence[Example], read: list[Tensor]) -> Tensor:
    """The gradient of SFT's loss on examples, flat. What the trunk read is kept in `read`; where that is full, it reads what stands there,
    so that the examples give the labels alone."""
    module, fill = model.policy.module, not read

    def reader(trunk: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if fill:
            read.append(given[0])
        return (read[0], *given[1:])

    module.zero_grad()
    hook = module.model.register_forward_pre_hook(reader)
    imitate(model.policy, examples, model.device)
    hook.remove()
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])
    module.zero_grad()
    return gradient


def label_changes(model: Model, dialogues: Sequence[tuple[str, str]]) -> dict[str, float]:
    """How much the gradient changes with other labels of prompts, and with other labels of answers, as a share of its size."""
    template = model.policy.template
    prompts = [Prompt.from_text(said) for said, _ in dialogues]
    asked, answers = template.prompt_ids(prompts), template.completion_ids(prompts, [answer for _, answer in dialogues])

    def others(rows: list[list[int]]) -> list[list[int]]:
        return [[(token + 1) % LETTERS["vocab_size"] for token in row] for row in rows]

    read: list[Tensor] = []
    plain = label_gradient(model, list(zip(asked, answers, strict=True)), read)
    of_prompts = label_gradient(model, list(zip(others(asked), answers, strict=True)), read)
    of_answers = label_gradient(model, list(zip(asked, others(answers), strict=True)), read)
    size = float(plain.norm())
    return {
        "prompt labels": float((of_prompts - plain).norm()) / size,
        "answer labels": float((of_answers - plain).norm()) / size,
    }


def stops(model: Model, prompts: Sequence[str], seed: int) -> float:
    """Share of answers that the model ends itself, at temperature 1."""
    asked = [Prompt.from_text(said) for said in prompts]
    answered = answer_all(model.policy, new_engine(model.device), asked, ROOM, seed)
    return sum(one.finish_reason is FinishReason.STOP for one in answered.completions) / len(asked)


def measure(seed: int, letters: int = READ, answers: int = 4096, asked: int = 512) -> Row:
    """Of so many letters read, so many answers imitated and so many prompts answered."""
    (seen, unseen), folder, began = play(), lab_folder() / f"shakespeare-{seed}", time.process_time()
    model = bridle.pretrain([seen], tokens=letters, seed=seed, folder=folder / "pretrain", length=ROW, **LETTERS)
    row = {
        "nats": nats_a_letter(model.policy, unseen[:TOLD]),
        "nats, last tenth": nats_a_letter(model.policy, unseen),
        "nats, seen": nats_a_letter(model.policy, seen[:TOLD]),
        "minutes": (time.process_time() - began) / 60,
    }
    prompts = [said for said, _ in dialogue(unseen)][:asked]
    row |= {"stops before SFT": stops(model, prompts, seed), **label_changes(model, dialogue(seen)[:16])}
    bridle.sft(model, dialogue(seen)[:answers], seed=seed, folder=folder / "sft", **IMITATED)
    return row | {"stops": stops(model, prompts, seed), "prompts": float(len(prompts))}


EXPERIMENT = Experiment(
    name="E1",
    title="a language model learns to write, to answer and to stop",
    setting=f"Tinyshakespeare by letters. Pretraining on {READ / 1e6:g} million letters of the first 90% (three times over), then SFT "
    f"on pairs of short speeches. Loss in nats a letter on the first {TOLD:,} letters of the last tenth; stops: share of answers to "
    f"unseen speeches that the model ends itself within {ROOM} letters, at temperature 1. Labels: how much SFT's gradient changes, as "
    "a share of its size, with other labels and the same text read.",
    measure=measure,
    seeds=range(3),
    claims=[
        Claim("nats", "loss on unseen text, nats a letter: counts of four letters give 1.684", "every", at_most=1.68),
        Claim("stops", "answers that the model ends itself after SFT", "every", at_least=0.95),
        Claim("prompt labels", "change of SFT's gradient with other labels of the prompts", "every", at_most=0),
        Claim("nats", "the same loss beside the aim, 1.56, which counts of five letters give"),
        Claim("nats, last tenth", "loss on all of the last tenth"),
        Claim("nats, seen", "loss on text that it learnt from"),
        Claim("minutes", "processor minutes of pretraining"),
        Claim("prompts", "unseen speeches that were answered"),
    ],
    controls=[
        Claim("answer labels", "change of SFT's gradient with other labels of the answers", "every", at_least=0.1),
        Claim("stops before SFT", "answers that the model ends itself before SFT", "every", at_most=0.5),
    ],
)  # fmt: skip
