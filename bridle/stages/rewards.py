"""What reinforcement learning learns from: the project's reward models, verifiers, and sums of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridle.compute.randomness import generator
from bridle.core.errors import ModelError, RecipeError
from bridle.core.records import Completion, Prompt, Reward
from bridle.feedback.store.ratings import add_model_scores, solutions
from bridle.models.policy import Policy, load_reward_model
from bridle.models.scorer import Scorer, critic_from, scorer_from, shared_critic
from bridle.recipe.recipe import Recipe, stated_source
from bridle.rewards.classifier import OWN_UNITS, Classifier, inspect_classifier, load_classifier
from bridle.rewards.functions import FunctionReward, PromptRows, function_reward, load_function
from bridle.rewards.judge.judge import JudgeReward
from bridle.rewards.learned import Ensemble, LearnedReward, task_scores
from bridle.rewards.standing_in import StandIn
from bridle.rewards.weighted import Source, WeightedSum
from bridle.rewards.workers import ScoredByWorkers, StoredReward
from bridle.stages.judge import judge_of
from bridle.stages.workspace import Work, require_model

# Keys of a run's other parents and notes: a reward source of such a name has a key apart.
TAKEN = frozenset(
    (
        "stage key threads device arithmetic earlier_devices folders sft start reference critic ensemble reward_source source world data "
        "prompts demonstrations until leaves guard "
        "adapter audit_calibration checks judge stand_in corrections study items"
    ).split()
)


def member_names(recipe: Recipe) -> list[str]:
    """The models that are the project's reward: one, or the members of an ensemble."""
    return ["reward", *(f"reward-member-{number}" for number in range(2, recipe.reward.members + 1))]


def learned_reward(work: Work, policy: Policy) -> LearnedReward | Ensemble:
    """The project's reward model, or its ensemble, to score this policy's answers."""
    members = [load_scores(work, work.project.model(name), policy) for name in member_names(work.recipe)]
    section = work.recipe.reward
    return members[0] if len(members) == 1 else Ensemble(members, section.combine, section.uncertainty)


def load_scores(work: Work, folder: Path, policy: Policy, task: str = "", frozen: bool = True) -> LearnedReward:
    """A reward model; answers of a policy whose tokens are not its own are read as text. `frozen`: it only scores, or an adapter alone will
    learn on it."""
    on_base_of = policy if work.recipe.lora.shared_trunk and policy.adapter is not None else None
    settings = work.template_settings(folder)
    held = work.recipe.model.frozen_precision if frozen else "float32"
    model = load_reward_model(folder, work.device.torch, work.verify, settings, on_base_of, held)
    work.check_unchanged(folder, model.origin)
    return LearnedReward(model, work.device, model.template.hash == policy.template.hash, task)


def is_own(folder: Path) -> bool:
    """Whether a reward model is one of bridle's."""
    return (folder / "bridle_reward.json").is_file()


def others_reward(work: Work, folder: Path) -> Classifier:
    """A reward model of somebody else's."""
    found = load_classifier(folder, work.device, work.verify)
    work.check_unchanged(folder, found.origin)
    work.warn([f"{folder} is a reward model of somebody else's: {OWN_UNITS}"])
    return found


def keep_scores(work: Work, policy: Policy, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
    """Into the store what each of the project's reward models that are there makes of its answers, by every task."""
    for name in member_names(work.recipe):
        if (folder := work.project.model(name)).joinpath("bridle_reward.json").is_file():
            reader = load_scores(work, folder, policy)
            raw_CB = task_scores(reader.model, *reader.ids(prompts, completions), reader.device).T
            for task, raw_B in zip(reader.model.tasks, raw_CB, strict=True):
                scores = task.log_odds(raw_B).tolist()
                add_model_scores(work.store, completions, reader.model.origin, task.name, scores)


def practised_reward(work: Work, policy: Policy, folders: Sequence[Path] = (), task: str = "") -> Reward:
    """The project's reward model or ensemble, or one in a folder of its own, as training is scored by it: here, or
    by `scale.reward_workers` processes."""
    section, count = work.recipe.reward, work.recipe.scale.reward_workers
    if not count or work.start_workers is None:  # other verbs score a few answers, by themselves
        return load_scores(work, folders[0], policy, task) if folders else learned_reward(work, policy)
    if work.recipe.lora.shared_trunk:
        raise RecipeError(
            f"scale.reward_workers = {count} would have reward models of their own, and lora.shared_trunk puts "
            "them on the policy's base; set one of the two"
        )
    read = folders or [work.project.model(name) for name in member_names(work.recipe)]
    device, held = work.device, work.recipe.model.frozen_precision
    make = StoredReward(
        {folder.resolve(): work.verify(folder) for folder in read}, work.template_settings(read[0]), held, policy.template.hash,
        device.arithmetic, max(1, device.threads // count), task, section.combine, section.uncertainty,
    )  # fmt: skip
    scored = ScoredByWorkers(work.start_workers, make, count, work.progress.say)
    work.closing.callback(scored.close)
    return scored


def training_reward(work: Work, policy: Policy) -> Reward:
    """What RL learns from: the weighted sum of the recipe's sources, or the project's reward model alone."""
    if not work.recipe.reward_source:
        return practised_reward(work, policy)
    sources = []
    for source in work.recipe.reward_source:
        if source.kind == "verifier":
            verifier = work.data.verifier(source)
            judged = source.unparsed == "judge"
            found: Reward = StandIn(source.name, verifier, judge_of(work)) if judged else verifier
        elif source.kind == "judge":
            found = JudgeReward(judge_of(work))
        elif source.path:
            folder = work.project.folder / source.path
            own = is_own(folder)
            found = practised_reward(work, policy, [folder], source.task) if own else others_reward(work, folder)
        else:
            found = practised_reward(work, policy)
        sources.append(Source(source.name, source.weight, found))
    return WeightedSum(sources)


def own_reward(work: Work, place: str) -> FunctionReward:
    """The function FILE.py:FUNCTION as a reward. As columns it gets what the store keeps of a prompt's row: its first solution, and what
    is noted of the prompt."""
    function, hashed = load_function(place)
    solved: dict[str, str] = {}
    for prompt, text in solutions(work.store):
        solved.setdefault(prompt.id, text)
    noted = dict.fromkeys(name for prompt in work.data.train_prompts() for name in prompt.meta)
    rows = PromptRows(
        given_text, lambda prompt: {**prompt.meta, "solution": solved.get(prompt.id)}, ["solution", *noted]
    )
    return function_reward(function, rows, hashed)


def given_text(prompt: Prompt) -> str | list[dict[str, str]]:
    """The user's words, or messages where there is more than these."""
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    return prompt.text if len(turns) == 1 else turns


def reward_parents(work: Work) -> dict[str, Any]:
    """The models that the reward of RL is made of, by content hash; a missing one is reported before anything starts."""
    recipe, parents = work.recipe, dict[str, Any]()
    own = not recipe.reward_source or any(s.kind == "learned" and not s.path for s in recipe.reward_source)
    members = member_parents(work) if own else {}
    if recipe.reward_source:
        parents["reward_source"] = [stated_source(source.model_dump(mode="json")) for source in recipe.reward_source]
    if any(source.kind == "judge" for source in recipe.reward_source):
        parents["judge"] = judge_of(work).hash
    if unread := [source for source in recipe.reward_source if source.unparsed == "judge"]:
        parents["stand_in"] = StandIn(unread[0].name, work.data.verifier(unread[0]), judge_of(work)).hash
    for source in recipe.reward_source:
        folder = work.project.folder / source.path
        if source.check:
            work.data.verifier(source)  # what cannot be checked is refused before anything starts
        if source.path:
            require_reward_at(folder, f"reward source {source.name!r}", source.task)
            clash = source.name in TAKEN or source.name in members
            parents[f"reward_source.{source.name}" if clash else source.name] = work.verify(folder)
    return parents | members


def require_reward_at(folder: Path, whose: str, task: str = "") -> None:
    """ModelError where a folder that is named holds no reward model, or one of somebody else's that cannot be read or has no such task."""
    if is_own(folder):
        return
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{whose} names {folder}, where there is no reward model; give the folder of one, "
            "or leave its path out for the project's own"
        )
    inspect_classifier(folder)
    if task:
        raise ModelError(
            f"{whose} names the task {task!r} of {folder}, a reward model of somebody else's, which has one score and no tasks; leave task "
            "out"
        )


def member_parents(work: Work) -> dict[str, Any]:
    """The project's reward model, or the members of its ensemble and how they are combined."""
    section, names = work.recipe.reward, member_names(work.recipe)
    parents: dict[str, Any] = {name: require_model(work, name, scores=True) for name in names}
    return parents | ({"ensemble": [section.combine, section.uncertainty]} if len(names) > 1 else {})


def critic_parents(work: Work) -> dict[str, Any]:
    """The reward model that a critic begins as, where there is one."""
    folder = work.project.model("reward")
    return {"critic": work.verify(folder)} if (folder / "config.json").is_file() else {}


def first_critic(work: Work, policy: Policy) -> Scorer:
    """PPO's critic as it begins: a second head on the policy's trunk where the recipe wants one, else the project's reward model with a
    head of zeros, else, where there is none or it has other tokens, the policy's trunk with one."""
    if work.recipe.ppo.shared_trunk:
        return shared_critic(policy.module)
    folder = work.project.model("reward")
    adapter = None if policy.adapter is None else policy.adapter.config
    own = load_scores(work, folder, policy, frozen=adapter is not None) if (folder / "config.json").is_file() else None
    if own is not None and own.same_tokens:
        return critic_from(own.model.module, adapter, generator(work.recipe.seed, "lora/critic"))
    return critic_from(scorer_from(policy.module, generator(work.recipe.seed, "critic")))
