"""What sampling stores beside the answers: why each item is asked, and what the project's reward models make of the answers."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import select, update

from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import describe_items, recount
from bridle.feedback.upkeep.takedown import take_down
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.data import STUDY
from bridle.stages.rewards import load_scores
from bridle.stages.workspace import Work
from tests.tiny_project import done


def test_answers_are_scored_by_the_reward_models_that_exist(finished_demo: Path, tmp_path: Path) -> None:
    demo = shutil.copytree(finished_demo, tmp_path / "demo", symlinks=True)
    with Store.open(demo / "store.sqlite") as store:
        items = store.items(study=STUDY)
        with store.reading() as connection:
            assert connection.execute(select(tables.completion_score)).all() == []  # none existed when they were drawn
            marked = (
                connection.execute(select(tables.item.c.acquisition).where(tables.item.c.study == STUDY))
                .scalars()
                .all()
            )
        assert set(marked) - {"gold"} == {"random", "informative"}  # gold: whose right answer labelling was told
        # An answer that was taken down, which other weights come to again.
        gone = items.pop()
        take_down(store, gone.completions[0].id, reason="", by="me")
        with store.writing() as connection:
            same = tables.completion.c.content_sha256 == gone.completions[0].id
            connection.execute(update(tables.completion).where(same).values(weight_stamp="other"))
        describe_items(store, [item.id for item in items], need=9)  # they are open again
        recount(store, STUDY)
    done("sample", "--project", demo)
    work = Work(Project.find(demo), Progress(lambda _: None, live=False))
    reader = load_scores(work, demo / "models/reward", work.load_policy("sft"))
    with Store.open(demo / "store.sqlite") as store, store.reading() as connection:
        rows = connection.execute(select(tables.completion_score)).all()
        query = select(tables.item.c.sha256, tables.item.c.acquisition, tables.item.c.priority)
        order = {row.sha256: row for row in connection.execute(query)}
        slot = tables.item_completion.c
        query = select(tables.item.c.sha256, slot.completion_id).join(tables.item_completion).where(slot.slot == 0)
        first_answer = {row.sha256: row.completion_id for row in connection.execute(query)}
    assert {(row.weights_sha256, row.task) for row in rows} == {(reader.model.origin, "reward")}
    score_of = {row.completion_id: row.score for row in rows}
    assert len(score_of) == len(rows)
    raw = reader.raw([item.prompt for item in items], [item.completions[0] for item in items])
    expected = reader.model.tasks[0].log_odds(raw).tolist()
    assert [score_of[first_answer[item.id]] for item in items] == pytest.approx(expected, abs=1e-4)
    known = [row for name, row in order.items() if name != gone.id]
    assert all(0 < row.priority <= 1 for row in known if row.acquisition == "informative")
    work.close()
