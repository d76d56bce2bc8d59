"""Inverse block masks: exact counts, independence, and a slow second implementation."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from d2v.objective.masking import InverseBlockMask
from d2v.types import TokenMask

BASE = InverseBlockMask(16, 0.8, 3, 0.07)
LARGE = InverseBlockMask(16, 0.75, 3, 0.1)


def rngs(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("generator", "grid", "visible"),
    [(BASE, (14, 14), 39), (LARGE, (14, 14), 49), (LARGE, (16, 16), 64), (BASE, (8, 8), 12)],
)
def test_released_recipes_keep_the_exact_count(
    generator: InverseBlockMask, grid: tuple[int, int], visible: int
) -> None:
    generator.validate(grid)
    mask = generator(grid, rngs(0, 1, 2))
    assert mask.dtype == np.bool_
    assert mask.shape == (48, prod(grid))
    assert set((~mask).sum(1)) == {visible}
    assert generator.num_visible(prod(grid)) == visible
    TokenMask.from_bool(torch.from_numpy(mask), 16)


grids = st.one_of(
    st.tuples(st.integers(1, 60)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
)


@settings(deadline=None, max_examples=150)
@given(
    grid=grids,
    ratio=st.floats(0.05, 0.98),
    length=st.integers(1, 7),
    adjust=st.floats(0, 0.5),
    num_masks=st.integers(1, 6),
    samples=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_what_validates_gives_exact_counts(
    grid: tuple[int, ...], ratio: float, length: int, adjust: float, num_masks: int, samples: int, seed: int
) -> None:
    generator = InverseBlockMask(num_masks, ratio, length, adjust)
    try:
        generator.validate(grid)
    except ValueError:
        assume(False)
    mask = generator(grid, rngs(*range(seed, seed + samples)))
    num_tokens = prod(grid)
    assert mask.shape == (samples * num_masks, num_tokens)
    assert set((~mask).sum(1)) == {int(num_tokens * (1 - ratio))}
    tokens = TokenMask.from_bool(torch.from_numpy(mask), num_masks)
    together = torch.cat([tokens.ids_keep, tokens.ids_mask], 1)
    assert torch.equal(together.sort(1).values, torch.arange(num_tokens).expand_as(together))
    assert torch.equal(together.gather(1, tokens.ids_restore), torch.arange(num_tokens).expand_as(together))


@settings(deadline=None, max_examples=60)
@given(
    grid=st.tuples(st.integers(3, 10), st.integers(3, 10)),
    num_masks=st.integers(1, 5),
    more=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_mask_m_depends_on_its_generator_and_m_alone(
    grid: tuple[int, int], num_masks: int, more: int, seed: int
) -> None:
    few = InverseBlockMask(num_masks, 0.7, 2, 0.1)(grid, rngs(seed))
    many = InverseBlockMask(num_masks + more, 0.7, 2, 0.1)(grid, rngs(seed + 1, seed, seed + 2))
    of_seed = many.reshape(3, num_masks + more, -1)[1]
    np.testing.assert_array_equal(few, of_seed[:num_masks])


def test_masks_of_a_sample_and_of_different_samples_differ() -> None:
    mask = BASE((14, 14), rngs(0, 1))
    assert len(np.unique(mask, axis=0)) == 32
    np.testing.assert_array_equal(mask, BASE((14, 14), rngs(0, 1)))


def test_global_random_state_is_neither_read_nor_moved() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_before = torch.get_rng_state()
    BASE((14, 14), rngs(0))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_before, torch.get_rng_state())


class Fed:
    """A generator that hands out given numbers."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    def random(self, size: tuple[int, int]) -> np.ndarray:
        assert size == self.numbers.shape
        return self.numbers


def slow_mask(numbers: np.ndarray, grid: tuple[int, ...], num_visible: int, num_blocks: int, length: int) -> np.ndarray:
    """One row: numbers for the block centres, then one for every token."""
    num_tokens = prod(grid)
    cells = list(np.ndindex(*grid))
    in_block = set()
    for u in numbers[:num_blocks]:
        centre = cells[int(u * num_tokens)]
        for step in np.ndindex(*(length,) * len(grid)):
            cell = tuple(
                min(max(c + s - length // 2, 0), size - 1) for c, s, size in zip(centre, step, grid, strict=True)
            )
            in_block.add(cells.index(cell))
    luck = numbers[num_blocks:]
    order = sorted(range(num_tokens), key=lambda t: (t in in_block, luck[t]), reverse=True)
    return np.array([t not in order[:num_visible] for t in range(num_tokens)])


@settings(deadline=None, max_examples=60)
@given(
    grid=st.one_of(st.tuples(st.integers(2, 40)), st.tuples(st.integers(3, 9), st.integers(3, 9))),
    ratio=st.floats(0.3, 0.8),
    length=st.integers(1, 5),
    adjust=st.floats(0, 0.3),
    seed=st.integers(0, 999),
)
def test_matches_a_slow_loop_fed_with_the_same_numbers(
    grid: tuple[int, ...], ratio: float, length: int, adjust: float, seed: int
) -> None:
    assume(length <= min(grid))
    generator = InverseBlockMask(2, ratio, length, adjust)
    num_tokens = prod(grid)
    num_visible = int(num_tokens * (1 - ratio))
    assume(num_visible > 0)
    num_blocks = int(num_tokens * (1 - ratio + adjust) / length ** len(grid))
    numbers = np.random.default_rng(seed).random((2, num_blocks + num_tokens))
    expected = [slow_mask(row, grid, num_visible, num_blocks, length) for row in numbers]
    np.testing.assert_array_equal(generator(grid, [Fed(numbers)]), expected)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("centre", "expected"),
    [
        ((0, 0), {(0, 0), (0, 1), (1, 0), (1, 1)}),
        ((5, 5), {(4, 4), (4, 5), (5, 4), (5, 5)}),
        ((0, 3), {(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)}),
        ((3, 2), {(i, j) for i in (2, 3, 4) for j in (1, 2, 3)}),
    ],
)
def test_blocks_are_clamped_at_the_border(centre: tuple[int, int], expected: set[tuple[int, int]]) -> None:
    """One 3 x 3 block on a 6 x 6 grid of which exactly as many tokens stay visible as the block covers."""
    num_visible = len(expected)
    generator = InverseBlockMask(1, 1 - (num_visible + 0.5) / 36, 3, (9.5 - num_visible - 0.5) / 36)
    numbers = np.random.default_rng(0).random((1, 37))
    numbers[0, 0] = (centre[0] * 6 + centre[1] + 0.5) / 36
    mask = generator((6, 6), [Fed(numbers)])  # type: ignore[list-item]
    assert {(int(i), int(j)) for i, j in np.argwhere(~mask.reshape(6, 6))} == expected


def test_every_token_is_covered_about_equally() -> None:
    visible = np.mean(~InverseBlockMask(200, 0.8, 3, 0.07)((14, 14), rngs(*range(20))), axis=0).reshape(14, 14)
    assert visible.mean() == pytest.approx(39 / 196)
    inside, noise = visible[2:-2, 2:-2], np.sqrt(0.2 * 0.8 / 4000)
    assert np.abs(inside - inside.mean()).max() < 5 * noise
    # Clamping gives border tokens fewer blocks, but none is starved, and no side is preferred.
    assert visible.min() > 0.4 * visible.mean()
    for turned in (visible[::-1], visible[:, ::-1], visible.T):
        assert np.abs(visible - turned).max() < 7 * noise


def visible_neighbours(mask: np.ndarray) -> float:
    """Visible neighbours, of four, of a visible token, on average."""
    grid = np.pad(~mask.reshape(-1, 14, 14), ((0, 0), (1, 1), (1, 1)))
    centre = grid[:, 1:-1, 1:-1]
    count = grid[:, :-2, 1:-1] + 0 + grid[:, 2:, 1:-1] + grid[:, 1:-1, :-2] + grid[:, 1:-1, 2:]
    return float(count[centre].mean())


def test_visible_tokens_lie_in_blocks() -> None:
    blocks = visible_neighbours(BASE((14, 14), rngs(*range(10))))
    scattered = visible_neighbours(InverseBlockMask(16, 0.8, 1, 0.07)((14, 14), rngs(*range(10))))
    assert scattered == pytest.approx(4 * 13 / 14 * 38 / 195, rel=0.1)  # as if drawn without any block
    assert blocks > 2.2 * scattered


def test_no_room_for_a_block_leaves_a_random_mask_with_the_exact_count() -> None:
    mask = InverseBlockMask(4, 0.8, 4, 0.0)((4, 4), rngs(0))
    assert set((~mask).sum(1)) == {3}


@pytest.mark.parametrize(
    ("generator", "grid", "words"),
    [
        (InverseBlockMask(0, 0.8, 3), (14, 14), ("num_masks=0", "choose 1 to 196")),
        (InverseBlockMask(-2, 0.8, 3), (14, 14), ("num_masks=-2", "choose")),
        (InverseBlockMask(4, 0.0, 3), (14, 14), ("mask_ratio=0.0", "choose a ratio")),
        (InverseBlockMask(4, 1.0, 3), (14, 14), ("mask_ratio=1.0", "choose a ratio")),
        (InverseBlockMask(4, float("nan"), 3), (14, 14), ("mask_ratio=nan", "choose a ratio")),
        (InverseBlockMask(2, 0.8, 1), (2, 2), ("mask_ratio=0.8", "4 tokens", "smaller patches")),
        (InverseBlockMask(4, 0.8, 15), (14, 20), ("mask_length=15", "14x20", "choose 1 to 14")),
    ],
)
def test_validate_names_the_key_the_value_and_the_fix(
    generator: InverseBlockMask, grid: tuple[int, int], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as error:
        generator.validate(grid)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("grid", [(14, 14), (2, 5), (3, 3)])
def test_the_ratio_that_validate_recommends_works(grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError) as error:
        InverseBlockMask(1, 0.999, 1).validate(grid)
    recommended = float(str(error.value).partition("up to ")[2].partition(",")[0])
    InverseBlockMask(1, recommended, 1).validate(grid)


@pytest.mark.parametrize("adjust", [-0.9, float("nan")])
def test_validate_refuses_an_adjustment_that_cannot_work(adjust: float) -> None:
    with pytest.raises(ValueError, match=r"mask_ratio_adjust"):
        InverseBlockMask(4, 0.8, 3, adjust).validate((14, 14))


def test_a_slightly_negative_adjustment_works() -> None:
    assert set((~InverseBlockMask(4, 0.8, 3, -0.1)((14, 14), rngs(0))).sum(1)) == {39}
