"""E1 in a tiny setting: what its figures are, with a model of nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import bridle
from bridle.api.models import Model
from experiments import shakespeare
from experiments.shakespeare import dialogue, label_changes, nats_a_letter

TEXT = (
    "First Citizen:\nSpeak.\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\n"
    + "We know. " * 20
    + "\n\nAll:\nResolved.\n\nAll:\nAway!\n"
)


@pytest.fixture(scope="module")
def model() -> Model:
    return bridle.pretrain(
        [TEXT] * 3, tokens=512, length=32, layers=2, hidden_size=32, intermediate_size=64, heads=2, kv_heads=2, vocab_size=259
    )  # fmt: skip


def test_a_letter_is_a_token_and_short_speeches_answer_one_another(model: Model) -> None:
    assert len(model.policy.template.document_ids([TEXT])[0]) == len(TEXT) + 2
    assert dialogue(TEXT) == [
        ("First Citizen:\nSpeak.", "All:\nSpeak, speak."),
        ("All:\nResolved.", "All:\nAway!"),
    ]


def test_the_loss_counts_each_letter_once(model: Model) -> None:
    """Of a text in one row it is that row's mean; of longer ones each letter is predicted in the row where more stands before it."""
    policy, ids = model.policy, torch.tensor(model.policy.template.document_ids([TEXT])[0])
    with torch.no_grad():
        logp_NV = policy.module.logits(policy.module.hidden(ids[None, :32]))[0].log_softmax(1)
        whole = -float(logp_NV.gather(1, ids[1:33, None]).mean())
        assert nats_a_letter(policy, TEXT[:32], row=32) == pytest.approx(whole, rel=1e-5)
        later_NV = policy.module.logits(policy.module.hidden(ids[None, 16:48]))[0].log_softmax(1)
        second = -float(later_NV[16:].gather(1, ids[33:49, None]).mean())
    assert nats_a_letter(policy, TEXT[:48], row=32) == pytest.approx((whole * 32 + second * 16) / 48, rel=1e-5)
    assert whole < math.log(259)


def test_labels_of_prompts_do_not_matter_and_those_of_answers_do(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [parameter.clone() for parameter in model.policy.module.parameters()]
    found = label_changes(model, dialogue(TEXT))
    assert found["prompt labels"] == 0 and found["answer labels"] > 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.module.parameters(), strict=True))

    def imitate(policy: object, examples: list[tuple[list[int], list[int]]], device: object) -> None:
        shakespeare_imitate(policy, [(asked[:3], asked[3:] + answer) for asked, answer in examples], device)  # type: ignore[arg-type]

    shakespeare_imitate = shakespeare.imitate
    monkeypatch.setattr(shakespeare, "imitate", imitate)
    assert label_changes(model, dialogue(TEXT))["prompt labels"] > 0.1, "a loss on prompts too is seen"


@pytest.mark.slow
def test_e1_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDLE_EXPERIMENTS", str(tmp_path))
    monkeypatch.setattr(shakespeare, "TOLD", 1000)
    row = shakespeare.measure(3, letters=20_000, answers=16, asked=4)
    assert 1 < row["nats"] < math.log(259) and 0 <= row["stops"] <= 1
    assert (tmp_path / "shakespeare-3/sft").is_dir()
