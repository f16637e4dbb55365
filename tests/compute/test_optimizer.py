"""Muon's orthogonal updates, the groups it is given, and the ends of the schedules."""

import math
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from bridle.compute import optimizer as optimizer_module
from bridle.compute.optimizer import (
    OPTIMIZERS,
    AdamW,
    Muon,
    clipped_step,
    finite,
    matrices_of,
    muon,
    offload_moments,
    optimizers_of,
    orthogonalise,
    peak_rates,
    schedule_of,
    set_rate,
    warm_then_constant,
    warm_then_linear,
)
from bridle.core.errors import RecipeError, TrainingStopped
from bridle.recipe.base import TrainerSection
from tests.models.tiny import one_sentence, policy


@pytest.mark.parametrize("shape", [(2, 8, 40), (2, 40, 8), (1, 64, 32), (1, 160, 448)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape) * 1e-3))
    assert float(values.min()) > 0.15
    assert float(values.max()) < 3.0  # in exact arithmetic 1.9; a small matrix in bfloat16 goes beyond
    assert 0.8 < float(values.mean()) < 1.5


def test_a_gradient_of_uneven_strength_is_levelled() -> None:
    """Directions a hundred times weaker than the strongest take part: the ratio shrinks from 100 to less than 15."""
    torch.manual_seed(1)
    u, v = torch.linalg.qr(torch.randn(32, 32))[0], torch.linalg.qr(torch.randn(48, 32))[0]
    gradient = u @ torch.logspace(0, -2, 32).diag() @ v.T
    values = torch.linalg.svdvals(orthogonalise(gradient[None])[0])
    assert float(values.max() / values.min()) < 15


def test_singular_vectors_stay() -> None:
    """U S Vᵀ becomes about U Vᵀ: the update points where the gradient did."""
    torch.manual_seed(1)
    gradient = torch.randn(1, 24, 48)
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    inside = u.transpose(1, 2) @ orthogonalise(gradient) @ v.transpose(1, 2)
    diagonal = inside[0].diagonal()
    assert float(diagonal.min()) > 0.15
    assert float((inside[0] - diagonal.diag()).abs().max()) < 0.05


def test_a_transposed_matrix_gives_the_transposed_update() -> None:
    torch.manual_seed(2)
    stack = torch.randn(2, 12, 30)
    torch.testing.assert_close(orthogonalise(stack.transpose(1, 2)), orthogonalise(stack).transpose(1, 2))


def test_a_matrix_does_not_depend_on_its_stack() -> None:
    torch.manual_seed(3)
    stack = torch.randn(5, 16, 24)
    torch.testing.assert_close(orthogonalise(stack)[3:4], orthogonalise(stack[3:4]), rtol=0, atol=2e-2)


def test_a_gradient_of_zero_moves_nothing() -> None:
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()


@pytest.mark.parametrize(("rows", "columns", "scale"), [(8, 8, 1.0), (8, 16, 1.0), (32, 8, 2.0)])
def test_a_step_is_an_orthogonal_matrix_times_the_rate(rows: int, columns: int, scale: float) -> None:
    torch.manual_seed(4)
    parameter = nn.Parameter(torch.zeros(rows, columns))
    parameter.grad = torch.randn(rows, columns)
    Muon([parameter], lr=0.1, weight_decay=0.0).step()
    expected = -0.1 * scale * orthogonalise(parameter.grad[None])[0]
    assert float((parameter.detach() - expected).norm() / expected.norm()) < 0.15  # bfloat16


def test_weights_decay_before_they_move() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    parameter.grad = torch.zeros(4, 4)
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    assert parameter.detach().tolist() == [[pytest.approx(0.95)] * 4] * 4


def test_muon_takes_the_layers_matrices_and_nothing_else() -> None:
    module = policy("qwen2").module
    matrices, rest = muon(module, 0.02)
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [{named[id(p)] for p in optimizer.param_groups[0]["params"]} for optimizer in (matrices, rest)]
    assert names[0] | names[1] == set(named.values()) and not names[0] & names[1]
    assert all(name.endswith("proj.weight") for name in names[0])
    assert "model.embed_tokens.weight" in names[1] and "model.layers.0.self_attn.q_proj.bias" in names[1]
    assert peak_rates([matrices, rest]) == [[0.02], [pytest.approx(0.004)]]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_lowers_a_loss(name: str) -> None:
    module = policy().module
    optimizers = OPTIMIZERS[name](module, 0.01)
    ids = torch.tensor([[5, 9, 40, 22, 8, 77, 31, 64]])

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(module(ids)[0, :-1], ids[0, 1:])

    before = float(loss().detach())
    for _ in range(10):
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert float(loss().detach()) < before / 2


def test_the_rate_rises_stays_and_ends_at_zero() -> None:
    shares = [warm_then_linear(step, 200, warmup=0.05, decay=0.7) for step in range(201)]
    assert shares[:2] == pytest.approx([1 / 11, 2 / 11])
    assert shares[10:61] == [1.0] * 51
    assert shares[130] == pytest.approx(0.5)
    assert shares[199] == pytest.approx(1 / 140) and shares[200] == 0.0
    assert all(later < earlier for earlier, later in zip(shares[60:], shares[61:], strict=False))
    assert 0 < warm_then_linear(0, 1) <= 1


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("linear", 1 / 2, 1 / 80), ("cosine", 1 / 2, 0.00039), ("constant", 1.0, 1.0)]
)
def test_a_named_schedule_warms_up_and_then_goes_its_way(schedule: str, middle: float, last: float) -> None:
    share = schedule_of(TrainerSection(schedule=schedule, warmup=0.2), warm_then_linear)  # type: ignore[arg-type]
    shares = [share(step, 100) for step in range(100)]
    assert shares[:3] == pytest.approx([1 / 21, 2 / 21, 3 / 21]) and shares[20] == pytest.approx(1.0)
    assert shares[60] == pytest.approx(middle) and shares[99] == pytest.approx(last, abs=1e-5)
    assert 0 < share(0, 1) <= 1


@pytest.mark.parametrize("usual", [warm_then_linear, warm_then_constant])
def test_auto_is_what_is_usual_there(usual: Any) -> None:
    assert schedule_of(TrainerSection(), usual) is usual
    assert [warm_then_constant(step, 3) for step in range(3)] == [1.0, 1.0, 1.0]


def test_norms_biases_and_embeddings_are_not_decayed() -> None:
    module = policy("qwen2").module  # its head is tied, its projections have biases
    decayed = {id(parameter) for parameter in matrices_of(module)}
    names = {name for name, parameter in module.named_parameters() if id(parameter) in decayed}
    assert names and all(name.endswith("proj.weight") for name in names)
    assert {name for name, _ in module.named_parameters() if name.endswith("proj.weight")} == names
    untied = policy("llama").module
    assert id(untied.lm_head.weight) in {id(parameter) for parameter in matrices_of(untied)}
    stacked = nn.Module()
    stacked.register_parameter("experts_bias", nn.Parameter(torch.zeros(4, 8)))
    stacked.register_parameter("experts", nn.Parameter(torch.zeros(4, 8, 8)))
    assert [tuple(parameter.shape) for parameter in matrices_of(stacked)] == [(4, 8, 8)]


def test_a_section_says_how_weights_move() -> None:
    module = policy("qwen2").module
    config = TrainerSection(weight_decay=0.3, adam_beta1=0.8, adam_beta2=0.7, adam_epsilon=1e-5)
    (adam,) = optimizers_of(module, config, 0.01)
    matrices, rest = adam.param_groups
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert all(
        group["betas"] == (0.8, 0.7) and group["eps"] == 1e-5 and group["lr"] == 0.01 for group in adam.param_groups
    )
    assert len(matrices["params"]) + len(rest["params"]) == len(list(module.parameters()))
    with torch.no_grad():
        before = [parameter.clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    known = {id(parameter) for parameter in matrices["params"]}
    for parameter, then in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), then * (1 - 0.01 * 0.3 * (id(parameter) in known)))


def test_what_a_section_says_nothing_of_is_as_it_always_was() -> None:
    module = policy("qwen2").module
    (adam,) = optimizers_of(module, TrainerSection(), 0.01)
    (group,) = adam.param_groups  # one, in the modules' order: checkpoints number the weights by it
    assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters()]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.0, (0.9, 0.95), 1e-8)
    matrices, rest = optimizers_of(module, TrainerSection(optimizer="muon"), 0.01)
    assert matrices.param_groups[0]["weight_decay"] == 0.01 and rest.param_groups[0]["weight_decay"] == 0.0
    given = TrainerSection(optimizer="muon", weight_decay=0.0, adam_beta1=0.5)
    matrices, rest = optimizers_of(module, given, 0.01)
    assert matrices.param_groups[0]["weight_decay"] == 0.0 and rest.param_groups[0]["betas"] == (0.5, 0.95)


def test_rates_are_shares_of_the_peaks() -> None:
    optimizers = muon(policy().module, 0.02)
    peaks = peak_rates(optimizers)
    for share in (0.5, 0.25):
        set_rate(optimizers, peaks, share)
    assert peak_rates(optimizers) == [[pytest.approx(0.005)], [pytest.approx(0.001)]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [p.clone() for m in (one, two) for p in m.parameters()]
    optimizers = [torch.optim.AdamW(m.parameters(), 0.1) for m in (one, two)]
    (one(torch.ones(3)).sum() + two(torch.ones(3)).sum()).backward()
    two.bias.grad = torch.tensor([1.0, bad])
    with pytest.raises(TrainingStopped, match="no step was taken; lower the learning rate") as caught:
        clipped_step([one, two], optimizers, 1.0)
    assert one_sentence(str(caught.value))
    assert all(torch.equal(a, b) for a, b in zip(before, [*one.parameters(), *two.parameters()], strict=True))
    assert all(p.grad is None for p in [*one.parameters(), *two.parameters()]), "nothing of it is added to the next one"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(bad: float) -> None:
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(TrainingStopped, match="the loss is (nan|inf), and no step was taken") as caught:
        finite((weight * bad).sum())
    assert one_sentence(str(caught.value))
    loss = (weight * 2).sum()
    assert finite(loss) is loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_is_pytorchs_own(dtype: torch.dtype) -> None:
    """To the bit, through a saved and restored state, with a weight that has no gradient at first."""
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).to(dtype) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    ours = AdamW(modules[0].parameters(), 1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(modules[1].parameters(), 1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    x = torch.randn(4, 7, dtype=dtype)
    for step in range(6):
        for module, optimizer in zip(modules, (ours, theirs), strict=True):
            (module[0](x) if step < 2 else module(x)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        if step == 3:
            state = deepcopy(ours.state_dict())
            ours = AdamW(modules[0].parameters(), 1e-2, weight_decay=0.1)
            ours.load_state_dict(state)
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_does_not_load_pytorchs_compiler() -> None:
    """It takes a second or more of every process that trains."""
    program = """
import sys, torch
from bridle.compute.optimizer import OPTIMIZERS, clipped_step
for name, optimizers_of in OPTIMIZERS.items():
    module = torch.nn.ModuleDict({"0": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4)})
    for _ in range(2):
        module["norm"](module["0"](torch.ones(2, 4))).sum().backward()
        optimizers = optimizers_of(module, 0.1)
        clipped_step([module], optimizers, 1.0)
        [o.load_state_dict(o.state_dict()) for o in optimizers]
    assert "torch._dynamo" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def trained_by_adamw(steps: range, optimizer: AdamW, weights: list[nn.Parameter]) -> None:
    for step in steps:
        for number, weight in enumerate(weights):
            draws = torch.Generator().manual_seed(100 * step + number)
            weight.grad = torch.randn(weight.shape, generator=draws) if number != 1 or step else None
        optimizer.step()


def two_groups() -> tuple[AdamW, list[nn.Parameter]]:
    draws = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=draws)) for shape in ((7, 5), (3,), (4, 4))]
    return AdamW([{"params": weights[:2], "weight_decay": 0.1}, {"params": weights[2:]}], lr=0.01), weights


def test_moments_that_are_offloaded_make_the_same_numbers_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies stand in for a card: what is changed there counts only once it is brought back."""
    plain, expected = two_groups()
    trained_by_adamw(range(6), plain, expected)
    monkeypatch.setattr(optimizer_module, "bring", lambda parameter, moment: moment.clone())
    first, weights = two_groups()
    offload_moments([first], True)
    trained_by_adamw(range(3), first, weights)
    saved = {"state": deepcopy(first.state_dict()["state"]), "param_groups": first.state_dict()["param_groups"]}
    resumed, again = two_groups()
    offload_moments([resumed], True)
    for weight, was in zip(again, weights, strict=True):
        weight.data.copy_(was.data)
    resumed.load_state_dict(saved)
    assert [int(resumed.state[weight]["step"]) for weight in again] == [3, 2, 3]
    trained_by_adamw(range(3, 6), resumed, again)
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))
    for one, other in zip(again, expected, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(resumed.state[one][name], plain.state[other][name])


def test_another_optimiser_has_no_moments_to_offload() -> None:
    optimizer = Muon([nn.Parameter(torch.zeros(2, 2))], lr=0.1)
    offload_moments([optimizer], False)
    with pytest.raises(RecipeError, match="the optimiser is Muon; set the trainer's optimizer to 'adamw'"):
        offload_moments([optimizer], True)
