"""Parts of the work: they add up, one within another, whatever happens inside, and cost next to nothing."""

import threading
import timeit
from collections.abc import Iterator
from time import sleep

import pytest

from bridle.core import timeline
from bridle.core.timeline import Event, added, hand_in, note_tokens, own_seconds, record, stage, timed, workers_added

MICROSECONDS = 2.0  # a mark takes .6 on the machine of docs/profile.md; others may be slower


@pytest.fixture(autouse=True)
def no_recording() -> Iterator[None]:
    yield
    timeline.stop()


def test_parts_add_up_one_within_another() -> None:
    with stage("ppo") as node:
        for _ in range(3):
            with timed("improve"):
                with timed("forward"):
                    sleep(0.002)
                with timed("forward"):
                    pass
        with timed("answer"):
            sleep(0.001)
    parts = node.parts()
    assert {path: told["calls"] for path, told in parts.items()} == {"improve": 3, "improve/forward": 6, "answer": 1}
    assert 0.006 <= parts["improve/forward"]["seconds"] <= parts["improve"]["seconds"]
    assert parts["improve"]["seconds"] + parts["answer"]["seconds"] <= node.nanoseconds / 1e9 + 1e-5


def test_a_part_ends_with_an_error_and_a_function_may_be_one() -> None:
    @timed("score")
    def score(answers: int) -> int:
        if answers < 0:
            raise ValueError
        return 1 if answers == 0 else score(answers - 1)

    with stage("ppo") as node:
        assert score(2) == 1
        with pytest.raises(ValueError), timed("answer"):
            score(-1)
        with timed("log"):
            pass
    calls = {path: told["calls"] for path, told in node.parts().items()}
    assert calls == {"score": 1, "score/score": 1, "score/score/score": 1, "answer": 1, "answer/score": 1, "log": 1}


def test_a_run_keeps_its_own_parts_alone() -> None:
    for _ in range(2):
        with timed("load"), stage("sft") as node, timed("forward"):
            pass
        assert node.parts()["forward"]["calls"] == 1 and list(node.parts()) == ["forward"]


def test_threads_do_not_mix() -> None:
    inside = threading.Event()

    def other() -> None:
        with timed("theirs"):
            inside.wait(5)

    thread = threading.Thread(target=other)
    with stage("ours") as node:
        thread.start()
        with timed("forward"):
            inside.set()
            thread.join()
    assert list(node.parts()) == ["forward"]


def test_tokens_are_those_of_the_part_that_is_under_way() -> None:
    with stage("ppo") as node, timed("improve"):
        for _ in range(2):
            with timed("forward"):
                note_tokens(30)
    parts = node.parts()
    assert parts["improve/forward"]["tokens"] == 60 and "tokens" not in parts["improve"]
    assert added(parts, parts)["improve/forward"]["tokens"] == 120
    assert added({"answer": {"seconds": 1.0, "calls": 1}}, {"answer": {"seconds": 2.0, "calls": 1, "tokens": 5}}) == {
        "answer": {"seconds": 3.0, "calls": 2, "tokens": 5}
    }


def test_what_others_did_is_handed_in_to_the_stage() -> None:
    with stage("rollout") as theirs, timed("answer"):
        note_tokens(7)
    with stage("ppo") as node, timed("answer"):
        for _ in range(2):
            hand_in("worker 1", theirs.parts())
    assert list(node.workers) == ["worker 1"] and node.workers["worker 1"]["answer"]["tokens"] == 14
    assert "tokens" not in node.parts()["answer"], "they are not this process's"


def test_sessions_of_one_worker_add_up() -> None:
    one = {"rank 0": {"seconds": 1.0, "parts": {"wait": {"seconds": 0.5, "calls": 1}}}}
    both = workers_added(one, {**one, "rank 1": {"seconds": 2.0, "parts": {}}})
    assert both["rank 0"] == {"seconds": 2.0, "parts": {"wait": {"seconds": 1.0, "calls": 2}}}
    assert both["rank 1"]["seconds"] == 2.0 and one["rank 0"]["seconds"] == 1.0


def test_without_a_recording_a_mark_keeps_nothing() -> None:
    with timed("forward"):
        pass
    assert timeline.recording() is None and timeline.stop() is None


@pytest.mark.slow  # a busy machine makes it dear
def test_without_a_recording_a_mark_costs_next_to_nothing() -> None:
    def marked() -> None:
        with timed("forward"):
            pass

    best = min(timeit.repeat(marked, number=10_000, repeat=7)) / 10_000
    assert best < MICROSECONDS / 1e6, f"a mark took {1e6 * best:.2f} µs"


def test_a_recording_holds_every_mark() -> None:
    with timed("before"):
        pass
    recording = record("a test")
    with timed("import"), stage("ppo"), timed("improve"), timed("forward"):
        pass
    assert timeline.stop() is recording
    with timed("after"):
        pass
    kinds = [(e.kind, e.name, e.stage, e.part) for e in recording.events]
    assert kinds == [
        ("part", "forward", "ppo", "improve/forward"),
        ("part", "improve", "ppo", "improve"),
        ("stage", "ppo", "ppo", ""),
        ("part", "import", "", "import"),
    ]
    for inner, outer in zip(recording.events, recording.events[1:], strict=False):
        assert outer.start <= inner.start <= inner.end <= outer.end
    assert len({event.track for event in recording.events}) == 1


def test_a_long_recording_adds_up_what_it_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST_EVENTS", 4)
    recording = record("a test")
    with stage("sft") as node:
        for _ in range(10):
            with timed("forward"):
                pass
    assert [event.kind for event in recording.events] == ["part"] * 4 + ["stage"]
    kept = sum(event.end - event.start for event in recording.events[:4])
    ((key, (beyond, calls)),) = recording.beyond.items()
    assert key == ("sft", "forward") and calls == 6
    assert node.children["forward"].nanoseconds == kept + beyond


def test_a_recording_waits_for_the_device_at_the_edges_of_parts() -> None:
    waits: list[Event | None] = []
    recording = record("a test")
    recording.settle = lambda: waits.append(recording.events[-1] if recording.events else None)
    with timed("forward"):
        pass
    assert waits == [None, None] and len(recording.events) == 1  # before it began, before it ended


def test_two_sittings_add_up() -> None:
    first = {"answer": {"seconds": 1.5, "calls": 3}, "score": {"seconds": 1.0, "calls": 3}}
    second = {"answer": {"seconds": 0.5, "calls": 1}, "save": {"seconds": 0.25, "calls": 1}}
    assert added(first, second) == {
        "answer": {"seconds": 2.0, "calls": 4}, "score": {"seconds": 1.0, "calls": 3}, "save": {"seconds": 0.25, "calls": 1},
    }  # fmt: skip
    assert first["answer"] == {"seconds": 1.5, "calls": 3}


def test_own_seconds_are_those_of_no_part_inside() -> None:
    parts = {
        "improve": 10.0, "improve/forward": 3.0, "improve/backward": 5.0, "improve/backward/save": 1.0, "forward": 2.0,
    }  # fmt: skip
    own = own_seconds({path: {"seconds": seconds, "calls": 1} for path, seconds in parts.items()})
    assert own == {"improve": 2.0, "forward": 5.0, "backward": 4.0, "save": 1.0}
