"""Floor 8: the stages that tune a policy by other ways than PPO: DPO, GRPO, RLOO, REBEL, best of n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridle.core.recipe import DPOSection, GRPOSection, REBELSection, Recipe, RejectionSection, RLOOSection
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
    observer,
    parent_policy,
    require_model,
    reward_parents,
    stage_key,
    training_reward,
    training_snapshot,
    within_context,
)
from bridle.training import dpo, grpo, rebel, rejection, sft

OBSERVED = 128  # prompts that DPO's KL is measured on as it goes

Settings = Mapping[str, Any]  # that replace some of a section's for one run


def with_settings(work: Work, section: str, settings: Settings | None) -> Recipe:
    return work.recipe.with_settings({f"{section}.{key}": value for key, value in (settings or {}).items()})


# ----------------------------------------------------------------------------------------------------- DPO


def train_dpo(
    work: Work,
    reuse: bool = False,
    name: str = "dpo",
    settings: Settings | None = None,
    reward_source: Reward | None = None,
) -> dict[str, Any]:
    """From SFT's weights on the same comparisons as the reward model, or online on fresh answers that a reward ranks."""
    recipe = with_settings(work, "dpo", settings)
    if recipe.dpo.online_rounds:
        method = Method("dpo", "Online DPO: its own answers, ranked by a reward", recipe.dpo, dpo.train_online)
        return practised(work, recipe, method, name, reuse, reward_source)
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


# ------------------------------------------------------------------------------------- practice on answers of its own


@dataclass(frozen=True)
class Method:
    """A trainer that learns from its own answers: its section of the recipe, what to call it, the function."""

    section: str
    title: str
    config: GRPOSection | RLOOSection | REBELSection | RejectionSection | DPOSection
    train: Callable[..., dict[str, float]]


def practised(
    work: Work, recipe: Recipe, method: Method, name: str, reuse: bool, reward_source: Reward | None
) -> dict[str, Any]:
    """Practise for the reward model or for a verifier, as the recipe says; `reward_source`, a control's or the caller's own,
    scores in their place."""
    how = by_verifier if method.config.scored_by == "verifier" else by_reward
    return how(work, recipe, method, name, reuse, reward_source)


def by_reward(
    work: Work, recipe: Recipe, method: Method, name: str, reuse: bool, reward_source: Reward | None
) -> dict[str, Any]:
    """From SFT's weights on the training prompts, scored by the reward model."""
    parents = {"sft": require_model(work.project, "sft", "train sft"), "source": name}
    if reward_source is None:
        parents |= {**reward_parents(work), "source": "learned"}
    key = stage_key(recipe, ("model", method.section, "data", "sampling"), parents)
    if (before := done_before(work, name, key, reuse, name)) is not None:
        return before
    with work.start(name, method.title, key, parents, recipe) as run:
        policy = load_policy(work.project.model("sft"), work.device.torch)
        policy.origin = content_hash([policy.origin, key])  # two runs from the same weights must not share stamps
        reference = parent_policy(work, "sft")
        prompts = within_context(work, policy, work.sources.train_prompts(), recipe.sampling.max_new_tokens)
        source, tell = training_reward(work, policy) if reward_source is None else (reward_source, dict)
        result = method.train(
            policy, reference, source, prompts, method.config, recipe.sampling.max_new_tokens,
            work.engine, work.device, run, recipe.seed, observe=observer(work, tell),
        )  # fmt: skip
        saved = keep_policy(work, name, method.section, policy, reference.origin)
        return run.finish({**result, "model": saved})


def by_verifier(
    work: Work, recipe: Recipe, method: Method, name: str, reuse: bool, reward_source: Reward | None
) -> dict[str, Any]:
    """From the arithmetic branch on the playground, from SFT elsewhere, on prompts whose answers can be checked."""
    branch = train_arithmetic(work, reuse=True) if work.sources.playground else None
    start = "sft" if branch is None else "arithmetic"
    with_branch = {} if branch is None else {"branch": branch}
    start_hash = require_model(work.project, start, "train sft")
    prompts, heldout, verifier = work.sources.checkable()
    several = bool(recipe.reward_source) and reward_source is None
    parents = {
        "start": start_hash,
        "source": "verifier" if reward_source is None else name,
        **(reward_parents(work) if several else {}),
        "world": work.sources.world_hash,
        "data": content_hash([[prompt.id for prompt in prompts], [prompt.id for prompt in heldout]]),
    }
    key = stage_key(recipe, ("model", method.section, "data", "sampling"), parents)
    if (before := done_before(work, name, key, reuse, name)) is not None:
        return {**before, **with_branch}
    with work.start(name, method.title, key, parents, recipe) as run:
        policy = load_policy(work.project.model(start), work.device.torch)
        reference = load_policy(work.project.model(start), work.device.torch)
        before_it = policy.origin
        policy.origin = content_hash([policy.origin, key])
        tokens = recipe.sampling.max_new_tokens
        prompts = within_context(work, policy, prompts, tokens)
        heldout = within_context(work, policy, heldout, tokens, "held-out prompts")
        first = checked(work, reference, heldout, verifier, f"{method.section}-before")
        source: Reward = reward_source or verifier
        tell: Tell = dict
        if several:
            source, tell = training_reward(work, policy)
        result = method.train(
            policy, reference, source, prompts, method.config, tokens,
            work.engine, work.device, run, recipe.seed, observe=checks(work, verifier, tell),
        )  # fmt: skip
        saved = keep_policy(work, name, method.section, policy, before_it)
        after = checked(work, policy, heldout, verifier, f"{method.section}-after")
        kept = {figure: value for figure, value in result.items() if figure not in ("accuracy", "worked")}
        both = {f"{n}_{when}": v for when, found in (("before", first), ("after", after)) for n, v in found.items()}
        return {**run.finish({**kept, **both, "problems": len(heldout), "model": saved}), **with_branch}


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
    work: Work,
    reuse: bool = False,
    name: str = "grpo",
    reward_source: Reward | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Reinforce answers that are right, from the arithmetic branch on the playground, from SFT elsewhere."""
    recipe = with_settings(work, "grpo", settings)
    method = Method("grpo", "GRPO: many answers to a problem, the right ones reinforced", recipe.grpo, grpo.train)
    return practised(work, recipe, method, name, reuse, reward_source)


def train_rloo(
    work: Work,
    reuse: bool = False,
    name: str = "rloo",
    reward_source: Reward | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Several answers to a prompt, each against the mean of the others; by the reward model, from SFT's weights."""
    recipe = with_settings(work, "rloo", settings)
    method = Method(
        "rloo", "RLOO: several answers to a prompt, each against the mean of the others", recipe.rloo, grpo.train
    )
    return practised(work, recipe, method, name, reuse, reward_source)


def train_rebel(
    work: Work,
    reuse: bool = False,
    name: str = "rebel",
    reward_source: Reward | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Two answers to a prompt, log-odds that follow their rewards; by the reward model, from SFT's weights."""
    recipe = with_settings(work, "rebel", settings)
    method = Method(
        "rebel", "REBEL: two answers to a prompt, log-odds that follow their rewards", recipe.rebel, rebel.train
    )
    return practised(work, recipe, method, name, reuse, reward_source)


def train_rejection(
    work: Work,
    reuse: bool = False,
    name: str = "best-of-n",
    reward_source: Reward | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Answer, keep the best, imitate it, and again; by the reward model, from SFT's weights."""
    recipe = with_settings(work, "rejection", settings)
    method = Method("rejection", "Best of n: imitating its own best answers", recipe.rejection, rejection.train)
    return practised(work, recipe, method, name, reuse, reward_source)


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
