"""An evaluation while a call trains: what it measures, when, and that it changes nothing."""

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import bridle
from bridle.api.inputs import as_prompts
from bridle.api.models import new_engine
from bridle.api.trainers import comparisons_of, examples_of
from bridle.compute.randomness import derived_seed
from bridle.core.errors import UsageError
from bridle.generation.engine import answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.imitation import imitate
from tests.api.dataset import Dataset
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, same, weights

PROMPTS = [f"What is {i} + {i % 7}?" for i in range(12)]
HELD = [f"Tell me of {i} cats." for i in range(7)]
EXAMPLES = [(prompt, f"It is {i}.") for i, prompt in enumerate(PROMPTS)]
PAIRS = [(prompt, "It is a cat.", "No no no.") for prompt in PROMPTS]
HELD_PAIRS = [(prompt, *(("A cat.", "No.") if i else ("No.", "A cat."))) for i, prompt in enumerate(HELD)]
TOKENS = {"max_new_tokens": 4}

Lines = list[tuple[int, Mapping[str, Any]]]


def drawn(prompts: Any, answers: Any) -> list[float]:
    """A reward with random numbers of its own, from all that a process shares."""
    return [len(one) / 9 + random.random() + float(torch.rand(())) for one in answers]


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any, dict[str, Any], str]] = {
    "sft": (bridle.sft, (EXAMPLES,), [(one, "It is 3.") for one in HELD], {"batch_size": 3, "epochs": 1}, "loss"),
    "reward_model": (bridle.reward_model, (PAIRS,), HELD_PAIRS, {"batch_size": 3, **TOKENS}, "loss accuracy"),
    "dpo": (bridle.dpo, (PAIRS,), HELD_PAIRS, {"batch_size": 3}, "loss accuracy"),
    "simpo": (bridle.dpo, (PAIRS,), HELD_PAIRS, {"batch_size": 3, "loss": "simpo"}, "loss accuracy"),
    "ppo": (bridle.ppo, (PROMPTS, drawn), HELD, {"steps": 4, "prompts_per_step": 6, **TOKENS}, "reward unscored"),
    "grpo": (bridle.grpo, (PROMPTS, drawn), HELD, {"steps": 4, "prompts_per_step": 3, "group_size": 2, **TOKENS}, "reward unscored"),
    "best_of_n": (bridle.best_of_n, (PROMPTS, drawn), HELD, {"rounds": 4, "prompts_per_round": 8, "max_new_tokens": 20}, "reward unscored"),
    "online_dpo": (bridle.online_dpo, (PROMPTS, drawn), HELD, {"online_rounds": 4, "online_prompts": 4, **TOKENS}, "reward unscored"),
}  # fmt: skip


def trained(name: str, **more: Any) -> tuple[bridle.Model, Any, Lines]:
    call, data, _, settings, _ = CALLS[name]
    model, log = bridle.Model(tiny_policy(), DEVICE), list[tuple[int, Mapping[str, Any]]]()
    random.seed(3)
    torch.manual_seed(3)
    result = call(
        model, *data, learning_rate=1e-3, on_log=lambda step, _, line: log.append((step, line)), **settings, **more
    )
    return model, result, log


@pytest.mark.parametrize("name", CALLS)
def test_with_and_without_the_weights_are_the_same_to_the_bit(name: str) -> None:
    """And so is the log but for the evaluation, which comes when it is due and at the end."""
    plain, without, log = trained(name)
    _, _, held, _, metrics = CALLS[name]
    model, result, measured = trained(name, eval=held, eval_every=3)
    if name == "reward_model":
        plain, model = (bridle.Model(plain.policy, DEVICE), model)
        assert same(weights(without.model.module), result.model.module)
        without, result = without.metrics, result.metrics
    assert same(weights(plain.policy.module), model.policy.module)
    names = {f"eval_{one}" for one in metrics.split()}
    due = [step for step, line in measured if names <= line.keys()]
    assert due == [2, 3], "of four steps after the third and the last"
    kept = [(step, {key: v for key, v in line.items() if key not in names}) for step, line in measured]
    assert [one for one in kept if one[1]] == log
    assert names <= result.keys() and not names & without.keys()
    assert {key: v for key, v in result.items() if key not in names | {"seconds"}} == {
        key: v for key, v in without.items() if key != "seconds"
    }


def test_about_ten_times_where_nothing_is_said() -> None:
    """On lines of their own where SFT logs none; a resumed call measures what an uninterrupted one does."""
    model, log = bridle.Model(tiny_policy(), DEVICE), list[Any]()
    bridle.sft(model, EXAMPLES, eval=EXAMPLES, epochs=21, batch_size=12, on_log=lambda *line: log.append(line))
    due = [step for step, _, line in log if "eval_loss" in line]
    assert due == [*range(1, 21, 2), 20] and any(line.keys() == {"eval_loss"} for _, _, line in log)
    with pytest.raises(UsageError, match="eval_every = -1 is invalid"):
        bridle.sft(model, EXAMPLES, eval=EXAMPLES, eval_every=-1)


def test_a_resumed_call_measures_the_same(tmp_path: Path) -> None:
    def call(stop: int = -1) -> tuple[list[Any], Any]:
        model, lines = bridle.Model(tiny_policy(), DEVICE), list[Any]()

        def log(step: int, total: int, line: Mapping[str, Any]) -> None:
            lines.append((step, dict(line)))
            if step == stop:
                raise ZeroDivisionError

        settings: dict[str, Any] = {"steps": 4, "prompts_per_step": 6, "eval": HELD, "eval_every": 1, **TOKENS}
        reward = lambda prompts, answers: [float(len(one)) for one in answers]  # noqa: E731
        folder = None if stop == -2 else tmp_path / "run"
        return lines, bridle.ppo(model, PROMPTS, reward, on_log=log, folder=folder, **settings)

    whole, result = call(stop=-2)
    with pytest.raises(ZeroDivisionError):
        call(stop=1)
    rest, again = call()
    assert rest == whole[2:] and again["eval_reward"] == result["eval_reward"] == whole[-1][1]["eval_reward"]


def test_a_loss_is_that_of_all_rows_as_one() -> None:
    model, result, _ = trained("sft", eval=CALLS["sft"][2])
    rows = examples_of(model, CALLS["sft"][2])
    with torch.no_grad():
        assert result["eval_loss"] == pytest.approx(imitate(model.policy, rows, DEVICE), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.policy.module.parameters())
    names = ("prompt", "chosen", "rejected")
    _, judge, _ = trained("reward_model", eval=Dataset([dict(zip(names, row, strict=True)) for row in HELD_PAIRS]))
    better, worse = (judge(HELD, [row[side] for row in HELD_PAIRS]) for side in (1, 2))
    right = sum(a > b for a, b in zip(better, worse, strict=True))
    assert judge.metrics["eval_accuracy"] == pytest.approx(right / len(HELD)) and 0 < right < len(HELD)
    still = bridle.Model(tiny_policy(), DEVICE)
    found = bridle.dpo(still, PAIRS, eval=HELD_PAIRS, learning_rate=0.0, batch_size=3)
    assert found["eval_loss"] == pytest.approx(math.log(2)) and len(comparisons_of(still, HELD_PAIRS)) == 7


def test_a_reward_is_that_of_fresh_answers_with_the_penalty() -> None:
    """Columns reach it, a sum is measured by its parts too, and what cannot be judged is left out."""

    def long(prompts: Any, answers: Any, level: Any) -> list[float | None]:
        return [None if one == 2 else len(answer) + one for answer, one in zip(answers, level, strict=True)]

    rows = Dataset([{"prompt": prompt, "level": i} for i, prompt in enumerate(HELD)])
    model = bridle.Model(tiny_policy(), DEVICE)
    found = bridle.rebel(
        model, rows, [long], eval=rows, steps=2, prompts_per_step=6, missing_stop_penalty=3.0, **TOKENS
    )
    engine = new_engine(DEVICE)
    engine.load(model.policy)
    answers = answer_prompts(
        engine, model.policy, as_prompts(HELD), Sampling(4, 1.0), seed=derived_seed(0, "eval", 0)
    )  # fmt: skip
    judged = [
        len(answer.text) + i - 3.0 * (answer.finish_reason == "length") for i, answer in enumerate(answers) if i != 2
    ]
    assert found["eval_reward"] == pytest.approx(sum(judged) / len(judged)) and found["eval_unscored"] == 1
    assert found["eval_reward_long"] == pytest.approx(
        sum(len(a.text) + i for i, a in enumerate(answers) if i != 2) / 6
    )  # fmt: skip
