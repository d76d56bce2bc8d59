"""Fixtures of files that attack their reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from canary import SECRET, Canary


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    found = Canary(tmp_path)
    monkeypatch.setenv("D2V_CANARY", SECRET)
    for module, name in ((os, "system"), (os, "popen"), (os, "execv")):
        monkeypatch.setattr(module, name, lambda *a, name=name, **k: found.called.append(name))
    yield found
    found.check()
