"""Pretraining without masks: from the configuration to what is logged."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from torch import nn

from d2v.models.masked import MaskedModel
from d2v.nn.encoder import Encoder
from d2v.types import Batch, LossOutput

HERE = "d2v_tests_unmasked"


class Whole(MaskedModel):
    """Predicts the mean of each image from all of its patches."""

    predictors_are = "decoders"
    needs_mask: ClassVar[bool] = False

    def __init__(self, encoder: Encoder, decoders: Mapping[str, nn.Module], norm_patches: bool = True) -> None:
        super().__init__()
        self.student, self.decoders = encoder, nn.ModuleDict({"image": nn.Linear(encoder.embed_dim, 1)})

    def forward(self, batch: Batch) -> LossOutput:
        assert batch.mask is None
        x = self.student(batch).patch_tokens.mean(dim=1)
        error = self.decoders["image"](x).squeeze(-1) - batch.inputs.mean(dim=(1, 2, 3))
        loss_sum = error.square().sum()
        return LossOutput(
            loss_sum=loss_sum,
            count=torch.tensor(len(x)),
            terms={"mean": loss_sum.detach()},
            logged={"error": error.detach().abs().mean()},
            watched={"features": x.detach().float()},
        )


def test_a_model_that_needs_no_mask_trains_without(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType(HERE)
    module.Whole = Whole  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, HERE, module)
    size = [word for word in runs.TINY if not word.startswith(("mask.", "ema.", "model.average", "model.cls"))]
    size = [word for word in size if not word.startswith(("model.decoders.image.groups", "model.reconstruction"))]
    result = runs.d2v_command(
        "pretrain", "model=mae/image_tiny", f"model._target_={HERE}.Whole", "model.decoders.image.num_heads=2",
        *size, "~mask", "trainer.max_steps=2", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert result.status in (0, None), result.err
    assert "16 tokens, none masked" in result.out
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    columns = header.split(",")
    assert {"train/loss", "train/loss_mean", "train/error", "train/effective_rank"} <= set(columns)
    assert "train/masked_fraction" not in columns
    assert "train/frontend_rank" not in columns


def test_a_model_that_needs_masks_says_so_before_it_trains(runs: ModuleType, tmp_path: Path) -> None:
    size = [word for word in runs.TINY if not word.startswith("mask.")]
    result = runs.d2v_command("pretrain", *size, "~mask", f"hydra.run.dir={tmp_path}")
    assert result.status == 1
    assert "mask=null: a Data2Vec2 predicts masked tokens; choose mask=random" in result.err
    assert not (tmp_path / "metrics.csv").exists()
