"""Each trainer as a function: the loops of `bridle/training/`, which the command line runs too, on models and data in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.api.evals import Evaluation, loss_and_accuracy, mean_reward, whole_in_parts
from bridle.api.inputs import (
    Comparisons,
    Examples,
    Judged,
    Prompts,
    Text,
    as_prompts,
    demonstrations_of,
    judged_of,
    preferences_of,
    prompts_of,
)
from bridle.api.models import (
    NEW_TOKENS,
    Model,
    Result,
    ScoreModel,
    chosen_device,
    new_engine,
    quiet,
    usable,
)
from bridle.api.rewards import Judge, identity, prompt_keys, reward_source
from bridle.api.rows import row_list
from bridle.api.runs import announce, finish, reference_of, run_key, training, words_of_own
from bridle.api.settings import CALLS, Call, own_objects, with_settings
from bridle.compute.device import require_room
from bridle.compute.randomness import derived_seed, drawn, generator
from bridle.compute.steps import Session
from bridle.core.errors import DataError, RecipeError, UsageError, described_value
from bridle.core.records import Prompt, Reward
from bridle.evaluation.answers import answer_all
from bridle.generation.rollout import RolloutSession
from bridle.models.batches import Cut, Group
from bridle.models.encoding import (
    encode_demonstrations,
    encode_documents,
    encode_pairs,
    encode_ratings,
    prompts_that_fit,
)
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.imitation import Example, imitate
from bridle.models.lora.frozen import is_narrow
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy, RewardModel, with_exact_base
from bridle.models.scorer import Scorer, critic_from, scorer_from, shared_critic
from bridle.project.run import OnLog
from bridle.recipe.by_size import lines_by_size, settings_by_size
from bridle.recipe.offline import NO_REFERENCE
from bridle.recipe.recipe import Recipe, hint, require_adamw
from bridle.rewards.learned import LearnedReward, task_scores
from bridle.rewards.sandbox.kinds import Sandbox
from bridle.rewards.verifiers import Verifier, check_of, same_check
from bridle.stages.data import TOKENIZER_TEXTS, used_note
from bridle.stages.methods import METHODS
from bridle.stages.practice import practise
from bridle.stages.pretrain import new_policy
from bridle.stages.reward import CENTRED_ON
from bridle.training import dpo as dpo_loop
from bridle.training import kto as kto_loop
from bridle.training import ppo as ppo_loop
from bridle.training import pretrain as pretrain_loop
from bridle.training import reward as reward_loop
from bridle.training import sft as sft_loop

EVAL = "eval"  # what rows are for that are not learnt from


@with_settings
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
    texts = row_list(texts, "texts")
    recipe = recipe_of(CALLS["pretrain"], settings, seed)
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


@with_settings
def sft(
    model: Model, examples: Examples, *, eval: Examples = (), eval_every: int = 0, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Imitate answers, given as (prompt, answer) or rows. `eval`: the same of what is not learnt, whose loss is measured every
    `eval_every` steps (0: about ten times) and at the end. Settings of [sft]."""
    recipe = recipe_of(CALLS["sft"], settings, seed, model=model)
    encoded, held = examples_of(model, examples), examples_of(model, eval, EVAL) if eval else []
    key = run_key("sft", recipe, ("sft",), model, encoded)
    with training(model, "sft", key, recipe, folder, on_log) as (run, _):
        if held:
            at_once = Cut(recipe.sft.batch_size, recipe.sft.micro_tokens)
            run.evaluate = Evaluation(eval_every, lambda: {"loss": imitate(model.policy, held, model.device, at_once)})
        return finish(run, sft_loop.train(model.policy, encoded, recipe.sft, Session(run, model.device, seed)))


@with_settings
def reward_model(
    model: Model, pairs: Comparisons, *, eval: Comparisons = (), eval_every: int = 0,
    max_new_tokens: int = NEW_TOKENS, seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> ScoreModel:  # fmt: skip
    """A reward model from comparisons, given as (prompt, better answer, worse answer), on a copy of the model's trunk.

    Its scores are centred and scaled on answers of `model` to up to 256 of the prompts, drawn by the seed. `eval` and `eval_every`
    as in `sft`: loss and accuracy. Settings of [reward].
    """
    rows = row_list(pairs, "comparisons")
    margins = margins_of(rows, settings)
    recipe = recipe_of(CALLS["reward_model"], {**settings, **margins}, seed, model=model)
    if margins:
        quiet().say("margins: the rows' column counts as it is (margin = 1); margin=0 leaves it out")
    policy, section = model.policy, recipe.reward
    compared = preferences_of(rows)
    groups = usable(encode_pairs(policy.template, compared, model.limit, margin=section.margin))
    held = comparisons_of(model, eval, section.margin, EVAL) if eval else []
    key = run_key("reward", recipe, ("reward",), model, [[g.prompt, g.answers, g.pairs] for g in groups])
    begins = learner(policy, recipe.lora, generator(seed, "lora")) if recipe.lora.on else policy
    head = scorer_from(begins.module, generator(seed, "head"))
    scorer = RewardModel(
        head, policy.template, key, source=policy.source, adapter=begins.adapter, rounded=policy.rounded
    )
    with training(model, "reward", key, recipe, folder, on_log) as (run, _):
        device = model.device
        session = Session(run, device, seed)
        if held:
            whole = whole_in_parts(section)
            run.evaluate = Evaluation(
                eval_every, lambda: loss_and_accuracy(reward_loop.judge(scorer, held, whole, device))
            )
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


@with_settings
def dpo(
    model: Model, pairs: Comparisons, *, reference: Model | None = None, eval: Comparisons = (), eval_every: int = 0,
    seed: int = 0, folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Learn from comparisons, given as (prompt, better answer, worse answer), with no reward model. Settings of [dpo].

    `reference` holds the model; None: the model as it is when the call begins. With loss "simpo" there is none. `eval` and
    `eval_every` as in `sft`: loss and accuracy.
    """
    recipe = recipe_of(CALLS["dpo"], settings, seed, model=model)
    if reference is not None and recipe.dpo.loss in NO_REFERENCE:
        raise UsageError(
            f"loss = {recipe.dpo.loss!r} has no reference, and one was given; leave it out, or choose loss = 'dpo'"
        )
    groups, held = comparisons_of(model, pairs), comparisons_of(model, eval, of=EVAL) if eval else []
    data = [[g.prompt, g.answers, g.pairs] for g in groups]
    key = run_key("dpo", recipe, ("dpo",), model, data, reference)
    with training(model, "dpo", key, recipe, folder, on_log) as (run, before):
        held_to = None if recipe.dpo.loss in NO_REFERENCE else reference_of(model, reference, before)
        session, cache = Session(run, model.device, seed), run.folder / "cache"
        if held:
            whole = whole_in_parts(recipe.dpo)
            known = dpo_loop.read_reference(held_to, held, whole, session, cache)
            run.evaluate = Evaluation(
                eval_every,
                lambda: loss_and_accuracy(dpo_loop.compare_answers(model.policy, held, known, whole, model.device)),
            )
        return finish(run, dpo_loop.train(model.policy, held_to, groups, recipe.dpo, session, cache))


@with_settings
def kto(
    model: Model, rows: Judged, *, reference: Model | None = None, seed: int = 0, folder: str | Path | None = None,
    on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Learn from answers that are good or bad, each by itself, with no reward model.

    A row is (prompt, answer, True or False): `("My cat is bored.", "Play with it.", True)`. A comparison, (prompt, better answer, worse
    answer), is a good answer and a bad one; rows of both kinds may be mixed, and rows by columns have `label`. There
    must be good and bad answers, to two prompts at least.
    `reference` as in `dpo`.
    """
    recipe = recipe_of(CALLS["kto"], settings, seed, model=model)
    template, (pairs, votes) = model.policy.template, judged_of(rows)
    groups = usable(encode_pairs(template, pairs, model.limit)) if pairs else []
    groups += usable(encode_ratings(template, votes, model.limit, "votes", "votes")) if votes else []
    data = [[g.prompt, g.answers, g.pairs, g.ratings] for g in groups]
    key = run_key("kto", recipe, ("kto",), model, data, reference)
    with training(model, "kto", key, recipe, folder, on_log) as (run, before):
        held_to, session = reference_of(model, reference, before), Session(run, model.device, seed)
        return finish(run, kto_loop.train(model.policy, held_to, groups, recipe.kto, session, run.folder / "cache"))


@with_settings
def orpo(
    model: Model, pairs: Comparisons, *, seed: int = 0, folder: str | Path | None = None,
    on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Imitate the better answers of comparisons, away from the worse ones; there is no reference.

    A row is (prompt, better answer, worse answer), as for `dpo`. It stands in for SFT too: the model may be one that was never tuned.
    """
    if "reference" in settings:
        raise UsageError("ORPO has no reference, and one was given; leave it out, or call dpo or kto")
    recipe = recipe_of(CALLS["orpo"], settings, seed, model=model)
    groups = usable(encode_pairs(model.policy.template, preferences_of(pairs), model.limit))
    key = run_key("orpo", recipe, ("orpo",), model, [[g.prompt, g.answers, g.pairs] for g in groups])
    with training(model, "orpo", key, recipe, folder, on_log) as (run, _):
        session = Session(run, model.device, seed)
        return finish(run, dpo_loop.train(model.policy, None, groups, recipe.orpo, session, run.folder / "cache"))


@with_settings
def ppo(
    model: Model, prompts: Prompts, reward: Judge, *, reward_weights: Sequence[float] | None = None, reference: Model | None = None,
    demonstrations: Examples = (), eval: Prompts = (), eval_every: int = 0, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Practise against a reward under a KL penalty. Settings of [ppo]; β and the penalty of an answer that was cut off are in
    units of your reward.

    `reward(prompts, answers)` gives a number for each answer, None where it cannot judge. The critic begins as the reward
    model where `reward` is one with the model's tokenizer, else as the model with a head of zeros. `demonstrations` are
    for `pretrain_coef`. `eval`: prompts that are not practised on, to which a fresh answer each is scored every `eval_every` steps (0:
    about ten times) and at the end.
    """
    recipe = recipe_of(CALLS["ppo"], settings, seed, model=model, tokens=max_new_tokens)
    policy = model.policy
    asked = fitting(model, prompts_of(prompts), max_new_tokens)
    mixed_in = examples_of(model, demonstrations) if demonstrations else []
    source = reward_source(reward, reward_weights, policy, asked)
    held = fitting(model, prompts_of(eval), max_new_tokens, EVAL) if eval else []
    judge = reward_source(reward, reward_weights, policy, held) if held else source
    data = [prompt_keys(asked), mixed_in, max_new_tokens]
    key = run_key("ppo", recipe, ("ppo",), model, data, reference, identity(reward, reward_weights))
    with training(model, "ppo", key, recipe, folder, on_log) as (run, before):
        critic = beginning_critic(policy, source, recipe)
        actors = ppo_loop.Actors(policy, reference_of(model, reference, before), critic)
        session = RolloutSession(run, model.device, seed, new_engine(model.device), max_new_tokens)
        if held:
            run.evaluate = Evaluation(eval_every, lambda: mean_reward(policy, held, judge, recipe.ppo, session))
        return finish(run, ppo_loop.train(actors, source, asked, mixed_in, recipe.ppo, session))


def beginning_critic(policy: Policy, source: Reward, recipe: Recipe) -> Scorer:
    """A second head on the policy's trunk, the reward model with a head of zeros, or the policy with one."""
    if recipe.ppo.shared_trunk:
        return shared_critic(policy.module)
    if isinstance(source, LearnedReward) and source.same_tokens:
        adapter = None if policy.adapter is None else policy.adapter.config
        # It learns whole beside a policy that does: then the reward model's matrices in bfloat16 are no beginning.
        begins = (source.model if adapter else with_exact_base(source.model)).module.to(source.device.torch)
        return critic_from(begins, adapter, generator(recipe.seed, "lora/critic"))
    return critic_from(scorer_from(policy.module, generator(recipe.seed, "critic")))


@with_settings
def grpo(
    model: Model, prompts: Prompts, reward: Judge, *, reward_weights: Sequence[float] | None = None, reference: Model | None = None,
    eval: Prompts = (), eval_every: int = 0, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Several answers to each prompt, the better ones reinforced; no critic. Settings of [grpo]; `reward`, `eval` as in `ppo`."""
    given = Given(model, prompts, reward, reward_weights, reference, eval, eval_every, max_new_tokens, folder, on_log)
    return practise_in_memory("grpo", given, seed, settings)


@with_settings
def rloo(
    model: Model, prompts: Prompts, reward: Judge, *, reward_weights: Sequence[float] | None = None, reference: Model | None = None,
    eval: Prompts = (), eval_every: int = 0, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """As `grpo`, each answer measured against the mean of the others, the KL in the reward. Settings of [rloo]."""
    given = Given(model, prompts, reward, reward_weights, reference, eval, eval_every, max_new_tokens, folder, on_log)
    return practise_in_memory("rloo", given, seed, settings)


@with_settings
def rebel(
    model: Model, prompts: Prompts, reward: Judge, *, reward_weights: Sequence[float] | None = None, reference: Model | None = None,
    eval: Prompts = (), eval_every: int = 0, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Two answers to each prompt; their log-odds follow the difference of their rewards. Settings of [rebel]."""
    given = Given(model, prompts, reward, reward_weights, reference, eval, eval_every, max_new_tokens, folder, on_log)
    return practise_in_memory("rebel", given, seed, settings)


@with_settings
def best_of_n(
    model: Model, prompts: Prompts, reward: Judge, *, reward_weights: Sequence[float] | None = None, reference: Model | None = None,
    eval: Prompts = (), eval_every: int = 0, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Answer each prompt several times, imitate the best, and again. Settings of [rejection]; `reference` for the log alone."""
    given = Given(model, prompts, reward, reward_weights, reference, eval, eval_every, max_new_tokens, folder, on_log)
    return practise_in_memory("best-of-n", given, seed, settings)


@with_settings
def online_dpo(
    model: Model, prompts: Prompts, reward: Judge, *, reward_weights: Sequence[float] | None = None, online_rounds: int = 3,
    reference: Model | None = None, eval: Prompts = (), eval_every: int = 0, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """DPO on the model's own fresh answers, ranked by a reward, in rounds. Settings of [dpo]."""
    if online_rounds < 1:
        raise RecipeError(
            f"online_dpo needs online_rounds of at least 1, got {online_rounds}; for comparisons call `dpo`"
        )
    given = Given(model, prompts, reward, reward_weights, reference, eval, eval_every, max_new_tokens, folder, on_log)
    return practise_in_memory("dpo", given, seed, {**settings, "online_rounds": online_rounds})


def tune(
    method: str, model: Model, prompts: Prompts, reward: Judge, *, reward_weights: Sequence[float] | None = None,
    reference: Model | None = None, eval: Prompts = (), eval_every: int = 0, max_new_tokens: int = NEW_TOKENS, seed: int = 0,
    folder: str | Path | None = None, on_log: OnLog | None = None, **settings: object,
) -> Result:  # fmt: skip
    """Any method that learns from its own answers without a critic, by its name on the command line ("rloo"): also one of your own that
    the table of methods holds. Settings of its section."""
    known = [name for name, row in METHODS.items() if row.stage is practise and row.critic is None]
    if method not in known:
        raise UsageError(f"{method!r} is not a method that `tune` can run; {hint(method, known)}")
    given = Given(model, prompts, reward, reward_weights, reference, eval, eval_every, max_new_tokens, folder, on_log)
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
    prompts: Prompts
    reward: Judge
    weights: Sequence[float] | None
    reference: Model | None
    eval: Prompts
    eval_every: int
    max_new_tokens: int
    folder: str | Path | None
    on_log: OnLog | None


def practise_in_memory(name: str, given: Given, seed: int, settings: Mapping[str, object]) -> Result:
    """Any method that needs no more than prompts and a reward."""
    method = METHODS[name]
    recipe = recipe_of(Call(name), settings, seed, model=given.model, tokens=given.max_new_tokens)
    config, loop = dict(recipe)[method.section], dpo_loop.train_online if name == "dpo" else method.loop
    model, policy, tokens = given.model, given.model.policy, given.max_new_tokens
    asked = fitting(model, prompts_of(given.prompts), tokens)
    source = reward_source(given.reward, given.weights, policy, asked)
    held = fitting(model, prompts_of(given.eval), tokens, EVAL) if given.eval else []
    judge = reward_source(given.reward, given.weights, policy, held) if held else source
    data, compared = [prompt_keys(asked), tokens], identity(given.reward, given.weights)
    key = run_key(method.section, recipe, (method.section,), model, data, given.reference, compared)
    with training(model, method.section, key, recipe, given.folder, given.on_log) as (run, before):
        held_to = reference_of(model, given.reference, before)
        session = RolloutSession(run, model.device, seed, new_engine(model.device), tokens)
        if held:
            run.evaluate = Evaluation(given.eval_every, lambda: mean_reward(policy, held, judge, config, session))
        return finish(run, loop(policy, held_to, source, asked, config, session))


def comparisons_of(model: Model, given: Comparisons, margin: float = 0.0, of: str = "") -> list[Group]:
    """Comparisons, encoded by prompt."""
    return usable(encode_pairs(model.policy.template, preferences_of(given), model.limit, margin=margin), of)


def examples_of(model: Model, given: Examples, of: str = "") -> list[Example]:
    """What is imitated, encoded: answers to prompts, and texts that are learnt whole."""
    rows, template = demonstrations_of(given), model.policy.template
    answers, texts = [row for row in rows if not isinstance(row, str)], [row for row in rows if isinstance(row, str)]
    found = usable(encode_demonstrations(template, answers, model.limit), of) if answers or not texts else []
    return [*found, *(usable(encode_documents(template, texts, model.limit), of) if texts else [])]


def margins_of(rows: Sequence[Any], settings: Mapping[str, object]) -> dict[str, object]:
    """The setting by which a column `margin` counts as it is, where there is one and nothing was said of it."""
    stated = bool(rows) and isinstance(rows[0], Mapping) and "margin" in rows[0]
    return {"margin": 1.0} if stated and "margin" not in settings else {}


def fitting(model: Model, prompts: Sequence[Prompt], max_new_tokens: int, of: str = "") -> list[Prompt]:
    """The prompts that leave room for an answer, encoded."""
    return usable(prompts_that_fit(model.policy.template, prompts, max_new_tokens, model.limit), of)


def recipe_of(
    call: Call, settings: Mapping[str, object], seed: int, *, model: Model | None = None, tokens: int = 0
) -> Recipe:  # fmt: skip
    """The recipe with these settings of a call. Those that are not given suit the size of a model that was brought, whose longest answer
    has so many `tokens`. Says what begins: no data is read yet."""
    settings, own = own_objects(settings)
    given, name = call.dotted(settings), call.section
    adapts = model is not None and (model.policy.adapter is not None or bool(given.get("lora.r")))
    brought = model is not None and model.brought
    if model is not None and not adapts and is_narrow(model.policy.module):
        raise UsageError(
            "the model's matrices are held in fewer bits than float32, where an adapter alone can learn; give lora_r, 16 is usual, or load "
            "it without frozen_precision"
        )
    suited = settings_by_size(model.parameters, model.limit, tokens, adapts) if model is not None and brought else {}
    chosen = {dotted: suited[dotted].value for dotted in call.settings.values() if dotted in suited}
    recipe = Recipe().with_settings({"seed": seed, **chosen, **given}, source="settings")
    if own:
        recipe = recipe.model_copy(update={name: dict(recipe)[name].bringing(own)})
        quiet().say(f"yours: {words_of_own(recipe)}")
    if adapts:
        require_adamw(recipe, name)
    if model is not None:
        require_room(name, recipe, model.shape)
    announce(call.method)
    if model is not None and brought:
        by_size = {dotted.removeprefix(f"{name}.") for dotted in chosen.keys() - given.keys()}
        for line in lines_by_size(name, dict(recipe)[name], model.parameters, by_size, adapts):
            quiet().say(line)
    return recipe
