"""On-policy distillation: RLOO without a reward, with the teacher as the reference, on a project with two models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.policy import Policy, save_policy
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from tests.models.tiny import TEXTS, native, one_sentence, policy
from tests.tiny_project import bridle, complaint, done, metrics, weights

DISTILL = {
    "rloo.scored_by": "nothing", "rloo.start": "student", "rloo.reference": "teacher", "rloo.kl_coef": 1.0,
    "rloo.missing_stop_penalty": 0.0, "rloo.steps": 24, "rloo.prompts_per_step": 8, "rloo.group_size": 16, "rloo.learning_rate": 0.02,
    "sampling.max_new_tokens": 4, "guard.stop_cut_off": 1.0,
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    Project.create(folder, Recipe().with_settings({**DISTILL, "model.precision": "float32"}))
    save_policy(folder / "models/student", policy("llama", seed=0))
    save_policy(folder / "models/teacher", policy("llama", seed=1))
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"Tell me about {n}."}) for n in range(12)))
    done("import", tmp_path / "prompts.jsonl", "--project", folder)
    return folder


def test_the_students_kl_to_its_teacher_falls(project: Path) -> None:
    done("train", "rloo", "--project", project)
    lines = metrics(project / "runs/rloo-0001")
    first, last = (sum(line["kl"] for line in part) / 3 for part in (lines[:3], lines[-3:]))
    assert last < first / 1.6, [round(line["kl"], 2) for line in lines]
    assert len(lines) == 24 and {line["reward"] for line in lines} == {0.0} and lines[0]["without_variance"] == 0
    assert weights(project, "rloo") != weights(project, "student")


def test_without_the_kl_nothing_changes(project: Path) -> None:
    done("train", "rloo", "--project", project, "--set", "rloo.kl_coef=0.0", "--set", "rloo.steps=2")
    assert weights(project, "rloo") == weights(project, "student")
    assert metrics(project / "runs/rloo-0001")[0]["without_variance"] == 1


def test_a_teacher_with_other_tokens_is_refused(project: Path) -> None:
    save_policy(project / "models/teacher", Policy(native("llama", 1), train_tokenizer(TEXTS, 280), "tiny-other"))
    refused = bridle("train", "rloo", "--project", project)
    assert refused.exit_code == 1 and "teacher has another tokenizer or chat template" in complaint(refused)
    assert one_sentence(complaint(refused)) and not (project / "models/rloo").exists()
