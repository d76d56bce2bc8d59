"""Figures of images with their masks and patch features.

Drawn on matplotlib's Agg canvas through its object interface: no display is needed, and neither pyplot nor the caller's
settings are changed. matplotlib is imported when a figure is drawn, because only the extra ``d2v[plots]`` installs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from d2v.eval.figures.canvas import MASKED_COLOUR, TEXT_COLOUR, new_figure, principal_components, save, scale_robustly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_MASKS = 4


def plot_masks(images: Tensor, mask: Tensor, grid: tuple[int, int], num_masks: int, path: Path | str) -> Path:
    """Draw images with their first masks, at most four; masked patches are grey.

    Args:
        images: (B, C, H, W) float, 0 to 1, C is 1 or 3: before normalisation.
        mask: (B * M, T) bool, True = masked; sample 0's M masks first.
        grid: patches in height and width; T is their product.
        num_masks: M, masks per sample.
        path: PNG file to write; missing folders are created.

    Returns:
        The path.

    Raises:
        ValueError: the images have another shape or range, or the mask does not match them.
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
    """Draw images with their patch features: the first three principal components as red, green and blue.

    The components are computed over the patches of all images together, so one colour means the same everywhere
    (as in DINOv2, arXiv:2304.07193, fig. 1, without its removal of the background). Each component is scaled from its
    2nd to its 98th percentile.

    Args:
        images: (B, C, H, W) float, 0 to 1, C is 1 or 3: before normalisation.
        patch_features: (B, T, D) float, without prefix tokens.
        grid: patches in height and width; T is their product.
        path: PNG file to write; missing folders are created.

    Returns:
        The path.

    Raises:
        ValueError: the images have another shape or range, or the features do not match them or are not finite.
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


def _to_rgb(images: Tensor) -> np.ndarray:
    """Convert images to a (B, H, W, 3) float array, 0 to 1."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"expected (B, C, H, W) images with 1 or 3 channels, got shape {tuple(images.shape)}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"expected images from 0 to 1, got {low:.3g} to {high:.3g}: undo the normalisation first")
    return images.detach().float().clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def _grey_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) with the masked patches (rows, columns) in grey."""
    height, width = image.shape[:2]
    # Pixel to patch by index, which also works if the size is no multiple of the grid.
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return np.where(mask[rows][:, columns, None], MASKED_COLOUR, image)


def _draw_image_grid(cells: Sequence[Sequence[np.ndarray]], titles: Sequence[str], subtitle: str, group: int) -> Figure:
    """Draw rows of images under column titles, with a gap between groups of ``group`` columns; rows may be short."""
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
