"""Checkpoints of every origin, told by their content: ours, the authors' (fairseq), Hugging Face's; their encoders."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from d2v.bounds import read_json
from d2v.errors import how_to_install
from d2v.interop.build import load_exactly, part_of
from d2v.interop.exports import WEIGHTS, load_export, refuse_damaged
from d2v.interop.fairseq.files import FairseqCheckpoint, is_fairseq
from d2v.interop.huggingface.reading import load_huggingface
from d2v.interop.imported import Imported
from d2v.interop.native import Checkpoint, Network, read_safely, resolve_checkpoint
from d2v.models.masked import MaskedModel
from d2v.nn.encoder import Encoder

log = logging.getLogger(__name__)

Source = Literal["run", "export", "fairseq", "huggingface"]

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Found:
    """A checkpoint that was recognised.

    Attributes:
        source: whose it is: a run's of d2v ("run"), an export's ("export"), the authors', or Hugging Face's.
        path: the file or folder itself.
    """

    source: Source
    path: Path


def recognise(path: str | Path) -> Found:
    """Tell by its content whose checkpoint lies at ``path``; a name of the Hugging Face Hub is downloaded.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is nobody's that d2v knows.
    """
    given = Path(path)
    if not given.exists() and _HUB_NAME.fullmatch(str(path)):
        given = _download(str(path))
    if given.is_dir():
        refuse_damaged(given)
    if given.is_dir() and (given / "config.json").is_file():
        if (given / WEIGHTS).is_file():
            raise ValueError(
                f"checkpoint={path}: holds two models, an export of d2v's ({WEIGHTS}) and one for transformers "
                "(config.json): move one of them elsewhere"
            )
        model_type = _model_type(given / "config.json")
        if model_type == "d2v":
            raise ValueError(
                f"checkpoint={path}: was written by d2v export format=huggingface, for transformers; give what it was "
                "written from"
            )
        if model_type.startswith("data2vec-"):
            return Found("huggingface", given)
        raise ValueError(
            f"checkpoint={path}: is a Hugging Face model of the type {model_type!r}; d2v reads data2vec-text, "
            "data2vec-audio and data2vec-vision"
        )
    found = resolve_checkpoint(given)
    if found.is_dir():
        return Found("export", found)
    if found.name == WEIGHTS:
        raise ValueError(f"checkpoint={path}: is the weights of an export; give its folder, {found.parent}")
    if not found.is_file():
        raise FileNotFoundError(
            f"checkpoint={path}: no such file; give a run's folder, a .ckpt file, an export, a file of fairseq's, "
            "or a folder or Hub name of Hugging Face's"
        )
    content = read_safely(found)
    if isinstance(content, dict) and "d2v" in content:
        return Found("run", found)
    if is_fairseq(content):
        return Found("fairseq", found)
    raise ValueError(
        f"checkpoint={path}: neither written by a d2v run (no 'd2v' entry) nor by fairseq (no 'model' beside 'cfg')"
    )


def read_foreign(found: Found, network: Network = "student") -> Imported:
    """The encoder, and the head of a fine-tuned model, in somebody else's checkpoint; every parameter accounted for.

    Args:
        found: "fairseq" or "huggingface".
        network: the authors' pretrained checkpoints hold two; Hugging Face's one, the student.

    Raises:
        ValueError: something is missing, left over or of another shape, or d2v has no such model.
    """
    if found.source == "huggingface" and network == "teacher":
        raise ValueError(f"checkpoint={found.path}: Hugging Face's models hold no teacher: set network=student")
    try:
        if found.source == "fairseq":
            return FairseqCheckpoint.load(found.path).to_imported(network)
        return load_huggingface(found.path)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError) as error:
        # Their configurations may hold anything in any place.
        raise ValueError(f"checkpoint={found.path}: describes no model that can be built ({error!r})") from error


def load_encoder(path: str | Path, network: Network = "student") -> Encoder:
    """An encoder, in eval mode, from whatever d2v can read.

    Args:
        path: a run's folder, a checkpoint, a folder of ``d2v export``; a checkpoint of the authors' (fairseq); a folder
            or Hub name of Hugging Face's ``Data2Vec*`` models.
        network: which of a checkpoint's two networks; some hold one.

    Raises:
        FileNotFoundError, ValueError: there is nothing readable, or it does not fit together.
    """
    found = recognise(path)
    if found.source == "export":
        return load_export(found.path)
    if found.source == "run":
        return Checkpoint.load(found.path).build_encoder(network)
    return read_foreign(found, network).build_encoder()


def init_from(model: MaskedModel, path: str | Path) -> None:
    """Start ``model`` from other weights: all of a pretrained checkpoint's, or an encoder's, for every network.

    Raises:
        FileNotFoundError, ValueError: there is nothing readable, or it does not fit.
    """
    found = recognise(path)
    encoder = load_encoder(path)
    _say_differences(model.student, encoder, path)
    if found.source == "run" and isinstance(whole := Checkpoint.load(found.path).build_model(), type(model)):
        load_exactly(model, whole.state_dict())
        return
    if (
        found.source == "fairseq"
        and not (checkpoint := FairseqCheckpoint.load(found.path)).head
        and isinstance(model, part_of(checkpoint.model_node()["_target_"]))
    ):
        load_exactly(model, checkpoint.model_state())
        return
    log.info("init_from=%s: its encoder alone starts this %s", path, type(model).__name__)
    for name in model.networks:
        load_exactly(model.network(name), encoder.state_dict())


def _say_differences(encoder: Encoder, other: Encoder, path: str | Path) -> None:
    """Settings that no shape shows (heads, norms, places of padding) and that weights trained with others rely on."""
    modules = dict(other.named_modules())
    for name, module in encoder.named_modules():
        theirs = vars(modules[name]) if name in modules else {}
        for key, here in vars(module).items():
            there = theirs.get(key, here)
            plain = isinstance(here, bool | int | float | str | tuple) and isinstance(there, type(here))
            if plain and here != there and key != "training" and "drop" not in key and key != "p":
                log.warning(
                    "init_from=%s: %s%s=%s there, %s here: the weights were trained for another encoder",
                    *(path, f"{name}." if name else "", key, there, here),
                )


def _model_type(path: Path) -> str:
    try:
        return str(read_json(path).get("model_type"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"checkpoint={path}: not the configuration of a model ({error})") from error


def _download(name: str) -> Path:
    """A snapshot of the Hub's repository, weights and configuration."""
    missing = f"checkpoint={name}: no such file or folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        hint = f"if it is a name of the Hugging Face Hub, {how_to_install('hf')}"
        raise FileNotFoundError(f"{missing}; {hint}") from error
    wanted = ["*.json", "*.safetensors", "*.bin", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # it raises many kinds: no network, no such name, no permission
        raise FileNotFoundError(f"{missing}, and not to be had from the Hugging Face Hub ({error})") from error
