"""Adapters in every trainer, from Python: what learns, what is held to what, what a checkpoint holds, and that resuming changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import bridle
from bridle.core.errors import RecipeError, UsageError
from bridle.models.lora.adapter import base_weights, learning_tensors
from bridle.models.lora.low_rank import is_adapted, merged_tensors
from bridle.models.policy import save_policy
from bridle.project.metrics import read_metrics
from bridle.training import ppo as ppo_loop
from tests.models.tiny import policy as tiny_policy

PROMPTS = [f"What is {i} + {i % 7}?" for i in range(16)]
EXAMPLES = [(prompt, f"It is {i}.") for i, prompt in enumerate(PROMPTS)]
PAIRS = [(prompt, "It is a cat.", "No no no.") for prompt in PROMPTS]
LORA: dict[str, Any] = {"lora_r": 4, "optimizer": "adamw", "learning_rate": 1e-2}
ONLINE: dict[str, Any] = {"max_new_tokens": 6, "checkpoint_every": 1}
STEPS: dict[str, Any] = {**ONLINE, "steps": 2, "prompts_per_step": 4}


def length(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    return [len(answer) / 10 for answer in answers]


Call = Callable[..., Any]
CALLS: dict[str, tuple[Call, dict[str, Any]]] = {
    "sft": (lambda model, **more: bridle.sft(model, EXAMPLES, **more), {"epochs": 2, "batch_size": 8, "checkpoint_every": 2}),
    "dpo": (lambda model, **more: bridle.dpo(model, PAIRS, **more), {"batch_size": 8, "checkpoint_every": 1}),
    "online dpo": (
        lambda model, **more: bridle.online_dpo(model, PROMPTS, length, **more),
        {"online_rounds": 2, "online_prompts": 4, "max_new_tokens": 6},
    ),
    "ppo": (lambda model, **more: bridle.ppo(model, PROMPTS, length, **more), {**STEPS, "critic_learning_rate": 1e-2}),
    "grpo": (lambda model, **more: bridle.grpo(model, PROMPTS, length, **more), {**STEPS, "group_size": 4}),
    "rloo": (lambda model, **more: bridle.rloo(model, PROMPTS, length, **more), {**STEPS, "group_size": 4}),
    "rebel": (lambda model, **more: bridle.rebel(model, PROMPTS, length, **more), STEPS),
    "best of n": (
        lambda model, **more: bridle.best_of_n(model, PROMPTS, length, **more),
        {**ONLINE, "max_new_tokens": 20, "rounds": 2, "prompts_per_round": 4, "answers": 3},
    ),
}  # fmt: skip
HELD = [name for name in CALLS if name != "sft"]  # to a reference


class Stop:
    """Ends a run from outside after some lines."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        if step >= self.at:
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base") / "model"
    save_policy(place, tiny_policy())
    return place


@pytest.fixture
def model(folder: Path) -> bridle.Model:
    return bridle.load(folder, precision="float32")


def tensors(model: bridle.Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in merged_tensors(model.policy.module)}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("name", CALLS)
def test_the_base_does_not_move_and_a_run_that_is_resumed_ends_in_the_same_weights(
    name: str, folder: Path, tmp_path: Path
) -> None:
    call, settings = CALLS[name]
    settings = {**settings, **LORA}
    models = [bridle.load(folder, precision="float32") for _ in range(2)]
    base = tensors(models[0])
    call(models[0], **settings, folder=tmp_path / "once")
    learnt = learning_tensors(models[0].policy.module)
    assert set(learnt) and all(".lora." in key for key in learnt)
    assert equal(base_weights(models[0].policy.module), base), "to the bit"
    assert any(weight.any() for key, weight in learnt.items() if key.endswith(".B")), "it learnt"
    with pytest.raises(ZeroDivisionError):
        call(models[1], **settings, folder=tmp_path / "twice", on_log=Stop(0 if name == "sft" else 1))
    assert models[1].policy.adapter is None and equal(tensors(models[1]), base)
    call(models[1], **settings, folder=tmp_path / "twice")
    assert equal(learning_tensors(models[1].policy.module), learnt)
    untimed = [
        [{key: value for key, value in line.items() if key != "seconds"} for line in read_metrics(tmp_path / run)]
        for run in ("once", "twice")
    ]
    assert untimed[0] == untimed[1]
    for place in tmp_path.glob("*/checkpoints/*/state.safetensors"):
        kept = [key for key in load_file(place) if not key.startswith("optimizer.")]
        assert kept and all(".lora." in key or key in ("critic.score.weight", "critic.weight") for key in kept)


@pytest.mark.parametrize("name", HELD)
def test_an_adapter_that_is_trained_further_is_held_to_what_it_was(name: str, folder: Path, tmp_path: Path) -> None:
    """The reference never becomes the bare base (trl#3684, verl#3400): the KL begins at 0, DPO's loss at ln 2."""
    model = bridle.load(folder, precision="float32")
    bridle.sft(model, EXAMPLES, epochs=4, batch_size=4, **LORA)
    began, base = tensors(model), dict(base_weights(model.policy.module))
    call, settings = CALLS[name]
    call(model, **{**settings, "learning_rate": 1e-3}, folder=tmp_path / "run")
    first = read_metrics(tmp_path / "run")[0]
    if name == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert abs(first["chosen_moved"]) < 1e-6 and first["chosen_logp"] < 0
    else:
        assert abs(first["kl"]) < 1e-4
    assert not equal(tensors(model), began) and equal(base_weights(model.policy.module), base)
    bare = bridle.load(folder, precision="float32")
    call(model, **{**settings, "learning_rate": 1e-3}, reference=bare, folder=tmp_path / "bare")
    other = read_metrics(tmp_path / "bare")[0]
    moved = other["chosen_moved"] if name == "dpo" else other["kl"]
    assert abs(moved) > 0.05, "to the bare base the distance is another: what stands above can fail"


def test_a_reward_model_learns_by_an_adapter_with_its_head(model: bridle.Model, folder: Path, tmp_path: Path) -> None:
    base = tensors(model)
    settings: dict[str, Any] = {**LORA, "epochs": 2, "batch_size": 4, "checkpoint_every": 2, "max_new_tokens": 6}
    reward = bridle.reward_model(model, PAIRS, **settings, folder=tmp_path / "once")
    scorer = reward.model.module
    assert set(learning_tensors(scorer)) - {"score.weight"} == {
        n for n, _ in scorer.named_parameters() if ".lora." in n
    }
    assert equal(tensors(model), base) and model.policy.adapter is None
    kept = {weight.data_ptr() for weight in model.policy.module.model.parameters()}
    assert kept < {weight.data_ptr() for weight in scorer.parameters()}, "on the model's own weights"
    with pytest.raises(ZeroDivisionError):
        bridle.reward_model(model, PAIRS, **settings, folder=tmp_path / "twice", on_log=Stop(2))
    again = bridle.reward_model(model, PAIRS, **settings, folder=tmp_path / "twice")
    assert equal(learning_tensors(again.model.module), learning_tensors(scorer))
    reward.save(tmp_path / "reward")
    loaded = bridle.load_reward(tmp_path / "reward", precision="float32")
    answers = [better for _, better, _ in PAIRS]
    assert loaded(PROMPTS, answers) == pytest.approx(reward(PROMPTS, answers), abs=1e-4)


def memory(*modules: torch.nn.Module) -> int:
    """Numbers held by some networks together, each once."""
    return sum({weight.data_ptr(): weight.numel() for module in modules for weight in module.parameters()}.values())


def test_policy_reference_reward_and_critic_lie_on_one_trunk(
    model: bridle.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four networks in the memory of one, an adapter for each of three, and heads."""
    reward = bridle.reward_model(model, PAIRS, **LORA, batch_size=4, max_new_tokens=6)
    seen, plain = list[ppo_loop.Actors](), ppo_loop.train
    monkeypatch.setattr(ppo_loop, "train", lambda actors, *rest: (seen.append(actors), plain(actors, *rest))[1])
    bridle.ppo(model, PROMPTS, reward, **{**LORA, **STEPS, "critic_learning_rate": 1e-2})
    (actors,) = seen
    policy, critic = actors.policy.module, actors.critic
    one = sum(weight.numel() for weight in base_weights(policy).values())
    adapters = sum(
        w.numel() for module in (policy, critic, reward.model.module) for w in learning_tensors(module).values()
    )
    held = memory(policy, actors.reference.module, critic, reward.model.module)
    assert held == one + adapters < 1.4 * one
    assert not is_adapted(actors.reference.module) and is_adapted(critic)


def test_what_is_trained_whole_later_leaves_others_on_the_same_weights_alone(model: bridle.Model) -> None:
    reward = bridle.reward_model(model, PAIRS, **LORA, batch_size=4, max_new_tokens=6)
    before = reward(PROMPTS, ["It is a cat."] * 16)
    bridle.sft(model, EXAMPLES, epochs=1, optimizer="adamw", learning_rate=1e-2)
    assert reward(PROMPTS, ["It is a cat."] * 16) == before


def test_an_adapter_is_saved_loaded_merged_and_put_anew(model: bridle.Model, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no adapter to save"):
        model.save_adapter(tmp_path / "none")
    bridle.sft(model, EXAMPLES, epochs=2, batch_size=4, **LORA)
    said = model.answer(PROMPTS, max_new_tokens=8)
    model.save_adapter(tmp_path / "adapter")
    with pytest.raises(UsageError, match="exists; name a new folder"):
        model.save_adapter(tmp_path / "adapter")
    model.save(tmp_path / "whole")
    by_name = bridle.load(tmp_path / "adapter", precision="float32")
    named = bridle.load(folder, adapter=tmp_path / "whole/adapter", precision="float32")
    for found in (by_name, named, bridle.load(tmp_path / "whole", precision="float32")):
        assert found.answer(PROMPTS, max_new_tokens=8) == said and found.parameters == model.parameters
    assert is_adapted(by_name.policy.module) and by_name.copy().answer(PROMPTS, max_new_tokens=8) == said
    with pytest.raises(UsageError, match="has an adapter already, which is trained further; leave r out, or merge"):
        bridle.dpo(model, PAIRS, **LORA)
    model.merge()
    assert not is_adapted(model.policy.module) and model.answer(PROMPTS, max_new_tokens=8) == said
    bridle.dpo(model, PAIRS, **LORA, batch_size=8)
    assert model.answer(PROMPTS, max_new_tokens=8) != said
    model.save_adapter(tmp_path / "second")  # on weights that lie nowhere
    assert '"base_model_name_or_path": ""' in (tmp_path / "second/adapter_config.json").read_text()


def test_settings_are_checked_like_a_recipes(model: bridle.Model) -> None:
    with pytest.raises(RecipeError, match=r"'lora_rank' is not a setting of \[sft\]; did you mean 'lora_r'"):
        bridle.sft(model, EXAMPLES, lora_rank=4)
    with pytest.raises(RecipeError, match="lora.r = -1 is invalid"):
        bridle.sft(model, EXAMPLES, lora_r=-1)
    with pytest.raises(RecipeError, match="r = 0 is without an adapter, which the other settings are of"):
        bridle.sft(model, EXAMPLES, lora_target_modules=["q_proj"])
    with pytest.raises(
        RecipeError, match="sft.optimizer = 'muon' is for whole matrices, and an adapter is trained by adamw"
    ):
        bridle.sft(model, EXAMPLES, lora_r=4, optimizer="muon")
    with pytest.raises(RecipeError, match="'lora_r' is not a setting of"):
        bridle.pretrain(["a text"] * 9, tokens=100, lora_r=4)


def test_rates_that_are_not_given_are_an_adapters(model: bridle.Model, tmp_path: Path) -> None:
    for name, more in {"whole": {}, "adapter": {"lora_r": 4}}.items():
        bridle.sft(model.copy(), EXAMPLES[:8], epochs=1, folder=tmp_path / name, **more)
    rates = {
        name: float((tmp_path / name / "recipe.toml").read_text().partition("[sft]")[2].partition("learning_rate = ")[2].split()[0])
        for name in ("whole", "adapter")
    }  # fmt: skip
    assert rates["adapter"] == pytest.approx(10 * rates["whole"])


def test_an_adapter_knows_its_base_whatever_was_trained_on_that_besides(model: bridle.Model, tmp_path: Path) -> None:
    reward = bridle.reward_model(model, PAIRS, **LORA, batch_size=4, max_new_tokens=6)
    bridle.dpo(model, PAIRS, **LORA, batch_size=8)
    adapters = [reward.model.adapter, model.policy.adapter]
    assert all(adapter is not None and adapter.base_hash == model.policy.source.content for adapter in adapters)
    model.save_adapter(tmp_path / "adapter")
    said = model.answer(PROMPTS, max_new_tokens=8)
    assert bridle.load(tmp_path / "adapter", precision="float32").answer(PROMPTS, max_new_tokens=8) == said


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo"])
def test_a_model_held_in_two_bytes_learns_by_an_adapter_alone(name: str, folder: Path, tmp_path: Path) -> None:
    call, settings = CALLS[name]
    low = bridle.load(folder, precision="float32", frozen_precision="bfloat16")
    with pytest.raises(UsageError, match="an adapter alone can learn"):
        call(low, **settings)
    call(low, **LORA, **settings)
    low.save(tmp_path / "saved")
    adapters = {name: weight.clone() for name, weight in learning_tensors(low.policy.module).items()}
    exact = bridle.load(folder, precision="float32")
    call(exact, **LORA, **settings)
    for part, weight in learning_tensors(exact.policy.module).items():
        weight.data.copy_(adapters[part])
    whole, saved = tensors(exact), tensors(bridle.load(tmp_path / "saved", precision="float32"))
    assert all(torch.equal(whole[part], saved[part]) for part in whole)
    low.merge()
    assert all(torch.equal(whole[part], tensor) for part, tensor in tensors(low).items())


def test_what_was_given_as_objects_is_held_in_two_bytes_where_it_loses_nothing(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with pytest.raises(UsageError, match="no folder of theirs is left"):
        bridle.load(network, tokenizer, frozen_precision="bfloat16")
    model = bridle.load(network.bfloat16(), tokenizer, frozen_precision="bfloat16")
    bridle.dpo(model, PAIRS, **LORA, batch_size=8)
