import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bridle.core.errors import DataError
from bridle.core.records import FinishReason
from bridle.guard.signals import (
    Measured,
    disagreement,
    gain_slope,
    length_drift,
    matches_lost,
    nats_lost,
    proxy_reward,
    sampled_entropy,
    sequence_kl,
    share_cut_off,
    share_without_variance,
    vocabulary_entropy,
    vocabulary_kl,
)
from bridle.rewards.learned import Ensemble

NAN, INF = math.nan, math.inf
MASK = torch.tensor([[True, True], [False, True]])


def near(found: Measured, value: float, se: float, n: int, left_out: int = 0) -> None:
    assert (found.n, found.left_out) == (n, left_out)
    assert found.value == pytest.approx(value)
    assert found.se == pytest.approx(se, nan_ok=True)


def sampled(steps: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of two models over five tokens after each of a thousand sampled prefixes, and both log-probs of what the first sampled."""
    generator = torch.Generator().manual_seed(0)
    table, other = (torch.randn(5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    last, logits, others, picked = torch.zeros(4000, dtype=torch.long), [], [], []
    for _ in range(steps):
        logits.append(table[last])
        others.append(other[last])
        last = torch.multinomial(table[last].softmax(1), 1, generator=generator)[:, 0]
        picked.append(last)
    logits_BTV, others_BTV, ids_BT1 = torch.stack(logits, 1), torch.stack(others, 1), torch.stack(picked, 1)[..., None]
    own, reference = (each.log_softmax(2).gather(2, ids_BT1)[..., 0] for each in (logits_BTV, others_BTV))
    return logits_BTV, others_BTV, own, reference


def test_sequence_kl_by_hand_and_what_lies_off_the_mask_is_never_read() -> None:
    logp, reference = torch.tensor([[-1.0, -2.0], [NAN, -1.0]]), torch.tensor([[-1.5, -2.5], [INF, -4.0]])
    near(sequence_kl(logp, reference, MASK), 2.0, 1.0, 2)  # 1 and 3 nats
    near(sequence_kl(logp, reference, MASK, ["p", "p"]), 2.0, NAN, 2)
    near(sampled_entropy(logp, MASK), 4 / 3, 2 / 9, 2)  # residuals 1/3 and -1/3 over 1.5 tokens


def test_kl_and_entropy_over_the_vocabulary_agree_with_the_sampled_ones_and_are_surer() -> None:
    logits, others, own, reference = sampled()
    mask = torch.ones(own.shape, dtype=torch.bool)
    for exact, estimate in (
        (vocabulary_kl(logits, others, mask), sequence_kl(own, reference, mask)),
        (vocabulary_entropy(logits, mask), sampled_entropy(own, mask)),
    ):
        assert exact.value == pytest.approx(estimate.value, abs=4 * math.hypot(exact.se, estimate.se))
        assert exact.se < 0.6 * estimate.se
    near(vocabulary_kl(logits, logits, mask), 0.0, 0.0, 4000)
    uniform = torch.zeros(2, 2, 8)
    near(vocabulary_entropy(uniform, MASK), math.log(8), 0.0, 2)
    barred = torch.tensor([0.0, 0.0, -INF]).expand(2, 2, 3)  # a token that can never come
    near(vocabulary_entropy(barred, MASK), math.log(2), 0.0, 2)
    near(vocabulary_kl(barred, torch.zeros(2, 2, 3), MASK), 1.5 * math.log(1.5), math.log(1.5) / 2, 2)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_logprobs_that_are_not_finite_are_refused(bad: float) -> None:
    broken, whole = torch.tensor([[bad, -1.0], [-1.0, -1.0]]), torch.zeros(2, 2)
    for found in (lambda: sequence_kl(broken, whole, MASK), lambda: sampled_entropy(broken, MASK)):
        with pytest.raises(
            DataError, match="log-probs of all answers must be finite numbers, and those of 1 of 2 are not"
        ):
            found()
    logits = torch.zeros(2, 2, 3)
    never = logits.clone()
    never[0, 0, 0] = -INF  # the reference never says what the policy does
    with pytest.raises(DataError, match="logits of all answers must be finite"):
        vocabulary_kl(logits, never, MASK)


def test_a_proxy_is_raw_or_in_sd_of_the_reference_and_what_was_not_judged_is_counted() -> None:
    scores = [1.0, None, 3.0, NAN, INF]
    near(proxy_reward(scores), 2.0, 1.0, 2, 3)
    near(proxy_reward(scores, centre=1.0, scale=4.0), 0.25, 0.25, 2, 3)
    near(proxy_reward(torch.tensor([1.0, 2.0, 3.0, 4.0]), groups=["a", "a", "b", "b"]), 2.5, 1.0, 4)
    with pytest.raises(DataError, match="none of 2 answers has a finite score"):
        proxy_reward([None, NAN])
    with pytest.raises(DataError, match="a scale above 0, got 0.0 and 0.0"):
        proxy_reward([1.0], scale=0.0)


def test_disagreement_is_what_an_ensemble_logs() -> None:
    scores = [[1.0, 2.0, 5.0], [3.0, 2.0, 5.0]]
    near(disagreement(scores), 1 / 3, 1 / 3, 3)
    near(disagreement([[*scores[0], None], [*scores[1], 0.0]]), 1 / 3, 1 / 3, 3, 1)
    members = [lambda prompts, answers, row=row: row for row in scores]
    logged = Ensemble(members, "mean", 0.0)([], []).metrics["disagreement"]  # type: ignore[arg-type]
    assert disagreement(scores).value == pytest.approx(logged)


def test_the_slope_of_gains_by_hand() -> None:
    training, heldout = [[9.0], [0.0], [1.0], [2.0]], [[9.0], [0.0], [0.5], [1.0]]
    found = gain_slope(training, heldout)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high, found.checkpoints, found.prompts) == (None, None, 3, 1)
    assert gain_slope(heldout, training, last=2).value == pytest.approx(2.0)
    still = gain_slope([[1.0, 2.0]] * 3, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert (still.value, still.low) == (None, None)
    masked = gain_slope([[0.0, NAN], [1.0, 7.0]], [[0.0, 1.0], [1.0, 7.0]])
    assert (masked.value, masked.left_out) == (pytest.approx(1.0), 1)
    with pytest.raises(DataError, match="two checkpoints at least"):
        gain_slope([[1.0]], [[1.0]])
    with pytest.raises(DataError, match="none of 1 prompts"):
        gain_slope([[NAN], [1.0]], [[0.0], [1.0]])


def test_the_interval_of_the_slope_covers_that_of_all_prompts() -> None:
    rng, true = np.random.default_rng(0), 1.5
    hits = 0
    for _ in range(400):
        step = np.arange(3)[:, None]
        quality = rng.normal(0, 1, (1, 128))
        training = quality + step + rng.normal(0, 1, (3, 128))
        heldout = quality + true * step + rng.normal(0, 1, (3, 128))
        found = gain_slope(list(training), list(heldout))
        assert found.low is not None and found.high is not None
        hits += found.low < true < found.high
    assert 0.92 < hits / 400 < 0.98


def test_length_drift_is_in_sd_of_the_reference() -> None:
    near(length_drift([7, 9], [2, 6, 2, 6]), 2.0, math.hypot(1.0, 2 / math.sqrt(3)) / 2, 2)
    with pytest.raises(DataError, match="all of one length"):
        length_drift([1, 2], [3, 3])


def test_what_was_lost_of_text_is_told_in_nats_a_token() -> None:
    near(nats_lost([10.0, 30.0], [12.0, 36.0], [10, 30]), 0.2, 0.0, 2)
    near(nats_lost([10.0, 30.0], [10.0, 36.0], [10, 30]), 0.15, 1.5 / 20, 2)
    for before, tokens, why in (
        ([1.0, NAN], [1, 1], "those of 1 of 2 are not"),
        ([1.0], [1, 1], "got 1, 2 and 2"),
        ([], [], "there are none"),
    ):
        with pytest.raises(DataError, match=why):
            nats_lost(before, [1.0] * len(tokens), tokens)
    with pytest.raises(DataError, match="not all 0"):
        nats_lost([0.0], [0.0], [0])


def test_what_was_lost_of_right_answers() -> None:
    found = matches_lost([True, True, False, True], [True, False, False, False])
    assert (found.value, found.gained, found.lost, found.n) == (-0.5, 0, 2, 4)
    assert found.low < -0.5 < found.high
    same = matches_lost([True] * 50, [True] * 50)
    assert same.value == 0 and same.low < 0 < same.high
    with pytest.raises(DataError, match="got 1 and 2"):
        matches_lost([True], [True, False])


@pytest.mark.parametrize("rates", [(0.02, 0.01), (0.9, 0.97), (0.5, 0.4)])
def test_the_interval_of_right_answers_covers(rates: tuple[float, float]) -> None:
    """The same prompts are easy for both, so the answers of a pair go together."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        ease = rng.random(100)
        found = matches_lost(list(ease < rates[0]), list((ease + rng.normal(0, 0.1, 100)) % 1 < rates[1]))
        hits += found.low <= rates[1] - rates[0] <= found.high
    assert hits / 1000 > 0.93


def test_dead_ends_are_shares_with_their_intervals() -> None:
    stop, length = FinishReason.STOP, FinishReason.LENGTH
    assert share_cut_off([stop, length, length, FinishReason.IMPORTED]).rate == 0.5
    found = share_without_variance([[1.0, 1.0], [1.0, 2.0], [None, 1.0], [NAN, NAN], [0.0, 0.0]])
    assert (found.rate, found.n) == (pytest.approx(2 / 3), 3)
    assert 0 < found.low < found.rate < found.high < 1
    with pytest.raises(DataError, match="none of 1 groups has a finite score for every answer"):
        share_without_variance([[None, 1.0]])
