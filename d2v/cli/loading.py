"""What evaluate, extract and export share: a trained encoder, and data prepared as it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from d2v.interop.native import Checkpoint, Network, build, load_encoder, load_export_config, resolve_checkpoint
from d2v.nn.encoder import Encoder

# What inputs look like is the encoder's to say: of images, of speech, of text.
_INPUT_KEYS = (
    *("img_size", "in_chans", "mean", "std", "crop_pct"),
    "sample_rate",
    *("tokenizer", "vocab_size", "pad_id", "mask_id", "block_size"),
)


@dataclass(frozen=True)
class Trained:
    """An encoder and where it comes from.

    Attributes:
        encoder: in eval mode.
        path: the checkpoint file or export folder.
        encoder_node: configuration that rebuilds the encoder.
        data_node: configuration of the data it was trained on.
        step: optimizer steps trained; None for an export, which does not say.
    """

    encoder: Encoder
    path: Path
    encoder_node: dict[str, Any]
    data_node: dict[str, Any]
    step: int | None

    def untrained(self, seed: int) -> Encoder:
        """The same encoder with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder: Encoder = build(self.encoder_node)
        return encoder.eval()


def load_trained(path: str, network: Network) -> Trained:
    """Read a checkpoint, a run's newest one, or an export.

    Raises:
        FileNotFoundError, ValueError: there is nothing readable, or no such network.
    """
    if network not in ("student", "teacher"):
        raise ValueError(f"network={network}: choose student or teacher")
    found = resolve_checkpoint(path)
    if found.is_dir():
        config = load_export_config(found)
        return Trained(load_encoder(found), found, config["encoder"], config["data"], None)
    checkpoint = Checkpoint.load(found)
    encoder = checkpoint.build_encoder(network)
    config = checkpoint.config
    return Trained(encoder, found, config["model"]["encoder"], config["data"], checkpoint.step)


def load_data(cfg: DictConfig, trained: Trained) -> Any:
    """The data set of ``cfg.data``, or the one the encoder was trained on; inputs as in training unless overridden.

    Args:
        cfg: the command's configuration; gains ``model``, which data configurations refer to.
        trained: whose inputs to imitate.
    """
    if cfg.get("data") is None:
        return build(trained.data_node)
    with open_dict(cfg):
        cfg.model = {"encoder": trained.encoder_node}
        overridden = {o.lstrip("+").partition("=")[0] for o in HydraConfig.get().overrides.task}
        for key in _INPUT_KEYS:
            if key in trained.data_node and key in cfg.data and f"data.{key}" not in overridden:
                cfg.data[key] = trained.data_node[key]
    return instantiate(cfg.data, _convert_="all")


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
