"""Adapters of a project's models: put on what a stage begins from, or trained further on the base that they were left on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bridle.compute.randomness import generator
from bridle.core.errors import ModelError
from bridle.core.files import file_hash
from bridle.core.records import content_hash
from bridle.models.lora.adapter import Adapter, adapter_summary
from bridle.models.lora.four_bit import is_four_bit
from bridle.models.lora.low_rank import nearly_same
from bridle.models.lora.peft_files import ADAPTER_FILES, ADAPTER_FOLDER, read_adapter
from bridle.models.lora.policies import learner, load_adapted
from bridle.models.policy import Policy
from bridle.stages.workspace import Work


def learner_of(work: Work, policy: Policy, folder: Path) -> Policy:
    """The policy that is trained from one of the project, of this `folder`: the same, or, where the recipe wants an adapter, one with it on
    the same weights."""
    config = work.recipe.lora
    if not config.on:
        return policy
    if config.continued:
        found = with_its_adapter(work, policy, folder)
    else:
        found = learner(policy, config, generator(work.recipe.seed, "lora"))
    work.progress.say(adapter_summary(found.module))
    if found.rounded and found.adapter is not None:
        work.progress.say(
            "the base lies in four bits, and has more digits: what is saved is merged into it as it lies here, unpacked"
            if is_four_bit(found.module)
            else f"the base lies in bfloat16, and has more digits: what is saved is merged into it as {found.adapter.base} has it"
        )
    return found


def with_its_adapter(work: Work, policy: Policy, folder: Path) -> Policy:
    """A model of the project as its base with the adapter that it was left with. ModelError where it was left with none, where the base is
    gone, or where the two do not give its weights."""
    place, r = folder / ADAPTER_FOLDER, work.recipe.lora.r
    if not place.is_dir():
        raise ModelError(
            f"{folder} was left with no adapter to train further; set lora.r for a new one, and lora.continued to false"
        )
    adapter, _ = read_adapter(place)
    if r not in (0, adapter.config.r):
        raise ModelError(
            f"lora.r = {r}, and the adapter that is trained further has r = {adapter.config.r}; leave lora.r at 0"
        )
    found = load_adapted(place, work.read_policy(base_folder(work, adapter), frozen=True))
    if not nearly_same(found.module, policy.module):
        raise ModelError(
            f"{place} on {adapter.base} does not give the weights in {folder}; train a new one, with lora.continued false"
        )
    return replace(policy, module=found.module, adapter=found.adapter, rounded=found.rounded)


def base_folder(work: Work, adapter: Adapter) -> Path:
    """Where the base of an adapter lies: a model of the project, one that is kept as a reference, or where it lay; peft notes no hash."""
    named = work.registry.present().get(adapter.base_hash)
    places = [] if named is None else [work.project.model(named)]
    for place in (*places, work.project.reference(adapter.base_hash), Path(adapter.base)):
        if (place / "config.json").is_file() and adapter.base_hash in ("", work.registry.content(place)):
            return place
    raise ModelError(
        f"the adapter is on {adapter.base or 'a model'} with the content {adapter.base_hash[:16]}…, which is not there any more; put that "
        "back, or train a new adapter, with lora.continued false"
    )


def adapter_parents(work: Work, folder: Path) -> dict[str, str]:
    """The adapter that is trained further, by its hash: the model in the folder has the weights, and not what they are made of."""
    files = [folder / ADAPTER_FOLDER / name for name in ADAPTER_FILES] if work.recipe.lora.continued else []
    return {"adapter": content_hash([file_hash(file) for file in files if file.is_file()])} if files else {}
