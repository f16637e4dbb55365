"""What is installed from a wheel: every file that git knows under bridle/, for what is read at run time is missed by users alone."""

from __future__ import annotations

import subprocess
import sys

from tests.house.source import ROOT, listed

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


def test_a_wheel_holds_every_file_of_the_package() -> None:
    found = subprocess.run([sys.executable, "-c", CONTAINED], cwd=ROOT, capture_output=True, text=True, check=True)
    contained = {name.removeprefix("build/lib/") for name in found.stdout.split("\n")}
    known = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "bridle"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tracked = {name for name in known.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert {"bridle/py.typed", "bridle/kernels/kernels.c", "bridle/playground/world.toml"} <= tracked
    missing = sorted(tracked - contained)
    assert not missing, f"no pattern of package-data in pyproject.toml holds these, so no wheel does:{listed(missing)}"
