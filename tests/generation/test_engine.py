"""The engine against the training forward: equal log-probs, equal ids in any company, and never with stale weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bridle.core.errors import DataError, ModelError, StaleWeights
from bridle.core.records import FinishReason, Prompt
from bridle.generation import native
from bridle.generation.engine import Answer, Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.kernels import kernels
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.policy import Policy
from tests.models.tiny import FALLBACK, FAMILIES, FOREIGN, SHAPES, one_sentence, policy, random_ids, template

PROMPTS = random_ids(45, 1, 60, seed=9)


def engine_with(ours: Policy, dtype: torch.dtype = torch.float32, batch_size: int = 128) -> Engine:
    engine = Engine(dtype, batch_size)
    engine.load(ours)
    return engine


@pytest.fixture(params=["compiled", "plain"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Steps by compiled kernels where this machine has them, and by PyTorch's own operations."""
    monkeypatch.setattr(kernels, "wish", "auto" if request.param == "compiled" else "plain")
    return str(request.param)


def by_both(shapes: Sequence[str]) -> list[Any]:
    """Each of bridle's networks by both. Of one that transformers runs they differ in the sampling alone, which is shown on bridle's."""
    return [
        pytest.param(shape, way, marks=[pytest.mark.slow] if way == "plain" and shape in FOREIGN else [])
        for shape in shapes
        for way in ("compiled", "plain")
    ]


def stopping(ours: Policy, *stops: int) -> Policy:
    return replace(ours, template=replace(ours.template, stop_ids=frozenset({ours.template.eos_id, *stops})))


def recomputed(
    ours: Policy, prompts: Sequence[list[int]], answers: Sequence[Answer], temperature: float
) -> list[float]:
    batch = make_batch(prompts, [a.token_ids for a in answers], 0)
    with torch.no_grad():
        return sequence_logprobs(ours.module, batch, temperature)[batch.mask_BT].tolist()


def sampled(answers: Sequence[Answer]) -> list[float]:
    return [logp for answer in answers for logp in answer.logprobs]


@pytest.mark.parametrize(
    ("dtype", "tolerance", "shape", "products"),
    [pytest.param(torch.float32, 1e-4, *case.values, marks=case.marks) for case in by_both([*SHAPES, *FOREIGN])]
    + [(torch.float64, 1e-9, shape, "plain") for shape in SHAPES],  # no kernel is compiled for it
    indirect=["products"],  # some of transformers' modules hold float32 inside
)
def test_sampled_log_probs_equal_those_of_training(
    shape: str, dtype: torch.dtype, tolerance: float, products: str
) -> None:
    ours = policy(shape, dtype=dtype)
    for temperature in (1.0, 0.8):
        answers = engine_with(ours, dtype).generate(PROMPTS, Sampling(24, temperature), stamp=ours.stamp, seed=1)
        assert sampled(answers) == pytest.approx(recomputed(ours, PROMPTS, answers, temperature), abs=tolerance)
    assert len({tuple(a.token_ids) for a in answers}) > 40


@pytest.mark.parametrize(("shape", "products"), by_both(["qwen2", "qwen3", *FALLBACK]), indirect=["products"])
def test_bfloat16_stays_close(shape: str, products: str) -> None:
    """A bfloat16 pack against a float32 forward: on average within .05 nats a token, no token off by more than 1."""
    ours, prompts = policy(shape), PROMPTS[:20]
    answers = engine_with(ours, torch.bfloat16, 4).generate(prompts, Sampling(24), stamp=ours.stamp, seed=1)
    gaps = torch.tensor(sampled(answers)) - torch.tensor(recomputed(ours, prompts, answers, 1.0))
    assert float(gaps.abs().mean()) < 0.05
    assert float(gaps.abs().max()) < 1.0


@pytest.mark.parametrize(("shape", "products"), by_both([*FAMILIES, *FALLBACK]), indirect=["products"])
def test_the_same_ids_alone_in_any_order_and_among_others(shape: str, products: str) -> None:
    ours = stopping(policy(shape), *range(3, 20))  # uneven answers: rows leave the batch
    settings = Sampling(24)
    numbers = list(range(len(PROMPTS)))
    together = engine_with(ours).generate(PROMPTS, settings, stamp=ours.stamp, seed=2, samples=numbers)
    assert len({len(a.token_ids) for a in together}) > 5
    order = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(0)).tolist()
    for engine in (engine_with(ours), engine_with(ours, batch_size=7)):
        found = engine.generate(
            [PROMPTS[i] for i in order], settings, stamp=ours.stamp, seed=2, samples=[numbers[i] for i in order]
        )
        assert [a.token_ids for a in found] == [together[i].token_ids for i in order]
        assert [a.finish_reason for a in found] == [together[i].finish_reason for i in order]
    engine = engine_with(ours)
    for i in range(0, len(PROMPTS), 5):
        alone = engine.generate(PROMPTS[i : i + 1], settings, stamp=ours.stamp, seed=2, samples=[i])[0]
        assert alone.token_ids == together[i].token_ids
        assert alone.logprobs == pytest.approx(together[i].logprobs, abs=1e-4)


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[tuple[Any, ...]]:
    """Arguments of each call of a method, which goes on doing what it did."""
    found: list[tuple[Any, ...]] = []
    method = owner.__dict__[name]

    def counted(self: Any, *arguments: Any) -> Any:
        found.append(arguments)
        return method(self, *arguments)

    monkeypatch.setattr(owner, name, counted)
    return found


@pytest.mark.parametrize("ahead", [1, 5, 32])  # the cache is copied at nearly every step; at times; its slots go round
def test_rows_that_join_others_get_the_answers_of_rows_alone(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "AHEAD", ahead)
    ours = stopping(policy("qwen2"), *range(3, 20))
    engine, settings = engine_with(ours, batch_size=8), Sampling(24)
    alone = [
        engine.generate([prompt], settings, stamp=ours.stamp, seed=2, samples=[i])[0]
        for i, prompt in enumerate(PROMPTS)
    ]
    groups = count_calls(monkeypatch, native.PackedDecoder, "prefill")
    steps = count_calls(monkeypatch, native.Decoding, "step")
    together = engine.generate(PROMPTS, settings, stamp=ours.stamp, seed=2)
    assert len(groups) > len(PROMPTS) / 8 + 3  # some came while others were under way
    assert len(steps) < sum(len(a.token_ids) for a in alone) / 4  # rows are answered side by side
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert sampled(together) == pytest.approx(sampled(alone), abs=1e-4)
    assert sampled(together) == pytest.approx(recomputed(ours, PROMPTS, together, 1.0), abs=1e-4)


def test_long_prompts_join_a_cache_of_short_ones() -> None:
    ours = stopping(policy("llama"), *range(3, 30))
    prompts = [*random_ids(12, 1, 3, seed=1), *random_ids(12, 60, 70, seed=2)]
    together = engine_with(ours, batch_size=6).generate(prompts, Sampling(24), stamp=ours.stamp, seed=3)
    assert sampled(together) == pytest.approx(recomputed(ours, prompts, together, 1.0), abs=1e-4)


@pytest.mark.parametrize("shape", ["qwen2", *FALLBACK])
def test_a_prompt_of_many_answers_is_run_once(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = stopping(policy(shape), *range(3, 20))
    engine = engine_with(ours)
    asked = [PROMPTS[i] for i in (0, 7, 0, 3, 7, 0, 3, 9, 0, 12, 7)]
    alone = [engine.generate([p], Sampling(12), stamp=ours.stamp, seed=2, samples=[i])[0] for i, p in enumerate(asked)]
    runs = count_calls(monkeypatch, type(engine.packed), "prefill")
    together = engine.generate(asked, Sampling(12), stamp=ours.stamp, seed=2)
    assert sorted(runs[0][0]) == sorted(tuple(PROMPTS[i]) for i in (0, 3, 7, 9, 12))
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert sampled(together) == pytest.approx(sampled(alone), abs=1e-4)
    assert len({tuple(a.token_ids) for a in together}) == len(asked)


def test_seed_and_sample_number_decide_the_draw() -> None:
    ours = policy()
    engine, prompt = engine_with(ours), PROMPTS[3]

    def answer(seed: int, sample: int) -> list[int]:
        return engine.generate([prompt], Sampling(24), stamp=ours.stamp, seed=seed, samples=[sample])[0].token_ids

    assert answer(1, 1) == answer(1, 1)
    assert answer(1, 1) != answer(1, 2)
    assert answer(1, 1) != answer(2, 1)
    four = engine.generate([prompt] * 4, Sampling(24), stamp=ours.stamp, seed=1)
    assert len({tuple(a.token_ids) for a in four}) == 4  # numbered by place


def test_an_answer_ends_at_any_of_the_stops_and_keeps_it() -> None:
    stops = range(3, 30)
    ours = stopping(policy(), *stops)
    answers = engine_with(ours).generate(PROMPTS, Sampling(24), stamp=ours.stamp, seed=3)
    ended = [a for a in answers if a.finish_reason is FinishReason.STOP]
    cut = [a for a in answers if a.finish_reason is FinishReason.LENGTH]
    assert ended and cut and len(ended) + len(cut) == len(PROMPTS)
    assert len({a.token_ids[-1] for a in ended}) > 5
    for answer in ended:
        assert answer.token_ids[-1] in ours.template.stop_ids
    for answer in cut:
        assert len(answer.token_ids) == 24 and answer.token_ids[-1] not in ours.template.stop_ids
    for answer in answers:
        assert not ours.template.stop_ids.intersection(answer.token_ids[:-1])
        assert len(answer.logprobs) == len(answer.token_ids)


def test_a_stop_at_the_last_position_is_a_stop() -> None:
    free = policy()
    answer = engine_with(free).generate(PROMPTS[:1], Sampling(6), stamp=free.stamp, seed=4)[0]
    assert answer.finish_reason is FinishReason.LENGTH
    last = answer.token_ids[5]
    assert last not in answer.token_ids[:5]
    ours = stopping(free, last)
    same = engine_with(ours).generate(PROMPTS[:1], Sampling(6), stamp=ours.stamp, seed=4)[0]
    assert same.token_ids == answer.token_ids
    assert same.finish_reason is FinishReason.STOP


def test_log_probs_of_truncated_sampling_are_those_of_the_truncated_distribution() -> None:
    ours = policy(dtype=torch.float64)
    settings = Sampling(12, temperature=0.9, top_k=3)
    answers = engine_with(ours, torch.float64).generate(PROMPTS[:8], settings, stamp=ours.stamp, seed=5)
    for prompt, answer in zip(PROMPTS[:8], answers, strict=True):
        with torch.no_grad():
            table = (ours.module(torch.tensor([[*prompt, *answer.token_ids]]))[0] / 0.9).softmax(-1)
        for i, (token, logp) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
            probs = table[len(prompt) + i - 1]
            best = probs.topk(3)
            assert token in best.indices.tolist()
            assert logp == pytest.approx(float((probs[token] / best.values.sum()).log()), abs=1e-9)


@pytest.mark.parametrize("shape", [*FAMILIES, *FALLBACK])
def test_temperature_nought_is_the_argmax(shape: str) -> None:
    ours = policy(shape)
    answers = engine_with(ours).generate(PROMPTS[:6], Sampling(16, temperature=0), stamp=ours.stamp, seed=0)
    for prompt, answer in zip(PROMPTS[:6], answers, strict=True):
        ids = list(prompt)
        for token in answer.token_ids:
            with torch.no_grad():
                assert int(ours.module(torch.tensor([ids]))[0, -1].argmax()) == token
            ids.append(token)
        assert answer.logprobs == [0.0] * len(answer.token_ids)


@pytest.mark.parametrize("shape", ["llama", *FALLBACK])
def test_weights_other_than_expected_are_refused(shape: str) -> None:
    ours = policy(shape)
    engine = Engine(torch.float32)
    with pytest.raises(StaleWeights, match="holds weights none") as caught:
        engine.generate(PROMPTS, Sampling(4), stamp=ours.stamp, seed=0)
    assert one_sentence(str(caught.value))
    engine.load(ours)
    with pytest.raises(StaleWeights, match="another was expected; load the policy again"):
        engine.generate(PROMPTS, Sampling(4), stamp="another", seed=0)


@pytest.mark.parametrize("shape", ["llama", *FALLBACK])
def test_after_an_optimiser_step_the_old_pack_is_refused_and_the_new_one_right(shape: str) -> None:
    ours = policy(shape)
    engine = engine_with(ours)
    prompts = [Prompt.from_text("Hi"), Prompt.from_text("Tell me a joke.")]
    before = answer_prompts(engine, ours, prompts, Sampling(8), seed=0)
    optimizer = torch.optim.SGD(ours.module.parameters(), 0.5)
    ours.module(torch.tensor([PROMPTS[0]])).logsumexp(-1).sum().backward()
    optimizer.step()
    ours.step += 1
    with pytest.raises(StaleWeights, match=r"\+0 where .*\+1 was expected"):
        answer_prompts(engine, ours, prompts, Sampling(8), seed=0)
    engine.load(ours)
    after = answer_prompts(engine, ours, prompts, Sampling(8), seed=0)
    assert {c.weight_stamp for c in after} == {ours.stamp} != {c.weight_stamp for c in before}
    ids = template().prompt_ids(prompts)
    answers = [Answer(list(c.token_ids), list(c.sampled_logprobs), c.finish_reason) for c in after]
    assert sampled(answers) == pytest.approx(recomputed(ours, ids, answers, 1.0), abs=1e-4)


@pytest.mark.parametrize("shape", ["llama", *FALLBACK])
def test_a_pack_does_not_move_with_the_weights(shape: str) -> None:
    """Weights that change between loading and answering must not leak into answers under the old stamp."""
    ours = policy(shape)
    engine = engine_with(ours)
    before = engine.generate(PROMPTS[:4], Sampling(8), stamp=ours.stamp, seed=0)
    with torch.no_grad():
        for parameter in ours.module.parameters():
            parameter.add_(1.0)
    after = engine.generate(PROMPTS[:4], Sampling(8), stamp=ours.stamp, seed=0)
    assert [a.token_ids for a in after] == [a.token_ids for a in before]


def test_what_cannot_be_answered_is_said_in_one_sentence() -> None:
    ours = policy()
    engine = engine_with(ours)
    with pytest.raises(DataError, match="90 tokens and 7 new ones do not fit the model's context of 96") as caught:
        engine.generate([[5] * 90], Sampling(7), stamp=ours.stamp, seed=0)
    assert one_sentence(str(caught.value))
    assert len(engine.generate([[5] * 90], Sampling(6), stamp=ours.stamp, seed=0)[0].token_ids) <= 6
    with pytest.raises(DataError, match="a prompt without a single token cannot be answered"):
        engine.generate([[5], []], Sampling(7), stamp=ours.stamp, seed=0)


def test_broken_weights_are_not_sampled_from() -> None:
    ours = policy()
    with torch.no_grad():
        ours.module.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="logits that are not finite"):
        engine_with(ours).generate([[5, 6]], Sampling(4), stamp=ours.stamp, seed=0)


def test_no_prompts_no_answers() -> None:
    ours = policy()
    assert engine_with(ours).generate([], Sampling(4), stamp=ours.stamp, seed=0) == []


def test_progress_counts_every_prompt() -> None:
    ours = policy()
    counts: list[int] = []
    engine_with(ours, batch_size=10).generate(PROMPTS, Sampling(2), stamp=ours.stamp, seed=0, progress=counts.append)
    assert counts == [10, 10, 10, 10, 5]


def test_a_completion_tells_where_it_came_from() -> None:
    ours = policy()
    prompt = Prompt.from_text("My cat is bored.")
    found = answer_prompts(engine_with(ours), ours, [prompt], Sampling(8, top_p=0.9), seed=6)[0]
    assert found.prompt_id == prompt.id
    assert found.weight_stamp == ours.stamp
    assert found.text == ours.template.decode(found.token_ids)
    assert found.sampling == {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "seed": 6}
    assert len(found.token_ids) == len(found.sampled_logprobs)
