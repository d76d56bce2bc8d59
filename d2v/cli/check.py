"""``d2v check``: read a data set as training would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from d2v.cli.commands import options
from d2v.cli.keys import argument_keys
from d2v.cli.launch import configuring, run, running
from d2v.cli.settings import Check, checked, is_given, plain
from d2v.data.checking import check_data
from d2v.data.contents import visible
from d2v.errors import in_keys
from d2v.interop.build import build
from d2v.runs.files import refuse_foreign, replace_text, writing
from d2v.values import shown

_FIRST_LINE = "# d2v check: samples that cannot be read, as name: reason"


def check(cfg: DictConfig) -> None:
    """Print what there is, list all samples that cannot be read, and exit with 1 if a run would stop over them."""
    with configuring(cfg):
        if cfg.get("data") is None:
            raise ValueError(f"choose data=...: one of {', '.join(options('data'))}")
        settings = checked(Check, plain(cfg))
        if settings.report is not None:
            refuse_foreign(settings.report, "report", _is_report, "report of d2v check")
        node: dict[str, Any] = dict(settings.data)
        allowed = node.get("max_bad_fraction", 0.0)
        if not isinstance(allowed, int | float) or not 0 <= allowed <= 1:
            raise ValueError(f"data.max_bad_fraction={shown(allowed)}: give a number from 0 to 1")
        if "max_bad_fraction" in node:
            node["max_bad_fraction"] = 1.0  # to find all bad samples
        if "patch_size" in node and not is_given("data.patch_size"):
            node["patch_size"] = 1  # an experiment says what a token is; images of any size can be checked
        data = build(node, key="data", trusted=True)
        if not hasattr(data, "measures"):
            raise ValueError(f"data of this kind ({node['_target_']}) are not checked: choose another data=...")
        report = check_data(data, float(allowed))
    print(in_keys("\n".join(report.lines), argument_keys(cfg), only_values=True))
    for entry in report.bad[: settings.show]:
        print(visible(f"bad: {entry}"))
    hidden = len(report.bad) - settings.show
    if hidden > 0:
        print(f"... and {hidden:,} more" + ("; report=FILE writes all of them" if settings.report is None else ""))
    if settings.report is not None:
        with running(cfg), writing("report", settings.report):
            replace_text(settings.report, "".join(f"{visible(line)}\n" for line in (_FIRST_LINE, *report.bad)))
        print(f"all bad samples: {settings.report}")
    print(f"{report.num_samples:,} samples, {len(report.bad):,} bad; a run tolerates {int(report.allowed):,}")
    if report.too_many or report.num_samples == 0:
        raise SystemExit(1)


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_FIRST_LINE) + 1) == f"{_FIRST_LINE}\n".encode()


if __name__ == "__main__":
    sys.exit(run("check"))
