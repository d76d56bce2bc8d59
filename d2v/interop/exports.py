"""Export folders of encoders in d2v's own format. Loading executes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2v.bounds import parse_json, read_text, read_yaml
from d2v.interop.fitting import build_fitting
from d2v.interop.private import public_inputs
from d2v.lfs import refuse_lfs_pointer
from d2v.nn.encoder import Encoder
from d2v.runs.archives import Damaged
from d2v.runs.exports import CARD, SUMS, check_export, export_folder
from d2v.runs.files import replace_text, replace_yaml

log = logging.getLogger(__name__)

WEIGHTS, CONFIG = "encoder.safetensors", "config.yaml"


def save_encoder(encoder: Encoder, config: Mapping[str, Any], folder: str | Path, card: str) -> Path:
    """Write an encoder as a folder: weights, the configuration that rebuilds it, and a model card.

    Args:
        encoder: the student or the teacher.
        config: plain containers: ``encoder`` (the node that builds it), ``inputs`` (their form, under the keys of
            conf/inputs) and any further keys.
        folder: created if missing.
        card: model card in Markdown.

    Raises:
        ValueError: ``folder`` is a file, or holds files that are not of an export.
        NotWritten: the disk is full or not writable.
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
    """Write inputs that are contents of JSON files (a tokenizer) as files beside the configuration."""
    inputs = public_inputs(config["inputs"])
    for key, value in inputs.items():
        if isinstance(value, str) and value.startswith("{") and key.isidentifier():
            replace_text(folder / f"{key}.json", value)
            inputs[key] = f"{key}.json"
    return {**config, "inputs": inputs}


def load_export_config(folder: Path) -> dict[str, Any]:
    """Read the configuration beside an export's weights: ``encoder``, the node that builds it, and ``inputs``.

    The files of the export are compared with its checksums first.

    Raises:
        ValueError: a file differs from the exported one, or does not describe the encoder.
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
    if not isinstance(config.get("inputs"), dict):
        raise ValueError(f"{folder / CONFIG}: has no 'inputs', a mapping that says what the encoder reads")
    for key, value in config["inputs"].items():
        if isinstance(key, str) and key.isidentifier() and value == f"{key}.json" and (folder / value).is_file():
            refuse_damaged(folder, (value,))
            try:
                text = read_text(folder / value)
                parse_json(text)
            except ValueError as error:
                raise ValueError(f"checkpoint={folder}: {value} is not readable ({error})") from error
            config["inputs"][key] = text
    return config


def refuse_damaged(folder: Path, needed: Iterable[str] = ()) -> None:
    """Compare the files of an export of any format with its checksums.

    Raises:
        ValueError: a file differs from the exported one, or a needed one is not listed; the message names it.
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


def load_export(folder: Path) -> tuple[dict[str, Any], Encoder]:
    """Load configuration and encoder, in eval mode, from a folder of ``d2v export``.

    Raises:
        ValueError: the folder is not readable, or its files do not match.
    """
    config = load_export_config(folder)
    refuse_damaged(folder, (WEIGHTS,))
    encoder: Encoder = build_fitting(config["encoder"], _load_weights(folder / WEIGHTS))
    return config, encoder.eval().requires_grad_(False)
