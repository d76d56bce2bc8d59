"""What a folder of images means: splits, classes, files left out, the same image in two splits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from d2v.data.files import files_below
from d2v.data.images.data import ImageData
from d2v.data.images.factories import image_folder

SMALL = {"img_size": 16, "patch_size": 4}


def put(root: Path, **counts: int) -> Path:
    """Folders by their names, ``__`` for a slash, and how many images each of them holds."""
    for name, count in counts.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    return root


def read(root: Path, val_root: Path | None = None) -> ImageData:
    return image_folder(str(root), None if val_root is None else str(val_root), **SMALL)


def summary(data: ImageData) -> str:
    return "\n".join(data.describe())


CLASSES = {"a": 3, "b": 3}


def split(name: str, count: int) -> dict[str, int]:
    return {f"{name}__{c}": count for c in CLASSES}


# Folders; images to train on, their classes; images to evaluate on; words of the summary.
RULES = {
    "train and val": ({**split("train", 3), **split("val", 2)}, 6, ("a", "b"), 4, ""),
    "any case": ({**split("Train", 3), **split("VALID", 2)}, 6, ("a", "b"), 4, "VALID"),
    "training and testing": (
        {**split("training", 3), **split("testing", 2)}, 6, ("a", "b"), 4,
        "testing/ is evaluated on, as there is no val/",
    ),
    "only test": (
        {**split("train", 3), **split("test", 2)}, 6, ("a", "b"), 4, "test/ is evaluated on, as there is no val/",
    ),
    "valid before test": (
        {**split("train", 3), **split("valid", 1), **split("test", 2)}, 6, ("a", "b"), 2, "left alone: test/",
    ),
    "dev before test": (
        {**split("train", 3), **split("dev", 1), **split("test", 2)}, 6, ("a", "b"), 2, "left alone: test/",
    ),
    "val before valid": (
        {**split("train", 3), **split("val", 1), **split("valid", 2)}, 6, ("a", "b"), 2, "left alone: valid/",
    ),
    "folders beside splits": (
        {**split("train", 3), **split("val", 1), "unlabelled": 9}, 6, ("a", "b"), 2,
        "not read, beside train/: unlabelled/",
    ),
    "train alone": ({**split("train", 3)}, 6, ("a", "b"), None, "train;"),
    "train alone, flat": ({"train": 3}, 3, None, None, "no classes"),
    "a class named train": (
        {"bicycle": 2, "bus": 2, "train": 2}, 6, ("bicycle", "bus", "train"), None,
        "train/ is read as a class, like bicycle/, bus/ beside it",
    ),
    "a class named train with folders": (
        {"bus__red": 2, "bus__blue": 2, "train__steam": 2, "train__diesel": 2}, 8, ("bus", "train"), None,
        "train/ is read as a class",
    ),
    "a split by another name": (
        {**split("train", 3), **split("extra", 1)}, 6, ("a", "b"), None, "not read, beside train/: extra/",
    ),
    "classes named test and val": (
        {"car": 2, "test": 2, "val": 2}, 6, ("car", "test", "val"), None, "test/ is read as a class, like car/",
    ),
    "val among the classes": (
        {**CLASSES, **split("val", 1)}, 6, ("a", "b"), 2, "val/ inside the root, beside its classes: not trained on",
    ),
    "val and test among the classes": (
        {**CLASSES, **split("val", 1), **split("test", 1)}, 6, ("a", "b"), 2, "left alone: test/",
    ),
    "val without classes": (
        {**split("train", 3), "val": 2}, 6, ("a", "b"), None, "val/ has no class folders: nothing to evaluate on",
    ),
    "one folder around all": ({"pets__a": 2, "pets__b": 2}, 4, None, None, "root=.../pets"),
    "a class without images": ({**CLASSES, "c": 0}, 6, ("a", "b"), None, "no image in the folders c"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_the_rules(tmp_path, name):
    folders, num_train, classes, num_val, words = RULES[name]
    data = read(put(tmp_path, **folders))
    assert data.num_samples == num_train
    assert data.train.class_names == classes
    assert (None if data.val is None else len(data.val)) == num_val
    assert words in summary(data)


def test_splits_without_one_to_train_on_are_refused(tmp_path):
    put(tmp_path, **split("val", 1), **split("test", 1))
    with pytest.raises(ValueError, match=r"root=.*: holds val/, test/ and no train/; set root=FOLDER"):
        read(tmp_path)


def test_a_validation_split_without_images_is_refused_and_test_does_not_take_its_place(tmp_path):
    put(tmp_path, **split("train", 1), **split("test", 1))
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "x.heic").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"root=.*valid: no image file .*left out: 1 \.heic"):
        read(tmp_path)


# --- files beside class folders


@pytest.mark.parametrize("where", ["train", "val"])
def test_a_stray_file_is_left_out_counted_and_named(tmp_path, where):
    put(tmp_path, **split("train", 10), **split("val", 5))
    Image.new("L", (8, 8)).save(tmp_path / where / "preview.png")
    data = read(tmp_path)
    assert (data.num_samples, len(data.val), data.class_names) == (20, 10, ("a", "b"))
    assert "left out: 1 beside the class folders\n          beside the class folders: preview.png" in summary(data)
    assert [data.val.label(i) for i in range(10)] == [0] * 5 + [1] * 5


def test_folders_beside_many_files_are_no_classes(tmp_path):
    put(tmp_path, **CLASSES)
    for i in range(40):
        Image.new("L", (8, 8)).save(tmp_path / f"{i:02}.png")
    data = read(tmp_path)
    assert (data.num_samples, data.train.class_names) == (46, None)
    assert "no classes: 40 files lie beside the folders a, b: 00.png, 01.png, 02.png, ..." in summary(data)


def test_images_beside_splits_are_named(tmp_path):
    put(tmp_path, **split("train", 3), **split("val", 1))
    Image.new("L", (8, 8)).save(tmp_path / "sheet.png")
    assert "not read, beside train/: 1 images (sheet.png)" in summary(read(tmp_path))


# --- the same image to train and to evaluate on


def test_val_root_inside_root_is_not_trained_on(tmp_path):
    put(tmp_path, **CLASSES, **split("held_out", 2))
    data = read(tmp_path, tmp_path / "held_out")
    assert (data.num_samples, len(data.val), data.class_names) == (6, 4, ("a", "b"))
    assert "4 images are both here and in" in summary(data)
    (tmp_path / "held_out").rename(tmp_path / "val")
    data = read(tmp_path, tmp_path / "val")
    assert (data.num_samples, len(data.val), data.class_names) == (6, 4, ("a", "b"))


@pytest.mark.parametrize("how", ["same", "root inside val_root", "link", "linked files", "hard links"])
def test_folders_that_hold_the_same_images_are_refused(tmp_path, how):
    root = put(tmp_path / "all" / "one", **CLASSES)
    val_root = {"same": root, "root inside val_root": tmp_path / "all"}.get(how, tmp_path / "val")
    if how == "link":
        val_root.symlink_to(root)
    elif how in ("linked files", "hard links"):
        for path in sorted(root.rglob("*.png")):
            link = val_root / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link) if how == "hard links" else link.symlink_to(path)
    with pytest.raises(ValueError, match=r"val_root=.*: holds all images of root=.* too"):
        read(root, val_root)


def test_images_linked_into_both_splits_are_only_evaluated_on(tmp_path):
    put(tmp_path, **split("train", 3), **split("val", 1), train__b__deep=2)
    (tmp_path / "val" / "a" / "copy.png").symlink_to(tmp_path / "train" / "a" / "2.png")
    (tmp_path / "val" / "b" / "linked").symlink_to(tmp_path / "train" / "b" / "deep")
    data = read(tmp_path)
    names = [data.train.name(i) for i in range(len(data.train))]
    assert names == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"]
    assert len(data.val) == 5
    assert "3 images are both here and in" in summary(data)


# --- files that are not read


def test_classes_that_are_perhaps_one_or_splits_are_named(tmp_path):
    put(tmp_path / "a", Cat=1, cat=1, dog=1)
    assert "the classes Cat, cat differ only in blanks or case" in summary(read(tmp_path / "a"))
    put(tmp_path / "b", train2017=1, val2017=1)
    assert "train2017, val2017 are read as classes; if they are splits, set root=... and" in summary(
        read(tmp_path / "b")
    )
    put(tmp_path / "c", trainer=1, valley=1, testament=1, device=1)
    _, grey = summary(read(tmp_path / "c")).splitlines()
    assert "grey images" in grey


def test_images_that_are_there_twice_by_links_are_counted(tmp_path):
    put(tmp_path, a=2, b=2)
    first = next(file for file in sorted((tmp_path / "a").iterdir()) if file.is_file())
    (tmp_path / "b" / "same.png").symlink_to(first)
    (tmp_path / "b" / "hard.png").hardlink_to(first)
    assert "2 images are here twice or more, by links" in summary(read(tmp_path))


def test_left_out_files_are_counted_by_ending(tmp_path):
    put(tmp_path, **CLASSES)
    for name in ("x.heic", "y.HEIC", "notes.txt", ".DS_Store", "README"):
        (tmp_path / "a" / name).write_bytes(b"x")
    assert "left out: 4 with other endings (2 .heic, 1 .txt, 1 without ending), 1 hidden" in summary(read(tmp_path))


def test_pillows_endings_are_read_in_any_case_and_with_blanks(tmp_path):
    put(tmp_path, **CLASSES)
    kinds = {"avif": "AVIF", "jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "tga": "TGA", "JPG ": "JPEG",
             "webp": "WEBP", "tif": "TIFF", "bmp": "BMP", "gif": "GIF", "ppm": "PPM", "pcx": "PCX"}  # fmt: skip
    for ending, kind in kinds.items():
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "b" / f"x.{ending}", kind)
    data = read(tmp_path)
    assert data.num_samples == 6 + len(kinds)
    for i in range(len(data.train)):
        assert data.train.load(i).size == (8, 8)


def test_links_that_lead_nowhere_are_named_and_images_among_them_are_bad(tmp_path):
    put(tmp_path, **CLASSES)
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "c").symlink_to("nowhere")
    (tmp_path / "d").symlink_to("d")
    data = read(tmp_path)
    assert data.num_samples == 8
    assert "broken links: c, d" in summary(data)
    dataset = data.eval_dataset("train")
    skipped = [entry for i in range(8) for entry in dataset[i].skipped]
    assert skipped == ["a/gone.png: No such file or directory", "a/loop.png: Too many levels of symbolic links"]


def test_folders_that_cannot_be_read_are_refused_all_at_once(tmp_path, monkeypatch):
    put(tmp_path, **CLASSES, c=1)
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def closed(folder):
        if os.path.basename(folder) in ("a", "b", "lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)  # the tests may run as root, who may read all
    with pytest.raises(PermissionError, match=r"root=.*: 2 folders cannot be read: .*/a \(Permission.*/b \("):
        read(tmp_path)
    with pytest.raises(PermissionError, match="2 folders cannot be read"):  # of recordings and text, too
        list(files_below(tmp_path, (".wav",)))


def test_names_that_are_not_utf_8(tmp_path):
    for name in (b"caf\xe9", b"th\xe9"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(folder)
        with open(os.path.join(folder, b"\xff.png"), "wb") as file:
            Image.new("L", (8, 8)).save(file, "PNG")
    data = read(tmp_path)
    assert data.class_names == ("caf\\xe9", "th\\xe9")
    assert [data.train.name(i) for i in range(2)] == ["caf\\xe9/\\xff.png", "th\\xe9/\\xff.png"]
    assert [data.train.label(i) for i in range(2)] == [0, 1]
    assert data.train.load(1).size == (8, 8)
    assert summary(data).encode()


def test_a_root_below_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(ValueError, match=r"root=~/x: this user has no home folder for ~; give the whole path"):
        read(Path("~/x"))
