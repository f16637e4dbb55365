"""Five folds: whole prompts by hash, nothing of a fold learnt before it is scored, rivals and intervals that mean what they say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridle.core.records import Completion, Pair, Prompt
from bridle.models.batches import Compared, Group
from bridle.models.policy import RewardModel
from bridle.project.progress import Progress
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work
from bridle.training import reward
from experiments import folds
from tests.models.tiny import template

QUIET = Progress(write=lambda text: None, live=False)
SMALL: dict[str, Any] = {
    "model.vocab_size": 300, "model.hidden_size": 16, "model.intermediate_size": 16, "model.layers": 1, "model.heads": 1,
    "model.kv_heads": 1, "model.max_positions": 96, "reward.learning_rate": 3e-3,
}  # fmt: skip


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    asked = Prompt.from_text(prompt)
    return Pair(asked, Completion(asked.id, chosen), Completion(asked.id, rejected))


def written(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    path = folder / "pairs.jsonl"
    lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) for row in rows]
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_a_prompt_is_in_one_fold_and_the_folds_are_known_for_ever(tmp_path: Path) -> None:
    rows = [(f"question {i % 400}", f"good {i}", f"bad {i}") for i in range(800)]
    pairs = folds.read_pairs(written(tmp_path, rows))
    of_prompt: dict[str, set[int]] = {}
    for p in pairs:
        of_prompt.setdefault(p.prompt.text, set()).add(folds.fold_of(p.prompt.id))
    assert len(pairs) == 800 and all(len(members) == 1 for members in of_prompt.values())
    sizes = np.bincount([members.pop() for members in of_prompt.values()], minlength=5)
    assert sizes.min() > 50 and len(sizes) == 5
    assert [folds.fold_of(name) for name in ("a", "b", "c", "d")] == [2, 1, 4, 4]


def test_the_chosen_answer_stays_the_chosen_one(tmp_path: Path) -> None:
    (read,) = folds.read_pairs(written(tmp_path, [("q", "liked", "not liked")]))
    assert (read.chosen.text, read.rejected.text) == ("liked", "not liked")


def test_words_are_letters_where_a_script_has_no_spaces() -> None:
    assert folds.words("No, no!") == {"no": 2, "no no": 1}
    assert set(folds.words("好的OK")) == {"好", "的", "ok", "好 的", "的 ok"}


def test_a_bag_of_words_learns_a_word_and_knows_nothing_of_others() -> None:
    train = [pair(f"q{i}", f"sorry no {i}", f"sure thing {i}") for i in range(40)]
    test = [pair("a", "so sorry", "so sure"), pair("b", "sure", "sorry"), pair("c", "green", "blue")]
    margins = folds.bag_of_words(train, test, ridge=1.0)
    assert margins[0] > 0.1 and margins[1] < -0.1 and margins[2] == 0
    assert folds.right(margins).tolist() == [1.0, 0.0, 0.5]


def test_what_cannot_be_scored_counts_one_half() -> None:
    assert folds.right([None, 2.0, -0.1, 0.0]).tolist() == [0.5, 1.0, 0.0, 0.5]


def test_differences_are_paired_and_prompts_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    rule = (rng.random(1000) < 0.5).astype(float)
    bag = np.where(np.arange(1000) % 10 == 0, 1.0, rule)  # the rule's outcomes, one in ten mended
    prompts = [str(i) for i in range(1000)]
    outcomes = {"shortest wins": rule, "bag of words": bag}
    first, second = folds.compare(outcomes, prompts, [i % 5 for i in range(1000)])
    over = second["over shortest wins"]
    assert first["over shortest wins"] is None and over["mean"] == pytest.approx((bag - rule).mean())
    assert over["high"] - over["low"] < 0.5 * (second["accuracy"]["high"] - second["accuracy"]["low"])
    assert 0 < over["low"] < over["mean"] < over["high"]
    by_tens = [str(i // 10) for i in range(1000)]
    same_in_tens = {name: np.repeat(values[:100], 10) for name, values in outcomes.items()}
    wide, narrow = (
        folds.compare(same_in_tens, names, [0, 1, 2, 3, 4] * 200)[0]["accuracy"] for names in (by_tens, prompts)
    )
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_a_fold_is_scored_by_what_never_saw_it_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"question number {i}?", f"that is {i}", f"who knows {i}") for i in range(40)]
    rows.append(("question?", "yes" * 200, "no"))
    pairs = folds.read_pairs(written(tmp_path, rows))
    fold = folds.fold_of(pairs[-1].prompt.id)
    inside = [p for p in pairs if folds.fold_of(p.prompt.id) == fold]
    learnt: list[str] = []
    teach = reward.train

    def train(model: RewardModel, groups: list[Group], *rest: object) -> None:
        learnt.extend(model.template.decode(group.answers[0]) for group in groups)
        teach(model, groups, *rest)

    monkeypatch.setattr(folds.reward, "train", train)
    work = Work(folds.open_project(tmp_path / "project", Recipe().with_settings(SMALL)), QUIET)
    margins = folds.score_fold(work, pairs, fold, seed=3, read=folds.Read(4))
    assert len(margins) == len(inside) > 1
    assert [m is None for m in margins] == [p.prompt.text == "question?" for p in inside]
    assert set(learnt) == {p.chosen.text for p in pairs} - {p.chosen.text for p in inside}
    learnt.clear()
    assert folds.score_fold(work, pairs, fold, seed=3, read=folds.Read(4)) == margins and not learnt
    other = folds.score_fold(work, pairs, fold, seed=4, read=folds.Read(4))
    assert learnt and other != margins
    work.close()


def test_a_prompt_keeps_its_end() -> None:
    made = template()
    (group,) = folds.encode(made, [pair("a long question with an end", "yes", "no")], folds.Read(5), 1000)
    whole = made.prompt_ids([Prompt.from_text("a long question with an end")])[0]
    assert group.prompt == whole[-5:] and group.pairs == [Compared(0, 1)]
    assert [made.decode(ids) for ids in group.answers] == ["yes", "no"]


def test_an_answer_keeps_its_beginning() -> None:
    asked, read = [pair("a question", "a long answer that goes on", "no")], folds.Read(5, 4)
    (whole,), (cut,) = (folds.encode(template(), asked, reading, 1000) for reading in (folds.Read(5), read))
    assert cut.answers == [ids[:4] for ids in whole.answers] and len(whole.answers[0]) > 4
    assert folds.Read(5).identity() == {"prompt_tokens": 5} != read.identity()  # what was run before is not run again


def test_a_folder_keeps_the_settings_it_began_with(tmp_path: Path) -> None:
    recipe = Recipe().with_settings(SMALL)
    folds.open_project(tmp_path / "project", recipe)
    assert folds.open_project(tmp_path / "project", recipe).recipe == recipe
    with pytest.raises(SystemExit, match="other settings"):
        folds.open_project(tmp_path / "project", Recipe())


def test_mcnemar_counts_only_where_two_differ() -> None:
    ours, theirs = np.array([1.0] * 10 + [0.0] * 2 + [1.0] * 5), np.array([0.0] * 10 + [1.0] * 2 + [1.0] * 5)
    assert folds.mcnemar(ours, theirs) == pytest.approx(2 * (1 + 12 + 66) / 4096) == folds.mcnemar(theirs, ours)
    assert folds.mcnemar(ours, ours) == 1
