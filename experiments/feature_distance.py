"""Which distance tells tuned answers from those of SFT: python experiments/feature_distance.py DEMO [MODEL …]

For each model of a finished demo one fresh answer to each held-out prompt, and its distance from the answers that the reward model was
trained on, in the features of its last layer; the area under the curve (AUC) is the chance that a tuned answer is farther away than one
of SFT's. Prints a table; takes a minute a model.
"""

import sys
from pathlib import Path
from typing import get_args

import torch

from bridle.guard.distance import Kind, answer_features, feature_distance, fit_cloud
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.rewards import load_scores
from bridle.stages.workspace import Work

KINDS: tuple[Kind, ...] = get_args(Kind)


def main(folder: Path, names: list[str]) -> None:
    work = Work(Project.find(folder), Progress(), threads=1)
    sft = work.read_policy(work.project.model("sft"))
    reader = load_scores(work, work.project.model("reward"), sft)
    trained = [(prompt, answer) for prompt, answer in work.store.completions(split="train") if answer.weight_stamp]
    learnt = reader.ids([prompt for prompt, _ in trained], [answer for _, answer in trained])
    cloud = fit_cloud(answer_features(reader.model, *learnt, work.device))
    prompts = work.fitting(sft, work.data.heldout_prompts())
    usual: dict[Kind, torch.Tensor] = {}
    print("| answers of | " + " | ".join(f"{kind}: AUC | rank | beyond" for kind in KINDS) + " |")
    print("|---" * (1 + 3 * len(KINDS)) + "|")
    for name in ["sft", *names]:
        policy = sft if name == "sft" else work.read_policy(work.project.model(name))
        answered = work.answer(policy, prompts, f"distance-{name}")
        ids = reader.ids(answered.prompts, answered.completions)
        features = answer_features(reader.model, *ids, work.device)
        cells = []
        for kind in KINDS:
            distances = cloud.distances(features, kind)
            usual.setdefault(kind, distances)
            above = (distances[:, None] > usual[kind]).double() + (distances[:, None] == usual[kind]).double() / 2
            found = feature_distance(cloud, features, kind, [prompt.id for prompt in answered.prompts])
            cells.append(f"{above.mean():.3f} | {found.rank.value:.3f} ± {found.rank.se:.3f} | {found.beyond:.3f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    work.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["base", "dpo", "ppo", "unbridled"])
