"""How everything here is timed: contestants in turns, each in a process and an environment of its own.

A stage is a script that holds its contestants as functions and ends in `main(Stage(…))`. Called plainly it runs itself once a
contestant and round (A B C A B C …) with `--only NAME`; that process prints one line of JSON. All lines go to
results/STAGE.json, from which tables.py writes README.md.

Nothing but the standard library is imported here: this file runs in the environments of the peers too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
RESULTS = FOLDER / "results"
MODELS = FOLDER / "made"
MODEL = os.environ.get("BRIDLE_BENCH_MODEL", "m5")  # of models.py; the rows of those for a card are longer (texts.py)
SIZE = {"m5": "5.5M", "q05": "494M", "q15": "1,544M"}.get(MODEL, MODEL)
STARTED = "BRIDLE_BENCH_STARTED"  # when the process was asked for, in seconds since 1970

# A Python for each environment: a variable that names it, and where `make bench-setup` puts it.
PYTHONS = {
    "trl": ("BRIDLE_BENCH_TRL", ".venv-trl"),
    "trl-ppo": ("BRIDLE_BENCH_TRL_PPO", ".venv-trl-ppo"),
    "serving": ("BRIDLE_BENCH_SERVING", ".venv-serving"),
}
# A process of one thread that gets less than this share of a core was held up by others: its round is left out of the figures
# where there are better ones.
UNDISTURBED = 0.9

ABSENT = "its environment is not there; make it by `make bench-setup`"
PACKAGES = ("torch", "transformers", "trl", "bridle")

# glibc keeps freed memory instead of giving it back at every step. bridle asks for that itself, the peer at its best is given it.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


# ------------------------------------------------------------------------------------------- inside a contestant's process


class Trial:
    """One contestant in one round: told when each step has ended, it keeps the seconds of the steps.

    The first step of a case is not among them: it warms up, and the process's very first is kept as the time to the first step.
    """

    def __init__(self, steps: int, quick: bool) -> None:
        self.steps, self.quick = steps, quick
        self.seconds: dict[str, list[float]] = {}  # of each case
        self.last: dict[str, tuple[int, float]] = {}
        self.notes: dict[str, Any] = {}
        self.first_step_s = 0.0
        self.began = (time.perf_counter(), busy_seconds(), own_seconds())

    def step(self, number: int, case: str = "") -> None:
        """Step `number` of a case has ended. Where numbers are left out, those steps share the time evenly."""
        if card():
            sys.modules["torch"].cuda.synchronize()
        now = time.perf_counter()
        if not self.last:
            self.first_step_s = time.time() - float(os.environ.get(STARTED, time.time()))
            self.began = (now, busy_seconds(), own_seconds())
        if case in self.last and number > self.last[case][0]:
            before, at = self.last[case]
            self.seconds.setdefault(case, []).append((now - at) / (number - before))
        self.last[case] = (number, time.perf_counter())

    def took(self, case: str, seconds: float) -> None:
        """For what is timed otherwise than step by step."""
        self.seconds.setdefault(case, []).append(seconds)

    def on_log(self, step: int, total: int, figures: Mapping[str, Any]) -> None:
        """bridle's own hook: a line of its log was written."""
        self.step(step)
        if "length" in figures:
            self.notes["answer_length"] = figures["length"]

    def cores(self) -> tuple[float, float]:
        """Cores that this process, with what it started, and all others kept busy since the first step."""
        now, busy, own = self.began
        elapsed = max(time.perf_counter() - now, 1e-9)
        used = own_seconds() - own
        return used / elapsed, max(0.0, (busy_seconds() - busy - used) / elapsed)

    def row(self) -> dict[str, Any]:
        own, others = self.cores()
        return {
            "seconds": {case: [round(s, 6) for s in found] for case, found in self.seconds.items()},
            "first_step_s": round(self.first_step_s, 2),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if MAC else 2**10)),
            **card(),
            "own": round(own, 2),
            "others": round(others, 2),
            "versions": versions(),
            "notes": self.notes,
        }


MAC = sys.platform == "darwin"


def card() -> dict[str, Any]:
    """The graphics card that this process computed on, and the most of its memory that lay in tensors; nothing where it used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"card": torch.cuda.get_device_name(), "card_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20)}


def busy_seconds() -> float:
    """Seconds that all cores together were at work since the machine started; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(x) for x in stat.read_text().split(None, 9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    return sum(os.times()[:4])


def versions() -> dict[str, str]:
    """Of what this process has loaded, or, if nothing of it, of what its environment has."""
    found = {}
    for name in [name for name in PACKAGES if name in sys.modules] or PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# --------------------------------------------------------------------------------------------------------- the contest


@dataclass(frozen=True)
class Contestant:
    """`run` does the trial's steps and tells of each. `environment`: "bridle", or a key of PYTHONS."""

    name: str
    run: Callable[[Trial], None]
    environment: str = "bridle"
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """`shape` says in a line what a step is. `tokens` of each case (or of ""): in one step, for tokens/s."""

    name: str
    shape: str
    contestants: Sequence[Contestant]
    steps: int
    rounds: int = 3
    quick_steps: int = 4
    models: Sequence[str] = (MODEL,)
    tokens: Mapping[str, int] = field(default_factory=dict)


def main(stage: Stage) -> None:
    """The script's command line: the whole contest, or with --only one contestant's trial."""
    parser = argparse.ArgumentParser(description=f"{stage.name}: {stage.shape}")
    parser.add_argument("--only", metavar="NAME", help="run this contestant here and print its JSON line")
    parser.add_argument("--contestants", metavar="A,B", help="hold the contest between these alone")
    parser.add_argument("--rounds", type=int, help=f"default {stage.rounds}")
    parser.add_argument("--steps", type=int, help=f"of each round; default {stage.steps}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one short round: whether it works, and about how fast")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    asked = parser.parse_args()
    steps = asked.steps or (stage.quick_steps if asked.quick else stage.steps)
    by_name = {c.name: c for c in stage.contestants}
    if asked.only:
        trial = Trial(steps, asked.quick)
        by_name[asked.only].run(trial)
        print(json.dumps(trial.row()), flush=True)
        return
    names = asked.contestants.split(",") if asked.contestants else list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"no contestant {', '.join(unknown)}; there are {', '.join(by_name)}")
    rounds = asked.rounds or (1 if asked.quick else stage.rounds)
    result = contest(stage, [by_name[name] for name in names], steps, rounds, asked.threads, asked.quick)
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / f"{stage.name}.json").write_text(as_text(result), "utf-8")
    print(summary(result))
    sys.exit(any(error != ABSENT for error in result["failed"].values()))


def contest(
    stage: Stage, contestants: Sequence[Contestant], steps: int, rounds: int, threads: int, quick: bool
) -> dict[str, Any]:
    """Every contestant in turn, `rounds` times. One that fails or lacks its environment is left out and said so."""
    make_models(stage.models)
    result: dict[str, Any] = {
        "stage": stage.name, "shape": stage.shape, "date": date.today().isoformat(), "commit": commit(), "cpu": processor(),
        "cores": os.cpu_count(), "threads": threads, "steps": steps, "quick": quick, "tokens": dict(stage.tokens), "failed": {},
        "rows": [],
    }  # fmt: skip
    pythons = {c.name: python_of(c.environment) for c in contestants}
    for name, found in pythons.items():
        if found is None:
            result["failed"][name] = ABSENT
            print(f"{stage.name}: {name} is left out: {ABSENT}", file=sys.stderr)
    for number in range(rounds):
        for contestant in contestants:
            python = pythons[contestant.name]
            if python is None or contestant.name in result["failed"]:
                continue
            row, error = run_once(contestant, python, steps, threads, quick)
            if row is None:
                result["failed"][contestant.name] = error
                print(f"{stage.name}: {contestant.name} failed: {error}", file=sys.stderr)
                continue
            result["rows"].append({"contestant": contestant.name, "round": number, **row})
            medians = " ".join(f"{case} {1000 * statistics.median(s):.1f} ms" for case, s in row["seconds"].items())
            told = (
                f"first step {row['first_step_s']} s, {row['peak_mb']} MB, cores {row['own']}, others {row['others']}"
            )
            print(f"{stage.name} {number + 1}/{rounds} {contestant.name}: {medians}, {told}", file=sys.stderr)
    return result


def run_once(
    contestant: Contestant, python: str, steps: int, threads: int, quick: bool
) -> tuple[dict[str, Any] | None, str]:
    """One process: its row, or None and what it said last."""
    count = str(threads)
    places = f"{ROOT}{os.pathsep}{FOLDER}"
    environment = {
        **os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "BRIDLE_THREADS": count,
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1", **contestant.variables,
        STARTED: repr(time.time()),
    }  # fmt: skip
    command = [python, sys.argv[0], "--only", contestant.name, "--steps", str(steps), *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1]), ""
    except (IndexError, ValueError):
        return None, (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]


def python_of(environment: str) -> str | None:
    """The Python of an environment; None where it has not been made."""
    if environment == "bridle":
        return sys.executable
    variable, folder = PYTHONS[environment]
    path = Path(os.environ.get(variable) or ROOT / folder / "bin" / "python")
    return str(path) if path.is_file() else None


def make_models(names: Sequence[str]) -> None:
    if not all((MODELS / name / "config.json").is_file() for name in names):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, str(FOLDER / "models.py"), *names], check=True, env=environment)


def commit() -> str:
    """The checkout's commit, with a + where the package or the benchmarks differ from it."""
    try:
        name = git("rev-parse", "--short=10", "HEAD")
        return name + ("+" if git("status", "--porcelain", "--", "bridle", "benchmarks/*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields["model name"] + family


# ---------------------------------------------------------------------------------------------------------- what came out


@dataclass(frozen=True)
class Figure:
    """Over all steps of all rounds."""

    median: float
    least: float
    most: float
    count: int


def figures(result: Mapping[str, Any], contestant: str) -> dict[str, Figure]:
    """Seconds a step of each of a contestant's cases."""
    pooled: dict[str, list[float]] = {}
    for row in rows_of(result, contestant):
        for case, seconds in row["seconds"].items():
            pooled.setdefault(case, []).extend(seconds)
    return {case: Figure(statistics.median(s), min(s), max(s), len(s)) for case, s in pooled.items() if s}


def rows_of(result: Mapping[str, Any], contestant: str) -> list[dict[str, Any]]:
    """A contestant's rounds, those that were held up left out if there are others."""
    rows = [row for row in result["rows"] if row["contestant"] == contestant]
    return [row for row in rows if not disturbed(result, row)] or rows


def disturbed(result: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether others held this trial up. What an older harness wrote does not tell."""
    return bool(result["threads"] == 1 and row.get("own", 1.0) < UNDISTURBED)


def held_up(result: Mapping[str, Any]) -> bool:
    """Whether some contestant has no trial that others left alone: then a ratio says little."""
    return any(disturbed(result, rows_of(result, name)[0]) for name in names_of(result))


def names_of(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["contestant"] for row in result["rows"]))


def median_of(result: Mapping[str, Any], contestant: str, key: str) -> float:
    return statistics.median(row[key] for row in rows_of(result, contestant))


def summary(result: Mapping[str, Any]) -> str:
    """A line a contestant and case, for the eye."""
    lines = [f"{result['stage']}: {result['shape']}, threads {result['threads']}, commit {result['commit']}"]
    for name in names_of(result):
        for case, f in figures(result, name).items():
            tokens = result["tokens"].get(case, 0)
            rate = f"  {tokens / f.median:8.0f} tokens/s" if tokens else ""
            lines.append(
                f"  {name:16} {case:24} {1000 * f.median:9.1f} ms ({1000 * f.least:.1f}-{1000 * f.most:.1f}, {f.count}){rate}"
            )
    lines += [f"  {name} failed: {error}" for name, error in result["failed"].items()]
    return "\n".join(lines)


def as_text(result: Mapping[str, Any]) -> str:
    """JSON with a line a row, so that a new result shows as lines in a diff."""
    head = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join(f"    {json.dumps(row)}" for row in result["rows"])
    return f'{json.dumps(head, indent=2)[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n'
