"""ONNX files: what they compute, at shapes they were not exported at, and that a file which disagrees is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d2v.interop import onnx as interop
from d2v.interop.exports import load_export_config
from d2v.interop.onnx import save_onnx
from d2v.models.heads import FirstTokenHead, FrameHead, MeanPoolHead
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.image import BeitFrontend, ImageFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.runs.exports import export_folder
from d2v.types import Batch, EncoderOutput

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime: Any = pytest.importorskip("onnxruntime")

CONFIG = {
    "encoder": {"_target_": "d2v.nn.encoder.transformer_encoder"},
    "inputs": {"tokenizer": '{"a": 1}', "img_size": 12},
}
CONV_LAYERS = ((8, 10, 5), (8, 3, 2), (8, 2, 2))  # a frame every 20 samples, from 30
PAD_ID = 1


def perturbed(module: nn.Module) -> Any:
    """In training mode, with dropout, every parameter off its initial value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


def image_encoder(num_prefix_tokens: int = 1) -> Encoder:
    frontend = ImageFrontend(16, 12, 3, 2, num_prefix_tokens)
    return perturbed(
        transformer_encoder({"image": frontend}, 16, 1, 4, prenet_depth=1, drop_rate=0.5, drop_path_rate=0.5)
    )


def beit_encoder() -> Encoder:
    frontend = BeitFrontend(16, 4, 12, 3, 2)
    options = {"norm_first": True, "final_norm": False, "layer_scale_init": 0.5, "rel_pos_grid": (4, 4)}
    return perturbed(transformer_encoder({"image": frontend}, 16, 1, 4, **options))


def speech_encoder(alibi: bool = True) -> Encoder:
    version_1 = {} if alibi else {"alibi": False, "zero_padding": "first", "mask_token": True}
    frontend = SpeechFrontend(24, 6, CONV_LAYERS, 1, 4, 4, **version_1)  # type: ignore[arg-type]
    return perturbed(transformer_encoder({"speech": frontend}, 24, 2, 6, prenet_depth=int(alibi), drop_rate=0.5))


def text_encoder(num_prefix_tokens: int = 0) -> Encoder:
    frontend = TextFrontend(16, 40, 32, PAD_ID, num_prefix_tokens=num_prefix_tokens, mask_id=39)
    return perturbed(transformer_encoder({"text": frontend}, 16, 1, 4, prenet_depth=1, drop_rate=0.5))


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, inputs: Tensor, padding_mask: Tensor | None = None) -> list[np.ndarray]:
    """The file's outputs."""
    return session(path).run(
        None, {"inputs": inputs.numpy()} | ({} if padding_mask is None else {"padding_mask": padding_mask.numpy()})
    )


def outputs(path: Path) -> list[str]:
    return [node.name for node in session(path).get_outputs()]


@torch.no_grad()
def expect(encoder: Encoder, inputs: Tensor, padding_mask: Tensor | None = None) -> EncoderOutput:
    """What PyTorch says, without the code under test."""
    (modality,) = encoder.frontends
    batch = Batch(modality, inputs, torch.arange(len(inputs)), padding_mask=padding_mask)
    return encoder.eval()(batch, return_layers=True)


def close(found: np.ndarray, expected: Tensor) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-4)


def padded(lengths: list[int], num_tokens: int) -> Tensor:
    return torch.arange(num_tokens) >= torch.tensor(lengths)[:, None]


def other_weights(model: Any) -> Any:
    """The model, each parameter moved a little."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.001 * torch.randn_like(parameter)
    return model


def test_image_encoder(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    encoder = image_encoder()
    caplog.set_level(logging.INFO)
    path = save_onnx(encoder, tmp_path / "new" / "folder", "# Ä card", CONFIG)
    assert path == tmp_path / "new" / "folder" / "encoder.onnx"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "README.md", "SHA256SUMS", "config.yaml", "encoder.onnx", "tokenizer.json",
    ]  # fmt: skip
    assert (path.parent / "README.md").read_text(encoding="utf-8") == "# Ä card"
    assert load_export_config(path.parent) == CONFIG
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert all(block.attn.fused for block in encoder.trunk.blocks)
    assert str(Path(interop.__file__).parents[2]).encode() not in path.read_bytes()
    assert outputs(path) == ["features"]
    for num_samples in (1, 5):
        images = torch.randn(num_samples, 2, 12, 12)
        (features,) = run(path, images)
        assert features.shape == (num_samples, 17, 16)
        close(features, expect(encoder, images).x)


def test_beit_classifier_in_half_precision(tmp_path: Path) -> None:
    """It is written in float32."""
    encoder, head = beit_encoder().half(), perturbed(MeanPoolHead(16, 3, drop_rate=0.5)).half()
    path = save_onnx(encoder, tmp_path, "card", CONFIG, head)
    assert path == tmp_path / "model.onnx"
    assert outputs(path) == ["features", "logits"]
    assert next(encoder.parameters()).dtype == torch.float16
    images = torch.randn(4, 2, 12, 12)
    out = expect(encoder.float(), images)
    features, logits = run(path, images)
    close(features, out.x)
    close(logits, head.float().eval()(out))


@pytest.mark.parametrize("alibi", [True, False])
def test_speech_with_letters(alibi: bool, tmp_path: Path) -> None:
    """ALiBi and six heads, no power of two, letters from all layers; and data2vec 1.0, an encoder alone."""
    encoder = speech_encoder(alibi)
    head = perturbed(FrameHead(24 * encoder.trunk.depth, 5, drop_rate=0.5, layers="concat")) if alibi else None
    path = save_onnx(encoder, tmp_path, "card", CONFIG, head)
    for num_samples, num_tokens in ((3, 11), (1, 1000)):
        waveforms = torch.randn(num_samples, 30 + 20 * (num_tokens - 1) + 7)
        mask = padded([num_tokens, num_tokens // 2, 1][-num_samples:], num_tokens)
        out = expect(encoder, waveforms, mask)
        found = run(path, waveforms, mask)
        close(found[0], out.x)
        if head is not None:
            close(found[1], head.eval()(out, mask))
            assert found[1].shape == (num_samples, num_tokens, 5)
    shorter = torch.randn(2, 30 + 20 * 5)
    longer = torch.cat([shorter, torch.randn(2, 20 * 4)], dim=1)  # noise where there is padding
    padding = padded([6, 6], 10)
    for short, long in zip(run(path, shorter, padding[:, :6]), run(path, longer, padding), strict=True):
        np.testing.assert_allclose(long[:, :6], short, atol=1e-5)
    close(run(path, shorter, padding[:, :6])[0], expect(encoder, shorter).x)  # no padding is a mask of False


@pytest.mark.parametrize(("num_prefix_tokens", "head_class"), [(0, FirstTokenHead), (1, MeanPoolHead)])
def test_text(num_prefix_tokens: int, head_class: Callable[..., nn.Module], tmp_path: Path) -> None:
    encoder, head = text_encoder(num_prefix_tokens), perturbed(head_class(16, 3, drop_rate=0.5))
    path = save_onnx(encoder, tmp_path, "card", CONFIG, head)
    for num_samples, num_tokens in ((3, 32), (1, 5)):
        mask = padded([num_tokens, num_tokens // 2, 3][-num_samples:], num_tokens)
        ids = torch.randint(2, 40, (num_samples, num_tokens)).masked_fill(mask, PAD_ID)
        out = expect(encoder, ids, mask)
        features, logits = run(path, ids, mask)
        assert features.shape == (num_samples, num_prefix_tokens + num_tokens, 16)
        close(features, out.x)
        close(logits, head.eval()(out, mask))
    ids = torch.randint(2, 40, (2, 7))
    features, logits = run(path, ids, padded([7, 7], 7))
    longer = torch.cat([ids, torch.full((2, 6), PAD_ID)], dim=1)
    long_features, long_logits = run(path, longer, padded([7, 7], 13))
    np.testing.assert_allclose(long_features[:, : num_prefix_tokens + 7], features, atol=1e-5)
    np.testing.assert_allclose(long_logits, logits, atol=1e-5)


def test_a_file_that_disagrees_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, then a batch size that is fixed; what the folder held stays, as it may be good."""
    check = interop._check
    with export_folder(tmp_path, "onnx") as part:
        (part / "encoder.onnx").write_text("earlier")
    with monkeypatch.context() as patch:
        patch.setattr(interop, "_check", lambda path, model: check(path, other_weights(model)))
        with pytest.raises(ValueError, match=r"^encoder.onnx does not agree .*\(1, 2, 12, 12\), features differ by up"):
            save_onnx(image_encoder(), tmp_path, "card", CONFIG)
    monkeypatch.setattr(interop, "_dynamic_shapes", lambda example: ({},))
    with pytest.raises(ValueError, match=r"^encoder.onnx: onnxruntime cannot run it on inputs of shape \(1, 2, 12,"):
        save_onnx(image_encoder(0), tmp_path, "card", CONFIG)
    assert (tmp_path / "encoder.onnx").read_text() == "earlier"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["SHA256SUMS", "encoder.onnx"]


class FakeProgram:
    """Writes a file that is no ONNX, and weights beside it if asked for."""

    def __init__(self, large: bool) -> None:
        self.large = large

    def save(self, path: Path) -> None:
        path.write_text("no ONNX")
        if self.large:
            path.with_name(f"{path.name}.data").write_text("weights")


def test_without_onnxruntime_it_says_that_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    large = True
    monkeypatch.setattr(interop, "_export", lambda model: FakeProgram(large))
    with pytest.raises(ValueError, match=r"^encoder.onnx: onnxruntime cannot load it"):
        save_onnx(image_encoder(), tmp_path, "card", CONFIG)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(interop, "find_spec", lambda name: None if name == "onnxruntime" else "found")
    with caplog.at_level(logging.WARNING):
        path = save_onnx(image_encoder(), tmp_path, "card", CONFIG)
    assert (
        "was not checked against PyTorch: onnxruntime is missing; pip install onnx onnxruntime onnxscript"
        in caplog.text
    )
    assert path.read_text() == "no ONNX"
    data = tmp_path / "encoder.onnx.data"
    assert data.read_text() == "weights"
    large = False
    save_onnx(image_encoder(), tmp_path, "card", CONFIG)
    assert not data.exists()


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"^output=.*file: is a file; give a folder"):
        save_onnx(image_encoder(), file, "card", CONFIG)
    both = transformer_encoder({"image": ImageFrontend(16, 12, 3, 2), "text": TextFrontend(16, 40)}, 16, 1, 4)
    with pytest.raises(ValueError, match="one kind of input, this encoder has frontends for image, text"):
        save_onnx(both, tmp_path / "out", "card", CONFIG)
    monkeypatch.setattr(interop, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxscript: pip install onnx onnxruntime onnxscript"):
        save_onnx(image_encoder(), tmp_path / "out", "card", CONFIG)
    assert not (tmp_path / "out").exists()
