"""Recognition of plain text and its encoding, and of files in other formats.

Training text is UTF-8. Files in another encoding or format (archives, tables of numbers, markup, JSON) are refused by
name, because their syntax would be trained on. Small files that are read whole (tables, transcripts, manifests) may be
UTF-16 or UTF-32, recognised by the byte order mark or by zeros between letters.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from pathlib import Path
from typing import IO, Any, cast

from d2v.lfs import IS_POINTER, is_lfs_pointer

HEAD = 2**16  # bytes that a file is judged by

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# First bytes of formats that are no text.
_FORMATS = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "Arrow"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"%PDF", "PDF"),
    (b"{\\rtf", "RTF"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"SQLite format 3", "SQLite"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"RIFF", "a RIFF file (sound or video)"),
    (b"fLaC", "FLAC sound"),
    (b"OggS", "Ogg sound"),
)
_PRINTABLE = (b"%PDF", b"{\\rtf")  # formats that may hold nothing but text
# Where texts in ISO-2022, which are bytes of ASCII alone, change to letters of Asia.
_ISO_2022 = (b"\x1b$B", b"\x1b$@", b"\x1b$)", b"\x1b$(")
# How JSON begins that is so long on its first line that this is cut.
_CUT_JSON = re.compile(rb'(\[\s*)*\{\s*"[^"]*"\s*:|\[\s*"(?:[^"\\]|\\.)*"\s*,\s*"')
# A line of a table with its first or second cell in quotes.
_QUOTED_CELL = re.compile(rb'"[^"]*(""[^"]*)*",[^ ]|[^",]*,"[^"]*(""[^"]*)*"(,|\s*$)')
# What data=hf_text reads, by the endings it takes them for.
_READABLE_BY_HF = {"parquet": ".parquet", "Arrow": ".arrow", "JSON lines": ".jsonl", "JSON": ".json"} | {
    "a tab-separated table": ".tsv",
    "a comma-separated table": ".csv",
}
_ENDINGS = {ending: kind for kind, ending in _READABLE_BY_HF.items()} | {".ndjson": "JSON lines"}
_MARKUP = (b"<!doctype html", b"<html", b"<?xml")
_COLUMNS = {"text", "sentence", "sentence1", "content", "document", "label", "id", "title", "url"}
_MOST = 0.9  # share of a file's lines that tells what it is


def open_text(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if its name ends in .gz, in any case, as a listing of files takes it.

    Raises:
        OSError: it cannot be opened.
    """
    return cast("IO[bytes]", gzip.open(path, "rb")) if _packing(path.name) else path.open("rb")


def _packing(name: str) -> str:
    return ".gz" if name.strip().lower().endswith(".gz") else ""


def _unpacked(name: str) -> str:
    name = name.strip()
    return name[: len(name) - len(_packing(name))]


def _head(file: Any) -> tuple[bytes, bool]:
    """The first bytes of a file, as far as it is not damaged, and whether these are all."""
    head = b""
    try:
        while block := file.read1(HEAD):
            head += block
            if len(head) > HEAD:
                return head[:HEAD], False
    except (OSError, EOFError, zlib.error):
        return head, False
    return head, True


def utf8_of(path: Path) -> bytes:
    """All of a small text file (a table, transcripts) in UTF-8, without a byte order mark.

    Lines that are not UTF-8 are the caller's to find.

    Raises:
        ValueError: it is no text, or damaged; without the file's name.
    """
    content = path.read_bytes()
    if reason := _other_format(content[:HEAD], whole=len(content) <= HEAD):
        raise ValueError(reason)
    encoding = encoding_of(content[:HEAD])
    if encoding != "utf-8":
        try:
            content = content.decode(encoding).encode()
        except UnicodeDecodeError as error:
            raise ValueError(f"not {encoding.upper()} ({error.reason} at byte {error.start})") from error
    return content.removeprefix(codecs.BOM_UTF8)


def encoding_of(head: bytes) -> str:
    """Encoding of a text that begins like this: one of UTF-16 or UTF-32, with its byte order, or UTF-8."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    whole = len(head) - len(head) % 4
    if b"\0" not in head or whole == 0:
        return "utf-8"
    zeros = [head[i:whole:4].count(0) * 4 / whole for i in range(4)]
    guesses = (
        ("utf-32-le", min(zeros[2:]) > _MOST > zeros[0]),
        ("utf-32-be", min(zeros[:2]) > _MOST > zeros[3]),
        ("utf-16-le", min(zeros[1::2]) > 0.4 and max(zeros[::2]) < 0.1),
        ("utf-16-be", min(zeros[::2]) > 0.4 and max(zeros[1::2]) < 0.1),
    )
    for encoding, fits in guesses:
        if fits and "\0" not in _decoded(head, encoding):
            return encoding
    return "utf-8"


def _decoded(head: bytes, encoding: str) -> str:
    """The beginning of a text; "\\0" if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return "\0"


def not_plain_text(path: Path, key: str) -> str | None:
    """A file's format and what to do about it, where it is no plain text to train on; None where it is.

    Args:
        path: of the file; one that cannot be read is judged when it is.
        key: the argument that it comes from.
    """
    try:
        with open_text(path) as file:
            head, whole = _head(file)
    except OSError:
        return None
    if reason := _other_format(head, whole, key, path) or _unreadable(head, whole):
        return reason
    ending = Path(_unpacked(path.name)).suffix.lower()
    kind = _markup(head.removeprefix(codecs.BOM_UTF8), whole) or _ENDINGS.get(ending)
    return kind and _refusal(kind, key, path)


def _other_format(head: bytes, whole: bool, key: str = "", path: Path | None = None) -> str | None:
    """A format that is no text, told by a file's first bytes, and what to do about it; None: it may be text.

    Args:
        head: the first bytes.
        whole: there are no more.
        key: the argument that the file comes from.
        path: of the file.
    """
    if whole and is_lfs_pointer(head):
        return IS_POINTER
    if encoding_of(head) != "utf-8":
        return None
    readable = _is_utf8(head[:1024]) and min(head[:1024], default=9) >= 9
    for magic, kind in _FORMATS:
        if head.startswith(magic) and (magic in _PRINTABLE or not readable):  # a text may begin with "RIFF", too
            return _refusal(kind, key, path)
    return None


def _unreadable(head: bytes, whole: bool) -> str | None:
    """Reason why a file of no known format cannot be read as text; None if it can."""
    encoding = encoding_of(head)
    if encoding != "utf-8":
        name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
        return f"text in {name}, not in UTF-8: convert it, for example with iconv -f {name} -t UTF-8"
    if head.count(0) * 100 > len(head):
        return "a binary file, not text: move it away"
    if head.count(b"\r") > 1 and b"\n" not in head:
        return "its lines end in carriage returns alone, as on old Macs: convert it, for example with tr '\\r' '\\n'"
    lines = _lines(head, whole)
    if sum(any(sign in line for sign in _ISO_2022) for line in lines) * 2 > len(lines):
        return "text in ISO-2022, not in UTF-8: convert it, for example with iconv -f ISO-2022-JP -t UTF-8"
    bad = sum(not _is_utf8(line) for line in lines)
    if bad * 2 > len(lines):
        return (
            f"{bad:,} of the first {len(lines):,} lines are not UTF-8: text in another encoding, or no text; convert "
            "it, for example with iconv -f LATIN1 -t UTF-8, or move it away"
        )
    return None


def _refusal(kind: str, key: str, path: Path | None) -> str:
    fix = "write its text into a file in UTF-8"
    if kind == "gzip":
        packed = path is not None and _packing(path.name)
        fix = "unpack it once" if packed else "unpack it" if path is None else "let its name end in .gz, or unpack it"
    name, _, columns = kind.partition(" (")
    if key == "root" and path is not None and name in _READABLE_BY_HF:
        ending = _READABLE_BY_HF[name]
        known = _unpacked(path.name).lower().endswith(tuple(_ENDINGS))
        named = path if known else path.with_name(_unpacked(path.name)).with_suffix(ending + _packing(path.name))
        rename = "" if known else f"rename it to {named.name}, and "
        column = columns.rstrip(")").partition(",")[0] or "NAME"
        fix = f"{rename}use data=hf_text path={named} column={column}"
    return f"{kind}, not plain text: {fix}"


def _lines(head: bytes, whole: bool) -> list[bytes]:
    """The lines of a file's beginning that are not empty, the last one only if it is complete or alone."""
    lines = head.split(b"\n")
    if not whole and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line.strip()]


def _is_utf8(line: bytes) -> bool:
    """Return whether a line, or its beginning, is UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    return True


def _markup(head: bytes, whole: bool) -> str | None:
    """JSON, HTML, XML or a table with a known header, where nearly all of a text is; None: none of these."""
    start = head.lstrip()
    if start[:64].lower().startswith(_MARKUP):
        return "HTML or XML"
    lines = _lines(head, whole)
    keys = [keys for line in lines if (keys := _keys_of(line)) is not None]
    if keys and (len(lines) > 1 or not whole) and len(keys) >= _MOST * len(lines):
        return f"JSON lines{_named(keys[0])}"
    if start[:1] in (b"{", b"["):
        keys_of_all = _keys_of(start) if whole else None
        if keys_of_all is not None or sum(map(_looks_like_json, lines)) >= _MOST * len(lines):
            return f"JSON{_named(keys_of_all or [])}"
        if not whole and len(lines) == 1 and _CUT_JSON.match(start):
            return "JSON lines" if start.startswith(b"{") else "JSON"
    return _table(lines)


def _keys_of(text: bytes) -> list[str] | None:
    """The keys of an object, or [] of a list, in JSON; None if it is neither."""
    if text.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return list(value) if isinstance(value, dict) else [] if isinstance(value, list) else None


def _looks_like_json(line: bytes) -> bool:
    return re.fullmatch(rb'"[^"]*"\s*:.*|[][{}]+,?|[^:]*,|"[^"]*"', line.strip()) is not None


def _named(keys: list[str]) -> str:
    """The keys in brackets, the likeliest one first."""
    order = sorted(keys, key=lambda key: key not in ("text", "sentence", "content", "document"))
    return f" ({', '.join(order[:6])})" if order else ""


def _rows_in_quotes(lines: list[bytes]) -> bool:
    """Return whether most rows hold a cell in quotes beside another, as csv writes texts with commas."""
    quoted = sum(_QUOTED_CELL.match(line) is not None for line in lines)
    return quoted * 2 > len(lines)


def _table(lines: list[bytes]) -> str | None:
    """Recognise tables that have a known column or quoted cells, and rows of equal length."""
    for delimiter, kind in (("\t", "a tab-separated table"), (",", "a comma-separated table")):
        try:
            rows = list(csv.reader((line.decode("utf-8", "replace") for line in lines), delimiter=delimiter))
        except csv.Error:
            continue
        header = [cell.strip().strip('"').lower() for cell in rows[0]] if len(rows) > 2 else []
        fits = sum(len(row) == len(header) for row in rows)
        named = _COLUMNS & set(header) or (delimiter == "," and _rows_in_quotes(lines[1:]))
        if len(header) > 1 and named and fits >= _MOST * len(rows):
            return f"{kind}{_named(header)}"
    return None
