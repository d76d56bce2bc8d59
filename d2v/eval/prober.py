"""Probing of encoders, and of the inputs themselves, on one data set: one row of a results table each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from d2v.eval.features import extract, extract_frames
from d2v.eval.probes import Labelled, Settings, Split, Tell, classify, hold_out_groups, transcribe
from d2v.runs.results import Row
from d2v.types import Batch


class Prober:
    """Probes of encoders and inputs on one data set, as far as its labels allow.

    Args:
        data: data with labels or transcripts, and with validation samples or groups to hold out in turn
            (:class:`d2v.data.protocol.EvalData`).
        settings: settings of the probes; probes without labels in the data are left out.
        batches: returns the batches of "train" or "val".
        report: called with the samples that could not be read, as "name: reason".
        tell: called with a line before everything that takes long.

    Raises:
        ValueError: the data have nothing to probe with.
    """

    def __init__(
        self,
        data: Any,
        settings: Settings,
        batches: Callable[[str], Iterable[Batch]],
        report: Callable[[Sequence[str]], None] = lambda skipped: None,
        tell: Tell = lambda line: None,
    ) -> None:
        self.data = data
        self.batches = batches
        self.report = report
        self.tell = tell
        self.groups = None
        if data.probe_train is not None and data.val is None:
            self.groups = getattr(data.eval_dataset("train").source, "groups", None)
        self.splits = ("train",) if self.groups is not None else ("train", "val")
        labelled = data.class_names is not None
        transcribed = getattr(data.val, "has_transcripts", False) and hasattr(data, "raw_frames")
        self.settings = replace(
            settings,
            linear=settings.linear and labelled,
            knn=settings.knn and labelled,
            ctc=settings.ctc and transcribed,
        )
        if data.probe_train is None or not (self.settings.linear or self.settings.knn or self.settings.ctc):
            raise ValueError(
                "there is nothing to probe with: evaluation needs labelled training and validation samples (class "
                "folders, val_root, label_column, label_pattern), or transcripts for probe=ctc"
            )

    def probe(self, name: str, encoder: nn.Module) -> Row:
        """Return the row of an encoder."""
        encoder.to(self.settings.device)
        row = Row(name, {})
        if self.settings.linear or self.settings.knn:
            parts = [self._features(encoder, split) for split in self.splits]
            row = classify(name, self._pair([part for part, _ in parts], parts[0][1]), self.settings, self.tell)
        if self.settings.ctc:
            self.tell(f"{name}: CTC probe")
            train, val = (self._frames(encoder, split) for split in ("train", "val"))
            row = replace(row, scores={**row.scores, **transcribe(name, train, val, self.settings).scores})
        return row

    def probe_inputs(self) -> Row:
        """Return the row of the inputs themselves."""
        name = self.data.input_name
        self.tell(f"{name}: reading the samples")
        row = Row(name, {})
        if self.settings.linear or self.settings.knn:
            inputs = [Labelled(*self.data.raw(split)) for split in self.splits]
            ids = [] if self.groups is None else self.data.raw_ids("train")
            row = classify(name, self._pair(inputs, ids), self.settings, self.tell)
        if self.settings.ctc:
            self.tell(f"{name}: CTC probe")
            train, val = (self._transcribed(split, *self.data.raw_frames(split)) for split in ("train", "val"))
            row = replace(row, scores={**row.scores, **transcribe(name, train, val, self.settings).scores})
        return row

    def _pair(self, parts: list[Labelled], ids: list[int]) -> Sequence[Split]:
        """Return pairs of training and validation, one or one for every group; ``ids`` are those of the first part."""
        if self.groups is not None:
            return hold_out_groups(parts[0], [self.groups[i] for i in ids])
        return [(parts[0], parts[1])]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.settings.device, torch.bfloat16, enabled=self.settings.bf16)

    def _features(self, encoder: nn.Module, split: str) -> tuple[Labelled, list[int]]:
        with self._autocast():
            features = extract(
                encoder, self.batches(split), layers=self.settings.layers, pool=self.settings.pool
            ).by_id()
        if features.labels is None:
            raise ValueError("some of these samples have no label to probe with")
        self.report(features.skipped)
        return Labelled(features.features, features.labels), features.sample_ids.tolist()

    def _frames(self, encoder: nn.Module, split: str) -> tuple[list[Tensor], list[str]]:
        with self._autocast():
            frames, ids, skipped = extract_frames(encoder, self.batches(split), layers=self.settings.layers)
        self.report(skipped)
        return self._transcribed(split, frames, ids)

    def _transcribed(self, split: str, frames: list[Tensor], ids: Tensor) -> tuple[list[Tensor], list[str]]:
        """Return frames and transcripts, without clips that have an empty transcript."""
        clips: Any = self.data.eval_dataset(split).source
        pairs = [(x, clips.transcript(i)) for x, i in zip(frames, ids.tolist(), strict=True)]
        said = [(x, text) for x, text in pairs if text]
        return [x for x, _ in said], [text for _, text in said]
