"""Configurations of the authors' as nodes that build our models: what is read, what is refused, what is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v.interop.build import build
from d2v.interop.fairseq.config import Node, parse_convs
from d2v.interop.fairseq.layouts import model_node, to_d2v_state
from d2v.interop.fairseq.recipe import recipe_of

GOLDEN = ["image_base", "image_variant", "audio_base", "audio_padded", "text_base", "text_padded"]
GOLDEN_OF_1 = ["v1_image", "v1_audio", "v1_text"]

Case = tuple[dict[str, Any], dict[str, Tensor], str]


@pytest.fixture
def read(check_parity: ModuleType, golden_dir: Path) -> Callable[[str], Case]:
    """The configuration, the student's parameters and the layout of a golden case."""

    def call(name: str) -> Case:
        layout, cfg = check_parity.configuration(json.loads((golden_dir / f"{name}.json").read_text()))
        tensors = load_file(golden_dir / f"{name}.safetensors")
        student = {k.removeprefix("student/"): v for k, v in tensors.items() if k.startswith("student/")}
        return copy.deepcopy(cfg), student, layout

    return call


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("[(512, 10, 5)]", [[512, 10, 5]]),
        ("[(512,10,5)]*3", [[512, 10, 5]] * 3),
        ("[(1, 2, 3)] + [(4, 5, 6)] * 2", [[1, 2, 3], [4, 5, 6], [4, 5, 6]]),
        ("[(1, 2, 3)] * 2 + [(4, 5, 6)]", [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        ("[(1, 2, 3), (4, 5, 6)]", [[1, 2, 3], [4, 5, 6]]),
        ("[(1,2,3),(4,5,6)] * 2", [[1, 2, 3], [4, 5, 6]] * 2),
        ("[(1, 2, 3),]", [[1, 2, 3]]),
        (" [(1, 2, 3) ] +[( 4,5 ,6 )]  *  2 ", [[1, 2, 3], [4, 5, 6], [4, 5, 6]]),
        ("[(1, 2, 3)] * 10", [[1, 2, 3]] * 10),
        (
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            [[512, 10, 5], *[[512, 3, 2]] * 4, [512, 2, 2], [512, 2, 2]],
        ),
        ("[(32,10,5)]+[(32,3,2)]*4+[(32,2,2)]*2", [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2]),
    ],
)
def test_convolutions_are_read_without_being_executed(spec: str, layers: list[list[int]]) -> None:
    assert parse_convs(spec) == layers
    assert parse_convs(spec) == [list(layer) for layer in eval(spec.strip())]


@pytest.mark.parametrize("name", [*GOLDEN, *GOLDEN_OF_1])
def test_a_node_is_plain_and_builds_a_model_with_their_parameters(read: Callable[[str], Case], name: str) -> None:
    cfg, student, layout = read(name)
    before = copy.deepcopy(cfg)
    node = model_node(cfg, student, layout, 2)
    assert cfg == before
    assert json.loads(json.dumps(node)) == node
    model = build(node)
    theirs = to_d2v_state(student, layout)
    ours = {key: value for key, value in model.state_dict().items() if not key.startswith("teacher.")}
    assert ours.keys() - {"student.frontends.image.positions"} == theirs.keys() - {"student.frontends.image.positions"}
    for key, value in theirs.items():
        assert ours[key].shape == value.shape, key


@pytest.mark.parametrize("name", GOLDEN)
def test_a_node_of_2_0_written_as_a_recipe_is_read_as_the_same_node(read: Callable[[str], Case], name: str) -> None:
    cfg, student, layout = read(name)
    node = model_node(cfg, student, layout, 3)
    recipe = recipe_of(node)
    assert json.loads(json.dumps(recipe)) == recipe
    assert model_node(recipe, student, layout) == node


@pytest.mark.parametrize("name", GOLDEN_OF_1)
def test_a_node_of_1_0_is_no_recipe_of_2_0(read: Callable[[str], Case], name: str) -> None:
    with pytest.raises(ValueError, match=r"format=fairseq: .* is not of data2vec 2\.0"):
        recipe_of(model_node(*read(name)))


def at(node: Node, path: str) -> Any:
    for key in path.split("."):
        node = node[key]
    return node


EXPECTED: dict[str, dict[str, Any]] = {
    "v1_image": {
        "_target_": "d2v.models.data2vec.Data2Vec",
        "encoder.frontends.image._target_": "d2v.nn.frontends.image.BeitFrontend",
        "encoder.frontends.image.img_size": 32,
        "encoder.frontends.image.patch_size": 4,
        "encoder.frontends.image.shared_bias": True,
        "encoder.norm_first": True,
        "encoder.layer_scale_init": 0.1,
        "encoder.rel_pos_grid": None,
        "encoder.mlp_ratio": 4.0,
        "encoder.depth": 3,
        "heads.image.depth": 0,
        "average_top_k_layers": 2,
        "layer_norms": [],
        "target_norms": ["layer"],
        "end_of_block_targets": True,
        "loss_scale": None,
        "loss_beta": 2.0,
        "teacher_scope": "context",
    },
    "v1_audio": {
        "_target_": "d2v.models.data2vec.Data2Vec",
        "encoder.frontends.speech.conv_layers": [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2],
        "encoder.frontends.speech.pos_depth": 5,
        "encoder.frontends.speech.pos_kernel_size": 19,
        "encoder.frontends.speech.pos_groups": 4,
        "encoder.frontends.speech.alibi": False,
        "encoder.frontends.speech.zero_padding": "first",
        "encoder.frontends.speech.mask_token": True,
        "encoder.norm_eps": 1e-5,
        "heads.speech.depth": 1,
        "layer_norms": ["instance"],
        "target_norms": [],
        "end_of_block_targets": False,
        "loss_scale": None,
        "loss_beta": 0,
        "teacher_scope": "transformer",
    },
    "v1_text": {
        "_target_": "d2v.models.data2vec.Data2Vec",
        "encoder.frontends.text.vocab_size": 100,
        "encoder.frontends.text.max_positions": 64,
        "encoder.frontends.text.pad_id": 1,
        "encoder.frontends.text.mask_id": 99,
        "encoder.num_heads": 4,
        "encoder.depth": 3,
        "encoder.norm_first": False,
        "heads.text.depth": 2,
        "layer_norms": ["layer"],
        "target_norms": [],
        "loss_scale": 1,
        "loss_beta": 4,
        "teacher_scope": "transformer",
    },
    "image_base": {"_target_": "d2v.models.data2vec2.Data2Vec2", "teacher_scope": "encoder"},
    "audio_base": {"teacher_scope": "context", "encoder.frontends.speech.zero_padding": "never"},
    "text_base": {"teacher_scope": "blocks", "loss_scale": 1.0},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_values_reach_their_places(read: Callable[[str], Case], name: str) -> None:
    node = model_node(*read(name))
    assert {path: at(node, path) for path in EXPECTED[name]} == EXPECTED[name]


def test_the_weight_of_cls_is_what_the_references_amounts_to(read: Callable[[str], Case]) -> None:
    cfg, student, layout = read("image_base")
    cfg |= {"cls_loss": 0.01, "clone_batch": 16}
    assert model_node(cfg, student, layout)["cls_loss_weight"] == pytest.approx(0.16)
    assert model_node(cfg, student, layout, 32)["cls_loss_weight"] == pytest.approx(5.12)


def test_dropout_rates_reach_their_places(read: Callable[[str], Case]) -> None:
    cfg, student, layout = read("v1_audio")
    cfg |= {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3, "encoder_layerdrop": 0.4}
    encoder = model_node(cfg, student, layout)["encoder"]
    rates = ("drop_rate", "post_mlp_drop_rate", "attn_drop_rate", "mlp_drop_rate", "layer_drop_rate")
    assert [encoder[rate] for rate in rates] == [0.1, 0.1, 0.2, 0.3, 0.4]
    cfg, student, layout = read("v1_text")
    cfg["transformer"] = {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3}
    cfg["transformer"]["encoder"] = {"attention_heads": 4, "layerdrop": 0.4, "normalize_before": False}
    del cfg["heads"]  # a checkpoint says it there
    encoder = model_node(cfg, student, layout)["encoder"]
    assert [encoder[rate] for rate in rates] == [0.1, 0.1, 0.2, 0.3, 0.4]
    assert encoder["num_heads"] == 4
    assert encoder["frontends"]["text"]["drop_rate"] == 0.1
    cfg, student, layout = read("v1_image")
    cfg |= {"drop_path": 0.25, "attention_dropout": 0.05}
    encoder = model_node(cfg, student, layout)["encoder"]
    assert (encoder["drop_path_rate"], encoder["attn_drop_rate"]) == (0.25, 0.05)
    cfg, student, layout = read("audio_base")
    cfg |= {"encoder_dropout": 0.1, "post_mlp_drop": 0.15, "attention_dropout": 0.2, "activation_dropout": 0.3}
    cfg |= {"layerdrop": 0.4, "end_drop_path_rate": 0.5}
    encoder = model_node(cfg, student, layout)["encoder"]
    assert [encoder[rate] for rate in (*rates, "drop_path_rate")] == [0.1, 0.15, 0.2, 0.3, 0.4, 0.5]


def test_biases_of_blocks_are_read_off_the_parameters(read: Callable[[str], Case]) -> None:
    cfg, student, layout = read("v1_image")
    shared = {key: value for key, value in student.items() if "rel_pos_bias" in key}
    own = {key: value for key, value in student.items() if key not in shared}
    table = shared["encoder.rel_pos_bias.relative_position_bias_table"]
    for i in range(3):
        own[f"encoder.blocks.{i}.attn.rel_pos_bias.relative_position_bias_table"] = table
        own[f"encoder.blocks.{i}.attn.rel_pos_bias.relative_position_index"] = torch.zeros(1)
    model = build(model_node(cfg, own, layout))
    state = to_d2v_state(own, layout)
    assert {key for key in model.state_dict() if not key.startswith("teacher.")} == state.keys()
    assert torch.equal(state["student.trunk.blocks.2.rel_pos.table"], table)
    assert model.student.frontend("image").rel_pos is None


@pytest.mark.parametrize(
    ("name", "changes", "scope"),
    [
        ("v1_image", {"ema_transformer_only": False}, "encoder"),
        ("v1_image", {"ema_transformer_only": True}, "context"),
        ("v1_audio", {"ema_layers_only": True}, "transformer"),
        ("v1_audio", {"ema_layers_only": False}, "context"),
    ],
)
def test_the_teachers_scope_is_read(
    read: Callable[[str], Case], name: str, changes: dict[str, Any], scope: str
) -> None:
    cfg, student, layout = read(name)
    node = model_node(cfg | changes, student, layout)
    assert node["teacher_scope"] == scope
    assert {recipe.teacher_scope for recipe in build(node).recipes.values()} == {scope}


@pytest.mark.parametrize(("scale", "ours"), [(None, None), (-1, None), (-1.0, None), (1, 1), (0.5, 0.5)])
def test_a_negative_loss_scale_is_that_of_the_width(read: Callable[[str], Case], scale: float, ours: float) -> None:
    cfg, student, layout = read("v1_text")
    node = model_node(cfg | {"loss_scale": scale}, student, layout)
    assert node["loss_scale"] == ours
    recipe = build(node).recipes["text"]
    assert recipe.scale(48) == (48**-0.5 if ours is None else ours)


def test_the_mask_id_is_the_last_unless_it_is_said(read: Callable[[str], Case]) -> None:
    cfg, student, layout = read("v1_text")
    assert at(model_node(cfg | {"mask_id": 7}, student, layout), "encoder.frontends.text.mask_id") == 7
    del cfg["mask_id"]
    assert at(model_node(cfg, student, layout), "encoder.frontends.text.mask_id") == 99


REFUSED = [
    ("image_base", "", "batch_norm_target_layer", True),
    ("image_base", "", "recon_loss", 0.5),
    ("image_base", "", "shared_decoder", {"decoder_dim": 8}),
    ("image_base", "image", "fixed_positions", False),
    ("audio_base", "audio", "conv_pos_pre_ln", True),
    ("audio_base", "audio", "learned_alibi", True),
    ("audio_base", "audio", "learned_alibi_scale_per_layer", True),
    ("text_base", "text", "learned_pos", False),
    ("text_base", "text", "layernorm_embedding", False),
    ("text_base", "text", "no_scale_embedding", False),
    ("v1_audio", "", "extractor_mode", "default"),
    ("v1_audio", "", "conv_bias", True),
    ("v1_audio", "", "layer_norm_first", True),
    ("v1_audio", "", "pos_conv_depth", 1),
]


@pytest.mark.parametrize(("name", "modality", "key", "value"), REFUSED)
def test_what_d2v_does_not_have_is_refused_by_name(
    read: Callable[[str], Case], name: str, modality: str, key: str, value: object
) -> None:
    cfg, student, layout = read(name)
    (cfg["modalities"][modality] if modality else cfg)[key] = value
    with pytest.raises(ValueError) as error:
        model_node(cfg, student, layout)
    assert f"{key}={value}" in str(error.value)


REQUIRED = {
    "image_base": "embed_dim depth num_heads mlp_ratio layer_norm_first norm_eps average_top_k_layers loss_beta "
    "cls_loss clone_batch modalities image.prenet_depth image.input_size image.patch_size image.in_chans "
    "image.num_extra_tokens image.mask_noise_std image.decoder",
    "audio_base": "audio.feature_encoder_spec audio.conv_pos_depth audio.conv_pos_width audio.conv_pos_groups "
    "audio.use_alibi_encoder",
    "text_base": "text.max_source_positions",
    "v1_image": "image_size patch_size embed_dim depth num_heads layer_scale_init_value average_top_k_layers loss_beta",
    "v1_audio": "encoder_layers encoder_embed_dim encoder_ffn_embed_dim encoder_attention_heads conv_feature_layers "
    "conv_pos conv_pos_groups average_top_k_layers loss_beta",
    "v1_text": "heads average_top_k_layers loss_beta",
}


@pytest.mark.parametrize(("name", "path"), [(name, path) for name in REQUIRED for path in REQUIRED[name].split()])
def test_a_missing_key_is_named(read: Callable[[str], Case], name: str, path: str) -> None:
    cfg, student, layout = read(name)
    modality, _, key = path.rpartition(".")
    del (cfg["modalities"][modality] if modality else cfg)[key]
    with pytest.raises(ValueError, match="the checkpoint's configuration of its model lacks") as error:
        model_node(cfg, student, layout)
    assert ("attention_heads" if key == "heads" else key) in str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        "[(512, 10, 5)] + 4 * [(512, 3, 2)]",
        "([(1,2,3)] + [(4,5,6)]) * 2",
        "[(1,2,3)] * 2 * 2",
        "[[1,2,3]]",
        "[(1,2,3)",
        "",
    ],
)
def test_other_ways_to_write_convolutions_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="write them as"):
        parse_convs(spec)


@pytest.mark.parametrize(
    ("encoder_only", "local", "scope"),
    [(True, False, "blocks"), (True, True, "blocks"), (False, True, "encoder"), (False, False, "context")],
)
def test_the_teachers_scope_of_2_0_is_the_configurations(
    read: Callable[[str], Case], encoder_only: bool, local: bool, scope: str
) -> None:
    cfg, student, layout = read("image_base")
    cfg["ema_encoder_only"], cfg["modalities"]["image"]["ema_local_encoder"] = encoder_only, local
    node = model_node(cfg, student, layout)
    assert node["teacher_scope"] == scope
    again = recipe_of(node)
    assert model_node(again, student, layout)["teacher_scope"] == scope


def test_dropout_before_the_blocks_is_read_where_each_version_has_it(read: Callable[[str], Case]) -> None:
    cfg, student, layout = read("audio_base")
    cfg["modalities"]["audio"]["prenet_dropout"] = 0.1
    node = model_node(cfg, student, layout)
    assert node["encoder"]["frontends"]["speech"]["input_drop_rate"] == 0.1
    assert recipe_of(node)["modalities"]["audio"]["prenet_dropout"] == 0.1
    cfg, student, layout = read("v1_audio")
    cfg |= {"dropout": 0.2, "dropout_input": 0.0}
    assert model_node(cfg, student, layout)["encoder"]["frontends"]["speech"]["input_drop_rate"] == 0.2


def test_a_checkpoint_of_no_modality_is_named() -> None:
    with pytest.raises(ValueError, match="encoders for no modality"):
        model_node({}, {"modality_encoders.VIDEO.x": torch.zeros(1)}, "2.0")


@pytest.mark.parametrize(
    ("name", "place", "key", "value"),
    [
        ("image_base", (), "norm_affine", False),
        ("audio_base", ("modalities", "audio"), "encoder_zero_mask", False),
        ("image_base", ("modalities", "image", "decoder"), "add_positions_all", True),
        ("v1_audio", (), "group_norm_target_layer", True),
    ],
)
def test_what_would_give_other_numbers_is_refused(
    read: Callable[[str], Case], name: str, place: tuple[str, ...], key: str, value: bool
) -> None:
    cfg, student, layout = read(name)
    part = cfg
    for step in place:
        part = part[step]
    part[key] = value
    with pytest.raises(ValueError, match=f"{key}={value} in the checkpoint's configuration"):
        model_node(cfg, student, layout)


def test_targets_of_the_modality_are_the_recipes(read: Callable[[str], Case]) -> None:
    node = model_node(*read("image_base"))
    own = {"average_top_k_layers": 1, "loss_scale": 2.0, "teacher_scope": "blocks", "layer_norms": ["layer"]}
    assert recipe_of({**node, "targets": {"image": own}}) == recipe_of({**node, **own})
    assert recipe_of({**node, "targets": None}) == recipe_of(node) != recipe_of({**node, **own})
