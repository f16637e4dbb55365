"""A stand-in for `datasets.Dataset`, which is not installed for tests: what bridle may ask of one."""

from collections.abc import Iterator
from typing import Any


class Dataset:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    @property
    def column_names(self) -> list[str]:
        return list(self._rows[0]) if self._rows else []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int | str) -> Any:
        return [row[place] for row in self._rows] if isinstance(place, str) else dict(self._rows[place])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(row) for row in self._rows)
