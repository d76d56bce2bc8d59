"""Tests of the trainer use tiny runs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import tiny_runs


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """``tiny_runs.py``."""
    return tiny_runs


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 training and 12 validation images of two classes."""
    return tiny_runs.image_folder(tmp_path_factory.mktemp("images"))
