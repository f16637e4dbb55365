"""What ending an answer at another speaker's turn changes: python experiments/rubric.py DEMO [DEMO …]

Of each finished demo, made before that or after, the answers that its evaluations kept, and those that were compared: how many go on as
another speaker, and the mean gold as it was scored and as the rubric scores the same answers now. What training on other labels changes
besides is measured by whole demos: `python experiments/seeds.py FOLDER 0 1 2 3 4` at the commit before the rubric was mended, and at it.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

from bridle.core.records import FinishReason
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.data import SAMPLE, PlaygroundData
from bridle.stages.workspace import Work


def main(folder: Path) -> None:
    work = Work(Project.find(folder), Progress(), threads=1)
    data, prompts = work.data, {prompt.id: prompt for prompt in work.store.prompts()}
    assert isinstance(data, PlaygroundData), f"{folder} is not a playground project"
    sampled = work.store.completions(source=SAMPLE)
    compared = data.score([prompt for prompt, _ in sampled], [answer for _, answer in sampled], "rubric")
    turns = sum(score.flags["other_turns"] > 0 for score in compared)
    print(f"\n{folder}: {turns} of {len(sampled)} compared answers go on as another speaker\n")
    print("| answers of | number | go on as another | gold as scored | gold now |\n|---|---|---|---|---|")
    for run in sorted(work.project.folder.glob("runs/evaluate-*/answers.jsonl")):
        lines = [json.loads(line) for line in run.read_text("utf-8").splitlines()]
        now = [data.gold.score(prompts[line["id"]], line["answer"], FinishReason.STOP, "rubric") for line in lines]
        # Whether an answer was cut off is not kept: only those that the mend is about are scored anew.
        others = [score.flags["other_turns"] > 0 for score in now]
        scored = [line["gold"] for line in lines]
        mended = [new.points if other else old for old, new, other in zip(scored, now, others, strict=True)]
        name = run.parent.name.removeprefix("evaluate-").rpartition("-")[0]
        print(f"| {name} | {len(lines)} | {sum(others)} | {fmean(scored):.3f} | {fmean(mended):.3f} |")
    work.close()


if __name__ == "__main__":
    for path in sys.argv[1:]:
        main(Path(path))
