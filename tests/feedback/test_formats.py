import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridle.core.errors import DataError, NoUsableRows, StoreError
from bridle.core.records import Message
from bridle.feedback import formats
from bridle.feedback.formats import ImportReport, Note, Preference, Reason, import_file, read_preferences
from bridle.feedback.store import Store

GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


def write(path: Path, *rows: Any) -> Path:
    """One line for each row: bytes as they are, everything else as JSON."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def read(path: Path) -> tuple[list[Preference], ImportReport]:
    report = ImportReport(str(path))
    return list(read_preferences(path, report)), report


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


# ------------------------------------------------------------------------------------------------- what is read


USER, ANSWER, OTHER = turn("user", "Why?"), turn("assistant", "Because."), turn("assistant", "No.")


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        GOOD | {"margin": 0.5, "prompt_id": "x"},
        GOOD | {"prompt": [USER]},
        GOOD | {"chosen": [ANSWER], "rejected": [OTHER]},
        GOOD | {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": None, "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        {"chosen": "Human: Why? \n\nAssistant:Because.\n", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
    ],
)
def test_every_form_gives_the_same_preference(tmp_path: Path, row: dict[str, object]) -> None:
    [preference], report = read(write(tmp_path / "rows.jsonl", row))
    assert preference.prompt.messages == (Message("user", "Why?"),)
    assert (preference.chosen, preference.rejected) == ("Because.", "No.")
    assert (report.rows, report.kept, report.skipped) == (1, 1, {})


def test_earlier_turns_belong_to_the_prompt(tmp_path: Path) -> None:
    shared = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nI am here.\n\nHuman: Why?\n\nAssistant:"
    [preference], _ = read(write(tmp_path / "rows", {"chosen": f"{shared} Because.", "rejected": f"{shared} No."}))
    assert preference.prompt.messages == (
        Message("user", "Hello"), Message("assistant", "Hi.\n\nI am here."), Message("user", "Why?"),
    )  # fmt: skip


def test_gzip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.gz", GOOD)
    zipped = tmp_path / "zipped.jsonl"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(plain)[0] == read(zipped)[0]


def test_marks_blank_lines_and_the_lack_of_a_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD | {"chosen": "x"}).encode()
    )
    preferences, report = read(path)
    assert [preference.line for preference in preferences] == [1, 3]
    assert report.rows == report.kept == 2 and report.notes[Note.BLANK].count == 1


# ---------------------------------------------------------------------------------------------- what is skipped


def transcripts(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


H, A = "\n\nHuman: Why?", "\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"prompt": "\xff"}', Reason.NOT_UTF8),
        (b'{"prompt": "Why?", "chosen', Reason.NOT_JSON),
        (b"[" * 100_000, Reason.NOT_JSON),
        ([GOOD], Reason.NOT_OBJECT),
        ({"prompt": "Why?", "chosen": "x"}, Reason.UNKNOWN_FIELDS),
        (GOOD | {"chosen": None}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": 3}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": ["Why?"]}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": [turn("user", None)]}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": [turn("tool", "x")]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": [{"from": "human", "value": "x"}]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": [turn(["user"], "x")]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": []}, Reason.NO_USER_TURN),
        (GOOD | {"prompt": [USER, ANSWER]}, Reason.NO_USER_TURN),
        (GOOD | {"prompt": " \n"}, Reason.EMPTY_PROMPT),
        (GOOD | {"chosen": []}, Reason.NO_ANSWER),
        (GOOD | {"chosen": [USER]}, Reason.NO_ANSWER),
        (GOOD | {"chosen": [turn("user", "Else?"), ANSWER]}, Reason.NO_ANSWER),
        (GOOD | {"chosen": " "}, Reason.EMPTY_ANSWER),
        (GOOD | {"chosen": "No. "}, Reason.IDENTICAL),
        (GOOD | {"chosen": "a\0b"}, Reason.UNSTORABLE),
        (GOOD | {"prompt": "\ud83d"}, Reason.UNSTORABLE),
        (transcripts("Because.", "No."), Reason.NOT_TRANSCRIPT),
        (transcripts(f"Note:{H}{A}x", f"Note:{H}{A}y"), Reason.NOT_TRANSCRIPT),
        (transcripts(f"{H}{A}x{H}", f"{H}{A}y{H}"), Reason.NO_ANSWER),
        (transcripts(f"{H}{A}x", f"{H}?{A}y"), Reason.DIVERGES),
        (transcripts(f"{H}{A}x", f"{H}{A}x{H}{A}y"), Reason.DIVERGES),
        (transcripts(f"{H}{A}", f"{H}{A}y"), Reason.EMPTY_ANSWER),
        (transcripts(f"{H}{A}x", f"{H}{A}x"), Reason.IDENTICAL),
        (transcripts(f"{A}x", f"{A}y"), Reason.NO_USER_TURN),
        (GOOD, Reason.DUPLICATE),
        (GOOD | {"prompt": [USER], "id": 2}, Reason.DUPLICATE),
    ],
)
def test_each_reason_is_counted_and_shown(tmp_path: Path, row: object, reason: Reason) -> None:
    preferences, report = read(write(tmp_path / "rows.jsonl", GOOD, row))
    assert len(preferences) == 1
    assert list(report.skipped) == [reason]
    tally = report.skipped[reason]
    assert (tally.count, tally.line) == (1, 2) and tally.example and len(tally.example) <= 100
    assert (report.rows, report.kept, report.skipped_rows) == (2, 1, 1)


def test_a_line_too_long_is_skipped_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    rows = [GOOD | {"chosen": "x" * 350}, GOOD, GOOD | {"chosen": "y" * 350}]
    preferences, report = read(write(tmp_path / "rows.jsonl", *rows))
    assert [preference.line for preference in preferences] == [2]
    assert report.skipped[Reason.TOO_LONG].count == 2 and report.rows == 3


def test_what_is_odd_is_kept_and_noted(tmp_path: Path) -> None:
    twice = f"{H}{A}One.\n\nAssistant: Two.{H}{A}"
    rows = [transcripts(f"{twice}Human: x", f"{twice}y"), transcripts(f"{H}{A}  x", f"{H}{A}y")]
    preferences, report = read(write(tmp_path / "rows.jsonl", *rows))
    assert [message.role for message in preferences[0].prompt.messages] == ["user", "assistant", "assistant", "user"]
    assert preferences[0].chosen == "Human: x" and preferences[1].chosen == "x"
    assert {note: tally.line for note, tally in report.notes.items()} == {
        Note.SAME_SPEAKER: 1, Note.SPEAKER_INSIDE: 1, Note.STRIPPED: 2,
    }  # fmt: skip


TEXTS = st.text(max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": TEXTS}), max_size=3
)
FIELDS = st.one_of(TEXTS, MESSAGES, st.none(), st.integers(), st.sampled_from([f"{H}{A}x", f"{H}{A}y", H]))
ROWS = st.fixed_dictionaries({}, optional={"prompt": FIELDS, "chosen": FIELDS, "rejected": FIELDS})
LINES = st.one_of(
    st.binary(max_size=20), ROWS.map(lambda row: json.dumps(row).encode()), st.just(json.dumps(GOOD).encode())
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LINES, max_size=12))
def test_every_row_of_junk_is_accounted_for(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "junk.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = ImportReport(str(path))
    kept = 0
    try:
        for _ in read_preferences(path, report):
            kept += 1
    except NoUsableRows:
        assert kept == 0
    except DataError as error:
        assert path.read_bytes().startswith(b"\x1f\x8b"), error
    assert report.rows == report.kept + report.skipped_rows
    assert report.kept == kept
    if not path.read_bytes().startswith(b"\x1f\x8b"):
        written = path.read_bytes().split(b"\n")
        assert report.rows == sum(bool(line.strip()) for line in written)


# ----------------------------------------------------------------------------------------- what cannot be read


def test_no_usable_row_shows_the_first(tmp_path: Path, store: Store) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "Why?", "answer": "Because."}, {"question": "Who?"})
    with pytest.raises(NoUsableRows, match=r'first of 2 is \{"question": "Why\?".*"chosen"'):
        import_file(store, path)
    with pytest.raises(NoUsableRows, match="it is empty"):
        import_file(store, write(tmp_path / "empty.jsonl"))
    assert store.prompts() == []


def test_files_that_cannot_be_read(tmp_path: Path, store: Store) -> None:
    with pytest.raises(DataError, match="there is no file"):
        import_file(store, tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        import_file(store, tmp_path)
    whole = gzip.compress(b"".join(json.dumps(GOOD | {"chosen": str(n)}).encode() + b"\n" for n in range(5000)))
    (tmp_path / "broken.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"breaks off or is damaged after line \d\d+"):
        import_file(store, tmp_path / "broken.gz")
    with pytest.raises(DataError, match="held-out share"):
        import_file(store, write(tmp_path / "rows.jsonl", GOOD), held_out_share=1.0)
    assert not isinstance(DataError(), StoreError)


# ------------------------------------------------------------------------------------------------ into the store


def test_importing_twice_adds_nothing_and_says_so(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "BATCH", 8)
    rows = [GOOD | {"prompt": f"Question {n}?"} for n in range(20)]
    path = write(tmp_path / "rows.jsonl", *rows, rows[0])
    progress: list[int] = []
    first = import_file(store, path, held_out_share=0.3, progress=progress.append)
    assert (first.rows, first.kept, first.new, first.skipped_rows) == (21, 20, 20, 1)
    assert progress == [8, 16, 21]
    counts = store.counts()
    assert counts["judgements"] == {"imported": 20} and set(counts["prompts"]) == {"train", "heldout"}
    again = import_file(store, path.rename(tmp_path / "renamed.jsonl"), held_out_share=0.3)
    assert (again.kept, again.new) == (20, 0) and "nothing was added" in again.text()
    assert store.counts() == counts


def test_imported_judgements_say_what_was_preferred_and_no_more(tmp_path: Path, store: Store) -> None:
    rows = [GOOD | {"prompt": f"Question {n}?"} for n in range(20)]
    import_file(store, write(tmp_path / "rows.jsonl", *rows), held_out_share=0.0)
    judged = store.judgements(study="import", split="train")
    assert [item.prompt.text for item, _ in judged] == [row["prompt"] for row in rows]
    assert {judgement.display_order for _, judgement in judged} == {None}
    assert {judgement.source for _, judgement in judged} == {"import"}
    assert {judgement.ranking for _, judgement in judged} == {((0,), (1,)), ((1,), (0,))}  # the slot tells nothing
    pairs = store.snapshot_pairs(store.take_snapshot().id)
    assert {(pair.chosen.text, pair.rejected.text, pair.weight) for pair in pairs} == {("Because.", "No.", 1.0)}


def test_opposite_votes_meet_at_one_item(tmp_path: Path, store: Store) -> None:
    opposite = GOOD | {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    report = import_file(store, write(tmp_path / "rows.jsonl", GOOD, opposite))
    assert report.new == 2 and len(store.items(study="import")) == 1


def test_the_report_as_text_and_as_data(tmp_path: Path, store: Store) -> None:
    rows = (GOOD, b"junk", b"junk", {"prompt": "?", "chosen": "", "rejected": ""})
    report = import_file(store, write(tmp_path / "rows.jsonl", *rows))
    assert report.text().splitlines()[1:] == [
        "        4  rows read",
        "        1  kept, 1 of them new",
        "        3  skipped",
        "            2  not JSON                                  line 2: junk",
        "            1  empty answer                              "
        'line 4: {"prompt": "?", "chosen": "", "rejected": ""}',
    ]  # fmt: skip
    data = json.loads(json.dumps(report.as_dict()))
    assert data["skipped"]["not JSON"] == {"count": 2, "line": 2, "example": "junk"}
    assert (data["rows"], data["kept"], data["new"]) == (4, 1, 1)


def test_real_transcripts_are_all_accounted_for(data_folder: Path, store: Store) -> None:
    path = data_folder / "hh-rlhf" / "harmless-base.test.jsonl.gz"
    report = import_file(store, path)
    assert (report.rows, report.kept, report.new) == (2312, 2303, 2303)
    assert {reason: tally.count for reason, tally in report.skipped.items()} == {
        Reason.DIVERGES: 5, Reason.EMPTY_ANSWER: 4,
    }  # fmt: skip
    assert {note: tally.count for note, tally in report.notes.items()} == {
        Note.SPEAKER_INSIDE: 45, Note.SAME_SPEAKER: 4, Note.STRIPPED: 4,
    }  # fmt: skip
    train, heldout = store.judgements(split="train"), store.judgements(split="heldout")
    assert len(train) + len(heldout) == 2303 and 0.08 < len(heldout) / 2303 < 0.12
    assert not {item.prompt.id for item, _ in train} & {item.prompt.id for item, _ in heldout}
