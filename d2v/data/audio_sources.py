"""Where speech comes from: audio files in folders, LibriSpeech's layout, manifests, and the samples that ship.

A source hands out waveforms at one sampling rate, mono, and raises ``BadSample`` for what cannot be decoded. It knows
the length of every clip without decoding it, so that batches can be made of clips of about the same length.
Decoding is libsndfile's work and resampling torchaudio's (extra ``d2v[speech]``), imported when a source is made.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from math import gcd
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from d2v.data.bad_samples import BadSample
from d2v.data.files import files_below

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph")


_MAX_SAMPLES = 2**36  # 50 days at 16 kHz: more is a damaged header
_MAX_RATIO = 5000  # of two sampling rates over their common divisor


class Clip(NamedTuple):
    """A clip as it is listed.

    Attributes:
        path: of its file, relative to the source's root.
        num_samples: its length at the source's sampling rate; None to look into the file.
        transcript: what is said, or None.
    """

    path: str
    num_samples: int | None = None
    transcript: str | None = None


def libraries() -> tuple[Any, Any]:
    """(soundfile, torchaudio.functional); ValueError if they are not installed."""
    try:
        import soundfile
        import torchaudio.functional
    except (ImportError, OSError) as error:
        raise ValueError("speech needs the packages soundfile and torchaudio: pip install 'd2v[speech]'") from error
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

    Raises:
        BadSample: the rates have so small a common divisor that it would take very long.
    """
    if rate == sample_rate:
        return waveform
    if max(rate, sample_rate) // gcd(rate, sample_rate) > _MAX_RATIO:
        raise BadSample(f"{rate} Hz cannot be resampled to {sample_rate} Hz in reasonable time")
    _, functional = libraries()
    resampled = functional.resample(torch.from_numpy(waveform), rate, sample_rate)
    # torchaudio computes the length in float32, which may be a sample off.
    length = num_resampled(len(waveform), rate, sample_rate)
    exact: np.ndarray = torch.nn.functional.pad(resampled, (0, max(0, length - len(resampled))))[:length].numpy()
    return exact


def num_resampled(num_samples: int, rate: int, sample_rate: int) -> int:
    """Samples that :func:`resample` makes of ``num_samples``."""
    divisor = gcd(rate, sample_rate)
    new, old = sample_rate // divisor, rate // divisor
    return -(-new * num_samples // old)


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
    if info.frames > _MAX_SAMPLES:
        raise BadSample(f"its header claims {info.frames} samples")
    return num_resampled(info.frames, info.samplerate, sample_rate)


def _opened(file: str | os.PathLike[str] | bytes) -> Any:
    """What libsndfile opens: a file's content, or its name, in whatever encoding the file system has."""
    return io.BytesIO(file) if isinstance(file, bytes) else os.fsencode(file)


def _check_not_empty(file: str | os.PathLike[str] | bytes) -> None:
    try:
        empty = len(file) == 0 if isinstance(file, bytes) else os.path.getsize(file) == 0
    except OSError as error:
        raise BadSample(error.strerror or str(error)) from error
    if empty:
        raise BadSample("empty file")


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

    def name(self, index: int) -> str:
        """The clip's path relative to the root."""
        return os.fsdecode(self._paths[index])


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
    path = Path(root).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{key}={root}: no such folder; set {key} to a folder of audio files")
    if not path.is_dir():
        raise ValueError(f"{key}={root}: not a folder; set {key} to the folder that holds the audio files")
    return path


def librispeech_clips(root: str, split: str, key: str) -> Iterator[Clip]:
    """The utterances of one part of LibriSpeech, with their transcripts: split/<speaker>/<chapter>/*.flac, *.trans.txt.

    Raises:
        FileNotFoundError: the part is not there.
        ValueError: an utterance has no transcript.
    """
    folder = librispeech_folder(root, split)
    if folder is None:
        raise FileNotFoundError(
            f"{key}={split}: {root} holds neither {split} nor LibriSpeech/{split}; correct data.root, or fetch it with "
            "data.download=true"
        )
    for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        texts = {}
        for file in chapter.glob("[!.]*.trans.txt"):
            for line in file.read_text(encoding="utf-8").splitlines():
                name, _, text = line.strip().partition(" ")
                texts[name] = text
        for path in sorted(chapter.glob("[!.]*.flac")):
            if path.stem not in texts:
                raise ValueError(f"{path}: no transcript in {chapter}/*.trans.txt; the copy of LibriSpeech is damaged")
            yield Clip(str(path.relative_to(Path(root).expanduser())), None, texts[path.stem])


def librispeech_folder(root: str, split: str) -> Path | None:
    """Where ``split`` lies: directly below ``root``, or below its folder LibriSpeech, as torchaudio unpacks it."""
    for parent in (Path(root).expanduser(), Path(root).expanduser() / "LibriSpeech"):
        if (parent / split).is_dir():
            return parent / split
    return None


def manifest_clips(manifest: str, sample_rate: int, key: str) -> tuple[Path, list[Clip]]:
    """A fairseq manifest: the root folder on the first line, then path, tab and number of samples.

    The numbers are taken at the rate of the first file that can be read.

    Returns:
        The root and its clips.

    Raises:
        FileNotFoundError: no such manifest, or no such root.
        ValueError: a line is not as it should be, naming it.
    """
    path = Path(manifest).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{key}={manifest}: no such file; give a tsv: a root line, then path<TAB>samples")
    # Names are bytes to the system: what is no UTF-8 comes through as it is; only "\n" ends a line.
    root_line, *lines = path.read_text("utf-8-sig", "surrogateescape").removesuffix("\n").split("\n")
    root = Path(root_line.strip()).expanduser()
    if not root.is_absolute():
        root = path.parent / root
    if not root.is_dir():
        raise FileNotFoundError(f"{manifest}:1: {root_line!r} is no folder; the first line must name the files' root")
    entries = []
    for number, line in enumerate(lines, 2):
        name, tab, count = line.partition("\t")
        if not tab or not count.strip().isdecimal():
            raise ValueError(f"{manifest}:{number}: {line!r} is not path<TAB>number of samples")
        entries.append((name, int(count)))
    rate = _first_rate(root, [name for name, _ in entries])
    return root, [Clip(name, num_resampled(count, rate or sample_rate, sample_rate)) for name, count in entries]


def with_transcripts(clips: Sequence[Clip], path: str, key: str) -> list[Clip]:
    """Clips with what is said in them, from a UTF-8 text file of a line each, in their order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has fewer or more lines than there are clips.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file; give a text file of a transcript a line")
    lines = file.read_text("utf-8-sig").removesuffix("\n").split("\n")
    if len(lines) != len(clips):
        raise ValueError(f"{key}={path}: {len(lines)} lines for {len(clips)} clips of the manifest: give one for each")
    return [clip._replace(transcript=line.strip()) for clip, line in zip(clips, lines, strict=True)]


def _first_rate(root: Path, names: list[str]) -> int | None:
    soundfile, _ = libraries()
    for name in names[:100]:
        try:
            return int(soundfile.info(_opened(root / name)).samplerate)
        except (soundfile.SoundFileError, OSError, RuntimeError, TypeError):
            continue
    return None


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
