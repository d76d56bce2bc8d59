"""How many samples may be bad."""

from __future__ import annotations

import pytest

from d2v.data.bad_samples import BadSampleCounter, TooManyBadSamples, tolerated


@pytest.mark.parametrize(
    ("fraction", "size", "most"),
    [
        (0.01, 10_000, 100),
        (0.01, 301, 3.01),
        (0.01, 200, 3),  # a share of 2, but three are few
        (0.01, 12, 3),
        (0.01, 11, 2),  # a quarter
        (0.01, 8, 2),
        (0.01, 7, 1),
        (0.01, 1, 1),
        (0.5, 10, 5),
        (0, 10_000, 0),  # none means none
    ],
)
def test_a_share_and_a_number(fraction, size, most):
    assert tolerated(fraction, size) == pytest.approx(most)
    counter = BadSampleCounter(fraction, size)
    counter.update([f"{i}: bad" for i in range(int(most))])
    with pytest.raises(TooManyBadSamples):
        counter.update(["one more: bad"])


def test_bad_samples_found_at_once_are_listed_at_once():
    with pytest.raises(TooManyBadSamples, match="They are:") as error:
        BadSampleCounter(0.01, 20).update([f"{i}: empty file" for i in range(9)])
    assert all(f"\n  {i}: empty file" in str(error.value) for i in range(9))
    with pytest.raises(TooManyBadSamples, match="The first 20 are:"):
        BadSampleCounter(0.01, 50).update([f"{i}: empty file" for i in range(30)])
