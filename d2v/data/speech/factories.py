"""Factories of speech data sets for configurations; each returns a ``SpeechData``.

A factory checks everything it can, so that a wrong path, length or pattern fails before training starts. Its keywords
are the keys of ``conf/data/<factory>.yaml``.
Ranges stand in the annotations: ``build`` and the command line check them, a direct call does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from typing import Unpack

from filelock import FileLock

from d2v.data.contents import Contents
from d2v.data.files import home_path, printable
from d2v.data.hub import check_other_split
from d2v.data.shards import SHARDED, Streaming
from d2v.data.speech.clips import AudioClips, prompt_clips, read_prompt, require_folder
from d2v.data.speech.corpora import (
    below,
    folder_clips,
    librispeech_folder,
    librispeech_parts,
    manifest_clips,
    with_transcripts,
)
from d2v.data.speech.data import SpeechData, SpeechOptions, check_seconds
from d2v.data.speech.hub import HFAudioStream, hf_clips
from d2v.data.streams import Stream
from d2v.values import Name, PathStr, PositiveInt, Seconds, buildable


@buildable
def samples_speech(**options: Unpack[SpeechOptions]) -> SpeechData:
    """Build data from the shipped spoken prompts: 24 minutes of one speaker, with transcripts.

    Args:
        **options: as in :class:`SpeechData`; by default clips of 0.5 to 4 seconds.

    Raises:
        ValueError: values do not fit each other.
    """
    options = {"min_seconds": 0.5, "max_seconds": 4.0} | options
    sample_rate, shortest = _shortest(options)
    train = AudioClips(read_prompt, prompt_clips("train"), sample_rate, shortest)
    val = AudioClips(read_prompt, prompt_clips("val"), sample_rate, shortest)
    return SpeechData(train=train, probe_train=train, val=val, **options)


@buildable
def librispeech(
    root: PathStr,
    *,
    train: Sequence[str] | str,
    val: Sequence[str] | str | None,
    probe_train: Sequence[str] | str | None = None,
    download: bool = False,
    **options: Unpack[SpeechOptions],
) -> SpeechData:
    """Build data from LibriSpeech in its original layout: part/<speaker>/<chapter>/*.flac with *.trans.txt.

    Args:
        root: the folder that holds the parts, or LibriSpeech/ with the parts.
        train: parts to pretrain on, such as "train-clean-100".
        val: parts to evaluate probes on, or None.
        probe_train: parts to train probes on; ``train`` if None.
        download: fetch parts that are missing, by torchaudio.
        **options: as in :class:`SpeechData`.

    Raises:
        FileNotFoundError: a part is not there, or could not be fetched.
        ValueError: an utterance has no transcript, one is not UTF-8, or values do not fit each other.
    """
    sample_rate, shortest = _shortest(options)
    if not download:
        require_folder(root, "root")

    def clips(parts: Sequence[str] | str, key: str, min_samples: int) -> AudioClips:
        names = _as_list(parts)
        if download:
            _download(root, [name for name in names if librispeech_folder(root, name) is None], key)
        listed, left_out, notes = librispeech_parts(root, names, key)
        trained_on = [name for name in names if key == "val" and name in _as_list(train)]
        if trained_on:
            notes = (*notes, f"trained on, too: {', '.join(trained_on)}")
        contents = Contents(f"{printable(root)} ({', '.join(names)})", "clips", left_out, notes)
        base = home_path(root, "root")
        return AudioClips(partial(below, base), listed, sample_rate, min_samples, key=key, contents=contents)

    pretrained_on = clips(train, "train", shortest)
    return SpeechData(
        train=pretrained_on,
        probe_train=pretrained_on if probe_train is None else clips(probe_train, "probe_train", 1),
        val=None if val is None else clips(val, "val", 1),
        **options,
    )


def _as_list(parts: Sequence[str] | str) -> list[str]:
    return [parts] if isinstance(parts, str) else list(parts)


def _download(root: str, parts: Sequence[str], key: str) -> None:
    """Download parts; a part appears only when complete, and other processes wait for the first."""
    from torchaudio.datasets import LIBRISPEECH

    target = home_path(root, "root") / "LibriSpeech"
    target.mkdir(parents=True, exist_ok=True)
    for part in parts:
        with FileLock(target / f".{part}.lock"):
            if librispeech_folder(root, part) is not None:
                continue
            scratch = target / f".{part}.download"
            shutil.rmtree(scratch / "LibriSpeech", ignore_errors=True)  # half unpacked; the archive may be whole
            scratch.mkdir(exist_ok=True)
            try:
                LIBRISPEECH(scratch, url=part, download=True)
            except (OSError, RuntimeError, ValueError) as error:
                raise FileNotFoundError(
                    f"{key}={part}: could not be fetched ({error}); check the name and the network, or unpack it below "
                    f"root={root} yourself"
                ) from error
            (scratch / "LibriSpeech" / part).rename(target / part)
            shutil.rmtree(scratch)


@buildable
def audio_folder(
    root: PathStr,
    *,
    val_root: PathStr | None = None,
    label_pattern: str | None = None,
    group_pattern: str | None = None,
    **options: Unpack[SpeechOptions],
) -> SpeechData:
    """Build data from a tree of audio files: wav, flac, ogg, mp3 and other formats of libsndfile.

    Args:
        root: the folder.
        val_root: a folder to evaluate probes on, or None. Clips that are in both are only evaluated on.
        label_pattern: regular expression with the label as its group, searched in the clip's path below ``root``; None
            for no labels.
        group_pattern: the same for groups, such as speakers, of which probes then hold out each in turn.
        **options: as in :class:`SpeechData`.

    Raises:
        FileNotFoundError: there is no folder, or no audio file in it.
        ValueError: a pattern does not match, or values do not fit each other.
    """
    sample_rate, shortest = _shortest(options)
    train, val = folder_clips(root, val_root, sample_rate, shortest, label_pattern, group_pattern)
    return SpeechData(train=train, probe_train=train if label_pattern is not None else None, val=val, **options)


@buildable
def audio_manifest(
    manifest: PathStr,
    *,
    transcripts: PathStr | None = None,
    val_manifest: PathStr | None = None,
    val_transcripts: PathStr | None = None,
    **options: Unpack[SpeechOptions],
) -> SpeechData:
    """Build data from a list of audio files with lengths, so that no file is opened before it is used.

    Args:
        manifest: a tsv as fairseq has them: the root folder on the first line, then path<TAB>number of samples. A root
            that is not absolute is looked for beside the manifest.
        transcripts: a text file with one transcript a line, in the order of the clips; or None.
        val_manifest: manifest of the clips to evaluate on, or None.
        val_transcripts: of these.
        **options: as in :class:`SpeechData`.

    Raises:
        FileNotFoundError: no such manifest, root or file of transcripts.
        ValueError: a line or a value is not as it should be, or there are fewer or more transcripts than clips.
    """
    sample_rate, shortest = _shortest(options)
    if val_transcripts is not None and val_manifest is None:
        raise ValueError(f"val_transcripts={val_transcripts}: set val_manifest, the clips they belong to")

    def clips(path: str, texts: str | None, prefix: str, min_samples: int) -> AudioClips:
        root, listed = manifest_clips(path, sample_rate, f"{prefix}manifest")
        if texts is not None:
            listed = with_transcripts(listed, texts, f"{prefix}transcripts")
        key = f"{prefix}manifest={path}"
        contents = Contents(printable(path), "clips")
        return AudioClips(partial(below, root), listed, sample_rate, min_samples, key=key, contents=contents)

    train = clips(manifest, transcripts, "", shortest)
    return SpeechData(
        train=train,
        probe_train=None if transcripts is None else train,
        val=None if val_manifest is None else clips(val_manifest, val_transcripts, "val_", 1),
        **options,
    )


class HFSpeechOptions(SpeechOptions, total=False):
    """Options of clips that may be a stream."""

    shuffle_buffer: PositiveInt
    crop_seconds: Seconds


@buildable
def hf_audio(
    path: Name,
    split: Name = "train",
    *,
    val_split: Name | None = None,
    audio_column: Name | None = None,
    text_column: Name | None = None,
    streaming: Streaming = False,
    **options: Unpack[HFSpeechOptions],
) -> SpeechData:
    """A Hugging Face data set of audio.

    Args:
        path: name on the Hub, or a local directory of parquet files, or what ``save_to_disk`` wrote; for a directory of
            audio files use :func:`audio_folder`.
        split: to train on.
        val_split: to evaluate probes on, or None; never streamed.
        audio_column: the only column of audio if None.
        text_column: of transcripts; None for none.
        streaming: read while training instead of downloading first. Lengths are not known then: every clip is cropped
            to ``crop_seconds``, and shorter ones are skipped. "sharded" lets every reader read a share of its own
            (docs/data.md).
        **options: as in :class:`SpeechData`.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, split or columns do not exist, or values do not fit each other.
    """
    sample_rate, shortest = _shortest(options)
    train: AudioClips | Stream
    if streaming:
        train = HFAudioStream(path, split, audio_column, sample_rate, streaming == SHARDED)
    else:
        train = hf_clips(path, split, audio_column, text_column, sample_rate, shortest)
    val = None
    if val_split is not None:
        check_other_split(split, val_split)
        val = hf_clips(path, val_split, audio_column, text_column, sample_rate, 1, "val_split")
    return SpeechData(
        train=train,
        probe_train=train if isinstance(train, AudioClips) and train.has_transcripts else None,
        val=val,
        **options,
    )


def _shortest(options: SpeechOptions) -> tuple[int, int]:
    """Return the sample rate, Hz, and the samples of the shortest clip to train on.

    Raises:
        ValueError: the shortest is longer than the longest.
    """
    sample_rate = options.get("sample_rate", SpeechData.sample_rate)
    min_seconds = options.get("min_seconds", SpeechData.min_seconds)
    check_seconds(min_seconds, options.get("max_seconds", SpeechData.max_seconds))
    return sample_rate, round(min_seconds * sample_rate)
