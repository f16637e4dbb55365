"""The demo for several seeds, one after another: python experiments/seeds.py FOLDER SEED [SEED …]

Every seed is shown; a mean and the worst stand below. A demo that lies finished in FOLDER/seed-N is not run again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridle.demo.demo import run_demo
from bridle.recipe.recipe import Recipe

Stages = dict[str, dict[str, Any]]
METRICS: list[tuple[str, Callable[[Stages], float]]] = [
    ("agree", lambda s: s["label"]["agreement_with_gold"]),
    ("base gold", lambda s: s["evaluate-base"]["gold"]),
    ("sft gold", lambda s: s["evaluate-sft"]["gold"]),
    ("base complies", lambda s: s["evaluate-base"]["complies"]),
    ("sft complies", lambda s: s["evaluate-sft"]["complies"]),
    ("sft unpars.", lambda s: s["evaluate-sft"]["unparsable"]),
    ("pair acc", lambda s: s["reward"]["pair_accuracy"]),
    ("slim acc", lambda s: s["reward"]["slim"]["pair_accuracy"]),
    ("shuffled", lambda s: s["reward-shuffled"]["pair_accuracy"]),
    ("ppo gold", lambda s: s["ppo"]["gold_after"]),
    ("win", lambda s: s["ppo"]["win_rate"]),
    ("win low", lambda s: s["ppo"]["win_rate_low"]),
    ("complies", lambda s: s["evaluate-ppo"]["complies"]),
    ("refuses b.", lambda s: s["evaluate-ppo"]["refuses_benign"]),
    ("kl", lambda s: s["evaluate-ppo"]["kl"]),
    ("unpars.", lambda s: s["evaluate-ppo"]["unparsable"]),
    ("cliff proxy", lambda s: s["unbridled"]["proxy_end"] - s["unbridled"]["proxy_start"]),
    ("cliff peak", lambda s: s["unbridled"]["gold_peak"]),
    ("cliff end", lambda s: s["unbridled"]["gold_end"]),
    ("dpo gold", lambda s: s["dpo"]["gold_after"]),
    ("dpo win", lambda s: s["dpo"]["win_rate"]),
    ("dpo win low", lambda s: s["dpo"]["win_rate_low"]),
    ("dpo complies", lambda s: s["evaluate-dpo"]["complies"]),
    ("dpo refuses b.", lambda s: s["evaluate-dpo"]["refuses_benign"]),
    ("dpo kl", lambda s: s["evaluate-dpo"]["kl"]),
    ("one of SFT", lambda s: s["best_of_4"]["frontier"][0]["gold"]),
    ("best of 4", lambda s: s["best_of_4"]["gold"]),
    ("grpo before", lambda s: s["grpo"]["accuracy_before"]),
    ("grpo after", lambda s: s["grpo"]["accuracy_after"]),
    ("worked before", lambda s: s["grpo"]["worked_before"]),
    ("worked after", lambda s: s["grpo"]["worked_after"]),
]


def main(folder: Path, seeds: list[int]) -> None:
    rows = []
    for seed in seeds:
        recipe = Recipe().with_settings({"seed": seed, "data.source": "playground"})
        summary = run_demo(folder / f"seed-{seed}", recipe)
        rows.append([summary["seconds"], *(read(summary["stages"]) for _, read in METRICS)])
        print_table(seeds[: len(rows)], rows)


def print_table(seeds: list[int], rows: list[list[float]]) -> None:
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    print(f"\n| metric | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |")
    print("|---" * (len(seeds) + 2) + "|")
    for index, name in enumerate(["seconds", *(name for name, _ in METRICS)]):
        values = [row[index] for row in rows]
        print(f"| {name} | {' | '.join(f'{v:.3g}' for v in values)} | {means[index]:.3g} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
