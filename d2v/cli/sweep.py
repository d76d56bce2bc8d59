"""Several fine-tuning runs: learning rates to choose from, seeds to average over, tasks to put into one table."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.launch import configuring


def sweep(cfg: DictConfig, run_dir: Path) -> None:
    """Run ``d2v finetune`` for every task, learning rate and seed, and write one table.

    Of every task, the learning rate with the best ``sweep.report`` over seeds counts. A run that has its results
    already is not repeated, and one that was begun is resumed: the same command goes on in the same ``hydra.run.dir``.
    """
    given = HydraConfig.get().overrides.task
    with configuring():
        if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            raise ValueError("sweep.*: runs follow one another, started by one process; give this job one task")
        report = {"mean": statistics.mean, "median": statistics.median}.get(cfg.sweep.report)
        if report is None:
            raise ValueError(f"sweep.report={cfg.sweep.report}: choose mean or median")
        for key, one in (("lrs", "optim.lr="), ("seeds", "seed=")):
            if cfg.sweep[key] is not None and any(o.startswith(one) for o in given):
                raise ValueError(f"{one}... and sweep.{key}={list(cfg.sweep[key])}: give one of them")
        tasks = cfg.sweep.tasks or [HydraConfig.get().runtime.choices["task"]]
        lrs = [float(lr) for lr in cfg.sweep.lrs or [cfg.optim.lr]]
        seeds = list(cfg.sweep.seeds or [cfg.seed])
    ours = ("sweep", "task=", "seed=", "optim.lr=", "hydra.", "resume=", "launcher=")
    overrides = [o for o in given if not o.lstrip("+~").startswith(ours)]
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        runs = {}
        for lr, seed in product(lrs, seeds):
            folder = run_dir / f"{task.replace('/', '_')}_lr{lr:g}_seed{seed}"
            runs[lr, seed] = one_run(folder, [f"task={task}", *overrides, f"optim.lr={lr}", f"seed={seed}"])
        found[task] = choose(runs, lrs, seeds, report)
    table = sweep_table(found, len(seeds))
    (run_dir / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    (run_dir / "results.md").write_text(table)
    print(f"\n{table}\nresults: {run_dir / 'results.json'}")


def one_run(folder: Path, overrides: list[str]) -> Any:
    """The results of a run in this folder: those that are there, or of the run gone on with, or of a new one."""
    record = folder / ".hydra" / "overrides.yaml"
    if record.is_file():
        before = [o for o in yaml.safe_load(record.read_text()) if not o.startswith(("hydra.", "resume="))]
        if before != overrides:
            changed = ", ".join(sorted(set(before) ^ set(overrides)))
            raise SystemExit(f"d2v: error: {folder} was run otherwise ({changed}): choose another hydra.run.dir")
    if not (folder / "results.json").is_file():
        command = list(overrides)
        if any((folder / "checkpoints").glob("step-*.ckpt")):
            command.append(f"resume={folder}")
        print("\n$ d2v finetune " + " ".join(command), flush=True)
        process = subprocess.Popen([sys.executable, "-m", "d2v.cli.finetune", *command, f"hydra.run.dir={folder}"])
        try:
            status = process.wait()
        except KeyboardInterrupt:
            status = process.wait()  # it got the signal too, and saves first
        if status or not (folder / "results.json").is_file():
            raise SystemExit(f"d2v: error: {folder} ended without results; hydra.run.dir={folder.parent} goes on")
    return json.loads((folder / "results.json").read_text())


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


def sweep_table(found: dict[str, dict[str, Any]], num_seeds: int) -> str:
    """Markdown: a row a task and set, its score over seeds and its learning rate, in percent; GLUE's average below."""
    lines = [f"| task | set | score | % over {num_seeds} seeds | learning rate |", "|---|---|---|---:|---:|"]
    glue = []
    for task, content in found.items():
        for name, scores in content["scores"].items():
            main = scores[content["metric"]]
            cell = f"{100 * main['value']:.1f} ± {100 * main['std']:.1f}"
            lines.append(f"| {task} | {name} | {content['metric']} | {cell} | {content['lr']:g} |")
            if task.startswith("glue/") and task != "glue/wnli" and name == "val":
                glue.append(main["value"])
    if len(glue) > 1:
        lines.append(f"| average without WNLI | val | | {100 * statistics.mean(glue):.1f} | |")
    if glue:
        lines += ["", _PUBLISHED]
    return "\n".join(lines) + "\n"


_PUBLISHED = """Published, development sets, mean of five runs (arXiv:2202.03555):

| | MNLI | QNLI | RTE | MRPC | QQP | STS-B | CoLA | SST | Avg |
|---|---|---|---|---|---|---|---|---|---|
| BERT base | 84.0/84.4 | 89.0 | 61.0 | 86.3 | 89.1 | 89.5 | 57.3 | 93.0 | 80.7 |
| RoBERTa base, retrained | 84.1/83.9 | 90.4 | 69.3 | 89.0 | 89.3 | 88.9 | 56.8 | 92.3 | 82.5 |
| data2vec | 83.2/83.0 | 90.9 | 67.0 | 90.2 | 89.1 | 87.2 | 62.2 | 91.8 | 82.7 |
| data2vec, spans masked | 82.8/83.4 | 91.1 | 69.9 | 90.0 | 89.0 | 87.7 | 60.3 | 92.4 | 82.9 |"""
