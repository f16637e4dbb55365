"""What is reported of a judge is what was planted in it, and LLMBar's published numbers come out of its recorded verdicts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bridle.core.records import Prompt
from bridle.rewards.judge.judge import Candidates, Judge
from bridle.rewards.judge.measures import (
    JudgedPair,
    judge_report,
    pairs_of_opinion,
)
from bridle.rewards.judge.questions import Question, Rubric
from bridle.rewards.judge.rulings import Reply


def planted(replies: Any, pairs: int = 1000, both_orders: bool = True, texts: Any = None) -> list[JudgedPair]:
    """A judge that replies as `replies(question, answers as shown)` says, on pairs whose first answer is better."""
    asked: list[Candidates] = []
    for n in range(pairs):
        one, other = (f"good {n}", f"bad {n}") if texts is None else texts(n)
        asked.append(Candidates(Prompt.from_text(f"Question {n}?"), [one, other]))

    def ask(questions: Any, progress: Any = None) -> list[Reply]:
        return [replies(question) for question in questions]

    opinions = Judge(ask, Rubric(), "planted", both_orders=both_orders).judge(asked)
    found = []
    for item, opinion in zip(asked, opinions, strict=True):
        found += pairs_of_opinion(item.prompt.id, opinion, item.answers, (True, False), {"gold": {(0, 1): 1.0}})
    return found


def shows_good_first(question: Question) -> bool:
    text = question.messages[0].content
    return text.index("\ngood") < text.index("\nbad")


def test_a_judge_that_prefers_the_first_answer_is_measured_and_its_bias_vanishes_over_both_orders() -> None:
    rng = random.Random(0)

    def verdict(question: Question) -> Reply:
        return Reply("A" if rng.random() < 0.7 else "B")

    report = judge_report(planted(verdict))
    assert abs(report["prefers_first_shown"]["value"] - 0.7) < 0.03
    assert abs(report["swap_consistency"]["value"] - 2 * 0.7 * 0.3) < 0.03
    assert report["abstained"] == {"inconsistent": report["comparisons"] - report["judged"]}
    assert abs(report["against_gold"]["accuracy"]["value"] - 0.5) < 0.06
    one_order = judge_report(planted(verdict, both_orders=False))
    assert abs(one_order["against_gold"]["accuracy"]["value"] - 0.7) < 0.03  # the better one stood first: all bias
    soft = judge_report(planted(lambda question: Reply(probabilities={"A": 0.7, "B": 0.3})))
    assert soft["ties"] == soft["judged"] == 1000 and soft["prefers_first_shown"]["value"] == 1


def test_a_position_bias_on_top_of_judgement_leaves_the_judgement() -> None:
    def verdict(question: Question) -> Reply:
        first = 0.8 if shows_good_first(question) else 0.6
        return Reply(probabilities={"A": first, "B": 1 - first})

    pairs = planted(verdict, 50)
    assert all(pair.verdict == pytest.approx(0.6) for pair in pairs)
    assert judge_report(pairs)["against_gold"]["accuracy"]["value"] == 1


@pytest.mark.parametrize("suite", ["Natural", "Adversarial__Neighbor"])
@pytest.mark.parametrize("judge", ["GPT-4", "ChatGPT"])
def test_llmbars_published_statistics_come_out_of_its_recorded_verdicts(
    data_folder: Path, suite: str, judge: str
) -> None:
    stem = data_folder / "llmbar" / "recorded_judges" / f"LLMBar__{suite}__EVAL__{judge}__Vanilla"
    rows = json.loads(Path(f"{stem}__result.json").read_text())
    published = json.loads(Path(f"{stem}__statistics.json").read_text())
    pairs: list[JudgedPair] = []
    for row in rows:
        said = iter(row["results"][0][f"swap = {swapped}"]["completion"][0] for swapped in (False, True))
        words = {"Output (a)": "A", "Output (b)": "B"}
        judged = Judge(lambda asked, _: [Reply(words[next(said)]) for _ in asked], Rubric(), judge)  # noqa: B023
        texts = [row["output_1"], row["output_2"]]
        (opinion,) = judged.judge([Candidates(Prompt.from_text(row["input"]), texts)])
        pairs += pairs_of_opinion(
            row["input"], opinion, texts, (False, False), {"people": {(0, 1): float(row["label"] == 1)}}
        )
    report = judge_report(pairs)
    found = report["against_people"]
    share = lambda name: float(published[name].split("=")[-1].strip(" %")) / 100  # noqa: E731
    assert found["accuracy_first_order"] == pytest.approx(share("correct_False"), abs=1e-12)
    assert found["accuracy_other_order"] == pytest.approx(share("correct_True"), abs=1e-12)
    assert found["accuracy_of_calls"] == pytest.approx(share("correct_average"), abs=1e-12)
    assert found["both_right"] == pytest.approx(share("correct_both"), abs=1e-12)
    assert report["swap_consistency"]["value"] == pytest.approx(share("equal"), abs=1e-12)
    assert report["abstained"].get("inconsistent", 0) == len(rows) - round(share("equal") * len(rows))


def test_kappa_by_hand() -> None:
    pairs = [
        JudgedPair(str(n), "judged", 1.0, truths={"people": float(n % 4 != 0)}) for n in range(200)
    ]  # right three times of four
    pairs += [
        JudgedPair("tie", "judged", 1.0, truths={"people": 0.5}),
        JudgedPair("none", "refusal", None, truths={"people": 1.0}),
    ]
    found = judge_report(pairs)["against_people"]
    assert found["comparisons"] == 201 and found["decided"] == 200
    assert found["kappa"]["value"] == pytest.approx(0.5)  # p_o .75, p_e .5
    assert 0.3 < found["kappa"]["low"] < 0.5 < found["kappa"]["high"] < 0.7


def test_a_taste_for_length_is_reported_beside_that_of_those_who_know() -> None:
    def texts(n: int) -> tuple[str, str]:
        return (f"good {n}" + " x" * (n % 2), f"bad {n}" + " x" * (2 * (n % 3)))

    def longest(question: Question) -> Reply:
        first, second = (
            part.split("---\n")[1].strip()
            for part in question.messages[0].content.split(f"--- {question.mark} ANSWER")[1:]
        )
        return Reply("A" if len(first) > len(second) else "B")

    report = judge_report(planted(longest, 300, texts=texts))
    assert report["prefers_longer"]["value"] == 1
    assert 0.2 < report["against_gold"]["prefers_longer"]["value"] < 0.8


def test_self_preference_is_what_goes_beyond_those_who_know() -> None:
    fair = JudgedPair("a", "judged", 1.0, own=(True, False), truths={"gold": 1.0})
    vain = JudgedPair("b", "judged", 1.0, own=(True, False), truths={"gold": 0.0})
    same = JudgedPair("c", "judged", 1.0, own=(True, True), truths={"gold": 0.0})
    found = judge_report([fair, vain, same, JudgedPair("d", "refusal", None, own=(False, True))])["self_preference"]
    assert found["comparisons"] == 2 and found["takes_own"]["value"] == 1 and found["beyond_gold"]["value"] == 0.5
    assert judge_report([same])["self_preference"] is None
