"""Batches of images: contents, order, seeds, resuming, bad files."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from pictures import MASK, loader, save_pictures
from same_batches import assert_same_batches
from torch.utils.data import DataLoader, Subset

from d2v.data.bad_samples import BadSample, BadSampleCounter, TooManyBadSamples
from d2v.data.images.factories import image_folder, samples
from d2v.data.keys import SampleKey


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
