"""What OpenAI's own Python client does with it: every test but the last is one check, made by that client alone.

The last counts them: docs/serving.md tells how many there are.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from bridle.core.records import Message, Prompt
from bridle.feedback.store.store import Store
from bridle.serve.gate import Keys
from tests.house.source import ROOT
from tests.serving_app import HELLO, LONG, SHORT, Paused, Server, break_later, engine_ids, served, until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(max_answers=4) as server:
        yield server


def ask(server: Server, **more: Any) -> Any:
    return server.openai.chat.completions.create(**server.asked(**more))


def answer_to(server: Server, **more: Any) -> str:
    return str(ask(server, **more).choices[0].message.content)


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


def test_models_are_listed(server: Server) -> None:
    (model,) = server.openai.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "bridle") and model.created > 0


def test_a_model_is_found_by_its_name(server: Server) -> None:
    assert server.openai.models.retrieve("tiny") == server.openai.models.list().data[0]


def test_a_model_that_is_not_there_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


# ------------------------------------------------------------------------------------------------- whole answers


def test_an_answer_is_the_engines(server: Server) -> None:
    reply = ask(server)
    (choice,) = reply.choices
    assert choice.message.content == server.engine_text() and choice.message.role == "assistant"
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion" and reply.model == "tiny"
    assert choice.logprobs is None and choice.message.refusal is None


def test_the_fingerprint_says_which_weights_answer_and_in_which_precision(server: Server) -> None:
    assert ask(server).system_fingerprint == f"{server.model.policy.stamp}-float32"


def test_an_answer_that_was_cut_off_says_so(server: Server) -> None:
    assert ask(server, seed=LONG).choices[0].finish_reason == "length"


def test_an_answer_that_ended_says_so(server: Server) -> None:
    short = ask(server, seed=SHORT)
    assert short.choices[0].finish_reason == "stop"
    assert short.usage.completion_tokens == 3  # the token that ended it is not counted


def test_usage_is_the_tokenizers(server: Server) -> None:
    usage = ask(server, max_tokens=5, messages=[{"role": "system", "content": "Be brief."}, *HELLO]).usage
    prompt = Prompt((Message("system", "Be brief."), Message("user", "hello")))
    (ids,) = server.model.policy.template.prompt_ids([prompt])
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(ids), 5, len(ids) + 5)


def test_several_answers(server: Server) -> None:
    reply = ask(server, n=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert [choice.message.content for choice in reply.choices] == [server.engine_text(sample=n) for n in range(2)]
    assert reply.usage.completion_tokens == 32


def test_logprobs(server: Server) -> None:
    reply = ask(server, logprobs=True, max_tokens=8)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens and all(one.logprob < 0 for one in content)
    whole = b"".join(bytes(one.bytes) for one in content)
    assert whole.decode(errors="replace") == " " + server.engine_text(tokens=8)  # a space that the template leaves out
    assert all(one.top_logprobs == [] for one in content)


def test_top_logprobs(server: Server) -> None:
    for one in ask(server, logprobs=True, top_logprobs=3, max_tokens=8).choices[0].logprobs.content:
        falling = [other.logprob for other in one.top_logprobs]
        assert len(falling) == 3 and falling == sorted(falling, reverse=True)
        same = [other.logprob for other in one.top_logprobs if other.bytes == one.bytes]
        assert all(logprob == pytest.approx(one.logprob, abs=1e-4) for logprob in same)


def test_top_logprobs_are_the_models_own_at_any_temperature(server: Server) -> None:
    """At temperature 0 the distribution that is drawn from knows one token."""
    content = ask(server, logprobs=True, top_logprobs=2, temperature=0, max_tokens=4).choices[0].logprobs.content
    for one in content:
        assert one.logprob < 0 and one.logprob == one.top_logprobs[0].logprob and one.token == one.top_logprobs[0].token


def test_a_stop_string_ends_the_answer_before_it(server: Server) -> None:
    whole = answer_to(server, max_tokens=60)
    for length in (1, 2, 5):  # the longer ones span several tokens
        stop = whole[20 : 20 + length]
        reply = ask(server, max_tokens=60, stop=stop)
        assert reply.choices[0].message.content == whole[: whole.index(stop)]
        assert reply.choices[0].finish_reason == "stop"


def test_of_several_stop_strings_the_first_ends_it(server: Server) -> None:
    whole = answer_to(server, max_tokens=60)
    stops = ["not in it", whole[30:33], whole[12:15], whole[50:52]]
    assert answer_to(server, max_tokens=60, stop=stops) == whole[: min(whole.index(stop) for stop in stops[1:])]


def test_a_seed_repeats(server: Server) -> None:
    assert answer_to(server, seed=7) == answer_to(server, seed=7)


def test_another_seed_draws_another_answer(server: Server) -> None:
    assert len({answer_to(server, seed=seed) for seed in (7, 8, 9)}) == 3


def test_without_a_seed_each_answer_is_drawn_anew(server: Server) -> None:
    assert answer_to(server, seed=None) != answer_to(server, seed=None)


def test_max_tokens(server: Server) -> None:
    assert ask(server, max_tokens=3).usage.completion_tokens == 3


def test_max_completion_tokens(server: Server) -> None:
    assert ask(server, max_tokens=None, max_completion_tokens=4).usage.completion_tokens == 4


def test_of_both_limits_the_newer_one_counts(server: Server) -> None:
    assert ask(server, max_tokens=3, max_completion_tokens=4).usage.completion_tokens == 4
    assert ask(server, max_tokens=4, max_completion_tokens=3).usage.completion_tokens == 3


def test_without_a_limit_the_context_is_one(server: Server) -> None:
    usage = ask(server, max_tokens=None).usage
    assert usage.completion_tokens == 96 - usage.prompt_tokens


def test_temperature_0_is_greedy(server: Server) -> None:
    assert len({answer_to(server, temperature=0, seed=seed) for seed in (1, 2)}) == 1
    assert answer_to(server, temperature=2) != answer_to(server)


def test_top_p_narrows(server: Server) -> None:
    assert answer_to(server, top_p=1e-9, seed=5) == answer_to(server, temperature=0)


def test_system_and_developer_are_one_role(server: Server) -> None:
    system, developer = (
        ask(server, messages=[{"role": role, "content": "Be brief."}, *HELLO]) for role in ("system", "developer")
    )
    assert system.choices[0].message.content == developer.choices[0].message.content
    assert system.usage.prompt_tokens > ask(server).usage.prompt_tokens


def test_text_parts_are_one_text(server: Server) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert answer_to(server, messages=[{"role": "user", "content": parts}]) == server.engine_text()


def test_a_dialogue_goes_on_from_what_was_said(server: Server) -> None:
    first = ask(server, max_tokens=4)
    said = [*HELLO, first.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "why"}]
    (ids,) = server.model.policy.template.prompt_ids(
        [Prompt((Message("user", "hello"), Message("assistant", said[1]["content"]), Message("user", "why")))]
    )
    assert ask(server, messages=said, max_tokens=4).usage.prompt_tokens == len(ids)


def test_the_asynchronous_client_asks_many_at_once(server: Server) -> None:
    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            return await asyncio.gather(
                *(client.chat.completions.create(**server.asked(seed=seed)) for seed in range(8))
            )

    found = [reply.choices[0].message.content for reply in asyncio.run(ask_all())]
    assert found == [answer_to(server, seed=seed) for seed in range(8)]


# ------------------------------------------------------------------------------------------------------- streams


def test_a_stream_is_the_answer_in_pieces(server: Server) -> None:
    assert texts_of(ask(server, stream=True, max_tokens=60)) == [answer_to(server, max_tokens=60)]


def test_a_streams_chunks_have_one_head(server: Server) -> None:
    chunks = list(ask(server, stream=True))
    assert len({(one.id, one.created, one.model, one.system_fingerprint) for one in chunks}) == 1
    assert {one.object for one in chunks} == {"chat.completion.chunk"}


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(server: Server) -> None:
    first, *middle, last = [one.choices[0] for one in ask(server, stream=True, max_tokens=6)]
    assert first.delta.role == "assistant" and first.delta.content is None and first.finish_reason is None
    assert middle and all(one.delta.content and one.finish_reason is None for one in middle)
    assert last.delta.content is None and last.finish_reason == "length"


def test_usage_is_the_last_chunk_of_a_stream(server: Server) -> None:
    *parts, last = ask(server, stream=True, stream_options={"include_usage": True}, max_tokens=6)
    assert last.choices == [] and last.usage == ask(server, max_tokens=6).usage
    assert all(one.usage is None and len(one.choices) == 1 for one in parts)


def test_a_stream_does_not_speak_of_usage_unasked(server: Server) -> None:
    assert all(one.choices and "usage" not in one.model_fields_set for one in ask(server, stream=True, max_tokens=3))


def test_a_stream_ends_with_done(server: Server) -> None:
    asked = server.asked(stream=True, max_tokens=3)
    with server.openai.chat.completions.with_streaming_response.create(**asked) as raw:
        assert [line for line in raw.iter_lines() if line][-1] == "data: [DONE]"


def test_a_stop_string_is_in_no_piece_of_a_stream(server: Server) -> None:
    whole = answer_to(server, max_tokens=60)
    stop = whole[20:25]
    assert texts_of(ask(server, max_tokens=60, stop=stop, stream=True)) == [whole[: whole.index(stop)]]


def test_several_answers_come_side_by_side(server: Server) -> None:
    chunks = list(ask(server, stream=True, n=2, max_tokens=30))
    order = [one.choices[0].index for one in chunks]
    changes = sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert changes > 8, "one answer came after the other"
    assert texts_of(chunks, 2) == [choice.message.content for choice in ask(server, n=2, max_tokens=30).choices]


def test_logprobs_of_a_stream(server: Server) -> None:
    more = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8}
    choices = [choice for chunk in ask(server, stream=True, **more) for choice in chunk.choices if choice.logprobs]
    streamed = [one.model_dump() for choice in choices for one in choice.logprobs.content]
    assert streamed == [one.model_dump() for one in ask(server, **more).choices[0].logprobs.content]


def test_the_clients_own_collector_of_streams(server: Server) -> None:
    with server.openai.chat.completions.stream(**server.asked(seed=SHORT)) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == server.engine_text(SHORT)
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_closing_a_stream_frees_its_row(server: Server) -> None:
    with Paused(server.model) as paused:
        paused.let(3)
        stream = ask(server, stream=True, max_tokens=80)
        next(iter(stream))
        until(lambda: server.scheduler.under_way == 1)
        stream.close()
        until(lambda: server.scheduler.under_way == 0)
        paused.let(2)
        until(lambda: not server.model.batch.unfinished)


def test_giving_up_in_time_frees_the_row(server: Server) -> None:
    with Paused(server.model) as paused:
        with pytest.raises(openai.APITimeoutError):
            ask(server, max_tokens=80, timeout=0.3)
        until(lambda: server.scheduler.under_way == 0)
        paused.let(2)
        until(lambda: not server.model.batch.unfinished)


def test_an_error_in_the_middle_of_a_stream_is_raised(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    break_later(server, monkeypatch)
    pieces = []
    with pytest.raises(openai.APIError, match="failed") as caught:
        for chunk in ask(server, max_tokens=50, stream=True):
            pieces.append(chunk)
    assert len(pieces) > 2 and "secret" not in str(caught.value)
    assert answer_to(server) == server.engine_text()  # the next one is as ever


# -------------------------------------------------------------------------------------------- what asks for nothing


def test_no_tools_and_plain_text_are_taken(server: Server) -> None:
    asked = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "n": 1}
    assert answer_to(server, **asked) == server.engine_text()


def test_null_is_the_default(server: Server) -> None:
    names = ("temperature", "top_p", "stop", "stream", "logprobs", "tool_choice", "presence_penalty", "n")
    assert answer_to(server, **dict.fromkeys(names)) == server.engine_text()


def test_what_has_no_effect_is_taken(server: Server) -> None:
    asked = {"presence_penalty": 0, "user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    assert answer_to(server, **asked) == server.engine_text()


def test_unknown_parameters_are_ignored_and_named_in_a_header(server: Server) -> None:
    asked = server.asked(extra_body={"min_p": 0.1})
    raw = server.openai.chat.completions.with_raw_response.create(**asked)
    assert "min_p" in raw.headers["x-bridle-warning"]
    assert raw.parse().choices[0].message.content == server.engine_text()


# ------------------------------------------------------------------------------------------------ what is refused

IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {  # and which parameter is named
    "a role that is none": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "no messages": ({"messages": []}, "messages"),
    "a message without content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]},
        "messages[0].content[1]",
    ),
    "a call of a tool": (
        {"messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "messages[1].tool_calls",
    ),
    "too many answers": ({"n": 5}, "n"),
    "no answers": ({"n": 0}, "n"),
    "a temperature above 2": ({"temperature": 2.1}, "temperature"),
    "a temperature below 0": ({"temperature": -0.1}, "temperature"),
    "a temperature that is none": ({"temperature": "hot"}, "temperature"),
    "top_p of 0": ({"top_p": 0}, "top_p"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "a seed of 64 bits": ({"seed": 2**63}, "seed"),
    "an empty stop string": ({"stop": ""}, "stop"),
    "five stop strings": ({"stop": [*"abcde"]}, "stop"),
    "top_logprobs without logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "too many top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "best_of without a reward model": ({"extra_body": {"best_of": 2}}, "best_of"),
    "best_of below n": ({"n": 2, "extra_body": {"best_of": 1}}, "best_of"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "a choice of tools": ({"tool_choice": "auto"}, "tool_choice"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "a JSON schema": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    "JSON": ({"response_format": {"type": "json_object"}}, "response_format"),
    "a bias of tokens": ({"logit_bias": {"1": 5}}, "logit_bias"),
    "a penalty": ({"presence_penalty": 0.5}, "presence_penalty"),
    "effort": ({"reasoning_effort": "high"}, "reasoning_effort"),
    "sound": ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
}


@pytest.mark.parametrize(("more", "param"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_by_name(server: Server, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **more)
    assert (caught.value.status_code, caught.value.type) == (400, "invalid_request_error")
    assert caught.value.param == param and param.partition("[")[0] in caught.value.message


def test_the_clients_own_schemas_are_refused_by_name(server: Server) -> None:
    class Wanted(BaseModel):
        name: str

    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.parse(model="tiny", messages=HELLO, response_format=Wanted)  # type: ignore[arg-type]
    assert caught.value.param == "response_format"


def test_a_model_that_is_not_served_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not served here; 'tiny' is") as caught:
        ask(server, model="gpt-4o")
    error = caught.value
    assert (error.code, error.type, error.param) == ("model_not_found", "invalid_request_error", "model")


def test_a_prompt_that_is_too_long_is_refused(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 96 tokens") as caught:
        ask(server, messages=[{"role": "user", "content": "long " * 100}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_an_answer_that_would_be_too_long_is_refused(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, max_tokens=91)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


def test_a_key_that_is_not_good_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        keys = Keys(store)
        key = keys.create("laptop")
        with served(keys=keys) as server:
            with pytest.raises(openai.AuthenticationError) as caught:
                ask(server)
            assert caught.value.code == "invalid_api_key"
            assert caught.value.response.headers["www-authenticate"] == "Bearer"
            known = server.openai.with_options(api_key=key)
            assert known.chat.completions.create(**server.asked(max_tokens=2)).choices


def test_where_too_many_ask_it_says_when_to_ask_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = server.app.state.desk
    monkeypatch.setattr(desk, "settings", desk.settings.model_copy(update={"max_requests": 0}))
    with pytest.raises(openai.RateLimitError) as caught:
        ask(server)
    assert caught.value.type == "rate_limit_error" and int(caught.value.response.headers["retry-after"]) > 0


def test_a_failure_of_the_server_is_no_fault_of_the_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("secret words of the machine")

    monkeypatch.setattr(server.model.batch, "step", fail)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(server)
    assert caught.value.type == "server_error" and "secret" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- completions


def test_a_text_is_continued(server: Server) -> None:
    reply, template = complete(server), server.model.policy.template
    ids = template.bos_ids + template.control.encode_text(["My cat"])[0]
    drawn = engine_ids(server.model.policy, ids, LONG, 12)
    assert reply.object == "text_completion" and reply.choices[0].text == template.tokenizer.decode(drawn)
    assert reply.usage.prompt_tokens == len(ids) and reply.id.startswith("cmpl-")


def test_token_ids_are_continued(server: Server) -> None:
    template = server.model.policy.template
    ids = template.bos_ids + template.control.encode_text(["My cat"])[0]
    assert complete(server, prompt=ids).choices[0].text == complete(server).choices[0].text


def test_a_continuation_is_streamed(server: Server) -> None:
    pieces = [chunk.choices[0].text for chunk in complete(server, stream=True)]
    assert len(pieces) > 4 and "".join(pieces) == complete(server).choices[0].text


def test_several_texts_are_continued(server: Server) -> None:
    reply = complete(server, prompt=["My cat", "The rain"], n=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[2].text == complete(server, prompt="The rain").choices[0].text
    assert reply.choices[1].text != reply.choices[0].text


def test_logprobs_of_a_continuation(server: Server) -> None:
    found = complete(server, logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 12
    assert all(2 <= len(top) <= 3 and token in top for token, top in zip(found.tokens, found.top_logprobs, strict=True))
    assert found.text_offset == sorted(found.text_offset) and found.text_offset[0] == 0


@pytest.mark.parametrize("more", [{"echo": True}, {"suffix": "end"}, {"prompt": [-1]}, {"prompt": ["x"] * 17}], ids=str)
def test_what_cannot_be_continued_is_refused_by_name(server: Server, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, **more)
    assert [caught.value.param] == [*more]


# ---------------------------------------------------------------------------------------------------- how many


def test_how_many_checks_there_are() -> None:
    tests = [one for name, one in vars(sys.modules[__name__]).items() if name.startswith("test_")]
    cases = [mark.args[1] for one in tests for mark in getattr(one, "pytestmark", ()) if mark.name == "parametrize"]
    checks = len([one for one in tests if inspect.signature(one).parameters]) + sum(len(case) - 1 for case in cases)
    assert checks >= 34
    assert f"{checks} checks of OpenAI's Python client" in (ROOT / "docs/serving.md").read_text("utf-8")
