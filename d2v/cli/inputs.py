"""Form of the inputs that a configuration leaves to the data, such as the channels of a folder of images.

The model refers to it, so that it has to be known before the model's configuration can be resolved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from d2v.arguments import returned_by
from d2v.cli.loading import inert
from d2v.cli.paths import absolute
from d2v.cli.settings import plain_value
from d2v.interop.build import build, part_named
from d2v.interop.checkpoints import Checkpoint


def with_found_inputs(
    cfg: DictConfig, schema: Any, start: Checkpoint | None = None, without: Iterable[str] = ()
) -> tuple[DictConfig, Any]:
    """Fill in the inputs that are null, as the data found them.

    Args:
        cfg: composed configuration; it is not changed.
        schema: class with the annotated keys of the command.
        start: checkpoint that the weights come from, with the channels they need; None for new weights.
        without: keys of ``cfg.data`` that its factory does not know.

    Returns:
        The configuration, and the data set, or None if nothing was open.
    """
    target = OmegaConf.select(cfg, "data._target_")
    made = None if target is None else returned_by(part_named(target))
    keys = [key for key in getattr(made, "found_keys", ()) if key in cfg.data and cfg.data[key] is None]
    if not keys:
        return cfg, None
    node: dict[str, Any] = absolute({"data": plain_value(cfg.data)}, schema)["data"]
    node = {key: value for key, value in node.items() if key not in set(without)}
    if start is not None:
        node |= {key: inert(start.inputs.get(key), f"data.{key}", start.path) for key in keys if key != "crop_pct"}
    data = build(node, key="data", trusted=True)
    found = {key: getattr(data, key) for key in keys}
    filled = cfg.copy()
    OmegaConf.set_readonly(filled, False)
    with open_dict(filled):
        filled.data.update({key: list(value) if isinstance(value, tuple) else value for key, value in found.items()})
    OmegaConf.set_readonly(filled, True)
    return filled, data
