"""A checksum for each row: what a disk changed in silence is found by `bridle store verify`.

It covers every value but the row's number, and proves nothing against somebody who changes a store on purpose. It is taken of what SQLite's
driver stores, or of what PostgreSQL's gives back, and so means something in its own database alone.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

UNCOVERED = ("id", "checksum")


def checksum(values: Iterable[Any]) -> int:
    """CRC-32 of a row's values, which are in the order of their columns' names; a null counts as a column that is not there, so that a
    column that a later schema adds changes nothing."""
    return zlib.crc32(repr([value for value in values if value is not None]).encode("utf-8", "surrogatepass"))


def checksum_of(row: Mapping[str, Any]) -> int:
    """That of a row by the names of its columns."""
    return checksum([row[name] for name in sorted(row) if name not in UNCOVERED])
