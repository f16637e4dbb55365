"""Scorers read the last real token, whatever stands beside or after it."""

import pytest
import torch

from bridle.models.batches import pad
from bridle.models.scorer import critic_from, init_head, scorer_from
from tests.models.tiny import FALLBACK, policy, random_ids


@pytest.mark.parametrize("shape", ["llama", "qwen2", *FALLBACK])
def test_scores_do_not_depend_on_padding_or_company(shape: str) -> None:
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(0))
    rows = random_ids(8, 1, 40)
    lengths = torch.tensor([len(row) for row in rows])
    with torch.no_grad():
        found = scorer.scores(pad(rows, 0), lengths)
        for amount, token in ((11, 0), (3, 1), (20, 77)):
            ids = torch.nn.functional.pad(pad(rows, token), (0, amount), value=token)
            torch.testing.assert_close(scorer.scores(ids, lengths), found, rtol=0, atol=1e-5)
        order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
        torch.testing.assert_close(scorer.scores(pad(rows, 0)[order], lengths[order]), found[order], rtol=0, atol=1e-5)
        alone = torch.cat([scorer.scores(torch.tensor([row]), torch.tensor([len(row)])) for row in rows])
        torch.testing.assert_close(alone, found, rtol=0, atol=1e-5)
    assert float(found.std()) > 0.05


@pytest.mark.parametrize("shape", ["llama", *FALLBACK])
def test_a_score_is_the_value_at_the_last_token(shape: str) -> None:
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(0))
    rows = random_ids(4, 2, 12)
    ids, lengths = pad(rows, 0), torch.tensor([len(row) for row in rows])
    with torch.no_grad():
        values = scorer.values(ids)
        assert values.shape == ids.shape
        torch.testing.assert_close(scorer.scores(ids, lengths), values[torch.arange(4), lengths - 1])


def test_the_head_begins_small_and_the_trunk_is_a_copy() -> None:
    base = policy().module
    scorer = scorer_from(base, torch.Generator().manual_seed(0))
    heads = []
    for seed in range(200):
        init_head(scorer, torch.Generator().manual_seed(seed))
        heads.append(scorer.score.weight.detach().clone())
    assert float(torch.stack(heads).std()) == pytest.approx(33**-0.5, rel=0.03)
    with torch.no_grad():
        scorer.model.embed_tokens.weight.zero_()
    assert bool(base.model.embed_tokens.weight.any())


@pytest.mark.parametrize("shape", ["llama", *FALLBACK])
def test_a_critic_begins_at_zero_with_the_reward_models_trunk(shape: str) -> None:
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(0))
    critic = critic_from(scorer)
    assert not critic.values(torch.tensor(random_ids(2, 7, 7))).any()
    trunk = scorer.model.state_dict()
    assert all(torch.equal(tensor, trunk[name]) for name, tensor in critic.model.state_dict().items())
    assert bool(scorer.score.weight.any())
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(1.0)
    assert all(bool((tensor != trunk[name]).all()) for name, tensor in critic.model.state_dict().items())  # its own


def test_a_head_stays_in_full_precision_under_autocast() -> None:
    scorer = scorer_from(policy().module, torch.Generator().manual_seed(0))
    ids = torch.tensor(random_ids(2, 9, 9))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert scorer.values(ids).dtype == torch.float32
        assert scorer.scores(ids, torch.tensor([9, 9])).dtype == torch.float32


@pytest.mark.parametrize("shape", ["llama", *FALLBACK])
def test_each_task_is_a_row_and_a_critic_has_one(shape: str) -> None:
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(0), 3)
    ids, lengths = torch.tensor(random_ids(2, 7, 7)), torch.tensor([7, 5])
    with torch.no_grad():
        found = scorer.task_scores(ids, lengths)
        assert found.shape == (2, 3) and torch.equal(found[:, 0], scorer.scores(ids, lengths))
        scorer.score.weight[0] = 0
        changed = scorer.task_scores(ids, lengths)
    assert not changed[:, 0].any() and torch.equal(changed[:, 1:], found[:, 1:])
    critic = critic_from(scorer)
    assert critic.score.weight.shape == (1, 32) and critic.values(ids).shape == ids.shape
