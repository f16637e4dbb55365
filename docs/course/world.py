"""A world small enough to write down whole, so that every lesson knows what is right.

Somebody says "My cat is bored." An answer is some of four words and a stop; an answer that has no stop after `longest` tokens is cut
off. With `longest` 3 there are 85 answers. A model, or policy, is a table: one row of logits for each beginning of an answer, one
logit for each token that may come next. So it can hold any probabilities whatever, and a mean over all answers is a sum: exact, with
no sampling. The worlds of two seeds differ in what the untrained model says and in how good each answer is.

Shapes: A answers, L places of an answer, S beginnings, V tokens.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = ("play", "feed", "sleep", "lovely", ".")
PLAY, FEED, SLEEP, LOVELY, STOP = range(5)


class World:
    """`reference_SV` is the table of the model before training, `gold_A` how good each answer truly is, which in life nobody knows."""

    def __init__(self, seed: int = 0, longest: int = 3) -> None:
        begun = [y for length in range(longest) for y in itertools.product(range(STOP), repeat=length)]
        self.answers = [(*y, STOP) for y in begun] + list(itertools.product(range(STOP), repeat=longest))
        number = {y: row for row, y in enumerate(begun)}
        padding = [(0,) * (longest - len(y)) for y in self.answers]
        self.ids_AL = torch.tensor([(*y, *pad) for y, pad in zip(self.answers, padding, strict=True)])
        self.mask_AL = torch.arange(longest) < torch.tensor([len(y) for y in self.answers])[:, None]
        rows = [[number.get(y[:place], 0) for place in range(longest)] for y in self.answers]
        self.cell_AL = torch.tensor(rows) * len(WORDS) + self.ids_AL  # where in the table each token's logit stands

        self.draws = torch.Generator().manual_seed(seed)
        self.reference_SV = 0.5 * torch.randn(len(begun), len(WORDS), generator=self.draws)
        self.reference_SV[:, LOVELY] -= 1  # people rarely flatter
        self.count_AV = (F.one_hot(self.ids_AL, len(WORDS)) * self.mask_AL[:, :, None]).sum(1).double()
        self.gold_A = self._gold() + 0.1 * torch.randn(len(self.answers), generator=self.draws)

    def _gold(self) -> Tensor:
        """Play once, feed once, one kind word; more of it is too much, and an answer should end."""
        first_AV = self.count_AV.clamp(max=1)
        more_AV = self.count_AV - first_AV
        good_A = first_AV[:, PLAY] + 0.7 * first_AV[:, FEED] + 0.4 * first_AV[:, LOVELY]
        too_much_A = 0.4 * more_AV[:, PLAY] + 0.6 * more_AV[:, FEED] + 0.8 * more_AV[:, LOVELY]
        return good_A - too_much_A - (1 - self.count_AV[:, STOP])

    def token_logp(self, table_SV: Tensor) -> Tensor:
        """log-prob of every token of every answer given those before it, [A, L]; 0 behind an answer's end."""
        return torch.where(self.mask_AL, table_SV.log_softmax(1).flatten()[self.cell_AL], 0.0)

    def logp(self, table_SV: Tensor) -> Tensor:
        """log-prob of every answer, [A]: the sum of its tokens'."""
        return self.token_logp(table_SV).sum(1)

    def sample(self, logp_A: Tensor, count: int) -> Tensor:
        """Numbers of answers drawn from a policy, [count]."""
        return torch.multinomial(logp_A.exp(), count, replacement=True, generator=self.draws)

    def say(self, answer: int) -> str:
        return " ".join(WORDS[token] for token in self.answers[answer])


def kl(logp_A: Tensor, other_A: Tensor) -> float:
    """KL(p‖q) = Σ p (log p − log q), in nats."""
    return float((logp_A.exp() * (logp_A - other_A)).sum())


def optimum(reference_A: Tensor, reward_A: Tensor, beta: float) -> Tensor:
    """log π* = log π_ref + r / β − log Z: nothing has a higher E[r] − β KL(π‖π_ref) (Rafailov 2023, eq. 4)."""
    return (reference_A + reward_A / beta).log_softmax(0)


class Adam:
    """One tensor, led down a loss (Kingma and Ba 2015). As torch.optim.Adam, which takes longer to load than a lesson to run."""

    def __init__(self, start: Tensor) -> None:
        self.at = start.clone().requires_grad_()
        self.mean, self.square, self.steps = torch.zeros_like(start), torch.zeros_like(start), 0

    def step(self, loss: Tensor, rate: float) -> None:
        (gradient,) = torch.autograd.grad(loss, self.at)
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.99 * self.square + 0.01 * gradient.square()
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.99**self.steps)
        self.at = (self.at - rate * mean / (square.sqrt() + 1e-12)).detach().requires_grad_()


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 300, rate: float = 0.15) -> Tensor:
    """Where a smooth loss of some numbers is least, by Adam at a rate that falls to 0."""
    adam = Adam(start)
    for step in range(steps):
        adam.step(loss(adam.at), rate * (1 - step / steps))
    return adam.at.detach()
