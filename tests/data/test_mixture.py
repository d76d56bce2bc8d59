"""A mixture of image and text data trains as one data set, and resumes where it stopped."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from mixture import Mixture
from omegaconf import OmegaConf, open_dict

from d2v.cli.settings import built
from d2v.data.images.factories import samples
from d2v.data.loading import Workers
from d2v.data.samplers import StepPlan
from d2v.data.texts.factories import text_files
from d2v.lit import setup
from d2v.lit.data import PretrainDataModule
from d2v.lit.pretrain import PretrainModule
from d2v.objective.masking import RandomMask
from d2v.objective.schedules import ema_decay

MASK = RandomMask(mask_ratio=0.5, num_masks=2)


def mixture(folder: Path, runs: ModuleType) -> Mixture:
    text = folder / "text.txt"
    if not text.exists():
        runs.text_file(text)
    cache = str(folder / "cache")
    texts = text_files(str(text), vocab_size=300, block_size=32, cache=cache)
    return Mixture([samples(patch_size=7), texts])


def batches(data: Mixture, *, start: int = 0, workers: int = 0) -> list[tuple[str, list[int]]]:
    plan = StepPlan(num_batches=12, start_batch=start, accumulate=2)
    loader = data.loader(MASK, 3, data.split_batch(8, 4, 1), plan, Workers(workers))
    return [(batch.modality, batch.sample_ids.tolist()) for batch in loader]


def test_steps_take_turns(runs: ModuleType, tmp_path: Path) -> None:
    data = mixture(tmp_path, runs)
    whole = batches(data)
    assert [modality for modality, _ in whole] == 3 * ["image", "image", "text", "text"]
    for start in (2, 4, 10):
        assert batches(data, start=start) == whole[start:]
    assert batches(data, workers=2) == whole
    images = [ids for modality, ids in whole if modality == "image"]
    alone = data.parts[0].loader(MASK, 3, data.split_batch(8, 4, 1), StepPlan(num_batches=6, accumulate=2), Workers())
    assert [batch.sample_ids.tolist() for batch in alone] == images


def train(runs: ModuleType, folder: Path, steps: int, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    """Weights after so many steps in all."""
    with runs.configuration("pretrain", "experiment=text_tiny", *runs.SMALL["text"], "data.vocab_size=300") as text:
        text_model = OmegaConf.to_container(text.model, resolve=True)
    with runs.configuration("pretrain", *runs.TINY, "model.cls_loss_weight=0") as cfg, open_dict(cfg):
        torch.manual_seed(0)
        cfg.model.encoder.frontends.text = text_model["encoder"]["frontends"]["text"]
        cfg.model.decoders.text = text_model["decoders"]["text"]
        model = built(cfg.model)
        optim = built(cfg.optim)
        trainer = setup.make_trainer({**cfg.trainer, "max_steps": steps}, [], [])
    data = mixture(folder, runs)
    split = data.split_batch(4, 2, 1)
    trainer.accumulate_grad_batches = split.accumulate
    module = PretrainModule(model, optim, lambda step: 1.0, lambda step: ema_decay(step, 0.9, 0.99, 5), 0)
    checkpoint_path = None if checkpoint is None else str(checkpoint)
    trainer.fit(module, PretrainDataModule(data, MASK, split), ckpt_path=checkpoint_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_two_steps_and_a_resume(runs: ModuleType, tmp_path: Path) -> None:
    setup.quiet_libraries()
    whole, half = train(runs, tmp_path, 4), train(runs, tmp_path, 2)
    for modality in ("image", "text"):
        trained = [name for name in half if f"decoders.{modality}." in name]
        assert any(not torch.equal(half[name], whole[name]) for name in trained)
    resumed = train(runs, tmp_path, 4, tmp_path / "2.ckpt")
    assert runs.differences(whole, resumed) == []
