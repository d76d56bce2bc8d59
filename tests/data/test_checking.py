"""What d2v check finds in images, recordings and text, with the numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2v.data.checking import check_data
from d2v.data.datasets import PretrainSet
from d2v.data.images.factories import image_folder
from d2v.data.images.sources import SampleImages
from d2v.data.speech.factories import audio_folder, audio_manifest
from d2v.data.texts.factories import text_files
from d2v.data.texts.glue import glue
from d2v.data.texts.tokenizer import train_tokenizer


def _images(root: Path) -> Path:
    for name, values in (("dark", (0, 51)), ("light", (102, 255, 204))):
        (root / name).mkdir(parents=True)
        for i, value in enumerate(values):
            Image.new("L", (20 + 10 * i, 30), value).save(root / name / f"{i}.png")
    (root / "light" / "notes.txt").write_text("no image")
    return root


def test_images(tmp_path: Path) -> None:
    data = image_folder(
        str(_images(tmp_path)), img_size=14, patch_size=7, in_chans=1, mean=[0.5], std=[0.5], max_bad_fraction=1.0
    )
    report = check_data(data, 0.01)
    text = "\n".join(report.lines)
    assert (report.bad, report.num_samples, report.too_many) == ([], 5, False)
    assert "formats: 5 .png" in text
    assert "width 20 to 40 (median 30), height 30 pixels" in text or "width 20 to 40 (median 20)" in text
    assert "classes: light 3, dark 2" in text
    values = np.array([0, 51, 102, 255, 204]) / 255
    assert f"mean=[{values.mean():.4f}] std=[{values.std():.4f}] (of 5 images, all grey)" in text
    assert ".txt" in text


def test_all_bad_images_are_found(tmp_path: Path) -> None:
    root = _images(tmp_path)
    for i in range(30):
        (root / "dark" / f"bad{i:02d}.png").write_bytes(b"\x89PNG\r\n")
    data = image_folder(str(root), img_size=14, patch_size=7, in_chans=1, mean=[0.5], std=[0.5], max_bad_fraction=1.0)
    report = check_data(data, 0.01)
    assert (len(report.bad), report.num_samples, report.too_many) == (30, 35, True)
    assert report.bad[0].startswith("dark/bad00.png: ")
    assert not check_data(data, 0.9).too_many


def test_transparent_images_are_measured_as_they_are_trained_on(tmp_path: Path) -> None:
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "clear.png")  # composed over white
    data = image_folder(str(tmp_path), img_size=14, patch_size=7, max_bad_fraction=1.0)
    assert "mean=[1.0000] std=[0.0000]" in "\n".join(check_data(data, 0).lines)


def test_one_channel_is_suggested_where_all_images_are_grey(tmp_path: Path) -> None:
    values = np.array([0, 51, 102, 255, 204]) / 255
    root, rgb = str(_images(tmp_path)), {"img_size": 14, "patch_size": 7, "in_chans": 3}
    said = "\n".join(check_data(image_folder(root, **rgb), 0).lines)
    assert f"in_chans=1 mean=[{values.mean():.4f}] std=[{values.std():.4f}] (of 5 images, all grey)" in said
    Image.new("RGB", (28, 28), (255, 0, 0)).save(Path(root) / "dark" / "red.png")
    said = "\n".join(check_data(image_folder(root, **rgb), 0).lines)
    assert "in_chans" not in said
    assert "suggested: mean=[" in said


def test_clips_that_are_not_as_long_as_listed_are_named(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("torchaudio")
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.full(16000, 0.1), 16000)
    (tmp_path / "m.tsv").write_text(".\na.wav\t160000\nb.wav\t16000\n")
    data = audio_manifest(str(tmp_path / "m.tsv"), conv_layers=[[8, 10, 5]], min_seconds=0.5, max_bad_fraction=1.0)
    assert "not as long as listed: 1 clips (a.wav)" in "\n".join(check_data(data, 0).lines)


def test_bad_documents_are_a_share_of_documents_not_of_blocks(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_bytes(b"a b\n" * 980 + b"\xe9\n" * 20)
    options = {"vocab_size": 300, "block_size": 128, "cache": str(tmp_path / "cache")}
    report = check_data(text_files(str(tmp_path), max_bad_fraction=1.0, **options), 0.05)
    assert (len(report.bad), report.num_samples, report.allowed, report.too_many) == (20, 1000, 50, False)


def test_recordings(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("torchaudio")
    for i, seconds in enumerate((2.0, 3.0, 5.0)):
        soundfile.write(tmp_path / f"{i}.wav", np.full(int(8000 * seconds), 0.1), 8000)
    for name in ("a.wav", "b.flac"):
        (tmp_path / name).write_bytes(b"RIFF")
    data = audio_folder(str(tmp_path), conv_layers=[[8, 10, 5]], sample_rate=16000, max_bad_fraction=1.0)
    report = check_data(data, 0.01)
    text = "\n".join(report.lines)
    assert "durations 2 to 5 (median 3) s, 0.00 h in all, read at 16,000 Hz" in text
    assert "rates of the files: 3 at 8,000 Hz" in text
    assert (sorted(entry.partition(":")[0] for entry in report.bad), report.num_samples) == (["a.wav", "b.flac"], 5)
    assert report.too_many


def test_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "good.txt").write_text("a line of text, again and again\n" * 200)
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9\n" * 300)
    data = text_files(str(tmp_path), vocab_size=300, block_size=16, max_bad_fraction=1.0, cache=str(tmp_path / "cache"))
    report = check_data(data, 0.01)
    text = "\n".join(report.lines)
    assert "lengths 16 tokens" in text
    assert report.bad
    assert all("bad.txt" in entry for entry in report.bad)
    assert report.too_many


def test_tables_of_text_are_measured_in_characters(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text("a line of text, again and again\n" * 200)
    (tmp_path / "t.tsv").write_text("text\tlabel\nabcd\tx\nab\ty\n \ty\n")
    table = str(tmp_path / "t.tsv")
    options = {"vocab_size": 300, "block_size": 16, "cache": str(tmp_path / "cache")}
    data = text_files(str(tmp_path / "a.txt"), probe_train=table, probe_val=table, **options)
    report = check_data(data, 0.01)
    text = "\n".join(report.lines)
    assert "lengths 2 to 4 (median 3) characters" in text
    assert "classes: x 1, y 1" in text
    assert len(report.bad) == 1


def test_glue_is_measured_in_characters(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "RTE").mkdir()
    header = "index\tsentence1\tsentence2\tlabel\n"
    for split in ("train", "dev", "test"):
        rows = "0\tabc\tde\tentailment\n1\tab\tc\tnot_entailment\n"
        (tmp_path / "RTE" / f"{split}.tsv").write_text(header + rows)
    tokenizer = train_tokenizer(["a b c d e"] * 10, 300)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    data = glue("rte", str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json"))
    report = check_data(data, 0.0)
    assert [line for line in report.lines if "characters" in line] == [
        f"{name:<9} lengths 3 to 5 (median 4) characters" for name in ("train", "val", "test")
    ]
    assert report.num_samples == 6


def test_a_modality_without_measures_of_its_own_has_formats_and_classes() -> None:
    class Pictures(PretrainSet):
        modality = "pictures"
        pretrain_dataset = pretrain_sampler = pretrain_collate = bad_sample_counter = None  # not asked for

        def __init__(self) -> None:
            self.train = self.probe_train = SampleImages("val")

    report = check_data(Pictures(), 0.01)
    assert report.num_samples == 2000
    assert sum(line.startswith("train ") and "classes: " in line for line in report.lines) == 2
    assert not any(line.startswith("probe_train") for line in report.lines)


def test_streams_are_refused() -> None:
    class Stream(PretrainSet):
        streaming = True
        pretrain_dataset = pretrain_sampler = pretrain_collate = bad_sample_counter = None  # not asked for

    with pytest.raises(ValueError, match=r"streaming=true: .* set streaming=false"):
        check_data(Stream(), 0.0)
