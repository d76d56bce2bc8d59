"""Sources of speech: folders of audio files, and the shipped samples.

A source returns mono waveforms at one sampling rate, and raises ``BadSample`` for files that cannot be decoded. It
knows the length of every clip without decoding it, so that batches can hold clips of about the same length.
:mod:`d2v.data.speech.corpora` lists clips by LibriSpeech's layout and by manifests. libsndfile decodes and torchaudio
resamples (extra ``d2v[speech]``); both are imported when a source is made.
"""

from __future__ import annotations

import copy
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from d2v.data.bad_samples import BadSample
from d2v.data.contents import Contents, first_of, in_words
from d2v.data.files import Listing, home_path, list_files, printable, splits_read
from d2v.data.fingerprint import file_mark
from d2v.data.speech.audio import MAX_SAMPLES as MAX_SAMPLES
from d2v.data.speech.audio import Recording, audio_length, libraries
from d2v.data.speech.audio import decode_audio as decode_audio
from d2v.data.speech.audio import num_resampled as num_resampled
from d2v.data.speech.audio import resample as resample
from d2v.data.speech.audio import sampling_rate as sampling_rate

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph")
WHOLE_SECONDS = 60  # longer clips are not decoded for a crop, but the stretch alone


class Clip(NamedTuple):
    """Entry of a list of clips.

    Attributes:
        path: path of the file, relative to the source's root.
        num_samples: length at the source's sampling rate; None to read it from the file.
        transcript: transcript, or None.
        transcript_place: file and line of the transcript, for messages; "" if unknown.
    """

    path: str
    num_samples: int | None = None
    transcript: str | None = None
    transcript_place: str = ""


class AudioClips:
    """Clips by number: those that can be read and are long enough.

    Args:
        read: gives a file's path or content for ``decode_audio``, by the clip's path.
        clips: all there are, in their order.
        sample_rate: Hz; other clips are resampled.
        min_samples: shorter clips are left out.
        label_pattern: a regular expression with the label as its group, searched in a clip's path; None for no labels.
        group_pattern: a regular expression for the group, such as the speaker, that must not be split between training
            and evaluation; None for no groups.
        class_names: the classes of the training set, for a set with the same meaning of labels.
        key: the config key that the clips come from, for messages.
        contents: their origin, for the summary.

    Attributes:
        bad: what could not be read, as "name: reason".
        too_short: names of clips below ``min_samples``.
        class_names: name of every label, or None; those of clips that are too short are among them.
        contents: origin, and numbers of what was left out.

    Raises:
        FileNotFoundError: there is no clip.
        ValueError: no clip can be read, a pattern does not match a path, or a label is not in ``class_names``.
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
        key: str = "root",
        contents: Contents | None = None,
    ) -> None:
        libraries()
        self._read = read
        self.sample_rate = sample_rate
        listed = list(clips)
        contents = contents or Contents(unit="clips")
        if not listed:
            there = f"; it holds {in_words(contents.left_out)}" if contents.left_out else ""
            raise FileNotFoundError(f"{key}: no audio file there ({', '.join(EXTENSIONS)}){there}")
        lengths = self._lengths(listed)
        self.bad = tuple(
            f"{printable(clip.path)}: {n}" for clip, n in zip(listed, lengths, strict=True) if isinstance(n, str)
        )
        self._all_lengths = np.array([0 if isinstance(n, str) else n for n in lengths], dtype=np.int64)
        short = (self._all_lengths > 0) & (self._all_lengths < min_samples)
        self.too_short = tuple(printable(listed[i].path) for i in np.flatnonzero(short).tolist())
        self._ids = np.flatnonzero(self._all_lengths >= max(1, min_samples))
        self._unusable = (
            f"{key}: none of {len(listed)} clips can be used: {len(self.bad)} cannot be read, "
            f"{len(self.too_short)} are shorter than {min_samples / sample_rate:g} s (min_seconds)"
            + (f"; the first: {self.bad[0]}" if self.bad else "")
        )
        if not self.too_short:
            self.check_not_empty()
        left_out = {"too short": len(self.too_short), "unreadable": len(self.bad)}
        left_out = dict(contents.left_out) | {kind: count for kind, count in left_out.items() if count}
        self.contents = replace(contents, left_out=left_out)
        # One array instead of a list of str: workers would copy a list's pages, by touching reference counts.
        self._paths = np.array([os.fsencode(clip.path) for clip in listed])
        self._transcripts = None
        if any(clip.transcript is not None for clip in listed):
            self._transcripts = np.array([(clip.transcript or "").encode() for clip in listed])
        self._places = np.array([clip.transcript_place.encode("utf-8", "surrogateescape") for clip in listed])
        self._groups = None if group_pattern is None else self._search(listed, group_pattern, "group_pattern")
        self.class_names, self._labels = None, None
        if label_pattern is not None:
            names = self._search(listed, label_pattern, "label_pattern")
            self.class_names = class_names or tuple(sorted({name for name in names if name is not None}))
            number = {name: i for i, name in enumerate(self.class_names)}
            if unknown := sorted({name for name in names if name is not None} - number.keys()):
                raise ValueError(
                    f"{key}: labels {unknown[:5]} are not in the training set, which has the classes "
                    f"{first_of(self.class_names, 10)}; correct label_pattern, or remove these clips"
                )
            self._labels = np.array([-1 if name is None else number[name] for name in names])

    def _search(self, clips: Sequence[Clip], pattern: str, key: str) -> list[str | None]:
        """Return the first groups of a pattern in the paths of clips; None for clips that cannot be read."""
        readable = [clip for clip, length in zip(clips, self._all_lengths, strict=True) if length > 0]
        groups = iter(_search(readable, pattern, key))
        return [next(groups) if length > 0 else None for length in self._all_lengths]

    def check_not_empty(self) -> None:
        """Raise ValueError if every clip is too short to train on, or cannot be read."""
        if len(self) == 0:
            raise ValueError(self._unusable)

    def every(self) -> AudioClips:
        """Return all listed clips for evaluation, including short ones and, as bad samples, unreadable ones."""
        if len(self) == len(self._all_lengths):
            return self
        other = copy.copy(self)
        other._ids = np.arange(len(self._all_lengths))
        other.too_short, other.bad = (), ()
        left_out = {k: n for k, n in self.contents.left_out.items() if k not in ("too short", "unreadable")}
        other.contents = replace(self.contents, left_out=left_out)
        return other

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

    @property
    def lengths(self) -> np.ndarray:
        """Return (len,) int64, samples of every clip at ``sample_rate``."""
        lengths: np.ndarray = self._all_lengths[self._ids]
        return lengths

    @property
    def groups(self) -> list[str] | None:
        """Every clip's group, or None."""
        return None if self._groups is None else [self._groups[i] or "" for i in self._ids.tolist()]

    def __len__(self) -> int:
        return len(self._ids)

    def load(self, index: int) -> np.ndarray:
        """Return (S,) float32 at ``sample_rate``. Raises BadSample."""
        return decode_audio(self._read(self._path(index)), self.sample_rate)

    def recording(self, index: int) -> Recording | None:
        """The clip to read stretches of, if it is so long that this pays and its format allows it. Raises BadSample."""
        if self._all_lengths[self._ids[index]] <= WHOLE_SECONDS * self.sample_rate:
            return None
        recording = Recording(self._read(self._path(index)), self.sample_rate)
        return None if recording.num_samples is None else recording

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the clip's file."""
        return file_mark(self._read(self._path(index)))

    @property
    def has_labels(self) -> bool:
        """Return whether clips have classes."""
        return self._labels is not None

    @property
    def has_transcripts(self) -> bool:
        """Return whether clips have transcripts."""
        return self._transcripts is not None

    def label(self, index: int) -> int | None:
        """The clip's class, an index into ``class_names``, or None."""
        if self._labels is None or self._labels[self._ids[index]] < 0:
            return None
        return int(self._labels[self._ids[index]])

    def transcript(self, index: int) -> str | None:
        """Return the transcript of the clip, or None if it has none."""
        return None if self._transcripts is None else self._transcripts[self._ids[index]].decode() or None

    def transcript_place(self, index: int) -> str:
        """File and line of the transcript; empty where it has none."""
        return self._places[self._ids[index]].decode("utf-8", "surrogateescape")

    def rates(self) -> Counter[int]:
        """Number of files of each sampling rate, in Hz; files without a readable header are not counted."""
        rates = (sampling_rate(self._read(self.name(index))) for index in range(len(self)))
        return Counter(rate for rate in rates if rate is not None)

    def name(self, index: int) -> str:
        """The clip's path relative to the root, as text that can be written anywhere."""
        return printable(self._path(index))

    def _path(self, index: int) -> str:
        return os.fsdecode(self._paths[self._ids[index]])


def _search(clips: Sequence[Clip], pattern: str, key: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}={pattern}: not a regular expression ({error})") from error
    if compiled.groups != 1:
        raise ValueError(f"{key}={pattern}: put parentheses around the one part that counts, as in '^([0-9])_'")
    groups = []
    for clip in clips:
        match = compiled.search(clip.path)
        if match is None or match[1] is None:
            raise ValueError(f"{key}={pattern}: does not match {clip.path}")
        groups.append(match[1])
    return groups


def audio_files(root: str, key: str = "root") -> Iterator[Clip]:
    """List the audio files below a folder, sorted by name, without hidden ones.

    Raises:
        FileNotFoundError: no such folder.
        PermissionError: a folder below it cannot be read.
        ValueError: it is a file.
    """
    return iter(audio_listing(root, key)[0])


def audio_listing(root: str, key: str = "root", held_out: str | None = None) -> tuple[list[Clip], Contents]:
    """The clips of :func:`audio_files`, and what else lies there.

    Args:
        root: the folder.
        key: the argument that it was read from, for messages.
        held_out: ``val_root``; files that it holds, too, are left out. None where nothing is held out.

    Raises:
        ValueError: ``held_out`` holds all files of ``root``.
    """
    listing = _audio_below(root, key)
    notes = splits_read(listing) if held_out is None else ()
    shared = set() if held_out is None else listing.shared_with(_audio_below(held_out, "val_root"))
    if shared and len(shared) == len(listing.paths):
        raise ValueError(
            f"val_root={held_out}: holds all clips of {key}={root} too; give training and validation folders of "
            "their own"
        )
    if shared:
        notes = (f"{len(shared):,} clips are both here and in {printable(held_out or '')}: only evaluated on",)
        listing = listing.keep(i for i in range(len(listing.paths)) if i not in shared)
    left_out = dict(listing.left_out) | ({"broken links": len(listing.broken)} if listing.broken else {})
    return [Clip(path) for path in listing.paths], Contents(printable(root), "clips", left_out, notes)


def _audio_below(root: str, key: str) -> Listing:
    folder = require_folder(root, key)
    try:
        listing = list_files(folder, EXTENSIONS)
    except OSError as error:
        raise PermissionError(f"{key}={root}: cannot be read ({error.strerror}); make it readable") from error
    listing.refuse_unreadable(f"{key}={root}")
    return listing


def require_folder(root: str, key: str) -> Path:
    """``root`` as a path, after checking that it is a folder; errors name the argument."""
    path = home_path(root, key)
    if not path.exists():
        raise FileNotFoundError(f"{key}={root}: no such folder; set {key}=FOLDER, a folder of audio files")
    if not path.is_dir():
        raise ValueError(f"{key}={root}: not a folder; set {key}=FOLDER, the one that holds the audio files")
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
