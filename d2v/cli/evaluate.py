"""``d2v evaluate``: what a frozen encoder knows, beside raw pixels and itself untrained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from d2v.cli.launch import configuring, run
from d2v.cli.loading import best_device, load_data, load_trained
from d2v.eval.features import ProbeRow, extract, probe_table, save_results
from d2v.eval.knn import knn_accuracy
from d2v.eval.linear import linear_probe
from d2v.lit.setup import set_threads
from d2v.nn.encoder import Encoder

Labelled = tuple[Tensor, Tensor]  # features (N, D), labels (N,)


@hydra.main(version_base="1.3", config_path="pkg://d2v.conf", config_name="evaluate")
def evaluate(cfg: DictConfig) -> None:
    """Print the probes' table and write it, with results.json, to the command's folder."""
    with configuring():
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        set_threads(cfg.num_threads, num_workers=0)
        trained = load_trained(cfg.checkpoint, cfg.network)
        data = load_data(cfg, trained)
        loaders = {
            split: DataLoader(data.eval_dataset(split), batch_size=cfg.batch_size, collate_fn=data.eval_collate)
            for split in ("train", "val")
        }
        print(f"checkpoint: {trained.path}")
        rows = []
        if cfg.baselines:
            rows.append(_probe("raw pixels", data.raw("train"), data.raw("val"), cfg))
            untrained = trained.untrained(cfg.seed)
            train, val = (_features(untrained, loader, cfg) for loader in loaders.values())
            rows.append(_probe("untrained encoder", train, val, cfg))
        name = "pretrained encoder" if trained.step is None else f"pretrained encoder, {trained.step} steps"
        train, val = (_features(trained.encoder, loader, cfg) for loader in loaders.values())
        rows.append(_probe(name, train, val, cfg))
        table = probe_table(rows)
        print(table)
        (run_dir / "results.md").write_text(table)
        path = save_results(run_dir / "results.json", rows, checkpoint=str(trained.path), step=trained.step)
        print(f"results: {path}")


def _features(encoder: Encoder, loader: Any, cfg: DictConfig) -> Labelled:
    encoder.to(best_device())
    features = extract(encoder, loader, layers=cfg.probe.layers, pool=cfg.probe.pool)
    if features.labels is None:
        raise ValueError("these images have no labels to probe with: use class folders or data.label_column")
    for entry in features.skipped:
        print(f"skipped {entry}")
    return features.features, features.labels


def _probe(name: str, train: Labelled, val: Labelled, cfg: DictConfig) -> ProbeRow:
    torch.manual_seed(cfg.seed)
    probe = cfg.probe
    linear = linear_probe(*train, *val, c_grid=probe.c_grid, seed=cfg.seed).accuracy if probe.linear else None
    knn = knn_accuracy(*train, *val, k=probe.k, temperature=probe.temperature) if probe.knn else None
    return ProbeRow(name, linear, knn)


if __name__ == "__main__":
    sys.exit(run("evaluate"))
