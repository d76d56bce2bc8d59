"""Embeddings of tokens and of their positions."""

from __future__ import annotations

import pytest
import torch

from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.text import TextFrontend
from d2v.types import Batch


def test_positions_start_after_the_id_of_padding() -> None:
    made = TextFrontend(8, 30, 10, pad_id=3, drop_rate=0.0)
    ids = torch.tensor([[5, 6, 7, 3, 3]])
    expected = made.norm(made.token_embed(ids) + made.pos_embed(torch.tensor([[4, 5, 6, 3, 3]])))
    assert torch.equal(made.embed(ids), expected)
    assert made.pos_embed.num_embeddings == 10 + 3 + 1


def test_initialisation_is_the_references() -> None:
    made = TextFrontend(64, 2000, 500)
    for embedding in (made.token_embed, made.pos_embed):
        assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (embedding.weight[1] == 0).all()
    other = TextFrontend(64, 2000, 500, token_init_std=0.5, pos_init_std=0.002)
    assert other.token_embed.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert other.pos_embed.weight.std().item() == pytest.approx(0.002, rel=0.05)


def test_padding_is_never_trained() -> None:
    made = TextFrontend(8, 30, 10)
    made.embed(torch.tensor([[5, 6, 1, 1]])).square().sum().backward()
    assert (made.token_embed.weight.grad[1] == 0).all()
    assert (made.pos_embed.weight.grad[1] == 0).all()


def test_dropout_is_drawn_once_a_sample() -> None:
    made = TextFrontend(64, 30, 10, drop_rate=0.5).train()
    x = made.embed(torch.full((1, 8), 5))
    assert (x == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


@torch.no_grad()
def test_appended_padding_changes_no_real_token() -> None:
    encoder = transformer_encoder({"text": TextFrontend(16, 30, 12)}, 16, 2, 4).eval()
    ids = torch.tensor([[0, 5, 9, 2, 1, 1, 1]])
    padded = encoder(Batch("text", ids, torch.arange(1), padding_mask=ids == 1)).x[:, :4]
    alone = encoder(Batch("text", ids[:, :4], torch.arange(1))).x
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-6)


def test_the_input_is_normalised_only_before_a_prenet() -> None:
    for depth in (0, 1):
        encoder = transformer_encoder({"text": TextFrontend(16, 30, 12)}, 16, 1, 4, depth)
        assert ("text" in encoder.input_norms) == (depth > 0)


def test_errors_name_key_value_and_fix() -> None:
    with pytest.raises(ValueError, match=r"pad_id=30: must be an id of the vocabulary, 0 to 29"):
        TextFrontend(8, 30, 10, pad_id=30)
    with pytest.raises(ValueError, match=r"texts of 11 tokens reached an encoder with 10 positions: lower block_size"):
        TextFrontend(8, 30, 10).embed(torch.full((1, 11), 5))
