"""Decoding of audio files: whole, in bounded memory for any length, or a section of them.

libsndfile decodes and torchaudio resamples (extra ``d2v[speech]``); both are imported on first use.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch

from d2v.data.bad_samples import BadSample
from d2v.data.speech.mp3 import frame_count, uncounted_mp3
from d2v.errors import how_to_install
from d2v.lfs import IS_POINTER, is_lfs_pointer

MAX_SAMPLES = 2**36  # 50 days at 16 kHz: a header that claims more does not know
BLOCK = 2**22  # samples, of all channels together, that are decoded at a time
# Formats and kinds of samples in which a place is found by its number.
_EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC")
_EXACT_SAMPLES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")

_MAX_RATIO = 1000  # of two rates: at 441 : 640 15 s take 0.01 s, at 5,507 : 2,000 0.6 s
_LOWEST_RATE = 100  # Hz
# What libsndfile says of a file that is shorter than its header: bytes of sound stated, and there. A recorder that
# writes to a pipe states 2 or 4 GB.
_BROKEN_OFF = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFF0000
_TOLERANCE = Fraction(1, 10000)  # how far a ratio that is easier to resample by may be off
_FILTER_WIDTH, _ROLLOFF = 6, 0.99  # torchaudio's defaults


def libraries() -> tuple[Any, Any]:
    """Import soundfile and torchaudio.functional.

    Raises:
        ValueError: they are not installed.
    """
    try:
        import soundfile
        import torchaudio.functional
    except (ImportError, OSError) as error:
        raise ValueError(f"speech needs the packages soundfile and torchaudio: {how_to_install('speech')}") from error
    return soundfile, torchaudio.functional


def decode_audio(file: str | os.PathLike[str] | bytes, sample_rate: int) -> np.ndarray:
    """Decode an audio file.

    Long ones are decoded, mixed and resampled in blocks: beside the result, little memory is needed.

    Args:
        file: a path, or an audio file's content.
        sample_rate: of the result, Hz.

    Returns:
        (S,) float32 in [-1, 1] or a little beyond, the mean over channels, resampled if need be.

    Raises:
        BadSample: no such file, an empty file, no audio, corrupt, without samples, or with samples that are not finite.
    """
    with _reading(file) as sound:
        blocks = _mono_blocks(sound)
        first = next(blocks, None)
        if first is None:
            raise BadSample("no samples")
        second = next(blocks, None)
        if second is None:
            return resample(first, sound.samplerate, sample_rate)
        ratio = _ratio(sound.samplerate, sample_rate)
        return np.concatenate(list(_resampled_blocks(chain([first, second], blocks), ratio)))


def audio_length(file: str | os.PathLike[str] | bytes, sample_rate: int) -> int:
    """Return the length in samples at ``sample_rate``. Raises BadSample as :func:`decode_audio`.

    The length is read from the file's header. Files without it, such as FLAC that was written to a pipe, are decoded in
    blocks.
    """
    with _reading(file) as sound:
        frames = sound.frames
        if frames > MAX_SAMPLES:
            frames = sum(len(block) for block in _mono_blocks(sound))
        if frames <= 0:
            raise BadSample("no samples")
        return num_resampled(frames, sound.samplerate, sample_rate)


class Recording:
    """Audio file of which sections are read.

    Args:
        file: a path, or an audio file's content.
        sample_rate: rate of the sections, Hz.

    Attributes:
        num_samples: length of the whole file at ``sample_rate``; None if sections cannot be read exactly: formats
            without numbered samples (mp3, ogg) and files without a length.

    Raises:
        BadSample: as :func:`decode_audio`.
    """

    def __init__(self, file: str | os.PathLike[str] | bytes, sample_rate: int) -> None:
        self._file = file
        self._sample_rate = sample_rate
        with _reading(file) as sound:
            exact = sound.format in _EXACT_FORMATS and sound.subtype.startswith(_EXACT_SAMPLES)
            known = exact and 0 < sound.frames <= MAX_SAMPLES
            self.num_samples = num_resampled(sound.frames, sound.samplerate, sample_rate) if known else None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return (stop - start,) float32: what :func:`decode_audio` gives there, up to rounding.

        Raises:
            BadSample: the stretch is not there, or as :func:`decode_audio`.
        """
        with _reading(self._file) as sound:
            ratio = _ratio(sound.samplerate, self._sample_rate)
            if ratio == 1:
                return _stretch(sound, start, stop)
            # Whole units of old samples, each of which makes a unit of new ones, and those that the filter reaches.
            first, last = start // ratio.numerator, -(-stop // ratio.numerator)
            context = _context(ratio)
            old = (first - context) * ratio.denominator, (last + context) * ratio.denominator
            inside = max(0, old[0]), min(sound.frames, old[1])
            waveform = np.pad(_stretch(sound, *inside), (inside[0] - old[0], old[1] - inside[1]))
        new = (first - context) * ratio.numerator
        return _resample(waveform, ratio)[start - new : stop - new]


def resample(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Resample (S,) float32 at ``rate`` Hz to (:func:`num_resampled`,) float32 at ``sample_rate`` Hz.

    Rates with a small common divisor, such as 11,127 and 16,000 Hz, would take very long and are resampled by the
    simplest ratio within 0.01 % of the exact one, an inaudible difference.
    """
    ratio = _ratio(rate, sample_rate)
    if ratio == 1:
        return waveform
    resampled = torch.from_numpy(_resample(waveform, ratio))
    # torchaudio computes the length in float32, which may be a sample off.
    length = num_resampled(len(waveform), rate, sample_rate)
    exact: np.ndarray = torch.nn.functional.pad(resampled, (0, max(0, length - len(resampled))))[:length].numpy()
    return exact


def num_resampled(num_samples: int, rate: int, sample_rate: int) -> int:
    """Return the number of samples after :func:`resample` of ``num_samples``."""
    ratio = _ratio(rate, sample_rate)
    return -(-ratio.numerator * num_samples // ratio.denominator)


@cache
def _ratio(rate: int, sample_rate: int) -> Fraction:
    """Return new divided by old rate, or the simplest ratio near it if the exact one is too slow."""
    exact = Fraction(sample_rate, rate)
    if max(exact.numerator, exact.denominator) <= _MAX_RATIO:
        return exact
    nearest = map(exact.limit_denominator, range(1, exact.denominator + 1))
    return next(ratio for ratio in nearest if abs(ratio - exact) <= _TOLERANCE * exact)


def _resample(waveform: np.ndarray, ratio: Fraction) -> np.ndarray:
    _, functional = libraries()
    resampled: np.ndarray = functional.resample(
        torch.from_numpy(waveform), ratio.denominator, ratio.numerator, _FILTER_WIDTH, _ROLLOFF
    ).numpy()
    return resampled


def _context(ratio: Fraction) -> int:
    """Units of ``ratio.denominator`` samples that the filter reaches beyond either end."""
    width = _FILTER_WIDTH * ratio.denominator / (min(ratio.denominator, ratio.numerator) * _ROLLOFF)
    return int(width // ratio.denominator) + 1


def _resampled_blocks(blocks: Iterator[np.ndarray], ratio: Fraction) -> Iterator[np.ndarray]:
    """Resample consecutive blocks as if they were one."""
    if ratio == 1:
        yield from blocks
        return
    old, context, length, made = ratio.denominator, _context(ratio), 0, 0
    held = np.zeros(context * old, np.float32)
    for block in blocks:
        length += len(block)
        held = np.concatenate([held, block])
        units = len(held) // old - 2 * context
        if units > 0:
            part = _resample(held[: (units + 2 * context) * old], ratio)
            made += units * ratio.numerator
            yield part[context * ratio.numerator : (context + units) * ratio.numerator]
            held = held[units * old :]
    missing = -(-ratio.numerator * length // old) - made
    part = _resample(np.pad(held, (0, (2 * context + 1) * old)), ratio)
    yield part[context * ratio.numerator : context * ratio.numerator + missing]


@contextmanager
def _reading(file: str | os.PathLike[str] | bytes) -> Iterator[Any]:
    """Open a ``soundfile.SoundFile``; any error becomes a BadSample."""
    soundfile, _ = libraries()
    _check_not_empty(file)
    sound_file = _sequential(soundfile.SoundFile)
    errors = (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError, MemoryError)
    try:
        with sound_file(_opened(file)) as sound:
            _check_header(sound)
            yield sound
    except errors as error:
        raise BadSample(_reason(error)) from error


def _check_header(sound: Any) -> None:
    """Raise BadSample for a truncated file, and for a rate at which a small file would last for days."""
    if sound.samplerate < _LOWEST_RATE:
        raise BadSample(f"a sampling rate of {sound.samplerate} Hz, below {_LOWEST_RATE}")
    broken = _BROKEN_OFF.search(sound.extra_info)
    if broken and int(broken[2]) + 1 < int(broken[1]) < _UNKNOWN_SIZE:
        raise BadSample(f"truncated: {int(broken[2]):,} of {int(broken[1]):,} bytes of sound are there")


@cache
def _sequential(base: Any) -> Any:
    """``SoundFile`` that does not seek to find its place after every block: not all files can."""

    class Sequential(base):
        def seekable(self) -> bool:
            return False

    return Sequential


def _block(sound: Any) -> int:
    """Return the number of samples of a channel to decode at a time."""
    return max(1, BLOCK // sound.channels)


def _mono_blocks(sound: Any, most: int = 2**63) -> Iterator[np.ndarray]:
    """Yield blocks of at most so many samples in all, mean over channels. Raises BadSample if they are not finite."""
    size = min(_block(sound), max(1, sound.frames))
    while most > 0 and len(block := sound.read(min(size, most), "float32", always_2d=True)) > 0:
        most -= len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        if not np.isfinite(mono).all():
            raise BadSample("samples that are not finite")
        yield mono


def _stretch(sound: Any, start: int, stop: int) -> np.ndarray:
    sound.seek(start)
    blocks = list(_mono_blocks(sound, stop - start))
    waveform = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if len(waveform) < stop - start:
        raise BadSample(f"breaks off at sample {start + len(waveform)} of {sound.frames}")
    return waveform


def sampling_rate(file: str | os.PathLike[str] | bytes) -> int | None:
    """Return the rate in the file's header, Hz; None if it cannot be read."""
    soundfile, _ = libraries()
    try:
        return int(soundfile.info(_opened(file)).samplerate)
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError):
        return None


def _opened(file: str | os.PathLike[str] | bytes) -> Any:
    """Return the input for libsndfile: a file's content, or its name in the encoding of the file system.

    An mp3 without a number of frames gets one: see :mod:`d2v.data.speech.mp3`.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:
        if frames := uncounted_mp3(stream):
            return io.BytesIO(frame_count(frames) + frames)
    return io.BytesIO(file) if isinstance(file, bytes) else os.fsencode(file)


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
