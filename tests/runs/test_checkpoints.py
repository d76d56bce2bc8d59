"""Checkpoints of a folder; damage of every kind and at every place is noticed before anything is loaded."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2v.runs import archives
from d2v.runs.archives import Damaged, check_archive, is_archive
from d2v.runs.checkpoints import checkpoint_name, list_checkpoints, newest_intact_checkpoint, saved_steps


def save(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.ckpt"
    torch.save({"state_dict": {"w": torch.full((2000,), float(step)), "b": torch.ones(3)}, "global_step": step}, path)
    return path


def test_newest_first(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (2, 10, 9)]
    (tmp_path / "step-00000099.ckpt.part").write_text("")
    assert list_checkpoints(tmp_path) == [paths[1], paths[2], paths[0]]
    assert newest_intact_checkpoint(tmp_path) == paths[1]


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert newest_intact_checkpoint(tmp_path) is None
    assert newest_intact_checkpoint(tmp_path / "missing") is None
    (tmp_path / "step-00000001.ckpt").write_bytes(b"")
    assert newest_intact_checkpoint(tmp_path) is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float) -> None:
    intact, damaged = save(tmp_path, 1), save(tmp_path, 2)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: int(share * len(content))])
    with caplog.at_level(logging.WARNING):
        assert newest_intact_checkpoint(tmp_path) == intact
    assert damaged.name in caplog.text


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """In records, in the padding between them, in the archive's directory; only version numbers may be any."""
    path = save(tmp_path, 1)
    content = path.read_bytes()
    check_archive(path)
    passed = []
    step = max(1, len(content) // 1500)
    start = zipfile.ZipFile(path).start_dir
    for position in [*range(0, start, step), *range(start, len(content))]:
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        try:
            check_archive(path)
        except Damaged:
            continue
        passed.append(position)
    end = len(content) - 98 + 12  # the versions in the "end of central directory" of zip64
    assert passed == [*range(end, end + 4)]


@pytest.mark.parametrize("length", [64, 4096])
def test_a_hole_of_zeros_is_noticed(tmp_path: Path, length: int) -> None:
    path = save(tmp_path, 1)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(length) + content[middle + length :])
    with pytest.raises(Damaged):
        check_archive(path)


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)
    os.utime(path, (1, 1))
    check_archive(path)

    def refuse(*_: Any) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as context:
        context.setattr(archives.zipfile, "ZipFile", refuse)
        check_archive(path)
        os.utime(path, (2, 2))
        with pytest.raises(AssertionError, match="read again"):
            check_archive(path)


def test_a_file_written_just_now_is_read_again(tmp_path: Path) -> None:
    """Within a tick of the file system's clock it could change and look the same."""
    path = save(tmp_path, 1)
    check_archive(path)
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(Damaged):
        check_archive(path)


def test_archives_of_others(tmp_path: Path) -> None:
    """Uncompressed ones are compared with their checksums; compressed and overlapping ones are not unpacked."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(9))
    assert is_archive(path)
    check_archive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1_000_000))
    with pytest.raises(Damaged, match="is compressed"):
        check_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(50_000))
        archive.filelist *= 3
    with pytest.raises(Damaged, match="larger than the file"):
        check_archive(path)


def test_steps_of_checkpoints_come_newest_first(tmp_path: Path) -> None:
    for step in (9, 1000, 20):
        (tmp_path / checkpoint_name(step)).touch()
    for name in ("best.ckpt", "step-old.ckpt", ".step-00000030.ckpt.part"):
        (tmp_path / name).touch()
    assert checkpoint_name(20) == "step-00000020.ckpt"
    assert saved_steps(tmp_path) == [1000, 20, 9]
