"""`bridle agreement`: the page, the lines, JSON, and an exclusion that deletes nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.people.at_work import study_progress
from bridle.feedback.quality.summary import Quality, quality_of
from bridle.feedback.quality.votes import Subject, Vote, votes_of
from bridle.feedback.store import tables
from bridle.feedback.store.assignment import next_task
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import set_study
from bridle.report.agreement import MOST_DRAWN, quality_lines, write_agreement_page
from tests.tiny_project import SHAPE, bridle, complaint, done, settings

FIRST, SECOND = ((0,), (1,)), ((1,), (0,))
PEOPLE = {"ada": 0.95, "bo": 0.9, "cleo": 0.85, "eve <i>": 0.1}


def some_quality(people: dict[str, float] = PEOPLE, items: int = 60) -> Quality:
    rng = np.random.default_rng(0)
    rows = [
        Vote(
            f"{n}",
            name,
            FIRST if rng.random() < skill else SECOND,
            ((0, 1), (1, 0))[rng.integers(2)],
            9.5,
            86_400.0 + 30 * n,
        )
        for n in range(items)
        for name, skill in people.items()
    ]
    subjects = {f"{n}": Subject("verse" if n % 2 else "law", FIRST if n < 8 else None) for n in range(items)}
    left_out = [{"labeler": "mallory", "reason": "taps <b>", "by": "owner", "at": "2026-11-29T10:00:00.000+00:00"}]
    return quality_of(replace(votes_of(rows, subjects), left_out=left_out))


@pytest.fixture
def page(tmp_path: Path) -> str:
    path = tmp_path / "agreement.html"
    write_agreement_page(some_quality(), "first", path)
    return path.read_text("utf-8")


def test_the_page_shows_whom_to_look_at_the_people_and_pictures(page: str) -> None:
    assert "The labels of study first" in page and "4 people gave 240 judgements of 60 items" in page.replace(
        "\u202f", ""
    )
    assert "<strong>eve &lt;i&gt;</strong>, answers against the others: right in 0." in page
    assert re.findall(r'<svg role="img" aria-label="(Skill|Side|Right by topic|Right by position in a sitting)', page) == [
        "Skill", "Side", "Right by topic", "Right by position in a sitting"
    ]  # fmt: skip
    assert "law" in page and "verse" in page and "1 to 5" in page
    assert "<strong>mallory</strong>: taps &lt;b&gt;" in page and "owner, 2026-11-29" in page


def test_the_page_is_whole_by_itself_and_lets_nothing_in(page: str) -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"<(script|link|img|iframe)|<i>|<b>|\bon\w+=|url\((?!#)", page)
    assert not re.search(r'(href|src)="(?!#)', page)


def test_the_same_labels_give_the_same_page(page: str, tmp_path: Path) -> None:
    write_agreement_page(some_quality(), "first", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text("utf-8") == page


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    rows = [Vote(f"{n}", name, FIRST) for n in range(3) for name in ("ada", "bo")]
    found = quality_of(votes_of([*rows, Vote("alone", "cleo", FIRST)]))
    write_agreement_page(found, None, tmp_path / "a.html")
    text, lines = (tmp_path / "a.html").read_text("utf-8"), "\n".join(quality_lines(found))
    for page in (text, lines):
        assert "undefined, for all judgements that can be compared say the same" in page
    assert "nobody else judged the same, and none of it has gold" in text and "No item names its topic" in text
    assert "7 of 7 judgements have no position in a sitting" in text
    assert (
        "Nobody answers like a coin" in text
        and "Who is left out" not in text
        and ">left<" not in text[: text.index("<table")]
    )


def test_of_very_many_people_those_with_the_most_judgements_are_drawn(tmp_path: Path) -> None:
    many = some_quality({f"p{n:03}": 0.8 for n in range(MOST_DRAWN + 5)}, items=4)
    write_agreement_page(many, None, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "has the other 5 too" in text and text.count('<th scope="row">p') == MOST_DRAWN


# ------------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose store has twelve items, each judged by three people, of whom eve always says the reverse."""
    done("init", tmp_path / "p", *settings(SHAPE))
    prompts = [Prompt.from_text(f"Question {n}?") for n in range(12)]
    groups = [[Completion(prompt.id, "one"), Completion(prompt.id, "other")] for prompt in prompts]
    with Store.open(tmp_path / "p" / "store.sqlite") as store:
        store.add_prompts(prompts, split="train", source="test")
        store.add_completions([one for group in groups for one in group], source="test")
        items = store.add_items(groups, study="pairs")
        rankings = {"ada": FIRST, "bo": FIRST, "eve": SECOND}
        store.add_judgements(
            Judgement(
                item, name, LabelerKind.PERSON, ranking if n % 2 else ranking[::-1], (n % 2, 1 - n % 2), seconds=4.0
            )
            for n, item in enumerate(items)
            for name, ranking in rankings.items()
        )
    return tmp_path / "p"


def test_the_verb_prints_and_writes_the_page(project: Path, tmp_path: Path) -> None:
    text = done("agreement", "--project", project)
    assert "3 people gave 36 judgements of 12 items, 12 of them judged by several." in text
    assert re.search(r"^raw agreement +0\.33  ", text, re.MULTILINE) and re.search(r"^eve +12 ", text, re.MULTILINE)
    assert (project / "agreement.html").exists() and f"wrote {project / 'agreement.html'}" in text
    found = json.loads(
        done("agreement", "--project", project, "--study", "pairs", "--out", tmp_path / "x.html", "--json")
    )
    assert found["agreement"]["raw"]["value"] == pytest.approx(1 / 3) and (tmp_path / "x.html").exists()
    assert [one["labeler"] for one in found["people"]] == ["ada", "bo", "eve"] and found["study"] == "pairs"
    assert "study 'none'" in complaint(bridle("agreement", "--project", project, "--study", "none"))


def test_a_person_is_excluded_by_a_row(project: Path) -> None:
    with Store.open(project / "store.sqlite") as store, store.reading() as connection:
        before = connection.execute(sa.select(tables.judgement)).all()
    found = json.loads(done("agreement", "--project", project, "--exclude", "eve", "--reason", "the reverse", "--json"))
    assert found["agreement"]["raw"]["value"] == 1 and len(found["people"]) == 2
    assert [(one["labeler"], one["reason"]) for one in found["left_out"]] == [("eve", "the reverse")]
    with Store.open(project / "store.sqlite") as store, store.reading() as connection:
        assert connection.execute(sa.select(tables.judgement)).all() == before
        assert connection.execute(sa.select(tables.exclusion.c.target_id)).scalars().all() == ["eve"]
        assert len(store.judgements()) == 24


def test_what_the_excluded_person_judged_is_asked_of_others_again(project: Path) -> None:
    with Store.open(project / "store.sqlite") as store:
        set_study(store, "pairs", {"overlap": 3, "gold_rate": 0.0})
        assert study_progress(store, "pairs")[0] == {"done": 12}
    done("agreement", "--project", project, "--exclude", "eve", "--reason", "the reverse")
    with Store.open(project / "store.sqlite") as store:
        assert study_progress(store, "pairs")[0] == {"open": 12} and next_task(store, "pairs", "dan") is not None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--exclude", "eve"], "takes the name and the reason"),
        (["--reason", "taps"], "takes the name and the reason"),
        (["--exclude", "eve", "--reason", " "], "takes the name and the reason"),
        (["--exclude", "nobody", "--reason", "taps"], "there is no labeler 'nobody'"),
    ],
)
def test_an_exclusion_takes_a_known_name_and_a_reason(project: Path, words: list[str], sentence: str) -> None:
    assert sentence in complaint(bridle("agreement", "--project", project, *words))
    with Store.open(project / "store.sqlite") as store:
        assert len(store.judgements()) == 36
