"""Online probe: kNN and linear accuracy of the student on labelled images during training."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Subset

from d2v.data.datasets import EvalSamples
from d2v.data.loading import leave_interrupts_to_the_parent
from d2v.data.protocol import EvalData
from d2v.eval.features import Features, Layers, Pool, extract
from d2v.eval.knn import knn_accuracy
from d2v.eval.linear import linear_probe
from d2v.lit.data import PretrainDataModule
from d2v.lit.pretrain import PretrainModule
from d2v.lit.steps import ends_step
from d2v.lit.strategies import FullyShardedStrategy, gathered
from d2v.values import PositiveFloat, PositiveInt, PositiveSteps, buildable


@buildable
class OnlineProbe(L.Callback):
    """Logs ``probe/knn`` and ``probe/linear`` (0 to 1) every so many steps; rank 0 computes and tells the others.

    Args:
        data: data set with labelled images (:class:`d2v.data.images.factories.ImageData`).
        every_n_steps: optimizer steps between two probes.
        knn: whether to classify by the nearest neighbours.
        linear: whether to fit a linear classifier.
        c: inverse L2 strength of the linear classifier.
        max_train: number of training images to search and to fit, evenly spaced in the data set.
        max_val: number of images to classify, evenly spaced.
        batch_size: images encoded at a time.
        layers: layers to read, as in :func:`d2v.eval.features.extract`.
        pool: pooling of tokens, as in :func:`d2v.eval.features.extract`.

    Raises:
        ValueError: the data set has no labels to probe with, or neither probe is chosen.
    """

    def __init__(
        self,
        data: EvalData,
        every_n_steps: PositiveSteps = 1000,
        knn: bool = True,
        linear: bool = True,
        c: PositiveFloat = 0.1,
        max_train: PositiveInt = 5000,
        max_val: PositiveInt = 1000,
        batch_size: PositiveInt = 256,
        layers: Layers = "last",
        pool: Pool = "mean",
    ) -> None:
        if data.probe_train is None or data.val is None or data.class_names is None:
            raise ValueError(
                "callbacks=probe needs labelled training and validation samples: set val_root (or val_split, "
                "or probe_train and probe_val), use class folders, or choose callbacks=default"
            )
        self.metrics = (*["probe/knn"] * knn, *["probe/linear"] * linear)
        if not self.metrics:
            raise ValueError("knn=false linear=false: nothing is left to probe; choose one, or callbacks=default")
        self.every_n_steps = every_n_steps
        self.c = c
        self.layers, self.pool = layers, pool
        self._samples = {
            split: _evenly(data.eval_dataset(split), limit) for split, limit in (("train", max_train), ("val", max_val))
        }
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "collate_fn": data.eval_collate,
            "worker_init_fn": leave_interrupts_to_the_parent,
        }

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Probe every ``every_n_steps``."""
        if ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0:
            assert isinstance(pl_module, PretrainModule)
            sharded = isinstance(trainer.strategy, FullyShardedStrategy)  # then each needs the others' shares
            accuracies = [0.0] * len(self.metrics)
            if sharded or trainer.is_global_zero:
                with gathered(pl_module.model):
                    accuracies = self._probe(pl_module)
            for name, accuracy in zip(self.metrics, trainer.strategy.broadcast(accuracies), strict=True):
                pl_module.log(name, accuracy)

    def _probe(self, pl_module: PretrainModule) -> list[float]:
        train, val = self._features(pl_module, "train"), self._features(pl_module, "val")
        assert train.labels is not None
        assert val.labels is not None
        parts = train.features, train.labels, val.features, val.labels
        found = {}
        if "probe/knn" in self.metrics:
            found["probe/knn"] = knn_accuracy(*parts, min(20, len(train.labels)))
        if "probe/linear" in self.metrics:
            found["probe/linear"] = linear_probe(*parts, (self.c,)).accuracy
        return [found[name] for name in self.metrics]

    def _features(self, pl_module: PretrainModule, split: str) -> Features:
        datamodule: PretrainDataModule = pl_module.trainer.datamodule  # type: ignore[attr-defined]
        loader = DataLoader(self._samples[split], num_workers=datamodule.num_workers, **self._options)
        return extract(
            pl_module.model.student,
            loader,
            layers=self.layers,
            pool=self.pool,
            device=pl_module.device,
        )


def _evenly(dataset: EvalSamples[Any], limit: int) -> Subset[Any]:
    ids = torch.linspace(0, len(dataset) - 1, min(limit, len(dataset))).round().long()
    return Subset(dataset, ids.tolist())
