"""Clips with what is said in them: listed as LibriSpeech and fairseq's manifests have them, and spelled by letters.

Speech is fine-tuned on them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from torch import Tensor

from d2v.data.audio_sources import MAX_SAMPLES, AudioClips, Clip, num_resampled, sampling_rate
from d2v.data.bad_samples import TOO_SHORT
from d2v.data.datasets import Source
from d2v.data.files import Listing, home_path, list_files
from d2v.data.finetune import Part
from d2v.data.letters import spell
from d2v.data.plain_text import utf8_of
from d2v.data.sampler import RandomStream, sample_rng
from d2v.data.speech_batches import ConvLayers, EvalView
from d2v.types import num_frames

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WholeView:
    """A whole clip, in training as in evaluation: what is said in it cannot be cropped with it.

    Attributes:
        view: the evaluation's.
    """

    view: EvalView

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(S,) float32. Raises BadSample for clips that are too short or too long."""
        return self.view(waveform)


class SpokenClips:
    """Clips with transcripts, by number.

    Args:
        clips: all of them.
        letters: what transcripts are spelled with; without small letters in it, transcripts are put in capitals.
        max_samples: longer clips are left out.
        on_bad_text: "error", or "skip": leave clips out whose transcript is empty or has other characters, and say so.
        limit: the config key that ``max_samples`` comes from, for messages.

    Attributes:
        left_out: every clip that is not here though it was listed, as "name: reason".

    Raises:
        ValueError: no clip has a transcript, none is short enough, or a transcript cannot be spelled.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(
        self,
        clips: AudioClips,
        letters: str,
        max_samples: int,
        on_bad_text: Literal["error", "skip"] = "error",
        limit: str = "data.eval_max_seconds",
    ) -> None:
        if on_bad_text not in ("error", "skip"):
            raise ValueError(f"labels.on_bad_text={on_bad_text}: choose error or skip")
        if not clips.has_transcripts:
            raise ValueError(
                "these clips have no transcripts: use data=librispeech, data.transcripts of data=audio_manifest, or "
                "data.text_column of data=hf_audio"
            )
        clips.check_not_empty()
        self.clips = clips
        self.ids: list[int] = []
        self._letters: list[tuple[int, ...]] = []
        bad, too_long = [], []
        for i in range(len(clips)):
            name, rate = clips.name(i), clips.sample_rate
            if clips.lengths[i] > max_samples:
                too_long.append(f"{name}: {clips.lengths[i] / rate:g} s, {limit} allows {max_samples / rate:g}")
                continue
            text = clips.transcript(i) or ""
            try:
                text = text.upper() if letters == letters.upper() else text
                spelled = spell(text, letters, name, clips.transcript_place(i))
            except ValueError as error:
                if on_bad_text == "error":
                    raise
                bad.append(str(error))
                continue
            self.ids.append(i)
            self._letters.append(spelled)
        for entry in bad:
            log.warning("left out %s", entry)
        if bad or too_long:
            log.warning("left out %d clips for their transcripts, %d for their length", len(bad), len(too_long))
        if not self.ids:
            raise ValueError(
                f"none of {len(clips)} clips can be used: {len(bad)} transcripts, {len(too_long)} too long; the first: "
                + [*bad, *too_long][0]
            )
        too_short = (f"{name}: {TOO_SHORT} (data.min_seconds)" for name in clips.too_short)
        self.left_out = (*clips.bad, *too_short, *too_long, *bad)
        self.lengths = clips.lengths[self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> np.ndarray:
        """(S,) float32. Raises BadSample."""
        return self.clips.load(self.ids[index])

    def label(self, index: int) -> tuple[int, ...]:
        """Return the transcript, as numbers of letters."""
        return self._letters[index]

    def name(self, index: int) -> str:
        """The clip's path."""
        return self.clips.name(self.ids[index])

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the file."""
        return self.clips.mark(self.ids[index])


def choose_hours(clips: SpokenClips, hours: float, sample_rate: int, seed: int) -> Part:
    """Clips that last so long together, the speakers taking turns: a few labels from as many voices as possible.

    The same for the same clips and seed; more hours hold the clips of fewer.

    Args:
        clips: in folders <speaker>/<chapter>, as LibriSpeech has them; others count as one speaker.
        hours: at most; the first clip of all is always taken.
        sample_rate: of ``clips.lengths``, Hz.
        seed: of the order.
    """
    if hours <= 0:
        raise ValueError(f"labels.hours={hours}: must be above 0, or null for all")
    voices: dict[str, list[int]] = {}
    for i in sample_rng(seed, 0, 0, RandomStream.ORDER).permutation(len(clips)).tolist():
        parents = PurePath(clips.name(i)).parts[:-1]
        voices.setdefault(parents[-2] if len(parents) > 1 else "", []).append(i)
    turns = chain.from_iterable(zip_longest(*(voices[name] for name in sorted(voices))))
    left = hours * 3600 * sample_rate
    chosen: list[int] = []
    for i in (i for i in turns if i is not None):
        left -= clips.lengths[i]
        if left < 0 and chosen:
            break
        chosen.append(i)
    return Part(clips, sorted(chosen))


def name_unlearnable(clips: Source, lengths: np.ndarray, conv_layers: ConvLayers) -> None:
    """Warn of clips with fewer frames than CTC takes for what is said: one a letter, one more between two alike.

    Args:
        clips: labelled with numbers of letters.
        lengths: of every clip, samples.
        conv_layers: of the encoder: what a frame is.
    """
    unlearnable = []
    for i, length in enumerate(lengths.tolist()):
        frames, said = num_frames(length, conv_layers), clips.label(i)
        assert isinstance(said, tuple)
        if frames < 2 * len(said) and frames < len(said) + sum(a == b for a, b in pairwise(said)):
            unlearnable.append(clips.name(i))
    if unlearnable:
        log.warning(
            "nothing is learnt from %d of %d clips, whose transcripts have more letters than the encoder makes frames: "
            "%s%s; correct or remove them", len(unlearnable), len(clips), ", ".join(unlearnable[:5]),
            ", ..." if len(unlearnable) > 5 else "",
        )  # fmt: skip


def librispeech_parts(root: str, parts: Sequence[str], key: str) -> tuple[list[Clip], Counter[str], tuple[str, ...]]:
    """The utterances of parts of LibriSpeech, numbers of other files by their endings, and notes for the summary.

    Raises:
        FileNotFoundError: a part is not there.
        PermissionError: a folder in it cannot be read.
        ValueError: an utterance has no transcript, or a transcript is not UTF-8.
    """
    clips, left_out, silent = [], Counter[str](), 0
    for part in parts:
        listing = _librispeech_files(root, part, key)
        texts = _librispeech_texts(listing, f"{key}={part}")
        for path in listing.paths:
            if not path.lower().endswith(".flac"):
                continue
            file = listing.root / path
            if (file.parent, file.stem) not in texts:
                raise ValueError(
                    f"{file}: no transcript in {file.parent}/*.trans.txt; the copy of LibriSpeech is damaged"
                )
            name = str(file.relative_to(home_path(root, "data.root")))
            clips.append(Clip(name, None, *texts.pop((file.parent, file.stem))))
        left_out += listing.left_out
        silent += len(texts)
    damaged = f"{silent:,} transcripts without their .flac: the copy of LibriSpeech is damaged"
    return clips, left_out, (damaged,) if silent else ()


def librispeech_clips(root: str, split: str, key: str) -> Iterator[Clip]:
    """The utterances of one part of LibriSpeech, with their transcripts: split/<speaker>/<chapter>/*.flac, *.trans.txt.

    Raises:
        FileNotFoundError, PermissionError, ValueError: as :func:`librispeech_parts`.
    """
    return iter(librispeech_parts(root, [split], key)[0])


def _librispeech_files(root: str, split: str, key: str) -> Listing:
    folder = librispeech_folder(root, split)
    if folder is None:
        raise FileNotFoundError(
            f"{key}={split}: {root} holds neither {split} nor LibriSpeech/{split}; correct data.root, or fetch it with "
            "data.download=true"
        )
    try:
        listing = list_files(folder, (".flac", ".trans.txt"))
    except OSError as error:
        raise PermissionError(f"{key}={split}: {folder} cannot be read ({error.strerror}); make it readable") from error
    listing.refuse_unreadable(f"{key}={split}")
    return listing


def _librispeech_texts(listing: Listing, key: str) -> dict[tuple[Path, str], tuple[str, str]]:
    """Transcript and its file and line, by folder and name of the utterance."""
    texts = {}
    for path in listing.paths:
        file = listing.root / path
        if not path.lower().endswith(".trans.txt"):
            continue
        for number, line in enumerate(_lines(file, key), 1):
            name, _, text = line.strip().partition(" ")
            if name:
                texts[file.parent, name] = text, f"{file}:{number}"
    return texts


def librispeech_folder(root: str, split: str) -> Path | None:
    """Return the folder of ``split``: below ``root``, or below its folder LibriSpeech, as torchaudio unpacks it."""
    base = home_path(root, "data.root")
    for parent in (base, base / "LibriSpeech"):
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
    path = home_path(manifest, key)
    if not path.is_file():
        raise FileNotFoundError(f"{key}={manifest}: no such file; give a tsv: a root line, then path<TAB>samples")
    # Names are bytes to the system: what is no UTF-8 comes through as it is; only "\n" ends a line.
    try:
        content = utf8_of(path).decode("utf-8", "surrogateescape")
    except ValueError as error:
        raise ValueError(f"{key}={manifest}: {error}") from error
    if "\n" not in content.strip():
        raise ValueError(f"{key}={manifest}: lists no file; give a root line, then path<TAB>samples of every file")
    root_line, *lines = content.removesuffix("\n").split("\n")
    root = home_path(root_line.strip(), f"{manifest}:1")
    if not root.is_absolute():
        root = path.parent / root
    if not root.is_dir():
        raise FileNotFoundError(f"{manifest}:1: {root_line!r} is no folder; the first line must name the files' root")
    entries = []
    for number, line in enumerate(lines, 2):
        name, tab, count = line.partition("\t")
        if not tab or not count.strip().isdecimal() or "\0" in name:
            raise ValueError(f"{manifest}:{number}: {line!r} is not path<TAB>number of samples")
        if len(count.strip()) > len(str(MAX_SAMPLES)) or int(count) > MAX_SAMPLES:
            raise ValueError(
                f"{manifest}:{number}: {count.strip()} samples are longer than any file; correct the number"
            )
        entries.append((name, int(count)))
    rate = _first_rate(root, [name for name, _ in entries])
    return root, [Clip(name, num_resampled(count, rate or sample_rate, sample_rate)) for name, count in entries]


def with_transcripts(clips: Sequence[Clip], path: str, key: str) -> list[Clip]:
    """Clips with what is said in them, from a UTF-8 text file of a line each, in their order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has fewer or more lines than there are clips, or is not UTF-8.
    """
    file = home_path(path, key)
    if not file.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file; give a text file of a transcript a line")
    lines = _lines(file, f"{key}={path}")
    if len(lines) != len(clips):
        raise ValueError(f"{key}={path}: {len(lines)} lines for {len(clips)} clips of the manifest: give one for each")
    return [
        clip._replace(transcript=line.strip(), transcript_place=f"{path}:{number}")
        for number, (clip, line) in enumerate(zip(clips, lines, strict=True), 1)
    ]


def _lines(file: Path, key: str) -> list[str]:
    """The lines of a text file in Unicode."""
    try:
        lines = utf8_of(file).removesuffix(b"\n").split(b"\n")
    except ValueError as error:
        raise ValueError(f"{key}: {file} is {error}") from error
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file}:{number}: byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8 ({key})"
            ) from error
    return texts


def _first_rate(root: Path, names: list[str]) -> int | None:
    return next((rate for rate in (sampling_rate(root / name) for name in names[:100]) if rate), None)
