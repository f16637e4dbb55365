"""`bridle label` as a program: the link for its owner, a port that is taken, and Ctrl-C."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from bridle.core.errors import UsageError
from bridle.labelling.serving import check
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.site.listening import Place, listen
from tests.tiny_project import done


def test_an_owner_begins(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p", Recipe())
    link = done("label", "--project", project.folder, "--owner-link", "--root-path", "/labels/")
    assert "http://127.0.0.1:8020/labels/join/" in link
    command = [sys.executable, "-m", "bridle.cli", "label", "--project", str(project.folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None and serving.stderr is not None
            line = serving.stdout.readline()
            found = re.search(r"become the owner .*: (http://127\.0\.0\.1:(\d+))(/join/\S+)", line)
            assert found, line
            url, port, path = found.groups()
            with httpx2.Client(base_url=url, headers={"x-forwarded-proto": "https"}) as browser:
                assert browser.get(link.split("/labels")[1].strip()).status_code == 404  # a newer one was printed
                joined = browser.post(path, data={"handle": "olga", "password": "a long password"})
                assert joined.status_code == 303 and "Secure" not in joined.headers["set-cookie"]
                assert "server" not in joined.headers and browser.get("/people").status_code == 200
            with pytest.raises(
                UsageError, match=f"port {port}: another program listens there; choose another with --port"
            ):
                listen("127.0.0.1", int(port))
        finally:
            serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 130
        assert (
            serving.stderr.read()
            == "bridle: the labelling app has stopped; every answer that was acknowledged is in the store\n"
        )


@pytest.mark.parametrize(
    ("place", "why"),
    [
        (Place(root_path="labels"), "must be a path such as /labels"),
        (Place(root_path="/a/../b?c"), "must be a path such as /labels"),
        (Place(proxies=["localhost"]), "a proxy is named by its address"),
        (Place(workers=2), "2 workers need a store in PostgreSQL"),
    ],
)
def test_a_place_that_is_none(place: Place, why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        check("store.sqlite", place)


def test_a_place_that_is_one() -> None:
    check("postgresql+psycopg://localhost/x", Place(root_path="/a/b", proxies=["::1", "10.0.0.0/8"], workers=2))
    assert Place(host="::").url() == "http://[::1]:8020" and Place("0.0.0.0", 0).url(5) == "http://127.0.0.1:5"
    with pytest.raises(UsageError, match="nobody can listen at 192.0.2.1"):
        listen("192.0.2.1", 8020)
    with listen("localhost", 0) as listening:
        assert listening.getsockname()[1] and listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
