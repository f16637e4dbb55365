"""The controls that a claim of learning needs, run on a finished demo: python experiments/controls.py DEMO_FOLDER

random reward: PPO on numbers drawn from a hash must not raise gold, nor GRPO on them the share of right answers.
learning rate 0: PPO must leave every weight as it was.
gold as reward: PPO on the true quality, the ceiling; its calls of gold are counted.
(Shuffled labels are part of every demo.) Writes controls.json beside the demo's report, which shows them from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bridle.core.files import write_json
from bridle.core.records import Completion, Prompt, content_hash
from bridle.maths.statistics import mean_and_se
from bridle.models.policy import load_policy
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.report.project import write_project_report
from bridle.stages.data import PlaygroundData
from bridle.stages.evaluate import compare, evaluate, read_answers
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work


def random_reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Uniform on ±√3 (standard deviation 1), the same for the same answer."""
    return [(int(content_hash(c.id)[:8], 16) / 2**32 - 0.5) * 12**0.5 for c in completions]


def main(folder: Path) -> None:
    project = Project.find(folder)
    work = Work(project, Progress())

    def gold_reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [score.points / 3 for score in work.data.score(prompts, completions, "reward (control)")]

    sft = evaluate(work, "sft", reuse=True)
    ppo, grpo = METHODS["ppo"], METHODS["grpo"]
    ppo.train(work, name="control-random", title="Control: PPO on a random reward", reward=random_reward, reuse=True)
    ppo.train(work, name="control-gold", title="Control: PPO on gold itself", reward=gold_reward, reuse=True)
    still = {"steps": 2, "learning_rate": 0.0, "critic_learning_rate": 0.0}
    ppo.train(work, name="control-still", title="Control: learning rate 0", settings=still, reuse=True)
    chance = grpo.train(work, name="control-grpo-random", reward=random_reward, reuse=True)
    ceiling = evaluate(work, "control-gold", reuse=True)
    evaluate(work, "control-random", reuse=True)
    against = compare(work, "control-random", "sft", "gold")
    before, after = (
        load_policy(project.model(n), work.device.torch).module.state_dict() for n in ("sft", "control-still")
    )
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert isinstance(work.data, PlaygroundData)
    calls = work.data.gold.calls["reward (control)"]
    golds = {line["id"]: line["gold"] for line in read_answers(work, "sft")}
    both = [(line["id"], line["gold"]) for line in read_answers(work, "control-random") if line["id"] in golds]
    gain, error = mean_and_se(
        [gold - golds[name] for name, gold in both], [name for name, _ in both]
    )  # the same prompts
    controls = [
        {
            "name": "random reward",
            "expectation": "no gain of gold over SFT beyond two standard errors",
            "measured": f"gold {gain:+.2f} (± {2 * error:.2f}), win rate {against['rate']:.3f} "
            f"({against['low']:.3f} to {against['high']:.3f})",
            "holds": gain <= 2 * error,
        },
        {
            "name": "random reward, GRPO",
            "expectation": "at most .02 more right answers",
            "measured": f"right {chance['accuracy_before']:.3f} → {chance['accuracy_after']:.3f} "
            f"({chance['accuracy_low_after']:.3f} to {chance['accuracy_high_after']:.3f})",
            "holds": chance["accuracy_after"] <= chance["accuracy_before"] + 0.02,
        },
        {
            "name": "gold as reward",
            "expectation": "the ceiling: what PPO reaches when the reward is the truth",
            "measured": f"gold {sft['gold']:+.2f} → {ceiling['gold']:+.2f}, {calls} calls of gold in this session",
            "holds": ceiling["gold"] > sft["gold"],
        },
        {
            "name": "learning rate 0",
            "expectation": "no weight changes",
            "measured": f"largest change {moved:g}",
            "holds": moved == 0.0,
        },
    ]
    write_json(project.folder / "controls.json", controls)
    write_project_report(work)
    work.close()
    for control in controls:
        print(f"{'holds' if control['holds'] else 'FAILS'}  {control['name']}: {control['measured']}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]))
