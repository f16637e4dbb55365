import random
import statistics

import pytest

from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import FinishReason, Prompt
from bridle.playground.gold import Gold, GoldScore
from bridle.playground.labelers import Labeler, Ranking, agreement, rank
from bridle.playground.spec import QUALITIES
from bridle.playground.world import World

PROMPT = Prompt.from_text("Why?", meta={"family": "help"})
CLEAR = Labeler(
    name="clear", skill=1, noise=0, side_bias=0, flattery_bias=0, length_bias=0, fatigue=0, tired_after=50, topics={}
)


def scores(*points: float, flattery: int = 0) -> list[GoldScore]:
    return [GoldScore(value, {"flattery": flattery if i == 0 else 0}) for i, value in enumerate(points)]


def rank_answers(
    labeler: Labeler, texts: list[str], marks: list[GoldScore], order: tuple[int, ...], seen: int = 0
) -> Ranking:
    return rank(labeler, random.Random(0), PROMPT, texts, marks, order, seen)


def study(world: World, labeler: Labeler, items: int, sitting: int) -> tuple[list[Ranking], list[list[GoldScore]]]:
    """K = 4 answers of mixed authors to each of `items` prompts, in random order, `sitting` items at a stretch."""
    rng, gold = random.Random(0), Gold(world)
    rankings, marks = [], []
    for item in range(items):
        prompt = world.prompt(rng)
        skills = world.spec.families[prompt.meta["family"]].demonstrations
        texts = [world.answer(rng, prompt, quality) for quality in rng.choices(QUALITIES, skills, k=4)]
        marks.append([gold.score(prompt, text, FinishReason.STOP, "test") for text in texts])
        rankings.append(rank(labeler, rng, prompt, texts, marks[-1], rng.sample(range(4), 4), item % sitting))
    return rankings, marks


@pytest.mark.parametrize("sitting", [1, 50, 250])
def test_labelers_agree_with_gold_as_people_do(world: World, sitting: int) -> None:
    studies = [study(world, labeler, 400, sitting) for labeler in world.spec.labelers]
    together = agreement([r for rankings, _ in studies for r in rankings], [m for _, marks in studies for m in marks])
    assert 0.77 <= together <= 0.83
    each = [agreement(rankings, marks) for rankings, marks in studies]
    assert min(each) < 0.65  # one is careless
    assert statistics.median(each) > 0.8


def test_a_clear_labeler_orders_by_gold_in_canonical_slots() -> None:
    for order in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]:
        assert rank_answers(CLEAR, ["a", "b", "c"], scores(1, 3, 2), order) == ((1,), (2,), (0,))


def test_identical_texts_tie_and_nothing_else_does() -> None:
    assert rank_answers(CLEAR, ["a", "b", "a"], scores(1, 3, 1), (2, 1, 0)) == ((1,), (0, 2))
    assert len(rank_answers(CLEAR, ["a", "b"], scores(1, 1), (0, 1))) == 2


def test_side_bias_follows_what_was_shown_first() -> None:
    sided = CLEAR.model_copy(update={"side_bias": 1.0})
    assert rank_answers(sided, ["a", "b"], scores(1, 1.5), (0, 1)) == ((0,), (1,))
    assert rank_answers(sided, ["a", "b"], scores(1, 1.5), (1, 0)) == ((1,), (0,))


def test_of_identical_texts_the_first_impression_counts() -> None:
    sided = CLEAR.model_copy(update={"side_bias": 1.0})
    assert rank_answers(sided, ["a", "b", "a"], scores(1, 1.4, 1), (0, 1, 2)) == ((0, 2), (1,))


def test_flattery_and_length_sway() -> None:
    flattered = CLEAR.model_copy(update={"flattery_bias": 2.0})
    assert rank_answers(flattered, ["a", "b"], scores(1, 2, flattery=1), (0, 1)) == ((0,), (1,))
    wordy = CLEAR.model_copy(update={"length_bias": 1.0})
    assert rank_answers(wordy, ["w " * 20, "b"], scores(1, 2), (0, 1)) == ((0,), (1,))


def test_labelers_differ_by_topic(world: World) -> None:
    backwards = CLEAR.model_copy(update={"topics": {"help": -1.0}})
    assert rank_answers(backwards, ["a", "b"], scores(1, 2), (0, 1)) == ((0,), (1,))
    assert len({tuple(sorted(labeler.topics.items())) for labeler in world.spec.labelers}) == len(world.spec.labelers)


def test_noise_grows_within_a_sitting(world: World) -> None:
    tiring = CLEAR.model_copy(update={"noise": 1.0, "fatigue": 3.0})
    rng = random.Random(0)

    def right(seen: int) -> int:
        return sum(rank(tiring, rng, PROMPT, ["a", "b"], scores(1, 2), (0, 1), seen)[0] == (1,) for _ in range(5000))

    fresh, tired, exhausted = right(0), right(50), right(5000)
    assert fresh > tired + 500
    assert tired > exhausted + 100
    assert all(labeler.fatigue > 0 for labeler in world.spec.labelers)


def test_a_display_order_that_does_not_fit_is_refused() -> None:
    for order in [(0, 0), (0, 1, 2), (1, 2)]:
        with pytest.raises(DataError, match="display order"):
            rank_answers(CLEAR, ["a", "b"], scores(1, 2), order)
    with pytest.raises(DataError, match="got 1 scores"):
        rank_answers(CLEAR, ["a", "b"], scores(1), (0, 1))


def test_agreement_counts_clear_pairs_only() -> None:
    marks = [scores(1, 1.2, 3)]  # slots 0 and 1 are too close to count
    assert agreement([((2,), (0,), (1,))], marks) == 1.0
    assert agreement([((0,), (2,), (1,))], marks) == 0.5
    assert agreement([((0, 2), (1,))], marks) == 1.0
    with pytest.raises(NoUsableRows):
        agreement([((0,), (1,))], [scores(1, 1)])
