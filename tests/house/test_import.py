"""Every module imports by itself, whatever was imported before; the floors without torch leave it alone.

One interpreter forks a process for each module. What a module imports anyway, at its top or through others, is loaded before
the fork, once for all that need it, for it is slow; what it does not import is not, nor what imports it in a circle. So
nothing works only because another was there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.house.source import LIGHT, ROOT, Source, imports, listed, written_by_us

HEAVY = ("torch", "transformers")
PROGRAM = f"""
import gc, importlib, json, os, pkgutil, sys, traceback
from collections import Counter

gc.disable()  # importing is quicker so
SLOW = {{"torch": 3, "sqlalchemy": 2, "alembic": 2, "pydantic": 1}}  # the slowest first: fewest processes load them

def visit(needs):  # module: the names it imports; loaded here: only what all of them need
    shared = set.intersection(*map(set, needs.values()))
    for name in sorted(shared):
        try:
            pkgutil.resolve_name(name)
        except Exception:
            pass  # the module itself will tell
    left = {{module: [name for name in names if name not in shared] for module, names in needs.items()}}
    if len(left) == 1:
        return report(*left)
    counts = Counter(name for names in left.values() for name in names)
    next_one = max(counts, key=lambda name: (SLOW.get(name.split(".")[0], 0), counts[name]), default=None)
    with_it = {{m: names for m, names in left.items() if next_one in names}}
    without = {{m: names for m, names in left.items() if m not in with_it}}
    groups = [group for group in (with_it, without) if group] if counts else [{{m: []}} for m in left]
    for group in groups[:-1]:
        if (child := os.fork()) == 0:
            try:
                visit(group)
            finally:
                sys.stdout.flush()
                os._exit(0)
        if os.waitpid(child, 0)[1]:
            print("died while importing one of", *group)
    visit(groups[-1])  # nothing comes after it here

def report(module):
    try:
        importlib.import_module(module)
    except BaseException:
        print(module + ": " + traceback.format_exc().strip().splitlines()[-1])
    else:
        print(module + ":", *["loads " + name for name in {HEAVY} if name in sys.modules])

visit(json.load(sys.stdin))
"""


def is_light(module: str) -> bool:
    return module == "bridle" or any(f"{module}.".startswith(f"bridle.{name}.") for name in LIGHT)


def needs(sources: Sequence[Source]) -> dict[str, list[str]]:
    """The names that each module imports when it is imported, through other modules too, but for those that import it."""
    ours = {source.module: source for source in sources}

    def imported_by(source: Source) -> Iterator[str]:
        parts = source.module.split(".")
        yield from (".".join(parts[:end]) for end in range(1, len(parts)))  # its folders
        for line in imports(source):
            if not line.lazy and line.name.split(".")[0] not in sys.stdlib_module_names:
                origin = line.name.rpartition(".")[0]
                yield line.name.split(".")[0]  # imported before its parts: those that need any part of it load it once
                yield origin if line.name not in ours and origin in ours else line.name

    direct = {module: set(imported_by(source)) for module, source in ours.items()}
    closures: dict[str, set[str]] = {}
    for module in ours:
        seen, todo = {module}, [module]
        while todo:
            new = direct.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        closures[module] = seen
    return {
        module: sorted(name for name in names if module not in closures.get(name, ()))
        for module, names in closures.items()
    }


def imported(needs: Mapping[str, list[str]], folder: Path = ROOT) -> dict[str, str]:
    """What became of importing each module by itself: nothing to tell, what it loads, or its error."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(needs), capture_output=True, text=True, env=environment
    )
    told = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert done.returncode == 0 and told.keys() == needs.keys(), done.stdout + done.stderr
    return {module: words.strip() for module, words in told.items()}


def test_a_module_that_does_not_import_is_found(tmp_path: Path) -> None:
    texts = {
        "bad/__init__.py": "",
        "bad/broken.py": "import surely_not_there",
        "bad/loose.py": "import xml\nxml.dom",  # works only if someone else has imported xml.dom before
        "bad/looser.py": "import other\nother.part",  # the same with a package that another module needs
        "bad/tight.py": "import other.part, xml.dom",
        "bad/heavy.py": "import torch",
        "bad/through.py": "from bad.heavy import torch",
        "bad/fine.py": "import json\ndef f():\n    import torch",
        "bad/early.py": "import bad.late\nX = 1",  # imports well only after the one it makes a circle with
        "bad/late.py": "from bad.early import X",
        "torch.py": "",  # the name is enough, and quicker
        "other/__init__.py": "",
        "other/part.py": "",
    }
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    bad = [Source(path, text) for path, text in texts.items() if path.startswith("bad/")]
    told = imported(needs(bad), tmp_path)
    assert "surely_not_there" in told.pop("bad.broken")
    assert "no attribute 'dom'" in told.pop("bad.loose") and "no attribute 'part'" in told.pop("bad.looser")
    assert "cannot import name 'X'" in told.pop("bad.early")
    assert told.pop("bad.heavy") == told.pop("bad.through") == "loads torch"
    assert told == dict.fromkeys(["bad", "bad.tight", "bad.fine", "bad.late"], "")


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    return imported(needs(written_by_us()))


def test_every_module_imports_alone(told: dict[str, str]) -> None:
    faults = [f"{module}: {words}" for module, words in told.items() if words and not words.startswith("loads ")]
    assert not faults, listed(faults)


def test_light_modules_load_no_torch(told: dict[str, str]) -> None:
    faults = [f"{module}: {words}" for module, words in told.items() if is_light(module) and words]
    assert not faults, listed(faults)
