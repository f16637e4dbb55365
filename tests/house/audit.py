"""Looks the versions of constraints.txt up among known vulnerabilities, at OSV (osv.dev): `make audit`.

Exit status: 0 none is known, 1 some are, 3 the service could not be asked. Only names and versions are sent. It is apart from
`make check` and from CI: what it answers changes overnight, with nothing changed here.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

SERVICE = "https://api.osv.dev"
SECONDS = 30.0  # to wait for an answer
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

Version = tuple[str, str]  # a package's name, and its version


def pinned(text: str) -> list[Version]:
    """Every `name==version` of a file of constraints."""
    return re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)


def known_vulnerabilities(versions: list[Version], service: str = SERVICE) -> dict[Version, list[str]]:
    """Names of the vulnerabilities of each version that has some. Raises OSError or ValueError where no answer can be had."""
    queries = [{"package": {"ecosystem": "PyPI", "name": name}, "version": version} for name, version in versions]
    request = urllib.request.Request(
        f"{service}/v1/querybatch", json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            results: list[dict[str, Any]] = json.load(answer)["results"]
        found = [[str(one["id"]) for one in result.get("vulns", [])] for result in results]
    except (http.client.HTTPException, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer of another form ({type(error).__name__}: {error})") from error
    if len(found) != len(versions):
        raise ValueError(f"{len(found)} answers to {len(versions)} questions")
    return {version: names for version, names in zip(versions, found, strict=True) if names}


def main(constraints: Path = CONSTRAINTS, service: str = SERVICE) -> int:
    versions = pinned(constraints.read_text("utf-8"))
    try:
        found = known_vulnerabilities(versions, service)
    except (OSError, ValueError) as error:
        print(
            f"audit: {service} could not be asked about {len(versions)} versions ({error}); nothing is known of them, "
            "run `make audit` again where the network allows",
            file=sys.stderr,
        )
        return 3
    for (name, version), names in found.items():
        print(f"{name} {version}: {', '.join(names)} (https://osv.dev/vulnerability/{names[0]})")
    print(f"audit: known vulnerabilities in {len(found)} of {len(versions)} versions")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
