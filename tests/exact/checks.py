"""What must hold of the trainers, as plain functions that raise AssertionError: the tests call them as the code is, and once
more with a fault planted in it.

Each is worked out by hand on the world of tables, in loops over answers and tokens, and uses nothing of what it tests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bridle.core.records import Completion, FinishReason, Prompt
from bridle.generation.rollout import Asking, roll_out
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.policy import Policy
from bridle.recipe.offline import SFTSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RLOOSection
from bridle.training import grpo, ppo, rebel, rloo, sft
from tests.exact.train import by_ppo
from tests.exact.world import (
    ANSWERS,
    PROMPT_IDS,
    PROMPTS,
    STATES,
    STOP,
    World,
    answer_logp_A,
    critic,
    distance,
    practising,
)
from tests.training.runs import DEVICE, run_in, session

WORLD = World.made(0)
REWARD_ERROR, KL = 0.03, 0.02  # what "reaches the optimum" means: a share of its reward, nats an answer


@contextmanager
def caught_gradients() -> Iterator[list[list[Tensor]]]:
    """The gradients at each optimiser step, as the optimiser finds them: after clipping, before it moves anything."""
    found: list[list[Tensor]] = []

    def look(optimizer: torch.optim.Optimizer, arguments: Any, settings: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def near(found: Tensor, expected: Tensor, what: str, atol: float = 1e-6) -> None:
    """Rewards are float32, the rest float64."""
    worst = float((found - expected).abs().max())
    assert worst <= atol, f"{what} is off by {worst:.2g}"


def drifted(world: World) -> Policy:
    """A policy that has left its reference."""
    policy = world.policy()
    with torch.no_grad():
        noise = torch.randn(policy.module.weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        policy.module.weight.add_(0.6 * noise)  # type: ignore[operator]
    return policy


class Listener:
    """A reward that remembers what it was asked."""

    def __init__(self, reward: Callable[[Sequence[Prompt], Sequence[Completion]], Sequence[float | None]]) -> None:
        self.reward = reward
        self.heard: list[tuple[list[int], Completion, float]] = []

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Sequence[float | None]:
        scores = self.reward(prompts, completions)
        asked = [[int(word) for word in prompt.text.split()] for prompt in prompts]
        self.heard = [(ids, c, float(s or 0)) for ids, c, s in zip(asked, completions, scores, strict=True)]
        return scores


def states_of(prompt: Sequence[int], completion: Completion) -> list[int]:
    return [STATES[(*prompt, *completion.token_ids[:n])] for n in range(len(completion.token_ids))]


# ------------------------------------------------------------------------------------------------------- checks


def check_ppo_reaches_the_optimum() -> None:
    """Every answer's probability under PPO is π_ref exp(r / β) / Z, at β = .3."""
    with scratch() as folder:
        found = distance(WORLD, by_ppo(WORLD, 0.3, folder), 0.3)
    assert found.reward_error <= REWARD_ERROR and found.kl <= KL, found


def check_log_probs_are_those_of_whole_answers() -> None:
    """Prompts of one to three tokens, answers of one to three: the sum over the mask is log π(answer), the stop's in it."""
    policy = WORLD.policy()
    for prompt in PROMPT_IDS:
        batch = make_batch([prompt] * len(ANSWERS), ANSWERS, policy.template.pad_id)
        with torch.no_grad():
            found = sequence_logprobs(policy.module, batch, 0.7).sum(1)
        near(found, answer_logp_A(WORLD.reference_VS, prompt, 0.7), "log π of an answer", 1e-12)


def check_sft_learns_how_often() -> None:
    """SFT's optimum is each token's share among the demonstrations that came so far, the stop's share too."""
    shown = [(prompt, list(ids)) for prompt in PROMPT_IDS for ids in ANSWERS[:21] for _ in range(1 + len(ids) + ids[0])]
    counts = torch.zeros(STOP + 1, len(STATES))
    for prompt, ids in shown:
        for n, token in enumerate(ids):
            counts[token, STATES[(*prompt, *ids[:n])]] += 1
    policy = WORLD.policy()
    config = SFTSection(
        batch_size=len(shown), epochs=80, learning_rate=0.3, optimizer="adamw", clip_norm=100.0, checkpoint_every=80
    )
    with scratch() as folder:
        sft.train(policy, shown, config, session(run_in(folder)))
    seen_S = counts.sum(0) > 0
    shares = (counts / counts.sum(0))[:, seen_S].double()
    near(policy.module.output_weight().detach().softmax(0)[:, seen_S], shares, "a token's share", 0.02)


def check_the_first_ppo_gradient() -> None:
    """One PPO step at temperature .7, from a policy that has drifted and a critic that is wrong, by hand; the critic predicts in
    standard deviations of what was paid, or in units of the reward."""
    for normalise in ("running", "none"):
        first_ppo_gradient(normalise)


def first_ppo_gradient(normalise: Literal["running", "none"]) -> None:
    policy, reference, values = drifted(WORLD), WORLD.policy("reference"), critic()
    with torch.no_grad():
        values.score.weight.normal_(generator=torch.Generator().manual_seed(2))
    beta, cost, temperature, gamma, lam = 0.5, 0.4, 0.7, 0.9, 0.8
    config = PPOSection(
        steps=1, prompts_per_step=24, epochs=1, minibatches=1, batch_size=5, learning_rate=0.0, critic_learning_rate=0.0,
        kl_coef=beta, kl_target=0.0, clip_norm=1e6, missing_stop_penalty=cost, temperature=temperature, gamma=gamma,
        lam=lam, value_clip=100.0, normalise_returns=normalise,
    )  # fmt: skip
    reward = Listener(WORLD.reward())
    with scratch() as folder, caught_gradients() as found:
        actors = ppo.Actors(policy, reference, values)
        figures = ppo.train(actors, reward, PROMPTS, [], config, practising(run_in(folder)))
    assert figures["logprob_gap"] < 1e-9, "the first ratio is not 1"

    table = policy.module.output_weight().detach().clone().requires_grad_()
    worth = values.score.weight.detach()[0].clone().requires_grad_()
    logp_VS, reference_VS = (table / temperature).log_softmax(0), (WORLD.reference_VS / temperature).log_softmax(0)
    logps, advantages, errors, paid = [], [], [], list[float]()
    answers = []
    for prompt, completion, score in reward.heard:
        path, length = states_of(prompt, completion), len(completion.token_ids)
        logp = [logp_VS[token, state] for token, state in zip(completion.token_ids, path, strict=True)]
        told = [reference_VS[token, state] for token, state in zip(completion.token_ids, path, strict=True)]
        rewards = [-beta * float(ours.detach() - theirs) for ours, theirs in zip(logp, told, strict=True)]
        rewards[-1] += score - cost * (completion.finish_reason is FinishReason.LENGTH)
        answers.append((path, logp, rewards))
        paid += [sum(gamma ** (k - t) * rewards[k] for k in range(t, length)) for t in range(length)]
    middle = sum(paid) / len(paid) if normalise == "running" else 0.0
    unit = (sum((r - middle) ** 2 for r in paid) / len(paid)) ** 0.5 if normalise == "running" else 1.0
    for path, logp, rewards in answers:
        length = len(path)
        v = [middle + unit * float(worth.detach()[state]) for state in path] + [0.0]
        deltas = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        adv = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        logps += logp
        advantages += adv
        errors += [worth[state] - (a + value - middle) / unit for state, a, value in zip(path, adv, v, strict=False)]
    mean = sum(advantages) / len(advantages)
    deviation = (sum((a - mean) ** 2 for a in advantages) / len(advantages)) ** 0.5
    loss = -sum((a - mean) / deviation * logp for a, logp in zip(advantages, logps, strict=True)) / len(advantages)
    loss = loss + 0.5 * sum(e**2 for e in errors) / len(errors)
    loss.backward()  # type: ignore[union-attr]
    assert table.grad is not None and worth.grad is not None
    near(found[0][0], table.grad, "the policy's gradient")
    near(found[1][0][0], worth.grad, "the critic's gradient")


def check_the_first_grpo_gradient() -> None:
    """One GRPO step at temperature .7 with its KL term, by hand: the mean over answers of each answer's mean."""
    policy, reference = drifted(WORLD), WORLD.policy("reference")
    beta, temperature, size = 0.5, 0.7, 4
    config = GRPOSection(
        steps=1, prompts_per_step=6, group_size=size, epochs=1, minibatches=1, batch_size=8, learning_rate=0.0, kl_coef=beta,
        clip_norm=1e6, temperature=temperature, length_power=1.0,
    )  # fmt: skip
    reward = Listener(WORLD.reward())
    with scratch() as folder, caught_gradients() as found:
        figures = grpo.train(policy, reference, reward, PROMPTS, config, practising(run_in(folder)))
    assert figures["logprob_gap"] < 1e-9, "the first ratio is not 1"

    table = policy.module.output_weight().detach().clone().requires_grad_()
    logp_VS, reference_VS = (table / temperature).log_softmax(0), (WORLD.reference_VS / temperature).log_softmax(0)
    losses = []
    for start in range(0, len(reward.heard), size):
        group = reward.heard[start : start + size]
        scores = torch.tensor([score for _, _, score in group], dtype=torch.float64)
        if scores.std() == 0:
            continue
        for (prompt, completion, score), length in zip(group, [len(c.token_ids) for _, c, _ in group], strict=True):
            adv = (score - float(scores.mean())) / (float(scores.std()) + 1e-4)
            parts = []
            for token, state in zip(completion.token_ids, states_of(prompt, completion), strict=True):
                rho = logp_VS[token, state] - reference_VS[token, state]
                parts.append(-adv * logp_VS[token, state] + beta * ((-rho).exp() - 1 + rho))
            losses.append(sum(parts) / length)
    (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
    assert table.grad is not None
    near(found[0][0], table.grad, "the policy's gradient")


def whole_answers(reward: Listener, table: Tensor, beta: float, cost: float) -> tuple[list[Tensor], list[float]]:
    """Of every answer that was heard: log π at temperature .7, and its reward with β times its KL (k1) taken off."""
    logp_VS, reference_VS = (table / 0.7).log_softmax(0), (WORLD.reference_VS / 0.7).log_softmax(0)
    logps, rewards = [], []
    for prompt, completion, score in reward.heard:
        taken = list(zip(completion.token_ids, states_of(prompt, completion), strict=True))
        logps.append(torch.stack([logp_VS[token, state] for token, state in taken]).sum())
        told = sum(float(reference_VS[token, state]) for token, state in taken)
        cut_off = completion.finish_reason is FinishReason.LENGTH
        rewards.append(score - cost * cut_off - beta * (float(logps[-1].detach()) - told))
    return logps, rewards


def check_the_first_rloo_gradient() -> None:
    """One RLOO step at temperature .7, by hand: each answer's reward, KL and all, beside the mean of the others."""
    policy, reference, reward = drifted(WORLD), WORLD.policy("reference"), Listener(WORLD.reward())
    beta, cost, size = 0.5, 0.4, 4
    config = RLOOSection(
        steps=1, prompts_per_step=6, group_size=size, minibatches=1, batch_size=8, learning_rate=0.0, kl_coef=beta,
        clip_norm=1e6, temperature=0.7, missing_stop_penalty=cost,
    )  # fmt: skip
    with scratch() as folder, caught_gradients() as found:
        rloo.train(policy, reference, reward, PROMPTS, config, practising(run_in(folder)))
    table = policy.module.output_weight().detach().clone().requires_grad_()
    logps, rewards = whole_answers(reward, table, beta, cost)
    loss = torch.zeros(())
    for i, logp in enumerate(logps):
        group = range(i // size * size, i // size * size + size)
        others = [rewards[j] for j in group if j != i]
        loss = loss - (rewards[i] - sum(others) / len(others)) * logp / len(logps)
    loss.backward()
    assert table.grad is not None
    near(found[0][0], table.grad, "the policy's gradient")


def check_the_first_rebel_gradient() -> None:
    """One REBEL step at temperature .7, by hand: Σ (0 - (r - r'))² / pairs, differentiated where nothing has moved yet."""
    policy, reference, reward = drifted(WORLD), WORLD.policy("reference"), Listener(WORLD.reward())
    beta, cost, eta = 0.5, 0.4, 0.8
    config = REBELSection(
        steps=1, prompts_per_step=12, epochs=1, minibatches=1, batch_size=8, learning_rate=0.0, kl_coef=beta, eta=eta,
        clip_norm=1e6, temperature=0.7, missing_stop_penalty=cost,
    )  # fmt: skip
    with scratch() as folder, caught_gradients() as found:
        rebel.train(policy, reference, reward, PROMPTS, config, practising(run_in(folder)))
    table = policy.module.output_weight().detach().clone().requires_grad_()
    logps, rewards = whole_answers(reward, table, beta, cost)
    loss = torch.zeros(())
    for i in range(0, len(logps), 2):
        loss = loss - 2 * (rewards[i] - rewards[i + 1]) * (logps[i] - logps[i + 1]) / eta / (len(logps) / 2)
    loss.backward()
    assert table.grad is not None
    near(found[0][0], table.grad, "the policy's gradient")


def check_padding_changes_no_estimate() -> None:
    """Values, advantages and returns of a PPO step are the same with three more columns of padding."""
    policy, reference, values = drifted(WORLD), WORLD.policy("reference"), critic()
    config = PPOSection(prompts_per_step=24)
    with scratch() as folder:
        asking = Asking("test", PROMPTS * 8, 8 * len(PROMPTS))
        rollout = roll_out(0, policy, WORLD.reward(), asking, practising(run_in(folder)))
    batch = rollout.batch
    wide = type(rollout)(
        type(batch)(F.pad(batch.ids_BW, (0, 3), value=2), batch.prompt_lengths_B, batch.lengths_B, batch.prompt_B),
        F.pad(rollout.mask_BT, (0, 3)), F.pad(rollout.old_logp_BT, (0, 3)), rollout.score_B, rollout.reward_B,
        rollout.completions, rollout.prompts, rollout.unscored,
    )  # fmt: skip
    narrow_one, wide_one = (
        ppo.estimate(r, ppo.Actors(policy, reference, values), 0.5, config, DEVICE) for r in (rollout, wide)
    )
    for name in ("adv_BT", "returns_BT", "values_BT", "kl_BT"):
        padded = F.pad(getattr(narrow_one, name), (0, 3))
        near(getattr(wide_one, name), padded, name, 1e-9)


CHECKS = (
    check_ppo_reaches_the_optimum,
    check_log_probs_are_those_of_whole_answers,
    check_sft_learns_how_often,
    check_the_first_ppo_gradient,
    check_the_first_grpo_gradient,
    check_the_first_rloo_gradient,
    check_the_first_rebel_gradient,
    check_padding_changes_no_estimate,
)
