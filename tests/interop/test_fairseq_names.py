"""Names of the authors' parameters, one by one and as a whole."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v.interop.fairseq import layouts
from d2v.interop.fairseq.layouts import layout_of, to_d2v_state, to_d2v_teacher, to_fairseq_state
from d2v.interop.fairseq.names import MODALITIES

IMAGE, AUDIO, TEXT = (f"modality_encoders.{theirs}." for theirs in MODALITIES)
LAYOUTS: dict[str, str] = {
    "eat_base": "eat",
    "image_base": "2.0",
    "image_variant": "2.0",
    "audio_base": "2.0",
    "audio_padded": "2.0",
    "text_base": "2.0",
    "text_padded": "2.0",
    "v1_image": "image",
    "v1_audio": "speech",
    "v1_text": "text",
}


def golden(folder: Path, name: str, who: str = "student") -> dict[str, Tensor]:
    tensors = load_file(folder / f"{name}.safetensors")
    return {k.removeprefix(f"{who}/"): v for k, v in tensors.items() if k.startswith(f"{who}/")}


def one(name: str, layout: str = "2.0") -> str:
    """Our name for theirs, and the way back."""
    value = torch.randn(1, 1, 2, 1, 1)
    state = to_d2v_state({name: value}, layout)
    (ours,) = state
    assert state[ours].numel() == 2
    written = to_fairseq_state(state, layout)
    assert list(written) == [name]
    assert torch.equal(written[name].flatten(), value.flatten())
    return ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.11.attn.qkv.weight", "student.trunk.blocks.11.attn.qkv.weight"),
        ("blocks.0.attn.proj.bias", "student.trunk.blocks.0.attn.proj.bias"),
        ("blocks.3.norm1.weight", "student.trunk.blocks.3.norm1.weight"),
        ("blocks.3.norm2.bias", "student.trunk.blocks.3.norm2.bias"),
        (f"{IMAGE}context_encoder.norm.bias", "student.input_norms.image.bias"),
        (f"{IMAGE}context_encoder.blocks.1.mlp.fc2.bias", "student.prenets.image.blocks.1.mlp.fc2.bias"),
        (f"{IMAGE}local_encoder.proj.weight", "student.frontends.image.proj.weight"),
        (f"{IMAGE}fixed_positional_encoder.positions", "student.frontends.image.positions"),
        (f"{IMAGE}extra_tokens", "student.frontends.image.prefix_tokens"),
        (f"{IMAGE}decoder.blocks.5.0.weight", "decoders.image.convs.5.weight"),
        (f"{IMAGE}decoder.proj.bias", "decoders.image.proj.bias"),
        (f"{AUDIO}local_encoder.conv_layers.6.0.weight", "student.frontends.speech.convs.6.weight"),
        (f"{AUDIO}local_encoder.conv_layers.6.2.1.bias", "student.frontends.speech.conv_norms.6.bias"),
        (f"{AUDIO}project_features.1.weight", "student.frontends.speech.norm.weight"),
        (f"{AUDIO}project_features.2.bias", "student.frontends.speech.proj.bias"),
        (f"{AUDIO}relative_positional_encoder.5.0.weight", "student.frontends.speech.positions.convs.4.weight"),
        (f"{AUDIO}alibi_scale", "student.frontends.speech.alibi_scale"),
        (f"{AUDIO}context_encoder.norm.weight", "student.input_norms.speech.weight"),
        (f"{AUDIO}decoder.proj.weight", "decoders.speech.proj.weight"),
        (f"{TEXT}local_encoder.embed_tokens.weight", "student.frontends.text.token_embed.weight"),
        (f"{TEXT}local_encoder.embed_positions.weight", "student.frontends.text.pos_embed.weight"),
        (f"{TEXT}local_encoder.layernorm_embedding.bias", "student.frontends.text.norm.bias"),
        (f"{TEXT}context_encoder.blocks.10.norm2.weight", "student.prenets.text.blocks.10.norm2.weight"),
        (f"{TEXT}decoder.proj.2.weight", "decoders.text.proj.2.weight"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert one(theirs) == ours
    if ours.startswith("student."):
        teacher = to_d2v_teacher({theirs: torch.zeros(1, 1, 2, 1, 1)})
        assert list(teacher) == [ours.replace("student.", "teacher.", 1)]


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        ("text", "encoder.sentence_encoder.embed_tokens.weight", "student.frontends.text.token_embed.weight"),
        ("text", "encoder.sentence_encoder.embed_positions.weight", "student.frontends.text.pos_embed.weight"),
        ("text", "encoder.sentence_encoder.layernorm_embedding.bias", "student.frontends.text.norm.bias"),
        ("text", "encoder.sentence_encoder.layers.11.fc1.weight", "student.trunk.blocks.11.mlp.fc1.weight"),
        ("text", "encoder.sentence_encoder.layers.0.self_attn_layer_norm.bias", "student.trunk.blocks.0.norm1.bias"),
        ("text", "encoder.regression_head.2.bias", "heads.text.2.bias"),
        ("speech", "feature_extractor.conv_layers.6.0.weight", "student.frontends.speech.convs.6.weight"),
        ("speech", "feature_extractor.conv_layers.6.2.1.weight", "student.frontends.speech.conv_norms.6.weight"),
        ("speech", "layer_norm.bias", "student.frontends.speech.norm.bias"),
        ("speech", "post_extract_proj.weight", "student.frontends.speech.proj.weight"),
        ("speech", "mask_emb", "student.frontends.speech.mask_token"),
        ("speech", "encoder.pos_conv.4.0.bias", "student.frontends.speech.positions.convs.4.bias"),
        ("speech", "encoder.layer_norm.weight", "student.input_norms.speech.weight"),
        ("speech", "encoder.layers.2.self_attn.out_proj.weight", "student.trunk.blocks.2.attn.proj.weight"),
        ("speech", "encoder.layers.2.final_layer_norm.weight", "student.trunk.blocks.2.norm2.weight"),
        ("speech", "encoder.layers.2.fc2.bias", "student.trunk.blocks.2.mlp.fc2.bias"),
        ("speech", "final_proj.weight", "heads.speech.0.weight"),
        ("image", "patch_embed.conv.bias", "student.frontends.image.proj.bias"),
        ("image", "cls_emb", "student.frontends.image.prefix_tokens"),
        ("image", "mask_emb", "student.frontends.image.mask_token"),
        ("image", "encoder.rel_pos_bias.relative_position_bias_table", "student.frontends.image.rel_pos.table"),
        (
            "image",
            "encoder.blocks.1.attn.rel_pos_bias.relative_position_bias_table",
            "student.trunk.blocks.1.rel_pos.table",
        ),
        ("image", "encoder.blocks.1.attn.qkv.weight", "student.trunk.blocks.1.attn.qkv.weight"),
        ("image", "encoder.blocks.1.attn.proj.bias", "student.trunk.blocks.1.attn.proj.bias"),
        ("image", "encoder.blocks.1.gamma_1", "student.trunk.blocks.1.scale1.gamma"),
        ("image", "encoder.blocks.1.gamma_2", "student.trunk.blocks.1.scale2.gamma"),
        ("image", "encoder.blocks.1.norm1.weight", "student.trunk.blocks.1.norm1.weight"),
        ("image", "encoder.blocks.1.norm2.bias", "student.trunk.blocks.1.norm2.bias"),
        ("image", "encoder.blocks.1.mlp.0.weight", "student.trunk.blocks.1.mlp.fc1.weight"),
        ("image", "encoder.blocks.1.mlp.2.bias", "student.trunk.blocks.1.mlp.fc2.bias"),
        ("image", "encoder.norm.weight", "student.trunk.norm.weight"),
    ],
)
def test_names_of_1_0(layout: str, theirs: str, ours: str) -> None:
    assert one(theirs, layout) == ours


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        ("2.0", "3.attn.qkv.bias", "trunk.blocks.3.attn.qkv.bias"),  # a stack of blocks
        ("2.0", "blocks.3.attn.qkv.bias", "trunk.blocks.3.attn.qkv.bias"),  # an encoder
        ("text", "layers.3.fc1.bias", "trunk.blocks.3.mlp.fc1.bias"),
        ("text", "embed_tokens.weight", "frontends.text.token_embed.weight"),
        ("speech", "layers.3.fc2.weight", "trunk.blocks.3.mlp.fc2.weight"),
        ("speech", "pos_conv.0.0.weight", "frontends.speech.positions.convs.0.weight"),
        ("speech", "layer_norm.weight", "input_norms.speech.weight"),  # the encoder's, not the features'
        ("image", "blocks.3.gamma_2", "trunk.blocks.3.scale2.gamma"),
        ("image", "norm.bias", "trunk.norm.bias"),
    ],
)
def test_a_teachers_names_lack_what_its_encoders_begin_with(layout: str, theirs: str, ours: str) -> None:
    value = torch.randn(4)
    state = to_d2v_teacher({theirs: value}, layout)
    assert list(state) == [f"teacher.{ours}"]
    assert torch.equal(state[f"teacher.{ours}"], value)


@pytest.mark.parametrize("layout", ["text", "speech"])
def test_queries_keys_and_values_are_thirds_in_this_order(layout: str) -> None:
    stem = {"text": "encoder.sentence_encoder.layers.1", "speech": "encoder.layers.1"}[layout]
    theirs = {f"{stem}.self_attn.{x}_proj.weight": torch.full((2, 3), i) for i, x in enumerate("vkq")}
    ours = to_d2v_state(theirs, layout)
    assert list(ours) == ["student.trunk.blocks.1.attn.qkv.weight"]
    assert ours["student.trunk.blocks.1.attn.qkv.weight"][:, 0].tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(KeyError, match=r"student\.trunk\.blocks\.1\.attn\.qkv\.weight: of its three parts .* \[0, 2\]"):
        to_d2v_state({name: v for name, v in theirs.items() if "k_proj" not in name}, layout)


def test_the_image_model_of_1_0_has_no_bias_of_keys() -> None:
    q, v = torch.randn(4), torch.randn(4)
    ours = to_d2v_state({"encoder.blocks.0.attn.q_bias": q, "encoder.blocks.0.attn.v_bias": v}, "image")
    assert torch.equal(ours["student.trunk.blocks.0.attn.qkv.bias"], torch.cat([q, torch.zeros(4), v]))


@pytest.mark.parametrize("layout", list(layouts.LAYOUTS))
@pytest.mark.parametrize(
    "name", ["", "head.weight", "xblocks.0.norm1.weight", f"{IMAGE}mystery.weight", "encoder.layers.x.fc1.weight"]
)
def test_unknown_names_are_refused_by_name_both_ways(layout: str, name: str) -> None:
    with pytest.raises(KeyError) as error:
        to_d2v_state({name: torch.zeros(1)}, layout)
    assert f"{name}: 1 parameters that are not part of such a model" in str(error.value)
    with pytest.raises(KeyError) as error:
        to_fairseq_state({name: torch.zeros(1)}, layout)
    assert f"{name}: 1 parameters that such a model has no place for" in str(error.value)


def test_a_modality_that_the_project_lacks_is_refused() -> None:
    with pytest.raises(KeyError, match=r"modality_encoders\.VIDEO\.context_encoder\.norm\.weight"):
        to_d2v_state({"modality_encoders.VIDEO.context_encoder.norm.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_parameter_of_a_golden_case_goes_there_and_back(golden_dir: Path, name: str) -> None:
    theirs, layout = golden(golden_dir, name), LAYOUTS[name]
    cfg = {"modalities": {"image": {"target_length": 160}}} if layout == "eat" else None  # the names are those of 2.0
    assert layout_of(theirs, cfg) == layout
    ours = to_d2v_state(theirs, layout)
    assert all(key.startswith(("student.", "decoders.", "heads.")) for key in ours)
    back = to_fairseq_state(ours, layout)
    ignored = {key for key in theirs if any(p.fullmatch(key) for p in layouts.LAYOUTS[layout].renaming.ignored)}
    assert ignored == {
        "image": {"final_proj.weight", "final_proj.bias", "encoder.rel_pos_bias.relative_position_index"},
        "text": {"encoder.sentence_encoder.version"},
    }.get(layout, set())
    assert back.keys() == theirs.keys() - ignored
    for key, value in back.items():
        assert value.shape == theirs[key].shape, key
        assert torch.equal(value, theirs[key]), key
    again = to_d2v_state(back, layout)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], value) for key, value in ours.items())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_golden_teacher_is_named_as_its_student(golden_dir: Path, name: str) -> None:
    layout = LAYOUTS[name]
    student = to_d2v_state(golden(golden_dir, name), layout)
    teacher = to_d2v_teacher(golden(golden_dir, name, "teacher"), layout)
    assert len(teacher) > 10
    for key, value in teacher.items():
        assert value.shape == student[key.replace("teacher.", "student.", 1)].shape


def test_shapes_of_a_golden_case_are_ours(golden_dir: Path) -> None:
    ours = to_d2v_state(golden(golden_dir, "image_base"))
    assert ours["student.frontends.image.prefix_tokens"].shape == (1, 48)
    assert ours["student.frontends.image.positions"].shape == (64, 48)
    assert to_d2v_state(golden(golden_dir, "audio_base"))["student.frontends.speech.alibi_scale"].shape == (6,)
    ours = to_d2v_state(golden(golden_dir, "v1_image"), "image")
    assert ours["student.frontends.image.prefix_tokens"].shape == (1, 48)
    assert ours["student.frontends.image.mask_token"].shape == (48,)


@pytest.mark.parametrize(
    "names", [[], ["head.weight"], ["student.trunk.blocks.0.norm1.weight"], ["encoder.norm.weight"]]
)
def test_a_stranger_has_no_layout(names: list[str]) -> None:
    with pytest.raises(ValueError, match="not the parameters of a data2vec model of the authors'"):
        layout_of(dict.fromkeys(names))


def test_the_table_agrees_with_the_oracles(oracle: ModuleType) -> None:
    parameters = oracle.random_parameters(oracle.Options(prenet_depth=2, num_extra_tokens=2), torch.Generator())
    teacher = {k: v for k, v in parameters.items() if oracle.in_teacher(k)}
    ours = to_d2v_state(parameters) | to_d2v_teacher(teacher)
    expected = oracle.to_d2v_state(parameters, teacher)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[k].float(), expected[k]) for k in ours)
