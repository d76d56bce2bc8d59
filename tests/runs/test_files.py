"""Files are replaced whole or not at all, follow no link, and leave no parts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

from d2v.runs.files import (
    NotWritten,
    refuse_foreign,
    replace_bytes,
    replace_json,
    replace_text,
    replace_yaml,
    replacing,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_format_reads_back(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.txt", "ä\r\n")
    replace_json(tmp_path / "a.json", {"ä": [1, None]})
    replace_yaml(tmp_path / "a.yaml", {"b": 1, "a": ["ü", 2.5]})
    assert (tmp_path / "a.txt").read_bytes() == "ä\r\n".encode()
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"ä": [1, None]}
    assert list(yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8")).items()) == [("b", 1), ("a", ["ü", 2.5])]
    assert names(tmp_path) == ["a.json", "a.txt", "a.yaml"]
    with pytest.raises(ValueError, match="JSON"):
        replace_json(tmp_path / "a.json", [float("nan")])
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"ä": [1, None]}


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_no_part(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half of")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Neither one in the place of the file nor one in the place of its part."""
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    (folder / "config.yaml").symlink_to(victim)
    (folder / ".config.yaml.part").symlink_to(victim)
    replace_bytes(folder / "config.yaml", b"new")
    assert victim.read_text() == "precious"
    assert not (folder / "config.yaml").is_symlink()
    assert (folder / "config.yaml").read_bytes() == b"new"
    assert names(folder) == ["config.yaml"]


def test_a_part_left_by_a_kill_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_text("half")
    replace_bytes(tmp_path / "a", b"whole")
    assert names(tmp_path) == ["a"]


def _torchs_own() -> None:
    try:
        raise OSError(28, "No space left on device")
    finally:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")


def _safetensors_own() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [_torchs_own, _safetensors_own])
def test_errors_of_the_disk_name_key_and_path(fail: Callable[[], None]) -> None:
    said = r"^output=x: could not be written .*No space left.*make room.*output=\.\.\."
    with pytest.raises(NotWritten, match=said), writing("output", "x"):
        fail()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SafetensorError("invalid header"), ValueError("a value")])
def test_other_errors_are_left_alone(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writing("output", "x"):
        raise error
    assert caught.value is error


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    def begins_with_ours(path: Path) -> bool:
        return path.read_text().startswith("ours")

    mine, others, folder = tmp_path / "mine", tmp_path / "others", tmp_path / "folder"
    mine.write_text("ours, too")
    others.write_bytes(b"\xff is no text")
    folder.mkdir()
    refuse_foreign(mine, "output", begins_with_ours, "report")
    refuse_foreign(tmp_path / "new", "output", begins_with_ours, "report")
    for path in (others, folder):
        with pytest.raises(ValueError, match=f"^output={path}: is there already and is no report: choose another name"):
            refuse_foreign(path, "output", begins_with_ours, "report")


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(path.read_text()))
    replace_bytes(path, b"new")
    assert synced == ["old", "new"]  # the part's bytes first, then the folder's names
