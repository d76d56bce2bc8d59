"""``d2v runs``: list the runs below a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from d2v.arguments import check
from d2v.cli.launch import configuring, run
from d2v.runs.listing import find_runs, summarise, table_of_runs
from d2v.values import PathStr


def runs(cfg: DictConfig) -> None:
    """Print a table of runs, the newest last."""
    with configuring(cfg):
        check(cfg.output_dir, PathStr, "output_dir")
        root = Path(str(cfg.output_dir))
        if not root.is_dir():
            raise FileNotFoundError(f"output_dir={root}: no such folder; runs are written to outputs by default")
    summaries = [summarise(folder) for folder in find_runs(root)]
    print(
        table_of_runs(summaries)
        if summaries
        else f"output_dir={root}: no runs of d2v pretrain or d2v finetune below it"
    )


if __name__ == "__main__":
    sys.exit(run("runs"))
