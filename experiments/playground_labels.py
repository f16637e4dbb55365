"""The page of labels whose makers are known: python experiments/playground_labels.py [FOLDER]

The playground's five people, and a sixth who nearly always takes the left and is quick, judge the same 500 pairs of answers by its
authors, one after another in sittings of 100, sides drawn by a coin; a tenth of the items has gold. Writes agreement.html, prints what
`bridle agreement` prints, and draws docs/images/labels-*.png.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from bridle.core.records import FinishReason
from bridle.feedback.quality.summary import quality_of
from bridle.feedback.quality.votes import Subject, Vote, Votes, votes_of
from bridle.playground.gold import Gold
from bridle.playground.labelers import rank
from bridle.playground.spec import Labeler
from bridle.playground.world import World
from bridle.report.agreement import as_share, quality_lines, write_agreement_page
from bridle.report.drawings import draw_shares, save_png

ITEMS, SITTING, GOLD_SHARE = 500, 100, 0.1
SECONDS = {"ada": 22, "bo": 17, "cleo": 25, "dan": 15, "eli": 12, "finn": 3}
FINN = {"skill": 0.3, "noise": 1.0, "side_bias": 9.0, "flattery_bias": 0.0, "length_bias": 0.0, "fatigue": 0.0}
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def judged_playground(items: int = ITEMS, seed: int = 0) -> Votes:
    world, rng = World.load(), random.Random(seed)
    gold = Gold(world)
    people = [*world.spec.labelers, Labeler(name="finn", **FINN, tired_after=50, topics={})]
    rows, subjects = [], {}
    for number in range(items):
        prompt = world.prompt(rng)
        qualities = rng.sample(("good", "mid", "bad"), 2)
        texts = [world.answer(rng, prompt, quality) for quality in qualities]
        scores = [gold.score(prompt, text, FinishReason.STOP, "labelers") for text in texts]
        better = int(scores[1].points > scores[0].points)
        clear = abs(scores[0].points - scores[1].points) > 1
        known = ((better,), (1 - better,)) if clear and rng.random() < GOLD_SHARE else None
        alike = frozenset([(0, 1)] if texts[0] == texts[1] else [])
        subjects[str(number)] = Subject(prompt.meta["family"], known, alike)
        for person in people:
            order = rng.sample((0, 1), 2)
            ranking = rank(person, rng, prompt, texts, scores, order, number % SITTING)
            seconds = SECONDS[person.name] * rng.lognormvariate(0, 0.4)
            at = number // SITTING * 86_400 + number % SITTING * 30.0
            rows.append(Vote(str(number), person.name, ranking, tuple(order), seconds, at))
    return votes_of(rows, subjects)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    quality = quality_of(judged_playground())
    write_agreement_page(quality, "playground", folder / "agreement.html")
    print("\n".join(quality_lines(quality)))
    skills = [as_share(one.labeler, one.skill) for one in quality.people]
    save_png(draw_shares(skills, "share of right answers"), IMAGES / "labels-skill.png", dpi=120)
    for name, conditions in (("topics", quality.topics), ("sitting", quality.positions)):
        shares = [as_share(one.name, one.right) for one in conditions]
        mean = sum(one.right.rate * one.right.n for one in conditions) / sum(one.right.n for one in conditions)
        figure = draw_shares(shares, "share of judgements that are right", mean, zoomed=True)
        save_png(figure, IMAGES / f"labels-{name}.png", dpi=120)
