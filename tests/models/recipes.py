"""Both algorithms on every modality in small, with all the randomness that a recipe may have."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch

from d2v.models.data2vec import Data2Vec, RegressionHead
from d2v.models.data2vec2 import Data2Vec2
from d2v.models.mae import MaskedAutoencoder
from d2v.models.masked import MaskedModel
from d2v.nn.decoders import ConvDecoder1d, ConvDecoder2d, PixelDecoder
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.image import BeitFrontend, ImageFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.objective.masking import RandomMask
from d2v.types import Batch, TokenMask

DIM, HEADS, DEPTH, MASKS = 16, 4, 2, 2
CONVS = [[8, 10, 5], [8, 4, 2]]
NOISE = dict.fromkeys(
    ("drop_rate", "attn_drop_rate", "mlp_drop_rate", "post_mlp_drop_rate", "drop_path_rate", "layer_drop_rate"), 0.3
)
AUTOENCODER = "image-mae"
RECIPES = [f"{modality}-{version}" for modality in ("image", "speech", "text") for version in (1, 2)]


def _frontend(modality: str, version: int, noise: float) -> Frontend:
    if modality == "image":
        return BeitFrontend(DIM, HEADS, 12, 3, 2) if version == 1 else ImageFrontend(DIM, 12, 3, 2)
    if modality == "speech":
        zero = "first" if version == 1 else "every"
        return SpeechFrontend(
            DIM, HEADS, CONVS, 2, 3, 4, alibi=version == 2, input_drop_rate=noise, zero_padding=zero,
            mask_token=version == 1,
        )  # fmt: skip
    return TextFrontend(DIM, 40, 24, drop_rate=noise, input_drop_rate=noise, mask_id=39 if version == 1 else None)


def build(recipe: str, noise: bool = True, **options: Any) -> MaskedModel:
    """A model in training mode; dropout, drop path, LayerDrop and the decoder's noise are on unless told otherwise."""
    modality, _, version = recipe.partition("-")
    rate = 0.1 if noise else 0.0
    if recipe == AUTOENCODER:
        encoder = transformer_encoder(
            {"image": ImageFrontend(DIM, 12, 3, 2)}, DIM, DEPTH, HEADS, **(NOISE if noise else {})
        )
        decoder = PixelDecoder(DIM, 12, 3, 2, decoder_dim=8, depth=2, num_heads=2)
        return MaskedAutoencoder(encoder, {"image": decoder}).train()
    options = {"prenet_depth": int(version == "2"), **(NOISE if noise else {}), **options}
    image_1 = recipe == "image-1"
    encoder = transformer_encoder(
        {modality: _frontend(modality, int(version), rate)}, DIM, DEPTH, HEADS, norm_first=image_1,
        layer_scale_init=0.5 if image_1 else None, **options,
    )  # fmt: skip
    if version == "1":
        head = RegressionHead(DIM, {"image": 0, "speech": 1, "text": 2}[modality])
        scope = "context" if modality == "image" else "transformer"
        beta = 0.0 if modality == "speech" else 2.0
        return Data2Vec(encoder, {modality: head}, 2, loss_beta=beta, teacher_scope=scope).train()
    conv = ConvDecoder2d if modality == "image" else ConvDecoder1d
    decoder = conv(DIM, 8, 2, 3, 4, 0.01 if noise else 0.0, rate)
    scope = {"image": "encoder", "speech": "context", "text": "blocks"}[modality]
    cls_loss_weight = 0.1 if modality == "image" else 0.0
    return Data2Vec2(encoder, {modality: decoder}, 2, cls_loss_weight=cls_loss_weight, teacher_scope=scope).train()


def make_batch(recipe: str, seed: int = 0, samples: int = 4, size: int | None = None, padded: bool = True) -> Batch:
    """Fresh inputs and masks; clips and texts of ``size`` samples or tokens, padded but for the first."""
    modality = recipe.partition("-")[0]
    generator = torch.Generator().manual_seed(seed)
    if modality == "image":
        inputs, num_tokens = torch.randn(samples, 2, 12, 12, generator=generator), 16
        padded = False
    elif modality == "speech":
        inputs = torch.randn(samples, size or 200, generator=generator)
        num_tokens = SpeechFrontend(DIM, HEADS, CONVS, 1, 3, 4).token_grid(inputs)[0]
    else:
        num_tokens = size or 16
        inputs = torch.randint(4, 39, (samples, num_tokens), generator=generator)
    lengths = [num_tokens - (i % 3 if padded else 0) for i in range(samples)]
    grid = (4, 4) if modality == "image" else (num_tokens,)
    rngs = [np.random.default_rng([seed, i]) for i in range(samples)]
    # The last tokens of a sequence may be padding, which no mask covers.
    shortest = (min(lengths),) if len(grid) == 1 else grid
    drawn = np.pad(RandomMask(MASKS, 0.5)(shortest, rngs), ((0, 0), (0, num_tokens - prod(shortest))))
    mask = TokenMask.from_bool(torch.from_numpy(drawn), MASKS)
    batch = Batch(modality, inputs, torch.arange(samples) + samples * seed, mask)
    if not padded:
        return batch
    padding = torch.arange(num_tokens) >= torch.tensor(lengths)[:, None]
    if modality == "text":
        inputs.masked_fill_(padding, 1)
    return replace(batch, padding_mask=padding, step_size=7 + seed)
