"""A model to be served: one of the project, or a folder, with what picks among its answers."""

from collections.abc import Sequence
from pathlib import Path

from bridle.compute.device import choose_device, choose_threads
from bridle.core.errors import ProjectError
from bridle.core.records import Completion, Prompt, Reward, Scores
from bridle.generation.batch import BatchLimits
from bridle.generation.engine import Engine
from bridle.models.files.chat_template import OWN_FILES, PLAIN_TEMPLATE
from bridle.models.policy import Policy, inspect_policy, load_policy
from bridle.project.names import is_name
from bridle.recipe.recipe import Recipe
from bridle.rewards.learned import LearnedReward
from bridle.serve.scheduler import ServedModel
from bridle.stages.rewards import learned_reward, load_scores
from bridle.stages.workspace import Work, require_model


def model_folder(work: Work | None, model: str) -> Path:
    """Of a model that is named by its place in the project, or by its folder. What can be told of it before it is loaded is refused
    here."""
    path = Path(model)
    in_project = work is not None and is_name(model) and (work.project.model(model) / "config.json").is_file()
    if work is None or (path.is_dir() and not in_project):
        if not path.is_dir():
            raise ProjectError(
                f"there is no folder {model!r}, and no project here that could have a model of that name; name the folder of a model, or "
                "the project with --project DIR"
            )
        inspect_policy(path)
        return path.resolve()
    require_model(work, model)
    if work.recipe.serve.reward:
        require_model(work, work.recipe.serve.reward, scores=True)
    return work.project.model(model)


def load_served(work: Work | None, recipe: Recipe, folder: Path, name: str) -> ServedModel:
    """Load it, with threads that leave a core to the server."""
    threads = recipe.serve.threads or max(1, choose_threads(None)[0] - 1)
    device = choose_device(recipe.model.precision, threads, recipe.model.kernels)
    if work is None:
        policy, reward = load_policy(folder, device.torch), None
    else:
        work.device = device
        policy = work.read_policy(folder)
        reward = picking_reward(work, policy)
    no_chat = without_chat(
        folder, policy, name, base=work is not None and folder.resolve() == work.project.model("base").resolve()
    )
    return ServedModel(name, policy, Engine(device.precision), BatchLimits(rows=recipe.serve.batch), no_chat, reward)


def without_chat(folder: Path, policy: Policy, name: str, base: bool) -> str:
    """Why it cannot be chatted with; empty where it can be."""
    written = any((folder / file).is_file() for file in OWN_FILES)
    if policy.template.source != PLAIN_TEMPLATE or (written and not base):
        return ""
    return (
        f"{name} is a base model without a chat template, so it cannot be chatted with: ask /v1/completions to continue a text, or serve a "
        "model that was taught to answer (`bridle train sft`)"
    )


def picking_reward(work: Work, policy: Policy) -> Reward | None:
    """The reward model that picks among answers: the one that [serve] names, else the project's, where it has one."""
    named = work.recipe.serve.reward
    if not named and not (work.project.model("reward") / "bridle_reward.json").is_file():
        return None
    found = load_scores(work, work.project.model(named), policy) if named else learned_reward(work, policy)
    members = [found] if isinstance(found, LearnedReward) else found.members

    def score(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Sequence[float | None]:
        scores = found(prompts, completions)
        for member in members:
            member.known.clear()  # a server is asked new prompts for as long as it runs
        return scores.values if isinstance(scores, Scores) else scores

    return score
