"""GLUE (arXiv:1804.07461): its tasks, its files as they are distributed, and its submissions.

Pairs of sentences are packed as the released models expect them: ``<s> a </s></s> b </s>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from d2v.data.contents import describe_sources
from d2v.data.labelled import FinetuneSet, part
from d2v.data.measures import Measures
from d2v.data.texts.data import INPUT_KEYS, MODALITY, TextData, eval_collate
from d2v.data.texts.factories import TokenizerOptions, fitting_tokenizer
from d2v.data.texts.glue_files import read_file, read_hub, write_submission
from d2v.data.texts.glue_tasks import TASKS, GlueTask, Sentences, TaskName
from d2v.data.texts.measures import TextMeasures
from d2v.values import BlockSize, Name, PathStr, PositiveFraction, buildable


@dataclass(frozen=True)
class PairView:
    """View of sentences as ``<s> a </s></s> b </s>``; if they are too long together, the longer one is cut first.

    Attributes:
        tokenizer: encodes them.
        max_tokens: longest sample, the tokens around sentences included.
    """

    tokenizer: Any
    max_tokens: int

    def __call__(self, texts: tuple[str, ...], rng: np.random.Generator | None = None) -> Tensor:
        """Return (T,) int64."""
        first, *rest = (ids.tolist() for ids in self.tokenizer.encode(texts))
        room = self.max_tokens - 2 * (1 + len(rest))
        for other in rest:
            while len(first) + len(other) > room:
                (first if len(first) > len(other) else other).pop()
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        tail = [token for other in rest for token in (eos, *other, eos)]
        return torch.tensor([bos, *first[:room], eos, *tail])


@dataclass(frozen=True)
class GlueData:
    """A task of GLUE and a tokenizer.

    Attributes:
        task: which.
        train: to train on.
        evals: development and test sets by name.
        tokenizer: encodes them.
        block_size: tokens that the encoder can read.
    """

    task: GlueTask
    train: Sentences
    evals: dict[str, Sentences]
    tokenizer: Any
    block_size: int

    modality = MODALITY
    input_keys = INPUT_KEYS
    streaming = False

    def finetune(self, label_fraction: PositiveFraction = 1.0, seed: int = 0) -> FinetuneSet[tuple[str, ...]]:
        """The sentences, to train on and to score.

        Args:
            label_fraction: train on this share of the samples only, of every class if there are classes.
            seed: decides which.
        """
        view = PairView(self.tokenizer, self.block_size)
        return FinetuneSet(
            train=part(self.train, label_fraction, seed, stratify=bool(self.task.classes)),
            evals=self.evals,
            labels=self.task.classes or (0.0, 5.0),
            train_view=view,
            eval_view=view,
            collate=eval_collate(self.tokenizer.pad_id),
            eval_batch_size=64,
            submission=partial(write_submission, self.task),
        )

    def describe(self) -> list[str]:
        """Lines of the summary before a run: splits, sizes, classes."""
        return describe_sources({"train": self.train, **self.evals})

    def measures(self) -> dict[str, Measures[tuple[str, ...]]]:
        """Measurements to be made for ``d2v check``, by the name of the set."""
        sets = {"train": self.train, **self.evals}
        return {name: TextMeasures(texts, "characters", _characters) for name, texts in sets.items()}

    def assets(self) -> dict[str, str]:
        """Values that must go with a model."""
        return {"tokenizer": self.tokenizer.to_json()}


def _characters(texts: tuple[str, ...]) -> int:
    return sum(map(len, texts))


@buildable
def glue(
    task: TaskName,
    root: PathStr | None = None,
    path: Name | None = None,
    *,
    block_size: BlockSize = TextData.block_size,
    on_bad_row: Literal["error", "skip"] = "error",
    **options: Unpack[TokenizerOptions],
) -> GlueData:
    """Build data of a GLUE task from the original files, or from the Hugging Face Hub.

    Args:
        task: one of ``TASKS``.
        root: the folder that holds CoLA, MRPC, ...; or
        path: a Hugging Face data set with a configuration for every task, ``nyu-mll/glue``.
        block_size: tokens that the encoder can read.
        on_bad_row: what to do with a row to train on or to choose by that is bad, "error" or "skip". Bad are other
            columns than the header's, bytes that are not UTF-8, no text, and a label that is missing or unknown.
        **options: see :class:`d2v.data.texts.factories.TokenizerOptions`; by default 50,265 ids.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: an unknown task, another task's data, a bad row, or rows of a test set that are not numbered from 0
            in order; the message names file and line, or split and row.
    """
    if (root is None) == (path is None):
        raise ValueError(f"root={root}, path={path}: give the folder of GLUE's files, or nyu-mll/glue")
    defaults: TokenizerOptions = {"vocab_size": 50265}
    chosen = TASKS[task]
    skip = on_bad_row == "skip"
    read = partial(read_hub, chosen, task, str(path), skip) if root is None else partial(read_file, chosen, root, skip)
    train = read("train")
    dev = dict(zip(("val", "val_mismatched"), map(read, chosen.dev), strict=False))
    return GlueData(
        chosen,
        train,
        dev | {split: read(split) for split in chosen.test},
        fitting_tokenizer(None, **(defaults | options)),
        block_size,
    )
