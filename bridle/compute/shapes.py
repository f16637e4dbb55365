"""What a plan is made for: the shape of a decoder, which decides what it takes, and the card that is to hold it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from bridle.core.errors import ModelError, UsageError

GIB = 2**30
CARDS = {"24gb": 23.5, "80gb": 79.0}  # GiB that a program finds free on such a card


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder that decide its memory. `counted`: its weights, where its files say how many there are and the rest does not
    (a mixture of experts)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool = True
    max_positions: int = 32_768
    counted: int = 0

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """D, F, Q and K."""
        heads = (self.heads * self.head_size, self.kv_heads * self.head_size)
        return (self.hidden_size, self.intermediate_size, *heads)

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """The linear maps of a layer, in and out."""
        D, F, Q, K = self.widths
        attention = {"q_proj": (D, Q), "k_proj": (D, K), "v_proj": (D, K), "o_proj": (Q, D)}
        return {**attention, "gate_proj": (D, F), "up_proj": (D, F), "down_proj": (F, D)}

    @property
    def matrices(self) -> int:
        """Weights of all layers."""
        made = self.layers * sum(inputs * outputs for inputs, outputs in self.maps.values())
        return self.counted - self.embedding * (2 - self.tied) if self.counted else made

    @property
    def embedding(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def trunk(self) -> int:
        """Weights below a head, norms too: a reward model's and a critic's."""
        return self.matrices + self.embedding + (2 * self.layers + 1) * self.hidden_size

    @property
    def whole(self) -> int:
        return self.trunk + (0 if self.tied else self.embedding)

    def piece(self, ranks: int, head: bool = True) -> int:
        """Of the `whole`, or of the trunk, what each of so many ranks holds where they divide it."""
        D = self.hidden_size
        if self.counted or ranks == 1:
            return math.ceil((self.whole if head else self.trunk) / ranks)
        layer = sum(fullest_piece(outputs, inputs, ranks) for inputs, outputs in self.maps.values())
        around = fullest_piece(self.vocab_size, D, ranks) * (2 if head and not self.tied else 1)
        return self.layers * layer + around + (2 * self.layers + 1) * fullest_piece(D, 1, ranks)


def fullest_piece(rows: int, columns: int, ranks: int) -> int:
    """Numbers of a weight on a rank: its rows are divided, and where they do not come out even the pieces are filled up to one size
    (torch.distributed.fsdp.fully_shard)."""
    return math.ceil(rows / ranks) * columns


# As published in each model's config.json: vocabulary, D, F, layers, heads, key/value heads, head size, tied, context.
PUBLIC_SHAPES = {
    "Qwen2.5-0.5B": Shape(151_936, 896, 4_864, 24, 14, 2, 64, True, 32_768),
    "Qwen2.5-7B": Shape(152_064, 3_584, 18_944, 28, 28, 4, 128, False, 131_072),
    "Qwen3-0.6B": Shape(151_936, 1_024, 3_072, 28, 16, 8, 128, True, 40_960),
    "Qwen3-1.7B": Shape(151_936, 2_048, 6_144, 28, 16, 8, 128, True, 40_960),
    "Qwen3-4B": Shape(151_936, 2_560, 9_728, 36, 32, 8, 128, True, 40_960),
    "Qwen3-8B": Shape(151_936, 4_096, 12_288, 36, 32, 8, 128, False, 40_960),
    "Llama-3.2-1B": Shape(128_256, 2_048, 8_192, 16, 32, 8, 64, True, 131_072),
    "Llama-3.2-3B": Shape(128_256, 3_072, 8_192, 28, 24, 8, 128, True, 131_072),
    "Llama-3.1-8B": Shape(128_256, 4_096, 14_336, 32, 32, 8, 128, False, 131_072),
    "Llama-3.1-70B": Shape(128_256, 8_192, 28_672, 80, 64, 8, 128, False, 131_072),
    "SmolLM2-135M": Shape(49_152, 576, 1_536, 30, 9, 3, 64, True, 8_192),
    "SmolLM2-360M": Shape(49_152, 960, 2_560, 32, 15, 5, 64, True, 8_192),
    "SmolLM2-1.7B": Shape(49_152, 2_048, 8_192, 24, 32, 32, 64, True, 8_192),
}


def public_shape(name: str) -> Shape:
    """The shape of a model by its published name, with or without its owner and -Instruct. ModelError where it is unknown."""
    bare = name.rstrip("/").rpartition("/")[2].lower().removesuffix("-instruct").removesuffix("-base")
    found = {known.lower(): shape for known, shape in PUBLIC_SHAPES.items()}.get(bare)
    if found is None:
        raise ModelError(
            f"there is no config.json in {name!r}, and no public shape is called that; give the folder of a model, or one of "
            f"{', '.join(PUBLIC_SHAPES)}"
        )
    return found


@dataclass(frozen=True)
class Card:
    """One device: its memory in bytes, and how products are made on it. `rate`: operations a second that it reaches, 0: unknown."""

    bytes: float
    kind: str = "cuda"
    product: int = 2
    rate: float = 0.0


def named_card(text: str, precision: str) -> Card:
    """A card by its usual name, or by its GiB; on one products are bfloat16, unless the recipe says otherwise."""
    try:
        size = CARDS.get(text.lower()) or float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e6:
        raise UsageError(f"--card takes {', '.join(CARDS)} or a number of GiB, got {text!r}")
    return Card(size * GIB, "cuda", 4 if precision == "float32" else 2)


def machine_memory() -> int:
    """Bytes of memory that this machine has in all."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
