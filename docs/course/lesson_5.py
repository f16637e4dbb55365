"""Lesson 5: PPO, a policy gradient on a bridle.

Run: python docs/course/lesson_5.py

WHAT IT IS FOR. The reward model of lesson 3 is right about answers like those that it learnt from. A policy
that follows it far enough finds answers that nobody ever wrote and that it scores too high. So RLHF takes a
price off the reward: for each token, β times how much more likely the policy makes it than the reference,
the model that training began with. That is the bridle. Averaged over the policy's own answers this price is
β KL(π‖π_ref). And then the best policy is known: π* is π_ref exp(r/β), divided by what makes it add up to
1.

Answers are dear, so PPO (Schulman and others 2017) takes several steps on the same ones. After the first
step they come from an older policy, and each token's gradient is weighed by the ratio π/π_old. A few steps
too many and the ratio explodes. So PPO clips: a token whose ratio has already moved by more than ε in its
favour pulls no further. A token that has moved the wrong way still pulls, with all its might.

THE EQUATIONS. With a_t the tokens of an answer and r its score, paid with the last token, the reward of a
token is

    R_t = − β (log π_old(a_t) − log π_ref(a_t))  + (r at the last token)

    A_t = R_t + R_{t+1} + … + R_L − V_t                V_t: what was to be expected from here, by a critic
    ρ_t = π(a_t) / π_old(a_t)
    loss = − Σ_t min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t)

(The penalty: Ziegler and others 2019, §2, arxiv.org/abs/1909.08593. The loss: Schulman and others 2017, eq.
7, arxiv.org/abs/1707.06347.)

YOUR TASK. Fill in `ppo_loss`, a loss for each answer, the sum over its tokens. `logp_BT` alone carries a
gradient; the others are numbers noted when the answers were written. `score_BT` is 0 but at each answer's
last token. Behind an answer's end everything is 0, so nothing is added there and no mask is needed.
`to_come` is written for you.

TO THINK ABOUT.

1. The price is paid in the reward. What is the gradient of its average if one adds log π − log π_ref to the
   loss instead, on answers drawn from π?
2. Why min, and not the clipped term alone?
"""

from collections.abc import Iterator

import torch
from checking import Function, ask, bars, near, need, run, slopes
from torch import Tensor
from world import Adam, World, kl, optimum

CLIP = 0.2


def to_come(reward_BT: Tensor) -> Tensor:
    """At each token the sum of the rewards from here to the end."""
    return reward_BT.flip(1).cumsum(1).flip(1)


def ppo_loss(
    logp_BT: Tensor, old_BT: Tensor, reference_BT: Tensor, score_BT: Tensor, value_BT: Tensor, beta: float, clip: float
) -> Tensor:
    """The loss of each answer, [B]. log π, log π_old and log π_ref of each token; the score; V of each token."""
    raise NotImplementedError


def at_the_end(world: World, score_A: Tensor) -> Tensor:
    last_A1 = world.mask_AL.sum(1, keepdim=True) - 1
    return torch.zeros(world.mask_AL.shape).scatter(1, last_A1, score_A[:, None])


def critic(world: World, logp_A: Tensor, reward_AL: Tensor) -> Tensor:
    """A perfect one: the mean of what is still to come, over all answers that begin so, [A, L]; 0 behind an answer's end."""
    beginning_AL = world.cell_AL // world.reference_SV.shape[1]
    chance_AL = torch.where(world.mask_AL, logp_A.exp()[:, None], 0.0)
    total_S = torch.zeros(len(world.reference_SV)).index_add(
        0, beginning_AL.flatten(), (chance_AL * to_come(reward_AL)).flatten()
    )
    weight_S = torch.zeros(len(world.reference_SV)).index_add(0, beginning_AL.flatten(), chance_AL.flatten())
    return torch.where(world.mask_AL, (total_S / weight_S)[beginning_AL], 0.0)


def train(loss: Function, world: World, beta: float, rollouts: int = 60, steps: int = 4) -> Tensor:
    """PPO on all answers at once, each weighed by how often the old policy gives it: the table that it arrives at."""
    adam = Adam(world.reference_SV)
    reference_AL, score_AL = world.token_logp(world.reference_SV), at_the_end(world, world.gold_A)
    for rollout in range(rollouts):
        old_AL = world.token_logp(adam.at.detach())
        old_A = old_AL.sum(1)
        value_AL = critic(world, old_A, score_AL - beta * (old_AL - reference_AL))
        for _ in range(steps):
            noted = old_AL, reference_AL, score_AL, value_AL
            loss_A = ask(loss, world.token_logp(adam.at), *noted, beta, CLIP, shape=old_A.shape)
            adam.step(old_A.exp() @ loss_A, rate=0.1 * (1 - rollout / rollouts))
    return adam.at.detach()


def check_on_policy(loss: Function, world: World) -> Iterator[str]:
    """Where π is still π_old, the slope by each token's log-prob is minus its advantage."""
    old_BT = torch.where(world.mask_AL, -torch.rand(world.mask_AL.shape, generator=world.draws), 0.0)
    reference_BT, value_BT = 1.5 * old_BT, old_BT.roll(1, 0) * world.mask_AL
    score_BT, nothing_BT, shape = at_the_end(world, world.gold_A), torch.zeros_like(old_BT), old_BT.shape[:1]

    slope_BT = slopes(loss, old_BT, old_BT, reference_BT, score_BT, value_BT, 0.0, CLIP, shape=shape)
    advantage_BT = to_come(score_BT) - value_BT
    need(
        not near(slope_BT, advantage_BT),
        "Your gradient points away from the better answers: is the sign right? The loss is −min(…).",
    )
    need(
        not near(slope_BT, value_BT - score_BT),
        "Only the last token learns from the score. Each token earned what came after it: to_come.",
    )
    need(
        not near(slope_BT, -to_come(score_BT)),
        "V is not taken off: an advantage is what came beyond what was to be expected.",
    )
    need(
        near(slope_BT, -advantage_BT),
        "With β = 0 and π still equal to π_old every ratio is 1, and the slope by a token's log-prob should be −A. Is the ratio that to "
        "old_BT, and A the sum to come less V?",
    )
    yield "on fresh answers each token's slope is minus its advantage"

    slope_BT = slopes(loss, old_BT, old_BT, reference_BT, nothing_BT, nothing_BT, 0.5, CLIP, shape=shape)
    price_BT = 0.5 * to_come(old_BT - reference_BT)
    need(slope_BT.any(), "β changes nothing: is the price of leaving the reference in the reward?")
    need(
        not near(slope_BT, -price_BT),
        "Your penalty rewards leaving the reference: a token that the policy makes more likely than the reference must cost. Is it "
        "− β (log π_old − log π_ref), that way round?",
    )
    need(
        near(slope_BT, price_BT),
        "With no score the slopes should be those of the price alone, β (log π_old − log π_ref) from each token on. "
        "Does the price use old_BT, a number, and not logp_BT, which carries a gradient?",
    )
    yield "leaving the reference costs β a nat, and no more"


def check_clip(loss: Function) -> Iterator[str]:
    """Answers of one token whose advantage is ±1 and whose ratio has moved either way."""
    advantage_B1 = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    ratio_B1 = torch.tensor([[1.5], [0.5], [1.5], [0.5]])
    zero_B1 = torch.zeros(4, 1)
    slope_4 = slopes(loss, ratio_B1.log(), zero_B1, zero_B1, advantage_B1, zero_B1, 0.0, CLIP, shape=(4,))[:, 0]
    up, behind, wrong_way, down = slope_4.tolist()
    need(
        not (up and down and behind and wrong_way),
        "Nothing is clipped: a good token whose ratio is 1.5 already has moved enough, and should pull no further.",
    )
    need(
        not (up and down),
        "You take the larger of the two terms: it is the smaller that keeps PPO careful. min, not max.",
    )
    need(
        behind and wrong_way,
        "A good token that has become less likely (ratio .5) no longer pulls, nor does a bad one that has become more likely (1.5): "
        "the clipped term alone forgets them. Take min(ρ A, clip(ρ) A).",
    )
    need(
        near(slope_4, torch.tensor([0.0, -0.5, 1.5, 0.0])),
        "With A = 1, 1, −1, −1 and ratios 1.5, .5, 1.5, .5 the slopes should be 0, −.5, 1.5, 0, and are "
        f"{[round(slope, 3) for slope in slope_4.tolist()]}.",
    )
    yield "what has moved far enough in its favour is clipped, and what has moved the wrong way is not"


def check(loss: Function, seed: int) -> Iterator[str]:
    world = World(seed)
    yield from check_on_policy(loss, world)
    yield from check_clip(loss)
    reference_A = world.logp(world.reference_SV)
    for beta in (0.3, 1.0):
        best_A, learnt_A = optimum(reference_A, world.gold_A, beta), world.logp(train(loss, world, beta))
        away = kl(learnt_A, best_A)
        need(
            away < 0.02,
            f"At β = {beta:g} your PPO ends {away:.3f} nats from π*, the best that there is; .02 would be near enough.",
        )
        yield (
            f"at β = {beta:g} your PPO ends {away:.4f} nats from π*: reward {learnt_A.exp() @ world.gold_A:.2f}, π* "
            f"{best_A.exp() @ world.gold_A:.2f}; KL to the reference {kl(learnt_A, reference_A):.2f}, π* {kl(best_A, reference_A):.2f}"
        )


def picture(loss: Function, seed: int) -> str:
    world = World(seed)
    reference_A = world.logp(world.reference_SV)
    reward, distance = {"reference": float(reference_A.exp() @ world.gold_A)}, {"reference": 0.0}
    for beta in (3.0, 1.0, 0.3, 0.1):
        learnt_A = world.logp(train(loss, world, beta, rollouts=40))
        reward[f"β = {beta:g}"], distance[f"β = {beta:g}"] = (
            float(learnt_A.exp() @ world.gold_A),
            kl(learnt_A, reference_A),
        )
    return "Mean reward:\n" + bars(reward) + "\nDistance from the reference, nats an answer:\n" + bars(distance)


if __name__ == "__main__":
    run(ppo_loss, check, picture)
