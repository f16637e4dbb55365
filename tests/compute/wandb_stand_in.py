"""A stand-in for the module wandb, and for what lies behind it."""

from __future__ import annotations

from typing import Any


class Remote:
    """Every run's rows by its id, as they came; `fault`: the call that raises."""

    def __init__(self, offline: bool = False) -> None:
        self.offline, self.fault = offline, ""
        self.rows: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.asked: list[dict[str, Any]] = []
        self.ended: list[int] = []

    def Settings(self, **given: Any) -> dict[str, Any]:
        return given

    def init(self, **given: Any) -> RemoteRun:
        self.asked.append(given)
        if self.fault == "init":
            raise ConnectionError("no route to host")
        return RemoteRun(self, self.rows.setdefault(given["id"], []))


class RemoteRun:
    def __init__(self, remote: Remote, rows: list[tuple[int, dict[str, float]]]) -> None:
        self.remote, self.rows, self.offline = remote, rows, remote.offline
        self.url, self.dir = "https://wandb.example/r", "wandb/offline-run/files"
        self.step = 0 if self.offline or not rows else rows[-1][0] + 1

    def log(self, row: dict[str, float], *, step: int) -> None:
        if self.remote.fault == "log":
            raise ConnectionError("no route to host")
        self.rows.append((step, row))

    def finish(self, *, exit_code: int) -> None:
        if self.remote.fault == "finish":
            raise ConnectionError("no route to host")
        self.remote.ended.append(exit_code)
