"""Configurations of the authors' models (fairseq, examples/data2vec), 2.0 and 1.0, as nodes that build ours.

A node is plain containers: ``_target_`` names a class of d2v, the other keys its arguments, as
:func:`d2v.interop.build.build` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from d2v.interop.fairseq.names import MODALITIES

Node = dict[str, Any]
# From the configurations of a model and of its modality, and the student's parameters.
FrontendNode = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Tensor]], Node]

_MAX_CONVS = 64
PAD_ID = 1  # of fairseq's dictionaries
_FAIRSEQ_TEXT = "modality_encoders.TEXT.local_encoder.embed_tokens.weight"
_TEACHER_SCOPES = {"IMAGE": "encoder", "AUDIO": "context", "TEXT": "blocks"}  # of the released 2.0 recipes


def parse_convs(spec: str) -> list[list[int]]:
    """Parse the reference's "[(512, 10, 5)] + [(512, 3, 2)] * 4" without executing it.

    Raises:
        ValueError: the text has another form.
    """
    layers: list[list[int]] = []
    for term in re.sub(r"\s", "", spec).split("+"):
        match = re.fullmatch(r"\[((?:\(\d{1,9},\d{1,9},\d{1,9}\),?)+)\](?:\*(\d{1,2}))?", term)
        if match is None or len(layers) > _MAX_CONVS:
            raise ValueError(
                f"convolutions {spec[:80]!r}: write them as [(channels, kernel size, stride)] * times + ..."
            )
        own = [[int(number) for number in layer.split(",")] for layer in re.findall(r"\(([^)]*)\)", match[1])]
        layers += own * int(match[2] or 1)
    return layers


def node_of_2(
    cfg: Mapping[str, Any],
    state: Mapping[str, Tensor],
    batch_size: int,
    modalities: Mapping[str, str] = MODALITIES,
    frontends: Mapping[str, FrontendNode] | None = None,
) -> Node:
    """Return the node of a model of 2.0.

    Args:
        cfg: configuration of the model.
        state: student under the authors' names.
        batch_size: samples of a device at a time.
        modalities: our names of the modalities, by theirs.
        frontends: nodes of frontends, by their name of the modality; None for those of data2vec.

    Raises:
        KeyError: the configuration lacks a key.
        ValueError: a setting that d2v does not support.
    """
    found = [name for name in modalities if any(key.startswith(f"modality_encoders.{name}.") for key in state)]
    if len(found) != 1:
        raise ValueError(
            f"the checkpoint has encoders for {found or 'no modality'}: d2v reads one of {list(modalities)}"
        )
    theirs = found[0]
    modality, own = modalities[theirs], cfg["modalities"][theirs.lower()]
    refuse(cfg, {"batch_norm_target_layer": False, "recon_loss": 0, "shared_decoder": None, "norm_affine": True})
    refuse(own, {"encoder_zero_mask": True, "keep_masked_pct": 0, "learned_alibi_scale": own.get("use_alibi_encoder")})
    refuse(own, {"conv_pos_pre_ln": False, "learned_alibi": False, "learned_alibi_scale_per_layer": False})
    refuse(own, {"fixed_positions": True, "learned_pos": True, "layernorm_embedding": True, "no_scale_embedding": True})
    encoder = {
        "_target_": "d2v.nn.encoder.transformer_encoder",
        "frontends": {modality: (frontends or _FRONTENDS_OF_2)[theirs](cfg, own, state)},
        "embed_dim": cfg["embed_dim"],
        "depth": cfg["depth"],
        "num_heads": cfg["num_heads"],
        "prenet_depth": own["prenet_depth"],
        "mlp_ratio": cfg["mlp_ratio"],
        "norm_first": cfg["layer_norm_first"],
        "norm_eps": cfg["norm_eps"],
        "drop_rate": cfg.get("encoder_dropout", 0.0),
        "attn_drop_rate": cfg.get("attention_dropout", 0.0),
        "mlp_drop_rate": cfg.get("activation_dropout", 0.0),
        "post_mlp_drop_rate": cfg.get("post_mlp_drop", 0.0),
        "drop_path_rate": cfg.get("end_drop_path_rate", 0.0),
        "layer_drop_rate": cfg.get("layerdrop", 0.0),
    }
    conv = own["decoder"]
    refuse(conv, {"add_positions_masked": False, "add_positions_all": False})
    decoder = {
        "_target_": f"d2v.nn.decoders.ConvDecoder{2 if theirs == 'IMAGE' else 1}d",
        "embed_dim": cfg["embed_dim"],
        "decoder_dim": conv["decoder_dim"],
        "depth": conv["decoder_layers"],
        "kernel_size": conv["decoder_kernel"],
        "groups": conv["decoder_groups"],
        "mask_noise_std": own["mask_noise_std"],
        "input_drop_rate": conv.get("input_dropout", 0.0),
        "residual": conv.get("decoder_residual", True),
        "proj_depth": conv.get("projection_layers", 1),
        "proj_ratio": conv.get("projection_ratio", 2.0),
    }
    return {
        "_target_": "d2v.models.data2vec2.Data2Vec2",
        "encoder": encoder,
        "decoders": {modality: decoder},
        **_targets(cfg),
        "cls_loss_weight": cfg["cls_loss"] * batch_size * cfg["clone_batch"],
        "teacher_scope": _teacher_scope(cfg, own, theirs),
    }


def _teacher_scope(cfg: Mapping[str, Any], own: Mapping[str, Any], theirs: str) -> str:
    """Return the teacher scope of a configuration; missing keys have the values of the modality's released recipe."""
    if "ema_encoder_only" not in cfg or "ema_local_encoder" not in own:
        return _TEACHER_SCOPES[theirs]
    if cfg["ema_encoder_only"]:
        return "blocks"
    return "encoder" if own["ema_local_encoder"] else "context"


def _image_of_2(cfg: Mapping[str, Any], own: Mapping[str, Any], state: Mapping[str, Tensor]) -> Node:
    return {
        "_target_": "d2v.nn.frontends.image.ImageFrontend",
        "embed_dim": cfg["embed_dim"],
        "img_size": own["input_size"],
        "patch_size": own["patch_size"],
        "in_chans": own["in_chans"],
        "num_prefix_tokens": own["num_extra_tokens"],
    }


def _speech_of_2(cfg: Mapping[str, Any], own: Mapping[str, Any], state: Mapping[str, Tensor]) -> Node:
    """Return the arguments of the speech frontend; padding leaks into positions, as in the reference."""
    return {
        "_target_": "d2v.nn.frontends.speech.SpeechFrontend",
        "embed_dim": cfg["embed_dim"],
        "num_heads": cfg["num_heads"],
        "conv_layers": parse_convs(own["feature_encoder_spec"]),
        "pos_depth": own["conv_pos_depth"],
        "pos_kernel_size": max(3, own["conv_pos_width"] // own["conv_pos_depth"]),
        "pos_groups": own["conv_pos_groups"],
        "alibi": own["use_alibi_encoder"],
        "num_prefix_tokens": own["num_extra_tokens"],
        "input_drop_rate": own.get("prenet_dropout", 0.0),
        "zero_padding": "never",
    }


def _text_of_2(cfg: Mapping[str, Any], own: Mapping[str, Any], state: Mapping[str, Tensor]) -> Node:
    return {
        "_target_": "d2v.nn.frontends.text.TextFrontend",
        "embed_dim": cfg["embed_dim"],
        "vocab_size": len(state[_FAIRSEQ_TEXT]),
        "max_positions": own["max_source_positions"],
        "pad_id": PAD_ID,
        "drop_rate": own.get("dropout", 0.0),
        "num_prefix_tokens": own["num_extra_tokens"],
        "input_drop_rate": own.get("prenet_dropout", 0.0),
    }


_FRONTENDS_OF_2: dict[str, FrontendNode] = {"IMAGE": _image_of_2, "AUDIO": _speech_of_2, "TEXT": _text_of_2}


def _node_of_1_text(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> Node:
    names = "encoder.sentence_encoder"
    vocab_size, dim = state[f"{names}.embed_tokens.weight"].shape
    hidden = len(state[f"{names}.layers.0.fc1.weight"])
    transformer = cfg.get("transformer") or {}
    sizes = transformer.get("encoder") or {}
    refuse(transformer, {"activation_fn": "gelu", "no_scale_embedding": True, "layernorm_embedding": True})
    refuse(cfg, {"batch_norm_target_layer": False})
    head = [key for key in state if key.startswith("encoder.regression_head.") and key.endswith("weight")]
    return {
        "_target_": "d2v.models.data2vec.Data2Vec",
        "encoder": {
            "_target_": "d2v.nn.encoder.transformer_encoder",
            "frontends": {
                "text": {
                    "_target_": "d2v.nn.frontends.text.TextFrontend",
                    "embed_dim": dim,
                    "vocab_size": vocab_size,
                    "max_positions": len(state[f"{names}.embed_positions.weight"]) - PAD_ID - 1,
                    "pad_id": PAD_ID,
                    "drop_rate": transformer.get("dropout", 0.0),
                    "mask_id": cfg.get("mask_id", vocab_size - 1),  # fairseq adds it last
                }
            },
            "embed_dim": dim,
            "depth": _depth(state, f"{names}.layers"),
            "num_heads": cfg["heads"] if "heads" in cfg else sizes["attention_heads"],
            "mlp_ratio": hidden / dim,
            "norm_first": bool(sizes.get("normalize_before", False)),
            "norm_eps": 1e-5,
            "drop_rate": transformer.get("dropout", 0.0),
            "attn_drop_rate": transformer.get("attention_dropout", 0.0),
            "mlp_drop_rate": transformer.get("activation_dropout", 0.0),
            "post_mlp_drop_rate": transformer.get("dropout", 0.0),
            "layer_drop_rate": sizes.get("layerdrop", 0.0),
        },
        "heads": {"text": _head(dim, len(head))},
        **_targets(cfg),
        "teacher_scope": "transformer",
    }


def _node_of_1_speech(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> Node:
    refuse(cfg, {"extractor_mode": "layer_norm", "conv_bias": False, "layer_norm_first": False})
    refuse(cfg, {"batch_norm_target_layer": False, "group_norm_target_layer": False})
    if int(cfg.get("pos_conv_depth", 1)) < 2:
        raise ValueError("pos_conv_depth=1: positions of a single convolution with weight norm are not data2vec's")
    dim = cfg["encoder_embed_dim"]
    return {
        "_target_": "d2v.models.data2vec.Data2Vec",
        "encoder": {
            "_target_": "d2v.nn.encoder.transformer_encoder",
            "frontends": {
                "speech": {
                    "_target_": "d2v.nn.frontends.speech.SpeechFrontend",
                    "embed_dim": dim,
                    "num_heads": cfg["encoder_attention_heads"],
                    "conv_layers": parse_convs(cfg["conv_feature_layers"]),
                    "pos_depth": cfg["pos_conv_depth"],
                    "pos_kernel_size": max(3, cfg["conv_pos"] // cfg["pos_conv_depth"]),
                    "pos_groups": cfg["conv_pos_groups"],
                    "alibi": False,
                    "input_drop_rate": cfg.get("dropout", 0.0),
                    "zero_padding": "first",
                    "mask_token": True,
                }
            },
            "embed_dim": dim,
            "depth": cfg["encoder_layers"],
            "num_heads": cfg["encoder_attention_heads"],
            "mlp_ratio": cfg["encoder_ffn_embed_dim"] / dim,
            "norm_eps": 1e-5,
            "drop_rate": cfg.get("dropout", 0.0),
            "attn_drop_rate": cfg.get("attention_dropout", 0.0),
            "mlp_drop_rate": cfg.get("activation_dropout", 0.0),
            "post_mlp_drop_rate": cfg.get("dropout", 0.0),
            "layer_drop_rate": cfg.get("encoder_layerdrop", 0.0),
        },
        "heads": {"speech": _head(dim, 1)},
        **_targets(cfg),
        "teacher_scope": _scope_of_1_speech(cfg),
    }


def _scope_of_1_speech(cfg: Mapping[str, Any]) -> str:
    if cfg.get("ema_layers_only", True):
        return "transformer"
    return "context" if cfg.get("ema_transformer_only", True) else "encoder"


def _node_of_1_image(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> Node:
    dim, side = cfg["embed_dim"], cfg["image_size"] // cfg["patch_size"]
    shared = "encoder.rel_pos_bias.relative_position_bias_table" in state
    return {
        "_target_": "d2v.models.data2vec.Data2Vec",
        "encoder": {
            "_target_": "d2v.nn.encoder.transformer_encoder",
            "frontends": {
                "image": {
                    "_target_": "d2v.nn.frontends.image.BeitFrontend",
                    "embed_dim": dim,
                    "num_heads": cfg["num_heads"],
                    "img_size": cfg["image_size"],
                    "patch_size": cfg["patch_size"],
                    "in_chans": cfg.get("in_channels", 3),
                    "shared_bias": shared,
                }
            },
            "embed_dim": dim,
            "depth": cfg["depth"],
            "num_heads": cfg["num_heads"],
            "mlp_ratio": len(state["encoder.blocks.0.mlp.0.weight"]) / dim,
            "norm_first": True,
            "norm_eps": 1e-5,
            "attn_drop_rate": cfg.get("attention_dropout", 0.0),
            "drop_path_rate": cfg.get("drop_path", 0.0),
            "layer_scale_init": cfg["layer_scale_init_value"],
            "rel_pos_grid": None if shared else [side, side],
        },
        "heads": {"image": _head(dim, 0)},
        **_targets(cfg),
        "teacher_scope": "context" if cfg.get("ema_transformer_only", True) else "encoder",
    }


# Nodes of models of 1.0, by modality.
NODES_OF_1: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Node]] = {
    "text": _node_of_1_text,
    "speech": _node_of_1_speech,
    "image": _node_of_1_image,
}


def _head(dim: int, depth: int) -> Node:
    return {"_target_": "d2v.models.data2vec.RegressionHead", "embed_dim": dim, "depth": depth}


def _targets(cfg: Mapping[str, Any]) -> Node:
    """Return the settings of targets and loss in both versions. A loss scale of -1 (1.0) is 1 / sqrt(D), too."""
    scale = cfg.get("loss_scale")
    return {
        "average_top_k_layers": cfg["average_top_k_layers"],
        "layer_norms": [n for n in ("instance", "layer") if cfg.get(f"{n}_norm_target_layer")],
        "target_norms": [n for n in ("layer", "instance") if cfg.get(f"{n}_norm_targets")],
        "end_of_block_targets": bool(cfg.get("end_of_block_targets")),
        "loss_scale": None if scale is None or scale < 0 else scale,
        "loss_beta": cfg["loss_beta"],
    }


def _depth(state: Mapping[str, Tensor], layers: str) -> int:
    return 1 + max(int(key.removeprefix(f"{layers}.").split(".")[0]) for key in state if key.startswith(f"{layers}."))


def refuse(cfg: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raise ValueError if a key has another value than the only one that d2v supports; missing keys are accepted."""
    for key, value in only.items():
        if cfg.get(key, value) != value:
            raise ValueError(f"{key}={cfg[key]} in the checkpoint's configuration: d2v knows {key}={value} only")
