"""bridle's losses, advantages and gradients beside TRL's, on tensors that TRL's own code was given (by `make_trl.py`).

Equal means to 1e-5 of each number. dpo.py:1387 is a line of `trl/trainer/dpo_trainer.py` in TRL 1.16.0, and so on; cpo.py
is `trl/experimental/cpo/cpo_trainer.py`, orpo.py likewise; ppo.py is `trl/experimental/ppo/ppo_trainer.py` in 1.12.0, the last
with PPO.

| TRL                        | bridle                   | what differs, and why
| -------------------------- | ------------------------ | ---------------------
| sigmoid, dpo.py:1387       | dpo                      | nothing
| aot of a pair, dpo.py:1447 | dpo, smoothing ε         | nothing; TRL has no other cDPO, and one pair sorts nothing
| robust, dpo.py:1428        | dpo, smoothing -ε/(1-2ε) | the same line in ε, drawn on below 0: no bias, no bound
| ipo, dpo.py:1393           | ipo of means             | TRL divides by the answer's length, eq. 17 and ours do not
| sigmoid_norm, dpo.py:1504  | dpo of means             | TRL divides by the answer's length
| sft, dpo.py:1495           | next_token               | nothing
| simpo, cpo.py:716          | simpo                    | TRL adds next_token of the chosen (cpo_alpha), Meng 2024 not
| odds ratio, orpo.py:697    | orpo                     | nothing
| orpo, orpo.py:848          | orpo                     | TRL imitates the prompt too, ours the answer alone, each pair the same
| kto, kto.py:1443           | kto, kto_baseline        | nothing
| reward, reward.py:792      | bradley_terry            | nothing; nor with a margin (790)
| centre, reward.py:795      | score_size               | TRL squares a pair's sum, ours each score: not all have pairs
| grpo, grpo.py:3153         | grpo, length_power 1     | nothing
| dapo, grpo.py:3168         | grpo, length_power 0     | nothing
| bnpo, grpo.py:3158         | grpo, length_power 0     | TRL means micro-batches' means, ours is one of the whole step
| dr_grpo, grpo.py:3163      | grpo, length_power 0     | TRL divides by answers × longest, ours by tokens: a factor
| KL, grpo.py:3105           | grpo, kl_coef            | TRL weighs k3 by the ratio or not at all, ours by the ratio without its gradient
| advantage, grpo.py:2787    | group_relative           | nothing
| advantage, rloo.py:1688    | leave_one_out, k1        | nothing; β Σ k1 is off the reward before
| loss, rloo.py:1824         | clipped_policy of sums   | TRL clips a whole answer; the first step is the same by tokens
| reward, ppo.py:778         | place_at_end, k1         | TRL's score comes a token after the stop token, ours at it
| GAE, ppo.py:793            | gae                      | nothing
| whitening, ppo.py:264      | whiten                   | TRL's variance is by n - 1, ours by n as in Ziegler 2019's code
| policy, ppo.py:846         | clipped_policy           | TRL means micro-batches' means, ours is one of the whole step
| value, ppo.py:837          | clipped_value            | the same, and TRL weighs it by vf_coef, .1
| approximate KL, ppo.py:857 | clipped_policy's figure  | TRL divides by all places, padding too, ours by tokens
| clip fraction, ppo.py:852  | clipped_policy's figure  | TRL counts tokens held by the clip, ours all ratios outside
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.maths.advantages import gae, group_relative, leave_one_out, place_at_end, whiten
from bridle.maths.kl import k1, k3
from bridle.maths.losses import (
    bradley_terry,
    clipped_policy,
    clipped_value,
    dpo,
    grpo,
    ipo,
    kto,
    kto_baseline,
    next_token,
    orpo,
    score_size,
    simpo,
    token_weights,
)
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.decoder import Decoder, DecoderConfig
from bridle.models.scorer import Scorer

Found = dict[str, Any]


@cache
def peer(version: str) -> Found:
    """A file of `make_trl.py`, its lists as tensors in float64, bool or long."""
    found: Found = json.loads((Path(__file__).parent / f"trl-{version}.json").read_text())
    return tensors(found)


def tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: tensors(inner) for name, inner in value.items()}
    if not isinstance(value, list):
        return value
    if isinstance(value[0], dict):
        return [tensors(inner) for inner in value]
    if len({len(row) for row in value if isinstance(row, list)}) > 1:
        return value  # token ids of different lengths
    flat = torch.tensor(value)
    return torch.tensor(value, dtype=torch.float64) if flat.is_floating_point() else flat


def equal(ours: Tensor, theirs: Tensor | float) -> None:
    expected = torch.as_tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(ours.detach().double(), expected, rtol=1e-5, atol=1e-9)


def same_loss_and_gradient(loss: Tensor, leaf: Tensor, theirs: Found) -> None:
    equal(loss, theirs["loss"])
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.count_nonzero() > 0
    equal(gradient, theirs["gradient"])


def leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


def summed(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT, values_BT, 0.0).sum(1)


def ones_like(values: Tensor) -> Tensor:
    return torch.ones_like(values).detach()


# ------------------------------------------------------------------------------------------------------- preferences


def sides(family: Found, logp_BT: Tensor, mean: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log π and log π_ref of the chosen and the rejected answers: sums over an answer's tokens, or means."""
    mask_BT = family["mask"]
    lengths_B = mask_BT.sum(1) if mean else torch.ones(len(mask_BT))
    chosen_P, rejected_P = (summed(logp_BT, mask_BT) / lengths_B).chunk(2)
    reference_chosen_P, reference_rejected_P = (summed(family["reference"], mask_BT) / lengths_B).chunk(2)
    return chosen_P, rejected_P, reference_chosen_P, reference_rejected_P


def plain_dpo(family: Found, case: Found, logp_BT: Tensor, smoothing: float = 0.0, mean: bool = False) -> Tensor:
    found = sides(family, logp_BT, mean)
    return dpo(*found, ones_like(found[0]), beta=case["beta"], smoothing=smoothing, count=len(found[0]))[0]


def robust_dpo(family: Found, case: Found, logp_BT: Tensor) -> Tensor:
    share = case["label_smoothing"]
    return plain_dpo(family, case, logp_BT, smoothing=-share / (1 - 2 * share))


def ipo_of_means(family: Found, case: Found, logp_BT: Tensor) -> Tensor:
    found = sides(family, logp_BT, mean=True)
    return ipo(*found, ones_like(found[0]), beta=case["beta"], count=len(found[0]))[0]


def sft_of_chosen(family: Found, case: Found, logp_BT: Tensor) -> Tensor:
    pairs = len(logp_BT) // 2
    logp_N = logp_BT[:pairs][family["mask"][:pairs]]
    return next_token(logp_N, tokens=len(logp_N))[0]


PREFERENCES: dict[str, Callable[[Found, Found, Tensor], Tensor]] = {
    "sigmoid": plain_dpo,
    "sigmoid, large beta": plain_dpo,
    "robust": robust_dpo,
    "aot, a pair at a time": lambda family, case, logp: plain_dpo(family, case, logp, case["label_smoothing"]),
    "ipo": ipo_of_means,
    "sigmoid_norm": lambda family, case, logp: plain_dpo(family, case, logp, mean=True),
    "sft": sft_of_chosen,
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_dpo_and_its_kin(name: str) -> None:
    family = peer("1.16")["dpo"]
    case, logp_BT = family["cases"][name], leaf(family["logp"])
    same_loss_and_gradient(PREFERENCES[name](family, case, logp_BT), logp_BT, case)


@pytest.mark.parametrize("name", ["simpo", "simpo, as it comes"])
def test_simpo_from_logits(name: str) -> None:
    family = peer("1.16")["simpo"]
    case, logits, mask_BT = family["cases"][name], leaf(family["logits"]), family["mask"]
    logp_BT = logits[:, :-1].log_softmax(2).gather(2, family["ids"][:, 1:, None])[:, :, 0]
    chosen_P, rejected_P = (summed(logp_BT, mask_BT) / mask_BT.sum(1)).chunk(2)
    pairs = len(chosen_P)
    loss, _ = simpo(chosen_P, rejected_P, ones_like(chosen_P), beta=case["beta"], margin=case["margin"], count=pairs)
    chosen_N = logp_BT[:pairs][mask_BT[:pairs]]
    loss = loss + case["cpo_alpha"] * next_token(chosen_N, tokens=len(chosen_N))[0]
    same_loss_and_gradient(loss, logits, case)


@pytest.mark.parametrize("name", ["orpo", "orpo, as it comes"])
def test_orpo_from_logits(name: str) -> None:
    """Ours, with what it imitates exchanged for what TRL does: every token of the chosen side, the prompt's too, in one mean."""
    family = peer("1.16")["orpo"]
    case, logits, mask_BT = family["cases"][name], leaf(family["logits"]), family["mask"]
    logp_BT = logits[:, :-1].log_softmax(2).gather(2, family["ids"][:, 1:, None])[:, :, 0]
    chosen_P, rejected_P = (summed(logp_BT, mask_BT) / mask_BT.sum(1)).chunk(2)
    pairs = len(chosen_P)
    ours, parts = orpo(chosen_P, rejected_P, ones_like(chosen_P), odds_weight=case["beta"], count=pairs)
    inside_BT = family["attention"][:pairs]
    theirs, _ = next_token(logp_BT[:pairs][inside_BT], tokens=int(inside_BT.sum()))
    equal(theirs, case["nll_loss"])
    equal(-parts["odds_loss"], case["log_odds_ratio"])
    equal(parts["margin"], case["log_odds_chosen"])
    loss = ours + chosen_P.mean() + theirs  # -m_c is what ours imitates
    equal(loss, case["loss"])
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, case["gradient"], rtol=1e-5, atol=1e-7)  # theirs has an odds ratio in float32


def test_the_odds_ratio_of_answers_that_are_nearly_certain() -> None:
    family = peer("1.16")["orpo"]["means"]
    logp_B = leaf(family["logp"])
    chosen_P, rejected_P = logp_B.chunk(2)
    loss, parts = orpo(chosen_P, rejected_P, ones_like(chosen_P), odds_weight=family["beta"], count=len(chosen_P))
    torch.testing.assert_close(-parts["odds_loss"], torch.tensor(family["ratio"]).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(parts["margin"], torch.tensor(family["odds_ratio"]).double(), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(loss + chosen_P.mean(), logp_B)
    torch.testing.assert_close(gradient, family["gradient"], rtol=1e-4, atol=1e-8)  # theirs is in float32


@pytest.mark.parametrize("name", ["kto", "kto, weighted", "kto, negative baseline"])
def test_kto_and_its_baseline(name: str) -> None:
    family = peer("1.16")["kto"]
    case, logp_BT = family["cases"][name], leaf(family["logp"])
    baseline = kto_baseline(
        summed(family["other"], family["other_mask"]),
        summed(case["other_reference"], family["other_mask"]),
        beta=case["beta"],
    )
    assert (float(baseline) > 0.1) is (name != "kto, negative baseline")
    loss, _ = kto(
        summed(logp_BT, family["mask"]), summed(family["reference"], family["mask"]), family["wanted"], baseline,
        beta=case["beta"], wanted_weight=case["wanted_weight"], unwanted_weight=case["unwanted_weight"],
        count=len(logp_BT),
    )  # fmt: skip
    same_loss_and_gradient(loss, logp_BT, case)


@pytest.mark.parametrize("name", ["plain", "margin", "centred"])
def test_reward_model(name: str) -> None:
    family = peer("1.16")["reward"]
    case, scores_B = family["cases"][name], leaf(family["scores"])
    chosen_P, rejected_P = scores_B.chunk(2)
    pairs = len(chosen_P)
    margin_P = family["margin"] if name == "margin" else 0.0
    loss, _ = bradley_terry(chosen_P, rejected_P, ones_like(chosen_P), count=pairs, margin_P=margin_P)
    sizes = (
        2 * score_size(scores_B, count=pairs) - (chosen_P - rejected_P).square().mean()
    )  # (c + r)² = 2c² + 2r² - (c - r)²
    same_loss_and_gradient(loss + case["centre"] * sizes, scores_B, case)


# ------------------------------------------------------------------------------------------------------------- groups

LENGTH_POWER = {
    "grpo": 1.0, "bnpo": 0.0, "bnpo, in halves": 0.0, "dapo": 0.0, "dapo, no KL": 0.0, "dapo, in halves": 0.0,
    "dapo, corrected KL": 0.0, "dr_grpo": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", LENGTH_POWER)
def test_grpo_and_its_variants(name: str) -> None:
    family = peer("1.16")["grpo"]
    case, logp_BT, mask_BT = family["cases"][name], leaf(family["logp"]), family["mask"]
    ratio_BT = torch.where(mask_BT, logp_BT - family["old"], 0.0).exp()
    theirs_BT = ratio_BT if name == "dapo, corrected KL" else torch.ones_like(ratio_BT)  # what TRL weighs k3 by
    loss = torch.tensor(0.0)
    for rows in torch.arange(8).chunk(2 if "in halves" in name else 1):
        weight_B, count = token_weights(mask_BT.sum(1), LENGTH_POWER[name], torch.arange(8))  # of the whole step
        if name == "bnpo, in halves":
            count = 2 * mask_BT[rows].sum()
        if name == "dr_grpo":
            count = torch.tensor(8 * case["longest"])
        part, _ = grpo(
            logp_BT[rows], family["old"][rows], family["reference"][rows], family["adv"][rows], weight_B[rows],
            mask_BT[rows], clip=case["clip"], clip_high=case["clip_high"], kl_coef=case["beta"], count=count,
        )  # fmt: skip
        other_BT = weight_B[:, None] * (theirs_BT - ratio_BT.detach()) * k3(logp_BT, family["reference"], mask_BT)
        loss = loss + part + case["beta"] * other_BT[rows].sum() / count
    same_loss_and_gradient(loss, logp_BT, case)


@pytest.mark.parametrize(("scale", "std_power"), [("group", 1.0), ("none", 0.0)])
def test_group_relative_advantages(scale: str, std_power: float) -> None:
    family = peer("1.16")["grpo"]
    theirs = family["advantages"][scale]
    assert (
        float(theirs[4:8].abs().sum()) == 0 < float(theirs[:4].abs().min())
    )  # the second group's rewards are all equal
    torch.testing.assert_close(
        group_relative(family["rewards"], 4, std_power=std_power), theirs, rtol=1e-5, atol=1e-6
    )  # made in float32


def test_rloo_advantages_with_the_penalty_in_the_reward() -> None:
    family = peer("1.16")["rloo"]
    penalty_B = k1(family["old"], family["reference"], family["mask"]).sum(1)
    equal(leave_one_out(family["rewards"] - family["beta"] * penalty_B, 4), family["advantages"])


def test_rloo_clips_the_ratio_of_a_whole_answer() -> None:
    family = peer("1.16")["rloo"]
    case, logp_BT, mask_BT = family["cases"]["later epochs"], leaf(family["logp"]), family["mask"]
    logp_B1, old_B1 = summed(logp_BT, mask_BT)[:, None], summed(family["old"], mask_BT)[:, None]
    one_B1 = torch.ones_like(logp_B1, dtype=torch.bool)
    adv_B1 = family["advantages"][:, None]
    loss, stats = clipped_policy(logp_B1, old_B1, adv_B1, one_B1, clip=family["clip"], tokens=len(logp_BT))
    assert 0 < float(stats["clip_fraction"]) < 1
    same_loss_and_gradient(loss, logp_BT, case)


def test_rloo_s_first_step_is_the_plain_policy_gradient_by_tokens_too() -> None:
    family = peer("1.16")["rloo"]
    logp_BT, mask_BT = leaf(family["logp"]), family["mask"]
    weight_B = torch.ones(len(logp_BT))
    loss, _ = grpo(
        logp_BT, family["logp"], family["reference"], family["advantages"], weight_B, mask_BT, clip=family["clip"],
        clip_high=family["clip"], kl_coef=0.0, count=len(logp_BT),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, logp_BT)
    equal(gradient, family["cases"]["first step"]["gradient"])


# ---------------------------------------------------------------------------------------------------------------- PPO


def test_ppo_rewards() -> None:
    """TRL leaves one token more after the stop token where there is room, and gives the score there."""
    family = peer("1.12")["ppo"]
    penalty_BT = k1(family["logprobs"], family["ref_logprobs"], family["mask"])
    equal(place_at_end(family["scores"], family["mask_and_one"]) - family["kl_coef"] * penalty_BT, family["rewards"])
    ours_BT = place_at_end(family["scores"], family["mask"]) - family["kl_coef"] * penalty_BT
    equal(ours_BT.sum(1), family["rewards"].sum(1))
    assert int((ours_BT != family["rewards"]).any(1).sum()) == int((family["mask"].sum(1) < 7).sum())


def test_ppo_advantages_and_returns() -> None:
    family = peer("1.12")["ppo"]
    adv_BT, returns_BT = gae(
        family["rewards"], family["values"], family["mask_and_one"], gamma=family["gamma"], lam=family["lam"]
    )
    equal(adv_BT, family["raw_advantages"])
    equal(returns_BT, family["returns"])


def test_ppo_whitening() -> None:
    family = peer("1.12")["ppo"]
    tokens = int(family["mask"].sum())
    whitened_BT = whiten(family["raw_advantages"], family["mask"])
    equal(whitened_BT * ((tokens - 1) / tokens) ** 0.5, family["advantages"])


@pytest.mark.parametrize("cut", ["micro_batches", "halves"])
def test_ppo_losses(cut: str) -> None:
    family = peer("1.12")["ppo"]
    for micro in family[cut]:
        rows, cuts = micro["rows"], len(family[cut])
        logp_MT, values_MT = leaf(micro["logp"]), leaf(micro["values"])
        mask_MT, longer_MT = family["mask"][rows], family["mask_and_one"][rows]
        policy_loss, stats = clipped_policy(
            logp_MT, family["logprobs"][rows], family["advantages"][rows], mask_MT,
            clip=family["clip"], tokens=mask_MT.sum(),
        )  # fmt: skip
        value_loss, _ = clipped_value(
            values_MT, family["values"][rows], family["returns"][rows], longer_MT,
            clip=family["value_clip"], tokens=longer_MT.sum(),
        )  # fmt: skip
        equal(policy_loss, micro["policy_loss"])
        equal(value_loss, micro["value_loss"])
        (logp_gradient,) = torch.autograd.grad(policy_loss, logp_MT)
        (values_gradient,) = torch.autograd.grad(value_loss, values_MT)
        equal(logp_gradient / cuts, micro["logp_gradient"])
        equal(values_gradient * family["value_coef"] / cuts, micro["values_gradient"])
        held = (logp_gradient == 0) & mask_MT
        equal(held.sum() / mask_MT.sum(), micro["clip_fraction"])
        assert float(stats["clip_fraction"]) > micro["clip_fraction"]
        equal(stats["approx_kl"] * mask_MT.sum() / mask_MT.numel(), micro["approx_kl"])


# ------------------------------------------------------------------------------------- a whole model: masks and shifts

SHAPE = DecoderConfig("llama", 16, 8, 12, 1, 2, 1, 4, max_positions=32, tie_embeddings=False)


def same_gradients(module: torch.nn.Module, theirs: dict[str, Tensor]) -> None:
    """Equal to 1e-5 of each tensor's largest number: transformers' norms are in float32 even in a model of float64."""
    ours = dict(module.named_parameters())
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        found = ours[name].grad
        assert found is not None
        torch.testing.assert_close(found, gradient, rtol=0.0, atol=1e-5 * float(gradient.abs().max()))


def test_dpo_from_token_ids_to_the_gradient_of_every_weight() -> None:
    family = peer("1.16")["whole_model"]
    policy, reference = Decoder(SHAPE).double(), Decoder(SHAPE).double()
    policy.load_state_dict(family["policy"])
    reference.load_state_dict(family["fixed"])
    batch = make_batch(family["prompts"] * 2, family["chosen"] + family["rejected"], pad_id=0)
    chosen_P, rejected_P = sequence_logprobs(policy, batch).sum(1).chunk(2)
    with torch.no_grad():
        fixed = sequence_logprobs(reference, batch).sum(1).chunk(2)
    loss, _ = dpo(chosen_P, rejected_P, *fixed, ones_like(chosen_P), beta=family["beta"], count=3)
    loss.backward()
    equal(loss, family["dpo"]["loss"])
    same_gradients(policy, family["dpo"]["gradients"])


def test_a_reward_model_from_token_ids_to_the_gradient_of_every_weight() -> None:
    family = peer("1.16")["whole_model"]
    scorer = Scorer(Decoder(SHAPE).model).double()
    scorer.load_state_dict(family["scorer"])
    batch = make_batch(family["prompts"] * 2, family["chosen"] + family["rejected"], pad_id=0)
    chosen_P, rejected_P = scorer.batch_scores(batch).chunk(2)
    loss, _ = bradley_terry(chosen_P, rejected_P, ones_like(chosen_P), count=3)
    loss.backward()
    equal(loss, family["reward"]["loss"])
    same_gradients(scorer, family["reward"]["gradients"])


# ---------------------------------------------------------------------------------------------------------- the files


def test_every_case_of_the_files_is_compared() -> None:
    made = peer("1.16")
    assert set(made) == {"made_by", "dpo", "simpo", "orpo", "kto", "reward", "grpo", "rloo", "whole_model"}
    assert set(made["dpo"]["cases"]) == set(PREFERENCES)
    assert set(made["grpo"]["cases"]) == set(LENGTH_POWER)
    assert set(peer("1.12")) == {"made_by", "ppo"}
    assert (made["made_by"]["trl"], peer("1.12")["made_by"]["trl"]) == ("1.16.0", "1.12.0")
