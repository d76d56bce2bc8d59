"""Parts of fine-tuning: consistent settings, labelled data, model, number of steps, scoring of the best checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from d2v.arguments import check, parameters
from d2v.cli.inputs import with_found_inputs
from d2v.cli.loading import best_device, check_fits, data_node
from d2v.cli.paths import absolute
from d2v.cli.resuming import check_same_data, own_configuration
from d2v.cli.scoring import build_task
from d2v.cli.settings import Finetune, check_modality, checked, is_given, plain
from d2v.cli.training import seed
from d2v.data.protocol import FinetuneData
from d2v.interop.build import build, check_node, load_exactly
from d2v.interop.checkpoints import Checkpoint, open_checkpoint
from d2v.interop.native import RunCheckpoint
from d2v.lit.callbacks.score import ScoreEvery
from d2v.lit.finetune import FinetuneModule
from d2v.models.heads import FinetunedModel
from d2v.runs.results import RESULTS
from d2v.tasks.base import Task
from d2v.tasks.results import score_and_write
from d2v.values import PositiveFraction, shown

log = logging.getLogger(__name__)

_LEAST_BATCH = 16  # samples or seconds: an even number on each of 8 devices


@dataclass(frozen=True)
class Parts:
    """Settings and parts of a fine-tuning run.

    Attributes:
        settings: checked settings of the command.
        config: settings as plain containers, completed by data, model and number of steps; checkpoints keep them.
        dataset: data set with the labelled data.
        data: labelled data to train on.
        fingerprint: fingerprint of the data, which a resume compares.
        trained: checkpoint that training starts from; None from scratch, and for a run that goes on.
        task: meaning of the model's outputs.
        model: encoder and head.
    """

    settings: Finetune
    config: Mapping[str, Any]
    dataset: Any
    data: FinetuneData
    fingerprint: Mapping[str, Any]
    trained: Checkpoint | None
    task: Task
    model: FinetunedModel

    def trainer_node(self) -> dict[str, Any]:
        """Return the settings of the trainer, with a strategy that allows a frozen encoder."""
        node: dict[str, Any] = dict(self.config["trainer"])
        several = (node["devices"], node["num_nodes"]) != (1, 1)
        if self.settings.freeze_steps and node["strategy"] == "auto" and several:
            node["strategy"] = "ddp_find_unused_parameters_true"  # at first the encoder has no gradient
        return node


def build_parts(cfg: DictConfig, before: RunCheckpoint | None) -> Parts:
    """Resolve a composed configuration, and build data, task and model, in the order in which they need each other.

    Args:
        cfg: as composed.
        before: checkpoint of the resumed run, which then provides the configuration; None for a new run.

    Raises:
        ValueError: a setting is wrong or contradicts another, or checkpoint and data do not fit.
    """
    found = None  # the data set, where it was asked for the form of its samples
    if before is None:
        cfg, found = with_data_of_its_own(cfg)
    config = absolute(settings_of(cfg), Finetune) if before is None else own_configuration(cfg, before, Finetune)
    settings = checked(Finetune, config)
    check_given(settings)
    seed(settings)
    trained = None
    if before is None and settings.checkpoint is not None:
        trained = open_checkpoint(settings.checkpoint, settings.network)
    node = config["data"] if trained is None else trained_data_node(cfg, trained)
    dataset = build(node, key="data", trusted=True) if found is None else found
    data = labelled_data(dataset, node, settings, trained)
    if before is None:
        batch = fitting_batch_size(settings, data)
        settings, config = replace(settings, global_batch_size=batch), {**config, "global_batch_size": batch}
    fingerprint = check_same_data(data, before, settings.resume, settings.resume_with_other_data)
    task = build_task(settings, data)
    model_node = config["model"] if before is not None else new_model_node(settings, trained, task)
    model: FinetunedModel = build(model_node, key="model", trusted=True)
    if trained is not None:
        load_exactly(model.encoder, trained.encoder.state_dict())
    trainer_node = {**config["trainer"], "max_steps": number_of_steps(settings, data)}
    config = {**config, "data": node, "model": model_node, "trainer": trainer_node}
    return Parts(settings, config, dataset, data, fingerprint, trained, task, model)


def with_data_of_its_own(cfg: DictConfig) -> tuple[DictConfig, Any]:
    """Fill in what a run from scratch reads from its data (:func:`d2v.cli.inputs.with_found_inputs`)."""
    if cfg.checkpoint is not None or cfg.get("model") is None:
        return cfg, None
    check_modality(cfg)
    return with_found_inputs(cfg, Finetune, without=["label_fraction"])


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain containers, without data and model for an encoder that is trained already.

    Every kind of data has ``data.label_fraction``, which moves to ``label_fraction``.
    """
    from_scratch = cfg.checkpoint is None
    if from_scratch and cfg.get("model") is None:
        raise ValueError("checkpoint=null trains from scratch: choose the encoder by model=data2vec2/..., data2vec/...")
    config = plain(cfg, without=() if from_scratch else ["data", "model"])
    if cfg.get("data") is None or "label_fraction" not in cfg.data:
        return config
    label_fraction = cfg.data.label_fraction
    check(label_fraction, PositiveFraction, "data.label_fraction")
    data = {"data": without_label_fraction(config["data"])} if from_scratch else {}
    return {**config, **data, "label_fraction": label_fraction}


def without_label_fraction(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node of the data for their factory, which does not know the share of the labels."""
    return {key: value for key, value in node.items() if key != "label_fraction"}


def check_given(settings: Finetune) -> None:
    """Raise ValueError for contradictory settings."""
    if settings.checkpoint is not None and is_given("model"):
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


def trained_data_node(cfg: DictConfig, trained: Checkpoint) -> dict[str, Any]:
    """Return the node of the data, which are read as those that an encoder was trained on."""
    node: dict[str, Any] = absolute({"data": without_label_fraction(data_node(cfg, trained))}, Finetune)["data"]
    return node


def labelled_data(
    dataset: Any, node: Mapping[str, Any], settings: Finetune, trained: Checkpoint | None
) -> FinetuneData:
    """Return the labelled data of a data set that was built from a node."""
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
    label_seed = settings.seed if settings.label_seed is None else settings.label_seed
    labelled: FinetuneData = dataset.finetune(**labels, seed=label_seed, label_fraction=settings.label_fraction)
    return labelled


def new_model_node(settings: Finetune, trained: Checkpoint | None, task: Task) -> dict[str, Any]:
    """Return the node of encoder and head, from which checkpoints can rebuild them."""
    encoder = settings.model["encoder"] if trained is None else trained.encoder_node
    if trained is not None:
        check_node(encoder, key="model.encoder")  # a file's words
    changed = {key: value for key, value in asdict(settings.encoder).items() if value is not None}
    num_layers = encoder["depth"] if settings.head.get("layers") == "concat" else 1
    return {
        "_target_": "d2v.models.heads.FinetunedModel",
        "encoder": {**encoder, **changed},
        "head": {
            **settings.head,
            "embed_dim": encoder["embed_dim"] * num_layers,
            "num_outputs": task.num_outputs,
        },
        "train_frontend": settings.train_frontend,
        "feature_mask": settings.feature_mask,
    }


def fitting_batch_size(settings: Finetune, data: FinetuneData) -> float:
    """Return ``global_batch_size``: as given or the recipe's, or less where the data are few for the recipe's.

    With the recipe's batch, made for far more data, a few epochs would be a few steps.
    """
    size, least = settings.global_batch_size, settings.min_steps_per_epoch
    if least is None or is_given("global_batch_size") or data.size >= least * size:
        return size
    fitting = min(size, max(_LEAST_BATCH, 2 ** int(math.log2(max(1, data.size / least)))))
    if fitting < size:
        log.info(
            "global_batch_size=%g in place of the recipe's %g: %s %s make %d steps an epoch, not %d; set "
            "global_batch_size=N for another",
            *(fitting, size, f"{data.size:,.0f}", data.batch_unit),
            *(math.ceil(data.size / fitting), math.ceil(data.size / size)),
        )
    return fitting


def number_of_steps(settings: Finetune, data: FinetuneData) -> int:
    """Return ``trainer.max_steps``, from ``epochs`` where it is not given.

    A task sets one of the two; the one on the command line counts.

    Raises:
        ValueError: both are given, or neither; or other settings need more steps.
    """
    steps: int | None = settings.trainer.get("max_steps")
    if is_given("epochs") and is_given("trainer.max_steps") and None not in (settings.epochs, steps):
        raise ValueError("epochs and trainer.max_steps say the same: give one of them")
    if steps is None or (is_given("epochs") and settings.epochs is not None):
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
    """Score the best checkpoint on every evaluation set, and write the results."""
    best = next((c for c in trainer.callbacks if isinstance(c, ScoreEvery)), None)  # type: ignore[attr-defined]
    step, model = trainer.global_step, module.scored
    if best is not None and best.path.is_file():
        checkpoint = RunCheckpoint.load(best.path)
        whole = checkpoint.build_model()  # the module's model may be sharded
        assert isinstance(whole, FinetunedModel)
        model = whole
        step = checkpoint.step
    else:
        log.warning("there is no best checkpoint: the last step is scored")
    model = model.eval().to(best_device())
    table = score_and_write(run_dir, model, module.task, data, best_device(), num_workers, step=step, seed=module.seed)
    print(table)
    print(f"results: {run_dir / RESULTS}\nrun: {run_dir}")
