"""EAT's files: every layout of them read, written for its code, for transformers and as ONNX."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2v.interop.build import build, load_exactly
from d2v.interop.checkpoints import open_checkpoint
from d2v.interop.fairseq.files import FairseqCheckpoint, save_fairseq
from d2v.interop.huggingface import huggingface_problems, save_custom_huggingface
from d2v.types import Batch

FRAMES = {"eat.pt": 12288, "eat_before_april_2024.pt": 160, "eat_hf": 1024, "eat_hf_finetuned": 1024}


@pytest.fixture
def files(golden_dir: Path) -> Path:
    return golden_dir / "checkpoints"


def features(encoder: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        x: Tensor = encoder(Batch("spectrogram", inputs, torch.arange(len(inputs)))).x
    return x


@pytest.mark.parametrize("name", FRAMES)
def test_every_layout_gives_the_features_of_their_code(files: Path, name: str) -> None:
    trained = open_checkpoint(files / name)
    expected = load_file(files / f"{name.removesuffix('.pt')}.expected.safetensors")
    for suffix in ("", "_shorter"):
        if f"source{suffix}" in expected:
            ours = features(trained.encoder, expected[f"source{suffix}"])
            torch.testing.assert_close(ours, expected[f"features{suffix}"], atol=1e-5, rtol=1e-5)
    frontend = trained.encoder_node["frontends"]["spectrogram"]
    assert (frontend["max_frames"], frontend["num_frames"]) == (FRAMES[name], 160)
    assert trained.inputs == {
        "sample_rate": 16_000, "num_frames": 160, "num_mels": 128, "patch_size": 16, "mean": -4.268, "std": 4.569,
    }  # fmt: skip
    if name == "eat_hf_finetuned":
        assert trained.head is not None
        with torch.no_grad():
            logits = trained.head(trained.encoder(Batch("spectrogram", expected["source"], torch.arange(1))))
        torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)


def test_a_file_is_eats_by_its_configuration(files: Path, tmp_path: Path) -> None:
    """Without what EAT added to it, the same names are those of a model of images, which these weights do not fit."""
    content = torch.load(files / "eat.pt", weights_only=True)
    own = content["cfg"]["model"]["modalities"]["image"]
    del own["target_length"], own["max_length"]
    torch.save(content, tmp_path / "task.pt")  # its task still says so
    assert FairseqCheckpoint.load(tmp_path / "task.pt").layout == "eat"
    content["cfg"]["task"]["audio_mae"] = False
    torch.save(content, tmp_path / "image.pt")
    assert FairseqCheckpoint.load(tmp_path / "image.pt").layout == "2.0"
    with pytest.raises(ValueError, match="positions has shape"):
        open_checkpoint(tmp_path / "image.pt")


@pytest.mark.parametrize(("key", "value"), [("in_chans", 3), ("patch_size", 8), ("num_extra_tokens", 2)])
def test_other_sizes_in_their_files_are_refused(files: Path, tmp_path: Path, key: str, value: int) -> None:
    content = torch.load(files / "eat.pt", weights_only=True)
    content["cfg"]["model"]["modalities"]["image"][key] = value
    torch.save(content, tmp_path / "eat.pt")
    with pytest.raises(ValueError, match=rf"eat\.pt: {key}={value} in the checkpoint's configuration"):
        open_checkpoint(tmp_path / "eat.pt")


def test_a_fine_tuned_file_of_their_trainer_has_a_head_on_the_cls_token(files: Path, tmp_path: Path) -> None:
    content = torch.load(files / "eat.pt", weights_only=True)
    state = {f"model.{key}": value for key, value in content["model"].items() if "decoder" not in key and key != "_ema"}
    generator = torch.Generator().manual_seed(0)
    head = {"head.weight": (7, 16), "head.bias": (7,), "fc_norm.weight": (16,), "fc_norm.bias": (16,)}
    state |= {key: torch.randn(shape, generator=generator) for key, shape in head.items()}
    model = {"_name": "mae_image_classification", "pretrained_model_args": {"model": content["cfg"]["model"]}}
    torch.save({"args": None, "cfg": {"model": model, "task": {}}, "model": state}, tmp_path / "tuned.pt")
    trained = open_checkpoint(tmp_path / "tuned.pt")
    assert trained.head_node == {"_target_": "d2v.models.cls_head.ClsHead", "embed_dim": 16, "num_outputs": 7}
    expected = load_file(files / "eat.expected.safetensors")
    norm = torch.nn.functional.layer_norm(
        expected["cls"], (16,), state["fc_norm.weight"], state["fc_norm.bias"], eps=1e-6
    )
    assert trained.head is not None
    with torch.no_grad():
        logits = trained.head(trained.encoder(Batch("spectrogram", expected["source"], torch.arange(1))))
    torch.testing.assert_close(logits, norm @ state["head.weight"].T + state["head.bias"], atol=1e-5, rtol=1e-5)


def test_writing_gives_a_file_of_their_layout(files: Path, tmp_path: Path) -> None:
    checkpoint = FairseqCheckpoint.load(files / "eat.pt")
    node = checkpoint.model_node()
    model = build(node)
    load_exactly(model, checkpoint.model_state())
    written = save_fairseq(model, node, tmp_path / "again.pt", open_checkpoint(files / "eat.pt").inputs)
    again = FairseqCheckpoint.load(written)
    assert (again.layout, again.task["target_length"]) == ("eat", 160)
    assert again.model_node() == node
    assert again.student.keys() == checkpoint.student.keys()
    node["encoder"]["frontends"]["spectrogram"]["patch_size"] = 8
    with pytest.raises(ValueError, match="patch_size=16 only, this model 8"):
        save_fairseq(model, node, tmp_path / "other.pt", {})


Edit = Callable[[dict[str, Any], dict[str, Tensor]], Any]
BAD: dict[str, tuple[Edit, str]] = {
    "another patch": (lambda c, _: c.update(patch_size=8), r"patch_size=8: d2v has patch_size=16 only"),
    "no bias": (lambda c, _: c.update(qkv_bias=False), r"qkv_bias=False"),
    "depth of text": (lambda c, _: c.update(depth="2"), r"depth='2': must be of the form of 12"),
    "size of text": (lambda c, _: c.update(img_size="big"), r"img_size='big': must be of the form"),
    "one size": (lambda c, _: c.update(img_size=[160]), r"img_size=\[160\]"),
    "more blocks": (lambda c, _: c.update(depth=3), r"missing trunk.blocks.2"),
    "many blocks": (lambda c, _: c.update(depth=1000), r"describes a far larger one"),
    "a parameter more": (lambda _, s: s.update({"model.other": torch.zeros(1)}), r"other: 1 parameters that are not"),
    "a parameter less": (lambda _, s: s.pop("model.pre_norm.bias"), r"missing input_norms.spectrogram.bias"),
    "no positions": (lambda _, s: s.pop("model.fixed_positional_encoder.positions"), r"has no fixed_positional"),
    "half a head": (lambda _, s: s.update({"model.head.weight": torch.zeros(7, 16)}), r"missing proj.bias"),
}


@pytest.mark.parametrize("bad", BAD)
def test_folders_that_do_not_fit_are_refused_by_name(files: Path, tmp_path: Path, bad: str) -> None:
    config = json.loads((files / "eat_hf" / "config.json").read_text())
    state = load_file(files / "eat_hf" / "model.safetensors")
    edit, message = BAD[bad]
    edit(config, state)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)


def test_other_types_of_models_are_refused(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "eat_hf", tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"type 'vit'; d2v reads data2vec-text, .*, eat$"):
        open_checkpoint(tmp_path / "hf")
    with pytest.raises(ValueError, match="hold no teacher"):
        open_checkpoint(files / "eat_hf", "teacher")


@pytest.mark.parametrize("name", ["eat.pt", "eat_hf_finetuned"])
def test_transformers_reads_exports(files: Path, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    trained = open_checkpoint(files / name)
    assert huggingface_problems(trained.encoder_node, trained.head_node)
    labels = None if trained.head is None else [f"sound {i}" for i in range(7)]
    save_custom_huggingface(
        trained.encoder, trained.encoder_node, tmp_path / "hf", trained.inputs, trained.head, trained.head_node, labels
    )
    auto = transformers.AutoModel if trained.head is None else transformers.AutoModelForAudioClassification
    model = auto.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    expected = load_file(files / f"{name.removesuffix('.pt')}.expected.safetensors")
    with torch.no_grad():
        three = model(
            input_values=expected["source"][:, 0], output_hidden_states=True
        )  # (B, frames, mel bins), as processors give
        four = model(input_values=expected["source"])
    if trained.head is None:
        torch.testing.assert_close(three.last_hidden_state, expected["features"], atol=1e-5, rtol=1e-5)
        assert torch.equal(three.last_hidden_state, four.last_hidden_state)
    else:
        torch.testing.assert_close(three.logits, expected["logits"], atol=1e-5, rtol=1e-5)
        assert torch.equal(three.logits, four.logits)
        assert model.config.id2label[3] == "sound 3"
    with pytest.raises(ValueError, match="128 mel bins"):
        model(input_values=torch.zeros(1, 32, 64))


def test_the_processor_of_an_export_makes_the_same_spectrograms(files: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from d2v.data.spectrograms.batches import SpectrogramView
    from d2v.data.spectrograms.filter_bank import FilterBank

    trained = open_checkpoint(files / "eat.pt")
    save_custom_huggingface(trained.encoder, trained.encoder_node, tmp_path / "hf", trained.inputs)
    processor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "hf")
    assert type(processor).__name__ == "ASTFeatureExtractor"
    view = SpectrogramView(FilterBank(16000, 128), 160, -4.268, 4.569)
    for num_samples in (8000, 40000):  # padded, cut
        waveform = np.random.default_rng(0).normal(0.05, 0.1, num_samples).astype("float32")
        theirs = processor(waveform, sampling_rate=16000, return_tensors="pt").input_values
        torch.testing.assert_close(theirs, view(waveform), atol=5e-4, rtol=0)


def test_onnx_gives_the_same_features(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    from d2v.interop.onnx import save_onnx

    trained = open_checkpoint(files / "eat.pt")
    path = save_onnx(trained.encoder, tmp_path / "onnx", "card", trained.export_config)
    expected = load_file(files / "eat.expected.safetensors")
    session = onnxruntime.InferenceSession(path)
    (ours,) = session.run(None, {"inputs": expected["source"].numpy()})
    torch.testing.assert_close(torch.from_numpy(ours), expected["features"], atol=1e-4, rtol=1e-4)
