"""Fresh answers of one model to every held-out prompt, and comparisons of two."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.errors import DataError, ModelError, UsageError, WaitingForLabels
from bridle.core.files import finite_or_none, write_text
from bridle.core.records import Completion, LabelerKind, Prompt, content_hash
from bridle.core.text import json_text
from bridle.core.timeline import timed
from bridle.evaluation.answers import Answered, kl_of, proxy_scores, text_metrics
from bridle.evaluation.suite import Suite, SuiteCheck, called, compare_passes, passed_by, read_checks
from bridle.evaluation.winrate import paired_difference, right_answers, win_rate_of
from bridle.feedback.quality.votes import topic_in
from bridle.labelling.opening import ensure_studies
from bridle.maths.statistics import mean_and_se, outcomes
from bridle.models.policy import Policy
from bridle.models.template import load_template
from bridle.project import kept
from bridle.project.progress import count_through
from bridle.recipe.recipe import stated_source
from bridle.rewards.judge.judge import Candidates
from bridle.rewards.judge.measures import preferred_share
from bridle.rewards.judge.rulings import abstention_counts
from bridle.rewards.recorded import sandbox_of
from bridle.rewards.verifiers import Verifier
from bridle.stages.data import own_source
from bridle.stages.judge import announce_calls, judge_of
from bridle.stages.lineage import Lineage, Reference
from bridle.stages.observe import gold_by_family, probe_metrics
from bridle.stages.rewards import learned_reward, member_parents
from bridle.stages.workspace import Count, Work, done_before, require_model, stage_key

# Who judges two models' answers, and the score that kept answers carry.
KEPT_SCORES = {"gold": "gold", "reward": "proxy"}
KINDS_OF_PROBLEMS = ("problem", "topic", "family")  # where a prompt's meta may say its kind
Both = tuple[Mapping[str, Any], Mapping[str, Any]]  # lines of kept answers to one prompt


def evaluate(work: Work, name: str, reuse: bool = False) -> dict[str, Any]:
    """Fresh answers of one model to every held-out prompt, with all metrics; the answers are kept with the run."""
    recipe, stage, model = work.recipe, f"evaluate-{name}", work.project.model(name)
    with work.alone(stage):
        parents, reference = evaluation_parents(work, name), Lineage(work.project).reference(name)
        if reference is not None and (lacking := kl_lacks(work, name, reference)):
            work.warn([f"the KL of {name} is left out: {lacking}"])
            parents["reference"], reference = None, None
        elif reference is not None and reference.hash != parents.get("sft"):
            parents["reference"] = reference.hash
        key = stage_key(recipe, ("model", "data", "sampling", "world"), parents)
        if (before := done_before(work, stage, key, reuse)) is not None:
            return before
        with work.start(stage, f"Evaluating {name} on held-out prompts", key, parents) as run:
            policy = work.read_policy(model)
            mix = work.fitting(policy, work.data.heldout_prompts())
            probes = work.data.probe_prompts()
            report = count_through(len(mix) + len(probes), work.progress)
            answered = work.answer(policy, mix, stage, progress=report)
            known, lines = known_of(work, answered)
            result: dict[str, Any] = {"prompts": len(mix), **text_metrics(answered), **known}
            if probes:
                result |= probe(work, policy, answered, probes, report)
            if reference is not None and reference.folder is not None:
                kl, error = 0.0, 0.0
                if reference.hash != policy.origin:
                    kl, error = kl_of(answered, policy, work.read_policy(reference.folder, reference.hash), work.device)
                noted = {"name": reference.name, "hash": reference.hash}
                result |= {"kl": kl, "kl_se": error, "kl_reference": noted}
            if "reward" in parents:
                scores = proxy_scores(answered, learned_reward(work, policy))
                asked = zip(scores, answered.prompts, strict=True)
                judged = [(score, prompt.id) for score, prompt in asked if np.isfinite(score)]
                measured = mean_and_se(*zip(*judged, strict=True)) if judged else (None, None)
                result |= dict(zip(("proxy", "proxy_se"), measured, strict=True))
                lines = [{**line, "proxy": score} for line, score in zip(lines, scores, strict=True)]
            write_text(
                run.folder / "answers.jsonl",
                "".join(json_text(finite_or_none(line)) + "\n" for line in lines),
            )
            return run.finish(result)


def kl_lacks(work: Work, name: str, reference: Reference) -> str:
    """Why a model's KL cannot be measured against this reference; empty where it can."""
    if reference.folder is None:
        return (
            f"{reference.name} {reference.hash[:16]}…, which it is measured against, lies neither in references/ nor in models/ any "
            f"more; put that folder back, or train {name} again"
        )
    folders = (reference.folder, work.project.model(name))
    if len({load_template(folder, work.template_settings(folder)).hash for folder in folders}) > 1:
        return (
            f"{reference.name}, which it is measured against, has another tokenizer or chat template, so their log-probs cannot be "
            "compared; compare models that descend from the same base"
        )
    return ""


def evaluation_parents(work: Work, name: str) -> dict[str, Any]:
    """The model, and where they are there SFT and the reward model."""
    parents: dict[str, Any] = {
        "model": require_model(work, name),
        "name": name,
        "world": work.data.world_hash,
    }
    if (work.project.model("sft") / "config.json").is_file():
        parents["sft"] = work.registry.content(work.project.model("sft"))
    if (work.project.model("reward") / "config.json").is_file():
        parents |= member_parents(work)
    return parents


def known_of(work: Work, answered: Answered) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is known of the answers' true quality, if anything is, and a line for each answer."""
    pairs = list(zip(answered.prompts, answered.completions, strict=True))
    lines: list[dict[str, Any]] = [{"id": p.id, "prompt": p.text, "answer": c.text} for p, c in pairs]
    metrics: dict[str, Any] = work.data.observe(answered.prompts, answered.completions, "evaluation")
    if golds := work.data.score(answered.prompts, answered.completions, "evaluation"):
        families = [p.meta["family"] for p in answered.prompts]
        metrics["gold_by_family"] = gold_by_family(golds, families)
        notes = zip(lines, families, golds, strict=True)
        lines = [{**line, "family": family, "gold": gold.points} for line, family, gold in notes]
    return metrics, lines


def probe(work: Work, policy: Policy, answered: Answered, probes: Sequence[Prompt], report: Count) -> dict[str, float]:
    """Compliance and over-refusal on the mix's harmful and border prompts together with the probe prompts."""
    extra = work.answer(policy, probes, "probe", progress=report)
    prompts, completions = [*answered.prompts, *extra.prompts], [*answered.completions, *extra.completions]
    scores, families = work.data.score(prompts, completions, "evaluation"), [p.meta["family"] for p in prompts]
    return {**probe_metrics(scores, families), "harmful": families.count("harm"), "border": families.count("border")}


def read_answers(work: Work, name: str) -> list[dict[str, Any]]:
    """The kept answers of the last evaluation of a model."""
    folder = work.project.finished_folder(f"evaluate-{name}")
    if folder is None:
        raise ModelError(f"{name} was not evaluated yet; run `bridle evaluate {name}`")
    return kept.read_kept_answers(folder)


def require_comparison(work: Work, a: str, b: str, by: str) -> None:
    """Refuse a comparison that cannot be made before either model has answered."""
    for name in (a, b):
        require_model(work, name)
    if by == "gold" and work.data.score_by != "gold":
        raise UsageError(
            "gold needs the playground, and this project's data was imported; `--by reward` judges by the reward model"
        )
    if by == "reward":
        member_parents(work)
    if by == "judge":
        judge_of(work)
    if by == "verifier":
        work.data.checkable(heldout_alone=True)


# ------------------------------------------------------------------------------------------ answers that can be checked


def verify_model(work: Work, name: str, answers: int = 1, reuse: bool = False) -> dict[str, Any]:
    """Fresh answers of one model to every held-out prompt whose answers can be checked, so many to each, with the share that is right; the
    answers are kept with the run. NoUsableRows where no prompt can be checked."""
    recipe, stage, checkable = work.recipe, f"verify-{name}", work.data.checkable(heldout_alone=True)
    with work.alone(stage):
        asked, source = [prompt.id for prompt in checkable.heldout], own_source(recipe)
        checks = [dict(checkable.identity), source and stated_source(source.model_dump(mode="json"))]
        parents: dict[str, Any] = {"model": require_model(work, name), "name": name, "world": work.data.world_hash}
        parents |= {"data": content_hash(asked), "checks": content_hash(checks), "answers": answers}
        key = stage_key(recipe, ("model", "sampling"), parents)
        if (before := done_before(work, stage, key, reuse)) is not None:
            return before
        noted = {**parents, "folders": {"model": f"models/{name}"}}
        with work.start(stage, f"Checking answers of {name} to held-out prompts", key, noted) as run:
            policy = work.read_policy(work.project.model(name))
            prompts = work.fitting(policy, checkable.heldout, "held-out prompts")
            report = count_through(answers * len(prompts), work.progress)
            rounds = [work.answer(policy, prompts, stage, number, report) for number in range(answers)]
            lines = [line for answered in rounds for line in checked_lines(answered, checkable.verifier)]
            write_text(run.folder / "answers.jsonl", "".join(json_text(finite_or_none(line)) + "\n" for line in lines))
            tokens = [len(one.token_ids) for answered in rounds for one in answered.completions]
            found = right_answers(
                [line["value"] for line in lines], [line["id"] for line in lines], [line["unread"] for line in lines]
            )
            return run.finish({"prompts": len(prompts), "answers": answers, **found, "length": float(np.mean(tokens))})


def checked_lines(answered: Answered, verifier: Verifier) -> list[dict[str, Any]]:
    """A line for each answer that could be checked."""
    lines = []
    for prompt, completion in zip(answered.prompts, answered.completions, strict=True):
        if (found := verifier.examine(prompt, completion)).value is not None:
            kind = next((str(prompt.meta[name]) for name in KINDS_OF_PROBLEMS if prompt.meta.get(name)), "other")
            line = {"id": prompt.id, "prompt": prompt.text, "answer": completion.text, "family": kind}
            lines.append({**line, "value": found.value, "unread": found.unread})
    return lines


@timed("compare")
def compare_right(work: Work, a: str, b: str) -> dict[str, Any]:
    """Of the answers that `verify_model` kept, the first to a prompt with the first and so on: by how much more of A's are right,
    and the rate at which A's is the better one, ties one half."""
    runs = [work.project.finished_folder(f"verify-{name}") for name in (a, b)]
    lineage, found = Lineage(work.project), [run for run in runs if run is not None]
    work.warn(lineage.stale(work.project.model(name) for name in (a, b)))
    ours, theirs = (lines_by_prompt(kept.read_kept_answers(run)) for run in found)
    both = [pair for name in ours if name in theirs for pair in zip(ours[name], theirs[name], strict=False)]
    if not both:
        raise ModelError(f"{a} and {b} answered no prompt in common that can be checked; lower sampling.max_new_tokens")
    values, names = ([line["value"] for line in side] for side in zip(*both, strict=True)), [x["id"] for x, _ in both]
    right_a, right_b = values
    won = win_rate_of(
        outcomes(right_a, right_b).tolist(),
        [len(x["answer"].strip()) for x, _ in both],
        [len(y["answer"].strip()) for _, y in both],
        [x["family"] for x, _ in both],
        names,
    )
    return {"model": a, "against": b, "by": "verifier", "difference": paired_difference(right_a, right_b, names), **won}


def compare_on_suite(
    work: Work, policies: tuple[Policy, Policy], suite: Suite, answers: int, label: str
) -> dict[str, Any]:
    """Fresh answers of a candidate and of what is served to every check of a regression suite, so many to each, with what got worse.
    DataError where a prompt leaves no room for an answer: a suite is asked whole."""
    for policy in policies:
        asked = work.fitting(policy, [one.prompt for one in suite.checks], "prompts of the suite", enforce=False)
        if len(asked) < len(suite.checks):
            raise DataError(
                f"{len(suite.checks) - len(asked)} prompts of the suite leave no room for sampling.max_new_tokens in the model's context; "
                "shorten them, or lower it"
            )
    rounds = [work.answer(policy, asked * answers, label, number).completions for number, policy in enumerate(policies)]
    new, old = (passed_by(suite.checks, completions) for completions in rounds)
    return {"version": suite.version, **compare_passes(suite.checks, new, old)}


def evaluate_suite(work: Work, a: str, b: str, path: Path, answers: int) -> dict[str, Any]:
    """The same of two models of the project, by a suite's file."""
    suite = suite_in(work, path)
    contents = [require_model(work, name) for name in (a, b)]
    first, second = (
        work.read_policy(work.project.model(name), content) for name, content in zip((a, b), contents, strict=True)
    )
    return compare_on_suite(work, (first, second), suite, answers, f"suite-{a}")


def suite_in(work: Work, path: Path | None, problems: int = 0) -> Suite:
    """The regression suite of a file, with so many of the project's held-out problems behind it."""
    checks = [] if path is None else read_checks(path, sandbox_of(own_source(work.recipe)))
    if problems:
        known = work.data.checkable(heldout_alone=True)
        for prompt in sorted(known.heldout, key=lambda prompt: prompt.id)[:problems]:
            if (check := known.verifier.check(prompt)) is not None:
                checks.append(SuiteCheck(prompt.id, called(prompt.text), prompt, check))
    return Suite(checks)


def suite_lines(found: Mapping[str, Any], names: tuple[str, str] = ("candidate", "served")) -> list[str]:
    """For the terminal."""
    new, old = names
    lines = [
        f"{found['checks']} checks, {found['answers']} answers each, version {found['version'][:16]}",
        f"{new} passes {found['candidate']:.3f}, {old} {found['served']:.3f}: by {found['difference']:+.3f} "
        f"({found['low']:+.3f} to {found['high']:+.3f}); lost for good: {found['lost']}",
    ]
    of = found["answers"]
    lines += [f"  worse  {one['served']}/{of} -> {one['candidate']}/{of}  {one['name']}" for one in found["worse"]]
    return lines if found["worse"] else [*lines, "  no check got worse"]


def lines_by_prompt(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["id"], []).append(line)
    return found


# ------------------------------------------------------------------------------------------------- one against another


@timed("compare")
def compare(work: Work, a: str, b: str, by: str) -> dict[str, Any]:
    """Win rate of A's kept answers over B's, on the prompts that both answered: by gold, the reward model, the recipe's judge, or people.
    Equal texts tie. With ties counted, at equal length, and by category."""
    ours, theirs = read_answers(work, a), {line["id"]: line for line in read_answers(work, b)}
    both: list[Both] = [(line, theirs[line["id"]]) for line in ours if line["id"] in theirs]
    score = KEPT_SCORES.get(by)
    if not both or (score is not None and not all(score in line for line in both[0])):
        raise ModelError(
            f"the kept answers of {a} and {b} are to no prompt in common, or carry no score by {by}; "
            "evaluate both with that judge in place, on prompts that fit both"
        )
    lineage, runs = Lineage(work.project), [work.project.finished_folder(f"evaluate-{name}") for name in (a, b)]
    work.warn(lineage.outdated([run for run in runs if run is not None]))
    work.warn(lineage.stale(work.project.model(name) for name in (a, b)))
    more: dict[str, Any] = {}
    if score is not None:
        pairs = [
            (x[score], x[score] if x["answer"] == y["answer"] else y[score]) for x, y in both
        ]  # of equal text neither is better
        verdicts: list[float | None] = outcomes(*zip(*pairs, strict=True)).tolist()
    elif by == "judge":
        verdicts, more = judged_by_model(work, both)
    else:
        verdicts, more = judged_by_people(work, both, a, b)
    known = [(verdict, x, y) for verdict, (x, y) in zip(verdicts, both, strict=True) if verdict is not None]
    if not known:
        raise ModelError(f"none of {len(both)} comparisons of {a} and {b} has a verdict by {by}: {json_text(more)}")
    topic = {prompt.id: topic_in(prompt.meta) for prompt in work.data.heldout_prompts()}
    found = win_rate_of(
        [verdict for verdict, _, _ in known],
        [len(x["answer"].strip()) for _, x, _ in known],
        [len(y["answer"].strip()) for _, _, y in known],
        [str(x.get("family") or topic.get(x["id"]) or "other") for _, x, _ in known],
        [x["id"] for _, x, _ in known],
    )
    return {"model": a, "against": b, "by": by, **found, **more}


def judged_by_model(work: Work, both: Sequence[Both]) -> tuple[list[float | None], dict[str, Any]]:
    """The recipe's judge on each two answers; who it is, and why it had no verdict where it had none."""
    judge, prompts = judge_of(work), {prompt.id: prompt for prompt in work.data.heldout_prompts()}
    asked = [
        Candidates(prompts.get(x["id"]) or Prompt.from_text(x["prompt"]), [x["answer"], y["answer"]]) for x, y in both
    ]
    announce_calls(work, judge, asked, len(asked))
    opinions = judge.judge(asked, count_through(len(judge.questions(asked)), work.progress, "calls"))
    verdicts = [preferred_share(one, 0, 1) for one in opinions]
    return verdicts, {
        "judge": judge.name,
        "abstained": abstention_counts(one.kind for one in opinions),
    }


def judged_by_people(work: Work, both: Sequence[Both], a: str, b: str) -> tuple[list[float | None], dict[str, Any]]:
    """People on each two answers, in a study of their own, which waits for them the first time (exit status 3)."""
    store, study = work.store, f"{a}-against-{b}"
    stamps = [work.registry.content(work.project.model(name))[:16] for name in (a, b)]
    different = [n for n, (x, y) in enumerate(both) if x["answer"].strip() != y["answer"].strip()]
    groups = [
        [
            Completion(both[n][0]["id"], line["answer"], weight_stamp=stamp)
            for line, stamp in zip(both[n], stamps, strict=True)
        ]
        for n in different
    ]
    with store.transaction() as one:
        one.add_completions([answer for group in groups for answer in group], source="evaluation")
        items = one.add_items(groups, study=study)
        ensure_studies(one)
    votes: dict[str, list[float]] = {}
    for item, given in store.judgements(study=study):
        if given.labeler_kind is not LabelerKind.AI:
            votes.setdefault(item.id, []).append(0.5 if len(given.ranking) == 1 else float(given.ranking[0] == (0,)))
    if items and not votes:
        raise WaitingForLabels(
            f"{len(items)} comparisons of {a} and {b} wait for people in study {study!r}; `bridle label` asks them, and this command then "
            "counts what they said"
        )
    verdicts: list[float | None] = [0.5] * len(both)
    for n, item_id in zip(different, items, strict=True):
        verdicts[n] = sum(votes[item_id]) / len(votes[item_id]) if item_id in votes else None
    return verdicts, {"study": study, "waiting": sum(item_id not in votes for item_id in items)}
