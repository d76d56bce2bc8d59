"""An export in any format says nothing of who trained it where."""

from __future__ import annotations

import dataclasses
import getpass
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from d2v.cli import export
from d2v.interop.checkpoints import Checkpoint, open_checkpoint
from d2v.interop.exports import load_export_config
from d2v.interop.private import public_inputs

OWNER = "alice-q7x"  # appears in every path and text of the run
TOKENIZER = '{"model": {"vocab": {"<s>": 0}}}'


@pytest.fixture(scope="module")
def run(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run below the home folder of OWNER, on images below it."""
    home = tmp_path_factory.mktemp("home") / OWNER
    images = runs.image_folder(home / "pictures")
    return runs.pretrain(home / "runs", *runs.folder_data(images))


@pytest.fixture(scope="module")
def trained(run: Path) -> Checkpoint:
    found = open_checkpoint(run)
    assert OWNER in str(found.data_node["root"])
    private = {
        "tokenizer": f"/home/{OWNER}/tokenizer.json", "columns": [OWNER], "nested": {"key": OWNER},
    }  # fmt: skip
    return dataclasses.replace(found, inputs={**found.inputs, **private})


def _check(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    secrets = {OWNER, str(folder.parent), str(Path(__file__).parents[2])}
    secrets |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    for path in files:
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, (path.name, secret)


@pytest.mark.parametrize("form", ["to_d2v", "to_huggingface", "to_onnx", "to_fairseq"])
def test_no_byte_of_an_export_is_private(form: str, trained: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / f"of-{OWNER}"
    getattr(export, form)(trained, folder, "student")
    _check(folder)


def test_an_import_is_private_too(runs: ModuleType, trained: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / OWNER
    export.to_fairseq(trained, folder, "student")
    source = folder / f"{OWNER}.pt"
    (folder / "checkpoint.pt").rename(source)
    result = runs.d2v_command("import", f"checkpoint={source}", f"output={tmp_path / 'imported'}")
    assert result.status in (0, None), result.err
    _check(tmp_path / "imported")


def test_inputs_stay(trained: Checkpoint, tmp_path: Path) -> None:
    export.to_d2v(trained, tmp_path, "student")
    config = load_export_config(tmp_path)
    assert config["inputs"]["mean"] == trained.data_node["mean"]
    assert config["inputs"]["img_size"] == trained.data_node["img_size"]
    assert "data" not in config  # nobody else has these images


CASES: dict[str, tuple[Any, Any]] = {
    "numbers": ([[512, 10, 5], [0.5]], [[512, 10, 5], [0.5]]),
    "a flag": (True, True),
    "a tokenizer": (TOKENIZER, TOKENIZER),
    "a tokenizer's path": ("/home/a/t.json", None),
    "a list with a path": ([1, "/home/a"], None),
    "a mapping": ({"key": "a"}, None),
    "nothing": (None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_public_inputs(name: str) -> None:
    value, expected = CASES[name]
    assert public_inputs({"key": value}) == {"key": expected}
