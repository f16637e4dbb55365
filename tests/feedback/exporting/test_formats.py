"""What each form holds, how it is read back, and what it says that it cannot hold."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError, UsageError
from bridle.core.records import Completion, Judgement, LabelerKind, Message, Prompt, Rating
from bridle.feedback.exporting.card import dataset_card
from bridle.feedback.exporting.exporter import export_file
from bridle.feedback.exporting.formats import EXPORTS, Wanted
from bridle.feedback.importing.importer import import_file
from bridle.feedback.importing.reasons import Reason
from bridle.feedback.rankings import Item, pairs_of
from bridle.feedback.store import tables
from bridle.feedback.store.ratings import add_documents, add_ratings, add_solutions, ratings
from bridle.feedback.store.store import Store
from tests.feedback.conftest import new_store

PERSON = LabelerKind.PERSON
ASKED = (
    Prompt.from_text("=1+1?", {"lang": "en"}),
    Prompt((Message("system", "Brief."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Why?")), {"lang": "de"}),
    Prompt.from_text("Name a fish."),
)  # fmt: skip
TEXTS = (("-2", "@two, I'd say"), ("Because.\nSo.", "'+ No."), ("Carp.", "A dog.", "Eel.", "Hm."))


@pytest.fixture
def filled(store: Store) -> Store:
    """Two pairs and a ranking of four, with verdicts of every kind."""
    store.add_prompts(ASKED, split="train", source="world")
    groups = [[Completion(prompt.id, text) for text in texts] for prompt, texts in zip(ASKED, TEXTS, strict=True)]
    for group in groups:
        store.add_completions(group, source="import")
    one, two, four = store.add_items(groups, study="first")

    def said(item: str, who: str, *ranking: tuple[int, ...], **more: Any) -> Judgement:
        return Judgement(item, who, PERSON, ranking, None, submission_key=f"{item}{who}{ranking}{more}", **more)

    store.add_judgements([
        said(one, "ann", (1,), (0,), strength=2, rationale="It is so."), said(one, "ben", (0,), (1,), weight=2.0),
        said(one, "cyd", (0, 1)), said(two, "ann", (0,), (1,), margin=0.5), said(two, "ben", (0, 1), outcome="both_bad"),
        said(two, "cyd", (0, 1), outcome="both_good"), said(four, "ann", (2,), (0, 1), (3,)), said(four, "ben", (3,), (2,), (1,), (0,)),
        said(one, "ann", (0,), (1,), criterion="harmless"), said(four, "cyd", (0,), (1, 2, 3), weight=0.0),
    ])  # fmt: skip
    rated = groups[0][0]
    add_ratings(store, [
        Rating(rated, "ann", PERSON, "vote", 1.0), Rating(groups[1][1], "ben", PERSON, "vote", 0.0, criterion="harmless", weight=2.0),
        Rating(rated, "ann", PERSON, "score", -3.5, criterion="clear"),
        Rating(rated, "ben", PERSON, "steps", None, (("a", 1.0), ("b", -1.0))),
        Rating(groups[2][1], "cyd", PERSON, "flag", None, criterion="private", note="!"),
    ])  # fmt: skip
    add_solutions(store, [(ASKED[0], "2")])
    add_documents(store, ["Cats sleep."])
    return store


def verdicts(store: Store) -> list[Any]:
    """Who said what of which texts."""

    def told(item: Item, one: Judgement) -> Any:
        ranking = [sorted(item.completions[slot].text for slot in group) for group in one.ranking]
        return (item.prompt.text, one.labeler, ranking, one.outcome)

    return sorted(told(item, one) for item, one in store.judgements())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_preferences_are_trls(filled: Store, tmp_path: Path) -> None:
    report = export_file(filled, tmp_path / "pairs.jsonl")
    rows = lines(tmp_path / "pairs.jsonl")
    assert len(rows) == report.rows == 3 + 5 + 6
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "=1+1?"}], "chosen": [{"role": "assistant", "content": "@two, I'd say"}],
        "rejected": [{"role": "assistant", "content": "-2"}], "weight": 1.0, "outcome": "chosen",
        "judgement_id": rows[0]["judgement_id"], "margin": 2.0,
    }  # fmt: skip
    assert [turn["role"] for turn in rows[2]["prompt"]] == ["system", "user", "assistant", "user"]
    assert [row["weight"] for row in rows[:3]] == [1, 2, 1] and sum(
        row["weight"] for row in rows[3:8]
    ) == pytest.approx(1)
    assert len({row["judgement_id"] for row in rows[3:]}) == 2
    assert report.not_held == {
        "ties": 1, "both bad": 1, "both good": 1, "ties in a ranking": 1 + 1, "judgements that weigh nothing": 1,
        "margins that nobody said, written as 0": 12, "judgements by one criterion": 1, "who judged": 3,
        "votes, scores, steps and flags": 5, "solutions": 1, "texts": 1, "reasons and notes": 2,
    }  # fmt: skip
    assert "not held by the format preference: " in report.lines()[1]
    require_conversational(rows, ("chosen", "rejected"))


def require_conversational(rows: list[dict[str, Any]], answers: tuple[str, ...]) -> None:
    """TRL's conversational form with an explicit prompt: messages of role and content that end with the user; answers apart."""
    for row in rows:
        assert row["prompt"][-1]["role"] == "user" and all(set(turn) == {"role", "content"} for turn in row["prompt"])
        for name in answers:
            assert [turn["role"] for turn in row[name]] == ["assistant"]
    assert len({tuple(sorted(row)) for row in rows}) == 1, "every row has the same columns"


def test_no_margin_where_none_was_said(store: Store, tmp_path: Path) -> None:
    prompt = Prompt.from_text("Why?")
    answers = [Completion(prompt.id, text) for text in ("Because.", "No.")]
    store.add_prompts([prompt], split="heldout", source="world")
    store.add_completions(answers, source="import")
    (item,) = store.add_items([answers], study="first")
    store.add_judgements([Judgement(item, "ann", PERSON, ((0,), (1,)), (1, 0))])
    export_file(store, tmp_path / "pairs.jsonl")
    export_file(store, tmp_path / "pairs.csv")
    assert "margin" not in lines(tmp_path / "pairs.jsonl")[0]
    assert (tmp_path / "pairs.csv").read_text().splitlines()[0] == "prompt,chosen,rejected,weight,outcome,judgement_id"
    with pytest.raises(DataError, match="nothing in the store to write as preference"):
        export_file(store, tmp_path / "none.jsonl", wanted=Wanted(split="train"))
    assert not (tmp_path / "none.jsonl").exists()
    assert export_file(store, tmp_path / "some.jsonl", wanted=Wanted("first", "heldout")).rows == 1


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_pairs_are_read_back(ending: str, filled: Store, tmp_path: Path) -> None:
    place = tmp_path / f"pairs.{ending}"
    export_file(filled, place)
    with new_store(tmp_path / "other") as other:
        report = import_file(other, place)
        assert report.kept == {"preference": 12}, report.text()
        assert report.skips(Reason.DUPLICATE) == 2, "said of the same two by two whom the form does not name"
        assert {prompt.messages for prompt in other.prompts()} == {prompt.messages for prompt in ASKED}
        texts = {
            (item.prompt.text, *sorted(answer.text for answer in item.completions)) for item, _ in other.judgements()
        }
        assert ("=1+1?", "-2", "@two, I'd say") in texts and ("Why?", "'+ No.", "Because.\nSo.") in texts
        assert sorted(one.weight for _, one in other.judgements())[-1] == 2


def test_a_cell_that_a_spreadsheet_would_run_is_text(filled: Store, tmp_path: Path) -> None:
    export_file(filled, tmp_path / "pairs.csv")
    with open(tmp_path / "pairs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["prompt"], rows[0]["chosen"], rows[0]["rejected"]) == ("'=1+1?", "'@two, I'd say", "'-2")
    assert rows[2]["rejected"] == "''+ No." and rows[2]["margin"] == "0.5"


def test_a_table_with_other_ends_of_lines_in_its_texts_is_read_back(store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} <|x|>", "completion": f"a\u2028b\x85{n}", "label": True} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_file(store, tmp_path / "rows.jsonl")
    export_file(store, tmp_path / "votes.csv", "unpaired")
    with new_store(tmp_path / "again.sqlite") as again:
        assert import_file(again, tmp_path / "votes.csv").kept_rows == 4
        assert {one.completion.text for _, one in ratings(again)} == {row["completion"] for row in rows}


@pytest.mark.parametrize("form", ["rankings", "argilla", "label-studio"])
def test_verdicts_are_read_back_the_same(form: str, filled: Store, tmp_path: Path) -> None:
    place = tmp_path / ("rows.jsonl" if form == "rankings" else "rows.json")
    report = export_file(filled, place, form)
    expected = verdicts(filled)
    if form == "rankings":
        assert report.not_held["whether a tie is both good or both bad"] == 2
        expected = sorted((*one[:3], "") for one in expected)
    if form == "label-studio":
        assert report.not_held["rankings of more than two answers"] == 3
        expected = [one for one in expected if one[0] != "Name a fish."]
    if form == "rankings":  # a row that weighs nothing is not trained on
        expected = [one for one in expected if one[:2] != ("Name a fish.", "cyd")]
    with new_store(tmp_path / "other") as other:
        again = import_file(other, place)
        assert verdicts(other) == expected, again.text()
        assert {item.prompt.messages for item, _ in other.judgements()} <= {prompt.messages for prompt in ASKED}


def test_argillas_records_and_label_studios_tasks(filled: Store, tmp_path: Path) -> None:
    export_file(filled, tmp_path / "records.json", "argilla")
    records = json.loads((tmp_path / "records.json").read_text("utf-8"))
    (one,) = [record for record in records if record["fields"]["prompt"] == "=1+1?"]
    assert one["fields"] == {"prompt": "=1+1?", "response1": "-2", "response2": "@two, I'd say"}
    said = one["responses"]["preference"]
    assert [(part["user_id"], part["value"], part["status"]) for part in said] == [
        ("ann", "response2", "submitted"), ("ben", "response1", "submitted"), ("cyd", "tie", "submitted"),
    ]  # fmt: skip
    (four,) = [record for record in records if record["fields"]["prompt"] == "Name a fish."]
    ranks = {part["value"]: part["rank"] for part in four["responses"]["ranking"][0]["value"]}
    assert ranks == {"response3": 1, "response1": 2, "response2": 2, "response4": 3}
    export_file(filled, tmp_path / "tasks.json", "label-studio")
    tasks = json.loads((tmp_path / "tasks.json").read_text("utf-8"))
    assert len(tasks) == 2
    (task,) = [task for task in tasks if task["data"]["prompt"] == "=1+1?"]
    assert [annotation["result"][0]["value"] for annotation in task["annotations"]] == [
        {"selected": "right"}, {"selected": "left"}, {"choices": ["tie"]},
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_ratings_are_read_back(ending: str, filled: Store, tmp_path: Path) -> None:
    report = export_file(filled, tmp_path / f"ratings.{ending}", "ratings")
    assert report.not_held["degrees of labelled steps"] == 1
    assert report.rows == 5 and report.not_held["what a flag's giver noted"] == 1
    with new_store(tmp_path / "other") as other:
        again = import_file(other, tmp_path / f"ratings.{ending}")
        assert again.skipped_rows == 0, again.text()

        def told(store: Store, kind: str) -> list[Any]:
            found = [one for _, one in ratings(store, kind=kind)]
            return sorted((r.completion.text, r.labeler, r.value, r.criterion or "", r.weight, r.steps) for r in found)

        assert told(other, "score") == told(filled, "score")
        flagged = [one for one in told(other, "vote") if one[1] == "cyd"]
        assert len(flagged) == 1 and flagged[0][2] == 0
        assert [one for one in told(other, "vote") if one[1] != "cyd"] == told(filled, "vote")
        assert [one[5] for one in told(other, "steps")] == [(("a", 1.0), ("b", 0.0))]


def test_unpaired_answers_and_prompts(filled: Store, tmp_path: Path) -> None:
    report = export_file(filled, tmp_path / "unpaired.jsonl", "unpaired")
    rows = lines(tmp_path / "unpaired.jsonl")
    require_conversational(rows, ("completion",))
    found = [(row["completion"][0]["content"], row["label"]) for row in rows]
    assert found[:2] == [("-2", True), ("'+ No.", False)], "votes come first"
    assert found[2:8] == [
        ("@two, I'd say", True),
        ("-2", False),
        ("-2", True),
        ("@two, I'd say", False),
        ("Because.\nSo.", True),
        ("'+ No.", False),
    ]
    assert found[8:12] == [("Because.\nSo.", False), ("'+ No.", False), ("Because.\nSo.", True), ("'+ No.", True)]
    assert report.not_held["ties"] == 1 and report.not_held["answers between the best and the worst"] == 2 + 2
    assert export_file(filled, tmp_path / "prompts.jsonl", "prompts").rows == 3
    assert lines(tmp_path / "prompts.jsonl")[2] == {"prompt": [{"role": "user", "content": "Name a fish."}]}
    assert export_file(filled, tmp_path / "p.jsonl", "prompts", Wanted(study="first", split="train")).rows == 3
    with pytest.raises(DataError, match="nothing in the store"):
        export_file(filled, tmp_path / "q.jsonl", "prompts", Wanted(study="other"))


def test_a_snapshot_is_exported_as_it_was_and_weighed(filled: Store, tmp_path: Path) -> None:
    snapshot = filled.take_snapshot(reliability={"ann": 0.5})
    filled.exclude("labeler", "ann", reason="", by="me")
    export_file(filled, tmp_path / "s.jsonl", wanted=Wanted(snapshot=snapshot.id))
    rows = lines(tmp_path / "s.jsonl")
    assert sorted(row["weight"] for row in rows[:3]) == [0.5, 0.5, 2]
    weighing = [each for each in filled.snapshot_judgements(snapshot.id) if each[1].weight]
    pairs = [pair for each in weighing for pair in pairs_of(*each)]
    expected = sorted((pair.chosen.text, pair.rejected.text, round(pair.weight, 9)) for pair in pairs)
    assert (
        sorted((r["chosen"][0]["content"], r["rejected"][0]["content"], round(r["weight"], 9)) for r in rows)
        == expected
    )
    export_file(filled, tmp_path / "t.jsonl", wanted=Wanted(snapshot=snapshot.id[:10]))
    assert (tmp_path / "t.jsonl").read_bytes() == (tmp_path / "s.jsonl").read_bytes()
    with pytest.raises(UsageError, match="0 hashes in the store begin with ffffffffff .*data.json"):
        export_file(filled, tmp_path / "u.jsonl", wanted=Wanted(snapshot="f" * 10))


@pytest.mark.parametrize("form", EXPORTS)
def test_a_form_refuses_what_it_cannot_be(form: str, filled: Store, tmp_path: Path) -> None:
    wrong = {"argilla": "x.jsonl", "label-studio": "x.csv", "full": "x.json"}.get(form, "x.json")
    with pytest.raises(UsageError, match="ends as no file of this format does"):
        export_file(filled, tmp_path / wrong, form)
    place = tmp_path / f"x{EXPORTS[form].endings[0]}"
    place.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        export_file(filled, place, form)
    assert place.read_text() == "mine"
    assert export_file(filled, place, form, force=True, by="me").rows > 1
    with filled.reading() as connection:
        row = connection.execute(tables.audit.select().order_by(tables.audit.c.id.desc())).first()
    assert (
        row is not None
        and (row.action, row.object, row.actor) == ("export", form, "me")
        and row.details["file"] == place.name
    )
    with pytest.raises(UsageError, match="is the store itself"):
        export_own(filled, form)


def export_own(store: Store, form: str) -> None:
    """A link to the store is the store."""
    with store.reading() as connection:
        own = Path(str(connection.engine.url.database))
    link = own.with_name(f"link{EXPORTS[form].endings[0]}")
    link.symlink_to(own)
    export_file(store, link, form, force=True)


def test_the_card_says_what_is_known_and_what_is_not(filled: Store, tmp_path: Path) -> None:
    report = export_file(filled, tmp_path / "pairs.jsonl")
    card = dataset_card(filled, report, "me/pairs")
    assert card.startswith("---\nlicense: unknown\nlanguage:\n- ")
    told = "14 rows in the format `preference`|`pairs.jsonl`|en (1)|de (1)|people (10)|study (10)|0 of 10 judgements"
    for words in told.split("|"):
        assert words in card, words
    assert "Raw agreement between those who judged the same: " in card and "Krippendorff's alpha, nominal: " in card
    assert "license: cc-by-4.0\n" in dataset_card(filled, report, "me/pairs", "cc-by-4.0")
