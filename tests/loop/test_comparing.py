"""Who decides between a candidate and what is served: here the prompts' own checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridle.core.records import Completion, FinishReason, Prompt
from bridle.loop.comparing import Pairs, compare_until_decided, decided_by
from bridle.loop.turn import collect, turn_under_way
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work
from tests.tiny_project import done


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A project with three prompts that can be checked, and one that cannot."""
    settings = {"loop.decided_by": "verifier", "loop.method": "grpo", "data.heldout_share": 0.9999}
    project = Project.create(tmp_path / "p", Recipe().with_settings(settings))
    rows = [{"prompt": f"Shout, number {number}!", "constraints": ["upper_case"]} for number in range(3)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "Say what you like."}]))
    done("import", file, "--project", project.folder)
    return Work(project, Progress())


def pairs_of(work: Work, *texts: tuple[str, str]) -> Pairs:
    known = work.data.heldout_prompts()
    free = [prompt for prompt in known if "like" in prompt.text]
    checked = [prompt for prompt in known if prompt not in free]
    prompts: list[Prompt] = [*checked, *free][: len(texts)]
    first, second = (
        [Completion(prompt.id, text, (), (), FinishReason.STOP, "w", {}) for prompt, text in zip(prompts, side, strict=True)]
        for side in zip(*texts, strict=True)
    )  # fmt: skip
    return Pairs(prompts, first, second)


def test_the_answer_that_its_check_passes_wins(work: Work) -> None:
    pairs = pairs_of(work, ("AHA", "aha"), ("OHO", "UHU"), ("no", "YES"), ("A", "b"))
    assert decided_by(work, "gate-turn-1")(pairs) == [1.0, 0.5, 0.0, None]
    verdict, asked = compare_until_decided(pairs, decided_by(work, "gate-turn-1"), alpha=0.05, most=4)
    assert verdict.n == 3 and verdict.rate == 0.5 and (asked["comparisons"], asked["unknown"]) == (4, 1)
    assert asked["shares"] == [
        (prompt.id[:16], share) for prompt, share in zip(pairs.prompts, [1.0, 0.5, 0.0], strict=False)
    ]


def test_what_learns_from_checks_needs_no_reward_model(work: Work) -> None:
    found = collect(work, turn_under_way(work))
    assert (found["stale"], found["judgements"]) == (False, 0) and found["decision"] == "grpo learns from checks alone"
