"""What the trainers' tests share: a run in a folder of its own that says nothing, and the plainest device."""

from pathlib import Path

import torch
from torch import Tensor, nn

from bridle.core.runlog import Progress, Run
from bridle.models.device import Device
from tests.models.tiny import CPU

DEVICE = Device(CPU, torch.float32, 1, "test")


def run_in(folder: Path, stage: str = "test") -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(stage, folder, "key", 1, False, Progress(write=lambda text: None, live=False))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, Tensor], module: nn.Module) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
