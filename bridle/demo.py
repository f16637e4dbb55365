"""Floor 8: the demo, the whole loop once on the playground. Finished stages are not run twice.

With two threads or more, a second process does some stages while this one does others: two threads on one small model
get half again as much done as one, two processes twice as much.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bridle.core.errors import BridleError, ProjectError
from bridle.core.files import read_json, write_json
from bridle.core.profile import leave, take, write_profile
from bridle.core.recipe import Recipe
from bridle.core.runlog import RECIPE_FILE, Progress, Project, clock
from bridle.core.timeline import record, recording, timed
from bridle.loop_report import finished_metrics, write_project_report
from bridle.models.device import Device
from bridle.scoring import train_reward, train_shuffled
from bridle.stages import Work, compare, evaluate, label_simulated, sample, train_ppo, train_pretrain, train_sft
from bridle.tuning import evaluate_best_of, train_dpo, train_grpo

# PPO as it should not be done: no KL penalty, a higher rate, more and smaller steps.
UNBRIDLED = {"kl_coef": 0.0, "kl_target": 0.0, "learning_rate": 8e-4}
# `demo --quick`: every stage, and no more of each than shows that it works.
QUICK = {
    "data.pretrain_tokens": 300_000, "data.train_prompts": 240, "data.heldout_prompts": 128, "data.probe_prompts": 40,
    "data.compared_heldout": 60, "data.demonstrations": 800, "ppo.steps": 4, "ppo.prompts_per_step": 48,
    "dpo.observe_every": 10, "grpo.steps": 4, "grpo.prompts_per_step": 12, "grpo.branch_problems": 400,
    "grpo.branch_demonstrations": 200,
}  # fmt: skip
SMOOTH = 3  # rollout steps in a running mean of gold: one step's prompts are few


@dataclass(frozen=True)
class Stage:
    """`seconds` weigh the time left. `after`: once that one is done, a second process may do this one, and no stage that
    the first process does may need it."""

    name: str
    seconds: float
    run: Callable[[Work], dict[str, Any]]
    after: str = ""


STAGES = [
    Stage("pretrain", 140, lambda work: train_pretrain(work, reuse=True)),
    Stage("sft", 40, lambda work: train_sft(work, reuse=True)),
    Stage("sample", 24, lambda work: sample(work, reuse=True)),
    Stage("label", 1, lambda work: label_simulated(work, reuse=True)),
    Stage("reward", 45, lambda work: train_reward(work, reuse=True)),
    Stage("ppo", 50, lambda work: train_ppo(work, reuse=True)),
    Stage("unbridled", 72, lambda work: train_unbridled(work), after="reward"),
    Stage("dpo", 28, lambda work: train_dpo(work, reuse=True), after="label"),
    Stage("grpo", 50, lambda work: train_grpo(work, reuse=True), after="pretrain"),
    Stage("best_of_4", 10, lambda work: evaluate_best_of(work, 4, reuse=True)),
    Stage("evaluate-base", 7, lambda work: evaluate(work, "base", reuse=True)),
    Stage("evaluate-sft", 5, lambda work: evaluate(work, "sft", reuse=True)),
    Stage("evaluate-ppo", 8, lambda work: evaluate(work, "ppo", reuse=True)),
    Stage("evaluate-dpo", 7, lambda work: evaluate(work, "dpo", reuse=True), after="reward"),
    Stage("evaluate-unbridled", 9, lambda work: evaluate(work, "unbridled", reuse=True), after="reward"),
    Stage("reward-shuffled", 10, lambda work: train_shuffled(work, reuse=True), after="label"),
]


def train_unbridled(work: Work) -> dict[str, Any]:
    """Near twice as many rollout steps as the recipe's PPO, of two thirds of its prompts."""
    title = "PPO without its bridle: the same, and nothing that holds it"
    ppo = work.recipe.ppo
    longer = {"steps": -(-22 * ppo.steps // 12), "prompts_per_step": max(1, 2 * ppo.prompts_per_step // 3)}
    return train_ppo(work, reuse=True, name="unbridled", title=title, settings={**UNBRIDLED, **longer})


def run_demo(out: Path, recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """Walk the loop in `out`, or go on with the demo there; writes report.html and summary.json, returns the summary."""
    progress = progress or Progress()
    project = open_demo(out, recipe)
    if (recorded := recording()) is not None:
        recorded.place = project.folder
        (project.folder / LEFT).unlink(missing_ok=True)  # of a second process whose first one was killed
    sitting = Sitting.begin(project)
    work = Work(project, progress, threads=sitting.threads)
    beside = None
    try:
        sitting.note(work.device)
        both = work.device.torch.type == "cpu" and work.device.threads > 1
        here = [stage for stage in STAGES if not (both and stage.after)]
        done: dict[str, dict[str, Any]] = {}
        expected_left = sum(stage.seconds for stage in here)
        worked = spent = 0.0
        for stage in here:
            expected_left -= stage.seconds
            progress.later = expected_left * (spent / worked if worked else 1.0)
            began = time.monotonic()
            done[stage.name] = stage.run(work)
            took = time.monotonic() - began
            if took > 0.5:  # else it was done before
                worked, spent = worked + stage.seconds, spent + took
            if both and stage.name == "pretrain":
                share_threads(work)
            for other in STAGES:
                if both and other.after == stage.name and project.finished_folder(other.name) is None:
                    beside = beside or Beside(project.folder, work.device.threads)
                    beside.give(other.name)
        if beside:
            with timed("wait"):
                beside.wait(progress)
        progress.later = 0.0
        stages = {stage.name: done.get(stage.name) or stage.run(work) for stage in STAGES}
        for result in stages.values():
            for part in {"slim", "branch"} & set(result):  # one stage to the reader, two runs on disk
                result["seconds"] += result[part]["seconds"]
        progress.begin("Writing the report")
        began = time.monotonic()
        if recorded is not None:
            take(recorded, project.folder / LEFT)
            with suppress(BridleError):  # for the report to show; it is written again, and told of, at the end
                write_profile(recorded, project.folder)
        with timed("report"):
            write_json(project.folder / "summary.json", summarise(work, stages, sitting))
            write_project_report(project, work)
        stages["report"] = {"seconds": round(time.monotonic() - began, 2)}
        summary = summarise(work, stages, sitting)
        write_json(project.folder / "summary.json", summary)
        return summary
    finally:
        if beside:
            beside.stop()
        if recorded is not None:
            take(recorded, project.folder / LEFT)
        sitting.end()
        work.close()


# ----------------------------------------------------------------------------------- sittings, and a second process


@dataclass
class Sitting:
    """Seconds and threads of a demo that may be stopped and gone on with; kept in demo.json.

    A sitting that was killed counts up to the last file that its runs wrote.
    """

    path: Path
    threads: int | None
    earlier: float
    finished: bool
    began: float
    device: str = ""

    @classmethod
    def begin(cls, project: Project) -> Sitting:
        path = project.folder / "demo.json"
        noted = read_json(path) if path.exists() else {}
        earlier = float(noted.get("seconds", 0.0))
        if killed := noted.get("began"):
            written = [file.stat().st_mtime for file in project.folder.glob("runs/*/*")]
            earlier += max(0.0, max(written, default=0.0) - killed)
        finished = (project.folder / "summary.json").exists()
        return cls(path, noted.get("threads"), earlier, finished, time.time())

    @property
    def seconds(self) -> float:
        """Of all sittings; a look at a finished demo adds nothing."""
        return self.earlier + (0.0 if self.finished else time.time() - self.began)

    def note(self, device: Device) -> None:
        self.threads, self.device = device.threads, str(device)
        write_json(self.path, {"threads": device.threads, "seconds": round(self.earlier, 1), "began": self.began})

    def end(self) -> None:
        if self.threads is not None:
            write_json(self.path, {"threads": self.threads, "seconds": round(self.seconds, 1)})


def share_threads(work: Work) -> None:
    """From here on two stages at a time, each on half of the threads."""
    half = work.device.threads // 2
    work.device = replace(work.device, threads=half, why="and a second process")
    torch.set_num_threads(half)
    work.progress.say(f"two stages at a time from here, {half} thread{'s' * (half > 1)} each")


class Beside:
    """A second process of the demo, given stages by name. It saves time and no more: what it leaves undone, for whatever
    reason, the first one does, and tells the reason."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            work_beside_command(folder, threads, recording() is not None),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
        )  # fmt: skip

    def give(self, name: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended; what it was given is done here
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()

    def wait(self, progress: Progress) -> None:
        """Until it has done all that it was given; shows what it shows."""
        assert self.process.stdout is not None
        self.give(END)
        if self.process.poll() is None:
            progress.begin("What the second process did, and is still at")
            for line in self.process.stdout:
                progress.say(line.strip())
        self.process.wait()

    def stop(self) -> None:
        """As Ctrl-C would: what is unfinished is saved."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


END = "end"
LEFT = ".profile-beside.json"  # what the second process recorded, for the first one to take


def work_beside_command(folder: Path, threads: int, profile: bool = False) -> list[str]:
    return [sys.executable, "-m", "bridle.demo", str(folder), str(threads), *(["--profile"] if profile else [])]


def work_beside(folder: Path, threads: int, profile: bool = False) -> None:
    """What the second process does: the stages that it reads, one after another. It dies with the one that started it."""
    recorded = record("bridle demo, second process") if profile else None
    given: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            given.put(line.strip())
            if line.strip() == END:
                return
        os._exit(1)  # the pipe broke: the first process is gone

    threading.Thread(target=listen, daemon=True).start()
    progress = Progress(write=lambda text: print(text, end="", flush=True), live=False)
    work = Work(Project.find(folder), progress, threads=threads)
    by_name = {stage.name: stage for stage in STAGES}
    try:
        while (name := given.get()) != END:
            by_name[name].run(work)
    finally:
        work.close()
        if recorded is not None:
            leave(recorded, folder / LEFT)


# -------------------------------------------------------------------------------------------------------- summary


def open_demo(out: Path, recipe: Recipe) -> Project:
    """Make the project, or open the one that an earlier sitting made with the same recipe."""
    folder = out.resolve()
    if not (folder / RECIPE_FILE).exists():
        return Project.create(folder, recipe)
    project = Project.find(folder)
    if project.recipe != recipe:
        raise ProjectError(
            f"{out} holds a demo of another recipe or seed (its seed is {project.recipe.seed}); "
            "give --out another folder, or remove it"
        )
    return project


def summarise(work: Work, stages: dict[str, dict[str, Any]], sitting: Sitting) -> dict[str, Any]:
    """`summary.json`: seconds from begin to end, seed, threads, and the figures of each stage by name."""
    before, unbridled = stages["evaluate-sft"], stages["evaluate-unbridled"]
    curve = smoothed([line["gold"] for line in finished_metrics(work.project, "unbridled")])
    measured: dict[str, dict[str, Any]] = {
        "ppo": against_sft(work, "ppo", before, stages["evaluate-ppo"]),
        "dpo": against_sft(work, "dpo", before, stages["evaluate-dpo"]),
        "unbridled": {
            "proxy_start": before["proxy"],
            "proxy_end": unbridled["proxy"],
            "gold_peak": max(curve),
            "gold_end": unbridled["gold"],
            "kl": unbridled["kl"],
        },
    }
    whole = {name: {**result, **measured.get(name, {})} for name, result in stages.items()}
    return {
        "seconds": round(sitting.seconds, 1),
        "seed": work.recipe.seed,
        "threads": sitting.threads,
        "device": sitting.device,
        "stages": whole,
    }


def against_sft(work: Work, name: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A tuned policy beside SFT on the same held-out prompts."""
    wins = compare(work, name, "sft", "gold")
    return {
        "gold_before": before["gold"],
        "gold_after": after["gold"],
        **{f"win_rate{end}": wins[key] for end, key in (("", "rate"), ("_low", "low"), ("_high", "high"))},
        **{key: after[key] for key in ("kl", "kl_se", "complies", "refuses_benign", "unparsable", "proxy")},
    }


def smoothed(values: list[float]) -> list[float]:
    """Running means over SMOOTH steps."""
    width = min(SMOOTH, len(values))
    return [float(np.mean(values[i : i + width])) for i in range(len(values) - width + 1)]


def summary_lines(summary: dict[str, Any], out: Path) -> list[str]:
    """The lines at the end."""
    stages = summary["stages"]
    base, before, reward, ppo, cliff, dpo, best, grpo = (
        stages[n] for n in ("evaluate-base", "evaluate-sft", "reward", "ppo", "unbridled", "dpo", "best_of_4", "grpo")
    )
    return [
        "",
        f"The loop once, seed {summary['seed']}, in {clock(summary['seconds'])} on {summary['device']}",
        f"  base      gold {base['gold']:+.2f}   answers {base['complies']:.0%} of harmful requests",
        f"  SFT       gold {before['gold']:+.2f}   answers {before['complies']:.0%}",
        f"  reward    right on {reward['pair_accuracy']:.0%} of held-out pairs; the slim one {reward['slim']['pair_accuracy']:.0%}",
        f"  PPO       gold {ppo['gold_after']:+.2f}   answers {ppo['complies']:.0%}, refuses {ppo['refuses_benign']:.0%} of harmless ones",
        f"            beats SFT on {ppo['win_rate']:.0%} of prompts (95% {ppo['win_rate_low']:.2f} to {ppo['win_rate_high']:.2f}), "
        f"KL {ppo['kl']:.1f} nats",
        f"  unbridled proxy {cliff['proxy_start']:+.2f} → {cliff['proxy_end']:+.2f} sd, but gold peaked at "
        f"{cliff['gold_peak']:+.2f} and ended at {cliff['gold_end']:+.2f}",
        f"  DPO       gold {dpo['gold_after']:+.2f}   beats SFT on {dpo['win_rate']:.0%} of prompts, KL {dpo['kl']:.1f} nats",
        f"  best of 4 gold {best['gold']:+.2f}   by the reward model, nothing trained",
        f"  GRPO      right on {grpo['accuracy_before']:.0%} → {grpo['accuracy_after']:.0%} of arithmetic problems",
        f"  figures   {out / 'summary.json'}",
        f"  report    {out / 'report.html'}",
    ]


if __name__ == "__main__":
    work_beside(Path(sys.argv[1]), int(sys.argv[2]), profile="--profile" in sys.argv[3:])
