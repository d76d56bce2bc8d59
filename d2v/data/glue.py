"""GLUE (arXiv:1804.07461): its tasks, its files as they are distributed, and its submissions.

Pairs of sentences are packed as the released models expect them: ``<s> a </s></s> b </s>``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from d2v.data.bad_samples import BadSample
from d2v.data.finetune import FinetuneData, part
from d2v.data.hf import load_hf
from d2v.data.text_data import MODALITY, EvalCollate
from d2v.data.texts import fitting_tokenizer

log = logging.getLogger(__name__)


class GlueTask(NamedTuple):
    """One task of GLUE.

    Attributes:
        folder: of its files.
        texts: the columns of its sentences, one or two.
        label: the column of its labels.
        classes: their names, in the order of their numbers; () for scores from 0 to 5.
        metric: of ``d2v.eval.scores.SCORES``.
        submission: name of the file that GLUE's server expects.
        columns: of files without a header.
        dev: its development sets, the first of which chooses.
        test: its test sets.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    metric: str
    submission: str
    columns: tuple[str, ...] = ()
    dev: tuple[str, ...] = ("dev",)
    test: tuple[str, ...] = ("test",)


_YES_NO = ("0", "1")
_ENTAILS = ("entailment", "not_entailment")
_NLI = ("contradiction", "entailment", "neutral")
TASKS = {
    "cola": GlueTask(
        "CoLA", ("sentence",), "label", _YES_NO, "matthews", "CoLA", ("source", "label", "star", "sentence")
    ),
    "sst2": GlueTask("SST-2", ("sentence",), "label", _YES_NO, "accuracy", "SST-2"),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", _YES_NO, "accuracy_f1", "MRPC"),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", (), "pearson_spearman", "STS-B"),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", _YES_NO, "accuracy_f1", "QQP"),
    "mnli": GlueTask(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        _NLI,
        "accuracy",
        "MNLI",
        dev=("dev_matched", "dev_mismatched"),
        test=("test_matched", "test_mismatched"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", _ENTAILS, "accuracy", "QNLI"),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", _ENTAILS, "accuracy", "RTE"),
    "wnli": GlueTask("WNLI", ("sentence1", "sentence2"), "label", _YES_NO, "accuracy", "WNLI"),
}
_SUBMISSIONS = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"}


@dataclass(frozen=True)
class Sentences:
    """Labelled sentences, or pairs of them, by number.

    Attributes:
        texts: one or two a sample.
        labels: classes, scores, or None for all.
        class_names: of the classes, or None.
        where: file or data set, for names.
    """

    texts: Sequence[tuple[str, ...]]
    labels: Sequence[int | float] | None
    class_names: tuple[str, ...] | None
    where: str

    @property
    def lengths(self) -> list[int]:
        """Characters of every sample."""
        return [sum(map(len, texts)) for texts in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def load(self, index: int) -> tuple[str, ...]:
        """The sentences. Raises BadSample if there is nothing in them."""
        if not any(self.texts[index]):
            raise BadSample("empty text")
        return self.texts[index]

    def label(self, index: int) -> int | float | None:
        """The class or score, or None."""
        return None if self.labels is None else self.labels[index]

    def name(self, index: int) -> str:
        """The sample's number in its file: what submissions count by."""
        return str(index)


@dataclass(frozen=True)
class PairView:
    """Sentences as ``<s> a </s></s> b </s>``; where they are too long together, the longer one is cut first.

    Attributes:
        tokenizer: encodes them.
        max_tokens: longest sample, the tokens around sentences included.
    """

    tokenizer: Any
    max_tokens: int

    def __call__(self, texts: tuple[str, ...], rng: np.random.Generator | None = None) -> Tensor:
        """(T,) int64."""
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

    def finetune(self, label_fraction: float = 1.0, seed: int = 0) -> FinetuneData:
        """The sentences, to train on and to score.

        Args:
            label_fraction: train on this share of the samples only, of every class if there are classes.
            seed: decides which.
        """
        view = PairView(self.tokenizer, self.block_size)
        return FinetuneData(
            modality=MODALITY,
            train=part(self.train, label_fraction, seed, stratify=bool(self.task.classes)),
            evals=self.evals,
            labels=self.task.classes or (0.0, 5.0),
            train_view=view,
            eval_view=view,
            collate=EvalCollate(self.tokenizer.pad_id),
            eval_batch_size=64,
            submission=partial(write_submission, self.task),
        )

    def assets(self) -> dict[str, str]:
        """What must go with a model."""
        return {"tokenizer": self.tokenizer.to_json()}


def glue(
    task: str,
    root: str | None = None,
    path: str | None = None,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 50265,
    pad_id: int = 1,
    block_size: int = 512,
    on_bad_row: Literal["error", "skip"] = "error",
) -> GlueData:
    """A task of GLUE from the original files, or from the Hugging Face Hub.

    Args:
        task: one of ``TASKS``.
        root: the folder that holds CoLA, MRPC, ...; or
        path: a Hugging Face data set with a configuration for every task, ``nyu-mll/glue``.
        tokenizer: as in :func:`d2v.data.texts.text_files`, like the next three.
        on_bad_row: what to do with a labelled row that lacks a column or has an unknown label, "error" or "skip".

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: an unknown task, a row that lacks a column or has an unknown label, naming file and line.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"data.on_bad_row={on_bad_row}: choose error or skip")
    if task not in TASKS:
        raise ValueError(f"data.task={task}: choose one of {', '.join(TASKS)}")
    if (root is None) == (path is None):
        raise ValueError(f"data.root={root}, data.path={path}: give the folder of GLUE's files, or nyu-mll/glue")
    chosen = TASKS[task]
    read = (
        partial(_read_hub, chosen, task, str(path)) if root is None else partial(_read_file, chosen, root, on_bad_row)
    )
    train = read("train")
    dev = dict(zip(("val", "val_mismatched"), map(read, chosen.dev), strict=False))
    return GlueData(
        chosen,
        train,
        dev | {split: read(split) for split in chosen.test},
        fitting_tokenizer(None, tokenizer, vocab_size, pad_id, None),
        block_size,
    )


def _read_file(task: GlueTask, root: str, on_bad_row: str, split: str) -> Sentences:
    path = Path(root).expanduser() / task.folder / f"{split}.tsv"
    if not path.is_file():
        raise FileNotFoundError(f"data.root={root}: {path} is missing; data.root must hold GLUE's folder {task.folder}")
    lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")  # a lone CR is part of a cell
    labelled = not split.startswith("test")
    header = list(task.columns) if task.columns and labelled else lines.pop(0).rstrip("\r").split("\t")
    wanted = (*task.texts, task.label) if labelled else task.texts
    for column in wanted:
        if column not in header:
            raise ValueError(f"{path}:1: no column {column!r} for {task.folder}; it has {', '.join(header)}")
    first_line = 1 if task.columns and labelled else 2
    texts, labels, bad = [], [], []
    for number, line in enumerate(lines, first_line):
        cells = line.rstrip("\r").split("\t")
        try:
            if len(cells) < len(header):
                raise ValueError(f"{path}:{number}: {len(cells)} columns, but there must be {len(header)}")
            row = dict(zip(header, cells, strict=False))
            if labelled:
                labels.append(_label(task, row[task.label], f"{path}:{number}"))
        except ValueError as error:
            if on_bad_row == "error" or not labelled:
                raise
            bad.append(str(error))
            continue
        texts.append(tuple(row[column].strip() for column in task.texts))
    for entry in bad:
        log.warning("left out %s", entry)
    if bad:
        log.warning("left out %d of %d rows of %s", len(bad), len(lines), path)
    if not texts:
        raise ValueError(f"{path}: no rows")
    return Sentences(texts, labels if labelled else None, task.classes or None, str(path))


def _label(task: GlueTask, text: str, where: str) -> int | float:
    try:
        score = float(text) if not task.classes else task.classes.index(text.strip())
    except ValueError:
        known = ", ".join(task.classes) or "numbers from 0 to 5"
        raise ValueError(f"{where}: label {text!r} of {task.folder}; known are {known}") from None
    if not task.classes and not 0 <= score <= 5:
        raise ValueError(f"{where}: score {text!r} of {task.folder} must be from 0 to 5")
    return score


_HUB_TEXTS = {
    "cola": ("sentence",), "sst2": ("sentence",), "qqp": ("question1", "question2"), "qnli": ("question", "sentence"),
    "mnli": ("premise", "hypothesis"),
}  # fmt: skip


def _read_hub(task: GlueTask, name: str, path: str, split: str) -> Sentences:
    where = f"{path}/{name}/{split}"
    rows = load_hf(path, split.replace("dev", "validation"), name=name)
    columns = _HUB_TEXTS.get(name, ("sentence1", "sentence2"))
    texts = list(zip(*(map(str.strip, rows[column]) for column in columns), strict=True))
    if split.startswith("test"):
        return Sentences(texts, None, task.classes or None, where)
    labels = rows["label"]
    if task.classes:
        given = rows.features["label"].names
        labels = [given[i] for i in labels]
        # the Hub's names for yes and no differ by task; their order is that of 0 and 1
        names = task.classes if set(given) == set(task.classes) else tuple(given)
        labels = [names.index(label) for label in labels]
    return Sentences(texts, labels, task.classes or None, where)


def write_submission(task: GlueTask, folder: Path, split: str, predictions: Sequence[Any]) -> Path:
    """A file that GLUE's server accepts: index and prediction, tab-separated, with a header.

    Args:
        task: which.
        folder: where to write; made if need be.
        split: of its test sets.
        predictions: classes by number, or scores, in the order of the test file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_SUBMISSIONS.get(split, task.submission)}.tsv"
    values = [task.classes[p] if task.classes else f"{min(5.0, max(0.0, p)):.3f}" for p in predictions]
    path.write_text("index\tprediction\n" + "".join(f"{i}\t{value}\n" for i, value in enumerate(values)))
    return path
