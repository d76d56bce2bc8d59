"""What the machine should do: accumulation, precision, threads, workers, run records."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from d2v.arguments import check, parameters
from d2v.cli.settings import Machine
from d2v.lit import machine, setup
from d2v.lit.strategies import FullyShardedStrategy, choose_strategy
from d2v.lit.trainer import trainer_options
from d2v.types import Targets


def test_choose_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, "bf16-mixed"), (False, "32-true")):
        for own, other in (("amx_tile", "avx512_bf16"), ("avx512_bf16", "amx_tile")):
            monkeypatch.setattr(torch.cpu, f"_is_{own}_supported", lambda fast=fast: fast)
            monkeypatch.setattr(torch.cpu, f"_is_{other}_supported", lambda: False)
            assert machine.choose_precision("auto", "cpu") == expected
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda fast=fast, **_: fast)
        assert machine.choose_precision("auto", "cuda") == expected
        assert machine.choose_precision("auto", "mps") == "32-true"
    for precision in ("32-true", "bf16-mixed"):
        assert machine.choose_precision(precision, "cpu") == precision


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16", "64", "fast"])
def test_weights_stay_in_float32(precision: str) -> None:
    with pytest.raises(ValueError, match=rf"precision={precision}: choose one of auto, 32-true, bf16-mixed"):
        trainer_options({"max_steps": 1, "precision": precision})


def test_set_threads_leaves_cores_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    for num_workers, expected in ((0, 4), (1, 3), (3, 1), (9, 1)):
        assert machine.set_threads("auto", num_workers) == expected
        assert torch.get_num_threads() == expected
    assert machine.set_threads("auto", num_workers=0, num_processes=2) == 2  # two share the cores
    assert machine.set_threads(2, num_workers=4) == 2
    assert torch.get_num_threads() == 2


def test_set_threads_auto_leaves_omp_num_threads_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    assert machine.set_threads("auto", 0) == torch.get_num_threads() == 1


def test_choose_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.choose_workers("auto", "cpu") == 0
    assert machine.choose_workers(3, "cpu") == 3
    for cores, devices, expected in ((4, 1, 4), (64, 1, 10), (64, 8, 8), (4, 8, 1)):
        monkeypatch.setattr(machine, "available_cores", lambda cores=cores: cores)
        assert machine.choose_workers("auto", "cuda", devices) == expected


@pytest.mark.parametrize(("key", "lowest"), [("num_workers", 0), ("num_threads", 1)])
def test_workers_and_threads_are_numbers_or_auto(key: str, lowest: int) -> None:
    for value in (lowest, 4, "auto"):
        check(value, parameters(Machine)[key].annotation, key)
    for value in (lowest - 1, "many", 1.5):
        with pytest.raises(ValueError, match=rf"{key}={value}: give auto or a whole number from {lowest}"):
            check(value, parameters(Machine)[key].annotation, key)


def test_summary_shows_the_arithmetic(runs: ModuleType, tmp_path: Path) -> None:
    result = runs.d2v_command(
        "pretrain", f"output_dir={tmp_path}", *runs.TINY, "micro_batch_size=2", "trainer.max_steps=2"
    )
    assert result.status in (0, None), result.err
    # of 16 tokens int(16 * .2) = 3 are visible
    for words in (
        "4 = 2 x 2 accumulated x 1 devices",
        "8,000 samples",
        "16 tokens",
        "3 tokens visible",
        "81.2% masked",
    ):
        assert words in result.out
    assert "CLS weight 2.56" in result.out


def test_choose_strategy() -> None:
    assert choose_strategy("auto", several=False) == "auto"
    assert isinstance(choose_strategy("auto", several=True), DDPStrategy)
    assert isinstance(choose_strategy("fsdp", several=True), FullyShardedStrategy)
    assert choose_strategy("ddp_find_unused_parameters_true", several=True) == "ddp_find_unused_parameters_true"
    with pytest.raises(ValueError, match=r"strategy=fsdp.*devices=NUMBER"):
        choose_strategy("fsdp", several=False)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    """Of tensors as large as a tiny model's activations, also where the allocator was to give all back at once."""
    grown = """
import sys, torch
from d2v.lit.machine import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = resident()
for _ in range(3):
    tensors = [torch.ones(4, 2**20) for _ in range(4)]  # 64 MB
    del tensors
print((resident() - before) // 1024)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    run = [subprocess.run([sys.executable, "-c", grown, how], capture_output=True, text=True, check=True,
                          env=environment) for how in ("as it is", "keep")]  # fmt: skip
    as_it_is, kept = (int(done.stdout) for done in run)  # MB
    assert as_it_is < 40 < kept


def test_cores_that_slurm_gave_to_a_task_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    for variables, expected in (
        ({}, 1),
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_PROCID": "3"}, 8),
        ({"SLURM_CPUS_PER_TASK": "8"}, 1),  # a shell within a job, which starts processes by itself
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_PROCID": "3"}, 1),  # tasks that are not bound to their cores
    ):
        for name in ("SLURM_CPUS_PER_TASK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert machine.cores_of_a_process(8) == expected
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    assert machine.cores_of_a_process(8) == 1


def test_torchrun_within_a_slurm_job_is_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "max_steps": 1, "num_nodes": 1}
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "batch")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert (
        "SLURMEnvironment" in type(setup.make_trainer(node, [], [])._accelerator_connector.cluster_environment).__name__
    )
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    trainer = setup.make_trainer({**node, "strategy": "ddp"}, [], [])
    assert type(trainer._accelerator_connector.cluster_environment).__name__ == "TorchElasticEnvironment"


def test_losses_are_one_line_or_one_a_modality() -> None:
    recipe = Targets(1, (), (), False, None, 0.0, 0.0, "encoder")

    def lines(**recipes: Targets) -> list[str]:
        return setup._loss_lines(SimpleNamespace(recipes=recipes, student=SimpleNamespace(embed_dim=16)))

    assert lines(image=recipe, text=recipe) == ["loss      scale 0.25"]
    assert lines(image=replace(recipe, cls_loss_weight=2.0), text=replace(recipe, loss_scale=1.0)) == [
        "loss      scale 0.25, CLS weight 2 (image)",
        "loss      scale 1 (text)",
    ]
    assert setup._loss_lines(SimpleNamespace()) == []
