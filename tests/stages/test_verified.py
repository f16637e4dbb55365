"""Two models compared by whether their answers are right: on word problems, and on imported rows with their own checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bridle.core.records import Completion, FinishReason, Prompt
from bridle.evaluation.answers import Answered
from bridle.evaluation.winrate import paired_difference, right_answers
from bridle.models.policy import save_policy
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work
from tests.models.tiny import one_sentence, policy
from tests.tiny_project import bridle, complaint, done, lines_of

Answer = Callable[[Prompt, int], str | tuple[str, FinishReason]]  # to a prompt, for the how manieth time


def project(folder: Path, **settings: Any) -> Path:
    """Two models, a and b, and no data."""
    Project.create(folder, Recipe().with_settings({name.replace("__", "."): value for name, value in settings.items()}))
    for name in ("a", "b"):
        save_policy(folder / "models" / name, policy())
    return folder


def scripted_answers(monkeypatch: pytest.MonkeyPatch, **models: Answer) -> None:
    def answer(
        _: Any, _policy: Any, prompts: Sequence[Prompt], label: str, number: int = 0, report: Any = None
    ) -> Answered:
        found = []
        for prompt in prompts:
            given = models[label.removeprefix("verify-")](prompt, number)
            text, ended = given if isinstance(given, tuple) else (given, FinishReason.STOP)
            found.append(Completion(prompt.id, text, (1, 2), finish_reason=ended))
        return Answered(list(prompts), found)

    monkeypatch.setattr(Work, "answer", answer)
    monkeypatch.setattr(Work, "fitting", lambda self, policy, prompts, *rest: list(prompts))


def compared(folder: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        done("evaluate", "a", "b", "--by", "verifier", "--json", "--project", folder, *more)
    )
    return found


def test_word_problems_by_kind_with_pass_at_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path / "p", data__source="playground", data__heldout_prompts=40, data__train_prompts=4)

    def right(prompt: Prompt, number: int) -> str:
        return f"The answer is {prompt.meta['answer']}."

    def sometimes(prompt: Prompt, number: int) -> str | tuple[str, FinishReason]:
        """Right at the second time; at the first wrong, without an answer, or cut off."""
        if number % 2:
            return right(prompt, number)
        place = int(prompt.id[:4], 16) % 3
        whole = right(prompt, number)
        cut_off = (whole, FinishReason.LENGTH)
        return cut_off if place == 2 else ("The answer is 9999.", "Who knows?")[place]

    scripted_answers(monkeypatch, a=right, b=sometimes)
    found = compared(folder, "--answers", "2")
    a, b, rate = found["a"], found["b"], found["win_rate"]
    assert (a["accuracy"], a["pass_at_k"], a["unparsed"], a["cut_off"]) == (1, 1, 0, 0)
    assert (b["accuracy"], b["pass_at_k"], b["answers"]) == (0.5, 1, 2) and a["prompts"] == 40
    assert 0 < b["unparsed"] < 0.5 and 0 < b["cut_off"] < 0.5 and b["unparsed"] + b["cut_off"] < 0.5
    assert rate["rate"] == 0.75 and rate["ties"] == 40 and rate["n"] == 80
    assert rate["difference"]["value"] == pytest.approx(0.5)
    assert 0.1 < rate["difference"]["low"] < 0.5 < rate["difference"]["high"] < 1, (
        "two answers to a prompt are one draw"
    )
    assert len(rate["by_category"]) == 3 and rate["length"]["model"] < rate["length"]["against"] + 100
    lines = lines_of(folder / "runs/verify-b-0001/answers.jsonl")
    assert {line["unread"] for line in lines} == {"", "unparsed", "cut_off"} and len(lines) == 80
    again = compared(folder, "--answers", "2")
    assert again["win_rate"] == rate and not (folder / "runs/verify-a-0002").exists(), "it is not made again"
    assert compared(folder)["a"]["answers"] == 1, "another number of answers is another run"


def test_imported_rows_by_their_own_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path / "p", data__heldout_share=0.9999)
    rows: list[dict[str, Any]] = [
        {"prompt": f"What is {i} + 1?", "solution": str(i + 1), "category": "sums"} for i in range(8)
    ]
    rows += [{"prompt": f"Describe {i}.", "constraints": ["no_commas"], "category": "form"} for i in range(8)]
    rows += [{"prompt": f"Chat about {i}."} for i in range(4)]  # nothing to check
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done("import", tmp_path / "rows.jsonl", "--project", folder)

    def answer(prompt: Prompt, number: int) -> str:
        return f"#### {int(prompt.text.split()[2]) + 1}" if prompt.text.startswith("What") else "Red and round."

    scripted_answers(monkeypatch, a=answer, b=lambda prompt, number: "It is, well, 7.")
    found = compared(folder)
    assert found["a"]["accuracy"] == 1 and found["b"]["accuracy"] == 0 and found["a"]["prompts"] == 16
    assert found["b"]["unparsed"] == 0.5, "the sums; a constraint reads every text"
    assert {name: part["n"] for name, part in found["win_rate"]["by_category"].items()} == {"form": 8, "sums": 8}
    assert found["win_rate"]["difference"]["value"] == 1 and "pass_at_k" not in found["a"]
    assert found["win_rate"]["length_controlled"] is not None


def test_where_nothing_can_be_checked_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_answers(monkeypatch)  # no model answers
    folder = project(tmp_path / "p", data__heldout_share=0.9999)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Chat about the sea."}))
    done("import", tmp_path / "rows.jsonl", "--project", folder)
    refused = bridle("evaluate", "a", "b", "--by", "verifier", "--project", folder)
    assert refused.exit_code == 1 and "holds no held-out prompts whose answers can be checked" in complaint(refused)
    assert one_sentence(complaint(refused))
    refused = bridle("evaluate", "a", "b", "--answers", "2", "--project", folder)
    assert refused.exit_code == 2 and "--answers is for --by verifier" in complaint(refused)
    assert "there is no model at" in complaint(bridle("evaluate", "a", "c", "--by", "verifier", "--project", folder))


def test_equal_answers_leave_a_difference_of_nought_with_a_width() -> None:
    same = paired_difference([1.0] * 20, [1.0] * 20, [str(n) for n in range(20)])
    assert same["value"] == 0 and -0.5 < same["low"] < 0 < same["high"] < 0.5
    found = right_answers([1.0, 0.0, 0.0, 0.0], ["p", "p", "q", "q"], ["", "unparsed", "cut_off", ""])
    assert (found["accuracy"], found["pass_at_k"], found["unparsed"], found["cut_off"]) == (0.25, 0.5, 0.25, 0.25)
