"""Hugging Face's data2vec 1.0 models and ours compute the same, both ways; any encoder of ours as its own class."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from their_models import (
    BASE,
    CONVS,
    DATA,
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
from d2v.interop.huggingface import Imported, load_huggingface, save_huggingface
from d2v.types import Batch

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}

CONFIGS: dict[str, dict[str, Any]] = {
    "text": {**SIZES, "vocab_size": 30, "max_position_embeddings": 20, "layer_norm_eps": 1e-3},
    "speech": {
        **SIZES,
        "conv_dim": [c for c, _, _ in CONVS],
        "conv_kernel": [k for _, k, _ in CONVS],
        "conv_stride": [s for _, _, s in CONVS],
        "num_conv_pos_embeddings": 2,
        "conv_pos_kernel_size": 4,
        "num_conv_pos_embedding_groups": 4,
        "layer_norm_eps": 1e-3,
        "vocab_size": 8,
    },
    "image": {**SIZES, "image_size": 12, "patch_size": 4, "num_channels": 2, "layer_norm_eps": 1e-3},
}


def their_model(modality: str, name: str, folder: Path, **changes: Any) -> nn.Module:
    """A random model of theirs, saved."""
    model_class = getattr(transformers, name)
    model = perturb(model_class(model_class.config_class(**{**CONFIGS[modality], **changes})))
    model.save_pretrained(folder)
    return model


IMAGE_VARIANTS: list[dict[str, Any]] = [
    {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "use_mask_token": True},
    {"use_relative_position_bias": True, "layer_scale_init_value": 0.0},
    {"use_relative_position_bias": True, "use_shared_relative_position_bias": True},
    {"use_mean_pooling": False, "layer_scale_init_value": 1e-4},
]

IMPORTS = [
    ("text", {}),
    ("text", {"type_vocab_size": 1, "pad_token_id": 1}),
    ("speech", {}),
    ("speech", {"mask_time_prob": 0.0, "conv_pos_kernel_size": 5}),
    *(("image", changes) for changes in IMAGE_VARIANTS),
]


@pytest.mark.parametrize(("modality", "changes"), IMPORTS)
def test_an_imported_encoder_computes_the_same(modality: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = their_model(modality, BASE[modality], tmp_path, **changes)
    imported = load_huggingface(tmp_path)
    assert imported.head_node is imported.head_state is imported.label_names is None
    out = our_output(imported.build_encoder(), modality)
    assert_close(out.x, their_output(theirs, modality).last_hidden_state, inputs_of(modality)[1])


def test_hidden_states_are_the_same(tmp_path: Path) -> None:
    theirs = their_model("text", BASE["text"], tmp_path)
    encoder = load_huggingface(tmp_path).build_encoder()
    inputs, padding = inputs_of("text")
    with torch.no_grad():
        out = encoder(Batch("text", inputs["input_ids"], torch.arange(2), padding_mask=padding), return_layers=True)
        expected = theirs(**inputs, output_hidden_states=True).hidden_states
    for ours, other in zip(out.hidden_states, expected[1:], strict=True):
        assert_close(ours, other, padding)


@pytest.mark.parametrize(
    ("modality", "changes"),
    [
        ("text", {"num_labels": 3}),
        ("text", {"num_labels": 1, "classifier_dropout": 0.3}),
        ("speech", {}),
        ("image", {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "use_shared_relative_position_bias": True}),
    ],
)
def test_an_imported_model_with_a_head_computes_the_same(
    modality: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    theirs = their_model(modality, WITH_HEAD[modality], tmp_path, **changes)
    imported = load_huggingface(tmp_path)
    head = imported.build_head()
    assert head is not None
    padding = inputs_of(modality)[1]
    with torch.no_grad():
        ours = head(our_output(imported.build_encoder(), modality), padding)
    assert_close(ours, their_output(theirs, modality).logits, padding if modality == "speech" else None)
    if modality == "image":
        assert imported.label_names == ["cat", "dog", "cow"]


def test_letters_come_after_the_blank_and_special_tokens_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = their_model("speech", WITH_HEAD["speech"], tmp_path, pad_token_id=2)
    vocab = {"<s>": 0, "E": 1, "<pad>": 2, "|": 5, "'": 3, "</s>": 4, "<unk>": 6, "A": 7}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with caplog.at_level(logging.INFO):
        imported = load_huggingface(tmp_path)
    assert "<s>, </s>, <unk>" in caplog.text
    assert imported.label_names == "E' A"
    head = imported.build_head()
    assert head is not None
    padding = inputs_of("speech")[1]
    with torch.no_grad():
        ours = head(our_output(imported.build_encoder(), "speech"))
    assert_close(ours, their_output(theirs, "speech").logits[..., [2, 1, 3, 5, 7]], padding)
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 2, "ING": 1}))
    with pytest.raises(ValueError, match="'ING' is no letter"):
        load_huggingface(tmp_path)


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = their_model("text", "Data2VecTextForMaskedLM", tmp_path)
    with caplog.at_level(logging.INFO):
        imported = load_huggingface(tmp_path)
    assert "lm_head.dense.weight" in caplog.text
    assert imported.head_node is None
    out = our_output(imported.build_encoder(), "text")
    padding = inputs_of("text")[1]
    assert_close(out.x, their_output(theirs.data2vec_text, "text").last_hidden_state, padding)
    their_model("text", BASE["text"], tmp_path / "base")
    with caplog.at_level(logging.INFO):
        load_huggingface(tmp_path / "base")
    assert "left out pooler.dense.bias, pooler.dense.weight" in caplog.text


@pytest.mark.parametrize("kind", ["bin", "sharded"])
def test_other_files_of_weights(kind: str, tmp_path: Path) -> None:
    theirs = their_model("image", BASE["image"], tmp_path / "a")
    state = load_file(tmp_path / "a" / "model.safetensors")
    (tmp_path / "a" / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(
            {
                **state,
                "encoder.layer.0.attention.attention.relative_position_bias.relative_position_index": torch.ones(1),
            },
            tmp_path / "a" / "pytorch_model.bin",
        )
    else:
        theirs.save_pretrained(tmp_path / "a", max_shard_size="20KB")
        assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1
    out = our_output(load_huggingface(tmp_path / "a").build_encoder(), "image")
    assert_close(out.x, their_output(theirs, "image").last_hidden_state)


UNSUPPORTED = [
    ("text", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("text", {"is_decoder": True}, "is_decoder=True"),
    ("text", {"position_embedding_type": "relative_key"}, "position_embedding_type="),
    ("text", {"architectures": ["Data2VecTextForTokenClassification"]}, "ForTokenClassification"),
    ("speech", {"conv_bias": True}, "conv_bias=True"),
    ("speech", {"add_adapter": True}, "add_adapter=True"),
    ("speech", {"feat_extract_norm": "group"}, "feat_extract_norm='group'"),
    ("speech", {"num_conv_pos_embeddings": 3}, r"missing encoder.pos_conv_embed.layers.2.conv.weight"),
    ("speech", {"conv_pos_kernel_size": 5}, r"layers.0.conv.weight has shape \(24, 6, 4\), not \(24, 6, 5\)"),
    ("image", {"use_absolute_position_embeddings": True}, "use_absolute_position_embeddings=True"),
    ("image", {"image_size": [12, 16]}, "are square"),
    ("image", {"layer_norm_eps": "x"}, r"layer_norm_eps='x': must be of the form of 1e-12"),
    ("text", {"hidden_size": None}, "hidden_size=None: must be of the form of 768"),
    ("speech", {"conv_dim": [512, "512"]}, "conv_dim="),
    ("image", {"use_mask_token": 1}, "use_mask_token=1"),
    ("image", {"architectures": ["Data2VecVisionForImageClassification"], "use_mean_pooling": False}, "use_mean"),
    ("image", {"model_type": "beit"}, "model_type='beit': d2v reads data2vec-text"),
]


@pytest.mark.parametrize(("modality", "changes", "message"), UNSUPPORTED)
def test_what_we_do_not_have_is_named(modality: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    their_model(modality, BASE[modality], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message):
        load_huggingface(tmp_path)


def test_missing_left_over_and_wrong_parameters_are_named(tmp_path: Path) -> None:
    their_model("text", BASE["text"], tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.attention.self.key.bias"]
    state["encoder.layer.0.mystery"] = torch.ones(1)
    state["encoder.layer.0.output.dense.bias"] = torch.ones(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="3 differences") as error:
        load_huggingface(tmp_path)
    assert "missing encoder.layer.1.attention.self.key.bias" in str(error.value)
    assert "left over encoder.layer.0.mystery" in str(error.value)
    assert "encoder.layer.0.output.dense.bias has shape (3,), not (24,)" in str(error.value)


def test_quantized_weights_are_named(tmp_path: Path) -> None:
    their_model("text", BASE["text"], tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.1.attention.self.key.weight"
    save_file({**state, name: (100 * state[name]).to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{name} is torch\.int8: quantized"):
        load_huggingface(tmp_path)


def test_files_that_are_not_there_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_huggingface(tmp_path)
    their_model("image", BASE["image"], tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not readable"):
        load_huggingface(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_huggingface(tmp_path)


def test_what_inputs_look_like_is_read(tmp_path: Path) -> None:
    their_model("image", BASE["image"], tmp_path / "image")
    processor = transformers.BeitImageProcessor(
        size={"height": 12, "width": 12}, image_mean=[0.1, 0.2], image_std=[0.3, 0.4]
    )
    processor.save_pretrained(tmp_path / "image")
    assert load_huggingface(tmp_path / "image").inputs == {
        "img_size": 12,
        "patch_size": 4,
        "in_chans": 2,
        "mean": [0.1, 0.2],
        "std": [0.3, 0.4],
    }
    their_model("speech", BASE["speech"], tmp_path / "speech")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path / "speech")
    imported = load_huggingface(tmp_path / "speech")
    layers = imported.encoder_node["frontends"]["speech"]["conv_layers"]
    assert imported.inputs == {"sample_rate": 8000, "conv_layers": layers}
    their_model("text", BASE["text"], tmp_path / "text")
    (tmp_path / "text" / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": 29, "content": "<mask>"}], "costs": "${5}"})
    )
    imported = load_huggingface(tmp_path / "text")
    assert imported.encoder_node["frontends"]["text"]["mask_id"] == 29
    assert "${" not in imported.inputs["tokenizer"]
    assert json.loads(imported.inputs["tokenizer"])["costs"] == "${5}"
    assert {k: v for k, v in imported.inputs.items() if k != "tokenizer"} == {
        "pad_id": 1,
        "vocab_size": 30,
        "block_size": 18,
    }


@pytest.mark.slow
def test_reading_and_writing_need_no_transformers(tmp_path: Path) -> None:
    node = node_of("text")
    save_huggingface(perturb(build(node)), node, tmp_path / "a", DATA["text"])
    code = f"""
import sys
sys.modules["transformers"] = None
from d2v.interop.huggingface import load_huggingface, save_custom_huggingface, save_huggingface
for save in (save_huggingface, save_custom_huggingface):
    found = load_huggingface({str(tmp_path / "a")!r})
    save(found.build_encoder(), found.encoder_node, {str(tmp_path / "b")!r}, found.inputs)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert load_file(tmp_path / "b" / "model.safetensors")


def test_an_import_builds_what_it_says() -> None:
    node = node_of("image")
    encoder = build(node)
    imported = Imported(node, encoder.state_dict(), {})
    assert imported.build_head() is None
    assert not imported.build_encoder().training
