"""The course: each lesson passes with its solution, says what is missing while it is unfilled, and helps with what learners get wrong."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch

from bridle.maths import statistics
from bridle.maths.advantages import gae, group_relative, leave_one_out
from bridle.maths.kl import k1
from bridle.maths.losses import bradley_terry, clipped_policy, dpo, next_token, rloo
from tests.course.wrong_answers import WRONG
from tests.house.source import ROOT, Source
from tests.house.test_size import long_files, long_functions, many_parameters

COURSE = ROOT / "docs" / "course"
FUNCTIONS = {
    1: "next_token_loss",
    2: "sft_loss",
    3: "ranking_loss",
    4: "policy_gradient_loss",
    5: "ppo_loss",
    6: "dpo_loss",
    7: "group_advantages",
    8: "best_of_n",
}


@pytest.fixture(autouse=True)
def as_if_run_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lesson imports what lies beside it, and computes in float64."""
    monkeypatch.syspath_prepend(str(COURSE))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@cache
def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"course.{name}", COURSE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checking() -> Any:
    import checking  # type: ignore[import-not-found]

    return checking


def solved(number: int) -> Callable[..., Any]:
    found: Callable[..., Any] = checking().solution(COURSE / f"lesson_{number}.py", FUNCTIONS[number])
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("number", FUNCTIONS)
def test_a_solution_is_right(number: int, seed: int) -> None:
    held = list(load(f"lesson_{number}").check(solved(number), seed))
    assert len(held) >= 3


@pytest.mark.parametrize("number", FUNCTIONS)
def test_an_unfilled_lesson_says_so(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = COURSE / f"lesson_{number}.py"
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    line = next(
        n for n, text in enumerate(path.read_text("utf-8").splitlines(), 1) if f"def {FUNCTIONS[number]}" in text
    )
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith(
        f"{FUNCTIONS[number]} is still to be filled in: lesson_{number}.py, line {line}."
    )


@pytest.mark.parametrize(
    ("number", "function", "sentence"),
    [
        pytest.param(number, function, sentence, id=f"{number}-{function.__name__}")
        for number, wrong in WRONG.items()
        for function, sentence in wrong.items()
    ],
)
def test_a_wrong_answer_is_refused_with_what_helps(number: int, function: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(checking().Wrong, match=re.escape(sentence)):
        list(load(f"lesson_{number}").check(function, 0))


def test_another_standard_deviation_is_not_wrong() -> None:
    def divided_by_K(reward_GK: torch.Tensor) -> torch.Tensor:
        return (reward_GK - reward_GK.mean(1, keepdim=True)) / (reward_GK.std(1, keepdim=True, correction=0) + 1e-8)

    assert any("your std divides by K;" in held for held in load("lesson_7").check(divided_by_K, 0))


# ------------------------------------------------------------------------------------------------- how a lesson runs


def run(function: Callable[..., Any], number: int, monkeypatch: pytest.MonkeyPatch) -> int:
    lesson = load(f"lesson_{number}")
    monkeypatch.setattr(sys, "argv", [f"lesson_{number}.py"])
    with pytest.raises(SystemExit) as ended:
        checking().run(function, lesson.check, lesson.picture)
    return int(str(ended.value.code))


def test_what_is_right_is_drawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for number in FUNCTIONS:
        assert run(solved(number), number, monkeypatch) == 0
        out = capsys.readouterr().out
        assert "  right: " in out and "█" in out and f"answers in solutions/lesson_{number}.py" in out


def test_a_wrong_answer_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(next(iter(WRONG[6])), 6, monkeypatch) == 1
    assert "\n  not yet: Your gradient points away" in f"\n{capsys.readouterr().out}"


def test_an_exception_of_ones_own_is_told_by_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sft_loss(logp_BT: torch.Tensor, prompt_B: torch.Tensor, answer_B: torch.Tensor) -> torch.Tensor:
        return logp_BT[:, : prompt_B + 1]

    assert run(sft_loss, 2, monkeypatch) == 1
    line = sft_loss.__code__.co_firstlineno + 1
    assert f"not yet: line {line} of lesson_2.py stopped with TypeError: " in capsys.readouterr().out


def test_a_fault_of_the_courses_own_is_not_called_the_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, seed: int) -> Iterator[str]:
        yield "so far"
        raise KeyError("ours")

    monkeypatch.setattr(sys, "argv", ["lesson_1.py"])
    with pytest.raises(KeyError, match="ours"):
        checking().run(solved(1), broken, load("lesson_1").picture)


def test_it_runs_from_any_folder_without_bridle(tmp_path: Any) -> None:
    """As a class runs it: a process of its own, nothing of this checkout on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", str(COURSE / "lesson_7.py"), "--solution", "--seed", "4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it is right." in done.stdout and not done.stderr


# ------------------------------------------------------------------------------------------------- what is taught is bridle's


def same(got: torch.Tensor, right: torch.Tensor) -> None:
    assert got.shape == right.shape and torch.allclose(got, right, rtol=1e-9, atol=1e-9)


def test_the_losses_are_bridles() -> None:
    draws = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws)

    logits_TV, ids_T = some(6, 5), torch.tensor([4, 0, 2, 1, 3, 4])
    logp_N = logits_TV.log_softmax(1)[torch.arange(5), ids_T[1:]]
    same(solved(1)(logits_TV, ids_T), next_token(logp_N, tokens=5)[0])

    logp_BT, prompt_B, answer_B = -some(2, 6).abs(), torch.tensor([2, 3]), torch.tensor([4, 1])
    answers_N = torch.cat([logp_BT[0, 1:5], logp_BT[1, 2:3]])
    same(solved(2)(logp_BT, prompt_B, answer_B), next_token(answers_N, tokens=5)[0])

    scores_RK = some(3, 4)
    better, worse = torch.triu_indices(4, 4, offset=1)
    pairs = scores_RK[:, better].flatten(), scores_RK[:, worse].flatten(), torch.full((18,), 1 / 6)
    same(solved(3)(scores_RK).mean(), bradley_terry(*pairs, count=3)[0])

    logp_NK, reward_NK = some(3, 4).requires_grad_(), some(3, 4)
    advantage_B = leave_one_out(reward_NK.flatten(), 4)
    ours = rloo(logp_NK.flatten(), logp_NK.flatten().detach(), advantage_B, clip=0.2, count=12)[0]
    (right,), (got,) = (torch.autograd.grad(x, logp_NK) for x in (ours, solved(4)(logp_NK, reward_NK).mean()))
    same(got, right)

    chosen_P, rejected_P, reference_chosen_P, reference_rejected_P = -some(4, 5).abs()
    four = chosen_P, rejected_P, reference_chosen_P, reference_rejected_P
    same(solved(6)(*four, 0.3).mean(), dpo(*four, torch.ones(5), beta=0.3, count=5)[0])
    rewards_GK = (some(6, 8) > 0).double()
    rewards_GK[2] = 1
    same(solved(7)(rewards_GK).flatten(), group_relative(rewards_GK.flatten(), 8))


def test_ppo_is_bridles() -> None:
    draws = torch.Generator().manual_seed(0)
    mask_BT = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    logp, old, reference, value, score = (
        torch.where(mask_BT, torch.randn(3, 5, generator=draws) / 3, 0.0) for _ in range(5)
    )
    reward_BT = score - 0.2 * k1(old, reference, mask_BT)
    advantage_BT = gae(reward_BT, value, mask_BT, gamma=1.0, lam=1.0)[0]
    ours, _ = clipped_policy(logp, old, advantage_BT, mask_BT, clip=0.2, tokens=1)
    same(solved(5)(logp, old, reference, score, value, 0.2, 0.2).sum(), ours)


def test_best_of_n_is_bridles() -> None:
    """By bridle's estimator from drawn answers, whose mean is exact whatever is drawn."""
    draws = torch.Generator().manual_seed(0)
    chance_A, score_A = torch.rand(30, generator=draws).softmax(0), torch.randn(30, generator=draws)
    drawn_PN = torch.multinomial(chance_A, 4000 * 8, replacement=True, generator=draws).view(4000, 8)
    for n in (1, 3, 8):
        mean, error = statistics.mean_and_se(statistics.expected_best_of_n(score_A[drawn_PN].numpy(), n))
        exact_A = solved(8)(chance_A, score_A, n)
        assert float(exact_A @ score_A) == pytest.approx(mean, abs=4 * error)
        assert float((exact_A * (exact_A / chance_A).log()).sum()) <= statistics.best_of_n_kl(n) + 1e-12


# ------------------------------------------------------------------------------------------------- the world, and what it shows


def test_the_world_is_whole() -> None:
    world = load("world").World(5)
    reference_A = world.logp(world.reference_SV)
    assert len(set(world.answers)) == 85 and float(reference_A.exp().sum()) == pytest.approx(1)
    assert float(world.reference_SV.softmax(1)[0, 4].log()) == pytest.approx(
        float(reference_A[world.answers.index((4,))])
    )
    best_A = load("world").optimum(reference_A, world.gold_A, 0.3)
    highest = float(best_A.exp() @ world.gold_A) - 0.3 * load("world").kl(best_A, reference_A)
    assert highest == pytest.approx(0.3 * float((reference_A + world.gold_A / 0.3).logsumexp(0)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_the_pages_promise(seed: int) -> None:
    """In bands: gold turns down while the proxy rises; a baseline pays; more labels make a better reward model."""
    lesson, world = load("lesson_8"), load("world").World(seed, longest=5)
    _, proxy, gold = zip(*lesson.curve(solved(8), world).values(), strict=True)
    assert all(later > before for before, later in zip(proxy, proxy[1:], strict=False))
    peak = gold.index(max(gold))
    assert 2 <= peak <= 6 and max(gold) > gold[0] + 0.4 and gold[-1] < max(gold) - 0.8

    small, climb = load("world").World, load("lesson_4").climb
    yours, without = (climb(loss, small(seed), 101, K=4)[-1] for loss in (solved(4), load("lesson_4").no_baseline))
    assert float(yours) > float(without) + 0.3


# ------------------------------------------------------------------------------------------------- the rules of the house


def sources() -> list[Source]:
    paths = sorted(COURSE.rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


@pytest.mark.parametrize("check", [long_files, long_functions, many_parameters])
def test_the_lessons_are_small(check: Callable[[list[Source]], list[str]]) -> None:
    assert len(sources()) == 18 and not check(sources())


@pytest.mark.parametrize("number", FUNCTIONS)
def test_a_lesson_has_all_its_parts(number: int) -> None:
    text, solution = (
        load(f"lesson_{number}").__doc__ or "",
        (COURSE / "solutions" / f"lesson_{number}.py").read_text("utf-8"),
    )
    for part in ("WHAT IT IS FOR. ", "THE EQUATION", "YOUR TASK. ", "TO THINK ABOUT.\n\n1. ", "\n2. "):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    assert "\n1. " in solution and "\n2. " in solution and "In bridle:" in " ".join(solution.split())
    assert [line for line in solution.splitlines() if line.startswith("def ")] == [
        line for line in solution.splitlines() if line.startswith(f"def {FUNCTIONS[number]}(")
    ], "a solution is the function alone"
