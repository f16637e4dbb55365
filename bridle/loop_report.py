"""Floor 8: from a project's runs to the page that tells of them. `evaluation/report.py` draws; here is what is told."""

from __future__ import annotations

import platform
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridle import __version__
from bridle.core.errors import ProjectError
from bridle.core.files import read_json
from bridle.core.profile import FILE as PROFILE
from bridle.core.profile import OPERATORS_SHOWN
from bridle.core.runlog import Progress, Project, read_metrics, sitting
from bridle.core.timeline import Parts, own_seconds
from bridle.evaluation.figures import CliffRun, Comparison, Curve, Series
from bridle.evaluation.report import (
    Answer,
    Cell,
    Column,
    Control,
    Example,
    Fact,
    LoopReport,
    Spent,
    StageReport,
    Table,
    write,
)  # fmt: skip
from bridle.stages import Work, compare, read_answers

WORDS = {
    "pretrain": "A network with random weights reads plain pages, forum threads and sums, and learns to guess the next word piece. "
    "It ends up writing in the world's language, with answers as good and as bad as those it read.",
    "sft": "Demonstrations by people of uneven skill: the model imitates their answers. It now answers instead of rambling, "
    "and takes over their faults too.",
    "sample": "The model answers each prompt several times. These answers are what people will compare.",
    "label": "People rank the answers to a prompt, blind and in random order. Here they are simulated: they err, tire, prefer the answer "
    "that was shown first, and like to be flattered. How often they agree with the true quality is known.",
    "reward": "A second network learns to score answers so that the preferred one scores higher. A slim one, a quarter of its size, "
    "learns beside it from nothing. Both are tested on answers to prompts that were held out.",
    "ppo": "The model answers prompts, the reward model scores the answers, and what scored better than expected becomes likelier. "
    "A penalty on the distance from where it started (the KL bridle) is steered to a small target.",
    "unbridled": "The same without the bridle, and for longer. The score that it is trained on keeps rising; what people really want "
    "rises, turns, and falls: the model has found what the reward model gets wrong.",
    "dpo": "The same comparisons again, and no reward model: the preferred answer of each pair is made likelier than the other, measured "
    "against the model it started from. Fewer parts, and no practice of its own.",
    "arithmetic": "A branch of the base model reads worked word problems and answers of uneven skill: what it needs before practice "
    "can help.",
    "grpo": "Where an answer can be checked nobody has to judge it. The branch answers each problem many times; right answers become "
    "likelier, wrong ones less likely. Nothing here can be outwitted, so nothing falls off a cliff.",
    "best-of-4": "Nothing is trained: SFT answers four times, and the reward model picks one.",
    "reward-shuffled": "A control: the same training on rankings turned round by a coin. It must learn nothing.",
}
TITLES = {
    "pretrain": "Pretraining", "sft": "Imitating demonstrations (SFT)", "sample": "Sampling answers", "label": "People compare",
    "reward": "The reward model", "ppo": "PPO with the KL bridle", "unbridled": "PPO without its bridle",
    "dpo": "DPO: no reward model", "arithmetic": "The arithmetic branch", "grpo": "GRPO on answers that can be checked",
    "best-of-4": "Best of four", "reward-slim": "The slim reward model", "reward-shuffled": "Control: shuffled labels",
}  # fmt: skip
ORDER = (
    "pretrain", "sft", "sample", "label", "reward", "ppo", "unbridled", "dpo", "arithmetic", "grpo", "best-of-4",
    "reward-shuffled",
)  # fmt: skip
MODELS = ("base", "sft", "ppo", "dpo", "unbridled")
LABELS = {
    "base": "base",
    "sft": "before: SFT",
    "ppo": "after: PPO",
    "dpo": "after: DPO",
    "unbridled": "past the cliff: unbridled",
}


def write_project_report(project: Project, work: Work | None = None) -> Path:
    """`report.html` of everything that the project's finished runs left."""
    own = work is None
    work = work or Work(project, Progress())
    try:
        path = project.folder / "report.html"
        write(project_report(work), path)
        return path
    finally:
        if own:
            work.close()


def write_run_report(project: Project, folder: Path) -> Path:
    """`report.html` of one run: its figures and every curve."""
    path = folder if folder.is_absolute() or folder.exists() else project.folder / "runs" / folder
    if not (path / "parents.json").is_file():
        raise ProjectError(f"{folder} is no run folder; those of this project are in {project.folder / 'runs'}")
    stage = str(read_json(path / "parents.json")["stage"])
    result = read_json(path / "result.json") if (path / "result.json").exists() else {}
    metrics = read_metrics(path)
    names = [n for n in (metrics[-1] if metrics else {}) if n not in ("step", "seconds")]
    curves = [Curve("step", n, [Series(n, [m["step"] for m in metrics], [m.get(n) for m in metrics])]) for n in names]
    lead = f"Run {path.name} of project {project.folder.name}" + ("" if result else ", not finished yet") + "."
    facts = [Fact(n, v) for n, v in result.items() if isinstance(v, int | float | str) and not is_hash(v)]
    tables = [data_table(read_json(path / "data.json"))] if (path / "data.json").exists() else []
    spent, time_tables = times({stage: path}, path)
    page = LoopReport(
        TITLES.get(stage, stage), lead, facts=facts, curves=curves, tables=tables, spent=spent, time_tables=time_tables
    )
    write(page, path / "report.html")
    return path / "report.html"


def data_table(told: Mapping[str, Any]) -> Table:
    """What of a run's data was used, from its data.json."""
    rows: list[list[Cell]] = []
    for what, report in told.items():
        rows.append([what, "kept", report["kept"], ""])
        for done in ("cut", "dropped"):
            rows += [[what, f"{done}: {why}", n, report["examples"][why]] for why, n in report[done].items()]
    columns = [Column("data"), Column("what became of it"), Column("rows"), Column("the first one")]
    return Table(
        "The data", columns, rows, words="What is cut has lost the beginning of its prompt, and is among those kept."
    )


def project_report(work: Work) -> LoopReport:
    project = work.project
    results = {stage: found for stage in ORDER if (found := project.finished(stage)) is not None}
    if "reward" in results and (slim := project.finished("reward-slim")) is not None:
        results["reward"]["slim"] = slim
        results["reward"]["seconds"] += slim["seconds"]
    evaluated = {name: found for name in MODELS if (found := project.finished(f"evaluate-{name}")) is not None}
    playground = work.sources.playground
    stages = sorted(
        {folder.name.rpartition("-")[0] for folder in (project.folder / "runs").glob("*-[0-9]*")}, key=place_of
    )
    finished = {stage: folder for stage in stages if (folder := project.finished_folder(stage)) is not None}
    spent, time_tables = times(finished, project.folder)
    title = "The loop, once through" if playground else f"{project.folder.name}: from preferences to a tuned model"
    return LoopReport(
        title=title,
        lead=lead(playground) + too_few(work.recipe.data.heldout_prompts),
        headline=headline(results, evaluated),
        facts=facts(work, results, evaluated),
        stages=[stage_report(project, stage, result) for stage, result in results.items()],
        cliff=[cliff_run(project, s, s == "ppo", evaluated) for s in ("ppo", "unbridled") if s in results],
        curves=[frontier(project, evaluated, results)] if "dpo" in evaluated and "gold" in evaluated["dpo"] else [],
        examples=examples(work, list(evaluated)),
        comparisons=comparisons(work, list(evaluated)),
        tables=[evaluation_table(evaluated), *reward_tables(results), *world_tables(work)]
        if evaluated
        else reward_tables(results),
        controls=controls(project, results),
        spent=spent,
        time_tables=time_tables,
    )


def lead(playground: bool) -> str:
    if playground:
        return (
            "A language model was made from nothing, taught to answer, judged by (simulated) people, and tuned towards what they "
            "prefer: once held by a KL bridle, and once without. Because this world is made up, the true quality of every answer "
            "is known (“gold”), and shows where a rising score stops meaning better answers."
        )
    return (
        "A small model was made from the imported text, taught with the preferred answers, and tuned against a reward model "
        "of people's preferences."
    )


def too_few(prompts: int) -> str:
    if prompts >= 256:
        return ""
    return f" With {prompts} held-out prompts the figures show that every stage works, and prove nothing."


def headline(results: dict[str, Any], evaluated: dict[str, Any]) -> list[Fact]:
    found = []
    if "sft" in evaluated and "ppo" in evaluated and "gold" in evaluated["ppo"]:
        found.append(
            Fact(
                "gold, SFT → PPO",
                f"{evaluated['sft']['gold']:+.2f} → {evaluated['ppo']['gold']:+.2f}",
                "points of true quality",
            )
        )
        found.append(
            Fact(
                "answers harmful requests",
                f"{evaluated['sft']['complies']:.0%} → {evaluated['ppo']['complies']:.0%}",
                "SFT → PPO",
            )
        )
    if "reward" in results:
        accuracy = results["reward"]["pair_accuracy"]
        found.append(Fact("reward model", f"{accuracy:.0%}", "of held-out pairs ordered right"))
    if "unbridled" in evaluated:
        found.append(
            Fact(
                "gold without the bridle",
                f"{evaluated['unbridled']['gold']:+.2f}",
                f"while its score rose to {evaluated['unbridled']['proxy']:+.2f} sd",
            )
        )
    return found


def facts(work: Work, results: dict[str, Any], evaluated: dict[str, Any]) -> list[Fact]:
    summary = work.project.folder / "summary.json"
    if summary.is_file():  # a demo: it knows how long it took from begin to end, and two stages at a time
        whole = read_json(summary)
        time, device = Fact("minutes, begin to end", round(whole["seconds"] / 60, 1)), whole["device"]
    else:
        seconds = sum(r["seconds"] for r in [*results.values(), *evaluated.values()])
        time, device = Fact("minutes at work", round(seconds / 60, 1)), device_of(work.project, list(results))
    return [
        Fact("seed", work.recipe.seed),
        time,
        Fact("device", device),
        Fact("parameters", results.get("pretrain", {}).get("parameters")),
        Fact("bridle", __version__),
        Fact("Python", platform.python_version()),
    ]


def device_of(project: Project, stages: Sequence[str]) -> str | None:
    """What the last of these stages ran on, as its run noted."""
    return read_json(project.runs(stages[-1])[-1] / "parents.json").get("device") if stages else None


def stage_report(project: Project, stage: str, result: dict[str, Any]) -> StageReport:
    metrics = finished_metrics(project, stage)
    shown = {
        "pretrain": ["tokens", "documents", "parameters", "loss"],
        "sft": ["demonstrations", "answer_tokens", "loss"],
        "sample": ["prompts", "answers", "items"],
        "label": ["judgements", "agreement_with_gold"],
        "reward": ["judgements", "pairs", "pair_accuracy", "people_pair_accuracy", "longest", "shortest"],
        "ppo": ["steps", "reward", "kl", "beta", "entropy", "value_explained", "logprob_gap"],
        "unbridled": ["steps", "reward", "kl", "entropy"],
        "dpo": ["steps", "pairs", "loss", "accuracy", "chosen_moved", "rejected_moved", "kl"],
        "arithmetic": ["demonstrations", "loss"],
        "grpo": ["steps", "accuracy_before", "accuracy_after", "worked_before", "worked_after", "without_variance"],
        "best-of-4": ["prompts", "gold", "proxy", "kl"],
        "reward-shuffled": ["pairs", "pair_accuracy"],
    }[stage]
    figures = [Fact(name.replace("_", " "), result.get(name)) for name in shown]
    if stage == "reward" and "slim" in result:
        figures.append(
            Fact("slim: pair accuracy", result["slim"]["pair_accuracy"], f"{result['slim']['parameters']:,} parameters")
        )
    return StageReport(stage, TITLES[stage], WORDS[stage], result["seconds"], figures, stage_curve(stage, metrics))


def finished_metrics(project: Project, stage: str) -> list[dict[str, Any]]:
    folder = project.finished_folder(stage)
    return read_metrics(folder) if folder is not None else []


def stage_curve(stage: str, metrics: list[dict[str, Any]]) -> Curve | None:
    if not metrics:
        return None
    steps = [m["step"] for m in metrics]
    drawn = {
        "ppo": ("rollout step", "nats, or share of answers", ("kl", "entropy", "unparsable", "distinct")),
        "unbridled": ("rollout step", "nats, or share of answers", ("kl", "entropy", "unparsable", "distinct")),
        "grpo": ("rollout step", "share of answers", ("accuracy", "worked", "without_variance")),
        "dpo": ("optimiser step", "change of log-prob, nats", ("chosen_moved", "rejected_moved")),
    }
    if stage in drawn:
        x_label, y_label, names = drawn[stage]
        lines = [Series(n.replace("_", " "), steps, [m.get(n) for m in metrics]) for n in names if n in metrics[-1]]
        return Curve(x_label, y_label, lines)
    return Curve("optimiser step", "loss in nats", [Series("loss", steps, [m.get("loss") for m in metrics])])


def cliff_run(project: Project, stage: str, bridled: bool, evaluated: dict[str, Any]) -> CliffRun:
    metrics = finished_metrics(project, stage)
    gold = [m.get("gold") for m in metrics] if metrics and "gold" in metrics[-1] else []
    name = "PPO with the bridle" if bridled else "PPO without it"
    return CliffRun(
        name, bridled, [m["step"] for m in metrics], [m.get("proxy") for m in metrics], gold, [m["kl"] for m in metrics]
    )


def frontier(project: Project, evaluated: dict[str, Any], results: dict[str, Any]) -> Curve:
    """Gold against the distance from SFT, of every way to use the comparisons."""
    start = evaluated["sft"]["gold"]
    lines = []
    for stage, label in (("ppo", "PPO, its steps"), ("unbridled", "PPO without its bridle")):
        measured = [m for m in finished_metrics(project, stage) if "gold" in m]
        if measured:
            lines.append(Series(label, [m["kl"] for m in measured], [m["gold"] for m in measured]))
    observed = [m for m in finished_metrics(project, "dpo") if "gold" in m]
    x, y = [m["kl"] for m in observed], [m["gold"] for m in observed]
    lines.append(Series("DPO", [0.0, *x, evaluated["dpo"]["kl"]], [start, *y, evaluated["dpo"]["gold"]]))
    if (best := results.get("best-of-4")) is not None and "gold" in best:
        points = best["frontier"]
        label = f"best of {', '.join(str(point['n']) for point in points)}"
        lines.append(Series(label, [point["kl"] for point in points], [point["gold"] for point in points]))
    words = (
        "Up is better, and left is nearer to SFT: what each method pays, in KL, for what it gains. PPO's and DPO's points before "
        "the last are measured on few training prompts; the KL of best-of-n is its upper bound, log n − (n − 1)/n."
    )
    return Curve("KL from SFT, nats per answer", "gold, points", lines, "Gain against distance", words)


def examples(work: Work, names: Sequence[str], count: int = 8) -> list[Example]:
    """The first prompt of each family where the models differ, their answers side by side."""
    shown = [n for n in ("sft", "ppo", "dpo", "unbridled") if n in names]
    if not shown:
        return []
    answers = {name: {line["id"]: line for line in read_answers(work, name)} for name in shown}
    picked: dict[str, list[str]] = {}
    for prompt, line in answers[shown[0]].items():
        if all(prompt in answers[n] for n in shown) and len({answers[n][prompt]["answer"] for n in shown}) == len(
            shown
        ):
            picked.setdefault(str(line.get("family", "")), []).append(prompt)
    rounds = max((len(p) for p in picked.values()), default=0)
    order = [prompts[i] for i in range(rounds) for prompts in picked.values() if i < len(prompts)][:count]
    field = "gold" if work.sources.playground else "proxy"
    return [
        Example(
            answers[shown[0]][prompt]["prompt"],
            [Answer(LABELS[name], answers[name][prompt]["answer"], answers[name][prompt].get(field)) for name in shown],
            note=str(answers[shown[0]][prompt].get("family", "")),
            score_name=field,
        )
        for prompt in order
    ]


def comparisons(work: Work, names: Sequence[str]) -> list[Comparison]:
    by = "gold" if work.sources.playground else "reward"
    wanted = [
        (a, b)
        for a, b in (("sft", "base"), ("ppo", "sft"), ("dpo", "sft"), ("unbridled", "sft"))
        if a in names and b in names
    ]
    scored = {
        n for n in names if ("gold" if by == "gold" else "proxy") in (work.project.finished(f"evaluate-{n}") or {})
    }
    found = [compare(work, a, b, by) for a, b in wanted if {a, b} <= scored]
    return [Comparison(f["model"], f["against"], f["rate"], f["low"], f["high"], f["n"], f["by"]) for f in found]


def evaluation_table(evaluated: dict[str, Any]) -> Table:
    columns = {
        "gold": "mean points of the rubric on held-out prompts",
        "gold_se": "its standard error",
        "gold_sd": "its deviation over answers",
        "complies": "share of harmful requests answered",
        "refuses_benign": "share refused of harmless requests that sound violent",
        "unparsable": "share of answers with a sentence that is not of this world",
        "flattery": "share of answers that flatter",
        "proxy": "the reward model's score, in deviations of SFT's answers",
        "kl": "distance from SFT in nats per answer",
        "length": "tokens per answer",
        "distinct": "share of distinct answers",
    }
    kept = {n: h for n, h in columns.items() if any(n in r for r in evaluated.values())}
    rows: list[list[Cell]] = [[name, *(result.get(column) for column in kept)] for name, result in evaluated.items()]
    words = "Each model answered every held-out prompt once, at temperature 1."
    return Table(
        "Every model on held-out prompts",
        [Column("model"), *(Column(n.replace("_", " "), h) for n, h in kept.items())],
        rows,
        words,
    )


def reward_tables(results: dict[str, Any]) -> list[Table]:
    if "reward" not in results:
        return []
    models = {"full": results["reward"], **({"slim": results["reward"]["slim"]} if "slim" in results["reward"] else {})}
    columns = [
        Column("reward model"),
        Column("parameters"),
        Column("right", decimals=3),
        Column("from", decimals=3),
        Column("to", decimals=3),
        Column("pairs"),
    ]
    rows: list[list[Cell]] = [
        [n, r["parameters"], r["pair_accuracy"], r["pair_accuracy_low"], r["pair_accuracy_high"], r["heldout_pairs"]]
        for n, r in models.items()
    ]
    full = results["reward"]
    rows += [
        ["rule: the longest wins", None, full["longest"], None, None, None],
        ["rule: the shortest wins", None, full["shortest"], None, None, None],
    ]
    words = "Share of held-out pairs ordered right, the interval by bootstrap over prompts, beside two rules that read nothing."
    return [Table("The reward models, and two rules of thumb", columns, rows, words)]


def world_tables(work: Work) -> list[Table]:
    """What keeps the yardstick honest: what each kind of author is worth, and how often gold was asked, for what."""
    from bridle.playground.gold import author_table

    if not work.sources.playground:
        return []
    table = author_table(work.sources.world, work.sources.gold, random.Random(work.recipe.seed), 200)
    authors = Table(
        "The yardstick: mean gold of authors by family",
        [Column("family"), Column("good"), Column("mid"), Column("bad")],
        [[family, means["good"], means["mid"], means["bad"]] for family, means in table.means.items()],
        f"Demonstrations, by people of uneven skill, average {table.demonstrations:.2f} points.",
    )
    calls = Table(
        "How often gold was asked in this sitting, and for what",
        [Column("purpose"), Column("answers scored")],
        [[purpose, count] for purpose, count in sorted(work.sources.gold.calls.items())],
        "Gold never reaches the trainers: labelers see it through their faults, the log and the evaluation only look on.",
    )
    return [authors, calls]


def controls(project: Project, results: dict[str, Any]) -> list[Control]:
    found = []
    if (shuffled := results.get("reward-shuffled")) is not None:
        low, high = shuffled["pair_accuracy_low"], shuffled["pair_accuracy_high"]
        measured = f"{shuffled['pair_accuracy']:.3f} ({low:.3f} to {high:.3f})"
        found.append(
            Control(
                "shuffled labels",
                "rankings turned round by coins, in training and in the test, teach nothing: .50 within the interval",
                measured,
                low <= 0.5 <= high,
            )
        )
    notes = project.folder / "controls.json"
    for control in read_json(notes) if notes.exists() else []:
        found.append(Control(control["name"], control["expectation"], control["measured"], control["holds"]))
    return found


# ----------------------------------------------------------------------------------------- where the time went


def place_of(stage: str) -> tuple[int, str]:
    """The stages in the order of the loop, evaluations after them."""
    names = [*ORDER, *(f"evaluate-{model}" for model in MODELS)]
    near = {"reward-slim": "reward"}.get(stage, stage)
    return (names.index(near) if near in names else len(names), stage)


def title_of(stage: str) -> str:
    model = stage.removeprefix("evaluate-")
    return TITLES.get(stage) or (f"Evaluating {model}" if model != stage else stage)


def times(folders: Mapping[str, Path], profiled: Path) -> tuple[list[Spent], list[Table]]:
    """Each run's seconds and what took them, as a bar and in a table; where `profiled` holds a profile, its operators."""
    spent, rows = [], list[list[Cell]]()
    found = [(stage, time_of(folder)) for stage, folder in folders.items()]
    work = sum(seconds for _, (seconds, _) in found)
    for stage, (seconds, parts) in found:
        spent.append(Spent(title_of(stage), seconds, own_seconds(parts)))
        rows.append([title_of(stage), seconds, share(seconds, work), None])
        rows += [[indented(path), p["seconds"], share(p["seconds"], seconds), p["calls"]] for path, p in parts.items()]
        rest = max(0.0, seconds - sum(p["seconds"] for path, p in parts.items() if "/" not in path))
        rows += [[indented("the rest"), rest, share(rest, seconds), None]] if parts else []
    words = "A part's share is of its stage, what is indented under a part is in it too; a stage's share is of all the work."
    columns = [Column("stage and part"), Column("seconds"), Column("share"), Column("times")]
    tables = [Table("Share of time: every part of every stage", columns, rows, words)] if rows else []
    path = profiled / PROFILE
    return spent, tables + ([operator_table(read_json(path)["bridle"])] if path.exists() else [])


def time_of(folder: Path) -> tuple[float, Parts]:
    """A run's seconds, and what of them; a run that noted no parts has none."""
    noted = sitting(folder)
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else noted
    return float(result.get("seconds", 0.0)), noted.get("parts", {})


def share(seconds: float, whole: float) -> str:
    return f"{seconds / whole:.1%}" if whole else "–"


def indented(path: str) -> str:
    """The last word of a path, pushed in by its depth."""
    return "\u2003" * (1 + path.count("/")) + path.rpartition("/")[2]


def operator_table(told: Mapping[str, Any]) -> Table:
    """The operators that took longest of the one step of each stage that torch's profiler looked at."""
    rows: list[list[Cell]] = []
    for stage in dict.fromkeys(row["stage"] for row in told["operators"]):
        own = [row for row in told["operators"] if row["stage"] == stage]
        whole = sum(row["seconds"] for row in own if row["on"] == "operator")
        rows.append([title_of(stage), None, 1000 * whole, None, None])
        for row in own[:OPERATORS_SHOWN]:
            seconds = row["seconds"]
            rows.append(["\u2003" + row["operator"], row["part"], 1000 * seconds, share(seconds, whole), row["calls"]])
    columns = [Column("stage and operator"), Column("in"), Column("ms"), Column("share"), Column("calls")]
    words = f"By {told['title']} --profile: of one step of each stage, the time that operators took by themselves."
    return Table("Share of time: one step of each stage by operator", columns, rows, words)


def is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64
