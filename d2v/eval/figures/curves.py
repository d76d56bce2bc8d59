"""Figures of the curves of a run: loss, spread, ranks, probes, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from d2v.eval.figures.canvas import BLUE, GREEN, GRID, ORANGE, PURPLE, TEXT_COLOUR, new_figure, save
from d2v.runs.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    _Panel("Training loss", "loss", (_Curve("train/loss", "loss", BLUE),), False),
    _Panel(
        "Spread of targets and predictions",
        "standard deviation",
        (_Curve("train/target_std", "targets", BLUE), _Curve("train/pred_std", "predictions", ORANGE)),
        True,
    ),
    _Panel(
        "Effective rank of the features",
        "effective rank",
        (_Curve("train/effective_rank", "effective rank", GREEN),),
        True,
    ),
    _Panel(
        "Online probes",
        "accuracy (%)",
        (_Curve("probe/knn", "kNN", PURPLE), _Curve("probe/linear", "linear", ORANGE)),
        False,
    ),
)


def plot_curves(metrics: Path | str | Mapping[str, Sequence[float | None]], path: Path | str) -> Path:
    """Draw the curves of a pretraining run: loss, spread of targets and predictions, effective rank, online probes.

    Args:
        metrics: a run's ``metrics.csv``, or its columns: "step" (optimizer steps) and any of "train/loss",
            "train/target_std", "train/pred_std", "train/effective_rank", "probe/knn", "probe/linear" (fractions, 0
            to 1), with None where a row lacks a metric. If steps repeat, because the run was resumed from an earlier
            step, the later rows count. Panels without values are left out.
        path: PNG file to write; missing folders are created.

    Returns:
        The path.

    Raises:
        ValueError: there is no step column or none of the metrics, columns differ in length, or a cell is no number.
        ImportError: matplotlib is not installed.
    """
    columns = metrics if isinstance(metrics, Mapping) else read_metrics(Path(metrics))
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


def _series(columns: Mapping[str, Sequence[float | None]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending steps and values of a metric; a row replaces earlier rows of the same and of later steps."""
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
        if curve.column.startswith("probe/"):
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
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=8.5, length=0)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Smooth by a centred moving average over 1/30 of the curve, over fewer points at the ends; NaN stays in place."""
    width = 2 * (len(values) // 60) + 1
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0), window, mode="same")
    count = np.convolve(finite, window, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)
