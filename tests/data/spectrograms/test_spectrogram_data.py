"""Spectrograms of folders and manifests: views, batches, labels, what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from d2v.data.bad_samples import BadSample, TooManyBadSamples
from d2v.data.checking import check_data
from d2v.data.eval_loader import eval_loader
from d2v.data.keys import SampleKey
from d2v.data.spectrograms.batches import SpectrogramView
from d2v.data.spectrograms.factories import sound_folder, sound_manifest
from d2v.data.spectrograms.filter_bank import FilterBank
from d2v.objective.masking import InverseBlockMask

RATE = 16000


def save(path: Path, seconds: float, hertz: float = 440.0, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(int(hertz)).normal(0, 0.01, len(time))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time) + noise, rate)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two recordings."""
    for label, hertz in (("high", 2000), ("low", 300)):
        save(tmp_path / "sounds" / label / "a.wav", 1.0, hertz)
        save(tmp_path / "sounds" / label / "b.flac", 1.5, hertz + 50, 22050)
    return tmp_path / "sounds"


def test_a_batch_has_spectrograms_and_exact_masks(root: Path) -> None:
    data = sound_folder(str(root), num_frames=128)
    assert (data.size, data.token_grid, data.class_names, data.probe_train) == (4, (8, 8), None, None)
    collate = data.pretrain_collate(InverseBlockMask(3, 0.8, 5, 0.07), 0)
    dataset = data.pretrain_dataset(0)
    batch = collate([dataset[SampleKey(0, i)] for i in range(4)])
    assert (batch.modality, batch.inputs.shape, batch.inputs.dtype) == ("spectrogram", (4, 1, 128, 128), torch.float32)
    assert batch.mask is not None
    assert batch.mask.mask.shape == (12, 64)
    assert (batch.mask.mask.sum(1) == 52).all()
    padding = 4.268 / (2 * 4.569)
    assert (batch.inputs[0, 0, 98:] - padding).abs().max() < 1e-6  # 1 s is 98 frames
    assert (batch.inputs[1, 0, 98:] - padding).abs().max() > 0.1


def test_statistics_change_the_view(root: Path) -> None:
    plain, other = (sound_folder(str(root), num_frames=32, mean=m, std=s) for m, s in ((0.0, 0.5), (-6.0, 2.0)))
    energies, normalised = (data.eval_dataset("train")[0].inputs for data in (plain, other))
    assert energies is not None
    assert normalised is not None
    torch.testing.assert_close(normalised, (energies + 6) / 4)


def test_a_random_crop_is_a_section_of_the_whole() -> None:
    bank = FilterBank(RATE, 128)
    waveform = np.random.default_rng(0).normal(0, 0.1, RATE).astype("float32")
    whole = SpectrogramView(bank, 98, 0.0, 0.5)(waveform)[0]
    view = SpectrogramView(bank, 32, 0.0, 0.5, random_crop=True)
    starts = set()
    for seed in range(30):
        crop = view(waveform, np.random.default_rng(seed))[0]
        differences = [float((whole[i : i + 32] - crop).abs().max()) for i in range(67)]
        assert min(differences) < 1e-3
        starts.add(int(np.argmin(differences)))
    assert len(starts) > 15
    assert torch.equal(view(waveform), SpectrogramView(bank, 32, 0.0, 0.5)(waveform, np.random.default_rng(0)))
    torch.testing.assert_close(view(waveform)[0], whole[:32])  # evaluation: the beginning


def test_class_folders_and_patterns_name_classes(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "val" / "low" / "c.wav", 1.0)
    data = sound_folder(str(root), val_root=str(tmp_path / "val"), class_folders=True, num_frames=64)
    assert data.class_names == ("high", "low")
    train, val = (next(iter(eval_loader(data, split))) for split in ("train", "val"))
    assert train.labels is not None
    assert sorted(train.labels.tolist()) == [0, 0, 1, 1]
    assert val.labels is not None
    assert val.labels.tolist() == [1]
    assert val.inputs.shape == (1, 1, 64, 128)
    features, labels = data.raw("val")
    assert features.shape == (1, 256)
    assert labels.tolist() == [1]
    named = sound_folder(str(root), label_pattern=r"([ab])\.", group_pattern="^([^/]+)/", num_frames=64)
    assert named.class_names == ("a", "b")
    assert named.train.groups == ["high", "high", "low", "low"]
    with pytest.raises(ValueError, match="class_folders=true already names"):
        sound_folder(str(root), class_folders=True, label_pattern="(a)")


def test_a_manifest_has_its_classes_in_a_text_file(root: Path, tmp_path: Path) -> None:
    lines = ["high/a.wav\t16000", "low/a.wav\t16000", "low/b.flac\t24000"]
    manifest, labels = tmp_path / "m.tsv", tmp_path / "labels.txt"
    manifest.write_text("\n".join([str(root), *lines]) + "\n")
    labels.write_text("cat\ndog\n\n")
    data = sound_manifest(str(manifest), classes=str(labels), num_frames=64)
    assert data.class_names == ("cat", "dog")
    assert [data.train.label(i) for i in range(3)] == [0, 1, None]
    (tmp_path / "val.txt").write_text("dog\ndog\ncow\n")
    with pytest.raises(ValueError, match=r"val.txt:3: 'cow' is not in .* has the classes cat, dog"):
        sound_manifest(
            str(manifest), classes=str(labels), val_manifest=str(manifest), val_classes=str(tmp_path / "val.txt")
        )
    val = sound_manifest(str(manifest), classes=str(labels), val_manifest=str(manifest), val_classes=str(labels)).val
    assert val is not None
    assert val.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"val_classes=.*set val_manifest"):
        sound_manifest(str(manifest), classes=str(labels), val_classes=str(labels))
    assert sound_manifest(str(manifest)).probe_train is None


def test_short_recordings_are_left_out_of_training_but_evaluated(root: Path) -> None:
    save(root / "low" / "short.wav", 0.3)
    save(root / "low" / "shorter.wav", 0.01)
    data = sound_folder(str(root), class_folders=True, num_frames=64)
    assert data.size == 4
    samples = data.eval_dataset("train")
    assert len(samples) == 6
    read = {samples.source.name(i): samples[i] for i in range(6)}
    assert read["low/short.wav"].inputs is not None
    assert read["low/shorter.wav"].skipped == ("low/shorter.wav: too short: 160 samples, a window takes 400",)


def test_unreadable_recordings_are_bad_samples(root: Path) -> None:
    (root / "low" / "c.wav").write_bytes(b"no sound")
    with pytest.raises(TooManyBadSamples, match=r"low/c\.wav: not readable audio"):
        sound_folder(str(root), max_bad_fraction=0.0)
    data = sound_folder(str(root), max_bad_fraction=0.5, num_frames=32)
    assert data.size == 4
    report = check_data(data, 0.5)
    assert [entry.partition(":")[0] for entry in report.bad] == ["low/c.wav"]
    assert report.num_samples == 5
    assert data.raw_ids("train") == [0, 1, 2, 3]
    assert data.raw("train")[0].shape == (4, 256)
    with pytest.raises(BadSample):
        data.train.every().load(4)


def test_check_measures_mean_and_std(root: Path) -> None:
    data = sound_folder(str(root), num_frames=32, mean=0.0, std=0.5)
    (line,) = [line for line in check_data(data, 0.01).lines if "suggested" in line]
    energies = torch.stack([data.eval_dataset("train")[i].inputs for i in range(4)])
    assert f"mean={energies.mean():.3f} std={energies.std():.3f}" in line


@pytest.mark.parametrize(("key", "value", "fix"), [("num_frames", 100, 96), ("num_mels", 100, 96)])
def test_sizes_that_are_no_multiple_of_a_patch_are_refused(root: Path, key: str, value: int, fix: int) -> None:
    with pytest.raises(ValueError, match=rf"{key}={value} is no multiple of patch_size=16; set {key}={fix}"):
        sound_folder(str(root), **{key: value})


def test_a_split_that_is_not_there(root: Path) -> None:
    with pytest.raises(ValueError, match="val_root or val_manifest"):
        sound_folder(str(root)).eval_dataset("val")
