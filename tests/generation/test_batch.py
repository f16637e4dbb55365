"""Rows admitted, stepped and cancelled one by one: the answers of rows alone, whatever else is asked, and within bounds."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.errors import DataError, NotFinite, StaleWeights
from bridle.core.records import FinishReason
from bridle.generation.batch import AnswerRow, BatchLimits, Drawn, RowBatch
from bridle.generation.engine import Engine
from bridle.generation.native import Decoding, PackedDecoder
from bridle.generation.sampling import Sampling, draw
from bridle.kernels import kernels
from bridle.models.policy import Policy
from tests.models.tiny import one_sentence, policy, random_ids

PROMPTS = [tuple(ids) for ids in random_ids(20, 1, 60, seed=9)]
SETTINGS = [
    Sampling(12), Sampling(20, 0.7), Sampling(5, 0.0), Sampling(16, 1.2, 0.8), Sampling(9, 1.0, 1.0, 5), Sampling(1),
]  # fmt: skip
RECORDED = Path(__file__).parent / "recorded.json"


@pytest.fixture(params=["compiled", "plain"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "wish", "auto" if request.param == "compiled" else "plain")


def stopping(shape: str = "qwen2") -> Policy:
    ours = policy(shape)
    return replace(ours, template=replace(ours.template, stop_ids=frozenset({ours.template.eos_id, *range(3, 12)})))


def engine_of(ours: Policy, dtype: torch.dtype = torch.float32) -> Engine:
    engine = Engine(dtype)
    engine.load(ours)
    return engine


def rows_of(count: int, seed: int) -> list[AnswerRow]:
    """Rows with settings, seeds and stops of their own; prompts come again."""
    rng = random.Random(seed)
    return [
        AnswerRow(
            rng.choice(PROMPTS), rng.choice(SETTINGS), rng.randrange(2**64), rng.randrange(100), rng.choice((0, 0, 3)),
            frozenset(rng.sample(range(12, 300), rng.choice((0, 20)))),
        )
        for _ in range(count)
    ]  # fmt: skip


def finish(batch: RowBatch, found: dict[int, list[Drawn]] | None = None) -> dict[int, list[Drawn]]:
    found = defaultdict(list) if found is None else found
    while batch.running + batch.waiting:
        for drawn in batch.step():
            found[drawn.id].append(drawn)
    return found


def alone(engine: Engine, row: AnswerRow) -> list[Drawn]:
    batch = engine.batch()
    return finish(batch)[0] if batch.admit(row) == 0 else []


def require_alike(found: list[Drawn], wanted: list[Drawn]) -> None:
    assert [(d.token, d.finish_reason) for d in found] == [(d.token, d.finish_reason) for d in wanted]
    assert [d.logprob for d in found] == pytest.approx([d.logprob for d in wanted], abs=1e-4)
    assert [[token for token, _ in d.top] for d in found] == [[token for token, _ in d.top] for d in wanted]
    assert [p for d in found for _, p in d.top] == pytest.approx([p for d in wanted for _, p in d.top], abs=1e-4)


@pytest.mark.parametrize("shape", ["qwen3", "gpt2", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_generate_answers_as_recorded_before_rows_came_one_by_one(shape: str) -> None:
    """The ids, and the log-probs as far as processors agree. Where it was recorded they were equal to the last bit."""
    recorded, ours = json.loads(RECORDED.read_text("utf-8")), stopping(shape)
    for name, settings in (("plain", Sampling(12)), ("nucleus", Sampling(12, 0.7, 0.9))):
        engine = Engine(torch.float32, batch_size=4)
        engine.load(ours)
        answers = engine.generate([*PROMPTS[:8], *PROMPTS[:3]], settings, stamp=ours.stamp, seed=5)
        assert [a.token_ids for a in answers] == [ids for ids, _, _ in recorded[shape][name]]
        assert [a.finish_reason for a in answers] == [reason for _, _, reason in recorded[shape][name]]
        for answer, (_, logprobs, _) in zip(answers, recorded[shape][name], strict=True):
            assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shape", ["qwen2", "gpt2", pytest.param("gemma2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "limits", [BatchLimits(rows=3, prefill_tokens=7), BatchLimits(rows=8, prefill_tokens=70, groups=2)]
)
def test_answers_are_those_of_rows_alone_whatever_comes_and_goes(shape: str, limits: BatchLimits) -> None:
    engine, rng = engine_of(stopping(shape)), random.Random(limits.rows)
    rows = rows_of(9, seed=limits.rows)
    batch, waiting = engine.batch(limits), list(rows)
    asked: dict[int, AnswerRow] = {}
    cancelled: set[int] = set()
    found: dict[int, list[Drawn]] = defaultdict(list)
    while waiting or batch.running or batch.waiting:
        for _ in range(min(len(waiting), rng.choice((0, 0, 1, 4)))):
            row = waiting.pop()
            asked[batch.admit(row)] = row
        if asked and rng.random() < 0.1:
            gone = rng.choice(list(asked))  # under way, waiting, finished or cancelled before
            if not (found[gone] and found[gone][-1].finish_reason):
                cancelled.add(gone)
            batch.cancel(gone)
        for drawn in batch.step():
            assert drawn.id not in cancelled
            found[drawn.id].append(drawn)
        assert batch.running <= limits.rows
        assert batch.running + batch.waiting == sum(
            id not in cancelled and not (found[id] and found[id][-1].finish_reason) for id in asked
        )
    assert 1 <= len(cancelled) < 6
    for id, row in asked.items():
        wanted = alone(engine, row)
        if id in cancelled:
            wanted = [replace(d, id=id) for d in wanted[: len(found[id])]]
        require_alike(found[id], wanted)


@pytest.mark.parametrize("shape", ["qwen2", "gpt2"])
def test_alone_is_what_generate_answers(shape: str) -> None:
    ours = stopping(shape)
    engine = engine_of(ours)
    for row in rows_of(6, seed=3):
        row = replace(row, stops=frozenset())
        [answer] = engine.generate([row.prompt], row.sampling, stamp=ours.stamp, seed=row.seed, samples=[row.sample])
        drawn = alone(engine, row)
        assert [d.token for d in drawn] == answer.token_ids and drawn[-1].finish_reason is answer.finish_reason
        assert [d.logprob for d in drawn] == pytest.approx(answer.logprobs, abs=1e-4)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shape", ["llama-biased", "qwen3"])
def test_a_long_prompt_is_read_in_parts_while_others_go_on(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt = engine_of(policy(shape)), tuple(random_ids(1, 60, 60, seed=1)[0])
    long = [AnswerRow(prompt, Sampling(6), seed, top_logprobs=2) for seed in (1, 2)]
    wanted = [alone(engine, row) for row in long]
    reads: list[torch.Size] = []
    monkeypatch.setattr(Decoding, "read", counting(Decoding.read, reads))
    batch = engine.batch(BatchLimits(prefill_tokens=16))
    first = batch.admit(AnswerRow((5, 6), Sampling(30), 0))
    batch.step()
    ids = [batch.admit(row) for row in long]
    drawn = [[d.id for d in batch.step()] for _ in range(4)]
    assert drawn[:3] == [[first]] * 3 and drawn[3] == [*ids, first, *ids]
    assert [shape[1] for shape in reads[1:]] == [16, 16, 16, 12]  # for both
    found = finish(batch)
    assert not batch.groups
    for id, answer in zip(ids, wanted, strict=True):
        assert [d.token for d in found[id]] == [d.token for d in answer][2:]
        assert found[id][-1].logprob == pytest.approx(answer[-1].logprob, abs=1e-4)


def counting(
    method: Callable[[Decoding, torch.Tensor], torch.Tensor], found: list[torch.Size]
) -> Callable[[Decoding, torch.Tensor], torch.Tensor]:
    def counted(decoding: Decoding, ids_BT: torch.Tensor) -> torch.Tensor:
        found.append(ids_BT.shape)
        return method(decoding, ids_BT)

    return counted


def test_the_tokens_read_in_a_step_and_those_of_the_cache_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[torch.Size] = []
    monkeypatch.setattr(Decoding, "read", counting(Decoding.read, reads))
    engine, limits = engine_of(policy()), BatchLimits(rows=6, prefill_tokens=100, cache_tokens=4 * 70)
    batch = engine.batch(limits)
    for i, prompt in enumerate([*random_ids(8, 40, 60, seed=1), *random_ids(8, 1, 4, seed=2)]):
        batch.admit(AnswerRow(tuple(prompt), Sampling(10), i))
    most = 0
    while batch.running + batch.waiting:
        batch.step()
        most = max(most, batch.running)
        lengths = [len(a.row.prompt) + 10 for group in batch.groups for a in group.answers if a.live]
        assert len(lengths) * max(lengths, default=0) <= limits.cache_tokens
    assert most > 4  # short ones are more
    assert all(shape.numel() <= 100 for shape in reads)
    assert not batch.groups and batch.reading is None  # and with them went their caches
    long = batch.admit(AnswerRow(tuple(random_ids(1, 80, 80)[0]), Sampling(16), 0))
    assert len(finish(batch)[long]) == 16  # alone it may


@pytest.mark.parametrize("shape", ["qwen2", "gpt2"])
def test_a_prompt_asked_many_times_is_read_once(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(policy(shape))
    batch = engine.batch()
    runs: list[Sequence[tuple[int, ...]]] = []
    prefill: Any = type(batch.packed).prefill

    def counted(packed: object, asked: Sequence[tuple[int, ...]]) -> object:
        runs.append(asked)
        return prefill(packed, asked)

    monkeypatch.setattr(type(batch.packed), "prefill", counted)
    for i in range(12):
        batch.admit(AnswerRow(PROMPTS[i % 2], Sampling(4), 0, i))
    batch.step()
    assert len(runs) == 1 and set(runs[0]) == {PROMPTS[0], PROMPTS[1]} and len(runs[0]) <= 4
    assert batch.running == 12


@pytest.mark.parametrize("shape", ["qwen2", "gpt2"])
def test_a_cancelled_row_makes_room_for_the_next(shape: str) -> None:
    batch = engine_of(policy(shape)).batch(BatchLimits(rows=2))
    a, b, c, d = (batch.admit(AnswerRow(PROMPTS[i], Sampling(30), 0)) for i in range(4))
    assert (batch.running, batch.waiting) == (0, 4)
    assert {x.id for x in batch.step()} == {a, b}
    assert (batch.running, batch.waiting) == (2, 2)
    batch.cancel(a)
    batch.cancel(c)  # has not begun
    batch.cancel(a)
    batch.cancel(99)
    assert (batch.running, batch.waiting) == (1, 1)
    assert {x.id for x in batch.step()} == {b, d}
    batch.cancel(b)
    batch.cancel(d)
    assert batch.step() == [] and not batch.groups


@pytest.mark.usefixtures("products")
def test_top_log_probs_are_the_models_own() -> None:
    ours = policy()
    row = AnswerRow(PROMPTS[0], Sampling(6, 0.3, 0.5), 1, top_logprobs=4)
    ids = list(row.prompt)
    for drawn in alone(engine_of(ours), row):
        with torch.no_grad():
            best = ours.module(torch.tensor([ids]))[0, -1].log_softmax(0).topk(4)
        assert [token for token, _ in drawn.top] == best.indices.tolist()
        assert [p for _, p in drawn.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        ids.append(drawn.token)


def test_a_rows_own_stops_stand_beside_the_templates() -> None:
    engine, row = engine_of(policy()), AnswerRow(PROMPTS[0], Sampling(8), 4)
    free = alone(engine, row)
    ended = alone(engine, replace(row, stops=frozenset({free[3].token})))
    first = [d.token for d in free].index(free[3].token)
    assert [d.token for d in ended] == [d.token for d in free][: first + 1]
    assert [d.finish_reason for d in ended] == [None] * first + [FinishReason.STOP]
    assert free[-1].finish_reason is FinishReason.LENGTH


def test_what_cannot_be_answered_is_refused_in_one_sentence() -> None:
    batch = engine_of(policy()).batch()
    for row, words in (
        (AnswerRow((), Sampling(4), 0), "without a single token"),
        (AnswerRow((5,) * 90, Sampling(7), 0), "90 tokens and 7 new ones do not fit the model's context of 96"),
        (AnswerRow((5, 300), Sampling(7), 0), "the token 300, where the model has those from 0 to 299"),
        (AnswerRow((5, -1), Sampling(7), 0), "the token -1"),
        (AnswerRow((5,), Sampling(7), 0, top_logprobs=301), "top_logprobs must be within 0 and"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            batch.admit(row)
        assert one_sentence(str(caught.value))
    assert batch.waiting == 0
    with pytest.raises(StaleWeights, match="holds no weights yet"):
        Engine(torch.float32).batch()


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_fail_their_own_rows(temperature: float) -> None:
    """Token 7's embedding is no number: whoever reads or draws it is out, all others go on."""
    ours = policy("llama")
    wanted = alone(engine_of(ours), AnswerRow((5, 6), Sampling(12, temperature), 1))
    with torch.no_grad():
        dict(ours.module.named_parameters())["model.embed_tokens.weight"][7] = float("nan")
    engine = engine_of(ours)
    batch = engine.batch(BatchLimits(rows=3))
    good = batch.admit(AnswerRow((5, 6), Sampling(12, temperature), 1))
    found: dict[int, list[Drawn]] = defaultdict(list)
    for _ in range(4):
        bad = batch.admit(AnswerRow((8, 7), Sampling(4, temperature), 0))
        with pytest.raises(NotFinite, match="logits that are not finite") as caught:
            batch.step()
        assert caught.value.ids == (bad,) and one_sentence(str(caught.value))
    last = batch.admit(AnswerRow((5, 6), Sampling(12, temperature), 1))
    finish(batch, found)
    for id in (good, last):
        require_alike(found[id], wanted)


@pytest.mark.usefixtures("products")
def test_a_row_that_breaks_under_way_leaves_nothing_behind() -> None:
    engine = engine_of(policy("llama"))
    wanted = alone(engine, AnswerRow((5, 6), Sampling(12), 1))
    packed = engine.packed
    assert isinstance(packed, PackedDecoder)
    batch = engine.batch(BatchLimits(rows=2))
    good, bad = batch.admit(AnswerRow((5, 6), Sampling(12), 1)), batch.admit(AnswerRow((9, 9), Sampling(12), 1))
    found: dict[int, list[Drawn]] = defaultdict(list)
    for drawn in batch.step():
        found[drawn.id].append(drawn)
    for cache in (*batch.groups[0].decoding.keys, *batch.groups[0].decoding.values):
        with torch.inference_mode():
            cache[1] = float("nan")
    with pytest.raises(NotFinite) as caught:
        batch.step()
    assert caught.value.ids == (bad,)
    after = batch.admit(AnswerRow((5, 6), Sampling(12), 1))  # takes its place
    finish(batch, found)
    require_alike(found[good], wanted)
    require_alike(found[after], wanted)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("settings", [Sampling(1), Sampling(1, 0.0), Sampling(1, 1.0, 0.9), Sampling(1, 1.0, 1.0, 3)])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_log_probs_of_broken_logits_are_no_numbers(settings: Sampling, broken: float) -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    logits[1, 70] = broken
    _, logprobs = draw(logits, settings, torch.tensor([0.5, 0.1], dtype=torch.float64))
    assert logprobs.isnan().tolist() == [False, True]


@pytest.mark.parametrize("shape", ["qwen2", "gpt2"])
def test_a_batch_keeps_the_weights_that_it_began_with(shape: str) -> None:
    ours = policy(shape)
    engine = engine_of(ours)
    row = AnswerRow(PROMPTS[0], Sampling(10), 1)
    wanted, batch = alone(engine, row), engine.batch()
    batch.admit(row)
    batch.step()
    ours.step += 1
    with torch.no_grad():
        for parameter in ours.module.parameters():
            parameter.mul_(-0.5)
    engine.load(ours)
    assert batch.stamp != ours.stamp == engine.batch().stamp
    late = batch.admit(row)
    assert [d.token for d in finish(batch)[late]] == [d.token for d in wanted]
    assert [d.token for d in alone(engine, row)] != [d.token for d in wanted]


def test_random_numbers_are_made_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, row = engine_of(policy()), AnswerRow(PROMPTS[0][:10], Sampling(40), 1)
    wanted = alone(engine, row)
    monkeypatch.setattr("bridle.generation.batch.UNIFORMS", 7)
    require_alike(alone(engine, row), wanted)
