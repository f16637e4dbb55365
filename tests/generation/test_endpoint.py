"""Answers from a server: a fake one of vLLM's kind, which runs our own engine. The run is that of the engine in process, and what does
not agree ends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.compute.randomness import derived_seed, generator
from bridle.core.errors import BridleError, RecipeError, StaleWeights, StoreError, TrainingStopped, UsageError
from bridle.core.records import Completion, Prompt
from bridle.generation import endpoint
from bridle.generation.endpoint import EndpointEngine, draw_seed
from bridle.generation.engine import AnswerSource, Engine
from bridle.generation.rollout import RolloutSession
from bridle.generation.sampling import Sampling
from bridle.models.lora.adapter import learning_tensors
from bridle.models.lora.policies import learner, load_adapted
from bridle.models.policy import Policy, load_policy, save_policy
from bridle.recipe.data import LoRASection
from bridle.recipe.online import GRPOSection, RolloutSection
from bridle.recipe.recipe import Recipe
from bridle.training import grpo
from tests.models.lora.test_frozen import lively
from tests.models.tiny import CPU, one_sentence, policy
from tests.training.runs import DEVICE, metrics, run_in

PROMPTS = [Prompt.from_text(text) for text in ("Hi", "And the rain?", "Tell me a joke about cats.")]
NEW, ANSWERS = 6, 4
CONFIG = GRPOSection(steps=2, prompts_per_step=3, group_size=ANSWERS, batch_size=64, minibatches=1, learning_rate=0.05)
DRAWS = {
    draw_seed(seed := derived_seed(0, "grpo-rollout", step), number): (seed, number)
    for step in range(2)
    for number in range(3 * ANSWERS)
}
Reply = dict[str, Any]


@dataclass
class Served:
    """What the server holds and was asked. `spoil` changes a choice before it goes out; `refused` are paths that fail."""

    base: Policy
    engine: Engine = field(default_factory=lambda: Engine(torch.float32))
    asked: list[str] = field(default_factory=list)
    adapters: dict[str, Policy] = field(default_factory=dict)
    awake: bool = True
    spoil: Callable[[Reply], object] = lambda choice: None
    refused: str = ""
    takes_adapters: bool = True
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: Any) -> tuple[int, bytes]:
        self.asked += [path] if self.asked[-1:] != [path] else []
        if self.refused and self.refused in path:
            return 404, b'{"error": "no such path"}'
        if path == "/wake_up" or path.startswith("/sleep"):
            self.awake = path == "/wake_up"
            return 200, b""
        assert self.awake, "it sleeps"
        if path == "/v1/load_lora_adapter":
            held = load_adapted(Path(body["lora_path"]), self.base) if self.takes_adapters else self.base
            self.adapters[body["lora_name"]] = replace(held, origin=f"{len(self.asked)}")
            return 200, b"Success: LoRA adapter added"
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, b"Success: LoRA adapter removed"
        return 200, json.dumps({"choices": [self.choice(self.adapters[body["model"]], body)]}).encode()

    def choice(self, held: Policy, body: Any) -> Reply:
        assert (body["top_p"], body["top_k"], body["return_token_ids"], body["logprobs"]) == (1, 0, True, 1)
        seed, number = DRAWS.get(body["seed"], (0, 0))
        self.engine.load(held)
        self.engine.template_stops = frozenset(body["stop_token_ids"])
        sampling = Sampling(body["max_tokens"], body["temperature"])
        [found] = self.engine.generate([body["prompt"]], sampling, stamp=held.stamp, seed=seed, samples=[number])
        ids, stopped = list(found.token_ids), found.finish_reason == "stop"
        choice = {
            "index": 0, "text": held.template.tokenizer.decode(ids[:-1] if stopped else ids), "token_ids": ids,
            "prompt_token_ids": body["prompt"], "finish_reason": found.finish_reason.value,
            "logprobs": {"token_logprobs": list(found.logprobs), "tokens": ["?"] * len(ids)},
        }  # fmt: skip
        self.spoil(choice)
        return choice


@contextmanager
def serving(base: Policy) -> Iterator[Served]:
    served = Served(base)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            with served.lock:
                status, content = served.answer(self.path, json.loads(body) if body else None)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A quarter of its tokens are stops: answers end early, and are cut off."""
    save_policy(place := tmp_path_factory.mktemp("base") / "model", policy())
    found = load_policy(place, CPU)
    return replace(found, template=replace(found.template, stop_ids=frozenset(range(1, 75))))


@pytest.fixture
def served(base: Policy) -> Iterator[Served]:
    with serving(base) as found:
        yield found


def tuned(base: Policy) -> Policy:
    return lively(learner(base, LoRASection(r=4), generator(0, "lora")))


def engine_of(served: Served, **settings: Any) -> EndpointEngine:
    return EndpointEngine(RolloutSection(endpoint=served.address, **settings), DEVICE)


def points(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [sum(c.token_ids) / len(c.token_ids) / 100 for c in completions]


def practised(base: Policy, engine: AnswerSource, folder: Path) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    learns = tuned(base)
    session = RolloutSession(run_in(folder), DEVICE, 0, engine, NEW)
    grpo.train(learns, base, points, PROMPTS, CONFIG, session)
    return [weight.detach() for weight in learning_tensors(learns.module).values()], metrics(folder)


def test_a_run_is_that_of_the_engine_in_process(base: Policy, served: Served, tmp_path: Path) -> None:
    """Given the same draws: the same answers, the same weights and log but for the last digits of log-probs that were read alone."""
    ours = practised(base, Engine(torch.float32), tmp_path / "ours")
    theirs = practised(base, engine_of(served, concurrency=3), tmp_path / "theirs")
    for one, other in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-5)
    for line, same in zip(ours[1], theirs[1], strict=True):
        assert line == pytest.approx(same, rel=1e-5, abs=1e-5)
        assert [line[name] for name in ("reward", "length", "cut_off")] == [
            same[name] for name in ("reward", "length", "cut_off")
        ]
    assert len({line["reward"] for line in ours[1]}) == 2 and ours[1][1]["kl"] > 0
    turn = ["/wake_up", "/v1/load_lora_adapter", "/v1/completions", "/v1/unload_lora_adapter", "/sleep?level=1"]
    assert served.asked == ["/sleep?level=1", *turn, *turn] and not served.awake and not served.adapters


def test_one_with_a_card_of_its_own_is_left_awake(base: Policy, served: Served) -> None:
    engine, learns = engine_of(served, sleeps=False), tuned(base)
    engine.load(learns)
    [answer] = engine.generate([[5, 6, 7]], Sampling(NEW), stamp=learns.stamp, seed=0)
    assert answer.token_ids and served.asked == ["/v1/load_lora_adapter", "/v1/completions", "/v1/unload_lora_adapter"]
    with pytest.raises(StaleWeights, match="was not handed the weights other"):
        engine.generate([[5]], Sampling(NEW), stamp="other", seed=0)
    engine.load(base)
    with pytest.raises(UsageError, match="has no adapter to save"):
        engine.generate([[5]], Sampling(NEW), stamp=base.stamp, seed=0)


def longer(choice: Reply) -> None:
    choice["token_ids"] = [*choice["token_ids"], 80]


def ends_otherwise(choice: Reply) -> None:
    choice["finish_reason"] = "length" if choice["finish_reason"] == "stop" else "stop"


def further(choice: Reply) -> None:
    row = choice["logprobs"]
    row["token_logprobs"] = [logprob - 0.2 for logprob in row["token_logprobs"]]


def nan(choice: Reply) -> None:
    choice["logprobs"]["token_logprobs"][0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (longer, TrainingStopped, "tokens have"),
        (ends_otherwise, TrainingStopped, "it ends otherwise than it says"),
        (lambda choice: choice.update(text="Quite another."), TrainingStopped, "its text is not that of its tokens"),
        (lambda choice: choice.update(prompt_token_ids=[9]), TrainingStopped, "the prompt is not the tokens that were sent"),
        (lambda choice: choice.pop("token_ids"), StoreError, r"another form: it needs choices\[0\].token_ids"),
        (further, TrainingStopped, "the endpoint's log-probs are not those of the weights: 0.2 nats a token apart"),
        (nan, TrainingStopped, "the endpoint's log-probs are not those of the weights: nan"),
    ],
)  # fmt: skip
def test_answers_that_do_not_agree_end_the_run_and_the_server_sleeps(
    spoil: Callable[[Reply], object], error: type[BridleError], words: str, base: Policy, served: Served
) -> None:
    engine, learns, served.spoil = engine_of(served), tuned(base), spoil
    engine.load(learns)
    with pytest.raises(error, match=words) as caught:
        engine.generate([[5, 6, 7]], Sampling(NEW), stamp=learns.stamp, seed=0)
    assert one_sentence(str(caught.value)) and not served.awake and not served.adapters


def test_a_server_that_leaves_the_adapter_out_is_noticed(base: Policy, served: Served) -> None:
    engine, learns, served.takes_adapters = engine_of(served), tuned(base), False
    engine.load(learns)
    with pytest.raises(TrainingStopped, match="are not those of the weights"):
        engine.generate([[5, 6, 7], [8, 9]], Sampling(NEW), stamp=learns.stamp, seed=0)


@pytest.mark.parametrize("path", ["load_lora_adapter", "completions"])
def test_a_server_that_cannot_is_said(path: str, base: Policy, served: Served) -> None:
    engine, learns, served.refused = engine_of(served), tuned(base), path
    engine.load(learns)
    with pytest.raises(StoreError, match=f"did not take POST /v1/{path} .status 404") as caught:
        engine.generate([[5, 6, 7]], Sampling(NEW), stamp=learns.stamp, seed=0)
    assert one_sentence(str(caught.value)) and not served.awake and not served.adapters


def test_one_process_alone_may_ask_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several each would let the server sleep while the others wait for its answers."""
    monkeypatch.setattr(endpoint, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="and 2 share this training; set scale.workers to 1") as caught:
        engine_of(served)
    assert one_sentence(str(caught.value)) and served.awake


def test_no_server_is_said_before_anything_begins() -> None:
    with pytest.raises(StoreError, match=r"http://127.0.0.1:9/v1 did not take POST /sleep\?level=1 .ConnectError"):
        EndpointEngine(RolloutSection(endpoint="http://127.0.0.1:9/v1"), DEVICE)
    for settings, words in (
        ({"rollout.endpoint": "http://127.0.0.1:8000/v1"}, "handed an adapter before each rollout, and lora.r is 0"),
        ({"rollout.endpoint": "127.0.0.1:8000", "lora.r": 4}, "rollout.endpoint = '127.0.0.1:8000' is invalid"),
    ):
        with pytest.raises(RecipeError, match=words):
            Recipe().with_settings(settings)
