"""``d2v extract``: features of a data set, as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from d2v.cli.launch import configuring, run
from d2v.cli.loading import best_device, check_probed, load_data
from d2v.cli.settings import Extract, checked, plain
from d2v.data.contents import visible
from d2v.data.eval_loader import eval_loader
from d2v.eval.features import Features
from d2v.eval.features import extract as extract_features
from d2v.interop.checkpoints import open_checkpoint
from d2v.lit.machine import choose_workers, set_threads
from d2v.runs.files import refuse_foreign, replacing, writing, written_beside
from d2v.terminal import watched


def extract(cfg: DictConfig) -> None:
    """Write features, sample ids, names and, where there are any, labels."""
    with configuring():
        settings = checked(Extract, plain(cfg, without=["data"]))
        num_workers = choose_workers(settings.num_workers, best_device().type)
        set_threads(settings.num_threads, num_workers)
        output = Path(settings.output)
        if output.suffix not in (".safetensors", ".npz"):
            raise ValueError(f"output={output}: the name must end in .safetensors or .npz")
        if output.parent.exists() and not output.parent.is_dir():
            raise ValueError(f"output={output}: {output.parent} is a file, not a folder")
        refuse_foreign(output, "output", _holds_features, "file of features")
        trained = open_checkpoint(settings.checkpoint, settings.network)
        check_probed(settings.layers, settings.pool, trained, "")
        data = load_data(cfg, trained)
        print("\n".join(data.describe()), flush=True)
        split = ("train" if data.val is None else "val") if settings.split == "auto" else settings.split
        batches = eval_loader(data, split, None if settings.batch_size == "auto" else settings.batch_size, num_workers)
        seen = watched(batches, f"encoding {split}")
        features = extract_features(trained.encoder.to(best_device()), seen, layers=settings.layers, pool=settings.pool)
        features = features.by_id()
        source: Any = batches.dataset
        names = [source.source.name(i) for i in features.sample_ids.tolist()]
        write(output, features, names, getattr(source.source, "class_names", None))
        print(f"{tuple(features.features.shape)} features, {len(features.skipped)} samples skipped: {output}")
        for entry in features.skipped:
            print(visible(f"skipped {entry}"))


def write(path: Path, features: Features, names: list[str], class_names: Sequence[str] | None) -> None:
    """Write what there is of ``features``, ``sample_ids``, ``labels``, ``lengths``, ``names`` and ``class_names``.

    In .safetensors names are JSON in the metadata. The file is there whole or not at all.
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


def _holds_features(path: Path) -> bool:
    if path.suffix == ".npz":
        return is_zipfile(path) and {"features.npy", "sample_ids.npy"} <= set(ZipFile(path).namelist())
    try:
        with safe_open(path, "pt") as file:
            return {"features", "sample_ids"} <= set(file.keys())
    except SafetensorError:
        return False


if __name__ == "__main__":
    sys.exit(run("extract"))
