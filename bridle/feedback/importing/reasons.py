"""Why a row of somebody's file was skipped, and what is worth noting of one that was kept: the words of the report."""

from enum import StrEnum

LONGEST = 32 * 2**20  # bytes of a line, characters of a list's entry: no row can fill the memory


class Reason(StrEnum):
    """Why a row was skipped."""

    TOO_LONG = f"longer than {LONGEST // 2**20} MiB"
    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_OBJECT = "not a JSON object"
    UNKNOWN_FIELDS = "fields of no known form"
    MISSING_FIELD = "lacks a field of the form asked for"
    ONE_SIDE = "only one of chosen and rejected"
    UNPAIRED = "an unpaired vote, which has no use yet"
    WRONG_TYPE = "neither text nor messages"
    NOT_TRANSCRIPT = "no prompt, and not a transcript"
    UNKNOWN_ROLE = "role is not system, user or assistant"
    UNSTORABLE = "holds NUL or half a character"
    EMPTY_PROMPT = "empty turn in the prompt"
    NO_USER_TURN = "prompt does not end with the user"
    NO_ANSWER = "does not end with one answer"
    DIVERGES = "sides differ before the last answer"
    EMPTY_ANSWER = "empty answer"
    IDENTICAL = "identical answers"
    DUPLICATE = "duplicate of an earlier row"


class Note(StrEnum):
    """What is worth knowing of rows that were kept, and of lines that are no rows."""

    STRIPPED = "white space around a turn removed"
    SPEAKER_INSIDE = "a speaker's name inside a turn"
    SAME_SPEAKER = "one speaker twice in a row"
    BLANK = "blank line"


class Skip(Exception):
    """This row cannot be used; raised where a row is read and caught where rows are counted."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
