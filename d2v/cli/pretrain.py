"""``d2v pretrain``: compose, instantiate, fit."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.ending import stopped_early
from d2v.cli.launch import configuring, naming, run, running
from d2v.cli.loading import inert, same_tokenizer
from d2v.cli.paths import absolute
from d2v.cli.resuming import check_same_data, choices_now, own_configuration, readable, write_configuration
from d2v.cli.run_dir import claim
from d2v.cli.settings import Pretrain, build_each, build_schedule, check_modality, checked, inputs_of, plain
from d2v.cli.words import arguments
from d2v.data.texts.tokenizer import load_tokenizer
from d2v.interop.build import build
from d2v.interop.checkpoints import Checkpoint, open_checkpoint
from d2v.interop.native import RunCheckpoint
from d2v.lit import machine, setup
from d2v.lit.data import PretrainDataModule
from d2v.lit.pretrain import PretrainModule
from d2v.nn.trunk import checkpoint_activations
from d2v.runs.checkpoints import BEST, FOLDER, newest_intact_checkpoint
from d2v.runs.files import replace_text, writing
from d2v.runs.record import CONFIG, RECORD, write_run_record

log = logging.getLogger(__name__)


def pretrain(cfg: DictConfig) -> None:
    """Train an encoder; whatever a user can have got wrong is checked before the first step."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with configuring():
        claim(run_dir)
        checkpoint, before = find_checkpoint(cfg.resume, run_dir)
        if before is None:
            check_modality(cfg)
        config = absolute(plain(cfg), Pretrain) if before is None else own_configuration(cfg, before, Pretrain)
        settings = checked(Pretrain, config)
        setup.quiet_libraries()
        L.seed_everything(settings.seed, verbose=False)
        check_warmup(settings)
        start = None
        if before is None and settings.init_from:
            with naming("init_from"):
                start = open_checkpoint(settings.init_from)
                keep_tokenizer(settings, start)
        data, mask, model = (
            build(node, key=key, trusted=True)
            for key, node in (("data", settings.data), ("mask", settings.mask), ("model", settings.model))
        )
        if not hasattr(data, "loader"):
            raise ValueError(
                f"data of this kind ({settings.data['_target_']}) are for fine-tuning: choose another data=..."
            )
        for modality in data.modalities:
            if modality not in model.student.frontends:
                raise ValueError(f"the data are {modality}, but the model reads {', '.join(model.student.frontends)}")
        found = check_same_data(data, before, settings.resume, settings.resume_with_other_data)
        assets = data.assets()
        if settings.init_from and before is not None:
            log.info("init_from=%s was for this run's start: it goes on from its own checkpoint", settings.init_from)
        elif start is not None:
            with naming("init_from"):
                start.start(model)
        callbacks = build_each(settings.callbacks, "callbacks", {"run_dir": run_dir, "data": data})
        loggers = build_each(settings.logger, "logger", {"run_dir": run_dir})
        trainer = setup.make_trainer(settings.trainer, callbacks, loggers)
        split = data.split_batch(settings.global_batch_size, settings.micro_batch_size, trainer.world_size)
        trainer.accumulate_grad_batches = split.accumulate
        num_workers = machine.choose_workers(
            settings.num_workers, trainer.strategy.root_device.type, trainer.num_devices
        )
        threads = machine.set_threads(settings.num_threads, num_workers, trainer.num_devices)
        datamodule = PretrainDataModule(data, mask, split, num_workers, settings.seed)
        optim, ema = (
            build(node, key=key, trusted=True) for key, node in (("optim", settings.optim), ("ema", settings.ema))
        )
        schedule = build_schedule(settings.schedule, trainer.max_steps)
        inputs = inputs_of(data, config["data"])
        portable = {**config, "data": {**config["data"], **assets}, "inputs": inputs}
        module = PretrainModule(model, optim, schedule, ema, settings.seed, portable)
        module.record = {"choices": choices_now(before), "fingerprint": found}
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        if settings.compile:
            setup.check_compile(trainer)
            module.compile_forward()
        module.configure_optimizers()  # only to see that it can be done
        ema(1)
    if trainer.is_global_zero:
        with running(), writing("output_dir", run_dir):
            write_configuration(run_dir / CONFIG, readable(config, assets, run_dir), before)
            for name, content in assets.items():
                replace_text(run_dir / f"{name}.json", content)
            write_run_record(
                run_dir / RECORD,
                {
                    **machine.describe_run(settings.seed, ["d2v", "pretrain", *arguments()]),
                    "max_steps": trainer.max_steps,
                },
            )
        with running():
            for logger in loggers:
                logger.log_hyperparams(config)
        print(setup.summary(model, data, mask, split, trainer, threads, num_workers, run_dir), flush=True)
    with running():
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    if stopped_early(trainer, "pretrain", run_dir, settings.resume):
        return
    if trainer.is_global_zero:
        if checkpoint is not None and trainer.global_step >= trainer.max_steps:
            print(f"the run has all of its trainer.max_steps={trainer.max_steps} steps")
        print(f"run: {run_dir}")


def find_checkpoint(resume: str | None, run_dir: Path) -> tuple[Path | None, RunCheckpoint | None]:
    """Return the checkpoint to go on from and its content, or None twice to start anew (logged under resume=auto).

    Args:
        resume: as configured.
        run_dir: folder of the run.

    Raises:
        FileNotFoundError, ValueError: there is none to go on from, or it is not readable.
    """
    if not resume:
        return None, None
    if Path(resume).resolve().name == BEST:  # pretraining's is a link to a whole one
        raise ValueError(f"resume={resume}: holds weights to use, but not where training stood; give a step-*.ckpt")
    if resume != "auto" and Path(resume).is_file():
        with naming("resume"):
            return Path(resume), RunCheckpoint.load(resume)
    if resume.endswith(".ckpt"):
        raise FileNotFoundError(f"resume={resume}: no such file; give a run's folder to go on from its newest")
    checkpoint = newest_intact_checkpoint(run_dir / FOLDER)
    if checkpoint is None and resume != "auto":
        raise FileNotFoundError(f"resume={resume}: no intact checkpoint there; give a .ckpt file or a run's folder")
    if checkpoint is None:
        log.warning("resume=auto: no run of this command has a checkpoint yet; starting a new one")
        return None, None
    log.info("resuming from %s", checkpoint)
    return checkpoint, RunCheckpoint.load(checkpoint)


def check_warmup(settings: Pretrain) -> None:
    """Refuse more warm-up than steps if it was asked for; of a recipe that is cut short, say what it leads to.

    Raises:
        ValueError: ``schedule.warmup_steps`` was given and is no less than ``trainer.max_steps``.
    """
    warmup, steps = settings.schedule.get("warmup_steps", 0), settings.trainer.get("max_steps", 0)
    if settings.schedule.get("max_steps") is not None:
        return  # a run that is a part of a longer one
    if not (isinstance(warmup, int) and isinstance(steps, int) and warmup >= steps > 1):
        return
    said = f"schedule.warmup_steps={warmup} of trainer.max_steps={steps}: all warm-up"
    if any(o.lstrip("+").startswith("schedule.warmup_steps=") for o in HydraConfig.get().overrides.task):
        raise ValueError(f"{said}; give fewer, or more steps")
    log.warning("%s: the learning rate ends at %.3g of its peak", said, steps / warmup)


def keep_tokenizer(settings: Pretrain, start: Checkpoint) -> None:
    """Where none is given, text is read with the tokenizer of the checkpoint that the run starts from.

    Its embeddings mean nothing with another one, such as would be trained on other text: a warning says so.
    """
    if "tokenizer" not in settings.data:
        return
    theirs = inert(start.inputs.get("tokenizer"), "data.tokenizer", start.path)
    given = settings.data["tokenizer"]
    if given is None:
        settings.data["tokenizer"] = theirs
    elif theirs is not None and not same_tokenizer(load_tokenizer(given), theirs):
        log.warning(
            "data.tokenizer=%s is another tokenizer than the one that the weights of init_from=%s were trained with: "
            "their token embeddings mean nothing in it; leave data.tokenizer out to go on with theirs",
            *(given, settings.init_from),
        )


if __name__ == "__main__":
    sys.exit(run("pretrain"))
