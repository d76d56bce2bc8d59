"""GLUE's tasks (arXiv:1804.07461), and their sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from d2v.data.bad_samples import BadSample


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


ENTAILS = ("entailment", "not_entailment")


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
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ENTAILS, "accuracy", "QNLI"),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", ENTAILS, "accuracy", "RTE"),
    "wnli": GlueTask("WNLI", ("sentence1", "sentence2"), "label", _YES_NO, "accuracy", "WNLI"),
}


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
