"""Reading and writing of the authors' checkpoint files (fairseq, examples/data2vec), without fairseq or executed code.

``model`` holds the parameters, including the teacher's under ``_ema``; ``cfg`` holds plain containers. Other entries
(optimizer, meters) are ignored.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2v.interop.build import part_of
from d2v.interop.fairseq.config import Node
from d2v.interop.fairseq.layouts import (
    LAYOUTS,
    layout_of,
    model_node,
    to_d2v_state,
    to_d2v_teacher,
    to_fairseq_state,
    to_fairseq_teacher,
    writing,
)
from d2v.interop.imported import Imported
from d2v.interop.native import Network, read_safely
from d2v.models.distillation import SelfDistillation, averages
from d2v.nn.encoder import Encoder
from d2v.runs.files import replacing
from d2v.types import TeacherScope

# Prefixes of an encoder's names in fine-tuned models.
_WRAPPERS = ("w2v_encoder.w2v_model.", "model.")


@dataclass(frozen=True)
class FairseqCheckpoint:
    """Content of a checkpoint file of the authors' code.

    Attributes:
        path: path of the file.
        layout: name of its layout (:mod:`d2v.interop.fairseq.layouts`).
        cfg: configuration of the (pretrained) model.
        task: configuration of its task, which describes the inputs.
        student: parameters of the student under the authors' names.
        teacher: averaged parameters of the teacher; {} if the file has no teacher.
        head: parameters of a fine-tuned model's head under our names; {} if it has none.
    """

    path: Path
    layout: str
    cfg: dict[str, Any]
    task: dict[str, Any]
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    head: dict[str, Tensor]

    @classmethod
    def load(cls, path: str | Path) -> FairseqCheckpoint:
        """Read a file, weights only.

        Raises:
            ValueError: the file is damaged, would execute code, or holds no data2vec model.
        """
        path = Path(path)
        return cls.of(path, read_safely(path))

    @classmethod
    def of(cls, path: Path, content: Any) -> FairseqCheckpoint:
        """Build from the loaded content of a file.

        Raises:
            ValueError: the content is not a data2vec model of the authors' code.
        """
        if not is_fairseq(content):
            raise ValueError(f"checkpoint={path}: not a checkpoint of fairseq's (no 'model' beside 'cfg' or 'args')")
        odd = [name for name in content["model"] if not isinstance(name, str)]
        if odd:
            raise ValueError(f"checkpoint={path}: its model has an entry named {odd[0]!r}: names are strings")
        cfg = _plain(content.get("cfg")) or {"model": _plain(content.get("args")) or {}}
        state = {name: value for name, value in content["model"].items() if isinstance(value, Tensor)}
        teacher: Mapping[str, Tensor] = next(
            (value for name, value in content["model"].items() if name.rpartition(".")[2] == "_ema"), {}
        )
        wrapper = next((w for w in _WRAPPERS if any(name.startswith(w) for name in state)), "")
        if not isinstance(teacher, Mapping):
            raise ValueError(f"checkpoint={path}: its teacher ('_ema') is no dictionary of parameters")
        heads, own = {}, {}
        names = {theirs: ours for layout in LAYOUTS.values() for theirs, ours in layout.head_names.items()}
        for name, value in state.items():
            module, _, parameter = name.rpartition(".")
            if module in names:
                heads[f"{names[module]}.{parameter}"] = value
            else:
                own[name.removeprefix(wrapper)] = value
        model_cfg, task = _model_cfg(cfg), cfg.get("task") or {}
        try:
            name = layout_of(own, model_cfg, task)
        except ValueError as error:
            raise ValueError(f"checkpoint={path}: {error}") from error
        return cls(path, name, model_cfg, task, own, dict(teacher), heads)

    @property
    def modality(self) -> str:
        """Modality of the model, as named in d2v."""
        return LAYOUTS[self.layout].modality(self.student)

    def model_node(self, batch_size: int = 1) -> Node:
        """Builds the pretrained model: :class:`d2v.models.data2vec2.Data2Vec2` or 1.0's."""
        try:
            return model_node(self.cfg, self.student, self.layout, batch_size)
        except ValueError as error:
            raise ValueError(f"checkpoint={self.path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"checkpoint={self.path}: its configuration is not whole ({error!r})") from error

    def model_state(self) -> dict[str, Tensor]:
        """Return all parameters of a pretrained model under our names: student, teacher and predictors.

        Parameters that the teacher does not average are the student's; without a teacher in the file, all are.

        Raises:
            ValueError: a parameter is missing or unexpected.
        """
        state = self._read(self.student)
        own = {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}
        teacher = self._teacher()
        lacking = [name for name in self._averaged(own) if f"teacher.{name}" not in teacher] if teacher else []
        if lacking:
            raise ValueError(f"checkpoint={self.path}: its teacher ('_ema') lacks {', '.join(lacking[:3])}")
        return state | {f"teacher.{name}": value for name, value in own.items()} | teacher

    def _averaged(self, names: Iterable[str]) -> list[str]:
        """Return the names of the encoder's parameters that the teacher averages."""
        node = self.model_node()
        frontends = node["encoder"]["frontends"]
        local_parts = {modality: part_of(f["_target_"]).local_parts for modality, f in frontends.items()}
        learned = (name for name in names if not name.endswith(".positions"))
        scope: TeacherScope = node["teacher_scope"]
        return [name for name in learned if averages(dict.fromkeys(frontends, scope), name, local_parts)]

    def encoder_state(self, network: Network) -> dict[str, Tensor]:
        """Return the parameters of student or teacher as those of an encoder.

        Raises:
            ValueError: the file has no teacher.
        """
        if network == "teacher" and not self.teacher:
            raise ValueError(f"checkpoint={self.path}: holds no teacher (no '_ema'): set network=student")
        state = self.model_state()
        return {
            name.removeprefix(f"{network}."): value for name, value in state.items() if name.startswith(f"{network}.")
        }

    def to_imported(self, network: Network = "student") -> Imported:
        """Return the encoder, and the head of a fine-tuned model."""
        encoder = self.model_node()["encoder"]
        head_node = None
        if self.head:
            outputs = len(self.head["proj.bias"])
            head_node = {
                "_target_": LAYOUTS[self.layout].head_class(self.modality),
                "embed_dim": encoder["embed_dim"],
                "num_outputs": outputs,
            }
        inputs = LAYOUTS[self.layout].inputs(encoder["frontends"][self.modality], self.task)
        return Imported(encoder, self.encoder_state(network), inputs, head_node, self.head or None, None)

    def _read(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert parameters to our names; constants are computed if the file lacks them."""
        try:
            renamed = to_d2v_state(state, self.layout)
        except KeyError as error:
            raise ValueError(f"checkpoint={self.path}: {error.args[0]}") from error
        frontend = self.model_node()["encoder"]["frontends"][self.modality]
        try:
            return LAYOUTS[self.layout].constants(renamed, frontend) | renamed
        except ValueError as error:
            raise ValueError(f"checkpoint={self.path}: {error}") from error

    def _teacher(self) -> dict[str, Tensor]:
        try:
            return to_d2v_teacher(self.teacher, self.layout) if self.teacher else {}
        except KeyError as error:
            raise ValueError(f"checkpoint={self.path}: of the teacher, {error.args[0]}") from error


def is_fairseq(content: Any) -> bool:
    """Return whether the content is a checkpoint of fairseq."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("model"), Mapping)
        and ("cfg" in content or "args" in content)
    )


def save_fairseq(model: nn.Module, node: Node, path: str | Path, inputs: Mapping[str, Any]) -> Path:
    """Write a pretrained model as a file of the authors' 2.0.

    Args:
        model: a :class:`d2v.models.data2vec2.Data2Vec2`.
        node: node that builds the model.
        path: path of the file.
        inputs: form of the inputs.

    Raises:
        ValueError: the authors' code has no such model.
    """
    if not node.get("_target_", "").endswith(".Data2Vec2"):
        raise ValueError(
            "format=fairseq: is for pretrained data2vec 2.0 models with their decoder: give a run of d2v pretrain"
        )
    assert isinstance(model, SelfDistillation)
    modality = next(iter(node["encoder"]["frontends"]))
    layout = writing(modality)
    cfg = layout.recipe(node)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("teacher.")}
    averaged = {name for name in model.teacher.state_dict() if model.is_averaged(name)}
    teacher = {f"student.{n}": value for n, value in model.teacher.state_dict().items() if n in averaged}
    try:
        content = to_fairseq_state(state, layout.name) | {
            "_ema": to_fairseq_teacher(teacher, cfg["ema_encoder_only"], layout.name)
        }
    except KeyError as error:
        raise ValueError(f"format=fairseq: {error.args[0]}") from error
    task = layout.task(inputs)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save({"args": None, "cfg": {"model": cfg, "task": task}, "model": content}, file)
    return path


def differences_there(encoder: Encoder) -> list[str]:
    """Return descriptions of differences between the results of the authors' code and ours."""
    if "speech" in encoder.frontends and encoder.frontend("speech").zero_padding != "never":
        return [
            "the authors' code lets padding reach into the frames before it, this model does not: clips that are "
            "padded will get other features there"
        ]
    return []


def _model_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the pretrained model, which fine-tuned files hold in another place."""
    model: dict[str, Any] = dict(cfg.get("model") or {})
    for key in ("pretrained_model_args", "w2v_args"):
        inner = model.get(key) or cfg.get(key)
        if inner:
            inner = _plain(inner) or {}
            return dict(inner.get("model") or inner)
    return model


def _plain(value: Any) -> dict[str, Any] | None:
    """Return a configuration, or the values of an ``argparse.Namespace``, as plain containers."""
    if isinstance(value, argparse.Namespace):
        return dict(vars(value))
    return dict(value) if isinstance(value, Mapping) else None
