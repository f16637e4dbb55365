"""Direct preference optimisation: from comparisons to a policy with no reward model between (Rafailov 2023).

Each step takes prompts with all their answers, reads every answer once, and compares within prompts: 1. a batch of prompts
2. log-probs of every answer 3. compare, improve 4. log and save.
The implicit reward of an answer is β (log π - log π_ref), sums over its tokens. The frozen reference's log-probs are computed once
and kept by content hash. SimPO (Meng 2024, arxiv.org/abs/2405.14734) has none: its reward is β times the mean of log π over the tokens. Nor
has ORPO (Hong 2024, arxiv.org/abs/2403.07691), which imitates the chosen answer and lowers the odds of the rejected one beside it.
Both answers of a pair may become less likely, as long as the rejected one falls faster: so
their log-probs are logged apart, and the KL that answers really have is measured by sampling (`observe`).
`train` learns from comparisons that people made, `train_online` from pairs of its own fresh answers that a reward ranks.
Left out on purpose: length normalisation of DPO and IPO (IPO's docstring says how).
Shapes: B answers of a batch, P pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bridle.compute.device import Device
from bridle.compute.optimizer import backward
from bridle.compute.parallel import all_ranks_sum, my_share
from bridle.compute.sharding import lockstep
from bridle.compute.steps import AVERAGED, Means, Metrics, Session, Steps, end_averaged_step
from bridle.core.errors import ModelError, NoUsableRows
from bridle.core.records import Prompt, Reward
from bridle.core.timeline import timed
from bridle.generation.reference import answer_logprobs, cached_logprobs, read_logprobs
from bridle.generation.rollout import Asking, Rollout, RolloutSession, end_step, rollout_metrics, rollouts
from bridle.maths.losses import LossMetrics, dpo, ipo, orpo, simpo
from bridle.models import batches
from bridle.models.policy import Policy
from bridle.recipe.offline import NO_REFERENCE, DPOSection, ORPOSection

PairsSection = DPOSection | ORPOSection
Pairs = tuple[Tensor, Tensor, Tensor]  # better, worse, weight, each [P]
# What the loss is measured against: log π_ref of each group's answers; None for SimPO and ORPO, which look at none.
References = list[Tensor] | None


def train(
    policy: Policy,
    reference: Policy | None,
    groups: Sequence[batches.Group],
    config: PairsSection,
    session: Session,
    cache: Path,
    observe: Callable[[], Mapping[str, float]] | None = None,
) -> Metrics:
    """Train `policy` in place; SimPO and ORPO look at no `reference`. `observe` measures the policy now and then for the log (its KL, say)
    and steers nothing."""
    usable = [group for group in groups if group.pairs]
    if not usable:
        name = "ORPO" if config.loss == "orpo" else "DPO"
        raise NoUsableRows(
            f"{name} needs pairs of a better and a worse answer, got none; collect or import comparisons"
        )
    plan = batches.length_plan(
        [group.length for group in usable], config.batch_size, config.epochs, session.seed, "dpo"
    )
    steps = Steps.of_policy(policy.module, config, len(plan), session)
    policy.step += steps.done
    reference_of = read_reference(reference, usable, config, session, cache)
    session.release(reference)
    for step in steps:
        # 1. prompts with all their answers
        chosen = [usable[i] for i in plan[step]]
        # 2. log-probs of every answer, read once  3. compare, improve
        metrics = compare_answers(policy, chosen, pick(reference_of, plan[step]), config, session.device)
        metrics["grad_norm"] = steps.scheduled_step(step, config.clip_norm)
        policy.step += 1
        # 4. log and save
        end_averaged_step(steps, step, metrics, observe, config.observe_every)
    pairs = sum(len(group.pairs) for group in usable)
    return {"steps": len(plan), "prompts": len(usable), "pairs": pairs, "steps_averaged": AVERAGED, **steps.metrics}


# ------------------------------------------------------------------------------------------------- the reference, if any


def read_reference(
    reference: Policy | None, groups: Sequence[batches.Group], config: PairsSection, session: Session, cache: Path
) -> References:
    """What the loss is measured against, one tensor a group; None for a loss without a reference."""
    if config.loss in NO_REFERENCE:
        return None
    if reference is None:
        raise ModelError(
            f"dpo.loss = {config.loss!r} is measured against a reference model, got none; give one, or take simpo"
        )
    return cached_logprobs(reference, groups, session.device, cache, session.run.progress.say, config.micro_tokens)


def pick(reference_of: References, rows: Sequence[int]) -> References:
    return None if reference_of is None else [reference_of[i] for i in rows]


# ------------------------------------------------------------------------------------------------------------- the step


def compare_answers(
    policy: Policy, groups: Sequence[batches.Group], reference_of: References, config: PairsSection, device: Device
) -> Metrics:
    """Add the gradient of the loss on a step's groups, every answer read once; the metrics of the step.

    Each rank takes its share of the groups, as much of it at once as the settings say; the pairs' weight is counted on all ranks.
    """
    mine, means = my_share(list(range(len(groups)))), Means()
    weight = batches.pair_weight([groups[i] for i in mine])
    count = all_ranks_sum(torch.tensor(weight, dtype=torch.float64, device=device.torch)).float()
    pair_count = sum(len(group.pairs) for group in groups)
    cut = batches.Cut(config.micro_batch, config.micro_tokens)
    sizes = batches.row_sizes((group.prompt, group.answers) for group in groups)
    for part in lockstep(cut.parts(mine, sizes, policy.module.model), policy.module):
        chosen = [groups[i] for i in part]
        with timed("forward"):
            batch = batches.group_batch(chosen, policy.template.pad_id, device.torch)
            pairs = batches.index_pairs(chosen, device.torch)
            known = pick(reference_of, part)
            reference_B = None if known is None else torch.cat(known).to(device.torch)
            logp_B = answer_logprobs(policy, batch, device)
            length_B = batch.lengths_B - batch.prompt_lengths_B
            loss, metrics = preference_loss(logp_B, reference_B, length_B, pairs, config, count)
        backward(loss)
        better_P, worse_P = (
            side[: sum(len(group.pairs) for group in chosen)] for side in pairs[:2]
        )  # not turned round
        means.add({**metrics, **likelihoods(logp_B.detach(), reference_B, better_P, worse_P, pair_count)})
    return means.totals()


def preference_loss(
    logp_B: Tensor, reference_B: Tensor | None, length_B: Tensor, pairs: Pairs, config: PairsSection, count: Tensor
) -> tuple[Tensor, LossMetrics]:
    """ORPO; or DPO or IPO, or SimPO where there is no reference, and `config.sft` times the chosen answers' -log π for each of their tokens
    (Pang 2024, eq. 1, arxiv.org/abs/2404.19733), weighted like the pairs. `count` is the weight of the whole step's pairs on all ranks."""
    better_P, worse_P, weight_P = pairs
    if config.loss == "orpo":
        mean_B, odds_weight = logp_B / length_B, config.odds_weight
        return orpo(mean_B[better_P], mean_B[worse_P], weight_P, odds_weight=odds_weight, count=count)
    if reference_B is None:
        mean_B, margin = logp_B / length_B, config.gamma
        chosen_P, rejected_P = mean_B[better_P], mean_B[worse_P]
        loss, metrics = simpo(chosen_P, rejected_P, weight_P, beta=config.beta, margin=margin, count=count)
    else:
        sides = logp_B[better_P], logp_B[worse_P], reference_B[better_P], reference_B[worse_P]
        if config.loss == "ipo":
            loss, metrics = ipo(*sides, weight_P, beta=config.beta, count=count)
        else:
            loss, metrics = dpo(*sides, weight_P, beta=config.beta, smoothing=config.label_smoothing, count=count)
    if config.sft:
        imitation = -(weight_P * logp_B[better_P] / length_B[better_P]).sum() / count
        loss, metrics = loss + config.sft * imitation, {**metrics, "sft_loss": imitation.detach()}
    return loss, metrics


def likelihoods(
    logp_B: Tensor, reference_B: Tensor | None, better_P: Tensor, worse_P: Tensor, count: int
) -> LossMetrics:
    """How likely chosen and rejected answers are and, with a reference, how far they moved; each a sum over these pairs / count."""
    likely = {"chosen_logp": logp_B[better_P].sum() / count, "rejected_logp": logp_B[worse_P].sum() / count}
    if reference_B is None:
        return likely
    moved_B = logp_B - reference_B
    moved = {"chosen_moved": moved_B[better_P].sum() / count, "rejected_moved": moved_B[worse_P].sum() / count}
    return {**likely, **moved}


# ------------------------------------------------------------------------------- online: on fresh answers, in rounds


def train_online(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: DPOSection,
    session: RolloutSession,
) -> Metrics:
    """Train `policy` in place on pairs of its own fresh answers (Guo 2024, arxiv.org/abs/2402.04792; with few large rounds:
    iterative DPO, Xu 2023, arxiv.org/abs/2312.16682).

    Each round: 1. answer prompts  2. a reward ranks the answers  3. the reference's log-probs  4. compare, improve  5. share the
    new weights, log and save. The answer of higher reward is the chosen one: a label, not an amount. SimPO's loss looks at no reference
    here either; the KL that is logged, and by which the best checkpoint is chosen, is always to `reference`.
    """
    size, stop = config.online_answers, config.missing_stop_penalty
    asking = Asking("dpo", prompts, config.online_prompts, size, penalty=stop, method="online DPO")
    steps = Steps.of_policy(
        policy.module, config.model_copy(update={"checkpoint_every": 1}), config.online_rounds, session
    )
    kl_coef = 0.0 if config.loss == "simpo" else config.beta  # SimPO's β scales log-probs, and weighs no KL
    for rollout in rollouts(steps, policy, reward, asking, session):  # 1. answer prompts  2. a reward ranks the answers
        with timed("rank"):
            groups = rank_answers(rollout, policy.template.prompt_ids(rollout.prompts), size)
        # 3. the reference's log-probs, and the policy's by the same pass: where they are equal the KL is exactly 0
        with steps.save_on_error(rollout.step):
            started_from = read_logprobs(reference, groups, session.device, micro_tokens=config.micro_tokens)
            own = read_logprobs(policy, groups, session.device, "policy", config.micro_tokens)
        held = own if config.online_reference == "round" else started_from
        useful = [i for i, group in enumerate(groups) if group.pairs]
        # 4. compare, improve
        known = None if config.loss in NO_REFERENCE else [held[i] for i in useful]
        updates = learn_round(policy, steps, [groups[i] for i in useful], known, config, rollout.step)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        kl_B = torch.cat(own) - torch.cat(started_from)
        gap = float((torch.cat(own) - rollout.old_logp_BT.sum(1).cpu()).abs().mean())
        without = {"without_pairs": 1 - len(useful) / len(groups), "answer_gap": gap}
        answered = rollout_metrics(rollout, kl_B, session)
        del answered["entropy"]  # no method with DPO's loss logs one
        metrics = {**answered, **without, **updates}
        end_step(steps, rollout, metrics, kl_coef, bool(useful))
    return {"rounds": steps.done, **steps.metrics}


def rank_answers(rollout: Rollout, prompt_ids: Sequence[list[int]], size: int) -> list[batches.Group]:
    """A group for each prompt: its `size` answers, a pair for every two whose rewards differ, the pairs weighing 1 together."""
    rewards, groups = rollout.reward_B.tolist(), []
    for first in range(0, len(rewards), size):
        own = rewards[first : first + size]
        won = [(a, b) for a in range(size) for b in range(size) if own[a] > own[b]]
        answers = [list(c.token_ids) for c in rollout.completions[first : first + size]]
        groups.append(batches.Group(prompt_ids[first], answers, [batches.Compared(a, b, 1 / len(won)) for a, b in won]))
    return groups


@timed("improve")
def learn_round(
    policy: Policy,
    steps: Steps,
    groups: Sequence[batches.Group],
    reference_of: References,
    config: DPOSection,
    number: int,
) -> Metrics:
    """`epochs` passes over a round's pairs; means of the metrics over its optimiser steps."""
    sums: Metrics = {}
    norms: list[float] = []
    lengths, session = [group.length for group in groups], steps.session
    for epoch in range(config.epochs if groups else 0):
        drawn = batches.length_batches(
            lengths, config.batch_size, session.seed, "dpo-online", number * config.epochs + epoch
        )
        planned = config.epochs * len(drawn)
        for rows in drawn:
            chosen, known = [groups[i] for i in rows], pick(reference_of, rows)
            metrics = compare_answers(policy, chosen, known, config, session.device)
            norms.append(steps.scheduled_step(number * planned + len(norms), config.clip_norm, planned))
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
    steps.grad_norm = sum(norms) / len(norms) if norms else None
    return {name: total / len(norms) for name, total in (sums | ({"grad_norm": sum(norms)} if norms else {})).items()}
