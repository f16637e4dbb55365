"""Best of n by the reward model, with nothing trained."""

from typing import Any

import numpy as np

from bridle.evaluation.answers import proxy_scores
from bridle.maths.statistics import best_of_n_kl, expected_best_of_n, mean_and_se
from bridle.stages.rewards import learned_reward, member_parents
from bridle.stages.workspace import Work, done_before, require_model, stage_key


def evaluate_best_of(work: Work, n: int = 4, reuse: bool = False) -> dict[str, Any]:
    """What choosing the best of n answers by the reward model is worth, with nothing trained: by gold where it is known.

    n answers of SFT to each held-out prompt; every smaller number of them follows from the same answers, without bias.
    """
    recipe, stage = work.recipe, f"best-of-{n}"
    with work.alone(stage):
        parents = {
            "sft": require_model(work, "sft"),
            **member_parents(work),
            "world": work.data.world_hash,
        }
        key = stage_key(recipe, ("model", "data", "sampling"), parents)
        if (before := done_before(work, stage, key, reuse)) is not None:
            return before
        with work.start(stage, f"Choosing the best of {n} answers by the reward model", key, parents) as run:
            policy = work.read_policy(work.project.model("sft"))
            prompts = work.fitting(policy, work.data.heldout_prompts())
            asked = [prompt for prompt in prompts for _ in range(n)]
            answered = work.answer(policy, asked, stage)
            proxy_PN = np.array(proxy_scores(answered, learned_reward(work, policy))).reshape(-1, n)
            values = {"proxy": proxy_PN}
            if golds := work.data.score(asked, answered.completions, "evaluation"):
                values["gold"] = np.array([score.points for score in golds]).reshape(-1, n)
            frontier, names = [], [prompt.id for prompt in prompts]
            for size in sorted({*(2**i for i in range(n.bit_length())), n}):
                point: dict[str, float] = {"n": size, "kl": best_of_n_kl(size)}
                for name, values_PN in values.items():
                    expected_P = expected_best_of_n(proxy_PN, size, values_PN)
                    point[name], point[f"{name}_se"] = mean_and_se(expected_P, names)
                frontier.append(point)
            return run.finish({**frontier[-1], "prompts": len(prompts), "frontier": frontier})
