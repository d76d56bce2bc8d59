"""Folder of a run: ``outputs/NAME/TIME``, or that of the resumed run.

New folders are created here, before Hydra does, so that commands that start in the same second never share one.
Processes started by torchrun or srun have their own clocks and must agree on the folder: under torchrun rank 0 chooses
it, under Slurm the job's number replaces the time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from d2v.bounds import read_yaml
from d2v.cli.folders import forget_making, note_making
from d2v.cli.words import arguments, is_multirun, quoted
from d2v.errors import UserError
from d2v.runs.checkpoints import FOLDER
from d2v.runs.links import check_links
from d2v.runs.lock import lock_folder
from d2v.runs.record import RECORD, read_run_record, runs_begun_last_first

log = logging.getLogger(__name__)

_NOT_THE_RUN = ("resume=", "output_dir=", "hydra.")  # overrides that do not identify a run
_LOOKS = ("--cfg", "-c", "--info", "-i")  # Hydra's options that print a configuration and run nothing


def run_dir(output_dir: str, name: str | None, resume: str | None, overrides: Sequence[str]) -> str:
    """Return the folder of a run (the Hydra resolver ``d2v.run_dir``).

    Args:
        output_dir: folder of all runs.
        name: name of the run, a folder below ``output_dir``.
        resume: None for a new run; "auto" for the latest run with the same overrides and a checkpoint; or the path of a
            checkpoint or of a run.
        overrides: overrides of the command line.

    Raises:
        InUse: another process writes to the run to resume.
        LeadsElsewhere: the folder holds links that lead out of it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return _first_ranks(lambda: _choose(output_dir, name, resume, overrides))
    return _choose(output_dir, name, resume, overrides)


def new_folder(parent: str | Path) -> Path:
    """Create a new folder in ``parent``, named after the time, that no other process uses."""
    parent = Path(parent)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = (stamp if attempt == 1 else f"{stamp}.{attempt}" for attempt in count(1))
    if any(argument in _LOOKS for argument in arguments()):
        return next(parent / name for name in names if not (parent / name).exists())
    note_making(parent / stamp)
    parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        note_making(parent / name)
        try:
            (parent / name).mkdir()
        except FileExistsError:
            forget_making(parent / name)
            continue
        return parent / name
    raise AssertionError("unreachable")


def claim(folder: str | Path) -> Path:
    """Lock a folder, which may exist, before anything is written to it.

    Raises:
        InUse: another process writes to it.
        LeadsElsewhere: it holds links that lead out of it.
    """
    check_links(folder)
    if not any(argument in _LOOKS for argument in arguments()):
        lock_folder(folder)
        _make_way(Path(folder) / ".hydra")
    return Path(folder)


def _make_way(folder: Path) -> None:
    """Rename anything but a file at the paths where Hydra writes its files."""
    for path in (folder, *(folder / name for name in ("config.yaml", "hydra.yaml", "overrides.yaml"))):
        if path.exists() and path.is_dir() != (path == folder):
            aside = path.with_name(f"{path.name}.damaged")
            log.warning("%s is damaged (%s): kept as %s", path, "a file" if path == folder else "a folder", aside.name)
            path.replace(aside)


def claim_given(words: Sequence[str]) -> None:
    """Call :func:`claim` for the folder of ``hydra.run.dir=DIR``, to which Hydra writes without ``d2v.run_dir``."""
    for value in _values(words, "hydra.run.dir"):
        if not value.strip():
            raise UserError("hydra.run.dir=: an empty path; give a folder, or leave it out")
        if Path(value).is_dir() and Path(value).resolve() != Path.cwd():
            claim(value)


def name_sweep(words: Sequence[str]) -> list[str]:
    """Return the override with a new folder for a multirun; [] for a single run, or if the folder is given.

    As an override it reaches every job, including Slurm's, which compose their configuration again.
    """
    if not is_multirun(list(words)) or _values(words, "hydra.sweep.dir"):
        return []
    output_dir = next(iter(_values(words, "output_dir")), "outputs")
    return [f"hydra.sweep.dir={quoted(str(new_folder(Path(output_dir, 'multirun'))))}"]


def _values(words: Sequence[str], key: str) -> list[str]:
    """Return the values of a key on the command line, last first, without those that refer to other keys."""
    given = [a for a in words if a.lstrip("+").startswith(f"{key}=")]
    try:
        values = [override.value() for override in OverridesParser.create().parse_overrides(given)]
    except HydraException:  # said when the command's configuration is composed
        return []
    return [value for value in reversed(values) if isinstance(value, str) and "${" not in value]


def _first_ranks(choose: Callable[[], str]) -> str:
    """Return rank 0's choice under torchrun, shared through the store of the process group."""
    from torch.distributed import TCPStore

    env = os.environ
    serves = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun itself does
    address = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = TCPStore(*address, is_master=serves, multi_tenant=True, timeout=timedelta(minutes=5))
    _stores.append(store)  # which the others may ask later
    key = f"d2v/run_dir/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if env["RANK"] == "0":
        store.set(key, choose())
    return store.get(key).decode()


def _choose(output_dir: str, name: str | None, resume: str | None, overrides: Sequence[str]) -> str:
    parent = Path(output_dir) / (name or "run")
    if resume == "auto":
        for folder in runs_begun_last_first(parent):
            if _is_run_of(folder, _identity(overrides)):
                return str(claim(folder))
    elif resume:
        path = Path(resume)
        folder = path if path.is_dir() else path.parent
        folder = folder.parent if folder.name == FOLDER else folder
        return str(claim(folder) if folder.is_dir() else folder)
    step = _slurm_step()
    if step is not None:
        return str(claim(parent / step))
    return str(new_folder(parent))


def results_parent(checkpoint: str | Sequence[str] | None, output_dir: str, overrides: Sequence[str]) -> str:
    """Return the parent folder for results of a checkpoint (the Hydra resolver ``d2v.results_parent``).

    It is the run's folder, unless ``output_dir`` is given, the checkpoint is not of a run, the folder is read-only, or
    there are several checkpoints.
    """
    if checkpoint is not None and not isinstance(checkpoint, str):
        return output_dir
    path = Path(checkpoint or "")
    folder = path.parent if path.is_file() else path
    folder = folder.parent if folder.name == FOLDER else folder
    is_run = checkpoint is not None and ((folder / FOLDER).is_dir() or (folder / RECORD).is_file())
    given = any(override.startswith("output_dir=") for override in overrides)
    return str(folder) if is_run and not given and os.access(folder, os.W_OK) else output_dir


_stores: list[object] = []


def _slurm_step() -> str | None:
    """Return a name that all tasks of a Slurm job step share, also after requeueing; None for a single task."""
    env = os.environ
    if int(env.get("SLURM_NTASKS", 1)) < 2 or "SLURM_PROCID" not in env:
        return None
    return f"slurm-{env['SLURM_JOB_ID']}.{env.get('SLURM_STEP_ID', 0)}"


def _identity(overrides: Sequence[str]) -> list[str]:
    words = (override.removeprefix("++") for override in overrides if "=" in override or override.startswith("~"))
    return sorted(word for word in words if not word.lstrip("+~").startswith(_NOT_THE_RUN))


def _is_run_of(folder: Path, words: list[str]) -> bool:
    """Return whether a run was started or resumed (``resume=RUN trainer.max_steps=N``) with these overrides.

    A resume with fewer overrides than the first start (``resume=RUN`` alone) identifies no run.
    """
    first = _overrides_of(folder)
    if first is None or first == words:
        return first is not None
    if not {word.partition("=")[0] for word in first} <= {word.partition("=")[0] for word in words}:
        return False
    commands = [entry.get("command") for entry in read_run_record(folder / RECORD)[1:]]
    return any(isinstance(command, list) and _identity([str(w) for w in command[2:]]) == words for command in commands)


def _overrides_of(folder: Path) -> list[str] | None:
    """Return the overrides that identify a run; None, with a warning, if their file is damaged."""
    overrides = read_overrides(folder)
    return None if overrides is None else _identity(overrides)


def read_overrides(folder: Path) -> list[str] | None:
    """Read the overrides of a run; None if their file is missing, or, with a warning, damaged."""
    path = folder / ".hydra" / "overrides.yaml"
    try:
        overrides = read_yaml(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
    else:
        if isinstance(overrides, list) and all(isinstance(override, str) for override in overrides):
            return overrides
        reason = "it is no list of overrides"
    log.warning(
        "%s cannot be read (%s): resume=auto leaves this run out; resume=%s goes on with it", path, reason, folder
    )
    return None
