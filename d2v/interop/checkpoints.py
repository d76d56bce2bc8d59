"""Checkpoints of every origin: d2v runs and exports, the authors' code (fairseq), Hugging Face.

:func:`open_checkpoint` recognises the origin of a file or folder by its content, checks it, and reads it once. The
resulting :class:`Checkpoint` provides everything that commands need.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from d2v.bounds import read_json
from d2v.errors import how_to_install
from d2v.interop.build import build, load_exactly, part_of
from d2v.interop.exports import WEIGHTS, load_export, refuse_damaged
from d2v.interop.fairseq.files import FairseqCheckpoint, is_fairseq
from d2v.interop.huggingface.layouts import READERS
from d2v.interop.imported import Imported
from d2v.interop.native import Network, RunCheckpoint, read_safely, resolve_checkpoint
from d2v.models.heads import FinetunedModel
from d2v.models.masked import MaskedModel
from d2v.nn.encoder import Encoder
from d2v.version import __version__

log = logging.getLogger(__name__)

Origin = Literal["run", "export", "fairseq", "huggingface"]
ORIGINS: dict[Origin, str] = {
    "run": "a run of d2v",
    "export": "an export of d2v",
    "fairseq": "a checkpoint of the authors' code",
    "huggingface": "a model of Hugging Face's",
}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened, checked and read.

    Attributes:
        origin: origin of the file or folder.
        path: path of the file or folder.
        encoder: encoder in eval mode.
        encoder_node: configuration that rebuilds the encoder.
        inputs: form of its inputs, under the keys of conf/inputs.
        config: configuration of the whole run; {} for other origins.
        step: optimizer steps trained; None if unknown.
        head: head of a fine-tuned model, in eval mode; None if there is none.
        head_node: configuration that rebuilds the head.
        label_names: names of the head's outputs: classes, letters as one string, or the lowest and the highest score;
            None if unknown.
        model: whole model of a run; None for other origins.
        fairseq: content of a file of the authors' code; None for other origins.
    """

    origin: Origin
    path: Path
    encoder: Encoder
    encoder_node: dict[str, Any]
    inputs: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    head: nn.Module | None = None
    head_node: dict[str, Any] | None = None
    label_names: Any = None
    model: MaskedModel | FinetunedModel | None = None
    fairseq: FairseqCheckpoint | None = None

    @property
    def data_node(self) -> dict[str, Any]:
        """Configuration of the training data of a run; {} for other origins."""
        return self.config.get("data") or {}

    @property
    def is_finetuned(self) -> bool:
        """Return whether a fine-tuning run wrote the checkpoint, so that its task can be scored."""
        return "task" in self.config

    @property
    def export_config(self) -> dict[str, Any]:
        """Content of an export's configuration."""
        return {"encoder": self.encoder_node, "inputs": self.inputs, "d2v_version": __version__}

    @property
    def score_range(self) -> tuple[float, float] | None:
        """Lowest and highest score of a fine-tuned regression; None for other models."""
        names = self.label_names
        if not isinstance(names, list | tuple) or len(names) != 2 or not all(isinstance(n, int | float) for n in names):
            return None
        return float(names[0]), float(names[1])

    def answering_head(self) -> nn.Module | None:
        """Return the head for exports: that of a regression outputs scores instead of shares of their range."""
        if self.head is None or self.score_range is None:
            return self.head
        low, high = self.score_range
        head = copy.deepcopy(self.head)
        proj = head.get_submodule("proj")
        assert isinstance(proj, nn.Linear)
        with torch.no_grad():
            proj.weight.mul_(high - low)
            proj.bias.mul_(high - low).add_(low)
        return head

    def untrained(self, seed: int) -> Encoder:
        """Return the same encoder with fresh weights, in eval mode.

        Args:
            seed: seed of the weights; the global generator is not changed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder: Encoder = build(self.encoder_node)
        return encoder.eval()

    def start(self, model: MaskedModel) -> None:
        """Initialise a model: with all weights of a pretrained checkpoint, or with the encoder's for every network.

        Raises:
            ValueError: the weights do not fit.
        """
        _warn_of_differences(model.student, self.encoder, self.path)
        if isinstance(self.model, type(model)):
            load_exactly(model, self.model.state_dict())
            return
        theirs = self.fairseq
        if theirs is not None and not theirs.head and isinstance(model, part_of(theirs.model_node()["_target_"])):
            load_exactly(model, theirs.model_state())
            return
        log.info("init_from=%s: its encoder alone starts this %s", self.path, type(model).__name__)
        for name in model.networks:
            load_exactly(model.network(name), self.encoder.state_dict())


def open_checkpoint(path: str | Path, network: Network = "student") -> Checkpoint:
    """Open, check and read a checkpoint of any supported origin.

    Args:
        path: folder of a run, checkpoint file, or folder of ``d2v export``; checkpoint file of the authors' code
            (fairseq); folder or Hub name of a Hugging Face ``Data2Vec*`` model. Hub names are downloaded.
        network: network to use as the encoder, "student" or "teacher"; some checkpoints hold only one.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the origin is unknown, the file is damaged or inconsistent, or it has no such network.
    """
    if network not in get_args(Network):
        raise ValueError(f"network={network}: choose student or teacher")
    given = Path(path)
    if not given.exists() and _HUB_NAME.fullmatch(str(path)):
        given = _download(str(path))
    if given.is_dir():
        refuse_damaged(given)
        if (given / "config.json").is_file():
            return _open_huggingface(given, path, network)
    resolved = resolve_checkpoint(given)
    if resolved.is_dir():
        config, encoder = load_export(resolved)
        return Checkpoint("export", resolved, encoder, config["encoder"], config["inputs"])
    if resolved.name == WEIGHTS:
        raise ValueError(f"checkpoint={path}: is the weights of an export; give its folder, {resolved.parent}")
    if not resolved.is_file():
        raise FileNotFoundError(
            f"checkpoint={path}: no such file; give a run's folder, a .ckpt file, an export, a file of fairseq's, "
            "or a folder or Hub name of Hugging Face's"
        )
    content = read_safely(resolved)
    if isinstance(content, Mapping) and "d2v" in content:
        return _of_run(resolved, content, network)
    if is_fairseq(content):
        return _of_fairseq(resolved, content, network)
    raise ValueError(
        f"checkpoint={path}: neither written by a d2v run (no 'd2v' entry) nor by fairseq (no 'model' beside 'cfg')"
    )


def load_encoder(path: str | Path, network: Network = "student") -> Encoder:
    """Load an encoder, in eval mode; arguments and errors are those of :func:`open_checkpoint`."""
    return open_checkpoint(path, network).encoder


def _of_run(path: Path, content: Any, network: Network) -> Checkpoint:
    run = RunCheckpoint.of(path, content)
    try:
        config, model = run.config, run.build_model().eval().requires_grad_(False)
        names = config["label_names"] if isinstance(model, FinetunedModel) else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint={path}: its configuration does not build a model ({error!r})") from error
    node = config["model"]
    own: dict[str, Any] = {"config": config, "step": run.step, "model": model, "label_names": names}
    if isinstance(model, FinetunedModel):
        own |= {"head": model.head, "head_node": node.get("head")}
        return Checkpoint("run", path, model.encoder, node["encoder"], config["inputs"], **own)
    return Checkpoint("run", path, model.network(network), node["encoder"], config["inputs"], **own)


def _of_fairseq(path: Path, content: Any, network: Network) -> Checkpoint:
    with _describing_a_model(path):
        theirs = FairseqCheckpoint.of(path, content)
        return _of_import("fairseq", path, theirs.to_imported(network), theirs)


def _open_huggingface(folder: Path, path: str | Path, network: Network) -> Checkpoint:
    if (folder / WEIGHTS).is_file():
        raise ValueError(
            f"checkpoint={path}: holds two models, an export of d2v's ({WEIGHTS}) and one for transformers "
            "(config.json): move one of them elsewhere"
        )
    model_type = _model_type(folder / "config.json")
    if model_type == "d2v":
        raise ValueError(
            f"checkpoint={path}: was written by d2v export format=huggingface, for transformers; give what it was "
            "written from"
        )
    if model_type not in READERS:
        raise ValueError(
            f"checkpoint={path}: is a Hugging Face model of the type {model_type!r}; d2v reads {', '.join(READERS)}"
        )
    if network == "teacher":
        raise ValueError(f"checkpoint={folder}: Hugging Face's models hold no teacher: set network=student")
    with _describing_a_model(folder):
        return _of_import("huggingface", folder, READERS[model_type](folder))


def _of_import(origin: Origin, path: Path, imported: Imported, fairseq: FairseqCheckpoint | None = None) -> Checkpoint:
    return Checkpoint(
        origin,
        path,
        imported.build_encoder(),
        imported.encoder_node,
        imported.inputs,
        head=imported.build_head(),
        head_node=imported.head_node,
        label_names=imported.label_names,
        fairseq=fairseq,
    )


@contextmanager
def _describing_a_model(path: Path) -> Iterator[None]:
    """Turn any error about a configuration into a ValueError, because foreign ones may hold anything."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError) as error:
        raise ValueError(f"checkpoint={path}: describes no model that can be built ({error!r})") from error


def _warn_of_differences(encoder: Encoder, other: Encoder, path: str | Path) -> None:
    """Warn of settings that do not show in shapes (heads, norms, padding) but differ from those of the weights."""
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
    """Download weights and configuration of a Hub repository."""
    missing = f"checkpoint={name}: no such file or folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        hint = f"if it is a name of the Hugging Face Hub, {how_to_install('hf')}"
        raise FileNotFoundError(f"{missing}; {hint}") from error
    wanted = ["*.json", "*.safetensors", "*.bin", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # it raises many types of errors: no network, no such name, no permission
        raise FileNotFoundError(f"{missing}, and not to be had from the Hugging Face Hub ({error})") from error
