"""From token ids to tensors: padding on the right, masks from lengths (never from ids), log-probs at the taken tokens.

Shapes: B sequences, T = width - 1 predictions. Column t holds what concerns the token at position t + 1: its log-prob,
its mask, the value of the state just before it. So every [B, T] tensor of a batch lines up with every other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bridle.compute.randomness import shuffled
from bridle.core.timeline import note_tokens
from bridle.models.decoder import Trunk
from bridle.models.foreign import ForeignTrunk, LanguageModel

REWARD = "reward"  # the task of a reward model that has one
Size = tuple[int, int, int]  # of a sequence: the number of its prompt, the prompt's tokens, all of them
WIDEST = 1024  # where several answers share a row: without the C kernels attention grows with the square of the width


@dataclass(frozen=True)
class Batch:
    """Prompts with their completions. Example with pad 0, prompt [5, 6], completion [7, 1]: ids [5, 6, 7, 1, 0],
    mask [F, T, T, F]: the predictions of 7 and of the stop token 1 count, those of 6 and of the padding do not."""

    ids_BW: Tensor
    prompt_lengths_B: Tensor
    lengths_B: Tensor
    prompt_B: Tensor  # rows of equal number have the same prompt

    @property
    def mask_BT(self) -> Tensor:
        t = torch.arange(self.ids_BW.shape[1] - 1, device=self.ids_BW.device)
        return (t >= self.prompt_lengths_B[:, None] - 1) & (t < self.lengths_B[:, None] - 1)

    def rows(self, index: Tensor) -> Batch:
        """Some of the sequences, as wide as the longest of them."""
        width = int(self.lengths_B[index].max())
        return Batch(
            self.ids_BW[index, :width], self.prompt_lengths_B[index], self.lengths_B[index], self.prompt_B[index]
        )

    def __len__(self) -> int:
        return len(self.lengths_B)


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | None = None) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)


def make_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | None = None,
) -> Batch:
    joined = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    numbers: dict[tuple[int, ...], int] = {}
    return Batch(
        pad(joined, pad_id, device),
        torch.tensor([len(p) for p in prompts], device=device),
        torch.tensor([len(j) for j in joined], device=device),
        torch.tensor([numbers.setdefault(tuple(p), len(numbers)) for p in prompts], device=device),
    )


# --------------------------------------------------------------------------- a prompt read once for all its answers


@dataclass(frozen=True)
class PackedAnswers:
    """A batch with each prompt once, its answers behind it, each of which sees the prompt and itself alone.

    Rows R of width W, in the layout of `Trunk.forward`. `source`: row and place of the state that predicts each of the batch's
    masked tokens, in their order; `last`: the same for each sequence's last token.
    """

    ids_RW: Tensor
    positions_RW: Tensor
    sees_RW3: Tensor
    source: list[tuple[int, int]]
    last: list[tuple[int, int]]


def share_rows(sizes: Sequence[Size], widest: int) -> tuple[list[int], list[int]]:
    """The row of each answer and the rows' widths, where none is to be wider than that if it holds two answers."""
    row_of: dict[int, int] = {}
    rows: list[int] = []
    widths: list[int] = []
    for number, prompt, length in sizes:
        row = row_of.get(number)
        if row is None or widths[row] + length - prompt > widest:
            row = row_of[number] = len(widths)
            widths.append(prompt)
        widths[row] += length - prompt
        rows.append(row)
    return rows, widths


def shared_rows(sizes: Sequence[Size]) -> tuple[list[int], list[int]] | None:
    """The row of each answer and the rows' widths as they are packed; None where it would not pay: no prompt has two answers on the
    average.

    All rows are as wide as the widest: of the widths at which a prompt has all its answers in one row, that with the fewest
    places in all is taken.
    """
    if len(sizes) < 2 * len({number for number, _, _ in sizes}):
        return None
    lengths = [length for _, _, length in sizes]
    _, whole = share_rows(sizes, sum(lengths))
    choices = [share_rows(sizes, width) for width in {min(width, max(WIDEST, *lengths)) for width in whole}]
    return min(choices, key=lambda choice: len(choice[1]) * max(choice[1]))


def pack_answers(batch: Batch) -> PackedAnswers | None:
    """None where it would not pay."""
    sizes = batch_sizes(batch)
    if (shared := shared_rows(sizes)) is None:
        return None
    (rows, widths), ids = shared, batch.ids_BW.tolist()
    _, prompt_lengths, lengths = zip(*sizes, strict=True)
    width = max(widths)
    lines, positions, prefixes, starts = ([list[int]() for _ in widths] for _ in range(4))
    sources: list[tuple[int, int]] = []
    last: list[tuple[int, int]] = []
    for of, row in enumerate(rows):
        prompt, answer = prompt_lengths[of], lengths[of] - prompt_lengths[of]
        if not lines[row]:
            lines[row] += ids[of][:prompt]
            positions[row] += range(prompt)
            prefixes[row] += [0] * prompt
            starts[row] += [0] * prompt
        start = len(lines[row])
        lines[row] += ids[of][prompt : lengths[of]]
        positions[row] += range(prompt, lengths[of])
        prefixes[row] += [prompt] * answer
        starts[row] += [start] * answer
        sources += [(row, prompt - 1), *((row, start + i) for i in range(answer - 1))][:answer]
        last.append((row, len(lines[row]) - 1))
    device = batch.ids_BW.device
    starts = [[*row, *[len(row)] * (width - len(row))] for row in starts]  # padding sees nothing but padding
    columns = (
        pad(prefixes, 0, device),
        pad(starts, 0, device),
        torch.arange(1, width + 1, device=device).expand(len(widths), -1),
    )
    return PackedAnswers(
        pad(lines, ids[0][0], device), pad(positions, 0, device), torch.stack(columns, -1), sources, last
    )


class Network(Protocol):
    """A language model or a scorer: a trunk, and what reads it."""

    @property
    def model(self) -> Trunk | ForeignTrunk: ...

    def hidden(self, ids_BT: Tensor, *layout: Tensor | None) -> Tensor: ...


def answer_states(network: Network, batch: Batch) -> Tensor:
    """Hidden states [N, D] that predict the masked tokens, row after row. A shared prompt is read once."""
    if not isinstance(network.model, Trunk):
        hidden = network.hidden(batch.ids_BW)
        return hidden[:, :-1][batch.mask_BT]
    if (packed := pack_answers(batch)) is not None:
        return wanted_states(network, packed.source, packed.ids_RW, packed.positions_RW, packed.sees_RW3)
    return wanted_states(network, batch.mask_BT.nonzero().tolist(), batch.ids_BW)


def last_states(network: Network, batch: Batch) -> Tensor:
    """Hidden states [B, D] at each sequence's last token. A shared prompt is read once."""
    if not isinstance(network.model, Trunk):
        hidden = network.hidden(batch.ids_BW)
        return hidden[torch.arange(len(batch), device=hidden.device), batch.lengths_B - 1]
    if (packed := pack_answers(batch)) is not None:
        return wanted_states(network, packed.last, packed.ids_RW, packed.positions_RW, packed.sees_RW3)
    return wanted_states(network, [(row, n - 1) for row, n in enumerate(batch.lengths_B.tolist())], batch.ids_BW)


def wanted_states(
    network: Network,
    places: Sequence[Sequence[int]],
    ids_RW: Tensor,
    positions_RW: Tensor | None = None,
    sees_RW3: Tensor | None = None,
) -> Tensor:
    """Hidden states [N, D] at (row, place), in their order. The last layer is spared what nobody reads."""
    device, columns = ids_RW.device, [list[int]() for _ in range(len(ids_RW))]
    index = []
    for row, place in places:
        index.append((row, len(columns[row])))
        columns[row].append(place)
    kept_RQ = pad(columns, 0, device)  # what fills a short row up is not read
    hidden = network.hidden(ids_RW, positions_RW, sees_RW3, kept_RQ)
    flat_N = torch.tensor([row * kept_RQ.shape[1] + column for row, column in index], device=device)
    return hidden.flatten(0, 1).index_select(0, flat_N)


# --------------------------------------------------------------------------------------------------- log-probs


def masked_logprobs(policy: LanguageModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π of the completions' tokens alone, [N], row after row: most of a batch's logits are never made."""
    targets_N = batch.ids_BW[:, 1:][batch.mask_BT]
    note_tokens(len(targets_N))
    return policy.logprobs(answer_states(policy, batch), targets_N, temperature)


def spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Put N values back where the mask holds; zeros elsewhere."""
    return torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(mask_BT, values_N)


def sequence_logprobs(policy: LanguageModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π of each completion token, [B, T], zero off the mask."""
    return spread(masked_logprobs(policy, batch, temperature), batch.mask_BT)


def slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of `size` of similar length, shortest first: little padding, few shapes."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[s] for s in slices(len(order), size)]


def batch_sizes(batch: Batch) -> list[Size]:
    columns = (batch.prompt_B.tolist(), batch.prompt_lengths_B.tolist(), batch.lengths_B.tolist())
    return list(zip(*columns, strict=True))


def row_sizes(asked: Iterable[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> list[list[Size]]:
    """Of rows, each a prompt's ids and its answers'."""
    numbers: dict[tuple[int, ...], int] = {}
    return [
        [(numbers.setdefault(tuple(p), len(numbers)), len(p), len(p) + len(a)) for a in answers] for p, answers in asked
    ]


def tokens_read(sizes: Sequence[Size], trunk: Trunk | ForeignTrunk) -> int:
    """Tokens that a trunk reads of these sequences in one pass, padding counted."""
    shared = shared_rows(sizes) if isinstance(trunk, Trunk) else None
    widths = [length for _, _, length in sizes] if shared is None else shared[1]
    return len(widths) * max(widths)


class Cut(NamedTuple):
    """How much goes through one forward and backward pass: so many rows, and so many tokens with padding, at most; 0: no bound. A row
    that has more tokens by itself goes alone."""

    rows: int = 0
    tokens: int = 0

    def parts(
        self, rows: Sequence[int], sizes: Sequence[Sequence[Size]], trunk: Trunk | ForeignTrunk
    ) -> list[Sequence[int]]:
        """A step's rows, of the `sizes` of their sequences, in parts. A loss that divides by the step's own count is the same however it
        is cut. No rows, no parts."""
        if not self.tokens:
            return [rows[s] for s in slices(len(rows), self.rows or len(rows))] if len(rows) else []
        found: list[list[int]] = []
        held: list[Size] = []
        for row in rows:
            held = [*held, *sizes[row]]
            if not found or len(found[-1]) == self.rows or tokens_read(held, trunk) > self.tokens:
                found.append([])
                held = list(sizes[row])
            found[-1].append(row)
        return list(found)

    def answers(self, rows_NK: Tensor, batch: Batch, trunk: Trunk | ForeignTrunk) -> list[Tensor]:
        """The same of answers of a batch, by their places in it, those in a row together."""
        if not self.tokens:
            return [part.flatten() for part in rows_NK.split(self.rows or len(rows_NK))] if len(rows_NK) else []
        sizes, listed = batch_sizes(batch), rows_NK.tolist()
        found = self.parts(range(len(listed)), [[sizes[i] for i in row] for row in listed], trunk)
        return [rows_NK[list(part)].flatten() for part in found]


def micro_batches(rows: Tensor, batch: Batch, trunk: Trunk | ForeignTrunk, cut: Cut) -> list[Tensor]:
    """Some answers of a batch cut into parts of similar length: less of each part is padding."""
    lengths_B = batch.lengths_B
    sorted_N = rows[lengths_B[rows.to(lengths_B.device)].argsort(stable=True).to(rows.device)]
    return cut.answers(sorted_N[:, None], batch, trunk)


def length_batches(lengths: Sequence[int], size: int, seed: int, purpose: str, epoch: int) -> list[list[int]]:
    """A pass over all indices in batches of similar length in random order: sorted within blocks of 16 batches, then
    shuffled. Known from (seed, purpose, epoch) alone."""
    order = shuffled(len(lengths), seed, purpose, epoch).tolist()
    batches = []
    for block in slices(len(order), 16 * size):
        inside = order[block]
        batches += [[inside[j] for j in group] for group in by_length([lengths[i] for i in inside], size)]
    return [batches[i] for i in shuffled(len(batches), seed, f"{purpose}-batches", epoch).tolist()]


def length_plan(lengths: Sequence[int], size: int, epochs: int, seed: int, purpose: str) -> list[list[int]]:
    """The batches of a whole run, one pass after another."""
    return [rows for epoch in range(epochs) for rows in length_batches(lengths, size, seed, purpose, epoch)]


class Compared(NamedTuple):
    """Of two answers, by index, `better` was preferred: with confidence `target` (½: a tie), and it should win by `margin`.

    The margin is the reward model's to learn; DPO reads weight and target. A plain tuple of the first three does as well.
    """

    better: int
    worse: int
    weight: float = 1.0
    target: float = 1.0
    margin: float = 0.0
    task: str = REWARD


class Ranked(NamedTuple):
    """A whole ranking: `ranks[i]` is answer i's place, 0 for the best, equal for ties, -1 where it was not ranked."""

    ranks: tuple[int, ...]
    weight: float = 1.0
    task: str = REWARD


class Rated(NamedTuple):
    """A number that one answer, by index, was given: a rating, or its class (0 or 1) where the task is binary."""

    answer: int
    value: float
    weight: float = 1.0
    task: str = REWARD


@dataclass(frozen=True)
class Group:
    """A prompt's ids, its answers' ids, and what was said of the answers. Each judgement names its task."""

    prompt: list[int]
    answers: list[list[int]]
    pairs: list[Compared] = field(default_factory=list)
    rankings: list[Ranked] = field(default_factory=list)
    ratings: list[Rated] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + max(map(len, self.answers))


def group_batch(groups: Sequence[Group], pad_id: int, device: torch.device) -> Batch:
    """Every answer of every group once, group after group."""
    prompts = [group.prompt for group in groups for _ in group.answers]
    return make_batch(prompts, [answer for group in groups for answer in group.answers], pad_id, device)


def pair_weight(groups: Sequence[Group]) -> float:
    """The weight of all pairs together, which a mean over them divides by."""
    return sum((pair[2] for group in groups for pair in group.pairs), start=0.0)


def index_pairs(groups: Sequence[Group], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of all groups as indices into the flat list of answers, with their weights; and after them, turned round, the share 1 - target
    of those that are not sure: a loss on these is the sum of its losses on single votes."""
    rows, turned, offset = list[tuple[int, int, float]](), list[tuple[int, int, float]](), 0
    for group in groups:
        for pair in (Compared(*pair) for pair in group.pairs):
            better, worse = offset + pair.better, offset + pair.worse
            rows.append((better, worse, pair.weight * pair.target))
            if pair.target != 1:
                turned.append((worse, better, pair.weight * (1 - pair.target)))
        offset += len(group.answers)
    better_P, worse_P, weight_P = zip(*rows, *turned, strict=True)
    indices = torch.tensor([better_P, worse_P], device=device)
    return indices[0], indices[1], torch.tensor(weight_P, dtype=torch.float32, device=device)
