"""Once, when a model of the user's is taken: whether the native decoder reads it as transformers does, and what its owner should know.

What transformers itself runs is compared each time that it is loaded (`foreign.unlike`). The native decoder does without transformers,
whose import alone takes seconds, so it is compared when a model is taken: its folder is read by both, and both are asked one probe.

T tokens, V vocabulary.
Left out on purpose: a probe as long as the context, which at 8,192 tokens costs minutes. A few tokens spread over the whole context stand
where the rotary embedding turns them past the original length; no window hides any of them, for the native decoder takes no model
with a window that is shorter than its context.
"""

from pathlib import Path

import torch
from torch import Tensor

from bridle.compute.shapes import machine_memory
from bridle.core.errors import UnsupportedModel
from bridle.core.timeline import timed
from bridle.models.decoder import Decoder
from bridle.models.foreign import TOLERANCE, Foreign, changing_ropes, from_folder
from bridle.models.policy import Policy, read_config, stored_sizes

PROBE = 128  # tokens
SPREAD_TOLERANCE = 0.05  # transformers' angles are of float32: at place 131,072 they are off by some 0.01


def notes_of_taking(policy: Policy, folder: Path) -> list[str]:
    """What the owner of a model that was loaded from a folder should know of how it is read, in lines. UnsupportedModel where
    transformers reads it otherwise."""
    module, raw = policy.module, read_config(folder)
    notes = [head_note(module, raw.get("tie_word_embeddings") is True), outside_note(policy)]
    notes.append(compare_readings(module, folder) if isinstance(module, Decoder) else context_note(module))
    return [note for note in notes if note]


@timed("compare")
def compare_readings(module: Decoder, folder: Path) -> str:
    """Compare the logits of the native decoder with those of transformers; why not, where this machine cannot hold both, else empty."""
    if 2 * module.config.bytes > machine_memory():
        return "this machine's memory does not hold the model twice, so its logits were not compared with transformers' own"
    from transformers import AutoModelForCausalLM

    raw, device = read_config(folder), torch.device("cpu")
    network = from_folder(AutoModelForCausalLM, folder, raw, device, stored_sizes(folder, raw))
    limit = module.config.max_positions
    length = min(PROBE, limit)
    near_T, far_T = torch.arange(length), torch.linspace(0, limit - 1, length, dtype=torch.float64).long()
    for places_T, tolerance in ((near_T, TOLERANCE), (far_T, SPREAD_TOLERANCE)):
        found_TV, expected_TV = logits_of_both(module, network, places_T)
        if not bool(expected_TV.isfinite().all()):
            raise UnsupportedModel(f"the logits of the model in {folder} are not finite; fetch its weights again")
        gaps_T, largest = (found_TV - expected_TV).abs().amax(1), float(expected_TV.abs().max())
        if not float(gaps_T.max()) <= tolerance * largest:
            place = int(places_T[int((~(gaps_T <= tolerance * largest)).nonzero()[0])])
            raise UnsupportedModel(
                f"bridle's decoder reads the {module.config.family} model in {folder} otherwise than transformers does: from position "
                f"{place} of a probe on the logits differ, by {float(gaps_T.max()):.3g} where the largest is {largest:.3g}; please report "
                "it with the config.json, and take another model meanwhile"
            )
    return ""


@torch.no_grad()
def logits_of_both(module: Decoder, network: torch.nn.Module, places_T: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [T, V] of one row of tokens that stand at given places, by the native decoder and by transformers' network."""
    ids_1T = ((torch.arange(len(places_T)) * 37 + 5) % module.config.vocab_size)[None]
    expected = network(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), position_ids=places_T[None]).logits
    return module.logits(module.model(ids_1T, places_T[None]))[0], expected[0]


def head_note(module: Decoder | Foreign, asked: bool) -> str:
    tied = module.config.tie_embeddings if isinstance(module, Decoder) else module.lm_head is None
    if tied or not asked:
        return ""
    return "its head is stored apart and differs from its embeddings, to which its config.json ties it: both are kept, as transformers does"


def context_note(module: Foreign) -> str:
    """That a rope which depends on a batch's longest row ends the context."""
    return "".join(
        f"its rope ({kind}) turns all tokens otherwise in a batch with a row of more than {length:,}, so bridle keeps to a context of "
        f"{module.config.max_positions:,} tokens"
        for kind, length in changing_ropes(module.model.inner.config.to_dict()).items()
        if length == module.config.max_positions
    )


def outside_note(policy: Policy) -> str:
    template = policy.template
    if not template.outside:
        return ""
    first = template.tokenizer.id_to_token(min(template.outside))
    return (
        f"it has no embedding for {len(template.outside)} of its tokenizer's added tokens (such as {first!r}): a text that needs one is "
        "left out"
    )
