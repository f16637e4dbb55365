"""DPO judged by a reward model of other people: nobody learns from a prompt that is asked, and what is told is what was seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bridle
from bridle.core.records import Pair, Prompt
from bridle.models.policy import save_policy
from experiments import real_dpo
from experiments.folds import fold_of, learn
from tests.models.tiny import policy

FEW: dict[str, Any] = {"lora.r": 2, "dpo.batch_size": 8, "reward.batch_size": 8, "model.frozen_precision": "float32"}


def test_each_fold_has_one_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"the ship {i}", "chosen": "no", "rejected": "yes yes"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    save_policy(tmp_path / "model", policy())
    monkeypatch.setattr(real_dpo, "NEW_TOKENS", 4)
    used: dict[str, set[int]] = {}
    dpo = bridle.dpo

    def judged_by(work: Any, run: Any, recipe: Any, pairs: list[Pair], *rest: Any) -> Any:
        used["judge"] = {fold_of(pair.group) for pair in pairs}
        model, count = learn(work, run, recipe, pairs, *rest)
        assert model.adapter is not None
        with torch.no_grad():
            model.module.score.weight.normal_(generator=torch.Generator().manual_seed(0))
        return model, count

    def tuned_by(model: Any, pairs: list[Any], **settings: Any) -> Any:
        used["dpo"] = {fold_of(Prompt.from_text(asked[-1]["content"]).id) for asked, _, _ in pairs}
        return dpo(model, pairs, **{**settings, "learning_rate": 0.1})

    monkeypatch.setattr(real_dpo, "learn", judged_by)
    monkeypatch.setattr(bridle, "dpo", tuned_by)
    real_dpo.main(tmp_path / "pairs.jsonl", tmp_path / "model", tmp_path / "out", 200, 0, FEW)
    found = json.loads((tmp_path / "out/real_dpo.json").read_text())
    assert used == {"judge": {2, 3}, "dpo": {0, 1}}
    asked = [row["prompt"] for row in found["examples"]]
    assert asked and {fold_of(Prompt.from_text(text).id) for text in asked} == {4}
    assert found["tuned beats untuned"]["n"] == found["prompts"] and found["answers that are equal"] < 1
    assert np.isclose(found["judge is right on people's pairs"]["n"], found["prompts"])
