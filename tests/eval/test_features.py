from dataclasses import replace

import pytest
import torch
from row_encoder import DEPTH, DIM, RowEncoder
from torch import Tensor, nn

from d2v.eval.features import check_probe_data, eval_mode, extract, pool_tokens, standardize
from d2v.types import Batch, TokenMask


def make_batches(*sizes: int, labelled: bool = True, num_tokens: int = 5) -> list[Batch]:
    generator, batches, start = torch.Generator().manual_seed(0), [], 0
    for size in sizes:
        ids = torch.arange(start, start + size) + 100
        images = torch.randn(size, 1, num_tokens, 4, generator=generator)
        batches.append(Batch("image", images, ids, labels=ids % 3 if labelled else None))
        start += size
    return batches


def tokens_of(encoder: RowEncoder, batches: list[Batch]) -> Tensor:
    """(N, T, D), computed with none of the tested code."""
    return torch.cat([encoder.embed(b.inputs[:, 0]) for b in batches]).detach()


def test_last_layer_mean_over_patches() -> None:
    encoder, batches = RowEncoder(), make_batches(4, 4, 2)
    features = extract(encoder, batches)
    torch.testing.assert_close(features.features, 2 * tokens_of(encoder, batches).mean(1))
    assert features.sample_ids.tolist() == list(range(100, 110))
    assert features.labels is not None
    assert features.labels.tolist() == [i % 3 for i in range(100, 110)]
    assert encoder.asked_for_layers == [False] * 3


def test_layers() -> None:
    encoder, batches = RowEncoder(), make_batches(4, 2)
    tokens = tokens_of(encoder, batches).mean(1)
    torch.testing.assert_close(extract(encoder, batches, layers="average").features, tokens + 1)
    torch.testing.assert_close(extract(encoder, batches, layers=0).features, tokens)
    torch.testing.assert_close(extract(encoder, batches, layers=-1).features, tokens + 2)
    every = extract(encoder, batches, layers="all").features
    assert every.shape == (6, DEPTH, DIM)
    torch.testing.assert_close(every, torch.stack([tokens, tokens + 1, tokens + 2], dim=1))
    assert all(encoder.asked_for_layers)


def test_pooling() -> None:
    encoder, batches = RowEncoder(num_prefix_tokens=2), make_batches(4, 2)
    assert extract(encoder, batches, pool="cls").features.eq(14).all()
    assert extract(encoder, batches, pool="cls", layers="all").features.shape == (6, DEPTH, DIM)
    tokens = extract(encoder, batches, pool="none").features
    assert tokens.shape == (6, 2 + 5, DIM)
    torch.testing.assert_close(tokens[:, 2:], 2 * tokens_of(encoder, batches))
    assert extract(encoder, batches, pool="none", layers="all").features.shape == (6, DEPTH, 2 + 5, DIM)


@pytest.mark.parametrize("shape", [(3, 1 + 4, 2), (3, 6, 1 + 4, 2)])
def test_padding_is_left_out_of_the_mean(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    padding_mask = torch.tensor([[False] * 4, [False, False, False, True], [False, True, True, True]])
    expected = torch.stack([x[n, ..., 1 : 1 + real, :].mean(-2) for n, real in enumerate((4, 3, 1))])
    x[1, ..., -1, :] = torch.nan
    torch.testing.assert_close(pool_tokens(x, 1, "mean", padding_mask), expected)
    with pytest.raises(ValueError, match=r"padding mask of shape \(3, 3\) for 3 samples of 4 tokens"):
        pool_tokens(x, 1, "mean", padding_mask[:, 1:])


def test_masks_are_ignored_and_skipped_samples_kept() -> None:
    encoder, (batch,) = RowEncoder(), make_batches(4)
    mask = TokenMask.from_bool(torch.eye(5, dtype=torch.bool)[:4])
    masked = replace(batch, mask=mask, skipped=("a.png: truncated",))
    features = extract(encoder, [masked, batch])
    assert features.skipped == ("a.png: truncated",)
    torch.testing.assert_close(features.features[:4], features.features[4:])


def test_training_flags_are_restored_one_by_one_even_after_an_error() -> None:
    encoder = RowEncoder()
    extract(encoder, make_batches(2))
    assert (encoder.training, encoder.dropout.training, encoder.frozen.training) == (True, True, False)
    with eval_mode(encoder):
        assert not any(module.training for module in encoder.modules())
    with pytest.raises(ValueError, match="no batches"):
        extract(encoder, [])
    with pytest.raises(ValueError, match=r"layers=9"):
        extract(encoder, make_batches(2), layers=9)
    assert (encoder.training, encoder.dropout.training, encoder.frozen.training) == (True, True, False)


def test_features_are_ordinary_float32_tensors() -> None:
    encoder = RowEncoder().bfloat16()
    batches = [replace(b, inputs=b.inputs.bfloat16()) for b in make_batches(4)]
    features = extract(encoder, batches, layers="average").features
    assert features.dtype == torch.float32
    assert not features.is_inference()
    nn.Linear(DIM, 2)(features).sum().backward()


def test_unlabelled_batches_have_no_labels() -> None:
    assert extract(RowEncoder(), make_batches(4, 2, labelled=False)).labels is None


def test_samples_of_several_classes_have_rows_of_one_length() -> None:
    first, second = make_batches(4, 2)
    several = torch.tensor([[1, 0], [2, -1]]), torch.tensor([[3], [-1]])
    labels = extract(RowEncoder(), [replace(first, labels=several[0]), replace(second, labels=several[1])]).labels
    assert labels is not None
    assert labels.tolist() == [[1, 0], [2, -1], [3, -1], [-1, -1]]


def test_errors_name_the_setting() -> None:
    batches = make_batches(2, 2)
    with pytest.raises(ValueError, match=r"pool=cls.*set pool=mean"):
        extract(RowEncoder(num_prefix_tokens=0), batches, pool="cls")
    with pytest.raises(ValueError, match=r"pool='max'"):
        extract(RowEncoder(), batches, pool="max")  # type: ignore[arg-type]
    for layers in ("first", True, None):
        with pytest.raises(ValueError, match=r"layers="):
            extract(RowEncoder(), batches, layers=layers)  # type: ignore[arg-type]
    for index in (DEPTH, -DEPTH - 1):
        with pytest.raises(ValueError, match=rf"layers={index}, .*3 blocks: choose -3 to 2"):
            extract(RowEncoder(), batches, layers=index)
    with pytest.raises(ValueError, match="no batches"):
        extract(RowEncoder(), [])
    with pytest.raises(ValueError, match="only 1 of 2 batches have labels"):
        extract(RowEncoder(), [batches[0], replace(batches[1], labels=None)])


def test_tokens_of_samples_of_different_lengths_follow_each_other() -> None:
    encoder = RowEncoder(num_prefix_tokens=2)
    padded, longer = make_batches(2)[0], make_batches(2, num_tokens=6)[0]
    padding_mask = torch.zeros(2, 5, dtype=torch.bool)
    padding_mask[1, 3:] = True
    whole = extract(encoder, [padded], pool="none").features
    rest = extract(encoder, [longer], pool="none").features
    found = extract(encoder, [replace(padded, padding_mask=padding_mask), longer], pool="none")
    assert found.lengths is not None
    assert found.lengths.tolist() == [7, 5, 8, 8]
    torch.testing.assert_close(found.features, torch.cat([whole[0], whole[1, :5], *rest]))
    batches = [replace(padded, padding_mask=padding_mask), longer]
    layers = extract(encoder, batches, pool="none", layers="all").features
    assert layers.shape == (28, DEPTH, DIM)
    torch.testing.assert_close(layers[:, 1], extract(encoder, batches, pool="none", layers=1).features)
    assert extract(encoder, [padded], pool="none").lengths is None


def test_features_are_put_back_into_the_order_of_the_ids() -> None:
    padded, longer = make_batches(2)[0], make_batches(2, num_tokens=6)[0]
    batches = [replace(longer, sample_ids=torch.tensor([3, 1])), replace(padded, sample_ids=torch.tensor([2, 0]))]
    for pool in ("mean", "none"):
        as_read = extract(RowEncoder(), batches, pool=pool)
        found = as_read.by_id()
        assert found.sample_ids.tolist() == [0, 1, 2, 3]
        place = as_read.sample_ids.tolist().index
        assert found.labels is not None
        assert as_read.labels is not None
        assert found.labels.tolist() == [as_read.labels[place(i)].item() for i in range(4)]
        if pool == "mean":
            rows = list(as_read.features)
            torch.testing.assert_close(list(found.features), [rows[place(i)] for i in range(4)])
        else:
            assert as_read.lengths is not None
            parts = as_read.features.split(as_read.lengths.tolist())
            torch.testing.assert_close(found.features, torch.cat([parts[place(i)] for i in range(4)]))
            assert found.lengths is not None
            assert found.lengths.tolist() == [len(parts[place(i)]) for i in range(4)]


def test_standardize() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 100]) + 5
    train, val = standardize(x[:40], x[40:])
    torch.testing.assert_close(train.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(3))
    torch.testing.assert_close(val, (x[40:] - x[:40].mean(0)) / x[:40].std(0, correction=0))


def test_standardize_does_not_amplify_rounding_noise() -> None:
    constant = torch.full((50, 1), 1000.0)
    constant[::2] += 6e-5  # the next float32
    train, val = standardize(torch.cat([constant, torch.zeros(50, 1)], dim=1), torch.full((2, 2), 1000.5))
    assert train.abs().max() < 1e-3
    assert val.isfinite().all()


def test_check_probe_data_accepts_what_is_fine() -> None:
    check_probe_data(torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 2), torch.zeros(1))


def test_mean_std_leaves_padding_out() -> None:
    x = torch.randn(2, 7, 3)
    padding = torch.arange(6)[None] >= torch.tensor([6, 4])[:, None]
    pooled = pool_tokens(x, 1, "mean_std", padding)
    for i, n in enumerate((6, 4)):
        real = x[i, 1 : 1 + n]
        torch.testing.assert_close(pooled[i], torch.cat([real.mean(0), real.std(0, correction=0)]))
    torch.testing.assert_close(pool_tokens(x[:1], 1, "mean_std"), pooled[:1])
