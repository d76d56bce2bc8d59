"""Probes of a data set: which are run, on which splits, and what stands in a row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v.eval.prober import Prober
from d2v.eval.probes import Settings
from d2v.types import Batch, EncoderOutput

SETTINGS = Settings(linear=False, k=1)


class Sign(nn.Module):
    """One token of two features: the sign of the first input if ``good``, else nothing; and a constant."""

    def __init__(self, good: bool) -> None:
        super().__init__()
        self.good = good

    def forward(self, batch: Batch, return_layers: bool = False) -> EncoderOutput:
        first = batch.inputs[:, :1].sign() if self.good else torch.zeros(len(batch.inputs), 1)
        return EncoderOutput(torch.cat([first, torch.ones_like(first)], 1).unsqueeze(1), (), 0)


def points(split: str) -> tuple[Tensor, Tensor]:
    """Labels are the sign of the first of two inputs; the other one is noise."""
    generator = torch.Generator().manual_seed(len(split))
    x = torch.randn(40, 2, generator=generator)
    return x, (x[:, 0] > 0).long()


def batches(split: str) -> Iterable[Batch]:
    x, y = points(split)
    for rows in torch.arange(40).flip(0).split(16):  # in any order
        yield Batch("points", x[rows], rows, labels=y[rows], skipped=(f"{split}: bad",) if 39 in rows else ())


def make_data(**changes: Any) -> Any:
    groups = ["a" if i % 2 else "b" for i in range(40)]
    source = SimpleNamespace(groups=groups)
    own = {
        "probe_train": object(), "val": object(), "class_names": ("minus", "plus"), "input_name": "raw points",
        "raw": points, "eval_dataset": lambda split: SimpleNamespace(source=source),
        "raw_ids": lambda split: list(range(40)),
    }  # fmt: skip
    return SimpleNamespace(**{**own, **changes})


def test_a_row_of_an_encoder_and_of_the_inputs() -> None:
    skipped: list[str] = []
    prober = Prober(make_data(), SETTINGS, batches, skipped.extend)
    good, bad = prober.probe("good", Sign(True)), prober.probe("bad", Sign(False))
    assert good.name == "good"
    assert good.scores == {"knn": 1.0}
    assert bad.scores["knn"] < 0.9
    assert skipped == ["train: bad", "val: bad"] * 2
    inputs = prober.probe_inputs()
    assert inputs.name == "raw points"
    assert bad.scores["knn"] < inputs.scores["knn"] < 1


def test_every_part_that_takes_long_is_told() -> None:
    told: list[str] = []
    prober = Prober(make_data(val=None), replace(SETTINGS, linear=True, c_grid=(0.1, 1.0)), batches, tell=told.append)
    chosen = prober.probe_inputs().c
    assert told == [
        "raw points: reading the samples",
        *(
            f"raw points: split {split} of 2, {line}"
            for split in (1, 2)
            for line in (
                "linear probe",
                "linear probe, C=0.1 (1 of up to 2)",
                "linear probe, C=1 (2 of up to 2)",
                f"linear probe, C={chosen[split - 1]:g}, fit to 20 samples",
            )
        ),
        "raw points: split 1 of 2, kNN probe",
        "raw points: split 2 of 2, kNN probe",
    ]


def test_groups_are_held_out_where_there_is_no_validation_split() -> None:
    seen: list[str] = []

    def noted(split: str) -> Iterable[Batch]:
        seen.append(split)
        return batches(split)

    prober = Prober(make_data(val=None), SETTINGS, noted)
    assert prober.probe("good", Sign(True)).scores == {"knn": 1.0}
    assert seen == ["train"]
    alone = make_data(val=None, eval_dataset=lambda split: SimpleNamespace(source=SimpleNamespace(groups=["a"] * 40)))
    with pytest.raises(ValueError, match="only the group 'a'"):
        Prober(alone, SETTINGS, batches).probe("good", Sign(True))


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"probe_train": None}, SETTINGS),
        ({"class_names": None}, SETTINGS),
        ({}, replace(SETTINGS, knn=False)),
        ({}, replace(SETTINGS, knn=False, ctc=True)),  # val has no transcripts
    ],
)
def test_data_with_nothing_to_probe_are_refused(changes: dict[str, Any], settings: Settings) -> None:
    with pytest.raises(ValueError, match=r"nothing to probe with: .*label_column"):
        Prober(make_data(**changes), settings, batches)


def test_transcripts_are_probed_where_there_are_some() -> None:
    """Silent clips are left out; letters are read off frames that say which they are."""
    texts = ["AB", "", "BA", "AB", "BA"] * 8

    class Clips:
        has_transcripts = True

        def transcript(self, index: int) -> str:
            return texts[index]

    def frames(split: str) -> tuple[list[Tensor], Tensor]:
        ids = torch.arange(40)
        shown = {"A": [4.0, 0.0, 0.0], "B": [0.0, 4.0, 0.0], " ": [0.0, 0.0, 4.0]}
        return [torch.tensor([shown[c] for letter in texts[i] for c in (letter, " ")]).view(-1, 3) for i in ids], ids

    clips = Clips()
    data = make_data(
        val=clips, class_names=None, raw_frames=frames, eval_dataset=lambda split: SimpleNamespace(source=clips)
    )
    row = Prober(data, replace(SETTINGS, ctc=True, ctc_epochs=30), batches).probe_inputs()
    assert row.scores.keys() == {"letter_error"}
    assert row.scores["letter_error"] < 0.3
    assert Prober(data, replace(SETTINGS, ctc=True), batches)._transcribed("val", *frames("val"))[1] == [
        t for t in texts if t
    ]
