"""Git LFS pointers are told from data."""

from __future__ import annotations

import pytest

from d2v.lfs import is_lfs_pointer, refuse_lfs_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"6" * 64 + b"\nsize 146946961\n"


def test_pointers(tmp_path):
    (tmp_path / "model.pt").write_bytes(POINTER)
    (tmp_path / "long.txt").write_bytes(POINTER * 8)  # a text about pointers
    assert is_lfs_pointer(POINTER)
    assert is_lfs_pointer(tmp_path / "model.pt")
    assert not is_lfs_pointer(b"")
    assert not is_lfs_pointer(b"x" + POINTER)
    assert not is_lfs_pointer(tmp_path / "long.txt")
    assert not is_lfs_pointer(tmp_path / "gone")
    assert not is_lfs_pointer(tmp_path)


def test_the_error_names_key_file_and_fix(tmp_path):
    (tmp_path / "model.pt").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"checkpoint=x: .*model\.pt is a Git LFS pointer.*git lfs pull"):
        refuse_lfs_pointer(tmp_path / "model.pt", "checkpoint=x")
    refuse_lfs_pointer(tmp_path / "gone", "checkpoint=x")
