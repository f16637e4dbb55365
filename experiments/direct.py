"""E11 on the playground: DPO and PPO learn from the same comparisons; what each gains in gold for how far it goes.

Both begin at a seed's SFT, each with a row of β: DPO's holds it to SFT by its loss, PPO's is the price of a nat in the reward of a reward
model that learnt the same comparisons. DPO does not see how far its own answers are from SFT's, so that KL is measured by sampling.
Where both are equally far is read off the lines between a method's points. Of DPO it is also told how often its implicit reward,
log π - log π_ref, is right on held-out pairs, beside the reward model, and what became of the answers that it learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridle.evaluation.reward_tests import AnswerPair
from bridle.generation.reference import read_logprobs
from bridle.models.batches import Group
from bridle.models.policy import Policy
from bridle.stages.methods import METHODS
from bridle.stages.reward import heldout_pairs
from bridle.stages.workspace import Work
from experiments.ensembles import Curve, curve_of
from experiments.harness import Claim, Experiment, Row
from experiments.playground import HALF, Floats, Halves, in_lab

BETAS = {"dpo": (0.03, 0.1, 0.3, 1.0), "ppo": (0.03, 0.1, 0.3)}
HELD = {
    "dpo": {"observe_every": 10_000},
    "ppo": {"kl_target": 0.0},
}  # β stays as it is; DPO's KL is measured at the end
EQUAL_KL = (0.5, 1.0, 2.0, 4.0)  # nats an answer


def measure_in(work: Work, prompts: Halves, settings: Mapping[str, Any]) -> Row:
    """`settings` are E3's, and not of these runs."""
    row, curves = dict[str, float](), dict[str, Curve]()
    for method, betas in BETAS.items():
        kept = {0: work.project.model("sft")}
        for number, beta in enumerate(betas, 1):
            name = f"{method}-{beta:g}"
            held = {"beta" if method == "dpo" else "kl_coef": beta, **HELD[method]}
            METHODS[method].train(work, name=name, settings=held, reuse=True)
            kept[number] = work.project.model(name)
        curves[method] = curve_of(work, kept, prompts)
        for number, beta in enumerate(betas, 1):
            kl, gold = curves[method][number]
            row |= {f"{method} {beta:g}: KL": kl, f"{method} {beta:g}: gain": gold - curves[method][0][1]}
        row[f"{method}: KL falls with β"] = curves[method][1][0] - curves[method][len(betas)][0]
    for kl in EQUAL_KL:
        found = [gold_between(curves[method], kl) for method in ("dpo", "ppo")]
        if np.isfinite(found).all():
            row[f"dpo - ppo at {kl:g} nats"] = found[0] - found[1]
    return row | implicit(work)


def gold_between(curve: Curve, kl: float) -> float:
    """Gold on the line between the two points about `kl`, by their KL; not a number where no point is so far."""
    far, gold = zip(*sorted(curve.values()), strict=True)
    return float(np.interp(kl, far, gold, right=np.nan))


def implicit(work: Work) -> dict[str, float]:
    """Of each DPO how often its implicit reward is right on held-out pairs by gold, and how much likelier than under SFT the better and the
    worse answers of held-out pairs by people are, in nats; and how often the reward model is right."""
    by_people, by_gold = heldout_pairs(work)
    sft = work.read_policy(work.project.model("sft"))
    learnt = work.project.finished("reward")
    assert learnt is not None
    row = {"reward model: right": float(learnt["pair_accuracy"])}
    for beta in BETAS["dpo"]:
        policy = work.read_policy(work.project.model(f"dpo-{beta:g}"))
        lead_P = np.subtract(*likelier(work, policy, sft, by_gold))
        row[f"dpo {beta:g}: right"] = float((np.sign(lead_P) + 1).mean() / 2)
        better_P, worse_P = likelier(work, policy, sft, by_people)
        row |= {f"dpo {beta:g}: better": float(better_P.mean()), f"dpo {beta:g}: worse": float(worse_P.mean())}
        row[f"dpo {beta:g}: right - reward model's"] = row[f"dpo {beta:g}: right"] - row["reward model: right"]
    return row


def likelier(work: Work, policy: Policy, sft: Policy, pairs: Sequence[AnswerPair]) -> tuple[Floats, Floats]:
    """log π - log π_SFT of the better and of the worse answer of each pair, [P] each; pairs of equal text are left out."""
    different = [(p, better, worse) for p, better, worse in pairs if better.stripped != worse.stripped]
    ids = policy.template.prompt_ids([prompt for prompt, _, _ in different])
    groups = [
        Group(asked, [list(better.token_ids), list(worse.token_ids)])
        for asked, (_, better, worse) in zip(ids, different, strict=True)
    ]
    own, before = (read_logprobs(model, groups, work.device) for model in (policy, sft))
    gap_P2 = np.array([(a - b).tolist() for a, b in zip(own, before, strict=True)])
    return gap_P2[:, 0], gap_P2[:, 1]


NAMES = {"dpo": "DPO", "ppo": "PPO"}
EXPERIMENT = Experiment(
    name="E11",
    title="DPO and PPO on the same comparisons: gold against KL",
    setting="Playground; the recipe's DPO (one pass over the comparisons) and PPO (12 steps on the reward model that learnt them), "
    f"each at a row of fixed β. Gold in points over SFT's, and KL in nats an answer, of fresh answers to {HALF} held-out prompts. At "
    "equal KL: on the lines between a method's points, SFT among them; a seed counts where both go so far. No bound is set but for the "
    "controls.",
    measure=in_lab(measure_in),
    seeds=range(5),
    claims=[
        *(Claim(f"dpo - ppo at {kl:g} nats", f"gold of DPO less that of PPO at {kl:g} nats") for kl in EQUAL_KL),
        *(
            Claim(f"{method} {beta:g}: {figure}", f"{NAMES[method]}, β = {beta:g}: {meaning}")
            for method, betas in BETAS.items()
            for beta in betas
            for figure, meaning in (("gain", "gain of gold"), ("KL", "KL, nats an answer"))
        ),
        Claim("reward model: right", "reward model: right on held-out pairs, by gold"),
        *(
            Claim(f"dpo {beta:g}: {figure}", f"DPO, β = {beta:g}: {meaning}")
            for beta in BETAS["dpo"]
            for figure, meaning in (
                ("right", "its implicit reward is right"),
                ("right - reward model's", "the same less the reward model's"),
                ("better", "log π of preferred answers less SFT's, nats"),
                ("worse", "the same of those not preferred"),
            )
        ),
    ],
    controls=[
        Claim(f"{method}: KL falls with β", f"{NAMES[method]}: KL at the least β less that at the greatest", "every", at_least=0)
        for method in BETAS
    ],
)  # fmt: skip
