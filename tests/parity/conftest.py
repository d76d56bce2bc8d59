"""``scripts/check_parity.py``, called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def main(check_parity: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script's main in this process: cheaper than a subprocess for each broken case."""

    def call(folder: Path, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["check_parity.py", str(folder), *arguments])
        return check_parity.main()

    return call
