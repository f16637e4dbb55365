"""Every family with its matrices in two bytes under an adapter, and with its layers run again: nearly as it was, the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bridle.compute.randomness import generator
from bridle.compute.recomputing import recompute_layers
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.lora.frozen import is_narrow
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy, load_policy
from bridle.recipe.data import FrozenPrecision, LoRASection
from tests.families.table import WALKED
from tests.models.tiny import CPU, random_ids

PRECISIONS: list[FrozenPrecision] = ["float32", "bfloat16"]
BATCH = make_batch(random_ids(2, 5, 9, seed=1), random_ids(2, 8, 12, seed=2), 0)


def read(found: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    found.module.zero_grad()
    logp = sequence_logprobs(found.module, BATCH)
    logp.sum().backward()
    return logp.detach(), {
        name: w.grad.clone() for name, w in found.module.named_parameters() if w.grad is not None and ".lora." in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKED)
def test_every_family_in_less_memory(name: str, tmp_path: Path) -> None:
    WALKED[name].write(tmp_path)
    whole, low = (load_policy(tmp_path, CPU, held=precision) for precision in PRECISIONS)
    assert is_narrow(low.module) and low.rounded
    adapted = [learner(found, LoRASection(r=2), generator(0, "lora")) for found in (whole, low)]
    (logp, _), (near, grads) = (read(found) for found in adapted)
    apart = (near - logp)[BATCH.mask_BT].abs()  # a router that is near a tie may choose another expert for a token
    assert near.dtype == torch.float32 and float(apart.mean()) < 0.25
    recompute_layers(adapted[1].module, True)
    again, same = read(adapted[1])
    assert torch.equal(again, near) and same.keys() == grads.keys() != set()
    assert all(torch.equal(same[part], grad) for part, grad in grads.items())
