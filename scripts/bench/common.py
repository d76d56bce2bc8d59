"""Parts that benchmarks share: recipes composed without the command line, facts about the machine, tables, files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from d2v.cli.commands import options


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of ``d2v pretrain experiment=RECIPE OVERRIDES``; what only a user can give stays missing."""
    with initialize_config_module("d2v.conf", version_base="1.3"):
        cfg = compose("pretrain", [f"experiment={recipe}", *overrides])
    if "in_chans" in cfg.data and cfg.data.in_chans is None:
        cfg.data.in_chans = 3  # of a folder that is not there
    return cfg


def recipes_and_overrides(words: Sequence[str], default: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words of a command line: KEY=VALUE are overrides, the others recipes (the default ones if there are none)."""
    recipes = [word for word in words if "=" not in word]
    for recipe in recipes:
        if recipe not in options("experiment"):
            raise SystemExit(f"error: there is no recipe {recipe}: choose from {', '.join(options('experiment'))}")
    return recipes or list(default), [word for word in words if "=" in word]


@contextmanager
def explained() -> Iterator[None]:
    """End the process with a message, in place of a stack trace, if settings are invalid."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        first = isinstance(cause, OmegaConfBaseException)
        raise SystemExit(f"error: {str(cause).splitlines()[0] if first else cause}") from error


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing.

    Attributes:
        values: as they came.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the measurements are smaller."""
        return statistics.median(self.values)

    def record(self) -> dict[str, Any]:
        """For a file: median, lowest, highest, and every value."""
        return {
            "median": self.median, "min": min(self.values), "max": max(self.values), "values": list(self.values)
        }  # fmt: skip


def available_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts(threads: int) -> dict[str, Any]:
    """Facts that belong to every figure.

    Args:
        threads: of the process that measures.
    """
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # processes that ran, mean of a minute
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "revision": _revision(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _revision() -> str | None:
    """Return the revision of the checkout, with "-dirty" if files differ from it; None outside of git."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "-c",
        "core.fsmonitor=false",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its columns aligned: the first to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))  # noqa: B905  # as wide as the header
        return f"| {' | '.join([first, *others])} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (w + 1) + ':' for w in widths[1:])}|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def write_json(path: Path, content: dict[str, Any], quiet: bool = False) -> None:
    """Write a result as JSON; missing folders are created.

    Args:
        path: of the file.
        content: of the file.
        quiet: whether nothing is printed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    if not quiet:
        print(f"\nwritten: {path}")
