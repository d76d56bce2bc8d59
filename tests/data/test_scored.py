"""Models scored on other data than their own: classes are matched by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from d2v.data.images.factories import image_folder
from d2v.data.labelled import FinetuneSet
from d2v.data.scored import whole_as_val, with_known_labels


class Samples:
    """Two samples of every class."""

    def __init__(self, *names: str) -> None:
        self.class_names = names
        self.left_out = ("x.png: truncated",)

    def __len__(self) -> int:
        return 2 * len(self.class_names)

    def load(self, index: int) -> int:
        return index

    def label(self, index: int) -> int:
        return index // 2

    def name(self, index: int) -> str:
        return f"{self.class_names[index // 2]}/{index % 2}"


def data(labels: Any, *names: str) -> FinetuneSet:
    samples: Any = Samples(*names)
    view: Any = None
    return FinetuneSet(
        train=samples, evals={"val": samples}, labels=labels, train_view=view, eval_view=view,
        collate=view, eval_batch_size=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "numbers"),
    [(("cat", "dog", "owl"), [0, 1, 2]), (("owl", "cat", "dog"), [2, 0, 1]), (("dog",), [1]), (("dog", "owl"), [1, 2])],
)
def test_classes_are_matched_by_name(names: tuple[str, ...], numbers: list[int]) -> None:
    known = with_known_labels(data(names, *names), ("cat", "dog", "owl"), "RUN")
    val: Any = known.evals["val"]
    assert known.labels == ("cat", "dog", "owl")
    assert [val.label(i) for i in range(0, len(val), 2)] == numbers
    assert [val.class_names[val.label(i)] for i in range(len(val))] == [val.name(i)[:3] for i in range(len(val))]
    assert val.left_out == ("x.png: truncated",)


@pytest.mark.parametrize(
    ("labels", "known", "message"),
    [
        (
            ("cat", "emu", "yak"),
            ("cat", "dog"),
            r"it knows 2 classes \(cat, dog\), .* others: emu, yak",
        ),
        ((0.0, 5.0), ("cat", "dog"), r"knows the labels cat, dog, these data have 0\.0, 5\.0"),
        (("cat",), "ABC ", r"knows the labels ABC , these data have cat"),
        ("AB", "ABC", r"knows the labels ABC, these data have AB"),
    ],
)
def test_what_the_model_does_not_know_is_named(labels: Any, known: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^checkpoint=RUN:? .*{message}"):
        with_known_labels(data(labels, "cat"), known, "RUN")


@dataclass(frozen=True)
class Speech:
    train: Any
    probe_train: Any = None
    val: Any = None


def test_one_list_of_clips_is_scored_as_a_whole() -> None:
    clips: Any = type("Clips", (), {"has_transcripts": True, "__len__": lambda self: 3})()
    others: Any = SimpleNamespace()
    found = whole_as_val(Speech(clips), "RUN")
    assert (found.val, found.probe_train) == (clips, clips)
    found = whole_as_val(Speech(clips, val=others), "RUN")
    assert (found.val, found.probe_train) == (others, clips)
    found = whole_as_val(Speech(others, val=clips), "RUN")
    assert (found.val, found.probe_train) == (clips, clips)
    with pytest.raises(ValueError, match="checkpoint=RUN is fine-tuned, but these data have no labels"):
        whole_as_val(Speech(others), "RUN")


def test_a_bare_folder_of_classes_is_scored_as_a_whole(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("dark", "light"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2 if split == "train" else 3):
                Image.new("L", (28, 28), 40 * i).save(tmp_path / split / name / f"{i}.png")
    found = whole_as_val(image_folder(root=str(tmp_path / "val"), img_size=28, patch_size=7), "RUN")
    assert len(found.val) == 6
    assert found.val.class_names == ("dark", "light")
    split_data = whole_as_val(image_folder(root=str(tmp_path), img_size=28, patch_size=7), "RUN")
    assert len(split_data.val) == 6
    assert len(split_data.train) == 4
