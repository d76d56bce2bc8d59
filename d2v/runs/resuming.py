"""Configuration of a resumed run: its own, with the changes that the command line is allowed to make.

A run continues with the configuration in its checkpoint, not with the command's defaults. Of keys on the command line
with other values, some may change at any time (``FREE``), some are applied and logged (``APPLIED``), and all others are
refused, because they would make it another run.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

# Keys, or prefixes of keys, that may have other values in a resumed run; docs/scaling.md lists them, too.
FREE = (
    *("trainer.max_steps", "trainer.max_time", "epochs"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.log_every_n_steps", "trainer.deterministic", "trainer.benchmark"),
    *("trainer.detect_anomaly", "trainer.profiler"),
    *("micro_batch_size", "num_workers", "num_threads", "compile", "activation_checkpointing"),
    *("callbacks", "logger", "decoder", "sweep"),
    *("resume", "resume_with_other_data", "init_from", "checkpoint", "network"),
    *("output_dir", "name", "run_dir", "task_name"),
    *("data.cache", "data.download", "data.max_bad_fraction"),
    # Locations of the data: the fingerprint checks that the data are the same.
    *("data.root", "data.val_root", "data.path", "data.manifest", "data.transcripts"),
    *("data.val_manifest", "data.val_transcripts", "data.tokenizer", "data.probe_train", "data.probe_val"),
)
# These affect learning from the resumed step on.
APPLIED = (
    *("optim.lr", "optim.weight_decay", "optim.betas", "optim.eps", "schedule", "ema", "curriculum"),
    *("trainer.gradient_clip_val", "trainer.precision", "freeze_steps"),
)
# Keys of the current command, not of the run.
_THE_COMMANDS = ("resume", "resume_with_other_data", "output_dir", "run_dir")
# Keys of the run's first start: a repeated command may name a path that moved, so the recorded value stays.
_OF_THE_START = ("init_from", "checkpoint", "network")
_MAX_DEPTH, _MAX_VALUES = 40, 1_000_000


class OtherRun(ValueError):
    """A run cannot be resumed with settings of another run."""


@dataclass(frozen=True)
class Words:
    """Overrides of a command line.

    Attributes:
        keys: dotted keys that it sets.
        groups: dotted keys of the groups in which it chooses another option than the run; "" for all groups.
        deleted: dotted keys that it deletes.
    """

    keys: Collection[str] = ()
    groups: Collection[str] = ()
    deleted: Collection[str] = ()


class Change(NamedTuple):
    """Key with another value than the run's; ``ABSENT`` means no value."""

    key: str
    before: Any
    now: Any


class _Absent:
    def __str__(self) -> str:
        return "nothing"


ABSENT: Any = _Absent()


def resumed(own: Mapping[str, Any], composed: Mapping[str, Any], words: Words, resume: str) -> dict[str, Any]:
    """Return the configuration of a resumed run.

    Args:
        own: configuration in the run's checkpoint; checked to be plain containers.
        composed: configuration from the command line and d2v's defaults, resolved; "???" for missing values.
        words: the overrides of the command line.
        resume: value of ``resume``, for messages.

    Raises:
        OtherRun: the command line changes a setting that must not change.
        ValueError: ``own`` is not a plain configuration.
    """
    check_plain(own, resume)
    config: dict[str, Any] = _copied(own)
    for key, value in composed.items():
        if key not in config or key in _THE_COMMANDS:  # a key that is newer than the run
            config[key] = _copied(value)
    differing = changes(own, composed, words)
    refused = [change for change in differing if not _within(change.key, (*FREE, *APPLIED))]
    if refused:
        named = "; ".join(f"{c.key}={_shown(c.now)}: the run that is resumed has {_shown(c.before)}" for c in refused)
        raise OtherRun(
            f"resume={resume}: these settings may not change within a run: {named}. Leave them out to go on with the "
            "run's own, or start another run from its weights (init_from= in pretraining, checkpoint= in fine-tuning)"
        )
    for change in differing:
        if change.key in _OF_THE_START:
            log.warning(
                "%s=%s is ignored: the run began with %s, and goes on from its own checkpoint",
                *(change.key, _shown(change.now), _shown(change.before)),
            )
            continue
        _put(config, change.key, change.now)
        if _within(change.key, APPLIED):
            log.warning("%s=%s from now on; it was %s", change.key, _shown(change.now), _shown(change.before))
        elif change.key not in _THE_COMMANDS:
            log.info("resumed with %s=%s; it was %s", change.key, _shown(change.now), _shown(change.before))
    return config


def changes(own: Mapping[str, Any], composed: Mapping[str, Any], words: Words) -> list[Change]:
    """Return the keys in which the command line differs from the run's own configuration, each once, in order."""
    differing: dict[str, Change] = {}
    for group in words.groups:
        for change in _differences(_get(own, group), _get(composed, group), group):
            differing[change.key] = change
    for key in words.keys:
        before, now = _get(own, key), _get(composed, key)
        if now is not ABSENT and not same(before, now):
            differing[key] = Change(key, before, now)
    for key in words.deleted:
        if _get(own, key) is not ABSENT:
            differing[key] = Change(key, _get(own, key), ABSENT)
    return [change for change in differing.values() if change.now != "???"]


def _differences(before: Any, now: Any, key: str) -> list[Change]:
    """Return the leaves that differ; for an object of another class, the whole object."""
    if isinstance(before, Mapping) and isinstance(now, Mapping) and before.get("_target_") == now.get("_target_"):
        names = [*now, *(name for name in before if name not in now)]
        inner = ((f"{key}.{name}" if key else str(name), name) for name in names)
        return [
            change
            for full, name in inner
            if full not in _THE_COMMANDS
            for change in _differences(before.get(name, ABSENT), now.get(name, ABSENT), full)
        ]
    return [] if same(before, now) else [Change(key, before, now)]


def same(before: Any, now: Any) -> bool:
    """Return whether two plain values are equal in meaning: 1 and 1.0 are, 1 and true are not."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return before.keys() == now.keys() and all(same(before[key], now[key]) for key in before)
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return len(before) == len(now) and all(map(same, before, now))
    return isinstance(before, bool) == isinstance(now, bool) and bool(before == now)


def trains_otherwise(own: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether a resumed run has a changed setting that affects learning."""
    return any(not same(_get(own, key), _get(config, key)) for key in APPLIED)


def check_plain(value: Any, resume: str) -> None:
    """Raise ValueError unless a run's configuration is a mapping of strings to plain values, of reasonable size."""
    budget = [_MAX_VALUES]
    if not isinstance(value, Mapping) or not _is_plain(value, 0, budget):
        raise ValueError(f"resume={resume}: the configuration in its checkpoint is not one of a run; it is refused")


def _is_plain(value: Any, depth: int, budget: list[int]) -> bool:
    budget[0] -= 1
    if depth > _MAX_DEPTH or budget[0] < 0:
        return False
    if isinstance(value, Mapping):
        return type(value) is dict and all(
            isinstance(key, str) and _is_plain(inner, depth + 1, budget) for key, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return all(_is_plain(inner, depth + 1, budget) for inner in value)
    return value is None or type(value) in (bool, int, float, str)


def _copied(value: Any) -> Any:
    """Copy plain containers, with tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list | tuple) else value


def _get(config: Any, key: str) -> Any:
    for name in key.split(".") if key else ():
        if not isinstance(config, Mapping) or name not in config:
            return ABSENT
        config = config[name]
    return config


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        inner = config.get(name)
        if not isinstance(inner, dict):
            inner = config[name] = {}
        config = inner
    if value is ABSENT:
        config.pop(last, None)
    else:
        config[last] = _copied(value)


def _within(key: str, table: Sequence[str]) -> bool:
    return any(key == entry or key.startswith(f"{entry}.") for entry in table)


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"])
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
