"""Golden cases with something changed, as folders for ``scripts/check_parity.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from d2v.interop.fairseq.layouts import to_d2v_state, to_d2v_teacher

GOLDEN_OF_1 = ["v1_audio", "v1_image", "v1_text"]

Edit = Callable[[dict[str, Any], dict[str, Tensor]], Any]


def copy_case(golden_dir: Path, folder: Path, name: str, edit: Edit | None = None) -> Path:
    spec = json.loads((golden_dir / f"{name}.json").read_text())
    tensors = load_file(golden_dir / f"{name}.safetensors")
    if edit is not None:
        edit(spec, tensors)
    write_case(folder, name, spec, tensors)
    return folder


def write_case(folder: Path, name: str, spec: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(spec))
    save_file(tensors, folder / f"{name}.safetensors")


def gradients(case: Any) -> set[str]:
    """What must be checked of the gradients that the case holds."""
    theirs = {k.removeprefix("grad/"): v for k, v in case.tensors.items() if k.startswith("grad/")}
    assert len(theirs) > 20
    return {f"grad/{name}" for name in to_d2v_state(theirs, case.layout)}


def trained_teacher(case: Any) -> set[str]:
    """What must be checked of the teacher that the case holds."""
    theirs = {k.removeprefix("teacher_after/"): v for k, v in case.tensors.items() if k.startswith("teacher_after/")}
    assert len(theirs) > 20
    return {f"teacher_after/{name}" for name in to_d2v_teacher(theirs, case.layout)}


def scale(key: str, factor: float) -> Edit:
    return lambda _, tensors: tensors.update({key: tensors[key] * factor})


def swap(a: str, b: str) -> Edit:
    return lambda _, tensors: tensors.update({a: tensors[b].clone(), b: tensors[a].clone()})
