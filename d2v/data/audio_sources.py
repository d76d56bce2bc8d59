"""Where speech comes from: audio files, decoded and listed by folder, and the samples that ship.

A source hands out waveforms at one sampling rate, mono, and raises ``BadSample`` for what cannot be decoded. It knows
the length of every clip without decoding it, so that batches can be made of clips of about the same length.
:mod:`d2v.data.spoken` lists clips by LibriSpeech's layout and by manifests. Decoding is libsndfile's work and
resampling torchaudio's (extra ``d2v[speech]``), imported when a source is made.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch

from d2v.data.bad_samples import BadSample
from d2v.data.files import files_below, home_path
from d2v.data.fingerprint import file_mark
from d2v.errors import how_to_install
from d2v.lfs import IS_POINTER, is_lfs_pointer

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph")

MAX_SAMPLES = 2**36  # 50 days at 16 kHz: more is a damaged header
_MAX_RATIO = 1000  # of two rates: at 441 : 640 15 s take 0.01 s, at 5,507 : 2,000 0.6 s
_TOLERANCE = Fraction(1, 10000)  # how far a ratio that is easier to resample by may be off

_MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by version bits
_MPEG1_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


class Clip(NamedTuple):
    """A clip as it is listed.

    Attributes:
        path: of its file, relative to the source's root.
        num_samples: its length at the source's sampling rate; None to look into the file.
        transcript: what is said, or None.
        transcript_place: file and line of the transcript, for messages; empty where it has none.
    """

    path: str
    num_samples: int | None = None
    transcript: str | None = None
    transcript_place: str = ""


def libraries() -> tuple[Any, Any]:
    """(soundfile, torchaudio.functional); ValueError if they are not installed."""
    try:
        import soundfile
        import torchaudio.functional
    except (ImportError, OSError) as error:
        raise ValueError(f"speech needs the packages soundfile and torchaudio: {how_to_install('speech')}") from error
    return soundfile, torchaudio.functional


def decode_audio(file: str | os.PathLike[str] | bytes, sample_rate: int) -> np.ndarray:
    """Decode an audio file.

    Args:
        file: a path, or an audio file's content.
        sample_rate: of the result, Hz.

    Returns:
        (S,) float32 in [-1, 1] or a little beyond, the mean over channels, resampled if need be.

    Raises:
        BadSample: no such file, an empty file, no audio, corrupt, without samples, or with samples that are not finite.
    """
    soundfile, _ = libraries()
    _check_not_empty(file)
    try:
        waveform, rate = soundfile.read(_opened(file), dtype="float32")
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise BadSample(_reason(error)) from error
    if waveform.size == 0:
        raise BadSample("no samples")
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise BadSample("samples that are not finite")
    return resample(waveform, rate, sample_rate)


def resample(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """(S,) float32 at ``rate`` Hz -> (:func:`num_resampled`,) float32 at ``sample_rate`` Hz.

    Rates of so small a common divisor that it would take very long, such as 11,127 and 16,000 Hz, are resampled by the
    simplest ratio within 0.01 % of theirs: no ear and no encoder tells the pitch and the length apart.
    """
    ratio = _ratio(rate, sample_rate)
    if ratio == 1:
        return waveform
    _, functional = libraries()
    resampled = functional.resample(torch.from_numpy(waveform), ratio.denominator, ratio.numerator)
    # torchaudio computes the length in float32, which may be a sample off.
    length = num_resampled(len(waveform), rate, sample_rate)
    exact: np.ndarray = torch.nn.functional.pad(resampled, (0, max(0, length - len(resampled))))[:length].numpy()
    return exact


def num_resampled(num_samples: int, rate: int, sample_rate: int) -> int:
    """Samples that :func:`resample` makes of ``num_samples``."""
    ratio = _ratio(rate, sample_rate)
    return -(-ratio.numerator * num_samples // ratio.denominator)


@cache
def _ratio(rate: int, sample_rate: int) -> Fraction:
    """New over old rate, or the simplest ratio near it where theirs is too laborious to resample by."""
    exact = Fraction(sample_rate, rate)
    if max(exact.numerator, exact.denominator) <= _MAX_RATIO:
        return exact
    nearest = map(exact.limit_denominator, range(1, exact.denominator + 1))
    return next(ratio for ratio in nearest if abs(ratio - exact) <= _TOLERANCE * exact)


def audio_length(file: str | os.PathLike[str] | bytes, sample_rate: int) -> int:
    """Length in samples once at ``sample_rate``, from the file's header. Raises BadSample as :func:`decode_audio`."""
    soundfile, _ = libraries()
    _check_not_empty(file)
    try:
        info = soundfile.info(_opened(file))
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise BadSample(_reason(error)) from error
    if info.frames <= 0:
        raise BadSample("no samples")
    if info.frames > MAX_SAMPLES:
        raise BadSample(f"its header claims {info.frames} samples")
    return num_resampled(info.frames, info.samplerate, sample_rate)


def sampling_rate(file: str | os.PathLike[str] | bytes) -> int | None:
    """Hz, from the file's header; None if it cannot be read."""
    soundfile, _ = libraries()
    try:
        return int(soundfile.info(_opened(file)).samplerate)
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError):
        return None


def _opened(file: str | os.PathLike[str] | bytes) -> Any:
    """What libsndfile opens: a file's content, or its name, in whatever encoding the file system has.

    An mp3 that does not say how many frames it has is told to: see :func:`_uncounted_mp3`.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:
        if frames := _uncounted_mp3(stream):
            return io.BytesIO(_frame_count(frames) + frames)
    return io.BytesIO(file) if isinstance(file, bytes) else os.fsencode(file)


def _uncounted_mp3(stream: BinaryIO) -> bytes | None:
    """The frames of an mp3 that does not say how many they are; None of any other file.

    libsndfile guesses their number from the first one's bit rate. Where the rate varies that is several times too many,
    or so few that most of the clip is never read.
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
    """Bytes of the MPEG layer 3 frame that begins with ``header``; 0 if none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    kbps, unit = (_MPEG1_KBPS, 144000) if version == 3 else (_MPEG2_KBPS, 72000)
    return unit * kbps[bitrate - 1] // _MPEG_RATES[version][rate] + (header[2] >> 1 & 1)


def _frame_count(frames: bytes) -> bytes:
    """A frame without sound that says how many follow, as LAME writes it."""
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


def _check_not_empty(file: str | os.PathLike[str] | bytes) -> None:
    try:
        empty = len(file) == 0 if isinstance(file, bytes) else os.path.getsize(file) == 0
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise BadSample(getattr(error, "strerror", None) or str(error)) from error
    if empty:
        raise BadSample("empty file")
    if is_lfs_pointer(file):
        raise BadSample(IS_POINTER)


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return f"not readable audio ({text.strip().rstrip('.')})"


class AudioClips:
    """Clips by number: those that can be read and are long enough.

    Args:
        read: gives a file's path or content for ``decode_audio``, by the clip's path.
        clips: all there are, in their order.
        sample_rate: Hz; other clips are resampled.
        min_samples: shorter clips are left out.
        label_pattern: a regular expression whose group is the label, searched in a clip's path; None for no labels.
        group_pattern: likewise for the group, such as the speaker, that must not be split between training and
            evaluation; None for no groups.
        class_names: the classes of the training set, for a set whose labels must mean the same.
        key: the config key that the clips come from, for messages.

    Attributes:
        lengths: (len,) int64, samples of every clip at ``sample_rate``.
        bad: what could not be read, as "name: reason".
        too_short: names of clips below ``min_samples``.
        class_names: name of every label, or None.
        groups: every clip's group, or None.

    Raises:
        FileNotFoundError: there is no clip.
        ValueError: no clip can be used, a pattern does not match a path, or a label is not in ``class_names``.
    """

    class_names: tuple[str, ...] | None

    def __init__(
        self,
        read: Callable[[str], str | os.PathLike[str] | bytes],
        clips: Iterable[Clip],
        sample_rate: int,
        min_samples: int,
        label_pattern: str | None = None,
        group_pattern: str | None = None,
        class_names: tuple[str, ...] | None = None,
        key: str = "data.root",
    ) -> None:
        libraries()
        self._read = read
        self.sample_rate = sample_rate
        listed = list(clips)
        if not listed:
            raise FileNotFoundError(f"{key}: no audio file there ({', '.join(EXTENSIONS)})")
        lengths = self._lengths(listed)
        self.bad = tuple(f"{clip.path}: {n}" for clip, n in zip(listed, lengths, strict=True) if isinstance(n, str))
        fits = [isinstance(n, int) and n >= min_samples for n in lengths]
        self.too_short = tuple(
            clip.path for clip, n in zip(listed, lengths, strict=True) if isinstance(n, int) and n < min_samples
        )
        kept = [clip for clip, fit in zip(listed, fits, strict=True) if fit]
        if not kept:
            raise ValueError(
                f"{key}: none of {len(listed)} clips can be used: {len(self.bad)} cannot be read, "
                f"{len(self.too_short)} are shorter than {min_samples / sample_rate:g} s (data.min_seconds)"
                + (f"; the first: {self.bad[0]}" if self.bad else "")
            )
        self.lengths = np.array([n for n, fit in zip(lengths, fits, strict=True) if fit], dtype=np.int64)
        # One array instead of a list of str: workers would copy a list's pages, by touching reference counts.
        self._paths = np.array([os.fsencode(clip.path) for clip in kept])
        self._transcripts = None
        if any(clip.transcript is not None for clip in kept):
            self._transcripts = np.array([(clip.transcript or "").encode() for clip in kept])
        self._places = np.array([clip.transcript_place.encode("utf-8", "surrogateescape") for clip in kept])
        self.groups = None if group_pattern is None else _search(kept, group_pattern, "data.group_pattern")
        self.class_names, self._labels = None, None
        if label_pattern is not None:
            names = _search(kept, label_pattern, "data.label_pattern")
            self.class_names = class_names or tuple(sorted(set(names)))
            number = {name: i for i, name in enumerate(self.class_names)}
            if unknown := sorted(set(names) - number.keys()):
                raise ValueError(f"{key}: labels {unknown[:5]} are not in the training set")
            self._labels = np.array([number[name] for name in names])

    def _lengths(self, clips: list[Clip]) -> list[int | str]:
        """Every clip's length, or why it cannot be read."""

        def length(clip: Clip) -> int | str:
            if clip.num_samples is not None:
                return clip.num_samples if clip.num_samples > 0 else "no samples"
            try:
                return audio_length(self._read(clip.path), self.sample_rate)
            except BadSample as error:
                return str(error)

        if all(clip.num_samples is not None for clip in clips):
            return [length(clip) for clip in clips]
        with ThreadPoolExecutor() as pool:  # waits for the disk or the network most of the time
            return list(pool.map(length, clips))

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> np.ndarray:
        """(S,) float32 at ``sample_rate``. Raises BadSample."""
        return decode_audio(self._read(self.name(index)), self.sample_rate)

    @property
    def has_labels(self) -> bool:
        """Whether clips have classes."""
        return self._labels is not None

    @property
    def has_transcripts(self) -> bool:
        """Whether it is known what is said."""
        return self._transcripts is not None

    def label(self, index: int) -> int | None:
        """The clip's class, an index into ``class_names``, or None."""
        return None if self._labels is None else int(self._labels[index])

    def transcript(self, index: int) -> str | None:
        """What is said in the clip, or None if it is not known."""
        return None if self._transcripts is None else self._transcripts[index].decode() or None

    def transcript_place(self, index: int) -> str:
        """File and line of the transcript; empty where it has none."""
        return self._places[index].decode("utf-8", "surrogateescape")

    def name(self, index: int) -> str:
        """The clip's path relative to the root."""
        return os.fsdecode(self._paths[index])

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the file."""
        return file_mark(self._read(self.name(index)))


def _search(clips: Sequence[Clip], pattern: str, key: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}={pattern}: not a regular expression ({error})") from error
    if compiled.groups != 1:
        raise ValueError(f"{key}={pattern}: put parentheses around the one part that counts, as in '^([0-9])_'")
    found = []
    for clip in clips:
        match = compiled.search(clip.path)
        if match is None or match[1] is None:
            raise ValueError(f"{key}={pattern}: does not match {clip.path}")
        found.append(match[1])
    return found


def audio_files(root: str, key: str = "data.root") -> Iterator[Clip]:
    """Every audio file below a folder, in the order of their names; hidden ones are passed over.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is a file.
    """
    folder = require_folder(root, key)
    for path in files_below(folder, EXTENSIONS):
        yield Clip(os.path.relpath(path, folder))


def require_folder(root: str, key: str) -> Path:
    """``root`` as a path, after checking that it is a folder; errors name the config key."""
    path = home_path(root, key)
    if not path.exists():
        raise FileNotFoundError(f"{key}={root}: no such folder; set {key} to a folder of audio files")
    if not path.is_dir():
        raise ValueError(f"{key}={root}: not a folder; set {key} to the folder that holds the audio files")
    return path


@cache
def _prompts() -> dict[str, bytes]:
    with (resources.files("d2v.data.samples") / "prompts.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_prompt(name: str) -> bytes:
    """The content of one of the prompts that ship, for ``AudioClips``."""
    return _prompts()[name]


def prompt_clips(split: Literal["train", "val"]) -> list[Clip]:
    """The spoken prompts that ship with the package, with transcripts: every tenth is held out."""
    lines = [line.partition("\t") for line in _prompts()["transcripts.tsv"].decode().splitlines()]
    return [Clip(name, None, text) for i, (name, _, text) in enumerate(lines) if (i % 10 == 0) == (split == "val")]
