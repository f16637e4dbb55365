"""Two processes at once on one project, again and again: python experiments/races.py FOLDER [RACES]

Each race begins from a copy of a tiny project, starts two commands at the same moment or one somewhat later, and looks at what is left:
models, runs, answers and the store's rows, without seconds. It must be what one of them alone leaves (then the other was refused, because
"another process is at work"), or what both leave one after another, in either order. Everything else is wrong, and so is an end without a
sentence. A table at the end; exit status 1 where anything was wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridle.cli.main import main as bridle
from bridle.core.records import content_hash
from bridle.feedback.store.store import Store
from bridle.stages.data import STUDY

TINY = {
    "data.source": "playground", "model.precision": "float32", "model.vocab_size": 400, "model.hidden_size": 32,
    "model.intermediate_size": 64, "model.layers": 2, "model.heads": 2, "model.kv_heads": 2, "sampling.max_new_tokens": 16,
    "reward.slim": False, "sft.batch_size": 8, "ppo.steps": 3, "ppo.prompts_per_step": 8, "ppo.minibatches": 2, "ppo.epochs": 1,
    "dpo.batch_size": 8, "data.pretrain_tokens": 20_000, "data.train_prompts": 16, "data.heldout_prompts": 16,
    "data.probe_prompts": 4, "data.compared_heldout": 8, "data.demonstrations": 40, "grpo.steps": 1, "grpo.prompts_per_step": 2,
    "grpo.group_size": 2, "grpo.branch_problems": 8, "grpo.branch_demonstrations": 8, "reward.slim_hidden_size": 32,
    "reward.slim_layers": 1,
}  # fmt: skip
REFUSED = ("another process is at work in", "was replaced by another process", "was replaced while it was copied")
Outcome = tuple[int | None, int | None, str]  # the exit status of each, None where it was refused; what is left


@dataclass(frozen=True)
class Race:
    """Two commands; `base` is the project that they begin from, `without` the runs and models that it lacks."""

    first: str
    second: str
    base: str = "whole"
    without: tuple[str, ...] = ()


RACES = [
    Race("train ppo", "train ppo"),
    Race("train ppo", "train ppo --set ppo.kl_coef=0.3"),
    Race("train ppo", "train ppo --set ppo.kl_coef=0.3", "killed"),
    Race("train ppo", "train ppo --set ppo.kl_coef=0.3", "begun"),
    Race("train ppo --wait", "train ppo --wait --set ppo.kl_coef=0.3"),
    Race("train sft", "train sft --set sft.epochs=1"),
    Race("train sft --set sft.epochs=1", "train ppo"),
    Race("train reward", "train reward --set reward.epochs=2"),
    Race("train reward --set reward.epochs=2", "train ppo"),
    Race("train pretrain", "train sft"),
    Race("train dpo", "train dpo"),
    Race("train grpo", "train rloo --set rloo.scored_by=verifier --set rloo.steps=1", without=("arithmetic",)),
    Race("train ppo --set ppo.kl_coef=0.3", "evaluate ppo"),
    Race("evaluate ppo", "evaluate ppo"),
    Race("evaluate ppo sft --wait", "evaluate sft ppo --wait"),
    Race("sample", "sample --set sampling.answers=3"),
    Race("sample", "label --simulate", "fresh"),
    Race("label --simulate", "label --simulate", "sampled"),
    Race("import rows-1.jsonl", "import rows-2.jsonl"),
    Race("demo", "demo", without=("dpo", "reward-shuffled")),
]  # fmt: skip


def settings() -> list[str]:
    return [word for key, value in TINY.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def words_of(command: str, project: Path) -> list[str]:
    if command == "demo":
        return ["demo", "--out", str(project), *settings()]
    words = [str(project / word) if word.endswith(".jsonl") else word for word in command.split()]
    return [*words, "--project", str(project)]


def started(command: str, project: Path, after: float, told: Path) -> int:
    """A process of its own, forked from this one, for which PyTorch is loaded already."""
    child = os.fork()
    if child:
        return child
    status, out = 99, io.StringIO()
    try:
        time.sleep(after)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            bridle(words_of(command, project), prog_name="bridle")
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        told.write_text(out.getvalue())
        os._exit(status)


def ended(child: int, told: Path) -> int | None:
    """Its exit status; None where it was refused. What is neither is no end of bridle's."""
    status, sentence = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told.read_text()
    if any(words in sentence for words in REFUSED):
        return None
    assert status in (0, 1, 2) and "Traceback" not in sentence and "unexpected" not in sentence, sentence
    return status


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def left(project: Path) -> str:
    """A hash of what a project holds but for the time: models, references, finished runs, the store's rows; and no leftovers."""
    files = [path for name in ("models", "references") for path in project.glob(f"{name}/*/*")]
    found: dict[str, Any] = {str(p.relative_to(project)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    for result in project.glob("runs/*/result.json"):
        lines = [
            json.loads(line) for name in ("metrics.jsonl", "answers.jsonl") for line in read_lines(result.parent / name)
        ]
        found[result.parent.name] = timeless([json.loads(result.read_text()), *lines])
    with Store.open(project / "store.sqlite") as store:
        prompts, completions = [p.id for p in store.prompts()], [c.id for _, c in store.completions()]
        studies = [
            [item.id, judgement.ranking]
            for study in (STUDY, "import")
            for item, judgement in store.judgements(study=study)
        ]
        found["store"] = [sorted(map(str, rows)) for rows in (prompts, completions, studies)]
    return content_hash(found)


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def run(
    commands: Sequence[tuple[str, float]], base: Path, place: Path, one_by_one: bool
) -> tuple[list[int | None], str, float]:
    """Statuses and what is left, of commands each with the seconds to wait before it; and the seconds that all took."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place / "project")
    began, statuses, children = time.monotonic(), list[int | None](), list[tuple[int, Path]]()
    for number, (command, after) in enumerate(commands):
        told = place / f"{number}.txt"
        children.append((started(command, place / "project", after, told), told))
        if one_by_one:
            statuses.append(ended(*children.pop()))
    statuses += [ended(*child) for child in children]
    return statuses, left(place / "project"), time.monotonic() - began


def lawful(race: Race, base: Path, place: Path) -> tuple[dict[Outcome, str], float]:
    """Every outcome that may be, in words, and the seconds of the first command alone."""
    first, second = (race.first, 0.0), (race.second, 0.0)
    (a,), only_a, seconds = run([first], base, place, True)
    (b,), only_b, _ = run([second], base, place, True)
    (a1, b1), ab, _ = run([first, second], base, place, True)
    (b2, a2), ba, _ = run([second, first], base, place, True)
    outcomes: dict[Outcome, str] = {(a, None, only_a): "second refused", (None, b, only_b): "first refused"}
    return {**outcomes, (a1, b1, ab): "both, the first first", (a2, b2, ba): "both, the second first"}, seconds


def make_bases(folder: Path) -> dict[str, Path]:
    """Tiny projects in the states that races begin from; those that lie there are taken."""
    fresh, sampled, whole, killed, begun = (folder / name for name in ("fresh", "sampled", "whole", "killed", "begun"))
    if not (begun / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        do(["init", str(fresh), *settings()])
        do(words_of("train pretrain", fresh))
        do(words_of("train sft", fresh))
        shutil.copytree(fresh, sampled)
        do(words_of("sample", sampled))
        do(["demo", "--out", str(whole), *settings()])
        for number in (1, 2):
            rows = [
                {"prompt": f"Tell me about {i}.", "completion": f"It is {i}."}
                for i in range(40 * number - 40, 40 * number + 20)
            ]
            (whole / f"rows-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for run_folder in whole.glob("runs/evaluate-*"):
            shutil.rmtree(run_folder)
        for unfinished in (killed, begun):
            shutil.copytree(whole, unfinished)
            (unfinished / "runs/ppo-0001/result.json").unlink()
        shutil.rmtree(begun / "runs/ppo-0001/checkpoints")
        (begun / "runs/ppo-0001/metrics.jsonl").unlink()
        (begun / "done").touch()
    return {path.name: path for path in (fresh, sampled, whole, killed, begun)}


def do(words: list[str]) -> None:
    with contextlib.suppress(SystemExit):
        bridle(words, prog_name="bridle")


def main(folder: Path, races: int) -> int:
    torch.set_num_threads(1)
    os.environ["BRIDLE_THREADS"] = "1"
    bases, draw, wrong = make_bases(folder / "bases"), random.Random(0), 0
    print(f"| {'first':<36} | {'second':<64} | base    | races | ends | wrong |\n|---|---|---|---|---|---|")
    for number, race in enumerate(RACES):
        base = folder / "base"
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(bases[race.base], base)
        for name in race.without:
            shutil.rmtree(base / f"runs/{name}-0001", ignore_errors=True)
            shutil.rmtree(base / "models" / name, ignore_errors=True)
        allowed, seconds = lawful(race, base, folder / "serial")
        ends, faults = Counter[str](), 0
        count = races // len(RACES) + (number < races % len(RACES))
        for attempt in range(count):
            later = draw.uniform(0, seconds) if attempt % 2 else 0.0
            commands = [(race.first, 0.0), (race.second, later)]
            (a, b), state, _ = run(commands, base, folder / "race", False)
            if (a, b, state) in allowed:
                ends[allowed[a, b, state]] += 1
            else:
                faults += 1
                shutil.move(folder / "race", folder / f"wrong-{number}-{attempt}")
        wrong += faults
        told = ", ".join(f"{words} {times}" for words, times in ends.most_common())
        print(f"| `{race.first}` | `{race.second}` | {race.base} | {count} | {told} | {faults} |", flush=True)
    print(f"\n{races} races, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200))
