"""SFT, DPO, GRPO, PPO and decoding on a graphics card, beside TRL and transformers: python benchmarks/gpu.py [--minutes 9]

Each stage is its script here, on random weights in the shapes of Qwen2.5's 0.5B and 1.5B with their vocabulary, rows of 128 + 384 tokens,
in one round of few steps. What would begin behind the time that is allowed is left out, and said. Results lie in
results/gpu/MODEL/STAGE.json with the card's name; the table is printed, and written beside them. A peer takes part where its environment is
(`make bench-setup`).

MFU: the share of the card's dense bfloat16 rate that the operations of the model are, 6 for a weight and a token that is learnt from
(Chowdhery 2022, arxiv.org/abs/2204.02311, appendix B), without attention; told for SFT, where nothing else is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import FOLDER, RESULTS, figures, median_of, names_of

STAGES = {  # steps of each, and contestants: the best of a peer's settings is enough where time is dear
    "sft": (6, "bridle,trl best"),
    "dpo": (5, "bridle,trl best"),
    "decode": (2, "bridle,generate bf16"),
    "grpo": (3, "bridle,trl best"),
    "ppo": (2, "bridle,trl best"),
}
PARAMETERS = {"q05": 494e6, "q15": 1.544e9}
RATES = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "3090": 71e12}


def measure(models: list[str], stages: list[str], minutes: float, folder: Path) -> list[str]:
    """Run what the time allows; what was left out, in words."""
    ends, left = time.monotonic() + 60 * minutes, []
    for model in models:
        for stage in stages:
            seconds = ends - time.monotonic()
            if seconds < 20:
                left.append(f"{model} {stage}: out of time")
                continue
            steps, contestants = STAGES[stage]
            command = [
                sys.executable, str(FOLDER / f"{stage}.py"), "--rounds", "1", "--steps", str(steps), "--contestants", contestants,
                "--threads", "8", "--results", str(folder / model),
            ]  # fmt: skip
            try:
                subprocess.run(command, env={**os.environ, "BRIDLE_BENCH_MODEL": model}, timeout=seconds)
            except subprocess.TimeoutExpired:
                left.append(f"{model} {stage}: took longer than the {seconds:.0f} s that were left")
    return left


def rate_of(card: str) -> float:
    """Operations a second of a card by its name, in dense bfloat16; 0 where it is not known."""
    return next((rate for name, rate in RATES.items() if name in card), 0.0)


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each contestant and case of each result, which goes by MODEL/STAGE."""
    lines = [
        "| model | stage | contestant | case | ms a step (least to most) | tokens/s | card's memory, GiB | MFU | card |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for place, result in results.items():
        model, stage = place.split("/")
        for name in names_of(result):
            row = next(one for one in result["rows"] if one["contestant"] == name)
            card = row.get("card", "none")
            memory = f"{median_of(result, name, 'card_peak_mb') / 1024:.1f}" if "card_peak_mb" in row else ""
            for case, found in figures(result, name).items():
                tokens = result["tokens"].get(case, 0) / found.median
                known = stage == "sft" and rate_of(card) and model in PARAMETERS
                mfu = f"{6 * PARAMETERS[model] * tokens / rate_of(card):.1%}" if known else ""
                spread = f"{1000 * found.median:.0f} ({1000 * found.least:.0f} to {1000 * found.most:.0f})"
                lines.append(
                    f"| {model} | {stage} | {name} | {case} | {spread} | {tokens:,.0f} | {memory} | {mfu} | {card} |"
                )
        lines += [
            f"| {model} | {stage} | {name} | | failed: {error} | | | | |" for name, error in result["failed"].items()
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="q05,q15")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu", metavar="DIR")
    asked = parser.parse_args()
    models, stages = asked.models.split(","), asked.stages.split(",")
    left = measure(models, stages, asked.minutes, asked.results)
    found = {
        f"{model}/{stage}": json.loads(file.read_text("utf-8"))
        for model in models
        for stage in stages
        if (file := asked.results / model / f"{stage}.json").is_file()
    }
    text = "\n".join([*table(found), *(f"left out: {one}" for one in left)]) + "\n"
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / "README.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
