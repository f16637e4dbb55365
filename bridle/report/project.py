"""The page of a project: everything that its finished runs left, each of it where it is there."""

import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bridle import __version__
from bridle.core.errors import BridleError, DataError
from bridle.core.files import read_json, read_record
from bridle.core.forms import SECONDS, form_fault
from bridle.evaluation.leaderboard import leaderboards
from bridle.feedback.serving.promotion import promotion_steps, replayed
from bridle.feedback.serving.turns import steps_taken
from bridle.feedback.store.versions import model_versions
from bridle.project.kept import read_data
from bridle.project.project import Project
from bridle.report import page
from bridle.report.drawings import CliffRun, Comparison, Frontier, Point
from bridle.report.guard import guard_reports, save_guard_pictures
from bridle.report.metrics import held_out, of_runs
from bridle.report.runs import MOST_MODELS, Results, Runs
from bridle.report.stages import MODELS, STAGES, StageRow, is_bridled, label_of, row_of, stage_curve, title_of, words_of
from bridle.report.tables import constitution_tables, flywheel_tables, leaderboard_tables
from bridle.report.timing import left_out, shared_times, times
from bridle.report.verdict import (
    Standing,
    Verdict,
    best_of_points,
    by_reward_model,
    chosen_among,
    half_width,
    sentences,
    verdict_of,
)
from bridle.rewards.standing_in import stand_in_sentences
from bridle.stages.evaluate import compare, read_answers
from bridle.stages.lineage import Lineage, model_name
from bridle.stages.workspace import Work

MOST_EXAMPLES, MOST_SIDES = 8, 6
CONTROLS = [{"name": str, "expectation": str, "measured": (str, float, bool, None), "holds": (bool, None)}]
UNITS = {"gold": "gold, points", "proxy": "the reward model's score, sd"}


def write_project_report(work: Work) -> Path:
    """`report.html` of everything that the project's finished runs left; the pictures of guarded runs as files too."""
    path = work.project.folder / "report.html"
    report = project_report(work)
    page.write(report, path)
    save_guard_pictures(report.guarded, path.parent)
    return path


def project_report(work: Work) -> page.LoopReport:
    runs = Runs.of(work.project)
    verdict, wins = verdict_of(runs, work.data.score_name), win_rates(work, runs)
    side_by_side, rule = examples(work, runs, verdict)
    warnings = [*runs.damaged, *stale_parts(work, runs.folders)]
    known, checked = facts(work, runs, warnings), controls(work.project, runs.results, warnings)
    spent, time_tables = times(runs.folders, work.project.folder, warnings)
    crews, of_each = shared_times(runs.folders)
    guarded = guard_reports(runs.folders, warnings)
    work.warn(warnings)
    return page.LoopReport(
        title=title(work, verdict),
        lead=lead(work, runs, wins),
        warnings=warnings,
        headline=headline(runs, verdict, wins),
        facts=known,
        verdict=sentences(runs, verdict),
        ranking=ranking(runs, verdict, wins),
        frontier=frontier(runs, verdict),
        stages=stage_reports(work.project, runs),
        guarded=guarded,
        cliff=[cliff_run(runs, STAGES[name]) for name in ("ppo", "unbridled") if climbs_the_proxy(runs, name)],
        examples=side_by_side,
        examples_rule=rule,
        comparisons=wins,
        tables=[
            *evaluation_tables(runs),
            *reward_tables(runs.results),
            *probe_tables(runs.results),
            *constitution_tables(runs.results),
            *served_tables(work),
            *data_tables(runs.folders),
            *world_tables(runs.results),
        ],
        controls=checked,
        spent=spent,
        crews=crews,
        time_tables=[*of_each, *time_tables],
    )


def stale_parts(work: Work, finished: Mapping[str, Path]) -> list[str]:
    """What of these runs is of other models than the project holds now, and which models descend from others."""
    lineage = Lineage(work.project)
    left = {made.run: made.model for made in lineage.made}
    models = {work.project.model(model_name(stage)): left.get(run) for stage, run in finished.items()}
    as_left = [model for model, content in models.items() if lineage.present(model) == content is not None]
    return [*lineage.stale(as_left), *lineage.outdated(finished.values())]


def title(work: Work, verdict: Verdict) -> str:
    if (work.project.folder / "summary.json").is_file():
        return "The loop, once through"
    return work.project.folder.name + (": from preferences to a tuned model" if verdict.ranked else "")


def lead(work: Work, runs: Runs, wins: Sequence[Comparison]) -> str:
    """What was done here, in the order of the loop, and how sure its win rates are."""
    there = [name for name in MODELS if name in runs.folders and name != "sft" and MODELS[name].bridled]
    branched = [
        name for name in there if runs.parents(name).get("folders", {}).get("start", "models/sft") != "models/sft"
    ]
    tuned, branches = ([label_of(name) for name in there if (name in branched) is other] for other in (False, True))
    half = max(((one.high or 0.0) - (one.low or 0.0) for one in wins), default=0.0) / 2
    known = {"runs": runs, "recipe": work.recipe, "knows_gold": work.data.knows_gold}
    known |= {"tuned": tuned, "branches": branches}
    return " ".join(page.words("lead", {**known, "half": half, "prompts": min((one.n for one in wins), default=0)}))


def headline(runs: Runs, verdict: Verdict, wins: Sequence[Comparison]) -> list[page.Fact]:
    found, show = list[page.Fact](), page.show
    if verdict.ranked:
        first, sft = verdict.ranked[0], verdict.sft
        label = "winner" if len(verdict.ranked) > 1 else "evaluated"
        found.append(page.Fact(label, verdict.winner, f"by {verdict.score} on held-out prompts"))
        named, change = (first.name, show(first.score)) if sft is None else (
            f"SFT → {first.name}", f"{show(sft.score)} → {show(first.score)}"
        )  # fmt: skip
        found.append(page.Fact(f"{verdict.score}, {named}", change, UNITS[verdict.score]))
        for one in (one for one in wins if one.name == first.name):
            sure = f"of prompts, between {show(one.low)} and {show(one.high)}"
            found.append(page.Fact(f"{first.name} wins against SFT", one.rate, sure))
    if (accuracy := runs.results.get("reward", {}).get("pair_accuracy")) is not None:
        found.append(page.Fact("reward model", accuracy, "of held-out pairs ordered right"))
    return found


def served_tables(work: Work) -> list[page.Table]:
    """Turns of the flywheel, what was served, and how strong the versions are."""
    names = {one.hash: one.name for one in model_versions(work.store)}
    promoted = promotion_steps(work.store)
    boards = leaderboards(work.store, replayed(promoted).content)
    return [*flywheel_tables(steps_taken(work.store), promoted, names), *leaderboard_tables(boards)]


def facts(work: Work, runs: Runs, warnings: list[str]) -> list[page.Fact]:
    whole, took = dict[str, Any](), "minutes, begin to end"
    with left_out(warnings):  # of a demo: it knows how long it took from begin to end, and two stages at a time
        if (summary := work.project.folder / "summary.json").is_file():
            whole = read_record(summary, seconds=SECONDS, device=(str, None))
    if not whole:
        seconds, took = sum(result.get("seconds", 0.0) for result in runs.results.values()), "minutes at work"
        whole = {
            "seconds": seconds,
            "device": runs.parents([*runs.folders][-1]).get("device") if runs.folders else None,
        }
    recipes = [runs.recipe(stage) for stage in runs.folders if row_of(stage) is not None]
    seeds = sorted({str(recipe.seed) for recipe in recipes if recipe is not None})
    values = {
        "seed": page.listing(seeds or [str(work.recipe.seed)]), took: round(whole["seconds"] / 60, 1), "device": whole["device"],
        "parameters": runs.results.get("pretrain", {}).get("parameters"), "bridle": __version__,
        "Python": platform.python_version(),
    }  # fmt: skip
    return [page.Fact(name, value) for name, value in values.items()]


def ranking(runs: Runs, verdict: Verdict, wins: Sequence[Comparison]) -> page.Table | None:
    """Every way to use the comparisons by its mean score, SFT among them."""
    rates = {one.name: one.rate for one in wins if one.against == label_of("sft")}
    everyone = sorted([*verdict.ranked, *([verdict.sft] if verdict.sft else [])], key=lambda one: -one.score)
    named = {
        "model": "",
        verdict.score: held_out()[verdict.score].meaning,
        "from": "",
        "to": "",
        "KL": kl_meaning(runs),
        "wins against SFT": "share of prompts, ties one half",
    }
    rows: list[list[page.Cell]] = []
    for one in everyone:
        low, high = (one.low, one.high) if one.sure else (None, None)
        rows.append([one.name, one.score, low, high, one.kl, rates.get(one.name)])
    words = f"On held-out prompts, the highest mean {verdict.score} first; from and to: its 95% interval."
    columns = [page.Column(name, hint) for name, hint in named.items()]
    return page.Table("The ranking", columns, rows, words) if len(rows) > 1 else None


def frontier(runs: Runs, verdict: Verdict) -> Frontier | None:
    """Mean score against the distance from SFT, of all that was measured on held-out prompts."""
    score, origin = verdict.score, verdict.sft
    lines = [[point(one)] for one in verdict.ranked if one.trained and one.kl is not None]
    more = len(lines[MOST_MODELS:])
    chosen = chosen_among(runs, score)
    lines = [*lines[:MOST_MODELS], *([[point(one) for one in chosen]] if chosen else [])]
    return Frontier(UNITS[score], point(origin), lines, more) if origin is not None and lines else None


def point(one: Standing) -> Point:
    halves = [half_width(error, one.prompts) for error in (one.kl_error, one.error)]
    return Point(one.name, one.kl or 0.0, one.score, *(0.0 if math.isnan(half) else half for half in halves))


def stage_reports(project: Project, runs: Runs) -> list[page.StageReport]:
    taken = "pretrain" not in runs.folders and project.recipe.model.path
    found = [page.StageReport("base", "The base model", f"The model at {taken}, taken as it is.")] if taken else []
    rows = [(stage, row) for stage in runs.folders if (row := row_of(stage)) is not None and not row.within]
    return found + [stage_report(runs, stage, row) for stage, row in rows]


def stage_report(runs: Runs, stage: str, row: StageRow) -> page.StageReport:
    result, names = dict(runs.results[stage]), {**of_runs(), **(held_out() if row.name == "best-of-4" else {})}
    if stage == "reward" and (slim := runs.results.get("reward-slim")) is not None:
        seconds = result.get("seconds", 0.0) + slim.get("seconds", 0.0)
        result |= {"slim": slim, "seconds": seconds, "slim_accuracy": slim.get("pair_accuracy")}
    there = [name for name in row.metrics if result.get(name) is not None]
    metrics = [page.Fact(names[name].label, result[name], names[name].meaning) for name in there]
    words = " ".join([words_of(row, result, runs.recipe(stage)), *stand_in_sentences(runs.metrics(stage))])
    curve = stage_curve(row, runs.metrics(stage))
    return page.StageReport(stage, title_of(stage, runs.folders[stage]), words, result.get("seconds"), metrics, curve)


def climbs_the_proxy(runs: Runs, name: str) -> bool:
    """Whether a run was rewarded by the reward model, and logged its score; a verifier's score has no part in it."""
    return (
        by_reward_model(runs.parents(name)) and any("proxy" in m for m in runs.metrics(name))
        if name in runs.folders
        else False
    )


def cliff_run(runs: Runs, row: StageRow) -> CliffRun:
    metrics = runs.metrics(row.name)
    steps, kl, proxy, gold = ([m.get(name) for m in metrics] for name in ("step", "kl", "proxy", "gold"))
    known = gold if any(value is not None for value in gold) else []
    return CliffRun(
        row.label, is_bridled(row, runs.folders[row.name]), [int(step or 0) for step in steps], proxy, known, kl
    )


def examples(work: Work, runs: Runs, verdict: Verdict) -> tuple[list[page.SideBySide], str]:
    """Prompts on which all models differ, a family after another, and the rule in words; one of the first two is one that the
    first of the ranking answered worse than SFT."""
    names, score = [name for name in runs.answered if name != "base"][:MOST_SIDES], work.data.score_name
    answers = {name: {line["id"]: line for line in read_answers(work, name)} for name in names}
    if not names:
        return [], ""
    first = answers[names[0]]
    picked: dict[str, list[str]] = {}
    for prompt, line in first.items():
        texts = {answers[name][prompt]["answer"] for name in names if prompt in answers[name]}
        if len(texts) == len(names):
            picked.setdefault(str(line.get("family", "")), []).append(prompt)
    rounds = max((len(prompts) for prompts in picked.values()), default=0)
    order = [prompts[i] for i in range(rounds) for prompts in picked.values() if i < len(prompts)][:MOST_EXAMPLES]
    rule = "Not picked by hand: the first held-out prompts, of each family in turn, that every model answered in other words."
    best = next((one for one in verdict.ranked if one.model in names), None)
    among = {prompt for prompts in picked.values() for prompt in prompts}
    ours = {} if best is None else {p: line for p, line in answers[best.model].items() if p in among}
    lost = first_lost(ours, answers.get("sft", {}), score)
    if best is not None and lost:
        others = [prompt for prompt in order if prompt != lost]
        order = [*others[:1], lost, *others[1:]][:MOST_EXAMPLES]
        rule += f" Among them is the first one that {best.name} answered worse than SFT, by {score}."
    found = []
    for prompt in order:
        lines = {name: answers[name][prompt] for name in names}
        side = [page.ModelAnswer(label_of(n), line["answer"], line.get(score)) for n, line in lines.items()]
        found.append(
            page.SideBySide(first[prompt].get("prompt", ""), side, str(first[prompt].get("family", "")), score)
        )
    return found, rule


def first_lost(ours: Mapping[str, Mapping[str, Any]], sfts: Mapping[str, Mapping[str, Any]], score: str) -> str:
    """The first prompt on which our answer scored less than SFT's; empty where there is none."""
    scored = {p: (line.get(score), sfts[p].get(score)) for p, line in ours.items() if p in sfts}
    return next((p for p, (own, sft) in scored.items() if own is not None and sft is not None and own < sft), "")


def win_rates(work: Work, runs: Runs) -> list[Comparison]:
    """Every model against SFT, and SFT against base, where both answers were kept with the score that judges."""
    found = []
    pairs = [(name, "base" if name == "sft" else "sft") for name in runs.answered if name != "base"][:MOST_MODELS]
    for name, against in [pair for pair in pairs if pair[1] in runs.answered]:
        with suppress(BridleError):  # no score of them is known
            f = compare(work, name, against, work.data.score_by)
            found.append(Comparison(label_of(name), label_of(against), f["rate"], f["low"], f["high"], f["n"], f["by"]))
    return found


def evaluation_tables(runs: Runs) -> list[page.Table]:
    if not runs.evaluated:
        return []
    kept = [name for name in held_out() if any(name in result for result in runs.evaluated.values())]
    meanings = {**{name: held_out()[name].meaning for name in kept}, "kl": kl_meaning(runs)}
    columns = [page.Column("model"), *(page.Column(held_out()[name].label, meanings[name]) for name in kept)]
    found = [(label_of(name), result) for name, result in runs.evaluated.items()][:MOST_MODELS]
    found += [(f"best-of-{one['n']}", one) for one in best_of_points(runs)]
    rows: list[list[page.Cell]] = [[name, *(result.get(column) for column in kept)] for name, result in found]
    words = "Each model answered every held-out prompt once, at temperature 1; of best of n what can be said of the chosen answers."
    words += "" if (more := len(runs.evaluated) - MOST_MODELS) <= 0 else f" {more} more were evaluated."
    return [page.Table("Every model on held-out prompts", columns, rows, words)]


def kl_meaning(runs: Runs) -> str:
    """From what the KL was measured; each model's reference where that is not SFT, or not the same SFT, for all."""
    noted = {name: result["kl_reference"] for name, result in runs.evaluated.items() if "kl_reference" in result}
    if {found["name"] for found in noted.values()} <= {"sft"} and len({found["hash"] for found in noted.values()}) < 2:
        return held_out()["kl"].meaning
    each = ", ".join(f"{label_of(name)} from {found['name']} {found['hash'][:8]}" for name, found in noted.items())
    return f"nats per answer from the model that each was held to, by name and hash: {each}"


def data_tables(folders: Mapping[str, Path]) -> list[page.Table]:
    """Which rows each stage used where that needs saying, from its data.json."""
    rows: list[list[page.Cell]] = []
    for stage, folder in folders.items():
        rows += [[stage, what, note] for what, report in read_data(folder).items() for note in report.get("notes", [])]
    columns = [page.Column("stage"), page.Column("data"), page.Column("which of it")]
    words = "Of more rows than a setting or a measurement takes, those that are used are drawn by the seed."
    return [page.Table("The data that was used", columns, rows, words)] if rows else []


def reward_tables(results: Results) -> list[page.Table]:
    full = results.get("reward", {})
    if "pair_accuracy" not in full:
        return []
    others = {"slim": "reward-slim", "taught by people in the model's place": "people"}
    models = {"full": full, **{name: results[stage] for name, stage in others.items() if stage in results}}
    names = ("parameters", "pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "heldout_pairs")
    columns = [page.Column(name) for name in ("reward model", "parameters", "right", "from", "to", "pairs")]
    rows: list[list[page.Cell]] = [[name, *(result.get(metric) for metric in names)] for name, result in models.items()]
    rows += [[f"rule: the {rule} wins", None, full.get(rule), None, None, None] for rule in ("longest", "shortest")]
    words = "Share of held-out pairs ordered right, its 95% interval, beside two rules that read nothing."
    return [page.Table("The reward models, and two rules of thumb", columns, rows, words)]


def probe_tables(results: Results) -> list[page.Table]:
    """What `bridle reward probe` found that the reward pays for."""
    if "kinds" not in (found := results.get("reward-probe", {})):
        return []
    names = {
        "mean": page.Column("paid", "mean, standard deviations from ordinary answers"),
        "above_median": page.Column("above the median", "share paid more than the median ordinary answer"),
        "gain": page.Column("gain", "over the ordinary answer that it was made of"),
        "gain_low": page.Column("from", "99% interval of the gain"),
        "gain_high": page.Column("to", "99% interval of the gain"),
    }
    rows: list[list[page.Cell]] = [[kind, *(pay.get(name) for name in names)] for kind, pay in found["kinds"].items()]
    words = f"Answers that should not be paid for, {page.show(found['prompts'])} prompts each, by what RL learns from. "
    faults = page.listing(found["faults"]) if found["faults"] else "nothing is paid that should not be"
    columns = [page.Column("answers"), *names.values()]
    return [page.Table("What the reward pays for", columns, rows, f"{words}Found: {faults}.")]


def world_tables(results: Results) -> list[page.Table]:
    """What keeps the yardstick honest: what each kind of author is worth."""
    if (yardstick := results.get("label", {}).get("yardstick")) is None:
        return []
    columns = [page.Column("family"), page.Column("good"), page.Column("mid"), page.Column("bad")]
    rows: list[list[page.Cell]] = [
        [family, means["good"], means["mid"], means["bad"]] for family, means in yardstick["means"].items()
    ]
    words = f"Demonstrations, by people of uneven skill, average {page.show(yardstick['demonstrations'])} points."
    return [page.Table("The yardstick: mean gold of authors by family", columns, rows, words)]


def controls(project: Project, results: Results, warnings: list[str]) -> list[page.Control]:
    found = []
    shuffled = results.get("reward-shuffled", {})
    rate, low, high = (shuffled.get(f"pair_accuracy{end}") for end in ("", "_low", "_high"))
    if rate is not None and low is not None and high is not None:
        expected = "rankings turned round by coins, in training and in the test, teach a slim reward model nothing: .5 within the interval"
        measured = f"{page.show(rate)} ({page.show(low)} to {page.show(high)})"
        found.append(page.Control("shuffled labels", expected, measured, low <= 0.5 <= high))
    with left_out(warnings):
        if (notes := project.folder / "controls.json").exists():
            kept = read_json(notes)
            if fault := form_fault(kept, CONTROLS):
                raise DataError(f"{notes} is damaged: {fault}")
            found += [page.Control(*(control[name] for name in CONTROLS[0])) for control in kept]
    return found
