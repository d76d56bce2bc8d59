"""Hugging Face's doors: models of transformers become ours, ours become models of transformers."""

from __future__ import annotations

from d2v.interop.huggingface_custom import save_custom_huggingface
from d2v.interop.huggingface_export import save_huggingface
from d2v.interop.huggingface_import import load_huggingface
from d2v.interop.imported import Imported

__all__ = ["Imported", "load_huggingface", "save_custom_huggingface", "save_huggingface"]
