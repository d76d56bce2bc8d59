"""GLUE's files as they are distributed, and its submissions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from d2v.data.files import home_path
from d2v.data.hub import features_of, find_column, load_hf
from d2v.data.plain_text import utf8_of
from d2v.data.texts.glue_tasks import ENTAILS, GlueTask, Sentences
from d2v.runs.files import replace_text

log = logging.getLogger(__name__)

_SUBMISSIONS = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"}


def read_file(task: GlueTask, root: str, skip: bool, split: str) -> Sentences:
    """Sentences of a task's file ``split``.tsv; rows that cannot be read are an error, or left out with ``skip``."""
    path = home_path(root, "root") / task.folder / f"{split}.tsv"
    if not path.is_file():
        raise FileNotFoundError(f"root={root}: {path} is missing; give the folder that holds GLUE's {task.folder}")
    try:
        lines = utf8_of(path).removesuffix(b"\n").split(b"\n")  # a lone CR is part of a cell
    except ValueError as error:
        raise ValueError(f"root={root}: {path} is {error}") from error
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
            fix = "mend the row, or leave such rows out with on_bad_row=skip"
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
    "qnli": (("question", "sentence"), ENTAILS),
    "rte": (("sentence1", "sentence2"), ENTAILS),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def read_hub(task: GlueTask, name: str, path: str, skip: bool, split: str) -> Sentences:
    """Sentences of a split of a task in Hugging Face's copy of GLUE, as :func:`read_file`."""
    split = split.replace("dev", "validation")
    labelled = _labelled(split)
    data = load_hf(path, split, name=name, key=None)
    texts, names = _HUB[name]
    task = task._replace(texts=texts, label="label", number="idx")
    find = partial(find_column, path, data, f"task={name}, column")
    columns = [find(column, ("string", "large_string")) for column in texts]
    columns.append(find("label", () if names else ("float32", "float64")) if labelled else find("idx", ()))
    table = data.select_columns(columns)[:]
    if labelled:
        given = tuple(getattr(features_of(data)["label"], "names", None) or ())
        if given != names:
            raise ValueError(
                f"task={name}: the classes of {path}, {split}, are ({', '.join(given)}), but must be "
                f"({', '.join(names)}), in this order: choose the task that the data are of, or restore their classes"
            )
        known = names if set(names) == set(task.classes) else task.classes  # the files say 0 and 1 for some names
        words: dict[Any, str] = {None: "", -1: "", **dict(enumerate(known))}
        table["label"] = [words.get(label, str(label)) for label in table["label"]]
    cells = zip(*(table[column] for column in columns), strict=True)
    rows = ((f" row {i}", zip(columns, row, strict=True)) for i, row in enumerate(cells))
    return _sentences(task, f"path={path}: ", split, rows, dict, skip)


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
