"""Figures of sequences: clips of speech with masks and features, blocks of text with masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d2v.eval.figures.canvas import MASKED_COLOUR, TEXT_COLOUR, new_figure, principal_components, save, scale_robustly


def plot_clips(
    spectrograms: Sequence[Tensor],
    masks: Sequence[Tensor],
    features: Sequence[Tensor],
    path: Path | str,
    frames_per_s: float = 50.0,
) -> Path:
    """Draw clips as log-mel spectrograms, with their first masks and their features as colours below.

    Red, green and blue are the first three principal components over the frames of all clips, so a colour means the
    same in every clip.

    Args:
        spectrograms: (T_i, F) float log-mels of every clip.
        masks: (M, T_i) bool, True = masked, of every clip; at most three are drawn.
        features: (T_i, D) float of every clip, without prefix tokens.
        path: PNG file to write; missing folders are created.
        frames_per_s: frames of masks and features per second.

    Returns:
        The path.

    Raises:
        ValueError: the numbers of clips differ, or features are not finite.
        ImportError: matplotlib is not installed.
    """
    if not len(spectrograms) == len(masks) == len(features) > 0:
        raise ValueError(f"{len(spectrograms)} spectrograms, {len(masks)} masks and {len(features)} features differ")
    together = torch.cat(list(features))
    if not together.isfinite().all():
        raise ValueError("the features hold NaN or infinite values: the encoder has diverged or overflowed")
    components, explained = principal_components(together)
    colours = np.split(scale_robustly(components), np.cumsum([len(x) for x in features])[:-1])
    masked = torch.cat([mask.flatten() for mask in masks]).float().mean().item()

    figure = new_figure(8.0, 1.7 * len(spectrograms) + 0.5)
    heights = [3.0, 0.9, 0.45] * len(spectrograms)
    rows = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for i, (spectrogram, mask, colour) in enumerate(zip(spectrograms, masks, colours, strict=True)):
        seconds = mask.shape[1] / frames_per_s
        drawn = np.where(mask[:3].cpu().numpy()[..., None], MASKED_COLOUR, 1.0)
        images = (spectrogram.T.flip(0).cpu().numpy(), drawn, colour[None])
        for axes, image, label in zip(rows[3 * i :], images, ("log-mels", "masks", "features"), strict=False):
            axes.imshow(image, aspect="auto", interpolation="nearest", cmap="magma", extent=(0, seconds, 0, 1))
            axes.set_yticks([])
            axes.set_ylabel(label, fontsize=8, color=TEXT_COLOUR, rotation=0, ha="right", va="center")
            axes.tick_params(colors=TEXT_COLOUR, labelsize=8, length=0, labelbottom=label == "features")
    rows[-1].set_xlabel("seconds", fontsize=9, color=TEXT_COLOUR)
    title = f"{100 * masked:.0f} % of frames masked; three components explain {100 * explained:.0f} % of the features"
    figure.suptitle(title, fontsize=10.5, color=TEXT_COLOUR)
    return save(figure, path)


def plot_texts(tokens: Sequence[Sequence[str]], masks: Sequence[Tensor], path: Path | str, width: int = 100) -> Path:
    """Draw the beginnings of blocks of text with their first masks; masked tokens are in boxes.

    Args:
        tokens: the tokens of every block, as text.
        masks: (M, T) bool, True = masked, of every block; two are drawn.
        path: PNG file to write; missing folders are created.
        width: characters of a line.

    Returns:
        The path.

    Raises:
        ValueError: the numbers of blocks and masks differ.
        ImportError: matplotlib is not installed.
    """
    if not len(tokens) == len(masks) > 0:
        raise ValueError(f"{len(tokens)} blocks of text and {len(masks)} masks differ")
    lines = [(block, mask) for block, block_masks in zip(tokens, masks, strict=True) for mask in block_masks[:2]]
    figure = new_figure(0.085 * width + 0.4, 0.36 * len(lines) + 0.6)
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(len(lines) - 0.4, -0.8))
    axes.set_axis_off()
    for row, (block, mask) in enumerate(lines):
        place = 0
        for token, hidden in zip(block, mask.tolist(), strict=True):
            text = token.replace("$", r"\$").replace("\n", " ")
            if place + len(token) > width:
                break
            box = {"facecolor": MASKED_COLOUR, "edgecolor": "none", "pad": 1.2} if hidden else None
            axes.text(place, row, text, family="monospace", fontsize=8.5, color=TEXT_COLOUR, va="center", bbox=box)
            place += max(1, len(token))
    masked = torch.cat([mask.flatten() for mask in masks]).float().mean().item()
    figure.suptitle(f"{100 * masked:.0f} % of tokens masked; two masks a block", fontsize=10.5, color=TEXT_COLOUR)
    return save(figure, path)
