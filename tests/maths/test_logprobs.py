"""Log-probs from hidden states, slice by slice, against the whole matrix of logits."""

import math

import pytest
import torch
from torch import Tensor

from bridle.maths import logprobs
from bridle.maths.logprobs import linear_logprobs


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    return (hidden @ weight.T / temperature).log_softmax(1).gather(1, targets[:, None])[:, 0]


def test_by_hand() -> None:
    hidden = torch.eye(2)
    weight = torch.tensor([[math.log(1.0), math.log(4.0)], [math.log(3.0), math.log(4.0)]])
    targets = torch.tensor([1, 0])
    assert linear_logprobs(hidden, weight, targets).tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    # at temperature ½ the odds of 3 become 9
    assert linear_logprobs(hidden, weight, targets, 0.5).tolist() == pytest.approx([math.log(0.9), math.log(0.5)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_values_and_gradients_equal_the_plain_ones(
    temperature: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rows a slice holds."""
    monkeypatch.setattr(logprobs, "SLICE", rows * 13)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 6, dtype=torch.float64), torch.randn(13, 6, dtype=torch.float64)
    targets, pull = torch.randint(13, (10,)), torch.randn(10, dtype=torch.float64)
    results = []
    for function in (linear_logprobs, plain):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        found = function(h, w, targets, temperature)
        (found * pull).sum().backward()
        results.append((found.detach(), h.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
def test_a_bias_and_a_soft_cap_enter_values_and_gradients(
    temperature: float, soft_cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "SLICE", 3 * 13)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    torch.manual_seed(2)
    leaves = [torch.randn(shape, dtype=torch.float64) for shape in ((10, 6), (13, 6), (13,))]
    targets, pull = torch.randint(13, (10,)), torch.randn(10, dtype=torch.float64)

    def composed(h: Tensor, w: Tensor, targets: Tensor, temperature: float, b: Tensor, cap: float) -> Tensor:
        logits = h @ w.T + b
        capped = cap * (logits / cap).tanh() if cap else logits
        return (capped / temperature).log_softmax(1).gather(1, targets[:, None])[:, 0]

    results = []
    for function in (linear_logprobs, composed):
        h, w, b = (leaf.clone().requires_grad_() for leaf in leaves)
        found = function(h, w, targets, temperature, b, soft_cap)
        (found * pull).sum().backward()
        results.append((found.detach(), h.grad, w.grad, b.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "got", "tolerance"),
    [(torch.bfloat16, torch.float32, 0.1), (torch.float32, torch.float32, 1e-5), (torch.float64, torch.float64, 1e-12)],
)
def test_results_are_never_narrower_than_float32(given: torch.dtype, got: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(5, 6).to(given), torch.randn(13, 6).to(given), torch.randint(13, (5,))
    found = linear_logprobs(hidden, weight, targets)
    assert found.dtype == got
    expected = plain(hidden.double(), weight.double(), targets, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_under_autocast_gradients_keep_the_types_of_what_they_belong_to() -> None:
    hidden = torch.randn(5, 6).bfloat16().requires_grad_()
    weight = torch.randn(13, 6, requires_grad=True)
    targets = torch.randint(13, (5,))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_logprobs(hidden, weight, targets)
    found.sum().backward()
    assert (found.dtype, weight.dtype) == (torch.float32, torch.float32)
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    again = weight.detach().clone().requires_grad_()
    plain(hidden.detach().float(), again, targets, 1.0).sum().backward()
    torch.testing.assert_close(weight.grad, again.grad, rtol=0, atol=0.1)


def test_nothing_selected_gives_nothing() -> None:
    weight = torch.randn(13, 6, requires_grad=True)
    found = linear_logprobs(torch.randn(0, 6), weight, torch.zeros(0, dtype=torch.long))
    found.sum().backward()
    assert found.shape == (0,)
    assert weight.grad is not None and not weight.grad.any()
