"""Training checkpoints of d2v. Loading executes nothing."""

from __future__ import annotations

import argparse
import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from d2v.interop.exports import WEIGHTS
from d2v.interop.fitting import build_fitting
from d2v.interop.pickles import Unusual, check_content, check_pickle
from d2v.lfs import refuse_lfs_pointer
from d2v.models.heads import FinetunedModel
from d2v.models.masked import MaskedModel
from d2v.runs.archives import Damaged, check_archive, is_archive
from d2v.runs.checkpoints import BEST, FOLDER, newest_intact_checkpoint

log = logging.getLogger(__name__)

Network = Literal["student", "teacher"]


@dataclass(frozen=True)
class RunCheckpoint:
    """Content of a training checkpoint.

    Attributes:
        config: resolved configuration of the run, plain containers.
        state: state dict of the model.
        step: optimizer steps done.
        record: further records of the run: ``choices`` of configuration groups, ``fingerprint`` of the data.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    step: int
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> RunCheckpoint:
        """Read a ``.ckpt`` file, weights only.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is damaged, or not a checkpoint of a d2v run.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint={path}: no such file; give a .ckpt file, a run's folder or an export")
        return cls.of(path, read_safely(path))

    @classmethod
    def of(cls, path: Path, content: Any) -> RunCheckpoint:
        """Build from the loaded content of a file.

        Raises:
            ValueError: the content is not a checkpoint of a d2v run.
        """
        if not isinstance(content, dict) or "d2v" not in content:
            raise ValueError(f"checkpoint={path}: not written by a d2v run (no 'd2v' entry)")
        try:
            config, step = _described(content["d2v"]["config"]), int(content["global_step"])
            # If the weights of a fine-tuned model were averaged, the average was scored.
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
        """Build the model with its weights."""
        model: MaskedModel | FinetunedModel = build_fitting(self.config["model"], self.state)
        return model


def _described(config: Any) -> dict[str, Any]:
    """Return a run's configuration if it describes a model, inputs and, if it has that key, data."""
    if not all(isinstance(part, dict) for part in (config["model"], config["inputs"], config.get("data", {}))):
        raise TypeError("its configuration describes no model, no inputs or no data")
    described: dict[str, Any] = config
    return described


def read_safely(path: Path) -> Any:
    """Read tensors and plain containers from a file of ``torch.save``, memory-mapped if its format allows.

    A zip archive is compared with its checksums first; files from before PyTorch 1.6 have none.

    Raises:
        ValueError: the file is damaged, a Git LFS pointer, or loading it would execute code.
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
    except Exception as error:  # torch raises many types of errors for damaged or foreign files
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
    """Return the checkpoint file or export folder of a path.

    For a run's folder this is its best checkpoint if it chose one (as fine-tuning does), else its newest intact one.

    Raises:
        FileNotFoundError: there is no checkpoint.
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
