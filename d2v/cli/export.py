"""``d2v export``: write an encoder, or a fine-tuned model, for other libraries."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from d2v.cli.cards import model_card
from d2v.cli.launch import configuring, run
from d2v.cli.settings import Export, checked, plain
from d2v.interop.checkpoints import Checkpoint, open_checkpoint
from d2v.interop.exports import save_encoder
from d2v.interop.fairseq.files import differences_there, save_fairseq
from d2v.interop.huggingface import huggingface_problems, save_custom_huggingface, save_huggingface
from d2v.runs.exports import export_folder

FAIRSEQ_FILE = "checkpoint.pt"


def export(cfg: DictConfig) -> None:
    """Write a checkpoint in the chosen format, with a model card."""
    with configuring(cfg):
        settings = checked(Export, plain(cfg))
        trained = open_checkpoint(settings.checkpoint, settings.network)
        folder = Path(settings.output)
        writer = {"safetensors": to_d2v, "huggingface": to_huggingface, "onnx": to_onnx, "fairseq": to_fairseq}
        print(writer[settings.format](trained, folder, settings.network))


def to_d2v(trained: Checkpoint, folder: Path, network: str) -> str:
    """Write encoder.safetensors, config.yaml, a model card, and for text the tokenizer."""
    return f"encoder: {save_encoder(trained.encoder, trained.export_config, folder, model_card(trained, network))}"


def to_huggingface(trained: Checkpoint, folder: Path, network: str) -> str:
    """Write a model for a class of transformers if one fits; else for d2v's own class, with its code."""
    problems = huggingface_problems(trained.encoder_node, trained.head_node)
    save = save_custom_huggingface if problems else save_huggingface
    names = None if trained.score_range else trained.label_names
    written = save(
        trained.encoder,
        trained.encoder_node,
        folder,
        trained.inputs,
        trained.answering_head(),
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
    """Write encoder.onnx, or model.onnx with a head, and compare it with PyTorch."""
    from d2v.interop.onnx import save_onnx

    path = save_onnx(
        trained.encoder, folder, model_card(trained, network, "ONNX"), trained.export_config, trained.answering_head()
    )
    return f"model: {path}"


def to_fairseq(trained: Checkpoint, folder: Path, network: str) -> str:
    """Write checkpoint.pt, in the format of the authors' code: student, teacher and decoder."""
    if trained.model is None:
        raise ValueError(f"format=fairseq: checkpoint={trained.path} is an encoder alone; give a run of d2v pretrain")
    with export_folder(folder, "fairseq") as part:
        save_fairseq(trained.model, trained.config["model"], part / FAIRSEQ_FILE, trained.inputs)
    return "\n".join([f"checkpoint: {folder / FAIRSEQ_FILE}", *differences_there(trained.encoder)])


if __name__ == "__main__":
    sys.exit(run("export"))
