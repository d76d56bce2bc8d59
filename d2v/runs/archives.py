"""Check of files of ``torch.save`` by their own checksums: they are zip archives with a CRC-32 for each record.

``torch.load`` checks these only if it does not map the file into memory.
"""

from __future__ import annotations

import errno
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from d2v.runs.files import settled

Identity = tuple[str, int, int, int]

_CHUNK = 1 << 20  # bytes
_ZIP64 = (1 << 32) - 1
_TORCH_PADDING = b"FB"  # begins the field by which PyTorch aligns records

_intact: set[Identity] = set()  # files that this process has checked


class Damaged(ValueError):
    """A file differs from the one that was written."""


def identity(path: Path) -> Identity:
    """Return a stamp that changes with the file: path, time of change, size and inode."""
    status = path.stat()
    return str(path.resolve()), status.st_mtime_ns, status.st_size, status.st_ino


def is_archive(path: Path) -> bool:
    """Return whether a file has the format of ``torch.save`` since PyTorch 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_archive(path: Path) -> None:
    """Read an archive to its end and compare its checksums; each process reads an unchanged file only once.

    Raises:
        Damaged: a record does not match its CRC-32, the archive is truncated, or bytes between records were changed.
        OSError: the file cannot be read.
    """
    known = identity(path)
    if known in _intact:
        return
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            _check_sizes(entries, known[2])
            for entry in entries:
                with archive.open(entry) as record:  # reading to the end compares the checksum
                    while record.read(_CHUNK):
                        pass
            headers = [_local_header(file, entry) for entry in entries]
            if any(header.extra.startswith(_TORCH_PADDING) for header in headers):
                _check_between(file, entries, headers, archive.start_dir)
                _check_directory(file, len(entries), archive.start_dir)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged offset lies outside of the file
            raise
        raise Damaged("its offsets lie outside of the file") from error
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError, OverflowError, RuntimeError) as error:
        raise Damaged(str(error) or type(error).__name__) from error
    if settled(known[1]):
        _intact.add(known)


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Check that records are not compressed and do not overlap, so that the file's size bounds what is read."""
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise Damaged(f"{packed.filename} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise Damaged("its records are larger than the file")


class _Header(NamedTuple):
    """Return the header of a record: its fixed fields, its extra field, and where the record begins."""

    fixed: tuple[int, ...]
    sizes: tuple[int, ...]
    extra: bytes
    end: int


def _local_header(file: BinaryIO, entry: zipfile.ZipInfo) -> _Header:
    file.seek(entry.header_offset)
    fields = struct.unpack("<4s5H3I2H", file.read(30))
    file.seek(fields[9], os.SEEK_CUR)
    return _Header(fields[1:6], fields[6:9], file.read(fields[10]), entry.header_offset + 30 + fields[9] + fields[10])


def _check_between(file: BinaryIO, entries: list[zipfile.ZipInfo], headers: list[_Header], end: int) -> None:
    """Compare headers and padding with what PyTorch writes: a changed byte means a damaged disk or copy."""
    ends = [entry.header_offset for entry in entries[1:]] + [end]
    for entry, header, next_offset in zip(entries, headers, ends, strict=True):
        if entry.file_size >= _ZIP64:
            continue  # sizes lie in a field of their own
        length = len(header.extra) - 4
        padding = _TORCH_PADDING + length.to_bytes(2, "little") + b"Z" * length
        sizes = entry.CRC, entry.compress_size, entry.file_size
        descriptor = struct.pack("<4s3I", b"PK\x07\x08", *sizes) if entry.flag_bits & 8 else b""
        after = next_offset - header.end - entry.compress_size
        file.seek(header.end + entry.compress_size)
        *kind, clock, date = header.fixed
        if (
            header.extra != padding
            or after != len(descriptor)
            or file.read(after) != descriptor
            or header.sizes != ((0, 0, 0) if descriptor else sizes)
            or kind != [entry.extract_version, entry.flag_bits, entry.compress_type]
            or _date_time(clock, date) != entry.date_time
        ):
            raise Damaged(f"the bytes around {entry.filename} were changed")


def _date_time(clock: int, date: int) -> tuple[int, ...]:
    """Return a date and time as in :class:`zipfile.ZipInfo`."""
    return (date >> 9) + 1980, date >> 5 & 15, date & 31, clock >> 11, clock >> 5 & 63, (clock & 31) * 2


def _check_directory(file: BinaryIO, count: int, start: int) -> None:
    """Compare the directory of records, and the end of the archive, with what PyTorch writes."""
    file.seek(start)
    content = file.read()
    place = 0
    for _ in range(count):
        fields = struct.unpack_from("<4s6H3I5H2I", content, place)
        name, extra, comment, disk, internal, external = fields[10:16]
        if (
            fields[1]
            or fields[2] >> 8
            or comment
            or disk
            or internal
            or external
            or (extra and fields[9] < _ZIP64 > fields[16])
        ):
            raise Damaged("the directory of its records was changed")
        place += 46 + name + extra
    end = start + place
    numbers = min(count, (1 << 16) - 1), min(count, (1 << 16) - 1), min(place, _ZIP64), min(start, _ZIP64)
    last = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *numbers, 0)
    zip64 = struct.pack("<2I4Q", 0, 0, count, count, place, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    ending = content[place:]
    whole = ending[:12] == struct.pack("<4sQ", b"PK\x06\x06", 44) and ending[16:] == zip64 + locator + last
    if ending != last and not whole:
        raise Damaged("the end of the archive was changed")
