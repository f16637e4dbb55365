"""What lies at a place that is named as a model: refused by its kind where bridle can make nothing of it, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridle.core.errors import UnsupportedModel
from bridle.models.sizes import read_object

MAGIC = b"GGUF"
RESAVE = (
    "load it with transformers where you trust it, save it by save_pretrained with its tokenizer, and name that folder"
)
OTHER_WEIGHTS = {  # files of weights that bridle does not read, and what to say of them
    (".bin", ".pt", ".pth", ".ckpt", ".pkl"): f"pickles, which may run code as they are read; {RESAVE}",
    (".gguf",): "GGUF; name the file itself",
    (".h5", ".msgpack"): f"weights for TensorFlow or JAX; {RESAVE}",
    (".onnx",): f"a graph for inference (ONNX); {RESAVE}",
}
WORK_OF_HEADS = {  # the end of an architecture's name, and what such a model does
    "ForSequenceClassification": "scores text and writes none",
    "ForTokenClassification": "labels tokens and writes no text",
    "ForQuestionAnswering": "marks answers within a text and writes none",
    "ForMultipleChoice": "chooses among texts and writes none",
    "ForNextSentencePrediction": "compares sentences and writes none",
    "ForMaskedLM": "fills gaps in a text and continues none",
    "ForCTC": "reads sound",
    "ForAudioClassification": "reads sound",
    "ForSpeechSeq2Seq": "reads sound",
    "ForTextToWaveform": "writes sound",
    "ForImageClassification": "reads images",
    "ForImageTextToText": "reads images beside text",
}
OTHER_SENSES = {"vision_config": "images", "audio_config": "sound", "speech_config": "sound", "video_config": "films"}


def is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def require_language_model(folder: Path, raw: Mapping[str, Any]) -> None:
    """UnsupportedModel, with the family and the kind, where config.json or what lies beside it says that it is another kind of model."""
    if kind := other_kind(folder, raw):
        way = "save its text part alone" if kind.endswith("beside text") else "name a causal language model"
        raise UnsupportedModel(f"{folder} holds {kind}; {way}")


def other_kind(folder: Path, raw: Mapping[str, Any]) -> str:
    """What it is, with its family; empty where nothing speaks against a causal language model."""
    family = family_of(raw)
    if (folder / "bridle_reward.json").is_file():
        return f"{family}, a reward model of bridle's, which scores text and writes none"
    if any((folder / mark).is_file() for mark in ("config_sentence_transformers.json", "modules.json")):
        return f"{family} for sentence-transformers, an embedding model, which writes no text"
    return kind_in_settings(raw)


def kind_in_settings(raw: Mapping[str, Any]) -> str:
    """The same by config.json alone."""
    name, family = first_architecture(raw), family_of(raw)
    senses = dict.fromkeys(what for key, what in OTHER_SENSES.items() if raw.get(key) is not None)
    if senses:
        return f"{family}, which reads {' and '.join(senses)} beside text"
    if raw.get("is_encoder_decoder") is True or name.endswith("ForConditionalGeneration"):
        return f"{family}, an encoder with a decoder"
    work = next((work for head, work in WORK_OF_HEADS.items() if name.endswith(head)), "")
    return f"{family}, which {work}" if work else ""


def first_architecture(raw: Mapping[str, Any]) -> str:
    named = raw.get("architectures")
    return str(named[0])[:80] if isinstance(named, list) and named else ""


def family_of(raw: Mapping[str, Any]) -> str:
    return f"{first_architecture(raw) or 'a model'} of model_type {str(raw.get('model_type'))[:80]!r}"


def is_adapter(place: Path) -> bool:
    """Whether an adapter lies there without its base, as peft saves it."""
    return (place / "adapter_config.json").is_file() and not (place / "config.json").is_file()


def adapter_base(place: Path) -> tuple[Path | None, str]:
    """The folder of the model that an adapter is on, None where it is not here, and what the adapter calls it."""
    named = str(read_object(place / "adapter_config.json").get("base_model_name_or_path") or "")
    there = [folder for folder in (Path(named), place / named) if named and (folder / "config.json").is_file()]
    return (there[0] if there else None), named


def place_fault(place: Path) -> str:
    """Why no model can be read at a place, as a sentence; empty where there is a folder with config.json, or a GGUF file."""
    takes = "--model takes a folder with config.json and model.safetensors, a GGUF file, or a hub's ORG/NAME"
    if not place.exists():
        return f"there is no model at {place}; {takes}"
    if place.is_file():
        return "" if is_gguf(place) else file_fault(place, takes)
    if (place / "config.json").is_file():
        return ""
    if is_adapter(place):
        base, named = adapter_base(place)
        return (
            ""
            if base is not None
            else (
                f"{place} is a LoRA adapter and not a whole model, and its base {named!r} is not a folder here; write where that lies as "
                "base_model_name_or_path into its adapter_config.json, or merge the two and name that folder"
            )
        )
    if (place / "params.json").is_file():
        return (
            f"{place} has params.json and no config.json, its makers' own form; fetch the model in Hugging Face's, or convert it "
            "with transformers"
        )
    return f"there is no model at {place}: it has no config.json{other_weights(place)}; {takes}"


def file_fault(path: Path, takes: str) -> str:
    with path.open("rb") as file:
        pointer = file.read(40).startswith(b"version https://git-lfs")
    if pointer:
        return f"{path} is a pointer of Git LFS and not the file itself; fetch that with `git lfs pull`"
    if path.suffix == ".gguf":
        return f"{path} does not begin as a GGUF file does; fetch it again"
    if path.suffix == ".safetensors":
        return f"{path} holds weights alone; name the folder that has config.json and tokenizer.json beside them"
    what = next((what for endings, what in OTHER_WEIGHTS.items() if path.suffix in endings), "")
    return f"{path} holds {what}" if what else f"there is no model at {path}, which is a file; {takes}"


def other_weights(folder: Path) -> str:
    """Of a folder without weights that bridle reads, those that it has, as the middle of a sentence."""
    for endings, what in OTHER_WEIGHTS.items():
        if found := sorted(path.name for ending in endings for path in folder.glob(f"*{ending}") if path.is_file()):
            return f", and has {found[0]}: {what}"
    return ""
