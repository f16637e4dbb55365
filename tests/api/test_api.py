"""bridle from Python: every trainer as a function, a reward of one's own, and a call that goes on where it stopped."""

import json
import re
import signal
import sys
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import bridle
from bridle.api import trainers
from bridle.compute.steps import Session
from bridle.core.errors import BridleError, DataError, Interrupted, NoUsableRows, ProjectError, RecipeError, UsageError
from bridle.core.records import Prompt
from bridle.kernels import kernels
from bridle.models.policy import save_policy
from bridle.project.metrics import read_metrics
from bridle.recipe.offline import SFTSection
from bridle.training import sft as sft_loop
from tests.compute.wandb_stand_in import Remote
from tests.house.source import ROOT
from tests.models.tiny import TEXTS, one_sentence
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, run_in, same, weights

PROMPTS = [f"What is {i} + {i % 7}?" for i in range(16)]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
EXAMPLES = [(prompt, f"It is {i}.") for i, prompt in enumerate(PROMPTS)]
PAIRS = [(prompt, "It is a cat.", "No no no.") for prompt in PROMPTS]
FAST: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3}
PPO: dict[str, Any] = {"steps": 3, "prompts_per_step": 8, "max_new_tokens": 8, "checkpoint_every": 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_policy(tmp_path / "model", tiny_policy())
    return tmp_path / "model"


@pytest.fixture
def model(folder: Path) -> bridle.Model:
    return bridle.load(folder, precision="float32")


def length(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    return [len(answer) / 10 for answer in answers]


class Log:
    """What `on_log` was told; raises at one of the steps."""

    def __init__(self, fail_at: int = -1) -> None:
        self.lines: list[tuple[int, int, Mapping[str, Any]]] = []
        self.fail_at = fail_at

    def __call__(self, step: int, total: int, figures: Mapping[str, Any]) -> None:
        self.lines.append((step, total, figures))
        if step == self.fail_at:
            raise ZeroDivisionError("mine")


class OutOfOrder:
    """The same reward, that fails from a call on."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        self.left -= 1
        return [1 / 0] if self.left < 0 else length(prompts, answers)


# ------------------------------------------------------------------------------------------------ asking and saving


def test_a_saved_model_answers_as_before(model: bridle.Model, tmp_path: Path) -> None:
    said = model.answer([*PROMPTS, TURNS], max_new_tokens=8, seed=3)
    assert len(said) == 17 and len(set(said)) > 8
    model.save(tmp_path / "again")
    assert (
        bridle.load(tmp_path / "again", precision="float32").answer([*PROMPTS, TURNS], max_new_tokens=8, seed=3) == said
    )
    assert model.answer(PROMPTS, max_new_tokens=8, seed=4) != said[:16]


def test_a_model_is_saved_over_a_model_and_over_nothing_else(model: bridle.Model, tmp_path: Path) -> None:
    for name in ("thesis.txt", "repository/config.json", "repository/.git/config"):
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text("mine")
    for place in (tmp_path / "work", tmp_path / "work/repository"):
        with pytest.raises(
            UsageError, match=f"{place} holds more than a model, and all of it would be replaced; name a"
        ):
            model.save(place)
    assert len(list((tmp_path / "work").rglob("*"))) == 5
    (tmp_path / "new").mkdir()
    assert model.save(tmp_path / "new") == model.save(str(tmp_path / "new"))


def test_a_small_model_from_nothing() -> None:
    log = Log()
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "layers": 1, "heads": 2, "kv_heads": 2}
    small = bridle.pretrain(TEXTS, tokens=1500, length=16, on_log=log, precision="float32", **shape)
    assert log.lines[-1][2]["loss"] < log.lines[0][2]["loss"] - 0.3
    assert len(small.answer(["Hello?"], max_new_tokens=4)) == 1
    with pytest.raises(RecipeError, match="'path' is not a setting of .pretrain. or .model."):
        bridle.pretrain(TEXTS, tokens=1500, path="elsewhere")


def test_what_is_learnt_from_few_rows_is_learnt_from_drawn_ones(
    model: bridle.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[Prompt]] = []
    answer_all = trainers.answer_all
    monkeypatch.setattr(trainers, "CENTRED_ON", 8)
    monkeypatch.setattr(
        trainers, "answer_all", lambda p, e, prompts, *rest: asked.append(prompts) or answer_all(p, e, prompts, *rest)
    )
    for seed in (0, 1):
        bridle.reward_model(model, PAIRS, max_new_tokens=8, seed=seed, **FAST)
    first, second = ([prompt.text for prompt in prompts] for prompts in asked)
    assert len(first) == 8 and first != PROMPTS[:8] and first != second and first == sorted(first, key=PROMPTS.index)

    learnt: list[list[str]] = []
    train_tokenizer = trainers.train_tokenizer
    monkeypatch.setattr(trainers, "TOKENIZER_TEXTS", 5)
    monkeypatch.setattr(
        trainers, "train_tokenizer", lambda texts, size: learnt.append(texts) or train_tokenizer(texts, size)
    )
    shape = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 1, "kv_heads": 1}
    bridle.pretrain(PROMPTS, tokens=100, length=8, precision="float32", **shape)
    assert len(learnt[0]) == 5 and learnt[0] != PROMPTS[:5]
    assert "texts: 5 of 16 used (to learn the tokenizer)" in capsys.readouterr().err


def test_what_python_offers_is_listed() -> None:
    assert set(bridle.__all__) <= set(dir(bridle))
    with pytest.raises(AttributeError, match="no attribute 'sftt'"):
        bridle.sftt  # noqa: B018  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------- trainers


def test_sft_is_the_loop_of_the_command_line(model: bridle.Model, tmp_path: Path) -> None:
    log = Log()
    figures = bridle.sft(model, EXAMPLES, epochs=2, batch_size=4, on_log=log, **FAST)
    ours = tiny_policy()
    asked = [Prompt.from_text(prompt) for prompt, _ in EXAMPLES]
    answers = ours.template.completion_ids(asked, [answer for _, answer in EXAMPLES])
    encoded = list(zip(ours.template.prompt_ids(asked), answers, strict=True))
    config = SFTSection.model_validate({"epochs": 2, "batch_size": 4, **FAST})
    assert figures.pop("seconds") >= 0 and figures == sft_loop.train(
        ours, encoded, config, Session(run_in(tmp_path / "run"), DEVICE, seed=0)
    )
    assert same(weights(ours.module), model.policy.module)
    assert [(step, total) for step, total, _ in log.lines] == [(0, 8), (5, 8), (7, 8)]
    assert log.lines[-1][2]["loss"] < log.lines[0][2]["loss"]
    assert model.policy.stamp != tiny_policy().stamp


def test_ppo_raises_a_reward_of_ones_own(model: bridle.Model) -> None:
    """It is shown prompts as they were given, and texts; the critic begins with a head of zeros."""
    seen: list[tuple[Sequence[Any], Sequence[str]]] = []

    def reward(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        seen.append((prompts, answers))
        return [float("e" in answer) for answer in answers]

    log = Log()
    settings = {"steps": 10, "prompts_per_step": 32, "learning_rate": 3e-3, "kl_target": 0.0, "kl_coef": 0.01}
    figures = bridle.ppo(
        model, [*PROMPTS, TURNS], reward, on_log=log, max_new_tokens=8, missing_stop_penalty=0.0, **settings
    )  # fmt: skip
    assert len(seen) == 10 and all(len(prompts) == len(answers) == 32 for prompts, answers in seen)
    assert TURNS in [prompt for prompts, _ in seen for prompt in prompts] and PROMPTS[0] in seen[0][0] + seen[1][0]
    rewards = [line["reward"] for _, _, line in log.lines]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    assert figures["reward"] == rewards[-1]


def test_dpo_holds_to_the_model_as_it_was(model: bridle.Model) -> None:
    log = Log()
    figures = bridle.dpo(model, PAIRS, batch_size=4, on_log=log, epochs=4, learning_rate=3e-3)
    assert log.lines[0][2]["loss"] == pytest.approx(0.6931, abs=1e-4)  # policy and reference are equal
    assert figures["pairs"] == 16 and log.lines[-1][2]["accuracy"] == 1.0


def test_another_reference_is_held_to(model: bridle.Model) -> None:
    start = model.copy()
    bridle.dpo(model, PAIRS, batch_size=4, epochs=2, learning_rate=3e-3)
    log = Log()
    bridle.dpo(model, PAIRS, reference=start, batch_size=4, on_log=log)
    assert log.lines[0][2]["loss"] < 0.6
    again = Log()
    bridle.dpo(model, PAIRS, reference=model, batch_size=4, on_log=again)  # itself: as it is now, not as it becomes
    assert again.lines[0][2]["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_kto_learns_from_answers_that_are_good_or_bad_and_from_pairs(model: bridle.Model) -> None:
    """Few good ones among many bad ones, and messages for a prompt; pairs and votes together."""
    log, start = Log(), model.copy()
    rows: list[Any] = [(prompt, "It is a cat.", True) for prompt in PROMPTS[:4]]
    rows += [(prompt, "No no no.", False) for prompt in PROMPTS[4:12]]
    rows += [(TURNS, "It is a cat.", "No no no."), *PAIRS[12:]]
    found = bridle.kto(model, rows, batch_size=32, on_log=log, epochs=24, learning_rate=3e-3)
    assert log.lines[0][2]["loss"] == pytest.approx(0.5 * (9 + 13 * found["undesirable_weight"]) / 22, abs=1e-4)
    assert (found["good"], found["bad"], found["answers"]) == (9, 13, 22)
    assert found["undesirable_weight"] == pytest.approx(9 / 13)
    assert found["good_reward"] > found["bad_reward"] + 0.3 and log.lines[-1][2]["margin"] > 0.5
    again = Log()
    bridle.kto(model, rows, reference=start, batch_size=32, on_log=again)
    assert again.lines[0][2]["margin"] > 0.5, "measured against the model as it was"


def test_orpo_imitates_the_better_answer_and_leaves_the_worse(model: bridle.Model) -> None:
    log = Log()
    found = bridle.orpo(model, PAIRS, batch_size=4, on_log=log, epochs=4, learning_rate=3e-3, odds_weight=0.5)
    first, last = log.lines[0][2], log.lines[-1][2]
    assert found["pairs"] == 16 and last["sft_loss"] < first["sft_loss"] - 1 and last["odds_loss"] < 0.3
    assert last["accuracy"] == 1.0 and "chosen_moved" not in last
    assert first["loss"] == pytest.approx(first["sft_loss"] + 0.5 * first["odds_loss"], rel=1e-5)


@pytest.mark.parametrize("train", [bridle.kto, bridle.orpo])
def test_the_same_call_again_restores_what_was_finished(
    train: Callable[..., Any], model: bridle.Model, tmp_path: Path
) -> None:
    again = model.copy()
    found = train(model, PAIRS, batch_size=4, folder=tmp_path / "run", **FAST)
    other = train(again, PAIRS, batch_size=4, folder=tmp_path / "run", **FAST)
    without_seconds = ({k: v for k, v in one.items() if k != "seconds"} for one in (found, other))
    assert next(without_seconds) == next(without_seconds) and same(weights(model.policy.module), again.policy.module)
    with pytest.raises(ProjectError, match="begun with other settings, other data or another model"):
        train(model, PAIRS[1:], batch_size=4, folder=tmp_path / "run", **FAST)


PRACTICE: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (bridle.grpo, {"steps": 8, "prompts_per_step": 8, "group_size": 4}, "reward"),
    (bridle.rloo, {"steps": 8, "prompts_per_step": 8, "group_size": 4}, "reward"),
    (bridle.rebel, {"steps": 8, "prompts_per_step": 16, "eta": 10.0, "kl_coef": 0.0}, "reward"),
    (bridle.online_dpo, {"online_rounds": 6, "online_prompts": 16}, "reward"),
    (bridle.best_of_n, {"rounds": 4, "prompts_per_round": 16, "epochs": 2}, "ended"),  # it imitates answers that ended
]


@pytest.mark.parametrize(("train", "settings", "better"), PRACTICE, ids=[train.__name__ for train, _, _ in PRACTICE])
def test_every_way_to_practise_needs_prompts_and_a_function(
    train: Callable[..., Any], settings: dict[str, Any], better: str, model: bridle.Model
) -> None:
    """The share of answers with a letter in them."""
    log, start = Log(), model.policy.stamp
    reward = lambda _, answers: ["e" in answer for answer in answers]  # noqa: E731
    train(model, PROMPTS, reward, max_new_tokens=8, learning_rate=3e-3, on_log=log, **settings)
    found = [1 - line["cut_off"] if better == "ended" else line["reward"] for _, _, line in log.lines]
    assert found[-1] > found[0] + 0.15
    assert model.policy.stamp != start


def test_ppo_may_share_its_trunk(model: bridle.Model) -> None:
    assert bridle.ppo(model, PROMPTS, length, shared_trunk=True, **PPO)["steps"] == 3


def test_a_reward_model_scores_texts_and_trains_a_policy(model: bridle.Model, tmp_path: Path) -> None:
    before = weights(model.policy.module)
    judge = bridle.reward_model(model, PAIRS, epochs=4, batch_size=4, learning_rate=3e-3, max_new_tokens=8)
    assert same(before, model.policy.module)
    better, worse = (judge(PROMPTS, [pair[side] for pair in PAIRS]) for side in (1, 2))
    assert all(a is not None and b is not None and a > b for a, b in zip(better, worse, strict=True))
    assert judge.metrics["pairs"] == 16 and judge.metrics["scale"] > 0
    judge.save(tmp_path / "judge")
    again = bridle.load_reward(tmp_path / "judge", precision="float32")
    assert again(PROMPTS, ["It is a cat."] * 16) == pytest.approx(judge(PROMPTS, ["It is a cat."] * 16))
    figures = bridle.ppo(model, PROMPTS, again, **PPO)
    assert figures["steps"] == 3 and not same(before, model.policy.module)


def test_a_margin_is_learnt_from_python_too(model: bridle.Model) -> None:
    """The first loss is about log(1 + exp(margin)): a new head tells nothing apart."""
    losses = {}
    for margin in (0.0, 20.0):
        log = Log()
        bridle.reward_model(model, PAIRS[:4], batch_size=8, margin=margin, max_new_tokens=2, on_log=log)
        losses[margin] = log.lines[0][2]["loss"]
    assert losses[20.0] - losses[0.0] > 15, losses


# ---------------------------------------------------------------------------------------------- stopping, going on


def test_an_exception_in_on_log_leaves_the_model_and_the_same_call_goes_on(model: bridle.Model, tmp_path: Path) -> None:
    start, plain = model.copy(), model.copy()
    whole = bridle.ppo(plain, PROMPTS, length, **PPO)
    with pytest.raises(ZeroDivisionError, match="mine"):
        bridle.ppo(model, PROMPTS, length, folder=tmp_path / "run", on_log=Log(fail_at=1), **PPO)
    assert same(weights(start.policy.module), model.policy.module) and model.policy.stamp == start.policy.stamp
    log = Log()
    resumed = bridle.ppo(model, PROMPTS, length, folder=tmp_path / "run", on_log=log, **PPO)
    assert [step for step, _, _ in log.lines] == [2]  # the step at which it raised had been saved
    assert same(weights(plain.policy.module), model.policy.module) and model.policy.stamp == plain.policy.stamp
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2]

    finished = Log()  # a finished run is restored, and nothing is done twice
    bridle.ppo(start, PROMPTS, length, folder=tmp_path / "run", on_log=finished, **PPO)
    assert not finished.lines and same(weights(plain.policy.module), start.policy.module)


def test_without_a_folder_an_exception_comes_through_at_once(model: bridle.Model) -> None:
    before, log = weights(model.policy.module), Log(fail_at=1)
    with pytest.raises(ZeroDivisionError, match="mine"):
        bridle.ppo(model, PROMPTS, length, on_log=log, **PPO)
    assert len(log.lines) == 2 and same(before, model.policy.module)
    assert all(parameter.grad is None for parameter in model.policy.module.parameters())


@pytest.mark.parametrize("kept", [True, False])
def test_control_c_stops_at_a_safe_point(model: bridle.Model, tmp_path: Path, kept: bool) -> None:
    before = weights(model.policy.module)
    words = "everything is saved in" if kept else "nothing is kept, for it was given no folder"
    folder = tmp_path / "run" if kept else None
    with pytest.raises(Interrupted, match=f"sft stopped after step 1 of 4; {words}"):
        bridle.sft(
            model, EXAMPLES, epochs=1, batch_size=4, folder=folder, on_log=lambda *_: signal.raise_signal(signal.SIGINT)
        )  # fmt: skip
    assert same(before, model.policy.module)


def test_a_resumed_call_computes_as_it_began_or_is_refused(model: bridle.Model, tmp_path: Path) -> None:
    """The kernels of the first session stay, for this call alone; what cannot be had is named, with the way out."""
    run, device = tmp_path / "run", model.device
    with pytest.raises(ZeroDivisionError):
        bridle.sft(model, EXAMPLES, batch_size=4, folder=run, on_log=Log(fail_at=0), **FAST)
    noted = json.loads((run / "parents.json").read_text())
    assert noted["arithmetic"] == device.arithmetic

    def with_part(part: str, words: str) -> None:
        began = {**noted, "arithmetic": {**noted["arithmetic"], part: words}}
        (run / "parents.json").write_text(json.dumps(began))

    with_part("torch", "PyTorch 1.0")
    with pytest.raises(ProjectError, match="run was begun with PyTorch 1.0, and here .* name another folder"):
        bridle.sft(model, EXAMPLES, batch_size=4, folder=run, **FAST)
    assert model.device is device
    with_part("kernels", "plain kernels")
    used: list[str] = []
    bridle.sft(model, EXAMPLES, batch_size=4, folder=run, on_log=lambda *_: used.append(str(model.device)), **FAST)
    assert used and all("plain kernels" in line for line in used)
    assert model.device is device and kernels.wish != "plain"


def test_a_folder_belongs_to_one_call(model: bridle.Model, tmp_path: Path) -> None:
    bridle.sft(model.copy(), EXAMPLES, batch_size=4, folder=tmp_path / "run", **FAST)
    calls: list[Callable[[], object]] = [
        lambda: bridle.sft(model, EXAMPLES, batch_size=8, folder=tmp_path / "run", **FAST),
        lambda: bridle.sft(model, EXAMPLES[1:], batch_size=4, folder=tmp_path / "run", **FAST),
        lambda: bridle.sft(model, EXAMPLES, batch_size=4, folder=tmp_path / "run", seed=1, **FAST),
        lambda: bridle.dpo(model, PAIRS, folder=tmp_path / "run"),
    ]
    for call in calls:
        with pytest.raises(ProjectError, match="run of sft that was begun with other settings, other data or another"):
            call()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ProjectError, match="exists and holds no run"):
        bridle.sft(model, EXAMPLES, folder=tmp_path / "full")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".parents.json.7.new").write_text("{")  # it was killed while it wrote its first file
    bridle.sft(model, EXAMPLES, batch_size=4, folder=tmp_path / "killed", **FAST)


# ------------------------------------------------------------------------------------------------------- bad input

BAD: list[tuple[Callable[[bridle.Model], object], type[BridleError], str]] = [
    (lambda m: bridle.ppo(m, PROMPTS, length, kl_coeff=1.0), RecipeError, "'kl_coeff' is not a setting of .ppo.; did you mean 'kl_coef'"),
    (lambda m: bridle.ppo(m, PROMPTS, length, kl_coef=-1.0), RecipeError, "ppo.kl_coef = -1.0 is invalid"),
    (lambda m: bridle.grpo(m, PROMPTS, length, scored_by="verifier"), RecipeError, "'scored_by' is not a setting of .grpo."),
    (lambda m: bridle.dpo(m, PAIRS, online_rounds=3), RecipeError, "'online_rounds' is not a setting of .dpo."),
    (lambda m: bridle.online_dpo(m, PROMPTS, length, online_rounds=0), RecipeError, "online_dpo needs online_rounds of at"),
    (lambda m: bridle.ppo(m, [], length), NoUsableRows, "PPO needs prompts to answer, got none"),
    (lambda m: bridle.sft(m, []), NoUsableRows, "SFT needs demonstrations"),
    (lambda m: bridle.dpo(m, []), NoUsableRows, "DPO needs pairs"),
    (lambda m: bridle.kto(m, []), NoUsableRows, "KTO needs good answers and bad ones, got 0 of good and 0 of bad by weight"),
    (lambda m: bridle.kto(m, [(p, "Yes.", True) for p in PROMPTS]), NoUsableRows, "KTO needs good answers .*, got 16 of good and 0"),
    (lambda m: bridle.kto(m, [("a", "b", 1)]), DataError, "row 0 holds int '1' where an answer's text, or True or False, is needed"),  # type: ignore[list-item]
    (lambda m: bridle.kto(m, [("a", True, True)]), DataError, "row 0 holds bool 'True' where an answer's text is needed"),  # type: ignore[list-item]
    (lambda m: bridle.kto(m, [("a", "b", True), ("a", "b")]), DataError, "row 1 is tuple .*, where a prompt, an answer and whether"),  # type: ignore[list-item]
    (lambda m: bridle.kto(m, PAIRS, batch_size=1), RecipeError, "batch_size = 1 leaves KTO's reference point"),
    (lambda m: bridle.kto(m, PAIRS, labels="votes"), RecipeError, "'labels' is not a setting of .kto."),
    (lambda m: bridle.kto(m, PAIRS, undesirable_weight="even"), RecipeError, "must be a valid number, or auto"),
    (lambda m: bridle.orpo(m, []), NoUsableRows, "ORPO needs pairs"),
    (lambda m: bridle.orpo(m, PAIRS, reference=m), UsageError, "ORPO has no reference, and one was given"),
    (lambda m: bridle.orpo(m, PAIRS, beta=0.1), RecipeError, "'beta' is not a setting of .orpo."),
    (lambda m: bridle.sft(m, [("a", "b", "c")]), DataError, "row 0 is tuple .*, where a prompt and its answer are needed"),  # type: ignore[list-item]
    (lambda m: bridle.dpo(m, ["abc"]), DataError, "row 0 is str 'abc', where a prompt, the better answer and"),  # type: ignore[list-item]
    (lambda m: bridle.sft(m, [("a", 7)]), DataError, "row 0 holds int '7' where an answer's text is needed"),  # type: ignore[list-item]
    (lambda m: m.answer("Hello?"), DataError, "prompts are a list"),
    (lambda m: bridle.pretrain("Once", tokens=10), DataError, "texts are a list"),
    (lambda m: m.answer(["Hi", 7]), DataError, "prompt 1 is int '7', where text is needed"),  # type: ignore[list-item]
    (lambda m: m.answer([TURNS[:1]]), DataError, "that end with the user's"),
    (lambda m: m.answer([[{"role": "robot", "content": "Hi"}]]), DataError, "prompt 0 is list"),
    (lambda m: bridle.ppo(m, PROMPTS, lambda p, a: 1.0, **PPO), DataError, "gave float '1.0' for 8 answers"),  # type: ignore[arg-type,return-value]
    (lambda m: bridle.ppo(m, PROMPTS, lambda p, a: ["good"] * 8, **PPO), DataError, "one number"),  # type: ignore[arg-type,list-item,return-value]
    (lambda m: bridle.ppo(m, PROMPTS, lambda p, a: [10**5000] * 8, **PPO), DataError, "gave list .*too large to be shown.* for 8 answers"),
    (lambda m: m.answer([10**5000]), DataError, "prompt 0 is int .*too large to be shown"),  # type: ignore[list-item]
    (lambda m: bridle.ppo(m, PROMPTS, lambda p, a: [1.0], **PPO), BridleError, "1 scores for 8 answers"),
    (lambda m: bridle.ppo(m, PROMPTS, lambda p, a: [None] * 8, **PPO), BridleError, "none of 8 answers got a finite"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "words"), BAD)
def test_mistakes_end_in_one_sentence(
    call: Callable[[bridle.Model], object], kind: type[BridleError], words: str, model: bridle.Model
) -> None:
    before, stamp = weights(model.policy.module), model.policy.stamp
    with pytest.raises(kind, match=words) as caught:
        call(model)
    assert one_sentence(str(caught.value))
    assert same(before, model.policy.module) and model.policy.stamp == stamp


def test_scores_may_be_tensors_and_none(model: bridle.Model) -> None:
    bridle.ppo(model, PROMPTS, lambda prompts, answers: torch.arange(8.0), **PPO)  # type: ignore[arg-type,return-value]
    figures = bridle.ppo(model, PROMPTS, lambda prompts, answers: [None, *map(float, range(7))], **PPO)
    assert figures["unscored"] == 1


# ------------------------------------------------------------------------------------------------------ TensorBoard


def test_without_tensorboard_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="not installed; install it by `pip install 'bridle.track.'`"):
        bridle.tensorboard(tmp_path)


def test_every_number_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in, so that this is tested where TensorBoard is missing too."""
    written: list[tuple[str, str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.folder = folder

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((self.folder, name, value, step))

        def flush(self) -> None:
            written.append((self.folder, "flushed", 0.0, 0))

    stand_in = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setitem(stand_in.__dict__, "SummaryWriter", Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    bridle.tensorboard(tmp_path)(3, 9, {"loss": 0.5, "pairs": 2, "note": "text", "kl": None})
    place = str(tmp_path)
    assert written == [(place, "loss", 0.5, 3), (place, "pairs", 2, 3), (place, "flushed", 0.0, 0)]


def test_tensorboard_reads_what_was_written(model: bridle.Model, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    bridle.sft(model, EXAMPLES, epochs=2, batch_size=4, on_log=bridle.tensorboard(tmp_path / "tb"), **FAST)
    found = events.EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "grad_norm"}
    assert [event.step for event in found.Scalars("loss")] == [0, 5, 7]


def test_a_call_that_is_made_again_goes_on_in_the_same_run_of_wandb(
    model: bridle.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, run = Remote(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", remote)
    log = bridle.wandb(project="p", name="n", config={"mine": 1}, folder=run)
    reward = OutOfOrder(2)
    with pytest.raises(ZeroDivisionError):
        bridle.ppo(model, PROMPTS, reward, folder=run, on_log=log, **PPO)
    bridle.ppo(model, PROMPTS, length, folder=run, on_log=log, **PPO)
    (rows,) = remote.rows.values()
    assert [step for step, _ in rows] == [0, 1, 2] and remote.ended == [1, 0]
    asked = remote.asked[0]
    assert (asked["project"], asked["name"], asked["config"]) == ("p", "n", {"mine": 1})


# ------------------------------------------------------------------------------------- settings of models that were brought


def settings_of(run: Path, section: str) -> dict[str, Any]:
    return dict(tomllib.loads((run / "recipe.toml").read_text())[section])


def test_what_was_not_given_suits_the_size_of_a_model_that_was_brought(
    model: bridle.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Muon at .01, made for a model from nothing, would undo what somebody's model has learnt."""
    assert model.brought and model.copy().brought
    bridle.sft(model, EXAMPLES, epochs=1, folder=tmp_path / "sft")
    found = settings_of(tmp_path / "sft", "sft")
    assert (found["optimizer"], found["learning_rate"], found["epochs"]) == ("adamw", 1e-4, 1)
    told = capsys.readouterr().err
    assert "by your model's 34.7K parameters, what was not given: batch_size = 16, learning_rate = 0.0001" in told
    bridle.ppo(model, PROMPTS, length, **PPO, kl_coef=0.3, folder=tmp_path / "ppo")
    found = settings_of(tmp_path / "ppo", "ppo")
    assert (found["learning_rate"], found["critic_learning_rate"], found["kl_coef"]) == (1e-4, 1e-4, 0.3)
    assert found["kl_target"] == 0.16, ".02 nats for each of 8 tokens"
    bridle.best_of_n(model, PROMPTS, length, rounds=1, max_new_tokens=24, folder=tmp_path / "best")
    assert settings_of(tmp_path / "best", "rejection")["learning_rate"] == 1e-4
    bridle.reward_model(model, PAIRS, max_new_tokens=8, folder=tmp_path / "reward")
    assert settings_of(tmp_path / "reward", "reward")["learning_rate"] == 1e-4


def test_a_rate_far_above_the_rule_is_warned_of_in_one_line(
    model: bridle.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    bridle.dpo(model, PAIRS, learning_rate=0.01)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "times the" in line]
    assert "dpo.learning_rate = 0.01 is 100 times the 0.0001" in told and "--set" not in told
    bridle.dpo(model, PAIRS, learning_rate=0.001)
    assert "times the" not in capsys.readouterr().err


def test_a_model_made_here_keeps_the_settings_that_are_made_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 1, "kv_heads": 1}
    made = bridle.pretrain(TEXTS, tokens=200, length=16, precision="float32", **shape)
    bridle.sft(made, EXAMPLES, epochs=1, folder=tmp_path / "sft")
    found = settings_of(tmp_path / "sft", "sft")
    assert (found["optimizer"], found["learning_rate"]) == ("muon", 0.01)
    assert not made.brought and "parameters" not in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- its page in docs

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_page_names_what_there_is_and_nothing_else() -> None:
    named = set(re.findall(r"bridle\.([a-z_]+)\(", PAGE))
    classes = {"Model", "ScoreModel"}
    assert named == set(bridle.__all__) - classes
    assert all(f"`{name}`" in PAGE for name in classes)


def test_a_call_says_what_it_does_and_how_far_it_is_unless_on_log_shows_that(
    model: bridle.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere than at a terminal, as in a notebook: no line is written over."""
    title = "SFT: teaching the model to answer by imitating demonstrations"
    bridle.sft(model, EXAMPLES, epochs=2, **FAST)
    written = capsys.readouterr()
    assert written.err.splitlines()[0] == title and "  2/2 steps  0:00 left  loss " in written.err
    assert "\r" not in written.err and not written.out
    bridle.sft(model, EXAMPLES, epochs=2, on_log=Log(), **FAST)
    assert title in (told := capsys.readouterr().err) and " steps " not in told
    bridle.tune("rebel", model, PROMPTS, length, steps=1, prompts_per_step=8, max_new_tokens=8)
    assert capsys.readouterr().err.startswith("REBEL: two answers to each prompt, ")


def test_the_first_example_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, with fewer and shorter answers."""
    (folder.parent / "path" / "to").mkdir(parents=True)
    folder.rename(folder.parent / "path" / "to" / "model")
    monkeypatch.chdir(folder.parent)
    text = PAGE.split("```python\n")[1].split("```")[0]
    short = text.replace("kl_coef=0.1", "kl_coef=0.1, steps=1, prompts_per_step=8, max_new_tokens=8")
    short = short.replace('bored."]))', 'bored."], max_new_tokens=8))')
    assert short.count("max_new_tokens") == 2
    exec(compile(short, "docs/python.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[")
    assert (folder.parent / "tuned" / "model.safetensors").is_file()
