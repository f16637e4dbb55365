"""KTO: the first line by hand, the reference point, what it learns from votes and from pairs, their weights, and resuming."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.errors import NoUsableRows, TrainingStopped
from bridle.generation import reference as reading
from bridle.models.batches import Compared, Group, Rated
from bridle.models.policy import Policy
from bridle.project.run import Run
from bridle.recipe.offline import KTOSection
from bridle.training import kto
from tests.exact.world import ANSWERS as ALL_ANSWERS
from tests.exact.world import PROMPT_IDS, World, answer_logp_A
from tests.models.tiny import one_sentence, random_ids
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, STOP, dying_at, groups, metrics, run_in, same, session, weights
from tests.training.test_dpo import implicit_accuracy, log_prob

CONFIG = KTOSection(batch_size=4, checkpoint_every=2)


def with_settings(**settings: Any) -> KTOSection:
    return KTOSection.model_validate({**CONFIG.model_dump(), **settings})


def train(
    policy: Policy, given: Sequence[Group], run: Run, config: KTOSection = CONFIG, reference: Policy | None = None
) -> dict[str, float]:
    return kto.train(policy, reference or tiny_policy(), given, config, session(run), run.folder / "cache")


def votes(count: int, seed: int, good: float = 0.5) -> list[Group]:
    """An answer to each prompt; good are those of the highest worth, by tokens that are worth the same everywhere (as in `groups`)."""
    worth = torch.randn(50, generator=torch.Generator().manual_seed(99))
    answers = [[10 + i % 40 for i in ids] for ids in random_ids(count, 3, 3, seed + 1)]
    sums = [float(worth[ids].sum()) for ids in answers]
    bar = sorted(sums)[round((1 - good) * count)]
    return [
        Group(prompt, [[*ids, STOP]], ratings=[Rated(0, float(total >= bar))])
        for prompt, ids, total in zip(random_ids(count, 2, 6, seed), answers, sums, strict=True)
    ]


# ------------------------------------------------------------------------------------------------ 1. the first step


def test_the_first_loss_is_one_half_and_nothing_has_moved(tmp_path: Path) -> None:
    train(tiny_policy(), groups(10, seed=0), run_in(tmp_path))
    first = metrics(tmp_path)[0]
    assert first["loss"] == pytest.approx(0.5, abs=1e-5) and first["kl_estimate"] == pytest.approx(0, abs=1e-5)
    assert abs(first["good_reward"]) < 1e-4 and abs(first["bad_reward"]) < 1e-4 and abs(first["margin"]) < 1e-4


@pytest.mark.parametrize("drift", [1.0, -1.0], ids=["kl above 0", "kl below 0"])
def test_the_first_line_by_hand(drift: float, tmp_path: Path) -> None:
    """Two votes on one answer that disagree, a vote by itself, and a pair of which one in four said the opposite; the reference is far
    away, and its other way round where the estimate would be negative."""
    given = [
        Group([7, 8], [[20, 21, STOP]], ratings=[Rated(0, 1.0, 2.0), Rated(0, 0.0, 0.5)]),
        Group([5, 6, 9], [[30, STOP]], ratings=[Rated(0, 0.0)]),
        Group([4], [[31, 32, STOP], [33, STOP]], [Compared(1, 0, 1.5, 0.75)]),
    ]
    ours, reference = tiny_policy(seed=5), tiny_policy()
    moved = [[log_prob(ours, g.prompt, a) - log_prob(reference, g.prompt, a) for a in g.answers] for g in given]
    others = [([4], given[0].answers), ([7, 8], given[1].answers), ([5, 6, 9], given[2].answers)]  # next in length
    shifts = [log_prob(ours, p, a) - log_prob(reference, p, a) for p, answers in others for a in answers]
    if (sum(shifts) > 0) is not (drift > 0):
        ours, reference = reference, ours
        moved, shifts = [[-m for m in own] for own in moved], [-s for s in shifts]
    z = 0.3 * max(0.0, sum(shifts) / 4)
    rewards = [(2.0, 1.0, 0, 0), (0.5, 0.0, 0, 0), (1.0, 0.0, 1, 0), (1.5, 0.25, 2, 0), (1.5, 0.75, 2, 1)]
    loss, good, bad = 0.0, [0.0, 0.0], [0.0, 0.0]
    for weight, share, group, answer in rewards:
        r = 0.3 * moved[group][answer]
        up, down = 1 / (1 + math.exp(r - z)), 1 / (1 + math.exp(z - r))
        loss += weight * (0.8 * share * up + 1.2 * (1 - share) * down)
        good = [good[0] + weight * share * r, good[1] + weight * share]
        bad = [bad[0] + weight * (1 - share) * r, bad[1] + weight * (1 - share)]
    config = with_settings(beta=0.3, desirable_weight=0.8, undesirable_weight=1.2)
    result = train(ours, given, run_in(tmp_path), config, reference)
    line = metrics(tmp_path)[0]
    assert line["loss"] == pytest.approx(loss / 6.5, rel=1e-4)
    assert line["kl_estimate"] == pytest.approx(z / 0.3, rel=1e-4, abs=1e-9) and (z > 0) is (drift > 0)
    assert line["good_reward"] == pytest.approx(good[0] / good[1], rel=1e-3)
    assert line["bad_reward"] == pytest.approx(bad[0] / bad[1], rel=1e-3)
    assert line["margin"] == pytest.approx(line["good_reward"] - line["bad_reward"], rel=1e-6)
    assert (result["prompts"], result["answers"], result["good"], result["bad"]) == (3, 4, 3.5, 3.0)
    assert (result["desirable_weight"], result["undesirable_weight"]) == (0.8, 1.2)


def test_the_first_step_raises_a_good_answer_and_lowers_a_bad_one(tmp_path: Path) -> None:
    good = Group([7, 8], [[20, 21, STOP]], ratings=[Rated(0, 1.0)])
    bad = Group([9, 6], [[30, STOP]], ratings=[Rated(0, 0.0)])
    ours, before = tiny_policy(), tiny_policy()
    train(ours, [good, bad], run_in(tmp_path), with_settings(learning_rate=1e-3))
    up, down = (log_prob(ours, g.prompt, g.answers[0]) - log_prob(before, g.prompt, g.answers[0]) for g in (good, bad))
    assert up > 0.05 and down < -0.05


# ------------------------------------------------------------------------------------------- 2. the reference point


def test_each_prompt_is_set_to_the_answers_of_another_next_in_length() -> None:
    given = groups(40, seed=0) + [Group(groups(1, seed=0)[0].prompt, [[11, STOP]], ratings=[Rated(0, 1.0)])]
    others = kto.set_to_others(given, limit=64)
    whose = {id(group.answers): group for group in given}
    for group, other in zip(given, others, strict=True):
        source = whose[id(other.answers)]
        assert other.prompt == group.prompt != source.prompt and not other.pairs and not other.ratings
    by_length = sorted(given, key=lambda group: group.length)
    steps = [by_length.index(whose[id(o.answers)]) - by_length.index(g) for g, o in zip(given, others, strict=True)]
    assert sum(step == 1 for step in steps) >= 38 and all(step in (1, 2, -40, -39) for step in steps), steps


def test_a_prompt_that_leaves_no_room_loses_its_first_tokens() -> None:
    given = [Group([1, 2, 3, 4, 5, 6], [[7, STOP]]), Group([8], [[9] * 6 + [STOP], [10, STOP]])]
    assert [group.prompt for group in kto.set_to_others(given, limit=8)] == [[6], [8]]
    assert [group.prompt for group in kto.set_to_others(given, limit=13)] == [[1, 2, 3, 4, 5, 6], [8]]


def test_answers_to_one_prompt_alone_have_no_reference_point(tmp_path: Path) -> None:
    given = [Group([7, 8], [[20 + i, STOP]], ratings=[Rated(0, float(i % 2))]) for i in range(4)]
    with pytest.raises(NoUsableRows, match="KTO needs answers to 2 different prompts at least") as caught:
        train(tiny_policy(), given, run_in(tmp_path))
    assert one_sentence(str(caught.value)) and not metrics(tmp_path)


def test_the_last_batch_may_hold_one_prompt(tmp_path: Path) -> None:
    result = train(tiny_policy(), groups(5, seed=0), run_in(tmp_path), with_settings(epochs=3))
    assert result["steps"] == 6 and all(math.isfinite(v) for line in metrics(tmp_path) for v in line.values())


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size = 1 leaves KTO's reference point, a mean over the batch, to one"):
        with_settings(batch_size=1)


# ---------------------------------------------------------------------------------------------------- 3. learning


def test_a_taste_is_learnt_and_a_coin_is_not(tmp_path: Path) -> None:
    held_out, reference, found = groups(60, seed=50), tiny_policy(), {}
    for name, coins in (("taste", None), ("coin", torch.Generator().manual_seed(1))):
        ours, config = tiny_policy(), with_settings(epochs=2, learning_rate=0.01, batch_size=8)
        result = train(ours, groups(200, seed=0, coins=coins), run_in(tmp_path / name), config)
        found[name] = implicit_accuracy(ours, reference, held_out)
        assert (result["steps"], result["prompts"], result["answers"]) == (50, 200, 800)
        assert result["good"] == pytest.approx(200) and result["bad"] == pytest.approx(200)
    assert found["taste"] > 0.7 and abs(found["coin"] - 0.5) < 0.13, found
    last = metrics(tmp_path / "taste")[-1]
    assert last["margin"] > 0.5 and last["good_reward"] > last["bad_reward"] and last["loss"] < 0.45


@pytest.mark.parametrize("good", [0.5, 0.15])
def test_votes_on_single_answers_teach_it_too_where_few_are_good_as_well(good: float, tmp_path: Path) -> None:
    held_out, reference, ours = groups(60, seed=50), tiny_policy(), tiny_policy()
    config = with_settings(epochs=3, learning_rate=0.01, batch_size=16)
    result = train(ours, votes(400, seed=0, good=good), run_in(tmp_path), config)
    assert implicit_accuracy(ours, reference, held_out) > 0.65
    share = result["desirable_weight"] * result["good"] / (result["undesirable_weight"] * result["bad"])
    assert 1 - 1e-9 <= share <= 4 / 3 + 1e-9 and result["desirable_weight"] == 1


def test_in_a_table_each_answer_goes_the_way_that_most_of_its_votes_say(tmp_path: Path) -> None:
    """85 answers to each of 3 prompts, each good with a probability of its own: what most call good takes nearly all the mass, also where
    the margin is small and the reference gave it less (Ethayarajh 2024: KTO follows the majority)."""
    world = World.made(0)
    chances = [torch.sigmoid(4 * (world.worth_A(prompt) - world.worth_A(prompt).median())) for prompt in PROMPT_IDS]
    given = [
        Group(prompt, [list(ids) for ids in ALL_ANSWERS], ratings=[Rated(i, float(p)) for i, p in enumerate(chance_A)])
        for prompt, chance_A in zip(PROMPT_IDS, chances, strict=True)
    ]
    policy = world.policy()
    config = with_settings(
        beta=1.0, epochs=120, learning_rate=0.2, clip_norm=100.0, checkpoint_every=120, undesirable_weight=1.0
    )
    train(policy, given, run_in(tmp_path), config, world.policy("reference"))
    for prompt, chance_A in zip(PROMPT_IDS, chances, strict=True):
        before_A, after_A = (
            answer_logp_A(t, prompt) for t in (world.reference_VS, policy.module.output_weight().detach())
        )
        good_A = chance_A > 0.5
        assert float(before_A.exp()[good_A].sum()) < 0.75 and float(after_A.exp()[good_A].sum()) > 0.99
        assert bool(((after_A - before_A)[~good_A] < 0).all()), "what most call bad became less likely, each of them"


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
        moved[beta] = metrics(tmp_path / str(beta))[-1]["margin"] / beta
    assert moved[2.0] < 0.5 * moved[0.05], moved


# ------------------------------------------------------------------------------------------- 4. what cannot be learnt


@pytest.mark.parametrize(
    ("good", "said"), [(None, "0 of good and 0 of bad"), (1.0, "4 of good and 0"), (0.0, "0 of good and 4")]
)
def test_one_kind_of_answer_alone_is_refused(good: float | None, said: str, tmp_path: Path) -> None:
    ours = tiny_policy()
    before = weights(ours.module)
    given = [Group([5 + i], [[20, STOP]], ratings=[] if good is None else [Rated(0, good)]) for i in range(4)]
    given.append(Group([40], [[21, STOP]], ratings=[Rated(0, 0.5, 0.0)]))  # it weighs nothing
    with pytest.raises(NoUsableRows, match=f"KTO needs good answers and bad ones, got {said}") as caught:
        train(ours, given, run_in(tmp_path))
    assert one_sentence(str(caught.value)) and same(before, ours.module)


def test_what_weighs_nothing_is_left_out(tmp_path: Path) -> None:
    """A batch of such answers alone would be divided by nothing."""
    given, found = groups(6, seed=0), []
    nothing = [Group([40 + i], [[21, STOP], [22, STOP]], [(0, 1, 0.0)], ratings=[Rated(0, 1.0, 0.0)]) for i in range(9)]
    for name, rows in (("without", given), ("with", [*nothing, *given])):
        ours = tiny_policy()
        found.append((train(ours, rows, run_in(tmp_path / name)), metrics(tmp_path / name), ours))
    assert found[0][:2] == found[1][:2] and same(weights(found[0][2].module), found[1][2].module)


def test_a_batch_of_one_kind_alone_has_no_metric_of_the_other_and_no_nan(tmp_path: Path) -> None:
    given = [Group([5 + i], [[20, STOP]], ratings=[Rated(0, float(i > 0))]) for i in range(9)]
    result = train(tiny_policy(), given, run_in(tmp_path), with_settings(batch_size=3))
    lines = metrics(tmp_path)
    with_bad = [line for line in lines if "bad_reward" in line]
    assert len(lines) == 3 and len(with_bad) == 1 and [line for line in lines if "margin" in line] == with_bad
    assert all(math.isfinite(value) for line in [*lines, result] for value in line.values()) and "bad_logp" in result


@pytest.mark.parametrize("whose", ["policy", "reference"])
def test_log_probs_that_are_no_numbers_end_it_before_a_step(whose: str, tmp_path: Path) -> None:
    ours, reference = tiny_policy(), tiny_policy()
    broken = ours if whose == "policy" else reference
    broken.module.output_weight().data[7] = float("nan")
    before = weights(ours.module)
    with pytest.raises(TrainingStopped, match=f"the {whose}'s log-probs of") as caught:
        train(ours, groups(4, seed=0), run_in(tmp_path), reference=reference)
    assert one_sentence(str(caught.value)) and not metrics(tmp_path)
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(before.values(), ours.module.state_dict().values(), strict=True)
    )


def test_the_balance_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    assert kto.balance(votes(40, seed=0, good=0.25), CONFIG, said.append) == (1.0, pytest.approx(1 / 3))
    assert said == [
        "answers: good ones weigh 10 and bad ones 30; with desirable_weight = 1 and undesirable_weight = 0.3333 they stand 1 to 1"
    ]
    fixed = with_settings(desirable_weight=2.0, undesirable_weight=0.5)
    assert kto.balance(votes(40, seed=0, good=0.25), fixed, said.append) == (2.0, 0.5)
    assert said[-1].endswith("stand 1.33 to 1")


# -------------------------------------------------------------------------------------------- 5. logging and resuming


def test_the_reference_reads_both_kinds_of_answers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, first, second = groups(10, seed=0), tiny_policy(), tiny_policy()
    cache = tmp_path / "cache"
    kto.train(first, tiny_policy(), given, CONFIG, session(run_in(tmp_path / "first")), cache)
    plain, read = reading.read_logprobs, list[str]()

    def watched(policy: Policy, groups: Any, device: Any, whose: str = "reference", micro_tokens: int = 0) -> Any:
        read.append(whose)
        return plain(policy, groups, device, whose, micro_tokens)

    monkeypatch.setattr(reading, "read_logprobs", watched)
    kto.train(second, tiny_policy(), given, CONFIG, session(run_in(tmp_path / "second")), cache)
    assert "reference" not in read and len(list(cache.iterdir())) == 1
    assert same(weights(first.module), second.module)
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")


def test_observations_stand_in_the_lines_where_they_were_made(tmp_path: Path) -> None:
    ours, steps = tiny_policy(), []

    def observe() -> dict[str, float]:
        steps.append(ours.step)
        return {"kl": float(ours.step)}

    config = with_settings(observe_every=3, epochs=2)
    result = kto.train(
        ours, tiny_policy(), groups(16, seed=0), config, session(run_in(tmp_path)), tmp_path / "cache", observe
    )
    assert steps == [3, 6] and ours.step == 8 and "kl" not in result
    assert [line.get("kl") for line in metrics(tmp_path)] == [None, None, 3.0, None, None, 6.0, None, None]


@pytest.mark.parametrize("line", [1, 3, 4, 5])
def test_a_run_that_died_ends_as_one_that_was_left_alone(line: int, tmp_path: Path) -> None:
    """Six steps in all, saved after every second; dying before, between and at a save."""
    given, config = [*groups(6, seed=0), *votes(4, seed=3)], with_settings(epochs=2)
    whole, resumed = tiny_policy(), tiny_policy()
    expected = train(whole, given, run_in(tmp_path / "whole"), config)
    with dying_at(line):
        train(tiny_policy(), given, run_in(tmp_path / "cut"), config)
    assert train(resumed, given, run_in(tmp_path / "cut"), config) == expected
    assert same(weights(whole.module), resumed.module) and resumed.stamp == whole.stamp
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_finished_run_returns_the_same_metrics_again(tmp_path: Path) -> None:
    run, given = run_in(tmp_path), groups(10, seed=0)
    expected = train(tiny_policy(), given, run)
    assert train(tiny_policy(), given, run) == expected and len(metrics(tmp_path)) == expected["steps"] == 3


def test_ratings_are_found_in_the_flat_list_of_answers() -> None:
    given = [
        Group([5], [[1], [2]], ratings=[Rated(1, 1.0, 0.5)]), Group([6], [[3]], ratings=[Rated(0, 0.0), Rated(0, 1.0)])
    ]  # fmt: skip
    answer_N, value_N, weight_N = kto.index_ratings(given, DEVICE.torch)
    assert answer_N.tolist() == [1, 2, 2] and value_N.tolist() == [1, 0, 1] and weight_N.tolist() == [0.5, 1, 1]
