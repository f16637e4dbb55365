"""Floor 8: the stages that tune a policy without a reward model, or choose with one: DPO, GRPO, best of n."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridle.core.records import Completion, Prompt, Reward, content_hash
from bridle.evaluation.answers import answer_all, kl_of, proxy_scores
from bridle.maths.statistics import best_of_n, best_of_n_kl, mean_and_se, wilson_interval
from bridle.models.policy import Policy, load_policy
from bridle.models.randomness import derived_seed
from bridle.rewards.rollout import Observe
from bridle.stages import (
    Tell,
    Work,
    done_before,
    encode_demonstrations,
    encode_groups,
    gold_figures,
    keep_policy,
    learned_reward,
    member_parents,
    parent_policy,
    require_model,
    reward_parents,
    stage_key,
    training_reward,
    training_snapshot,
    within_context,
)
from bridle.training import dpo, grpo, sft

OBSERVED = 128  # prompts that DPO's KL is measured on as it goes


# ----------------------------------------------------------------------------------------------------- DPO


def train_dpo(
    work: Work, reuse: bool = False, name: str = "dpo", settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """From SFT's weights on the same comparisons as the reward model; `settings` replace some of the recipe's."""
    recipe = work.recipe.with_settings({f"dpo.{k}": v for k, v in (settings or {}).items()})
    snapshot = training_snapshot(work)
    parents = {"sft": require_model(work.project, "sft", "train sft"), "snapshot": snapshot.id}
    key = stage_key(recipe, ("model", "dpo", "data", "sampling"), parents)
    if (before := done_before(work, name, key, reuse, name)) is not None:
        return before
    with work.start(name, "DPO: the same comparisons, and no reward model", key, parents, recipe) as run:
        policy = load_policy(work.project.model("sft"), work.device.torch)
        policy.origin = content_hash([policy.origin, key])  # two runs from the same weights must not share stamps
        reference = parent_policy(work, "sft")
        pairs = work.sources.store.snapshot_pairs(snapshot.id)
        groups = encode_groups(work, policy, pairs, shuffle_labels=False)
        result = dpo.train(
            policy, reference, groups, recipe.dpo, work.device, run, recipe.seed,
            cache=work.project.folder / "cache", observe=drift(work, policy, reference),
        )  # fmt: skip
        saved = keep_policy(work, name, "dpo", policy, reference.origin)
        measured = {"snapshot": snapshot.id, **result, **drift(work, policy, reference)()}
        return run.finish({**measured, "model": saved})


def drift(work: Work, policy: Policy, reference: Policy) -> Callable[[], dict[str, float]]:
    """KL of fresh answers to a few training prompts, in nats per answer: DPO itself never looks at one."""
    tokens = work.recipe.sampling.max_new_tokens
    prompts = within_context(work, policy, work.sources.train_prompts()[:OBSERVED], tokens)

    def measure() -> dict[str, float]:
        seed = derived_seed(work.recipe.seed, "dpo-observe", policy.step)
        answered = answer_all(policy, work.engine, prompts, tokens, seed)
        kl, error = kl_of(answered, policy, reference, work.device)
        gold = gold_figures(work, answered, "log") if work.sources.playground else {}
        return {"kl": kl, "kl_se": error, **gold}

    return measure


# ------------------------------------------------------------------------------------------ answers to be checked


def train_arithmetic(work: Work, reuse: bool = False) -> dict[str, Any]:
    """The playground's arithmetic branch: from the base model on worked problems, and on answers of uneven skill.

    What a small model lacks at first is copying numbers from the question, and no reward teaches that; the branch does.
    """
    recipe = work.recipe
    parents = {"base": require_model(work.project, "base", "train pretrain"), "world": work.sources.world_hash}
    branch = [recipe.grpo.branch_problems, recipe.grpo.branch_demonstrations]
    key = content_hash([stage_key(recipe, ("model", "sft"), parents), branch])
    if (before := done_before(work, "arithmetic", key, reuse, "arithmetic")) is not None:
        return before
    with work.start("arithmetic", "A branch that learns arithmetic from worked problems", key, parents) as run:
        policy = parent_policy(work, "base")
        examples = encode_demonstrations(work, policy, work.sources.arithmetic_examples())
        config = recipe.sft.model_copy(update={"epochs": 1})
        result = sft.train(policy, examples, config, work.device, run, recipe.seed)
        saved = keep_policy(work, "arithmetic", "sft", policy, policy.origin)
        return run.finish({**result, "demonstrations": len(examples), "model": saved})


def train_grpo(
    work: Work, reuse: bool = False, name: str = "grpo", reward_source: Reward | None = None
) -> dict[str, Any]:
    """Reinforce answers that are right, from the arithmetic branch on the playground, from SFT elsewhere."""
    recipe = work.recipe
    branch = train_arithmetic(work, reuse=True) if work.sources.playground else None
    start = "sft" if branch is None else "arithmetic"
    with_branch = {} if branch is None else {"branch": branch}
    start_hash = require_model(work.project, start, "train sft")
    prompts, heldout, verifier = work.sources.checkable()
    parents = {
        "start": start_hash,
        "source": "verifier" if reward_source is None else name,
        **(reward_parents(work) if recipe.reward_source and reward_source is None else {}),
        "world": work.sources.world_hash,
        "data": content_hash([[prompt.id for prompt in prompts], [prompt.id for prompt in heldout]]),
    }
    key = stage_key(recipe, ("model", "grpo", "data", "sampling"), parents)
    if (before := done_before(work, name, key, reuse, name)) is not None:
        return {**before, **with_branch}
    with work.start(name, "GRPO: many answers to a problem, the right ones reinforced", key, parents) as run:
        policy = load_policy(work.project.model(start), work.device.torch)
        reference = load_policy(work.project.model(start), work.device.torch)
        before_it = policy.origin
        policy.origin = content_hash([policy.origin, key])
        tokens = recipe.sampling.max_new_tokens
        prompts = within_context(work, policy, prompts, tokens)
        heldout = within_context(work, policy, heldout, tokens)
        source: Reward = reward_source or verifier
        tell: Tell = dict
        if recipe.reward_source and reward_source is None:
            source, tell = training_reward(work, policy)
        first = checked(work, reference, heldout, verifier, "grpo-before")
        result = grpo.train(
            policy, reference, source, prompts, recipe.grpo, tokens,
            work.engine, work.device, run, recipe.seed, observe=checks(work, verifier, tell),
        )  # fmt: skip
        saved = keep_policy(work, name, "grpo", policy, before_it)
        after = checked(work, policy, heldout, verifier, "grpo-after")
        kept = {name: value for name, value in result.items() if name not in ("accuracy", "worked")}
        both = {f"{n}_{when}": v for when, found in (("before", first), ("after", after)) for n, v in found.items()}
        return {**run.finish({**kept, **both, "problems": len(heldout), "model": saved}), **with_branch}


def checks(work: Work, verifier: Reward, tell: Tell = dict) -> Observe:
    """Share of right answers, what the reward itself tells and, on the playground, the share of those that show their work."""

    def observe(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        right = [score for score in verifier(prompts, completions) if score is not None]
        figures = {**tell(), "accuracy": float(np.mean(right))}
        if work.sources.playground:
            scores = work.sources.gold_scores(prompts, completions, "log")
            figures["worked"] = float(np.mean([score.flags["worked"] > 0 for score in scores]))
        return figures

    return observe


def checked(work: Work, policy: Policy, prompts: Sequence[Prompt], verifier: Reward, purpose: str) -> dict[str, float]:
    """One sampled answer to each held-out problem: share right with its interval, and what `checks` tells besides."""
    seed = derived_seed(work.recipe.seed, purpose, 0)
    answered = answer_all(policy, work.engine, prompts, work.recipe.sampling.max_new_tokens, seed)
    figures = dict(checks(work, verifier)(answered.prompts, answered.completions))
    right = round(figures["accuracy"] * len(prompts))
    low, high = wilson_interval(right, len(prompts))
    return {**figures, "accuracy_low": low, "accuracy_high": high}


# ------------------------------------------------------------------------------------------------ best of n


def evaluate_best_of(work: Work, n: int = 4, reuse: bool = False) -> dict[str, Any]:
    """What choosing the best of n answers by the reward model is worth, with nothing trained: by gold where it is known.

    n answers of SFT to each held-out prompt; every smaller number of them follows from the same answers, without bias.
    """
    recipe, stage = work.recipe, f"best-of-{n}"
    parents = {
        "sft": require_model(work.project, "sft", "train sft"),
        **member_parents(work),
        "world": work.sources.world_hash,
    }
    key = stage_key(recipe, ("model", "data", "sampling"), parents)
    if (before := done_before(work, stage, key, reuse)) is not None:
        return before
    with work.start(stage, f"Choosing the best of {n} answers by the reward model", key, parents) as run:
        policy = load_policy(work.project.model("sft"), work.device.torch)
        tokens = recipe.sampling.max_new_tokens
        prompts = within_context(work, policy, work.sources.heldout_prompts(), tokens)
        asked = [prompt for prompt in prompts for _ in range(n)]
        answered = answer_all(policy, work.engine, asked, tokens, derived_seed(recipe.seed, stage, 0))
        proxy_PN = np.array(proxy_scores(answered, learned_reward(work, policy))).reshape(-1, n)
        values = {"proxy": proxy_PN}
        if work.sources.playground:
            golds = work.sources.gold_scores(asked, answered.completions, "evaluation")
            values["gold"] = np.array([score.points for score in golds]).reshape(-1, n)
        frontier = []
        for size in sorted({*(2**i for i in range(n.bit_length())), n}):
            point: dict[str, float] = {"n": size, "kl": best_of_n_kl(size)}
            for name, values_PN in values.items():
                point[name], point[f"{name}_se"] = mean_and_se(best_of_n(proxy_PN, size, values_PN))
            frontier.append(point)
        return run.finish({**frontier[-1], "prompts": len(prompts), "frontier": frontier})
