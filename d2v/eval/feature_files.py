"""Files of features, .safetensors or .npz."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from d2v.eval.features import Features
from d2v.runs.files import replacing, writing, written_beside


def write_features(path: Path, features: Features, names: list[str], class_names: Sequence[str] | None) -> None:
    """Write ``features``, ``sample_ids`` and, if there are any, ``labels``, ``lengths``, ``names`` and ``class_names``.

    In .safetensors names are JSON in the metadata. The file is written whole or not at all.
    """
    tensors = {"features": features.features, "sample_ids": features.sample_ids}
    if features.lengths is not None:
        tensors["lengths"] = features.lengths
    texts: dict[str, Sequence[str]] = {"names": names}
    if features.labels is not None:
        tensors["labels"] = features.labels
        if class_names is not None:
            texts["class_names"] = class_names
    with writing("output", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {key: value.numpy() for key, value in tensors.items()}
            arrays |= {key: np.array(values) for key, values in texts.items()}
            with replacing(path) as file:
                np.savez(file, **arrays)
        else:
            with written_beside(path) as part:
                save_file(tensors, part, metadata={key: json.dumps(values) for key, values in texts.items()})


def holds_features(path: Path) -> bool:
    """Return whether a file was written by :func:`write_features`."""
    if path.suffix == ".npz":
        return is_zipfile(path) and {"features.npy", "sample_ids.npy"} <= set(ZipFile(path).namelist())
    try:
        with safe_open(path, "pt") as file:
            return {"features", "sample_ids"} <= set(file.keys())
    except SafetensorError:
        return False
