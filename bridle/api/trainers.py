"""Each trainer as a function: the loops of `bridle/training/`, which the command line runs too, on models and data in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridle.api.inputs import Score, Text, as_prompts, demonstrations_of, described_value, preferences_of
from bridle.api.models import (
    NEW_TOKENS,
    Model,
    Result,
    ScoreModel,
    chosen_device,
    new_engine,
    quiet,
    reward_source,
    usable,
)
from bridle.api.runs import announce, finish, reference_of, run_key, training
from bridle.compute.randomness import derived_seed, drawn, generator
from bridle.compute.steps import Session
from bridle.core.errors import DataError, RecipeError, UsageError
from bridle.core.records import Prompt, Reward
from bridle.evaluation.answers import answer_all
from bridle.generation.rollout import RolloutSession
from bridle.models.encoding import encode_demonstrations, encode_pairs, prompts_that_fit
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy, RewardModel
from bridle.models.scorer import Scorer, critic_from, scorer_from, shared_critic
from bridle.project.run import OnLog
from bridle.recipe.by_size import lines_by_size, settings_by_size
from bridle.recipe.recipe import Recipe, hint, require_adamw, sections, takes_adapter
from bridle.rewards.learned import LearnedReward, task_scores
from bridle.rewards.sandbox.kinds import Sandbox
from bridle.rewards.verifiers import Verifier, check_of, same_check
from bridle.stages.data import TOKENIZER_TEXTS, used_note
from bridle.stages.methods import METHODS
from bridle.stages.practice import practise
from bridle.stages.preferences import NO_REFERENCE
from bridle.stages.pretrain import new_policy
from bridle.stages.reward import CENTRED_ON
from bridle.training import dpo as dpo_loop
from bridle.training import ppo as ppo_loop
from bridle.training import pretrain as pretrain_loop
from bridle.training import reward as reward_loop
from bridle.training import sft as sft_loop

# Settings that mean something to the stages of a project and nothing here, by section; those of every section under "".
STAGES_ONLY = {
    "": "start reference scored_by".split(),
    "reward": """
        path members bootstrap combine uncertainty ties loss
        slim slim_hidden_size slim_layers slim_epochs slim_learning_rate
    """.split(),
    "dpo": ["observe_every"],
    "grpo": "branch_problems branch_demonstrations".split(),
    "model": ["path"],
    "lora": ["continued", "shared_trunk"],  # what a model has; and models in memory share what they are on
}
# Settings of [dpo] that `online_dpo` has alone.
ONLINE = frozenset("online_rounds online_prompts online_answers online_reference missing_stop_penalty".split())


def pretrain(
    texts: Sequence[str], *, tokens: int, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Model:  # fmt: skip
    """A small model from nothing: a tokenizer from the texts, and next-token prediction on about `tokens` tokens of them.

    Settings of [pretrain] and [model]; texts are repeated where there are fewer tokens. The tokenizer is learnt from up to 8,000 of
    them, drawn by the seed.
    """
    if isinstance(texts, str):
        raise DataError("texts are a list, and a single text was given; put it into a list")
    recipe = recipe_of("pretrain", settings, seed, more=("model",))
    device = chosen_device(recipe.model.precision)
    few = drawn(texts, texts, TOKENIZER_TEXTS, seed)
    for note in used_note(len(few), len(texts), "to learn the tokenizer"):
        quiet().say(f"texts: {note}")
    template = train_tokenizer(few, recipe.model.vocab_size)
    model = Model(new_policy(recipe, template, device), device)
    rows = pretrain_loop.rows_of(template.document_ids(texts), recipe.pretrain.length)
    key = run_key(
        "pretrain",
        recipe,
        ("pretrain", "model"),
        model,
        [list(texts), tokens, *([few] if len(few) < len(texts) else [])],
    )
    with training(model, "pretrain", key, recipe, folder, on_log) as (run, _):
        finish(run, pretrain_loop.train(model.policy, rows, tokens, recipe.pretrain, Session(run, model.device, seed)))
    return model


def sft(
    model: Model, examples: Sequence[tuple[Text, str]], *, seed: int = 0, folder: str | Path | None = None,
    on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Imitate answers, given as (prompt, answer). Settings of [sft]."""
    recipe = recipe_of("sft", settings, seed, model=model)
    encoded = usable(encode_demonstrations(model.policy.template, demonstrations_of(examples), model.limit))
    key = run_key("sft", recipe, ("sft",), model, encoded)
    with training(model, "sft", key, recipe, folder, on_log) as (run, _):
        return finish(run, sft_loop.train(model.policy, encoded, recipe.sft, Session(run, model.device, seed)))


def reward_model(
    model: Model, pairs: Sequence[tuple[Text, str, str]], *, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> ScoreModel:  # fmt: skip
    """A reward model from comparisons, given as (prompt, better answer, worse answer), on a copy of the model's trunk.

    Its scores are centred and scaled on answers of `model` to up to 256 of the prompts, drawn by the seed. Settings of [reward].
    """
    recipe = recipe_of("reward", settings, seed, model=model)
    policy, section = model.policy, recipe.reward
    compared = preferences_of(pairs)
    groups = usable(encode_pairs(policy.template, compared, model.limit, margin=section.margin))
    key = run_key("reward", recipe, ("reward",), model, [[g.prompt, g.answers, g.pairs] for g in groups])
    begins = learner(policy, recipe.lora, generator(seed, "lora")) if recipe.lora.on else policy
    head = scorer_from(begins.module, generator(seed, "head"))
    scorer = RewardModel(head, policy.template, key, source=policy.source, adapter=begins.adapter)
    with training(model, "reward", key, recipe, folder, on_log) as (run, _):
        device = model.device
        session = Session(run, device, seed)
        result = reward_loop.train(scorer, groups, section, section.epochs, section.learning_rate, session)
        asked = list(dict.fromkeys(pair.prompt for pair in compared))
        fit = fitting(model, asked, max_new_tokens)
        prompts = drawn(fit, [prompt.id for prompt in fit], CENTRED_ON, seed)
        centre_seed = derived_seed(seed, "centre", 0)
        answered = answer_all(policy, new_engine(device), prompts, max_new_tokens, centre_seed)
        prompt_ids, answer_ids = LearnedReward(scorer, device, True).ids(answered.prompts, answered.completions)
        probes = [p + a for p, a in zip(prompt_ids[:4], answer_ids[:4], strict=True)]
        reward_loop.set_centre_and_scale(scorer, task_scores(scorer, prompt_ids, answer_ids, device), probes)
        task = scorer.tasks[0]
        return ScoreModel(scorer, device, finish(run, {**result, "centre": task.centre, "scale": task.scale}))


def dpo(
    model: Model, pairs: Sequence[tuple[Text, str, str]], *, reference: Model | None = None, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Learn from comparisons, given as (prompt, better answer, worse answer), with no reward model. Settings of [dpo].

    `reference` holds the model; None: the model as it is when the call begins. With loss "simpo" there is none.
    """
    recipe = recipe_of("dpo", settings, seed, without=ONLINE, model=model)
    if reference is not None and recipe.dpo.loss in NO_REFERENCE:
        raise UsageError(
            f"loss = {recipe.dpo.loss!r} has no reference, and one was given; leave it out, or choose loss = 'dpo'"
        )
    groups = usable(encode_pairs(model.policy.template, preferences_of(pairs), model.limit))
    data = [[g.prompt, g.answers, g.pairs] for g in groups]
    key = run_key("dpo", recipe, ("dpo",), model, data, reference)
    with training(model, "dpo", key, recipe, folder, on_log) as (run, before):
        held_to = None if recipe.dpo.loss in NO_REFERENCE else reference_of(model, reference, before)
        session = Session(run, model.device, seed)
        return finish(run, dpo_loop.train(model.policy, held_to, groups, recipe.dpo, session, run.folder / "cache"))


def ppo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel | Verifier, *, reference: Model | None = None,
    demonstrations: Sequence[tuple[Text, str]] = (), max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Practise against a reward under a KL penalty. Settings of [ppo]; β and the penalty of an answer that was cut off are in
    units of your reward.

    `reward(prompts, answers)` gives a number for each answer, None where it cannot judge. The critic begins as the reward
    model where `reward` is one with the model's tokenizer, else as the model with a head of zeros. `demonstrations` are
    for `pretrain_coef`.
    """
    recipe = recipe_of("ppo", settings, seed, model=model, tokens=max_new_tokens)
    policy = model.policy
    asked = fitting(model, as_prompts(prompts), max_new_tokens)
    mixed_in = []
    if demonstrations:
        mixed_in = usable(encode_demonstrations(policy.template, demonstrations_of(demonstrations), model.limit))
    source = reward_source(reward, policy)
    data = [[prompt.id for prompt in asked], mixed_in, max_new_tokens]
    key = run_key("ppo", recipe, ("ppo",), model, data, reference, reward)
    with training(model, "ppo", key, recipe, folder, on_log) as (run, before):
        critic = beginning_critic(policy, source, recipe)
        actors = ppo_loop.Actors(policy, reference_of(model, reference, before), critic)
        session = RolloutSession(run, model.device, seed, new_engine(model.device), max_new_tokens)
        return finish(run, ppo_loop.train(actors, source, asked, mixed_in, recipe.ppo, session))


def beginning_critic(policy: Policy, source: Reward, recipe: Recipe) -> Scorer:
    """A second head on the policy's trunk, the reward model with a head of zeros, or the policy with one."""
    if recipe.ppo.shared_trunk:
        return shared_critic(policy.module)
    if isinstance(source, LearnedReward) and source.same_tokens:
        adapter = None if policy.adapter is None else policy.adapter.config
        return critic_from(source.model.module, adapter, generator(recipe.seed, "lora/critic"))
    return critic_from(scorer_from(policy.module, generator(recipe.seed, "critic")))


def grpo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel | Verifier, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Result:  # fmt: skip
    """Several answers to each prompt, the better ones reinforced; no critic. Settings of [grpo]; `reward` as in `ppo`."""
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise_in_memory("grpo", given, seed, settings)


def rloo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel | Verifier, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Result:  # fmt: skip
    """As `grpo`, each answer measured against the mean of the others, the KL in the reward. Settings of [rloo]."""
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise_in_memory("rloo", given, seed, settings)


def rebel(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel | Verifier, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Result:  # fmt: skip
    """Two answers to each prompt; their log-odds follow the difference of their rewards. Settings of [rebel]."""
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise_in_memory("rebel", given, seed, settings)


def best_of_n(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel | Verifier, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Result:  # fmt: skip
    """Answer each prompt several times, imitate the best, and again. Settings of [rejection]; `reference` for the log alone."""
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise_in_memory("best-of-n", given, seed, settings)


def online_dpo(
    model: Model, prompts: Sequence[Text], reward: Score | ScoreModel | Verifier, *, online_rounds: int = 3,
    reference: Model | None = None, max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None,
    on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """DPO on the model's own fresh answers, ranked by a reward, in rounds. Settings of [dpo]."""
    if online_rounds < 1:
        raise RecipeError(
            f"online_dpo needs online_rounds of at least 1, got {online_rounds}; for comparisons call `dpo`"
        )
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise_in_memory("dpo", given, seed, {**settings, "online_rounds": online_rounds})


def tune(
    method: str, model: Model, prompts: Sequence[Text], reward: Score | ScoreModel | Verifier, *, reference: Model | None = None,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None,
    **settings: object,
) -> Result:  # fmt: skip
    """Any method that learns from its own answers without a critic, by its name on the command line ("rloo"): also one of your own that
    the table of methods holds. Settings of its section."""
    known = [name for name, row in METHODS.items() if row.stage is practise and row.critic is None]
    if method not in known:
        raise UsageError(f"{method!r} is not a method that `tune` can run; {hint(method, known)}")
    given = Given(model, prompts, reward, reference, max_new_tokens, folder, on_log)
    return practise_in_memory(method, given, seed, settings)


def verifier(
    kind: str, expected: object, prompts: Sequence[Text] | None = None, *, seconds: float = 5.0, allow_execution: bool = False,
    unsafe_execution: bool = False,
) -> Verifier:  # fmt: skip
    """A reward that checks answers (docs/verifiers.md): against `expected`, the same for all, or, with `prompts`, against the entry of
    that list which stands at the prompt's place. An answer that was cut off is wrong. Raises DataError for what no answer could meet."""
    sandbox = Sandbox(allow_execution, unsafe_execution, seconds)
    if prompts is None:
        return same_check(check_of(kind, expected, sandbox))
    if not isinstance(expected, list) or len(expected) != len(prompts):
        raise DataError(
            f"{len(prompts)} prompts need a list of as many entries to check against, got {described_value(expected)}"
        )
    checks = {p.id: check_of(kind, one, sandbox) for p, one in zip(as_prompts(prompts), expected, strict=True)}
    return Verifier(lambda prompt: checks.get(prompt.id))


@dataclass(frozen=True)
class Given:
    """What a call that practises was given, besides its settings."""

    model: Model
    prompts: Sequence[Text]
    reward: Score | ScoreModel | Verifier
    reference: Model | None
    max_new_tokens: int
    folder: str | Path | None
    on_log: OnLog | None


def practise_in_memory(name: str, given: Given, seed: int, settings: Mapping[str, object]) -> Result:
    """Any method that needs no more than prompts and a reward."""
    method = METHODS[name]
    recipe = recipe_of(name, settings, seed, model=given.model, tokens=given.max_new_tokens)
    config, loop = dict(recipe)[method.section], dpo_loop.train_online if name == "dpo" else method.loop
    model, policy, tokens = given.model, given.model.policy, given.max_new_tokens
    asked = fitting(model, as_prompts(given.prompts), tokens)
    source = reward_source(given.reward, policy)
    data = [[prompt.id for prompt in asked], tokens]
    key = run_key(method.section, recipe, (method.section,), model, data, given.reference, given.reward)
    with training(model, method.section, key, recipe, given.folder, given.on_log) as (run, before):
        held_to = reference_of(model, given.reference, before)
        session = RolloutSession(run, model.device, seed, new_engine(model.device), tokens)
        return finish(run, loop(policy, held_to, source, asked, config, session))


def fitting(model: Model, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Prompt]:
    """The prompts that leave room for an answer, encoded."""
    return usable(prompts_that_fit(model.policy.template, prompts, max_new_tokens, model.limit))


def recipe_of(
    method: str, settings: Mapping[str, object], seed: int, *, more: Sequence[str] = (), without: frozenset[str] = frozenset(),
    model: Model | None = None, tokens: int = 0,
) -> Recipe:  # fmt: skip
    """The recipe with these settings of a method's section, and of `more`; an unknown one is an error that names the nearest. Those that
    are not given suit the size of a model that was brought, whose longest answer has so many `tokens`. Says what begins: no data is read
    yet."""
    names = (METHODS[method].section, *more)
    known = {
        key: f"{name}.{key}"
        for name in names
        for key in sections()[name].model_fields
        if key not in {*STAGES_ONLY[""], *STAGES_ONLY.get(name, ()), *without}
    }
    if takes_adapter(names[0]):
        known |= {
            f"lora_{key}": f"lora.{key}" for key in sections()["lora"].model_fields if key not in STAGES_ONLY["lora"]
        }
    for key in settings:
        if key not in known:
            raise RecipeError(f"{key!r} is not a setting of [{'] or ['.join(names)}]; {hint(key, list(known))}")
    adapts = model is not None and (model.policy.adapter is not None or bool(settings.get("lora_r")))
    brought = model is not None and model.brought
    suited = settings_by_size(model.parameters, model.limit, tokens, adapts) if model is not None and brought else {}
    chosen = {key: suited[dotted].value for key, dotted in known.items() if dotted in suited}
    dotted = {known[key]: value for key, value in {**chosen, **settings}.items()}
    recipe = Recipe().with_settings({"seed": seed, **dotted}, source="settings")
    if adapts:
        require_adamw(recipe, names[0])
    announce(method)
    if model is not None and brought:
        own = chosen.keys() - settings.keys()
        for line in lines_by_size(names[0], dict(recipe)[names[0]], model.parameters, own, adapts):
            quiet().say(line)
    return recipe
