"""A reference without finite log-probs: the run ends before the step, named for what it is, and the steps before are saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.compute.checkpoint import load_tensors, save_tensors
from bridle.core.errors import TrainingStopped
from bridle.core.files import file_hash
from bridle.core.records import Completion, Prompt
from bridle.generation import reference as reading
from bridle.recipe.offline import DPOSection
from bridle.recipe.online import GRPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.training import dpo, grpo, rebel, rejection, rloo
from tests.models.tiny import one_sentence
from tests.models.tiny import policy as tiny_policy
from tests.training.practice import PROMPTS, cast, token_means
from tests.training.runs import groups, metrics, run_in, same, session, weights

BIG: dict[str, Any] = {"prompts_per_step": 2, "checkpoint_every": 50}
TRAINERS: dict[str, tuple[Any, Any]] = {
    "grpo": (grpo.train, GRPOSection(steps=3, group_size=2, **BIG)),
    "rloo": (rloo.train, RLOOSection(steps=3, group_size=2, **BIG)),
    "rebel": (rebel.train, REBELSection(steps=3, **BIG)),
    "rejection": (rejection.train, RejectionSection(rounds=3, prompts_per_round=8, answers=2, checkpoint_every=50)),
    "dpo": (
        dpo.train_online,
        DPOSection(online_rounds=3, online_prompts=2, online_answers=2, missing_stop_penalty=0.0),
    ),
}
SENTENCE = r"the reference's log-probs of (\d+) of \1 answers are not finite, so they have no KL, and no step was taken"


@pytest.mark.parametrize("name", TRAINERS)
def test_it_ends_the_run_saved_and_before_the_step(name: str, tmp_path: Path) -> None:
    who, run, kept = cast(), run_in(tmp_path), list[dict[str, Tensor]]()

    def breaking(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        if len(metrics(tmp_path)) == 1:
            run.last_save = 0  # as if the step before had not been due
            who.reference.module.output_weight().data[7] = float("nan")
            kept.append(weights(who.policy.module))
        return token_means(prompts, completions)

    train, config = TRAINERS[name]
    with pytest.raises(TrainingStopped, match=SENTENCE) as caught:
        train(who.policy, who.reference, breaking, PROMPTS, config, who.session(run, tokens=24))
    assert one_sentence(str(caught.value)) and same(kept[0], who.policy.module)
    assert len(metrics(tmp_path)) == 1 and run.last_save == 1


@pytest.mark.parametrize("known", [False, True])
def test_dpo_says_so_before_its_first_step_also_of_what_an_earlier_run_kept(known: bool, tmp_path: Path) -> None:
    who, reference, cache = tiny_policy(), tiny_policy(), tmp_path / "cache"
    before = weights(who.module)
    if known:
        reading.cached_logprobs(
            reference, groups(2, seed=0), session(run_in(tmp_path)).device, cache, lambda text: None
        )
        [file] = cache.glob(f"*/{reading.CACHE_FILE}")
        save_tensors({"logp": load_tensors(file)["logp"] * torch.nan}, file)
        file.with_name(reading.CACHE_HASH).write_text(file_hash(file))
    else:
        reference.module.output_weight().data[7] = float("nan")
    with pytest.raises(TrainingStopped, match="the reference's log-probs of 8 of 8 answers are not finite"):
        dpo.train(who, reference, groups(2, seed=0), DPOSection(), session(run_in(tmp_path)), cache)
    assert same(before, who.module) and not metrics(tmp_path)
    assert known or not cache.exists(), "nothing broken is kept"
