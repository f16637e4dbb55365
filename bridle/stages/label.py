"""Simulated people compare the sampled answers."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import permutations
from typing import Any

import numpy as np

from bridle.core.errors import NoUsableRows, UsageError
from bridle.core.records import Judgement
from bridle.core.timeline import timed
from bridle.feedback.rankings import Item
from bridle.playground.gold import CLEAR_GAP
from bridle.stages.data import STUDY, StoreData
from bridle.stages.workspace import Work, done_before, require_model, stage_key


def label_simulated(work: Work, reuse: bool = False) -> dict[str, Any]:
    """Simulated people rank the open items; on the playground their agreement with gold is known."""
    data = work.data
    if isinstance(data, StoreData):
        raise UsageError(
            "simulated people know the playground alone, and this project's data was imported; import comparisons of your own with "
            "`bridle import FILE`"
        )
    with work.alone("label"):
        parents = {"sft": require_model(work, "sft"), "world": data.world_hash}
        unpriced = work.recipe.with_settings({"label.piece_price": 0.0, "label.hour_price": 0.0})
        key = stage_key(unpriced, ("world", "sampling", "data", "label"), parents)
        if (before := done_before(work, "label", key, reuse)) is not None:
            return before
        if not work.store.items(study=STUDY):
            raise NoUsableRows(f"{work.project.store} holds no answers to compare; `bridle sample` draws some")
        with work.start("label", "Simulated people compare the answers", key, parents) as run:
            data.simulate_labels()
            with timed("store"):
                judged = work.store.judgements(study=STUDY)
            agreed: list[float] = []
            for item, judgement in judged:
                scores = data.score([item.prompt] * len(item.completions), item.completions, "agreement")
                agreed += clear_agreement(item, judgement, [score.points for score in scores])
            agreement = float(np.mean(agreed)) if agreed else None
            yardstick = {} if (found := data.yardstick()) is None else {"yardstick": asdict(found)}
            result = {"judgements": len(judged), "agreement_with_gold": agreement, "clear_pairs": len(agreed)}
            return run.finish({**result, **yardstick})


def clear_agreement(item: Item, judgement: Judgement, points: Sequence[float]) -> list[float]:
    """For every two answers of different text that gold clearly tells apart: 1 where the judgement has the same order, one half where
    it ties them, else 0."""
    rank_of = {slot: rank for rank, group in enumerate(judgement.ranking) for slot in group}
    pairs = [(a, b) for a, b in permutations(range(len(points)), 2) if points[a] - points[b] > CLEAR_GAP]
    texts = [completion.stripped for completion in item.completions]
    return [0.5 + 0.5 * float(np.sign(rank_of[b] - rank_of[a])) for a, b in pairs if texts[a] != texts[b]]
