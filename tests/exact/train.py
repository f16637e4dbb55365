"""Each trainer of bridle's on the world of tables, by the settings with which it should reach π*."""

from __future__ import annotations

from pathlib import Path

from bridle.models.policy import Policy
from bridle.recipe.offline import DPOSection
from bridle.recipe.online import PPOSection, REBELSection, RLOOSection
from bridle.training import dpo, ppo, rebel, rloo
from tests.exact.world import CUT_OFF_COSTS, PROMPTS, World, critic, practising
from tests.training.runs import run_in, session

# Rates that fall: a leg of steps at each, `patience` times as many. Whitened advantages have one size however near the
# optimum is, so a constant rate would go on jumping round it.
LEGS = ((0.1, 20), (0.03, 16), (0.01, 10))


def by_ppo(world: World, beta: float, folder: Path, patience: int = 1) -> Policy:
    policy, reference, values = world.policy(), world.policy("reference"), critic()
    for number, (rate, steps) in enumerate((rate, patience * steps) for rate, steps in LEGS):
        config = PPOSection(
            steps=steps, prompts_per_step=512, epochs=2, minibatches=2, batch_size=512, learning_rate=rate,
            critic_learning_rate=0.05, kl_coef=beta, kl_target=0.0, clip_norm=100.0, value_clip=10.0,
            missing_stop_penalty=CUT_OFF_COSTS, checkpoint_every=steps,
        )  # fmt: skip
        actors = ppo.Actors(policy, reference, values)
        ppo.train(actors, world.reward(), PROMPTS, [], config, practising(run_in(folder / str(number)), seed=number))
    return policy


def by_dpo(world: World, beta: float, folder: Path, patience: int = 1) -> Policy:
    policy, steps = world.policy(), 70 * patience
    config = DPOSection(
        beta=beta, epochs=steps, batch_size=len(PROMPTS), learning_rate=0.3, clip_norm=100.0, checkpoint_every=steps
    )
    dpo.train(policy, world.policy("reference"), world.groups(), config, session(run_in(folder)), folder / "cache")
    return policy


def by_rloo(world: World, beta: float, folder: Path, patience: int = 1) -> Policy:
    """The reward has the cost of being cut off in it, as for PPO."""
    policy, reference = world.policy(), world.policy("reference")
    for number, (rate, steps) in enumerate((rate, patience * steps) for rate, steps in LEGS):
        config = RLOOSection(
            steps=steps, prompts_per_step=192, group_size=4, minibatches=2, batch_size=768, learning_rate=rate,
            kl_coef=beta, clip_norm=100.0, missing_stop_penalty=CUT_OFF_COSTS, checkpoint_every=steps,
        )  # fmt: skip
        session = practising(run_in(folder / str(number)), seed=number)
        rloo.train(policy, reference, world.reward(), PROMPTS, config, session)
    return policy


def by_rebel(world: World, beta: float, folder: Path, patience: int = 1) -> Policy:
    """With the KL in the reward. η is free: it says how far a step goes and not where the steps end."""
    policy, reference = world.policy(), world.policy("reference")
    for number, (rate, steps) in enumerate((rate, patience * steps) for rate, steps in LEGS):
        config = REBELSection(
            steps=steps, prompts_per_step=384, epochs=2, minibatches=2, batch_size=768, learning_rate=rate, eta=1.0,
            kl_coef=beta, clip_norm=100.0, missing_stop_penalty=CUT_OFF_COSTS, checkpoint_every=steps,
        )  # fmt: skip
        session = practising(run_in(folder / str(number)), seed=number)
        rebel.train(policy, reference, world.reward(), PROMPTS, config, session)
    return policy
