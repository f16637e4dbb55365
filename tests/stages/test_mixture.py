"""Rows of several imported files by weight, from the recipe: how many of each, which ones, that they make the run, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bridle.compute.steps import Steps
from bridle.core.errors import DataError
from bridle.feedback.importing.files.hub import HubSource
from bridle.feedback.importing.files.row import RawRow
from bridle.feedback.importing.rereading import hashes_in_file
from bridle.feedback.store.labels import snapshot_ratings
from bridle.feedback.store.store import Store
from bridle.models.encoding import notes_of
from bridle.models.policy import save_policy
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages import preferences
from bridle.stages.data import mixed_counts
from tests.models.tiny import one_sentence, policy
from tests.stages.test_methods import Quiet
from tests.tiny_project import bridle, complaint, done, result, weights

SETTINGS = {
    "data.heldout_share": 0.001, "model.precision": "float32", "sft.epochs": 1, "sft.batch_size": 4, "sft.optimizer": "adamw",
    "orpo.optimizer": "adamw", "orpo.start": "base", "orpo.observe_every": 0, "model.max_positions": 96,
}  # fmt: skip


def rows_of(name: str, count: int) -> list[dict[str, Any]]:
    asked = [f"{name} {number}?" for number in range(count)]
    pairs = [{"prompt": q, "chosen": f"Yes, {name}.", "rejected": "No."} for q in asked]
    votes = [{"prompt": f"Vote {q}", "completion": "So.", "label": i % 2 == 0} for i, q in enumerate(asked)]
    shown = [{"prompt": f"Say {q}", "completion": f"It is {name}."} for q in asked]
    return [*pairs, *votes, *shown, *({"text": f"All about {name}, {q}"} for q in asked)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Three files of 12, 12 and 4 rows of each kind, all imported."""
    folder = tmp_path / "p"
    Project.create(folder, Recipe().with_settings(SETTINGS))
    save_policy(folder / "models/base", policy())
    for name, count in (("ours", 12), ("theirs", 12), ("others", 4)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(name, count)))
    for name in ("ours", "theirs", "others"):
        done("import", folder / f"{name}.jsonl", "--project", folder)
    return folder


def named(texts: Sequence[str]) -> Counter[str]:
    return Counter(name for text in texts for name in ("ours", "theirs", "others") if name in text)


def data(project: Path, seed: int = 0, **settings: Any) -> Quiet:
    return Quiet(project, {"seed": seed, **{f"data.{name}": value for name, value in settings.items()}})


def test_shares_are_by_weight_until_one_has_no_more() -> None:
    assert mixed_counts([12, 12], [3.0, 1.0], 100) == [12, 4] and mixed_counts([12, 12], [3.0, 1.0], 8) == [6, 2]
    assert mixed_counts([5, 1000], [1.0, 1.0], 10**6) == [5, 5] and mixed_counts([7], [0.5], 100) == [7]
    assert mixed_counts([3, 3, 3], [1, 1, 1], 9) == [3, 3, 3]


def test_demonstrations_by_weight(project: Path) -> None:
    mixture = {"demonstrations": {"ours.jsonl": 3, "theirs.jsonl": 1}}
    with data(project, mixture=mixture, imitate="written") as work:
        found = work.data.demonstrations()
        counts = named([text for _, text in found])
    assert counts == {"ours": 12, "theirs": 4}
    assert notes_of(found)[0].startswith(
        f"{len(found)} of 28 used (data.mixture.demonstrations: 12 of 12 from ours.jsonl, "
    )
    with data(project, mixture=mixture, imitate="written", demonstrations=8) as work:
        few = work.data.demonstrations()
        assert named([text for _, text in few]) == {"ours": 6, "theirs": 2} and set(few) < set(found)
        assert few == work.data.demonstrations()
    with data(project, seed=1, mixture=mixture, imitate="written", demonstrations=8) as work:
        assert set(work.data.demonstrations()) != set(few)
    rest = {"demonstrations": {"others.jsonl": 1, "": 1}}  # what stands in no file that is named
    with data(project, mixture=rest, imitate="written", demonstrations=8) as work:
        counts = named([text for _, text in work.data.demonstrations()])
    assert counts["others"] == 4 and counts["ours"] + counts["theirs"] == 4


def test_texts_by_weight(project: Path) -> None:
    with data(project, mixture={"texts": {"theirs.jsonl": 1, "others.jsonl": 1}}) as work:
        texts = work.data.documents(10)
        key = work.data.text_parents()["texts"]
    counts = named(texts)
    assert (
        counts["ours"] == 0
        and abs(counts["theirs"] - counts["others"]) <= 1
        and any("All about" in text for text in texts)
    )
    with data(project, mixture={"texts": {"theirs.jsonl": 2, "others.jsonl": 1}}) as work:
        assert work.data.text_parents()["texts"] != key


def test_comparisons_and_votes_by_weight_are_what_the_snapshot_holds(project: Path) -> None:
    weights = {"ours.jsonl": 1, "theirs.jsonl": 2}
    with data(project, mixture={"comparisons": weights, "ratings": weights}) as work:
        compared, voted = preferences.lessons_for_kto(work, "all")
        pairs = work.store.snapshot_pairs(compared.snapshot.id)
        votes = snapshot_ratings(work.store, voted.snapshot.id)
        for texts in ([pair.prompt.text for pair in pairs], [prompt.text for prompt, _ in votes]):
            counts = named(texts)
            assert counts == {"theirs": 12, "ours": 6}
        assert len(pairs) == len(compared.snapshot.judgement_ids)
        again = preferences.lessons_for_kto(work, "all")
        assert [one.snapshot.id for one in again] == [compared.snapshot.id, voted.snapshot.id]
        assert work.store.snapshot(compared.snapshot.id) == compared.snapshot, "its rows give its hash"
    with data(project, mixture={"comparisons": {**weights, "ours.jsonl": 1.5}}) as work:
        assert preferences.training_snapshot(work).id != compared.snapshot.id
    with data(project) as work:
        assert len(preferences.training_snapshot(work).judgement_ids) == 28


MIXED = (
    "--set",
    'data.mixture.demonstrations={"ours.jsonl" = 2, "theirs.jsonl" = 1}',
    "--set",
    "data.demonstrations=6",
)


def test_a_run_by_weights_is_done_once_and_other_weights_are_another(project: Path) -> None:
    first = json.loads(done("train", "sft", *MIXED, "--json", "--project", project))
    told = bridle("train", "sft", *MIXED, "--project", project).stderr
    assert "6 of 56 used (data.mixture.demonstrations: 4 of 24 from ours.jsonl, 2 of 24 from theirs.jsonl)" in told
    keys = [json.loads((run / "parents.json").read_text())["key"] for run in sorted(project.glob("runs/sft-*"))]
    assert len(set(keys)) == 1 and first["demonstrations"] == 6
    done("train", "sft", MIXED[0], MIXED[1].replace("= 2", "= 5"), *MIXED[2:], "--project", project)
    last = sorted(project.glob("runs/sft-*"))[-1]
    assert json.loads((last / "parents.json").read_text())["key"] != keys[0]
    done(
        "train",
        "orpo",
        "--set",
        'data.mixture.comparisons={"others.jsonl" = 1, "ours.jsonl" = 1}',
        "--project",
        project,
    )
    assert result(project / "runs/orpo-0001")["prompts"] == 8


def test_a_run_that_is_resumed_goes_on_with_the_same_rows(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "sft", *MIXED, "--set", "sft.checkpoint_every=1", "--project")
    whole, plain = Path(shutil.copytree(project, tmp_path / "whole")), Steps.scheduled_step
    done(*words, whole)

    def stopped(self: Steps, step: int, norm: float) -> float:
        if step:
            raise KeyboardInterrupt
        return plain(self, step, norm)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "scheduled_step", stopped)
        assert bridle(*words, project).exit_code == 130
    done(*words, project)
    assert len(list(project.glob("runs/sft-*"))) == 1 and weights(project, "sft") == weights(whole, "sft")


def test_a_dataset_of_the_hub_is_one_of_the_files(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [RawRow(number, row) for number, row in enumerate(rows_of("theirs and more", 3), 1)]
    monkeypatch.setattr(HubSource, "__iter__", lambda self: iter(rows))
    done("import", "hf://some/set", "--project", project)
    mixture = {"demonstrations": {"hf://some/set": 1, "ours.jsonl": 2}}
    with data(project, mixture=mixture, imitate="written") as work:
        assert Counter("more" in text for _, text in work.data.demonstrations()) == {True: 3, False: 7}


REFUSED = [
    ({"demonstrations": {"ours.jsonl": 0}}, "demonstrations.ours.jsonl = 0 is invalid: must be greater than 0"),
    ({"demonstrations": {}}, "data.mixture.demonstrations = {} is invalid"),
    ({"demos": {"ours.jsonl": 1}}, "must be 'texts', 'demonstrations', 'comparisons' or 'ratings'"),
    ({"demonstrations": {"gone.jsonl": 1}}, "gone.jsonl"),
    ({"demonstrations": {"new.jsonl": 1}}, "new.jsonl was not imported as it is now; `bridle import"),
    ({"demonstrations": {"texts.jsonl": 1}}, "names texts.jsonl, which holds none of the 56 demonstrations"),
    ({"demonstrations": {"ours.jsonl": 1, "theirs.jsonl": 1, "others.jsonl": 1, "": 1}}, "names what stands in no file, which"),
]  # fmt: skip


def test_what_cannot_be_mixed_is_refused_in_a_sentence(project: Path) -> None:
    (project / "new.jsonl").write_text(json.dumps({"prompt": "New?", "completion": "Yes."}) + "\n")
    (project / "texts.jsonl").write_text(json.dumps({"text": "A text."}) + "\n")
    done("import", project / "texts.jsonl", "--project", project)
    for mixture, words in REFUSED:
        [(kind, files)] = mixture.items()
        table = ", ".join(f"{json.dumps(path)} = {weight}" for path, weight in files.items())
        found = bridle("train", "sft", "--set", f"data.mixture={{{kind} = {{{table}}}}}", "--project", project)
        told = complaint(found)
        assert found.exit_code in (1, 2) and words in told and one_sentence(told), told
    assert not list(project.glob("runs/sft-*"))


def test_the_playground_has_no_files_to_mix(tmp_path: Path) -> None:
    mixed = 'data.mixture={texts = {"a.jsonl" = 1}}'
    told = complaint(bridle("demo", "--out", tmp_path / "p", "--set", mixed))
    assert "mixture is of imported files; the playground writes its own rows" in told


def test_a_file_is_read_as_it_was_imported(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(json.dumps({"frage": "Warum?", "sagt": "Darum."}) + "\n")
    Project.create(tmp_path / "p", Recipe())
    done("import", file, "--map", "frage=prompt,sagt=completion", "--project", tmp_path / "p")
    with Store.open(tmp_path / "p/store.sqlite") as store:
        [(prompt, answer)] = store.completions()
        assert hashes_in_file(store, file) == {prompt.id, answer.id}
        file.write_text(file.read_text() * 2)
        with pytest.raises(DataError, match="was not imported as it is now"):
            hashes_in_file(store, file)
