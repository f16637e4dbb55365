"""Optimisers by name: AdamW for every stage, Muon for the matrices when a model is trained from nothing.

Muon is ours although PyTorch ships one: `torch.optim.Muon` orthogonalises one matrix at a time, and a small model has
dozens of equal shape. Stacking them takes the step from about 40 to 10 ms at 1.5 M parameters on two cores.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bridle.compute.device import multiplies_bfloat16
from bridle.compute.parallel import sum_gradients, world_size
from bridle.compute.sharding import my_piece, reshard, whole_tensor
from bridle.core.errors import RecipeError, TrainingStopped, UsageError, described_value
from bridle.core.timeline import timed
from bridle.recipe.base import TrainerSection, name_of_function

# Polynomials a x + b x³ + c x⁵ that carry singular values towards 1 fastest when only three are applied
# (Polar Express, Amsel 2025, arxiv.org/abs/2505.16932). Five rounds of the usual one cost more and learn slower here.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)

MOMENTS = ("exp_avg", "exp_avg_sq")  # PyTorch's names of AdamW's


def orthogonalise(stack_NRC: Tensor) -> Tensor:
    """Roughly semi-orthogonal matrices in the direction of each of N gradients.

    Singular values land mostly within .2 and 1.9; those under a few thousandths of the gradient's norm stay small. That
    rough, bfloat16 does as well as float32 and is taken wherever it is the faster.
    """
    x = stack_NRC.to(torch.bfloat16 if multiplies_bfloat16(stack_NRC.device) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (1.01 * x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(stack_NRC.dtype)


class AdamW(torch.optim.Optimizer):
    """Loshchilov & Hutter 2019 (arxiv.org/abs/1711.05101, algorithm 2) by PyTorch's fused kernel: each weight is read and written once.

    Not `torch.optim.AdamW`, whose first step makes PyTorch load its compiler: a second or more of every process.
    `offloaded`: the moments lie in the processor's memory, and each weight's are brought beside it for its update and back: the same
    numbers, for 16 bytes a weight and step on the way.
    """

    offloaded = False

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        leave_compiler_alone()
        super().__init__(
            list(params), {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for at_once in [[one] for one in parameters] if self.offloaded else filter(None, [parameters]):
                self.update(at_once, group)

    def update(self, parameters: list[Any], group: Mapping[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                place = torch.device("cpu") if self.offloaded else parameter.device
                state["step"] = torch.zeros((), device=parameter.device)
                state |= {name: torch.zeros_like(parameter, device=place) for name in MOMENTS}
        steps = [state["step"] for state in states]
        first, second = ([bring(p, s[name]) for p, s in zip(parameters, states, strict=True)] for name in MOMENTS)
        torch._foreach_add_(steps, 1)
        grads = [parameter.grad for parameter in parameters]
        weights, grads, first_here, second_here = (
            list(map(my_piece, each)) for each in (parameters, grads, first, second)
        )
        torch._fused_adamw_(
            weights, grads, first_here, second_here, [], steps, lr=group["lr"],
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False,
        )  # fmt: skip
        if self.offloaded:
            for state, *moved in zip(states, first, second, strict=True):
                for name, moment in zip(MOMENTS, moved, strict=True):
                    state[name].copy_(moment)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments that are offloaded never come to the card all at once, as PyTorch's own would have them."""
        if not self.offloaded:
            return super().load_state_dict(state_dict)
        super().load_state_dict({**state_dict, "state": {}})
        for number, parameter in enumerate(one for group in self.param_groups for one in group["params"]):
            if (saved := state_dict["state"].get(number)) is not None:
                moments = {name: saved[name].to("cpu", parameter.dtype) for name in MOMENTS}
                self.state[parameter] = {"step": saved["step"].to(parameter.device), **moments}


def bring(parameter: Tensor, moment: Tensor) -> Tensor:
    """A moment where its weight lies."""
    return moment.to(parameter.device)


def offload_moments(optimizers: Sequence[torch.optim.Optimizer], on: bool) -> None:
    """Keep AdamW's moments in the processor's memory from now on, or with the weights. RecipeError where another optimiser is to."""
    for optimizer in optimizers:
        if isinstance(optimizer, AdamW):
            optimizer.offloaded = on
        elif on:
            raise RecipeError(
                f"model.offload_optimizer is for AdamW's moments, and the optimiser is {type(optimizer).__name__}; set the trainer's "
                "optimizer to 'adamw', or model.offload_optimizer to false"
            )


def require_divisible(optimizers: Sequence[torch.optim.Optimizer], offloaded: bool) -> None:
    """RecipeError where weights that are divided over the ranks cannot be trained as the recipe has it."""
    if any(isinstance(optimizer, Muon) for optimizer in optimizers):
        raise RecipeError(
            "scale.shard = true leaves each rank a piece of every matrix, and muon orthogonalises whole ones; set the trainer's "
            "optimizer to 'adamw', or scale.shard to false, where each rank has all of them"
        )
    if offloaded:
        raise RecipeError(
            "model.offload_optimizer moves whole moments, and with scale.shard = true each rank holds a piece of them; set one to false"
        )


def leave_compiler_alone() -> None:
    """Four methods of PyTorch's optimisers load its compiler at their first call, only to tell it that they are not to be compiled.
    The mark that they would leave on themselves then is left here; nothing of ours compiles an optimiser."""
    base = torch.optim.Optimizer
    for method in (base.add_param_group, base.zero_grad, base.state_dict, base.load_state_dict):
        inner = inspect.unwrap(method)
        inner.__dict__.setdefault("__dynamo_disable", inner)


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalised updates, for 2-D weights; matrices of equal or transposed shape share a stack."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        leave_compiler_alone()
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
                rows, columns = update.shape
                wide = update if rows <= columns else update.T
                stacks.setdefault((wide.shape[0], wide.shape[1]), []).append((parameter, wide))
            for members in stacks.values():
                updates = orthogonalise(torch.stack([wide for _, wide in members]))
                for (parameter, _), update in zip(members, updates, strict=True):
                    rows, columns = parameter.shape
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    scale = max(1.0, rows / columns) ** 0.5
                    parameter.add_(update if rows <= columns else update.T, alpha=-group["lr"] * scale)


def matrices_of(module: nn.Module) -> list[nn.Parameter]:
    """The weights that may be decayed: no norms and biases, as in transformers' Trainer, and no embeddings, as in OLMo 2
    (arxiv.org/abs/2501.00656, §3.4). A head that is tied to the embeddings is one of them."""
    embeddings = {
        id(weight) for one in module.modules() if isinstance(one, nn.Embedding) for weight in one.parameters()
    }
    return [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and parameter.dim() >= 2
        and id(parameter) not in embeddings
        and not name.endswith("bias")
    ]


def learning(module: nn.Module) -> list[nn.Parameter]:
    """The weights that are trained: all, or an adapter's."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@timed("set up")  # the first one of a process makes torch import its compiler
def adamw(
    module: nn.Module, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8
) -> list[torch.optim.Optimizer]:
    """AdamW for all; `weight_decay` is of the matrices alone."""
    if not weight_decay:
        return [AdamW(learning(module), lr, betas, eps)]
    decayed = matrices_of(module)
    known = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in learning(module) if id(parameter) not in known]
    return [AdamW([{"params": decayed, "weight_decay": weight_decay}, {"params": rest}], lr, betas, eps)]


def muon(
    module: nn.Module,
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which `weight_decay` is of; AdamW at a fifth of the rate for embeddings, norms, biases and heads.

    What a layer holds has the layer's number in its name, whatever the family calls its layers.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        (matrices if parameter.dim() == 2 and re.search(r"\.\d+\.", name) else rest).append(parameter)
    adam = AdamW(rest, lr / 5, betas, eps)
    return [Muon(matrices, lr, weight_decay=weight_decay), adam] if matrices else [adam]  # a lone head has no layers


OPTIMIZERS: dict[str, Callable[..., list[torch.optim.Optimizer]]] = {"adamw": adamw, "muon": muon}
DECAY = {"adamw": 0.0, "muon": 0.01}  # where the recipe says auto


def optimizers_of(module: nn.Module, config: TrainerSection, learning_rate: float) -> list[torch.optim.Optimizer]:
    """The optimisers that a trainer's section asks for, of a module's weights."""
    if (make := config.brought.get("optimizer")) is not None:
        return [own_optimizer(make, module, learning_rate)]
    decay = DECAY[config.optimizer] if config.weight_decay == "auto" else config.weight_decay
    betas = (config.adam_beta1, config.adam_beta2)
    return OPTIMIZERS[config.optimizer](module, learning_rate, decay, betas, config.adam_epsilon)


def own_optimizer(make: Callable[..., Any], module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """What a caller brings, `make(parameters, lr=…)` as PyTorch's classes are called, of the weights that learn. UsageError where it is
    not called so, is none, or has other weights."""
    leave_compiler_alone()
    weights, name = learning(module), name_of_function(make)
    try:
        found = make(weights, lr=learning_rate)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"optimizer is called as torch.optim.SGD is, optimizer(parameters, lr={learning_rate:g}), and {name} does not take that: "
            f"{error}; wrap it in a function that does"
        ) from error
    if not isinstance(found, torch.optim.Optimizer):
        raise UsageError(f"optimizer must give a torch.optim.Optimizer, and {name} gave {described_value(found)}")
    if any(
        one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
        for one in inspect.signature(found.step).parameters.values()
    ):
        raise UsageError(
            f"{name} makes an optimiser whose step needs a closure, which no loop has; bring one that steps by gradients"
        )
    held = {id(parameter) for group in found.param_groups for parameter in group["params"]}
    if held != {id(parameter) for parameter in weights}:
        raise UsageError(
            f"{name} made an optimiser of {len(held)} weights that are not the {len(weights)} which learn; give it all of the parameters "
            "that it is called with"
        )
    return found


def warm_then_linear(step: int, steps: int, warmup: float = 0.03, decay: float = 0.7) -> float:
    """Share of the peak rate at `step`: up over `warmup` of the run, level, straight to zero over the last `decay`.

    Half a cosine from the start learns slower on the playground at every length tried (docs/failures.md).
    """
    return warm_then_constant(step, steps, warmup) * min(1.0, (1 - step / steps) / decay)


def warm_then_cosine(step: int, steps: int, warmup: float) -> float:
    """The same along half a cosine from the warm-up on (Loshchilov 2016, arxiv.org/abs/1608.03983, without restarts)."""
    left = min(1.0, (1 - step / steps) / (1 - warmup))
    return warm_then_constant(step, steps, warmup) * (0.5 - 0.5 * math.cos(math.pi * left))


def warm_then_constant(step: int, steps: int, warmup: float = 0.0) -> float:
    return min(1.0, (step + 1) / (warmup * steps + 1))


Share = Callable[[int, int], float]  # of the peak rate, at one of so many optimiser steps, counted from 0


def schedule_of(config: TrainerSection, usual: Share) -> Share:
    """The schedule that a trainer's section names or brings; `usual` where it says auto."""
    if (own := config.brought.get("schedule")) is not None:
        return partial(own_share, own)
    if config.schedule == "auto":
        return usual
    if config.schedule == "linear":
        return partial(warm_then_linear, warmup=config.warmup, decay=1 - config.warmup)
    return partial(warm_then_cosine if config.schedule == "cosine" else warm_then_constant, warmup=config.warmup)


def own_share(schedule: Callable[[int, int], Any], step: int, steps: int) -> float:
    """What a caller's schedule says; TrainingStopped where that is not a share of a rate."""
    share = schedule(step, steps)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
        raise TrainingStopped(
            f"schedule({step}, {steps}) must give the share of the peak rate, a number from 0 on, got {described_value(share)}"
        )
    return float(share)


Peaks = list[list[float]]  # by optimiser and group of its weights


def set_rate(optimizers: Sequence[torch.optim.Optimizer], peaks: Peaks, share: float) -> None:
    for optimizer, rates in zip(optimizers, peaks, strict=True):
        for group, peak in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = peak * share


def finite(loss: Tensor) -> Tensor:
    """The loss as it is. One that is not finite ends the run before anything is learnt from it.

    Where ranks share the step, `clipped_step` sees it instead, in the sum of their gradients: all of them stop, and none waits."""
    if world_size() == 1 and not bool(torch.isfinite(loss)):
        raise TrainingStopped(
            f"the loss is {float(loss.detach())}, and no step was taken; lower the learning rate, or look at the data of the step"
        )
    return loss


@timed("backward")
def backward(loss: Tensor) -> None:
    """Add the gradient of a loss that is `finite`; under `torch.no_grad`, where a loss is only measured, nothing."""
    loss = finite(loss)
    if torch.is_grad_enabled():
        torch.autograd.backward(loss)


@timed("optimizer")
def clipped_step(modules: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer], clip_norm: float) -> float:
    """Add up the ranks' gradients, clip each module's to the norm `clip_norm`, step, clear; the first one's gradient norm before.

    Raises TrainingStopped, with every weight as it was, where a gradient is not finite.
    """
    sum_gradients(modules)
    norms = [whole_tensor(torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)) for module in modules]
    if not all(bool(torch.isfinite(norm)) for norm in norms):
        for optimizer in optimizers:
            optimizer.zero_grad()
        raise TrainingStopped(
            f"the gradient norm is {[float(norm) for norm in norms]}, and no step was taken; lower the learning rate, or set "
            "model.precision to float32"
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    reshard(modules)
    return float(norms[0])


def peak_rates(optimizers: Sequence[torch.optim.Optimizer]) -> Peaks:
    return [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
