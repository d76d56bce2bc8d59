"""What evaluate, extract and export share: a trained encoder, and data prepared as it was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, open_dict
from torch import nn

from d2v.interop.doors import Found, Source, read_foreign, recognise
from d2v.interop.native import Checkpoint, Network, build, load_export, load_export_config
from d2v.models.heads import FinetunedModel
from d2v.nn.encoder import Encoder

# What inputs look like is the encoder's to say: of images, of speech, of text.
_INPUT_KEYS = (
    *("img_size", "in_chans", "mean", "std", "crop_pct"),
    "sample_rate",
    *("tokenizer", "vocab_size", "pad_id", "mask_id", "block_size"),
)


WHOSE: dict[Source, str] = {
    "run": "a run of d2v",
    "export": "an export of d2v",
    "fairseq": "a checkpoint of the authors' code",
    "huggingface": "a model of Hugging Face's",
}


@dataclass(frozen=True)
class Trained:
    """An encoder and where it comes from.

    Attributes:
        encoder: in eval mode.
        path: the file or folder.
        encoder_node: configuration that rebuilds the encoder.
        data_node: configuration of the data it was trained on; of an import, only what its inputs look like.
        step: optimizer steps trained; None where that is not known.
        source: whose checkpoint it is.
        head: of a fine-tuned model, in eval mode; None: it is none, or the export holds the encoder only.
        head_node: configuration that rebuilds it.
        label_names: of the head's outputs, as far as they are known.
    """

    encoder: Encoder
    path: Path
    encoder_node: dict[str, Any]
    data_node: dict[str, Any]
    step: int | None
    source: Source
    head: nn.Module | None = None
    head_node: dict[str, Any] | None = None
    label_names: Any = None

    def untrained(self, seed: int) -> Encoder:
        """The same encoder with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder: Encoder = build(self.encoder_node)
        return encoder.eval()


def load_trained(path: str, network: Network) -> Trained:
    """Read whatever d2v can: a run, a checkpoint, an export, the authors' checkpoints, Hugging Face's models.

    Raises:
        FileNotFoundError, ValueError: there is nothing readable, or no such network.
    """
    if network not in ("student", "teacher"):
        raise ValueError(f"network={network}: choose student or teacher")
    found = recognise(str(path))
    if found.source == "export":
        config = load_export_config(found.path)
        return Trained(load_export(found.path), found.path, config["encoder"], config["data"], None, found.source)
    if found.source == "run":
        return _trained_by_run(found, network)
    imported = read_foreign(found, network)
    return Trained(
        imported.build_encoder(),
        found.path,
        imported.encoder_node,
        imported.data_node,
        None,
        found.source,
        imported.build_head(),
        imported.head_node,
        imported.label_names,
    )


def _trained_by_run(found: Found, network: Network) -> Trained:
    checkpoint = Checkpoint.load(found.path)
    try:
        config, model = checkpoint.config, checkpoint.build_model().eval().requires_grad_(False)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint={found.path}: its configuration does not build a model ({error!r})") from error
    node, head, labels = config["model"], None, None
    if isinstance(model, FinetunedModel):
        encoder, head, labels = model.encoder, model.head, config["label_names"]
    else:
        encoder = model.network(network)
    return Trained(
        encoder,
        found.path,
        node["encoder"],
        config["data"],
        checkpoint.step,
        found.source,
        head,
        node.get("head"),
        labels,
    )


def load_data(cfg: DictConfig, trained: Trained) -> Any:
    """The data set of ``cfg.data``, or the one the encoder was trained on; inputs as in training unless overridden.

    Args:
        cfg: the command's configuration; gains ``model``, which data configurations refer to.
        trained: whose inputs to imitate.

    Raises:
        ValueError: the data are of another modality than the encoder reads, or longer than it can read.
    """
    if cfg.get("data") is None:
        if "_target_" not in trained.data_node:
            raise ValueError(f"checkpoint={trained.path} does not say what it was trained on: give data=...")
        return build(trained.data_node)
    _check_modality(trained, _modality_of(cfg.data._target_))  # before settings refer to a frontend that is not there
    with open_dict(cfg):
        cfg.model = {"encoder": without_references(trained.encoder_node, trained.path)}
        overridden = {o.lstrip("+").partition("=")[0] for o in HydraConfig.get().overrides.task}
        for key in _INPUT_KEYS:
            if key in trained.data_node and key in cfg.data and f"data.{key}" not in overridden:
                cfg.data[key] = _plain(trained.data_node[key], key, trained.path)
    data = instantiate(cfg.data, _convert_="all")
    _check_modality(trained, data.modality)
    positions = getattr(trained.encoder.frontend(data.modality), "max_positions", math.inf)
    if getattr(data, "block_size", 0) > positions:
        raise ValueError(
            f"data.block_size={data.block_size}: the encoder of checkpoint={trained.path} has {positions} positions; "
            f"set data.block_size={positions} or less"
        )
    return data


def _modality_of(factory: str) -> str | None:
    """What a data set's factory makes, by its annotations; None where they do not say."""
    try:
        made = get_type_hints(get_method(factory)).get("return")
    except (NameError, TypeError, ValueError):  # annotations that mean nothing here, or a class
        return None
    return getattr(made, "modality", None)


def _check_modality(trained: Trained, modality: str | None) -> None:
    read = list(trained.encoder.frontends)
    if modality is not None and modality not in read:
        raise ValueError(
            f"checkpoint={trained.path} reads {', '.join(read)}, but the data are {modality}: "
            "choose another checkpoint, or another task or data=..."
        )


def without_references(node: Any, path: Path) -> Any:
    """Plain containers from a file that are to become part of the configuration.

    Raises:
        ValueError: a string in them is one that Hydra would resolve.
    """
    if isinstance(node, str) and "${" in node:
        raise ValueError(
            f"checkpoint={path}: its configuration holds {node[:60]!r}, which would be resolved: refused; of a "
            "tokenizer, give data.tokenizer=FILE"
        )
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    for value in inner:
        without_references(value, path)
    return node


def _plain(value: Any, key: str, path: Path) -> Any:
    """A value, or a list of values, from a file: Hydra would build whatever a mapping describes."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(v, str | int | float | None) for v in values):
        raise ValueError(f"checkpoint={path}: its data.{key} is no plain value: refused, it could execute code")
    return without_references(value, path)


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
