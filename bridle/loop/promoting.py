"""Promotion of a project's models: its weights are kept by their hash first, so that whatever is trained under the same name later, what is
served stays what was promoted, and what was served before can be served again."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from bridle.core.errors import ModelError, UsageError
from bridle.feedback.serving.promotion import ROLL_BACK, Promotion, Served, promote, served_now, withdraw
from bridle.feedback.store.versions import Version, model_versions
from bridle.project.names import is_name
from bridle.stages.lineage import keep_reference
from bridle.stages.workspace import Work

OWNER = "owner"


def version_named(work: Work, named: str) -> Version:
    """The version of a hash (its first 8 letters or more), or of a name: what models/ holds under it, by whatever name it was registered (a
    model of yours is base and sft), else the last that was registered so."""
    versions = model_versions(work.store)
    held = list[str]()
    if is_name(named) and (work.project.model(named) / "config.json").is_file():
        with suppress(ModelError):  # what cannot be read is none
            held = [work.registry.content(work.project.model(named))]
    known = [one for one in versions if one.name == named or (len(named) >= 8 and one.hash.startswith(named))]
    known += [one for one in versions if one.hash in held and one not in known]
    if not known:
        names = ", ".join(dict.fromkeys(one.name for one in versions)) or "none yet"
        raise UsageError(f"no model is registered as {named!r}; there is {names}")
    return next((one for one in known if one.hash in held), known[-1])


def promote_model(
    work: Work, named: str, *, share: float = 1.0, by: str = OWNER, details: Mapping[str, Any] | None = None
) -> Served:
    """Serve a model of the project, whole or to a share of the users. UsageError where there is none of this name; ModelError where its
    weights are gone."""
    version = version_named(work, named)
    kept = work.project.reference(version.hash)
    if not (kept.is_dir() and work.registry.content(kept) == version.hash):
        name = work.registry.present().get(version.hash)
        if name is None or work.registry.verify(work.project.model(name), work.store) != version.hash:
            raise ModelError(
                f"the weights of {version.name} ({version.hash[:15]}…) are gone: models/{version.name} holds another model now; "
                "promote a version that is still there (`bridle models list` marks them)"
            )
        keep_reference(work.project, name)
    return promote(work.store, version.hash, by=by, share=share, details=details)


def withdraw_model(
    work: Work, *, by: str = OWNER, of: str | None = None, details: Mapping[str, Any] | None = None
) -> Served:
    """Roll back, where the weights of what is to be served again are still there."""
    now = served_now(work.store)
    if now.candidate is None and now.before and not work.project.reference(now.before[-1]).is_dir():
        raise ModelError(
            f"the weights of what was served before ({now.before[-1][:15]}…) are no longer in {work.project.folder / 'references'}; "
            "promote another version"
        )
    return withdraw(work.store, by=by, of=of, details=details)


def served_lines(work: Work, now: Served) -> list[str]:
    """For the terminal."""
    names = {one.hash: one.name for one in model_versions(work.store)}
    if now.content is None:
        return ["nothing is served; `bridle models promote NAME` says what is to be"]
    lines = [f"served: {names[now.content]} ({now.content[:15]}…)"]
    if now.candidate is not None:
        lines.append(f"met by {now.share:.0%} of the users: {names[now.candidate]} ({now.candidate[:15]}…)")
    if now.before:
        lines.append(f"served before, and again after a rollback: {names[now.before[-1]]} ({now.before[-1][:15]}…)")
    return lines


def history_lines(work: Work, steps: Sequence[Promotion]) -> list[str]:
    """Every promotion and rollback, the oldest first."""
    names = {one.hash: one.name for one in model_versions(work.store)}
    lines = []
    for step in steps:
        what = "rolled back" if step.action == ROLL_BACK else f"promoted to {step.details['share']:.0%}"
        why = f": {step.details['why']}" if step.details.get("why") else ""
        lines.append(f"{step.at[:19]}  {names.get(step.content, step.content[:15])} {what} by {step.by}{why}")
    return lines or ["nothing was promoted yet; `bridle models promote NAME` says what is to be served"]
