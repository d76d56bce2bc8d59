"""A canary, and what refuses a file without killing it."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import hostile as make
import pytest

from d2v.interop.build import build
from d2v.interop.checkpoints import open_checkpoint

SECRET = "secret-of-the-environment"


class Canary:
    """What must not change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "home" / ".bashrc"
        self.file.parent.mkdir()
        self.file.write_text("# mine")
        self.called: list[str] = []

    def check(self) -> None:
        assert self.file.read_text() == "# mine"
        assert [path.name for path in self.file.parent.iterdir()] == [".bashrc"]
        assert not self.called
        assert not list(self.folder.rglob("EXECUTED*"))


def refused(path: Path) -> str:
    """Read a file as every command does; it must be refused in words, soon, in little memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        open_checkpoint(path)
    model = build(make.MODEL)
    with pytest.raises((ValueError, FileNotFoundError)):
        open_checkpoint(path).start(model)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    assert SECRET not in str(error.value)
    assert "SHA-256" not in str(error.value)  # it would hide what is tested
    return str(error.value)
