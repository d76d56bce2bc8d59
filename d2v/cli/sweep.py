"""Several fine-tuning runs: learning rates to choose from, seeds to average over, tasks to put into one table.

``python -m d2v.cli.sweep`` is one of these runs: ``d2v finetune``, which leaves in its folder why its model diverged.
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
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.commands import options
from d2v.cli.ending import STOPPED, wait_for
from d2v.cli.launch import configuring, run
from d2v.cli.run_dir import read_overrides
from d2v.cli.settings import Sweep, checked, plain
from d2v.lit.callbacks.finite import NotFinite
from d2v.runs.files import read_json_or_none, replace_json, replace_text
from d2v.tasks.scoring import Diverged
from d2v.terminal import say

DIVERGED = "diverged.txt"  # in a run's folder: why it has no results and, run again, would have none


def sweep(cfg: DictConfig, run_dir: Path) -> None:
    """Run ``d2v finetune`` for every task, learning rate and seed, and write one table.

    Of every task, the learning rate with the best ``sweep.report`` over seeds counts; one whose model diverged with any
    seed is left out. A run that has its results already, or diverged, is not repeated, and one that was begun is
    resumed: the same command goes on in the same ``hydra.run.dir``.
    """
    given = HydraConfig.get().overrides.task
    with configuring():
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
    found = {task: run_task(task, lrs, seeds, report, overrides, run_dir) for task in tasks}
    table = sweep_table(found, len(seeds), cfg.sweep.report)
    replace_json(run_dir / "results.json", found)
    replace_text(run_dir / "results.md", table)
    print(f"\n{table}\nresults: {run_dir / 'results.json'}")
    hopeless = [task for task, content in found.items() if content["lr"] is None]
    if hopeless:
        tried = f"optim.lr={lrs[0]:g}" if cfg.sweep.lrs is None else f"sweep.lrs={lrs}"
        raise SystemExit(
            f"d2v: error: {tried}: at every learning rate the model of {', '.join(hopeless)} diverged; add a lower one "
            f"to sweep.lrs, and hydra.run.dir={run_dir} goes on"
        )


def check_sweep(sweep: Sweep) -> None:
    """Raise ValueError for a list that is empty or holds the same twice."""
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
    """The options of ``task`` but for those that are sweeps of several."""
    folder = resources.files("d2v.conf") / "task"
    return [name for name in options("task") if "\nsweep:" not in (folder / f"{name}.yaml").read_text()]


def run_task(
    task: str, lrs: list[float], seeds: list[int], report: Any, overrides: list[str], run_dir: Path
) -> dict[str, Any]:
    """Run a task with every learning rate and seed and :func:`choose`; those that diverged are in "diverged"."""
    runs, diverged = {}, {}
    for lr in lrs:
        try:
            for seed in seeds:
                folder = run_dir / f"{task.replace('/', '_')}_lr{lr:g}_seed{seed}"
                runs[lr, seed] = one_run(folder, [f"task={task}", *overrides, f"optim.lr={lr}", f"seed={seed}"])
        except Diverged as error:
            diverged[lr] = str(error)
            print(f"optim.lr={lr:g} is left out of {task}: {folder / DIVERGED} says why", flush=True)
    kept = [lr for lr in lrs if lr not in diverged]
    found = choose(runs, kept, seeds, report) if kept else {"metric": None, "lr": None, "scores": {}}
    if diverged:
        found["diverged"] = {f"{lr:g}": reason for lr, reason in diverged.items()}
    return found


def one_run(folder: Path, overrides: list[str]) -> Any:
    """The results of a run in this folder: those that are there, or of the run gone on with, or of a new one.

    Raises:
        Diverged: its model did, now or before.
        SystemExit: it was stopped, ended without results for another reason, or was run with other overrides before.
    """
    before = read_overrides(folder)
    if before is not None:
        before = [o for o in before if not o.startswith(("hydra.", "resume="))]
        if before != overrides:
            changed = ", ".join(sorted(set(before) ^ set(overrides)))
            raise SystemExit(f"d2v: error: {folder} was run otherwise ({changed}): choose another hydra.run.dir")
    results, diverged = folder / "results.json", folder / DIVERGED
    if read_json_or_none(results) is None and not diverged.is_file():
        command = list(overrides)
        if any((folder / "checkpoints").glob("step-*.ckpt")):
            command.append(f"resume={folder}")
        print("\n$ d2v finetune " + " ".join(command), flush=True)
        # -P: what lies in the current folder is not imported; PYTHONPATH holds.
        program = [sys.executable, "-P", "-m", "d2v.cli.sweep"]
        process = subprocess.Popen([*program, *command, f"hydra.run.dir={folder}"])
        status = wait_for(process)
        if status in STOPPED:
            say(f"the sweep was stopped; the same command with hydra.run.dir={folder.parent} goes on", "stdout")
            raise SystemExit(status)
        if not diverged.is_file() and (status or read_json_or_none(results) is None):
            raise SystemExit(f"d2v: error: {folder} ended without results; hydra.run.dir={folder.parent} goes on")
    if diverged.is_file():
        raise Diverged(diverged.read_text().strip())
    return read_json_or_none(results)


@contextmanager
def noting_divergence(folder: Path) -> Iterator[None]:
    """Leave in a run's folder why its model diverged, if it did: any of its processes may be the first to know."""
    try:
        yield
    except (SystemExit, Diverged, NotFinite) as error:
        reason = error.__cause__ if isinstance(error, SystemExit) else error
        if isinstance(reason, Diverged | NotFinite):
            replace_text(folder / DIVERGED, f"{reason}\n")
        raise


def choose(runs: dict[tuple[float, int], Any], lrs: list[float], seeds: list[int], report: Any) -> dict[str, Any]:
    """The best learning rate's scores: "lr", and of every set and score the ``report`` and standard deviation."""
    metric = next(iter(runs.values()))["metric"]
    worse_first = -1 if metric == "wer" else 1

    def value(lr: float, name: str, score: str) -> list[float]:
        return [runs[lr, seed]["sets"][name]["scores"][score] for seed in seeds]

    best = max(lrs, key=lambda lr: worse_first * report(value(lr, "val", metric)))
    sets = next(iter(runs.values()))["sets"]
    scores = {
        name: {
            score: {"value": report(value(best, name, score)), "std": statistics.pstdev(value(best, name, score))}
            for score in content["scores"]
        }
        for name, content in sets.items()
        if content["scores"]
    }
    return {"metric": metric, "lr": best, "scores": scores}


def sweep_table(found: dict[str, dict[str, Any]], num_seeds: int, report: str) -> str:
    """Markdown, in percent: GLUE beside what is published; then a row a task and set, with the learning rate chosen.

    Args:
        found: by task, what :func:`choose` found; "lr" is None if every learning rate diverged.
        num_seeds: that the scores are over.
        report: "mean" or "median" of them.
    """
    over = "one seed" if num_seeds == 1 else f"{report} of {num_seeds} seeds"
    glue = {task.removeprefix("glue/"): content for task, content in found.items() if task.startswith("glue/")}
    lines = _glue_table(glue, over) if glue.keys() & _GLUE else []
    column = f"%, {over} ± std" if num_seeds > 1 else f"%, {over}"
    lines += [f"| task | set | score | {column} | learning rate |", "|---|---|---|---:|---:|"]
    for task, content in found.items():
        diverged = "; ".join(f"{lr} diverged" for lr in content.get("diverged", {}))
        if content["lr"] is None:
            lines.append(f"| {task} | | | diverged | {diverged} |")
        for name, scores in content["scores"].items():
            main = scores[content["metric"]]
            cell = f"{100 * main['value']:.1f}" + (f" ± {100 * main['std']:.1f}" if num_seeds > 1 else "")
            chosen = f"{content['lr']:g}" + (f" ({diverged})" if diverged else "")
            lines.append(f"| {task} | {name} | {content['metric']} | {cell} | {chosen} |")
    averaged = [_on_val(content) for name, content in glue.items() if name in _GLUE]
    if len(averaged) > 1 and None not in averaged:
        lines.append(f"| average without WNLI | val | | {statistics.mean(averaged):.1f} | |")
    return "\n".join(lines) + "\n"


def _glue_table(glue: dict[str, dict[str, Any]], over: str) -> list[str]:
    """The paper's table with this sweep as its last row."""
    cells = [_glue_cell(glue.get(name)) for name in _GLUE]
    values = [_on_val(glue[name]) for name in _GLUE if name in glue]
    whole = len(values) == len(_GLUE) and None not in values
    cells.append(f"{statistics.mean(values):.1f}" if whole else "–")
    return [*_PUBLISHED.splitlines(), f"| this sweep, {over} | " + " | ".join(cells) + " |", ""]


def _glue_cell(content: dict[str, Any] | None) -> str:
    if content is None:
        return "–"
    if content["lr"] is None:
        return "diverged"
    return "/".join(f"{100 * scores[content['metric']]['value']:.1f}" for scores in content["scores"].values())


def _on_val(content: dict[str, Any]) -> Any:
    """In percent; None if every learning rate diverged."""
    return None if content["lr"] is None else 100 * content["scores"]["val"][content["metric"]]["value"]


_GLUE = ("mnli", "qnli", "rte", "mrpc", "qqp", "stsb", "cola", "sst2")  # the columns; published averages lack WNLI
_PUBLISHED = """\
GLUE, development sets, single tasks, in percent; published: mean of five runs (arXiv:2202.03555). MNLI: matched and
mismatched, of which the average of this sweep takes the first.

| | MNLI | QNLI | RTE | MRPC | QQP | STS-B | CoLA | SST | Avg |
|---|---|---|---|---|---|---|---|---|---|
| BERT base | 84.0/84.4 | 89.0 | 61.0 | 86.3 | 89.1 | 89.5 | 57.3 | 93.0 | 80.7 |
| RoBERTa base, retrained | 84.1/83.9 | 90.4 | 69.3 | 89.0 | 89.3 | 88.9 | 56.8 | 92.3 | 82.5 |
| data2vec | 83.2/83.0 | 90.9 | 67.0 | 90.2 | 89.1 | 87.2 | 62.2 | 91.8 | 82.7 |
| data2vec, spans masked | 82.8/83.4 | 91.1 | 69.9 | 90.0 | 89.0 | 87.7 | 60.3 | 92.4 | 82.9 |"""


if __name__ == "__main__":
    folder = next(a for a in sys.argv if a.startswith("hydra.run.dir=")).partition("=")[2]  # before Lightning's own
    with noting_divergence(Path(folder)):
        sys.exit(run("finetune"))
