"""Configurations of Hugging Face's data2vec 1.0 models (transformers, models/data2vec), as nodes that build ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from d2v.interop.huggingface.inputs import read_json
from d2v.interop.huggingface.names import FAMILIES, Family
from d2v.interop.imported import Node

# Defaults of transformers, which config.json leaves out.
_COMMON = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": {
        **_COMMON,
        "vocab_size": 30522,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
        "classifier_dropout": None,
    },
    "speech": {
        **_COMMON,
        "hidden_dropout": 0.1,
        "activation_dropout": 0.1,
        "attention_dropout": 0.1,
        "final_dropout": 0.1,
        "layerdrop": 0.1,
        "layer_norm_eps": 1e-5,
        "conv_dim": [512] * 7,
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "num_conv_pos_embedding_groups": 16,
        "conv_pos_kernel_size": 19,
        "num_conv_pos_embeddings": 5,
        "pad_token_id": 0,
    },
    "image": {
        **_COMMON,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "use_mask_token": False,
        "use_relative_position_bias": False,
        "use_shared_relative_position_bias": False,
        "layer_scale_init_value": 0.1,
        "drop_path_rate": 0.1,
        "use_mean_pooling": True,
    },
}
_SIDES = ("image_size", "patch_size")  # one number or two; encoder_node handles both
# Keys with a single supported value, which is also their default.
_ONLY: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    "speech": {
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "layer",
        "conv_bias": False,
        "add_adapter": False,
    },
    "image": {"hidden_act": "gelu", "use_absolute_position_embeddings": False},
}


def read_config(folder: Path) -> tuple[dict[str, Any], Family]:
    """Read config.json, including defaults, and return it with the family of its model.

    Raises:
        FileNotFoundError, ValueError: the file is missing or unreadable, or has a setting that d2v does not support.
    """
    path = folder / "config.json"
    written = read_json(path)
    family = FAMILIES.get(str(written.get("model_type")))
    if family is None:
        raise ValueError(f"{path}: model_type={written.get('model_type')!r}: d2v reads {', '.join(FAMILIES)}")
    config = {**_DEFAULTS[family.modality], **written}
    for key, only in _ONLY[family.modality].items():
        if config.get(key, only) != only:
            raise ValueError(f"{path}: {key}={config[key]!r}: d2v has {key}={only!r} only")
    for key, default in _DEFAULTS[family.modality].items():
        if default is not None and key not in _SIDES and not is_like(config[key], default):
            raise ValueError(f"{path}: {key}={config[key]!r}: must be of the form of {default!r}")
    return config, family


def is_like(value: Any, default: Any) -> bool:
    """Return whether a value has the type of its default: a flag, a number, or a list of numbers."""
    if isinstance(default, list):
        return isinstance(value, list) and all(is_like(item, default[0]) for item in value)
    if isinstance(default, bool):
        return isinstance(value, bool)
    return isinstance(value, int | type(default)) and not isinstance(value, bool)


def has_head(config: Mapping[str, Any], family: Family, folder: Path) -> bool:
    """Return whether the class in the configuration has a head that d2v supports.

    Raises:
        ValueError: the class has another head.
    """
    name = str((config.get("architectures") or [f"{family.name}Model"])[0])
    with_head = f"{family.name}{family.head}"
    left_out = [f"{family.name}ForMaskedLM"] if family.modality == "text" else []
    if name.startswith(f"{family.name}For") and name not in (with_head, *left_out):
        raise ValueError(
            f"{folder / 'config.json'}: architectures={[name]}: d2v reads "
            f"{', '.join([f'{family.name}Model', with_head, *left_out])}; "
            f"for the encoder alone, load it as {family.name}Model in transformers and save that"
        )
    return name == with_head


def _sizes(config: Mapping[str, Any]) -> Node:
    dim, hidden = config["hidden_size"], config["intermediate_size"]
    ratio = hidden / dim
    return {
        "embed_dim": dim,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim,  # tolerance for rounding
        "norm_eps": config["layer_norm_eps"],
    }


def _text_node(config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path) -> Node:
    pad_id, drop_rate = config["pad_token_id"], config["hidden_dropout_prob"]
    if pad_id is None:
        raise ValueError(f"{folder / 'config.json'}: pad_token_id=None: positions are counted from it")
    return {
        "_target_": "d2v.nn.encoder.transformer_encoder",
        "frontends": {
            "text": {
                "_target_": "d2v.nn.frontends.text.TextFrontend",
                "embed_dim": config["hidden_size"],
                "vocab_size": config["vocab_size"],
                "max_positions": config["max_position_embeddings"] - pad_id - 1,
                "pad_id": pad_id,
                "drop_rate": drop_rate,
                "mask_id": _mask_id(folder, config["vocab_size"]),
                "norm_eps": config["layer_norm_eps"],
            }
        },
        **_sizes(config),
        "drop_rate": drop_rate,
        "attn_drop_rate": config["attention_probs_dropout_prob"],
        "post_mlp_drop_rate": drop_rate,
    }


def _mask_id(folder: Path, vocab_size: int) -> int | None:
    """Return the id of the mask token from the tokenizer's files; None if there are none or it has no mask token."""
    path = folder / "tokenizer.json"
    for token in read_json(path).get("added_tokens", []) if path.is_file() else []:
        if token["content"] in ("<mask>", "[MASK]") and token["id"] < vocab_size:
            return int(token["id"])
    return None


def _speech_node(config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path) -> Node:
    drop_rate = config["hidden_dropout"]
    sizes = [config["conv_dim"], config["conv_kernel"], config["conv_stride"]]
    if len({len(size) for size in sizes}) != 1:
        raise ValueError(f"{folder / 'config.json'}: conv_dim, conv_kernel and conv_stride are not equally long")
    return {
        "_target_": "d2v.nn.encoder.transformer_encoder",
        "frontends": {
            "speech": {
                "_target_": "d2v.nn.frontends.speech.SpeechFrontend",
                "embed_dim": config["hidden_size"],
                "num_heads": config["num_attention_heads"],
                "conv_layers": [list(layer) for layer in zip(*sizes, strict=True)],
                "pos_depth": config["num_conv_pos_embeddings"],
                "pos_kernel_size": config["conv_pos_kernel_size"],
                "pos_groups": config["num_conv_pos_embedding_groups"],
                "alibi": False,
                "input_drop_rate": drop_rate,
                "zero_padding": "first",
                "mask_token": "masked_spec_embed" in state,
                "norm_eps": config["layer_norm_eps"],
            }
        },
        **_sizes(config),
        "drop_rate": drop_rate,
        "attn_drop_rate": config["attention_dropout"],
        "mlp_drop_rate": config["activation_dropout"],
        "post_mlp_drop_rate": drop_rate,
        "layer_drop_rate": config["layerdrop"],
    }


def _image_node(config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path) -> Node:
    img_size, patch_size = (_side(config, key, folder) for key in ("image_size", "patch_size"))
    side = img_size // patch_size
    scale = config["layer_scale_init_value"]
    return {
        "_target_": "d2v.nn.encoder.transformer_encoder",
        "frontends": {
            "image": {
                "_target_": "d2v.nn.frontends.image.BeitFrontend",
                "embed_dim": config["hidden_size"],
                "num_heads": config["num_attention_heads"],
                "img_size": img_size,
                "patch_size": patch_size,
                "in_chans": config["num_channels"],
                "shared_bias": config["use_shared_relative_position_bias"],
                "mask_token": config["use_mask_token"],
            }
        },
        **_sizes(config),
        "norm_first": True,
        "drop_rate": config["hidden_dropout_prob"],
        "attn_drop_rate": config["attention_probs_dropout_prob"],
        "post_mlp_drop_rate": config["hidden_dropout_prob"],
        "drop_path_rate": config["drop_path_rate"],
        "layer_scale_init": scale if scale and scale > 0 else None,
        "rel_pos_grid": [side, side] if config["use_relative_position_bias"] else None,
        "final_norm": not config["use_mean_pooling"],
    }


def encoder_node(config: Mapping[str, Any], family: Family, state: Mapping[str, Tensor], folder: Path) -> Node:
    """Return the node of the encoder.

    Args:
        config: configuration from :func:`read_config`.
        family: family from :func:`read_config`.
        state: parameters under Hugging Face's names.
        folder: folder of the model.
    """
    return {"text": _text_node, "speech": _speech_node, "image": _image_node}[family.modality](config, state, folder)


def _side(config: Mapping[str, Any], key: str, folder: Path) -> int:
    """Return the side of a square, which may be given as one number or two."""
    sides = set(config[key]) if isinstance(config[key], list) else {config[key]}
    if len(sides) != 1:
        raise ValueError(f"{folder / 'config.json'}: {key}={config[key]}: images and patches of d2v are square")
    return int(sides.pop())


def head_node(config: Mapping[str, Any], family: Family, state: Mapping[str, Tensor], folder: Path) -> Node:
    """Return the node of the head."""
    if family.modality == "image" and not config["use_mean_pooling"]:
        raise ValueError(
            f"{folder / 'config.json'}: use_mean_pooling=False: d2v classifies images by the mean of their patches "
            "only; for the encoder alone, load it as Data2VecVisionModel in transformers and save that"
        )
    outputs = state.get(f"{family.outputs}.bias")
    node = {
        "_target_": f"d2v.models.heads.{family.head_class}",
        "embed_dim": config["hidden_size"],
        "num_outputs": 1 if outputs is None else len(outputs),  # None is reported as missing
    }
    if family.modality == "image":
        return {**node, "norm_eps": config["layer_norm_eps"]}
    if family.modality == "speech":
        return {**node, "drop_rate": config["final_dropout"]}
    drop_rate = config["classifier_dropout"]
    return {**node, "drop_rate": config["hidden_dropout_prob"] if drop_rate is None else drop_rate}


def class_names(config: Mapping[str, Any], num_outputs: int) -> list[str]:
    """Return the names of classes by index; without names, those of transformers."""
    names = {int(key): str(value) for key, value in (config.get("id2label") or {}).items()}
    return [names.get(i, f"LABEL_{i}") for i in range(num_outputs)]
