"""Every command opens, checks and reads a checkpoint once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from d2v.interop.native import read_safely

_watched: dict[str, int] = {}  # openings by path; an audit hook cannot be removed


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and str(arguments[0]) in _watched:
        _watched[str(arguments[0])] += 1


sys.addaudithook(_count)


@contextmanager
def watching(path: Path) -> Iterator[Callable[[], int]]:
    """Count how often Python opens a file."""
    _watched[str(path)] = 0
    try:
        yield lambda: _watched[str(path)]
    finally:
        del _watched[str(path)]


@pytest.fixture(scope="module")
def run(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pretrained: Path = runs.pretrain(tmp_path_factory.mktemp("run"), *runs.folder_data(images))
    return pretrained


COMMANDS = {
    "evaluate": ["baselines=false", "probe=knn"],
    "extract": ["output=OUT/x.npz"],
    "export": ["output=OUT/export"],
    "export fairseq": ["output=OUT/export", "format=fairseq"],
    "import": ["output=OUT/import"],
    "info": [],
    "finetune": ["task=image_classification", "data.root=IMAGES", "trainer.max_steps=1", "global_batch_size=4",
                 "labels.augment.mixup=0", "labels.augment.cutmix=0", "trainer.accelerator=cpu", "num_threads=1"],
    "pretrain": ["TINY", "trainer.max_steps=1"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_checkpoint_is_read_once(runs: ModuleType, run: Path, images: Path, tmp_path: Path, name: str) -> None:
    """As often as one safe reading opens it: to compare checksums, to look for code, and to map it."""
    (source,) = sorted((run / "checkpoints").glob("step-*.ckpt"))[-1:]
    path, other = (Path(shutil.copyfile(source, tmp_path / file)) for file in ("a.ckpt", "b.ckpt"))
    with watching(other) as openings:
        read_safely(other)
        once = openings()
    assert once > 0
    command = name.split()[0]
    words = [word.replace("OUT", str(tmp_path)).replace("IMAGES", str(images)) for word in COMMANDS[name]]
    words = [word for given in words for word in (runs.TINY if given == "TINY" else [given])]
    data = runs.folder_data(images) if command == "pretrain" else []
    folder = [f"hydra.run.dir={tmp_path / 'run'}"] if command in ("pretrain", "finetune", "evaluate") else []
    key = "init_from" if command == "pretrain" else "checkpoint"
    with watching(path) as openings:
        result = runs.d2v_command(command, f"{key}={path}", *data, *words, *folder)
        assert result.status in (0, None), result.err
        assert openings() == once
