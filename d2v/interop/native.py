"""Our own files: training checkpoints, and the folders an encoder is exported to. Loading executes nothing."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2v.bounds import parse_json, read_text, read_yaml
from d2v.interop.fitting import build_fitting
from d2v.interop.pickles import Unusual, check_content, check_pickle
from d2v.interop.private import public_data
from d2v.lfs import refuse_lfs_pointer
from d2v.models.heads import FinetunedModel
from d2v.models.masked import MaskedModel
from d2v.nn.encoder import Encoder
from d2v.runs.archives import Damaged, check_archive, is_archive
from d2v.runs.checkpoints import BEST, FOLDER, newest_intact_checkpoint
from d2v.runs.exports import CARD, SUMS, check_export, export_folder
from d2v.runs.files import replace_text, replace_yaml

log = logging.getLogger(__name__)

Network = Literal["student", "teacher"]

WEIGHTS, CONFIG = "encoder.safetensors", "config.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """Content of a training checkpoint for its readers.

    Attributes:
        config: the run's resolved configuration, plain containers.
        state: the model's state dict.
        step: optimizer steps done.
        record: what else the run keeps about itself: ``choices`` of configuration groups, ``fingerprint`` of the data.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    step: int
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a ``.ckpt`` file, weights only.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no checkpoint of a d2v run.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint={path}: no such file; give a .ckpt file, a run's folder or an export")
        content = read_safely(path)
        if not isinstance(content, dict) or "d2v" not in content:
            raise ValueError(f"checkpoint={path}: not written by a d2v run (no 'd2v' entry)")
        try:
            config, step = _described(content["d2v"]["config"]), int(content["global_step"])
            # A fine-tuned model whose weights were averaged was scored by the average.
            prefix = "average." if any(key.startswith("average.") for key in content["state_dict"]) else "model."
            state = {
                key.removeprefix(prefix): value
                for key, value in content["state_dict"].items()
                if key.startswith(prefix)
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"checkpoint={path}: parts of it are missing ({error})") from error
        odd = next((key for key, value in state.items() if not isinstance(value, Tensor)), None)
        if odd is not None:
            raise ValueError(f"checkpoint={path}: its weights {odd!r} are no tensor")
        return cls(config, state, step, content["d2v"])

    def build_model(self) -> MaskedModel | FinetunedModel:
        """The model with its weights."""
        model: MaskedModel | FinetunedModel = build_fitting(self.config["model"], self.state)
        return model

    def build_encoder(self, network: Network) -> Encoder:
        """An encoder with its weights: the student or the teacher, or a fine-tuned model's only one."""
        model = self.build_model()
        encoder: Encoder = model.encoder if isinstance(model, FinetunedModel) else model.network(network)
        return encoder.eval().requires_grad_(False)


def _described(config: Any) -> dict[str, Any]:
    """Return a run's configuration if it describes a model, and data if it says so."""
    if not isinstance(config["model"], dict) or not isinstance(config.get("data", {}), dict):
        raise TypeError("its configuration describes no model, or no data")
    described: dict[str, Any] = config
    return described


def read_safely(path: Path) -> Any:
    """Read a file of ``torch.save``: tensors and plain containers, mapped from the file where its format allows.

    A zip archive is compared with its checksums first; files from before PyTorch 1.6 have none.

    Raises:
        ValueError: it is damaged, a Git LFS pointer, or loading it would execute code.
    """
    refuse_lfs_pointer(path, f"checkpoint={path}")
    try:
        if is_archive(path):
            check_archive(path)
        check_pickle(path)
        content = _load(path)
        check_content(content, path.stat().st_size)
    except Damaged as error:
        raise ValueError(
            f"checkpoint={path}: is damaged ({error}): copy it again, or give an earlier checkpoint of the run"
        ) from error
    except Unusual as error:
        raise ValueError(
            f"checkpoint={path}: refused, because it holds more than tensors and plain values ({error}): loading it "
            "could execute code or fill the memory"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint={path}: not a readable checkpoint of tensors and plain values alone: refused"
        ) from error
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        raise ValueError(f"checkpoint={path}: not a readable checkpoint ({error})") from error
    return content


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # files from before PyTorch 1.6


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint file or export folder that ``path`` means.

    A run's folder means its best checkpoint, if it chose one (fine-tuning does), else its newest intact one.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if path.is_dir() and not (path / WEIGHTS).exists():
        folder = path / FOLDER
        if (folder / BEST).is_file():
            return folder / BEST
        checkpoint = newest_intact_checkpoint(folder if folder.is_dir() else path)
        if checkpoint is None:
            others = sorted(p.name for p in path.iterdir() if p.suffix in (".pt", ".ckpt"))
            hint = f"; give one of its files, such as {path / others[0]}" if others else ""
            raise FileNotFoundError(f"checkpoint={path}: holds neither {WEIGHTS} nor intact checkpoints/*.ckpt{hint}")
        return checkpoint
    return path


def save_encoder(encoder: Encoder, config: Mapping[str, Any], folder: str | Path, card: str) -> Path:
    """Write an encoder as a folder: weights, the configuration that rebuilds it, and a model card.

    Args:
        encoder: the student or the teacher.
        config: plain containers: ``encoder`` (the node that builds it) and anything worth keeping beside it.
        folder: made if need be.
        card: Markdown.

    Raises:
        ValueError: ``folder`` is a file, or holds files that are no export's.
        NotWritten: the disk is full, or may not be written to.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    with export_folder(folder, "safetensors") as part:
        save_file(state, part / WEIGHTS, metadata={"format": "pt"})
        write_config(config, part, card)
    return Path(folder)


def write_config(config: Mapping[str, Any], folder: Path, card: str) -> None:
    """Write the files beside weights: the configuration that rebuilds an encoder, a tokenizer, the model card."""
    replace_yaml(folder / CONFIG, _write_files(dict(config), folder))
    replace_text(folder / CARD, card)


def _write_files(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Values of ``data`` that are whole JSON files (a tokenizer) become files beside the configuration."""
    data = public_data(config.get("data") or {})
    for key, value in data.items():
        if isinstance(value, str) and value.startswith("{") and key.isidentifier():
            replace_text(folder / f"{key}.json", value)
            data[key] = f"{key}.json"
    return {**config, "data": data}


def load_export_config(folder: Path) -> dict[str, Any]:
    """Read the configuration beside an export's weights: ``encoder``, the node that builds it, and ``data``.

    The files of the export are compared with its checksums first.

    Raises:
        ValueError: a file is not the one that was exported, or does not say how to build the encoder.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"checkpoint={folder}: {CONFIG}, which says how to build the encoder, is missing")
    refuse_damaged(folder, (CONFIG,))
    if not (folder / SUMS).is_file():
        log.warning("%s has no %s: whether its files are whole cannot be told", folder, SUMS)
    try:
        config = read_yaml(folder / CONFIG)
    except ValueError as error:
        raise ValueError(f"checkpoint={folder}: {CONFIG} is not readable ({error})") from error
    if not isinstance(config, dict) or "encoder" not in config:
        raise ValueError(f"{folder / CONFIG}: has no 'encoder' to build")
    config["data"] = config.get("data") or {}
    if not isinstance(config["data"], dict):
        raise ValueError(f"{folder / CONFIG}: its 'data' are no mapping")
    for key, value in config["data"].items():
        if isinstance(key, str) and key.isidentifier() and value == f"{key}.json" and (folder / value).is_file():
            refuse_damaged(folder, (value,))
            try:
                text = read_text(folder / value)
                parse_json(text)
            except ValueError as error:
                raise ValueError(f"checkpoint={folder}: {value} is not readable ({error})") from error
            config["data"][key] = text
    return config


def refuse_damaged(folder: Path, needed: Iterable[str] = ()) -> None:
    """Compare the files of a folder with the checksums that an export of any format has.

    Raises:
        ValueError: naming the file that is not the one that was exported, or is not listed though needed.
    """
    try:
        check_export(folder, needed)
    except Damaged as error:
        for path in folder.iterdir():
            refuse_lfs_pointer(path, f"checkpoint={folder}")
        raise ValueError(f"checkpoint={folder}: {error}") from error


def _load_weights(path: Path) -> dict[str, Tensor]:
    refuse_lfs_pointer(path, f"checkpoint={path.parent}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not readable ({error})") from error


def load_export(folder: Path) -> Encoder:
    """The encoder, in eval mode, in a folder of ``d2v export``.

    Raises:
        ValueError: it is not readable, or does not fit together.
    """
    config = load_export_config(folder)
    refuse_damaged(folder, (WEIGHTS,))
    encoder: Encoder = build_fitting(config["encoder"], _load_weights(folder / WEIGHTS))
    return encoder.eval().requires_grad_(False)
