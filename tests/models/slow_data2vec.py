"""data2vec 1.0 once more, from its description: a slow second implementation, and tiny models to compare it with.

It takes parameters under our names and nothing else from d2v: float64, one view at a time, elementary tensor operations
only, so autograd gives the gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v.models.data2vec import Data2Vec, RegressionHead
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.image import BeitFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.types import Batch, TeacherScope, TokenMask

Params = dict[str, Tensor]

DIM, HEADS, DEPTH = 16, 4, 3

IMAGE, PATCH, CHANNELS = 12, 3, 2

CONVS, POS_KERNEL, POS_GROUPS = [[8, 10, 5], [8, 4, 2]], 4, 4

VOCAB, PAD, MASK = 40, 1, 39

TOKENS = {"image": 16, "speech": 18, "text": 12}


@dataclass(frozen=True)
class Options:
    """A recipe in small."""

    modality: str
    num_masks: int = 1
    padded: bool = False
    scope: TeacherScope = "transformer"
    top_k: int = 2
    layer_norms: tuple[str, ...] = ()
    target_norms: tuple[str, ...] = ()
    end_of_block: bool = False
    scale: float | None = None
    beta: float = 0.0
    shared_bias: bool = True
    head_depth: int = 0
    eps: float = 1e-5


RECIPES = {
    "image": Options("image", scope="context", target_norms=("layer",), end_of_block=True, beta=2.0),
    "speech": Options("speech", layer_norms=("instance",), head_depth=1),
    "text": Options("text", layer_norms=("layer",), beta=4.0, scale=1.0, head_depth=2),
}


def perturb(module: nn.Module, std: float, seed: int) -> None:
    """Move every parameter, so that a skipped norm or a swapped bias shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)


def frontend(o: Options) -> Frontend:
    if o.modality == "image":
        return BeitFrontend(DIM, HEADS, IMAGE, PATCH, CHANNELS, shared_bias=o.shared_bias)
    if o.modality == "speech":
        return SpeechFrontend(
            DIM, HEADS, CONVS, 2, POS_KERNEL, POS_GROUPS, alibi=False, zero_padding="first", mask_token=True
        )
    return TextFrontend(DIM, VOCAB, 14, PAD, drop_rate=0.0, mask_id=MASK)


def build(o: Options, **options: Any) -> Data2Vec:
    """Our model, in training mode, with a teacher away from its student."""
    image = o.modality == "image"
    grid = (4, 4) if image and not o.shared_bias else None
    encoder = transformer_encoder(
        {o.modality: frontend(o)}, DIM, DEPTH, HEADS, mlp_ratio=2.0, norm_first=image, norm_eps=o.eps,
        layer_scale_init=0.5 if image else None, rel_pos_grid=grid, **options,
    )  # fmt: skip
    model = Data2Vec(
        encoder, {o.modality: RegressionHead(DIM, o.head_depth)}, o.top_k, o.layer_norms, o.target_norms,
        o.end_of_block, o.scale, o.beta, o.scope,
    )  # fmt: skip
    perturb(model.student, 0.2, 1)
    perturb(model.heads, 0.1, 2)
    perturb(model.teacher, 0.2, 3)
    model.update_teacher(1.0)  # what is not averaged is the student's
    return model.train()


def random_mask(samples: int, num_masks: int, lengths: list[int], num_tokens: int, num_masked: int = 6) -> TokenMask:
    bits = torch.zeros(samples * num_masks, num_tokens, dtype=torch.bool)
    for n, row in enumerate(bits):
        row[torch.randperm(lengths[n // num_masks])[:num_masked]] = True
    return TokenMask.from_bool(bits, num_masks)


def make_batch(o: Options, samples: int = 3, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    num_tokens = TOKENS[o.modality]
    lengths = [num_tokens - (3 * i if o.padded else 0) for i in range(samples)]
    inputs = {
        "image": torch.randn(samples, CHANNELS, IMAGE, IMAGE),
        "speech": torch.randn(samples, 200),
        "text": torch.randint(4, VOCAB - 1, (samples, num_tokens)),
    }[o.modality]
    padding = torch.arange(num_tokens) >= torch.tensor(lengths)[:, None]
    if o.modality == "text":
        inputs = inputs.masked_fill(padding, PAD)
    mask = random_mask(samples, o.num_masks, lengths, num_tokens, 5)
    return Batch(o.modality, inputs, torch.arange(samples), mask, padding if o.padded else None)


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Some of the samples."""
    mask = batch.mask
    assert mask is not None
    views = mask.mask[start * mask.num_masks : stop * mask.num_masks]
    padding = None if batch.padding_mask is None else batch.padding_mask[start:stop]
    ids = batch.sample_ids[start:stop]
    return Batch(batch.modality, batch.inputs[start:stop], ids, TokenMask.from_bool(views, mask.num_masks), padding)


def scale_shift(x: Tensor, dim: int, eps: float = 1e-5) -> Tensor:
    """Zero mean, unit biased variance along ``dim``."""
    mean = x.sum(dim, keepdim=True) / x.shape[dim]
    var = ((x - mean) ** 2).sum(dim, keepdim=True) / x.shape[dim]
    return (x - mean) / (var + eps).sqrt()


def layer_norm(x: Tensor, p: Params, name: str, eps: float) -> Tensor:
    return scale_shift(x, -1, eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: Tensor, p: Params, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def convolve(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """(T, C) -> (T', E) without padding, a group and a tap of the kernel at a time."""
    num_out = (len(x) - weight.shape[2]) // stride + 1
    outputs = []
    for inputs, w in zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True):
        total = torch.zeros(num_out, len(w), dtype=x.dtype)
        for tap in range(weight.shape[2]):
            total = total + inputs[tap : tap + (num_out - 1) * stride + 1 : stride] @ w[:, :, tap].T
        outputs.append(total)
    return torch.cat(outputs, 1)


def relative_bias(table: Tensor, side: int) -> Tensor:
    """(heads, 1 + T, 1 + T): an entry for every offset; the last three: CLS to patch, patch to CLS, CLS to CLS."""
    last, bias = len(table) - 1, torch.zeros(table.shape[1], 1 + side**2, 1 + side**2, dtype=table.dtype)
    for i in range(1 + side**2):
        for j in range(1 + side**2):
            if i and j:
                down, right = (i - 1) // side - (j - 1) // side, (i - 1) % side - (j - 1) % side
                entry = (down + side - 1) * (2 * side - 1) + right + side - 1
            else:
                entry = last if i == j else last - 1 if i else last - 2
            bias[:, i, j] = table[entry]
    return bias


def attention(x: Tensor, p: Params, name: str, bias: Tensor) -> Tensor:
    width, qkv, outputs = DIM // HEADS, linear(x, p, f"{name}.qkv"), []
    for h in range(HEADS):
        q, k, v = (qkv[:, part * DIM + h * width : part * DIM + (h + 1) * width] for part in range(3))
        weights = (q @ k.T / math.sqrt(width) + bias[h]).exp()
        outputs.append(weights / weights.sum(1, keepdim=True) @ v)
    return linear(torch.cat(outputs, 1), p, f"{name}.proj")


def block(x: Tensor, p: Params, name: str, o: Options, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the MLP's before its residual: pre-norm with layer scale for images, else post-norm."""
    if f"{name}.rel_pos.table" in p:
        bias = bias + relative_bias(p[f"{name}.rel_pos.table"], IMAGE // PATCH)
    if o.modality == "image":
        attended = attention(layer_norm(x, p, f"{name}.norm1", o.eps), p, f"{name}.attn", bias)
        x = x + p[f"{name}.scale1.gamma"] * attended
        hidden = gelu(linear(layer_norm(x, p, f"{name}.norm2", o.eps), p, f"{name}.mlp.fc1"))
        mlp = linear(hidden, p, f"{name}.mlp.fc2")
        return x + p[f"{name}.scale2.gamma"] * mlp, mlp
    x = layer_norm(x + attention(x, p, f"{name}.attn", bias), p, f"{name}.norm1", o.eps)
    mlp = linear(gelu(linear(x, p, f"{name}.mlp.fc1")), p, f"{name}.mlp.fc2")
    return layer_norm(x + mlp, p, f"{name}.norm2", o.eps), mlp


def embed(inputs: Tensor, p: Params, o: Options) -> Tensor:
    """One sample's local features (T, D)."""
    f = f"frontends.{o.modality}"
    if o.modality == "image":
        side, tokens = IMAGE // PATCH, []
        for t in range(side**2):
            r, c = t // side * PATCH, t % side * PATCH
            patch = inputs.double()[:, r : r + PATCH, c : c + PATCH]
            tokens.append((p[f"{f}.proj.weight"] * patch).sum((1, 2, 3)) + p[f"{f}.proj.bias"])
        return torch.stack(tokens)
    if o.modality == "speech":
        x = inputs.double()[:, None]
        for i, (_, _, stride) in enumerate(CONVS):
            x = gelu(layer_norm(convolve(x, p[f"{f}.convs.{i}.weight"], stride), p, f"{f}.conv_norms.{i}", 1e-5))
        return linear(layer_norm(x, p, f"{f}.norm", 1e-5), p, f"{f}.proj")
    tokens, place = [], PAD
    for token in inputs.tolist():
        place += token != PAD
        where = PAD if token == PAD else place
        tokens.append(p[f"{f}.token_embed.weight"][token] + p[f"{f}.pos_embed.weight"][where])
    return layer_norm(torch.stack(tokens), p, f"{f}.norm", 1e-5)


def encode(x: Tensor, p: Params, o: Options, padding: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """(T, D) local features -> features, and what each block gives to the targets, both without CLS."""
    f, prefix = f"frontends.{o.modality}", 0
    if o.modality == "image":
        x, prefix = torch.cat([p[f"{f}.prefix_tokens"], x]), 1
    if o.modality == "speech":
        y = torch.stack([x[t] * (not pad) for t, pad in enumerate(padding)])
        for i in range(2):
            name, zeros = f"{f}.positions.convs.{i}", torch.zeros(POS_KERNEL // 2, DIM, dtype=x.dtype)
            y = convolve(torch.cat([zeros, y, zeros]), p[f"{name}.weight"], 1, POS_GROUPS) + p[f"{name}.bias"]
            y = gelu(scale_shift(y[: len(x)], -1))  # an even kernel makes one frame too many
        x = torch.stack([x[t] * (not pad) for t, pad in enumerate(padding)]) + y
        x = layer_norm(x, p, "input_norms.speech", o.eps)
    bias = torch.zeros(HEADS, len(x), len(x), dtype=x.dtype)
    for t, pad in enumerate(padding):
        if pad:
            bias[:, :, prefix + t] = -math.inf
    if f"{f}.rel_pos.table" in p:
        bias = bias + relative_bias(p[f"{f}.rel_pos.table"], IMAGE // PATCH)
    layers = []
    for i in range(DEPTH):
        x, mlp = block(x, p, f"trunk.blocks.{i}", o, bias)
        layers.append((x if o.end_of_block else mlp)[prefix:])
    if o.modality == "image":
        x = layer_norm(x, p, "trunk.norm", o.eps)
    return x[prefix:], layers


def averaged(name: str, o: Options) -> bool:
    """Whether a teacher's parameter is an average, from the description of the scopes."""
    local = {
        "image": ("proj", "prefix_tokens", "mask_token"),
        "speech": ("convs", "conv_norms", "norm", "proj", "mask_token"),
        "text": ("token_embed", "pos_embed", "norm"),
    }[o.modality]
    is_frontend = name.startswith("frontends.")
    return {
        "encoder": True,
        "context": not (is_frontend and name.split(".")[2] in local),
        "transformer": not is_frontend,
        "blocks": name.startswith("trunk."),
    }[o.scope]


@dataclass
class Result:
    loss: Tensor
    targets: Tensor  # (B, T, D)
    pred: Tensor  # (masked, D)
    features: Tensor  # (B, D)


def run(student: Params, heads: Params, teacher: Params, batch: Batch, o: Options) -> Result:
    """One pass: targets from the whole sample, then every view with its masked tokens replaced."""
    assert batch.mask is not None
    teacher = {name: teacher[name] if averaged(name, o) else student[name] for name in student}
    loss, targets, preds, features = torch.zeros((), dtype=torch.float64), [], [], []
    for b, inputs in enumerate(batch.inputs):
        padding = [False] * TOKENS[o.modality] if batch.padding_mask is None else batch.padding_mask[b].tolist()
        with torch.no_grad():
            _, layers = encode(embed(inputs, teacher, o), teacher, o, padding)
            total = torch.zeros_like(layers[0])
            for layer in layers[DEPTH - o.top_k :]:
                for norm in o.layer_norms:
                    layer = scale_shift(layer, 0 if norm == "instance" else 1)
                total = total + layer / o.top_k
            for norm in o.target_norms:
                total = scale_shift(total, 0 if norm == "instance" else 1)
            targets.append(total)
        for m in range(o.num_masks):
            hidden = batch.mask.mask[b * o.num_masks + m].tolist()
            if o.modality == "text":
                ids = torch.tensor([MASK if h else i for i, h in zip(inputs.tolist(), hidden, strict=True)])
                x = embed(ids, student, o)
            else:
                token = student[f"frontends.{o.modality}.mask_token"]
                x = torch.stack([token if h else f for f, h in zip(embed(inputs, student, o), hidden, strict=True)])
            x, _ = encode(x, student, o, padding)
            if m == 0:
                features.append(torch.stack([f for f, h in zip(x, hidden, strict=True) if not h]).mean(0))
            for t in [t for t, h in enumerate(hidden) if h]:
                pred = x[t]
                for i in range(o.head_depth):
                    pred = linear(pred if i == 0 else gelu(pred), heads, f"{o.modality}.{2 * i}")
                d = (pred - total[t]).abs()
                d = torch.where(d < o.beta, d * d / (2 * o.beta), d - o.beta / 2) if o.beta else d * d
                loss = loss + d.sum() * (1 / math.sqrt(DIM) if o.scale is None else o.scale)
                preds.append(pred)
    return Result(loss, torch.stack(targets), torch.stack(preds), torch.stack(features))


def parameters(module: nn.Module, trained: bool = False) -> Params:
    return {name: p.detach().double().requires_grad_(trained) for name, p in module.named_parameters()}


each_modality = pytest.mark.parametrize("o", RECIPES.values(), ids=list(RECIPES))
