"""``compile`` and ``activation_checkpointing``: how a step is computed, not what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import cpp_compiler_search

from d2v.lit import setup

EXACT = ["trainer.max_steps=2", "optim.eps=0.01", "global_batch_size=8", "micro_batch_size=4"]
QUIET = ["model.decoders.image.mask_noise_std=0"]  # compiled code draws noise of its own


def _finetuned(runs: ModuleType, run: Path, images: Path, folder: Path, *extra: str) -> Path:
    result = runs.d2v_command(
        "finetune", "task=image_classification", *runs.folder_data(images)[1:], f"checkpoint={run}", *EXACT[:2],
        f"output_dir={folder}", "global_batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "num_threads=1", "callbacks.score.every_n_steps=2", "encoder.drop_path_rate=0", "schedule.warmup_fraction=0",
        "labels.augment.mixup=0", "labels.augment.cutmix=0", *extra,
    )  # fmt: skip
    assert result.status in (0, None), result.err
    return Path(result.out.rpartition("run: ")[2].strip())


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _assert_agree(runs: ModuleType, plain: Path, compiled: Path, graphs: int = 1, step: int = 2) -> None:
    assert counters["stats"]["unique_graphs"] == graphs
    expected, found = (runs.load(run, step)["state_dict"] for run in (plain, compiled))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.compiled
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_pretraining_agrees(runs: ModuleType, tmp_path: Path) -> None:
    """The weights' names, too, are those of a run that is not compiled."""
    ways = [runs.pretrain(tmp_path / way, *EXACT, *QUIET, f"compile={way}") for way in ("false", "true")]
    _assert_agree(runs, *ways)


@pytest.mark.compiled
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_curriculum_has_a_graph_without_the_teacher_and_one_with(runs: ModuleType, tmp_path: Path) -> None:
    first = ["curriculum=reconstruction_first", "curriculum.start_fraction=0.25", "curriculum.end_fraction=0.5"]
    options = [*EXACT[1:], *QUIET, *first, "model.reconstruction=true", "trainer.max_steps=4"]
    ways = []
    for way in ("false", "true"):
        torch._dynamo.reset()
        ways.append(tmp_path / way)
        tiny = runs.TINY[len(runs.PLAIN) :]
        result = runs.d2v_command("pretrain", f"hydra.run.dir={ways[-1]}", *tiny, *options, f"compile={way}")
        assert result.status in (0, None), result.err
    _assert_agree(runs, *ways, graphs=2, step=4)


@pytest.mark.compiled
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_finetuning_agrees(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path / "run", *EXACT)
    ways = [_finetuned(runs, run, images, tmp_path / way, f"compile={way}") for way in ("false", "true")]
    _assert_agree(runs, *ways)


def test_checkpointed_runs_are_the_same_to_the_bit(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    noise = [*runs.NOISE, "model.encoder.layer_drop_rate=0.3"]
    ways = {way: f"activation_checkpointing={way}" for way in ("false", "true")}
    a, b = (runs.pretrain(tmp_path / way, *EXACT, *noise, extra) for way, extra in ways.items())
    assert not runs.differences(*(runs.load(run, 2)["state_dict"] for run in (a, b)))
    tuned = [_finetuned(runs, a, images, tmp_path / f"tuned-{way}", extra) for way, extra in ways.items()]
    assert not runs.differences(*(runs.load(run, 2)["state_dict"] for run in tuned))


def test_checkpointing_is_switched_on(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda f, *args, **kwargs: calls.append(f) or f(*args))
    runs.pretrain(tmp_path, *EXACT, "activation_checkpointing=true")
    assert len(calls) == 2 * 2 * 2  # blocks, micro-batches, steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["compile=true", "trainer.strategy=fsdp", "trainer.devices=2"],
            "compile=true: not with trainer.strategy=fsdp",
        ),
        (["compile=inductor"], "compile=inductor: give true or false"),
        (["activation_checkpointing=all"], "activation_checkpointing=all: give true or false"),
    ],
    ids=["fsdp", "compile", "activation_checkpointing"],
)
def test_refusals(runs: ModuleType, tmp_path: Path, overrides: list[str], message: str) -> None:
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, *overrides)
    assert result.status == 1
    assert message in result.err


def test_a_machine_without_a_compiler(runs: ModuleType, tmp_path: Path) -> None:
    cpp_compiler_search.cache_clear()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, "compile=true")
    cpp_compiler_search.cache_clear()
    assert result.status == 1
    assert "compile=true: PyTorch finds no C++ compiler: install one (g++)" in result.err


def test_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = setup.make_trainer(
        {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "precision": "32-true", "max_steps": 1}, [], []
    )
    setup.check_compile(trainer)
    monkeypatch.setattr(trainer.strategy, "_root_device", torch.device("cuda"))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ValueError, match=r"compile=true: PyTorch finds no Triton.*compile=false"):
        setup.check_compile(trainer)
