"""What lies in the repository: no path of one machine, no host that packages come from, nothing that is built."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.house.source import ROOT, listed

# One letter of each stands in brackets, so that this file does not name them either.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~-])/(wor[k]|roo[t]|hom[e]/\w+|User[s]/\w+|opt/pyp[i]|opt/wheel[s])(?![\w-])",
    "a host that packages come from": r"(pypi|pythonhosted|download\.pytorch|npmjs|anaconda)\.or[g]",
}


def names_of_places(path: str, text: str) -> list[str]:
    return [
        f"{path}:{number}: {what}, `{found.group()}`"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        for found in re.finditer(pattern, line)
    ]


def git(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", *arguments, "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]


def texts() -> Iterator[tuple[str, str]]:
    """Every file that is tracked, or would be, if it is text."""
    for path in git("ls-files", "--cached", "--others", "--exclude-standard"):
        content = (ROOT / path).read_bytes() if (ROOT / path).is_file() else b""
        if b"\0" not in content:
            yield path, content.decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    "text",
    ["see /wor" + "k/main", "-e /roo" + "t/x", "'/hom" + "e/me/x'", "pip --index-url https://pyp" + "i.org/simple"],
)
def test_the_name_of_a_place_is_found(text: str) -> None:
    assert len(names_of_places("README.md", f"fine\n{text}")) == 1


def test_other_words_are_not() -> None:
    assert not names_of_places("a.md", "../work/x, home/work/ and /workers, https://arxiv.org/abs/1707.06347, ~/root/")


def test_no_file_names_a_place() -> None:
    faults = [fault for path, text in texts() for fault in names_of_places(path, text)]
    assert not faults, listed(faults)


def test_nothing_built_is_tracked() -> None:
    built = git("ls-files", "--cached", "--ignored", "--exclude-standard")
    assert not built, f"{len(built)} files are tracked though .gitignore names them:{listed(built[:10])}"
