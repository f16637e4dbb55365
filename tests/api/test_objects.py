"""Models and tokenizers of transformers as they stand in memory: read for what they say, left as they were, refused by name."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

import bridle
from bridle.api.inputs import as_prompts
from bridle.core.errors import BridleError, ModelError, UnsupportedModel, UsageError
from bridle.models.decoder import Decoder
from bridle.models.foreign import Foreign
from bridle.models.policy import save_policy
from tests.families.table import WALKED
from tests.models.families import CHATML, byte_level
from tests.models.tiny import one_sentence, random_ids, write_foreign
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import same, weights


def saved(folder: Path, shape: str) -> Path:
    if shape == "gpt2":
        write_foreign(folder, shape)
    else:
        save_policy(folder, tiny_policy(shape))
    return folder


def objects(folder: Path, **options: Any) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return objects(saved(tmp_path_factory.mktemp("tied") / "model", "llama-tied"))


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ("llama-tied", torch.bfloat16, Decoder),
        ("llama", torch.float32, Decoder),
        ("gpt2", torch.float16, Foreign),
    ],
)
def test_objects_are_read_to_the_bit_as_their_folder_is(
    shape: str, dtype: torch.dtype, kind: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, tokenizer = objects(saved(tmp_path / "model", shape), dtype=dtype)
    model = bridle.load(network, tokenizer, precision="float32")
    module: Any = model.policy.module
    assert isinstance(module, kind) and model.brought
    assert (module.lm_head is None if kind is Foreign else module.config.tie_embeddings) is (shape != "llama")
    came = "weights came in " in capsys.readouterr().err
    assert came is (dtype != torch.float32)
    ids = torch.tensor(random_ids(2, 9, 9))
    with torch.no_grad():
        torch.testing.assert_close(module(ids), network.float()(ids).logits, rtol=0, atol=1e-4)
    network.to(dtype)
    model.export(tmp_path / "exported")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert again.dtype == dtype and same(weights(again), network)


def test_what_the_objects_say_is_honoured(tmp_path: Path) -> None:
    """A template, stops, a pad and a side that stand in no file; the user's objects stay as they were."""
    network, tokenizer = objects(saved(tmp_path / "model", "llama-tied"))
    network.generation_config.eos_token_id = [1, 7, 9]
    tokenizer.chat_template = tokenizer.chat_template.replace("Human: ", "You: ")
    tokenizer.padding_side, tokenizer.pad_token = "left", "<|doc|>"
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=4)
    before = [deepcopy(network.config.to_dict()), network.config.dtype, deepcopy(network.generation_config.to_dict())]
    spoken, kept = [tokenizer.backend_tokenizer.to_str(), deepcopy(tokenizer.init_kwargs)], weights(network)
    model = bridle.load(network, tokenizer, precision="float32")
    template, stamp = model.policy.template, model.policy.origin
    assert template.stop_ids == {1, 7, 9} and template.pad_token == "<|doc|>"
    assert template.prompt_text(as_prompts(["Hello?"])[0]).startswith("<|doc|>You: Hello?")
    assert template.tokenizer.padding is None and template.tokenizer.truncation is None
    model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/tokenizer_config.json").read_text())["padding_side"] == "left"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == tokenizer.chat_template

    bridle.sft(model, [("Hello?", "Hi.")] * 4, epochs=1, learning_rate=1e-2)
    assert before == [network.config.to_dict(), network.config.dtype, network.generation_config.to_dict()]
    assert spoken == [tokenizer.backend_tokenizer.to_str(), tokenizer.init_kwargs] and same(kept, network)
    tokenizer(["a", "b"], padding="max_length", max_length=9)  # leaves another state in the tokenizer
    assert bridle.load(network, tokenizer).policy.origin == stamp


def test_weights_that_were_tied_by_hand_and_classes_of_ones_own(tmp_path: Path) -> None:
    network, tokenizer = objects(saved(tmp_path / "model", "llama"))
    network.lm_head.weight = network.model.embed_tokens.weight
    own = type("MyModel", (type(network),), {})
    network.__class__ = own
    module = bridle.load(network, tokenizer, precision="float32").policy.module
    assert torch.equal(module.output_weight(), network.model.embed_tokens.weight)


def test_added_tokens_without_an_embedding_are_told(pair: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    network, tokenizer = pair[0], deepcopy(pair[1])
    tokenizer.add_tokens(["<x>"])
    assert bridle.load(network, tokenizer).policy.template.outside == {300}
    assert "no embedding for 1 of its tokenizer's added tokens (such as '<x>')" in (told := capsys.readouterr().err)
    assert "model.resize_token_embeddings(len(tokenizer)) gives them one" in told
    tokenizer.eos_token = "<x>"
    with pytest.raises(ModelError, match="the given model names the stop token 300, where .* embeddings for 300"):
        bridle.load(network, tokenizer)


class PeftModel(torch.nn.Module):
    """By whose name peft's is known."""


class ProcessorMixin:
    """By whose name a processor is known."""


class Slow(PreTrainedTokenizer):
    vocab_size = 3

    def get_vocab(self) -> dict[str, int]:
        return {}


SIZES: dict[str, Any] = {"vocab_size": 300, "num_layers": 1, "num_heads": 2, "d_model": 32, "d_ff": 32, "d_kv": 8}
BERT: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WRONG: dict[str, tuple[Callable[[Any, Any, Path], tuple[Any, ...]], str]] = {
    "a trunk": (lambda m, t, f: (m.model, t), "is LlamaModel .*not the causal language model .*AutoModelForCausalLM"),
    "a head": (lambda m, t, f: (m.lm_head, t), "needed, got Linear, a part of a model"),
    "a scorer": (
        lambda m, t, f: (AutoModelForSequenceClassification.from_pretrained(f, num_labels=1), t),
        "LlamaForSequenceClassification .*scores text and writes none; .*bridle.load_reward",
    ),
    "an adapter": (lambda m, t, f: (PeftModel(), t), "adapters of peft .*merge_and_unload"),
    "BERT": (lambda m, t, f: (BertForMaskedLM(BertConfig(**BERT)), t), "BertForMaskedLM .*fills gaps"),
    "T5": (lambda m, t, f: (T5ForConditionalGeneration(T5Config(**SIZES)), t), "an encoder with a decoder"),
    "no tokenizer": (lambda m, t, f: (m,), r"came without its tokenizer; call bridle.load\(model, tokenizer\)"),
    "a processor": (lambda m, t, f: (m, ProcessorMixin()), "got ProcessorMixin, a processor; .*processor.tokenizer"),
    "a slow tokenizer": (lambda m, t, f: (m, Slow()), "Slow is not a fast tokenizer"),
    "a name": (lambda m, t, f: ("Qwen/Qwen3-0.6B",), "Qwen/Qwen3-0.6B is not a folder here; .*from_pretrained"),
    "swapped": (lambda m, t, f: (t, m), "the tokenizer was given first"),
    "a tokenizer alone": (lambda m, t, f: (t,), "a model was needed, got TokenizersBackend; give a folder"),
    "a text for one": (lambda m, t, f: (m, "gpt2"), "a tokenizer of transformers was needed, got str 'gpt2'"),
    "two of it": (lambda m, t, f: (f, t), "has its own tokenizer, and another was given beside it"),
    "a number": (lambda m, t, f: (3,), "a model was needed, got int"),
    "another's tokenizer": (
        lambda m, t, f: (m, larger_tokenizer()),
        "tokens up to number 3[0-9]+, where the given model has embeddings for 300; they are not of one model",
    ),
    "what cannot be saved": (
        lambda m, t, f: (unsound(m), t),
        "transformers cannot save the given model: GenerationConfig is invalid",
    ),
}


def larger_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML, eos_token="<|im_end|>")


def unsound(network: Any) -> Any:
    network = deepcopy(network)
    network.generation_config.temperature = 0.3  # without do_sample
    return network


@pytest.mark.parametrize("name", WRONG)
def test_wrong_objects_get_one_sentence(
    name: str, pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, words = WRONG[name]
    given = made(*pair, saved(tmp_path / "model", "llama-tied") if name in ("a scorer", "two of it") else tmp_path)
    if name != "what cannot be saved":
        monkeypatch.delattr(bridle.api.objects, "write_objects")  # nothing is written before it is refused
    with pytest.raises(BridleError, match=words) as caught:
        bridle.load(*given)
    assert one_sentence(str(caught.value)) and type(caught.value) in (UsageError, UnsupportedModel, ModelError)


def test_what_scores_nothing_is_no_reward_model(pair: tuple[Any, Any], tmp_path: Path) -> None:
    scorer = AutoModelForSequenceClassification.from_pretrained(saved(tmp_path / "m", "llama-tied"), num_labels=2)
    given: Any
    for given, words in (
        ((scorer, pair[1]), "the given model holds a classifier of 2 labels"),
        ((scorer,), "the given model came without its tokenizer"),
        ((pair[0], pair[1]), "LlamaForCausalLM, which scores nothing; train a reward model"),
        ((tmp_path / "m",), "LlamaForCausalLM .* where a reward model is a LlamaForSequenceClassification"),
        (("ORG/NAME",), r"ORG/NAME is not a folder here; .*AutoModelForSequenceClassification.from_pretrained\(name\)"),
    ):
        with pytest.raises((UsageError, UnsupportedModel), match=words) as caught:
            bridle.load_reward(*given)
        assert one_sentence(str(caught.value))


def test_a_trunk_by_itself_is_refused_though_its_embeddings_could_be_its_head(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama-tied")
    with pytest.raises(UnsupportedModel, match="without that head it writes no text"):
        bridle.load(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKED)
def test_every_family_is_read_from_memory_as_from_its_folder(name: str, tmp_path: Path) -> None:
    WALKED[name].write(tmp_path / "model", "")
    read = bridle.load(tmp_path / "model", precision="float32").policy
    given = bridle.load(*objects(tmp_path / "model"), precision="float32").policy
    assert type(given.module) is type(read.module) and given.template.source == read.template.source
    assert given.template.stop_ids == read.template.stop_ids
    asked = as_prompts(["What is 2 + 3?", "<|end|> again?"])
    assert given.template.prompt_ids(asked) == read.template.prompt_ids(asked)
    assert same(weights(given.module), read.module)
