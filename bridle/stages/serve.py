"""A model to be served: one of the project, or a folder, with what picks among its answers; or whatever is promoted, as that changes.

following = Following(work, work.recipe)        # UsageError where nothing is promoted
scheduler = Scheduler(following.load, …)
with following.kept_up(scheduler, metrics): …   # looks again every few seconds, and puts what is promoted now in its place
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bridle.compute.device import choose_device, choose_threads
from bridle.core.errors import BridleError, ModelError, ProjectError, UsageError
from bridle.core.records import Completion, Prompt, Reward, Scores
from bridle.feedback.serving.forgetting import forget_user
from bridle.feedback.serving.promotion import Served, served_now
from bridle.feedback.store.store import Store
from bridle.feedback.store.versions import Version, model_versions
from bridle.feedback.upkeep.takedown import Takedown
from bridle.generation.batch import BatchLimits
from bridle.generation.engine import Engine
from bridle.models.files.chat_template import OWN_FILES, PLAIN_TEMPLATE
from bridle.models.policy import Policy, inspect_policy, load_policy
from bridle.project.names import is_name
from bridle.recipe.recipe import Recipe
from bridle.rewards.learned import LearnedReward
from bridle.serve.chat.keeping import ASKED_TO, Forget
from bridle.serve.metrics import ServeMetrics
from bridle.serve.problems import log
from bridle.serve.scheduler import Roster, Scheduler, ServedModel
from bridle.stages.lineage import Lineage
from bridle.stages.rewards import learned_reward, load_scores
from bridle.stages.workspace import Work, require_model

TRIED_AGAIN = 60.0  # seconds after which what could not be loaded is tried again


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


def load_served(
    work: Work | None, recipe: Recipe, folder: Path, name: str, version: Version | None = None
) -> ServedModel:
    """Load it, with threads that leave a core to the server. `version`: whose weights they must be, where what is promoted is served."""
    threads = recipe.serve.threads or max(1, choose_threads(None)[0] - 1)
    device = choose_device(recipe.model.precision, threads, recipe.model.kernels)
    if work is None:
        policy, reward = load_policy(folder, device.torch), None
    else:
        work.device = device
        policy = work.read_policy(folder, "" if version is None else version.hash)
        reward = picking_reward(work, policy)
    base = work is not None and folder.resolve() == work.project.model("base").resolve()
    title = "" if version is None else version.name
    no_chat = without_chat(folder, policy, title or name, base or title == "base")
    return ServedModel(name, policy, Engine(device.precision), BatchLimits(recipe.serve.batch), no_chat, reward, title)


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


# ------------------------------------------------------------------------------------------------ what is promoted


def require_served(work: Work) -> Served:
    """UsageError where nothing is promoted."""
    now = served_now(work.store)
    if now.content is None:
        raise UsageError(
            "nothing is promoted yet, so there is nothing to serve; `bridle models promote NAME` says which model is to be served, and "
            "`bridle serve NAME` serves one without that"
        )
    return now


def promoted_folder(work: Work, version: Version) -> Path:
    """Where the weights of a version lie: kept by their hash when it was promoted, else in models/. ModelError where they are gone."""
    kept = work.project.reference(version.hash)
    if kept.is_dir():
        return kept
    names = [name for content, name in work.registry.present().items() if content == version.hash]
    if not names:
        raise ModelError(
            f"the weights of {version.name} ({version.hash[:15]}…) are neither in {kept} nor in models/; promote a version that is there "
            "(`bridle models list` marks them)"
        )
    return work.project.model(names[0])


@dataclass
class Following:
    """The models that are promoted, each loaded once. One that cannot be loaded is reported and counted, what answers now goes on, and it
    is tried again after a while."""

    work: Work
    recipe: Recipe
    loaded: dict[str, ServedModel] = field(default_factory=dict)  # by the hash of their weights
    seen: Served | None = None  # what is served is this; None: not all of it could be loaded
    patience: float = 0.0  # when that is tried again (time.monotonic)

    def __post_init__(self) -> None:
        require_served(self.work)

    def load(self) -> ServedModel:
        """What is served, to begin with; the first look adds the others."""
        return self.model(str(require_served(self.work).content))

    def model(self, content: str) -> ServedModel:
        if content not in self.loaded:
            version = next(one for one in model_versions(self.work.store) if one.hash == content)
            folder = promoted_folder(self.work, version)
            self.loaded[content] = load_served(self.work, self.recipe, folder, self.recipe.serve.name, version)
        return self.loaded[content]

    @contextmanager
    def kept_up(self, scheduler: Scheduler, metrics: ServeMetrics) -> Iterator[None]:
        """In a thread of its own, while the block runs."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(self.recipe.serve.look_seconds):
                self.look(scheduler, metrics)

        thread = threading.Thread(
            target=run, name="following", daemon=True
        )  # a model that is being loaded keeps nobody
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def look(self, scheduler: Scheduler, metrics: ServeMetrics) -> None:
        """Serve what is promoted now, if that has changed; what cannot be loaded is reported."""
        if scheduler.roster is None:
            return
        failed = list[str]()
        try:
            now = served_now(self.work.store)
        except Exception as error:  # whatever it is, the next look may find it gone
            traced = not isinstance(error, BridleError)
            log.error("what is promoted cannot be read, and what answers now goes on: %s", error, exc_info=traced)
            metrics.store_failures.inc()
            return
        if now == self.seen or (self.seen is None and time.monotonic() < self.patience):
            return
        roster = self.roster(now, scheduler.roster, failed)
        metrics.swaps.labels("failed").inc(len(failed))
        metrics.swaps.labels("done").inc(roster != scheduler.roster)
        scheduler.roster = roster
        self.seen = None if failed else now
        self.patience = time.monotonic() + TRIED_AGAIN
        answering = {id(one) for one, _ in roster.arms.values()}
        self.loaded = {content: one for content, one in self.loaded.items() if id(one) in answering}

    def roster(self, now: Served, before: Roster, failed: list[str]) -> Roster:
        """Of what is promoted; where what is to be served cannot be loaded, the one before."""

        def attempt(content: str | None) -> ServedModel | None:
            try:
                return None if content is None else self.model(content)
            except Exception as error:  # memory too: whatever it is, the server has a model that answers
                sentence = error if isinstance(error, BridleError) else "it could not be loaded"
                log.error(
                    "%s… cannot be served: %s", str(content)[:15], sentence, exc_info=not isinstance(error, BridleError)
                )
                failed.append(str(content))
                return None

        current = attempt(now.content)
        if current is None:
            return before
        candidate = attempt(now.candidate)
        if candidate is not None and candidate.no_chat and not current.no_chat:
            log.error("the candidate is served to nobody: %s", candidate.no_chat)
            failed.append(str(now.candidate))
            candidate = None
        compared = self.recipe.serve.compare_other_share > 0 or self.recipe.serve.compare_random_share > 0
        previous = attempt(now.before[-1]) if now.before and compared else None
        if previous is current or (previous is not None and previous.no_chat):
            previous = None
        return Roster(current, candidate, now.share, previous)


def forget_in(work: Work) -> Forget:
    """Deletes a user's trace, and names what was made of it."""

    def forget(store: Store, user: str) -> Takedown:
        made = {
            made.model: [one for one in made.noted.values() if isinstance(one, str)]
            for made in Lineage(work.project).made
        }
        return forget_user(store, user, reason=ASKED_TO, by=user, runs=work.project.folder / "runs", made=made)

    return forget
