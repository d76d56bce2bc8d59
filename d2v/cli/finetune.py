"""``d2v finetune``: an encoder and a head, trained on labels and scored."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.ending import stopped_early
from d2v.cli.launch import configuring, run, running
from d2v.cli.loading import best_device, check_fits, data_node
from d2v.cli.paths import absolute
from d2v.cli.pretrain import find_checkpoint
from d2v.cli.resuming import check_same_data, choices_now, own_configuration, readable, write_configuration
from d2v.cli.run_dir import claim
from d2v.cli.scoring import set_decoder
from d2v.cli.settings import Finetune, build_each, build_schedule, check_modality, checked, inputs_of, plain
from d2v.cli.sweep import sweep
from d2v.cli.words import arguments
from d2v.data.protocol import FinetuneData
from d2v.interop.build import build, check_node, load_exactly
from d2v.interop.checkpoints import Checkpoint, open_checkpoint
from d2v.interop.native import RunCheckpoint
from d2v.lit import machine, setup
from d2v.lit.callbacks.score import ScoreEvery
from d2v.lit.finetune import FinetuneDataModule, FinetuneModule
from d2v.models.heads import FinetunedModel
from d2v.nn.trunk import checkpoint_activations
from d2v.runs.files import replace_text, writing
from d2v.runs.record import CONFIG, RECORD, write_run_record
from d2v.runs.results import RESULTS
from d2v.tasks.base import Task
from d2v.tasks.results import score_and_write
from d2v.values import PositiveFraction, check, parameters, shown

log = logging.getLogger(__name__)


def finetune(cfg: DictConfig) -> None:
    """Train and score; whatever a user can have got wrong is checked before the first step."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with configuring():
        claim(run_dir)
    if any(cfg.sweep[key] is not None for key in ("tasks", "lrs", "seeds")):
        sweep(cfg, run_dir)
        return
    with configuring():
        resumed, before = find_checkpoint(cfg.resume, run_dir)
        config = absolute(settings_of(cfg), Finetune) if before is None else own_configuration(cfg, before, Finetune)
        settings = checked(Finetune, config)
        check_given(settings)
        setup.quiet_libraries()
        L.seed_everything(settings.seed, verbose=False)
        trained = None  # of a run that goes on, everything is in its own checkpoint
        if before is None and settings.checkpoint is not None:
            trained = open_checkpoint(settings.checkpoint, settings.network)
            config["data"] = data_node(cfg, trained)
            config["data"].pop("label_fraction", None)
            config = absolute(config, Finetune)
        data, dataset = prepare_data(config["data"], settings, trained)
        found = check_same_data(data, before, settings.resume, settings.resume_with_other_data)
        task: Task = build(settings.task, {"labels": data.labels}, key="task", trusted=True)
        if settings.decoder is not None:
            set_decoder(task, settings.decoder)
        if before is None:
            config["model"] = model_node(settings, trained, task)
        model: FinetunedModel = build(config["model"], key="model", trusted=True)
        if trained is not None:
            load_exactly(model.encoder, trained.encoder.state_dict())
        config["trainer"]["max_steps"] = max_steps = number_of_steps(settings, data)
        trainer_settings = dict(config["trainer"])
        if (
            settings.freeze_steps
            and trainer_settings["strategy"] == "auto"
            and (trainer_settings["devices"], trainer_settings["num_nodes"]) != (1, 1)
        ):
            trainer_settings["strategy"] = "ddp_find_unused_parameters_true"  # at first the encoder takes no gradient
        callbacks = build_each(settings.callbacks, "callbacks", {"run_dir": run_dir})
        loggers = build_each(settings.logger, "logger", {"run_dir": run_dir})
        trainer = setup.make_trainer(trainer_settings, callbacks, loggers)
        split = data.split_batch(settings.global_batch_size, settings.micro_batch_size, trainer.world_size)
        if data.mixes and split.micro_batch_size % 2:
            raise ValueError(f"global_batch_size={settings.global_batch_size}: mixing takes an even number a device")
        trainer.accumulate_grad_batches = split.accumulate
        num_workers = machine.choose_workers(
            settings.num_workers, trainer.strategy.root_device.type, trainer.num_devices
        )
        threads = machine.set_threads(settings.num_threads, num_workers, trainer.num_devices)
        optim = build(settings.optim, key="optim", trusted=True)
        schedule = build_schedule(settings.schedule, max_steps)
        assets, inputs = dataset.assets(), inputs_of(dataset, config["data"])
        portable = {**config, "data": {**config["data"], **assets}, "inputs": inputs, "label_names": data.labels}
        module = FinetuneModule(
            model, task, optim, schedule, settings.freeze_steps, settings.ema_decay, settings.seed, portable
        )
        module.record = {"choices": choices_now(before), "fingerprint": found}
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        if settings.compile:
            setup.check_compile(trainer)
            module.compile_forward()
        module.configure_optimizers()  # only to see that it can be done
    if trainer.is_global_zero:
        with running(), writing("output_dir", run_dir):
            write_configuration(run_dir / CONFIG, readable(config, assets, run_dir), before)
            for name, content in assets.items():
                replace_text(run_dir / f"{name}.json", content)
            write_run_record(
                run_dir / RECORD,
                {**machine.describe_run(settings.seed, ["d2v", "finetune", *arguments()]), "max_steps": max_steps},
            )
        with running():
            for logger in loggers:
                logger.log_hyperparams(config)
        origin = resumed if trained is None else trained.path
        start = "from scratch" if origin is None else f"from {origin}"
        print(
            f"model     {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {start}\n"
            f"data      {data.size:,.0f} {data.batch_unit} to train on, {len(data.evals['val']):,} samples to score\n"
            + "".join(f"{line}\n" for line in data.describe())
            + f"batch     {split.global_batch_size:g} = {split.micro_batch_size:g} x {split.accumulate} accumulated x "
            f"{split.world_size} devices; {max_steps:,} steps = "
            f"{max_steps * settings.global_batch_size / data.size:.1f} epochs\n"
            f"machine   {trainer.precision}, {threads} threads, {num_workers} data workers\n"
            f"run       {run_dir}",
            flush=True,
        )
    with running():
        trainer.fit(
            module, FinetuneDataModule(data, split, num_workers, settings.seed), ckpt_path=resumed, weights_only=True
        )
    if stopped_early(trainer, "finetune", run_dir, settings.resume, scores=True):
        return
    if trainer.is_global_zero:
        with running():
            score_best(run_dir, module, data, trainer, num_workers)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain containers; of an encoder that is trained already, data come later.

    ``data.label_fraction`` is of every kind of data, and no factory need know it.
    """
    from_scratch = cfg.checkpoint is None
    if from_scratch and cfg.get("model") is None:
        raise ValueError("checkpoint=null trains from scratch: choose the encoder by model=data2vec2/..., data2vec/...")
    if from_scratch:
        check_modality(cfg)
    config = plain(cfg, without=() if from_scratch else ["data", "model"])
    if cfg.get("data") is not None and "label_fraction" in cfg.data:
        config["label_fraction"] = cfg.data.label_fraction
        check(config["label_fraction"], PositiveFraction, "data.label_fraction")
    if from_scratch and config.get("data"):
        config["data"].pop("label_fraction", None)
    return config


def prepare_data(node: dict[str, Any], settings: Finetune, trained: Checkpoint | None) -> tuple[FinetuneData, Any]:
    """Return the labelled data, and the data set that they come from."""
    dataset = build(node, key="data", trusted=True)
    if trained is not None:
        check_fits(dataset, trained)
    if not hasattr(dataset, "finetune"):
        raise ValueError(f"data of this kind ({node['_target_']}) cannot be fine-tuned on: choose another data=...")
    labels = build(settings.labels, key="labels", trusted=True)
    known = parameters(type(dataset).finetune)
    unknown = [key for key in labels if key not in known]
    if unknown:
        raise ValueError(
            f"labels.{unknown[0]}={shown(labels[unknown[0]])}: is not for data of the kind {dataset.modality}; choose "
            "another task=... or data=..."
        )
    seed = settings.seed if settings.label_seed is None else settings.label_seed
    return dataset.finetune(**labels, seed=seed, label_fraction=settings.label_fraction), dataset


def model_node(settings: Finetune, trained: Checkpoint | None, task: Task) -> dict[str, Any]:
    """Return the node of encoder and head, from which checkpoints can rebuild them."""
    encoder = settings.model["encoder"] if trained is None else trained.encoder_node
    if trained is not None:
        check_node(encoder, key="model.encoder")  # a file's words
    changed = {key: value for key, value in asdict(settings.encoder).items() if value is not None}
    return {
        "_target_": "d2v.models.heads.FinetunedModel",
        "encoder": {**encoder, **changed},
        "head": {**settings.head, "embed_dim": encoder["embed_dim"], "num_outputs": task.num_outputs},
        "train_frontend": settings.train_frontend,
        "feature_mask": settings.feature_mask,
    }


def check_given(settings: Finetune) -> None:
    """Raise ValueError for settings that contradict each other."""
    if settings.checkpoint is not None and _is_given("model"):
        raise ValueError(f"model=...: the encoder is that of checkpoint={settings.checkpoint}; give one of them")
    monitor = (settings.callbacks.get("checkpoint") or {}).get("monitor")
    if monitor is not None:
        raise ValueError(f"callbacks.checkpoint.monitor={monitor}: here callbacks.score says which is best")
    if settings.checkpoint is None:
        layer_decay = settings.optim.get("layer_decay", 1)
        for key, value, plain_value in (
            ("train_frontend", settings.train_frontend, True),
            ("freeze_steps", settings.freeze_steps, 0),
            ("optim.layer_decay", layer_decay, 1),
        ):
            if value != plain_value:
                raise ValueError(
                    f"checkpoint=null: {key}={shown(value)} is for trained encoders; set {key}={shown(plain_value)}"
                )


def _is_given(key: str) -> bool:
    """Return whether the command line says something of a key."""
    return key in {o.lstrip("+~").partition("=")[0] for o in HydraConfig.get().overrides.task}


def number_of_steps(settings: Finetune, data: FinetuneData) -> int:
    """Return ``trainer.max_steps``, from ``epochs`` where it is not given.

    Of a task's own, whichever the command line says counts.

    Raises:
        ValueError: both are given, or neither; or other settings need more steps.
    """
    steps: int | None = settings.trainer.get("max_steps")
    if _is_given("epochs") and _is_given("trainer.max_steps") and None not in (settings.epochs, steps):
        raise ValueError("epochs and trainer.max_steps say the same: give one of them")
    if steps is None or (_is_given("epochs") and settings.epochs is not None):
        if settings.epochs is None:
            raise ValueError("give epochs=N or trainer.max_steps=N")
        steps = max(1, math.ceil(settings.epochs * data.size / settings.global_batch_size))
    if settings.freeze_steps and settings.freeze_steps >= steps:
        raise ValueError(
            f"freeze_steps={settings.freeze_steps} of {steps} steps would never train the encoder: lower it"
        )
    warmup_steps = settings.schedule.get("warmup_steps", 0)
    if warmup_steps >= steps > 1:
        raise ValueError(
            f"schedule.warmup_steps={warmup_steps} of {steps} steps would be all warm-up: "
            "lower it, or choose schedule=cosine, whose warm-up is a share of the run"
        )
    return steps


def score_best(run_dir: Path, module: FinetuneModule, data: FinetuneData, trainer: L.Trainer, num_workers: int) -> None:
    """Score the best checkpoint on every evaluation set, and write what was found."""
    best = next((c for c in trainer.callbacks if isinstance(c, ScoreEvery)), None)  # type: ignore[attr-defined]
    step, model = trainer.global_step, module.scored
    if best is not None and best.path.is_file():
        checkpoint = RunCheckpoint.load(best.path)
        whole = checkpoint.build_model()  # the module's may be spread over devices
        assert isinstance(whole, FinetunedModel)
        model = whole
        step = checkpoint.step
    else:
        log.warning("there is no best checkpoint: the last step is scored")
    model = model.eval().to(best_device())
    table = score_and_write(run_dir, model, module.task, data, best_device(), num_workers, step=step, seed=module.seed)
    print(table)
    print(f"results: {run_dir / RESULTS}\nrun: {run_dir}")


if __name__ == "__main__":
    sys.exit(run("finetune"))
