"""data2vec 2.0 for images, once more, from its description: float64, one sample and one mask at a time.

Nothing here comes from d2v. Parameters carry the names of the authors' checkpoints. Only elementary tensor operations
are used (sums, products, exp, erf, indexing), so autograd gives the gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MODALITY = "modality_encoders.IMAGE."
Params = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """A tiny model; names follow the reference's recipes."""

    input_size: int = 12
    patch_size: int = 3
    in_chans: int = 2
    embed_dim: int = 16
    num_heads: int = 4
    depth: int = 3
    prenet_depth: int = 1
    mlp_hidden: int = 32
    num_extra_tokens: int = 1
    norm_eps: float = 1e-6
    layer_norm_first: bool = False
    average_top_k_layers: int = 2
    num_masks: int = 2
    layer_norms: tuple[str, ...] = ("instance",)
    target_norms: tuple[str, ...] = ("layer",)
    end_of_block_targets: bool = False
    loss_beta: float = 0.0
    loss_scale: float | None = None
    cls_loss: float = 0.01  # the reference's weight, of every view
    decoder_dim: int = 8
    decoder_groups: int = 2
    decoder_kernel: int = 3
    decoder_layers: int = 3

    @property
    def side(self) -> int:
        return self.input_size // self.patch_size


def random_parameters(o: Options, generator: torch.Generator) -> Params:
    """A student whose norms, biases and weights are all away from their initial values."""

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * std

    p: Params = {}

    def linear(name: str, out: int, *rest: int) -> None:
        fan_in = math.prod(rest)
        p[f"{name}.weight"] = normal(out, *rest, std=fan_in**-0.5)
        p[f"{name}.bias"] = normal(out, std=0.3)

    def norm(name: str) -> None:
        p[f"{name}.weight"] = 1 + normal(o.embed_dim, std=0.3)
        p[f"{name}.bias"] = normal(o.embed_dim, std=0.3)

    def block(name: str) -> None:
        linear(f"{name}.attn.qkv", 3 * o.embed_dim, o.embed_dim)
        linear(f"{name}.attn.proj", o.embed_dim, o.embed_dim)
        norm(f"{name}.norm1")
        linear(f"{name}.mlp.fc1", o.mlp_hidden, o.embed_dim)
        linear(f"{name}.mlp.fc2", o.embed_dim, o.mlp_hidden)
        norm(f"{name}.norm2")

    linear(f"{MODALITY}local_encoder.proj", o.embed_dim, o.in_chans, o.patch_size, o.patch_size)
    if o.num_extra_tokens:
        p[f"{MODALITY}extra_tokens"] = normal(1, o.num_extra_tokens, o.embed_dim, std=1.0)
    if o.layer_norm_first:
        norm("norm")
    else:
        norm(f"{MODALITY}context_encoder.norm")
    for i in range(o.prenet_depth):
        block(f"{MODALITY}context_encoder.blocks.{i}")
    for i in range(o.depth):
        block(f"blocks.{i}")
    width = o.embed_dim
    for i in range(o.decoder_layers):
        linear(
            f"{MODALITY}decoder.blocks.{i}.0",
            o.decoder_dim,
            width // o.decoder_groups,
            o.decoder_kernel,
            o.decoder_kernel,
        )
        width = o.decoder_dim
    linear(f"{MODALITY}decoder.proj", o.embed_dim, width)
    return p


def in_teacher(name: str) -> bool:
    return f"{MODALITY}decoder" not in name


def positions(o: Options) -> Tensor:
    """(T, D): first half column, second half row; each: sines then cosines of pos / 10000^(i / (D/4))."""
    quarter = o.embed_dim // 4
    rows = []
    for row in range(o.side):
        for column in range(o.side):
            token = []
            for coordinate in (column, row):
                angles = [coordinate / 10000 ** (i / quarter) for i in range(quarter)]
                token += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(token)
    return torch.tensor(rows, dtype=torch.float64)


def scale_shift(x: Tensor, eps: float, dim: int) -> Tensor:
    """Zero mean, unit biased variance along ``dim``."""
    n = x.shape[dim]
    mean = x.sum(dim, keepdim=True) / n
    var = ((x - mean) ** 2).sum(dim, keepdim=True) / n
    return (x - mean) / (var + eps).sqrt()


def layer_norm(x: Tensor, p: Params, name: str, eps: float) -> Tensor:
    return scale_shift(x, eps, -1) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: Tensor, p: Params, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attention(x: Tensor, p: Params, name: str, heads: int) -> Tensor:
    """One sequence (T, D); the qkv weight holds q, k, v, each split into heads."""
    dim = x.shape[1]
    width = dim // heads
    qkv = linear(x, p, f"{name}.qkv")
    outputs = []
    for h in range(heads):
        q, k, v = (qkv[:, part * dim + h * width : part * dim + (h + 1) * width] for part in range(3))
        logits = q @ k.T / math.sqrt(width)
        weights = (logits - logits.detach().max(dim=1, keepdim=True).values).exp()
        outputs.append(weights / weights.sum(dim=1, keepdim=True) @ v)
    return linear(torch.cat(outputs, dim=1), p, f"{name}.proj")


def block(x: Tensor, p: Params, name: str, o: Options) -> tuple[Tensor, Tensor]:
    """(T, D) -> the block's output and its MLP's output."""

    def mlp(z: Tensor) -> Tensor:
        return linear(gelu(linear(z, p, f"{name}.mlp.fc1")), p, f"{name}.mlp.fc2")

    if o.layer_norm_first:
        x = x + attention(layer_norm(x, p, f"{name}.norm1", o.norm_eps), p, f"{name}.attn", o.num_heads)
        y = mlp(layer_norm(x, p, f"{name}.norm2", o.norm_eps))
        return x + y, y
    x = layer_norm(x + attention(x, p, f"{name}.attn", o.num_heads), p, f"{name}.norm1", o.norm_eps)
    y = mlp(x)
    return layer_norm(x + y, p, f"{name}.norm2", o.norm_eps), y


def embed(image: Tensor, p: Params, o: Options) -> list[Tensor]:
    """One image (C, H, W) -> its T tokens, each (D,), with positions."""
    size, where = o.patch_size, positions(o)
    tokens = []
    for row in range(o.side):
        for column in range(o.side):
            patch = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            features = (p[f"{MODALITY}local_encoder.proj.weight"] * patch).sum((1, 2, 3))
            tokens.append(features + p[f"{MODALITY}local_encoder.proj.bias"] + where[row * o.side + column])
    return tokens


def context(tokens: list[Tensor], p: Params, o: Options) -> Tensor:
    """Visible tokens -> what enters the shared blocks, extra tokens first."""
    extra = list(p[f"{MODALITY}extra_tokens"][0]) if o.num_extra_tokens else []
    x = torch.stack(extra + tokens)
    if not o.layer_norm_first:
        x = layer_norm(x, p, f"{MODALITY}context_encoder.norm", o.norm_eps)
    for i in range(o.prenet_depth):
        x, _ = block(x, p, f"{MODALITY}context_encoder.blocks.{i}", o)
    return x


def encode(tokens: list[Tensor], p: Params, o: Options) -> tuple[Tensor, list[Tensor]]:
    """Features of one (partly) visible image, and every shared block's raw material for the targets."""
    x, layers = context(tokens, p, o), []
    for i in range(o.depth):
        x, y = block(x, p, f"blocks.{i}", o)
        layers.append((x if o.end_of_block_targets else y)[o.num_extra_tokens :])
    return layer_norm(x, p, "norm", o.norm_eps) if o.layer_norm_first else x, layers


def normalize(x: Tensor, norms: tuple[str, ...]) -> Tensor:
    for norm in norms:
        x = scale_shift(x, 1e-5, 0 if norm == "instance" else 1)
    return x


def convolve(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """(H, W, C) -> (H, W, E), zeros outside the grid: one group and one place of the kernel at a time."""
    height, width, channels = x.shape
    kernel, half = weight.shape[2], weight.shape[2] // 2
    padded = torch.zeros(height + 2 * half, width + 2 * half, channels, dtype=x.dtype)
    padded[half : half + height, half : half + width] = x
    outputs = []
    for inputs, w, c in zip(padded.chunk(groups, 2), weight.chunk(groups, 0), bias.chunk(groups, 0), strict=True):
        total = c.expand(height, width, -1)
        for a in range(kernel):
            for b in range(kernel):
                total = total + inputs[a : a + height, b : b + width] @ w[:, :, a, b].T
        outputs.append(total)
    return torch.cat(outputs, 2)


def decode(visible: list[Tensor], hidden: list[bool], p: Params, o: Options) -> Tensor:
    """Predictions (T - K, D) of one view, with noise of standard deviation 0 at hidden places."""
    queue = list(visible)
    tokens = [torch.zeros(o.embed_dim, dtype=torch.float64) if h else queue.pop(0) for h in hidden]
    x = torch.stack(tokens).reshape(o.side, o.side, -1)
    for i in range(o.decoder_layers):
        name = f"{MODALITY}decoder.blocks.{i}.0"
        y = convolve(x, p[f"{name}.weight"], p[f"{name}.bias"], o.decoder_groups)
        y = gelu(scale_shift(y, 1e-5, -1))
        x = x + y if x.shape == y.shape else y
    x = x.reshape(o.side**2, -1)
    return linear(torch.stack([x[t] for t, h in enumerate(hidden) if h]), p, f"{MODALITY}decoder.proj")


def element_loss(pred: Tensor, target: Tensor, o: Options) -> Tensor:
    """Sum over features of one token's loss."""
    scale = 1 / math.sqrt(o.embed_dim) if o.loss_scale is None else o.loss_scale
    d = (pred - target).abs()
    if o.loss_beta == 0:
        return (d * d).sum() * scale
    return torch.where(d < o.loss_beta, d * d / (2 * o.loss_beta), d - o.loss_beta / 2).sum() * scale


@dataclass
class Result:
    """Everything a golden case records of one pass."""

    layers: Tensor  # (depth, B, T, D)
    target: Tensor  # (B, T, D)
    target_masked: Tensor  # (masked tokens, D)
    pred: Tensor  # (masked tokens, D)
    regression: Tensor  # sums, not yet divided by the masked tokens
    cls: Tensor
    count: int
    features: Tensor  # (B, D)

    @property
    def loss(self) -> Tensor:
        return (self.regression + self.cls) / self.count


def run(student: Params, teacher: Params, source: Tensor, masks: Tensor, o: Options) -> Result:
    """One pass over a batch.

    Args:
        student: every parameter.
        teacher: those of the encoder.
        source: (B, C, H, W) images.
        masks: (B * M, T) bool, True = hidden, sample-major.
        o: the model.
    """
    source = source.double()
    layers, targets, preds, wanted, features = [], [], [], [], []
    regression, cls = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for b, image in enumerate(source):
        with torch.no_grad():
            _, outputs = encode(embed(image, teacher, o), teacher, o)
            layers.append(torch.stack(outputs))
            top = [normalize(y, o.layer_norms) for y in outputs[len(outputs) - o.average_top_k_layers :]]
            target = normalize(sum(top[1:], top[0]) / len(top), o.target_norms)
            targets.append(target)
        tokens = embed(image, student, o)
        for m in range(o.num_masks):
            hidden = masks[b * o.num_masks + m].tolist()
            x, _ = encode([t for t, h in zip(tokens, hidden, strict=True) if not h], student, o)
            visible = x[o.num_extra_tokens :]
            if m == 0:
                features.append(visible.sum(0) / len(visible))
            pred = decode(list(visible), hidden, student, o)
            aim = torch.stack([target[t] for t, h in enumerate(hidden) if h])
            for i in range(len(pred)):
                regression = regression + element_loss(pred[i], aim[i], o)
            if o.cls_loss:
                cls = cls + element_loss(x[o.num_extra_tokens - 1], target.sum(0) / len(target), o)
            preds.append(pred)
            wanted.append(aim)
    count = int(masks.sum())
    return Result(
        torch.stack(layers, 1),
        torch.stack(targets),
        torch.cat(wanted),
        torch.cat(preds),
        regression,
        cls * o.cls_loss * count,
        count,
        torch.stack(features),
    )


def spread(x: Tensor) -> float:
    """sqrt(var + 1e-6) of every feature over rows, averaged over features."""
    mean = x.sum(0) / len(x)
    var = ((x - mean) ** 2).sum(0) / (len(x) - 1)
    return float((var + 1e-6).sqrt().mean())


def to_d2v_state(student: Params, teacher: Params) -> dict[str, Tensor]:
    """Our names for these parameters, spelled out once more so that the table in d2v.interop is not trusted."""

    def encoder_name(name: str) -> str:
        rest = name.removeprefix(MODALITY)
        if rest == name:
            return f"trunk.{name}"  # blocks.*, norm.*
        if rest == "extra_tokens":
            return "frontends.image.prefix_tokens"
        if rest.startswith("local_encoder.proj."):
            return rest.replace("local_encoder", "frontends.image")
        if rest.startswith("context_encoder.norm."):
            return rest.replace("context_encoder.norm", "input_norms.image")
        assert rest.startswith("context_encoder.blocks."), name
        return rest.replace("context_encoder", "prenets.image")

    state = {}
    for who, parameters in (("student", student), ("teacher", teacher)):
        for name, value in parameters.items():
            if in_teacher(name):
                value = value[0] if name.endswith("extra_tokens") else value
                state[f"{who}.{encoder_name(name)}"] = value.float()
    for name, value in student.items():
        if name.startswith(f"{MODALITY}decoder.proj."):
            state[f"decoders.image.proj.{name.rpartition('.')[2]}"] = value.float()
        elif name.startswith(f"{MODALITY}decoder.blocks."):
            _, layer, _, kind = name.removeprefix(f"{MODALITY}decoder.").split(".")
            state[f"decoders.image.convs.{layer}.{kind}"] = value.float()
    return state
