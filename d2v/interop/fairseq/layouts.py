"""Registry of layouts of fairseq's checkpoints: one file a code base, one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from d2v.interop.fairseq.config import Node
from d2v.interop.fairseq.data2vec import VERSION_1, VERSION_2
from d2v.interop.fairseq.eat import EAT
from d2v.interop.fairseq.layout import Layout, Settings

# The first that matches counts: EAT's files have the names of 2.0.
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (EAT, VERSION_2, *VERSION_1)}


def layout_of(state: Mapping[str, Tensor], cfg: Settings | None = None, task: Settings | None = None) -> str:
    """Return the name of a file's layout.

    Args:
        state: parameters of the student.
        cfg: configuration of the model.
        task: configuration of its task.

    Raises:
        ValueError: the layout is unknown.
    """
    for name, layout in LAYOUTS.items():
        if layout.matches(state, cfg or {}, task or {}):
            return name
    raise ValueError("these are not the parameters of a data2vec model of the authors'")


def writing(modality: str) -> Layout:
    """Return the layout in which models of a modality are written.

    Raises:
        ValueError: there is none.
    """
    for layout in LAYOUTS.values():
        if modality in layout.modalities:
            return layout
    raise ValueError(f"format=fairseq: the authors' code has no model of {modality}")


def model_node(cfg: Settings, state: Mapping[str, Tensor], layout: str, batch_size: int = 1) -> Node:
    """Return the node of the model that an authors' configuration describes.

    Args:
        cfg: configuration of the model: ``cfg.model`` of a checkpoint, or a recipe of the same form.
        state: state dict of the student under the authors' names, for sizes that the configuration may lack.
        layout: name of the layout.
        batch_size: samples of a device at a time, on which the reference's CLS loss depends (docs/algorithm.md).

    Raises:
        ValueError: the configuration has a setting that d2v does not support, or lacks a key; the message names it.
    """
    try:
        return LAYOUTS[layout].node(cfg, state, batch_size)
    except KeyError as error:
        raise ValueError(f"the checkpoint's configuration of its model lacks {error}") from error


def to_d2v_state(state: Mapping[str, Tensor], layout: str = "2.0") -> dict[str, Tensor]:
    """Convert an authors' state dict to our names: ``student.``, and ``decoders.`` (2.0) or ``heads.`` (1.0).

    Raises:
        KeyError: a name is unknown; the message names it.
    """
    return LAYOUTS[layout].renaming.read(state)


def to_d2v_teacher(state: Mapping[str, Tensor], layout: str = "2.0") -> dict[str, Tensor]:
    """Convert the averaged parameters of an authors' teacher to our names, ``teacher.``; these may be a part only."""
    prefix = LAYOUTS[layout].teacher_prefix(state)
    renamed = to_d2v_state({f"{prefix}{name}": value for name, value in state.items()}, layout)
    return {f"teacher.{name.removeprefix('student.')}": value for name, value in renamed.items()}


def to_fairseq_state(state: Mapping[str, Tensor], layout: str = "2.0") -> dict[str, Tensor]:
    """Convert our state dict to the authors' names: the inverse of :func:`to_d2v_state`.

    Raises:
        KeyError: a parameter has no counterpart; the message names it.
    """
    return LAYOUTS[layout].renaming.write(state)


def to_fairseq_teacher(state: Mapping[str, Tensor], blocks_only: bool, layout: str = "2.0") -> dict[str, Tensor]:
    """Convert the averaged parameters of a 2.0 teacher, under ``student.`` names, to the authors' names."""
    written: dict[str, Any] = to_fairseq_state(state, layout)
    return {name.removeprefix("blocks."): value for name, value in written.items()} if blocks_only else written
