"""Which tokens the student has to predict: data2vec 2.0 (arXiv:2212.07525), sec. 3.3, "inverse block masking".

Masks are drawn on the CPU, in the data workers, from a generator of their own for every (seed, epoch, sample), so a
run's masks do not depend on the number of workers, devices or micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np


class MaskGenerator(Protocol):
    """Draws ``num_masks`` masks a sample, all with the same number of masked tokens."""

    num_masks: int

    def validate(self, grid: tuple[int, ...]) -> None:
        """Raise ValueError, naming the config key and the fix, if no such mask exists on this grid."""

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """(len(rngs) * num_masks, prod(grid)) bool, True = masked, sample-major."""


@dataclass(frozen=True)
class InverseBlockMask:
    """Keep random blocks and mask everything else, with an exact count.

    Block centres are drawn uniformly, with replacement; a block that reaches over the border is clamped to it. Then
    tokens are added to or removed from what is kept, at random, until exactly ``num_visible`` remain.

    Attributes:
        num_masks: M, masks per sample.
        mask_ratio: share of tokens to mask, in (0, 1); int(T * (1 - mask_ratio)) tokens stay visible.
        mask_length: side of a block in tokens, in every dimension of the grid.
        mask_ratio_adjust: added to the share of tokens to keep when counting blocks, to offset their overlap.
    """

    num_masks: int = 16
    mask_ratio: float = 0.8
    mask_length: int = 3
    mask_ratio_adjust: float = 0.07

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that stay visible out of ``num_tokens``."""
        return int(num_tokens * (1 - self.mask_ratio))

    def validate(self, grid: tuple[int, ...]) -> None:
        """Raise ValueError, naming the config key and the fix, if no such mask exists on this grid."""
        num_tokens = prod(grid)
        if not 1 <= self.num_masks <= num_tokens:
            raise ValueError(
                f"mask.num_masks={self.num_masks}: a sample has {num_tokens} tokens; choose 1 to {num_tokens} masks"
            )
        if not 0 < self.mask_ratio < 1 or not 0 < self.num_visible(num_tokens) < num_tokens:
            raise ValueError(
                f"mask.mask_ratio={self.mask_ratio}: of {num_tokens} tokens at least one must stay visible and one be "
                f"masked; choose a ratio up to {self._highest_ratio(num_tokens):.3f}, smaller patches or larger inputs"
            )
        if not self.mask_ratio - 1 <= self.mask_ratio_adjust <= 1:
            raise ValueError(
                f"mask.mask_ratio_adjust={self.mask_ratio_adjust}: choose {self.mask_ratio - 1:.3f} (no blocks) to 1"
            )
        if not 1 <= self.mask_length <= min(grid):
            raise ValueError(
                f"mask.mask_length={self.mask_length}: the token grid is {'x'.join(map(str, grid))}; "
                f"choose 1 to {min(grid)}"
            )

    @staticmethod
    def _highest_ratio(num_tokens: int) -> float:
        """The highest ratio in thousandths that leaves a token visible."""
        return max(n / 1000 for n in range(1000) if int(num_tokens * (1 - n / 1000)) > 0)

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """(len(rngs) * num_masks, prod(grid)) bool, True = masked, sample-major.

        Mask m of a sample depends on its generator and on m alone, not on ``num_masks`` or on other samples.
        """
        num_tokens, num_visible = prod(grid), self.num_visible(prod(grid))
        keep_ratio = 1 - self.mask_ratio + self.mask_ratio_adjust
        num_blocks = max(0, int(num_tokens * keep_ratio / self.mask_length ** len(grid)))
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

        priority = in_block + uniform[:, num_blocks:]  # tokens of a block first, ties broken at random
        kept = np.argpartition(-priority, num_visible - 1, axis=1)[:, :num_visible]
        mask = np.ones((len(uniform), num_tokens), dtype=bool)
        np.put_along_axis(mask, kept, False, axis=1)
        return mask
