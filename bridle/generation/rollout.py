"""A step's prompts, answered and scored: what every trainer that learns from its own answers begins with.

Shapes: B answers, T predictions (see models/batches.py).
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from bridle.compute.device import Device
from bridle.compute.optimizer import Share, warm_then_constant
from bridle.compute.parallel import all_ranks_sum, from_first, my_share
from bridle.compute.randomness import derived_seed, shuffled
from bridle.compute.sharding import lockstep
from bridle.compute.steps import Metrics, Part, Session, Steps, logprob_gaps
from bridle.core.errors import NoUsableRows, TrainingStopped
from bridle.core.records import Completion, FinishReason, Prompt, Reward, Scores
from bridle.core.timeline import timed
from bridle.generation.engine import AnswerSource, answer_prompts
from bridle.generation.pool import PoolEngine, begin_answers
from bridle.generation.sampling import Sampling
from bridle.maths.importance import truncated_importance
from bridle.maths.kl import k1
from bridle.maths.statistics import mean_and_se
from bridle.models.batches import Batch, Cut, make_batch, sequence_logprobs, spread
from bridle.models.policy import Policy
from bridle.project.run import Signal, StepAnswers
from bridle.recipe.online import GRPOSection, REBELSection, RejectionSection, RLOOSection

Passes = GRPOSection | RLOOSection | REBELSection  # what says how a step's answers are gone through
# Looks at a step's answers for the log, and steers nothing.
Observe = Callable[[Sequence[Prompt], Sequence[Completion]], Mapping[str, float]]


@dataclass(frozen=True)
class RolloutSession(Session):
    """What a loop that learns from its own answers gets besides. `observe` looks at each step's answers for the log and steers
    nothing."""

    engine: AnswerSource | PoolEngine
    max_new_tokens: int
    observe: Observe | None = None
    staleness: int = 0  # steps by which the weights that answer may be behind; above 0 a pool answers
    importance_cap: float = 0.0  # of the weights of answers that other weights draw; 0: they have none

    @property
    def usual_schedule(self) -> Share:
        return warm_then_constant  # such a run has a few dozen steps


@dataclass(frozen=True)
class Asking:
    """How a step asks: `count` of the prompts, each for `answers` answers, drawn at `temperature`; `penalty` is taken from the reward
    of an answer that was cut off. `stream` names the random numbers, so that two trainers draw different ones; `method` is what
    the user calls it, where that is another name. For answers that other weights may have drawn, `cut`: how they are read once more, and
    `whole`: whether a whole answer is one action to the method, and has one importance weight."""

    stream: str
    prompts: Sequence[Prompt]
    count: int
    answers: int = 1
    temperature: float = 1.0
    penalty: float = 0.0
    method: str = ""
    cut: Cut = Cut()
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.prompts:
            method = self.method or self.stream.upper()
            raise NoUsableRows(
                f"{method} needs prompts to answer, got none; import some, or make some on the playground"
            )


@dataclass(frozen=True)
class Rollout:
    """The answers of one step that could be scored, as tensors. Off the mask every [B, T] tensor is zero."""

    batch: Batch
    mask_BT: Tensor
    old_logp_BT: Tensor  # of the distribution that was sampled from, or of the policy that learns from others' answers
    score_B: Tensor  # from the reward source
    reward_B: Tensor  # the same with the missing-stop penalty taken off
    completions: list[Completion]
    prompts: list[Prompt]
    unscored: int
    faults: dict[str, int] = field(default_factory=dict)  # why: None, nan, infinite, misshapen
    reported: Mapping[str, float] = field(default_factory=dict)  # by the reward source, for the log
    step: int = 0
    parts: Sequence[tuple[float, Tensor]] = ()  # of a weighted sum each weight with its source's scores, [B]
    # Of each token [B, T], or of each answer [B] that is one action; 1 where what learns has answered.
    importance: Tensor | float = 1.0
    others: Mapping[str, float] = field(default_factory=dict)  # how far the weights that answered are off, for the log

    @property
    def entropy(self) -> float:
        """Nats a token, from the sampled log-probs."""
        return -float(self.old_logp_BT[self.mask_BT].mean())

    @property
    def flat(self) -> bool:
        """Whether the source gave all the same score: it tells nothing apart, whatever the missing-stop penalty adds."""
        return len(self.completions) > 1 and bool((self.score_B == self.score_B[0]).all())


def take_prompts(prompts: Sequence[Prompt], step: int, count: int, seed: int, purpose: str) -> list[Prompt]:
    """The next `count` prompts of an endless series of shuffled passes."""
    taken = [divmod(number, len(prompts)) for number in range(step * count, (step + 1) * count)]
    orders = {epoch: shuffled(len(prompts), seed, purpose, epoch) for epoch in {epoch for epoch, _ in taken}}
    return [prompts[int(orders[epoch][position])] for epoch, position in taken]


@dataclass(frozen=True)
class AskedStep:
    """A step's prompts, which the policy's weights of `stamp` answer, after so many steps of learning; `answers` waits for them."""

    step: int
    prompts: list[Prompt]
    stamp: str
    learnt: int
    answers: Callable[[], list[Completion]]


def ask(step: int, policy: Policy, asking: Asking, session: RolloutSession) -> AskedStep:
    """Have a step's prompts answered by the present weights: by a pool from now on, else when the answers are taken."""
    engine = session.engine
    with timed("pack"):
        engine.load(policy)
    drawn = take_prompts(asking.prompts, step, asking.count, session.seed, f"{asking.stream}-prompts")
    asked = [prompt for prompt in drawn for _ in range(asking.answers)]
    sampling = Sampling(session.max_new_tokens, asking.temperature)
    seed = derived_seed(session.seed, f"{asking.stream}-rollout", step)
    if isinstance(engine, PoolEngine):
        answers = begin_answers(engine, policy, asked, sampling, seed)
    else:
        answers = partial(answer_prompts, engine, policy, asked, sampling, seed=seed)
    return AskedStep(step, asked, policy.stamp, policy.step, answers)


def roll_out(step: int, policy: Policy, reward: Reward, asking: Asking, session: RolloutSession) -> Rollout:
    """Answer a step's prompts by the present weights and score; the answers to a prompt stand together."""
    return score_step(ask(step, policy, asking, session), policy, reward, asking, session)


def score_step(waiting: AskedStep, policy: Policy, reward: Reward, asking: Asking, session: RolloutSession) -> Rollout:
    """The answers that were asked for, scored.

    An answer whose reward is None, not finite or no number is left out and counted by its fault, never taken for 0, and its
    whole group with it. Raises TrainingStopped where more than the share `guard.max_unscored` has such a reward, or none is left, and where
    the weights that answered are further behind than is allowed.
    """
    asked, age = waiting.prompts, policy.step - waiting.learnt
    with timed("answer"):
        completions = waiting.answers()
    expected = waiting.stamp if age <= session.staleness else policy.stamp
    stale = {c.weight_stamp for c in completions} - {expected}
    if stale:
        raise TrainingStopped(f"answers come from weights {sorted(stale)} where {expected} was expected")
    with timed("score"):
        found = from_first(lambda: scores_of(reward, asked, completions))
        scores = list(found)
    kept, faults = scored_groups(scores, asking.answers, session.run.limits.max_unscored)
    with timed("batch"):
        asked, completions = [asked[i] for i in kept], [completions[i] for i in kept]
        score_B = torch.tensor([float(scores[i]) for i in kept], device=session.device.torch)
        cut_off_B = torch.tensor([c.finish_reason is FinishReason.LENGTH for c in completions], device=score_B.device)
        ids, answers = policy.template.prompt_ids(asked), [c.token_ids for c in completions]
        batch = make_batch(ids, answers, policy.template.pad_id, score_B.device)
        mask_BT = batch.mask_BT
        flat = [logp for c in completions for logp in c.sampled_logprobs]
        # float32, but for tests that need more digits
        precision = torch.promote_types(policy.module.output_weight().dtype, torch.float32)
        old_logp_BT = spread(torch.tensor(flat, dtype=precision, device=score_B.device), mask_BT)
        reward_B = score_B - asking.penalty * cut_off_B
        added = found.parts if isinstance(found, Scores) else ()
        parts = [
            (weight, torch.tensor([float(part[i] or 0.0) for i in kept], device=score_B.device))
            for weight, part in added
        ]
        rollout = Rollout(
            batch, mask_BT, old_logp_BT, score_B, reward_B, completions, asked,
            unscored=len(scores) - len(kept), faults=faults, reported=found.metrics if isinstance(found, Scores) else {},
            step=waiting.step, parts=parts,
        )  # fmt: skip
    return reweighed(rollout, age, policy, asking, session) if session.importance_cap else rollout


def reweighed(rollout: Rollout, age: int, policy: Policy, asking: Asking, session: RolloutSession) -> Rollout:
    """Answers that other weights may have drawn, `age` steps ago: read by the policy that is to learn from them, to which its ratios are
    taken then, and each action weighed by how much more likely that policy has it, up to the cap."""
    behaviour_BT, mask_BT, cap = rollout.old_logp_BT, rollout.mask_BT, session.importance_cap
    now_BT = reference_logprobs(rollout, policy, asking.temperature, asking.cut, session.device, "policy")
    now, before = (logp.sum(1) if asking.whole else logp for logp in (now_BT, behaviour_BT))
    weight = truncated_importance(now, before, cap=cap)
    cut_off = now - before > math.log(cap)
    others = {
        "staleness": float(age),
        "clipped_share": float(cut_off.sum() / (len(now) if asking.whole else mask_BT.sum())),
        "logprob_gap": logprob_gaps(now_BT, behaviour_BT, mask_BT.sum(), len(now))["logprob_gap"],
    }
    return replace(rollout, old_logp_BT=now_BT, importance=weight, others=others)


def rollouts(
    steps: Steps, policy: Policy, reward: Reward, asking: Asking, session: RolloutSession
) -> Iterator[Rollout]:
    """The rollout of every step that is left, each from the policy as it is by then, or, where answers may be so many steps old, as it was
    then: by the step's number alone, though not before the first step of this process. Where a reward fails, the steps before are saved."""
    policy.step += steps.done
    asked, there = steps.total * asking.count, len(asking.prompts)
    if asked < there:
        steps.run.progress.say(f"prompts: {asked:,} of {there:,} are answered, {asking.count} a step")
    waiting = deque[AskedStep]()
    for step in steps:
        with steps.save_on_error(step):
            while len(waiting) <= session.staleness and step + len(waiting) < steps.total:
                waiting.append(ask(step + len(waiting), policy, asking, session))
            rollout = score_step(waiting.popleft(), policy, reward, asking, session)
        yield rollout


def scored_groups(scores: Sequence[Any], group_size: int, max_unscored: float) -> tuple[list[int], dict[str, int]]:
    """The places of answers in groups that were scored whole, and the faults of the other scores, counted."""
    faults = Counter(fault for score in scores if (fault := fault_of(score)) is not None)
    broken = {i // group_size for i, score in enumerate(scores) if fault_of(score) is not None}
    kept = [i for i in range(len(scores)) if i // group_size not in broken]
    if not kept or faults.total() > max_unscored * len(scores):
        why = ", ".join(f"{count} {fault}" for fault, count in faults.items())
        scored = len(scores) - faults.total()
        few = f"none of {len(scores)} answers" if not kept else f"only {scored} of {len(scores)} answers"
        raise TrainingStopped(
            f"{few} got a finite reward to learn from ({why}); look at the reward source before going on, "
            "which must give a number for each answer, or None where it cannot judge"
        )
    return kept, dict(faults)


def scores_of(reward: Reward, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Sequence[Any]:
    """What a reward source says, a score for each answer."""
    found = reward(prompts, completions)
    scores = one_each(found, len(completions))
    return found if isinstance(found, Scores) else scores


def one_each(scores: Any, answers: int) -> list[Any]:
    """What a reward source gave, as a list with an entry for each answer; TrainingStopped where it is none."""
    try:
        listed = list(scores)
    except TypeError:
        raise TrainingStopped(
            f"the reward source gave {named_shape(scores)} for {answers} answers; it must give a list with a number for each"
        ) from None
    if len(listed) != answers:
        raise TrainingStopped(
            f"the reward source gave {len(listed)} scores for {answers} answers; it must give one for each"
        )
    return listed


def fault_of(score: Any) -> str | None:
    """Why this reward cannot be used; None where it is a finite number."""
    if score is None:
        return "None"
    if not isinstance(score, Real) and not (isinstance(score, Tensor) and score.ndim == 0):
        return f"misshapen: {named_shape(score)}"
    try:
        number = float(score)
    except OverflowError:  # a whole number beyond all floats
        number = math.inf
    return None if math.isfinite(number) else "nan" if math.isnan(number) else "infinite"


def named_shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return (
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
    )


@timed("reference")
@torch.no_grad()
def reference_logprobs(
    rollout: Rollout, reference: Policy, temperature: float, cut: Cut, device: Device, whose: str = "reference"
) -> Tensor:
    """log π_ref of the answers' tokens by the training pass, [B, T], zero off the mask. Answers to a prompt that share a batch read it
    once. A policy of equal weights gives equal numbers, in any precision. `whose`: what is read, for the error."""
    found_BT = torch.zeros_like(rollout.old_logp_BT)
    parts = cut.answers(torch.arange(len(rollout.batch))[:, None], rollout.batch, reference.module.model)
    for part in lockstep(my_share(parts), reference.module):
        rows = rollout.batch.rows(part.to(device.torch))
        with device.autocast():
            logp_MT = sequence_logprobs(reference.module, rows, temperature)
        found_BT[part, : logp_MT.shape[1]] = logp_MT.to(found_BT)
    return finite_logprobs(all_ranks_sum(found_BT), whose)  # zero where another rank has read


def finite_logprobs(logp_BT: Tensor, whose: str = "reference") -> Tensor:
    """log π_ref as it is, or that of `whose` answers are read. Where it is not finite there is no KL, and the run ends before anything
    is learnt from it."""
    bad = int((~torch.isfinite(logp_BT)).any(1).sum())
    if bad:
        raise TrainingStopped(
            f"the {whose}'s log-probs of {bad} of {len(logp_BT)} answers are not finite, so they have no KL, and no step was taken; "
            f"look at the {whose}'s weights, or set model.precision to float32"
        )
    return logp_BT


def reread(
    rollout: Rollout, policy: Policy, reference: Policy, config: Passes | RejectionSection, size: int, device: Device
) -> tuple[Rollout, Tensor, Metrics]:
    """For whole answers, in a loss or in the log: the rollout with π_old as the training pass has it, each answer's KL to the reference
    (k1, nats, [B]) by the same pass, and how far the engine's log-probs are off.

    The rounding by which engine and training pass differ adds up over an answer: a hundredth of a nat a token in bfloat16, which at
    400 tokens clips a third of the answers before anything has moved. The policy is read as its reference is, in the same batches,
    so where they are equal the KL is exactly 0.
    """
    old_BT, reference_BT = (
        reference_logprobs(rollout, model, config.temperature, reading_cut(config, size), device, whose)
        for model, whose in ((policy, "policy"), (reference, "reference"))
    )
    gaps = logprob_gaps(old_BT, rollout.old_logp_BT, rollout.mask_BT.sum(), len(rollout.batch))
    return replace(rollout, old_logp_BT=old_BT), k1(old_BT, reference_BT, rollout.mask_BT).sum(1), gaps


# ------------------------------------------------------------------------------------- learning from a step's answers


def minibatches(groups_G: Tensor, size: int, config: Passes, seed: int, label: str, step: int) -> Iterator[Tensor]:
    """`epochs` passes over these groups of `size` answers, each in a new order, `minibatches` optimiser steps a pass.

    A minibatch is the places of its answers in the rollout, [groups, size]. Every rank knows all of them.
    """
    places_GK = groups_G[:, None] * size + torch.arange(size)
    for epoch in range(config.epochs):
        order_G = shuffled(len(groups_G), seed, label, step * config.epochs + epoch)
        yield from places_GK[order_G].chunk(config.minibatches) if len(order_G) else ()


def read_parts(
    policy: Policy, rollout: Rollout, mini_GK: Tensor, config: Passes, device: Device, together: bool = False
) -> Iterator[Part]:
    """Read this rank's share of a minibatch, in parts of about `batch_size` answers that change nothing but the memory. A group
    stays together, so that its prompt is read once, and by one rank; but `micro_tokens` cuts it where the loss does not need it
    `together`."""
    mine_GK, tokens, size = my_share(mini_GK), rollout.mask_BT[mini_GK.flatten()].sum(), mini_GK.shape[1]
    if together or not config.micro_tokens:
        cut, rows_NK = Cut(whole_groups(config.batch_size, size), config.micro_tokens), mine_GK
    else:
        cut, rows_NK = reading_cut(config, size), mine_GK.reshape(-1, 1)
    for rows in lockstep(cut.answers(rows_NK, rollout.batch, policy.module.model), policy.module):
        with timed("forward"):
            micro = rollout.batch.rows(rows.to(device.torch))
            with device.autocast():
                logp_MT = sequence_logprobs(policy.module, micro, config.temperature)
            old_logp_MT = rollout.old_logp_BT[rows, : logp_MT.shape[1]]
        yield Part(rows, logp_MT, old_logp_MT, tokens)


def scheduled_update(steps: Steps, rollout: Rollout, config: Passes, done: int) -> float:
    """An optimiser step after so many of the same rollout step, at the schedule's rate; the gradient norm."""
    planned = config.epochs * config.minibatches
    return steps.scheduled_step(rollout.step * planned + done, config.clip_norm, planned)


def reading_cut(config: Passes | RejectionSection, size: int) -> Cut:
    """Answers, in groups of `size`, in one forward pass."""
    return Cut(size * whole_groups(config.batch_size, size), config.micro_tokens)


def whole_groups(batch_size: int, size: int) -> int:
    """Groups of `size` answers in one forward pass of `batch_size`: one at least."""
    return max(1, batch_size // size)


# ----------------------------------------------------------------------------------------- the end of a step, its log


def end_step(
    steps: Steps,
    rollout: Rollout,
    metrics: dict[str, float],
    kl_coef: float,
    comparable: bool = True,
    frozen: bool = False,
    scored: bool = True,
) -> None:
    """Log and save a step: the best checkpoint has the greatest reward less β times its KL. Nothing can be learnt where all scores are
    equal, unless nothing is `scored` on purpose, or the trainer finds nothing `comparable`; `frozen`: the policy is held still, on
    purpose too."""
    metrics = {**metrics, **rollout.others}
    answers = StepAnswers(
        rollout.step, steps.total, rollout.prompts, rollout.completions, rollout.score_B.tolist(), metrics["kl"],
        rollout.entropy, rollout.reported.get("disagreement"),
    )  # fmt: skip
    gold = metrics.get("gold")
    signal = Signal(comparable and not (scored and rollout.flat), steps.grad_norm, frozen, metrics["kl"], gold, answers)
    steps.end(rollout.step, metrics, metrics["reward"] - kl_coef * metrics["kl"], signal)


def answer_metrics(rollout: Rollout) -> dict[str, float]:
    """What the answers look like: length in tokens, share cut off, share of distinct texts; the spread of their scores, and
    the answers without one, by fault where there are any."""
    completions, score_B = rollout.completions, rollout.score_B
    # A mean of equal numbers may be off by a last digit, and so their standard deviation.
    spread_of_scores = 0.0 if rollout.flat else float(score_B.std(correction=0))
    return {
        **({"score_sd": spread_of_scores} if len(completions) > 1 else {}),
        "length": sum(len(c.token_ids) for c in completions) / len(completions),
        "cut_off": sum(c.finish_reason is FinishReason.LENGTH for c in completions) / len(completions),
        "distinct": len({c.stripped for c in completions}) / len(completions),
        "unscored": rollout.unscored,
        **{f"unscored_{fault}": count for fault, count in rollout.faults.items()},
    }


def rollout_metrics(rollout: Rollout, kl_B: Tensor, session: RolloutSession) -> dict[str, float]:
    """What every such trainer logs of a step: reward, KL to the reference with its standard error (nats an answer), entropy (nats a
    token), what the answers look like, and what `observe` reports of them. Answers to one prompt, drawn
    once or twice, are a group to the standard error."""
    kl, kl_se = mean_and_se(kl_B.cpu().numpy(), [prompt.id for prompt in rollout.prompts])
    with timed("observe"):
        look = session.observe
        observed = {} if look is None else from_first(lambda: dict(look(rollout.prompts, rollout.completions)))
    return {
        **rollout.reported,
        "reward": float(rollout.reward_B.mean()),
        "kl": kl,
        "kl_se": kl_se,
        "entropy": rollout.entropy,
        **answer_metrics(rollout),
        **observed,
    }
