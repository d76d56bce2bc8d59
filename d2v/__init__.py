"""Pretraining of data2vec encoders. ``import d2v`` is cheap: names are imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from d2v.version import __version__

_LAZY = {
    "Batch": "d2v.types",
    "Data2Vec": "d2v.models.data2vec",
    "Data2Vec2": "d2v.models.data2vec2",
    "Encoder": "d2v.nn.encoder",
    "TokenMask": "d2v.types",
    "buildable": "d2v.values",
    "evaluate": "d2v.api",
    "finetune": "d2v.api",
    "load_encoder": "d2v.interop.checkpoints",
    "pretrain": "d2v.api",
}

__all__ = [
    "Batch",
    "Data2Vec",
    "Data2Vec2",
    "Encoder",
    "TokenMask",
    "__version__",
    "buildable",
    "evaluate",
    "finetune",
    "load_encoder",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'd2v' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
