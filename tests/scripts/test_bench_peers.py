"""Comparison with other libraries: equal budgets, results that are kept, learning rates chosen on a third split."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def bench() -> Any:
    return importlib.import_module("peers")


@pytest.fixture(scope="module")
def methods() -> Any:
    return importlib.import_module("methods")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """train/ and val/ with two classes of twelve images each."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(20):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


class Recorded:
    """Stands for ``Commands``: answers by a function of the cell, and remembers the cells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bench: Any, answer: Any) -> None:
        self.cells: list[dict[str, Any]] = []

        def run(command: Sequence[str], environment: Any) -> str:
            cell = json.loads(command[-1])
            self.cells.append(cell)
            return json.dumps(answer(cell))

        monkeypatch.setattr(bench, "Commands", lambda: type("Commands", (), {"run": staticmethod(run)}))


def test_rates_are_the_best_of_turns_and_measured_once(
    bench: Any, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(monkeypatch, bench, lambda cell: {"steps_per_s": 10.0 + cell["seed"]})
    study = bench.Study(tmp_path / "out", images, "cpu", 1)
    assert study.rates(["a", "b"]) == {"a": 11.0, "b": 11.0}
    assert [cell["method"] for cell in recorded.cells] == ["a", "b", "a", "b"]  # in turns
    assert study.rates(["b"]) == {"b": 11.0}
    assert len(recorded.cells) == 4
    assert bench.steps_of(11.0, 40.0) == 440
    assert bench.steps_of(0.1, 1.0) == bench.MIN_STEPS


def test_every_method_tries_the_same_learning_rates_on_a_third_split(
    bench: Any, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"a": bench.LEARNING_RATES[0], "b": bench.LEARNING_RATES[2]}
    recorded = Recorded(
        monkeypatch, bench, lambda cell: {"linear": 0.9 if cell["lr"] == best[cell["method"]] else 0.5, "knn": 0.1}
    )
    study = bench.Study(tmp_path / "out", images, "cpu", 1)
    assert study.chosen(["a", "b"], {"a": 8, "b": 9}) == best
    assert sorted((c["method"], c["lr"], c["steps"]) for c in recorded.cells) == [
        (name, lr, steps) for name, steps in (("a", 8), ("b", 9)) for lr in bench.LEARNING_RATES
    ]
    (root,) = {cell["root"] for cell in recorded.cells}
    held_out = {path.resolve() for path in Path(root).glob("val/*/*")}
    assert len(held_out) == 8  # a fifth of the training images
    assert all(path.is_relative_to(images / "train") for path in held_out)


def test_a_result_is_kept_for_the_same_cell_alone(
    bench: Any, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(monkeypatch, bench, lambda cell: {"linear": 0.5, "knn": 0.1})
    study = bench.Study(tmp_path / "out", images, "cpu", 1)
    cell = bench.Cell("a", str(images), 1e-3, 8, 0, "cpu")
    assert study.result(cell) == study.result(cell)
    assert len(recorded.cells) == 1
    for other in ({"seed": 1}, {"steps": 9}, {"lr": 2e-3}, {"root": str(tmp_path)}, {"device": "cuda"}):
        study.result(dataclasses.replace(cell, **other))
    assert len(recorded.cells) == 6


@pytest.mark.parametrize("name", ["d2v: data2vec 2.0", "d2v: autoencoder"])
def test_our_methods_train_and_are_probed(
    bench: Any, methods: Any, images: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(bench, "RATE_FIRST", 1)
    small = ["global_batch_size=4", "model.encoder.embed_dim=32", "model.encoder.num_heads=2"]
    compose = methods.compose_recipe
    monkeypatch.setattr(methods, "compose_recipe", lambda recipe, words: compose(recipe, [*words, *small]))
    result = bench.measure(bench.Cell(name, str(images), 1e-3, 8, 0, "cpu"))
    again = bench.measure(bench.Cell(name, str(images), 1e-3, 8, 0, "cpu"))
    assert result["loss"] == again["loss"]
    assert 0 <= result["linear"] <= 1
    assert 0 <= result["knn"] <= 1
    assert result["steps_per_s"] > 0


def test_batches_hold_every_image_once_an_epoch(methods: Any, images: Path) -> None:
    seen = methods.Images(
        methods.recipe(methods.RECIPE, str(images)), 0, transform=lambda image: int(np.array(image).sum())
    )
    batches = methods.endless(seen, 8, seed=0)
    epochs = [torch.cat([next(batches) for _ in range(5)]).tolist() for _ in range(2)]
    assert len(epochs[0]) == 40
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_a_loss_that_is_not_finite_is_an_error(methods: Any) -> None:
    weight = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(weight.parameters(), fused=True)
    method = methods.Method(
        weight, optimizer, iter([torch.zeros(1, 1)] * 2), lambda x, step: weight(x).sum() / 0, lambda x: x
    )
    with pytest.raises(FloatingPointError, match="after 2 steps"):
        methods.train(method, 2, lambda step: 1.0, 0, torch.device("cpu"), lambda: torch.autocast("cpu", enabled=False))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: needs folders train/ and val/"),
        ([], "needs folders"),
        (["IMAGES", "--methods", "99"], "--methods 99"),
    ],
)
def test_wrong_words_are_named(
    bench: Any, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["peers.py", *(str(images) if word == "IMAGES" else word for word in words)])
    with pytest.raises(SystemExit):
        bench.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Data2Vec", "Data2Vec, d2v's EMA", "MAE", "I-JEPA", "LeJEPA"])
def test_stable_pretraining_trains(methods: Any, images: Path, name: str) -> None:
    pytest.importorskip("stable_pretraining")
    before, after = _features_around_training(methods, images, f"stable-pretraining: {name}")
    assert after.shape == before.shape == (2, 256)
    assert not torch.equal(before, after)


def test_lightly_trains(methods: Any, images: Path) -> None:
    pytest.importorskip("lightly")
    before, after = _features_around_training(methods, images, "lightly: MAE")
    assert after.shape == before.shape == (2, 256)
    assert not torch.equal(before, after)


def _features_around_training(methods: Any, images: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    method = methods.METHODS[name](str(images), 1e-3, 2, 0, torch.device("cpu"))
    off = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    method.model.eval()  # nothing is masked or dropped
    before = method.encode(torch.zeros(2, 3, 32, 32)).detach().clone()
    method.model.train()
    methods.train(method, 2, lambda step: 1.0, 0, torch.device("cpu"), off)
    method.model.eval()
    return before, method.encode(torch.zeros(2, 3, 32, 32))
