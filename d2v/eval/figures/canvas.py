"""Canvas of all figures: size, colours, saving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from d2v.errors import how_to_install
from d2v.runs.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130


TEXT_COLOUR, GRID = "#333333", "#dddddd"


BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#8c5fa8"  # Okabe and Ito: safe for colour blindness


MASKED_COLOUR = (0.60, 0.65, 0.72)  # a bluish grey: a neutral one could be part of a greyscale image


def principal_components(x: Tensor) -> tuple[np.ndarray, float]:
    """Return the first three principal components (N, 3) of (N, D) features, and their share of the variance."""
    centred = (x.detach().double() - x.detach().double().mean(0)).cpu().numpy()
    variances, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :3]
    # The sign of an eigenvector is arbitrary: fix it, so that the same features always have the same colours.
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)
    components = np.zeros((len(centred), 3))
    components[:, : axes.shape[1]] = centred @ axes
    total = variances.sum()
    return components, float(variances[::-1][:3].sum() / total) if total > 0 else 0.0


def scale_robustly(components: np.ndarray) -> np.ndarray:
    """Scale every column from its 2nd to 98th percentile to 0 to 1, clipped; 0.5 if it is constant."""
    low, high = np.percentile(components, [2, 98], axis=0)
    spread = high - low
    # Relative to the largest: features of rank below three have components that are rounding noise.
    varies = spread > 1e-6 * spread.max()
    scaled = (components - low) / np.where(varies, spread, 1)
    return np.where(varies, scaled.clip(0, 1), 0.5)


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: {how_to_install('plots')}") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | str) -> Path:
    """Write a PNG file; missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
    return path
