"""Text data that are small, and a cache that is a test's own."""

from __future__ import annotations

import pytest
from small_texts import sentences


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """A folder of two files, 300 documents."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(sentences(200)) + "\n")
    (folder / "b.txt").write_text("\n".join(sentences(100, 1)) + "\n")
    return str(folder)
