"""``d2v pretrain``: train an encoder."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.ending import stopped_early
from d2v.cli.inputs import with_found_inputs
from d2v.cli.launch import configuring, run
from d2v.cli.paths import absolute
from d2v.cli.resuming import check_same_data, own_configuration
from d2v.cli.run_dir import claim
from d2v.cli.settings import Pretrain, check_modality, checked, plain, with_left_out
from d2v.cli.starting import (
    build_curriculum,
    build_parts,
    check_warmup,
    start_from_statistics,
    starting_weights,
    with_tokenizer,
)
from d2v.cli.training import find_checkpoint, seed, set_up
from d2v.errors import naming_keys
from d2v.interop.build import build
from d2v.lit import setup
from d2v.lit.data import PretrainDataModule
from d2v.lit.pretrain import PretrainModule


def pretrain(cfg: DictConfig) -> None:
    """Train an encoder; settings, data and checkpoints are checked before the first step."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with configuring(cfg):
        claim(run_dir)
        resumed = find_checkpoint(cfg.resume, run_dir)
        before = None if resumed is None else resumed.content
        start = starting_weights(cfg.init_from if before is None else before.config.get("init_from"), before)
        found = None  # the data set, where it was asked for the form of its samples
        if before is None:
            check_modality(cfg)
            cfg, found = with_found_inputs(cfg, Pretrain, start)
        config = (
            absolute(with_left_out(plain(cfg)), Pretrain)
            if before is None
            else own_configuration(cfg, before, Pretrain)
        )
        settings = checked(Pretrain, config)
        seed(settings)
        check_warmup(settings)
        if start is not None:
            settings = with_tokenizer(settings, start)
        data, mask, model = build_parts(settings, found)
        fingerprint = check_same_data(data, before, settings.resume, settings.resume_with_other_data)
        if start is not None:
            with naming_keys({"checkpoint": "init_from"}):
                start.start(model)
        elif before is None:
            start_from_statistics(settings, data, model)
        session = set_up("pretrain", settings, config, run_dir, resumed, data, data, settings.trainer, {"data": data})
        datamodule = PretrainDataModule(data, mask, session.split, session.num_workers, settings.seed)
        ema = build(settings.ema, key="ema", trusted=True)
        ema(1)
        curriculum = build_curriculum(settings, session.trainer.max_steps, model)
        module = PretrainModule(
            model, session.optim, session.schedule, ema, settings.seed, session.portable(), curriculum
        )
        session.prepare(module, model, fingerprint)
    trainer = session.trainer
    session.fit(
        module,
        datamodule,
        setup.summary(model, data, mask, session.split, trainer, session.threads, session.num_workers, run_dir),
    )
    if stopped_early(trainer, "pretrain", run_dir, settings.resume) or not trainer.is_global_zero:
        return
    if resumed is not None and trainer.global_step >= trainer.max_steps:
        print(f"the run has all of its trainer.max_steps={trainer.max_steps} steps")
    print(f"run: {run_dir}")


if __name__ == "__main__":
    sys.exit(run("pretrain"))
