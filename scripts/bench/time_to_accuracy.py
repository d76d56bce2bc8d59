"""Accuracy by seconds of training: data2vec 2.0, 1.0 and a masked autoencoder at equal time.

    python scripts/bench/time_to_accuracy.py methods DIR
    python scripts/bench/time_to_accuracy.py masks DIR --budgets 80
    python scripts/bench/time_to_accuracy.py masks DIR --steps 300
    python scripts/bench/time_to_accuracy.py layers DIR --budgets 80
    python scripts/bench/time_to_accuracy.py widths DIR --budgets 160
    python scripts/bench/time_to_accuracy.py candidates DIR --budgets 80 --choose

DIR holds train/ and val/ with a folder for every class, such as CIFAR-10. First every variant's steps a second are
measured, in turns, one process on one core with nothing beside it. A budget of seconds then becomes a number of steps:
a run of its own, with its own schedule to the end, and what else the machine does meanwhile changes nothing; with
--steps every run takes as many, and the seconds are what they cost by the rates. Frozen features are read out by the
linear and kNN probes of ``d2v evaluate``. Runs that are there already are not run again. With --choose a fifth of the
training images takes the place of the held-out ones, which are then not looked at.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import available_cores, machine_facts, table, write_json
from omegaconf import OmegaConf

from d2v.runs.metrics import METRICS
from d2v.runs.record import CONFIG
from d2v.runs.results import read_results

DATA2VEC2 = ["experiment=image_tiny32"]
WITHOUT = [*DATA2VEC2, "~curriculum", "model.reconstruction=false"]  # targets of the teacher from the first step
AUTOENCODER = ["experiment=mae_image_tiny32"]
MEAN_KEPT = ["model.layer_norms=[batch]", "model.sample_mean_share=0.5"]


def wide(width: int, lr: float) -> list[str]:
    """The encoder's width, heads of 64, and a learning rate in inverse proportion, which is that of 256."""
    return [
        f"model.encoder.embed_dim={width}",
        f"model.encoder.num_heads={width // 64}",
        f"optim.lr={lr * 256 / width}",
    ]


STUDIES = {
    "methods": {
        "data2vec 2.0": DATA2VEC2,
        "data2vec 2.0, no curriculum": WITHOUT,
        "data2vec 1.0": ["experiment=v1_image_tiny32"],
        "masked autoencoder": AUTOENCODER,
    },
    "masks": {f"{m} masks" if m > 1 else "1 mask": [*WITHOUT, "mask.mask_length=3", f"mask.num_masks={m}"]
              for m in (1, 2, 4, 8, 16)},
    "layers": {f"top {k}": [*WITHOUT, "mask.mask_length=3", "mask.num_masks=2",
                            f"model.average_top_k_layers={k}"] for k in (1, 2, 3)},
    "widths": {f"{name}, {width} wide": [*overrides, *wide(width, lr)] for width in (128, 256, 512)
               for name, overrides, lr in (("data2vec 2.0", WITHOUT, 2e-3), ("autoencoder", AUTOENCODER, 1e-3))},
    "candidates": {
        "no option": WITHOUT,
        "batch norm of targets, half of the mean": [*WITHOUT, *MEAN_KEPT],
        "inputs first": [*DATA2VEC2, "curriculum.end_share=1"],
        "inputs first, a fifth to the end": DATA2VEC2,
        "inputs longer, a fifth to the end": [*DATA2VEC2, "curriculum.start_fraction=0.5",
                                              "curriculum.end_fraction=0.7"],
        "inputs first, half of the mean": [*DATA2VEC2, *MEAN_KEPT],
        "contrastive in a sample": [*WITHOUT, "model.contrastive_share=0.5", "model.contrastive_negatives=sample"],
        "Muon": [*WITHOUT, "optim=muon", "optim.lr=2e-3"],
        "Muon of three iterations, inputs first": [*DATA2VEC2, "optim=muon", "optim.lr=2e-3",
                                                  "optim.newton_schulz_steps=3"],
        "autoencoder": AUTOENCODER,
        "autoencoder, Muon of three iterations": [*AUTOENCODER, "optim=muon", "optim.lr=1e-3",
                                                  "optim.newton_schulz_steps=3"],
    },
}  # fmt: skip
ONE_CORE = "trainer.accelerator=cpu"
RATE_STEPS, RATE_ROUNDS = 100, 2  # of the whole schedule: a curriculum's steps differ in cost
MIN_STEPS = 8
IDLE = 0.5  # processes that run, at most, before rates are measured
PROBES = {"linear": "linear (%)", "knn": "kNN (%)"}
C_GRID = "[0.01,0.1,1.0,10.0]"


class Score(NamedTuple):
    """Result of a run.

    Attributes:
        variant: its name.
        budget: seconds of training on one core.
        seed: of the run.
        steps: optimizer steps that the budget buys.
        linear: accuracy of the linear probe, 0 to 1.
        knn: of the kNN probe.
    """

    variant: str
    budget: float
    seed: int
    steps: int
    linear: float
    knn: float


def main() -> None:
    """Measure the rates, train, probe, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("data", type=Path, help="DIR with train/ and val/")
    parser.add_argument("--budgets", type=float, nargs="+", default=[40, 80, 160], help="seconds of one core")
    parser.add_argument("--steps", type=int, help="of every run, in place of budgets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=available_cores(), help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, help="folder; outputs/bench/STUDY if not given")
    parser.add_argument("--choose", action="store_true", help="evaluate on a fifth of train/, drawn once, not on val/")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides of every run")
    args = parser.parse_intermixed_args()
    if args.steps is not None and args.steps < MIN_STEPS:
        parser.error(f"--steps {args.steps}: at least {MIN_STEPS}, so that an eighth can be warm-up")
    if not all((args.data / part).is_dir() for part in ("train", "val")):
        parser.error(f"{args.data}: needs folders train/ and val/")
    output: Path = (args.output or Path("outputs/bench") / args.study).resolve()
    output.mkdir(parents=True, exist_ok=True)
    folder = third_split(args.data / "train", output / "images") if args.choose else args.data
    own = [f"data.root={folder.resolve()}", *args.words]
    variants = {name: [*overrides, *own] for name, overrides in STUDIES[args.study].items()}
    record = output / "variants.json"
    if record.exists() and json.loads(record.read_text()) != variants:
        parser.error(f"{output} holds runs with other overrides (variants.json); choose another --output")
    record.write_text(json.dumps(variants, indent=2) + "\n")

    if not (output / "rates.json").exists() and os.getloadavg()[0] > IDLE:
        print(f"warning: the machine is busy (load {os.getloadavg()[0]:.1f}): rates will be too low", flush=True)
    rates = measured_rates(variants, output)
    print("steps a second: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()), flush=True)
    lengths = {
        name: [(round(args.steps / rate), args.steps)] if args.steps is not None
        else [(budget, max(MIN_STEPS, round(rate * budget))) for budget in args.budgets]
        for name, rate in rates.items()
    }  # fmt: skip
    plan = [(name, *length, seed) for name in variants for length in lengths[name] for seed in args.seeds]
    plan.sort(key=lambda one: one[1])

    def train(one: tuple[str, float, int, int]) -> Score:
        name, budget, steps, seed = one
        return trained(output, name, variants[name], budget, seed, steps)

    with ThreadPoolExecutor(args.jobs) as pool:
        scores = list(pool.map(train, plan))
    print(f"\n{score_table(scores)}\n\n{time_table(scores)}")
    print(f"\ndrawn: {plot(scores, output / f'{args.study}.png')}")
    content = {"machine": machine_facts(1), "rates": rates, "scores": [score._asdict() for score in scores]}
    write_json(output / "scores.json", content)


def third_split(train: Path, folder: Path) -> Path:
    """Return a folder with links to the images of ``train``: train/ and, a fifth of them drawn once, val/."""
    files = sorted(path for path in train.glob("*/*") if path.is_file())
    for place, index in enumerate(np.random.default_rng(123).permutation(len(files))):
        part = "val" if place < len(files) // 5 else "train"
        link = folder / part / files[index].parent.name / files[index].name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(files[index].resolve())
    return folder


def measured_rates(variants: dict[str, list[str]], output: Path) -> dict[str, float]:
    """Steps a second of every variant, the best of two rounds; from the file, if they were measured before."""
    path = output / "rates.json"
    rates: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in variants if name not in rates]
    for repetition in range(RATE_ROUNDS if missing else 0):
        for name in missing:
            run = output / "rates" / f"{slug(name)}_{repetition}"
            shutil.rmtree(run, ignore_errors=True)  # of a study that was cut off
            options = [f"trainer.max_steps={RATE_STEPS}", "trainer.log_every_n_steps=10", "schedule.warmup_steps=10"]
            run_d2v("pretrain", *variants[name], ONE_CORE, *options, f"hydra.run.dir={run}")
            with (run / METRICS).open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row.get("perf/samples_per_s")]
            batch_size = OmegaConf.load(run / CONFIG).global_batch_size
            rate = statistics.harmonic_mean(float(row["perf/samples_per_s"]) for row in rows[1:]) / batch_size
            rates[name] = max(rate, rates.get(name, 0.0))
    path.write_text(json.dumps(rates, indent=2) + "\n")
    return rates


def trained(output: Path, name: str, overrides: Sequence[str], budget: float, seed: int, steps: int) -> Score:
    """A run of so many steps, and its scores."""
    run = output / f"{slug(name)}_{steps}steps_seed{seed}"
    results = read_results(run / "probes")
    if results is None:
        schedule = [
            f"trainer.max_steps={steps}",
            f"schedule.warmup_steps={steps // 8}",
            f"ema.anneal_steps={steps // 2}",
        ]
        save = [f"callbacks.checkpoint.every_n_steps={steps}", f"hydra.run.dir={run}", "resume=auto"]
        run_d2v("pretrain", *overrides, ONE_CORE, *schedule, *save, f"seed={seed}")
        probes = ["probe.knn=true", "probe.linear=true", "probe.ctc=false", f"probe.c_grid={C_GRID}", "precision=auto"]
        run_d2v("evaluate", f"checkpoint={run}", "baselines=false", *probes, f"hydra.run.dir={run / 'probes'}")
        print(f"{name}, {budget:g} s, seed {seed}: {steps} steps", flush=True)
        results = read_results(run / "probes")
    assert results is not None, "d2v evaluate writes results"
    (row,) = results.rows
    return Score(name, budget, seed, steps, row.scores["linear"], row.scores["knn"])


def run_d2v(*arguments: str) -> None:
    """``d2v ARGUMENTS`` on one thread; what it prints is shown only if it fails."""
    command = [str(Path(sys.executable).with_name("d2v")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def slug(name: str) -> str:
    """A name for folders."""
    return re.sub(r"\W+", "_", name)


def grouped(scores: Sequence[Score]) -> dict[str, dict[float, list[Score]]]:
    """By variant, then by budget."""
    groups: dict[str, dict[float, list[Score]]] = {}
    for score in scores:
        groups.setdefault(score.variant, {}).setdefault(score.budget, []).append(score)
    return groups


def percent(scores: Sequence[Score], probe: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * float(getattr(score, probe)) for score in scores]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def score_table(scores: Sequence[Score]) -> str:
    """A row for every variant and budget."""
    rows = []
    for name, budgets in grouped(scores).items():
        for budget, group in budgets.items():
            cells = ["{:.1f} ± {:.1f}".format(*percent(group, probe)) for probe in PROBES]
            rows.append([name, f"{budget:g}", group[0].steps, *cells])
    return table(["", "seconds", "steps", *PROBES.values()], rows)


def time_table(scores: Sequence[Score]) -> str:
    """Seconds at which each variant passes the same accuracy, between budgets along the logarithm of time.

    The accuracies are those of the first variant at its budgets, and of the others at theirs.
    """
    groups, parts = grouped(scores), []
    for probe, title in PROBES.items():
        curves = {name: [(budget, percent(group, probe)[0]) for budget, group in sorted(budgets.items())]
                  for name, budgets in groups.items()}  # fmt: skip
        marks = sorted({round(accuracy, 1) for curve in curves.values() for _, accuracy in curve})
        rows = [[f"{mark:.1f}", *(seconds_to(curve, mark) for curve in curves.values())] for mark in marks]
        parts.append(table([f"seconds to {title}", *curves], rows))
    return "\n\n".join(parts)


def seconds_to(curve: Sequence[tuple[float, float]], accuracy: float) -> str:
    """When a curve of (seconds, percent) passes an accuracy: a time, or before or after all of its own."""
    if accuracy <= curve[0][1] + 0.05:
        return f"{curve[0][0]:.0f}" if abs(accuracy - curve[0][1]) <= 0.05 else f"< {curve[0][0]:.0f}"
    for (t0, a0), (t1, a1) in pairwise(curve):
        if a0 < accuracy <= a1 + 0.05:
            share = min(1.0, (accuracy - a0) / (a1 - a0))
            return f"{math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0))):.0f}"
    return f"> {curve[-1][0]:.0f}"


def plot(scores: Sequence[Score], path: Path) -> Path:
    """Accuracy over seconds, one panel a probe; with one budget, over the variants."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    groups = grouped(scores)
    several = len({score.budget for score in scores}) > 1
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for axes, (probe, title) in zip(figure.subplots(1, len(PROBES)), PROBES.items(), strict=True):
        if several:
            for name, budgets in groups.items():
                means, spreads = zip(*(percent(group, probe) for group in budgets.values()), strict=True)
                axes.errorbar(list(budgets), means, yerr=spreads, marker="o", markersize=4, capsize=3, label=name)
            axes.set(xscale="log", xlabel="seconds of training, one core")
            axes.set_xticks(sorted({score.budget for score in scores}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend(frameon=False, fontsize=8)
        else:
            values = [percent(group, probe) for budgets in groups.values() for group in budgets.values()]
            axes.errorbar(list(groups), [m for m, _ in values], yerr=[s for _, s in values], fmt="o-", capsize=3)
            axes.set_xlabel(f"{scores[0].budget:g} seconds of training, one core")
        axes.set_ylabel(title)
        axes.grid(color="#dddddd", linewidth=0.6)
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main()
