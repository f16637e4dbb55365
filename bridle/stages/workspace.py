"""A project at work: its data, the device, the engine, and what every stage does with them.

A stage's key is the hash of the settings and parents that it depends on. A finished run with the same key is what a stage would
make again, so `reuse` (the demo) takes it as it is; an unfinished one is resumed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from bridle.compute.device import Device, as_begun, choose_as, choose_device, require_room
from bridle.compute.operators import Operators
from bridle.compute.parallel import from_first, require_same, world_size
from bridle.compute.randomness import derived_seed
from bridle.compute.trackers import tracked
from bridle.compute.workers import Start
from bridle.core.errors import ModelError, UsageError
from bridle.core.files import write_json
from bridle.core.records import Prompt, Reward, content_hash
from bridle.core.timeline import recording, timed
from bridle.evaluation.answers import Answered, answer_all
from bridle.feedback.store.store import LearntFrom, Store
from bridle.generation.engine import Engine
from bridle.guard.health import Health
from bridle.models.contents import weight_files
from bridle.models.decoder import Decoder
from bridle.models.encoding import DataReport, prompts_that_fit
from bridle.models.files.agreement import notes_of_taking
from bridle.models.files.chat_template import PLAIN_TEMPLATE, TemplateSettings, settings_of
from bridle.models.files.hub import PINS, check_pinned
from bridle.models.lora.merging import as_whole, keep_adapter
from bridle.models.policy import (
    Policy,
    load_policy,
    read_config,
    read_tasks,
    require_head,
    save_policy,
)
from bridle.models.scorer import Scorer
from bridle.models.sizes import elements_of, planned_shape, stored_shapes
from bridle.models.template import Template, load_template
from bridle.project.kept import read_data, read_parents
from bridle.project.lock import held
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run, Until
from bridle.recipe.by_size import odd_rates
from bridle.recipe.recipe import Recipe, require_adamw, takes_adapter, trained_names
from bridle.rewards.judge.endpoint import Endpoint
from bridle.rewards.judge.judge import Judge
from bridle.stages.data import PlaygroundData, StoreData
from bridle.stages.lineage import Lineage, model_name
from bridle.stages.registry import Registry, open_store

Rows = TypeVar("Rows")
Count = Callable[[int], None]  # how many more are done

# Which method leaves a model that is not called after it; None: no method leaves a model of this name.
MAKERS = {"base": "pretrain", "pretrain": None, "arithmetic": "grpo", "reward-slim": "reward"}
NOTHING = LearntFrom()
WAY_ON = "resume it where that can be had, or all the same, to other weights, with --set guard.other_arithmetic=true"


@dataclass
class Work:
    """A project at work. Its store is opened when first asked for. `wait`: for another process that is at work on the same, in place of
    ending there. `start_workers`: processes beside this one, where it may have some."""

    project: Project
    progress: Progress
    threads: int | None = None
    wait: bool = False
    start_workers: Start | None = None
    run: Run | None = field(default=None, init=False)  # the last one that was begun
    operators: Operators | None = field(default=None, init=False)  # of one of its steps, where a profile is asked for
    opened: Store | None = field(default=None, init=False)
    warnings: list[str] = field(default_factory=list, init=False)  # those given, each once
    alone_on: set[str] = field(default_factory=set, init=False)  # the models whose locks are held
    parents: Mapping[Path, str] = field(
        default_factory=dict, init=False
    )  # models that the run comes from, as its key has them
    judge: Judge | None = field(default=None, init=False)  # made once, by stages/judge.py
    asked: Endpoint | None = field(default=None, init=False)  # what stands behind it, if it is elsewhere
    closing: ExitStack = field(default_factory=ExitStack, init=False)  # what is closed at the end

    @property
    def recipe(self) -> Recipe:
        return self.project.recipe

    @property
    def store(self) -> Store:
        if self.opened is None:
            self.opened = open_store(self.project)
        return self.opened

    @property
    def registry(self) -> Registry:
        return Registry(self.project)

    @cached_property
    def data(self) -> PlaygroundData | StoreData:
        chosen = PlaygroundData if self.recipe.data.source == "playground" else StoreData
        return chosen(self.project, lambda: self.store)

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

    @contextmanager
    def alone(self, stage: str) -> Iterator[None]:
        """Keep other processes from a stage, and from the model that it leaves, while the block runs: what is there is read, and what to
        do about it decided, inside. ProjectError where one is at work, unless this one may wait."""
        model = model_name(stage)
        self.project.place_for(model)  # refused before an hour of training, not after it
        if model in self.alone_on:
            yield
            return
        place = next(iter(self.project.runs(stage)[-1:]), self.project.folder / "runs")
        wait, lock = self.progress.say if self.wait else None, ExitStack()
        with lock:
            from_first(lambda: lock.enter_context(held(self.project.lock(model), place, wait)))
            self.alone_on.add(model)
            try:
                yield
            finally:
                self.alone_on.remove(model)

    @contextmanager
    def start(
        self, stage: str, title: str, key: str, parents: Mapping[str, Any], recipe: Recipe | None = None
    ) -> Iterator[Run]:
        """Begin or resume a run; one that is resumed keeps its threads and its arithmetic. Warns where a parent is stale."""
        with self.alone(stage), ExitStack() as scratch:
            self.progress.begin(title, self.progress.later)
            self.parents = self.warn_of_stale({"stage": stage, **parents})
            require_same(self.shared_by_ranks(key, parents))
            led = list[Run]()

            def begin() -> dict[str, Any]:
                led.append(run := Run.begin(self.project, stage, key, parents, self.progress, recipe))
                shared = {"threads": run.threads, "resumed": run.resumed, "noted": read_parents(run.folder)}
                return {"stage": stage, "key": key, "leader": run.folder, **shared}

            found = from_first(begin)
            if not led:
                place = Path(scratch.enter_context(TemporaryDirectory(prefix="bridle-")))
                led.append(Run.follow(place, self.progress, recipe or self.recipe, found))
            run = led[0]
            run.watch = Health(run.limits)
            if (kept := recording()) is not None:
                run.on_step = self.operators = Operators(kept, stage)
            self.run, usual = run, self.device
            try:
                with run, tracked(run, recipe or self.recipe, self.project.folder.name):
                    self.compute_on(self.device_of(run))
                    yield run
            finally:
                self.parents = {}
                if self.device is not usual:
                    choose_as(usual.arithmetic, usual.threads)
                    self.compute_on(usual)

    def shared_by_ranks(self, key: str, parents: Mapping[str, Any]) -> dict[str, Any]:
        """What ranks that share a run must have alike, each by what it is called in an error."""
        versions = {"the version of bridle": version("bridle"), **self.device.arithmetic}
        hashes = {f"the hash of this run's {name}": value for name, value in parents.items()}
        return {**versions, **hashes, "the hash of this run's settings and parents": key}

    def device_of(self, run: Run) -> Device:
        """The device of a run, noted with it: a resumed one's is as it began, or another where the recipe allows that."""
        allowed = run.limits.other_arithmetic
        device, sentences, other = as_begun(run.noted, self.device, run.folder, WAY_ON, allowed)
        for sentence in sentences:
            self.progress.say(sentence)
        run.record_device(device.threads, str(device), device.arithmetic, other)
        return device

    def compute_on(self, device: Device) -> None:
        if device is not self.device:
            self.device, self.engine = device, Engine(device.precision, batch_size=256)

    def warn_of_stale(self, noted: Mapping[str, Any]) -> Mapping[Path, str]:
        """Warn where a model among a run's parents descends from another than the project holds now; these models, and their content."""
        lineage = Lineage(self.project)
        parents = lineage.parents(noted)
        self.warn(lineage.stale(parents))
        return parents

    def check_unchanged(self, folder: Path, content: str, then: str = "") -> None:
        """Refuse a model that was loaded for a run where another process has put it there since the run's key was made."""
        expected = then or self.parents.get(folder, content)
        if content != expected:
            raise ModelError(
                f"{folder} was replaced by another process while this one began, so what it would leave were of two models; run the same "
                "command again"
            )

    def warn(self, sentences: Iterable[str]) -> None:
        """Print each of these once in a session."""
        for sentence in sentences:
            if sentence not in self.warnings:
                self.warnings.append(sentence)
                self.progress.say(sentence)

    def usable(self, found: tuple[list[Rows], DataReport], enforce: bool = True) -> list[Rows]:
        """The rows that can be used. Prints what became of the others and keeps it in the run's data.json; refuses data of which too
        little can be used, unless `enforce` is False: after training it would cost the model that was just trained."""
        rows, report = found
        before = {} if self.run is None else read_data(self.run.folder)
        if before.get(report.what) != report.as_dict() or (self.run is not None and self.run.resumed):
            for line in report.lines():
                self.progress.say(line)
        if self.run is not None:
            write_json(self.run.folder / "data.json", {**before, report.what: report.as_dict()})
        if enforce:
            report.check(self.recipe.data.drop_limit)
        return rows

    def fitting(
        self, policy: Policy, prompts: Sequence[Prompt], what: str = "prompts", enforce: bool = True
    ) -> list[Prompt]:
        """The prompts that leave room for an answer, encoded."""
        tokens, limit = self.recipe.sampling.max_new_tokens, policy.module.config.max_positions
        return self.usable(prompts_that_fit(policy.template, prompts, tokens, limit, what), enforce)

    def answer(
        self, policy: Policy, prompts: Sequence[Prompt], label: str, number: int = 0, progress: Count | None = None
    ) -> Answered:
        """One fresh answer to each prompt; `label` and `number` name the random numbers."""
        tokens, seed = self.recipe.sampling.max_new_tokens, derived_seed(self.recipe.seed, label, number)
        return answer_all(policy, self.engine, prompts, tokens, seed, progress)

    def keep_policy(
        self, name: str, kind: str, policy: Policy, parent: str | None, learnt: LearntFrom = NOTHING
    ) -> str:
        """Save a model and register it with its parent and what it learnt from besides; returns its content hash."""
        place = self.project.model(name)

        def save() -> str:
            if self.project.shares_base(place):
                place.unlink()  # it was another name of the base, which stays
            return save_policy(place, policy, lambda folder: self.register(folder, kind, parent, learnt))

        return from_first(save)

    def register(self, folder: Path, kind: str, parent: str | None, learnt: LearntFrom = NOTHING) -> str:
        """Register a model that is being saved; returns its content hash. The run that leaves it notes it before it takes its place."""
        content = self.registry.register(folder, self.store, kind, parent, learnt)
        if self.run is not None and self.parents:  # it is at work
            self.run.note(leaves=content)
        return content

    def take_base(self, policy: Policy | None = None) -> dict[str, Any]:
        """Keep the user's model, which `model.path` names, as the base; `policy`: as it was read already. What was done, in words."""
        source = self.project.folder / Path(self.recipe.model.path).expanduser()
        began = time.monotonic()
        self.progress.begin(f"Taking your model {source} as the base: nothing is pretrained")
        with self.alone("pretrain"):
            if policy is None:  # only to be written again
                check_pinned(self.project.folder / PINS, source)
                with as_whole(source) as place:
                    policy = load_policy(place, torch.device("cpu"), settings=settings_of(self.recipe.model))
                    for note in notes_of_taking(policy, place):
                        self.progress.say(note)
            if not isinstance(policy.module, Decoder):
                family = policy.module.config.family
                self.progress.say(
                    f"transformers runs this {family} model, for the native decoder does not know its shape; slower"
                )
            if left := policy.source.left_out:
                more = f" and {len(left) - 4} more" if len(left) > 4 else ""
                self.progress.say(f"not copied, for no setting is in it: {', '.join(left[:4])}{more}")
            saved = self.keep_policy("base", "base", policy, None)
            keep_adapter(source, self.project.model("base"))
            also = self.share_base(policy.template)
        return {
            "base": f"your model is taken as the base: {source}; {also}",
            "parameters": sum(p.numel() for p in policy.module.parameters()),
            "seconds": round(time.monotonic() - began, 2),
            "model": saved,
        }

    def share_base(self, template: Template) -> str:
        """Let a base with a chat template of its own be `sft` too, where nothing was trained under that name: one folder with two names,
        for it may have gigabytes. What `sft` is then, in words."""
        place = self.project.model("sft")
        shared = self.project.shares_base(place)
        if not shared and (place.exists() or place.is_symlink()):
            return "models/sft stays as it is"
        if template.source == PLAIN_TEMPLATE:
            if shared:  # with the base before this one
                place.unlink()
            return "it has no chat template, so `bridle train sft` comes first"
        if not shared:
            place.symlink_to("base")
        self.register(place, "sft", None)
        return "it has a chat template of its own, so it is sft too, until `bridle train sft` makes another"

    def find_base(self) -> None:
        """Take the user's model where it was not taken yet, as base and as what else it is."""

        def find() -> None:
            if (base := self.project.model("base")).joinpath("config.json").is_file():
                self.share_base(load_template(base))
            else:
                self.progress.say(self.take_base()["base"])

        with self.alone("pretrain"):
            from_first(find)

    def warn_of_rates(self, name: str) -> None:
        """Warn where a rate of a trainer's section would undo what the user's model has learnt, or hardly move an adapter."""
        places = [self.project.model("base"), self.project.folder / Path(self.recipe.model.path).expanduser()]
        with suppress(ModelError):  # which a stage reports that needs the model
            there = next((place for place in places if (place / "config.json").is_file()), None)
            if there is not None:
                parameters = elements_of(stored_shapes(weight_files(there)))
                self.warn(odd_rates(name, dict(self.recipe)[name], parameters, self.recipe.lora.on))

    def require_memory(self, section: str, recipe: Recipe) -> None:
        """ModelError where this machine has less memory than a method needs at least: before anything is read, or trained."""
        places = [self.project.folder / Path(recipe.model.path).expanduser(), self.project.model("base")]
        try:
            shape = planned_shape(recipe.model, *places)
        except ModelError:  # a GGUF file that was not taken yet, or a fault that a stage reports
            return
        require_room(section, recipe, shape)

    def load_policy(self, name: str, kept: Path | None = None, frozen: bool = False) -> Policy:
        """A model of the project, or what is `kept` of it as a run began with it. The store knows it afterwards, even where its folder was
        put there by hand; ModelError where it is not what was registered. `frozen`: nothing but an adapter will train it."""
        policy = self.read_policy(kept or self.project.model(name), frozen=frozen)
        self.store.add_model_version(name, kind=name, weights_sha256=policy.origin)
        return policy

    def read_policy(self, folder: Path, content: str = "", frozen: bool = False) -> Policy:
        """A model that is only asked. ModelError where it is not what was registered, nor the one of the run's key or of this `content`."""
        held = self.recipe.model.frozen_precision if frozen else "float32"
        policy = load_policy(folder, self.device.torch, self.verify, self.template_settings(folder), held)
        self.check_unchanged(folder, policy.origin, content)
        return policy

    def template_settings(self, folder: Path) -> TemplateSettings | None:
        """The recipe's for a model of the project; None for one elsewhere, which brings its own."""
        places = (self.project.folder / "models", self.project.folder / "references")
        return settings_of(self.recipe.model) if folder.parent in places else None

    def verify(self, folder: Path) -> str:
        """The content hash of a model that is about to be used. What lies in `models/` is refused where it is not what was registered
        under that name; elsewhere, as a reward source, it is what it is."""
        registry = self.registry
        return registry.verify(folder, self.store) if registry.holds(folder) else registry.content(folder)

    def load_reference(self, name: str, policy: Policy, kept: Path | None = None) -> Policy:
        """The model that a policy is held to, which must read the same tokens."""
        reference = self.load_policy(name, kept, frozen=True)
        if reference.template.hash != policy.template.hash:
            raise ModelError(
                f"the reference {name} has another tokenizer or chat template than the model that begins, so its log-probs cannot be "
                "compared; name a reference that descends from the same base"
            )
        return reference

    def close(self) -> None:
        self.closing.close()
        if self.operators is not None:
            self.operators.stop()  # the run may have ended in the middle of that step
        if self.opened is not None:
            self.opened.close()
            self.opened = None


@dataclass(frozen=True)
class Variant:
    """How one run of a method differs from what the recipe says: `settings` replace some of its section's, `reward` scores in place of
    what the recipe names (a control's, the caller's own), `until` may end it early, and then the guard does not."""

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    reward: Reward | None = None
    reuse: bool = False
    until: Until | None = None

    def only(self, method: Method, *taken: str) -> None:
        """Refuse what this stage does not take, so that nothing that was asked for is left out in silence."""
        asked = {
            "name": self.name != method.name,
            "title": self.title != method.title,
            "settings": bool(self.settings),
            "reward": self.reward is not None,
            "end": self.until is not None,
        }
        if odd := [what for what, given in asked.items() if given and what not in taken]:
            raise UsageError(
                f"{method.name} takes no {' and no '.join(odd)} of its own; change the recipe, or leave them out"
            )


@dataclass(frozen=True)
class Method:
    """A way to train: its section of the recipe, what to call it, the stage that runs it, and the loop of `training/` that learns.

    `name` is that of the model it leaves. A loop with a `critic` gets `ppo.Actors` where others get policy and reference, and
    demonstrations besides.
    """

    name: str
    section: str
    title: str
    stage: Callable[[Work, Method, Variant], dict[str, Any]]
    loop: Callable[..., dict[str, float]]
    critic: Callable[[Work, Policy], Scorer] | None = None

    def train(
        self,
        work: Work,
        *,
        name: str = "",
        title: str = "",
        settings: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
        reuse: bool = False,
        until: Until | None = None,
    ) -> dict[str, Any]:
        """Run the stage in a project; returns its result. `name` is of the run and the model, by default the method's."""
        variant = Variant(name or self.name, title or self.title, settings or {}, reward, reuse, until)
        if work.recipe.scale.workers not in (1, world_size()):
            raise UsageError(
                f"scale.workers = {work.recipe.scale.workers}, and only `bridle train` starts ranks; train by it, or set scale.workers "
                "to 1 here"
            )
        if world_size() > 1:
            from_first(lambda: bool(work.store))  # made by one, where there is none yet
        with work.alone(variant.name):
            if work.recipe.lora.on and takes_adapter(self.section):
                require_adamw(self.recipe(work, variant), self.section)
            if work.recipe.model.path and self.name != "pretrain":
                work.warn_of_rates(self.section)
            if not work.recipe.model.path or self.name != "pretrain":  # else it is only taken
                work.require_memory(self.section, self.recipe(work, variant))
            return self.stage(work, self, variant)

    def recipe(self, work: Work, variant: Variant) -> Recipe:
        """The project's recipe with the variant's settings in the method's section."""
        return work.recipe.with_settings({f"{self.section}.{key}": value for key, value in variant.settings.items()})


def stage_key(recipe: Recipe, sections: Sequence[str], parents: Mapping[str, Any]) -> str:
    return content_hash([recipe.hash_of(*sections), dict(parents)])


def done_before(work: Work, stage: str, key: str, reuse: bool, model: str | None = None) -> dict[str, Any] | None:
    """The result of a finished run with this key, where it may be taken and `model`, which it left, is still there. Warns as the run
    itself would: what its parents descend from is not in the key."""
    there = model is None or (work.project.model(model) / "config.json").is_file()
    folder, found = work.project.finished_folder(stage), work.project.finished(stage, key) if reuse and there else None
    if folder is not None and found is not None:
        work.warn_of_stale(read_parents(folder))
    return found


def require_model(work: Work, name: str, scores: bool = False) -> str:
    """The content hash of a language model of the project, or of a reward model where one that `scores` is meant; ModelError where there
    is none, where what should answer can only score, or where its bytes are not those that were registered: before a run begins."""
    project = work.project
    folder = project.model(name)
    if name in ("base", "sft") and work.recipe.model.path and not (folder / "config.json").is_file():
        work.find_base()
    if not (folder / "config.json").is_file():
        usual = "reward" if re.fullmatch(r"reward-(member-)?\d+", name) else name
        maker = MAKERS.get(name, usual if usual in trained_names() else None)
        maker = None if maker == "reward" and not scores else maker
        models = [path.parent for path in (project.folder / "models").glob("*/config.json")]
        there = sorted(model.name for model in models if (model / "bridle_reward.json").is_file() == scores)
        found = ", ".join(there) or "none yet, and `bridle train pretrain` makes the first, called base"
        made = f"make it with `bridle train {maker}`" if maker else f"the project has {found}"
        raise ModelError(f"there is no model at {folder}; {made}")
    if scores and not (folder / "bridle_reward.json").is_file():
        read_tasks(folder)  # says so
    if not scores:
        require_head(folder, read_config(folder))
    return work.verify(folder)
