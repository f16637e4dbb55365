"""Rejection sampling, or expert iteration: answer each prompt several times, keep what is best, imitate that, and do it again
(Anthony 2017; best of n as in Stiennon 2020 and Dubois 2023; right answers as in Zelikman 2022, STaR, and Yuan 2023).

Each round: 1. answer each prompt n times  2. score the answers  3. keep the best  4. imitate them  5. share the new weights,
log and save.
Nothing is pushed down and nothing holds the policy but the choice itself: imitating the best of n answers well moves it by at
most log n - (n - 1)/n nats a round. An answer that was cut off is never kept: it never said that it was done.
Left out on purpose: beginning each round from the first weights again (STaR), older rounds' answers, a decaying rate.
Shapes: B answers of a round, T predictions, N answer tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from bridle.core.errors import NoUsableRows, TrainingStopped
from bridle.core.recipe import RejectionSection
from bridle.core.records import FinishReason, Prompt, Reward
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.maths.kl import k1
from bridle.maths.statistics import mean_and_se
from bridle.models.batches import length_batches
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.imitation import Example, imitate
from bridle.models.optimizer import OPTIMIZERS, clipped_step
from bridle.models.policy import Policy
from bridle.models.randomness import derived_seed
from bridle.rewards.rollout import (
    Observe,
    Rollout,
    answer_figures,
    observed,
    reference_logprobs,
    roll_out,
    take_prompts,
)


@timed("choose")
def choose(rollout: Rollout, config: RejectionSection) -> list[int]:
    """The answers to imitate, by their place in the rollout; of equal ones the first."""
    scores, completions, chosen = rollout.score_B.tolist(), rollout.completions, []
    for first in range(0, len(completions), config.answers):
        ended = [
            i for i in range(first, first + config.answers) if completions[i].finish_reason is not FinishReason.LENGTH
        ]
        good = ended if config.keep == "best" else [i for i in ended if scores[i] >= config.threshold]
        if not good:
            continue
        if config.keep == "best":
            chosen.append(max(good, key=lambda i: scores[i]))
        elif config.keep == "shortest":
            chosen.append(min(good, key=lambda i: len(completions[i].token_ids)))
        else:  # every one above the threshold, each text once
            chosen += sorted({completions[i].token_ids: i for i in reversed(good)}.values())
    return chosen


@timed("improve")
def learn(
    policy: Policy,
    optimizers: Sequence[torch.optim.Optimizer],
    examples: Sequence[Example],
    config: RejectionSection,
    device: Device,
    seed: int,
    number: int,
) -> dict[str, float]:
    """`epochs` passes of SFT over prompt ids and answer ids, the stop token learnt with the answer."""
    losses, norms = [], []
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    for epoch in range(config.epochs):
        for rows in length_batches(lengths, config.batch_size, seed, "rejection", number * config.epochs + epoch):
            losses.append(imitate(policy, [examples[i] for i in rows], device))
            with timed("optimizer"):
                norms.append(clipped_step([policy.module], optimizers, config.clip_norm))
    return {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}


def train(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: RejectionSection,
    max_new_tokens: int,
    engine: Engine,
    device: Device,
    run: Run,
    seed: int,
    observe: Observe | None = None,
) -> dict[str, float]:
    """Train `policy` in place; `reference` is what its KL is measured against. `observe` looks at each round's answers for the
    log and steers nothing."""
    if not prompts:
        raise NoUsableRows("best-of-n needs prompts to answer, got none; import or make some")
    sampling = Sampling(max_new_tokens, config.temperature)
    optimizers = OPTIMIZERS[config.optimizer](policy.module, config.learning_rate)
    state = TrainingState({"policy": policy.module}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    policy.step += done
    run.rewind(done)
    figures: dict[str, float] = values.get("figures", {})  # a run with no round left returns those of its last

    def save(done: int) -> None:
        values = {"figures": figures}
        save_checkpoint(run.checkpoints, done, state, values, run.key, keep=run.keep, merit=figures["reward"])

    for number in range(done, config.rounds):
        with timed("pack"):
            engine.load(policy)
        # 1. answer each prompt n times  2. score the answers
        asked = take_prompts(prompts, number, config.prompts_per_round, seed, "rejection-prompts")
        with run.keeping(number, partial(save, number)):
            rollout = roll_out(
                policy, engine, reward, asked, sampling, device, derived_seed(seed, "rejection-rollout", number),
                group_size=config.answers, max_unscored=run.health.limits.max_unscored,
            )  # fmt: skip
        reference_BT = reference_logprobs(rollout, reference, config.temperature, config.batch_size, device)
        # 3. keep the best
        kept = choose(rollout, config)
        if not kept:
            raise TrainingStopped(
                f"none of {len(rollout.completions)} answers was worth keeping (best reward {float(rollout.score_B.max()):.3g}, "
                f"{answer_figures(rollout)['cut_off']:.0%} cut off): lower rejection.threshold, ask for more answers, or raise "
                "sampling.max_new_tokens"
            )
        with timed("choose"):
            prompt_ids = policy.template.prompt_ids([rollout.prompts[i] for i in kept])
            examples = [(ids, list(rollout.completions[i].token_ids)) for ids, i in zip(prompt_ids, kept, strict=True)]
        # 4. imitate them
        updates = learn(policy, optimizers, examples, config, device, seed, number)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        kl, kl_se = mean_and_se(k1(rollout.old_logp_BT, reference_BT, rollout.mask_BT).sum(1).cpu().numpy())
        figures = {
            "reward": float(rollout.score_B.mean()),
            "kept": len(kept),
            "kept_reward": float(rollout.score_B[kept].mean()),
            "kept_length": sum(len(answer) for _, answer in examples) / len(examples),
            "taught": len({i // config.answers for i in kept}) / (len(rollout.completions) // config.answers),
            "kl": kl,
            "kl_se": kl_se,
            "entropy": -float(rollout.old_logp_BT[rollout.mask_BT].mean()),  # nats a token, from the sampled ones
            **updates,
            **answer_figures(rollout),
            **observed(observe, rollout),
        }
        run.log(number, config.rounds, figures)
        if run.due(number + 1, config.checkpoint_every, config.rounds):
            save(number + 1)
            run.saved(number + 1, config.rounds)
    return {"rounds": config.rounds, **figures}
