"""E14: what is reported of a judge is true: published figures come out of recorded verdicts, and a bias that was planted is found.

Each seed reads the four recorded files of LLMBar (BRIDLE_DATA names the folder of real data) and plants three judges that answer at
random: one that prefers what is displayed first, one that is right .8 of the time on top of that bias, and one that prefers the longer.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.records import Prompt
from bridle.evaluation.winrate import win_rate_of
from bridle.rewards.judge.judge import Candidates, Judge
from bridle.rewards.judge.measures import JudgedPair, judge_report, pairs_of_opinion
from bridle.rewards.judge.questions import Question, Rubric
from bridle.rewards.judge.rulings import Reply
from experiments.harness import Claim, Experiment, Row

PAIRS = 2000
FIRST = 0.7  # how often the biased judge prefers the answer that is displayed first
RIGHT = 0.8  # how often the other one is right, before its bias
SUITES, JUDGES = ("Natural", "Adversarial__Neighbor"), ("GPT-4", "ChatGPT")
PUBLISHED = {  # name in LLMBar's statistics: where our report has the same
    "correct_False": ("against_people", "accuracy_first_order"),
    "correct_True": ("against_people", "accuracy_other_order"),
    "correct_average": ("against_people", "accuracy_of_calls"),
    "correct_both": ("against_people", "both_right"),
    "equal": ("swap_consistency", "value"),
}


def judged_pairs(
    judge: Judge, asked: Sequence[Candidates], truths: Sequence[float], name: str = "people"
) -> list[JudgedPair]:
    found = []
    for number, (item, opinion) in enumerate(zip(asked, judge.judge(asked), strict=True)):
        truth = {name: {(0, 1): truths[number]}}
        found += pairs_of_opinion(str(number), opinion, item.answers, (False, False), truth)
    return found


def furthest_from_published(folder: Path) -> float:
    """The largest difference of any figure of any recorded file."""
    gaps = []
    for suite in SUITES:
        for name in JUDGES:
            stem = folder / "recorded_judges" / f"LLMBar__{suite}__EVAL__{name}__Vanilla"
            rows = json.loads(Path(f"{stem}__result.json").read_text("utf-8"))
            published = json.loads(Path(f"{stem}__statistics.json").read_text("utf-8"))
            report = judge_report(recorded_pairs(rows, name))
            for theirs, (group, ours) in PUBLISHED.items():
                gaps.append(abs(report[group][ours] - float(published[theirs].split("=")[-1].strip(" %")) / 100))
    return max(gaps)


def recorded_pairs(rows: Sequence[dict[str, Any]], name: str) -> list[JudgedPair]:
    words = {"Output (a)": "A", "Output (b)": "B"}
    replies = iter(
        Reply(words[row["results"][0][f"swap = {swapped}"]["completion"][0]])
        for row in rows
        for swapped in (False, True)
    )
    judge = Judge(lambda questions, _: [next(replies) for _ in questions], Rubric(), name)
    asked = [Candidates(Prompt.from_text(row["input"]), [row["output_1"], row["output_2"]]) for row in rows]
    return judged_pairs(judge, asked, [float(row["label"] == 1) for row in rows])


def planted(verdict: Callable[[Question], str], texts: Callable[[int], list[str]]) -> dict[str, Any]:
    """The report of a judge that replies as `verdict` says, in both orders, on pairs whose first answer is the better one."""
    asked = [Candidates(Prompt.from_text(f"Question {number}?"), texts(number)) for number in range(PAIRS)]
    judge = Judge(lambda questions, _: [Reply(verdict(one)) for one in questions], Rubric(), "planted")
    return judge_report(judged_pairs(judge, asked, [1.0] * PAIRS, "gold"))


def padded(rng: random.Random, taste: Callable[[float], float]) -> dict[str, Any]:
    """Win rate of padded answers over the same ones without, by a judge who prefers the longer with log-odds `taste(gap in sd)`."""
    gaps = [rng.randrange(0, 40) for _ in range(PAIRS)]
    spread = float(np.std(gaps))
    verdicts = [float(rng.random() < 1 / (1 + math.exp(-taste(gap / spread)))) for gap in gaps]
    prompts = [str(number) for number in range(PAIRS)]
    return win_rate_of(verdicts, [50 + gap for gap in gaps], [50] * PAIRS, ["all"] * PAIRS, prompts)


def better_is_first(question: Question) -> bool:
    text = question.messages[0].content
    return text.index("\ngood") < text.index("\nbad")


def measure(seed: int) -> Row:
    rng, data = random.Random(seed), os.environ.get("BRIDLE_DATA")
    if data is None:
        raise SystemExit("E14 reads recorded verdicts; name the folder of real data in BRIDLE_DATA")
    plain = lambda number: [f"good {number}", f"bad {number}"]  # noqa: E731

    def first(question: Question) -> str:
        return "A" if rng.random() < FIRST else "B"

    def able(question: Question) -> str:
        right = "A" if better_is_first(question) else "B"
        return first(question) if rng.random() < 0.5 else right if rng.random() < RIGHT else "AB"[right == "A"]

    biased, other, length, more = (
        planted(first, plain),
        planted(able, plain),
        padded(rng, lambda gap: 2 * math.tanh(gap)),
        padded(rng, float),
    )
    return {
        "published": furthest_from_published(Path(data) / "llmbar"),
        "bias missed by": abs(biased["prefers_first_shown"]["value"] - FIRST),
        "bias left": abs(biased["against_gold"]["accuracy"]["value"] - 0.5),
        "consistency missed by": abs(biased["swap_consistency"]["value"] - 2 * FIRST * (1 - FIRST)),
        "able: right": other["against_gold"]["accuracy"]["value"],
        "padding wins": length["rate"],
        "padding missed by": abs(length["length_controlled"]["value"] - 0.5),
        "without end: at equal length": more["length_controlled"]["value"],
    }


EXPERIMENT = Experiment(
    name="E14",
    title="what is reported of a judge is what was planted in it, and what LLMBar published of recorded judges",
    setting="LLMBar's recorded verdicts of GPT-4 and ChatGPT on Natural (100 pairs) and Adversarial-Neighbor (134), in both orders. "
    f"Planted: a judge that prefers the answer displayed first with probability {FIRST:g}, on {PAIRS} pairs in both orders; one that "
    f"does so half of the time and is else right with probability {RIGHT:g}; and one with a taste for length alone, of log-odds "
    "2 tanh(gap / sd), asked for equal answers of which one is padded. Verdicts of two orders that disagree are abstentions.",
    measure=measure,
    seeds=range(8),
    claims=[
        Claim("published", "largest difference from a published figure", "every", at_most=1e-9),
        Claim("bias missed by", "bias for the first displayed, missed by", "every", at_most=0.03),
        Claim(
            "bias left", "accuracy of the biased judge's consistent verdicts, away from one half", "mean", at_most=0.03
        ),
        Claim("padding missed by", "win rate of padding at equal length, away from one half", "mean", at_most=0.05),
        Claim("consistency missed by", "swap consistency missed by", "every", at_most=0.03),
        Claim("able: right", "accuracy of the able judge's consistent verdicts"),
        Claim(
            "without end: at equal length",
            "win rate of padding at equal length, where the taste grows with length without end",
        ),
        Claim("padding wins", "win rate of padding as it is"),
    ],
)
