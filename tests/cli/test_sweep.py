"""``d2v finetune`` with ``sweep.*``: real sweeps of tiny runs, what they refuse, what they write."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from d2v.cli.sweep import noting_divergence, one_run
from d2v.lit.callbacks.finite import NotFinite
from d2v.runs.listing import DIVERGED
from d2v.runs.results import Row, read_results
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


def _rows(folder: Path) -> dict[str, Row]:
    """The rows on "val", by task."""
    results = read_results(folder)
    assert results is not None
    return {row.name: row for row in results.rows if row.set == "val"}


@pytest.mark.faults
def test_a_learning_rate_that_diverges_is_left_out(swept: Path) -> None:
    assert {path.name for path in swept.glob(f"{TASK}_*")} == {
        f"{TASK}_lr{lr}" for lr in ("1e+38_seed0", "0.0001_seed0", "0.0001_seed1")
    }
    reason = (swept / f"{TASK}_lr1e+38_seed0" / DIVERGED).read_text()
    assert "not finite" in reason
    row = _rows(swept)[TASK]
    assert row.lr == 1e-4
    assert row.diverged == {"1e+38": reason.strip()}
    assert row.scores.keys() == row.std.keys() > set()
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
    found = _rows(tmp_path)
    assert found[TASK] == Row(TASK, {}, diverged={"0.001": "it was too much"})
    assert found["imagenet"].lr == 1e-3
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
        ("sweep.tasks=[glue/foo]", "glue/foo is no single task; choose from audio_classification, audio_tagging, ctc"),
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
