"""Which files of a model folder are loaded, and the content hash of those and no others.

    config.json, generation_config.json, tokenizer.json, tokenizer_config.json                         what of them is there
    chat_template.jinja or .json, additional_chat_templates/default.jinja, bridle_template.json         of the chat template
    special_tokens_map.json                                           where tokenizer_config.json lists no added tokens
    bridle_reward.json                                                                                  of a reward model
    model.safetensors, or model.safetensors.index.json and every file that it names                     the weights

A link is followed, for the caches of Hugging Face are made of them. A README, an optimizer's state or the code that lies beside are not
loaded and not hashed. The hash says by which rule it was made: `v2-…` is this one, plain hexadecimal digits are the one before.
"""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from bridle.core.errors import ModelError
from bridle.core.files import file_hash, read_whole
from bridle.core.records import content_hash
from bridle.models.files.kinds import other_weights
from bridle.models.sizes import read_object

RULE = "v2-"
DIGITS = 64  # of a hash of either rule: the store's column has room for as many
TEXTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "additional_chat_templates/default.jinja", "chat_template.json", "bridle_template.json"),
    "bridle_reward.json",
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAP = "special_tokens_map.json"

HashFolder = Callable[[Path], str]


@read_whole
def folder_hash(folder: Path) -> str:
    """Content hash of what decides a model's answers: configuration, tokenizer, template, weights."""
    return hash_of_files({name: file_hash(folder / name) for name in loaded_files(folder)})


def hash_of_files(hashes: Mapping[str, str]) -> str:
    """The content hash of a folder by the hash of each of its loaded files, by their names in it."""
    return (RULE + content_hash(sorted(hashes.items())))[:DIGITS]


def loaded_files(folder: Path) -> list[str]:
    """The files of a model folder that are loaded, by their names in it; of weights that are named what is there. Raises ModelError
    where the index is not one, or names a file outside the folder."""
    texts = (*TEXTS, *([] if (folder / WEIGHTS).is_file() else [INDEX]), *([MAP] if map_is_read(folder) else []))
    names = [name for name in texts if (folder / name).is_file()]
    return sorted({*names, *(name for name in weight_names(folder) if (folder / name).is_file())})


def map_is_read(folder: Path) -> bool:
    """Whether special_tokens_map.json names tokens: as transformers does, it is asked where tokenizer_config.json lists no added ones."""
    path = folder / "tokenizer_config.json"
    return not path.is_file() or b'"added_tokens_decoder"' not in path.read_bytes()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, all of them there. Those in parts hold what the index says, no less and no more."""
    paths = [folder / name for name in weight_names(folder)]
    for path in paths:
        if not path.is_file():
            raise ModelError(
                f"{folder} lacks {path.relative_to(folder)}{other_weights(folder)}; bridle reads safetensors only"
            )
    if paths != [folder / WEIGHTS]:
        require_listed(folder)
    return paths


def weight_names(folder: Path) -> list[str]:
    """The names of the files that hold a folder's weights, there or not: as transformers does, the index is asked where the weights are
    not in one file."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    names = set(weight_map(folder).values())
    for name in names:
        path = PurePosixPath(name)
        if (
            path.is_absolute()
            or ".." in path.parts
            or path.suffix != ".safetensors"
            or not name.isprintable()
            or "\\" in name
        ):
            raise ModelError(
                f"{folder / INDEX} names {name[:80]!r}, which is not a .safetensors file in its folder; put the weights beside it and "
                "name them without a path that leads out"
            )
    return sorted(names)


def weight_map(folder: Path) -> dict[str, str]:
    """Which file holds which tensor, as the index says."""
    found: Any = read_object(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise ModelError(
            f"{folder / INDEX} has no weight_map that names a file for each tensor; fetch or save the model again"
        )
    return found


def require_listed(folder: Path) -> None:
    """Refuse files of weights that hold other tensors than the index lists for them."""
    listed: dict[str, set[str]] = {}
    for tensor, name in weight_map(folder).items():
        listed.setdefault(name, set()).add(tensor)
    for name, tensors in sorted(listed.items()):
        try:
            with safe_open(folder / name, "pt") as file:
                held = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{folder / name} cannot be read (truncated or corrupted?): {error}") from error
        if odd := sorted(tensors ^ held):
            where = "lists it there, and it is not" if odd[0] in tensors else "does not list it"
            raise ModelError(
                f"{folder / name} and its index disagree on {len(odd)} tensors (such as {odd[0]}: {INDEX} {where}); they are not of "
                "one model, fetch or save it again"
            )


def earlier_files(folder: Path) -> list[str]:
    """What the rule before hashed, in its order: the texts that are there, and every *.safetensors file beside them."""
    texts = ("config", "tokenizer", "tokenizer_config", "generation_config", "bridle_reward")
    names = [f"{name}.json" for name in texts] + [
        "chat_template.jinja",
        *sorted(p.name for p in folder.glob("*.safetensors")),
    ]
    return [name for name in names if (folder / name).is_file()]


def lasting_hash(folder: Path) -> str:
    """The content hash by the rule before where that read the same files, else by this one: for calls from Python, whose runs an earlier
    version may have begun, and which keep no other name of a model."""
    same = loaded_files(folder) == sorted(earlier_files(folder))
    return earlier_hash(folder) if same else folder_hash(folder)


def has_content(folder: Path, content: str) -> bool:
    """Whether a content hash, by either rule, is of what lies in a folder now."""
    return (folder / "config.json").is_file() and content in (folder_hash(folder), lasting_hash(folder))


def earlier_hash(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """The content hash by the rule before, for what earlier versions noted; `known`: the hashes of files that were hashed already."""
    hashes = known or {}
    return content_hash([[name, hashes.get(name) or file_hash(folder / name)] for name in earlier_files(folder)])
