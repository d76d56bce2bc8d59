"""Sine-cosine positions against numpy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2v.nn.positions import sincos_1d, sincos_2d


@pytest.mark.parametrize(("grid", "dim"), [((14, 14), 768), ((3, 5), 16), ((1, 7), 4), ((4, 2), 40)])
def test_matches_loops(grid: tuple[int, int], dim: int) -> None:
    expected = np.zeros((grid[0] * grid[1], dim))
    quarter = dim // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(quarter):
                wavelength = 10000 ** (i / quarter)
                token = row * grid[1] + column
                expected[token, i] = np.sin(column / wavelength)
                expected[token, quarter + i] = np.cos(column / wavelength)
                expected[token, 2 * quarter + i] = np.sin(row / wavelength)
                expected[token, 3 * quarter + i] = np.cos(row / wavelength)
    result = sincos_2d(grid, dim)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-7)


def test_the_column_varies_in_the_first_half_and_the_row_in_the_second() -> None:
    table = sincos_2d((3, 5), 16).view(3, 5, 16)
    assert torch.equal(table[:, :, :8], table[:1, :, :8].expand(3, -1, -1))
    assert torch.equal(table[:, :, 8:], table[:, :1, 8:].expand(-1, 5, -1))
    assert not torch.equal(table[0, 0, :8], table[0, 1, :8])
    assert not torch.equal(table[0, 0, 8:], table[1, 0, 8:])


def test_positions_are_distinct() -> None:
    table = sincos_2d((16, 16), 32)
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 1e-3


def test_one_dimension_has_sines_then_cosines() -> None:
    table = sincos_1d(torch.arange(4), 6)
    assert table.dtype == torch.float64
    assert table[0].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(table[1, 0], torch.sin(torch.tensor(1.0, dtype=torch.float64)))


@pytest.mark.parametrize("dim", [6, 15, 770])
def test_a_width_that_cannot_be_split_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=rf"dim={dim}: .*multiple of 4"):
        sincos_2d((2, 2), dim)
