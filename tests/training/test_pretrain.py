"""Pretraining: rows of text, an order known from the seed, a falling loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.compute.randomness import shuffled
from bridle.core.errors import NoUsableRows
from bridle.project.metrics import read_metrics
from bridle.recipe.offline import PretrainSection
from bridle.training import pretrain
from tests.models.tiny import TEXTS, policy, random_ids, template
from tests.training.runs import dying_at, run_in, same, saved_state, session, weights

CONFIG = PretrainSection(batch_size=4, length=8, learning_rate=0.01)


def test_rows_hold_the_documents_in_order() -> None:
    rows = pretrain.rows_of([[1, 2, 3], [4, 5], [6, 7, 8, 9]], 3)
    assert rows.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]  # 9 does not fill a row


def test_too_little_text_is_said() -> None:
    assert pretrain.rows_of([[1, 2, 3, 4]], 3).shape == (1, 4)
    with pytest.raises(NoUsableRows, match="at least 4 tokens of text, got 3"):
        pretrain.rows_of([[1, 2, 3]], 3)


def rows_seen(monkeypatch: pytest.MonkeyPatch, folder: Path, rows: Tensor, tokens: int, seed: int) -> list[list[int]]:
    """The targets of every row that is trained on, in order."""
    seen: list[list[int]] = []
    plain = pretrain.linear_logprobs

    def watch(hidden_ND: Tensor, weight: Tensor, targets_N: Tensor, *others: Any) -> Tensor:
        seen.extend(targets_N.view(-1, rows.shape[1] - 1).tolist())
        return plain(hidden_ND, weight, targets_N, *others)

    monkeypatch.setattr(pretrain, "linear_logprobs", watch)
    pretrain.train(policy(), rows, tokens, CONFIG, session(run_in(folder), seed))
    monkeypatch.undo()
    return seen


def test_the_order_of_rows_is_known_from_the_seed_and_new_in_every_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = torch.tensor(random_ids(8, 9, 9))
    seen = rows_seen(monkeypatch, tmp_path / "a", rows, 2 * 8 * 8, seed=3)
    passes = [[rows[i, 1:].tolist() for i in shuffled(8, 3, "pretrain", epoch).tolist()] for epoch in (0, 1)]
    assert seen == passes[0] + passes[1]
    assert passes[0] != passes[1] and sorted(passes[0]) == sorted(passes[1])
    assert rows_seen(monkeypatch, tmp_path / "b", rows, 2 * 8 * 8, seed=4) != seen


def test_the_first_loss_is_the_mean_over_every_next_token(tmp_path: Path) -> None:
    rows, fresh = torch.tensor(random_ids(4, 9, 9)), policy()
    with torch.no_grad():
        logp = fresh.module(rows[:, :-1]).log_softmax(-1)
    expected = -logp.gather(-1, rows[:, 1:, None]).mean()
    pretrain.train(fresh, rows, 32, CONFIG, session(run_in(tmp_path)))
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(optimizer: str, tmp_path: Path) -> None:
    rows = pretrain.rows_of(template().document_ids(TEXTS), 16)
    config = PretrainSection.model_validate({**CONFIG.model_dump(), "optimizer": optimizer, "length": 16})
    ours = policy()
    before = weights(ours.module)
    result = pretrain.train(ours, rows, 40 * 4 * 16, config, session(run_in(tmp_path)))
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]
    assert not same(before, ours.module)
    assert result["steps"] == ours.step == 40 and result["tokens"] == 40 * 4 * 16
    last = read_metrics(tmp_path)[-1]
    assert result["loss"] == last["loss"] < result["loss_average"] == last["loss_average"]  # a name means one thing


def test_a_run_that_died_remembers_its_mean_loss(tmp_path: Path) -> None:
    """Fourteen steps, logged at 0, 10 and 13, saved after each fourth."""
    config = PretrainSection.model_validate({**CONFIG.model_dump(), "checkpoint_every": 4})
    rows, whole, resumed = torch.tensor(random_ids(8, 9, 9)), policy(), policy()
    expected = pretrain.train(whole, rows, 14 * 4 * 8, config, session(run_in(tmp_path / "whole")))
    with dying_at(2):
        pretrain.train(policy(), rows, 14 * 4 * 8, config, session(run_in(tmp_path / "cut")))
    assert pretrain.train(resumed, rows, 14 * 4 * 8, config, session(run_in(tmp_path / "cut"))) == expected
    assert same(weights(whole.module), resumed.module)
    assert saved_state(tmp_path / "cut") == saved_state(tmp_path / "whole")
