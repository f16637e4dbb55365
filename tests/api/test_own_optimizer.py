"""Optimisers and schedules that a caller brings: called as PyTorch's are, resumed, and part of what makes a run the same."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bridle
from bridle.core.errors import BridleError, ProjectError, TrainingStopped, UsageError
from tests.models.tiny import one_sentence
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE

EXAMPLES = [(f"What is {i} + 2?", f"It is {i}.") for i in range(12)]
PAIRS = [(prompt, "It is a cat.", "No no no.") for prompt, _ in EXAMPLES]
SFT: dict[str, Any] = {"batch_size": 4, "epochs": 1, "learning_rate": 1e-2, "checkpoint_every": 1}
PPO: dict[str, Any] = {"steps": 1, "prompts_per_step": 4, "max_new_tokens": 4}


@pytest.fixture
def model() -> bridle.Model:
    return bridle.Model(tiny_policy(), DEVICE)


def weights(model: bridle.Model) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.module.parameters()]


def half(step: int, steps: int) -> float:
    return 0.5


class Stop:
    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        if step == self.at:
            raise ZeroDivisionError


def test_an_own_optimizer_and_schedule_move_the_weights(model: bridle.Model) -> None:
    """The same as bridle's AdamW at half the rate, by PyTorch's and a function."""
    other = model.copy()
    named = {**SFT, "learning_rate": 5e-3, "optimizer": "adamw", "schedule": "constant", "warmup": 0.0}
    bridle.sft(model, EXAMPLES, **named)
    adam = partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.0)
    bridle.sft(other, EXAMPLES, **SFT, optimizer=adam, schedule=half)
    for one, two in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_groups_keep_their_own_rates(model: bridle.Model) -> None:
    made: list[torch.optim.Optimizer] = []

    def grouped(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        first, *rest = parameters
        made.append(torch.optim.SGD([{"params": [first], "lr": 0.0}, {"params": rest}], lr=lr))
        return made[-1]

    before = weights(model)
    bridle.sft(model, EXAMPLES, **SFT, optimizer=grouped, schedule=half)
    moved = [not torch.equal(one, two) for one, two in zip(before, weights(model), strict=True)]
    assert moved == [False, *[True] * (len(moved) - 1)]
    assert [group["lr"] for group in made[0].param_groups] == [0.0, 0.5e-2]


@pytest.mark.parametrize("name", ["pretrain", "reward_model", "dpo", "kto", "orpo", "ppo", "rebel"])
def test_every_trainer_takes_one(name: str, model: bridle.Model) -> None:
    made: list[float] = []

    def counted(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        made.append(lr)
        return torch.optim.Adagrad(parameters, lr=lr)

    calls: dict[str, Callable[..., Any]] = {
        "pretrain": lambda **own: bridle.pretrain(
            ["one two three"] * 9, tokens=64, length=8, vocab_size=300, hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=2,
            **own,
        ),
        "reward_model": lambda **own: bridle.reward_model(model, PAIRS, max_new_tokens=4, **own),
        "ppo": lambda **own: bridle.ppo(model, ["One?", "Two?"], lambda p, a: [float(len(x)) for x in a], **PPO, **own),
        "rebel": lambda **own: bridle.rebel(model, ["One?", "Two?"], lambda p, a: [float(len(x)) for x in a], **PPO, **own),
    }  # fmt: skip
    call = calls.get(name, lambda **own: bridle.api.__dict__[name](model, PAIRS, **own))
    rates = {"learning_rate": 1e-2, **({"critic_learning_rate": 2e-2} if name == "ppo" else {})}
    call(optimizer=counted, schedule=half, **rates)
    assert made == list(rates.values())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.NAdam])
def test_a_run_with_one_is_resumed_and_no_other_takes_its_place(
    make: type[torch.optim.Optimizer], model: bridle.Model, tmp_path: Path
) -> None:
    own: dict[str, Any] = {**SFT, "optimizer": make, "schedule": half}
    whole, other = model.copy(), model.copy()
    bridle.dpo(whole, PAIRS, **own, folder=tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        bridle.dpo(model, PAIRS, **own, folder=tmp_path / "twice", on_log=Stop(1))
    for differs in ({"optimizer": partial(make, weight_decay=0.1)}, {"schedule": "linear"}):
        with pytest.raises(ProjectError, match="begun with other settings"):
            bridle.dpo(other, PAIRS, **{**own, **differs}, folder=tmp_path / "twice")
    bridle.dpo(model, PAIRS, **own, folder=tmp_path / "twice")
    assert all(torch.equal(one, two) for one, two in zip(weights(whole), weights(model), strict=True))
    told = f"# The caller's own, in place of what stands here: dpo.optimizer = torch.optim.{make.__name__.lower()}.{make.__name__}, "
    assert (tmp_path / "twice/recipe.toml").read_text().startswith(f"{told}dpo.schedule = {__name__}.half\n")


def two_of(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(parameters)[:2], lr=lr)


class Odd(torch.optim.SGD):
    """Its state is more than tensors."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["names"] = ["a"]


PARAMETER = nn.Parameter(torch.zeros(1))
BAD: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": torch.optim.SGD([PARAMETER], lr=0.1)}, "already belongs to other weights: give its class"),
    ({"optimizer": 3}, "optimizer is one of the recipe's names, or what is called as optimizer\\(parameters, lr"),
    ({"optimizer": lambda parameters: None}, "does not take that"),
    ({"optimizer": lambda parameters, lr: None}, "must give a torch.optim.Optimizer"),
    ({"optimizer": two_of}, "of 2 weights that are not the \\d+ which learn"),
    ({"optimizer": torch.optim.LBFGS}, "needs a closure"),
    ({"optimizer": Odd}, "state holds 'names'"),
    ({"optimizer": torch.optim.SGD, "weight_decay": 0.1}, "weight_decay belongs to what is named"),
    ({"schedule": [1.0, 0.5]}, "schedule is one of the recipe's names"),
    ({"schedule": half, "warmup": 0.1}, "warmup belongs to what is named"),
    ({"schedule": lambda step, steps: None}, "schedule\\(0, 3\\) must give the share of the peak rate"),
    ({"schedule": lambda step, steps: float("nan")}, "a number from 0 on, got float 'nan'"),
    ({"schedule": lambda step, steps: -1}, "a number from 0 on, got int '-1'"),
]


@pytest.mark.parametrize("own, words", BAD)
def test_what_is_no_optimizer_or_schedule_is_refused(
    own: dict[str, Any], words: str, model: bridle.Model, tmp_path: Path
) -> None:
    before = weights(model)
    with pytest.raises(BridleError, match=words) as caught:
        bridle.sft(model, EXAMPLES, **SFT, **own, folder=tmp_path / "run")
    assert isinstance(caught.value, UsageError | TrainingStopped) and one_sentence(str(caught.value))
    assert all(torch.equal(one, two) for one, two in zip(before, weights(model), strict=True))


def test_help_tells_of_them() -> None:
    assert "or your own, called as optimizer(parameters, lr=…), as torch.optim.SGD is" in " ".join(
        str(bridle.dpo.__doc__).split()
    )
