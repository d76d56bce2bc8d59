"""Markdown report of the benchmark of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common import table
from parts import Outcome
from tables import ms


def report(facts: dict[str, Any], device: str, outcomes: Sequence[Outcome]) -> str:
    """Tables of what was measured, and the names of what was not.

    Args:
        facts: of the machine.
        device: "cpu" or "cuda".
        outcomes: of all parts, or of those so far.
    """
    measured = [outcome.result for outcome in outcomes if outcome.status == "measured"]
    name = facts["gpu"] if device == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
    blocks = [f"# Benchmark on {name}", f"torch {facts['torch']}, revision {facts['revision']}, {facts['platform']}"]
    if steps := [result for result in measured if "share_of_square" in result]:
        blocks += ["## Training steps", step_table(steps), STEP_NOTE]
    if loaders := [result for result in measured if "values_per_s" in result]:
        blocks += ["## Loading", feed_table(loaders, steps), FEED_NOTE]
    if runs := [result for result in measured if "scores" in result]:
        blocks += ["## What short runs learn", learning_table(runs)]
    if tests := [result["summary"] for result in measured if "summary" in result]:
        blocks += ["## Tests marked gpu", *tests]
    for status in ("failed", "left out"):
        if those := [outcome for outcome in outcomes if outcome.status == status]:
            blocks += [f"## {status.capitalize()}", "\n".join(_item(outcome) for outcome in those)]
    return "\n\n".join(blocks) + "\n"


STEP_NOTE = (
    '"Of square": share of the rate of a large square product in bfloat16; "of GEMM": of a block\'s own products. '
    "Both are timed in turns with the steps. Memory is the peak: of a GPU what PyTorch allocated, of a CPU the process."
)
FEED_NOTE = (
    "Samples of the loader and of the step differ in size where data are clips; the last column compares input values "
    "(channels of pixels, samples of a waveform, tokens). Above 1 the loader can feed the step."
)


def step_table(steps: Sequence[dict[str, Any]]) -> str:
    """A row for every case of ``step.py``."""
    rows = []
    for result in steps:
        seconds = result["seconds"]["step"]
        rows.append([
            f"{result['recipe']}{', compiled' if result['compiled'] else ''}",
            f"{result['batch']} x {result['masks']}",
            ms(seconds["median"]),
            f"{ms(seconds['min'])}-{ms(seconds['max'])}",
            f"{result['batch'] / seconds['median']:.1f}",
            f"{result['flops_per_s']['median'] / 1e12:.2f}",
            f"{result['share_of_square']['median']:.0%}",
            f"{result['share_of_gemm']['median']:.0%}",
            f"{result['memory']['peak'] / 1e9:.2f}",
        ])  # fmt: skip
    header = ["recipe", "batch x masks", "step ms", "min-max", "samples/s", "TFLOP/s", "of square", "of GEMM", "GB"]
    return table(header, rows)


def feed_table(loaders: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> str:
    """A row for every recipe: rates of its loader and of its fastest step, if that was measured."""
    rows = []
    for result in loaders:
        samples, values = (result[f"{unit}_per_s"][str(result["workers"])]["median"] for unit in ("samples", "values"))
        taken = [rates_of_step(one) for one in steps if one["recipe"] == result["recipe"]]
        fastest = max(taken, default=None)
        rows.append([
            result["recipe"],
            result["data"],
            result["workers"],
            f"{samples:.0f}",
            f"{fastest[1]:.0f}" if fastest else "",
            f"{values / fastest[0]:.2f}" if fastest else "",
        ])  # fmt: skip
    return table(["recipe", "data", "workers", "loader, samples/s", "step, samples/s", "loader over step"], rows)


def rates_of_step(result: dict[str, Any]) -> tuple[float, float]:
    """Input values and samples a second that a step takes."""
    values = 1
    for size in result["inputs"]:
        values *= size
    seconds = result["seconds"]["step"]["median"]
    return values / seconds, result["batch"] / seconds


def learning_table(runs: Sequence[dict[str, Any]]) -> str:
    """A row for every length."""
    probes = list(dict.fromkeys(probe for run in runs for probe in run["scores"]))
    rows = [
        [run["recipe"], run["steps"], f"{run['seconds']:.1f}", f"{run['samples_per_s']:.0f}",
         *(f"{100 * run['scores'][probe]:.1f}" if probe in run["scores"] else "" for probe in probes)]
        for run in runs
    ]  # fmt: skip
    return table(["recipe", "steps", "seconds", "samples/s", *(f"{probe} (%)" for probe in probes)], rows)


def _item(outcome: Outcome) -> str:
    """A part and its reason; of several lines, those after the first are set as code."""
    first, *others = outcome.reason.splitlines() or [""]
    return "\n".join(
        [f"- {outcome.part}: {first}", *(["", *(f"      {line}" for line in others), ""] if others else [])]
    )
