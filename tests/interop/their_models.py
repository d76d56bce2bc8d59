"""Small models of transformers and of ours, and what both must share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v.nn.encoder import Encoder
from d2v.types import Batch, EncoderOutput, num_frames

transformers = pytest.importorskip("transformers")

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
        batch = Batch(modality, next(iter(inputs.values())), torch.arange(2), padding_mask=padding)
        return encoder(batch, return_layers=True)


def their_output(model: nn.Module, modality: str) -> Any:
    with torch.no_grad():
        return model(**inputs_of(modality)[0])


def assert_close(ours: Tensor, theirs: Tensor, padding: Tensor | None = None) -> None:
    """Where tokens are real."""
    if padding is not None:
        ours, theirs = ours[~padding], theirs[~padding]
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


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
