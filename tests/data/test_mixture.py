"""A mixture of image and text data trains as one data set, and resumes where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import lightning as L
import pytest
import torch
from mixture import Mixture
from omegaconf import OmegaConf, open_dict

from d2v.cli.settings import built
from d2v.data.images.factories import samples
from d2v.data.loading import Workers
from d2v.data.samplers import StepPlan
from d2v.data.texts.factories import text_files
from d2v.lit import setup
from d2v.lit.callbacks.health import Collapse, HealthMonitor
from d2v.lit.data import PretrainDataModule
from d2v.lit.loggers import CSVLogger
from d2v.lit.pretrain import PretrainModule
from d2v.models.data2vec2 import Data2Vec2
from d2v.objective.masking import RandomMask
from d2v.objective.schedules import ema_decay
from d2v.types import Batch, LossOutput

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


class Pieces(NamedTuple):
    """A trainer, and what it trains."""

    trainer: L.Trainer
    module: PretrainModule
    datamodule: PretrainDataModule


def pieces(runs: ModuleType, folder: Path, steps: int, *overrides: str, callbacks: Sequence[L.Callback] = ()) -> Pieces:
    """A model of images and texts, two micro-batches a step; ``folder`` gets ``metrics.csv``."""
    with runs.configuration("pretrain", "experiment=text_tiny", *runs.SMALL["text"], "data.vocab_size=300") as text:
        text_model = OmegaConf.to_container(text.model, resolve=True)
    with runs.configuration("pretrain", *runs.TINY, "model.cls_loss_weight=0", *overrides) as cfg, open_dict(cfg):
        torch.manual_seed(0)
        cfg.model.encoder.frontends.text = text_model["encoder"]["frontends"]["text"]
        cfg.model.decoders.text = text_model["decoders"]["text"]
        model = built(cfg, "model")
        optim = built(cfg, "optim")
        trainer = setup.make_trainer({**cfg.trainer, "max_steps": steps}, list(callbacks), [CSVLogger(folder)])
    data = mixture(folder, runs)
    split = data.split_batch(4, 2, 1)
    trainer.accumulate_grad_batches = split.accumulate
    module = PretrainModule(model, optim, lambda step: 1.0, lambda step: ema_decay(step, 0.9, 0.99, 5), 0)
    return Pieces(trainer, module, PretrainDataModule(data, MASK, split))


def train(runs: ModuleType, folder: Path, steps: int, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    """Weights after so many steps in all."""
    trainer, module, datamodule = pieces(runs, folder, steps)
    checkpoint_path = None if checkpoint is None else str(checkpoint)
    trainer.fit(module, datamodule, ckpt_path=checkpoint_path, weights_only=True)
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


class Losses(L.Callback):
    """Keeps modality and loss of every micro-batch, the latter before it is halved for two a step."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def on_train_batch_end(self, *arguments: object) -> None:
        _, _, outputs, batch, _ = arguments
        self.seen.append((batch.modality, 2 * float(outputs["loss"])))  # type: ignore[attr-defined, index]


EACH = (
    "loss", "loss_regression", "target_std", "pred_std", "masked_fraction", "effective_rank", "relative_spread",
    "frontend_rank", "frontend_spread",
)  # fmt: skip


def test_every_modality_has_metrics_of_its_own(runs: ModuleType, tmp_path: Path) -> None:
    """Texts take the even steps, those that are logged: images are logged by the step before."""
    setup.quiet_libraries()
    losses = Losses()
    callbacks = [losses, HealthMonitor(min_spread=None, min_frontend_spread=None)]
    run = pieces(runs, tmp_path, 6, "trainer.log_every_n_steps=2", callbacks=callbacks)
    run.trainer.fit(run.module, run.datamodule)
    rows = runs.metrics(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2", "4", "6"]
    named = {f"train/{name}/{modality}" for name in EACH for modality in ("image", "text")}
    assert named <= rows[0].keys()
    assert not {f"train/{name}" for name in EACH if name != "loss"} & rows[0].keys()
    first, second, *later = ({key for key, value in row.items() if value and key in named} for row in rows)
    assert first == {name for name in named if name.endswith("/image")}
    assert second == named - first
    assert later == [named, named]
    # The loss is the mean over the step's two micro-batches; its terms are those of the last one.
    for row in rows[2:]:
        end = 2 * int(row["step"])
        for modality, micro_batches in (
            ("image", losses.seen[end - 4 : end - 2]),
            ("text", losses.seen[end - 2 : end]),
        ):
            assert [name for name, _ in micro_batches] == 2 * [modality]
            mean = sum(loss for _, loss in micro_batches) / 2
            assert float(row[f"train/loss/{modality}"]) == pytest.approx(mean, rel=1e-5)
            assert float(row[f"train/loss_regression/{modality}"]) == pytest.approx(micro_batches[1][1], rel=1e-5)
        assert row["train/loss"] == row["train/loss/text"]


def test_a_collapse_of_one_modality_stops_the_run(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third step of texts on, all of them have the same features; images are well to the end."""
    setup.quiet_libraries()
    forward, texts = Data2Vec2.forward, []

    def collapsing(self: Data2Vec2, batch: Batch) -> LossOutput:
        out = forward(self, batch)
        if batch.modality != "text":
            return out
        features = out.watched["features"]
        texts.append(features[:1])
        same = texts[0].expand_as(features) if len(texts) > 4 else features
        return replace(out, watched={**out.watched, "features": same})

    monkeypatch.setattr(Data2Vec2, "forward", collapsing)
    monitor = HealthMonitor(window=4, check_every_n_steps=1, patience=3)
    run = pieces(runs, tmp_path, 40, callbacks=[monitor])
    message = r"of text, the features have collapsed at step 10: .* \(train/relative_spread/text; limit: "
    with pytest.raises(Collapse, match=message):  # texts take the steps 2, 4, 6, ...
        run.trainer.fit(run.module, run.datamodule)
    *_, last = runs.metrics(tmp_path)
    assert float(last["train/relative_spread/image"]) > 0.2
