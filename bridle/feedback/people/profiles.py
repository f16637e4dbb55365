"""What people may say of themselves, if they like: of each trait one or several of a few values, so that groups are large enough.

Nobody is shown with it. It is there for groups of five people and more (`quality/groups.py`), and its owner can clear it at any time.
"""

from collections.abc import Mapping, Sequence

from bridle.core.errors import DataError

SEVERAL = ("languages", "fields")  # of the others one value at most
TRAITS: Mapping[str, tuple[str, ...]] = {
    "languages": ("en", "zh", "es", "ar", "hi", "pt", "fr", "de", "ja", "ru", "other"),
    "fields": (
        *("mathematics", "science", "medicine", "engineering", "software", "law", "business"),
        *("education", "arts", "trades", "other"),
    ),
    "region": ("africa", "east_asia", "south_asia", "west_asia", "europe", "north_america", "latin_america", "oceania"),
    "age": ("18-24", "25-34", "35-44", "45-54", "55-64", "65"),
}


def checked_profile(chosen: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The traits that were chosen; nothing is kept of one that nobody chose. Raises DataError for a value that is not offered."""
    profile = {}
    for trait, offered in TRAITS.items():
        values = list(dict.fromkeys(value for value in chosen.get(trait, ()) if value))
        if unknown := [value for value in values if value not in offered]:
            raise DataError(f"{trait} {unknown[0][:40]!r} is not offered; choose from {', '.join(offered)}")
        if len(values) > 1 and trait not in SEVERAL:
            raise DataError(f"{trait} takes one value, and {len(values)} were chosen; choose one")
        if values:
            profile[trait] = values
    return profile
