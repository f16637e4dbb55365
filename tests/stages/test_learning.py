"""What trains from the store besides comparisons on the whole: criteria, votes, scores, counts, reliability; and what is noted of it."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt, Rating
from bridle.feedback.serving.prompts import draw_prompts
from bridle.feedback.serving.reactions import Reaction, react
from bridle.feedback.store import tables
from bridle.feedback.store.labels import Labels, labels_for, snapshot_ratings, take_rating_snapshot
from bridle.feedback.store.ratings import add_ratings
from bridle.feedback.store.store import Store, split_of
from bridle.models.policy import load_reward_model
from tests.feedback.serving.users import agreeing, serve
from tests.models.tiny import one_sentence
from tests.tiny_project import SHAPE, bridle, complaint, done, result, settings

SMALL: dict[str, Any] = {
    **SHAPE, "data.heldout_share": 0.3, "sft.epochs": 1, "ppo.steps": 2, "sampling.max_new_tokens": 12,
    "data.pretrain_tokens": 20_000, "reward.slim": False, "dpo.epochs": 1,
}  # fmt: skip
THINGS = ["a cat", "a dog", "the rain", "my bike", "an old shoe", "the moon", "a spoon", "a boat"]
PEOPLE = ("ann", "bob", "cat", "dan")


def a_prompt(number: int) -> Prompt:
    return Prompt.from_text(f"Tell me about {THINGS[number % 8]}, please. This is question {number}.")


def answers_to(prompt: Prompt, number: int) -> tuple[Completion, Completion]:
    thing = THINGS[number % 8]
    return Completion(prompt.id, f"Gladly. There is much to say about {thing}."), Completion(
        prompt.id, "No, I do not care."
    )


def fill(store: Store, count: int = 60) -> None:
    """Each item judged by three people who know better and one who throws a coin; by a criterion of the opposite taste by one; each answer
    rated rude or not, and scored."""
    rng = random.Random(0)
    for number in range(count):
        prompt = a_prompt(number)
        pair = answers_to(prompt, number)
        store.add_prompts([prompt], split=None, source="import", held_out_share=0.3)
        store.add_completions(pair, source="import")
        [item] = store.add_items([pair], study="import")
        won = [0, 0, 0, rng.randrange(2)]
        said = [
            Judgement(item, who, LabelerKind.IMPORTED, ((w,), (1 - w,)), None)
            for who, w in zip(PEOPLE, won, strict=True)
        ]
        said += [Judgement(item, "ann", LabelerKind.IMPORTED, ((1,), (0,)), None, criterion="curt", strength=2)]
        store.add_judgements(said)
        rude = [
            Rating(one, "ann", LabelerKind.IMPORTED, "vote", float(n), criterion="rude") for n, one in enumerate(pair)
        ]
        deep = [
            Rating(one, "ann", LabelerKind.IMPORTED, "score", 3.0 - n, criterion="depth") for n, one in enumerate(pair)
        ]
        add_ratings(store, rude + deep)


@pytest.fixture(scope="module")
def imitator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with all that, walked up to SFT."""
    project = tmp_path_factory.mktemp("learning") / "project"
    done("init", project, *settings(SMALL))
    with Store.open(project / "store.sqlite") as store:
        fill(store)
    for stage in ("pretrain", "sft"):
        done("train", stage, "--project", project)
    return project


@pytest.fixture
def project(imitator: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(imitator, tmp_path / "project"))


@pytest.fixture
def store(project: Path) -> Iterator[Store]:
    with Store.open(project / "store.sqlite") as opened:
        yield opened


def test_tasks_of_all_kinds_train_from_the_store(project: Path, store: Store) -> None:
    tasks = ["reward", "curt", "rude", "depth"]
    words = settings({"reward.tasks": tasks, "reward.epochs": 6, "reward.learning_rate": 3e-3, "reward.margin": 0.2})
    found = json.loads(done("train", "reward", "--project", project, "--json", *words))
    assert found["people_pair_accuracy"] > 0.8 and found["tasks"]["curt"]["people_pair_accuracy"] > 0.9
    assert found["tasks"]["rude"]["class_accuracy"] > 0.9 and found["tasks"]["rude"]["larger_class"] == 0.5
    assert found["tasks"]["depth"]["correlation"] > 0.9
    model = load_reward_model(project / "models/reward", torch.device("cpu"))
    assert [(task.name, task.kind) for task in model.tasks] == [
        ("reward", "score"), ("curt", "score"), ("rude", "binary"), ("depth", "score"),
    ]  # fmt: skip
    noted = json.loads((project / "runs/reward-0001/parents.json").read_text())
    for key in ("snapshot", "snapshot.curt", "snapshot.rude", "snapshot.depth"):
        assert store.snapshot(noted[key]).judgement_ids and found[key] == noted[key]
    shown = json.loads(done("models", "show", "reward", "--project", project, "--json"))["lineage"][0]["learnt_from"]
    assert [shown[task]["snapshot"] for task in tasks] == [noted[k] for k in noted if k.startswith("snapshot")]
    assert shown["rude"]["of"] == "ratings" and shown["curt"]["criterion"] == "curt"


def test_votes_train_a_classifier(project: Path) -> None:
    """`--task` names it; what it says is a probability: two logits, one of them always 0."""
    words = settings({"reward.epochs": 6, "reward.learning_rate": 3e-3})
    found = json.loads(done("train", "reward", "--task", "rude", "--project", project, "--json", *words))
    assert found["class_accuracy"] > 0.9 and found["heldout_ratings"] > 20 and "pair_accuracy" not in found
    [task] = load_reward_model(project / "models/reward", torch.device("cpu")).tasks
    logits = torch.tensor([-1.5, 0.0, 2.0]) / task.temperature
    both = torch.stack([logits, torch.zeros(3)], -1).softmax(-1)[:, 0]
    torch.testing.assert_close(task.probability(logits * task.temperature), both)
    assert "--task is for" in complaint(bridle("train", "dpo", "--task", "rude", "--project", project))


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (["kind"], "has no comparisons, votes or scores of training prompts by 'kind'; by criterion it has"),
        (["reward", "reward"], "names one twice"),
        ([], "reward.tasks"),
    ],
)
def test_a_task_that_has_no_labels_ends_before_any_step(tasks: list[str], words: str, imitator: Path) -> None:
    found = bridle("train", "reward", "--project", imitator, *settings({"reward.tasks": tasks}))
    assert found.exit_code in (1, 2) and words in complaint(found) and one_sentence(complaint(found)), complaint(found)
    assert not list(imitator.glob("runs/reward-*"))


def test_which_labels_a_task_takes(store: Store) -> None:
    assert labels_for(store, None) == Labels("comparisons", None) and labels_for(store, "curt") == Labels(
        "comparisons", "curt"
    )
    assert labels_for(store, "rude") == Labels("vote", "rude") and labels_for(store, "depth") == Labels(
        "score", "depth"
    )
    [(prompt, one), *_] = store.completions(source="import", split="train")
    add_ratings(store, [Rating(one, "bob", LabelerKind.IMPORTED, "vote", 1.0, criterion="depth")])
    with pytest.raises(Exception, match="scores and 1 votes by 'depth', which are no one number"):
        labels_for(store, "depth")
    with pytest.raises(Exception, match="by 'toxicity'"):
        labels_for(store, "toxicity")


def test_votes_that_name_no_criterion_are_of_what_they_are_taken_for(tmp_path: Path) -> None:
    """`{prompt, response, label}` rows, as a file of classes has them."""
    project = tmp_path / "p"
    done("init", project)
    rows = [{"prompt": a_prompt(n).text, "response": f"That is {n}.", "label": n % 2} for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done("import", tmp_path / "rows.jsonl", "--project", project)
    with Store.open(project / "store.sqlite") as store:
        found = labels_for(store, "toxicity")
    assert (found.kind, found.criterion) == ("vote", None) and "all are taken for toxicity" in found.note


def test_a_snapshot_of_ratings_is_the_same_again_and_weighs(store: Store) -> None:
    labels = Labels("vote", "rude")
    one, weighed = take_rating_snapshot(store, labels), take_rating_snapshot(store, labels, reliability={"ann": 0.5})
    assert take_rating_snapshot(store, labels).id == one.id != weighed.id
    assert {rating.weight for _, rating in snapshot_ratings(store, weighed.id)} == {0.5}
    assert len(snapshot_ratings(store, one.id)) == len(one.judgement_ids) > 50
    assert snapshot_ratings(store, take_rating_snapshot(store, labels, reliability={"ann": 0.0}).id) == []


def test_reliability_weighs_what_people_said(project: Path, store: Store) -> None:
    found = json.loads(done("train", "reward", "--project", project, "--json"))
    weights = {one.labeler: one.weight for _, one in store.snapshot_judgements(found["snapshot"])}
    assert weights["dan"] < 0.3 < 1 < min(weights[who] for who in PEOPLE[:3]), weights
    dpo = json.loads(done("train", "dpo", "--project", project, "--json"))
    assert dpo["snapshot"] == found["snapshot"]
    plain = json.loads(done("train", "dpo", "--project", project, "--json", "--set", "data.reliability='none'"))
    assert plain["snapshot"] == store.take_snapshot().id != dpo["snapshot"]


def test_who_weighs_nothing_is_named(project: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridle.stages import preferences

    monkeypatch.setattr(preferences, "stored_weights", lambda store, study: {"dan": 0.0})
    found = bridle("train", "reward", "--project", project, "--json")
    count = sum(one.labeler == "dan" for _, one in store.judgements(split="train"))
    assert json.loads(found.stdout)["weightless"] == {"dan": count}
    assert "judgements that weigh anything; those of dan are no better than a coin" in found.stderr
    assert result(project / "runs/reward-0001")["judgements"] == 4 * count, "all are in the snapshot"
    shown = done("models", "show", "reward", "--project", project)
    assert f"weighing nothing, for want of reliability: dan {count}" in shown


def test_a_model_is_followed_to_the_judgements_that_it_learnt_from(project: Path, store: Store) -> None:
    reward = json.loads(done("train", "reward", "--project", project, "--json"))
    ppo = json.loads(done("train", "ppo", "--project", project, "--json"))
    lineage = json.loads(done("models", "show", "ppo", "--project", project, "--json"))["lineage"]
    assert [one["name"] for one in lineage] == ["ppo", "sft", "reward", "base"]
    assert (
        lineage[0]["hash"] == ppo["model"]
        and lineage[0]["shaped_by"] == [reward["model"]]
        and not lineage[0]["learnt_from"]
    )
    learnt = lineage[2]["learnt_from"]["reward"]
    assert learnt["snapshot"] == reward["snapshot"] and learnt["ids"] == list(
        store.snapshot(reward["snapshot"]).judgement_ids
    )
    assert sum(learnt["labelers"].values()) == learnt["count"] == reward["judgements"] and learnt["sources"] == {
        "study": learnt["count"]
    }
    store.add_model_version("old", kind="dpo", weights_sha256="0" * 64, parent=ppo["model"])
    shown = done("models", "show", "old", "--project", project)
    assert "earlier version of bridle" in shown and "scored by reward" in shown and "from ppo" in shown
    listed = done("models", "list", "--project", project).splitlines()
    assert [line[:6].split() for line in listed] == [["*", "base"], ["*", "sft"], ["*", "rewa"], ["*", "ppo"], ["old"]]
    assert "no model is registered as 'nothing'" in complaint(bridle("models", "show", "nothing", "--project", project))


def test_dpo_notes_its_snapshot_and_a_verifier_is_no_model(project: Path) -> None:
    done("train", "dpo", "--project", project)
    [dpo, *_] = json.loads(done("models", "show", "dpo", "--project", project, "--json"))["lineage"]
    assert list(dpo["learnt_from"]) == ["judgements"] and dpo["noted"] and not dpo["shaped_by"]


def with_votes(store: Store) -> int:
    """A vote for the first answer to every third prompt, and one against the second; how many are of training prompts."""
    given = []
    for number in range(0, 60, 3):
        for value, answer in zip((1.0, 0.0), answers_to(a_prompt(number), number), strict=True):
            given.append(Rating(answer, "ann", LabelerKind.IMPORTED, "vote", value))
    add_ratings(store, given)
    return 2 * sum(split_of(a_prompt(number).id, 0.3) == "train" for number in range(0, 60, 3))


def test_kto_learns_from_comparisons_and_from_votes_on_the_whole(project: Path, store: Store) -> None:
    refused = bridle("train", "kto", "--project", project, *settings({"kto.labels": "votes"}))
    assert refused.exit_code == 1
    assert "holds no votes on the whole to learn from, only by curt, depth, rude; `bridle import" in complaint(refused)
    count, found = with_votes(store), dict[str, dict[str, Any]]()
    for labels in ("all", "comparisons", "votes"):
        words = settings({"kto.labels": labels, "kto.epochs": 2})
        found[labels] = json.loads(done("train", "kto", "--project", project, "--json", *words))
        noted = json.loads((project / f"runs/kto-000{len(found)}/parents.json").read_text())
        learnt = json.loads(done("models", "show", "kto", "--project", project, "--json"))["lineage"][0]["learnt_from"]
        expected = {"comparisons": {"snapshot": "judgements"}, "votes": {"snapshot.votes": "votes"}}
        keys = expected["comparisons"] | expected["votes"] if labels == "all" else expected[labels]
        assert (
            {key for key in noted if key.startswith("snapshot")}
            == keys.keys()
            == {key for key in found[labels] if key.startswith("snapshot")}
        )
        assert {task: held["snapshot"] for task, held in learnt.items()} == {keys[key]: noted[key] for key in keys}
        assert found[labels]["margin"] > 0, labels
    assert found["votes"]["answers"] == count and found["votes"]["good"] == found["votes"]["bad"]
    [weight] = set(store.snapshot(found["votes"]["snapshot.votes"]).weights)
    assert found["votes"]["good"] == pytest.approx(weight * count / 2) and weight > 1, "ann is reliable"
    assert found["all"]["good"] == pytest.approx(found["votes"]["good"] + found["comparisons"]["good"])
    weights = {labels: store.snapshot(found[labels]["snapshot"]).weights for labels in ("all", "comparisons")}
    assert weights["all"] == weights["comparisons"] and len(set(weights["all"])) > 1, "by reliability"


def test_thumbs_of_users_teach_nothing_whatever_the_recipe_names(project: Path, store: Store) -> None:
    user = agreeing(store, "ann")
    for number in range(12):
        answer = serve(
            store, user, Prompt.from_text(f"Question {number} of a user?"), "Gladly." if number % 2 else "No."
        )
        assert answer is not None and react(store, user, answer.id, Reaction("vote", "k", value=number % 2))
    assert len(draw_prompts(store, 12, 0, by="loop").prompts) > 6
    named = {"data.sources": ["import", "study", "serving"]}
    votes = settings({"kto.labels": "votes", **named})
    assert "holds no votes on the whole" in complaint(bridle("train", "kto", "--project", project, *votes))
    found = json.loads(done("train", "kto", "--project", project, "--json", *settings(named)))
    assert [key for key in found if key.startswith("snapshot")] == ["snapshot"], "comparisons alone"


def test_a_tie_among_votes_and_strengths_reach_the_loss(store: Store) -> None:
    item, judgement = store.judgements(split="train")[0]
    turned = replace(judgement, labeler="eve", ranking=judgement.ranking[::-1], submission_key="e", strength=3)
    store.add_judgements([turned, replace(turned, labeler="fay", ranking=((0, 1),), submission_key="f", strength=None)])
    pairs = {ties: store.snapshot_pairs(store.take_snapshot().id, ties) for ties in (False, True)}
    of_item = {ties: next(pair for pair in found if pair.item_id == item.id) for ties, found in pairs.items()}
    assert of_item[False].weight == 5 and of_item[True].weight == 6 and of_item[False].strength is not None
    assert 0.5 < of_item[True].target < of_item[False].target < 1


def test_style_is_kept_out_of_the_score(project: Path, store: Store) -> None:
    words = settings({"reward.style_control": ["length"]})
    assert "needs 100 votes of training prompts" in complaint(bridle("train", "reward", "--project", project, *words))
    with store.writing() as connection:
        connection.execute(sa.update(tables.item).values(gold=[[0], [1]]))
    found = json.loads(done("train", "reward", "--project", project, "--json", *words))
    assert set(found["style"]) == set(found["style_se"]) == {"length"}
    plain = json.loads(done("train", "reward", "--project", project, "--json"))
    assert "style" not in plain and plain["model"] != found["model"]
