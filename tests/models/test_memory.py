"""What a training step keeps for its backward pass: no more than that needs, and with checkpointing far less."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recipes import AUTOENCODER, RECIPES, build, make_batch
from torch import Tensor, nn

from d2v.models.data2vec2 import Data2Vec2
from d2v.models.distillation import SelfDistillation
from d2v.nn.attention import attention
from d2v.nn.block import Block
from d2v.nn.decoders import ConvDecoder2d
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.trunk import checkpoint_activations
from d2v.objective.masking import InverseBlockMask
from d2v.types import Batch, LossOutput, TokenMask


def kept_bytes(forward: Callable[[], Any], model: nn.Module) -> tuple[int, Any]:
    """Bytes of the storages that autograd keeps of a forward pass, the parameters' apart; and what it returns."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # or a freed storage's address might be seen twice

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()
    return sum(kept.values()), out


# --- a small image model at M = 16, counted on paper ------------------------------------------------------------------

B, M, PATCH, SIDE, CHANNELS = 2, 16, 4, 8, 3
D, H, E, DEPTH, LAYERS = 64, 4, 32, 3, 3
N, T = B * M, SIDE * SIDE
K = int(T * 0.2)
S = 1 + K  # tokens that a block sees


def image_model(prenet_depth: int = 1) -> tuple[Data2Vec2, Batch]:
    frontend = ImageFrontend(D, SIDE * PATCH, PATCH, CHANNELS)
    encoder = transformer_encoder({"image": frontend}, D, DEPTH - prenet_depth, H, prenet_depth)
    decoder = ConvDecoder2d(D, E, LAYERS, 3, 4)
    model = Data2Vec2(encoder, {"image": decoder}, 2, cls_loss_weight=0.1).train()
    rngs = [np.random.default_rng(i) for i in range(B)]
    mask = TokenMask.from_bool(torch.from_numpy(InverseBlockMask(M, 0.8, 3)((SIDE, SIDE), rngs)), M)
    assert mask.ids_keep.shape == (N, K)
    return model, Batch("image", torch.randn(B, CHANNELS, SIDE * PATCH, SIDE * PATCH), torch.arange(B), mask)


def norm_bytes(tokens: int, width: int) -> int:
    """A LayerNorm: its input, mean and reciprocal deviation."""
    return 4 * tokens * (width + 2)


# A post-norm block of 16 features' width a token, plus what normalises the attention and the LayerNorms:
BLOCK = (
    4 * N * S * D  # input of query, key and value
    + 4 * N * S * 3 * D  # query, key, value
    + 4 * N * S * D  # attention's output, which enters its projection
    + 4 * N * H * S  # logarithms of the attention's normalisers
    + norm_bytes(N * S, D)  # input + attention
    + 4 * N * S * D  # input of the MLP
    + 4 * N * S * 4 * D  # input of the GELU
    + 4 * N * S * 4 * D  # its output
    + norm_bytes(N * S, D)  # + the MLP's output
)
# Before the blocks: images, indices of the visible patches, input norm.
FRONT = 4 * B * CHANNELS * (SIDE * PATCH) ** 2 + 8 * N * K + norm_bytes(N * S, D)
# A layer of the decoder keeps its convolution's input, its norm's and its GELU's; then come the masked tokens.
DECODER = (
    8 * N * T  # indices that put tokens in their places
    + sum(4 * N * T * (D if i == 0 else E) + norm_bytes(N * T, E) + 4 * N * T * E for i in range(LAYERS))
    + 8 * N * (T - K)  # indices of the masked tokens
    + 4 * N * (T - K) * E  # input of the projection
)
LOSS = 4 * N * (T - K) * D + 4 * N * D  # errors at masked tokens and of the CLS tokens


def test_a_forward_pass_keeps_what_its_backward_pass_needs() -> None:
    model, batch = image_model()
    kept, _ = kept_bytes(lambda: model(batch), model)
    assert kept == pytest.approx(DEPTH * BLOCK + FRONT + DECODER + LOSS, rel=0.02)


def test_checkpointing_keeps_one_input_a_block() -> None:
    model, batch = image_model()
    checkpoint_activations(model)
    kept, _ = kept_bytes(lambda: model(batch), model)
    assert kept == pytest.approx(DEPTH * 4 * N * S * D + FRONT + DECODER + LOSS, rel=0.02)


def test_attention_in_parts_keeps_its_weights_once() -> None:
    """In bfloat16 on a CPU; the fused function keeps none."""
    q, k, v = (torch.randn(2, H, 50, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    kept, _ = kept_bytes(lambda: attention(q, k, v), nn.Identity())
    assert kept == 2 * (2 * H) * (3 * 50 * 8 + 50 * 50)  # query, key, value, weights


def test_the_teacher_keeps_nothing() -> None:
    model, batch = image_model()
    assert kept_bytes(lambda: model.targets(batch), model)[0] == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_step_returns_holds_no_more_than_it_shows(recipe: str) -> None:
    """A view would keep the whole of what it is a part of until the step is over."""
    out = build(recipe)(make_batch(recipe))
    for tensor in (
        out.count,
        *out.terms.values(),
        out.logged["target_std"],
        out.logged["pred_std"],
        out.watched["features"],
        out.watched["frontend"],
    ):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


# --- checkpointing ----------------------------------------------------------------------------------------------------


def _step(model: SelfDistillation, batch: Batch) -> LossOutput:
    torch.manual_seed(3)
    out: LossOutput = model(batch)
    (out.loss_sum / out.count).backward()
    return out


@pytest.mark.parametrize("recipe", [*RECIPES, AUTOENCODER])
@pytest.mark.parametrize("noise", [True, False], ids=["noise", "plain"])
def test_checkpointing_changes_no_bit(recipe: str, noise: bool) -> None:
    """Dropout, drop path and LayerDrop draw in the backward pass what they drew before."""
    plain = build(recipe, noise)
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed)
    for seed in range(2):
        batch = make_batch(recipe, seed)
        losses, next_drawn = [], []
        for model in (plain, checkpointed):
            losses.append(_step(model, batch).loss_sum)
            next_drawn.append(torch.rand(()))
        assert torch.equal(*losses)
        assert torch.equal(*next_drawn)
    gradients = [{n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in (plain, checkpointed)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name  # type: ignore[arg-type]


def test_neither_teacher_nor_evaluation_is_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = image_model()
    checkpoint_activations(model)
    calls = []
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda f, *args, **kwargs: calls.append(f) or f(*args))
    model.targets(batch)
    model.eval()
    model.student(batch)
    model(batch)
    with torch.no_grad():
        model.train()(batch)
    assert not calls
    model(batch)
    assert len(calls) == DEPTH == sum(isinstance(m, Block) for m in model.student.modules())
