"""Log-probs of answers that are there, whoever wrote them: a frozen reference's are read once and kept by content hash.

Shapes: B answers of a batch, N of all groups.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bridle.compute.checkpoint import load_tensors, save_tensors
from bridle.compute.device import Device
from bridle.compute.parallel import all_shares, from_first, my_share
from bridle.compute.sharding import lockstep
from bridle.core.files import file_hash, whole_folder, write_text
from bridle.core.records import content_hash
from bridle.core.timeline import timed
from bridle.generation.rollout import finite_logprobs
from bridle.models import batches
from bridle.models.policy import Policy

GROUPS_READ = 16  # at once
CACHE_FILE = "logprobs.safetensors"
CACHE_HASH = "sha256"  # of that file


def answer_logprobs(policy: Policy, batch: batches.Batch, device: Device) -> Tensor:
    """log π of each whole answer, [B]: the sum over its tokens, the stop token included."""
    with device.autocast():
        return batches.sequence_logprobs(policy.module, batch).sum(1)


@timed("reference")
@torch.no_grad()
def read_logprobs(
    policy: Policy, groups: Sequence[batches.Group], device: Device, whose: str = "reference", micro_tokens: int = 0
) -> list[Tensor]:
    """log π of every answer, one tensor a group, on the CPU; TrainingStopped, naming `whose`, where it is not finite. 16 groups at once
    and `micro_tokens` tokens at most, if it is not 0."""
    found: list[Tensor] = [torch.empty(0)] * len(groups)
    sizes = batches.row_sizes((group.prompt, group.answers) for group in groups)
    order = sorted(range(len(groups)), key=lambda i: (groups[i].length, i))  # little padding
    parts = batches.Cut(GROUPS_READ, micro_tokens).parts(order, sizes, policy.module.model)
    for chosen in lockstep(parts, policy.module):
        batch = batches.group_batch([groups[i] for i in chosen], policy.template.pad_id, device.torch)
        logp_B = answer_logprobs(policy, batch, device).float().cpu()
        for i, logp in zip(chosen, logp_B.split([len(groups[i].answers) for i in chosen]), strict=True):
            found[i] = logp
    finite_logprobs(torch.cat([torch.empty(0), *found])[:, None], whose)  # where ranks share them, one may have none
    return found


def cache_is_whole(folder: Path) -> bool:
    """Whether the log-probs in a folder of the cache are those that were saved, to the bit."""
    noted = folder / CACHE_HASH
    return noted.is_file() and noted.read_text("utf-8", errors="replace") == file_hash(folder / CACHE_FILE)


def cached_logprobs(
    reference: Policy,
    groups: Sequence[batches.Group],
    device: Device,
    cache: Path,
    say: Callable[[str], None],
    micro_tokens: int = 0,
) -> list[Tensor]:
    """log π_ref of every answer, one tensor a group. Read from `cache` where this reference has read these ids before."""
    key = content_hash([reference.stamp, str(device.precision), [[group.prompt, group.answers] for group in groups]])
    folder = cache / f"reference-{key[:16]}"

    def known() -> Tensor | None:
        if not (folder / CACHE_FILE).is_file():
            return None
        if cache_is_whole(folder):
            say("the reference's log-probs are known from an earlier run")
            known_N = load_tensors(folder / CACHE_FILE)["logp"]
            return finite_logprobs(known_N[:, None])[:, 0]
        say(f"the reference's log-probs in {folder} are damaged or of an earlier version; reading them again")
        return None

    def keep() -> None:
        with whole_folder(folder) as new:
            save_tensors({"logp": logp_N}, new / CACHE_FILE)
            write_text(new / CACHE_HASH, file_hash(new / CACHE_FILE))

    if (found_N := from_first(known)) is None:
        logp_N = found_N = torch.cat(
            all_shares(read_logprobs(reference, my_share(list(groups)), device, micro_tokens=micro_tokens))
        )
        from_first(keep)
    return list(found_N.to(device.torch).split([len(group.answers) for group in groups]))
