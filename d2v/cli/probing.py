"""Probing of one or several checkpoints on the same data; part of ``d2v evaluate``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from omegaconf import DictConfig

from d2v.cli.keys import argument_keys
from d2v.cli.loading import best_device, load_data, name_skipped
from d2v.cli.settings import Evaluate
from d2v.data.eval_loader import eval_loader
from d2v.data.protocol import EvalData
from d2v.errors import in_keys
from d2v.eval.prober import Prober
from d2v.eval.probes import Settings
from d2v.eval.results import scores_in_words
from d2v.interop.checkpoints import Checkpoint
from d2v.lit.machine import choose_precision
from d2v.runs.results import Row
from d2v.terminal import StatusLine, watched
from d2v.types import Batch


def probe_rows(
    cfg: DictConfig, settings: Evaluate, checkpoints: Sequence[Checkpoint], names: Sequence[str], num_workers: int
) -> Iterator[Row]:
    """Yield the rows: the inputs, an untrained encoder of every shape, and each checkpoint after that of its shape."""
    untrained: list[Any] = []
    shapes = {str(trained.encoder_node) for trained in checkpoints}
    with StatusLine() as status:
        for i, (trained, name) in enumerate(zip(checkpoints, names, strict=True)):
            data = load_data(cfg, trained, checkpoints[0])
            if i == 0:
                origins = "\n".join(f"checkpoint: {each.path}" for each in checkpoints)
                summary = in_keys("\n".join(data.describe()), argument_keys(cfg), only_values=True)
                print(f"{origins}\n{summary}", flush=True)
            batches = partial(encoding, data, settings=settings, num_workers=num_workers)
            prober = Prober(data, probe_settings(settings), batches, name_skipped, status.tell)
            if settings.baselines and i == 0:
                yield _timed(status, prober.probe_inputs)
            if settings.baselines and trained.encoder_node not in untrained:
                untrained.append(trained.encoder_node)
                of = f" of the shape of {name}" if len(shapes) > 1 else ""
                yield _timed(status, partial(prober.probe, f"untrained encoder{of}", trained.untrained(settings.seed)))
            yield _timed(status, partial(prober.probe, name, trained.encoder))


def _timed(status: StatusLine, probe: Callable[[], Row]) -> Row:
    """Return a row, after a line about it on standard error."""
    started_at = time.monotonic()
    row = probe()
    status.done(f"{row.name}: {scores_in_words(row.scores)} ({time.monotonic() - started_at:.0f} s)")
    return row


def names_of(paths: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return names of rows: of several checkpoints their paths below the folder that all share, and their steps."""
    names = ["pretrained encoder"]
    if len(paths) > 1:
        places = [os.path.abspath(path) for path in paths]
        shared = os.path.commonpath([os.path.dirname(place) for place in places])
        names = [os.path.relpath(place, shared) for place in places]
    steps = ["" if trained.step is None else f", {trained.step} steps" for trained in checkpoints]
    return [name + step for name, step in zip(names, steps, strict=True)]


def probe_settings(settings: Evaluate) -> Settings:
    """Return the settings of the probes: the keys of ``probe``, seed, device and precision."""
    device = best_device().type
    precision = choose_precision(settings.precision, device)
    return Settings(**asdict(settings.probe), seed=settings.seed, device=device, bf16=precision == "bf16-mixed")


def encoding(data: EvalData, split: str, *, settings: Evaluate, num_workers: int) -> Iterable[Batch]:
    """Return the batches of a split, with progress on standard error."""
    batch_size = None if settings.batch_size == "auto" else settings.batch_size
    return watched(eval_loader(data, split, batch_size, num_workers), f"encoding {split}")
