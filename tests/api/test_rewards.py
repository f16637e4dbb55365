"""Rewards of one's own: called as they ask to be, with the rows' columns, in bridle's way or TRL's, one or several."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import bridle
from bridle.api.inputs import prompts_of
from bridle.api.rewards import reward_names, reward_source
from bridle.core.errors import DataError, ProjectError, UsageError
from bridle.core.records import Completion, Prompt
from bridle.models.policy import Policy
from tests.api.dataset import Dataset
from tests.models.tiny import one_sentence
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, same, weights

TURNS = [{"role": "user", "content": "Hello!"}]
ROWS = [
    {"prompt": "What is 1?", "solution": "1", "level": 3},
    {"prompt": TURNS, "solution": "2", "level": None},
]
FEW: dict[str, Any] = {"steps": 2, "prompts_per_step": 8, "max_new_tokens": 4}


@pytest.fixture
def model() -> bridle.Model:
    return bridle.Model(tiny_policy(), DEVICE)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def scores(reward: Any, policy: Policy, rows: Any = None, shares: Any = None) -> Any:
    """Of one answer to each row, as a trainer would ask."""
    asked: Sequence[Prompt] = prompts_of(Dataset(ROWS) if rows is None else rows)
    answers = [Completion(prompt.id, f"It is {i}.", (5, 6, i)) for i, prompt in enumerate(asked, 1)]
    return reward_source(reward, shares, policy, asked)(asked, answers)


def by_name(prompts: Any, answers: Any, solution: Any) -> list[float]:
    assert prompts == ["What is 1?", TURNS] and answers == ["It is 1.", "It is 2."]
    return [float(right in answer) for right, answer in zip(solution, answers, strict=True)]


def by_all(questions: Any, replies: Any, **columns: Any) -> list[float]:
    assert columns == {"solution": ["1", "2"], "level": [3, None]}
    return [float(len(questions)), float(len(replies))]


def by_default(prompts: Any, answers: Any, *, level: Any, weight: float = 2.0) -> list[float]:
    return [weight * (3 if one is None else one) for one in level]


def trl(completions: Any, solution: Any, **kwargs: Any) -> list[float | None]:
    """Text to text, a message to messages, as TRL has each by itself."""
    assert completions == ["It is 1.", [{"role": "assistant", "content": "It is 2."}]]
    assert kwargs == {"prompts": ["What is 1?", TURNS], "completion_ids": [[5, 6, 1], [5, 6, 2]], "level": [3, None]}
    return [1.0, None]


def trl_by_name(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
    return [float(len(ids) + len(prompt)) for prompt, ids in zip(prompts, completion_ids, strict=True)]


class Scorer:
    def __call__(self, completions: Any, level: Any) -> list[float]:
        return [float(one or 0) for one in level]


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (by_name, [1.0, 1.0]),
        (by_all, [2.0, 2.0]),
        (by_default, [6.0, 6.0]),
        (partial(by_default, weight=1.0), [3.0, 3.0]),
        (trl, [1.0, None]),
        (trl_by_name, [13.0, 4.0]),
        (Scorer(), [3.0, 0.0]),
        (lambda prompts, answers: [len(one) for one in answers], [8.0, 8.0]),
        (lambda *both: [0.5] * len(both[0]), [0.5, 0.5]),
        (lambda prompts, answers, verbose=False: torch.tensor([1.0, 2.0]), [1.0, 2.0]),
    ],
)
def test_a_function_is_called_as_it_asks_to_be(
    reward: Callable[..., Any], expected: list[float | None], policy: Policy
) -> None:
    assert scores(reward, policy) == expected


def classifier() -> Any:
    sizes: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, num_attention_heads=1, num_labels=1))


@pytest.mark.parametrize(
    ("reward", "rows", "words"),
    [
        (by_name, [{"prompt": "a", "answer": "b"}], "reward by_name takes solution, and the rows have answer beside"),
        (trl, ["a", "b"], "reward trl takes solution, and the rows have nothing beside the prompt"),
        (
            by_all,
            [{"prompt": "a", "replies": "b"}],
            "the rows have a column replies, and by that name the reward by_all",
        ),
        (trl, [{"prompt": "a", "solution": "b", "completions": "c"}], "a column completions, and by that name"),
        (classifier(), None, "LlamaForSequenceClassification .* without its tokenizer; give bridle.load_reward"),
        ("ORG/NAME", None, "a reward is a function .*got str 'ORG/NAME'"),
        ([], None, "0 rewards need as many weights"),
    ],
)
def test_what_cannot_be_called_is_refused_before_anything_is_answered(
    reward: Any, rows: Any, words: str, policy: Policy
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        scores(reward, policy, rows)
    assert one_sentence(str(caught.value))


def test_several_rewards_are_weighed_and_logged_by_name(model: bridle.Model) -> None:
    """None of one is None of the sum, which leaves the answer out and counts it."""

    def short(prompts: Any, answers: Any) -> list[float]:
        return [-float(len(answer)) for answer in answers]

    def level_of(completions: Any, level: Any, **kwargs: Any) -> list[float | None]:
        return [None if one == 0 else float(one) for one in level]

    log = list[Any]()
    rows = Dataset([{"prompt": f"What is {i}?", "level": i} for i in range(8)])
    settings: dict[str, Any] = {**FEW, "missing_stop_penalty": 0.0, "on_log": lambda *line: log.append(line[2])}
    bridle.rloo(model, rows, reward=[short, level_of], reward_weights=[1, 0.5], group_size=2, **settings)
    assert len(log) == 2
    for line in log:
        assert line["unscored_level_of"] == line["unscored"] == 2 and line["unscored_short"] == 0
        assert line["reward_level_of"] == 4.0 and line["reward_short"] < 0
    found = scores([short, level_of], model.policy, [{"prompt": "a", "level": 4}], [1, 0.5])
    assert list(found) == [-8.0 + 2.0] and found.metrics["reward_level_of"] == 4.0
    assert list(scores([short, level_of], model.policy, [{"prompt": "a", "level": 4}])) == [-4.0]
    before = weights(model.policy.module)
    bridle.grpo(model, rows, [short, level_of], reward_weights=[1, 0.5], group_size=2, normalise="each", **settings)
    assert not same(before, model.policy.module)


@pytest.mark.parametrize(
    ("reward", "given", "words"),
    [
        (by_name, [1.0], "reward_weights weigh several rewards, and one was given"),
        ([by_name, trl], [1.0], "2 rewards need as many weights, finite numbers, got reward_weights=list"),
        ([by_name, trl], [1.0, float("nan")], "2 rewards need as many weights, finite numbers"),
    ],
)
def test_weights_fit_the_rewards(reward: Any, given: list[float], words: str, policy: Policy) -> None:
    with pytest.raises(UsageError, match=words):
        scores(reward, policy, shares=given)


def test_names_in_the_log_are_told_apart() -> None:
    other = lambda prompts, answers: [0.0]  # noqa: E731
    assert reward_names([by_name, partial(by_name), other, Scorer()]) == [
        "by_name_1",
        "by_name_2",
        "lambda_3",
        "Scorer",
    ]


def test_a_function_that_gives_no_list_is_told_so_in_a_sum_too(policy: Policy) -> None:
    with pytest.raises(DataError, match="the reward function gave NoneType 'None' for 2 answers"):
        scores([by_name, lambda prompts, answers: None], policy)


def test_other_columns_or_weights_do_not_resume(tmp_path: Path) -> None:
    """What the rows hold, the weights and the reward models among several are compared; functions cannot be."""

    def call(solution: object, reward: Any, given: list[float] | None = None) -> Any:
        rows = [{"prompt": "What is 1?", "solution": solution}] * 4
        start = bridle.Model(tiny_policy(), DEVICE)
        return bridle.rebel(start, rows, reward, reward_weights=given, folder=tmp_path / "run", **FEW)

    one = lambda prompts, answers: [float(len(answer)) for answer in answers]  # noqa: E731
    first = call({1, 2}, [one, one], [1.0, 2.0])
    assert call({3}, [one, one], [1.0, 2.0])["reward"] == first["reward"], "a set counts by its type, for JSON has none"
    for solution, given in (("3", [1.0, 2.0]), ({1, 2}, [1.0, 3.0])):
        with pytest.raises(ProjectError, match="begun with other settings, other data or another model"):
            call(solution, [one, one], given)
