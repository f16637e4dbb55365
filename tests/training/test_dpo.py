"""DPO, SimPO and ORPO: where they begin, what they learn and what they cannot, the reference read once, going on where it stopped."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.compute.checkpoint import load_tensors, save_tensors
from bridle.core.errors import ModelError, NoUsableRows
from bridle.generation import reference as reading
from bridle.models.batches import Batch, Compared, Group, batch_sizes, tokens_read
from bridle.models.policy import Policy
from bridle.project.run import Run
from bridle.recipe.offline import NO_REFERENCE, DPOSection, ORPOSection
from bridle.training import dpo
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, STOP, dying_at, groups, metrics, run_in, same, session, weights

CONFIG = DPOSection(batch_size=4, checkpoint_every=2)


def with_settings(**settings: Any) -> DPOSection:
    return DPOSection.model_validate({**CONFIG.model_dump(), **settings})


def train(
    policy: Policy, given: Sequence[Group], run: Run, config: DPOSection = CONFIG, reference: Policy | None = None,
    cache: Path | None = None,
) -> dict[str, float]:  # fmt: skip
    return dpo.train(policy, reference or tiny_policy(), given, config, session(run), cache or run.folder / "cache")


def tokens_of(batch: Batch, policy: Policy) -> int:
    return tokens_read(batch_sizes(batch), policy.module.model)


@torch.no_grad()
def log_prob(policy: Policy, prompt: list[int], answer: list[int]) -> float:
    """Of a whole answer, its stop token included: alone, from the logits, without any batch."""
    logp_TV = policy.module(torch.tensor([[*prompt, *answer]])).log_softmax(-1)[0]
    return sum(float(logp_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def implicit_accuracy(policy: Policy, reference: Policy, held_out: Sequence[Group]) -> float:
    """Share of pairs whose better answer became likelier beside the worse one."""
    right = []
    for group in held_out:
        moved = [
            log_prob(policy, group.prompt, answer) - log_prob(reference, group.prompt, answer)
            for answer in group.answers
        ]
        right += [float(moved[better] > moved[worse]) for better, worse, _ in group.pairs]
    return sum(right) / len(right)


# ------------------------------------------------------------------------------------------------ 1. the first step


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_first_loss_is_log_two(smoothing: float, tmp_path: Path) -> None:
    train(tiny_policy(), groups(10, seed=0), run_in(tmp_path), with_settings(label_smoothing=smoothing))
    first = metrics(tmp_path)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first["margin"]) < 1e-4
    assert abs(first["chosen_moved"]) < 1e-4 and abs(first["rejected_moved"]) < 1e-4


def test_ipo_begins_at_the_square_of_its_margin(tmp_path: Path) -> None:
    train(tiny_policy(), groups(4, seed=0), run_in(tmp_path), with_settings(loss="ipo", beta=0.25))
    assert metrics(tmp_path)[0]["loss"] == pytest.approx((1 / 0.5) ** 2, abs=1e-3)


@pytest.mark.parametrize(("loss", "smoothing"), [("dpo", 0.0), ("dpo", 0.1), ("ipo", 0.0)])
def test_the_first_line_by_hand(loss: str, smoothing: float, tmp_path: Path) -> None:
    """Against a reference that is far away; a prompt of six pairs weighs as much as one of a single pair."""
    given = [groups(1, seed=0)[0], Group([7, 8], [[20, 21, STOP], [30, STOP]], [(1, 0, 1.0)])]
    ours, reference = tiny_policy(), tiny_policy(seed=5)
    logp = [[log_prob(ours, group.prompt, answer) for answer in group.answers] for group in given]
    referred = [[log_prob(reference, group.prompt, answer) for answer in group.answers] for group in given]
    losses = []
    chosen, rejected, chosen_moved, rejected_moved = [], [], [], []
    for group, found, before in zip(given, logp, referred, strict=True):
        for better, worse, weight in group.pairs:
            h = (found[better] - before[better]) - (found[worse] - before[worse])
            right, wrong = math.log1p(math.exp(-0.3 * h)), math.log1p(math.exp(0.3 * h))
            part = (h - 1 / 0.6) ** 2 if loss == "ipo" else (1 - smoothing) * right + smoothing * wrong
            losses.append(weight * part)
            chosen.append(found[better])
            rejected.append(found[worse])
            chosen_moved.append(found[better] - before[better])
            rejected_moved.append(found[worse] - before[worse])
    config = with_settings(loss=loss, label_smoothing=smoothing, beta=0.3)
    train(ours, given, run_in(tmp_path), config, reference)
    line = metrics(tmp_path)[0]
    assert line["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert line["chosen_logp"] == pytest.approx(sum(chosen) / 7, rel=1e-4)
    assert line["rejected_logp"] == pytest.approx(sum(rejected) / 7, rel=1e-4)
    assert line["chosen_moved"] == pytest.approx(sum(chosen_moved) / 7, rel=1e-3)
    assert line["rejected_moved"] == pytest.approx(sum(rejected_moved) / 7, rel=1e-3)


def test_the_first_step_raises_the_better_answer_and_lowers_the_worse(tmp_path: Path) -> None:
    one = Group([7, 8], [[20, 21, STOP], [30, STOP]], [(1, 0, 1.0)])
    ours, before = tiny_policy(), tiny_policy()
    train(ours, [one], run_in(tmp_path), with_settings(learning_rate=1e-3))
    better, worse = (log_prob(ours, one.prompt, a) - log_prob(before, one.prompt, a) for a in reversed(one.answers))
    assert better > 0.05 and worse < -0.05


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "orpo"])
def test_votes_that_are_counted_weigh_as_votes_one_by_one(loss: str, tmp_path: Path) -> None:
    """Three for the one and one for the other: the loss of the four, and the gradient too."""
    answers = [[20, 21, STOP], [30, STOP]]
    config = ORPOSection(odds_weight=0.7) if loss == "orpo" else with_settings(loss=loss, beta=0.7, sft=0.1)
    counted = Group([7, 8], answers, [Compared(1, 0, 4.0, 0.75)])
    apart = Group([7, 8], answers, [(1, 0, 1.0)] * 3 + [(0, 1, 1.0)])
    found = []
    for group in (counted, apart):
        ours, reference = tiny_policy(), None if loss in NO_REFERENCE else [torch.tensor([-9.0, -4.0])]
        metrics = dpo.compare_answers(ours, [group], reference, config, DEVICE)
        found.append((metrics, [parameter.grad for parameter in ours.module.parameters()]))
    (one, gradients), (other, same_gradients) = found
    for name in ("loss", "accuracy", "margin", "sft_loss"):
        assert one[name] == pytest.approx(other[name], rel=1e-5), name
    for gradient, expected in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
    chosen = log_prob(tiny_policy(), [7, 8], [30, STOP])
    assert one["chosen_logp"] == pytest.approx(chosen, rel=1e-5), "of the side that most prefer, and not of both"


# ---------------------------------------------------------------------------------------------------- 2. learning


def test_a_taste_is_learnt_and_a_coin_is_not(tmp_path: Path) -> None:
    held_out, reference = groups(60, seed=50), tiny_policy()
    found = {}
    for name, coins in (("taste", None), ("coin", torch.Generator().manual_seed(1))):
        ours = tiny_policy()
        config = with_settings(epochs=2, learning_rate=0.01, batch_size=8)
        result = train(ours, groups(200, seed=0, coins=coins), run_in(tmp_path / name), config)
        found[name] = implicit_accuracy(ours, reference, held_out)
        assert result["steps"] == 50 and result["prompts"] == 200 and result["pairs"] == 1200
    assert found["taste"] > 0.7 and abs(found["coin"] - 0.5) < 0.13, found
    last = metrics(tmp_path / "taste")[-1]
    assert last["accuracy"] > 0.75 and last["margin"] > 0.1 and last["chosen_moved"] > last["rejected_moved"]


def test_the_reference_is_left_alone_and_a_rate_of_zero_changes_nothing(tmp_path: Path) -> None:
    ours, reference = tiny_policy(), tiny_policy(seed=5)
    before, theirs = weights(ours.module), weights(reference.module)
    train(ours, groups(8, seed=0), run_in(tmp_path / "still"), with_settings(learning_rate=0.0), reference)
    assert same(before, ours.module)
    train(ours, groups(8, seed=0), run_in(tmp_path / "moved"), CONFIG, reference)
    assert not same(before, ours.module) and same(theirs, reference.module)
    assert all(parameter.grad is None for parameter in reference.module.parameters())


def test_a_larger_beta_holds_nearer_to_the_reference(tmp_path: Path) -> None:
    moved = {}
    for beta in (0.05, 2.0):
        config = with_settings(beta=beta, epochs=8, learning_rate=5e-3)
        train(tiny_policy(), groups(10, seed=0), run_in(tmp_path / str(beta)), config)
        last = metrics(tmp_path / str(beta))[-1]
        moved[beta] = last["chosen_moved"] - last["rejected_moved"]
    assert moved[2.0] < 0.5 * moved[0.05], moved


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    ours = tiny_policy()
    before = weights(ours.module)
    for given in ([], [Group([5], [[1], [2]], [])]):
        with pytest.raises(NoUsableRows, match="needs pairs"):
            train(ours, given, run_in(tmp_path))
    assert same(before, ours.module)
    assert train(ours, [Group([5], [[1], [2]], []), *groups(1, seed=0)], run_in(tmp_path / "one"))["prompts"] == 1


# -------------------------------------------------------------------------------------------- 3. SimPO: no reference


def simpo(policy: Policy, given: Sequence[Group], run: Run, **settings: Any) -> dict[str, float]:
    config = with_settings(**{"loss": "simpo", "beta": 2.5, "gamma": 0.5, **settings})
    return dpo.train(policy, None, given, config, session(run), run.folder / "cache")


def mean_accuracy(policy: Policy, held_out: Sequence[Group]) -> float:
    """Share of pairs whose better answer has the higher mean log-prob of its tokens."""
    means = [[log_prob(policy, g.prompt, a) / len(a) for a in g.answers] for g in held_out]
    pairs = [m[better] > m[worse] for m, g in zip(means, held_out, strict=True) for better, worse, _ in g.pairs]
    return sum(pairs) / len(pairs)


def test_simpos_first_line_by_hand(tmp_path: Path) -> None:
    """-log σ(β (m_c - m_r) - γ), m the mean over an answer's own tokens; answers of two and three tokens."""
    one, ours = Group([7, 8], [[20, 21, STOP], [30, STOP]], [(1, 0, 1.0)]), tiny_policy()
    better, worse = log_prob(ours, one.prompt, one.answers[1]) / 2, log_prob(ours, one.prompt, one.answers[0]) / 3
    simpo(ours, [one], run_in(tmp_path), beta=2.0, gamma=0.7, sft=0.1)
    line = metrics(tmp_path)[0]
    assert line["loss"] == pytest.approx(math.log1p(math.exp(0.7 - 2.0 * (better - worse))), rel=1e-4)
    assert line["margin"] == pytest.approx(2.0 * (better - worse), rel=1e-3)
    assert line["chosen_logp"] == pytest.approx(2 * better, rel=1e-4) and line["sft_loss"] == pytest.approx(
        -better, rel=1e-4
    )


def test_simpo_learns_a_taste_and_reads_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "read_logprobs", lambda *_: pytest.fail("a reference was read"))
    ours, before, run = tiny_policy(), tiny_policy(), run_in(tmp_path)
    result = simpo(ours, groups(200, seed=0), run, epochs=2, learning_rate=0.01, batch_size=8)
    assert result["steps"] == 50 and not (tmp_path / "cache").exists()
    assert not {"chosen_moved", "rejected_moved"} & {name for line in metrics(tmp_path) for name in line}
    held_out = groups(60, seed=50)
    right = {name: mean_accuracy(policy, held_out) for name, policy in (("before", before), ("after", ours))}
    assert right["after"] > 0.7 > right["before"], right


def test_a_loss_with_a_reference_says_that_it_needs_one(tmp_path: Path) -> None:
    for loss in ("dpo", "ipo"):
        with pytest.raises(ModelError, match=f"dpo.loss = '{loss}' is measured against a reference model, got none"):
            dpo.train(
                tiny_policy(), None, groups(2, seed=0), with_settings(loss=loss), session(run_in(tmp_path)), tmp_path
            )


def test_simpo_has_no_label_smoothing() -> None:
    with pytest.raises(ValueError, match="simpo has none, set it to 0"):
        with_settings(loss="simpo", label_smoothing=0.1)


@pytest.mark.parametrize("line", [1, 4])
def test_a_run_of_simpo_that_died_ends_as_one_that_was_left_alone(line: int, tmp_path: Path) -> None:
    given, whole, resumed = groups(10, seed=0), tiny_policy(), tiny_policy()
    expected = simpo(whole, given, run_in(tmp_path / "whole"), epochs=2)
    with dying_at(line):
        simpo(tiny_policy(), given, run_in(tmp_path / "cut"), epochs=2)
    assert simpo(resumed, given, run_in(tmp_path / "cut"), epochs=2) == expected
    assert same(weights(whole.module), resumed.module) and metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


# --------------------------------------------------------------------------------------- 4. ORPO: no reference either


def orpo(policy: Policy, given: Sequence[Group], run: Run, **settings: Any) -> dict[str, float]:
    config = ORPOSection.model_validate({"batch_size": 4, "checkpoint_every": 2, **settings})
    return dpo.train(policy, None, given, config, session(run), run.folder / "cache")


def test_orpos_first_line_by_hand(tmp_path: Path) -> None:
    """-m_c - λ log σ(log odds_c - log odds_r), m the mean over an answer's own tokens; answers of two and three tokens."""
    one, ours = Group([7, 8], [[20, 21, STOP], [30, STOP]], [(1, 0, 1.0)]), tiny_policy()
    better, worse = log_prob(ours, one.prompt, one.answers[1]) / 2, log_prob(ours, one.prompt, one.answers[0]) / 3
    gap = better - math.log(1 - math.exp(better)) - worse + math.log(1 - math.exp(worse))
    orpo(ours, [one], run_in(tmp_path), odds_weight=0.7)
    line = metrics(tmp_path)[0]
    assert line["sft_loss"] == pytest.approx(-better, rel=1e-4)
    assert line["odds_loss"] == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-4)
    assert line["loss"] == pytest.approx(-better + 0.7 * math.log1p(math.exp(-gap)), rel=1e-4)
    assert line["margin"] == pytest.approx(gap, rel=1e-3) and line["accuracy"] == float(gap > 0)
    assert line["chosen_logp"] == pytest.approx(2 * better, rel=1e-4)
    assert line["rejected_logp"] == pytest.approx(3 * worse, rel=1e-4)


def test_orpo_learns_a_taste_reads_no_reference_and_makes_the_chosen_likely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "read_logprobs", lambda *_: pytest.fail("a reference was read"))
    held_out, ours, before = groups(60, seed=50), tiny_policy(), tiny_policy()
    settings = {"epochs": 2, "learning_rate": 0.01, "batch_size": 8}
    result = orpo(ours, groups(200, seed=0), run_in(tmp_path), odds_weight=1.0, **settings)
    assert result["steps"] == 50 and not (tmp_path / "cache").exists()
    lines = metrics(tmp_path)
    assert not {"chosen_moved", "rejected_moved"} & {name for line in lines for name in line}
    assert lines[-1]["chosen_logp"] > lines[0]["chosen_logp"] + 5
    assert mean_accuracy(ours, held_out) > 0.72 > 0.6 > mean_accuracy(before, held_out)


def test_without_pairs_orpo_says_so_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(NoUsableRows, match="ORPO needs pairs of a better and a worse answer, got none"):
        orpo(tiny_policy(), [], run_in(tmp_path))


@pytest.mark.parametrize("line", [1, 4])
def test_a_run_of_orpo_that_died_ends_as_one_that_was_left_alone(line: int, tmp_path: Path) -> None:
    given, whole, resumed = groups(10, seed=0), tiny_policy(), tiny_policy()
    expected = orpo(whole, given, run_in(tmp_path / "whole"), epochs=2)
    with dying_at(line):
        orpo(tiny_policy(), given, run_in(tmp_path / "cut"), epochs=2)
    assert orpo(resumed, given, run_in(tmp_path / "cut"), epochs=2) == expected
    assert same(weights(whole.module), resumed.module) and metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------- 5. the reference


def read_reference(reference: Policy, given: Sequence[Group], cache: Path) -> tuple[list[Tensor], list[str]]:
    said: list[str] = []
    return reading.cached_logprobs(reference, given, DEVICE, cache, said.append), said


def test_the_references_log_probs_are_those_of_each_answer_alone(tmp_path: Path) -> None:
    given, reference = groups(30, seed=0), tiny_policy()  # 120 answers: more than one batch
    found, _ = read_reference(reference, given, tmp_path)
    for group, logp in zip(given, found, strict=True):
        expected = [log_prob(reference, group.prompt, answer) for answer in group.answers]
        assert logp.tolist() == pytest.approx(expected, abs=1e-4)


def test_the_reference_is_read_in_passes_of_so_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule of a step: no pass has more tokens than `micro_tokens`, but one row that is longer by itself."""
    given, reference, most = groups(30, seed=0), tiny_policy(), 40
    expected, _ = read_reference(reference, given, tmp_path / "whole")
    plain, sizes = reading.answer_logprobs, list[tuple[int, int]]()

    def watched(policy: Policy, batch: Any, device: Any) -> Tensor:
        sizes.append((len(set(batch.prompt_B.tolist())), int(tokens_of(batch, policy))))
        return plain(policy, batch, device)

    monkeypatch.setattr(reading, "answer_logprobs", watched)
    found = reading.cached_logprobs(reference, given, DEVICE, tmp_path / "cut", print, most)
    assert all(read <= most or prompts == 1 for prompts, read in sizes) and len(sizes) > 4
    for cut, whole in zip(found, expected, strict=True):
        assert cut.tolist() == pytest.approx(whole.tolist(), abs=1e-4)


def test_the_reference_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, reference = groups(6, seed=0), tiny_policy()
    first, said = read_reference(reference, given, tmp_path)
    assert not said
    monkeypatch.setattr(reading, "answer_logprobs", lambda *_: pytest.fail("the reference was read again"))
    second, said = read_reference(reference, given, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and "known" in said[0]


def test_another_reference_or_other_ids_are_read_anew(tmp_path: Path) -> None:
    given, reference = groups(6, seed=0), tiny_policy()
    first, _ = read_reference(reference, given, tmp_path)
    others: list[tuple[Policy, Sequence[Group]]] = [
        (tiny_policy(seed=5), given),
        (replace(reference, step=1), given),  # as the same weights after a step of training
        (reference, given[:-1]),
        (reference, given[::-1]),
        (reference, [replace(given[0], prompt=[9, *given[0].prompt]), *given[1:]]),
        (reference, [replace(given[0], answers=[[9, STOP], *given[0].answers[1:]]), *given[1:]]),
    ]
    for policy, wanted in others:
        found, said = read_reference(policy, wanted, tmp_path)
        assert not said
        expected = [log_prob(policy, group.prompt, answer) for group in wanted for answer in group.answers]
        assert torch.cat(found).tolist() == pytest.approx(expected, abs=1e-4)
    assert len(list(tmp_path.iterdir())) == 1 + len(others)
    other_pairs = [replace(group, pairs=group.pairs[:1]) for group in given]
    again, said = read_reference(reference, other_pairs, tmp_path)
    assert said and all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "pairs are not part of it"


def test_a_run_with_a_known_reference_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, cache = groups(10, seed=0), tmp_path / "cache"
    first, second = tiny_policy(), tiny_policy()
    train(first, given, run_in(tmp_path / "first"), cache=cache)
    train(second, given, run_in(tmp_path / "second"), cache=cache)
    assert same(weights(first.module), second.module)
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")


# ------------------------------------------------------------------------------------------ 6. logging and going on


def test_observations_stand_in_the_lines_where_they_were_made(tmp_path: Path) -> None:
    ours, steps = tiny_policy(), []

    def observe() -> dict[str, float]:
        steps.append(ours.step)
        return {"kl": float(ours.step)}

    run = run_in(tmp_path)
    config = with_settings(observe_every=3, epochs=2)
    dpo.train(ours, tiny_policy(), groups(16, seed=0), config, session(run), tmp_path / "cache", observe)
    assert steps == [3, 6] and ours.step == 8
    assert [line.get("kl") for line in metrics(tmp_path)] == [None, None, 3.0, None, None, 6.0, None, None]


@pytest.mark.parametrize("line", [1, 3, 4, 5])
def test_a_run_that_died_ends_as_one_that_was_left_alone(line: int, tmp_path: Path) -> None:
    """Five steps in all, saved after the second, the fourth and the last; dying before, between and at a save."""
    given, config = groups(10, seed=0), with_settings(epochs=2, batch_size=4)
    whole, resumed = tiny_policy(), tiny_policy()
    expected = train(whole, given, run_in(tmp_path / "whole"), config)
    with dying_at(line):
        train(tiny_policy(), given, run_in(tmp_path / "cut"), config)
    assert train(resumed, given, run_in(tmp_path / "cut"), config) == expected
    assert same(weights(whole.module), resumed.module) and resumed.stamp == whole.stamp
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_finished_run_returns_the_same_figures_again(tmp_path: Path) -> None:
    run, given = run_in(tmp_path), groups(10, seed=0)
    expected = train(tiny_policy(), given, run)
    assert train(tiny_policy(), given, run) == expected
    assert len(metrics(tmp_path)) == expected["steps"] == 3


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def changed(file: Path) -> None:
    save_tensors({"logp": load_tensors(file)["logp"] + 1.0}, file)


def of_an_earlier_version(file: Path) -> None:
    file.with_name(reading.CACHE_HASH).unlink()


@pytest.mark.parametrize("damage", [cut_short, changed, of_an_earlier_version])
def test_kept_log_probs_that_are_not_those_that_were_saved_are_read_again(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    given, reference = groups(6, seed=0), tiny_policy()
    first, _ = read_reference(reference, given, tmp_path)
    [file] = tmp_path.glob(f"*/{reading.CACHE_FILE}")
    damage(file)
    for sentence in ("are damaged or of an earlier version; reading them again", "are known from an earlier run"):
        found, lines = read_reference(reference, given, tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True)) and sentence in lines[0]
