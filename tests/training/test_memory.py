"""Memory: no path of any trainer, nor of the engine, holds the logits of a whole batch; a peak at 150,000 tokens of vocabulary."""

import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bridle.core.records import Prompt
from bridle.evaluation.answers import answer_all, kl_of
from bridle.generation.engine import Engine
from bridle.generation.rollout import RolloutSession
from bridle.maths.logprobs import LEAST_ROWS, LONG_SLICE, SLICE
from bridle.models import imitation
from bridle.models.policy import Policy, RewardModel, load_policy
from bridle.models.scorer import critic_from, scorer_from, shared_critic
from bridle.recipe.offline import DPOSection, KTOSection, PretrainSection, RewardSection, SFTSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.training import dpo, grpo, kto, ppo, pretrain, rebel, rejection, reward, rloo, sft
from tests.house.source import ROOT, Source, calls, dotted, listed, package
from tests.models.tiny import CPU, random_ids, template, write_foreign
from tests.training.peak import WHOLE, network, whole
from tests.training.runs import DEVICE, groups, run_in, session

VOCABULARY = 70_000  # above LONG_SLICE / LEAST_ROWS, so a slice is LEAST_ROWS rows
LARGEST = LEAST_ROWS * VOCABULARY  # numbers of the largest tensor that there should be: a slice of logits
PROMPTS = [Prompt.from_text(f"What is {i} + {i % 7}?") for i in range(16)]
ADAMW: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-4}


def native(vocabulary: int) -> Policy:
    return Policy(network(vocabulary), template(), "wide".ljust(20, "."))


def foreign(vocabulary: int, folder: Path) -> Policy:
    write_foreign(folder, "gpt2", vocab_size=vocabulary, n_embd=8, n_head=1, n_layer=1)
    return load_policy(folder, CPU)


class Largest(TorchDispatchMode):
    """Notes the largest tensor of floating-point numbers that any operation makes, backward passes too."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numbers = max(self.numbers, tensor.numel())
        return made


def lengths(prompts: Any, completions: Any) -> list[float | None]:
    return [float(sum(c.token_ids) % 7) for c in completions]


def practising(folder: Path) -> RolloutSession:
    return RolloutSession(run_in(folder), DEVICE, 0, Engine(torch.float32), 20)


def run_pretrain(policy: Policy, folder: Path) -> None:
    rows = torch.randint(3, 300, (16, 33))
    config = PretrainSection(batch_size=16, length=32, **ADAMW)
    pretrain.train(policy, rows, 500, config, session(run_in(folder)))


def run_sft(policy: Policy, folder: Path) -> None:
    examples = list(zip(random_ids(16, 4, 9), random_ids(16, 20, 20), strict=True))
    sft.train(policy, examples, SFTSection(epochs=1, **ADAMW), session(run_in(folder)))


def run_reward(policy: Policy, folder: Path) -> None:
    model = RewardModel(scorer_from(policy.module, torch.Generator().manual_seed(0)), policy.template, "new")
    reward.train(model, groups(16, 0), RewardSection(batch_size=16), 1, 1e-4, session(run_in(folder)))


def run_dpo(policy: Policy, folder: Path) -> None:
    config = DPOSection(batch_size=16, **ADAMW)
    dpo.train(policy, policy, groups(16, 0), config, session(run_in(folder)), folder / "cache")


def run_kto(policy: Policy, folder: Path) -> None:
    kto.train(policy, policy, groups(16, 0), KTOSection(**ADAMW), session(run_in(folder)), folder / "cache")


def run_ppo(policy: Policy, folder: Path) -> None:
    critic = critic_from(scorer_from(policy.module, torch.Generator().manual_seed(0)))
    config = PPOSection(steps=1, prompts_per_step=16, epochs=1, minibatches=1, pretrain_coef=0.1, **ADAMW)
    shown = list(zip(random_ids(16, 4, 9), random_ids(16, 20, 20), strict=True))
    ppo.train(ppo.Actors(policy, policy, critic), lengths, PROMPTS, shown, config, practising(folder))


def run_grpo(policy: Policy, folder: Path) -> None:
    config = GRPOSection(steps=1, prompts_per_step=8, group_size=2, minibatches=1, **ADAMW)
    grpo.train(policy, policy, lengths, PROMPTS, config, practising(folder))


def run_shared_ppo(policy: Policy, folder: Path) -> None:
    config = PPOSection(steps=1, prompts_per_step=16, epochs=1, minibatches=1, shared_trunk=True, **ADAMW)
    actors = ppo.Actors(policy, deepcopy(policy), shared_critic(policy.module))
    ppo.train(actors, lengths, PROMPTS, [], config, practising(folder))


def run_rloo(policy: Policy, folder: Path) -> None:
    config = RLOOSection(steps=1, prompts_per_step=8, group_size=2, **ADAMW)
    rloo.train(policy, policy, lengths, PROMPTS, config, practising(folder))


def run_rebel(policy: Policy, folder: Path) -> None:
    config = REBELSection(steps=1, prompts_per_step=8, epochs=1, minibatches=1, **ADAMW)
    rebel.train(policy, policy, lengths, PROMPTS, config, practising(folder))


def run_best_of_n(policy: Policy, folder: Path) -> None:
    config = RejectionSection(rounds=1, prompts_per_round=16, keep="threshold", threshold=-1.0, **ADAMW)
    with torch.no_grad():  # many answers end, after a few tokens: only those that end are imitated
        state = policy.module.hidden(torch.tensor(template().prompt_ids(PROMPTS[:1])))[0, -1]
        policy.module.output_weight()[template().eos_id] = 9 * state / state.square().sum()
    rejection.train(policy, policy, lengths, PROMPTS, config, practising(folder))


def run_online_dpo(policy: Policy, folder: Path) -> None:
    config = DPOSection(online_rounds=1, online_prompts=16, **ADAMW)
    dpo.train_online(policy, policy, lengths, PROMPTS, config, practising(folder))


def run_evaluation(policy: Policy, folder: Path) -> None:
    answered = answer_all(policy, Engine(torch.float32), PROMPTS * 4, 4, seed=0)
    kl_of(answered, policy, policy, DEVICE)


PATHS = [
    run_pretrain, run_sft, run_reward, run_dpo, run_kto, run_online_dpo, run_ppo, run_shared_ppo, run_grpo, run_rloo, run_rebel,
    run_best_of_n, run_evaluation,
]  # fmt: skip


@pytest.mark.parametrize("family", ["native", "foreign"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_no_tensor_is_larger_than_a_slice(path: Callable[[Policy, Path], None], family: str, tmp_path: Path) -> None:
    assert max(SLICE, LONG_SLICE) // VOCABULARY < LEAST_ROWS
    policy = native(VOCABULARY) if family == "native" else foreign(VOCABULARY, tmp_path / "model")
    with Largest() as largest:
        path(policy, tmp_path / "run")
    weights = 8 * VOCABULARY
    assert weights <= largest.numbers <= LARGEST, f"{largest.numbers / VOCABULARY:.0f} rows of logits were held at once"


def test_the_logits_of_a_whole_batch_would_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(imitation, "masked_logprobs", whole)
    with Largest() as largest:
        run_sft(native(VOCABULARY), tmp_path)
    assert largest.numbers > LARGEST


# ------------------------------------------------------------------------------- the peak, in a process of its own


def test_the_peak_at_a_vocabulary_of_150_000_is_a_fraction_of_the_logits() -> None:
    """Slices take a few times 64 rows, however many tokens the batch has. Whole logits, their softmax and its gradient
    take several times the batch's."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.peak"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    sliced, whole = map(int, done.stdout.split())
    assert sliced < 0.6 * WHOLE, f"the peak grew by {sliced / 2**20:.0f} MiB, all logits are {WHOLE / 2**20:.0f} MiB"
    assert whole > WHOLE


# ---------------------------------------------------------------------------------------- who may ask for logits

LOGITS_OF = {  # (file, call): why it is a few rows only
    ("bridle/models/decoder.py", "self.logits"): "forward, which nothing in the package calls",
    ("bridle/models/foreign.py", "self.logits"): "forward, which nothing in the package calls",
    ("bridle/models/foreign.py", "module.logits"): "eight tokens on loading, to compare with transformers' own",
    ("bridle/generation/fallback.py", "logits"): "each row's last position",
    (
        "bridle/models/files/agreement.py",
        "module.logits",
    ): "128 tokens when a model is taken, to compare with transformers' own",
    ("bridle/models/files/export.py", "policy.module"): "a few short rows, to say what an export loses",
}


def askers(source: Source) -> list[str]:
    """Calls of `.logits(…)`, and of a whole model as a function, that nobody allowed."""
    faults = []
    for call in calls(source):
        name = dotted(call.func)
        asks = name.rpartition(".")[2] == "logits" or name in ("module", "policy.module", "reference.module")
        known = any(source.path == path and name.endswith(end) for path, end in LOGITS_OF)
        if asks and not known:
            faults.append(source.fault(call, f"{name}() makes all logits: take `logprobs` of the selected states"))
    return faults


def test_who_asks_for_all_logits_is_found() -> None:
    assert askers(Source("bridle/training/sft.py", "policy.module.logits(hidden)"))
    assert askers(Source("bridle/training/sft.py", "logits = policy.module(batch.ids_BW)"))
    assert not askers(Source("bridle/training/sft.py", "policy.module.logprobs(hidden, targets)"))


def test_nobody_asks_for_all_logits() -> None:
    faults = [fault for source in package() for fault in askers(source)]
    assert not faults, listed(faults)
