"""Resuming on the command line: the run's own configuration, and the words that say something else."""

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

_GLOBAL = ("experiment", "task", "debug")  # groups whose options set keys anywhere
_NOT_SETTINGS = ("launcher",)
_ALIASES = {"data.label_fraction": "label_fraction"}  # of every kind of data: kept apart from them


def composed_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that the command line and the defaults make, plain; "???" where a value is missing.

    A reference to what is not there is left as it is: a run's own configuration takes its place.
    """
    found: dict[str, Any] = _resolved(cfg)
    return found


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
        overrides: the command line's.
        choices: option of every group that was composed.
        own_choices: the run's.
        own: its configuration.
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
        elif not key.startswith("model.") or "ema" in own:  # of fine-tuning, the encoder's are in the checkpoint
            keys.append(_ALIASES.get(key, key))
    return Words(keys, groups, deleted)


def own_configuration(cfg: DictConfig, checkpoint: RunCheckpoint, schema: Any) -> dict[str, Any]:
    """The configuration of the run that goes on, changed by what the command line says and may say.

    Args:
        cfg: what the command line and the defaults make.
        checkpoint: of the run.
        schema: the command's keys, annotated.

    Raises:
        OtherRun: the command line says something else than the run's own that may not change.
        ValueError: the checkpoint's configuration is none, or names what a file may not name.
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
    """Raise ValueError if a run's configuration names what a file may not name, or a pattern that could take for ever.

    Args:
        config: of the run that goes on.
        composed: the user's own words; what agrees with them is the user's.
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
    """Leave out where a file says that data are cached or downloaded to: the user says that, or nobody.

    Args:
        data: of the configuration that goes on; changed.
        composed: what the command line and the defaults make.
        resume: as given.
    """
    for name in WORDS_OF_WRITING:
        if data.get(name) and _at(composed, f"data.{name}") != data[name]:
            log.warning("data.%s=%s of resume=%s is not taken from a file: give it anew", name, data[name], resume)
            del data[name]


def own_choices_of(checkpoint: RunCheckpoint | None) -> dict[str, Any]:
    """Options of configuration groups that a run chose."""
    choices = {} if checkpoint is None else checkpoint.record.get("choices", {})
    return dict(choices) if isinstance(choices, Mapping) else {}


def choices_now(checkpoint: RunCheckpoint | None) -> dict[str, str | None]:
    """Options of groups that the run has from now on: those of its start, and what this command line chooses anew."""
    hydra = HydraConfig.get()
    found = {key: value for key, value in hydra.runtime.choices.items() if not key.startswith("hydra/")}
    if checkpoint is not None:
        given = {o.key_or_group for o in OverridesParser.create().parse_overrides(list(hydra.overrides.task))}
        found = {
            **own_choices_of(checkpoint),
            **{key: value for key, value in found.items() if key in given and value is not None},
        }
    return {str(key): None if value is None else str(value) for key, value in found.items()}


def readable(config: Mapping[str, Any], assets: Mapping[str, str], run_dir: Path) -> dict[str, Any]:
    """A configuration for ``config.yaml``: what a checkpoint holds as text (a tokenizer) is named by its file."""
    files = {name: str(run_dir / f"{name}.json") for name in assets if str(config["data"].get(name)).startswith("{")}
    return {**config, "data": {**config["data"], **files}}


def write_configuration(path: Path, config: Mapping[str, Any], before: RunCheckpoint | None) -> None:
    """Write ``config.yaml``: what the run is. A resume rewrites it only where what is learned changes.

    What is of one start alone (steps, devices, workers, where it was started) stands in ``run.json``.

    Args:
        path: of the file.
        config: plain containers.
        before: checkpoint of the run that goes on; None for a new one.
    """
    if before is None or not path.is_file() or trains_otherwise(before.config, config):
        replace_yaml(path, config)


def check_same_data(
    data: Any, checkpoint: RunCheckpoint | None, resume: str | None, accept_others: bool
) -> dict[str, Any]:
    """The data's fingerprint, to be kept in checkpoints.

    Args:
        data: to train on.
        checkpoint: of the run that goes on with them; None for a new one.
        resume: as given.
        accept_others: go on with other samples, and say so; other classes and another tokenizer are never accepted.

    Raises:
        OtherRun: they are not the data of before.
    """
    now = fingerprint(data)
    if checkpoint is None:
        return now
    found, samples_alone = differences(checkpoint.record["fingerprint"], now)
    if not found:
        return now
    if samples_alone and accept_others:
        log.warning("resume_with_other_data=true: %s", "; ".join(found))
        return now
    accept = "add resume_with_other_data=true to go on with these all the same, " if samples_alone else ""
    raise OtherRun(
        f"resume={resume}: the data changed: {'; '.join(found)}. Give those of before, {accept}or start another run "
        "from these weights (init_from= in pretraining, checkpoint= in fine-tuning)"
    )


def _risky(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of every ``_target_``, and of every pattern."""
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
