"""Figures of confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2v.eval.figures.canvas import TEXT_COLOUR, new_figure, save


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path | str) -> Path:
    """Draw a confusion matrix, each row as shares of its class, with numbers if there is room.

    Args:
        matrix: (C, C) counts; rows are true classes.
        class_names: names of the C classes.
        path: PNG file to write; missing folders are created.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    size = float(np.clip(0.42 * len(class_names), 3.0, 14.0))
    figure = new_figure(size + 1.6, size + 1.2)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(class_names)), class_names, fontsize=7)
    axes.set_xlabel("predicted", fontsize=9, color=TEXT_COLOUR)
    axes.set_ylabel("true", fontsize=9, color=TEXT_COLOUR)
    if len(class_names) <= 30:
        for row, column in np.ndindex(matrix.shape):
            if matrix[row, column]:
                colour = "white" if shares[row, column] > 0.5 else TEXT_COLOUR
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=6, color=colour)
    return save(figure, path)
