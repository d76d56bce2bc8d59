"""Files of features: the same content as :func:`extract` returns, in memory that does not grow with the rows."""

from __future__ import annotations

import json
import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from row_encoder import RowEncoder
from safetensors import safe_open

from d2v.eval import feature_files
from d2v.eval.feature_files import holds_features, write_features
from d2v.eval.features import Features, extract, extract_batches
from d2v.types import Batch


def batches(lengths: list[list[int]], labelled: bool = True) -> list[Batch]:
    """Samples of these numbers of tokens, ids from the last to the first; one batch holds nothing readable."""
    generator = torch.Generator().manual_seed(0)
    made, last = [], sum(map(len, lengths))
    for sizes in lengths:
        padding = torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]
        ids = torch.arange(last - 1, last - 1 - len(sizes), -1)
        last -= len(sizes)
        made.append(
            Batch(
                "x",
                torch.randn(len(sizes), max(sizes), 4, generator=generator),
                ids,
                padding_mask=padding if padding.any() else None,
                labels=ids % 3 if labelled else None,
            )
        )
    empty = replace(made[0], inputs=torch.empty(0, 1, 4), sample_ids=torch.empty(0, dtype=torch.int64), skipped=("z",))
    return [*made[:1], replace(empty, padding_mask=None, labels=None), *made[1:]]


def read(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {key: file[key].tolist() if file[key].dtype.kind == "U" else file[key] for key in file}
    with safe_open(path, "np") as file:
        texts = {key: json.loads(value) for key, value in file.metadata().items()}
        return {**{key: file.get_tensor(key) for key in file.keys()}, **texts}  # noqa: SIM118


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ([[5, 3, 1], [4, 4], [2]], {}),
        ([[5, 3, 1], [4, 4], [2]], {"pool": "none"}),
        ([[5, 3, 1], [4, 4], [2]], {"pool": "none", "layers": "all"}),
        ([[4, 4, 4], [4, 4]], {"pool": "none"}),
        ([[4, 4, 4], [4, 4]], {"pool": "none", "layers": "all"}),
        ([[4, 4, 4], [4, 4]], {"layers": "all"}),
    ],
)
def test_holds_what_extract_returns_by_id(
    tmp_path: Path, suffix: str, lengths: list[list[int]], options: dict[str, Any]
) -> None:
    expected = extract(RowEncoder(), batches(lengths), **options).by_id()
    torch.manual_seed(0)
    path = tmp_path / "folder" / f"f{suffix}"
    encoder = RowEncoder()
    expected = extract(encoder, batches(lengths), **options).by_id()
    parts = extract_batches(encoder, batches(lengths), **options)
    written = write_features(path, parts, lambda i: f"sample {i}", ["a", "b", "c"])
    content = read(path)
    np.testing.assert_allclose(content["features"], expected.features.numpy(), rtol=1e-6)
    assert written.shape == content["features"].shape == tuple(expected.features.shape)
    assert content["sample_ids"].tolist() == expected.sample_ids.tolist()
    assert expected.labels is not None
    assert content["labels"].tolist() == expected.labels.tolist()
    assert ("lengths" in content) == (expected.lengths is not None)
    if expected.lengths is not None:
        assert content["lengths"].tolist() == expected.lengths.tolist()
    assert content["names"] == [f"sample {i}" for i in expected.sample_ids.tolist()]
    assert content["class_names"] == ["a", "b", "c"]
    assert written.skipped == expected.skipped == ("z",)
    assert holds_features(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary


def test_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    write_features(path, extract_batches(RowEncoder(), batches([[2, 2]], labelled=False)), str, ["a"])
    assert set(read(path)) == {"features", "sample_ids", "names"}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either order of samples: read back in pieces, or row by row."""
    monkeypatch.setattr(feature_files, "_COPIED_AT_ONCE", 1 << 18)
    alive: weakref.WeakSet[Features] = weakref.WeakSet()

    def parts(count: int, ascending: bool) -> Iterator[Features]:
        for i in range(count) if ascending else reversed(range(count)):
            part = Features(torch.full((16, 4096), float(i)), None, torch.arange(16 * i, 16 * i + 16))
            alive.add(part)
            assert len(alive) <= 3  # tracemalloc does not see tensors
            yield part

    def peak(count: int, ascending: bool) -> int:
        tracemalloc.start()
        write_features(tmp_path / f"f{suffix}", parts(count, ascending))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(2, True)
    few, many = peak(10, True), peak(200, True)  # 2.6 MB and 52 MB of features
    assert many < few + 2_000_000
    assert peak(200, False) < few + 2_000_000
    assert read(tmp_path / f"f{suffix}")["features"][:, 0].tolist() == [i // 16 for i in range(3200)]


def test_an_error_leaves_an_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    write_features(path, extract_batches(RowEncoder(), batches([[2, 2]])))
    before = path.read_bytes()

    def breaks() -> Iterator[Features]:
        yield from extract_batches(RowEncoder(), batches([[2, 2]]))
        raise RuntimeError("the encoder broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_features(path, breaks())
    with pytest.raises(ValueError, match="no batches to extract features from"):
        write_features(path, iter(()))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]
