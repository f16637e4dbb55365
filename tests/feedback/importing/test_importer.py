"""Files into the store: every row accounted for in the report, and what is kept lies where the stages find it."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridle.core.errors import DataError, NoUsableRows, StoreError
from bridle.core.records import FinishReason
from bridle.feedback.importing import importer as imports
from bridle.feedback.importing.formats import Form, ImportedRow
from bridle.feedback.importing.importer import ImportReport, import_file, read_examples
from bridle.feedback.importing.reasons import Note, Reason
from bridle.feedback.store.store import Store

GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
H, A = "\n\nHuman: Why?", "\n\nAssistant: "


def write(path: Path, *rows: Any) -> Path:
    """One line for each row: bytes as they are, everything else as JSON."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def read(path: Path, form: Form | None = None) -> tuple[list[ImportedRow], ImportReport]:
    report = ImportReport(str(path))
    return list(read_examples(path, report, form)), report


def counted(report: ImportReport) -> dict[str, int]:
    return {str(reason): tally.count for reason, tally in report.skipped.items()}


# --------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"prompt": "\xff"}', Reason.NOT_UTF8),
        (b'{"prompt": "Why?", "chosen', Reason.NOT_JSON),
        ([GOOD], Reason.NOT_OBJECT),
        ({"question": "Why?"}, Reason.UNKNOWN_FIELDS),
        (GOOD | {"chosen": " "}, Reason.EMPTY_ANSWER),
        ({"messages": [USER, ANSWER], "label": True}, Reason.UNPAIRED),
        (GOOD, Reason.DUPLICATE),
        (GOOD | {"prompt": [USER], "id": 2}, Reason.DUPLICATE),
        ({"conversations": [USER], "chosen": "Because.", "rejected": "No."}, Reason.DUPLICATE),
    ],
)
def test_each_reason_is_counted_and_shown(tmp_path: Path, row: object, reason: Reason) -> None:
    examples, report = read(write(tmp_path / "rows.jsonl", GOOD, row, row))
    assert len(examples) == 1
    assert list(report.skipped) == [reason]
    tally = report.skipped[reason]
    assert (tally.count, tally.row) == (2, 2) and tally.example and len(tally.example) <= 100
    assert (report.rows, report.kept, report.skipped_rows) == (3, 1, 2)


def test_the_same_prompt_with_another_answer_is_no_duplicate(tmp_path: Path) -> None:
    opposite = {"prompt": "Why?", "chosen": "No.", "rejected": "Because."}
    rows = [
        GOOD,
        opposite,
        {"prompt": "Why?"},
        {"prompt": "Why?", "completion": "Because."},
        {"messages": [USER, ANSWER]},
    ]
    examples, report = read(write(tmp_path / "rows.jsonl", *rows))
    assert [example.kind for example in examples] == ["preferences", "preferences", "prompts", "demonstrations"]
    assert counted(report) == {"duplicate of an earlier row": 1}
    assert report.kinds == {"preferences": 2, "prompts": 1, "demonstrations": 1}
    assert report.forms == {"preference": 2, "prompt": 1, "completion": 1}


def test_notes_and_blank_lines_are_counted(tmp_path: Path) -> None:
    rows = [b"", {"chosen": f"{H}{A}  x", "rejected": f"{H}{A}y"}, {"prompt": "Human: Why?"}, b"  "]
    _, report = read(write(tmp_path / "rows.jsonl", *rows))
    assert {note: (tally.count, tally.row) for note, tally in report.notes.items()} == {
        Note.BLANK: (2, 1), Note.STRIPPED: (1, 2), Note.SPEAKER_INSIDE: (1, 3),
    }  # fmt: skip
    assert report.rows == report.kept == 2


def test_fields_left_unread_are_named_though_not_without_end(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "response": "x", f"field-{n}": 1, "empty": None} for n in range(200)]
    _, report = read(write(tmp_path / "rows.jsonl", *rows, {"messages": [USER, ANSWER], "prompt": "Why?"}))
    assert report.unread["response"] == 200 and "empty" not in report.unread and len(report.unread) == 50
    assert "fields left unread: response (200)" in report.text()


def test_the_report_as_text_and_as_data(tmp_path: Path, store: Store) -> None:
    same = {"prompt": "?", "chosen": "a", "rejected": "a"}
    rows = (
        GOOD,
        b"junk",
        b"junk",
        {"prompt": "?", "chosen": "", "rejected": ""},
        GOOD,
        same,
        {"prompt": "为什么", "id": 1},
    )
    report = import_file(store, write(tmp_path / "rows.jsonl", *rows))
    assert report.text().splitlines() == [
        f"{tmp_path}/rows.jsonl (JSON lines)",
        "        7  rows read",
        "        2  kept; 2 of them new",
        "            1  preferences",
        "            1  prompts",
        "            1  form preference",
        "            1  form prompt",
        "            1  script Latin",
        "            1  script Han",
        "               fields left unread: id (1)",
        "        5  skipped; 1 duplicates, 1 empty, 1 identical",
        "            2  not JSON                                  line 2: junk",
        "            1  empty answer                              "
        'line 4: {"prompt": "?", "chosen": "", "rejected": ""}',
        "            1  duplicate of an earlier row               "
        'line 5: {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}',
        "            1  identical answers                         "
        'line 6: {"prompt": "?", "chosen": "a", "rejected": "a"}',
    ]
    data = json.loads(json.dumps(report.as_dict()))
    assert data["skipped"]["not JSON"] == {"count": 2, "line": 2, "example": "junk"}
    assert (data["rows"], data["kept"], data["new"], data["file"]) == (7, 2, 2, "JSON lines")
    assert (data["duplicates"], data["empty"], data["identical"]) == (1, 1, 1)
    assert data["kinds"] == {"preferences": 1, "prompts": 1} and data["scripts"] == {"Latin": 1, "Han": 1}


def test_rows_of_a_list_are_counted_as_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([GOOD, GOOD, 3]))
    _, report = read(tmp_path / "rows.json")
    assert "row 2: {" in report.text() and report.as_dict()["skipped"]["not a JSON object"]["row"] == 3


TEXTS = st.text(max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": TEXTS}), max_size=3
)
FIELDS = st.one_of(TEXTS, MESSAGES, st.none(), st.integers(), st.sampled_from([f"{H}{A}x", f"{H}{A}y", H]))
NAMES = ("prompt", "completion", "messages", "conversations", "instruction", "output", "chosen", "rejected", "label")
ROWS = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, FIELDS))
LINES = st.one_of(
    st.binary(max_size=20), ROWS.map(lambda row: json.dumps(row).encode()), st.just(json.dumps(GOOD).encode())
)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LINES, max_size=12), st.sampled_from([None, *Form]))
def test_every_row_of_junk_is_accounted_for(tmp_path: Path, lines: list[bytes], form: Form | None) -> None:
    path = tmp_path / "junk.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = ImportReport(str(path))
    kept = 0
    try:
        for _ in read_examples(path, report, form):
            kept += 1
    except NoUsableRows:
        assert kept == 0
    except DataError as error:
        assert report.file == "JSON list" or path.read_bytes().startswith((b"\x1f\x8b", b"PAR1")), error
    assert report.rows == report.kept + report.skipped_rows
    assert report.kept == kept == report.kinds.total() == report.forms.total() == report.scripts.total()
    if report.file == "JSON lines" and not path.read_bytes().startswith(b"\x1f\x8b"):  # two bytes of gzip are damaged
        assert report.rows == sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))


# ------------------------------------------------------------------------------------------ what cannot be imported


def test_no_usable_row_shows_the_first_and_the_forms(tmp_path: Path, store: Store) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "Why?", "answer": "Because."}, {"question": "Who?"})
    with pytest.raises(NoUsableRows, match=r'first of 2 \(fields of no known form\) is \{"question": "Why\?"') as error:
        import_file(store, path)
    assert all(name in str(error.value) for name in ("{prompt, chosen, rejected}", "{messages}", "Parquet"))
    with pytest.raises(NoUsableRows, match=r"first of 2 \(lacks a field of the form asked for\)"):
        import_file(store, path, form=Form.ALPACA)
    for content in (b"", b"[]", b"\n \n"):
        (tmp_path / "empty").write_bytes(content)
        with pytest.raises(NoUsableRows, match="it is empty"):
            import_file(store, tmp_path / "empty")
    assert store.prompts() == []
    assert not isinstance(DataError(), StoreError)


def test_what_was_read_before_the_file_broke_is_in_the_store(tmp_path: Path, store: Store) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([GOOD | {"prompt": f"{n}?"} for n in range(9)])[:-1])
    with pytest.raises(DataError, match="row 10"):
        import_file(store, tmp_path / "rows.json")
    assert len(store.items(study="import")) == 9


def test_a_share_out_of_range_is_refused_before_anything_is_written(tmp_path: Path, store: Store) -> None:
    with pytest.raises(DataError, match="held-out share"):
        import_file(store, write(tmp_path / "rows.jsonl", GOOD), held_out_share=1.0)
    assert store.prompts() == []


# ------------------------------------------------------------------------------------------------ into the store


def test_importing_twice_adds_nothing_and_says_so(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_ROWS", 8)
    rows = [
        row
        for n in range(10)
        for row in (
            GOOD | {"prompt": f"Compared {n}?"},
            {"prompt": f"Shown {n}?", "completion": "x"},
            {"prompt": f"Alone {n}?"},
        )
    ]
    path = write(tmp_path / "rows.jsonl", *rows, rows[0])
    told: list[tuple[int, int]] = []
    first = import_file(store, path, held_out_share=0.3, progress=lambda done, size: told.append((done, size)))
    assert (first.rows, first.kept, first.new, first.skipped_rows) == (31, 30, 30, 1)
    assert len(told) == 3 and told == sorted(told) and 0 < told[0][0] < told[-1][0] < told[-1][1] == path.stat().st_size
    counts = store.counts()
    assert counts["judgements"] == {"imported": 10} and counts["completions"] == {"import": 20, "demonstration": 10}
    assert sum(counts["prompts"].values()) == 30 and set(counts["prompts"]) == {"train", "heldout"}
    again = import_file(store, path.rename(tmp_path / "renamed.jsonl"), held_out_share=0.3)
    assert (again.kept, again.new) == (30, 0) and "nothing was added" in again.text()
    assert store.counts() == counts


def test_many_characters_are_written_before_many_rows(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_CHARACTERS", 100)
    told: list[int] = []
    path = write(tmp_path / "rows.jsonl", *({"prompt": f"{n} " + "x" * 60} for n in range(6)))
    import_file(store, path, progress=lambda done, size: told.append(done))
    assert len(told) == 3


def test_prompts_alone_are_prompts_in_their_order_and_split(tmp_path: Path, store: Store) -> None:
    path = write(tmp_path / "rows.jsonl", *({"prompt": f"Question {n}?"} for n in range(100)))
    import_file(store, path, held_out_share=0.2)
    train, heldout = store.prompts(split="train"), store.prompts(split="heldout")
    assert 10 < len(heldout) < 30 and len(train) + len(heldout) == 100
    numbers = [int(prompt.text.split()[1].rstrip("?")) for prompt in train]
    assert numbers == sorted(numbers)
    assert store.completions() == []


def test_demonstrations_are_answers_to_imitate(tmp_path: Path, store: Store) -> None:
    rows = [{"messages": [USER, ANSWER, {"role": "user", "content": f"And {n}?"}, ANSWER]} for n in range(20)]
    import_file(store, write(tmp_path / "rows.jsonl", *rows), held_out_share=0.3)
    shown = store.completions(source="demonstration", split="train")
    assert 5 < len(shown) < 20
    for prompt, completion in shown:
        assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]
        assert (completion.text, completion.finish_reason) == ("Because.", FinishReason.IMPORTED)
    assert [prompt.id for prompt, _ in shown] == [prompt.id for prompt in store.prompts(split="train")]


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


def test_every_kind_of_file_brings_the_same(tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = [
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": f"{n}"}]} for n in range(9)
    ]
    write(tmp_path / "lines", *rows)
    (tmp_path / "list").write_text(json.dumps(rows, indent=1))
    (tmp_path / "zipped").write_bytes(gzip.compress((tmp_path / "list").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table", row_group_size=4)
    found = []
    for name in ("lines", "list", "zipped", "table"):
        with Store.open(tmp_path / f"{name}.sqlite") as store:
            report = import_file(store, tmp_path / name)
            assert (report.kept, report.unread, report.forms) == (9, {}, {"preference": 9})
            found.append(store.snapshot_pairs(store.take_snapshot().id))
    assert found[0] and all(pairs == found[0] for pairs in found)


def test_the_command_brings_rows_to_where_the_stages_look(tmp_path: Path) -> None:
    from bridle.project.project import Project
    from bridle.stages.data import StoreData
    from tests.tiny_project import bridle, done

    done("init", tmp_path / "p", "--set", "data.heldout_share=1e-9")
    rows = [
        {"prompt": "Alone?"},
        {"prompt": "Shown?", "completion": "Yes."},
        {"messages": [USER, ANSWER], "label": True},
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    report = json.loads(done("import", path, "--project", tmp_path / "p", "--json"))
    assert report["kinds"] == {"prompts": 1, "demonstrations": 1} and report["rows"] == 3
    assert "1  an unpaired vote" in done("import", path, "--project", tmp_path / "p")
    project = Project.find(tmp_path / "p")
    with Store.open(project.store) as store:
        data = StoreData(project, lambda: store)
        assert [prompt.text for prompt in data.train_prompts()] == ["Alone?", "Shown?"]
        assert [(prompt.text, text) for prompt, text in data.demonstrations()] == [("Shown?", "Yes.")]
        named = json.loads(done("import", path, "--project", tmp_path / "p", "--json", "--format", "messages"))
        assert named["forms"] == {"messages": 1} and named["skipped"].keys() == {"lacks a field of the form asked for"}
        assert [text for _, text in data.demonstrations()] == ["Yes.", "Because."]
    assert bridle("import", path, "--project", tmp_path / "p", "--format", "nothing").exit_code == 2


# ------------------------------------------------------------------------------------------------------ real files


def test_real_transcripts_are_all_accounted_for(data_folder: Path, store: Store) -> None:
    report = import_file(store, data_folder / "hh-rlhf" / "harmless-base.test.jsonl.gz")
    assert (report.rows, report.kept, report.new) == (2312, 2303, 2303)
    assert counted(report) == {Reason.DIVERGES: 5, Reason.EMPTY_ANSWER: 4}
    assert {note: tally.count for note, tally in report.notes.items()} == {
        Note.SPEAKER_INSIDE: 45, Note.SAME_SPEAKER: 4, Note.STRIPPED: 4,
    }  # fmt: skip
    assert report.forms == {"hh": 2303} and report.scripts == {"Latin": 2303}
    train, heldout = store.judgements(split="train"), store.judgements(split="heldout")
    assert len(train) + len(heldout) == 2303 and 0.08 < len(heldout) / 2303 < 0.12
    assert not {item.prompt.id for item, _ in train} & {item.prompt.id for item, _ in heldout}


REAL = {
    "dpo-zh/dpo_zh_500.jsonl": ("sharegpt", 500, 500, {}),
    "formats-demo/dpo_en_demo.json": ("sharegpt", 300, 295, {Reason.DUPLICATE: 5}),
    "formats-demo/dpo_zh_demo.json": ("sharegpt", 300, 289, {Reason.DUPLICATE: 11}),
    "formats-demo/alpaca_en_demo.json": ("alpaca", 999, 985, {Reason.DUPLICATE: 14}),
    "formats-demo/alpaca_zh_demo.json": ("alpaca", 1000, 992, {Reason.DUPLICATE: 8}),
    "alpaca-noncommercial/en/alpaca_data-0-3252.json": ("alpaca", 3252, 3248, {Reason.EMPTY_ANSWER: 4}),
    "alpaca-noncommercial/zh/alpaca_data-6382-9407-zh.json": ("alpaca", 3022, 3020, {Reason.EMPTY_ANSWER: 2}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_all_accounted_for(name: str, data_folder: Path) -> None:
    form, rows, kept, skipped = REAL[name]
    path = data_folder / name
    text = path.read_text("utf-8")
    found = [json.loads(line) for line in text.split("\n") if line] if name.endswith("jsonl") else json.loads(text)
    distinct = {json.dumps(row, sort_keys=True) for row in found}
    examples, report = read(path)
    assert (report.rows, report.kept, counted(report)) == (rows, kept, skipped)
    assert len(found) == rows and len(distinct) == rows - skipped.get(Reason.DUPLICATE, 0)  # counted by other means
    assert report.forms == {form: kept} and report.scripts.total() == kept
    chinese = sum(count for script, count in report.scripts.items() if "Han" in script)
    assert chinese > 0.9 * kept if "zh" in name else chinese == 0
    assert Counter(len(example.answers) for example in examples) == {2 if form == "sharegpt" else 1: kept}


def test_real_unpaired_votes_are_refused_and_demonstrations_if_that_is_asked_for(data_folder: Path) -> None:
    path = data_folder / "formats-demo/kto_en_demo.json"
    with pytest.raises(NoUsableRows, match=r"first of 300 \(an unpaired vote, which has no use yet\)"):
        read(path)
    examples, report = read(path, Form.MESSAGES)
    assert report.rows == 300 and report.kept + report.skipped_rows == 300 and len(examples) > 250
    assert report.unread == {"label": report.kept}


# --------------------------------------------------------------------------------------------------------- memory


MEASURED = """
import resource, sys
from pathlib import Path
from bridle.feedback.importing.importer import import_file
from bridle.feedback.store.store import Store
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
told = []
with Store.open(sys.argv[2]) as store:
    report = import_file(store, sys.argv[1], progress=lambda done, size: told.append(done / size))
assert told == sorted(told) and 0 < told[0] < .2 and .8 < told[-1] <= 1, told
print(report.kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "list", "table"])
def test_a_hundred_megabytes_are_imported_in_bounded_memory(kind: str, tmp_path: Path) -> None:
    rows = ({"prompt": f"{n} " + "why " * 300, "chosen": "yes " * 300, "rejected": "no " * 400} for n in range(28_000))
    path = tmp_path / "rows"
    if kind == "table":
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(list(rows)), path, compression="none", use_dictionary=False
        )
    else:
        with path.open("w") as file:
            file.write("[" if kind == "list" else "")
            for n, row in enumerate(rows):
                file.write((("," if kind == "list" else "\n") if n else "") + json.dumps(row))
            file.write("]" if kind == "list" else "\n")
    assert path.stat().st_size > 100_000_000
    command = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "store.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, grown = map(int, done.stdout.split())
    assert kept == 28_000
    assert grown * (1 if sys.platform == "darwin" else 1024) < 100_000_000, f"{grown:,}"  # macOS counts in bytes
