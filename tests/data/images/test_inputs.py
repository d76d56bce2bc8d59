"""Inputs that a user leaves open: channels, mean, standard deviation, evaluation crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture, save_pictures
from PIL import Image

from d2v.data.images.factories import ImageData, image_folder, imagenet, samples
from d2v.data.images.inputs import IMAGENET_MEAN, IMAGENET_STD, PixelStatistics, choose_channels, is_grey


def grey_picture(seed: int = 0, mode: str = "L") -> Image.Image:
    return picture(seed=seed).convert("L").convert(mode)


def save_grey(directory: Path, count: int, mode: str = "L") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        grey_picture(i, mode).save(directory / f"{i:03}.png")


def own_statistics(directory: Path) -> tuple[float, float]:
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in sorted(directory.iterdir())]) / 255
    return float(pixels.mean()), float(pixels.std())


@pytest.mark.parametrize(("img_size", "expected"), [(28, 1.0), (112, 1.0), (128, 0.875), (224, 0.875)])
def test_small_images_are_not_cropped(tmp_path: Path, img_size: int, expected: float) -> None:
    save_pictures(tmp_path, 1)
    folder = {"img_size": img_size, "patch_size": 14 if img_size % 16 else 16}
    assert image_folder(str(tmp_path), **folder).crop_pct == expected
    assert image_folder(str(tmp_path), **folder, crop_pct=0.9).crop_pct == 0.9
    assert image_folder(str(tmp_path), **folder, crop_pct=None).crop_pct == expected


def test_an_evaluation_view_of_a_small_image_is_the_whole_of_it(tmp_path: Path) -> None:
    picture(32, 32).save(tmp_path / "a.png")
    data = image_folder(str(tmp_path), img_size=32, mean=[0, 0, 0], std=[1, 1, 1])
    view = data.eval_dataset("train")[0].inputs
    whole = torch.from_numpy(np.asarray(picture(32, 32)).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(view, whole)


@pytest.mark.parametrize("crop_pct", [None, 0.5])
def test_raw_pixels_are_of_the_whole_image_whatever_the_crop(tmp_path: Path, crop_pct: float | None) -> None:
    """A wide image: squeezed to a square, not cropped to one."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wide = Image.new("RGB", (64, 32))
        wide.paste((255, 255, 255), (0, 0, 8, 32))  # what a center crop would lose
        wide.save(tmp_path / name / "wide.png")
    data = image_folder(str(tmp_path), img_size=32, crop_pct=crop_pct, mean=[0, 0, 0], std=[1, 1, 1])
    pixels, labels = data.raw("train")
    images = pixels.view(2, 3, 32, 32)
    assert labels.tolist() == [0, 1]
    assert images[..., :3].min() > 0.9
    assert images[..., 8:].max() < 0.1


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "RGB", "RGBA", "P"])
def test_grey_is_what_has_no_colour(mode: str, tmp_path: Path) -> None:
    image = grey_picture().convert("I;16") if mode == "I;16" else grey_picture(mode=mode)
    assert is_grey(image)
    tinted = picture()
    assert not is_grey(tinted)
    assert not is_grey(tinted.convert("RGBA"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_grey_folder_stays_grey(tmp_path: Path, mode: str) -> None:
    save_grey(tmp_path, 5, mode)
    (tmp_path / "bad.png").write_bytes(b"")
    data = image_folder(str(tmp_path), img_size=32)
    (tmp_path / "bad.png").unlink()
    mean, std = own_statistics(tmp_path)
    assert data.in_chans == 1
    assert (data.mean[0], data.std[0]) == pytest.approx((mean, std), abs=1e-3)
    assert data.eval_dataset("train")[0].inputs.shape == (1, 32, 32)
    noted = f"grey images: in_chans=1 mean=[{data.mean[0]:.4f}] std=[{data.std[0]:.4f}], of 5 images"
    assert noted in "\n".join(data.describe())


def test_a_folder_with_a_colour_keeps_three_channels(tmp_path: Path) -> None:
    save_grey(tmp_path, 5)
    picture().save(tmp_path / "last.png")
    data = image_folder(str(tmp_path), img_size=32)
    assert (data.in_chans, data.mean, data.std) == (3, IMAGENET_MEAN, IMAGENET_STD)
    assert not any("grey" in line for line in data.describe())


def test_what_is_given_is_kept(tmp_path: Path) -> None:
    save_grey(tmp_path, 3)
    root = str(tmp_path)
    rgb = image_folder(root, img_size=32, in_chans=3)
    assert (rgb.in_chans, rgb.mean) == (3, IMAGENET_MEAN)
    by_mean = image_folder(root, img_size=32, mean=[0.5, 0.5, 0.5])
    assert (by_mean.in_chans, by_mean.mean, by_mean.std) == (3, (0.5,) * 3, IMAGENET_STD)
    half = image_folder(root, img_size=32, mean=[0.25])
    assert (half.in_chans, half.mean) == (1, (0.25,))
    assert half.std[0] == pytest.approx(own_statistics(tmp_path)[1], abs=1e-3)
    both = image_folder(root, img_size=32, in_chans=1, mean=[0.25], std=[0.5])
    assert (both.mean, both.std, both.train.contents.notes) == ((0.25,), (0.5,), ())  # type: ignore[union-attr]


def test_colours_in_one_channel_are_measured_in_grey(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3)
    data = image_folder(str(tmp_path), img_size=32, in_chans=1)
    assert data.mean[0] == pytest.approx(own_statistics(tmp_path)[0], abs=1e-3)
    assert any("mean=[" in line and "grey images" not in line for line in data.describe())


def test_images_that_cannot_be_read_decide_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert image_folder(str(tmp_path), img_size=32).in_chans == 3
    assert image_folder(str(tmp_path), img_size=32, in_chans=1).mean == (0.5,)


def test_a_black_folder_has_a_deviation_to_divide_by(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    data = image_folder(str(tmp_path), img_size=32)
    assert data.eval_dataset("train")[0].inputs.isfinite().all()


def test_a_stream_is_rgb_unless_told_otherwise() -> None:
    stream = iter(())
    assert choose_channels(stream, None, None, None).in_chans == 3
    assert choose_channels(stream, 1, [0.5], [0.5]).mean == [0.5]
    with pytest.raises(ValueError, match=r"in_chans=1: the images of a stream are not measured; give mean="):
        choose_channels(stream, 1, [0.5], None)


def test_imagenet_and_samples_say_what_they_are(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_grey(tmp_path / split / "a", 1)
        save_grey(tmp_path / split / "b", 1)
    data: ImageData = imagenet(str(tmp_path))
    assert (data.in_chans, data.mean, data.crop_pct) == (3, IMAGENET_MEAN, 0.875)
    assert (samples().mean, samples(in_chans=1, mean=None).mean[0]) == ((0.286,), pytest.approx(0.286, abs=0.02))


def test_every_image_counts_equally() -> None:
    statistics = PixelStatistics(1)
    for value, size in ((0, 2), (255, 20)):
        statistics.add(Image.new("L", (size, size), value))
    assert (len(statistics), statistics.mean, statistics.std) == (2, [0.5], [0.5])
