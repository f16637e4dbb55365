"""RLAIF from end to end: a model of the playground's own judges answers in people's place, and what that is worth beside people."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bridle.core.files import whole_folder
from bridle.project.project import RECIPE_FILE, Project
from bridle.report.page import show
from bridle.stages.critic import CRITIC
from bridle.stages.evaluate import compare, read_answers
from bridle.stages.label import label_simulated
from bridle.stages.reward import train_members
from bridle.stages.sample import sample
from bridle.stages.workspace import Work, done_before, require_model, stage_key

PEOPLE = "people"  # the control's stage and folder
# Everything is judged once, by whomever, so that both reward models learn from as many judgements; half the usual prompts, for the critic
# weighs nine verdicts on each of their answers.
SETTINGS = {
    "judge.model": CRITIC, "judge.form": "rating", "label.overlap": 1, "label.gold_share": 0.0, "reward.slim": False,
    "data.train_prompts": 500, "data.compared_heldout": 150,
}  # fmt: skip
EXAMPLES = ("harm", "help", "border")  # families of which an answer is shown


@contextmanager
def project_within(work: Work, name: str) -> Iterator[Work]:
    """A project in a folder of this one, of the same recipe and with the same SFT, in which nobody has compared anything yet."""
    folder = work.project.folder / name
    if not (folder / RECIPE_FILE).exists():
        Project.create(folder, work.recipe)
    other = Work(replace(Project.find(folder), recipe=work.recipe), work.progress, threads=work.threads)
    try:
        if not (place := other.project.model("sft")).exists():
            with whole_folder(place) as new:
                shutil.copytree(work.project.model("sft"), new, dirs_exist_ok=True)
        yield other
    finally:
        other.close()


def ask_people(work: Work) -> dict[str, Any]:
    """The control: simulated people compare the same answers, and a reward model learns from them."""
    parents = {"sft": require_model(work, "sft"), "world": work.data.world_hash}
    key = stage_key(work.recipe, ("model", "reward", "data", "sampling", "label", "world"), parents)
    if (before := done_before(work, PEOPLE, key, reuse=True)) is not None:
        return before
    with project_within(work, PEOPLE) as other:
        sample(other, reuse=True)
        labelled, reward = label_simulated(other, reuse=True), train_members(other, reuse=True)
    wanted = ("agreement_with_gold", "clear_pairs", "agreement_easy_harm", "easy_harm_pairs")
    found = {**{name: labelled[name] for name in wanted}, "labels": labelled["judgements"]}
    title = "A control: simulated people compared the same answers, and a reward model learnt from them"
    with work.start(PEOPLE, title, key, parents) as run:
        return run.finish(
            {**{name: value for name, value in reward.items() if name not in ("model", "seconds")}, **found}
        )


def compare_with_sft(work: Work) -> dict[str, Any]:
    """PPO's kept answers against SFT's by gold, and a few of them: of each family the first prompt that they answered in other words."""
    before = {line["id"]: line for line in read_answers(work, "sft")}
    found: dict[str, dict[str, Any]] = {}
    for line in read_answers(work, "ppo"):
        first = before.get(line["id"])
        if first is not None and first["answer"] != line["answer"]:
            found.setdefault(line["family"], {"prompt": line["prompt"], "sft": first["answer"], "ppo": line["answer"]})
    examples = [found[family] for family in EXAMPLES if family in found]
    return {**compare(work, "ppo", "sft", "gold"), "examples": examples}


def rlaif_lines(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For the terminal."""
    judge, people, reward = stages["judge"], stages[PEOPLE], stages["reward"]
    sft, ppo, win = stages["evaluate-sft"], stages["evaluate-ppo"], stages["ppo-against-sft"]

    def two(value: Any) -> str:
        return show(value, 2)

    lines = [
        f"A critic of {show(stages['pretrain'].get('parameters'))} parameters graded the answers to {judge['items']:,} prompts in people's "
        f"place: {stages['sample']['answers']:,} answers in {judge['seconds']:.0f} s, and nobody was asked.",
        f"It orders two answers as their true quality does in {two(judge['agreement_with_gold'])} of {judge['clear_pairs']:,} clear pairs "
        f"(simulated people: {two(people['agreement_with_gold'])}), and in {two(judge['agreement_easy_harm'])} of "
        f"{judge['easy_harm_pairs']:,} easy pairs about harm (people: {two(people['agreement_easy_harm'])}).",
        f"Reward model: {two(reward.get('pair_accuracy'))} of held-out pairs right after {reward['judgements']:,} of these judgements; "
        f"{two(people.get('pair_accuracy'))} after {people['judgements']:,} by people.",
        f"PPO on it wins {two(win['rate'])} of {win['n']:,} prompts against SFT, between {two(win['low'])} and {two(win['high'])} (95%).",
    ]
    for name, found in (("SFT", sft), ("PPO", ppo)):
        lines.append(
            f"{name}: true quality {two(found.get('gold'))} points, answers {two(found.get('complies'))} of harmful requests, refuses "
            f"{two(found.get('refuses_benign'))} of benign ones."
        )
    for one in win["examples"]:
        lines += ["", f"  {one['prompt']}", f"    SFT: {one['sft'].strip()}", f"    PPO: {one['ppo'].strip()}"]
    return lines
