"""``d2v export``: an encoder, or a fine-tuned model, as files that others read."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from d2v.cli.cards import model_card
from d2v.cli.launch import configuring, run
from d2v.cli.settings import Export, checked, plain
from d2v.interop.checkpoints import Checkpoint, open_checkpoint
from d2v.interop.exports import save_encoder
from d2v.interop.fairseq.files import save_fairseq
from d2v.interop.huggingface import huggingface_problems, save_custom_huggingface, save_huggingface
from d2v.runs.exports import export_folder
from d2v.version import __version__

FAIRSEQ_FILE = "checkpoint.pt"


def export(cfg: DictConfig) -> None:
    """Write what was trained in the chosen format, with a model card."""
    with configuring():
        settings = checked(Export, plain(cfg))
        trained = open_checkpoint(settings.checkpoint, settings.network)
        folder = Path(settings.output)
        writer = {"safetensors": to_d2v, "huggingface": to_huggingface, "onnx": to_onnx, "fairseq": to_fairseq}
        print(writer[settings.format](trained, folder, settings.network))


def to_d2v(trained: Checkpoint, folder: Path, network: str) -> str:
    """encoder.safetensors, config.yaml, a model card, and the tokenizer of text."""
    return f"encoder: {save_encoder(trained.encoder, _config(trained), folder, model_card(trained, network))}"


def to_huggingface(trained: Checkpoint, folder: Path, network: str) -> str:
    """A class of transformers if there is one for such a model; else one of d2v's own, which the folder holds."""
    problems = huggingface_problems(trained.encoder_node, trained.head_node)
    save = save_custom_huggingface if problems else save_huggingface
    names = None if _score_range(trained) else trained.label_names
    written = save(
        trained.encoder,
        trained.encoder_node,
        folder,
        trained.inputs,
        _answering_head(trained),
        trained.head_node,
        names,
        model_card(trained, network, "AutoModel" if problems else "transformers"),
    )
    how = "with trust_remote_code=True, or after import d2v.interop.auto" if problems else "a class of transformers"
    lines = [f"model: {written} ({how})"]
    if problems:
        lines += ["transformers' own classes have no place for:", *(f"  {problem}" for problem in problems)]
    return "\n".join(lines)


def to_onnx(trained: Checkpoint, folder: Path, network: str) -> str:
    """encoder.onnx, or model.onnx with a head, compared with PyTorch."""
    from d2v.interop.onnx import save_onnx

    path = save_onnx(
        trained.encoder, folder, model_card(trained, network, "ONNX"), _config(trained), _answering_head(trained)
    )
    return f"model: {path}"


def to_fairseq(trained: Checkpoint, folder: Path, network: str) -> str:
    """checkpoint.pt, as the authors' code writes it: student, teacher and decoder."""
    if trained.model is None:
        raise ValueError(f"format=fairseq: checkpoint={trained.path} is an encoder alone; give a run of d2v pretrain")
    with export_folder(folder, "fairseq") as part:
        save_fairseq(trained.model, trained.config["model"], part / FAIRSEQ_FILE, trained.inputs)
    lines = [f"checkpoint: {folder / FAIRSEQ_FILE}"]
    speech = trained.encoder_node["frontends"].get("speech")
    if speech and trained.encoder.frontend("speech").zero_padding != "never":
        lines.append(
            "the authors' code lets padding reach into the frames before it, this model does not: clips that are "
            "padded will get other features there"
        )
    return "\n".join(lines)


def _score_range(trained: Checkpoint) -> tuple[float, float] | None:
    """The lowest and highest score of a fine-tuned regression; None of anything else."""
    names = trained.label_names
    if not isinstance(names, list | tuple) or len(names) != 2 or not all(isinstance(n, int | float) for n in names):
        return None
    return float(names[0]), float(names[1])


def _answering_head(trained: Checkpoint) -> Any:
    """The head as others are to use it: a regression's puts out scores, not shares of the way between two of them."""
    found = _score_range(trained)
    if trained.head is None or found is None:
        return trained.head
    low, high = found
    head = copy.deepcopy(trained.head)
    proj = head.get_submodule("proj")
    assert isinstance(proj, nn.Linear)
    with torch.no_grad():
        proj.weight.mul_(high - low)
        proj.bias.mul_(high - low).add_(low)
    return head


def _config(trained: Checkpoint) -> dict[str, Any]:
    return {"encoder": trained.encoder_node, "inputs": trained.inputs, "d2v_version": __version__}


if __name__ == "__main__":
    sys.exit(run("export"))
