"""The demo: the whole loop once on the playground. Finished stages are not run twice.

With two threads or more, a second process does some stages while this one does others: two threads on one small model
get half again as much done as one, two processes twice as much.
"""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridle.core.errors import BridleError, ProjectError
from bridle.core.files import write_json
from bridle.core.timeline import recording, timed
from bridle.demo.second import LEFT, SecondProcess, share_threads
from bridle.demo.session import DemoSession, keep_device, passing_settings
from bridle.demo.stages import STAGES
from bridle.demo.summary import Results, summarise
from bridle.project.lock import held
from bridle.project.profile import take, write_profile
from bridle.project.progress import Progress
from bridle.project.project import RECIPE_FILE, Project
from bridle.recipe.recipe import Recipe
from bridle.report.project import write_project_report
from bridle.stages.workspace import Work


def run_demo(out: Path, recipe: Recipe, progress: Progress | None = None, wait: bool = False) -> dict[str, Any]:
    """Walk the loop in `out`, or resume the demo there; writes report.html and summary.json, returns the summary. Another demo that is at
    work there is waited for, or is a ProjectError."""
    progress, folder = progress or Progress(), out.resolve()
    if not (folder / RECIPE_FILE).exists():
        make_demo(folder, recipe)
    with held(folder / ".demo.lock", folder, progress.say if wait else None):
        return resume_demo(open_demo(out, recipe), progress, wait)


def make_demo(folder: Path, recipe: Recipe) -> None:
    try:
        Project.create(folder, recipe)
    except ProjectError:
        if not (folder / RECIPE_FILE).exists():  # else another process has just made it
            raise


def open_demo(out: Path, recipe: Recipe) -> Project:
    """The project that an earlier session made with the same recipe; with what may differ in it as it is now."""
    project = Project.find(out.resolve())
    if project.recipe.with_settings(passing_settings(recipe)) != recipe:
        raise ProjectError(
            f"{out} holds a demo of another recipe or seed (its seed is {project.recipe.seed}); "
            "give --out another folder, or remove it"
        )
    return replace(project, recipe=recipe)


def resume_demo(project: Project, progress: Progress, wait: bool) -> dict[str, Any]:
    """Walk the loop, or what is left of it."""
    if (recorded := recording()) is not None:
        recorded.place = project.folder
        (project.folder / LEFT).unlink(missing_ok=True)  # of a second process whose first one was killed
    session = DemoSession.begin(project)
    work = Work(project, progress, threads=session.threads, wait=wait)
    try:
        if not session.finished:
            keep_device(work, session.noted)
        session.note(work.device)
        return write_results(work, walk(work), session)
    finally:
        if recorded is not None:
            take(recorded, project.folder / LEFT)
        session.end()
        work.close()


def walk(work: Work) -> Results:
    """The result of every stage, in their order. A stage that may come after another is done meanwhile by a second process; here it
    is only read, or done after all where that one failed. The last stage is done by whichever comes to it first."""
    two = work.device.torch.type == "cpu" and work.device.threads > 1
    here = [stage for stage in STAGES if not (two and stage.after)]
    done: Results = {}
    left = sum(stage.seconds for stage in here)
    expected = spent = 0.0  # seconds of the stages so far
    with SecondProcess(work.project.folder, passing_settings(work.recipe)) as second:
        for stage in here:
            left -= stage.seconds
            work.progress.later = left * (spent / expected if expected else 1.0)
            began = time.monotonic()
            done[stage.name] = stage.run(work)
            if (took := time.monotonic() - began) > 0.5:  # else it was done before
                expected, spent = expected + stage.seconds, spent + took
            if two and stage.name == "pretrain":
                share_threads(work)
            for other in STAGES:
                if two and other.after == stage.name and work.project.finished_folder(other.name) is None:
                    second.give(other.name, work.device.threads)
        if two:
            with suppress(ProjectError):  # the second process is at it
                done[STAGES[-1].name] = STAGES[-1].run(work)
        second.wait(work.progress)
    work.progress.later = 0.0
    return {stage.name: done.get(stage.name) or stage.run(work) for stage in STAGES}


def write_results(work: Work, results: Results, session: DemoSession) -> dict[str, Any]:
    """Write summary.json and the report, which reads it; the summary once more with the seconds that the report took."""
    project = work.project
    work.progress.begin("Writing the report")
    began = time.monotonic()
    if (recorded := recording()) is not None:
        take(recorded, project.folder / LEFT)
        with suppress(BridleError):  # for the report to show; it is written again, and its errors reported, at the end
            write_profile(recorded, project.folder)
    with timed("report"):
        write_json(project.folder / "summary.json", summarise(work, results, session))
        write_project_report(work)
    results = {**results, "report": {"seconds": round(time.monotonic() - began, 2)}}
    summary = summarise(work, results, session)
    write_json(project.folder / "summary.json", summary)
    return summary
