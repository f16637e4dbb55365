"""An endpoint on this machine that answers as a script says, for the tests of judges behind one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Scripted = tuple[int, dict[str, str], bytes]
Script = Callable[[int, dict[str, Any]], Scripted]  # the number of the call, from 0, and its body


def completion(text: str | None, finish: str = "stop", top: dict[str, float] | None = None, **message: Any) -> Scripted:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    if top is not None:
        rows = [{"token": word, "logprob": logprob} for word, logprob in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": rows}]}
    answer = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}}
    return 200, {}, json.dumps(answer).encode()


def failed(status: int, why: str = "no", **headers: str) -> Scripted:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": why}}).encode()


@dataclass
class Endpoint:
    script: Script
    address: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies, in the order in which they came
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def scripted(script: Script) -> Iterator[Endpoint]:
    endpoint = Endpoint(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with endpoint.lock:
                number = len(endpoint.asked)
                endpoint.asked.append({**body, "path": self.path})
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                endpoint.at_once += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
            try:
                status, headers, content = endpoint.script(number, body)
            finally:
                with endpoint.lock:
                    endpoint.at_once -= 1
            if status == 0:  # death in the middle of an answer
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:  # a client that went away
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
