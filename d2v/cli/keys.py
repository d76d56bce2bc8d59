"""Keys in messages of the library, which names arguments as Python does: ``img_size=30`` is ``data.img_size=30``.

:func:`d2v.interop.build.build` puts the keys into errors of what it builds. Here are those for all else that the
library says: errors of methods, summaries, advice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from d2v.cli.commands import configuration_folder, groups, options

# Sections of a configuration, and how deep in them arguments stand. Of a name in several sections, the first one's is
# meant; a name that a section has twice is left as it is.
_SECTIONS = {
    **{"data": 1, "mask": 1, "trainer": 1, "optim": 1, "schedule": 1, "ema": 1, "curriculum": 1, "model": 1},
    **{"labels": 1, "probe": 1, "decoder": 1, "callbacks": 2, "logger": 2},
}


def argument_keys(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return the key of every argument that the library may name to a command.

    Args:
        cfg: the command's configuration. Its own keys at the top stand for themselves. A key that refers to another,
            such as ``model.encoder.frontends.image.img_size``, is mapped to that one, which a user would set.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False) if isinstance(cfg, DictConfig) else cfg
    keys: dict[str, str] = {}
    for section, depth in _SECTIONS.items():
        # A command that has workers reads data, those of the checkpoint if it is given none.
        is_read = section in plain or (section == "data" and "num_workers" in plain)
        if not is_read:
            continue
        paths = sorted({*_paths(plain.get(section), depth), *_known_paths(section, depth)})
        counts = Counter(map(_name, paths))
        for path in paths:
            name = _name(path)
            if counts[name] == 1 and name not in plain and name not in groups():
                keys.setdefault(name, f"{section}.{path}")
    return keys | dict(_references(plain, ""))


@cache
def _known_paths(group: str, depth: int) -> tuple[str, ...]:
    """Keys of all options of a group: a checkpoint may have been trained on data of any of them."""
    files = [configuration_folder() / group / f"{name}.yaml" for name in options(group)]
    if group == "data":
        files += sorted((configuration_folder() / "inputs").iterdir())
    return tuple(path for file in files for path in _paths(OmegaConf.to_container(OmegaConf.load(file)), depth))


def _paths(node: object, depth: int) -> Iterator[str]:
    """Keys below a node that are neither Hydra's nor sections."""
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        if depth > 1:
            yield from (f"{name}.{path}" for path in _paths(value, depth - 1))
        elif not str(name).endswith("_") and name != "defaults":
            yield str(name)


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _references(node: object, prefix: str) -> Iterator[tuple[str, str]]:
    """Keys whose value is another key's, and these."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _references(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(node, str) and (match := re.fullmatch(r"\$\{(\w[\w.]*)\}", node)):
        yield prefix, match[1]
