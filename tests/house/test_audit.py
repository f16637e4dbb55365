"""`make audit`: what is asked, what is answered, and that no network is one sentence. The service here is this test's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.house.audit import CONSTRAINTS, main, pinned
from tests.house.source import ROOT


class Service(HTTPServer):
    """Answers every question in the same words, and keeps what it was asked."""

    answer: bytes = b""
    asked: Any = None


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Service)
        self.server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if self.server.answer else 500)
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def constraints(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.txt"
    path.write_text("# with reasons\nJinja2==3.1.6\ntomli_w==1.2.0  # why\n")
    return path


def address(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_every_version_is_asked_about() -> None:
    text = CONSTRAINTS.read_text("utf-8")
    assert len(pinned(text)) == sum(line[:1].isalnum() for line in text.splitlines()) > 50


@pytest.mark.parametrize(
    ("vulnerable", "status", "last"),
    [([], 0, "vulnerabilities in 0 of 2 versions"), (["GHSA-1", "CVE-2"], 1, "vulnerabilities in 1 of 2 versions")],
)
def test_what_is_known_decides_the_status(
    vulnerable: list[str],
    status: int,
    last: str,
    service: Service,
    constraints: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.answer = json.dumps({"results": [{}, {"vulns": [{"id": name} for name in vulnerable]}]}).encode()
    assert main(constraints, address(service)) == status
    assert service.asked["queries"][1] == {"package": {"ecosystem": "PyPI", "name": "tomli_w"}, "version": "1.2.0"}
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[-1].endswith(last)
        and [line for line in lines[:-1] if line.startswith("tomli_w 1.2.0: GHSA-1, CVE-2 ")] == lines[:-1]
    )


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"[]", b'{"results": [{}]}', b'{"results": [1, 2]}', b'{"results": [{"vulns": [{}]}, {}]}'],
)
def test_an_answer_that_is_none_is_one_sentence(
    answer: bytes, service: Service, constraints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer = answer
    assert main(constraints, address(service)) == 3
    assert_one_sentence(capsys)


def test_no_network_is_one_sentence(constraints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as closed:
        nobody = address(closed)
    assert main(constraints, nobody) == 3
    assert_one_sentence(capsys)


def assert_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.startswith("audit: http://127.0.0.1:")
    assert "could not be asked about 2 versions" in err and "make audit" in err


def test_ci_does_not_ask() -> None:
    assert "audit" not in (ROOT / ".ci" / "run").read_text("utf-8")
