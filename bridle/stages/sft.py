"""Supervised fine-tuning of the base model on demonstrations."""

from collections.abc import Sequence
from typing import Any

from bridle.compute.steps import Session
from bridle.core.records import Prompt, content_hash
from bridle.models.encoding import encode_demonstrations
from bridle.project.run import Run
from bridle.recipe.constitution import ConstitutionSection
from bridle.recipe.offline import SFTSection
from bridle.stages.adapters import adapter_parents, learner_of
from bridle.stages.data import PlaygroundData
from bridle.stages.workspace import Method, Variant, Work, done_before, require_model, stage_key
from bridle.training import sft


def train_sft(work: Work, method: Method, variant: Variant) -> dict[str, Any]:
    variant.only(method, "name", "title", "settings")
    recipe, name = method.recipe(work, variant), variant.name
    base = require_model(work, "base")  # what comes first is missed first
    demonstrations = work.data.demonstrations()
    parents = {"base": base, "data": content_hash([[prompt.id, text] for prompt, text in demonstrations])}
    parents |= adapter_parents(work, work.project.model("base"))
    key = stage_key(recipe, ("model", "sft"), parents)
    if (before := done_before(work, name, key, variant.reuse, name)) is not None:
        return before
    with work.start(name, variant.title, key, parents, recipe) as run:
        return run.finish(imitate_demonstrations(work, run, name, demonstrations, recipe.sft))


def train_branch(work: Work, reuse: bool = False) -> dict[str, Any]:
    """A branch of the base model for prompts that can be checked, which the data names and writes the demonstrations for.

    What a small model lacks at first is copying numbers from the question, and no reward teaches that; the branch does.
    """
    recipe, name = work.recipe, work.data.branch
    with work.alone(name):
        parents = {"base": require_model(work, "base"), "world": work.data.world_hash}
        parents |= adapter_parents(work, work.project.model("base"))
        branch = [recipe.grpo.branch_problems, recipe.grpo.branch_demonstrations]
        key = content_hash([stage_key(recipe, ("model", "sft"), parents), branch])
        if (before := done_before(work, name, key, reuse, name)) is not None:
            return before
        with work.start(
            name, "A copy of the base model learns arithmetic from worked problems, for GRPO", key, parents
        ) as run:
            config = recipe.sft.model_copy(update={"epochs": 1})
            assert isinstance(work.data, PlaygroundData)  # it alone names a branch
            return run.finish(imitate_demonstrations(work, run, name, work.data.branch_demonstrations(), config))


def imitate_demonstrations(
    work: Work,
    run: Run,
    name: str,
    demonstrations: Sequence[tuple[Prompt, str]],
    config: SFTSection | ConstitutionSection,
    start: str = "base",
) -> dict[str, Any]:
    """Train a model, by default the base, on demonstrations and keep it as `name`."""
    began = work.load_policy(start, frozen=work.recipe.lora.on)
    policy = learner_of(work, began, work.project.model(start))
    limit = policy.module.config.max_positions
    examples = work.usable(encode_demonstrations(policy.template, demonstrations, limit))
    result = sft.train(policy, examples, config, Session(run, work.device, work.recipe.seed))
    saved = work.keep_policy(name, "sft", policy, began.origin)
    return {**result, "demonstrations": len(examples), "model": saved}
