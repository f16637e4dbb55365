"""Settings for a model that the user brings, by its number of parameters: one table, with the source of each value.

A value is given at some sizes: at the playground's 1.6M parameters, for which the defaults of the recipe are made, and at those that
recipes were published for, from 0.5B on. Between two of them it lies on the straight line in the logarithms of both, outside it is that
of the nearest one. No rate is above CEILING: a small model is somebody's work too.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bridle.recipe.base import TrainerSection
from bridle.recipe.data import ModelSection

SMALL, SMALLEST_PUBLISHED, LARGEST_PUBLISHED = 1_600_000, 500_000_000, 8_000_000_000  # parameters
CEILING = 1e-4  # of every rate of weights that the user brings
NEW_CEILING = 1e-3  # of weights that are made new
NATS_PER_TOKEN = 0.02  # of the longest answer: the playground's 1.5 nats of 72 tokens, and some 10 nats of 512
ADAPTERS_RATE = 10  # times the rate of all weights (Schulman 2025, LoRA Without Regret); what is trained from nothing has no adapter
TOO_HIGH = 10  # times the rule's rate: worth a warning

# What a value is at these numbers of parameters.
Points = Sequence[tuple[int, float]]

# What each of them says, at which size; compared with the papers' texts, and N+ and RLOO with code that reproduces them:
# SFT 2e-5 by a cosine, weight decay .1, batch 64 (§3.1, 7B to 70B); reward model 1e-5, of 70B 5e-6, by a cosine after 3% (§3.2.2);
# PPO AdamW (.9, .95, 1e-5), weight decay .1, 1e-6 throughout, clip .2 (§3.2.3).
LLAMA_2 = "Touvron 2023, arxiv.org/abs/2307.09288"
INSTRUCT_GPT = "Ouyang 2022, arxiv.org/abs/2203.02155"  # SFT 9.65e-6 (appendix C.1, 1.3B and 6B)
# 7B: DPO 5e-7, linear after 10%, batch 32, β .1 (§4.4); SFT 2e-5 by a cosine after 10% (§4.3); no weight decay (§4).
ZEPHYR = "Tunstall 2023, arxiv.org/abs/2310.16944"
N_PLUS = "Huang 2024, arxiv.org/abs/2403.17031"  # PPO β .05 at 3e-6, reward model in batches of 64 (1B to 6.9B)
GRPO = "Shao 2024, arxiv.org/abs/2402.03300"  # 7B: 1e-6, β .04 (§4.2)
RLOO = "Ahmadian 2024, arxiv.org/abs/2402.14740"  # 7B: 1e-6, β .03 (appendix C)
# 8B: KTO 5e-6 at β .1 (the authors' code, github.com/ContextualAI/HALOs, README).
KTO = "Ethayarajh 2024, arxiv.org/abs/2402.01306"
# 7B: ORPO 5e-6, 8 pairs on each of 4 GPUs, λ .1 (the authors' code, github.com/xfactlab/orpo, scripts/run_mistral_orpo_beta.sh).
ORPO = "Hong 2024, arxiv.org/abs/2403.07691"
MEMORY = "what fits in memory; it changes memory and speed only"


IMITATION: Points = ((SMALL, 1e-3), (SMALLEST_PUBLISHED, 2e-5), (LARGEST_PUBLISHED, 1e-5))
SCORING: Points = ((SMALL, 5e-4), (SMALLEST_PUBLISHED, 1e-5))
PRACTICE: Points = ((SMALL, 5e-4), (SMALLEST_PUBLISHED, 1e-6))
AT_ONCE: Points = ((SMALL, 32), (LARGEST_PUBLISHED, 1))

RATES: Mapping[str, tuple[Points, str]] = {
    "pretrain.learning_rate": (IMITATION, "as SFT; your model is the base, and nothing is pretrained"),
    "sft.learning_rate": (IMITATION, f"2e-5: {LLAMA_2}; 1e-5: {INSTRUCT_GPT}"),
    "reward.learning_rate": (SCORING, LLAMA_2),
    "reward.slim_learning_rate": (
        ((SMALL, 1.5e-3), (SMALLEST_PUBLISHED, 1.5e-3)),
        "made from nothing, whatever your model is",
    ),
    "ppo.learning_rate": (PRACTICE, LLAMA_2),
    "ppo.critic_learning_rate": (SCORING, "as the reward model, whose weights it begins with"),
    "dpo.learning_rate": (((SMALL, 5e-4), (SMALLEST_PUBLISHED, 5e-7)), ZEPHYR),
    "kto.learning_rate": (((SMALL, 5e-4), (SMALLEST_PUBLISHED, 5e-6)), KTO),
    "orpo.learning_rate": (((SMALL, 5e-4), (SMALLEST_PUBLISHED, 5e-6)), ORPO),
    "grpo.learning_rate": (PRACTICE, GRPO),
    "rloo.learning_rate": (PRACTICE, RLOO),
    "rebel.learning_rate": (PRACTICE, "as RLOO"),
    "rejection.learning_rate": (IMITATION, "as SFT"),
    "constitution.learning_rate": (IMITATION, "as SFT"),
}
MADE_NEW = ("reward.slim_learning_rate",)
WITHOUT_ADAPTER = (*MADE_NEW, "pretrain.learning_rate")
WEIGHTS: Mapping[str, tuple[Points, str]] = {  # β
    "ppo.kl_coef": (((SMALL, 0.12), (SMALLEST_PUBLISHED, 0.05)), N_PLUS),
    "dpo.beta": (((SMALL, 0.3), (SMALLEST_PUBLISHED, 0.1)), ZEPHYR),
    "kto.beta": (((SMALL, 0.3), (SMALLEST_PUBLISHED, 0.1)), KTO),
    "grpo.kl_coef": (((SMALL, 0.02), (SMALLEST_PUBLISHED, 0.04)), GRPO),
    "rloo.kl_coef": (((SMALL, 0.1), (SMALLEST_PUBLISHED, 0.03)), RLOO),
    "rebel.kl_coef": (((SMALL, 0.1), (SMALLEST_PUBLISHED, 0.03)), "as RLOO"),
}
COUNTS: Mapping[str, tuple[Points, str]] = {  # powers of two
    "sft.batch_size": (((SMALL, 16), (SMALLEST_PUBLISHED, 64)), LLAMA_2),
    "reward.batch_size": (((SMALL, 8), (SMALLEST_PUBLISHED, 64)), N_PLUS),
    "dpo.batch_size": (((SMALL, 16), (SMALLEST_PUBLISHED, 32)), ZEPHYR),
    "kto.batch_size": (((SMALL, 16), (SMALLEST_PUBLISHED, 32)), "as DPO"),
    "orpo.batch_size": (((SMALL, 16), (SMALLEST_PUBLISHED, 32)), ORPO),
    "rejection.batch_size": (((SMALL, 16), (SMALLEST_PUBLISHED, 64)), "as SFT"),
    "constitution.batch_size": (((SMALL, 16), (SMALLEST_PUBLISHED, 64)), "as SFT"),
    **{f"{name}.micro_batch": (AT_ONCE, MEMORY) for name in ("sft", "reward", "dpo", "kto", "orpo", "constitution")},
    **{f"{name}.batch_size": (AT_ONCE, MEMORY) for name in ("ppo", "grpo", "rloo", "rebel")},
}
CLIPS = ("ppo.clip", "grpo.clip", "grpo.clip_high", "rloo.clip")  # ε, of every size
TRAINERS = (
    "pretrain", "sft", "reward", "ppo", "dpo", "kto", "orpo", "grpo", "rloo", "rebel", "rejection", "constitution",
)  # fmt: skip


@dataclass(frozen=True)
class Suited:
    """A setting's value, and why it is that: a comment for bridle.toml."""

    value: Any
    why: str


def settings_by_size(parameters: int, context: int, tokens: int = 0, lora: bool = False) -> dict[str, Suited]:
    """Every setting that follows from a model's size, by its dotted key. `context` in tokens; `tokens`: the longest answer, where the user
    has chosen it; 0: by size. `lora`: it learns by an adapter."""
    rule = f"by size {size_text(parameters)}"
    found = {}
    for dotted, (points, source) in RATES.items():
        adapter = f", and {ADAPTERS_RATE} times that for an adapter" if lora and dotted not in WITHOUT_ADAPTER else ""
        found[dotted] = Suited(
            rate_by_size(dotted, parameters, lora),
            f"{rule}: {points_text(points)}, {CEILING:g} at most{adapter}; {source}",
        )
    for dotted, (points, source) in WEIGHTS.items():
        found[dotted] = Suited(rounded(between(points, parameters)), f"{rule}: {points_text(points)}; {source}")
    for dotted, (points, source) in COUNTS.items():
        found[dotted] = Suited(power_of_two(between(points, parameters)), f"{rule}: {points_text(points)}; {source}")
    for name in TRAINERS:
        found[f"{name}.optimizer"] = Suited("adamw", f"of every size; {LLAMA_2}")
    for dotted in CLIPS:
        found[dotted] = Suited(0.2, "of every size; Schulman 2017, arxiv.org/abs/1707.06347")
    points = ((SMALL, 72), (SMALLEST_PUBLISHED, 512))
    by_rule = max(1, min(round(between(points, parameters)), context // 4))
    why = f"{rule}: {points_text(points)}, and a quarter of the context of {context} at most"
    found["sampling.max_new_tokens"] = Suited(by_rule, why)
    longest = tokens or by_rule
    why = f"{NATS_PER_TOKEN:g} nats for each of the {longest} tokens of the longest answer (docs/ppo.md, choosing β)"
    found["ppo.kl_target"] = Suited(rounded(NATS_PER_TOKEN * longest), why)
    return found


def settings_by_shape(shape: Mapping[str, int]) -> dict[str, Suited]:
    """The settings of [model] as the user's model has them: what a later `bridle.toml` says of it is true."""
    found = {}
    for name, value in shape.items():
        try:
            ModelSection(**{name: value})  # type: ignore[arg-type]
        except ValidationError:  # a setting for models made from nothing, which are less odd
            default = ModelSection.model_fields[name].default
            found[f"model.{name}"] = Suited(default, f"your model has {value}, which this setting cannot hold; unused")
        else:
            found[f"model.{name}"] = Suited(value, "your model's")
    return found


def rate_by_size(dotted: str, parameters: int, lora: bool = False) -> float:
    points, _ = RATES[dotted]
    rate = min(rounded(between(points, parameters)), NEW_CEILING if dotted in MADE_NEW else CEILING)
    return rounded(ADAPTERS_RATE * rate) if lora and dotted not in WITHOUT_ADAPTER else rate


def odd_rates(
    name: str, section: TrainerSection, parameters: int, lora: bool = False, way: str = "--set "
) -> list[str]:
    """A sentence for each rate of a trainer's section that is far above what the rule gives a model of so many parameters, or, of an
    adapter, no more than suits all weights; `way` is how settings are given."""
    found, size = [], size_text(parameters)
    for key, rate in section.model_dump().items():
        dotted = f"{name}.{key}"
        if dotted not in RATES:
            continue
        usual = rate_by_size(dotted, parameters, lora)
        if lora and dotted not in WITHOUT_ADAPTER and 0 < rate <= 1.001 * usual / ADAPTERS_RATE:
            found.append(
                f"{dotted} = {rate:g} suits all weights of a model of {size} parameters; an adapter learns at about {ADAPTERS_RATE} times "
                f"that: {way}{dotted}={usual:g}"
            )
        if rate > 1.001 * TOO_HIGH * usual:
            found.append(
                f"{dotted} = {rate:g} is {rate / usual:.0f} times the {usual:g} that suits a model of {size} parameters, and may undo what "
                f"yours has learnt; {way}{dotted}={usual:g} is by that rule"
            )
    return found


def lines_by_size(
    name: str, section: TrainerSection, parameters: int, chosen: Set[str], lora: bool = False
) -> list[str]:
    """What a call from Python says of a section's settings: those that were `chosen` by size, and rates that are far above the rule."""
    by_size = ", ".join(f"{key} = {value!r}" for key, value in section.model_dump().items() if key in chosen)
    suited = f"by your model's {size_text(parameters)} parameters, what was not given: {by_size or 'nothing'}"
    return [suited, *odd_rates(name, section, parameters, lora, way="")]


def between(points: Points, parameters: int) -> float:
    """The value at a size, on straight lines in the logarithms of both; beyond the ends that of the nearest end."""
    (first, value), last = points[0], points[-1]
    if parameters <= first:
        return value
    for (low, below), (high, above) in zip(points, points[1:], strict=False):
        if parameters <= high:
            share = math.log(parameters / low) / math.log(high / low)
            return float(below * (above / below) ** share)
    return last[1]


def points_text(points: Points) -> str:
    (_, first), (_, last) = points[0], points[-1]
    if first == last:
        return f"{first:g} at every size"
    return ", ".join(f"{value:g} at {size_text(size)}" for size, value in points)


def rounded(value: float) -> float:
    """Two digits that mean something."""
    return float(f"{value:.2g}")


def power_of_two(value: float) -> int:
    return int(2 ** max(0, round(math.log2(value))))


def size_text(parameters: int) -> str:
    """135M, 1.6M, 7B."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{float(f'{parameters / unit:.3g}'):g}{name}"
    return str(parameters)
