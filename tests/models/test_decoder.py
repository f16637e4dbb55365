"""The native decoder against transformers, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from bridle.core.errors import DataError, UnsupportedModel
from bridle.kernels import kernels
from bridle.models import decoder
from bridle.models.batches import make_batch, masked_logprobs
from bridle.models.decoder import Decoder, DecoderConfig, Layer, initialise, rope_tables
from bridle.models.policy import load_policy
from tests.models.tiny import CPU, SHAPES, VOCABULARY, one_sentence, policy, random_ids, template

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, no shared heads": LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
    "llama, one shared head": LlamaConfig(**{**SMALL, "num_key_value_heads": 1}),
    "llama 3.1's rope": LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE),
    "llama with biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "llama, heads wider than the trunk": LlamaConfig(**SMALL, head_dim=16, rms_norm_eps=1e-5),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "mistral, window beyond the context": MistralConfig(**SMALL, sliding_window=4096),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:  # biases begin at zero and norms at one, which would hide a missing one
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    theirs.save_pretrained(tmp_path)
    template().save(tmp_path, 96)
    ours = load_policy(tmp_path, CPU).module
    ids = torch.tensor([random_ids(1, 96, 96, seed=i)[0] for i in range(2)])
    with torch.no_grad():
        found, expected = ours(ids), theirs(ids).logits
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_configuration_survives_the_way_out_and_in(shape: str) -> None:
    assert DecoderConfig.from_huggingface(SHAPES[shape].to_huggingface()) == SHAPES[shape]


def raw(**changes: object) -> dict[str, Any]:
    return {**SMALL, "model_type": "llama", **changes}


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (raw(model_type="gpt2"), "'gpt2'"),
        (raw(model_type="mixtral"), "'mixtral'"),
        (raw(hidden_act="gelu"), "'gelu'"),
        (raw(model_type="mistral", sliding_window=48), "sliding_window = 48"),
        (raw(model_type="mistral", sliding_window=48, use_sliding_window=False), "sliding_window = 48"),
        (raw(model_type="mistral", max_position_embeddings=32768), "sliding_window = 4096"),  # Mistral's default
        (raw(model_type="qwen2", sliding_window=48, use_sliding_window=True), "sliding_window = 48"),
        (raw(rope_scaling={"type": "linear", "factor": 2.0}), "'linear'"),
        (raw(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "'yarn'"),
        (raw(rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}), "'dynamic'"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(config: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        DecoderConfig.from_huggingface(config)
    assert word in str(caught.value) and one_sentence(str(caught.value))


def test_a_window_that_is_switched_off_is_no_window() -> None:
    assert DecoderConfig.from_huggingface(raw(model_type="qwen2", sliding_window=48)).family == "qwen2"


def test_the_rope_base_is_found_in_both_places() -> None:
    old = DecoderConfig.from_huggingface(raw(rope_theta=5e5))
    new = DecoderConfig.from_huggingface(raw(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    assert old.rope_theta == new.rope_theta == 5e5


def test_rope_turns_a_pair_by_position_times_frequency() -> None:
    cos, sin = rope_tables(SHAPES["llama"], torch.float64, CPU)
    assert cos.shape == (96, 4)
    assert float(cos[3, 1]) == pytest.approx(float(torch.tensor(3 * 10000 ** (-2 / 8)).cos()))
    assert float(sin[3, 0]) == pytest.approx(float(torch.tensor(3.0).sin()))


def test_a_token_sees_nothing_of_what_follows() -> None:
    module = policy("qwen3").module
    ids = torch.tensor(random_ids(1, 20, 20))
    changed = ids.clone()
    changed[0, 12:] = 7
    with torch.no_grad():
        assert torch.equal(module(ids)[0, :12], module(changed)[0, :12])


@pytest.mark.parametrize("laid_out", [False, True])
def test_states_that_are_kept_are_those_of_the_whole(laid_out: bool) -> None:
    """The last layer does no more than the kept places need; weights learn the same from them."""
    module = policy("qwen3", dtype=torch.float64).module
    assert isinstance(module, Decoder)
    ids, kept = torch.tensor(random_ids(3, 20, 20)), torch.tensor([[4, 19], [0, 0], [7, 3]])
    rows = torch.arange(3)[:, None]
    places = torch.arange(20).expand(3, 20)
    layout = (places, torch.nn.functional.pad(places[..., None] + 1, (2, 0))) if laid_out else (None, None)
    whole = module.model(ids)[rows, kept]
    whole.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    found = module.model(ids, *layout, kept)
    found.square().sum().backward()
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close({n: p.grad for n, p in module.named_parameters() if p.grad is not None}, expected)


def test_a_sequence_beyond_the_context_is_refused() -> None:
    with pytest.raises(DataError, match="97 tokens does not fit the model's context of 96"):
        policy().module(torch.zeros(1, 97, dtype=torch.long))


def test_initial_weights_follow_from_the_generator() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        module = Decoder(SHAPES["llama"])
        initialise(module, 2, torch.Generator().manual_seed(seed))
        return module.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert float(first["model.embed_tokens.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(first["model.layers.0.self_attn.q_proj.weight"].std()) == pytest.approx(32**-0.5, rel=0.1)
    assert float(first["model.layers.1.mlp.down_proj.weight"].std()) == pytest.approx(48**-0.5 / 2, rel=0.1)


@pytest.fixture
def by_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers by torch.compile: traced alone, in one piece, or with code made for them (most of a minute)."""
    torch.compiler.reset()
    whole = torch.compile(Layer.forward, dynamic=True, fullgraph=True, backend=request.param)
    monkeypatch.setattr(decoder, "compiled_layer", lambda: whole)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["qwen2", "qwen3"])
@pytest.mark.parametrize("by_torch", ["aot_eager", "inductor"], indirect=True)
@pytest.mark.usefixtures("by_torch")
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # the compiler's own
def test_layers_by_torchs_compiler_learn_the_same(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For batches of several shapes, with prompts read once for two answers and without."""
    for prompts, length in (([[5, 6, 7], [5, 6, 7]], 9), ([[8], [9, 10]], 4), ([[5, 6, 7, 8], [5, 6, 7, 8]], 12)):
        answers = [ids[:length] for ids in random_ids(2, 12, 13, seed=length)]
        ours, found = policy(shape), []
        for wish in ("torch", "plain"):
            monkeypatch.setattr(kernels, "wish", wish)
            ours.module.zero_grad()
            masked_logprobs(ours.module, make_batch(prompts, answers, 0)).sum().backward()
            found.append([p.grad.clone() for p in ours.module.parameters() if p.grad is not None])
        for ours_grad, plain_grad in zip(*found, strict=True):
            scale = float(plain_grad.abs().max()) or 1.0
            torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-4, atol=1e-4 * scale)
