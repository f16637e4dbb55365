"""Names that users give, which become names of files: of models, stages and runs."""

import unicodedata

LONGEST_NAME = 128  # bytes: a file system has room for 255, and runs and what is being written have longer names
SIGNS = "_-.+=@,()~#% "  # in a name, besides letters and digits


def is_name(text: str) -> bool:
    """Whether a user's word may be part of a file name as it is: letters and digits of any script, and some signs within. So it names one
    folder, on every system, and stands for no other in a pattern."""
    plain = all(c.isalnum() or c in SIGNS or unicodedata.category(c)[0] == "M" for c in text)
    ends = (text[:1].isalnum() or text[:1] == "_") and text[-1:] not in (" ", ".")
    return plain and ends and len(text.encode()) <= LONGEST_NAME
