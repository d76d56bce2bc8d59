"""Our own class for transformers: models of every kind, without d2v installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from their_models import (
    AUTO,
    DATA,
    ENCODER,
    HEADS,
    IMAGE_1,
    LABELS,
    MODALITIES,
    assert_close,
    inputs_of,
    node_of,
    our_output,
    perturb,
    their_output,
)
from torch import nn

from d2v.interop.build import build
from d2v.interop.huggingface import save_custom_huggingface
from d2v.types import Batch

transformers = pytest.importorskip("transformers")

SPEECH_2 = {"alibi": True, "zero_padding": "every", "mask_token": False, "num_prefix_tokens": 2}

IMAGE_2 = {
    "_target_": "d2v.nn.frontends.image.ImageFrontend",
    "embed_dim": 24,
    "img_size": 12,
    "patch_size": 4,
    "in_chans": 2,
}

CUSTOM: dict[str, dict[str, Any]] = {
    "text": {**node_of("text", {"prenet_depth": 1}, num_prefix_tokens=1), "num_heads": 6},
    "text-1": node_of("text"),
    "speech": {**node_of("speech", {"prenet_depth": 1}, **SPEECH_2, num_heads=6), "num_heads": 6},
    "speech-never": node_of("speech", alibi=True, zero_padding="never"),
    "speech-1": node_of("speech"),
    "image": {**ENCODER, "prenet_depth": 1, "frontends": {"image": IMAGE_2}},
    "image-pre": {**ENCODER, "norm_first": True, "frontends": {"image": {**IMAGE_2, "num_prefix_tokens": 0}}},
    "image-1": node_of("image"),
    "image-2": node_of("image", {**IMAGE_1, "rel_pos_grid": [3, 3], "final_norm": False}, shared_bias=False),
}

# d2v and timm cannot be imported; what remains is what the folder holds, torch and transformers.
ALONE = """
import sys
sys.modules["d2v"] = sys.modules["timm"] = None
import torch, transformers
folder, name, modality = sys.argv[1:]
model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules.")
inputs = torch.load(folder + "/inputs.pt")
with torch.no_grad():
    out = model(**inputs, output_hidden_states=True)
wrong = False
try:
    import d2v
    wrong = True
except ImportError:
    pass
assert not wrong and not any(key.startswith(("d2v.", "timm.")) for key in sys.modules)
torch.save({"x": out[0], "hidden_states": out.hidden_states}, folder + "/outputs.pt")
"""


def run_alone(folder: Path, name: str, modality: str) -> dict[str, Any]:
    torch.save(inputs_of(modality)[0], folder / "inputs.pt")
    env = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), name, modality], env=env, cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = torch.load(folder / "outputs.pt")
    return found


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our classes are registered."""
    import d2v.interop.auto  # noqa: F401


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("name", CUSTOM)
def test_any_encoder_computes_the_same_as_our_own_class(name: str, tmp_path: Path) -> None:
    modality, node = name.partition("-")[0], CUSTOM[name]
    encoder = perturb(build(node))
    save_custom_huggingface(encoder, node, tmp_path, DATA[modality], card="# A card\n")
    model, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    assert type(model).__module__ == "d2v.interop.remote.modeling_d2v"
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    ours, padding = our_output(encoder, modality), inputs_of(modality)[1]
    out = their_output(model.eval(), modality).last_hidden_state
    if padding is not None:
        padding = nn.functional.pad(padding, (ours.num_prefix_tokens, 0))
    assert_close(ours.x, out, padding)
    assert model.config.hidden_size == 24
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModel.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(their_output(again, modality).last_hidden_state, out)


@pytest.mark.slow
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_exported_code_needs_neither_d2v_nor_timm(modality: str, tmp_path: Path) -> None:
    node = CUSTOM[modality]
    encoder = perturb(build(node))
    save_custom_huggingface(encoder, node, tmp_path, DATA[modality])
    found = run_alone(tmp_path, "AutoModel", modality)
    inputs, padding = inputs_of(modality)
    with torch.no_grad():
        batch = Batch(modality, next(iter(inputs.values())), torch.arange(2), padding_mask=padding)
        ours = encoder(batch, return_layers=True)
    if padding is not None:
        padding = nn.functional.pad(padding, (ours.num_prefix_tokens, 0))
    assert_close(ours.x, found["x"], padding)
    for own, other in zip(ours.hidden_states, found["hidden_states"][1:], strict=True):
        assert_close(own, other, padding)


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize(("modality", "layers"), [*((name, "last") for name in MODALITIES), ("speech", "concat")])
def test_any_model_with_a_head_computes_the_same_and_can_be_trained(modality: str, layers: str, tmp_path: Path) -> None:
    node, head_node = CUSTOM[modality], HEADS[modality]
    if layers == "concat":
        head_node = {**head_node, "embed_dim": node["embed_dim"] * node["depth"], "layers": layers}
    encoder, head = perturb(build(node)), perturb(build(head_node))
    save_custom_huggingface(encoder, node, tmp_path, DATA[modality], head, head_node, LABELS[modality])
    auto_class = getattr(transformers, AUTO[modality])
    model, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    padding = inputs_of(modality)[1]
    with torch.no_grad():
        ours = head(our_output(encoder, modality), padding)
    assert_close(ours, their_output(model.eval(), modality).logits, padding if modality == "speech" else None)
    labels = torch.tensor([[2, 1, 3], [2, -100, -100]]) if modality == "speech" else torch.tensor([1, 0])
    loss = model.train()(**inputs_of(modality)[0], labels=labels).loss
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.endswith("mask_token"))
    base, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert type(base).__name__ == "D2VModel"
