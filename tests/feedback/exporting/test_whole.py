"""A whole store goes out and comes back the same; what is not as it was written is refused, and nothing of it is kept."""

import gzip
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError, UsageError
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.exporting.exporter import export_file
from bridle.feedback.exporting.formats import Wanted
from bridle.feedback.importing.importer import import_file
from bridle.feedback.store.store import Store
from tests.feedback.conftest import new_store
from tests.feedback.exporting.random_store import Drawn, content
from tests.feedback.sample import Sample


@cache
def whole() -> str:
    """A store as it goes out."""
    with tempfile.TemporaryDirectory() as folder, new_store(Path(folder) / "store.sqlite") as store:
        Drawn(store, 3)
        export_file(store, Path(folder) / "all.jsonl", "full")
        return (Path(folder) / "all.jsonl").read_text("utf-8")


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4))])
def test_out_and_in_again_is_the_same_store(seed: int, tmp_path: Path) -> None:
    with new_store(tmp_path / "a") as one, new_store(tmp_path / "b") as two:
        Drawn(one, seed)
        place = tmp_path / "all.jsonl"
        before = content(one)
        report = export_file(one, place, "full")
        assert report.rows == len(before) == len(place.read_text("utf-8").splitlines()) and not report.not_held
        again = import_file(two, place)
        assert again.new == again.rows == report.rows - 1 and content(two) == before
        assert import_file(one, place).new == import_file(two, place).new == 0
        assert content(one) == content(two) == before
        assert one.judgements() == two.judgements() and one.items(study="first") == two.items(study="first")


def test_both_databases_hold_the_same(any_store: Store, tmp_path: Path) -> None:
    Drawn(any_store, 3)
    export_file(any_store, tmp_path / "all.jsonl.gz", "full")
    with new_store(tmp_path / "other") as other:
        import_file(other, tmp_path / "all.jsonl.gz")
        assert content(other) == content(any_store)
        export_file(other, tmp_path / "again.jsonl.gz", "full")
    assert import_file(any_store, tmp_path / "again.jsonl.gz").new == 0
    texts = [gzip.decompress((tmp_path / name).read_bytes()) for name in ("all.jsonl.gz", "again.jsonl.gz")]
    assert texts[0] == texts[1]


def test_two_stores_become_one(any_store: Store, sample: Sample, tmp_path: Path) -> None:
    with new_store(tmp_path / "other") as other:
        Drawn(other, 5)
        export_file(other, tmp_path / "all.jsonl", "full")
        here = sample.fill(any_store)
        any_store.add_judgements([sample.judgement(here[0], "k")])
        theirs = len(other.judgements())
    assert import_file(any_store, tmp_path / "all.jsonl").new > 0
    assert len(any_store.judgements()) == theirs + 1


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("prompt", lambda row: [row | {"messages": [{"role": "user", "content": "Other?"}]}], "its content is not that of its hash"),
        ("completion", lambda row: [row | {"text": "Other."}], "its content is not that of its hash"),
        ("completion", lambda row: [row | {"text": 3}], "a completion .* is not what bridle wrote: its text is 3"),
        ("item", lambda row: [row | {"study": "other"}], "its content is not that of its hash"),
        ("item", lambda row: [row | {"completions": [["a" * 64, "", "", "x"]]}], "its content is not that"),
        ("item", lambda row: [row | {"completions": [[3]]}], "its completions is"),
        ("judgement", lambda row: [row | {"labeler": "eve"}], "its content is not that of its hash"),
        ("judgement", lambda row: [row | {"mood": "good"}], "a judgement has a field 'mood', which this version"),
        ("judgement", lambda row: [row | {"weight": float("inf")}], "its weight is inf"),
        ("judgement", lambda row: [row | {"ranking": [["x"]]}], "its content"),
        ("rating", lambda row: [row | {"value": 7.0}], "its content is not that of its hash"),
        ("rating", lambda row: [row | {"completion": ["a" * 64, "", "", "x"]}], "its content is not that"),
        ("completion_score", lambda row: [row | {"completion": ["a" * 64, "", "", "x"]}], "refers to a completion"),
        ("snapshot_row", lambda row: [], "breaks off or was changed"),
        ("document", lambda row: [], "breaks off or was changed"),
        ("document", lambda row: [row, row], "breaks off or was changed"),
        ("study", lambda row: [{"type": "mystery"}], "is not a row of a store"),
        ("free_text", lambda row: [row | {"body": "a\ud800b"}], "its body is"),
        ("store", lambda row: [row | {"format": 2}], "is a store of format 2.*update bridle"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_as_it_was_written_is_refused(
    kind: str, change: Callable[[dict[str, Any]], list[dict[str, Any]]], told: str, store: Store, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in whole().splitlines()]
    place = next(n for n, row in enumerate(rows) if row["type"] == kind)
    rows[place : place + 1] = change(rows[place])
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    before = content(store)
    with pytest.raises(DataError, match=told) as error:
        import_file(store, tmp_path / "all.jsonl")
    assert content(store) == before and "\n" not in str(error.value)


def test_a_file_that_breaks_off_is_refused(store: Store, tmp_path: Path) -> None:
    data = whole().encode()
    for size in (len(data) // 3, len(data) - 40):
        (tmp_path / "part.jsonl").write_bytes(data[:size])
        with pytest.raises(DataError, match="is not a row of a store|breaks off or was changed"):
            import_file(store, tmp_path / "part.jsonl")
    assert store.prompts() == []


def test_who_is_known_as_another_kind_is_refused(store: Store, sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(whole(), "utf-8")
    items = sample.fill(store)
    store.add_judgements([sample.judgement(items[0], "k", "ann")])
    with pytest.raises(DataError, match="labeler 'ann' is known as simulated, not person"):
        import_file(store, tmp_path / "all.jsonl")
    assert len(store.judgements()) == 1


def test_a_judgement_under_a_key_that_stands_for_another_is_refused(any_store: Store, tmp_path: Path) -> None:
    prompt = Prompt.from_text("Why?")
    answers = [Completion(prompt.id, text) for text in ("Because.", "No.")]

    def fill(store: Store, best: int) -> None:
        store.add_prompts([prompt], split="train", source="world")
        store.add_completions(answers, source="import")
        (item,) = store.add_items([answers], study="first")
        store.add_judgements(
            [Judgement(item, "ann", LabelerKind.PERSON, ((best,), (1 - best,)), None, submission_key="one")]
        )

    with new_store(tmp_path / "other") as other:
        fill(other, 0)
        export_file(other, tmp_path / "all.jsonl", "full")
    fill(any_store, 1)
    with pytest.raises(DataError, match="in the store under the same submission_key, 'one'"):
        import_file(any_store, tmp_path / "all.jsonl")
    assert len(any_store.judgements()) == 1


def test_a_part_of_the_whole_is_refused(store: Store, sample: Sample, tmp_path: Path) -> None:
    sample.fill(store)
    with pytest.raises(UsageError, match="the format full has no part by --split"):
        export_file(store, tmp_path / "all.jsonl", "full", Wanted(split="train"))
    with pytest.raises(UsageError, match=r"name one that ends in \.jsonl, \.jsonl\.gz"):
        export_file(store, tmp_path / "all.csv", "full")
    assert not list(tmp_path.glob("*all*"))
