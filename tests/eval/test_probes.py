from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from row_encoder import DEPTH, DIM, RowEncoder
from torch import Tensor, nn

from d2v.eval import probes
from d2v.eval.features import extract_frames
from d2v.eval.knn import knn_accuracy
from d2v.eval.linear import LinearProbe, linear_probe
from d2v.eval.probes import Labelled, Settings, classify, hold_out_groups, transcribe
from d2v.eval.tfidf import tfidf_knn, tfidf_linear
from d2v.runs.results import Row
from d2v.types import Batch, TokenMask

GROUPS = ["ann", "bob", "ann", "cid", "bob", "ann", "cid"]


def blobs(num_samples: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(num_samples) % 3
    return Labelled(2 * torch.eye(3, 5)[y] + torch.randn(num_samples, 5, generator=generator), y)


def words(num_samples: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(20, (num_samples, 4), generator=generator).tolist()
    y = torch.arange(num_samples) % 3
    texts = [" ".join([f"c{c}", *(f"w{i}" for i in line)]) for c, line in zip(y.tolist(), noise, strict=True)]
    return Labelled(texts, y)


# --- groups that are held out


@pytest.mark.parametrize("as_texts", [False, True])
def test_nothing_of_a_held_out_group_is_trained_on(as_texts: bool) -> None:
    x: Tensor | Sequence[str] = [str(i) for i in range(7)] if as_texts else torch.arange(7.0)[:, None]
    splits = hold_out_groups(Labelled(x, torch.arange(7) * 10), GROUPS)
    found = [[[int(i) for i in part.x] for part in split] for split in splits]
    assert found == [[[1, 3, 4, 6], [0, 2, 5]], [[0, 2, 3, 5, 6], [1, 4]], [[0, 1, 2, 4, 5], [3, 6]]]
    for split in splits:
        for part in split:
            assert part.y.tolist() == [int(i) * 10 for i in part.x]


def test_one_group_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match=r"group_pattern found only the group 'ann'; .* at least two"):
        hold_out_groups(blobs(4, 0), ["ann"] * 4)


def test_held_out_groups_show_what_a_probe_learns_of_them_alone() -> None:
    """Features that tell the group and nothing of the class, which within a group is always the same."""
    groups = [str(i % 4) for i in range(80)]
    x = 5 * torch.eye(4)[torch.arange(80) % 4] + 0.1 * torch.randn(80, 4)
    data = Labelled(x, torch.arange(80) % 4 % 2)
    settings = Settings(k=5)
    leaky = classify("", [(Labelled(data.x[:40], data.y[:40]), Labelled(data.x[40:], data.y[40:]))], settings)  # type: ignore[index]
    honest = classify("", hold_out_groups(data, groups), settings)
    assert leaky.scores == {"linear": 1, "knn": 1}
    assert max(honest.scores.values()) < 0.8


# --- classes


def test_features_go_to_the_feature_probes_and_texts_to_tf_idf() -> None:
    settings = Settings(k=7, temperature=0.5, c_grid=(0.1, 1.0), seed=3)
    train, val = blobs(90, 1), blobs(60, 2)
    assert isinstance(train.x, Tensor)
    assert isinstance(val.x, Tensor)
    row = classify("name", [(train, val)], settings)
    expected = linear_probe(train.x, train.y, val.x, val.y, (0.1, 1.0), 3).accuracy
    assert (row.name, row.scores["linear"]) == ("name", expected)
    assert row.scores["knn"] == knn_accuracy(train.x, train.y, val.x, val.y, 7, 0.5)

    train, val = words(90, 1), words(60, 2)
    texts, val_texts = list(train.x), list(val.x)
    row = classify("name", [(train, val)], settings)
    expected = tfidf_linear(texts, train.y, val_texts, val.y, seed=3).accuracy  # type: ignore[arg-type]
    assert row.scores["linear"] == expected
    assert row.scores["knn"] == tfidf_knn(texts, train.y, val_texts, val.y, 7, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["linear", "knn"])
def test_only_what_is_asked_for_is_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(probes, "knn_accuracy" if name == "linear" else "linear_probe")
    row = classify("", [(blobs(60, 1), blobs(30, 2))], replace(Settings(linear=False, knn=False), **{name: True}))
    assert row.scores.keys() == {name}


def test_the_seed_is_that_of_the_inner_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "tfidf_linear", lambda *data, seed: LinearProbe(seed, 1.0, True))
    assert classify("", [(words(9, 1), words(9, 2))], Settings(knn=False, seed=3)).scores == {"linear": 3}


def test_splits_count_by_their_samples() -> None:
    train = Labelled(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    right = Labelled(torch.tensor([[0.0, 1.0]] * 3), torch.tensor([0] * 3))
    wrong = Labelled(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert classify("", [(train, right), (train, wrong)], Settings(linear=False, k=1)).scores == {"knn": 0.75}


# --- how the linear probe came about


def test_the_row_says_which_strength_was_chosen_and_whether_the_fits_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = iter(
        [
            LinearProbe(0.5, 0.1, True, {0.01: 0.4, 0.1: 0.6, 1.0: 0.5}),
            LinearProbe(0.5, 1.0, False, {0.01: 0.4, 0.1: 0.6, 1.0: 0.7}),
            LinearProbe(0.5, 0.01, False, {0.01: 0.4, 0.1: 0.3, 1.0: 0.3}),
        ]
    )
    monkeypatch.setattr(probes, "linear_probe", lambda *data, **options: next(fits))
    row = classify("", [(blobs(9, 1), blobs(9, 2))] * 3, Settings(knn=False, c_grid=(0.01, 0.1, 1.0)))
    assert (row.c, row.converged) == ([0.1, 1.0, 0.01], False)
    assert row.notes == [
        "C=0.01 is the smallest of c_grid=[0.01,0.1,1]: a smaller one may be better",
        "C=1 is the largest of c_grid=[0.01,0.1,1]: a larger one may be better",
        "the linear probe did not converge in 2 of 3 fits within its iterations: the accuracy is that of an early stop",
    ]


def test_a_fit_inside_the_grid_is_without_doubt() -> None:
    row = classify("", [(blobs(90, 1), blobs(60, 2))], Settings())
    assert (row.converged, row.notes) == (True, [])
    assert len(row.c) == 1
    assert classify("", [(blobs(90, 1), blobs(60, 2))], Settings(c_grid=(10.0,))).notes == []  # nothing was chosen
    without = classify("", [(blobs(90, 1), blobs(60, 2))], Settings(linear=False))
    assert (list(without.c), without.converged, without.notes) == ([], None, [])


def test_texts_have_a_grid_of_their_own() -> None:
    row = classify("", [(words(90, 1), words(60, 2))], Settings(knn=False, c_grid=(0.5,)))
    assert row.c[0] in (0.3, 1.0, 3.0, 10.0, 30.0)
    assert not any("c_grid" in note for note in row.notes)


# --- letters


def test_transcribe_gives_the_letter_error() -> None:
    texts = ["ab", "ba", "a", "b", "aab", "abb"]
    clips = [torch.cat([torch.eye(3)[[0, 1 + "ab".index(c)]] for c in text]) for text in texts]
    row = transcribe("name", (clips, texts), (clips, texts), Settings())
    assert row == Row("name", {"letter_error": 0.0})
    untrained = transcribe("name", (clips, texts), (clips, texts), Settings(ctc_epochs=1))
    assert untrained.scores["letter_error"] > 0.2


# --- frames


def padded_batches(lengths: Sequence[Sequence[int]], seed: int = 0) -> list[Batch]:
    """Batches of inputs of these lengths; padding is NaN; no padding mask where all are equally long."""
    generator = torch.Generator().manual_seed(seed)
    batches, start = [], 100
    for sizes in lengths:
        padding = torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]
        inputs = torch.randn(len(sizes), max(sizes), 4, generator=generator).masked_fill(padding[..., None], torch.nan)
        ids = torch.arange(start, start + len(sizes))
        batches.append(Batch("x", inputs, ids, padding_mask=padding if padding.any() else None))
        start += len(sizes)
    return batches


@pytest.mark.parametrize("num_prefix_tokens", [0, 2])
def test_frames_are_every_samples_own_without_padding_and_prefix(num_prefix_tokens: int) -> None:
    encoder, batches = RowEncoder(num_prefix_tokens), padded_batches([[5, 3, 1], [4, 4], [2]])
    batches[1] = replace(batches[1], skipped=("a.wav: torn",), mask=TokenMask.from_bool(torch.eye(4).bool()[:2]))
    frames, ids, skipped = extract_frames(encoder, batches)
    assert [x.shape for x in frames] == [(n, DIM) for n in (5, 3, 1, 4, 4, 2)]
    assert ids.tolist() == list(range(100, 106))
    assert skipped == ("a.wav: torn",)
    assert encoder.training
    inputs = [row[: len(x)] for x, row in zip(frames, [row for b in batches for row in b.inputs], strict=True)]
    for x, row in zip(frames, inputs, strict=True):
        torch.testing.assert_close(x, 2 * encoder.embed(row).detach())


def test_frames_of_any_layer() -> None:
    encoder, batches = RowEncoder(), padded_batches([[5, 3], [4]])
    last = extract_frames(encoder, batches)[0]
    for layers, offset in ((0, 0), (-1, 2), ("average", 1)):
        for x, expected in zip(extract_frames(encoder, batches, layers=layers)[0], last, strict=True):  # type: ignore[arg-type]
            torch.testing.assert_close(x, expected / 2 + offset)
    concat = extract_frames(encoder, batches, layers="concat")[0]
    assert [x.shape for x in concat] == [(5, 3 * DIM), (3, 3 * DIM), (4, 3 * DIM)]
    torch.testing.assert_close(concat[1][:, DIM:], torch.cat([last[1] / 2 + 1, last[1] / 2 + 2], dim=1))
    with pytest.raises(ValueError, match=r"layers=all: frames are of one width; choose last, average, concat"):
        extract_frames(encoder, batches, layers="all")
    with pytest.raises(ValueError, match=rf"layers={DEPTH}, .*choose -3 to 2"):
        extract_frames(encoder, batches, layers=DEPTH)
    assert encoder.training


def test_frames_are_ordinary_float32_tensors_of_their_own() -> None:
    encoder = RowEncoder().bfloat16()
    batches = [replace(batch, inputs=batch.inputs.bfloat16()) for batch in padded_batches([[5, 3], [4]])]
    frames = extract_frames(encoder, batches)[0]
    for x in frames:
        assert x.dtype == torch.float32
        assert not x.is_inference()
        assert x.untyped_storage().nbytes() == x.numel() * 4
    nn.Linear(DIM, 2)(frames[0]).sum().backward()
