"""A model leaves the project: in the type that it came in, or in another, and what its logits (a reward model: its scores) lose by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bridle.core.errors import UsageError
from bridle.core.files import whole_folder
from bridle.core.records import Prompt
from bridle.models.contents import folder_hash
from bridle.models.files.source import EXTRA_TEMPLATES
from bridle.models.files.writing import SavedAs
from bridle.models.lora.peft_files import ADAPTER_FOLDER
from bridle.models.policy import (
    Policy,
    RewardModel,
    load_policy,
    load_reward_model,
    probe_scores,
    save_policy,
    with_exact_base,
    write_notes,
    write_reward_model,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE = (  # text of several kinds, for the logits that are compared
    "Which of the two answers is better, and why? Give a reason in one sentence.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # of none: an error",
    "水在标准大气压下的沸点是多少摄氏度？ 12 + 30 = 42, 7 × 8 = 56.",
)
LONGEST = 64  # tokens of each


@dataclass(frozen=True)
class Exported:
    """An exported folder's content hash, and the difference that the type of its weights makes: the largest and the mean one, of logits or
    scores, over `tokens` positions of a probe."""

    content: str
    largest: float
    mean: float
    tokens: int


def export_policy(folder: Path, policy: Policy, dtype: str = "") -> Exported:
    """Write a language model in `dtype`, by default each tensor as it came, and read it again. UsageError where something else lies
    there."""
    policy = with_exact_base(policy)
    before = probe_logits(policy)
    content = save_policy(place_to_save(folder), policy, form=SavedAs(True, dtype_of(dtype)))
    return compared(content, before, probe_logits(load_policy(folder, policy.module.output_weight().device)))


def export_reward_model(folder: Path, model: RewardModel, dtype: str = "") -> Exported:
    """The same of a reward model, whose saved probes are scored again by the weights that are written."""
    model = with_exact_base(model)
    device = model.module.score.weight.device
    place = place_to_save(folder)
    before = scores(model)
    with whole_folder(place) as new:
        write_reward_model(new, replace(model, probes=[]), form=SavedAs(True, dtype_of(dtype)))
        again = load_reward_model(new, device)
        probes = [{**probe, "scores": probe_scores(again.module, probe["ids"], device)} for probe in model.probes]
        write_notes(new, replace(model, probes=probes))
        content = folder_hash(new)
    return compared(content, before, scores(again))


def compared(content: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> Exported:
    differences = torch.cat([(a - b).abs().flatten() for a, b in zip(after, before, strict=True)])
    return Exported(content, float(differences.max()), float(differences.mean()), sum(len(one) for one in before))


def probe_rows(model: Policy | RewardModel) -> list[list[int]]:
    rows = model.template.prompt_ids([Prompt.from_text(text) for text in PROBE])
    return [row[: min(LONGEST, model.module.config.max_positions)] for row in rows]


@torch.no_grad()
def probe_logits(policy: Policy) -> list[Tensor]:
    """[T, V] of each row of the probe."""
    device = policy.module.output_weight().device
    return [policy.module(torch.tensor([row], device=device))[0].float().cpu() for row in probe_rows(policy)]


@torch.no_grad()
def scores(model: RewardModel) -> list[Tensor]:
    """[T, C] of each row of the probe: what every task's head says at each token."""
    device = model.module.score.weight.device
    return [
        model.module.by_task(model.module.model(torch.tensor([row], device=device)))[0].cpu()
        for row in probe_rows(model)
    ]


def dtype_of(name: str) -> torch.dtype | None:
    if name not in ("", *DTYPES):
        raise UsageError(
            f"dtype is one of {', '.join(DTYPES)}, or left out for the type that the model came in; got {name[:40]!r}"
        )
    return DTYPES.get(name)


def place_to_save(folder: str | Path) -> Path:
    """Where a model may be written: at a new place, in an empty folder, or over a model; UsageError where more would be replaced."""
    place = Path(folder)
    held = list(place.iterdir()) if place.is_dir() else []
    others = [entry for entry in held if entry.is_dir() and entry.name not in (EXTRA_TEMPLATES, ADAPTER_FOLDER)]
    if held and (not (place / "config.json").is_file() or others):
        raise UsageError(f"{place} holds more than a model, and all of it would be replaced; name a new folder")
    return place
