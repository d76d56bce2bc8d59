"""Short form of all benchmarks, compared with the committed figures, to see whether anything has become slower.

    python scripts/bench/run.py              # exits with 1 if something takes a quarter longer than it did
    python scripts/bench/run.py --update     # writes the figures of this machine over the committed ones

Every figure is a rate over that of a block's bare matrix products, measured in the same run and precision, so that
machines of one kind can be compared, whatever else makes them fast or slow that day: training steps and their parts,
operations a second; ``d2v pretrain`` from end to end, too; loading, samples a GFLOP of products. What a short run
learns is measured, too, as points of the kNN and linear probes above the untrained encoder: steps that teach less are
slower.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import data
import torch
from common import available_cores, machine_facts, table
from step import Case, in_own_process
from tables import STAGES
from time_to_accuracy import ONE_CORE, measured_rates, run_d2v

from d2v.runs.results import read_results

COMMITTED = Path(__file__).with_name("figures.json")
CASES = [
    ("image_base", 3), ("image_tiny", 7), ("image_tiny32", 7), ("speech_tiny", 3), ("text_tiny", 3),
]  # fmt: skip  # and repetitions
PARTS = ("teacher", "student", "decoder", "backward")
UPDATES = ("clipping", "optimizer", "ema")  # no products: their figure is time, in products
PRETRAINED = "image_tiny"
LEARNING_STEPS = 200
SLOWER = 0.8  # of the committed figure is worth a look: repetitions differ by up to a tenth


def main() -> int:
    """Measure, print a row for every figure, and say whether one has fallen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="commit these figures")
    args = parser.parse_args()
    threads = available_cores()
    committed = None if args.update else json.loads(COMMITTED.read_text())
    facts, figures = machine_facts(threads), measured(threads)
    if committed is None:
        COMMITTED.write_text(json.dumps({"machine": facts, "figures": figures}, indent=2) + "\n")
        print(f"written: {COMMITTED}")
        return 0
    there = committed["machine"]
    if (there["cpu"], there["threads"], there["torch"]) != (facts["cpu"], facts["threads"], facts["torch"]):
        print(
            f"the committed figures are of another machine ({there['cpu']}, {there['threads']} threads, torch "
            f"{there['torch']}): judge with care"
        )
    rows, fallen = compared(figures, committed["figures"])
    print(f"\n{table(['share of the GEMM rate', 'committed', 'now', 'ratio', ''], rows)}")
    if fallen:
        print(f"\nslower than committed: {', '.join(fallen)}")
    return int(bool(fallen))


def measured(threads: int) -> dict[str, float]:
    """All figures by name; those of steps are shares of the GEMM rate, those of loading samples a GFLOP."""
    figures: dict[str, float] = {}
    gemm = {}
    for recipe, steps in CASES:
        for precision in ("32-true", "bf16-mixed"):
            result = in_own_process(Case(recipe, precision, steps=steps), threads)
            gemm[recipe, precision] = result["gemm_flops_per_s"]["median"]
            figures |= {f"{recipe} {precision} {part}": share for part, share in shares(result).items()}
            print(f"{recipe}, {precision}: {result['seconds']['step']['median']:.3f} s a step", flush=True)
            if (recipe, precision) == (PRETRAINED, "32-true"):
                operations = result["flops"]["step"] / result["batch"]
                batch = result["batch"]
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"experiment={PRETRAINED}", "trainer.precision=32-true"]
        (rate,) = measured_rates({PRETRAINED: overrides}, Path(folder)).values()
        for probe, points in points_gained(Path(folder) / "learning").items():
            figures[f"{PRETRAINED}, {probe} points gained in {LEARNING_STEPS} steps"] = points
    one_thread = in_own_process(Case(PRETRAINED, "32-true", steps=5), 1)["gemm_flops_per_s"]["median"]
    figures[f"d2v pretrain experiment={PRETRAINED}, one thread"] = rate * batch * operations / one_thread
    torch.set_num_threads(1)
    for recipe in data.DEFAULT_RECIPES:
        result = data.measure(recipe, [], [0], seconds=1.0, repeats=2)
        figures[f"{recipe} samples loaded, one core"] = result["samples_per_s"]["0"]["max"] / one_thread * 1e9
    return figures


def points_gained(run: Path) -> dict[str, float]:
    """Percent by which a short run's features are above those of the untrained encoder, by each probe."""
    schedule = [f"schedule.warmup_steps={LEARNING_STEPS // 8}", f"ema.anneal_steps={LEARNING_STEPS // 2}"]
    steps = f"trainer.max_steps={LEARNING_STEPS}"
    run_d2v("pretrain", f"experiment={PRETRAINED}", ONE_CORE, steps, *schedule, "seed=0", f"hydra.run.dir={run}")
    probes = ["probe.knn=true", "probe.linear=true", "probe.c_grid=[0.01,0.1]", f"hydra.run.dir={run / 'probes'}"]
    run_d2v("evaluate", f"checkpoint={run}", *probes)
    results = read_results(run / "probes")
    assert results is not None, "d2v evaluate writes results"
    scores = {row.name.split()[0]: row.scores for row in results.rows}
    return {probe: 100 * (scores["pretrained"][probe] - scores["untrained"][probe]) for probe in ("knn", "linear")}


def shares(result: dict[str, Any]) -> dict[str, float]:
    """Of a step and its parts: operations a second over those of the products; of updates, products in their time."""
    gemm, seconds, flops = result["gemm_flops_per_s"]["median"], result["seconds"], result["flops"]
    by_part = {"step": result["share_of_gemm"]["median"]}
    by_part |= {part: flops[part] / seconds[part]["median"] / gemm for part in PARTS if part in seconds}
    updates = sum(seconds[part]["median"] for part in UPDATES)
    assert set(PARTS) | set(UPDATES) <= set(STAGES)
    return by_part | {"updates, parameters a kFLOP": 1000 * result["parameters"] / (updates * gemm)}


def compared(now: dict[str, float], committed: dict[str, float]) -> tuple[list[list[str]], list[str]]:
    """A row for every figure, and the names of those that have fallen or are gone."""
    rows, fallen = [], []
    for name in committed | now:
        before, after = committed.get(name, math.nan), now.get(name, math.nan)
        ratio = after / before
        verdict = "new" if name not in committed else "gone" if name not in now else "" if ratio >= SLOWER else "slower"
        if verdict not in ("", "new"):  # no number is no pass
            fallen.append(name)
        rows.append([name, *("" if math.isnan(x) else f"{x:.3f}" for x in (before, after)), f"{ratio:.2f}", verdict])
    return rows, fallen


if __name__ == "__main__":
    sys.exit(main())
