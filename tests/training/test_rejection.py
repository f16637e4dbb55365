"""Expert iteration: what is kept, what imitating it does, when it cannot go on, and going on where it stopped."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.compute.device import Device
from bridle.core.errors import NoUsableRows, RecipeError, TrainingStopped
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.generation.rollout import Rollout
from bridle.models.batches import Cut
from bridle.models.imitation import Example, imitate
from bridle.models.policy import Policy
from bridle.project.run import Run
from bridle.recipe.online import RejectionSection
from bridle.recipe.recipe import Recipe
from bridle.training import rejection
from tests.training.practice import PROMPTS, Cast, answer_logprob, cast, constant, low_ids
from tests.training.runs import STOP as STOP_ID
from tests.training.runs import dying_at, metrics, run_in, same, weights

CONFIG = RejectionSection(rounds=2, prompts_per_round=8, answers=4, batch_size=4)
NEW_TOKENS = 24  # most answers end by themselves: what is cut off is never kept, and a low limit teaches brevity
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def with_settings(**settings: Any) -> RejectionSection:
    return RejectionSection.model_validate({**CONFIG.model_dump(), **settings})


def train(who: Cast, reward: Reward, config: RejectionSection, run: Run) -> dict[str, float]:
    return rejection.train(who.policy, who.reference, reward, PROMPTS, config, who.session(run, tokens=NEW_TOKENS))


def low_start(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    """1 for an answer whose first token is in the lower third of the vocabulary, whatever its length."""
    return [float(3 <= c.token_ids[0] < 100) for c in completions]


def answered(*answers: tuple[float, int, FinishReason]) -> Rollout:
    """A rollout of answers by reward, length and how each ended; of it `choose` reads no more."""
    completions = [
        Completion("p", "", token_ids=tuple(range(i, i + length)), finish_reason=end)
        for i, (_, length, end) in enumerate(answers)
    ]
    return with_scores(completions, [reward for reward, _, _ in answers])


def with_scores(completions: list[Completion], scores: list[float]) -> Rollout:
    nothing = torch.zeros(0)
    return Rollout(None, nothing, nothing, torch.tensor(scores), nothing, completions, [], 0)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- 1. choosing


def test_the_best_answer_of_each_prompt_is_kept() -> None:
    rollout = answered(
        (0.1, 5, STOP), (0.9, 5, STOP), (0.3, 5, STOP), (0.2, 5, STOP),
        (-3.0, 5, STOP), (-1.0, 5, LENGTH), (-2.0, 5, STOP), (-2.0, 4, STOP),
        (9.0, 5, LENGTH), (9.0, 5, LENGTH), (9.0, 5, LENGTH), (9.0, 5, LENGTH),
    )  # fmt: skip
    assert rejection.choose(rollout, CONFIG) == [1, 6], "what was cut off is never kept, and of equals the first is"


def test_where_all_scored_the_same_none_is_the_best() -> None:
    rollout = answered(*[(reward, 3, STOP) for reward in (0.3, 0.3, 0.3, 0.3, 0.1, 0.1, 0.2, 0.1)])
    assert rejection.choose(rollout, CONFIG) == [6]
    low = with_settings(keep="threshold", threshold=0.2)
    assert rejection.choose(rollout, low) == [0, 1, 2, 3, 6], "a bar compares no answers"
    assert rejection.choose(rollout, with_settings(answers=1)) == list(range(8)), "an only answer is compared with none"


def test_above_a_threshold_all_are_kept_and_each_text_once() -> None:
    rollout = answered(*[(reward, 3, STOP) for reward in (0.5, 0.49, 0.7, 0.5, 0.1, 0.2, 0.3, 0.4)])
    assert rejection.choose(rollout, with_settings(keep="threshold")) == [0, 2, 3]
    again = with_scores([rollout.completions[0]] * 4, [0.6] * 4)
    assert rejection.choose(again, with_settings(keep="threshold")) == [0]


def test_the_shortest_right_answer_is_kept() -> None:
    rollout = answered(
        (1.0, 7, STOP), (0.0, 2, STOP), (1.0, 4, STOP), (1.0, 3, LENGTH), (0.0, 2, STOP), (0.0, 1, STOP), (0.0, 3, STOP),
        (0.0, 3, STOP),
    )  # fmt: skip
    assert rejection.choose(rollout, with_settings(keep="shortest")) == [2]


@pytest.mark.parametrize(("lucky", "kept"), [(0.05, "worked"), (0.4, "bare")])
def test_a_lucky_guess_is_not_the_shortest_right_answer(lucky: float, kept: str) -> None:
    """Of 40 prompts 15 answers each, five of them bare; worked ones are right half of the time. Where bare ones are as well, they are
    shorter and as good."""
    bare = iter(range(10_000))
    rollout = answered(
        *[
            (float(next(bare) % 20 < 20 * lucky), 2, STOP)
            if place % 3 == 0
            else (float(place % 2), 8 + prompt % 3, STOP)
            for prompt in range(40)
            for place in range(15)
        ]
    )
    chosen = rejection.choose(rollout, with_settings(keep="shortest", answers=15))
    lengths = [len(rollout.completions[i].token_ids) for i in chosen]
    assert len(chosen) == 40 and (min(lengths) >= 8 if kept == "worked" else lengths.count(2) == 20)


def test_a_prompt_of_lucky_guesses_alone_teaches_nothing() -> None:
    rows = [[(0.0, 2), (1.0, 8), (1.0, 9), (1.0, 8)] for _ in range(99)] + [[(1.0, 2), (0.0, 8), (0.0, 9), (0.0, 8)]]
    rollout = answered(*[(reward, length, STOP) for row in rows for reward, length in row])
    chosen = rejection.choose(rollout, with_settings(keep="shortest"))
    assert chosen == [4 * prompt + 1 for prompt in range(99)]
    few = answered(*[(reward, length, STOP) for row in rows[90:] for reward, length in row])
    assert len(rejection.choose(few, with_settings(keep="shortest"))) == 10, "of so few answers nothing can be told"


def test_the_best_right_answer_is_kept() -> None:
    """Several sources added up: 1 for a right answer and something besides; where none is right none is kept."""
    rollout = answered(
        (1.2, 7, STOP), (0.4, 2, STOP), (1.4, 9, STOP), (1.9, 3, LENGTH), (0.4, 2, STOP), (0.3, 1, STOP), (0.2, 3, STOP),
        (0.1, 3, STOP),
    )  # fmt: skip
    assert rejection.choose(rollout, with_settings(keep="best_right", threshold=1.0)) == [2]


def test_a_wrong_answer_is_no_example() -> None:
    wrong = {"rejection.scored_by": "verifier", "rejection.keep": "best"}
    with pytest.raises(RecipeError, match="would imitate a wrong answer.*'shortest', 'threshold' or 'best_right'"):
        Recipe().with_settings(wrong)
    assert Recipe().with_settings({**wrong, "rejection.keep": "shortest"}).rejection.scored_by == "verifier"


# ---------------------------------------------------------------------------------------------------- 2. rounds


def test_no_prompts_is_said(tmp_path: Path) -> None:
    who = cast()
    with pytest.raises(NoUsableRows, match="best-of-n needs prompts"):
        rejection.train(who.policy, who.reference, constant, [], CONFIG, who.session(run_in(tmp_path)))


def test_a_round_in_which_nothing_is_worth_keeping_ends_the_run_before_any_step(tmp_path: Path) -> None:
    who = cast()
    before = weights(who.policy.module)
    with pytest.raises(TrainingStopped, match=r"none of 32 answers .*best reward 0\.3.*lower rejection\.threshold"):
        train(who, constant, with_settings(keep="threshold"), run_in(tmp_path))
    assert same(before, who.policy.module)


def test_what_is_kept_becomes_likelier_stop_token_and_all() -> None:
    who = cast()
    rollout = who.roll_out(low_ids)
    kept = rejection.choose(rollout, CONFIG)
    assert len(kept) >= 2
    before = [answer_logprob(who.policy, rollout, row).detach() for row in kept]
    prompts = who.policy.template.prompt_ids([rollout.prompts[i] for i in kept])
    examples = [(ids, list(rollout.completions[i].token_ids)) for ids, i in zip(prompts, kept, strict=True)]
    optimizers = [torch.optim.AdamW(who.policy.module.parameters(), 1e-3)]
    rejection.imitate_kept(who.policy, who.steps(optimizers), examples, with_settings(epochs=3), number=0)
    after = [answer_logprob(who.policy, rollout, row).detach() for row in kept]
    assert all(float(new.sum()) > float(old.sum()) for new, old in zip(after, before, strict=True))
    assert sum(float(new[-1]) for new in after) > sum(float(old[-1]) for old in before), "the stop token"


def test_what_is_rewarded_becomes_likelier_and_the_log_adds_up(tmp_path: Path) -> None:
    config = RejectionSection(rounds=4, prompts_per_round=24, answers=6, learning_rate=3e-3)
    train(cast(), low_start, config, run_in(tmp_path))
    lines = metrics(tmp_path)
    assert lines[-1]["reward"] - lines[0]["reward"] > 0.3, [line["reward"] for line in lines]
    assert all(line["kept_reward"] > line["reward"] and 0 < line["taught"] <= 1 for line in lines)
    assert all(line["kept"] == round(24 * line["taught"]) for line in lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-3) and lines[-1]["kl"] > 0.1


@pytest.mark.parametrize("of_prompts", [False, True])
def test_a_reward_that_is_alike_for_all_answers_to_a_prompt_moves_nothing(of_prompts: bool, tmp_path: Path) -> None:
    """The same for every answer, or another for each prompt."""

    def alike(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [float(len(prompt.text) if of_prompts else 0.3) for prompt in prompts]

    who, run = cast(), run_in(tmp_path)
    before = weights(who.policy.module)
    figures = train(who, alike, with_settings(rounds=3, learning_rate=1e-3), run)
    assert same(before, who.policy.module) and figures["kl"] == figures["kept"] == figures["taught"] == 0
    assert all(line["without_variance"] == 1 and "kept_reward" not in line for line in metrics(tmp_path))
    assert run.watch is not None and {"flat groups", "dead reward"} <= run.watch.warnings().keys()


def test_prompts_without_a_best_answer_are_counted_and_the_others_taught(tmp_path: Path) -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [0.3 if i < 24 else score for i, score in enumerate(low_ids(prompts, completions))]

    run = run_in(tmp_path)
    figures = train(cast(), reward, with_settings(rounds=1), run)
    assert figures["without_variance"] == 0.75 and figures["kept"] == 2 and figures["taught"] == 0.25
    assert run.watch is not None and "dead reward" not in run.watch.warnings()
    bar = with_settings(rounds=1, keep="threshold", threshold=0.0)
    assert "without_variance" not in train(cast(), constant, bar, run_in(tmp_path / "bar"))


def test_rounds_before_one_in_which_nothing_is_worth_keeping_are_saved(tmp_path: Path) -> None:
    run = run_in(tmp_path)

    def worse(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [float(not metrics(tmp_path))] * len(completions)

    with pytest.raises(TrainingStopped, match="none of 32 answers was worth keeping"):
        train(cast(), worse, with_settings(rounds=3, keep="threshold", checkpoint_every=9), run)
    assert run.last_save == 1


def test_every_pass_of_every_round_takes_its_examples_in_an_order_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same eight examples are kept in each round, so that nothing but the seed can change their order."""
    kept: list[Example] = [([40 + i], [50, 60, STOP_ID]) for i in range(8)]
    seen: list[int] = []

    def watch(policy: Policy, chosen: Sequence[Example], device: Device, cut: Cut) -> float:
        seen.extend(kept.index(example) for example in chosen)
        return imitate(policy, chosen, device, cut)

    monkeypatch.setattr(rejection, "kept_examples", lambda policy, rollout, places: kept)
    monkeypatch.setattr(rejection, "imitate", watch)
    train(cast(), low_ids, with_settings(rounds=3, epochs=2, batch_size=2), run_in(tmp_path))
    passes = [tuple(seen[start : start + 8]) for start in range(0, len(seen), 8)]
    assert len(passes) == 6 and all(sorted(order) == list(range(8)) for order in passes)
    assert len(set(passes)) == 6, passes


def test_a_rate_of_zero_changes_no_weight_and_the_reference_stays(tmp_path: Path) -> None:
    who = cast()
    before, theirs = weights(who.policy.module), weights(who.reference.module)
    train(who, low_ids, with_settings(learning_rate=0.0), run_in(tmp_path / "still"))
    assert same(before, who.policy.module)
    train(who, low_ids, CONFIG, run_in(tmp_path / "moved"))
    assert not same(before, who.policy.module) and same(theirs, who.reference.module)


def test_answers_that_cannot_be_judged_are_left_out_with_their_prompt(tmp_path: Path) -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [math.nan if i == 5 else score for i, score in enumerate(low_ids(prompts, completions))]

    figures = train(cast(), reward, with_settings(rounds=1), run_in(tmp_path))
    assert figures["unscored"] == 4 and figures["kept"] <= 7


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_run_that_died_ends_as_one_that_was_left_alone(line: int, tmp_path: Path) -> None:
    config = with_settings(rounds=3, checkpoint_every=2)
    whole, resumed = cast(), cast()
    expected = train(whole, low_ids, config, run_in(tmp_path / "whole"))
    with dying_at(line):
        train(cast(), low_ids, config, run_in(tmp_path / "cut"))
    assert train(resumed, low_ids, config, run_in(tmp_path / "cut")) == expected
    assert same(weights(whole.policy.module), resumed.policy.module) and resumed.policy.stamp == whole.policy.stamp
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
