"""Preference files of others, read row by row: every row is kept or skipped for a reason that is counted and shown.

What is covered, told apart by the fields of each row:

    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "…"}     transcripts in the manner of Anthropic's HH-RLHF
    {"chosen": [{"role", "content"}, …], "rejected": […]}           the same as messages, the prompt on both sides
    {"prompt": …, "chosen": …, "rejected": …}                       each a string or a list of messages

One JSON object to a line, in UTF-8, gzipped or not. Of transcripts and messages the common turns are the prompt, and
what differs must be the last answer alone. Other fields of a row are left unread.
Not covered: files that are one JSON array, CSV, Parquet; margins and scores; tool calls and images.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast, get_args

from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import Completion, Judgement, LabelerKind, Message, Prompt, Role, content_hash
from bridle.feedback.rankings import item_id
from bridle.feedback.store import Store, split_of

LONGEST_LINE = 32 * 2**20  # bytes; a longer one is skipped, so that no file can fill the memory
BATCH = 1_000  # rows written in one go
STUDY = LABELER = SOURCE = "import"
KNOWN_FORMS = (
    'lines like {"prompt": …, "chosen": …, "rejected": …}, or {"chosen": …, "rejected": …} with whole dialogues'
)


class Reason(StrEnum):
    """Why a row was skipped."""

    TOO_LONG = f"longer than {LONGEST_LINE // 2**20} MiB"
    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_OBJECT = "not a JSON object"
    UNKNOWN_FIELDS = "no field chosen or rejected"
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


@dataclass
class Tally:
    """How often something was met, and where first."""

    count: int
    line: int
    example: str


Tallies = dict[StrEnum, Tally]


@dataclass
class ImportReport:
    """What became of each row of a file: `rows == kept + skipped_rows`, always."""

    path: str
    rows: int = 0
    kept: int = 0
    new: int = 0  # of the rows kept, those that the store did not have yet
    skipped: Tallies = field(default_factory=dict)
    notes: Tallies = field(default_factory=dict)
    first_row: str = ""

    @property
    def skipped_rows(self) -> int:
        return sum(tally.count for tally in self.skipped.values())

    def as_dict(self) -> dict[str, Any]:
        def plain(tallies: Tallies) -> dict[str, dict[str, int | str]]:
            return {str(why): {"count": t.count, "line": t.line, "example": t.example} for why, t in tallies.items()}

        return {
            "path": self.path,
            "rows": self.rows,
            "kept": self.kept,
            "new": self.new,
            "skipped": plain(self.skipped),
            "notes": plain(self.notes),
        }

    def text(self) -> str:
        """The report as a plain table."""
        lines = [f"{self.path}", f"{self.rows:>9,}  rows read", f"{self.kept:>9,}  kept, {self.new:,} of them new"]
        if self.kept and not self.new:
            lines[-1] = f"{self.kept:>9,}  kept; all were in the store already, so nothing was added"
        for title, tallies in (("skipped", self.skipped), ("notes", self.notes)):
            if not tallies:
                continue
            total = f"{self.skipped_rows:>9,}" if title == "skipped" else " " * 9
            lines.append(f"{total}  {title}")
            for why, tally in sorted(tallies.items(), key=lambda entry: -entry[1].count):
                lines.append(f"{tally.count:>13,}  {why:<40}  line {tally.line}: {tally.example}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Preference:
    """One usable row: of two answers to a prompt, which was preferred."""

    line: int
    prompt: Prompt
    chosen: str
    rejected: str


class _Skip(Exception):
    """This row cannot be used; raised and caught in this file alone."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


def read_preferences(path: str | Path, report: ImportReport) -> Iterator[Preference]:
    """Yield the usable rows of a file in order, filling the report as it goes.

    Memory does not grow with the file but for 16 bytes a row, by which duplicates are known. Raises DataError if the
    file cannot be read or its compression breaks off, and NoUsableRows at its end if no row could be used.
    """
    seen: set[bytes] = set()
    for number, line in _lines(Path(path)):
        if line is not None and not line.strip():
            _count(report.notes, Note.BLANK, number, "")
            continue
        report.rows += 1
        shown = _shown(line or b"")
        report.first_row = report.first_row or shown
        try:
            turns, answers, notes = _read_row(line)
            digest = bytes.fromhex(content_hash([[[m.role, m.content] for m in turns], answers]))[:16]
            if digest in seen:
                raise _Skip(Reason.DUPLICATE)
        except _Skip as skip:
            _count(report.skipped, skip.reason, number, shown)
            continue
        seen.add(digest)
        report.kept += 1
        for note in sorted(notes):
            _count(report.notes, note, number, shown)
        yield Preference(number, Prompt(turns), *answers)
    if not report.kept:
        first = f"its first of {report.rows:,} is {report.first_row}" if report.rows else "it is empty"
        raise NoUsableRows(f"{path} has no usable row: {first}; what can be read is {KNOWN_FORMS}")


def import_file(
    store: Store, path: str | Path, *, held_out_share: float = 0.1, progress: Callable[[int], None] | None = None
) -> ImportReport:
    """Import a file of preferences into the store's study "import"; `progress` is told the rows read so far.

    New prompts are split by their hash. Importing a file again adds nothing. Raises as `read_preferences` does; what
    was read before an error stays in the store.
    """
    split_of("", held_out_share)  # refuses a share out of range before anything is written
    report = ImportReport(str(path))
    batch: list[Preference] = []
    for preference in read_preferences(path, report):
        batch.append(preference)
        if len(batch) == BATCH:
            report.new += _store_batch(store, batch, held_out_share)
            batch.clear()
            if progress is not None:
                progress(report.rows)
    report.new += _store_batch(store, batch, held_out_share)
    if progress is not None:
        progress(report.rows)
    return report


def _store_batch(store: Store, batch: list[Preference], held_out_share: float) -> int:
    groups, winners = [], []
    for preference in batch:
        prompt_id = preference.prompt.id
        chosen, rejected = Completion(prompt_id, preference.chosen), Completion(prompt_id, preference.rejected)
        # Slots by hash, so that the slot does not tell which was chosen, and both votes on a pair meet at one item.
        group = sorted((chosen, rejected), key=lambda completion: completion.id)
        groups.append(group)
        winners.append(group.index(chosen))
    store.add_prompts([p.prompt for p in batch], split=None, source=SOURCE, held_out_share=held_out_share)
    store.add_completions([completion for group in groups for completion in group], source=SOURCE)
    store.add_items(groups, study=STUDY)
    return store.add_judgements(
        _imported_judgement(item_id(group, STUDY), winner) for group, winner in zip(groups, winners, strict=True)
    )


def _imported_judgement(item: str, winner: int) -> Judgement:
    return Judgement(
        item_id=item,
        labeler=LABELER,
        labeler_kind=LabelerKind.IMPORTED,
        ranking=((winner,), (1 - winner,)),
        display_order=None,
        source="import",
        submission_key=content_hash([item, winner]),
    )


# -------------------------------------------------------------------------------------------------------- lines


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines as bytes; None for one that is too long to be held."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, but what can be imported is a file of JSON lines; name one file in it")
    number = 0
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast(BinaryIO, gzip.open(file)) if zipped else file
            while line := stream.readline(LONGEST_LINE):
                number += 1
                if len(line) < LONGEST_LINE or line.endswith(b"\n"):
                    yield number, line
                    continue
                while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; see that its name is right") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} breaks off or is damaged after line {number} ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read after line {number}: {error.strerror or error}") from error


def _shown(line: bytes) -> str:
    text = " ".join(line[:400].decode("utf-8", errors="replace").split())
    return text if len(text) <= 100 else text[:99] + "…"


def _count(tallies: Tallies, why: StrEnum, line: int, example: str) -> None:
    if why in tallies:
        tallies[why].count += 1
    else:
        tallies[why] = Tally(1, line, example)


# --------------------------------------------------------------------------------------------------------- rows

Turns = tuple[Message, ...]
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
SPEAKER_INSIDE = re.compile(r"\b(Human|Assistant):")
ROLE_OF: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def _read_row(line: bytes | None) -> tuple[Turns, tuple[str, str], set[Note]]:
    """The prompt's turns, the chosen and the rejected answer, and what is worth noting. Raises _Skip."""
    row = _object(line)
    if "chosen" not in row or "rejected" not in row:
        raise _Skip(Reason.UNKNOWN_FIELDS)
    notes: set[Note] = set()
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"])
        chosen, rejected = _answer(row["chosen"], prompt), _answer(row["rejected"], prompt)
    else:
        *prompt_turns, last = _dialogue(row["chosen"], notes)
        *rejected_turns, rejected_last = _dialogue(row["rejected"], notes)
        if prompt_turns != rejected_turns:
            raise _Skip(Reason.DIVERGES)
        prompt, chosen, rejected = tuple(prompt_turns), last.content, rejected_last.content
    _check(prompt, chosen, rejected)
    if any(turn.role == following.role for turn, following in pairwise(prompt)):
        notes.add(Note.SAME_SPEAKER)
    if any(SPEAKER_INSIDE.search(text) for text in (*(turn.content for turn in prompt), chosen, rejected)):
        notes.add(Note.SPEAKER_INSIDE)
    return prompt, (chosen, rejected), notes


def _object(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise _Skip(Reason.TOO_LONG)
    try:
        row = json.loads(line.decode("utf-8-sig"))  # a file may open with a byte order mark
    except UnicodeDecodeError:
        raise _Skip(Reason.NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise _Skip(Reason.NOT_JSON) from None
    if not isinstance(row, dict):
        raise _Skip(Reason.NOT_OBJECT)
    return row


def _prompt(value: object) -> Turns:
    return (Message("user", value),) if isinstance(value, str) else _messages(value)


def _answer(value: object, prompt: Turns) -> str:
    """The text of an answer; given as messages, it may repeat the prompt."""
    if isinstance(value, str):
        return value
    turns = _messages(value)
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise _Skip(Reason.NO_ANSWER)
    return turns[0].content


def _dialogue(value: object, notes: set[Note]) -> Turns:
    """A whole dialogue that ends with an answer, from a transcript or from messages."""
    turns = _transcript(value, notes) if isinstance(value, str) else _messages(value)
    if not turns or turns[-1].role != "assistant":
        raise _Skip(Reason.NO_ANSWER)
    return turns


def _transcript(text: str, notes: set[Note]) -> Turns:
    before, *parts = SPEAKER.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        raise _Skip(Reason.NOT_TRANSCRIPT)
    spoken = list(zip(parts[::2], parts[1::2], strict=True))
    if any(said.strip() and said != f" {said.strip()}" for _, said in spoken):
        notes.add(Note.STRIPPED)
    return tuple(Message(ROLE_OF[speaker], said.strip()) for speaker, said in spoken)


def _messages(value: object) -> Turns:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise _Skip(Reason.WRONG_TYPE)
    turns = []
    for message in value:
        if message.get("role") not in get_args(Role):
            raise _Skip(Reason.UNKNOWN_ROLE)
        if not isinstance(message.get("content"), str):
            raise _Skip(Reason.WRONG_TYPE)
        turns.append(Message(message["role"], message["content"]))
    return tuple(turns)


def _check(prompt: Turns, chosen: str, rejected: str) -> None:
    if not prompt or prompt[-1].role != "user":
        raise _Skip(Reason.NO_USER_TURN)
    if not all(turn.content.strip() for turn in prompt):
        raise _Skip(Reason.EMPTY_PROMPT)
    if not chosen.strip() or not rejected.strip():
        raise _Skip(Reason.EMPTY_ANSWER)
    if chosen.strip() == rejected.strip():
        raise _Skip(Reason.IDENTICAL)
    try:
        # JSON can spell what UTF-8 cannot (half of a surrogate pair) and what PostgreSQL does not take (NUL).
        storable = all(b"\0" not in text.encode() for text in (*(turn.content for turn in prompt), chosen, rejected))
    except UnicodeEncodeError:
        storable = False
    if not storable:
        raise _Skip(Reason.UNSTORABLE)
