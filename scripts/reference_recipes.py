"""Recipes of the authors' code that golden cases start from: the released ones of data2vec 2.0, defaults of 1.0."""

from __future__ import annotations

from typing import Any

# What the reference's recipes and the defaults of its code say where a case's overrides are silent.
COMMON: dict[str, Any] = {
    "embed_dim": 768,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "layer_norm_first": False,
    "ema_end_decay": 0.99999,
    "ema_anneal_end_step": 100_000,
    "instance_norm_target_layer": True,
    "layer_norm_target_layer": False,
    "layer_norm_targets": False,
    "instance_norm_targets": False,
    "end_of_block_targets": False,
    "loss_beta": 0.0,
    "loss_scale": None,
    "cls_loss": 0.0,
}
IMAGE_RECIPE: dict[str, Any] = {
    **COMMON,
    "depth": 10,
    "norm_eps": 1e-6,
    "average_top_k_layers": 10,
    "clone_batch": 16,
    "ema_decay": 0.9998,
    "layer_norm_targets": True,
    "cls_loss": 0.01,
    "modalities": {
        "image": {
            "input_size": 224,
            "patch_size": 16,
            "in_chans": 3,
            "prenet_depth": 2,
            "num_extra_tokens": 1,
            "mask_noise_std": 0.01,
            "decoder": {"decoder_dim": 768, "decoder_groups": 16, "decoder_kernel": 3, "decoder_layers": 6},
        }
    },
}
AUDIO_RECIPE: dict[str, Any] = {
    **COMMON,
    "depth": 12,
    "norm_eps": 1e-5,
    "average_top_k_layers": 8,
    "clone_batch": 8,
    "ema_decay": 0.999,
    "ema_anneal_end_step": 75_000,
    "modalities": {
        "audio": {
            "feature_encoder_spec": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            "conv_pos_depth": 5,
            "conv_pos_width": 95,
            "conv_pos_groups": 16,
            "prenet_depth": 0,
            "num_extra_tokens": 0,
            "mask_noise_std": 0.01,
            "use_alibi_encoder": True,
            "decoder": {"decoder_dim": 384, "decoder_groups": 16, "decoder_kernel": 7, "decoder_layers": 4},
        }
    },
}
TEXT_RECIPE: dict[str, Any] = {
    **COMMON,
    "depth": 12,
    "norm_eps": 1e-5,
    "average_top_k_layers": 12,
    "clone_batch": 8,
    "ema_decay": 0.9999,
    "loss_scale": 1.0,
    "modalities": {
        "text": {
            "max_source_positions": 512,
            "prenet_depth": 0,
            "num_extra_tokens": 0,
            "mask_noise_std": 0.01,
            "decoder": {
                "decoder_dim": 768,
                "decoder_groups": 1,
                "decoder_kernel": 9,
                "decoder_layers": 5,
                "decoder_residual": False,
                "projection_layers": 2,
                "projection_ratio": 2.0,
            },
        }
    },
}
LARGE_IMAGE: dict[str, Any] = {
    "depth": 24,
    "embed_dim": 1024,
    "num_heads": 16,
    "average_top_k_layers": 18,
    "ema_anneal_end_step": 150_000,
    "modalities": {
        "image": {
            "prenet_depth": 0,
            "decoder": {"decoder_dim": 1024, "decoder_kernel": 5, "decoder_layers": 3},
        }
    },
}
# The released recipes, as bases and differences from them; golden cases name the recipe they started from.
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base_images_only_task": (IMAGE_RECIPE, {}),
    "large_images_only_task": (IMAGE_RECIPE, LARGE_IMAGE),
    "huge_images14_only_task": (
        IMAGE_RECIPE,
        {
            **LARGE_IMAGE,
            "depth": 32,
            "embed_dim": 1280,
            "average_top_k_layers": 24,
            "ema_end_decay": 1.0,
            "ema_anneal_end_step": 300_000,
            "modalities": {"image": {**LARGE_IMAGE["modalities"]["image"], "patch_size": 14}},
        },
    ),
    "base_audio_only_task": (AUDIO_RECIPE, {}),
    "large_audio_only_task": (
        AUDIO_RECIPE,
        {
            "depth": 16,
            "embed_dim": 1024,
            "num_heads": 16,
            "clone_batch": 12,
            "ema_decay": 0.9997,
            "ema_end_decay": 1.0,
            "ema_anneal_end_step": 300_000,
            "average_top_k_layers": 16,
            "modalities": {"audio": {"prenet_depth": 8, "decoder": {"decoder_dim": 768}}},
        },
    ),
    "eat": (COMMON, {}),  # its case states all settings
    "base_text_only_task": (TEXT_RECIPE, {}),
    "large_text_only_task": (
        TEXT_RECIPE,
        {
            "depth": 24,
            "embed_dim": 1024,
            "num_heads": 16,
            "average_top_k_layers": 24,
            "instance_norm_target_layer": False,
            "layer_norm_target_layer": True,
            "instance_norm_targets": True,
        },
    ),
}


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``overrides`` laid over it, recursively."""
    merged = dict(base)
    for key, value in overrides.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


# Layouts of recipes that are not data2vec's own.
LAYOUTS = {"eat": "eat"}

# What 1.0's golden cases say of the kinds of model, where their overrides are silent.
RECIPES_OF_1: dict[str, tuple[str, dict[str, Any]]] = {
    "Data2VecTextModel": ("text", {"loss_beta": 4.0, "loss_scale": 1.0}),
    "Data2VecAudioModel": ("speech", {"loss_beta": 0.0}),
    "Data2VecVisionModel": ("image", {"loss_beta": 2.0}),
}
