"""Configurations of the authors' code for models of d2v, which their code needs to read an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from d2v.interop.fairseq.names import MODALITIES
from d2v.nn.frontends.speech import CONV_LAYERS

FrontendRecipe = Callable[[Mapping[str, Any]], dict[str, Any]]


def recipe_of(
    node: Mapping[str, Any],
    modalities: Mapping[str, str] = MODALITIES,
    frontends: Mapping[str, FrontendRecipe] | None = None,
) -> dict[str, Any]:
    """Return the authors' configuration of a 2.0 model from our node: the inverse of ``node_of_2``.

    Args:
        node: builds the model.
        modalities: our names of the modalities, by theirs.
        frontends: configurations of frontends, by our modality; None for those of data2vec.

    Raises:
        ValueError: the authors' code has no such model.
    """
    encoder = node["encoder"]
    if len(encoder["frontends"]) != 1:
        raise ValueError("format=fairseq: models of several modalities are not written")
    ((modality, frontend),) = encoder["frontends"].items()
    node = {**node, **(node.get("targets") or {}).get(modality, {})}
    theirs = next(name.lower() for name, ours in modalities.items() if ours == modality)
    for part, key in (
        (encoder, "layer_scale_init"),
        (encoder, "rel_pos_grid"),
        (encoder, "final_norm"),
        (frontend, "mask_id"),
    ):
        if part.get(key) is not None:
            raise ValueError(f"format=fairseq: {key}={part[key]} is not of data2vec 2.0")
    if frontend.get("mask_token") or not frontend.get("fixed_positions", True):
        raise ValueError("format=fairseq: a frontend of data2vec 1.0 is not of data2vec 2.0")
    decoder = node["decoders"][modality]
    own: dict[str, Any] = {
        "type": theirs.upper(),
        "prenet_depth": encoder.get("prenet_depth", 0),
        "prenet_dropout": frontend.get("input_drop_rate", 0.0),
        "prenet_layerdrop": encoder.get("layer_drop_rate", 0.0),
        "num_extra_tokens": frontend.get("num_prefix_tokens", 1 if theirs == "image" else 0),
        "mask_noise_std": decoder.get("mask_noise_std", 0.01),
        "ema_local_encoder": node["teacher_scope"] == "encoder",
        "decoder": {
            "decoder_dim": decoder.get("decoder_dim", 384),
            "decoder_groups": decoder.get("groups", 16),
            "decoder_kernel": decoder.get("kernel_size", 3),
            "decoder_layers": decoder.get("depth", 6),
            "input_dropout": decoder.get("input_drop_rate", 0.0),
            "decoder_residual": decoder.get("residual", True),
            "projection_layers": decoder.get("proj_depth", 1),
            "projection_ratio": decoder.get("proj_ratio", 2.0),
        },
        **(frontends or _RECIPES_OF_FRONTENDS)[modality](frontend),
    }
    layer_norms, target_norms = node.get("layer_norms", ["instance"]), node.get("target_norms", ["layer"])
    for norms, order in ((layer_norms, ["instance", "layer"]), (target_norms, ["layer", "instance"])):
        if list(norms) != [norm for norm in order if norm in norms]:
            raise ValueError(f"format=fairseq: norms of targets in the order {list(norms)} are not the authors'")
    # The authors' weight of the CLS loss grows with the images of a device: this is ours for one view at a time.
    return {
        "_name": "data2vec_multi",
        "supported_modality": theirs.upper(),
        "modalities": {theirs: own},
        "embed_dim": encoder["embed_dim"],
        "depth": encoder["depth"],
        "num_heads": encoder["num_heads"],
        "mlp_ratio": encoder.get("mlp_ratio", 4.0),
        "layer_norm_first": encoder.get("norm_first", False),
        "norm_eps": encoder.get("norm_eps", 1e-6),
        "norm_affine": True,
        "encoder_dropout": encoder.get("drop_rate", 0.0),
        "attention_dropout": encoder.get("attn_drop_rate", 0.0),
        "activation_dropout": encoder.get("mlp_drop_rate", 0.0),
        "post_mlp_drop": encoder.get("post_mlp_drop_rate", 0.0),
        "start_drop_path_rate": 0.0,
        "end_drop_path_rate": encoder.get("drop_path_rate", 0.0),
        "layerdrop": encoder.get("layer_drop_rate", 0.0),
        "dropout_input": 0.0,
        "average_top_k_layers": node["average_top_k_layers"],
        "instance_norm_target_layer": "instance" in layer_norms,
        "layer_norm_target_layer": "layer" in layer_norms,
        "instance_norm_targets": "instance" in target_norms,
        "layer_norm_targets": "layer" in target_norms,
        "batch_norm_target_layer": False,
        "end_of_block_targets": node.get("end_of_block_targets", False),
        "loss_scale": node.get("loss_scale"),
        "loss_beta": node.get("loss_beta", 0.0),
        "cls_loss": node.get("cls_loss_weight", 0.0),
        "clone_batch": 1,
        "ema_encoder_only": node["teacher_scope"] == "blocks",
    }


def _recipe_of_images(frontend: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_size": frontend.get("img_size", 224),
        "patch_size": frontend.get("patch_size", 16),
        "in_chans": frontend.get("in_chans", 3),
        "embed_dim": frontend["embed_dim"],
        "fixed_positions": True,
    }


def _recipe_of_speech(frontend: Mapping[str, Any]) -> dict[str, Any]:
    depth, kernel_size = frontend.get("pos_depth", 5), frontend.get("pos_kernel_size", 19)
    layers = frontend.get("conv_layers") or CONV_LAYERS
    alibi = frontend.get("alibi", True)
    return {
        "extractor_mode": "layer_norm",
        "feature_encoder_spec": " + ".join(f"[({c}, {k}, {s})]" for c, k, s in layers),
        "conv_pos_depth": depth,
        "conv_pos_width": depth * kernel_size,
        "conv_pos_groups": frontend.get("pos_groups", 16),
        "conv_pos_pre_ln": False,
        "use_alibi_encoder": alibi,
        "learned_alibi_scale": alibi,
        "learned_alibi_scale_per_head": alibi,
    }


def _recipe_of_text(frontend: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "max_source_positions": frontend.get("max_positions", 512),
        "dropout": frontend.get("drop_rate", 0.1),
        "learned_pos": True,
        "layernorm_embedding": True,
        "no_scale_embedding": True,
        "no_token_positional_embeddings": False,
    }


_RECIPES_OF_FRONTENDS: dict[str, FrontendRecipe] = {
    "image": _recipe_of_images,
    "speech": _recipe_of_speech,
    "text": _recipe_of_text,
}
