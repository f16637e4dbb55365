"""Where an app of ours listens."""

import errno
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from bridle.core.errors import UsageError
from bridle.site.proxies import networks

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where this machine itself finds what listens there
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
BACKLOG = 2048  # connections that wait to be taken up


@dataclass(frozen=True)
class Place:
    """Where the app listens, and what stands before it. `workers` are processes; rate limits are each one's own."""

    host: str = "127.0.0.1"
    port: int = 8020
    root_path: str = ""
    proxies: Sequence[str] = ()
    workers: int = 1

    @property
    def loopback(self) -> bool:
        """Whether this machine alone reaches it."""
        return self.host in LOOPBACK

    def url(self, port: int | None = None) -> str:
        host = EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port or self.port}{self.root_path}"

    def check(self) -> None:
        """Raises UsageError where a path or a proxy cannot be one."""
        if not ROOT_PATH.fullmatch(self.root_path):
            raise UsageError(
                f"--root-path {self.root_path!r} is invalid: must be a path such as /labels, without a / at its end"
            )
        networks(self.proxies)


def listen(host: str, port: int) -> socket.socket:
    """Raises UsageError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program listens there; choose another with --port" if taken else error.strerror
        raise UsageError(f"nobody can listen at {host}, port {port}: {why}") from error
    listening.set_inheritable(True)
    return listening


@contextmanager
def in_thread(server: uvicorn.Server, name: str) -> Iterator[str]:
    """A server in a thread of this process, on a free port of the loopback, while the block runs; its address."""
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name=name)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"  # who connects before it runs waits in the socket's line
    finally:
        server.should_exit = True
        thread.join()
