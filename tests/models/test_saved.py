"""What is saved: a model's folder comes back as it came, but for what training changed, and others read it as it was trained."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bridle.core.errors import ModelError, UsageError
from bridle.core.records import Prompt
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.models.contents import folder_hash
from bridle.models.decoder import Decoder, DecoderConfig, initialise
from bridle.models.files.export import export_policy, export_reward_model, place_to_save
from bridle.models.files.source import SIDECAR, read_source
from bridle.models.files.writing import scoring_pad
from bridle.models.policy import (
    Policy,
    RewardModel,
    Task,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
)
from bridle.models.scorer import scorer_from
from bridle.models.template import PLAIN_TEMPLATE, Template, with_stops
from tests.models.families import CHATML, FAMILIES, byte_level, family
from tests.models.tiny import CPU, FOREIGN, SHAPES, one_sentence, policy, random_ids, write_foreign

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


def write_native(folder: Path, shape: str, spoken: Template | None = None, **settings: object) -> Policy:
    """A native model as its makers would publish it for transformers 4: in bfloat16, with all that lies beside weights."""
    ours = policy(shape) if spoken is None else Policy(network_for(spoken), spoken, "made")
    save_policy(folder, ours)
    raw = json.loads((folder / "config.json").read_text())
    del raw["dtype"]
    if "rope_parameters" in raw and shape != "llama-scaled":
        del raw["rope_parameters"]
    raw |= {
        "torch_dtype": "bfloat16",
        "initializer_range": 0.02,
        "use_cache": True,
        "makers_own": {"é": [1, 2.5e-7]},
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(raw, indent=4, sort_keys=True) + "\n", "utf-8")
    dress(folder)
    recast(folder, torch.bfloat16)
    return ours


def network_for(spoken: Template) -> Decoder:
    """A tiny network with an embedding for each token of the template's tokenizer."""
    config = replace(SHAPES["llama"], vocab_size=spoken.tokenizer.get_vocab_size())
    module = Decoder(config)
    initialise(module, config.layers, torch.Generator().manual_seed(0))
    return module


def dress(folder: Path) -> None:
    """All that makers put beside a model."""
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
        "transformers_version": "4.51.0",
    }
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "padding_side": "left", "model_max_length": 10**30, "add_bos_token": False,
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": [{"name": "default", "template": config["chat_template"]}, {"name": "tool_use", "template": "{{ tools }}"}],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=True, indent=1))
    (folder / "chat_template.jinja").unlink()
    raw = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=True))  # others' way to write the same
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("{{ documents }}")
    for name, text in {
        "LICENSE": "Take it.\r\n", "README.md": "# A model\n", "NOTICE": "ü",
        "special_tokens_map.json": json.dumps({"eos_token": config["eos_token"]}),
        "preprocessor_config.json": "{}", "merges.txt": "#version: 0.2\n", ".gitattributes": "*.safetensors lfs\n",
    }.items():  # fmt: skip
        (folder / name).write_bytes(text.encode())


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def thin(names: Iterable[str], few: str) -> list[Any]:
    """All of them in the slow tests, a few in every run."""
    return [name if name in few.split() else pytest.param(name, marks=pytest.mark.slow) for name in names]


def recast(folder: Path, dtype: torch.dtype, shards: int = 1, **kept: torch.dtype) -> dict[str, torch.Tensor]:
    """Write the weights again in another type, in several files, and with a note in their headers."""
    whole = folder / "model.safetensors"
    found = load_file(whole)
    tensors = {name: tensor.to(kept.get(name.replace(".", "_"), dtype)) for name, tensor in found.items()}
    if shards == 1:
        save_file(tensors, whole, {"format": "pt", "made": "by us"})
        return tensors
    whole.unlink()
    names = sorted(tensors)
    index = {
        "metadata": {"total_parameters": 7, "total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {},
    }
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        held = {name: tensors[name] for name in names[number::shards]}
        save_file(held, folder / file, {"format": "pt", "part": str(number)})
        index["weight_map"] |= dict.fromkeys(held, file)
    index["weight_map"] = {name: index["weight_map"][name] for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return tensors


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".safetensors"
    }


def stored(folder: Path) -> dict[str, tuple[str, dict[str, str], torch.Tensor]]:
    """Each tensor with its file and the notes in that file's header."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: (path.name, file.metadata(), file.get_tensor(name)) for name in file.keys()}
    return found


def same_tensors(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    assert found.keys() == expected.keys()
    assert [
        n for n, (file, notes, t) in found.items() if (file, notes, t.dtype) != (*expected[n][:2], expected[n][2].dtype)
    ] == []
    return all(torch.equal(tensor, expected[name][2]) for name, (_, _, tensor) in found.items())


def round_trip(theirs: Path, tmp_path: Path) -> Policy:
    """Into a project and out of it again, with nothing trained."""
    ours = load_policy(theirs, CPU)
    save_policy(tmp_path / "base", ours)
    found = export_policy(tmp_path / "out", load_policy(tmp_path / "base", CPU))
    assert contents(tmp_path / "out") == contents(theirs)
    assert found.largest == 0.0 and found.tokens > 20
    return ours


# ---------------------------------------------------------------------------------------------------- as it came


@pytest.mark.parametrize("shape", thin(SHAPES, "llama llama-tied qwen3"))
def test_a_native_model_comes_back_as_it_came(shape: str, tmp_path: Path) -> None:
    write_native(tmp_path / "theirs", shape)
    ours = round_trip(tmp_path / "theirs", tmp_path)
    assert same_tensors(stored(tmp_path / "out"), stored(tmp_path / "theirs"))
    ids = torch.tensor(random_ids(1, 60, 60))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.module(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", thin(FOREIGN, "gpt2 mixtral"))
def test_what_transformers_runs_comes_back_as_it_came(shape: str, tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", shape)
    dress(tmp_path / "theirs")
    recast(tmp_path / "theirs", torch.bfloat16)
    round_trip(tmp_path / "theirs", tmp_path)
    assert same_tensors(stored(tmp_path / "out"), stored(tmp_path / "theirs"))


@pytest.mark.parametrize("name", thin(FAMILIES, "qwen llama2"))
def test_every_kind_of_tokenizer_comes_back_as_it_came(name: str, tmp_path: Path) -> None:
    """Also those whose turns end with another token than the settings name."""
    write_native(tmp_path / "theirs", "llama", family(name).template)
    generation = {"eos_token_id": family(name).template.eos_id, "temperature": 0.5}
    (tmp_path / "theirs/generation_config.json").write_text(json.dumps(generation))
    before = load_policy(tmp_path / "theirs", CPU).template
    round_trip(tmp_path / "theirs", tmp_path)
    after = load_policy(tmp_path / "out", CPU).template
    assert (after.stop_ids, after.hash) == (before.stop_ids, before.hash)


@pytest.mark.parametrize("shape", ["llama", "llama-tied", "gpt2"])
def test_shards_stay_and_so_does_every_tensors_type(shape: str, tmp_path: Path) -> None:
    """A router in float32 within bfloat16, say."""
    theirs = tmp_path / "theirs"
    write_foreign(theirs, shape) if shape in FOREIGN else write_native(theirs, shape)
    exact = "transformer_ln_f_weight" if shape == "gpt2" else "model_norm_weight"
    recast(theirs, torch.float16, shards=3, **{exact: torch.float32})
    round_trip(theirs, tmp_path)
    assert same_tensors(stored(tmp_path / "out"), stored(theirs))
    assert len(list((tmp_path / "base").glob("model-*-of-00003.safetensors"))) == 3
    assert {t.dtype for _, _, t in stored(tmp_path / "base").values()} == {torch.float32}
    for folder in ("base", "out"):
        AutoModelForCausalLM.from_pretrained(tmp_path / folder)


def test_settings_of_readers_before_transformers_5_come_back(tmp_path: Path) -> None:
    """The two ways to name a rope, windows that are off, and what no reader of ours knows; in the project too."""
    came = {
        "rope_scaling": LLAMA3,
        "rope_theta": 5e5,
        "sliding_window": 64,
        "layer_types": ["full_attention"] * 2,
        "head_dim": 8,
    }
    write_native(tmp_path / "theirs", "llama", **came)
    raw = json.loads((tmp_path / "theirs/config.json").read_text())
    assert "rope_parameters" not in raw
    ours = round_trip(tmp_path / "theirs", tmp_path)
    assert isinstance(ours.module.config, DecoderConfig) and ours.module.config.rope_llama3 is not None
    assert json.loads((tmp_path / "base/config.json").read_text()) == raw | {"torch_dtype": "float32"}


def test_a_model_of_ours_names_its_rope_to_older_readers_too(tmp_path: Path) -> None:
    save_policy(tmp_path, policy("llama-scaled"))
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["rope_scaling"] == raw["rope_parameters"] and raw["rope_scaling"]["factor"] == 8.0
    ids = torch.tensor(random_ids(1, 60, 60))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
        torch.testing.assert_close(policy("llama-scaled").module(ids), theirs, rtol=0, atol=1e-4)


def test_the_same_folder_has_the_same_hash_and_nothing_of_ours_in_it(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", "gpt2")
    dress(tmp_path / "theirs")
    content = folder_hash(tmp_path / "theirs")
    assert save_policy(tmp_path / "ours", load_policy(tmp_path / "theirs", CPU)) == content
    assert not (tmp_path / "ours" / SIDECAR).exists(), "it came in float32: nothing was replaced"


# ------------------------------------------------------------------------------------------------------ float32


def test_a_model_in_a_project_is_float32_until_it_is_exported(tmp_path: Path) -> None:
    """A step of 1e-6 is lost in bfloat16 and must not be lost between two runs."""
    write_native(tmp_path / "theirs", "llama")
    ours = load_policy(tmp_path / "theirs", CPU)
    with torch.no_grad():
        for parameter in ours.module.parameters():
            parameter.add_(1e-6)
    ours.step = 1
    save_policy(tmp_path / "sft", ours)
    again = load_policy(tmp_path / "sft", CPU)
    weights = again.module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.module.state_dict().items())
    assert json.loads((tmp_path / "sft/config.json").read_text())["torch_dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "sft").dtype == torch.float32
    again.step = 1
    save_policy(tmp_path / "ppo", again)  # what came of it knows the type, too
    found = export_policy(tmp_path / "out", load_policy(tmp_path / "ppo", CPU))
    assert 0 < found.mean < found.largest < 0.1
    assert {t.dtype for _, _, t in stored(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_another_type_can_be_asked_for(name: str, tmp_path: Path) -> None:
    ours = policy("qwen3")
    found = export_policy(tmp_path / "out", ours, name)
    assert {t.dtype for _, _, t in stored(tmp_path / "out").values()} == {getattr(torch, name)}
    assert (
        json.loads((tmp_path / "out/config.json").read_text())["dtype"] == name
        and not (tmp_path / "out" / SIDECAR).exists()
    )
    assert (found.largest == 0) == (name == "float32")
    again = load_policy(tmp_path / "out", CPU)
    with torch.no_grad():
        rows = [torch.tensor([row]) for row in ours.template.prompt_ids([Prompt.from_text("What is that?")])]
        assert all(
            float((ours.module(row) - again.module(row)).abs().max()) <= 2 * found.largest + 1e-6 for row in rows
        )


def test_a_type_that_cannot_hold_the_numbers_is_refused(tmp_path: Path) -> None:
    ours = policy("qwen3")
    with torch.no_grad():
        ours.module.model.embed_tokens.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match="embed_tokens.weight holds 1e.06, and float16 ends at 65504") as caught:
        export_policy(tmp_path / "out", ours, "float16")
    assert one_sentence(str(caught.value)) and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="dtype is one of float32, bfloat16, float16"):
        export_policy(tmp_path / "out", ours, "int8")


# ------------------------------------------------------------------------------------------------------- trained


@pytest.mark.parametrize("name", thin(["qwen", "harmony", "llama3", "llama2", "gemma"], "harmony"))
def test_a_trained_model_ends_its_answers_in_transformers_too(name: str, tmp_path: Path) -> None:
    """Its settings named the end of a text alone; sampling defaults and all else stay. Greedy ids are equal."""
    spoken = family(name).template
    write_native(tmp_path / "theirs", "llama", spoken)
    came = {"eos_token_id": spoken.eos_id, "do_sample": True, "temperature": 0.6, "_from_model_config": True}
    (tmp_path / "theirs/generation_config.json").write_text(json.dumps(came))
    ours = load_policy(tmp_path / "theirs", CPU)
    ours.step = 1
    save_policy(tmp_path / "sft", ours)
    named = json.loads((tmp_path / "sft/generation_config.json").read_text())
    assert named == came | {"eos_token_id": ours.template.stop_setting}
    found, expected = contents(tmp_path / "sft"), contents(tmp_path / "theirs")
    changed = {name for name in expected if found.get(name) != expected[name]}
    assert changed <= {"config.json", "generation_config.json"} and set(found) - set(expected) == {SIDECAR}

    prompt = ours.template.prompt_ids([Prompt.from_text("Tell me a joke.")])[0]
    engine = Engine(torch.float32)
    engine.load(ours)
    answer = engine.generate([prompt], Sampling(24, temperature=0), stamp=ours.stamp, seed=0)[0]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "sft").eval()
    given = torch.tensor([prompt])
    output = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False)
    assert output[0, len(prompt) :].tolist() == answer.token_ids


def test_stops_are_named_in_config_json_where_there_is_no_other_place(tmp_path: Path) -> None:
    spoken = family("qwen").template
    write_native(tmp_path / "theirs", "llama", spoken, eos_token_id=spoken.eos_id)
    (tmp_path / "theirs/generation_config.json").unlink()
    ours = load_policy(tmp_path / "theirs", CPU)
    ours.step = 1
    save_policy(tmp_path / "sft", ours)
    assert not (tmp_path / "sft/generation_config.json").exists()
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "sft").generation_config.eos_token_id
        == ours.template.stop_setting
    )


def test_a_base_without_a_chat_template_has_one_when_it_was_trained(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", "gpt2")
    config = json.loads((tmp_path / "theirs/tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "theirs/tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "theirs/chat_template.jinja").unlink()
    ours = load_policy(tmp_path / "theirs", CPU)
    save_policy(tmp_path / "base", ours)
    assert not (tmp_path / "base/chat_template.jinja").exists()
    ours.step = 1
    save_policy(tmp_path / "sft", ours)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert tokenizer.chat_template == PLAIN_TEMPLATE


def test_named_templates_come_back(tmp_path: Path) -> None:
    write_native(tmp_path / "theirs", "qwen2")
    config = json.loads((tmp_path / "theirs/tokenizer_config.json").read_text())
    del config["tokenizer_class"]
    (tmp_path / "theirs/tokenizer_config.json").write_text(json.dumps(config))
    ours = load_policy(tmp_path / "theirs", CPU)
    ours.step = 1
    save_policy(tmp_path / "sft", ours)
    for folder in ("theirs", "sft"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert set(tokenizer.chat_template) == {"rag"} or set(tokenizer.chat_template) >= {"default", "tool_use"}
        assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("named", [None, ["LlamaModel"], ["MyLlama"]])
def test_a_trained_model_names_the_class_that_loads_it(named: list[str] | None, tmp_path: Path) -> None:
    write_native(tmp_path / "theirs", "llama-tied", architectures=named)
    ours = load_policy(tmp_path / "theirs", CPU)
    ours.step = 1
    save_policy(tmp_path / "sft", ours)
    [name] = json.loads((tmp_path / "sft/config.json").read_text())["architectures"]
    assert name == "LlamaForCausalLM" == type(AutoModelForCausalLM.from_pretrained(tmp_path / "sft")).__name__


# ------------------------------------------------------------------------------------------------- reward models

PADS = {  # the tokens of a tokenizer, its pad, and what may fill what is scored: with no other token a new one
    "gpt2": (["<|endoftext|>"], "<|endoftext|>", "<|pad|>"),
    "no-pad": (["<|endoftext|>"], "", "<|pad|>"),
    "text": (["<|endoftext|>"], "!", "<|pad|>"),
    "own": (["<|endoftext|>", "[fill]"], "[fill]", "[fill]"),
    "called-so": (["<|endoftext|>", "<|extra|>", "<|fim_pad|>"], "<|endoftext|>", "<|fim_pad|>"),
    "written": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|pad|>"),
}
LINES = (
    "{% for m in messages %}{{ m.content + '\n' }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def spoken_with(special: list[str], pad: str) -> Template:
    tokenizer = byte_level(special, [])
    source = CHATML if "<|im_end|>" in special else LINES
    stops = frozenset({tokenizer.token_to_id("<|endoftext|>")})
    return with_stops(Template(tokenizer, source, "", "<|endoftext|>", pad, stops))


@pytest.mark.parametrize("rows", thin(["as-many-as-tokens", "more"], "as-many-as-tokens"))
@pytest.mark.parametrize("kind", PADS)
def test_transformers_scores_the_last_token_whatever_the_padding(kind: str, rows: str, tmp_path: Path) -> None:
    """Answers that were cut off end with any token of text, the first of the vocabulary too: GPT-2's "!"."""
    special, pad, expected = PADS[kind]
    spoken = spoken_with(special, pad)
    room = spoken.tokenizer.get_vocab_size() + (8 if rows == "more" else 0)
    config = replace(SHAPES["llama"], vocab_size=room)
    module = Decoder(config)
    initialise(module, config.layers, torch.Generator().manual_seed(0))
    save_policy(tmp_path / "theirs", Policy(module, spoken, "made"))
    change(tmp_path / "theirs/config.json", pad_token_id=None)
    change(tmp_path / "theirs/tokenizer_config.json", pad_token=pad or None)
    ours = load_policy(tmp_path / "theirs", CPU)
    scorer = scorer_from(ours.module, torch.Generator().manual_seed(1))
    model = RewardModel(scorer, ours.template, "made", source=ours.source)
    saved = save_reward_model(tmp_path / "reward", model)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert tokenizer.pad_token == expected and tokenizer.pad_token_id == theirs.config.pad_token_id
    fresh = expected == "<|pad|>"
    assert theirs.config.vocab_size == max(room, spoken.tokenizer.get_vocab_size() + fresh)
    asked = [[5, 9, 0], [7, *spoken.stop_ids][:2], [8, 3, 11, 2, 0, 0]]
    with torch.no_grad():
        scores = model.module.scores(padded(asked, 1, "right"), torch.tensor([len(row) for row in asked]))
        for side in ("right", "left"):
            ids = padded(asked, tokenizer.pad_token_id, side)
            mask = padded([[1] * len(row) for row in asked], 0, side)
            torch.testing.assert_close(theirs(ids, attention_mask=mask).logits[:, 0], scores, rtol=0, atol=1e-4)

    again = load_reward_model(tmp_path / "reward", CPU)
    assert again.template.hash == ours.template.hash, "it reads the tokens that the policy wrote"
    assert save_reward_model(tmp_path / "again", again) == saved


def padded(rows: list[list[int]], pad: int, side: str) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor(
        [row + [pad] * (width - len(row)) if side == "right" else [pad] * (width - len(row)) + row for row in rows]
    )


def test_a_language_model_keeps_the_pad_it_came_with_and_names_no_text(tmp_path: Path) -> None:
    spoken = spoken_with(["<|endoftext|>"], "")
    save_policy(tmp_path / "made", Policy(network_for(spoken), spoken, "made"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        found = json.loads((tmp_path / "made" / name).read_text())
        assert found.get("pad_token_id") is None and found.get("pad_token") is None
    assert scoring_pad(spoken, None) is None


def test_the_unknown_token_is_text(tmp_path: Path) -> None:
    """What a tokenizer writes for what it does not know may end an answer; nor is what opens every text fit, which readers would mask."""
    spoken = replace(family("mistral").template, pad_token="<unk>")
    assert scoring_pad(spoken, 0) is None and scoring_pad(family("qwen3").template, None) is not None


@pytest.mark.parametrize("shape", thin(["llama", "gpt2", "granite"], "gpt2 granite"))
def test_a_reward_model_keeps_what_its_base_said(shape: str, tmp_path: Path) -> None:
    """And is exported in the type that the base came in, with probes that its rounded weights score."""
    theirs = tmp_path / "theirs"
    if shape in FOREIGN:
        write_foreign(theirs, shape)
        dress(theirs)
        change(theirs / "config.json", dtype="bfloat16")
        recast(theirs, torch.bfloat16, shards=2)
    else:
        write_native(theirs, shape)
    ours = load_policy(theirs, CPU)
    scorer = scorer_from(ours.module, torch.Generator().manual_seed(1), 2)
    model = RewardModel(scorer, ours.template, "made", [Task("a", centre=0.5), Task("b")], source=ours.source)
    with torch.no_grad():
        probe = scorer.task_scores(torch.tensor([[5, 6, 7]]), torch.tensor([3]))[0]
    model.probes = [{"ids": [5, 6, 7], "scores": probe.tolist()}]
    save_reward_model(tmp_path / "reward", model)
    found = export_reward_model(tmp_path / "out", load_reward_model(tmp_path / "reward", CPU))
    assert 0 < found.mean <= found.largest < 0.5
    again = load_reward_model(tmp_path / "out", CPU)
    assert again.tasks == model.tasks and again.probes[0]["scores"] != model.probes[0]["scores"]
    assert {t.dtype for _, _, t in stored(tmp_path / "out").values()} == {torch.bfloat16}
    kept = contents(tmp_path / "out")
    assert all(
        kept[name] == data
        for name, data in contents(theirs).items()
        if name in ("LICENSE", "NOTICE", "generation_config.json")
    )
    [name] = json.loads((tmp_path / "out/config.json").read_text())["architectures"]
    assert (
        name
        == {
            "llama": "LlamaForSequenceClassification",
            "gpt2": "GPT2ForSequenceClassification",
            "granite": "GraniteModel",
        }[shape]
    )
    loader = AutoModel if shape == "granite" else AutoModelForSequenceClassification
    assert type(loader.from_pretrained(tmp_path / "out")).__name__ == name


# ------------------------------------------------------------------------------------------- what is not taken along


def test_what_is_not_kept_is_named(tmp_path: Path) -> None:
    """Weights in other forms, another model, what lies elsewhere; passwords and version control are not even read."""
    theirs, blobs = tmp_path / "hub/snapshots/abc", tmp_path / "hub/blobs"
    write_native(theirs, "llama")
    (tmp_path / "secret").write_text("mine")
    blobs.mkdir()
    (blobs / "1").write_text("use it well")
    (theirs / "USE_POLICY.md").symlink_to("../../blobs/1")  # as the cache of a download has it
    (theirs / "outside.txt").symlink_to(tmp_path / "secret")
    (theirs / "pytorch_model.bin").write_bytes(b"1")
    (theirs / "pytorch_model.bin.index.json").write_text("{}")
    (theirs / "docs").mkdir()
    (theirs / "docs/eval.json").write_text("[1]")
    for name in ("checkpoint-9", ".git", "away"):
        inner = tmp_path / "elsewhere" if name == "away" else theirs / name
        inner.mkdir()
        (inner / "config.json").write_text("{}")
    (theirs / "away").symlink_to(tmp_path / "elsewhere")
    (theirs / ".env").write_text("TOKEN=1")
    source = read_source(theirs)
    assert source.left_out == ("away", "checkpoint-9", "outside.txt", "pytorch_model.bin")
    assert source.files["USE_POLICY.md"] == b"use it well" and source.files["docs/eval.json"] == b"[1]"
    save_policy(tmp_path / "base", load_policy(theirs, CPU))
    there = contents(tmp_path / "base")
    assert not {".env", "outside.txt", "pytorch_model.bin", "pytorch_model.bin.index.json"} & there.keys()
    assert not [name for name in there if name.startswith((".git/", "checkpoint-9", "away"))]
    assert not (tmp_path / "base/USE_POLICY.md").is_symlink()


def test_a_file_that_is_too_large_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.models.files.source.LARGEST", 1000)
    write_native(tmp_path, "llama")
    (tmp_path / "film.mp4").write_bytes(b"0" * 1001)
    source = read_source(tmp_path)
    assert source.left_out == ("film.mp4",) and "tokenizer.json" in source.files


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{", '{"dtypes": []}', '{"dtypes": {"a": 1}, "settings": {}}', '{"dtypes": {}, "settings": {"../x": "{}"}}',
        '{"dtypes": {}, "settings": {"config.json": "no"}}', '{"dtypes": {}, "settings": {"config.json": "[]"}}',
    ],
)  # fmt: skip
def test_damaged_notes_of_what_a_model_came_in_are_refused(text: str, tmp_path: Path) -> None:
    save_policy(tmp_path, policy())
    (tmp_path / SIDECAR).write_text(text)
    with pytest.raises(ModelError, match=SIDECAR) as caught:
        load_policy(tmp_path, CPU)
    assert one_sentence(str(caught.value))


def test_an_export_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    write_native(tmp_path / "theirs", "llama")
    ours = load_policy(tmp_path / "theirs", CPU)
    for _ in range(2):  # over itself, extra templates and all
        export_policy(tmp_path / "out", ours)
    (tmp_path / "out/mine").mkdir()
    with pytest.raises(UsageError, match="holds more than a model"):
        export_policy(tmp_path / "out", ours)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("!")
    with pytest.raises(UsageError, match="holds more than a model"):
        place_to_save(tmp_path / "full")
