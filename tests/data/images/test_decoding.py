"""Orientation, formats and bit depth of image files, alone and in data sets."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from d2v.data.bad_samples import BadSample
from d2v.data.images.augment import ImageAugment
from d2v.data.images.decoding import decode_image, deep_pixels, image_endings, to_channels
from d2v.data.images.factories import image_folder
from d2v.data.images.levels import UNSAMPLED, Levels, choose_levels, levels_of
from d2v.data.keys import SampleKey
from d2v.interop.build import build

UP = Image.fromarray((np.arange(12 * 8).reshape(12, 8) * 2).astype(np.uint8))  # 8 wide, 12 high
# How an upright image is stored by a camera that writes this orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "mean": (0.0,), "std": (1.0,)}


def stored(orientation: int, kind: str, image: Image.Image = UP) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    transpose = STORED[orientation]
    buffer = io.BytesIO()
    lying = image if transpose is None else image.transpose(transpose)
    lying.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colour_png_of_16_bits(pixels: np.ndarray) -> bytes:
    """What Pillow cannot write."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


# --- orientation


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_obeyed(orientation, kind):
    image = to_channels(decode_image(stored(orientation, kind)), 1)
    assert np.array_equal(np.asarray(image), np.asarray(UP))


@pytest.mark.parametrize("orientation", STORED)
def test_jpegs_and_deep_images_are_turned(orientation):
    assert decode_image(stored(orientation, "JPEG")).size == UP.size
    deep = Image.fromarray(np.asarray(UP).astype(np.uint16) * 257)
    for levels in (None, Levels.of_bits(16)):
        image = to_channels(decode_image(stored(orientation, "PNG", deep), levels), 1)
        assert np.array_equal(np.asarray(image), np.asarray(UP))


@pytest.mark.parametrize("value", [0, 9, 77])
def test_orientations_that_do_not_exist_and_corrupt_exif_are_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    for data in (exif.tobytes(), b"Exif\0\0MM\0*\0\0\0\x08garbage"):
        buffer = io.BytesIO()
        UP.save(buffer, "PNG", exif=data)
        assert np.array_equal(np.asarray(decode_image(buffer.getvalue())), np.asarray(UP))


def test_orientation_is_obeyed_by_every_view(tmp_path):
    """Evaluation, raw pixels, pretraining and fine-tuning."""
    for folder, orientation in (("up", 1), ("lying", 6)):
        for name in ("a", "b"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(2):
                (tmp_path / folder / name / f"{i}.png").write_bytes(stored(orientation, "PNG"))
    up, lying = (image_folder(str(tmp_path / f), **SMALL) for f in ("up", "lying"))
    assert torch.equal(up.eval_dataset("train")[0].inputs, lying.eval_dataset("train")[0].inputs)
    assert torch.equal(up.raw("train")[0], lying.raw("train")[0])
    key = SampleKey(0, 1)
    assert torch.equal(up.pretrain_dataset(0)[key].inputs, lying.pretrain_dataset(0)[key].inputs)
    for data in (up, lying):
        object.__setattr__(data, "val", data.train)
    views = [d.finetune(ImageAugment()).train_dataset(0)[key].inputs for d in (up, lying)]
    assert torch.equal(*views)


# --- bit depth


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "colours", "colours and opacity", "grey and opacity"])
def test_one_image_keeps_its_grey_levels(bits, kind):
    ramp = np.tile(np.linspace(0, 2**bits - 1, 256), (4, 1)).round().astype(np.uint16)
    if kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(ramp).save(buffer, kind)
        content = buffer.getvalue()
    else:
        channels = [ramp] * (1 if "grey" in kind else 3) + ([np.full_like(ramp, 65535)] if "opacity" in kind else [])
        content = colour_png_of_16_bits(np.stack(channels, -1))
    for levels in (None, Levels.of_bits(bits)):
        pixels = np.asarray(to_channels(decode_image(content, levels), 1)).astype(int)
        # PIL keeps the upper byte of colours of all 16 bits.
        assert np.abs(pixels - np.arange(256)).max() <= (1 if kind not in ("PNG", "TIFF") and bits == 16 else 0)


@pytest.mark.parametrize("num_channels", [2, 4])
def test_opacity_does_not_say_how_many_bits_are_used(num_channels):
    ramp = np.tile(np.linspace(0, 4095, 256), (4, 1)).round().astype(np.uint16)
    content = colour_png_of_16_bits(np.stack([ramp] * (num_channels - 1) + [np.full_like(ramp, 65535)], -1))
    levels, _ = choose_levels([deep_pixels(content)], None)
    assert levels.bits == 12
    pixels = np.asarray(to_channels(decode_image(content, levels), 1))
    assert (pixels == np.arange(256)).all()


@pytest.mark.parametrize("maxval", [1023, 4095, 65535])
@pytest.mark.parametrize("head", [b"P5", b"P2"])
def test_pgm_states_its_range(head, maxval):
    values = np.array([0, maxval // 4, maxval // 2], np.uint16)
    body = values.astype(">u2").tobytes() if head == b"P5" else " ".join(map(str, values)).encode()
    content = head + b"\n3 1\n%d\n" % maxval + body
    levels = UNSAMPLED if maxval < 65535 else Levels.of_bits(16)
    assert np.asarray(decode_image(content, levels)).tolist() == [[0, 64, 127]] or maxval == 65535
    assert (deep_pixels(content) is None) == (maxval < 65535)


def save_pngs(folder, values: list[int], *, bright: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, value in enumerate(values):
        pixels = np.full((8, 8), value, np.uint16)
        pixels[0, 0] = bright
        (folder / f"{i:03}.png").write_bytes(png(Image.fromarray(pixels)))


def test_a_data_set_has_one_range_and_says_so(tmp_path):
    save_pngs(tmp_path, [100, 1000, 4000])
    data = image_folder(str(tmp_path), **SMALL)
    pixels = [int(np.asarray(data.train.load(i))[4, 4]) for i in range(3)]
    assert pixels == [round(v * 255 / 4095) for v in (100, 1000, 4000)]  # a dark image stays dark
    note = "16- or 32-bit images, values 0 to 4000 in 3 of them: 12 bits; set bit_depth if that is wrong"
    assert note in "\n".join(data.describe())
    data = image_folder(str(tmp_path), bit_depth=16, **SMALL)
    assert int(np.asarray(data.train.load(2))[4, 4]) == round(4000 * 255 / 65535)
    assert "16-" not in "\n".join(data.describe())


def test_validation_has_the_range_of_training(tmp_path):
    for name in ("a", "b"):
        save_pngs(tmp_path / "train" / name, [4000])
        save_pngs(tmp_path / "val" / name, [1000])
    data = image_folder(str(tmp_path), **SMALL)
    assert int(np.asarray(data.val.load(0))[4, 4]) == round(1000 * 255 / 4095)


def test_8_bit_images_are_untouched_and_say_nothing(tmp_path):
    (tmp_path / "0.png").write_bytes(png(UP))
    data = image_folder(str(tmp_path), **SMALL)
    assert np.array_equal(np.asarray(data.train.load(0)), np.asarray(UP))
    assert len(data.describe()) == 1


@pytest.mark.parametrize("bit_depth", [7, 17, 12.5, True])
def test_bit_depths_that_do_not_exist(tmp_path, bit_depth):
    (tmp_path / "0.png").write_bytes(png(UP))
    node = {"_target_": "d2v.data.images.factories.image_folder", "root": str(tmp_path), "bit_depth": bit_depth}
    with pytest.raises(ValueError, match=r"data\.bit_depth=.*: give a whole number from 8 to 16 or null"):
        build(node, key="data")


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (([0.0, 0.5], [0.25, 1.0]), Levels(0, 1)),
        (([-1000, 0], [0, 3000]), Levels(-1000, 3000)),
        (([0, 100_000], [5, 7]), Levels(0, 100_000)),
        (([0.0, 900.5], [5.0, float("nan")]), Levels(0, 1023)),
    ],
)
def test_signed_and_float_tiffs_have_the_range_of_a_sample(tmp_path, values, levels):
    for i, row in enumerate(values):
        dtype = np.float32 if isinstance(row[0], float) else np.int32
        Image.fromarray(np.array([row], dtype)).save(tmp_path / f"{i}.tif")
    data = image_folder(str(tmp_path), **SMALL)
    assert data.train.levels == levels
    span = levels.high - levels.low
    for i, row in enumerate(values):
        expected = [round((max(v, levels.low) - levels.low) * 255 / span) if v == v else 0 for v in row]
        assert np.asarray(data.train.load(i)).tolist() == [expected]
    assert "in 2 of them" in "\n".join(data.describe())


def test_ranges():
    assert [levels_of(0, high).bits for high in (255, 256, 1023, 1024, 4095, 4096, 16383, 16384, 65535)] == [
        *(8, 10, 10, 12, 12, 14, 14, 16, 16)
    ]
    assert Levels(-5, 10).bits is None
    assert choose_levels([None, None], None) == (UNSAMPLED, ())
    assert choose_levels([np.array([4000], np.uint16)], 14) == (Levels.of_bits(14), ())


# --- formats


def test_endings():
    assert {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".avif",
        ".jp2",
        ".webp",
        ".tga",
        ".tif",
        ".gif",
        ".bmp",
        ".ppm",
    } < {*image_endings()}
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".wmf", ".heic", ".txt"} & {*image_endings()}


def test_formats_that_start_other_programs_are_not_read():
    with pytest.raises(BadSample, match="not an image file"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_git_lfs_pointers_are_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"6" * 64 + b"\nsize 146946961\n"
    (tmp_path / "0.jpg").write_bytes(pointer)
    for file in (pointer, tmp_path / "0.jpg"):
        with pytest.raises(BadSample, match=r"a Git LFS pointer, .*`git lfs pull`"):
            decode_image(file)
