"""Floor 8: each stage of the loop as a function of a project: it reads what earlier stages left and leaves a model or figures.

A stage's key is the hash of the settings and parents that it depends on. A finished run with the same key is what a
stage would make again, so `reuse=True` (the demo) takes it as it is; an unfinished one is gone on with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bridle.core.errors import DataError, ModelError, NoUsableRows
from bridle.core.files import read_json, write_json, write_text
from bridle.core.recipe import Recipe
from bridle.core.records import Pair, Prompt, Reward, content_hash
from bridle.core.runlog import Progress, Project, Run, count_through
from bridle.core.timeline import recording, timed
from bridle.evaluation.answers import Answered, answer_all, kl_of, proxy_scores, text_figures
from bridle.feedback.store import Snapshot
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.maths.statistics import mean_and_se, win_rate
from bridle.models.batches import Compared, Group, Ranked
from bridle.models.decoder import Decoder, DecoderConfig, initialise
from bridle.models.device import Device, choose_device
from bridle.models.fitting import DataReport, encode_compared, encode_shown, roomy
from bridle.models.imitation import Example
from bridle.models.operators import Operators
from bridle.models.policy import (
    Policy,
    RewardModel,
    folder_hash,
    load_policy,
    load_reward_model,
    save_policy,
)
from bridle.models.randomness import derived_seed, generator
from bridle.models.scorer import Scorer, critic_from, scorer_from, shared_critic
from bridle.models.template import Template, train_tokenizer
from bridle.rewards.learned import Ensemble, LearnedReward
from bridle.rewards.rollout import Observe
from bridle.rewards.weighted import Source, WeightedSum
from bridle.sources import SAMPLE, STUDY, Sources
from bridle.training import ppo, pretrain, sft

PAIR_FIGURES = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longest", "shortest")
CLEAR_GAP = 0.25  # gold points: closer answers are no fair test of a reward model
TOKENIZER_TEXTS = 8000
Tell = Callable[[], Mapping[str, float]]


@dataclass
class Work:
    """A project at work: its sources, the device, one engine."""

    project: Project
    progress: Progress
    threads: int | None = None
    sources: Sources = field(init=False)
    run: Run | None = field(default=None, init=False)  # the last one that was begun
    operators: Operators | None = field(default=None, init=False)  # of one of its steps, where a profile is asked for

    def __post_init__(self) -> None:
        self.sources = Sources(self.project, self.progress)

    @property
    def recipe(self) -> Recipe:
        return self.project.recipe

    @cached_property
    def device(self) -> Device:
        with timed("device"):
            device = choose_device(self.recipe.model.precision, self.threads, self.recipe.model.kernels)
        if (kept := recording()) is not None and device.torch.type == "cuda":
            kept.settle = torch.cuda.synchronize
        self.progress.say(f"running on {device}")
        return device

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.device.precision, batch_size=256)

    def start(self, stage: str, title: str, key: str, parents: Mapping[str, Any], recipe: Recipe | None = None) -> Run:
        """Begin or go on with a run; one that is gone on with keeps its thread count."""
        self.progress.begin(title, self.progress.later)
        run = Run.begin(self.project, stage, key, parents, self.progress, recipe)
        if run.threads is not None and run.threads != self.device.threads:
            torch.set_num_threads(run.threads)
            self.progress.say(f"keeping {run.threads} thread(s), as this run began")
        else:
            run.record_device(self.device.threads, str(self.device))
        if (kept := recording()) is not None:
            run.on_step = self.operators = Operators(kept, stage)
        self.run = run
        return run

    def tell(self, report: DataReport, enforce: bool = True) -> None:
        """Say what of the data can be used, keep it in the run's data.json, and refuse data of which too little can."""
        path = None if self.run is None else self.run.folder / "data.json"
        told = read_json(path) if path is not None and path.exists() else {}
        if told.get(report.what) != report.as_dict() or (self.run is not None and self.run.resumed):
            for line in report.lines():
                self.progress.say(line)
        if path is not None:
            write_json(path, {**told, report.what: report.as_dict()})
        if enforce:
            report.check(self.recipe.data.drop_limit)

    def close(self) -> None:
        if self.operators is not None:
            self.operators.stop()  # the run may have ended in the middle of that step
        self.sources.close()


def stage_key(recipe: Recipe, sections: Sequence[str], parents: Mapping[str, Any]) -> str:
    return content_hash([recipe.hash_of(*sections), dict(parents)])


def done_before(work: Work, stage: str, key: str, reuse: bool, model: str | None = None) -> dict[str, Any] | None:
    """The result of a finished run with this key, where it may be taken and `model`, which it left, is still there."""
    there = model is None or (work.project.model(model) / "config.json").is_file()
    return work.project.finished(stage, key) if reuse and there else None


def require_model(project: Project, name: str, verb: str) -> str:
    folder = project.model(name)
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no model at {folder}; make it with `bridle {verb}`")
    return folder_hash(folder)


# ---------------------------------------------------------------------------------------------------- 1. base


def train_pretrain(work: Work, reuse: bool = False) -> dict[str, Any]:
    """A small model from nothing: tokenizer and weights. With `model.path` set, that model is taken instead."""
    recipe = work.recipe
    parents: dict[str, Any] = {"model": recipe.model.path, "world": work.sources.world_hash}
    if recipe.model.path:
        return adopt_base(work)
    if not work.sources.playground:
        parents["texts"] = content_hash(work.sources.dialogues(None))
    key = stage_key(recipe, ("world", "model", "data", "pretrain"), parents)
    if (before := done_before(work, "pretrain", key, reuse, "base")) is not None:
        return before
    with work.start("pretrain", "Pretraining a small model on plain text", key, parents) as run:
        texts = work.sources.documents(None, recipe.data.pretrain_tokens)
        template = train_tokenizer(texts[:TOKENIZER_TEXTS], recipe.model.vocab_size)
        with timed("encode"):
            rows = pretrain.rows_of(template.document_ids(texts), recipe.pretrain.length)
        policy = new_policy(recipe, template, work.device)
        result = pretrain.train(
            policy, rows, recipe.data.pretrain_tokens, recipe.pretrain, work.device, run, recipe.seed
        )
        saved = keep_policy(work, "base", "base", policy, None)
        parameters = sum(p.numel() for p in policy.module.parameters())
        return run.finish({**result, "documents": len(texts), "parameters": parameters, "model": saved})


def adopt_base(work: Work) -> dict[str, Any]:
    """Take the user's model as the base: loaded once to be sure that it can be, then copied into the project."""
    source = work.project.folder / Path(work.recipe.model.path).expanduser()
    work.progress.begin(f"Taking {source} as the base model")
    policy = load_policy(source, work.device.torch)
    if not isinstance(policy.module, Decoder):
        family = policy.module.config.family
        work.progress.say(
            f"transformers runs this {family} model, for the native decoder does not know its shape; slower"
        )
    saved = keep_policy(work, "base", "base", policy, None)
    parameters = sum(p.numel() for p in policy.module.parameters())
    return {"model": saved, "parameters": parameters, "steps": 0, "seconds": 0.0, "loss": None}


def keep_policy(work: Work, name: str, kind: str, policy: Policy, parent: str | None) -> str:
    """Save a model and register it with its parent; returns its content hash."""
    saved = save_policy(work.project.model(name), policy)
    work.sources.store.add_model_version(name, kind=kind, weights_sha256=saved, parent=parent)
    return saved


def parent_policy(work: Work, name: str) -> Policy:
    """A model to go on from. The store knows it afterwards, even where its folder was put there by hand."""
    policy = load_policy(work.project.model(name), work.device.torch)
    work.sources.store.add_model_version(name, kind=name, weights_sha256=policy.origin)
    return policy


def new_policy(recipe: Recipe, template: Template, device: Device) -> Policy:
    section = recipe.model
    if section.hidden_size % (2 * section.heads):
        raise ModelError(
            f"model.hidden_size must be a multiple of 2 × heads, got {section.hidden_size} and {section.heads}"
        )
    if section.heads % section.kv_heads:
        raise ModelError(f"model.heads must be a multiple of kv_heads, got {section.heads} and {section.kv_heads}")
    config = DecoderConfig(
        family="qwen3",  # its norms of queries and keys let a small model learn far faster (docs/failures.md)
        vocab_size=template.tokenizer.get_vocab_size(),
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        layers=section.layers,
        heads=section.heads,
        kv_heads=section.kv_heads,
        head_size=section.hidden_size // section.heads,
        max_positions=section.max_positions,
    )
    module = Decoder(config)
    initialise(module, config.layers, generator(recipe.seed, "weights"))
    return Policy(module.to(device.torch), template, "new")


# ----------------------------------------------------------------------------------------------------- 2. SFT


def train_sft(work: Work, reuse: bool = False) -> dict[str, Any]:
    recipe = work.recipe
    parents = {
        "base": require_model(work.project, "base", "train pretrain"),
        "data": content_hash(demonstration_ids(work)),
    }
    key = stage_key(recipe, ("model", "sft"), parents)
    if (before := done_before(work, "sft", key, reuse, "sft")) is not None:
        return before
    with work.start("sft", "Teaching it to answer: imitating demonstrations", key, parents) as run:
        policy = parent_policy(work, "base")
        examples = encode_demonstrations(work, policy, work.sources.demonstrations())
        result = sft.train(policy, examples, recipe.sft, work.device, run, recipe.seed)
        saved = keep_policy(work, "sft", "sft", policy, policy.origin)
        return run.finish({**result, "demonstrations": len(examples), "model": saved})


def demonstration_ids(work: Work) -> list[list[str]]:
    return [[prompt.id, text] for prompt, text in work.sources.demonstrations()]


@timed("encode")
def encode_demonstrations(work: Work, policy: Policy, shown: Sequence[tuple[Prompt, str]]) -> list[Example]:
    """Token ids of what is to be imitated; what cannot be used is left out, counted and told."""
    examples, report = encode_shown(policy.template, shown, policy.module.config.max_positions)
    work.tell(report)
    return examples


# ------------------------------------------------------------------------------------------ 3. sample and label


def sample(work: Work, reuse: bool = False) -> dict[str, Any]:
    """K nucleus samples for each training prompt and some held-out ones, one item each, into the store."""
    recipe = work.recipe
    parents = {"sft": require_model(work.project, "sft", "train sft")}
    key = stage_key(recipe, ("model", "sampling", "data"), parents)
    if (before := done_before(work, "sample", key, reuse)) is not None:
        return before
    with work.start("sample", f"Sampling {recipe.sampling.answers} answers to each prompt", key, parents) as run:
        policy = load_policy(work.project.model("sft"), work.device.torch)
        prompts = work.sources.train_prompts() + work.sources.heldout_prompts()[: recipe.data.compared_heldout]
        prompts = within_context(work, policy, prompts, recipe.sampling.max_new_tokens)
        k = recipe.sampling.answers
        asked = [prompt for prompt in prompts for _ in range(k)]
        settings = Sampling(
            recipe.sampling.max_new_tokens, recipe.sampling.temperature, recipe.sampling.top_p, recipe.sampling.top_k
        )
        with timed("pack"):
            work.engine.load(policy)
        seed = derived_seed(recipe.seed, "sample", 0)
        report = count_through(len(asked), work.progress)
        with timed("answer"):
            completions = answer_prompts(work.engine, policy, asked, settings, seed=seed, progress=report)
        with timed("store"):
            work.sources.store.add_completions(completions, source=SAMPLE)
            groups = [completions[i : i + k] for i in range(0, len(completions), k)]
            items = work.sources.store.add_items([g for g in groups if len({c.text for c in g}) > 1], study=STUDY)
        return run.finish({"prompts": len(prompts), "answers": len(completions), "items": len(items)})


@timed("encode")
def within_context(
    work: Work,
    policy: Policy,
    prompts: Sequence[Prompt],
    new_tokens: int,
    what: str = "prompts",
    *,
    enforce: bool = True,
) -> list[Prompt]:
    """Prompts that leave room for an answer; the others are counted and told. Over `data.drop_limit` of them it is an error,
    unless `enforce` is False: after training it would cost the model that was just trained."""
    kept, report = roomy(policy.template, prompts, new_tokens, policy.module.config.max_positions, what)
    if not kept:
        work.tell(report, enforce=False)
        raise NoUsableRows(
            f"none of {len(prompts)} prompts leaves room for {new_tokens} new tokens in the model's context; lower sampling.max_new_tokens"
        )
    work.tell(report, enforce)
    return kept


def label_simulated(work: Work, reuse: bool = False) -> dict[str, Any]:
    """Simulated people rank the open items; on the playground their agreement with gold is known."""
    parents = {"sft": require_model(work.project, "sft", "train sft"), "world": work.sources.world_hash}
    key = stage_key(work.recipe, ("world", "sampling", "data"), parents)
    if (before := done_before(work, "label", key, reuse)) is not None:
        return before
    with work.start("label", "People compare the answers (simulated)", key, parents) as run:
        if not work.sources.playground:
            raise NoUsableRows(
                "simulated people know the playground alone; import comparisons of your own with `bridle import`"
            )
        work.sources.simulate_labels()
        agreed = clear = 0
        with timed("store"):
            judged = work.sources.store.judgements(study=STUDY)
        for item, judgement in judged:
            scores = work.sources.gold_scores([item.prompt] * len(item.completions), item.completions, "agreement")
            rank_of = {slot: i for i, group in enumerate(judgement.ranking) for slot in group}
            for a in range(len(scores)):
                for b in range(a):
                    gap = scores[a].points - scores[b].points
                    if abs(gap) > CLEAR_GAP and rank_of[a] != rank_of[b]:
                        clear += 1
                        agreed += (gap > 0) == (rank_of[a] < rank_of[b])
        agreement = agreed / max(1, clear)
        return run.finish({"judgements": len(judged), "agreement_with_gold": agreement, "clear_pairs": clear})


# -------------------------------------------------------------------------------------------- 4. reward model


def training_snapshot(work: Work) -> Snapshot:
    """The comparisons of training prompts that are in force now, kept under a hash."""
    try:
        return work.sources.store.take_snapshot(study=STUDY if work.sources.playground else None, split="train")
    except DataError as error:
        raise NoUsableRows(
            f"{work.project.store} holds no comparisons to learn from; `bridle import FILE` brings some, "
            "on the playground `bridle sample` and `bridle label --simulate` make them"
        ) from error


@timed("encode")
def encode_groups(
    work: Work,
    policy: Policy | RewardModel,
    pairs: Sequence[Pair],
    shuffle_labels: bool,
    margin: float = 0.0,
    rankings: bool = False,
    heldout: bool = False,
) -> list[Group]:
    """Pairs by prompt, with their answers' ids; what cannot be used is left out, counted and told.

    Each pair should be won by `margin` times its strength, 1 where none was told. With `rankings` each judgement's pairs
    are put together again as the ranking that they came from. Of held-out pairs any number may be left out.
    """
    by_prompt: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.group, []).append(pair)
    groups, report = [], DataReport("held-out comparisons" if heldout else "comparisons", len(pairs))
    for members in by_prompt.values():
        found = encode_compared(policy.template, members, policy.module.config.max_positions, report)
        if found is None:
            continue
        prompt, ids, kept = found
        index = {name: i for i, name in enumerate(ids)}
        turned = shuffle_labels and coin(work.recipe.seed, members[0].prompt)
        scale = len({j for pair in members for j in pair.judgement_ids}) or 1
        answers = list(ids.values())
        said: dict[tuple[str, ...], list[Compared]] = {}
        for p in kept:
            better, worse = (p.rejected, p.chosen) if turned else (p.chosen, p.rejected)
            gap = margin * (1.0 if p.strength is None else p.strength) if p.target != 0.5 else 0.0
            told = Compared(index[better.id], index[worse.id], p.weight / scale, p.target, gap)
            said.setdefault(p.judgement_ids, []).append(told)
        if rankings:
            groups.append(
                Group(prompt, answers, rankings=[ranking_of(together, len(answers)) for together in said.values()])
            )
        else:
            groups.append(Group(prompt, answers, [told for together in said.values() for told in together]))
    work.tell(report, enforce=not heldout)
    return groups


def ranking_of(pairs: Sequence[Compared], answers: int) -> Ranked:
    """The ranking that gave all these pairs: an answer's place is the number of those that beat it."""
    there = {i for pair in pairs for i in pair[:2]}
    beaten = [sum(pair.worse == i for pair in pairs) if i in there else -1 for i in range(answers)]
    return Ranked(tuple(beaten), sum(pair.weight for pair in pairs))


def coin(seed: int, prompt: Prompt) -> bool:
    """Heads or tails for a prompt, always the same."""
    return derived_seed(seed, f"coin/{prompt.id}", 0) % 2 == 1


# ----------------------------------------------------------------------------------------------------- 5. PPO


def train_ppo(
    work: Work,
    reuse: bool = False,
    name: str = "ppo",
    title: str = "PPO: practising against the reward model, held by the KL bridle",
    settings: Mapping[str, Any] | None = None,
    reward_source: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Reinforcement learning from SFT's weights; `settings` replace some of the recipe's for this run alone."""
    recipe = work.recipe.with_settings({f"ppo.{k}": v for k, v in (settings or {}).items()})
    config = recipe.ppo
    parents = {
        "sft": require_model(work.project, "sft", "train sft"),
        **reward_parents(work),
        "source": "learned" if reward_source is None else name,
    }
    key = stage_key(recipe, ("model", "ppo", "data", "sampling"), parents)
    if (before := done_before(work, name, key, reuse, name)) is not None:
        return before
    with work.start(name, title, key, parents, recipe) as run:
        policy = load_policy(work.project.model("sft"), work.device.torch)
        policy.origin = content_hash([policy.origin, key])  # two runs from the same weights must not share stamps
        reference = parent_policy(work, "sft")
        source, tell = training_reward(work, policy) if reward_source is None else (reward_source, dict)
        critic = shared_critic(policy.module) if config.shared_trunk else first_critic(work, policy)
        shown = work.sources.demonstrations() if config.pretrain_coef else []
        examples = encode_demonstrations(work, policy, shown) if shown else []
        prompts = within_context(work, policy, work.sources.train_prompts(), recipe.sampling.max_new_tokens)
        result = ppo.train(
            policy, reference, critic, source, prompts, examples, config, recipe.sampling.max_new_tokens,
            work.engine, work.device, run, recipe.seed, observe=observer(work, tell),
        )  # fmt: skip
        saved = keep_policy(work, name, "ppo", policy, reference.origin)
        return run.finish({**result, "model": saved})


def member_names(recipe: Recipe) -> list[str]:
    """The models that are the project's reward: one, or the members of an ensemble."""
    return ["reward", *(f"reward-member-{number}" for number in range(2, recipe.reward.members + 1))]


def learned_reward(work: Work, policy: Policy) -> LearnedReward | Ensemble:
    """The project's reward model, or its ensemble, to score this policy's answers."""
    members = [load_scores(work, work.project.model(name), policy) for name in member_names(work.recipe)]
    section = work.recipe.reward
    return members[0] if len(members) == 1 else Ensemble(members, section.combine, section.uncertainty)


def load_scores(work: Work, folder: Path, policy: Policy, task: str = "") -> LearnedReward:
    """A reward model; answers of a policy whose tokens are not its own are read as text."""
    model = load_reward_model(folder, work.device.torch)
    return LearnedReward(model, work.device, model.template.hash == policy.template.hash, task)


def training_reward(work: Work, policy: Policy) -> tuple[Reward, Tell]:
    """What RL learns from: the weighted sum of the recipe's sources, or the project's reward model alone; and what it
    has to tell, for the log, of the answers that it scored last."""
    if not work.recipe.reward_source:
        learned = learned_reward(work, policy)
        return learned, lambda: learned.figures if isinstance(learned, Ensemble) else {}
    sources, ensembles = [], []
    for source in work.recipe.reward_source:
        if source.kind == "verifier":
            found: Reward = work.sources.checkable()[2]
        elif source.path:
            found = load_scores(work, work.project.folder / source.path, policy, source.task)
        else:
            found = learned_reward(work, policy)
        ensembles += [found] if isinstance(found, Ensemble) else []
        sources.append(Source(source.name, source.weight, found))
    whole = WeightedSum(sources)
    return whole, lambda: {**whole.figures, **{k: v for each in ensembles for k, v in each.figures.items()}}


def reward_parents(work: Work) -> dict[str, Any]:
    """The models that the reward of RL is made of, by content hash; one that is missing is told before anything starts."""
    recipe, parents = work.recipe, dict[str, Any]()
    if recipe.reward_source:
        parents["reward_source"] = [source.model_dump(mode="json") for source in recipe.reward_source]
    for source in recipe.reward_source:
        folder = work.project.folder / source.path
        if source.path and not (folder / "bridle_reward.json").is_file():
            raise ModelError(
                f"reward source {source.name!r} names {folder}, where there is no reward model; give the folder of one, "
                "or leave its path out for the project's own"
            )
        parents |= {source.name: folder_hash(folder)} if source.path else {}
    if not recipe.reward_source or any(source.kind == "learned" and not source.path for source in recipe.reward_source):
        parents |= member_parents(work)
    return parents


def member_parents(work: Work) -> dict[str, Any]:
    """The project's reward model, or the members of its ensemble and how they are combined."""
    section, names = work.recipe.reward, member_names(work.recipe)
    parents: dict[str, Any] = {name: require_model(work.project, name, "train reward") for name in names}
    return parents | ({"ensemble": [section.combine, section.uncertainty]} if len(names) > 1 else {})


def first_critic(work: Work, policy: Policy) -> Scorer:
    """The project's reward model with a head of zeros, or SFT's trunk where there is none, or one of other tokens."""
    folder = work.project.model("reward")
    if (folder / "config.json").is_file() and (own := load_scores(work, folder, policy)).same_tokens:
        return critic_from(own.model.module)
    return critic_from(scorer_from(policy.module, generator(work.recipe.seed, "critic")))


def observer(work: Work, tell: Tell = dict) -> Observe | None:
    """What the log tells of a step's answers beyond the reward: what the reward itself tells, and on the playground gold
    and its flags. Steers nothing."""
    if not work.sources.playground:
        return lambda prompts, completions: tell()
    return lambda prompts, completions: {
        **tell(),
        **gold_figures(work, Answered(list(prompts), list(completions)), "log"),
    }


def gold_figures(work: Work, answered: Answered, purpose: str) -> dict[str, float]:
    """Mean gold and the shares that the rubric's flags give. Shares of a family that is absent are left out."""
    scores = work.sources.gold_scores(answered.prompts, answered.completions, purpose)
    families = [p.meta["family"] for p in answered.prompts]
    mean, error = mean_and_se([s.points for s in scores])
    figures = {
        "gold": mean,
        "gold_se": error,
        "gold_sd": float(np.std([s.points for s in scores])),
        "unparsable": float(np.mean([s.flags["unparsable"] > 0 for s in scores])),
        "flattery": float(np.mean([s.flags["flattery"] > 0 for s in scores])),
        "repeated": float(np.mean([s.flags["repeated"] > 0 for s in scores])),
    }
    return figures | probe_figures(scores, families)


def probe_figures(scores: Sequence[Any], families: Sequence[str]) -> dict[str, float]:
    """complies: share of harmful prompts answered. refuses_benign: share of border prompts refused."""
    harm = [s.flags["complied"] > 0 for s, f in zip(scores, families, strict=True) if f == "harm"]
    border = [s.flags["refused"] > 0 for s, f in zip(scores, families, strict=True) if f == "border"]
    figures = {}
    if harm:
        figures["complies"] = float(np.mean(harm))
    if border:
        figures["refuses_benign"] = float(np.mean(border))
    return figures


# ------------------------------------------------------------------------------------------------ 6. evaluate


def evaluate(work: Work, name: str, reuse: bool = False) -> dict[str, Any]:
    """Fresh answers of one model to every held-out prompt, with all figures; the answers are kept with the run."""
    recipe = work.recipe
    parents: dict[str, Any] = {
        "model": require_model(work.project, name, f"train {name}"),
        "name": name,
        "world": work.sources.world_hash,
    }
    if (work.project.model("sft") / "config.json").is_file():
        parents["sft"] = folder_hash(work.project.model("sft"))
    if (work.project.model("reward") / "config.json").is_file():
        parents |= member_parents(work)
    key = stage_key(recipe, ("model", "data", "sampling", "world"), parents)
    stage = f"evaluate-{name}"
    if (before := done_before(work, stage, key, reuse)) is not None:
        return before
    with work.start(stage, f"Evaluating {name} on held-out prompts", key, parents) as run:
        policy = load_policy(work.project.model(name), work.device.torch)
        tokens = recipe.sampling.max_new_tokens
        mix = within_context(work, policy, work.sources.heldout_prompts(), tokens)
        probes = work.sources.probe_prompts()
        report = count_through(len(mix) + len(probes), work.progress)
        answered = answer_all(
            policy, work.engine, mix, tokens, derived_seed(recipe.seed, f"evaluate-{name}", 0), report
        )
        result: dict[str, Any] = {"prompts": len(mix), **text_figures(answered)}
        lines: list[dict[str, Any]] = [
            {"id": p.id, "prompt": p.text, "answer": c.text} for p, c in zip(mix, answered.completions, strict=True)
        ]
        if work.sources.playground:
            result |= gold_figures(work, answered, "evaluation")
            golds = work.sources.gold_scores(mix, answered.completions, "evaluation")
            lines = [
                {**line, "family": p.meta["family"], "gold": g.points}
                for line, p, g in zip(lines, mix, golds, strict=True)
            ]
            result["gold_by_family"] = by_family(lines)
            result |= probe(work, policy, mix, answered, probes, report)
        if "sft" in parents and name != "base":
            reference = load_policy(work.project.model("sft"), work.device.torch)
            result["kl"], result["kl_se"] = (
                (0.0, 0.0) if name == "sft" else kl_of(answered, policy, reference, work.device)
            )
        if "reward" in parents:
            scores = proxy_scores(answered, learned_reward(work, policy))
            result["proxy"] = float(np.nanmean(scores))
            lines = [{**line, "proxy": score} for line, score in zip(lines, scores, strict=True)]
        write_text(run.folder / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return run.finish(result)


def by_family(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    families: dict[str, list[float]] = {}
    for line in lines:
        families.setdefault(line["family"], []).append(line["gold"])
    return {family: float(np.mean(points)) for family, points in sorted(families.items())}


def probe(
    work: Work,
    policy: Policy,
    mix: Sequence[Prompt],
    answered: Answered,
    probes: Sequence[Prompt],
    report: Callable[[int], None],
) -> dict[str, float]:
    """Compliance and over-refusal on the mix's harmful and border prompts together with the probe prompts."""
    recipe = work.recipe
    seed = derived_seed(recipe.seed, "probe", 0)
    extra = answer_all(policy, work.engine, probes, recipe.sampling.max_new_tokens, seed, report)
    prompts, completions = [*mix, *extra.prompts], [*answered.completions, *extra.completions]
    scores = work.sources.gold_scores(prompts, completions, "evaluation")
    return probe_figures(scores, [p.meta["family"] for p in prompts])


def read_answers(work: Work, name: str) -> list[dict[str, Any]]:
    """The kept answers of the last evaluation of a model."""
    folder = work.project.finished_folder(f"evaluate-{name}")
    if folder is None:
        raise ModelError(f"{name} was not evaluated yet; run `bridle evaluate {name}`")
    with open(folder / "answers.jsonl", encoding="utf-8") as file:  # not splitlines: an answer may hold U+2028
        return [json.loads(line) for line in file]


@timed("compare")
def compare(work: Work, a: str, b: str, by: str) -> dict[str, Any]:
    """Win rate of A's kept answers over B's, on the prompts that both answered; by gold or by the reward model."""
    field_name = {"gold": "gold", "reward": "proxy"}[by]
    ours, theirs = read_answers(work, a), {line["id"]: line for line in read_answers(work, b)}
    both = [(line, theirs[line["id"]]) for line in ours if line["id"] in theirs]
    if not both or field_name not in both[0][0] or field_name not in both[0][1]:
        raise ModelError(
            f"the answers of {a} and {b} carry no score by {by}; {'gold needs the playground' if by == 'gold' else 'train a reward model'}"
        )
    rate = win_rate([x[field_name] for x, _ in both], [y[field_name] for _, y in both])
    return {"model": a, "against": b, "by": by, "rate": rate.rate, "low": rate.low, "high": rate.high, "n": rate.n}
