from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from d2v.data.images.augment import AugmentedView, ImageAugment, MixCollate, seeded
from d2v.data.images.factories import samples
from d2v.data.keys import SampleKey
from d2v.data.labelled import FinetuneSet, Part, part
from d2v.data.letters import LETTERS, check_letters, spell, unspell
from d2v.data.source import Sample
from d2v.interop.build import build
from d2v.types import Batch


class Labels:
    """Samples that are their own numbers, with classes of different sizes."""

    class_names = ("a", "b", "c")

    def __init__(self) -> None:
        self.labels = [0] * 50 + [1] * 20 + [2] * 3
        self.lengths = list(range(73))

    def __len__(self) -> int:
        return 73

    def load(self, index: int) -> int:
        return index

    def label(self, index: int) -> int:
        return self.labels[index]

    def name(self, index: int) -> str:
        return f"#{index}"


def ids(source: object) -> list[int]:
    assert isinstance(source, Part)
    return list(source.ids)


def test_a_part_holds_a_share_of_every_class() -> None:
    chosen = part(Labels(), 0.1, seed=0)
    assert Counter(chosen.label(i) for i in range(len(chosen))) == {0: 5, 1: 2, 2: 1}
    assert [chosen.load(i) for i in range(len(chosen))] == ids(chosen) == sorted(ids(chosen))
    assert chosen.name(0) == f"#{ids(chosen)[0]}"
    assert chosen.lengths.tolist() == ids(chosen)  # type: ignore[attr-defined]


def test_parts_are_nested_and_depend_on_the_seed_alone() -> None:
    small, large = ids(part(Labels(), 0.1, 0)), ids(part(Labels(), 0.4, 0))
    assert set(small) < set(large)
    assert ids(part(Labels(), 0.1, 0)) == small
    assert ids(part(Labels(), 0.1, 1)) != small
    source = Labels()
    assert part(source, 1.0, 0) is source


def test_a_part_of_all_without_classes() -> None:
    assert len(part(Labels(), 0.1, 0, stratify=False)) == 8


def test_letters_there_and_back() -> None:
    numbers = spell("  HELLO   IT'S ME ", LETTERS, "clip")
    assert unspell(numbers, LETTERS) == "HELLO IT'S ME"
    assert 0 not in numbers
    assert unspell([0, *numbers, 0], LETTERS) == "HELLO IT'S ME"
    with pytest.raises(ValueError, match=r"a/b\.flac: '4Ü' in 'ÜBER 4' is not in letters"):
        spell("ÜBER 4", LETTERS, "a/b.flac")
    with pytest.raises(ValueError, match=r"a/b\.flac: empty transcript"):
        spell("  ", LETTERS, "a/b.flac")
    for letters in ("AB", " AAB"):
        with pytest.raises(ValueError, match=r"letters"):
            check_letters(letters)


def test_global_generators_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("changes generators that are not put back"))

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    plain = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    with seeded(np.random.default_rng(3)):
        inside = draw()
    assert draw() == plain
    with seeded(np.random.default_rng(3)):
        assert draw() == inside


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_depends_on_its_generator_alone(channels: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    view = AugmentedView((channels, 28, 28), (0.5,) * channels, (0.5,) * channels, ImageAugment())
    for seed in range(40):  # every operation of the policy comes up
        first = view(image, np.random.default_rng(seed))
        assert first.shape == (channels, 28, 28)
        assert first.isfinite().all()
    torch.testing.assert_close(first, view(image, np.random.default_rng(39)), rtol=0, atol=0)
    assert not torch.equal(first, view(image, np.random.default_rng(40)))


def test_mixed_batches_have_shares_of_classes() -> None:
    data = samples().finetune(ImageAugment(mix_prob=1.0, auto_augment=None, label_smoothing=0.0))
    dataset, collate = data.train_dataset(0), data.train_collate
    assert isinstance(collate, MixCollate)
    keys = [SampleKey(0, i) for i in range(8)]
    batch = collate([dataset[key] for key in keys])
    assert batch.labels is not None
    assert batch.labels.shape == (8, 10)
    torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))
    assert ((batch.labels > 0).sum(1) <= 2).all()
    assert ((batch.labels > 0).sum(1) == 2).any()
    again = collate([dataset[key] for key in keys])
    torch.testing.assert_close(batch.inputs, again.inputs, rtol=0, atol=0)
    torch.testing.assert_close(batch.labels, again.labels, rtol=0, atol=0)
    other = collate([dataset[key] for key in [SampleKey(1, i) for i in range(8)]])
    assert not torch.equal(batch.labels, other.labels)


@pytest.mark.parametrize(("switch_prob", "cuts"), [(1.0, True), (0.0, False)])
def test_cutmix_cuts_and_mixup_blends(switch_prob: float, cuts: bool) -> None:
    """Black and white images: after a cut every pixel is one of the two."""

    def plain(rows: Sequence[Sample]) -> Batch:
        inputs = torch.stack([torch.full((1, 8, 8), float(i % 2)) for i in range(len(rows))])
        return Batch("image", inputs, torch.arange(len(rows)), labels=torch.arange(len(rows)) % 2)

    augment = ImageAugment(mix_prob=1.0, switch_prob=switch_prob, label_smoothing=0.0)
    mix = MixCollate(plain, 2, augment, seed=0)
    for epoch in range(8):
        batch = mix([Sample(None, SampleKey(epoch, i)) for i in range(4)])
        assert bool(torch.isin(batch.inputs, torch.tensor([0.0, 1.0])).all()) == cuts


def test_without_mixing_labels_are_classes() -> None:
    data = samples().finetune(ImageAugment(mixup=0, cutmix=0), label_fraction=0.1)
    assert data.train_collate is None
    assert 800 <= len(data.train) == data.size <= 810  # rounded up in each of ten classes
    sample = data.train_dataset(0)[SampleKey(0, 5)]
    assert sample.label == data.train.label(5)
    assert len(data.evals["val"]) == 2000
    assert len(data.labels) == 10
    for augment in ({"erase_prob": 1.5}, {"mixup": -1.0}):
        with pytest.raises(ValueError, match=r"labels\.augment"):
            build({"_target_": "d2v.data.images.augment.ImageAugment", **augment}, key="labels.augment")


@pytest.mark.parametrize(("split", "kind"), [("train", "training"), ("val", "validation")])
def test_a_sample_without_a_label_is_named_before_training(split: str, kind: str) -> None:
    sources = {"train": Labels(), "val": Labels()}
    sources[split].labels[7] = None  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=f"1 of 73 {kind} samples have no label, #7 is the first"):
        FinetuneSet(
            train=sources["train"],
            evals={"val": sources["val"]},
            labels=Labels.class_names,
            train_view=lambda sample, rng: sample,
            eval_view=lambda sample: sample,
            collate=lambda samples: samples,  # type: ignore[arg-type, return-value]
            eval_batch_size=1,
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shares_of_an_evaluation_set(num_workers: int) -> None:
    """Every sample is in one process's share; batches are those of the whole, whoever loads them."""
    data = FinetuneSet(
        train=Labels(),
        evals={"val": Labels()},
        labels=Labels.class_names,
        train_view=lambda sample, rng: sample,
        eval_view=torch.tensor,
        collate=_numbers,  # type: ignore[arg-type]
        eval_batch_size=10,
    )
    whole: list[object] = list(data.eval_loader("val"))
    shares = [list(data.eval_loader("val", num_workers, rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 2]
    assert [shares[i % 3][i // 3] for i in range(8)] == whole
    assert list(data.eval_loader("val", 0, 20, 30)) == []


def _numbers(samples: Sequence[Sample]) -> list[int]:
    return [sample.key.index for sample in samples]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_scale": (1.0, 0.1)}, r"crop_scale=\[1\.0, 0\.1\]: give \[low, high\]"),
        ({"auto_augment": "nope"}, r"auto_augment=nope: timm knows no such policy"),
    ],
)
def test_augmentation_that_cannot_be_is_named_before_training(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageAugment(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-mmax9-inc1", "augmix-m3-w3", "original", "v0", None])
def test_policies_of_timm_are_taken(policy: str | None) -> None:
    assert ImageAugment(auto_augment=policy).auto_augment == policy
