"""Five reward models on the world of tables: what they learn from, what is compared, and where runs are equally far."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments import table_ensembles
from experiments.table_ensembles import gain_at, learn_five, measure, resampled
from experiments.tabular import Labels, Practice, label, learn_reward, make_world


def test_the_first_of_five_learns_from_all_labels_and_the_others_from_draws_of_them() -> None:
    score_MRA = learn_five(make_world([4, 5]))
    world = make_world([4, 5])
    labels = label(world, world.reference_RSV, table_ensembles.PAIRS, table_ensembles.NOISE, "labels")
    assert torch.equal(score_MRA[0], learn_reward(world, labels))
    assert len({float(score_RA[0, 7]) for score_RA in score_MRA}) == 5
    drawn = resampled(labels, world.draws)
    rows = [set(zip(*(each[0].tolist() for each in of), strict=True)) for of in (labels, drawn)]
    assert rows[1] < rows[0] and drawn.won_RP.shape == labels.won_RP.shape, "a pair keeps its label"
    few = Labels(*(each[:, :3] for each in labels))
    again = [resampled(few, [torch.Generator().manual_seed(n), *world.draws[1:]]).first_RP[0] for n in range(9)]
    assert len({tuple(row.tolist()) for row in again}) > 3


def test_gain_is_told_where_a_run_first_is_so_far() -> None:
    kl_RC = np.array([[0.0, 2.0, 1.0, 4.0], [0.0, 0.5, 1.0, 1.5]])
    gain_RC = np.array([[0.0, 1.0, 5.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    assert gain_at(kl_RC, gain_RC, 1.0) == pytest.approx([0.5, 2.0])
    assert gain_at(kl_RC, gain_RC, 3.0)[0] == pytest.approx(4.0), (
        "from the farthest before, not from where it came back to"
    )
    assert np.isnan(gain_at(kl_RC, gain_RC, 2.0)).tolist() == [False, True]


def test_a_seed_of_tables_compares_its_runs() -> None:
    row = measure(3, worlds=2, practice=Practice(steps=6))
    assert row["min - one"] == pytest.approx(row["min: end"] - row["one: end"]) != 0
    assert row["uwo - slower"] == pytest.approx(row["uwo: end"] - row["slower: end"]) != 0
    assert row["slower: KL at the end"] < row["one: KL at the end"], "it learns at a lower rate"
    assert "min - one at 8 nats" not in row, "nowhere as far as that"
    assert row["one: accuracy"] > 0.6 and row["gold as reward: fall"] == 0
