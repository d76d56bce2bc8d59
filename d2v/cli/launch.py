"""Runs a command under Hydra and turns what users can mend into one clear message instead of a stack trace."""

from __future__ import annotations

import difflib
import errno
import importlib
import keyword
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException, InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from d2v.cli.main import options
from d2v.cli.run_dir import run_dir
from d2v.cli.slurm import check_launcher
from d2v.data.bad_samples import BadSample, TooManyBadSamples
from d2v.lit.callbacks.checkpoint import UnknownMetric
from d2v.lit.callbacks.finite import NotFinite
from d2v.lit.callbacks.health import Collapse
from d2v.lit.checkpoint_io import NotSaved
from d2v.lit.data import OtherBatch
from d2v.tasks.scoring import Diverged

TRACEBACK = "D2V_TRACEBACK"  # set to 1 to see where an error came from

OmegaConf.register_new_resolver("d2v.run_dir", run_dir, use_cache=True, replace=True)


_CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENAMETOOLONG, errno.ESTALE, errno.EIO),
}
_MENDABLE = (ValueError, TypeError, OSError, ImportError, KeyError, MisconfigurationException)


@contextmanager
def configuring() -> Iterator[None]:
    """While a command is being set up, wrong values are the user's to mend; later, errors keep their stack trace."""
    try:
        yield
    except MissingMandatoryValue as error:
        fail(f"a value is missing: give {error.full_key}=VALUE", error)
    except (InstantiationException, TypeError) as error:
        fail(_explain_call(error), error)
    except OmegaConfBaseException as error:
        modality = re.search(r"encoder\.frontends\.(\w+)", str(error))
        if isinstance(error, InterpolationKeyError) and modality:
            fail(
                f"data and model are of different modalities (one of them is for {modality[1]}): choose both by an "
                f"experiment, one of {', '.join(options('experiment'))}, or set data=... and model=... to fit",
                error,
            )
        fail(str(error).splitlines()[0], error)
    except _MENDABLE as error:
        fail(str(error), error)


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors about a checkpoint name the key it was given by."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace("checkpoint=", f"{key}=", 1)) from error


@contextmanager
def running() -> Iterator[None]:
    """While a command runs, only what it found wrong with the data or the run itself is the user's to mend."""
    try:
        yield
    except (Collapse, Diverged, NotFinite, NotSaved, OtherBatch, BadSample, TooManyBadSamples, UnknownMetric) as error:
        fail(str(error), error)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # PyTorch raises it wherever the process happens to be
            raise
        fail(
            f"a data worker died ({error}): most often it had no memory left, so lower num_workers; then the same "
            "command with resume=auto goes on from the last checkpoint",
            error,
        )


def fail(message: str, error: BaseException) -> NoReturn:
    """End the process with one message, or with the stack trace if D2V_TRACEBACK=1."""
    if os.environ.get(TRACEBACK) == "1":
        raise error
    raise SystemExit(f"d2v: error: {message}") from error


def run(command: str) -> int:
    """Run ``d2v COMMAND`` with ``sys.argv``.

    Returns:
        The exit status.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to us
    # Processes that this one starts (of Lightning, of multiprocessing, of submitit) import nothing from the current
    # folder, where somebody else's yaml.py may lie; what PYTHONPATH names is imported.
    os.environ["PYTHONSAFEPATH"] = "1"
    name = f"{command}_" if keyword.iskeyword(command) else command  # "import" cannot be a function's name
    module = importlib.import_module(f"d2v.cli.{name}")
    if "launcher=slurm" in sys.argv:
        try:
            check_launcher()
        except (ImportError, OSError) as error:
            fail(str(error), error)
    try:
        getattr(module, name)()
    except HydraException as error:
        fail(_explain(error, sys.argv[1:]), error)
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        nulls = [argument for argument in sys.argv[1:] if argument.endswith("=null")]
        fail(f"{' '.join(nulls)}: to leave a group out write '~{nulls[0].partition('=')[0]}'", error)
    except OSError as error:  # Hydra could not make the run's folder
        if error.errno not in _CANNOT_WRITE:
            raise
        fail(f"{error}: choose a folder that can be written to by output_dir=DIR or hydra.run.dir=DIR", error)
    return 0


def _explain_call(error: Exception) -> str:
    """What a call that the configuration asks for did not take, by its key."""
    if isinstance(error.__cause__, ValueError | OSError | ImportError | BadSample | TooManyBadSamples):
        return str(error.__cause__)
    message = str(error)
    unknown = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", message)
    section = re.search(r"full_key: (\S+)", message)
    if unknown is None:
        return message
    given = [word.lstrip("+") for word in sys.argv[1:] if word.partition("=")[0].endswith(f".{unknown[2]}")]
    if given:
        return f"{given[0]}: {unknown[1]} has no such setting: remove it"
    if section is None:
        return message
    key = f"{section[1]}.{unknown[2]}"
    return (
        f"{key}: {unknown[1]} has no such setting (an experiment's settings are for the {section[1]} that it chooses): "
        f"leave it out with '~{key}'"
    )


def _explain(error: Exception, arguments: list[str]) -> str:
    """Hydra's message, and for an unknown key the nearest known one."""
    message = str(error)
    if error.__cause__ is not None:
        message += f"\n{str(error.__cause__).splitlines()[0]}"
    option = re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", message)
    if option:
        message = f"unknown option {option[1]}={option[2]}: choose from {', '.join(options(option[1]))}"
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        known = _known_keys(arguments)
        leaf = unknown[1].rpartition(".")[2]
        close = [key for key in known if key.rpartition(".")[2] == leaf]
        close += [key for key in difflib.get_close_matches(unknown[1], known, n=3, cutoff=0.75) if key not in close]
        close = close or [key for key in known if key.startswith(f"{unknown[1].rpartition('.')[0]}.")]
        message = f"unknown key {unknown[1]!r}."
        message += f" Did you mean {' or '.join(close)}?" if close else " --cfg job lists the known ones."
    return message


def _known_keys(arguments: list[str]) -> list[str]:
    """Every key of the command's configuration with its groups chosen as the user did."""
    from hydra import compose, initialize_config_module

    command = Path(sys.argv[0]).stem
    choices = [a for a in arguments if re.fullmatch(r"[a-z]+=[\w/]+", a)]
    with initialize_config_module("d2v.conf", version_base="1.3"):
        try:
            config = compose(command, overrides=choices)
        except HydraException:
            config = compose(command)
    return [key for key in _leaves(OmegaConf.to_container(config), "") if not key.endswith("_")]


def _leaves(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from _leaves(value, name)
