"""Random numbers follow from (seed, purpose, number) and from nothing else."""

import torch

from bridle.compute.randomness import derived_seed, generator, shuffled


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
