"""Common part of pretraining and fine-tuning: trainer, batches, files of the run, and the fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from d2v.cli.keys import argument_keys
from d2v.cli.launch import running
from d2v.cli.resuming import choices_now, readable, write_configuration
from d2v.cli.settings import Training, build_each, build_schedule, inputs_of
from d2v.cli.words import arguments
from d2v.data.batching import BatchSplit
from d2v.data.protocol import TrainingData
from d2v.errors import in_keys, naming_keys
from d2v.interop.build import build
from d2v.interop.native import RunCheckpoint
from d2v.lit import machine, setup
from d2v.lit.module import TrainingModule
from d2v.nn.trunk import checkpoint_activations
from d2v.runs.checkpoints import BEST, FOLDER, newest_intact_checkpoint
from d2v.runs.files import replace_text, writing
from d2v.runs.record import CONFIG, RECORD, write_run_record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Checkpoint from which a run resumes.

    Attributes:
        path: path of the file.
        content: content of the file.
    """

    path: Path
    content: RunCheckpoint


@dataclass(frozen=True)
class Session:
    """A run that is set up but has not started.

    Attributes:
        command: "pretrain" or "finetune".
        settings: settings of the command.
        config: the settings as plain containers, for ``config.yaml`` and checkpoints.
        run_dir: folder of the run.
        resumed: checkpoint from which the run resumes; None for a new run.
        trainer: Lightning's trainer.
        loggers: loggers of metrics.
        split: division of the global batch among devices and micro-batches.
        num_workers: number of data workers.
        threads: compute threads.
        optim: builds the optimizer of a model.
        schedule: factor on the learning rate by step.
        assets: contents of files that belong to the encoder, by key.
        inputs: form of the encoder's inputs.
    """

    command: str
    settings: Training
    config: Mapping[str, Any]
    run_dir: Path
    resumed: Resumed | None
    trainer: L.Trainer
    loggers: list[Any]
    split: BatchSplit
    num_workers: int
    threads: int
    optim: Any
    schedule: Any
    assets: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def portable(self) -> dict[str, Any]:
        """Return the configuration for checkpoints: contents of files in place of paths, and the inputs."""
        return {**self.config, "data": {**self.config["data"], **self.assets}, "inputs": dict(self.inputs)}

    def prepare(self, module: TrainingModule, model: nn.Module, fingerprint: Mapping[str, Any]) -> None:
        """Prepare a module for training.

        Args:
            module: module to train.
            model: model of the module.
            fingerprint: fingerprint of the data.

        Raises:
            ValueError: the optimizer or the compiled model cannot be built.
        """
        before = None if self.resumed is None else self.resumed.content
        module.record = {"choices": choices_now(before), "fingerprint": fingerprint}
        if self.settings.activation_checkpointing:
            checkpoint_activations(model)
        if self.settings.compile:
            setup.check_compile(self.trainer)
            module.compile_forward()
        module.configure_optimizers()  # only to check that it can be built

    def fit(self, module: TrainingModule, datamodule: L.LightningDataModule, summary: str) -> None:
        """Write the record of the run, print the summary, and train.

        Args:
            module: prepared module.
            datamodule: source of batches.
            summary: text to print before training.
        """
        if self.trainer.is_global_zero:
            self._write()
            with running(self.config):
                for logger in self.loggers:
                    logger.log_hyperparams(self.config)
            print(in_keys(summary, argument_keys(self.config), only_values=True), flush=True)
        path = None if self.resumed is None else self.resumed.path
        with running(self.config):
            self.trainer.fit(module, datamodule, ckpt_path=path, weights_only=True)

    def _write(self) -> None:
        before = None if self.resumed is None else self.resumed.content
        about = machine.describe_run(self.settings.seed, ["d2v", self.command, *arguments()])
        with running(self.config), writing("output_dir", self.run_dir):
            write_configuration(self.run_dir / CONFIG, readable(self.config, self.assets, self.run_dir), before)
            for name, content in self.assets.items():
                replace_text(self.run_dir / f"{name}.json", content)
            write_run_record(self.run_dir / RECORD, {**about, "max_steps": self.trainer.max_steps})


def seed(settings: Training) -> None:
    """Seed all random numbers, and silence warnings of libraries about intended behaviour."""
    setup.quiet_libraries()
    L.seed_everything(settings.seed, verbose=False)


def set_up(
    command: str,
    settings: Training,
    config: Mapping[str, Any],
    run_dir: Path,
    resumed: Resumed | None,
    data: TrainingData,
    dataset: Any,
    trainer_node: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> Session:
    """Build the trainer and all parts that do not depend on the model.

    Args:
        command: "pretrain" or "finetune".
        settings: settings of the command.
        config: the settings as plain containers.
        run_dir: folder of the run.
        resumed: checkpoint from which the run resumes; None for a new run.
        data: training data.
        dataset: data set of these.
        trainer_node: settings of the trainer.
        given: further arguments of callbacks, besides ``run_dir``.

    Raises:
        ValueError: a setting is wrong, or the batch cannot be spread over the devices.
    """
    callbacks = build_each(settings.callbacks, "callbacks", {"run_dir": run_dir, **(given or {})})
    loggers = build_each(settings.logger, "logger", {"run_dir": run_dir})
    trainer = setup.make_trainer(trainer_node, callbacks, loggers)
    split = data.split_batch(settings.global_batch_size, settings.micro_batch_size, trainer.world_size)
    trainer.accumulate_grad_batches = split.accumulate
    device = trainer.strategy.root_device.type
    num_workers = machine.choose_workers(settings.num_workers, device, trainer.num_devices)
    return Session(
        command,
        settings,
        config,
        run_dir,
        resumed,
        trainer,
        loggers,
        split,
        num_workers,
        machine.set_threads(settings.num_threads, num_workers, trainer.num_devices),
        build(settings.optim, key="optim", trusted=True),
        build_schedule(settings.schedule, trainer.max_steps),
        dataset.assets(),
        inputs_of(dataset, config["data"]),
    )


def find_checkpoint(resume: str | None, run_dir: Path) -> Resumed | None:
    """Return the checkpoint from which to resume, or None to start a new run (logged under resume=auto).

    Args:
        resume: value of ``resume``.
        run_dir: folder of the run.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or it is not readable.
    """
    if not resume:
        return None
    if Path(resume).resolve().name == BEST:  # pretraining's is a link to a whole one
        raise ValueError(f"resume={resume}: holds weights to use, but not where training stood; give a step-*.ckpt")
    if resume != "auto" and Path(resume).is_file():
        with naming_keys({"checkpoint": "resume"}):
            return Resumed(Path(resume), RunCheckpoint.load(resume))
    if resume.endswith(".ckpt"):
        raise FileNotFoundError(f"resume={resume}: no such file; give a run's folder to go on from its newest")
    checkpoint = newest_intact_checkpoint(run_dir / FOLDER)
    if checkpoint is None and resume != "auto":
        raise FileNotFoundError(f"resume={resume}: no intact checkpoint there; give a .ckpt file or a run's folder")
    if checkpoint is None:
        log.warning("resume=auto: no run of this command has a checkpoint yet; starting a new one")
        return None
    log.info("resuming from %s", checkpoint)
    return Resumed(checkpoint, RunCheckpoint.load(checkpoint))
