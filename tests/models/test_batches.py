"""Batches: masks by hand and never from ids, and no figure that padding could change."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from bridle.models.batches import (
    Batch,
    Compared,
    Cut,
    Group,
    by_length,
    group_batch,
    index_pairs,
    length_batches,
    make_batch,
    masked_logprobs,
    micro_batches,
    pack_answers,
    pad,
    row_sizes,
    sequence_logprobs,
    slices,
    spread,
    tokens_read,
)
from bridle.models.scorer import scorer_from
from tests.models.tiny import CPU, policy, random_ids, template

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
        padded = sequence_logprobs(module, Batch(wide, batch.prompt_lengths_B, batch.lengths_B, batch.prompt_B))
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


def test_every_pass_takes_each_index_once_in_batches_of_similar_length() -> None:
    lengths = [int(n) for n in torch.randint(3, 60, (100,), generator=torch.Generator().manual_seed(0))]
    plans = [length_batches(lengths, 8, 0, "test", epoch) for epoch in (0, 1)]
    for plan in plans:
        assert sorted(i for rows in plan for i in rows) == list(range(100))
        assert all(len(rows) <= 8 for rows in plan)
        spreads = [max(lengths[i] for i in rows) - min(lengths[i] for i in rows) for rows in plan]
        assert sum(spreads) / len(spreads) < 8
    assert plans[0] != plans[1] and plans[0] != length_batches(lengths, 8, 1, "test", 0)
    assert plans[0] == length_batches(lengths, 8, 0, "test", 0)


def test_a_pass_has_batches_of_its_own_and_an_order_of_its_own() -> None:
    """Of 100 rows blocks of 16 batches are sorted, so what is in a batch changes; of 20 in one block nothing but the batches' order."""
    lengths = [3 + i % 50 for i in range(100)]
    together = [{frozenset(rows) for rows in length_batches(lengths, 2, 0, "test", epoch)} for epoch in (0, 1)]
    assert len(together[0] & together[1]) < 10
    passes = [length_batches(list(range(20)), 2, 0, "test", epoch) for epoch in (0, 1)]
    assert passes[0] != passes[1] and sorted(passes[0]) == sorted(passes[1])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 64])
def test_a_step_is_cut_into_parts_of_similar_length(size: int) -> None:
    """Each row once, shortest first, and of equal ones the earlier; rows that are not of the step stay out."""
    rows, lengths = torch.tensor([5, 0, 3, 4, 6]), [7, 1, 1, 3, 3, 9, 2]
    batch = make_batch([[5]] * 7, [[6] * (length - 1) for length in lengths], 0)
    parts = micro_batches(rows, batch, policy().module.model, Cut(size))
    assert torch.cat(parts).tolist() == [6, 3, 4, 0, 5]
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1) and 1 <= len(parts[-1]) <= size


def test_parts_hold_no_more_tokens_than_they_may() -> None:
    """Padding counts, and a prompt that answers share once, where the trunk reads it so; a row that has more goes alone."""
    native, foreign = policy().module.model, policy("gpt2").module.model
    rows = [
        ([prompt + answer] * prompt, [[2] * answer] * answers)
        for prompt, answer, answers in [(4, 2, 3), (4, 4, 1), (9, 1, 1), (30, 2, 2)]
    ]
    sizes = row_sizes((p, a) for p, a in rows)
    assert [tokens_read(size, native) for size in sizes] == [10, 8, 10, 34]
    assert [tokens_read(size, foreign) for size in sizes] == [18, 8, 10, 64]
    assert tokens_read(sizes[0] + sizes[1], native) == 2 * 10 and tokens_read(sizes[1] + sizes[2], native) == 2 * 10
    assert Cut(0, 20).parts(range(4), sizes, native) == [[0, 1], [2], [3]]
    assert Cut(0, 20).parts(range(4), sizes, foreign) == [[0], [1, 2], [3]]
    assert Cut(1, 20).parts([3, 1, 2], sizes, native) == [[3], [1], [2]]
    assert Cut(2).parts([3, 1, 2], sizes, native) == [[3, 1], [2]] and Cut().parts([], sizes, native) == []
    batch = make_batch([p for p, answers in rows for _ in answers], [a for _, answers in rows for a in answers], 0)
    assert packed_places(batch) == tokens_read([size for row in sizes for size in row], native)


def packed_places(batch: Batch) -> int:
    packed = pack_answers(batch)
    return (batch.ids_BW if packed is None else packed.ids_RW).numel()


FIRST = Group([5], [[1], [2, 8], [3]], [(2, 0, 0.5), (2, 1, 0.5)])
SECOND = Group([6, 7], [[4], [5]], [(0, 1, 1.0)])


def test_pairs_index_into_the_answers_of_all_groups() -> None:
    better, worse, weight = index_pairs([FIRST, SECOND], CPU)
    assert better.tolist() == [2, 2, 3] and worse.tolist() == [0, 1, 4] and weight.tolist() == [0.5, 0.5, 1.0]


def test_a_pair_that_is_not_sure_is_turned_round_too_behind_the_others() -> None:
    unsure = replace(SECOND, pairs=[Compared(0, 1, 4.0, 0.75)])
    better, worse, weight = index_pairs([unsure, FIRST], CPU)
    assert better.tolist() == [0, 4, 4, 1] and worse.tolist() == [1, 2, 3, 0] and weight.tolist() == [3, 0.5, 0.5, 1]


def test_every_answer_is_read_once_where_its_pairs_look_for_it() -> None:
    batch = group_batch([FIRST, SECOND], 0, CPU)
    read = [row[:length].tolist() for row, length in zip(batch.ids_BW, batch.lengths_B, strict=True)]
    assert read == [[5, 1], [5, 2, 8], [5, 3], [6, 7, 4], [6, 7, 5]]
    assert batch.prompt_lengths_B.tolist() == [1, 1, 1, 2, 2]
    assert [FIRST.length, SECOND.length] == [3, 3]


# -------------------------------------------------------------------------------- a prompt read once for its answers


def shared_batch(answers: int = 4, prompts: int = 3) -> Batch:
    """Several answers to each prompt, of uneven length, the rows of a prompt not all beside each other."""
    asked = [ids for ids in random_ids(prompts, 3, 9, 1) for _ in range(answers)]
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0)).tolist()
    return make_batch([asked[i] for i in order], random_ids(len(asked), 1, 12, 2), pad_id=0)


def alone(batch: Batch) -> Batch:
    """The same rows, each taken to have a prompt of its own: nothing is shared."""
    return replace(batch, prompt_B=torch.arange(len(batch)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_shared_prompt_changes_neither_log_probs_nor_gradients(family: str) -> None:
    batch = shared_batch()
    packed = pack_answers(batch)
    assert (
        packed is not None and packed.ids_RW.numel() < 0.8 * batch.ids_BW.numel() and pack_answers(alone(batch)) is None
    )
    network = policy(family, dtype=torch.float64).module
    found = []
    for rows in (batch, alone(batch)):
        module = deepcopy(network)
        logp_BT = sequence_logprobs(module, rows)
        (logp_BT * torch.arange(logp_BT.numel()).view_as(logp_BT)).sum().backward()
        found.append((logp_BT.detach(), [p.grad for p in module.parameters()]))
    (shared, shared_grads), (plain, plain_grads) = found
    assert torch.allclose(shared, plain, atol=1e-10)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(shared_grads, plain_grads, strict=True))


def test_an_answer_does_not_see_those_beside_it() -> None:
    module, batch = policy(dtype=torch.float64).module, shared_batch()
    changed = batch.ids_BW.clone()
    inside = torch.arange(changed.shape[1]) >= batch.prompt_lengths_B[:, None]
    changed[1:] = torch.where(inside[1:], (changed[1:] + 7) % 40, changed[1:])
    before, after = (sequence_logprobs(module, replace(batch, ids_BW=ids)) for ids in (batch.ids_BW, changed))
    assert torch.allclose(before[0], after[0], atol=1e-12) and not torch.allclose(before[1], after[1], atol=1e-3)


def test_scores_of_answers_that_share_a_prompt_are_those_of_each_alone() -> None:
    scorer = scorer_from(policy(dtype=torch.float64).module, torch.Generator().manual_seed(0)).double()
    for batch in (shared_batch(), make_batch(random_ids(5, 2, 7), random_ids(5, 1, 9, 1), pad_id=0)):  # and unshared
        found = scorer.batch_scores(batch)[:, 0]
        assert torch.allclose(found, scorer.scores(batch.ids_BW, batch.lengths_B), atol=1e-10)
        last_BD = [scorer.model(ids[None, :n])[0, -1] for ids, n in zip(batch.ids_BW, batch.lengths_B, strict=True)]
        assert torch.allclose(found, torch.stack(last_BD) @ scorer.score.weight[0], atol=1e-10)


@pytest.mark.parametrize(("counts", "rows"), [([8, 8, 8], 3), ([40, 2, 2, 2, 2, 2, 2, 2], None)])
def test_rows_are_shared_where_that_leaves_least_padding(counts: list[int], rows: int | None) -> None:
    """Equal groups have a row each; one of many answers has several, for all rows are as wide as the widest."""
    prompts = [ids for ids, count in zip(random_ids(len(counts), 5, 9, 1), counts, strict=True) for _ in range(count)]
    batch = make_batch(prompts, random_ids(len(prompts), 8, 12, 2), pad_id=0)
    packed = pack_answers(batch)
    assert packed is not None and (len(packed.ids_RW) == rows if rows else len(packed.ids_RW) > len(counts))
    assert packed.ids_RW.numel() < 0.8 * batch.ids_BW.numel()
    module = policy(dtype=torch.float64).module
    assert torch.allclose(sequence_logprobs(module, batch), sequence_logprobs(module, alone(batch)), atol=1e-10)


def test_no_row_is_wider_than_is_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = shared_batch(answers=40, prompts=1)
    packed = pack_answers(batch)
    assert packed is not None and len(packed.ids_RW) == 1
    monkeypatch.setattr("bridle.models.batches.WIDEST", 60)
    packed = pack_answers(batch)
    assert packed is not None and packed.ids_RW.shape[1] <= 60
