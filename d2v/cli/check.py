"""``d2v check``: a data set, read as training would read it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from d2v.cli.commands import options
from d2v.cli.launch import configuring, run, running
from d2v.cli.settings import Check, checked, plain
from d2v.data.checking import check_data
from d2v.interop.build import build
from d2v.runs.files import writing
from d2v.values import shown


def check(cfg: DictConfig) -> None:
    """Print what there is, list all samples that cannot be read, and exit with 1 if a run would stop over them."""
    with configuring():
        if cfg.get("data") is None:
            raise ValueError(f"choose data=...: one of {', '.join(options('data'))}")
        settings = checked(Check, plain(cfg))
        node: dict[str, Any] = dict(settings.data)
        allowed = node.get("max_bad_fraction", 0.0)
        if not isinstance(allowed, int | float) or not 0 <= allowed <= 1:
            raise ValueError(f"data.max_bad_fraction={shown(allowed)}: give a number from 0 to 1")
        if "max_bad_fraction" in node:
            node["max_bad_fraction"] = 1.0  # so that all bad samples are found
        data = build(node, key="data", trusted=True)
        if not hasattr(data, "describe") or not hasattr(data, "train"):
            raise ValueError(f"data of this kind ({node['_target_']}) are not checked: choose another data=...")
        report = check_data(data, float(allowed))
    print("\n".join(report.lines))
    for entry in report.bad[: settings.show]:
        print(f"bad: {entry}")
    hidden = len(report.bad) - settings.show
    if hidden > 0:
        print(f"... and {hidden:,} more" + ("; report=FILE writes all of them" if settings.report is None else ""))
    if settings.report is not None:
        with running(), writing("report", settings.report):
            Path(settings.report).write_text("".join(f"{entry}\n" for entry in report.bad), encoding="utf-8")
        print(f"all bad samples: {settings.report}")
    print(f"{report.num_samples:,} samples, {len(report.bad):,} bad; a run tolerates {int(report.allowed):,}")
    if report.too_many:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(run("check"))
