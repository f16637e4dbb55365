"""What is found once, when a model of the user's is taken: that both read it alike, where its context ends, what it cannot read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from bridle.core.errors import DataError, ModelError, OutsideEmbeddings, UnsupportedModel
from bridle.core.records import Message, Prompt
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.models import decoder
from bridle.models.encoding import OUTSIDE, encode_demonstrations, prompts_that_fit
from bridle.models.files import agreement
from bridle.models.files.agreement import notes_of_taking
from bridle.models.policy import RewardModel, load_policy, load_reward_model, save_policy, save_reward_model
from bridle.models.scorer import scorer_from
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.own_model import begin_project
from bridle.stages.workspace import Work
from tests.models.tiny import CPU, FOREIGN, SHAPES, one_sentence, policy, random_ids, template, write_foreign


def write(folder: Path, shape: str, **settings: Any) -> Path:
    if shape in FOREIGN:
        write_foreign(folder, shape, **settings)
        return folder
    save_policy(folder, policy(shape))
    raw = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


# ------------------------------------------------------------------------------------------------------ compared


@pytest.mark.parametrize("shape", [*SHAPES, "gemma2"])
def test_a_model_that_both_read_alike_has_nothing_to_be_noted(shape: str, tmp_path: Path) -> None:
    assert notes_of_taking(load_policy(write(tmp_path, shape), CPU), tmp_path) == []


def test_the_probe_reaches_the_end_of_a_long_context(tmp_path: Path) -> None:
    """Where transformers' own angles, of float32, are off by a hundredth."""
    write(tmp_path, "llama-scaled", max_position_embeddings=131072)
    assert notes_of_taking(load_policy(tmp_path, CPU), tmp_path) == []


@pytest.mark.parametrize("shape", ["llama", "qwen3"])
@pytest.mark.parametrize("positions", [96, 4096])
def test_a_decoder_that_turns_late_tokens_otherwise_is_refused(
    shape: str, positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past an original context, say: the first tokens are as they should be. No project is made."""
    write(tmp_path / "mine", shape, max_position_embeddings=positions)
    plain = decoder.rope_tables

    def otherwise(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = plain(*arguments)
        late = torch.arange(len(cos))[:, None] >= positions // 2
        return torch.where(late, cos.roll(1, 0), cos), torch.where(late, sin.roll(7, 0), sin)

    monkeypatch.setattr(decoder, "rope_tables", otherwise)
    with pytest.raises(UnsupportedModel, match=f"{shape} model in .* otherwise than transformers does") as caught:
        begin_project(tmp_path / "p", tmp_path / "mine", {})
    assert one_sentence(str(caught.value)) and not (tmp_path / "p").exists()


def test_so_is_a_head_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train pretrain` takes a model too."""
    ours = policy("llama-tied")
    module = decoder.Decoder(decoder.replace(ours.module.config, tie_embeddings=False))
    module.load_state_dict({**ours.module.state_dict(), "lm_head.weight": ours.module.output_weight().detach().flip(0)})
    ours.module = module
    save_policy(tmp_path / "mine", ours)
    raw = json.loads((tmp_path / "mine/config.json").read_text())
    (tmp_path / "mine/config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    [note] = notes_of_taking(load_policy(tmp_path / "mine", CPU), tmp_path / "mine")
    assert "its head is stored apart" in note

    def lose(config: decoder.DecoderConfig, tensors: dict[str, torch.Tensor]) -> decoder.DecoderConfig:
        tensors.pop("lm_head.weight")
        return config

    monkeypatch.setattr("bridle.models.policy.with_own_head", lose)
    project = Project.create(tmp_path / "p", Recipe().with_settings({"model.path": str(tmp_path / "mine")}))
    work = Work(project, Progress())
    with pytest.raises(UnsupportedModel, match="otherwise than transformers does: from position 0 of a probe"):
        work.take_base()
    work.close()


def test_a_model_that_does_not_fit_twice_is_not_compared_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_policy(write(tmp_path, "llama"), CPU)
    monkeypatch.setattr(agreement, "machine_memory", lambda: 10_000)
    [note] = notes_of_taking(ours, tmp_path)
    assert "were not compared" in note


# ------------------------------------------------------------------------------------------------------ contexts

LONG: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0, 9.0, 20.0, 30.0]}
CHANGING: dict[str, tuple[str, dict[str, Any], int]] = {  # kind, settings, the context that is left
    "phi3": ("phi3", {"original_max_position_embeddings": 32, "rope_parameters": {**LONG, "rope_theta": 1e4}}, 32),
    "llama-longrope": ("llama", {"rope_parameters": {**LONG, "rope_theta": 1e4, "original_max_position_embeddings": 48}}, 48),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, 96),
}  # fmt: skip


@pytest.fixture
def changing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, int]:
    """A model whose rope depends on the longest row of a batch, and the length from which on it does."""
    family, settings, limit = CHANGING[request.param]
    small = {**FOREIGN["phi"], **settings, "tie_word_embeddings": False}
    monkeypatch.setitem(FOREIGN, family, small)
    write_foreign(tmp_path / "mine", family)
    return tmp_path / "mine", limit


@pytest.mark.parametrize("changing", CHANGING, indirect=True)
def test_no_row_depends_on_its_company(changing: tuple[Path, int]) -> None:
    """Every row as transformers reads it alone, and none beyond the length from which on the company would count."""
    folder, limit = changing
    ours = load_policy(folder, CPU)
    rows = [random_ids(1, n, n, seed=n)[0] for n in (limit, limit // 2)]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        together = ours.module(torch.tensor([row + [0] * (limit - len(row)) for row in rows]))
        for found, row in zip(together, rows, strict=True):
            alone = theirs(torch.tensor([row])).logits[0]
            torch.testing.assert_close(found[: len(row)], alone, rtol=0, atol=1e-4)
    assert ours.module.config.max_positions == limit
    with pytest.raises(DataError, match=f"{limit + 1} tokens does not fit the model's context of {limit}"):
        ours.module(torch.zeros(1, limit + 1, dtype=torch.long))
    engine = Engine(torch.float32)
    engine.load(ours)
    with pytest.raises(DataError, match=f"of {limit}"):
        engine.generate([rows[0][:20]], Sampling(limit - 19), stamp=ours.stamp, seed=0)
    [note] = notes_of_taking(ours, folder)
    assert f"bridle keeps to a context of {limit} tokens" in note


@pytest.mark.parametrize("changing", ["phi3"], indirect=True)
def test_so_it_is_with_a_reward_model_and_with_a_saved_one(changing: tuple[Path, int], tmp_path: Path) -> None:
    folder, limit = changing
    ours = load_policy(folder, CPU)
    scorer = scorer_from(ours.module, torch.Generator().manual_seed(0))
    save_reward_model(tmp_path / "reward", RewardModel(scorer, template(), "made"))
    save_policy(tmp_path / "again", ours)
    assert load_reward_model(tmp_path / "reward", CPU).module.config.max_positions == limit
    assert load_policy(tmp_path / "again", CPU).module.config.max_positions == limit
    assert json.loads((tmp_path / "again/config.json").read_text())["max_position_embeddings"] == 96


# ---------------------------------------------------------------------------------------- tokens without embedding


def with_tokens(folder: Path, *tokens: AddedToken, source: str = "") -> Path:
    """A tiny model whose tokenizer has added tokens beyond its 300 embeddings."""
    save_policy(folder, policy())
    spoken = template()
    larger = type(spoken.tokenizer).from_str(spoken.tokenizer.to_str())
    larger.add_tokens(list(tokens))
    larger.save(str(folder / "tokenizer.json"))
    if source:
        (folder / "chat_template.jinja").write_text(source)
    return folder


IMAGE, WORD = AddedToken("<image_soft_token>", special=True), AddedToken("<word>", special=False)


def test_an_added_token_without_an_embedding_is_refused_only_where_it_is_used(tmp_path: Path) -> None:
    ours = load_policy(with_tokens(tmp_path, IMAGE, WORD), CPU)
    assert ours.template.outside == {300, 301}
    [note] = notes_of_taking(ours, tmp_path)
    assert "no embedding for 2 of its tokenizer's added tokens (such as '<image_soft_token>')" in note
    plain = Prompt.from_text("What is a <image_soft_token>?")  # special: text, as every one that somebody spells
    [ids] = ours.template.prompt_ids([plain])
    with torch.no_grad():
        assert max(ids) < 300 and bool(ours.module(torch.tensor([ids])).isfinite().all())
    for prompt, answer in (("Say <word>.", "No."), ("Say it.", "The <word>.")):
        with pytest.raises(OutsideEmbeddings, match="the token '<word>', which is number 301") as caught:
            ours.template.completion_ids([Prompt.from_text(prompt)], [answer])
        assert one_sentence(str(caught.value))
    with pytest.raises(OutsideEmbeddings):
        ours.template.document_ids(["A <word>."])


def test_rows_that_use_one_are_dropped_and_counted(tmp_path: Path) -> None:
    ours = load_policy(with_tokens(tmp_path, WORD), CPU).template
    asked = [Prompt.from_text("Say <word>."), Prompt.from_text("Say it.")]
    kept, report = prompts_that_fit(ours, asked, 8, 96)
    assert [prompt.text for prompt in kept] == [asked[1].text] and report.dropped == {OUTSIDE: 1}
    rows, report = encode_demonstrations(ours, [(asked[1], "The <word>."), (asked[1], "No.")], 96)
    assert len(rows) == 1 and report.dropped == {OUTSIDE: 1}


def test_a_template_that_writes_one_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    source = "{% for m in messages %}<word>{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(ModelError, match="'<word>', which is number 300") as caught:
        load_policy(with_tokens(tmp_path, WORD, source=source), CPU)
    assert str(tmp_path) in str(caught.value) and one_sentence(str(caught.value))


def test_a_pad_token_without_an_embedding_fills_no_batch(tmp_path: Path) -> None:
    """As of models to which one was added and that were not resized."""
    with_tokens(tmp_path, AddedToken("<pad>", special=True))
    raw = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**raw, "pad_token": "<pad>"}))
    ours = load_policy(tmp_path, CPU).template
    assert ours.pad_id < 300 and ours.pad_id not in ours.stop_ids


def test_it_survives_saving(tmp_path: Path) -> None:
    save_policy(tmp_path / "again", load_policy(with_tokens(tmp_path / "mine", IMAGE, WORD), CPU))
    again = load_policy(tmp_path / "again", CPU).template
    assert again.outside == {300, 301}
    assert again.render((Message("user", "?"),), answer_next=True) == template().render(
        (Message("user", "?"),), answer_next=True
    )
