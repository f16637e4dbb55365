import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from bridle.core.errors import DataError, StoreError
from bridle.core.records import Completion, LabelerKind, Prompt
from bridle.feedback.rankings import item_id
from bridle.feedback.store.driver import INSERT_SIZE
from bridle.feedback.store.store import Store, split_of
from tests.feedback.sample import Sample


def test_the_loop_on_every_database(any_store: Store, sample: Sample) -> None:
    store = any_store
    assert store.add_prompts(sample.prompts, split="train", source="world") == 5
    assert store.add_completions([c for group in sample.groups for c in group], source="sample") == 20
    ids = store.add_items(sample.groups, study="first")
    assert ids == [item_id(group, "first") for group in sample.groups]
    judgements = [sample.judgement(item, f"key-{n}", best=n % 4) for n, item in enumerate(ids)]
    assert store.add_judgements(judgements) == 5
    assert store.judgements(study="first") == [
        (item, judgement) for item, judgement in zip(store.items(study="first"), judgements, strict=True)
    ]
    snapshot = store.take_snapshot(study="first")
    pairs = store.snapshot_pairs(snapshot.id)
    assert len(pairs) == 25 and sum(pair.weight for pair in pairs) == pytest.approx(5)
    assert store.snapshot(snapshot.id) == snapshot
    assert store.counts()["judgements"] == {"simulated": 5}
    # a second time, nothing is new
    assert store.add_prompts(sample.prompts, split="train", source="world") == 0
    assert store.add_completions([c for group in sample.groups for c in group], source="sample") == 0
    assert store.add_items(sample.groups, study="first") == ids
    assert store.add_judgements(judgements) == 0
    assert len(store.items(study="first")) == 5


@pytest.mark.parametrize("change", ["UPDATE judgement SET seconds = 9", "DELETE FROM judgement"])
def test_judgements_are_append_only(any_store: Store, sample: Sample, change: str) -> None:
    judgement = sample.judgement(sample.fill(any_store)[0], "key")
    any_store.add_judgements([judgement])
    with any_store._engine.connect() as connection, pytest.raises(Exception, match="append-only"):
        connection.execute(text(change))
    assert [found for _, found in any_store.judgements()] == [judgement]


def test_judgements_are_not_replaced(store: Store, sample: Sample) -> None:
    judgement = sample.judgement(sample.fill(store)[0], "key")
    store.add_judgements([judgement])
    columns = "sha256, submission_key, item_sha256, labeler, ranking, source, created_at"
    replacing = f"INSERT OR REPLACE INTO judgement (outcome, {columns}) SELECT '9', {columns} FROM judgement"
    with store._engine.connect() as connection, pytest.raises(Exception, match="append-only"):
        connection.execute(text(replacing))
    assert [found for _, found in store.judgements()] == [judgement]


# ----------------------------------------------------------------------------------------------- prompts, answers


def test_prompts_come_back_in_order_and_whole(store: Store, sample: Sample) -> None:
    store.add_prompts(reversed(sample.prompts), split="train", source="world")
    found = store.prompts()
    assert found == sample.prompts[::-1]
    assert [prompt.meta["n"] for prompt in found] == [4, 3, 2, 1, 0]
    assert store.prompts(limit=2) == found[:2]
    assert store.prompts(split="heldout") == [] and store.prompts(source="elsewhere") == []


def test_a_prompt_sits_in_one_split(store: Store, sample: Sample) -> None:
    store.add_prompts(sample.prompts[:2], split="heldout", source="world")
    with pytest.raises(DataError, match="in split 'heldout'"):
        store.add_prompts(sample.prompts, split="train", source="world")
    assert len(store.prompts()) == 2  # nothing of the refused call was kept
    assert store.add_prompts(sample.prompts, split=None, source="file", held_out_share=0.0) == 3
    assert store.prompts(split="heldout") == sample.prompts[:2]
    assert store.prompts(split="train") == sample.prompts[2:]


def test_more_than_one_statement_holds_are_each_added_once(any_store: Store) -> None:
    prompts = [Prompt.from_text(f"{n}?") for n in range(2 * INSERT_SIZE + 3)]
    assert any_store.add_prompts(prompts[INSERT_SIZE - 2 : INSERT_SIZE + 5], split=None, source="file") == 7
    assert any_store.add_prompts(prompts, split=None, source="file") == len(prompts) - 7
    assert any_store.add_prompts(prompts, split=None, source="file") == 0
    assert (
        any_store.prompts()
        == prompts[INSERT_SIZE - 2 : INSERT_SIZE + 5] + prompts[: INSERT_SIZE - 2] + prompts[INSERT_SIZE + 5 :]
    )


def test_split_of_is_stable_and_keeps_its_share() -> None:
    ids = [Prompt.from_text(f"Question {n}?").id for n in range(4000)]
    assert [split_of(prompt_id, 0.3) for prompt_id in ids[:6]] == [
        "train", "train", "heldout", "train", "train", "heldout",
    ]  # fmt: skip
    held_out = {share: {i for i in ids if split_of(i, share) == "heldout"} for share in (0.0, 0.1, 0.3)}
    assert not held_out[0.0] and held_out[0.1] < held_out[0.3]
    assert len(held_out[0.1]) == pytest.approx(400, abs=60)
    with pytest.raises(DataError, match=r"share is 1\.5"):
        split_of(ids[0], 1.5)


def test_completions_come_back_exactly(store: Store, sample: Sample) -> None:
    sample.fill(store)
    added = [(p, c) for p, group in zip(sample.prompts, sample.groups, strict=True) for c in group]
    found = store.completions(source="sample")
    assert found == added
    assert [c.sampling for _, c in found] == [c.sampling for _, c in added]
    assert type(found[0][1].sampled_logprobs[0]) is float
    assert store.completions(split="heldout") == [] and store.completions(weight_stamp="ppo+3") == []


def test_the_same_answer_by_other_weights_keeps_its_parents(store: Store, sample: Sample) -> None:
    store.add_prompts(sample.prompts, split="train", source="world")
    by_sft = sample.groups[0][0]
    by_ppo = replace(by_sft, weight_stamp="ppo+3", sampled_logprobs=(-1.0, -2.0, -3.0))
    assert store.add_completions([by_sft, by_ppo, by_sft], source="sample") == 2
    assert [c for _, c in store.completions(weight_stamp="ppo+3")] == [by_ppo]
    written = Completion(by_sft.prompt_id, "By hand")
    assert store.add_completions([written], source="demonstration", author="ann") == 1
    assert store.add_completions([written], source="demonstration", author="bob") == 1


@pytest.mark.parametrize("logprobs", [(-1.0,), (-1.0, float("nan"), -1.0), (-1.0, float("-inf"), -1.0)])
def test_logprobs_are_finite_and_one_for_each_token(store: Store, sample: Sample, logprobs: tuple[float, ...]) -> None:
    store.add_prompts(sample.prompts, split="train", source="world")
    with pytest.raises(DataError, match="log-probs for 3 tokens"):
        store.add_completions([replace(sample.groups[0][0], sampled_logprobs=logprobs)], source="sample")


def test_what_is_missing_is_named(store: Store, sample: Sample) -> None:
    with pytest.raises(DataError, match="add the prompts first"):
        store.add_completions(sample.groups[0], source="sample")
    store.add_prompts(sample.prompts, split="train", source="world")
    with pytest.raises(DataError, match="add_completions"):
        store.add_items(sample.groups, study="first")
    with pytest.raises(DataError, match="add it first"):
        store.add_judgements([sample.judgement("nothing", "key")])
    with pytest.raises(DataError, match="cannot be stored"):
        store.add_prompts([Prompt.from_text("?", meta={"gold": float("nan")})], split="train", source="world")


# ------------------------------------------------------------------------------------------- items, judgements


def test_an_item_compares_answers_to_one_prompt(store: Store, sample: Sample) -> None:
    sample.fill(store)
    with pytest.raises(DataError, match="different prompts"):
        store.add_items([[sample.groups[0][0], sample.groups[1][0]]], study="first")
    with pytest.raises(DataError, match="at least 2"):
        store.add_items([sample.groups[0][:1]], study="first")
    twice = [sample.groups[0][0]] * 2  # two samples may come out the same; each keeps its slot
    [added] = store.add_items([twice], study="second")
    assert [item.completions for item in store.items(study="second")] == [tuple(twice)]
    assert store.add_items([twice], study="third") != [added]


def test_the_same_submission_twice_is_one_row(store: Store, sample: Sample) -> None:
    judgement = sample.judgement(sample.fill(store)[0], "key")
    assert store.add_judgements([judgement, judgement]) == 1
    assert store.add_judgements([judgement]) == 0
    with pytest.raises(DataError, match="another answer"):
        store.add_judgements([replace(judgement, ranking=((0,), (1, 2, 3)))])
    assert [found for _, found in store.judgements()] == [judgement]


def test_without_a_key_the_content_is_the_key(store: Store, sample: Sample) -> None:
    judgement = replace(sample.judgement(sample.fill(store)[0], ""), display_order=None, seconds=None)
    assert store.add_judgements([judgement]) == 1
    assert store.add_judgements([judgement]) == 0
    assert [found for _, found in store.judgements()] == [judgement]


def test_one_bad_judgement_refuses_the_whole_call(store: Store, sample: Sample) -> None:
    first, second = sample.fill(store)[:2]
    good = sample.judgement(first, "good")
    for bad in (
        replace(sample.judgement(second, "bad"), ranking=((0,), (1,), (2,))),
        replace(sample.judgement(second, "bad"), display_order=(0, 1, 2, 2)),
        replace(sample.judgement(second, "bad"), labeler_kind=LabelerKind.PERSON),
    ):
        with pytest.raises(DataError):
            store.add_judgements([good, bad])
        assert store.judgements() == [] and store.counts()["judgements"] == {}


def test_a_correction_supersedes_and_the_old_row_stays(store: Store, sample: Sample) -> None:
    item = sample.fill(store)[0]
    first, second = sample.judgement(item, "one"), sample.judgement(item, "two", best=0)
    store.add_judgements([first])
    assert store.correct(second, supersedes=first.id) == 1
    assert store.correct(second, supersedes=first.id) == 0
    assert [found for _, found in store.judgements()] == [second]
    assert store.counts()["judgements"] == {"simulated": 2}
    with pytest.raises(DataError, match="corrected already"):
        store.correct(sample.judgement(item, "three"), supersedes=first.id)
    with pytest.raises(DataError, match="submission key of its own"):
        store.correct(first, supersedes=second.id)
    with pytest.raises(DataError, match="same labeler"):
        store.correct(sample.judgement(item, "three", labeler="sim-2"), supersedes=second.id)
    assert store.correct(replace(first, submission_key="three"), supersedes=second.id) == 1


@pytest.mark.parametrize("target", ["judgement", "labeler", "item", "prompt"])
def test_an_exclusion_hides_and_deletes_nothing(store: Store, sample: Sample, target: str) -> None:
    ids = sample.fill(store)
    shunned, kept = sample.judgement(ids[0], "one", labeler="sim-9"), sample.judgement(ids[1], "two")
    store.add_judgements([shunned, kept])
    key = {"judgement": shunned.id, "labeler": "sim-9", "item": ids[0], "prompt": sample.prompts[0].id}[target]
    store.exclude(target, key, reason="spam", by="owner")  # type: ignore[arg-type]
    assert [found for _, found in store.judgements()] == [kept]
    assert store.take_snapshot().judgement_ids == (kept.id,)
    assert store.counts()["judgements"] == {"simulated": 2}
    open_again = {ids[0]} if target in ("judgement", "labeler") else set()
    assert {item.id for item in store.unjudged_items("first")} == {*ids[2:], *open_again}
    with pytest.raises(DataError, match="to exclude"):
        store.exclude(target, "nothing", reason="spam", by="owner")  # type: ignore[arg-type]


def test_study_and_split_select(store: Store, sample: Sample) -> None:
    store.add_prompts(sample.prompts[:1], split="heldout", source="world")
    store.add_prompts(sample.prompts[1:], split="train", source="world")
    store.add_completions([c for group in sample.groups for c in group], source="sample")
    ids = store.add_items(sample.groups, study="first")
    [other] = store.add_items(sample.groups[:1], study="other")
    store.add_judgements([sample.judgement(item, item) for item in [*ids, other]])
    assert [item.id for item, _ in store.judgements(study="first", split="heldout")] == ids[:1]
    assert [item.id for item, _ in store.judgements(split="heldout")] == [ids[0], other]
    assert [item.id for item in store.items(study="first", split="train")] == ids[1:]


# --------------------------------------------------------------------------------------------------- snapshots


def test_a_snapshot_is_the_same_in_every_store(tmp_path: Path, sample: Sample) -> None:
    snapshots, pairs = [], []
    for name, step in (("one", 1), ("two", -1)):
        with Store.open(tmp_path / name) as store:
            ids = sample.fill(store)
            for judgement in [sample.judgement(item, f"key {item}") for item in ids][::step]:
                store.add_judgements([judgement])
            snapshots.append(store.take_snapshot(study="first"))
            assert store.take_snapshot(study="first") == snapshots[-1]
            pairs.append(store.snapshot_pairs(snapshots[-1].id))
    assert snapshots[0] == snapshots[1]
    assert pairs[0] == pairs[1]


def test_a_snapshot_stays_as_it_was(store: Store, sample: Sample) -> None:
    ids = sample.fill(store)
    store.add_judgements([sample.judgement(ids[0], "one")])
    old = store.take_snapshot()
    pairs = store.snapshot_pairs(old.id)
    store.add_judgements([sample.judgement(ids[1], "two")])
    store.exclude("item", ids[0], reason="unclear", by="owner")
    assert store.take_snapshot().id != old.id
    assert store.snapshot(old.id) == old and store.snapshot_pairs(old.id) == pairs


def test_a_snapshot_that_was_tampered_with_is_refused(store: Store, sample: Sample) -> None:
    store.add_judgements([sample.judgement(item, item) for item in sample.fill(store)])
    snapshot = store.take_snapshot()
    with store._engine.begin() as connection:
        row = {"gone": bytes.fromhex(snapshot.judgement_ids[0])}
        connection.execute(text("DELETE FROM snapshot_row WHERE judgement_sha256 = :gone"), row)
    with pytest.raises(StoreError, match="has 4 judgements where 5 were written"):
        store.snapshot_pairs(snapshot.id)
    with pytest.raises(StoreError, match="no snapshot"):
        store.snapshot("nothing")


def test_an_empty_snapshot_names_the_studies(store: Store, sample: Sample) -> None:
    sample.fill(store)
    with pytest.raises(DataError, match="the store's studies are first"):
        store.take_snapshot(study="frist")


# ------------------------------------------------------------------------------------------- threads, sudden ends


def test_threads_may_share_a_store(store: Store, sample: Sample) -> None:
    ids = sample.fill(store)
    failed: list[Exception] = []

    def work(name: str) -> None:
        try:
            for n in range(10):
                store.add_judgements([sample.judgement(ids[n % 5], f"{name}-{n}", labeler=name)])
                store.judgements()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f"sim-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(store.judgements()) == 40


WRITER = """
import sys
from pathlib import Path
from bridle.core.records import Prompt
from bridle.feedback.store.store import Store
store = Store.open(Path(sys.argv[1]))
for n in range(100_000):
    store.add_prompts([Prompt.from_text(f"Question {n}?")], split="train", source="world")
    print(n, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while (acknowledged := int(writer.stdout.readline())) < 50:
            pass
        writer.kill()
        acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    with Store.open(path) as store:
        found = {prompt.text for prompt in store.prompts()}
    assert {f"Question {n}?" for n in range(acknowledged + 1)} <= found


def test_calls_of_one_transaction_are_kept_together_or_not_at_all(any_store: Store, sample: Sample) -> None:
    with pytest.raises(ZeroDivisionError), any_store.transaction() as one:
        sample.fill(one)
        assert len(one.prompts()) == 5 and any_store.prompts() == []
        raise ZeroDivisionError
    assert any_store.counts()["prompts"] == {}
    with any_store.transaction() as one:
        sample.fill(one)
    assert any_store.counts()["prompts"] == {"train": 5}
