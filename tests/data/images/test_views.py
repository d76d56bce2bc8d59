"""Pixels and views: modes, transparency, crops, flips, normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import loader, picture
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from d2v.data.bad_samples import BadSample
from d2v.data.images.factories import samples
from d2v.data.images.sources import decode_image, to_channels
from d2v.data.images.views import EvalTransform, Normalize, PretrainTransform, center_crop_box, random_crop_box

IDENTITY = Normalize((0.0,) * 3, (1 / 255,) * 3)  # pixel values as they are


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
def test_every_mode_becomes_the_requested_channels(tmp_path, mode, in_chans):
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (20, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(ramp.astype(np.int32) * 1000)
    elif mode == "F":
        image = Image.fromarray(ramp.astype(np.float32) / 248)
    else:
        image = Image.fromarray(ramp).convert("RGB").convert(mode)
    assert image.mode == mode
    path = tmp_path / ("image.tif" if mode in ("I", "F", "CMYK", "LA", "YCbCr") else "image.png")
    image.save(path)
    converted = to_channels(decode_image(path), in_chans)
    assert converted.mode == ("L" if in_chans == 1 else "RGB")
    pixels = np.asarray(converted).reshape(20, 32, in_chans).astype(int)
    tolerance = {"1": 255, "P": 51, "I": 8, "F": 8, "CMYK": 2, "YCbCr": 2}.get(mode, 0)
    assert np.abs(pixels - ramp[:, :, None]).max() <= tolerance
    if mode == "1":
        assert set(np.unique(pixels)) == {0, 255}


def test_transparency_is_composed_over_white():
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((0, 0), (255, 0, 0, 255))
    pixels = np.asarray(to_channels(rgba, 3))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["LAB", "HSV", "PA", "RGBX", "RGBa"])
def test_rare_modes_convert(mode):
    assert to_channels(Image.new(mode, (4, 4)), 1).mode == "L"
    assert to_channels(Image.new(mode, (4, 4)), 3).mode == "RGB"


def test_a_mode_without_conversion_is_a_bad_sample():
    with pytest.raises(BadSample, match="mode La cannot be converted to RGB"):
        to_channels(Image.new("La", (4, 4)), 3)


def test_eval_transform_is_torchvisions():
    for width, height, size, crop_pct in [
        (40, 32, 16, 0.875),
        (31, 77, 24, 0.8),
        (28, 28, 28, 1.0),
        (300, 41, 32, 1.0),
    ]:
        image = picture(width, height)
        resize = v2.Resize(round(size / crop_pct), interpolation=InterpolationMode.BICUBIC)
        expected = np.asarray(v2.CenterCrop(size)(resize(image))).transpose(2, 0, 1).astype(np.float32)
        ours = EvalTransform(size, crop_pct, IDENTITY)(image)
        assert (ours - torch.from_numpy(expected)).abs().max() <= 1.001  # one grey level of rounding


def test_an_odd_margin_of_the_center_crop_is_rounded_as_torchvision_does():
    """Margins of 1.5 pixels are rounded to even: 2, and of 0.5 to 0."""
    assert center_crop_box(11, 8, 8, 1.0) == (2.0, 0.0, 10.0, 8.0)
    assert center_crop_box(8, 9, 8, 1.0) == (0.0, 0.0, 8.0, 8.0)


def test_normalize():
    image = picture()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = v2.Normalize(mean, std)(v2.ToDtype(torch.float32, scale=True)(v2.ToImage()(image)))
    ours = Normalize(mean, std)(image)
    torch.testing.assert_close(ours, torch.as_tensor(expected))
    assert ours.is_contiguous()
    assert ours.dtype == torch.float32


def test_crop_boxes_follow_scale_and_ratio():
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(3000):
        left, upper, right, lower = random_crop_box(640, 480, (0.2, 0.6), rng.random(40).tolist())
        assert 0 <= left < right <= 640
        assert 0 <= upper < lower <= 480
        areas.append((right - left) * (lower - upper) / (640 * 480))
        ratios.append((right - left) / (lower - upper))
    assert 0.195 < min(areas) < 0.22
    assert 0.58 < max(areas) < 0.605
    assert abs(np.mean(areas) - 0.4) < 0.01
    assert abs(np.mean(np.log(ratios))) < 0.01
    assert 0.74 < min(ratios) < 0.77
    assert 1.3 < max(ratios) < 1.35


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))])
def test_crop_of_a_very_long_image_falls_back_to_the_center(size, box):
    assert random_crop_box(*size, (0.9, 1.0), np.random.default_rng(0).random(40).tolist()) == box


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images_work(size):
    image = picture(*size)
    assert PretrainTransform(16, (0.2, 1.0), 0.5, IDENTITY)(image, np.random.default_rng(0)).shape == (3, 16, 16)
    assert EvalTransform(16, 0.875, IDENTITY)(image).shape == (3, 16, 16)


def test_the_flip_mirrors_and_has_its_probability():
    image = picture(16, 16)
    views = {
        hflip: [PretrainTransform(16, (1.0, 1.0), hflip, IDENTITY)(image, np.random.default_rng(i)) for i in range(100)]
        for hflip in (0.0, 0.3, 1.0)
    }
    for never, always in zip(views[0.0], views[1.0], strict=True):
        assert torch.equal(never.flip(2), always)
    flipped = sum(torch.equal(a, b) for a, b in zip(views[0.3], views[1.0], strict=True))
    assert 15 < flipped < 45
    left_is_white = Image.fromarray(np.repeat(np.array([[255] * 8 + [0] * 8], np.uint8), 16, axis=0)).convert("RGB")
    plain = PretrainTransform(16, (1.0, 1.0), 0.0, IDENTITY)(left_is_white, np.random.default_rng(0))
    assert plain[:, :, 0].min() > 200 > 50 > plain[:, :, -1].max()


def test_a_crop_lies_anywhere_in_both_directions():
    boxes = [random_crop_box(400, 400, (0.25, 0.25), np.random.default_rng(i).random(40).tolist()) for i in range(2000)]
    rows, columns = ([box[side] / (400 - box[side + 2] + box[side]) for box in boxes] for side in (1, 0))
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.1
    for places in (rows, columns):
        assert abs(np.mean(places) - 0.5) < 0.03
        assert min(places) < 0.02
        assert max(places) > 0.98


def test_grey_and_colour_are_converted():
    for in_chans in (1, 3):
        data = samples(in_chans=in_chans, mean=[0.5] * in_chans, std=[0.5] * in_chans)
        assert next(iter(loader(data, batches=1))).inputs.shape == (8, in_chans, 28, 28)
