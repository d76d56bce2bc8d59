"""Opening of Hugging Face data sets of any modality, and choice of their columns.

``datasets`` is an optional dependency (extra ``d2v[hf]``), imported only when a source is made.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2v.data.contents import first_of
from d2v.data.files import TEST, TRAIN, VAL, Listing, files_below, home_path, list_files, printable
from d2v.data.texts.tables import quotes_mean_something
from d2v.errors import how_to_install
from d2v.lfs import refuse_lfs_pointer

# Files of data sets that are not samples by themselves.
_TABLES = (
    ".parquet",
    ".arrow",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".txt",
    ".gz",
    ".zst",
    ".bz2",
    ".xz",
    ".zip",
    ".tar",
)


def load_hf(path: str, split: str, streaming: bool = False, name: str | None = None, key: str | None = "split") -> Any:
    """Load a ``datasets.Dataset`` or ``IterableDataset``.

    Args:
        path: name on the Hub, or a local directory of files, one such file, or what ``save_to_disk`` wrote.
        split: for example "train".
        streaming: read while it is used, instead of downloading first.
        name: of one of the data set's configurations; None for the only one.
        key: the argument that ``split`` was read from, for messages; None if it was not.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, there is no such split, or files are damaged or Git LFS pointers.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"path={path}: needs the package datasets; {how_to_install('hf')}") from error

    local = home_path(path, "path")
    no_split = f"path={path}: no split {split}" if key is None else f"{key}={split}: no such split of path={path}"
    if local.is_dir():
        for file in files_below(local, _TABLES):
            refuse_lfs_pointer(file, f"path={path}")
    if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
        return _load_saved(path, split, streaming, no_split)
    if local.is_file():
        return _load_file(local, path, split, streaming, no_split)
    if not local.is_dir() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise FileNotFoundError(f"path={path}: no such directory")
    try:
        return datasets.load_dataset(str(local) if local.is_dir() else path, name, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"path={path}: neither a local directory of parquet or other data files nor a data set on the Hugging "
            f"Face Hub that this machine can reach; check the name, the network and `hf auth login` ({error})"
        ) from error
    except datasets.exceptions.DatasetsError as error:
        reason = error.__cause__ or error
        raise ValueError(f"path={path}: cannot be read ({reason})") from error
    except ValueError as error:
        if "split" not in str(error).lower() and "instruction" not in str(error).lower():
            raise ValueError(f"path={path}: cannot be read ({error})") from error
        raise ValueError(f"{no_split} ({error})") from error


def folder_notes(path: str, endings: tuple[str, ...], labelled: bool) -> tuple[Listing | None, tuple[str, ...]]:
    """Return notes on a local folder of sample files that Hugging Face reads in an unexpected way.

    Args:
        path: of the data set.
        endings: of the samples.
        labelled: whether Hugging Face found classes.

    Returns:
        The folder's files, and notes for the summary; None for everything but such a folder.
    """
    local = home_path(path, "path")
    tables = tuple(ending for ending in _TABLES if ending != ".txt")
    if not local.is_dir() or next(iter(files_below(local, tables)), None) is not None:
        return None, ()
    listing = list_files(local, endings)
    folders = sorted({name.split(os.sep, 1)[0] for name in listing.paths if os.sep in name})
    others = [name for name in folders if name.lower() not in (*TRAIN, *VAL, *TEST)]
    notes = []
    instead = f"data=image_folder root={printable(path)} reads folders as docs/data.md says"
    if others and len(others) < len(folders):
        names = first_of((f"{printable(name)}/" for name in others), 5)
        notes.append(f"Hugging Face takes folders with names of splits as splits and leaves out {names}; {instead}")
    elif not labelled and len({os.path.dirname(name) for name in listing.paths}) > 1:
        notes.append(f"Hugging Face finds no labels in these folders; {instead}")
    return listing, tuple(notes)


# What a file is read by, and how. Words such as NA are texts.
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".txt": ("text", {}),
}


def _load_file(file: Path, path: str, split: str, streaming: bool, no_split: str) -> Any:
    """Load one file by its ending, as the split "train"."""
    import datasets

    ending = Path(file.name.removesuffix(".gz")).suffix.lower()
    if ending not in _BUILDERS:
        raise ValueError(f"path={path}: give a file that ends in {', '.join(_BUILDERS)}, or a directory of them")
    if split != "train":
        raise ValueError(f"{no_split}: one file has the split train alone")
    refuse_lfs_pointer(file, f"path={path}")
    if file.stat().st_size == 0:
        raise ValueError(f"path={path}: an empty file")
    builder, options = _BUILDERS[ending]
    if ending == ".tsv" and not quotes_mean_something(file):
        options = options | {"quoting": csv.QUOTE_NONE}
    try:
        return datasets.load_dataset(builder, data_files=str(file), split=split, streaming=streaming, **options)
    except Exception as error:  # datasets has many of its own, and those of the formats' libraries
        raise ValueError(
            f"path={path}: cannot be read as {builder} ({str(error.__cause__ or error).strip()}); repair the "
            "file, or convert it to UTF-8"
        ) from error


def _load_saved(path: str, split: str, streaming: bool, no_split: str) -> Any:
    """Return the content of ``save_to_disk``: one data set, or one for each split."""
    import datasets

    try:
        data = datasets.load_from_disk(str(home_path(path, "path")))
    except Exception as error:  # datasets has many of its own, and those of its libraries
        raise ValueError(
            f"path={path}: cannot be read as what save_to_disk wrote ({type(error).__name__}: {error}); it is "
            "empty or damaged: save it again"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{no_split}; it has {', '.join(data)}")
        data = data[split]
    elif split not in ("train", str(data.split)):  # what is saved alone is taken for the one to train on
        raise ValueError(f"{no_split}: it was saved as one data set, without splits")
    if not streaming:
        return data
    return data.to_iterable_dataset(num_shards=max(1, min(len(data), len(data.cache_files))))


def check_other_split(split: str, val_split: str) -> None:
    """Raise ValueError if the evaluation split is the training split or overlaps it by a slice."""
    if val_split == split or val_split.partition("[")[0] == split:
        raise ValueError(
            f"val_split={val_split}: is in split={split}, which is trained on; choose another, or slices "
            f"that do not overlap, such as split='{split}[:90%]' val_split='{split}[90%:]'"
        )


def features_of(data: Any) -> dict[str, Any]:
    """Return the columns and their types; some formats reveal them only with the first rows."""
    features: dict[str, Any] = data.features or data._resolve_features().features
    return features


def find_column(path: str, data: Any, key: str, column: str | None, dtypes: Sequence[str]) -> str:
    """Return the column to read, checked; if None, the only one of these types.

    Args:
        path: of the data set, for messages.
        data: from :func:`load_hf`.
        key: the argument that ``column`` was read from.
        column: its value.
        dtypes: Arrow types that fit, such as "string"; none for any.

    Raises:
        ValueError: there is no such column, or not exactly one that fits.
    """
    features = features_of(data)
    if column is not None:
        if column not in features:
            raise ValueError(f"{key}={column}: {path} has the columns {', '.join(features)}")
        if dtypes and getattr(features[column], "dtype", None) not in dtypes:
            raise ValueError(f"{key}={column}: not a column of type {dtypes[0]}; {path} has {', '.join(features)}")
        return column
    fitting = [name for name, feature in features.items() if getattr(feature, "dtype", None) in dtypes]
    if len(fitting) != 1:
        raise ValueError(
            f"{key}=null: {path} has {len(fitting)} columns of type {dtypes[0]}; "
            f"set {key} to one of {', '.join(fitting or features)}"
        )
    return fitting[0]


def hf_fingerprint(data: Any, path: str, split: str) -> str:
    """Return the fingerprint of the data, as far as it is known; for a stream from the Hub only the name."""
    local = home_path(path, "path")
    files = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else []
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{path} {split} {getattr(data, '_fingerprint', stats)}"
