"""Two processes that train together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from two_processes import COMMON, MODALITIES, WAYS, Pair


@pytest.fixture(scope="module")
def recipes(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Small runs of every modality, without the decoder's noise, which no two splits of a batch share."""
    root = tmp_path_factory.mktemp("data")
    speech = runs.librispeech(root / "speech", speakers=3, clips=5)
    data = {
        "image": ["data.patch_size=7", "mask.num_masks=2", "mask.mask_length=2",
                  "mask.mask_ratio=0.8", "mask.mask_ratio_adjust=0.07", "global_batch_size=8", "micro_batch_size=2"],
        "speech": ["data=librispeech", f"data.root={speech}", "data.train=train-clean-100", "data.val=train-clean-100",
                   "data.probe_train=null", "global_batch_size=16", "micro_batch_size=4"],
        "text": ["data=text_files", f"data.root={runs.text_file(root / 'text.txt')}", "data.vocab_size=300",
                 "global_batch_size=8", "micro_batch_size=2"],
    }  # fmt: skip
    return {
        name: [f"experiment={name}_tiny", *runs.SMALL[name], *data[name], *COMMON,
               f"model.decoders.{name}.mask_noise_std=0", "seed=0"]
        for name in MODALITIES
    }  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as context:
        context.setenv("D2V_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def pair(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    started = Pair(tmp_path_factory.mktemp("pair") / "log")
    yield started
    started.close()


@pytest.fixture(scope="module")
def launch(runs: ModuleType, pair: Pair) -> Any:
    """A command in this process, in two that are there, or in those that it starts by itself."""

    def run(folder: Path, *overrides: str, command: str = "pretrain") -> Path:
        arguments = [command, f"hydra.run.dir={folder}", *overrides]
        devices = [o for o in overrides if o.startswith("trainer.devices=")][-1:]
        if devices == ["trainer.devices=2"]:
            pair.begin(*arguments)
            for status, out, err in pair.end():
                assert status in (0, None), out + err
        elif devices in ([], ["trainer.devices=1"]):
            result = runs.d2v_command(*arguments)
            assert result.status in (0, None), result.err
        else:
            result = subprocess.run(
                [sys.executable, "-m", "d2v.cli.main", *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            assert result.returncode == 0, result.stdout + result.stderr
        return folder

    return run


@pytest.fixture(scope="module")
def run_of(recipes: dict[str, list[str]], launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of a modality in a way ("one", "ddp", "fsdp"), made when first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def get(modality: str, way: str) -> Path:
        if (modality, way) not in made:
            folder = tmp_path_factory.mktemp(f"{modality}-{way}") / "run"
            made[modality, way] = launch(folder, *recipes[modality], *WAYS.get(way, []))
        return made[modality, way]

    return get
