"""Settings for a model that the user brings: at the sizes that recipes were published for, between them, and beyond."""

import pytest

from bridle.recipe.by_size import (
    CEILING,
    NEW_CEILING,
    RATES,
    SMALL,
    odd_rates,
    settings_by_shape,
    settings_by_size,
    size_text,
)
from bridle.recipe.offline import SFTSection
from bridle.recipe.online import PPOSection
from bridle.recipe.recipe import Recipe, sections

PUBLISHED = {
    "sft.learning_rate": (1e-5, 2e-5), "dpo.learning_rate": (5e-7, 5e-7), "reward.learning_rate": (1e-5, 1e-5),
    "ppo.learning_rate": (1e-6, 1e-6), "grpo.learning_rate": (1e-6, 1e-6), "rloo.learning_rate": (1e-6, 1e-6),
    "rebel.learning_rate": (1e-6, 1e-6), "dpo.beta": (0.1, 0.1),
    "kto.learning_rate": (5e-6, 5e-6), "kto.beta": (0.1, 0.1), "orpo.learning_rate": (5e-6, 5e-6),
    "ppo.kl_coef": (0.05, 0.05), "ppo.clip": (0.2, 0.2),
}  # fmt: skip
SIZES = [1000, SMALL, 30_000_000, 135_000_000, 500_000_000, 1_500_000_000, 8_000_000_000, 70_000_000_000]


@pytest.mark.parametrize("parameters", [500_000_000, 1_240_000_000, 7_000_000_000, 8_000_000_000, 70_000_000_000])
def test_from_half_a_billion_on_they_are_the_published_ones(parameters: int) -> None:
    found = settings_by_size(parameters, 8192)
    for dotted, (low, high) in PUBLISHED.items():
        assert low <= found[dotted].value <= high, dotted
    assert found["sampling.max_new_tokens"].value == 512 and found["ppo.kl_target"].value == 10


@pytest.mark.parametrize("parameters", SIZES)
def test_whatever_the_size_nothing_moves_fast(parameters: int) -> None:
    found = {dotted: one.value for dotted, one in settings_by_size(parameters, 2048).items()}
    recipe = Recipe().with_settings(found)
    assert {name for name in sections() if "learning_rate" in sections()[name].model_fields} == {
        dotted.partition(".")[0] for dotted in RATES
    }
    for dotted, value in found.items():
        if dotted.endswith("learning_rate"):
            assert 0 < value <= (NEW_CEILING if "slim" in dotted else CEILING)
        if dotted.endswith("optimizer"):
            assert value == "adamw"
    assert not odd_rates("ppo", recipe.ppo, parameters) and not odd_rates("sft", recipe.sft, parameters)


def test_a_larger_model_never_gets_a_larger_rate() -> None:
    for dotted in RATES:
        rates = [settings_by_size(size, 2048)[dotted].value for size in SIZES]
        assert rates == sorted(rates, reverse=True), dotted


def test_between_two_sizes_the_logarithms_lie_on_a_line() -> None:
    middle = round((SMALL * 500_000_000) ** 0.5)
    assert settings_by_size(middle, 2048)["ppo.learning_rate"].value == pytest.approx((5e-4 * 1e-6) ** 0.5, rel=0.05)
    assert settings_by_size(135_000_000, 2048)["sft.learning_rate"].value == 4.9e-5  # by hand: 1e-3 · .02^.772


def test_the_longest_answer_is_by_size_and_fits_the_context() -> None:
    assert settings_by_size(SMALL, 2048)["sampling.max_new_tokens"].value == 72
    assert settings_by_size(10**9, 1024)["sampling.max_new_tokens"].value == 256
    assert settings_by_size(10**9, 32)["sampling.max_new_tokens"].value == 8
    assert settings_by_size(10**9, 1024, tokens=100)["ppo.kl_target"].value == 2


def test_where_a_value_comes_from_is_said() -> None:
    for dotted, one in settings_by_size(135_000_000, 2048).items():
        assert "size" in one.why or "nats" in one.why, dotted
    assert "by size 135M" in settings_by_size(135_000_000, 2048)["dpo.learning_rate"].why
    assert [size_text(n) for n in (900, 21_000, 1_600_000, 135_000_000, 7_600_000_000)] == [
        "900",
        "21K",
        "1.6M",
        "135M",
        "7.6B",
    ]


def test_a_shape_that_the_recipe_cannot_hold_is_said() -> None:
    found = settings_by_shape({"vocab_size": 50, "layers": 3, "max_positions": 10**7})
    assert found["model.layers"].value == 3 and "cannot hold" not in found["model.layers"].why
    assert found["model.vocab_size"].value == 2048 and "has 50" in found["model.vocab_size"].why
    Recipe().with_settings({dotted: one.value for dotted, one in found.items()})


def test_a_rate_ten_times_too_high_is_warned_of() -> None:
    (told,) = odd_rates("sft", SFTSection(), 10**9)
    assert (
        told.startswith("sft.learning_rate = 0.01 is ") and "--set sft.learning_rate=1.7e-05" in told and "1B" in told
    )
    assert len(odd_rates("ppo", PPOSection(), 10**9)) == 2, "the policy's and the critic's"
    assert not odd_rates("ppo", PPOSection(learning_rate=1e-5, critic_learning_rate=1e-4), 10**9)
