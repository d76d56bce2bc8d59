"""What the comparison with committed figures says, and that the committed ones are those it makes."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bench() -> Any:
    return importlib.import_module("run")


def test_what_is_slower_is_named(bench: Any) -> None:
    committed = {"step": 0.8, "loading": 10.0, "gone": 1.0}
    rows, fallen = bench.compared({"step": 0.79, "loading": 7.9, "new": 2.0}, committed)
    assert fallen == ["loading", "gone"]
    by_name = {row[0]: row for row in rows}
    assert by_name["step"][1:] == ["0.800", "0.790", "0.99", ""]
    assert by_name["loading"][-1] == "slower"
    assert (by_name["gone"][-1], by_name["new"][-1]) == ("gone", "new")
    assert bench.compared({"a": float("nan"), "b": -5.0}, {"a": 1.0, "b": 1.0})[1] == ["a", "b"]


def test_shares_are_rates_over_the_products(bench: Any) -> None:
    seconds = {
        name: {"median": 0.5} for name in ("teacher", "student", "decoder", "backward", "clipping", "optimizer", "ema")
    }
    flops = {"teacher": 10.0, "student": 20.0, "decoder": 5.0, "backward": 40.0}
    result = {
        "gemm_flops_per_s": {"median": 100.0}, "share_of_gemm": {"median": 0.3}, "seconds": seconds, "flops": flops,
        "parameters": 50,
    }  # fmt: skip
    assert bench.shares(result) == {
        "step": 0.3, "teacher": 0.2, "student": 0.4, "decoder": 0.1, "backward": 0.8,
        "updates, parameters a kFLOP": 1000 * 50 / (1.5 * 100.0),
    }  # fmt: skip


def test_committed_figures_are_of_the_cases_that_are_measured(bench: Any) -> None:
    committed = json.loads(bench.COMMITTED.read_text())
    assert committed["machine"]["cpu"]
    for recipe, _ in bench.CASES:
        for precision in ("32-true", "bf16-mixed"):
            assert 0 < committed["figures"][f"{recipe} {precision} step"] < 1.5
            assert committed["figures"][f"{recipe} {precision} updates, parameters a kFLOP"]
    for probe in ("knn", "linear"):
        assert committed["figures"][f"{bench.PRETRAINED}, {probe} points gained in {bench.LEARNING_STEPS} steps"] > 0
    for recipe in bench.data.DEFAULT_RECIPES:
        assert committed["figures"][f"{recipe} samples loaded, one core"]
    assert all(value > 0 for value in committed["figures"].values())
