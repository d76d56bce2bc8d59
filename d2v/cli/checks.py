"""Keys, types and ranges of the values that no constructor checks, so that a slip is named before anything is built."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf


class Range(NamedTuple):
    """A value's type and, of numbers, the bounds, both allowed; ``optional``: null is allowed, too."""

    kind: type
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False


PRETRAIN = {
    "seed": Range(int, 0),
    "global_batch_size": Range(float, 1),  # seconds, or a whole number of samples: the data know
    "micro_batch_size": Range(float, 1, optional=True),
    "compile": Range(bool),
    "activation_checkpointing": Range(bool),
    "trainer.max_steps": Range(int, 1),
    "trainer.log_every_n_steps": Range(int, 1),
    "trainer.gradient_clip_val": Range(float, 0, optional=True),
    "optim.lr": Range(float, 0),
    "optim.weight_decay": Range(float, 0),
    "schedule.warmup_steps": Range(int, 0),
    "ema.decay_start": Range(float, 0, 1),
    "ema.decay_end": Range(float, 0, 1),
    "ema.anneal_steps": Range(int, 0),
    "model.loss_beta": Range(float, 0),
    "mask.num_masks": Range(int, 1),
    "callbacks.checkpoint.every_n_steps": Range(int, 1),
    "callbacks.checkpoint.keep_best": Range(int, 1),
    "callbacks.probe.every_n_steps": Range(int, 1),
    "mask.mask_ratio": Range(float),
    "mask.mask_ratio_adjust": Range(float),
    "mask.mask_length": Range(int),
    "mask.min_block": Range(int),
    "mask.min_aspect": Range(float),
}
# Types only, where the data's own checks say more about the bounds.
DATA = {
    "data.download": Range(bool),
    "data.streaming": Range(bool),
    "data.max_bad_fraction": Range(float),
    "data.shuffle_buffer": Range(int),
    "data.sample_rate": Range(int, 1),
    "data.min_seconds": Range(float),
    "data.max_seconds": Range(float, high=86_400),
    "data.crop_seconds": Range(float, high=86_400),
    "data.eval_max_seconds": Range(float, high=86_400),
    "data.pool_size": Range(int, 0),
    "data.block_size": Range(int),
    "data.vocab_size": Range(int),
    "data.pad_id": Range(int),
    "data.mask_id": Range(int, 0, optional=True),
    "data.probe_limit": Range(int, optional=True),
}
FINETUNE = {
    "seed": Range(int, 0),
    "label_seed": Range(int, 0, optional=True),
    "epochs": Range(float, 0, optional=True),
    "global_batch_size": Range(float, 1),
    "micro_batch_size": Range(float, 1, optional=True),
    "compile": Range(bool),
    "activation_checkpointing": Range(bool),
    "freeze_steps": Range(int, 0),
    "ema_decay": Range(float, 0, 1, optional=True),
    "train_frontend": Range(bool),
    "trainer.max_steps": Range(int, 1, optional=True),
    "trainer.log_every_n_steps": Range(int, 1),
    "trainer.gradient_clip_val": Range(float, 0, optional=True),
    "optim.lr": Range(float, 0),
    "optim.weight_decay": Range(float, 0),
    "optim.layer_decay": Range(float, 0, 1),
    "schedule.warmup_steps": Range(int, 0),
    "schedule.warmup_fraction": Range(float, 0, 1),
    "schedule.hold_fraction": Range(float, 0, 1),
    "data.label_fraction": Range(float, 0, 1),
    "labels.hours": Range(float, 0, optional=True),
    "callbacks.score.every_n_steps": Range(int, 1, optional=True),
    "callbacks.score.patience": Range(int, 1, optional=True),
    "callbacks.checkpoint.every_n_steps": Range(int, 1),
}
PROBE = {
    "seed": Range(int, 0),
    "probe.k": Range(int, 1),
    "probe.temperature": Range(float, 0),
    "probe.ctc_epochs": Range(int, 1),
}


KEYS = (
    *("model", "mask", "data", "optim", "schedule", "ema", "trainer", "callbacks", "logger"),
    *("seed", "global_batch_size", "micro_batch_size", "num_workers", "num_threads"),
    *("compile", "activation_checkpointing", "resume", "init_from", "output_dir", "name", "run_dir"),
)


FINETUNE_KEYS = (
    *("model", "data", "task", "head", "encoder", "labels", "feature_mask", "optim", "schedule", "trainer"),
    *("callbacks", "logger", "decoder", "checkpoint", "network", "train_frontend", "freeze_steps", "ema_decay"),
    *("label_seed", "label_fraction", "seed", "epochs", "global_batch_size", "micro_batch_size", "num_workers"),
    *(
        "num_threads",
        "compile",
        "activation_checkpointing",
        "sweep",
        "resume",
        "output_dir",
        "name",
        "run_dir",
        "task_name",
    ),
)


def check_keys(cfg: DictConfig, known: tuple[str, ...] = KEYS) -> None:
    """Raise ValueError for a top-level key that nothing reads."""
    for key in map(str, cfg):
        if key not in known:
            raise ValueError(f"unknown key {key}: nothing reads it; remove it (known: {', '.join(known)})")


def check_ranges(cfg: DictConfig, ranges: dict[str, Range]) -> None:
    """Raise ValueError naming the first key whose value is of another type or out of range, and what would do.

    Keys that the configuration lacks (another optimizer, no probe) are passed over.
    """
    for key, wanted in ranges.items():
        value: Any = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is _ABSENT or (value is None and wanted.optional):
            continue
        kinds = (int, float) if wanted.kind is float else (wanted.kind,)
        of_kind = isinstance(value, kinds) and isinstance(value, bool) == (wanted.kind is bool)
        if not (of_kind and wanted.low <= float(value) <= wanted.high):
            raise ValueError(f"{key}={value}: give {_described(wanted)}{' or null' if wanted.optional else ''}")


def check_sweep(cfg: DictConfig) -> None:
    """Raise ValueError for a ``sweep.*`` that is no list, is empty, holds the same twice or a number out of range."""
    if cfg.sweep.report not in ("mean", "median"):
        raise ValueError(f"sweep.report={cfg.sweep.report}: choose mean or median")
    numbers = {"lrs": Range(float, 0), "seeds": Range(int, 0)}
    for key, example in (("tasks", "[glue/rte,glue/cola]"), ("lrs", "[1e-5,2e-5]"), ("seeds", "[0,1,2]")):
        values = cfg.sweep[key]
        if values is None:
            continue
        if not OmegaConf.is_list(values) or not values:
            raise ValueError(f"sweep.{key}={values}: give a list, such as {example}")
        if key in numbers:
            check_ranges(cfg, {f"sweep.{key}[{i}]": numbers[key] for i in range(len(values))})
        twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            raise ValueError(f"sweep.{key}={values}: {twice} is there twice; give it once")


def _described(wanted: Range) -> str:
    if wanted.kind is bool:
        return "true or false"
    what = "a whole number" if wanted.kind is int else "a number"
    if wanted.high == math.inf:
        return what if wanted.low == -math.inf else f"{what} of at least {wanted.low:g}"
    return f"{what} from {max(0, wanted.low):g} to {wanted.high:g}"


_ABSENT: Any = object()
