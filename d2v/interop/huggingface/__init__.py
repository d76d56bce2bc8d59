"""Hugging Face: read models of transformers as ours, write ours as models of transformers."""

from __future__ import annotations

from d2v.interop.huggingface.custom import save_custom_huggingface
from d2v.interop.huggingface.inputs import ARGUMENTS
from d2v.interop.huggingface.reading import load_huggingface
from d2v.interop.huggingface.writing import arguments, only_frontend, problems, save_huggingface
from d2v.interop.imported import Imported, Node

__all__ = [
    "ARGUMENTS",
    "Imported",
    "huggingface_problems",
    "load_huggingface",
    "save_custom_huggingface",
    "save_huggingface",
]


def huggingface_problems(encoder_node: Node, head_node: Node | None = None) -> list[str]:
    """Return why :func:`save_huggingface` cannot write a model and :func:`save_custom_huggingface` has to; or []."""
    modality, frontend = only_frontend(encoder_node)
    return problems(modality, arguments(encoder_node), frontend, None if head_node is None else arguments(head_node))
