"""Tests of security run commands as the tests of the command line do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """``tests/lit/tiny_runs.py``."""
    if "tiny_runs" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_runs", Path(__file__).parents[1] / "lit" / "tiny_runs.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["tiny_runs"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["tiny_runs"]
