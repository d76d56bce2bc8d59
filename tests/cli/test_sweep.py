"""``d2v finetune`` with ``sweep.*``: real sweeps of tiny runs, what they refuse, what they write."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from types import ModuleType
from typing import Any

import pytest

from d2v.cli.sweep import DIVERGED, choose, noting_divergence, one_run, sweep_table
from d2v.lit.callbacks.finite import NotFinite
from d2v.tasks.scoring import Diverged

TASK = "image_classification"
OPTIONS = [
    "checkpoint=null", "model=data2vec2/image_tiny", "data.patch_size=7",
    "global_batch_size=8", "trainer.max_steps=2", "schedule.warmup_fraction=0", "optim.layer_decay=1",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1", "num_threads=1",
    "labels.augment.auto_augment=null", "labels.augment.erase_prob=0", "labels.augment.crop_scale=[0.8,1.0]",
]  # fmt: skip


@pytest.fixture(scope="module")
def options(runs: ModuleType, images: Path) -> list[str]:
    """Overrides of a run from scratch that takes two steps."""
    return [*OPTIONS, *[o for o in runs.MODEL if "encoder" in o], *runs.folder_data(images)]


@pytest.fixture(scope="module")
def swept(runs: ModuleType, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep whose first learning rate diverges, and whose second has two seeds."""
    folder = tmp_path_factory.mktemp("swept")
    lists = ["sweep.lrs=[1e38,1e-4]", "sweep.seeds=[0,1]"]
    result = runs.d2v_command("finetune", f"task={TASK}", *options, *lists, f"hydra.run.dir={folder}")
    assert result.status in (0, None), result.err
    return folder


def _results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.faults
def test_a_learning_rate_that_diverges_is_left_out(swept: Path) -> None:
    assert {path.name for path in swept.glob(f"{TASK}_*")} == {
        f"{TASK}_lr{lr}" for lr in ("1e+38_seed0", "0.0001_seed0", "0.0001_seed1")
    }
    reason = (swept / f"{TASK}_lr1e+38_seed0" / DIVERGED).read_text()
    assert "not finite" in reason
    content = _results(swept)[TASK]
    assert content["lr"] == 1e-4
    assert content["diverged"] == {"1e+38": reason.strip()}
    table = (swept / "results.md").read_text()
    assert "| %, mean of 2 seeds ± std |" in table
    assert "| 0.0001 (1e+38 diverged) |" in table


@pytest.mark.faults
def test_going_on_repeats_neither_what_is_done_nor_what_diverged(
    runs: ModuleType, options: list[str], swept: Path
) -> None:
    def times() -> dict[Path, int]:
        found = [*swept.glob("*/results.json"), *swept.glob(f"*/{DIVERGED}"), *swept.glob("*/metrics.csv")]
        return {path: path.stat().st_mtime_ns for path in found}

    before, table = times(), (swept / "results.md").read_text()
    command = [f"task={TASK}", *options, "sweep.lrs=[1e38,1e-4]", "sweep.seeds=[0,1]", f"hydra.run.dir={swept}"]
    result = runs.d2v_command("finetune", *command)
    assert result.status in (0, None), result.err
    assert times() == before
    assert len(before) >= 3
    assert (swept / "results.md").read_text() == table
    other = runs.d2v_command("finetune", *command, "freeze_steps=0")
    assert "was run otherwise (freeze_steps=0)" in other.err


@pytest.mark.faults
def test_a_task_that_always_diverges_is_said_after_the_rest(
    runs: ModuleType, options: list[str], tmp_path: Path
) -> None:
    before = tmp_path / f"{TASK}_lr0.001_seed0"
    before.mkdir()
    (before / DIVERGED).write_text("it was too much\n")
    lists = [f"sweep.tasks=[{TASK},imagenet]", "sweep.lrs=[1e-3]"]
    result = runs.d2v_command("finetune", f"task={TASK}", *options, *lists, f"hydra.run.dir={tmp_path}")
    assert result.status == 1
    assert f"sweep.lrs=[0.001]: at every learning rate the model of {TASK} diverged; add a lower one" in result.err
    found = _results(tmp_path)
    assert found[TASK] == {"metric": None, "lr": None, "scores": {}, "diverged": {"0.001": "it was too much"}}
    assert found["imagenet"]["lr"] == 1e-3
    table = (tmp_path / "results.md").read_text()
    assert f"| {TASK} | | | diverged | 0.001 diverged |" in table
    assert "| imagenet | val | top1 |" in table


@pytest.mark.faults
def test_a_run_without_finite_gradients_diverged(options: list[str], tmp_path: Path) -> None:
    skipping = ["callbacks.score.every_n_steps=9", "callbacks.finite.max_in_a_row=1"]
    skipping += ["callbacks.finite.check_every_n_steps=1", "optim.lr=1e38"]
    with pytest.raises(Diverged, match="the gradient was not finite in the last 1 steps"):
        one_run(tmp_path, [f"task={TASK}", *options, *skipping, "trainer.max_steps=3"])


@pytest.mark.faults
def test_any_other_failure_stops_a_sweep(runs: ModuleType, options: list[str], tmp_path: Path) -> None:
    command = [f"task={TASK}", *options, "sweep.lrs=[1e-3,1e-4]", f"data.root={tmp_path}/none"]
    result = runs.d2v_command("finetune", *command, f"hydra.run.dir={tmp_path / 'sweep'}")
    assert result.status == 1
    assert f"{TASK}_lr0.001_seed0 ended without results; hydra.run.dir={tmp_path / 'sweep'} goes on" in result.err
    assert not list(tmp_path.glob(f"sweep/*/{DIVERGED}"))
    assert not (tmp_path / "sweep" / f"{TASK}_lr0.0001_seed0").exists()


def test_only_divergence_is_noted(tmp_path: Path) -> None:
    for error in (ValueError("data"), SystemExit("stopped"), KeyboardInterrupt()):
        with pytest.raises(type(error)), noting_divergence(tmp_path):
            raise error
        assert not (tmp_path / DIVERGED).exists()
    for number, cause in enumerate((Diverged("outputs"), NotFinite("gradients"))):
        with pytest.raises(type(cause)), noting_divergence(tmp_path):
            raise cause  # as with D2V_TRACEBACK=1
        (tmp_path / DIVERGED).unlink()
        with pytest.raises(SystemExit), noting_divergence(tmp_path):
            raise SystemExit("d2v: error") from cause
        assert (tmp_path / DIVERGED).read_text() == ("outputs\n", "gradients\n")[number]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sweep.tasks=glue/rte", "sweep.tasks=glue/rte: give a list, each a text"),
        ("sweep.lrs=1e-4", "sweep.lrs=0.0001: give a list, each a number"),
        ("sweep.seeds=3", "sweep.seeds=3: give a list, each a whole number"),
        ("sweep.lrs=[]", "sweep.lrs=[]: give a list"),
        ("sweep.lrs=[1e-4,fast]", "sweep.lrs[1]=fast: give a number above 0"),
        ("sweep.lrs=[-1e-4]", "sweep.lrs[0]=-0.0001: give a number above 0"),
        ("sweep.seeds=[0,0.5]", "sweep.seeds[1]=0.5: give a whole number from 0"),
        ("sweep.seeds=[0,1,0]", "sweep.seeds=[0, 1, 0]: 0 is there twice; give it once"),
        ("sweep.lrs=[1e-4,0.0001]", "sweep.lrs=[0.0001, 0.0001]: 0.0001 is there twice"),
        (f"sweep.tasks=[{TASK},{TASK}]", f"{TASK} is there twice"),
        ("sweep.tasks=[glue/foo]", "glue/foo is no single task; choose from ctc, glue/cola"),
        ("sweep.tasks=[glue_all]", "glue_all is no single task"),
    ],
)
def test_what_cannot_be_swept_is_named_before_anything_runs(
    runs: ModuleType, options: list[str], tmp_path: Path, given: str, message: str
) -> None:
    result = runs.d2v_command("finetune", f"task={TASK}", *options, given, f"hydra.run.dir={tmp_path}")
    assert result.status == 1
    assert f"d2v: error: {given.partition('=')[0]}" in result.err
    assert message in result.err
    assert not list(tmp_path.glob("*_seed*"))


def test_other_settings_that_do_not_fit(
    runs: ModuleType, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["finetune", f"task={TASK}", *options, "sweep.seeds=[0,1]", f"hydra.run.dir={tmp_path}"]
    assert "choose one of mean, median" in runs.d2v_command(*command, "sweep.report=best").err
    assert "seed=... and sweep.seeds=[0, 1]: give one of them" in runs.d2v_command(*command, "seed=1").err
    resumed = runs.d2v_command(*command, f"resume={tmp_path}")
    assert f"resume={tmp_path}: a sweep is many runs; leave resume out" in resumed.err
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert "give this job one task" in runs.d2v_command(*command).err


def _run(metric: str, val: float, other: float) -> dict[str, Any]:
    return {
        "metric": metric,
        "sets": {"val": {"scores": {metric: val}}, "b": {"scores": {metric: other}}, "t": {"scores": {}}},
    }


def test_the_best_over_seeds_is_chosen() -> None:
    runs = {(lr, seed): _run("accuracy", value, 0.5) for (lr, values) in (
        (1e-5, (0.6, 0.6, 0.6)), (2e-5, (0.9, 0.5, 0.55))) for seed, value in enumerate(values)}  # fmt: skip
    found = choose(runs, [1e-5, 2e-5], [0, 1, 2], mean)
    assert found["lr"] == 2e-5
    assert found["scores"]["val"]["accuracy"]["value"] == pytest.approx(0.65)
    assert found["scores"].keys() == {"val", "b"}
    assert choose(runs, [1e-5, 2e-5], [0, 1, 2], median)["lr"] == 1e-5
    assert choose(runs, [1e-5], [0, 1, 2], mean)["lr"] == 1e-5  # the other diverged
    errors = {(lr, 0): _run("wer", value, 0.5) for lr, value in ((1e-5, 0.4), (2e-5, 0.3))}
    assert choose(errors, [1e-5, 2e-5], [0], mean)["lr"] == 2e-5


def _found(value: float, *others: float) -> dict[str, Any]:
    names = ("val", "val_mismatched")
    scores = {name: {"accuracy": {"value": v, "std": 0.01}} for name, v in zip(names, (value, *others), strict=False)}
    return {"metric": "accuracy", "lr": 2e-5, "scores": scores}


def test_glue_is_one_more_row_of_the_published_table() -> None:
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte", "wnli")
    found = {f"glue/{name}": _found(0.5) for name in tasks} | {"glue/mnli": _found(0.9, 0.8)}
    lines = sweep_table(found, 5, "median").splitlines()
    ours = "| this sweep, median of 5 seeds | 90.0/80.0 | " + "50.0 | " * 7 + "55.0 |"
    rows = [i for i, line in enumerate(lines) if line.startswith(("| data2vec, spans masked | 82.8/83.4 |", ours))]
    assert rows == [rows[0], rows[0] + 1]  # nothing between them
    assert len({line.count("|") for line in lines[rows[0] - 5 : rows[0] + 2]}) == 1
    assert "| glue/mnli | val_mismatched | accuracy | 80.0 ± 1.0 | 2e-05 |" in lines
    assert "| average without WNLI | val | | 55.0 | |" in lines


def test_what_is_not_there_is_not_averaged() -> None:
    hopeless = {"metric": None, "lr": None, "scores": {}, "diverged": {"0.01": "why", "0.1": "why"}}
    table = sweep_table({"glue/rte": hopeless, "glue/cola": _found(0.5), "glue/sst2": _found(0.6)}, 1, "mean")
    assert "| this sweep, one seed | – | – | diverged | – | – | – | 50.0 | 60.0 | – |" in table
    assert "| glue/rte | | | diverged | 0.01 diverged; 0.1 diverged |" in table
    assert "| glue/cola | val | accuracy | 50.0 | 2e-05 |" in table
    assert "average without WNLI" not in table
    assert "BERT" not in sweep_table({"glue/wnli": _found(0.5), TASK: _found(0.5)}, 1, "mean")
