"""The playground's lab and what is measured in it, in a tiny setting: the peak is scored on prompts that did not choose it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bridle.core.records import Completion
from bridle.models.contents import folder_hash
from bridle.recipe.recipe import load_recipe
from bridle.stages import audit
from bridle.stages.reward import heldout_pairs
from bridle.stages.workspace import Work
from experiments import (
    bowl,
    cliff,
    constitution,
    direct,
    ensembles,
    guarded,
    hour,
    planted,
    rlaif,
    rounds,
    truth,
    wheel,
)
from experiments.playground import UNBRIDLED, Halves, gold_of, gold_reward, halves, train_kept, work_of
from tests.tiny_project import PLAYGROUND

SETTINGS = {**PLAYGROUND, "reward.slim": False, "guard.audits": "off"}
SHORT = {**UNBRIDLED, "steps": 5}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    found = work_of(3, SETTINGS, tmp_path_factory.mktemp("lab"))
    yield found
    found.close()


def test_policies_on_the_way_are_kept_and_a_run_is_made_once(work: Work) -> None:
    kept, before = train_kept(work, "unbridled", SHORT), len(work.project.runs("unbridled"))
    assert list(kept) == [0, 4, 5] and kept[0] == work.project.model("sft")
    hashes = [folder_hash(folder) for folder in kept.values()]
    assert len(set(hashes)) == 3 and hashes[-1] == folder_hash(work.project.model("unbridled"))
    assert train_kept(work, "unbridled", SHORT) == kept and len(work.project.runs("unbridled")) == before
    again = work_of(3, SETTINGS, work.project.folder.parent)
    assert [len(again.project.runs(stage)) for stage in ("sft", "sample", "reward")] == [1, 1, 1]
    again.close()
    base = work.project.folder.parent / "base/models/base"
    assert folder_hash(work.project.model("base")) == folder_hash(base)


def test_the_guard_audits_the_same_run(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FEWEST_PAIRS", 10)
    monkeypatch.setattr(audit, "PROMPTS", 8)
    found = guarded.train_guarded(work, "guarded", {**SHORT, "steps": 3})
    assert found.kept == work.project.model("guarded") and found.compared > 0
    assert found.rolled_back_to is None or found.rolled_back_to < 3
    assert not (work.project.runs("unbridled") and (work.project.runs("unbridled")[-1] / "watch.json").exists())


def test_prompts_are_held_out_in_two_halves_and_answers_are_the_same_again(work: Work) -> None:
    prompts = halves(work, 12)
    assert len({prompt.id for half in prompts for prompt in half}) == 24
    assert not {prompt.id for half in prompts for prompt in half} & {prompt.id for prompt in work.data.train_prompts()}
    golds = [gold_of(work, work.project.model("sft"), prompts.score) for _ in range(2)]
    assert golds[0].shape == (12,) and (golds[0] == golds[1]).all() and golds[0].std() > 0


def test_gold_as_a_reward_is_in_its_standard_deviations(work: Work) -> None:
    prompts = halves(work, 2).score
    answers = [Completion(prompt.id, "I do not know.") for prompt in prompts]
    points = [score.points for score in work.data.score(prompts, answers, "test")]
    assert gold_reward(work, 4.0)(prompts, answers) == pytest.approx([point / 4 for point in points])


class Told:
    """A project whose policies' gold, on either half of the prompts, and proxy are written here by run and step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.project = SimpleNamespace(model=lambda name: Path(f"{name}/0"))
        self.choose: dict[str, float] = {"sft/0": 0.0}
        self.score: dict[str, float] = {"sft/0": 0.0}
        self.steps: dict[str, list[int]] = {}
        monkeypatch.setattr(module, "train_kept", self.train_kept)
        monkeypatch.setattr(module, "gold_of", self.gold_of)

    def run(self, name: str, choose: list[float], score: list[float]) -> None:
        self.steps[name] = [4 * (at + 1) for at in range(len(choose))]
        for step, first, second in zip(self.steps[name], choose, score, strict=True):
            self.choose[f"{name}/{step}"], self.score[f"{name}/{step}"] = first, second

    def train_kept(self, work: Any, name: str, settings: Any, reward: Any = None) -> dict[int, Path]:
        return {0: Path("sft/0"), **{step: Path(f"{name}/{step}") for step in self.steps[name]}}

    def gold_of(self, work: Any, place: Path, prompts: list[str]) -> np.ndarray:
        return np.array([{"choose": self.choose, "score": self.score}[half][str(place)] for half in prompts])

    def measured(self, work: Any, place: Path, prompts: list[str]) -> dict[str, float]:
        gold = float(self.gold_of(work, place, prompts).mean())
        return {"gold": gold, "gold_sd": 2.0, "proxy": float(place.name) / 10, "kl": 1.0, "refuses_benign": 0.0}


PROMPTS: Any = Halves(["choose"] * 4, ["score"] * 4)  # type: ignore[list-item]


@pytest.mark.parametrize(("end", "is_one"), [(-0.1, 1.0), (0.1, 0.0), (0.6, 0.0)])
def test_a_cliff_is_a_fall_from_the_peak_of_other_prompts_and_under_sft(
    monkeypatch: pytest.MonkeyPatch, end: float, is_one: float
) -> None:
    told: Any = Told(monkeypatch, cliff)
    monkeypatch.setattr(cliff, "measured", told.measured)
    told.run("unbridled", [1.0, 3.0, 0.0], [2.0, 1.5, end])
    told.run("gold-reward", [1.0, 2.0, 3.0], [1.0, 2.0, 2.5])
    row = cliff.measure_in(told, PROMPTS, {})
    assert row["β = 0: peak: step"] == 8 and row["fall"] == pytest.approx(1.5 - end), "2.0 is higher, but chose nothing"
    assert row["cliff"] == is_one and row["under SFT"] == pytest.approx(-end) and row["proxy up"] == pytest.approx(1.2)
    assert row["gold reward: fall"] == 0 and row["gold reward: gain"] == 2.5


@pytest.mark.parametrize(("best", "share"), [(2.0, 0.75), (0.2, None)])
def test_what_the_guard_kept_of_the_oracles_gain(
    monkeypatch: pytest.MonkeyPatch, best: float, share: float | None
) -> None:
    told: Any = Told(monkeypatch, guarded)
    told.run("unbridled", [0.1, best + 1, -1.0], [0.75 * best, best, -2.0])
    told.run("gold-reward", [1.0, 1.2], [1.0, 1.3])
    monkeypatch.setattr(guarded, "answers_read", lambda work: 400)

    def train_guarded(work: Any, name: str, settings: Any, reward: Any = None) -> guarded.Guarded:
        return guarded.Guarded(Path("gold-reward/4" if reward else "unbridled/4"), 4, 24)

    monkeypatch.setattr(guarded, "train_guarded", train_guarded)
    row = guarded.measure_in(told, PROMPTS, {})
    assert row["audits"] == pytest.approx(48 / 400) and row["false stop"] == 0
    assert row["gold reward: stopped"] == 1 and row["gold reward: false stop"] == 1, ".25 was to be had"
    assert row.get("share") == (share if share is None else pytest.approx(share))
    assert row["oracle, small" if share is None else "oracle"] == pytest.approx(best)


def test_a_stop_is_false_where_much_was_surely_lost() -> None:
    assert guarded.surely_over([0.2, 0.3] * 500) and not guarded.surely_over([0.1, 0.2] * 500)
    assert not guarded.surely_over([-5.7, 6.3] * 500), "0.3 on average, and the interval holds 0"


def test_the_oracle_looks_at_six_policies() -> None:
    steps = {step: Path(str(step)) for step in range(0, 44, 4)}
    assert guarded.spread_over(steps, 6) == [4, 8, 12, 16, 24, 40]


def test_answers_are_counted_as_they_were_read(work: Work) -> None:
    assert guarded.answers_read(work) == 4 * len(list(work.store.judgements(study=work.data.study, split="train")))


def test_gold_at_equal_kl_lies_on_the_line_between_two_policies() -> None:
    curve = {0: (0.0, -1.0), 4: (1.0, 1.0), 8: (5.0, 3.0), 12: (3.0, 9.0), 16: (9.0, -3.0)}
    assert ensembles.gold_at(curve, 2.0) == pytest.approx(1.5), "the first time that the run is so far, not the second"
    assert ensembles.gold_at(curve, 6.0) == pytest.approx(3.0)
    assert ensembles.gold_at(curve, 9.0) is None, "never farther than 9"


def test_five_reward_models_are_trained_and_each_run_learns_from_its_own_reward(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensembles, "MEMBERS", 2)
    row = ensembles.measure_in(work, halves(work, 8), {**SHORT, "steps": 1})
    assert {"min - one", "uwo - one", "min - slower", "uwo - slower"} <= set(row)
    assert row["min - one"] == pytest.approx(row["min: end"] - row["one: end"])
    assert work.project.model("reward-member-2").exists() and not work.project.model("reward-member-3").exists()
    hashes = {name: folder_hash(work.project.model(name)) for name in ("unbridled", "slower", "five-min", "five-uwo")}
    assert len(set(hashes.values())) == 4, "no two runs had the same reward and rate"


def test_gold_of_a_row_of_beta_lies_on_the_lines_between_its_points() -> None:
    curve = {0: (0.0, 1.0), 1: (4.0, 2.0), 2: (1.0, 3.0)}
    assert direct.gold_between(curve, 0.5) == pytest.approx(2.0)
    assert direct.gold_between(curve, 2.5) == pytest.approx(2.5), "between 1 and 4 nats, in whatever order they came"
    assert np.isnan(direct.gold_between(curve, 4.5))


def test_dpo_and_ppo_are_held_to_the_same_sft_by_their_own_beta(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "BETAS", {"dpo": (0.05, 5.0), "ppo": (0.0,)})
    monkeypatch.setattr(direct, "HELD", {"dpo": {"observe_every": 1000}, "ppo": {"kl_target": 0.0, "steps": 1}})
    row = direct.measure_in(work, halves(work, 16), SHORT)
    assert row["dpo: KL falls with β"] == row["dpo 0.05: KL"] - row["dpo 5: KL"] > 0
    assert 0 <= row["dpo 5: right"] <= 1 and row["dpo 5: right - reward model's"] == pytest.approx(
        row["dpo 5: right"] - work.project.finished("reward")["pair_accuracy"]  # type: ignore[index]
    )
    # Three steps of a tiny model say nothing of held-out pairs that holds on every processor: whose is whose does.
    assert row["dpo 0.05: better"] != row["dpo 0.05: worse"]
    sft, base = (work.read_policy(work.project.model(name)) for name in ("sft", "base"))
    pairs = heldout_pairs(work)[1]
    better, worse = direct.likelier(work, sft, sft, pairs)
    assert len(better) == len(worse) > 0 and not better.any() and not worse.any()
    better, worse = direct.likelier(work, base, sft, pairs)
    turned = direct.likelier(work, base, sft, [(asked, second, first) for asked, first, second in pairs])
    assert better == pytest.approx(turned[1], abs=1e-3) and worse == pytest.approx(turned[0], abs=1e-3)
    assert not np.allclose(better, worse)


@pytest.mark.slow
def test_a_second_round_compares_the_policys_answers_and_begins_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "STEPS", (4, 5))
    monkeypatch.setattr(rounds, "WATCHED", 4)
    monkeypatch.setattr(rounds, "ASKED", 6)
    before = len(work.store.judgements(study=work.data.study))
    row = rounds.measure_in(work, halves(work, 24), SHORT)
    assert row["own: judgements"] > 0 and row["sft: judgements"] > 0
    assert len(work.store.judgements(study=work.data.study)) == before, "each arm has a project of its own"
    assert row["over the first"] == pytest.approx(row["own: peak"] - row["first: peak"])
    assert row["peak, over the other arm"] == pytest.approx(row["own: peak"] - row["sft: peak"])
    assert 0 <= row["own: right on its policy's"] <= 1
    arms = [work.project.folder.with_name(f"{work.project.folder.name}-{arm}") for arm in ("own", "sft")]
    assert len({folder_hash(arm / "models/reward") for arm in (*arms, work.project.folder)}) == 3
    for arm in arms:
        assert not (arm / "models/unbridled").exists() and (arm / "models/after-4").exists()
        begun = json.loads((arm / "runs/second-0001/parents.json").read_text())
        assert begun["start"] == folder_hash(arm / "models/first-peak"), begun


def test_what_turns_is_told_by_prompts_that_did_not_choose_the_peak() -> None:
    halves = {0: (0.0, 0.0), 4: (2.0, 1.0), 8: (1.0, 3.0), 12: (-1.0, -2.0)}
    found = truth.turn_of("it", {step: [np.full(3, value) for value in both] for step, both in halves.items()})
    assert found["it: step of the peak"] == 4 and found["it: fall"] == 3.0 and found["it: rise"] == -2.0


def test_practice_on_checked_answers_keeps_its_policies(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "HALF", 4)
    row = truth.measure_in(work, halves(work, 4), {**SHORT, "steps": 1}, {"steps": 1})
    assert 0 <= row["GRPO: start"] <= 1 and row["GRPO: rise"] == row["GRPO: end"] - row["GRPO: start"]
    assert [path.name for path in (work.project.runs("long-grpo")[-1] / "policies").iterdir()] == ["001"]


def test_violations_fall_by_rounds_while_they_are_not_rare() -> None:
    found = constitution.round_figures([0.4, 0.1, 0.01, 0.02])
    assert found["fall, round 1"] == pytest.approx(0.3) and found["left, round 2"] == pytest.approx(0.1)
    assert "fall, round 3" not in found and found["violations, round 3"] == 0.02, "rarer than can be seen to fall"


def test_what_sl_cai_lost_is_in_standard_deviations_of_sft() -> None:
    sft, tuned = (
        {"complies": 0.4, "gold": 1.0, "gold_sd": 2.0, "refuses": 0.1},
        {"complies": 0.1, "gold": 0.9, "refuses": 0.13},
    )
    found = constitution.compared_with_sft(
        {"SFT": sft, "SL-CAI": tuned, "SL-CAI alone": sft, "RL-CAI": {"complies": 0.05}}
    )
    assert found["complies, share left"] == pytest.approx(0.25) and found["helpfulness lost"] == pytest.approx(0.05)
    assert found["refusals more"] == pytest.approx(0.03) and found["RL-CAI over SL-CAI"] == pytest.approx(-0.05)


@pytest.mark.slow
def test_a_model_revises_and_learns_in_a_project_of_its_own(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constitution, "PROBES", 6)
    monkeypatch.setattr(constitution, "ASKED", 6)
    monkeypatch.setattr(constitution, "ROUNDS", 2)
    row = constitution.measure_in(work, halves(work, 16), {})
    arm = work.project.folder.with_name(f"{work.project.folder.name}-constitution")
    assert {"critic", "sl-cai", "sl-cai-alone", "rl-cai"} <= {path.name for path in (arm / "models").iterdir()}
    assert not work.project.model("critic").exists() and "RL-CAI: complies" in row


@pytest.mark.slow
def test_a_policy_is_its_own_judge_and_people_judge_the_same_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDLE_EXPERIMENTS", str(tmp_path))
    monkeypatch.setattr(rlaif, "GENERATIONS", 2)
    tiny = {
        **rlaif.SETTINGS,
        **PLAYGROUND,
        "reward.slim": False,
        "ppo.steps": 2,
        "data.train_prompts": 12,
        "data.heldout_prompts": 12,
    }
    row = rlaif.measure(3, tiny, 12)
    own = tmp_path / "seed-3/rlaif-own"
    assert {"critic", "own-1", "own-2", "judge-of-own-1", "judge-of-own-2"} <= {
        path.name for path in (own / "models").iterdir()
    }
    assert row["AI: judgements"] == row["people: judgements"] > 0
    assert row["drift: gold"] == row["generation 2: gold"] - row["generation 0: gold"]
    assert row["accuracy lost"] == row["people: pair_accuracy"] - row["AI: pair_accuracy"]
    parents = [
        json.loads((own / f"runs/{name}-0001/parents.json").read_text())
        for name in ("own-1", "own-2", "judge-of-own-1")
    ]
    assert parents[0]["judge"] != parents[1]["judge"], "each generation has a judge of its own"
    assert parents[2]["judge"] == folder_hash(own / "models/critic") and parents[2]["start"] == folder_hash(
        own / "models/own-1"
    )
    assert rlaif.measure(3, tiny, 12) == row


@pytest.mark.slow
def test_hours_buy_demonstrations_or_rankings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDLE_EXPERIMENTS", str(tmp_path))
    monkeypatch.setattr(hour, "HALF", 4)
    monkeypatch.setattr(hour, "BEGUN", 8)
    monkeypatch.setattr(hour, "HOURS", (0.1,))
    row = hour.measure(3, SETTINGS)
    assert row["seconds to write"] > row["seconds to rank"] > 4 * hour.PLACED
    sizes = [
        load_recipe(next((tmp_path / "hours" / name / "seed-3/runs").glob("sft-*")) / "recipe.toml").data
        for name in ("begun", "written-0.1", "compared-0.1")
    ]
    assert [one.demonstrations for one in sizes] == [8, 8 + round(360 / row["seconds to write"]), 8]
    assert sizes[2].train_prompts == round(360 / row["seconds to rank"])
    assert row["compared - written, 0.1 h"] == row["compared, 0.1 h"] - row["written, 0.1 h"]


@pytest.mark.slow
def test_the_bowl_is_measured_by_forced_tokens(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bowl, "STEPS", 2)
    row = bowl.measure_in(work, halves(work, 8), {})
    assert {f"{name}: complies after {k}" for name in bowl.MODELS for k in bowl.FORCED} <= set(row)
    assert row["sft: change of weights"] > 0 and 0 <= row["ppo: steps back"] <= 2


def test_what_was_forced_is_judged_with_what_follows(work: Work) -> None:
    """With all of a complying answer forced, the policy has only to end it."""
    roomy = replace(work.project, recipe=work.recipe.with_settings({"sampling.max_new_tokens": 80}))
    work = Work(roomy, work.progress, threads=1)
    policy = work.read_policy(work.project.model("sft"))
    harmful = [prompt for prompt in work.data.probe_prompts() if prompt.meta["family"] == "harm"][:8]
    forced = [bowl.complying(work.data, prompt) for prompt in harmful]  # type: ignore[arg-type]
    longest = max(map(len, policy.template.completion_ids(harmful, forced)))
    assert longest < 80, "else nothing is left to answer with"
    assert bowl.complied(work, policy, harmful, harmful, forced, longest) > 0.9
    assert bowl.complied(work, policy, harmful, harmful, [""] * len(harmful), 0) < 0.5, (
        "a tiny model says nothing of the kind itself"
    )
    begun = bowl.with_examples(work.data, harmful)  # type: ignore[arg-type]
    assert all(
        one.messages[-1] == prompt.messages[-1] and len(one.messages) == 5
        for one, prompt in zip(begun, harmful, strict=True)
    )
    work.close()


def test_the_first_tokens_are_those_of_the_answer() -> None:
    mask_BT = torch.tensor([[False, False, True, True, True, False], [False, True, True, True, True, True]])
    gap_BT = torch.tensor([[9.0, 9.0, 3.0, 1.0, 1.0, 9.0], [9.0, 4.0, 2.0, 1.0, 7.0, 7.0]])
    assert bowl.share_of_first(gap_BT, mask_BT, 1, 3) == pytest.approx((3 + 4) / (5 + 7))


@pytest.mark.slow
def test_a_wheel_turns_beside_thumbs_and_a_planted_candidate_meets_the_gate(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TURNS", 2), ("VISITS", 12), ("THUMBS", 12), ("PROMPTS", 12)):
        monkeypatch.setattr(wheel, name, value)
    small = {"loop.comparisons": 12, "loop.votes": 2, "loop.audit": 8, "loop.judgements": 5, "ppo.steps": 2}
    monkeypatch.setattr(wheel, "LOOP", {**wheel.LOOP, **small})
    row = wheel.measure_in(work, halves(work, 4), SHORT)
    assert 0 <= row["loop: promotions"] <= 2 and row["loop: answers read"] > 0
    for arm in ("loop", "naive", "once"):
        assert row[f"{arm}: gained, at most"] >= row[f"{arm}: gained"]
        assert -1 <= row[f"{arm}: thumbs gained"] <= 1
    assert 0 < row["SFT: thumbs up"] < 1
    naive = work.project.folder / "naive"
    assert json.loads((naive / "runs/reward-0002/result.json").read_text())["judgements"] == 24, "thumbs add up"
    assert wheel.measure_in(work, halves(work, 4), SHORT) == row
    monkeypatch.setattr(planted, "LOOP", {**wheel.LOOP, "loop.max_kl": 1e-9})
    monkeypatch.setattr(planted, "VOTES", 6)
    monkeypatch.setattr(planted, "AT_A_TIME", 8)
    found = planted.measure_in(work, halves(work, 8), SHORT)
    assert found["refused"] == 1 and found["bounds broken"] >= 1
    assert found["votes"] >= 6 or found["taken back"] == 1
