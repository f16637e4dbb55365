"""`bridle train METHOD --reward FILE.py:FUNCTION`: a function of one's own scores, with what the store keeps of imported rows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bridle.models.policy import save_policy
from bridle.project.kept import read_parents
from bridle.rewards.functions import load_function
from tests.models.tiny import one_sentence
from tests.models.tiny import policy as tiny_policy
from tests.tiny_project import bridle, complaint, done, metrics, settings

FEW: dict[str, Any] = {
    "model.precision": "float32", "sampling.max_new_tokens": 4, "data.heldout_share": 0.2, "ppo.start": "base", "grpo.start": "base",
    "ppo.steps": 2, "ppo.prompts_per_step": 4, "grpo.steps": 2, "grpo.prompts_per_step": 2, "grpo.group_size": 2,
    "grpo.missing_stop_penalty": 0.0, "ppo.missing_stop_penalty": 0.0,
}  # fmt: skip
CODE = """
import json
from pathlib import Path

from words import SEEN


def right(prompts, answers, solution, topic=None, **others):
    with Path(SEEN).open("a") as file:
        file.write(json.dumps([prompts, answers, solution, topic, sorted(others)]) + "\\n")
    return [float(len(answer)) for answer in answers]


def trl(completions, solution, **kwargs):
    return [float(one is not None) + len(text) / 100 for one, text in zip(solution, completions)]


def lacking(prompts, answers, difficulty):
    return [0.0] * len(answers)


number = 3
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("own")
    save_policy(home / "model", tiny_policy())
    rows = [{"prompt": f"What is {i} + 1?", "solution": str(i + 1), "topic": "sums"} for i in range(12)]
    rows += [{"prompt": f"Tell me of {i} cats."} for i in range(4)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "mine.py").write_text(CODE)
    (home / "words.py").write_text(f"SEEN = {str(home / 'seen.jsonl')!r}\n")
    done("init", home / "p", "--model", home / "model", *settings(FEW))
    done("import", home / "rows.jsonl", "--project", home / "p")
    return home


def test_a_function_scores_with_the_columns_of_its_rows(project: Path) -> None:
    """PPO without a reward model; the file is part of what a run came from."""
    done("train", "ppo", "--reward", f"{project / 'mine.py'}:right", "--project", project / "p")
    seen = [json.loads(line) for line in (project / "seen.jsonl").read_text().splitlines()]
    asked = {prompt: (one, topic) for row in seen for prompt, one, topic in zip(row[0], row[2], row[3], strict=True)}
    assert len(seen) >= 2 and any(one is None for one, _ in asked.values()) and len(asked) > 3
    for prompt, (solution, topic) in asked.items():
        sums = prompt.startswith("What is ")
        assert solution == (str(int(prompt.split()[2]) + 1) if sums else None) and topic == ("sums" if sums else None)
    [first, _] = metrics(project / "p/runs/ppo-0001")
    step = next(row for row in seen if len(row[1]) == 4)
    assert first["reward"] == pytest.approx(sum(map(len, step[1])) / 4)
    parents = read_parents(project / "p/runs/ppo-0001")
    assert parents["source"] == "function" and parents["function"] == load_function(f"{project / 'mine.py'}:right")[1]
    assert not (project / "p/models/reward").exists()


def test_trls_signature_and_prompts_without_a_check(project: Path) -> None:
    """GRPO is scored by a verifier by default; here all prompts are practised on, those without a solution too."""
    done("train", "grpo", "--reward", f"{project / 'mine.py'}:trl", "--project", project / "p")
    assert all(0 < line["reward"] < 2 for line in metrics(project / "p/runs/grpo-0001"))
    assert 'scored_by = "reward"' in (project / "p/runs/grpo-0001/recipe.toml").read_text()


def test_another_function_is_another_run(project: Path) -> None:
    place = project / "mine.py"
    hashes = {load_function(f"{place}:{name}")[1] for name in ("right", "trl")}
    assert len(hashes) == 2
    (project / "other.py").write_text(CODE + "\n# more")
    assert load_function(f"{project / 'other.py'}:trl")[1] not in hashes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo", "--reward", "mine.py"], "--reward takes FILE.py:FUNCTION, got 'mine.py'"),
        (["ppo", "--reward", "absent.py:f"], "--reward: there is no file .*absent.py"),
        (["ppo", "--reward", "HOME/mine.py:rigth"], "mine.py has no function 'rigth'; did you mean 'right'"),
        (["ppo", "--reward", "HOME/mine.py:number"], "mine.py has no function 'number'"),
        (["ppo", "--reward", "HOME/mine.py:lacking"], "the reward lacking takes difficulty, and the rows have solution"),
        (["ppo", "--reward", "HOME/rows.jsonl:f"], "rows.jsonl is not a Python file"),
        (["ppo", "--reward", "HOME/broken.py:f"], "broken.py cannot be run: ZeroDivisionError: division by zero"),
        (["sft", "--reward", "HOME/mine.py:trl"], "--reward is for methods that answer prompts, ppo, .* and sft is not"),
        (["dpo", "--reward", "HOME/mine.py:trl"], "dpo takes no reward of its own"),
    ],
)  # fmt: skip
def test_what_cannot_score_is_refused(project: Path, words: list[str], message: str) -> None:
    (project / "broken.py").write_text("1 / 0")
    found = bridle("train", *(word.replace("HOME", str(project)) for word in words), "--project", project / "p")
    told = complaint(found)
    assert found.exit_code == 2 and one_sentence(told)
    assert re.search(message, told), told
