"""Several answers to each prompt, into the store, to be compared: some at random, the others by what they teach a reward model."""

import math
from typing import Any

from bridle.compute.randomness import derived_seed
from bridle.core.timeline import timed
from bridle.feedback.store.reading import taken_down
from bridle.feedback.store.studies import mark_items, set_priorities
from bridle.generation.engine import answer_prompts
from bridle.generation.sampling import Sampling
from bridle.project.progress import count_through
from bridle.stages.data import SAMPLE, STUDY, draw_rows, ids_of
from bridle.stages.rewards import keep_scores
from bridle.stages.workspace import Work, done_before, require_model, stage_key


def sample(work: Work, reuse: bool = False, model: str = "sft", most: int = 0) -> dict[str, Any]:
    """K nucleus samples of a model for each training prompt and some held-out ones, one item each, into the store. `most`: training
    prompts at most, and of the held-out ones the same share; 0: all. What SFT answered before stays: another model's answers to the same
    prompts are a next round of comparisons."""
    recipe, k = work.recipe, work.recipe.sampling.answers
    stage = "sample" if model == "sft" else f"sample-{model}"
    with work.alone(stage):
        content = require_model(work, model)
        parents = {"sft": content} if model == "sft" else {"model": content, "name": model}
        parents |= {"most": str(most)} if most else {}
        key = stage_key(recipe, ("model", "sampling", "data"), parents)
        if (before := done_before(work, stage, key, reuse)) is not None:
            return before
        with work.start(stage, f"Sampling {k} answers of {model} to each prompt", key, parents) as run:
            policy = work.read_policy(work.project.model(model))
            train = work.data.train_prompts()
            few = 0 < most < len(train)
            seed = derived_seed(recipe.seed, stage, 0)  # another model is asked other prompts
            prompts = work.fitting(
                policy, draw_rows(train, ids_of(train), most, seed, "for this round") if few else train
            )
            heldout = work.data.compared_heldout()
            share = math.ceil(len(heldout) * most / len(train)) if few else len(heldout)
            drawn = draw_rows(heldout, ids_of(heldout), share, seed, "for this round")
            prompts += work.fitting(policy, drawn, "held-out prompts")
            asked = [prompt for prompt in prompts for _ in range(k)]
            section = recipe.sampling
            settings = Sampling(section.max_new_tokens, section.temperature, section.top_p, section.top_k)
            with timed("pack"):
                work.engine.load(policy)
            report = count_through(len(asked), work.progress)
            with timed("answer"):
                completions = answer_prompts(work.engine, policy, asked, settings, seed=seed, progress=report)
            with timed("store"), work.store.transaction() as one:
                one.add_completions(completions, source=SAMPLE)
                with one.reading() as connection:
                    gone = taken_down(connection)  # what has such a text was not stored
                groups = [completions[i : i + k] for i in range(0, len(completions), k)]
                groups = [g for g in groups if gone.isdisjoint(answer.id for answer in g)]
                items = one.add_items([g for g in groups if len({c.stripped for c in g}) > 1], study=STUDY)
                mark_items(one, STUDY, items)
            with timed("score"):
                kept = [pair for pair in zip(asked, completions, strict=True) if pair[1].id not in gone]
                keep_scores(work, policy, [prompt for prompt, _ in kept], [answer for _, answer in kept])
                set_priorities(work.store, STUDY)
            return run.finish({"prompts": len(prompts), "answers": len(completions), "items": len(items)})
