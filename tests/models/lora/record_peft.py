"""What peft makes of a few small layers with adapters: outputs, gradients, merged weights, for `test_peft.py`, which needs no peft.

`python -m tests.models.lora.record_peft` with peft installed writes `peft-0.21.json` anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RECORDED = Path(__file__).with_name("peft-0.21.json")
CASES: dict[str, dict[str, Any]] = {
    "linear": {"r": 2, "lora_alpha": 32},
    "linear, rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "linear, r 1": {"r": 1, "lora_alpha": 3},
    "conv1d": {"r": 2, "lora_alpha": 5, "fan_in_fan_out": True},
}


def numbers(*shape: int, seed: int) -> Tensor:
    """Between -1 and 1, the same on every machine."""
    count = 1
    for size in shape:
        count *= size
    return (((torch.arange(count) * 7919 + seed * 104729) % 2003).float() / 1001.5 - 1).view(*shape)


def record() -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, settings in CASES.items():
        layer = Conv1D(3, 5) if name == "conv1d" else nn.Linear(5, 3)
        layer.weight.data, layer.bias.data = numbers(*layer.weight.shape, seed=1), numbers(3, seed=2)
        network = get_peft_model(nn.Sequential(layer), LoraConfig(target_modules=["0"], **settings))  # type: ignore[arg-type]
        (adapted,) = (
            part
            for part in network.modules()
            if part.__class__.__module__ == "peft.tuners.lora.layer" and hasattr(part, "lora_A")
        )
        a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        a.data, b.data = numbers(*a.shape, seed=3), numbers(*b.shape, seed=4)
        x = numbers(4, 5, seed=5).requires_grad_(True)
        y = network(x)
        y.square().sum().backward()
        network.merge_adapter()
        merged = adapted.get_base_layer().weight
        kept = {"y": y, "x_grad": x.grad, "a_grad": a.grad, "b_grad": b.grad, "merged": merged}
        found[name] = {key: tensor.detach().tolist() for key, tensor in kept.items()}
    return found


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(), indent=1), "utf-8")
