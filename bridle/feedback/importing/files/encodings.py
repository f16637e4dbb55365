"""The encoding of a text file, by rules that can be said in a line.

1. A byte order mark, or zero bytes where ASCII in UTF-16 or UTF-32 has them, decides.
2. UTF-8, unless most of the lines that are not plain ASCII are not UTF-8: a few bad lines are bad lines.
3. GB18030 (which holds GBK and GB2312), where all of it decodes and at least one in ten of its Chinese characters is one of the hundred
   commonest: Japanese, Korean or Taiwanese bytes decode as Chinese too, but as characters that hardly anybody writes.
4. CP1252 (which holds what Latin-1 has of letters), where bytes above 127 stand one or two together beside Latin letters and are letters of
   Western Europe or its punctuation.
5. Otherwise UTF-8, and the lines that are not are skipped and counted; what was asked for by name always stands.
"""

import codecs
import re
from dataclasses import dataclass
from typing import BinaryIO

from bridle.core.errors import DataError
from bridle.feedback.importing.files.row import UNDECODABLE

ERRORS = "bridle-undecodable"  # the name under which Python knows how bytes that no encoding has are decoded
MARKS = [  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
ZEROS = [  # of the first two characters, which are ASCII
    (re.compile(rb"\0{3}[^\0]\0{3}[^\0]"), "utf-32-be"),
    (re.compile(rb"[^\0]\0{3}[^\0]\0{3}"), "utf-32-le"),
    (re.compile(rb"\0[^\0]\0[^\0]"), "utf-16-be"),
    (re.compile(rb"[^\0]\0[^\0]\0"), "utf-16-le"),
]
SAMPLE = 2**20  # bytes by which another encoding is told; of a line, read at once
COMMON = (
    set(  # the hundred commonest characters of modern Chinese (Jun Da, Modern Chinese Character Frequency List, 2004)
        "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
        "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实"
    )
)
COMMON_SHARE = 0.1
HAN = re.compile("[\u3400-\u9fff]")
NOT_CHINESE = re.compile("[\u3041-\u30ff\ue000-\uf8ff\ufffd\u2e80-\u2fdf\U00010000-\U0010ffff]")  # kana, private, rare
RUNS = re.compile(rb"[\x80-\xff]+")
NOT_WESTERN = re.compile(
    "[^ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœŠšŽžŸ€‚„…‘’“”•–—™¡£§©«®°´·»¿½¼¾²³ªº\u00a0\\x00-\\x7f]"
)
SIGN_IN_WORD = re.compile("[A-Za-z][€‚„…“”•™¡£§©«®°»¿½¼¾²³ªº][A-Za-z]")  # so it is a letter of another encoding
NEXT_TO_LETTER = re.compile("[A-Za-z][^\\x00-\\x7f]|[^\\x00-\\x7f][A-Za-z]")


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end


def undecodable_handler() -> str:
    """The name of the handler of errors by which what no encoding has is decoded; Python knows it from here on."""
    codecs.register_error(ERRORS, _undecodable)
    return ERRORS


@dataclass(frozen=True)
class Survey:
    """What one pass over a text's bytes found."""

    encoding: str
    note: str  # what the report says of it; empty where it is UTF-8 and nothing was asked for
    lines: int  # that hold anything


def survey(file: BinaryIO, wanted: str | None) -> Survey:
    """Read a file once for its encoding and its number of lines. Raises DataError for an encoding that there is none of."""
    piece = file.readline(SAMPLE)
    known = (
        _named(wanted) if wanted else _by_marks(piece if len(piece) >= 8 else (piece := piece + file.readline(SAMPLE)))
    )
    lines = foreign = bad = 0  # lines that hold anything, that hold more than ASCII, that are not UTF-8
    sample = bytearray()
    decoder = codecs.getincrementaldecoder("utf-8")()
    begun, wrong, beyond = False, False, False
    while piece:
        begun = begun or bool(piece.strip(b" \t\r\n\0"))  # of UTF-16 half a line end may stand alone
        if known is None and not piece.isascii():
            beyond = True
            if not wrong and not _decodes(decoder, piece):
                wrong = True
            if wrong and len(sample) < SAMPLE:
                sample += piece
        if piece.endswith(b"\n"):
            lines, foreign, bad = lines + begun, foreign + beyond, bad + wrong
            begun, wrong, beyond = False, False, False
            decoder.reset()
        piece = file.readline(SAMPLE)
    lines, foreign, bad = lines + begun, foreign + beyond, bad + (wrong or beyond and not _decodes(decoder, b"", True))
    if known is not None:
        return Survey(known, _note(known, "as --encoding says" if wanted else "by its first bytes"), lines)
    return _judged(foreign, bad, bytes(sample), lines)


def _decodes(decoder: codecs.IncrementalDecoder, piece: bytes, final: bool = False) -> bool:
    try:
        decoder.decode(piece, final or piece.endswith(b"\n"))
    except UnicodeDecodeError:
        return False
    return True


def _judged(foreign: int, bad: int, sample: bytes, lines: int) -> Survey:
    if 2 * bad <= foreign:
        return Survey("utf-8", "", lines)
    if _is_chinese(sample):
        return Survey("gb18030", _note("gb18030", "its lines are not UTF-8, and read so they are Chinese"), lines)
    if _is_western(sample):
        return Survey(
            "cp1252", _note("cp1252", "its lines are not UTF-8, and read so their letters are Western European"), lines
        )
    note = (
        f"{bad:,} lines are not UTF-8, and their encoding cannot be told; name it: --encoding shift_jis, big5, cp1251 …"
    )
    return Survey("utf-8", note, lines)


def _is_chinese(sample: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(sample)
    except UnicodeDecodeError:
        return False
    han = HAN.findall(text)
    return sum(sign in COMMON for sign in han) >= max(1, COMMON_SHARE * len(han)) and 50 * len(
        NOT_CHINESE.findall(text)
    ) <= len(han)


def _is_western(sample: bytes) -> bool:
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    alone = all(len(run) <= 2 for run in RUNS.findall(sample))
    return (
        alone and bool(NEXT_TO_LETTER.search(text)) and not NOT_WESTERN.search(text) and not SIGN_IN_WORD.search(text)
    )


def _named(wanted: str) -> str:
    try:
        codec = codecs.lookup(wanted)
        if not codec._is_text_encoding:
            raise LookupError
    except (LookupError, ValueError) as error:
        raise DataError(
            f"--encoding {wanted!r} is none that Python knows; name one such as utf-8, gb18030, cp1252, shift_jis, big5 or utf-16"
        ) from error
    return "utf-8-sig" if codec.name == "utf-8" else codec.name


def _by_marks(head: bytes) -> str | None:
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    return next((encoding for signs, encoding in ZEROS if signs.match(head)), None)


def _note(encoding: str, why: str) -> str:
    return "" if encoding == "utf-8-sig" else f"read as {encoding.upper()} ({why}); --encoding NAME reads it otherwise"
