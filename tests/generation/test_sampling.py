"""Drawing tokens: numbers that depend on counters alone, and exactly the truncated distribution."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.core.errors import RecipeError
from bridle.generation import sampling
from bridle.generation.sampling import Sampling, draw, draw_all, draw_truncated, inverse_cdf, uniforms

DRAWS = 20_000
SETTINGS = [
    Sampling(1),
    Sampling(1, temperature=0.7),
    Sampling(1, top_p=0.9),
    Sampling(1, top_p=0.3),
    Sampling(1, top_p=0.01),
    Sampling(1, top_k=5),
    Sampling(1, top_k=1),
    Sampling(1, temperature=1.5, top_p=0.8, top_k=7),
    Sampling(1, top_p=0.2, top_k=30),
]
LOGITS = {
    "peaked": torch.linspace(5, -5, 60)[torch.randperm(60, generator=torch.Generator().manual_seed(0))],
    "flat": 0.05 * torch.randn(60, generator=torch.Generator().manual_seed(1)),
    "with impossible tokens": torch.cat(
        [torch.full((20,), -1e4), torch.tensor([0.1, 0.3, 0.2]), torch.full((37,), -1e4)]
    ),
}


def truncated(logits: Tensor, settings: Sampling) -> Tensor:
    """The distribution that should be sampled from, by its definition: a token stays while the more likely ones hold less
    than top_p and are fewer than top_k, and what stays is divided by its sum."""
    probs = (logits.double() / settings.temperature).softmax(0)
    kept = torch.zeros_like(probs)
    held = 0.0
    for rank, token in enumerate(probs.argsort(descending=True).tolist()):
        if held >= settings.top_p or (settings.top_k and rank >= settings.top_k):
            break
        kept[token] = probs[token]
        held += float(probs[token])
    return kept / kept.sum()


def draws(logits: Tensor, settings: Sampling, count: int = DRAWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    numbers = torch.arange(count)
    return draw(logits.expand(count, -1), settings, uniforms(seed, numbers, torch.zeros_like(numbers)))


@pytest.fixture(params=["sorted", "most likely first"])
def truncation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a small vocabulary, and that of a large one."""
    monkeypatch.setattr(sampling, "MANY", 8192 if request.param == "sorted" else 59)


@pytest.mark.usefixtures("truncation")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", LOGITS)
def test_draws_follow_the_truncated_distribution(name: str, settings: Sampling) -> None:
    exact = truncated(LOGITS[name], settings)
    tokens, logprobs = draws(LOGITS[name], settings)
    found = tokens.bincount(minlength=60).double() / DRAWS
    noise = float((2 * exact * (1 - exact) / (math.pi * DRAWS)).sqrt().sum() / 2)  # what chance alone gives on average
    assert float((found - exact).abs().sum() / 2) < 2 * noise + 1e-9
    assert not found[exact == 0].any()
    torch.testing.assert_close(logprobs.double(), exact.log()[tokens], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("truncation")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_log_probs_are_exact_in_float64(settings: Sampling) -> None:
    logits = LOGITS["peaked"].double()
    tokens, logprobs = draws(logits, settings, 200)
    assert logprobs.dtype == torch.float64
    torch.testing.assert_close(logprobs, truncated(logits, settings).log()[tokens], rtol=0, atol=1e-12)


def test_a_vocabulary_of_thousands_is_drawn_exactly() -> None:
    """Top-k out of a flat 4,000: 0.5% of the mass, and none of the twenty is favoured."""
    logits = 0.01 * torch.randn(4000, generator=torch.Generator().manual_seed(2))
    settings = Sampling(1, top_k=20)
    exact = truncated(logits, settings)
    tokens, logprobs = draws(logits, settings, 4000)
    found = tokens.bincount(minlength=4000).double() / 4000
    assert float((found - exact).abs().sum() / 2) < 0.06
    torch.testing.assert_close(logprobs.double(), exact.log()[tokens], rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-40, 1e-7])
def test_temperature_nought_takes_the_most_likely_for_certain(temperature: float) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(3))
    numbers = torch.arange(50)
    tokens, logprobs = draw(logits, Sampling(1, temperature=temperature, top_p=0.5), uniforms(0, numbers, numbers))
    assert torch.equal(tokens, logits.argmax(1))
    assert not logprobs.any()


def test_each_row_has_its_own_distribution() -> None:
    rows = torch.stack([LOGITS["peaked"], LOGITS["flat"], LOGITS["with impossible tokens"]]).repeat(100, 1)
    numbers = torch.arange(300)
    settings = Sampling(1, top_p=0.7, top_k=9)
    tokens, logprobs = draw(rows, settings, uniforms(4, numbers, torch.zeros_like(numbers)))
    for i in range(300):
        exact = truncated(rows[i], settings)
        assert float(logprobs[i]) == pytest.approx(math.log(float(exact[tokens[i]])), abs=1e-5)


@pytest.mark.usefixtures("truncation")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_draw_does_not_depend_on_its_company(settings: Sampling) -> None:
    """Rows alone, in another order, beside rows whose nucleus is wider."""
    logits = torch.cat([torch.randn(30, 60, generator=torch.Generator().manual_seed(4)) * s for s in (0.01, 1.0, 6.0)])
    samples, positions = torch.arange(90) * 3, torch.arange(90) % 7
    tokens, logprobs = draw(logits, settings, uniforms(5, samples, positions))
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    again, again_logprobs = draw(logits[order], settings, uniforms(5, samples[order], positions[order]))
    assert torch.equal(again, tokens[order])
    torch.testing.assert_close(again_logprobs, logprobs[order], rtol=0, atol=1e-6)
    for i in range(0, 90, 11):
        one, _ = draw(logits[i : i + 1], settings, uniforms(5, samples[i : i + 1], positions[i : i + 1]))
        assert int(one) == int(tokens[i])


def test_uniforms_depend_on_counters_alone() -> None:
    samples, position = torch.arange(100), torch.full((100,), 6)
    found = uniforms(3, samples, position, 0)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(99)
    assert torch.equal(uniforms(3, samples[order], position, 0), found[order])
    assert torch.equal(uniforms(3, samples[17:23], position[17:23], 0), found[17:23])
    for other in (
        uniforms(4, samples, position, 0),
        uniforms(3, samples + 100, position, 0),
        uniforms(3, samples, position + 1, 0),
        uniforms(3, samples, position, 1),
    ):
        assert not (other == found).any()


@pytest.mark.parametrize("seed", [0, 1, -5, 2**62, 2**63 - 1, 2**64 - 1])
def test_uniforms_look_uniform(seed: int) -> None:
    """Chi-square over 256 cells and Kolmogorov-Smirnov, both far beyond the 1-in-10,000 bound only if broken."""
    samples, positions = torch.arange(500)[:, None], torch.arange(100)[None]
    found = uniforms(seed, samples, positions, 0).flatten()
    assert float(found.min()) >= 0 and float(found.max()) < 1
    counts = (found * 256).long().bincount(minlength=256).double()
    expected = len(found) / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 150 < chi_square < 350  # 255 degrees of freedom: 255 ± 22.6
    gaps = (found.sort().values - torch.arange(len(found)) / len(found)).abs()
    assert float(gaps.max()) < 2.2 / len(found) ** 0.5
    assert len(found.unique()) == len(found)


@pytest.mark.parametrize("lag", [1, 2, 7])
def test_neighbours_are_independent(lag: int) -> None:
    """Across positions, samples, tries and seeds: correlations within four standard errors, pairs fill the square."""
    samples, positions = torch.arange(300)[:, None], torch.arange(100)[None]
    base = uniforms(11, samples, positions, 0)
    others = (
        uniforms(11, samples, positions + lag, 0),
        uniforms(11, samples + lag, positions, 0),
        uniforms(11, samples, positions, lag),
        uniforms(11 + lag, samples, positions, 0),
    )
    for other in others:
        correlation = float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])
        assert abs(correlation) < 4 / base.numel() ** 0.5
        cells = ((base * 8).long() * 8 + (other * 8).long()).flatten().bincount(minlength=64).double()
        expected = base.numel() / 64
        assert float(((cells - expected) ** 2 / expected).sum()) < 63 + 5 * (2 * 63) ** 0.5


def test_a_token_without_mass_is_never_drawn() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    u = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.999999, 1 - 2.0**-53], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        found = inverse_cdf(probs.to(dtype).cumsum(1).repeat(len(u), 1), u)
        assert found.tolist() == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("vocabulary", [1, 2, 59, 60, 64, 1000])  # 59: blocks of one token
def test_blocks_of_tokens_give_the_draw_of_the_whole_sum(vocabulary: int) -> None:
    probs = torch.rand(500, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    probs = torch.where(probs < 0.5, 0.0, probs)
    probs[:, 0] = 0.1  # none without mass
    u = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    assert torch.equal(draw_all(probs, u), inverse_cdf(probs.cumsum(1), u))


def test_a_sum_that_rounds_below_one_does_not_favour_the_last_token() -> None:
    cumulative = (torch.tensor([[0.5, 0.4, 0.0]]) * 0.9999).cumsum(1)
    assert inverse_cdf(cumulative, torch.tensor([1 - 2.0**-53], dtype=torch.float64)).tolist() == [1]


def test_truncation_by_hand() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).repeat(4, 1)
    u = torch.tensor([0.0, 0.6, 0.63, 0.99], dtype=torch.float64)
    tokens, logprobs = draw_truncated(probs, u, 0.6, 0)  # .5 alone does not hold .6, .5 and .3 do: 5/8 and 3/8
    assert tokens.tolist() == [1, 1, 2, 2]
    assert logprobs.exp().tolist() == pytest.approx([0.625, 0.625, 0.375, 0.375])
    assert draw_truncated(probs, u, 0.5, 0)[0].tolist() == [1] * 4
    assert draw_truncated(probs, u, 1.0, 2)[0].tolist() == [1, 1, 2, 2]
    assert draw_truncated(probs, u, 1.0, 1)[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("settings", [Sampling(1, top_k=5), Sampling(1, top_p=0.25)], ids=str)
@pytest.mark.parametrize("size", [20, 400])
def test_among_equals_as_many_are_kept_as_may_be(settings: Sampling, size: int) -> None:
    tokens, logprobs = draws(torch.zeros(size), settings, 4000)
    kept = settings.top_k or size // 4
    counts = tokens.bincount(minlength=size)
    assert abs(int((counts > 0).sum()) - kept) <= 1  # one more where the sum rounds to just under top_p
    torch.testing.assert_close(logprobs, torch.full((4000,), -math.log(int((counts > 0).sum()))), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1, "temperature": -0.1}, "temperature"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 1, "top_p": 1.1}, "top_p"),
        ({"max_new_tokens": 1, "top_k": -1}, "top_k"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, float], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Sampling(**values)  # type: ignore[arg-type]


def test_plain_means_temperature_alone() -> None:
    assert Sampling(1, temperature=0.7).plain
    assert not Sampling(1, top_p=0.99).plain and not Sampling(1, top_k=5).plain and not Sampling(1, temperature=0).plain


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_new_tokens": 3.5}, "max_new_tokens must be a whole number, got 3.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, got True"),
        ({"max_new_tokens": "3"}, "max_new_tokens must be a whole number, got '3'"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"temperature": math.nan}, "temperature must be 0"),
        ({"top_p": math.nan}, "top_p must be within"),
    ],
)
def test_sampling_takes_numbers_alone(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Sampling(**{"max_new_tokens": 8, **given})
