"""A model by its name on a hub: ORG/NAME[@revision] on Hugging Face's or a mirror of it, modelscope:ORG/NAME[@revision] on ModelScope's.

The hub's own client downloads, with its cache, its token and its settings (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME, HF_TOKEN). Only what
bridle reads comes, and the licence: no pickles, no code, no other formats. What came is pinned in the project, in hub.json:

    hub         "https://huggingface.co"
    name        "ORG/NAME"
    asked       "main"                      the revision that was asked for
    revision    "0123…"                     the commit that this was then (ModelScope tells none: as asked)
    folder      where the client keeps it
    files       {"config.json": SHA-256, …}

Not covered: a hub that sends wrong files under right hashes is believed, as its client believes it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bridle.core.errors import ModelError, UsageError
from bridle.core.files import file_hash, read_record
from bridle.core.text import telling_line
from bridle.models.contents import weight_names
from bridle.models.files.kinds import place_fault

PINS = "hub.json"
PATIENCE = 10.0  # seconds for a hub's first answer
WANTED = [
    *(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-*.safetensors",
        "model.safetensors.index.json",
    ),
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template*", "additional_chat_templates/*.jinja", "adapter_config.json"),  # the last to be refused by name
    *("LICENSE*", "LICENCE*", "license*", "NOTICE*", "USE_POLICY*"),
]
NAMED = re.compile(r"(?P<hub>modelscope:)?(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Named:
    """A name on a hub; `revision` is a branch, a tag or a commit, empty: the hub's usual one."""

    name: str
    revision: str = ""
    modelscope: bool = False

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def command(self) -> str:
        """What downloads it into a folder, where there is a network."""
        folder = self.name.partition("/")[2]
        revision = f" --revision {self.revision}" if self.revision else ""
        if self.modelscope:
            return f"modelscope download --model {self.name}{revision} --local_dir {folder}"
        return f"hf download {self.name}{revision} --local-dir {folder}"


@dataclass(frozen=True)
class Pinned:
    """What came, for hub.json."""

    hub: str
    name: str
    asked: str
    revision: str
    folder: str
    files: Mapping[str, str]


def named(text: str) -> Named | None:
    """The name on a hub that a user wrote; None where it cannot be one: a path, say."""
    found = NAMED.fullmatch(text)
    return found and Named(found["name"], found["revision"] or "", bool(found["hub"]))


def model_place(model: str, say: Callable[[str], None]) -> tuple[Path, dict[str, Any] | None, list[str]]:
    """Where the model is that a user names, what a hub sent of it, and what there is to report. A folder comes before a hub's name."""
    wanted = named(model)
    if wanted is None or os.path.exists(model):
        both = f"{model} is a folder here, which comes before a model of that name on a hub"
        return Path(model).resolve(), None, [both] if wanted else []
    found = fetch(wanted, say)
    came = f"{found.name} at revision {found.revision[:12]} from {found.hub}; {PINS} has the hashes of its {len(found.files)} files"
    return Path(found.folder), asdict(found), [came]


def require_model_place(project: Path, named: str) -> Path:
    """The folder or file that a project's `model.path` names; UsageError where no model lies there. The project may not be there yet."""
    place = Path(os.path.normpath(project / Path(named).expanduser()))
    if fault := place_fault(place):
        raise UsageError(fault)
    return place


def fetch(wanted: Named, say: Callable[[str], None]) -> Pinned:
    """Download a model, or find it in the client's cache, and check what came; ModelError, in one sentence, for whatever goes wrong."""
    hub, folder = from_modelscope(wanted) if wanted.modelscope else from_hugging_face(wanted, say)
    asked = wanted.revision or ("master" if wanted.modelscope else "main")
    commit = asked if wanted.modelscope else folder.name  # the cache calls a snapshot by its commit
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    parts = [*WANTED, *weight_names(folder)]  # what else the cache has of this commit is not read
    files = {name: file_hash(folder / name) for name in names if any(fnmatch(name, part) for part in parts)}
    for name, content in files.items():
        announced = (folder / name).resolve().name  # the cache calls a large file by the hash that the hub announced
        if SHA256.fullmatch(announced) and announced != content:
            raise ModelError(
                f"{name} of {wanted} is not the file that {hub} announced (SHA-256 {content[:12]}… where {announced[:12]}… was expected); "
                f"remove {(folder / name).resolve()} and download it again"
            )
    return Pinned(hub, wanted.name, asked, commit, str(folder), files)


def check_pinned(pins: Path, folder: Path) -> None:
    """ModelError where a folder that `pins` (hub.json) tells of does not hold what came then, to the bit."""
    if not pins.is_file():
        return
    noted = read_record(pins, hub=str, name=str, revision=str, folder=str, files=dict)
    if Path(noted["folder"]) != folder:
        return  # another model was named since
    again = Named(noted["name"], noted["revision"], modelscope="://" not in noted["hub"]).command
    for name, content in noted["files"].items():
        path = folder / name
        if not path.is_file() or file_hash(path) != content:
            what = "is not the file that was downloaded" if path.is_file() else "is not there any more"
            raise ModelError(
                f"{path}, of {noted['name']} at revision {noted['revision'][:12]}, {what}; `{again}` brings it again, and "
                "--set model.path=FOLDER names it"
            )


# ------------------------------------------------------------------------------------------------------------- the hubs


def from_hugging_face(wanted: Named, say: Callable[[str], None]) -> tuple[str, Path]:
    """The hub's address, and the snapshot's folder in the client's cache."""
    from huggingface_hub import HfApi, constants, snapshot_download

    hub, revision = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT, wanted.revision or None

    def download(patterns: list[str], cached: bool) -> Path:
        return Path(
            snapshot_download(
                wanted.name, revision=revision, allow_patterns=patterns, endpoint=hub, local_files_only=cached
            )
        ).absolute()  # HF_HOME may be a relative path, which would be read as one from the project's folder

    try:
        cached = False
        try:  # the client itself waits for ever for the first answer
            info = HfApi(endpoint=hub).model_info(wanted.name, revision=revision, timeout=PATIENCE)
            require_weights(wanted, [file.rfilename for file in info.siblings or ()])
        except Exception as error:
            if (status_of(error) or 500) < 500 or isinstance(error, ModelError):
                raise
            folder, cached = download(WANTED, True), True  # raises where the cache has none
            say(f"{hub} does not answer, and {wanted} is taken from the client's cache")
        else:
            say(f"downloading {wanted} from {hub}")
            folder = download(WANTED, False)
        if lacking := [name for name in weight_names(folder) if not (folder / name).is_file()]:
            folder = download([*WANTED, *lacking], cached)  # weights in parts that have names of their own
    except ModelError:
        raise
    except Exception as error:  # its own errors, and those of its HTTP library and of the disk
        raise ModelError(hub_fault(error, wanted, hub)) from error
    return hub, folder


def from_modelscope(wanted: Named) -> tuple[str, Path]:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ModelError(
            "ModelScope's client is not installed; install it by `pip install 'bridle[modelscope]'`, or run "
            f"`{wanted.command}` elsewhere and name that folder"
        ) from error
    hub = os.environ.get("MODELSCOPE_DOMAIN") or "modelscope.cn"
    revision = {"revision": wanted.revision} if wanted.revision else {}
    try:
        return hub, Path(snapshot_download(wanted.name, allow_patterns=WANTED, **revision)).absolute()
    except Exception as error:  # its errors have no common kind
        raise ModelError(hub_fault(error, wanted, hub)) from error


def require_weights(wanted: Named, names: list[str]) -> None:
    """ModelError where a hub's list of a model's files has nothing that bridle reads."""
    if names and not any(re.fullmatch(r"[^/]+\.safetensors", name) for name in names):
        others = sorted(
            name for name in names if name.endswith((".bin", ".gguf", ".pt", ".pth", ".msgpack", ".h5", ".onnx"))
        )
        raise ModelError(
            f"{wanted} holds no safetensors, which bridle reads alone, but {', '.join(others[:3]) or 'no weights'}; load it with "
            "transformers elsewhere, save it with save_pretrained, and name that folder"
        )


def require_repository(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise UsageError(f"{name[:80]!r} does not name a repository; name it as ORG/NAME")


def push_folder(folder: Path, name: str, public: bool, kind: str = "model") -> str:
    """Upload an exported folder to ORG/NAME on the hub that Hugging Face's client is set to, a model or a "dataset"; its address there.
    ModelError: it refused."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(name, private=not public, exist_ok=True, repo_type=kind)
        return str(
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by bridle", repo_type=kind)
        )
    except Exception as error:  # its own errors, and those of its HTTP library
        reason = telling_line(str(error))
        asked = "" if kind == "model" else f" --repo-type {kind}"
        raise ModelError(
            f"{hub.endpoint} did not take {name} ({type(error).__name__}: {reason}); log in with `hf auth login`, or export the {kind} and "
            f"run `hf upload {name} DIR{asked}` where the hub answers"
        ) from error


# ------------------------------------------------------------------------------------------------ what is wrong, in words


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status with which Hugging Face's hub answered; None where none did."""
    from huggingface_hub.errors import HfHubHTTPError

    answered = (one.response.status_code for one in causes(error) if isinstance(one, HfHubHTTPError))
    return next(answered, None)


def hub_fault(error: BaseException, wanted: Named, hub: str, kind: str = "model") -> str:
    """One sentence for what went wrong between a hub and its client, and the way on; also for a `kind` of "dataset"."""
    kinds = {type(one).__name__ for one in causes(error)}
    status, number = (
        status_of(error),
        next((one.errno for one in causes(error) if isinstance(one, OSError) and one.errno), 0),
    )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full, and {wanted} did not come whole; free some, or set HF_HOME to a folder on another disk, and run the same "
            "command again, which goes on where this one stopped"
        )
    if "HFValidationError" in kinds:
        return f"{wanted.name!r} cannot be the name of a {kind} at {hub}; it is ORG/NAME, of letters, digits, '-', '_' and '.'"
    if "GatedRepoError" in kinds or status == 403:
        page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{wanted.name}"
        return f"{hub} does not give {wanted} to you ({status}): accept its terms at {page}, and log in with `hf auth login`"
    if "RevisionNotFoundError" in kinds:
        return f"{wanted.name} has no revision {wanted.revision!r} at {hub}; name a branch, a tag or a commit of it after the @"
    if status in (401, 404):
        return (
            f"there is no {kind} {wanted} at {hub}, and no folder of that name here ({status}); correct the name, or log in with "
            "`hf auth login` where it is private"
        )
    return no_hub_answers(error, wanted, hub)


def no_hub_answers(error: BaseException, wanted: Named, hub: str) -> str:
    """The sentence for a machine without a network, with what to run on one that has it."""
    status, last = status_of(error), list(causes(error))[-1]
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in causes(error)):
        why = "HF_HUB_OFFLINE is set, and the cache has no copy"
    else:
        words = " ".join(str(last).split())[:200]
        why = f"HTTP {status}" if status else f"{type(last).__name__}{f': {words}' if words else ''}"
    return f"{hub} does not answer for {wanted} ({why}); on a machine that reaches it run `{wanted.command}`, and name that folder here"
