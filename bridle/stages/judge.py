"""A model judges what waits in the store, as one more person: blind, by assignments of its own, its verdicts judgements of kind `ai`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from bridle.core.errors import NoUsableRows, UsageError
from bridle.core.records import Judgement, LabelerKind, content_hash
from bridle.feedback.people.at_work import own_progress, return_task
from bridle.feedback.people.history import own_answers
from bridle.feedback.rankings import Item
from bridle.feedback.store.assignment import Asked, display_order, next_tasks, submit
from bridle.feedback.store.studies import find_study
from bridle.labelling.opening import ensure_studies
from bridle.models.files.chat_template import settings_of
from bridle.models.lora.merging import as_whole
from bridle.models.policy import Policy, load_policy
from bridle.playground.gold import CLEAR_GAP
from bridle.project.run import Run
from bridle.rewards.judge.cache import ReplyCache
from bridle.rewards.judge.endpoint import Endpoint
from bridle.rewards.judge.judge import VERSION, Candidates, Judge
from bridle.rewards.judge.local import LocalModel
from bridle.rewards.judge.measures import JudgedPair, judge_report, pairs_of_opinion, share_of_items
from bridle.rewards.judge.questions import Rubric, attacks
from bridle.rewards.judge.rulings import JUDGED, UNASKED, Assessment, JudgeCall, Ruling, abstention_counts
from bridle.stages.critic import CRITIC, train_critic
from bridle.stages.data import STUDY, PlaygroundData
from bridle.stages.observe import agreement_with_gold
from bridle.stages.workspace import Work, done_before, require_model, stage_key

CACHE = "judge-cache.jsonl"
FEWEST, MOST = 16, 512  # items at once: after a minute the next ones are fewer, so that no lease ends meanwhile
SLOW = 60.0  # seconds
LOOKED_AT = 200  # items by which all are estimated
PAGE = 5000
Shares = Mapping[tuple[int, int], float]
Rows = Sequence[tuple[Item, Assessment]]


# ------------------------------------------------------------------------------------------------------ who judges


def judge_of(work: Work) -> Judge:
    """The recipe's judge, made once. Its replies are kept in the project as long as the work goes on, and for the next one."""
    if work.judge is None:
        section = work.recipe.judge
        if not section.model:
            raise UsageError(
                "no judge is named; set judge.model to a model of the project or its folder, or judge.endpoint and judge.model to one that "
                "answers elsewhere"
            )
        rubric, shape = rubric_in(work), (section.form, section.both_orders)
        if section.endpoint:
            cache = work.closing.enter_context(ReplyCache(work.project.folder / CACHE))
            if cache.damaged:
                work.progress.say(f"{cache.path} holds {cache.damaged} damaged lines, which are asked again")
            work.asked = Endpoint(section, cache)
            identity = content_hash([section.endpoint, section.temperature, section.body, section.logprobs])
            work.judge = Judge(work.asked.ask, rubric, section.model, identity, *shape)
        else:
            policy = local_policy(work)
            local = LocalModel(policy, work.device, section.max_tokens, section.temperature)
            work.judge = Judge(
                local.ask, rubric, section.model, content_hash([policy.origin, section.temperature]), *shape
            )
    return work.judge


def rubric_in(work: Work) -> Rubric:
    """The recipe's. The playground's critic knows one question, of one answer: it is asked that, where the recipe has none."""
    section, question, verdicts = work.recipe.judge, work.recipe.judge.question, work.recipe.judge.verdicts
    taught = work.data.taught_grading() if section.model == CRITIC and not section.endpoint else None
    if taught is not None and not (question or verdicts):
        question, verdicts = taught
        if section.form != "rating" or section.reasons:
            raise UsageError(
                f"the model {CRITIC!r} was taught to grade one answer at a time, and to give no reasons; set judge.form = 'rating' and "
                "judge.reasons = false"
            )
    how = (section.scale, section.reasons, work.recipe.seed, question, tuple(verdicts.items()))
    return Rubric(section.language, section.rubric, tuple(section.principles), *how)


def local_policy(work: Work) -> Policy:
    """A model of the project, by its name, or any folder or GGUF file, by its path. The playground's critic is taught where it is not there
    yet."""
    model = work.recipe.judge.model
    there = work.project.model(CRITIC).joinpath("config.json").is_file()
    if model == CRITIC and not there and work.data.taught_grading() is not None:
        train_critic(work)
    if not {"/", "\\"} & set(model) and not model.startswith((".", "~")):
        content = require_model(work, model)
        return work.read_policy(work.project.model(model), content)
    place = work.project.folder / Path(model).expanduser()
    with as_whole(place) as folder:
        return load_policy(folder, work.device.torch, settings=settings_of(work.recipe.model))


# ------------------------------------------------------------------------------------------------ what it is given


def judge_waiting(work: Work, study: str = STUDY, most: int = 0, reuse: bool = False) -> dict[str, Any]:
    """Judge what waits for one more person in a study, `most` items at most (0: all), and report what the judge's verdicts are worth."""
    with work.alone("judge"):
        judge = judge_of(work)
        ensure_studies(work.store)
        if find_study(work.store, study) is None or not any(own_progress(work.store, study, judge.name)):
            raise NoUsableRows(
                f"study {study!r} holds nothing for {judge.name} to judge; `bridle sample` draws answers, and where people have judged all "
                "of them, `bridle judge --audit N` compares the judge with them"
            )
        parents = {"judge": judge.hash, "study": study}
        key = stage_key(work.recipe, ("judge",), {**parents, "most": most})
        if (before := done_before(work, "judge", key, reuse)) is not None:
            return before
        with work.start("judge", f"{judge.name} judges what waits in {study!r}", key, parents) as run:
            counts = label_waiting(work, run, judge, study, most)
            given = list(given_by(work, study, judge.name))
            worth = worth_of(work, judge, [(item, kept_opinion(one)) for item, one in given], counts, study)
            ranked = [(item, one) for item, one in given if one.ranking]
            agreement = agreement_with_gold(ranked, work.data.score) if isinstance(work.data, PlaygroundData) else {}
            return run.finish({**worth, **agreement})


def audit_judge(work: Work, most: int, study: str | None = None) -> dict[str, Any]:
    """Judge again what people have judged, `most` items drawn by the seed, and compare. Nothing goes into the store."""
    with work.alone("judge-audit"):
        judge = judge_of(work)
        judged = {
            item.id: item for item, one in work.store.judgements(study=study) if one.labeler_kind != LabelerKind.AI
        }
        if not judged:
            raise NoUsableRows(
                f"{work.project.store} holds no comparisons by people to audit a judge by; `bridle import FILE` brings some"
            )
        drawn = sorted(judged, key=lambda name: content_hash([work.recipe.seed, "audit", name]))[:most]
        parents = {"judge": judge.hash, "items": content_hash(drawn)}
        with work.start(
            "judge-audit",
            f"{judge.name} judges what people have judged",
            stage_key(work.recipe, ("judge",), parents),
            parents,
        ) as run:
            items = [judged[name] for name in drawn]
            orders = [display_order(study or STUDY, item.id, judge.name, len(item.completions)) for item in items]
            asked = [candidates_of(item, order) for item, order in zip(items, orders, strict=True)]
            announce_calls(work, judge, asked, len(items))
            found = ask_all(work, run, judge, asked)
            rows = [(item, by_slot(opinion, order)) for item, opinion, order in zip(items, found, orders, strict=True)]
            return run.finish(worth_of(work, judge, rows, {}, study))


def label_waiting(work: Work, run: Run, judge: Judge, study: str, most: int) -> dict[str, int]:
    """Until nothing waits. What the endpoint failed on, or the budget did not reach, stays with the judge and waits."""
    store, count, stored = work.store, FEWEST, 0
    failed, given_back = set[str](), 0
    left = own_progress(store, study, judge.name)[1]
    total = min(most or left, left)
    while not most or stored + len(failed) < most:
        wanted = min(count, most - stored - len(failed)) if most else count
        tasks = next_tasks(store, study, judge.name, wanted + len(failed), kind=LabelerKind.AI)
        tasks = [task for task in tasks if task.item.id not in failed]
        if not tasks:
            break
        for task in tasks:
            if len(task.item.completions) < 2:  # to be rated or written alone
                return_task(store, judge.name, task.item.id)
                given_back += 1
        tasks = [task for task in tasks if len(task.item.completions) > 1]
        asked = [candidates_of(task.item, task.display_order) for task in tasks]
        if not stored and not failed:
            announce_calls(work, judge, asked, total)
        began = time.monotonic()
        opinions = ask_all(work, run, judge, asked)
        kept = [
            judgement_by(judge, task, opinion)
            for task, opinion in zip(tasks, opinions, strict=True)
            if opinion.kind not in UNASKED
        ]
        submit(store, study, kept)
        stored += len(kept)
        failed |= {task.item.id for task, opinion in zip(tasks, opinions, strict=True) if opinion.kind in UNASKED}
        if any(opinion.kind == "over_budget" for opinion in opinions):
            work.progress.say(
                f"the budget is spent; {len(failed):,} items at least wait, for a larger one or another day"
            )
            break
        run.progress.update(stored, max(total, stored), unit="items")
        count = min(MOST, 2 * count) if time.monotonic() - began < SLOW else max(FEWEST, count // 2)
    return {"stored": stored, "left_waiting": len(failed), "given_back": given_back}


def ask_all(work: Work, run: Run, judge: Judge, asked: Sequence[Candidates]) -> list[Assessment]:
    """One opinion each; a stop that was asked for comes between two calls, and what was answered is kept."""
    calls, done = len(judge.questions(asked)), 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        run.progress.update(done, calls, unit="calls")
        run.stop_if_asked(f"{done:,} of {calls:,} calls were made")

    return judge.judge(asked, progress)


def announce_calls(work: Work, judge: Judge, asked: Sequence[Candidates], items: int) -> None:
    """What it will take, before it begins."""
    questions = judge.questions(asked[:LOOKED_AT])
    scale = items / max(1, min(len(asked), LOOKED_AT))
    calls = round(len(questions) * scale)
    if work.asked is None:
        work.progress.say(f"{items:,} items, about {calls:,} questions to a model that runs here")
        return
    found, section = work.asked.estimate(questions), work.recipe.judge
    cost = f", costing some {found.cost * scale:,.2f}" if section.price_read or section.price_written else ""
    known = len(questions) - found.calls
    seconds = (
        found.seconds * scale
        if len(questions) > section.concurrency
        else calls * section.expected_seconds / section.concurrency
    )
    work.progress.say(
        f"{items:,} items, about {round(found.calls * scale):,} calls{f' ({round(known * scale):,} more are known)' if known else ''}, "
        f"{round(found.tokens_read * scale):,} tokens to read and at most {round(found.tokens_written * scale):,} to write{cost}, some "
        f"{seconds / 60:,.0f} min at {section.expected_seconds:g} s a call"
    )


def candidates_of(item: Item, order: Sequence[int]) -> Candidates:
    return Candidates(item.prompt, [item.completions[slot].text for slot in order])


def by_slot(opinion: Assessment, order: Sequence[int]) -> Assessment:
    """An opinion about answers as they were displayed, in the item's canonical slots. Answers of one text stand for the first of them."""
    scores: list[float | None] = [None] * len(order)
    for place, slot in enumerate(order):
        scores[slot] = opinion.scores[place]
    calls = [JudgeCall(tuple(order[place] for place in call.order), call.ruling) for call in opinion.calls]
    return Assessment(opinion.kind, tuple(scores), tuple(calls))


def judgement_by(judge: Judge, task: Asked, opinion: Assessment) -> Judgement:
    """The opinion as a judgement: what has no verdict is skipped, so that somebody else is asked, with the reason."""
    found = by_slot(opinion, task.display_order)
    return Judgement(
        task.item.id,
        judge.name,
        LabelerKind.AI,
        found.ranking,
        task.display_order,
        submission_key=content_hash([judge.name, task.item.id]),
        outcome="" if found.ranking else "skip",
        confidence=found.probability,
        guideline=task.guideline,
        client={
            "judge": judge.hash,
            "model": judge.model,
            "prompt": judge.rubric.hash,
            "version": VERSION,
            "kind": found.kind,
            "scores": [score if score is None else round(score, 6) for score in found.scores],
            "calls": [call.as_dict() for call in found.calls],
        },
    )


def kept_opinion(judgement: Judgement) -> Assessment:
    """What `judgement_by` kept."""
    client = judgement.client
    calls = [
        JudgeCall(tuple(one["order"]), Ruling(one["kind"], tuple(one["scores"]), one["soft"]))
        for one in client["calls"]
    ]
    return Assessment(client["kind"], tuple(client["scores"]), tuple(calls))


def given_by(work: Work, study: str, labeler: str) -> Iterator[tuple[Item, Judgement]]:
    """All that a judge has said in a study."""
    offset = 0
    while page := own_answers(work.store, study, labeler, limit=PAGE, offset=offset):
        yield from page
        offset += PAGE


# ---------------------------------------------------------------------------------------------------- what it is worth


def worth_of(work: Work, judge: Judge, rows: Rows, counts: Mapping[str, int], study: str | None) -> dict[str, Any]:
    """The result of a run: the report, and how often an injected instruction flipped a verdict."""
    pairs = judged_pairs_of(work, rows, study)
    identity = {
        "judge": judge.name,
        "judge_model": judge.model,
        "prompt": judge.rubric.hash[:16],
        "version": VERSION,
        "form": judge.form,
    }
    spent = {} if work.asked is None else {"calls": work.asked.calls, "tokens": work.asked.tokens}
    kinds = abstention_counts(opinion.kind for _, opinion in rows)
    return {
        **identity,
        "items": len(rows),
        **counts,
        **spent,
        **judge_report(pairs),
        "items_abstained": kinds,
        "injection": injections(work, judge, rows),
    }


def judged_pairs_of(work: Work, rows: Rows, study: str | None) -> list[JudgedPair]:
    """Every two answers of these items, with what gold and people say of them."""
    people, known, own = people_shares(work, {item.id for item, _ in rows}), gold_shares(work, rows), own_stamps(work)
    pairs = []
    for item, opinion in rows:
        truths = {name: shares[item.id] for name, shares in (("people", people), ("gold", known)) if item.id in shares}
        texts = [completion.text for completion in item.completions]
        of_own = [completion.weight_stamp.partition("+")[0] in own for completion in item.completions]
        pairs += pairs_of_opinion(item.id, opinion, texts, of_own, truths)
    return pairs


def people_shares(work: Work, items: set[str]) -> dict[str, Shares]:
    """What people, simulated ones and imported verdicts say of an item's answers: the share of votes for the first of each two."""
    votes: dict[str, dict[tuple[int, int], list[float]]] = {}
    for item, one in work.store.judgements():
        if item.id in items and one.labeler_kind is not LabelerKind.AI:
            place = {slot: rank for rank, group in enumerate(one.ranking) for slot in group}
            of_item = votes.setdefault(item.id, {})
            for a, b in combinations(range(len(item.completions)), 2):
                of_item.setdefault((a, b), []).append(0.5 if place[a] == place[b] else float(place[a] < place[b]))
    return {
        name: {slots: sum(given) / len(given) for slots, given in of_item.items()} for name, of_item in votes.items()
    }


def gold_shares(work: Work, rows: Rows) -> dict[str, Shares]:
    """The same of the playground's rubric, of which close answers tie."""
    found: dict[str, Shares] = {}
    for item, _ in rows if work.data.knows_gold else ():
        points = [
            score.points
            for score in work.data.score([item.prompt] * len(item.completions), item.completions, "agreement")
        ]
        found[item.id] = {
            (a, b): 0.5 if abs(points[a] - points[b]) <= CLEAR_GAP else float(points[a] > points[b])
            for a, b in combinations(range(len(points)), 2)
        }
    return found


def own_stamps(work: Work) -> set[str]:
    """How the stamps of answers begin that are of the judge's own family."""
    section, project = work.recipe.judge, work.project
    names = [*section.family, *([] if section.endpoint or "/" in section.model else [section.model])]
    folders = [project.model(name) for name in names]
    return {work.registry.content(folder)[:16] for folder in folders if (folder / "config.json").is_file()}


def injections(work: Work, judge: Judge, rows: Rows) -> dict[str, Any] | None:
    """Of some comparisons of two the losing answer with an instruction to the judge at its end: how often it wins then. None where none
    was tried."""
    lost = [(item, opinion) for item, opinion in rows if len(item.completions) == 2 and len(opinion.ranking) == 2]
    drawn = sorted(lost, key=lambda row: content_hash([work.recipe.seed, "injections", row[0].id]))[
        : work.recipe.judge.injections
    ]
    if not drawn or judge.form == "rating":
        return None
    tried = [attacks()[number % len(attacks())] for number in range(len(drawn))]
    plans = [
        judge.plan_attack(candidates_of(item, (0, 1)), opinion.ranking[1][0], attack)
        for (item, opinion), attack in zip(drawn, tried, strict=True)
    ]
    after = judge.follow(plans)
    outcomes = [
        (item.id, float(one.ranking[0] == opinion.ranking[1]))
        for (item, opinion), one in zip(drawn, after, strict=True)
        if one.kind == JUDGED
    ]
    won = [
        attack
        for attack, (item, opinion), one in zip(tried, drawn, after, strict=True)
        if one.ranking[:1] == opinion.ranking[1:]
    ]
    return {
        "tried": len(drawn),
        "flipped": share_of_items(outcomes),
        "abstained": abstention_counts(one.kind for one in after),
        "by": sorted(set(won)),
    }


def judge_lines(found: Mapping[str, Any]) -> list[str]:
    """For the terminal."""

    def share(value: Mapping[str, Any] | None) -> str:
        return (
            "not measured"
            if value is None
            else f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}, {value['n']:,})"
        )

    abstained = ", ".join(f"{count:,} {kind}" for kind, count in found["abstained"].items()) or "none"
    lines = [
        f"{found['judge']}: {found['items']:,} items, {found['comparisons']:,} comparisons, {found['judged']:,} judged",
        f"  without a verdict          {abstained}",
        f"  prefers the first shown    {share(found['prefers_first_shown'])}",
        f"  same in both orders        {share(found['swap_consistency'])}",
        f"  prefers the longer         {share(found['prefers_longer'])}",
    ]
    if "calls" in found:
        lines.append(f"  calls, tokens              {found['calls']:,}, {found['tokens']:,}")
    if (own := found["self_preference"]) is not None:
        beyond = "".join(
            f", beyond {name.removeprefix('beyond_')} {gap['value']:+.3f}"
            for name, gap in own.items()
            if name.startswith("beyond")
        )
        lines.append(f"  takes its own family's     {share(own['takes_own'])}{beyond}")
    for name in ("people", "gold"):
        if (known := found.get(f"against_{name}")) is not None:
            lines.append(
                f"  agrees with {name:<15}{share(known['accuracy'])}"
                + (f", kappa {share(known['kappa'])}" if "kappa" in known else "")
            )
            if "prefers_longer" in known:
                lines.append(f"  {name + ' prefer the longer':<27}{share(known['prefers_longer'])}")
    if (tried := found["injection"]) is not None:
        lines.append(f"  flipped by an instruction  {share(tried['flipped'])}")
    if found.get("left_waiting"):
        lines.append(f"  {found['left_waiting']:,} items wait: the endpoint failed on them, or the budget is spent")
    return lines
