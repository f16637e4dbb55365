"""Answers by workers: those of the engine in process, whoever is lost, and by which weights is fixed by the step alone."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.compute.randomness import generator
from bridle.compute.workers import Worker
from bridle.core.errors import StaleWeights, TrainingStopped, WorkerLost
from bridle.core.timeline import Parts
from bridle.generation.engine import Answer, Engine
from bridle.generation.pool import Answerer, PoolEngine, fill_tensors, part_size, without_weights, write_for_workers
from bridle.generation.rollout import RolloutSession
from bridle.generation.sampling import Sampling
from bridle.launch.processes import local_workers
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy
from bridle.models.scorer import Scorer
from bridle.recipe.data import LoRASection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RLOOSection
from bridle.training import grpo, ppo, rebel, rloo
from tests.exact.world import LONGEST, PROMPTS, TableEngine, World, critic
from tests.models.tiny import CPU, one_sentence, template
from tests.models.tiny import policy as tiny_policy
from tests.training.practice import PROMPTS as QUESTIONS
from tests.training.practice import low_ids
from tests.training.runs import DEVICE, dying_at, metrics, run_in


@dataclass(eq=False)
class Inline:
    """A worker in this very process, which does at once what it is asked; `lost` after so many calls."""

    held: Any
    place: str
    lost: float = math.inf
    asked: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        self.asked.append((method, arguments))
        try:
            if len(self.asked) > self.lost:
                raise WorkerLost(f"{self.place} is gone")
            answer.set_result(methodcaller(method, *arguments)(self.held))
        except Exception as error:
            answer.set_exception(error)
        return answer

    def end(self) -> None:
        self.lost = 0


@dataclass
class Inlines:
    """Starts such workers."""

    lost: Sequence[float] = ()
    there: list[Inline] = field(default_factory=list)

    def __call__(self, make: Callable[[], Any], count: int) -> list[Worker]:
        ends = [*self.lost, *[math.inf] * count]
        self.there = [Inline(make(), f"worker {number}", ends[number]) for number in range(count)]
        return [*self.there]


class Plain(Answerer):
    """Without a choice of device, which would change this process's."""

    def __init__(self) -> None:
        self.module, self.device, self.engine = None, DEVICE, Engine(torch.float32, 32)


def speaking(policy: Policy) -> Policy:
    with torch.no_grad():  # some answers end, others are cut off
        policy.module.output_weight()[template().eos_id] *= 1.5
    return policy


@pytest.fixture
def pools() -> Iterator[Callable[..., PoolEngine]]:
    made = list[PoolEngine]()

    def pool(start: Any, make: Any = Plain, workers: int = 2, said: list[str] | None = None) -> PoolEngine:
        made.append(PoolEngine(start, make, workers, list[str]().append if said is None else said.append))
        return made[-1]

    yield pool
    for one in made:
        one.close()


def asked_of(engine: Any, policy: Policy, count: int = 50) -> list[Any]:
    engine.load(policy)
    ids = policy.template.prompt_ids([QUESTIONS[i % len(QUESTIONS)] for i in range(count)])
    found: list[Any] = engine.generate(ids, Sampling(6), stamp=policy.stamp, seed=5)
    return found


def alike(found: Sequence[Answer], expected: Sequence[Answer]) -> bool:
    """The same tokens; log-probs but for the last digits, where rows were in other company."""
    whole = [(a.token_ids, a.finish_reason) for a in found] == [(a.token_ids, a.finish_reason) for a in expected]
    logprobs = [[logp for a in answers for logp in a.logprobs] for answers in (found, expected)]
    return whole and logprobs[0] == pytest.approx(logprobs[1], abs=1e-5)


def moved(policy: Policy) -> Policy:
    with torch.no_grad():
        for weight in policy.module.parameters():
            if weight.requires_grad:
                weight.add_(0.01 * torch.sin(torch.arange(weight.numel()).view(weight.shape)))
    policy.step += 1
    return policy


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])
def test_answers_are_those_of_the_engine(kind: str, pools: Any) -> None:
    """Also after the weights have moved, tied or not, native or not."""
    policy, engine, pool = speaking(tiny_policy(kind)), Engine(torch.float32, 32), pools(Inlines())
    for _ in range(2):
        assert alike(asked_of(pool, policy), asked_of(engine, policy))
        moved(policy)


def test_of_an_adapter_only_what_learns_is_sent_again(pools: Any) -> None:
    policy, start, engine = (
        learner(speaking(tiny_policy()), LoRASection(r=2), generator(0, "adapter", 0)),
        Inlines(),
        Engine(torch.float32, 32),
    )
    pool = pools(start)
    for _ in range(2):
        assert alike(asked_of(pool, moved(policy)), asked_of(engine, policy))
    first, second = (arguments[0] for method, arguments in start.there[0].asked if method == "take")
    assert len(second.tensors) < len(first.tensors) and all("lora" in name for name, _, _ in second.tensors)
    assert second.module is None and second.size < first.size / 5


def test_a_worker_elsewhere_is_sent_the_bytes(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, start, engine = speaking(tiny_policy()), Inlines(), Engine(torch.float32, 32)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert alike(asked_of(pools(start), policy), asked_of(engine, policy))
    assert [len(arguments) for method, arguments in start.there[0].asked if method == "take"] == [1, 2]


def test_weights_that_arrive_otherwise_end_the_run(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Plain.take_bytes
    monkeypatch.setattr(Plain, "take_bytes", lambda self, weights, data: plain(self, weights, data[:-1] + b"?"))
    with pytest.raises(
        TrainingStopped, match=r"the weights that worker 0 received are not .* \(hash \w{12} where \w{12}"
    ) as stopped:
        asked_of(pools(Inlines()), speaking(tiny_policy()))
    assert one_sentence(str(stopped.value))


def test_a_lost_worker_costs_only_its_share(pools: Any) -> None:
    policy, said, start = speaking(tiny_policy()), list[str](), Inlines(lost=[2])
    found = asked_of(pools(start, workers=3, said=said), policy, 150)
    assert alike(found, asked_of(Engine(torch.float32, 32), policy, 150))
    assert said == ["worker 0 is gone; its share is answered by the 2 of 3 workers that are left"]
    whole = [sum(len(a[0].ids) for m, a in one.asked if m == "answer") for one in start.there]
    assert sum(whole) == 150 + len(start.there[0].asked[2][1][0].ids), "no more than its last part is answered again"


@pytest.mark.parametrize("after", [0, 1])
def test_without_workers_there_are_no_answers(after: int, pools: Any) -> None:
    with pytest.raises(TrainingStopped, match="none of 2 rollout workers is left"):
        asked_of(pools(Inlines(lost=[after, after])), speaking(tiny_policy()))


def test_what_fails_in_a_worker_is_said_here(pools: Any) -> None:
    policy = speaking(tiny_policy())
    with torch.no_grad():
        policy.module.output_weight().fill_(math.nan)
    with pytest.raises(Exception, match="not finite|NaN|nan"):
        asked_of(pools(Inlines()), policy)


def test_other_weights_than_expected_are_refused(pools: Any) -> None:
    pool, policy = pools(Inlines()), tiny_policy()
    pool.load(policy)
    with pytest.raises(StaleWeights, match="the workers were handed weights .* where other was expected"):
        pool.begin([[5]], Sampling(2), stamp="other", seed=0)


@pytest.mark.parametrize(
    ("left", "workers", "size"), [(100, 1, 100), (100, 2, 25), (20, 2, 16), (5, 2, 5), (400, 4, 50)]
)
def test_parts_grow_smaller(left: int, workers: int, size: int) -> None:
    assert part_size(left, workers) == size


def test_a_network_without_weights() -> None:
    """Takes no room, keeps ties, and leaves the original alone."""
    policy = tiny_policy("qwen3")
    before = {name: tensor.clone() for name, tensor in policy.module.state_dict().items()}
    hollow = without_weights(policy.module)
    assert all(not weight.numel() for weight in hollow.parameters())
    assert len(list(hollow.parameters())) == len(list(policy.module.parameters()))
    weights, file = write_for_workers(policy, whole=True)
    with file:
        file.seek(0)
        fill_tensors(hollow, weights, bytearray(file.read()), CPU)
    for name, tensor in hollow.state_dict().items():
        assert torch.equal(tensor, before[name]) and torch.equal(policy.module.state_dict()[name], before[name])
        assert tensor.data_ptr() != policy.module.state_dict()[name].data_ptr()


# --------------------------------------------------------------------------------- answers by weights of earlier steps


class Tables(TableEngine):
    """What a worker holds in the world of tables."""

    def take(self, weights: Any, data: bytes | None = None) -> str:
        if weights.module is not None:
            self.module = weights.module[0]
        with weights.path.open("rb") as file:
            fill_tensors(self.module, weights, bytearray(file.read()), CPU)
        self.stamp, self.logits_SV = weights.stamp, self.module.output_weight().detach().T.clone()
        return str(weights.hash)

    def answer(self, asked: Any) -> tuple[list[Any], Parts]:
        return self.generate(asked.ids, asked.settings, stamp=asked.stamp, seed=asked.seed, samples=asked.samples), {}


TRAIN: dict[str, Callable[[World, Policy, RolloutSession, int], Any]] = {
    "ppo": lambda world, policy, session, steps: ppo.train(
        ppo.Actors(policy, world.policy("reference"), critic()), world.reward(), PROMPTS, [],
        PPOSection(
            steps=steps, prompts_per_step=256, epochs=2, minibatches=2, batch_size=512, learning_rate=0.1, checkpoint_every=2,
            critic_learning_rate=0.05, kl_coef=0.3, kl_target=0.0, clip_norm=100.0, value_clip=10.0,
        ), session,
    ),
    "grpo": lambda world, policy, session, steps: grpo.train(
        policy, world.policy("reference"), world.reward(), PROMPTS,
        GRPOSection(
            steps=steps, prompts_per_step=64, group_size=4, batch_size=512, learning_rate=0.1, checkpoint_every=2,
            clip_norm=100.0,
        ), session,
    ),
    "rloo": lambda world, policy, session, steps: rloo.train(
        policy, world.policy("reference"), world.reward(), PROMPTS,
        RLOOSection(
            steps=steps, prompts_per_step=64, group_size=4, batch_size=512, learning_rate=0.1, checkpoint_every=2,
            kl_coef=0.3, clip_norm=100.0,
        ), session,
    ),
    "rebel": lambda world, policy, session, steps: rebel.train(
        policy, world.policy("reference"), world.reward(), PROMPTS,
        REBELSection(
            steps=steps, prompts_per_step=128, batch_size=512, learning_rate=0.1, eta=1.0, checkpoint_every=2, kl_coef=0.3,
            clip_norm=100.0,
        ), session,
    ),
}  # fmt: skip


def trained(name: str, folder: Path, pools: Any, staleness: int = 1, steps: int = 6) -> tuple[torch.Tensor, list[Any]]:
    world, pool = World.made(), pools(Inlines(), Tables)
    policy = world.policy()
    session = RolloutSession(
        run_in(folder), DEVICE, 0, pool, LONGEST, staleness=staleness, importance_cap=2.0 if staleness else 0.0
    )
    TRAIN[name](world, policy, session, steps)
    return policy.module.output_weight().detach(), metrics(folder)


@pytest.mark.parametrize("name", TRAIN)
def test_answers_a_step_behind_teach_all_the_same(name: str, tmp_path: Path, pools: Any) -> None:
    """The reward rises, twice the same way; the first rollout is of the present weights, and of the last one's all others."""
    weights, lines = trained(name, tmp_path / "a", pools)
    again, _ = trained(name, tmp_path / "b", pools)
    assert torch.equal(weights, again)
    assert [line["staleness"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert lines[0]["logprob_gap"] < 1e-6 < lines[1]["logprob_gap"] and lines[0]["clipped_share"] == 0
    assert max(line["clipped_share"] for line in lines) < 0.5
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.2


@pytest.mark.parametrize("name", TRAIN)
def test_a_pool_without_staleness_learns_as_one_process(name: str, tmp_path: Path, pools: Any) -> None:
    weights, lines = trained(name, tmp_path / "pool", pools, staleness=0, steps=3)
    world = World.made()
    policy = world.policy()
    TRAIN[name](world, policy, RolloutSession(run_in(tmp_path / "alone"), DEVICE, 0, TableEngine(), LONGEST), 3)
    assert torch.equal(weights, policy.module.output_weight().detach()) and lines == metrics(tmp_path / "alone")


def test_which_weights_answer_is_fixed_after_a_resume(tmp_path: Path, pools: Any) -> None:
    """Again the first rollout is of the present weights; resumed twice from the same step, it ends the same."""
    found = []
    for folder in ("a", "b"):
        with dying_at(4):
            trained("ppo", tmp_path / folder, pools)
        found.append(trained("ppo", tmp_path / folder, pools))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    ages = [line["staleness"] for line in found[0][1]]
    assert ages.count(0) == 2 and len(ages) == 6


def test_answers_may_be_two_steps_behind(tmp_path: Path, pools: Any) -> None:
    _, lines = trained("ppo", tmp_path, pools, staleness=2, steps=5)
    assert [line["staleness"] for line in lines] == [0, 1, 2, 2, 2]


@pytest.mark.slow
def test_processes_learn_as_one_does(tmp_path: Path, pools: Any) -> None:
    """Three steps of PPO by two processes, one of which is killed in the middle: the curve of the engine in process."""

    def learn(folder: Path, engine: Any, kill: Any = None) -> list[Any]:
        policy, reference = speaking(tiny_policy()), speaking(tiny_policy())
        torch.manual_seed(0)
        values = Scorer(tiny_policy().module.model)
        config = PPOSection(steps=3, prompts_per_step=48, batch_size=48, learning_rate=0.01, checkpoint_every=1)

        def reward(prompts: Any, completions: Any) -> Any:
            if kill is not None:
                kill()
            return low_ids(prompts, completions)

        session = RolloutSession(run_in(folder), DEVICE, 0, engine, 8)
        ppo.train(ppo.Actors(policy, reference, values), reward, QUESTIONS, [], config, session)
        return metrics(folder)

    alone = learn(tmp_path / "alone", Engine(torch.float32, 256))
    make, said = partial(Answerer, DEVICE.arithmetic, 1, 256), list[str]()
    pool = pools(local_workers, make, said=said)
    one = learn(tmp_path / "pool", pool)
    victim = int(pool.workers[0].place.split()[1])
    pool.stamp = ""
    two = learn(tmp_path / "killed", pool, lambda: os.kill(victim, signal.SIGKILL) if not said else None)
    assert len(said) == 1 and f"process {victim} is gone; its share is answered by the 1 of 2" in said[0]
    for lines in (one, two):
        for line, expected in zip(lines, alone, strict=True):
            assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)
