"""Model folders: transformers reads what bridle saves to the same numbers, and damage is told in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bridle.core.errors import BridleError, ModelError
from bridle.core.records import Message, Prompt
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.models import policy as policies
from bridle.models.batches import pad
from bridle.models.contents import folder_hash
from bridle.models.policy import (
    RewardModel,
    Task,
    check_probes,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
)
from bridle.models.scorer import scorer_from
from tests.models.tiny import (
    CPU,
    FALLBACK,
    FOREIGN,
    SHAPES,
    one_sentence,
    policy,
    random_ids,
    template,
    write_safetensors,
)

CONVERSATION = (
    Message("system", "Answer briefly."),
    Message("user", "你好 🙂, my cat is bored."),
    Message("assistant", "Play with it."),
    Message("user", "Any other advice?"),
)


def reward_model(shape: str = "llama") -> RewardModel:
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(3))
    ids = random_ids(1, 9, 9)[0]
    with torch.no_grad():
        score = float(scorer.scores(torch.tensor([ids]), torch.tensor([9])))
    tasks = [Task(centre=0.25, scale=2.0, temperature=1.5)]
    return RewardModel(scorer, template(), "made", tasks, [{"ids": ids, "scores": [score]}])


@pytest.mark.parametrize("shape", [*SHAPES, *FOREIGN])
def test_transformers_reads_a_saved_policy(shape: str, tmp_path: Path) -> None:
    """Equal logits, the same rendering and ids of a conversation, the same greedy tokens."""
    ours = policy(shape)
    save_policy(tmp_path / "model", ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = torch.tensor([random_ids(1, 60, 60, seed=i)[0] for i in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(ours.module(ids), theirs(ids).logits, rtol=0, atol=1e-4)

    chat = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == ours.template.render(CONVERSATION, answer_next=True)
    prompt = ours.template.prompt_ids([Prompt(CONVERSATION[:2])])[0]
    theirs_ids = tokenizer.apply_chat_template(chat[:2], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == list(theirs_ids)

    engine = Engine(torch.float32)
    engine.load(ours)
    answer = engine.generate([prompt], Sampling(24, temperature=0), stamp=ours.stamp, seed=0)[0]
    given = torch.tensor([prompt])
    output = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False)
    assert output[0, len(prompt) :].tolist() == answer.token_ids


@pytest.mark.parametrize("shape", ["llama", "mistral", "qwen2", "qwen3", *FALLBACK, "mixtral"])
def test_transformers_reads_a_saved_reward_model(shape: str, tmp_path: Path) -> None:
    ours = reward_model(shape)
    save_reward_model(tmp_path / "model", ours)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert theirs.config.pad_token_id == template().pad_id
    assert theirs.config.num_labels == 1
    stop = template().eos_id
    rows = [[*row, stop] for row in random_ids(6, 3, 40)]
    ids = pad(rows, template().pad_id)
    with torch.no_grad():
        found = ours.module.scores(ids, torch.tensor([len(r) for r in rows]))
        torch.testing.assert_close(theirs(ids).logits[:, 0], found, rtol=0, atol=1e-4)
        masked = (torch.arange(ids.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]).long()
        torch.testing.assert_close(theirs(ids, attention_mask=masked).logits[:, 0], found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "qwen3", *FALLBACK])
def test_a_reward_model_of_several_tasks_is_a_classifier_of_as_many_labels(shape: str, tmp_path: Path) -> None:
    """transformers reads the names and the same logits; loaded again it is the same; each row has its probe."""
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(3), 3)
    tasks = [Task("helpful", centre=0.5), Task("harmless", scale=3.0), Task("toxic", "binary", temperature=2.0)]
    ours = RewardModel(scorer, template(), "made", tasks)
    ids = torch.tensor([[*random_ids(1, 9, 9)[0], template().eos_id]])
    with torch.no_grad():
        raw = scorer.task_scores(ids, torch.tensor([10]))
    ours.probes = [{"ids": ids[0].tolist(), "scores": raw[0].tolist()}]
    save_reward_model(tmp_path / "model", ours)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert theirs.config.num_labels == 3 and theirs.config.id2label == {0: "helpful", 1: "harmless", 2: "toxic"}
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, raw, rtol=0, atol=1e-4)
    again = load_reward_model(tmp_path / "model", CPU)
    assert again.tasks == tasks and again.probes == ours.probes
    assert save_reward_model(tmp_path / "copy", again) == again.origin

    head = scorer.score.weight.detach().clone()
    head[1] += 1
    change_tensors(**{"score.weight": head})(tmp_path / "model")
    with pytest.raises(ModelError, match="scores a saved probe .*task 'harmless'"):
        load_reward_model(tmp_path / "model", CPU)
    change_tensors(**{"score.weight": head[:2]})(tmp_path / "model")
    with pytest.raises(ModelError, match=r"score.weight"):
        load_reward_model(tmp_path / "model", CPU)


@pytest.mark.parametrize("shape", ["qwen2", *FALLBACK, "mixtral"])
def test_a_policy_survives_saving_and_loading(shape: str, tmp_path: Path) -> None:
    ours = policy(shape)
    saved = save_policy(tmp_path / "model", ours)
    again = load_policy(tmp_path / "model", CPU)
    assert again.origin == saved
    assert again.stamp == f"{saved[:16]}+0"
    limits = again.module.config.max_positions, again.module.config.vocab_size, again.module.config.hidden_size
    assert limits == (96, 300, 32) and isinstance(again.module, type(ours.module))
    assert again.template.stop_ids == ours.template.stop_ids
    assert again.template.hash == ours.template.hash
    weights = again.module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.module.state_dict().items())
    assert save_policy(tmp_path / "copy", again) == saved  # the same content has the same name


@pytest.mark.parametrize("shape", ["llama", *FALLBACK, "mixtral"])
def test_a_reward_model_survives_saving_and_loading(shape: str, tmp_path: Path) -> None:
    ours = reward_model(shape)
    save_reward_model(tmp_path / "model", ours)
    again = load_reward_model(tmp_path / "model", CPU)
    assert (again.tasks, again.probes) == (ours.tasks, ours.probes) and again.tasks[0].centre == 0.25
    weights = again.module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.module.state_dict().items())
    assert save_reward_model(tmp_path / "copy", again) == again.origin


def test_the_stamp_changes_with_every_step() -> None:
    ours = policy()
    before = ours.stamp
    ours.step += 1
    assert ours.stamp != before


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"],
)
def test_the_content_hash_knows_all_that_decides_an_answer(name: str, tmp_path: Path) -> None:
    save_policy(tmp_path / "model", policy())
    before = folder_hash(tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_text(file.read_text("utf-8") + " ", "utf-8")
    assert folder_hash(tmp_path / "model") != before


def test_a_model_that_a_kill_left_without_its_name_is_read(tmp_path: Path) -> None:
    saved = save_policy(tmp_path / "model", policy())
    (tmp_path / "model").rename(tmp_path / ".model.4711.old")
    assert folder_hash(tmp_path / "model") == saved
    (tmp_path / "model").rename(tmp_path / ".model.4711.old")
    assert load_policy(tmp_path / "model", CPU).origin == saved


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights were of one and its template or its hash of the other."""
    save_policy(tmp_path / "model", policy(seed=1))
    read, times = policies.read_tensors, list[int]()

    def replaced(folder: Path) -> dict[str, torch.Tensor]:
        times.append(1)
        tensors = read(folder)
        if len(times) == 1:
            save_policy(folder, policy(seed=2))
        return tensors

    monkeypatch.setattr(policies, "read_tensors", replaced)
    loaded, new = load_policy(tmp_path / "model", CPU), policy(seed=2).module.state_dict()
    assert len(times) == 2 and loaded.origin == folder_hash(tmp_path / "model")
    assert all(torch.equal(tensor, new[name]) for name, tensor in loaded.module.state_dict().items())


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    ours = policy()
    save_policy(tmp_path / "model", ours)
    whole = tmp_path / "model" / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, part in parts.items():
        write_safetensors(tmp_path / "model" / file, {n: tensors[n] for n in part})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    again = load_policy(tmp_path / "model", CPU).module.state_dict()
    assert all(torch.equal(tensors[name], again[name]) for name in names)

    (tmp_path / "model" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks model-00002-of-00002.safetensors"):
        load_policy(tmp_path / "model", CPU)


def test_a_tied_matrix_that_was_stored_twice_is_read_once(tmp_path: Path) -> None:
    ours = policy("llama-tied")
    save_policy(tmp_path / "model", ours)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    write_safetensors(path, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    ids = torch.tensor(random_ids(1, 9, 9))
    with torch.no_grad():
        assert torch.equal(load_policy(tmp_path / "model", CPU).module(ids), ours.module(ids))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00")


def scramble_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(bytes(data))


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        raw |= values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "gone"}))

    return change


def change_tensors(drop: str = "", **more: torch.Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        write_safetensors(folder / "model.safetensors", {**{k: v for k, v in tensors.items() if k != drop}, **more})

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no model folder"),
        (remove("config.json"), "no config.json"),
        (remove("model.safetensors"), "lacks model.safetensors"),
        (remove("tokenizer.json"), "no tokenizer.json"),
        (overwrite("config.json", "{"), "not valid JSON"),
        (overwrite("config.json", "[1]"), "JSON object"),
        (overwrite("tokenizer.json", "{}"), "cannot be read as a tokenizer"),
        (overwrite("model.safetensors", ""), "cannot be read"),
        (cut_weights, "cannot be read"),
        (cut_header, "cannot be read"),
        (scramble_header, "cannot be read"),
        (change_config(num_attention_heads="gone"), "lacks 'num_attention_heads'"),
        (change_config(hidden_size="wide"), "wrong type"),
        (change_config(hidden_size=64), "has shape"),
        (change_config(num_hidden_layers=3), "9 missing"),
        (change_config(num_hidden_layers=1), "9 unknown"),
        (change_config(vocab_size=200), "has shape"),
        (change_config(model_type="gpt2"), "do not fit its config.json of model_type 'gpt2'"),
        (change_config(model_type="t5"), "'t5', of which neither bridle nor transformers"),
        (change_config(model_type="gone"), "model_type ''"),
        (change_tensors(drop="lm_head.weight"), "lm_head.weight"),
        (change_tensors(odd=torch.zeros(2)), "odd"),
        (overwrite("tokenizer_config.json", '{"eos_token": "<nope>"}'), "which its tokenizer does not have"),
        (overwrite("tokenizer_config.json", '{"eos_token": "<|end|>", "bos_token": "<nope>"}'), "'<nope>'"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    save_policy(tmp_path / "model", policy())
    damage(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        load_policy(tmp_path / "model", CPU).template.prompt_ids([Prompt.from_text("?")])
    assert words in str(caught.value)
    assert one_sentence(str(caught.value)), str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    save_policy(tmp_path / "model", policy())
    change_config(vocab_size=299)(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    smaller = {n: t[:299] if n.endswith(("embed_tokens.weight", "lm_head.weight")) else t for n, t in tensors.items()}
    write_safetensors(tmp_path / "model" / "model.safetensors", smaller)
    with pytest.raises(ModelError, match="300 tokens where the model has embeddings for 299"):
        load_policy(tmp_path / "model", CPU)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_tensors(drop="score.weight"), "score.weight"),
        (change_tensors(**{"score.weight": torch.ones(1, 32)}), "scores a saved probe"),
        (change_tensors(**{"score.weight": torch.ones(2, 32)}), "has shape [2, 32]"),
        (remove("bridle_reward.json"), "no bridle_reward.json"),
        (overwrite("bridle_reward.json", "{}"), "no bridle_reward.json"),
        (overwrite("bridle_reward.json", '{"tasks": [{"middle": 0.0}], "probes": []}'), "no bridle_reward.json"),
    ],
)
def test_a_reward_model_without_its_head_or_scale_is_refused(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    save_reward_model(tmp_path / "model", reward_model())
    damage(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        load_reward_model(tmp_path / "model", CPU)
    assert words in str(caught.value) and one_sentence(str(caught.value))


def test_probes_are_scored_again() -> None:
    model = reward_model()
    check_probes(model, Path("here"))
    model.probes[0]["scores"][0] += 0.1
    with pytest.raises(ModelError, match="scores a saved probe"):
        check_probes(model, Path("here"))


def test_saving_that_fails_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_policy(tmp_path / "model", policy(seed=0))

    def full(*arguments: object) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("bridle.compute.checkpoint.save_file", full)
    with pytest.raises(BridleError, match="no space left while saving .*model; free some"):
        save_policy(tmp_path / "model", policy(seed=1))
    assert folder_hash(tmp_path / "model") == saved
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
