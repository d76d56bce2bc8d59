"""Collections of recordings: folders, LibriSpeech's folders and fairseq's manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from d2v.data.files import Listing, home_path, list_files
from d2v.data.plain_text import utf8_of
from d2v.data.speech.clips import (
    MAX_SAMPLES,
    AudioClips,
    Clip,
    audio_listing,
    num_resampled,
    require_folder,
    sampling_rate,
)


def below(root: Path, name: str) -> Path:
    """Return the path of a file in a folder; as a partial function, it is pickled for data workers."""
    return root / name


def folder_clips(
    root: str,
    val_root: str | None,
    sample_rate: int,
    min_samples: int,
    label_pattern: str | None,
    group_pattern: str | None,
) -> tuple[AudioClips, AudioClips | None]:
    """Return the recordings of a tree of files to train on, and those of ``val_root``, which has no shortest length.

    Recordings that are in both are only evaluated on.

    Raises:
        FileNotFoundError: there is no folder, or no audio file in it.
        ValueError: a pattern does not match, or ``val_root`` has a class that ``root`` lacks.
    """

    def clips(
        folder: str, key: str, shortest: int, held_out: str | None = None, names: tuple[str, ...] | None = None
    ) -> AudioClips:
        base = require_folder(folder, key)
        listed, contents = audio_listing(folder, key, held_out)
        return AudioClips(
            partial(below, base), listed, sample_rate, shortest, label_pattern, group_pattern, names,
            f"{key}={folder}", contents,
        )  # fmt: skip

    train = clips(root, "root", min_samples, val_root)
    return train, None if val_root is None else clips(val_root, "val_root", 1, None, train.class_names)


def librispeech_parts(root: str, parts: Sequence[str], key: str) -> tuple[list[Clip], Counter[str], tuple[str, ...]]:
    """Return the utterances of parts of LibriSpeech, numbers of other files by ending, and notes for the summary.

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
            name = str(file.relative_to(home_path(root, "root")))
            clips.append(Clip(name, None, *texts.pop((file.parent, file.stem))))
        left_out += listing.left_out
        silent += len(texts)
    damaged = f"{silent:,} transcripts without their .flac: the copy of LibriSpeech is damaged"
    return clips, left_out, (damaged,) if silent else ()


def _librispeech_files(root: str, split: str, key: str) -> Listing:
    folder = librispeech_folder(root, split)
    if folder is None:
        raise FileNotFoundError(
            f"{key}={split}: {root} holds neither {split} nor LibriSpeech/{split}; correct root={root}, or "
            "fetch it with download=true"
        )
    try:
        listing = list_files(folder, (".flac", ".trans.txt"))
    except OSError as error:
        raise PermissionError(f"{key}={split}: {folder} cannot be read ({error.strerror}); make it readable") from error
    listing.refuse_unreadable(f"{key}={split}")
    return listing


def _librispeech_texts(listing: Listing, key: str) -> dict[tuple[Path, str], tuple[str, str]]:
    """Return transcripts with file and line, by folder and name of the utterance."""
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
    base = home_path(root, "root")
    for parent in (base, base / "LibriSpeech"):
        if (parent / split).is_dir():
            return parent / split
    return None


def manifest_clips(manifest: str, sample_rate: int, key: str) -> tuple[Path, list[Clip]]:
    """Read a fairseq manifest: the root folder on the first line, then path, tab and number of samples.

    The numbers are at the rate of the first readable file.

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
    """Add transcripts to clips, from a UTF-8 text file with one line for each clip, in order.

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
    """Read the lines of a text file in UTF-8, UTF-16 or UTF-32."""
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
