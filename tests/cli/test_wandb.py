"""Weights & Biases in offline mode, for real: what it wrote is read back, and a resumed run keeps its id."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("wandb")


def _records(path: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: a LevelDB log after a header of 7 bytes."""
    content = path.read_bytes()
    magic, _, _ = struct.unpack("<4sHB", content[:7])
    assert magic == b":W&B"
    position, block, record = 7, 32768, b""
    while position + 7 <= len(content):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        if kind == 0:  # padding
            position += left
            continue
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield record
            record = b""


_READ = """
import json, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2 as pb
out = {"history": [], "config": {}, "run_id": None, "project": None}
for line in sys.stdin:
    record = pb.Record()
    record.ParseFromString(bytes.fromhex(line))
    kind = record.WhichOneof("record_type")
    if kind == "history":
        out["history"].append(
            {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        )
    elif kind == "run":
        out["run_id"], out["project"] = record.run.run_id, record.run.project
        for i in record.run.config.update:
            out["config"][i.key or "/".join(i.nested_key)] = json.loads(i.value_json)
    elif kind == "config":
        for i in record.config.update:
            out["config"][i.key or "/".join(i.nested_key)] = json.loads(i.value_json)
print("RESULT" + json.dumps(out))
"""


def _read(path: Path, environment: dict[str, str]) -> dict[str, Any]:
    lines = "".join(record.hex() + "\n" for record in _records(path))
    result = subprocess.run(
        [sys.executable, "-c", _READ], input=lines, capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(result.stdout.rpartition("RESULT")[2])


@pytest.mark.slow
def test_offline_run_is_written_and_resumed(runs: ModuleType, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("WANDB")},
        "HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home),
        "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "d2v.cli.main", "pretrain", f"output_dir={tmp_path / 'out'}", *runs.TINY,
        "logger=wandb", "logger.wandb.offline=true", "logger.wandb.project=a-project",
    ]  # fmt: skip
    for extra in (["trainer.max_steps=3"], ["trainer.max_steps=3", "resume=auto"]):
        if "resume=auto" in extra:  # as if it had been killed after step 2
            (run,) = (tmp_path / "out" / "image_tiny").iterdir()
            (run / "checkpoints" / "step-00000003.ckpt").unlink()
        result = subprocess.run(
            [*command, "callbacks.checkpoint.every_n_steps=2", *extra],
            capture_output=True, text=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "out" / "image_tiny").iterdir()
    run_id = (run / "wandb_id.txt").read_text().strip()
    files = sorted(run.rglob("*.wandb"))
    assert files
    read = [_read(path, environment) for path in files]
    assert {content["run_id"] for content in read} == {run_id}
    assert {content["project"] for content in read} == {"a-project"}
    history = [row for content in read for row in content["history"]]
    logged = {}
    for row in history:
        if "train/loss" in row:
            logged[int(row.get("trainer/global_step", row.get("step", row.get("_step"))))] = row
    rows = {int(row["step"]): row for row in runs.metrics(run)}
    assert logged.keys() == rows.keys() == {1, 2, 3}
    for step, row in rows.items():
        for key in ("train/loss", "train/effective_rank", "train/grad_norm", "train/lr", "perf/samples_per_s"):
            assert logged[step][key] == pytest.approx(float(row[key]), rel=1e-5), key
    config = json.dumps(read[0]["config"])
    assert "embed_dim" in config
    # nothing outside the run's folder and wandb's own caches
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]
