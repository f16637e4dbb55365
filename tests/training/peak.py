"""By how many bytes a process's peak grows for a gradient of a next-token loss at a large vocabulary: `python -m tests.training.peak`
prints it for slices of the logits, as bridle makes them, and for whole ones."""

import random
import sys
from pathlib import Path
from typing import Any

import torch

from bridle.models.batches import make_batch, masked_logprobs
from bridle.models.decoder import Decoder, DecoderConfig, initialise

WIDE, ROWS, TOKENS = 150_000, 16, 40
WHOLE = WIDE * ROWS * TOKENS * 4  # bytes of the logits of the batch in float32, once


def network(vocabulary: int) -> Decoder:
    """As narrow as there is, but for its vocabulary."""
    config = DecoderConfig("llama", vocabulary, 8, 16, 1, 1, 1, 8, max_positions=96, tie_embeddings=False)
    module = Decoder(config)
    initialise(module, config.layers, torch.Generator().manual_seed(0))
    return module


def whole(module: Any, batch: Any) -> torch.Tensor:
    """What must not be: all logits first."""
    logp_BTV = module.logits(module.hidden(batch.ids_BW))[:, :-1].log_softmax(-1)
    found: torch.Tensor = logp_BTV.gather(2, batch.ids_BW[:, 1:, None])[..., 0][batch.mask_BT]
    return found


def peak() -> int:
    """Bytes, of this program alone: Linux's `ru_maxrss` begins with the peak of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    draw, module = random.Random(0), network(WIDE)

    def ids(rows: int, length: int) -> list[list[int]]:
        return [[draw.randrange(3, 300) for _ in range(length)] for _ in range(rows)]

    batch, small = make_batch(ids(ROWS, 2), ids(ROWS, TOKENS), 0), make_batch(ids(1, 2), ids(1, 2), 0)
    masked_logprobs(module, small).sum().backward()  # what the first step sets up is no part of the growth
    before = peak()
    for way in (masked_logprobs, whole):  # the lower peak first
        way(module, batch).sum().backward()
        print(peak() - before)


if __name__ == "__main__":
    main()
