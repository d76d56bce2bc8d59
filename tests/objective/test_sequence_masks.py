"""Masks of sequences: exact counts, spans, and padding that is never masked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.objective.masking import RandomMask, SpanMask

MASKS = st.one_of(
    st.builds(RandomMask, st.integers(1, 4), st.floats(0.05, 0.95)),
    st.builds(SpanMask, st.integers(1, 4), st.floats(0.05, 0.95), st.integers(1, 6), st.floats(-0.05, 0.3)),
)


def rngs(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, i)) for i in range(count)]


@settings(max_examples=100, deadline=None)
@given(mask=MASKS, num_tokens=st.integers(8, 80), samples=st.integers(1, 3))
def test_counts_are_exact(mask: RandomMask | SpanMask, num_tokens: int, samples: int) -> None:
    try:
        mask.validate((num_tokens,))
    except ValueError:
        return
    drawn = mask((num_tokens,), rngs(samples))
    assert drawn.shape == (samples * mask.num_masks, num_tokens)
    assert set(drawn.sum(1)) == {num_tokens - mask.num_visible(num_tokens)}


def test_the_released_counts() -> None:
    assert RandomMask(8, 0.48).num_visible(512) == 266
    assert 999 - SpanMask(8, 0.5, 5, 0.05).num_visible(999) == 499
    assert 999 - SpanMask(12, 0.55, 5, 0.1).num_visible(999) == 549


def test_spans_are_longer_than_chance_and_random_masks_are_not() -> None:
    def mean_run(drawn: np.ndarray) -> float:
        starts = (np.diff(drawn.astype(int), prepend=0, axis=1) == 1).sum()
        return drawn.sum() / starts

    assert mean_run(SpanMask(8, 0.5, 5, 0.05)((200,), rngs(40))) > 3.5
    assert mean_run(RandomMask(8, 0.5)((200,), rngs(40))) == pytest.approx(2.0, rel=0.05)
    assert mean_run(SpanMask(8, 0.5, 1, 0.0)((200,), rngs(40))) < 2.3


def test_every_token_is_masked_about_equally_often() -> None:
    drawn = RandomMask(8, 0.3)((50,), rngs(400))
    assert np.abs(drawn.mean(0) - 0.3).max() < 0.05
    inner = SpanMask(8, 0.5, 5, 0.05)((50,), rngs(400)).mean(0)[5:-5]
    assert np.abs(inner - inner.mean()).max() < 0.05


def test_masks_depend_on_their_generator_alone() -> None:
    for mask in (RandomMask(3, 0.5), SpanMask(3, 0.5, 4, 0.1)):
        together = mask((40,), rngs(3))
        alone = mask((40,), [np.random.default_rng((0, 1))])
        assert (together[3:6] == alone).all()
        assert len({row.tobytes() for row in together}) == 9


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (SpanMask(0, 0.5, 3), "num_masks=0"),
        (SpanMask(2, 0.01, 3), "mask_ratio=0.01"),
        (RandomMask(2, 0.99), "mask_ratio=0.99: of 20 tokens"),
        (SpanMask(2, 0.5, 30), "mask_length=30: the token grid is 20; choose 1 to 20"),
        (SpanMask(2, 0.5, 3, -0.6), "mask_ratio_adjust=-0.6"),
    ],
)
def test_errors_name_key_value_and_fix(mask: SpanMask | RandomMask, words: str) -> None:
    with pytest.raises(ValueError) as error:
        mask.validate((20,))
    assert words in str(error.value)
