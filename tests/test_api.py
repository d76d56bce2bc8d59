"""The package's front door: cheap to open, and every name behind it is there."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import metadata

import pytest

import d2v

HEAVY = (
    "torch", "torchvision", "numpy", "timm", "lightning", "pytorch_lightning", "hydra", "omegaconf", "datasets",
    "wandb", "sklearn", "matplotlib", "safetensors", "tensorboard", "PIL",
)  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Top-level modules a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_d2v_is_cheap() -> None:
    loaded = loaded_by("import d2v; d2v.__version__")
    assert "d2v" in loaded
    assert loaded & set(HEAVY) == set()


def test_the_library_needs_neither_trainer_nor_command_line() -> None:
    loaded = loaded_by("import d2v; [getattr(d2v, name) for name in d2v.__all__]")
    assert "torch" in loaded
    # wandb is not listed: timm imports it wherever it is installed.
    heavy = {"lightning", "pytorch_lightning", "hydra", "datasets", "sklearn", "matplotlib", "tensorboard"}
    assert loaded & heavy == set()


def test_at_most_a_dozen_public_names_all_of_which_resolve() -> None:
    assert 1 <= len(d2v.__all__) <= 12
    assert len(set(d2v.__all__)) == len(d2v.__all__)
    for name in d2v.__all__:
        assert getattr(d2v, name) is not None
    for name, module in d2v._LAZY.items():
        assert name in d2v.__all__
        assert getattr(d2v, name) is getattr(importlib.import_module(module), name)


def test_star_import_brings_exactly_the_public_names() -> None:
    namespace: dict[str, object] = {}
    exec("from d2v import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(d2v.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = d2v.no_such_name


def test_version_is_the_installed_one() -> None:
    assert d2v.__version__ == metadata.version("d2v")
