"""Runs of an algorithm without a teacher: what one may do with them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from d2v.interop.checkpoints import load_encoder, open_checkpoint
from d2v.interop.native import RunCheckpoint
from d2v.models.data2vec2 import Data2Vec2
from d2v.models.mae import MaskedAutoencoder
from d2v.nn.decoders import ConvDecoder2d


@pytest.mark.slow
def test_a_run_is_saved_read_out_and_starts_others(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "experiment=mae_image_tiny32", f"data.root={images}", "data.img_size=16", "trainer.max_steps=2",
        "global_batch_size=4", "trainer.precision=32-true", "model.encoder.embed_dim=32", "num_threads=1",
        "model.encoder.num_heads=2", "model.encoder.depth=1", "callbacks.health.min_spread=null",
    ]  # fmt: skip
    assert runs.d2v_command("pretrain", *arguments, f"hydra.run.dir={run}").status in (0, None)
    checkpoint = RunCheckpoint.load(run / "checkpoints" / "step-00000002.ckpt")
    model = checkpoint.build_model()
    assert isinstance(model, MaskedAutoencoder)
    metrics = (run / "metrics.csv").read_text()
    assert "train/loss" in metrics
    assert "ema_decay" not in metrics

    loaded = load_encoder(run)
    for name, value in model.student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(ValueError, match="network=teacher"):
        load_encoder(run, "teacher")
    other = Data2Vec2(load_encoder(run), {"image": ConvDecoder2d(32, 16, 1, groups=2)}, average_top_k_layers=1)
    with torch.no_grad():
        other.teacher.trunk.blocks[0].norm1.weight.zero_()  # type: ignore[union-attr]
    open_checkpoint(run).start(other)
    assert torch.equal(
        other.teacher.state_dict()["trunk.blocks.0.norm1.weight"], loaded.state_dict()["trunk.blocks.0.norm1.weight"]
    )
    probed = runs.d2v_command("evaluate", f"checkpoint={run}", "probe=knn")
    assert "pretrained encoder, 2 steps" in probed.out, probed.err
    for command in ("export", "extract"):
        refused = runs.d2v_command(command, f"checkpoint={run}", "network=teacher", f"output={tmp_path / command}.npz")
        assert refused.status == 1
        assert "network=student" in refused.err
    refused = runs.d2v_command("export", f"checkpoint={run}", "format=fairseq", f"output={tmp_path / 'fairseq'}")
    assert "format=fairseq" in refused.err
