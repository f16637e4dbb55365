"""The reward model on preferences of real people, by five folds: python experiments/folds.py FILE [FOLDER]

    python experiments/folds.py harmless-base.test.jsonl.gz folds --seeds 0 1 2

Whole prompts are dealt to five folds by hash. For each fold a network, its tokenizer included, learns from the other four
alone, from nothing, by `training/reward.py`; then it scores the fold's pairs. No number of a network's row comes from
anything but the network. Beside it: the rules "longest wins" and "shortest wins", and a bag of words on the same folds.
Differences are paired: on the same pairs, with Student's interval by prompt. Several seeds are shown each by itself,
and together by the mean of their scores.

The network reads the last `--prompt-tokens` of a prompt and the whole answer, or its first `--answer-tokens`. A pair that the
context does not hold counts one half. What is finished is not run again; an unfinished fold is resumed. Writes FOLDER/folds.json.
With `--base MODEL` the network starts from that model's weights, in place of nothing; the model must never have read the file.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bridle.compute.randomness import generator
from bridle.compute.steps import Session
from bridle.core.files import write_json
from bridle.core.records import Completion, Pair, Prompt, content_hash
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.report import ImportReport, read_examples
from bridle.maths.statistics import mean_interval, proportion
from bridle.models.batches import Compared, Group
from bridle.models.contents import folder_hash
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.lora.policies import learner
from bridle.models.policy import RewardModel, load_policy
from bridle.models.scorer import scorer_from
from bridle.models.template import Template
from bridle.project.progress import Progress, clock
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import Recipe, parse_setting
from bridle.rewards.learned import task_scores
from bridle.stages.data import SPEAKERS
from bridle.stages.pretrain import new_policy
from bridle.stages.workspace import Work, stage_key
from bridle.training import reward

FOLDS = 5
# One narrow layer and one pass: on some 1,800 pairs what is deeper or trained for longer does worse (docs/failures.md).
SETTINGS: dict[str, Any] = {
    "model.vocab_size": 4096,
    "model.hidden_size": 64,
    "model.intermediate_size": 160,
    "model.layers": 1,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.max_positions": 1280,
    "reward.batch_size": 16,
    "reward.learning_rate": 3e-3,
}


def fold_of(prompt_id: str) -> int:
    """0 to 4, by the hash of the prompt alone: the same in every file and on every machine."""
    digest = hashlib.sha256(f"fold:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % FOLDS


def read_pairs(file: Path) -> list[Pair]:
    """The file's pairs in its order, read as `bridle import` reads them."""
    rows = read_examples(RowSource(file), ImportReport(str(file)))
    examples = [row for row in rows if [verdict.ranking for verdict in row.verdicts] == [((0,), (1,))]]
    return [
        Pair(e.prompt, Completion(e.prompt.id, e.answers[0]), Completion(e.prompt.id, e.answers[1])) for e in examples
    ]


# ------------------------------------------------------------------------------------------------------ the network


def dialogue(prompt: Prompt, answer: Completion) -> str:
    """What the plain template makes of it, for the tokenizer to learn from."""
    return "\n".join([*(f"{SPEAKERS[m.role]}: {m.content}" for m in prompt.messages), f"Assistant: {answer.text}"])


@dataclass(frozen=True)
class Read:
    """What of a pair a network reads: the last tokens of the prompt, and of an answer the first ones, or all (0)."""

    prompt_tokens: int
    answer_tokens: int = 0

    def identity(self) -> dict[str, int]:
        """For the key of a fold; what was not cut is as before there was such a bound."""
        return {name: value for name, value in asdict(self).items() if value or name == "prompt_tokens"}


def encode(template: Template, pairs: Sequence[Pair], read: Read, limit: int) -> list[Group | None]:
    """Ids of each pair, so much of it as is read; None where they are more than `limit`."""
    asked = [pair.prompt for pair in pairs]
    prompts = [ids[-read.prompt_tokens :] for ids in template.prompt_ids(asked)]
    chosen, rejected = (
        [ids[: read.answer_tokens or None] for ids in template.completion_ids(asked, texts)]
        for texts in ([pair.chosen.text for pair in pairs], [pair.rejected.text for pair in pairs])
    )
    groups = [Group(p, [c, r], [Compared(0, 1)]) for p, c, r in zip(prompts, chosen, rejected, strict=True)]
    return [group if group.length <= limit else None for group in groups]


def score_fold(
    work: Work, pairs: Sequence[Pair], fold: int, seed: int, read: Read, base: Path | None = None
) -> list[float | None]:
    """How far the network puts chosen above rejected in each pair of a fold; None where the context does not hold it."""
    recipe = work.recipe.with_settings({"seed": seed})
    ids = content_hash([[pair.chosen.id, pair.rejected.id] for pair in pairs])
    parents = {"pairs": ids, "fold": fold, **read.identity()} | ({"base": folder_hash(base)} if base else {})
    stage, key = f"fold-{fold}-seed-{seed}", stage_key(recipe, ("model", "reward"), parents)
    if (before := work.project.finished(stage, key)) is not None:
        return list(before["margins"])
    learnt = [pair for pair in pairs if fold_of(pair.group) != fold]
    held_out = [pair for pair in pairs if fold_of(pair.group) == fold]
    with work.start(stage, f"Seed {seed}, fold {fold}: {len(learnt)} pairs to learn from", key, parents, recipe) as run:
        model, count = learn(work, run, recipe, learnt, read, base)
        template, limit = model.template, model.module.config.max_positions
        tested = encode(template, held_out, read, limit)
        prompts = [group.prompt for group in tested if group is not None for _ in group.answers]
        answers = [answer for group in tested if group is not None for answer in group.answers]
        scores = iter(task_scores(model, prompts, answers, work.device)[:, 0].tolist())
        margins = [None if group is None else next(scores) - next(scores) for group in tested]
        run.finish({"margins": margins, "learnt": count})
    return margins


def learn(
    work: Work, run: Run, recipe: Recipe, pairs: Sequence[Pair], read: Read, base: Path | None
) -> tuple[RewardModel, int]:
    """A reward model of these pairs, all weights of it or an adapter, and how many pairs its context holds."""
    config, seed = recipe.reward, recipe.seed
    if base is None:
        texts = [dialogue(p.prompt, answer) for p in pairs for answer in (p.chosen, p.rejected)]
        start = new_policy(recipe, train_tokenizer(texts, recipe.model.vocab_size), work.device)
    else:
        start = load_policy(base, work.device.torch, held=recipe.model.frozen_precision)
    start = learner(start, recipe.lora, generator(seed, "lora")) if recipe.lora.on else start
    scorer = scorer_from(start.module, generator(seed, "head"))
    torch.nn.init.zeros_(scorer.score.weight)  # a random head on new layers is noise, and unlearning it takes pairs
    model = RewardModel(scorer, start.template, "new", adapter=start.adapter, rounded=start.rounded)
    limit = start.module.config.max_positions
    groups = [group for group in encode(start.template, pairs, read, limit) if group is not None]
    reward.train(model, groups, config, config.epochs, config.learning_rate, Session(run, work.device, seed))
    return model, len(groups)


# ------------------------------------------------------------------------------------------------ what it is held against

# A letter of a script that is written without spaces is a word of its own.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|(?:(?![\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])\w)+")


def words(text: str) -> Counter[str]:
    """Words and pairs of neighbours in lower case, with their counts."""
    found = WORD.findall(text.lower())
    return Counter([*found, *(f"{a} {b}" for a, b in zip(found, found[1:], strict=False))])


def bag_of_words(train: Sequence[Pair], test: Sequence[Pair], ridge: float = 30.0) -> np.ndarray:
    """Margins of `test` by logistic regression on differences of word counts:  Σ log(1 + exp(-x·w)) + ridge/2 |w|²."""
    column: dict[str, int] = {}

    def differences(pairs: Sequence[Pair], grow: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        entries = []
        for row, pair in enumerate(pairs):
            counts = words(pair.chosen.text)
            counts.subtract(words(pair.rejected.text))
            for word, count in counts.items():
                if grow:
                    column.setdefault(word, len(column))
                if count and word in column:
                    entries.append((row, column[word], float(count)))
        rows, columns, counts_of = zip(*entries, strict=True) if entries else ((), (), ())
        return torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long), torch.tensor(counts_of)

    row, word, count = differences(train, True)
    weight = torch.zeros(len(column), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        margin = torch.zeros(len(train)).index_add(0, row, count * weight[word])
        total = torch.nn.functional.softplus(-margin).sum() + ridge / 2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    row, word, count = differences(test, False)
    return torch.zeros(len(test)).index_add(0, row, count * weight.detach()[word]).numpy()


def right(margins: Sequence[float | None] | np.ndarray) -> np.ndarray:
    """1 where the chosen answer is above, one half where neither is, 0 else."""
    return np.array([0.5 if margin is None else 0.5 + 0.5 * np.sign(margin) for margin in margins])


# ---------------------------------------------------------------------------------------------------------- figures


def accuracy(values: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
    found = proportion(values, prompts)
    return {"mean": found.rate, "low": found.low, "high": found.high}


def difference(values: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
    low, high = mean_interval(values, prompts)
    return {"mean": float(values.mean()), "low": low, "high": high}


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """McNemar's exact test, two-sided: how often a fair coin would split the pairs on which the two differ as unevenly."""
    better, worse = int((ours > theirs).sum()), int((ours < theirs).sum())
    rarer = sum(math.comb(better + worse, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * rarer / 2 ** (better + worse))


def compare(outcomes: dict[str, np.ndarray], prompts: Sequence[str], folds: Sequence[int]) -> list[dict[str, Any]]:
    """Every row's accuracy, whole and by fold, and its paired differences to "shortest wins" and the bag of words."""
    rows = []
    for name, values in outcomes.items():
        row: dict[str, Any] = {"name": name, "accuracy": accuracy(values, prompts)}
        row["folds"] = [float(values[np.array(folds) == fold].mean()) for fold in range(FOLDS)]
        for rival in ("shortest wins", "bag of words"):
            row[f"over {rival}"] = None if name == rival else difference(values - outcomes[rival], prompts)
        row["mcnemar"] = mcnemar(values, outcomes["bag of words"])
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    def shown(figure: dict[str, float] | None, sign: str = "") -> str:
        return "" if figure is None else "{mean:{s}.3f} ({low:{s}.3f} to {high:{s}.3f})".format(**figure, s=sign)

    lines = [
        "| scored by | accuracy (95%) | by fold | over shortest, paired | over bag of words, paired | McNemar |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        by_fold = " ".join(f"{value:.3f}".lstrip("0") for value in row["folds"])
        over = [shown(row[f"over {rival}"], "+") for rival in ("shortest wins", "bag of words")]
        lines.append(
            f"| {row['name']} | {shown(row['accuracy'])} | {by_fold} | {over[0]} | {over[1]} | {row['mcnemar']:.3g} |"
        )
    return "\n".join(lines)


def main(
    file: Path, folder: Path, seeds: list[int], read: Read, settings: dict[str, Any], base: Path | None = None
) -> None:
    pairs = read_pairs(file)
    folds, prompts = [fold_of(p.prompt.id) for p in pairs], [p.prompt.id for p in pairs]
    places = [np.flatnonzero(np.array(folds) == fold) for fold in range(FOLDS)]
    lengths = np.array([len(p.chosen.text) - len(p.rejected.text) for p in pairs])
    bag = np.zeros(len(pairs))
    for fold, place in enumerate(places):
        bag[place] = bag_of_words(
            [p for p, f in zip(pairs, folds, strict=True) if f != fold], [pairs[i] for i in place]
        )
    outcomes = {"longest wins": right(lengths), "shortest wins": right(-lengths), "bag of words": right(bag)}
    work = Work(open_project(folder, Recipe().with_settings({**SETTINGS, **settings})), Progress())
    margins = np.zeros((len(seeds), len(pairs)))
    began, ran = time.monotonic(), 0
    for s, seed in enumerate(seeds):
        for fold, place in enumerate(places):
            scored = score_fold(work, pairs, fold, seed, read, base)
            margins[s, place] = [np.nan if margin is None else margin for margin in scored]
            ran += 1
            left = (time.monotonic() - began) / ran * (len(seeds) * FOLDS - ran)
            print(f"seed {seed}, fold {fold}: {right(scored).mean():.3f}; {clock(left)} left", flush=True)
        outcomes[f"network, seed {seed}"] = right(np.nan_to_num(margins[s]))
    if len(seeds) > 1:
        outcomes[f"network, mean score of {len(seeds)} seeds"] = right(np.nan_to_num(margins.mean(0)))
    rows = compare(outcomes, prompts, folds)
    beyond = int(np.isnan(margins).any(0).sum())
    counts = {"pairs": len(pairs), "prompts": len(set(prompts)), "beyond_context": beyond}
    setting = {"settings": {**SETTINGS, **settings}, **read.identity(), "seeds": seeds}
    write_json(folder / "folds.json", {"file": file.name, **counts, **setting, "rows": rows})
    work.close()
    print("\n{pairs} pairs of {prompts} prompts; {beyond_context} beyond the context count one half\n".format(**counts))
    print(table(rows))


def open_project(folder: Path, recipe: Recipe) -> Project:
    """The folder as a project, made where there is none; other settings than it began with are refused."""
    if not (folder / "bridle.toml").is_file():
        return Project.create(folder, recipe)
    project = Project.find(folder)
    if project.recipe != recipe:
        raise SystemExit(f"{folder} was begun with other settings; give the same ones again, or another folder")
    return project


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="what `bridle import` reads")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("folds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompt-tokens", type=int, default=2, help="2: the cue for the assistant's turn alone")
    parser.add_argument("--answer-tokens", type=int, default=0, help="the first so many of an answer; 0: all")
    parser.add_argument("--base", type=Path, help="a model folder to start from, in place of nothing")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    given = parser.parse_args()
    settings = dict(parse_setting(text) for text in given.set)
    main(given.file, given.folder, given.seeds, Read(given.prompt_tokens, given.answer_tokens), settings, given.base)
