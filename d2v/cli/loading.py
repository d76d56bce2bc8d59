"""Data for a trained encoder, prepared as in its training; shared by evaluate, extract and finetune."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.arguments import returned_by
from d2v.cli.settings import plain_value
from d2v.data.contents import visible
from d2v.data.fingerprint import tokenizer_digest
from d2v.data.texts.tokenizer import Tokenizer, load_tokenizer
from d2v.interop.build import build, part_named
from d2v.interop.checkpoints import Checkpoint

WORDS_OF_WRITING = ("cache", "download")


def load_data(cfg: DictConfig, trained: Checkpoint, first: Checkpoint | None = None) -> Any:
    """Return the data set of ``cfg.data``, or that of the encoder's training, with the encoder's form of inputs.

    Args:
        cfg: configuration of the command.
        trained: checkpoint with the form of inputs, unless the command line overrides it.
        first: checkpoint whose training data are read; None for ``trained``.

    Raises:
        ValueError: the encoder does not read the modality or the length of the data.
    """
    if cfg.get("data") is None:
        data = _built_data(_training_data(trained, first), {}, trained.path)
    elif "_target_" not in cfg.data:  # data.root=DIR alone: the data that it was trained on, but for that
        data = _built_data(_training_data(trained, first), plain_value(cfg.data), trained.path)
    else:
        data = build(data_node(cfg, trained), key="data", trusted=True)
    check_fits(data, trained)
    return data


def check_fits(data: Any, trained: Checkpoint) -> None:
    """Raise ValueError unless ``data`` is a data set of the encoder's modality, and not too long for it."""
    if not hasattr(data, "modality"):
        raise ValueError(f"checkpoint={trained.path}: data._target_ makes no data set; choose one by data=...")
    _check_modality(trained, data.modality)
    positions = getattr(trained.encoder.frontend(data.modality), "max_positions", math.inf)
    if getattr(data, "block_size", 0) > positions:
        raise ValueError(
            f"data.block_size={data.block_size}: the encoder of checkpoint={trained.path} has {positions} positions; "
            f"set data.block_size={positions} or less"
        )
    rate, wanted = getattr(data, "sample_rate", None), trained.inputs.get("sample_rate")
    if None not in (rate, wanted) and rate != wanted:
        raise ValueError(
            f"data.sample_rate={rate}: the encoder of checkpoint={trained.path} was trained at {wanted} Hz; leave "
            "data.sample_rate out, and recordings of any rate are resampled to it"
        )
    theirs = trained.inputs.get("tokenizer")
    own = getattr(data, "tokenizer", None)
    if theirs is not None and own is not None and not same_tokenizer(own, theirs):
        raise ValueError(
            f"data.tokenizer: is another tokenizer than the one that checkpoint={trained.path} was trained with, in "
            "which its token embeddings mean nothing; leave data.tokenizer out to use that one"
        )


def check_probed(layers: Any, pool: str, trained: Checkpoint, key: str) -> None:
    """Raise ValueError, before any computation, if an encoder lacks the requested block or CLS token.

    Args:
        layers: index of a block, or a word valid for every encoder.
        pool: pooling of tokens.
        trained: checkpoint with the encoder.
        key: prefix of both config keys, for the message.
    """
    if pool == "cls" and not any(f.num_prefix_tokens for f in trained.encoder.frontends.values()):
        raise ValueError(
            f"{key}pool=cls: the encoder of checkpoint={trained.path} has no CLS token; set {key}pool=mean"
        )
    depth = trained.encoder_node["depth"]
    if isinstance(layers, int) and layers >= depth:
        raise ValueError(
            f"{key}layers={layers}: the encoder of checkpoint={trained.path} has {depth} blocks; choose 0 to "
            f"{depth - 1}"
        )


def same_tokenizer(tokenizer: Tokenizer, stored: str) -> bool:
    """Return whether a tokenizer is that of a checkpoint."""
    return tokenizer_digest(tokenizer) == tokenizer_digest(load_tokenizer(stored))


def data_node(cfg: DictConfig, trained: Checkpoint) -> dict[str, Any]:
    """Return ``cfg.data`` as plain containers, with the checkpoint's inputs beneath the command line's words.

    Nothing that comes from the checkpoint is resolved, and :func:`build` checks its types.

    Raises:
        ValueError: the data are of another modality than the encoder reads, or an input is no plain value.
    """
    _check_modality(trained, getattr(returned_by(part_named(cfg.data._target_)), "modality", None))
    node: dict[str, Any] = plain_value(cfg.data)
    given = {o.lstrip("+").partition("=")[0] for o in HydraConfig.get().overrides.task}
    for key, value in trained.inputs.items():
        if key in node and f"data.{key}" not in given:
            node[key] = inert(value, f"data.{key}", trained.path)
    return node


def inert(value: Any, key: str, path: Path) -> Any:
    """Return a value from a file for use in the user's configuration, where a mapping could build an object.

    Raises:
        ValueError: the value is not a number, string, or list of these.
    """
    values = value if isinstance(value, list | tuple) else [value]
    for inner in values:
        if isinstance(inner, list | tuple):
            inert(inner, key, path)
        elif not isinstance(inner, bool | int | float | str | None):
            raise ValueError(f"checkpoint={path}: its {key} is no plain value: refused, it could execute code")
    return value


def _training_data(trained: Checkpoint, first: Checkpoint | None) -> Mapping[str, Any]:
    """Return the node of the training data of ``first``, with the form of inputs of ``trained``."""
    if first is None or first is trained:
        return trained.data_node
    node = first.data_node
    return node | {key: value for key, value in trained.inputs.items() if key in node}


def _built_data(node: Mapping[str, Any], typed: Mapping[str, Any], path: Path) -> Any:
    """Build the data set that a file describes, changed by the command line.

    Folders for caches and downloads are never taken from the file.

    Raises:
        ValueError: the file describes something else, or names a forbidden class.
    """
    if "_target_" not in node:
        raise ValueError(f"checkpoint={path} does not say what it was trained on: give data=...")
    kept = {key: value for key, value in node.items() if key not in WORDS_OF_WRITING}
    return build({**kept, **typed}, key="data")


def _check_modality(trained: Checkpoint, modality: str | None) -> None:
    read = list(trained.encoder.frontends)
    if modality is not None and modality not in read:
        raise ValueError(
            f"checkpoint={trained.path} reads {', '.join(read)}, but the data are {modality}: "
            "choose another checkpoint, or another task or data=..."
        )


def name_skipped(skipped: Sequence[str]) -> None:
    """Print the samples that could not be read."""
    for entry in skipped:
        print(visible(f"skipped {entry}"))


def best_device() -> torch.device:
    """Return a GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
