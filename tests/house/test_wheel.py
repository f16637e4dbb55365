"""What is installed from a wheel: every file that git knows under bridle/, for what is read at run time is missed by users alone; and that
it is enough: built, put into an empty environment and used where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import pytest

from tests.house.source import ROOT, listed
from tests.house.test_setup import succeeds
from tests.tiny_project import ALONE, PLAYGROUND, settings

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"

# What setuptools would put into a wheel by pyproject.toml, without building one.
CONTAINED = """
from setuptools import Distribution

package = Distribution({"script_name": "setup.py"})
package.parse_config_files(["pyproject.toml"])
package.include_package_data = False  # it would write an egg-info here, and adds nothing
command = package.get_command_obj("build_py")
command.ensure_finalized()
print(*command.get_outputs(include_bytecode=False), sep="\\n")
"""


def known_files() -> list[str]:
    """What git knows, and is there."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in found.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_a_wheel_holds_every_file_of_the_package() -> None:
    found = subprocess.run([sys.executable, "-c", CONTAINED], cwd=ROOT, capture_output=True, text=True, check=True)
    contained = {name.removeprefix("build/lib/") for name in found.stdout.split("\n")}
    tracked = {name for name in known_files() if name.startswith("bridle/")}
    assert {"bridle/py.typed", "bridle/kernels/kernels.c", "bridle/playground/world.toml"} <= tracked
    missing = sorted(tracked - contained)
    assert not missing, f"no pattern of package-data in pyproject.toml holds these, so no wheel does:{listed(missing)}"


# ------------------------------------------------------------------------------- built, and into an empty environment


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist of what git knows; a wheel of that checkout, and one of the sdist unpacked elsewhere."""
    top = tmp_path_factory.mktemp("built")
    for name in known_files():
        (top / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, top / "checkout" / name)
    build("sdist", top / "checkout", top)
    with tarfile.open(sdist := next(top.glob("*.tar.gz"))) as archive:
        archive.extractall(top / "unpacked", filter="data")
    found = {"sdist": sdist}
    for source, folder in (("checkout", top / "checkout"), ("unpacked", next((top / "unpacked").iterdir()))):
        build("wheel", folder, top / f"of {source}")
        found[source] = next((top / f"of {source}").glob("*.whl"))
    return found


def build(kind: str, folder: Path, into: Path) -> None:
    into.mkdir(exist_ok=True)
    words = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    succeeds(sys.executable, "-c", words, into, cwd=folder, env=dict(os.environ))


@pytest.mark.slow
def test_a_wheel_of_the_sdist_is_that_of_the_checkout(built: dict[str, Path]) -> None:
    contents = []
    for source in ("checkout", "unpacked"):
        with zipfile.ZipFile(built[source]) as wheel:
            contents.append({name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/RECORD")})
    assert contents[0].keys() == contents[1].keys()
    assert [name for name, content in contents[0].items() if content != contents[1][name]] == []


def interpreter(version: str) -> str | None:
    """A Python of this version that can make environments: on the PATH, or of pyenv's."""
    named = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for program in filter(None, [sys.executable if version == OWN else None, *named]):
        try:
            subprocess.run([program, "-c", "import ensurepip, sqlite3, ssl"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return str(program)
    return None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_wheel_walks_through_without_a_checkout(version: str, built: dict[str, Path], tmp_path: Path) -> None:
    """With this environment's packages on the Python that runs the tests; on others with all that bridle needs but torch, whose wheels
    may be gigabytes, up to where that is read."""
    program = interpreter(version)
    if program is None:
        pytest.skip(f"there is no Python {version} here")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ALONE
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": "false"}
    run = partial(succeeds, cwd=tmp_path, env=environment)
    run(program, "-m", "venv", tmp_path / "env")
    programs, packages = tmp_path / "env" / "bin", next((tmp_path / "env").glob("lib/python*/site-packages"))
    if version == OWN:
        (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    else:
        needed = [one for one in PROJECT["dependencies"] if not one.startswith("torch")]
        pip = [
            programs / "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--constraint",
            ROOT / "constraints.txt",
            *needed,
        ]
        fetched = subprocess.run(pip, env=environment, capture_output=True, text=True, check=False)
        if fetched.returncode:
            pytest.skip(f"no package index answers: {(fetched.stderr.strip() or 'pip said nothing').splitlines()[-1]}")
    run(programs / "pip", "install", "--quiet", "--no-deps", "--no-index", built["unpacked"])
    assert run(programs / "python", "-c", "import bridle; print(bridle.__file__)").startswith(str(packages))
    run(programs / "python", "-W", "error", "-m", "compileall", "-q", packages / "bridle")
    assert PROJECT["version"] in run(programs / "bridle", "--version")
    run(programs / "bridle", "demo", "--help")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n')
    run(programs / "bridle", "init", "project")
    for words in ("import rows.jsonl", "agreement", "export out.jsonl --format preference", "store verify"):
        run(programs / "bridle", *words.split(), "--project", "project")
    if version == OWN:
        said = run(programs / "bridle", "demo", *settings(PLAYGROUND))
        assert "plain kernels (false failed" in said and (tmp_path / "demo" / "report.html").exists()
