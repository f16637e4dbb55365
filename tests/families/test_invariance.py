"""Every family: log-probs and scores depend neither on the side and amount of padding nor on what else is in the batch, 1e-4 a token."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.models.batches import Batch, make_batch, pad, sequence_logprobs
from bridle.models.policy import Policy, load_policy
from bridle.models.scorer import scorer_from
from tests.families.table import WALKED
from tests.models.tiny import CPU, random_ids

QUICK = ("llama", "gemma3_text")
PROMPTS, ANSWERS = random_ids(6, 2, 30), random_ids(6, 3, 12, seed=1)  # windows are of 16
near = partial(torch.testing.assert_close, rtol=0.0, atol=1e-4)


def logprobs(found: Policy, batch: Batch) -> list[torch.Tensor]:
    """Of each row's answer, a number a token."""
    with torch.no_grad():
        return [row[mask] for row, mask in zip(sequence_logprobs(found.module, batch), batch.mask_BT, strict=True)]


def padded(batch: Batch, amount: int, token: int) -> Batch:
    """The batch with so many columns more, and each row's padding of another token."""
    rows = [row[:length].tolist() for row, length in zip(batch.ids_BW, batch.lengths_B.tolist(), strict=True)]
    ids = torch.nn.functional.pad(pad(rows, token), (0, amount), value=token)
    return Batch(ids, batch.prompt_lengths_B, batch.lengths_B, batch.prompt_B)


def check_logprobs(found: Policy) -> list[torch.Tensor]:
    """Those of each row alone, which all others must be."""
    alone = [logprobs(found, make_batch([p], [a], 0))[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    together = make_batch(PROMPTS, ANSWERS, 0)
    order = [4, 0, 5, 2, 1, 3]
    mixed = logprobs(found, make_batch([PROMPTS[i] for i in order], [ANSWERS[i] for i in order], 0))
    met = [logprobs(found, padded(together, amount, token)) for amount, token in ((0, 0), (11, 1), (40, 77))]
    for rows in (*met, [mixed[order.index(i)] for i in range(6)]):
        near(rows, alone)
    shared = logprobs(found, make_batch([PROMPTS[0]] * 6, [ANSWERS[0], *ANSWERS[1:]], 0))  # one prompt, several answers
    near(shared[0], alone[0])
    return alone


def check_scores(found: Policy) -> None:
    scorer = scorer_from(found.module, torch.Generator().manual_seed(0))
    rows = [p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    lengths = torch.tensor([len(row) for row in rows])
    with torch.no_grad():
        alone = torch.cat([scorer.scores(torch.tensor([row]), torch.tensor([len(row)])) for row in rows])
        values = [scorer.values(torch.tensor([row]))[0] for row in rows]
        for amount, token in ((0, 0), (11, 1), (40, 77)):
            ids = torch.nn.functional.pad(pad(rows, token), (0, amount), value=token)
            near(scorer.scores(ids, lengths), alone)
            for row, value in zip(scorer.values(ids), values, strict=True):
                near(row[: len(value)], value)
    assert float(alone.std()) > 0.05


def check_sampled(found: Policy, rows: int) -> None:
    """What the engine writes, prompts padded on the left: the same answers alone and among others, and with the trainer's log-probs."""
    engine = Engine(torch.float32, batch_size=rows)
    engine.load(found)
    answers = engine.generate(PROMPTS, Sampling(6), stamp=found.stamp, seed=0)
    for number in (0, 3):
        [again] = engine.generate([PROMPTS[number]], Sampling(6), stamp=found.stamp, seed=0, samples=[number])
        assert again.token_ids == answers[number].token_ids
        near(torch.tensor(again.logprobs), torch.tensor(answers[number].logprobs))
    read = logprobs(found, make_batch(PROMPTS, [list(one.token_ids) for one in answers], 0))
    near([torch.tensor(one.logprobs) for one in answers], read)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else (pytest.mark.slow,)) for n in WALKED])
def test_padding_and_company_change_nothing(name: str, tmp_path: Path) -> None:
    WALKED[name].write(tmp_path)
    found = load_policy(tmp_path, CPU)
    alone = check_logprobs(found)
    assert float(torch.cat(alone).std()) > 0.5, "lively, so that a difference would be seen"
    check_scores(found)
    for rows in (3, 8):  # in more batches than one, and in one
        check_sampled(found, rows)
