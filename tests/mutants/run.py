"""Plants the one-line faults of `mutants.toml`, one at a time, in a copy of the checkout, and reports those that its tests let through.

    make mutants                       # all of them, two at a time
    make mutants ARGS="-k ppo -j 1"    # those whose file, lines or meaning hold "ppo", one at a time

Exit status 1 where a fault survives that the table does not explain, where an explained one is noticed after all, or where the
named tests fail with nothing planted: then they would notice everything.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("mutants.toml")
LIMIT = 240  # seconds on the processor for the tests of one fault: one that makes them run on and on is noticed
NOTICED = (1, 2)  # pytest's exit status where a test failed, or a file of tests could not be imported
PYTEST = ("-x", "-q", "-m", "not slow", "-p", "no:randomly", "-p", "no:cacheprovider", "--no-header", "--tb=no")


@dataclass(frozen=True)
class Mutant:
    """A fault: in `path` the fragment `was`, which stands there once, becomes `now`. `tests`: what ought to notice, as pytest takes
    it. `equivalent`: why nothing can notice."""

    path: str
    tests: tuple[str, ...]
    was: str
    now: str
    breaks: str
    equivalent: str = ""

    @property
    def name(self) -> str:
        return f"{self.path}: {self.was!r} → {self.now!r} ({self.breaks})"

    def planted(self, text: str) -> str:
        """The file's text with the fault; ValueError where the fragment does not stand there once, so that its place is not known."""
        if (count := text.count(self.was)) != 1:
            raise ValueError(
                f"{self.path} holds {self.was!r} {count} times, and a fault is planted in one place; mend {TABLE.name}"
            )
        return text.replace(self.was, self.now)


def read_table() -> list[Mutant]:
    """All faults; one has the tests of its file, and those that it names itself."""
    table = tomllib.loads(TABLE.read_text("utf-8"))
    return [
        Mutant(part["path"], tuple(fault.get("tests", part["tests"]).split()), fault["was"], fault["now"], fault["breaks"],
               fault.get("equivalent", ""))
        for part in table["file"] for fault in part["fault"]
    ]  # fmt: skip


def copy_checkout(folder: Path) -> None:
    """What git knows, or would add."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def pytest_in(copy: Path, tests: Sequence[str]) -> int:
    """pytest's exit status on a copy. What is heavy to import has been, before the process was forked."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # for what tests start
    sys.path[:] = [
        str(copy),
        *(entry for entry in sys.path if entry not in ("", str(ROOT), str(Path(__file__).parent))),
    ]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    import pytest

    return int(pytest.main([*PYTEST, *tests]))


def in_processes(mutants: Sequence[Mutant], copies: Sequence[Path]) -> Iterator[tuple[Mutant, int]]:
    """Each fault with pytest's exit status as its tests end, in as many processes as there are copies, each alone on its copy."""
    waiting, free = list(mutants), list(copies)
    running: dict[int, tuple[Mutant, Path, str]] = {}
    while waiting or running:
        while waiting and free:
            mutant, copy = waiting.pop(0), free.pop()
            text = (copy / mutant.path).read_text("utf-8")
            write(copy / mutant.path, mutant.planted(text))
            if (pid := os.fork()) == 0:
                try:
                    os._exit(pytest_in(copy, mutant.tests))
                finally:
                    os._exit(3)
            running[pid] = mutant, copy, text
        pid, ended = os.wait()
        mutant, copy, text = running.pop(pid)
        write(copy / mutant.path, text)
        free.append(copy)
        code = os.waitstatus_to_exitcode(ended)
        yield mutant, 1 if code < 0 else code  # killed: the time was up, or a kernel wrote where it must not


def write(file: Path, text: str) -> None:
    """What was compiled is known by size and second alone, and may be another fault's."""
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
    file.write_text(text, "utf-8")


def judged(mutant: Mutant, status: int) -> str:
    """What is wrong; empty where it is as the table says."""
    if status not in (0, *NOTICED):
        return f"pytest ended with status {status}: {mutant.name}"
    if status == 0 and not mutant.equivalent:
        return f"survived: {mutant.name}"
    if status != 0 and mutant.equivalent:
        return f"noticed, though the table says that nothing can: {mutant.name}"
    return ""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-k", default="", metavar="WORD", help="only those whose file, lines or meaning hold this")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="at a time, each on one thread (2)")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in read_table() if options.k.lower() in mutant.name.lower()]
    if not chosen:
        parser.error(f"no fault holds {options.k!r}; {TABLE.name} lists them")
    os.environ |= {"OMP_NUM_THREADS": "1", "BRIDLE_THREADS": "1"}
    import pytest  # noqa: F401
    import torch  # noqa: F401  # not transformers: it brings a plugin of pytest's along, which wants to come later

    started, reports = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Path(folder) / str(number) for number in range(options.j)]
        for copy in copies:
            copy_checkout(copy)
        named = {word: replace(mutant, now=mutant.was, tests=(word,)) for mutant in chosen for word in mutant.tests}
        for mutant, status in in_processes(list(named.values()), copies):  # a fault that changes nothing
            if status != 0:
                reports.append(f"with nothing planted pytest ends with status {status}: {mutant.tests[0]}")
                print(reports[-1], flush=True)
        for number, (mutant, status) in enumerate(in_processes(chosen, copies), 1):
            report = judged(mutant, status)
            reports += [report] if report else []
            seen = report or f"{'equivalent' if mutant.equivalent else 'noticed'}: {mutant.name}"
            print(f"{number}/{len(chosen)} {seen}", flush=True)
    explained, minutes = sum(bool(mutant.equivalent) for mutant in chosen), (time.monotonic() - started) / 60
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\n{len(chosen)} faults, {explained} of them explained; {len(reports)} to mend; {minutes:.1f} minutes, "
        f"{(spent.ru_utime + spent.ru_stime) / 60:.1f} on the processor"
    )
    print(*reports, sep="\n")
    return int(bool(reports))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
