"""DPO on comparisons of real people, judged by a reward model of other people's: python -m experiments.real_dpo FILE MODEL [FOLDER]

Whole prompts are dealt to five folds (`folds.py`). An adapter learns by DPO from folds 0 and 1, a reward model, another adapter, from
folds 2 and 3, where it reads the answer and the cue before it. Both policies, with the adapter and without, answer the prompts of fold 4,
which neither learnt from. Told: how often the judge prefers the tuned one's answer, with an interval by prompt; how often it orders
fold 4's own pairs as people do, as a measure of the judge; how often the shorter answer is the tuned one's; the mean lengths.
Prompts of more than `--prompt-most` tokens are left out of DPO and of the test. Writes FOLDER/real_dpo.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import bridle
from bridle.core.files import write_json
from bridle.core.records import Pair, Prompt
from bridle.maths.statistics import proportion, win_rate
from bridle.project.progress import Progress
from bridle.recipe.recipe import Recipe, parse_setting
from bridle.rewards.learned import task_scores
from bridle.stages.workspace import Work
from experiments.folds import SETTINGS, Read, encode, fold_of, learn, open_project, read_pairs, right

ADAPTER: dict[str, Any] = {"lora.r": 16, "model.frozen_precision": "bfloat16", "reward.learning_rate": 3e-4}
CUE = 3  # tokens of the cue in ChatML
ANSWER = Read(CUE)
NEW_TOKENS = 64


def main(file: Path, place: Path, folder: Path, prompt_most: int, seed: int, settings: dict[str, Any]) -> None:
    pairs = read_pairs(file)
    recipe = Recipe().with_settings({**SETTINGS, **ADAPTER, **settings, "seed": seed})
    work = Work(open_project(folder, recipe), Progress())
    judged_by, tested = in_folds(pairs, 2, 3), in_folds(pairs, 4)
    with work.start("judge", f"{len(judged_by)} pairs to learn from", "judge", {}, recipe) as run:
        judge, _ = learn(work, run, recipe, judged_by, ANSWER, place)
        run.finish({})
    theirs = [group for group in encode(judge.template, tested, ANSWER, judge.module.config.max_positions) if group]
    own = scores_of(work, judge, [(group.prompt, answer) for group in theirs for answer in group.answers])
    found = {"judge is right on people's pairs": as_json(proportion(right(own[::2] - own[1::2])))}

    model = bridle.load(place, frozen_precision=recipe.model.frozen_precision)
    lengths = [len(ids) for ids in judge.template.prompt_ids([pair.prompt for pair in pairs])]
    short = {pair.prompt.id for pair, length in zip(pairs, lengths, strict=True) if length <= prompt_most}
    asked = list({pair.prompt.id: pair.prompt for pair in tested if pair.prompt.id in short}.values())
    turns = [turns_of(prompt) for prompt in asked]
    before = model.answer(turns, max_new_tokens=NEW_TOKENS, seed=seed)
    learnt = [
        (turns_of(p.prompt), p.chosen.text, p.rejected.text) for p in in_folds(pairs, 0, 1) if p.prompt.id in short
    ]
    dpo = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith("dpo.")}
    trained = bridle.dpo(model, learnt, lora_r=recipe.lora.r, seed=seed, **dpo)
    after = model.answer(turns, max_new_tokens=NEW_TOKENS, seed=seed)

    cue = judge.template.prompt_ids(asked[:1])[0][-CUE:]
    ids = [judge.template.completion_ids(asked, answers) for answers in (after, before)]
    scored = [scores_of(work, judge, [(cue, answer) for answer in answers]) for answers in ids]
    counts = [np.array([len(answer) for answer in answers]) for answers in ids]
    found |= {
        "tuned beats untuned": as_json(win_rate(scored[0], scored[1])),
        "tuned is the shorter": as_json(win_rate(-counts[0], -counts[1])),
    }
    sizes = {"judge's pairs": len(judged_by), "DPO's pairs": len(learnt), "prompts": len(asked)}
    tokens = {"tokens of an answer": {"tuned": float(counts[0].mean()), "untuned": float(counts[1].mean())}}
    same = {"answers that are equal": float(np.mean([a == b for a, b in zip(after, before, strict=True)]))}
    kept = {name: trained[name] for name in ("steps", "accuracy", "loss") if name in trained}
    examples = [
        {"prompt": p.text, "untuned": b, "tuned": a} for p, b, a in zip(asked[:5], before[:5], after[:5], strict=True)
    ]
    write_json(folder / "real_dpo.json", {**sizes, **found, **tokens, **same, "dpo": kept, "examples": examples})
    work.close()
    print({**sizes, **found, **tokens, **same, "dpo": kept})


def in_folds(pairs: list[Pair], *folds: int) -> list[Pair]:
    return [pair for pair in pairs if fold_of(pair.group) in folds]


def turns_of(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in prompt.messages]


def scores_of(
    work: Work, judge: bridle.models.policy.RewardModel, rows: list[tuple[list[int], list[int]]]
) -> np.ndarray:
    prompts, answers = [prompt for prompt, _ in rows], [answer for _, answer in rows]
    return task_scores(judge, prompts, answers, work.device)[:, 0].numpy()


def as_json(share: Any) -> dict[str, float]:
    return {"rate": share.rate, "low": share.low, "high": share.high, "n": share.n}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="what `bridle import` reads")
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("real-dpo"))
    parser.add_argument("--prompt-most", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    given = parser.parse_args()
    given_settings = dict(parse_setting(text) for text in given.set)
    main(given.file, given.model, given.folder, given.prompt_most, given.seed, given_settings)
