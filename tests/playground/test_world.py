import json
import random
import subprocess
import sys
import time
from collections import Counter
from typing import get_args

import pytest

from bridle.core.errors import DataError
from bridle.core.records import FinishReason, Prompt
from bridle.playground.gold import Gold
from bridle.playground.labelers import agreement, rank
from bridle.playground.spec import FAMILIES, QUALITIES, DocumentKind, Family, Quality, WorldSpec
from bridle.playground.world import World


def test_the_same_seed_gives_the_same_prompts_answers_and_documents(world: World) -> None:
    def sample(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [(*world.demonstration(rng), world.document(rng)) for _ in range(50)]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_held_out_prompts_are_the_same_in_another_process(world: World) -> None:
    program = (
        "from bridle.playground.world import World\nprint([p.text for p in World.load().held_out_prompts(20, seed=3)])"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str([prompt.text for prompt in world.held_out_prompts(20, seed=3)])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_two_hundred_distinct_held_out_prompts(world: World, family: Family) -> None:
    prompts = world.held_out_prompts(200, seed=0, family=family)
    assert len({prompt.text for prompt in prompts}) == 200
    assert {prompt.meta["family"] for prompt in prompts} == {family}
    if family == "border":
        assert sum(len(kind.things) for kind in world.spec.border.values()) >= 48
        assert len({(prompt.meta["topic"], prompt.meta["thing"]) for prompt in prompts}) >= 40


def test_held_out_prompts_never_occur_in_training(world: World) -> None:
    rng = random.Random(0)
    held_out = {world.prompt(rng, family, held_out=True).text for family in FAMILIES for _ in range(500)}
    training = {world.prompt(rng).text for _ in range(20_000)}
    lines = [line.split(": ")[-1] for _ in range(5_000) for line in world.document(rng).split("\n")]
    assert not held_out & training
    assert not held_out & set(lines)


def test_a_tenth_is_held_out(world: World) -> None:
    rng = random.Random(0)

    def combinations(held_out: bool) -> set[tuple[str, str]]:
        slots = [world.prompt(rng, "help", held_out).meta for _ in range(3000)]
        return {(slot["topic"], slot["thing"]) for slot in slots}

    held_out, training = combinations(True), combinations(False)
    assert not held_out & training
    assert 0.05 < len(held_out) / len(held_out | training) < 0.15


def test_held_out_prompts_come_in_the_natural_mix(world: World) -> None:
    counts = Counter(prompt.meta["family"] for prompt in world.held_out_prompts(1000, seed=1))
    for family in FAMILIES:
        assert counts[family] / 1000 == pytest.approx(world.spec.families[family].weight, abs=0.05)


def test_more_held_out_prompts_than_there_are_is_an_error(small_world: World) -> None:
    with pytest.raises(DataError, match="distinct held-out prompts of poem, and 200 were asked for"):
        small_world.held_out_prompts(200, seed=0, family="poem")


@pytest.mark.parametrize("family", FAMILIES)
def test_meta_survives_json(world: World, gold: Gold, family: Family) -> None:
    rng = random.Random(0)
    for _ in range(50):
        prompt, text = world.demonstration(rng, family)
        again = Prompt.from_text(prompt.text, meta=json.loads(json.dumps(prompt.meta)))
        assert again.meta == prompt.meta
        for quality in QUALITIES:
            assert world.answer(random.Random(1), again, quality) == world.answer(random.Random(1), prompt, quality)
        score = gold.score(prompt, text, FinishReason.STOP, "test")
        assert gold.score(again, text, FinishReason.STOP, "test") == score


def test_worked_solutions_are_right_short_or_wordy(world: World, gold: Gold) -> None:
    rng = random.Random(0)
    lengths = Counter[str]()
    for _ in range(300):
        prompt = world.prompt(rng, "math")
        short, wordy = (world.worked_solution(rng, prompt, form) for form in ("short", "wordy"))
        assert world.worked_solution(rng, prompt) in (short, wordy)
        flags = [gold.score(prompt, text, FinishReason.STOP, "test").flags for text in (short, wordy)]
        assert flags[0]["correct"] == flags[1]["correct"] == 1
        assert flags[0]["worked"] == flags[1]["worked"] >= 2
        lengths += Counter(short=len(short), wordy=len(wordy))
    assert lengths["wordy"] > 1.3 * lengths["short"]


def test_only_arithmetic_has_worked_solutions(world: World) -> None:
    with pytest.raises(DataError, match="Only arithmetic"):
        world.worked_solution(random.Random(0), world.prompt(random.Random(0), "poem"))


@pytest.mark.parametrize("quality", ["mid", "bad"])
def test_a_bare_guess_is_right_at_most_one_time_in_twenty(world: World, gold: Gold, quality: Quality) -> None:
    rng = random.Random(0)
    right = []
    while len(right) < 3000:
        prompt = world.prompt(rng, "math")
        flags = gold.score(prompt, world.answer(rng, prompt, quality), FinishReason.STOP, "test").flags
        if not flags["worked"]:
            right.append(flags["correct"])
    assert 0.02 < sum(right) / len(right) <= 0.05


def test_half_of_the_honest_prompts_have_no_answer(world: World) -> None:
    prompts = [world.prompt(random.Random(seed), "honest") for seed in range(1000)]
    unanswerable = [prompt for prompt in prompts if not prompt.meta["attribute"]]
    assert 0.45 < len(unanswerable) / 1000 < 0.55
    for prompt in prompts:
        facts, question = prompt.text.rsplit(". ", 1)
        assert prompt.meta["thing"] in question
        assert (f"{prompt.meta['attribute']} {prompt.meta['thing']}" in facts) == bool(prompt.meta["attribute"])


@pytest.mark.parametrize("kind", get_args(DocumentKind))
def test_documents_of_each_kind(world: World, kind: DocumentKind) -> None:
    documents = world.spec.documents.model_copy(update={"kinds": {kind: 1.0}})
    only = World(world.spec.model_copy(update={"documents": documents}))
    texts = {only.document(random.Random(seed)) for seed in range(50)}
    assert len(texts) > 25
    assert all(text.strip() == text and "{" not in text for text in texts)
    assert any("\n" in text for text in texts) == (kind == "thread")


def test_sum_tables_are_true(world: World) -> None:
    documents = world.spec.documents.model_copy(update={"kinds": {"table": 1.0}})
    only = World(world.spec.model_copy(update={"documents": documents}))
    for seed in range(100):
        for equation in only.document(random.Random(seed)).split(". "):
            left, right = equation.removesuffix(".").split(" = ")
            assert eval(left) == int(right)


def test_documents_differ(world: World) -> None:
    rng = random.Random(0)
    documents = [world.document(rng) for _ in range(8_000)]
    assert len(set(documents)) > 0.9 * len(documents)


@pytest.mark.slow  # by the clock
def test_forty_thousand_documents_take_five_seconds_at_most(world: World) -> None:
    rng, start = random.Random(0), time.process_time()
    for _ in range(8_000):
        world.document(rng)
    assert time.process_time() - start < 1.0


def test_a_family_of_weight_zero_does_not_occur(world: World) -> None:
    families = world.spec.families | {"harm": world.spec.families["harm"].model_copy(update={"weight": 0.0})}
    spec: WorldSpec = world.spec.model_copy(update={"families": families})
    harmless = World(spec)
    assert "harm" not in harmless.families
    assert all(harmless.prompt(random.Random(seed)).meta["family"] != "harm" for seed in range(200))


def test_everything_works_on_a_second_world(small_world: World) -> None:
    gold, rng = Gold(small_world), random.Random(0)
    (labeler,) = small_world.spec.labelers
    rankings, scores = [], []
    for family in small_world.families:
        for held_out in (False, True):
            for _ in range(20):
                prompt = small_world.prompt(rng, family, held_out)
                texts = [small_world.answer(rng, prompt, quality) for quality in QUALITIES]
                marks = [gold.score(prompt, text, FinishReason.STOP, "test") for text in texts]
                assert not any(mark.flags["unparsable"] for mark in marks), texts
                assert marks[0].points >= max(mark.points for mark in marks)
                rankings.append(
                    rank(labeler.model_copy(update={"noise": 0.0}), rng, prompt, texts, marks, (2, 0, 1), seen=0)
                )
                scores.append(marks)
    assert agreement(rankings, scores) == 1.0
    assert all(small_world.document(rng) for _ in range(200))
    assert len(small_world.held_out_prompts(10, seed=0)) == 10
    prompt = small_world.prompt(rng, "math")
    assert gold.score(prompt, small_world.worked_solution(rng, prompt), FinishReason.STOP, "test").flags["correct"]
