"""Pretraining: predict the next token of plain text (Radford 2018).

Each step: take rows of text, predict every next token, improve. Documents stand one after another in rows of fixed length,
each between its start and end tokens; a row may begin in the middle of one.
Left out on purpose: masks between documents in a row (a small model learns to ignore what came before a start token).
Shapes: R rows, T tokens, N = R·T predictions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.recipe import PretrainSection
from bridle.core.runlog import Run
from bridle.core.timeline import timed
from bridle.maths.logprobs import linear_logprobs
from bridle.maths.losses import next_token
from bridle.models.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from bridle.models.device import Device
from bridle.models.optimizer import OPTIMIZERS, finite, peak_rates, take_step, warm_then_linear
from bridle.models.parallel import all_ranks_figures, all_ranks_sum, my_share
from bridle.models.policy import Policy
from bridle.models.randomness import shuffled


def rows_of(documents: list[list[int]], length: int) -> Tensor:
    """Token rows [R, length + 1] of all documents in order; what does not fill the last row is left out."""
    flat = torch.tensor([token for document in documents for token in document])
    rows = len(flat) // (length + 1)
    if rows == 0:
        raise NoUsableRows(f"pretraining needs at least {length + 1} tokens of text, got {len(flat)}; import more")
    return flat[: rows * (length + 1)].view(rows, length + 1)


def train(
    policy: Policy, rows_RT: Tensor, total_tokens: int, config: PretrainSection, device: Device, run: Run, seed: int
) -> dict[str, float]:
    """Train `policy` in place on about `total_tokens` tokens, text repeated where there is less of it."""
    module = policy.module
    optimizers = OPTIMIZERS[config.optimizer](module, config.learning_rate)
    peaks = peak_rates(optimizers)
    state = TrainingState({"policy": module}, optimizers, run.health.state)
    done, values = restore_checkpoint(run.checkpoints, state, run.key, run.progress.say)
    run.rewind(done)
    loss_average = values.get("loss_average", float("nan"))
    batch_size = min(config.batch_size, len(rows_RT))
    per_epoch = len(rows_RT) // batch_size
    steps = max(1, round(total_tokens / (batch_size * config.length)))
    order_R, order_epoch = None, -1
    for step in range(done, steps):
        # 1. take rows: a new order every epoch, known from the seed alone
        epoch, position = divmod(step, per_epoch)
        if order_R is None or epoch != order_epoch:
            order_R, order_epoch = shuffled(len(rows_RT), seed, "pretrain", epoch), epoch
        batch_RT = rows_RT[my_share(order_R[position * batch_size : (position + 1) * batch_size])].to(device.torch)
        # 2. predict
        targets_N, value = batch_RT[:, 1:].flatten(), 0.0
        tokens = all_ranks_sum(torch.tensor(len(targets_N), device=device.torch))
        if len(batch_RT):  # where ranks share a step of few rows, one may have none
            with timed("forward"):
                with device.autocast():
                    hidden_ND = module.hidden(batch_RT[:, :-1]).flatten(0, 1)
                    logp_N = linear_logprobs(hidden_ND, module.output_weight(), targets_N)
                loss, _ = next_token(logp_N, tokens=tokens)
            with timed("backward"):
                finite(loss).backward()
            value = float(loss.detach())
        # 3. improve
        share = warm_then_linear(step, steps)
        with timed("optimizer"):
            norm = take_step(module, optimizers, peaks, share, config.clip_norm)
        # 4. log and save
        value = all_ranks_figures({"loss": value})["loss"]
        loss_average = value if loss_average != loss_average else 0.98 * loss_average + 0.02 * value
        if step % 10 == 0 or step == steps - 1:
            run.log(step, steps, {"loss": value, "loss_average": loss_average, "grad_norm": norm})
        if run.due(step + 1, config.checkpoint_every, steps):
            save_checkpoint(
                run.checkpoints,
                step + 1,
                state,
                {"loss_average": loss_average},
                run.key,
                keep=run.keep,
                merit=-loss_average,
            )
            run.saved(step + 1, steps)
    policy.step += steps
    return {"steps": steps, "tokens": steps * batch_size * config.length, "loss": loss_average}
