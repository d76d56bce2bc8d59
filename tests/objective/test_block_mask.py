"""BEiT's masks of rectangles: exact counts, shapes, independence of other samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.objective.masking import BlockMask


def rngs(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


@pytest.mark.parametrize(("ratio", "masked"), [(0.6122, 120), (75 / 196, 75), (0.4, 78)])
def test_the_released_counts(ratio: float, masked: int) -> None:
    mask = BlockMask(1, ratio, 16, 0.3)
    mask.validate((14, 14))
    assert mask.num_visible(196) == 196 - masked
    assert set(mask((14, 14), rngs(*range(20))).sum(1)) == {masked}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 16), st.integers(2, 16), st.integers(1, 3), st.floats(0.2, 0.8), st.integers(1, 4), st.integers(0, 9)
)
def test_every_view_masks_as_many(rows: int, columns: int, masks: int, ratio: float, block: int, seed: int) -> None:
    mask = BlockMask(masks, ratio, block, 0.3)
    if not 0 < mask.num_visible(rows * columns) < rows * columns:
        return
    drawn = mask((rows, columns), rngs(seed, seed + 1))
    assert drawn.shape == (2 * masks, rows * columns)
    assert set(drawn.sum(1)) == {rows * columns - mask.num_visible(rows * columns)}


def test_a_sample_does_not_depend_on_the_others() -> None:
    mask = BlockMask(2, 0.5, 4, 0.3)
    both = mask((8, 8), rngs(3, 4))
    np.testing.assert_array_equal(both[2:], mask((8, 8), rngs(4)))
    np.testing.assert_array_equal(both, mask((8, 8), rngs(3, 4)))
    assert (both[0] != both[1]).any()


def test_masked_patches_lie_together() -> None:
    """Of a masked patch's right neighbours far more are masked than of scattered ones."""
    blocks = BlockMask(1, 0.4, 16, 0.3)((14, 14), rngs(*range(40))).reshape(-1, 14, 14)
    together = blocks[:, :, 1:][blocks[:, :, :-1]].mean()
    assert together > 0.7
    assert blocks.mean(0).min() > 0  # nowhere never


def test_errors_name_key_and_fix() -> None:
    with pytest.raises(ValueError, match="mask=block masks rectangles of a grid: for sequences use mask=span"):
        BlockMask().validate((100,))
    with pytest.raises(ValueError, match=r"min_block=197: a sample has 196 tokens; choose 1"):
        BlockMask(min_block=197).validate((14, 14))
    with pytest.raises(ValueError, match=r"mask_ratio=0\.001"):
        BlockMask(mask_ratio=0.001).validate((4, 4))


def test_rectangles_lie_and_stand_equally_often() -> None:
    """One rectangle a mask: its sides are those of the masked rows and columns."""
    blocks = BlockMask(1, 0.12, 24, 0.3)((14, 14), rngs(*range(1500))).reshape(-1, 14, 14)
    heights, widths = blocks.any(2).sum(1), blocks.any(1).sum(1)
    lying, standing = (heights < widths).mean(), (heights > widths).mean()
    assert lying == pytest.approx(standing, abs=0.06)
    assert min(lying, standing) > 0.3
