"""Pictures of a pretraining run: its curves, its masks, and what its features see.

Drawn on matplotlib's Agg canvas through its object interface: no display is needed, and neither pyplot nor the caller's
settings are touched. matplotlib is imported when a figure is drawn, because only the extra ``d2v[plots]`` installs it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from d2v.errors import how_to_install
from d2v.runs.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 130
TEXT_COLOUR, _GRID = "#333333", "#dddddd"
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072b2", "#d55e00", "#009e73", "#8c5fa8"  # Okabe and Ito: safe for colour blindness
MASKED_COLOUR = (0.60, 0.65, 0.72)  # a bluish grey: a neutral one could be part of a greyscale image
_MAX_MASKS = 4
_MIN_POINTS_TO_SMOOTH = 60


class _Curve(NamedTuple):
    column: str
    label: str
    colour: str


class _Panel(NamedTuple):
    title: str
    ylabel: str
    curves: tuple[_Curve, ...]
    from_zero: bool


_PANELS = (
    _Panel("Training loss", "loss", (_Curve("train/loss", "loss", _BLUE),), False),
    _Panel(
        "Spread of targets and predictions",
        "standard deviation",
        (_Curve("train/target_std", "targets", _BLUE), _Curve("train/pred_std", "predictions", _ORANGE)),
        True,
    ),
    _Panel(
        "Effective rank of the features",
        "effective rank",
        (_Curve("train/effective_rank", "effective rank", _GREEN),),
        True,
    ),
    _Panel("Online kNN probe", "accuracy (%)", (_Curve("probe/knn", "kNN accuracy", _PURPLE),), False),
)


def plot_curves(metrics: Path | str | Mapping[str, Sequence[float | None]], path: Path | str) -> Path:
    """A pretraining run at a glance: loss, spread of targets and predictions, effective rank, and online kNN accuracy.

    Args:
        metrics: a run's ``metrics.csv``, or its columns: "step" (optimizer steps) and any of "train/loss",
            "train/target_std", "train/pred_std", "train/effective_rank", "probe/knn" (a fraction, 0 to 1), with None
            where a row lacks a metric. Where steps repeat, because the run was resumed from an earlier step, the
            later rows hold. Panels without values are left out.
        path: the PNG to write; missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: no step column, none of the metrics, columns of different lengths, or a cell that is no number.
        ImportError: matplotlib is not installed.
    """
    columns = metrics if isinstance(metrics, Mapping) else _read_csv(Path(metrics))
    names = [c.column for panel in _PANELS for c in panel.curves]
    all_series = {name: _series(columns, name) for name in names if name in columns}
    curves = {name: series for name, series in all_series.items() if len(series[0])}
    panels = [panel for panel in _PANELS if any(c.column in curves for c in panel.curves)]
    if not panels:
        there = ", ".join(columns) or "no columns"
        raise ValueError(f"nothing to plot: no values in any of {', '.join(names)}; there are {there}")

    num_columns = 2 if len(panels) == 4 else len(panels)
    num_rows = len(panels) // num_columns
    figure = new_figure(4.4 * num_columns, 3.1 * num_rows)
    from matplotlib.ticker import MaxNLocator

    all_axes = figure.subplots(num_rows, num_columns, sharex=True, squeeze=False)
    for axes, panel in zip(all_axes.flat, panels, strict=True):
        _draw_panel(axes, panel, curves)
    for axes in all_axes[-1]:
        axes.set_xlabel("optimizer step", fontsize=9, color=TEXT_COLOUR)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}")
    return save(figure, path)


def plot_masks(images: Tensor, mask: Tensor, grid: tuple[int, int], num_masks: int, path: Path | str) -> Path:
    """Images beside their first masks, at most four; masked patches are grey.

    Args:
        images: (B, C, H, W) float, 0 to 1, C is 1 or 3: before normalisation.
        mask: (B * M, T) bool, True = masked; sample 0's M masks first.
        grid: patches in height and width; T is their product.
        num_masks: M, masks per sample.
        path: the PNG to write; missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: images that are not as above, or a mask that does not fit them.
        ImportError: matplotlib is not installed.
    """
    rgb = _to_rgb(images)
    if mask.dtype != torch.bool or mask.shape != (len(rgb) * num_masks, grid[0] * grid[1]):
        raise ValueError(
            f"{len(rgb)} images of {grid[0]} x {grid[1]} patches with {num_masks} masks each need a bool mask of shape"
            f" {(len(rgb) * num_masks, grid[0] * grid[1])}, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    masks = mask.cpu().view(len(rgb), num_masks, *grid)[:, :_MAX_MASKS]
    masked_percent = 100 * mask.float().mean().item()

    titles = ["image", *(f"mask {m + 1}" for m in range(masks.shape[1]))]
    cells = [
        [image, *(_grey_out(image, sample_mask.numpy()) for sample_mask in sample_masks)]
        for image, sample_masks in zip(rgb, masks, strict=True)
    ]
    subtitle = f"{masked_percent:.0f} % of {grid[0]} x {grid[1]} patches masked"
    if num_masks > _MAX_MASKS:
        subtitle += f", first {_MAX_MASKS} of {num_masks} masks per image"
    return save(_draw_image_grid(cells, titles, subtitle, group=len(titles)), path)


def plot_pca(images: Tensor, patch_features: Tensor, grid: tuple[int, int], path: Path | str) -> Path:
    """Images beside their patch features: the first three principal components as red, green and blue.

    The components are computed over the patches of all images together, so one colour means the same everywhere
    (as in DINOv2, arXiv:2304.07193, fig. 1, without its removal of the background). Each component is scaled from its
    2nd to its 98th percentile.

    Args:
        images: (B, C, H, W) float, 0 to 1, C is 1 or 3: before normalisation.
        patch_features: (B, T, D) float, without prefix tokens.
        grid: patches in height and width; T is their product.
        path: the PNG to write; missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: images that are not as above, or features that do not fit them or are not finite.
        ImportError: matplotlib is not installed.
    """
    rgb = _to_rgb(images)
    if patch_features.ndim != 3 or patch_features.shape[:2] != (len(rgb), grid[0] * grid[1]):
        raise ValueError(
            f"{len(rgb)} images of {grid[0]} x {grid[1]} patches need features of shape"
            f" ({len(rgb)}, {grid[0] * grid[1]}, D), got {tuple(patch_features.shape)}; leave out prefix tokens"
        )
    if not patch_features.isfinite().all():
        raise ValueError("the patch features hold NaN or infinite values: the encoder has diverged or overflowed")
    components, explained = principal_components(patch_features.flatten(0, 1))
    maps = scale_robustly(components).reshape(len(rgb), *grid, 3)

    pairs = [[image, colours] for image, colours in zip(rgb, maps, strict=True)]
    pairs_per_row = max(1, min(4, round(math.sqrt(len(pairs) / 2))))
    cells = [list(chain(*pairs[i : i + pairs_per_row])) for i in range(0, len(pairs), pairs_per_row)]
    subtitle = f"three components explain {100 * explained:.0f} % of the variance"
    return save(_draw_image_grid(cells, ["image", "features"] * pairs_per_row, subtitle, group=2), path)


def _read_csv(path: Path) -> dict[str, list[float | None]]:
    """The columns of a CSV of numbers; empty cells are None, as is what a killed run left off its last line."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns: dict[str, list[float | None]] = {name: [] for name in reader.fieldnames or ()}
        for row in reader:
            for name, values in columns.items():
                try:
                    values.append(float(row[name]) if row[name] else None)
                except ValueError:
                    raise ValueError(f"{path}, line {reader.line_num}: {name}={row[name]!r} is no number") from None
    return columns


def _series(columns: Mapping[str, Sequence[float | None]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric's steps, ascending, and values; a row overrules earlier rows of the same and of later steps."""
    if "step" not in columns:
        raise ValueError(f"no step column, only {', '.join(columns)}: give the metrics.csv of a d2v run")
    points: list[tuple[float, float]] = []
    try:
        for step, value in zip(columns["step"], columns[name], strict=True):
            if step is None or value is None:
                continue
            while points and points[-1][0] >= step:
                points.pop()
            points.append((step, value))
    except ValueError:
        raise ValueError(f"columns step and {name} have {len(columns['step'])} and {len(columns[name])} rows") from None
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _draw_panel(axes: Axes, panel: _Panel, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    drawn = [c for c in panel.curves if c.column in curves]
    for curve in drawn:
        steps, values = curves[curve.column]
        if curve.column == "probe/knn":
            values = 100 * values
        if len(steps) >= _MIN_POINTS_TO_SMOOTH:
            axes.plot(steps, values, color=curve.colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=curve.colour, linewidth=1.6, label=curve.label)
        else:
            axes.plot(steps, values, color=curve.colour, linewidth=1.6, marker="o", markersize=3, label=curve.label)
    axes.set_title(panel.title, fontsize=10.5, color=TEXT_COLOUR, loc="left")
    axes.set_ylabel(panel.ylabel, fontsize=9, color=TEXT_COLOUR)
    if panel.from_zero:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=8.5)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=8.5, length=0)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over 1/30 of the curve, over fewer points at the ends; NaN stays in place."""
    width = 2 * (len(values) // 60) + 1
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0), window, mode="same")
    count = np.convolve(finite, window, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _to_rgb(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) float array, 0 to 1."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"expected (B, C, H, W) images with 1 or 3 channels, got shape {tuple(images.shape)}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"expected images from 0 to 1, got {low:.3g} to {high:.3g}: undo the normalisation first")
    return images.detach().float().clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def _grey_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) with the masked patches (rows, columns) in grey."""
    height, width = image.shape[:2]
    # Pixel to patch by index, which also fits images whose size is no multiple of the grid.
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return np.where(mask[rows][:, columns, None], MASKED_COLOUR, image)


def principal_components(x: Tensor) -> tuple[np.ndarray, float]:
    """The first three principal components (N, 3) of (N, D) features, and the fraction of the variance they explain."""
    centred = (x.detach().double() - x.detach().double().mean(0)).cpu().numpy()
    variances, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary: fix it, so that the same features always have the same colours.
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)
    components = np.zeros((len(centred), 3))
    components[:, : axes.shape[1]] = centred @ axes
    total = variances.sum()
    return components, float(variances[::-1][:3].sum() / total) if total > 0 else 0.0


def scale_robustly(components: np.ndarray) -> np.ndarray:
    """Every column from its 2nd .. 98th percentile to 0 .. 1, clipped; 0.5 if it is constant."""
    low, high = np.percentile(components, [2, 98], axis=0)
    spread = high - low
    # Relative to the largest: features of rank below three have components that are rounding noise.
    varies = spread > 1e-6 * spread.max()
    scaled = (components - low) / np.where(varies, spread, 1)
    return np.where(varies, scaled.clip(0, 1), 0.5)


def _draw_image_grid(cells: Sequence[Sequence[np.ndarray]], titles: Sequence[str], subtitle: str, group: int) -> Figure:
    """Rows of images under column titles, with a gap between groups of ``group`` columns; rows may end early."""
    size, gap = 1.15, 0.25
    num_gaps = len(titles) // group - 1
    figure = new_figure(size * len(titles) + gap * num_gaps + 0.4, size * len(cells) + 0.7)
    # A gap is an empty column: constrained layout has one spacing for all columns.
    widths = ([size] * group + [gap]) * (num_gaps + 1)
    layout = figure.add_gridspec(len(cells), len(widths) - 1, width_ratios=widths[:-1])
    for row, images in enumerate(cells):
        for column, image in enumerate(images):
            axes = figure.add_subplot(layout[row, column + column // group])
            axes.imshow(image, interpolation="nearest", vmin=0, vmax=1)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(titles[column], fontsize=9.5, color=TEXT_COLOUR)
    figure.suptitle(subtitle, fontsize=10.5, color=TEXT_COLOUR)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; ImportError if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: {how_to_install('plots')}") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | str) -> Path:
    """Write a PNG; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
    return path
