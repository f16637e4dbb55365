"""Lesson 2: imitation, or which tokens count.

Run: python docs/course/lesson_2.py

WHAT IT IS FOR. A model that has read much text continues text; it does not yet answer. Supervised
fine-tuning (SFT) shows it questions with good answers and trains it, by the loss of lesson 1, to write such
answers. It is the first step of RLHF: all later steps begin from the model that SFT leaves, and are held
near it.

What is easily got wrong is which tokens count. Those of the prompt do not: the model is to answer
questions, not to ask them. The stop token at the answer's end does: a model that never learnt to stop will
never stop. And the rows of a batch have different lengths, so the short ones are filled up with padding,
which is not text and must not count. Such errors raise no exception. The loss falls all the same, and the
model is a little worse for reasons that nobody finds.

THE EQUATION. Over all answer tokens a_t of all rows of the batch, N in number, the stop tokens among them,

    loss = − 1/N · Σ log π(a_t | prompt, a_1 … a_{t−1})

(Ouyang and others 2022, "Training language models to follow instructions with human feedback",
arxiv.org/abs/2203.02155, step 1.) Least is this loss where the model gives every answer as often as the
demonstrations do.

YOUR TASK. Fill in `sft_loss`. A row of the batch is prompt, answer (the stop is its last token), padding.
Column t of `logp_BT` holds the log-prob of token t + 1 (lesson 1: row t speaks of token t + 1), t counted
from 0. So with two tokens of prompt and three of answer

    token     0        1        2        3        4        5        6
              prompt   prompt   answer   answer   stop     padding  padding
    column             0        1        2        3        4        5           column t speaks of token t + 1

TO THINK ABOUT.

1. Why not let the prompt count too: are its tokens not text to learn from?
2. The demonstrations are of uneven skill: some answer well, some badly. What does a perfect imitator
   answer, and what does that say about where SFT alone can lead?
"""

from collections.abc import Iterator

import torch
from checking import Function, ask, bars, near, need, run, slopes
from torch import Tensor
from world import STOP, World, minimise, optimum


def sft_loss(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    """The mean loss of all answer tokens of the batch, one number.

    Row b has `prompt_B[b]` tokens of prompt, then `answer_B[b]` tokens of answer.
    """
    raise NotImplementedError


def expected_mask(prompt_B: Tensor, answer_B: Tensor, columns: int) -> Tensor:
    """Found one by one, slowly, from the picture above."""
    rows = []
    for prompt, answer in zip(prompt_B.tolist(), answer_B.tolist(), strict=True):
        kinds = (["prompt"] * prompt + ["answer"] * answer + ["padding"] * columns)[: columns + 1]
        rows.append([kind == "answer" for kind in kinds[1:]])
    return torch.tensor(rows)


def demonstrations(world: World) -> Tensor:
    """How often each of 200 good answers was written, [A]."""
    good_A = optimum(world.logp(world.reference_SV), world.gold_A, 0.3)
    return torch.bincount(world.sample(good_A, 200), minlength=len(good_A)).double()


def imitate(loss: Function, world: World, count_A: Tensor) -> Tensor:
    """The table that your loss makes of the demonstrations: one row for each, each behind a prompt of two tokens."""
    row_B = torch.arange(len(count_A)).repeat_interleave(count_A.long())
    prompt_B, answer_B = torch.full_like(row_B, 2), world.mask_AL[row_B].sum(1)
    prompt_logp_B1 = torch.full((len(row_B), 1), -1.0)

    def batch_loss(table_SV: Tensor) -> Tensor:
        logp_BT = torch.cat([prompt_logp_B1, world.token_logp(table_SV)[row_B]], 1)
        held = 1e-6 * table_SV.square().sum()  # a logit that no demonstration asks for stays finite
        return ask(loss, logp_BT, prompt_B, answer_B, shape=()) + held

    return minimise(batch_loss, torch.zeros_like(world.reference_SV))


PROMPT_B, ANSWER_B, COLUMNS = torch.tensor([2, 1, 4, 1]), torch.tensor([3, 5, 1, 1]), 6


def check_mask(counted_BT: Tensor) -> Iterator[str]:
    """`counted_BT`: on which log-probs your loss depends."""
    column_T, first_B1, last_B1 = torch.arange(COLUMNS), PROMPT_B[:, None] - 1, (PROMPT_B + ANSWER_B)[:, None] - 2
    right_BT = expected_mask(PROMPT_B, ANSWER_B, COLUMNS)
    for name, shift in (("early", -1), ("late", 1)):
        need(
            not counted_BT.equal(expected_mask(PROMPT_B + shift, ANSWER_B, COLUMNS)),
            f"Your mask is one column too {name}. Column t speaks of token t + 1, so an answer that begins at token 2 begins at "
            "column 1.",
        )
    need(
        not (counted_BT & (column_T < first_B1)).any(),
        "Tokens of the prompt count in your loss: the model would learn to ask, not to answer.",
    )
    need(
        not (counted_BT & (column_T > last_B1)).any(),
        "Padding counts in your loss: what stands behind the stop token is not text.",
    )
    need(
        (counted_BT & (column_T == last_B1)).any(),
        "The last token of an answer, its stop, does not count in your loss: the model would never learn to stop.",
    )
    need(
        (counted_BT & (column_T == first_B1)).any(),
        "The first token of an answer does not count in your loss. Column t speaks of token t + 1: an answer that begins at token 2 "
        "begins at column 1.",
    )
    need(counted_BT.equal(right_BT), f"Not all tokens of all answers count: these do, {counted_BT.long().tolist()}.")
    yield "answer and stop count, prompt and padding do not"


def check_weights(slope_N: Tensor, columns: int) -> Iterator[str]:
    """`slope_N`: how your loss changes with each log-prob that counts."""
    N = len(slope_N)
    need(
        not near(slope_N, -1.0),
        "Your loss is a sum, so a larger batch would take larger steps: divide by the number of tokens that count.",
    )
    need(
        not near(slope_N, -1 / columns),
        "You divide by all columns, prompt and padding among them: divide by the number of tokens that count.",
    )
    need(
        near(slope_N, slope_N.mean()),
        "Tokens of short answers weigh more than those of long ones: you take a mean of the rows' means. Sum over all tokens that "
        "count, and divide once.",
    )
    need(near(slope_N, -1 / N), f"{N} tokens count, so each should weigh 1/{N}; yours weigh {-float(slope_N[0]):.3f}.")
    yield "every token weighs the same, in whatever row it stands"


def check(loss: Function, seed: int) -> Iterator[str]:
    world = World(seed)
    logp_BT = -torch.rand(len(PROMPT_B), COLUMNS, generator=world.draws) - 0.1
    slope_BT = slopes(loss, logp_BT, PROMPT_B, ANSWER_B)
    need((slope_BT != 0).any(), "No token counts at all: nothing would be learnt.")
    need(
        (slope_BT <= 0).all(),
        "Your loss rises when an answer becomes more likely, so training would unlearn it. Is the sign right?",
    )
    yield from check_mask(slope_BT != 0)
    yield from check_weights(slope_BT[slope_BT != 0], logp_BT.numel())

    count_A = demonstrations(world)
    learnt_A = world.logp(imitate(loss, world, count_A)).exp()
    error = float((learnt_A - count_A / count_A.sum()).abs().max())
    need(
        error < 0.005,
        f"After imitation the model should give each answer as often as the demonstrations do; one is off by {error:.3f}.",
    )
    yield f"after imitation the model answers as the demonstrations do (largest difference {error:.4f})"


def picture(loss: Function, seed: int) -> str:
    world = World(seed)
    before_A = world.logp(world.reference_SV).exp()
    after_A = world.logp(imitate(loss, world, demonstrations(world))).exp()
    ends_A = (world.count_AV[:, STOP] > 0).double()
    shares = {}
    for answer in after_A.topk(5).indices.tolist():
        shares[f"{world.say(answer):<20} before"] = float(before_A[answer])
        shares[f"{world.say(answer):<20} after"] = float(after_A[answer])
    lines = ["How often an answer is given, before imitation and after:", bars(shares)]
    lines.append(f"Answers that end in a stop: {before_A @ ends_A:.2f} before, {after_A @ ends_A:.2f} after.")
    lines.append(
        f"True quality, on average: {before_A @ world.gold_A:+.2f} before, {after_A @ world.gold_A:+.2f} after."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run(sft_loss, check, picture)
