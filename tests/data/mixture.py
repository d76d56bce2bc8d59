"""A mixture of data sets that only delegates; mypy checks it, and every data class, against the Protocols."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from d2v.data.batching import BatchSplit, split_batch
from d2v.data.images.data import ImageData
from d2v.data.labelled import FinetuneSet
from d2v.data.loading import Workers
from d2v.data.protocol import EvalData, FinetuneData, PretrainData
from d2v.data.samplers import StepPlan
from d2v.data.speech.data import SpeechData
from d2v.data.texts.data import TextData
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch


@dataclass(frozen=True)
class Mixture:
    """Data sets counted in samples that take turns: optimizer step s is of ``parts[s % len(parts)]``."""

    parts: Sequence[PretrainData]
    batch_unit: str = "samples"
    tokens_are: str = "up to"

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(modality for part in self.parts for modality in part.modalities)

    @property
    def size(self) -> float:
        return sum(part.size or 0 for part in self.parts)

    @property
    def token_grid(self) -> tuple[int, ...]:
        return max((part.token_grid for part in self.parts), key=lambda grid: int(np.prod(grid)))

    def split_batch(self, global_batch_size: float, micro_batch_size: float | None, world_size: int) -> BatchSplit:
        return split_batch(global_batch_size, micro_batch_size, world_size)

    def check_mask(self, mask: MaskGenerator | None) -> None:
        for part in self.parts:
            part.check_mask(mask)

    def loader(
        self, mask: MaskGenerator | None, seed: int, split: BatchSplit, plan: StepPlan, workers: Workers
    ) -> Iterable[Batch]:
        def own(part: int, batches: int) -> int:  # how many of the run's first batches are this part's
            return len(range(part, batches // plan.accumulate, len(self.parts))) * plan.accumulate

        plans = [
            replace(plan, num_batches=own(i, plan.num_batches), start_batch=own(i, plan.start_batch))
            for i in range(len(self.parts))
        ]
        loaders = [part.loader(mask, seed, split, p, workers) for part, p in zip(self.parts, plans, strict=True)]
        return self._take_turns(loaders, plan)

    def _take_turns(self, loaders: Sequence[Iterable[Batch]], plan: StepPlan) -> Iterator[Batch]:
        batches = [iter(loader) for loader in loaders]
        for batch in range(plan.start_batch, plan.num_batches):
            yield next(batches[batch // plan.accumulate % len(batches)])

    def describe(self) -> list[str]:
        return [line for part in self.parts for line in part.describe()]

    def assets(self) -> dict[str, str]:
        return {name: content for part in self.parts for name, content in part.assets().items()}


def pretrain_data(image: ImageData, speech: SpeechData, text: TextData, mixture: Mixture) -> list[PretrainData]:
    return [image, speech, text, mixture]


def eval_data(image: ImageData, speech: SpeechData, text: TextData) -> list[EvalData]:
    return [image, speech, text]


def finetune_data(images: FinetuneSet[Image.Image], clips: FinetuneSet[np.ndarray]) -> list[FinetuneData]:
    return [images, clips]
