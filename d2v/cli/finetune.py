"""``d2v finetune``: an encoder and a head, trained on labels and scored."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.ending import stopped_early
from d2v.cli.finetuning import build_parts, score_best
from d2v.cli.launch import configuring, run, running
from d2v.cli.run_dir import claim
from d2v.cli.sweep import sweep
from d2v.cli.training import find_checkpoint, set_up
from d2v.lit import setup
from d2v.lit.finetune import FinetuneDataModule, FinetuneModule


def finetune(cfg: DictConfig) -> None:
    """Train and score a model; settings, data and checkpoints are checked before the first step."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with configuring(cfg):
        claim(run_dir)
    if any(cfg.sweep[key] is not None for key in ("tasks", "lrs", "seeds")):
        sweep(cfg, run_dir)
        return
    with configuring(cfg):
        resumed = find_checkpoint(cfg.resume, run_dir)
        parts = build_parts(cfg, None if resumed is None else resumed.content)
        settings, data, model = parts.settings, parts.data, parts.model
        trainer_node = parts.trainer_node()
        session = set_up("finetune", settings, parts.config, run_dir, resumed, data, parts.dataset, trainer_node)
        trainer, split = session.trainer, session.split
        if data.mixes and split.micro_batch_size % 2:
            raise ValueError(f"global_batch_size={settings.global_batch_size}: mixing takes an even number a device")
        portable = {**session.portable(), "label_names": data.labels}
        module = FinetuneModule(
            *(model, parts.task, session.optim, session.schedule),
            *(settings.freeze_steps, settings.ema_decay, settings.seed, portable),
        )
        session.prepare(module, model, parts.fingerprint)
    start = parts.trained or resumed
    origin = "from scratch" if start is None else f"from {start.path}"
    head = [
        f"model     {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {origin}",
        f"data      {data.size:,.0f} {data.batch_unit} to train on, {len(data.evals['val']):,} samples to score",
    ]
    summary = setup.describe_session(head, data, split, trainer, session.threads, session.num_workers, run_dir)
    session.fit(module, FinetuneDataModule(data, split, session.num_workers, settings.seed), summary)
    if stopped_early(trainer, "finetune", run_dir, settings.resume, scores=True):
        return
    if trainer.is_global_zero:
        with running(cfg):
            score_best(run_dir, module, data, trainer, session.num_workers)


if __name__ == "__main__":
    sys.exit(run("finetune"))
