"""Masks on the grid of a spectrogram are those of EAT in number, and in where they leave tokens visible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from d2v.objective.masking import InverseBlockMask

CASES = [
    "base, 1024 frames", "large, 1024 frames", "base, 512 frames", "base, 128 frames", "other", "other blocks of 5",
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_counts_and_rates_of_visible_tokens(golden_dir: Path, name: str) -> None:
    spec = json.loads((golden_dir / "eat_front.json").read_text())
    case = spec["masks"][name]
    grid = tuple(case["grid"])
    generator = InverseBlockMask(40, case["mask_prob"], case["mask_length"], case["mask_prob_adjust"])
    draws = spec["visible_rate_draws"]
    mask = generator(grid, [np.random.default_rng([0, i]) for i in range(draws // 40)])
    assert mask.shape == (draws, case["masked"] + case["visible"])
    assert (mask.sum(1) == case["masked"]).all()
    ours = 1 - mask.mean(0)
    theirs = load_file(golden_dir / "eat_front.safetensors")[f"visible_rate/{name}"].flatten().numpy()
    error = (2 * theirs * (1 - theirs) / draws) ** 0.5  # of the difference of two rates
    assert (np.abs(ours - theirs) < 4.5 * error).all()


def test_every_case_is_here(golden_dir: Path) -> None:
    assert json.loads((golden_dir / "eat_front.json").read_text())["masks"].keys() == set(CASES)
