"""Lesson 1: the loss of a language model.

Run: python docs/course/lesson_1.py

WHAT IT IS FOR. A language model reads some tokens (words, or pieces of words) and gives a probability to
each token that may come next. All of its knowledge is learnt from one question, asked again and again: how
likely did you think the token was that really came? The loss is the logarithm of that probability with its
sign turned, so it is 0 for a token that the model was sure of, and large for one that it thought unlikely.
Everything in this course is built on these log-probs (logarithms of probabilities).

The mean loss is in nats a token. Its exponential is called perplexity: a model of perplexity 5 is as unsure
as if it had to choose among 5 equally likely tokens. A model that knows nothing of a vocabulary of V tokens
has perplexity V. No model can have a lower mean loss than the entropy of the texts themselves: what is
random in them cannot be foretold.

THE EQUATION. For a text of tokens a_1 … a_T, of which the first is given,

    loss = − 1/(T−1) · Σ_{t=1}^{T−1} log p(a_{t+1} | a_1 … a_t),        p = softmax(logits)

(Shannon 1951 measured English so; Bengio and others, "A neural probabilistic language model", 2003, trained
a network by it.) A model is given all T tokens at once and returns T rows of logits. Row t was made from
the tokens up to and including t, so it speaks of token t + 1. The last row speaks of a token that is not
there.

YOUR TASK. Fill in `next_token_loss`. Names end in their shape: `logits_TV` has T rows and V columns.

TO THINK ABOUT.

1. What does a model lose that gives probability 0 to a token that comes? What does that mean for a model
   that is to be honest about what it does not know?
2. Your loss is a mean over tokens. Two texts of 10 and 1000 tokens are learnt from together. Is the mean
   over all 1010 tokens the same as the mean of the two texts' losses, and which would you take?
"""

import math
from collections.abc import Iterator

import torch
from checking import Function, ask, bars, near, need, run
from torch import Tensor
from world import STOP, WORDS, World


def next_token_loss(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    """The mean loss of a text of T tokens, in nats: one number. `ids_T` holds the number of each token, from 0 to V − 1."""
    raise NotImplementedError


def text_and_logits(world: World, table_SV: Tensor, answer: int) -> tuple[Tensor, Tensor]:
    """An answer behind the stop of the sentence before, and the row of the table that speaks of what follows each token."""
    length = int(world.mask_AL[answer].sum())
    ids_T = torch.tensor([STOP, *world.ids_AL[answer, :length]])
    behind_the_end_1V = torch.linspace(-2, 2, len(WORDS))[None]  # a model has something to say there too; nobody asks
    return torch.cat([table_SV[world.cell_AL[answer, :length] // len(WORDS)], behind_the_end_1V]), ids_T


def check_value(loss: Function, ids_T: Tensor) -> Iterator[str]:
    V = len(WORDS)
    nothing_TV = torch.zeros(5, V)
    got = float(ask(loss, nothing_TV, ids_T, shape=()))
    need(
        near(float(ask(loss, nothing_TV + 2, ids_T, shape=())), got),
        "Two is added to every logit, which changes no probability, and your loss changes. Turn logits into log-probs first: "
        "log_softmax.",
    )
    need(
        not near(got, -math.log(V)),
        f"Your loss is {got:.3f} for a model that knows nothing, below 0: a loss is −log p. Is the sign right?",
    )
    need(
        not near(got, 4 * math.log(V)),
        "Your loss is four times too large for a text with four tokens to foretell: take the mean, not the sum.",
    )
    need(not near(got, 0.8 * math.log(V)), "Five tokens have only four next ones: divide by T − 1, not by T.")
    need(
        near(got, math.log(V)),
        f"A model that knows nothing gives each of {V} tokens the probability 1/{V}, so it should lose log {V} = "
        f"{math.log(V):.3f} nats; yours loses {got:.3f}. Is the logarithm the natural one?",
    )
    yield f"a model that knows nothing loses log {V} = {got:.3f} nats a token, perplexity {math.exp(got):.1f}"


def check_shift(loss: Function, ids_T: Tensor) -> Iterator[str]:
    repeats_TV = 30 * torch.eye(len(WORDS))[ids_T]
    foretells_TV = repeats_TV.roll(-1, 0)
    need(
        float(ask(loss, repeats_TV, ids_T, shape=())) > 1,
        "A model that only repeats the token that it has just read loses nothing by your loss. Row t speaks of token t + 1: "
        "shift one of the two by one place.",
    )
    need(
        float(ask(loss, foretells_TV, ids_T, shape=())) < 1e-6,
        "A model that is sure of each next token, and right, should lose nothing. Row t speaks of token t + 1: compare "
        "logits_TV[:-1] with the tokens from the second on.",
    )
    yield "row t is compared with token t + 1"


def check_exactly(loss: Function, world: World) -> Iterator[str]:
    """All texts of the world: what your loss says of each, made a probability again, is that of the text."""
    probability, expected = 0.0, 0.0
    for answer, logp in enumerate(world.logp(world.reference_SV).tolist()):
        logits_TV, ids_T = text_and_logits(world, world.reference_SV, answer)
        nats = float(ask(loss, logits_TV, ids_T, shape=())) * (len(ids_T) - 1)
        need(
            near(nats, -logp),
            f"Of “{world.say(answer)}” your loss makes a probability of {math.exp(-nats):.4f}; it is {math.exp(logp):.4f}.",
        )
        probability, expected = probability + math.exp(-nats), expected + math.exp(logp) * nats
    yield f"by your loss the probabilities of all {len(world.answers)} texts of this world add up to {probability:.6f}"
    yield f"a text holds {expected:.3f} nats on average, the entropy of this world: no model can lose less"


def check(loss: Function, seed: int) -> Iterator[str]:
    ids_T = torch.tensor([STOP, 0, 1, 2, STOP])
    yield from check_value(loss, ids_T)
    yield from check_shift(loss, ids_T)
    yield from check_exactly(loss, World(seed))


def picture(loss: Function, seed: int) -> str:
    world = World(seed)
    share_A = world.logp(world.reference_SV).exp()
    count_V = (share_A[:, None] * world.count_AV).sum(0)
    tables = {
        "knows nothing": torch.zeros_like(world.reference_SV),
        "knows how frequent each word is": count_V.log().expand_as(world.reference_SV),
        "knows the words before as well": world.reference_SV,
    }
    perplexity = {}
    for name, table_SV in tables.items():
        texts = [text_and_logits(world, table_SV, answer) for answer in range(len(world.answers))]
        nats = sum(float(share_A[n] * loss(*text) * (len(text[1]) - 1)) for n, text in enumerate(texts))
        perplexity[name] = math.exp(nats / float(count_V.sum()))
    return "Perplexity of three models:\n" + bars(perplexity)


if __name__ == "__main__":
    run(next_token_loss, check, picture)
