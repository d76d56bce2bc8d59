"""Hugging Face data sets in local directories, map-style and streaming."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from same_batches import assert_same_batches
from torch.utils.data import DataLoader

from d2v.data.bad_samples import BadSample
from d2v.data.images.data import ImageData
from d2v.data.images.factories import hf_images
from d2v.data.images.hub import HFImages, HFImageStream
from d2v.data.samplers import BatchPlan
from d2v.data.streams import StreamBatches
from d2v.objective.masking import InverseBlockMask

datasets = pytest.importorskip("datasets")

MASK = InverseBlockMask(num_masks=2, mask_ratio=0.6, mask_length=2)
BAD = (4, 5)  # rows that do not decode
ROWS = 23


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def rows(count: int = ROWS) -> list[dict]:
    return [{"bytes": b"" if i in BAD else png(i), "path": None} for i in range(count)]


def table(count: int = ROWS) -> datasets.Dataset:
    features = datasets.Features(
        {"id": datasets.Value("string"), "img": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    )
    columns = {"id": [str(i) for i in range(count)], "img": rows(count), "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def parquet(tmp_path):
    """A directory as the Hub has them: two files of the train split, one of validation."""
    root = tmp_path / "set"
    root.mkdir()
    whole = table()
    whole.select(range(10)).to_parquet(root / "train-00000-of-00002.parquet")
    whole.select(range(10, ROWS)).to_parquet(root / "train-00001-of-00002.parquet")
    whole.select(range(4)).to_parquet(root / "validation-00000-of-00001.parquet")
    return str(root)


def test_parquet(parquet):
    source = HFImages(parquet)
    assert len(source) == ROWS
    assert source.class_names == ("even", "odd")
    assert [source.label(i) for i in range(3)] == [0, 1, 0]
    assert np.array_equal(np.asarray(source.load(12)), np.asarray(Image.open(io.BytesIO(png(12)))))
    assert source.name(12) == f"{parquet}/train[12]"
    with pytest.raises(BadSample, match="empty file"):
        source.load(BAD[0])


def test_saved_to_disk(tmp_path):
    table().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table(), "val": table(3)}).save_to_disk(tmp_path / "several")
    assert len(HFImages(str(tmp_path / "one"))) == ROWS
    assert len(HFImages(str(tmp_path / "several"), "val")) == 3
    assert len(list(HFImageStream(str(tmp_path / "several"), "train"))) == ROWS
    with pytest.raises(ValueError, match=r"split=test: no such split of .*it has train, val"):
        HFImages(str(tmp_path / "several"), "test")


def test_image_directories(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / "train" / name).mkdir(parents=True)
        (tmp_path / "set" / "train" / name / "0.png").write_bytes(png(0))
    source = HFImages(str(tmp_path / "set"))
    assert (len(source), source.class_names, source.label(1)) == (2, ("a", "b"), 1)
    assert source.load(1).size == (24, 20)


def put(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(0))
    return str(root)


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_that_hugging_face_leaves_out_are_named(tmp_path, streaming):
    path = put(tmp_path / "voc", "bus/0.png", "car/0.png", "train/0.png", "train/0.heic")
    lines = hf_images(path, streaming=streaming).describe()
    assert lines[1] == "          left out: 1 with other endings (1 .heic)"
    assert lines[2].strip() == (
        "Hugging Face takes folders with names of splits as splits and leaves out bus/, car/; data=image_folder "
        f"root={path} reads folders as docs/data.md says"
    )


def test_folders_in_which_hugging_face_finds_no_labels_are_named(tmp_path):
    stray = put(tmp_path / "stray", "a/0.png", "b/0.png", "0.png", "notes.txt")
    assert "Hugging Face finds no labels in these folders; data=image_folder" in hf_images(stray).describe()[-1]
    splits = put(tmp_path / "splits", *(f"{split}/{name}/0.png" for split in ("train", "test") for name in "ab"))
    assert len(hf_images(splits).describe()) == 1


def test_labels_that_no_row_has_are_refused(tmp_path):
    datasets.Dataset.from_list([{"image": None, "kind": None}] * 2).cast_column(
        "kind", datasets.Value("string")
    ).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"label_column=kind: no row of split=train .* has a label"):
        hf_images(str(tmp_path / "none"), label_column="kind")


def test_damaged_saved_data_are_named(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"path=.*saved: cannot be read as what save_to_disk wrote .*save it again"):
        HFImages(str(tmp_path / "saved"))


def test_columns_are_found_or_asked_for(tmp_path):
    images = table(4)
    two = images.add_column("copy", images.cast_column("img", datasets.Image(decode=False))["img"][:])
    two = two.cast_column("copy", datasets.Image())
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"image_column=null: .* has 2 columns of images; .* of img, copy"):
        HFImages(str(tmp_path / "two"))
    assert len(HFImages(str(tmp_path / "two"), image_column="copy")) == 4
    images.select_columns(["id"]).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"image_column=null: .* has 0 columns of images"):
        HFImages(str(tmp_path / "none"))
    images.save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"image_column=image: .* has the columns id, img, label"):
        HFImages(str(tmp_path / "one"), image_column="image")
    with pytest.raises(
        ValueError, match=r"label_column=img: not a column of class labels, whole numbers, words or flags"
    ):
        HFImages(str(tmp_path / "one"), label_column="img")


def test_parquet_without_hugging_face_metadata(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": rows(4), "fine": [3, 1, -1, 2]}), tmp_path / "set" / "train.parquet")
    source = HFImages(str(tmp_path / "set"), label_column="fine")
    assert source.load(0).size == (24, 20)
    assert [source.label(i) for i in range(4)] == [3, 1, 0, 2]
    assert (source.has_labels, source.class_names) == (True, ("-1", "1", "2", "3"))
    assert not HFImages(str(tmp_path / "set")).has_labels
    assert hf_images(str(tmp_path / "set")).probe_train is None
    assert "no column of class labels; label_column could be fine" in hf_images(str(tmp_path / "set")).describe()[1]
    with pytest.raises(ValueError, match=r"val_split=train\[2:\]: .* has no column of class labels"):
        hf_images(str(tmp_path / "set"), "train[:2]", val_split="train[2:]")


def test_errors(parquet, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"path=\./gone: no such directory"):
        hf_images("./gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"path=.*empty: neither a local directory of parquet"):
        hf_images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"split=tset: no such split"):
        hf_images(parquet, "tset")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"path=.*: needs the package datasets; pip install datasets"):
        hf_images(parquet)


def test_map_style_data(parquet):
    data = hf_images(parquet, val_split="validation", img_size=32)
    assert (data.streaming, data.num_samples, len(data.val)) == (False, ROWS, 4)
    sample = data.pretrain_dataset(0)[(0, BAD[0])]
    assert sample.key.index == BAD[-1] + 1
    assert sample.skipped == tuple(f"{parquet}/train[{i}]: empty file" for i in BAD)
    assert data.eval_collate([data.eval_dataset("val")[i] for i in range(4)]).labels.tolist() == [0, 1, 0, 1]


# --- streaming


def stream(data: ImageData, **plan: int) -> StreamBatches:
    full_plan = BatchPlan(**({"micro_batch_size": 4, "num_batches": 16} | plan))
    return data.pretrain_stream(MASK, 5, full_plan)


def batches(data: ImageData, workers: int = 0, **plan: int) -> list:
    return list(DataLoader(stream(data, **plan), batch_size=None, num_workers=workers))


@pytest.fixture
def streamed(parquet):
    return hf_images(parquet, streaming=True, img_size=32, shuffle_buffer=8)


def test_a_stream_gives_every_row_once_an_epoch(streamed):
    assert (streamed.streaming, streamed.num_samples, streamed.class_names) == (True, None, None)
    found = batches(streamed, num_batches=3 * ROWS, micro_batch_size=1)
    epochs = torch.cat([batch.sample_ids for batch in found]).reshape(3, ROWS).tolist()
    good = set(range(ROWS)) - set(BAD)
    for epoch in epochs:
        assert set(epoch) == good  # a bad row's place is taken by the row after it
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])
    named = {entry for batch in found for entry in batch.skipped}
    assert {name.rpartition("/")[2] for name in named} == {f"train[{i}]: empty file" for i in BAD}


def test_a_buffer_of_one_keeps_the_order(parquet):
    found = batches(hf_images(parquet, streaming=True, img_size=32, shuffle_buffer=1), num_batches=2)
    assert torch.cat([batch.sample_ids for batch in found]).tolist() == [0, 1, 2, 3, 6, 6, 6, 7]


def test_the_number_of_workers_changes_nothing(streamed):
    assert_same_batches(batches(streamed), batches(streamed, workers=2))


def test_a_resumed_stream_goes_on_where_it_stopped(streamed):
    whole = batches(streamed)
    for start in (1, 5, 6, 13):  # 13 * 4 rows: in the third epoch
        assert_same_batches(batches(streamed, start_batch=start), whole[start:])
    assert_same_batches(batches(streamed, start_batch=7, workers=2), whole[7:])
    assert len(stream(streamed, start_batch=7)) == 16
    assert batches(streamed, start_batch=16) == []


def test_a_resumed_stream_reads_only_one_epoch_to_count(streamed, monkeypatch):
    passes = []
    read = HFImageStream.__iter__
    monkeypatch.setattr(HFImageStream, "__iter__", lambda self: passes.append(1) or read(self))
    next(iter(stream(streamed, start_batch=100, num_batches=200)))
    assert len(passes) == 2


def test_ranks_share_the_stream(streamed):
    whole = batches(streamed, micro_batch_size=8, num_batches=4)
    for split in ({"world_size": 2, "micro_batch_size": 4}, {"world_size": 4, "micro_batch_size": 2}):
        ranks = [batches(streamed, num_batches=4, rank=rank, **split) for rank in range(split["world_size"])]
        for step, batch in enumerate(whole):
            assert torch.equal(torch.cat([rank[step].inputs for rank in ranks]), batch.inputs)
            assert torch.equal(torch.cat([rank[step].mask.mask for rank in ranks]), batch.mask.mask)


def test_an_empty_stream_says_so(tmp_path):
    (tmp_path / "set").mkdir()
    table(0).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"the stream has no rows; check path=... and split=..."):
        batches(hf_images(str(tmp_path / "set"), streaming=True))


def test_streams_and_map_style_data_are_not_mixed_up(streamed, parquet):
    with pytest.raises(ValueError, match=r"streaming=true: use pretrain_stream"):
        streamed.pretrain_dataset(0)
    with pytest.raises(ValueError, match=r"streaming=false: use pretrain_dataset"):
        stream(hf_images(parquet))


def labelled(values: list, feature=None) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": feature}) if feature is not None else None
    images = [{"bytes": png(i), "path": None} for i in range(len(values))]
    return datasets.Dataset.from_dict({"image": images, "label": values}, features=features)


def save(path, **splits) -> str:
    datasets.DatasetDict(splits).save_to_disk(path)
    return str(path)


def both(path: str, **options) -> tuple[list, list, tuple]:
    data = hf_images(path, val_split="test", **options)
    return (
        [data.train.label(i) for i in range(len(data.train))],
        [data.val.label(i) for i in range(len(data.val))],
        data.class_names,
    )


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    train = labelled([0, 1], datasets.ClassLabel(names=["dark", "light"]))
    test = labelled([0, 1, -1], datasets.ClassLabel(names=["light", "dark"]))
    path = save(tmp_path / "set", train=train, test=test)
    assert both(path) == ([0, 1], [1, 0, None], ("dark", "light"))
    summary = "\n".join(hf_images(path, val_split="test").describe())
    assert "classes in another order than training's: matched by name" in summary
    assert "1 rows without a label" in summary


@pytest.mark.parametrize("names", [["dark"], ["dark", "light", "red"], ["dark", "red"]])
def test_other_classes_are_refused_with_their_names(tmp_path, names):
    train = labelled([0, 1], datasets.ClassLabel(names=["dark", "light"]))
    path = save(tmp_path / "set", train=train, test=labelled([0], datasets.ClassLabel(names=names)))
    message = rf"val_split=test of path=.*: its {len(names)} classes are {', '.join(names)}, but the 2 of .*"
    with pytest.raises(ValueError, match=message):
        hf_images(path, val_split="test")


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        ([5, 10, 7, None], [10, 5], ("5", "7", "10")),
        ([True, False, True, None], [True, False], ("False", "True")),
        (["dog", "cat", "eel", None], ["eel", "dog"], ("cat", "dog", "eel")),
    ],
)
def test_plain_columns_have_their_distinct_values_as_classes(tmp_path, train, test, names):
    path = save(tmp_path / "set", train=labelled(train), test=labelled(test))
    found = both(path, label_column="label")
    assert found[2] == names
    for values, labels in ((train, found[0]), (test, found[1])):
        assert labels == [None if value is None else names.index(str(value)) for value in values]


def test_values_that_training_lacks_are_refused(tmp_path):
    path = save(tmp_path / "set", train=labelled([1, 2]), test=labelled([2, 3]))
    with pytest.raises(ValueError, match=r"val_split=test .*: its 2 classes are 2, 3, .*; 3 are not in the training"):
        hf_images(path, val_split="test", label_column="label")


def test_splits_that_do_not_exist_are_named_by_their_key(parquet, tmp_path):
    saved = save(tmp_path / "saved", train=table(3), validation=table(3))
    table(3).save_to_disk(tmp_path / "alone")
    for path in (parquet, saved, str(tmp_path / "alone")):
        with pytest.raises(ValueError, match=r"val_split=val: no such split of path="):
            hf_images(path, val_split="val")
        with pytest.raises(ValueError, match=r"split=tset: no such split of path="):
            hf_images(path, "tset")


@pytest.mark.parametrize(("split", "val_split"), [("train", "train"), ("train", "train[:10%]")])
def test_evaluating_on_training_images_is_refused(parquet, split, val_split):
    with pytest.raises(ValueError, match=r"val_split=.*: is in split=train, which is trained on"):
        hf_images(parquet, split, val_split)


def test_git_lfs_pointers_are_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"6" * 64 + b"\nsize 146946961\n"
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(pointer)
    with pytest.raises(ValueError, match=r"path=.*parquet is a Git LFS pointer.*`git lfs pull`"):
        hf_images(str(tmp_path))


def test_damaged_parquet_is_one_message(parquet):
    (Path(parquet) / "train-00000-of-00002.parquet").write_bytes(b"PAR1" + b"x" * 2000)
    with pytest.raises(ValueError, match=r"path=.*: cannot be read"):
        hf_images(parquet)


def test_orientation_and_bit_depth_of_rows(tmp_path):
    """Of streams, too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pixels = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24) * 8  # up to 3,832: 12 bits
    Image.fromarray(pixels).save(buffer, "png", exif=exif)
    images = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": png(0), "path": None}]
    features = datasets.Features({"img": datasets.Image()})
    datasets.Dataset.from_dict({"img": images}, features=features).save_to_disk(tmp_path / "set")
    expected = np.rot90((pixels * (255 / 4095)).round(), -1)
    data = hf_images(str(tmp_path / "set"))
    stream = hf_images(str(tmp_path / "set"), streaming=True)
    row = next(iter(stream.train))
    for image in (data.train.load(0), stream.train.decode(row)):
        assert np.array_equal(np.asarray(image), expected)
    for described in (data.describe(), stream.describe()):
        assert "12 bits; set bit_depth if that is wrong" in described[1]
    full = hf_images(str(tmp_path / "set"), streaming=True, bit_depth=16)
    assert np.asarray(full.train.decode(row)).max() == round(3832 * 255 / 65535)


def test_validation_rows_have_the_range_of_training(tmp_path):
    def split(value: int) -> datasets.Dataset:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(buffer, "png")
        return labelled([0, 1]).map(lambda _: {"image": {"bytes": buffer.getvalue(), "path": None}})

    path = save(tmp_path / "set", train=split(4000), test=split(1000))
    data = hf_images(path, val_split="test", label_column="label")
    assert np.asarray(data.val.load(0)).max() == round(1000 * 255 / 4095)
