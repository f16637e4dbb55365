"""A model and its tokenizer as objects of transformers, read as the folder that they would be saved as.

Wrong objects are refused at once, by the names of their classes, before anything is written. The user's objects are never changed: what
saving notes in a configuration is noted in a copy.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

from bridle.core.errors import ModelError, UnsupportedModel, UsageError, described_value
from bridle.models.files.gguf import unpacked
from bridle.models.files.hub import named
from bridle.models.files.kinds import family_of, kind_in_settings
from bridle.models.files.weights import require_unquantised
from bridle.models.foreign import architectures, quietly, reason_of

GIVEN = Path("the given model")  # what an error calls it
SCORES = "scores text"  # what is said of a sequence classifier's kind
TAKES = "give a folder, or a model of transformers with its tokenizer: bridle.load(model, tokenizer)"


@contextmanager
def folder_of(model: Any, tokenizer: Any = None, scores: bool = False) -> Iterator[Path]:
    """Where a model can be read that was named by its place, or given as an object with its tokenizer: then in a folder that goes when the
    block ends. `scores`: it is to be a sequence classifier."""
    if isinstance(model, str | Path):
        require_place(model, tokenizer, scores)
        with unpacked(Path(model)) as place:
            yield place
        return
    require_objects(model, tokenizer, scores)
    with tempfile.TemporaryDirectory(prefix="bridle-given-") as folder:
        try:
            write_objects(model, tokenizer, Path(folder), scores)
            yield Path(folder)
        except ModelError as error:  # the folder is gone when it is read
            raise type(error)(str(error).replace(folder, str(GIVEN))) from error


def write_objects(model: Any, tokenizer: Any, folder: Path, scores: bool) -> None:
    """Write both into an empty folder, as transformers saves them."""
    network, spoken = copy(model), deepcopy(tokenizer)  # the weights are shared
    network.config = deepcopy(model.config)
    if "generation_config" in dir(model):  # a classifier has none
        network.generation_config = deepcopy(model.generation_config)
    if (head := model.get_output_embeddings()) is not None:
        network.config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    spoken.init_kwargs |= {
        "padding_side": spoken.padding_side,
        "truncation_side": spoken.truncation_side,
    }  # else saved as it was made
    spoken.backend_tokenizer.no_padding()  # as its last call left it: no part of what it is
    spoken.backend_tokenizer.no_truncation()
    try:
        with quietly():
            network.save_pretrained(folder)
            spoken.save_pretrained(folder)
    except Exception as error:  # the library raises all kinds
        raise ModelError(f"transformers cannot save {GIVEN}: {reason_of(error)}") from error
    path = folder / "config.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["architectures"] = [family_class(model, scores)]  # of a class of the user's own, the one that it is made from
    path.write_text(json.dumps(raw, indent=2), "utf-8")


# ------------------------------------------------------------------------------------------------ what is refused


def require_place(model: str | Path, tokenizer: Any, scores: bool) -> None:
    if tokenizer is not None:
        raise UsageError(
            f"{model} has its own tokenizer, and another was given beside it; leave that out, or load both with transformers and give the "
            "two objects"
        )
    if isinstance(model, str) and named(model) and not Path(model).exists():
        call, kind = ("load_reward", "SequenceClassification") if scores else ("load", "CausalLM")
        or_so = "" if scores else f", or with `bridle init DIR --model {model}`"
        raise UsageError(
            f"{model} is not a folder here; fetch a model of that name from a hub with transformers and call bridle.{call}("
            f"AutoModelFor{kind}.from_pretrained(name), AutoTokenizer.from_pretrained(name)){or_so}"
        )


def require_objects(model: Any, tokenizer: Any, scores: bool) -> None:
    """UsageError or UnsupportedModel, in one sentence, where these are not a causal language model and its tokenizer, or a sequence
    classifier where it is to score."""
    require_network(model, tokenizer)
    (require_scorer if scores else require_causal)(model)
    require_unquantised(GIVEN, object_settings(model))
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(f"weights of {GIVEN} are not in memory; load it without a device_map that offloads")
    require_tokenizer(model, tokenizer)


def require_causal(model: Any) -> None:
    kind, known = object_kind(model), family_class(model)
    if SCORES in kind:
        raise UnsupportedModel(
            f"{GIVEN} is {kind}; a reward model is for bridle.load_reward, and is not trained to write"
        )
    if kind:
        raise UnsupportedModel(f"{GIVEN} is {kind}; give a causal language model")
    if known not in class_names(model):
        raise UnsupportedModel(
            f"{GIVEN} is {family_of(object_settings(model))}, and not the causal language model of its family "
            f"({known or 'none that transformers has'}): without that head it writes no text; load it with AutoModelForCausalLM"
        )


def require_scorer(model: Any) -> None:
    if family_class(model, scores=True) not in class_names(model):
        raise UsageError(
            f"load_reward was given {type(model).__name__}, which scores nothing; train a reward model on it: bridle.reward_model("
            "bridle.load(model, tokenizer), pairs)"
        )


def require_network(model: Any, tokenizer: Any) -> None:
    """UsageError where the first object is not a whole model of transformers."""
    names = class_names(model)
    if "PreTrainedTokenizerBase" in names and "PreTrainedModel" in class_names(tokenizer):
        raise UsageError("the tokenizer was given first and the model second; call bridle.load(model, tokenizer)")
    if "PreTrainedModel" not in names and "PeftModel" not in names:
        part = ", a part of a model or a wrapper round one" if "Module" in names else ""
        raise UsageError(f"a model was needed, got {described_object(model)}{part}; {TAKES}")
    if "PeftModel" in names or model._hf_peft_config_loaded:
        raise UsageError(
            f"{GIVEN} has adapters of peft beside its weights; give what peft's merge_and_unload() makes of the two"
        )


def require_tokenizer(model: Any, tokenizer: Any) -> None:
    """UsageError where the second object is not the fast tokenizer of the model."""
    names = class_names(tokenizer)
    if tokenizer is None:
        raise UsageError(f"{GIVEN} came without its tokenizer; call bridle.load(model, tokenizer)")
    if "ProcessorMixin" in names:
        raise UsageError(
            f"a tokenizer was needed, got {type(tokenizer).__name__}, a processor; give the tokenizer in it: processor.tokenizer"
        )
    if "PreTrainedTokenizerBase" not in names:
        raise UsageError(f"a tokenizer of transformers was needed, got {described_object(tokenizer)}; {TAKES}")
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, and bridle reads no other; load it with AutoTokenizer, use_fast=True"
        )
    rows = len(model.get_input_embeddings().weight)
    lost = sorted(i for i in tokenizer.get_vocab().values() if i >= rows and i not in tokenizer.added_tokens_decoder)
    if lost:
        raise UsageError(
            f"the tokenizer has tokens up to number {lost[-1]:,}, where {GIVEN} has embeddings for {rows:,}; they are not of one model"
        )


# --------------------------------------------------------------------------------------------- what an object is


def class_names(value: Any) -> set[str]:
    """The names of its class and of those above it: transformers and peft need not be loaded to be recognised."""
    return {kind.__name__ for kind in type(value).__mro__}


def described_object(value: Any) -> str:
    """Of a text what it says; of others the class alone, for a module's repr is a page."""
    return described_value(value) if isinstance(value, str) else type(value).__name__


def object_settings(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = model.config.to_dict()
    return {**found, "architectures": [type(model).__name__]}


def object_kind(model: Any) -> str:
    """Which other kind of model it is than a causal language model, by its class or one above it; empty for none."""
    found = object_settings(model)
    kinds = (kind_in_settings({**found, "architectures": [kind.__name__]}) for kind in type(model).__mro__[:-1])
    return next(filter(None, kinds), "")


def family_class(model: Any, scores: bool = False) -> str:
    """The causal language model of its family, or the sequence classifier."""
    return architectures(model.config.model_type)[1 if scores else 0]
