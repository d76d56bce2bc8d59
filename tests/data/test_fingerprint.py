"""A fingerprint changes with the samples, their labels and the tokenizer, and not with where they lie."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2v.data.fingerprint import differences, fingerprint
from d2v.data.images.factories import image_folder
from d2v.data.texts.factories import text_files
from d2v.data.texts.tokenizer import load_tokenizer, train_tokenizer

SIZE: dict[str, Any] = {"img_size": 28, "in_chans": 1, "mean": [0.5], "std": [0.5], "patch_size": 7}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 255, (28, 28)).astype("uint8")).save(folder / f"{i}.png")
    return tmp_path / "images"


def changed(before: dict[str, Any], root: Path) -> tuple[list[str], bool]:
    return differences(before, fingerprint(image_folder(str(root), **SIZE)))


def test_a_folder_may_move_and_be_listed_anew(images: Path, tmp_path: Path) -> None:
    before = fingerprint(image_folder(str(images), **SIZE))
    assert before["sets"]["train"]["samples"] == 6
    assert before["classes"] == ["a", "b"]
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    (moved / "train" / "a" / "0.png").touch()
    assert changed(before, moved) == ([], True)


def test_what_changed_is_named(images: Path, tmp_path: Path) -> None:
    before = fingerprint(image_folder(str(images), **SIZE))
    train = images / "train"
    (train / "a" / "0.png").rename(train / "a" / "9.png")
    assert changed(before, images)[0] == ["the data have 6 samples as before, but others (names, labels or content)"]
    (train / "a" / "9.png").unlink()
    assert changed(before, images) == (["the data had 6 samples, now 5"], True)


def test_other_content_under_the_same_names(images: Path) -> None:
    """Another folder of the same names, as numbered files have."""
    before = fingerprint(image_folder(str(images), **SIZE))
    Image.new("L", (28, 28)).save(images / "train" / "b" / "1.png")
    assert "but others" in changed(before, images)[0][0]


def test_classes_in_another_order(images: Path) -> None:
    before = fingerprint(image_folder(str(images), **SIZE))
    for split in ("train", "val"):
        (images / split / "a").rename(images / split / "z")
    found, alone = changed(before, images)
    assert "the classes were a, b, now b, z" in found
    assert not alone


def test_what_is_scored_while_fine_tuning_counts(images: Path) -> None:
    from d2v.data.images.augment import ImageAugment

    augment = ImageAugment(mixup=0, cutmix=0)
    before = fingerprint(image_folder(str(images), **SIZE).finetune(augment))
    assert before["sets"]["val"]["samples"] == 6
    (images / "val" / "a" / "0.png").unlink()
    found, alone = differences(before, fingerprint(image_folder(str(images), **SIZE).finetune(augment)))
    assert found == ["the val set had 6 samples, now 5"]
    assert alone


def test_texts_and_tokenizers(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    file, options = tmp_path / "t.txt", {"vocab_size": 280, "block_size": 16, "cache": str(tmp_path / "cache")}
    lines = ["red green blue rot", "one two three four", "left right up down"] * 20
    file.write_text("\n".join(lines))
    for name, texts in (("a", lines[:1]), ("b", lines[1:2])):
        (tmp_path / f"{name}.json").write_text(train_tokenizer(texts, 280).to_json())
    before = fingerprint(text_files(str(file), tokenizer=str(tmp_path / "a.json"), **options))  # type: ignore[arg-type]
    stored = load_tokenizer(tmp_path / "a.json").to_json()
    again = fingerprint(text_files(str(file.rename(tmp_path / "u.txt")), tokenizer=stored, **options))  # type: ignore[arg-type]
    assert differences(before, again) == ([], True)
    other = fingerprint(text_files(str(tmp_path / "u.txt"), tokenizer=str(tmp_path / "b.json"), **options))  # type: ignore[arg-type]
    found, alone = differences(before, other)
    assert "the tokenizer is another one" in found[-1]
    assert not alone
    (tmp_path / "u.txt").write_text("\n".join([*lines[3:], *lines[1:4]]))
    other = fingerprint(text_files(str(tmp_path / "u.txt"), tokenizer=stored, **options))  # type: ignore[arg-type]
    assert differences(before, other)[0]


def test_streams_have_none(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "t.txt").write_text("one two three four five\n" * 40)
    (tmp_path / "a.json").write_text(train_tokenizer(["one two"], 270).to_json())
    data = text_files(
        str(tmp_path / "t.txt"), streaming=True, tokenizer=str(tmp_path / "a.json"), vocab_size=280, block_size=16
    )
    assert fingerprint(data)["sets"] == {}
    assert fingerprint(data)["tokenizer"]
