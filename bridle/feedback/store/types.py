"""Column types that take less room in SQLite than the text they are in Python."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

HASH = re.compile(r"[0-9a-f]{64}")


class Hash(sa.types.TypeDecorator[str]):
    """The hexadecimal digits of a SHA-256; in SQLite, whose columns take values of any kind, its 32 bytes. Other text stays text."""

    impl = sa.String
    cache_ok = True

    # The functions themselves and not process_bind_param, which SQLAlchemy calls through two more: an import stores eight a row.
    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return hash_bytes if dialect.name == "sqlite" else None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return hash_digits if dialect.name == "sqlite" else None


class Time(sa.types.TypeDecorator[str]):
    """ISO 8601 in UTC, to the millisecond; in SQLite the milliseconds since 1970 as six bytes, which sort as they are."""

    impl = sa.String
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return time_bytes if dialect.name == "sqlite" else None

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if not isinstance(value, bytes):
            return value
        milliseconds = int.from_bytes(value, "big")
        seconds = datetime.fromtimestamp(milliseconds // 1000, UTC)
        return seconds.replace(microsecond=milliseconds % 1000 * 1000).isoformat(timespec="milliseconds")


def hash_digits(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


@lru_cache(10_000)  # of a batch of rows each is stored in several places
def hash_bytes(value: str | None) -> bytes | str | None:
    return bytes.fromhex(value) if value is not None and HASH.fullmatch(value) else value


@lru_cache(8)  # the rows of one call have one time
def time_bytes(value: str | None) -> bytes | str | None:
    try:
        return value and round(datetime.fromisoformat(value).timestamp() * 1000).to_bytes(6, "big")
    except ValueError:
        return value
