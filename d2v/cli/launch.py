"""Running of a command under Hydra, with one clear message instead of a stack trace for errors that users can fix."""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from d2v.cli.commands import module_of
from d2v.cli.folders import note_given, tidying
from d2v.cli.hints import explain
from d2v.cli.keys import argument_keys
from d2v.cli.latest import name_latest
from d2v.cli.resume_words import loosened, names_a_run
from d2v.cli.run_dir import claim_given, name_sweep, results_parent, run_dir
from d2v.cli.slurm import check_launcher
from d2v.cli.words import arguments, check_words, is_multirun, read_text_as_typed
from d2v.errors import UserError, in_keys, name_keys, without_stack
from d2v.runs.listing import ENDED, TRAINING, note_end
from d2v.runs.lock import is_first_process, unlock_folders
from d2v.runs.record import RECORD
from d2v.terminal import say

TRACEBACK = "D2V_TRACEBACK"  # set to 1 to see where an error came from

OmegaConf.register_new_resolver("d2v.run_dir", run_dir, use_cache=True, replace=True)
OmegaConf.register_new_resolver("d2v.results_parent", results_parent, replace=True)
read_text_as_typed()

_CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENAMETOOLONG, errno.ESTALE, errno.EIO, errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.EISDIR),
}
_MENDABLE = (ValueError, TypeError, OSError, ImportError, KeyError, UserError)


class Status:
    """Exit status of a command with several runs, of which one was stopped by ``trainer.max_time``."""

    value = 0


@contextmanager
def configuring(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Report invalid values as a message while a command is being set up; later errors keep their stack trace."""
    try:
        yield
    except MissingMandatoryValue as error:
        fail(f"a value is missing: give {error.full_key}=VALUE", error)
    except OmegaConfBaseException as error:
        fail(str(error).splitlines()[0], error)
    except _MENDABLE as error:
        name_keys(error, argument_keys(cfg))
        fail(_said_at_once(str(error)), error)


@contextmanager
def running(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Report errors of data and run (:class:`UserError`) as a message while a command runs; others keep their trace."""
    try:
        yield
    except UserError as error:
        name_keys(error, argument_keys(cfg))
        fail(str(error), error)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's end of a run by Ctrl-C has status 1
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # PyTorch raises it wherever the process happens to be
            raise
        words = without_stack(str(error))
        if words != str(error):
            fail(f"a data worker failed: {in_keys(words, argument_keys(cfg))}", error)
        fail(
            f"a data worker died ({error}): most often it had no memory left, so lower num_workers; then the same "
            "command with resume=auto goes on from the last checkpoint",
            error,
        )


def fail(message: str, error: BaseException) -> NoReturn:
    """End the process with one message, or with the stack trace if D2V_TRACEBACK=1."""
    if os.environ.get(TRACEBACK) == "1":
        raise error
    raise SystemExit(f"d2v: error: {without_stack(message)}") from error


class Task:
    """Task function of a command, which reports missing values before it imports the command's module.

    Args:
        command: name of the command.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.__module__ = module_of(command)  # whence Hydra takes the names of the job and its log

    def __call__(self, cfg: DictConfig) -> None:
        """Run the command."""
        missing = [f"{key}=VALUE" for key in missing_keys(OmegaConf.to_container(cfg))]
        if missing and not names_a_run(sys.argv[1:]):  # which has values of its own
            fail(f"d2v {self.command} needs {' and '.join(missing)}", ValueError(str(missing)))
        folder = Path(HydraConfig.get().runtime.output_dir) if self.command in TRAINING else None
        OmegaConf.set_readonly(cfg, True)
        module = importlib.import_module(self.__module__)
        with noting_end(folder):
            getattr(module, self.__module__.rpartition(".")[2])(cfg)


@contextmanager
def noting_end(folder: Path | None) -> Iterator[None]:
    """Write to the folder of a failing run how it ended, for ``d2v runs``.

    Args:
        folder: folder of a training run; None to write nothing.
    """
    if folder is not None:
        (folder / ENDED).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        _note_end(folder, error)
        raise
    except SystemExit as error:
        if isinstance(error.code, str):  # a message, not the status of a stopped run
            _note_end(folder, error.__cause__ or error)
        raise


def _note_end(folder: Path | None, error: BaseException) -> None:
    if folder is not None and is_first_process() and (folder / RECORD).is_file():
        with suppress(OSError):
            note_end(folder, error)


def missing_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Return the keys of plain containers with missing values."""
    if node == "???":
        yield prefix.removesuffix(".")
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from missing_keys(value, f"{prefix}{key}.")


def run(command: str) -> int:
    """Run ``d2v COMMAND`` with ``sys.argv``; the words are checked before anything heavy is imported.

    Returns:
        The exit status.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to us
    # Child processes (of Lightning, multiprocessing and submitit) must import nothing from the current folder, which
    # may hold a foreign yaml.py; PYTHONPATH is respected.
    os.environ["PYTHONSAFEPATH"] = "1"
    words = sys.argv[1:]
    try:
        check_words(words)
        words = name_latest(command, words)
        sys.argv[1:] = loosened(command, words)
        if "launcher=slurm" in words:
            check_launcher()
    except (ValueError, ImportError, OSError) as error:
        fail(str(error), error)
    read_text_as_typed(is_multirun(words))
    entry = hydra.main(version_base="1.3", config_path="pkg://d2v.conf", config_name=command)(Task(command))
    Status.value = 0
    try:
        with tidying():
            claim_given(words)
            note_given(words)
            sys.argv += name_sweep(words)
            entry()
    except UserError as error:
        fail(str(error), error)
    except InterpolationResolutionError as error:  # from d2v.run_dir
        _fail_without_folder(error)
    except KeyboardInterrupt:
        say("d2v: interrupted")
        return 128 + signal.SIGINT
    except HydraException as error:
        fail(explain(error, words, command), error)
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        fail(explain(error, words, command), error)
    except OSError as error:  # Hydra could not make the run's folder
        _fail_without_folder(error)
    finally:
        read_text_as_typed()
        unlock_folders()
    return Status.value


def _fail_without_folder(error: BaseException) -> NoReturn:
    """End with a message if the folder of a run cannot be created; raise any other error again."""
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, UserError):
            fail(str(reason), error)
        if isinstance(reason, OSError) and reason.errno in _CANNOT_WRITE:
            fail(f"{reason}: choose a folder that can be written to by output_dir=DIR or hydra.run.dir=DIR", error)
        reason = reason.__cause__ or reason.__context__
    raise error


def _said_at_once(message: str) -> str:
    """A setting that the command line gives, and not an experiment, is left out by not giving it."""
    unknown = re.search(r"leave it out with '~(\S+)'", message)
    given = {word.lstrip("+").partition("=")[0] for word in arguments()}
    return message.replace(unknown[0], "remove it") if unknown and unknown[1] in given else message


def _explain(error: Exception, arguments: list[str]) -> str:
    """Hint on words that Hydra could not compose, for the command that ``sys.argv`` names."""
    return explain(error, arguments, Path(sys.argv[0]).stem.rstrip("_"))
