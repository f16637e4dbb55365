"""An endpoint that errs, dawdles, talks rubbish, limits the rate and dies: nothing is lost or paid twice, and the key stays where it is."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError, RecipeError, StoreError, UsageError
from bridle.core.records import Prompt
from bridle.recipe.recipe import Recipe, load_recipe
from bridle.recipe.services import JudgeSection
from bridle.rewards.judge.cache import ReplyCache
from bridle.rewards.judge.endpoint import Endpoint, asked_seconds
from bridle.rewards.judge.questions import Question, Rubric
from bridle.rewards.judge.rulings import Reply, read_ruling
from tests.rewards.judge.scripted import Script, Scripted, completion, failed, scripted

KEY = "sk-very-secret-0123456789"


def asked(count: int, form: str = "pairwise") -> list[Question]:
    return [Rubric().question(form, Prompt.from_text(f"Question {n}?"), ["four", "five"]) for n in range(count)]  # type: ignore[arg-type]


@contextmanager
def asking(folder: Path, address: str, **settings: Any) -> Iterator[Endpoint]:
    section = JudgeSection(
        endpoint=address, model="judge-1", **{"retries": 3, "concurrency": 4, "timeout": 5.0, **settings}
    )
    with ReplyCache(folder / "cache.jsonl") as cache:
        yield Endpoint(section, cache, first_wait=0.001)


def kinds(replies: list[Reply]) -> list[str]:
    return [reply.fault or reply.text for reply in replies]


def test_each_question_gets_its_own_reply_whatever_the_order_in_which_they_come(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Scripted:
        text = body["messages"][0]["content"]
        number = int(text.partition("Question ")[2].partition("?")[0])
        time.sleep(0.02 if number % 3 == 0 else 0)
        return completion("AB"[number % 2])

    questions = asked(20)
    with scripted(script) as there, asking(tmp_path, there.address) as endpoint:
        counted: list[int] = []
        assert kinds(endpoint.ask(questions, counted.append)) == ["AB"[n % 2] for n in range(20)]
        assert sum(counted) == 20 and 1 < there.most_at_once <= 4
        sent = there.asked[0]
        assert sent["path"] == "/v1/chat/completions" and sent["model"] == "judge-1" and sent["temperature"] == 0
        assert sent["logprobs"] is True and sent["top_logprobs"] == 20 and sent["max_tokens"] == 8
        assert endpoint.calls == 20 and endpoint.tokens == 20 * 101


def test_probabilities_of_the_verdict_are_read(tmp_path: Path) -> None:
    top = {"A": -0.2231435513142097, " A": -3.0, "B": -2.3, "C": -1.0}
    with scripted(lambda n, body: completion("A", top=top)) as there, asking(tmp_path, there.address) as endpoint:
        (reply,) = endpoint.ask(asked(1))
    assert reply.probabilities == pytest.approx({"A": 0.8 + 0.0497871, "B": 0.1002588}, abs=1e-6)
    assert read_ruling(asked(1)[0], reply).soft


ODD = [{"token": "A", "logprob": "x"}, 3, {"token": "B", "logprob": 9.0}]


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": [{"token": "A"}]},
        {"content": "x"},
        [1],
        {"content": [{"token": "A", "top_logprobs": ODD}]},
    ],
)
def test_logprobs_that_are_none_leave_the_verdict(tmp_path: Path, logprobs: Any) -> None:
    choice = {"message": {"content": "A"}, "finish_reason": "stop", "logprobs": logprobs}
    content = json.dumps({"choices": [choice]}).encode()
    with scripted(lambda n, body: (200, {}, content)) as there, asking(tmp_path, there.address) as endpoint:
        (reply,) = endpoint.ask(asked(1))
    ruling = read_ruling(asked(1)[0], reply)
    assert ruling.scores == (1.0, 0.0) and not ruling.soft


@pytest.mark.parametrize("bad", [failed(500), failed(429), failed(503), failed(408), (200, {}, b"<html>no</html>"), (200, {}, b"{}"),
                                 (200, {}, b'{"choices": []}'), (200, {}, b"\xff\xfe"), (0, {}, b"")])  # fmt: skip
def test_what_may_help_is_tried_again(tmp_path: Path, bad: Scripted) -> None:
    with (
        scripted(lambda n, body: bad if n < 2 else completion("A")) as there,
        asking(tmp_path, there.address) as endpoint,
    ):
        assert kinds(endpoint.ask(asked(1))) == ["A"]
        assert len(there.asked) == 3 == endpoint.calls
        assert len({headers["idempotency-key"] for headers in there.headers}) == 1


def test_what_fails_to_the_end_is_an_endpoint_error_and_is_not_kept(tmp_path: Path) -> None:
    with scripted(lambda n, body: failed(500)) as there, asking(tmp_path, there.address, retries=1) as endpoint:
        assert kinds(endpoint.ask(asked(2))) == ["endpoint_error"] * 2
        assert len(there.asked) == 4 and not endpoint.cache.known


def test_one_call_that_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    with scripted(lambda n, body: failed(400, "too long")) as there, asking(tmp_path, there.address) as endpoint:
        (reply,) = endpoint.ask(asked(1))
        assert reply.fault == "endpoint_error" and "too long" in reply.text and len(there.asked) == 1


def test_an_endpoint_that_is_dead_is_not_asked_for_ever(tmp_path: Path) -> None:
    with scripted(lambda n, body: (0, {}, b"")) as there, asking(tmp_path, there.address, retries=0) as endpoint:
        with pytest.raises(
            StoreError, match="failed on 16 questions in a row, the last time with .*; what it answered is kept in"
        ):
            endpoint.ask(asked(60))
        assert len(there.asked) < 30


def test_a_slow_call_is_given_up_and_its_neighbours_are_not(tmp_path: Path) -> None:
    release = threading.Event()

    def script(number: int, body: dict[str, Any]) -> Scripted:
        if "Question 1?" in body["messages"][0]["content"]:
            release.wait(5)
        return completion("A")

    with scripted(script) as there, asking(tmp_path, there.address, retries=0, timeout=1.0) as endpoint:
        assert kinds(endpoint.ask(asked(4))) == ["A", "endpoint_error", "A", "A"]
        release.set()


def test_a_rate_limit_is_waited_for_by_all(tmp_path: Path) -> None:
    at: list[float] = []

    def script(number: int, body: dict[str, Any]) -> Scripted:
        at.append(time.monotonic())
        return failed(429, retry_after="0.3") if number == 0 else completion("A")

    with scripted(script) as there, asking(tmp_path, there.address, concurrency=1) as endpoint:
        assert kinds(endpoint.ask(asked(3))) == ["A"] * 3
    assert at[1] - at[0] >= 0.3


def test_a_retry_after_may_be_a_date() -> None:
    assert (
        asked_seconds("3") == 3
        and asked_seconds("-1") == 0
        and asked_seconds("soon") == 0
        and asked_seconds("nan") == 0
    )
    assert asked_seconds("99999") == 600
    assert asked_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_after_a_death_half_way_nothing_is_paid_twice(tmp_path: Path) -> None:
    answered: list[str] = []

    def script(number: int, body: dict[str, Any]) -> Scripted:
        if number >= 30:
            return 0, {}, b""
        answered.append(body["messages"][0]["content"])
        return completion("A")

    questions = asked(60)
    with scripted(script) as there, asking(tmp_path, there.address, retries=0) as endpoint:
        with pytest.raises(StoreError):
            endpoint.ask(questions)
        first = there.address

    def again(number: int, body: dict[str, Any]) -> Scripted:
        answered.append(body["messages"][0]["content"])
        return completion("A")

    with scripted(again) as there, asking(tmp_path, first) as endpoint:
        assert kinds(ask_at(endpoint, there.address, questions)) == ["A"] * 60
        assert endpoint.calls == 30
    assert len(answered) == len(set(answered)) == 60


def ask_at(endpoint: Endpoint, address: str, questions: list[Question]) -> list[Reply]:
    """Ask at another port, as one endpoint would be that was started again, whose replies are known by the old one."""
    keys = {question.messages: endpoint.key_of(question) for question in questions}
    endpoint.url = f"{address}/chat/completions"
    endpoint.key_of = lambda question: keys[question.messages]  # type: ignore[method-assign]
    return endpoint.ask(questions)


def test_a_torn_and_a_damaged_line_cost_one_call_each(tmp_path: Path) -> None:
    questions = asked(4)
    with scripted(lambda n, body: completion("A")) as there:
        with asking(tmp_path, there.address, concurrency=1) as endpoint:
            endpoint.ask(questions)
        path = tmp_path / "cache.jsonl"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + b'{"key": 3}\n\xff\xfe\n' + lines[2] + lines[3][:20])
        path.chmod(0o644)
        with asking(tmp_path, there.address) as endpoint:
            assert endpoint.cache.damaged == 3 and len(endpoint.cache.known) == 2
            assert kinds(endpoint.ask(questions)) == ["A"] * 4
            assert endpoint.calls == 2 and stat.S_IMODE(path.stat().st_mode) == 0o600
        with asking(tmp_path, there.address) as endpoint:
            assert not [reply for reply in endpoint.ask(questions) if reply.paid] and endpoint.calls == 0


def test_all_that_matters_is_in_the_caches_key(tmp_path: Path) -> None:
    (question,) = asked(1)
    keys = set()
    for changed in (
        {},
        {"model": "judge-2"},
        {"temperature": 0.5},
        {"logprobs": False},
        {"body": {"seed": 1}},
        {"endpoint": "http://127.0.0.1:2/v1"},
    ):
        section = JudgeSection(**{"endpoint": "http://127.0.0.1:1/v1", "model": "judge-1", **changed})
        with ReplyCache(tmp_path / "cache.jsonl") as cache:
            keys.add(Endpoint(section, cache).key_of(question))
            keys.add(
                Endpoint(section, cache).key_of(
                    Rubric(text="other").question("pairwise", Prompt.from_text("Question 0?"), ["four", "five"])
                )
            )
    assert len(keys) == 12


def test_equal_questions_are_paid_for_once(tmp_path: Path) -> None:
    with scripted(lambda n, body: completion("A")) as there, asking(tmp_path, there.address) as endpoint:
        counted: list[int] = []
        assert kinds(endpoint.ask([*asked(3), *asked(3)], counted.append)) == ["A"] * 6
        assert len(there.asked) == 3 and sum(counted) == 6


@pytest.mark.parametrize("budget", [{"max_calls": 5}, {"max_total_tokens": 1200}])
def test_a_budget_is_never_exceeded(tmp_path: Path, budget: dict[str, int]) -> None:
    with scripted(lambda n, body: completion("A")) as there, asking(tmp_path, there.address, **budget) as endpoint:
        replies = kinds(endpoint.ask(asked(20)))
        assert 3 < len(there.asked) == endpoint.calls <= budget.get("max_calls", 12)
        assert replies.count("over_budget") == 20 - len(there.asked)
        assert endpoint.tokens == 101 * endpoint.calls <= budget.get("max_total_tokens", 10**6)


def test_an_estimate_counts_what_is_not_known_yet(tmp_path: Path) -> None:
    prices = {"price_read": 1e6, "price_written": 2e6, "expected_seconds": 3.0, "concurrency": 4}
    with scripted(lambda n, body: completion("A")) as there, asking(tmp_path, there.address, **prices) as endpoint:
        endpoint.ask(asked(2))
        found = endpoint.estimate(asked(10))
    assert found.calls == 8 and found.tokens_written == 64 and found.seconds == 6.0
    assert found.cost == found.tokens_read + 2 * 64 and 8 * 100 < found.tokens_read < 8 * 400


# ---------------------------------------------------------------------------------------------------------- the key


def test_the_key_goes_to_the_endpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    elsewhere: list[Any] = []
    with scripted(lambda n, body: elsewhere.append(n) or completion("A")) as other:  # type: ignore[func-returns-value]
        redirect = (307, {"location": f"{other.address}/chat/completions"}, b"")
        with (
            scripted(lambda n, body: redirect) as there,
            asking(tmp_path, there.address, key_from="JUDGE_KEY") as endpoint,
        ):
            with pytest.raises(DataError, match="redirects elsewhere, where the key is not sent"):
                endpoint.ask(asked(1))
            assert there.headers[0]["authorization"] == f"Bearer {KEY}"
        assert not elsewhere


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_ends_the_run_at_once_and_is_said_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    script: Script = lambda n, body: failed(status, f"the key {KEY} is wrong")  # noqa: E731
    with scripted(script) as there, asking(tmp_path, there.address, key_from="JUDGE_KEY", concurrency=2) as endpoint:
        with pytest.raises(DataError) as error:
            endpoint.ask(asked(50))
        assert KEY not in str(error.value) and "$JUDGE_KEY holds a key that it takes" in str(error.value)
        assert len(there.asked) <= 2  # one under way for each of the two that ask at once
    assert KEY not in (tmp_path / "cache.jsonl").read_text()


def test_a_wrong_address_or_model_ends_the_run(tmp_path: Path) -> None:
    with scripted(lambda n, body: failed(404, "no such model")) as there, asking(tmp_path, there.address) as endpoint:
        with pytest.raises(DataError, match="no such model; see judge.endpoint and judge.model = 'judge-1'"):
            endpoint.ask(asked(1))


def test_the_cache_holds_neither_key_nor_material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with (
        scripted(lambda n, body: completion("A")) as there,
        asking(tmp_path, there.address, key_from="JUDGE_KEY") as endpoint,
    ):
        endpoint.ask(asked(2))
    kept = (tmp_path / "cache.jsonl").read_text()
    assert KEY not in kept and "Question" not in kept and len(kept.splitlines()) == 2


@pytest.mark.parametrize("value", [None, "", "two\nlines", "schlüssel"])
def test_a_key_that_is_none_is_refused_without_being_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with (
        pytest.raises(UsageError, match="JUDGE_KEY") as error,
        asking(tmp_path, "http://127.0.0.1:1", key_from="JUDGE_KEY"),
    ):
        pass
    assert not value or value not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [f'key_from = "{KEY}"', f'endpoint = "https://user:{KEY}@example.org/v1"', f'endpoint = "https://example.org/v1?key={KEY}"',
     f'api_key = "{KEY}"', f'body = {{api_key = "{KEY}"}}'],
)  # fmt: skip
def test_a_recipe_that_holds_a_key_is_refused_without_repeating_it(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "bridle.toml"
    path.write_text(f'[judge]\nmodel = "judge-1"\n{setting}\n')
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert KEY not in str(error.value)


def test_settings_that_do_not_go_together_are_refused() -> None:
    recipe = Recipe()
    for wrong, why in (
        ({"judge.endpoint": "http://127.0.0.1/v1"}, "needs the model's name"),
        ({"judge.key_from": "KEY"}, "none is named"),
        ({"judge.body": {"messages": []}}, "cannot have 'messages'"),
        ({"judge.body": {"max_completion_tokens": "many"}}, "must be a whole number"),
        ({"judge.endpoint": "ftp://x", "judge.model": "m"}, "http or https"),
    ):
        with pytest.raises(RecipeError, match=why):
            recipe.with_settings(wrong)
