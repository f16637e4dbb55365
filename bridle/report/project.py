"""The page of a project: everything that its finished runs left."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridle import __version__
from bridle.core.files import read_json
from bridle.project.metrics import read_metrics
from bridle.project.project import Project
from bridle.report import page
from bridle.report.drawings import CliffRun, Comparison, Curve, Series
from bridle.report.stages import MODELS, STAGES, StageRow, place_of, stage_curve, words_of
from bridle.report.timing import times
from bridle.stages.evaluate import compare, read_answers
from bridle.stages.workspace import Work

Results = Mapping[str, Mapping[str, Any]]  # of finished stages, or of evaluations, by name

# How the page begins, by the score that answers carry: title (with the project's name) and lead.
OPENINGS = {
    "gold": (
        "The loop, once through",
        "A language model was made from nothing, taught to answer, judged by (simulated) people, and tuned towards what they "
        "prefer: once held by a KL bridle, and once without. Because this world is made up, the true quality of every answer "
        "is known (“gold”), and shows where a rising score stops meaning better answers.",
    ),
    "proxy": (
        "{name}: from preferences to a tuned model",
        "A small model was made from the imported text, taught with the preferred answers, and tuned against a reward model "
        "of people's preferences.",
    ),
}
EVALUATED = {  # metrics of an evaluation, with what they mean
    "gold": "mean points of the rubric on held-out prompts",
    "gold_se": "its standard error",
    "gold_sd": "its standard deviation over answers",
    "complies": "share of harmful requests answered",
    "refuses_benign": "share refused of harmless requests that sound violent",
    "unparsable": "share of answers with a sentence that is not of this world",
    "flattery": "share of answers that flatter",
    "proxy": "the reward model's score, in standard deviations of SFT's answers",
    "kl": "distance from SFT in nats per answer",
    "length": "tokens per answer",
    "distinct": "share of distinct answers",
}
MOST_EXAMPLES = 8


def write_project_report(work: Work) -> Path:
    """`report.html` of everything that the project's finished runs left."""
    path = work.project.folder / "report.html"
    page.write(project_report(work), path)
    return path


def project_report(work: Work) -> page.LoopReport:
    project = work.project
    results = stage_results(project)
    evaluated = {name: found for name in MODELS if (found := project.finished(f"evaluate-{name}")) is not None}
    spent, time_tables = times(finished_folders(project), project.folder)
    title, lead = OPENINGS[work.data.score_name]
    return page.LoopReport(
        title=title.format(name=project.folder.name),
        lead=lead + too_few(work.recipe.data.heldout_prompts),
        headline=headline(results, evaluated),
        facts=facts(work, results, evaluated),
        stages=[stage_report(project, STAGES[name], result) for name, result in results.items()],
        cliff=[cliff_run(project, STAGES[name]) for name in ("ppo", "unbridled") if name in results],
        curves=frontier(project, evaluated, results),
        examples=examples(work, [name for name in evaluated if name != "base"]),
        comparisons=win_rates(work, evaluated),
        tables=[*evaluation_tables(evaluated), *reward_tables(results), *(world_tables(work) if evaluated else [])],
        controls=controls(project, results),
        spent=spent,
        time_tables=time_tables,
    )


def stage_results(project: Project) -> dict[str, dict[str, Any]]:
    """Results of the finished stages that have a part of the page, in its order; the slim reward model's within the full one's."""
    named = [name for name, row in STAGES.items() if row.words]
    results = {name: found for name in named if (found := project.finished(name)) is not None}
    if "reward" in results and (slim := project.finished("reward-slim")) is not None:
        results["reward"]["slim"] = slim
        results["reward"]["seconds"] += slim["seconds"]
    return results


def finished_folders(project: Project) -> dict[str, Path]:
    """The last finished run of every stage that there is, of any name, in the order of the loop."""
    stages = {folder.name.rpartition("-")[0] for folder in (project.folder / "runs").glob("*-[0-9]*")}
    found = {stage: project.finished_folder(stage) for stage in sorted(stages, key=place_of)}
    return {stage: folder for stage, folder in found.items() if folder is not None}


def too_few(prompts: int) -> str:
    if prompts >= 256:
        return ""
    return f" With {prompts} held-out prompts the numbers show that every stage works, and prove nothing."


def headline(results: Results, evaluated: Results) -> list[page.Fact]:
    found = []
    if "sft" in evaluated and "ppo" in evaluated and "gold" in evaluated["ppo"]:
        sft, ppo = evaluated["sft"], evaluated["ppo"]
        found.append(page.Fact("gold, SFT → PPO", f"{sft['gold']:+.2f} → {ppo['gold']:+.2f}", "points of true quality"))
        complied = f"{sft['complies']:.0%} → {ppo['complies']:.0%}"
        found.append(page.Fact("answers harmful requests", complied, "SFT → PPO"))
    if "reward" in results:
        accuracy = results["reward"]["pair_accuracy"]
        found.append(page.Fact("reward model", f"{accuracy:.0%}", "of held-out pairs ordered right"))
    if "unbridled" in evaluated:
        fallen = evaluated["unbridled"]
        hint = f"while its score rose to {fallen['proxy']:+.2f} sd"
        found.append(page.Fact("gold without the bridle", f"{fallen['gold']:+.2f}", hint))
    return found


def facts(work: Work, results: Results, evaluated: Results) -> list[page.Fact]:
    summary = work.project.folder / "summary.json"
    if summary.is_file():  # a demo: it knows how long it took from begin to end, and two stages at a time
        whole = read_json(summary)
        time, device = page.Fact("minutes, begin to end", round(whole["seconds"] / 60, 1)), whole["device"]
    else:
        seconds = sum(result["seconds"] for result in [*results.values(), *evaluated.values()])
        time, device = page.Fact("minutes at work", round(seconds / 60, 1)), device_of(work.project, list(results))
    return [
        page.Fact("seed", work.recipe.seed),
        time,
        page.Fact("device", device),
        page.Fact("parameters", results.get("pretrain", {}).get("parameters")),
        page.Fact("bridle", __version__),
        page.Fact("Python", platform.python_version()),
    ]


def device_of(project: Project, stages: Sequence[str]) -> str | None:
    """What the last of these stages ran on, as its run noted."""
    return read_json(project.runs(stages[-1])[-1] / "parents.json").get("device") if stages else None


def stage_report(project: Project, row: StageRow, result: Mapping[str, Any]) -> page.StageReport:
    metrics = [page.Fact(name.replace("_", " "), result.get(name)) for name in row.metrics]
    if (slim := result.get("slim")) is not None:
        metrics.append(page.Fact("slim: pair accuracy", slim["pair_accuracy"], f"{slim['parameters']:,} parameters"))
    curve = stage_curve(row, finished_metrics(project, row.name))
    return page.StageReport(row.name, row.title, words_of(row, result), result["seconds"], metrics, curve)


def finished_metrics(project: Project, stage: str) -> list[dict[str, Any]]:
    folder = project.finished_folder(stage)
    return read_metrics(folder) if folder is not None else []


def cliff_run(project: Project, row: StageRow) -> CliffRun:
    metrics = finished_metrics(project, row.name)
    gold = [m.get("gold") for m in metrics] if metrics and "gold" in metrics[-1] else []
    name = "PPO with the bridle" if row.bridled else "PPO without it"
    steps, proxy, kl = [m["step"] for m in metrics], [m.get("proxy") for m in metrics], [m["kl"] for m in metrics]
    return CliffRun(name, row.bridled, steps, proxy, gold, kl)


def frontier(project: Project, evaluated: Results, results: Results) -> list[Curve]:
    """Gold against the distance from SFT, of every way to use the comparisons; nothing where gold is not known of DPO."""
    if "gold" not in evaluated.get("dpo", {}):
        return []
    lines = []
    for stage, label in (("ppo", "PPO, its steps"), ("unbridled", "PPO without its bridle")):
        if measured := [m for m in finished_metrics(project, stage) if "gold" in m]:
            lines.append(Series(label, [m["kl"] for m in measured], [m["gold"] for m in measured]))
    observed = [m for m in finished_metrics(project, "dpo") if "gold" in m and "kl" in m]
    kl = [0.0, *(m["kl"] for m in observed), evaluated["dpo"]["kl"]]
    gold = [evaluated["sft"]["gold"], *(m["gold"] for m in observed), evaluated["dpo"]["gold"]]
    lines.append(Series("DPO", kl, gold))
    if (best := results.get("best-of-4")) is not None and "gold" in best:
        points = best["frontier"]
        label = f"best of {', '.join(str(point['n']) for point in points)}"
        lines.append(Series(label, [point["kl"] for point in points], [point["gold"] for point in points]))
    words = (
        "Up is better, and left is nearer to SFT: what each method pays, in KL, for what it gains. PPO's and DPO's points before "
        "the last are measured on few training prompts; the KL of best-of-n is its upper bound, log n − (n − 1)/n."
    )
    return [Curve("KL from SFT, nats per answer", "gold, points", lines, "Gain against distance", words)]


def examples(work: Work, names: Sequence[str]) -> list[page.SideBySide]:
    """The first prompts of each family on which all models differ, their answers side by side."""
    if not names:
        return []
    answers = {name: {line["id"]: line for line in read_answers(work, name)} for name in names}
    first, score = answers[names[0]], work.data.score_name
    picked: dict[str, list[str]] = {}
    for prompt, line in first.items():
        texts = {answers[name][prompt]["answer"] for name in names if prompt in answers[name]}
        if len(texts) == len(names):
            picked.setdefault(str(line.get("family", "")), []).append(prompt)
    rounds = max((len(prompts) for prompts in picked.values()), default=0)
    order = [prompts[i] for i in range(rounds) for prompts in picked.values() if i < len(prompts)]
    found = []
    for prompt in order[:MOST_EXAMPLES]:
        lines = {name: answers[name][prompt] for name in names}
        side = [page.ModelAnswer(MODELS[n].label, line["answer"], line.get(score)) for n, line in lines.items()]
        note = str(first[prompt].get("family", ""))
        found.append(page.SideBySide(first[prompt]["prompt"], side, note, score))
    return found


def win_rates(work: Work, evaluated: Results) -> list[Comparison]:
    """Every model against SFT, and SFT against base, where both answers have the score that judges."""
    scored = [name for name, result in evaluated.items() if work.data.score_name in result]
    wanted = [(name, "base" if name == "sft" else "sft") for name in scored if name != "base"]
    found = [compare(work, a, b, work.data.score_by) for a, b in wanted if b in scored]
    return [Comparison(f["model"], f["against"], f["rate"], f["low"], f["high"], f["n"], f["by"]) for f in found]


def evaluation_tables(evaluated: Results) -> list[page.Table]:
    if not evaluated:
        return []
    kept = {name: hint for name, hint in EVALUATED.items() if any(name in result for result in evaluated.values())}
    columns = [page.Column("model"), *(page.Column(name.replace("_", " "), hint) for name, hint in kept.items())]
    rows: list[list[page.Cell]] = [
        [name, *(result.get(column) for column in kept)] for name, result in evaluated.items()
    ]
    words = "Each model answered every held-out prompt once, at temperature 1."
    return [page.Table("Every model on held-out prompts", columns, rows, words)]


def reward_tables(results: Results) -> list[page.Table]:
    if "reward" not in results:
        return []
    full = results["reward"]
    models = {"full": full, **({"slim": full["slim"]} if "slim" in full else {})}
    intervals = [page.Column(name, decimals=3) for name in ("right", "from", "to")]
    columns = [page.Column("reward model"), page.Column("parameters"), *intervals, page.Column("pairs")]
    metrics = ("parameters", "pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "heldout_pairs")
    rows: list[list[page.Cell]] = [[name, *(result[metric] for metric in metrics)] for name, result in models.items()]
    rows += [[f"rule: the {rule} wins", None, full[rule], None, None, None] for rule in ("longest", "shortest")]
    words = "Share of held-out pairs ordered right, the interval by bootstrap over prompts, beside two rules that read nothing."
    return [page.Table("The reward models, and two rules of thumb", columns, rows, words)]


def world_tables(work: Work) -> list[page.Table]:
    """What keeps the yardstick honest: what each kind of author is worth, and how often gold was asked, for what."""
    if (yardstick := work.data.yardstick()) is None:
        return []
    authors = page.Table(
        "The yardstick: mean gold of authors by family",
        [page.Column("family"), page.Column("good"), page.Column("mid"), page.Column("bad")],
        [[family, means["good"], means["mid"], means["bad"]] for family, means in yardstick.means.items()],
        f"Demonstrations, by people of uneven skill, average {yardstick.demonstrations:.2f} points.",
    )
    calls = page.Table(
        "How often gold was asked in this session, and for what",
        [page.Column("purpose"), page.Column("answers scored")],
        [[purpose, count] for purpose, count in sorted(yardstick.gold_calls.items())],
        "Gold never reaches the trainers: labelers see it through their faults, the log and the evaluation only look on.",
    )
    return [authors, calls]


def controls(project: Project, results: Results) -> list[page.Control]:
    found = []
    if (shuffled := results.get("reward-shuffled")) is not None:
        low, high = shuffled["pair_accuracy_low"], shuffled["pair_accuracy_high"]
        measured = f"{shuffled['pair_accuracy']:.3f} ({low:.3f} to {high:.3f})"
        found.append(
            page.Control(
                "shuffled labels",
                "rankings turned round by coins, in training and in the test, teach nothing: .50 within the interval",
                measured,
                low <= 0.5 <= high,
            )
        )
    notes = project.folder / "controls.json"
    for control in read_json(notes) if notes.exists() else []:
        found.append(page.Control(control["name"], control["expectation"], control["measured"], control["holds"]))
    return found
