"""Turns of the wheel on a tiny playground, by the command line: each step is kept, done once, and taken up where it was ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridle.core.records import Completion, FinishReason, Prompt
from bridle.feedback.serving.answers import Choice, keep_answer
from bridle.feedback.serving.comparisons import Ballot, keep_pair, vote
from bridle.feedback.serving.consent import add_user, consent_text, publish_consent, set_consent
from bridle.feedback.serving.promotion import Served, promote, promotion_steps, served_now
from bridle.feedback.serving.turns import steps_taken
from bridle.feedback.store.store import Store
from bridle.feedback.store.versions import model_versions
from bridle.loop import turn as stage
from bridle.loop.votes import live_votes
from bridle.report import tables
from bridle.stages import evaluate
from tests.tiny_project import bridle, complaint, done, settings

FEW = {"loop.comparisons": 12, "loop.votes": 4, "loop.audit": 8, "loop.judgements": 5, "ppo.steps": 2}
LOOSE = {"guard.audits": "off", "loop.max_rise": 1.0, "loop.max_length_ratio": 100.0, "loop.min_distinct_share": 0.0}
STEPS = ["watch", "collect", "refresh", "train", "gate", "promote"]


@pytest.fixture
def project(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "project"))


@pytest.fixture
def store(project: Path) -> Any:
    with Store.open(project / "store.sqlite") as store:
        yield store


def turned(project: Path, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("loop", "--project", project, "--json", *settings({**FEW, **more})))
    return found


def users_vote(store: Store, new: str, old: str, prefers: Callable[[int], str], count: int) -> None:
    """Users compare an answer of one version with one of another, as the server keeps it."""
    text = publish_consent(store, {"en": "May we keep it?"}) and consent_text(store)
    assert text is not None
    for number in range(count):
        user = add_user(store, f"a token of user number {number:04d}")
        set_consent(store, user, "agreed", text=text.sha256)
        prompt = Prompt.from_text(f"What about {number}?")
        stamps = [new, old] if number % 2 else [old, new]
        sides = []
        for side, which in enumerate(stamps):
            answer = Completion(
                prompt.id, f"answer {number} {which[:4]}", (), (), FinishReason.STOP, f"{which[:16]}+0", {}
            )
            sides.append(keep_answer(store, user, prompt, answer, Choice("current", 0.5, side)))
        first, second = sides
        assert first is not None and second is not None
        pair = keep_pair(store, user, first.id, second.id)
        assert pair is not None
        pick = "first" if stamps[0] == prefers(number) else "second"
        vote(store, user, pair.id, Ballot(pick, key=f"k{number}"))


def served(store: Store) -> Served:
    return served_now(store)


def test_a_turn_does_every_step_once_and_says_why(project: Path, store: Store) -> None:
    found = bridle("loop", "--project", project)
    assert found.exit_code == 2 and "`bridle models promote sft` begins" in complaint(found)
    done("models", "promote", "sft", "--project", project)
    first = turned(project)
    assert first["turn"] == 1 and list(first["steps"]) == STEPS
    assert all(step["decision"] for step in first["steps"].values())
    verdict = first["steps"]["gate"]["verdict"]
    assert verdict["n"] <= 12 and set(first["steps"]["gate"]["bounds"]) == {
        "kl", "length_ratio", "distinct_share", "cut_off_rise", "refusals_rise", "repeats_rise",
    }  # fmt: skip
    assert [step for _, step, _ in steps_taken(store)] == STEPS
    done("report", "--project", project)
    page = (project / "report.html").read_text()
    assert (
        "Turns of the flywheel" in page
        and "What was served" in page
        and tables.decision_in(first["steps"], verdict) in page
    )
    second = turned(project)
    assert second["turn"] == 2 and second["steps"]["train"]["name"] == "turn-0002"
    assert second["steps"]["gate"].get("candidates", 2) == 2


@pytest.mark.parametrize("ended_after", STEPS[:-1])
def test_a_turn_that_was_ended_goes_on_behind_what_was_done(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch, ended_after: str
) -> None:
    """Ended in the step after this one; what it did before it was ended is done again, or was done once."""
    done("models", "promote", "sft", "--project", project)
    tried: list[str] = []
    fakes: dict[str, Mapping[str, Any]] = {
        "watch": {}, "collect": {"judgements": 0, "stale": False}, "refresh": {}, "train": {}, "gate": {"passed": False}, "promote": {},
    }  # fmt: skip
    functions = dict(
        zip(STEPS, ("watch", "collect", "refresh", "train_candidate", "pass_gate", "promote_proven"), strict=True)
    )
    for name, function in functions.items():
        monkeypatch.setattr(
            stage, function, lambda *_, name=name: tried.append(name) or {**fakes[name], "decision": "done"}
        )
    failing = STEPS[STEPS.index(ended_after) + 1]

    def killed(*_: Any) -> Mapping[str, Any]:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(stage, functions[failing], killed)
        assert bridle("loop", "--project", project).exit_code == 1
    assert tried == STEPS[: STEPS.index(failing)]
    found = turned(project)
    assert tried == STEPS and found["turn"] == 1 and list(found["steps"]) == STEPS


def test_users_alarm_calls_an_audit_and_the_audit_decides(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sft", "unbridled"):
        done("models", "promote", name, "--project", project)
    new, old = served(store).content or "", served(store).before[-1]
    monkeypatch.setattr(stage, "collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # the watch alone
    users_vote(store, new, old, lambda number: old, 16)
    assert live_votes(store, new, old) == [0.0] * 16 and live_votes(store, old, new) == [1.0] * 16
    asked: list[int] = []
    monkeypatch.setattr(stage, "decided_by", lambda *_: lambda pairs: asked.append(len(pairs)) or [0.0] * len(pairs))
    bridle("loop", "--project", project, *settings(FEW))
    assert served(store) == Served(old) and asked
    last = promotion_steps(store)[-1]
    assert last.action == "roll_back" and last.content == new and "audit" in last.details["why"] and last.by == "loop"


def test_users_alone_roll_nothing_back(project: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They dislike what the audit likes."""
    for name in ("sft", "ppo"):
        done("models", "promote", name, "--project", project)
    now = served(store)
    users_vote(store, now.content or "", now.before[-1], lambda number: now.before[-1], 16)
    monkeypatch.setattr(stage, "collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(stage, "decided_by", lambda *_: lambda pairs: [1.0] * len(pairs))
    bridle("loop", "--project", project, *settings(FEW))
    assert served(store) == now
    boards = json.loads(done("models", "leaderboard", "--json", "--project", project))
    by_users, by_others = boards["users"], boards["those who decide"]
    assert by_users["sources"] == {"users' votes": 16} and by_users["prompts"] == 16
    assert [row["name"] for row in by_users["ranked"]] == ["sft", "ppo"] and by_users["reference"] == "ppo"
    assert [row["name"] for row in by_others["ranked"]] == ["ppo", "sft"] and set(by_others["sources"]) == {"audits"}
    done("report", "--project", project)
    page = (project / "report.html").read_text()
    assert "Leaderboard of versions, by users" in page and "Leaderboard of versions, by those who decide" in page


def test_what_the_gate_let_through_may_be_promoted_by_hand(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("models", "promote", "sft", "--project", project)
    ppo = next(one.hash for one in model_versions(store) if one.name == "ppo")
    promote(store, ppo, by="loop", share=0.1)
    done("models", "promote", "ppo", "--project", project)
    now = served(store)
    users_vote(store, ppo, now.before[-1], lambda number: ppo, 6)
    monkeypatch.setattr(stage, "collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    bridle("loop", "--project", project, *settings({**FEW, "loop.max_kl": 1e-9}))
    assert served(store) == now
    assert steps_taken(store)[0][2]["decision"].startswith("no alarm")


@pytest.mark.parametrize(("votes", "decides", "stays"), [(3, 0.0, True), (6, 0.0, False), (6, 1.0, True)])
def test_what_no_gate_let_through_is_held_to_its_bounds(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch, votes: int, decides: float, stays: bool
) -> None:
    """Users like it. Once enough of them have compared, what breaks the bounds is looked at by those who decide."""
    for name in ("sft", "ppo"):
        done("models", "promote", name, "--project", project)
    now = served(store)
    users_vote(store, now.content or "", now.before[-1], lambda number: now.content or "", votes)
    monkeypatch.setattr(stage, "collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(stage, "decided_by", lambda *_: lambda pairs: [decides] * len(pairs))
    bridle("loop", "--project", project, *settings({**FEW, "loop.max_kl": 1e-9}))
    assert (served(store) == now) == stays
    decision = next(found["decision"] for _, step, found in steps_taken(store) if step == "watch")
    assert ("out of the gate's bounds (kl " in decision) == (votes == 6), decision
    assert decision.startswith(
        "rolled back: promoted by owner" if not stays else ("kept" if votes == 6 else "no alarm")
    )


def test_a_candidate_that_users_meet_is_waited_for_and_then_served_to_all(project: Path, store: Store) -> None:
    done("models", "promote", "sft", "--project", project)
    done("models", "promote", "ppo", "--share", "0.2", "--project", project)
    found = bridle("loop", "--project", project, *settings(FEW))
    assert found.exit_code == 3 and "0 of 4 users' comparisons" in complaint(found)
    now = served(store)
    users_vote(
        store,
        now.candidate or "",
        now.content or "",
        lambda number: (now.candidate or "") if number % 2 else (now.content or ""),
        4,
    )
    turned(project)
    assert served(store).content == now.candidate or served(store).before[-1] == now.candidate
    why = next(step.details["why"] for step in promotion_steps(store) if step.by == "loop")
    assert "no alarm among users" in why


def test_what_passes_the_gate_is_served_to_a_share_first(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("models", "promote", "sft", "--project", project)
    monkeypatch.setattr(stage, "decided_by", lambda *_: lambda pairs: [1.0] * len(pairs))
    rows = [{"prompt": f"Say {number}.", "answer_pattern": ".*"} for number in range(6)]
    (project / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(evaluate, "passed_by", lambda checks, _: np.ones((len(checks), 2), dtype=bool))
    found = turned(project, **LOOSE, **{"loop.suite": "suite.jsonl", "loop.suite_answers": 2})
    assert found["steps"]["gate"]["suite"]["worse"] == []
    assert found["steps"]["gate"]["passed"] and found["served"]["share"] == 0.1
    assert served(store).candidate == found["steps"]["train"]["model"]
    strict = {**LOOSE, "loop.max_kl": 1e-9}
    done("models", "rollback", "--project", project)
    found = turned(project, **strict)
    assert not found["steps"]["gate"]["passed"] and "kl" in found["steps"]["gate"]["decision"]
    assert served(store).candidate is None


def test_what_fails_the_suite_is_refused_before_anybody_is_asked(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("models", "promote", "sft", "--project", project)
    rows = [{"name": f"check {number}", "prompt": f"Say {number}.", "answer_pattern": ".*"} for number in range(6)]
    suite = {**LOOSE, "loop.suite": "suite.jsonl", "loop.suite_answers": 2, "loop.suite_problems": 4}
    (project / "suite.jsonl").write_text(json.dumps(rows[0]) + "\n{\n")
    found = bridle("loop", "--project", project, *settings({**FEW, **suite}))
    assert "line 2 of the suite" in complaint(found) and not steps_taken(store), "nothing is trained for a bad suite"
    (project / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = iter([2 * [False], 2 * [True]])  # the candidate's answers to each check, then those of what is served
    monkeypatch.setattr(evaluate, "passed_by", lambda checks, _: np.array([next(turns)] * len(checks)))
    monkeypatch.setattr(stage, "decided_by", lambda *_: lambda pairs: pytest.fail("it is refused already"))
    gate = turned(project, **suite)["steps"]["gate"]
    assert not gate["passed"] and served(store).candidate is None
    assert (
        gate["verdict"]["decision"] == "out_of_bounds" and gate["suite"]["checks"] == 10 and gate["suite"]["lost"] == 10
    )
    assert [(one["served"], one["candidate"]) for one in gate["suite"]["worse"]] == [(2, 0)] * 10
    assert "suite_low -1" in gate["decision"] and gate["suite"]["worse"][0]["name"] in gate["decision"]
    done("report", "--project", project)
    assert "What got worse on the suite" in (project / "report.html").read_text()
    assert "(2 -> 0 of 2), and 7 more" in gate["decision"] and len(gate["suite"]["version"]) == 64


def test_simulated_users_come_before_a_turn_and_their_votes_are_learnt_from(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sft", "ppo"):
        done("models", "promote", name, "--project", project)
    more = settings({**FEW, "data.sources": ["study", "serving"]})
    found = json.loads(done("loop", "--crowd", "30", "--project", project, "--json", *more))
    votes = [judgement for _, judgement in store.judgements(study="serving")]
    assert 10 < len(votes) <= 30 and all(one.source == "serving" for one in votes)
    now = found["steps"]["watch"]
    assert 0 < now["votes"]["n"] < len(votes), "half of the turns compare two answers of one version"
    assert found["steps"]["collect"]["drawn"] > 0
    again = store.counts()["items"]["serving"]
    monkeypatch.setattr(
        stage, "collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )  # users and the watch alone
    assert bridle("loop", "--crowd", "30", "--project", project, *more).exit_code == 130
    assert store.counts()["items"]["serving"] > again, "the next turn brings other questions"


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("kto", {"kto.reference": "sft"}),  # the loop's own stands above it
        pytest.param("orpo", {}, marks=pytest.mark.slow),
        pytest.param("dpo", {}, marks=pytest.mark.slow),
        pytest.param("dpo", {"dpo.loss": "simpo", "dpo.beta": 2.0}, marks=pytest.mark.slow),
        pytest.param("dpo", {"dpo.online_rounds": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_candidate_learns_from_what_was_said_of_answers(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch, method: str, more: dict[str, Any]
) -> None:
    """Users' comparisons among it, from what is served on; without a reward model, but where a reward ranks fresh answers."""
    for name in ("sft", "ppo"):
        done("models", "promote", name, "--project", project)
    now, online = served(store), "dpo.online_rounds" in more
    users_vote(store, now.content or "", now.before[-1], lambda number: now.content or "", 8)
    if not online:
        shutil.rmtree(project / "models/reward")
    monkeypatch.setattr(stage, "pass_gate", lambda *_: {"passed": False, "decision": "nobody is asked here"})
    few = {
        "loop.method": method,
        "loop.judgements": 10**6,
        "data.sources": ["study", "serving"],
        f"{method}.observe_every": 0,
    }
    steps = turned(project, **few, **more)["steps"]
    assert ("without a reward model" in steps["collect"]["decision"]) == (not online)
    assert online or not (project / "models/reward").exists()
    made = next(one for one in model_versions(store) if one.name == "turn-0001")
    assert made.kind == method and made.parent == now.content and steps["train"]["from"] == "ppo"
    noted = json.loads((project / "runs/turn-0001-0001/parents.json").read_text())
    assert noted["start"] == now.content and noted["folders"] == {"start": "models/ppo", "reference": "models/ppo"}
    held_to = (project / "references").glob(f"{now.content}*")
    assert any(held_to)
    if not online:
        sources = {one.source for _, one in store.snapshot_judgements(made.snapshots[""])}
        assert sources == {"study", "serving"}


def test_what_trains_no_policy_is_no_method_of_the_loop(project: Path) -> None:
    told = complaint(bridle("loop", "--project", project, "--set", "loop.method=sft"))
    assert "loop.method = 'sft' is invalid" in told and "'kto' or 'orpo'" in told
