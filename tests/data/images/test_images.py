"""Folders of images: classes, splits, links, bad files, errors."""

from __future__ import annotations

import inspect
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import loader, picture, save_pictures

from d2v.arguments import parameters
from d2v.data.bad_samples import BadSample
from d2v.data.images.factories import HFImageOptions, ImageData, hf_images, image_folder, imagenet, samples
from d2v.data.images.inputs import IMAGENET_MEAN, IMAGENET_STD
from d2v.data.images.sources import ImageFolder, SampleImages, decode_image, to_channels
from d2v.interop.build import build
from d2v.objective.masking import InverseBlockMask


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file whose header promises this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_samples():
    train, val, everything = SampleImages("train"), SampleImages("val"), SampleImages()
    assert (len(train), len(val), len(everything)) == (8000, 2000, 10000)
    assert len(train.class_names) == 10
    assert val.load(0).tobytes() == everything.load(8000).tobytes()
    assert (val.label(0), val.name(0)) == (everything.label(8000), everything.name(8000))
    assert [train.label(i) for i in range(5)] == [9, 2, 1, 1, 6]  # as published
    assert (train.load(0).size, train.load(0).mode) == ((28, 28), "L")
    with pytest.raises(ValueError, match="split='test': choose one of train, val, all"):
        SampleImages("test")


def test_sample_views_are_about_standardised():
    data = samples()
    batch = next(iter(loader(data, micro=512, batches=1)))
    assert batch.inputs.shape == (512, 1, 28, 28)
    assert abs(batch.inputs.mean()) < 0.3  # crops are fuller than whole images
    assert abs(batch.inputs.std() - 1) < 0.2


def test_folder_of_classes(tmp_path):
    for name in ("b_dog", "a_cat"):
        save_pictures(tmp_path / name / "deeper", 2)
    picture().save(tmp_path / "a_cat" / "upper.JPG")
    (tmp_path / "a_cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "a_cat" / "notes.txt").write_text("x")
    (tmp_path / ".cache").mkdir()
    picture().save(tmp_path / ".cache" / "thumb.png")
    (tmp_path / "c_empty").mkdir()
    source = ImageFolder(tmp_path)
    assert source.class_names == ("a_cat", "b_dog")
    names = "a_cat/deeper/000.png a_cat/deeper/001.png a_cat/upper.JPG b_dog/deeper/000.png b_dog/deeper/001.png"
    assert [source.name(i) for i in range(len(source))] == names.split()
    assert [source.label(i) for i in range(len(source))] == [0, 0, 0, 1, 1]
    assert source.load(1).tobytes() == picture(seed=1).tobytes()


def test_flat_folder_has_no_labels(tmp_path):
    save_pictures(tmp_path, 3)
    save_pictures(tmp_path / "more", 1)
    source = ImageFolder(tmp_path)
    assert (len(source), source.class_names, source.label(0)) == (4, None, None)


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path):
    save_pictures(tmp_path / "elsewhere", 2)
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "dangling.png").symlink_to(tmp_path / "gone.png")
    source = ImageFolder(root)
    assert [source.name(i) for i in range(len(source))] == ["dangling.png", "link/000.png", "link/001.png"]
    with pytest.raises(BadSample, match="No such file"):
        source.load(0)


def test_names_beyond_ascii(tmp_path):
    picture().save(tmp_path / "größe 猫: x.png")
    source = ImageFolder(tmp_path)
    assert source.name(0) == "größe 猫: x.png"
    assert source.load(0).size == (40, 32)


@pytest.mark.parametrize("kind", ["truncated.jpg", "truncated.png", "zero.png", "text.jpg", "bomb.png", "gone.png"])
def test_bad_files_raise_bad_sample(tmp_path, kind):
    path = tmp_path / kind
    name = kind.split(".")[0]
    if name == "truncated":
        picture(200, 200).save(path)
        path.write_bytes(path.read_bytes()[:-400])
    elif name == "zero":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("<html>404</html>")
    elif name == "bomb":
        path.write_bytes(png_of_size(10_000, 10_000))
    reasons = {"zero": "empty file", "text": "not an image file", "bomb": "decompression bomb", "gone": "No such file"}
    reason = reasons.get(name, "truncated|broken")
    with pytest.raises(BadSample, match=reason):
        decode_image(path)
    if name != "gone":
        with pytest.raises(BadSample, match=reason):
            decode_image(path.read_bytes())


def test_bytes_flipped_anywhere_decode_or_raise_bad_sample(tmp_path):
    rng = np.random.default_rng(0)
    reasons: list[str | None] = []
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp"):
        path = tmp_path / f"image{suffix}"
        picture().save(path)
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            broken = content.copy()
            broken[rng.integers(len(broken), size=8)] = rng.integers(256, size=8)
            reasons.append(reason_why_bad(broken.tobytes()))
    assert 10 < sum(reason is not None for reason in reasons) < 350
    # An object's address would make the reason differ from one try to the next.
    assert not any("0x" in reason for reason in reasons if reason is not None)


def reason_why_bad(content: bytes) -> str | None:
    try:
        to_channels(decode_image(content), 3)
    except BadSample as error:
        return str(error)
    return None


def test_image_folder_finds_train_and_val(tmp_path):
    for split, count in (("train", 3), ("validation", 2)):
        for name in ("a", "b"):
            save_pictures(tmp_path / split / name, count)
    data = image_folder(str(tmp_path), img_size=32)
    assert (data.num_samples, len(data.val), data.class_names, data.streaming) == (6, 4, ("a", "b"), False)
    assert [data.val.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert imagenet_error(tmp_path) == "holds no directory 'val'"
    (tmp_path / "validation").rename(tmp_path / "val")
    assert len(imagenet(str(tmp_path)).val) == 4


def imagenet_error(root: Path) -> str:
    with pytest.raises(FileNotFoundError) as error:
        imagenet(str(root))
    return str(error.value).split(": ")[1].split(";")[0]


def test_validation_labels_are_the_training_sets(tmp_path):
    for name in ("a", "b", "c"):
        save_pictures(tmp_path / "train" / name, 1)
    save_pictures(tmp_path / "few" / "c", 1)
    save_pictures(tmp_path / "other" / "d", 1)
    data = image_folder(str(tmp_path), val_root=str(tmp_path / "few"))
    assert data.val.label(0) == 2
    with pytest.raises(ValueError, match=r"val_root=.*\['d'\] are not in the training set"):
        image_folder(str(tmp_path), val_root=str(tmp_path / "other"))


def test_imagenet_needs_class_directories(tmp_path):
    for name in ("a", "b"):
        save_pictures(tmp_path / "train" / name, 1)
    save_pictures(tmp_path / "val", 2)
    with pytest.raises(ValueError, match="val has no class directories"):
        imagenet(str(tmp_path))


def test_evaluation_needs_labels(tmp_path):
    for name in ("a", "b"):
        save_pictures(tmp_path / "train" / name, 1)
    save_pictures(tmp_path / "test", 2)
    assert image_folder(str(tmp_path)).val is None
    with pytest.raises(ValueError, match=r"val_root=.*: no class directories, but evaluation needs labels"):
        image_folder(str(tmp_path), val_root=str(tmp_path / "test"))


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root=.*gone: no such directory; set root"):
        image_folder(str(tmp_path / "gone"))
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ValueError, match=r"root=.*file\.txt: not a directory"):
        image_folder(str(tmp_path / "file.txt"))
    with pytest.raises(FileNotFoundError, match=r"root=.*: no image file below this directory"):
        image_folder(str(tmp_path))
    save_pictures(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"val_root=.*gone: no such directory"):
        image_folder(str(tmp_path), val_root=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="split 'val': this data has no such labelled images"):
        image_folder(str(tmp_path)).eval_dataset("val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 30}, r"data\.img_size=30 is no multiple of data\.patch_size=7; set data\.img_size=28"),
        ({"in_chans": 4}, r"data\.in_chans=4: choose 1 \(grey\) or 3 \(RGB\)"),
        ({"in_chans": 3}, r"data\.mean=\[0\.286\]: give one number a channel, data\.in_chans=3"),
        ({"std": (0.0,)}, r"data\.std\[0\]=0\.0: give a number above 0"),
        ({"crop_scale": (1.0, 0.2)}, r"data\.crop_scale=\[1\.0, 0\.2\]: give \[low, high\]"),
        ({"crop_scale": (0.0, 0.2)}, r"data\.crop_scale\[0\]=0\.0"),
        ({"crop_sale": (0.1, 0.2)}, r"unknown key data\.crop_sale: did you mean data\.crop_scale\?"),
        ({"shuffle_buffer": 3}, r"data\.shuffle_buffer=3: samples has no such setting"),
        ({"crop_pct": 0.0}, r"data\.crop_pct=0\.0"),
        ({"hflip": 1.5}, r"data\.hflip=1\.5"),
        ({"max_bad_fraction": -0.1}, r"data\.max_bad_fraction=-0\.1"),
    ],
)
def test_value_errors_name_the_key(change, message):
    with pytest.raises(ValueError, match=message):
        build({"_target_": "d2v.data.images.factories.samples", **change}, key="data")


@pytest.mark.parametrize("factory", [samples, image_folder, imagenet, hf_images])
def test_configuration_files_spell_out_every_keyword(factory, data_config):
    config = data_config(factory.__name__)
    keywords = parameters(factory)
    options = HFImageOptions.__annotations__.keys() & keywords.keys()
    assert config.pop("_target_") == f"{factory.__module__}.{factory.__name__}"
    assert set(config) == set(keywords)
    rgb = {"in_chans": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    own = {samples: vars(samples()), imagenet: rgb}.get(factory, {})
    open_ones = dict.fromkeys(ImageData.found_keys)
    defaults = {**vars(ImageData), **open_ones, **own}
    for name, keyword in keywords.items():
        default = defaults[name] if name in options else keyword.default
        if default is not inspect.Parameter.empty:
            assert config[name] == (list(default) if isinstance(default, tuple) else default), name


def test_configured_lists_are_read(data_config):
    config = data_config("samples")
    config.patch_size = 14
    del config["_target_"]
    data = samples(**config)
    assert (data.mean, data.crop_scale, data.token_grid) == ((0.286,), (0.4, 1.0), (2, 2))


def test_masks_that_do_not_fit_fail_early():
    with pytest.raises(ValueError, match=r"mask_length=9"):
        samples().pretrain_collate(InverseBlockMask(mask_length=9), 0)
