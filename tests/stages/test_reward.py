"""Reward models from the recipe: kinds of labels, other base models, ensembles, several sources; through the command line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bridle.core.records import Completion, Judgement, LabelerKind, Pair, Prompt, Ranking
from bridle.feedback.quality.style import Taste
from bridle.feedback.rankings import Item
from bridle.feedback.store.labels import Labels, Lesson
from bridle.feedback.store.reading import Snapshot
from bridle.feedback.store.store import Store
from bridle.models.batches import Group, Ranked
from bridle.models.contents import folder_hash
from bridle.models.encoding import encode_pairs, encode_rankings
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.policy import load_policy, load_reward_model
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import Recipe
from bridle.stages import plan
from bridle.stages import reward as reward_stage
from bridle.stages.methods import METHODS
from bridle.stages.reward import bootstrapped, new_scorer
from bridle.stages.rewards import member_names
from bridle.stages.workspace import Work
from bridle.training import reward
from tests.models.tiny import TEXTS, one_sentence, write_foreign
from tests.rewards.classifiers import classifier
from tests.tiny_project import SHAPE, bridle, complaint, done, metrics, preferences, result, settings
from tests.training.runs import Killed

SMALL: dict[str, Any] = {
    **SHAPE, "data.heldout_share": 0.4, "sft.epochs": 1, "ppo.steps": 2, "sampling.max_new_tokens": 12,
    "data.pretrain_tokens": 20_000, "reward.slim": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def imitator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with comparisons, walked up to SFT."""
    folder = tmp_path_factory.mktemp("scoring")
    project = folder / "project"
    done("init", project, *settings(SMALL))
    done("import", preferences(folder / "pairs.jsonl"), "--project", project)
    for stage in ("pretrain", "sft"):
        done("train", stage, "--project", project)
    return project


@pytest.fixture
def project(imitator: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(imitator, tmp_path / "project"))


def trained(project: Path, **values: Any) -> dict[str, Any]:
    """What `bridle train reward` tells under these settings of [reward]."""
    words = settings({f"reward.{name}": value for name, value in values.items()})
    found: dict[str, Any] = json.loads(done("train", "reward", "--project", project, "--json", *words))
    return found


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """The groups that reach the trainer."""
    seen: list[Group] = []
    plain = reward.train

    def train(model: Any, groups: list[Group], *rest: Any) -> dict[str, float]:
        seen.extend(groups)
        return plain(model, groups, *rest)

    monkeypatch.setattr(reward, "train", train)
    return seen


# ----------------------------------------------------------------------------------------------- what is learnt of a pair


def test_a_margin_and_whole_rankings_come_from_the_recipe(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    trained(project, margin=0.7)
    assert {pair.margin for group in seen for pair in group.pairs} == {0.7}, (
        "a preference of no told strength has strength 1"
    )
    seen.clear()
    figures = trained(project, loss="ranking")
    assert {ranking.ranks for group in seen for ranking in group.rankings} == {(0, 1)}
    assert figures["rankings"] == len(seen) and not any(group.pairs for group in seen)


def test_strengths_ties_and_weights_of_judgements_reach_the_trainer(project: Path) -> None:
    prompt = Prompt.from_text("Which?")
    a, b, c = (Completion(prompt.id, text) for text in ("one", "two", "three"))
    pairs = [
        Pair(prompt, a, b, 0.5, ("x",), strength=3.0, item_id="one"),
        Pair(prompt, b, c, 0.5, ("x",), item_id="one"),
        Pair(prompt, c, a, 0.25, ("y",), target=0.5, item_id="two"),
        Pair(prompt, a, c, 0.75, ("y", "z"), target=0.9, item_id="two"),
    ]
    template = load_policy(project / "models/sft", torch.device("cpu")).template
    (group,), _ = encode_pairs(template, pairs, 512, margin=0.1)
    found = [(pair.better, pair.worse, pair.weight, pair.target, pair.margin) for pair in group.pairs]
    assert found == [
        (0, 1, 0.25, 1.0, pytest.approx(0.3)), (1, 2, 0.25, 1.0, 0.1), (2, 0, 0.125, 0.5, 0.0),
        (0, 2, 0.375, 0.9, pytest.approx(0.08)),
    ]  # fmt: skip
    flattering = [replace(pairs[0], offset=0.7)]
    for turned, margin in ((None, -0.7), (lambda prompt: True, 0.7)):
        (group,), _ = encode_pairs(template, flattering, 512, turned=turned)
        assert group.pairs[0].margin == pytest.approx(margin), "what style gives the one, quality need not give it"
    rankings = [Ranking(prompt, (a, b, c), (0, 1, 2), item_id="one"), Ranking(prompt, (c, b), (0, 1), item_id="two")]
    (group,), _ = encode_rankings(template, rankings, 512)
    assert group.rankings == [Ranked((0, 1, 2), pytest.approx(0.5)), Ranked((-1, 1, 0), 0.5)]


def test_chances_are_fitted_and_kept(project: Path) -> None:
    figures = trained(project)
    kept = load_reward_model(project / "models/reward", torch.device("cpu")).tasks[0]
    assert figures["temperature"] == kept.temperature and (figures["ece_before"] is None) == (kept.temperature == 1.0)


# ---------------------------------------------------------------------------------------------------- any base model


def test_a_reward_model_may_begin_from_any_model_with_a_tokenizer_of_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that another tokenizer wrote reach it as text: their ids would mean something else."""
    plain, seen = Store.snapshot_pairs, watch(monkeypatch)

    def sampled(store: Store, *words: Any, **named: Any) -> list[Pair]:
        pairs = plain(store, *words, **named)
        return [replace(pair, chosen=replace(pair.chosen, token_ids=(7, 8, 9))) for pair in pairs]

    monkeypatch.setattr(Store, "snapshot_pairs", sampled)
    write_foreign(project / "mine", "gpt2", n_positions=400)
    other = train_tokenizer([text.upper() for text in TEXTS], 290)
    other.save(project / "mine", 400)
    figures = trained(project, path="mine")
    assert figures["heldout_pairs"] > 0 and seen and not any([7, 8, 9] in group.answers for group in seen)
    ours = load_reward_model(project / "models/reward", torch.device("cpu"))
    assert ours.template.hash == other.hash and ours.module.config.family == "gpt2"
    done("train", "ppo", "--project", project, *settings({"reward.path": "mine"}))
    assert len(metrics(project / "runs/ppo-0001")) == 2


# ------------------------------------------------------------------------------------------------------- ensembles


def test_members_begin_with_heads_and_orders_of_their_own(project: Path) -> None:
    recipe = Project.find(project).recipe.with_settings({"reward.members": 3})
    work = Work(Project(project, recipe), Progress(write=lambda text: None, live=False))
    policy = load_policy(project / "models/sft", torch.device("cpu"))
    lessons = reward_stage.lessons_of(work)
    made = [new_scorer(work, name, policy, lessons) for name in member_names(work.recipe)]
    assert len({tuple(model.module.score.weight.flatten().tolist()) for model, *_ in made}) == 3
    assert len({seed for *_, seed in made}) == 3
    assert len({(epochs, rate) for _, epochs, rate, _ in made}) == 1
    work.close()


def test_an_ensemble_is_trained_goes_on_where_it_died_and_is_one_reward(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {"reward.members": 3, "reward.combine": "uwo", "reward.uncertainty": 0.2}
    names = ["reward", "reward-member-2", "reward-member-3"]
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    figures = json.loads(done("train", "reward", "--project", project, "--json", *settings(many)))
    assert len(figures["member_accuracies"]) == 3
    files = {name: (project / "models" / name / "model.safetensors").read_bytes() for name in names}
    assert len(set(files.values())) == 3, "another head and another order"

    lines, plain = 0, Run.log
    last = sum(len(metrics(project / f"runs/{name}-0001")) for name in names[:2]) - 1

    def deadly(run: Run, *words: Any) -> None:
        nonlocal lines
        plain(run, *words)
        lines += 1
        if lines == last:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "log", deadly)
        bridle("train", "reward", "--project", copy, *settings(many))
    again = bridle("train", "reward", "--project", copy, *settings(many))
    assert again.exit_code == 0 and "resuming after step" in again.stderr, again.stderr
    assert not (copy / "runs/reward-0002").exists()
    assert {name: (copy / "models" / name / "model.safetensors").read_bytes() for name in names} == files

    done("train", "ppo", "--project", project, *settings(many))
    assert all(line["disagreement"] > 0 for line in metrics(project / "runs/ppo-0001"))
    told = json.loads(done("evaluate", "ppo", "--project", project, "--json", *settings(many)))
    assert np.isfinite(told["ppo"]["proxy"])
    done("train", "ppo", "--project", project, *settings({**many, "reward.combine": "min"}))
    first, second = (metrics(project / f"runs/ppo-000{n}") for n in (1, 2))
    assert second[0]["proxy"] < first[0]["proxy"], "the least of three is below their mean"

    recipe = Project.find(project).recipe.with_settings({"reward.members": 2, "reward.combine": "min"})
    work = Work(Project(project, recipe), Progress(write=lambda text: None, live=False))
    METHODS["reward"].train(work, reuse=True)
    work.close()
    assert not (project / "runs/reward-0002").exists(), "how members are combined changes none of them"


def test_a_bootstrap_draws_prompts_with_all_that_was_said_of_them() -> None:
    groups = [Group([number // 2], [[number], [99]]) for number in range(40)]  # each prompt was judged twice
    drawn = bootstrapped(groups, 3, "reward-member-2")
    answers = [group.answers[0][0] for group in drawn]
    assert len(answers) == 40 and answers[::2] == [2 * group.prompt[0] for group in drawn[::2]]
    assert answers[1::2] == [first + 1 for first in answers[::2]], "both judgements of a prompt, or neither"
    assert 8 <= len({group.prompt[0] for group in drawn}) < 20, "about 63% of 20 prompts"
    assert bootstrapped(groups, 3, "reward-member-2") == drawn != bootstrapped(groups, 3, "reward-member-3")


def test_members_after_the_first_learn_from_a_bootstrap(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, train = dict[str, list[str]](), reward.train

    def watched(model: Any, groups: list[Group], *rest: Any) -> Any:
        seen[rest[-1].run.folder.name] = sorted(str(group) for group in groups)
        return train(model, groups, *rest)

    monkeypatch.setattr(reward, "train", watched)
    for bootstrap in (False, True):
        recipe = Project.find(project).recipe.with_settings({"reward.members": 2, "reward.bootstrap": bootstrap})
        work = Work(Project(project, recipe), Progress(write=lambda text: None, live=False))
        METHODS["reward"].train(work, reuse=True)
        work.close()
    assert list(seen) == ["reward-0001", "reward-member-2-0001", "reward-member-2-0002"], "the first stays what it is"
    assert seen["reward-0001"] == seen["reward-member-2-0001"]
    whole, drawn = seen["reward-0001"], seen["reward-member-2-0002"]
    assert len(drawn) == len(whole) and set(drawn) < set(whole) and len(set(drawn)) < len(set(whole))


# ------------------------------------------------------------------------------------------------- several sources


def sources(*given: dict[str, Any]) -> list[str]:
    rows = ["{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.items()) + "}" for row in given]
    return ["--set", f"reward_source=[{', '.join(rows)}]"]


def test_sources_are_added_with_their_weights_and_told_by_name(project: Path) -> None:
    trained(project)
    done("train", "ppo", "--project", project)
    twice = sources(
        {"name": "own", "kind": "learned"},
        {"name": "again", "kind": "learned", "path": "models/reward", "weight": -0.5},
    )
    done("train", "ppo", "--project", project, *twice)
    alone, both = (metrics(project / f"runs/ppo-000{n}")[0] for n in (1, 2))
    assert both["proxy"] == pytest.approx(0.5 * alone["proxy"], abs=1e-5)
    assert both["reward_own"] == both["reward_again"] == pytest.approx(alone["proxy"], abs=1e-5)
    assert "reward_own" not in alone and result(project / "runs/ppo-0002")["steps"] == 2


def test_a_reward_model_of_others_is_a_source_by_its_folder(project: Path, tmp_path: Path) -> None:
    """One of another family and tokenizer, which scores text; the project needs no reward model of its own."""
    folder = classifier(tmp_path / "theirs", "gpt2", "qwen")
    found = bridle(
        "train", "ppo", "--project", project, *sources({"name": "theirs", "kind": "learned", "path": str(folder)})
    )
    assert found.exit_code == 0 and "theirs is a reward model of somebody else's: " in found.stderr, found.stderr
    assert "in units of their own" in found.stderr
    parents = json.loads((project / "runs/ppo-0001/parents.json").read_text())
    assert parents["theirs"] == folder_hash(folder) and "reward" not in parents
    for line in metrics(project / "runs/ppo-0001"):
        assert line["reward_theirs"] == pytest.approx(line["proxy"]) and line["unscored"] == 0
    named = sources({"name": "theirs", "kind": "learned", "path": str(folder), "task": "helpful"})
    found = bridle("train", "ppo", "--project", project, *named)
    assert (
        found.exit_code == 1
        and "which has one score and no tasks" in complaint(found)
        and one_sentence(complaint(found))
    )


def test_reward_models_are_tested_on_what_is_held_out_and_on_a_file(project: Path, tmp_path: Path) -> None:
    expected = trained(project)
    found = json.loads(done("reward", "test", "--project", project, "--json"))
    assert found["accuracy"] == expected["people_pair_accuracy"] and found["scored"] == expected["people_heldout_pairs"]
    assert found["longest"] == expected["people_longest"] and found["unscored"] == 0
    rows = [
        {"prompt": "Hello?", "chosen": [text], "rejected": ["No.", "Go away."], "subset": "chat"}
        for text in ("Hi.", "Hello.")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    theirs = classifier(tmp_path / "theirs", "gpt2", "qwen")
    said = done("reward", "test", tmp_path / "rows.jsonl", "--model", theirs, "--project", project)
    assert "right: " in said and "  chat: " in said and "too few comparisons" in said
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hello?", "completion": "Hi."}\n')
    for words, message in (
        (["--model", "models/none"], "--model models/none names models/none, where there is no reward model"),
        ([tmp_path / "rows.jsonl"], r"row 1 of .*rows.jsonl is not a comparison \(it compares no answers\)"),
    ):
        refused = bridle("reward", "test", *map(str, words), "--project", project)
        assert refused.exit_code == 1 and re.search(message, complaint(refused)) and one_sentence(complaint(refused))


def test_an_answer_that_cannot_be_checked_is_left_out_whatever_else_says(project: Path, tmp_path: Path) -> None:
    """PPO answers prompts with and without a solution; those without are masked and counted. GRPO takes the sum as well."""
    trained(project)
    sums = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"One more is {i + 1}.\n#### {i + 1}"} for i in range(30)]
    sums.write_text("\n".join(map(json.dumps, rows)))
    done("import", sums, "--project", project)
    both = sources({"name": "own", "kind": "learned"}, {"name": "right", "kind": "verifier", "weight": 2.0})
    many = ["--set", "guard.max_unscored=0.9"]
    done("train", "ppo", "--project", project, *both, *many, "--set", "ppo.prompts_per_step=24")
    for line in metrics(project / "runs/ppo-0001"):
        assert 0 < line["unscored"] == line["unscored_right"] < 24 and line["unscored_own"] == 0
        assert line["reward_right"] == 0.0, "a model of nothing knows no sums"
    done("train", "grpo", "--project", project, *both)
    assert {"reward_own", "reward_right", "accuracy"} <= set(metrics(project / "runs/grpo-0001")[0])


@pytest.mark.parametrize(
    ("rows", "exit_code", "words"),
    [
        ([{"name": "a", "kind": "oracle"}], 2, "reward_source.0.kind = 'oracle' is invalid: must be 'learned', 'verifier' or 'judge'"),
        ([{"name": "a", "kind": "learned", "path": "models/none"}], 1, "source 'a' names {}/models/none, where there is no"),
        ([{"name": "a", "kind": "learned", "path": "models/sft"}], 1, "where a reward model is a Qwen3ForSequenceClassification"),
        ([{"name": "a", "kind": "learned"}, {"name": "a", "kind": "verifier"}], 2, "give each a name of its own"),
        ([{"name": "a", "kind": "verifier", "path": "x"}], 2, "has neither path nor task"),
        ([{"name": "a b", "kind": "learned"}], 2, "reward_source.0.name = 'a b' is invalid"),
        ([{"name": "a", "kind": "learned", "wait": 1.0}], 2, "unknown setting 'reward_source.0.wait'; did you mean 'weight'?"),
        ([{"name": "a", "kind": "learned"}], 1, "there is no model at {}/models/reward; make it with `bridle train reward`"),
        ([{"name": "a", "kind": "verifier"}], 1, "holds no prompts whose answers can be checked"),
    ],
)  # fmt: skip
def test_a_source_that_will_not_do_ends_before_any_step(
    rows: list[dict[str, Any]], exit_code: int, words: str, imitator: Path
) -> None:
    found = bridle("train", "ppo", "--project", imitator, *sources(*rows))
    assert found.exit_code == exit_code, found.stderr
    assert words.format(imitator) in complaint(found) and one_sentence(complaint(found)), complaint(found)
    assert not list(imitator.glob("runs/ppo-*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("reward.members=0", "reward.members = 0 is invalid: must be greater than or equal to 1"),
        ("reward.ties='maybe'", "is invalid: must be 'drop' or 'half'"),
        ("reward.combine='max'", "is invalid: must be 'mean', 'min' or 'uwo'"),
        ("reward.path='nowhere'", "no model folder at"),
    ],
)
def test_a_reward_setting_that_will_not_do_ends_before_any_step(setting: str, words: str, imitator: Path) -> None:
    found = bridle("train", "reward", "--project", imitator, "--set", setting)
    assert found.exit_code in (1, 2) and words in complaint(found)
    assert not list(imitator.glob("runs/reward-*/metrics.jsonl"))


def test_a_ranking_takes_no_margin() -> None:
    with pytest.raises(Exception, match="takes ties as they are, no margin"):
        Recipe().with_settings({"reward.loss": "ranking", "reward.ties": "half"})


@pytest.mark.parametrize(("ties", "count"), [("drop", 2), ("half", 3)])
def test_a_temperature_is_fitted_to_the_ties_that_were_learnt(
    ties: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three answers two tie: two clear pairs and, where training takes it for one half, the tie."""
    prompt = Prompt.from_text("Which?")
    item = Item("item", prompt, tuple(Completion(prompt.id, text) for text in "abc"))
    judgement = Judgement("item", "someone", LabelerKind.PERSON, ((0,), (1, 2)), None)
    work = SimpleNamespace(
        recipe=Recipe().with_settings({"reward.ties": ties}), data=SimpleNamespace(study="study"), device=None,
        store=SimpleNamespace(judgements=lambda study, split, criterion: [(item, judgement)]),
        usable=lambda encoded, enforce: encoded,
    )  # fmt: skip
    model = SimpleNamespace(template=None, tasks=[SimpleNamespace(name="reward")])
    model.module = SimpleNamespace(config=SimpleNamespace(max_positions=64))
    monkeypatch.setattr(reward_stage, "encode_pairs", lambda template, pairs, limit, turned, what, task: pairs)
    monkeypatch.setattr(reward, "fit_temperatures", lambda model, groups, device: {"reward": len(groups)})
    lessons = [Lesson("reward", Labels("comparisons", None), Snapshot("", {}, (), ()))]
    reader = SimpleNamespace(model=model, same_tokens=True)
    assert reward_stage.fit_temperatures_of(work, reader, lessons, None) == {"reward": count}


# ------------------------------------------------------------------------------------------------ what more would buy


def test_a_plan_learns_from_parts_and_tells_prices(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the items that do not overlap; a second call trains nothing."""
    assert "needs at least 80 judgements" in complaint(bridle("label", "plan", "--project", project))
    monkeypatch.setattr(plan, "FEWEST", 10)
    with monkeypatch.context() as many:
        many.setattr(plan, "PARTS", {80: 1, 1: 1})
        assert "needs judgements of at least 80 items" in complaint(bridle("label", "plan", "--project", project))
    trained_on: list[frozenset[str]] = []
    plain = plan.encode_pairs

    def encode(template: Any, pairs: Any, *rest: Any, **more: Any) -> Any:
        trained_on.append(frozenset(pair.prompt.id for pair in pairs))
        return plain(template, pairs, *rest, **more)

    monkeypatch.setattr(plan, "encode_pairs", encode)
    words = ("label", "plan", "--project", project, "--set", "label.piece_price=0.5")
    found = json.loads(done(*words, "--json"))
    eighths, quarters, halves, (whole, again) = trained_on[:4], trained_on[4:8], trained_on[8:10], trained_on[10:]
    assert not eighths[0] & eighths[1] and not quarters[0] & quarters[1] and halves[0] | halves[1] == whole == again
    assert [point["judgements"] for point in found["measured"]][-1] == found["judgements"]
    (_, twice, _) = found["forecast"]
    assert twice["count"] == 2 * found["judgements"] and twice["price"] == pytest.approx(found["judgements"] / 2)
    assert twice["low"] <= twice["accuracy"] <= twice["high"]
    assert "who judges how well is not known" in done(*words) and len(trained_on) == 12
    with Store.open(project / "store.sqlite") as store:
        first, *others = store.prompts(split="heldout")
        store.exclude("prompt", first.id, reason="ambiguous", by="me")
    done(*words)
    assert len(trained_on) == 24  # measured on other pairs, they are other figures
    with Store.open(project / "store.sqlite") as store:
        for prompt in others:
            store.exclude("prompt", prompt.id, reason="none left", by="me")
    assert "no held-out comparisons to measure" in complaint(bridle(*words, "--set", "seed=1"))
    assert len(trained_on) == 24


def test_a_plan_learns_what_the_reward_model_would(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tokens of the model that it begins from, and without the style that is kept out of the score."""
    monkeypatch.setattr(plan, "FEWEST", 10)
    monkeypatch.setattr(plan, "PARTS", {2: 1, 1: 1})
    monkeypatch.setattr(plan, "taste_of", lambda work: Taste({"length": 1.0}, {"length": 0.1}, 400))
    plain = Store.snapshot_pairs

    def sampled(store: Store, name: str, ties: bool) -> list[Pair]:
        return [replace(p, chosen=replace(p.chosen, token_ids=(7, 8, 9))) for p in plain(store, name, ties)]

    monkeypatch.setattr(Store, "snapshot_pairs", sampled)
    seen = watch(monkeypatch)
    write_foreign(project / "mine", "gpt2", n_positions=400)
    train_tokenizer([text.upper() for text in TEXTS], 290).save(project / "mine", 400)
    done("label", "plan", "--project", project, *settings({"reward.path": "mine"}))
    assert seen and not any([7, 8, 9] in group.answers for group in seen)
    assert all(pair.margin for group in seen for pair in group.pairs)
