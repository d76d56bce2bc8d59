"""Form of a checkpoint of fairseq's: what a code base calls its parameters and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from d2v.interop.fairseq.config import Node
from d2v.interop.renaming import Renaming

Settings = Mapping[str, Any]
State = Mapping[str, Tensor]


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Form of the checkpoints of one code base, and its translation.

    Attributes:
        name: key of the layout.
        modality: of the model with these names of parameters, as d2v calls it.
        matches: whether a file has this layout, by the student's parameters and the configurations of model and task.
        renaming: table of names, theirs and ours (``student.``, ``decoders.``, ``heads.``).
        node: node of the model, from its configuration, the student's parameters and the samples of a device at a time,
            on which the CLS loss of the authors' code depends (docs/algorithm.md).
        inputs: form of the inputs under the keys of conf/inputs, from the nodes of frontend and task.
        teacher_prefix: what the names of a teacher's parameters lack, by these names.
        constants: parameters that files may lack because they can be computed, under our names, from those that the
            file has and the node of the frontend.
        head_names: modules of a fine-tuned model's head, theirs and ours.
        head_class: class of this head in d2v.models.
        modalities: of models that can be written, as d2v calls them.
        recipe: their configuration of our node, to write it.
        task: their configuration of the inputs, to write it.
    """

    name: str
    modality: Callable[[Mapping[str, object]], str]
    matches: Callable[[State, Settings, Settings], bool]
    renaming: Renaming
    node: Callable[[Settings, State, int], Node]
    inputs: Callable[[Node, Settings], Node]
    teacher_prefix: Callable[[Mapping[str, object]], str]
    constants: Callable[[State, Node], dict[str, Tensor]] = _nothing
    head_names: Mapping[str, str] = field(default_factory=dict)
    head_class: Callable[[str], str]
    modalities: tuple[str, ...] = ()
    recipe: Callable[[Node], dict[str, Any]] = _nothing
    task: Callable[[Settings], dict[str, Any]] = _nothing
