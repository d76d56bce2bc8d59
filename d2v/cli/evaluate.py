"""``d2v evaluate``: what a frozen encoder knows, beside its inputs and itself untrained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from d2v.cli.launch import configuring, run
from d2v.cli.loading import best_device, check_probed, load_data
from d2v.cli.scoring import score_finetuned
from d2v.cli.settings import Evaluate, checked, plain
from d2v.data.contents import visible
from d2v.data.eval_loader import eval_loader
from d2v.eval.features import extract, extract_frames
from d2v.eval.probes import Labelled, Settings, Split, classify, hold_out_groups, transcribe
from d2v.eval.results import scores_table
from d2v.interop.checkpoints import open_checkpoint
from d2v.lit.machine import choose_precision, choose_workers, set_threads
from d2v.nn.encoder import Encoder
from d2v.runs.results import Results, Row, write_results
from d2v.terminal import watched


def evaluate(cfg: DictConfig) -> None:
    """Print the probes' table and write it, with results.json, to the command's folder."""
    with configuring():
        settings = checked(Evaluate, plain(cfg, without=["data"]))
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        num_workers = choose_workers(settings.num_workers, best_device().type)
        set_threads(settings.num_threads, num_workers)
        trained = open_checkpoint(settings.checkpoint, settings.network)
        if trained.is_finetuned:
            score_finetuned(cfg, settings, trained, run_dir, num_workers)
            return
        check_probed(settings.probe.layers, settings.probe.pool, trained, "probe.")
        if settings.decoder is not None:
            raise ValueError("decoder=...: only what a fine-tuned model transcribes is decoded; remove it")
        data = load_data(cfg, trained)
        print("\n".join([f"checkpoint: {trained.path}", *data.describe()]), flush=True)
        prober = Prober(data, settings, num_workers)
        rows = []
        if settings.baselines:
            rows.append(prober.probe_inputs())
            rows.append(prober.probe("untrained encoder", trained.untrained(settings.seed)))
        name = "pretrained encoder" if trained.step is None else f"pretrained encoder, {trained.step} steps"
        rows.append(prober.probe(name, trained.encoder))
        table = scores_table([(row.name, row.scores) for row in rows], "features")
        print(table)
        about = {"checkpoint": str(trained.path), "step": trained.step}
        path = write_results(run_dir, Results(rows, about), table)
        print(f"results: {path}")


class Prober:
    """Probes encoders and inputs on one data set, in the ways that it allows.

    Args:
        data: with labels, or with transcripts; with validation samples, or groups to hold out in turn.
        settings: of ``d2v evaluate``.
        num_workers: processes that load.

    Raises:
        ValueError: it has nothing to probe with.
    """

    def __init__(self, data: Any, settings: Evaluate, num_workers: int) -> None:
        self.data = data
        self.num_workers = num_workers
        self.layers, self.pool = settings.probe.layers, settings.probe.pool
        self.batch_size = None if settings.batch_size == "auto" else settings.batch_size
        self.precision = choose_precision(settings.precision, best_device().type, "precision")
        probes = {k: v for k, v in asdict(settings.probe).items() if k not in ("layers", "pool")}
        self.settings = Settings(seed=settings.seed, **probes)
        self.groups = None
        if data.probe_train is not None and data.val is None:
            self.groups = getattr(data.eval_dataset("train").source, "groups", None)
        self.splits = ("train",) if self.groups is not None else ("train", "val")
        labelled = data.class_names is not None
        spoken = getattr(data.val, "has_transcripts", False) and hasattr(data, "raw_frames")
        self.settings = replace(
            self.settings,
            linear=self.settings.linear and labelled,
            knn=self.settings.knn and labelled,
            ctc=self.settings.ctc and spoken,
        )
        if data.probe_train is None or not (self.settings.linear or self.settings.knn or self.settings.ctc):
            raise ValueError(
                "there is nothing to probe with: evaluation needs labelled training and validation samples (class "
                "folders, data.val_root, data.label_column, data.label_pattern), or transcripts for probe=ctc"
            )

    def probe(self, name: str, encoder: Encoder) -> Row:
        """A row of an encoder."""
        encoder.to(best_device())
        row = Row(name, {})
        if self.settings.linear or self.settings.knn:
            parts = [self._features(encoder, split) for split in self.splits]
            row = classify(name, self._pair([part for part, _ in parts], parts[0][1]), self.settings)
        if self.settings.ctc:
            train, val = (self._frames(encoder, split) for split in ("train", "val"))
            row = replace(row, scores={**row.scores, **transcribe(name, train, val, self.settings).scores})
        return row

    def probe_inputs(self) -> Row:
        """A row of the inputs themselves."""
        name = self.data.input_name
        row = Row(name, {})
        if self.settings.linear or self.settings.knn:
            inputs = [Labelled(*self.data.raw(split)) for split in self.splits]
            ids = [] if self.groups is None else self.data.raw_frames("train")[1].tolist()
            row = classify(name, self._pair(inputs, ids), self.settings)
        if self.settings.ctc:
            train, val = (self._spoken(split, *self.data.raw_frames(split)) for split in ("train", "val"))
            row = replace(row, scores={**row.scores, **transcribe(name, train, val, self.settings).scores})
        return row

    def _pair(self, parts: list[Labelled], ids: list[int]) -> Sequence[Split]:
        """Training and validation, or a pair for every group; ``ids`` are the samples of the first part."""
        if self.groups is not None:
            return hold_out_groups(parts[0], [self.groups[i] for i in ids])
        return [(parts[0], parts[1])]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(best_device().type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def _features(self, encoder: Encoder, split: str) -> tuple[Labelled, list[int]]:
        batches = watched(eval_loader(self.data, split, self.batch_size, self.num_workers), f"encoding {split}")
        with self._autocast():
            features = extract(encoder, batches, layers=self.layers, pool=self.pool).by_id()
        if features.labels is None:
            raise ValueError("some of these samples have no label to probe with")
        _name_skipped(features.skipped)
        return Labelled(features.features, features.labels), features.sample_ids.tolist()

    def _frames(self, encoder: Encoder, split: str) -> tuple[list[Tensor], list[str]]:
        batches = watched(eval_loader(self.data, split, self.batch_size, self.num_workers), f"encoding {split}")
        with self._autocast():
            frames, ids, skipped = extract_frames(encoder, batches, layers=self.layers)
        _name_skipped(skipped)
        return self._spoken(split, frames, ids)

    def _spoken(self, split: str, frames: list[Tensor], ids: Tensor) -> tuple[list[Tensor], list[str]]:
        """Frames and what is said in them, where anything is."""
        clips: Any = self.data.eval_dataset(split).source
        pairs = [(x, clips.transcript(i)) for x, i in zip(frames, ids.tolist(), strict=True)]
        said = [(x, text) for x, text in pairs if text]
        return [x for x, _ in said], [text for _, text in said]


def _name_skipped(skipped: Sequence[str]) -> None:
    for entry in skipped:
        print(visible(f"skipped {entry}"))


if __name__ == "__main__":
    sys.exit(run("evaluate"))
