"""What ending an answer at another speaker's turn changes: gold of every way to tune, before the rubric was mended and since.

A seed's base and SFT are the same in both arms. In the one, people judge and gold counts as they did before: what other speakers say after
an answer is added up with it. Each arm has its own labels, its own reward model, and policies that learnt from these. Each policy's fresh
answers are scored by its own arm's rubric; those of both arms by the mended one, too, which tells what the mend did to the policies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from unittest.mock import patch

from bridle.core.records import Prompt
from bridle.playground.grammar import Grammar
from bridle.stages.best_of import evaluate_best_of
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.reward import train_members
from bridle.stages.sample import sample
from bridle.stages.workspace import Work
from experiments.harness import Claim, Experiment, Row
from experiments.playground import HALF, SETTINGS, halves, lab_folder, with_base
from experiments.trainers import WAYS

NAMES = {
    "ppo": "PPO", "dpo": "DPO", "grpo-gold": "GRPO by the reward model", "rloo": "RLOO", "rebel": "REBEL",
    "best-of-n": "imitating the best of 4", "dpo-online": "DPO online", "best of 4": "best of 4, which trains nothing",
}  # fmt: skip


@contextmanager
def unmended() -> Iterator[None]:
    """The rubric as it was: all that follows an answer is the answer's own."""
    with patch.object(Grammar, "turns", lambda grammar, text: [text]):
        yield


def measure(seed: int) -> Row:
    """Where people say the same under both rubrics, all that is learnt from them is the same, and is trained once."""
    with unmended():
        said = verdicts(seed, "before")
    same = said == verdicts(seed, "")
    with unmended():
        before = tuned(seed, "" if same else "before")
    after = tuned(seed, "")
    row = {
        "SFT: turns": after["sft"]["turns"], "SFT: apart": after["sft"]["mended"] - before["sft"]["mended"], "same labels": float(same),
    }  # fmt: skip
    for name in NAMES:
        for arm, gold in (("before", before), ("after", after)):
            row[f"{name}: {arm}"] = gold[name]["own"] - gold["sft"]["own"]
        row[f"{name}: change"] = row[f"{name}: after"] - row[f"{name}: before"]
        if name in WAYS:
            row[f"{name}: turns"] = after[name]["turns"]
            if not same:
                row[f"{name}: mended"] = after[name]["mended"] - before[name]["mended"]
    return row


def labelled(seed: int, arm: str) -> Work:
    """The project of a seed and an arm, with what people said by the rubric that is in force."""
    work = with_base(seed, SETTINGS, lab_folder(), arm)
    METHODS["sft"].train(work, reuse=True)
    sample(work, reuse=True)
    label_simulated(work, reuse=True)
    return work


def verdicts(seed: int, arm: str) -> list[tuple[object, ...]]:
    work = labelled(seed, arm)
    try:
        given = work.store.judgements(study=work.data.study)
        return [(item.id, one.labeler, one.ranking, one.confidence) for item, one in given]
    finally:
        work.close()


def tuned(seed: int, arm: str) -> dict[str, dict[str, float]]:
    """By model of a seed: gold in points by the rubric that is in force and by the mended one, and the share of answers that another
    speaker's turn follows."""
    work = labelled(seed, arm)
    try:
        train_members(work, reuse=True)
        prompts, found = halves(work).score, dict[str, dict[str, float]]()
        for name, (method, settings) in {"sft": ("", {}), **WAYS}.items():
            if method:
                METHODS[method].train(work, name=name, settings=settings, reuse=True)
            found[name] = worth(work, name, prompts)
        chosen = evaluate_best_of(work, 4)  # anew: by the rubric that is in force
        found["best of 4"] = {"own": chosen["gold"] - chosen["frontier"][0]["gold"] + found["sft"]["own"]}
        return found
    finally:
        work.close()


def worth(work: Work, name: str, prompts: list[Prompt]) -> dict[str, float]:
    policy = work.read_policy(work.project.model(name))
    answered = work.answer(policy, work.fitting(policy, prompts), "experiment")
    own = work.data.score(answered.prompts, answered.completions, "experiment")
    with patch.object(Grammar, "turns", MENDED):
        mended = work.data.score(answered.prompts, answered.completions, "experiment")
    return {
        "own": fmean(score.points for score in own),
        "mended": fmean(score.points for score in mended),
        "turns": fmean(score.flags["other_turns"] > 0 for score in mended),
    }


MENDED = Grammar.turns
EXPERIMENT = Experiment(
    name="rubric",
    title="gold of every way to tune, before the rubric was mended and since",
    setting="Playground; the recipe's settings, without the guard. Gain: gold in points over SFT's, of fresh answers to "
    f"{HALF} held-out prompts (best of 4: of the project's own), by the rubric that people judged by. No bound is set.",
    measure=measure,
    seeds=range(5),
    claims=[
        Claim("same labels", "share of seeds in which people say the same by both rubrics", yes_no=True),
        Claim("SFT: turns", "share of SFT's answers that another's turn follows"),
        *(claim
        for name, words in NAMES.items()
        for claim in (
            Claim(f"{name}: before", f"{words}: gain before the mend"),
            Claim(f"{name}: after", f"{words}: gain since"),
            Claim(f"{name}: change", f"{words}: gain since less gain before"),
            *(
                (
                    Claim(f"{name}: turns", f"{words}: share of its answers that another's turn follows, since"),
                    Claim(f"{name}: mended", f"{words}: gold since less before by the mended rubric, where people say otherwise"),
                )
                if name in WAYS
                else ()
            ),
        )),
    ],
    controls=[Claim("SFT: apart", "gold of SFT in one arm less in the other, by one rubric", "every", at_least=0, at_most=0)],
)  # fmt: skip
