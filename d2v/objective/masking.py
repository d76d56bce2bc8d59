"""Masks of the tokens to predict: data2vec 2.0 (arXiv:2212.07525), sec. 3.3.

Masks are drawn on the CPU, in the data workers, from one generator for every (seed, epoch, sample), so a run's masks do
not depend on the number of workers, devices or micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import numpy as np

from d2v.values import NumMasks, OpenFraction, PositiveFraction, PositiveInt, SignedFraction, buildable

_MAX_FAILURES = 10  # attempts in a row to place a rectangle


class MaskGenerator(Protocol):
    """Protocol of mask generators: ``num_masks`` masks a sample, all with the same number of masked tokens."""

    num_masks: int

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that stay visible out of ``num_tokens``."""

    def validate(self, grid: tuple[int, ...]) -> None:
        """Raise ValueError, naming the argument and the fix, if no such mask exists on this grid."""

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return (len(rngs) * num_masks, prod(grid)) bool, True = masked, sample-major.

        Args:
            grid: shape of the grid of tokens.
            rngs: one generator for every sample.
        """


@buildable
@dataclass(frozen=True)
class RandomMask:
    """Random masks with an exact count, as in the released text models.

    Attributes:
        num_masks: M, masks per sample.
        mask_ratio: share of tokens to mask, in (0, 1); int(T * (1 - mask_ratio)) tokens stay visible.
    """

    num_masks: NumMasks = 8
    mask_ratio: OpenFraction = 0.5

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that stay visible out of ``num_tokens``."""
        return int(num_tokens * (1 - self.mask_ratio))

    def validate(self, grid: tuple[int, ...]) -> None:
        """Raise ValueError, naming the argument and the fix, if no such mask exists on this grid."""
        _check_counts(self, prod(grid))

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return (len(rngs) * num_masks, prod(grid)) bool, True = masked, sample-major."""
        num_tokens = prod(grid)
        priority = np.concatenate([rng.random((self.num_masks, num_tokens)) for rng in rngs])
        return _highest(priority, num_tokens - self.num_visible(num_tokens))


@dataclass(frozen=True)
class _Blocks:
    """Base class of masks from random blocks, corrected to an exact count.

    Abstract: a subclass defines ``num_visible`` and ``_block_ratio``.

    Block centres are drawn uniformly, with replacement; a block that reaches over the border is clamped to it. Then
    random tokens are added or removed until the count is exact.
    """

    num_masks: NumMasks
    mask_ratio: OpenFraction
    mask_length: PositiveInt
    mask_ratio_adjust: SignedFraction

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that stay visible out of ``num_tokens``."""
        raise NotImplementedError("a subclass says whether blocks are kept or masked")

    def validate(self, grid: tuple[int, ...]) -> None:
        """Raise ValueError, naming the argument and the fix, if no such mask exists on this grid."""
        _check_counts(self, prod(grid))
        lowest = -self._block_ratio
        if not lowest <= self.mask_ratio_adjust <= 1:
            raise ValueError(f"mask_ratio_adjust={self.mask_ratio_adjust}: choose {lowest:.3f} (no blocks) to 1")
        if self.mask_length > min(grid):
            raise ValueError(
                f"mask_length={self.mask_length}: the token grid is {'x'.join(map(str, grid))}; choose 1 to {min(grid)}"
            )

    @property
    def _block_ratio(self) -> float:
        """Share of the tokens to cover with blocks."""
        raise NotImplementedError("a subclass says whether blocks are kept or masked")

    def _priorities(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return (N, T) float: tokens of blocks in [1, 2), others in [0, 1), ties broken at random.

        Row m of a sample depends on its generator and on m alone, not on ``num_masks`` or on other samples.
        """
        num_tokens = prod(grid)
        num_blocks = max(
            0, int(num_tokens * (self._block_ratio + self.mask_ratio_adjust) / self.mask_length ** len(grid))
        )
        uniform = np.concatenate([rng.random((self.num_masks, num_blocks + num_tokens)) for rng in rngs])
        centres = np.unravel_index((uniform[:, :num_blocks] * num_tokens).astype(np.int64), grid)
        offsets = np.indices((self.mask_length,) * len(grid)).reshape(len(grid), -1) - self.mask_length // 2
        blocks = np.ravel_multi_index(
            [
                np.clip(centre[:, :, None] + offset, 0, size - 1)
                for centre, offset, size in zip(centres, offsets, grid, strict=True)
            ],
            grid,
        )
        in_block = np.zeros((len(uniform), num_tokens))
        np.put_along_axis(in_block, blocks.reshape(len(uniform), -1), 1.0, axis=1)
        return in_block + uniform[:, num_blocks:]


@buildable
@dataclass(frozen=True)
class InverseBlockMask(_Blocks):
    """Masks that keep random blocks and hide everything else, with an exact count, as in the released image models.

    Attributes:
        num_masks: M, masks per sample.
        mask_ratio: share of tokens to mask, in (0, 1); int(T * (1 - mask_ratio)) tokens stay visible.
        mask_length: side of a block in tokens, in every dimension of the grid.
        mask_ratio_adjust: added to the share of tokens to keep when counting blocks, to offset their overlap.
    """

    num_masks: NumMasks = 16
    mask_ratio: OpenFraction = 0.8
    mask_length: PositiveInt = 3
    mask_ratio_adjust: SignedFraction = 0.07

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that stay visible out of ``num_tokens``."""
        return int(num_tokens * (1 - self.mask_ratio))

    @property
    def _block_ratio(self) -> float:
        return 1 - self.mask_ratio

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return (len(rngs) * num_masks, prod(grid)) bool, True = masked, sample-major."""
        return ~_highest(self._priorities(grid, rngs), self.num_visible(prod(grid)))


@buildable
@dataclass(frozen=True)
class SpanMask(_Blocks):
    """Masks of random spans (blocks, on a grid), with an exact count, as in the released speech models.

    Attributes:
        num_masks: M, masks per sample.
        mask_ratio: share of tokens to mask, in (0, 1); int(T * mask_ratio) tokens are masked.
        mask_length: length of a span in tokens, in every dimension of the grid.
        mask_ratio_adjust: added to the share of tokens to mask when counting spans, to offset their overlap.
    """

    num_masks: NumMasks = 8
    mask_ratio: OpenFraction = 0.5
    mask_length: PositiveInt = 5
    mask_ratio_adjust: SignedFraction = 0.05

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that stay visible out of ``num_tokens``."""
        return num_tokens - int(num_tokens * self.mask_ratio)

    @property
    def _block_ratio(self) -> float:
        return self.mask_ratio

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return (len(rngs) * num_masks, prod(grid)) bool, True = masked, sample-major."""
        return _highest(self._priorities(grid, rngs), prod(grid) - self.num_visible(prod(grid)))


@buildable
@dataclass(frozen=True)
class BlockMask:
    """Masks of random rectangles, with an exact count: BEiT (arXiv:2106.08254), alg. 1, and data2vec 1.0.

    Rectangles of random area and shape are added until no more fits. Missing tokens are then drawn at random; BEiT
    leaves them visible.

    Attributes:
        num_masks: M, masks per sample.
        mask_ratio: share of tokens to mask, in (0, 1); round(T * mask_ratio) tokens are masked.
        min_block: smallest number of tokens in a rectangle (the last ones may add fewer).
        min_aspect: smallest aspect ratio of a rectangle, in (0, 1].
    """

    num_masks: NumMasks = 1
    mask_ratio: OpenFraction = 0.6
    min_block: PositiveInt = 16
    min_aspect: PositiveFraction = 0.3

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that stay visible out of ``num_tokens``."""
        return num_tokens - round(num_tokens * self.mask_ratio)

    def validate(self, grid: tuple[int, ...]) -> None:
        """Raise ValueError, naming the argument and the fix, if no such mask exists on this grid."""
        if len(grid) != 2:
            raise ValueError("mask=block masks rectangles of a grid: for sequences use mask=span or mask=random")
        _check_counts(self, prod(grid))
        if self.min_block > prod(grid):
            raise ValueError(f"min_block={self.min_block}: a sample has {prod(grid)} tokens; choose 1 to as many")

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return (len(rngs) * num_masks, prod(grid)) bool, True = masked, sample-major."""
        count = prod(grid) - self.num_visible(prod(grid))
        rows, columns = grid
        return np.stack([self._draw(rows, columns, count, rng) for rng in rngs for _ in range(self.num_masks)])

    def _draw(self, rows: int, columns: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw (rows * columns,) bool, ``count`` of them True."""
        mask = np.zeros((rows, columns), dtype=bool)
        log_aspect = np.log(self.min_aspect)
        failures = 0
        while failures < _MAX_FAILURES and (missing := count - int(mask.sum())) > 0:
            area = rng.uniform(self.min_block, max(self.min_block, missing))
            aspect = np.exp(rng.uniform(log_aspect, -log_aspect))
            height, width = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
            failures += 1
            if not (0 < height < rows and 0 < width < columns):
                continue
            top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - int(block.sum()) <= missing:
                block[:] = True
                failures = 0
        flat = mask.reshape(-1)
        flat[rng.permutation(np.flatnonzero(~flat))[: count - int(flat.sum())]] = True
        return flat


def _check_counts(mask: MaskGenerator | _Blocks | RandomMask | BlockMask, num_tokens: int) -> None:
    """Raise ValueError unless every mask hides and shows at least one token."""
    if not 1 <= mask.num_masks <= num_tokens:
        raise ValueError(
            f"num_masks={mask.num_masks}: a sample has {num_tokens} tokens; choose 1 to {num_tokens} masks"
        )
    assert isinstance(mask, _Blocks | RandomMask | BlockMask)
    if not 0 < mask.mask_ratio < 1 or not 0 < mask.num_visible(num_tokens) < num_tokens:
        fitting = [n / 1000 for n in range(1, 1000) if _shows_and_hides(mask, n / 1000, num_tokens)]
        choice = (
            f"choose a ratio from {fitting[0]:.3f} up to {fitting[-1]:.3f}, smaller" if fitting else "choose smaller"
        )
        raise ValueError(
            f"mask_ratio={mask.mask_ratio}: of {num_tokens} tokens at least one must stay visible and one be "
            f"masked; {choice} patches or larger inputs"
        )


def _shows_and_hides(mask: _Blocks | RandomMask | BlockMask, ratio: float, num_tokens: int) -> bool:
    return 0 < replace(mask, mask_ratio=ratio).num_visible(num_tokens) < num_tokens


def _highest(priority: np.ndarray, count: int) -> np.ndarray:
    """Return (N, T) bool: the ``count`` entries of highest priority in every row."""
    chosen = np.zeros(priority.shape, dtype=bool)
    np.put_along_axis(chosen, np.argpartition(-priority, count - 1, axis=1)[:, :count], True, axis=1)
    return chosen
