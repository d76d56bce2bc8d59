"""Commands on folders of grey images: what is found in them, kept in the run, and not asked again."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

import d2v
from d2v.interop.native import RunCheckpoint

SIZE = ["data=image_folder", "data.img_size=28", "trainer.max_steps=1"]


@pytest.fixture(scope="module")
def grey(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on grey images that says nothing of channels."""
    folder: Path = runs.pretrain(tmp_path_factory.mktemp("grey"), *SIZE, f"data.root={images}")
    return folder


@pytest.fixture(scope="module")
def colour(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the same images as RGB."""
    return runs.pretrain(tmp_path_factory.mktemp("rgb"), *SIZE, f"data.root={images}", "data.in_chans=3")  # type: ignore[no-any-return]


def _in_chans(folder: Path) -> int:
    return d2v.load_encoder(folder).frontends["image"].in_chans  # type: ignore[no-any-return]


def _own(images: Path) -> tuple[float, float]:
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted((images / "train").rglob("*.png"))]) / 255
    return float(pixels.mean()), float(pixels.std())


def test_a_grey_folder_is_read_in_one_channel_with_its_own_statistics(grey: Path, images: Path) -> None:
    mean, std = _own(images)
    for node in (yaml.safe_load((grey / "config.yaml").read_text())["data"], _checkpoint(grey).config["inputs"]):
        assert (node["in_chans"], node["crop_pct"]) == (1, 1.0)
        assert (*node["mean"], *node["std"]) == pytest.approx((mean, std), abs=2e-4)
    assert _in_chans(grey) == 1


def _checkpoint(folder: Path) -> RunCheckpoint:
    return RunCheckpoint.load(next((folder / "checkpoints").glob("step-*.ckpt")))


def test_the_summary_says_so(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    words = ["pretrain", *runs.TINY, *SIZE, f"data.root={images}", f"hydra.run.dir={tmp_path / 'run'}"]
    said = runs.d2v_command(*words).out
    mean, std = _own(images)
    assert f"grey images: data.in_chans=1 data.mean=[{mean:.4f}] data.std=[{std:.4f}], of 24 images" in said
    checked = runs.d2v_command("check", *SIZE[:2], f"data.root={images}").out
    assert f"suggested: data.in_chans=1 data.mean=[{mean:.4f}]" in checked


def test_a_resumed_run_keeps_what_its_start_found(
    runs: ModuleType, grey: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("looked again")

    monkeypatch.setattr("d2v.data.images.inputs._sample", refuse)
    result = runs.d2v_command("pretrain", f"resume={grey}", f"data.root={images}", "trainer.max_steps=2")
    assert result.status in (0, None), result.err
    assert _in_chans(grey) == 1


def test_weights_that_read_colours_go_on_reading_them(
    runs: ModuleType, colour: Path, images: Path, tmp_path: Path
) -> None:
    started = runs.pretrain(tmp_path / "new", *SIZE, f"data.root={images}", f"init_from={colour}")
    assert _in_chans(started) == 3
    assert yaml.safe_load((started / "config.yaml").read_text())["data"]["mean"] == [0.485, 0.456, 0.406]


FINETUNE = [
    "task=image_classification", "global_batch_size=8", "optim.layer_decay=1", "trainer.accelerator=cpu",
    "trainer.precision=32-true", "num_threads=1", "trainer.max_steps=1", "schedule.warmup_fraction=0",
    "labels.augment.auto_augment=null", "labels.augment.erase_prob=0", "labels.augment.crop_scale=[0.8,1.0]",
]  # fmt: skip


@pytest.mark.parametrize("start", ["grey", "colour", "scratch"])
def test_fine_tuning_reads_what_the_checkpoint_reads_and_from_scratch_what_is_there(
    runs: ModuleType, images: Path, tmp_path: Path, start: str, request: pytest.FixtureRequest
) -> None:
    tiny = [word for word in runs.TINY if word.startswith("model.encoder")]
    where = (
        ["checkpoint=null", "model=data2vec2/image_tiny", "data.patch_size=7", "data.img_size=28", *tiny]
        if start == "scratch"
        else [f"checkpoint={request.getfixturevalue(start)}"]
    )
    folder = tmp_path / "tuned"
    said = runs.d2v_command("finetune", *FINETUNE, *where, f"data.root={images}", f"hydra.run.dir={folder}")
    assert said.status in (0, None), said.err
    assert _in_chans(folder) == (3 if start == "colour" else 1)
    assert ("grey images: data.in_chans=1" in said.out) == (start == "scratch")


def test_a_grey_encoder_reads_colours_in_grey(runs: ModuleType, grey: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    result = runs.d2v_command(
        "evaluate", f"checkpoint={grey}", "data=image_folder", f"data.root={tmp_path}", "probe=knn", "baselines=false",
        f"output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert result.status in (0, None), result.err
    assert "kNN" in result.out
