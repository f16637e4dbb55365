"""What a file is, by its first bytes: packed, an archive, a table; or something that holds no rows, named with the way to them."""

import re

from bridle.feedback.importing.files.row import FileKind, Unreadable

HEAD = 2**16  # bytes that are looked at
PACKINGS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
TABLES = {
    b"PAR1": FileKind.PARQUET,
    b"ARROW1": FileKind.ARROW,
    b"\xff\xff\xff\xff": FileKind.ARROW,  # a stream of it, as `datasets` writes
    b"PK\x03\x04": FileKind.ZIP,
    b"PK\x05\x06": FileKind.ZIP,
}
NOT_ROWS = [
    (re.compile(signs, re.DOTALL), what)
    for signs, what in (
        (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer and not the file; fetch that with `git lfs pull`"),
        (rb"(?:\.\./)*(?:\.git)?/annex/objects/", "a git-annex pointer and not the file; fetch that with `git annex get`"),
        (rb"# xet version", "a Xet pointer and not the file; fetch that with `git xet pull` or `hf download`"),
        (rb"\s*(?:<!--.*?-->\s*)?<(?i:!doctype html|html|head|body)", "a web page (a login, an error) and not the file; fetch that again"),
        (rb"\s*<(?:\?xml|!(?i:doctype)|svg)", "XML; write its rows as JSON lines or CSV"),
        (rb"%PDF-", "a PDF; write its rows as JSON lines or CSV"),
        (rb"\{\\rtf", "a text document (RTF); save it as plain text or CSV"),
        (rb"SQLite format 3\0", "an SQLite database; export the table: `sqlite3 -header -csv FILE 'select * from TABLE' > rows.csv`"),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.xls, .doc); save it as .xlsx or CSV"),
        (rb"\x80[\x02-\x05]", "a Python pickle, which is a program and is not run; write its rows as JSON lines"),
        (rb".{6}\0\0\{[\" }]", "a model's weights (safetensors); what is imported is a file of rows"),
        (rb"GGUF[\x01-\x09]\0", "a model's weights (GGUF); what is imported is a file of rows"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0", "an image; what is imported is text"),
        (rb"ID3[\x02-\x04]|OggS|fLaC|RIFF....(?:WAVE|AVI )|....ftyp|\x1aE\xdf\xa3", "sound or video; what is imported is text"),
        (rb"\x93NUMPY", "a NumPy array; write its rows as JSON lines"),
        (rb"\x89HDF", "an HDF5 file; write its rows as JSON lines or Parquet"),
        (rb"MATLAB 5", "a MATLAB file; write its rows as JSON lines or CSV"),
        (rb"Obj\x01", "an Avro file; write it as Parquet or JSON lines"),
        (rb"ORC[^\w ,;]", "an ORC file; write it as Parquet or JSON lines"),
        (rb"FEA1", "a Feather file of the first version; write it as Parquet"),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and import what is in it"),
        (rb"Rar!\x1a\x07", "a RAR archive; unpack it and import what is in it"),
        (rb"\x04\x22\x4d\x18|\xff\x06\0\0sNaPpY|\x1f\x9d|\x5d\0\0.{2}\xff\xff", "packed with lz4 or the like; unpack it first"),
        (rb"\x7fELF|MZ.\0|\xca\xfe\xba\xbe|\xcf\xfa\xed\xfe", "a program; what is imported is a file of rows"),
    )
]  # fmt: skip
SUFFIXES_OF_TABLES = {".csv", ".tsv", ".tab", ".psv"}
SUFFIXES_OF_TEXT = {".txt", ".text"}
SUFFIXES_OF_JSON = {".json", ".jsonl", ".ndjson"}


def packing_of(head: bytes) -> str | None:
    return next((name for signs, name in PACKINGS.items() if head.startswith(signs)), None)


def table_or_archive(head: bytes) -> FileKind | None:
    if head[257:262] == b"ustar":
        return FileKind.TAR
    return next((kind for signs, kind in TABLES.items() if head.startswith(signs)), None)


def require_rows(head: bytes) -> None:
    """Raises Unreadable, with what it is, for a file that holds no rows."""
    plain = head.removeprefix(b"\xef\xbb\xbf")
    for signs, what in NOT_ROWS:
        if signs.match(plain):
            raise Unreadable(f"is {what}")
