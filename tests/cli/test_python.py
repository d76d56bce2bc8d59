"""Commands from Python: what they return, what they refuse, and what they leave alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.version import VersionBase
from omegaconf import DictConfig
from omegaconf.errors import ReadonlyConfigError
from packaging.version import Version

import d2v
from d2v.cli.python import words_of


@pytest.fixture
def tiny(runs: ModuleType, images: Path) -> dict[str, Any]:
    """The settings of a tiny run on two classes of images."""
    words = [*runs.TINY, *runs.folder_data(images)]
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.key_or_group: override.value() for override in parsed}  # None for a group that is left out


def test_a_call_is_the_command(
    runs: ModuleType, images: Path, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = runs.pretrain(tmp_path / "typed", *runs.folder_data(images))
    run = d2v.pretrain(tiny, output_dir=tmp_path / "called")
    assert run.folder.parent == tmp_path / "called" / "image_tiny"
    assert "step 4/4  loss" in capsys.readouterr().err
    assert run.metrics["step"] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in runs.metrics(typed)] == [repr(loss) for loss in run.metrics["train/loss"]]
    ours, theirs = run.encoder.state_dict(), d2v.load_encoder(typed).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert run.results == []

    found = d2v.evaluate(checkpoint=run.folder, probe="knn", num_threads=1)
    assert found.folder.parent == run.folder / "evaluate"
    assert [row.name for row in found.results] == ["raw pixels", "untrained encoder", "pretrained encoder, 4 steps"]
    assert found.metrics == {"knn": [row.scores["knn"] for row in found.results]}
    assert found.encoder.embed_dim == 32

    tuned = d2v.finetune(
        {"data.root": images, "labels.augment": {"mixup": 0, "cutmix": 0}, "trainer.max_steps": 2},
        task="image_classification", checkpoint=run.folder, global_batch_size=4, num_threads=1, output_dir=tmp_path,
    )  # fmt: skip
    assert tuned.results[0].metric == "top1"
    assert tuned.results[0].samples == 12

    again = d2v.pretrain(resume=run.folder, trainer={"max_steps": 5})
    assert again.folder == run.folder
    assert again.metrics["step"] == [1, 2, 3, 4, 5]


def test_a_call_leaves_everything_else_alone(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hydra of the notebook goes on, whatever stands in sys.argv; random numbers are as if nothing had happened."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher", "-c", "--cfg", "resume=nowhere"])
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    environment, threads = dict(os.environ), torch.get_num_threads()
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        d2v.pretrain(tiny, output_dir=tmp_path / "out", seed=7, num_threads=2)
        assert compose("mine", overrides=["a=2"]).a == 2
        assert compose("mine", overrides=["+root=2024_10"]).root == 202410  # which d2v reads as a path
        assert VersionBase.instance().getbase() == Version("1.2")
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002
    assert (dict(os.environ), torch.get_num_threads()) == (environment, threads)
    assert HydraConfig.instance().cfg is None
    d2v.pretrain(tiny, output_dir=tmp_path / "out")  # no lock is left, and the next folder is another
    assert len(list((tmp_path / "out" / "image_tiny").iterdir())) == 2


def test_a_composed_configuration_cannot_be_changed(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[DictConfig] = []
    monkeypatch.setattr("d2v.cli.info.info", seen.append)
    monkeypatch.setattr("d2v.cli.evaluate.evaluate", seen.append)
    assert runs.d2v_command("info").status in (0, None)
    d2v.evaluate(checkpoint=tmp_path, output_dir=tmp_path)
    for cfg in seen:
        with pytest.raises(ReadonlyConfigError):
            cfg.checkpoint = "other"
    assert len(seen) == 2


MISTAKES: dict[str, dict[str, Any]] = {
    "a key": {"optim.learning_rate": 1.0},
    "an option": {"data": "imagenets"},
    "a value": {"optim": {"lr": -1.0}},
    "a missing value": {"data": "image_folder"},
    "a folder": {"data": "image_folder", "data.root": "/no/such/folder"},
    "a checkpoint": {"init_from": "/no/such/run"},
    "two modalities": {"data": "samples_speech"},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_exceptions_in_the_words_of_the_command_line(runs: ModuleType, tmp_path: Path, name: str) -> None:
    settings = {**MISTAKES[name], "output_dir": str(tmp_path / "out")}
    typed = runs.d2v_command("pretrain", *words_of(settings))
    assert typed.status == 1
    with pytest.raises(ValueError) as error:
        d2v.pretrain(settings)
    assert f"d2v: error: {error.value}" in typed.err.strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"launcher": "slurm"}, "launcher: is for the command line only"),
        ({"sweep": {"seeds": [0, 1]}}, "sweep: is for the command line only"),
        ({"hydra.run.dir": "x"}, r"hydra\.run\.dir: is for the command line only"),
        ({"resume": "auto"}, "resume=auto: is for the command line"),
        ({"trainer": {"devices": 2}}, r"trainer\.devices=2, .*trains on one device"),
        ({"+trainer.max_steps": 2}, "give a key of the configuration"),
        ({"seed": object()}, "seed: a object is no value"),
    ],
)
def test_what_only_the_command_line_does_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        d2v.pretrain(settings, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_words_mean_the_same_as_settings() -> None:
    settings = {
        "optim": {"lr": 1e-5, "betas": [0.9, 0.98]}, "data": "samples", "resume": None, "compile": True,
        "name": "it's ${x}", "output_dir": Path("a b"), "labels": {}, "list": [{"a": 1, "b": "x"}],
    }  # fmt: skip
    parsed = OverridesParser.create().parse_overrides(list(words_of(settings)))
    assert {override.key_or_group: override.value() for override in parsed} == {
        "optim.lr": 1e-5, "optim.betas": [0.9, 0.98], "data": "samples", "resume": None, "compile": True,
        "name": "it's \\${x}", "output_dir": "a b", "labels": {}, "list": [{"a": 1, "b": "x"}],
    }  # fmt: skip


@pytest.mark.slow
def test_the_lines_of_the_readme_run(repo: Path, tmp_path: Path) -> None:
    code = next(b for b in (repo / "README.md").read_text().split("```python\n") if "d2v.pretrain(exp" in b).split(
        "```"
    )[0]
    code = code.replace("200", "4").replace("20}", "1}")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "top1" in done.stdout
