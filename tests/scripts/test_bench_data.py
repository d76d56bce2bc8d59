"""The benchmark of loading and masking runs on what ships and on a folder of images."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize("recipe", ["image_tiny", "speech_tiny"])
def test_samples_that_ship(bench_data: ModuleType, recipe: str) -> None:
    result = bench_data.measure(recipe, [], workers=[0], seconds=0.05, repeats=2)
    assert all(rate > 0 for rate in result["samples_per_s"]["0"]["values"])
    costs = {name: spread["median"] for name, spread in result["seconds_per_sample"].items()}
    assert costs.keys() == {"load", "masks", "indices", "batch"}
    assert min(costs.values()) > 0


@pytest.mark.slow
def test_a_folder_of_images_from_the_command_line(
    bench_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
    words = ["--images", str(tmp_path), "global_batch_size=4", "--workers", "0", "1", "--seconds", "0.1"]
    monkeypatch.setattr("sys.argv", ["data.py", *words, "--json", str(tmp_path / "out" / "data.json")])
    bench_data.main()
    (result,) = json.loads((tmp_path / "out" / "data.json").read_text())["results"]
    assert result["inputs"] == [4, 3, 224, 224]
    assert result["samples_per_s"].keys() == {"0", "1"}
    assert "| workers |" in capsys.readouterr().out
