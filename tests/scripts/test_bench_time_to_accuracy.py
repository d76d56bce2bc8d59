"""Time to accuracy: when curves pass a mark, and a study from end to end."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def bench() -> Any:
    return importlib.import_module("time_to_accuracy")


def _squeezed(text: str) -> str:
    """Tables without their padding."""
    return re.sub(" +", " ", text)


def test_a_curve_passes_a_mark_between_its_budgets_along_the_logarithm(bench: Any) -> None:
    curve = [(40.0, 50.0), (160.0, 54.0)]
    assert bench.seconds_to(curve, 52.0) == "80"
    assert bench.seconds_to(curve, 50.0) == "40"
    assert bench.seconds_to(curve, 49.0) == "< 40"
    assert bench.seconds_to(curve, 54.0) == "160"
    assert bench.seconds_to(curve, 54.2) == "> 160"


def test_a_curve_that_falls_passes_once(bench: Any) -> None:
    assert bench.seconds_to([(10.0, 50.0), (20.0, 48.0), (40.0, 52.0)], 50.0) == "10"
    assert bench.seconds_to([(10.0, 50.0), (20.0, 48.0), (40.0, 52.0)], 51.0) == "34"


def test_tables_have_means_over_seeds(bench: Any) -> None:
    scores = [bench.Score("a", 10.0, seed, 5, linear, 0.25) for seed, linear in enumerate((0.5, 0.52, 0.54))]
    scores.append(bench.Score("b", 20.0, 0, 7, 0.52, 0.3))
    assert "| a | 10 | 5 | 52.0 ± 2.0 | 25.0 ± 0.0 |" in _squeezed(bench.score_table(scores))
    assert "| 52.0 | 10 | 20 |" in _squeezed(bench.time_table(scores))


@pytest.mark.parametrize("study", ["methods", "masks", "layers", "widths", "candidates"])
def test_studies_compose(bench: Any, study: str) -> None:
    from common import compose_recipe

    for name, overrides in bench.STUDIES[study].items():
        assert bench.slug(name).isidentifier() or bench.slug(name)[0].isdigit()  # a comma would end the folder's name
        recipe, *rest = overrides
        assert compose_recipe(recipe.removeprefix("experiment="), rest).model


def test_a_third_split_parts_the_training_images_once(bench: Any, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "train" / label / f"{i}.png").write_bytes(f"{label}{i}".encode())
    for _ in range(2):  # the second time from links that are there
        folder = bench.third_split(tmp_path / "train", tmp_path / "images")
        parts = {
            part: sorted(path.read_bytes() for path in folder.glob(f"{part}/*/*.png")) for part in ("train", "val")
        }
        assert [len(parts["train"]), len(parts["val"])] == [16, 4]
        assert sorted(parts["train"] + parts["val"]) == sorted(f"{x}{i}".encode() for x in "ab" for i in range(10))
    assert all(path.read_bytes().decode()[0] == path.parent.name for path in folder.glob("*/*/*.png"))


@pytest.mark.slow
def test_a_study_from_end_to_end(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(12):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
                image.save(tmp_path / part / label / f"{number}.png")
    output = tmp_path / "out"
    output.mkdir()
    (output / "rates.json").write_text('{"tiny": 4.0}')  # else fifty steps, twice
    small = ["model.encoder.embed_dim=32", "model.decoders.image.decoder_dim=32", "global_batch_size=4"]
    monkeypatch.setattr(bench, "STUDIES", {"one": {"tiny": ["experiment=image_tiny32", "mask.num_masks=1"]}})
    command = ["bench", "one", str(tmp_path), "--seeds", "3", "--output", str(output), *small]
    monkeypatch.setattr("sys.argv", [*command, "--budgets", "2"])
    bench.main()
    assert "| tiny | 2 | 8 |" in _squeezed(capsys.readouterr().out)
    (score,) = json.loads((output / "scores.json").read_text())["scores"]
    assert (score["seed"], score["steps"], score["budget"]) == (3, 8, 2.0)
    assert 0 <= score["knn"] <= 1
    assert (output / "one.png").exists()

    monkeypatch.setattr(bench, "run_d2v", lambda *arguments: pytest.fail(f"run again: {arguments}"))
    monkeypatch.setattr("sys.argv", [*command, "--steps", "8"])  # as many as before
    bench.main()
    monkeypatch.setattr("sys.argv", [*command, "--steps", "9"])  # the same in whole seconds, but another run
    with pytest.raises(pytest.fail.Exception, match="max_steps=9"):
        bench.main()
    monkeypatch.setattr("sys.argv", [*command, "--steps", "0"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--steps 0: at least 8" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command, "global_batch_size=8"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "other overrides" in capsys.readouterr().err
