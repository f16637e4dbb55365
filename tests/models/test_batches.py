"""Batches: masks by hand and never from ids, and no figure that padding could change."""

import pytest
import torch

from bridle.models.batches import Batch, by_length, make_batch, masked_logprobs, pad, sequence_logprobs, slices, spread
from tests.models.tiny import policy, random_ids, template

T, F = True, False


def test_the_example_of_the_docstring() -> None:
    batch = make_batch([[5, 6]], [[7, 1]], 0)
    assert pad([[5, 6, 7, 1], [1, 2, 3, 4, 5]], 0).tolist() == [[5, 6, 7, 1, 0], [1, 2, 3, 4, 5]]
    assert batch.ids_BW.tolist() == [[5, 6, 7, 1]]
    assert batch.mask_BT.tolist() == [[F, T, T]]
    assert make_batch([[5, 6], [3]], [[7, 1], [4, 4, 4, 1]], 0).mask_BT.tolist() == [[F, T, T, F], [T, T, T, T]]


def test_masks_do_not_look_at_ids() -> None:
    """A pad token inside a prompt or an answer, or padding with a stop token, changes nothing."""
    lengths = [[5, 6], [7, 1]]
    plain = make_batch([lengths[0], [3]], [lengths[1], [4, 4, 4]], 0)
    odd = make_batch([[0, 0], [0]], [[0, 0], [0, 4, 0]], 0)
    stops = make_batch([lengths[0], [3]], [lengths[1], [4, 4, 4]], 1)
    assert torch.equal(odd.mask_BT, plain.mask_BT)
    assert torch.equal(stops.mask_BT, plain.mask_BT)
    assert int(plain.mask_BT.sum()) == 5


def test_rows_are_as_wide_as_the_longest_of_them() -> None:
    batch = make_batch([[1, 2], [3], [4, 5, 6]], [[7], [8, 9], [10, 11, 12]], 0)
    part = batch.rows(torch.tensor([1, 0]))
    assert part.ids_BW.tolist() == [[3, 8, 9], [1, 2, 7]]
    assert part.mask_BT.tolist() == [[T, T], [F, T]]
    assert len(part) == 2 and len(batch) == 3


def test_log_probs_are_those_of_the_taken_tokens() -> None:
    module = policy().module
    prompts, answers = random_ids(5, 1, 9, seed=1), random_ids(5, 1, 12, seed=2)
    batch = make_batch(prompts, answers, 0)
    with torch.no_grad():
        found = sequence_logprobs(module, batch, 0.7)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids = torch.tensor([[*prompt, *answer]])
            table = (module(ids)[0] / 0.7).log_softmax(-1)
            expected = [float(table[len(prompt) + i - 1, token]) for i, token in enumerate(answer)]
            start = len(prompt) - 1
            assert found[row, start : start + len(answer)].tolist() == pytest.approx(expected, abs=1e-5)
        assert torch.equal(masked_logprobs(module, batch, 0.7), found[batch.mask_BT])
    assert not found[~batch.mask_BT].any()


def test_log_probs_do_not_depend_on_padding_or_company() -> None:
    module = policy("qwen3").module
    prompts, answers = random_ids(6, 1, 20, seed=3), random_ids(6, 1, 20, seed=4)
    batch = make_batch(prompts, answers, template().pad_id)
    wide = torch.nn.functional.pad(batch.ids_BW, (0, 17), value=9)
    with torch.no_grad():
        found = sequence_logprobs(module, batch)
        padded = sequence_logprobs(module, Batch(wide, batch.prompt_lengths_B, batch.lengths_B))
        torch.testing.assert_close(padded[:, : found.shape[1]], found, rtol=0, atol=1e-5)
        assert not padded[:, found.shape[1] :].any()
        for i in range(6):
            alone = sequence_logprobs(module, make_batch(prompts[i : i + 1], answers[i : i + 1], 0))
            torch.testing.assert_close(found[i, : alone.shape[1]], alone[0], rtol=0, atol=1e-5)


def test_the_stop_token_is_trained_and_the_prompt_is_not() -> None:
    """Raising an answer's log-probs raises the output rows of its tokens, the stop's too, and no prompt's."""
    module = policy("llama").module
    sequence_logprobs(module, make_batch([[5, 6]], [[7, template().eos_id]], 0)).sum().backward()
    hidden = module.hidden(torch.tensor([[5, 6, 7, template().eos_id]]))[0].detach()
    gradient = module.output_weight().grad
    assert gradient is not None
    probs = module.logits(hidden).softmax(1).detach()
    for token in (5, 6, 7, template().eos_id, 100):
        taken = {7: hidden[1], template().eos_id: hidden[2]}.get(token, torch.zeros(32))
        expected = taken - probs[1, token] * hidden[1] - probs[2, token] * hidden[2]
        torch.testing.assert_close(gradient[token], expected, rtol=0, atol=1e-4)


def test_values_go_back_where_the_mask_holds() -> None:
    mask = torch.tensor([[F, T, T], [T, F, F]])
    assert spread(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]


def test_slices_cover_all_once() -> None:
    assert [(s.start, s.stop) for s in slices(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert list(slices(0, 3)) == []


def test_by_length_sorts_and_keeps_each_row_once() -> None:
    groups = by_length([5, 1, 5, 3, 2], 2)
    assert groups == [[1, 4], [3, 0], [2]]
