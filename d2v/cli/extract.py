"""``d2v extract``: write the features of a data set to a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from d2v.cli.keys import argument_keys
from d2v.cli.launch import configuring, run
from d2v.cli.loading import best_device, check_probed, load_data, name_skipped
from d2v.cli.settings import Extract, checked, plain
from d2v.data.eval_loader import eval_loader
from d2v.errors import in_keys
from d2v.eval.feature_files import holds_features, write_features
from d2v.eval.features import extract_batches
from d2v.interop.checkpoints import open_checkpoint
from d2v.lit.machine import choose_workers, set_threads
from d2v.runs.files import refuse_foreign
from d2v.terminal import watched


def extract(cfg: DictConfig) -> None:
    """Write features, sample ids, names and, if there are any, labels."""
    with configuring(cfg):
        settings = checked(Extract, plain(cfg, without=["data"]))
        num_workers = choose_workers(settings.num_workers, best_device().type)
        set_threads(settings.num_threads, num_workers)
        output = Path(settings.output)
        if output.suffix not in (".safetensors", ".npz"):
            raise ValueError(f"output={output}: the name must end in .safetensors or .npz")
        if output.parent.exists() and not output.parent.is_dir():
            raise ValueError(f"output={output}: {output.parent} is a file, not a folder")
        refuse_foreign(output, "output", holds_features, "file of features")
        trained = open_checkpoint(settings.checkpoint, settings.network)
        check_probed(settings.layers, settings.pool, trained, "")
        data = load_data(cfg, trained)
        print(in_keys("\n".join(data.describe()), argument_keys(cfg), only_values=True), flush=True)
        split = ("train" if data.val is None else "val") if settings.split == "auto" else settings.split
        batches = eval_loader(data, split, None if settings.batch_size == "auto" else settings.batch_size, num_workers)
        seen = watched(batches, f"encoding {split}")
        parts = extract_batches(trained.encoder.to(best_device()), seen, layers=settings.layers, pool=settings.pool)
        source: Any = batches.dataset
        class_names = getattr(source.source, "class_names", None)
        written = write_features(output, parts, source.source.name, class_names)
        print(f"{written.shape} features, {len(written.skipped)} samples skipped: {output}")
        name_skipped(written.skipped)


if __name__ == "__main__":
    sys.exit(run("extract"))
