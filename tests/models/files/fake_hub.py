"""A hub on this machine: the few addresses that Hugging Face's client asks for, of one model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors",)  # kept by their SHA-256, as the hub does with files of LFS


@dataclass
class FakeHub:
    """`files` of the model `name` at one commit, which `branches` lead to. `refuse`: the status of every answer, and the client's code
    for it; `wrong`: files that are not sent as they are announced; `asked`: what was."""

    name: str
    files: dict[str, bytes]
    branches: tuple[str, ...] = ("main",)
    refuse: tuple[int, str] | None = None
    wrong: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    @classmethod
    def of_folder(cls, name: str, folder: Path) -> FakeHub:
        found = (path for path in folder.rglob("*") if path.is_file())
        return cls(name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in found})

    def sent(self) -> list[str]:
        """The files whose content was asked for."""
        return sorted(
            asked.partition(f"/resolve/{COMMIT}/")[2]
            for asked in self.asked
            if asked.startswith("GET") and "resolve" in asked
        )


class Answers(BaseHTTPRequestHandler):
    def __init__(self, hub: FakeHub, *rest: object) -> None:
        self.hub = hub
        super().__init__(*rest)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        if hub.refuse is not None:
            status, code = hub.refuse
            self.answer(status, **({"x_error_code": code} if code else {}))
        elif found := re.fullmatch(f"/api/models/{hub.name}(?:/(revision|tree)/(.+))?", path):
            kind, revision = found[1] or "revision", found[2] or "main"
            if revision not in (*hub.branches, COMMIT):
                self.answer(404, x_error_code="RevisionNotFound")
            elif kind == "tree":
                self.answer(200, json.dumps([entry(*one) for one in hub.files.items()]).encode())
            else:
                siblings = [{"rfilename": name} for name in hub.files]
                self.answer(200, json.dumps({"id": hub.name, "sha": COMMIT, "siblings": siblings}).encode())
        elif found := re.fullmatch(f"/{hub.name}/resolve/{COMMIT}/(.+)", path):
            content = hub.files[found[1]]
            etag = {"etag": f'"{hash_of(found[1], content)}"', "x_repo_commit": COMMIT}
            self.answer(200, hub.wrong.get(found[1], content), **etag)
        else:
            self.answer(404, x_error_code="RepoNotFound")

    do_HEAD = do_GET


def hash_of(name: str, content: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict[str, object]:
    large = {"lfs": {"oid": hash_of(name, content), "size": len(content), "pointerSize": 130}}
    return {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": "0" * 40,
        **(large if name.endswith(LARGE) else {}),
    }


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, hub))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
