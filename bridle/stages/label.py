"""Simulated people compare the sampled answers."""

from typing import Any

from bridle.core.timeline import timed
from bridle.stages.data import STUDY
from bridle.stages.workspace import Work, done_before, require_model, stage_key

CLEAR_GAP = 0.25  # gold points: closer answers are no fair test of labelers or of a reward model


def label_simulated(work: Work, reuse: bool = False) -> dict[str, Any]:
    """Simulated people rank the open items; on the playground their agreement with gold is known."""
    parents = {"sft": require_model(work.project, "sft"), "world": work.data.world_hash}
    key = stage_key(work.recipe, ("world", "sampling", "data"), parents)
    if (before := done_before(work, "label", key, reuse)) is not None:
        return before
    with work.start("label", "People compare the answers (simulated)", key, parents) as run:
        work.data.simulate_labels()
        agreed = clear = 0
        with timed("store"):
            judged = work.store.judgements(study=STUDY)
        for item, judgement in judged:
            scores = work.data.score([item.prompt] * len(item.completions), item.completions, "agreement")
            rank_of = {slot: i for i, group in enumerate(judgement.ranking) for slot in group}
            for a in range(len(scores)):
                for b in range(a):
                    gap = scores[a].points - scores[b].points
                    if abs(gap) > CLEAR_GAP and rank_of[a] != rank_of[b]:
                        clear += 1
                        agreed += (gap > 0) == (rank_of[a] < rank_of[b])
        agreement = agreed / max(1, clear)
        return run.finish({"judgements": len(judged), "agreement_with_gold": agreement, "clear_pairs": clear})
