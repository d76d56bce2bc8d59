"""Summaries of data sets before they are used."""

from __future__ import annotations

from dataclasses import dataclass

from d2v.data.contents import Contents, describe_sources, in_words
from d2v.data.images.factories import samples
from d2v.data.labelled import Part


@dataclass(frozen=True)
class Three:
    """A source of three samples."""

    class_names: tuple[str, ...] | None = ("a", "b")
    contents: Contents | None = None

    def __len__(self) -> int:
        return 3


def test_a_line_a_source_and_one_a_note():
    train = Three(contents=Contents("d/train", "images", {".heic": 35, ".txt": 2}, ("test/ is left alone",)))
    assert describe_sources({"train": train, "probe_train": train, "val": Three(None), "test": None}) == [
        "train     3 images from d/train; 2 classes: a, b",
        "          left out: 37 with other endings (35 .heic, 2 .txt)",
        "          test/ is left alone",
        "val       3 samples",
    ]


def test_streams_have_no_size():
    assert describe_sources({"train": iter(())}) == ["train     stream"]


def test_many_kinds_and_classes_are_summed_up():
    assert in_words({f".{i}": i for i in range(1, 10)}) == "9 .9, 8 .8, 7 .7, 6 .6, 5 .5, 4 .4, 6 others"
    (line,) = describe_sources({"train": Three(tuple("abcdefg"))})
    assert line == "train     3 samples; 7 classes: a, b, c, d, e, ..."


def test_a_part_says_of_how_many():
    source = Three(contents=Contents("d"))
    assert describe_sources({"train": Part(source, [1])}) == [
        "train     1 samples from d; 2 classes: a, b",
        "          of 3 labelled",
    ]


def test_every_kind_of_data_describes_itself():
    assert samples().describe() == [
        "train     8,000 samples; 10 classes: T-shirt/top, Trouser, Pullover, Dress, Coat, ...",
        "val       2,000 samples; 10 classes: T-shirt/top, Trouser, Pullover, Dress, Coat, ...",
    ]


def test_names_cannot_break_lines_or_steer_a_terminal():
    (line,) = describe_sources({"train": Three(("a\nb", "\x1b[2Jc", "größer 猫"))})
    assert line.endswith("3 classes: a\\nb, \\x1b[2Jc, größer 猫")
