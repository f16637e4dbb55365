"""The page of a project says what its runs left, and nothing else: of a demo, of a model of one's own with one method, of every method,
of nothing, of runs that failed, of earlier versions and of a thousand runs."""

import html
import json
import math
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bridle.maths.statistics import student_quantile
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.documents import to_toml
from bridle.recipe.recipe import Recipe, load_recipe
from bridle.report.drawings import SMOOTH, smoothed
from bridle.report.metrics import held_out, of_runs
from bridle.report.page import duration, render, show
from bridle.report.project import frontier, project_report, write_project_report
from bridle.report.run import write_run_report
from bridle.report.runs import Runs
from bridle.report.stages import MODELS, STAGES
from bridle.report.verdict import Standing, Verdict, sentences, verdict_of
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work
from tests.tiny_project import SHAPE, done, preferences, settings

NUMBER = re.compile(r"(?<![\w.#])−?\d+(?:[\u202f\d]*\d)?(?:\.\d+)?(?!\w)")


def half(error: float, result: dict[str, Any]) -> float:
    return error * student_quantile(0.95, result["prompts"] - 1)


def work_in(folder: Path) -> Work:
    return Work(Project.find(folder), Progress(write=lambda text: None, live=False))


def page_of(folder: Path) -> str:
    work = work_in(folder)
    try:
        return write_project_report(work).read_text()
    finally:
        work.close()


def words_of_page(page: str) -> str:
    """What a reader sees, alternative texts too; without the answers, whose numbers are the models' own."""
    page = re.sub(r"<style>.*?</style>|<p [^>]*dir=\"auto\">.*?</p>|<title>.*?</title>", " ", page, flags=re.DOTALL)
    page = re.sub(r'<svg[^>]*aria-label="(.*?)".*?</svg>', r" \1 ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def numbers_in(value: Any) -> Iterator[float | int]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, str):
        yield from (float(text) for text in re.findall(r"\d+\.?\d*", value))


def known_numbers(folder: Path) -> set[str]:
    """Every number of the project's files, as the page would show it; and what follows from two of them by a rule that the page states:
    the ends of 95% intervals, running means of three steps, win rates of the answers that were kept."""
    found: list[Any] = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    named = set(NUMBER.findall((folder / "bridle.toml").read_text()))  # also in the path of a model
    for run in (folder / "runs").iterdir():
        found += [json.loads(path.read_text()) for path in run.glob("*.json")] + [(run / "recipe.toml").read_text()]
        lines = [json.loads(line) for path in run.glob("*.jsonl") for line in path.read_text().splitlines()]
        found += lines
        found += [smoothed([line.get(name) for line in lines], SMOOTH).tolist() for name in of_runs()]
    for result in [value for value in found if isinstance(value, dict) and "prompts" in value]:
        for one in [result, *result.get("frontier", [])]:
            for name in held_out():
                if isinstance(one.get(f"{name}_se"), float):
                    found += [one[name] + sign * half(one[f"{name}_se"], result) for sign in (-1, 1)]
    texts = {text for value in numbers_in(found) for text in (show(value), show(float(value)))}
    return named | texts | {match for value in numbers_in(found) for match in NUMBER.findall(duration(float(value)))}


def strange_numbers(folder: Path, page: str) -> list[str]:
    """Numbers on the page that stand in no file, with what stands before them; shares of time, and what the page says of itself, apart."""
    report = project_report(work := work_in(folder))
    work.close()
    known = known_numbers(folder) | {
        show(x) for one in report.comparisons for x in (one.rate, one.low, one.high, one.n)
    }
    known |= (
        {show(max((one.high or 0) - (one.low or 0) for one in report.comparisons) / 2)} if report.comparisons else set()
    )
    known |= {
        show(scores(folder)),
        *NUMBER.findall(" ".join(m.meaning for m in [*of_runs().values(), *held_out().values()])),
    }
    for one in report.guarded:  # what follows from the audits: their number, the curve through them and its top
        curve = one.drawn.curve
        known |= {show(len(one.drawn.audits)), *NUMBER.findall(one.answers_rule)}
        known |= {show(x) for x in (*curve[:2], (curve.peak or 0.0) ** 2)} if curve is not None else set()
    template = (Path(__file__).parents[2] / "bridle/report/page.html").read_text()
    known |= {
        "95",
        ".5",
        "0.1.0",
        *NUMBER.findall(re.sub(r"<style>.*?</style>|{[{%].*?[}%]}", "", template, flags=re.DOTALL)),
    }
    text = words_of_page(page[: page.index('<section id="time">')] if '<section id="time">' in page else page)
    text = re.sub(
        r"best[ -]of[ -][\d, ]+|Python\s+[\d.]+|bridle\s+[\d.]+|minutes[a-z, ]*\s+[\d.]+|device\s.*?\(", " ", text
    )
    return [text[max(0, m.start() - 40) : m.end()] for m in NUMBER.finditer(text) if m.group() not in known]


def scores(folder: Path) -> int:
    """Answers that the reward model scored to be learnt from or chosen by, counted otherwise than the page does: from the log."""
    runs = {path.name[:-5]: path for path in (folder / "runs").iterdir()}
    recipes = {name: load_recipe(runs[name] / "recipe.toml") for name in ("ppo", "unbridled") if name in runs}
    asked = {name: recipe.ppo.prompts_per_step for name, recipe in recipes.items()}
    learnt = sum(n * len((runs[name] / "metrics.jsonl").read_text().splitlines()) for name, n in asked.items())
    best = json.loads((runs["best-of-4"] / "result.json").read_text()) if "best-of-4" in runs else {"prompts": 0}
    return learnt + 4 * int(best["prompts"])


# -------------------------------------------------------------------------------------------------------- a fresh demo


def test_every_number_of_a_demos_page_stands_in_a_result_file(finished_demo: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished_demo, tmp_path / "demo"))
    page = page_of(project)
    assert strange_numbers(project, page) == [] and len(NUMBER.findall(words_of_page(page))) > 400
    (project / "summary.json").unlink()
    path = project / "runs/evaluate-ppo-0001/result.json"
    # All of them: one alone may stand in another file too, by chance.
    changed = {key: 77.7 if isinstance(value, float) else value for key, value in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(changed))
    assert "length" in words_of_page(page) and len(strange_numbers(project, page)) > 0, (
        "a page of other results is found out"
    )


def test_every_point_of_the_frontier_is_one_of_the_table_and_of_an_evaluation(finished_demo: Path) -> None:
    work = work_in(finished_demo)
    report, runs = project_report(work), Runs.of(work.project)
    work.close()
    (table,) = [table for table in report.tables if table.title == "Every model on held-out prompts"]
    gold, kl = (next(i for i, c in enumerate(table.columns) if c.name == held_out()[n].label) for n in ("gold", "kl"))
    rows = {row[0]: (row[gold], row[kl]) for row in table.rows}
    drawn = frontier(runs, verdict_of(runs, "gold"))
    assert drawn is not None and report.frontier == drawn
    points = [drawn.origin, *(point for line in drawn.lines for point in line)]
    assert {point.name for point in points} == {"SFT", "PPO", "DPO", "PPO unbridled", "best-of-2", "best-of-4"}
    assert {point.name: (point.score, point.kl) for point in points} == {
        name: rows[name] for name in rows if name != "base"
    }
    evaluations = {MODELS[name].label: result for name, result in runs.evaluated.items()}
    for point in points:
        if point.name in evaluations:
            found = evaluations[point.name]
            assert (point.score, point.kl) == (found["gold"], found["kl"])
            assert point.score_half == pytest.approx(half(found["gold_se"], found))
            assert point.kl_half == pytest.approx(half(found["kl_se"], found))
    ranked = [row[0] for row in report.ranking.rows] if report.ranking else []
    assert ranked == sorted(
        (name for name in rows if name not in ("base", "best-of-2")), key=lambda name: -rows[name][0]
    )


def test_one_of_the_first_examples_is_lost_by_the_winner(finished_demo: Path) -> None:
    work = work_in(finished_demo)
    report, verdict = project_report(work), verdict_of(Runs.of(work.project), "gold")
    work.close()
    best = next(one.name for one in verdict.ranked if one.model)
    gold = [{answer.label: answer.score or 0.0 for answer in one.answers} for one in report.examples[:2]]
    assert any(one[best] < one["SFT"] for one in gold)
    assert f"the first one that {best} answered worse than SFT" in report.examples_rule


def test_training_and_held_out_figures_share_no_name(finished_demo: Path) -> None:
    work = work_in(finished_demo)
    report = project_report(work)
    work.close()
    trained = {fact.label for stage in report.stages if stage.name != "best-of-4" for fact in stage.metrics}
    trained |= {series.name for stage in report.stages if stage.curve for series in stage.curve.series}
    held_out = {column.name for table in report.tables[:1] for column in table.columns}
    assert not trained & held_out - {"prompts"} and "training KL" in trained and "KL" in held_out
    assert all(fact.hint for stage in report.stages for fact in stage.metrics)
    assert all(column.hint for table in report.tables[:1] for column in table.columns[1:])


# ------------------------------------------------------------------------------- a model of one's own, with one method


@pytest.fixture(scope="module")
def own_model(finished_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    shaped = {key: value for key, value in SHAPE.items() if not key.startswith("model.")}
    shutil.copytree(finished_demo / "models/base", folder / "mine")
    done("init", folder / "project", "--model", folder / "mine", *settings({**shaped, "model.precision": "float32"}))
    done("import", preferences(folder / "pairs.jsonl"), "--project", folder / "project")
    for words in (["train", "pretrain"], ["train", "sft"], ["train", "dpo"], ["evaluate", "sft"], ["evaluate", "dpo"]):
        done(*words, "--project", folder / "project")
    return folder / "project"


def test_the_page_of_ones_own_model_and_one_method_says_that_and_no_more(own_model: Path) -> None:
    page = page_of(own_model)
    text = " ".join(words_of_page(page).split())
    assert "It begins with the model at" in text and "taught to answer (SFT) and tuned by DPO" in text
    for absent in (
        "made from nothing",
        "PPO",
        "simulated",
        "gold",
        "slim",
        "The cliff",
        "judged",
        "bridle is",
        "reward model that",
    ):
        assert absent not in text, absent
    assert strange_numbers(own_model, page) == []


# --------------------------------------------------------------------------------------------- written down, not trained


@cache
def recipe_of(path: Path, text: str) -> str:
    """All settings of the recipe that lies there, read once for each text."""
    return to_toml(load_recipe(path))


def write_run(project: Path, name: str, result: dict[str, Any] | None, number: int = 1, **parents: Any) -> Path:
    folder = project / f"runs/{name}-{number:04d}"
    folder.mkdir(parents=True)
    (folder / "parents.json").write_text(json.dumps({"stage": name, "key": "", **parents}))
    chosen = project / "bridle.toml"
    (folder / "recipe.toml").write_text(recipe_of(chosen, chosen.read_text()))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "kl": i / 2, "reward": i / 10}) + "\n" for i in range(3))
    )
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"seconds": 1.0, **result}))
    return folder


def project_of(folder: Path, **chosen: Any) -> Path:
    Project.create(folder, Recipe().with_settings({"data.source": "playground", **chosen}))
    (folder / "runs").mkdir()
    return folder


def evaluation(gold: float, kl: float, **more: Any) -> dict[str, Any]:
    return {"prompts": 400, "gold": gold, "gold_se": 0.1, "kl": kl, "kl_se": 0.1, **more}


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """A project in which every method was run and evaluated."""
    project = project_of(tmp_path / "all", **{"dpo.online_rounds": 2, "grpo.scored_by": "reward"})
    tuned = [name for name, row in STAGES.items() if row.model and name not in ("pretrain", "sft")]
    for name in METHODS:
        write_run(project, name, {"steps": 3, "judgements": 70, "pair_accuracy": 0.75}, source="learned")
    write_run(
        project, "best-of-8", {"n": 8, "prompts": 50, "frontier": [{"n": 2, "kl": 0.19, "gold": 0.9, "gold_se": 0.1}]}
    )
    write_run(project, "evaluate-base", {"prompts": 400, "gold": -1.0, "gold_se": 0.1})
    write_run(project, "evaluate-sft", evaluation(0.0, 0.0))
    for place, name in enumerate(tuned):
        write_run(project, f"evaluate-{name}", evaluation(1.0 + place, 1.0))
    write_run(project, "evaluate-mine", evaluation(0.5, 9.0))
    return project


def test_every_method_that_was_run_is_on_the_page(everything: Path) -> None:
    text = words_of_page(page_of(everything))
    work = work_in(everything)
    report = project_report(work)
    work.close()
    assert report.ranking is not None and report.frontier is not None
    named = {row[0] for row in report.ranking.rows}
    assert named == {*(row.label for name, row in MODELS.items() if name != "base"), "best-of-2", "mine"}
    assert named - {"SFT"} == {point.name for line in report.frontier.lines for point in line}
    assert {METHODS[name].name for name in METHODS} <= {stage.name for stage in report.stages}
    assert all(STAGES[name].title in text for name in METHODS)


def test_how_far_what_people_gave_was_stretched(everything: Path) -> None:
    recipe = Recipe()
    asked = {
        "ppo": 96, "grpo": 16 * 8, "rloo": 24 * 4, "rebel": 48 * 2, "best-of-n": 320 * 4, "dpo": 48 * 4,
    }  # fmt: skip
    assert recipe.ppo.prompts_per_step == 96 and recipe.rloo.group_size == 4  # as these were worked out by hand
    runs = Runs.of(Project.find(everything))
    words = sentences(runs, verdict_of(runs, "gold"))[-1]
    assert words.startswith(
        f"70 judgements by people served {show(3 * sum(asked.values()) + 8 * 50)} scores by the reward model"
    )


def test_the_winner_is_named_with_its_kl_or_that_there_is_none(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p")
    write_run(project, "ppo", {"kl": 2.9})
    write_run(
        project,
        "evaluate-sft",
        evaluation(0.0, 0.0, unparsable=0.1, flattery=0.1, length=20.0, length_se=1.0, distinct=0.9),
    )
    worse = {
        "unparsable": 0.2,
        "flattery": 0.11,
        "length": 30.0,
        "length_se": 1.0,
        "distinct": 0.6,
        "refuses_benign": 0.9,
    }
    write_run(project, "evaluate-ppo", evaluation(1.0, 3.6, **worse))
    write_run(project, "evaluate-dpo", evaluation(1.1, 0.9, unparsable=0.09))
    runs = Runs.of(Project.find(project))
    told = sentences(runs, verdict_of(runs, "gold"))
    assert told[0].startswith(
        "There is no clear winner between DPO and PPO by mean gold on held-out prompts: DPO 1.10 (0.90 to 1.30) at"
    )
    assert told[1] == "Against SFT 0.00 (−0.20 to 0.20): DPO and PPO above it."
    assert told[2] == (
        "PPO's bridle was set to 1.50 nats an answer, and it did not hold: 3.60 on held-out prompts, 2.90 on training prompts at "
        "the last step."
    )
    assert told[3:] == [
        "PPO is worse than SFT in unparsable 0.10 → 0.20, length 20.0 → 30.0 and distinct 0.90 → 0.60.",
        "DPO is not clearly worse than SFT in what could be tested: gold and unparsable.",
    ]
    assert project_report(work_in(project)).headline[0].value == "no clear winner between DPO and PPO"
    write_run(project, "evaluate-dpo", evaluation(2.0, 0.9), number=2)
    runs = Runs.of(Project.find(project))
    assert (
        sentences(runs, verdict_of(runs, "gold"))[0]
        == "DPO 2.00 (1.80 to 2.20) at a KL of 0.90: the winner by mean gold on held-out prompts."
    )


def test_what_the_winner_lost_comes_among_the_first_examples_wherever_it_was_asked(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p")
    for name, gold in (("sft", [1.0] * 9), ("dpo", [2.0] * 6 + [0.5, 2.0, 0.0])):
        folder = write_run(project, f"evaluate-{name}", evaluation(sum(gold) / 9, 1.0))
        lines = [
            {"id": f"{i}", "prompt": f"Ask {i}", "answer": f"{name} {i}", "gold": value} for i, value in enumerate(gold)
        ]
        (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = project_report(work_in(project))
    assert [one.prompt for one in report.examples] == [f"Ask {i}" for i in (0, 6, 1, 2, 3, 4, 5, 7)]
    assert "the first one that DPO answered worse than SFT, by gold" in report.examples_rule


def test_a_difference_that_chance_explains_leaves_no_winner() -> None:
    """By the standard error of a difference: intervals of .2 to either side overlap at .3, and the two are apart."""
    first, near, far = (Standing(name, name, score, 0.1) for name, score in (("a", 1.0), ("b", 0.75), ("c", 0.7)))
    assert Verdict("gold", None, [first, near, far]).winner == "no clear winner between a and b"
    assert Verdict("gold", None, [first, far]).winner == "a"
    assert Verdict("gold", Standing("SFT", "sft", 0.9, 0.1), [first, far]).winner == "nothing clearly above SFT"


def test_what_is_not_known_is_apart_from_nothing() -> None:
    sft, known = Standing("SFT", "sft", 0.0, 0.1, prompts=400), Standing("a", "a", 9.0, 0.1, prompts=400)
    assert known.against(sft) == "above it" and sft.against(known) == "below it"
    for error, prompts in ((math.nan, 400), (None, 400), (math.inf, 400), (0.1, 1), (0.0, 1)):
        unknown = Standing("b", "b", 99.0, error, prompts=prompts)
        assert unknown.against(sft) == sft.against(unknown) == "not clearly apart" and str(unknown) == "b 99.0"
        assert Verdict("gold", sft, [unknown]).winner == "nothing clearly above SFT"
        assert Verdict("gold", None, [unknown, known]).winner == "no clear winner between b and a"
    few, many = (Standing("c", "c", 1.0, 0.1, prompts=prompts) for prompts in (2, 400))
    assert (few.low, many.low) == pytest.approx((1 - 12.706 * 0.1, 1 - 1.966 * 0.1), abs=1e-3)


@pytest.mark.parametrize(
    "kept", [{"prompts": 1, "gold_se": None, "kl_se": None}, {"gold_se": math.nan, "kl_se": math.nan}]
)
def test_one_held_out_prompt_makes_no_winner(tmp_path: Path, kept: dict[str, Any]) -> None:
    project = project_of(tmp_path / "p")
    write_run(project, "ppo", {"kl": 2.9})
    write_run(project, "best-of-8", {"n": 8, "frontier": [{"n": 2, "kl": 0.1, "gold": 4.0, **kept}], **kept})
    for name, gold in (("sft", 0.0), ("ppo", 5.0), ("dpo", 9.0)):
        write_run(
            project, f"evaluate-{name}", evaluation(gold, 3.6, **{"length": 1.0 + gold, "length_se": None, **kept})
        )
    runs = Runs.of(Project.find(project))
    told = sentences(runs, verdict_of(runs, "gold"))
    assert (
        told[0]
        == "Nothing is clearly above SFT by mean gold on held-out prompts; the highest is DPO 9.00 at a KL of 3.60."
    )
    assert told[2] == "Against SFT 0.00 at a KL of 3.60: DPO, PPO and best-of-2 not clearly apart."
    assert told[4].startswith("PPO's bridle was set to 1.50 nats an answer, and whether it held is not known: 3.60 on")
    assert "is worse than SFT in" not in " ".join(told)
    text = words_of_page(page_of(project))
    assert "nan" not in text and "None" not in text


def told_of(project: Path, score: str = "gold") -> list[str]:
    runs = Runs.of(Project.find(project))
    return sentences(runs, verdict_of(runs, score))


def keep_answers(project: Path, name: str, scores: list[float], texts: str = "", score: str = "gold") -> None:
    lines = [
        {"id": f"{i}", "prompt": f"Ask {i}", "answer": f"{texts or name} {i}", score: value}
        for i, value in enumerate(scores)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (project / f"runs/evaluate-{name}-0001/answers.jsonl").write_text(text)


def test_what_sft_beats_is_no_winner(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p")
    write_run(project, "evaluate-sft", evaluation(1.0, 0.0))
    write_run(project, "evaluate-dpo", evaluation(0.25, 0.9))
    told = told_of(project)
    assert told[0] == (
        "Nothing is clearly above SFT by mean gold on held-out prompts; the highest is DPO 0.25 (0.05 to 0.45) at a KL of 0.90."
    )
    assert "DPO is worse than SFT in gold 1.00 → 0.25." in told and not any("winner" in one for one in told)
    assert project_report(work_in(project)).headline[0].value == "nothing clearly above SFT"


def test_what_is_not_known_to_be_sure_is_not_claimed(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p")
    write_run(project, "evaluate-dpo", {"prompts": 1, "gold": 9.0, "gold_se": None})
    assert "SFT was not evaluated" in " ".join(told_of(project)) and "–" not in str(
        project_report(work_in(project)).headline[1].value
    )
    write_run(project, "evaluate-sft", {**evaluation(0.0, 0.0), "proxy": 1.0})
    told = " ".join(told_of(project))
    assert "Nothing is clearly above SFT" in told and "mean gold of DPO is, is not known; evaluate again" in told
    assert "worse than SFT" not in told, "no error is known, so nothing was tested"
    pair = [Standing(name, name, score, 0.1, prompts=3) for name, score in (("a", 1.0), ("b", 0.5))]
    assert Verdict("gold", None, pair).winner == "no clear winner between a and b", (
        "at 3 prompts Student's quantile is 4.30"
    )


def test_what_the_reward_model_scored_is_what_it_scored(tmp_path: Path) -> None:
    """A verifier's answers are none of its own, and PPO of a verifier has climbed no proxy; without a bridle none is claimed."""
    project = project_of(tmp_path / "p", **{"ppo.kl_coef": 0.0, "ppo.kl_target": 0.0, "ppo.scored_by": "verifier"})
    write_run(project, "reward", {"judgements": 70})
    verifier = {"name": "right", "kind": "verifier", "path": ""}
    write_run(project, "grpo", {"steps": 3}, source="learned", reward_source=[verifier])
    folder = write_run(
        project, "ppo", {"steps": 3, "kl": 1.0}, source="verifier", folders={"start": "models/arithmetic"}
    )
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "proxy": 1.0, "kl": 1.0}) + "\n")
    write_run(project, "evaluate-sft", evaluation(0.0, 0.0))
    write_run(project, "evaluate-ppo", evaluation(1.0, 1.0))
    report = project_report(work_in(project))
    assert not any("served" in one or "bridle was set" in one for one in report.verdict) and not report.cliff
    assert {stage.name: stage.title for stage in report.stages}["ppo"] == "PPO without its bridle"
    assert "is 0, so nothing holds the policy" in {stage.name: stage.words for stage in report.stages}["ppo"]
    assert report.spent[1].title == "PPO without its bridle"
    assert "tuned by GRPO" in report.lead and "PPO tuned a branch that did not begin from SFT" in report.lead
    mixed = [verifier, {"name": "own", "kind": "learned", "path": ""}]
    path = folder / "parents.json"
    path.write_text(json.dumps({"stage": "ppo", "source": "learned", "reward_source": mixed}))
    report = project_report(work_in(project))
    assert not report.cliff[0].bridled and any("served 288 scores" in one for one in report.verdict)


def test_without_gold_the_page_says_what_the_proxy_is(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p", **{"data.source": "store"})
    write_run(project, "ppo", {"steps": 3}, source="learned")
    write_run(project, "evaluate-sft", {"prompts": 9, "proxy": 0.0, "proxy_se": 0.1})
    write_run(project, "evaluate-ppo", {"prompts": 9, "proxy": 1.0, "proxy_se": 0.1})
    assert any("the proxy is what PPO was trained to please" in one for one in told_of(project, "proxy"))


def test_only_what_both_kept_is_compared_and_the_lost_one_is_of_those_that_are_shown(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p")
    for name in ("base", "sft", "dpo"):
        write_run(project, f"evaluate-{name}", evaluation(1.0, 1.0))
    keep_answers(project, "dpo", [0.0, 2.0, 0.5])
    assert project_report(work_in(project)).comparisons == []
    keep_answers(project, "sft", [1.0] * 3)
    same = (project / "runs/evaluate-sft-0001/answers.jsonl").read_text().splitlines()[0]
    path = project / "runs/evaluate-dpo-0001/answers.jsonl"
    path.write_text("\n".join([same.replace("1.0", "0.0"), *path.read_text().splitlines()[1:]]) + "\n")
    report = project_report(work_in(project))
    assert [one.name for one in report.comparisons] == ["DPO"] and [one.prompt for one in report.examples] == [
        "Ask 1",
        "Ask 2",
    ]


def test_the_seed_is_that_of_the_runs_and_the_title_says_demo_of_a_demo_alone(tmp_path: Path) -> None:
    project = project_of(tmp_path / "mine")
    write_run(project, "sft", {"demonstrations": 9})
    text = (project / "bridle.toml").read_text()
    (project / "bridle.toml").write_text(text.replace("seed = 0", "seed = 5"))
    report = project_report(work_in(project))
    assert report.facts[0].value == "0" and report.title.startswith("mine")


def test_every_meaning_stands_alone() -> None:
    every = [metric.meaning for metric in [*of_runs().values(), *held_out().values()]]
    assert not [meaning for meaning in every if meaning.startswith(("the same", "its ", "what the rule"))]


def test_the_page_of_one_run_calls_metrics_by_their_labels_and_held_out_ones_so(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p")
    folder = write_run(project, "best-of-4", {"n": 4, "gold": 1.5, "kl_se": 0.1})
    text = write_run_report(work_in(project), folder).read_text()
    assert (
        "true quality of the answers" in text
        and "training gold" not in text
        and "KL se" in text
        and "kl_se" not in text
    )
    assert "training KL" in text and "training reward" in text, "its curves are of training"


# --------------------------------------------------------------------------------------------------------- bad input


def test_the_page_says_what_a_run_was_set_to_though_that_is_refused_now(tmp_path: Path) -> None:
    """β = 0 beside a target, which could not move it: the project's own recipe would tell of another run."""
    project = project_of(tmp_path / "earlier")
    write_run(project, "evaluate-ppo", evaluation(1.0, 9.0))
    for name in ("ppo", "unbridled"):
        folder = write_run(project, name, {"steps": 3, "kl": 9.0}, source="learned")
        own = (folder / "recipe.toml").read_text().replace("kl_coef = 0.12", "kl_coef = 0.0")
        (folder / "recipe.toml").write_text(
            own.replace("prompts_per_step = 96", "prompts_per_step = 7") + "[of_earlier]\n"
        )
    write_run(project, "reward", {"judgements": 70})
    text = " ".join(words_of_page(page_of(project)).split())
    assert (
        "(the KL bridle), is 0, so nothing holds the policy." in text
        and "β is 0.00, and nothing holds the policy." in text
    )
    assert "bridle was set to" not in text and f"70 judgements by people served {show(2 * 3 * 7)} scores" in text
    for lost in ("[of_an_earlier_version]\n", "ppo = 3\n", "["):
        (project / "runs/ppo-0001/recipe.toml").write_text(lost)
        text = " ".join(words_of_page(page_of(project)).split())
        assert "Its recipe cannot be read any more." in text and "scored better than expected" not in text
        assert "bridle was set to" not in text and "70 judgements" not in text
    (project / "runs/ppo-0001/recipe.toml").unlink()
    assert "Its recipe cannot be read any more." in words_of_page(page_of(project))


def test_an_empty_project_says_so(tmp_path: Path) -> None:
    text = words_of_page(page_of(project_of(tmp_path / "empty")))
    assert "Nothing has finished in this project yet." in text and "None" not in text


def test_a_run_that_failed_is_named(tmp_path: Path) -> None:
    project = project_of(tmp_path / "failed")
    write_run(project, "sft", None)
    write_run(project, "sft", {"loss": 0.5, "demonstrations": 9}, number=2)  # it came to an end after all
    write_run(project, "ppo", None)
    write_run(project, "dpo", {"pairs": 7})
    write_run(project, "dpo", None, number=2)
    (project / "runs/rloo-0001").mkdir()  # nothing was written into it
    text = words_of_page(page_of(project))
    assert "Not finished: dpo-0002, ppo-0001 and rloo-0001." in text and "Imitating demonstrations" in text


def test_results_of_an_earlier_version_are_shown_as_far_as_they_go(finished_demo: Path, tmp_path: Path) -> None:
    """Whatever key a result lacks, and without kept answers, recipe or log, the page is written."""
    for kept in ({"seconds"}, set[str](), {"gold", "prompts"}, {"kl", "proxy", "steps"}):
        project = Path(
            shutil.copytree(finished_demo, tmp_path / "-".join(["p", *kept]), ignore=shutil.ignore_patterns("models"))
        )
        for run in (project / "runs").iterdir():
            result = json.loads((run / "result.json").read_text())
            (run / "result.json").write_text(json.dumps({name: result[name] for name in kept & set(result)}))
            for name in ("answers.jsonl", "metrics.jsonl", "session.json"):
                (run / name).unlink(missing_ok=True)
            (run / "recipe.toml").write_text("[of_an_earlier_version]\nsetting = 1\n")
        (project / "summary.json").unlink()
        assert "<h1>" in page_of(project)


def test_a_thousand_runs_make_a_small_page(tmp_path: Path) -> None:
    project = project_of(tmp_path / "thousand")
    write_run(project, "evaluate-sft", evaluation(0.0, 0.0))
    for number in range(300):
        write_run(project, f"mine{number}", {"seconds": number}, number=number + 1)
        write_run(project, f"evaluate-mine{number}", evaluation(number / 100, 1.0))
        write_run(project, "sft", {"loss": number / 100}, number=number + 1)
    page = render(report := project_report(work_in(project)))
    assert report.ranking is not None and len(report.ranking.rows) == 301 and report.frontier is not None
    assert report.ranking.rows[0][0] == "mine299" and report.frontier.lines[0][0].name == "mine299"
    assert report.frontier.more == 284 and "284 more were evaluated" in page and "285 more were evaluated" in page
    assert len(page) < 200_000 and "562 shorter ones" in page
    assert page.count("<svg") <= 4
