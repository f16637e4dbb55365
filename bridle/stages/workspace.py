"""A project at work: its data, the device, the engine, and what every stage does with them.

A stage's key is the hash of the settings and parents that it depends on. A finished run with the same key is what a stage would
make again, so `reuse` (the demo) takes it as it is; an unfinished one is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch

from bridle.compute.device import Device, choose_device
from bridle.compute.operators import Operators
from bridle.compute.randomness import derived_seed
from bridle.core.errors import ModelError, UsageError
from bridle.core.files import read_json, write_json
from bridle.core.records import Prompt, Reward, content_hash
from bridle.core.timeline import recording, timed
from bridle.evaluation.answers import Answered, answer_all
from bridle.feedback.store.store import Store
from bridle.generation.engine import Engine
from bridle.guard.health import Health
from bridle.models.encoding import DataReport, prompts_that_fit
from bridle.models.policy import Policy, folder_hash, load_policy, save_policy
from bridle.models.scorer import Scorer
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import Recipe, trained_names
from bridle.stages.data import PlaygroundData, StoreData

Rows = TypeVar("Rows")
Count = Callable[[int], None]  # how many more are done


@dataclass
class Work:
    """A project at work. Its store is opened when first asked for."""

    project: Project
    progress: Progress
    threads: int | None = None
    run: Run | None = field(default=None, init=False)  # the last one that was begun
    operators: Operators | None = field(default=None, init=False)  # of one of its steps, where a profile is asked for
    opened: Store | None = field(default=None, init=False)

    @property
    def recipe(self) -> Recipe:
        return self.project.recipe

    @property
    def store(self) -> Store:
        if self.opened is None:
            self.opened = Store.open(self.project.store)
        return self.opened

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

    def start(self, stage: str, title: str, key: str, parents: Mapping[str, Any], recipe: Recipe | None = None) -> Run:
        """Begin or resume a run; one that is resumed keeps its thread count."""
        self.progress.begin(title, self.progress.later)
        run = Run.begin(self.project, stage, key, parents, self.progress, recipe)
        run.watch = Health(run.limits)
        if run.threads is not None and run.threads != self.device.threads:
            torch.set_num_threads(run.threads)
            self.progress.say(f"keeping {run.threads} thread(s), as this run began")
        else:
            run.record_device(self.device.threads, str(self.device))
        if (kept := recording()) is not None:
            run.on_step = self.operators = Operators(kept, stage)
        self.run = run
        return run

    def usable(self, found: tuple[list[Rows], DataReport], enforce: bool = True) -> list[Rows]:
        """The rows that can be used. Prints what became of the others and keeps it in the run's data.json; refuses data of which too
        little can be used, unless `enforce` is False: after training it would cost the model that was just trained."""
        rows, report = found
        path = None if self.run is None else self.run.folder / "data.json"
        before = read_json(path) if path is not None and path.exists() else {}
        if before.get(report.what) != report.as_dict() or (self.run is not None and self.run.resumed):
            for line in report.lines():
                self.progress.say(line)
        if path is not None:
            write_json(path, {**before, report.what: report.as_dict()})
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

    def keep_policy(self, name: str, kind: str, policy: Policy, parent: str | None) -> str:
        """Save a model and register it with its parent; returns its content hash."""
        saved = save_policy(self.project.model(name), policy)
        self.store.add_model_version(name, kind=kind, weights_sha256=saved, parent=parent)
        return saved

    def load_policy(self, name: str) -> Policy:
        """A model of the project. The store knows it afterwards, even where its folder was put there by hand."""
        policy = load_policy(self.project.model(name), self.device.torch)
        self.store.add_model_version(name, kind=name, weights_sha256=policy.origin)
        return policy

    def load_reference(self, name: str, policy: Policy) -> Policy:
        """The model that a policy is held to, which must read the same tokens."""
        reference = self.load_policy(name)
        if reference.template.hash != policy.template.hash:
            raise ModelError(
                f"the reference {name} has another tokenizer or chat template than the model that begins, so its log-probs cannot be "
                "compared; name a reference that descends from the same base"
            )
        return reference

    def close(self) -> None:
        if self.operators is not None:
            self.operators.stop()  # the run may have ended in the middle of that step
        if self.opened is not None:
            self.opened.close()
            self.opened = None


@dataclass(frozen=True)
class Variant:
    """How one run of a method differs from what the recipe says: `settings` replace some of its section's, `reward` scores in place of
    what the recipe names (a control's, the caller's own)."""

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    reward: Reward | None = None
    reuse: bool = False

    def only(self, method: Method, *taken: str) -> None:
        """Refuse what this stage does not take, so that nothing that was asked for is left out in silence."""
        asked = {
            "name": self.name != method.name,
            "title": self.title != method.title,
            "settings": bool(self.settings),
            "reward": self.reward is not None,
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
    ) -> dict[str, Any]:
        """Run the stage in a project; returns its result. `name` is of the run and the model, by default the method's."""
        return self.stage(work, self, Variant(name or self.name, title or self.title, settings or {}, reward, reuse))

    def recipe(self, work: Work, variant: Variant) -> Recipe:
        """The project's recipe with the variant's settings in the method's section."""
        return work.recipe.with_settings({f"{self.section}.{key}": value for key, value in variant.settings.items()})


def stage_key(recipe: Recipe, sections: Sequence[str], parents: Mapping[str, Any]) -> str:
    return content_hash([recipe.hash_of(*sections), dict(parents)])


def done_before(work: Work, stage: str, key: str, reuse: bool, model: str | None = None) -> dict[str, Any] | None:
    """The result of a finished run with this key, where it may be taken and `model`, which it left, is still there."""
    there = model is None or (work.project.model(model) / "config.json").is_file()
    return work.project.finished(stage, key) if reuse and there else None


def require_model(project: Project, name: str) -> str:
    """The content hash of a model of the project; ModelError where there is none."""
    folder = project.model(name)
    if not (folder / "config.json").is_file():
        maker = {"base": "pretrain"}.get(name, "reward" if name.startswith("reward") else name)
        there = sorted(path.parent.name for path in project.model(name).parent.glob("*/config.json"))
        found = f"the project has {', '.join(there)}" if there else "the project has none yet"
        made = f"make it with `bridle train {maker}`" if maker in trained_names() else found
        raise ModelError(f"there is no model at {folder}; {made}")
    return folder_hash(folder)
