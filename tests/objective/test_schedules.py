"""Schedules are pure functions of the step."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v.objective.schedules import cosine, ema_decay, tri_stage, warmup_cosine, warmup_linear


@pytest.mark.parametrize("name", ["image_base", "image_variant"])
def test_decay_is_the_references(golden_dir: Path, name: str) -> None:
    spec = json.loads((golden_dir / f"{name}.json").read_text())
    start, end, steps = (spec["overrides"][k] for k in ("ema_decay", "ema_end_decay", "ema_anneal_end_step"))
    ours = [ema_decay(step, start, end, steps) for step in range(1, 6)]
    assert ours == pytest.approx(spec["ema_decay_after_step"], rel=1e-12)


def test_decay_at_the_ends() -> None:
    assert ema_decay(0, 0.9998, 0.99999, 100_000) == 0.9998
    assert ema_decay(50_000, 0.9998, 0.99999, 100_000) == pytest.approx(0.999895)
    assert ema_decay(100_000, 0.9998, 0.99999, 100_000) == 0.99999
    assert ema_decay(10**9, 0.9998, 0.99999, 100_000) == 0.99999
    assert ema_decay(300_000, 0.9998, 1.0, 300_000) == 1.0
    assert ema_decay(0, 0.5, 0.9, 0) == 0.9


@given(start=st.floats(0, 1), end=st.floats(0, 1), anneal=st.integers(1, 10**6), step=st.integers(0, 2 * 10**6))
def test_decay_stays_between_its_ends(start: float, end: float, anneal: int, step: int) -> None:
    decay = ema_decay(step, start, end, anneal)
    assert min(start, end) - 1e-12 <= decay <= max(start, end) + 1e-12
    assert 0 <= decay <= 1  # what update_teacher takes
    assert decay == ema_decay(step, start, end, anneal)


def test_warmup_and_cosine_at_the_ends() -> None:
    assert warmup_cosine(0, 10, 110) == 0
    assert warmup_cosine(5, 10, 110) == 0.5
    assert warmup_cosine(10, 10, 110) == 1
    assert warmup_cosine(60, 10, 110) == pytest.approx(0.5)
    assert warmup_cosine(35, 10, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert warmup_cosine(110, 10, 110) == pytest.approx(0, abs=1e-15)
    assert warmup_cosine(500, 10, 110) == pytest.approx(0, abs=1e-15)
    assert warmup_cosine(110, 10, 110, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(60, 10, 110, 0.1) == pytest.approx(0.55)
    assert warmup_cosine(0, 0, 100) == 1
    assert warmup_cosine(50, 100, 100) == 0.5


@given(warmup=st.integers(0, 200), extra=st.integers(1, 500), least=st.floats(0, 1))
def test_the_factor_rises_then_falls_within_its_bounds(warmup: int, extra: int, least: float) -> None:
    factors = [warmup_cosine(step, warmup, warmup + extra, least) for step in range(warmup + extra + 5)]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    assert all(a < b for a, b in pairwise(factors[: warmup + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[warmup:]))
    assert factors[warmup] == pytest.approx(1)
    assert factors[-1] == pytest.approx(least, abs=1e-12)


def test_a_resumed_run_sees_the_same_values_in_any_order() -> None:
    steps = [7, 3, 3, 99, 0, 42]
    for schedule in (lambda s: ema_decay(s, 0.9, 0.99, 50), lambda s: warmup_cosine(s, 10, 90, 0.01)):
        forwards = {s: schedule(s) for s in range(100)}
        assert [schedule(s) for s in steps] == [forwards[s] for s in steps]


def test_linear_warm_up_and_decay_by_hand() -> None:
    assert [warmup_linear(step, 0.1, 100) for step in (0, 5, 10, 55, 100, 200)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert warmup_linear(100, 0.1, 100, min_factor=0.2) == pytest.approx(0.2)
    assert warmup_linear(0, 0.0, 100) == 1
    assert [cosine(step, 0.1, 110) for step in (0, 5, 60)] == [warmup_cosine(step, 11, 110) for step in (0, 5, 60)]


def test_three_stages_by_hand() -> None:
    factors = [tri_stage(step, 100) for step in (0, 5, 10, 49, 50, 75, 100, 200)]
    assert factors == pytest.approx([0.01, 0.505, 1, 1, 1, 0.05**0.5, 0.05, 0.05])
    assert tri_stage(0, 100, warmup_fraction=0.0) == 1
    assert all(a >= b for a, b in pairwise(tri_stage(step, 100) for step in range(10, 101)))
