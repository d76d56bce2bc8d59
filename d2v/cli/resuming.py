"""Resuming on the command line: the run's own configuration, and overrides that change it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2v.cli.loading import WORDS_OF_WRITING
from d2v.cli.paths import absolute
from d2v.data.fingerprint import differences, fingerprint
from d2v.interop.build import check_file_pattern, part_of
from d2v.interop.native import RunCheckpoint
from d2v.runs.files import replace_yaml
from d2v.runs.resuming import OtherRun, Words, resumed, trains_otherwise

log = logging.getLogger(__name__)

_GLOBAL = ("experiment", "task", "debug")  # groups with options that set keys of other groups
_NOT_SETTINGS = ("launcher",)
_ALIASES = {"data.label_fraction": "label_fraction"}  # a key of all data sets, stored outside of their nodes


def composed_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings composed from command line and defaults as plain containers; "???" for missing values.

    References that cannot be resolved are kept; the run's own configuration replaces them.
    """
    composed: dict[str, Any] = _resolved(cfg)
    return composed


def _resolved(node: DictConfig | ListConfig) -> Any:
    if isinstance(node, ListConfig):
        return [_resolved_at(node, i) for i in range(len(node))]
    return {str(key): "???" if OmegaConf.is_missing(node, key) else _resolved_at(node, key) for key in node}


def _resolved_at(node: Any, key: Any) -> Any:
    try:
        value = node[key]
    except OmegaConfBaseException:
        raw: Any = OmegaConf.to_container(node, resolve=False)
        return raw[key]
    return _resolved(value) if OmegaConf.is_config(value) else value


def words_of(
    overrides: Sequence[str], choices: Mapping[str, Any], own_choices: Mapping[str, Any], own: Mapping[str, Any]
) -> Words:
    """Return the overrides that a resumed run may not take.

    Args:
        overrides: overrides of the command line.
        choices: chosen option of every group.
        own_choices: options that the run chose.
        own: configuration of the run.
    """
    keys, groups, deleted = [], [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        group = key if override.package is None else f"{key}@{override.package}"
        if key in _NOT_SETTINGS or (key in ("task", "task_name") and choices.get("task") is None):
            continue  # the run's own task
        if group in choices:
            if override.is_delete() or str(choices[group]) != str(own_choices.get(group)):
                groups.append("" if key in _GLOBAL else override.package or key.replace("/", "."))
        elif override.is_delete():
            deleted.append(key)
        elif not key.startswith("model.") or "ema" in own:  # in fine-tuning, the checkpoint holds those of the encoder
            keys.append(_ALIASES.get(key, key))
    return Words(keys, groups, deleted)


def own_configuration(cfg: DictConfig, checkpoint: RunCheckpoint, schema: Any) -> dict[str, Any]:
    """Return the configuration of a resumed run, with the allowed changes of the command line.

    Args:
        cfg: configuration composed from command line and defaults.
        checkpoint: checkpoint of the run.
        schema: class with the annotated keys of the command.

    Raises:
        OtherRun: the command line changes a setting that must not change.
        ValueError: the checkpoint's configuration is invalid, or names a class that files must not name.
    """
    own = {key: value for key, value in checkpoint.config.items() if key not in ("label_names", "inputs")}
    hydra = HydraConfig.get()
    words = words_of(hydra.overrides.task, hydra.runtime.choices, own_choices_of(checkpoint), own)
    composed = composed_of(cfg)
    for key, alias in _ALIASES.items():
        section, _, name = key.partition(".")
        if isinstance(composed.get(section), dict) and name in composed[section]:
            composed[alias] = composed[section].pop(name)
    composed = absolute(composed, schema)
    config = resumed(own, composed, words, str(cfg.resume))
    check_words_of_file(config, composed)
    if isinstance(data := config.get("data"), dict):
        leave_words_of_writing(data, composed, str(cfg.resume))
    return config


def check_words_of_file(config: Mapping[str, Any], composed: Mapping[str, Any]) -> None:
    """Raise ValueError if a run's configuration names a forbidden class, or has a pattern of exponential time.

    Args:
        config: configuration of the resumed run.
        composed: configuration of the user; equal values in ``config`` are trusted.
    """
    for key, value in _risky(config):
        if _at(composed, key) == value:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{key}={value!r}: give the dotted name of a class")
        if key.rpartition(".")[2] == "_target_":
            part_of(value, key)
        else:
            check_file_pattern(value, key)


def leave_words_of_writing(data: dict[str, Any], composed: Mapping[str, Any], resume: str) -> None:
    """Remove folders for caches and downloads that come from a file, not from the user.

    Args:
        data: data node of the resumed configuration, changed in place.
        composed: configuration composed from command line and defaults.
        resume: value of ``resume``, for messages.
    """
    for name in WORDS_OF_WRITING:
        if data.get(name) and _at(composed, f"data.{name}") != data[name]:
            log.warning("data.%s=%s of resume=%s is not taken from a file: give it anew", name, data[name], resume)
            del data[name]


def own_choices_of(checkpoint: RunCheckpoint | None) -> dict[str, Any]:
    """Return the options of configuration groups that a run chose."""
    choices = {} if checkpoint is None else checkpoint.record.get("choices", {})
    return dict(choices) if isinstance(choices, Mapping) else {}


def choices_now(checkpoint: RunCheckpoint | None) -> dict[str, str | None]:
    """Return the options of groups from now on: those of the run's start, updated by this command line."""
    hydra = HydraConfig.get()
    choices = {key: value for key, value in hydra.runtime.choices.items() if not key.startswith("hydra/")}
    if checkpoint is not None:
        given = {o.key_or_group for o in OverridesParser.create().parse_overrides(list(hydra.overrides.task))}
        choices = {
            **own_choices_of(checkpoint),
            **{key: value for key, value in choices.items() if key in given and value is not None},
        }
    return {str(key): None if value is None else str(value) for key, value in choices.items()}


def readable(config: Mapping[str, Any], assets: Mapping[str, str], run_dir: Path) -> dict[str, Any]:
    """Return the configuration for ``config.yaml``, with file names in place of file contents (a tokenizer)."""
    files = {name: str(run_dir / f"{name}.json") for name in assets if str(config["data"].get(name)).startswith("{")}
    return {**config, "data": {**config["data"], **files}}


def write_configuration(path: Path, config: Mapping[str, Any], before: RunCheckpoint | None) -> None:
    """Write ``config.yaml``. A resume rewrites it only if a setting that affects learning changed.

    Settings of a single start (steps, devices, workers) are recorded in ``run.json``.

    Args:
        path: path of the file.
        config: plain containers.
        before: checkpoint of the resumed run; None for a new run.
    """
    if before is None or not path.is_file() or trains_otherwise(before.config, config):
        replace_yaml(path, config)


def check_same_data(
    data: Any, checkpoint: RunCheckpoint | None, resume: str | None, accept_others: bool
) -> dict[str, Any]:
    """Return the fingerprint of the data, after comparing it with that of the resumed run.

    Args:
        data: training data.
        checkpoint: checkpoint of the resumed run; None for a new run.
        resume: value of ``resume``, for messages.
        accept_others: accept other samples, with a warning; other classes and another tokenizer are never accepted.

    Raises:
        OtherRun: the data differ from those of the run.
    """
    now = fingerprint(data)
    if checkpoint is None:
        return now
    differing, samples_alone = differences(checkpoint.record["fingerprint"], now)
    if not differing:
        return now
    if samples_alone and accept_others:
        log.warning("resume_with_other_data=true: %s", "; ".join(differing))
        return now
    accept = "add resume_with_other_data=true to go on with these all the same, " if samples_alone else ""
    raise OtherRun(
        f"resume={resume}: the data changed: {'; '.join(differing)}. Give those of before, {accept}or start another "
        "run from these weights (init_from= in pretraining, checkpoint= in fine-tuning)"
    )


def _risky(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield key and value of every ``_target_`` and every pattern."""
    inner: Any = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in inner:
        full = f"{key}.{name}" if key else str(name)
        if name == "_target_" or (str(name).endswith("pattern") and isinstance(value, str)):
            yield full, value
        else:
            yield from _risky(value, full)


def _at(node: Any, key: str) -> Any:
    for name in key.split("."):
        if isinstance(node, list):
            node = node[int(name)] if name.isdecimal() and int(name) < len(node) else None
        else:
            node = node.get(name) if isinstance(node, Mapping) else None
    return node
