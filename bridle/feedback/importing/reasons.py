"""Why a row of somebody's file was skipped, and what is worth noting of one that was kept: the words of the report."""

from enum import StrEnum

LONGEST = 32 * 2**20  # bytes of a line, characters of a list's entry: no row can fill the memory


class Reason(StrEnum):
    """Why a row was skipped."""

    TOO_LONG = f"longer than {LONGEST // 2**20} MiB"
    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_OBJECT = "not a JSON object"
    TOO_DEEP = "JSON that nests too deep"
    COMMENT = "a comment, which JSON has none of"
    PYTHON = "Python's notation and not JSON (write it with json.dumps)"
    TRAILING_COMMA = "a comma before a closing bracket, which JSON has none of"
    UNDECODABLE = "bytes that its encoding does not have"
    QUOTING = "quotes that do not fit the table"
    FIELD_COUNT = "more or fewer fields than the header"
    UNKNOWN_FIELDS = "fields of no known form"
    MISSING_FIELD = "lacks a field of the form asked for"
    ONE_SIDE = "only one of chosen and rejected"
    NO_VERDICT = "several answers, and no word of which is better"
    UNCLEAR_VERDICT = "a verdict of unknown meaning"
    UNCLEAR_VOTE = "a vote of unknown meaning"
    UNCLEAR_MARK = "a mark that is neither true nor false"
    CONTRADICTED = "the rejected answer has the higher score"
    UNREAD_ANSWER = "an answer in a field that is not read"
    UNREAD_VOTE = "a vote or a verdict in a field that is not read"
    UNREAD_TURN = "a system turn, a history or a part of the question in a field that is not read"
    UNREAD_WEIGHT = "a weight that a row of this form cannot carry"
    NOT_TRAINED = "marked as not to be trained on"
    DISCARDED = "discarded or cancelled by its annotator, deleted, or not judged yet"
    TOOLS = "tools or tool calls"
    IMAGES = "images, audio or video"
    TOKEN_IDS = "token ids of another tokenizer instead of text"
    TRUE_OR_FALSE = "true or false where an answer's text is needed"
    WRONG_TYPE = "neither text nor messages"
    BROKEN_JSON = "text that looks like messages, but is not JSON"
    NOT_TRANSCRIPT = "no prompt, and neither a transcript nor two texts that begin alike (TRL's implicit prompt)"
    UNKNOWN_ROLE = "role is not system, user or assistant"
    UNSTORABLE = "holds NUL or half a character"
    EMPTY_PROMPT = "empty turn in the prompt"
    NO_USER_TURN = "prompt does not end with the user"
    NO_ANSWER = "does not end with one answer"
    DIVERGES = "sides differ before the last answer"
    EMPTY_ANSWER = "empty answer"
    EMPTY_TEXT = "empty text"
    IDENTICAL = "identical answers"
    UNCHECKED = "an instruction that no constraint checks"
    DUPLICATE = "duplicate of an earlier row"
    TAKEN_DOWN = "holds a text that was taken down"
    LONE_MESSAGE = "a message that is neither answered nor an answer that is kept"


class Note(StrEnum):
    """What is worth knowing of rows that were kept, and of lines that are no rows."""

    STRIPPED = "white space around a turn removed"
    SPEAKER_INSIDE = "a speaker's name inside a turn"
    SAME_SPEAKER = "one speaker twice in a row"
    TWO_SYSTEMS = "two system turns, joined to one"
    TRAILING_USER = "ends with the user: the last answer was taken, what follows it left out"
    PARSED = "messages or a list that stood as text"
    LIST_TEXT = "an answer that is a list in JSON, kept as text"
    CONTROL = "marks of a chat template inside a text, kept as text"
    REPEATS_PROMPT = "an answer that repeats its prompt"
    WITHOUT_DISCARDED = "some of its annotations were discarded or cancelled"
    BLANK = "blank line"
    FIELD_TWICE = "a field twice in an object, of which the last one counts"


class Skip(Exception):
    """This row cannot be used; raised where a row is read and caught where rows are counted. `field` is what it is for, where one is."""

    def __init__(self, reason: Reason, field: str = "") -> None:
        self.reason, self.field = reason, field
