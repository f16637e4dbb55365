"""Makes the files that `test_against_trl.py` reads: tensors from a seed, and what TRL's own code makes of them.

Run by hand, once in an environment of its own for each of two versions; bridle is not needed there:

    pip install torch==2.13.0 trl==1.16.0 && python tests/peers/make_trl.py    # writes trl-1.16.json
    pip install torch==2.13.0 trl==1.12.0 && python tests/peers/make_trl.py    # writes trl-1.12.json: PPO, gone since 1.13

TRL's formulas stand inside long methods of its trainers. So each trainer is made as a user would make it, on a tiny random
model, and the method is called with a stand-in for the model that returns stored log-probs. Autograd gives the gradient with
respect to them. PPO's `train` is one method with everything in it: it runs as it is for one batch, and what it computed is
read from its variables when it logs.
Shapes: P pairs, B sequences, T predictions, V vocabulary.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", CUDA_VISIBLE_DEVICES="")

import tokenizers
import torch
import transformers
import trl
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

PAD, STOP, VOCABULARY = 0, 1, 16
WORDS = ["<pad>", "<stop>", *"abcdefghijklmn"]
Found = dict[str, Any]


# ----------------------------------------------------------------------------------------------- what trainers ask for


def tokenizer() -> PreTrainedTokenizerFast:
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")
    raw = tokenizers.Tokenizer(model)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<stop>", unk_token="<pad>", padding_side="left"
    )


def tiny(kind: type, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.5, num_labels=1, tie_word_embeddings=False,
        pad_token_id=PAD, eos_token_id=STOP, bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    return kind(config).double()


def settings(**more: Any) -> dict[str, Any]:
    folder = tempfile.mkdtemp()
    return {"output_dir": folder, "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, **more}


def prepared(trainer: Any) -> Any:
    """A trainer as it is in the middle of a training run with one micro-batch a step."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def stored(logp_BT: Tensor, labels_BW: Tensor) -> SimpleNamespace:
    """What TRL's models give back, made of stored log-probs: zero where the label is -100, as TRL's own are."""
    zeros = torch.zeros_like(logp_BT)
    kept = torch.where(labels_BW[:, 1:] != -100, logp_BT, 0.0)
    return SimpleNamespace(
        log_probs=kept, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros, aux_loss=None
    )


def backward(loss: Tensor, leaf: Tensor) -> Found:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return {"loss": loss.detach(), "gradient": gradient}


def leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


# ---------------------------------------------------------------------------------------------------------- the inputs


class Draw:
    """Seeded numbers in float64."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def logprobs(self, *shape: int) -> Tensor:
        return -2.0 * self.normal(*shape).abs() - 0.05

    def near(self, values: Tensor, by: float) -> Tensor:
        return (values + by * self.normal(*values.shape)).clamp(max=-1e-3)

    def ids(self, *shape: int) -> Tensor:
        return torch.randint(2, VOCABULARY, shape, generator=self.generator)


def mask_of(prompts: list[int], answers: list[int], width: int) -> Tensor:
    """[B, width] over tokens: 1 on the answers', which follow the prompts'."""
    place = torch.arange(width)
    start, length = torch.tensor(prompts)[:, None], torch.tensor(answers)[:, None]
    return ((place >= start) & (place < start + length)).long()


def attention_of(prompts: list[int], answers: list[int], width: int) -> Tensor:
    return (torch.arange(width) < (torch.tensor(prompts) + torch.tensor(answers))[:, None]).long()


# ---------------------------------------------------------------------------------- preferences: DPO, SimPO, ORPO, KTO


def dpo_family() -> Found:
    draw, width = Draw(1), 9
    prompts, answers = [2, 3, 2, 4, 1, 2] * 2, [3, 5, 1, 4, 8, 2, 6, 2, 7, 1, 3, 4]  # six chosen, six rejected
    mask, attention = mask_of(prompts, answers, width), attention_of(prompts, answers, width)
    ids = torch.where(attention.bool(), draw.ids(12, width), PAD)
    logp = draw.logprobs(12, width - 1)
    reference = draw.near(logp, 0.7)
    cases = {
        "sigmoid": {"loss_type": ["sigmoid"], "beta": 0.1},
        "sigmoid, large beta": {"loss_type": ["sigmoid"], "beta": 2.0},
        "robust": {"loss_type": ["robust"], "beta": 0.5, "label_smoothing": 0.2},
        "ipo": {"loss_type": ["ipo"], "beta": 0.1},
        "sigmoid_norm": {"loss_type": ["sigmoid_norm"], "beta": 2.0},
        "sft": {"loss_type": ["sft"], "beta": 0.1},
        "aot, a pair at a time": {"loss_type": ["aot"], "beta": 0.5, "label_smoothing": 0.2},
    }
    made: Found = {"mask": mask[:, 1:].bool(), "logp": logp, "reference": reference, "cases": {}}
    for name, chosen in cases.items():
        trainer = prepared(
            trl.DPOTrainer(
                tiny(LlamaForCausalLM, 0), ref_model=tiny(LlamaForCausalLM, 1), processing_class=tokenizer(),
                args=trl.DPOConfig(**settings(**chosen)),
                train_dataset=Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}]),
            )
        )  # fmt: skip
        rows = [torch.tensor([p, p + 6]) for p in range(6)] if "a pair" in name else [torch.arange(12)]
        parts = []
        for part in rows:
            policy, fixed = leaf(logp[part]), reference[part]
            trainer.ref_model = lambda labels, fixed=fixed, **_: stored(fixed, labels)
            inputs = {"input_ids": ids[part], "attention_mask": attention[part], "completion_mask": mask[part]}
            loss = trainer.compute_loss(lambda labels, policy=policy, **_: stored(policy, labels), inputs)
            parts.append(backward(loss, policy))
        losses, gradients = [p["loss"] for p in parts], [p["gradient"] for p in parts]
        if len(rows) == 1:
            gradient = gradients[0]
        else:  # back in the order of the rows: chosen first, then rejected
            gradient = torch.cat([torch.stack([g[side] for g in gradients]) for side in (0, 1)]) / len(rows)
        made["cases"][name] = {**numbers(chosen), "loss": torch.stack(losses).mean(), "gradient": gradient}
    return made


def simpo_family() -> Found:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    draw, width, pairs = Draw(2), 6, 4
    prompts, answers = [2, 1, 2, 1] * 2, [3, 4, 1, 2, 2, 5, 4, 1]
    mask, attention = mask_of(prompts, answers, width), attention_of(prompts, answers, width)
    ids = torch.where(attention.bool(), draw.ids(8, width) % 6, PAD)
    labels = torch.where(mask.bool(), ids, -100)
    logits = 2.0 * draw.normal(8, width, 6)
    made: Found = {"ids": ids, "mask": mask[:, 1:].bool(), "logits": logits, "cases": {}}
    cases = {
        "simpo": {"beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        "simpo, as it comes": {"beta": 2.0, "simpo_gamma": 1.4},
    }
    for name, chosen in cases.items():
        arguments = CPOConfig(**settings(loss_type="simpo", **chosen))
        trainer = prepared(
            CPOTrainer(
                tiny(LlamaForCausalLM, 0), processing_class=tokenizer(), args=arguments,
                train_dataset=Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}]),
            )
        )  # fmt: skip
        policy = leaf(logits)
        batch = {
            f"{side}_{what}": values[rows]
            for side, rows in (("chosen", slice(0, pairs)), ("rejected", slice(pairs, None)))
            for what, values in (("input_ids", ids), ("attention_mask", attention), ("labels", labels))
        }
        loss, _ = trainer.get_batch_loss_metrics(lambda *_, policy=policy, **__: SimpleNamespace(logits=policy), batch)
        used = {"beta": arguments.beta, "margin": arguments.simpo_gamma, "cpo_alpha": arguments.cpo_alpha}
        made["cases"][name] = {**used, **backward(loss, policy)}
    return made


def orpo_family() -> Found:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    draw, width, pairs = Draw(11), 6, 4
    prompts, answers = [2, 1, 2, 1] * 2, [3, 4, 1, 2, 2, 5, 4, 1]
    mask, attention = mask_of(prompts, answers, width), attention_of(prompts, answers, width)
    ids = torch.where(attention.bool(), draw.ids(8, width) % 6, PAD)
    labels = torch.where(mask.bool(), ids, -100)
    logits = 2.0 * draw.normal(8, width, 6)
    made: Found = {
        "ids": ids, "mask": mask[:, 1:].bool(), "attention": attention[:, 1:].bool(), "logits": logits, "cases": {},
    }  # fmt: skip
    for name, chosen in {"orpo, as it comes": {}, "orpo": {"beta": 0.5}}.items():
        arguments = ORPOConfig(**settings(**chosen))
        trainer = prepared(
            ORPOTrainer(
                tiny(LlamaForCausalLM, 0), processing_class=tokenizer(), args=arguments,
                train_dataset=Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}]),
            )
        )  # fmt: skip
        policy = leaf(logits)
        batch = {
            f"{side}_{what}": values[rows]
            for side, rows in (("chosen", slice(0, pairs)), ("rejected", slice(pairs, None)))
            for what, values in (("input_ids", ids), ("attention_mask", attention), ("labels", labels))
        }
        loss, metrics = trainer.get_batch_loss_metrics(
            lambda *_, policy=policy, **__: SimpleNamespace(logits=policy), batch
        )
        logged = {key: metrics[key] for key in ("nll_loss", "log_odds_ratio", "log_odds_chosen")}
        made["cases"][name] = {"beta": arguments.beta, **logged, **backward(loss, policy)}
    means = leaf(torch.tensor([-0.3, -4.0, -1e-3, -2.0, -0.7, -1e-4, -3.0, -1e-3]))  # chosen, then rejected; float32
    losses, *_, ratio, odds = trainer.odds_ratio_loss(*means.chunk(2))
    made["means"] = {"logp": means.detach(), "odds_ratio": odds, "losses": losses, **backward(-losses.mean(), means)}
    made["means"]["beta"], made["means"]["ratio"] = trainer.beta, ratio
    return made


def kto_family() -> Found:
    draw, width, other_width = Draw(3), 7, 8
    prompts, answers, others = [2, 3, 2, 1, 2, 3, 1, 2], [3, 4, 1, 5, 2, 2, 6, 4], [4, 1, 5, 2, 2, 5, 4, 3]
    mask, attention = mask_of(prompts, answers, width), attention_of(prompts, answers, width)
    other_mask, other_attention = mask_of(prompts, others, other_width), attention_of(prompts, others, other_width)
    wanted = torch.tensor([True, False, True, True, False, True, False, True])
    logp, other = draw.logprobs(8, width - 1), draw.logprobs(8, other_width - 1)
    reference = draw.near(logp, 0.7)
    above, below = draw.near(other, 0.3) - 0.4, draw.near(other, 0.3) + 0.4
    made: Found = {
        "mask": mask[:, 1:].bool(), "logp": logp, "reference": reference, "wanted": wanted,
        "other_mask": other_mask[:, 1:].bool(), "other": other, "cases": {},
    }  # fmt: skip
    for name, fixed, weights in (
        ("kto", above, (1.0, 1.0)),
        ("kto, weighted", above, (0.75, 1.33)),
        ("kto, negative baseline", below, (1.0, 1.0)),
    ):
        arguments = trl.KTOConfig(
            **settings(
                beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1], per_device_train_batch_size=4
            )
        )
        rows = [{"prompt": "a b", "completion": " c", "label": i % 2 == 0} for i in range(4)]
        trainer = prepared(
            trl.KTOTrainer(
                tiny(LlamaForCausalLM, 0), ref_model=tiny(LlamaForCausalLM, 1), processing_class=tokenizer(),
                args=arguments, train_dataset=Dataset.from_list(rows),
            )
        )  # fmt: skip
        policy = leaf(logp)

        def reading(main: Tensor, apart: Tensor) -> Any:  # the answers with other prompts are one token wider
            return lambda labels, **_: stored(main if labels.shape[1] == width else apart, labels)

        trainer.ref_model = reading(reference, fixed)
        inputs = {
            "input_ids": draw.ids(8, width), "attention_mask": attention, "completion_mask": mask,
            "KL_input_ids": draw.ids(8, other_width), "KL_attention_mask": other_attention,
            "KL_completion_mask": other_mask, "label": wanted,
        }  # fmt: skip
        loss = trainer.compute_loss(reading(policy, other), inputs)
        used = {"beta": 0.3, "wanted_weight": weights[0], "unwanted_weight": weights[1], "other_reference": fixed}
        made["cases"][name] = {**used, **backward(loss, policy)}
    return made


def reward_family() -> Found:
    draw = Draw(4)
    scores, margin = 2.0 * draw.normal(10), draw.normal(5).abs()  # five chosen, five rejected
    made: Found = {"scores": scores, "margin": margin, "cases": {}}
    for name, centre in (("plain", None), ("margin", None), ("centred", 0.01)):
        trainer = prepared(
            trl.RewardTrainer(
                tiny(LlamaForSequenceClassification, 0), processing_class=tokenizer(),
                args=trl.RewardConfig(**settings(center_rewards_coefficient=centre)),
                train_dataset=Dataset.from_list([{"chosen": "a b c", "rejected": "a b d"}]),
            )
        )  # fmt: skip
        model_scores = leaf(scores)
        inputs = {"input_ids": draw.ids(10, 4), "attention_mask": torch.ones(10, 4, dtype=torch.long)}
        inputs |= {"margin": margin} if name == "margin" else {}

        def model(scores: Tensor = model_scores, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=scores[:, None])

        made["cases"][name] = {"centre": centre or 0.0, **backward(trainer.compute_loss(model, inputs), model_scores)}
    return made


# ------------------------------------------------------------------------------------------------ groups: GRPO and RLOO


def online(kind: type, arguments: Any, rewards: Tensor) -> Any:
    folder = tempfile.mkdtemp()
    tiny(LlamaForCausalLM, 0).save_pretrained(folder)  # these trainers load the reference by the model's name
    return prepared(
        kind(
            folder, processing_class=tokenizer(), args=arguments,
            reward_funcs=lambda completions, **_: rewards.tolist(),
            train_dataset=Dataset.from_list([{"prompt": "a b"}] * len(rewards)),
        )
    )  # fmt: skip


def told(trainer: Any, by_model: dict[int, Tensor]) -> None:
    """The log-probs of each model's answers, in place of a forward pass."""

    def logprobs(model: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        found = by_model[id(model)]
        return found, torch.zeros_like(found), None

    trainer._get_per_token_logps_and_entropies = logprobs


def online_inputs(draw: Draw, lengths: list[int], old: Tensor, reference: Tensor) -> dict[str, Tensor]:
    width = max(lengths)
    mask = mask_of([0] * len(lengths), lengths, width)
    return {
        "prompt_ids": draw.ids(len(lengths), 2), "prompt_mask": torch.ones(len(lengths), 2, dtype=torch.long),
        "completion_ids": draw.ids(len(lengths), width), "completion_mask": mask, "num_items_in_batch": mask.sum(),
        "old_per_token_logps": old, "ref_per_token_logps": reference,
    }  # fmt: skip


REWARDS = torch.tensor(
    [1.0, 0.0, 0.25, -2.0, 0.5, 0.5, 0.5, 0.5, 3.0, 2.9990234375, 3.0009765625, 3.0]
)  # the second group all equal


def grpo_family() -> Found:
    draw, lengths = Draw(5), [3, 6, 1, 4, 6, 2, 5, 4]
    logp = draw.logprobs(8, 6)
    old, reference, adv = draw.near(logp, 0.3), draw.near(logp, 0.5), draw.normal(8)
    inputs = online_inputs(draw, lengths, old, reference)
    made: Found = {
        "mask": inputs["completion_mask"].bool(), "logp": logp, "old": old, "reference": reference, "adv": adv,
        "cases": {}, "rewards": REWARDS, "advantages": {},
    }  # fmt: skip
    plain = {"beta": 0.04, "use_bias_correction_kl": False, "max_completion_length": 10}
    cases = {
        "grpo": {**plain, "loss_type": "grpo"},
        "bnpo": {**plain, "loss_type": "bnpo"},
        "dapo": {**plain, "loss_type": "dapo", "epsilon_high": 0.28},
        "dapo, no KL": {**plain, "loss_type": "dapo", "beta": 0.0},
        "dr_grpo": {**plain, "loss_type": "dr_grpo"},
        "bnpo, in halves": {**plain, "loss_type": "bnpo"},
        "dapo, in halves": {**plain, "loss_type": "dapo"},
        "dapo, corrected KL": {**plain, "loss_type": "dapo", "use_bias_correction_kl": True},
    }
    for name, chosen in cases.items():
        cuts = 2 if "in halves" in name else 1
        batch = {"per_device_train_batch_size": 8 // cuts, "num_generations": 4, "steps_per_generation": cuts}
        arguments = trl.GRPOConfig(**settings(**batch, gradient_accumulation_steps=cuts, **chosen))
        trainer = online(trl.GRPOTrainer, arguments, REWARDS[:8])
        trainer.current_gradient_accumulation_steps = cuts
        policy, loss = leaf(logp), torch.tensor(0.0)
        for part in torch.arange(8).chunk(cuts):
            told(trainer, {id(trainer.model): policy[part]})
            micro = {key: value[part] if value.dim() else value for key, value in inputs.items()}
            loss = loss + trainer.compute_loss(trainer.model, {**micro, "advantages": adv[part]})
        used = {"clip": trainer.epsilon_low, "clip_high": trainer.epsilon_high, "beta": chosen["beta"], "longest": 10}
        made["cases"][name] = {**used, **backward(loss, policy)}
    for scale in ("group", "none"):
        batch = {"per_device_train_batch_size": 12, "num_generations": 4, "scale_rewards": scale}
        trainer = online(trl.GRPOTrainer, trl.GRPOConfig(**settings(**batch)), REWARDS)
        prompts, answers = [[2, 3]] * 12, [[4, STOP]] * 12
        trainer._generate = lambda _, p=prompts, a=answers: (p, a, None, ["c"] * 12, None, {}, None, [])
        made["advantages"][scale] = trainer._generate_and_score_completions([{"prompt": "a b"}] * 12)["advantages"]
    return made


def rloo_family() -> Found:
    draw, lengths, beta = Draw(6), [3, 6, 1, 4, 6, 2, 5, 4, 2, 3, 1, 6], 0.05
    logp = draw.logprobs(12, 6)
    old, reference = draw.near(logp, 0.06), draw.near(logp, 0.5)
    inputs = online_inputs(draw, lengths, old, reference)
    mask = inputs["completion_mask"]
    arguments = trl.RLOOConfig(**settings(per_device_train_batch_size=12, num_generations=4, beta=beta))
    trainer = online(trl.RLOOTrainer, arguments, REWARDS)
    told(trainer, {id(trainer.model): old, id(trainer.ref_model): reference})
    answers = [ids[:length].tolist() for ids, length in zip(inputs["completion_ids"], lengths, strict=True)]
    trainer._generate = lambda _: ([[2, 3]] * 12, answers, ["c"] * 12)
    scored = trainer._generate_and_score_completions([{"prompt": "a b"}] * 12)
    made: Found = {
        "mask": mask.bool(), "logp": logp, "old": old, "reference": reference, "rewards": REWARDS, "beta": beta,
        "advantages": scored["advantages"], "clip": trainer.epsilon_low, "cases": {},
    }  # fmt: skip
    for name, before in (("later epochs", old), ("first step", logp)):
        policy = leaf(logp)
        told(trainer, {id(trainer.model): policy})
        batch = {**inputs, "old_logps": (before * mask).sum(1), "advantages": scored["advantages"]}
        made["cases"][name] = backward(trainer.compute_loss(trainer.model, batch), policy)
    return made


# ------------------------------------------------------------------------------------- a whole model: masks and shifts


def whole_model_family() -> Found:
    """DPO and a reward model from token ids to the gradient of every weight, by TRL's own collators and forward passes."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference as DPOCollator
    from trl.trainer.reward_trainer import DataCollatorForPreference as RewardCollator

    prompts = [[2, 3], [4, 5, 6], [7]]
    chosen, rejected = [[8, 9, STOP], [10, STOP], [11, 12, 13, 14]], [[9, STOP], [3, 4, 5, STOP], [STOP]]
    rows = [
        {"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]
    texts = Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}])
    policy, reference = tiny(LlamaForCausalLM, 0), tiny(LlamaForCausalLM, 1)
    made: Found = {"prompts": prompts, "chosen": chosen, "rejected": rejected, "beta": 0.1}
    made["policy"], made["fixed"] = weights(policy), weights(reference)
    arguments = trl.DPOConfig(**settings(beta=0.1, gradient_checkpointing=False))
    trainer = prepared(
        trl.DPOTrainer(policy, ref_model=reference, processing_class=tokenizer(), args=arguments, train_dataset=texts)
    )
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, DPOCollator(pad_token_id=PAD)(rows))
    loss.backward()
    made["dpo"] = {"loss": loss.detach(), "gradients": gradients(trainer.model)}

    scorer = tiny(LlamaForSequenceClassification, 2)
    made["scorer"] = weights(scorer)
    trainer = prepared(
        trl.RewardTrainer(
            scorer, processing_class=tokenizer(), train_dataset=texts.remove_columns("prompt"),
            args=trl.RewardConfig(**settings(gradient_checkpointing=False)),
        )
    )  # fmt: skip
    joined = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in zip(prompts, chosen, rejected, strict=True)]
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, RewardCollator(pad_token_id=PAD)(joined))
    loss.backward()
    made["reward"] = {"loss": loss.detach(), "gradients": gradients(trainer.model)}
    return made


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


# ------------------------------------------------------------------------------------------------------------------ PPO


@contextmanager
def keeping(module: ModuleType, name: str, kept: list[Any]) -> Iterator[None]:
    """Every result of one of TRL's functions, with its gradient where it gets one."""
    original = vars(module)[name]

    def watched(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        value = result[1] if isinstance(result, tuple) else result
        if isinstance(value, Tensor) and value.requires_grad:
            value.retain_grad()
            kept.append(value)
        return result

    setattr(module, name, watched)
    try:
        yield
    finally:
        setattr(module, name, original)


def ppo_family() -> Found:
    whole, halves = ppo_run(micro_batches=1), ppo_run(micro_batches=2)
    return whole | {"halves": halves["micro_batches"]}  # the rollout is the same in both


def ppo_run(micro_batches: int, seed: int = 9) -> Found:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    draw, rows, epochs = Draw(7), 8, 3
    arguments = PPOConfig(
        **settings(
            per_device_train_batch_size=rows // micro_batches, gradient_accumulation_steps=micro_batches,
            num_mini_batches=1, num_ppo_epochs=epochs, total_episodes=rows, response_length=7, kl_coef=0.05, gamma=0.97,
            lam=0.9, stop_token="eos", missing_eos_penalty=1.0, learning_rate=0.003, num_sample_generations=0,
            local_rollout_forward_batch_size=rows, save_strategy="no", seed=seed,
        )
    )  # fmt: skip
    transformers.set_seed(seed)  # numpy's too: TRL draws the order of its rows from it
    policy = tiny(LlamaForCausalLM, 0)
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        reference.lm_head.weight += 0.3 * draw.normal(*reference.lm_head.weight.shape)
    trainer = PPOTrainer(
        args=arguments, processing_class=tokenizer(), model=policy, ref_model=reference,
        reward_model=tiny(LlamaForSequenceClassification, 2), value_model=tiny(LlamaForSequenceClassification, 3),
        train_dataset=Dataset.from_list([{"input_ids": draw.ids(2).tolist()} for _ in range(rows)]),
    )  # fmt: skip
    seen: Found = {}
    trainer.log = lambda _: seen.update(sys._getframe(1).f_locals)
    new_logp: list[Tensor] = []
    new_values: list[Tensor] = []
    with keeping(ppo_trainer, "selective_log_softmax", new_logp), keeping(ppo_trainer, "forward", new_values):
        trainer.train()
    order = torch.tensor(seen["b_inds"].tolist()).chunk(micro_batches)  # of the last epoch
    start = seen["context_length"] - 1
    inside, inside_1 = ~seen["padding_mask"], ~seen["padding_mask_p1"]
    ended = inside.sum(1)
    assert 1 <= ended.min() < 3 < ended.max() == inside.shape[1], f"another seed, please: lengths {ended.tolist()}"
    assert seen["contain_eos_token"].any() and not seen["contain_eos_token"].all()
    made: Found = {
        name: seen[name]
        for name in ("logprobs", "ref_logprobs", "values", "scores", "rewards", "advantages", "returns")
    }
    return made | {
        "mask": inside, "mask_and_one": inside_1, "kl_coef": arguments.kl_coef, "gamma": arguments.gamma,
        "lam": arguments.lam, "clip": arguments.cliprange, "value_clip": arguments.cliprange_value,
        "value_coef": arguments.vf_coef, "raw_advantages": torch.stack(seen["advantages_reversed"][::-1], 1),
        "micro_batches": [
            {
                "rows": part,
                "logp": logp.detach(), "logp_gradient": logp.grad,
                "values": values[:, start:-1, 0].detach(), "values_gradient": values.grad[:, start:-1, 0],
                "policy_loss": seen["pg_loss_stats"][-1, 0, i], "value_loss": seen["vf_loss_stats"][-1, 0, i],
                "approx_kl": seen["approxkl_stats"][-1, 0, i], "clip_fraction": seen["pg_clipfrac_stats"][-1, 0, i],
            }
            for i, (part, logp, values) in enumerate(
                zip(order, new_logp[-micro_batches:], new_values[-micro_batches:], strict=True)
            )
        ],
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- the file


def numbers(chosen: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in chosen.items() if isinstance(value, float)}


def plain(value: Any) -> Any:
    """Tensors as lists. Python writes a float so that the same float is read back."""
    match value:
        case Tensor():
            return value.tolist()
        case dict():
            return {name: plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return value


def lines(value: Any, indent: int = 0) -> str:
    """JSON with a line for each tensor or number."""
    if not isinstance(value, dict) and not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return json.dumps(value)
    space = "  " * (indent + 1)
    if isinstance(value, list):
        inside = ",\n".join(space + lines(inner, indent + 1) for inner in value)
        return f"[\n{inside}\n{'  ' * indent}]"
    inside = ",\n".join(f"{space}{json.dumps(name)}: {lines(inner, indent + 1)}" for name, inner in value.items())
    return f"{{\n{inside}\n{'  ' * indent}}}"


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    version = ".".join(trl.__version__.split(".")[:2])
    families = {
        "1.16": {
            "dpo": dpo_family, "simpo": simpo_family, "orpo": orpo_family, "kto": kto_family, "reward": reward_family,
            "grpo": grpo_family, "rloo": rloo_family, "whole_model": whole_model_family,
        },
        "1.12": {"ppo": ppo_family},
    }.get(version)  # fmt: skip
    if families is None:
        sys.exit(f"this script knows TRL 1.16 and 1.12, got {trl.__version__}: see the top of the file")
    made: Found = {
        "made_by": {
            "trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
        }
    }  # fmt: skip
    for name, family in families.items():
        made[name] = family()
    path = Path(__file__).with_name(f"trl-{version}.json")
    path.write_text(lines(plain(made)) + "\n")
    print(f"wrote {path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
