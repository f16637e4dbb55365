"""Layers that are run again in the backward pass, so that between the two passes each of them keeps its input alone (Chen 2016,
arxiv.org/abs/1604.06174). Nothing is drawn in them, so the second run is the first to the bit. Without gradients nothing is kept anyway."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


class Layered(nn.Module):
    """A network of layers, which may be `recomputed` while it is trained."""

    recomputed = False

    def recompute(self, on: bool) -> None:
        self.recomputed = on

    def parts(self) -> list[nn.Module]:
        """The layers, one after another."""
        raise NotImplementedError


def recompute_layers(module: nn.Module, on: bool) -> None:
    """Have the layers of all that is in a module run again in the backward pass from now on, or not any more."""
    for part in module.modules():
        if isinstance(part, Layered):
            part.recompute(on)


def run_again(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose gradient is made by running it once more."""
    return partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def all_run_again(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The same of layers that another's code calls, while the block runs."""
    for layer in layers:
        layer.forward = run_again(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
