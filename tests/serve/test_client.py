"""What programs written for OpenAI's API do with it: each by OpenAI's own client, or by plain HTTP where that hides what is sent."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from bridle.core.records import Message, Prompt
from tests.serving_app import HELLO, LONG, SHORT, Server, engine_ids, served


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(max_answers=4) as server:
        yield server


def ask(server: Server, **more: Any) -> Any:
    return server.openai.chat.completions.create(**server.asked(**more))


def complete(server: Server, **more: Any) -> Any:
    asked = {"model": "tiny", "prompt": "My cat", "seed": LONG, "max_tokens": 12, **more}
    return server.openai.completions.create(**asked)


def texts_of(stream: Any, count: int = 1) -> list[str]:
    texts = [""] * count
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts


# -------------------------------------------------------------------------------------------------------- models


def test_models_are_listed_and_found(server: Server) -> None:
    (model,) = server.openai.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "bridle")
    assert server.openai.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


# ---------------------------------------------------------------------------------------------------------- chat


def test_an_answer_is_the_engines(server: Server) -> None:
    reply = ask(server)
    (choice,) = reply.choices
    assert choice.message.content == server.engine_text() and choice.message.role == "assistant"
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion" and reply.model == "tiny"
    assert reply.system_fingerprint == f"{server.model.policy.stamp}-float32" and choice.logprobs is None


def test_why_an_answer_ended(server: Server) -> None:
    assert ask(server, seed=LONG).choices[0].finish_reason == "length"
    short = ask(server, seed=SHORT)
    assert short.choices[0].finish_reason == "stop"
    assert short.usage.completion_tokens == 3  # the token that ended it is not counted


def test_usage_is_the_tokenizers(server: Server) -> None:
    usage = ask(server, max_tokens=5, messages=[{"role": "system", "content": "Be brief."}, *HELLO]).usage
    prompt = Prompt((Message("system", "Be brief."), Message("user", "hello")))
    (ids,) = server.model.policy.template.prompt_ids([prompt])
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(ids), 5, len(ids) + 5)


def test_a_stream_is_the_answer_in_pieces(server: Server) -> None:
    (text,) = texts_of(ask(server, stream=True, max_tokens=60))
    assert text == ask(server, max_tokens=60).choices[0].message.content


def test_what_a_stream_sends(server: Server) -> None:
    *chunks, done = server.events(server.asked(stream_options={"include_usage": True}, max_tokens=6))
    assert done == "[DONE]"
    assert len({(one["id"], one["created"], one["object"], one["system_fingerprint"]) for one in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    *parts, usage = chunks
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    assert all(one["usage"] is None and len(one["choices"]) == 1 for one in parts)
    first, *middle, last = [one["choices"][0] for one in parts]
    assert first["delta"] == {"role": "assistant"} and last["delta"] == {}
    assert last["finish_reason"] == "length" and middle
    assert all(one["finish_reason"] is None and one["delta"].keys() == {"content"} for one in middle)


def test_without_include_usage_no_chunk_speaks_of_it(server: Server) -> None:
    *chunks, _ = server.events(server.asked(max_tokens=3))
    assert all("usage" not in one and one["choices"] for one in chunks)


def test_several_answers(server: Server) -> None:
    reply = ask(server, n=2)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert texts == [server.engine_text(sample=0), server.engine_text(sample=1)]
    assert reply.usage.completion_tokens == 32


def test_several_answers_come_side_by_side(server: Server) -> None:
    *chunks, _ = server.events(server.asked(n=2, max_tokens=30))
    order = [one["choices"][0]["index"] for one in chunks]
    changes = sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert changes > 8, "one answer came after the other"
    texts = texts_of(ask(server, stream=True, n=2, max_tokens=30), 2)
    assert texts == [choice.message.content for choice in ask(server, n=2, max_tokens=30).choices]


def test_logprobs(server: Server) -> None:
    reply = ask(server, logprobs=True, max_tokens=8)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens and all(one.logprob < 0 for one in content)
    whole = b"".join(bytes(one.bytes) for one in content)
    assert whole.decode(errors="replace") == " " + server.engine_text(tokens=8)  # a space that the template leaves out
    assert all(one.top_logprobs == [] for one in content)


def test_top_logprobs_and_those_of_a_stream(server: Server) -> None:
    more = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8}
    content = ask(server, **more).choices[0].logprobs.content
    for one in content:
        falling = [other.logprob for other in one.top_logprobs]
        assert len(falling) == 3 and falling == sorted(falling, reverse=True)
        same = [other.logprob for other in one.top_logprobs if other.bytes == one.bytes]
        assert all(logprob == pytest.approx(one.logprob, abs=1e-4) for logprob in same)
    streamed = [
        one
        for chunk in ask(server, stream=True, **more)
        for c in chunk.choices
        if c.logprobs
        for one in c.logprobs.content
    ]
    assert [one.model_dump() for one in streamed] == [one.model_dump() for one in content]


def test_top_logprobs_are_the_models_own_at_any_temperature(server: Server) -> None:
    """At temperature 0 the distribution that is drawn from knows one token."""
    content = ask(server, logprobs=True, top_logprobs=2, temperature=0, max_tokens=4).choices[0].logprobs.content
    for one in content:
        assert one.logprob < 0 and one.logprob == one.top_logprobs[0].logprob and one.token == one.top_logprobs[0].token


def test_a_stop_string_ends_the_answer_before_it(server: Server) -> None:
    whole = ask(server, max_tokens=60).choices[0].message.content
    for length in (1, 2, 5):  # the longer ones span several tokens
        stop = whole[20 : 20 + length]
        kept = whole[: whole.index(stop)]
        reply = ask(server, max_tokens=60, stop=stop)
        assert reply.choices[0].message.content == kept and reply.choices[0].finish_reason == "stop"
        assert texts_of(ask(server, max_tokens=60, stop=stop, stream=True)) == [kept]


def test_several_stop_strings(server: Server) -> None:
    whole = ask(server, max_tokens=60).choices[0].message.content
    stops = ["not in it", whole[30:33], whole[12:15], whole[50:52]]
    first = min(whole.index(stop) for stop in stops[1:])
    assert ask(server, max_tokens=60, stop=stops).choices[0].message.content == whole[:first]
    assert server.refused(400, **server.asked(stop=[*stops, "a fifth"]))["param"] == "stop"


def test_a_seed_repeats_and_others_differ(server: Server) -> None:
    texts = [ask(server, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]
    free = [ask(server, seed=None).choices[0].message.content for _ in range(2)]
    assert free[0] != free[1]


def test_most_tokens_by_either_name(server: Server) -> None:
    assert ask(server, max_tokens=3).usage.completion_tokens == 3
    both = server.asked(max_completion_tokens=4)
    assert server.openai.chat.completions.create(**both).usage.completion_tokens == 4
    left = server.openai.chat.completions.create(model="tiny", messages=HELLO, seed=LONG).usage  # type: ignore[arg-type]
    assert left.completion_tokens == 96 - left.prompt_tokens  # what the context leaves


def test_temperature_0_is_greedy_and_top_p_narrows(server: Server) -> None:
    greedy = {ask(server, temperature=0, seed=seed).choices[0].message.content for seed in (1, 2)}
    narrow = {ask(server, top_p=1e-9, seed=seed).choices[0].message.content for seed in (1, 2)}
    assert greedy == narrow and len(greedy) == 1
    assert ask(server, temperature=2).choices[0].message.content != ask(server).choices[0].message.content


def test_system_and_developer_are_one_role(server: Server) -> None:
    replies = [
        ask(server, messages=[{"role": role, "content": "Be brief."}, *HELLO]) for role in ("system", "developer")
    ]
    assert replies[0].choices[0].message.content == replies[1].choices[0].message.content
    assert replies[0].usage.prompt_tokens > ask(server).usage.prompt_tokens


def test_text_parts_are_one_text(server: Server) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert ask(server, messages=[{"role": "user", "content": parts}]).choices[0].message.content == server.engine_text()


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": 1, "logit_bias": {}},
        {"temperature": None, "top_p": None, "stop": None, "stream": None, "logprobs": None, "tool_choice": None},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "user": "me", "metadata": {"a": "b"}, "store": False},
    ],
)
def test_what_asks_for_nothing_is_taken(server: Server, more: dict[str, Any]) -> None:
    answer = server.http.post("/v1/chat/completions", json=server.asked(**more))
    assert answer.status_code == 200 and "x-bridle-warning" not in answer.headers
    assert answer.json()["choices"][0]["message"]["content"] == server.engine_text()


def test_unknown_parameters_are_ignored_and_named(server: Server) -> None:
    answer = server.http.post("/v1/chat/completions", json=server.asked(min_p=0.1, **{"é\r\nx: y": 1}))
    assert answer.status_code == 200 and "min_p" in answer.headers["x-bridle-warning"] and "x" not in answer.headers
    nameless = server.http.post("/v1/chat/completions", json=server.asked(**{"": 1}))
    assert nameless.status_code == 200 and '""' in nameless.headers["x-bridle-warning"]


# --------------------------------------------------------------------------------------------- what is refused

IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]}, "messages[0].content[1]"),
    ({"messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[1].tool_calls"),
    ({"n": 5}, "n"),
    ({"n": 0}, "n"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 91}, "max_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"best_of": 2}, "best_of"),
    ({"n": 2, "best_of": 1}, "best_of"),
    ({"stream": "yes"}, "stream"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"modalities": ["text", "audio"], "audio": {"voice": "x"}}, "modalities"),
    ({"model": None}, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=[f"{param}-{n}" for n, (_, param) in enumerate(REFUSED)])
def test_what_cannot_be_had_is_refused_by_name(server: Server, more: dict[str, Any], param: str) -> None:
    error = server.refused(400, **server.asked(**more))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param or (param == "modalities" and error["param"] == "audio")


def test_errors_are_the_clients_own(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not served here; 'tiny' is"):
        ask(server, model="gpt-4o")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, messages=[{"role": "user", "content": "long " * 100}])
    assert caught.value.code == "context_length_exceeded" and "maximum context length is 96 tokens" in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="temperature = 3 is invalid"):
        ask(server, temperature=3)


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (415, {"content-type": "text/plain"}, b"{}"),
        (415, {}, b"{}"),
        (400, {"content-type": "application/json"}, b"{"),
        (400, {"content-type": "application/json"}, b"[]"),
        (400, {"content-type": "application/json"}, b""),
        (400, {"content-type": "application/json"}, b"[" * 100_000),
        (
            400,
            {"content-type": "application/json"},
            b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        ),
        (400, {"content-type": "application/json"}, b'{"model": "tiny", "messages": [], "temperature": NaN}'),
        (400, {"content-type": "application/json"}, b'{"model": "\xff"}'),
        (413, {"content-type": "application/json"}, b" " * (2**20 + 1)),
    ],
)
def test_bodies_that_are_none(server: Server, status: int, headers: dict[str, str], content: bytes) -> None:
    from tests.serving_app import error_of

    error_of(server.http.post("/v1/chat/completions", content=content, headers=headers), status)


def test_addresses_and_methods_that_are_none(server: Server) -> None:
    from tests.serving_app import error_of

    error_of(server.http.get("/v1/embeddings"), 404)
    error_of(server.http.get("/v1/chat/completions"), 405)
    error_of(server.http.get("/"), 404)


# ---------------------------------------------------------------------------------------------------- completions


def test_a_text_is_continued(server: Server) -> None:
    reply, template = complete(server), server.model.policy.template
    ids = template.bos_ids + template.control.encode_text(["My cat"])[0]
    drawn = engine_ids(server.model.policy, ids, LONG, 12)
    assert reply.object == "text_completion" and reply.choices[0].text == template.tokenizer.decode(drawn)
    assert reply.usage.prompt_tokens == len(ids) and reply.id.startswith("cmpl-")
    assert complete(server, prompt=ids).choices[0].text == reply.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in complete(server, stream=True)) == reply.choices[0].text


def test_several_texts(server: Server) -> None:
    reply = complete(server, prompt=["My cat", "The rain"], n=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[2].text == complete(server, prompt="The rain").choices[0].text
    assert reply.choices[1].text != reply.choices[0].text


def test_logprobs_of_the_older_kind(server: Server) -> None:
    reply = complete(server, logprobs=2)
    found = reply.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 12
    assert all(2 <= len(top) <= 3 and token in top for token, top in zip(found.tokens, found.top_logprobs, strict=True))
    assert found.text_offset == sorted(found.text_offset) and found.text_offset[0] == 0


@pytest.mark.parametrize(
    ("more", "param"),
    [({"echo": True}, "echo"), ({"suffix": "end"}, "suffix"), ({"prompt": []}, "prompt"), ({"prompt": [300]}, "prompt"),
     ({"prompt": ["x"] * 17}, "prompt"), ({"prompt": [["x"]]}, "prompt"), ({"prompt": [-1]}, "prompt")],
)  # fmt: skip
def test_what_completions_refuse(server: Server, more: dict[str, Any], param: str) -> None:
    error = server.refused(400, "/v1/completions", **{"model": "tiny", "prompt": "x", **more})
    assert error["param"] == param


# ------------------------------------------------------------------------------------------------------ raw


def test_curl(server: Server) -> None:
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    body = json.dumps(server.asked(stream=True, max_tokens=3))
    sent = subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True).stdout
    assert sent.startswith("data: {") and sent.endswith("\n\ndata: [DONE]\n\n")


def test_health_and_metrics(server: Server) -> None:
    found = server.http.get("/health").json()
    assert found["status"] == "ready" and found["model"] == "tiny" and found["stamp"] == server.model.policy.stamp

    def counted(name: str) -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = (
        'bridle_requests_total{route="/v1/chat/completions",status="200"}',
        "bridle_completion_tokens_total",
        "bridle_first_token_seconds_count",
    )
    before = [counted(name) for name in names]
    ask(server, max_tokens=5)
    assert [counted(name) for name in names] == [before[0] + 1, before[1] + 5, before[2] + 1]
    assert counted("bridle_answers_running") == counted("bridle_answers_waiting") == 0
