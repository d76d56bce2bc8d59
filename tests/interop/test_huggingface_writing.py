"""Exports to Hugging Face's data2vec 1.0: the same outputs, and back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from their_models import (
    AUTO,
    BASE,
    DATA,
    ENCODER,
    FRONTENDS,
    HEADS,
    IMAGE_1,
    LABELS,
    MODALITIES,
    WITH_HEAD,
    assert_close,
    inputs_of,
    node_of,
    our_output,
    perturb,
    their_output,
)
from torch import nn

from d2v.interop.build import build
from d2v.interop.huggingface import load_huggingface, save_huggingface

transformers = pytest.importorskip("transformers")

EXPORTS: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = [
    ("text", None, {}),
    ("speech", None, {}),
    ("speech", None, {"mask_token": False, "pos_kernel_size": 5}),
    ("image", None, {}),
    ("image", {**IMAGE_1, "rel_pos_grid": [3, 3], "final_norm": False}, {"shared_bias": False, "mask_token": False}),
    ("image", {"norm_first": True}, {"shared_bias": False}),
]


@pytest.mark.parametrize(("modality", "encoder", "frontend"), EXPORTS)
def test_an_exported_encoder_computes_the_same_and_comes_back_bit_for_bit(
    modality: str, encoder: dict[str, Any] | None, frontend: dict[str, Any], tmp_path: Path
) -> None:
    node = node_of(modality, encoder, **frontend)
    ours = perturb(build(node))
    save_huggingface(ours, node, tmp_path, DATA[modality], card="# A card\n")
    assert (tmp_path / "README.md").read_text() == "# A card\n"
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == BASE[modality]
    assert not report["unexpected_keys"]
    # Nobody has trained a pooler.
    assert {key for key in report["missing_keys"] if not key.startswith("pooler.")} == set()
    padding = inputs_of(modality)[1]
    assert_close(our_output(ours, modality).x, their_output(theirs.eval(), modality).last_hidden_state, padding)

    back = load_huggingface(tmp_path)
    state = ours.state_dict()
    assert back.encoder_state.keys() == state.keys()
    for name, value in back.encoder_state.items():
        if modality == "image" and name.endswith("attn.qkv.bias"):
            queries, keys, values = value.chunk(3)  # their keys have no bias, which changes nothing
            assert not keys.any()
            value = torch.cat([queries, state[name].chunk(3)[1], values])
        assert torch.equal(value, state[name]), name
    own = back.encoder_node["frontends"][modality]
    shared = {key: own[key] for key in ("patch_size", "conv_layers") if key in own}
    assert {k: v for k, v in back.inputs.items() if v is not None} == {**DATA[modality], **shared}


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_exported_model_with_a_head_computes_the_same_and_comes_back(modality: str, tmp_path: Path) -> None:
    node = node_of(modality, {**IMAGE_1, "final_norm": False} if modality == "image" else None)
    encoder, head = perturb(build(node)), perturb(build(HEADS[modality]))
    save_huggingface(encoder, node, tmp_path, DATA[modality], head, HEADS[modality], LABELS[modality])
    theirs = getattr(transformers, AUTO[modality]).from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == WITH_HEAD[modality]
    padding = inputs_of(modality)[1]
    with torch.no_grad():
        ours = head(our_output(encoder, modality), padding)
    assert_close(ours, their_output(theirs, modality).logits, padding if modality == "speech" else None)

    back = load_huggingface(tmp_path)
    assert back.label_names == LABELS[modality]
    assert back.head_state is not None
    assert all(torch.equal(value, back.head_state[name]) for name, value in head.state_dict().items())
    if modality != "speech":
        assert [theirs.config.id2label[i] for i in range(len(LABELS[modality]))] == LABELS[modality]


def test_a_score_is_a_regression_there(tmp_path: Path) -> None:
    node, head_node = node_of("text"), {**HEADS["text"], "num_outputs": 1}
    save_huggingface(build(node), node, tmp_path, DATA["text"], build(head_node), head_node)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.problem_type) == (1, "regression")


NO_PLACE: list[tuple[str, dict[str, Any] | None, dict[str, Any], str]] = [
    ("speech", None, {"alibi": True}, "speech.alibi=True"),
    ("speech", None, {"zero_padding": "every"}, "padding would leak"),
    ("speech", None, {"zero_padding": "never"}, "zero_padding=never"),
    ("speech", {"prenet_depth": 1}, {}, "prenet_depth=1"),
    ("speech", None, {"norm_eps": 1e-5}, "one epsilon"),
    ("text", {"norm_first": True}, {}, "norm_first=True"),
    ("text", None, {"num_prefix_tokens": 1}, "num_prefix_tokens=1"),
    ("text", {"layer_scale_init": 1e-4}, {}, "layer_scale_init"),
    ("image", {"norm_first": False}, {}, "norm_first=False"),
    ("image", {**IMAGE_1, "rel_pos_grid": [2, 2]}, {}, "rel_pos_grid"),
]


@pytest.mark.parametrize(("modality", "encoder", "frontend", "message"), NO_PLACE)
def test_what_they_have_no_place_for_is_named(
    modality: str, encoder: dict[str, Any] | None, frontend: dict[str, Any], message: str, tmp_path: Path
) -> None:
    node = node_of(modality, encoder, **frontend)
    with pytest.raises(ValueError, match=message) as error:
        save_huggingface(nn.Module(), node, tmp_path / "new", DATA[modality])
    assert "save_custom_huggingface" in str(error.value)
    assert not (tmp_path / "new").exists()


def test_positions_and_heads_that_do_not_fit_are_named(tmp_path: Path) -> None:
    node = {
        **ENCODER,
        "norm_first": True,
        "frontends": {"image": {"_target_": "d2v.nn.frontends.image.ImageFrontend", "embed_dim": 24}},
    }
    with pytest.raises(ValueError, match="fixed_positions=True"):
        save_huggingface(nn.Module(), node, tmp_path, {})
    node = node_of("image")
    encoder, head = build(node), build(HEADS["image"])
    with pytest.raises(ValueError, match="norms after the mean only"):
        save_huggingface(encoder, node, tmp_path, {}, head, HEADS["image"])
    with pytest.raises(ValueError, match="takes a MeanPoolHead"):
        save_huggingface(encoder, node, tmp_path, {}, build(HEADS["text"]), HEADS["text"])
    with pytest.raises(ValueError, match="2 labels for a head of 3 outputs"):
        save_huggingface(encoder, node, tmp_path, {}, head, HEADS["image"], ["cat", "dog"])
    with pytest.raises(ValueError, match="one modality"):
        save_huggingface(encoder, {**node, "frontends": FRONTENDS}, tmp_path, {})
    other = {**node, "frontends": {"image": FRONTENDS["text"]}}
    with pytest.raises(ValueError, match="the frontends that can be exported"):
        save_huggingface(encoder, other, tmp_path, {})
    other = {**node, "frontends": {"image": {"_target_": "mine.Frontend"}}}
    with pytest.raises(ValueError, match=r"_target_=mine\.Frontend"):
        save_huggingface(encoder, other, tmp_path, {})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        save_huggingface(encoder, node, tmp_path / "file", {})
