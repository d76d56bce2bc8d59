"""Labels in a column of a Hugging Face data set: class labels, integers, strings or booleans, matched by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v.data.contents import first_of

_PLAIN = ("int", "uint", "string", "large_string", "bool")
NO_LABEL = -1


def find_label_column(path: str, features: dict[str, Any], column: str | None) -> str | None:
    """Return the column of labels, checked; if None, the only one of class labels, or None if there is none.

    Args:
        path: of the data set, for messages.
        features: its columns.
        column: ``label_column``.

    Raises:
        ValueError: there is no such column, it is of another type, or several columns of class labels fit.
    """
    import datasets

    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if column is not None:
        if column not in labels and column not in plain_columns(features):
            raise ValueError(
                f"label_column={column}: not a column of class labels, whole numbers, words or flags; "
                f"{path} has the columns {', '.join(features)}"
            )
        return column
    if len(labels) > 1:
        raise ValueError(
            f"label_column=null: {path} has {len(labels)} columns of class labels; "
            f"set label_column to one of {', '.join(labels)}"
        )
    return labels[0] if labels else None


def plain_columns(features: dict[str, Any]) -> list[str]:
    """Return the columns with distinct values that could be classes, for a hint."""
    return [name for name, f in features.items() if str(getattr(f, "dtype", None)).rstrip("0123456789") in _PLAIN]


def read_labels(data: Any, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the labels of all rows, (N,) int64, -1 for none, and the names of the classes.

    Of class labels the data set names and orders the classes, and -1 means none. Of other columns they are the sorted
    distinct values.

    Args:
        data: a ``datasets.Dataset``.
        column: from :func:`find_label_column`.
    """
    names = getattr(data.features[column], "names", None)
    values = data.select_columns([column])[:][column]
    if names is not None:
        return np.array([NO_LABEL if value is None else value for value in values], dtype=np.int64), tuple(names)
    classes = sorted({value for value in values if value is not None})
    number = {value: i for i, value in enumerate(classes)}
    labels = [NO_LABEL if value is None else number[value] for value in values]
    return np.array(labels, dtype=np.int64), tuple(map(str, classes))


def match_classes(
    labels: np.ndarray, names: tuple[str, ...], class_names: tuple[str, ...], stated: bool, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Renumber labels to match the training set's classes by name; also return a note if numbers differed.

    Args:
        labels: (N,) int64 indices into ``names``, -1 for none.
        names: names of the classes of these labels.
        class_names: names of the training set's classes.
        stated: whether the data set lists its classes, so that none may be missing.
        where: names key and data set in the error.

    Raises:
        ValueError: there are classes that the training set lacks, or fewer than it has.
    """
    unknown = [name for name in names if name not in class_names]
    if unknown or (stated and len(names) != len(class_names)):
        differing = f"; {first_of(unknown, 10)} are not in the training set" if unknown else ""
        raise ValueError(
            f"{where}: its {len(names)} classes are {first_of(names, 10)}, but the {len(class_names)} of the training "
            f"set are {first_of(class_names, 10)}{differing}: give both splits the same classes"
        )
    numbers = np.array([*map(class_names.index, names), NO_LABEL], dtype=np.int64)  # the last one is what -1 finds
    reordered = stated and names != class_names
    return numbers[labels], ("classes in another order than training's: matched by name",) if reordered else ()
