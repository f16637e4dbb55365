"""Datasets of the Hugging Face Hub by name, read through `datasets` where that is installed and a hub answers."""

import re
from collections.abc import Iterator
from pathlib import Path

from bridle.core.errors import DataError
from bridle.feedback.importing.files.row import RawRow

NAME = re.compile(
    r"(?P<asked>hf://(?:datasets/)?)?(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<part>[\w.-]+))?(?::(?P<split>[\w.+%\[\]-]+))?"
)
FILE_NAME = re.compile(r".*\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow|xlsx?|gz|bz2|xz|zst|zip|tar|tgz)", re.IGNORECASE)


class HubSource:
    """The rows of a dataset: hf://owner/name, or owner/name where no such folder is here; behind it /part and :split (train)."""

    kind, unit, size = "dataset of the Hub", "row", 0

    def __init__(self, name: str, part: str | None, split: str) -> None:
        self.name, self.part, self.split = name, part, split
        self.done = [f"split {split}" + (f" of {part}" if part else "")]

    @property
    def sha256(self) -> None:
        """Unknown before everything is fetched."""

    def __iter__(self) -> Iterator[RawRow]:
        arguments = ", ".join(repr(one) for one in (self.name, self.part) if one)
        command = f"python -c \"from datasets import load_dataset; load_dataset({arguments}, split={self.split!r}).to_json('rows.jsonl')\""
        elsewhere = f"or run this where a hub answers, and import what it writes: {command}"
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"there is no file {self.name}, and `datasets`, which would fetch a dataset of that name from the Hub, is not installed; "
                f"`pip install datasets`, {elsewhere}"
            ) from error
        try:
            rows = datasets.load_dataset(self.name, self.part, split=self.split, streaming=True)
            for number, row in enumerate(rows, 1):
                yield RawRow(number, row)
        except Exception as error:  # of the network, of the hub, of whatever reads the dataset's files
            words = " ".join(str(error).split())[:300]
            raise DataError(
                f"the dataset {self.name} cannot be fetched ({type(error).__name__}: {words}); see that its name is right, {elsewhere}"
            ) from error


def hub_source(path: str | Path) -> HubSource | None:
    """The dataset that a path names; None where it is a path."""
    text = str(path)
    if text.startswith("hf:/") and not text.startswith("hf://"):
        text = text.replace("hf:/", "hf://", 1)  # as `Path` leaves it
    found = NAME.fullmatch(text)
    if found is None or Path(path).exists():
        return None
    asked = found["asked"] is not None
    if not asked and (FILE_NAME.fullmatch(text) or Path(text).parent.exists() or found["part"]):
        return None
    return HubSource(found["name"], found["part"], found["split"] or "train")
