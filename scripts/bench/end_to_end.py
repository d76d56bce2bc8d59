"""Cost of the trainer: ``d2v pretrain`` from the command to its steps, beside the same loop written by hand.

    python scripts/bench/end_to_end.py
    python scripts/bench/end_to_end.py --env DIR        # beside other libraries, which scripts/bench/peers.py installs

Start-up is the time from the command to the first step, then come that step's own and the steps a second. Every run is
a process of its own; trainer and loop by hand take turns, and what the trainer costs is judged within each turn. With
transformers or stable-pretraining installed, their trainers are compared with loops by hand on their own masked
autoencoder, as wide and deep as the recipe's encoder, on the same images and batches.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import Spread, available_cores, machine_facts, table, write_json
from environment import rerun_inside
from loops import WARM_UP_STEPS, Loop, command
from parts import CommandError, Commands, end_with_commands
from step import case_environment

from d2v.lit.machine import choose_precision, choose_workers
from d2v.runs.metrics import METRICS

PEERS = {"transformers": ("transformers", "accelerate"), "stable-pretraining": ("stable_pretraining",)}
POLL_S = 0.005
FORMS = ("trainer", "by hand")


def main() -> None:
    """Time the runs in turns, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--recipe", default="image_tiny", help="an experiment of images")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--first", type=int, default=50, help="steps that are not timed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_cores(), help="on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--env", type=Path, help="environment with the other libraries, outside of the checkout")
    parser.add_argument("--only", nargs="+", choices=("d2v", *PEERS), help="libraries; all that are there if not given")
    parser.add_argument("--json", type=Path, help="where everything measured goes")
    args = parser.parse_intermixed_args()
    if not 1 < args.first < args.steps or args.steps % args.first:
        parser.error(f"--first {args.first}: more than 1, less than --steps {args.steps} and a divisor of it")
    if args.env is not None:
        rerun_inside(args.env)
    libraries = [name for name in ("d2v", *PEERS) if name in (args.only or ("d2v", *PEERS))]
    for name in [name for name in libraries if name in PEERS]:
        if absent := [module for module in PEERS[name] if find_spec(module) is None]:
            print(f"{name}: left out, {' and '.join(absent)} not installed (--env DIR)", flush=True)
            libraries.remove(name)
    precision = choose_precision("auto", args.device)
    workers = choose_workers("auto", args.device)
    turns: dict[str, list[dict[str, Any]]] = {f"{name} {form}": [] for name in libraries for form in FORMS}
    for turn in range(args.turns):
        for name in turns:
            loop = Loop(
                name, args.recipe, args.steps, args.first, args.device, precision, workers, time.time(), args.words
            )
            turns[name].append(run_d2v(loop, args.threads) if name == "d2v trainer" else run_loop(loop, args.threads))
            print(f"turn {turn + 1}, {name}: {turns[name][-1]['steps_per_s']:.2f} steps/s", flush=True)
    print(f"\n{cost_table(turns)}")
    if "d2v" in libraries:
        losses = [turns[f"d2v {form}"][-1]["loss"] for form in FORMS]
        print(f"\nd2v's loss in the last step: {losses[0]:.6f} under the trainer, {losses[1]:.6f} by hand")
    if args.json:
        facts = machine_facts(args.threads)
        write_json(args.json, {"machine": facts, "command": sys.argv, "precision": precision, "turns": turns})


def run_loop(loop: Loop, threads: int) -> dict[str, Any]:
    """A loop of ``loops.py``."""
    output = Commands().run(command(loop), case_environment(threads))
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def run_d2v(loop: Loop, threads: int) -> dict[str, Any]:
    """``d2v pretrain``, twice: two steps that are logged, for the start, and as many as the loop, for the rate."""
    with tempfile.TemporaryDirectory() as folder:
        launched = time.time()
        begun, rows = logged_steps(loop, threads, Path(folder) / "start", steps=2, every=1)
        first_step_s = 1 / float(rows[0]["perf/steps_per_s"])
        times, rows = logged_steps(loop, threads, Path(folder) / "rate", loop.steps, loop.first)
    (first, first_cpu), (last, last_cpu), steps = times[loop.first], times[loop.steps], loop.steps - loop.first
    return {
        "start_s": begun[1][0] - launched - first_step_s,
        "first_step_s": first_step_s,
        "steps_per_s": steps / (last - first),
        "cpu_s_per_step": (last_cpu - first_cpu) / steps,
        "loss": float(rows[-1]["train/loss"]),
    }


def logged_steps(
    loop: Loop, threads: int, run: Path, steps: int, every: int
) -> tuple[dict[int, tuple[float, float]], list[dict[str, str]]]:
    """By step the Unix time and the processor time when its row of a run's metrics appeared, and the rows.

    Raises:
        CommandError: the run failed; the message has what it printed.
    """
    words = [
        sys.executable, "-m", "d2v.cli.main", "pretrain", f"experiment={loop.recipe}", *loop.overrides,
        f"trainer.max_steps={steps}", f"schedule.warmup_steps={min(WARM_UP_STEPS, steps // 2)}",
        f"trainer.log_every_n_steps={every}", f"trainer.precision={loop.precision}", f"num_workers={loop.num_workers}",
        f"trainer.accelerator={'gpu' if loop.device == 'cuda' else 'cpu'}", f"hydra.run.dir={run}",
    ]  # fmt: skip
    environment = {**os.environ, **case_environment(threads)}
    times: dict[int, tuple[float, float]] = {}
    with (run.parent / f"{run.name}.log").open("w+") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                for row in metric_rows(run):
                    if int(row["step"]) not in times:
                        times[int(row["step"])] = time.time(), processor_time(process.pid)
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            log.seek(0)
            raise CommandError(f"{' '.join(words)}\n{log.read()}")
    return times, metric_rows(run)


def processor_time(pid: int) -> float:
    """Seconds of all threads of a process, from Linux's /proc; nan elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def metric_rows(run: Path) -> list[dict[str, str]]:
    """Complete rows of a run's metrics; [] before the first."""
    try:
        text = (run / METRICS).read_text()
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def costs(turns: dict[str, list[dict[str, Any]]], seconds: Callable[[dict[str, Any]], float]) -> dict[str, Spread]:
    """Share of a step by hand that each library's trainer takes in addition, turn by turn.

    Args:
        turns: results by the loop's name.
        seconds: of a step, from a result.
    """
    found = {}
    for library in [name.removesuffix(" trainer") for name in turns if name.endswith(" trainer")]:
        trainer, hand = ([seconds(result) for result in turns[f"{library} {form}"]] for form in FORMS)
        found[library] = Spread(tuple(a / b - 1 for a, b in zip(trainer, hand, strict=True)))
    return found


def cost_table(turns: dict[str, list[dict[str, Any]]]) -> str:
    """A row for every loop; costs stand in the rows of trainers."""
    by_clock = costs(turns, lambda result: 1 / result["steps_per_s"])
    by_processor = costs(turns, lambda result: result["cpu_s_per_step"])
    rows = []
    for name, results in turns.items():
        start, first, rate, cpu = (
            Spread(tuple(result[key] for result in results))
            for key in ("start_s", "first_step_s", "steps_per_s", "cpu_s_per_step")
        )
        library = name.removesuffix(" trainer")
        rows.append([
            name,
            f"{start.median:.1f}",
            f"{1000 * first.median:.0f}",
            f"{rate.median:.2f}",
            f"{1000 * cpu.median:.1f}",
            *(range_of(cost[library]) if library in cost else "" for cost in (by_clock, by_processor)),
        ])  # fmt: skip
    header = ["", "start (s)", "first step (ms)", "steps/s", "CPU ms a step", "trainer's cost", "in CPU time"]
    return table(header, rows)


def range_of(shares: Spread) -> str:
    """Median, lowest and highest."""
    return f"{shares.median:+.1%} ({min(shares.values):+.1%} to {max(shares.values):+.1%})"


if __name__ == "__main__":
    end_with_commands()
    main()
