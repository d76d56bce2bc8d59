"""Protocols of data for pretraining, evaluation and fine-tuning.

Every modality implements them (read :class:`d2v.data.images.data.ImageData` first). An object that delegates to others,
such as a mixture of data sets, can implement them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from d2v.data.batching import BatchSplit
from d2v.data.datasets import EvalSamples
from d2v.data.loading import Workers
from d2v.data.samplers import StepPlan
from d2v.data.source import Sample, Source
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch


class BatchLoader(Protocol):
    """Training batches of one rank, from where the run resumes to its end."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self, num_batches: int) -> dict[str, object]:
        """State for a resume after ``num_batches`` micro-batches of this rank, as plain containers."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Resume from such a state. Raises UserError if the data cannot."""


class TrainingData(Protocol):
    """Common part of data to pretrain and to fine-tune on."""

    @property
    def batch_unit(self) -> str:
        """Unit of ``global_batch_size``: "samples", "seconds" of audio, or "crops"."""

    @property
    def size(self) -> float | None:
        """The data to train on, in ``batch_unit``; None for a stream."""

    def split_batch(self, global_batch_size: float, micro_batch_size: float | None, world_size: int) -> BatchSplit:
        """Derive gradient accumulation. Raises ValueError, naming key, value and fix, if the batch cannot be spread."""

    def describe(self) -> list[str]:
        """Lines of the summary before a run: splits, sizes, classes, files left out."""


class PretrainData(TrainingData, Protocol):
    """Data to pretrain on."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the batches."""

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Shape in which the tokens of one sample lie, of the longest where lengths differ."""

    @property
    def tokens_are(self) -> str:
        """Words for ``token_grid`` in a summary: "each", or "up to"."""

    def check_mask(self, mask: MaskGenerator | None) -> None:
        """Raise ValueError if there is nothing to train on, or such masks do not exist on the token grid."""

    def loader(
        self, mask: MaskGenerator | None, seed: int, split: BatchSplit, plan: StepPlan, workers: Workers
    ) -> BatchLoader:
        """Training batches of one rank, from ``plan.start_batch`` to ``plan.num_batches``.

        Micro-batches of the same number are of one modality on all ranks, which log them together.

        Args:
            mask: draws the masks, in the workers; None for batches without.
            seed: decides order, augmentation and masks.
            split: how the global batch is spread.
            plan: which micro-batches are this rank's, and where the run resumes.
            workers: processes that load.
        """

    def assets(self) -> dict[str, str]:
        """Whole files that must go with an encoder, as values that take the place of this data's keys."""


class EvalData(Protocol):
    """Data to extract features of, and to probe encoders on."""

    @property
    def modality(self) -> str:
        """Modality of the batches."""

    @property
    def input_name(self) -> str:
        """Name of ``raw`` in tables of results."""

    @property
    def eval_batch_size(self) -> int:
        """Samples evaluated at a time."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every label, or None where there are no classes."""

    @property
    def probe_train(self) -> Source[object] | None:
        """Labelled samples to train probes on."""

    @property
    def val(self) -> Source[object] | None:
        """Labelled samples to evaluate probes on."""

    def eval_dataset(self, split: str) -> EvalSamples:
        """The evaluation view of every sample of "train" or "val". Raises ValueError if there is no such split."""

    @property
    def eval_collate(self) -> Callable[[Sequence[Sample]], Batch]:
        """Samples of ``eval_dataset`` to a batch without masks."""

    def raw(self, split: str) -> tuple[Tensor | list[str], Tensor]:
        """Inputs as features, (N, D) float32 or texts, and labels (N,) int64: the baseline to beat.

        Data whose source has ``groups`` also define ``raw_ids(split)``, the indices of these N samples.
        """

    def describe(self) -> list[str]:
        """Lines of a summary: splits, sizes, classes, files left out."""


class FinetuneData(TrainingData, Protocol):
    """Labelled data to fine-tune on, and to score."""

    @property
    def size(self) -> float:
        """The data to train on, in ``batch_unit``."""

    @property
    def labels(self) -> Sequence[str] | tuple[float, float]:
        """Meaning of labels: names of classes, letters, or the lowest and the highest score."""

    @property
    def evals(self) -> Mapping[str, Source[object]]:
        """Sets to score, by name; the first one, "val", chooses the best checkpoint. "test" sets may lack labels."""

    @property
    def mixes(self) -> bool:
        """Return whether batches are mixed in pairs, so that they must hold an even number of samples."""

    @property
    def submission(self) -> Callable[[Path, str, Sequence[object]], Path] | None:
        """Writer of answers for a set without labels into a folder, for whoever scores them."""

    def loader(self, seed: int, split: BatchSplit, plan: StepPlan, workers: Workers) -> BatchLoader:
        """Training batches of one rank; arguments as in :meth:`PretrainData.loader`."""

    def eval_loader(self, name: str, num_workers: int = 0, rank: int = 0, world_size: int = 1) -> DataLoader[Sample]:
        """Batches of an evaluation set, every sample once, or one process's share of them."""
