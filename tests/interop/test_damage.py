"""A bit that flipped is noticed on every path to weights, and the file is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v.interop.build import build
from d2v.interop.checkpoints import load_encoder
from d2v.interop.exports import load_export_config, save_encoder
from d2v.interop.huggingface import save_custom_huggingface
from d2v.nn.encoder import Encoder

NODE: dict[str, Any] = {
    "_target_": "d2v.nn.encoder.transformer_encoder",
    "frontends": {"text": {"_target_": "d2v.nn.frontends.text.TextFrontend", "embed_dim": 16, "vocab_size": 30}},
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
}
SHARES = (0.2, 0.5, 0.8)


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 64
    path.write_bytes(content)


@pytest.fixture
def encoder() -> Encoder:
    return build(NODE)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["encoder.safetensors", "config.yaml", "tokenizer.json"])
def test_files_of_an_export(tmp_path: Path, encoder: Encoder, name: str, share: float) -> None:
    data = {"tokenizer": '{"model": "of some length", "vocab": {"a": 1}}'}
    save_encoder(encoder, {"encoder": NODE, "inputs": data}, tmp_path / "e", "card")
    assert load_export_config(tmp_path / "e")["inputs"] == data
    load_encoder(tmp_path / "e")
    flip(tmp_path / "e" / name, share)
    with pytest.raises(ValueError, match=rf"^checkpoint=.*{name} is not the file that was exported"):
        load_encoder(tmp_path / "e")


def test_an_export_of_parts_of_two(tmp_path: Path, encoder: Encoder) -> None:
    for name in ("a", "b"):
        save_encoder(build(NODE), {"encoder": NODE, "inputs": {}}, tmp_path / name, "card")
    shutil.copy(tmp_path / "a" / "encoder.safetensors", tmp_path / "b")
    with pytest.raises(ValueError, match=r"b/encoder\.safetensors is not the file that was exported"):
        load_encoder(tmp_path / "b")


def test_an_export_without_checksums_is_read_with_a_warning(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    save_encoder(encoder, {"encoder": NODE, "inputs": {}}, tmp_path / "e", "card")
    (tmp_path / "e" / "SHA256SUMS").unlink()
    load_encoder(tmp_path / "e")
    assert "has no SHA256SUMS: whether its files are whole cannot be told" in caplog.text


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["a.ckpt", "run", "best", "renamed.bin"])
def test_checkpoints_by_each_name(tmp_path: Path, encoder: Encoder, name: str, share: float) -> None:
    places = {"run": "run/checkpoints/step-00000001.ckpt", "best": "best/checkpoints/best.ckpt"}
    path = tmp_path / places.get(name, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"model.encoder.{key}": value for key, value in encoder.state_dict().items()}
    content = {"d2v": {"config": {}}, "global_step": 1, "state_dict": state}
    torch.save(content, path)
    flip(path, share)
    said = "intact checkpoints" if name == "run" else f"{path.name}: is damaged"
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^checkpoint=.*{said}"):
        load_encoder(tmp_path / name)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["image.pt", "audio.pt", "text.pt"])
def test_checkpoints_of_the_authors(tmp_path: Path, golden_dir: Path, name: str, share: float) -> None:
    shutil.copy(golden_dir / "checkpoints" / name, tmp_path)
    (tmp_path / name).chmod(0o600)
    flip(tmp_path / name, share)
    with pytest.raises(ValueError, match=rf"^checkpoint=.*{name}: is damaged"):
        load_encoder(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "modeling_d2v.py", "preprocessor_config.json"])
def test_an_export_for_transformers(tmp_path: Path, name: str) -> None:
    frontend = {"_target_": "d2v.nn.frontends.image.ImageFrontend", "embed_dim": 16, "img_size": 12, "patch_size": 3}
    node = {**NODE, "frontends": {"image": {**frontend, "in_chans": 3}}}
    data = {"mean": [0.5] * 3, "std": [0.5] * 3}
    save_custom_huggingface(build(node), node, tmp_path / "h", data)
    flip(tmp_path / "h" / name, 0.5)
    with pytest.raises(ValueError, match=rf"^checkpoint=.*{name} is not the file that was exported"):
        load_encoder(tmp_path / "h")
