"""The weights of a folder as numbers that a network can be trained with: stored in full, finite, and with a head that is not lost.

Left out on purpose: quantised weights. What their numbers mean stands in scales and rules of each method's own, and a network that is
trained would have to be written back by the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from bridle.core.errors import ModelError, UnsupportedModel, brief_repr
from bridle.models.contents import weight_files
from bridle.models.decoder import DecoderConfig

FULL = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the types that hold a weight itself
QUANTISED = ("quantization_config", "compression_config", "quantization")  # settings of config.json
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def require_unquantised(folder: Path, raw: Mapping[str, Any]) -> None:
    """UnsupportedModel where config.json says by which method the weights are quantised."""
    for key in QUANTISED:
        if how := raw.get(key):
            method = how.get("quant_method", how) if isinstance(how, Mapping) else how
            raise UnsupportedModel(
                f"the weights in {folder} are quantised, which cannot be trained ({key} of its config.json names {brief_repr(method)}); "
                "fetch the full ones"
            )


def require_full(paths: Sequence[Path], folder: Path, no_weight: Callable[[str], bool] = lambda name: False) -> None:
    """UnsupportedModel where a tensor's type is one that only a quantised weight has, by the files' headers; `no_weight` names those
    that hold no weight, as masks do."""
    for path in paths:
        with safe_open(path, "numpy") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        for name, kind in sorted(types.items()):
            if kind not in FULL and not no_weight(name):
                raise UnsupportedModel(
                    f"{name} in {folder} is stored as {kind}, a quantised weight that says nothing without its scale; fetch the full "
                    "weights (float32, bfloat16 or float16), or have transformers dequantise and save them"
                )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by name."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read (truncated or corrupted?): {error}") from error
    return tensors


def require_finite(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """ModelError where a weight in float32 is NaN or infinite; one of float64 may be too large to be another's."""
    for name, tensor in tensors:
        if tensor.numel() and not all(bool(bound.isfinite()) for bound in tensor.aminmax()):
            count = int(tensor.isfinite().logical_not().sum())
            raise ModelError(
                f"{name} in {folder} has {count:,} of {tensor.numel():,} numbers that are NaN or infinite in float32; fetch or save the "
                "weights again"
            )


def with_own_head(config: DecoderConfig, tensors: dict[str, Tensor]) -> DecoderConfig:
    """The configuration for these weights: a head that is stored beside the embeddings to which config.json ties it is left out of
    them where it is the same, and kept apart where it is not, as transformers does."""
    if not config.tie_embeddings or HEAD not in tensors:
        return config
    if EMBEDDINGS in tensors and torch.equal(tensors[HEAD].float(), tensors[EMBEDDINGS].float()):
        del tensors[HEAD]
        return config
    return replace(config, tie_embeddings=False)
