"""Chat templates of others: rendered as transformers renders them, within limits of time and memory, in a process of their own."""

import json
import os
import re
import resource
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import ModelError, RunawayTemplate
from bridle.core.records import Prompt
from bridle.models import rendering
from bridle.models.encoding import render_answer, render_prompt
from bridle.models.rendering import Renderer, compiled_template
from bridle.models.template import load_template
from tests.models.tiny import one_sentence, template

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
LONG_LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
NESTED = "{% set ns = namespace(x=['a']) %}{% for i in range(12) %}{% set ns.x = [ns.x] * 10 %}{% endfor %}{{ ns.x }}"

EITHER = "256 MiB of memory|1 s of processor time"  # whichever a busy machine comes to first


def variables(*contents: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": content} for content in contents]
    return {"messages": messages, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def narrow() -> Iterator[Renderer]:
    """Limits that are soon reached."""
    renderer = Renderer(seconds=1.0, memory=2**28, characters=1000)
    yield renderer
    renderer.stop()


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        (LONG_LOOP, "1 s of processor time"),
        ("{{ 10 ** (10 ** 9) }}", EITHER),
        (DOUBLING, EITHER),
        ("{{ 'a' * 10 ** 12 }}", "256 MiB of memory"),
        *(
            pytest.param(source, limit, marks=pytest.mark.slow)  # of the kinds above
            for source, limit in (
                (NESTED, EITHER),
                ("{{ '%1000000000000d' | format(1) }}", "256 MiB of memory"),
                ("{{ 'a'.ljust(10 ** 11) }}", "256 MiB of memory"),
                ("{{ messages | tojson(indent=10 ** 11) }}", "256 MiB of memory"),
            )
        ),
        ("{{ 'a' * 1011 }}", "1,010 characters"),
    ],
)
def test_a_template_that_takes_too_much_is_refused_and_the_next_one_is_rendered(
    narrow: Renderer, source: str, limit: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunawayTemplate) as caught:
        narrow.render(source, variables("?"))
    assert one_sentence(str(caught.value))
    assert re.search(f"needs more than ({limit}) to render 1 messages", str(caught.value))
    assert narrow.render(PLAIN, variables("Hi")) == "[user] Hi"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB: none of it was this process's


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(10 ** 9) | join }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{{ '\ud800' }}",
        "{{ 10 ** 5000 }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_a_template_that_fails_in_any_way_is_one_sentence(narrow: Renderer, source: str) -> None:
    with pytest.raises(ModelError, match="the chat template could not render 1 messages") as caught:
        narrow.render(source, variables("?"))
    assert one_sentence(str(caught.value)) and not isinstance(caught.value, RunawayTemplate)


def test_a_text_is_what_the_template_gives_in_this_process(narrow: Renderer) -> None:
    wild = "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}{{ bos_token }}"
    for source in (PLAIN, wild, PLAIN):
        for given in (variables("Hi"), variables("two\nlines", "你好\u2028🙂", "\x00\x1b[2J", "<é>")):
            assert narrow.render(source, given) == compiled_template(source).render(given)


def test_a_long_text_may_be_made_of_a_long_one(narrow: Renderer) -> None:
    assert len(narrow.render("{{ messages[0].content * 9 }}", variables("a" * 100_000))) == 900_000


def test_threads_take_turns_and_a_fork_has_a_child_of_its_own(narrow: Renderer) -> None:
    found: dict[int, set[str]] = {}

    def ask(number: int) -> None:
        found[number] = {narrow.render(PLAIN + str(number % 2), variables(str(number))) for _ in range(20)}

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: {f"[user] {number}{number % 2}"} for number in range(4)}
    child = narrow.running()
    narrow.owner = os.getpid() + 1  # as a fork sees it
    other = narrow.running()
    assert other is not child and narrow.render(PLAIN, variables("Hi")) == "[user] Hi"
    child.kill()
    child.communicate()


def test_an_answer_that_was_not_waited_for_is_not_taken_for_the_next(
    narrow: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.render(PLAIN, variables("one"))
    with monkeypatch.context() as patched:
        patched.setattr(rendering.json, "loads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            narrow.render(PLAIN, variables("two"))
    assert narrow.render(PLAIN, variables("three")) == "[user] three"


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_was_killed_from_outside_is_started_again(narrow: Renderer, ended: signal.Signals) -> None:
    narrow.render(PLAIN, variables("one"))
    child = narrow.running()
    child.send_signal(ended)
    child.wait()
    assert narrow.render(PLAIN, variables("two")) == "[user] two" and narrow.running() is not child


def test_one_that_is_killed_again_and_again_ends_the_work(narrow: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def command(module: str) -> list[str]:
        started.append(module)
        return ["sh", "-c", "kill -9 $$"]

    monkeypatch.setattr(rendering, "python_module", command)
    with pytest.raises(RunawayTemplate, match="ended with status -9"):
        narrow.render(PLAIN, variables("?"))
    assert len(started) == 2


def test_modules_that_lie_in_the_working_folder_are_not_run(
    narrow: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "jinja2", "bridle"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was run')")
    monkeypatch.chdir(tmp_path)
    assert narrow.render(PLAIN, variables("Hi")) == "[user] Hi"


def interrupted(text: str) -> None:
    raise KeyboardInterrupt


def test_what_runs_away_on_some_rows_alone_ends_the_work_and_is_no_fault_of_theirs() -> None:
    """A row would be counted as refused, and the next one cost as much."""
    t = replace(
        template(), source="{% for m in messages %}{% if '!' in m.content %}{{ 'a' * 10 ** 12 }}{% endif %}{% endfor %}"
    )
    assert render_prompt(t, Prompt.from_text("calm")) == ("", None)
    with pytest.raises(RunawayTemplate):
        render_prompt(t, Prompt.from_text("now!"))
    with pytest.raises(RunawayTemplate):
        render_answer(t, Prompt.from_text("calm"), "now!")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("chat_template.jinja", "{{ 'a' * 10 ** 12 }}", "{}: the chat template needs more than 512 MiB"),
        ("chat_template.jinja", "a" * 1_000_001, "has 1,000,001 bytes, and a chat template has 1,000,000 at most"),
        ("chat_template.jinja", b"\xff", "is not UTF-8"),
        ("tokenizer_config.json", {"chat_template": {"a": 1}}, "must hold its chat_template as text"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "must hold its chat_template as text"),
        ("tokenizer_config.json", {"eos_token": {"special": True}}, "must name its eos_token as text"),
        ("tokenizer_config.json", {"pad_token": 3}, "must name its pad_token as text, got 3"),
        ("generation_config.json", {"eos_token_id": -1}, "names the stop token -1"),
        ("generation_config.json", {"eos_token_id": ["one"]}, "names the stop token 'one'"),
        ("generation_config.json", {"eos_token_id": 10**12}, "names the stop token 1000000000000"),
        ("generation_config.json", {"eos_token_id": True}, "names the stop token True"),
    ],
)  # fmt: skip
def test_a_folder_whose_template_or_tokens_are_none_is_refused(
    file: str, text: Any, words: str, tmp_path: Path
) -> None:
    template().save(tmp_path, 96)
    if isinstance(text, dict):
        (tmp_path / "chat_template.jinja").unlink()
        text = json.dumps({**json.loads((tmp_path / file).read_text()), **text})
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError) as caught:
        load_template(tmp_path)
    assert words.format(tmp_path) in str(caught.value) and one_sentence(str(caught.value))
