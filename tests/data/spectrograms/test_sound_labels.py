"""Labelled recordings for fine-tuning: classes, several classes, augmentation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from d2v.data.bad_samples import BadSample
from d2v.data.scored import with_known_labels
from d2v.data.spectrograms.augment import AugmentedView, SoundAugment
from d2v.data.spectrograms.batches import SpectrogramView
from d2v.data.spectrograms.factories import sound_folder, sound_manifest
from d2v.data.spectrograms.filter_bank import FilterBank
from d2v.data.speech.factories import audio_folder


@pytest.fixture
def root(runs: ModuleType, tmp_path: Path) -> Path:
    runs.sounds(tmp_path / "train", clips=3)
    runs.sounds(tmp_path / "val", clips=2)
    return tmp_path


def manifest(root: Path, split: str, *lines: str) -> list[str]:
    """A manifest of the first recordings of a split, and their classes."""
    files = sorted((root / split).rglob("*.flac"))[: len(lines)]
    rows = [f"{file.relative_to(root)}\t16000" for file in files]
    (root / f"{split}.tsv").write_text("\n".join([str(root), *rows]) + "\n")
    (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return [str(root / f"{split}.tsv"), str(root / f"{split}.txt")]


def test_several_classes_are_tuples(root: Path) -> None:
    (train, classes), (val, val_classes) = (
        manifest(root, "train", "dog; cat", "dog", "dog;dog"),
        manifest(root, "val", "cat"),
    )
    data = sound_manifest(
        train, classes=classes, val_manifest=val, val_classes=val_classes, separator=";", num_frames=64
    )
    assert data.train.class_names == ("cat", "dog")
    assert [data.train.label(i) for i in range(3)] == [(1, 0), (1,), (1,)]
    assert data.probe_train is None  # probes are of one class
    labelled = data.finetune()
    batch = next(iter(labelled.eval_loader("val")))
    assert batch.labels is not None
    assert batch.labels.tolist() == [[0]]
    whole = data.eval_collate([labelled.train_dataset(0)[key] for key in next(iter(sampler(labelled)))])
    assert whole.labels is not None
    assert sorted(map(tuple, whole.labels.tolist())) == [(1, -1), (1, -1), (1, 0)]


def test_an_empty_line_is_a_recording_of_no_class(root: Path) -> None:
    (train, classes), (val, val_classes) = (
        manifest(root, "train", "dog;cat", "", "cat", "dog"),
        manifest(root, "val", ""),
    )
    data = sound_manifest(
        train, classes=classes, val_manifest=val, val_classes=val_classes, separator=";", num_frames=64
    )
    assert [data.train.label(i) for i in range(4)] == [(1, 0), (), (0,), (1,)]
    batch = next(iter(data.finetune().eval_loader("val")))
    assert batch.labels is not None
    assert (batch.labels.dtype, batch.labels.tolist()) == (torch.int64, [[]])


def test_a_share_of_recordings_of_several_classes_is_of_all(root: Path) -> None:
    (train, classes), (val, val_classes) = (
        manifest(root, "train", "dog;cat", "", "cat", "dog"),  # four combinations
        manifest(root, "val", "cat"),
    )
    data = sound_manifest(
        train, classes=classes, val_manifest=val, val_classes=val_classes, separator=";", num_frames=64
    )
    assert data.finetune(label_fraction=0.5).size == 2


def sampler(labelled):  # type: ignore[no-untyped-def]
    split = labelled.split_batch(3, None, 1)
    return labelled.train_sampler(0, split, num_batches=1, start_batch=0, rank=0, world_size=1, accumulate=1)


def test_several_classes_are_matched_to_those_of_a_model(root: Path) -> None:
    (train, classes), (val, val_classes) = manifest(root, "train", "dog;cat"), manifest(root, "val", "dog;cat")
    data = sound_manifest(
        train, classes=classes, val_manifest=val, val_classes=val_classes, separator=";", num_frames=64
    )
    known = with_known_labels(data.finetune(), ["ant", "cat", "cow", "dog"], "RUN")
    assert known.evals["val"].label(0) == (3, 1)


def test_masks_and_rolls_are_within_their_shares() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 32000).astype("float32")
    view = SpectrogramView(FilterBank(16000, 128), 100, -20.0, 0.5)  # no value is 0 by itself
    plain = AugmentedView(view, SoundAugment(roll=False, time_mask=0, mel_mask=0))(waveform, np.random.default_rng(0))
    assert torch.equal(plain, view(waveform))
    assert (plain != 0).all()
    counts = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = AugmentedView(view, SoundAugment(roll=False, time_mask=0.2, mel_mask=0.1))(waveform, rng)[0]
        times, mels = int((x == 0).all(1).sum()), int((x == 0).all(0).sum())
        assert (times, mels) <= (20, 12)
        assert mels <= 12
        assert int((x == 0).sum()) == 128 * times + mels * (100 - times)
        counts.add((times, mels))
    assert {times for times, _ in counts} >= {0, 20} or len({times for times, _ in counts}) > 10
    rolled = AugmentedView(view, SoundAugment(time_mask=0, mel_mask=0))(waveform, np.random.default_rng(1))
    assert not torch.equal(rolled, plain)
    start = int(np.random.default_rng(1).integers(len(waveform)))
    torch.testing.assert_close(rolled, view(np.roll(waveform, start)))


def test_fine_tuning_needs_classes(root: Path) -> None:
    with pytest.raises(ValueError, match="class_folders=true"):
        sound_folder(str(root / "train"), val_root=str(root / "val")).finetune()
    data = sound_folder(str(root / "train"), val_root=str(root / "val"), class_folders=True, num_frames=64)
    labelled = data.finetune(label_fraction=0.5)
    assert (labelled.size, labelled.labels) == (4, ("class0", "class1"))  # two of three of each class


def test_waveforms_with_classes_are_cropped_in_training_only(root: Path) -> None:
    layers = [[8, 400, 320]]
    data = audio_folder(
        str(root / "train"), val_root=str(root / "val"), label_pattern="^([^/]+)/", conv_layers=layers,
        min_seconds=0.5, max_seconds=1.2,
    )  # fmt: skip
    labelled = data.finetune()
    assert (labelled.batch_unit, labelled.size, labelled.labels) == ("samples", 6, ("class0", "class1"))
    lengths = [len(labelled.train_view(data.train.load(i), np.random.default_rng(0))) for i in range(3)]  # type: ignore[union-attr, arg-type]
    assert lengths == [16000, 19200, 19200]
    batch = next(iter(labelled.eval_loader("val")))
    assert batch.inputs.shape == (4, 24000)
    assert batch.padding_mask is not None
    with pytest.raises(BadSample, match="do not hold one frame"):
        labelled.train_view(np.zeros(399, "float32"), np.random.default_rng(0))
