"""What transformers runs: right for every way that families make logits and take padding, or refused by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, Mamba2Config, PretrainedConfig, T5Config
from transformers.utils import logging

from bridle.compute.optimizer import muon
from bridle.core.errors import DataError, ModelError, UnsupportedModel
from bridle.generation.engine import pack_policy
from bridle.models import foreign
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.foreign import Foreign, decodes_alike, head_scales, unlike
from bridle.models.policy import RewardModel, load_policy, load_reward_model, save_policy, save_reward_model
from bridle.models.scorer import scorer_from
from tests.models.tiny import (
    CPU,
    FALLBACK,
    FOREIGN,
    LIVELY,
    SMALL,
    one_sentence,
    policy,
    random_ids,
    template,
    write_foreign,
    write_safetensors,
)


def module(shape: str) -> Foreign:
    found = policy(shape).module
    assert isinstance(found, Foreign)
    return found


# ------------------------------------------------------------------------------------------------- right numbers


@pytest.mark.parametrize("shape", FOREIGN)
def test_logits_and_log_probs_equal_transformers(shape: str, tmp_path: Path) -> None:
    """Also through the slices of `linear_logprobs`, with padding on the right, at another temperature."""
    theirs = write_foreign(tmp_path, shape)
    ours = load_policy(tmp_path, CPU).module
    prompts, answers = random_ids(6, 1, 30), random_ids(6, 1, 30, seed=1)
    batch = make_batch(prompts, answers, template().pad_id)
    with torch.no_grad():
        found = sequence_logprobs(ours, batch, 0.7)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids = torch.tensor([prompt + answer])
            expected = theirs(ids).logits[0]
            torch.testing.assert_close(ours(ids)[0], expected, rtol=0, atol=1e-4)
            wanted = (expected[len(prompt) - 1 : -1] / 0.7).log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
            torch.testing.assert_close(found[row][batch.mask_BT[row]], wanted[:, 0], rtol=0, atol=1e-4)
    assert float(expected.std()) > 0.5


@pytest.mark.parametrize("shape", FOREIGN)
def test_every_weight_gets_a_gradient(shape: str) -> None:
    ours = module(shape)
    sequence_logprobs(ours, make_batch(random_ids(4, 2, 9), random_ids(4, 2, 9, 1), 0)).sum().backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == []
    moved = [name for name, p in ours.named_parameters() if bool(p.grad.any())]
    assert len(moved) > 0.8 * len(list(ours.parameters()))


def test_scale_and_cap_are_read_and_matter() -> None:
    assert module("granite").config.scale == pytest.approx(2.0)
    assert module("gemma2").config.soft_cap == 4.0
    with torch.no_grad():
        assert 3.0 < float(policy("gemma2").module(torch.tensor(random_ids(1, 50, 50))).abs().max()) < 4.0
    assert module("phi").output_bias() is not None and module("gpt2").output_bias() is None


def test_nothing_is_dropped_even_in_training() -> None:
    ours = module("gpt2").train()
    ids = torch.tensor(random_ids(2, 20, 20))
    with torch.no_grad():
        assert torch.equal(ours(ids), ours(ids))
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in ours.modules()), "the test needs some"


def test_a_sequence_beyond_the_context_is_refused() -> None:
    with pytest.raises(DataError, match="97 tokens does not fit the model's context of 96"):
        policy("gpt2").module(torch.zeros(1, 97, dtype=torch.long))


def test_a_pack_in_bfloat16_keeps_the_rotary_frequencies() -> None:
    packed = pack_policy(policy("gemma"), torch.bfloat16)
    assert {p.dtype for p in packed.module.parameters()} == {torch.bfloat16}
    frequencies = [buffer for name, buffer in packed.module.named_buffers() if "inv_freq" in name]
    assert frequencies and all(buffer.dtype == torch.float32 for buffer in frequencies)


@pytest.mark.parametrize("shape", FALLBACK)
def test_muon_takes_the_layers_matrices(shape: str) -> None:
    ours = module(shape)
    by_muon, by_adamw = (optimizer.param_groups[0]["params"] for optimizer in muon(ours, 0.1))
    assert all(p.dim() == 2 and len(p) < 200 for p in by_muon) and len(by_muon) >= 8
    assert any(p is ours.output_weight() for p in by_adamw)


# ------------------------------------------------------------------------------------------------ what is checked


def test_a_scale_that_bridle_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_foreign(tmp_path, "granite")
    monkeypatch.setattr(foreign, "head_scales", lambda settings: [1.0])
    with pytest.raises(UnsupportedModel, match="'granite'.* not the product of its hidden states") as caught:
        load_policy(tmp_path, CPU)
    assert one_sentence(str(caught.value))


def test_a_cap_that_bridle_does_not_know_is_refused(tmp_path: Path) -> None:
    theirs = write_foreign(tmp_path, "gemma2")
    ours = load_policy(tmp_path, CPU).module
    assert isinstance(ours, Foreign)
    without = Foreign(foreign.replace(ours.config, soft_cap=0.0), theirs.model, None)
    with torch.no_grad():
        assert "not the product" in unlike(theirs, without, head_scales(theirs.config.to_dict()))


def test_padding_that_moves_positions_is_found() -> None:
    ours, ids = module("gpt2"), torch.tensor(random_ids(1, 8, 8))
    with torch.no_grad():
        assert decodes_alike(ours, ids)
        ours.model.takes_positions = False
        assert not decodes_alike(ours, ids)


def save(folder: Path, config: PretrainedConfig) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    template().save(folder, 96)


def with_config(**values: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_foreign(folder, "gpt2")
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | values))

    return write


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_foreign(folder, "gpt2")
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        write_safetensors(folder / "model.safetensors", tensors)

    return write


def encoder(folder: Path) -> None:
    small = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    save(folder, BertConfig(**small))


def recurrent(folder: Path) -> None:
    save(
        folder,
        Mamba2Config(**LIVELY, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=1),
    )


def several_parts(folder: Path) -> None:
    with_config(model_type="gemma3", text_config={}, vision_config={})(folder)


def cut(folder: Path) -> None:
    write_foreign(folder, "gpt2")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    network = write_foreign(folder, "gpt2")
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")


def broken(folder: Path) -> None:
    with_tensors(lambda tensors: tensors["transformer.ln_f.weight"].fill_(float("nan")))(folder)


def overflowing(folder: Path) -> None:
    with_tensors(lambda tensors: tensors["transformer.ln_f.weight"].fill_(3e38))(folder)


def code_of_its_own(folder: Path) -> None:
    with_config(model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"})(folder)
    (folder / "mine.py").write_text("raise SystemExit('code from the folder was run')")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (encoder, "'bert', which bridle cannot use: it is not a causal language model"),
        (recurrent, "'mamba2', which bridle cannot use: it decodes otherwise with a cache and padding"),
        (several_parts, "'gemma3', which reads images beside text; save its text part alone"),
        (code_of_its_own, "'mine', of which neither bridle nor transformers"),
        (with_config(quantization_config={"quant_method": "gptq", "bits": 4}), "are quantised"),
        (with_config(n_layer=3), "12 missing (such as ['transformer.h.2."),
        (with_config(n_layer=1), "11 unknown (such as ['transformer.h.1."),
        (with_config(n_positions=64), "transformer.wpe.weight in {} has shape [96, 32] where config.json asks for [64, 32]"),
        (with_config(n_embd="wide"), "n_embd = 'wide', where a whole number of at least 1"),
        (with_tensors(lambda tensors: tensors.pop("transformer.ln_f.bias")), "1 missing (such as ['transformer.ln_f.bias"),
        (with_tensors(lambda tensors: tensors.update(odd=torch.zeros(2))), "1 unknown (such as ['odd'])"),
        (broken, "transformer.ln_f.weight in {} has 32 of 32 numbers that are NaN or infinite"),
        (overflowing, "its logits are not finite"),
        (cut, "truncated or corrupted"),
        (pickled, "bridle reads safetensors only"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_sentence(
    write: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_policy(tmp_path, CPU)
    assert words.format(tmp_path) in str(caught.value) and one_sentence(str(caught.value)), str(caught.value)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="'t5', of which neither bridle nor transformers"):
        foreign.require_family(Path("here"), T5Config().to_dict())


# ---------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_files_with_a_familys_older_names_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    """GPT-2 as it was published: no prefix, and masks among the weights, which are no quantised weights."""
    theirs = write_foreign(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    older = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 96, 96).tril().to(dtype) for i in range(2)}
    write_safetensors(tmp_path / "model.safetensors", {**older, **masks})
    ids = torch.tensor(random_ids(1, 30, 30))
    with torch.no_grad():
        torch.testing.assert_close(load_policy(tmp_path, CPU).module(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", FOREIGN)
def test_a_folder_keeps_its_names_and_settings(shape: str, tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", shape)
    save_policy(tmp_path / "ours", load_policy(tmp_path / "theirs", CPU))
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    assert before == {**after, "pad_token_id": before["pad_token_id"]}


def test_a_reward_model_of_a_family_without_a_classifier_is_ours_alone(tmp_path: Path) -> None:
    scorer = scorer_from(policy("granite").module, torch.Generator().manual_seed(0))
    save_reward_model(tmp_path, RewardModel(scorer, template(), "made"))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GraniteModel"]
    rows, lengths = torch.tensor(random_ids(3, 9, 9)), torch.tensor([9, 9, 9])
    with torch.no_grad():
        again = load_reward_model(tmp_path, CPU).module.scores(rows, lengths)
        torch.testing.assert_close(again, scorer.scores(rows, lengths), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (None, "no score.weight with a row for each of 1 tasks"),
        (torch.ones(2, 32), "no score.weight with a row for each of 1 tasks"),
        (torch.ones(1, 32), "scores a saved probe"),
    ],
)
def test_a_reward_model_without_its_head_is_refused(head: torch.Tensor | None, words: str, tmp_path: Path) -> None:
    scorer = scorer_from(policy("gpt2").module, torch.Generator().manual_seed(0))
    save_reward_model(tmp_path, RewardModel(scorer, template(), "made", probes=[{"ids": [5, 6, 7], "scores": [0.123]}]))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("score.weight")
    write_safetensors(tmp_path / "model.safetensors", tensors | ({} if head is None else {"score.weight": head}))
    with pytest.raises(ModelError) as caught:
        load_reward_model(tmp_path, CPU)
    assert words in str(caught.value) and one_sentence(str(caught.value))


def test_loading_says_nothing_and_leaves_transformers_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, GPT2Config(**LIVELY, n_embd=32, n_layer=1, n_head=4, n_positions=96))
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    ours = load_policy(tmp_path, CPU)
    save_policy(tmp_path / "again", ours)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_a_native_model_does_without_transformers_and_pytorchs_compiler(tmp_path: Path) -> None:
    """Importing either takes seconds, which no command and not the demo should pay."""
    save_policy(tmp_path, policy("llama"))
    program = (
        "import sys, torch; from pathlib import Path; from bridle.models.policy import load_policy; "
        "load_policy(Path(sys.argv[1]), torch.device('cpu')); print({'transformers', 'torch._dynamo'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stdout + done.stderr
