"""What TRL's trainers are given in every stage. Runs in the peer's environment: no bridle here.

`SHIPPED` is TRL as a user gets it: bfloat16 autocast and gradient checkpointing are its defaults. `FLOAT32` is without both,
`BEST` the best of its own settings. `tuned` adds what only somebody who had measured this CPU would know to ask of transformers and
of PyTorch (README.md tells).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from harness import KEEP_MEMORY, MODELS, Contestant, Trial

SHIPPED: Mapping[str, Any] = {}
FLOAT32: Mapping[str, Any] = {"bf16": False, "gradient_checkpointing": False}
BEST: Mapping[str, Any] = {"bf16": True, "gradient_checkpointing": False}


def contestants(
    run: Callable[..., None], environment: str = "trl", best: Mapping[str, Any] | None = None
) -> list[Contestant]:
    """The peer four times. `run(trial, chosen, fast)` trains with the chosen settings; `best`: of this stage, besides."""
    settings = {**BEST, **(best or {})}
    return [
        Contestant("trl", partial(run, chosen=SHIPPED, fast=False), environment),
        Contestant("trl float32", partial(run, chosen=FLOAT32, fast=False), environment),
        Contestant("trl best", partial(run, chosen=settings, fast=False), environment, KEEP_MEMORY),
        Contestant("trl tuned", partial(tuned, run, settings), environment, KEEP_MEMORY),
    ]


def tuned(run: Callable[..., None], chosen: Mapping[str, Any], trial: Trial) -> None:
    """Eager attention, and what is float32 all the same goes by oneDNN, as with bridle: on AMD's processors twice as fast as by MKL."""
    import torch

    torch.set_float32_matmul_precision("medium")
    run(trial, chosen=chosen, fast=True)


def common(trial: Trial, batch: int) -> dict[str, Any]:
    """Settings of all trainers: as many steps as asked for, a constant rate, nothing logged or saved."""
    import torch

    return {
        "output_dir": tempfile.mkdtemp(prefix="bridle-bench-"),
        "per_device_train_batch_size": batch,
        "max_steps": trial.steps,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10**6,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def language_model(name: str, fast: bool) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODELS / name, **attention(fast))


def reward_model(name: str, fast: bool) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        MODELS / f"{name}-reward", num_labels=1, **attention(fast)
    )


def attention(fast: bool) -> dict[str, str]:
    return {"attn_implementation": "eager"} if fast else {}


def tokenizer(name: str, side: str = "right") -> Any:
    """As the folder has it: AutoTokenizer would put Qwen2's own splitting of text in its place."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(MODELS / name, padding_side=side)


def train(trainer: Any, trial: Trial, case: str = "", every: int = 1) -> None:
    """Train, and tell the trial of every optimiser step (PPO: of every rollout step), or of each `every` of them."""
    from transformers import TrainerCallback, logging

    class Tell(TrainerCallback):
        number = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.number += 1
            if self.number % every == 0:
                trial.step(self.number // every, case)

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    trainer.add_callback(Tell())
    trainer.train()


def rows(**columns: list[Any]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(columns)
