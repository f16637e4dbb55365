"""E16: users who like flattery and length are served; learning from their thumbs alone pleases them and loses quality, the loop does not.

Three arms:

    loop   labels of paid people and a reward model, then three turns of `bridle loop` as the recipe has it, simulated users before each,
           their votes among what is learnt from
    naive  three rounds from what the loop promoted first: users' thumbs on what is served, a reward model of all thumbs so far, PPO on it,
           and the result is served, unasked
    once   one round of PPO, with as many labels as the loop's, all of SFT's answers and by paid people

Gold only measures.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from bridle.core.errors import WaitingForLabels
from bridle.core.records import Completion, LabelerKind, Prompt, Rating
from bridle.demo.rlaif import project_within
from bridle.feedback.serving.promotion import served_now
from bridle.feedback.serving.turns import steps_taken
from bridle.feedback.store.ratings import add_ratings
from bridle.loop.crowd import crowd_of, visit
from bridle.loop.promoting import promote_model
from bridle.loop.turn import LAST, run_turn
from bridle.maths.statistics import mean_and_se
from bridle.playground.gold import GoldScore
from bridle.playground.labelers import Labeler, taste
from bridle.stages.data import SAMPLE
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.reward import train_members
from bridle.stages.sample import sample
from bridle.stages.workspace import Work
from experiments.harness import Claim, Experiment, Row
from experiments.playground import AFAR, Halves, gold_of, in_lab
from experiments.rounds import beside, named, with_settings

TURNS = 3
VISITS = 300  # of users before a turn, and as many again where it waits for more votes
WAITS = 10  # times at most
THUMBS = 1000  # in a naive round, of as many answers
PROMPTS = 2048  # held out, that gold is measured on
LOOP = {"guard.audits": "auto", "data.sources": ["study", "serving"]}
NAIVE = {"guard.audits": "off", "reward.tasks": ["thumbs"]}

Standards = Mapping[str, float]  # of each user: what half of SFT's answers please them more than


def measure_in(work: Work, _: Halves, settings: Mapping[str, Any]) -> Row:
    prompts = work.data.world.held_out_prompts(PROMPTS, seed=2 * AFAR + work.recipe.seed)
    start = work.project.model("sft")
    sft, standards = gold_of(work, start, prompts), standards_of(work, start, prompts)
    with closing(with_settings(beside(work, "wheel"), LOOP)) as wheel:
        turn_wheel(wheel)
        row, ends, promoted = wheel_figures(wheel, prompts), {"loop": served_folder(wheel)}, first_promoted(wheel)
    with project_within(work, "naive") as apart, closing(with_settings(apart, NAIVE)) as naive:
        ends["naive"] = learn_from_thumbs(naive, promoted, standards)
    with closing(with_settings(beside(work, "once"), {"guard.audits": "auto"})) as once:
        ends["once"] = one_round(once, int(row["loop: answers read"]))
    ends["promoted"] = promoted
    row |= {"SFT: gold": float(sft.mean()), "SFT: thumbs up": thumbs_up(work, start, prompts, standards)}
    golds = {arm: gold_of(work, folder, prompts) for arm, folder in ends.items()}
    for arm, folder in ends.items():
        gained, error = mean_and_se(golds[arm] - sft)
        row |= {f"{arm}: gained": gained, f"{arm}: gained, at most": gained + 2 * error}
        row |= {f"{arm}: thumbs gained": thumbs_up(work, folder, prompts, standards) - row["SFT: thumbs up"]}
    row["naive: lost"] = float((golds["promoted"] - golds["naive"]).mean())
    row["naive: thumbs won"] = row["naive: thumbs gained"] - row["promoted: thumbs gained"]
    return row


# ------------------------------------------------------------------------------------------------------------- the loop


def turn_wheel(wheel: Work) -> None:
    """Three turns, users before each; where one waits for more votes, more users come."""
    if served_now(wheel.store).content is None:
        promote_model(wheel, "sft")
    while (done := sum(step == LAST for _, step, _ in steps_taken(wheel.store))) < TURNS:
        for came in range(WAITS):
            visit(wheel, VISITS, f"turn {done + 1}, {came}")
            try:
                run_turn(wheel)
                break
            except WaitingForLabels:
                continue
        else:
            raise RuntimeError(f"turn {done + 1} still waits for votes after {WAITS * VISITS} users")


def wheel_figures(wheel: Work, prompts: Sequence[Prompt]) -> dict[str, float]:
    """How many were promoted and taken back; the worst promotion's gold over that of what it replaced, plus two standard errors; the
    answers that users and paid people read."""
    steps = steps_taken(wheel.store)
    trained = {turn: found for turn, step, found in steps if step == "train"}
    passed = [turn for turn, step, found in steps if step == "gate" and found["passed"]]
    most = []
    for turn in passed:
        new, old = (gold_of(wheel, wheel.project.model(trained[turn][name]), prompts) for name in ("name", "from"))
        gained, error = mean_and_se(new - old)
        most.append(gained + 2 * error)
    votes = len(wheel.store.judgements(study="serving"))
    return {
        "loop: promotions": float(len(passed)),
        "loop: taken back": float(sum(found["decision"].startswith("rolled back") for _, _, found in steps)),
        "loop: answers read": float(2 * votes + sum(found.get("answers_read", 0) for _, _, found in steps)),
        **({"loop: worst promotion, at most": min(most)} if most else {}),
    }


def first_promoted(wheel: Work) -> Path:
    """What passed the gate first; SFT where nothing did."""
    steps = steps_taken(wheel.store)
    passed = [turn for turn, step, found in steps if step == "gate" and found["passed"]]
    return wheel.project.model(
        next((found["name"] for turn, step, found in steps if step == "train" and turn in passed), "sft")
    )


def served_folder(wheel: Work) -> Path:
    """Of what is served in the end, or met by a share of the users, for it has passed the gate."""
    now = served_now(wheel.store)
    content = now.candidate or now.content
    assert content is not None
    return wheel.project.reference(content)


# -------------------------------------------------------------------------------------------------------------- thumbs


def learn_from_thumbs(naive: Work, promoted: Path, standards: Standards) -> Path:
    served = named(naive, "promoted", promoted)
    for turn in range(1, TURNS + 1):
        name = f"naive-{turn}"
        if naive.project.finished_folder(name) is None:  # the reward model of a turn is gone when the next one is there
            keep_thumbs(naive, served, turn, standards)
            train_members(naive, reuse=True)
            METHODS["ppo"].train(naive, name=name, settings={"start": served, "reference": served}, reuse=True)
        served = name
    return naive.project.model(served)


def keep_thumbs(naive: Work, served: str, turn: int, standards: Standards) -> None:
    """Users ask training prompts, and say up or down of the answer."""
    rng = random.Random(f"{naive.recipe.seed}/thumbs/{turn}")
    policy = naive.read_policy(naive.project.model(served))
    known = naive.fitting(policy, naive.data.train_prompts())
    answered = naive.answer(policy, rng.sample(known, min(THUMBS, len(known))), "thumbs", turn)
    scores = naive.data.score(answered.prompts, answered.completions, "users")
    users, found = crowd_of(naive.data), list[Rating]()
    for prompt, answer, score in zip(answered.prompts, answered.completions, scores, strict=True):
        user = rng.choice(users)
        up = rng.random() < pleased(user, prompt, answer, score, standards)
        found.append(Rating(answer, user.name, LabelerKind.PERSON, "vote", float(up), criterion="thumbs"))
    naive.store.add_completions(answered.completions, source=SAMPLE)
    add_ratings(naive.store, found)


def pleased(user: Labeler, prompt: Prompt, answer: Completion, score: GoldScore, standards: Standards) -> float:
    """The probability of their thumb being up."""
    return NormalDist().cdf((taste(user, prompt, answer.stripped, score) - standards[user.name]) / user.noise)


def standards_of(work: Work, folder: Path, prompts: Sequence[Prompt]) -> dict[str, float]:
    rows = answers_and_scores(work, folder, prompts)
    return {
        user.name: float(np.median([taste(user, prompt, answer.stripped, score) for prompt, answer, score in rows]))
        for user in crowd_of(work.data)
    }


def thumbs_up(work: Work, folder: Path, prompts: Sequence[Prompt], standards: Standards) -> float:
    """The share of thumbs that are up, over all users and fresh answers."""
    rows = answers_and_scores(work, folder, prompts)
    return float(np.mean([pleased(user, *row, standards) for user in crowd_of(work.data) for row in rows]))


def answers_and_scores(
    work: Work, folder: Path, prompts: Sequence[Prompt]
) -> list[tuple[Prompt, Completion, GoldScore]]:
    policy = work.read_policy(folder)
    answered = work.answer(policy, work.fitting(policy, prompts), "experiment")
    scores = work.data.score(answered.prompts, answered.completions, "experiment")
    return list(zip(answered.prompts, answered.completions, scores, strict=True))


# ------------------------------------------------------------------------------------------------------- one round


def one_round(once: Work, labels: int) -> Path:
    """PPO under the guard, on a reward model of the first labels and of about as many more as answers were read in the loop."""
    if not (again := once.project.model("sft-again")).exists():
        shutil.copytree(once.project.model("sft"), again)
    sample(once, reuse=True, model=again.name, most=max(1, labels // once.recipe.sampling.answers))
    label_simulated(once)
    train_members(once, reuse=True)
    METHODS["ppo"].train(once, name="ppo-once", reuse=True)
    return once.project.model("ppo-once")


WORTH = {
    "gained": "gold gained over SFT",
    "thumbs gained": "users' thumbs up, more than of SFT's answers",
}
EXPERIMENT = Experiment(
    name="E16",
    title="learning from users with corrections and a gate gains quality, where learning from their thumbs loses it",
    setting="Playground. Users are the world's labelers, who look half as closely and like flattery and length three times as much. Loop: "
    f"{TURNS} turns, {VISITS} users before each (more where a turn waits), two answers each. Naive: what the loop promoted first, then "
    f"{TURNS} rounds of {THUMBS} thumbs on what is served, up where an answer pleases its user more than half of SFT's would; a reward "
    "model of these alone, PPO, no gate. Once: a round of PPO under the guard, on paid labels of as many more answers as were read in the "
    f"loop. Gold in points of fresh answers to {PROMPTS} held-out prompts; what is served after the last turn, or is met by a share of the "
    "users, is the loop's.",
    measure=in_lab(measure_in),
    seeds=range(8),
    claims=[
        Claim("loop: gained", "loop: gold gained over three turns", at_least=0),
        Claim("loop: gained, at most", "the same and two standard errors: no seed lost", "every", at_least=0),
        Claim("loop: promotions", "loop: promotions", "every", at_least=1),
        Claim("loop: worst promotion, at most", "a promotion's gain of gold and two standard errors, the worst one's", "every", at_least=0),
        Claim("naive: thumbs won", "naive: users' thumbs up, more than of what the loop promoted first", at_least=0),
        Claim("naive: lost", "naive: gold lost against that", at_least=0),
        *(
            Claim(f"{arm}: {figure}", f"{arm}: {words}")
            for arm in ("loop", "promoted", "naive", "once")
            for figure, words in WORTH.items()
            if (arm, figure) != ("loop", "gained")
        ),
        Claim("loop: taken back", "loop: promotions that were taken back"),
        Claim("loop: answers read", "loop: answers read by users and by paid people"),
        Claim("SFT: gold", "gold of SFT"),
        Claim("SFT: thumbs up", "thumbs up of SFT's answers"),
    ],
)  # fmt: skip
