"""Random kills and signals over every verb, and what they leave: python -m experiments.kills FOLDER [--kills 300] [--seed 0] [--only VERB]

Every command of a walk over tiny projects is struck at random moments, up to three times in a row, and then run again until it is
finished. In the end its project must hold what an undisturbed run leaves: results and metrics without seconds, models to the byte, the
store's rows. Left over are files of dead processes, half written. FOLDER/kills.json holds the table, and what was wrong with each fault.

--points DEMO strikes at fixed points instead (POINTS), in copies of a finished tiny demo: what a test runs.

Covered: SIGKILL, SIGTERM, SIGINT, SIGHUP, an output that nobody reads any more, Ctrl-C after it (`2>&1 | tee`, where both get it), and
each of them for the demo's second process. Not covered: a power cut (what was written and not flushed survives a kill), systems other
than Linux. One process imports everything and forks one for each command, which spares it four seconds; the demo's second one is started
as always.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bridle.core.files import LEFT
from tests.tiny_project import ALONE, PLAYGROUND, SHAPE, preferences, settings, untimed

CLOSED, TEE = "closed pipe", "closed pipe, SIGINT"
KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", CLOSED, TEE)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATES = ("before", "during", "saving", "after")  # as it lay when it had ended: nothing new, a part, half a file, all
LONGEST = 300.0  # seconds for a command to end
IGNORED_COLUMNS = ("id", "created_at", "seconds", "checksum")  # that of a row covers its time
IGNORED_SUMMARY = ("device", "threads")


@dataclass(frozen=True)
class Command:
    """A command line, and the project that it works in, a folder of that name."""

    verb: str
    words: tuple[str, ...]
    project: str
    threads: int = 1
    begins_before: str = ""  # its project begins as the playground's lay there before this verb


@dataclass(frozen=True)
class Point:
    """Just before a function is called for the so-manieth time, one of its arguments matching."""

    module: str
    name: str
    calls: int = 1
    argument: str = "*"


@dataclass
class Strike:
    """A kill or a signal, at a share of the seconds that an undisturbed command takes, or at a point."""

    kind: str
    moment: float | Point
    second: bool = False  # the demo's second process is meant, where it is there
    state: str = "late"  # it had ended
    status: int | None = None


@dataclass
class Trial:
    """A command on a project as it lies in `before` (None: nowhere yet), struck in this order, and what must be there in the end."""

    command: Command
    before: Path | None
    begun: dict[str, Any]  # what it holds then
    expected: dict[str, Any]
    seconds: float
    strikes: list[Strike]


@dataclass
class Outcome:
    verb: str
    strikes: list[Strike]
    undisturbed: float | None = None  # its seconds, where the first strike came too late
    resumed: bool = False  # the last run went on from a checkpoint
    faults: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)


def walk(files: Path) -> list[Command]:
    """Every verb, in the order of a user, in three projects: the playground's, one of imported data, the demo's."""
    play, own, demo = "play", "own", "demo"
    trained = ("ppo", "dpo", "grpo", "rloo", "rebel", "best-of-n")
    verbs = [
        ("train pretrain", "train sft", "sample", "label --simulate", "train reward"),
        [f"train {m}" for m in trained],
    ]
    return [
        Command("init", ("init", play, *settings(PLAYGROUND)), play),
        *(Command(verb, (*verb.split(), "--project", play), play) for verb in itertools.chain(*verbs)),
        Command("evaluate", ("evaluate", "ppo", "sft", "--project", play), play),
        Command("report", ("report", "--project", play), play),
        Command("init", ("init", own, *settings({**SHAPE, "data.heldout_share": 0.3})), own),
        Command("import", ("import", str(preferences(files / "preferences.jsonl", 2500)), "--project", own), own),
        Command("demo", ("demo", "--out", demo, *settings(PLAYGROUND)), demo, threads=2, begins_before="train sft"),
    ]


# ------------------------------------------------------------------------------------------- a command in a process


class Child:
    """A command in a forked process of this one, which has imported everything; its output goes into a pipe."""

    def __init__(self, command: Command, folder: Path, point: Point | None = None) -> None:
        self.output, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 2**20)  # all that it prints, though nobody reads yet
        sys.stdout.flush()
        sys.stderr.flush()
        self.status: int | None = None
        # Until the child is what a shell would have started.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.output)
            run_as_child(command, folder, write, point)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(write)
        self.ended = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within these seconds."""
        if self.status is None and select.select([self.ended], [], [], seconds)[0]:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.ended)
        return self.status is not None

    def wait_for_point(self) -> bool:
        """Whether it came to the point where it stops itself; False where it ended before."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def strike(self, kind: str, pid: int) -> None:
        if kind in (CLOSED, TEE):
            os.close(self.output)
            self.output = -1
        if kind != CLOSED:
            os.kill(pid, signal.SIGINT if kind == TEE else signal.Signals[kind])

    def end(self) -> str:
        """What it printed; it is killed if it is still there."""
        if not self.wait(0):
            os.kill(self.pid, signal.SIGKILL)
            self.wait(LONGEST)
        if self.output < 0:
            return ""
        with open(self.output, "rb") as file:
            return file.read().decode("utf-8", "replace")


def run_as_child(command: Command, folder: Path, write: int, point: Point | None) -> None:
    """The rest of a forked process: the command line as a shell would have started it, never to return."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(write, number)
        os.close(write)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        os.environ["BRIDLE_THREADS"] = str(command.threads)
        if point is not None:
            stop_at(point)
        from bridle.cli.main import main

        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        main(list(command.words), prog_name="bridle")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # click lets none through: it came before
        status = 130
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        except BaseException:
            status = 120  # what the interpreter ends with then
        os._exit(status)


def stop_at(point: Point) -> None:
    """Let this process stop itself at the point, for its parent to strike and to continue it."""
    *path, name = point.name.split(".")
    owner = importlib.import_module(point.module)
    for part in path:
        owner = owner.__dict__[part]
    plain, left = owner.__dict__[name], point.calls

    def stopping(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= any(fnmatch(str(argument), point.argument) for argument in arguments)
        if left == 0:
            left = -1
            os.kill(os.getpid(), signal.SIGSTOP)
        return plain(*arguments, **named)

    setattr(owner, name, stopping)


def second_process(child: int) -> int | None:
    """The demo's second process, where this one has started it."""
    with suppress(OSError):
        for word in Path(f"/proc/{child}/task/{child}/children").read_text().split():
            if b"bridle.demo.second" in Path(f"/proc/{word}/cmdline").read_bytes():
                return int(word)
    return None


def outlives(pid: int, seconds: float = 60.0) -> bool:
    """Whether a process is still at work after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.01)
    return True


# ------------------------------------------------------------------------------------------------- what a project holds


def figures(project: Path) -> dict[str, Any]:
    """All that must not depend on when a command was stopped. Looks at a copy: opening a store repairs it."""
    if not project.is_dir():
        return {}
    copy = Path(shutil.copytree(project, project.with_name(f"{project.name}.seen")))
    recipe, page, summary = copy / "bridle.toml", copy / "report.html", copy / "summary.json"
    models = [file for part in ("models", "references") for file in copy.glob(f"{part}/[!.]*/*")]
    noted = untimed(json.loads(summary.read_text("utf-8"))) if summary.exists() else {}
    try:
        return {
            "recipe": recipe.read_text("utf-8") if recipe.exists() else None,
            "runs": runs(copy),
            "unfinished": sorted(run.name for run in copy.glob("runs/*") if not (run / "result.json").exists()),
            "models": {str(file.relative_to(copy)): digest(file) for file in models},
            "store": store_rows(copy / "store.sqlite"),
            "report": page.exists() and page.read_text("utf-8").rstrip().endswith("</html>"),  # it tells of seconds
            "summary": {name: value for name, value in noted.items() if name not in IGNORED_SUMMARY},
        }
    finally:
        shutil.rmtree(copy)


def runs(project: Path) -> dict[str, Any]:
    """Of each stage the last finished run: a command that was killed when all was done makes another, which must be the same."""
    found = {}
    for folder in sorted(project.glob("runs/*-[0-9][0-9][0-9][0-9]")):
        if not (folder / "result.json").exists():
            continue
        metrics = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
        found[folder.name[:-5]] = {
            "result": untimed(json.loads((folder / "result.json").read_text())),
            "metrics": [untimed(json.loads(line)) for line in metrics],
            "key": json.loads((folder / "parents.json").read_text())["key"],
            "files": {
                name: digest(folder / name) for name in ("answers.jsonl", "data.json") if (folder / name).exists()
            },
        }
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store_rows(path: Path) -> dict[str, list[Any]]:
    """Every table's rows, without numbers and times of their arrival. In order, for comparisons are drawn in it; models may come in any."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        names = [
            row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        tables = {}
        for name in names:
            # In the order of rowid, or of the key where there is none.
            cursor = connection.execute(f"SELECT * FROM {name}")
            columns = [column[0] for column in cursor.description]
            kept = [i for i, column in enumerate(columns) if column not in IGNORED_COLUMNS]
            rows = [[row[i] for i in kept] for row in cursor]
            tables[name] = sorted(rows, key=str) if name == "model_version" else rows
        return tables


def differences(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Where two figures differ, and in what."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted(found.keys() | expected.keys()):
            yield from differences(found.get(name), expected.get(name), f"{place}/{name}")
    elif found != expected:
        short = [
            f"{len(one)} rows" if isinstance(one, list) and len(str(one)) > 60 else str(one)[:60]
            for one in (found, expected)
        ]
        yield f"{place} is {short[0]} and was {short[1]}"


def left_over(project: Path) -> list[str]:
    return sorted(str(path.relative_to(project)) for path in project.rglob(".*") if LEFT.fullmatch(path.name))


# ---------------------------------------------------------------------------------------------------------- a trial


def run_trial(trial: Trial, folder: Path) -> Outcome:
    """Strike a command until all strikes have landed or one came too late, run it again to its end, and compare."""
    project, outcome = folder / trial.command.project, Outcome(trial.command.verb, [])
    for old in (project, project.with_name(f"{project.name}.seen")):
        shutil.rmtree(old, ignore_errors=True)
    if trial.before is not None:
        shutil.copytree(trial.before, project)
    status = None
    for strike in trial.strikes:
        lay_there, began = left_over(project), time.monotonic()
        printed = struck(trial, strike, folder)
        if strike.state == "late":
            status = strike.status
            outcome.undisturbed = None if outcome.strikes else time.monotonic() - began
            break
        outcome.strikes.append(strike)
        strike.state = "saving" if {*left_over(project)} - {*lay_there} else state(project, trial)
        outcome.faults += said_wrong(strike, printed)
        if (status := strike.status) == 0:
            break
    if status != 0 or not outcome.strikes:
        outcome.resumed, faults = finish(trial, folder)
        outcome.faults += faults
    outcome.faults += differences(figures(project), trial.expected)
    outcome.left_over = left_over(project)
    return outcome


def struck(trial: Trial, strike: Strike, folder: Path) -> str:
    """Run the command and strike it; what it printed. The strike's state is "late" where it had ended before."""
    point = None if isinstance(strike.moment, float) else strike.moment
    child = Child(trial.command, folder, point)
    second = None
    try:
        if isinstance(strike.moment, float):
            there = not child.wait(strike.moment * trial.seconds)
        else:
            there = child.wait_for_point()
        if there:
            second = second_process(child.pid)
            strike.state, strike.second = "during", strike.second and second is not None
            child.strike(strike.kind, second if strike.second and second is not None else child.pid)
        if there and point is not None:
            os.kill(child.pid, signal.SIGCONT)
        child.wait(LONGEST)
    finally:
        printed = child.end()
        strike.status = child.status
    if second is not None and outlives(second):
        os.kill(second, signal.SIGKILL)
        printed += "\nbridle: the second process outlived the first"
    return printed


def state(project: Path, trial: Trial) -> str:
    """Where a strike fell, as what lies there tells."""
    found = figures(project)
    return "after" if found == trial.expected else "before" if found == trial.begun else "during"


def said_wrong(strike: Strike, printed: str) -> list[str]:
    """A traceback, or an exit status that neither saved, nor finished, nor died of the signal before anything was begun."""
    _, traced, where = printed.partition("Traceback")
    faults = [f"it ended with a traceback: {where[-2000:]}"] if traced else []
    if "outlived" in printed:
        faults.append("the second process outlived the first")
    alone = strike.kind in (CLOSED, TEE) or strike.second
    by_signal = None if strike.kind in (CLOSED, TEE) else -signal.Signals[strike.kind]
    if not alone and strike.status not in (0, 130, by_signal):
        faults.append(f"it ended with status {strike.status} after {strike.kind}: {' '.join(printed.split())[-200:]}")
    return faults


def finish(trial: Trial, folder: Path) -> tuple[bool, list[str]]:
    """Run the command again, to its end: whether it resumed, and what was wrong."""
    child = Child(trial.command, folder)
    ended = child.wait(LONGEST)
    printed = child.end()
    resumed = "resuming after step" in printed
    there = trial.command.verb == "init" and "is a project already" in printed  # it was made before the kill
    if child.status == 0 or there:
        return resumed, []
    last = (printed.strip().splitlines() or [""])[-1]
    ends = f"with status {child.status}: {last}" if ended else f"not within {LONGEST:.0f} s"
    return resumed, [f"run again it ended {ends}"]


# ------------------------------------------------------------------------------------------------------ all of them


def undisturbed(commands: Sequence[Command], folder: Path, snapshots: Path) -> list[Trial]:
    """Walk through all commands; of each its project before, what it leaves and how long it takes, with no strikes yet."""
    print("undisturbed:", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    trials: list[Trial] = []
    for number, command in enumerate(commands):
        project, before = folder / command.project, None
        if command.begins_before:  # two processes share the work from there on; pretraining by two threads is slow here
            shutil.copytree(
                next(t.before for t in trials if t.before and t.command.verb == command.begins_before), project
            )
        if project.exists():
            before = Path(shutil.copytree(project, snapshots / f"{number:02d}-{command.project}"))
        begun, began = figures(project), time.monotonic()
        child = Child(command, folder)
        child.wait(LONGEST)
        seconds = time.monotonic() - began
        if child.status != 0:
            raise SystemExit(f"`bridle {' '.join(command.words[:3])}` failed undisturbed: {child.end()}")
        child.end()
        print(f"  {command.verb:<18} {seconds:5.1f} s", file=sys.stderr)
        trials.append(Trial(command, before, begun, figures(project), seconds, []))
    return trials


def random_strikes(seed: int, trial: int) -> list[Strike]:
    """Up to three, of any kind, at any moment: all that is random here."""
    draw = random.Random(f"{seed} {trial}")
    return [Strike(draw.choice(KINDS), draw.random(), draw.random() < 0.3) for _ in range(draw.randint(1, 3))]


def strike_at_random(folder: Path, kills: int, seed: int, only: str | None) -> list[Outcome]:
    """As many kills as are asked for, those that came too late not counted, as many of each verb."""
    work, snapshots, faulty = (folder / name for name in ("work", "before", "faults"))
    commands = walk(folder)
    wanted = [only in (None, command.verb, command.verb.removeprefix("train ")) for command in commands]
    if True not in wanted:
        raise SystemExit(f"{only!r} is not a verb of the walk: {', '.join(command.verb for command in commands)}")
    undisturbed(commands[:2], work, snapshots)  # compiles the kernels, which takes longer than all that follows
    shutil.rmtree(work)
    shutil.rmtree(snapshots)
    last = max(number for number, is_wanted in enumerate(wanted) if is_wanted)
    chosen = list(itertools.compress(undisturbed(commands[: last + 1], work, snapshots), wanted))
    outcomes: list[Outcome] = []
    landed: Counter[str] = Counter()
    done, began = 0, time.monotonic()
    for number in itertools.count():
        if done >= kills:
            break
        trial = min(chosen, key=lambda trial: landed[trial.command.verb])  # every verb as often
        outcome = run_trial(replace(trial, strikes=random_strikes(seed, number)[: kills - done]), work)
        outcomes.append(outcome)
        trial.seconds = min(trial.seconds, outcome.undisturbed or trial.seconds)  # the first one of its kind was slower
        landed[outcome.verb] += len(outcome.strikes)
        done = landed.total()
        left = (time.monotonic() - began) / max(done, 1) * (kills - done) / 60
        fell = ", ".join(f"{strike.kind} {strike.state}" for strike in outcome.strikes) or "too late"
        print(f"{done:4d} of {kills}, {left:4.1f} min left  {outcome.verb:<16} {fell}", file=sys.stderr)
        if outcome.faults:
            print(f"    wrong: {outcome.faults[0][:160]}", file=sys.stderr)
            shutil.copytree(work / trial.command.project, faulty / f"{number:03d}-{outcome.verb.replace(' ', '-')}")
    return outcomes


TRAINED = Point("bridle.project.run", "Run.log", 1)  # a step that is not saved unless that is asked for
# Each kind once, at its own place: what has been done before in the demo and is taken away, the command, the kind, the point.
POINTS: dict[str, tuple[str, str, str, Point]] = {
    "killed before a model takes its place": ("sft", "train sft", "SIGKILL", Point("os", "replace", 1, "*/models/sft")),
    "asked to end while training": ("sft", "train sft", "SIGTERM", TRAINED),
    "hung up while training": ("reward", "train reward", "SIGHUP", TRAINED),
    "read by nobody while training": ("sft", "train sft", CLOSED, TRAINED),
    "Ctrl-C in a pipe to tee while training": ("sft", "train sft", TEE, TRAINED),
    "killed while importing": ("", "import", "SIGKILL", Point("bridle.feedback.store.store", "Store.add_judgements", 2)),
    "killed in a stage of the demo": ("dpo", "demo", "SIGKILL", TRAINED),
}  # fmt: skip


def strike_at_points(folder: Path, demo: Path) -> dict[str, Outcome]:
    """Each of POINTS in a copy of a finished demo of one thread, from which what it strikes was taken."""
    work, snapshots = folder / "work", folder / "before"
    whole, outcomes = figures(Path(shutil.copytree(demo, snapshots / "demo"))), {}
    own = undisturbed([command for command in walk(folder) if command.project == "own"], work, snapshots)
    commands = {command.verb: replace(command, threads=1) for command in walk(folder)}
    for name, (stage, verb, kind, point) in POINTS.items():
        command = commands[verb]
        if verb == "import":
            trial = replace(own[-1], strikes=[Strike(kind, point)])
        else:
            before = Path(shutil.copytree(demo, snapshots / name))
            for taken in (*before.glob(f"runs/{stage}*-0001"), *before.glob(f"models/{stage}*")):
                if not taken.name.startswith("reward-shuffled"):
                    shutil.rmtree(taken)
            trial = Trial(command, before, {}, whole, LONGEST, [Strike(kind, point)])
        outcomes[name] = run_trial(trial, work)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each verb: kills by kind and by state, commands with something wrong, files left over."""
    heads = ["verb", "kills", *KINDS, *STATES, "wrong", "left over"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for verb in [*dict.fromkeys(outcome.verb for outcome in outcomes), "all"]:
        of = [outcome for outcome in outcomes if verb in (outcome.verb, "all")]
        strikes = [strike for outcome in of for strike in outcome.strikes]
        kinds, states = Counter(strike.kind for strike in strikes), Counter(strike.state for strike in strikes)
        wrong, left = sum(bool(outcome.faults) for outcome in of), sum(len(outcome.left_over) for outcome in of)
        cells = [len(strikes), *(kinds[kind] for kind in KINDS), *(states[state] for state in STATES), wrong, left]
        lines.append(f"| {verb} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def import_everything() -> None:
    """What any command imports, so that a forked process has it. Nothing is computed here: a fork keeps one thread alone."""
    for name in (
        "bridle.cli.main",
        "bridle.demo.demo",
        "bridle.report.run",
        "bridle.stages.methods",
        "bridle.feedback.importing.importer",
    ):
        importlib.import_module(name)
    for name in ("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.font_manager"):
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Random kills and signals over every verb, and what they leave.")
    parser.add_argument("folder", type=Path, help="a new folder to work in")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="VERB", help="one verb alone, such as 'train ppo'")
    parser.add_argument(
        "--points",
        type=Path,
        metavar="DEMO",
        help="strike at fixed points, in copies of a finished tiny demo of one thread",
    )
    chosen = parser.parse_args()
    folder: Path = chosen.folder.resolve()
    folder.mkdir(parents=True)
    os.environ |= ALONE
    if chosen.points is None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # so that no kill reaches the user's
    import_everything()
    began = time.monotonic()
    if chosen.points is not None:
        outcomes = strike_at_points(folder, chosen.points)
        report: dict[str, Any] = {"points": {name: asdict(outcome) for name, outcome in outcomes.items()}}
        tried = list(outcomes.values())
    else:
        tried = strike_at_random(folder, chosen.kills, chosen.seed, chosen.only)
        report = {
            "seed": chosen.seed,
            "kills": sum(len(one.strikes) for one in tried),
            "trials": [asdict(one) for one in tried],
        }
    used = sum(os.times()[:4])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    whole = {
        "commit": commit,
        "seconds": round(time.monotonic() - began, 1),
        "processor seconds": round(used, 1),
        "table": table(tried),
        **report,
    }
    (folder / "kills.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(
        f"{table(tried)}\n\n{folder / 'kills.json'}: {whole['seconds']:.0f} s, {used:.0f} on the processor, at {commit}"
    )
    return int(any(one.faults for one in tried))


if __name__ == "__main__":
    sys.exit(main())
