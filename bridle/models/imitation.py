"""The gradient of imitating some answers: what SFT does, rejection sampling with its best answers, and PPO beside its own loss."""

from collections.abc import Sequence

import torch

from bridle.compute.device import Device
from bridle.compute.optimizer import backward
from bridle.compute.parallel import all_ranks_metrics, all_ranks_sum, my_share
from bridle.compute.sharding import lockstep
from bridle.core.timeline import timed
from bridle.maths.losses import next_token
from bridle.models.batches import Cut, make_batch, masked_logprobs, row_sizes
from bridle.models.policy import Policy

Example = tuple[list[int], list[int]]  # prompt ids, answer ids with the stop token


def imitate(
    policy: Policy, examples: Sequence[Example], device: Device, cut: Cut | None = None, weight: float = 1.0
) -> float:
    """Add `weight` times the gradient of the mean next-token loss over the answers' tokens; that mean, in nats.

    Each rank reads its share of the examples, as much of it at once as `cut` says (None: all); tokens are counted on all ranks.
    """
    mine = my_share(list(range(len(examples))))
    tokens = all_ranks_sum(torch.tensor(sum(len(examples[i][1]) for i in mine), device=device.torch))
    total = 0.0
    sizes = row_sizes((prompt, [answer]) for prompt, answer in examples)
    for part in lockstep((cut or Cut()).parts(mine, sizes, policy.module.model), policy.module):
        chosen = [examples[i] for i in part]
        with timed("forward"):
            batch = make_batch([p for p, _ in chosen], [a for _, a in chosen], policy.template.pad_id, device.torch)
            with device.autocast():
                logp_N = masked_logprobs(policy.module, batch)
            loss, _ = next_token(logp_N, tokens=tokens)
        backward(weight * loss)
        total += float(loss.detach())
    return all_ranks_metrics({"loss": total})["loss"]
