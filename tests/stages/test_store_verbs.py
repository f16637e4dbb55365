"""`bridle export DEST` and `bridle store`: the data of a project out, safe, and back, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from bridle.core.records import Prompt, content_hash
from tests.tiny_project import bridle, complaint, done

ROWS = [
    {"prompt": "Why does Ann Xylander knit?", "chosen": "She likes to knit.", "rejected": "No idea at all."},
    {"prompt": "What is a carp?", "chosen": "A fish.", "rejected": "A dog."},
    {"text": "Carps are fish."},
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose store has two comparisons and a text."""
    done("init", tmp_path / "p", "--set", "data.heldout_share=0.001")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done("import", tmp_path / "rows.jsonl", "--project", tmp_path / "p")
    return tmp_path / "p"


def found(*words: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(done(*words, "--json"))
    return answer


def test_one_argument_exports_the_data(project: Path, tmp_path: Path) -> None:
    report = found("export", tmp_path / "out.jsonl", "--project", project)
    assert report["rows"] == 2 and report["not_held"] == {"who judged": 1, "texts": 1}
    said = done("export", tmp_path / "out.csv", "--split", "train", "--project", project)
    assert "wrote 2 rows to " in said and "not held by the format preference: 1 who judged, 1 texts" in said
    assert "is there already" in complaint(bridle("export", tmp_path / "out.csv", "--project", project))
    done("export", tmp_path / "out.csv", "--force", "--project", project)
    done("export", tmp_path / "all.jsonl.gz", "--format", "full", "--project", project)
    done("init", tmp_path / "q")
    assert "a whole store" in done("import", tmp_path / "all.jsonl.gz", "--project", tmp_path / "q")
    assert done("export", tmp_path / "b.jsonl", "--project", tmp_path / "q")
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("out.xyz",), "ends as no file of this format does"),
        (("sft",), "of a model name a folder too"),
        (("out.jsonl", "--format", "mine"), "'mine' is not a form of exports; the forms are preference, unpaired"),
        (("out.jsonl", "--dtype", "float16"), "--dtype and --adapter are of a model"),
        (("sft", "folder", "--format", "full"), "of a model nothing but --dtype can be chosen"),
        (("out.jsonl", "--licence", "mit"), "--licence is told on the card that --push writes"),
        (("out.jsonl", "--push", "mine"), "does not name a repository"),
        (("out.jsonl", "--snapshot", "abc"), "is not a hash of at least 8"),
        (("out.jsonl", "--study", "none"), "there is nothing in the store to write as preference"),
    ],
)
def test_what_cannot_be_exported_is_told(
    words: tuple[str, ...], told: str, project: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in complaint(bridle("export", *words, "--project", project))
    assert not (tmp_path / "out.jsonl").exists()


class DataHub:
    """Stands where huggingface_hub's client is."""

    endpoint = "https://hub.example"
    made, taken = list[tuple[str, bool, str]](), dict[str, bytes]()

    def create_repo(self, name: str, *, private: bool, exist_ok: bool, repo_type: str) -> None:
        DataHub.made.append((name, private, repo_type))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, repo_type: str) -> str:
        DataHub.taken = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return f"{DataHub.endpoint}/datasets/{repo_id}"


def test_a_push_uploads_the_file_with_its_card(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", DataHub)
    report = found("export", tmp_path / "out.jsonl", "--push", "me/pairs", "--licence", "cc0-1.0", "--project", project)
    assert report["pushed"] == "https://hub.example/datasets/me/pairs" and DataHub.made == [
        ("me/pairs", True, "dataset")
    ]
    assert DataHub.taken["out.jsonl"] == (tmp_path / "out.jsonl").read_bytes()
    assert b"license: cc0-1.0" in DataHub.taken["README.md"] and not list(tmp_path.glob(".push.*"))


def test_a_store_is_kept_and_put_back(project: Path, tmp_path: Path) -> None:
    assert "verified" in done("store", "backup", tmp_path / "copy", "--project", project)
    assert "is there already" in complaint(bridle("store", "backup", tmp_path / "copy", "--project", project))
    assert found("store", "verify", "--project", project)["faults"] == []
    assert "holds a store" in complaint(bridle("store", "restore", tmp_path / "copy", "--project", project))
    (project / "store.sqlite").unlink()
    done("store", "restore", tmp_path / "copy", "--project", project)
    assert "as it was written" in done("store", "verify", "--project", project)
    whole = (project / "store.sqlite").read_bytes()
    (project / "store.sqlite").write_bytes(whole.replace(b"Carps are fish.", b"Carps are dogs."))
    result = bridle("store", "verify", "--project", project)
    assert (
        result.exit_code == 1
        and "document 1 (" in result.stdout
        and "is damaged (1 faults); restore a backup" in result.stderr
    )
    done("store", "restore", tmp_path / "copy", "--force", "--project", project)
    done("store", "verify", "--project", project)


def test_a_text_is_found_and_taken_down(project: Path) -> None:
    (project / "runs/sft-0001").mkdir(parents=True)
    (project / "runs/sft-0001/samples.jsonl").write_text(json.dumps(ROWS[0]))
    listed = found("store", "find", "xylander", "--project", project)["found"]
    assert [(one["what"], one["hash"]) for one in listed] == [("prompt", Prompt.from_text(ROWS[0]["prompt"]).id)]
    said = done("store", "takedown", listed[0]["hash"][:10], "--reason", "she asked", "--project", project)
    assert (
        "took down" in said and "1 prompt, 2 completion" in said and "samples.jsonl" in said and "out of reach" in said
    )
    assert "stands in no text" in done("store", "find", "Xylander", "--project", project)
    for path in project.glob("store.sqlite*"):
        assert b"Xylander" not in path.read_bytes() and b"likes to knit" not in path.read_bytes()
    done("store", "verify", "--project", project)
    assert content_hash(ROWS[2]["text"])[:12] in done("store", "find", "Carps", "--project", project)
    assert (
        "Missing option '--reason'".lower()
        in complaint(bridle("store", "takedown", "a" * 8, "--project", project)).lower()
    )
