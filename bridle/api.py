"""Floor 8: bridle from Python. A model, your data, a reward function of your own; each trainer is one function.

    import bridle
    model = bridle.load("path/to/model")
    bridle.sft(model, [("My cat is bored.", "Play with it."), ...], epochs=1)
    bridle.ppo(model, prompts, reward=lambda prompts, answers: [...], kl_coef=0.1, on_log=print)
    model.answer(["My dog is bored."])

The loops are those of `bridle/training/`, which the command line runs too. What all trainers here share:

- They train the model in place. One that fails or is stopped leaves the model as it was before.
- A prompt is text, or messages (`{"role": …, "content": …}`) that end with the user's. Answers are text.
- Settings are those of the recipe's section of the same name, by keyword; `seed` decides every random number.
- With `folder`, metrics and checkpoints are kept there, and the same call again goes on where it stopped, or restores what was
  finished. It must be the same call: other settings, data or another model are refused. A reward function cannot be compared.
- `on_log(step, total, figures)` is called for every line of metrics.jsonl. If it raises, that step is saved first, in
  `folder` where there is one; then its exception comes through.
"""

from __future__ import annotations

import difflib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from bridle.core.errors import DataError, ProjectError, RecipeError, UsageError
from bridle.core.files import read_json, write_json, write_text
from bridle.core.health import Health
from bridle.core.recipe import Recipe, SamplingSection, TrainerSection, sections, to_toml
from bridle.core.records import Completion, Message, Pair, Prompt, Reward, Role, content_hash
from bridle.core.runlog import OnLog, Progress, Project, Run, sitting_seconds
from bridle.evaluation.answers import answer_all
from bridle.generation.engine import answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.device import Device, choose_device
from bridle.models.policy import Policy, RewardModel, load_policy, load_reward_model, save_policy, save_reward_model
from bridle.models.randomness import derived_seed, generator
from bridle.models.scorer import critic_from, scorer_from, shared_critic
from bridle.models.template import train_tokenizer
from bridle.rewards.learned import LearnedReward, task_scores
from bridle.stages import TOKENIZER_TEXTS, Work, encode_demonstrations, encode_groups, new_policy, within_context
from bridle.training import dpo as dpo_loop
from bridle.training import grpo as grpo_loop
from bridle.training import ppo as ppo_loop
from bridle.training import pretrain as pretrain_loop
from bridle.training import rebel as rebel_loop
from bridle.training import rejection as rejection_loop
from bridle.training import reward as reward_loop
from bridle.training import sft as sft_loop

Text = str | Sequence[Mapping[str, str]]  # a prompt: the user's words, or messages that end with the user's
Score = Callable[[Sequence[Any], Sequence[str]], Sequence[float | None]]  # prompts as they were given, answers
Figures = dict[str, Any]

NEW_TOKENS = SamplingSection().max_new_tokens
# Settings that mean something to the stages of a project and nothing here, and those of dpo that `online_dpo` has alone.
STAGES_ONLY = frozenset(
    """
    path scored_by observe_every branch_problems branch_demonstrations
    members combine uncertainty ties loss
    slim slim_hidden_size slim_layers slim_epochs slim_learning_rate
    """.split()
)
ONLINE = frozenset("online_rounds online_prompts online_answers online_reference missing_stop_penalty".split())
CENTRED_ON = 256  # prompts whose answers a reward model is centred and scaled on


@dataclass
class Model:
    """A language model that can be asked, trained and saved. `policy.module` is the network."""

    policy: Policy
    device: Device

    def answer(
        self, prompts: Sequence[Text], *, max_new_tokens: int = NEW_TOKENS, temperature: float = 1.0, top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:  # fmt: skip
        """One answer to each prompt; at temperature 0 always the likeliest tokens."""
        work = workplace(self, Recipe())
        work.engine.load(self.policy)
        settings = Sampling(max_new_tokens, temperature, top_p)
        return [c.text for c in answer_prompts(work.engine, self.policy, as_prompts(prompts), settings, seed=seed)]

    def copy(self) -> Model:
        return Model(replace(self.policy, module=deepcopy(self.policy.module)), self.device)

    def save(self, folder: str | Path) -> str:
        """Write a Hugging Face folder, which `load` and transformers read; its content hash."""
        return save_policy(Path(folder), self.policy)


@dataclass
class ScoreModel:
    """A reward model: called with prompts and answers it gives numbers, in deviations of the answers it was centred on."""

    model: RewardModel
    device: Device
    figures: Figures

    def __call__(self, prompts: Sequence[Text], answers: Sequence[str]) -> list[float | None]:
        asked = as_prompts(prompts)
        if len(asked) != len(answers):
            raise DataError(f"a reward model scores one answer to each prompt, got {len(asked)} and {len(answers)}")
        written = [Completion(p.id, answer) for p, answer in zip(asked, answers, strict=True)]
        return LearnedReward(self.model, self.device, same_tokens=False)(asked, written)

    def save(self, folder: str | Path) -> str:
        """Write the folder that `load_reward` reads; its content hash."""
        return save_reward_model(Path(folder), self.model)


def load(folder: str | Path, *, precision: str = "auto") -> Model:
    """A model from a Hugging Face folder. It stays with the threads that PyTorch has at this moment."""
    device = chosen_device(precision)
    return Model(load_policy(Path(folder), device.torch), device)


def load_reward(folder: str | Path, *, precision: str = "auto") -> ScoreModel:
    device = chosen_device(precision)
    return ScoreModel(load_reward_model(Path(folder), device.torch), device, {})


# ----------------------------------------------------------------------------------------------------- trainers


def pretrain(
    texts: Sequence[str], *, tokens: int, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Model:  # fmt: skip
    """A small model from nothing: a tokenizer from the texts, and next-token prediction on about `tokens` tokens of them.

    Settings of [pretrain] and [model]; texts are repeated where there are fewer tokens.
    """
    if isinstance(texts, str):
        raise DataError("texts are a list, and a single text was given; put it into a list")
    recipe = recipe_of(("pretrain", "model"), settings, seed)
    device = chosen_device(recipe.model.precision)
    template = train_tokenizer(list(texts)[:TOKENIZER_TEXTS], recipe.model.vocab_size)
    model = Model(new_policy(recipe, template, device), device)
    rows = pretrain_loop.rows_of(template.document_ids(texts), recipe.pretrain.length)
    key = run_key("pretrain", recipe, ("pretrain", "model"), model, [list(texts), tokens])
    with training(model, "pretrain", key, recipe, folder, on_log) as (run, _):
        finish(run, pretrain_loop.train(model.policy, rows, tokens, recipe.pretrain, device, run, seed))
    return model


def sft(
    model: Model, examples: Sequence[tuple[Text, str]], *, seed: int = 0, folder: str | Path | None = None,
    on_log: OnLog | None = None, **settings: object,
) -> Figures:  # fmt: skip
    """Imitate answers, given as (prompt, answer). Settings of [sft]."""
    recipe = recipe_of(("sft",), settings, seed)
    shown = demonstrations_of(examples)
    encoded = encode_demonstrations(workplace(model, recipe), model.policy, shown)
    key = run_key("sft", recipe, ("sft",), model, encoded)
    with training(model, "sft", key, recipe, folder, on_log) as (run, _):
        return finish(run, sft_loop.train(model.policy, encoded, recipe.sft, model.device, run, seed))


def reward_model(
    model: Model, pairs: Sequence[tuple[Text, str, str]], *, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> ScoreModel:  # fmt: skip
    """A reward model from comparisons, given as (prompt, better answer, worse answer), on a copy of the model's trunk.

    Its scores are centred and scaled on answers of `model` to up to 256 of the prompts. Settings of [reward].
    """
    recipe = recipe_of(("reward",), settings, seed)
    work, policy, device = workplace(model, recipe), model.policy, model.device
    compared = pairs_of(pairs)
    groups = encode_groups(work, policy, compared, shuffle_labels=False)
    key = run_key("reward", recipe, ("reward",), model, [[g.prompt, g.answers, g.pairs] for g in groups])
    scorer = RewardModel(scorer_from(policy.module, generator(seed, "head")), policy.template, key)
    section = recipe.reward
    with training(model, "reward", key, recipe, folder, on_log) as (run, _):
        figures = reward_loop.train(
            scorer, groups, section, section.epochs, section.learning_rate, device, run, seed
        )  # fmt: skip
        prompts = within_context(work, policy, list(dict.fromkeys(p.prompt for p in compared)), max_new_tokens)
        centre_seed = derived_seed(seed, "centre", 0)
        answered = answer_all(policy, work.engine, prompts[:CENTRED_ON], max_new_tokens, centre_seed)
        prompt_ids, answer_ids = LearnedReward(scorer, device, True).ids(answered.prompts, answered.completions)
        probes = [p + a for p, a in zip(prompt_ids[:4], answer_ids[:4], strict=True)]
        reward_loop.calibrate(scorer, task_scores(scorer, prompt_ids, answer_ids, device), probes)
        return ScoreModel(
            scorer, device, finish(run, {**figures, "centre": scorer.tasks[0].centre, "scale": scorer.tasks[0].scale})
        )


def dpo(
    model: Model, pairs: Sequence[tuple[Text, str, str]], *, reference: Model | None = None, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Figures:  # fmt: skip
    """Learn from comparisons, given as (prompt, better answer, worse answer), with no reward model. Settings of [dpo].

    `reference` holds the model; None: the model as it is when the call begins.
    """
    recipe = recipe_of(("dpo",), settings, seed, without=ONLINE)
    groups = encode_groups(workplace(model, recipe), model.policy, pairs_of(pairs), shuffle_labels=False)
    data = [[g.prompt, g.answers, g.pairs] for g in groups]
    key = run_key("dpo", recipe, ("dpo",), model, data, reference)
    with training(model, "dpo", key, recipe, folder, on_log) as (run, before):
        held_to = reference_of(model, reference, before)
        cache = run.folder / "cache"
        return finish(
            run, dpo_loop.train(model.policy, held_to, groups, recipe.dpo, model.device, run, seed, cache)
        )  # fmt: skip


def ppo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel, *, reference: Model | None = None,
    demonstrations: Sequence[tuple[Text, str]] = (), max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Figures:  # fmt: skip
    """Practise against a reward under a KL penalty. Settings of [ppo]; β, the critic's clip and the penalty of an answer that
    was cut off are in units of your reward.

    `reward(prompts, answers)` gives a number for each answer, None where it cannot judge. The critic begins as the reward
    model where `reward` is one with the model's tokenizer, else as the model with a head of zeros. `demonstrations` are
    for `pretrain_coef`.
    """
    recipe = recipe_of(("ppo",), settings, seed)
    work, policy = workplace(model, recipe), model.policy
    asked = within_context(work, policy, as_prompts(prompts), max_new_tokens)
    shown = encode_demonstrations(work, policy, demonstrations_of(demonstrations)) if demonstrations else []
    source = reward_source(reward, policy)
    if recipe.ppo.shared_trunk:
        critic = shared_critic(policy.module)
    elif isinstance(source, LearnedReward) and source.same_tokens:
        critic = critic_from(source.model.module)
    else:
        critic = critic_from(scorer_from(policy.module, generator(seed, "critic")))
    data = [[prompt.id for prompt in asked], shown, max_new_tokens]
    key = run_key("ppo", recipe, ("ppo",), model, data, reference, reward)
    with training(model, "ppo", key, recipe, folder, on_log) as (run, before):
        held_to = reference_of(model, reference, before)
        return finish(run, ppo_loop.train(
            policy, held_to, critic, source, asked, shown, recipe.ppo, max_new_tokens, work.engine, model.device, run, seed
        ))  # fmt: skip


def grpo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Figures:  # fmt: skip
    """Several answers to each prompt, the better ones reinforced; no critic. Settings of [grpo]; `reward` as in `ppo`."""
    recipe = recipe_of(("grpo",), settings, seed)
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise("grpo", grpo_loop.train, recipe.grpo, recipe, given)


def rloo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Figures:  # fmt: skip
    """As `grpo`, each answer measured against the mean of the others, the KL in the reward. Settings of [rloo]."""
    recipe = recipe_of(("rloo",), settings, seed)
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise("rloo", grpo_loop.train, recipe.rloo, recipe, given)


def rebel(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Figures:  # fmt: skip
    """Two answers to each prompt; their log-odds follow the difference of their rewards. Settings of [rebel]."""
    recipe = recipe_of(("rebel",), settings, seed)
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise("rebel", rebel_loop.train, recipe.rebel, recipe, given)


def best_of_n(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Figures:  # fmt: skip
    """Answer each prompt several times, imitate the best, and again. Settings of [rejection]; `reference` for the log alone."""
    recipe = recipe_of(("rejection",), settings, seed)
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise("rejection", rejection_loop.train, recipe.rejection, recipe, given)


def online_dpo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel, *, online_rounds: int = 3,
    reference: Model | None = None, max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None,
    on_log: OnLog | None = None, **settings: object,
) -> Figures:  # fmt: skip
    """DPO on the model's own fresh answers, ranked by a reward, in rounds. Settings of [dpo]."""
    if online_rounds < 1:
        raise RecipeError(
            f"online_dpo needs online_rounds of at least 1, got {online_rounds}; for comparisons call `dpo`"
        )
    recipe = recipe_of(("dpo",), {**settings, "online_rounds": online_rounds}, seed)
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise("dpo", dpo_loop.train_online, recipe.dpo, recipe, given)


@dataclass(frozen=True)
class Given:
    """What a call that practises was given, besides its settings."""

    model: Model
    prompts: Sequence[Text]
    reward: Score | ScoreModel
    reference: Model | None
    max_new_tokens: int
    folder: str | Path | None
    on_log: OnLog | None


def practise(
    stage: str, train: Callable[..., dict[str, float]], config: TrainerSection, recipe: Recipe, given: Given
) -> Figures:
    """Any trainer that needs no more than prompts and a reward."""
    model, policy, tokens = given.model, given.model.policy, given.max_new_tokens
    work = workplace(model, recipe)
    asked = within_context(work, policy, as_prompts(given.prompts), tokens)
    source = reward_source(given.reward, policy)
    data = [[prompt.id for prompt in asked], tokens]
    key = run_key(stage, recipe, (stage,), model, data, given.reference, given.reward)
    with training(model, stage, key, recipe, given.folder, given.on_log) as (run, before):
        held_to = reference_of(model, given.reference, before)
        return finish(run, train(
            policy, held_to, source, asked, config, tokens, work.engine, model.device, run, recipe.seed
        ))  # fmt: skip


def tensorboard(folder: str | Path) -> OnLog:
    """An `on_log` that writes every number for TensorBoard, under its name in metrics.jsonl. Needs the extra `track`.

    A folder holds one training: `on_log=bridle.tensorboard("tb/ppo")`, then `tensorboard --logdir tb`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("TensorBoard is not installed; install it by `pip install 'bridle[track]'`") from error
    writer = SummaryWriter(str(folder))

    def log(step: int, total: int, figures: Mapping[str, float | int | str | None]) -> None:
        for name, value in figures.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, step)
        writer.flush()

    return log


# ------------------------------------------------------------------------------------------------------ settings


def recipe_of(
    names: Sequence[str], settings: Mapping[str, object], seed: int, without: frozenset[str] = frozenset()
) -> Recipe:
    """The recipe with these settings of these sections; an unknown one is an error that names the nearest."""
    absent = STAGES_ONLY | without
    known = {key: name for name in names for key in sections()[name].model_fields if key not in absent}
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise RecipeError(f"{key!r} is no setting of [{'] or ['.join(names)}]; {hint}")
    return Recipe().with_settings({"seed": seed, **{f"{known[key]}.{key}": value for key, value in settings.items()}})


def chosen_device(precision: str) -> Device:
    return choose_device(precision, threads=torch.get_num_threads())


# ---------------------------------------------------------------------------------------------------------- data


def as_prompts(given: Sequence[Text]) -> list[Prompt]:
    """Prompts as records. `meta["given"]` keeps each as it was given, for that is what a reward function is shown."""
    if isinstance(given, str):
        raise DataError("prompts are a list, and a single text was given; put it into a list")
    return [as_prompt(raw, number) for number, raw in enumerate(given)]


def as_prompt(raw: Text, number: int) -> Prompt:
    if isinstance(raw, str):
        return Prompt.from_text(raw, {"given": raw})
    try:
        messages = tuple(Message(as_role(turn["role"]), str(turn["content"])) for turn in raw)
    except (TypeError, KeyError, ValueError):
        messages = ()
    if not messages or messages[-1].role != "user":
        raise DataError(
            f"prompt {number} is {shortened(raw)}, where text is needed, or messages such as "
            "[{'role': 'user', 'content': '…'}] that end with the user's"
        )
    return Prompt(messages, {"given": raw})


def as_role(role: str) -> Role:
    if role not in get_args(Role):
        raise ValueError(role)
    return role  # type: ignore[return-value]


def demonstrations_of(examples: Sequence[tuple[Text, str]]) -> list[tuple[Prompt, str]]:
    rows = rows_of(examples, "a prompt and its answer", 2)
    return list(zip(as_prompts([row[0] for row in rows]), [row[1] for row in rows], strict=True))


def pairs_of(given: Sequence[tuple[Text, str, str]]) -> list[Pair]:
    """Comparisons as records. The pairs of a prompt share its weight, 1: pairs of one ranking say less than as many others."""
    rows = rows_of(given, "a prompt, the better answer and the worse one", 3)
    prompts = as_prompts([row[0] for row in rows])
    count: dict[str, int] = {}
    for prompt in prompts:
        count[prompt.id] = count.get(prompt.id, 0) + 1
    return [
        Pair(p, Completion(p.id, better), Completion(p.id, worse), 1 / count[p.id])
        for p, (_, better, worse) in zip(prompts, rows, strict=True)
    ]


def rows_of(given: Sequence[Any], what: str, size: int) -> list[tuple[Any, ...]]:
    """Each row as a tuple of `size`, texts but for the first."""
    rows = []
    for number, row in enumerate(given):
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != size:
            raise DataError(f"row {number} is {shortened(row)}, where {what} are needed, as a tuple of {size}")
        if wrong := [part for part in row[1:] if not isinstance(part, str)]:
            raise DataError(f"row {number} holds {shortened(wrong[0])} where an answer's text is needed")
        rows.append(tuple(row))
    return rows


def shortened(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


def reward_source(reward: Score | ScoreModel, policy: Policy) -> Reward:
    """What trainers call: a reward model reads token ids where it can, a function of the user's own gets texts."""
    if isinstance(reward, ScoreModel):
        return LearnedReward(reward.model, reward.device, reward.model.template.hash == policy.template.hash)

    def scored(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        found = reward([prompt.meta["given"] for prompt in prompts], [c.text for c in completions])
        try:
            return [None if score is None else float(score) for score in found]
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the reward function gave {shortened(found)} for {len(completions)} answers, where a list of one number "
                "for each is needed (None where it cannot judge)"
            ) from error

    return scored


# ---------------------------------------------------------------------------------------------------------- runs


def workplace(model: Model, recipe: Recipe) -> Work:
    """A project of no folder, for what the stages' functions ask of one: recipe, device, engine, words for the user."""
    work = Work(Project(Path(), recipe), quiet())
    work.device = model.device
    return work


def quiet() -> Progress:
    """Says what must be said, and draws no line of progress: `on_log` is for that."""
    return Progress(live=False, every=math.inf)


def run_key(
    stage: str, recipe: Recipe, names: Sequence[str], model: Model, data: object, reference: Model | None = None,
    reward: object = None,
) -> str:  # fmt: skip
    """Hash of what decides a run. A function cannot be hashed; a reward model has its key or its folder's hash."""
    held_to = None if reference is None or reference is model else reference.policy.stamp
    judge = reward.model.origin if isinstance(reward, ScoreModel) else None
    return content_hash([stage, recipe.hash_of(*names), model.policy.stamp, held_to, judge, data])


def reference_of(model: Model, reference: Model | None, before: Policy) -> Policy:
    return before if reference is None or reference is model else reference.policy


@contextmanager
def training(
    model: Model, stage: str, key: str, recipe: Recipe, folder: str | Path | None, on_log: OnLog | None
) -> Iterator[tuple[Run, Policy]]:
    """A run, and the policy as it is now, to be held to and to go back to: a run that does not end well changes nothing."""
    policy = model.policy
    before = model.copy().policy
    policy.origin = content_hash([before.stamp, key])  # other weights under a name of their own
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as passing:
            place = Path(passing) / stage if folder is None else Path(folder)
            run = open_run(place, stage, key, recipe, model.device)
            run.on_log, run.kept = on_log, folder is not None
            with run:
                yield run, before
    except BaseException:
        policy.module.load_state_dict(before.module.state_dict())
        policy.module.zero_grad()
        policy.origin, policy.step = before.origin, before.step
        raise
    finally:
        torch.set_num_threads(threads)


def open_run(folder: Path, stage: str, key: str, recipe: Recipe, device: Device) -> Run:
    """A new run in an empty folder, or the one that was begun there with the same key, and its thread count."""
    begun = (folder / "parents.json").exists()
    if not begun:
        if folder.exists() and (not folder.is_dir() or any(not f.name.startswith(".") for f in folder.iterdir())):
            raise ProjectError(f"{folder} exists and holds no run; name a new folder for this one")
        write_json(folder / "parents.json", {"stage": stage, "key": key, "threads": device.threads})
    noted = read_json(folder / "parents.json")
    if noted["key"] != key:
        raise ProjectError(
            f"{folder} holds a run of {noted['stage']} that was begun with other settings, other data or another model; "
            "name another folder, or remove it to begin anew"
        )
    write_text(folder / "recipe.toml", to_toml(recipe))
    torch.set_num_threads(noted["threads"])
    return Run(
        stage, folder, key, noted["threads"], begun, quiet(), sitting_seconds(folder), health=Health(recipe.guard)
    )


def finish(run: Run, figures: Mapping[str, Any]) -> Figures:
    return run.finish(figures) if run.kept else run.whole(figures)
