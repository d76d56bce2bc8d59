"""The scripts as modules; they import each other as when one of them is run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session", autouse=True)
def _scripts_can_be_imported() -> None:
    for folder in (SCRIPTS, SCRIPTS / "bench"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


@pytest.fixture(scope="session")
def bench_step() -> ModuleType:
    """``scripts/bench/step.py``."""
    return importlib.import_module("step")


@pytest.fixture(scope="session")
def bench_data() -> ModuleType:
    """``scripts/bench/data.py``."""
    return importlib.import_module("data")
