"""Run experiments and keep what came out: python -m experiments [NAME …] [--seed N] [--again]

Without names: all whose code, settings or world differ from what was saved. A named one is run if it differs, or with --again. With --seed
one seed is run, its figures are printed and nothing is saved. What is saved lies in experiments/results/, and docs/experiments.md shows it.
Exit status 1 where an experiment that ran does not hold.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from bridle.core.files import write_text
from experiments.harness import ROOT, Experiment, Row, code_hash, judged_again, number, run, save, saved, summary

PAGE = ROOT / "docs/experiments.md"
MODULES = {  # each defines EXPERIMENT
    "E1": "experiments.shakespeare",
    "E2": "experiments.optimum",
    "E3": "experiments.cliff",
    "E4": "experiments.penalty",
    "E5": "experiments.adaptive_kl",
    "E6": "experiments.guarded",
    "E6-harbour": "experiments.worlds.harbour",
    "E6-tables": "experiments.guard_rules",
    "E7": "experiments.table_ensembles",
    "E7-playground": "experiments.ensembles",
    "E8": "experiments.noise",
    "E9": "experiments.rankings",
    "E10": "experiments.labelers",
    "E11": "experiments.direct",
    "E12": "experiments.verifiable",
    "E13": "experiments.rounds",
    "E14": "experiments.judges",
    "E15": "experiments.constitution",
    "RLAIF": "experiments.rlaif",
    "E16": "experiments.wheel",
    "planted": "experiments.planted",
    "rubric": "experiments.rubric",
    "E17": "experiments.truth",
    "E18": "experiments.hour",
    "E19": "experiments.bowl",
    "staleness": "experiments.staleness",
}


def experiment_of(name: str) -> Experiment:
    found: Experiment = import_module(MODULES[name]).EXPERIMENT
    assert found.name == name
    return found


def print_seed(seed: int, row: Row) -> None:
    print(f"seed {seed}: " + ", ".join(f"{name} {number(value)}" for name, value in row.items()), flush=True)


def with_results(text: str) -> str:
    """The page with each experiment's newest table between its two marks, `<!-- E5 -->` and `<!-- end -->`."""

    def table(mark: re.Match[str]) -> str:
        result = saved(mark[1])
        lines = ["Not run yet."] if result is None else summary(result)
        return "\n".join([f"<!-- {mark[1]} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main(arguments: Sequence[str], page: Path = PAGE) -> int:
    parser = argparse.ArgumentParser(prog="make experiments", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}; all where none is given")
    parser.add_argument("--seed", type=int, help="run this seed alone, print its figures, save nothing")
    parser.add_argument("--again", action="store_true", help="run also what has not changed")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in MODULES]:
        parser.error(f"there is no experiment {unknown[0]!r}; there are {', '.join(MODULES)}")
    torch.set_num_threads(1)
    failed = []
    for name in given.names or MODULES:
        experiment = experiment_of(name)
        if given.seed is not None:
            print_seed(given.seed, experiment.measure(given.seed))
            continue
        before = saved(name)
        if before is not None and before["code_hash"] == code_hash(MODULES[name]) and not given.again:
            save(judged_again(experiment, before))
            print(f"{name}: {before['verdict']}; nothing that it rests on has changed")
            continue
        print(f"\n{name}: {experiment.title}", flush=True)
        result = run(experiment, MODULES[name], print_seed)
        save(result)
        print("\n".join(summary(result)), flush=True)
        failed += [name] * (result["verdict"] != "holds")
    if given.seed is None:
        write_text(page, with_results(page.read_text("utf-8")))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
