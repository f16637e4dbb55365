"""Families of causal language models: what a tiny one of each takes, and what is refused and why; docs/models.md is written from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tests.models.tiny import LIVELY, SMALL, template

LAYERS = {"num_hidden_layers": 2}
WINDOW: dict[str, Any] = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
EARLY: dict[str, Any] = {**LIVELY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160}
FALCON = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"} | {"max_position_embeddings": 160}
BERT = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
PER_LAYER = {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
STATE = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LLAMA = {**SMALL, "max_position_embeddings": 160, "head_dim": 8}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


@dataclass(frozen=True)
class Family:
    """A model as its makers configure it: transformers' `model_type`, the settings of a tiny one, and what is remarkable of it."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    quick: tuple[str, ...] = ()  # the stages that `make test` walks, too

    def configuration(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **self.settings)

    def write(self, folder: Path, source: str = "") -> Any:
        """A random model as transformers saves it, with the tiny tokenizer beside it, and a chat template where one is given."""
        from transformers import AutoModelForCausalLM

        config = self.configuration()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
            with torch.no_grad():
                for parameter in network.parameters():
                    if parameter.dim() == 1:
                        parameter.add_(torch.randn_like(parameter), alpha=0.2)
        network.save_pretrained(folder)
        (replace(template(), source=source) if source else template()).save(folder, 160)
        return network


WALKED = {
    "llama": Family("llama", LLAMA),
    "llama, rope llama3": Family(
        "llama",
        {
            **LLAMA,
            **rope(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
            ),
        },
    ),
    "llama, rope linear": Family("llama", {**LLAMA, **rope("linear", factor=2.0)}),
    "llama, rope yarn": Family("llama", {**LLAMA, **rope("yarn", factor=4.0, original_max_position_embeddings=40)}),
    "llama, biases": Family("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": Family("mistral", {**LLAMA, "sliding_window": None}),
    "mistral, window": Family("mistral", {**LLAMA, "sliding_window": 16}, quick=("train reward", "train ppo")),
    "qwen2": Family("qwen2", LLAMA),
    "qwen2, window": Family(
        "qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    ),
    "qwen3": Family("qwen3", LLAMA),
    "qwen2_moe": Family("qwen2_moe", {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": Family("qwen3_moe", {**LLAMA, **EXPERTS}, quick=("train sft", "sample")),
    "gemma": Family("gemma", LLAMA),
    "gemma2": Family("gemma2", {**LLAMA, **WINDOW, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0}),
    "gemma3_text": Family("gemma3_text", {**LLAMA, **WINDOW}, quick=("train dpo", "sample")),
    "phi": Family("phi", {**LLAMA, "num_key_value_heads": 4}),
    "phi3": Family("phi3", LLAMA),
    "gpt2": Family("gpt2", EARLY),
    "gpt_neo": Family(
        "gpt_neo",
        {
            **LIVELY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 160,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
    ),
    "gpt_neox": Family("gpt_neox", {**LLAMA}),
    "gptj": Family("gptj", {**EARLY, "rotary_dim": 4}),
    "mpt": Family("mpt", {**LIVELY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 160}),
    "opt": Family("opt", {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": Family("bloom", {**LIVELY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}),
    "falcon": Family("falcon", FALCON),
    "falcon, alibi": Family("falcon", {**FALCON, "alibi": True, "multi_query": False}),
    "falcon, new decoder": Family("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "stablelm": Family("stablelm", LLAMA),
    "starcoder2": Family("starcoder2", LLAMA),
    "olmo": Family("olmo", LLAMA),
    "olmo2": Family("olmo2", LLAMA),
    "olmo3": Family("olmo3", {**LLAMA, **WINDOW}),
    "olmoe": Family("olmoe", {**LLAMA, **EXPERTS}),
    "granite": Family("granite", {**LLAMA, "logits_scaling": 0.2}),
    "granitemoe": Family("granitemoe", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "cohere": Family("cohere", {**LLAMA, "logit_scale": 0.5}),
    "cohere2": Family("cohere2", {**LLAMA, **WINDOW, "logit_scale": 0.5}),
    "mixtral": Family("mixtral", {**LLAMA, "num_local_experts": 4}),
    "deepseek_v2": Family(
        "deepseek_v2", {**LLAMA, **LATENT, **ROUTED, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        {**LLAMA, **LATENT, **ROUTED, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
        quick=("train reward", "train ppo"),
    ),
    "gpt_oss": Family(
        "gpt_oss",
        {**LLAMA, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
        quick=("train sft", "train dpo"),
    ),
    "smollm3": Family("smollm3", LLAMA),
    "glm": Family("glm", LLAMA),
    "glm4": Family("glm4", LLAMA),
    "glm4_moe": Family("glm4_moe", {**LLAMA, **ROUTED, **EXPERTS}),
    "ernie4_5": Family("ernie4_5", LLAMA),
    "ernie4_5_moe": Family(
        "ernie4_5_moe", {**LLAMA, **EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}
    ),
    "nemotron": Family("nemotron", LLAMA),
    "exaone4": Family("exaone4", {**LLAMA, **WINDOW}),
    "seed_oss": Family("seed_oss", LLAMA),
    "hunyuan_v1_dense": Family("hunyuan_v1_dense", LLAMA),
    "phimoe": Family("phimoe", {**LLAMA, "num_local_experts": 4}),
    "codegen": Family("codegen", {**EARLY, "rotary_dim": 4}),
    "gpt_bigcode": Family("gpt_bigcode", EARLY),
    "xglm": Family(
        "xglm",
        {
            **LIVELY,
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 160,
            "pad_token_id": 0,
        },
    ),
    "persimmon": Family("persimmon", LLAMA),
    "arcee": Family("arcee", LLAMA),
    "apertus": Family("apertus", LLAMA),
    "helium": Family("helium", LLAMA),
    "internlm3": Family("internlm3", LLAMA),
    "ministral3": Family("ministral3", LLAMA),
    "minimax_m2": Family("minimax_m2", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "dots1": Family("dots1", {**LLAMA, **ROUTED, **EXPERTS}),
    "hunyuan_v1_moe": Family("hunyuan_v1_moe", {**LLAMA, "num_experts": 4}),
    "gemma3n_text": Family(
        "gemma3n_text",
        {
            **LLAMA,
            **WINDOW,
            **PER_LAYER,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0],
            "altup_num_inputs": 2,
        },
    ),
    "gemma4_text": Family("gemma4_text", {**LLAMA, **WINDOW, **PER_LAYER, "global_head_dim": 8}),
    "vaultgemma": Family("vaultgemma", {**LLAMA, **WINDOW}),
    "glm4_moe_lite": Family("glm4_moe_lite", {**LLAMA, **LATENT, **ROUTED, **EXPERTS}),
    "minicpm3": Family("minicpm3", {**LLAMA, **LATENT, "v_head_dim": 16, "head_dim": None}),
    "qwen3_next": Family(
        "qwen3_next", {**LLAMA, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 16}, note="linear attention"
    ),
    "qwen3_5_text": Family("qwen3_5_text", {**LLAMA, **DELTA}, note="linear attention"),
    "olmo_hybrid": Family("olmo_hybrid", {**LLAMA, **DELTA}, note="linear attention"),
    "falcon_h1": Family(
        "falcon_h1",
        {**LLAMA, **STATE, "mamba_d_ssm": 32, "mamba_n_heads": 4},
        note="Mamba beside attention",
        quick=("train dpo", "sample"),
    ),
    "jamba": Family(
        "jamba",
        {
            **LLAMA,
            **STATE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_dt_rank": 4,
        },
        note="Mamba beside attention",
    ),
    "bamba": Family(
        "bamba", {**LLAMA, **STATE, "attn_layer_indices": [1], "mamba_n_heads": 8}, note="Mamba beside attention"
    ),
    "granitemoehybrid": Family(
        "granitemoehybrid",
        {**LLAMA, **STATE, "layer_types": ["mamba", "attention"], "mamba_n_heads": 8},
        note="Mamba beside attention",
    ),
    "lfm2": Family("lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"]}, note="convolutions"),
}
# Read from their files and refused by what they do, for config.json says no more than the family's name.
CACHE = "it decodes otherwise with a cache and padding than without"
REFUSED = {
    "llama4_text": (
        Family("llama4_text", {**LLAMA, "num_local_experts": 4, "intermediate_size_mlp": 48}),
        "its head cannot be taken off its trunk",
    ),
    "mamba": (Family("mamba", {**LIVELY, **LAYERS, "hidden_size": 32, "state_size": 8}), CACHE),
    "mamba2": (
        Family(
            "mamba2",
            {**LIVELY, **LAYERS, "hidden_size": 32, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
        ),
        CACHE,
    ),
    "falcon_mamba": (Family("falcon_mamba", {**LIVELY, **LAYERS, "hidden_size": 32, "state_size": 8}), CACHE),
    "rwkv": (Family("rwkv", {**LIVELY, **LAYERS, "hidden_size": 32, "context_length": 160}), CACHE),
    "recurrent_gemma": (
        Family(
            "recurrent_gemma",
            {**LLAMA, "block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 32},
        ),
        CACHE,
    ),
    "minimax": (
        Family("minimax", {**LLAMA, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4}),
        "it cannot be run as bridle needs it (ValueError: MiniMax uses cache of its own",
    ),
    "openai-gpt": (Family("openai-gpt", EARLY), "it cannot be run as bridle needs it"),
    "bert": (Family("bert", BERT), "it is not a causal language model"),
    "roberta": (Family("roberta", BERT), "it is not a causal language model"),
    "xlnet": (
        Family("xlnet", {**LIVELY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
        "it is not a causal language model",
    ),
    "ctrl": (
        Family("ctrl", {**EARLY, "dff": 48}),
        "it has weights beside its trunk and its head (such as lm_head.bias)",
    ),
    "modernbert-decoder": (
        Family("modernbert-decoder", LLAMA),
        "it has weights beside its trunk and its head (such as lm_head.dense.weight)",
    ),
}
