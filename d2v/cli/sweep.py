"""Sweeps of fine-tuning runs over learning rates, seeds and tasks, with one table of results.

``python -m d2v.cli.sweep`` is one of these runs: ``d2v finetune``, which also writes why a model diverged.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.commands import options
from d2v.cli.ending import STOPPED, wait_for
from d2v.cli.launch import configuring, run
from d2v.cli.run_dir import read_overrides
from d2v.cli.settings import Sweep, checked, plain
from d2v.lit.callbacks.finite import NotFinite
from d2v.runs.checkpoints import FOLDER, list_checkpoints
from d2v.runs.files import replace_text
from d2v.runs.listing import DIVERGED
from d2v.runs.results import Results, Row, read_results, write_results
from d2v.tasks.scoring import Diverged
from d2v.tasks.sweep import Report, choose, sweep_table
from d2v.terminal import say


def sweep(cfg: DictConfig, run_dir: Path) -> None:
    """Run ``d2v finetune`` for every task, learning rate and seed, and write one table.

    Each task reports the learning rate with the best ``sweep.report`` over seeds, without those that diverged with any
    seed. Runs with results, or that diverged, are not repeated; unfinished ones are resumed. To continue a sweep,
    repeat its command with the same ``hydra.run.dir``.
    """
    given = HydraConfig.get().overrides.task
    with configuring(cfg):
        if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            raise ValueError("sweep.*: runs follow one another, started by one process; give this job one task")
        check_sweep(checked(Sweep, plain(cfg.sweep), "sweep"))
        if cfg.resume not in (None, "auto"):
            raise ValueError(
                f"resume={cfg.resume}: a sweep is many runs; leave resume out, and give hydra.run.dir=SWEEP with the "
                "same words to go on with one"
            )
        for key, one in (("lrs", "optim.lr="), ("seeds", "seed=")):
            if cfg.sweep[key] is not None and any(o.startswith(one) for o in given):
                raise ValueError(f"{one}... and sweep.{key}={list(cfg.sweep[key])}: give one of them")
        tasks = list(cfg.sweep.tasks or [HydraConfig.get().runtime.choices["task"]])
        known = single_tasks()
        for task in tasks:
            if task not in known:
                raise ValueError(f"sweep.tasks={tasks}: {task} is no single task; choose from {', '.join(known)}")
        lrs = [float(lr) for lr in cfg.sweep.lrs or [cfg.optim.lr]]
        seeds = list(cfg.sweep.seeds or [cfg.seed])
    ours = ("sweep", "task=", "seed=", "optim.lr=", "hydra.", "resume=", "launcher=")
    overrides = [o for o in given if not o.lstrip("+~").startswith(ours)]
    report = getattr(statistics, cfg.sweep.report)
    rows = [row for task in tasks for row in run_task(task, lrs, seeds, report, overrides, run_dir)]
    table = sweep_table(rows, len(seeds), cfg.sweep.report)
    path = write_results(run_dir, Results(rows, {"report": cfg.sweep.report, "seeds": seeds}), table)
    print(f"\n{table}\nresults: {path}")
    hopeless = [row.name for row in rows if row.lr is None]
    if hopeless:
        tried = f"optim.lr={lrs[0]:g}" if cfg.sweep.lrs is None else f"sweep.lrs={lrs}"
        raise SystemExit(
            f"d2v: error: {tried}: at every learning rate the model of {', '.join(hopeless)} diverged; add a lower one "
            f"to sweep.lrs, and hydra.run.dir={run_dir} goes on"
        )


def check_sweep(sweep: Sweep) -> None:
    """Raise ValueError for an empty list or duplicates in it."""
    for key, example in (("tasks", "[glue/rte,glue/cola]"), ("lrs", "[1e-5,2e-5]"), ("seeds", "[0,1,2]")):
        values = getattr(sweep, key)
        if values is None:
            continue
        if not values:
            raise ValueError(f"sweep.{key}={values}: give a list, such as {example}")
        twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            raise ValueError(f"sweep.{key}={values}: {twice} is there twice; give it once")


def single_tasks() -> list[str]:
    """Return the options of ``task`` that are not sweeps."""
    folder = resources.files("d2v.conf") / "task"
    return [name for name in options("task") if "\nsweep:" not in (folder / f"{name}.yaml").read_text()]


def run_task(
    task: str, lrs: list[float], seeds: list[int], report: Report, overrides: list[str], run_dir: Path
) -> list[Row]:
    """Run a task with every learning rate and seed, and :func:`choose`."""
    runs: dict[tuple[float, int], Results] = {}
    diverged: dict[float, str] = {}
    for lr in lrs:
        try:
            for seed in seeds:
                folder = run_dir / f"{task.replace('/', '_')}_lr{lr:g}_seed{seed}"
                runs[lr, seed] = one_run(folder, [f"task={task}", *overrides, f"optim.lr={lr}", f"seed={seed}"])
        except Diverged as error:
            diverged[lr] = str(error)
            print(f"optim.lr={lr:g} is left out of {task}: {folder / DIVERGED} says why", flush=True)
    kept = {(lr, seed): results for (lr, seed), results in runs.items() if lr not in diverged}
    return choose(task, kept, report, diverged)


def one_run(folder: Path, overrides: list[str]) -> Results:
    """Return the results of the run in a folder: existing ones, or those of a resumed or new run.

    Raises:
        Diverged: the model diverged, now or before.
        SystemExit: the run was stopped, failed for another reason, or exists with other overrides.
    """
    before = read_overrides(folder)
    if before is not None:
        before = [o for o in before if not o.startswith(("hydra.", "resume="))]
        if before != overrides:
            changed = ", ".join(sorted(set(before) ^ set(overrides)))
            raise SystemExit(f"d2v: error: {folder} was run otherwise ({changed}): choose another hydra.run.dir")
    results, diverged = read_results(folder), folder / DIVERGED
    if results is None and not diverged.is_file():
        command = list(overrides)
        if list_checkpoints(folder / FOLDER):
            command.append(f"resume={folder}")
        print("\n$ d2v finetune " + " ".join(command), flush=True)
        # -P: import nothing from the current folder; PYTHONPATH is respected.
        program = [sys.executable, "-P", "-m", "d2v.cli.sweep"]
        process = subprocess.Popen([*program, *command, f"hydra.run.dir={folder}"])
        status = wait_for(process)
        if status in STOPPED:
            say(f"the sweep was stopped; the same command with hydra.run.dir={folder.parent} goes on", "stdout")
            raise SystemExit(status)
        results = None if status else read_results(folder)
    if diverged.is_file():
        raise Diverged(diverged.read_text().strip())
    if results is None:
        raise SystemExit(f"d2v: error: {folder} ended without results; hydra.run.dir={folder.parent} goes on")
    return results


@contextmanager
def noting_divergence(folder: Path) -> Iterator[None]:
    """Write to a run's folder why its model diverged; any of its processes may be the first to notice."""
    try:
        yield
    except (SystemExit, Diverged, NotFinite) as error:
        reason = error.__cause__ if isinstance(error, SystemExit) else error
        if isinstance(reason, Diverged | NotFinite):
            replace_text(folder / DIVERGED, f"{reason}\n")
        raise


if __name__ == "__main__":
    folder = next(a for a in sys.argv if a.startswith("hydra.run.dir=")).partition("=")[2]  # before Lightning's own
    with noting_divergence(Path(folder)):
        sys.exit(run("finetune"))
