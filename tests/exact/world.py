"""A world small enough to write down: four symbols and a stop, answers of at most three tokens, three prompts of one to three tokens.

Policy and critic are tables with a row for every text that can stand before a token, so they can represent every answer's
probability exactly; 85 answers to each prompt are enumerated. What a trainer should reach is then known to the last digit:
π* = π_ref exp(r / β) / Z (Rafailov 2023, eq. 4). Trainers, losses, batches and the critic are bridle's own; only the network
and the decoding are tables. Tokens: symbols 0 to 3, stop 4. The pad is symbol 0, so that a mask that asks for ids would fail.
Shapes: S states (texts), V tokens, A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bridle.core.records import Completion, FinishReason, Prompt
from bridle.generation.engine import Answer
from bridle.generation.rollout import RolloutSession
from bridle.generation.sampling import Sampling, draw, uniforms
from bridle.maths.logprobs import linear_logprobs
from bridle.models.batches import Group
from bridle.models.policy import Policy
from bridle.models.scorer import Scorer
from bridle.project.run import Run
from tests.training.runs import DEVICE

SYMBOLS, STOP, LONGEST = 4, 4, 3
TOKENS = SYMBOLS + 1
PROMPT_IDS = [[0], [1, 2], [2, 3, 1]]
PROMPTS = [Prompt.from_text(" ".join(map(str, ids))) for ids in PROMPT_IDS]
CUT_OFF_COSTS = 0.4

Ids = tuple[int, ...]


def all_answers(longest: int = LONGEST) -> list[Ids]:
    """Every answer: those that end in a stop, and those of `longest` symbols that were cut off."""
    open_ones: list[Ids] = [()]
    found: list[Ids] = []
    for _ in range(longest):
        found += [(*ids, STOP) for ids in open_ones]
        open_ones = [(*ids, symbol) for ids in open_ones for symbol in range(SYMBOLS)]
    return found + open_ones


ANSWERS = all_answers()
STATES: dict[Ids, int] = {}
for prompt in PROMPT_IDS:
    for ids in ANSWERS:
        whole = (*prompt, *ids)
        for end in range(1, len(whole)):
            STATES.setdefault(whole[:end], len(STATES))
NOWHERE = len(STATES)  # behind the last token, and in the padding
NEXT = torch.full((NOWHERE + 1, TOKENS), NOWHERE)
for text, number in STATES.items():
    for token in range(TOKENS):
        NEXT[number, token] = STATES.get((*text, token), NOWHERE)
PLACE = torch.eye(NOWHERE + 1, NOWHERE, dtype=torch.float64)
FIRST = torch.tensor([STATES.get((token,), NOWHERE) for token in range(TOKENS)])


@dataclass(frozen=True)
class TableConfig:
    hidden_size: int = NOWHERE


class TableTrunk(nn.Module):
    """Token ids [B, T] → which text stands there, [B, T, S], one 1 in each row; zeros where no token can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.config = TableConfig()

    def forward(self, ids_BT: Tensor) -> Tensor:
        states = [FIRST[ids_BT[:, 0]]]
        for t in range(1, ids_BT.shape[1]):
            states.append(NEXT[states[-1], ids_BT[:, t]])
        return PLACE[torch.stack(states, 1)]


class Table(nn.Module):
    """A policy with the interface of a language model: one logit for each text and each token after it."""

    def __init__(self, logits_VS: Tensor) -> None:
        super().__init__()
        self.model = TableTrunk()
        self.config = SimpleNamespace(max_positions=LONGEST + max(map(len, PROMPT_IDS)))
        self.weight = nn.Parameter(logits_VS.clone())

    def hidden(self, ids_BT: Tensor) -> Tensor:
        found: Tensor = self.model(ids_BT)
        return found

    def output_weight(self) -> Tensor:
        return self.weight

    def logprobs(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
        return linear_logprobs(hidden_ND, self.weight, targets_N, temperature)


class TableTemplate:
    """What trainers ask of a template: ids of prompts, text of answers, the stop and the pad."""

    pad_id, eos_id, stop_ids = 0, STOP, frozenset({STOP})

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [[int(word) for word in prompt.text.split()] for prompt in prompts]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(map(str, ids)) for ids in rows]


def practising(run: Run, seed: int = 0) -> RolloutSession:
    """What a loop gets besides, with answers from the tables."""
    return RolloutSession(run, DEVICE, seed, TableEngine(), LONGEST)  # type: ignore[arg-type]


class TableEngine:
    """Answers by drawing from the table itself, with the interface of `Engine`."""

    def load(self, policy: Policy) -> None:
        self.stamp, self.logits_SV = policy.stamp, policy.module.output_weight().detach().T.clone()

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: Sampling, *, stamp: str, seed: int, samples: Any = None,
        progress: Any = None,
    ) -> list[Answer]:  # fmt: skip
        assert stamp == self.stamp, "the engine was not loaded after the last step"
        state_B = torch.tensor([STATES[tuple(ids)] for ids in prompts])
        number_B = torch.arange(len(prompts)) if samples is None else torch.tensor(list(samples))
        columns = []
        for position in range(settings.max_new_tokens):
            row_B = state_B.clamp(max=NOWHERE - 1)  # what an answer that has ended would draw is thrown away
            logits_BV = self.logits_SV[row_B]
            token_B, logp_B = draw(logits_BV, settings, uniforms(seed, number_B, torch.full_like(state_B, position)))
            columns.append((token_B.tolist(), logp_B.tolist()))
            state_B = NEXT[state_B, token_B]
        found = []
        for row in range(len(prompts)):
            ids = [tokens[row] for tokens, _ in columns]
            length = ids.index(STOP) + 1 if STOP in ids else len(ids)
            reason = FinishReason.STOP if STOP in ids else FinishReason.LENGTH
            found.append(Answer(ids[:length], [logps[row] for _, logps in columns][:length], reason))
        return found


# ------------------------------------------------------------------------------------------------- what is known


@dataclass(frozen=True)
class World:
    """A reference's logits [V, S] and the points of every answer to every prompt, {(prompt, answer): points}."""

    reference_VS: Tensor
    points: dict[tuple[Ids, Ids], float]

    @classmethod
    def made(cls, seed: int = 0) -> World:
        """A lively reference; points that depend on tokens, places and pairs, so no token is good everywhere."""
        generator = torch.Generator().manual_seed(seed)
        reference = 0.7 * torch.randn(TOKENS, NOWHERE, generator=generator, dtype=torch.float64)
        points = {}
        for prompt in PROMPT_IDS:
            by_place = torch.randn(LONGEST, TOKENS, generator=generator)
            for ids in ANSWERS:
                own = float(torch.randn((), generator=generator))
                placed = sum(float(by_place[place, token]) for place, token in enumerate(ids)) / len(ids)
                points[tuple(prompt), ids] = 0.7 * placed + 0.4 * own + 0.5
        return cls(reference, points)

    def policy(self, name: str = "table") -> Policy:
        return Policy(Table(self.reference_VS), TableTemplate(), name.ljust(16, "."))  # type: ignore[arg-type]

    def reward(
        self, cut_off_costs: float = 0.0
    ) -> Callable[[Sequence[Prompt], Sequence[Completion]], list[float | None]]:
        def score(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
            asked = TableTemplate().prompt_ids(prompts)
            return [
                self.points[tuple(ids), c.token_ids] - cut_off_costs * (c.finish_reason is FinishReason.LENGTH)
                for ids, c in zip(asked, completions, strict=True)
            ]

        return score

    def worth_A(self, prompt: Sequence[int]) -> Tensor:
        """r of every answer, what being cut off costs taken off."""
        return torch.tensor(
            [self.points[tuple(prompt), ids] - CUT_OFF_COSTS * (STOP not in ids) for ids in ANSWERS],
            dtype=torch.float64,
        )

    def best_A(self, prompt: Sequence[int], beta: float) -> Tensor:
        """log π* = log π_ref + r / β - log Z."""
        return (answer_logp_A(self.reference_VS, prompt) + self.worth_A(prompt) / beta).log_softmax(0)

    def groups(self) -> list[Group]:
        """Every prompt with every answer and every pair, each way round, weighed by how often it is preferred so."""
        found = []
        for prompt in PROMPT_IDS:
            worth = self.worth_A(prompt)
            wins_AA = torch.sigmoid(worth[:, None] - worth[None, :]).tolist()
            pairs = [(i, j, wins_AA[i][j]) for i in range(len(worth)) for j in range(len(worth)) if i != j]
            found.append(Group(prompt, [list(ids) for ids in ANSWERS], pairs))
        return found


def answer_logp_A(logits_VS: Tensor, prompt: Sequence[int], temperature: float = 1.0) -> Tensor:
    """log π of every answer, by walking the table: nothing of bridle's is used."""
    logp_VS = (logits_VS / temperature).log_softmax(0)
    found = []
    for ids in ANSWERS:
        before = [STATES[(*prompt, *ids[:n])] for n in range(len(ids))]
        found.append(sum(logp_VS[token, state] for token, state in zip(ids, before, strict=True)))
    return torch.stack(found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Distance:
    """Means over the prompts: expected reward of a policy and of π*, KL(π‖π*) and KL(π*‖π_ref) in nats an answer."""

    reward: float
    best_reward: float
    kl: float
    best_kl: float

    @property
    def reward_error(self) -> float:
        return abs(self.reward - self.best_reward) / abs(self.best_reward)


@torch.no_grad()
def distance(world: World, policy: Policy, beta: float) -> Distance:
    """By enumeration, no sampling."""
    rows = []
    for prompt in PROMPT_IDS:
        ours, best = answer_logp_A(policy.module.output_weight(), prompt), world.best_A(prompt, beta)
        reference, worth = answer_logp_A(world.reference_VS, prompt), world.worth_A(prompt)
        rows.append(
            [
                ours.exp() @ worth,
                best.exp() @ worth,
                ours.exp() @ (ours - best),
                best.exp() @ (best - reference),
            ]
        )
    return Distance(*torch.tensor(rows).mean(0).tolist())


def critic() -> Scorer:
    """A table of values that begins at 0."""
    scorer = Scorer(TableTrunk()).double()  # type: ignore[arg-type]
    nn.init.zeros_(scorer.score.weight)
    return scorer
