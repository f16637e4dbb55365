"""Supervised fine-tuning: imitate demonstrations, next-token prediction on the answers alone (Ouyang 2022, §3.5).

The prompt is read but not learnt; the stop token is part of the answer and is learnt.
The step itself, one forward and backward, is `models.imitation.imitate`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridle.core.errors import NoUsableRows
from bridle.core.recipe import SFTSection
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.models.batches import length_plan
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.imitation import Example, imitate
from bridle.models.optimizer import OPTIMIZERS, peak_rates, take_step, warm_then_linear
from bridle.models.policy import Policy


def train(
    policy: Policy, examples: Sequence[Example], config: SFTSection, device: Device, run: Run, seed: int
) -> dict[str, float]:
    """Train `policy` in place."""
    if not examples:
        raise NoUsableRows("SFT needs demonstrations, got none; import answers or lower the filters")
    module = policy.module
    optimizers = OPTIMIZERS[config.optimizer](module, config.learning_rate)
    peaks = peak_rates(optimizers)
    state = TrainingState({"policy": module}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    run.rewind(done)
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    plan = length_plan(lengths, config.batch_size, config.epochs, seed, "sft")
    last_losses: list[float] = values.get("last_losses", [])
    for step in range(done, len(plan)):
        # 1. a batch of demonstrations
        chosen = [examples[i] for i in plan[step]]
        # 2. predict the answers' tokens
        loss = imitate(policy, chosen, device, config.micro_batch)
        # 3. improve
        share = warm_then_linear(step, len(plan))
        with timed("optimizer"):
            norm = take_step(module, optimizers, peaks, share, config.clip_norm)
        # 4. log and save
        last_losses = [*last_losses[-49:], loss]
        if step % 5 == 0 or step == len(plan) - 1:
            run.log(step, len(plan), {"loss": last_losses[-1], "grad_norm": norm})
        if run.due(step + 1, config.checkpoint_every, len(plan)):
            values, merit = {"last_losses": last_losses}, -sum(last_losses) / len(last_losses)
            save_checkpoint(run.checkpoints, step + 1, state, values, run.key, keep=run.keep, merit=merit)
            run.saved(step + 1, len(plan))
    policy.step += len(plan)
    tokens = config.epochs * sum(len(c) for _, c in examples)
    return {"steps": len(plan), "answer_tokens": tokens, "loss": sum(last_losses) / max(1, len(last_losses))}
