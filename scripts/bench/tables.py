"""Tables and figures of the benchmark of a training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import table

STAGES = ("teacher", "student", "decoder", "forward", "backward", "clipping", "optimizer", "ema")


def sweep_table(axis: str, results: Sequence[dict[str, Any]]) -> str:
    """A row for every value; "power" is p where the step's time grew as the value to the p since the row before."""
    stages = [stage for stage in STAGES if stage in results[0]["seconds"]]
    header = [
        axis,
        "step ms",
        "min-max",
        "power",
        *(f"{s} ms" for s in stages),
        "GFLOP",
        "GFLOP/s",
        "of GEMM",
        "grew MB",
    ]
    rows = []
    for i, result in enumerate(results):
        seconds, step = result["seconds"], result["seconds"]["step"]
        rows.append(
            [
                result[axis],
                ms(step["median"]),
                f"{ms(step['min'])}-{ms(step['max'])}",
                f"{_power(axis, results[i - 1], result):.2f}" if i else "",
                *(ms(seconds[stage]["median"]) for stage in stages),
                f"{result['flops']['step'] / 1e9:.1f}",
                f"{result['flops_per_s']['median'] / 1e9:.0f}",
                f"{result['share_of_gemm']['median']:.0%}",
                f"{result['memory']['growth'] / 1e6:.0f}",
            ]
        )
    return table(header, rows)


def _power(axis: str, before: dict[str, Any], after: dict[str, Any]) -> float:
    growth = after["seconds"]["step"]["median"] / before["seconds"]["step"]["median"]
    return math.log(growth) / math.log(after[axis] / before[axis])


def plot_sweep(axis: str, swept: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """A panel for every precision: the step and its parts over the value, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(6.2 * len(swept), 4.2), layout="constrained")
    for axes, (precision, results) in zip(figure.subplots(1, len(swept), squeeze=False)[0], swept.items(), strict=True):
        x = [result[axis] for result in results]
        for name in ("step", *(stage for stage in STAGES if stage in results[0]["seconds"])):
            spreads = [result["seconds"][name] for result in results]
            y = [1000 * spread["median"] for spread in spreads]
            bars = [[1000 * abs(s[end] - s["median"]) for s in spreads] for end in ("min", "max")]
            style = {"color": "#333333", "linewidth": 2.2} if name == "step" else {"linewidth": 1.2}
            axes.errorbar(x, y, yerr=bars, marker="o", markersize=3.5, capsize=2, label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms", title=f"{results[0]['recipe']}, {precision}")
        axes.set_xticks(x)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def describe(result: dict[str, Any]) -> str:
    """The case in a line."""
    return (
        f"{result['recipe']}, {result['precision']}{', compiled' if result['compiled'] else ''}: "
        f"{result['batch']} samples x {result['masks']} masks, {result['visible']} of {result['tokens']} tokens "
        f"visible, width {result['width']}, depth {result['depth']}, {result['parameters'] / 1e6:.1f}M parameters"
    )


def stage_table(result: dict[str, Any]) -> str:
    """A row for every part of the step, and what the machine does at best."""
    seconds, flops, gemm = result["seconds"], result["flops"], result["gemm_flops_per_s"]["median"]
    step = seconds["step"]["median"]
    rows = []
    for name in ("step", *(stage for stage in STAGES if stage in seconds), "data"):
        spread = seconds[name]
        row = [name, ms(spread["median"]), f"{ms(spread['min'])}-{ms(spread['max'])}"]
        row += ["" if name == "data" else f"{spread['median'] / step:.1%}"]
        rate = flops.get(name, 0) / spread["median"]
        share = result["share_of_gemm"]["median"] if name == "step" else rate / gemm
        row += [f"{flops[name] / 1e9:.2f}", f"{rate / 1e9:.1f}", f"{share:.0%}"] if rate else ["", "", ""]
        rows.append(row)
    rows.append(["block's products", "", "", "", "", f"{gemm / 1e9:.1f}", "100%"])
    square = result["square_flops_per_s"]["median"]
    rows.append(["square product", "", "", "", "", f"{square / 1e9:.1f}", f"{square / gemm:.0%}"])
    memory = {name: f"{count / 1e6:.0f} MB" for name, count in result["memory"].items()}
    return table(["part", "ms", "min-max", "of step", "GFLOP", "GFLOP/s", "of GEMM"], rows) + (
        f"\n\nmemory: {memory['before']} before the first step; grew by {memory['growth']}, {memory['state']} of it "
        f"gradients and optimizer state, {memory['activations']} activations and workspace"
    )


def summary_table(results: Sequence[dict[str, Any]]) -> str:
    """A row for every case."""
    header = ["recipe", "precision", "batch x masks", "step ms", "min-max", "samples/s", "GFLOP", "GFLOP/s", "of GEMM"]
    rows = []
    for result in results:
        step = result["seconds"]["step"]
        rows.append(
            [
                result["recipe"],
                result["precision"],
                f"{result['batch']} x {result['masks']}",
                ms(step["median"]),
                f"{ms(step['min'])}-{ms(step['max'])}",
                f"{result['batch'] / step['median']:.2f}",
                f"{result['flops']['step'] / 1e9:.1f}",
                f"{result['flops_per_s']['median'] / 1e9:.1f}",
                f"{result['share_of_gemm']['median']:.0%}",
            ]
        )
    return table(header, rows)


def ms(seconds: float) -> str:
    """Milliseconds to three digits or more."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
