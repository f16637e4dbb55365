"""Kahneman-Tversky optimisation: from answers that are good or bad, each by itself, to a policy with no reward model between
(KTO: Ethayarajh 2024, arxiv.org/abs/2402.01306).

Each step: 1. a batch of prompts with what was said of their answers  2. the reference point  3. log-probs of every answer, improve
4. log and save.
The implicit reward of an answer is DPO's, β (log π - log π_ref), sums over its tokens. A good answer gains by standing above the reference
point z, a bad one by standing below it, either the less the further it is already: an answer that is hopeless, or whose label is wrong, is
given up. z is β KL(π‖π_ref), estimated without a gradient on prompts set to the answers of another. Which other is fixed for the run, so
the frozen reference reads these too once, and keeps them by content hash.
Votes on an answer are what they are, a comparison is a good answer and a bad one, and where votes disagree each counts.
Left out on purpose: z of each micro-batch and rank by itself (the paper, TRL): here it is of the whole step, so it does not depend on how
the step is cut up.
Shapes: B answers of a batch, N ratings, M answers that are set to other prompts.
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
from bridle.core.errors import NoUsableRows
from bridle.core.timeline import timed
from bridle.generation.reference import answer_logprobs, cached_logprobs, read_logprobs
from bridle.maths.losses import kto, kto_baseline, kto_unwanted_weight
from bridle.models.batches import Compared, Cut, Group, Rated, group_batch, length_plan, row_sizes
from bridle.models.policy import Policy
from bridle.recipe.offline import KTOSection

Weights = tuple[float, float]  # λ_D and λ_U, or what good and bad answers weigh


def train(
    policy: Policy,
    reference: Policy,
    groups: Sequence[Group],
    config: KTOSection,
    session: Session,
    cache: Path,
    observe: Callable[[], Mapping[str, float]] | None = None,
) -> Metrics:
    """Train `policy` in place. `observe` measures the policy now and then for the log (its KL, say) and steers nothing."""
    judged = [rated for group in groups if (rated := with_ratings(group)).ratings]
    weights = balance(judged, config, session.run.progress.say)
    others = set_to_others(judged, policy.module.config.max_positions)
    plan = length_plan([group.length for group in judged], config.batch_size, config.epochs, session.seed, "kto")
    steps = Steps.of_policy(policy.module, config, len(plan), session)
    policy.step += steps.done
    known = cached_logprobs(
        reference, [*judged, *others], session.device, cache, session.run.progress.say, config.micro_tokens
    )
    session.release(reference)
    own_of, other_of = known[: len(judged)], known[len(judged) :]
    for step in steps:
        # 1. prompts with what was said of their answers
        rows = plan[step]
        chosen, own = [judged[i] for i in rows], [own_of[i] for i in rows]
        # 2. the reference point
        kl = estimated_kl(
            policy, [others[i] for i in rows], [other_of[i] for i in rows], session.device, config.micro_tokens
        )
        # 3. log-probs of every answer, improve
        metrics = improve_by_ratings(policy, chosen, own, kl, weights, config, session.device)
        metrics["grad_norm"] = steps.scheduled_step(step, config.clip_norm)
        policy.step += 1
        # 4. log and save
        end_averaged_step(steps, step, metrics, observe, config.observe_every)
    answers, (good, bad) = sum(len(group.answers) for group in judged), rating_weights(judged)
    found = {"steps": len(plan), "prompts": len(judged), "answers": answers, "good": good, "bad": bad}
    lambdas = dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True))
    return {**found, **lambdas, "steps_averaged": AVERAGED, **steps.metrics}


# ---------------------------------------------------------------------------------------------------- what was said


def with_ratings(group: Group) -> Group:
    """The group with its comparisons as ratings: of each the better answer is good, and the worse one bad, by its confidence. What weighs
    nothing is left out."""
    ratings = list(group.ratings)
    for pair in (Compared(*pair) for pair in group.pairs):
        ratings.append(Rated(pair.better, pair.target, pair.weight))
        ratings.append(Rated(pair.worse, 1 - pair.target, pair.weight))
    return Group(group.prompt, group.answers, ratings=[rated for rated in ratings if rated.weight > 0])


def rating_weights(groups: Sequence[Group]) -> Weights:
    """What was said for answers and what was said against them, by weight."""
    ratings = [rated for group in groups for rated in group.ratings]
    return (
        sum((rated.weight * rated.value for rated in ratings), start=0.0),
        sum((rated.weight * (1 - rated.value) for rated in ratings), start=0.0),
    )


def balance(groups: Sequence[Group], config: KTOSection, say: Callable[[str], None]) -> Weights:
    """λ_D and λ_U; NoUsableRows where only one kind of answer is there."""
    good, bad = rating_weights(groups)
    if not good > 0 or not bad > 0:
        raise NoUsableRows(
            f"KTO needs good answers and bad ones, got {good:.6g} of good and {bad:.6g} of bad by weight; import votes of both kinds, or "
            "comparisons, or imitate what is good by sft"
        )
    wanted, unwanted = config.desirable_weight, config.undesirable_weight
    unwanted = kto_unwanted_weight(good, bad, wanted) if isinstance(unwanted, str) else unwanted
    say(
        f"answers: good ones weigh {good:.6g} and bad ones {bad:.6g}; with desirable_weight = {wanted:.4g} and undesirable_weight = "
        f"{unwanted:.4g} they stand {wanted * good / (unwanted * bad):.3g} to 1"
    )
    return wanted, unwanted


def set_to_others(groups: Sequence[Group], limit: int) -> list[Group]:
    """Each prompt with the answers of the next group in length that has another prompt, the shortest after the longest. Where a prompt
    leaves no room for them within `limit` its first tokens go."""
    order = sorted(range(len(groups)), key=lambda i: (groups[i].length, i))
    found = list(groups)
    for place, i in enumerate(order):
        around = (groups[order[(place + further) % len(order)]] for further in range(1, len(order)))
        other = next((group for group in around if group.prompt != groups[i].prompt), None)
        if other is None:
            raise NoUsableRows(
                "KTO needs answers to 2 different prompts at least, for its reference point sets a prompt to the answers of another, and "
                "got 1 prompt; import answers to more"
            )
        room = limit - max(map(len, other.answers))
        found[i] = Group(groups[i].prompt[-room:], other.answers)
    return found


# ------------------------------------------------------------------------------------------------------------- the step


def estimated_kl(
    policy: Policy, others: Sequence[Group], known: Sequence[Tensor], device: Device, micro_tokens: int = 0
) -> Tensor:
    """Mean log π - log π_ref of answers that are set to other prompts, at least 0, in nats. Each rank reads its share."""
    mine = my_share(list(range(len(others))))
    read = [torch.zeros(len(group.answers)) for group in others]  # on every rank, and zero where another reads
    logps = read_logprobs(policy, [others[i] for i in mine], device, "policy", micro_tokens)
    for i, logp in zip(mine, logps, strict=True):
        read[i] = logp
    logp_M, reference_M = (torch.cat(list(found)).double().to(device.torch) for found in (read, known))
    return kto_baseline(all_ranks_sum(logp_M), reference_M, beta=1.0)


def improve_by_ratings(
    policy: Policy,
    groups: Sequence[Group],
    known: Sequence[Tensor],
    kl: Tensor,
    weights: Weights,
    config: KTOSection,
    device: Device,
) -> Metrics:
    """Add the gradient of the loss on a step's groups, every answer read once; the metrics of the step.

    Each rank takes its share of the groups, as much of it at once as the settings say; what the ratings weigh is counted over all of them.
    """
    mine, means, (good, bad) = my_share(list(range(len(groups)))), Means(), rating_weights(groups)
    cut, sizes = Cut(config.micro_batch, config.micro_tokens), row_sizes((one.prompt, one.answers) for one in groups)
    for part in lockstep(cut.parts(mine, sizes, policy.module.model), policy.module):
        chosen = [groups[i] for i in part]
        with timed("forward"):
            batch = group_batch(chosen, policy.template.pad_id, device.torch)
            answer_N, wanted_N, weight_N = index_ratings(chosen, device.torch)
            logp_N = answer_logprobs(policy, batch, device)[answer_N]
            reference_N = torch.cat([known[i] for i in part]).to(device.torch)[answer_N]
            loss, metrics = kto(
                logp_N, reference_N, wanted_N, config.beta * kl, beta=config.beta, wanted_weight=weights[0],
                unwanted_weight=weights[1], weight_N=weight_N, count=good + bad,
            )  # fmt: skip
        backward(loss)
        logp_N = logp_N.detach()
        reward_N = config.beta * (logp_N - reference_N)
        for name, share_N, count in (("good", wanted_N, good), ("bad", 1 - wanted_N, bad)):
            if count > 0:  # a batch may hold one kind alone
                metrics[f"{name}_reward"] = (weight_N * share_N * reward_N).sum() / count
                metrics[f"{name}_logp"] = (weight_N * share_N * logp_N).sum() / count
        means.add(metrics)
    found = means.totals()
    if good > 0 and bad > 0:
        found["margin"] = found["good_reward"] - found["bad_reward"]
    return {**found, "kl_estimate": float(kl)}


def index_ratings(groups: Sequence[Group], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ratings of all groups as indices into the flat list of answers, with their values and weights, each [N]."""
    rows, offset = list[tuple[int, float, float]](), 0
    for group in groups:
        rows += [(offset + rated.answer, rated.value, rated.weight) for rated in group.ratings]
        offset += len(group.answers)
    answer_N, value_N, weight_N = zip(*rows, strict=True)
    numbers = torch.tensor([value_N, weight_N], dtype=torch.float32, device=device)
    return torch.tensor(answer_N, device=device), numbers[0], numbers[1]
