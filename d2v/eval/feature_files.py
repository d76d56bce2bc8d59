"""Files of features, .safetensors or .npz, written while the features are computed.

Rows go to a temporary file beside the output as they come, in any order of samples; at the end they are copied into the
output in the order of their ids. Memory holds a batch, and ids, labels, lengths and names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from d2v.eval.features import Features, labels_of_all, real_tokens
from d2v.runs.files import replacing, writing

_COPIED_AT_ONCE = 8 << 20  # bytes
_TYPES = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}


@dataclass(frozen=True)
class Written:
    """Shape of the features in a file, and the samples left out.

    Attributes:
        shape: of the features.
        skipped: samples that could not be read, as "name: reason".
    """

    shape: tuple[int, ...]
    skipped: tuple[str, ...]


def write_features(
    path: Path,
    parts: Iterable[Features],
    name: Callable[[int], str] = str,
    class_names: Sequence[str] | None = None,
) -> Written:
    """Write ``features``, ``sample_ids`` and, if there are any, ``labels``, ``lengths``, ``names`` and ``class_names``.

    In .safetensors names are JSON in the metadata. The file is written whole or not at all.

    Args:
        path: file to write; missing folders are created.
        parts: features of batches (:func:`d2v.eval.features.extract_batches`).
        name: returns the name of a sample by its id.
        class_names: name of every label.

    Raises:
        NotWritten: the disk is full or not writable.
        ValueError: there are no samples, or only some have labels.
    """
    spool = path.with_name(f".{path.name}.rows")
    with writing("output", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        spool.unlink(missing_ok=True)  # left by a killed process
        file = spool.open("xb+")
    try:
        with file:
            return _write(path, file, parts, name, class_names)
    finally:
        with suppress(OSError):  # of a disk that is gone
            spool.unlink(missing_ok=True)


def _write(
    path: Path, spool: BinaryIO, parts: Iterable[Features], name: Callable[[int], str], class_names: Any
) -> Written:
    ids: list[torch.Tensor] = []
    labels: list[torch.Tensor | None] = []
    lengths: list[torch.Tensor] = []
    skipped: list[str] = []
    shape: tuple[int, ...] = ()  # of a sample; of a token, with pool=none
    for part in parts:
        skipped += part.skipped
        if not len(part.sample_ids):
            continue
        rows = part.features if part.lengths is None else real_tokens(part.features, part.lengths)
        shape = tuple(rows.shape[1:])
        with writing("output", path):
            spool.write(np.ascontiguousarray(rows.numpy()).data)
        ids.append(part.sample_ids)
        labels.append(part.labels)
        lengths += [] if part.lengths is None else [part.lengths]
    if not ids:
        raise ValueError("there were no batches to extract features from: is the data set, or its split, empty?")
    all_ids, all_labels = torch.cat(ids), labels_of_all(labels)
    order = all_ids.argsort(stable=True).numpy()
    counts = torch.cat(lengths).numpy() if lengths else np.ones(len(all_ids), dtype=np.int64)
    whole, equal = _shape(shape, counts, bool(lengths))
    arrays = {"sample_ids": all_ids.numpy()[order]}
    if lengths and not equal:
        arrays["lengths"] = counts[order]
    texts: dict[str, Sequence[str]] = {"names": [name(i) for i in arrays["sample_ids"].tolist()]}
    if all_labels is not None:
        arrays["labels"] = all_labels.numpy()[order]
        if class_names is not None:
            texts["class_names"] = class_names
    # Tokens of samples of one length are (N, L, T, D), but come as (T, L, D).
    turned = (counts[0], *shape) if lengths and equal and len(shape) == 2 else None
    blocks = _in_order(spool, order, counts, 4 * int(np.prod(shape)), turned)
    write = _write_npz if path.suffix == ".npz" else _write_safetensors
    with writing("output", path), replacing(path) as file:
        write(file, whole, blocks, arrays, texts)
    return Written(whole, tuple(skipped))


def _shape(shape: tuple[int, ...], counts: np.ndarray, of_tokens: bool) -> tuple[tuple[int, ...], bool]:
    """Return the shape of all features, and whether all samples have equally many tokens."""
    equal = bool((counts == counts[0]).all())
    if not of_tokens:
        return (len(counts), *shape), equal
    if not equal:
        return (int(counts.sum()), *shape), equal
    return (len(counts), *shape[:-1], int(counts[0]), shape[-1]), equal


def _in_order(
    spool: BinaryIO, order: np.ndarray, counts: np.ndarray, row_bytes: int, turned: tuple[int, ...] | None
) -> Iterator[bytes]:
    """Yield the rows of samples in order, from a file that has them in the order of ``counts``."""
    starts, sizes = np.concatenate([[0], np.cumsum(counts)[:-1]]) * row_bytes, counts * row_bytes
    first = 0
    while first < len(order):
        start, size = int(starts[order[first]]), int(sizes[order[first]])
        last = first + 1
        while turned is None and last < len(order) and size < _COPIED_AT_ONCE and starts[order[last]] == start + size:
            size += int(sizes[order[last]])
            last += 1
        spool.seek(start)
        block = spool.read(size)
        if turned is not None:
            block = np.frombuffer(block, np.float32).reshape(turned).swapaxes(0, 1).tobytes()
        yield block
        first = last


def _write_npz(
    file: BinaryIO, shape: Any, blocks: Iterator[bytes], arrays: dict[str, Any], texts: dict[str, Any]
) -> None:
    with ZipFile(file, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for block in blocks:
                member.write(block)
        for key, values in {**arrays, **{key: np.array(texts[key]) for key in texts}}.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)


def _write_safetensors(
    file: BinaryIO, shape: Any, blocks: Iterator[bytes], arrays: dict[str, Any], texts: dict[str, Any]
) -> None:
    size = 4 * int(np.prod(shape))
    header: dict[str, Any] = {"__metadata__": {key: json.dumps(values) for key, values in texts.items()}}
    header["features"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    for key, array in arrays.items():
        offsets = [size, size + array.nbytes]
        header[key] = {"dtype": _TYPES[array.dtype], "shape": array.shape, "data_offsets": offsets}
        size = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligned, as the format recommends
    file.write(struct.pack("<Q", len(text)) + text)
    for block in blocks:
        file.write(block)
    for array in arrays.values():
        file.write(array.tobytes())


def holds_features(path: Path) -> bool:
    """Return whether a file was written by :func:`write_features`."""
    if path.suffix == ".npz":
        return is_zipfile(path) and {"features.npy", "sample_ids.npy"} <= set(ZipFile(path).namelist())
    try:
        with safe_open(path, "pt") as file:
            return {"features", "sample_ids"} <= set(file.keys())
    except SafetensorError:
        return False
