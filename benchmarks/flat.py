"""Whether a long run slows down or grows: python benchmarks/flat.py [--quick]. The steps are cheap ones, so that there are many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness import MODELS, Contestant, Stage, Trial, main
from texts import prompts, score, texts

LOOKS = (0.005, 0.05, 0.25, 0.5, 0.75, 1.0)  # shares of the run: step 10, 100, 500, 1,000, 1,500 and 2,000 of 2,000


class Watch:
    """Seconds and memory around some steps of a run."""

    def __init__(self, trial: Trial, name: str, total: int) -> None:
        self.trial, self.name = trial, name
        self.looks = [max(1, round(share * total)) for share in LOOKS]
        self.width = max(5, total // 100)

    def __call__(self, step: int, total: int, metrics: object) -> None:
        for look in self.looks:
            case = f"{self.name}, step {look}"
            if look - self.width <= step <= look + self.width:
                self.trial.step(step, case)
                self.trial.notes[case] = round(resident_mb())


def resident_mb() -> float:
    """Memory that the process holds at this moment; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if statm.exists() else 0.0


def reward(asked: Sequence[str], answers: Sequence[str]) -> list[float]:
    return [score(answer) for answer in answers]


def bridle(trial: Trial) -> None:
    import bridle

    model = bridle.load(MODELS / "m1")
    shown = list(zip(texts(256, 8, 7), texts(256, 15, 8), strict=True))
    bridle.sft(
        model, shown * (trial.steps // 64 + 1), batch_size=4, epochs=1, optimizer="adamw", learning_rate=1e-5,
        on_log=Watch(trial, "SFT", trial.steps),
    )  # fmt: skip
    bridle.grpo(
        bridle.load(MODELS / "m1"), prompts(256, 8), reward, max_new_tokens=8, steps=trial.steps, prompts_per_step=2, group_size=2,
        minibatches=1, learning_rate=1e-5, on_log=Watch(trial, "GRPO", trial.steps),
    )  # fmt: skip


if __name__ == "__main__":
    main(
        Stage(
            "flat",
            "SFT on 4 × (8 + 16) tokens, GRPO on 4 answers of 8; 1.3M parameters",
            [Contestant("bridle", bridle)],
            steps=2000,
            quick_steps=400,
            rounds=1,
            models=("m1",),
        )
    )
