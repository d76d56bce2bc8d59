"""data2vec 1.0 against a slow second implementation from its description, and what must hold whatever the parameters.

The oracle takes parameters under our names and nothing else from d2v: float64, one view at a time, elementary tensor
operations only, so autograd gives the gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v.models.data2vec import Data2Vec, RegressionHead
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.image import BeitFrontend, ImageFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.types import Batch, LossOutput, TeacherScope, TokenMask

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

# --- ours ------------------------------------------------------------------------------------------------------------


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


# --- the oracle ------------------------------------------------------------------------------------------------------


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


# --- one against the other -------------------------------------------------------------------------------------------

CASES = {
    "image": RECIPES["image"],
    "image_3_masks": replace(RECIPES["image"], num_masks=3),
    "image_own_biases": replace(RECIPES["image"], shared_bias=False),
    "image_encoder": replace(RECIPES["image"], scope="encoder", end_of_block=False, layer_norms=("instance",)),
    "image_head": replace(RECIPES["image"], head_depth=1, beta=0.5, top_k=3, target_norms=()),
    "speech": RECIPES["speech"],
    "speech_3_masks": replace(RECIPES["speech"], num_masks=3),
    "speech_padded": replace(RECIPES["speech"], padded=True, num_masks=2),
    "speech_encoder": replace(RECIPES["speech"], scope="encoder", padded=True),
    "speech_context": replace(RECIPES["speech"], scope="context", target_norms=("instance",), head_depth=2),
    "speech_blocks": replace(RECIPES["speech"], scope="blocks", beta=1.0, scale=2.0),
    "text": RECIPES["text"],
    "text_3_masks": replace(RECIPES["text"], num_masks=3),
    "text_padded": replace(RECIPES["text"], padded=True, num_masks=2),
    "text_encoder": replace(RECIPES["text"], scope="encoder", top_k=1),
    "text_blocks": replace(RECIPES["text"], scope="blocks", head_depth=3, eps=1e-2),
}


def parameters(module: nn.Module, trained: bool = False) -> Params:
    return {name: p.detach().double().requires_grad_(trained) for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_match_the_slow_oracle(name: str) -> None:
    o = CASES[name]
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    student, heads = parameters(model.student, True), parameters(model.heads, True)
    expected = run(student, heads, parameters(model.teacher), batch, o)
    expected.loss.backward()

    torch.testing.assert_close(model.targets(batch).double(), expected.targets, rtol=1e-4, atol=1e-4)
    out = model(batch)
    assert out.loss_sum.item() == pytest.approx(expected.loss.item(), rel=2e-5)
    assert out.terms.keys() == {"regression"}
    assert out.terms["regression"].item() == out.loss_sum.item()
    assert out.count.item() == 3 * o.num_masks * 5
    assert out.count.dtype == torch.int64
    wanted = expected.targets.repeat_interleave(o.num_masks, 0)[batch.mask.mask]
    for ours, theirs in ((out.logged["target_std"], wanted), (out.logged["pred_std"], expected.pred.detach())):
        assert ours.item() == pytest.approx((theirs.var(0) + 1e-6).sqrt().mean().item(), rel=1e-4)
    torch.testing.assert_close(out.watched["features"].double(), expected.features.detach(), rtol=1e-4, atol=1e-4)
    others = [
        out.count,
        out.watched["features"],
        out.watched["frontend"],
        out.logged["target_std"],
        out.logged["pred_std"],
        *out.terms.values(),
    ]
    assert not any(t.requires_grad for t in others)

    out.loss_sum.backward()
    for prefix, ours, theirs in (("student", model.student, student), ("heads", model.heads, heads)):
        for key, p in ours.named_parameters():
            gradient = theirs[key].grad
            assert p.grad is not None, f"{prefix}.{key}"
            assert gradient is not None, f"{prefix}.{key}"
            # What cannot change the loss, the bias of keys, has a gradient of rounding errors: hence the 1.
            scale = max(1.0, float(gradient.abs().max()))
            difference = (p.grad - gradient).abs().max().item() / scale
            assert difference < 1e-4, f"{prefix}.{key}: {difference}"
    assert all(p.grad is None for p in model.teacher.parameters())


# --- what must hold whatever the parameters --------------------------------------------------------------------------

each_modality = pytest.mark.parametrize("o", RECIPES.values(), ids=list(RECIPES))


@each_modality
def test_targets_and_local_features_are_computed_once_for_all_masks(o: Options) -> None:
    o = replace(o, num_masks=3)
    model, batch, calls = build(o), make_batch(o), []
    for who in ("student", "teacher"):
        network = getattr(model, who)
        front = network.frontends[o.modality]
        local = {"image": "proj", "speech": "convs.0", "text": "token_embed"}[o.modality]
        for part, module in (("local", front.get_submodule(local)), ("block", network.trunk.blocks[0])):
            module.register_forward_pre_hook(
                lambda _, inputs, name=f"{who} {part}": calls.append((name, len(inputs[0])))
            )
    model(batch)
    expected = [("student block", 9), ("teacher block", 3)]
    if o.modality == "text":  # the student embeds masked texts, the teacher whole ones
        expected += [("student local", 9), ("teacher local", 3)]
    else:
        expected += [("student local", 3)]
    assert sorted(calls) == sorted(expected)


@each_modality
def test_many_masks_are_as_many_passes_over_the_same_targets(o: Options) -> None:
    o = replace(o, num_masks=3)
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    alone = [model(replace(batch, mask=TokenMask.from_bool(batch.mask.mask[m::3]))) for m in range(3)]
    together = model(batch)
    assert together.loss_sum.item() == pytest.approx(sum(out.loss_sum.item() for out in alone), rel=1e-5)
    torch.testing.assert_close(together.watched["features"], alone[0].watched["features"], rtol=1e-4, atol=1e-5)


def gradients(model: Data2Vec) -> Params:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("padded", [False, True])
@each_modality
def test_a_batch_in_two_parts_has_the_same_summed_loss_and_gradients(o: Options, padded: bool) -> None:
    o = replace(o, num_masks=2, padded=padded and o.modality != "image")
    model, batch = build(o), make_batch(o)
    whole = model(batch)
    whole.loss_sum.backward()
    expected = gradients(model)
    parts: list[LossOutput] = [model(rows(batch, 0, 1)), model(rows(batch, 1, 3))]
    sum((out.loss_sum for out in parts), torch.zeros(())).backward()
    assert whole.loss_sum.item() == pytest.approx(sum(out.loss_sum.item() for out in parts), rel=1e-5)
    assert whole.count.item() == sum(out.count.item() for out in parts)
    torch.testing.assert_close(
        whole.watched["features"], torch.cat([out.watched["features"] for out in parts]), rtol=1e-4, atol=1e-5
    )
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("o", [RECIPES["image"], RECIPES["speech"]], ids=["image", "speech"])
@torch.no_grad()
def test_the_mask_token_stands_exactly_where_masks_are(o: Options) -> None:
    o = replace(o, num_masks=3)
    front, batch = build(o).student.frontend(o.modality), make_batch(o)
    assert batch.mask is not None
    hidden, features = front.hide(batch.inputs, batch.mask)
    assert features is not None
    assert torch.equal(features, front.embed(batch.inputs))
    assert hidden.shape == (9, TOKENS[o.modality], DIM)
    for n, masked in enumerate(batch.mask.mask):
        for t in range(TOKENS[o.modality]):
            assert torch.equal(hidden[n, t], front.mask_token if masked[t] else features[n // 3, t])


@torch.no_grad()
def test_the_mask_id_stands_exactly_where_masks_are() -> None:
    o = replace(RECIPES["text"], num_masks=3, padded=True)
    front, batch, seen = build(o).student.frontend("text"), make_batch(o), []
    assert batch.mask is not None
    front.get_submodule("token_embed").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    before = batch.inputs.clone()
    _, features = front.hide(batch.inputs, batch.mask)
    assert features is None
    (ids,) = seen
    for n, masked in enumerate(batch.mask.mask):
        assert ids[n].tolist() == [MASK if h else i for i, h in zip(before[n // 3].tolist(), masked, strict=True)]
    assert torch.equal(batch.inputs, before)  # the teacher's


@torch.no_grad()
def test_a_mask_that_hides_what_it_shows_changes_nothing() -> None:
    """Where every patch is the mask token anyway, the student's output is that of the whole image."""
    o = RECIPES["image"]
    model, batch = build(o), make_batch(o)
    inputs = torch.ones_like(batch.inputs)
    front = model.student.frontend("image")
    assert front.mask_token is not None
    front.mask_token.copy_(front.embed(inputs)[0, 0])
    seen: list[Tensor] = []
    model.heads["image"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(replace(batch, inputs=inputs))
    assert batch.mask is not None
    tokens = model.student(replace(batch, inputs=inputs)).patch_tokens[batch.mask.mask].view_as(seen[0])
    torch.testing.assert_close(seen[0], tokens, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_head_sees_the_final_features_at_masked_places_without_cls() -> None:
    o = replace(RECIPES["image"], num_masks=2)
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    seen: list[Tensor] = []
    model.heads["image"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch)
    hidden, _ = model.student.frontend("image").hide(batch.inputs, batch.mask)
    x = model.student.encode("image", hidden).x[:, 1:]
    assert torch.equal(seen[0], torch.stack([x[n, m] for n, m in enumerate(batch.mask.mask)]))


def test_no_gradient_reaches_pixels_that_every_mask_hides() -> None:
    o = replace(RECIPES["image"], num_masks=2)
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    images = batch.inputs.clone().requires_grad_()
    model(replace(batch, inputs=images)).loss_sum.backward()
    assert images.grad is not None
    patches = images.grad.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).abs().sum((1, 4, 5)).flatten(1)
    always_hidden = batch.mask.mask.view(3, 2, 16).all(1)
    assert always_hidden.any()
    assert not patches[always_hidden].any()
    assert (patches[~always_hidden] > 0).all()


@torch.no_grad()
def test_masked_tokens_change_targets_but_not_predictions() -> None:
    o = RECIPES["text"]
    model, batch, preds = build(o), make_batch(o), []
    assert batch.mask is not None
    model.heads["text"].register_forward_hook(lambda _m, _i, out: preds.append(out))
    first = model(batch)
    second = model(replace(batch, inputs=torch.where(batch.mask.mask, batch.inputs % 30 + 5, batch.inputs)))
    assert torch.equal(*preds)
    assert first.loss_sum.item() != pytest.approx(second.loss_sum.item(), rel=1e-4)


@each_modality
def test_the_teacher_never_trains_and_never_is_in_training_mode(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    for call in (model.train, model.eval, lambda: model.train(True), lambda: model.train(False), model.train):
        call()
        assert not any(m.training for m in model.teacher.modules())
    assert model.student.training
    assert model.heads.training
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    assert not any(p.requires_grad for p in model.teacher.parameters())
    model(batch).loss_sum.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for m in (model.student, model.heads) for p in m.parameters()}
    assert {p.dtype for p in model.bfloat16().teacher.parameters()} == {torch.float32}


@each_modality
def test_dropout_is_the_students_alone(o: Options) -> None:
    model = build(o, drop_rate=0.3, attn_drop_rate=0.3, mlp_drop_rate=0.3, post_mlp_drop_rate=0.3, drop_path_rate=0.3)
    batch = make_batch(o)
    for module in (model.student, model.teacher):
        module.frontends[o.modality].input_drop_rate = 0.3
    targets = model.targets(batch)
    assert torch.equal(model.targets(batch), targets)
    assert model(batch).loss_sum.item() != model(batch).loss_sum.item()
    model.eval()
    assert torch.equal(model.targets(batch), targets)
    assert model(batch).loss_sum.item() == model(batch).loss_sum.item()


def test_embedding_dropout_differs_between_views_and_spares_the_teacher() -> None:
    o = replace(RECIPES["text"], num_masks=2)
    model, batch = build(o), make_batch(o)
    for module in (model.student, model.teacher):
        module.frontends["text"].drop.p = 0.5
    assert torch.equal(model.targets(batch), model.targets(batch))
    assert batch.mask is not None
    same = TokenMask.from_bool(batch.mask.mask[::2].repeat_interleave(2, 0), 2)
    hidden, _ = model.student.frontend("text").hide(batch.inputs, same)
    assert not torch.equal(hidden[0], hidden[1])


@pytest.mark.parametrize("scope", ["encoder", "context", "transformer", "blocks"])
@each_modality
def test_after_an_update_the_teacher_averages_its_scope_and_copies_the_rest(o: Options, scope: TeacherScope) -> None:
    o = replace(o, scope=scope)
    model = build(o)
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    perturb(model.student, 0.3, 9)
    model.update_teacher(0.75)
    student, num_copied = dict(model.student.named_parameters()), 0
    for name, p in model.teacher.named_parameters():
        if name.endswith("mask_token"):
            continue  # the teacher never sees it
        assert model.is_averaged(name) == averaged(name, o), name
        expected = 0.75 * before[name] + 0.25 * student[name] if averaged(name, o) else student[name]
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)
        num_copied += not averaged(name, o)
    assert (num_copied == 0) == (scope == "encoder")


@pytest.mark.parametrize("scope", ["encoder", "context", "transformer", "blocks"])
@each_modality
def test_a_teacher_whose_student_moves_is_right_after_every_update(o: Options, scope: TeacherScope) -> None:
    """Targets as from a teacher made of averages and copies by hand."""
    o = replace(o, scope=scope)
    model, batch = build(o), make_batch(o, 2)
    teacher = parameters(model.teacher)
    perturb(model.student, 0.1, 9)
    model.update_teacher(0.5)
    student = parameters(model.student)
    moved = {name: 0.5 * teacher[name] + 0.5 * student[name] for name in student}
    expected = run(student, parameters(model.heads), moved, batch, o).targets
    torch.testing.assert_close(model.targets(batch).double(), expected, rtol=1e-3, atol=1e-4)


@each_modality
def test_targets_do_not_depend_on_masks_or_on_the_rest_of_the_batch(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    targets = model.targets(batch)
    assert targets.dtype == torch.float32
    assert not targets.requires_grad
    assert torch.equal(model.targets(replace(batch, mask=None)), targets)
    torch.testing.assert_close(model.targets(rows(batch, 1, 2)), targets[1:2], rtol=1e-3, atol=1e-4)


def test_appended_padding_changes_no_text_target_and_no_loss() -> None:
    """Text: targets are normalised over features. (Instance norm covers padded frames, as in the reference.)"""
    o = RECIPES["text"]
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    inputs = nn.functional.pad(batch.inputs, (0, 2), value=PAD)
    mask = TokenMask.from_bool(nn.functional.pad(batch.mask.mask, (0, 2)))
    padded = Batch("text", inputs, batch.sample_ids, mask, inputs == PAD)
    torch.testing.assert_close(model.targets(padded)[:, :12], model.targets(batch), rtol=1e-4, atol=1e-4)
    assert model(padded).loss_sum.item() == pytest.approx(model(batch).loss_sum.item(), rel=1e-5)


@each_modality
def test_bfloat16_autocast_keeps_losses_and_targets_in_float32(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    exact = model(batch).loss_sum.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(batch)
        assert model.targets(batch).dtype == torch.float32
    assert {
        t.dtype
        for t in (
            out.loss_sum,
            out.logged["target_std"],
            out.logged["pred_std"],
            out.watched["features"],
            out.watched["frontend"],
        )
    } == {torch.float32}
    assert out.loss_sum.item() == pytest.approx(exact, rel=0.05)
    out.loss_sum.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.student.parameters())


@each_modality
def test_losses_fall_when_trained_on_one_batch(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(25):
        out = model(batch)
        optimizer.zero_grad()
        (out.loss_sum / out.count).backward()
        optimizer.step()
        losses.append(out.loss_sum.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("o", [RECIPES["image"], RECIPES["text"]], ids=["image", "text"])
def test_compiles_without_graph_breaks(o: Options) -> None:
    o = replace(o, num_masks=2, padded=o.modality != "image")
    model, batch = build(o), make_batch(o)
    torch._dynamo.reset()
    out = torch.compile(model, fullgraph=True, backend="eager")(batch)
    assert out.loss_sum.item() == pytest.approx(model(batch).loss_sum.item(), rel=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_heads_are_linear_layers_with_gelus_between(depth: int) -> None:
    head, x = RegressionHead(6, depth, 3.0), torch.randn(4, 5, 6)
    linears = [m for m in head if isinstance(m, nn.Linear)]
    assert len(linears) == depth
    expected = x
    for i, layer in enumerate(linears):
        expected = (gelu(expected) if i else expected) @ layer.weight.T + layer.bias
        assert layer.out_features == (6 if i == depth - 1 else 18)
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def test_errors_name_key_value_and_fix() -> None:
    def make(front: Frontend, modality: str = "image", **options: Any) -> Data2Vec:
        encoder = transformer_encoder({"image": front}, DIM, 2, HEADS)
        return Data2Vec(encoder, {modality: RegressionHead(DIM)}, **({"average_top_k_layers": 2} | options))

    beit = BeitFrontend(DIM, HEADS, IMAGE, PATCH)
    with pytest.raises(ValueError, match=r"heads=\['text'\], encoder\.frontends=\['image'\]"):
        make(beit, "text")
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"average_top_k_layers={k}: .* 2 shared blocks .*choose 1 to 2"):
            make(beit, average_top_k_layers=k)
    no_token = r"encoder\.frontends\.image\.mask_token=false: there is no mask token; set it to true"
    for front in (
        BeitFrontend(DIM, HEADS, IMAGE, PATCH, mask_token=False),
        ImageFrontend(DIM, IMAGE, PATCH),
        TextFrontend(DIM, VOCAB),
        SpeechFrontend(DIM, HEADS),
    ):
        with pytest.raises(ValueError, match=no_token):
            make(front)
    with pytest.raises(ValueError, match=r"teacher_scope=all: choose one of .*transformer"):
        make(beit, teacher_scope="all")
    with pytest.raises(ValueError, match=r"layer_norms\[0\]=batch: choose one of instance, layer"):
        make(beit, layer_norms=["batch"])
    with pytest.raises(ValueError, match=r"target_norms\[0\]=group: choose one of instance, layer"):
        make(beit, target_norms=["group"])
    for mask_id in (-1, VOCAB):
        with pytest.raises(ValueError, match=rf"mask_id={mask_id}: must be an id .*0 to {VOCAB - 1}"):
            TextFrontend(DIM, VOCAB, mask_id=mask_id)


def test_defaults_are_the_papers_for_speech() -> None:
    model = Data2Vec(
        transformer_encoder({"speech": frontend(RECIPES["speech"])}, DIM, 2, HEADS), {"speech": RegressionHead(DIM)}, 1
    )
    assert model.recipes["speech"].scale(16) == 0.25  # 1 / sqrt(16)
    assert model.recipes["speech"].loss_beta == 0
    assert model.recipes["speech"].teacher_scope == "transformer"
    for (name, ours), theirs in zip(
        model.student.state_dict().items(), model.teacher.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
