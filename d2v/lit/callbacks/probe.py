"""Online probe: kNN accuracy of the student on labelled images during training."""

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
from d2v.lit.data import PretrainDataModule
from d2v.lit.pretrain import PretrainModule
from d2v.lit.steps import ends_step
from d2v.lit.strategies import FullyShardedStrategy, gathered
from d2v.values import PositiveInt, PositiveSteps, buildable


@buildable
class OnlineKNN(L.Callback):
    """Logs ``probe/knn`` (0 to 1) every so many optimizer steps; rank 0 computes it and tells the others.

    Args:
        data: data set with labelled images (:class:`d2v.data.images.factories.ImageData`).
        every_n_steps: optimizer steps between two probes.
        max_train: number of training images to search, evenly spaced in the data set.
        max_val: number of images to classify, evenly spaced.
        batch_size: images encoded at a time.
        layers: layers to read, as in :func:`d2v.eval.features.extract`.
        pool: pooling of tokens, as in :func:`d2v.eval.features.extract`.

    Raises:
        ValueError: the data set has no labels to probe with.
    """

    metrics = ("probe/knn",)

    def __init__(
        self,
        data: EvalData,
        every_n_steps: PositiveSteps = 1000,
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
        self.every_n_steps = every_n_steps
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
            accuracy = 0.0
            if sharded or trainer.is_global_zero:
                with gathered(pl_module.model):
                    accuracy = self._probe(pl_module)
            pl_module.log("probe/knn", trainer.strategy.broadcast(accuracy))

    def _probe(self, pl_module: PretrainModule) -> float:
        train, val = self._features(pl_module, "train"), self._features(pl_module, "val")
        assert train.labels is not None
        assert val.labels is not None
        k = min(20, len(train.labels))
        return knn_accuracy(train.features, train.labels, val.features, val.labels, k)

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
