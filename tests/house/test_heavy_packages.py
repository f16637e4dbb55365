"""One door for each heavy package, so that it can be replaced or left out in one place."""

from __future__ import annotations

import pytest

from tests.house.source import LIGHT, Source, imports, listed, package

SITES = ("bridle.site", "bridle.labelling", "bridle.serve")
DOORS = {
    "transformers": ("bridle.models",),
    "peft": ("bridle.models",),
    "gguf": ("bridle.models",),
    "bitsandbytes": ("bridle.models",),
    "tokenizers": ("bridle.models",),
    "safetensors": ("bridle.models", "bridle.compute"),  # weights, and checkpoints
    "datasets": ("bridle.feedback",),
    "sqlalchemy": ("bridle.feedback",),
    "alembic": ("bridle.feedback",),
    "pyarrow": ("bridle.feedback",),
    "huggingface_hub": ("bridle.models", "bridle.feedback"),
    "modelscope": ("bridle.models",),
    "openpyxl": ("bridle.feedback",),
    "ray": ("bridle.launch",),
    "fastapi": SITES,
    "starlette": SITES,
    "httpx2": ("bridle.core.outbound",),
    "tomli_w": ("bridle.recipe",),
    "matplotlib": ("bridle.report",),
    "jsonschema": ("bridle.rewards.sandbox",),
    "math_verify": ("bridle.rewards.sandbox",),
    "wandb": ("bridle.compute.trackers",),
}
# httpx2, and the extras
WHEN_CALLED = (
    "httpx2",
    "bitsandbytes",
    "datasets",
    "gguf",
    "huggingface_hub",
    "jsonschema",
    "math_verify",
    "modelscope",
    "openpyxl",
    "peft",
    "psycopg",
    "pyarrow",
    "ray",
    "tensorboard",
    "wandb",
)
WITHOUT_TORCH = tuple(f"bridle.{name}" for name in LIGHT)


def inside(module: str, places: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{place}.") for place in places)


def wrong_doors(source: Source) -> list[str]:
    faults = []
    for found in imports(source):
        package_name = found.name.split(".")[0]
        doors = DOORS.get(package_name)
        if doors and not inside(source.module, doors):
            faults.append(source.fault(found.line, f"{package_name} comes in through {' or '.join(doors)} alone"))
        if package_name in WHEN_CALLED and not found.lazy:
            faults.append(source.fault(found.line, f"{package_name} is imported inside the function that needs it"))
        if package_name == "torch" and inside(source.module, WITHOUT_TORCH):
            faults.append(source.fault(found.line, "this floor does without torch"))
    return faults


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("bridle/training/sft.py", "from transformers import AutoTokenizer"),
        ("bridle/training/sft.py", "def f():\n    import safetensors.torch"),
        ("bridle/rewards/learned.py", "from sqlalchemy.orm import Session"),
        ("bridle/models/policy.py", "import matplotlib.pyplot as plt"),
        ("bridle/core/outbound.py", "import httpx2"),
        ("bridle/models/policy.py", "from peft import LoraConfig"),
        ("bridle/core/files.py", "import tomli_w"),
        ("bridle/evaluation/answers.py", "from matplotlib.figure import Figure"),
        ("bridle/feedback/importing/formats.py", "def f():\n    import torch"),
        ("bridle/project/run.py", "import torch"),
        ("bridle/recipe/base.py", "import torch"),
        ("bridle/maths/statistics.py", "import torch"),
        ("bridle/feedback/importing/files/tables.py", "import pyarrow.parquet"),
        ("bridle/stages/data.py", "def f():\n    import pyarrow.parquet"),
        ("bridle/cli/train.py", "import torch.nn as nn"),
    ],
)
def test_a_wrong_door_is_found(path: str, text: str) -> None:
    assert len(wrong_doors(Source(path, text))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("bridle/models/policy.py", "import transformers\ndef f():\n    import peft"),
        ("bridle/core/outbound.py", "if TYPE_CHECKING:\n    import httpx2"),
        ("bridle/maths/losses.py", "import torch"),
        ("bridle/recipe/documents.py", "import tomli_w, tomllib"),
        ("bridle/compute/checkpoint.py", "import safetensors.torch, torch"),
        ("bridle/report/drawings.py", "from matplotlib.figure import Figure"),
        ("bridle/serve/app.py", "from fastapi import FastAPI"),
    ],
)
def test_the_right_door_is_not(path: str, text: str) -> None:
    assert not wrong_doors(Source(path, text))


def test_every_heavy_package_has_one_door() -> None:
    faults = [fault for source in package() for fault in wrong_doors(source)]
    assert not faults, listed(faults)
