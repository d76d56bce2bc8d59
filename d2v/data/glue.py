"""GLUE (arXiv:1804.07461): its tasks, its files as they are distributed, and its submissions.

Pairs of sentences are packed as the released models expect them: ``<s> a </s></s> b </s>``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from d2v.data.bad_samples import BadSample
from d2v.data.contents import describe_sources
from d2v.data.files import home_path
from d2v.data.finetune import FinetuneData, part
from d2v.data.hf import features_of, find_column, load_hf
from d2v.data.plain_text import utf8_of
from d2v.data.text_data import MODALITY, EvalCollate
from d2v.data.texts import fitting_tokenizer
from d2v.runs.files import replace_text
from d2v.values import BlockSize, Count, Name, PathStr, VocabSize, buildable

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
        number: the column that numbers the rows of its test sets.
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
    number: str = "index"
    columns: tuple[str, ...] = ()
    dev: tuple[str, ...] = ("dev",)
    test: tuple[str, ...] = ("test",)


_YES_NO = ("0", "1")
_ENTAILS = ("entailment", "not_entailment")
_NLI = ("contradiction", "entailment", "neutral")
TaskName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
TASKS: dict[TaskName, GlueTask] = {
    "cola": GlueTask(
        "CoLA", ("sentence",), "label", _YES_NO, "matthews", "CoLA", columns=("source", "label", "star", "sentence")
    ),
    "sst2": GlueTask("SST-2", ("sentence",), "label", _YES_NO, "accuracy", "SST-2"),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", _YES_NO, "accuracy_f1", "MRPC"),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", (), "pearson_spearman", "STS-B"),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", _YES_NO, "accuracy_f1", "QQP", number="id"),
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
        labels: classes, scores, or None for all: a test set.
        class_names: of the classes, or None.
        left_out: bad rows that are not among the samples, as "name: reason".
    """

    texts: Sequence[tuple[str, ...]]
    labels: Sequence[int | float] | None
    class_names: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Characters of every sample."""
        return [sum(map(len, texts)) for texts in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def load(self, index: int) -> tuple[str, ...]:
        """The sentences. Raises BadSample if there is nothing in them; not in test sets, all of which is answered."""
        if self.labels is not None and not any(self.texts[index]):
            raise BadSample("empty text")
        return self.texts[index]

    def label(self, index: int) -> int | float | None:
        """The class or score, or None."""
        return None if self.labels is None else self.labels[index]

    def name(self, index: int) -> str:
        """The sample's number in its file: what submissions count by."""
        return str(index)

    def mark(self, index: int) -> bytes:
        """The sentences."""
        return "\n".join(self.texts[index]).encode("utf-8", "surrogatepass")


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

    def describe(self) -> list[str]:
        """Lines of the summary before a run: splits, sizes, classes."""
        return describe_sources({"train": self.train, **self.evals})

    def assets(self) -> dict[str, str]:
        """Values that must go with a model."""
        return {"tokenizer": self.tokenizer.to_json()}


@buildable
def glue(
    task: TaskName,
    root: PathStr | None = None,
    path: Name | None = None,
    *,
    tokenizer: PathStr | None = None,
    vocab_size: VocabSize = 50265,
    pad_id: Count = 1,
    block_size: BlockSize = 512,
    on_bad_row: Literal["error", "skip"] = "error",
) -> GlueData:
    """A task of GLUE from the original files, or from the Hugging Face Hub.

    Args:
        task: one of ``TASKS``.
        root: the folder that holds CoLA, MRPC, ...; or
        path: a Hugging Face data set with a configuration for every task, ``nyu-mll/glue``.
        tokenizer: as in :func:`d2v.data.texts.text_files`, like the next three.
        on_bad_row: what to do with a row to train on or to choose by that is bad, "error" or "skip". Bad are other
            columns than the header's, bytes that are not UTF-8, no text, and a label that is missing or unknown.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: an unknown task, another task's data, a bad row, or a test set whose rows are not numbered from 0 in
            order; it names file and line, or split and row.
    """
    if (root is None) == (path is None):
        raise ValueError(f"data.root={root}, data.path={path}: give the folder of GLUE's files, or nyu-mll/glue")
    if task not in TASKS:
        raise ValueError(f"data.task={task}: choose one of {', '.join(TASKS)}")
    chosen = TASKS[task]
    skip = on_bad_row == "skip"
    read = (
        partial(_read_hub, chosen, task, str(path), skip) if root is None else partial(_read_file, chosen, root, skip)
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


def _read_file(task: GlueTask, root: str, skip: bool, split: str) -> Sentences:
    path = home_path(root, "data.root") / task.folder / f"{split}.tsv"
    if not path.is_file():
        raise FileNotFoundError(f"data.root={root}: {path} is missing; data.root must hold GLUE's folder {task.folder}")
    try:
        lines = utf8_of(path).removesuffix(b"\n").split(b"\n")  # a lone CR is part of a cell
    except ValueError as error:
        raise ValueError(f"data.root={root}: {path} is {error}") from error
    labelled = _labelled(split)
    header, first_line = list(task.columns), 1
    if not (task.columns and labelled):
        try:
            header, first_line = _cells(lines.pop(0)), 2
        except ValueError as error:
            raise ValueError(f"{path}:1: {error}; mend the header") from None
    for column in (*task.texts, task.label if labelled else task.number):
        if column not in header:
            raise ValueError(f"{path}:1: no column {column!r} for {task.folder}; it has {', '.join(header)}")
    rows = ((f":{number}", line) for number, line in enumerate(lines, first_line))
    return _sentences(task, f"{path.parent}/", path.name, rows, partial(_row, header), skip)


def _labelled(split: str) -> bool:
    return not split.startswith("test")


def _cells(line: bytes) -> list[str]:
    try:
        return line.rstrip(b"\r").decode().split("\t")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {line[error.start]:#04x} is not UTF-8") from None


def _row(header: Sequence[str], line: bytes) -> dict[str, str]:
    cells = _cells(line)
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} columns, but there must be {len(header)}")
    return dict(zip(header, cells, strict=True))


def _sentences(
    task: GlueTask,
    origin: str,
    split: str,
    rows: Iterable[tuple[str, Any]],
    parse: Callable[[Any], dict[str, Any]],
    skip: bool,
) -> Sentences:
    """Samples of rows, all of them checked.

    Args:
        task: names the columns.
        origin: of the split; with it and a row's number, a message names the row.
        split: its name, or its file's.
        rows: their numbers and what stands there, unread.
        parse: makes columns of a row. Raises ValueError.
        skip: leave bad rows out; never those of a test set.
    """
    labelled = _labelled(split)
    texts: list[tuple[str, ...]] = []
    labels: list[int | float] = []
    left_out: list[str] = []
    for number, unread in rows:
        try:
            row = parse(unread)
            if labelled:
                labels.append(_label(task, row))
            elif str(row[task.number]) != str(len(texts)):
                raise ValueError(f"{task.number} {row[task.number]!r} must be {len(texts)}")
        except ValueError as error:
            entry = f"{split}{number}: {error}"
            if labelled and skip:
                left_out.append(entry)
                log.warning("left out %s%s", origin, entry)
                continue
            fix = "mend the row, or leave such rows out with data.on_bad_row=skip"
            answers = "restore the test set: a submission answers every row, in order"
            raise ValueError(f"{origin}{entry}; {fix if labelled else answers}") from None
        texts.append(tuple((row[column] or "").strip() for column in task.texts))
    if left_out:
        log.warning("left out %d of %d rows of %s%s", len(left_out), len(left_out) + len(texts), origin, split)
    if not texts:
        raise ValueError(f"{origin}{split}: no rows" + (f" that can be read; {left_out[0]}" if left_out else ""))
    return Sentences(texts, labels if labelled else None, task.classes or None, tuple(left_out))


def _label(task: GlueTask, row: dict[str, Any]) -> int | float:
    """The label of a row to train on or to choose by. Raises ValueError if the row is bad."""
    for column in task.texts:
        if row[column] is None:
            raise ValueError(f"no text in column {column!r}")
    text = row[task.label].strip()
    if not text:
        raise ValueError("no label")
    try:
        score = float(text) if not task.classes else task.classes.index(text)
    except ValueError:
        known = ", ".join(task.classes) or "numbers from 0 to 5"
        raise ValueError(f"label {text!r} of {task.folder}; known are {known}") from None
    if not task.classes and not 0 <= score <= 5:
        raise ValueError(f"score {text!r} of {task.folder} must be from 0 to 5")
    return score


# nyu-mll/glue: the columns of sentences, and the names of classes in the order of their numbers
_HUB = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": (("sentence1", "sentence2"), ()),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), _ENTAILS),
    "rte": (("sentence1", "sentence2"), _ENTAILS),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def _read_hub(task: GlueTask, name: str, path: str, skip: bool, split: str) -> Sentences:
    split = split.replace("dev", "validation")
    labelled = _labelled(split)
    data = load_hf(path, split, name=name, key=None)
    texts, names = _HUB[name]
    task = task._replace(texts=texts, label="label", number="idx")
    find = partial(find_column, path, data, f"data.task={name}, column")
    columns = [find(column, ("string", "large_string")) for column in texts]
    columns.append(find("label", () if names else ("float32", "float64")) if labelled else find("idx", ()))
    table = data.select_columns(columns)[:]
    if labelled:
        given = tuple(getattr(features_of(data)["label"], "names", None) or ())
        if given != names:
            raise ValueError(
                f"data.task={name}: the classes of {path}, {split}, are ({', '.join(given)}), but must be "
                f"({', '.join(names)}), in this order: choose the task that the data are of, or restore their classes"
            )
        known = names if set(names) == set(task.classes) else task.classes  # the files say 0 and 1 for some names
        words: dict[Any, str] = {None: "", -1: "", **dict(enumerate(known))}
        table["label"] = [words.get(label, str(label)) for label in table["label"]]
    cells = zip(*(table[column] for column in columns), strict=True)
    rows = ((f" row {i}", zip(columns, row, strict=True)) for i, row in enumerate(cells))
    return _sentences(task, f"data.path={path}: ", split, rows, dict, skip)


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
    replace_text(path, "index\tprediction\n" + "".join(f"{i}\t{value}\n" for i, value in enumerate(values)))
    return path
