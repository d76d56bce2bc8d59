"""Hugging Face's data2vec 1.0 models and ours compute the same, both ways; any encoder of ours as its own class."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from d2v.interop.build import build  # noqa: E402
from d2v.interop.huggingface import Imported, load_huggingface, save_custom_huggingface, save_huggingface  # noqa: E402
from d2v.nn.encoder import Encoder  # noqa: E402
from d2v.types import Batch, EncoderOutput, num_frames  # noqa: E402

CONVS = [[12, 10, 5], [12, 3, 2], [16, 2, 2]]
SAMPLES = (1600, 1000)
MODALITIES = ("text", "speech", "image")
BASE = {"text": "Data2VecTextModel", "speech": "Data2VecAudioModel", "image": "Data2VecVisionModel"}
WITH_HEAD = {
    "text": "Data2VecTextForSequenceClassification",
    "speech": "Data2VecAudioForCTC",
    "image": "Data2VecVisionForImageClassification",
}


def perturb(module: nn.Module, seed: int = 1) -> Any:
    """Every parameter off its initial value, so that a skipped norm or a swapped bias shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def inputs_of(modality: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """A batch of two as theirs, and the padding of its tokens as ours."""
    generator = torch.Generator().manual_seed(0)
    if modality == "image":
        return {"pixel_values": torch.randn(2, 2, 12, 12, generator=generator)}, None
    if modality == "speech":
        waves = torch.randn(2, SAMPLES[0], generator=generator)
        mask = torch.arange(SAMPLES[0]) < torch.tensor(SAMPLES)[:, None]
        frames = torch.tensor([num_frames(n, CONVS) for n in SAMPLES])
        padding = torch.arange(num_frames(SAMPLES[0], CONVS)) >= frames[:, None]
        return {"input_values": waves * mask, "attention_mask": mask.long()}, padding
    ids = torch.randint(4, 30, (2, 11), generator=generator)
    ids[1, 7:] = 1
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}, ids == 1


def our_output(encoder: Encoder, modality: str) -> EncoderOutput:
    inputs, padding = inputs_of(modality)
    with torch.no_grad():
        return encoder(Batch(modality, next(iter(inputs.values())), torch.arange(2), padding_mask=padding))


def their_output(model: nn.Module, modality: str) -> Any:
    with torch.no_grad():
        return model(**inputs_of(modality)[0])


def assert_close(ours: Tensor, theirs: Tensor, padding: Tensor | None = None) -> None:
    """Where tokens are real."""
    if padding is not None:
        ours, theirs = ours[~padding], theirs[~padding]
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# ---- from Hugging Face ----

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


# ---- to Hugging Face's own classes ----

ENCODER: dict[str, Any] = {
    "_target_": "d2v.nn.encoder.transformer_encoder",
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 1.7,
    "norm_eps": 1e-3,
}
FRONTENDS: dict[str, dict[str, Any]] = {
    "text": {
        "_target_": "d2v.nn.frontends.text.TextFrontend",
        "embed_dim": 24,
        "vocab_size": 300,
        "max_positions": 16,
        "norm_eps": 1e-3,
        "mask_id": 4,
    },
    "speech": {
        "_target_": "d2v.nn.frontends.speech.SpeechFrontend",
        "embed_dim": 24,
        "num_heads": 4,
        "conv_layers": CONVS,
        "pos_depth": 2,
        "pos_kernel_size": 4,
        "pos_groups": 4,
        "alibi": False,
        "zero_padding": "first",
        "mask_token": True,
        "norm_eps": 1e-3,
    },
    "image": {
        "_target_": "d2v.nn.frontends.image.BeitFrontend",
        "embed_dim": 24,
        "num_heads": 4,
        "img_size": 12,
        "patch_size": 4,
        "in_chans": 2,
    },
}
HEADS: dict[str, dict[str, Any]] = {
    "text": {"_target_": "d2v.models.heads.FirstTokenHead", "embed_dim": 24, "num_outputs": 2, "drop_rate": 0.1},
    "speech": {"_target_": "d2v.models.heads.FrameHead", "embed_dim": 24, "num_outputs": 4},
    "image": {"_target_": "d2v.models.heads.MeanPoolHead", "embed_dim": 24, "num_outputs": 3, "norm_eps": 1e-3},
}
LABELS: dict[str, Any] = {"text": ["no", "yes"], "speech": " AB", "image": ["cat", "dog", "cow"]}
DATA: dict[str, dict[str, Any]] = {
    "text": {"pad_id": 1, "vocab_size": 300, "block_size": 16},
    "speech": {"sample_rate": 8000},
    "image": {"img_size": 12, "in_chans": 2, "mean": [0.1, 0.2], "std": [0.3, 0.4], "crop_pct": 0.75},
}
IMAGE_1 = {"norm_first": True, "layer_scale_init": 1e-4}
AUTO = {
    "text": "AutoModelForSequenceClassification",
    "speech": "AutoModelForCTC",
    "image": "AutoModelForImageClassification",
}


def node_of(modality: str, encoder: dict[str, Any] | None = None, **frontend: Any) -> dict[str, Any]:
    """A node of an encoder; of 1.0, unless changed."""
    own = encoder if encoder is not None else IMAGE_1 if modality == "image" else {}
    return {**ENCODER, **own, "frontends": {modality: {**FRONTENDS[modality], **frontend}}}


def tokenizer_json() -> str:
    from d2v.data.texts.tokenizer import train_tokenizer

    return train_tokenizer(["a cat and a $dog", "two dogs"], 280).to_json()


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


# ---- files beside the weights ----


def test_their_tokenizer_gives_our_ids(tmp_path: Path) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    text, node = tokenizer_json(), node_of("text")
    save_huggingface(build(node), node, tmp_path, {**DATA["text"], "tokenizer": text})
    ours, theirs = load_tokenizer(text), transformers.AutoTokenizer.from_pretrained(tmp_path)
    cat, dogs = (ids.tolist() for ids in ours.encode(["a cat", "two $dogs"]))
    assert theirs("a cat")["input_ids"] == [ours.bos_id, *cat, ours.eos_id]
    assert theirs("a cat", "two $dogs")["input_ids"] == [0, *cat, 2, 2, *dogs, 2]
    batch = theirs(["a cat", "two $dogs"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"] != ours.pad_id, batch["attention_mask"].bool())
    assert theirs.decode(theirs("two $dogs")["input_ids"], skip_special_tokens=True) == "two $dogs"
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.model_max_length) == (4, 1, 16)
    back = load_huggingface(tmp_path)
    again = load_tokenizer(back.inputs["tokenizer"])
    assert [ids.tolist() for ids in again.encode(["a cat", "two $dogs"])] == [cat, dogs]
    assert back.encoder_node["frontends"]["text"]["mask_id"] == 4


def test_a_tokenizer_whose_numbers_are_the_released_dictionarys(tmp_path: Path) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    plain = json.loads(tokenizer_json())
    plain["added_tokens"] = []
    vocab = plain["model"]["vocab"]
    for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        del vocab[name]
    plain["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    ids = [4 + (7 * i) % len(vocab) for i in range(len(vocab))]
    assert len(set(ids)) == len(ids)
    text = json.dumps({"tokenizer": plain, "ids": ids, "vocab_size": len(vocab) + 5})
    node = node_of("text")
    save_huggingface(build(node), node, tmp_path, {**DATA["text"], "tokenizer": text})
    ours, theirs = load_tokenizer(text), transformers.AutoTokenizer.from_pretrained(tmp_path)
    (expected,) = ours.encode(["two dogs and a cat"])
    assert theirs("two dogs and a cat")["input_ids"] == [0, *expected.tolist(), 2]
    assert theirs.mask_token_id == len(vocab) + 4


def test_a_tokenizer_without_a_pad_token_gets_one(tmp_path: Path) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    plain = json.loads(tokenizer_json().replace("<s>", "<|endoftext|>"))
    for name in ("<pad>", "</s>"):
        plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] != name]
        del plain["model"]["vocab"][name]
    ours = load_tokenizer(json.dumps(plain))
    node = node_of("text", pad_id=ours.pad_id)
    save_huggingface(build(node), node, tmp_path, {"tokenizer": json.dumps(plain)})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (cat,) = ours.encode(["a cat"])
    assert theirs("a cat")["input_ids"] == [ours.bos_id, *cat.tolist(), ours.eos_id]
    assert theirs.pad_token_id == ours.pad_id == transformers.AutoConfig.from_pretrained(tmp_path).pad_token_id


def word_level(*names: str, around: tuple[str, str] | None = None, pad: str | None = None) -> str:
    """A tokenizer.json of the library: ids in the order of ``names``, then three words."""
    import tokenizers

    vocab = {name: i for i, name in enumerate([*names, "a", "cat", "dog"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=names[-1]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([name for name in names if name != "<s>"])  # that one is only in the vocabulary
    if around is not None:
        opener, closer = ((name, vocab[name]) for name in around)
        backend.post_processor = tokenizers.processors.BertProcessing(closer, opener)
    if pad is not None:
        backend.enable_padding(pad_id=vocab[pad], pad_token=pad)
    return backend.to_str()


ROLES = {  # tokenizer.json -> the tokens that open, close, pad, stand for unknown words and mask
    "used-ones-before-known-names": (
        word_level("<s>", "</s>", "<pad>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", around=("[CLS]", "[SEP]"),
                   pad="[PAD]"),
        ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
    ),
    "known-names": (word_level("<bos>", "<eos>", "<pad>", "<unk>"), ("<bos>", "<eos>", "<pad>", "<unk>", None)),
    "wide-bars": (
        word_level("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>", "<unk>"),
        ("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>", "<pad>", "<unk>", None),
    ),
    "names-of-nobody": (
        word_level("<o>", "<c>", "<x>", around=("<o>", "<c>")), ("<o>", "<c>", "<pad>", "<x>", None)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_special_tokens_are_those_of_training(tmp_path: Path, name: str) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    text, roles = ROLES[name]
    ours = load_tokenizer(text)
    node = node_of("text", pad_id=ours.pad_id)
    save_huggingface(build(node), node, tmp_path, {"tokenizer": ours.to_json()})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token, theirs.mask_token)
    assert found == roles
    assert (theirs.cls_token, theirs.sep_token) == roles[:2]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    (cat,) = ours.encode(["a cat"])
    batch = theirs(["a cat", "dog"], padding=True)
    assert batch["input_ids"][0] == [ours.bos_id, *cat.tolist(), ours.eos_id]
    assert batch["input_ids"][1][-1] == ours.pad_id
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    again = load_tokenizer(load_huggingface(tmp_path).inputs["tokenizer"])
    assert (again.bos_id, again.eos_id, again.mask_id) == (ours.bos_id, ours.eos_id, ours.mask_id)


def test_their_processor_of_speech_gives_our_inputs_and_reads_our_letters(tmp_path: Path) -> None:
    node = node_of("speech")
    encoder, head = perturb(build(node)), build(HEADS["speech"])
    save_huggingface(encoder, node, tmp_path, DATA["speech"], head, HEADS["speech"], " AB")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    waves = [3 + 2 * torch.randn(n).numpy() for n in SAMPLES]
    batch = processor(waves, sampling_rate=8000, padding=True, return_tensors="pt")
    for i, n in enumerate(SAMPLES):
        real = torch.from_numpy(waves[i])
        expected = (real - real.mean()) / real.std(correction=0)
        torch.testing.assert_close(batch["input_values"][i, :n], expected, atol=1e-4, rtol=1e-4)
        assert batch["attention_mask"][i].sum() == n
    assert processor.decode([0, 2, 2, 0, 2, 1, 1, 3, 0]) == "AA B"
    assert processor.tokenizer("AB A")["input_ids"] == [2, 3, 1, 2]
    assert processor.tokenizer.pad_token_id == 0
    with pytest.raises(ValueError, match="stands for the boundary of words"):
        save_huggingface(encoder, node, tmp_path, {}, head, HEADS["speech"], " A|")


def test_their_processor_of_images_gives_our_inputs(tmp_path: Path) -> None:
    from PIL import Image

    from d2v.data.images.views import EvalTransform, Normalize

    data = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.4, 0.5], "crop_pct": 0.75}
    node = node_of("image", in_chans=3)
    save_huggingface(build(node), node, tmp_path, data)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5), (32, 48), mode="bicubic")[0].clamp(0, 1)
    image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = EvalTransform(12, 0.75, Normalize((0.1, 0.2, 0.3), (0.3, 0.4, 0.5)))(image)
    assert theirs.shape == ours.shape == (3, 12, 12)
    assert (theirs - ours).abs().max() < 0.05  # bytes are rounded at other places


# ---- as a class of our own ----

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
@pytest.mark.parametrize("modality", MODALITIES)
def test_any_model_with_a_head_computes_the_same_and_can_be_trained(modality: str, tmp_path: Path) -> None:
    node = CUSTOM[modality]
    encoder, head = perturb(build(node)), perturb(build(HEADS[modality]))
    save_custom_huggingface(encoder, node, tmp_path, DATA[modality], head, HEADS[modality], LABELS[modality])
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
