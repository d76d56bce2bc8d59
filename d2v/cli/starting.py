"""Parts of pretraining: matching data, masks and model, and initial weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from d2v.arguments import check
from d2v.cli.loading import inert, same_tokenizer
from d2v.cli.settings import Pretrain, build_schedule
from d2v.data.loading import Workers
from d2v.data.protocol import PretrainData
from d2v.data.samplers import StepPlan
from d2v.data.texts.tokenizer import load_tokenizer
from d2v.errors import naming_keys
from d2v.interop.build import build
from d2v.interop.checkpoints import Checkpoint, open_checkpoint
from d2v.interop.native import RunCheckpoint
from d2v.models.masked import MaskedModel
from d2v.values import PathStr

log = logging.getLogger(__name__)

_COUNTED_AT_A_TIME = 256  # samples


def build_parts(settings: Pretrain, found: Any = None) -> tuple[Any, Any, Any]:
    """Return data, masks and model.

    Args:
        settings: settings of the command.
        found: data set of these settings, if it is built already.

    Raises:
        ValueError: the data are for fine-tuning only, or the model does not read their modality.
    """
    data = build(settings.data, key="data", trusted=True) if found is None else found
    mask, model = (
        build(node, key=key, trusted=True) for key, node in (("mask", settings.masks), ("model", settings.model))
    )
    if not hasattr(data, "loader"):
        raise ValueError(
            f"data of this kind ({settings.data['_target_']}) are for fine-tuning: choose another data=..."
        )
    model.check_mask(mask)
    for modality in data.modalities:
        if modality not in model.student.frontends:
            raise ValueError(f"the data are {modality}, but the model reads {', '.join(model.student.frontends)}")
    return data, mask, model


def build_curriculum(settings: Pretrain, max_steps: int, model: MaskedModel) -> Callable[[int], float] | None:
    """Return the share of the loss on the teacher's targets by step, or None where there is no curriculum.

    Raises:
        ValueError: the model does not predict both the teacher's targets and input values, or nothing weighs the two.
    """
    if settings.curriculum is None:
        if getattr(model, "reconstruction", False):
            raise ValueError(
                "model.reconstruction=true: nothing says when input values are predicted; add curriculum="
                "reconstruction_first, or set model.reconstruction=false"
            )
        return None
    curriculum: Callable[[int], float] = build_schedule(settings.curriculum, max_steps, "curriculum")
    model.set_latent_share(curriculum(0))
    return curriculum


def starting_weights(init_from: str | None, before: RunCheckpoint | None) -> Checkpoint | None:
    """Open ``init_from``; return None without one, and for a resumed run.

    Args:
        init_from: value of the key.
        before: checkpoint of the resumed run; None for a new run.

    Raises:
        ValueError: the checkpoint is not readable.
    """
    check(init_from, PathStr | None, "init_from")
    if not init_from:
        return None
    if before is not None:
        log.info("init_from=%s was for this run's start: it goes on from its own checkpoint", init_from)
        return None
    with naming_keys({"checkpoint": "init_from"}):
        return open_checkpoint(init_from)


def start_from_statistics(settings: Pretrain, data: PretrainData, model: MaskedModel) -> None:
    """Start the frontends from the first ``init_samples`` of the run's training samples, all where there are fewer.

    Every rank reads the same ones, so that all start alike.

    Raises:
        ValueError: a frontend has no start from statistics.
    """
    count = settings.init_samples if data.size is None else min(settings.init_samples, int(data.size))
    if count == 0:
        return
    for modality in data.modalities:
        model.start_from(modality, _first_inputs(data, modality, count, settings.seed))
    log.info("the model starts from statistics of %d training samples", count)


def _first_inputs(data: PretrainData, modality: str, count: int, seed: int) -> Iterator[Tensor]:
    """Inputs of a modality among the first ``count`` training samples of a run, in batches."""
    split = data.split_batch(min(count, _COUNTED_AT_A_TIME), None, world_size=1)
    plan = StepPlan(num_batches=-(-count // int(split.micro_batch_size)))
    for batch in data.loader(None, seed, split, plan, Workers()):
        if batch.modality == modality:
            yield batch.inputs


def check_warmup(settings: Pretrain) -> None:
    """Refuse a warm-up as long as the run if the user set it; warn if a recipe was shortened to that.

    Raises:
        ValueError: ``schedule.warmup_steps`` was set and is not below ``trainer.max_steps``.
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


def with_tokenizer(settings: Pretrain, start: Checkpoint) -> Pretrain:
    """Return settings with the tokenizer of ``init_from``, unless another is given, which causes a warning.

    Token embeddings do not match another tokenizer.
    """
    if "tokenizer" not in settings.data:
        return settings
    with naming_keys({"checkpoint": "init_from"}):
        theirs = inert(start.inputs.get("tokenizer"), "data.tokenizer", start.path)
    given = settings.data["tokenizer"]
    if given is None:
        return replace(settings, data={**settings.data, "tokenizer": theirs})
    if theirs is not None and not same_tokenizer(load_tokenizer(given), theirs):
        log.warning(
            "data.tokenizer=%s is another tokenizer than the one that the weights of init_from=%s were trained with: "
            "their token embeddings mean nothing in it; leave data.tokenizer out to go on with theirs",
            *(given, settings.init_from),
        )
    return settings
