"""Embeddings of tokens from counts of their neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from d2v.nn.cooccurrence import count_neighbours, counted_embeddings, pointwise_mutual_information
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.frontends.text import TextFrontend


@pytest.mark.parametrize("window", [1, 3, 100])
def test_neighbours_are_counted_within_a_sample_and_the_window(window: int) -> None:
    ids = torch.randint(0, 6, (5, 9))
    expected = torch.zeros(6, 6, dtype=torch.int64)
    for row in ids.tolist():
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                expected[a, b] += 0 < abs(i - j) <= window
    assert torch.equal(count_neighbours([ids[:2], ids[2:]], 6, window), expected)


def test_information_is_the_logarithm_over_chance() -> None:
    counts = torch.tensor([[0, 8, 1, 0], [8, 2, 3, 0], [1, 3, 6, 0], [0, 0, 0, 0]])
    found = pointwise_mutual_information(counts)
    totals, everything = counts.sum(1).tolist(), float(counts.sum())
    for i in range(4):
        for j in range(4):
            count = float(counts[i, j])
            expected = max(0.0, math.log(count * everything / (totals[i] * totals[j]))) if count else 0.0
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-6)
    assert bool((found > 0).any())


def _two_topics() -> torch.Tensor:
    """Samples of ids 0 to 9 or of ids 10 to 19, and id 20 everywhere."""
    topic = torch.randint(0, 2, (200, 1)) * 10
    ids = torch.randint(0, 10, (200, 12)) + topic
    return torch.where(torch.rand(200, 12) < 0.2, 20, ids)


def test_words_with_the_same_neighbours_are_alike() -> None:
    state = torch.get_rng_state()
    ids = _two_topics()
    torch.set_rng_state(state)
    found = counted_embeddings([ids], 24, 8)
    assert found.shape == (24, 8)
    assert torch.equal(torch.get_rng_state(), state), "the factorisation has random numbers of its own"
    assert torch.equal(found, counted_embeddings(ids.split(50), 24, 8))
    unit = torch.nn.functional.normalize(found, dim=1)
    alike = unit[:20] @ unit[:20].T
    same = torch.arange(20)[:, None] // 10 == torch.arange(20) // 10
    assert float(alike[same].mean()) > float(alike[~same].mean()) + 0.3
    torch.testing.assert_close(found[21:], torch.zeros(3, 8), rtol=0, atol=1e-4)


def test_all_columns_give_back_the_information() -> None:
    ids = _two_topics()
    information = pointwise_mutual_information(count_neighbours([ids], 24, 5))
    found = counted_embeddings([ids], 24, 24, 5)
    values, vectors = torch.linalg.eigh(information)
    torch.testing.assert_close(found @ found.T, vectors * values.abs() @ vectors.T, rtol=1e-3, atol=1e-3)


def test_a_frontend_starts_from_counts_at_the_length_of_random_embeddings() -> None:
    made = TextFrontend(8, 24, 12, pad_id=20, token_init_std=0.5)
    random = made.token_embed.weight.detach().clone()
    ids = _two_topics()
    made.start_from([ids])
    found = made.token_embed.weight.detach()
    counted = torch.nn.functional.normalize(counted_embeddings([ids], 24, 8)[:20], dim=1)
    torch.testing.assert_close(found[:20], 0.5 * 8**0.5 * counted)
    assert torch.equal(found[20:], random[20:]), "padding, and tokens that do not occur"


@pytest.mark.parametrize(("embed_dim", "vocab_size"), [(32, 24), (8, 16385)])
def test_vocabularies_that_cannot_be_counted_are_refused(embed_dim: int, vocab_size: int) -> None:
    words = rf"vocab_size={vocab_size}: counts .* {embed_dim} \(embed_dim\) to 16384 ids; .*init_samples=0"
    with pytest.raises(ValueError, match=words):
        TextFrontend(embed_dim, vocab_size, 12).start_from(iter([]))


def test_frontends_without_statistics_read_nothing() -> None:
    with pytest.raises(ValueError, match=r"init_samples: a ImageFrontend has no start .*; set it to 0"):
        ImageFrontend(16, 12, 3, 3).start_from(iter([]))
