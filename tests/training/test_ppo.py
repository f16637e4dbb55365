"""PPO's parts on tiny models, then the whole loop on rewards that can be learnt and that cannot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.compute.steps import Part, Steps
from bridle.core.errors import NoUsableRows, StaleWeights, TrainingStopped
from bridle.core.files import read_json, write_json
from bridle.core.records import Completion, FinishReason, Prompt, Reward, content_hash
from bridle.generation import rollout
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.rollout import Asking, Observe, Rollout, RolloutSession, roll_out, take_prompts
from bridle.maths.returns import ReturnScale
from bridle.models.batches import sequence_logprobs
from bridle.models.imitation import Example, imitate
from bridle.models.policy import Policy, RewardModel
from bridle.models.scorer import Scorer, critic_from, init_head, scorer_from, shared_critic
from bridle.project.metrics import read_metrics
from bridle.project.run import Run
from bridle.recipe.online import PPOSection
from bridle.rewards.learned import LearnedReward
from bridle.training import ppo
from tests.models.tiny import one_sentence, random_ids, template
from tests.models.tiny import policy as tiny_policy
from tests.training.practice import in_order, spare_run
from tests.training.runs import DEVICE, dying_at, run_in, same, weights

CONFIG = PPOSection(prompts_per_step=8, steps=2, batch_size=64, kl_target=0.0, missing_stop_penalty=0.0)
PROMPTS = [Prompt.from_text(f"What is {i} + {i % 7}?") for i in range(20)]
NEW_TOKENS = 10


@dataclass
class Cast:
    """A policy that was loaded into the engine, its frozen reference, and a critic that predicts 0."""

    policy: Policy
    reference: Policy
    critic: Scorer
    engine: Engine

    @property
    def actors(self) -> ppo.Actors:
        return ppo.Actors(self.policy, self.reference, self.critic)

    def session(self, run: Run | None = None, seed: int = 0, observe: Observe | None = None) -> RolloutSession:
        return RolloutSession(run or spare_run(), DEVICE, seed, self.engine, NEW_TOKENS, observe)

    def steps(self, optimizers: list[torch.optim.Optimizer]) -> Steps:
        """The steps of a loop that is never run, for one update."""
        modules = {"policy": self.policy.module, "critic": self.actors.critics_own}
        return Steps(self.session(), modules, optimizers, 1, 1)

    def roll_out(self, reward: Reward, config: PPOSection = CONFIG, prompts: Sequence[Prompt] = PROMPTS) -> Rollout:
        """The first step's answers, one to each prompt in the order that is given."""
        asking = Asking(
            "test", in_order(prompts, seed=1), len(prompts), 1, config.temperature, config.missing_stop_penalty
        )
        return roll_out(0, self.policy, reward, asking, self.session(seed=1))


def cast(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cast:
    policy, reference = tiny_policy("llama", seed, dtype), tiny_policy("llama", seed, dtype)
    with torch.no_grad():  # some answers end, others are cut off
        for module in (policy.module, reference.module):
            module.output_weight()[template().eos_id] *= 1.5
    critic = critic_from(scorer_from(policy.module, torch.Generator().manual_seed(0))).to(dtype)
    engine = Engine(dtype)
    engine.load(policy)
    return Cast(policy, reference, critic, engine)


def tokens_reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    """Something that differs between answers: the mean of their token ids, in hundreds."""
    return [sum(c.token_ids) / len(c.token_ids) / 100 for c in completions]


def nothing(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [0.0] * len(completions)


def train(
    who: Cast, reward: Reward, config: PPOSection, run: Run, demonstrations: Sequence[tuple[list[int], list[int]]] = ()
) -> dict[str, float]:
    return ppo.train(who.actors, reward, PROMPTS, demonstrations, config, who.session(run))


# ------------------------------------------------------------------------------------------------- 1. prompts


@pytest.mark.parametrize("count", [1, 3, 8, 20, 33])
def test_every_pass_covers_each_prompt_once(count: int) -> None:
    taken = [p for step in range(60 // count + 1) for p in take_prompts(PROMPTS, step, count, 0, "ppo-prompts")][:60]
    passes = [[p.text for p in taken[start : start + 20]] for start in (0, 20, 40)]
    assert all(sorted(texts) == sorted(p.text for p in PROMPTS) for texts in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_steps_prompts_are_known_from_seed_and_step_alone() -> None:
    assert take_prompts(PROMPTS, 7, 8, 0, "ppo-prompts") == take_prompts(PROMPTS, 7, 8, 0, "ppo-prompts")
    assert take_prompts(PROMPTS, 7, 8, 0, "ppo-prompts") != take_prompts(PROMPTS, 7, 8, 1, "ppo-prompts")


def test_no_prompts_is_said(tmp_path: Path) -> None:
    who = cast()
    with pytest.raises(NoUsableRows, match="needs prompts"):
        ppo.train(who.actors, nothing, [], [], CONFIG, who.session(run_in(tmp_path)))


# ------------------------------------------------------------------------------------- 2. answers and rewards


def test_rewards_that_are_none_or_not_finite_are_left_out_and_counted() -> None:
    scores: list[float | None] = [None, float("nan"), 1.5, float("inf"), 0.0, float("-inf"), -2.0, None]
    rollout = cast().roll_out(lambda p, c: scores, prompts=PROMPTS[:8])
    assert rollout.unscored == 5
    assert rollout.score_B.tolist() == [1.5, 0.0, -2.0]
    assert [p.text for p in rollout.prompts] == [PROMPTS[i].text for i in (2, 4, 6)]
    assert all(c.prompt_id == p.id for p, c in zip(rollout.prompts, rollout.completions, strict=True))
    assert len(rollout.batch) == 3 and rollout.mask_BT.sum() == sum(len(c.token_ids) for c in rollout.completions)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_step_without_any_finite_reward_stops_the_run(bad: float | None) -> None:
    with pytest.raises(TrainingStopped, match="none of 20 answers got a finite reward"):
        cast().roll_out(lambda p, c: [bad] * len(c))


def test_a_reward_that_scores_too_few_answers_is_refused() -> None:
    with pytest.raises(TrainingStopped, match="19 scores for 20 answers"):
        cast().roll_out(lambda p, c: [0.0] * (len(c) - 1))


def test_only_answers_that_were_cut_off_pay_for_the_missing_stop() -> None:
    rollout = cast().roll_out(tokens_reward, replace_config(missing_stop_penalty=0.75))
    endings = [c.finish_reason for c in rollout.completions]
    assert set(endings) == {FinishReason.STOP, FinishReason.LENGTH}, "the test needs both"
    paid = (rollout.score_B - rollout.reward_B).tolist()
    assert paid == pytest.approx([0.75 if e is FinishReason.LENGTH else 0.0 for e in endings], abs=1e-6)


def test_weights_that_the_engine_does_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    who = cast()
    who.policy.step += 1
    with monkeypatch.context() as patch, pytest.raises(StaleWeights, match="load the policy again"):
        patch.setattr(who.engine, "load", lambda policy: None)
        who.roll_out(nothing)

    def stale(*arguments: Any, **settings: Any) -> list[Completion]:
        return [replace(c, weight_stamp="others+3") for c in answer_prompts(*arguments, **settings)]

    monkeypatch.setattr(rollout, "answer_prompts", stale)
    with pytest.raises(TrainingStopped, match=r"others\+3"):
        who.roll_out(nothing)


# -------------------------------------------------------------------------------------------- 3. advantages


@pytest.mark.parametrize(("gamma", "lam"), [(0.5, 1.0), (1.0, 0.5), (0.625, 0.8)])
def test_the_reward_stands_at_the_last_token(gamma: float, lam: float) -> None:
    """The critic predicts 0, so γλ is all that a token further back loses; what is placed has the missing stop taken off."""
    who = cast()
    rollout = who.roll_out(tokens_reward, replace_config(missing_stop_penalty=0.75))
    assert not torch.equal(rollout.reward_B, rollout.score_B)
    plain = replace_config(gamma=gamma, lam=lam)
    estimates = ppo.estimate(rollout, who.actors, 0.0, plain, DEVICE)
    for row, completion in enumerate(rollout.completions):
        found = estimates.returns_BT[row][rollout.mask_BT[row]]
        count = len(completion.token_ids)
        expected = [float(rollout.reward_B[row]) * 0.5 ** (count - 1 - t) for t in range(count)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert not estimates.returns_BT[~rollout.mask_BT].any()


def test_distance_from_the_reference_costs_beta_for_each_nat() -> None:
    who = cast()
    who.reference = tiny_policy("llama", seed=5)  # as if the policy had drifted far from it
    rollout = who.roll_out(tokens_reward)
    config = replace_config(gamma=1.0, lam=1.0)
    free, held = (ppo.estimate(rollout, who.actors, beta, config, DEVICE) for beta in (0.0, 0.25))
    kl_B = held.kl_BT.sum(1)
    assert held.kl > 1.0 and held.kl == pytest.approx(float(kl_B.mean()))
    first_B = rollout.mask_BT.int().argmax(1)
    rows = torch.arange(len(first_B))
    lost_B = free.returns_BT[rows, first_B] - held.returns_BT[rows, first_B]
    torch.testing.assert_close(lost_B, 0.25 * kl_B, atol=1e-4, rtol=1e-4)
    assert float(lost_B.mean()) > 0


def test_advantages_are_whitened_over_the_tokens_of_the_step() -> None:
    who = cast()
    rollout = who.roll_out(tokens_reward)
    found = ppo.estimate(rollout, who.actors, 0.1, CONFIG, DEVICE).adv_BT
    inside = found[rollout.mask_BT]
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-6) and float(inside.std(correction=0)) == pytest.approx(
        1.0
    )
    assert not found[~rollout.mask_BT].any()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_policy_that_has_not_moved_has_no_kl(temperature: float) -> None:
    who, config = cast(), replace_config(temperature=temperature)
    estimates = ppo.estimate(who.roll_out(nothing, config), who.actors, 0.5, config, DEVICE)
    assert abs(estimates.kl) < 1e-4 and abs(estimates.metrics["kl_k3"]) < 1e-4
    assert float(estimates.kl_BT.abs().max()) < 1e-4


def test_a_critic_that_predicts_nothing_explains_nothing() -> None:
    who = cast()
    estimates = ppo.estimate(who.roll_out(tokens_reward), who.actors, 0.0, CONFIG, DEVICE)
    assert estimates.metrics["value_explained"] == pytest.approx(0.0, abs=1e-5)


def test_advantages_move_the_policy_and_returns_the_critic_within_clips_of_their_own() -> None:
    """The ratio is 1 and A = 2: -2. The critic says .4 where 0 was said and 1 came back: ½ (1 - .4)², for .4 is within its clip."""
    rollout = cast().roll_out(tokens_reward)
    mask_BT, rows = rollout.mask_BT, torch.arange(len(rollout.batch))
    full = {name: torch.where(mask_BT, value, 0.0) for name, value in (("adv", 2.0), ("returns", 1.0), ("values", 0.4))}
    estimates = ppo.Estimates(
        full["adv"], full["returns"], torch.zeros_like(full["adv"]), full["adv"], {}, ReturnScale()
    )
    part = Part(rows, rollout.old_logp_BT, rollout.old_logp_BT, mask_BT.sum())
    config = replace_config(clip=0.2, value_clip=0.5, value_coef=3.0)
    loss, found = ppo.actors_loss(part, full["values"], rollout, estimates, config)
    assert float(found["policy_loss"]) == pytest.approx(-2.0) and float(found["value_loss"]) == pytest.approx(0.18)
    assert float(loss) == pytest.approx(-2.0 + 3 * 0.18)


def test_one_answer_is_enough_for_a_step(tmp_path: Path) -> None:
    figures = train(cast(), tokens_reward, replace_config(prompts_per_step=1, steps=1, minibatches=2), run_in(tmp_path))
    assert figures["unscored"] == 0


# ------------------------------------------------------------------------------------------------ 4. improve


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_ratio_is_one(temperature: float, tmp_path: Path) -> None:
    config = replace_config(steps=1, epochs=1, minibatches=1, temperature=temperature)
    figures = train(cast(), tokens_reward, config, run_in(tmp_path))
    assert figures["logprob_gap"] < 1e-4
    assert figures["clip_fraction"] == 0 and abs(figures["approx_kl"]) < 1e-6


def test_micro_batches_change_nothing_but_the_memory() -> None:
    """In float64, plain gradient steps: weights differ by what the gradients differ, and by nothing else."""
    found = []
    for batch_size in (1, 3, 64):
        who = cast(torch.float64)
        rollout = who.roll_out(tokens_reward)
        config = replace_config(batch_size=batch_size, epochs=2, minibatches=2, clip_norm=1e6, pretrain_coef=0.1)
        estimates = ppo.estimate(rollout, who.actors, 0.1, replace_config(), DEVICE)
        optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (who.policy.module, who.critic)]
        shown = list(zip(random_ids(20, 3, 8), random_ids(20, 3, 8, seed=1), strict=True))
        before = weights(who.policy.module)
        figures = ppo.improve_actors(who.actors, who.steps(optimizers), rollout, estimates, shown, config)
        assert not same(before, who.policy.module)
        found.append((weights(who.policy.module), weights(who.critic), figures))
    whole = found[-1]
    for cut in found[:-1]:
        for ours, theirs in zip(cut[:2], whole[:2], strict=True):
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-11)
        assert cut[2] == pytest.approx(whole[2], rel=1e-5, abs=1e-7)


def test_every_pass_of_every_step_takes_answers_and_demonstrations_in_an_order_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minibatches: list[list[int]] = []
    demonstrations: list[list[Example]] = []

    def watched(rows: Any) -> Any:
        if isinstance(rows, torch.Tensor):  # a minibatch; what is only read is shared in parts
            minibatches.append(rows.tolist())
        return rows

    monkeypatch.setattr(ppo, "my_share", watched)
    monkeypatch.setattr(ppo, "imitate", lambda policy, chosen, device, cut, weight: demonstrations.append(chosen))
    shown = list(zip(random_ids(40, 3, 8), random_ids(40, 3, 8, seed=1), strict=True))
    config = replace_config(steps=3, epochs=2, minibatches=2, pretrain_coef=0.1)
    train(cast(), tokens_reward, config, run_in(tmp_path), shown)
    passes = [first + second for first, second in zip(minibatches[::2], minibatches[1::2], strict=True)]
    assert len(passes) == 6 and all(sorted(order) == list(range(8)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6, passes
    picked = [tuple(shown.index(example) for example in chosen) for chosen in demonstrations]
    assert len(picked) == 12 and all(len(set(places)) == ppo.DEMONSTRATIONS for places in picked)
    assert len(set(picked)) == 12, picked


def test_estimates_do_not_depend_on_the_micro_batch() -> None:
    who = cast(torch.float64)
    rollout = who.roll_out(tokens_reward)
    found = [ppo.estimate(rollout, who.actors, 0.1, replace_config(batch_size=n), DEVICE) for n in (1, 3, 64)]
    for cut in found[:-1]:
        torch.testing.assert_close(cut.adv_BT, found[-1].adv_BT, rtol=1e-5, atol=1e-6)


def test_a_rate_of_zero_changes_no_weight(tmp_path: Path) -> None:
    who = cast()
    policy, critic = weights(who.policy.module), weights(who.critic)
    train(who, tokens_reward, replace_config(learning_rate=0.0, critic_learning_rate=0.0), run_in(tmp_path))
    assert same(policy, who.policy.module) and same(critic, who.critic)


def test_policy_and_critic_learn_while_reference_and_reward_model_stay(tmp_path: Path) -> None:
    who = cast()
    scorer = scorer_from(who.policy.module, torch.Generator().manual_seed(1))
    who.critic = critic_from(scorer)
    frozen = [(module, weights(module)) for module in (who.reference.module, scorer)]
    moving = [(module, weights(module)) for module in (who.policy.module, who.critic)]
    reward = LearnedReward(RewardModel(scorer, template(), "made"), DEVICE, same_tokens=True)
    train(who, reward, CONFIG, run_in(tmp_path))
    assert all(same(before, module) for module, before in frozen)
    assert not any(same(before, module) for module, before in moving)


def test_demonstrations_become_likelier_where_they_are_mixed_in() -> None:
    who = cast(torch.float64)
    shown = [([40, 41, 42], [50, 60, template().eos_id])]
    imitate(who.policy, shown, DEVICE, weight=2.0)
    gradient = torch.cat([p.grad.flatten() for p in who.policy.module.parameters() if p.grad is not None])
    ids = torch.tensor([[40, 41, 42, 50, 60, template().eos_id]])
    who.policy.module.zero_grad()
    logp = who.policy.module(ids[:, :-1]).log_softmax(-1)[0, 2:]
    (-2.0 * logp[torch.arange(3), ids[0, 3:]].mean()).backward()
    expected = torch.cat([p.grad.flatten() for p in who.policy.module.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------- 5. the whole loop


def low_ids(completions: Sequence[Completion]) -> list[float]:
    """Share of an answer's tokens in the lower third of the vocabulary, special ones apart."""
    return [sum(3 <= t < 100 for t in c.token_ids) / len(c.token_ids) for c in completions]


def test_a_reward_that_can_be_learnt_rises_and_a_random_one_teaches_nothing(tmp_path: Path) -> None:
    config = PPOSection(steps=15, prompts_per_step=32, learning_rate=1e-3, kl_coef=0.0, kl_target=0.0)
    shares: dict[str, list[float]] = {"learnable": [], "random": []}
    coins = torch.Generator().manual_seed(0)

    def learnable(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        shares["learnable"].append(sum(low_ids(completions)) / len(completions))
        return [3 * share for share in low_ids(completions)]

    def random(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        shares["random"].append(sum(low_ids(completions)) / len(completions))
        return torch.randn(len(completions), generator=coins).tolist()  # centred, as rewards here are

    train(cast(), learnable, config, run_in(tmp_path / "learnable"))
    train(cast(), random, config, run_in(tmp_path / "random"))
    gains = {name: sum(found[-3:]) / 3 - found[0] for name, found in shares.items()}
    assert gains["learnable"] > 0.25, shares
    assert abs(gains["random"]) < 0.15, shares


def test_the_bridle_holds_the_policy_nearer_to_the_reference(tmp_path: Path) -> None:
    config = replace_config(steps=8, prompts_per_step=20, learning_rate=3e-3)
    kl = {}
    for beta in (0.0, 1.0):
        folder = tmp_path / str(beta)
        train(cast(), lambda p, c: list(low_ids(c)), replace_config(config, kl_coef=beta), run_in(folder))
        kl[beta] = sum(line["kl"] for line in read_metrics(folder)[-3:]) / 3
    assert kl[1.0] < 0.75 * kl[0.0], kl


def test_beta_is_steered_and_logged(tmp_path: Path) -> None:
    """KL begins at 0, below the target, so β falls by its gain; the line of a step tells the β that it used."""
    train(cast(), tokens_reward, replace_config(steps=2, kl_coef=0.5, kl_target=5.0, kl_gain=0.1), run_in(tmp_path))
    first, second = read_metrics(tmp_path)
    assert first["beta"] == 0.5
    assert second["beta"] == pytest.approx(0.5 * 0.9, rel=1e-3)


def test_a_reference_that_breaks_ends_the_run_saved_and_before_the_step(tmp_path: Path) -> None:
    who, run = cast(), run_in(tmp_path)
    kept: list[dict[str, Tensor]] = []

    def breaking(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        if len(read_metrics(tmp_path)) == 1:
            who.reference.module.output_weight().data[7] = float("nan")
            kept.append(weights(who.policy.module))
        return tokens_reward(prompts, completions)

    with pytest.raises(TrainingStopped, match="the reference's log-probs of 8 of 8 answers are not finite") as caught:
        train(who, breaking, replace_config(steps=3, kl_coef=0.5, kl_target=5.0), run)
    assert one_sentence(str(caught.value)) and same(kept[0], who.policy.module)
    assert len(read_metrics(tmp_path)) == 1 and run.last_save == 1


@pytest.mark.parametrize(("coefficient", "given"), [(0.1, []), (0.0, [([5, 6], [7, 1])])])
def test_demonstrations_without_a_weight_or_the_reverse_are_refused(
    coefficient: float, given: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(
        NoUsableRows, match=f"pretrain_coef = {coefficient:g} weighs demonstrations .* got {len(given)}"
    ):
        train(cast(), nothing, replace_config(pretrain_coef=coefficient), run_in(tmp_path), given)


def test_a_resumed_run_steers_on_from_where_it_was(tmp_path: Path) -> None:
    config = replace_config(steps=4, kl_coef=0.5, kl_target=5.0, checkpoint_every=1)
    with dying_at(3):
        train(cast(), tokens_reward, config, run_in(tmp_path))
    train(cast(), tokens_reward, config, run_in(tmp_path))
    betas = [line["beta"] for line in read_metrics(tmp_path)]
    assert betas[0] == 0.5 and betas == pytest.approx([0.5 * 0.9**n for n in range(4)], rel=0.03)


@pytest.mark.parametrize(("restored", "begun"), [(0.0, 1e-6), (1e-9, 1e-6), (70.0, 50.0)])
def test_a_restored_weight_that_could_not_be_steered_begins_at_the_nearest_that_can(
    restored: float, begun: float, tmp_path: Path
) -> None:
    config = replace_config(steps=2, kl_coef=0.5, kl_target=5.0, checkpoint_every=1)
    with dying_at(2):
        train(cast(), tokens_reward, config, run_in(tmp_path))
    [file] = tmp_path.glob("checkpoints/step-*/state.json")
    notes = {name: value for name, value in read_json(file).items() if name != "sha256"}
    notes["values"]["beta"] = restored
    write_json(file, {**notes, "sha256": content_hash(notes)})
    train(cast(), tokens_reward, config, run_in(tmp_path))
    assert read_metrics(tmp_path)[1]["beta"] == begun


def test_each_step_writes_under_a_new_stamp(tmp_path: Path) -> None:
    stamps: list[str] = []
    who = cast()
    seen: Observe = lambda p, c: (stamps.append(c[0].weight_stamp), {"seen": len(c)})[1]  # noqa: E731
    ppo.train(who.actors, nothing, PROMPTS, [], replace_config(steps=3), who.session(run_in(tmp_path), observe=seen))
    assert len(set(stamps)) == 3
    assert [line["seen"] for line in read_metrics(tmp_path)] == [8, 8, 8]


def test_a_resumed_run_counts_its_steps_on(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    train(cast(), tokens_reward, replace_config(steps=2), run)
    resumed, whole = cast(), cast()
    train(resumed, tokens_reward, replace_config(steps=4), run)
    train(whole, tokens_reward, replace_config(steps=4), run_in(tmp_path / "whole"))
    assert resumed.policy.stamp == whole.policy.stamp and resumed.policy.step == 4
    assert same(weights(whole.policy.module), resumed.policy.module) and same(weights(whole.critic), resumed.critic)


def replace_config(base: PPOSection = CONFIG, **settings: Any) -> PPOSection:
    return PPOSection.model_validate({**base.model_dump(), **settings})


# ------------------------------------------------------------------------- 6. one trunk, warm-up, stopping early


def sharing(dtype: torch.dtype = torch.float32) -> Cast:
    """A policy whose trunk the critic shares; its head is not zero, so that it pulls at the trunk from the start."""
    who = cast(dtype)
    who.critic = shared_critic(who.policy.module).to(dtype)
    init_head(who.critic, torch.Generator().manual_seed(0))
    return who


def one_update(who: Cast, rollout: Rollout, config: PPOSection, rates: tuple[float, float] = (0.05, 0.05)) -> Any:
    """Plain gradient steps of the policy and of what is the critic's alone; the figures."""
    estimates = ppo.estimate(rollout, who.actors, 0.1, config, DEVICE)
    modules = (who.policy.module, who.actors.critics_own)
    optimizers = [torch.optim.SGD(module.parameters(), rate) for module, rate in zip(modules, rates, strict=True)]
    return ppo.improve_actors(who.actors, who.steps(optimizers), rollout, estimates, [], config)


def test_a_shared_trunk_is_run_once_and_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    who = sharing(torch.float64)
    batch = who.roll_out(tokens_reward).batch
    logp_BT = sequence_logprobs(who.policy.module, batch, 0.7)
    values_BT = torch.where(batch.mask_BT, who.critic.values(batch.ids_BW)[:, :-1], 0.0)
    runs: list[int] = []
    who.critic.model.register_forward_hook(lambda *_: runs.append(1))
    found = ppo.logprobs_and_values(who.actors, batch, 0.7)
    assert len(runs) == 1
    torch.testing.assert_close(found[0], logp_BT, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], values_BT, rtol=0, atol=1e-12)


def test_on_a_shared_trunk_the_critics_pull_is_weighed() -> None:
    """The trunk moves by the policy's gradient plus `value_coef` times the critic's: a straight line in it."""
    moved = {}
    for coef in (0.5, 1.0, 2.0):
        who = sharing(torch.float64)
        rollout = who.roll_out(tokens_reward)
        before = weights(who.policy.module)
        one_update(who, rollout, replace_config(epochs=1, minibatches=1, clip_norm=1e9, value_coef=coef))
        moved[coef] = {name: tensor - before[name] for name, tensor in weights(who.policy.module).items()}
    for name, step in moved[1.0].items():
        torch.testing.assert_close(moved[2.0][name] - step, 2 * (step - moved[0.5][name]), rtol=1e-6, atol=1e-12)
    assert any(float((moved[2.0][name] - moved[1.0][name]).abs().max()) > 1e-4 for name in moved[1.0])


def test_two_networks_do_not_pull_at_each_other() -> None:
    found = []
    for coef in (0.5, 2.0):
        who = cast(torch.float64)
        rollout = who.roll_out(tokens_reward)
        one_update(who, rollout, replace_config(epochs=1, minibatches=1, clip_norm=1e9, value_coef=coef))
        found.append((weights(who.policy.module), weights(who.critic)))
    assert all(torch.equal(found[0][0][name], tensor) for name, tensor in found[1][0].items())
    assert not all(torch.equal(found[0][1][name], tensor) for name, tensor in found[1][1].items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_policy_and_critic_learn_on_one_trunk(optimizer: str, tmp_path: Path) -> None:
    who = sharing()
    before, head = weights(who.policy.module), weights(who.critic.score)
    config = replace_config(optimizer=optimizer, critic_learning_rate=0.01)
    train(who, tokens_reward, config, run_in(tmp_path))
    assert not same(before, who.policy.module) and not same(head, who.critic.score)
    assert who.critic.model is who.policy.module.model


@pytest.mark.parametrize("shared", [False, True])
def test_in_the_warm_up_the_critic_alone_learns(shared: bool, tmp_path: Path) -> None:
    who = sharing() if shared else cast()
    before, head = weights(who.policy.module), weights(who.critic.score)
    run = run_in(tmp_path)
    train(who, tokens_reward, replace_config(steps=2, critic_warmup=2), run)
    assert same(before, who.policy.module) and not same(head, who.critic.score)
    errors = [line["value_loss"] for line in read_metrics(tmp_path)]
    assert errors[1] < errors[0] and [line["grad_norm"] for line in read_metrics(tmp_path)] == [0, 0]
    train(who, tokens_reward, replace_config(steps=3, critic_warmup=2), run)
    assert not same(before, who.policy.module)


def test_a_minibatch_that_finds_the_policy_too_far_takes_no_step() -> None:
    """Four minibatches: the second one measures what the first one did, and its own gradient is left."""
    found = {}
    for name, limit, epochs in (("one", 0.0, 1), ("stopped", 1e-7, 4), ("far", 1e9, 4), ("never", 0.0, 4)):
        who = cast(torch.float64)
        rollout = who.roll_out(tokens_reward)
        config = replace_config(epochs=epochs, minibatches=1, clip_norm=1e9, early_stop_kl=limit)
        figures = one_update(who, rollout, config)
        found[name] = (weights(who.policy.module), weights(who.critic), figures)
    for part in (0, 1):
        for name, other in (("stopped", "one"), ("far", "never")):
            assert all(torch.equal(tensor, found[other][part][key]) for key, tensor in found[name][part].items())
    assert found["stopped"][2]["updates"] == 1 and found["far"][2]["updates"] == 4
    assert found["stopped"][2]["grad_norm"] == found["one"][2]["grad_norm"]
    assert found["stopped"][2]["approx_kl"] > 1e-7 / 2, "the mean over the two that were read"
    assert "updates" not in found["never"][2]


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_run_on_one_trunk_that_died_in_or_after_its_warm_up_ends_as_one_alone(line: int, tmp_path: Path) -> None:
    config = replace_config(steps=3, critic_warmup=1, early_stop_kl=0.01, checkpoint_every=1)
    whole, resumed = sharing(), sharing()
    expected = train(whole, tokens_reward, config, run_in(tmp_path / "whole"))
    with dying_at(line):
        train(sharing(), tokens_reward, config, run_in(tmp_path / "cut"))
    assert train(resumed, tokens_reward, config, run_in(tmp_path / "cut")) == expected
    assert same(weights(whole.policy.module), resumed.policy.module)
    assert same(weights(whole.critic.score), resumed.critic.score)
