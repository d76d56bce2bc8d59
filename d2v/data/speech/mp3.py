"""Frame counts for mp3 files that lack them."""

from __future__ import annotations

from typing import BinaryIO

_MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by version bits
_MPEG1_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def uncounted_mp3(stream: BinaryIO) -> bytes | None:
    """Return the number of frames of an mp3 that does not state it; None for other files.

    libsndfile estimates the number from the bit rate of the first frame. If the rate varies, that is several times too
    high, or so low that most of the clip is never read.
    """
    start, tag = 0, stream.read(10)
    while len(tag) == 10 and tag[:3] == b"ID3":
        start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
        stream.seek(start)
        tag = stream.read(10)
    stream.seek(start)
    first = stream.read(48)
    if _frame_size(first) == 0 or any(name in first for name in (b"Xing", b"Info", b"VBRI")):
        return None
    return first + stream.read()


def _frame_size(header: bytes) -> int:
    """Return the bytes of the MPEG layer 3 frame with this header; 0 if it is no such header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    kbps, unit = (_MPEG1_KBPS, 144000) if version == 3 else (_MPEG2_KBPS, 72000)
    return unit * kbps[bitrate - 1] // _MPEG_RATES[version][rate] + (header[2] >> 1 & 1)


def frame_count(frames: bytes) -> bytes:
    """Return a silent frame that states how many follow, as LAME writes it."""
    count = place = 0
    while 0 <= place < len(frames):
        size = _frame_size(frames[place : place + 4])
        count += 0 < size <= len(frames) - place
        place = place + size if size else frames.find(b"\xff", place + 1)
    header = bytes([0xFF, frames[1] | 1, frames[2] & 0x0C | 0x80, frames[3]])  # no checksum; large enough a bit rate
    mono = frames[3] >> 6 == 3
    sides = (17 if mono else 32) if frames[1] >> 3 & 3 == 3 else (9 if mono else 17)
    info = header + bytes(sides) + b"Info" + bytes([0, 0, 0, 1]) + count.to_bytes(4, "big")
    return info.ljust(_frame_size(header), b"\0")
