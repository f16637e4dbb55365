"""Pretraining: predict the next token of plain text (Radford 2018).

Each step: take rows of text, predict every next token, improve. Documents stand one after another in rows of fixed length,
each between its start and end tokens; a row may begin in the middle of one.
Left out on purpose: masks between documents in a row (a small model learns to ignore what came before a start token).
Shapes: R rows, T tokens, N = R·T predictions, V vocabulary.
"""

import math

import torch
from torch import Tensor

from bridle.compute.optimizer import backward
from bridle.compute.parallel import all_ranks_metrics, all_ranks_sum, my_share
from bridle.compute.randomness import shuffled
from bridle.compute.sharding import lockstep
from bridle.compute.steps import Metrics, Session, Steps
from bridle.core.errors import NoUsableRows
from bridle.core.timeline import note_tokens, timed
from bridle.maths.logprobs import linear_logprobs
from bridle.maths.losses import next_token
from bridle.models.policy import Policy
from bridle.project.run import Signal
from bridle.recipe.offline import PretrainSection


def train(policy: Policy, rows_RT: Tensor, total_tokens: int, config: PretrainSection, session: Session) -> Metrics:
    """Train `policy` in place on about `total_tokens` tokens, text repeated where there is less of it."""
    batch_size = min(config.batch_size, len(rows_RT))
    total = max(1, round(total_tokens / (batch_size * config.length)))
    steps = Steps.of_policy(policy.module, config, total, session)
    at_once = max(1, config.micro_tokens // config.length) if config.micro_tokens else batch_size
    average = steps.values.get("loss_average", math.nan)
    order_R, order_epoch = None, -1
    for step in steps:
        # 1. take rows: a new order every epoch, known from the seed alone
        epoch, position = divmod(step, len(rows_RT) // batch_size)
        if order_R is None or epoch != order_epoch:
            order_R, order_epoch = shuffled(len(rows_RT), session.seed, "pretrain", epoch), epoch
        batch_RT = rows_RT[my_share(order_R[position * batch_size : (position + 1) * batch_size])]
        # 2. predict every next token
        loss = next_token_step(policy, batch_RT, session, at_once)
        # 3. improve
        norm = steps.scheduled_step(step, config.clip_norm)
        # 4. log and save
        average = loss if math.isnan(average) else 0.98 * average + 0.02 * loss
        steps.values["loss_average"] = average
        logged = step % 10 == 0 or step == total - 1
        log = {"loss": loss, "loss_average": average, "grad_norm": norm} if logged else {}
        steps.end(step, {"loss": loss, "loss_average": average}, -average, Signal(grad_norm=norm), log)
    policy.step += total
    return {"steps": total, "tokens": total * batch_size * config.length, **steps.metrics}


def next_token_step(policy: Policy, batch_RT: Tensor, session: Session, at_once: int) -> float:
    """Add the gradient of the mean next-token loss over a step's rows on all ranks, of which these are this rank's; that mean."""
    batch_RT, value = batch_RT.to(session.device.torch), 0.0
    tokens = all_ranks_sum(torch.tensor(batch_RT[:, 1:].numel(), device=session.device.torch))
    # Where ranks share a step of few rows, one may have none.
    for part_RT in lockstep(batch_RT.split(at_once) if len(batch_RT) else (), policy.module):
        targets_N = part_RT[:, 1:].flatten()
        with timed("forward"):
            note_tokens(len(targets_N))
            with session.device.autocast():
                hidden_ND = policy.module.hidden(part_RT[:, :-1]).flatten(0, 1)
                logp_N = linear_logprobs(hidden_ND, policy.module.output_weight(), targets_N)
            loss, _ = next_token(logp_N, tokens=tokens)
        backward(loss)
        value += float(loss.detach())
    return all_ranks_metrics({"loss": value})["loss"]


def rows_of(documents: list[list[int]], length: int) -> Tensor:
    """Token rows [R, length + 1] of all documents in order; what does not fill the last row is left out."""
    flat = torch.tensor([token for document in documents for token in document])
    rows = len(flat) // (length + 1)
    if rows == 0:
        raise NoUsableRows(f"pretraining needs at least {length + 1} tokens of text, got {len(flat)}; import more")
    return flat[: rows * (length + 1)].view(rows, length + 1)
