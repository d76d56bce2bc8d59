"""Streams that are shared out: every row once, in whatever form they are stored, and resumed where they stopped."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from same_batches import assert_same_batches

from d2v.data.bad_samples import NoSamples
from d2v.data.images.factories import hf_images
from d2v.data.loading import NoPosition, ShardedLoader, Workers
from d2v.data.samplers import StepPlan
from d2v.data.speech.factories import hf_audio
from d2v.data.texts.factories import hf_text
from d2v.objective.masking import RandomMask
from d2v.types import Batch

NUM_SHARDS, ROWS = 4, 6  # of every shard
MASK = RandomMask(mask_ratio=0.5, num_masks=1)
RATE = 8000


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 10 * number, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def wav(number: int) -> bytes:
    file = io.BytesIO()
    time = np.arange(800) / RATE
    soundfile.write(file, np.sin(2 * np.pi * 100 * (number + 1) * time).astype("float32"), RATE, format="wav")
    return file.getvalue()


def sentence(number: int) -> bytes:
    return (" ".join(f"{number}" for _ in range(20)) + " end").encode()


KINDS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "image": ("png", png),
    "speech": ("wav", wav),
    "text": ("txt", sentence),
}


def shards(folder: Path, kind: str, form: str, num_shards: int = NUM_SHARDS, bad: Sequence[int] = ()) -> str:
    """A data set in so many shards, rows 0 to 5 in the first, and so on."""
    ending, make = KINDS[kind]
    folder.mkdir()
    for shard in range(num_shards):
        numbers = range(shard * ROWS, (shard + 1) * ROWS)
        contents = [b"no such file" if number in bad else make(number) for number in numbers]
        if form == "tar":
            with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as archive:
                for number, content in zip(numbers, contents, strict=True):
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            continue
        if kind == "text":
            table = datasets.Dataset.from_dict({ending: [content.decode() for content in contents]})
        else:
            table = datasets.Dataset.from_dict({ending: [{"bytes": content, "path": None} for content in contents]})
        if form == "parquet":
            table.to_parquet(folder / f"train-{shard:04d}.parquet")
        else:
            table.save_to_disk(folder.parent / f"{folder.name}-{shard}")
            (arrow,) = (folder.parent / f"{folder.name}-{shard}").glob("*.arrow")
            arrow.rename(folder / f"train-{shard:04d}.arrow")
    return str(folder)


def data_of(kind: str, path: str, tmp_path: Path, streaming: Any = "sharded", shuffle_buffer: int = 4) -> Any:
    options: dict[str, Any] = {"streaming": streaming, "shuffle_buffer": shuffle_buffer, "max_bad_fraction": 0.5}
    if kind == "image":
        return hf_images(path, img_size=8, patch_size=2, crop_scale=(1.0, 1.0), hflip=0.0, **options)
    if kind == "speech":
        return hf_audio(
            path, sample_rate=RATE, conv_layers=[[8, 40, 20]], crop_seconds=0.1, min_seconds=0.05, **options
        )
    return hf_text(path, column="txt", vocab_size=300, block_size=16, cache=str(tmp_path / "cache"), **options)


def loader(
    data: Any, steps: int, *, rank: int = 0, ranks: int = 1, workers: int = 0, start: int = 0, micro: int = 1
) -> Any:
    """Batches of one rank; ``start`` and ``steps`` in micro-batches."""
    one = {"image": 1.0, "speech": 0.1, "text": 1.0}[data.modality]
    split = data.split_batch(one * micro * ranks, None, ranks)
    plan = StepPlan(num_batches=steps, start_batch=start, rank=rank, world_size=ranks)
    return data.loader(MASK, 3, split, plan, Workers(workers))


def content(batches: Sequence[Batch]) -> Counter[str]:
    """Every sample by what is in it, views being the whole of it."""
    return Counter(str([round(value, 3) for value in row.flatten()[:40].tolist()]) for b in batches for row in b.inputs)


def pass_of(data: Any, num_samples: int, **how: int) -> list[Batch]:
    return list(loader(data, num_samples, **how))


@pytest.mark.parametrize("form", ["tar", "parquet", "arrow"])
@pytest.mark.parametrize("kind", ["image", "speech"])
def test_two_ranks_of_two_workers_read_every_row_once(tmp_path: Path, kind: str, form: str) -> None:
    data = data_of(kind, shards(tmp_path / "set", kind, form), tmp_path)
    assert isinstance(loader(data, 1), ShardedLoader)
    total = NUM_SHARDS * ROWS
    exact = content(pass_of(data_of(kind, str(tmp_path / "set"), tmp_path, streaming=True), total))
    assert len(exact) == total
    ranks = [pass_of(data, total, rank=rank, ranks=2, workers=2) for rank in range(2)]  # two passes
    first = [batch for rank in ranks for batch in rank[: total // 2]]
    assert content(first) == exact
    assert len({int(batch.sample_ids) for batch in first}) == total
    assert content([batch for rank in ranks for batch in rank]) == exact + exact


@pytest.mark.parametrize("form", ["tar", "parquet", "arrow"])
def test_text_is_packed_by_the_reader_of_its_rows(tmp_path: Path, form: str) -> None:
    """What a reader packs is in no other's blocks: the text of a shard is in its first words."""
    data = data_of("text", shards(tmp_path / "set", "text", form), tmp_path, shuffle_buffer=1)
    seen = []
    for rank in range(2):
        text = data.tokenizer.decode(
            [i for batch in loader(data, 24, rank=rank, ranks=2) for i in batch.inputs[0].tolist()]
        )
        seen.append({int(word) for word in text.replace("end", " ").split() if word.isdecimal()} & set(range(24)))
    assert seen[0] & set(range(ROWS)) == set(range(ROWS))
    assert not seen[0] & set(range(ROWS, 2 * ROWS))
    assert seen[1] & set(range(ROWS, 2 * ROWS)) == set(range(ROWS, 2 * ROWS))


@pytest.mark.parametrize(
    ("form", "workers"), [("tar", 0), ("parquet", 0), ("parquet", 2), ("arrow", 0)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("kind", ["image", "speech", "text"])
def test_a_resume_repeats_and_loses_nothing(tmp_path: Path, kind: str, form: str, workers: int) -> None:
    data = data_of(kind, shards(tmp_path / "set", kind, form), tmp_path)
    how = {"rank": 1, "ranks": 2, "workers": workers, "micro": 2}
    whole = list(loader(data, 20, **how))  # more than a pass
    for stop in (4, 9, 14):
        first = loader(data, 20, **how)
        batches = iter(first)
        taken = [next(batches) for _ in range(stop + 1)]  # the trainer takes one in advance
        assert_same_batches(taken, whole[: stop + 1])
        state = first.state_dict(stop)
        torch.save(state, tmp_path / "state")
        rest = loader(data, 20, start=stop, **how)
        rest.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert rest.state_dict(stop) == state  # a run that stops at once
        assert_same_batches(list(rest), whole[stop:])


def test_shards_are_left_to_their_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With shards enough, nobody opens another's."""
    path = shards(tmp_path / "set", "image", "parquet")
    data = data_of("image", path, tmp_path, shuffle_buffer=100)
    (tmp_path / "set" / "train-0003.parquet").unlink()
    assert len(pass_of(data, 3 * ROWS, rank=0, ranks=4)) == 3 * ROWS
    with pytest.raises(FileNotFoundError):
        pass_of(data, 1, rank=3, ranks=4)


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 0), (1, 2)])
def test_fewer_shards_than_readers(tmp_path: Path, ranks: int, workers: int) -> None:
    """All read all, and each keeps its share of the rows."""
    data = data_of("image", shards(tmp_path / "set", "image", "tar", num_shards=1), tmp_path)
    batches = [
        batch
        for rank in range(ranks)
        for batch in pass_of(data, ROWS // ranks, rank=rank, ranks=ranks, workers=workers)
    ]
    assert sorted(content(batches).values()) == [1] * ROWS


def test_an_order_of_its_own_for_every_pass_and_seed(tmp_path: Path) -> None:
    data = data_of("image", shards(tmp_path / "set", "image", "parquet"), tmp_path, shuffle_buffer=24)
    total = NUM_SHARDS * ROWS
    ids = [int(batch.sample_ids) for batch in pass_of(data, 2 * total)]
    assert sorted(ids[:total]) == sorted(ids[total:]) == list(range(total))
    assert ids[:total] != ids[total:] != sorted(ids[total:])
    other = data.loader(MASK, 4, data.split_batch(1, None, 1), StepPlan(num_batches=total), Workers())
    assert [int(batch.sample_ids) for batch in other] != ids[:total]
    in_order = data_of("image", str(tmp_path / "set"), tmp_path, shuffle_buffer=1)
    assert [int(batch.sample_ids) for batch in pass_of(in_order, total)] == list(range(total))


def test_bad_rows_are_replaced_named_and_counted(tmp_path: Path) -> None:
    data = data_of("image", shards(tmp_path / "set", "image", "parquet", bad=(1, 7)), tmp_path, shuffle_buffer=1)
    found = loader(data, 11, rank=0, ranks=2)
    batches = list(found)
    assert [int(batch.sample_ids) // 2 for batch in batches] == [0, *range(2, 12)]
    assert [entry.partition(": ")[0] for batch in batches for entry in batch.skipped] == [
        f"{tmp_path}/set/train[1] of share 1 of 2"
    ]
    assert (found.bad_samples.num_bad, found.bad_samples.num_seen) == (1, 12)


def test_what_cannot_be_resumed_says_so(tmp_path: Path) -> None:
    data = data_of("image", shards(tmp_path / "set", "image", "parquet"), tmp_path)
    state = loader(data, 8, workers=2).state_dict(0)
    with pytest.raises(NoPosition, match=r"num_workers=1: 2 on each device .* resume it with num_workers=2"):
        loader(data, 8).load_state_dict(state)
    with pytest.raises(NoPosition, match=r"streaming=sharded: the run that is resumed kept no position"):
        next(iter(loader(data, 8, start=2)))


def test_a_share_without_a_row_says_so(tmp_path: Path) -> None:
    data = data_of("image", shards(tmp_path / "set", "image", "parquet", num_shards=1), tmp_path)
    with pytest.raises(NoSamples, match=r"share 8 of 8 holds no row; .* lower num_workers or the number of devices"):
        pass_of(data, 1, rank=7, ranks=8)
