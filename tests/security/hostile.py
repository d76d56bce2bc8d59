"""Makes good files of every format in a scratch folder, for tests that then spoil them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from d2v.data.texts.tokenizer import train_tokenizer
from d2v.interop.build import build
from d2v.interop.exports import save_encoder
from d2v.interop.fairseq.files import save_fairseq
from d2v.interop.huggingface.writing import save_huggingface
from d2v.runs.exports import SUMS

Edit = Callable[[dict[str, Any]], Any]

ENCODER: dict[str, Any] = {
    "_target_": "d2v.nn.encoder.transformer_encoder",
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "frontends": {
        "image": {
            "_target_": "d2v.nn.frontends.image.ImageFrontend",
            "embed_dim": 16,
            "img_size": 28,
            "patch_size": 7,
            "in_chans": 1,
        }
    },
}
MODEL: dict[str, Any] = {
    "_target_": "d2v.models.data2vec2.Data2Vec2",
    "encoder": ENCODER,
    "decoders": {
        "image": {
            "_target_": "d2v.nn.decoders.ConvDecoder2d",
            "embed_dim": 16,
            "decoder_dim": 8,
            "groups": 2,
            "depth": 1,
        }
    },
    "average_top_k_layers": 1,
    "teacher_scope": "encoder",
}
DATA: dict[str, Any] = {
    "_target_": "d2v.data.images.factories.samples",
    "img_size": 28,
    "patch_size": 7,
    "in_chans": 1,
    "mean": [0.286],
    "std": [0.353],
}
INPUTS: dict[str, Any] = {key: value for key, value in DATA.items() if key != "_target_"}
BEIT: dict[str, Any] = {
    **ENCODER,
    "norm_first": True,
    "norm_eps": 1e-5,
    "layer_scale_init": 1e-4,
    "frontends": {
        "image": {
            "_target_": "d2v.nn.frontends.image.BeitFrontend",
            "embed_dim": 16,
            "num_heads": 2,
            "img_size": 28,
            "patch_size": 7,
            "in_chans": 1,
            "shared_bias": True,
        }
    },
}


def run_file(path: Path, edit: Edit = lambda config: None, **changes: Any) -> Path:
    """Write the checkpoint of a run; ``edit`` spoils its configuration."""
    config = {"model": copy.deepcopy(MODEL), "inputs": copy.deepcopy(INPUTS), "data": copy.deepcopy(DATA)}
    state = {f"model.{name}": value for name, value in build(MODEL).state_dict().items()}
    edit(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"d2v": {"config": config}, "state_dict": state, "global_step": 1, **changes}, path)
    return path


def export_folder(folder: Path, edit: Edit = lambda config: None) -> Path:
    """Write an export; ``edit`` spoils its configuration, whose model is called "encoder"."""
    save_encoder(build(ENCODER), {"encoder": ENCODER, "inputs": INPUTS}, folder, "")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return sealed(folder)


def fairseq_file(path: Path, edit: Edit = lambda content: None) -> Path:
    """Write a file of the authors' code; ``edit`` spoils its content."""
    save_fairseq(build(MODEL), MODEL, path, DATA)
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path


def huggingface_folder(folder: Path, edit: Edit = lambda config: None) -> Path:
    """Write a folder of Hugging Face's; ``edit`` spoils its config.json."""
    save_huggingface(build(BEIT), BEIT, folder, DATA)
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return sealed(folder)


def sealed(folder: Path) -> Path:
    """Write the checksums of an export anew, as whoever spoils it would; an import has none."""
    sums = folder / SUMS
    if sums.exists():
        first, *lines = sums.read_text().splitlines()
        names = [line.split("  ")[1] for line in lines]
        digests = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names)
        sums.write_text("\n".join([first, *(f"{d}  {n}" for d, n in zip(digests, names, strict=True))]) + "\n")
    return folder


def tokenizer_text() -> str:
    """Return the content of a small tokenizer.json."""
    return train_tokenizer(["a text of some words"], 300).to_json()


def put(place: str, value: Any) -> Edit:
    """Return an edit that sets a dotted place of a configuration."""

    def edit(config: dict[str, Any]) -> None:
        *path, last = place.split(".")
        for key in path:
            config = config[key]
        config[last] = value

    return edit


def weights(folder: Path, state: dict[str, Any]) -> None:
    """Replace an export's weights."""
    save_file(state, folder / "encoder.safetensors")
