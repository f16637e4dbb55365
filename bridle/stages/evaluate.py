"""Fresh answers of one model to every held-out prompt, and comparisons of two."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridle.core.errors import ModelError
from bridle.core.files import write_text
from bridle.core.records import Prompt
from bridle.core.timeline import timed
from bridle.evaluation.answers import Answered, kl_of, proxy_scores, text_metrics
from bridle.maths.statistics import win_rate
from bridle.models.policy import Policy, folder_hash, load_policy
from bridle.project.progress import count_through
from bridle.stages.observe import gold_by_family, probe_metrics
from bridle.stages.rewards import learned_reward, member_parents
from bridle.stages.workspace import Count, Work, done_before, require_model, stage_key

# Who judges two models' answers, and the score that kept answers carry.
KEPT_SCORES = {"gold": "gold", "reward": "proxy"}


def evaluate(work: Work, name: str, reuse: bool = False) -> dict[str, Any]:
    """Fresh answers of one model to every held-out prompt, with all metrics; the answers are kept with the run."""
    recipe, stage = work.recipe, f"evaluate-{name}"
    parents = evaluation_parents(work, name)
    key = stage_key(recipe, ("model", "data", "sampling", "world"), parents)
    if (before := done_before(work, stage, key, reuse)) is not None:
        return before
    with work.start(stage, f"Evaluating {name} on held-out prompts", key, parents) as run:
        policy = load_policy(work.project.model(name), work.device.torch)
        mix = work.fitting(policy, work.data.heldout_prompts())
        probes = work.data.probe_prompts()
        report = count_through(len(mix) + len(probes), work.progress)
        answered = work.answer(policy, mix, stage, progress=report)
        known, lines = known_of(work, answered)
        result: dict[str, Any] = {"prompts": len(mix), **text_metrics(answered), **known}
        if probes:
            result |= probe(work, policy, answered, probes, report)
        if "sft" in parents and name != "base":
            reference = load_policy(work.project.model("sft"), work.device.torch)
            kl, error = (0.0, 0.0) if name == "sft" else kl_of(answered, policy, reference, work.device)
            result |= {"kl": kl, "kl_se": error}
        if "reward" in parents:
            scores = proxy_scores(answered, learned_reward(work, policy))
            result["proxy"] = float(np.nanmean(scores))
            lines = [{**line, "proxy": score} for line, score in zip(lines, scores, strict=True)]
        write_text(run.folder / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return run.finish(result)


def evaluation_parents(work: Work, name: str) -> dict[str, Any]:
    """The model and, where they are there, SFT to measure the distance from and the reward model."""
    parents: dict[str, Any] = {
        "model": require_model(work.project, name),
        "name": name,
        "world": work.data.world_hash,
    }
    if (work.project.model("sft") / "config.json").is_file():
        parents["sft"] = folder_hash(work.project.model("sft"))
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
    scores = work.data.score(prompts, completions, "evaluation")
    return probe_metrics(scores, [p.meta["family"] for p in prompts])


def read_answers(work: Work, name: str) -> list[dict[str, Any]]:
    """The kept answers of the last evaluation of a model."""
    folder = work.project.finished_folder(f"evaluate-{name}")
    if folder is None:
        raise ModelError(f"{name} was not evaluated yet; run `bridle evaluate {name}`")
    with open(folder / "answers.jsonl", encoding="utf-8") as file:  # not splitlines: an answer may hold U+2028
        return [json.loads(line) for line in file]


@timed("compare")
def compare(work: Work, a: str, b: str, by: str) -> dict[str, Any]:
    """Win rate of A's kept answers over B's, on the prompts that both answered; by gold or by the reward model."""
    score = KEPT_SCORES[by]
    ours, theirs = read_answers(work, a), {line["id"]: line for line in read_answers(work, b)}
    both: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (line, theirs[line["id"]]) for line in ours if line["id"] in theirs
    ]
    if not both or score not in both[0][0] or score not in both[0][1]:
        need = "gold needs the playground" if by == "gold" else "train a reward model"
        raise ModelError(f"the answers of {a} and {b} carry no score by {by}; {need}")
    rate = win_rate([x[score] for x, _ in both], [y[score] for _, y in both])
    return {"model": a, "against": b, "by": by, "rate": rate.rate, "low": rate.low, "high": rate.high, "n": rate.n}
