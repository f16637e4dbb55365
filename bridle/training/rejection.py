"""Rejection sampling, or expert iteration: answer each prompt several times, keep what is best, imitate that, and do it again
(Anthony 2017; best of n as in Stiennon 2020 and Dubois 2023; right answers as in Zelikman 2022, STaR, and Yuan 2023).

Each round: 1. answer each prompt n times  2. score the answers  3. keep the best  4. imitate them  5. share the new weights,
log and save.
Nothing is pushed down and nothing holds the policy but the choice itself: imitating the best of n answers well moves it by at
most log n - (n - 1)/n nats a round. An answer that was cut off is never kept: it never said that it was done. Where all n scored the
same none is the best: that prompt is left out and counted. With n = 1 nothing is compared, and every answer that ended is imitated.
The shortest right answer may be a lucky guess, and who imitates guesses guesses more: lengths at which answers are right less than half as
often as all are passed over (`longest_guess`).
Left out on purpose: beginning each round from the first weights again (STaR), older rounds' answers.
Shapes: B answers of a round, T predictions, N answer tokens of a batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.compute.steps import Metrics, Steps
from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.core.timeline import timed
from bridle.generation import rollout as online
from bridle.maths.advantages import flat_groups
from bridle.models.batches import Cut, length_batches
from bridle.models.imitation import Example, imitate
from bridle.models.policy import Policy
from bridle.recipe.online import RejectionSection

LENGTHS = 20  # groups by length, in each of which the right answers are counted


def train(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: RejectionSection,
    session: online.RolloutSession,
) -> Metrics:
    """Train `policy` in place; `reference` is what its KL is measured against."""
    asking = online.Asking(
        "rejection", prompts, config.prompts_per_round, config.answers, config.temperature, method="best-of-n"
    )
    steps = Steps.of_policy(policy.module, config, config.rounds, session)
    for rollout in online.rollouts(steps, policy, reward, asking, session):  # 1. answer each prompt n times  2. score
        with steps.save_on_error(rollout.step):
            _, kl_B, gaps = online.reread(rollout, policy, reference, config, config.answers, session.device)
            # 3. keep the best
            flat_G, kept = without_best(rollout, config), choose(rollout, config)
            examples = [] if flat_G.all() else kept_examples(policy, rollout, kept)
        # 4. imitate them
        updates = imitate_kept(policy, steps, examples, config, rollout.step)
        # 5. share the new weights (a new stamp), log and save
        policy.step += 1
        metrics = {
            **online.rollout_metrics(rollout, kl_B, session),
            **kept_metrics(rollout, kept, examples, config),
            **({"without_variance": float(flat_G.float().mean())} if compares(config) else {}),
            **updates,
            **gaps,
        }
        online.end_step(steps, rollout, metrics, 0.0, not flat_G.all())
    return {"rounds": steps.done, **steps.metrics}


def compares(config: RejectionSection) -> bool:
    """Whether an answer is kept for being better than others to its prompt: not by a bar, and not because it is the only one."""
    return config.keep == "best" and config.answers > 1


def without_best(rollout: online.Rollout, config: RejectionSection) -> Tensor:
    """Which prompts' answers all scored the same where they are compared, so that none is the best, [G] bool."""
    if not compares(config):
        return torch.zeros(len(rollout.completions) // config.answers, dtype=torch.bool)
    return flat_groups(rollout.score_B, config.answers)


@timed("choose")
def choose(rollout: online.Rollout, config: RejectionSection) -> list[int]:
    """The answers to imitate, by their place in the rollout; of equal ones the first."""
    scores, completions, chosen = rollout.score_B.tolist(), rollout.completions, []
    flat = without_best(rollout, config).tolist()
    relative = relative_lengths(completions, config.answers) if config.keep == "shortest" else np.zeros(0)
    guess = longest_guess(relative, rollout.score_B.numpy() >= config.threshold)
    for first in range(0, len(completions), config.answers):
        if flat[first // config.answers]:
            continue  # the first of equals would be imitated for nothing, and the policy would drift
        answers = range(first, first + config.answers)
        ended = [i for i in answers if completions[i].finish_reason is not FinishReason.LENGTH]
        good = ended if config.keep == "best" else [i for i in ended if scores[i] >= config.threshold]
        if not good:
            continue
        if config.keep in ("best", "best_right"):
            chosen.append(max(good, key=lambda i: scores[i]))
        elif config.keep == "shortest":
            chosen += sorted((i for i in good if relative[i] > guess), key=lambda i: len(completions[i].token_ids))[:1]
        else:  # every one above the threshold, each text once
            chosen += sorted({completions[i].token_ids: i for i in reversed(good)}.values())
    return chosen


def relative_lengths(completions: Sequence[Completion], answers: int) -> NDArray[np.float64]:
    """Tokens of each answer, in those of the median answer to its prompt, [B]."""
    lengths_GA = np.array([len(one.token_ids) for one in completions], dtype=np.float64).reshape(-1, answers)
    return (lengths_GA / np.maximum(np.median(lengths_GA, axis=1, keepdims=True), 1)).ravel()


def longest_guess(relative_B: NDArray[np.float64], right_B: NDArray[np.bool_]) -> float:
    """The relative length up to which a right answer is taken for a lucky guess. Answers in their order of length are cut into `LENGTHS`
    groups of one size; from the shortest on, groups are passed over in which answers are right less than half as often as all are. 0 where
    there are none, or too few answers to tell."""
    longest = 0.0
    if len(relative_B) >= LENGTHS * LENGTHS:
        for group in np.array_split(np.argsort(relative_B, kind="stable"), LENGTHS):
            if right_B[group].mean() >= right_B.mean() / 2:
                break
            longest = float(relative_B[group[-1]])
    return longest


@timed("choose")
def kept_examples(policy: Policy, rollout: online.Rollout, kept: Sequence[int]) -> list[Example]:
    """What is to be imitated; TrainingStopped where it is nothing."""
    if not kept:
        raise TrainingStopped(
            f"none of {len(rollout.completions)} answers was worth keeping (best reward {float(rollout.score_B.max()):.3g}, "
            f"{online.answer_metrics(rollout)['cut_off']:.0%} cut off): lower rejection.threshold, ask for more answers, or raise "
            "sampling.max_new_tokens"
        )
    prompt_ids = policy.template.prompt_ids([rollout.prompts[i] for i in kept])
    return [(ids, list(rollout.completions[i].token_ids)) for ids, i in zip(prompt_ids, kept, strict=True)]


def kept_metrics(
    rollout: online.Rollout, kept: Sequence[int], examples: Sequence[Example], config: RejectionSection
) -> Metrics:
    """What is imitated: how many answers, to what share of the prompts, and, where there are any, their mean reward and length."""
    taught = len({i // config.answers for i in kept}) / (len(rollout.completions) // config.answers)
    if not kept:
        return {"kept": 0, "taught": taught}
    length = sum(len(answer) for _, answer in examples) / len(examples)
    return {
        "kept": len(kept),
        "kept_reward": float(rollout.score_B[kept].mean()),
        "kept_length": length,
        "taught": taught,
    }


@timed("improve")
def imitate_kept(
    policy: Policy,
    steps: Steps,
    examples: Sequence[Example],
    config: RejectionSection,
    number: int,
) -> Metrics:
    """`epochs` passes of SFT over prompt ids and answer ids, the stop token learnt with the answer; no step where there are none."""
    losses: list[float] = []
    norms: list[float] = []
    session = steps.session
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    for epoch in range(config.epochs if examples else 0):
        batches = length_batches(lengths, config.batch_size, session.seed, "rejection", number * config.epochs + epoch)
        planned = config.epochs * len(batches)
        for rows in batches:
            cut = Cut(tokens=config.micro_tokens)
            losses.append(imitate(policy, [examples[i] for i in rows], session.device, cut))
            norms.append(steps.scheduled_step(number * planned + len(norms), config.clip_norm, planned))
    steps.grad_norm = sum(norms) / len(norms) if norms else None
    return {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)} if norms else {}
