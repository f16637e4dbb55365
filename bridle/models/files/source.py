"""What a model's folder says beside the numbers of its weights, kept so that it is written again as it came.

    files         settings, tokenizer, templates, licence, card: every file that holds no weights, byte for byte
    layout        which file held which tensor, what each file's header says, and the type that each tensor came in
    settings      config.json and the index of weights as they came

A model that is worked on is in float32 whatever it came in, and its config.json says so. What that replaced lies beside it in
`bridle_source.json`, which `export` reads and leaves out:

    {"dtypes": {"lm_head.weight": "BF16", …}, "settings": {"config.json": "<its text>", …}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open

from bridle.core.errors import ModelError
from bridle.models.contents import INDEX, TEXTS, WEIGHTS, weight_files, weight_names
from bridle.models.sizes import read_object

CONFIG, SIDECAR, ADAPTER_CONFIG = "config.json", "bridle_source.json", "adapter_config.json"
WRITTEN_ANEW = {SIDECAR, "bridle_reward.json"}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EXTRA_TEMPLATES = "additional_chat_templates"
OF_TOKENIZER = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
}  # fmt: skip
# Weights and states of training, in the forms of several libraries: none is a setting.
OF_WEIGHTS = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ggml", ".ot", ".tflite", ".npz",
    ".npy", ".pkl", ".pickle", ".nemo", ".llamafile", ".distcp",
}  # fmt: skip
LARGEST, LARGEST_TOGETHER = 64 * 2**20, 256 * 2**20  # bytes; a tokenizer of 260,000 tokens has 34 MB


@dataclass(frozen=True)
class ModelSource:
    """The folder that a model came from, its `place` and its `content` hash; empty for one that was made from nothing. `left_out`: what
    else lies there and is not kept."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    layout: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    place: str = ""
    content: str = ""

    def of_tokenizer(self) -> ModelSource:
        """What of it belongs to other weights with the same tokenizer."""
        kept = {
            name: data
            for name, data in self.files.items()
            if PurePosixPath(name).parts[0] in {*OF_TOKENIZER, EXTRA_TEMPLATES}
        }
        return ModelSource(kept)


def read_source(folder: Path) -> ModelSource:
    """All of a folder but the numbers of its weights. ModelError where `bridle_source.json` is damaged."""
    files, left_out = kept_files(folder)
    layout, metadata, dtypes = dict[str, str](), dict[str, Mapping[str, str]](), dict[str, str]()
    for path in weight_files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            with safe_open(path, "numpy") as file:
                metadata[name] = file.metadata() or {}
                for tensor in file.keys():
                    layout[tensor], dtypes[tensor] = name, file.get_slice(tensor).get_dtype()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read (truncated or corrupted?): {error}") from error
    settings = {CONFIG: files[CONFIG].decode("utf-8")} if CONFIG in files else {}
    if set(layout.values()) != {WEIGHTS} and (folder / INDEX).is_file():
        settings[INDEX] = (folder / INDEX).read_text("utf-8")
    came = read_object(folder / SIDECAR)
    if came and not is_sidecar(came):
        raise ModelError(
            f"{folder / SIDECAR} is damaged: it needs the types of tensors by name, and settings as text; remove it, and the model is "
            "exported in float32"
        )
    return ModelSource(
        files, layout, metadata, {**dtypes, **came.get("dtypes", {})}, {**settings, **came.get("settings", {})}, tuple(left_out),
        str(folder),
    )  # fmt: skip


def is_sidecar(found: Mapping[str, object]) -> bool:
    dtypes, settings = found.get("dtypes"), found.get("settings")
    if not isinstance(dtypes, dict) or not isinstance(settings, dict) or not set(settings) <= {CONFIG, INDEX}:
        return False
    return all(isinstance(value, str) for value in dtypes.values()) and all(map(is_object, settings.values()))


def is_object(text: object) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def kept_files(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of a folder that hold no weights, by their paths in it; and what else lies there, hidden things apart."""
    files, left_out = dict[str, bytes](), list[str]()
    loaded, room = set(weight_names(folder)), LARGEST_TOGETHER
    for path in walked(folder):
        name = path.relative_to(folder).as_posix()
        if name in loaded | WRITTEN_ANEW or name.endswith(".index.json"):
            continue
        if name in TEXTS or is_kept(path, folder, room):
            files[name] = path.read_bytes()
            room -= len(files[name])
        else:
            left_out.append(name)
    return files, left_out


def walked(folder: Path) -> Iterator[Path]:
    """Every file below a folder, and as they are the folders that are not looked into: another model's, and what lies behind a link.
    Hidden ones are passed over: what version control, downloads and editors keep, and passwords; so is an adapter, which says how these
    weights came to be."""
    for here, folders, names in os.walk(folder):
        for name in sorted(folders):
            inner = Path(here, name)
            passed = name[0] == "." or (inner / ADAPTER_CONFIG).exists()
            if passed or inner.is_symlink() or (inner / CONFIG).exists():
                folders.remove(name)
                yield from [] if passed else [inner]
        folders.sort()
        yield from (Path(here, name) for name in sorted(names) if name[0] != "." or name == ".gitattributes")


def is_kept(path: Path, folder: Path, room: int) -> bool:
    """Whether a file is kept that nothing of ours reads. A link may lead to the blobs of a download's cache, and nowhere else outside."""
    if not path.is_file() or path.suffix in OF_WEIGHTS or path.stat().st_size > min(LARGEST, room):
        return False
    real, home = path.resolve(), folder.resolve()
    return real.is_relative_to(home) or (len(home.parents) > 1 and real.parent == home.parents[1] / "blobs")
