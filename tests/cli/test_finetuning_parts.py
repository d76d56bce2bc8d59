"""What a fine-tuning run resolves to: a whole configuration, made once, that changes nothing it was made of."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from d2v.cli import finetuning
from d2v.cli.commands import options
from d2v.cli.finetuning import Parts, build_parts
from d2v.interop.build import build
from d2v.interop.native import RunCheckpoint


@pytest.fixture(scope="module")
def pretrained(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = runs.pretrain(tmp_path_factory.mktemp("run"), *runs.folder_data(images), "trainer.max_steps=1")
    return folder


def parts_of(cfg: DictConfig, before: RunCheckpoint | None = None) -> Parts:
    """The parts, with a check that the composed configuration stays as it is."""
    composed = OmegaConf.to_container(cfg, resolve=False)
    made = build_parts(cfg, before)
    assert OmegaConf.to_container(cfg, resolve=False) == composed
    return made


WORDS = [
    "task=image_classification", "trainer.max_steps=null", "epochs=2", "global_batch_size=4", "optim.layer_decay=1",
    "data.label_fraction=0.5", "encoder.drop_rate=0.25",
]  # fmt: skip


def test_a_run_of_a_trained_encoder_is_resolved_whole(runs: ModuleType, images: Path, pretrained: Path) -> None:
    with runs.configuration("finetune", *WORDS, *runs.folder_data(images), f"checkpoint={pretrained}") as cfg:
        made = parts_of(cfg)
    assert made.config["trainer"]["max_steps"] == 2 * made.data.size / 4 == 6
    assert made.config["label_fraction"] == 0.5
    assert "label_fraction" not in made.config["data"]
    assert made.config["data"]["patch_size"] == 7  # the checkpoint's
    encoder = made.config["model"]["encoder"]
    assert (encoder["embed_dim"], encoder["drop_rate"]) == (32, 0.25)
    torch.manual_seed(0)
    rebuilt = build(made.config["model"], key="model").state_dict()
    assert {name: p.shape for name, p in rebuilt.items()} == {n: p.shape for n, p in made.model.state_dict().items()}
    assert made.trained is not None
    for name, weight in made.trained.encoder.state_dict().items():
        assert torch.equal(made.model.encoder.state_dict()[name], weight), name
    with pytest.raises(FrozenInstanceError):
        made.config = {}  # type: ignore[misc]


def test_a_run_that_goes_on_leaves_its_checkpoint_as_it_was(
    runs: ModuleType, images: Path, pretrained: Path, tmp_path: Path
) -> None:
    words = [*WORDS, "num_threads=1", "trainer.accelerator=cpu", "trainer.precision=32-true", *runs.folder_data(images)]
    result = runs.d2v_command(
        "finetune",
        *words,
        f"checkpoint={pretrained}",
        f"hydra.run.dir={tmp_path}",
        "trainer.max_steps=2",
        "epochs=null",
    )
    assert result.status in (0, None), result.err
    before = RunCheckpoint.load(tmp_path / "checkpoints" / "step-00000002.ckpt")
    stored = copy.deepcopy(before.config)
    words = [f"resume={tmp_path}", "task=image_classification", "trainer.max_steps=5", "optim.layer_decay=1"]
    with runs.configuration("finetune", *words) as cfg:
        made = parts_of(cfg, before)
    assert made.trained is None
    assert (before.config, stored["trainer"]["max_steps"]) == (stored, 2)
    assert made.config["trainer"]["max_steps"] == 5
    assert {key: made.config[key] for key in ("model", "data")} == {key: stored[key] for key in ("model", "data")}


@pytest.mark.parametrize(
    ("freeze", "devices", "strategy"),
    [(1, 2, "ddp_find_unused_parameters_true"), (1, 1, "auto"), (0, 2, "auto")],
)
def test_an_encoder_that_is_frozen_at_first_takes_no_gradient_on_several_devices(
    runs: ModuleType, images: Path, pretrained: Path, freeze: int, devices: int, strategy: str
) -> None:
    words = [*WORDS, *runs.folder_data(images), f"checkpoint={pretrained}", f"freeze_steps={freeze}"]
    with runs.configuration("finetune", *words, f"trainer.devices={devices}") as cfg:
        made = parts_of(cfg)
    assert made.trainer_node()["strategy"] == strategy
    assert made.config["trainer"]["strategy"] == "auto"


@pytest.mark.parametrize(
    ("size", "recipe", "expected"),
    [
        (10, 512, 16), (300, 512, 16), (511, 512, 16), (512, 512, 32), (5000, 512, 256), (8191, 512, 256),
        (8192, 512, 512), (10**6, 512, 512), (300, 8, 8), (1260.5, 1600.0, 64), (3600 * 10, 1600.0, 1600.0),
    ],
)  # fmt: skip
def test_little_data_have_smaller_batches(
    size: float, recipe: float, expected: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Powers of two, at least 16 and at most the recipe's, with 16 steps an epoch or more where that is possible."""
    monkeypatch.setattr(finetuning, "is_given", lambda key: False)
    settings: Any = SimpleNamespace(global_batch_size=recipe, min_steps_per_epoch=16)
    data: Any = SimpleNamespace(size=size, batch_unit="samples")
    with caplog.at_level("INFO"):
        assert finetuning.fitting_batch_size(settings, data) == expected
    assert (f"global_batch_size={expected:g} in place of the recipe's {recipe:g}" in caplog.text) == (expected < recipe)
    settings.min_steps_per_epoch = None
    assert finetuning.fitting_batch_size(settings, data) == recipe
    settings.min_steps_per_epoch = 16
    monkeypatch.setattr(finetuning, "is_given", lambda key: key == "global_batch_size")
    assert finetuning.fitting_batch_size(settings, data) == recipe


def test_the_smaller_batch_is_that_of_the_run_and_of_its_resumes(
    runs: ModuleType, images: Path, pretrained: Path
) -> None:
    words = [word for word in WORDS if not word.startswith(("global_batch_size=", "data.label_fraction="))]
    start = [*words, *runs.folder_data(images), f"checkpoint={pretrained}"]
    with runs.configuration("finetune", *start) as cfg:
        made = parts_of(cfg)
    assert made.data.size == 24
    assert made.settings.global_batch_size == made.config["global_batch_size"] == 16
    assert made.config["trainer"]["max_steps"] == 3  # of 2 epochs
    with runs.configuration("finetune", *start, "global_batch_size=24") as cfg:
        given = parts_of(cfg)
    assert given.settings.global_batch_size == given.config["global_batch_size"] == 24
    assert given.config["trainer"]["max_steps"] == 2


@pytest.mark.parametrize("task", options("task"))
def test_released_recipes_keep_their_batch(runs: ModuleType, task: str) -> None:
    with runs.configuration("finetune", f"task={task}") as cfg:
        few = task in ("audio_classification", "image_classification", "ctc_base")
        assert cfg.min_steps_per_epoch == (16 if few else None)
