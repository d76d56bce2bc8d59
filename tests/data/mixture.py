"""A mixture of data sets that only delegates; mypy checks it, and every data class, against the Protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from d2v.data.batching import BatchSplit, split_batch
from d2v.data.images.data import ImageData
from d2v.data.labelled import FinetuneSet
from d2v.data.loading import Workers
from d2v.data.protocol import BatchLoader, EvalData, FinetuneData, PretrainData
from d2v.data.samplers import StepPlan
from d2v.data.speech.data import SpeechData
from d2v.data.texts.data import TextData
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch


def own(plan: StepPlan, part: int, num_parts: int, batches: int) -> int:
    """How many of the run's first micro-batches are of one part."""
    return len(range(part, batches // plan.accumulate, num_parts)) * plan.accumulate


@dataclass(frozen=True)
class Turns:
    """Loaders that take turns, an optimizer step each."""

    loaders: Sequence[BatchLoader]
    plan: StepPlan

    def __iter__(self) -> Iterator[Batch]:
        batches = [iter(loader) for loader in self.loaders]
        for number in range(self.plan.start_batch, self.plan.num_batches):
            yield next(batches[number // self.plan.accumulate % len(batches)])

    def state_dict(self, num_batches: int) -> dict[str, object]:
        counts = [own(self.plan, i, len(self.loaders), num_batches) for i in range(len(self.loaders))]
        states = [loader.state_dict(count) for loader, count in zip(self.loaders, counts, strict=True)]
        return {"parts": states} if any(states) else {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        states = state["parts"]
        assert isinstance(states, list)
        for loader, own_state in zip(self.loaders, states, strict=True):
            loader.load_state_dict(own_state)


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
    ) -> BatchLoader:
        counts = [(own(plan, i, len(self.parts), plan.num_batches), own(plan, i, len(self.parts), plan.start_batch))
                  for i in range(len(self.parts))]  # fmt: skip
        plans = [replace(plan, num_batches=num_batches, start_batch=start) for num_batches, start in counts]
        loaders = [part.loader(mask, seed, split, p, workers) for part, p in zip(self.parts, plans, strict=True)]
        return Turns(loaders, plan)

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
