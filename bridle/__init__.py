"""bridle: the whole RLHF loop in one readable package. `docs/map.md` shows where everything is, `docs/python.md` how to call
it from Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridle.api.models import Model, ScoreModel, load, load_reward
    from bridle.api.rows import mixture
    from bridle.api.runs import tensorboard, wandb
    from bridle.api.trainers import (
        best_of_n,
        dpo,
        grpo,
        kto,
        online_dpo,
        orpo,
        ppo,
        pretrain,
        rebel,
        reward_model,
        rloo,
        sft,
        tune,
        verifier,
    )

__version__ = "0.1.0"
__all__ = [
    "Model", "ScoreModel", "best_of_n", "dpo", "grpo", "kto", "load", "load_reward", "mixture", "online_dpo", "orpo", "ppo",
    "pretrain", "rebel", "reward_model", "rloo", "sft", "tensorboard", "tune", "verifier", "wandb",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The Python API, which loads PyTorch: read when a name of it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'bridle' has no attribute {name!r}")
    from bridle import api

    return api.__dict__[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
