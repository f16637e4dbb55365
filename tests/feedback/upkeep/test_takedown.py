"""A text that is taken down is nowhere in the store's files, does not come back, and what was made of it is named."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bridle.core.errors import StoreError, UsageError
from bridle.core.records import Completion, FinishReason, Judgement, LabelerKind, Prompt, Rating, content_hash
from bridle.feedback.exporting.exporter import export_file
from bridle.feedback.importing.importer import import_file
from bridle.feedback.store import tables
from bridle.feedback.store.labels import Labels, snapshot_ratings, take_rating_snapshot
from bridle.feedback.store.ratings import add_documents, add_ratings, add_solutions, documents, solutions
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.takedown import find_text, take_down
from bridle.feedback.upkeep.verify import store_faults
from tests.feedback.conftest import new_store
from tests.feedback.exporting.random_store import content

SECRET = "My name is Ann Xylander, of 7 Quince Lane"
ANSWER = "Dear Ann Xylander, the ferry leaves at 9"
OTHER = "The bus leaves at ten, every day"


class Case:
    """A question that tells who asks, with answers, verdicts, a reason, a flag, a draft and models; and another question."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.prompt, self.plain = (
            Prompt.from_text(SECRET, {"who": SECRET}),
            Prompt.from_text("When does the bus leave?"),
        )
        self.answer = Completion(self.prompt.id, ANSWER, (5, 6), (-0.1, -0.2), FinishReason.STOP, "sft+0")
        self.groups = [
            [self.answer, Completion(self.prompt.id, "At nine, I should think.")],
            [Completion(self.plain.id, OTHER), Completion(self.plain.id, "I do not know that, sorry.")],
        ]
        store.add_prompts([self.prompt, self.plain], split="train", source="world")
        store.add_completions([one for group in self.groups for one in group], source="sample")
        store.add_completions([self.answer], source="import", author="ann")
        self.items = store.add_items(self.groups, study="first")
        store.add_judgements([self.judged(item, SECRET + ", so") for item in self.items])
        add_ratings(store, [Rating(self.answer, "ann", LabelerKind.PERSON, "vote", 1.0, note=SECRET + "!")])
        add_solutions(store, [(self.prompt, ANSWER)])
        add_documents(store, [SECRET, "Ferries are boats."])
        rows = [
            {"prompt": SECRET + "?", "chosen": "a" * 9, "rejected": ""},
            {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        import_file(store, folder / "rows.jsonl")
        self.snapshot = store.take_snapshot(study="first")
        for name, weights, parent in (
            ("base", "a", None),
            ("reward", "b", "a"),
            ("ppo", "c", "a"),
            ("dpo", "d", "c"),
            ("old", "e", None),
        ):
            store.add_model_version(name, kind=name, weights_sha256=weights * 64, parent=parent and parent * 64)
        with store.writing() as connection:
            learnt = {"snapshot_sha256": self.snapshot.id}
            connection.execute(
                sa.update(tables.model_version).where(tables.model_version.c.name == "reward").values(learnt)
            )
            shaped = {"shaped_by": ["b" * 64]}
            connection.execute(
                sa.update(tables.model_version).where(tables.model_version.c.name == "ppo").values(shaped)
            )
            (item,) = connection.execute(
                sa.select(tables.item.c.id).where(tables.item.c.sha256 == self.items[0])
            ).scalars()
            at = {"created_at": "2026-01-01", "lease_until": "2026-01-01"}
            row = {"id": 1, "item_id": item, "labeler": "ann", "display_order": [0, 1], "state": "open", **at}
            connection.execute(sa.insert(tables.assignment), [row])
            body = {"assignment_id": 1, "body": {"note": SECRET}, "saved_at": "2026-01-01"}
            connection.execute(sa.insert(tables.draft), [body])

    def judged(self, item: str, why: str) -> Judgement:
        return Judgement(item, "ann", LabelerKind.PERSON, ((0,), (1,)), (1, 0), submission_key=item, rationale=why)


def bytes_of(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in sorted(path.parent.glob(f"{path.name}*")))


def test_a_prompt_takes_its_answers_along(any_store: Store, tmp_path: Path) -> None:
    case = Case(any_store, tmp_path)
    judged = len(any_store.judgements())
    done = take_down(any_store, case.prompt.id[:12], reason="asked to", by="me")
    assert done.hash == case.prompt.id
    assert done.blanked == {"prompt": 1, "completion": 3, "solution": 1, "draft": 1}
    assert list(store_faults(any_store)) == []
    assert case.prompt not in any_store.prompts() and len(any_store.judgements()) == judged - 1
    assert not {case.prompt.id} & {prompt.id for prompt, _ in any_store.completions()} and solutions(any_store) == []
    assert [item.id for item in any_store.items(study="first")] == case.items[1:]
    # What was learnt from stays counted, and what is left of it can be learnt from.
    assert any_store.snapshot(case.snapshot.id) == case.snapshot
    assert [pair.chosen.text for pair in any_store.snapshot_pairs(case.snapshot.id)] == [OTHER]
    assert [name.split()[0] for name in done.models] == ["reward", "ppo", "dpo"]
    assert [name.split()[0] for name in done.perhaps] == ["base", "old"]
    with any_store.reading() as connection:
        account = connection.execute(sa.select(tables.audit).order_by(tables.audit.c.id.desc())).first()
        out = connection.execute(sa.select(tables.exclusion.c.target)).scalars().all()
    assert account is not None and (account.action, account.actor, account.object) == ("takedown", "me", case.prompt.id)
    assert sorted(out) == ["completion"] * 2 + ["prompt"] + ["text"] * 4
    assert take_down(any_store, case.prompt.id, reason="again", by="me").blanked == {}


@pytest.fixture
def careless() -> Iterator[None]:
    """SQLite leaves what is deleted where it was, as it does unless it was built otherwise."""

    def leave(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA secure_delete = OFF")

    sa.event.listen(sa.Engine, "connect", leave)
    yield
    sa.event.remove(sa.Engine, "connect", leave)


@pytest.mark.parametrize("what", ["prompt", "answer", "text"])
@pytest.mark.usefixtures("careless")
def test_nothing_of_it_is_left_in_the_files(what: str, tmp_path: Path) -> None:
    place = tmp_path / "store.sqlite"
    with Store.open(place) as store:
        case = Case(store, tmp_path)
        (tmp_path / "runs/ppo-0001").mkdir(parents=True)
        (tmp_path / "runs/ppo-0001/samples.jsonl").write_text(json.dumps({"answer": f"“{ANSWER}”", "prompt": SECRET}))
        (tmp_path / "runs/ppo-0001/metrics.jsonl").write_text("{}")
        if what == "prompt":  # all that holds the words
            done = [
                take_down(store, found["hash"], reason="", by="me", runs=tmp_path / "runs")
                for found in find_text(store, "Xylander")
            ]
            gone = [SECRET, ANSWER, "Xylander"]
        elif what == "answer":
            done, gone = [take_down(store, case.answer.id, reason="", by="me", runs=tmp_path / "runs")], []
            assert done[0].blanked == {"completion": 2, "draft": 1}
            take_down(store, content_hash([case.prompt.id, ANSWER]), reason="", by="me")
            gone = [ANSWER]
        else:
            done = [take_down(store, content_hash(SECRET + ", so"), reason="", by="me", runs=tmp_path / "runs")]
            assert done[0].blanked == {"free_text": 1} and [name.split()[0] for name in done[0].models] == [
                "reward",
                "ppo",
                "dpo",
            ]
            gone = [SECRET + ", so"]
        assert list(store_faults(store)) == []
        for text in gone:
            assert text.encode() not in bytes_of(place), text
        if what != "text":
            assert {Path(name).name for one in done for name in one.runs} == {"samples.jsonl"}
        store.add_prompts(
            [Prompt.from_text("More?")], split="train", source="world"
        )  # the file is shorter, and goes on


def test_it_does_not_come_back(any_store: Store, tmp_path: Path) -> None:
    case = Case(any_store, tmp_path)
    export_file(any_store, tmp_path / "before.jsonl", "full")
    take_down(any_store, case.prompt.id, reason="asked to", by="me")
    take_down(any_store, content_hash("Ferries are boats."), reason="asked to", by="me")
    take_down(any_store, case.groups[1][0].id, reason="asked to", by="me")
    before = content(any_store)
    rows: list[dict[str, Any]] = [
        {"prompt": SECRET, "chosen": "Something new altogether.", "rejected": "No."},
        {"prompt": SECRET},
        {"prompt": "When does the bus leave?", "completion": OTHER},
        {"text": "Ferries are boats."},
        {"prompt": "When does the bus leave?", "completion": "At noon."},
    ]
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_file(any_store, tmp_path / "again.jsonl")
    assert {str(why): tally.count for why, tally in report.skipped.items()} == {"holds a text that was taken down": 4}
    assert report.kept == {"demonstration": 1} and import_file(any_store, tmp_path / "again.jsonl").skipped_rows == 4
    added = [Completion(case.prompt.id, "New."), Completion(case.plain.id, OTHER)]
    assert any_store.add_prompts([case.prompt], split=None, source="sample") == 0
    assert (
        any_store.add_completions(added, source="sample", author="cyd")
        == add_documents(any_store, ["Ferries are boats."])
        == 0
    )
    import_file(any_store, tmp_path / "before.jsonl")  # which holds the text
    stored = "\n".join(content(any_store))
    assert f'"content": "{SECRET}"' not in stored and OTHER not in stored and "Something new" not in stored
    assert len(content(any_store)) == len(before) + 2 and documents(any_store) == [SECRET]
    assert list(store_faults(any_store)) == []


def test_a_takedown_goes_out_and_in(store: Store, tmp_path: Path) -> None:
    case = Case(store, tmp_path)
    take_down(store, case.prompt.id, reason="asked to", by="me")
    export_file(store, tmp_path / "after.jsonl", "full")
    with new_store(tmp_path / "other") as other:
        import_file(other, tmp_path / "after.jsonl")
        assert content(other) == content(store) and list(store_faults(other)) == []
        assert other.add_completions([Completion(case.prompt.id, ANSWER)], source="x") == 0


def test_a_takedown_that_comes_in_is_done_here_too(any_store: Store, tmp_path: Path) -> None:
    case = Case(any_store, tmp_path)
    export_file(any_store, tmp_path / "before.jsonl", "full")
    with new_store(tmp_path / "other") as other:
        import_file(other, tmp_path / "before.jsonl")
        take_down(other, case.prompt.id, reason="asked to", by="me")
        export_file(other, tmp_path / "after.jsonl", "full")
    own = Completion(case.prompt.id, "Ann Xylander's ferry, at 9")
    any_store.add_completions([own], source="sample")
    import_file(any_store, tmp_path / "after.jsonl")
    with any_store.reading() as connection:
        of_it = tables.completion.c.prompt_sha256 == case.prompt.id
        assert set(connection.execute(sa.select(tables.completion.c.text).where(of_it)).scalars()) == {""}
        kept = connection.execute(sa.select(tables.prompt.c.messages)).scalars()
        assert SECRET not in [one["content"] for messages in kept for one in messages]
    assert list(store_faults(any_store)) == [] and any_store.add_completions([own], source="x") == 0
    if any_store._engine.dialect.name == "sqlite":
        assert own.text.encode() not in bytes_of(tmp_path / "store.sqlite")


def test_ratings_of_a_snapshot_are_found_by_their_hash_and_left_out_with_their_text(
    any_store: Store, tmp_path: Path
) -> None:
    case = Case(any_store, tmp_path)
    other = case.groups[1][0]
    add_ratings(any_store, [Rating(one, "ann", LabelerKind.PERSON, "score", 3) for one in (case.answer, other)])
    snapshot = take_rating_snapshot(any_store, Labels("score", None))
    assert {one.completion for _, one in snapshot_ratings(any_store, snapshot.id)} == {case.answer, other}
    take_down(any_store, case.answer.id, reason="", by="me")
    assert [one.completion for _, one in snapshot_ratings(any_store, snapshot.id)] == [other]


def test_ratings_that_repeat_the_steps_are_named_and_kept(store: Store, tmp_path: Path) -> None:
    case = Case(store, tmp_path)
    rating = Rating(case.answer, "ann", LabelerKind.PERSON, "steps", None, ((ANSWER, 1.0),))
    add_ratings(store, [rating])
    assert take_down(store, case.prompt.id, reason="", by="me").steps == [rating.id]


def test_a_hash_must_name_one_text(store: Store, tmp_path: Path) -> None:
    Case(store, tmp_path)
    for digits, told in (
        ("abc", "is not a hash of at least 8"),
        ("zzzzzzzzzz", "is not a hash"),
        ("0" * 12, "0 hashes in the store begin with"),
    ):
        with pytest.raises(UsageError, match=told):
            take_down(store, digits, reason="", by="me")
    with store.writing() as connection:
        for number in range(2):
            row = {"sha256": "a" * 63 + str(number), "body": "x", "created_at": "2026-01-01"}
            connection.execute(sa.insert(tables.free_text), [row])
    with pytest.raises(UsageError, match="2 hashes in the store begin with"):
        take_down(store, "a" * 10, reason="", by="me")
    for text, told in ((" ", "an empty text"), ("a\udcff", "no UTF-8"), ("\0", "a NUL"), ("x" * 60_000, "is too long")):
        with pytest.raises(UsageError, match=told):
            find_text(store, text)
    with pytest.raises(UsageError, match="the reason holds a NUL or bytes that are no UTF-8"):
        take_down(store, "a" * 10, reason="\udcff", by="me")
    assert {one["what"] for one in find_text(store, "Xylander")} == {
        "prompt",
        "completion",
        "solution",
        "document",
        "free_text",
    }


def test_who_reads_the_file_is_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.feedback.store.database.BUSY_TIMEOUT_MS", 50)
    with Store.open(tmp_path / "store") as store:
        case = Case(store, tmp_path)
        reader = sqlite3.connect(tmp_path / "store", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM prompt").fetchone()
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/said.jsonl").write_text(ANSWER)
        with pytest.raises(StoreError, match=r"its bytes stay .* run the same command again \(.*said\.jsonl\)"):
            take_down(store, case.prompt.id, reason="", by="me", runs=tmp_path / "runs")
        assert case.prompt not in store.prompts()
        reader.close()
        take_down(store, case.prompt.id, reason="", by="me")
        assert ANSWER.encode() not in bytes_of(tmp_path / "store")


def test_others_go_on_with_a_file_that_became_shorter(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as one:
        case = Case(one, tmp_path)
        one.add_prompts([Prompt.from_text(f"{n} " * 3000) for n in range(20)], split="train", source="world")
        with Store.open(tmp_path / "store") as two, sqlite3.connect(tmp_path / "store") as connection:
            assert len(two.prompts()) == 23
            connection.execute("DELETE FROM prompt WHERE id > 5")
            connection.commit()
            take_down(one, case.prompt.id, reason="", by="me")
            two.add_prompts([Prompt.from_text("More?")], split="train", source="world")
        connection.close()
