"""Factories of data sets of spectrograms for configurations; each returns a ``SpectrogramData``.

A factory checks everything it can, so that a wrong path or label fails before training starts. Its keywords are the
keys of ``conf/data/<factory>.yaml``.
Ranges stand in the annotations: ``build`` and the command line check them, a direct call does not.
"""

from __future__ import annotations

from functools import partial
from typing import Unpack

from d2v.data.contents import Contents
from d2v.data.files import printable
from d2v.data.spectrograms.data import SpectrogramData, SpectrogramOptions
from d2v.data.speech.clips import AudioClips
from d2v.data.speech.corpora import below, folder_clips, manifest_clips, with_transcripts
from d2v.data.speech.labelled_clips import LabelledClips
from d2v.values import Name, PathStr, buildable

_TOP_FOLDER = "^([^/]+)/"


@buildable
def sound_folder(
    root: PathStr,
    *,
    val_root: PathStr | None = None,
    class_folders: bool = False,
    label_pattern: str | None = None,
    group_pattern: str | None = None,
    **options: Unpack[SpectrogramOptions],
) -> SpectrogramData:
    """Build data from a tree of audio files, of any format and rate that libsndfile reads.

    Args:
        root: the folder.
        val_root: a folder to evaluate probes on, or None. Recordings that are in both are only evaluated on.
        class_folders: whether the folders right below ``root`` are the classes of the recordings in them.
        label_pattern: regular expression with the class as its group, searched in the path below ``root``; None for no
            classes, or those of ``class_folders``.
        group_pattern: the same for groups, such as speakers or folds, of which probes then hold out each in turn.
        **options: as in :class:`SpectrogramData`.

    Raises:
        FileNotFoundError: there is no folder, or no audio file in it.
        ValueError: a pattern does not match, both kinds of classes are given, or values do not fit each other.
    """
    if class_folders and label_pattern is not None:
        raise ValueError(f"label_pattern={label_pattern}: class_folders=true already names the classes; leave one out")
    pattern = _TOP_FOLDER if class_folders else label_pattern
    train, val = folder_clips(root, val_root, _rate(options), _shortest(options), pattern, group_pattern)
    return SpectrogramData(train=train, probe_train=train if pattern is not None else None, val=val, **options)


@buildable
def sound_manifest(
    manifest: PathStr,
    *,
    classes: PathStr | None = None,
    val_manifest: PathStr | None = None,
    val_classes: PathStr | None = None,
    separator: Name | None = None,
    **options: Unpack[SpectrogramOptions],
) -> SpectrogramData:
    """Build data from a list of audio files with lengths, so that no file is opened before it is used.

    Args:
        manifest: a tsv as fairseq has them: the root folder on the first line, then path<TAB>number of samples.
        classes: a text file with the class of a recording a line, in the order of the recordings; or None.
        val_manifest: manifest of the recordings to evaluate on, or None.
        val_classes: of these.
        separator: between the classes of a recording that has several, for ``task=audio_tagging``; None for one class.
        **options: as in :class:`SpectrogramData`.

    Raises:
        FileNotFoundError: no such manifest, root or file of classes.
        ValueError: a line or a value is not as it should be, or there are fewer or more classes than recordings.
    """
    if val_classes is not None and (val_manifest is None or classes is None):
        raise ValueError(f"val_classes={val_classes}: set val_manifest, the recordings they belong to, and classes")

    def clips(path: str, texts: str | None, prefix: str, min_samples: int, names: tuple[str, ...] | None) -> AudioClips:
        rate = _rate(options)
        root, listed = manifest_clips(path, rate, f"{prefix}manifest")
        contents, key = Contents(printable(path), "clips"), f"{prefix}manifest={path}"
        if texts is None:
            return AudioClips(partial(below, root), listed, rate, min_samples, key=key, contents=contents)
        listed = with_transcripts(listed, texts, f"{prefix}classes")
        return LabelledClips(
            partial(below, root),
            listed,
            rate,
            min_samples,
            key=key,
            contents=contents,
            class_names=names,
            separator=separator,
        )

    train = clips(manifest, classes, "", _shortest(options), None)
    return SpectrogramData(
        train=train,
        probe_train=None if classes is None or separator is not None else train,
        val=None if val_manifest is None else clips(val_manifest, val_classes, "val_", 1, train.class_names),
        **options,
    )


def _rate(options: SpectrogramOptions) -> int:
    return options.get("sample_rate", SpectrogramData.sample_rate)


def _shortest(options: SpectrogramOptions) -> int:
    return round(options.get("min_seconds", SpectrogramData.min_seconds) * _rate(options))
