"""Calls of commands from Python: configuration from keyword arguments, errors as exceptions.

A call does not read ``sys.argv``, and restores Hydra, random numbers, threads, warnings and the environment.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict

from d2v.cli.commands import groups
from d2v.cli.folders import tidying
from d2v.cli.hints import explain
from d2v.cli.launch import missing_keys, noting_end
from d2v.cli.words import called_with, quoted, read_text_as_hydra_does, read_text_as_typed
from d2v.errors import UserError
from d2v.lit.callbacks.stop import TIME_IS_UP
from d2v.runs.listing import TRAINING
from d2v.runs.lock import unlock_folders

_ONLY_TYPED = ("hydra", "launcher", "sweep")  # keys that start processes or name folders by themselves


def call(command: str, settings: Mapping[str, Any]) -> Path:
    """Run a command in this process.

    Args:
        command: "pretrain", "finetune" or "evaluate".
        settings: values by key; a mapping is a section.

    Returns:
        The folder of the run.

    Raises:
        ValueError: any error for which the command line prints a message, with that message.
        KeyboardInterrupt: the run was stopped.
    """
    words = list(words_of(settings))
    with _leaving_no_trace(), called_with(words):
        try:
            with tidying():
                return _run(command, words)
        except UserError as error:
            raise ValueError(str(error)) from error
        except SystemExit as error:
            if isinstance(error.code, str):
                raise ValueError(error.code.removeprefix("d2v: error: ")) from error.__cause__
            if error.code == TIME_IS_UP:  # of trainer.max_time
                return Path(HydraConfig.get().runtime.output_dir)
            if error.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt from error
            raise
        finally:
            unlock_folders()


def _run(command: str, words: list[str]) -> Path:
    cfg = _composed(command, words)
    missing = [f"{key}=VALUE" for key in missing_keys(OmegaConf.to_container(cfg))]
    if missing and not cfg.get("resume"):  # a run has values of its own
        raise ValueError(f"d2v {command} needs {' and '.join(missing)}")
    trainer = cfg.get("trainer")
    if trainer is not None and (trainer.devices, trainer.num_nodes) != (1, 1):
        raise ValueError(
            f"trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes}: a call from Python trains on "
            f"one device; use the command line, d2v {command}, for more"
        )
    folder = Path(HydraConfig.get().runtime.output_dir)
    module = importlib.import_module(f"d2v.cli.{command}")
    with noting_end(folder if command in TRAINING else None):
        getattr(module, command)(cfg)
    return folder


def _composed(command: str, words: list[str]) -> DictConfig:
    """Return the configuration composed from the words; create its folder and pass it to Hydra."""
    try:
        with initialize_config_module("d2v.conf", version_base="1.3"):
            cfg = compose(command, overrides=words, return_hydra_config=True)
    except (HydraException, ValueError) as error:
        raise ValueError(explain(error, words, command)) from error
    if cfg.get("resume") == "auto":
        raise ValueError("resume=auto: is for the command line; give the folder of the run, resume=FOLDER")
    with open_dict(cfg):
        HydraConfig.instance().set_config(cfg)  # which run.dir refers to
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.run.dir).absolute())
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    OmegaConf.set_readonly(cfg, True)
    Path(HydraConfig.get().runtime.output_dir).mkdir(parents=True, exist_ok=True)
    return cfg


def words_of(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the overrides that are equivalent to settings; None leaves a group of the configuration out.

    Raises:
        ValueError: a configuration cannot hold the key or value, or only the command line accepts it.
    """
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[\w.]+", name):
            raise ValueError(f'{key!r}: give a key of the configuration, such as "optim.lr"')
        if key.partition(".")[0] in _ONLY_TYPED:
            raise ValueError(f"{key}: is for the command line only; leave it out")
        if isinstance(value, Mapping) and value:
            yield from words_of(value, f"{key}.")
        elif value is None and key in groups():
            yield f"~{key}"
        else:
            yield f"{key}={_word(value, key)}"


def _word(value: Any, key: str) -> str:
    """Return a value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        return quoted(os.fspath(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_word(inner, key) for inner in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_word(inner, key)}" for name, inner in value.items()) + "}"
    raise ValueError(f"{key}: a {type(value).__name__} is no value of a configuration; give numbers, texts, lists")


@contextmanager
def _leaving_no_trace() -> Iterator[None]:
    """Restore the state of the process that commands change."""
    hydra, config, version = GlobalHydra.instance(), HydraConfig.instance(), VersionBase.instance()
    before = hydra.hydra, config.cfg, version.version_base
    environment, threads = dict(os.environ), torch.get_num_threads()
    numbers = random.getstate(), np.random.get_state()  # noqa: NPY002  # what Lightning seeds
    hydra.hydra = None
    read_text_as_typed()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            yield
    finally:
        hydra.hydra, config.cfg, version.version_base = before
        GlobalHydra.set_instance(hydra)  # initialize_config_module() has put a copy in its place
        read_text_as_hydra_does()
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])  # noqa: NPY002
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)
