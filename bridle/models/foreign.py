"""Any other causal language model: transformers runs it, behind the native decoder's interface, for training and decoding.

The trunk is transformers' own module. The product with the vocabulary is taken here, so that log-probs need not hold all
logits; on loading, its logits are compared with those of transformers' own forward, and a model that answers otherwise
is refused. Slower than the native decoder, most of all in decoding.

Shapes: B sequences, T new tokens, S tokens seen so far, D hidden size, V vocabulary, N selected tokens.
Left out on purpose: dropout (sampled and trained log-probs must agree), models of several parts (images, speech, an
encoder beside the decoder), quantised weights, and code that comes with a model's folder.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.compute.recomputing import Layered, all_run_again
from bridle.core.errors import ModelError, UnsupportedModel
from bridle.core.text import telling_line
from bridle.maths.logprobs import linear_logprobs
from bridle.models.contents import weight_files
from bridle.models.decoder import Decoder, check_width
from bridle.models.files.kinds import family_of, first_architecture
from bridle.models.files.weights import require_finite, require_full
from bridle.models.lora.low_rank import is_linear
from bridle.models.sizes import Shapes, elements_of, require_memory, require_names, scalings_of

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
RUN_AGAIN = "GradientCheckpointingLayer"  # what transformers calls the layers that it could
PROBE, LONGEST_PROBE = 8, 64  # tokens, and those at most of a probe that is longer than a window
TOLERANCE = 1e-3  # of the largest number: another order of sums moves float32 by some 1e-6


@dataclass(frozen=True)
class ForeignConfig:
    """config.json as it lay in the folder, and what bridle needs to know of the network."""

    raw: Mapping[str, Any]
    trunk_name: str  # Hugging Face's names of the two parts: "transformer" and "lm_head" in GPT-2
    head_name: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    scale: float = 1.0  # logits are cap(scale · hidden · weightᵀ + bias)
    soft_cap: float = 0.0

    @property
    def family(self) -> str:
        return str(self.raw["model_type"])

    def to_huggingface(self) -> dict[str, Any]:
        return {key: value for key, value in self.raw.items() if key != "torch_dtype"}  # now called dtype


class ForeignTrunk(Layered):
    """transformers' network without its head, `inner`: hidden states of whole sequences, or of the next tokens."""

    def __init__(self, config: ForeignConfig, inner: Any) -> None:
        super().__init__()
        self.config = config
        self.inner = inner
        self.takes_positions = "position_ids" in inspect.signature(inner.forward).parameters
        self.eval()

    def train(self, mode: bool = True) -> ForeignTrunk:
        """Stays as it is for decoding: with dropout, PPO's first ratio would not be 1."""
        return super().train(False)

    def linear_maps(self) -> dict[str, nn.Module]:
        """The linear maps that an adapter may be put on, by their names in here: those that are called. One of a kind whose weight is
        read past it, as some kernels do, would learn nothing; of experts, which are of one kind, only some are called."""
        maps, called = {name: part for name, part in self.named_modules() if is_linear(part)}, set[nn.Module]()

        def note(part: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):  # a router gives more than its product
                called.add(part)

        hooks = [part.register_forward_hook(note) for part in maps.values()]
        with torch.no_grad():
            self(torch.arange(PROBE, device=next(self.parameters()).device)[None] % self.config.vocab_size)
        for hook in hooks:
            hook.remove()
        kinds = {kind_of_part(name) for name, part in maps.items() if part in called}
        return {name: part for name, part in maps.items() if kind_of_part(name) in kinds}

    def parts(self) -> list[nn.Module]:
        """The layers that transformers itself could run again, which it does in a mode of training with dropout alone."""
        return [part for part in self.modules() if any(kind.__name__ == RUN_AGAIN for kind in type(part).__mro__)]

    def recompute(self, on: bool) -> None:
        if on and not self.parts():
            raise UnsupportedModel(
                f"the layers of a {self.config.family} model cannot be told from its other parts, so they are not run again in the "
                "backward pass; set checkpoint_activations to false"
            )
        super().recompute(on)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """ids [B, T], padded on the right → hidden states [B, T, D]. Causality alone hides padding that comes last."""
        check_width(ids_BT.shape[1], self.config.max_positions)
        return self._run(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), None)

    def step(self, ids_BT: Tensor, seen_BS: Tensor, cache: Any) -> Tensor:
        """Hidden states [B, T, D] of T new tokens after those in the cache; `seen` [B, S] is False on padding."""
        return self._run(ids_BT, seen_BS, cache)

    def _run(self, ids_BT: Tensor, seen_BS: Tensor, cache: Any) -> Tensor:
        positions = {}
        if self.takes_positions:  # those without read them off the mask, as BLOOM does
            positions["position_ids"] = (seen_BS.long().cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        with all_run_again(self.parts() if self.recomputed and torch.is_grad_enabled() else []):
            found = self.inner(
                input_ids=ids_BT,
                attention_mask=seen_BS,
                past_key_values=cache,
                use_cache=cache is not None,
                **positions,
            )
        return found.last_hidden_state

    def new_cache(self) -> Any:
        """Keys and values of no token yet."""
        from transformers import DynamicCache

        return DynamicCache(config=self.inner.config)


def kind_of_part(name: str) -> str:
    """A part's name without the numbers of layers and experts."""
    return re.sub(r"\d+", "", name)


class Foreign(nn.Module):
    """A causal language model of transformers with the interface of `Decoder`; without `lm_head` where it is tied."""

    def __init__(self, config: ForeignConfig, inner: Any, lm_head: nn.Linear | None) -> None:
        super().__init__()
        self.config = config
        self.model = ForeignTrunk(config, inner)
        self.lm_head = lm_head

    def hidden(self, ids_BT: Tensor, *layout: Tensor | None) -> Tensor:
        return self.model(ids_BT, *layout)

    def output_weight(self) -> Tensor:
        return self.model.inner.get_input_embeddings().weight if self.lm_head is None else self.lm_head.weight

    def output_bias(self) -> Tensor | None:
        return None if self.lm_head is None else self.lm_head.bias

    def logits(self, hidden: Tensor) -> Tensor:
        weight = self.output_weight().to(hidden.dtype)
        logits = F.linear(hidden * self.config.scale, weight, self.output_bias())
        cap = self.config.soft_cap
        return cap * (logits / cap).tanh() if cap else logits

    def logprobs(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
        """log π of the targets, [N], without the whole matrix of logits."""
        hidden_ND = hidden_ND * self.config.scale
        bias, cap = self.output_bias(), self.config.soft_cap
        return linear_logprobs(hidden_ND, self.output_weight(), targets_N, temperature, bias, cap)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """All logits, [B, T, V], to look at: at a large vocabulary more than a machine holds. Trainers take `logprobs`."""
        return self.logits(self.hidden(ids_BT))


LanguageModel = Decoder | Foreign


# ------------------------------------------------------------------------------------------------------- loading


def require_family(folder: Path, raw: Mapping[str, Any]) -> None:
    """UnsupportedModel where transformers has no causal language model of the family."""
    from transformers import __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = raw.get("model_type", "")
    if not isinstance(family, str) or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(
            f"{folder} is of model_type {family!r}, of which neither bridle nor transformers {__version__} has a causal "
            "language model; take another model, or a newer transformers that has it"
        )


def load_foreign(
    folder: Path, raw: Mapping[str, Any], device: torch.device, stored: Shapes, narrow: bool = False
) -> Foreign:
    """A causal language model whose config.json is `raw`, of weights of the shapes `stored`; one that is to be `narrow` is not on the
    device yet. Refused by name where it could not be trained and decoded right."""
    from transformers import AutoModelForCausalLM

    family = raw["model_type"]
    network = from_folder(AutoModelForCausalLM, folder, raw, device, stored)
    network = network if narrow else network.to(device)
    head = network.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UnsupportedModel(
            f"the head of a {family} model is not a plain matrix product, which bridle needs; take another"
        )
    if network.base_model is network:
        raise UnsupportedModel(
            f"{folder} is of model_type {family!r}, which bridle cannot use: its head cannot be taken off its trunk; take another"
        )
    tied = head.weight is network.get_input_embeddings().weight
    settings = network.config.to_dict()
    config = ForeignConfig(
        raw=raw if tied or not settings.get("tie_word_embeddings") else {**raw, "tie_word_embeddings": False},
        trunk_name=network.base_model_prefix,
        head_name=next(name for name, part in network.named_modules() if part is head),
        vocab_size=head.weight.shape[0],
        hidden_size=head.weight.shape[1],
        max_positions=context_of(settings),
        soft_cap=float(settings.get("final_logit_softcapping") or 0.0),
    )
    module = Foreign(config, network.base_model, None if tied else head)
    try:
        with torch.no_grad():
            fault = unlike(network, module, head_scales(settings))
    except Exception as error:  # an interface of another kind may fail in any way
        fault = f"it cannot be run as bridle needs it ({type(error).__name__}: {telling_line(str(error))})"
    if fault:
        raise UnsupportedModel(f"{folder} is of model_type {family!r}, which bridle cannot use: {fault}")
    return module


def load_foreign_trunk(folder: Path, raw: Mapping[str, Any], device: torch.device, stored: Shapes) -> ForeignTrunk:
    """What lies below a reward head that bridle saved, not on the device yet; the head's `score.weight` is the caller's to read."""
    from transformers import AutoModel

    network = from_folder(AutoModel, folder, raw, device, stored, frozenset({"score.weight"}))
    config = ForeignConfig(
        raw=raw,
        trunk_name=network.base_model_prefix,
        head_name="",
        vocab_size=network.get_input_embeddings().weight.shape[0],
        hidden_size=stored["score.weight"][1],
        max_positions=context_of(network.config.to_dict()),
    )
    return ForeignTrunk(config, network)


def require_classifier(folder: Path, raw: Mapping[str, Any]) -> None:
    """UnsupportedModel where config.json is not that of a sequence classifier with one logit that transformers itself has."""
    known, labels = architectures(str(raw.get("model_type")))[1], raw.get("id2label") or {}
    if not known or first_architecture(raw) != known:
        needed = (
            f"a {known} with one logit" if known else "a sequence classifier of a family that transformers has one of"
        )
        raise UnsupportedModel(
            f"{folder} holds {family_of(raw)}, where a reward model is {needed}; train one on it (`bridle train reward`), or name the "
            "folder that AutoModelForSequenceClassification saved with its head"
        )
    if (count := len(labels) or raw.get("num_labels", 2)) != 1:
        named = f" ({', '.join(map(str, labels.values()))})"[:80] if labels else ""
        raise UnsupportedModel(
            f"{folder} holds a classifier of {count} labels{named}, and a reward is one number; take one with num_labels = 1, or make a "
            "number of its labels in a function of your own: reward=lambda prompts, answers: …"
        )


def classifier_network(folder: Path, raw: Mapping[str, Any], device: torch.device, stored: Shapes) -> Any:
    """transformers' own sequence classifier, whole."""
    from transformers import AutoModelForSequenceClassification

    return from_folder(AutoModelForSequenceClassification, folder, raw, device, stored)


def text_tokenizer(folder: Path, embeddings: int) -> Any:
    """transformers' own tokenizer, for texts without a chat template. ModelError where it has more tokens than the model."""
    from transformers import AutoTokenizer

    try:
        with quietly():
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises all kinds
        raise ModelError(f"transformers cannot read the tokenizer in {folder}: {reason_of(error)}") from error
    if len(found) > embeddings:
        raise ModelError(
            f"the tokenizer in {folder} has {len(found):,} tokens where the model has embeddings for {embeddings:,}; "
            "they are not of one model"
        )
    return found


def from_folder(
    loader: Any,
    folder: Path,
    raw: Mapping[str, Any],
    device: torch.device,
    stored: Shapes,
    extra: frozenset[str] = frozenset(),
) -> Any:
    """transformers' network for the device with the folder's weights in float32: every tensor, and none over but those in `extra`."""
    from transformers import AutoConfig

    family = raw.get("model_type", "")
    try:
        with quietly():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if config.get_text_config() is not config:
                raise UnsupportedModel(
                    f"{folder} is of model_type {family!r}, which is more than a language model; save its text part alone"
                )
            require_known(raw, config, folder)
            require_outline(loader, config, folder, stored)
            # Eager attention is the reference, and on a CPU as fast; the fused one knows no caps of scores. Falcon's adds ALiBi twice.
            settings = config.to_dict()
            eager = (device.type == "cpu" or settings.get("attn_logit_softcapping")) and not settings.get("alibi")
            network, found = loader.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="eager" if eager else None,
            )
    except ModelError:
        raise
    except Exception as error:  # the library raises all kinds
        raise ModelError(
            f"transformers cannot read the {family} model in {folder} (truncated or corrupted?): {reason_of(error)}"
        ) from error
    require_names(found["missing_keys"], set(found["unexpected_keys"]) - extra, folder, family)
    for name, shape, asked in sorted(found["mismatched_keys"]):
        raise ModelError(f"{name} in {folder} has shape {list(shape)} where config.json asks for {list(asked)}")
    require_finite(network.named_parameters(), folder)
    return network


def require_known(raw: Mapping[str, Any], config: Any, folder: Path) -> None:
    """UnsupportedModel where config.json scales what this family's network does not scale: transformers would leave it out in silence."""
    known = {field.name for field in fields(config)}
    for name, value in scalings_of(raw).items():
        if name not in known:
            raise UnsupportedModel(
                f"the config.json in {folder} says {name} = {value!r}, which the network of its model_type {raw.get('model_type')!r} does "
                "not apply; name the model_type that does, or remove that line"
            )


def require_outline(loader: Any, config: Any, folder: Path, stored: Shapes) -> None:
    """ModelError where the network that the configuration asks for is of other sizes than the weights, or too large for this machine.
    What differs in names alone is told when the weights are read, for some families' files have names of their own."""
    with torch.device("meta"):  # shapes without numbers
        network = loader.from_config(config)
    prefix, own = network.base_model_prefix, {**dict(network.named_parameters()), **dict(network.named_buffers())}
    ignored = re.compile("|".join(network._keys_to_ignore_on_load_unexpected or ["(?!)"]))

    def no_weight(name: str) -> bool:
        """Masks and places: what the network holds in whole numbers, and what it does not read."""
        names = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        tensor = next((own[n] for n in names if n in own), None)
        return bool(ignored.search(name)) if tensor is None else not tensor.is_floating_point()

    require_full(weight_files(folder), folder, no_weight)
    for name, tensor in network.state_dict().items():
        found = next((n for n in (name, f"{prefix}.{name}") if n in stored), None)
        if found is not None and list(stored[found]) != list(tensor.shape):
            raise ModelError(
                f"{found} in {folder} has shape {list(stored[found])} where config.json asks for {list(tensor.shape)}"
            )
    asked, there = sum(tensor.numel() for tensor in network.parameters()), elements_of(stored)
    if asked > 2 * there:  # what is tied may be stored once
        raise ModelError(
            f"the config.json in {folder} asks for {asked:,} numbers, where the weights have {there:,} in all; they are not of one "
            "model, or not all of it: save it whole with transformers"
        )
    tensors = [*network.parameters(), *network.buffers()]
    require_memory(4 * sum(tensor.numel() for tensor in tensors), f"the model in {folder}")


def context_of(settings: Mapping[str, Any]) -> int:
    """The longest sequence; 2048 where the family knows no limit. A rope that changes with the length ends it."""
    named = next((int(settings[key]) for key in CONTEXT_KEYS if (settings.get(key) or 0) > 0), 2048)
    return min([named, *changing_ropes(settings).values()])


def changing_ropes(settings: Mapping[str, Any]) -> dict[str, int]:
    """Rope kinds that turn every token of a batch otherwise once its longest row passes a length, with that length: transformers asks
    the batch, not the row, and while a row is decoded the keys in its cache stay as they were turned before."""
    ropes, found = settings.get("rope_parameters") or {}, dict[str, int]()
    for rope in [ropes, *(inner for inner in ropes.values() if isinstance(inner, Mapping))]:
        kind = rope.get("rope_type") or ""
        if kind == "longrope":
            found[kind] = int(rope.get("original_max_position_embeddings") or settings["max_position_embeddings"])
        elif "dynamic" in kind:
            found[kind] = int(settings["max_position_embeddings"])
    return found


def head_scales(settings: Mapping[str, Any]) -> list[float]:
    """What families multiply or divide their logits by, under the same names in different senses: `unlike` tries each."""
    named = [float(settings.get(key) or 1.0) for key in ("logit_scale", "logits_scaling", "lm_head_multiplier")]
    if base := settings.get("dim_model_base"):  # MiniCPM3's
        named.append(settings["hidden_size"] / base)
    return list(dict.fromkeys([*named, *(1 / value for value in named)]))


def unlike(network: Any, module: Foreign, scales: Sequence[float]) -> str:
    """How the module differs from transformers' own model on a few tokens, as the end of a sentence; empty if in nothing.

    Sets the scale of the logits to the one of `scales` that gives transformers' own.
    """
    config, device = module.config, module.output_weight().device
    window = network.config.to_dict().get("sliding_window") or 0
    length = min(max(PROBE, window + 4), LONGEST_PROBE, config.max_positions)
    ids_1T = ((torch.arange(length) * 37 + 5) % config.vocab_size).to(device)[None]
    other_1T = torch.cat((ids_1T[:, :-1], (ids_1T[:, -1:] + 1) % config.vocab_size), 1)
    own_TV, other_TV = (network(input_ids=i, attention_mask=torch.ones_like(i)).logits[0] for i in (ids_1T, other_1T))
    if not bool(torch.isfinite(own_TV).all()):
        return "its logits are not finite; fetch its weights again"
    if not alike(other_TV[:-1], own_TV[:-1]):
        return "it is not a causal language model, for what it predicts of a token depends on the tokens that follow"
    ours = {id(parameter) for parameter in module.parameters()}
    if left := [name for name, parameter in network.named_parameters() if id(parameter) not in ours]:
        return f"it has weights beside its trunk and its head (such as {left[0]})"
    tensors = [tensor.data_ptr() for tensor in module.state_dict().values()]
    if len(set(tensors)) < len(tensors):
        return "layers of it share their weights"
    hidden_1TD = module.hidden(ids_1T)
    for scale in scales:
        module.config = replace(config, scale=scale)
        if alike(module.logits(hidden_1TD)[0], own_TV):
            return "" if decodes_alike(module, ids_1T) else "it decodes otherwise with a cache and padding than without"
    return "its logits are not the product of its hidden states and its output weights"


def decodes_alike(module: Foreign, ids_1T: Tensor) -> bool:
    """Whether hidden states stay the same with padding on the left, a cache, and rows that leave the batch."""
    trunk, T = module.model, ids_1T.shape[1]
    short_1T = ids_1T[:, 2:]
    ids_2T = torch.cat((ids_1T, F.pad(short_1T, (2, 0))))
    seen_2T = torch.ones_like(ids_2T, dtype=torch.bool)
    seen_2T[1, :2] = False
    cache = trunk.new_cache()
    first_2TD = trunk.step(ids_2T[:, : T - 1], seen_2T[:, : T - 1], cache)
    cache.reorder_cache(torch.tensor([1], device=ids_1T.device))
    next_11D = trunk.step(ids_2T[1:, T - 1 :], seen_2T[1:], cache)
    long_TD, short_TD = trunk(ids_1T)[0], trunk(short_1T)[0]
    return (
        alike(first_2TD[0], long_TD[:-1])
        and alike(first_2TD[1, 2:], short_TD[:-1])
        and alike(next_11D[0], short_TD[-1:])
    )


def alike(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


# -------------------------------------------------------------------------------------------------------- saving


def huggingface_tensors(trunk: ForeignTrunk, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a `Foreign` or of a scorer on a foreign trunk under the names that the family's files have."""
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    outer = {"model.inner.": f"{trunk.config.trunk_name}.", "lm_head.": f"{trunk.config.head_name}."}
    renamed = {}
    for name, tensor in tensors.items():
        ours = next((prefix for prefix in outer if name.startswith(prefix)), "")
        renamed[outer.get(ours, "") + name.removeprefix(ours)] = tensor
    with quietly(), torch.device("meta"):
        network = AutoModelForCausalLM.from_config(trunk.inner.config)  # no weights: it knows the names alone
    found: dict[str, Tensor] = revert_weight_conversion(network, renamed)
    return found


def architectures(family: str) -> tuple[str, str, str]:
    """The classes of a family that transformers' AutoModelForCausalLM, AutoModelForSequenceClassification and AutoModel load; empty
    where there is none."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    mappings = (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )
    causal, scorer, trunk = (str(mapping.get(family, "")) for mapping in mappings)
    return causal, scorer, trunk


@contextmanager
def quietly() -> Iterator[None]:
    """transformers without its bars and advice: what matters of it is raised as errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def reason_of(error: Exception) -> str:
    """What an error of transformers says is wrong; of a bare key or an empty message its kind too."""
    reason = telling_line(str(error))
    return reason if " " in reason else ": ".join(filter(None, (type(error).__name__, reason)))
