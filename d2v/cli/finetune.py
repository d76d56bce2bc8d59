"""``d2v finetune``: an encoder and a head, trained on labels and scored."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from d2v.cli.checks import DATA, FINETUNE, FINETUNE_KEYS, check_keys, check_ranges
from d2v.cli.ending import stopped_early
from d2v.cli.launch import configuring, run, running
from d2v.cli.loading import Trained, best_device, load_data, load_trained, without_references
from d2v.cli.pretrain import find_checkpoint
from d2v.cli.run_dir import claim
from d2v.cli.scoring import set_decoder
from d2v.cli.sweep import sweep
from d2v.data.finetune import FinetuneData
from d2v.interop.native import Checkpoint, load_exactly
from d2v.lit import machine, setup
from d2v.lit.callbacks.score import ScoreEvery
from d2v.lit.finetune import FinetuneDataModule, FinetuneModule
from d2v.models.heads import FinetunedModel
from d2v.nn.block import checkpoint_activations
from d2v.runs.files import replace_yaml
from d2v.runs.record import RECORD, write_run_record
from d2v.tasks.base import Task
from d2v.tasks.results import write_results

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
        check_keys(cfg, FINETUNE_KEYS)
        check_given(cfg)
        check_ranges(cfg, FINETUNE | DATA)
        setup.quiet_libraries()
        L.seed_everything(cfg.seed, verbose=False)
        resumed = find_checkpoint(cfg.resume, run_dir)
        trained = None if cfg.checkpoint is None else load_trained(cfg.checkpoint, cfg.network)
        data, dataset = prepare_data(cfg, trained)
        task: Task = instantiate(cfg.task)(labels=data.labels)
        if cfg.get("decoder") is not None:
            set_decoder(task, cfg.decoder)
        model = build_model(cfg, trained, task)
        set_steps(cfg, data)
        if (
            cfg.freeze_steps
            and cfg.trainer.strategy == "auto"
            and (cfg.trainer.devices, cfg.trainer.num_nodes) != (1, 1)
        ):
            cfg.trainer.strategy = "ddp_find_unused_parameters_true"  # at first the encoder takes no gradient
        callbacks = [instantiate(node) for node in cfg.callbacks.values() if node is not None]
        loggers = [instantiate(node) for node in cfg.logger.values() if node is not None]
        trainer = setup.make_trainer(cfg.trainer, callbacks, loggers)
        split = data.split_batch(cfg.global_batch_size, cfg.micro_batch_size, trainer.world_size)
        if data.train_collate is not None and split.micro_batch_size % 2:
            raise ValueError(f"global_batch_size={cfg.global_batch_size}: mixing takes an even number a device")
        trainer.accumulate_grad_batches = split.accumulate
        num_workers = machine.choose_workers(cfg.num_workers, trainer.strategy.root_device.type, trainer.num_devices)
        threads = machine.set_threads(cfg.num_threads, num_workers, trainer.num_devices)
        optim, schedule = (instantiate(cfg[key], _convert_="all") for key in ("optim", "schedule"))
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        portable = {**config, "data": {**config["data"], **dataset.assets()}, "label_names": data.labels}
        module = FinetuneModule(model, task, optim, schedule, cfg.freeze_steps, cfg.ema_decay, cfg.seed, portable)
        if cfg.activation_checkpointing:
            checkpoint_activations(model)
        if cfg.compile:
            setup.check_compile(trainer)
            module.compile_forward()
        module.configure_optimizers()  # only to see that it can be done
    if trainer.is_global_zero:
        replace_yaml(run_dir / "config.yaml", config)
        write_run_record(run_dir / RECORD, machine.describe_run(cfg.seed))
        for logger in loggers:
            logger.log_hyperparams(config)
        start = "from scratch" if trained is None else f"from {trained.path}"
        print(
            f"model     {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {start}\n"
            f"data      {data.size:,.0f} {data.batch_unit} to train on, {len(data.evals['val']):,} samples to score\n"
            + "".join(f"{line}\n" for line in data.describe())
            + f"batch     {cfg.global_batch_size:g} = {split.micro_batch_size:g} x {split.accumulate} accumulated x "
            f"{split.world_size} devices; {trainer.max_steps:,} steps = "
            f"{trainer.max_steps * cfg.global_batch_size / data.size:.1f} epochs\n"
            f"machine   {trainer.precision}, {threads} threads, {num_workers} data workers\n"
            f"run       {run_dir}",
            flush=True,
        )
    with running():
        trainer.fit(
            module, FinetuneDataModule(data, split, num_workers, cfg.seed), ckpt_path=resumed, weights_only=True
        )
    if stopped_early(trainer, "finetune", run_dir, cfg.resume, scores=True):
        return
    if trainer.is_global_zero:
        score_best(run_dir, module, data, trainer, num_workers)


def prepare_data(cfg: DictConfig, trained: Trained | None) -> tuple[FinetuneData, Any]:
    """The labelled data, seen as the encoder saw its own; and the data set that they come from."""
    with open_dict(cfg):
        cfg.label_fraction = cfg.data.pop("label_fraction", 1.0)  # of every kind of data: no factory need know it
    if trained is None:
        if cfg.get("model") is None:
            raise ValueError(
                "checkpoint=null trains from scratch: choose the encoder by model=data2vec2/..., data2vec/..."
            )
        dataset = instantiate(cfg.data, _convert_="all")
    else:
        dataset = load_data(cfg, trained)
    if not hasattr(dataset, "finetune"):
        raise ValueError(f"data of this kind ({cfg.data._target_}) cannot be fine-tuned on: choose another data=...")
    options = {"seed": cfg.seed if cfg.label_seed is None else cfg.label_seed, "label_fraction": cfg.label_fraction}
    return dataset.finetune(**instantiate(cfg.labels, _convert_="all"), **options), dataset


def build_model(cfg: DictConfig, trained: Trained | None, task: Task) -> FinetunedModel:
    """Encoder and head; its node replaces ``cfg.model``, so that checkpoints can rebuild it."""
    if trained is None:
        node: Any = OmegaConf.to_container(cfg.model.encoder, resolve=True)
    else:
        node = without_references(trained.encoder_node, trained.path)
    node = {**node, **{key: value for key, value in cfg.encoder.items() if value is not None}}
    head = {**OmegaConf.to_container(cfg.head, resolve=True), "num_outputs": task.num_outputs}  # type: ignore[dict-item]
    head["embed_dim"] = node["embed_dim"]
    with open_dict(cfg):
        cfg.model = {
            "_target_": "d2v.models.heads.FinetunedModel",
            "encoder": node,
            "head": head,
            "train_frontend": cfg.train_frontend,
            "feature_mask": cfg.feature_mask,
        }
    model: FinetunedModel = instantiate(cfg.model, _convert_="all")
    if trained is not None:
        load_exactly(model.encoder, trained.encoder.state_dict())
    return model


def check_given(cfg: DictConfig) -> None:
    """Raise ValueError for settings that contradict each other."""
    if cfg.checkpoint is not None and _is_given("model"):
        raise ValueError(f"model=...: the encoder is that of checkpoint={cfg.checkpoint}; give one of them")
    monitor = OmegaConf.select(cfg, "callbacks.checkpoint.monitor")
    if monitor is not None:
        raise ValueError(f"callbacks.checkpoint.monitor={monitor}: here callbacks.score says which is best")
    if cfg.checkpoint is None:
        for key, plain in (("train_frontend", True), ("freeze_steps", 0), ("optim.layer_decay", 1)):
            if OmegaConf.select(cfg, key, default=plain) != plain:
                raise ValueError(
                    f"checkpoint=null: {key}={OmegaConf.select(cfg, key)} is for trained encoders; set {key}={plain}"
                )


def _is_given(key: str) -> bool:
    """Whether the command line says something of a key."""
    return key in {o.lstrip("+~").partition("=")[0] for o in HydraConfig.get().overrides.task}


def set_steps(cfg: DictConfig, data: FinetuneData) -> None:
    """``trainer.max_steps`` from ``epochs``, and ``callbacks.score.every_n_steps`` from the former, where not given.

    Of a task's own, whichever the command line says counts.
    """
    if _is_given("epochs") and _is_given("trainer.max_steps") and None not in (cfg.epochs, cfg.trainer.max_steps):
        raise ValueError("epochs and trainer.max_steps say the same: give one of them")
    if cfg.trainer.max_steps is None or (_is_given("epochs") and cfg.epochs is not None):
        if cfg.epochs is None:
            raise ValueError("give epochs=N or trainer.max_steps=N")
        cfg.trainer.max_steps = max(1, math.ceil(cfg.epochs * data.size / cfg.global_batch_size))
    if cfg.freeze_steps and cfg.freeze_steps >= cfg.trainer.max_steps:
        raise ValueError(
            f"freeze_steps={cfg.freeze_steps} of {cfg.trainer.max_steps} steps would never train the encoder: lower it"
        )
    if cfg.schedule.get("warmup_steps", 0) >= cfg.trainer.max_steps > 1:
        raise ValueError(
            f"schedule.warmup_steps={cfg.schedule.warmup_steps} of {cfg.trainer.max_steps} steps would be all warm-up: "
            "lower it, or choose schedule=cosine, whose warm-up is a share of the run"
        )
    score = cfg.callbacks.get("score")
    if score is not None and score.every_n_steps is None:
        score.every_n_steps = max(1, cfg.trainer.max_steps // 10)


def score_best(run_dir: Path, module: FinetuneModule, data: FinetuneData, trainer: L.Trainer, num_workers: int) -> None:
    """Score the best checkpoint on every evaluation set, and write what was found."""
    best = next((c for c in trainer.callbacks if isinstance(c, ScoreEvery)), None)  # type: ignore[attr-defined]
    step, model = trainer.global_step, module.scored
    if best is not None and best.path.is_file():
        checkpoint = Checkpoint.load(best.path)
        whole = checkpoint.build_model()  # the module's may be spread over devices
        assert isinstance(whole, FinetunedModel)
        model = whole
        step = checkpoint.step
    else:
        log.warning("there is no best checkpoint: the last step is scored")
    model = model.eval().to(best_device())
    table = write_results(run_dir, model, module.task, data, best_device(), num_workers, step=step, seed=module.seed)
    print(table)
    print(f"results: {run_dir / 'results.json'}\nrun: {run_dir}")


if __name__ == "__main__":
    sys.exit(run("finetune"))
