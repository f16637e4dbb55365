"""What `bridle plan` expects beside what training takes: python benchmarks/plan.py [--sizes 25M,135M] [--trainers sft]

Each case trains two steps in a process of its own, on a model of random weights and rows of one length, by the loops that
`bridle train` runs. Measured is the largest resident memory (VmHWM) less what was resident before any model was made: Python, PyTorch and
the compiled kernels. glibc keeps what is freed, so it is what is alive at the peak and the gaps between. Cases that were measured before
stay in results/plan.json; `--table` writes the tables of docs/scaling.md, of what was measured and of clusters. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, versions

GIB = 2**30
# vocabulary, hidden size, inner size, layers, heads, key/value heads, head size; prompts or rows at once, tokens of a row
SIZES = {
    "tiny": ((4_096, 32, 32, 1, 2, 2, 16), 8, 16),  # run once before, so that all is loaded that a first step loads
    "25M": ((16_384, 384, 1_536, 9, 6, 2, 64), 16, 128),
    "135M": ((49_152, 576, 1_536, 30, 9, 3, 64), 8, 64),  # SmolLM2 135M
    "500M": ((151_936, 896, 4_864, 24, 14, 2, 64), 4, 64),  # Qwen2.5 0.5B
}
TRAINERS = ("sft", "reward", "dpo", "kto", "orpo", "ppo", "grpo", "rloo", "rebel")
PAGE, MARK = ROOT / "docs" / "scaling.md", "<!-- measured -->"
FILE = RESULTS / "plan.json"
ON_CLUSTERS = "<!-- clusters -->"
CLUSTER: dict[str, Any] = {
    "scale.shard": True, "model.frozen_precision": "bfloat16", "model.checkpoint_activations": True, "sampling.max_new_tokens": 512,
    "ppo.optimizer": "adamw", "ppo.prompts_per_step": 512, "ppo.batch_size": 64, "ppo.micro_tokens": 4096, "ppo.minibatches": 4,
}  # fmt: skip
GROUP = 4  # answers to a prompt of GRPO and RLOO


# ----------------------------------------------------------------------------------------------- in a process of its own


def memory() -> tuple[int, int]:
    """Resident bytes now, and the most since the last `forget`."""
    text = Path("/proc/self/status").read_text()
    now, most = (1024 * int(found[1]) for name in ("VmRSS", "VmHWM") if (found := re.search(rf"{name}:\s+(\d+)", text)))
    return now, most


def forget() -> None:
    """Begin anew with the most resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")


def settings_of(trainer: str, size: str, lora: bool) -> dict[str, Any]:
    """The recipe of a case, by dotted key: two optimiser steps' worth of rows at once."""
    _, rows, tokens = SIZES[size]
    half = {"sft": rows, "kto": rows // 2, "reward": rows // 2, "dpo": rows // 2, "orpo": rows // 2}
    found: dict[str, Any] = {"sampling.max_new_tokens": tokens // 2, f"{trainer}.optimizer": "adamw"}
    if trainer in half:
        found[f"{trainer}.batch_size"] = half[trainer]
    else:
        answers = {"grpo": GROUP, "rloo": GROUP, "rebel": 2}.get(trainer, 1)
        found |= {f"{trainer}.{key}": value for key, value in {
            "steps": 2, "prompts_per_step": rows // answers, "minibatches": 1, "epochs": 1, "batch_size": rows,
            **({"group_size": answers} if answers == GROUP else {}),
        }.items()}  # fmt: skip
    if trainer in ("dpo", "kto", "orpo"):
        found[f"{trainer}.observe_every"] = 1
    if trainer == "ppo" and size == "500M":
        found["ppo.shared_trunk"] = True  # two networks of their own do not fit into 24 GiB
    return found | ({"lora.r": 16} if lora else {})


def train(trainer: str, size: str, precision: str, lora: bool) -> None:
    """One case; prints its line."""
    import torch

    from bridle.compute.device import choose_device
    from bridle.recipe.recipe import Recipe

    torch.manual_seed(0)
    recipe = Recipe().with_settings(settings_of(trainer, size, lora))
    device = choose_device(precision)
    run_loop(trainer, recipe.with_settings({"sampling.max_new_tokens": 8}), device, "tiny")
    before = memory()[0]
    forget()
    run_loop(trainer, recipe, device, size)
    print(json.dumps({"measured": memory()[1] - before, "imports": before, "device": str(device)}))


def run_loop(trainer: str, recipe: Any, device: Any, size: str) -> None:
    """What the stage of `bridle train` does between loading and saving."""
    from models import template as word_template

    from bridle.compute.randomness import generator
    from bridle.compute.steps import Session
    from bridle.core.records import Prompt
    from bridle.evaluation.answers import answer_all, kl_of
    from bridle.generation.engine import Engine
    from bridle.generation.rollout import RolloutSession
    from bridle.models.decoder import Decoder, DecoderConfig, initialise
    from bridle.models.lora.policies import learner
    from bridle.models.policy import Policy, RewardModel
    from bridle.models.scorer import critic_from, scorer_from, shared_critic
    from bridle.project.progress import Progress
    from bridle.project.run import Run
    from bridle.rewards.learned import LearnedReward
    from bridle.stages.methods import METHODS
    from bridle.stages.preferences import free_weights
    from bridle.training import ppo

    (vocabulary, hidden, inner, layers, heads, kv_heads, head_size), rows, tokens = SIZES[size]
    config = DecoderConfig(
        "qwen3", vocabulary, hidden, inner, layers, heads, kv_heads, head_size, max_positions=1024
    )  # fmt: skip
    template = replace(word_template(), stop_ids=frozenset())  # every answer is as long as it may be

    def network(name: str) -> Policy:
        module = Decoder(config)
        initialise(module, layers, generator(0, name))
        return Policy(module, template, name)

    def scorer(policy: Policy) -> RewardModel:
        return RewardModel(scorer_from(policy.module, generator(0, "head")), template, "reward")

    began = network("policy")
    policy = learner(began, recipe.lora, generator(0, "lora")) if recipe.lora.on else began
    reference = began if recipe.lora.on else None
    config_of, method = dict(recipe)[trainer], METHODS[trainer]
    prompts = [
        Prompt.from_text(" ".join(f"w{(i * 7 + k) % 4000}" for k in range(tokens // 2))) for i in range(2 * rows)
    ]
    engine = Engine(device.precision, batch_size=256)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(trainer, Path(folder), "key", 1, False, Progress(write=lambda text: None, live=False))
        run.scale = recipe.scale
        session = Session(run, device, 0)
        if trainer == "sft":
            method.loop(policy, examples(2 * rows, tokens), config_of, session)
        elif trainer == "reward":
            method.loop(scorer(policy), groups(rows, tokens), config_of, 1, 1e-5, session)
        elif trainer in ("dpo", "kto", "orpo"):
            held_to = None if trainer == "orpo" else reference or network("reference")

            read_again = None if trainer == "orpo" else (lambda: reference or network("reference"))

            def observe() -> dict[str, float]:
                answered = answer_all(policy, engine, prompts, recipe.sampling.max_new_tokens, 0)
                if read_again is not None:
                    kl_of(answered, policy, read_again(), device)
                return {}

            if reference is None:
                session = replace(session, release=lambda held: held and free_weights(held))
            method.loop(policy, held_to, groups(rows, tokens), config_of, session, Path(folder) / "cache", observe)
        else:
            held_to = reference or network("reference")
            source: Any = checksums
            if trainer != "grpo":  # whose answers a verifier checks
                source = LearnedReward(scorer(network("reward")), device, True)
            adapter = recipe.lora if recipe.lora.on else None
            online = RolloutSession(run, device, 0, engine, recipe.sampling.max_new_tokens)
            if trainer == "ppo":
                shared = recipe.ppo.shared_trunk
                critic = (
                    shared_critic(policy.module)
                    if shared
                    else critic_from(source.model.module, adapter, generator(0, "critic"))
                )
                method.loop(ppo.Actors(policy, held_to, critic), source, prompts, [], config_of, online)
            else:
                method.loop(policy, held_to, source, prompts, config_of, online)


def checksums(asked: Any, answers: Any) -> list[float]:
    """A reward that takes no memory."""
    return [float(sum(answer.token_ids) % 97) for answer in answers]


def ids(tokens: int, seed: int) -> list[int]:
    return [3 + (seed * 31 + k * 7) % 4000 for k in range(tokens)]


def examples(count: int, tokens: int) -> list[Any]:
    return [(ids(tokens // 2, i), ids(tokens // 2, 99 + i)) for i in range(count)]


def groups(count: int, tokens: int) -> list[Any]:
    from bridle.models.batches import Group

    return [
        Group(ids(tokens // 2, i), [ids(tokens // 2, 99 + i), ids(tokens // 2, 999 + i)], [(0, 1, 1.0)])
        for i in range(count)
    ]


# ------------------------------------------------------------------------------------------------------- all cases


def expected(case: str) -> tuple[float, float, float]:
    """Low, expected and high of a case by the formula, in bytes, without Python's own."""
    from bridle.compute.plan.memory import FRAME
    from bridle.compute.plan.stages import plan_stage
    from bridle.compute.shapes import Card, Shape
    from bridle.recipe.recipe import Recipe

    trainer, size, precision, way = case.split(":")
    recipe = Recipe().with_settings(settings_of(trainer, size, way == "lora"))
    numbers, _, tokens = SIZES[size]
    card = Card(0, "cpu", 2 if precision == "bfloat16" else 4)
    low, middle, high = plan_stage(trainer, recipe, Shape(*numbers, max_positions=1024), card, tokens=tokens).peak
    return low, middle - FRAME["cpu"] * GIB, high - FRAME["cpu"] * GIB


def rows_of_table(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table of docs/scaling.md."""
    lines = [
        "| trainer | model | products | measured, MB | expected | low to high | off by |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, found in cases.items():
        trainer, size, precision, way = case.split(":")
        low, middle, high = (number / 1e6 for number in expected(case))
        measured = found["measured"] / 1e6
        kind = "adapter" if way == "lora" else "one trunk" if (trainer, size) == ("ppo", "500M") else "all weights"
        name = f"{trainer}, {kind}"
        numbers = f"{measured:,.0f} | {middle:,.0f} | {low:,.0f} to {high:,.0f} | {middle / measured - 1:+.1%}"
        lines.append(f"| {name} | {size} | {precision} | {numbers} |")
    return lines


def rows_of_clusters() -> list[str]:
    """PPO of three sizes with critic, reference and reward model of the policy's size, on cards of 79 GiB."""
    from bridle.compute.plan.stages import plan_stage
    from bridle.compute.plan.traffic import sent
    from bridle.compute.shapes import PUBLIC_SHAPES, Card
    from bridle.recipe.recipe import Recipe

    lines = [
        "| policy | cards | GiB each, low, expected, high | the most while it | GB sent a step by each |",
        "|---|---|---|---|---|",
    ]
    recipe = Recipe().with_settings(CLUSTER)
    for name in ("Qwen2.5-0.5B", "Qwen2.5-7B", "Llama-3.1-70B"):
        for cards in (1, 8, 64, 512):
            plan = plan_stage("ppo", recipe, PUBLIC_SHAPES[name], Card(79 * GIB, "cuda", 2), cards, 1024)
            sizes = ", ".join(f"{size / GIB:,.0f}" for size in plan.peak)
            moved = f"{sent(plan.moved).expected / 1e9:,.0f}" if plan.moved else "0"
            lines.append(f"| {name} | {cards} | {sizes} | {plan.fullest} | {moved} |")
    return lines


def write_table(page: Path, mark: str, lines: list[str]) -> None:
    """In the place of the table that follows a mark."""
    before, _, rest = page.read_text("utf-8").partition(f"{mark}\n")
    after = re.sub(r"\A\n(\|.*\n)*", "", rest)
    table = "\n".join(lines)
    page.write_text(f"{before}{mark}\n\n{table}\n{after}", "utf-8")
    print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", metavar="TRAINER:SIZE:PRECISION:full|lora", help="run this case here and print its JSON line"
    )
    parser.add_argument("--sizes", default="25M")
    parser.add_argument("--trainers", default=",".join(TRAINERS))
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--lora", action="store_true", help="by an adapter, r = 16")
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument("--table", action="store_true", help="write the table of docs/scaling.md; measure nothing")
    asked = parser.parse_args()
    if asked.only:
        trainer, size, precision, way = asked.only.split(":")
        train(trainer, size, precision, way == "lora")
        return
    kept = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"cases": {}}
    way = "lora" if asked.lora else "full"
    cases = [
        f"{trainer}:{size}:{asked.precision}:{way}"
        for size in asked.sizes.split(",")
        for trainer in asked.trainers.split(",")
    ]
    for case in [] if asked.table else cases:
        if case in kept["cases"] and not asked.again:
            continue
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BRIDLE_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__, "--only", case], env=env, capture_output=True, text=True)
        if done.returncode:
            print(f"{case} failed: {done.stderr[-500:]}")
            continue
        kept["cases"][case] = json.loads(done.stdout.splitlines()[-1])
        kept |= {"date": date.today().isoformat(), "versions": versions()}
        FILE.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        print(rows_of_table({case: kept["cases"][case]})[-1], flush=True)
    if asked.table:
        write_table(PAGE, MARK, rows_of_table(kept["cases"]))
        write_table(PAGE, ON_CLUSTERS, rows_of_clusters())


if __name__ == "__main__":
    main()
