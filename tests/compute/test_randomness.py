"""Random numbers follow from (seed, purpose, number) and from nothing else."""

import torch

from bridle.compute.randomness import derived_seed, drawn, generator, shuffled


def test_the_same_arguments_give_the_same_numbers() -> None:
    torch.manual_seed(5)
    first = shuffled(20, 1, "prompts", 3)
    torch.rand(7)
    assert torch.equal(shuffled(20, 1, "prompts", 3), first)
    assert sorted(first.tolist()) == list(range(20))


def test_every_argument_matters() -> None:
    found = {
        derived_seed(seed, purpose, number) for seed in range(5) for purpose in ("a", "b", "a/1") for number in range(5)
    }
    assert len(found) == 75
    assert all(0 <= seed < 2**63 for seed in found)


def test_asking_does_not_move_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    shuffled(100, 0, "x")
    generator(0, "y").initial_seed()
    assert torch.equal(torch.rand(3), expected)


def test_a_draw_depends_on_what_the_rows_hold_and_not_on_where_they_stand() -> None:
    rows = [str(i) for i in range(200)]
    few = drawn(rows, rows, 20, 0)
    assert few == sorted(few, key=int) and len(set(few)) == 20 and few != rows[:20]
    backwards = rows[::-1]
    assert drawn(backwards, backwards, 20, 0) == few[::-1]
    assert set(few) < set(drawn(rows, rows, 30, 0)) and drawn(rows, rows, 20, 1) != few
    assert drawn(rows, rows, 200, 0) == drawn(rows, rows, 300, 0) == rows
    more = [*rows, *(f"new {i}" for i in range(20))]
    assert len(set(few) & set(drawn(more, more, 20, 0))) > 14  # what comes later takes few places
    places = [int(name) for seed in range(50) for name in drawn(rows, rows, 20, seed)]
    assert abs(sum(places) / len(places) - 99.5) < 5  # 2.7 standard errors: .95 · 57.7 / √1000
