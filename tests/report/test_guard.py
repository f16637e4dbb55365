"""The part of a page that a guarded run has: words, a picture and its file, numbers, answers; and nothing where no guard was."""

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.guard.overoptimisation import GainCurve
from bridle.report.drawings import GuardedRun, draw_guarded
from bridle.report.guard import answers_as_it_went, audit_table, guard_report, guard_reports, guarded_run, read_watch
from bridle.report.run import write_run_report
from tests.report.test_page import EVIL, Page
from tests.report.test_project import page_of, project_of, strange_numbers, words_of_page, work_in, write_run

KL = [0.0, 0.8, 1.9, 4.0, 9.0]
CURVE = GainCurve(0.9, 0.5, "rl")


def rows(text: str) -> list[dict[str, str]]:
    return [{"prompt": f"prompt {number}", "answer": f"{text} {number}"} for number in range(3)]


def audit(step: int, wins: float, compared: int = 24) -> dict[str, Any]:
    left = float(CURVE.gain(math.sqrt(KL[step])))
    return {
        "step": step, "kl": KL[step], "kl_se": 0.1, "stated": 0.9 * math.sqrt(KL[step]), "left": left, "left_low": left - 0.1 * (step + 1),
        "left_high": left + 0.1 * (step + 1), "compared": compared, "wins": wins,
    }  # fmt: skip


def watched(**chosen: Any) -> dict[str, Any]:
    ending = {
        "step": 4, "signal": "audit", "action": "roll back", "words": "Step 2 is better than this.", "numbers": {"past": 0.97},
        "answers": rows("the the the")[:2],
    }  # fmt: skip
    warning = {"step": 3, "signal": "length", "action": "warn", "words": "Answers grew.", "numbers": {"drift": None}}
    return {
        "audits": [audit(0, 12.0), audit(1, 15.5), audit(2, 16.0), audit(3, 14.0), audit(4, 24.0)],
        "cost": 0.12, "past": 0.97, "best_step": 2, "rolled_back_to": 2, "ended": "an earlier checkpoint is better.",
        "events": [warning, ending],
        "answers": {"start": {"step": 0, "rows": rows("hello")}, "best": {"step": 2, "rows": rows("advice")},
                    "end": {"step": 4, "rows": rows("nonsense")}},
        **chosen,
    }  # fmt: skip


def guarded(folder: Path, watch: Any, *, gold: bool = True, result: dict[str, Any] | None = None) -> Path:
    """A project with one run that was watched."""
    project = project_of(folder)
    run = write_run(project, "ppo", {"steps": 5} if result is None else result)
    lines = [{"step": i, "kl": kl, "proxy": 0.5 * i, **({"gold": 2.0 - i} if gold else {})} for i, kl in enumerate(KL)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "watch.json").write_text(watch if isinstance(watch, str) else json.dumps(watch))
    return project


def page_of_run(project: Path) -> str:
    work = work_in(project)
    try:
        return write_run_report(work, Path("ppo-0001")).read_text()
    finally:
        work.close()


def test_the_page_says_where_and_why_it_stopped_and_shows_answers_on_the_way(tmp_path: Path) -> None:
    project = guarded(tmp_path / "p", watched())
    page = page_of_run(project)
    text = " ".join(words_of_page(page).split())
    for words in (
        "The guard ended the run at step 4: an earlier checkpoint is better.",
        "It rolled the policy back to step 2",
        "better than the newest with a probability of 0.97",
        "costs 0.12 log-odds of what the reward model states, as 5 audits tell",
        "has a = 0.90 and b = 0.50; its top lies at 4.95 nats",
        "Step 4, audit: roll back. Step 2 is better than this. (past 0.97)",
        "(drift –)",
        "at the start: step 0",
        "at the peak: step 2",
        "past the peak: step 4",
        "It steers nothing",
    ):
        assert words in text, words
    assert all(f'<p dir="auto">{said} 1</p>' in page for said in ("hello", "advice", "nonsense", "the the the"))
    assert "kept: step 2, at 1.90 nats. stopped" in text or "stopped: step 4, at 9.00 nats. kept: step 2" in text
    assert page.index('id="guard"') < page.index('id="curves"')
    assert 'id="guard"' in page_of(project), "the project's page has it too"


def test_the_picture_stands_where_it_was_measured(tmp_path: Path) -> None:
    project = guarded(tmp_path / "p", watched())
    report = guard_report("ppo", project / "runs/ppo-0001")
    above, below = draw_guarded(report.drawn).axes
    lines = {str(line.get_label()): line for line in [*above.lines, *below.lines]}
    assert lines["training proxy, sd"].get_xydata().tolist() == [
        [pytest.approx(k**0.5), i / 2] for i, k in enumerate(KL)
    ]
    assert lines["training gold, points"].get_ydata().tolist() == [0.0, -1.0, -2.0, -3.0, -4.0], "as its change"
    left, stated = lines["left of it after all audits"], lines["stated by the reward model"]
    assert left.get_xydata().tolist() == [[k**0.5, pytest.approx(float(CURVE.gain(k**0.5)))] for k in KL]
    assert stated.get_ydata().tolist() == pytest.approx([0.9 * k**0.5 for k in KL])
    along, drawn = lines["d (a − b log d), d = √KL"].get_data()
    assert along[-1] == 3.0 and drawn == pytest.approx(CURVE.gain(along))
    assert set(lines["kept: step 2"].get_xdata()) == {1.9**0.5} and set(lines["stopped: step 4"].get_xdata()) == {3.0}
    ring = next(line for line in below.lines if line.get_markersize() == 14)
    assert ring.get_xydata().tolist() == [[1.9**0.5, pytest.approx(float(CURVE.gain(1.9**0.5)))]]
    bars = [line.get_xydata().tolist() for line in below.lines if str(line.get_label()).startswith("_child")]
    assert [[3.0, pytest.approx(left.get_ydata()[4] - 0.5)], [3.0, pytest.approx(left.get_ydata()[4] + 0.5)]] in bars


def test_what_was_rolled_back_to_is_kept_though_more_audits_make_another_the_best() -> None:
    drawn = guarded_run("PPO", watched(rolled_back_to=1), [])
    assert drawn.kept == (1, 0.8) and drawn.stopped == (4, 9.0)


def test_an_audit_by_itself_is_a_win_rate_in_log_odds_and_all_won_is_no_infinity() -> None:
    drawn = guarded_run("PPO", watched(), [])
    half, _, _, _, won = (one.observed for one in drawn.audits)
    assert half[0] == 0.0 and half[1] == pytest.approx(-half[2]) and half[2] == pytest.approx(0.775, abs=0.01)
    assert won[0] == pytest.approx(math.log(23.5 / 0.5)) and won[1] is not None and 1.5 < won[1] < won[0]
    none = guarded_run("PPO", watched(audits=[audit(1, 0.0, 0)]), [])
    assert none.audits[0].observed == (None, None, None)


def test_the_curve_needs_three_audits_away_from_the_reference_and_hears_the_sure_ones() -> None:
    assert guarded_run("PPO", watched(audits=[audit(step, 12.0) for step in (0, 1, 2)]), []).curve is None
    audits = [audit(step, 12.0) for step in (1, 2, 3, 4)]
    audits[3] |= {"left": -3.0, "left_low": -103.0, "left_high": 97.0}
    found = guarded_run("PPO", watched(audits=audits), []).curve
    assert found is not None and found[:2] == pytest.approx((0.9, 0.5), abs=0.01)


def test_the_picture_is_a_file_beside_each_page_that_any_program_reads(tmp_path: Path) -> None:
    project = guarded(tmp_path / "p", watched())
    page_of_run(project)
    page_of(project)
    beside = [project / "runs/ppo-0001/guard-ppo-0001.svg", project / "guard-ppo-0001.svg"]
    one, other = (path.read_text() for path in beside)
    root = ET.fromstring(one)
    assert one == other and root.tag == "{http://www.w3.org/2000/svg}svg" and "var(" not in one
    assert root[0].tag.endswith("rect") and root[0].get("fill") == "white" and "left of it after all audits" in one
    assert "log-odds left after audits" in str(root.get("aria-label")).lower()


def test_every_number_of_the_page_stands_in_a_file_or_follows_from_the_audits(tmp_path: Path) -> None:
    project = guarded(tmp_path / "p", watched())
    assert strange_numbers(project, page_of(project)) == []


def test_the_numbers_of_the_picture_stand_in_a_table() -> None:
    metrics = [{"step": 0, "proxy": 0.1, "reward": 0.0, "gold": 1.0}, {"step": 1, "proxy": 0.2, "gold": 2.0}]
    table = audit_table(watched()["audits"][:3], metrics)
    names = [column.name for column in table.columns]
    assert names[3:5] == ["training proxy", "training gold"] and names[-2:] == ["won", "of"]
    assert table.rows[1][:5] == [1, 0.8, 0.1, 0.2, 2.0] and table.rows[1][-2:] == [15.5, 24]
    assert table.rows[2][3:5] == [None, None], "what was not logged is a dash"
    assert [column.name for column in audit_table([], [{"step": 0, "reward": 1.0}]).columns][3] == "training reward"


def test_a_run_that_nothing_stopped_and_one_that_has_just_begun(tmp_path: Path) -> None:
    let = watched(ended=None, rolled_back_to=None, best_step=4, events=[])
    drawn = guarded_run("PPO", let, [])
    assert drawn.stopped is None and [words for words, _ in drawn.marks] == ["best so far: step 4"]
    report = guard_report("ppo", guarded(tmp_path / "p", let) / "runs/ppo-0001")
    assert report.words[0] == "The guard let the run go on to its end." and not report.events
    ended = guarded(tmp_path / "q", let, result={"steps": 5, "ended": "too far."}) / "runs/ppo-0001"
    assert guard_report("ppo", ended).words[0].endswith("which ended early all the same: too far.")
    begun = watched(
        audits=[], cost=None, past=None, best_step=None, rolled_back_to=None, ended=None, events=[], answers={}
    )
    text = page_of_run(guarded(tmp_path / "r", begun, gold=False))
    assert "What the guard saw" in text and "Nobody has compared its answers" in text
    assert "Answers as it went" not in text and "steers nothing" not in text
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))


def test_a_checkpoint_that_is_the_peak_and_the_end_stands_once() -> None:
    parts = {name: {"step": step, "rows": rows(name)} for name, step in (("start", 0), ("best", 4), ("end", 4))}
    sides = answers_as_it_went(parts)
    assert [answer.label for answer in sides[0].answers] == ["at the start: step 0", "at the peak, at the end: step 4"]
    assert [answer.text for answer in sides[0].answers] == ["start 0", "best 0"]
    parts["best"]["rows"] = rows("best")[1:]
    assert [side.prompt for side in answers_as_it_went(parts)] == ["prompt 1", "prompt 2"], "those that all answered"


def test_what_others_wrote_is_inert_and_cut(tmp_path: Path) -> None:
    evil = EVIL + "\u202ecba\x1b[31m" + "y" * 2**20
    said = [{"prompt": EVIL, "answer": evil}]
    event = {"step": 4, "signal": EVIL, "action": EVIL, "words": EVIL, "numbers": {EVIL: 1.0}, "answers": said}
    parts = {name: {"step": step, "rows": said} for name, step in (("start", 0), ("best", 2), ("end", 4))}
    project = guarded(tmp_path / "p", watched(ended=evil, events=[event], answers=parts))
    page = page_of_run(project)
    assert Page(page).open == [] and "script" not in Page(page).tags and page.count("&lt;script&gt;") > 10
    assert "\u202e" not in page and "\x1b" not in page
    assert page.count("(1,048,6") == 5 and len(page) < 200_000, "four answers and the reason"
    assert "<script" not in page + (project / "runs/ppo-0001/guard-ppo-0001.svg").read_text()


def test_of_very_many_events_and_answers_some_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    many = [{"prompt": f"prompt {number}", "answer": "a"} for number in range(99)]
    notes = [{"step": step, "signal": "length", "action": "note", "words": f"note {step}"} for step in range(200)]
    parts = {name: {"step": step, "rows": many} for name, step in (("start", 0), ("end", 4))}
    report = guard_report("ppo", guarded(tmp_path / "p", watched(events=notes, answers=parts)) / "runs/ppo-0001")
    assert [event.words for event in report.events] == [f"note {step}" for step in range(160, 200)]
    assert report.events_rule.startswith("160 earlier ones") and len(report.answers) == 8
    assert "the first 8 of 99 prompts" in report.answers_rule


@pytest.mark.parametrize(
    ("watch", "words"),
    [
        ("{", "watch.json is not valid JSON"),
        ("[]", "is damaged"),
        (watched(audits=[{**audit(1, 3.0), "kl": "far"}]), r"needs audits\[0\].kl as number within a million, got"),
        (
            watched(audits=[{**audit(1, 3.0), "left": 1e9}]),
            r"needs audits\[0\].left as number within a million or null",
        ),
        (watched(audits=[{**audit(1, 3.0), "wins": 25}]), r"audits\[0\] has won 25 of 24 comparisons"),
        (watched(audits=[{**audit(1, 3.0), "wins": float("nan")}]), r"needs audits\[0\].wins"),
        (watched(events=[{"step": 3}]), r"needs events\[0\].signal as str, got no"),
        (watched(answers={"start": {"step": 0, "rows": [{"prompt": "p"}]}}), r"needs answers.start.rows\[0\].answer"),
        ({name: value for name, value in watched().items() if name != "cost"}, "needs cost"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(tmp_path: Path, watch: Any, words: str) -> None:
    project = guarded(tmp_path / "p", watch)
    run = project / "runs/ppo-0001"
    with pytest.raises(DataError, match=words) as caught:
        read_watch(run)
    assert "\n" not in str(caught.value) and "put the file back, or remove" in str(caught.value)


def test_what_is_damaged_is_left_out_and_the_rest_is_shown(tmp_path: Path) -> None:
    project = guarded(tmp_path / "p", watched(cost="dear"))
    for page in (page_of_run(project), page_of(project)):
        assert 'id="guard"' not in page and "the report leaves it out" in page and 'id="time"' in page


def test_a_run_without_a_guard_has_no_such_section(tmp_path: Path) -> None:
    project = project_of(tmp_path / "p")
    run = write_run(project, "ppo", {"steps": 3})
    assert read_watch(run) == {}
    assert 'id="guard"' not in page_of_run(project) + page_of(project) and not list(project.rglob("*.svg"))


def test_a_guarded_run_of_very_many_steps_is_drawn_as_means() -> None:
    many = np.linspace(0, 25, 100_000).tolist()
    (training,) = draw_guarded(GuardedRun("PPO", many, many, [], "proxy, sd", [])).axes
    assert len(training.lines) == 2 and all(line.get_xdata().size <= 400 for line in training.lines)


def test_the_run_that_no_guard_stopped_goes_on_in_the_picture(tmp_path: Path) -> None:
    project = guarded(tmp_path / "p", watched())
    (project / "runs/ppo-0001").rename(project / "runs/guarded-0001")
    past = write_run(project, "unbridled", {"steps": 7})
    lines = [{"step": i, "kl": float(i * i), "proxy": 0.5 * i, "gold": 2.0 - i} for i in range(7)]
    (past / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [report] = guard_reports({"guarded": project / "runs/guarded-0001", "unbridled": past}, [])
    assert report.drawn.name == "PPO without its bridle, held by the guard"
    above, below = draw_guarded(report.drawn).axes
    drawn = {str(line.get_label()): line for line in above.lines}
    assert drawn["gold, unguarded"].get_xydata()[-1].tolist() == [6.0, -6.0]
    assert drawn["training gold, points"].get_xydata()[-1].tolist() == [3.0, -4.0]
    assert "gold, unguarded" not in {str(line.get_label()) for line in below.lines}
    [alone] = guard_reports({"guarded": project / "runs/guarded-0001"}, [])
    assert alone.drawn.unguarded is None
