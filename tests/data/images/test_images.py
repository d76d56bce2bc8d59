"""Sources, views, batches, errors: with small image files of the kinds that people have."""

from __future__ import annotations

import inspect
import pickle
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from d2v.arguments import parameters
from d2v.data.bad_samples import BadSample, BadSampleCounter, TooManyBadSamples
from d2v.data.images.factories import HFImageOptions, ImageData, hf_images, image_folder, imagenet, samples
from d2v.data.images.sources import ImageFolder, SampleImages, decode_image, to_channels
from d2v.data.images.views import EvalTransform, Normalize, PretrainTransform, center_crop_box, random_crop_box
from d2v.data.keys import SampleKey
from d2v.data.samplers import StreamSampler
from d2v.interop.build import build
from d2v.objective.masking import InverseBlockMask

MASK = InverseBlockMask(num_masks=4, mask_ratio=0.6, mask_length=2)
IDENTITY = Normalize((0.0,) * 3, (1 / 255,) * 3)  # pixel values as they are


def picture(width: int = 40, height: int = 32, seed: int = 0) -> Image.Image:
    """A smooth RGB picture, different for every seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save_pictures(directory: Path, count: int, suffix: str = ".png", first_seed: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(seed=first_seed + i).save(directory / f"{i:03}{suffix}")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file whose header promises this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def assert_same_batches(a: list, b: list) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.inputs, y.inputs)
        assert torch.equal(x.sample_ids, y.sample_ids)
        assert torch.equal(x.mask.mask, y.mask.mask)
        assert x.skipped == y.skipped


def loader(data: ImageData, *, batches: int = 6, micro: int = 8, start: int = 0, workers: int = 0, seed: int = 3):
    sampler = StreamSampler(
        num_samples=data.num_samples, micro_batch_size=micro, num_batches=batches, start_batch=start, seed=seed
    )
    return DataLoader(
        data.pretrain_dataset(seed),
        batch_sampler=sampler,
        collate_fn=data.pretrain_collate(MASK, seed),
        num_workers=workers,
    )


# --- the shipped samples


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


# --- folders


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


# --- decoding


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


# --- transforms


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


# --- batches


def test_batch_contents():
    data = samples(patch_size=7)
    batch = next(iter(loader(data)))
    assert (batch.modality, data.modality) == ("image", "image")
    assert batch.inputs.shape == (8, 1, 28, 28)
    assert batch.inputs.dtype == torch.float32
    assert batch.sample_ids.dtype == torch.int64
    assert batch.mask.mask.shape == (8 * MASK.num_masks, 16)
    assert batch.mask.num_masks == MASK.num_masks
    assert batch.labels is None
    assert batch.skipped == ()
    assert data.token_grid == (4, 4)


def test_batches_are_the_same_for_any_number_of_workers_and_leave_global_randomness_alone():
    data = samples()
    states = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    alone = list(loader(data))
    dataset, collate = data.pretrain_dataset(3), data.pretrain_collate(MASK, 3)
    collate([dataset[SampleKey(0, 0)]])
    assert random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    assert_same_batches(alone, list(loader(data, workers=2)))


def test_making_a_sample_draws_nothing_from_torch():
    data = samples()
    state = torch.random.get_rng_state()
    data.pretrain_collate(MASK, 3)([data.pretrain_dataset(3)[SampleKey(0, 0)]])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_workers_may_be_spawned():
    dataset = samples().pretrain_dataset(3)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[SampleKey(0, 7)].inputs, dataset[SampleKey(0, 7)].inputs)


def test_a_resumed_run_sees_the_rest():
    data = samples()
    assert_same_batches(list(loader(data))[4:], list(loader(data, start=4)))


def test_views_and_masks_depend_on_seed_epoch_and_sample():
    data = samples()

    def one(seed: int, epoch: int, index: int):
        return data.pretrain_collate(MASK, seed)([data.pretrain_dataset(seed)[SampleKey(epoch, index)]])

    reference = one(0, 0, 5)
    assert_same_batches([reference], [one(0, 0, 5)])
    for other in (one(1, 0, 5), one(0, 1, 5)):
        assert not torch.equal(other.inputs, reference.inputs)
        assert not torch.equal(other.mask.mask, reference.mask.mask)
    assert not torch.equal(one(0, 0, 6).mask.mask, reference.mask.mask)


def test_a_data_set_smaller_than_a_batch(tmp_path):
    save_pictures(tmp_path, 3)
    batches = list(loader(image_folder(str(tmp_path), img_size=32), micro=8, batches=3))
    ids = torch.cat([batch.sample_ids for batch in batches])
    assert ids.shape == (24,)
    assert (ids.reshape(8, 3).sort(1).values == torch.arange(3)).all()


def test_a_bad_file_is_replaced_by_the_next_good_one(tmp_path):
    save_pictures(tmp_path, 6)
    for name in ("002.png", "003.png", "005.png"):
        (tmp_path / name).write_bytes(b"")
    data = image_folder(str(tmp_path), img_size=32, max_bad_fraction=1.0)
    dataset = data.pretrain_dataset(0)
    replaced = dataset[SampleKey(7, 2)]
    assert replaced.key == (7, 4)
    assert replaced.skipped == ("002.png: empty file", "003.png: empty file")
    assert torch.equal(replaced.inputs, dataset[SampleKey(7, 4)].inputs)
    assert dataset[SampleKey(0, 5)].key == (0, 0)  # round the end
    batch = data.pretrain_collate(MASK, 0)([dataset[SampleKey(0, i)] for i in range(6)])
    assert batch.sample_ids.tolist() == [0, 1, 4, 4, 4, 0]
    assert set(batch.skipped) == {"002.png: empty file", "003.png: empty file", "005.png: empty file"}
    assert_same_batches(list(loader(data)), list(loader(data, workers=2)))


def test_nothing_but_bad_files(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadSample, match=r"2 samples in a row cannot be read, from b\.png: empty file to a\.png"):
        image_folder(str(tmp_path)).pretrain_dataset(0)[SampleKey(0, 1)]


def test_evaluation_keeps_order_and_drops_bad_files(tmp_path):
    save_pictures(tmp_path / "a", 3)
    save_pictures(tmp_path / "b", 3, ".jpg")
    (tmp_path / "a" / "001.png").write_bytes(b"")
    data = image_folder(str(tmp_path), img_size=32)
    batches = list(DataLoader(data.eval_dataset("train"), batch_size=4, collate_fn=data.eval_collate))
    assert [batch.sample_ids.tolist() for batch in batches] == [[0, 2, 3], [4, 5]]
    assert [batch.labels.tolist() for batch in batches] == [[0, 0, 1], [1, 1]]
    assert [batch.skipped for batch in batches] == [("a/001.png: empty file",), ()]
    assert batches[0].mask is None
    nothing = data.eval_collate([data.eval_dataset("train")[1]])
    assert nothing.inputs.shape == (0, 3, 32, 32)
    assert len(Subset(data.eval_dataset("train"), [0, 5])) == 2


def test_raw_pixels():
    data = samples()
    features, labels = data.raw("val")
    assert features.shape == (len(data.val), 28 * 28)
    assert labels.shape == (len(data.val),)
    centroids = torch.stack([features[labels == c].mean(0) for c in range(10)])
    accuracy = (torch.cdist(features, centroids).argmin(1) == labels).float().mean()
    assert accuracy > 0.6  # the nearest class mean, on the images it was made of


def test_raw_pixels_are_at_most_32_a_side(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            save_pictures(tmp_path / split / name, 2)
    features, labels = image_folder(str(tmp_path), img_size=48).raw("val")
    assert features.shape == (4, 3 * 32 * 32)
    assert labels.tolist() == [0, 0, 1, 1]


# --- counting bad samples


def test_the_counter_counts_distinct_names_and_stops_the_run():
    counter = BadSampleCounter(0.01, num_samples=300)
    assert counter.update(["a.png: empty file"]) == ["a.png: empty file"]
    assert counter.update(["a.png: empty file"] * 5) == []
    assert counter.update(["b.png: truncated", "d.png: x"]) == ["b.png: truncated", "d.png: x"]
    with pytest.raises(TooManyBadSamples, match=r"4 of the data set's 300 .*max_bad_fraction=0\.01") as error:
        counter.update(["c.png: not an image file"])
    assert "a.png: empty file" in str(error.value)


def test_the_counter_of_a_stream_waits_for_a_sample_of_it():
    counter = BadSampleCounter(0.01, num_samples=None)
    for i in range(10):
        counter.update([f"row[{i}]: empty file"], num_seen=8)
    with pytest.raises(TooManyBadSamples, match="11 of the first 1,000 samples"):
        counter.update(["row[10]: empty file"], num_seen=8)
    patient = BadSampleCounter(0.01, num_samples=None)
    patient.update([], num_seen=100_000)
    patient.update([f"row[{i}]: empty file" for i in range(1000)])


# --- factories and their errors


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
        ({"img_size": 30}, r"data\.img_size=30 is no multiple of data\.patch_size=4; set data\.img_size=32"),
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
    if factory is samples:
        config.patch_size = 4  # so that the tokens of the smallest models are few
    for name, keyword in keywords.items():
        default = getattr(samples() if factory is samples else ImageData, name) if name in options else keyword.default
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


def test_grey_and_colour_are_converted():
    for in_chans in (1, 3):
        data = samples(in_chans=in_chans, mean=[0.5] * in_chans, std=[0.5] * in_chans)
        assert next(iter(loader(data, batches=1))).inputs.shape == (8, in_chans, 28, 28)
